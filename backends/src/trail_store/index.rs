//! The index of history in SQLite: which blocks lie where, each driver's key, when each driver had each delivery, and how
//! far the trail topic was taken. One transaction names new blocks and moves the offsets.

use std::collections::BTreeMap;

use protocol::{DeliveryKey, DriverId, DriverKey, Offset, PartitionId, Time};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::home::Home;
use super::pending::Sealed;
use super::segment::{DriverSecret, Head};
use super::{TrailPlace, TrailStoreError};
use crate::sqlite::Schema;

pub(super) const SCHEMA: Schema = Schema {
    name: "history",
    application_id: 0x5746_5432, // "WFT2"
    steps: &["
        CREATE TABLE offsets (
            partition INTEGER PRIMARY KEY,
            incarnation INTEGER NOT NULL,
            next INTEGER NOT NULL
        ) STRICT;

        -- Journals below this number are in segments.
        CREATE TABLE journal (
            one INTEGER PRIMARY KEY CHECK (one = 1),
            number INTEGER NOT NULL
        ) STRICT;
        INSERT INTO journal VALUES (1, 1);

        CREATE TABLE files (
            file INTEGER PRIMARY KEY AUTOINCREMENT,
            is_stray INTEGER NOT NULL,
            day INTEGER NOT NULL,
            bytes INTEGER NOT NULL,
            -- Whether its blocks are as long as they get.
            is_merged INTEGER NOT NULL
        ) STRICT;
        CREATE INDEX files_day ON files (day);

        CREATE TABLE blocks (
            tenant INTEGER NOT NULL,
            driver INTEGER NOT NULL,
            last_ds INTEGER NOT NULL,
            first_ds INTEGER NOT NULL,
            file INTEGER NOT NULL,
            place INTEGER NOT NULL,
            bytes INTEGER NOT NULL,
            count INTEGER NOT NULL,
            is_stray INTEGER NOT NULL,
            PRIMARY KEY (tenant, driver, last_ds, file, place)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX blocks_file ON blocks (file);
        CREATE INDEX blocks_stray ON blocks (tenant, driver, first_ds) WHERE is_stray = 1;

        CREATE TABLE keys (
            tenant INTEGER NOT NULL,
            driver INTEGER NOT NULL,
            key BLOB NOT NULL,
            PRIMARY KEY (tenant, driver)
        ) STRICT, WITHOUT ROWID;

        CREATE TABLE spans (
            tenant INTEGER NOT NULL,
            delivery INTEGER NOT NULL,
            driver INTEGER NOT NULL,
            first_ds INTEGER NOT NULL,
            last_ds INTEGER NOT NULL,
            last_received_day INTEGER NOT NULL,
            PRIMARY KEY (tenant, delivery, driver)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX spans_received ON spans (last_received_day);

        -- What was received before then of a forgotten driver is not taken again.
        CREATE TABLE forgotten (
            tenant INTEGER NOT NULL,
            driver INTEGER NOT NULL,
            before_ms INTEGER NOT NULL,
            PRIMARY KEY (tenant, driver)
        ) STRICT, WITHOUT ROWID;
    "],
};

/// A block and where it lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct BlockRow {
    pub file: i64,
    pub place: u64,
    pub bytes: usize,
    pub first_ds: i64,
    pub last_ds: i64,
}

/// When a driver had a delivery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Span {
    pub first_ds: i64,
    pub last_ds: i64,
    pub last_received_day: i64,
}

pub(super) fn secret(connection: &Connection, driver: DriverKey) -> Result<Option<DriverSecret>, TrailStoreError> {
    let key: Option<Vec<u8>> = connection
        .prepare_cached("SELECT key FROM keys WHERE tenant = ?1 AND driver = ?2")?
        .query_row(params![driver.tenant.0, driver.driver.0], |row| row.get(0))
        .optional()?;
    let Some(key) = key else { return Ok(None) };
    let secret = key.try_into().map_err(|_| damaged("a driver's key has another length"))?;
    Ok(Some(DriverSecret(secret)))
}

pub(super) fn insert_secret(
    connection: &Connection,
    driver: DriverKey,
    secret: &DriverSecret,
) -> Result<(), TrailStoreError> {
    let mut statement = connection.prepare_cached("INSERT INTO keys VALUES (?1, ?2, ?3)")?;
    statement.execute(params![driver.tenant.0, driver.driver.0, &secret.0[..]])?;
    Ok(())
}

pub(super) fn sealed(connection: &Connection, driver: DriverKey) -> Result<Sealed, TrailStoreError> {
    let key = params![driver.tenant.0, driver.driver.0];
    let newest_ds = connection
        .prepare_cached(
            "SELECT last_ds FROM blocks WHERE tenant = ?1 AND driver = ?2 AND is_stray = 0
             ORDER BY last_ds DESC LIMIT 1",
        )?
        .query_row(key, |row| row.get(0))
        .optional()?;
    let has_strays = connection
        .prepare_cached("SELECT 1 FROM blocks WHERE tenant = ?1 AND driver = ?2 AND is_stray = 1 LIMIT 1")?
        .exists(key)?;
    Ok(Sealed { newest_ds, has_strays })
}

/// Blocks of the driver that reach into `first_ds ..= last_ds`, strays too.
pub(super) fn blocks_around(
    connection: &Connection,
    driver: DriverKey,
    first_ds: i64,
    last_ds: i64,
) -> Result<Vec<BlockRow>, TrailStoreError> {
    let sql = format!("{SELECT_BLOCK} AND last_ds >= ?3 AND first_ds <= ?4");
    block_rows(connection, &sql, params![driver.tenant.0, driver.driver.0, first_ds, last_ds])
}

/// Blocks of the driver with a last measured time in `first_ds ..= last_ds`, strays aside.
pub(super) fn blocks_of_days(
    connection: &Connection,
    driver: DriverKey,
    first_ds: i64,
    last_ds: i64,
) -> Result<Vec<BlockRow>, TrailStoreError> {
    let sql = format!("{SELECT_BLOCK} AND is_stray = 0 AND last_ds BETWEEN ?3 AND ?4");
    block_rows(connection, &sql, params![driver.tenant.0, driver.driver.0, first_ds, last_ds])
}

/// The first measured time at or after `from_ds` at which a block ends, strays aside.
pub(super) fn next_end(
    connection: &Connection,
    driver: DriverKey,
    from_ds: i64,
) -> Result<Option<i64>, TrailStoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT last_ds FROM blocks WHERE tenant = ?1 AND driver = ?2 AND is_stray = 0 AND last_ds >= ?3
         ORDER BY last_ds LIMIT 1",
    )?;
    Ok(statement.query_row(params![driver.tenant.0, driver.driver.0, from_ds], |row| row.get(0)).optional()?)
}

