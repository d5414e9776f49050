//! One SQLite file behind threads of its own, for the embedded ledger, registry and history: no call of SQLite's ever
//! runs on a runtime's thread.
//!
//! Writes that wait while one transaction is being synced are put into the next one together: a sync costs far more
//! than a write, so ten callers at once pay for one. Each write stands in a savepoint of its own, so that one that is
//! refused takes none of its neighbours with it, and nobody is answered before the whole is durable.
//!
//! **Invariant:** a write answered `Ok` survives kill −9 and power cut (WAL with `synchronous=FULL`); reads see
//! committed writes only, each read one state of the file.
//!
//! A database with a `Guard` belongs to an installation: what a start finds in it is checked byte by byte (`pages`) and
//! against what the other stores know of it (`crate::installation`). See docs/decisions/0008-stores-that-belong-together.md.

mod guard;
mod pages;

use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, warn};

pub use self::guard::{Guard, remake_sums, survey, survey_without_sums, survey_without_wal};
pub(crate) use self::guard::{Suspects, check_integrity, copy_without, remove_copy, suspects};
use self::pages::PageSums;
pub use self::pages::{sums_path, wal_path};
use crate::file_identity::FileIdentity;

/// What a file holds: an id that tells it from every other SQLite file, and the steps that bring it from empty, or
/// from any older version, to the newest. Version n has the first n steps applied.
#[derive(Clone, Copy)]
pub(crate) struct Schema {
    pub name: &'static str,
    pub application_id: i32,
    pub steps: &'static [&'static str],
}

/// Why SQLite did not do it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Fault {
    /// It may do it later: busy, disk full, not to be read or written at this time.
    #[error("the database cannot be reached: {0}")]
    Unavailable(String),
    #[error("the database is damaged: {0}")]
    Damaged(String),
    /// What was to be written breaks a rule of its table: that says nothing of the file.
    #[error("the database does not take it: {0}")]
    Refused(String),
}

/// An error that may say that the database is damaged: the process must not go on as if nothing were.
pub(crate) trait Faulty: From<Fault> {
    fn damage(&self) -> Option<&str>;
}

impl Faulty for Fault {
    fn damage(&self) -> Option<&str> {
        match self {
            Fault::Damaged(reason) => Some(reason),
            Fault::Unavailable(_) | Fault::Refused(_) => None,
        }
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        let is_transient = matches!(
            error.sqlite_error_code(),
            Some(
                ErrorCode::DatabaseBusy
                    | ErrorCode::DatabaseLocked
                    | ErrorCode::OutOfMemory
                    | ErrorCode::ReadOnly
                    | ErrorCode::SystemIoFailure
                    | ErrorCode::DiskFull
                    | ErrorCode::CannotOpen
                    | ErrorCode::OperationInterrupted
            )
        );
        let is_of_request =
            matches!(error.sqlite_error_code(), Some(ErrorCode::ConstraintViolation | ErrorCode::TooBig));
        match error.to_string() {
            reason if is_transient => Fault::Unavailable(reason),
            reason if is_of_request => Fault::Refused(reason),
            reason => Fault::Damaged(reason),
        }
    }
}

/// Lets a seam's error take SQLite's faults by `?`. The error needs the variants `Unavailable` and `Damaged`, and says
/// which one a request gets whose row breaks a rule of its table.
macro_rules! from_sqlite {
    ($error:ty, $refused:ident) => {
        impl From<crate::sqlite::Fault> for $error {
            fn from(fault: crate::sqlite::Fault) -> Self {
                match fault {
                    crate::sqlite::Fault::Unavailable(reason) => Self::Unavailable { reason },
                    crate::sqlite::Fault::Damaged(reason) => Self::Damaged { reason },
                    crate::sqlite::Fault::Refused(reason) => Self::$refused { reason },
                }
            }
        }

        impl crate::sqlite::Faulty for $error {
            fn damage(&self) -> Option<&str> {
                if let Self::Damaged { reason } = self { Some(reason) } else { None }
            }
        }

        impl From<rusqlite::Error> for $error {
            fn from(error: rusqlite::Error) -> Self {
                crate::sqlite::Fault::from(error).into()
            }
        }
    };
}
pub(crate) use from_sqlite;

/// Runs on the writer's thread, with the transaction or why there is none; what it returns tells the caller, once it
/// is known whether the transaction stands.
type Write = Box<dyn FnOnce(Result<&Connection, Fault>) -> Tell + Send>;
type Tell = Box<dyn FnOnce(Result<(), Fault>) + Send>;
type Read = Box<dyn FnOnce(&Connection) + Send>;

