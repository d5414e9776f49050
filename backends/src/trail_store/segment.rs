//! Segment files: blocks of one driver's breadcrumbs of one day, sealed under the driver's own key. A block says itself
//! what it is, so that a file can be read without the index; without the key it says nothing more.
//!
//! A block, integers little-endian: `WFTB`, version u8, 1 where it holds strays else 0, two zeros, length of the whole
//! u32, tenant u32, driver u32, day i32, count u32, first and last measured time i64 each (tenths of a second); nonce of
//! 12 bytes, AES-256-GCM of what `codec` wrote (with all before it as associated data) and its tag of 16; CRC-32 of all
//! before it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use protocol::{Breadcrumb, DriverId, DriverKey, TenantId};

use super::home::Home;
use super::{TrailStoreError, codec};

/// A driver's own key: whoever forgets it has forgotten the driver's history.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct DriverSecret(pub [u8; 32]);

impl DriverSecret {
    pub fn random() -> Result<DriverSecret, TrailStoreError> {
        let mut secret = [0; 32];
        aws_lc_rs::rand::fill(&mut secret)
            .map_err(|_| TrailStoreError::Unavailable { reason: "the system has no randomness to give".to_string() })?;
        Ok(DriverSecret(secret))
    }

    fn key(&self) -> Result<RandomizedNonceKey, TrailStoreError> {
        RandomizedNonceKey::new(&AES_256_GCM, &self.0).map_err(|_| damaged("a driver's key is none"))
    }
}

/// What stands before a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Head {
    pub driver: DriverKey,
    pub home: Home,
    pub count: u32,
    pub first_ds: i64,
    pub last_ds: i64,
}

/// Appends the block of these breadcrumbs: of one driver and day, in order of measured time, at least one.
pub(super) fn seal(
    secret: &DriverSecret,
    home: Home,
    breadcrumbs: &[Breadcrumb],
    out: &mut Vec<u8>,
) -> Result<Head, TrailStoreError> {
    let (Some(first), Some(last)) = (breadcrumbs.first(), breadcrumbs.last()) else {
        return Err(damaged("a block without breadcrumbs"));
    };
    let head = Head {
        driver: first.record.device.driver_key(),
        home,
        count: breadcrumbs.len() as u32,
        first_ds: first.record.fix.measured.0,
        last_ds: last.record.fix.measured.0,
    };
    let mut body = Vec::with_capacity(breadcrumbs.len() * 24 + 128);
    codec::encode(breadcrumbs, &mut body);
    let begin = out.len();
    put_head(&head, HEAD_BYTES + NONCE_BYTES + body.len() + TAG_BYTES + SUM_BYTES, out);
    let nonce = secret
        .key()?
        .seal_in_place_append_tag(Aad::from(&out[begin..]), &mut body)
        .map_err(|_| damaged("a block could not be sealed"))?;
    out.extend_from_slice(nonce.as_ref());
    out.extend_from_slice(&body);
    let sum = crc32fast::hash(&out[begin..]);
    out.extend_from_slice(&sum.to_le_bytes());
    Ok(head)
}

/// What a block holds.
pub(super) fn open(secret: &DriverSecret, bytes: &[u8]) -> Result<(Head, Vec<Breadcrumb>), TrailStoreError> {
    let head = head_of(bytes).ok_or_else(|| damaged("a block of history is broken"))?;
    let (aad, rest) = bytes.split_at(HEAD_BYTES);
    let (nonce, rest) = rest.split_at(NONCE_BYTES);
    let mut body = rest[..rest.len() - SUM_BYTES].to_vec();
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| damaged("a block has no nonce"))?;
    let plain = secret
        .key()?
        .open_in_place(nonce, Aad::from(aad), &mut body)
        .map_err(|_| damaged("a block of history does not open under its driver's key"))?;
    let breadcrumbs = codec::decode(plain).map_err(|error| damaged(&error.to_string()))?;
    Ok((head, breadcrumbs))
}

