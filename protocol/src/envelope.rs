//! The envelope around every entry of the log: what it is, which version of the format, a checksum, then bincode's
//! fixed-int bytes (written by wincode). A reader refuses what it does not know instead of guessing.
//!
//! An entry of an older version is read through `Enveloped::read_version`, which turns it into what this build works
//! with. A batch that holds something a released build does not know (`Framed::is_plain` says so) is written *framed*:
//! each of its items as version u8, length u32 and bytes. A build that does not know an item leaves that one out, counts
//! it, and takes the others. All other batches stay plain, so a fix costs no frame
//! (docs/decisions/0011-state-outlives-builds.md).

use wincode::config::DefaultConfig;
use wincode::{SchemaReadOwned, SchemaWrite};

use crate::older::UpdateBatch1;
use crate::record::{Record, RecordBatch};
use crate::update::{Breadcrumb, BreadcrumbBatch, Update, UpdateBatch};

/// Something that travels in an envelope of its own kind.
pub trait Enveloped:
    SchemaWrite<DefaultConfig, Src = Self> + SchemaReadOwned<DefaultConfig, Dst = Self> + Sized
{
    const KIND: u8;
    /// What `encode` writes, unless the value is to be framed.
    const VERSION: u8;

    /// Reads a body of another version; None if this build does not know it.
    fn read_version(_version: u8, _body: &[u8]) -> Option<Result<Decoded<Self>, EnvelopeError>> {
        None
    }

    /// The version and the body of a value that an older build could not read whole; None for all others.
    fn framed(&self) -> Option<(u8, Vec<u8>)> {
        None
    }
}

/// An item of a batch that may be framed.
pub trait Framed: SchemaWrite<DefaultConfig, Src = Self> + SchemaReadOwned<DefaultConfig, Dst = Self> + Sized {
    /// Of what is written. A changed struct means the next version, and a reader for the one before in `read_item`.
    const VERSION: u8 = 1;

    /// Whether every build that reads plain batches of this kind knows all that it holds.
    fn is_plain(&self) -> bool;

    /// None for what this build does not know.
    fn read_item(version: u8, bytes: &[u8]) -> Option<Self> {
        (version == Self::VERSION).then(|| wincode::deserialize_exact(bytes).ok()).flatten()
    }
}

/// What was read, and how much of it a newer build wrote that this one does not know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decoded<T> {
    pub value: T,
    /// Items left out.
    pub skipped: u32,
}

impl<T> Decoded<T> {
    fn whole(value: T) -> Decoded<T> {
        Decoded { value, skipped: 0 }
    }
}

impl Enveloped for RecordBatch {
    const KIND: u8 = b'R';
    const VERSION: u8 = 1;

    fn read_version(version: u8, body: &[u8]) -> Option<Result<Decoded<Self>, EnvelopeError>> {
        (version == RECORDS_FRAMED).then(|| read_frames(body, |records| RecordBatch { records }))
    }

    fn framed(&self) -> Option<(u8, Vec<u8>)> {
        frames_of(&self.records).map(|frames| (RECORDS_FRAMED, frames.body()))
    }
}

impl Enveloped for UpdateBatch {
    const KIND: u8 = b'U';
    const VERSION: u8 = 2;

    fn read_version(version: u8, body: &[u8]) -> Option<Result<Decoded<Self>, EnvelopeError>> {
        match version {
            1 => Some(read_plain::<UpdateBatch1>(body).map(|older| Decoded::whole(older.into()))),
            UPDATES_FRAMED => Some(read_frames(body, |updates| UpdateBatch { updates })),
            _ => None,
        }
    }

    fn framed(&self) -> Option<(u8, Vec<u8>)> {
        frames_of(&self.updates).map(|frames| (UPDATES_FRAMED, frames.body()))
    }
}

impl Enveloped for BreadcrumbBatch {
    const KIND: u8 = b'B';
    const VERSION: u8 = 1;

    fn read_version(version: u8, body: &[u8]) -> Option<Result<Decoded<Self>, EnvelopeError>> {
        (version == BREADCRUMBS_FRAMED).then(|| read_frames(body, |breadcrumbs| BreadcrumbBatch { breadcrumbs }))
    }

    fn framed(&self) -> Option<(u8, Vec<u8>)> {
        frames_of(&self.breadcrumbs).map(|frames| (BREADCRUMBS_FRAMED, frames.body()))
    }
}

impl Framed for Record {
    fn is_plain(&self) -> bool {
        Record::is_plain(self)
    }
}

