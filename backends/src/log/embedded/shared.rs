//! What the writer, the keeper and all readers of one log share.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use protocol::{Offset, Time};

use super::layout::{self, Layout, Slot};
use super::partition::{Partition, Standing};
use super::store::{Store, StoreOptions};
use super::writer::Cursor;
use crate::log::{LogError, ReadLimit, StoredEntry};

pub type Now = Arc<dyn Fn() -> Time + Send + Sync>;

pub struct Shared {
    pub path: PathBuf,
    pub layout: Layout,
    pub now: Now,
    pub partitions: Vec<Partition>,
    /// Committed offsets, by their key in the store.
    pub commits: Mutex<HashMap<Vec<u8>, Offset>>,
    /// Of newest-per-key topics: the newest entry of every key, those that say "gone" too.
    newest: Mutex<HashMap<Slot, BTreeMap<Bytes, StoredEntry>>>,
    /// Bytes of keys and values appended since it was opened.
    pub appended_bytes: AtomicU64,
    /// None while it is being opened again.
    store: RwLock<Option<Arc<Store>>>,
    options: StoreOptions,
}

/// What a store holds when it has been opened.
pub struct Opened {
    pub cursors: Vec<Cursor>,
    pub firsts: Vec<Offset>,
    pub superseded: Vec<(Slot, Offset)>,
    pub newest: HashMap<Slot, BTreeMap<Bytes, StoredEntry>>,
}

impl Shared {
    pub fn open(
        path: PathBuf,
        layout: Layout,
        now: Now,
        tail_bytes_max: usize,
        options: StoreOptions,
    ) -> Result<(Self, Opened, u32), LogError> {
        let store = Store::open(&path, &layout, options.clone())?;
        let incarnation = store.incarnation()?;
        let mut opened = survey(&store, &layout)?;
        let partitions = opened
            .cursors
            .iter()
            .zip(&opened.firsts)
            .map(|(cursor, first)| Partition::new(*first, cursor.next, tail_bytes_max))
            .collect();
        let commits = store.commits()?.into_iter().collect();
        let shared = Shared {
            path,
            layout,
            now,
            partitions,
            commits: Mutex::new(commits),
            newest: Mutex::new(std::mem::take(&mut opened.newest)),
            appended_bytes: AtomicU64::new(0),
            store: RwLock::new(Some(Arc::new(store))),
            options,
        };
        Ok((shared, opened, incarnation))
    }

    pub fn store(&self) -> Option<Arc<Store>> {
        self.store.read().clone()
    }

    /// Lets the files go; reads from memory still answer.
    pub fn close_store(&self) {
        let closing = self.store.write().take();
        drop(closing);
    }

    /// Closes the store and opens it as a new process would. Whoever still reads in it is waited for.
    pub fn reopen(&self) -> Result<Opened, LogError> {
        let closing = self.store.write().take();
        if let Some(closing) = closing {
            let began = Instant::now();
            while Arc::strong_count(&closing) > 1 {
                if began.elapsed() > READERS_WAIT_MAX {
                    *self.store.write() = Some(closing);
                    return Err(LogError::Unavailable { reason: "readers hold the store open".to_string() });
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        let store = Store::open(&self.path, &self.layout, self.options.clone())?;
        let mut opened = survey(&store, &self.layout)?;
        *self.newest.lock() = std::mem::take(&mut opened.newest);
        *self.commits.lock() = store.commits()?.into_iter().collect();
        for (at, partition) in self.partitions.iter().enumerate() {
            partition.reset(opened.firsts[at], opened.cursors[at].next);
        }
        *self.store.write() = Some(Arc::new(store));
        Ok(opened)
    }

    pub fn set_standing(&self, standing: Standing) {
        self.partitions.iter().for_each(|partition| partition.set_standing(standing));
    }

    /// Notes the newest entries of their keys; answers the offsets of those they replace.
    pub fn take_newest(&self, slot: Slot, entries: &[StoredEntry]) -> Vec<(Slot, Offset)> {
        let mut newest = self.newest.lock();
        let by_key = newest.entry(slot).or_default();
        let replaced = entries.iter().filter_map(|entry| by_key.insert(entry.key.clone(), entry.clone()));
        replaced.map(|entry| (slot, entry.offset)).collect()
    }

    pub fn newest(&self, slot: Slot) -> Vec<StoredEntry> {
        let newest = self.newest.lock();
        let by_key = newest.get(&slot).into_iter().flatten();
        let mut entries: Vec<_> =
            by_key.map(|(_, entry)| entry).filter(|entry| !entry.value.is_empty()).cloned().collect();
        entries.sort_by_key(|entry| entry.offset);
        entries
    }
}

fn survey(store: &Store, layout: &Layout) -> Result<Opened, LogError> {
    let mut opened = Opened {
        cursors: Vec::with_capacity(layout.len()),
        firsts: Vec::with_capacity(layout.len()),
        superseded: Vec::new(),
        newest: HashMap::new(),
    };
    for (slot, topic, partition) in layout.slots() {
        let last = store.last(slot)?;
        let next = last.map_or(Offset(0), |(offset, _)| Offset(offset.0 + 1));
        opened.cursors.push(Cursor { next, last: last.map_or(Time(i64::MIN), |(_, time)| time) });
        opened.firsts.push(Offset(store.meta(&layout::first_key(topic, partition))?.unwrap_or(0)));
        if topic.is_newest_per_key() {
            let by_key: &mut BTreeMap<Bytes, StoredEntry> = opened.newest.entry(slot).or_default();
            let all = ReadLimit { entries_max: usize::MAX, bytes_max: usize::MAX };
            for entry in store.read(slot, Offset(0), next, all)? {
                if let Some(older) = by_key.insert(entry.key.clone(), entry) {
                    opened.superseded.push((slot, older.offset));
                }
            }
        }
    }
    Ok(opened)
}

const READERS_WAIT_MAX: Duration = Duration::from_secs(5);
