//! The deliveries that trackers have let go, remembered for as long as the records are kept: a record that comes late must
//! not bring one back. And the taking and releasing of deliveries itself.

use std::collections::{BTreeMap, BTreeSet};

use protocol::update::Epoch;
use protocol::{AssignmentNumber, Delivery, DeliveryKey, JournalNumber, Time, TrackerKey};
use wincode::{SchemaRead, SchemaWrite};

use super::clock_set::ClockSet;
use super::delivery::TrackedDelivery;
use super::effects::Step;
use super::tracker::Tracker;

#[derive(Default)]
pub(super) struct ReleasedDeliveries {
    by_key: BTreeMap<Key, Released>,
    /// The same by the time at which they are forgotten, so that a tick looks at those alone.
    by_time: BTreeSet<(Time, Key)>,
    /// What the step under way has replaced.
    replaced: Vec<(Key, Option<Released>)>,
    /// Those that came, changed or were forgotten since the newest base of a snapshot.
    changed: BTreeSet<Key>,
}

pub(super) type Key = (TrackerKey, DeliveryKey);

#[derive(Clone, Copy, PartialEq, Debug, SchemaWrite, SchemaRead)]
pub(super) struct Released {
    assignment: AssignmentNumber,
    last: JournalNumber,
    at: Time,
}

impl ReleasedDeliveries {
    pub(super) fn iter(&self) -> impl Iterator<Item = (Key, Released)> + '_ {
        self.by_key.iter().map(|(key, released)| (*key, *released))
    }

    pub(super) fn extend(&mut self, restored: Vec<(Key, Released)>) {
        for (key, released) in restored {
            self.set(key, Some(released));
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(super) fn changed_len(&self) -> usize {
        self.changed.len()
    }

    /// What changed since the newest base: as it is, and what is gone.
    pub(super) fn changed(&self) -> (Vec<(Key, Released)>, Vec<Key>) {
        let of = |key: &Key| self.by_key.get(key).map(|released| (*key, *released));
        let gone = self.changed.iter().filter(|key| !self.by_key.contains_key(key));
        (self.changed.iter().filter_map(of).collect(), gone.copied().collect())
    }

    /// A base is begun.
    pub(super) fn forget_changes(&mut self) {
        self.changed.clear();
    }

    pub(super) fn remove_restored(&mut self, gone: Vec<Key>) {
        for key in gone {
            self.set(key, None);
        }
    }

    pub(super) fn forget_old(&mut self, now: Time) {
        while let Some((at, key)) = self.by_time.first().copied().filter(|(at, _)| now.millis_since(*at) >= RELEASED_MS)
        {
            self.by_time.remove(&(at, key));
            self.by_key.remove(&key);
            self.changed.insert(key);
        }
    }

    /// The clock was set.
    pub(super) fn handle_clock_set(&mut self, set: ClockSet) {
        for released in self.by_key.values_mut() {
            set.stamp(&mut released.at);
        }
        self.by_time = self.by_key.iter().map(|(key, released)| (released.at, *key)).collect();
        self.changed.extend(self.by_key.keys());
    }

    pub(super) fn begin_step(&mut self) {
        self.replaced.clear();
    }

    /// The step could not be folded.
    pub(super) fn undo_step(&mut self) {
        for (key, before) in std::mem::take(&mut self.replaced).into_iter().rev() {
            self.set(key, before);
        }
    }

    /// The tracker takes a delivery, unless it has let go this very assignment before.
    pub(super) fn assign(&mut self, tracker: &mut Tracker, delivery: &Delivery, step: &mut Step<'_>) {
        let key = (tracker.key(), delivery.key);
        if self.by_key.get(&key).is_some_and(|released| delivery.assignment <= released.assignment) {
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

    pub(super) fn release(
        &mut self,
        tracker: &mut Tracker,
        delivery: DeliveryKey,
        ends: AssignmentNumber,
        step: &mut Step<'_>,
    ) {
        let is_this = tracker.delivery_mut(delivery).is_some_and(|tracked| tracked.epoch().assignment <= ends);
        let released = if is_this { tracker.release(delivery, step) } else { None };
        let now = step.clock.now();
        match released {
            Some(released) => self.remember(tracker.key(), &released, now),
            None => step.effects.counts.ledger_repeated += 1,
        }
        // Also when the assignment itself was never seen: it must not be taken after its end.
        let key = (tracker.key(), delivery);
        let known = self.by_key.get(&key).copied();
        let known = known.unwrap_or(Released { assignment: ends, last: JournalNumber(0), at: now });
        self.replace(key, Released { assignment: known.assignment.max(ends), ..known });
    }

    pub(super) fn remember(&mut self, tracker: TrackerKey, gone: &TrackedDelivery, now: Time) {
        let released = Released { assignment: gone.epoch().assignment, last: gone.delivery.last_number(), at: now };
        self.replace((tracker, gone.delivery.key), released);
    }

    fn replace(&mut self, key: Key, released: Released) {
        let before = self.set(key, Some(released));
        self.replaced.push((key, before));
        self.changed.insert(key);
    }

    fn set(&mut self, key: Key, released: Option<Released>) -> Option<Released> {
        let before = match released {
            Some(released) => self.by_key.insert(key, released),
            None => self.by_key.remove(&key),
        };
        if let Some(before) = before {
            self.by_time.remove(&(before.at, key));
        }
        if let Some(released) = released {
            self.by_time.insert((released.at, key));
        }
        before
    }
}

/// Whether a delivery is within what a tracker can have.
fn is_sound(delivery: &Delivery) -> bool {
    delivery.stops.len() <= protocol::delivery::STOPS_MAX && delivery.journal.len() <= protocol::delivery::JOURNAL_MAX
}

/// As long as the records are kept.
const RELEASED_MS: i64 = 72 * 3_600_000;
