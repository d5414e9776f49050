//! How long nothing was heard of a delivery or driver, for sinks that forget it then.
//!
//! **Invariant:** an age is counted in the time that its own source partition has gone on for, not by any clock. A source
//! that was away ages nothing meanwhile, whatever the others did; one whose clock leaps has gone on for a minute at most.
//! What goes on gets a keyframe within that minute, so it never grows old.

use std::collections::{BTreeMap, BTreeSet};

use protocol::{PartitionId, Time};

/// Since when, of its source's time, nothing was heard of something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Heard {
    source: PartitionId,
    lived_ms: i64,
}

/// Keys by when they were heard last.
pub(super) struct Ages<K> {
    sources: BTreeMap<PartitionId, Source<K>>,
}

struct Source<K> {
    /// How long it has gone on for.
    lived_ms: i64,
    /// What its clock said last.
    at: Time,
    /// The one that was not heard for longest first.
    keys: BTreeSet<(i64, K)>,
}

impl<K: Copy + Ord> Ages<K> {
    pub fn new() -> Ages<K> {
        Ages { sources: BTreeMap::new() }
    }

    /// The source has gone on, by its own clock.
    pub fn handle_time(&mut self, source: PartitionId, at: Time) {
        let source = self.source(source, at);
        source.lived_ms += at.millis_since(source.at).clamp(0, STEP_MS_MAX);
        source.at = at;
    }

    /// Something of this source was heard. `before` is what the last such call answered for it.
    pub fn handle_heard(&mut self, key: K, before: Option<Heard>, source: PartitionId, at: Time) -> Heard {
        self.handle_time(source, at);
        if let Some(before) = before {
            self.forget(key, before);
        }
        let entry = self.source(source, at);
        let lived_ms = entry.lived_ms;
        entry.keys.insert((lived_ms, key));
        Heard { source, lived_ms }
    }

    pub fn forget(&mut self, key: K, heard: Heard) {
        if let Some(source) = self.sources.get_mut(&heard.source) {
            source.keys.remove(&(heard.lived_ms, key));
        }
    }

    pub fn len(&self) -> usize {
        self.sources.values().map(|source| source.keys.len()).sum()
    }

    /// Something of which nothing was heard for so long.
    pub fn pop_old(&mut self, age_ms: i64) -> Option<K> {
        let is_old = |source: &&mut Source<K>| source.oldest_ms().is_some_and(|oldest_ms| oldest_ms >= age_ms);
        let source = self.sources.values_mut().find(is_old)?;
        source.keys.pop_first().map(|(_, key)| key)
    }

    /// That of which nothing was heard for longest.
    pub fn pop_oldest(&mut self) -> Option<K> {
        let source = self.sources.values_mut().max_by_key(|source| source.oldest_ms())?;
        source.keys.pop_first().map(|(_, key)| key)
    }

    fn source(&mut self, source: PartitionId, at: Time) -> &mut Source<K> {
        self.sources.entry(source).or_insert_with(|| Source { lived_ms: 0, at, keys: BTreeSet::new() })
    }
}

impl<K: Ord> Source<K> {
    /// How long nothing was heard of the oldest; None if there is none.
    fn oldest_ms(&self) -> Option<i64> {
        self.keys.first().map(|(heard_ms, _)| self.lived_ms - heard_ms)
    }
}

/// A source that goes on writes a heartbeat every 5 s, and a keyframe of all that is live every minute.
const STEP_MS_MAX: i64 = 60_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_source_that_goes_on_says_nothing_of_grows_old() {
        let mut ages = Ages::new();
        ages.handle_heard('a', None, PartitionId(1), Time(0));

        for s in (5..=600).step_by(5) {
            assert_eq!(ages.pop_old(600_000), None, "after {s} s");
            ages.handle_time(PartitionId(1), Time::from_secs(s));
        }

        assert_eq!((ages.pop_old(600_000), ages.len()), (Some('a'), 0));
    }

    #[test]
    fn neither_a_leap_nor_a_step_back_nor_another_source_makes_anything_old() {
        let mut ages = Ages::new();
        let a = ages.handle_heard('a', None, PartitionId(1), Time::from_secs(10_000));
        for (source, s) in [(1, 90_000), (1, 0), (1, 30), (2, 0), (2, 100), (2, 100_000)] {
            ages.handle_time(PartitionId(source), Time::from_secs(s));
        }

        assert_eq!(ages.pop_old(120_000), None);
        assert_eq!(ages.pop_old(90_000), Some('a'), "of the leap counts a minute, of the rest all");
        let again = ages.handle_heard('a', None, PartitionId(2), Time::from_secs(100_000));
        assert_ne!(a, again);
        ages.forget('a', again);
        assert_eq!(ages.len(), 0);
    }

    #[test]
    fn the_oldest_of_all_sources_goes_first() {
        let mut ages = Ages::new();
        for (key, source, s) in [('a', 1, 0), ('b', 2, 0), ('c', 2, 50), ('d', 1, 20)] {
            ages.handle_heard(key, None, PartitionId(source), Time::from_secs(s));
        }

        let order: String = std::iter::from_fn(|| ages.pop_oldest()).collect();

        assert_eq!(order, "bacd");
    }
}
