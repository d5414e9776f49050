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

#[cfg(test)]
mod tests {
    use protocol::Time;

    use super::*;
    use crate::log::embedded::{EmbeddedLog, EmbeddedLogConfig};
    use crate::log::{Append, Log};

    const PARTITIONS: u32 = 3;

    fn open(folder: &std::path::Path) -> EmbeddedLog {
        let config = EmbeddedLogConfig { partitions: PARTITIONS, ..EmbeddedLogConfig::default() };
        EmbeddedLog::open(folder.join("log"), config).unwrap()
    }

    /// A log as the build before left it: a notice of each partition every minute for five hours, and among those of
    /// partition 0 another kind.
    fn left_behind(folder: &std::path::Path) {
        drop(open(folder));
        let database = Database::builder(folder.join("log").join("entries")).open().unwrap();
        let keyspace = |name: &str| database.keyspace(name, KeyspaceCreateOptions::default).unwrap();
        keyspace(layout::META_KEYSPACE).remove(TAKEN_OVER_KEY).unwrap();
        for partition in (0..PARTITIONS).map(PartitionId) {
            let entries = keyspace(&layout::keyspace_name(Topic::Snapshots, partition));
            let mut offset = 0;
            for minute in 0..300_i64 {
                let kinds: &[u8] = if partition.0 == 0 && minute % 2 == 0 { b"SL" } else { b"S" };
                for kind in kinds {
                    let value = [b'W', *kind, partition.0 as u8, minute as u8, (minute >> 8) as u8];
                    let entry = layout::encode_entry(Time::from_secs(60 * minute), b"", &value);
                    entries.insert(layout::offset_key(Offset(offset)), entry).unwrap();
                    offset += 1;
                }
            }
        }
        database.persist(fjall::PersistMode::SyncAll).unwrap();
    }

    /// Of one partition and kind, the minutes at which they were written.
    fn minutes(entries: &[StoredEntry], kind: u8, partition: u8) -> Vec<u16> {
        let of_kind = entries.iter().filter(|entry| entry.value[1] == kind && entry.value[2] == partition);
        of_kind.map(|entry| u16::from_le_bytes([entry.value[3], entry.value[4]])).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_the_build_before_said_of_snapshots_stands_under_keys_once() {
        let folder = tempfile::tempdir().unwrap();
        left_behind(folder.path());

        let log = open(folder.path());
        let taken = log.newest(Topic::Snapshots).await.unwrap();

        for partition in 0..PARTITIONS as u8 {
            assert_eq!(minutes(&taken, b'S', partition), [0, 60, 120, 180, 240, 297, 298, 299], "{partition}");
        }
        assert_eq!(minutes(&taken, b'L', 0), [0, 60, 120, 180, 240, 294, 296, 298]);
        let new = Append { topic: Topic::Snapshots, partition: PartitionId(0), key: "k".into(), value: "WS3".into() };
        log.append(&[new]).await.into_offsets().unwrap();
        drop(log);

        let again = open(folder.path()).newest(Topic::Snapshots).await.unwrap();
        assert_eq!(again[..taken.len()], taken);
        assert_eq!(again.len(), taken.len() + 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_old_notice_goes_by_its_key() {
        let folder = tempfile::tempdir().unwrap();
        left_behind(folder.path());
        let log = open(folder.path());
        let taken = log.newest(Topic::Snapshots).await.unwrap();

        let gone = |entry: &StoredEntry| Append {
            topic: Topic::Snapshots,
            partition: PartitionId(0),
            key: entry.key.clone(),
            value: bytes::Bytes::new(),
        };
        log.append(&taken[1..].iter().map(gone).collect::<Vec<_>>()).await.into_offsets().unwrap();

        assert_eq!(log.newest(Topic::Snapshots).await.unwrap(), taken[..1]);
    }
}
