//! What the snapshots topic says: where a partition's state at an offset lies.

use std::collections::VecDeque;
use std::time::Duration;

use backends::log::{Log, LogError, OffsetRange, ReadLimit, Topic};
use protocol::envelope::{self, Enveloped};
use protocol::record::BlobHash;
use protocol::update::Generation;
use protocol::{Offset, PartitionId, Time};
use wincode::{SchemaRead, SchemaWrite};

/// Announced only once all that the records below `next` brought forth is durable, and the body too.
#[derive(Clone, Copy, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
pub struct SnapshotNotice {
    pub partition: PartitionId,
    /// The records entry to fold next.
    pub next: Offset,
    /// Of the owner that took it.
    pub generation: Generation,
    pub fold_version: u32,
    pub format: u16,
    pub hash: BlobHash,
    pub size: u64,
    pub at: Time,
}

impl Enveloped for SnapshotNotice {
    const KIND: u8 = b'S';
    const VERSION: u8 = 1;
}

/// The newest of one kind that a partition of the snapshots topic holds, the oldest first; a few more than wanted where
/// one read brings them. Read from the end backward, because any number of another kind may lie among them.
pub async fn newest<T: Enveloped>(log: &dyn Log, partition: PartitionId, wanted: usize) -> Result<Vec<T>, LogError> {
    let OffsetRange { first, next } = log.range(Topic::Snapshots, partition).await?;
    let mut newest = VecDeque::new();
    let mut end = next;
    while end > first && newest.len() < wanted {
        let begin = Offset(end.0.saturating_sub(ENTRIES_PER_READ).max(first.0));
        let mut found = Vec::new();
        let mut from = begin;
        while from < end {
            let entries = log.read(Topic::Snapshots, partition, from, ReadLimit::default(), Duration::ZERO).await?;
            let Some(last) = entries.last() else { break };
            from = Offset(last.offset.0 + 1);
            let entries = entries.iter().filter(|entry| entry.offset < end);
            found.extend(entries.filter_map(|entry| envelope::decode::<T>(&entry.value).ok()));
        }
        found.into_iter().rev().for_each(|one| newest.push_front(one));
        end = begin;
    }
    Ok(newest.into())
}

const ENTRIES_PER_READ: u64 = 256;
