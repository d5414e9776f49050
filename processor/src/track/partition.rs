//! The fold of one partition: every record in its order, handed to the tracker it is for. The same entries produce the
//! same bytes on every machine.
//!
//! **Invariant:** a record that cannot be folded is set aside: its tracker goes on as it was before, no other notices, and
//! the fold goes on. That costs a copy of the tracker before each record. What lies on roads it begins again, because it
//! may be that state, and not the record, that cannot be folded; and a fix is recorded.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use maps::matcher::Scratch;
use protocol::record::{BlobHash, BodyKind, OwnerId, Vehicle};
use protocol::update::{Generation, Source};
use protocol::{
    AssignmentNumber, Breadcrumb, DeliveryKey, FixRecord, Offset, PartitionId, Record, RecordBatch, Time, TrackerKey,
};

use super::bodies_in_use::{BodiesInUse, RegionInUse};
use super::clock::{FoldClock, STEP_MS};
use super::effects::{Effects, Step};
use super::fields::{One, Plain, Required, fields};
use super::refold::{Refold, Told};
use super::released::ReleasedDeliveries;
use super::roads::{Bodies, Roads, Traffic};
use super::tracker::{SaidOfDriver, Tracker};
use super::trackers::Trackers;
use super::undo::{Before, Changes};

/// The state that the records of one partition have produced.
pub struct Partition {
    pub(super) state: State,
    pub(super) released: ReleasedDeliveries,
    pub(super) trackers: Trackers,
    roads: Roads,
    /// Trackers that may have an update at the end of the entry, with the record that touched them last.
    touched: Vec<(TrackerKey, u32)>,
    scratch: Scratch,
    moves_left: u32,
    /// It was taken up from a state whose numbers mean nothing here.
    pub(super) is_anew: bool,
    /// Steps that a test wants to panic.
    #[cfg(test)]
    pub(super) breaks_at: Option<Vec<(Offset, u32, TrackerKey, Changes)>>,
    /// Whether every step of a tracker that has a matcher is to panic.
    #[cfg(test)]
    pub(super) breaks_matchers: bool,
    /// The slow obvious way that the wheel is tested against.
    #[cfg(test)]
    pub(super) visits_all: bool,
}

/// What does not belong to one tracker.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct State {
    pub partition: PartitionId,
    /// The entry to fold next.
    pub next: Offset,
    pub clock: FoldClock,
    pub bodies: BodiesInUse,
    /// Not used any more: it keeps its place in snapshots.
    pub released_checked: Time,
    /// Runs of late fixes under way.
    pub late_runs: u32,
    /// What another build has emitted is folded again.
    pub refold: Option<Refold>,
    /// Journal entries from before then were emitted by somebody.
    pub told_at: Time,
    /// Breadcrumbs of earlier records stand in the trail.
    pub trail_from: Offset,
    /// Registry and ledger are still to be asked what is true: the log does not hold it all.
    pub facts_due: bool,
    /// The clock was set by so much since the newest live speeds came into use: they say when they were made.
    pub live_speeds_set_by_ms: i64,
}

fields! {
    State {
        1 partition: Required<Plain>,
        2 next: Required<Plain>,
        3 clock: One,
        4 bodies: Plain,
        5 released_checked: Plain = Time::default(),
        6 late_runs: Plain,
    } since {
        7 refold: Plain = None,
        8 told_at: Plain = Time::default(),
        9 trail_from: Plain = Offset::default(),
        10 facts_due: Plain = false,
        11 live_speeds_set_by_ms: Plain = 0,
    }
}

impl Partition {
    /// A partition before its first record. Its epochs begin under `floor` at least.
    pub fn new(partition: PartitionId, next: Offset, floor: Generation) -> Partition {
        let mut clock = FoldClock::default();
        clock.raise_floor(floor);
        let state = State {
            partition,
            next,
            clock,
            bodies: BodiesInUse::default(),
            released_checked: Time::default(),
            late_runs: 0,
            refold: None,
            told_at: Time::default(),
            trail_from: Offset::default(),
            facts_due: false,
            live_speeds_set_by_ms: 0,
        };
        Partition::of(state)
    }

