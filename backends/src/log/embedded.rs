//! The log on local disk: no service, one process. Entries lie in fjall, one keyspace per partition; one writer thread
//! commits what all appenders have queued with one sync; readers who keep up are served from memory.
//!
//! **Invariant:** readers are bounded by each partition's published `next`, which moves only after the sync: they never
//! see what a crash could take back.

mod groups;
mod journal;
mod keeper;
mod layout;
mod partition;
mod shared;
mod store;
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
use protocol::envelope::ENTRY_BYTES_MAX;
use protocol::{Offset, PartitionId, Time};
use tokio::sync::{Semaphore, mpsc, oneshot};

use self::groups::Groups;
use self::keeper::Keeper;
use self::layout::{KEY_BYTES_MAX, Layout, Slot, commit_key};
use self::partition::Standing;
use self::shared::{Now, Shared};
use self::store::StoreOptions;
pub use self::store::{InstalledLog, WriteProbe, forget_acknowledged};
use self::writer::{Queued, Request, Writer, WriterMeters};
use super::{Append, Log, LogError, Membership, OffsetRange, ReadLimit, StoredEntry, Topic};

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
    pub now: Now,
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
            now: now_of(Clock::system()),
            meter: Meter::discard(),
            cache_bytes: StoreOptions::default().cache_bytes,
            place: None,
            probe: None,
        }
    }
}

impl EmbeddedLogConfig {
    pub fn with_clock(self, clock: Clock) -> Self {
        EmbeddedLogConfig { now: now_of(clock), ..self }
    }
}

fn now_of(clock: Clock) -> Now {
    Arc::new(move || Time(clock.now_ms()))
}

pub struct EmbeddedLog {
    shared: Arc<Shared>,
    incarnation: u32,
    groups: Groups,
    queued_bytes: Arc<Semaphore>,
    queued_bytes_max: usize,
    running: Mutex<Option<Running>>,
}

