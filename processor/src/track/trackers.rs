//! All trackers of a partition: those at work as they are, those that sleep packed into a few bytes. A tracker sleeps
//! while nothing was heard of its driver for long and he has no delivery; any record for it wakes it.
//!
//! **Invariant:** whether a tracker is packed changes nothing of what is folded: neither an update nor a snapshot shows it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use protocol::record::Vehicle;
use protocol::{Time, TrackerKey};

use super::clock::FoldClock;
use super::clock_set::ClockSet;
use super::dormant::Dormant;
use super::gathering::{Copied, Gathering, Interval, TrackerCopy};
use super::listening::Listening;
use super::roads::Roads;
use super::tracker::{SaidOfDriver, Tracker};
use super::wheel::{Entry, Wheel};

#[derive(Default)]
pub(super) struct Trackers {
    slots: BTreeMap<TrackerKey, Slot>,
    dormant: usize,
    wheel: Wheel,
    listening: Listening,
    /// Those whose matcher is on a map that is not in use any more.
    stranded: BTreeSet<TrackerKey>,
    gathering: Gathering,
    /// How often ticks have visited each.
    #[cfg(test)]
    visits: BTreeMap<TrackerKey, u32>,
}

struct Slot {
    entry: Entry,
    changed_in: Interval,
    state: State,
}

enum State {
    Live(Box<Tracker>),
    Dormant(Dormant),
}

impl Trackers {
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// How many of them are packed.
    pub(super) fn dormant_len(&self) -> usize {
        self.dormant
    }

    /// What a packed tracker takes at most, its place in the map and the wheel included.
    #[cfg(test)]
    pub(super) fn dormant_bytes(&self) -> usize {
        let of_slot = |slot: &Slot| match &slot.state {
            State::Live(_) => 0,
            State::Dormant(dormant) => dormant.heap_bytes(),
        };
        // Nodes of the map are two thirds full; so are the wheel's lists, with an entry for each.
        let of_map = (size_of::<TrackerKey>() + size_of::<Slot>()) * 3 / 2 + size_of::<TrackerKey>() * 3 / 2;
        self.slots.values().map(of_slot).max().unwrap_or_default() + of_map
    }

    /// Each of them, in the order of keys.
    pub(super) fn try_for_each<E>(&self, mut what: impl FnMut(&Tracker) -> Result<(), E>) -> Result<(), E> {
        self.slots.iter().try_for_each(|(key, slot)| match &slot.state {
            State::Live(tracker) => what(tracker),
            State::Dormant(dormant) => what(&dormant.unpack(*key)),
        })
    }

    pub(super) fn vehicles(&self) -> BTreeSet<Vehicle> {
        let of_slot = |slot: &Slot| match &slot.state {
            State::Live(tracker) => tracker.vehicle(),
            State::Dormant(dormant) => dormant.vehicle(),
        };
        self.slots.values().map(of_slot).collect()
    }

    pub(super) fn said_of_drivers(&self) -> Vec<SaidOfDriver> {
        let of_slot = |(key, slot): (&TrackerKey, &Slot)| match &slot.state {
            State::Live(tracker) => tracker.said_of_driver(),
            State::Dormant(dormant) => dormant.unpack(*key).said_of_driver(),
        };
        self.slots.iter().filter_map(of_slot).collect()
    }

    /// Those at work: a tracker that sleeps has no delivery and no matcher.
    pub(super) fn live(&self) -> impl Iterator<Item = &Tracker> {
        self.slots.values().filter_map(|slot| match &slot.state {
            State::Live(tracker) => Some(&**tracker),
            State::Dormant(_) => None,
        })
    }

    /// A driver as his tracker sees him.
    #[cfg(test)]
    pub(super) fn view(&self, key: protocol::DriverKey) -> Option<protocol::update::DriverView> {
        let key_of_tracker = TrackerKey::Driver(key);
        self.slots.get(&key_of_tracker).map(|slot| match &slot.state {
            State::Live(tracker) => tracker.view(key),
            State::Dormant(dormant) => dormant.unpack(key_of_tracker).view(key),
        })
    }

