//! History in one SQLite file, a table per day, so that a day is dropped as a whole and what is written lies together.
//!
//! A fix belongs to the day it says it was measured on. A phone may say any day, though: where that is far from the
//! day of receipt the fix goes to one table of strays instead, so that a wrong clock cannot make tables without end;
//! strays are dropped by their day of receipt. An identity is looked for on both sides before it is added to either.
//!
//! A day's table lies in the order of drivers. A batch touches one page for each of its drivers, and those pages are
//! what it costs; so there is no second index by delivery, only the span of time in which each driver had it. At the
//! worst, a thousand drivers with one breadcrumb each in every batch, two busy cores took 9,000 a second; a city of
//! 5,000 drivers makes 1,250.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::Path;

use async_trait::async_trait;
use protocol::update::BreadcrumbBatch;
use protocol::{Breadcrumb, DeliveryId, DeliveryKey, DriverKey, MeasuredTime, Offset, PartitionId, Time, envelope};
use rusqlite::{Connection, OptionalExtension, Params, params};

use super::{TRAIL_MAX, TrailQuery, TrailStore, TrailStoreError};
use crate::sqlite::{Schema, Sqlite, from_sqlite};

pub struct EmbeddedTrailStore {
    db: Sqlite,
}

impl EmbeddedTrailStore {
    /// Opens or makes the file. Blocks.
    pub fn open(path: &Path) -> Result<Self, TrailStoreError> {
        Ok(EmbeddedTrailStore { db: Sqlite::open(path, SCHEMA, || ())? })
    }
}

from_sqlite!(TrailStoreError);

#[async_trait]
impl TrailStore for EmbeddedTrailStore {
    async fn append(
        &self,
        partition: PartitionId,
        breadcrumbs: Vec<Breadcrumb>,
        next: Offset,
    ) -> Result<(), TrailStoreError> {
        // Encoded here, so that the one writer has only the database's work to do.
        let encoded: Vec<(Breadcrumb, Vec<u8>)> = breadcrumbs.into_iter().map(with_bytes).collect();
        self.db
            .write(move |connection| {
                let mut tables = Tables::of(connection)?;
                for (breadcrumb, bytes) in &encoded {
                    tables.insert(connection, breadcrumb, bytes)?;
                }
                widen_spans(connection, encoded.iter().map(|(breadcrumb, _)| breadcrumb))?;
                connection
                    .prepare_cached(
                        "INSERT INTO offsets VALUES (?1, ?2) ON CONFLICT DO UPDATE SET next = excluded.next",
                    )?
                    .execute(params![partition.0, next.0 as i64])?;
                Ok(())
            })
            .await
    }

    async fn next_offset(&self, partition: PartitionId) -> Result<Offset, TrailStoreError> {
        self.db
            .read(move |connection| {
                let next: Option<i64> = connection
                    .prepare_cached("SELECT next FROM offsets WHERE partition = ?1")?
                    .query_row([partition.0], |row| row.get(0))
                    .optional()?;
                Ok(Offset(next.unwrap_or(0) as u64))
            })
            .await
    }

    async fn driver_trail(&self, key: DriverKey, query: TrailQuery) -> Result<Vec<Breadcrumb>, TrailStoreError> {
        self.db
            .read(move |connection| {
                trail(connection, query, |connection, table, limit| {
                    let sql = format!(
                        "SELECT breadcrumb FROM {table} WHERE tenant = ?1 AND driver = ?2
                         AND measured_ds >= ?3 AND measured_ds < ?4 ORDER BY measured_ds LIMIT ?5"
                    );
                    let (from, until) = measured_range(query);
                    select(connection, &sql, params![key.tenant.0, key.driver.0, from, until, limit])
                })
            })
            .await
    }

    async fn delivery_trail(&self, key: DeliveryKey, query: TrailQuery) -> Result<Vec<Breadcrumb>, TrailStoreError> {
        self.db
            .read(move |connection| {
                trail(connection, query, |connection, table, limit| {
                    let sql = format!(
                        "SELECT breadcrumb FROM spans s CROSS JOIN {table} b
                         ON b.tenant = s.tenant AND b.driver = s.driver
                         AND b.measured_ds >= max(?3, s.first_ds) AND b.measured_ds < ?4 AND b.measured_ds <= s.last_ds
                         WHERE s.tenant = ?1 AND s.delivery = ?2 AND b.delivery = ?2
                         ORDER BY b.measured_ds LIMIT ?5"
                    );
                    let (from, until) = measured_range(query);
                    let delivery = key.delivery.0 as i64;
                    select(connection, &sql, params![key.tenant.0, delivery, from, until, limit])
                })
            })
            .await
    }

