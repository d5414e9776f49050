//! A partition's state as bytes, and back. Whoever restores a snapshot and folds on comes to the same bytes as who never
//! stopped. A snapshot of an older build is read as far as this build knows how, and so is one of a newer build.
//!
//! `WS` ‖ format u16 ‖ fold version u32 ‖ parts, each as kind u8, version u8, length u32 and bytes; integers are
//! little-endian. Each tracker is a part of its own, so that no length within can ask for more memory than one tracker
//! has. The highest bit of a part's version says that a build which does not know this kind or version must refuse the
//! snapshot; without it the part is left out. Parts that are structs stand field by field (`fields.rs`).
//!
//! # How to change what a tracker keeps
//!
//! Every struct of the state has a `fields!` list below it. The compiler refuses a list that lacks a field.
//!
//! * **A new field**: add it to the struct and give it the next free tag of that list, in its `since` block, with what
//!   it is worth in a snapshot that lacks it:
//!   ```text
//!   fields! { Motion { 1 told: Plain, 2 stay: Plain } since { 3 moved_m: Plain = 0 } }
//!   ```
//!   Nothing else: older snapshots get the default, older builds leave the field out. Where an older build must not go on
//!   without it, write `3 moved_m: Required<Plain> = 0`.
//! * **A field that goes**: delete its line from `since`, or write `[gone OldType]` in its place in the first block. Its
//!   tag is never used again.
//! * **A field whose type changes**: give the field a new tag and fill it from nothing, or keep the old type with
//!   `impl From<Old> for New` and write `2 stay: From1<Old>`. The same goes for a change within a type that stands as
//!   `Plain`, those of `protocol` and `maps` included. A `Plain` struct that is to grow is better made a struct with
//!   fields: `One`, `Maybe` or `Each` in the place of `Plain`, under a new tag.
//! * **A struct that is split**: the outer list names the new parts under new tags.
//!
//! `tests/upgrade.rs` reads what older builds wrote (`tests/fixtures`) and fails where one of these
//! was forgotten.

use protocol::update::Generation;
use protocol::{DeliveryKey, TrackerKey};
use wincode::config::DefaultConfig;
use wincode::{SchemaReadOwned, SchemaWrite};