/// Dropping it stops the threads: the writer writes what is queued first.
struct Running {
    requests: mpsc::Sender<Queued>,
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
        let (requests, queue) = mpsc::channel(QUEUED_REQUESTS_MAX);
        let meters = meters(&config.meter);
        let writer = Writer::new(shared.clone(), queue, opened.cursors, opened.superseded, meters);
        let (stop_keeper, stop) = std::sync::mpsc::channel();
        let keeper = Keeper {
            shared: shared.clone(),
            requests: requests.downgrade(),
            retention: retention(&config.retention),
            every: config.expire_every,
            stop,
        };
        let running = Running {
            requests,
            stop_keeper,
            writer: spawn("log writer", move || writer.run())?,
            keeper: spawn("log keeper", move || keeper.run())?,
        };
        Ok(EmbeddedLog {
            shared,
            incarnation,
            groups: Groups::default(),
            queued_bytes: Arc::new(Semaphore::new(config.queued_bytes_max)),
            queued_bytes_max: config.queued_bytes_max,
            running: Mutex::new(Some(running)),
        })
    }

    /// Writes what is queued, answers it, and lets the files go. What comes after is answered `Closed`. Blocks.
    pub fn close(&self) {
        let Some(running) = self.running.lock().take() else {
            return;
        };
        let Running { requests, stop_keeper, writer, keeper } = running;
        drop((requests, stop_keeper));
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

    async fn request<T>(
        &self,
        bytes: usize,
        make: impl FnOnce(oneshot::Sender<Result<T, LogError>>) -> Request,
    ) -> Result<T, LogError> {
        let requests = self.running.lock().as_ref().map(|running| running.requests.clone());
        let requests = requests.ok_or(LogError::Closed)?;
        let weight = bytes.min(self.queued_bytes_max) as u32;
        let permit = self.queued_bytes.clone().acquire_many_owned(weight).await.map_err(|_| LogError::Closed)?;
        let (reply, answer) = oneshot::channel();
        let queued = Queued { request: make(reply), bytes, permit: Some(permit) };
        requests.send(queued).await.map_err(|_| LogError::Closed)?;
        drop(requests);
        answer.await.unwrap_or(Err(LogError::Closed))
    }

    /// Reads files, off the runtime's threads.
    async fn blocking<T: Send + 'static>(
        &self,
        read: impl FnOnce(&store::Store) -> Result<T, LogError> + Send + 'static,
    ) -> Result<T, LogError> {
        let shared = self.shared.clone();
        let reading = tokio::task::spawn_blocking(move || match shared.store() {
            Some(store) => read(&store),
            None => Err(LogError::Unavailable { reason: "the store is not open".to_string() }),
        });
        reading.await.unwrap_or_else(|error| Err(LogError::Unavailable { reason: error.to_string() }))
    }

    async fn read_files(
        &self,
        slot: Slot,
        from: Offset,
        until: Offset,
        limit: ReadLimit,
    ) -> Result<Vec<StoredEntry>, LogError> {
        let entries = self.blocking(move |store| store.read(slot, from, until, limit)).await?;
        if self.shared.layout.at(slot).0.is_newest_per_key() {
            return Ok(entries);
        }
        let is_whole = entries.iter().zip(from.0..).all(|(entry, offset)| entry.offset.0 == offset);
        if is_whole && !entries.is_empty() {
            return Ok(entries);
        }
        // Retention may have cut it while it was read; a hole for any other reason is damage.
        let first = self.shared.partitions[slot.0].span().first;
        if from < first {
            return Err(LogError::Gone { offset: from.0, first: first.0 });
        }
        Err(store::damaged(&format!("entries from offset {from} on are missing")))
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

    async fn append(&self, entries: Vec<Append>) -> Result<Vec<Offset>, LogError> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let mut bytes = 0;
        let mut slotted = Vec::with_capacity(entries.len());
        for append in entries {
            let slot = self.slot(append.topic, append.partition)?;
            for (bytes, bytes_max) in [(append.value.len(), ENTRY_BYTES_MAX), (append.key.len(), KEY_BYTES_MAX)] {
                if bytes > bytes_max {
                    return Err(LogError::TooLarge { bytes, bytes_max });
                }
            }
            bytes += append.key.len() + append.value.len();
            slotted.push((slot, append));
        }
        self.request(bytes, |reply| Request::Append { entries: slotted, reply }).await
    }

    async fn read(
        &self,
        topic: Topic,
        partition: PartitionId,
        from: Offset,
        limit: ReadLimit,
        wait: Duration,
    ) -> Result<Vec<StoredEntry>, LogError> {
        let slot = self.slot(topic, partition)?;
        let partition = &self.shared.partitions[slot.0];
        let mut span = partition.span();
        if span.next <= from && span.standing == Standing::Open && !wait.is_zero() {
            let mut spans = partition.subscribe();
            let more = spans.wait_for(|span| span.next > from || span.standing != Standing::Open);
            // Whether it came or not is seen below.
            let _came = tokio::time::timeout(wait, more).await.is_ok();
            span = partition.span();
        }
        if from < span.first {
            return Err(LogError::Gone { offset: from.0, first: span.first.0 });
        }
        if span.next <= from {
            return match span.standing {
                Standing::Open => Ok(Vec::new()),
                Standing::Closed => Err(LogError::Closed),
                Standing::Failed => Err(store::damaged("a sync failed")),
            };
        }
        if let Some(entries) = partition.read_tail(from, limit) {
            return Ok(entries);
        }
        if span.standing == Standing::Closed {
            return Err(LogError::Closed);
        }
        self.read_files(slot, from, span.next, limit).await
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
        self.blocking(move |store| store.offset_at(slot, span.first, span.next, at)).await
    }

    async fn newest(&self, topic: Topic) -> Result<Vec<StoredEntry>, LogError> {
        debug_assert!(topic.is_newest_per_key(), "{} does not go by key", topic.name());
        Ok(self.shared.newest(self.slot(topic, PartitionId(0))?))
    }

    async fn join(&self, group: &str, topic: Topic) -> Result<Box<dyn Membership>, LogError> {
        if self.running.lock().is_none() {
            return Err(LogError::Closed);
        }
        Ok(self.groups.join(group, topic, self.partition_count(topic)))
    }

    async fn commit(&self, group: &str, topic: Topic, partition: PartitionId, next: Offset) -> Result<(), LogError> {
        self.slot(topic, partition)?;
        let key = commit_key(group, topic, partition);
        if key.len() > KEY_BYTES_MAX {
            return Err(LogError::TooLarge { bytes: key.len(), bytes_max: KEY_BYTES_MAX });
        }
        self.request(key.len(), |reply| Request::Commit { key, next, reply }).await
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

const QUEUED_REQUESTS_MAX: usize = 4096;
