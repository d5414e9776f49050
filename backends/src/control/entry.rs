//! The entries of the `control` topic and their keys: newest per key, so that reading it whole is reading all that
//! holds.

use bytes::Bytes;
use protocol::envelope::Enveloped;
use protocol::{DeliveryPolicy, DeviceKey, DeviceNumber, DriverId, TenantId, Time};
use wincode::{SchemaRead, SchemaWrite};

use super::credential::TokenKeyId;

/// Which of the four fleet keys of its time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, SchemaWrite, SchemaRead)]
pub struct Kid(pub u8);

#[derive(Clone, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
#[wincode(tag_encoding = "u8")]
pub enum ControlEntry {
    /// What sessions are sealed under from `not_before` on; opens none after `wiped_after`.
    FleetKey {
        kid: Kid,
        not_before: Time,
        wiped_after: Time,
        wrapped: Vec<u8>,
    },
    /// What credentials are issued under.
    TokenKey {
        id: TokenKeyId,
        wrapped: Vec<u8>,
    },
    /// This device number is dead for good.
    Revoked {
        device: DeviceKey,
    },
    TenantPolicy {
        tenant: TenantId,
        policy: DeliveryPolicy,
    },
}

impl Enveloped for ControlEntry {
    const KIND: u8 = b'C';
    const VERSION: u8 = 1;
}

impl ControlEntry {
    pub fn key(&self) -> ControlKey {
        match self {
            ControlEntry::FleetKey { kid, .. } => ControlKey::FleetKey(*kid),
            ControlEntry::TokenKey { id, .. } => ControlKey::TokenKey(*id),
            ControlEntry::Revoked { device } => ControlKey::Revoked(*device),
            ControlEntry::TenantPolicy { tenant, .. } => ControlKey::TenantPolicy(*tenant),
        }
    }
}

/// What an entry is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ControlKey {
    FleetKey(Kid),
    TokenKey(TokenKeyId),
    Revoked(DeviceKey),
    TenantPolicy(TenantId),
}

impl ControlKey {
    /// A letter, then the ids, big-endian.
    pub fn encode(self) -> Bytes {
        match self {
            ControlKey::FleetKey(kid) => Bytes::copy_from_slice(&[b'F', kid.0]),
            ControlKey::TokenKey(id) => Bytes::copy_from_slice(&[b'T', id.0]),
            ControlKey::Revoked(device) => {
                let mut bytes = vec![b'R'];
                bytes.extend(device.tenant.0.to_be_bytes());
                bytes.extend(device.driver.0.to_be_bytes());
                bytes.extend(device.device.0.to_be_bytes());
                bytes.into()
            }
            ControlKey::TenantPolicy(tenant) => {
                let mut bytes = vec![b'P'];
                bytes.extend(tenant.0.to_be_bytes());
                bytes.into()
            }
        }
    }

    /// None for what this build does not know.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        match *bytes {
            [b'F', kid] => Some(ControlKey::FleetKey(Kid(kid))),
            [b'T', id] => Some(ControlKey::TokenKey(TokenKeyId(id))),
            [b'R', t0, t1, t2, t3, d0, d1, d2, d3, n0, n1] => Some(ControlKey::Revoked(DeviceKey {
                tenant: TenantId(u32::from_be_bytes([t0, t1, t2, t3])),
                driver: DriverId(u32::from_be_bytes([d0, d1, d2, d3])),
                device: DeviceNumber(u16::from_be_bytes([n0, n1])),
            })),
            [b'P', t0, t1, t2, t3] => Some(ControlKey::TenantPolicy(TenantId(u32::from_be_bytes([t0, t1, t2, t3])))),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back_and_no_two_are_alike() {
        let device = DeviceKey { tenant: TenantId(1), driver: DriverId(258), device: DeviceNumber(772) };
        let keys = [
            ControlKey::FleetKey(Kid(1)),
            ControlKey::TokenKey(TokenKeyId(1)),
            ControlKey::Revoked(device),
            ControlKey::TenantPolicy(TenantId(1)),
        ];

        let encoded: std::collections::BTreeSet<Bytes> = keys.iter().map(|key| key.encode()).collect();

        assert_eq!(encoded.len(), keys.len());
        for key in keys {
            assert_eq!(ControlKey::decode(&key.encode()), Some(key));
            assert_eq!(ControlKey::decode(&key.encode()[1..]), None);
        }
        assert_eq!(ControlKey::Revoked(device).encode(), &b"R\0\0\0\x01\0\0\x01\x02\x03\x04"[..]);
    }
}
