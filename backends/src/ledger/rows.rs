//! The ledger's tables in SQLite and what is read from and written to them, each within the caller's transaction.
//! `delivery_events` only grows, by triggers that refuse anything else; `deliveries` is what its events come to, kept
//! beside them so that a list needs no fold.

use std::time::Duration;

use protocol::delivery::ABANDONED_AFTER_H_MAX;
use protocol::{
    AssignmentNumber, Delivery, DeliveryId, DeliveryKey, DeliveryState, DriverId, DriverKey, JournalEntry, JournalKind,
    JournalNumber, PartitionId, TenantId, Time, TrackerKey, partition_of,
};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{BirthMark, DeliveryFilter, Idempotency, LIST_MAX, LedgerError};
use crate::control::secret::random_bytes;
use crate::installation::Numbers;
use crate::outbox;
use crate::sqlite::Schema;

pub(super) const SCHEMA: Schema = Schema {
    name: "ledger",
    application_id: 0x5746_4c31, // "WFL1"
    steps: &[
        "
        CREATE TABLE tenants (
            tenant INTEGER PRIMARY KEY,
            next_delivery INTEGER NOT NULL
        ) STRICT;

        CREATE TABLE deliveries (
            tenant INTEGER NOT NULL,
            delivery INTEGER NOT NULL CHECK (delivery BETWEEN 1 AND 9223372036854775806),
            state TEXT NOT NULL,
            assignment INTEGER NOT NULL,
            driver INTEGER,
            stops TEXT NOT NULL,
            policy TEXT NOT NULL,
            reference TEXT NOT NULL,
            created_ms INTEGER NOT NULL,
            PRIMARY KEY (tenant, delivery)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX deliveries_live ON deliveries (tenant, delivery)
            WHERE state NOT IN ('delivered', 'failed');
        CREATE INDEX deliveries_driver ON deliveries (tenant, driver, delivery);
        CREATE INDEX deliveries_driver_live ON deliveries (tenant, driver, delivery)
            WHERE state NOT IN ('delivered', 'failed');

        CREATE TABLE delivery_events (
            tenant INTEGER NOT NULL,
            delivery INTEGER NOT NULL,
            number INTEGER NOT NULL CHECK (number > 0),
            at_ms INTEGER NOT NULL,
            event TEXT NOT NULL,
            PRIMARY KEY (tenant, delivery, number),
            FOREIGN KEY (tenant, delivery) REFERENCES deliveries
        ) STRICT, WITHOUT ROWID;
        CREATE TRIGGER delivery_events_follow BEFORE INSERT ON delivery_events
            WHEN NEW.number != 1 + (SELECT coalesce(max(number), 0) FROM delivery_events
                                    WHERE tenant = NEW.tenant AND delivery = NEW.delivery)
            BEGIN SELECT RAISE(ABORT, 'delivery events are numbered without gaps'); END;
        CREATE TRIGGER delivery_events_stay BEFORE UPDATE ON delivery_events
            BEGIN SELECT RAISE(ABORT, 'delivery events are never changed'); END;
        CREATE TRIGGER delivery_events_remain BEFORE DELETE ON delivery_events
            BEGIN SELECT RAISE(ABORT, 'delivery events are never deleted'); END;

        CREATE TABLE proposals (
            tenant INTEGER NOT NULL,
            delivery INTEGER NOT NULL,
            assignment INTEGER NOT NULL,
            kind TEXT NOT NULL,
            stop INTEGER NOT NULL,
            PRIMARY KEY (tenant, delivery, assignment, kind, stop),
            FOREIGN KEY (tenant, delivery) REFERENCES deliveries
        ) STRICT, WITHOUT ROWID;

        CREATE TABLE idempotency (
            tenant INTEGER NOT NULL,
            key TEXT NOT NULL,
            request BLOB NOT NULL,
            answer TEXT NOT NULL,
            created_ms INTEGER NOT NULL,
            PRIMARY KEY (tenant, key)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX idempotency_created ON idempotency (created_ms);
    ",
        outbox::TABLE,
        // When an open delivery counts as abandoned.
        "
        ALTER TABLE deliveries ADD COLUMN abandoned_ms INTEGER NOT NULL DEFAULT 0;
        UPDATE deliveries SET abandoned_ms = 48 * 3600000 +
            (SELECT max(at_ms) FROM delivery_events e
             WHERE e.tenant = deliveries.tenant AND e.delivery = deliveries.delivery);
        CREATE INDEX deliveries_abandoned ON deliveries (abandoned_ms) WHERE state NOT IN ('delivered', 'failed');
    ",
        // What a token is bound to, and where numbers go on after a loss.
        "
        ALTER TABLE deliveries ADD COLUMN birth BLOB CHECK (length(birth) = 16);
        ALTER TABLE deliveries ADD COLUMN journal_from INTEGER NOT NULL DEFAULT 1;
        CREATE TABLE floors (
            one INTEGER PRIMARY KEY CHECK (one = 1),
            delivery INTEGER NOT NULL,
            assignment INTEGER NOT NULL,
            journal INTEGER NOT NULL
        ) STRICT;
        INSERT INTO floors VALUES (1, 0, 0, 0);
        DROP TRIGGER delivery_events_follow;
        CREATE TRIGGER delivery_events_follow BEFORE INSERT ON delivery_events
            WHEN NEW.number != max(
                1 + (SELECT coalesce(max(number), 0) FROM delivery_events
                     WHERE tenant = NEW.tenant AND delivery = NEW.delivery),
                (SELECT journal_from FROM deliveries WHERE tenant = NEW.tenant AND delivery = NEW.delivery))
            BEGIN SELECT RAISE(ABORT, 'delivery events are numbered without gaps'); END;
        ",
    ],
};

/// The smallest free number at or above the tenant's counter, which then moves past it.
pub(super) fn take_delivery_id(connection: &Connection, tenant: TenantId) -> Result<DeliveryId, LedgerError> {
    let next: Option<i64> = connection
        .prepare_cached("SELECT next_delivery FROM tenants WHERE tenant = ?1")?
        .query_row([tenant.0], |row| row.get(0))
        .optional()?;
    let next = next.map_or_else(|| floor(connection, Floor::Delivery).map(|floor| floor + 1), Ok)?;
    let id = first_free(connection, tenant, next)?;
    connection
        .prepare_cached(
            "INSERT INTO tenants VALUES (?1, ?2)
             ON CONFLICT (tenant) DO UPDATE SET next_delivery = excluded.next_delivery",
        )?
        .execute(params![tenant.0, id.saturating_add(1)])?;
    Ok(DeliveryId(id as u64))
}

/// The numbers that the tenant gave itself may stand in the way: then the end of the run that begins at `next`.
fn first_free(connection: &Connection, tenant: TenantId, next: i64) -> Result<i64, LedgerError> {
    if !exists(connection, DeliveryKey { tenant, delivery: DeliveryId(next as u64) })? {
        return Ok(next);
    }
    let last_of_run: i64 = connection
        .prepare_cached(
            "SELECT d.delivery FROM deliveries d WHERE d.tenant = ?1 AND d.delivery >= ?2
             AND NOT EXISTS (SELECT 1 FROM deliveries n WHERE n.tenant = ?1 AND n.delivery = d.delivery + 1)
             ORDER BY d.delivery LIMIT 1",
        )?
        .query_row(params![tenant.0, next], |row| row.get(0))?;
    Ok(last_of_run.saturating_add(1))
}

pub(super) fn exists(connection: &Connection, key: DeliveryKey) -> Result<bool, LedgerError> {
    let mut statement = connection.prepare_cached("SELECT 1 FROM deliveries WHERE tenant = ?1 AND delivery = ?2")?;
    Ok(statement.exists(params![key.tenant.0, sql_id(key.delivery)])?)
}

/// Without its events. A number of the tenant's own may have been another delivery's that was lost: its journal then
/// begins above all that were given.
pub(super) fn insert_delivery(connection: &Connection, delivery: &Delivery, is_own: bool) -> Result<(), LedgerError> {
    let journal_from = if is_own { floor(connection, Floor::Journal)? + 1 } else { 1 };
    let sql = "INSERT INTO deliveries (tenant, delivery, state, assignment, driver, stops, policy, reference,
                                       created_ms, abandoned_ms, birth, journal_from)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)";
    connection.prepare_cached(sql)?.execute(params![
        delivery.key.tenant.0,
        sql_id(delivery.key.delivery),
        delivery.state.name(),
        delivery.assignment.0,
        delivery.driver.map(|driver| driver.0),
        to_json(&delivery.stops)?,
        to_json(&delivery.policy)?,
        delivery.reference,
        delivery.created.0,
        abandoned_at(delivery, delivery.created).0,
        random_bytes::<16>(),
        journal_from,
    ])?;
    Ok(())
}

