//! The files: a fjall database opened, written in synced batches and read by range. Everything here blocks; the writer
//! thread and blocking tasks call it.
//!
//! **Invariant:** `write` returns only when the batch is on disk. Its two steps are told apart, because a write that
//! failed can be repeated after opening again, but after a failed sync nobody knows what is on disk.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fjall::{AbstractTree, Database, Keyspace, OwnedWriteBatch, PersistMode, Slice};
use parking_lot::Mutex;
use protocol::{Offset, Time};
use tracing::warn;

use super::journal::{self, JournalError};
use super::layout::{self, Layout, Slot};
use super::place::Place;
use super::{tables, takeover};
use crate::installation::{Commit, Store as InstalledStore, Witnesses};
use crate::log::{LogError, ReadLimit, StoredEntry};

/// What a test may do between the steps of a write.
pub trait WriteProbe: Send + Sync + 'static {
    /// The batch is about to be written.
    fn before_write(&self) -> std::io::Result<()> {
        Ok(())
    }
    /// The batch is written, and would be lost by a crash of the machine.
    fn before_sync(&self) -> std::io::Result<()> {
        Ok(())
    }
    /// The batch is on disk, and nobody has been told.
    fn after_sync(&self) {}
    /// What a start found in the journal is about to be synced, and nobody has seen it.
    fn before_sync_of_found(&self) -> std::io::Result<()> {
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("the batch could not be written: {0}")]
    Write(#[source] fjall::Error),
    #[error("the batch could not be synced: {0}")]
    Sync(#[source] fjall::Error),
    /// Nobody would find what is written there.
    #[error("{0} was removed or replaced while it was open")]
    Removed(String),
}

/// How a store is opened.
#[derive(Clone)]
pub struct StoreOptions {
    pub probe: Option<Arc<dyn WriteProbe>>,
    /// None: it belongs to no installation.
    pub place: Option<InstalledLog>,
    /// For blocks of tables; memtables are bounded apart.
    pub cache_bytes: u64,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions { probe: None, place: None, cache_bytes: CACHE_BYTES }
    }
}

/// The log's place in an installation.
#[derive(Clone)]
pub struct InstalledLog {
    pub witnesses: Arc<Witnesses>,
    /// The newest commit that anybody knows to have been acknowledged, besides the log itself.
    pub acknowledged: u64,
    /// Whether a log without an id, or of an earlier incarnation, is taken over: at a first start and in a repair.
    pub is_taken_over: bool,
    /// Whether what is damaged is gone on without, as somebody has agreed: all before it stands.
    pub is_loss_accepted: bool,
}

pub struct Store {
    database: Database,
    meta: Keyspace,
    partitions: Vec<Keyspace>,
    acknowledged: Mutex<Acknowledged>,
    number: std::sync::atomic::AtomicU64,
    in_place: Place,
    options: StoreOptions,
}

/// What a store holds in memory, and how many tables it has on disk.
#[cfg(test)]
#[derive(Clone, Copy, Default, Debug)]
pub struct StoreMemory {
    /// As the store counts them; the room that they take is up to a half more.
    pub memtables_bytes: u64,
    /// Of indexes and filters, for as long as their tables stay.
    pub pinned_bytes: u64,
    pub tables: u64,
}

/// One change of the store; all changes of a batch come true together.
pub enum Change {
    Entry { slot: Slot, offset: Offset, bytes: Vec<u8> },
    Remove { slot: Slot, offset: Offset },
    Meta { key: Vec<u8>, value: Vec<u8> },
}

impl Store {
    /// Opens what lies at `path`, or begins there.
    pub fn open(path: &Path, layout: &Layout, options: StoreOptions) -> Result<Self, LogError> {
        std::fs::create_dir_all(path).map_err(|error| unavailable(path, &error))?;
        let mut acknowledged =
            Acknowledged::open(&path.join(ACKNOWLEDGED_FILE)).map_err(|error| unavailable(path, &error))?;
        acknowledged.noted = acknowledged.noted.max(options.place.as_ref().map_or(0, |place| place.acknowledged));
        if options.place.as_ref().is_some_and(|place| place.is_loss_accepted) {
            acknowledged.noted = 0;
        }
        let (database, meta) = open_database(path, &acknowledged, &options)?;
        check_format(&meta, layout)?;
        let mut partitions = Vec::with_capacity(layout.len());
        for (_, topic, partition) in layout.slots() {
            let name = layout::keyspace_name(topic, partition);
            let keyspace = database.keyspace(&name, tables::partition_options);
            partitions.push(keyspace.map_err(|error| open_error(path, error))?);
        }
        let number = read_u64(&meta, layout::COMMIT_NUMBER_KEY)?.unwrap_or(0);
        let in_place = Place::of(path, &path.join(DATABASE_FOLDER)).map_err(|error| unavailable(path, &error))?;
        let acknowledged = Mutex::new(acknowledged);
        let store = Store { database, meta, partitions, acknowledged, number: number.into(), in_place, options };
        store.begin(layout)?;
        store.take_place()?;
        takeover::take_over_snapshots(&store, layout)?;
        Ok(store)
    }

