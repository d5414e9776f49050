//! How long records wait for company before they are shipped.
//!
//! Where the log gathers by itself they wait for none: what arrives while two parcels are under way is the next. Where
//! every entry costs the log something of its own, an edge has a budget of entries: below it nobody waits, above it each
//! partition gets its share of the budget, and fewer while the log is slow.

use std::time::Duration;

use protocol::Time;

/// What the log asks of those who append to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LingerRule {
    /// The log makes one write of all that comes while it is busy.
    None,
    /// This thread may write so many entries a second.
    Budget { entries_per_s: u32 },
}

#[derive(Clone, Debug)]
pub struct Linger {
    rule: LingerRule,
    partition_count: u32,
    window_began: Time,
    window_fixes: u64,
    fixes_per_s: f64,
    doublings: u32,
}

impl Linger {
    pub fn new(rule: LingerRule, partition_count: u32, now: Time) -> Self {
        Linger { rule, partition_count, window_began: now, window_fixes: 0, fixes_per_s: 0.0, doublings: 0 }
    }

    pub fn handle_fixes(&mut self, count: u64) {
        self.window_fixes += count;
    }

    /// Records were shipped that had waited for so long. Where the log let them wait for as long again as they had to,
    /// it gets fewer and larger entries.
    pub fn handle_shipped(&mut self, waited: Duration) {
        self.doublings = if waited >= self.duration() * 2 {
            (self.doublings + 1).min(DOUBLINGS_MAX)
        } else {
            self.doublings.saturating_sub(1)
        };
    }

    pub fn handle_timeout(&mut self, now: Time) {
        let passed = now.since(self.window_began);
        if passed >= RATE_WINDOW || now < self.window_began {
            let seconds = passed.as_secs_f64().max(RATE_WINDOW.as_secs_f64());
            self.fixes_per_s = self.window_fixes as f64 / seconds;
            self.window_fixes = 0;
            self.window_began = now;
        }
    }

    /// The clock was set.
    pub fn handle_step(&mut self, by_ms: i64) {
        self.window_began.0 = self.window_began.0.saturating_add(by_ms);
    }

    pub fn duration(&self) -> Duration {
        let base = match self.rule {
            LingerRule::None => Duration::ZERO,
            LingerRule::Budget { entries_per_s } if self.fixes_per_s < f64::from(entries_per_s) => Duration::ZERO,
            LingerRule::Budget { entries_per_s } => {
                let wanted_s = f64::from(self.partition_count) / f64::from(entries_per_s.max(1));
                Duration::from_secs_f64(wanted_s.min(LINGER_MAX.as_secs_f64()))
            }
        };
        (base * (1 << self.doublings)).min(LINGER_MAX)
    }

    /// When records that came at `since` are to be shipped, while so many parcels are under way.
    pub fn due(&self, since: Time, under_way: usize) -> Time {
        since + if under_way < PARCELS_UNDER_WAY_MAX { self.duration() } else { LINGER_MAX }
    }
}

/// The longest that live fixes are in memory only, however slow the log.
pub const LINGER_MAX: Duration = Duration::from_millis(500);
/// One that is being written, and one behind it, so that the log never waits for us.
const PARCELS_UNDER_WAY_MAX: usize = 2;
/// 5 ms × 2⁷ is above the longest linger.
const DOUBLINGS_MAX: u32 = 7;
const RATE_WINDOW: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    fn at_rate(rule: LingerRule, partition_count: u32, fixes_per_s: u64) -> Linger {
        let mut linger = Linger::new(rule, partition_count, Time(0));
        linger.handle_fixes(fixes_per_s);
        linger.handle_timeout(Time(1000));
        linger
    }

    const BUDGET: LingerRule = LingerRule::Budget { entries_per_s: 1_000 };

    #[test]
    fn where_the_log_gathers_nobody_waits_for_company() {
        for rate in [0, 20, 3_000, 1_000_000] {
            let linger = at_rate(LingerRule::None, 8, rate);

            assert_eq!(linger.due(Time(5), 0), Time(5), "{rate}/s");
            assert_eq!(linger.due(Time(5), 1), Time(5), "{rate}/s, with one under way");
        }
    }

    #[test]
    fn behind_two_that_are_under_way_the_next_gathers_for_half_a_second_at_most() {
        for rule in [LingerRule::None, BUDGET] {
            assert_eq!(at_rate(rule, 8, 20).due(Time(5), 2), Time(505));
        }
    }

    #[test]
    fn within_its_budget_of_entries_an_edge_waits_for_nobody_and_above_it_for_a_share() {
        assert_eq!(at_rate(BUDGET, 64, 0).duration(), Duration::ZERO);
        assert_eq!(at_rate(BUDGET, 64, 999).duration(), Duration::ZERO);
        assert_eq!(at_rate(BUDGET, 64, 1_000).duration(), Duration::from_millis(64));
        assert_eq!(at_rate(BUDGET, 64, 1_000_000).duration(), Duration::from_millis(64));
        assert_eq!(at_rate(BUDGET, 8, 1_000_000).duration(), Duration::from_millis(8));
        assert_eq!(at_rate(BUDGET, 100_000, 1_000_000).duration(), LINGER_MAX);
    }

    #[test]
    fn a_slow_log_doubles_it_up_to_500_ms_and_a_quick_one_takes_that_back() {
        let mut linger = at_rate(BUDGET, 8, 1_000_000);

        linger.handle_shipped(Duration::from_millis(16));
        linger.handle_shipped(Duration::from_millis(32));
        assert_eq!(linger.duration(), Duration::from_millis(32));
        (0..100).for_each(|_| linger.handle_shipped(Duration::from_secs(1)));
        assert_eq!(linger.duration(), LINGER_MAX);
        (0..7).for_each(|_| linger.handle_shipped(linger.duration()));

        assert_eq!(linger.duration(), Duration::from_millis(8));
    }

    #[test]
    fn a_clock_that_is_set_back_begins_a_new_window() {
        let mut linger = at_rate(BUDGET, 64, 4_000);

        linger.handle_timeout(Time(-3_600_000));
        linger.handle_fixes(4_000);
        linger.handle_timeout(Time(-3_599_000));

        assert_eq!(linger.duration(), Duration::from_millis(64));
    }
}