pub(super) fn birth_mark(connection: &Connection, key: DeliveryKey) -> Result<Option<BirthMark>, LedgerError> {
    let birth: Option<Option<Vec<u8>>> = connection
        .prepare_cached("SELECT birth FROM deliveries WHERE tenant = ?1 AND delivery = ?2")?
        .query_row(params![key.tenant.0, sql_id(key.delivery)], |row| row.get(0))
        .optional()?;
    let Some(birth) = birth.flatten() else { return Ok(None) };
    let birth = birth.try_into().map_err(|_| damaged("a birth mark has another length".to_string()))?;
    Ok(Some(BirthMark(birth)))
}

/// The assignment that a delivery begins with: its tenant's own number may have been another's that was lost, and readers
/// follow the highest assignment they have seen.
pub(super) fn first_assignment(
    connection: &Connection,
    own: Option<DeliveryId>,
) -> Result<AssignmentNumber, LedgerError> {
    let Some(_) = own else { return Ok(AssignmentNumber(1)) };
    Ok(next_assignment(connection, AssignmentNumber(0))?.unwrap_or(AssignmentNumber(u32::MAX)))
}

/// None: there is no higher number.
pub(super) fn next_assignment(
    connection: &Connection,
    last: AssignmentNumber,
) -> Result<Option<AssignmentNumber>, LedgerError> {
    let above = i64::from(last.0).max(floor(connection, Floor::Assignment)?) + 1;
    Ok(u32::try_from(above).ok().map(AssignmentNumber))
}

