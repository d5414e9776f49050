//! What ties a database to its installation: a row with the installation's id, the number of the newest commit, and what
//! the other stores had reached by then. The row changes in every transaction; the witnesses hear of it before anybody
//! is answered.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::OpenOptions;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use super::pages::{self, Checked};
use super::{BUSY_TIMEOUT, Fault};
use crate::control::secret::random_bytes;
use crate::installation::compare::Found;
use crate::installation::{Commit, Installation, InstallationId, Note, Store, Witnesses};

/// Hands a database its place in an installation.
#[derive(Clone)]
pub struct Guard {
    pub store: Store,
    pub witnesses: Arc<Witnesses>,
    /// For the pages of this database, over all its connections.
    pub cache_bytes: u64,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guard of the {}", self.store.name())
    }
}

impl Guard {
    /// Marks a database that has no mark yet, and brings an older incarnation to the present one.
    pub(super) fn begin(&self, connection: &Connection) -> Result<(), Fault> {
        let installation = self.witnesses.installation();
        connection.execute_batch(TABLE)?;
        connection
            .prepare_cached("INSERT INTO installation VALUES (1, ?1, ?2, 0, 0, x'') ON CONFLICT DO NOTHING")?
            .execute(params![installation.id.0, installation.incarnation])?;
        connection
            .prepare_cached("UPDATE installation SET incarnation = max(incarnation, ?1) WHERE id = ?2")?
            .execute(params![installation.incarnation, installation.id.0])?;
        let (id, incarnation): (Vec<u8>, u32) =
            connection
                .query_row("SELECT id, incarnation FROM installation", [], |row| Ok((row.get(0)?, row.get(1)?)))?;
        if id != installation.id.0 || incarnation != installation.incarnation {
            return Err(Fault::Damaged("the database belongs to another installation or incarnation".to_string()));
        }
        Ok(())
    }

    /// The last change of every transaction.
    pub(super) fn seal(&self, connection: &Connection) -> Result<Commit, Fault> {
        let mark = u64::from_be_bytes(random_bytes());
        let others = self.witnesses.others(self.store);
        let sequence: i64 = connection
            .prepare_cached(
                "UPDATE installation SET sequence = sequence + 1, mark = ?1, others = ?2 RETURNING sequence",
            )?
            .query_row(params![mark as i64, others], |row| row.get(0))?;
        Ok(Commit { sequence: sequence as u64, mark })
    }

    /// The transaction is durable.
    pub(super) fn handle_commit(&self, commit: Commit) {
        self.witnesses.handle_commit(self.store, commit);
    }
}

/// What lies at this path and what it says of the other stores. Changes nothing but SQLite's index in shared memory.
/// Blocks.
pub fn survey(path: &Path) -> Result<(Found, Vec<Note>), Fault> {
    let Some(bytes) = length(path)? else { return Ok((Found::Absent, Vec::new())) };
    let outcome = pages::check(path).and_then(|checked| {
        if bytes == 0 && checked == Checked::NoSums {
            return Ok((Found::Absent, Vec::new()));
        }
        let marked = marked(&connect_to_look(path)?)?;
        if matches!(marked.0, Found::Marked(..)) && checked == Checked::NoSums {
            let sums = pages::sums_path(path);
            return Err(Fault::Damaged(format!("{} is missing", sums.display())));
        }
        Ok(marked)
    });
    match outcome {
        Err(Fault::Damaged(reason)) => Ok((Found::Damaged(reason), Vec::new())),
        outcome => outcome,
    }
}

/// What the file alone holds, as if there were no write-ahead log: `Found::Marked` only where every page is as its sum
/// says. Touches no file at all. Blocks.
pub fn survey_without_wal(path: &Path) -> Result<Found, Fault> {
    if length(path)?.is_none() {
        return Ok(Found::Absent);
    }
    let outcome = pages::check_all_but(path, &BTreeSet::new()).and_then(|checked| match checked {
        Checked::NoSums => Err(Fault::Damaged("it has no checksums".to_string())),
        Checked::Whole => Ok(marked(&connect_immutable(path)?)?.0),
    });
    match outcome {
        Err(Fault::Damaged(reason)) => Ok(Found::Damaged(reason)),
        outcome => outcome,
    }
}

/// What the database says of itself, whatever its checksums say. Blocks.
pub fn survey_without_sums(path: &Path) -> Result<Found, Fault> {
    if length(path)?.is_none() {
        return Ok(Found::Absent);
    }
    match connect_to_look(path).and_then(|connection| marked(&connection)) {
        Err(Fault::Damaged(reason)) => Ok(Found::Damaged(reason)),
        outcome => Ok(outcome?.0),
    }
}

/// None where there is no file.
fn length(path: &Path) -> Result<Option<u64>, Fault> {
    match std::fs::metadata(path) {
        Ok(meta) => Ok(Some(meta.len())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Fault::Unavailable(format!("{}: {error}", path.display()))),
    }
}

fn connect_to_look(path: &Path) -> Result<Connection, Fault> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

