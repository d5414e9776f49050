//! What leaves the learner: tables to the blob store and to every partition of the records, cells to the live store, its
//! state to the blob store and a note of it to the snapshots topic. And how a state is found again.

use anyhow::Context;
use backends::blob_store::{BlobStore, BlobStoreError};
use backends::live_store::{CellSpeeds, KindSpeed, RoadKind, SpeedCell};
use backends::log::{Append, Log, Topic, append_durably};
use bytes::Bytes;
use daemon::{Backoff, retry};
use maps::speeds::RoadSpeed;
use protocol::record::{BlobHash, BodyKind};
use protocol::{PartitionId, Record, RecordBatch, Time, envelope};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::Role;
use super::core::Output;
use super::state::{NOTE_KEY, STATE_FORMAT, State, StateNote};
use crate::shard::notice::{self, newest};

pub struct Teller {
    pub role: Role,
    /// The state that the newest note names.
    pub kept: Option<BlobHash>,
    /// Cancelled when stores and log are not to be waited for any more.
    pub give_up: CancellationToken,
}

impl Teller {
    /// Until the learner ends.
    pub async fn run(mut self, mut outputs: mpsc::Receiver<Output>) -> anyhow::Result<()> {
        while let Some(output) = outputs.recv().await {
            match output {
                Output::Table { kind, hash, body } => self.offer(kind, hash, body).await?,
                Output::Cells { at, speeds } => self.put_cells(at, &speeds).await,
                Output::State { body } => self.keep(body).await?,
                Output::Expired { hash } => self.remove(hash).await,
            }
        }
        Ok(())
    }

    /// The body is there before any record names it.
    async fn offer(&self, kind: BodyKind, hash: BlobHash, body: Vec<u8>) -> anyhow::Result<()> {
        let size = body.len() as u64;
        self.put(body).await.context("put a table into the blob store")?;
        let offered = RecordBatch { records: vec![Record::Offered { kind, hash, size }] };
        let value = Bytes::from(envelope::encode(&offered));
        let entry = |partition| Append {
            topic: Topic::Records,
            partition: PartitionId(partition),
            key: Bytes::new(),
            value: value.clone(),
        };
        let entries = (0..self.role.log.partition_count(Topic::Records)).map(entry).collect();
        self.append(entries).await.context("offer a table")?;
        debug!(?kind, %hash, size, "a table is offered");
        self.role.metrics.offered(kind, size);
        Ok(())
    }

    async fn put(&self, body: Vec<u8>) -> Result<BlobHash, BlobStoreError> {
        let body = Bytes::from(body);
        let put = || self.role.blobs.put(body.clone());
        retry("keep what was learned", Backoff::default(), &self.give_up, BlobStoreError::is_transient, put).await
    }

    async fn append(&self, entries: Vec<Append>) -> anyhow::Result<()> {
        append_durably(&*self.role.log, "tell what was learned", &self.give_up, &entries).await?;
        Ok(())
    }

    /// Best effort: all cells come again in a minute.
    async fn put_cells(&self, at: Time, speeds: &[RoadSpeed]) {
        for some in cells(at, speeds).chunks(CELLS_PER_PUT) {
            let now = Time(self.role.clock.monotonic_ms());
            if let Err(error) = self.role.live_store.put_speeds(some.to_vec(), now).await {
                warn!(%error, "speeds cannot be kept in the live store");
                return;
            }
            self.role.metrics.cells.increment(some.len() as u64);
        }
    }

    async fn keep(&mut self, body: Vec<u8>) -> anyhow::Result<()> {
        let size = body.len() as u64;
        let hash = self.put(body).await.context("put the state into the blob store")?;
        let note = StateNote { format: STATE_FORMAT, hash, size, at: Time(self.role.clock.now_ms()) };
        self.append(vec![notice::entry(NOTE_KEY, Some(&note))]).await.context("say where the state lies")?;
        self.role.metrics.states.increment(1);
        if let Some(before) = self.kept.replace(hash).filter(|before| *before != hash) {
            self.remove(before).await;
        }
        Ok(())
    }

    async fn remove(&self, hash: BlobHash) {
        if let Err(error) = self.role.blobs.remove(hash).await {
            warn!(%error, %hash, "an old body cannot be removed");
        }
    }
}

/// Cell by cell; they come sorted.
fn cells(at: Time, speeds: &[RoadSpeed]) -> Vec<CellSpeeds> {
    let road = |speed: &RoadSpeed| KindSpeed {
        kind: RoadKind::ALL[speed.group.min(RoadKind::ALL.len() - 1)],
        empty_cm_s: speed.empty_cm_s,
        usual_cm_s: speed.usual_cm_s,
        live_cm_s: speed.live_cm_s,
    };
    let of_cell =
        |some: &[RoadSpeed]| CellSpeeds { cell: SpeedCell(some[0].cell), at, roads: some.iter().map(road).collect() };
    speeds.chunk_by(|a, b| a.cell == b.cell).map(of_cell).collect()
}

/// The newest state that this build can read, and its name.
pub async fn restore(
    log: &dyn Log,
    blobs: &dyn BlobStore,
    stop: &CancellationToken,
) -> anyhow::Result<(Option<State>, Option<BlobHash>)> {
    let note = newest::<StateNote>(log).await.context("read the snapshots topic")?;
    let Some(note) = note else { return Ok((None, None)) };
    if note.format != STATE_FORMAT {
        warn!(format = note.format, "what was learned is of another build: it is learned anew");
        return Ok((None, Some(note.hash)));
    }
    let fetch = || blobs.get(note.hash);
    let fetched = retry("fetch what was learned", Backoff::default(), stop, BlobStoreError::is_transient, fetch).await;
    let body = match fetched {
        Ok(body) => body,
        Err(error @ (BlobStoreError::NotFound { .. } | BlobStoreError::Damaged { .. })) => {
            warn!(%error, "what was learned is lost: it is learned anew");
            return Ok((None, None));
        }
        Err(error) => return Err(error).context("fetch what was learned"),
    };
    match State::from_bytes(&body) {
        Ok(state) => {
            info!(at = %note.at, size = note.size, "learns on from what was kept");
            Ok((Some(state), Some(note.hash)))
        }
        Err(error) => {
            warn!(%error, "what was learned cannot be read: it is learned anew");
            Ok((None, Some(note.hash)))
        }
    }
}

const CELLS_PER_PUT: usize = 1_000;
