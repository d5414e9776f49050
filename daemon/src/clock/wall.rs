//! What the wall clock shows beyond the time since the machine started. That difference only changes when somebody sets
//! the wall clock: a laptop that slept, a virtual machine that was moved, NTP after a start without a network.
//!
//! **Invariant:** a difference of more than a second is believed only after two looks in a row that agree.

use serde::{Deserialize, Serialize};

/// The offset that is believed, and those that were believed lately.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct WallOffset {
    current_ms: i64,
    /// Seen once, and not believed yet.
    #[serde(skip)]
    suspected_ms: Option<i64>,
    /// At most `PAST_MAX`, the newest last.
    past: Vec<Past>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Past {
    offset_ms: i64,
    /// The time since the machine started at which it was given up.
    until_ms: i64,
}

/// What a look at the two clocks showed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Look {
    /// They go on together, or nearly so.
    Even,
    /// The wall clock shows something else; another look will tell.
    Suspected,
    /// The wall clock was set.
    Stepped { by_ms: i64 },
}

impl WallOffset {
    pub(super) fn new(offset_ms: i64) -> WallOffset {
        WallOffset { current_ms: offset_ms, suspected_ms: None, past: Vec::new() }
    }

    pub(super) fn current_ms(&self) -> i64 {
        self.current_ms
    }

    /// Once a second.
    pub(super) fn look(&mut self, since_start_ms: i64, wall_ms: i64) -> Look {
        let offset_ms = wall_ms.saturating_sub(since_start_ms);
        if is_near(offset_ms, self.current_ms) {
            (self.current_ms, self.suspected_ms) = (offset_ms, None);
            return Look::Even;
        }
        if !self.suspected_ms.is_some_and(|suspected_ms| is_near(suspected_ms, offset_ms)) {
            self.suspected_ms = Some(offset_ms);
            return Look::Suspected;
        }
        self.suspected_ms = None;
        self.step_to(offset_ms, since_start_ms)
    }

    /// A process that stopped on this machine believed `self`: what was set meanwhile is a step like any other.
    pub(super) fn take_up(&mut self, since_start_ms: i64, wall_ms: i64) -> Look {
        let offset_ms = wall_ms.saturating_sub(since_start_ms);
        if is_near(offset_ms, self.current_ms) {
            self.current_ms = offset_ms;
            return Look::Even;
        }
        self.step_to(offset_ms, since_start_ms)
    }

    fn step_to(&mut self, offset_ms: i64, since_start_ms: i64) -> Look {
        let by_ms = offset_ms.saturating_sub(self.current_ms);
        self.past.retain(|past| !is_near(past.offset_ms, offset_ms) && !is_near(past.offset_ms, self.current_ms));
        if self.past.len() == PAST_MAX {
            self.past.remove(0);
        }
        self.past.push(Past { offset_ms: self.current_ms, until_ms: since_start_ms });
        self.current_ms = offset_ms;
        Look::Stepped { by_ms }
    }

    /// The offsets that were believed within the last day and an hour.
    pub(super) fn past_ms(&self, since_start_ms: i64) -> impl Iterator<Item = i64> + '_ {
        let is_recent = move |past: &&Past| since_start_ms.saturating_sub(past.until_ms) < PAST_KEPT_MS;
        self.past.iter().filter(is_recent).map(|past| past.offset_ms)
    }

    /// The least of those that were believed within that time, the current one included.
    pub(super) fn least_ms(&self, since_start_ms: i64) -> i64 {
        self.past_ms(since_start_ms).fold(self.current_ms, i64::min)
    }
}

fn is_near(a_ms: i64, b_ms: i64) -> bool {
    a_ms.saturating_sub(b_ms).saturating_abs() <= STEP_MS
}

/// More is a step; less is what NTP corrects and what two clocks read one after the other differ.
pub(super) const STEP_MS: i64 = 1_000;
/// A clock that is set more often than this in a day is not kept track of further.
const PAST_MAX: usize = 8;
/// As long as a session lives, and an hour for whoever is late.
const PAST_KEPT_MS: i64 = 25 * 3_600_000;

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: i64 = 3_600_000;
    const DAY_MS: i64 = 24 * HOUR_MS;

    #[test]
    fn every_step_is_seen_at_the_second_look_and_none_where_there_was_none() {
        for by_ms in [2_000, 2 * HOUR_MS, 2 * DAY_MS, 20 * 365 * DAY_MS] {
            for by_ms in [by_ms, -by_ms] {
                let mut offset = WallOffset::new(1_000_000);
                assert_eq!(offset.look(10_000, 1_010_400), Look::Even, "a correction");

                assert_eq!(offset.look(11_000, 1_011_400 + by_ms), Look::Suspected, "{by_ms}");
                assert_eq!(offset.current_ms(), 1_000_400, "{by_ms}");
                assert_eq!(offset.look(12_000, 1_012_300 + by_ms), Look::Stepped { by_ms: by_ms - 100 }, "{by_ms}");
                assert_eq!(offset.look(13_000, 1_013_300 + by_ms), Look::Even, "{by_ms}");
            }
        }
    }

    #[test]
    fn one_wild_reading_is_no_step() {
        let mut offset = WallOffset::new(0);

        let looks =
            [(1_000, 1_000), (2_000, 90_000), (3_000, 3_000), (4_000, -50_000), (5_000, 90_000), (6_000, 6_000)];

        for (since_start_ms, wall_ms) in looks {
            assert!(!matches!(offset.look(since_start_ms, wall_ms), Look::Stepped { .. }), "{since_start_ms}");
        }
        assert_eq!(offset.current_ms(), 0);
    }

    #[test]
    fn what_was_believed_is_kept_for_a_day_and_forgotten_once_it_holds_again() {
        let mut offset = WallOffset::new(0);
        let mut step_to = |offset_ms: i64, at_ms: i64| {
            assert_eq!(offset.look(at_ms, at_ms + offset_ms), Look::Suspected);
            assert!(matches!(offset.look(at_ms + 1_000, at_ms + 1_000 + offset_ms), Look::Stepped { .. }));
            (offset.past_ms(at_ms + 1_000).collect::<Vec<_>>(), offset.least_ms(at_ms + 1_000))
        };

        assert_eq!(step_to(2 * DAY_MS, 0), (vec![0], 0), "forward: what is kept is kept a day longer");
        assert_eq!(step_to(-DAY_MS, HOUR_MS), (vec![0, 2 * DAY_MS], -DAY_MS));
        assert_eq!(step_to(0, 2 * HOUR_MS), (vec![2 * DAY_MS, -DAY_MS], -DAY_MS), "and back");
        assert_eq!(offset.least_ms(2 * HOUR_MS + 26 * HOUR_MS), 0);
        assert_eq!(offset.past_ms(28 * HOUR_MS).count(), 0);
    }

    #[test]
    fn a_step_between_two_runs_is_one() {
        let mut offset = WallOffset::new(5_000);

        assert_eq!(offset.take_up(1_000, 6_300), Look::Even);
        assert_eq!(offset.take_up(2_000, 2_000 + 5_300 + DAY_MS), Look::Stepped { by_ms: DAY_MS });
        assert_eq!(offset.past_ms(3_000).collect::<Vec<_>>(), [5_300]);
    }

    #[test]
    fn however_often_it_is_set_few_are_kept() {
        let mut offset = WallOffset::new(0);
        for i in 0..100 {
            offset.look(i * 2_000, i * 10_000_000);
            offset.look(i * 2_000 + 1, i * 10_000_000 + 1);
        }

        assert_eq!(offset.past_ms(200_000).count(), PAST_MAX);
    }
}
