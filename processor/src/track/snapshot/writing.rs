//! Writing a snapshot: at once, or from copies that the fold hands over a few at a time (`gathering.rs`), so that they
//! are encoded on another thread.

use protocol::TrackerKey;
use protocol::record::BlobHash;

use super::parts::{
    BASE, END, FORGOTTEN, Header, RELEASED, REMOVED, ReleasedKey, STATE, TRACKER, VERSION, write_list, write_part,
    write_plain,
};
use super::{CHANGES_FORMAT, SNAPSHOT_FORMAT, SnapshotError};
use crate::track::fields::Fields;
use crate::track::gathering::{Copied, TrackerCopy};
use crate::track::partition::{Partition, State};
use crate::track::released::Released;
use crate::track::tracker::Tracker;

/// What of a snapshot does not belong to one tracker, as it was at the snapshot's offset.
pub struct SnapshotHead {
    state: State,
    /// None: the snapshot is a base itself.
    base: Option<BlobHash>,
    released: Vec<(ReleasedKey, Released)>,
    forgotten: Vec<ReleasedKey>,
    removed: Vec<TrackerKey>,
    trackers: usize,
}

impl Partition {
    /// The whole state, at once.
    pub fn snapshot(&self) -> Result<Vec<u8>, SnapshotError> {
        let mut encoder = SnapshotEncoder::begin(self.head_of_base())?;
        self.trackers.try_for_each(|tracker| encoder.add_tracker(tracker))?;
        encoder.end()
    }

    /// Begins a snapshot of the state as it is here: a base, or what has changed since the newest base, which lies under
    /// this hash. `gather` hands out its trackers. One that was begun before is given up.
    pub fn begin_snapshot(&mut self, base: Option<BlobHash>) -> SnapshotHead {
        let head = match base {
            None => {
                self.released.forget_changes();
                self.head_of_base()
            }
            Some(_) => {
                let (released, forgotten) = self.released.changed();
                let removed = self.trackers.gathering().removed().to_vec();
                let trackers = self.trackers.len();
                SnapshotHead { state: self.state.clone(), base, released, forgotten, removed, trackers }
            }
        };
        self.trackers.begin_gathering(base.is_none());
        head
    }

    /// Gives up the snapshot that is under way.
    pub fn abandon_snapshot(&mut self) {
        self.trackers.gathering().abandon();
    }

    /// Copies of so many trackers as `work` allows (passing one by is 1), and whether they are the snapshot's last.
    pub fn gather(&mut self, work: usize) -> (Vec<TrackerCopy>, bool) {
        self.trackers.gather(work)
    }

    /// The number of the newest base that was begun.
    pub fn base_number(&self) -> u32 {
        self.trackers.base_number()
    }

    /// Whether so much has changed since the newest base that another one is better.
    pub fn is_base_worn(&self) -> bool {
        let is_worn = |changed: usize, all: usize| changed > all / 2 + CHANGED_MIN;
        is_worn(self.trackers.changed_len(), self.trackers.len())
            || is_worn(self.released.changed_len(), self.released.len())
    }

    fn head_of_base(&self) -> SnapshotHead {
        SnapshotHead {
            state: self.state.clone(),
            base: None,
            released: self.released.iter().collect(),
            forgotten: Vec::new(),
            removed: Vec::new(),
            trackers: self.trackers.len(),
        }
    }

    /// As the next release may write it: with a part and with fields that this build does not know and may leave out.
    #[cfg(test)]
    pub(crate) fn snapshot_of_next_release(&self) -> Result<Vec<u8>, SnapshotError> {
        let with_more = |to: &mut Vec<u8>, write: &dyn Fn(&mut Vec<u8>) -> Result<(), SnapshotError>| {
            write(to)?;
            to.extend_from_slice(&[201, 1, 3, 9, 9, 9]); // tag, version, length, bytes
            Ok(())
        };
        let mut bytes = Vec::new();
        Header::of(SNAPSHOT_FORMAT).write(&mut bytes);
        write_part(&mut bytes, STATE, VERSION, |to| with_more(to, &|to| self.state.write_fields(to)))?;
        bytes.extend_from_slice(&[77, 1, 4, 0, 0, 0, 1, 2, 3, 4]); // kind, version, length, bytes
        let released: Vec<_> = self.released.iter().collect();
        write_list(&mut bytes, RELEASED, VERSION, &released)?;
        self.trackers.try_for_each(|tracker| {
            write_part(&mut bytes, TRACKER, VERSION, |to| with_more(to, &|to| tracker.write_fields(to)))
        })?;
        write_part(&mut bytes, END, VERSION, |to| write_plain(&(self.trackers.len() as u64), to))?;
        Ok(bytes)
    }
}

/// Writes one snapshot.
pub struct SnapshotEncoder {
    bytes: Vec<u8>,
    trackers: usize,
}

impl SnapshotEncoder {
    pub fn begin(head: SnapshotHead) -> Result<SnapshotEncoder, SnapshotError> {
        let SnapshotHead { state, base, released, forgotten, removed, trackers } = head;
        let mut bytes = Vec::new();
        Header::of(if base.is_some() { CHANGES_FORMAT } else { SNAPSHOT_FORMAT }).write(&mut bytes);
        if let Some(base) = base {
            write_part(&mut bytes, BASE, VERSION, |to| write_plain(&base, to))?;
        }
        write_part(&mut bytes, STATE, VERSION, |to| state.write_fields(to))?;
        write_list(&mut bytes, FORGOTTEN, VERSION, &forgotten)?;
        write_list(&mut bytes, RELEASED, VERSION, &released)?;
        write_list(&mut bytes, REMOVED, VERSION, &removed)?;
        Ok(SnapshotEncoder { bytes, trackers })
    }

    pub fn add(&mut self, copy: &TrackerCopy) -> Result<(), SnapshotError> {
        match &copy.0 {
            Copied::Live(tracker) => self.add_tracker(tracker),
            Copied::Dormant(key, dormant) => self.add_tracker(&dormant.unpack(*key)),
        }
    }

    fn add_tracker(&mut self, tracker: &Tracker) -> Result<(), SnapshotError> {
        write_part(&mut self.bytes, TRACKER, VERSION, |to| tracker.write_fields(to))
    }

    pub fn end(mut self) -> Result<Vec<u8>, SnapshotError> {
        write_part(&mut self.bytes, END, VERSION, |to| write_plain(&(self.trackers as u64), to))?;
        Ok(self.bytes)
    }
}

/// Below this, what changed is small whatever the base is.
const CHANGED_MIN: usize = 1_000;
