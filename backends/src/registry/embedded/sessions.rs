//! Sessions of devices. Their starts strictly rise, because a start and a device number make the keys; and none lies in
//! the future, because an edge would not believe it. Where a session was begun by a clock that was ahead, both cannot be
//! had: the device then goes on under the next number of its driver, by the credential that it has.

use protocol::{DeviceKey, DeviceNumber, FixNumber, Record, Time};
use rusqlite::{Connection, OptionalExtension, params};

use super::{NUMBERS_STEP, RegistryError, insert_device};
use crate::outbox;
use crate::registry::{START_AHEAD_MAX, SessionStart};

pub(super) fn start(connection: &Connection, device: DeviceKey, now: Time) -> Result<SessionStart, RegistryError> {
    let mut device = newest(connection, device)?;
    let (mut last_start_s, numbers_from) = last(connection, device)?;
    if last_start_s + 1 > (now + START_AHEAD_MAX).as_secs() {
        device = succeed(connection, device, numbers_from, now)?;
        last_start_s = 0;
    }
    // A clock that went back must not give a device the same start, and so the same nonces, twice.
    let start_s = u32::try_from(now.as_secs().max(last_start_s + 1));
    let start_s = start_s.map_err(|_| RegistryError::Exhausted { what: "session of this device" })?;
    let numbers_next = numbers_from.checked_add(NUMBERS_STEP as i64);
    let numbers_next = numbers_next.ok_or(RegistryError::Exhausted { what: "fix of this device" })?;
    connection
        .prepare_cached(
            "UPDATE devices SET session_start_s = ?4, numbers_next = ?5
             WHERE tenant = ?1 AND driver = ?2 AND device = ?3",
        )?
        .execute(params![device.tenant.0, device.driver.0, device.device.0, start_s, numbers_next])?;
    Ok(SessionStart { device, start_s, numbers_from: FixNumber(numbers_from as u64) })
}

/// The device under every number that it has gone by: its credential may be that of any of them.
pub(super) fn revoke(connection: &Connection, device: DeviceKey, now: Time) -> Result<Vec<DeviceKey>, RegistryError> {
    let mut revoked = Vec::new();
    let mut next = Some(oldest(connection, device)?);
    while let Some(device) = next {
        revoke_number(connection, device, now)?;
        revoked.push(device);
        next = successor(connection, device)?;
    }
    Ok(revoked)
}

fn revoke_number(connection: &Connection, device: DeviceKey, now: Time) -> Result<(), RegistryError> {
    let of_device = (device.tenant.0, device.driver.0, device.device.0);
    let revoked_before = connection
        .prepare_cached("SELECT revoked_ms FROM devices WHERE tenant = ?1 AND driver = ?2 AND device = ?3")?
        .query_row(of_device, |row| row.get::<_, Option<i64>>(0))
        .optional()?
        .ok_or(RegistryError::NoDevice)?;
    if revoked_before.is_some() {
        return Ok(());
    }
    connection
        .prepare_cached("UPDATE devices SET revoked_ms = ?4 WHERE tenant = ?1 AND driver = ?2 AND device = ?3")?
        .execute(params![of_device.0, of_device.1, of_device.2, now.0])?;
    connection
        .prepare_cached("UPDATE drivers SET lead = NULL WHERE tenant = ?1 AND driver = ?2 AND lead = ?3")?
        .execute(of_device)?;
    // Also where nobody said that it leads: the first that is heard does.
    Ok(outbox::insert(connection, Record::LeadEnded { device, at: now })?)
}

/// What the device went by first. Predecessors have lower numbers, so this ends.
fn oldest(connection: &Connection, device: DeviceKey) -> Result<DeviceKey, RegistryError> {
    let mut oldest = device;
    while let Some(before) = predecessor(connection, oldest)? {
        oldest = before;
    }
    Ok(oldest)
}

fn predecessor(connection: &Connection, device: DeviceKey) -> Result<Option<DeviceKey>, RegistryError> {
    let found = connection
        .prepare_cached("SELECT device FROM devices WHERE tenant = ?1 AND driver = ?2 AND successor = ?3")?
        .query_row(params![device.tenant.0, device.driver.0, device.device.0], |row| row.get(0))
        .optional()?;
    Ok(found.map(|number| DeviceKey { device: DeviceNumber(number), ..device }))
}

/// What the device goes by. Successors have higher numbers, so this ends.
fn newest(connection: &Connection, device: DeviceKey) -> Result<DeviceKey, RegistryError> {
    let mut newest = device;
    while let Some(next) = successor(connection, newest)? {
        newest = next;
    }
    Ok(newest)
}

fn successor(connection: &Connection, device: DeviceKey) -> Result<Option<DeviceKey>, RegistryError> {
    let found: Option<Option<u16>> = connection
        .prepare_cached("SELECT successor FROM devices WHERE tenant = ?1 AND driver = ?2 AND device = ?3")?
        .query_row(params![device.tenant.0, device.driver.0, device.device.0], |row| row.get(0))
        .optional()?;
    Ok(found.flatten().map(|number| DeviceKey { device: DeviceNumber(number), ..device }))
}

/// Its last session start and its next fix number.
fn last(connection: &Connection, device: DeviceKey) -> Result<(i64, i64), RegistryError> {
    let found = connection
        .prepare_cached(
            "SELECT session_start_s, numbers_next FROM devices
             WHERE tenant = ?1 AND driver = ?2 AND device = ?3 AND revoked_ms IS NULL",
        )?
        .query_row(params![device.tenant.0, device.driver.0, device.device.0], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    found.ok_or(RegistryError::NoDevice)
}

/// Another number for the same device. Its fix numbers go on rising, and it leads if the device did.
fn succeed(
    connection: &Connection,
    device: DeviceKey,
    numbers_from: i64,
    now: Time,
) -> Result<DeviceKey, RegistryError> {
    let next = insert_device(connection, device.tenant, device.driver, now)?;
    let key = params![device.tenant.0, device.driver.0, device.device.0, next.device.0];
    connection
        .prepare_cached("UPDATE devices SET successor = ?4 WHERE tenant = ?1 AND driver = ?2 AND device = ?3")?
        .execute(key)?;
    connection
        .prepare_cached("UPDATE devices SET numbers_next = ?4 WHERE tenant = ?1 AND driver = ?2 AND device = ?3")?
        .execute(params![next.tenant.0, next.driver.0, next.device.0, numbers_from])?;
    let leads = connection
        .prepare_cached("UPDATE drivers SET lead = ?4 WHERE tenant = ?1 AND driver = ?2 AND lead = ?3")?
        .execute(key)?;
    if leads == 1 {
        outbox::insert(connection, Record::Lead { device: next, at: now })?;
    }
    Ok(next)
}