    pub(super) fn of(state: State) -> Partition {
        Partition {
            state,
            released: ReleasedDeliveries::default(),
            trackers: Trackers::default(),
            roads: Roads::default(),
            touched: Vec::new(),
            scratch: Scratch::new(),
            moves_left: 0,
            is_anew: false,
            #[cfg(test)]
            breaks_at: None,
            #[cfg(test)]
            breaks_matchers: false,
            #[cfg(test)]
            visits_all: false,
        }
    }

    /// The entry to fold next.
    pub fn next(&self) -> Offset {
        self.state.next
    }

    pub fn clock(&self) -> &FoldClock {
        &self.state.clock
    }

    pub fn trackers_len(&self) -> usize {
        self.trackers.len()
    }

    /// How many of the trackers sleep.
    pub fn dormant_len(&self) -> usize {
        self.trackers.dormant_len()
    }

    /// The body of this kind that was offered last and is not in use yet.
    pub(crate) fn offered(&self, kind: BodyKind) -> Option<BlobHash> {
        self.state.bodies.offered(kind)
    }

    /// The maps in use and their tables, the newest last.
    pub(crate) fn regions(&self) -> &[RegionInUse] {
        self.state.bodies.regions()
    }

    /// The same, opened.
    pub(crate) fn traffic(&self) -> Vec<Arc<Traffic>> {
        self.roads.regions.iter().map(|region| region.traffic.clone()).collect()
    }

    /// All bodies without which the fold could not go on.
    pub(crate) fn bodies(&self) -> Vec<BlobHash> {
        self.state.bodies.bodies()
    }

    /// The vehicles of its drivers.
    pub(crate) fn vehicles(&self) -> BTreeSet<Vehicle> {
        self.trackers.vehicles()
    }

    /// Opens what is in use, after a restore.
    pub(crate) fn open_bodies(&mut self, bodies: &dyn Bodies) {
        self.roads = self.state.bodies.open(bodies);
        self.trackers.reschedule(&self.state.clock, &self.roads);
    }

    /// Entries before this one are gone from the log: they cannot be folded any more.
    pub(crate) fn skip_to(&mut self, next: Offset) {
        self.state.next = self.state.next.max(next);
    }

    /// Goes on under new epochs of our own, and says nothing that was emitted before.
    pub(crate) fn begin_silently(&mut self, own: Generation, told: &Told) {
        self.begin_epochs(own);
        self.state.refold = (!told.is_nothing()).then(|| Refold::new(own.claim, told));
        self.state.told_at = told.at;
        self.state.trail_from = told.trail;
    }

    /// Whether it was taken up from a state whose numbers mean nothing here: another fold version's, or one that a newer
    /// build wrote and that was not understood whole.
    pub(crate) fn is_anew(&self) -> bool {
        self.is_anew
    }

    /// Whether registry and ledger are to be asked what is true.
    pub(crate) fn needs_facts(&self) -> bool {
        self.state.facts_due
    }

    /// The log does not hold all that was ever said: what is missing, registry and ledger know.
    pub(crate) fn set_facts_due(&mut self, is_due: bool) {
        self.state.facts_due = is_due;
    }

    /// A driver as his tracker sees him.
    #[cfg(test)]
    pub(crate) fn driver_view(&self, key: protocol::DriverKey) -> Option<protocol::update::DriverView> {
        self.trackers.view(key)
    }

    /// The deliveries of its trackers, with the assignment under which they have them.
    pub(crate) fn assignments(&self) -> Vec<(TrackerKey, DeliveryKey, AssignmentNumber)> {
        let of_tracker =
            |tracker: &Tracker| tracker.assignments().map(|(d, a)| (tracker.key(), d, a)).collect::<Vec<_>>();
        self.trackers.live().flat_map(of_tracker).collect()
    }

    /// What its trackers know by the registry's word: leads, and vehicles other than the default.
    pub(crate) fn said_of_drivers(&self) -> Vec<SaidOfDriver> {
        self.trackers.said_of_drivers()
    }

    /// Passes an entry by that could not be read.
    pub(crate) fn skip_entry(&mut self, offset: Offset) {
        self.state.next = Offset(offset.0 + 1);
    }