pub(super) fn strays_of(
    connection: &Connection,
    driver: DriverKey,
    from_ds: i64,
    until_ds: i64,
) -> Result<Vec<BlockRow>, TrailStoreError> {
    let sql = format!("{SELECT_BLOCK} AND is_stray = 1 AND last_ds >= ?3 AND first_ds < ?4");
    block_rows(connection, &sql, params![driver.tenant.0, driver.driver.0, from_ds, until_ds])
}

/// In the order in which they begin.
fn block_rows(
    connection: &Connection,
    sql: &str,
    values: impl rusqlite::Params,
) -> Result<Vec<BlockRow>, TrailStoreError> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows: Vec<BlockRow> = statement.query_map(values, block_row)?.collect::<Result<_, _>>()?;
    rows.sort_unstable_by_key(|row| (row.first_ds, row.file, row.place));
    Ok(rows)
}

fn block_row(row: &Row) -> rusqlite::Result<BlockRow> {
    Ok(BlockRow {
        file: row.get(0)?,
        place: row.get::<_, i64>(1)? as u64,
        bytes: row.get::<_, i64>(2)? as usize,
        first_ds: row.get(3)?,
        last_ds: row.get(4)?,
    })
}

const SELECT_BLOCK: &str = "SELECT file, place, bytes, first_ds, last_ds FROM blocks WHERE tenant = ?1 AND driver = ?2";