    /// How often ticks have visited a tracker.
    #[cfg(test)]
    pub(super) fn visits_of(&self, key: TrackerKey) -> u32 {
        self.visits.get(&key).copied().unwrap_or_default()
    }

    /// What is kept of a driver's devices.
    #[cfg(test)]
    pub(super) fn devices(&self, key: protocol::DriverKey) -> String {
        match self.slots.get(&TrackerKey::Driver(key)).map(|slot| &slot.state) {
            Some(State::Live(tracker)) => format!("{:?}", tracker.clone().devices_mut()),
            Some(State::Dormant(_)) | None => String::new(),
        }
    }

    /// Lets all of them change; those that sleep wake for it.
    pub(super) fn for_each_mut(&mut self, now: Time, mut what: impl FnMut(&mut Tracker)) {
        let Trackers { slots, dormant, gathering, .. } = self;
        for (key, slot) in slots {
            slot.before_change(*key, gathering);
            what(slot.wake(*key, dormant));
            slot.sleep(now, dormant);
        }
    }

    /// One that was restored, in the place of an older state of it.
    pub(super) fn insert(&mut self, tracker: Tracker, now: Time) {
        let key = tracker.key();
        let mut slot = Slot::of(tracker, Interval::default());
        slot.sleep(now, &mut self.dormant);
        let before = self.slots.insert(key, slot);
        self.dormant -= usize::from(before.is_some_and(|slot| matches!(slot.state, State::Dormant(_))));
    }

    /// One that a restored state does not have any more.
    pub(super) fn remove_restored(&mut self, key: TrackerKey) {
        let before = self.slots.remove(&key);
        self.dormant -= usize::from(before.is_some_and(|slot| matches!(slot.state, State::Dormant(_))));
    }

    /// The tracker, awake and about to change, if there is one.
    pub(super) fn find(&mut self, key: TrackerKey) -> Option<&mut Tracker> {
        let slot = self.slots.get_mut(&key)?;
        slot.before_change(key, &mut self.gathering);
        Some(slot.wake(key, &mut self.dormant))
    }

    /// The tracker, awake and about to change, made if there is none.
    pub(super) fn find_or_make(&mut self, key: TrackerKey, now: Time) -> &mut Tracker {
        let Trackers { slots, dormant, gathering, .. } = self;
        let slot = slots.entry(key).or_insert_with(|| Slot::of(Tracker::new(key, now), gathering.handle_made()));
        slot.before_change(key, gathering);
        slot.wake(key, dormant)
    }

    /// Begins to gather a snapshot: a base, of all trackers, or what has changed since the newest base.
    pub(super) fn begin_gathering(&mut self, is_base: bool) {
        self.gathering.begin(is_base);
    }

    pub(super) fn gathering(&mut self) -> &mut Gathering {
        &mut self.gathering
    }

    /// How many have changed or come since the newest base began.
    pub(super) fn changed_len(&self) -> usize {
        self.gathering.changed()
    }

    pub(super) fn base_number(&self) -> u32 {
        self.gathering.base()
    }

    /// Copies of so many trackers as `work` allows, and whether these are the last of the snapshot.
    pub(super) fn gather(&mut self, work: usize) -> (Vec<TrackerCopy>, bool) {
        let Trackers { slots, gathering, .. } = self;
        let Some((passed, mut copies)) = gathering.resume() else { return (Vec::new(), true) };
        let mut left = work;
        for (key, slot) in slots.range((passed.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded)) {
            if left == 0 {
                return (copies, false);
            }
            let mut cost = 1;
            if gathering.pass(*key, slot.changed_in) {
                copies.push(TrackerCopy(slot.copy(*key)));
                cost += slot.cost_of_copy();
            }
            left = left.saturating_sub(cost);
        }
        gathering.abandon(); // all of it is handed out
        (copies, true)
    }