    /// What is gone of the files that are written to, if anything is.
    pub fn gone(&self) -> Option<PathBuf> {
        self.in_place.gone_of(|| self.database.journal_count())
    }

    pub(super) fn database(&self) -> &Database {
        &self.database
    }

    /// Records at creation what must never change after it.
    fn begin(&self, layout: &Layout) -> Result<(), LogError> {
        if self.meta.get(layout::FORMAT_KEY).map_err(|error| read_error(&error))?.is_some() {
            return Ok(());
        }
        let word = |key: &[u8], value: u32| Change::Meta { key: key.to_vec(), value: value.to_be_bytes().to_vec() };
        let changes = vec![
            word(layout::FORMAT_KEY, layout::FORMAT),
            word(layout::PARTITIONS_KEY, layout.partition_count(crate::log::Topic::Records)),
            word(layout::INCARNATION_KEY, 1),
        ];
        self.write(changes).map_err(|error| LogError::Unavailable { reason: error.to_string() })
    }

    /// Checks that it belongs to the installation that it is opened for, or makes it belong there.
    fn take_place(&self) -> Result<(), LogError> {
        let Some(place) = &self.options.place else { return Ok(()) };
        let installation = place.witnesses.installation();
        let id = self.meta.get(layout::INSTALLATION_KEY).map_err(|error| read_error(&error))?;
        let is_here = id.as_ref().is_some_and(|id| id.as_ref() == installation.id.0);
        let incarnation = self.incarnation()?;
        if is_here && incarnation == installation.incarnation {
            return Ok(());
        }
        if id.is_some() && !is_here {
            return Err(damaged("it belongs to another installation"));
        }
        if !place.is_taken_over {
            let reason = format!("it is of incarnation {incarnation}, and the others of {}", installation.incarnation);
            return Err(damaged(if is_here { &reason } else { "it belongs to no installation, and the others do" }));
        }
        let incarnation = installation.incarnation.max(incarnation);
        let changes = vec![
            Change::Meta { key: layout::INSTALLATION_KEY.to_vec(), value: installation.id.0.to_vec() },
            Change::Meta { key: layout::INCARNATION_KEY.to_vec(), value: incarnation.to_be_bytes().to_vec() },
        ];
        self.write(changes).map_err(|error| LogError::Unavailable { reason: error.to_string() })
    }

    /// Writes all changes and syncs them.
    pub fn write(&self, changes: Vec<Change>) -> Result<(), WriteError> {
        if let Some(gone) = self.in_place.gone() {
            return Err(WriteError::Removed(gone.display().to_string()));
        }
        self.wait_for_flushes(&changes).map_err(WriteError::Write)?;
        let number = self.number.load(std::sync::atomic::Ordering::Relaxed) + 1;
        let mut batch = OwnedWriteBatch::with_capacity(self.database.clone(), changes.len() + 1)
            .durability(Some(PersistMode::Buffer));
        for change in changes {
            match change {
                Change::Entry { slot, offset, bytes } => {
                    batch.insert(&self.partitions[slot.0], layout::offset_key(offset), bytes);
                }
                Change::Remove { slot, offset } => batch.remove(&self.partitions[slot.0], layout::offset_key(offset)),
                Change::Meta { key, value } => batch.insert(&self.meta, key, value),
            }
        }
        batch.insert(&self.meta, layout::COMMIT_NUMBER_KEY, number.to_be_bytes());
        self.probe(|probe| probe.before_write()).map_err(WriteError::Write)?;
        batch.commit().map_err(WriteError::Write)?;
        self.probe(|probe| probe.before_sync()).map_err(WriteError::Sync)?;
        match self.database.persist(PersistMode::SyncData) {
            Ok(()) => {}
            // A worker failed meanwhile; the journal itself has not.
            Err(error @ fjall::Error::Poisoned) => return Err(WriteError::Write(error)),
            Err(error) => return Err(WriteError::Sync(error)),
        }
        self.number.store(number, std::sync::atomic::Ordering::Relaxed);
        if let Err(error) = self.acknowledged.lock().note(number) {
            warn!(%error, "the acknowledged number was not noted, damage to the journal would be noticed less surely");
        }
        if let Some(place) = &self.options.place {
            place.witnesses.handle_commit(InstalledStore::Log, Commit { sequence: number, mark: 0 });
        }
        if let Some(probe) = &self.options.probe {
            probe.after_sync();
        }
        Ok(())
    }