impl Framed for Update {
    fn is_plain(&self) -> bool {
        Update::is_plain(self)
    }
}

impl Framed for Breadcrumb {
    fn is_plain(&self) -> bool {
        true
    }
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
    if let Some((version, body)) = value.framed() {
        return seal(T::KIND, version, &body);
    }
    let mut bytes = vec![MAGIC, T::KIND, T::VERSION, 0, 0, 0, 0, 0];
    wincode::serialize_into(&mut bytes, value).expect("a vector takes all that is written to it");
    close(bytes)
}

fn seal(kind: u8, version: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(&[MAGIC, kind, version, 0, 0, 0, 0, 0]);
    bytes.extend_from_slice(body);
    close(bytes)
}

/// Puts the checksum into its place.
fn close(mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = checksum(&bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// Items of a batch, each in a frame of its own.
#[derive(Clone, Debug, Default)]
pub struct Frames {
    bytes: Vec<u8>,
    count: u64,
}

impl Frames {
    pub fn push<T: Framed>(&mut self, item: &T) {
        let begin = self.bytes.len();
        self.bytes.push(T::VERSION);
        self.bytes.extend_from_slice(&[0; 4]);
        wincode::serialize_into(&mut self.bytes, item).expect("a vector takes all that is written to it");
        let length = (self.bytes.len() - begin - FRAME_HEAD_BYTES) as u32; // beyond this no entry is appended
        self.bytes[begin + 1..begin + FRAME_HEAD_BYTES].copy_from_slice(&length.to_le_bytes());
        self.count += 1;
    }

    /// An item as another build would write it.
    pub fn push_bytes(&mut self, version: u8, item: &[u8]) {
        self.bytes.push(version);
        self.bytes.extend_from_slice(&(item.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(item);
        self.count += 1;
    }

    fn body(&self) -> Vec<u8> {
        [&self.count.to_le_bytes()[..], &self.bytes].concat()
    }

    /// Seals them as a batch of records.
    pub fn seal_records(&self) -> Vec<u8> {
        seal(RecordBatch::KIND, RECORDS_FRAMED, &self.body())
    }

    /// Seals them as a batch of updates.
    pub fn seal_updates(&self) -> Vec<u8> {
        seal(UpdateBatch::KIND, UPDATES_FRAMED, &self.body())
    }
}

/// None while all are plain.
fn frames_of<T: Framed>(items: &[T]) -> Option<Frames> {
    if items.iter().all(T::is_plain) {
        return None;
    }
    let mut frames = Frames::default();
    items.iter().for_each(|item| frames.push(item));
    Some(frames)
}

fn read_frames<T: Framed, B>(mut body: &[u8], batch: impl FnOnce(Vec<T>) -> B) -> Result<Decoded<B>, EnvelopeError> {
    let (count, rest) = body.split_first_chunk::<8>().ok_or(EnvelopeError::Decode)?;
    body = rest;
    let (mut items, mut skipped) = (Vec::new(), 0);
    for _ in 0..u64::from_le_bytes(*count) {
        let (head, rest) = body.split_first_chunk::<FRAME_HEAD_BYTES>().ok_or(EnvelopeError::Decode)?;
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]);
        let (bytes, rest) = rest.split_at_checked(length as usize).ok_or(EnvelopeError::Decode)?;
        body = rest;
        match T::read_item(head[0], bytes) {
            Some(item) => items.push(item),
            None => skipped += 1,
        }
    }
    if !body.is_empty() {
        return Err(EnvelopeError::Decode);
    }
    Ok(Decoded { value: batch(items), skipped })
}

fn read_plain<T: SchemaReadOwned<DefaultConfig, Dst = T>>(body: &[u8]) -> Result<T, EnvelopeError> {
    wincode::deserialize_exact(body).map_err(|_| EnvelopeError::Decode)
}

/// Records as they stand in the body of a batch. An edge writes each record here once, in the thread that judged it;
/// what several threads wrote becomes one batch without the records ever standing in memory again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EncodedRecords {
    bytes: Vec<u8>,
    count: u64,
}

impl EncodedRecords {
    /// Only what is plain: fixes and what edges say beside them.
    pub fn push(&mut self, record: &Record) {
        debug_assert!(record.is_plain(), "a record that needs a frame goes through `encode`");
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
    close(bytes)
}

/// Opens what `encode` sealed, here or in another build. What only a newer build knows is left out.
pub fn decode<T: Enveloped>(bytes: &[u8]) -> Result<T, EnvelopeError> {
    decode_counted(bytes).map(|decoded| decoded.value)
}

/// The same, and says how much was left out.
pub fn decode_counted<T: Enveloped>(bytes: &[u8]) -> Result<Decoded<T>, EnvelopeError> {
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
    let is_whole = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) == checksum(bytes);
    let body = &bytes[HEADER_BYTES..];
    match bytes[2] {
        version if version == T::VERSION && is_whole => read_plain(body).map(Decoded::whole),
        version if version == T::VERSION => Err(EnvelopeError::Checksum),
        found => match T::read_version(found, if is_whole { body } else { &[] }) {
            None => Err(EnvelopeError::Version { known: T::VERSION, found }),
            Some(_) if !is_whole => Err(EnvelopeError::Checksum),
            Some(read) => read,
        },
    }
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[1..3]);
    hasher.update(&bytes[HEADER_BYTES..]);
    hasher.finalize()
}

