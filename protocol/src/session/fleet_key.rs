//! The fleet key: 32 random bytes that all edges of a region share for a while, and what is derived from them. Four
//! of them can be in use at once, so that a daily change disturbs no session.

use std::sync::Arc;

use aws_lc_rs::aead::quic;
use aws_lc_rs::cipher::{AES_128, DecryptingKey, DecryptionContext, EncryptingKey, UnboundCipherKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk};

use super::record::{RECORD_LEN, SessionRecord};
use crate::datagram::seal::{IV_LEN, KEY_LEN_MAX};
use crate::datagram::{AeadKey, KID_COUNT, Kid, SID_LEN};

/// One fleet key, ready for use.
pub struct FleetKey {
    kid: Kid,
    sid_open: DecryptingKey,
    sid_seal: EncryptingKey,
    mask: quic::HeaderProtectionKey,
    sessions: Prk,
}

impl std::fmt::Debug for FleetKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FleetKey(kid {}, ***)", self.kid.as_u8())
    }
}

impl FleetKey {
    pub fn new(kid: Kid, secret: &[u8; FLEET_KEY_LEN]) -> Self {
        const OURS: &str = "a key of 16 bytes is what AES-128 takes";
        let root = Prk::new_less_safe(HKDF_SHA256, secret);
        let parts = FleetKeyParts::derive(&root);
        let aes = || UnboundCipherKey::new(&AES_128, &parts.sid).expect(OURS);
        FleetKey {
            kid,
            sid_open: DecryptingKey::ecb(aes()).expect(OURS),
            sid_seal: EncryptingKey::ecb(aes()).expect(OURS),
            mask: quic::HeaderProtectionKey::new(&quic::AES_128, &parts.mask).expect(OURS),
            sessions: Prk::new_less_safe(HKDF_SHA256, &parts.sessions),
        }
    }

    pub fn kid(&self) -> Kid {
        self.kid
    }

    /// The sealed id of a record; `None` if the record has no bytes.
    pub fn seal_sid(&self, record: &SessionRecord) -> Option<[u8; SID_LEN]> {
        let mut sid = record.to_bytes()?;
        self.sid_seal.encrypt(&mut sid).expect("one block is a multiple of a block");
        Some(sid)
    }

    /// What a sid says, before knowing whether it is one of ours.
    pub fn open_sid(&self, sid: &[u8; SID_LEN]) -> [u8; RECORD_LEN] {
        let mut record = *sid;
        self.sid_open.decrypt(&mut record, DecryptionContext::None).expect("one block is a multiple of a block");
        record
    }

    /// Hides the counter: its low entropy would link two aliases of one session.
    pub fn mask(&self, sid: &[u8; SID_LEN]) -> [u8; 4] {
        let block = self.mask.new_mask(sid).expect("a sid is one block");
        [block[0], block[1], block[2], block[3]]
    }

    /// Both directions' keys. The alias does not matter.
    pub fn session_keys(&self, record_bytes: &[u8; RECORD_LEN]) -> SessionKeys {
        let mut record = *record_bytes;
        record[RECORD_LEN - 1] = 0;
        let okm: [u8; SESSION_OKM_LEN] = expand(&self.sessions, &[b"wayfix1 keys", &record]);
        let take = |at: usize| {
            let mut direction = AeadKey { key: [0; KEY_LEN_MAX], iv: [0; IV_LEN] };
            direction.key.copy_from_slice(&okm[at..at + KEY_LEN_MAX]);
            direction.iv.copy_from_slice(&okm[at + KEY_LEN_MAX..at + KEY_LEN_MAX + IV_LEN]);
            direction
        };
        SessionKeys { phone_to_edge: take(0), edge_to_phone: take(KEY_LEN_MAX + IV_LEN) }
    }
}

/// The three keys under a fleet key, as bytes; what the golden vectors pin.
pub struct FleetKeyParts {
    pub sid: [u8; 16],
    pub mask: [u8; 16],
    pub sessions: [u8; 32],
}

impl FleetKeyParts {
    pub fn of(secret: &[u8; FLEET_KEY_LEN]) -> Self {
        Self::derive(&Prk::new_less_safe(HKDF_SHA256, secret))
    }

    fn derive(root: &Prk) -> Self {
        FleetKeyParts {
            sid: expand(root, &[b"wayfix1 sid"]),
            mask: expand(root, &[b"wayfix1 msk"]),
            sessions: expand(root, &[b"wayfix1 ses"]),
        }
    }
}

/// The keys of one session, one for each direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionKeys {
    pub phone_to_edge: AeadKey,
    pub edge_to_phone: AeadKey,
}

/// The fleet keys in use: at most one for each kid. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct FleetKeys {
    keys: [Option<Arc<FleetKey>>; KID_COUNT],
}

impl FleetKeys {
    pub fn set(&mut self, key: Arc<FleetKey>) {
        let at = key.kid().index();
        self.keys[at] = Some(key);
    }

    pub fn wipe(&mut self, kid: Kid) {
        self.keys[kid.index()] = None;
    }

    pub fn of(&self, kid: Kid) -> Option<&FleetKey> {
        self.keys[kid.index()].as_deref()
    }
}

/// HKDF-Expand with SHA-256.
fn expand<const N: usize>(prk: &Prk, info: &[&[u8]]) -> [u8; N] {
    struct Len(usize);
    impl KeyType for Len {
        fn len(&self) -> usize {
            self.0
        }
    }
    let mut out = [0; N];
    let okm = prk.expand(info, Len(N)).expect("far less than 255 hashes are asked for");
    okm.fill(&mut out).expect("the buffer has the length asked for");
    out
}

pub const FLEET_KEY_LEN: usize = 32;
const SESSION_OKM_LEN: usize = 2 * (KEY_LEN_MAX + IV_LEN);