/// None: these bytes are no whole block.
pub(super) fn head_of(bytes: &[u8]) -> Option<Head> {
    if bytes.len() < HEAD_BYTES + NONCE_BYTES + TAG_BYTES + SUM_BYTES || bytes[..4] != MAGIC {
        return None;
    }
    let (rest, sum) = bytes.split_last_chunk::<SUM_BYTES>()?;
    let word = |at: usize| bytes[at..at + 4].try_into().map(u32::from_le_bytes).ok();
    let long = |at: usize| bytes[at..at + 8].try_into().map(i64::from_le_bytes).ok();
    let is_whole = word(8)? as usize == bytes.len() && u32::from_le_bytes(*sum) == crc32fast::hash(rest);
    if !is_whole || bytes[4] != VERSION || bytes[5] > 1 {
        return None;
    }
    Some(Head {
        driver: DriverKey { tenant: TenantId(word(12)?), driver: DriverId(word(16)?) },
        home: Home { is_stray: bytes[5] == 1, day: i64::from(word(20)? as i32) },
        count: word(24)?,
        first_ds: long(28)?,
        last_ds: long(36)?,
    })
}

fn put_head(head: &Head, len: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[VERSION, u8::from(head.home.is_stray), 0, 0]);
    out.extend_from_slice(&(len as u32).to_le_bytes());
    out.extend_from_slice(&head.driver.tenant.0.to_le_bytes());
    out.extend_from_slice(&head.driver.driver.0.to_le_bytes());
    out.extend_from_slice(&(head.home.day as i32).to_le_bytes());
    out.extend_from_slice(&head.count.to_le_bytes());
    out.extend_from_slice(&head.first_ds.to_le_bytes());
    out.extend_from_slice(&head.last_ds.to_le_bytes());
}

/// Where a segment file lies.
pub(super) fn path(folder: &Path, file: i64) -> PathBuf {
    folder.join(format!("segment-{file:08}.wfs"))
}

/// Appends at the place where the last durable block ended: what a crash left behind it is overwritten.
pub(super) fn append(path: &Path, at: u64, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    if file.metadata()?.len() < at {
        return Err(io::Error::other(format!("{} is shorter than the index says", path.display())));
    }
    file.set_len(at)?;
    io::Seek::seek(&mut file, io::SeekFrom::End(0))?;
    file.write_all(bytes)?;
    file.sync_data()
}

pub(super) fn read(file: &File, at: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let mut block = vec![0; bytes];
    file.read_exact_at(&mut block, at)?;
    Ok(block)
}

fn damaged(reason: &str) -> TrailStoreError {
    TrailStoreError::Damaged { reason: reason.to_string() }
}

const MAGIC: [u8; 4] = *b"WFTB";
const VERSION: u8 = 1;
const HEAD_BYTES: usize = 44;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
const SUM_BYTES: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trail_store::samples::drive;

    #[test]
    fn a_block_opens_under_its_drivers_key_and_says_what_it_is_without() {
        let (secret, breadcrumbs) = (DriverSecret::random().unwrap(), drive(8, 300));
        let home = Home { is_stray: false, day: 19_000 };
        let mut block = Vec::new();

        let head = seal(&secret, home, &breadcrumbs, &mut block).unwrap();

        assert_eq!(open(&secret, &block).unwrap(), (head, breadcrumbs.clone()));
        assert_eq!(head_of(&block), Some(head));
        assert_eq!((head.home, head.count, head.driver), (home, 300, breadcrumbs[0].record.device.driver_key()));
        let other = DriverSecret::random().unwrap();
        assert!(matches!(open(&other, &block), Err(TrailStoreError::Damaged { .. })));
    }

    #[test]
    fn one_flipped_bit_anywhere_is_seen() {
        let (secret, breadcrumbs) = (DriverSecret::random().unwrap(), drive(8, 20));
        let mut block = Vec::new();
        seal(&secret, Home { is_stray: true, day: -3 }, &breadcrumbs, &mut block).unwrap();

        for place in 0..block.len() {
            let mut spoiled = block.clone();
            spoiled[place] ^= 4;
            assert!(open(&secret, &spoiled).is_err(), "{place}");
        }
        for len in 0..block.len() {
            assert!(open(&secret, &block[..len]).is_err(), "{len}");
        }
    }
}
