//! Sinks: consumers of updates and trail, each with offsets of its own. What stands behind one may be away: then it
//! waits, and neither the dot nor another sink does.
//!
//! **Invariant:** an entry is committed only after all that it asks for is done; so every sink takes an entry at least
//! once, and doing it twice changes nothing.

mod ages;
mod by_hand;
mod clerk;
mod cloud_event;
mod events;
mod live;
mod trail;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use async_trait::async_trait;
use backends::log::{
    DecodedUpdates, Holding, Log, LogError, OffsetRange, ReadLimit, StoredEntry, Topic, read_again, read_range, share,
};
use daemon::admin::Health;
use daemon::{Backoff, Clock, Drain, retry};
use protocol::envelope::{self, EnvelopeError, Enveloped};
use protocol::{Offset, PartitionId, Time, UpdateBatch};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

pub use by_hand::{SinkStores, SinksByHand};
pub use clerk::Clerk;
pub use events::Events;
pub use live::Live;
pub use trail::Trail;

use crate::metrics::ProcessorMetrics;

/// One kind of sink: what it reads, and how one partition is worked on.
#[async_trait]
pub trait Sink: Send + Sync + 'static {
    const GROUP: &'static str;
    const TOPIC: Topic;
    type Work: Work;

    fn begin(&self, partition: PartitionId) -> Self::Work;
}

/// One partition at work.
#[async_trait]
pub trait Work: Send + 'static {
    /// How far it had come: the committed offset, unless what this work writes to knows better. None: it begins.
    async fn taken(&mut self, _reader: &Reader, committed: Option<Offset>) -> anyhow::Result<Option<Offset>> {
        Ok(committed)
    }

    /// Where to read from, having come so far.
    async fn first(&mut self, reader: &Reader, taken: Option<Offset>) -> anyhow::Result<Offset>;

    /// Takes entries, in order. Errors are final: what may pass is tried again in here.
    async fn handle(&mut self, reader: &Reader, entries: Vec<StoredEntry>) -> anyhow::Result<()>;
}

/// What a work reads with.
#[derive(Clone)]
pub struct Reader {
    pub log: Arc<dyn Log>,
    pub topic: Topic,
    pub partition: PartitionId,
    pub clock: Clock,
    pub metrics: ProcessorMetrics,
    pub decoded: DecodedUpdates,
    pub stop: CancellationToken,
}

impl Reader {
    pub fn now(&self) -> Time {
        Time(self.clock.now_ms())
    }

    /// For what is kept for so long: time that nobody can set.
    pub fn monotonic(&self) -> Time {
        Time(self.clock.monotonic_ms())
    }

    /// What the entries hold; those that do not decode are counted and passed by.
    pub fn decode<T: Enveloped>(&self, entries: &[StoredEntry]) -> Vec<(Offset, T)> {
        let decode = |entry: &StoredEntry| self.whole(entry, envelope::decode(&entry.value));
        entries.iter().filter_map(decode).collect()
    }

    /// The log has let entries go that this sink had not taken: nobody has them any more, and somebody should know.
    pub fn handle_gap(&self, sink: &'static str, from: Offset, first: Offset) {
        let lost = first.0.saturating_sub(from.0);
        error!(sink, partition = self.partition.0, from = from.0, lost, "entries were gone before they were taken");
        self.metrics.sink_entries_lost.increment(sink, lost);
        let reason =
            format!("{lost} entries of partition {} were gone from the log before they were taken", self.partition);
        self.metrics.readiness.set(sink, Health::Degraded(reason));
    }

    /// The log ends before what this sink had taken: it is another log, or lost its end. All that it holds is news.
    fn handle_end_lost(&self, sink: &'static str, taken: Offset, range: OffsetRange) {
        let (partition, next) = (self.partition.0, range.next.0);
        error!(
            sink,
            partition,
            taken = taken.0,
            next,
            "the log ends before what was taken of it: all of it is taken again"
        );
        let reason = format!("the log of partition {} ends before what was taken of it", self.partition);
        self.metrics.readiness.set(sink, Health::Degraded(reason));
    }

    /// As `decode`, once for all who read updates in this process.
    pub fn updates(&self, entries: &[StoredEntry]) -> Vec<(Offset, Arc<UpdateBatch>)> {
        let decode = |entry: &StoredEntry| self.whole(entry, self.decoded.updates(self.partition, entry));
        entries.iter().filter_map(decode).collect()
    }

    fn whole<T>(&self, entry: &StoredEntry, decoded: Result<T, EnvelopeError>) -> Option<(Offset, T)> {
        decoded
            .map(|batch| (entry.offset, batch))
            .map_err(|error| {
                error!(%error, topic = self.topic.name(), offset = entry.offset.0, "an entry cannot be read");
                self.metrics.sink_entries_damaged.increment(1);
            })
            .ok()
    }

