//! Writes what the fold brought forth to the log, in order and at once: linger 0, with a few appends under way, so that
//! it is not one round trip at a time. A snapshot's turn comes when all that the records below it brought forth is
//! acknowledged; then it is announced.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use backends::log::{Append, Pipeline, PipelineConfig, Topic, append_durably};
use bytes::Bytes;
use daemon::{Backoff, Drain, retry};
use protocol::record::{BlobHash, BodyKind};
use protocol::update::Generation;
use protocol::{Offset, PartitionId, Record, RecordBatch, Time, Update, UpdateBatch, envelope};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Shards;
use super::facts::{Held, append_facts};
use super::fold::{Folded, Input, KINDS, Output};
use super::notice::{KeptSnapshots, SnapshotNotice};
use super::snapshotting::{DurableBase, SnapshotKind, TakenSnapshot};
use crate::track::{CHANGES_FORMAT, FOLD_VERSION, RegionInUse, SNAPSHOT_FORMAT, SnapshotError};

pub struct Teller {
    pub shards: Arc<Shards>,
    pub partition: PartitionId,
    pub own: Generation,
    /// For what may take long: it must not hold up the dot.
    pub drain: Drain,
    /// Cancelled when the partition is not ours any more.
    pub stop: CancellationToken,
    /// Cancelled when the log is not to be waited for any more.
    pub give_up: CancellationToken,
    /// Cancelled when a later owner has claimed the partition.
    pub superseded: CancellationToken,
    /// One snapshot at a time is being kept, beside those that are.
    pub keeping: Arc<tokio::sync::Mutex<KeptSnapshots>>,
    /// For the fold: what later snapshots may build on.
    pub durable: DurableBase,
    /// To the fold.
    pub inputs: mpsc::WeakSender<Input>,
    /// One body at a time is taken into use, in the order in which they were offered.
    pub using: Arc<tokio::sync::Mutex<()>>,
    /// Of each kind, the one offered last: others are not to be taken into use any more.
    pub offered: Arc<Mutex<[Option<BlobHash>; KINDS.len()]>>,
}

impl Teller {
    /// Until the fold ends.
    pub async fn run(self, mut outputs: mpsc::Receiver<Output>) -> anyhow::Result<()> {
        let mut waiting: Vec<Output> = Vec::new();
        let mut folded = None;
        let mut pipeline = Pipeline::new(&*self.shards.log, PIPELINE, self.give_up.clone());
        let mut beat_ms = self.shards.clock.monotonic_ms();
        loop {
            let beat = self.shards.clock.sleep_until_monotonic_ms(beat_ms);
            let received = tokio::select! {
                count = outputs.recv_many(&mut waiting, OUTPUTS_MAX), if pipeline.has_room() => count,
                heard = pipeline.drive(), if !pipeline.is_empty() => {
                    heard.context("append updates")?;
                    continue;
                }
                () = beat => {
                    beat_ms = self.shards.clock.monotonic_ms() + HEARTBEAT_MS;
                    self.beat(folded, &mut pipeline).await?;
                    continue;
                }
            };
            if received == 0 {
                return pipeline.flush().await.context("append updates");
            }
            self.handle_outputs(&mut waiting, &mut folded, &mut pipeline).await?;
        }
    }

    async fn handle_outputs(
        &self,
        waiting: &mut Vec<Output>,
        folded: &mut Option<(Offset, Time)>,
        pipeline: &mut Pipeline<()>,
    ) -> anyhow::Result<()> {
        let mut appends = Vec::new();
        for output in waiting.drain(..) {
            match output {
                Output::Folded(Folded { next, appends: more, at, ahead_ms }) => {
                    appends.extend(more);
                    *folded = Some((next, at));
                    self.shards.ticker.set_ahead(self.partition, ahead_ms);
                }
                Output::Snapshot(taken) => {
                    pipeline.push_in_turn(std::mem::take(&mut appends)).await.context("append updates")?;
                    pipeline.flush().await.context("append updates")?;
                    self.keep_snapshot(taken);
                }
                Output::Live { maps, facts_wanted } => {
                    facts_wanted.into_iter().for_each(|held| self.find_facts(held));
                    appends.extend(self.handle_live(&maps));
                }
                Output::Offered { kind, hash, regions } => self.take_into_use(kind, hash, regions),
                Output::RoutesWanted(wanted) => self.shards.planner.want(self.partition, wanted),
                Output::Superseded => {
                    info!(partition = self.partition.0, "another owner has claimed the partition");
                    self.superseded.cancel();
                }
            }
        }
        pipeline.push_in_turn(appends).await.context("append updates")
    }

