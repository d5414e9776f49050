//! Feeds the hubs from the updates topic. A gateway is a member of one consumer group and owns the partitions that the
//! group gives it. A new owner reads back until it has seen, for every source, what was written in the last 75 s
//! before that source's newest update: within that time every live view had a keyframe, so then it is whole.
//!
//! No offset is committed: the views are made anew from the log wherever the partition goes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use backends::log::{
    DecodedUpdates, Holding, Log, LogError, LogReader, OffsetRange, ReadLimit, StoredEntry, Topic, read_range,
    share_noting,
};
use daemon::admin::{Health, Readiness};
use daemon::{Backoff, Clock, Drain};
use protocol::{Offset, PartitionId, Time, Update, UpdateBatch, envelope};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::hub::{Handled, Hub};
use crate::metrics::GatewayMetrics;
use crate::shards::{Reign, Shards};

#[derive(Clone)]
pub(crate) struct Feed {
    pub log: Arc<dyn Log>,
    pub decoded: DecodedUpdates,
    pub shards: Arc<Shards>,
    pub metrics: Arc<GatewayMetrics>,
    pub readiness: Readiness,
    pub clock: Clock,
    pub drain: Drain,
    pub group: String,
    pub read_back: Duration,
}

impl Feed {
    /// Takes and gives up partitions as the group says, until the drain stops.
    pub async fn run(self) -> anyhow::Result<()> {
        let feed_one = |holding: Holding| {
            let Holding { partition, stop, .. } = holding;
            let reign = self.shards.take(partition);
            PartitionFeed { feed: self.clone(), partition, reign, stop }.run()
        };
        let note = |share: Result<&BTreeSet<PartitionId>, &LogError>| self.note_share(share);
        share_noting(&*self.log, &self.group, Topic::Updates, self.drain.token(), note, feed_one).await
    }

    fn note_share(&self, share: Result<&BTreeSet<PartitionId>, &LogError>) {
        match share {
            Ok(mine) => {
                info!(partitions = mine.len(), "the group gave out partitions of updates");
                if mine.is_empty() {
                    // More gateways than partitions: this one stands by, and answers from the stores.
                    self.readiness.set(PART, Health::Ready);
                }
            }
            Err(error) => {
                self.readiness.set(PART, Health::Degraded(format!("updates cannot be read: {error}")));
            }
        }
    }
}

/// What can wake the feed of a partition.
enum Input {
    Entries(Result<Vec<StoredEntry>, LogError>),
    Timer,
    Stop,
}

/// **Invariant:** it works on the hub of its own reign only: after a quick loss and return of the partition an old feed
/// may still be awake beside the new one.
struct PartitionFeed {
    feed: Feed,
    partition: PartitionId,
    reign: Reign,
    stop: CancellationToken,
}

impl PartitionFeed {
    async fn run(self) -> anyhow::Result<()> {
        let outcome = self.follow().await;
        if !self.feed.drain.token().is_cancelled() {
            self.feed.shards.give_up(self.partition, self.reign);
        }
        // At a stop the streams are told to come back; whoever takes over must find everybody gone from here.
        outcome
    }

    async fn follow(&self) -> anyhow::Result<()> {
        let mut failures = 0;
        let (next, whole_at) = loop {
            match self.place_to_begin().await {
                Ok(place) => break place,
                Err(error) if !error.is_transient() && !matches!(error, LogError::Gone { .. }) => {
                    return self.ended_by(error);
                }
                Err(error) => self.handle_failure(&error, &mut failures).await,
            }
            if self.stop.is_cancelled() {
                return Ok(());
            }
        };
        let mut reader = self.feed.log.reader(Topic::Updates, self.partition, next).await?;
        loop {
            if reader.next() >= whole_at {
                self.handle_whole();
            }
            match self.input(&mut *reader).await {
                Input::Stop => return Ok(()),
                Input::Timer => {}
                Input::Entries(Ok(entries)) => {
                    if std::mem::take(&mut failures) > 0 {
                        self.say_ready();
                    }
                    self.handle_entries(&entries);
                }
                // What is gone was older than what the log keeps: keyframes fill the views again.
                Input::Entries(Err(LogError::Gone { first, .. })) => reader.seek(Offset(first)),
                Input::Entries(Err(error)) if error.is_transient() => self.handle_failure(&error, &mut failures).await,
                Input::Entries(Err(error)) => return self.ended_by(error),
            }
            self.feed.shards.with_reign(self.partition, self.reign, |hub, now| hub.handle_timeout(now));
        }
    }

