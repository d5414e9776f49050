//! What ties a database to its installation: a row with the installation's id, the number of the newest commit, and what
//! the other stores had reached by then. The row changes in every transaction; the witnesses hear of it before anybody
//! is answered.

use std::fmt;
use std::path::Path;
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
    let bytes = match std::fs::metadata(path) {
        Ok(meta) => meta.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((Found::Absent, Vec::new())),
        Err(error) => return Err(Fault::Unavailable(format!("{}: {error}", path.display()))),
    };
    let outcome = pages::check(path).and_then(|checked| {
        if bytes == 0 && checked == Checked::NoSums {
            return Ok((Found::Absent, Vec::new()));
        }
        let marked = marked(path)?;
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

fn marked(path: &Path) -> Result<(Found, Vec<Note>), Fault> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
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
    let verdict: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Err(Fault::Damaged(verdict));
    }
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    drop(connection);
    pages::PageSums::create(path).map(|_| ())
}

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
