//! The log: ordered entries in the partitions of a few topics. Everything that must not be lost goes through it, and
//! everything that can be derived is derived from it.
//!
//! **Contract:**
//! - Entries of one partition keep one order, numbered by `Offset` from 0, rising.
//! - `append` answers only when all its entries are durable; a reader never gets an entry that a crash could take back.
//! - Members of a group share a topic's partitions; committed offsets survive a restart.
//! - Newest-per-key topics keep at least the newest entry of every key for ever; the others keep `Topic::retention`.
//! - Reading by offset or by time needs no group.
//! - Once `append` has failed, its entries may or may not be there: appending again may write them twice, never out of
//!   order among themselves.

pub mod conformance;
pub mod embedded;
pub mod front;

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use protocol::{Offset, PartitionId, Time};

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

/// One entry to append, to a partition that the caller chose.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Append {
    pub topic: Topic,
    pub partition: PartitionId,
    /// What newest-per-key topics go by; empty elsewhere.
    pub key: Bytes,
    /// An envelope (`protocol::envelope`). Empty in a newest-per-key topic means: the key is gone.
    pub value: Bytes,
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

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("{topic} has {found} partitions, {expected} were recorded at its creation")]
    PartitionCount { topic: &'static str, expected: u32, found: u32 },
    #[error("{topic} has no partition {partition}")]
    NoPartition { topic: &'static str, partition: u32 },
    #[error("offset {offset} is gone, the oldest kept is {first}")]
    Gone { offset: u64, first: u64 },
    #[error("an entry of {bytes} bytes is larger than {bytes_max}")]
    TooLarge { bytes: usize, bytes_max: usize },
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
        matches!(self, LogError::Unavailable { .. })
    }
}

#[async_trait]
pub trait Log: Send + Sync + 'static {
    fn partition_count(&self, topic: Topic) -> u32;

    /// Of the topic set: recorded at its creation, +1 at move, restore and partition growth.
    fn incarnation(&self) -> u32;

    /// Appends all and answers their offsets, in order, once all are durable.
    async fn append(&self, entries: Vec<Append>) -> Result<Vec<Offset>, LogError>;

    /// Entries from `from` on. Answers at once if there are any; else waits for one, `wait` at most, and may then
    /// answer none. `Gone` if `from` is older than what is kept.
    ///
    /// Cancellation safe.
    async fn read(
        &self,
        topic: Topic,
        partition: PartitionId,
        from: Offset,
        limit: ReadLimit,
        wait: Duration,
    ) -> Result<Vec<StoredEntry>, LogError>;

    async fn range(&self, topic: Topic, partition: PartitionId) -> Result<OffsetRange, LogError>;

    /// The first entry appended at or after `at`; `next` if there is none.
    async fn offset_at(&self, topic: Topic, partition: PartitionId, at: Time) -> Result<Offset, LogError>;

    /// The newest entry of every key of a newest-per-key topic, by offset; deleted keys left out.
    async fn newest(&self, topic: Topic) -> Result<Vec<StoredEntry>, LogError>;

    /// Takes part in sharing the topic's partitions within a group, until the membership is left or dropped.
    async fn join(&self, group: &str, topic: Topic) -> Result<Box<dyn Membership>, LogError>;

    /// Remembers the next offset the group wants of this partition.
    async fn commit(&self, group: &str, topic: Topic, partition: PartitionId, next: Offset) -> Result<(), LogError>;

    async fn committed(&self, group: &str, topic: Topic, partition: PartitionId) -> Result<Option<Offset>, LogError>;
}

/// One member of one group. Dropping it leaves the group.
#[async_trait]
pub trait Membership: Send {
    /// The partitions that are this member's, first as soon as it has any share, then at every change. What is not in
    /// the set any more must not be worked on any more.
    ///
    /// Cancellation safe.
    async fn changed(&mut self) -> Result<BTreeSet<PartitionId>, LogError>;

    async fn leave(self: Box<Self>) -> Result<(), LogError>;
}
