//! How the log lies in the store: one keyspace per partition, keyed by offset, and one for everything else. Within a
//! partition keys only rise, so the store's compaction moves tables instead of rewriting them, and retention drops whole
//! tables.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes};
use protocol::{Offset, PartitionId, Time};

use crate::log::{StoredEntry, Topic};

/// Where a partition stands in every list of partitions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Slot(pub usize);

/// Which partitions there are, in the order of their slots.
#[derive(Clone, Debug)]
pub struct Layout {
    partitions: u32,
    first_slots: BTreeMap<Topic, usize>,
    slots: Vec<(Topic, PartitionId)>,
}

impl Layout {
    pub fn new(partitions: u32) -> Self {
        let mut first_slots = BTreeMap::new();
        let mut slots = Vec::new();
        for topic in Topic::ALL {
            first_slots.insert(topic, slots.len());
            slots.extend((0..count_of(topic, partitions)).map(|partition| (topic, PartitionId(partition))));
        }
        Layout { partitions, first_slots, slots }
    }

    pub fn partition_count(&self, topic: Topic) -> u32 {
        count_of(topic, self.partitions)
    }

    pub fn slot(&self, topic: Topic, partition: PartitionId) -> Option<Slot> {
        if partition.0 >= self.partition_count(topic) {
            return None;
        }
        self.first_slots.get(&topic).map(|first| Slot(first + partition.0 as usize))
    }

    pub fn slots(&self) -> impl Iterator<Item = (Slot, Topic, PartitionId)> + '_ {
        self.slots.iter().enumerate().map(|(at, (topic, partition))| (Slot(at), *topic, *partition))
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn at(&self, slot: Slot) -> (Topic, PartitionId) {
        self.slots[slot.0]
    }
}

fn count_of(topic: Topic, partitions: u32) -> u32 {
    if topic.is_newest_per_key() { 1 } else { partitions }
}

pub fn keyspace_name(topic: Topic, partition: PartitionId) -> String {
    format!("{}-{}", topic.name(), partition)
}

pub fn offset_key(offset: Offset) -> [u8; 8] {
    offset.0.to_be_bytes()
}

pub fn offset_of(key: &[u8]) -> Option<Offset> {
    Some(Offset(u64::from_be_bytes(key.try_into().ok()?)))
}

/// `appended i64 ‖ key length u16 ‖ key ‖ value`, big-endian. The key is at most `KEY_BYTES_MAX` long.
pub fn encode_entry(appended: Time, key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ENTRY_HEADER_BYTES + key.len() + value.len());
    bytes.put_i64(appended.0);
    bytes.put_u16(key.len() as u16);
    bytes.put_slice(key);
    bytes.put_slice(value);
    bytes
}

pub fn decode_entry(offset: Offset, bytes: &[u8]) -> Option<StoredEntry> {
    let (appended, rest) = bytes.split_first_chunk::<8>()?;
    let (key_len, rest) = rest.split_first_chunk::<2>()?;
    let (key, value) = rest.split_at_checked(usize::from(u16::from_be_bytes(*key_len)))?;
    Some(StoredEntry {
        offset,
        appended: Time(i64::from_be_bytes(*appended)),
        key: Bytes::copy_from_slice(key),
        value: Bytes::copy_from_slice(value),
    })
}

/// The time alone, for searching by it.
pub fn appended_of(bytes: &[u8]) -> Option<Time> {
    bytes.first_chunk::<8>().map(|appended| Time(i64::from_be_bytes(*appended)))
}

/// Committed offsets, by topic, partition and group.
pub fn commit_key(group: &str, topic: Topic, partition: PartitionId) -> Vec<u8> {
    let mut key = COMMIT_PREFIX.to_vec();
    key.extend(topic.name().as_bytes());
    key.push(b'/');
    key.extend(partition.0.to_be_bytes());
    key.extend(group.as_bytes());
    key
}

/// The first kept offset of a partition that retention has cut.
pub fn first_key(topic: Topic, partition: PartitionId) -> Vec<u8> {
    format!("first/{}/{partition}", topic.name()).into_bytes()
}

pub const COMMIT_PREFIX: &[u8] = b"commit/";
pub const META_KEYSPACE: &str = "meta";
pub const FORMAT_KEY: &[u8] = b"format";
pub const PARTITIONS_KEY: &[u8] = b"partitions";
pub const INCARNATION_KEY: &[u8] = b"incarnation";
/// Which installation the log belongs to.
pub const INSTALLATION_KEY: &[u8] = b"installation";
/// Counts the group commits: what recovery must have brought back.
pub const COMMIT_NUMBER_KEY: &[u8] = b"number";
pub const FORMAT: u32 = 1;
pub const KEY_BYTES_MAX: usize = u16::MAX as usize;
const ENTRY_HEADER_BYTES: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_comes_back_as_it_was_and_a_cut_one_does_not() {
        let bytes = encode_entry(Time(-5), b"key", b"value");

        let entry = decode_entry(Offset(9), &bytes).unwrap();

        assert_eq!((entry.offset, entry.appended), (Offset(9), Time(-5)));
        assert_eq!((&entry.key[..], &entry.value[..]), (&b"key"[..], &b"value"[..]));
        assert_eq!(appended_of(&bytes), Some(Time(-5)));
        for cut in 0..ENTRY_HEADER_BYTES + 3 {
            assert_eq!(decode_entry(Offset(9), &bytes[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn every_partition_has_a_slot_of_its_own() {
        let layout = Layout::new(3);

        let slots: Vec<_> = layout.slots().collect();

        assert_eq!(slots.len(), 4 * 3 + 3);
        for (slot, topic, partition) in slots {
            assert_eq!(layout.slot(topic, partition), Some(slot));
            assert_eq!(layout.at(slot), (topic, partition));
        }
        assert_eq!(layout.slot(Topic::Records, PartitionId(3)), None);
        assert_eq!(layout.slot(Topic::Control, PartitionId(1)), None);
    }
}