/// One SQLite file. Dropping it finishes what was begun and closes the file.
pub(crate) struct Sqlite {
    writes: Option<mpsc::Sender<Write>>,
    reads: Option<mpsc::Sender<Read>>,
    threads: Vec<JoinHandle<()>>,
    damage: Arc<OnceLock<String>>,
    wal: Arc<WalOrder>,
}

/// Asks the writer to empty the write-ahead log; what came of it.
#[derive(Default)]
struct WalOrder {
    is_wanted: AtomicBool,
    outcome: Mutex<Option<Result<(), Fault>>>,
}

impl Sqlite {
    /// Opens or makes the file and brings it to the newest version. Blocks. `on_commit` is called after every commit,
    /// on the writer's thread, before its callers are answered. `cache_bytes` are shared by all its connections.
    pub(crate) fn open(
        path: &Path,
        schema: Schema,
        cache_bytes: u64,
        on_commit: impl Fn() + Send + 'static,
    ) -> Result<Self, Fault> {
        Self::open_any(path, schema, None, cache_bytes, on_commit)
    }

    /// The same, as a part of an installation if it is handed a guard.
    pub(crate) fn open_guarded(
        path: &Path,
        schema: Schema,
        guard: Option<Guard>,
        on_commit: impl Fn() + Send + 'static,
    ) -> Result<Self, Fault> {
        let cache_bytes = guard.as_ref().map_or(CACHE_BYTES, |guard| guard.cache_bytes);
        Self::open_any(path, schema, guard, cache_bytes, on_commit)
    }

    fn open_any(
        path: &Path,
        schema: Schema,
        guard: Option<Guard>,
        cache_bytes: u64,
        on_commit: impl Fn() + Send + 'static,
    ) -> Result<Self, Fault> {
        create_file(path).map_err(|error| Fault::Unavailable(format!("{}: {error}", path.display())))?;
        let mut connection = connect(path, cache_bytes)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        migrate(&mut connection, path, schema)?;
        let damage = Arc::new(OnceLock::new());
        let guarded = guard.map(|guard| begin_guarded(&connection, path, guard)).transpose()?;
        let of_wal = FileIdentity::of(&pages::wal_path(path));
        let others = [path.to_path_buf(), pages::sums_path(path)];
        let writer = Writer {
            connection,
            path: path.to_path_buf(),
            files: others.iter().filter_map(|path| FileIdentity::of(path)).collect(),
            of_wal,
            guarded,
            are_sums_due: Cell::new(false),
            wal: Arc::default(),
            on_commit: Box::new(on_commit),
        };
        let wal = writer.wal.clone();

        let (writes, writes_taken) = mpsc::channel(QUEUE_MAX);
        let (reads, reads_taken) = mpsc::channel(QUEUE_MAX);
        let reads_taken = Arc::new(Mutex::new(reads_taken));
        let mut threads = Vec::with_capacity(1 + READER_COUNT);
        threads.push(spawn(schema.name, move || writer.write_until_closed(writes_taken))?);
        for _ in 0..READER_COUNT {
            let reader = connect(path, cache_bytes)?;
            reader.pragma_update(None, "query_only", true)?;
            // SQLite opens the write-ahead log with the first reading: it must be the writer's.
            reader.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
            let reads_taken = reads_taken.clone();
            threads.push(spawn(schema.name, move || read_until_closed(&reader, &reads_taken))?);
        }
        Ok(Sqlite { writes: Some(writes), reads: Some(reads), threads, damage, wal })
    }

    /// Why this database must not be relied on any more, once anything has shown it.
    pub(crate) fn damage(&self) -> Option<String> {
        self.damage.get().cloned()
    }

    fn note_damage<T, E: Faulty>(&self, outcome: Result<T, E>) -> Result<T, E> {
        if let Err(error) = &outcome
            && let Some(reason) = error.damage()
        {
            let _first_reason_stays = self.damage.set(reason.to_string());
        }
        outcome
    }

    /// Runs `work` in a transaction and answers once it is durable. `Err` takes back what it wrote.
    pub(crate) async fn write<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: Faulty + Send + 'static,
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    {
        let (tell, told) = oneshot::channel();
        let write = write_of(work, move |outcome| drop(tell.send(outcome)));
        let writes = self.writes.as_ref().expect("only dropping takes the sender away");
        let sent = writes.send(write).await.map_err(|_| ended());
        self.note_damage(sent)?;
        let outcome = told.await.unwrap_or_else(|_| Err(ended().into()));
        self.note_damage(outcome)
    }

