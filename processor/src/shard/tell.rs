//! Writes what the fold brought forth to the log, in order and at once: linger 0. Because it goes in order, a snapshot's
//! turn comes when all that the records below it brought forth is acknowledged; then it is announced.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use backends::log::{Append, LogError, ReadLimit, Topic};
use bytes::Bytes;
use daemon::{Backoff, Drain, retry};
use protocol::record::{BlobHash, BodyKind};
use protocol::update::Generation;
use protocol::{Offset, PartitionId, Record, RecordBatch, Time, Update, UpdateBatch, envelope};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Shards;
use super::fold::{Folded, KINDS, Output};
use super::notice::SnapshotNotice;
use super::restore::notices;
use crate::track::{FOLD_VERSION, RegionInUse, SNAPSHOT_FORMAT};

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
    /// One snapshot at a time is being kept.
    pub keeping: Arc<tokio::sync::Mutex<()>>,
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
        let mut beat_ms = self.shards.clock.now_ms();
        loop {
            let beat = self.shards.clock.sleep_until_ms(beat_ms);
            let received = tokio::select! {
                count = outputs.recv_many(&mut waiting, OUTPUTS_MAX) => count,
                () = beat => {
                    beat_ms = self.shards.clock.now_ms() + HEARTBEAT_MS;
                    self.beat(folded).await?;
                    continue;
                }
            };
            if received == 0 {
                return Ok(());
            }
            self.handle_outputs(&mut waiting, &mut folded).await?;
        }
    }

    async fn handle_outputs(
        &self,
        waiting: &mut Vec<Output>,
        folded: &mut Option<(Offset, Time)>,
    ) -> anyhow::Result<()> {
        let mut appends = Vec::new();
        for output in waiting.drain(..) {
            match output {
                Output::Folded(Folded { next, appends: more, at, ahead_ms }) => {
                    appends.extend(more);
                    *folded = Some((next, at));
                    self.shards.ticker.set_ahead(self.partition, ahead_ms);
                }
                Output::Snapshot { next, body, bodies } => {
                    self.append(std::mem::take(&mut appends)).await?;
                    self.keep_snapshot(next, body, bodies);
                }
                Output::Live { maps } => self.handle_live(&maps).await?,
                Output::Offered { kind, hash, regions } => self.take_into_use(kind, hash, regions),
                Output::RoutesWanted(wanted) => self.shards.planner.want(self.partition, wanted),
                Output::Superseded => {
                    info!(partition = self.partition.0, "another owner has claimed the partition");
                    self.superseded.cancel();
                }
            }
        }
        self.append(appends).await
    }

    async fn append(&self, appends: Vec<Append>) -> anyhow::Result<()> {
        if appends.is_empty() {
            return Ok(());
        }
        let append = || self.shards.log.append(appends.clone());
        retry("tell updates", Backoff::default(), &self.give_up, LogError::is_transient, append)
            .await
            .context("append updates")?;
        Ok(())
    }

    /// Tells each updates partition how far this source has come.
    async fn beat(&self, folded: Option<(Offset, Time)>) -> anyhow::Result<()> {
        let Some((offset, at)) = folded else { return Ok(()) };
        let heartbeat = UpdateBatch { updates: vec![Update::Heartbeat { source: self.partition, offset, at }] };
        let value = Bytes::from(envelope::encode(&heartbeat));
        let count = self.shards.log.partition_count(Topic::Updates);
        let beat =
            |i| Append { topic: Topic::Updates, partition: PartitionId(i), key: Bytes::new(), value: value.clone() };
        self.append((0..count).map(beat).collect()).await
    }

    async fn handle_live(&self, maps: &[BlobHash]) -> anyhow::Result<()> {
        info!(partition = self.partition.0, "partition is live");
        self.shards.ticker.set_live(self.partition);
        self.shards.set_live(self.partition, true);
        match self.shards.map() {
            Some((hash, size)) if !maps.contains(&hash) => {
                self.append_record(Record::Offered { kind: BodyKind::Map, hash, size }).await
            }
            Some(_) | None => Ok(()),
        }
    }

    async fn append_record(&self, record: Record) -> anyhow::Result<()> {
        self.append(vec![record_entry(self.partition, record)]).await
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
            let append = || shards.log.append(vec![entry.clone()]);
            let appended = retry("take a body into use", Backoff::default(), &give_up, LogError::is_transient, append);
            match appended.await {
                Ok(_) => shards.metrics.bodies_used.increment(1),
                Err(error) => warn!(%error, ?kind, partition = partition.0, "a body was not taken into use"),
            }
            Ok(())
        });
    }

    /// Makes the body durable, then announces it. If one is still under way, this one is left out.
    fn keep_snapshot(&self, next: Offset, body: Vec<u8>, bodies: Vec<BlobHash>) {
        let Ok(turn) = self.keeping.clone().try_lock_owned() else { return };
        let (shards, partition, own) = (self.shards.clone(), self.partition, self.own);
        self.drain.spawn_job("keep a snapshot", async move {
            let _turn = turn;
            match keep(&shards, partition, own, next, body).await {
                Ok(()) => {
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
    let value = envelope::encode(&RecordBatch { records: vec![record] }).into();
    Append { topic: Topic::Records, partition, key: Bytes::new(), value }
}

/// Puts a state where the next owner finds it.
pub async fn keep(
    shards: &Shards,
    partition: PartitionId,
    generation: Generation,
    next: Offset,
    body: Vec<u8>,
) -> anyhow::Result<()> {
    let size = body.len() as u64;
    let hash = shards.blobs.put(body.into()).await.context("put a snapshot into the blob store")?;
    let at = Time(shards.clock.now_ms());
    let format = SNAPSHOT_FORMAT;
    let notice = SnapshotNotice { partition, next, generation, fold_version: FOLD_VERSION, format, hash, size, at };
    let value = envelope::encode(&notice).into();
    let entry = Append { topic: Topic::Snapshots, partition, key: Bytes::new(), value };
    shards.log.append(vec![entry]).await.context("announce a snapshot")?;
    clear(shards, partition, hash).await?;
    clear_expired(shards, partition, at).await
}

/// Of the snapshots before, the newest few stay, and the first of every hour for as long as the records are kept.
async fn clear(shards: &Shards, partition: PartitionId, newest: BlobHash) -> anyhow::Result<()> {
    let notices = notices(&*shards.log, partition).await.context("read the snapshots topic")?;
    let hour = |notice: &SnapshotNotice| notice.at.as_secs().div_euclid(3600);
    let Some(candidate) = notices.len().checked_sub(KEPT_NEWEST + 1) else { return Ok(()) };
    let (old, before) = (notices[candidate], candidate.checked_sub(1).map(|i| notices[i]));
    let is_first_of_hour = before.is_none_or(|before| hour(&before) != hour(&old));
    if !is_first_of_hour && old.hash != newest {
        shards.blobs.remove(old.hash).await.context("remove an old snapshot")?;
    }
    Ok(())
}

/// Hourly snapshots go shortly before the notices that name them do.
async fn clear_expired(shards: &Shards, partition: PartitionId, now: Time) -> anyhow::Result<()> {
    let Some(retention) = Topic::Snapshots.retention() else { return Ok(()) };
    let range = shards.log.range(Topic::Snapshots, partition).await.context("look at the snapshots topic")?;
    let (mut from, mut hour_before) = (range.first, None);
    while from < range.next {
        let limit = ReadLimit { entries_max: EXPIRING_PER_READ, ..ReadLimit::default() };
        let oldest = shards.log.read(Topic::Snapshots, partition, from, limit, Duration::ZERO).await;
        let oldest = oldest.context("read the oldest snapshots")?;
        let Some(last) = oldest.last() else { break };
        from = Offset(last.offset.0 + 1);
        // The learner's notes lie among them.
        for notice in oldest.iter().filter_map(|entry| envelope::decode::<SnapshotNotice>(&entry.value).ok()) {
            if now.since(notice.at) < retention.saturating_sub(EXPIRING) {
                return Ok(());
            }
            let hour = notice.at.as_secs().div_euclid(3600);
            if hour_before.replace(hour) != Some(hour) {
                shards.blobs.remove(notice.hash).await.context("remove an expired snapshot")?;
            }
        }
    }
    Ok(())
}

const EXPIRING: Duration = Duration::from_secs(3600);
const EXPIRING_PER_READ: usize = 128;
/// A full disk is not freed within seconds.
const DISK_BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(30) };
const OUTPUTS_MAX: usize = 64;
const HEARTBEAT_MS: i64 = 5_000;
const KEPT_NEWEST: usize = 2;