    /// Waits while memtables queue to be flushed. fjall waits by itself from four on, but for ever if its workers died
    /// of a full disk meanwhile; here their death ends the wait.
    fn wait_for_flushes(&self, changes: &[Change]) -> Result<(), fjall::Error> {
        let mut slots: Vec<usize> = changes
            .iter()
            .filter_map(|change| match change {
                Change::Entry { slot, .. } | Change::Remove { slot, .. } => Some(slot.0),
                Change::Meta { .. } => None,
            })
            .collect();
        slots.sort_unstable();
        slots.dedup();
        for slot in slots {
            while self.partitions[slot].sealed_memtable_count() >= SEALED_MEMTABLES_MAX {
                self.database.persist(PersistMode::Buffer)?;
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(())
    }

    fn probe(&self, step: impl Fn(&dyn WriteProbe) -> std::io::Result<()>) -> Result<(), fjall::Error> {
        match &self.options.probe {
            Some(probe) => step(probe.as_ref()).map_err(fjall::Error::Io),
            None => Ok(()),
        }
    }

    /// Entries from `from` to before `until`.
    pub fn read(
        &self,
        slot: Slot,
        from: Offset,
        until: Offset,
        limit: ReadLimit,
    ) -> Result<Vec<StoredEntry>, LogError> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        for item in self.partitions[slot.0].range(layout::offset_key(from)..layout::offset_key(until)) {
            let (key, value) = item.into_inner().map_err(|error| read_error(&error))?;
            let entry = layout::offset_of(&key)
                .and_then(|offset| layout::decode_entry(offset, &value))
                .ok_or_else(|| damaged("an entry does not decode"))?;
            bytes += entry.key.len() + entry.value.len();
            let is_over = bytes > limit.bytes_max && !entries.is_empty();
            if is_over {
                break;
            }
            entries.push(entry);
            if entries.len() >= limit.entries_max {
                break;
            }
        }
        Ok(entries)
    }

    /// The first entry of `from` to before `until` that was appended at or after `at`; `until` if there is none.
    ///
    /// **Invariant:** times never go back within a partition, so that halving finds it.
    pub fn offset_at(&self, slot: Slot, from: Offset, until: Offset, at: Time) -> Result<Offset, LogError> {
        let (mut low, mut high, mut found) = (from.0, until.0, until.0);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.first_of(slot, Offset(middle), Offset(high))? {
                None => high = middle,
                Some((offset, appended)) if appended < at => low = offset.0 + 1,
                Some((offset, _)) => (high, found) = (middle, offset.0),
            }
        }
        Ok(Offset(found))
    }

    fn first_of(&self, slot: Slot, from: Offset, until: Offset) -> Result<Option<(Offset, Time)>, LogError> {
        let mut range = self.partitions[slot.0].range(layout::offset_key(from)..layout::offset_key(until));
        range.next().map(|item| offset_and_time(item.into_inner())).transpose()
    }

    /// The newest entry's offset and time.
    pub fn last(&self, slot: Slot) -> Result<Option<(Offset, Time)>, LogError> {
        self.partitions[slot.0].last_key_value().map(|item| offset_and_time(item.into_inner())).transpose()
    }

    /// Gives the space of entries before `before` back, as far as they fill whole tables.
    pub fn drop_before(&self, slot: Slot, before: Offset) -> Result<(), LogError> {
        let tree = &self.partitions[slot.0].tree;
        tree.drop_range(..layout::offset_key(before)).map_err(|error| read_error(&fjall::Error::from(error)))
    }

    /// Flushes memtables until no more than this waits in memory, and would be replayed at the next start.
    pub fn bound_memory(&self, memtables_bytes_max: u64) -> Result<(), LogError> {
        let bounded = tables::bound_memory(&self.database, &self.meta, &self.partitions, memtables_bytes_max);
        bounded.map_err(|error| read_error(&error))
    }

    #[cfg(test)]
    pub fn memory(&self) -> StoreMemory {
        let keyspaces = || self.partitions.iter().chain([&self.meta]);
        StoreMemory {
            memtables_bytes: self.database.write_buffer_size(),
            pinned_bytes: keyspaces()
                .map(|keyspace| keyspace.tree.pinned_filter_size() + keyspace.tree.pinned_block_index_size())
                .sum::<usize>() as u64,
            tables: keyspaces().map(Keyspace::table_count).sum::<usize>() as u64,
        }
    }

