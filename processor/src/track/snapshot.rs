//! A partition's state as bytes, and back. Whoever restores a snapshot and folds on comes to the same bytes as who never
//! stopped.
//!
//! `WS` ‖ format u16 ‖ fold version u32 ‖ parts, each as kind u8, length u32 and bytes; integers are little-endian. Each
//! tracker is a part of its own, so that no length within can ask for more memory than one tracker has.

use protocol::update::Generation;
use protocol::{DeliveryKey, TrackerKey};
use wincode::config::DefaultConfig;
use wincode::{SchemaReadOwned, SchemaWrite};

use super::FOLD_VERSION;
use super::partition::{Partition, Released};
use super::roads::Bodies;
use super::tracker::Tracker;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SnapshotError {
    #[error("the bytes do not begin as a snapshot does")]
    Magic,
    #[error("snapshot format {found} is not known here, only {known}")]
    Format { known: u16, found: u16 },
    #[error("the snapshot is cut short")]
    CutShort,
    #[error("the snapshot does not decode")]
    Decode,
    #[error("a tracker does not fit into a snapshot")]
    TooLarge,
}

impl Partition {
    pub fn snapshot(&self) -> Result<Vec<u8>, SnapshotError> {
        let mut bytes = Vec::with_capacity(1024 + self.trackers.len() * 4096);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&SNAPSHOT_FORMAT.to_le_bytes());
        bytes.extend_from_slice(&FOLD_VERSION.to_le_bytes());
        write_part(&mut bytes, STATE, &self.state)?;
        let released: Vec<_> = self.released.iter().map(|(place, released)| (*place, *released)).collect();
        for some in released.chunks(RELEASED_PER_PART) {
            write_part(&mut bytes, RELEASED, &some.to_vec())?;
        }
        for tracker in self.trackers.values() {
            write_part(&mut bytes, TRACKER, tracker)?;
        }
        write_part(&mut bytes, END, &(self.trackers.len() as u64))?;
        Ok(bytes)
    }

    /// Takes up what a fold before left. If that was another version, its numbers mean nothing here: all epochs begin
    /// anew under `generation`, the claim of who restores.
    pub fn restore(bytes: &[u8], generation: Generation, bodies: &dyn Bodies) -> Result<Partition, SnapshotError> {
        let (header, mut rest) = bytes.split_at_checked(HEADER_BYTES).ok_or(SnapshotError::CutShort)?;
        if header[..2] != *MAGIC {
            return Err(SnapshotError::Magic);
        }
        let format = u16::from_le_bytes([header[2], header[3]]);
        if format != SNAPSHOT_FORMAT {
            return Err(SnapshotError::Format { known: SNAPSHOT_FORMAT, found: format });
        }
        let fold_version = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        let (STATE, part) = next_part(&mut rest)? else { return Err(SnapshotError::Decode) };
        let mut partition = Partition::of(decode(part)?);
        loop {
            match next_part(&mut rest)? {
                (RELEASED, part) => {
                    let some: Vec<((TrackerKey, DeliveryKey), Released)> = decode(part)?;
                    partition.released.extend(some);
                }
                (TRACKER, part) => {
                    let tracker: Tracker = decode(part)?;
                    partition.trackers.insert(tracker.key(), tracker);
                }
                (END, part) if rest.is_empty() && decode::<u64>(part)? == partition.trackers.len() as u64 => break,
                (_, _) => return Err(SnapshotError::Decode),
            }
        }
        if fold_version != FOLD_VERSION {
            partition.begin_epochs(generation);
        }
        partition.open_bodies(bodies);
        Ok(partition)
    }

    /// What was told under the epochs so far may not be what this fold would have told.
    pub fn begin_epochs(&mut self, generation: Generation) {
        self.state.clock.raise_floor(generation);
        let generation = self.state.clock.generation();
        self.trackers.values_mut().for_each(|tracker| tracker.begin_epochs(generation));
    }
}

fn write_part<T>(bytes: &mut Vec<u8>, kind: u8, part: &T) -> Result<(), SnapshotError>
where
    T: SchemaWrite<DefaultConfig, Src = T>,
{
    bytes.push(kind);
    let begin = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    wincode::serialize_into(&mut *bytes, part).map_err(|_| SnapshotError::Decode)?;
    let length = u32::try_from(bytes.len() - begin - 4).map_err(|_| SnapshotError::TooLarge)?;
    bytes[begin..begin + 4].copy_from_slice(&length.to_le_bytes());
    Ok(())
}

fn next_part<'a>(rest: &mut &'a [u8]) -> Result<(u8, &'a [u8]), SnapshotError> {
    let (kind, after) = rest.split_first().ok_or(SnapshotError::CutShort)?;
    let (length, after) = after.split_first_chunk::<4>().ok_or(SnapshotError::CutShort)?;
    let (part, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or(SnapshotError::CutShort)?;
    *rest = after;
    Ok((*kind, part))
}

fn decode<T: SchemaReadOwned<DefaultConfig, Dst = T>>(part: &[u8]) -> Result<T, SnapshotError> {
    wincode::deserialize_exact(part).map_err(|_| SnapshotError::Decode)
}

const STATE: u8 = 0;
const RELEASED: u8 = 1;
const TRACKER: u8 = 2;
/// The number of trackers, so that a cut between two parts is seen.
const END: u8 = 3;
/// Well below what a decoder allocates at a time.
const RELEASED_PER_PART: usize = 10_000;
const MAGIC: &[u8; 2] = b"WS";
const HEADER_BYTES: usize = 8;
/// Of the bytes: changed whenever a type that is part of a tracker's state changes.
pub const SNAPSHOT_FORMAT: u16 = 3;