    /// Tells each updates partition how far this source has come.
    async fn beat(&self, folded: Option<(Offset, Time)>, pipeline: &mut Pipeline<()>) -> anyhow::Result<()> {
        let Some((offset, at)) = folded else { return Ok(()) };
        let heartbeat = UpdateBatch { updates: vec![Update::Heartbeat { source: self.partition, offset, at }] };
        let value = Bytes::from(envelope::encode(&heartbeat));
        let count = self.shards.log.partition_count(Topic::Updates);
        let beat =
            |i| Append { topic: Topic::Updates, partition: PartitionId(i), key: Bytes::new(), value: value.clone() };
        // It says that all below it is durable, so it is begun only when that is so.
        pipeline.flush().await.context("append updates")?;
        pipeline.push_in_turn((0..count).map(beat).collect()).await.context("append a heartbeat")
    }

    /// What is to be appended now that the partition is live.
    fn handle_live(&self, maps: &[BlobHash]) -> Option<Append> {
        info!(partition = self.partition.0, "partition is live");
        self.shards.ticker.set_live(self.partition);
        self.shards.set_live(self.partition, true);
        match self.shards.map() {
            Some((hash, size)) if !maps.contains(&hash) => {
                Some(record_entry(self.partition, Record::Offered { kind: BodyKind::Map, hash, size }))
            }
            Some(_) | None => None,
        }
    }

    /// Registry and ledger may be away, or refuse: the dot does not wait for them. They are asked until they answer, and
    /// until then we say that something may be missing.
    fn find_facts(&self, held: Held) {
        let (shards, partition, stop) = (self.shards.clone(), self.partition, self.stop.clone());
        let inputs = self.inputs.clone();
        shards.set_facts_due(partition, true);
        self.drain.spawn_job("append the facts", async move {
            let now = || Time(shards.clock.now_ms());
            let append = || append_facts((&*shards.log, &shards.facts), partition, held.clone(), &now, &stop);
            let appended = retry("append the facts", FACTS_BACKOFF, &stop, |_| true, append).await;
            match appended {
                Ok(()) => {
                    shards.metrics.facts_appended.increment(1);
                    shards.set_facts_due(partition, false);
                    if let Some(inputs) = inputs.upgrade() {
                        let _ = inputs.send(Input::FactsIn).await; // if the fold has ended, the next owner asks again
                    }
                }
                Err(error) => {
                    info!(error = format!("{error:#}"), partition = partition.0, "the facts are asked for later");
                }
            }
            Ok(())
        });
    }

    /// Fetches and checks an offered body, then says that it is in use: there, and only there, it takes effect.
    fn take_into_use(&self, kind: BodyKind, hash: BlobHash, regions: Vec<RegionInUse>) {
        let Some(place) = KINDS.iter().position(|other| *other == kind) else { return };
        let offered = self.offered.clone();
        offered.lock().unwrap_or_else(PoisonError::into_inner)[place] = Some(hash);
        let (shards, partition, give_up) = (self.shards.clone(), self.partition, self.give_up.clone());
        let (using, stop) = (self.using.clone(), self.stop.clone());
        self.drain.spawn_job("take a body into use", async move {
            let mut failures = 0;
            // Others take their turn while this one waits for room on the disk: the body that is in use stays in use.
            let (_turn, checked) = loop {
                let turn = using.lock().await;
                if offered.lock().unwrap_or_else(PoisonError::into_inner)[place] != Some(hash) {
                    return Ok(());
                }
                let checked = shards.bodies.check((kind, hash), &regions, &stop).await;
                let Some(error) = checked.as_ref().err().filter(|error| error.is_of_disk()) else {
                    break (turn, checked);
                };
                warn!(%error, ?kind, body = %hash, partition = partition.0, "an offered body cannot be kept on disk yet");
                shards.metrics.bodies_waiting.increment(1);
                drop(turn);
                tokio::select! {
                    () = tokio::time::sleep(DISK_BACKOFF.delay(failures)) => failures += 1,
                    () = stop.cancelled() => return Ok(()),
                }
            };
            if let Err(error) = checked {
                if error.is_given_up() {
                    return Ok(()); // the partition's next owner looks for it again
                }
                let error = format!("{:#}", anyhow::Error::from(error));
                warn!(error, ?kind, body = %hash, partition = partition.0, "an offered body cannot be used");
                shards.metrics.bodies_refused.increment(1);
                return Ok(());
            }
            let entry = record_entry(partition, Record::InUse { kind, hash });
            match append_durably(&*shards.log, "take a body into use", &give_up, &[entry]).await {
                Ok(_) => shards.metrics.bodies_used.increment(1),
                Err(error) => warn!(%error, ?kind, partition = partition.0, "a body was not taken into use"),
            }
            Ok(())
        });
    }