    /// After a tracker changed, and what it had to say was said: plans its next visit, packs it if it sleeps, and removes
    /// it if it is over.
    pub(super) fn settle(&mut self, key: TrackerKey, clock: &FoldClock, roads: &Roads) {
        let Some(slot) = self.slots.get_mut(&key) else { return };
        let tracker = slot.wake(key, &mut self.dormant);
        if tracker.is_over(clock.now()) {
            self.slots.remove(&key);
            self.stranded.remove(&key);
            self.gathering.handle_removed(key);
            return;
        }
        let due = tracker.poll_timeout(clock, &self.listening);
        if !self.stranded.is_empty() && !tracker.is_stranded(roads) {
            self.stranded.remove(&key);
        }
        if let Some(due) = due {
            self.wheel.schedule(key, &mut slot.entry, due);
        }
        slot.sleep(clock.now(), &mut self.dormant);
    }

    /// The trackers to visit at a tick, in the order of keys: all that time may change. Of those that stand on a replaced
    /// map the first `moves_max` are among them, whether they are due or not.
    pub(super) fn take_due(&mut self, clock: &FoldClock, moves_max: u32) -> Vec<TrackerKey> {
        if self.listening.refresh(clock) {
            self.reschedule_silence(clock);
        }
        let mut due = Vec::new();
        for (entry, key) in self.wheel.take_due(clock.now()) {
            if let Some(slot) = self.slots.get_mut(&key).filter(|slot| slot.entry == entry) {
                slot.entry = Entry::NONE;
                due.push(key);
            }
        }
        due.extend(self.stranded.iter().take(moves_max as usize));
        due.sort_unstable();
        due.dedup();
        #[cfg(test)]
        due.iter().for_each(|key| *self.visits.entry(*key).or_default() += 1);
        due
    }

    /// Edges came, went or had a gap: who is silent may have to be judged anew.
    fn reschedule_silence(&mut self, clock: &FoldClock) {
        let Trackers { slots, wheel, listening, .. } = self;
        for (key, slot) in slots {
            let due = match &slot.state {
                State::Live(tracker) => tracker.silence_due(clock, listening),
                State::Dormant(dormant) => dormant.silence_due(clock, listening),
            };
            if let Some(due) = due {
                wheel.schedule(*key, &mut slot.entry, due);
            }
        }
    }

    /// Time was set back, or all may have something to say: the next tick visits everybody.
    pub(super) fn schedule_all(&mut self) {
        let Trackers { slots, wheel, .. } = self;
        slots.iter_mut().for_each(|(key, slot)| wheel.schedule(*key, &mut slot.entry, Time(i64::MIN)));
    }

    /// The clock was set. Those at work are told one by one: `live_keys`.
    pub(super) fn handle_clock_set(&mut self, set: ClockSet) {
        let Trackers { slots, wheel, listening, gathering, .. } = self;
        wheel.handle_clock_set(set.by_ms);
        listening.handle_clock_set();
        for (key, slot) in slots {
            slot.entry = slot.entry.moved(set.by_ms);
            if matches!(slot.state, State::Dormant(_)) {
                slot.before_change(*key, gathering);
            }
            if let State::Dormant(packed) = &mut slot.state {
                packed.handle_clock_set(set);
            }
        }
    }

    /// So that each can be told what changes for it. They sleep again when they are settled.
    pub(super) fn wake_all(&mut self) {
        let Trackers { slots, dormant, .. } = self;
        for (key, slot) in slots {
            slot.wake(*key, dormant);
        }
    }

    pub(super) fn live_keys(&self) -> Vec<TrackerKey> {
        self.live().map(Tracker::key).collect()
    }

    /// Another owner speaks from here on, and readers take his word of a driver from a keyframe on: with the next tick
    /// each driver that somebody may look at gets one.
    pub(super) fn handle_claim(&mut self, now: Time) {
        let Trackers { slots, dormant, wheel, gathering, .. } = self;
        for (key, slot) in slots {
            if matches!(&slot.state, State::Dormant(packed) if !packed.is_live(now)) {
                continue;
            }
            slot.before_change(*key, gathering);
            if slot.wake(*key, dormant).handle_claim(now) {
                wheel.schedule(*key, &mut slot.entry, Time(i64::MIN));
            }
            slot.sleep(now, dormant);
        }
    }