    /// The same, for a thread that may wait.
    pub(crate) fn write_blocking<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Fault> + Send + 'static,
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    {
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let write = write_of(work, move |outcome| drop(tell.send(outcome)));
        send_blocking(self.writes.as_ref().expect("only dropping takes the sender away"), write)?;
        told.recv().map_err(|_| ended())?
    }

    /// Copies the write-ahead log to the file and empties it, as far as no reader needs it, so that nothing that was
    /// deleted stands there any more. Blocks.
    pub(crate) fn empty_wal_blocking(&self) -> Result<(), Fault> {
        self.wal.is_wanted.store(true, Ordering::SeqCst);
        // The writer does it between two groups of writes: when the second one is answered, it was done after the first.
        for _ in 0..2 {
            self.write_blocking(|_| Ok::<(), Fault>(()))?;
        }
        self.wal.outcome.lock().take().unwrap_or(Ok(()))
    }

    /// Runs `work` on one committed state of the file.
    pub(crate) async fn read<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: Faulty + Send + 'static,
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    {
        let (tell, told) = oneshot::channel();
        let read = read_of(work, move |outcome| drop(tell.send(outcome)));
        let reads = self.reads.as_ref().expect("only dropping takes the sender away");
        let sent = reads.send(read).await.map_err(|_| ended());
        self.note_damage(sent)?;
        let outcome = told.await.unwrap_or_else(|_| Err(ended().into()));
        self.note_damage(outcome)
    }

    /// The same, for a thread that may wait.
    pub(crate) fn read_blocking<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Fault> + Send + 'static,
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    {
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let read = read_of(work, move |outcome| drop(tell.send(outcome)));
        send_blocking(self.reads.as_ref().expect("only dropping takes the sender away"), read)?;
        told.recv().map_err(|_| ended())?
    }
}

/// `answer` is called on the database's thread once it is known what came of the work.
fn write_of<T, E, F>(work: F, answer: impl FnOnce(Result<T, E>) + Send + 'static) -> Write
where
    T: Send + 'static,
    E: From<Fault> + Send + 'static,
    F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
{
    Box::new(move |transaction| {
        let outcome = match transaction {
            Ok(connection) => in_savepoint(connection, work),
            Err(fault) => Err(fault.into()),
        };
        Box::new(move |committed| answer(committed.map_err(E::from).and(outcome)))
    })
}

fn read_of<T, E, F>(work: F, answer: impl FnOnce(Result<T, E>) + Send + 'static) -> Read
where
    T: Send + 'static,
    E: From<Fault> + Send + 'static,
    F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
{
    Box::new(move |connection| {
        answer(match connection.unchecked_transaction() {
            Ok(transaction) => work(&transaction),
            Err(error) => Err(Fault::from(error).into()),
        });
    })
}

/// Tokio's own way to wait refuses threads that run tasks, and a store is opened on one.
fn send_blocking<T>(queue: &mpsc::Sender<T>, mut item: T) -> Result<(), Fault> {
    loop {
        item = match queue.try_send(item) {
            Ok(()) => return Ok(()),
            Err(mpsc::error::TrySendError::Full(item)) => item,
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(ended()),
        };
        thread::sleep(Duration::from_millis(1));
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        self.writes = None;
        self.reads = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                error!("a database thread had panicked");
            }
        }
    }
}

/// Its threads only end before it does when one of them panicked: that is ours, and trying again does not help.
fn ended() -> Fault {
    Fault::Damaged("the database's thread has ended".to_string())
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Fault> {
    let builder = thread::Builder::new().name(format!("sqlite {name}"));
    builder.spawn(body).map_err(|error| Fault::Unavailable(error.to_string()))
}

/// Readable by nobody else, and in its folder for good.
fn create_file(path: &Path) -> std::io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    };
    fs::create_dir_all(&folder)?;
    OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)?;
    File::open(folder)?.sync_all()
}

fn connect(path: &Path, cache_bytes: u64) -> Result<Connection, Fault> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    // Checkpoints are the writer's alone, and none runs when a connection closes: see `pages`.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.pragma_update(None, "journal_size_limit", WAL_BYTES_MAX as i64)?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    let cache_kib = (cache_bytes / (1 + READER_COUNT as u64) / 1024).max(CACHE_KIB_MIN);
    connection.pragma_update(None, "cache_size", -i64::try_from(cache_kib).unwrap_or(i64::MAX))?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
    Ok(connection)
}

