//! Ids are newtypes, so that no function can take two bare integers in the wrong order, and every key carries its
//! tenant: a bare delivery number means nothing.

use std::fmt;

use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize, SchemaWrite,
            SchemaRead,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// A customer of ours: a company. Fits 24 bits, because a session record has no more room.
    TenantId,
    u32
);
id!(
    /// Whoever or whatever is tracked, numbered within its tenant.
    DriverId,
    u32
);
id!(
    /// The n-th enrolment of a phone for one driver.
    DeviceNumber,
    u16
);
id!(
    /// A delivery, numbered within its tenant. Never an authorization.
    DeliveryId,
    u64
);
id!(
    /// One edge process; stable over restarts.
    EdgeId,
    u32
);
id!(
    /// A fix's number within its device: serves acks and cheap dedupe, never order.
    FixNumber,
    u64
);
id!(
    /// The number of a ledger event within its delivery: one gapless sequence over all drivers and epochs, from 1.
    JournalNumber,
    u64
);
id!(
    /// Rises at every change of a delivery's driver, "nobody" included. 1 at creation.
    AssignmentNumber,
    u32
);
id!(
    /// One partition of a topic.
    PartitionId,
    u32
);
id!(
    /// A place in one partition of one topic: the number of a log entry.
    Offset,
    u64
);

/// The largest tenant number that a session record can carry.
pub const TENANT_MAX: u32 = (1 << 24) - 1;

/// One driver of one tenant.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
pub struct DriverKey {
    pub tenant: TenantId,
    pub driver: DriverId,
}

/// One delivery of one tenant.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
pub struct DeliveryKey {
    pub tenant: TenantId,
    pub delivery: DeliveryId,
}

/// One enrolment of one driver's phone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
pub struct DeviceKey {
    pub tenant: TenantId,
    pub driver: DriverId,
    pub device: DeviceNumber,
}

impl DeviceKey {
    pub fn driver_key(self) -> DriverKey {
        DriverKey { tenant: self.tenant, driver: self.driver }
    }
}

/// Whose tracker a record belongs to: a driver's, or that of a delivery which has no driver.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
pub enum TrackerKey {
    Driver(DriverKey),
    Delivery(DeliveryKey),
}

impl TrackerKey {
    pub fn tenant(self) -> TenantId {
        match self {
            TrackerKey::Driver(key) => key.tenant,
            TrackerKey::Delivery(key) => key.tenant,
        }
    }

    /// The bytes a log hashes to find the partition: `'D' ‖ tenant ‖ driver` or `'O' ‖ tenant ‖ delivery`, big-endian.
    pub fn key_bytes(self) -> KeyBytes {
        let mut bytes = [0; KEY_BYTES_MAX];
        match self {
            TrackerKey::Driver(key) => {
                bytes[0] = b'D';
                bytes[1..5].copy_from_slice(&key.tenant.0.to_be_bytes());
                bytes[5..9].copy_from_slice(&key.driver.0.to_be_bytes());
                KeyBytes { bytes, len: 9 }
            }
            TrackerKey::Delivery(key) => {
                bytes[0] = b'O';
                bytes[1..5].copy_from_slice(&key.tenant.0.to_be_bytes());
                bytes[5..13].copy_from_slice(&key.delivery.0.to_be_bytes());
                KeyBytes { bytes, len: 13 }
            }
        }
    }
}

impl From<DriverKey> for TrackerKey {
    fn from(key: DriverKey) -> Self {
        TrackerKey::Driver(key)
    }
}

impl From<DeliveryKey> for TrackerKey {
    fn from(key: DeliveryKey) -> Self {
        TrackerKey::Delivery(key)
    }
}

/// Key bytes on the stack: they are made once per record on the edge's hot path.
#[derive(Clone, Copy, Debug)]
pub struct KeyBytes {
    bytes: [u8; KEY_BYTES_MAX],
    len: usize,
}

impl std::ops::Deref for KeyBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

const KEY_BYTES_MAX: usize = 13;