pub(super) fn insert_block(
    connection: &Connection,
    head: &Head,
    file: i64,
    place: u64,
    bytes: usize,
) -> Result<(), TrailStoreError> {
    let mut statement = connection.prepare_cached("INSERT INTO blocks VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?;
    let (tenant, driver) = (head.driver.tenant.0, head.driver.driver.0);
    statement.execute(params![
        tenant,
        driver,
        head.last_ds,
        head.first_ds,
        file,
        place as i64,
        bytes as i64,
        head.count,
        head.home.is_stray
    ])?;
    Ok(())
}

/// The file that this home's blocks are appended to, and how long it is; a new one if there is none.
pub(super) fn open_file(connection: &Connection, home: Home) -> Result<(i64, u64), TrailStoreError> {
    let found = connection
        .prepare_cached(
            "SELECT file, bytes FROM files WHERE day = ?1 AND is_stray = ?2 AND is_merged = 0
             ORDER BY file DESC LIMIT 1",
        )?
        .query_row(params![home.day, home.is_stray], |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64)))
        .optional()?;
    match found {
        Some(file) => Ok(file),
        None => Ok((insert_file(connection, home, false)?, 0)),
    }
}

pub(super) fn insert_file(connection: &Connection, home: Home, is_merged: bool) -> Result<i64, TrailStoreError> {
    let mut statement =
        connection.prepare_cached("INSERT INTO files (is_stray, day, bytes, is_merged) VALUES (?1, ?2, 0, ?3)")?;
    statement.execute(params![home.is_stray, home.day, is_merged])?;
    Ok(connection.last_insert_rowid())
}

/// An empty file for long blocks of this home: one that an earlier try has left, or a new one.
pub(super) fn merge_target(connection: &Connection, home: Home) -> Result<i64, TrailStoreError> {
    let found = connection
        .prepare_cached(
            "SELECT file FROM files WHERE day = ?1 AND is_stray = ?2 AND is_merged = 1 AND bytes = 0 LIMIT 1",
        )?
        .query_row(params![home.day, home.is_stray], |row| row.get(0))
        .optional()?;
    found.map_or_else(|| insert_file(connection, home, true), Ok)
}

pub(super) fn set_file_bytes(connection: &Connection, file: i64, bytes: u64) -> Result<(), TrailStoreError> {
    connection.prepare_cached("UPDATE files SET bytes = ?2 WHERE file = ?1")?.execute(params![file, bytes as i64])?;
    Ok(())
}

/// A file of which only so many bytes are left: what stood behind is not named any more. Answers how many fixes that were.
pub(super) fn cut_file(connection: &Connection, file: i64, length: u64) -> Result<u64, TrailStoreError> {
    let behind = "file = ?1 AND place + bytes > ?2";
    let sql = format!("SELECT coalesce(sum(count), 0) FROM blocks WHERE {behind}");
    let count: i64 = connection.query_row(&sql, params![file, length as i64], |row| row.get(0))?;
    connection.execute(&format!("DELETE FROM blocks WHERE {behind}"), params![file, length as i64])?;
    set_file_bytes(connection, file, length)?;
    Ok(count as u64)
}

/// Every segment file there is to be, with its length.
pub(super) fn files(connection: &Connection) -> Result<BTreeMap<i64, u64>, TrailStoreError> {
    let mut statement = connection.prepare_cached("SELECT file, bytes FROM files")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn widen_span(
    connection: &Connection,
    driver: DriverKey,
    delivery: DeliveryKey,
    span: Span,
) -> Result<(), TrailStoreError> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO spans VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO UPDATE SET
         first_ds = min(first_ds, excluded.first_ds), last_ds = max(last_ds, excluded.last_ds),
         last_received_day = max(last_received_day, excluded.last_received_day)",
    )?;
    let delivery = delivery.delivery.0 as i64;
    statement.execute(params![
        driver.tenant.0,
        delivery,
        driver.driver.0,
        span.first_ds,
        span.last_ds,
        span.last_received_day
    ])?;
    Ok(())
}

