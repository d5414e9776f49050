//! The envelope around every entry of the log: what it is, which version of the format, a checksum, then bincode's
//! fixed-int bytes (written by wincode). A reader refuses what it does not know instead of guessing.

use wincode::config::DefaultConfig;
use wincode::{SchemaReadOwned, SchemaWrite};

use crate::record::{Record, RecordBatch};
use crate::update::{BreadcrumbBatch, UpdateBatch};

/// Something that travels in an envelope of its own kind.
pub trait Enveloped:
    SchemaWrite<DefaultConfig, Src = Self> + SchemaReadOwned<DefaultConfig, Dst = Self> + Sized
{
    const KIND: u8;
    const VERSION: u8;
}

impl Enveloped for RecordBatch {
    const KIND: u8 = b'R';
    const VERSION: u8 = 1;
}

impl Enveloped for UpdateBatch {
    const KIND: u8 = b'U';
    const VERSION: u8 = 2;
}

impl Enveloped for BreadcrumbBatch {
    const KIND: u8 = b'B';
    const VERSION: u8 = 1;
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EnvelopeError {
    #[error("an entry of {0} bytes is too short for an envelope")]
    TooShort(usize),
    #[error("an entry of {0} bytes is larger than {ENTRY_BYTES_MAX}")]
    TooLong(usize),
    #[error("the entry does not begin as an envelope does")]
    Magic,
    #[error("an entry of kind {found:#04x} where {expected:#04x} belongs")]
    Kind { expected: u8, found: u8 },
    #[error("format version {found} is not known here, only {known}")]
    Version { known: u8, found: u8 },
    #[error("the checksum does not fit the bytes")]
    Checksum,
    #[error("the bytes do not decode")]
    Decode,
}

/// Seals a value: `W ‖ kind ‖ version ‖ 0 ‖ crc32 of kind, version and body ‖ body`.
pub fn encode<T: Enveloped>(value: &T) -> Vec<u8> {
    let mut bytes = vec![MAGIC, T::KIND, T::VERSION, 0, 0, 0, 0, 0];
    wincode::serialize_into(&mut bytes, value).expect("a vector takes all that is written to it");
    let sum = checksum(&bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// Records as they stand in the body of a batch. An edge writes each record here once, in the thread that judged it;
/// what several threads wrote becomes one batch without the records ever standing in memory again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EncodedRecords {
    bytes: Vec<u8>,
    count: u64,
}

impl EncodedRecords {
    pub fn push(&mut self, record: &Record) {
        wincode::serialize_into(&mut self.bytes, record).expect("a vector takes all that is written to it");
        self.count += 1;
    }

    pub fn extend(&mut self, other: &EncodedRecords) {
        self.bytes.extend_from_slice(&other.bytes);
        self.count += other.count;
    }

    /// Keeps its memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.count = 0;
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// The same bytes as `encode` of the `RecordBatch` of these records, in order.
pub fn encode_records<'r>(parts: impl Iterator<Item = &'r EncodedRecords> + Clone) -> Vec<u8> {
    let count: u64 = parts.clone().map(|part| part.count).sum();
    let len: usize = parts.clone().map(|part| part.bytes.len()).sum();
    let mut bytes = Vec::with_capacity(HEADER_BYTES + size_of::<u64>() + len);
    bytes.extend_from_slice(&[MAGIC, RecordBatch::KIND, RecordBatch::VERSION, 0, 0, 0, 0, 0]);
    bytes.extend_from_slice(&count.to_le_bytes());
    for part in parts {
        bytes.extend_from_slice(&part.bytes);
    }
    let sum = checksum(&bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// Opens what `encode` sealed.
pub fn decode<T: Enveloped>(bytes: &[u8]) -> Result<T, EnvelopeError> {
    if bytes.len() < HEADER_BYTES {
        return Err(EnvelopeError::TooShort(bytes.len()));
    }
    if bytes.len() > ENTRY_BYTES_MAX {
        return Err(EnvelopeError::TooLong(bytes.len()));
    }
    if bytes[0] != MAGIC || bytes[3] != 0 {
        return Err(EnvelopeError::Magic);
    }
    if bytes[1] != T::KIND {
        return Err(EnvelopeError::Kind { expected: T::KIND, found: bytes[1] });
    }
    if bytes[2] != T::VERSION {
        return Err(EnvelopeError::Version { known: T::VERSION, found: bytes[2] });
    }
    if u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) != checksum(bytes) {
        return Err(EnvelopeError::Checksum);
    }
    wincode::deserialize_exact(&bytes[HEADER_BYTES..]).map_err(|_| EnvelopeError::Decode)
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[1..3]);
    hasher.update(&bytes[HEADER_BYTES..]);
    hasher.finalize()
}

const MAGIC: u8 = b'W';
const HEADER_BYTES: usize = 8;
/// Below the 4 MiB up to which wincode preallocates by default, and far below what Kafka is set to take.
pub const ENTRY_BYTES_MAX: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::EdgeId;
    use crate::time::Time;

    #[test]
    fn records_written_one_by_one_and_in_parts_are_the_same_batch() {
        let records: Vec<Record> =
            (0..5).map(|i| Record::Mark { edge: EdgeId(i), received_before: Time(i64::from(i)) }).collect();
        let mut parts = [EncodedRecords::default(), EncodedRecords::default(), EncodedRecords::default()];
        records[..2].iter().for_each(|record| parts[0].push(record));
        records[2..].iter().for_each(|record| parts[2].push(record));

        let bytes = encode_records(parts.iter());

        assert_eq!(bytes, encode(&RecordBatch { records: records.clone() }));
        assert_eq!(decode::<RecordBatch>(&bytes), Ok(RecordBatch { records }));
    }
}
