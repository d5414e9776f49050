//! What folding records produces: updates, breadcrumbs, requests for routes, and counts for the metrics. None of it
//! changes what is folded afterwards.

use std::collections::BTreeSet;

use protocol::record::Vehicle;
use protocol::update::{Epoch, Source};
use protocol::{
    Breadcrumb, DeliveryKey, FixRecord, Offset, PartitionId, Position, RejectReason, Time, TrackerKey, Update, Verdict,
};

use maps::matcher::Scratch;

use super::clock::FoldClock;
use super::refold::Refold;
use super::roads::Roads;

#[derive(Debug, Default)]
pub struct Effects {
    pub updates: Vec<Update>,
    pub breadcrumbs: Vec<Breadcrumb>,
    /// Routes that an outside router may plan better. The fold does not depend on whether one does.
    pub routes_wanted: Vec<RouteWanted>,
    /// The vehicles that drivers were given: their routers can be made before they are needed.
    pub vehicles: BTreeSet<Vehicle>,
    pub counts: Counts,
    ordinal: u32,
}

/// A route that was planned here, or could not be. A `Record::Planned` with the same fields takes its place.
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
    /// Called before each entry. What is there already is the caller's and stays.
    pub(super) fn begin_entry(&mut self) {
        self.ordinal = 0;
    }

    /// Those of records before `from` stand in the trail already.
    pub(super) fn drop_told_breadcrumbs(&mut self, since: usize, from: Offset) {
        if from.0 > 0 && self.breadcrumbs[since..].iter().any(|crumb| crumb.source.offset < from) {
            let fresh = self.breadcrumbs.split_off(since);
            self.breadcrumbs.extend(fresh.into_iter().filter(|crumb| crumb.source.offset >= from));
        }
    }

    /// How much there is, to come back to if a step fails.
    pub(super) fn mark(&self) -> Mark {
        Mark {
            updates: self.updates.len(),
            breadcrumbs: self.breadcrumbs.len(),
            routes_wanted: self.routes_wanted.len(),
            counts: self.counts,
        }
    }

    pub(super) fn undo(&mut self, mark: Mark) {
        self.updates.truncate(mark.updates);
        self.breadcrumbs.truncate(mark.breadcrumbs);
        self.routes_wanted.truncate(mark.routes_wanted);
        self.counts = mark.counts;
    }
}

/// What there was before a step.
pub(super) struct Mark {
    updates: usize,
    breadcrumbs: usize,
    routes_wanted: usize,
    counts: Counts,
}

/// How often each thing happened.
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
    /// Ticks of an owner other than the latest claim's.
    pub ticks_ignored: u64,
    /// Ledger events and assignments that were taken before, or are not for this tracker any more.
    pub ledger_repeated: u64,
    /// Routes from an outside router for plans that have been replaced.
    pub planned_late: u64,
    /// Assignments beyond what one tracker holds.
    pub assignments_refused: u64,
    pub folds_failed: u64,
    /// Trackers that emitted keyframes once all that was emitted before was folded again.
    pub keyframes_after_refold: u64,
    /// The owner's clock was set, or another owner's is behind.
    pub clock_steps: u64,
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
pub(crate) struct Step<'a> {
    pub partition: PartitionId,
    pub offset: Offset,
    pub index: u32,
    pub clock: &'a FoldClock,
    /// The tracker's key.
    pub key: TrackerKey,
    pub roads: &'a Roads,
    pub scratch: &'a mut Scratch,
    /// How many silent drivers may still move to another map with this record.
    pub moves_left: &'a mut u32,
    /// Runs of late fixes under way in the partition.
    pub late_runs: &'a mut u32,
    /// What was emitted before is folded again.
    pub refold: Option<&'a Refold>,
    /// Journal entries from before then were emitted by somebody.
    pub told_at: Time,
    pub effects: &'a mut Effects,
}

impl Step<'_> {
    /// Where the record lies in the log.
    pub(crate) fn record_source(&self) -> Source {
        Source { partition: self.partition, offset: self.offset, index: self.index, ordinal: 0 }
    }

    /// Whether what this record says of a delivery or driver was emitted before.
    pub(crate) fn is_told(&self, key: impl Into<TrackerKey>) -> bool {
        self.refold.is_some_and(|refold| refold.is_told(key.into(), self.offset))
    }

    /// The source of an update, unique in the log.
    pub(crate) fn next_source(&mut self) -> Source {
        self.effects.ordinal += 1;
        Source { ordinal: self.effects.ordinal, ..self.record_source() }
    }

    pub(crate) fn emit(&mut self, update: Update) {
        self.effects.updates.push(update);
    }

    pub(crate) fn record(&mut self, record: FixRecord, verdict: Verdict, delivery: Option<protocol::DeliveryId>) {
        self.effects.counts.judged(verdict);
        let source = self.record_source();
        self.effects.breadcrumbs.push(Breadcrumb { record, verdict, snapped: None, delivery, source });
    }
}
