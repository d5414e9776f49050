//! The log on local disk: no service, one process. Entries lie in fjall, one keyspace per partition; one writer thread
//! commits what all appenders have queued with one sync; readers who keep up are served from memory.
//!
//! **Invariant:** readers are bounded by each partition's published `next`, which moves only after the sync: they never
//! see what a crash could take back.

mod appender;
mod frames;
mod groups;
mod journal;
mod keeper;
mod layout;
mod partition;
mod place;
mod queue;
mod reader;
mod shared;
mod sharing;
mod store;
mod tables;
mod takeover;
mod writer;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use daemon::{Clock, Meter};
use parking_lot::Mutex;
use protocol::{Offset, PartitionId, Time};

use self::appender::EmbeddedAppender;
use self::groups::Groups;
use self::keeper::Keeper;
use self::layout::{Layout, Slot, commit_key};
use self::partition::Standing;
use self::queue::Queue;
use self::reader::{EmbeddedReader, blocking};
use self::shared::{Now, Shared};
use self::store::StoreOptions;
pub use self::store::{InstalledLog, WriteProbe, forget_acknowledged};
use self::writer::{Writer, WriterMeters};
use super::append::Line;
use super::{Appender, Log, LogError, LogReader, Membership, OffsetRange, Pace, StoredEntry, Topic};

#[derive(Clone)]
pub struct EmbeddedLogConfig {
    /// Of every topic that is not newest-per-key. Recorded at creation; another count is refused.
    pub partitions: u32,
    /// Instead of `Topic::retention`.
    pub retention: BTreeMap<Topic, Duration>,
    /// How often retention is looked after.
    pub expire_every: Duration,
    /// Newest entries of each partition that are kept in memory for readers.
    pub tail_bytes_max: usize,
    /// Appends that wait or are being written hold this much at most; then appenders wait.
    pub queued_bytes_max: usize,
    /// A member that has not said within this time that its work on a revoked partition has stopped loses it.
    pub release_wait_max: Duration,
    pub now: Now,
    /// Time for what is kept: `now`, or earlier after the clock was set forward. None: always `now`.
    pub kept: Option<Now>,
    pub meter: Meter,
    /// For blocks of tables that readers have asked for.
    pub cache_bytes: u64,
    /// Its place in an installation, if it has one.
    pub place: Option<InstalledLog>,
    /// For tests of crashes and full disks.
    pub probe: Option<Arc<dyn WriteProbe>>,
}

impl Default for EmbeddedLogConfig {
    fn default() -> Self {
        EmbeddedLogConfig {
            partitions: 8,
            retention: BTreeMap::new(),
            expire_every: Duration::from_secs(60),
            tail_bytes_max: 4 << 20,
            queued_bytes_max: 64 << 20,
            release_wait_max: Duration::from_secs(60),
            now: now_of(Clock::system()),
            kept: None,
            meter: Meter::discard(),
            cache_bytes: StoreOptions::default().cache_bytes,
            place: None,
            probe: None,
        }
    }
}

impl EmbeddedLogConfig {
    pub fn with_clock(self, clock: Clock) -> Self {
        let kept: Now = Arc::new(move || Time(clock.kept_ms()));
        EmbeddedLogConfig { now: now_of(clock), kept: Some(kept), ..self }
    }
}

fn now_of(clock: Clock) -> Now {
    Arc::new(move || Time(clock.now_ms()))
}

pub struct EmbeddedLog {
    shared: Arc<Shared>,
    incarnation: u32,
    queue: Arc<Queue>,
    groups: Groups,
    running: Mutex<Option<Running>>,
}

struct Running {
    stop_keeper: std::sync::mpsc::Sender<()>,
    writer: JoinHandle<()>,
    keeper: JoinHandle<()>,
}

impl EmbeddedLog {
    /// Opens the log at `path`, or begins one there. Blocks, for as long as the journal takes to replay.
    pub fn open(path: impl Into<PathBuf>, config: EmbeddedLogConfig) -> Result<Self, LogError> {
        let layout = Layout::new(config.partitions.max(1));
        let options = StoreOptions { probe: config.probe, place: config.place, cache_bytes: config.cache_bytes };
        let (shared, opened, incarnation) =
            Shared::open(path.into(), layout, config.now, config.tail_bytes_max, options)?;
        let shared = Arc::new(shared);
        let (queue, requests) = Queue::new(config.queued_bytes_max);
        let queue = Arc::new(queue);
        let meters = meters(&config.meter);
        let writer = Writer::new(shared.clone(), requests, opened.cursors, opened.superseded, meters);
        let (stop_keeper, stop) = std::sync::mpsc::channel();
        let keeper = Keeper {
            kept: config.kept.unwrap_or_else(|| shared.now.clone()),
            shared: shared.clone(),
            requests: queue.downgrade().ok_or(LogError::Closed)?,
            retention: retention(&config.retention),
            every: config.expire_every,
            stop,
        };
        let running = Running {
            stop_keeper,
            writer: spawn("log writer", move || writer.run())?,
            keeper: spawn("log keeper", move || keeper.run())?,
        };
        Ok(EmbeddedLog {
            shared,
            incarnation,
            groups: Groups::new(queue.clone(), config.release_wait_max),
            queue,
            running: Mutex::new(Some(running)),
        })
    }

