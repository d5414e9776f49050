//! What folding records brings forth: updates, breadcrumbs, wishes, and counts for the metrics. Nothing here feeds back.

use std::collections::BTreeSet;

use protocol::record::Vehicle;
use protocol::update::{Epoch, Source};
use protocol::{
    Breadcrumb, DeliveryKey, FixRecord, Offset, PartitionId, Position, RejectReason, Time, TrackerKey, Update, Verdict,
};

use maps::matcher::Scratch;

use super::clock::FoldClock;
use super::roads::Roads;

#[derive(Debug, Default)]
pub struct Effects {
    pub updates: Vec<Update>,
    pub breadcrumbs: Vec<Breadcrumb>,
    /// Ways that somebody else may plan better. Whether anybody does is no matter of the fold.
    pub routes_wanted: Vec<RouteWanted>,
    /// What drivers were said to travel by: somebody may make their routers before they are needed.
    pub vehicles: BTreeSet<Vehicle>,
    pub counts: Counts,
    ordinal: u32,
}

/// A way that was planned here, or could not be: `Record::Planned` with the same words takes its place.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct RouteWanted {
    pub to: TrackerKey,
    pub delivery: DeliveryKey,
    pub epoch: Epoch,
    pub stop: u8,
    pub made: Time,
    pub from: Position,
    pub destination: Position,
    pub vehicle: Vehicle,
}

impl Effects {
    /// Before each entry: what is there is the caller's and stays.
    pub(super) fn begin_entry(&mut self) {
        self.ordinal = 0;
    }
}

/// How often what happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    pub records: u64,
    pub fixes_accepted: u64,
    pub fixes_rejected: [u64; RejectReason::ALL.len()],
    /// Seen before: neither shown nor recorded again.
    pub fixes_repeated: u64,
    /// Recorded, not shown: of another device than the one that leads.
    pub fixes_aside: u64,
    /// Recorded, not shown: measured before what is shown, or settled.
    pub fixes_late: u64,
    /// Ticks of an owner that does not reign.
    pub ticks_ignored: u64,
    /// Ledger events and assignments that were taken before, or are not for this tracker any more.
    pub ledger_repeated: u64,
    /// Ways from outside for plans that are no more.
    pub planned_late: u64,
    /// Assignments beyond what one tracker holds.
    pub assignments_refused: u64,
    pub folds_failed: u64,
}

impl Counts {
    pub(super) fn judged(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Accepted => self.fixes_accepted += 1,
            Verdict::Rejected(reason) => {
                let at = RejectReason::ALL.iter().position(|r| *r == reason).expect("the list holds all reasons");
                self.fixes_rejected[at] += 1;
            }
        }
    }
}

/// Where the fold is, and what it may use, while one record is folded.
pub struct Step<'a> {
    pub partition: PartitionId,
    pub offset: Offset,
    pub index: u32,
    pub clock: &'a FoldClock,
    /// Whose tracker it is.
    pub key: TrackerKey,
    pub roads: &'a Roads,
    pub scratch: &'a mut Scratch,
    /// How many silent drivers may still move to another map with this record.
    pub moves_left: &'a mut u32,
    /// Runs of late fixes under way in the partition.
    pub late_runs: &'a mut u32,
    pub effects: &'a mut Effects,
}

impl Step<'_> {
    /// The place of the record itself.
    pub fn place(&self) -> Source {
        Source { partition: self.partition, offset: self.offset, index: self.index, ordinal: 0 }
    }

    /// The place of an update, no two alike.
    pub fn next_source(&mut self) -> Source {
        self.effects.ordinal += 1;
        Source { ordinal: self.effects.ordinal, ..self.place() }
    }

    pub fn emit(&mut self, update: Update) {
        self.effects.updates.push(update);
    }

    pub fn record(&mut self, record: FixRecord, verdict: Verdict, delivery: Option<protocol::DeliveryId>) {
        self.effects.counts.judged(verdict);
        let source = self.place();
        self.effects.breadcrumbs.push(Breadcrumb { record, verdict, snapped: None, delivery, source });
    }
}