/// SQLite reads no write-ahead log of a file that it is told nobody changes (<https://www.sqlite.org/uri.html>).
fn connect_immutable(path: &Path) -> Result<Connection, Fault> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => uri.push(char::from(*byte)),
            _ => uri += &format!("%{byte:02x}"),
        }
    }
    Ok(Connection::open_with_flags(uri + "?immutable=1", flags)?)
}

fn marked(connection: &Connection) -> Result<(Found, Vec<Note>), Fault> {
    let has_table: bool =
        connection
            .query_row("SELECT count(*) > 0 FROM sqlite_schema WHERE name = 'installation'", [], |row| row.get(0))?;
    if !has_table {
        return Ok((Found::Unmarked, Vec::new()));
    }
    type Columns = (Vec<u8>, u32, i64, i64, Vec<u8>);
    let columns = |row: &rusqlite::Row<'_>| -> rusqlite::Result<Columns> {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
    };
    let row = connection
        .query_row("SELECT id, incarnation, sequence, mark, others FROM installation", [], columns)
        .optional()?;
    let Some((id, incarnation, sequence, mark, others)) = row else { return Ok((Found::Unmarked, Vec::new())) };
    let id = id.try_into().map_err(|_| Fault::Damaged("the installation's id has another length".to_string()))?;
    let commit = Commit { sequence: sequence as u64, mark: mark as u64 };
    let installation = Installation { id: InstallationId(id), incarnation };
    Ok((Found::Marked(installation, Some(commit)), Note::decode_all(&others)))
}

/// What SQLite itself finds wrong with the file, and new sums where it finds nothing: for `wayfix repair`.
pub fn remake_sums(path: &Path) -> Result<(), Fault> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    check_integrity(&connection)?;
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    drop(connection);
    pages::PageSums::create(path).map(|_| ())
}

pub(crate) fn check_integrity(connection: &Connection) -> Result<(), Fault> {
    let verdict: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if verdict == "ok" { Ok(()) } else { Err(Fault::Damaged(verdict)) }
}

/// What stands on pages that are not as they were written: SQLite reads it, and it may say anything.
pub(crate) enum Suspects {
    /// Nothing, or there are no sums to tell by.
    None,
    /// These pages.
    Pages(Vec<u32>),
}

pub(crate) fn suspects(path: &Path) -> Result<Suspects, Fault> {
    match pages::all_failing(path) {
        Ok(Some(pages)) if !pages.is_empty() => Ok(Suspects::Pages(pages)),
        // Damaged: the sums themselves are.
        Ok(_) | Err(Fault::Damaged(_)) => Ok(Suspects::None),
        Err(error) => Err(error),
    }
}

/// Makes a copy of the database in which these pages, all of B-trees without row ids, hold one row of zeros: what stands there and
/// not in the copy stood on them. Beside the database, to be removed by the caller.
pub(crate) fn copy_without(path: &Path, without: &[u32]) -> Result<PathBuf, Fault> {
    let copy = path.with_extension("db.whole");
    let failed = |error: std::io::Error| Fault::Unavailable(format!("{}: {error}", copy.display()));
    remove_copy(&copy);
    std::fs::copy(path, &copy).map_err(failed)?;
    let wal = pages::wal_path(path);
    if wal.exists() {
        std::fs::copy(wal, pages::wal_path(&copy)).map_err(failed)?;
    }
    let connection = Connection::open_with_flags(&copy, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    let page_bytes: u32 = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
    drop(connection);
    let file = OpenOptions::new().write(true).open(&copy).map_err(failed)?;
    for page in without {
        let begin = u64::from(page - 1) * u64::from(page_bytes);
        let cell = u64::from(page_bytes) - ZERO_ROW.len() as u64;
        let at = u16::try_from(cell).unwrap_or(u16::MAX).to_be_bytes();
        // A leaf of an index: no free block, one cell, where it begins, no fragments, and where it begins once more.
        let head = [0x0a, 0, 0, 0, 1, at[0], at[1], 0, at[0], at[1]];
        file.write_all_at(&head, begin).map_err(failed)?;
        file.write_all_at(&ZERO_ROW, begin + cell).map_err(failed)?;
    }
    Ok(copy)
}

pub(crate) fn remove_copy(copy: &Path) {
    for path in [copy.to_path_buf(), pages::wal_path(copy), copy.with_extension("whole-shm")] {
        let _most_are_not_there = std::fs::remove_file(path);
    }
}

/// SQLite takes a page without a row for damaged. The payload's length, its head's length, and three zeros.
const ZERO_ROW: [u8; 5] = [4, 4, 8, 8, 8];

const TABLE: &str = "
    CREATE TABLE IF NOT EXISTS installation (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        id BLOB NOT NULL CHECK (length(id) = 16),
        incarnation INTEGER NOT NULL,
        sequence INTEGER NOT NULL,
        mark INTEGER NOT NULL,
        others BLOB NOT NULL
    ) STRICT;
";