    async fn expire(&self, before: Time) -> Result<u64, TrailStoreError> {
        let first_kept = day_of(before);
        let mut dropped = 0;
        // A transaction per day: appends get their turn in between.
        while let Some(count) = self.db.write(move |connection| drop_oldest_day(connection, first_kept)).await? {
            dropped += count;
        }
        loop {
            let count = self.db.write(move |connection| drop_some_strays(connection, first_kept)).await?;
            if count == 0 {
                break;
            }
            dropped += count;
        }
        // Whatever was received two days before the first day kept was measured before that day, or is a stray.
        let sql = "DELETE FROM spans WHERE last_received_day < ?1 - 1";
        self.db.write(move |connection| Ok::<_, TrailStoreError>(connection.execute(sql, [first_kept])?)).await?;
        Ok(dropped)
    }
}

/// Which tables there are, as one transaction sees and changes it.
struct Tables {
    days: BTreeSet<i64>,
    has_strays: bool,
}

impl Tables {
    fn of(connection: &Connection) -> Result<Self, TrailStoreError> {
        let mut statement = connection.prepare_cached("SELECT day FROM days")?;
        let days = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        let has_strays = connection.prepare_cached("SELECT 1 FROM breadcrumbs_stray LIMIT 1")?.exists([])?;
        Ok(Tables { days, has_strays })
    }

    fn insert(
        &mut self,
        connection: &Connection,
        breadcrumb: &Breadcrumb,
        bytes: &[u8],
    ) -> Result<(), TrailStoreError> {
        let measured = day_of(breadcrumb.record.fix.measured.to_time());
        let received = day_of(breadcrumb.record.received);
        let table = table_of(measured);
        if DAYS_AROUND_RECEIPT.contains(&measured.saturating_sub(received)) {
            if self.has_strays && has(connection, STRAYS, breadcrumb)? {
                return Ok(());
            }
            if self.days.insert(measured) {
                connection.execute_batch(&create_table(&table))?;
                connection.execute("INSERT INTO days VALUES (?1)", [measured])?;
            }
            insert_into(connection, &table, breadcrumb, bytes)
        } else {
            if self.days.contains(&measured) && has(connection, &table, breadcrumb)? {
                return Ok(());
            }
            self.has_strays = true;
            insert_into(connection, STRAYS, breadcrumb, bytes)
        }
    }
}

fn insert_into(
    connection: &Connection,
    table: &str,
    breadcrumb: &Breadcrumb,
    bytes: &[u8],
) -> Result<(), TrailStoreError> {
    let sql = format!("INSERT INTO {table} VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) ON CONFLICT DO NOTHING");
    let (device, fix) = (breadcrumb.record.device, &breadcrumb.record.fix);
    connection.prepare_cached(&sql)?.execute(params![
        device.tenant.0,
        device.driver.0,
        fix.measured.0,
        device.device.0,
        fix.position.lat_e7,
        fix.position.lon_e7,
        day_of(breadcrumb.record.received),
        breadcrumb.delivery.map(|delivery| delivery.0 as i64),
        breadcrumb.reject_reason().map(|reason| reason.name()),
        bytes,
    ])?;
    Ok(())
}

/// When each driver had each delivery.
fn widen_spans<'a>(
    connection: &Connection,
    breadcrumbs: impl Iterator<Item = &'a Breadcrumb>,
) -> Result<(), TrailStoreError> {
    let mut spans: BTreeMap<(DriverKey, DeliveryId), (i64, i64, i64)> = BTreeMap::new();
    for breadcrumb in breadcrumbs {
        let Some(delivery) = breadcrumb.delivery else { continue };
        let (measured, received) = (breadcrumb.record.fix.measured.0, day_of(breadcrumb.record.received));
        let span = spans.entry((breadcrumb.record.device.driver_key(), delivery));
        let (first, last, last_day) = span.or_insert((measured, measured, received));
        (*first, *last, *last_day) = (measured.min(*first), measured.max(*last), received.max(*last_day));
    }
    let mut statement = connection.prepare_cached(
        "INSERT INTO spans VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO UPDATE SET
         first_ds = min(first_ds, excluded.first_ds), last_ds = max(last_ds, excluded.last_ds),
         last_received_day = max(last_received_day, excluded.last_received_day)",
    )?;
    for ((driver, delivery), (first, last, last_day)) in spans {
        let delivery = delivery.0 as i64;
        statement.execute(params![driver.tenant.0, delivery, driver.driver.0, first, last, last_day])?;
    }
    Ok(())
}