use super::FOLD_VERSION;
use super::fields::{Fields, Reading};
use super::partition::{Partition, State};
use super::released::Released;
use super::roads::Bodies;
use super::tracker::Tracker;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SnapshotError {
    #[error("the bytes do not begin as a snapshot does")]
    Magic,
    #[error("snapshot format {found} is not known here, only {SNAPSHOT_FORMAT} and {FORMAT_WITHOUT_FIELDS}")]
    Format { found: u16 },
    #[error("the snapshot is cut short")]
    CutShort,
    #[error("the snapshot does not decode")]
    Decode,
    #[error("a tracker does not fit into a snapshot")]
    TooLarge,
    #[error("the snapshot lacks the field {field}")]
    Missing { field: &'static str },
    #[error("a newer build wrote field or part {tag} and says that the state means nothing without it")]
    Required { tag: u8 },
}

impl Partition {
    pub fn snapshot(&self) -> Result<Vec<u8>, SnapshotError> {
        let mut bytes = Vec::with_capacity(1024 + self.trackers.len() * 4096);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&SNAPSHOT_FORMAT.to_le_bytes());
        bytes.extend_from_slice(&FOLD_VERSION.to_le_bytes());
        write_part(&mut bytes, STATE, STATE_VERSION, |to| self.state.write_fields(to))?;
        let released: Vec<_> = self.released.iter().collect();
        for some in released.chunks(RELEASED_PER_PART) {
            write_part(&mut bytes, RELEASED, RELEASED_VERSION, |to| write_plain(&some.to_vec(), to))?;
        }
        self.trackers
            .try_for_each(|tracker| write_part(&mut bytes, TRACKER, TRACKER_VERSION, |to| tracker.write_fields(to)))?;
        write_part(&mut bytes, END, END_VERSION, |to| write_plain(&(self.trackers.len() as u64), to))?;
        Ok(bytes)
    }

    /// As the next release may write it: with a part and with fields that this build does not know and may leave out.
    #[cfg(test)]
    pub(crate) fn snapshot_of_next_release(&self) -> Result<Vec<u8>, SnapshotError> {
        let with_more = |to: &mut Vec<u8>, write: &dyn Fn(&mut Vec<u8>) -> Result<(), SnapshotError>| {
            write(to)?;
            to.extend_from_slice(&[201, 1, 3, 9, 9, 9]); // tag, version, length, bytes
            Ok(())
        };
        let mut bytes = self.snapshot()?[..HEADER_BYTES].to_vec();
        write_part(&mut bytes, STATE, STATE_VERSION, |to| with_more(to, &|to| self.state.write_fields(to)))?;
        bytes.extend_from_slice(&[77, 1, 4, 0, 0, 0, 1, 2, 3, 4]); // kind, version, length, bytes
        let released: Vec<_> = self.released.iter().collect();
        write_part(&mut bytes, RELEASED, RELEASED_VERSION, |to| write_plain(&released, to))?;
        self.trackers.try_for_each(|tracker| {
            write_part(&mut bytes, TRACKER, TRACKER_VERSION, |to| with_more(to, &|to| tracker.write_fields(to)))
        })?;
        write_part(&mut bytes, END, END_VERSION, |to| write_plain(&(self.trackers.len() as u64), to))?;
        Ok(bytes)
    }

    /// Takes up what a fold before left. If that was another version, or if something in it is not known here, its
    /// numbers mean nothing: all epochs begin anew under `generation`, the claim of who restores.
    pub fn restore(bytes: &[u8], generation: Generation, bodies: &dyn Bodies) -> Result<Partition, SnapshotError> {
        let (header, rest) = bytes.split_at_checked(HEADER_BYTES).ok_or(SnapshotError::CutShort)?;
        if header[..2] != *MAGIC {
            return Err(SnapshotError::Magic);
        }
        let fold_version = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        let mut reading = Reading::default();
        let mut partition = match u16::from_le_bytes([header[2], header[3]]) {
            SNAPSHOT_FORMAT => read_parts(rest, &mut reading)?,
            FORMAT_WITHOUT_FIELDS => read_format_3(rest, &mut reading)?,
            found => return Err(SnapshotError::Format { found }),
        };
        if fold_version != FOLD_VERSION || reading.skipped > 0 {
            partition.begin_epochs(generation);
            partition.is_anew = true;
        }
        partition.open_bodies(bodies);
        Ok(partition)
    }

    fn take_restored(&mut self, tracker: Tracker) {
        self.trackers.insert(tracker, self.state.clock.now());
    }

    /// What was told under the epochs so far may not be what this fold would have told.
    pub fn begin_epochs(&mut self, generation: Generation) {
        self.state.clock.raise_floor(generation);
        let generation = self.state.clock.generation();
        let now = self.state.clock.now();
        self.trackers.for_each_mut(now, |tracker| tracker.begin_epochs(generation));
        self.trackers.schedule_all();
    }
}

/// Whether this build reads snapshots of a format.
pub fn is_readable_format(format: u16) -> bool {
    matches!(format, SNAPSHOT_FORMAT | FORMAT_WITHOUT_FIELDS)
}

fn read_parts(mut rest: &[u8], reading: &mut Reading) -> Result<Partition, SnapshotError> {
    let mut partition = None;
    loop {
        let part = next_part(&mut rest)?;
        match (part.kind, part.version & !REQUIRED) {
            (STATE, STATE_VERSION) => partition = Some(Partition::of(State::read_fields(part.bytes, reading)?)),
            (RELEASED, RELEASED_VERSION) => read_released(known(&mut partition)?, part.bytes)?,
            (TRACKER, TRACKER_VERSION) => {
                let tracker = Tracker::read_fields(part.bytes, reading)?;
                known(&mut partition)?.take_restored(tracker);
            }
            (END, END_VERSION) => {
                return end(partition.ok_or(SnapshotError::Decode)?, part.bytes, rest);
            }
            (tag, _) if part.version & REQUIRED != 0 => return Err(SnapshotError::Required { tag }),
            (_, _) => reading.skipped = reading.skipped.saturating_add(1),
        }
    }
}

