//! The 16 bytes that say whose session it is. Sealed by one AES block they are the session id, so an edge learns all
//! this from the datagram itself and asks nobody.

use crate::datagram::Suite;
use crate::id::{DeviceKey, DeviceNumber, DriverId, TENANT_MAX, TenantId};
use crate::time::Time;

/// What a session id says once opened.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SessionRecord {
    pub suite: Suite,
    /// Unix seconds. Strictly increasing over the sessions of one device.
    pub start_s: u32,
    pub lifetime: Lifetime,
    pub device: DeviceKey,
    /// Which of the session's 64 ids this is; the keys are the same for all.
    pub alias: u8,
}

impl SessionRecord {
    /// `None` if the tenant's number does not fit 24 bits or the alias is not one of 64.
    pub fn to_bytes(&self) -> Option<[u8; RECORD_LEN]> {
        if self.device.tenant.0 > TENANT_MAX || self.alias >= ALIAS_COUNT {
            return None;
        }
        let mut bytes = [0; RECORD_LEN];
        bytes[0] = self.suite.to_byte();
        bytes[1..5].copy_from_slice(&self.start_s.to_be_bytes());
        bytes[5] = self.lifetime.0;
        bytes[6..9].copy_from_slice(&self.device.tenant.0.to_be_bytes()[1..]);
        bytes[9..13].copy_from_slice(&self.device.driver.0.to_be_bytes());
        bytes[13..15].copy_from_slice(&self.device.device.0.to_be_bytes());
        bytes[15] = self.alias;
        Some(bytes)
    }

    /// `None` if these bytes were never a record: the suite byte, the lifetime or the alias is impossible.
    pub fn from_bytes(bytes: &[u8; RECORD_LEN]) -> Option<Self> {
        let suite = Suite::from_byte(bytes[0])?;
        let lifetime = Lifetime::new(bytes[5])?;
        if bytes[15] >= ALIAS_COUNT {
            return None;
        }
        let be4 = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let device = DeviceKey {
            tenant: TenantId(be4(5) & TENANT_MAX),
            driver: DriverId(be4(9)),
            device: DeviceNumber(u16::from_be_bytes([bytes[13], bytes[14]])),
        };
        Some(SessionRecord { suite, start_s: be4(1), lifetime, device, alias: bytes[15] })
    }

    pub fn start(&self) -> Time {
        Time::from_secs(i64::from(self.start_s))
    }

    pub fn end(&self) -> Time {
        Time::from_secs(i64::from(self.start_s) + self.lifetime.as_secs())
    }
}

/// How long a session lasts, in quarters of an hour: 1 to 96.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Lifetime(u8);

impl Lifetime {
    /// 24 h.
    pub const MAX: Lifetime = Lifetime(96);

    pub fn new(quarters: u8) -> Option<Self> {
        (1..=Self::MAX.0).contains(&quarters).then_some(Lifetime(quarters))
    }

    pub fn as_secs(self) -> i64 {
        i64::from(self.0) * 900
    }
}

pub const RECORD_LEN: usize = 16;
pub const ALIAS_COUNT: u8 = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn records_round_trip_and_bytes_that_are_no_record_are_told_apart(mut bytes: [u8; RECORD_LEN], like: bool) {
            if like {
                bytes[0] = 0x51 + bytes[0] % 2;
                bytes[5] = 1 + bytes[5] % 96;
                bytes[15] %= 64;
            }
            let possible = matches!(bytes[0], 0x51 | 0x52) && (1..=96).contains(&bytes[5]) && bytes[15] < 64;

            let record = SessionRecord::from_bytes(&bytes);

            prop_assert_eq!(record.is_some(), possible);
            if let Some(record) = record {
                prop_assert_eq!(record.to_bytes(), Some(bytes));
            }
        }
    }

    #[test]
    fn a_tenant_too_large_for_the_record_has_none() {
        let device = DeviceKey { tenant: TenantId(1 << 24), driver: DriverId(1), device: DeviceNumber(1) };
        let record = SessionRecord { suite: Suite::Aes128Gcm, start_s: 1, lifetime: Lifetime::MAX, device, alias: 0 };

        assert_eq!(record.to_bytes(), None);
    }
}
