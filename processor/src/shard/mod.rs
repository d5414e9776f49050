//! Shards: the partitions of the records topic that this process owns, each folded on a thread of its own.
//!
//! ```text
//! log ── read ──▶ [Input; bounded] ──▶ fold thread ──▶ [Output; bounded] ──▶ publisher ──▶ log, blob store
//! ```
//! Where the log is slow, the publisher waits, then the fold, then the reader: nothing grows.

mod cache;
mod encode;
pub(crate) mod facts;
pub(crate) mod fold;
mod fold_bodies;
mod local_bodies;
pub(crate) mod notice;
mod outside;
pub(crate) mod restore;
mod skew;
mod snapshotting;
pub(crate) mod tell;
mod tick;
mod told;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use backends::blob_store::BlobStore;
use backends::log::{Holding, Log, LogError, ReadLimit, Topic, append_durably, read_again, share_noting};
use daemon::admin::{Health, Readiness};
use daemon::{Backoff, Clock, Drain, retry};
use protocol::record::{BlobHash, BodyKind, OwnerId};
use protocol::update::Generation;
use protocol::{Offset, PartitionId, Record, Time};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::config::ProcessorConfig;
use crate::metrics::ProcessorMetrics;
use crate::track::Partition;
#[cfg(test)]
pub(crate) use encode::updates_partition;
pub(crate) use facts::FactSources;
use fold::{Folder, Input};
use fold_bodies::FoldBodies;
pub use local_bodies::BodyError;
pub(crate) use local_bodies::LocalBodies;
pub(crate) use notice::KeptSnapshots;
pub use notice::named_snapshots;
pub(crate) use outside::OutsidePlanner;
pub use outside::RouteServiceConfig;
use restore::Restored;
use skew::Skew;
use snapshotting::{DurableBase, Snapshotter};
use tell::{Teller, record_entry, records_entry};
use tick::Ticker;

/// What all shards share.
pub(crate) struct Shards {
    pub config: ProcessorConfig,
    pub log: Arc<dyn Log>,
    pub blobs: Arc<dyn BlobStore>,
    pub facts: FactSources,
    pub bodies: Arc<LocalBodies>,
    /// Asks an outside router, if one is configured.
    pub planner: OutsidePlanner,
    /// The map this process offers, and its size.
    map: Mutex<Option<(BlobHash, u64)>>,
    pub clock: Clock,
    pub metrics: ProcessorMetrics,
    pub readiness: Readiness,
    pub ticker: Arc<Ticker>,
    ownership: Mutex<Ownership>,
}

/// Which partitions are ours, and which of them are live.
#[derive(Default)]
struct Ownership {
    /// None: the group has not said yet.
    owned: Option<BTreeSet<PartitionId>>,
    live: BTreeSet<PartitionId>,
    /// Of these, what registry and ledger know is not in the records yet: trackers may miss it.
    facts_due: BTreeSet<PartitionId>,
    /// Ready is a latch: a partition that moves here later makes us degraded, not unready.
    was_whole: bool,
}

impl Shards {
    pub(crate) fn new(
        config: ProcessorConfig,
        (log, blobs, facts): (Arc<dyn Log>, Arc<dyn BlobStore>, FactSources),
        (bodies, planner): (Arc<LocalBodies>, OutsidePlanner),
        map: Option<(BlobHash, u64)>,
        clock: Clock,
        metrics: ProcessorMetrics,
        readiness: Readiness,
    ) -> Arc<Shards> {
        readiness.set(PART, Health::Starting);
        let (ticker, ownership, map) = (Arc::default(), Mutex::default(), Mutex::new(map));
        Arc::new(Shards {
            config,
            log,
            blobs,
            facts,
            bodies,
            planner,
            map,
            clock,
            metrics,
            readiness,
            ticker,
            ownership,
        })
    }

