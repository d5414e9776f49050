//! Folding again what was told before by a build whose numbers mean nothing here: another fold version, or a state that
//! could not be read. Such a fold begins new epochs, and says nothing that the log shows was said already.
//!
//! What was told is known from the log itself: for every partition of the updates, the record up to which all updates of
//! this source stand there. Records above it are told as always, under the new epochs, so that what a crash left untold
//! is not lost. At our own claim each live delivery and driver that was not told of yet gets one keyframe.
//!
//! It is part of the state: whoever takes over in the middle says the same under the same numbers.

use protocol::{Offset, Time, TrackerKey, partition_of};
use wincode::{SchemaRead, SchemaWrite};

/// How far what one partition of the records brought forth is in the log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Told {
    /// For each partition of the updates: the first record that was not told there.
    pub updates: Vec<Offset>,
    /// Breadcrumbs of the records before it stand in the trail.
    pub trail: Offset,
    /// The fold's time at the last that was told.
    pub at: Time,
}

impl Told {
    /// Nothing was ever told of this partition.
    pub fn is_nothing(&self) -> bool {
        self.updates.iter().all(|next| next.0 == 0)
    }
}

#[derive(Clone, PartialEq, Debug, SchemaWrite, SchemaRead)]
pub(super) struct Refold {
    /// Our claim: from here on all is news.
    pub until: Offset,
    updates: Vec<Offset>,
}

impl Refold {
    pub fn new(until: Offset, told: &Told) -> Refold {
        Refold { until, updates: told.updates.clone() }
    }

    /// Whether what a record says of this delivery or driver was said before.
    pub fn is_told(&self, key: TrackerKey, record: Offset) -> bool {
        let partition = partition_of(&key.key_bytes(), self.updates.len().max(1) as u32);
        self.updates.get(partition.0 as usize).is_some_and(|next| record < *next)
    }
}