/// Which numbers.
#[derive(Clone, Copy)]
enum Floor {
    Delivery,
    Assignment,
    Journal,
}

/// The highest number of a kind that can have been given before a loss; 0 if nothing was ever lost.
fn floor(connection: &Connection, kind: Floor) -> Result<i64, LedgerError> {
    let sql = match kind {
        Floor::Delivery => "SELECT delivery FROM floors",
        Floor::Assignment => "SELECT assignment FROM floors",
        Floor::Journal => "SELECT journal FROM floors",
    };
    Ok(connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
}

pub(super) fn numbers(connection: &Connection) -> Result<Numbers, LedgerError> {
    let highest = |sql: &str| -> Result<u64, LedgerError> {
        let number: Option<i64> = connection.query_row(sql, [], |row| row.get(0))?;
        Ok(number.unwrap_or(0) as u64)
    };
    Ok(Numbers {
        delivery: highest("SELECT max(next_delivery) - 1 FROM tenants")?,
        assignment: highest("SELECT max(assignment) FROM deliveries")?,
        journal: highest("SELECT max(number) FROM delivery_events")?,
        ..Numbers::default()
    })
}

pub(super) fn go_on_above(connection: &Connection, numbers: Numbers) -> Result<(), LedgerError> {
    let [delivery, assignment, journal] = [numbers.delivery, numbers.assignment, numbers.journal]
        .map(|number| i64::try_from(number).unwrap_or(i64::MAX / 2));
    connection.execute(
        "UPDATE floors SET delivery = max(delivery, ?1), assignment = max(assignment, ?2), journal = max(journal, ?3)",
        [delivery, assignment, journal],
    )?;
    connection.execute("UPDATE tenants SET next_delivery = max(next_delivery, ?1)", [delivery + 1])?;
    connection.execute("UPDATE deliveries SET journal_from = max(journal_from, ?1)", [journal + 1])?;
    Ok(())
}

/// The next event of this delivery: written, and taken into `delivery`.
pub(super) fn append_event(
    connection: &Connection,
    delivery: &mut Delivery,
    kind: JournalKind,
    now: Time,
) -> Result<JournalEntry, LedgerError> {
    let (tenant, id) = (delivery.key.tenant.0, sql_id(delivery.key.delivery));
    let journal_from: i64 = connection
        .prepare_cached("SELECT journal_from FROM deliveries WHERE tenant = ?1 AND delivery = ?2")?
        .query_row(params![tenant, id], |row| row.get(0))?;
    let number = JournalNumber((delivery.last_number().0 + 1).max(journal_from as u64));
    let entry = JournalEntry { number, at: now, kind };
    connection.prepare_cached("INSERT INTO delivery_events VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(params![
        tenant,
        id,
        entry.number.0 as i64,
        now.0,
        to_json(&entry.kind)?
    ])?;
    delivery.handle_entry(entry.clone());
    connection
        .prepare_cached(
            "UPDATE deliveries SET state = ?3, assignment = ?4, driver = ?5, abandoned_ms = ?6
             WHERE tenant = ?1 AND delivery = ?2",
        )?
        .execute(params![
            tenant,
            id,
            delivery.state.name(),
            delivery.assignment.0,
            delivery.driver.map(|driver| driver.0),
            abandoned_at(delivery, now).0,
        ])?;
    Ok(entry)
}

