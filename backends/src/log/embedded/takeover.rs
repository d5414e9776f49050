//! Takes over what the builds before wrote about snapshots: a topic with a history in each of its partitions, which is
//! newest per key today. Of each partition and kind of entry the newest few stay, and the first of every hour, which are
//! those whose bodies were kept; each under a key of its own, so that readers find them beside the new ones.

use std::collections::BTreeMap;

use fjall::{Database, KeyspaceCreateOptions};
use protocol::{Offset, PartitionId};

use super::layout::{self, Layout};
use super::store::{Change, Store};
use crate::log::{LogError, ReadLimit, StoredEntry, Topic};

/// Once for every log; what a crash leaves half done is done again at the next start.
pub fn take_over_snapshots(store: &Store, layout: &Layout) -> Result<(), LogError> {
    let others: Vec<PartitionId> = (1..layout.partition_count(Topic::Records)).map(PartitionId).collect();
    let name = |partition: &PartitionId| layout::keyspace_name(Topic::Snapshots, *partition);
    if store.meta(TAKEN_OVER_KEY)?.is_some() {
        return others.iter().try_for_each(|partition| store.drop_keyspace(&name(partition)));
    }
    let Some(slot) = layout.slot(Topic::Snapshots, PartitionId(0)) else { return Ok(()) };
    let mut kept: Vec<(PartitionId, StoredEntry)> = Vec::new();
    let mut changes = Vec::new();
    let own = store.read(slot, Offset(0), Offset(u64::MAX), EVERYTHING)?;
    let next = own.last().map_or(0, |last| last.offset.0 + 1);
    for entry in &own {
        changes.push(Change::Remove { slot, offset: entry.offset });
    }
    keep(&mut kept, PartitionId(0), own);
    for partition in &others {
        keep(&mut kept, *partition, store.read_keyspace(&name(partition))?);
    }
    kept.sort_by_key(|(_, entry)| entry.appended);
    for (offset, (partition, entry)) in (next..).map(Offset).zip(kept) {
        let key = history_key(partition, entry.offset);
        changes.push(Change::Entry { slot, offset, bytes: layout::encode_entry(entry.appended, &key, &entry.value) });
    }
    changes.push(Change::Meta { key: TAKEN_OVER_KEY.to_vec(), value: 1_u64.to_be_bytes().to_vec() });
    store.write(changes).map_err(|error| LogError::Unavailable { reason: error.to_string() })?;
    others.iter().try_for_each(|partition| store.drop_keyspace(&name(partition)))
}

/// Entries of a topic with history have no key; those that have one are newest per key already.
fn keep(kept: &mut Vec<(PartitionId, StoredEntry)>, partition: PartitionId, entries: Vec<StoredEntry>) {
    let mut by_kind: BTreeMap<u8, Vec<StoredEntry>> = BTreeMap::new();
    for entry in entries.into_iter().filter(|entry| entry.key.is_empty()) {
        // The second byte of an envelope says what it is.
        by_kind.entry(entry.value.get(1).copied().unwrap_or_default()).or_default().push(entry);
    }
    for (_, entries) in by_kind {
        let count = entries.len();
        let mut hour_before = None;
        for (at, entry) in entries.into_iter().enumerate() {
            let hour = entry.appended.as_secs().div_euclid(3600);
            let is_first_of_hour = hour_before.replace(hour) != Some(hour);
            if is_first_of_hour || at + NEWEST_KEPT >= count {
                kept.push((partition, entry));
            }
        }
    }
}

fn history_key(partition: PartitionId, offset: Offset) -> Vec<u8> {
    [HISTORY_PREFIX, &partition.0.to_be_bytes(), &offset.0.to_be_bytes()].concat()
}

impl Store {
    /// All of a keyspace that is not in the layout any more; nothing if there is none.
    fn read_keyspace(&self, name: &str) -> Result<Vec<StoredEntry>, LogError> {
        let database: &Database = self.database();
        if !database.keyspace_exists(name) {
            return Ok(Vec::new());
        }
        let keyspace = database.keyspace(name, KeyspaceCreateOptions::default).map_err(|e| unreadable(&e))?;
        let mut entries = Vec::new();
        for item in keyspace.iter() {
            let (key, value) = item.into_inner().map_err(|error| unreadable(&error))?;
            entries.extend(layout::offset_of(&key).and_then(|offset| layout::decode_entry(offset, &value)));
        }
        Ok(entries)
    }

    fn drop_keyspace(&self, name: &str) -> Result<(), LogError> {
        let database: &Database = self.database();
        if !database.keyspace_exists(name) {
            return Ok(());
        }
        let keyspace = database.keyspace(name, KeyspaceCreateOptions::default).map_err(|e| unreadable(&e))?;
        database.delete_keyspace(keyspace).map_err(|error| unreadable(&error))
    }
}

fn unreadable(error: &fjall::Error) -> LogError {
    LogError::Unavailable { reason: format!("the snapshots of the build before cannot be taken over: {error}") }
}

const EVERYTHING: ReadLimit = ReadLimit { entries_max: usize::MAX, bytes_max: usize::MAX };
const TAKEN_OVER_KEY: &[u8] = b"snapshots-by-key";
const HISTORY_PREFIX: &[u8] = b"history/";
const NEWEST_KEPT: usize = 3;
