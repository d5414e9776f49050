//! What `POST /api/v1/sessions` answers: all a phone needs to seal datagrams for a day, and nothing about who it is.
//! Bytes travel as base64url without padding.

use serde::{Deserialize, Serialize};

use super::fleet_key::FleetKey;
use super::record::{ALIAS_COUNT, Lifetime, SessionRecord};
use crate::datagram::seal::{IV_LEN, KEY_LEN_MAX};
use crate::datagram::{AeadKey, Kid, SID_LEN, Suite};
use crate::id::{DeviceKey, FixNumber};
use crate::time::Time;

/// A session, as handed to a phone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SessionGrant {
    pub suite: Suite,
    pub kid: u8,
    /// All 64, in the order of use.
    pub aliases: Vec<AliasGrant>,
    pub phone_to_edge: KeyGrant,
    pub edge_to_phone: KeyGrant,
    /// Unix seconds: where counters and times begin.
    pub start: u32,
    /// When this was answered, to set the phone's counter by.
    pub server_time_ms: i64,
    pub lifetime_s: u32,
    /// After this long a new session should be taken.
    pub renew_after_s: u32,
    /// The first number that this session may give to a fix; 32,768 may be given.
    pub numbers_from: u64,
    /// Where to send, the nearest first. Any of them opens any datagram.
    pub edges: Vec<EdgeAddress>,
    /// Every so many datagrams one wants an ack.
    pub ack_every: u32,
    /// How far apart datagrams should be.
    pub interval_ms: u32,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AliasGrant {
    #[serde(with = "base64url")]
    pub sid: [u8; SID_LEN],
    #[serde(with = "base64url")]
    pub mask: [u8; 4],
}

/// One direction's key, as long as the suite's, and iv.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyGrant {
    #[serde(with = "base64url_vec")]
    pub key: Vec<u8>,
    #[serde(with = "base64url")]
    pub iv: [u8; IV_LEN],
}

impl std::fmt::Debug for KeyGrant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyGrant(***)")
    }
}

/// One edge's addresses.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EdgeAddress {
    /// `ip:port` for UDP.
    pub udp: String,
    /// Base URL for the fallback: `https://…`, or `http://…` on loopback.
    pub https: String,
    /// SHA-256 of the one certificate to accept there, for edges with a self-signed one.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "base64url_option")]
    pub pin: Option<[u8; 32]>,
}

/// What the registry decides about a new session.
#[derive(Clone, Debug)]
pub struct SessionTerms {
    pub suite: Suite,
    pub device: DeviceKey,
    /// **Contract:** above the start of every session this device had before.
    pub start_s: u32,
    pub lifetime: Lifetime,
    /// **Contract:** 32,768 above the one of the session before, and at least 1.
    pub numbers_from: FixNumber,
    pub edges: Vec<EdgeAddress>,
    pub ack_every: u32,
    pub interval_ms: u32,
}

/// Why terms or a grant cannot be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GrantFault {
    #[error("tenant number does not fit 24 bits")]
    Tenant,
    #[error("numbers begin at zero")]
    Numbers,
    #[error("key id is not one of four")]
    Kid,
    #[error("key has not the length of its suite")]
    KeyLength,
    #[error("grant has no session ids")]
    NoAliases,
    #[error("grant has no edge with an address that can be used")]
    NoEdges,
    #[error("lifetime is not between 15 minutes and 24 hours")]
    Lifetime,
}

/// Makes everything the phone is told.
pub fn issue(fleet_key: &FleetKey, terms: &SessionTerms, now: Time) -> Result<SessionGrant, GrantFault> {
    if terms.numbers_from.0 == 0 {
        return Err(GrantFault::Numbers);
    }
    let mut record = SessionRecord {
        suite: terms.suite,
        start_s: terms.start_s,
        lifetime: terms.lifetime,
        device: terms.device,
        alias: 0,
    };
    let keys = fleet_key.session_keys(&record.to_bytes().ok_or(GrantFault::Tenant)?);
    let mut aliases = Vec::with_capacity(usize::from(ALIAS_COUNT));
    for alias in 0..ALIAS_COUNT {
        record.alias = alias;
        let sid = fleet_key.seal_sid(&record).ok_or(GrantFault::Tenant)?;
        aliases.push(AliasGrant { sid, mask: fleet_key.mask(&sid) });
    }
    let lifetime_s = terms.lifetime.as_secs() as u32;
    Ok(SessionGrant {
        suite: terms.suite,
        kid: fleet_key.kid().as_u8(),
        aliases,
        phone_to_edge: KeyGrant::of(&keys.phone_to_edge, terms.suite),
        edge_to_phone: KeyGrant::of(&keys.edge_to_phone, terms.suite),
        start: terms.start_s,
        server_time_ms: now.0,
        lifetime_s,
        renew_after_s: lifetime_s / 2,
        numbers_from: terms.numbers_from.0,
        edges: terms.edges.clone(),
        ack_every: terms.ack_every,
        interval_ms: terms.interval_ms,
    })
}

impl SessionGrant {
    pub fn checked_kid(&self) -> Result<Kid, GrantFault> {
        Kid::new(self.kid).ok_or(GrantFault::Kid)
    }
}

impl KeyGrant {
    fn of(key: &AeadKey, suite: Suite) -> Self {
        KeyGrant { key: key.key[..suite.key_len()].to_vec(), iv: key.iv }
    }

    pub fn aead_key(&self, suite: Suite) -> Result<AeadKey, GrantFault> {
        if self.key.len() != suite.key_len() {
            return Err(GrantFault::KeyLength);
        }
        let mut key = [0; KEY_LEN_MAX];
        key[..self.key.len()].copy_from_slice(&self.key);
        Ok(AeadKey { key, iv: self.iv })
    }
}

/// How many numbers one session may give out.
pub const NUMBERS_PER_SESSION: u64 = 32_768;

/// Bytes of a fixed length as base64url in JSON.
pub mod base64url {
    use base64::Engine as _;
    use base64::prelude::BASE64_URL_SAFE_NO_PAD as CODE;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer, const N: usize>(bytes: &[u8; N], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&CODE.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>, const N: usize>(deserializer: D) -> Result<[u8; N], D::Error> {
        let bytes = CODE.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)?;
        let len = bytes.len();
        bytes.try_into().map_err(|_| D::Error::custom(format!("{len} bytes where {N} are wanted")))
    }
}

/// Bytes of any length as base64url in JSON.
pub mod base64url_vec {
    use base64::Engine as _;
    use base64::prelude::BASE64_URL_SAFE_NO_PAD as CODE;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&CODE.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        CODE.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// As `base64url`, or nothing.
pub mod base64url_option {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Bytes<const N: usize>(#[serde(with = "super::base64url")] [u8; N]);

    pub fn serialize<S: Serializer, const N: usize>(bytes: &Option<[u8; N]>, serializer: S) -> Result<S::Ok, S::Error> {
        bytes.map(Bytes).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>, const N: usize>(
        deserializer: D,
    ) -> Result<Option<[u8; N]>, D::Error> {
        Ok(Option::<Bytes<N>>::deserialize(deserializer)?.map(|bytes| bytes.0))
    }
}
