//! The log: ordered entries in the partitions of a few topics. Everything that must not be lost goes through it, and
//! everything that can be derived is derived from it.
//!
//! **Contract:**
//! - Entries of one partition keep one order, numbered by `Offset` from 0, rising.
//! - An entry is answered with its offset only when it is durable; a reader never gets an entry that a crash could take
//!   back. Of one append some entries may be durable while others failed, but within a partition none after a failed
//!   one.
//! - An `Appender` may have several appends under way: in every partition their entries stand in the order in which
//!   they were begun. Once one has failed in a partition, none that was begun before its failure was taken notice of
//!   gets into that partition (`LogError::Behind`): nothing overtakes what has to be appended again.
//! - An entry that failed may or may not be there: appending it again may write it twice, never out of order.
//! - A `LogReader` has a place of its own and needs no group.
//! - Members of a group share a topic's partitions. One that is *revoked* is given to another only after its holder has
//!   said that the work on it has stopped; one that is *lost* may be another's already. Offsets are committed by the
//!   member that holds the partition and by no other, and survive a restart.
//! - Newest-per-key topics keep at least the newest entry of every key for ever; the others keep `Topic::retention`.

pub mod append;
pub mod conformance;
mod decoded;
pub mod embedded;
pub mod front;
mod pipeline;
mod share;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use daemon::Backoff;
use protocol::{Offset, PartitionId, Time};
use tokio_util::sync::CancellationToken;
use tracing::warn;

pub use append::{Append, Appended, Appender, Appending, append_durably};
pub use decoded::DecodedUpdates;
pub use pipeline::{Driven, Pipeline, PipelineConfig};
pub use share::{Holding, share, share_noting};

/// The topics of DESIGN.md §2, by what flows in them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Topic {
    Records,
    Updates,
    Trail,
    Events,
    Control,
    Owners,
    Snapshots,
}

impl Topic {
    pub const ALL: [Topic; 7] =
        [Topic::Records, Topic::Updates, Topic::Trail, Topic::Events, Topic::Control, Topic::Owners, Topic::Snapshots];

    /// The default name, as other Kafka clients see it.
    pub fn name(self) -> &'static str {
        match self {
            Topic::Records => "driver-locations",
            Topic::Updates => "tracking-updates",
            Topic::Trail => "tracking-trail",
            Topic::Events => "tracking-events",
            Topic::Control => "tracking-control",
            Topic::Owners => "tracking-owners",
            Topic::Snapshots => "tracking-snapshots",
        }
    }

    /// None: the newest entry of every key is kept for ever.
    pub fn retention(self) -> Option<Duration> {
        match self {
            Topic::Records | Topic::Trail | Topic::Events => Some(Duration::from_secs(72 * 3600)),
            Topic::Updates => Some(Duration::from_secs(24 * 3600)),
            Topic::Control | Topic::Owners | Topic::Snapshots => None,
        }
    }

    /// Small and read whole: one partition.
    pub fn is_newest_per_key(self) -> bool {
        self.retention().is_none()
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredEntry {
    pub offset: Offset,
    /// When the log took it, by the log's clock.
    pub appended: Time,
    pub key: Bytes,
    pub value: Bytes,
}

/// What a partition holds: entries `first` to before `next`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OffsetRange {
    pub first: Offset,
    pub next: Offset,
}

/// How much one read may return. At least one entry is returned if there is one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadLimit {
    pub entries_max: usize,
    pub bytes_max: usize,
}

impl Default for ReadLimit {
    fn default() -> Self {
        ReadLimit { entries_max: 1024, bytes_max: 1 << 20 }
    }
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    #[error("{topic} has {found} partitions, {expected} were recorded at its creation")]
    PartitionCount { topic: &'static str, expected: u32, found: u32 },
    #[error("{topic} has no partition {partition}")]
    NoPartition { topic: &'static str, partition: u32 },
    #[error("offset {offset} is gone, the oldest kept is {first}")]
    Gone { offset: u64, first: u64 },
    #[error("an entry of {bytes} bytes is larger than {bytes_max}")]
    TooLarge { bytes: usize, bytes_max: usize },
    #[error("an append that was begun before it failed")]
    Behind,
    #[error("partition {partition} of {topic} is not this member's")]
    NotHeld { topic: &'static str, partition: u32 },
    #[error("the log is closed")]
    Closed,
    #[error("the log cannot be written or read: {reason}")]
    Unavailable { reason: String },
    #[error("the log is damaged: {reason}")]
    Damaged { reason: String },
}

impl LogError {
    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, LogError::Unavailable { .. } | LogError::Behind)
    }
}

#[async_trait]
pub trait Log: Send + Sync + 'static {
    fn partition_count(&self, topic: Topic) -> u32;

    /// Of the topic set: recorded at its creation, +1 at move, restore and partition growth.
    fn incarnation(&self) -> u32;

    /// How soon this log wants what is to be appended.
    fn pace(&self) -> Pace;

    /// For whoever has several appends under way.
    fn appender(&self) -> Box<dyn Appender>;