    /// The first entry within what every live view's keyframes fall into, before `until`.
    pub async fn whole_before(&self, until: Offset) -> anyhow::Result<Offset> {
        let range = self.log.range(self.topic, self.partition).await.context("look at the topic")?;
        let Some(last) = until.0.min(range.next.0).checked_sub(1).map(Offset).filter(|last| *last >= range.first)
        else {
            return Ok(range.first);
        };
        let one = OffsetRange { first: last, next: Offset(last.0 + 1) };
        let read = read_range(&*self.log, self.topic, self.partition, one).await.context("read the topic")?;
        let Some(entry) = read.first() else { return Ok(range.first) };
        let at = entry.appended - READ_BACK;
        let offset = self.log.offset_at(self.topic, self.partition, at).await.context("look at the topic")?;
        Ok(offset.max(range.first).min(last))
    }
}

/// What all sinks share.
#[derive(Clone)]
pub struct SinkParts {
    pub log: Arc<dyn Log>,
    pub clock: Clock,
    pub metrics: ProcessorMetrics,
    pub decoded: DecodedUpdates,
}

/// Runs a sink until the drain stops.
pub fn start<S: Sink>(sink: S, parts: SinkParts, drain: &Drain, name: &'static str) {
    let stop = drain.token().clone();
    drain.spawn(name, async move {
        let work = |holding: Holding| {
            let SinkParts { log, clock, metrics, decoded } = parts.clone();
            let (topic, partition, stop) = (S::TOPIC, holding.partition, holding.stop.clone());
            let reader = Reader { log, topic, partition, clock, metrics, decoded, stop };
            consume(sink.begin(holding.partition), reader, holding, S::GROUP)
        };
        share(&*parts.log, S::GROUP, S::TOPIC, &stop, work).await
    });
}

async fn consume<W: Work>(mut work: W, reader: Reader, holding: Holding, group: &'static str) -> anyhow::Result<()> {
    match follow(&mut work, &reader, &holding, group).await {
        Err(error) if reader.stop.is_cancelled() => {
            warn!(error = format!("{error:#}"), group, "stopped before all was taken");
            Ok(())
        }
        outcome => outcome.with_context(|| format!("{group}, partition {}", reader.partition)),
    }
}

async fn follow<W: Work>(work: &mut W, reader: &Reader, holding: &Holding, group: &'static str) -> anyhow::Result<()> {
    let (log, topic, partition) = (&reader.log, reader.topic, reader.partition);
    let committed = log.committed(group, topic, partition).await.context("look up the committed offset")?;
    let range = log.range(topic, partition).await.context("look at the topic")?;
    let taken = match work.taken(reader, committed).await? {
        Some(taken) if taken > range.next => {
            reader.handle_end_lost(group, taken, range);
            Some(range.first)
        }
        Some(taken) if taken < range.first => {
            reader.handle_gap(group, taken, range.first);
            Some(range.first)
        }
        taken => taken,
    };
    let first = work.first(reader, taken).await?;
    let mut entries_of = log.reader(topic, partition, first).await.context("read")?;
    let mut done = committed.filter(|committed| *committed <= range.next);
    let mut committed_at = Instant::now();
    loop {
        let reading = read_again(&mut *entries_of, "read for a sink", ReadLimit::default(), READ_WAIT, &reader.stop);
        let entries = tokio::select! {
            () = reader.stop.cancelled() => break,
            entries = reading => entries,
        };
        let entries = match entries {
            Err(LogError::Gone { first, .. }) => {
                reader.handle_gap(group, entries_of.next(), Offset(first));
                entries_of.seek(Offset(first));
                continue;
            }
            entries => entries.context("read")?,
        };
        if !entries.is_empty() {
            work.handle(reader, entries).await?;
        }
        let next = entries_of.next();
        let is_due = committed_at.elapsed() >= COMMIT_EVERY;
        if is_due && done.is_none_or(|done| done < next) {
            commit(reader, holding, next).await?;
            (done, committed_at) = (Some(next), Instant::now());
        }
    }
    if done.is_none_or(|done| done < entries_of.next()) {
        commit(reader, holding, entries_of.next()).await?;
    }
    Ok(())
}

async fn commit(reader: &Reader, holding: &Holding, next: Offset) -> anyhow::Result<()> {
    let commit = || holding.commit(next);
    match retry("commit", Backoff::default(), &reader.stop, LogError::is_transient, commit).await {
        // It is another's, who takes again what was not committed.
        Err(LogError::NotHeld { .. }) => Ok(()),
        committed => committed.context("commit an offset"),
    }
}

/// Keyframes come at least every 60 s.
const READ_BACK: Duration = Duration::from_secs(75);
const READ_WAIT: Duration = Duration::from_millis(500);
/// By the machine's own time: it costs the disk a sync for each sink and partition, however fast the clock is set. What
/// came since is taken again after a crash.
const COMMIT_EVERY: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