    /// Folds one entry of the log. An entry below `next` was folded before and is passed by.
    pub fn handle_entry(&mut self, offset: Offset, batch: &RecordBatch, bodies: &dyn Bodies, effects: &mut Effects) {
        if offset < self.state.next {
            return;
        }
        let crumbs_before = effects.breadcrumbs.len();
        effects.begin_entry();
        effects.counts.records += batch.records.len() as u64;
        for (index, record) in batch.records.iter().enumerate() {
            self.handle_record(offset, index as u32, record, bodies, effects);
        }
        if self.state.refold.as_ref().is_some_and(|refold| offset >= refold.until) {
            self.end_refold(effects);
        }
        self.flush(offset, effects);
        self.state.next = Offset(offset.0 + 1);
        effects.drop_told_breadcrumbs(crumbs_before, self.state.trail_from);
    }

    fn handle_record(
        &mut self,
        offset: Offset,
        index: u32,
        record: &Record,
        bodies: &dyn Bodies,
        effects: &mut Effects,
    ) {
        if let Some(key) = record.key() {
            if matches!(record, Record::LeadEnded { .. }) && self.trackers.find(key).is_none() {
                return; // nothing is known of the driver, so there is nothing to take back
            }
            let by_fix = if let Record::Fix(fix) = record { Some(Changes::ByFix(fix.device.device)) } else { None };
            let changes = by_fix.unwrap_or(Changes::All);
            let is_folded = self.with_tracker((key, changes), offset, index, effects, |tracker, released, step| {
                handle_keyed(tracker, released, record, step);
            });
            if let (false, Record::Fix(fix)) = (is_folded, record) {
                self.record_unfolded(fix, offset, index, effects);
            }
            return;
        }
        match record {
            Record::Claim { owner, at, incarnation } => {
                let generation = Generation { incarnation: *incarnation, claim: offset };
                self.handle_claim((*owner, *at, generation), offset, index, effects);
            }
            Record::WallOffset { owner, boot, offset_ms } => {
                if let Some(by_ms) = self.state.clock.handle_wall_offset(*owner, *boot, *offset_ms) {
                    self.handle_clock_set(by_ms, offset, index, effects);
                }
            }
            Record::Tick { owner, at } => {
                let before = self.state.clock.now();
                let is_first = self.state.clock.handle_first_tick(*owner, *at);
                if is_first {
                    self.handle_new_time(before, offset, index, effects);
                }
                if self.state.clock.handle_tick(*owner, *at) || is_first {
                    self.handle_tick(offset, index, bodies, effects);
                } else {
                    effects.counts.ticks_ignored += 1;
                }
            }
            Record::Mark { edge, received_before } => self.state.clock.handle_mark(*edge, *received_before),
            Record::Offered { kind, hash, .. } => self.state.bodies.offer(*kind, *hash),
            Record::InUse { kind, hash } => {
                self.state.bodies.take(&mut self.roads, *kind, *hash, bodies);
                if *kind == BodyKind::LiveSpeeds {
                    self.state.live_speeds_set_by_ms = 0;
                }
                if *kind == BodyKind::Map {
                    self.trackers.handle_maps_changed(&self.roads);
                }
            }
            Record::Fix(_)
            | Record::Heard(_)
            | Record::Lead { .. }
            | Record::LeadEnded { .. }
            | Record::Assign { .. }
            | Record::Release { .. }
            | Record::Ledger { .. }
            | Record::Fences { .. }
            | Record::Score { .. }
            | Record::Planned { .. }
            | Record::Vehicle { .. } => {}
        }
    }

    fn handle_claim(
        &mut self,
        (owner, at, generation): (OwnerId, Time, Generation),
        offset: Offset,
        index: u32,
        effects: &mut Effects,
    ) {
        if let Some(by_ms) = self.state.clock.handle_new_owner(owner) {
            self.handle_clock_set(by_ms, offset, index, effects);
        }
        let before = self.state.clock.now();
        self.state.clock.handle_claim(owner, at, generation);
        self.handle_new_time(before, offset, index, effects);
        self.trackers.handle_claim(self.state.clock.now());
    }

    /// Time goes by another clock from here on, which may be behind.
    fn handle_new_time(&mut self, before: Time, offset: Offset, index: u32, effects: &mut Effects) {
        let back_ms = before.millis_since(self.state.clock.now());
        if back_ms > STEP_MS {
            // Another machine's clock, or it is not known how far it was set: nothing lies in the future from here on.
            self.trackers.wake_all();
            self.handle_clock_set(0, offset, index, effects);
        }
        if back_ms > 0 {
            self.trackers.schedule_all();
        }
    }