    /// The map that our partitions are offered, and its size.
    pub(crate) fn map(&self) -> Option<(BlobHash, u64)> {
        *self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Offers another map to our partitions, those that come here later too. Each takes it into use once it is opened.
    /// If the offer cannot be appended for all of them, the map is not ours yet, and may be offered again.
    pub(crate) async fn offer_map(&self, hash: BlobHash, size: u64) -> Result<(), LogError> {
        let mut offered_to = BTreeSet::new();
        while let Some(missing) = self.without_offer(&offered_to, (hash, size)) {
            let offered = Record::Offered { kind: BodyKind::Map, hash, size };
            let entries: Vec<_> = missing.iter().map(|partition| record_entry(*partition, offered.clone())).collect();
            append_durably(&*self.log, "offer a map", self.bodies.stop(), &entries).await?;
            offered_to.extend(missing);
        }
        Ok(())
    }

    /// The live partitions that a map was not offered to yet. If there are none, the map is ours from here on: a
    /// partition that becomes live later finds it here.
    fn without_offer(&self, offered_to: &BTreeSet<PartitionId>, map: (BlobHash, u64)) -> Option<BTreeSet<PartitionId>> {
        let ownership = self.ownership.lock().unwrap_or_else(PoisonError::into_inner);
        let missing: BTreeSet<PartitionId> = ownership.live.difference(offered_to).copied().collect();
        if missing.is_empty() {
            *self.map.lock().unwrap_or_else(PoisonError::into_inner) = Some(map);
        }
        (!missing.is_empty()).then_some(missing)
    }

    /// Shares the partitions with the other processors, and owns its share, until the drain stops.
    pub(crate) fn start(self: &Arc<Self>, drain: &Drain) {
        let (ticker, log, clock, stop) = (self.ticker.clone(), self.log.clone(), self.clock, drain.token().clone());
        let shards = self.clone();
        drain.spawn("processor ticks", async move {
            ticker.run(log, clock, move || shards.say_health(), stop).await;
            Ok(())
        });
        let (shards, stop, owners) = (self.clone(), drain.token().clone(), drain.clone());
        drain.spawn("processor shards", async move {
            let note = |owned: Result<&BTreeSet<PartitionId>, &LogError>| {
                shards.set_owned(owned.ok().cloned());
            };
            let own = |holding| shards.clone().own(holding, owners.part());
            share_noting(&*shards.log, GROUP, Topic::Records, &stop, note, own).await
        });
    }

    /// Owns one partition until it is stopped, or until it fails.
    async fn own(self: Arc<Self>, holding: Holding, drain: Drain) -> anyhow::Result<()> {
        let shard = Shard { shards: self, partition: holding.partition, stop: holding.stop, drain };
        while let Ended::Superseded | Ended::Behind = shard.run_as_owner().await? {
            // The group will say whose it is; if it is still ours then, the other one was wrong.
            tokio::select! {
                () = shard.shards.clock.sleep(SUPERSEDED_WAIT) => {}
                () = shard.stop.cancelled() => break,
            }
        }
        Ok(())
    }

    /// None: the group cannot be reached, so nobody can say.
    fn set_owned(&self, owned: Option<BTreeSet<PartitionId>>) {
        self.metrics.partitions.set(owned.as_ref().map_or(0, BTreeSet::len) as f64);
        self.ownership.lock().unwrap_or_else(PoisonError::into_inner).owned = owned;
        self.say_health();
    }

    pub(crate) fn set_live(&self, partition: PartitionId, is_live: bool) {
        let mut ownership = self.ownership.lock().unwrap_or_else(PoisonError::into_inner);
        if is_live {
            ownership.live.insert(partition);
        } else {
            ownership.live.remove(&partition);
            ownership.facts_due.remove(&partition);
        }
        drop(ownership);
        self.say_health();
    }

    fn set_facts_due(&self, partition: PartitionId, are_due: bool) {
        let mut ownership = self.ownership.lock().unwrap_or_else(PoisonError::into_inner);
        if are_due {
            ownership.facts_due.insert(partition);
        } else {
            ownership.facts_due.remove(&partition);
        }
        drop(ownership);
        self.say_health();
    }

    fn say_health(&self) {
        let (is_whole, was_whole, facts_due) = {
            let mut ownership = self.ownership.lock().unwrap_or_else(PoisonError::into_inner);
            let is_whole = ownership.owned.as_ref().is_some_and(|owned| owned.is_subset(&ownership.live));
            let was_whole = ownership.was_whole;
            ownership.was_whole |= is_whole;
            (is_whole, was_whole, ownership.facts_due.len())
        };
        let health = match (is_whole, self.ticker.wrong_by_ms()) {
            (false, _) if was_whole => Health::Degraded("taking partitions over".to_string()),
            (false, _) => Health::Starting,
            (true, None) if facts_due > 0 => Health::Degraded(format!(
                "deliveries and leads of {facts_due} partitions may be missing until registry and ledger answer"
            )),
            (true, None) if self.ticker.cannot_append() => {
                Health::Degraded("time stands still: nothing can be appended to the log".to_string())
            }
            (true, None) => Health::Ready,
            (true, Some(ms)) => Health::Degraded(format!("our clock is {ms} ms ahead of the edges': time stands")),
        };
        self.readiness.set(PART, health);
    }
}

/// How the ownership of a partition ended.
enum Ended {
    Stopped,
    Superseded,
    /// Records that were still to be folded are gone from the log.
    Behind,
}

struct Shard {
    shards: Arc<Shards>,
    partition: PartitionId,
    stop: CancellationToken,
    /// What fails here fails the process.
    drain: Drain,
}

impl Shard {
    /// From our claim to the stop, or to another's claim.
    async fn run_as_owner(&self) -> anyhow::Result<Ended> {
        let owner = OwnerId(rand::random());
        let outcome = self.run_as(owner).await;
        self.shards.ticker.end(self.partition, owner);
        self.shards.set_live(self.partition, false);
        self.shards.bodies.handle_partition_lost(self.partition);
        match outcome {
            Err(error) if self.stop.is_cancelled() => {
                warn!(
                    error = format!("{error:#}"),
                    partition = self.partition.0,
                    "stopped before all updates were published"
                );
                Ok(Ended::Stopped)
            }
            outcome => outcome.with_context(|| format!("own partition {}", self.partition)),
        }
    }