fn abandoned_at(delivery: &Delivery, last_event: Time) -> Time {
    last_event + Duration::from_secs(3600 * u64::from(delivery.policy.abandoned_after_h))
}

/// What was stamped by a clock in a wrong future would wait for that future: it has its whole time from now on. And where
/// that was a clock that was behind itself, as after a power cut, its last event says better how long it has.
pub(super) fn mend_abandoned(connection: &Connection, now: Time) -> Result<(), LedgerError> {
    let longest_ms = 3_600_000 * i64::from(ABANDONED_AFTER_H_MAX);
    connection
        .prepare_cached(
            "UPDATE deliveries INDEXED BY deliveries_abandoned SET abandoned_ms =
             ?1 + 3600000 * coalesce(json_extract(policy, '$.abandoned_after_h'), 48)
             WHERE abandoned_ms > ?1 + ?2 AND state NOT IN ('delivered', 'failed')",
        )?
        .execute(params![now.0, longest_ms])?;
    // An event from after `now` says nothing: it is the one that a clock ahead has stamped.
    connection
        .prepare_cached(
            "UPDATE deliveries SET abandoned_ms = own.abandoned_ms FROM (
                 SELECT d.tenant, d.delivery,
                     e.at_ms + 3600000 * coalesce(json_extract(d.policy, '$.abandoned_after_h'), 48) AS abandoned_ms
                 FROM deliveries d INDEXED BY deliveries_abandoned
                 JOIN delivery_events e ON e.tenant = d.tenant AND e.delivery = d.delivery AND e.number =
                     (SELECT max(number) FROM delivery_events WHERE tenant = d.tenant AND delivery = d.delivery)
                 WHERE d.abandoned_ms <= ?1 AND d.state NOT IN ('delivered', 'failed') AND e.at_ms <= ?1
             ) own
             WHERE deliveries.tenant = own.tenant AND deliveries.delivery = own.delivery AND own.abandoned_ms > ?1",
        )?
        .execute([now.0])?;
    Ok(())
}

/// Open deliveries that count as abandoned, those that have waited longest first.
pub(super) fn abandoned(connection: &Connection, limit: u32, now: Time) -> Result<Vec<DeliveryKey>, LedgerError> {
    let mut statement = connection.prepare_cached(
        "SELECT tenant, delivery FROM deliveries INDEXED BY deliveries_abandoned
         WHERE abandoned_ms <= ?1 AND state NOT IN ('delivered', 'failed') ORDER BY abandoned_ms LIMIT ?2",
    )?;
    let key = |row: &Row| {
        Ok(DeliveryKey { tenant: TenantId(row.get(0)?), delivery: DeliveryId(row.get::<_, i64>(1)? as u64) })
    };
    Ok(statement.query_map(params![now.0, limit.min(LIST_MAX)], key)?.collect::<Result<_, _>>()?)
}

/// How many open deliveries a driver has, as far as `most`.
pub(super) fn open_of(connection: &Connection, driver: DriverKey, most: usize) -> Result<usize, LedgerError> {
    let mut statement = connection.prepare_cached(
        "SELECT count(*) FROM (SELECT 1 FROM deliveries WHERE tenant = ?1 AND driver = ?2
         AND state NOT IN ('delivered', 'failed') LIMIT ?3)",
    )?;
    let count: u32 = statement.query_row(params![driver.tenant.0, driver.driver.0, most as i64], |row| row.get(0))?;
    Ok(count as usize)
}

