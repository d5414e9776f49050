//! Snapshots taken beside the fold: it hands over copies of a few trackers between its inputs, and another thread encodes
//! them. A snapshot is a base, or what has changed since the newest base that is known to be durable.

use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::anyhow;
use metrics::Histogram;
use protocol::record::BlobHash;
use protocol::{Offset, PartitionId};
use tokio::sync::oneshot;

use crate::track::{Partition, SnapshotEncoder, SnapshotError, SnapshotHead, TrackerCopy, WORK_PER_STEP};

/// A snapshot whose trackers are all handed over. Its bytes come when they are encoded.
pub(crate) struct TakenSnapshot {
    pub next: Offset,
    /// The bodies that it names.
    pub bodies: Vec<BlobHash>,
    pub kind: SnapshotKind,
    pub encoded: oneshot::Receiver<Result<Vec<u8>, SnapshotError>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SnapshotKind {
    /// The whole state. Later snapshots may say what has changed since.
    Base {
        number: u32,
    },
    Changes {
        base: BlobHash,
    },
}

/// The newest base that is durable and announced, with its number: who keeps snapshots says it to who takes them.
#[derive(Clone, Default)]
pub(crate) struct DurableBase(Arc<Mutex<Option<(u32, BlobHash)>>>);

impl DurableBase {
    pub(crate) fn set(&self, number: u32, hash: BlobHash) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((number, hash));
    }

    fn hash_of(&self, number: u32) -> Option<BlobHash> {
        let durable = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        durable.filter(|(other, _)| *other == number).map(|(_, hash)| hash)
    }
}

/// Takes one snapshot after the other of one partition.
pub(crate) struct Snapshotter {
    pub partition: PartitionId,
    pub durable: DurableBase,
    /// How long the fold stands still for one step.
    pub pause_seconds: Histogram,
    under_way: Option<UnderWay>,
}

struct UnderWay {
    taken: TakenSnapshot,
    encoder: SyncSender<Piece>,
    /// What the encoder had no room for.
    waiting: Option<Piece>,
}

enum Piece {
    Copies(Vec<TrackerCopy>),
    End(Vec<TrackerCopy>),
}

/// What a step has come to.
pub(crate) enum Stepped {
    /// No snapshot is under way.
    Nothing,
    /// There is more to do.
    Gathered,
    /// The encoder has enough to do for the moment.
    EncoderBusy,
    Taken(TakenSnapshot),
    Failed(anyhow::Error),
}

impl Snapshotter {
    pub(crate) fn new(partition: PartitionId, durable: DurableBase, pause_seconds: Histogram) -> Snapshotter {
        Snapshotter { partition, durable, pause_seconds, under_way: None }
    }

    pub(crate) fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Begins a snapshot of the state as it is here. One that is under way is given up.
    pub(crate) fn begin(&mut self, partition: &mut Partition) -> std::io::Result<()> {
        let began = Instant::now();
        let base = self.durable.hash_of(partition.base_number()).filter(|_| !partition.is_base_worn());
        let head = partition.begin_snapshot(base);
        let kind = match base {
            Some(base) => SnapshotKind::Changes { base },
            None => SnapshotKind::Base { number: partition.base_number() },
        };
        let (encoder, pieces) = mpsc::sync_channel(PIECES_MAX);
        let (done, encoded) = oneshot::channel();
        let thread = std::thread::Builder::new().name(format!("snapshot {}", self.partition));
        thread.spawn(move || {
            if let Some(encoded) = encode(head, &pieces) {
                let _ = done.send(encoded); // nobody waits for it if another one is being kept
            }
        })?;
        let taken = TakenSnapshot { next: partition.next(), bodies: partition.bodies(), kind, encoded };
        self.under_way = Some(UnderWay { taken, encoder, waiting: None });
        self.pause_seconds.record(began.elapsed().as_secs_f64());
        Ok(())
    }

    /// Hands over the copies of a few more trackers.
    pub(crate) fn step(&mut self, partition: &mut Partition) -> Stepped {
        let Some(mut under_way) = self.under_way.take() else { return Stepped::Nothing };
        let began = Instant::now();
        let piece = under_way.waiting.take().unwrap_or_else(|| match partition.gather(WORK_PER_STEP) {
            (copies, false) => Piece::Copies(copies),
            (copies, true) => Piece::End(copies),
        });
        let is_end = matches!(piece, Piece::End(_));
        let sent = under_way.encoder.try_send(piece);
        self.pause_seconds.record(began.elapsed().as_secs_f64());
        match sent {
            Ok(()) if is_end => return Stepped::Taken(under_way.taken),
            Ok(()) => {}
            Err(TrySendError::Full(piece)) => {
                under_way.waiting = Some(piece);
                self.under_way = Some(under_way);
                return Stepped::EncoderBusy;
            }
            Err(TrySendError::Disconnected(_)) => {
                partition.abandon_snapshot();
                let error = under_way.taken.encoded.try_recv().ok().and_then(Result::err);
                return Stepped::Failed(error.map_or_else(|| anyhow!("its encoder died"), anyhow::Error::from));
            }
        }
        self.under_way = Some(under_way);
        Stepped::Gathered
    }
}

/// None if the snapshot was given up.
fn encode(head: SnapshotHead, pieces: &mpsc::Receiver<Piece>) -> Option<Result<Vec<u8>, SnapshotError>> {
    let mut encoder = match SnapshotEncoder::begin(head) {
        Ok(encoder) => encoder,
        Err(error) => return Some(Err(error)),
    };
    loop {
        let (copies, is_end) = match pieces.recv().ok()? {
            Piece::Copies(copies) => (copies, false),
            Piece::End(copies) => (copies, true),
        };
        if let Err(error) = copies.iter().try_for_each(|copy| encoder.add(copy)) {
            return Some(Err(error));
        }
        if is_end {
            return Some(encoder.end());
        }
    }
}

/// Steps that may wait to be encoded.
const PIECES_MAX: usize = 4;
