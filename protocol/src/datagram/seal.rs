//! The two suites, and how a nonce is made. The raw key is what a session keeps: a ready key object is five times as
//! large, and a million of them would not fit where a million sessions must.

use aws_lc_rs::aead::{AES_128_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};

use super::TAG_LEN;

/// Which AEAD a session uses; the first byte of its record.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Suite {
    /// For phones without AES instructions.
    #[serde(rename = "chacha20-poly1305")]
    ChaCha20Poly1305,
    #[serde(rename = "aes-128-gcm")]
    Aes128Gcm,
}

impl Suite {
    pub fn to_byte(self) -> u8 {
        match self {
            Suite::ChaCha20Poly1305 => 0x51,
            Suite::Aes128Gcm => 0x52,
        }
    }

    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0x51 => Some(Suite::ChaCha20Poly1305),
            0x52 => Some(Suite::Aes128Gcm),
            _ => None,
        }
    }

    pub fn key_len(self) -> usize {
        match self {
            Suite::ChaCha20Poly1305 => 32,
            Suite::Aes128Gcm => 16,
        }
    }

    fn algorithm(self) -> &'static Algorithm {
        match self {
            Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
            Suite::Aes128Gcm => &AES_128_GCM,
        }
    }
}

/// One direction's key and iv. AES-128-GCM uses the first 16 bytes of the key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AeadKey {
    pub key: [u8; KEY_LEN_MAX],
    pub iv: [u8; IV_LEN],
}

impl std::fmt::Debug for AeadKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AeadKey(***)")
    }
}

impl AeadKey {
    /// Nonce of a datagram: iv ⊕ (0⁸ ‖ counter).
    pub fn datagram_nonce(&self, counter: u32) -> [u8; IV_LEN] {
        let mut nonce = self.iv;
        xor(&mut nonce[8..], counter.to_be_bytes());
        nonce
    }

    /// Nonce of an answer: iv ⊕ (random ‖ 0⁴ ‖ count).
    pub fn answer_nonce(&self, random: [u8; 4], count: u32) -> [u8; IV_LEN] {
        let mut nonce = self.iv;
        xor(&mut nonce[..4], random);
        xor(&mut nonce[8..], count.to_be_bytes());
        nonce
    }

    /// Encrypts `text` in place and returns the tag.
    pub fn seal(&self, suite: Suite, nonce: [u8; IV_LEN], associated: &[u8], text: &mut [u8]) -> [u8; TAG_LEN] {
        let tag = self
            .ready(suite)
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(associated), text)
            .expect("the text is far below what either suite can seal");
        let mut bytes = [0; TAG_LEN];
        bytes.copy_from_slice(tag.as_ref());
        bytes
    }

    /// Decrypts in place. `None` if it was not sealed under this key, nonce and associated data.
    pub fn open<'t>(
        &self,
        suite: Suite,
        nonce: [u8; IV_LEN],
        associated: &[u8],
        sealed: &'t mut [u8],
    ) -> Option<&'t mut [u8]> {
        self.ready(suite).open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(associated), sealed).ok()
    }

    fn ready(&self, suite: Suite) -> LessSafeKey {
        let key = UnboundKey::new(suite.algorithm(), &self.key[..suite.key_len()]);
        LessSafeKey::new(key.expect("the key has the suite's length"))
    }
}

fn xor(left: &mut [u8], right: [u8; 4]) {
    for (l, r) in left.iter_mut().zip(right) {
        *l ^= r;
    }
}

pub const KEY_LEN_MAX: usize = 32;
pub const IV_LEN: usize = 12;