    /// What is gone of the files that are written to, if anything is. Blocks.
    pub fn gone(&self) -> Option<PathBuf> {
        self.shared.store().and_then(|store| store.gone())
    }

    /// Writes what is queued, answers it, and lets the files go. What comes after is answered `Closed`. Blocks.
    pub fn close(&self) {
        let Some(running) = self.running.lock().take() else {
            return;
        };
        let Running { stop_keeper, writer, keeper } = running;
        self.queue.close();
        drop(stop_keeper);
        self.groups.close();
        for thread in [writer, keeper] {
            if thread.join().is_err() {
                tracing::error!("a thread of the log died");
            }
        }
        self.shared.set_standing(Standing::Closed);
        self.shared.close_store();
    }

    fn slot(&self, topic: Topic, partition: PartitionId) -> Result<Slot, LogError> {
        let slot = self.shared.layout.slot(topic, partition);
        slot.ok_or(LogError::NoPartition { topic: topic.name(), partition: partition.0 })
    }
}

impl Drop for EmbeddedLog {
    fn drop(&mut self) {
        self.close();
    }
}

#[async_trait]
impl Log for EmbeddedLog {
    fn partition_count(&self, topic: Topic) -> u32 {
        self.shared.layout.partition_count(topic)
    }

    fn incarnation(&self) -> u32 {
        self.incarnation
    }

    fn pace(&self) -> Pace {
        Pace::Gathers
    }

    fn appender(&self) -> Box<dyn Appender> {
        let (shared, queue) = (self.shared.clone(), self.queue.clone());
        Box::new(EmbeddedAppender { shared, queue, line: Line::default() })
    }

    async fn reader(&self, topic: Topic, partition: PartitionId, from: Offset) -> Result<Box<dyn LogReader>, LogError> {
        let slot = self.slot(topic, partition)?;
        Ok(Box::new(EmbeddedReader { shared: self.shared.clone(), slot, next: from }))
    }

    async fn range(&self, topic: Topic, partition: PartitionId) -> Result<OffsetRange, LogError> {
        let span = self.shared.partitions[self.slot(topic, partition)?.0].span();
        Ok(OffsetRange { first: span.first, next: span.next })
    }

    async fn offset_at(&self, topic: Topic, partition: PartitionId, at: Time) -> Result<Offset, LogError> {
        let slot = self.slot(topic, partition)?;
        let partition = &self.shared.partitions[slot.0];
        if let Some(offset) = partition.offset_at(at) {
            return Ok(offset);
        }
        let span = partition.span();
        blocking(&self.shared, move |store| store.offset_at(slot, span.first, span.next, at)).await
    }

    async fn newest(&self, topic: Topic) -> Result<Vec<StoredEntry>, LogError> {
        debug_assert!(topic.is_newest_per_key(), "{} does not go by key", topic.name());
        Ok(self.shared.newest(self.slot(topic, PartitionId(0))?))
    }

    async fn join(&self, group: &str, topic: Topic) -> Result<Box<dyn Membership>, LogError> {
        if self.queue.is_closed() {
            return Err(LogError::Closed);
        }
        Ok(self.groups.join(group, topic, self.partition_count(topic)))
    }

    async fn committed(&self, group: &str, topic: Topic, partition: PartitionId) -> Result<Option<Offset>, LogError> {
        self.slot(topic, partition)?;
        Ok(self.shared.commits.lock().get(&commit_key(group, topic, partition)).copied())
    }
}

fn retention(instead: &BTreeMap<Topic, Duration>) -> BTreeMap<Topic, Duration> {
    let by_default = Topic::ALL.into_iter().filter_map(|topic| Some((topic, topic.retention()?)));
    by_default.map(|(topic, duration)| (topic, instead.get(&topic).copied().unwrap_or(duration))).collect()
}

fn meters(meter: &Meter) -> WriterMeters {
    WriterMeters {
        entries: meter.counter("wayfix_log_entries_appended_total", "Entries made durable.", &[]),
        bytes: meter.counter("wayfix_log_bytes_appended_total", "Bytes of keys and values made durable.", &[]),
        syncs: meter.counter("wayfix_log_syncs_total", "Batches written, one sync each.", &[]),
        failures: meter.counter("wayfix_log_write_failures_total", "Batches that could not be written.", &[]),
        write_seconds: meter.histogram("wayfix_log_write_seconds", "Writing and syncing one batch.", &[]),
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, LogError> {
    let spawned = std::thread::Builder::new().name(name.to_string()).spawn(run);
    spawned.map_err(|error| LogError::Unavailable { reason: format!("no thread for the {name}: {error}") })
}
