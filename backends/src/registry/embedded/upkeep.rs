//! What the registry does for the installation: which numbers it gave, going on above those that were lost, and the token
//! keys that it keeps in case the log is lost.

use protocol::Time;
use rusqlite::{Connection, params};

use super::{NUMBERS_STEP, RegistryError};
use crate::control::credential::TokenKeyId;
use crate::installation::Numbers;

pub(super) fn numbers(connection: &Connection) -> Result<Numbers, RegistryError> {
    let highest = |sql: &str| -> Result<u64, RegistryError> {
        let number: Option<i64> = connection.query_row(sql, [], |row| row.get(0))?;
        Ok(number.unwrap_or(0) as u64)
    };
    Ok(Numbers {
        tenant: highest("SELECT max(seq) FROM sqlite_sequence WHERE name = 'tenants'")?,
        driver: highest("SELECT max(drivers_given) FROM tenants")?,
        device: highest("SELECT max(devices_given) FROM drivers")?,
        ..Numbers::default()
    })
}

pub(super) fn go_on_above(connection: &Connection, numbers: Numbers, now: Time) -> Result<(), RegistryError> {
    let [tenant, driver, device] =
        [numbers.tenant, numbers.driver, numbers.device].map(|number| i64::try_from(number).unwrap_or(i64::MAX));
    let raised =
        connection.execute("UPDATE sqlite_sequence SET seq = max(seq, ?1) WHERE name = 'tenants'", [tenant])?;
    if raised == 0 {
        connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('tenants', ?1)", [tenant])?;
    }
    connection.execute("UPDATE tenants SET drivers_given = max(drivers_given, ?1)", [driver])?;
    connection.execute("UPDATE drivers SET devices_given = max(devices_given, ?1)", [device])?;
    // Sessions that were started and lost: none of their starts and of their fix numbers may come again.
    connection.execute(
        "UPDATE devices SET session_start_s = max(session_start_s, ?1), numbers_next = numbers_next + ?2",
        [now.as_secs(), (SESSIONS_LOST_MAX * NUMBERS_STEP) as i64],
    )?;
    Ok(())
}

pub(super) fn keep_token_keys(connection: &Connection, wrapped: &[(TokenKeyId, Vec<u8>)]) -> Result<(), RegistryError> {
    let mut statement = connection.prepare_cached("INSERT INTO token_keys VALUES (?1, ?2) ON CONFLICT DO NOTHING")?;
    for (id, wrapped) in wrapped {
        statement.execute(params![id.0, wrapped])?;
    }
    Ok(())
}

pub(super) fn kept_token_keys(connection: &Connection) -> Result<Vec<(TokenKeyId, Vec<u8>)>, RegistryError> {
    let mut statement = connection.prepare_cached("SELECT id, wrapped FROM token_keys ORDER BY id")?;
    let rows = statement.query_map([], |row| Ok((TokenKeyId(row.get(0)?), row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn forget_token_keys(connection: &Connection) -> Result<(), RegistryError> {
    connection.execute("DELETE FROM token_keys", [])?;
    Ok(())
}

/// As many as a device starts in three years at two a day: a jump that still fits the four bytes in which a datagram
/// writes a fix number of that size.
const SESSIONS_LOST_MAX: u64 = 2048;
