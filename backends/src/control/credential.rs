//! A device's credential proves who it is without a look-up: an edge checks it with the token keys and the revoked
//! devices it knows from `control`, also while the registry is away.
//!
//! Text: `wfd_` and, in base64url without padding, version 1 ‖ token key id ‖ tenant u32 ‖ driver u32 ‖ device u16 ‖ 16
//! random bytes ‖ the first 16 bytes of HMAC-SHA256 over `wfd_` and all before, big-endian.

use std::collections::{BTreeMap, BTreeSet};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use protocol::{DeviceKey, DeviceNumber, DriverId, TenantId};
use wincode::{SchemaRead, SchemaWrite};

use super::secret::{Secret, random_bytes};

/// Which token key sealed a credential.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, SchemaWrite, SchemaRead)]
pub struct TokenKeyId(pub u8);

/// The token keys of a region: credentials are issued under the newest and checked under any.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TokenKeys {
    keys: BTreeMap<TokenKeyId, Secret>,
}

impl TokenKeys {
    pub fn new(keys: impl IntoIterator<Item = (TokenKeyId, Secret)>) -> Self {
        TokenKeys { keys: keys.into_iter().collect() }
    }

    pub fn insert(&mut self, id: TokenKeyId, key: Secret) {
        self.keys.insert(id, key);
    }

    pub fn remove(&mut self, id: TokenKeyId) {
        self.keys.remove(&id);
    }

    pub fn key(&self, id: TokenKeyId) -> Option<&Secret> {
        self.keys.get(&id)
    }

    pub fn all(&self) -> impl Iterator<Item = (TokenKeyId, &Secret)> {
        self.keys.iter().map(|(id, key)| (*id, key))
    }

    pub fn newest(&self) -> Option<(TokenKeyId, &Secret)> {
        self.keys.last_key_value().map(|(id, key)| (*id, key))
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

/// Why a credential opens nothing. For counters; whoever showed it is told only that it does not open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CredentialError {
    #[error("this is not a device credential")]
    Malformed,
    #[error("token key {} is not known here", .0.0)]
    UnknownKey(TokenKeyId),
    #[error("the credential was not issued under its token key")]
    Forged,
    #[error("the device was revoked")]
    Revoked,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there is no token key to issue a credential under")]
pub struct NoTokenKey;

/// A fresh credential of this device; two of the same device differ.
pub fn issue(device: DeviceKey, keys: &TokenKeys) -> Result<String, NoTokenKey> {
    let (id, key) = keys.newest().ok_or(NoTokenKey)?;
    Ok(seal(device, id, key, random_bytes()))
}

/// The same credential for the same random bytes, under the same token key.
pub(crate) fn issue_again(
    device: DeviceKey,
    keys: &TokenKeys,
    random: [u8; RANDOM_BYTES],
) -> Result<String, NoTokenKey> {
    let (id, key) = keys.newest().ok_or(NoTokenKey)?;
    Ok(seal(device, id, key, random))
}

/// Whose credential this is, if it is one and still good.
pub fn check(text: &str, keys: &TokenKeys, revoked: &BTreeSet<DeviceKey>) -> Result<DeviceKey, CredentialError> {
    let encoded = text.strip_prefix(PREFIX).ok_or(CredentialError::Malformed)?;
    if encoded.len() != ENCODED_CHARS {
        return Err(CredentialError::Malformed);
    }
    let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| CredentialError::Malformed)?;
    let (claim, tag) = bytes.split_at_checked(CLAIM_BYTES).ok_or(CredentialError::Malformed)?;
    let [VERSION, id, ..] = *claim else {
        return Err(CredentialError::Malformed);
    };
    let id = TokenKeyId(id);
    let key = keys.key(id).ok_or(CredentialError::UnknownKey(id))?;
    verify_slices_are_equal(&tag_of(claim, key), tag).map_err(|_| CredentialError::Forged)?;
    let device = device_of(claim);
    if revoked.contains(&device) {
        return Err(CredentialError::Revoked);
    }
    Ok(device)
}

fn seal(device: DeviceKey, id: TokenKeyId, key: &Secret, random: [u8; RANDOM_BYTES]) -> String {
    let mut bytes = Vec::with_capacity(CLAIM_BYTES + TAG_BYTES);
    bytes.extend([VERSION, id.0]);
    bytes.extend(device.tenant.0.to_be_bytes());
    bytes.extend(device.driver.0.to_be_bytes());
    bytes.extend(device.device.0.to_be_bytes());
    bytes.extend(random);
    let tag = tag_of(&bytes, key);
    bytes.extend(tag);
    let mut text = PREFIX.to_string();
    URL_SAFE_NO_PAD.encode_string(&bytes, &mut text);
    text
}

fn tag_of(claim: &[u8], key: &Secret) -> [u8; TAG_BYTES] {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.bytes());
    let mut context = hmac::Context::with_key(&key);
    context.update(PREFIX.as_bytes());
    context.update(claim);
    let mut tag = [0; TAG_BYTES];
    tag.copy_from_slice(&context.sign().as_ref()[..TAG_BYTES]);
    tag
}

