//! A partition's state as bytes, and back. Whoever restores a snapshot and folds on comes to the same bytes as who never
//! stopped. A snapshot of an older build is read as far as this build knows how, and so is one of a newer build.
//!
//! A snapshot is a base, the whole state, or what has changed since a base: the trackers that changed, whole, and what is
//! gone. Both are complete with the base alone, so a lost one costs only the records since the one before.
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

mod parts;
mod writing;

use protocol::TrackerKey;
use protocol::record::BlobHash;
use protocol::update::Generation;

pub use writing::{SnapshotEncoder, SnapshotHead};

use self::parts::{
    BASE, END, FORGOTTEN, Header, RELEASED, REMOVED, REQUIRED, ReleasedKey, STATE, TRACKER, VERSION, next_part,
    next_part_of_format_3, read_plain,
};
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
    #[error("a snapshot of format {found} cannot be read here")]
    Format { found: u16 },
    #[error("what changed does not belong to this base")]
    Base,
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
    /// Takes up what a fold before left. If that was another version, or if something in it is not known here, its
    /// numbers mean nothing: all epochs begin anew under `generation`, the claim of who restores.
    pub fn restore(bytes: &[u8], generation: Generation, bodies: &dyn Bodies) -> Result<Partition, SnapshotError> {
        Partition::restore_from(bytes, None, generation, bodies)
    }

    /// The same from a base, which has this hash, and what changed since.
    pub fn restore_changed(
        (hash, base): (BlobHash, &[u8]),
        changes: &[u8],
        generation: Generation,
        bodies: &dyn Bodies,
    ) -> Result<Partition, SnapshotError> {
        Partition::restore_from(base, Some((hash, changes)), generation, bodies)
    }

    fn restore_from(
        base: &[u8],
        changes: Option<(BlobHash, &[u8])>,
        generation: Generation,
        bodies: &dyn Bodies,
    ) -> Result<Partition, SnapshotError> {
        let mut reading = Reading::default();
        let (header, rest) = Header::read(base)?;
        let mut partition = match header.format {
            SNAPSHOT_FORMAT => read_parts(rest, None, &mut reading)?,
            FORMAT_WITHOUT_FIELDS => read_format_3(rest, &mut reading)?,
            found => return Err(SnapshotError::Format { found }),
        };
        let mut is_same_version = header.fold_version == FOLD_VERSION;
        if let Some((base, changes)) = changes {
            let (header, rest) = Header::read(changes)?;
            if header.format != CHANGES_FORMAT {
                return Err(SnapshotError::Format { found: header.format });
            }
            partition = read_parts(rest, Some((base, partition)), &mut reading)?;
            is_same_version &= header.fold_version == FOLD_VERSION;
        }
        if !is_same_version || reading.skipped > 0 {
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
    matches!(format, SNAPSHOT_FORMAT | CHANGES_FORMAT | FORMAT_WITHOUT_FIELDS)
}

/// Of a base, or of what changed since one.
fn read_parts(
    mut rest: &[u8],
    base: Option<(BlobHash, Partition)>,
    reading: &mut Reading,
) -> Result<Partition, SnapshotError> {
    let (mut is_of_base, mut partition) = (base.is_none(), None);
    let (hash, mut base) = base.unzip();
    loop {
        let part = next_part(&mut rest)?;
        match (part.kind, part.version & !REQUIRED) {
            (BASE, VERSION) => is_of_base = Some(read_plain::<BlobHash>(part.bytes)?) == hash,
            (STATE, VERSION) if is_of_base => {
                let state = State::read_fields(part.bytes, reading)?;
                partition = Some(match base.take() {
                    None => Partition::of(state),
                    Some(mut base) => {
                        base.state = state;
                        base
                    }
                });
            }
            (STATE, VERSION) => return Err(SnapshotError::Base),
            (FORGOTTEN, VERSION) => {
                known(&mut partition)?.released.remove_restored(read_plain::<Vec<ReleasedKey>>(part.bytes)?);
            }
            (RELEASED, VERSION) => read_released(known(&mut partition)?, part.bytes)?,
            (REMOVED, VERSION) => {
                let partition = known(&mut partition)?;
                let removed: Vec<TrackerKey> = read_plain(part.bytes)?;
                removed.into_iter().for_each(|key| partition.trackers.remove_restored(key));
            }
            (TRACKER, VERSION) => {
                let tracker = Tracker::read_fields(part.bytes, reading)?;
                known(&mut partition)?.take_restored(tracker);
            }
            (END, VERSION) => {
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
    partition.released.extend(read_plain::<Vec<(ReleasedKey, Released)>>(bytes)?);
    Ok(())
}

/// The number of trackers, so that a cut between two parts is seen.
fn end(partition: Partition, bytes: &[u8], rest: &[u8]) -> Result<Partition, SnapshotError> {
    let is_whole = rest.is_empty() && read_plain::<u64>(bytes)? == partition.trackers.len() as u64;
    if is_whole { Ok(partition) } else { Err(SnapshotError::Decode) }
}

/// Of the frame around the parts of a base. What is in them has versions of its own: a change there does not change this.
pub const SNAPSHOT_FORMAT: u16 = 4;
/// Of what changed since a base.
pub const CHANGES_FORMAT: u16 = 5;
const FORMAT_WITHOUT_FIELDS: u16 = 3;