const MAGIC: u8 = b'W';
const HEADER_BYTES: usize = 8;
/// Version and length.
const FRAME_HEAD_BYTES: usize = 5;
const RECORDS_FRAMED: u8 = 2;
const UPDATES_FRAMED: u8 = 3;
const BREADCRUMBS_FRAMED: u8 = 2;
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

    #[test]
    fn a_record_of_a_newer_build_costs_its_batch_nothing_but_itself() {
        let known = |i: u32| Record::Mark { edge: EdgeId(i), received_before: Time(i64::from(i)) };
        let mut frames = Frames::default();
        frames.push(&known(1));
        frames.push_bytes(1, &[250, 1, 2, 3]); // a kind that is not known here
        frames.push(&known(2));
        frames.push_bytes(9, &wincode::serialize(&known(3)).unwrap()); // a known kind in a later version

        let decoded = decode_counted::<RecordBatch>(&frames.seal_records()).unwrap();

        assert_eq!(decoded, Decoded { value: RecordBatch { records: vec![known(1), known(2)] }, skipped: 2 });
    }

    #[test]
    fn frames_that_are_cut_or_longer_than_they_say_are_refused() {
        let mut frames = Frames::default();
        frames.push(&Record::Mark { edge: EdgeId(1), received_before: Time(1) });
        let body = frames.body();

        for length in 0..body.len() {
            let sealed = seal(RecordBatch::KIND, RECORDS_FRAMED, &body[..length]);
            assert_eq!(decode::<RecordBatch>(&sealed), Err(EnvelopeError::Decode), "{length}");
        }
        let longer = seal(RecordBatch::KIND, RECORDS_FRAMED, &[&body[..], &[0]].concat());
        assert_eq!(decode::<RecordBatch>(&longer), Err(EnvelopeError::Decode));
        let mut endless = body;
        endless[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        let endless = seal(RecordBatch::KIND, RECORDS_FRAMED, &endless);
        assert_eq!(decode::<RecordBatch>(&endless), Err(EnvelopeError::Decode));
    }

    #[test]
    fn updates_of_before_vehicles_are_read() {
        let key = crate::DriverKey { tenant: crate::TenantId(7), driver: crate::DriverId(3) };
        let view = crate::older::DriverView1 {
            key,
            lead: None,
            position: None,
            phone_state: None,
            battery_percent: Some(80),
            deliveries: vec![crate::DeliveryId(9)],
            silent: None,
        };
        let update = crate::older::DriverUpdate1 {
            key,
            generation: Default::default(),
            fold_version: 1,
            source: Default::default(),
            at: Time(5),
            events: vec![crate::update::Event::HeardAgain],
            body: crate::older::DriverBody1::Keyframe { view: Box::new(view) },
        };
        let heartbeat =
            crate::older::Update1::Heartbeat { source: crate::PartitionId(1), offset: crate::Offset(2), at: Time(3) };
        let batch = UpdateBatch1 { updates: vec![crate::older::Update1::Driver(update), heartbeat] };
        let sealed = seal(b'U', 1, &wincode::serialize(&batch).unwrap());

        let UpdateBatch { updates } = decode(&sealed).unwrap();

        let Update::Driver(update) = &updates[0] else { panic!("{updates:?}") };
        let crate::update::DriverBody::Keyframe { view } = &update.body else { panic!("{update:?}") };
        assert_eq!((view.battery_percent, view.vehicle), (Some(80), crate::record::Vehicle::Car));
        assert!(matches!(updates[1], Update::Heartbeat { at: Time(3), .. }));
    }
}