    /// The owner's clock was set: all times are moved, and whoever is live is told of by the new ones.
    fn handle_clock_set(&mut self, by_ms: i64, offset: Offset, index: u32, effects: &mut Effects) {
        let set = self.state.clock.handle_clock_set(by_ms);
        set.due(&mut self.state.told_at);
        self.state.live_speeds_set_by_ms = self.state.live_speeds_set_by_ms.saturating_add(by_ms);
        self.released.handle_clock_set(set);
        self.trackers.handle_clock_set(set);
        for key in self.trackers.live_keys() {
            self.with_tracker((key, Changes::All), offset, index, effects, |tracker, _, step| {
                tracker.handle_clock_set(set, step);
            });
        }
        effects.counts.clock_steps += 1;
    }

    fn handle_tick(&mut self, offset: Offset, index: u32, bodies: &dyn Bodies, effects: &mut Effects) {
        let now = self.state.clock.now();
        let by_table = Time(now.0.saturating_sub(self.state.live_speeds_set_by_ms));
        self.state.bodies.end_live(&mut self.roads, by_table, bodies);
        self.moves_left = MOVES_PER_TICK;
        #[cfg(test)]
        if self.visits_all {
            self.trackers.schedule_all();
        }
        for key in self.trackers.take_due(&self.state.clock, MOVES_PER_TICK) {
            self.with_tracker((key, Changes::All), offset, index, effects, |tracker, _, step| {
                tracker.handle_tick(step)
            });
        }
        self.moves_left = 0;
        if self.state.bodies.has_retired() {
            let trackers = &self.trackers;
            self.state.bodies.close_retired(&mut self.roads, |number| trackers.stand_on(number));
        }
        self.released.forget_old(now);
    }