    /// Appends all, and answers what became of each entry.
    async fn append(&self, entries: &[Append]) -> Appended {
        self.appender().begin(entries).await.await
    }

    /// Reads one partition from an offset on, which need not be there yet.
    async fn reader(&self, topic: Topic, partition: PartitionId, from: Offset) -> Result<Box<dyn LogReader>, LogError>;

    async fn range(&self, topic: Topic, partition: PartitionId) -> Result<OffsetRange, LogError>;

    /// The first entry appended at or after `at`; `next` if there is none.
    async fn offset_at(&self, topic: Topic, partition: PartitionId, at: Time) -> Result<Offset, LogError>;

    /// The newest entry of every key of a newest-per-key topic, by offset; deleted keys left out.
    async fn newest(&self, topic: Topic) -> Result<Vec<StoredEntry>, LogError>;

    /// Takes part in sharing the topic's partitions within a group, until the membership is left or dropped. `share`
    /// does so for whoever works on one partition at a time.
    async fn join(&self, group: &str, topic: Topic) -> Result<Box<dyn Membership>, LogError>;

    /// The offset that the group wants next of this partition, as a member committed it last.
    async fn committed(&self, group: &str, topic: Topic, partition: PartitionId) -> Result<Option<Offset>, LogError>;
}

/// Whether entries gather in the log or before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pace {
    /// What arrives while an append is under way becomes one write: whoever appends waits for no company.
    Gathers,
    /// Every entry costs the log something of its own: whoever has many small ones gathers them first.
    PerEntry,
}

/// Reads one partition, from a place of its own on.
#[async_trait]
pub trait LogReader: Send {
    /// The offset that it reads next.
    fn next(&self) -> Offset;

    /// Goes on from another offset.
    fn seek(&mut self, to: Offset);

    /// The next entries. Answers at once if there are any; else waits for one, `wait` at most, and may then answer
    /// none. `Gone`, and stays where it is, if its place is older than what is kept.
    ///
    /// Cancellation safe: what was not answered is read again.
    async fn read(&mut self, limit: ReadLimit, wait: Duration) -> Result<Vec<StoredEntry>, LogError>;
}

/// What has changed in a member's share.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ShareChange {
    /// These are its own from here on, besides those it has. None, once, where it has joined and there are none for it.
    Given(BTreeSet<PartitionId>),
    /// These are to be another's: its work on them is to stop, which it says by `Membership::released`. Until then they
    /// are its own.
    Revoked(BTreeSet<PartitionId>),
    /// These are its own no more, and may be another's already: what it still does to them may be too late.
    Lost(BTreeSet<PartitionId>),
}

/// One member of one group. Dropping it leaves the group, so its work must have stopped.
#[async_trait]
pub trait Membership: Send {
    /// Waits for the next change.
    ///
    /// Cancellation safe.
    async fn changed(&mut self) -> Result<ShareChange, LogError>;

    /// The work on these revoked partitions has stopped, and all that it wanted to commit is committed.
    async fn released(&mut self, partitions: &BTreeSet<PartitionId>) -> Result<(), LogError>;

    /// For whoever works on the partitions.
    fn commits(&self) -> Arc<dyn Commits>;

    async fn leave(self: Box<Self>) -> Result<(), LogError>;
}

/// Commits offsets for one member.
#[async_trait]
pub trait Commits: Send + Sync {
    /// Remembers the next offset that the group wants of this partition. `NotHeld` unless it is this member's.
    async fn commit(&self, partition: PartitionId, next: Offset) -> Result<(), LogError>;
}

/// Reads the entries of an offset range, for whoever looks at a little and does not follow.
pub async fn read_range(
    log: &dyn Log,
    topic: Topic,
    partition: PartitionId,
    range: OffsetRange,
) -> Result<Vec<StoredEntry>, LogError> {
    let mut entries = Vec::new();
    let mut reader = log.reader(topic, partition, range.first).await?;
    while reader.next() < range.next {
        let left = range.next.0 - reader.next().0;
        let limit = ReadLimit { entries_max: usize::try_from(left).unwrap_or(usize::MAX), ..ReadLimit::default() };
        let read = reader.read(limit, Duration::ZERO).await?;
        if read.is_empty() {
            break;
        }
        entries.extend(read.into_iter().filter(|entry| entry.offset < range.next));
    }
    Ok(entries)
}

/// Reads, again and again while the log is away. Answers `Gone` and what will not pass, or the last error once `stop` is
/// cancelled.
///
/// Cancellation safe.
pub async fn read_again(
    reader: &mut dyn LogReader,
    what: &'static str,
    limit: ReadLimit,
    wait: Duration,
    stop: &CancellationToken,
) -> Result<Vec<StoredEntry>, LogError> {
    let mut failures = 0;
    loop {
        let error = match reader.read(limit, wait).await {
            Err(error) if error.is_transient() => error,
            read => return read,
        };
        if failures % 16 == 0 {
            warn!(%error, failures, "{what} failed, trying again");
        }
        tokio::select! {
            () = tokio::time::sleep(Backoff::default().delay(failures)) => failures = failures.saturating_add(1),
            () = stop.cancelled() => return Err(error),
        }
    }
}
