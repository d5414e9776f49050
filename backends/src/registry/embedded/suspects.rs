//! After damage to the registry was accepted: what SQLite still reads may be a flipped byte, and new checksums would sign it
//! as true. A token must never open another's, nor a revoked device come back, so what stands on pages that are not as
//! they were written opens nothing any more.

use std::path::Path;

use protocol::Time;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, params};

use crate::sqlite::{self, Fault, Suspects};

/// How many opened something before and open nothing now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Voided {
    pub tokens: usize,
    pub devices: usize,
}

/// Makes tokens on pages that are not as their checksums say void, and devices revoked; all of them where it cannot be
/// said which these are. To be called before new checksums are made. Blocks.
pub fn void_suspects(path: &Path, now: Time) -> Result<Voided, Fault> {
    let Suspects::Pages(pages) = sqlite::suspects(path)? else { return Ok(Voided::default()) };
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // What is written here stays in the write-ahead log until there are new sums: a kill in between makes no page suspect.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    sqlite::check_integrity(&connection)?;
    match owners(&connection, &pages) {
        Some(owners) if owners.iter().all(|(owner, _)| owner != "sqlite_schema") => {
            let of_secrets = owners.iter().filter(|(owner, _)| ["tokens", "devices"].contains(&owner.as_str()));
            let copy = sqlite::copy_without(path, &of_secrets.map(|(_, page)| *page).collect::<Vec<_>>())?;
            let voided = void_missing(&connection, &copy, now);
            sqlite::remove_copy(&copy);
            // What the client may ask for again has its secret derived from what is written here.
            if voided.is_ok() && owners.iter().any(|(owner, _)| owner == "repeats") {
                connection.execute("DELETE FROM repeats", [])?;
            }
            voided.or_else(|_| void_all(&connection, now))
        }
        Some(_) | None => void_all(&connection, now),
    }
}

/// Which B-tree each of these pages is of; those that are free are of none. None: SQLite cannot say.
fn owners(connection: &Connection, pages: &[u32]) -> Option<Vec<(String, u32)>> {
    let mut statement = connection.prepare("SELECT name, pageno FROM dbstat").ok()?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).ok()?;
    let mut owners: Vec<(String, u32)> = rows.collect::<Result<_, _>>().ok()?;
    owners.retain(|(_, page)| pages.contains(page));
    Some(owners)
}

/// Takes away what is here and not in the copy.
fn void_missing(connection: &Connection, copy: &Path, now: Time) -> Result<Voided, Fault> {
    connection.execute("ATTACH ?1 AS whole", [copy.to_string_lossy()])?;
    let outcome = in_transaction(connection, || {
        let tokens = connection.execute("DELETE FROM tokens WHERE hash NOT IN (SELECT hash FROM whole.tokens)", [])?;
        let devices = connection.execute(
            "UPDATE devices SET revoked_ms = ?1 WHERE revoked_ms IS NULL
             AND (tenant, driver, device) NOT IN (SELECT tenant, driver, device FROM whole.devices)",
            params![now.0],
        )?;
        Ok(Voided { tokens, devices })
    });
    connection.execute("DETACH whole", [])?;
    outcome
}

fn void_all(connection: &Connection, now: Time) -> Result<Voided, Fault> {
    in_transaction(connection, || {
        connection.execute("DELETE FROM repeats", [])?;
        let tokens = connection.execute("DELETE FROM tokens", [])?;
        let devices = connection.execute("UPDATE devices SET revoked_ms = ?1 WHERE revoked_ms IS NULL", [now.0])?;
        Ok(Voided { tokens, devices })
    })
}

fn in_transaction<T>(connection: &Connection, work: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let outcome = work();
    connection.execute_batch(if outcome.is_ok() { "COMMIT" } else { "ROLLBACK" })?;
    outcome
}
