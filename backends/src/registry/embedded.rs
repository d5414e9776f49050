//! The registry in one SQLite file. Numbers come from counters that only rise, so that none is ever given twice;
//! tokens are looked up by their hash alone, device credentials first checked by their seal.

mod repeats;
mod sessions;
mod suspects;
mod upkeep;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::RwLock;
use protocol::record::Vehicle;
use protocol::{
    DeliveryId, DeliveryKey, DeliveryPolicy, DeviceKey, DeviceNumber, DriverId, DriverKey, PartitionId, Record,
    TENANT_MAX, TenantId, Time, TrackerKey, partition_of,
};
use rusqlite::{Connection, OptionalExtension, Row, params};
use tokio::sync::Notify;

pub use self::suspects::{Voided, void_suspects};
use super::{
    Driver, DriverChange, DriverFact, Made, NUMBERS_STEP, New, Once, Registry, RegistryError, Scope, SessionStart,
    Tenant,
};
use crate::control::credential::{self, TokenKeyId, TokenKeys};
use crate::control::secret::random_bytes;
use crate::installation::{Given, Numbers};
use crate::ledger::{BirthMark, LIST_MAX, OutboxRow, TEXT_BYTES_MAX};
use crate::outbox;
use crate::sqlite::{Guard, Schema, Sqlite, from_sqlite};

pub struct EmbeddedRegistry {
    db: Sqlite,
    committed: Arc<Notify>,
    token_keys: RwLock<TokenKeys>,
    given: Given,
}

impl EmbeddedRegistry {
    /// Opens or makes the file, outside any installation. Blocks. Credentials are issued and checked with these keys.
    pub fn open(path: &Path, token_keys: TokenKeys) -> Result<Self, RegistryError> {
        Self::open_guarded(path, token_keys, None)
    }

    /// Opens or makes the file as part of an installation. Blocks.
    pub fn open_guarded(path: &Path, token_keys: TokenKeys, guard: Option<Guard>) -> Result<Self, RegistryError> {
        let committed = Arc::new(Notify::new());
        committed.notify_one();
        let notify = committed.clone();
        let given = Given::to(guard.as_ref());
        let db = Sqlite::open_guarded(path, SCHEMA, guard, move || notify.notify_one())?;
        Ok(EmbeddedRegistry { db, committed, token_keys: RwLock::new(token_keys), given })
    }

    /// Why it must not be relied on any more, once anything has shown it.
    pub fn damage(&self) -> Option<String> {
        self.db.damage()
    }

    /// The highest numbers given in what the file holds.
    pub async fn numbers(&self) -> Result<Numbers, RegistryError> {
        self.db.read(upkeep::numbers).await
    }

    /// From now on numbers and session starts lie above these: what was given and lost is not given again.
    pub async fn go_on_above(&self, numbers: Numbers, now: Time) -> Result<(), RegistryError> {
        self.db.write(move |connection| upkeep::go_on_above(connection, numbers, now)).await
    }

    /// Another API key of this tenant, answered this once; those it has go on to open.
    pub async fn new_tenant_key(&self, id: TenantId, now: Time) -> Result<String, RegistryError> {
        let token = random_token(TENANT_PREFIX);
        let hash = hash_of(&token);
        self.db
            .write(move |connection| {
                tenant(connection, id)?;
                insert_token(connection, &hash, id, None, now)
            })
            .await?;
        Ok(token)
    }

    /// Token keys, wrapped under the region key: the second place where they stand, should the log be lost. Every
    /// credential of every device depends on them.
    pub async fn keep_token_keys(&self, wrapped: Vec<(TokenKeyId, Vec<u8>)>) -> Result<(), RegistryError> {
        self.db.write(move |connection| upkeep::keep_token_keys(connection, &wrapped)).await
    }

    pub async fn kept_token_keys(&self) -> Result<Vec<(TokenKeyId, Vec<u8>)>, RegistryError> {
        self.db.read(upkeep::kept_token_keys).await
    }

    /// They open nothing any more: the region key that they were wrapped under is gone.
    pub async fn forget_token_keys(&self) -> Result<(), RegistryError> {
        self.db.write(upkeep::forget_token_keys).await
    }

    /// From now on with these keys.
    pub fn change_token_keys(&self, token_keys: TokenKeys) {
        *self.token_keys.write() = token_keys;
    }
}