    /// Runs a step of the fold on a tracker. If it panics, the tracker goes on as it was before and says so: false.
    fn with_tracker(
        &mut self,
        (key, changes): (TrackerKey, Changes),
        offset: Offset,
        index: u32,
        effects: &mut Effects,
        what: impl FnOnce(&mut Tracker, &mut ReleasedDeliveries, &mut Step<'_>),
    ) -> bool {
        let State { partition, clock, late_runs, refold, told_at, .. } = &mut self.state;
        let (partition, clock, refold, told_at) = (*partition, &*clock, refold.as_ref(), *told_at);
        let tracker = self.trackers.find_or_make(key, clock.now());
        let before = (Before::of(tracker, changes), *late_runs);
        let emitted = effects.mark();
        self.released.begin_step();
        let mut step = Step {
            partition,
            offset,
            index,
            clock,
            key,
            roads: &self.roads,
            scratch: &mut self.scratch,
            moves_left: &mut self.moves_left,
            late_runs: &mut *late_runs,
            refold,
            told_at,
            effects: &mut *effects,
        };
        #[cfg(test)]
        let breaks = self.breaks_at.as_ref().is_some_and(|breaks| breaks.contains(&(offset, index, key, changes)))
            || (self.breaks_matchers && changes != Changes::Numbering && tracker.has_matcher());
        let folded = catch_unwind(AssertUnwindSafe(|| {
            what(tracker, &mut self.released, &mut step);
            #[cfg(test)]
            assert!(!breaks, "a test broke the fold here");
        }));
        if folded.is_err() {
            step.effects.undo(emitted);
            step.effects.counts.folds_failed += 1;
            *step.scratch = Scratch::new();
            *step.late_runs = before.1;
            before.0.restore(tracker);
            tracker.handle_fold_failed(step.record_source());
            tracker.begin_on_roads_again(&mut step);
            self.released.undo_step();
        }
        self.touched.push((key, index));
        folded.is_ok()
    }

    /// A fix that could not be folded was acknowledged all the same: history has it, without a position on the road.
    fn record_unfolded(&mut self, fix: &FixRecord, offset: Offset, index: u32, effects: &mut Effects) {
        let tracker = self.trackers.find(TrackerKey::Driver(fix.device.driver_key()));
        let delivery = tracker.and_then(|tracker| tracker.delivery_under_way());
        let source = Source { partition: self.state.partition, offset, index, ordinal: 0 };
        effects.counts.judged(fix.verdict);
        effects.breadcrumbs.push(Breadcrumb { record: *fix, verdict: fix.verdict, snapped: None, delivery, source });
    }

    /// From here on all is news. Trackers that are live and have said nothing under their new epoch yet emit a keyframe;
    /// nobody waits for what the others would say.
    fn end_refold(&mut self, effects: &mut Effects) {
        self.state.refold = None;
        let now = self.state.clock.now();
        let Partition { trackers, touched, .. } = self;
        trackers.for_each_mut(now, |tracker| {
            if tracker.is_live(now) {
                touched.push((tracker.key(), 0));
                effects.counts.keyframes_after_refold += 1;
            } else {
                tracker.forget_news();
            }
        });
    }

    /// At the end of an entry each tracker that was touched says what is new.
    fn flush(&mut self, offset: Offset, effects: &mut Effects) {
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable_by_key(|(key, index)| (*key, std::cmp::Reverse(*index)));
        touched.dedup_by_key(|(key, _)| *key);
        for (key, index) in touched.drain(..) {
            self.flush_tracker(key, offset, index, effects);
            self.trackers.settle(key, &self.state.clock, &self.roads);
        }
        self.touched.clear();
    }

    /// If what is new cannot be said, only the failure is; and if not even that, nothing.
    fn flush_tracker(&mut self, key: TrackerKey, offset: Offset, index: u32, effects: &mut Effects) {
        let now = self.state.clock.now();
        for _ in 0..FLUSHES_MAX {
            let is_flushed =
                self.with_tracker((key, Changes::Numbering), offset, index, effects, |tracker, released, step| {
                    for finished in tracker.flush(step) {
                        released.remember(key, &finished, now);
                    }
                });
            if is_flushed {
                return;
            }
            let source = Source { partition: self.state.partition, offset, index, ordinal: 0 };
            if let Some(tracker) = self.trackers.find(key) {
                tracker.drop_pending();
                tracker.handle_fold_failed(source);
            }
        }
        if let Some(tracker) = self.trackers.find(key) {
            tracker.drop_pending();
        }
    }
}

fn handle_keyed(tracker: &mut Tracker, released: &mut ReleasedDeliveries, record: &Record, step: &mut Step<'_>) {
    match record {
        Record::Fix(fix) => tracker.handle_fix(fix, step),
        Record::Heard(heard) => tracker.handle_heard(heard, step),
        Record::Lead { device, at } => tracker.handle_lead(*device, *at),
        Record::LeadEnded { device, at } => tracker.handle_lead_ended(*device, *at),
        Record::Fences { fences, .. } => tracker.handle_fences(fences),
        Record::Assign { delivery, .. } => released.assign(tracker, delivery, step),
        Record::Release { delivery, assignment, .. } => released.release(tracker, *delivery, *assignment, step),
        Record::Ledger { delivery, entry, .. } => {
            let is_news = tracker.delivery_mut(*delivery).is_some_and(|tracked| tracked.handle_entry(entry.clone()));
            if is_news {
                tracker.recompute(step);
            } else {
                step.effects.counts.ledger_repeated += 1;
            }
        }
        Record::Vehicle { vehicle, .. } => tracker.handle_vehicle(*vehicle, step),
        Record::Planned { delivery, epoch, stop, made, way, .. } => {
            let tracked = tracker.delivery_mut(*delivery);
            if tracked.is_some_and(|tracked| tracked.handle_planned(*epoch, *stop, *made, way)) {
                tracker.recompute(step);
            } else {
                step.effects.counts.planned_late += 1;
            }
        }
        Record::Score { .. }
        | Record::Offered { .. }
        | Record::InUse { .. }
        | Record::Mark { .. }
        | Record::Tick { .. }
        | Record::Claim { .. }
        | Record::WallOffset { .. } => {}
    }
}

/// What is new is tried to be said twice: all of it, then the failure alone.
const FLUSHES_MAX: usize = 2;
/// Silent drivers that move to another map with one tick: 100 µs each.
const MOVES_PER_TICK: u32 = 64;