    pub fn meta(&self, key: &[u8]) -> Result<Option<u64>, LogError> {
        read_u64(&self.meta, key)
    }

    pub fn incarnation(&self) -> Result<u32, LogError> {
        read_u32(&self.meta, layout::INCARNATION_KEY)?.ok_or_else(|| damaged("the incarnation is not recorded"))
    }

    /// All committed offsets, by their key.
    pub fn commits(&self) -> Result<Vec<(Vec<u8>, Offset)>, LogError> {
        let mut commits = Vec::new();
        for item in self.meta.prefix(layout::COMMIT_PREFIX) {
            let (key, value) = item.into_inner().map_err(|error| read_error(&error))?;
            let offset = layout::offset_of(&value).ok_or_else(|| damaged("a committed offset does not decode"))?;
            commits.push((key.to_vec(), offset));
        }
        Ok(commits)
    }
}

fn offset_and_time(pair: fjall::Result<(Slice, Slice)>) -> Result<(Offset, Time), LogError> {
    let (key, value) = pair.map_err(|error| read_error(&error))?;
    let (Some(offset), Some(time)) = (layout::offset_of(&key), layout::appended_of(&value)) else {
        return Err(damaged("an entry does not decode"));
    };
    Ok((offset, time))
}

fn check_format(meta: &Keyspace, layout: &Layout) -> Result<(), LogError> {
    let Some(format) = read_u32(meta, layout::FORMAT_KEY)? else {
        return Ok(());
    };
    if format != layout::FORMAT {
        return Err(damaged(&format!("format {format} is not known here, only {}", layout::FORMAT)));
    }
    let expected = read_u32(meta, layout::PARTITIONS_KEY)?.ok_or_else(|| damaged("the partition count is missing"))?;
    let topic = crate::log::Topic::Records;
    let found = layout.partition_count(topic);
    if expected != found {
        return Err(LogError::PartitionCount { topic: topic.name(), expected, found });
    }
    Ok(())
}

fn read_u32(meta: &Keyspace, key: &[u8]) -> Result<Option<u32>, LogError> {
    let Some(value) = meta.get(key).map_err(|error| read_error(&error))? else {
        return Ok(None);
    };
    let bytes = value.as_ref().try_into().map_err(|_| damaged("a number does not decode"))?;
    Ok(Some(u32::from_be_bytes(bytes)))
}

fn read_u64(meta: &Keyspace, key: &[u8]) -> Result<Option<u64>, LogError> {
    let Some(value) = meta.get(key).map_err(|error| read_error(&error))? else {
        return Ok(None);
    };
    let bytes = value.as_ref().try_into().map_err(|_| damaged("a number does not decode"))?;
    Ok(Some(u64::from_be_bytes(bytes)))
}

/// The number of the last commit that anybody was told of, in a file of its own, so that a journal that was cut or
/// damaged since is noticed. It is not synced: an older number notices less and never accuses wrongly.
struct Acknowledged {
    file: File,
    noted: u64,
}

impl Acknowledged {
    fn open(path: &Path) -> std::io::Result<Self> {
        let mut file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut bytes = Vec::new();
        (&file).take(ACKNOWLEDGED_BYTES).read_to_end(&mut bytes)?;
        let halves = bytes.split_first_chunk::<8>().and_then(|(number, check)| Some((*number, check.try_into().ok()?)));
        let noted = match halves.map(|(number, check)| (u64::from_be_bytes(number), !u64::from_be_bytes(check))) {
            Some((number, check)) if number == check => number,
            // Never written, or torn by a power cut: nothing is known.
            Some(_) | None => 0,
        };
        file.seek(SeekFrom::Start(0))?;
        Ok(Acknowledged { file, noted })
    }

    fn check(&self, recovered: u64) -> Result<(), LogError> {
        if self.noted <= recovered {
            return Ok(());
        }
        let noted = self.noted;
        Err(damaged(&format!("its journal ends at commit {recovered}, but commit {noted} was acknowledged")))
    }

    fn note(&mut self, number: u64) -> std::io::Result<()> {
        let mut bytes = [0; ACKNOWLEDGED_BYTES as usize];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        bytes[8..].copy_from_slice(&(!number).to_be_bytes());
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&bytes)?;
        self.noted = number;
        Ok(())
    }
}

