//! The registry: tenants, drivers, devices, what proves who they are, and the source of what `control` says.
//!
//! **Contract:** a device number is given once and a revoked one never returns; each device's session starts strictly
//! rise and its `numbers_from` lie `NUMBERS_STEP` above the last given, both durable before they are answered; secrets
//! are 128 bits of randomness or more and only their hashes are kept; every look-up is within a tenant; a `Lead` record
//! is in the outbox in the transaction that changed the leading device, and only if it changed; so is a `Vehicle` record
//! for what the driver travels by.

#[cfg(test)]
mod conformance;
pub mod embedded;

use async_trait::async_trait;
use protocol::record::Vehicle;
use protocol::{DeliveryKey, DeliveryPolicy, DeviceKey, DriverId, DriverKey, FixNumber, PartitionId, TenantId, Time};

use crate::ledger::{BirthMark, Idempotency};

#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Tenant {
    pub id: TenantId,
    pub name: String,
    pub policy: DeliveryPolicy,
}

#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Driver {
    pub id: DriverId,
    /// What people call him; shown to dispatchers only.
    pub name: String,
    /// The tenant's own id for him, unique within the tenant; empty if none.
    pub external_id: String,
    pub vehicle: Vehicle,
}

/// What is to be different about a driver.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DriverChange {
    pub name: Option<String>,
    pub vehicle: Option<Vehicle>,
}

/// What a token opens. One token, one scope; never more than it says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// The tenant's API: everything of this tenant.
    Tenant(TenantId),
    /// One delivery, to watch, while it is still the one that the token was made for: its number alone does not say so.
    Delivery { key: DeliveryKey, birth: Option<BirthMark> },
    /// One device: sessions and the JSON door.
    Device(DeviceKey),
}

/// What a driver's tracker is to know of him.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DriverFact {
    pub driver: DriverKey,
    pub lead: Option<DeviceKey>,
    pub vehicle: Vehicle,
}

/// What a session needs of the registry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionStart {
    pub device: DeviceKey,
    /// Unix seconds, strictly rising per device.
    pub start_s: u32,
    pub numbers_from: FixNumber,
}

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("tenant {tenant} is not known")]
    NoTenant { tenant: TenantId },
    #[error("driver {driver} is not known to this tenant")]
    NoDriver { driver: DriverId },
    #[error("this device is not enrolled, or was revoked")]
    NoDevice,
    #[error("the external id {external_id:?} is another driver's")]
    ExternalIdTaken { external_id: String },
    #[error("no number is left for another {what}")]
    Exhausted { what: &'static str },
    #[error("this idempotency key was used for another request")]
    IdempotencyMismatch,
    #[error("this idempotency key was used under another credential: repeat it with that one, or make another")]
    OtherSecret,
    #[error("{reason}")]
    Invalid { reason: &'static str },
    /// A fault of ours that costs this request alone.
    #[error("the registry does not take it: {reason}")]
    Refused { reason: String },
    #[error("the registry cannot be reached: {reason}")]
    Unavailable { reason: String },
    #[error("the registry is damaged: {reason}")]
    Damaged { reason: String },
}

impl RegistryError {
    pub fn is_transient(&self) -> bool {
        matches!(self, RegistryError::Unavailable { .. })
    }
}

/// A request that its client may send again, because it does not know whether the first one arrived.
#[derive(Clone, PartialEq, Eq)]
pub struct Once {
    pub asker: Asker,
    pub idempotency: Idempotency,
    /// What only this client can show again, with this key: the secrets of the answer follow from it.
    pub secret: [u8; 32],
}

/// Whose idempotency keys they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asker {
    Operator,
    Tenant(TenantId),
}

/// What is made once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum New {
    Tenant { name: String, policy: DeliveryPolicy },
    Driver { tenant: TenantId, name: String, external_id: String, vehicle: Vehicle },
    Device { tenant: TenantId, driver: DriverId },
    DeliveryToken { key: DeliveryKey, birth: Option<BirthMark> },
}

/// What was made, with its secret, now or when the request came first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Made {
    Tenant(Tenant, String),
    Driver(Driver),
    Device(DeviceKey, String),
    DeliveryToken(String),
}

