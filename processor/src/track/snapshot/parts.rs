//! The frame of a snapshot: a header, then parts.

use protocol::{DeliveryKey, TrackerKey};
use wincode::config::DefaultConfig;
use wincode::{SchemaReadOwned, SchemaWrite};

use super::SnapshotError;
use crate::track::FOLD_VERSION;

/// Released deliveries are known by these.
pub(super) type ReleasedKey = (TrackerKey, DeliveryKey);

/// What stands before the parts.
#[derive(Clone, Copy)]
pub(super) struct Header {
    pub format: u16,
    pub fold_version: u32,
}

impl Header {
    pub fn of(format: u16) -> Header {
        Header { format, fold_version: FOLD_VERSION }
    }

    pub fn write(self, to: &mut Vec<u8>) {
        to.extend_from_slice(MAGIC);
        to.extend_from_slice(&self.format.to_le_bytes());
        to.extend_from_slice(&self.fold_version.to_le_bytes());
    }

    /// And the parts behind it.
    pub fn read(bytes: &[u8]) -> Result<(Header, &[u8]), SnapshotError> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(SnapshotError::CutShort)?;
        if header[..2] != *MAGIC {
            return Err(SnapshotError::Magic);
        }
        let format = u16::from_le_bytes([header[2], header[3]]);
        let fold_version = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        Ok((Header { format, fold_version }, rest))
    }
}

pub(super) fn write_part(
    bytes: &mut Vec<u8>,
    kind: u8,
    version: u8,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), SnapshotError>,
) -> Result<(), SnapshotError> {
    bytes.extend_from_slice(&[kind, version | REQUIRED]);
    let begin = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    write(bytes)?;
    let length = u32::try_from(bytes.len() - begin - 4).map_err(|_| SnapshotError::TooLarge)?;
    bytes[begin..begin + 4].copy_from_slice(&length.to_le_bytes());
    Ok(())
}

/// As many parts of one kind as it takes for a list, so that none is larger than what a decoder allocates at a time.
pub(super) fn write_list<T>(bytes: &mut Vec<u8>, kind: u8, version: u8, all: &[T]) -> Result<(), SnapshotError>
where
    T: Clone + SchemaWrite<DefaultConfig, Src = T>,
    Vec<T>: SchemaWrite<DefaultConfig, Src = Vec<T>>,
{
    all.chunks(ITEMS_PER_PART)
        .try_for_each(|some| write_part(bytes, kind, version, |to| write_plain(&some.to_vec(), to)))
}

pub(super) struct Part<'a> {
    pub kind: u8,
    pub version: u8,
    pub bytes: &'a [u8],
}

pub(super) fn next_part<'a>(rest: &mut &'a [u8]) -> Result<Part<'a>, SnapshotError> {
    let (head, after) = rest.split_first_chunk::<2>().ok_or(SnapshotError::CutShort)?;
    *rest = after;
    let bytes = take_sized(rest)?;
    Ok(Part { kind: head[0], version: head[1], bytes })
}

pub(super) fn next_part_of_format_3<'a>(rest: &mut &'a [u8]) -> Result<Part<'a>, SnapshotError> {
    let (kind, after) = rest.split_first().ok_or(SnapshotError::CutShort)?;
    *rest = after;
    let bytes = take_sized(rest)?;
    Ok(Part { kind: *kind, version: 0, bytes })
}

fn take_sized<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], SnapshotError> {
    let (length, after) = rest.split_first_chunk::<4>().ok_or(SnapshotError::CutShort)?;
    let (bytes, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or(SnapshotError::CutShort)?;
    *rest = after;
    Ok(bytes)
}

pub(super) fn write_plain<T>(value: &T, to: &mut Vec<u8>) -> Result<(), SnapshotError>
where
    T: SchemaWrite<DefaultConfig, Src = T>,
{
    wincode::serialize_into(to, value).map_err(|_| SnapshotError::Decode)
}

pub(super) fn read_plain<T: SchemaReadOwned<DefaultConfig, Dst = T>>(bytes: &[u8]) -> Result<T, SnapshotError> {
    wincode::deserialize_exact(bytes).map_err(|_| SnapshotError::Decode)
}

pub(super) const STATE: u8 = 0;
pub(super) const RELEASED: u8 = 1;
pub(super) const TRACKER: u8 = 2;
pub(super) const END: u8 = 3;
/// The base by its hash. This part and the next two stand only in a snapshot of what changed.
pub(super) const BASE: u8 = 4;
/// Trackers of the base that are no more.
pub(super) const REMOVED: u8 = 5;
/// Released deliveries of the base that are forgotten.
pub(super) const FORGOTTEN: u8 = 6;
/// Of the parts that are written. Each kind has one of its own, and they happen to be equal.
pub(super) const VERSION: u8 = 1;
pub(super) const REQUIRED: u8 = 0x80;
/// Well below what a decoder allocates at a time.
const ITEMS_PER_PART: usize = 10_000;
const MAGIC: &[u8; 2] = b"WS";
const HEADER_BYTES: usize = 8;