/// Takes back what was noted as acknowledged, so that a journal whose end is lost is opened with what it still holds: for
/// a loss that somebody accepted.
pub fn forget_acknowledged(path: &Path) -> std::io::Result<()> {
    Acknowledged::open(&path.join(ACKNOWLEDGED_FILE))?.note(0)
}

/// The database with its keyspace beside the partitions. It holds all that was acknowledged, or is refused and left as it
/// was found.
fn open_database(
    path: &Path,
    acknowledged: &Acknowledged,
    options: &StoreOptions,
) -> Result<(Database, Keyspace), LogError> {
    let folder = path.join(DATABASE_FOLDER);
    let is_loss_accepted = options.place.as_ref().is_some_and(|place| place.is_loss_accepted);
    let lock = lock_while_inspecting(&folder).map_err(|error| open_error(path, error))?;
    journal::put_back(&folder).map_err(|error| unavailable(path, &error))?;
    let inspected = if is_loss_accepted {
        journal::inspect_for_loss(&folder)
    } else {
        journal::inspect(&folder, acknowledged.noted)
    };
    let inspected = inspected.map_err(|error| {
        let reason = error.to_string();
        if let JournalError::File(error) = error { unavailable(path, &error) } else { damaged(&reason) }
    })?;
    let probed = options.probe.as_ref().map_or(Ok(()), |probe| probe.before_sync_of_found());
    let settled = probed.and_then(|()| inspected.settle()).map_err(|error| unavailable(path, &error))?;
    drop(lock);
    let opened = begin_database(&folder, options.cache_bytes).map_err(|error| open_error(path, error));
    // The database is closed again before what was cut is put back.
    let checked = opened.and_then(|(database, meta)| {
        acknowledged.check(read_u64(&meta, layout::COMMIT_NUMBER_KEY)?.unwrap_or(0))?;
        Ok((database, meta))
    });
    let settled = if checked.is_ok() { settled.accept() } else { settled.put_back() };
    settled.map_err(|error| unavailable(path, &error))?;
    checked
}

fn begin_database(folder: &Path, cache_bytes: u64) -> Result<(Database, Keyspace), fjall::Error> {
    let database = Database::builder(folder)
        .cache_size(cache_bytes)
        .max_journaling_size(JOURNALS_BYTES_MAX)
        .max_cached_files(Some(tables::OPEN_TABLES_MAX))
        .worker_threads(WORKER_THREADS)
        .open()?;
    let meta = database.keyspace(layout::META_KEYSPACE, tables::meta_options)?;
    Ok((database, meta))
}

/// fjall's own lock, so that the journal of a log that is open is never touched.
fn lock_while_inspecting(folder: &Path) -> Result<Option<File>, fjall::Error> {
    let file = match File::options().read(true).write(true).open(folder.join(LOCK_FILE)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Err(fjall::Error::Locked),
        Err(std::fs::TryLockError::Error(error)) => Err(error.into()),
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "not our enum")]
fn open_error(path: &Path, error: fjall::Error) -> LogError {
    let path = path.display();
    match error {
        fjall::Error::Locked => {
            LogError::Unavailable { reason: format!("{path} is open already, in this process or another") }
        }
        fjall::Error::Io(error) => LogError::Unavailable { reason: format!("{path}: {error}") },
        error => LogError::Damaged { reason: format!("{path}: {error}") },
    }
}

fn unavailable(path: &Path, error: &std::io::Error) -> LogError {
    LogError::Unavailable { reason: format!("{}: {error}", path.display()) }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "not our enum")]
fn read_error(error: &fjall::Error) -> LogError {
    match error {
        fjall::Error::Io(error) => LogError::Unavailable { reason: error.to_string() },
        fjall::Error::Poisoned => LogError::Unavailable { reason: error.to_string() },
        error => damaged(&error.to_string()),
    }
}

pub fn damaged(reason: &str) -> LogError {
    LogError::Damaged { reason: reason.to_string() }
}

const DATABASE_FOLDER: &str = "entries";
/// As fjall names it.
const LOCK_FILE: &str = "lock";
const ACKNOWLEDGED_FILE: &str = "acknowledged";
const ACKNOWLEDGED_BYTES: u64 = 16;
const CACHE_BYTES: u64 = 32 << 20;
/// Journals hold what is in memtables only; beyond this the memtables that hold back the oldest journal are flushed.
const JOURNALS_BYTES_MAX: u64 = 512 << 20;
/// One for flushing and one for compaction.
const WORKER_THREADS: usize = 2;
/// fjall itself stops writers at four.
const SEALED_MEMTABLES_MAX: usize = 2;