    async fn run_as(&self, owner: OwnerId) -> anyhow::Result<Ended> {
        let (shards, partition) = (&self.shards, self.partition);
        let (own, offset_ms) = self.claim(owner).await?;
        let restored = restore::restore(shards, partition, own, &self.stop).await?;
        let Restored { partition: restored, mut kept, is_beginning } = restored;
        if is_beginning {
            // An owner that takes over before our first snapshot must begin where we did, to emit the same numbers.
            self.keep_beginning(own, &restored, &mut kept).await;
        }
        shards.ticker.begin(partition, owner, offset_ms);
        let (inputs_tx, inputs) = mpsc::channel(shards.config.reads_waiting_max);
        let (outputs_tx, outputs) = mpsc::channel(shards.config.reads_waiting_max);
        let (from, durable) = (restored.next(), DurableBase::default());
        let folder = Folder {
            id: partition,
            partition: restored,
            own,
            owner,
            local_bodies: shards.bodies.clone(),
            bodies: FoldBodies::new(shards.bodies.clone(), self.stop.clone()),
            metrics: shards.metrics.clone(),
            updates_partitions: shards.log.partition_count(Topic::Updates),
            reported: [const { None }; fold::KINDS.len()],
            wants_routes: shards.planner.is_asked(),
            is_live: false,
            skew: Skew::default(),
            counted: (0, 0),
            snapshots: Snapshotter::new(partition, durable.clone(), shards.metrics.snapshot_pause_seconds.clone()),
        };
        let fold = std::thread::Builder::new().name(format!("fold {partition}"));
        let fold = fold.spawn(move || folder.run(inputs, &outputs_tx)).context("begin a fold")?;
        let beside = self.drain.part();
        let (give_up, superseded) = (CancellationToken::new(), CancellationToken::new());
        let teller = Teller {
            shards: shards.clone(),
            partition,
            own,
            drain: beside.clone(),
            stop: self.stop.clone(),
            give_up: give_up.clone(),
            superseded: superseded.clone(),
            keeping: Arc::new(tokio::sync::Mutex::new(kept)),
            durable,
            inputs: inputs_tx.downgrade(),
            using: Arc::default(),
            offered: Arc::default(),
        };
        let mut publishing = tokio::spawn(teller.run(outputs));
        let reading = self.read(from, inputs_tx);
        let ended = tokio::select! {
            read = reading => read,
            published = &mut publishing => {
                published.context("publish updates")??;
                return if superseded.is_cancelled() { Ok(Ended::Superseded) } else { Err(FoldDied.into()) };
            }
            () = superseded.cancelled() => Ok(Ended::Superseded),
        };
        // The fold ends with what it was given, takes a last snapshot, and the publisher appends it all.
        let grace = tokio::time::timeout(STOP_GRACE, &mut publishing).await;
        give_up.cancel();
        let published = match grace {
            Ok(published) => published,
            Err(_) => publishing.await,
        };
        tokio::task::spawn_blocking(move || fold.join()).await.context("end a fold")?.map_err(|_| FoldDied)?;
        beside.stop(STOP_GRACE).await;
        published.context("publish updates")??;
        ended
    }

