//! The fold of one partition: every record in its order, handed to the tracker it is for. The same entries produce the
//! same bytes on every machine.
//!
//! **Invariant:** a record that cannot be folded empties its tracker and no other, and the fold goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use maps::matcher::Scratch;
use protocol::record::{BlobHash, BodyKind, Vehicle};
use protocol::update::{Epoch, Generation, Source};
use protocol::{
    AssignmentNumber, Delivery, DeliveryKey, JournalNumber, Offset, PartitionId, Record, RecordBatch, Time, TrackerKey,
};
use wincode::{SchemaRead, SchemaWrite};

use super::bodies_in_use::{BodiesInUse, RegionInUse};
use super::clock::FoldClock;
use super::delivery::TrackedDelivery;
use super::effects::{Effects, Step};
use super::fields::{One, Plain, Required, fields};
use super::refold::{Refold, Told};
use super::roads::{Bodies, Roads, Traffic};
use super::tracker::Tracker;

/// The state that the records of one partition have produced.
pub struct Partition {
    pub(super) state: State,
    pub(super) released: BTreeMap<(TrackerKey, DeliveryKey), Released>,
    pub(super) trackers: BTreeMap<TrackerKey, Tracker>,
    roads: Roads,
    /// Trackers that may have an update at the end of the entry, with the record that touched them last.
    touched: Vec<(TrackerKey, u32)>,
    scratch: Scratch,
    moves_left: u32,
    /// It was taken up from a state whose numbers mean nothing here.
    pub(super) is_anew: bool,
    #[cfg(test)]
    pub(super) breaks_at: Option<(Offset, u32)>,
}

/// What does not belong to one tracker.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct State {
    pub partition: PartitionId,
    /// The entry to fold next.
    pub next: Offset,
    pub clock: FoldClock,
    pub bodies: BodiesInUse,
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
    }
}