fn migrate(connection: &mut Connection, path: &Path, schema: Schema) -> Result<(), Fault> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Exclusive)?;
    let pragma = |name: &str| transaction.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let (application_id, version) = (pragma("application_id")?, pragma("user_version")?);
    let known = schema.steps.len();
    let is_empty: bool = transaction.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0))?;
    if !is_empty && application_id != schema.application_id {
        return Err(Fault::Damaged(format!("{} holds no {}", path.display(), schema.name)));
    }
    let Some(steps) = usize::try_from(version).ok().and_then(|version| schema.steps.get(version..)) else {
        let reason = format!("{} has {} version {version}, known here is {known}", path.display(), schema.name);
        return Err(Fault::Damaged(reason));
    };
    for step in steps {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "application_id", schema.application_id)?;
    transaction.pragma_update(None, "user_version", known as i64)?;
    Ok(transaction.commit()?)
}

/// Marks the file as the installation's and makes its sums, if that was not done before. The mark comes last: it lies in
/// the write-ahead log, so that a file with a mark has sums.
fn begin_guarded(connection: &Connection, path: &Path, guard: Guard) -> Result<Guarded, Fault> {
    let sums = if pages::sums_path(path).exists() {
        PageSums::open(path)?
    } else {
        checkpoint(connection, "TRUNCATE")?;
        PageSums::create(path)?
    };
    guard.begin(connection)?;
    let wal = pages::wal_path(path);
    let wal = File::open(&wal).map_err(|error| Fault::Unavailable(format!("{}: {error}", wal.display())))?;
    Ok(Guarded { guard, sums, wal })
}

/// Whether all of the write-ahead log was copied to the file.
fn checkpoint(connection: &Connection, mode: &str) -> Result<bool, Fault> {
    let sql = format!("PRAGMA wal_checkpoint({mode})");
    let columns =
        |row: &rusqlite::Row<'_>| -> rusqlite::Result<(i64, i64, i64)> { Ok((row.get(0)?, row.get(1)?, row.get(2)?)) };
    let (busy, frames, copied) = connection.query_row(&sql, [], columns)?;
    Ok(busy == 0 && frames == copied)
}

struct Guarded {
    guard: Guard,
    sums: PageSums,
    /// To read what SQLite has written to it, wherever it lies by now.
    wal: File,
}

/// The one that writes, on a thread of its own.
struct Writer {
    connection: Connection,
    path: PathBuf,
    /// The files as they were opened: another one of the same name is not this database. The write-ahead log aside.
    files: Vec<FileIdentity>,
    of_wal: Option<FileIdentity>,
    guarded: Option<Guarded>,
    /// The write-ahead log was copied to the file, and the sums of what was copied are not on disk yet: until they are,
    /// nothing is written, because the next write begins the log anew.
    are_sums_due: Cell<bool>,
    wal: Arc<WalOrder>,
    on_commit: Box<dyn Fn() + Send>,
}

impl Writer {
    fn write_until_closed(self, mut writes: mpsc::Receiver<Write>) {
        let mut group = Vec::with_capacity(GROUP_MAX);
        while writes.blocking_recv_many(&mut group, GROUP_MAX) > 0 {
            self.write_group(&mut group);
            self.bound_wal();
            if self.wal.is_wanted.swap(false, Ordering::SeqCst) {
                *self.wal.outcome.lock() = Some(self.copy_wal("TRUNCATE"));
            }
        }
        if let Err(error) = self.copy_wal_for_good() {
            warn!(%error, path = %self.path.display(), "the write-ahead log stays for the next start");
        }
    }

    fn write_group(&self, group: &mut Vec<Write>) {
        let connection = &self.connection;
        let is_ready = check(self.files.iter().chain(&self.of_wal)).and_then(|()| self.write_due_sums());
        let begun = is_ready.and_then(|()| Ok(connection.execute_batch("BEGIN IMMEDIATE")?));
        let mut tells = Vec::with_capacity(group.len());
        for write in group.drain(..) {
            tells.push(write(within(connection, &begun)));
        }
        let committed = within(connection, &begun).and_then(|connection| {
            let commit = self.guarded.as_ref().map(|guarded| guarded.guard.seal(connection)).transpose()?;
            connection.execute_batch("COMMIT")?;
            Ok(commit)
        });
        match &committed {
            Ok(commit) => {
                if let (Some(guarded), Some(commit)) = (&self.guarded, commit) {
                    guarded.guard.handle_commit(*commit);
                }
                (self.on_commit)();
            }
            Err(_) => {
                let _nothing_left_to_roll_back = connection.execute_batch("ROLLBACK");
            }
        }
        let committed = committed.map(|_| ());
        for tell in tells {
            tell(committed.clone());
        }
    }