/// The builds before fields: parts have no version, and structs are bincode's bytes.
fn read_format_3(mut rest: &[u8], reading: &mut Reading) -> Result<Partition, SnapshotError> {
    let mut partition = None;
    loop {
        let mut part = next_part_of_format_3(&mut rest)?;
        match part.kind {
            STATE => partition = Some(Partition::of(State::read_format_3(&mut part.bytes, reading)?)),
            RELEASED => read_released(known(&mut partition)?, std::mem::take(&mut part.bytes))?,
            TRACKER => {
                let tracker = Tracker::read_format_3(&mut part.bytes, reading)?;
                known(&mut partition)?.take_restored(tracker);
            }
            END => return end(partition.ok_or(SnapshotError::Decode)?, part.bytes, rest),
            _ => return Err(SnapshotError::Decode),
        }
        if !part.bytes.is_empty() {
            return Err(SnapshotError::Decode);
        }
    }
}

/// The state comes before all that belongs to it.
fn known(partition: &mut Option<Partition>) -> Result<&mut Partition, SnapshotError> {
    partition.as_mut().ok_or(SnapshotError::Decode)
}

fn read_released(partition: &mut Partition, bytes: &[u8]) -> Result<(), SnapshotError> {
    let some: Vec<((TrackerKey, DeliveryKey), Released)> = read_plain(bytes)?;
    partition.released.extend(some);
    Ok(())
}

/// The number of trackers, so that a cut between two parts is seen.
fn end(partition: Partition, bytes: &[u8], rest: &[u8]) -> Result<Partition, SnapshotError> {
    let is_whole = rest.is_empty() && read_plain::<u64>(bytes)? == partition.trackers.len() as u64;
    if is_whole { Ok(partition) } else { Err(SnapshotError::Decode) }
}

fn write_part(
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

struct Part<'a> {
    kind: u8,
    version: u8,
    bytes: &'a [u8],
}

fn next_part<'a>(rest: &mut &'a [u8]) -> Result<Part<'a>, SnapshotError> {
    let (head, after) = rest.split_first_chunk::<2>().ok_or(SnapshotError::CutShort)?;
    *rest = after;
    let bytes = take_sized(rest)?;
    Ok(Part { kind: head[0], version: head[1], bytes })
}

fn next_part_of_format_3<'a>(rest: &mut &'a [u8]) -> Result<Part<'a>, SnapshotError> {
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

fn write_plain<T>(value: &T, to: &mut Vec<u8>) -> Result<(), SnapshotError>
where
    T: SchemaWrite<DefaultConfig, Src = T>,
{
    wincode::serialize_into(to, value).map_err(|_| SnapshotError::Decode)
}

fn read_plain<T: SchemaReadOwned<DefaultConfig, Dst = T>>(bytes: &[u8]) -> Result<T, SnapshotError> {
    wincode::deserialize_exact(bytes).map_err(|_| SnapshotError::Decode)
}

const STATE: u8 = 0;
const RELEASED: u8 = 1;
const TRACKER: u8 = 2;
const END: u8 = 3;
const STATE_VERSION: u8 = 1;
const RELEASED_VERSION: u8 = 1;
const TRACKER_VERSION: u8 = 1;
const END_VERSION: u8 = 1;
const REQUIRED: u8 = 0x80;
/// Well below what a decoder allocates at a time.
const RELEASED_PER_PART: usize = 10_000;
const MAGIC: &[u8; 2] = b"WS";
const HEADER_BYTES: usize = 8;
/// Of the frame around the parts. What is in them has versions of its own: a change there does not change this.
pub const SNAPSHOT_FORMAT: u16 = 4;
const FORMAT_WITHOUT_FIELDS: u16 = 3;