from_sqlite!(RegistryError, Refused);

#[async_trait]
impl Registry for EmbeddedRegistry {
    async fn create_tenant(
        &self,
        name: &str,
        policy: DeliveryPolicy,
        now: Time,
    ) -> Result<(Tenant, String), RegistryError> {
        check_text(name)?;
        let name = name.to_string();
        let token = random_token(TENANT_PREFIX);
        let hash = hash_of(&token);
        let given = self.given.clone();
        let tenant = self
            .db
            .write(move |connection| {
                let tenant = insert_tenant(connection, name, policy, now)?;
                given.give(Numbers { tenant: u64::from(tenant.id.0), ..Numbers::default() });
                insert_token(connection, &hash, tenant.id, None, now)?;
                Ok::<_, RegistryError>(tenant)
            })
            .await?;
        Ok((tenant, token))
    }

    async fn tenant(&self, id: TenantId) -> Result<Tenant, RegistryError> {
        self.db.read(move |connection| tenant(connection, id)).await
    }

    async fn tenants(&self) -> Result<Vec<Tenant>, RegistryError> {
        self.db
            .read(|connection| {
                let mut statement = connection.prepare_cached("SELECT tenant, name, policy FROM tenants")?;
                let rows = statement.query_map([], tenant_columns)?.collect::<Result<Vec<_>, _>>()?;
                rows.into_iter().map(tenant_of).collect()
            })
            .await
    }

    async fn create_driver(
        &self,
        tenant: TenantId,
        name: &str,
        external_id: &str,
        vehicle: Vehicle,
        now: Time,
    ) -> Result<Driver, RegistryError> {
        check_text(name)?;
        check_text(external_id)?;
        let (id, name, external_id) = (DriverId(0), name.to_string(), external_id.to_string());
        let new = Driver { id, name, external_id, vehicle };
        let given = self.given.clone();
        self.db
            .write(move |connection| {
                let driver = create_driver(connection, tenant, new, now)?;
                given.give(Numbers { driver: u64::from(driver.id.0), ..Numbers::default() });
                Ok(driver)
            })
            .await
    }

    async fn change_driver(
        &self,
        tenant: TenantId,
        driver: DriverId,
        change: DriverChange,
    ) -> Result<Driver, RegistryError> {
        change.name.as_deref().map_or(Ok(()), check_text)?;
        self.db.write(move |connection| change_driver(connection, tenant, driver, change)).await
    }

    async fn driver(&self, tenant: TenantId, driver: DriverId) -> Result<Driver, RegistryError> {
        self.db.read(move |connection| self::driver(connection, tenant, driver)).await
    }