    /// Keeps the write-ahead log from growing. What cannot be copied now, because somebody reads an older state, is
    /// copied after the next write.
    fn bound_wal(&self) {
        let wal_bytes = fs::metadata(pages::wal_path(&self.path)).map_or(0, |meta| meta.len());
        if wal_bytes < WAL_BYTES_MAX {
            return;
        }
        if let Err(error) = self.copy_wal("PASSIVE") {
            warn!(%error, path = %self.path.display(), "the write-ahead log could not be copied to its file yet");
        }
    }

    /// At the end. What stands in a write-ahead log that is not in its place would be missing at the next start: the file
    /// gets it now. That log is left as it is, for whoever puts it back.
    fn copy_wal_for_good(&self) -> Result<(), Fault> {
        check(&self.files)?;
        let is_wal_in_place = check(&self.of_wal).is_ok();
        self.copy_wal(if is_wal_in_place { "TRUNCATE" } else { "PASSIVE" })
    }

    fn copy_wal(&self, mode: &str) -> Result<(), Fault> {
        check(&self.files)?;
        if self.guarded.is_none() {
            return checkpoint(&self.connection, mode).map(|_| ());
        }
        // First without truncating: the log must stand until the sums of what it held are on disk.
        if checkpoint(&self.connection, "PASSIVE")? {
            self.are_sums_due.set(true);
            self.write_due_sums()?;
            if mode != "PASSIVE" {
                checkpoint(&self.connection, mode)?;
            }
        }
        Ok(())
    }

    fn write_due_sums(&self) -> Result<(), Fault> {
        if let (true, Some(Guarded { sums, wal, .. })) = (self.are_sums_due.get(), &self.guarded) {
            sums.update(wal)?;
            self.are_sums_due.set(false);
        }
        Ok(())
    }
}

/// What is written to a file that nobody finds any more is lost at the next start: it must not be acknowledged.
fn check<'a>(files: impl IntoIterator<Item = &'a FileIdentity>) -> Result<(), Fault> {
    match files.into_iter().find(|file| !file.is_in_place()) {
        Some(file) => {
            Err(Fault::Damaged(format!("{} was removed or replaced while it was open", file.path().display())))
        }
        None => Ok(()),
    }
}

/// The connection while its transaction stands. SQLite takes a whole transaction back by itself when, say, the disk is
/// full; whatever ran on after that would commit alone.
fn within<'a>(connection: &'a Connection, begun: &Result<(), Fault>) -> Result<&'a Connection, Fault> {
    begun.clone()?;
    if connection.is_autocommit() {
        return Err(Fault::Unavailable("the transaction was taken back".to_string()));
    }
    Ok(connection)
}

fn in_savepoint<T, E: From<Fault>>(
    connection: &Connection,
    work: impl FnOnce(&Connection) -> Result<T, E>,
) -> Result<T, E> {
    connection.execute_batch("SAVEPOINT caller").map_err(Fault::from)?;
    let outcome = work(connection);
    let end = if outcome.is_ok() { "RELEASE caller" } else { "ROLLBACK TO caller; RELEASE caller" };
    if let Err(error) = connection.execute_batch(end)
        && outcome.is_ok()
    {
        return Err(Fault::from(error).into());
    }
    outcome
}

fn read_until_closed(connection: &Connection, reads: &Mutex<mpsc::Receiver<Read>>) {
    loop {
        let next = reads.lock().blocking_recv();
        let Some(read) = next else { return };
        read(connection);
    }
}

/// How many callers may wait for each of the writer and the readers before the next has to wait outside.
const QUEUE_MAX: usize = 1024;
/// How many writes share a transaction at most: a bound on how long the first of them waits.
const GROUP_MAX: usize = 256;
/// One long reading of history must not hold up a look-up.
const READER_COUNT: usize = 2;
/// Only another process can hold the file's lock that long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// From then on the write-ahead log is copied to its file and begun anew: a page that changes many times before is copied
/// once, and no file of a database is longer for good than by this and one group of writes.
const WAL_BYTES_MAX: u64 = 4 << 20;
/// Over all connections of a database, taken only as it is needed.
pub(crate) const CACHE_BYTES: u64 = 24 << 20;
/// What one connection needs to hold the pages of a transaction.
const CACHE_KIB_MIN: u64 = 512;
const STATEMENTS_KEPT: usize = 64;

#[cfg(test)]
mod tests;
