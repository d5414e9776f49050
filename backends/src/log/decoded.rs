//! Entries of updates, decoded once for all of this process's readers: hubs, sinks and learner follow the same partitions at
//! about the same time.
//!
//! Bounded: the newest entries of each partition, by number and bytes. Who lags further behind decodes for itself.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Log, StoredEntry, Topic};
use protocol::envelope::{self, EnvelopeError};
use protocol::{Offset, PartitionId, UpdateBatch};

/// Cheap to clone.
#[derive(Clone)]
pub struct DecodedUpdates {
    partitions: Arc<Vec<Mutex<Newest>>>,
}

#[derive(Default)]
struct Newest {
    /// By offset, the oldest first.
    entries: VecDeque<Entry>,
    bytes: usize,
}

struct Entry {
    offset: Offset,
    /// As it lay in the log.
    bytes: usize,
    batch: Arc<UpdateBatch>,
}

impl DecodedUpdates {
    pub fn of(log: &dyn Log) -> Self {
        DecodedUpdates::new(log.partition_count(Topic::Updates))
    }

    pub fn new(partition_count: u32) -> Self {
        DecodedUpdates { partitions: Arc::new((0..partition_count).map(|_| Mutex::default()).collect()) }
    }

    /// Of two readers who ask for the same entry at once one decodes, the other waits for it.
    pub fn updates(&self, partition: PartitionId, entry: &StoredEntry) -> Result<Arc<UpdateBatch>, EnvelopeError> {
        let Some(newest) = self.partitions.get(partition.0 as usize) else {
            return envelope::decode(&entry.value).map(Arc::new);
        };
        let mut newest = newest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(batch) = newest.find(entry.offset) {
            return Ok(batch);
        }
        let batch: Arc<UpdateBatch> = Arc::new(envelope::decode(&entry.value)?);
        newest.push(Entry { offset: entry.offset, bytes: entry.value.len(), batch: batch.clone() });
        Ok(batch)
    }
}

impl Newest {
    fn find(&self, offset: Offset) -> Option<Arc<UpdateBatch>> {
        let at = self.entries.binary_search_by_key(&offset, |entry| entry.offset).ok()?;
        Some(self.entries[at].batch.clone())
    }

    /// Only what is newer than all there is: a reader that lags must not drive out what the others need.
    fn push(&mut self, entry: Entry) {
        if self.entries.back().is_some_and(|newest| newest.offset >= entry.offset) {
            return;
        }
        self.bytes += entry.bytes;
        self.entries.push_back(entry);
        while self.entries.len() > ENTRIES_MAX || (self.bytes > BYTES_MAX && self.entries.len() > 1) {
            let Some(oldest) = self.entries.pop_front() else { return };
            self.bytes -= oldest.bytes;
        }
    }
}

const ENTRIES_MAX: usize = 64;
/// DecodedUpdates they are a few times as large.
const BYTES_MAX: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use protocol::{Time, Update};

    use super::*;

    #[test]
    fn an_entry_is_decoded_once_for_all_who_follow() {
        let decoded = DecodedUpdates::new(1);

        let first = decoded.updates(PartitionId(0), &entry(7)).unwrap();
        let second = decoded.clone().updates(PartitionId(0), &entry(7)).unwrap();

        assert!(Arc::ptr_eq(&first, &second));
    }

    #[test]
    fn what_is_kept_is_bounded_and_a_laggard_drives_nothing_out() {
        let decoded = DecodedUpdates::new(1);
        for offset in 100..100 + 3 * ENTRIES_MAX as u64 {
            decoded.updates(PartitionId(0), &entry(offset)).unwrap();
        }
        let newest = entry(100 + 3 * ENTRIES_MAX as u64 - 1);
        let kept = decoded.updates(PartitionId(0), &newest).unwrap();

        for offset in 0..100 {
            let old = decoded.updates(PartitionId(0), &entry(offset)).unwrap();
            assert_eq!(old.updates.len(), 1, "it is answered all the same");
        }

        assert_eq!(decoded.partitions[0].lock().unwrap().entries.len(), ENTRIES_MAX);
        assert!(Arc::ptr_eq(&kept, &decoded.updates(PartitionId(0), &newest).unwrap()));
    }

    #[test]
    fn a_damaged_entry_is_an_error_for_each_who_asks() {
        let decoded = DecodedUpdates::new(1);
        let damaged = StoredEntry { value: Bytes::from_static(b"W no envelope"), ..entry(1) };

        assert!(decoded.updates(PartitionId(0), &damaged).is_err());
        assert!(decoded.updates(PartitionId(0), &damaged).is_err());
    }

    fn entry(offset: u64) -> StoredEntry {
        let beat = Update::Heartbeat { source: PartitionId(0), offset: Offset(offset), at: Time(0) };
        let value = envelope::encode(&UpdateBatch { updates: vec![beat] }).into();
        StoredEntry { offset: Offset(offset), appended: Time(0), key: Bytes::new(), value }
    }
}
