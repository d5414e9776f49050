//! Sinks: consumers of updates and trail, each with offsets of its own. What stands behind one may be away: then it
//! waits, and neither the dot nor another sink does.
//!
//! **Invariant:** an entry is committed only after all that it asks for is done; so every sink takes an entry at least
//! once, and doing it twice changes nothing.

mod clerk;
mod cloud_event;
mod events;
mod live;
mod trail;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use async_trait::async_trait;
use backends::log::{Log, LogError, ReadLimit, StoredEntry, Topic};
use daemon::admin::Health;
use daemon::{Backoff, Clock, Drain, retry};
use protocol::envelope::{self, Enveloped};
use protocol::{Offset, PartitionId, Time, UpdateBatch};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

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
    /// Where to go on: the committed offset, unless this work knows better.
    async fn first(&mut self, reader: &Reader, committed: Option<Offset>) -> anyhow::Result<Offset>;

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
    pub stop: CancellationToken,
}

impl Reader {
    pub fn now(&self) -> Time {
        Time(self.clock.now_ms())
    }

    /// What the entries hold; those that do not decode are counted and passed by.
    pub fn decode<T: Enveloped>(&self, entries: &[StoredEntry]) -> Vec<(Offset, T)> {
        let decode = |entry: &StoredEntry| match envelope::decode::<T>(&entry.value) {
            Ok(batch) => Some((entry.offset, batch)),
            Err(error) => {
                error!(%error, topic = self.topic.name(), offset = entry.offset.0, "an entry cannot be read");
                self.metrics.sink_entries_damaged.increment(1);
                None
            }
        };
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

    pub fn updates(&self, entries: &[StoredEntry]) -> Vec<(Offset, UpdateBatch)> {
        self.decode(entries)
    }

    /// The first entry within what every live view's keyframes fall into, before `until`.
    pub async fn whole_before(&self, until: Offset) -> anyhow::Result<Offset> {
        let range = self.log.range(self.topic, self.partition).await.context("look at the topic")?;
        let Some(last) = until.0.min(range.next.0).checked_sub(1).map(Offset).filter(|last| *last >= range.first)
        else {
            return Ok(range.first);
        };
        let one = ReadLimit { entries_max: 1, ..ReadLimit::default() };
        let read =
            self.log.read(self.topic, self.partition, last, one, Duration::ZERO).await.context("read the topic")?;
        let Some(entry) = read.first() else { return Ok(range.first) };
        let at = entry.appended - READ_BACK;
        let offset = self.log.offset_at(self.topic, self.partition, at).await.context("look at the topic")?;
        Ok(offset.max(range.first).min(last))
    }
}

/// Runs a sink until the drain stops.
pub fn start<S: Sink>(
    sink: S,
    log: Arc<dyn Log>,
    clock: Clock,
    metrics: ProcessorMetrics,
    drain: &Drain,
    name: &'static str,
) {
    let stop = drain.token().clone();
    drain.spawn(name, share(sink, log, clock, metrics, stop));
}

async fn share<S: Sink>(
    sink: S,
    log: Arc<dyn Log>,
    clock: Clock,
    metrics: ProcessorMetrics,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut membership = log.join(S::GROUP, S::TOPIC).await.with_context(|| format!("join {}", S::GROUP))?;
    let mut running: BTreeMap<PartitionId, (CancellationToken, tokio::task::JoinHandle<()>)> = BTreeMap::new();
    let (failed_tx, mut failed) = mpsc::channel(1);
    let outcome = loop {
        let owned = tokio::select! {
            () = stop.cancelled() => break Ok(()),
            Some(error) = failed.recv() => break Err(error),
            changed = membership.changed() => match changed {
                Ok(owned) => owned,
                Err(LogError::Closed) => break Ok(()),
                Err(error) => break Err(error).with_context(|| format!("share {}", S::TOPIC.name())),
            },
        };
        let lost: Vec<PartitionId> = running.keys().filter(|p| !owned.contains(p)).copied().collect();
        for partition in lost {
            if let Some((stop, task)) = running.remove(&partition) {
                stop.cancel();
                let _ = task.await; // it has said itself why it ended
            }
        }
        for partition in owned {
            running.entry(partition).or_insert_with(|| {
                let stop = CancellationToken::new();
                let reader = Reader {
                    log: log.clone(),
                    topic: S::TOPIC,
                    partition,
                    clock,
                    metrics: metrics.clone(),
                    stop: stop.clone(),
                };
                let (work, failed) = (sink.begin(partition), failed_tx.clone());
                let task = tokio::spawn(async move {
                    if let Err(error) = consume(work, reader, S::GROUP).await {
                        let _ = failed.try_send(error); // another has failed before
                    }
                });
                (stop, task)
            });
        }
    };
    running.values().for_each(|(stop, _)| stop.cancel());
    for (_, (_, task)) in running {
        let _ = task.await; // it has said itself why it ended
    }
    membership.leave().await.with_context(|| format!("leave {}", S::GROUP))?;
    outcome
}

async fn consume<W: Work>(mut work: W, reader: Reader, group: &'static str) -> anyhow::Result<()> {
    let outcome = follow(&mut work, &reader, group).await;
    match outcome {
        Err(error) if reader.stop.is_cancelled() => {
            warn!(error = format!("{error:#}"), group, "stopped before all was taken");
            Ok(())
        }
        outcome => outcome.with_context(|| format!("{group}, partition {}", reader.partition)),
    }
}

async fn follow<W: Work>(work: &mut W, reader: &Reader, group: &'static str) -> anyhow::Result<()> {
    let (log, topic, partition) = (&reader.log, reader.topic, reader.partition);
    let committed = log.committed(group, topic, partition).await.context("look up the committed offset")?;
    let mut next = work.first(reader, committed).await?;
    let mut done = committed;
    let mut committed_at = Instant::now();
    loop {
        let read = || log.read(topic, partition, next, ReadLimit::default(), READ_WAIT);
        let reading = retry("read for a sink", Backoff::default(), &reader.stop, LogError::is_transient, read);
        let entries = tokio::select! {
            () = reader.stop.cancelled() => break,
            entries = reading => match entries {
                Err(LogError::Gone { first, .. }) => {
                    reader.handle_gap(group, next, Offset(first));
                    next = Offset(first);
                    continue;
                }
                entries => entries.context("read")?,
            },
        };
        if let Some(last) = entries.last() {
            next = Offset(last.offset.0 + 1);
            work.handle(reader, entries).await?;
        }
        let is_due = committed_at.elapsed() >= COMMIT_EVERY;
        if is_due && done.is_none_or(|done| done < next) {
            commit(reader, group, next).await?;
            (done, committed_at) = (Some(next), Instant::now());
        }
    }
    if done.is_none_or(|done| done < next) {
        commit(reader, group, next).await?;
    }
    Ok(())
}

async fn commit(reader: &Reader, group: &'static str, next: Offset) -> anyhow::Result<()> {
    let commit = || reader.log.commit(group, reader.topic, reader.partition, next);
    let committed = retry("commit", Backoff::default(), &reader.stop, LogError::is_transient, commit).await;
    committed.context("commit an offset")
}

/// Keyframes come at least every 60 s.
const READ_BACK: Duration = Duration::from_secs(75);
const READ_WAIT: Duration = Duration::from_millis(500);
/// By the machine's own time: it costs the disk a sync, however fast the clock is set.
const COMMIT_EVERY: Duration = Duration::from_secs(1);