    async fn input(&self, reader: &mut dyn LogReader) -> Input {
        let read = reader.read(ReadLimit::default(), READ_WAIT);
        let due_in = |hub: &mut Hub, now: Time| hub.poll_timeout().map(|at| at.since(now));
        let wake = self.feed.shards.with_reign(self.partition, self.reign, due_in).flatten();
        let timer = async {
            match wake {
                Some(wait) => self.feed.clock.sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.stop.cancelled() => Input::Stop,
            entries = read => Input::Entries(entries),
            () = timer => Input::Timer,
        }
    }

    fn handle_entries(&self, entries: &[StoredEntry]) {
        let metrics = &self.feed.metrics;
        for entry in entries {
            let batch = match self.feed.decoded.updates(self.partition, entry) {
                Ok(batch) => batch,
                Err(error) => {
                    metrics.entries_bad.increment(1);
                    warn!(%error, partition = self.partition.0, offset = entry.offset.0, "an entry of updates is bad");
                    continue;
                }
            };
            let mut counts = [(Handled::Taken, 0), (Handled::Dropped, 0), (Handled::Shed, 0)];
            self.feed.shards.with_reign(self.partition, self.reign, |hub, now| {
                for update in &batch.updates {
                    let handled = hub.handle_update(update, now);
                    if let Some((_, count)) = counts.iter_mut().find(|(outcome, _)| *outcome == handled) {
                        *count += 1;
                    }
                }
                if hub.is_whole()
                    && let Some(at) = newest_of(&batch)
                {
                    metrics.update_age_seconds.record(now.since(at).as_secs_f64());
                }
            });
            for (outcome, count) in counts {
                metrics.count_updates(outcome, count);
            }
        }
    }

    fn handle_whole(&self) {
        let was_whole = self.feed.shards.with_reign(self.partition, self.reign, |hub, _| {
            let was_whole = hub.is_whole();
            hub.handle_whole();
            was_whole
        });
        if was_whole == Some(false) {
            self.say_ready();
        }
    }

    /// Once all that is owned here is whole.
    fn say_ready(&self) {
        let shards = &self.feed.shards;
        let is_whole = |partition| shards.with(partition, |hub, _| hub.is_whole()).unwrap_or(true);
        if shards.partitions().all(is_whole) {
            self.feed.readiness.set(PART, Health::Ready);
        }
    }

    async fn handle_failure(&self, error: &LogError, failures: &mut u32) {
        warn!(%error, partition = self.partition.0, "updates cannot be read, trying again");
        self.feed.readiness.set(PART, Health::Degraded(format!("updates cannot be read: {error}")));
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(Backoff::default().delay(*failures)) => {}
        }
        *failures = failures.saturating_add(1);
    }

    fn ended_by(&self, error: LogError) -> anyhow::Result<()> {
        if self.stop.is_cancelled() { Ok(()) } else { Err(error.into()) }
    }

    /// Where to begin reading, and up to where until the hub is whole.
    async fn place_to_begin(&self) -> Result<(Offset, Offset), LogError> {
        let log = &self.feed.log;
        let range = log.range(Topic::Updates, self.partition).await?;
        if range.first >= range.next {
            return Ok((range.next, range.next));
        }
        let newest_one = OffsetRange { first: Offset(range.next.0 - 1), next: range.next };
        let newest = read_range(&**log, Topic::Updates, self.partition, newest_one).await?;
        let Some(newest) = newest.first().map(|entry| entry.appended) else { return Ok((range.first, range.next)) };
        let source_count = log.partition_count(Topic::Records) as usize;
        let mut back = self.feed.read_back + SLACK;
        loop {
            let from_time = newest - back;
            let from = log.offset_at(Topic::Updates, self.partition, from_time).await?.max(range.first);
            if from == range.first || back >= READ_BACK_MAX {
                return Ok((from, range.next));
            }
            let newest_per_source = self.newest_per_source(OffsetRange { first: from, next: range.next }).await?;
            let oldest = newest_per_source.values().min().copied().unwrap_or(newest);
            let wanted = newest.since(oldest) + self.feed.read_back + SLACK;
            if newest_per_source.len() >= source_count && wanted <= back {
                return Ok((from, range.next));
            }
            // A source that has not been seen may have stopped long ago: look four times as far.
            back = if newest_per_source.len() < source_count { back * 4 } else { wanted }.min(READ_BACK_MAX);
        }
    }

    /// When each source partition last wrote here, of what lies in this range.
    async fn newest_per_source(&self, range: OffsetRange) -> Result<BTreeMap<PartitionId, Time>, LogError> {
        let mut newest = BTreeMap::new();
        let mut reader = self.feed.log.reader(Topic::Updates, self.partition, range.first).await?;
        while reader.next() < range.next && !self.stop.is_cancelled() {
            let entries = reader.read(ReadLimit::default(), Duration::ZERO).await?;
            if entries.is_empty() {
                break;
            }
            for entry in &entries {
                let Ok(batch) = envelope::decode::<UpdateBatch>(&entry.value) else { continue };
                for update in &batch.updates {
                    newest.insert(source_of(update), entry.appended);
                }
            }
        }
        Ok(newest)
    }
}

fn source_of(update: &Update) -> PartitionId {
    match update {
        Update::Delivery(update) => update.source.partition,
        Update::Driver(update) => update.source.partition,
        Update::Heartbeat { source, .. } => *source,
    }
}

fn newest_of(batch: &UpdateBatch) -> Option<Time> {
    let at = |update: &Update| match update {
        Update::Delivery(update) => Some(update.at),
        Update::Driver(update) => Some(update.at),
        Update::Heartbeat { .. } => None,
    };
    batch.updates.iter().filter_map(at).max()
}

const PART: &str = "gateway";
const READ_WAIT: Duration = Duration::from_secs(5);
/// The log's clock may lag a little behind what was written.
const SLACK: Duration = Duration::from_secs(5);
/// Updates are not kept for longer.
const READ_BACK_MAX: Duration = Duration::from_secs(24 * 3600);