    /// Makes the body durable once it is encoded, then announces it. If one is still under way, this one is left out.
    fn keep_snapshot(&self, taken: TakenSnapshot) {
        let Ok(turn) = self.keeping.clone().try_lock_owned() else { return };
        let (shards, partition, own, durable) = (self.shards.clone(), self.partition, self.own, self.durable.clone());
        self.drain.spawn_job("keep a snapshot", async move {
            let mut kept = turn;
            let TakenSnapshot { next, bodies, kind, encoded } = taken;
            let (at, kept_now) = (Time(shards.clock.now_ms()), Time(shards.clock.kept_ms()));
            let place = SnapshotPlace { partition, generation: own, next, at, kept_now };
            match keep_encoded(&shards, &mut kept, place, kind, encoded).await {
                Ok(hash) => {
                    if let SnapshotKind::Base { number } = kind {
                        durable.set(number, hash);
                    }
                    shards.metrics.snapshots.increment(1);
                    shards.bodies.handle_snapshot_kept(partition, bodies).await;
                }
                Err(error) => {
                    warn!(error = format!("{error:#}"), partition = partition.0, "a snapshot could not be kept");
                    shards.metrics.snapshots_failed.increment(1);
                }
            }
            Ok(())
        });
    }
}

pub fn record_entry(partition: PartitionId, record: Record) -> Append {
    records_entry(partition, vec![record])
}

pub fn records_entry(partition: PartitionId, records: Vec<Record>) -> Append {
    let value = envelope::encode(&RecordBatch { records }).into();
    Append { topic: Topic::Records, partition, key: Bytes::new(), value }
}

/// Of whom a snapshot is, up to where, and when it was taken.
pub(crate) struct SnapshotPlace {
    pub partition: PartitionId,
    pub generation: Generation,
    pub next: Offset,
    pub at: Time,
    /// The time that what is kept is compared with: a clock that was set forward ends nothing at once.
    pub kept_now: Time,
}

async fn keep_encoded(
    shards: &Shards,
    kept: &mut KeptSnapshots,
    place: SnapshotPlace,
    kind: SnapshotKind,
    encoded: oneshot::Receiver<Result<Vec<u8>, SnapshotError>>,
) -> anyhow::Result<BlobHash> {
    let body = encoded.await.context("its encoder died")?.context("encode a snapshot")?;
    let base = match kind {
        SnapshotKind::Base { .. } => None,
        SnapshotKind::Changes { base } => Some(base),
    };
    keep(shards, kept, place, (body, base)).await
}

/// Puts a state, or what has changed since a base, where the next owner finds it, and removes the bodies that nothing
/// names any more. Its hash.
pub(crate) async fn keep(
    shards: &Shards,
    kept: &mut KeptSnapshots,
    place: SnapshotPlace,
    (body, base): (Vec<u8>, Option<BlobHash>),
) -> anyhow::Result<BlobHash> {
    let size = body.len() as u64;
    let hash = shards.blobs.put(body.into()).await.context("put a snapshot into the blob store")?;
    let SnapshotPlace { partition, generation, next, at, kept_now } = place;
    let format = if base.is_some() { CHANGES_FORMAT } else { SNAPSHOT_FORMAT };
    let fold_version = FOLD_VERSION;
    let notice = SnapshotNotice { partition, next, generation, fold_version, format, hash, size, at, base };
    let before = kept.clone();
    let (appends, unnamed) = kept.announce(notice, (HOURLY_KEPT, kept_now));
    if let Err(error) = shards.log.append(&appends).await.into_offsets() {
        *kept = before; // what of it stands there is found at the next restore
        return Err(error).context("announce a snapshot");
    }
    for hash in unnamed {
        shards.blobs.remove(hash).await.context("remove an old snapshot")?;
    }
    Ok(hash)
}

/// What the stores refuse for a while, and what somebody has to mend.
const FACTS_BACKOFF: Backoff = Backoff { first: Duration::from_millis(200), max: Duration::from_secs(30) };
/// A full disk is not freed within seconds.
const DISK_BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(30) };
const OUTPUTS_MAX: usize = 64;
/// One that is being written, and those that gather behind it.
const UNDER_WAY_MAX: usize = 4;
const PIPELINE: PipelineConfig = PipelineConfig {
    what: "tell updates",
    under_way_max: UNDER_WAY_MAX,
    backoff: Backoff { first: Duration::from_millis(50), max: Duration::from_secs(5) },
};
const HEARTBEAT_MS: i64 = 5_000;
/// Hourly snapshots are of use as long as the records after them are kept.
const HOURLY_KEPT: Duration = Duration::from_secs(72 * 3600);
