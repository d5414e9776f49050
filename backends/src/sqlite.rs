//! One SQLite file behind threads of its own, for the embedded ledger, registry and history: no call of SQLite's ever
//! runs on a runtime's thread.
//!
//! Writes that wait while one transaction is being synced are put into the next one together: a sync costs far more
//! than a write, so ten callers at once pay for one. Each write stands in a savepoint of its own, so that one that is
//! refused takes none of its neighbours with it, and nobody is answered before the whole is durable.
//!
//! **Invariant:** a write answered `Ok` survives kill −9 and power cut (WAL with `synchronous=FULL`); reads see
//! committed writes only, each read one state of the file.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};
use tracing::error;

/// What a file holds: an id that tells it from every other SQLite file, and the steps that bring it from empty, or
/// from any older version, to the newest. Version n has the first n steps applied.
#[derive(Clone, Copy)]
pub(crate) struct Schema {
    pub name: &'static str,
    pub application_id: i32,
    pub steps: &'static [&'static str],
}

/// Why SQLite did not do it.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// It may do it later: busy, disk full, not to be read or written at this time.
    Unavailable(String),
    Damaged(String),
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
        if is_transient { Fault::Unavailable(error.to_string()) } else { Fault::Damaged(error.to_string()) }
    }
}

/// Lets a seam's error take SQLite's faults by `?`. The error needs the variants `Unavailable` and `Damaged`.
macro_rules! from_sqlite {
    ($error:ty) => {
        impl From<crate::sqlite::Fault> for $error {
            fn from(fault: crate::sqlite::Fault) -> Self {
                match fault {
                    crate::sqlite::Fault::Unavailable(reason) => Self::Unavailable { reason },
                    crate::sqlite::Fault::Damaged(reason) => Self::Damaged { reason },
                }
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
}

impl Sqlite {
    /// Opens or makes the file and brings it to the newest version. Blocks. `on_commit` is called after every commit,
    /// on the writer's thread, before its callers are answered.
    pub(crate) fn open(path: &Path, schema: Schema, on_commit: impl Fn() + Send + 'static) -> Result<Self, Fault> {
        create_file(path).map_err(|error| Fault::Unavailable(format!("{}: {error}", path.display())))?;
        let mut writer = connect(path)?;
        writer.pragma_update(None, "journal_mode", "WAL")?;
        migrate(&mut writer, path, schema)?;

        let (writes, writes_taken) = mpsc::channel(QUEUE_MAX);
        let (reads, reads_taken) = mpsc::channel(QUEUE_MAX);
        let reads_taken = Arc::new(Mutex::new(reads_taken));
        let mut threads = Vec::with_capacity(1 + READER_COUNT);
        threads.push(spawn(schema.name, move || write_until_closed(&writer, writes_taken, &on_commit))?);
        for _ in 0..READER_COUNT {
            let reader = connect(path)?;
            reader.pragma_update(None, "query_only", true)?;
            let reads_taken = reads_taken.clone();
            threads.push(spawn(schema.name, move || read_until_closed(&reader, &reads_taken))?);
        }
        Ok(Sqlite { writes: Some(writes), reads: Some(reads), threads })
    }

    /// Runs `work` in a transaction and answers once it is durable. `Err` takes back what it wrote.
    pub(crate) async fn write<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Fault> + Send + 'static,
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    {
        let (tell, told) = oneshot::channel();
        let write = write_of(work, move |outcome| drop(tell.send(outcome)));
        let writes = self.writes.as_ref().expect("only dropping takes the sender away");
        writes.send(write).await.map_err(|_| ended())?;
        told.await.map_err(|_| ended())?
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

    /// Runs `work` on one committed state of the file.
    pub(crate) async fn read<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Fault> + Send + 'static,
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    {
        let (tell, told) = oneshot::channel();
        let read = read_of(work, move |outcome| drop(tell.send(outcome)));
        let reads = self.reads.as_ref().expect("only dropping takes the sender away");
        reads.send(read).await.map_err(|_| ended())?;
        told.await.map_err(|_| ended())?
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

fn connect(path: &Path) -> Result<Connection, Fault> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "journal_size_limit", WAL_BYTES_KEPT)?;
    connection.pragma_update(None, "wal_autocheckpoint", WAL_PAGES_MAX)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
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

fn write_until_closed(connection: &Connection, mut writes: mpsc::Receiver<Write>, on_commit: &dyn Fn()) {
    let mut group = Vec::with_capacity(GROUP_MAX);
    while writes.blocking_recv_many(&mut group, GROUP_MAX) > 0 {
        write_group(connection, &mut group, on_commit);
    }
}

fn write_group(connection: &Connection, group: &mut Vec<Write>, on_commit: &dyn Fn()) {
    let begun = connection.execute_batch("BEGIN IMMEDIATE").map_err(Fault::from);
    let mut tells = Vec::with_capacity(group.len());
    for write in group.drain(..) {
        tells.push(write(within(connection, &begun)));
    }
    let committed = match within(connection, &begun) {
        Ok(connection) => connection.execute_batch("COMMIT").map_err(Fault::from),
        Err(fault) => Err(fault),
    };
    match &committed {
        Ok(()) => on_commit(),
        Err(_) => {
            let _nothing_left_to_roll_back = connection.execute_batch("ROLLBACK");
        }
    }
    for tell in tells {
        tell(committed.clone());
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
const WAL_BYTES_KEPT: i64 = 64 << 20;
/// A page that changes many times before the checkpoint is written back once: 32 MiB of pages of 4 KiB.
const WAL_PAGES_MAX: i64 = 8192;
/// For each connection, taken only as it is needed: the pages that a batch of history changes.
const CACHE_KIB: i64 = 32 << 10;
const STATEMENTS_KEPT: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: Schema = Schema {
        name: "numbers",
        application_id: 7,
        steps: &["CREATE TABLE numbers (number INTEGER PRIMARY KEY) STRICT;"],
    };

    const NEWER_SCHEMA: Schema = Schema {
        steps: &[SCHEMA.steps[0], "ALTER TABLE numbers ADD COLUMN name TEXT NOT NULL DEFAULT 'one';"],
        ..SCHEMA
    };

    fn open(path: &Path, schema: Schema) -> Result<Sqlite, Fault> {
        Sqlite::open(path, schema, || ())
    }

    fn insert(connection: &Connection, number: i64) -> Result<(), Fault> {
        connection.execute("INSERT INTO numbers VALUES (?1)", [number])?;
        Ok(())
    }

    async fn count(db: &Sqlite) -> i64 {
        let count = |connection: &Connection| {
            Ok::<_, Fault>(connection.query_row("SELECT count(*) FROM numbers", [], |row| row.get(0))?)
        };
        db.read(count).await.unwrap()
    }

    #[tokio::test]
    async fn a_refused_write_takes_nothing_of_its_neighbours_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let db = Arc::new(open(&folder.path().join("numbers.db"), SCHEMA).unwrap());

        let writes: Vec<_> = (0..100i64)
            .map(|number| {
                let db = db.clone();
                tokio::spawn(async move {
                    db.write(move |connection| {
                        insert(connection, number)?;
                        if number % 2 == 1 { insert(connection, number) } else { Ok(()) }
                    })
                    .await
                    .is_ok()
                })
            })
            .collect();
        let mut stood = 0;
        for write in writes {
            stood += i64::from(write.await.unwrap());
        }

        assert_eq!((stood, count(&db).await), (50, 50));
    }

    #[tokio::test]
    async fn a_transaction_that_sqlite_took_back_is_told_to_all_who_wrote_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let db = open(&folder.path().join("numbers.db"), SCHEMA).unwrap();
        let fill = |first: i64| {
            move |connection: &Connection| {
                for number in first..first + 100_000 {
                    insert(connection, number)?;
                }
                Ok::<(), Fault>(())
            }
        };
        db.write(|connection| Ok::<_, Fault>(connection.pragma_update(None, "max_page_count", 20)?)).await.unwrap();

        let (small, large, after) =
            tokio::join!(db.write(|c| insert(c, -1)), db.write(fill(0)), db.write(|c| insert(c, -2)));

        let Err(Fault::Unavailable(_)) = large else { panic!("20 pages hold no 100,000 rows: {large:?}") };
        assert_eq!(count(&db).await, i64::from(small.is_ok()) + i64::from(after.is_ok()));
    }

    #[tokio::test]
    async fn what_is_not_ours_or_from_a_later_version_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("numbers.db");
        let db = open(&path, SCHEMA).unwrap();
        db.write(|connection| insert(connection, 1)).await.unwrap();
        drop(db);

        let other = open(&path, Schema { application_id: 8, name: "letters", ..SCHEMA }).err();
        let older = open(&path, Schema { steps: &[], ..SCHEMA }).err();
        std::fs::write(folder.path().join("text.db"), "this is not a database, whatever its name says".repeat(100))
            .unwrap();
        let text = open(&folder.path().join("text.db"), SCHEMA).err();

        for fault in [other, older, text] {
            assert!(matches!(fault, Some(Fault::Damaged(_))), "{fault:?}");
        }
        assert_eq!(count(&open(&path, SCHEMA).unwrap()).await, 1);
    }

    #[tokio::test]
    async fn an_older_file_is_brought_to_the_newest_version_with_what_it_holds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("numbers.db");
        let db = open(&path, SCHEMA).unwrap();
        db.write(|connection| insert(connection, 1)).await.unwrap();
        drop(db);

        let db = open(&path, NEWER_SCHEMA).unwrap();

        let name = db
            .read(|connection| {
                Ok::<String, Fault>(connection.query_row("SELECT name FROM numbers", [], |row| row.get(0))?)
            })
            .await;
        assert_eq!(name.unwrap(), "one");
    }

    #[tokio::test]
    async fn a_broken_rule_of_ours_ends_in_an_error_and_not_in_a_caller_that_waits_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let db = open(&folder.path().join("numbers.db"), SCHEMA).unwrap();

        let broken = db.write(|_| -> Result<(), Fault> { panic!("broken") }).await;
        let after = db.write(|connection| insert(connection, 1)).await;

        assert!(matches!(broken, Err(Fault::Damaged(_))));
        assert!(matches!(after, Err(Fault::Damaged(_))));
    }
}