/// Whether the table has a breadcrumb of the same identity.
fn has(connection: &Connection, table: &str, breadcrumb: &Breadcrumb) -> Result<bool, TrailStoreError> {
    let sql = format!(
        "SELECT 1 FROM {table} WHERE tenant = ?1 AND driver = ?2 AND measured_ds = ?3 AND device = ?4
         AND lat_e7 = ?5 AND lon_e7 = ?6"
    );
    let (device, fix) = (breadcrumb.record.device, &breadcrumb.record.fix);
    Ok(connection.prepare_cached(&sql)?.exists(params![
        device.tenant.0,
        device.driver.0,
        fix.measured.0,
        device.device.0,
        fix.position.lat_e7,
        fix.position.lon_e7
    ])?)
}

/// None if there is none to drop.
fn drop_oldest_day(connection: &Connection, first_kept: i64) -> Result<Option<u64>, TrailStoreError> {
    let oldest: Option<i64> = connection
        .prepare_cached("SELECT day FROM days WHERE day < ?1 ORDER BY day LIMIT 1")?
        .query_row([first_kept], |row| row.get(0))
        .optional()?;
    let Some(day) = oldest else { return Ok(None) };
    let table = table_of(day);
    let count: i64 = connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))?;
    connection.execute_batch(&format!("DROP TABLE {table}"))?;
    connection.execute("DELETE FROM days WHERE day = ?1", [day])?;
    Ok(Some(count as u64))
}

fn drop_some_strays(connection: &Connection, first_kept: i64) -> Result<u64, TrailStoreError> {
    let identity = "tenant, driver, measured_ds, device, lat_e7, lon_e7";
    let sql = format!(
        "DELETE FROM {STRAYS} WHERE ({identity}) IN
         (SELECT {identity} FROM {STRAYS} WHERE received_day < ?1 LIMIT {STRAYS_DROPPED_AT_ONCE})"
    );
    Ok(connection.prepare_cached(&sql)?.execute([first_kept])? as u64)
}

/// The days' tables one after the other while there is room, and the strays put in between by time.
fn trail(
    connection: &Connection,
    query: TrailQuery,
    select: impl Fn(&Connection, &str, u32) -> Result<Vec<Breadcrumb>, TrailStoreError>,
) -> Result<Vec<Breadcrumb>, TrailStoreError> {
    let limit = query.limit.min(TRAIL_MAX);
    if query.from >= query.until || limit == 0 {
        return Ok(Vec::new());
    }
    let mut found = select(connection, STRAYS, limit)?;
    let strays = found.len();
    let days: Vec<i64> = connection
        .prepare_cached("SELECT day FROM days WHERE day BETWEEN ?1 AND ?2 ORDER BY day")?
        .query_map([day_of(query.from), day_of(query.until)], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for day in days {
        let room = limit.saturating_sub((found.len() - strays) as u32);
        if room == 0 {
            break;
        }
        found.extend(select(connection, &table_of(day), room)?);
    }
    let order = |breadcrumb: &Breadcrumb| {
        let (device, fix) = (breadcrumb.record.device, &breadcrumb.record.fix);
        (fix.measured, device, fix.position)
    };
    found.sort_by_key(order);
    found.truncate(limit as usize);
    Ok(found)
}

fn select(connection: &Connection, sql: &str, values: impl Params) -> Result<Vec<Breadcrumb>, TrailStoreError> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(values)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let bytes = row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?;
        let batch: BreadcrumbBatch = envelope::decode(bytes)
            .map_err(|error| TrailStoreError::Damaged { reason: format!("a breadcrumb cannot be read: {error}") })?;
        found.extend(batch.breadcrumbs);
    }
    Ok(found)
}

/// In an envelope, so that a later version of Wayfix knows which form it has.
fn with_bytes(breadcrumb: Breadcrumb) -> (Breadcrumb, Vec<u8>) {
    let mut batch = BreadcrumbBatch { breadcrumbs: vec![breadcrumb] };
    let bytes = envelope::encode(&batch);
    (batch.breadcrumbs.remove(0), bytes)
}

/// From inclusive, until exclusive, in tenths of a second: a tenth is in the range if its first millisecond is.
fn measured_range(query: TrailQuery) -> (i64, i64) {
    let tenth = |time: Time| MeasuredTime::from_time(Time(time.0.saturating_add(99))).0;
    (tenth(query.from), tenth(query.until))
}

