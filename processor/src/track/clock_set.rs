//! The wall clock was set. The times that a tracker keeps are moved by as much, so that it goes on as if nothing had been:
//! nobody becomes silent, is forgotten or has been at a stop for hours because of it, and nobody waits for a time that
//! lies hours ahead.

use protocol::{MeasuredTime, Time};

/// How far times are to be moved, and what time it is then. Where it is not known how far, by nothing; then only what
/// lies in the future is brought back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ClockSet {
    pub by_ms: i64,
    pub now: Time,
}

impl ClockSet {
    /// When something happened: never later than now.
    pub(crate) fn stamp(self, time: &mut Time) {
        *time = Time(time.0.saturating_add(self.by_ms)).min(self.now);
    }

    /// When something is to happen.
    pub(crate) fn due(self, time: &mut Time) {
        *time = Time(time.0.saturating_add(self.by_ms));
    }

    /// A time in the fold's reckoning that stands in the form of a phone's.
    pub(crate) fn stamp_measured(self, time: &mut MeasuredTime) {
        let moved = MeasuredTime(time.0.saturating_add(self.by_ms.div_euclid(100)));
        *time = moved.min(MeasuredTime::from_time(self.now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_moved_and_never_lie_in_the_future_and_nothing_overflows() {
        let moved = |by_ms, time| {
            let mut time = Time(time);
            ClockSet { by_ms, now: Time(10_000) }.stamp(&mut time);
            time.0
        };
        assert_eq!((moved(-2_000, 9_000), moved(5_000, 9_000), moved(0, 90_000)), (7_000, 10_000, 10_000));

        for by_ms in [i64::MIN, -1, 0, 1, i64::MAX] {
            let set = ClockSet { by_ms, now: Time(0) };
            for mut time in [Time(i64::MIN), Time(0), Time(i64::MAX)] {
                set.due(&mut time);
                set.stamp(&mut time);
                assert!(time <= Time(0));
            }
            let mut measured = MeasuredTime(i64::MAX);
            set.stamp_measured(&mut measured);
            assert!(measured <= MeasuredTime(0));
        }
    }
}