    /// After a restore: plans everybody's next visit.
    pub(super) fn reschedule(&mut self, clock: &FoldClock, roads: &Roads) {
        // They were added in the order of keys, which leaves the map's nodes half empty; built at once they are full.
        self.slots = std::mem::take(&mut self.slots).into_iter().collect();
        self.listening.refresh(clock);
        let Trackers { slots, wheel, listening, .. } = self;
        for (key, slot) in slots {
            let due = match &slot.state {
                State::Live(tracker) if tracker.has_update() => Some(clock.now()),
                State::Live(tracker) => tracker.poll_timeout(clock, listening),
                State::Dormant(dormant) => dormant.unpack(*key).poll_timeout(clock, listening),
            };
            if let Some(due) = due {
                wheel.schedule(*key, &mut slot.entry, due);
            }
        }
        self.handle_maps_changed(roads);
    }

    /// Other maps are in use: notes who stands on one that is not, and ends late runs there with the next tick.
    pub(super) fn handle_maps_changed(&mut self, roads: &Roads) {
        let Trackers { slots, wheel, stranded, .. } = self;
        stranded.clear();
        for (key, slot) in slots {
            let State::Live(tracker) = &slot.state else { continue };
            if tracker.is_stranded(roads) {
                stranded.insert(*key);
            }
            if tracker.is_late_run_stranded(roads) {
                wheel.schedule(*key, &mut slot.entry, Time(i64::MIN));
            }
        }
    }

    /// Whether somebody still stands on a map that was replaced.
    pub(super) fn stand_on(&self, map: u32) -> bool {
        let mut stranded = self.stranded.iter().filter_map(|key| self.slots.get(key));
        stranded.any(|slot| matches!(&slot.state, State::Live(tracker) if tracker.stands_on(map)))
    }
}

impl Slot {
    fn of(tracker: Tracker, changed_in: Interval) -> Slot {
        Slot { entry: Entry::NONE, changed_in, state: State::Live(Box::new(tracker)) }
    }

    /// To be called before the tracker changes, by whatever hand: a snapshot that is being gathered may lack it.
    fn before_change(&mut self, key: TrackerKey, gathering: &mut Gathering) {
        let Slot { changed_in, state, .. } = self;
        gathering.before_change(key, changed_in, || state.copy(key));
    }

    fn copy(&self, key: TrackerKey) -> Copied {
        self.state.copy(key)
    }

    /// Beside passing it by.
    fn cost_of_copy(&self) -> usize {
        match &self.state {
            State::Live(_) => LIVE_COPY_COST,
            State::Dormant(_) => 1,
        }
    }

    fn wake(&mut self, key: TrackerKey, dormant: &mut usize) -> &mut Tracker {
        if let State::Dormant(packed) = &self.state {
            *dormant -= 1;
            self.state = State::Live(Box::new(packed.unpack(key)));
        }
        match &mut self.state {
            State::Live(tracker) => tracker,
            State::Dormant(_) => unreachable!("it was unpacked above"),
        }
    }

    fn sleep(&mut self, now: Time, dormant: &mut usize) {
        if let State::Live(tracker) = &self.state
            && let Some(packed) = Dormant::pack(tracker, now)
        {
            *dormant += 1;
            self.state = State::Dormant(packed);
        }
    }
}

impl State {
    fn copy(&self, key: TrackerKey) -> Copied {
        match self {
            State::Live(tracker) => Copied::Live(tracker.clone()),
            State::Dormant(dormant) => Copied::Dormant(key, dormant.clone()),
        }
    }
}

/// A copy of a tracker at work takes about so many times as long as passing one by.
const LIVE_COPY_COST: usize = 16;