/// A delivery that a tracker has let go.
#[derive(Clone, Copy, PartialEq, Debug, SchemaWrite, SchemaRead)]
pub(super) struct Released {
    assignment: AssignmentNumber,
    last: JournalNumber,
    at: Time,
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
        };
        Partition::of(state)
    }

    pub(super) fn of(state: State) -> Partition {
        Partition {
            state,
            released: BTreeMap::new(),
            trackers: BTreeMap::new(),
            roads: Roads::default(),
            touched: Vec::new(),
            scratch: Scratch::new(),
            moves_left: 0,
            is_anew: false,
            #[cfg(test)]
            breaks_at: None,
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
        self.trackers.values().map(Tracker::vehicle).collect()
    }

    /// Opens what is in use, after a restore.
    pub(crate) fn open_bodies(&mut self, bodies: &dyn Bodies) {
        self.roads = self.state.bodies.open(bodies);
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
        self.trackers.get(&TrackerKey::Driver(key)).map(|tracker| tracker.view(key))
    }

    /// The deliveries of its trackers, with the assignment under which they have them.
    pub(crate) fn assignments(&self) -> Vec<(TrackerKey, DeliveryKey, AssignmentNumber)> {
        let of_tracker = |(key, tracker): (&TrackerKey, &Tracker)| {
            let key = *key;
            tracker.assignments().map(move |(delivery, number)| (key, delivery, number)).collect::<Vec<_>>()
        };
        self.trackers.iter().flat_map(of_tracker).collect()
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
            return self.with_tracker(key, offset, index, effects, |tracker, ledgers, step| {
                handle_keyed(tracker, ledgers, record, step);
            });
        }
        match record {
            Record::Claim { owner, at, incarnation } => {
                let generation = Generation { incarnation: *incarnation, claim: offset };
                self.state.clock.handle_claim(*owner, *at, generation);
            }
            Record::Tick { owner, at } => {
                if self.state.clock.handle_tick(*owner, *at) {
                    self.handle_tick(offset, index, bodies, effects);
                } else {
                    effects.counts.ticks_ignored += 1;
                }
            }
            Record::Mark { edge, received_before } => self.state.clock.handle_mark(*edge, *received_before),
            Record::Offered { kind, hash, .. } => self.state.bodies.offer(*kind, *hash),
            Record::InUse { kind, hash } => self.state.bodies.take(&mut self.roads, *kind, *hash, bodies),
            Record::Fix(_)
            | Record::Heard(_)
            | Record::Lead { .. }
            | Record::Assign { .. }
            | Record::Release { .. }
            | Record::Ledger { .. }
            | Record::Fences { .. }
            | Record::Score { .. }
            | Record::Planned { .. }
            | Record::Vehicle { .. } => {}
        }
    }

    fn handle_tick(&mut self, offset: Offset, index: u32, bodies: &dyn Bodies, effects: &mut Effects) {
        let now = self.state.clock.now();
        self.state.bodies.end_live(&mut self.roads, now, bodies);
        let keys: Vec<TrackerKey> = self.trackers.keys().copied().collect();
        self.moves_left = MOVES_PER_TICK;
        for key in keys {
            self.with_tracker(key, offset, index, effects, |tracker, _, step| tracker.handle_tick(step));
        }
        self.moves_left = 0;
        if self.state.bodies.has_retired() {
            let trackers = &self.trackers;
            let is_needed = |number| trackers.values().any(|tracker| tracker.stands_on(number));
            self.state.bodies.close_retired(&mut self.roads, is_needed);
        }
        if now.millis_since(self.state.released_checked).abs() >= RELEASED_CHECK_MS {
            self.state.released_checked = now;
            self.released.retain(|_, released| now.millis_since(released.at) < RELEASED_MS);
            self.trackers.retain(|_, tracker| !tracker.is_over(now));
        }
    }

    /// Runs a step of the fold on a tracker; one that panics is emptied.
    fn with_tracker(
        &mut self,
        key: TrackerKey,
        offset: Offset,
        index: u32,
        effects: &mut Effects,
        what: impl FnOnce(&mut Tracker, &mut Ledgers<'_>, &mut Step<'_>),
    ) {
        let State { partition, clock, late_runs, refold, told_at, .. } = &mut self.state;
        let (partition, clock, refold, told_at) = (*partition, &*clock, refold.as_ref(), *told_at);
        let tracker = self.trackers.entry(key).or_insert_with(|| Tracker::new(key, clock.now()));
        let emitted = (effects.updates.len(), effects.breadcrumbs.len(), effects.routes_wanted.len());
        let mut ledgers = Ledgers { released: &mut self.released };
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
        let breaks = self.breaks_at.take_if(|at| *at == (offset, index)).is_some();
        let folded = catch_unwind(AssertUnwindSafe(|| {
            what(tracker, &mut ledgers, &mut step);
            #[cfg(test)]
            assert!(!breaks, "a test broke the fold here");
        }));
        if folded.is_err() {
            effects.updates.truncate(emitted.0);
            effects.breadcrumbs.truncate(emitted.1);
            effects.routes_wanted.truncate(emitted.2);
            effects.counts.folds_failed += 1;
            self.scratch = Scratch::new();
            let broken = std::mem::replace(tracker, Tracker::new(key, clock.now()));
            *tracker = broken.emptied(Source { partition, offset, index, ordinal: 0 }, clock.now());
            *late_runs = self.trackers.values().filter(|tracker| tracker.has_late_run()).count() as u32;
        }
        self.touched.push((key, index));
    }

    /// From here on all is news. Who is live and was not emitted under his new epoch yet gets a keyframe; for the others
    /// nobody asks.
    fn end_refold(&mut self, effects: &mut Effects) {
        self.state.refold = None;
        let now = self.state.clock.now();
        for (key, tracker) in &mut self.trackers {
            if tracker.is_live(now) {
                self.touched.push((*key, 0));
                effects.counts.keyframes_after_refold += 1;
            } else {
                tracker.forget_news();
            }
        }
    }

    fn flush(&mut self, offset: Offset, effects: &mut Effects) {
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_by_key(|(key, index)| (*key, std::cmp::Reverse(*index)));
        touched.dedup_by_key(|(key, _)| *key);
        let now = self.state.clock.now();
        for (key, index) in touched.drain(..) {
            self.with_tracker(key, offset, index, effects, |tracker, ledgers, step| {
                for finished in tracker.flush(step) {
                    ledgers.remember(key, &finished, now);
                }
            });
            let is_empty = |tracker: &Tracker| !tracker.has_deliveries();
            if matches!(key, TrackerKey::Delivery(_)) && self.trackers.get(&key).is_some_and(is_empty) {
                self.trackers.remove(&key);
            }
        }
        self.touched.clear();
    }
}