pub(super) fn delivery(connection: &Connection, key: DeliveryKey) -> Result<Option<Delivery>, LedgerError> {
    let sql = format!("{SELECT_DELIVERY} WHERE tenant = ?1 AND delivery = ?2");
    let found = connection
        .prepare_cached(&sql)?
        .query_row(params![key.tenant.0, sql_id(key.delivery)], delivery_columns)
        .optional()?;
    found.map(|columns| columns.with_journal(connection)).transpose()
}

pub(super) fn deliveries(
    connection: &Connection,
    tenant: TenantId,
    filter: &DeliveryFilter,
) -> Result<Vec<Delivery>, LedgerError> {
    let live = if filter.is_live { "AND state NOT IN ('delivered', 'failed')" } else { "" };
    let driver = if filter.driver.is_some() { "AND driver = ?4" } else { "AND ?4 IS NULL" };
    let sql =
        format!("{SELECT_DELIVERY} WHERE tenant = ?1 AND delivery > ?2 {live} {driver} ORDER BY delivery LIMIT ?3");
    let mut statement = connection.prepare_cached(&sql)?;
    let limit = filter.limit.min(LIST_MAX);
    let driver = filter.driver.map(|driver| driver.0);
    let rows = statement.query_map(params![tenant.0, sql_id(filter.after), limit, driver], delivery_columns)?;
    rows.map(|columns| columns?.with_journal(connection)).collect()
}

pub(super) fn facts(connection: &Connection, partition: PartitionId, count: u32) -> Result<Vec<Delivery>, LedgerError> {
    let sql = format!("{SELECT_DELIVERY} WHERE state NOT IN ('delivered', 'failed') ORDER BY tenant, delivery");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut facts = Vec::new();
    for columns in statement.query_map([], delivery_columns)? {
        let columns = columns?;
        if partition_of(&holder(&columns.delivery).key_bytes(), count) == partition {
            facts.push(columns.with_journal(connection)?);
        }
    }
    Ok(facts)
}

pub(super) fn journal(
    connection: &Connection,
    key: DeliveryKey,
    after: JournalNumber,
    limit: u32,
) -> Result<Vec<JournalEntry>, LedgerError> {
    let mut statement = connection.prepare_cached(
        "SELECT number, at_ms, event FROM delivery_events WHERE tenant = ?1 AND delivery = ?2 AND number > ?3
         ORDER BY number LIMIT ?4",
    )?;
    let after = i64::try_from(after.0).unwrap_or(i64::MAX);
    let rows = statement
        .query_map(params![key.tenant.0, sql_id(key.delivery), after, limit.min(LIST_MAX)], entry_columns)?
        .collect::<Result<Vec<_>, _>>()?;
    rows.into_iter().map(entry).collect()
}

pub(super) fn is_proposed(
    connection: &Connection,
    key: DeliveryKey,
    assignment: AssignmentNumber,
    kind: &str,
    stop: u8,
) -> Result<bool, LedgerError> {
    let mut statement = connection.prepare_cached(
        "SELECT 1 FROM proposals WHERE tenant = ?1 AND delivery = ?2 AND assignment = ?3 AND kind = ?4 AND stop = ?5",
    )?;
    Ok(statement.exists(params![key.tenant.0, sql_id(key.delivery), assignment.0, kind, stop])?)
}

pub(super) fn insert_proposal(
    connection: &Connection,
    key: DeliveryKey,
    assignment: AssignmentNumber,
    kind: &str,
    stop: u8,
) -> Result<(), LedgerError> {
    let mut statement = connection.prepare_cached("INSERT INTO proposals VALUES (?1, ?2, ?3, ?4, ?5)")?;
    statement.execute(params![key.tenant.0, sql_id(key.delivery), assignment.0, kind, stop])?;
    Ok(())
}