/// `claim` is `CLAIM_BYTES` long.
fn device_of(claim: &[u8]) -> DeviceKey {
    let word = |at: usize| u32::from_be_bytes([claim[at], claim[at + 1], claim[at + 2], claim[at + 3]]);
    DeviceKey {
        tenant: TenantId(word(2)),
        driver: DriverId(word(6)),
        device: DeviceNumber(u16::from_be_bytes([claim[10], claim[11]])),
    }
}

const PREFIX: &str = "wfd_";
const VERSION: u8 = 1;
pub(crate) const RANDOM_BYTES: usize = 16;
const TAG_BYTES: usize = 16;
const CLAIM_BYTES: usize = 1 + 1 + 4 + 4 + 2 + RANDOM_BYTES;
/// Four characters for every three of the 44 bytes, without padding.
const ENCODED_CHARS: usize = ((CLAIM_BYTES + TAG_BYTES) * 4).div_ceil(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_names_its_device_and_no_two_are_alike() {
        let keys = keys();

        let (first, second) = (issue(device(), &keys).unwrap(), issue(device(), &keys).unwrap());

        assert_ne!(first, second);
        assert_eq!(check(&first, &keys, &BTreeSet::new()), Ok(device()));
        assert_eq!(check(&second, &keys, &BTreeSet::new()), Ok(device()));
    }

    #[test]
    fn the_text_is_pinned() {
        let text = seal(device(), TokenKeyId(2), &Secret::new([9; 32]), [5; RANDOM_BYTES]);

        assert_eq!(text, "wfd_AQIAAAAHAAABAgADBQUFBQUFBQUFBQUFBQUFBYXhjE2RU8KTS68oIOoxTIY");
    }

    #[test]
    fn any_changed_character_and_any_cut_is_refused() {
        let keys = keys();
        let text = issue(device(), &keys).unwrap();

        for at in 0..text.len() {
            for other in ["A", "B", "_", "-", "=", " ", "é"] {
                if text[at..=at] != *other {
                    let changed = format!("{}{other}{}", &text[..at], &text[at + 1..]);
                    assert!(check(&changed, &keys, &BTreeSet::new()).is_err(), "{at} {other}");
                }
            }
            assert_eq!(check(&text[..at], &keys, &BTreeSet::new()), Err(CredentialError::Malformed));
        }
        assert!(check(&format!("{text}A"), &keys, &BTreeSet::new()).is_err());
    }

    #[test]
    fn a_revoked_device_is_refused_and_its_successor_is_not() {
        let keys = keys();
        let next = DeviceKey { device: DeviceNumber(device().device.0 + 1), ..device() };
        let revoked = BTreeSet::from([device()]);

        assert_eq!(check(&issue(device(), &keys).unwrap(), &keys, &revoked), Err(CredentialError::Revoked));
        assert_eq!(check(&issue(next, &keys).unwrap(), &keys, &revoked), Ok(next));
    }

    #[test]
    fn a_key_that_was_replaced_still_opens_and_one_that_is_gone_does_not() {
        let mut keys = keys();
        let old = issue(device(), &keys).unwrap();
        keys.insert(TokenKeyId(3), Secret::random());

        let new = issue(device(), &keys).unwrap();

        assert_eq!(check(&old, &keys, &BTreeSet::new()), Ok(device()));
        keys.remove(TokenKeyId(2));
        assert_eq!(check(&old, &keys, &BTreeSet::new()), Err(CredentialError::UnknownKey(TokenKeyId(2))));
        assert_eq!(check(&new, &keys, &BTreeSet::new()), Ok(device()));
        assert_eq!(issue(device(), &TokenKeys::default()), Err(NoTokenKey));
    }

    #[test]
    fn another_regions_key_of_the_same_id_is_a_forgery() {
        let text = issue(device(), &keys()).unwrap();
        let others = TokenKeys::new([(TokenKeyId(2), Secret::new([8; 32]))]);

        assert_eq!(check(&text, &others, &BTreeSet::new()), Err(CredentialError::Forged));
    }

    fn keys() -> TokenKeys {
        TokenKeys::new([(TokenKeyId(2), Secret::new([9; 32]))])
    }

    fn device() -> DeviceKey {
        DeviceKey { tenant: TenantId(7), driver: DriverId(258), device: DeviceNumber(3) }
    }
}
