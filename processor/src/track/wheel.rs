//! When which tracker is to be visited by a tick. A tick costs what is due, however many trackers there are.
//!
//! Visiting a tracker early does nothing, so an entry is only added when a tracker is due earlier than it was: one that
//! is due later is found not to be due at its old entry, and gets another then. No order within the wheel matters,
//! because whoever takes the due keys visits them in the order of keys.

use std::collections::BTreeMap;

use protocol::{Time, TrackerKey};

#[derive(Default)]
pub(super) struct Wheel {
    by_second: BTreeMap<u32, Vec<TrackerKey>>,
}

/// The second of a tracker's entry in the wheel. Times before 1970 and after 2106 are taken for these: who is due then is
/// visited early.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Entry(u32);

impl Entry {
    /// A tracker that has no entry.
    pub(super) const NONE: Entry = Entry(u32::MAX);

    fn of(time: Time) -> Entry {
        Entry(time.0.div_euclid(1_000).clamp(0, i64::from(u32::MAX - 1)) as u32)
    }

    /// The entry of the same tracker once the clock was set.
    pub(super) fn moved(self, by_ms: i64) -> Entry {
        if self == Entry::NONE {
            return self;
        }
        let second = i64::from(self.0).saturating_add(by_ms.div_euclid(1_000));
        Entry(second.clamp(0, i64::from(u32::MAX - 1)) as u32)
    }
}

impl Wheel {
    /// Makes sure that the tracker is visited at the first tick from `due` on, given the entry that it has.
    pub(super) fn schedule(&mut self, key: TrackerKey, entry: &mut Entry, due: Time) {
        let second = Entry::of(due);
        if second < *entry {
            *entry = second;
            self.by_second.entry(second.0).or_default().push(key);
        }
    }

    /// The clock was set: who was due in ten seconds is due in ten seconds, or a second earlier.
    pub(super) fn handle_clock_set(&mut self, by_ms: i64) {
        let by_second = std::mem::take(&mut self.by_second);
        for (second, keys) in by_second {
            self.by_second.entry(Entry(second).moved(by_ms).0).or_default().extend(keys);
        }
    }

    /// Takes the entries that are due by now.
    pub(super) fn take_due(&mut self, now: Time) -> Vec<(Entry, TrackerKey)> {
        let Entry(now) = Entry::of(now);
        let mut due = Vec::new();
        while let Some(first) = self.by_second.first_entry().filter(|first| *first.key() <= now) {
            let second = Entry(*first.key());
            due.extend(first.remove().into_iter().map(|key| (second, key)));
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use protocol::{DriverId, DriverKey, TenantId};

    use super::*;

    #[test]
    fn whoever_is_due_is_taken_once_and_an_earlier_time_replaces_a_later_one() {
        let key = |driver| TrackerKey::from(DriverKey { tenant: TenantId(1), driver: DriverId(driver) });
        let mut wheel = Wheel::default();
        let mut entries = [Entry::NONE; 3];
        wheel.schedule(key(0), &mut entries[0], Time(5_900));
        wheel.schedule(key(1), &mut entries[1], Time(9_000));
        wheel.schedule(key(1), &mut entries[1], Time(4_000));
        wheel.schedule(key(1), &mut entries[1], Time(7_000));
        wheel.schedule(key(2), &mut entries[2], Time(-1));

        let mut taken = |now| wheel.take_due(Time(now)).into_iter().map(|(_, key)| key).collect::<Vec<_>>();

        assert_eq!(taken(3_999), [key(2)]);
        assert_eq!(taken(5_000), [key(1), key(0)]); // a key may come early, never late
        assert_eq!(taken(8_999), []);
        assert_eq!(taken(9_000), [key(1)]); // the entry that was replaced: whoever takes it sees that it is stale
    }
}