fn handle_keyed(tracker: &mut Tracker, ledgers: &mut Ledgers<'_>, record: &Record, step: &mut Step<'_>) {
    match record {
        Record::Fix(fix) => tracker.handle_fix(fix, step),
        Record::Heard(heard) => tracker.handle_heard(heard, step),
        Record::Lead { device, at } => tracker.handle_lead(*device, *at),
        Record::Fences { fences, .. } => tracker.handle_fences(fences),
        Record::Assign { delivery, .. } => ledgers.assign(tracker, delivery, step),
        Record::Release { delivery, assignment, .. } => ledgers.release(tracker, *delivery, *assignment, step),
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
        | Record::Claim { .. } => {}
    }
}

/// What is remembered of the deliveries that trackers have let go.
struct Ledgers<'a> {
    released: &'a mut BTreeMap<(TrackerKey, DeliveryKey), Released>,
}

impl Ledgers<'_> {
    /// The tracker takes a delivery, unless it has let go this very assignment before.
    fn assign(&mut self, tracker: &mut Tracker, delivery: &Delivery, step: &mut Step<'_>) {
        let place = (tracker.key(), delivery.key);
        if self.released.get(&place).is_some_and(|released| delivery.assignment <= released.assignment) {
            step.effects.counts.ledger_repeated += 1;
            return;
        }
        if let Some(tracked) = tracker.delivery_mut(delivery.key) {
            if delivery.assignment <= tracked.epoch().assignment {
                if tracked.handle_again(delivery.clone()) {
                    tracker.recompute(step);
                } else {
                    step.effects.counts.ledger_repeated += 1;
                }
                return;
            }
            tracker.release(delivery.key, step);
        }
        let epoch = Epoch { assignment: delivery.assignment, generation: step.clock.generation() };
        if !is_sound(delivery) || !tracker.take(TrackedDelivery::begin(delivery.clone(), epoch, step.told_at), step) {
            step.effects.counts.assignments_refused += 1;
        }
    }

    fn release(&mut self, tracker: &mut Tracker, key: DeliveryKey, ends: AssignmentNumber, step: &mut Step<'_>) {
        let is_this = tracker.delivery_mut(key).is_some_and(|tracked| tracked.epoch().assignment <= ends);
        let released = if is_this { tracker.release(key, step) } else { None };
        let now = step.clock.now();
        match released {
            Some(released) => self.remember(tracker.key(), &released, now),
            None => step.effects.counts.ledger_repeated += 1,
        }
        // Also when the assignment itself was never seen: it must not be taken after its end.
        let released = self.released.entry((tracker.key(), key)).or_insert(Released {
            assignment: ends,
            last: JournalNumber(0),
            at: now,
        });
        released.assignment = released.assignment.max(ends);
    }

    fn remember(&mut self, tracker: TrackerKey, gone: &TrackedDelivery, now: Time) {
        let released = Released { assignment: gone.epoch().assignment, last: gone.delivery.last_number(), at: now };
        self.released.insert((tracker, gone.delivery.key), released);
    }
}

/// Whether a delivery is within what a tracker can hold.
fn is_sound(delivery: &Delivery) -> bool {
    delivery.stops.len() <= protocol::delivery::STOPS_MAX && delivery.journal.len() <= protocol::delivery::JOURNAL_MAX
}

/// How long released deliveries are remembered: as long as the records are kept.
const RELEASED_MS: i64 = 72 * 3_600_000;
const RELEASED_CHECK_MS: i64 = 600_000;
/// Silent drivers that move to another map with one tick: 100 µs each.
const MOVES_PER_TICK: u32 = 64;