fn day_of(time: Time) -> i64 {
    time.as_secs().div_euclid(24 * 3600)
}

/// Days before 1970 have a table too, if a server's clock says so.
fn table_of(day: i64) -> String {
    if day < 0 { format!("breadcrumbs_b{}", day.unsigned_abs()) } else { format!("breadcrumbs_{day}") }
}

fn create_table(table: &str) -> String {
    format!(
        "CREATE TABLE {table} (
            tenant INTEGER NOT NULL,
            driver INTEGER NOT NULL,
            measured_ds INTEGER NOT NULL,
            device INTEGER NOT NULL,
            lat_e7 INTEGER NOT NULL,
            lon_e7 INTEGER NOT NULL,
            received_day INTEGER NOT NULL,
            delivery INTEGER,
            rejected TEXT,
            breadcrumb BLOB NOT NULL,
            PRIMARY KEY (tenant, driver, measured_ds, device, lat_e7, lon_e7)
        ) STRICT, WITHOUT ROWID;"
    )
}

/// Fixes wait at most 72 h on a phone, and no clock that is taken for right is a day ahead.
const DAYS_AROUND_RECEIPT: RangeInclusive<i64> = -4..=1;
const STRAYS: &str = "breadcrumbs_stray";
const STRAYS_DROPPED_AT_ONCE: u32 = 10_000;

const SCHEMA: Schema = Schema {
    name: "history",
    application_id: 0x5746_5431, // "WFT1"
    steps: &["
        CREATE TABLE offsets (
            partition INTEGER PRIMARY KEY,
            next INTEGER NOT NULL
        ) STRICT;

        CREATE TABLE spans (
            tenant INTEGER NOT NULL,
            delivery INTEGER NOT NULL,
            driver INTEGER NOT NULL,
            first_ds INTEGER NOT NULL,
            last_ds INTEGER NOT NULL,
            last_received_day INTEGER NOT NULL,
            PRIMARY KEY (tenant, delivery, driver)
        ) STRICT, WITHOUT ROWID;

        CREATE TABLE days (
            day INTEGER PRIMARY KEY
        ) STRICT;

        CREATE TABLE breadcrumbs_stray (
            tenant INTEGER NOT NULL,
            driver INTEGER NOT NULL,
            measured_ds INTEGER NOT NULL,
            device INTEGER NOT NULL,
            lat_e7 INTEGER NOT NULL,
            lon_e7 INTEGER NOT NULL,
            received_day INTEGER NOT NULL,
            delivery INTEGER,
            rejected TEXT,
            breadcrumb BLOB NOT NULL,
            PRIMARY KEY (tenant, driver, measured_ds, device, lat_e7, lon_e7)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX breadcrumbs_stray_received ON breadcrumbs_stray (received_day);
    "],
};

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::crash;
    use crate::trail_store::conformance::{self, Opened, trail_store_conformance};

    struct Fixture(tempfile::TempDir);

    impl Fixture {
        fn new() -> Self {
            Fixture(tempfile::tempdir().unwrap())
        }

        async fn open(&self) -> Opened {
            open(self.0.path())
        }
    }

    fn open(folder: &Path) -> Opened {
        Arc::new(EmbeddedTrailStore::open(&folder.join("history.db")).unwrap())
    }

    trail_store_conformance!(Fixture::new());

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn offsets_and_breadcrumbs_agree_after_kill_9() {
        if let Some(folder) = crash::folder_of_child() {
            return conformance::write_until_killed(open(&folder)).await;
        }
        let folder = tempfile::tempdir().unwrap();
        let test = "trail_store::embedded::tests::offsets_and_breadcrumbs_agree_after_kill_9";

        for count in [20, 100, 200] {
            let said = crash::kill_in_the_middle(test, folder.path(), count);
            conformance::offsets_and_breadcrumbs_agree(open(folder.path()), &said).await;
        }
    }

    #[tokio::test]
    async fn a_wrong_clock_makes_no_table() {
        let fixture = Fixture::new();
        conformance::wrong_clocks_are_kept_and_expire_by_their_receipt(async || fixture.open().await).await;
        let file = Connection::open(fixture.0.path().join("history.db")).unwrap();

        let sql = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name LIKE 'breadcrumbs%'";
        let tables: i64 = file.query_row(sql, [], |row| row.get(0)).unwrap();

        assert_eq!(tables, 2);
    }
}
