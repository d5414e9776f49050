//! Frames of batches as fjall 3.1 writes them to its journal (`journal/entry.rs`), little-endian: start
//! `1 ‖ items u32 ‖ sequence u64`, item
//! `2 ‖ type ‖ compression ‖ keyspace u64 ‖ key length u16 ‖ length u32 ‖ stored length u32 ‖ key ‖ value`, clear
//! `4 ‖ keyspace u64`, end `3 ‖ checksum u64 ‖ "FJL" ‖ 3`. The checksum is XXH3 over items and clears.

use xxhash_rust::xxh3::xxh3_64;

use super::layout::COMMIT_NUMBER_KEY;

/// A whole frame of a batch, whose checksum is right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchFrame {
    pub begin: usize,
    pub end: usize,
    pub number: Option<u64>,
}

pub fn frame_at(bytes: &[u8], begin: usize) -> Option<BatchFrame> {
    let mut cursor = Cursor { rest: bytes.get(begin..)? };
    let mut number = None;
    if cursor.byte()? != START {
        return None;
    }
    let count = u32::from_le_bytes(cursor.array()?);
    cursor.skip(8)?;
    let items = cursor.rest;
    let mut seen = 0_u32;
    loop {
        let is_before_end = cursor.rest.first().is_some_and(|marker| *marker == END);
        if is_before_end {
            let items = &items[..items.len() - cursor.rest.len()];
            cursor.skip(1)?;
            let checksum = u64::from_le_bytes(cursor.array()?);
            let is_sound = cursor.array()? == END_MAGIC && seen == count && checksum == xxh3_64(items);
            return is_sound.then_some(BatchFrame { begin, end: bytes.len() - cursor.rest.len(), number });
        }
        match cursor.byte()? {
            ITEM => {
                let [value_type, compression] = cursor.array()?;
                cursor.skip(8)?;
                let key_len = u16::from_le_bytes(cursor.array()?);
                let value_len = u32::from_le_bytes(cursor.array()?);
                let stored_len = u32::from_le_bytes(cursor.array()?);
                if value_type > VALUE_TYPE_MAX || compression != UNCOMPRESSED || value_len != stored_len {
                    return None;
                }
                let key = cursor.take(usize::from(key_len))?;
                let value = cursor.take(value_len as usize)?;
                if key == COMMIT_NUMBER_KEY {
                    number = value.try_into().ok().map(u64::from_be_bytes);
                }
            }
            CLEAR => cursor.skip(8)?,
            _ => return None,
        }
        seen = seen.checked_add(1)?;
    }
}

/// The first frame that begins at `from` or anywhere after it.
pub fn frame_after(bytes: &[u8], from: usize) -> Option<BatchFrame> {
    let can_begin = |at: &usize| {
        let first_item = bytes.get(at + START_BYTES).copied();
        bytes[*at] == START && matches!(first_item, Some(ITEM | CLEAR))
    };
    (from..bytes.len()).filter(can_begin).find_map(|at| frame_at(bytes, at))
}

struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.take(count).map(|_| ())
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }
}

const START: u8 = 1;
const START_BYTES: usize = 1 + 4 + 8;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
/// Value, tombstone and weak tombstone.
const VALUE_TYPE_MAX: u8 = 2;
/// This build has no compression of journals.
const UNCOMPRESSED: u8 = 0;
const END_MAGIC: [u8; 4] = [b'F', b'J', b'L', 3];