    async fn drivers(&self, tenant: TenantId, after: DriverId, limit: u32) -> Result<Vec<Driver>, RegistryError> {
        self.db
            .read(move |connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT driver, name, external_id, vehicle FROM drivers WHERE tenant = ?1 AND driver > ?2
                     ORDER BY driver LIMIT ?3",
                )?;
                let rows = statement.query_map([tenant.0, after.0, limit.min(LIST_MAX)], driver_columns)?;
                Ok(rows.collect::<Result<_, _>>()?)
            })
            .await
    }

    async fn enrol(&self, tenant: TenantId, driver: DriverId, now: Time) -> Result<(DeviceKey, String), RegistryError> {
        let given = self.given.clone();
        let device = self
            .db
            .write(move |connection| {
                let device = insert_device(connection, tenant, driver, now)?;
                given.give(Numbers { device: u64::from(device.device.0), ..Numbers::default() });
                Ok::<_, RegistryError>(device)
            })
            .await?;
        let credential = credential::issue(device, &self.token_keys.read());
        let credential = credential.map_err(|error| RegistryError::Unavailable { reason: error.to_string() })?;
        Ok((device, credential))
    }

    async fn revoke(&self, device: DeviceKey, now: Time) -> Result<Vec<DeviceKey>, RegistryError> {
        self.db.write(move |connection| sessions::revoke(connection, device, now)).await
    }

    async fn facts(&self, partition: PartitionId, count: u32) -> Result<Vec<DriverFact>, RegistryError> {
        self.db
            .read(move |connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT driver, name, external_id, vehicle, tenant,
                            (SELECT device FROM devices d WHERE d.tenant = drivers.tenant
                             AND d.driver = drivers.driver AND d.device = drivers.lead AND d.revoked_ms IS NULL)
                     FROM drivers WHERE lead IS NOT NULL OR vehicle != 0 ORDER BY tenant, driver",
                )?;
                let facts = statement.query_map([], fact_columns)?;
                let is_of_partition = |fact: &rusqlite::Result<DriverFact>| {
                    let key = |fact: &DriverFact| TrackerKey::Driver(fact.driver).key_bytes();
                    fact.as_ref().map_or(true, |fact| partition_of(&key(fact), count) == partition)
                };
                Ok(facts.filter(is_of_partition).collect::<Result<_, _>>()?)
            })
            .await
    }

    async fn revoked(&self) -> Result<Vec<DeviceKey>, RegistryError> {
        self.db
            .read(|connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT tenant, driver, device FROM devices WHERE revoked_ms IS NOT NULL
                     ORDER BY tenant, driver, device",
                )?;
                let rows = statement.query_map([], |row| {
                    Ok(DeviceKey {
                        tenant: TenantId(row.get(0)?),
                        driver: DriverId(row.get(1)?),
                        device: DeviceNumber(row.get(2)?),
                    })
                })?;
                Ok(rows.collect::<Result<_, _>>()?)
            })
            .await
    }

    async fn create_delivery_token(
        &self,
        key: DeliveryKey,
        birth: Option<BirthMark>,
        now: Time,
    ) -> Result<String, RegistryError> {
        let token = random_token(DELIVERY_PREFIX);
        let hash = hash_of(&token);
        self.db
            .write(move |connection| {
                tenant(connection, key.tenant)?;
                insert_token(connection, &hash, key.tenant, Some((key.delivery, birth)), now)
            })
            .await?;
        Ok(token)
    }

    async fn once(&self, once: Once, new: New, now: Time) -> Result<Made, RegistryError> {
        self.make_once(once, new, now).await
    }

    async fn scope_of(&self, token: &str) -> Result<Option<Scope>, RegistryError> {
        if token.starts_with(TENANT_PREFIX) || token.starts_with(DELIVERY_PREFIX) {
            let hash = hash_of(token);
            return self.db.read(move |connection| scope_of_hash(connection, &hash)).await;
        }
        let checked = credential::check(token, &self.token_keys.read(), &Default::default());
        let Ok(device) = checked else { return Ok(None) };
        self.db.read(move |connection| Ok(is_enrolled(connection, device)?.then_some(Scope::Device(device)))).await
    }

    async fn start_session(&self, device: DeviceKey, now: Time) -> Result<SessionStart, RegistryError> {
        let given = self.given.clone();
        self.db
            .write(move |connection| {
                let start = sessions::start(connection, device, now)?;
                given.give(Numbers { device: u64::from(start.device.device.0), ..Numbers::default() });
                Ok(start)
            })
            .await
    }

    async fn lead(&self, device: DeviceKey, now: Time) -> Result<(), RegistryError> {
        self.db
            .write(move |connection| {
                if !is_enrolled(connection, device)? {
                    return Err(RegistryError::NoDevice);
                }
                let changed = connection
                    .prepare_cached(
                        "UPDATE drivers SET lead = ?3 WHERE tenant = ?1 AND driver = ?2 AND lead IS NOT ?3",
                    )?
                    .execute(params![device.tenant.0, device.driver.0, device.device.0])?;
                if changed == 1 {
                    outbox::insert(connection, Record::Lead { device, at: now })?;
                }
                Ok(())
            })
            .await
    }

    async fn outbox(&self, limit: u32) -> Result<Vec<OutboxRow>, RegistryError> {
        self.db.read(move |connection| Ok(outbox::oldest(connection, limit)?)).await
    }

    async fn outbox_settled(&self, sequences: &[u64]) -> Result<(), RegistryError> {
        let sequences = sequences.to_vec();
        self.db.write(move |connection| Ok(outbox::settle(connection, &sequences)?)).await
    }

    async fn outbox_changed(&self) {
        self.committed.notified().await;
    }
}