    /// From here on the partition is ours. Answers what it was told of our clock, too: with that it knows by how much the
    /// clock was set since the owner before, if he was of this machine.
    async fn claim(&self, owner: OwnerId) -> anyhow::Result<(Generation, i64)> {
        let (log, clock) = (&self.shards.log, &self.shards.clock);
        let incarnation = log.incarnation();
        let append = || async {
            let reading = clock.reading();
            let wall = Record::WallOffset { owner, boot: clock.boot(), offset_ms: reading.offset_ms() };
            let claim = Record::Claim { owner, at: Time(reading.now_ms), incarnation };
            let offsets = log.append(&[records_entry(self.partition, vec![wall, claim])]).await.into_offsets()?;
            Ok((offsets, reading.offset_ms()))
        };
        let (offsets, offset_ms) =
            retry("claim a partition", Backoff::default(), &self.stop, LogError::is_transient, append)
                .await
                .context("claim the partition")?;
        let claim = *offsets.first().context("the log answered no offset")?;
        Ok((Generation { incarnation, claim }, offset_ms))
    }

    /// Without it a takeover begins new epochs: worse, not wrong.
    async fn keep_beginning(&self, own: Generation, beginning: &Partition, kept: &mut KeptSnapshots) {
        let (next, partition) = (beginning.next(), self.partition);
        let outcome = match beginning.snapshot() {
            Ok(body) => {
                let clock = self.shards.clock;
                let (at, kept_now) = (Time(clock.now_ms()), Time(clock.kept_ms()));
                let place = tell::SnapshotPlace { partition, generation: own, next, at, kept_now };
                tell::keep(&self.shards, kept, place, (body, None)).await
            }
            Err(error) => Err(error.into()),
        };
        if let Err(error) = outcome {
            warn!(error = format!("{error:#}"), partition = partition.0, "the beginning of a fold could not be kept");
            self.shards.metrics.snapshots_failed.increment(1);
        }
    }

    /// Reads on from an offset and hands the entries to the fold, with snapshots in between, until it is stopped.
    async fn read(&self, from: Offset, inputs: mpsc::Sender<Input>) -> anyhow::Result<Ended> {
        let (shards, partition) = (&self.shards, self.partition);
        let every_ms = shards.config.snapshot_every.as_millis() as i64;
        let mut reader = shards.log.reader(Topic::Records, partition, from).await.context("read records")?;
        let mut snapshot_ms = self.first_snapshot_ms(every_ms);
        loop {
            if shards.clock.monotonic_ms() >= snapshot_ms {
                snapshot_ms = (snapshot_ms + every_ms).max(shards.clock.monotonic_ms());
                if inputs.send(Input::Snapshot).await.is_err() {
                    return std::future::pending().await; // the publisher says why
                }
            }
            let reading = read_again(&mut *reader, "read records", READ_LIMIT, READ_WAIT, &self.stop);
            let entries = tokio::select! {
                () = self.stop.cancelled() => return Ok(Ended::Stopped),
                entries = reading => match entries {
                    Err(LogError::Gone { offset, first }) => {
                        warn!(partition = partition.0, offset, first, "records are gone before they were folded");
                        return Ok(Ended::Behind);
                    }
                    entries => entries.context("read records")?,
                },
            };
            if entries.is_empty() {
                continue;
            }
            let input = Input::Entries { read: Time(shards.clock.now_ms()), entries };
            if inputs.send(input).await.is_err() {
                return std::future::pending().await; // the publisher says why
            }
        }
    }

    /// Each partition has its own place within the interval.
    fn first_snapshot_ms(&self, every_ms: i64) -> i64 {
        let count = i64::from(self.shards.log.partition_count(Topic::Records).max(1));
        self.shards.clock.monotonic_ms() + every_ms / 2 + every_ms * i64::from(self.partition.0) / count / 2
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the fold died")]
struct FoldDied;

const PART: &str = "processor";
const GROUP: &str = "processor";
const READ_LIMIT: ReadLimit = ReadLimit { entries_max: 1_024, bytes_max: 1 << 20 };
const READ_WAIT: Duration = Duration::from_millis(500);
const SUPERSEDED_WAIT: Duration = Duration::from_secs(3);
const STOP_GRACE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