/// What was answered to this request before, if it was made before.
pub(super) fn remembered(
    connection: &Connection,
    tenant: TenantId,
    idempotency: &Idempotency,
    now: Time,
) -> Result<Option<Delivery>, LedgerError> {
    let found: Option<(Vec<u8>, String)> = connection
        .prepare_cached("SELECT request, answer FROM idempotency WHERE tenant = ?1 AND key = ?2 AND created_ms > ?3")?
        .query_row(params![tenant.0, idempotency.key, idempotency.forgotten_before(now).0], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    let Some((request, answer)) = found else { return Ok(None) };
    if request != idempotency.request {
        return Err(LedgerError::IdempotencyMismatch);
    }
    from_json(&answer).map(Some)
}

/// Remembers an answer, and forgets a few whose time has passed: more than are added, so that they do not gather.
pub(super) fn remember(
    connection: &Connection,
    tenant: TenantId,
    idempotency: &Idempotency,
    answer: &Delivery,
    now: Time,
) -> Result<(), LedgerError> {
    connection
        .prepare_cached(
            "DELETE FROM idempotency WHERE (tenant, key) IN
             (SELECT tenant, key FROM idempotency WHERE created_ms <= ?1 ORDER BY created_ms LIMIT 16)",
        )?
        .execute([idempotency.forgotten_before(now).0])?;
    connection.prepare_cached("INSERT OR REPLACE INTO idempotency VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(params![
        tenant.0,
        idempotency.key,
        idempotency.request,
        to_json(answer)?,
        now.0
    ])?;
    Ok(())
}

/// Whose tracker has this delivery.
pub(super) fn holder(delivery: &Delivery) -> TrackerKey {
    match delivery.driver {
        Some(driver) => TrackerKey::Driver(DriverKey { tenant: delivery.key.tenant, driver }),
        None => TrackerKey::Delivery(delivery.key),
    }
}

/// A row of `deliveries`: texts still to be read.
struct DeliveryColumns {
    delivery: Delivery,
    state: String,
    stops: String,
    policy: String,
}

const SELECT_DELIVERY: &str =
    "SELECT tenant, delivery, state, assignment, driver, stops, policy, reference, created_ms FROM deliveries";

fn delivery_columns(row: &Row) -> rusqlite::Result<DeliveryColumns> {
    let delivery = Delivery {
        key: DeliveryKey { tenant: TenantId(row.get(0)?), delivery: DeliveryId(row.get::<_, i64>(1)? as u64) },
        state: DeliveryState::Received,
        assignment: AssignmentNumber(row.get(3)?),
        driver: row.get::<_, Option<u32>>(4)?.map(DriverId),
        stops: Vec::new(),
        policy: Default::default(),
        journal: Vec::new(),
        reference: row.get(7)?,
        created: Time(row.get(8)?),
    };
    Ok(DeliveryColumns { delivery, state: row.get(2)?, stops: row.get(5)?, policy: row.get(6)? })
}

impl DeliveryColumns {
    fn with_journal(self, connection: &Connection) -> Result<Delivery, LedgerError> {
        let mut delivery = self.delivery;
        let state = DeliveryState::ALL.into_iter().find(|state| state.name() == self.state);
        delivery.state = state.ok_or_else(|| damaged(format!("state {:?}", self.state)))?;
        delivery.stops = from_json(&self.stops)?;
        delivery.policy = from_json(&self.policy)?;
        let mut statement = connection.prepare_cached(
            "SELECT number, at_ms, event FROM delivery_events WHERE tenant = ?1 AND delivery = ?2
             ORDER BY number DESC LIMIT ?3",
        )?;
        let newest = protocol::delivery::JOURNAL_MAX as i64;
        let rows = statement
            .query_map(params![delivery.key.tenant.0, sql_id(delivery.key.delivery), newest], entry_columns)?
            .collect::<Result<Vec<_>, _>>()?;
        delivery.journal = rows.into_iter().rev().map(entry).collect::<Result<_, _>>()?;
        Ok(delivery)
    }
}

fn entry_columns(row: &Row) -> rusqlite::Result<(i64, i64, String)> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
}

fn entry((number, at_ms, event): (i64, i64, String)) -> Result<JournalEntry, LedgerError> {
    Ok(JournalEntry { number: JournalNumber(number as u64), at: Time(at_ms), kind: from_json(&event)? })
}

/// A number above `DELIVERY_ID_MAX` is no delivery's: it finds none.
fn sql_id(delivery: DeliveryId) -> i64 {
    i64::try_from(delivery.0).unwrap_or(i64::MAX)
}

fn to_json<T: Serialize>(value: &T) -> Result<String, LedgerError> {
    serde_json::to_string(value).map_err(|error| damaged(error.to_string()))
}

fn from_json<T: DeserializeOwned>(text: &str) -> Result<T, LedgerError> {
    serde_json::from_str(text).map_err(|error| damaged(error.to_string()))
}

fn damaged(reason: String) -> LedgerError {
    LedgerError::Damaged { reason }
}