/// Who had the delivery, from when until when.
pub(super) fn spans(
    connection: &Connection,
    delivery: DeliveryKey,
) -> Result<Vec<(DriverId, i64, i64)>, TrailStoreError> {
    let mut statement =
        connection.prepare_cached("SELECT driver, first_ds, last_ds FROM spans WHERE tenant = ?1 AND delivery = ?2")?;
    let rows = statement.query_map(params![delivery.tenant.0, delivery.delivery.0 as i64], |row| {
        Ok((DriverId(row.get(0)?), row.get(1)?, row.get(2)?))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn offsets(connection: &Connection) -> Result<BTreeMap<PartitionId, TrailPlace>, TrailStoreError> {
    let mut statement = connection.prepare_cached("SELECT partition, incarnation, next FROM offsets")?;
    let rows = statement.query_map([], |row| {
        let offset = Offset(row.get::<_, i64>(2)? as u64);
        Ok((PartitionId(row.get(0)?), TrailPlace { incarnation: row.get(1)?, offset }))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn set_offset(
    connection: &Connection,
    partition: PartitionId,
    place: TrailPlace,
) -> Result<(), TrailStoreError> {
    connection
        .prepare_cached(
            "INSERT INTO offsets VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET
             incarnation = excluded.incarnation, next = excluded.next",
        )?
        .execute(params![partition.0, place.incarnation, place.offset.0 as i64])?;
    Ok(())
}

pub(super) fn journal(connection: &Connection) -> Result<i64, TrailStoreError> {
    Ok(connection.query_row("SELECT number FROM journal", [], |row| row.get(0))?)
}

pub(super) fn set_journal(connection: &Connection, number: i64) -> Result<(), TrailStoreError> {
    connection.execute("UPDATE journal SET number = ?1", [number])?;
    Ok(())
}

pub(super) fn forgotten(connection: &Connection) -> Result<BTreeMap<DriverKey, Time>, TrailStoreError> {
    use protocol::TenantId;
    let mut statement = connection.prepare_cached("SELECT tenant, driver, before_ms FROM forgotten")?;
    let rows = statement.query_map([], |row| {
        let driver = DriverKey { tenant: TenantId(row.get(0)?), driver: DriverId(row.get(1)?) };
        Ok((driver, Time(row.get(2)?)))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Takes out all that leads to a driver's history, his key first of all; answers how many breadcrumbs it were.
pub(super) fn forget(connection: &Connection, driver: DriverKey, before: Time) -> Result<u64, TrailStoreError> {
    let key = params![driver.tenant.0, driver.driver.0];
    let count: i64 = connection.query_row(
        "SELECT coalesce(sum(count), 0) FROM blocks WHERE tenant = ?1 AND driver = ?2",
        key,
        |row| row.get(0),
    )?;
    for table in ["keys", "blocks", "spans"] {
        connection.execute(&format!("DELETE FROM {table} WHERE tenant = ?1 AND driver = ?2"), key)?;
    }
    connection.execute(
        "INSERT INTO forgotten VALUES (?1, ?2, ?3)
         ON CONFLICT DO UPDATE SET before_ms = max(before_ms, excluded.before_ms)",
        params![driver.tenant.0, driver.driver.0, before.0],
    )?;
    Ok(count as u64)
}

/// The oldest file of a day before `first_kept` and how many breadcrumbs it has, taken out of the index.
pub(super) fn take_expired(connection: &Connection, first_kept: i64) -> Result<Option<(i64, u64)>, TrailStoreError> {
    let file: Option<i64> = connection
        .prepare_cached("SELECT file FROM files WHERE day < ?1 ORDER BY day LIMIT 1")?
        .query_row([first_kept], |row| row.get(0))
        .optional()?;
    let Some(file) = file else { return Ok(None) };
    let sql = "SELECT coalesce(sum(count), 0) FROM blocks WHERE file = ?1";
    let count: i64 = connection.query_row(sql, [file], |row| row.get(0))?;
    connection.execute("DELETE FROM blocks WHERE file = ?1", [file])?;
    connection.execute("DELETE FROM files WHERE file = ?1", [file])?;
    Ok(Some((file, count as u64)))
}

/// What was kept only for days that are gone.
pub(super) fn tidy(connection: &Connection, first_kept: i64) -> Result<(), TrailStoreError> {
    // Whatever was received two days before the first day kept was measured before that day, or is a stray.
    connection.execute("DELETE FROM spans WHERE last_received_day < ?1 - 1", [first_kept])?;
    connection.execute(
        "DELETE FROM keys WHERE NOT EXISTS
         (SELECT 1 FROM blocks b WHERE b.tenant = keys.tenant AND b.driver = keys.driver)",
        [],
    )?;
    let before_ms = first_kept.saturating_mul(24 * 3_600_000);
    connection.execute("DELETE FROM forgotten WHERE before_ms < ?1", [before_ms])?;
    Ok(())
}

/// An open file of a day before `day`: its blocks can be made longer.
pub(super) fn unmerged(connection: &Connection, day: i64) -> Result<Option<(i64, Home)>, TrailStoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT file, is_stray, day FROM files WHERE day < ?1 AND is_merged = 0 ORDER BY day LIMIT 1",
    )?;
    let home = |row: &Row| Ok((row.get(0)?, Home { is_stray: row.get(1)?, day: row.get(2)? }));
    Ok(statement.query_row([day], home).optional()?)
}

/// Whether a file's blocks are so short that it pays to write them anew.
pub(super) fn is_worth_merging(connection: &Connection, file: i64, long: u32) -> Result<bool, TrailStoreError> {
    let sql =
        "SELECT count(*), count(DISTINCT tenant << 32 | driver), coalesce(sum(count), 0) FROM blocks WHERE file = ?1";
    let (blocks, drivers, count): (i64, i64, i64) =
        connection.query_row(sql, [file], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    Ok(blocks > drivers && count < blocks * i64::from(long))
}

pub(super) fn set_merged(connection: &Connection, file: i64) -> Result<(), TrailStoreError> {
    connection.execute("UPDATE files SET is_merged = 1 WHERE file = ?1", [file])?;
    Ok(())
}

/// Some drivers with blocks in the file, in order.
pub(super) fn drivers_in(
    connection: &Connection,
    file: i64,
    after: Option<DriverKey>,
    limit: u32,
) -> Result<Vec<DriverKey>, TrailStoreError> {
    use protocol::TenantId;
    let mut statement = connection.prepare_cached(
        "SELECT DISTINCT tenant, driver FROM blocks WHERE file = ?1 AND (tenant, driver) > (?2, ?3)
         ORDER BY tenant, driver LIMIT ?4",
    )?;
    // No tenant is below 0.
    let (tenant, after) = after.map_or((-1, 0), |after| (i64::from(after.tenant.0), i64::from(after.driver.0)));
    let driver = |row: &Row| Ok(DriverKey { tenant: TenantId(row.get(0)?), driver: DriverId(row.get(1)?) });
    Ok(statement.query_map(params![file, tenant, after, limit], driver)?.collect::<Result<_, _>>()?)
}

pub(super) fn blocks_in(
    connection: &Connection,
    file: i64,
    driver: DriverKey,
) -> Result<Vec<BlockRow>, TrailStoreError> {
    let sql = format!("{SELECT_BLOCK} AND file = ?3");
    block_rows(connection, &sql, params![driver.tenant.0, driver.driver.0, file])
}

pub(super) fn delete_block(connection: &Connection, driver: DriverKey, row: &BlockRow) -> Result<(), TrailStoreError> {
    connection
        .prepare_cached(
            "DELETE FROM blocks WHERE tenant = ?1 AND driver = ?2 AND last_ds = ?3 AND file = ?4 AND place = ?5",
        )?
        .execute(params![driver.tenant.0, driver.driver.0, row.last_ds, row.file, row.place as i64])?;
    Ok(())
}

pub(super) fn delete_file(connection: &Connection, file: i64) -> Result<(), TrailStoreError> {
    connection.execute("DELETE FROM files WHERE file = ?1", [file])?;
    Ok(())
}

fn damaged(reason: &str) -> TrailStoreError {
    TrailStoreError::Damaged { reason: reason.to_string() }
}