#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// A new tenant and its API key, `wft_…`, answered this once.
    async fn create_tenant(
        &self,
        name: &str,
        policy: DeliveryPolicy,
        now: Time,
    ) -> Result<(Tenant, String), RegistryError>;

    async fn tenant(&self, id: TenantId) -> Result<Tenant, RegistryError>;

    async fn tenants(&self) -> Result<Vec<Tenant>, RegistryError>;

    async fn create_driver(
        &self,
        tenant: TenantId,
        name: &str,
        external_id: &str,
        vehicle: Vehicle,
        now: Time,
    ) -> Result<Driver, RegistryError>;

    /// The driver as he is then.
    async fn change_driver(
        &self,
        tenant: TenantId,
        driver: DriverId,
        change: DriverChange,
    ) -> Result<Driver, RegistryError>;

    async fn driver(&self, tenant: TenantId, driver: DriverId) -> Result<Driver, RegistryError>;

    async fn drivers(&self, tenant: TenantId, after: DriverId, limit: u32) -> Result<Vec<Driver>, RegistryError>;

    /// A new device of this driver and its credential, `wfd_…`, answered this once.
    async fn enrol(&self, tenant: TenantId, driver: DriverId, now: Time) -> Result<(DeviceKey, String), RegistryError>;

    /// Kills the device for good, under every number that it has gone by. Answers them: edges learn them from `control`.
    async fn revoke(&self, device: DeviceKey, now: Time) -> Result<Vec<DeviceKey>, RegistryError>;

    /// What trackers of one partition of so many are to know of drivers: those who have a leading device or do not drive a
    /// car. Who is not listed has neither.
    async fn facts(&self, partition: PartitionId, count: u32) -> Result<Vec<DriverFact>, RegistryError>;

    /// Every device that was ever revoked: what `control` must say of it.
    async fn revoked(&self) -> Result<Vec<DeviceKey>, RegistryError>;

    /// Makes a token for watching one delivery, `wfl_…`, bound to the birth mark that the ledger has of it.
    async fn create_delivery_token(
        &self,
        key: DeliveryKey,
        birth: Option<BirthMark>,
        now: Time,
    ) -> Result<String, RegistryError>;

    /// Makes something once: the same key with the same request gets the first answer again for `IDEMPOTENCY_KEPT`, its
    /// secrets too; with another request, or shown with another secret, it is refused. A token for a delivery that is
    /// another one by now (its birth mark says so) is made anew.
    async fn once(&self, once: Once, new: New, now: Time) -> Result<Made, RegistryError>;

    /// What a token opens; None if nothing (unknown, revoked, malformed: not told apart).
    async fn scope_of(&self, token: &str) -> Result<Option<Scope>, RegistryError>;

    /// A new session for a device: its start is `now` or up to `START_AHEAD_MAX` later, above every start before. Where
    /// there is none such, because a clock was ahead, the device goes on under another number, which the answer names.
    async fn start_session(&self, device: DeviceKey, now: Time) -> Result<SessionStart, RegistryError>;

    /// Says which device leads for its driver; the `Lead` record goes to the outbox. A renewal changes nothing.
    async fn lead(&self, device: DeviceKey, now: Time) -> Result<(), RegistryError>;

    /// The oldest unsettled records on their way to the log, as of the ledger's outbox.
    async fn outbox(&self, limit: u32) -> Result<Vec<crate::ledger::OutboxRow>, RegistryError>;
    /// These rows, and no others, are durable in the log.
    async fn outbox_settled(&self, sequences: &[u64]) -> Result<(), RegistryError>;
    /// Resolves when a row may have been added since it was last called; at once at the first call. For one relay at a
    /// time. Cancellation safe.
    async fn outbox_changed(&self);
}

/// A session begins no later than this: as far as a phone's counter may be ahead.
pub const START_AHEAD_MAX: std::time::Duration = std::time::Duration::from_secs(64);
/// How far above the last a new session's fix numbers begin.
pub const NUMBERS_STEP: u64 = protocol::session::grant::NUMBERS_PER_SESSION;
