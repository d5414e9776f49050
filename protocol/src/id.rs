//! Ids are newtypes, so that no function can take two bare integers in the wrong order, and every key carries its
//! tenant: a bare delivery number means nothing.

use std::fmt;

use serde::de::{Error as _, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
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

        display!($name);
    };
}

/// An id that other people's programs keep. In JSON it is text, because it may be above 2^53, where JavaScript rounds
/// numbers; a number is read as well. In formats that are not for people it is the bare integer.
macro_rules! public_id {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, SchemaWrite, SchemaRead)]
        pub struct $name(pub $inner);

        display!($name);

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() { serializer.collect_str(&self.0) } else { self.0.serialize(serializer) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if !deserializer.is_human_readable() {
                    return <$inner>::deserialize(deserializer).map($name);
                }
                let number = deserializer.deserialize_any(PublicId)?;
                let in_range = <$inner>::try_from(number);
                in_range.map($name).map_err(|_| D::Error::custom(format!("{number} is too large for this id")))
            }
        }
    };
}

macro_rules! display {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

public_id!(
    /// A customer of ours: a company. Fits 24 bits, because a session record has no more room.
    TenantId,
    u32
);
public_id!(
    /// Whoever or whatever is tracked, numbered within its tenant.
    DriverId,
    u32
);
public_id!(
    /// The n-th enrolment of a phone for one driver.
    DeviceNumber,
    u16
);
public_id!(
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

/// Reads the digits of an id, or a number.
struct PublicId;

impl Visitor<'_> for PublicId {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an id: digits in quotes, or a whole number")
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<u64, E> {
        Ok(number)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<u64, E> {
        parse_id(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

/// An id as people and programs write it: its digits and nothing else. One id has one text, so that whoever compares
/// texts compares ids.
pub fn parse_id(text: &str) -> Option<u64> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| is_plain)
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_text_in_json_and_is_read_as_a_number_too() {
        let id = DeliveryId((1 << 53) + 1);

        assert_eq!(serde_json::to_string(&id).unwrap(), "\"9007199254740993\"");
        assert_eq!(serde_json::from_str::<DeliveryId>("\"9007199254740993\"").unwrap(), id);
        assert_eq!(serde_json::from_str::<DeliveryId>("9007199254740993").unwrap(), id);
        assert_eq!(serde_json::from_str::<Option<DriverId>>("null").unwrap(), None);
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in
            ["\"\"", "\"07\"", "\"+7\"", "\"-7\"", "\" 7\"", "\"7x\"", "-7", "7.0", "7.5", "1e2", "true", "{}", "[7]"]
        {
            assert!(serde_json::from_str::<DeliveryId>(text).is_err(), "{text}");
        }
        assert!(serde_json::from_str::<DriverId>("\"4294967296\"").is_err());
        assert!(serde_json::from_str::<DeviceNumber>("65536").is_err());
    }
}