fn insert_tenant(
    connection: &Connection,
    name: String,
    policy: DeliveryPolicy,
    now: Time,
) -> Result<Tenant, RegistryError> {
    let policy_text = serde_json::to_string(&policy).map_err(|error| damaged(error.to_string()))?;
    connection
        .prepare_cached("INSERT INTO tenants (name, policy, created_ms) VALUES (?1, ?2, ?3)")?
        .execute(params![name, policy_text, now.0])?;
    let id = u32::try_from(connection.last_insert_rowid()).ok().filter(|id| *id <= TENANT_MAX);
    let id = id.ok_or(RegistryError::Exhausted { what: "tenant" })?;
    Ok(Tenant { id: TenantId(id), name, policy })
}

fn tenant(connection: &Connection, id: TenantId) -> Result<Tenant, RegistryError> {
    let found = connection
        .prepare_cached("SELECT tenant, name, policy FROM tenants WHERE tenant = ?1")?
        .query_row([id.0], tenant_columns)
        .optional()?;
    tenant_of(found.ok_or(RegistryError::NoTenant { tenant: id })?)
}

fn create_driver(
    connection: &Connection,
    tenant_id: TenantId,
    new: Driver,
    now: Time,
) -> Result<Driver, RegistryError> {
    tenant(connection, tenant_id)?;
    let Driver { name, external_id, vehicle, .. } = new;
    let is_taken = connection
        .prepare_cached("SELECT 1 FROM drivers WHERE tenant = ?1 AND external_id = ?2 AND external_id != ''")?
        .exists(params![tenant_id.0, external_id])?;
    if is_taken {
        return Err(RegistryError::ExternalIdTaken { external_id });
    }
    let number: i64 = connection
        .prepare_cached(
            "UPDATE tenants SET drivers_given = drivers_given + 1 WHERE tenant = ?1 RETURNING drivers_given",
        )?
        .query_row([tenant_id.0], |row| row.get(0))?;
    let id = u32::try_from(number).map_err(|_| RegistryError::Exhausted { what: "driver" })?;
    connection
        .prepare_cached(
            "INSERT INTO drivers (tenant, driver, name, external_id, vehicle, created_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![tenant_id.0, id, name, external_id, vehicle as u8, now.0])?;
    let id = DriverId(id);
    if vehicle != Vehicle::default() {
        outbox::insert(connection, Record::Vehicle { driver: DriverKey { tenant: tenant_id, driver: id }, vehicle })?;
    }
    Ok(Driver { id, name, external_id, vehicle })
}

fn change_driver(
    connection: &Connection,
    tenant: TenantId,
    id: DriverId,
    change: DriverChange,
) -> Result<Driver, RegistryError> {
    let before = driver(connection, tenant, id)?;
    let name = change.name.unwrap_or_else(|| before.name.clone());
    let vehicle = change.vehicle.unwrap_or(before.vehicle);
    connection
        .prepare_cached("UPDATE drivers SET name = ?3, vehicle = ?4 WHERE tenant = ?1 AND driver = ?2")?
        .execute(params![tenant.0, id.0, name, vehicle as u8])?;
    if vehicle != before.vehicle {
        outbox::insert(connection, Record::Vehicle { driver: DriverKey { tenant, driver: id }, vehicle })?;
    }
    Ok(Driver { name, vehicle, ..before })
}

fn driver(connection: &Connection, tenant: TenantId, driver: DriverId) -> Result<Driver, RegistryError> {
    connection
        .prepare_cached("SELECT driver, name, external_id, vehicle FROM drivers WHERE tenant = ?1 AND driver = ?2")?
        .query_row([tenant.0, driver.0], driver_columns)
        .optional()?
        .ok_or(RegistryError::NoDriver { driver })
}

fn insert_device(
    connection: &Connection,
    tenant_id: TenantId,
    driver: DriverId,
    now: Time,
) -> Result<DeviceKey, RegistryError> {
    tenant(connection, tenant_id)?;
    let number: Option<i64> = connection
        .prepare_cached(
            "UPDATE drivers SET devices_given = devices_given + 1 WHERE tenant = ?1 AND driver = ?2
             RETURNING devices_given",
        )?
        .query_row([tenant_id.0, driver.0], |row| row.get(0))
        .optional()?;
    let number = number.ok_or(RegistryError::NoDriver { driver })?;
    let number = u16::try_from(number).map_err(|_| RegistryError::Exhausted { what: "device" })?;
    connection
        .prepare_cached("INSERT INTO devices (tenant, driver, device, created_ms) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![tenant_id.0, driver.0, number, now.0])?;
    Ok(DeviceKey { tenant: tenant_id, driver, device: DeviceNumber(number) })
}

fn is_enrolled(connection: &Connection, device: DeviceKey) -> Result<bool, RegistryError> {
    let mut statement = connection.prepare_cached(
        "SELECT 1 FROM devices WHERE tenant = ?1 AND driver = ?2 AND device = ?3 AND revoked_ms IS NULL",
    )?;
    Ok(statement.exists(params![device.tenant.0, device.driver.0, device.device.0])?)
}

fn insert_token(
    connection: &Connection,
    hash: &Hash,
    tenant: TenantId,
    delivery: Option<(DeliveryId, Option<BirthMark>)>,
    now: Time,
) -> Result<(), RegistryError> {
    let birth = delivery.and_then(|(_, birth)| birth).map(|birth| birth.0);
    let delivery = delivery.map(|(delivery, _)| i64::try_from(delivery.0)).transpose();
    let delivery = delivery.map_err(|_| RegistryError::Invalid { reason: "there is no delivery of this number" })?;
    connection
        .prepare_cached("INSERT INTO tokens (hash, tenant, delivery, created_ms, birth) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![hash, tenant.0, delivery, now.0, birth])?;
    Ok(())
}

fn scope_of_hash(connection: &Connection, hash: &Hash) -> Result<Option<Scope>, RegistryError> {
    type Columns = (u32, Option<i64>, Option<Vec<u8>>);
    let found: Option<Columns> = connection
        .prepare_cached("SELECT tenant, delivery, birth FROM tokens WHERE hash = ?1")?
        .query_row([hash], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let Some((tenant, delivery, birth)) = found else { return Ok(None) };
    let tenant = TenantId(tenant);
    let Some(delivery) = delivery else { return Ok(Some(Scope::Tenant(tenant))) };
    let birth = birth.map(|birth| birth.try_into().map(BirthMark)).transpose();
    let birth = birth.map_err(|_| damaged("a birth mark has another length".to_string()))?;
    Ok(Some(Scope::Delivery { key: DeliveryKey { tenant, delivery: DeliveryId(delivery as u64) }, birth }))
}

fn tenant_columns(row: &Row) -> rusqlite::Result<(u32, String, String)> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
}

fn tenant_of((id, name, policy): (u32, String, String)) -> Result<Tenant, RegistryError> {
    let policy = serde_json::from_str(&policy).map_err(|error| damaged(error.to_string()))?;
    Ok(Tenant { id: TenantId(id), name, policy })
}

fn driver_columns(row: &Row) -> rusqlite::Result<Driver> {
    let vehicle = match row.get(3)? {
        0 => Vehicle::Car,
        1 => Vehicle::Moped,
        2 => Vehicle::Bicycle,
        3 => Vehicle::Foot,
        other => return Err(rusqlite::Error::IntegralValueOutOfRange(3, other)),
    };
    Ok(Driver { id: DriverId(row.get(0)?), name: row.get(1)?, external_id: row.get(2)?, vehicle })
}

fn fact_columns(row: &Row) -> rusqlite::Result<DriverFact> {
    let Driver { id, vehicle, .. } = driver_columns(row)?;
    let driver = DriverKey { tenant: TenantId(row.get(4)?), driver: id };
    let lead = row.get::<_, Option<u16>>(5)?.map(DeviceNumber);
    let lead = lead.map(|device| DeviceKey { tenant: driver.tenant, driver: driver.driver, device });
    Ok(DriverFact { driver, lead, vehicle })
}

fn check_text(text: &str) -> Result<(), RegistryError> {
    if text.len() <= TEXT_BYTES_MAX {
        return Ok(());
    }
    Err(RegistryError::Invalid { reason: "a name has at most 1024 bytes" })
}

fn damaged(reason: String) -> RegistryError {
    RegistryError::Damaged { reason }
}

fn random_token(prefix: &str) -> String {
    let mut token = prefix.to_string();
    URL_SAFE_NO_PAD.encode_string(random_bytes::<TOKEN_BYTES>(), &mut token);
    token
}

/// Of the whole token, its prefix too: a token never opens what another kind opens.
fn hash_of(token: &str) -> Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    hash
}

type Hash = [u8; 32];

const TENANT_PREFIX: &str = "wft_";
const DELIVERY_PREFIX: &str = "wfl_";
/// 192 bits, which base64 shows without a rest.
const TOKEN_BYTES: usize = 24;

const SCHEMA: Schema = Schema {
    name: "registry",
    application_id: 0x5746_5231, // "WFR1"
    steps: &[
        "
        CREATE TABLE tenants (
            tenant INTEGER PRIMARY KEY AUTOINCREMENT,
            name TEXT NOT NULL,
            policy TEXT NOT NULL,
            drivers_given INTEGER NOT NULL DEFAULT 0,
            created_ms INTEGER NOT NULL
        ) STRICT;

        CREATE TABLE drivers (
            tenant INTEGER NOT NULL REFERENCES tenants,
            driver INTEGER NOT NULL,
            name TEXT NOT NULL,
            external_id TEXT NOT NULL,
            lead INTEGER,
            devices_given INTEGER NOT NULL DEFAULT 0,
            created_ms INTEGER NOT NULL,
            PRIMARY KEY (tenant, driver)
        ) STRICT, WITHOUT ROWID;
        CREATE UNIQUE INDEX drivers_external_id ON drivers (tenant, external_id) WHERE external_id != '';

        CREATE TABLE devices (
            tenant INTEGER NOT NULL,
            driver INTEGER NOT NULL,
            device INTEGER NOT NULL,
            session_start_s INTEGER NOT NULL DEFAULT 0,
            numbers_next INTEGER NOT NULL DEFAULT 1,
            revoked_ms INTEGER,
            created_ms INTEGER NOT NULL,
            PRIMARY KEY (tenant, driver, device),
            FOREIGN KEY (tenant, driver) REFERENCES drivers
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX devices_revoked ON devices (tenant, driver, device) WHERE revoked_ms IS NOT NULL;

        CREATE TABLE tokens (
            hash BLOB PRIMARY KEY CHECK (length(hash) = 32),
            tenant INTEGER NOT NULL REFERENCES tenants,
            delivery INTEGER,
            created_ms INTEGER NOT NULL
        ) STRICT, WITHOUT ROWID;
        ",
        outbox::TABLE,
        "ALTER TABLE drivers ADD COLUMN vehicle INTEGER NOT NULL DEFAULT 0 CHECK (vehicle BETWEEN 0 AND 3)",
        "
        ALTER TABLE tokens ADD COLUMN birth BLOB CHECK (length(birth) = 16);
        CREATE TABLE token_keys (id INTEGER PRIMARY KEY, wrapped BLOB NOT NULL) STRICT;
        ",
        repeats::TABLE,
        "ALTER TABLE devices ADD COLUMN successor INTEGER",
        repeats::SECRET_COLUMN,
    ],
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crash;
    use crate::registry::conformance::{self, Opened, registry_conformance, token_keys};

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
        Arc::new(EmbeddedRegistry::open(&folder.join("registry.db"), token_keys()).unwrap())
    }

    registry_conformance!(Fixture::new());

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nothing_acknowledged_is_given_again_after_kill_9() {
        if let Some(folder) = crash::folder_of_child() {
            return conformance::write_until_killed(open(&folder)).await;
        }
        let folder = tempfile::tempdir().unwrap();
        let test = "registry::embedded::tests::nothing_acknowledged_is_given_again_after_kill_9";

        for count in [20, 60, 150] {
            let said = crash::kill_in_the_middle(test, folder.path(), count);
            conformance::nothing_acknowledged_is_given_again(open(folder.path()), &said).await;
        }
    }

    #[tokio::test]
    async fn the_last_number_of_each_kind_is_given_and_none_beyond() {
        let fixture = Fixture::new();
        drop(fixture.open().await);
        let file = Connection::open(fixture.0.path().join("registry.db")).unwrap();
        let policy = serde_json::to_string(&DeliveryPolicy::default()).unwrap();
        file.execute("INSERT INTO tenants VALUES (?1, '', ?2, 0, 0)", params![TENANT_MAX - 1, policy]).unwrap();
        drop(file);
        let registry = fixture.open().await;
        let new_tenant = || registry.create_tenant("", DeliveryPolicy::default(), Time(0));
        let set = |sql: &str| Connection::open(fixture.0.path().join("registry.db")).unwrap().execute(sql, []).unwrap();

        let tenant = new_tenant().await.unwrap().0.id;
        let no_tenant = new_tenant().await.err();
        set(&format!("UPDATE tenants SET drivers_given = {}", u32::MAX - 1));
        let driver = registry.create_driver(tenant, "", "", Vehicle::Car, Time(0)).await.unwrap().id;
        let no_driver = registry.create_driver(tenant, "", "", Vehicle::Car, Time(0)).await.err();
        set(&format!("UPDATE drivers SET devices_given = {}", u16::MAX - 1));
        let device = registry.enrol(tenant, driver, Time(0)).await.unwrap().0;
        let no_device = registry.enrol(tenant, driver, Time(0)).await.err();

        assert_eq!((tenant.0, driver.0, device.device.0), (TENANT_MAX, u32::MAX, u16::MAX));
        for error in [no_tenant, no_driver, no_device] {
            assert!(matches!(error, Some(RegistryError::Exhausted { .. })), "{error:?}");
        }
    }

    #[tokio::test]
    async fn no_secret_is_in_the_file() {
        let fixture = Fixture::new();
        let registry = fixture.open().await;
        let (tenant, api_key) = registry.create_tenant("a", DeliveryPolicy::default(), Time(0)).await.unwrap();
        let driver = registry.create_driver(tenant.id, "Ana", "", Vehicle::Car, Time(0)).await.unwrap();
        let (_, credential) = registry.enrol(tenant.id, driver.id, Time(0)).await.unwrap();
        let key = DeliveryKey { tenant: tenant.id, delivery: DeliveryId(1) };
        let token = registry.create_delivery_token(key, None, Time(0)).await.unwrap();
        drop(registry);

        let bytes = std::fs::read(fixture.0.path().join("registry.db")).unwrap();

        assert!(find(&bytes, b"CREATE TABLE tokens"));
        for secret in [api_key, credential, token] {
            assert!(!find(&bytes, &secret.as_bytes()[4..20]), "{secret}");
        }
    }

    #[tokio::test]
    async fn a_flipped_byte_that_sqlite_reads_opens_nothing_once_it_is_accepted() {
        let fixture = Fixture::new();
        let path = fixture.0.path().join("registry.db");
        let installation = crate::installation::Installation::new();
        let witnesses = || {
            let places = std::collections::BTreeMap::new();
            crate::installation::Witnesses::open(installation, Numbers::default(), &places).unwrap()
        };
        let open = || {
            let store = crate::installation::Store::Registry;
            let guard = Guard { store, witnesses: witnesses(), cache_bytes: 1 << 20 };
            EmbeddedRegistry::open_guarded(&path, token_keys(), Some(guard)).unwrap()
        };
        let registry = open();
        let mut keys = Vec::new();
        for _ in 0..3 {
            keys.push(registry.create_tenant("a", DeliveryPolicy::default(), Time(0)).await.unwrap());
        }
        let tenant = keys[1].0.id;
        let delivery = DeliveryKey { tenant, delivery: DeliveryId(7) };
        let (mut links, mut of_second) = (Vec::new(), Vec::new());
        for _ in 0..200 {
            links.push(registry.create_delivery_token(delivery, None, Time(0)).await.unwrap());
            links.push(registry.create_delivery_token(delivery, None, Time(0)).await.unwrap());
            of_second.push(registry.new_tenant_key(tenant, Time(0)).await.unwrap());
        }
        drop(registry);
        let key = of_second.into_iter().find(|key| flip_tenant(&path, &hash_of(key))).unwrap();

        let voided = void_suspects(&path, Time(9)).unwrap();
        crate::sqlite::remake_sums(&path).unwrap();

        let registry = open();
        assert_eq!(registry.scope_of(&key).await.unwrap(), None);
        let mut opening = 0;
        for link in &links {
            opening += usize::from(registry.scope_of(link).await.unwrap().is_some());
        }
        assert!(opening > 200, "only what stands on that page is void: {opening} open");
        for (tenant, key) in &keys {
            let scope = registry.scope_of(key).await.unwrap();
            assert!(scope.is_none_or(|scope| scope == Scope::Tenant(tenant.id)));
        }
        assert!((1..200).contains(&voided.tokens) && voided.devices == 0, "{voided:?}");
        let names = std::fs::read_dir(fixture.0.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(names.into_iter().all(|name| !name.to_string_lossy().contains("whole")), "the copy is removed");
        drop(registry);
        assert_eq!(void_suspects(&path, Time(9)).unwrap(), Voided::default(), "once");
    }

    /// Makes tenant 2 tenant 3 in the row of this token, where that stands on a leaf. Pages hold old rows too, which
    /// nobody reads.
    fn flip_tenant(path: &Path, hash: &Hash) -> bool {
        let bytes = std::fs::read(path).unwrap();
        let places = bytes.windows(hash.len()).enumerate().filter(|(_, window)| window == hash);
        for at in places.map(|(at, _)| at + hash.len()) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            std::fs::write(path, flipped).unwrap();
            let connection = Connection::open(path).unwrap();
            let tenant: u32 = connection
                .query_row("SELECT tenant FROM tokens WHERE hash = ?1", [&hash[..]], |row| row.get(0))
                .unwrap();
            let is_leaf = "SELECT pagetype = 'leaf' FROM dbstat WHERE name = 'tokens' AND pageno = ?1";
            let is_leaf = connection.query_row(is_leaf, [(at / 4096 + 1) as i64], |row| row.get(0));
            if tenant == 3 && is_leaf.unwrap_or(false) {
                return true;
            }
        }
        std::fs::write(path, bytes).unwrap();
        false
    }

    fn find(bytes: &[u8], wanted: &[u8]) -> bool {
        bytes.windows(wanted.len()).any(|window| window == wanted)
    }

    #[tokio::test]
    async fn no_number_that_can_have_been_given_is_given_after_a_loss() {
        let fixture = Fixture::new();
        let registry = EmbeddedRegistry::open(&fixture.0.path().join("registry.db"), token_keys()).unwrap();
        let tenant = registry.create_tenant("a", DeliveryPolicy::default(), Time(0)).await.unwrap().0.id;
        let driver = registry.create_driver(tenant, "Ana", "", Vehicle::Car, Time(0)).await.unwrap().id;
        let (device, _) = registry.enrol(tenant, driver, Time(0)).await.unwrap();
        let before = registry.start_session(device, Time::from_secs(50)).await.unwrap();
        assert_eq!(
            registry.numbers().await.unwrap(),
            Numbers { tenant: 1, driver: 1, device: 1, ..Numbers::default() }
        );
        let lost = Numbers { tenant: 30, driver: 2000, device: 40, ..Numbers::default() };

        registry.go_on_above(lost, Time::from_secs(60)).await.unwrap();

        let after = registry.start_session(device, Time::from_secs(55)).await.unwrap();
        assert!(after.start_s > 60, "a session of the lost time may have begun at any second until now");
        assert!(after.numbers_from.0 > before.numbers_from.0 + 1000 * NUMBERS_STEP);
        assert_eq!(registry.create_tenant("b", DeliveryPolicy::default(), Time(0)).await.unwrap().0.id.0, 31);
        assert_eq!(registry.create_driver(tenant, "Eva", "", Vehicle::Car, Time(0)).await.unwrap().id.0, 2001);
        assert_eq!(registry.enrol(tenant, driver, Time(0)).await.unwrap().0.device.0, 41);
    }

    #[tokio::test]
    async fn a_fresh_registry_goes_on_above_a_lost_one_and_token_keys_are_kept() {
        let fixture = Fixture::new();
        let registry = EmbeddedRegistry::open(&fixture.0.path().join("registry.db"), token_keys()).unwrap();

        registry.go_on_above(Numbers { tenant: 32, ..Numbers::default() }, Time(0)).await.unwrap();
        registry.keep_token_keys(vec![(TokenKeyId(0), vec![1]), (TokenKeyId(1), vec![2])]).await.unwrap();
        registry.keep_token_keys(vec![(TokenKeyId(1), vec![3])]).await.unwrap();

        assert_eq!(registry.create_tenant("a", DeliveryPolicy::default(), Time(0)).await.unwrap().0.id.0, 33);
        let kept = registry.kept_token_keys().await.unwrap();
        assert_eq!(kept, [(TokenKeyId(0), vec![1]), (TokenKeyId(1), vec![2])], "the first stands");
    }
}
