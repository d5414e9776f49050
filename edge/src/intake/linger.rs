//! How long records wait for company before they are shipped. Long enough for about 16 to each entry of the log, short
//! enough not to be felt, longer while the log is slow.

use std::time::Duration;

use protocol::Time;

/// Linger = clamp(16 × partitions ÷ fix rate, 5, 100 ms), doubling while the log is slow, never above 500 ms.
#[derive(Clone, Debug)]
pub struct Linger {
    partition_count: u32,
    window_began: Time,
    window_fixes: u64,
    fixes_per_s: f64,
    doublings: u32,
}

impl Linger {
    pub fn new(partition_count: u32, now: Time) -> Self {
        Linger { partition_count, window_began: now, window_fixes: 0, fixes_per_s: 0.0, doublings: 0 }
    }

    pub fn handle_fixes(&mut self, count: u64) {
        self.window_fixes += count;
    }

    /// The log has not settled what went out before the last: wait longer, so that fewer and larger entries go out.
    pub fn handle_slow_log(&mut self) {
        self.doublings = (self.doublings + 1).min(DOUBLINGS_MAX);
    }

    pub fn handle_quick_log(&mut self) {
        self.doublings = self.doublings.saturating_sub(1);
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

    pub fn duration(&self) -> Duration {
        let wanted_s = RECORDS_PER_ENTRY * f64::from(self.partition_count) / self.fixes_per_s.max(1.0);
        let base = Duration::from_secs_f64(wanted_s.min(LINGER_MAX.as_secs_f64())).clamp(LINGER_MIN, LINGER_MAX);
        (base * (1 << self.doublings)).min(LINGER_SLOW_MAX)
    }
}

const RECORDS_PER_ENTRY: f64 = 16.0;
const LINGER_MIN: Duration = Duration::from_millis(5);
const LINGER_MAX: Duration = Duration::from_millis(100);
/// Also the longest that live fixes are in memory only.
pub const LINGER_SLOW_MAX: Duration = Duration::from_millis(500);
/// 5 ms × 2⁷ is above the longest linger.
const DOUBLINGS_MAX: u32 = 7;
const RATE_WINDOW: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    fn at_rate(partition_count: u32, fixes_per_s: u64) -> Linger {
        let mut linger = Linger::new(partition_count, Time(0));
        linger.handle_fixes(fixes_per_s);
        linger.handle_timeout(Time(1000));
        linger
    }

    #[test]
    fn it_follows_the_rate_between_5_and_100_ms() {
        assert_eq!(at_rate(8, 0).duration(), Duration::from_millis(100));
        assert_eq!(at_rate(8, 1_000).duration(), Duration::from_millis(100));
        assert_eq!(at_rate(8, 4_000).duration(), Duration::from_millis(32));
        assert_eq!(at_rate(64, 51_200).duration(), Duration::from_millis(20));
        assert_eq!(at_rate(8, 1_000_000).duration(), Duration::from_millis(5));
    }

    #[test]
    fn a_slow_log_doubles_it_up_to_500_ms_and_a_quick_one_takes_that_back() {
        let mut linger = at_rate(8, 1_000_000);

        linger.handle_slow_log();
        linger.handle_slow_log();
        assert_eq!(linger.duration(), Duration::from_millis(20));
        (0..100).for_each(|_| linger.handle_slow_log());
        assert_eq!(linger.duration(), LINGER_SLOW_MAX);
        (0..7).for_each(|_| linger.handle_quick_log());

        assert_eq!(linger.duration(), LINGER_MIN);
    }

    #[test]
    fn a_clock_that_is_set_back_begins_a_new_window() {
        let mut linger = at_rate(8, 4_000);

        linger.handle_timeout(Time(-3_600_000));
        linger.handle_fixes(4_000);
        linger.handle_timeout(Time(-3_599_000));

        assert_eq!(linger.duration(), Duration::from_millis(32));
    }
}
