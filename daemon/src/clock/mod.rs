//! Where time comes from. Everything else is handed the time; only shells hold a clock.
//!
//! The wall clock is the time since the machine started, which runs through sleep and which nobody can set, and an offset
//! that changes when somebody sets the wall clock. The process believes one offset, moved by one watcher (`watch.rs`), so
//! all its parts see a step at the same moment and can be told of it. Wall time only stamps; shells wait by the time
//! since the start.
//!
//! A scaled clock lets a test run server and phones together faster than life: both are given the same origin and factor
//! and so agree.

mod wall;
mod watch;

use std::time::Duration;

pub use watch::ClockWatch;
use watch::WALL;

/// Milliseconds since the Unix epoch, by the system's clock or a scaled one.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Clock {
    scale: Option<Scale>,
}

/// From `origin_ms` of real time on, time runs `factor` times as fast.
#[derive(Clone, Copy, PartialEq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    pub factor: f64,
    pub origin_ms: i64,
}

#[derive(Debug, thiserror::Error, PartialEq)]
#[error("a clock runs 1 to {FACTOR_MAX} times as fast as life, not {0}")]
pub struct FactorError(pub f64);

/// One look at a clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reading {
    pub now_ms: i64,
    pub monotonic_ms: i64,
}

impl Reading {
    /// What the wall clock shows beyond the time since the machine started. It changes when the wall clock is set.
    pub fn offset_ms(self) -> i64 {
        self.now_ms.saturating_sub(self.monotonic_ms)
    }
}

/// Notices that a clock was set between two looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StepSeen {
    offset_ms: i64,
}

impl StepSeen {
    pub fn since(reading: Reading) -> StepSeen {
        StepSeen { offset_ms: reading.offset_ms() }
    }

    /// By how much the clock was set since the last look, if it was.
    pub fn look(&mut self, reading: Reading) -> Option<i64> {
        let before_ms = std::mem::replace(&mut self.offset_ms, reading.offset_ms());
        let by_ms = self.offset_ms.saturating_sub(before_ms);
        (by_ms.saturating_abs() > wall::STEP_MS).then_some(by_ms)
    }
}

impl Clock {
    pub fn system() -> Self {
        Clock { scale: None }
    }

    pub fn scaled(scale: Scale) -> Result<Self, FactorError> {
        if !(1.0..=FACTOR_MAX).contains(&scale.factor) {
            return Err(FactorError(scale.factor));
        }
        Ok(Clock { scale: Some(scale) })
    }

    pub fn is_scaled(&self) -> bool {
        self.scale.is_some()
    }

    /// Wall time: for stamps, and for what is compared with stamps.
    pub fn now_ms(&self) -> i64 {
        self.reading().now_ms
    }

    /// Time since the machine started: never set, and it runs through sleep.
    pub fn monotonic_ms(&self) -> i64 {
        self.reading().monotonic_ms
    }

    /// Both at once.
    pub fn reading(&self) -> Reading {
        let (since_start_ms, offset_ms) = (watch::since_start_ms(), WALL.offset_ms());
        let monotonic_ms = match self.scale {
            None => since_start_ms,
            Some(scale) => (since_start_ms as f64 * scale.factor) as i64,
        };
        Reading { now_ms: self.shown(since_start_ms.saturating_add(offset_ms)), monotonic_ms }
    }

    /// Wall time for what is kept for so long: after the clock was set forward it goes on as before for a day, so that
    /// nothing expires because of it. What is stamped with `now_ms` is compared with this.
    pub fn kept_ms(&self) -> i64 {
        self.shown(watch::since_start_ms().saturating_add(WALL.least_ms()))
    }

    /// What it would show if it had not been set, for each time that it was set within the last day.
    pub fn unset_ms(&self) -> Vec<i64> {
        let since_start_ms = watch::since_start_ms();
        WALL.past_ms().into_iter().map(|offset_ms| self.shown(since_start_ms.saturating_add(offset_ms))).collect()
    }

    /// Which start of which machine `monotonic_ms` is counted from.
    pub fn boot(&self) -> u64 {
        WALL.boot()
    }

    /// Changes whenever the clock was set.
    pub fn stepped(&self) -> tokio::sync::watch::Receiver<u64> {
        WALL.steps()
    }

    fn shown(&self, real_ms: i64) -> i64 {
        match self.scale {
            None => real_ms,
            Some(scale) => {
                let passed_ms = real_ms.saturating_sub(scale.origin_ms).max(0) as f64;
                scale.origin_ms.saturating_add((passed_ms * scale.factor) as i64)
            }
        }
    }

    /// How long to really wait for `duration` of this clock to pass.
    pub fn real(&self, duration: Duration) -> Duration {
        match self.scale {
            None => duration,
            Some(scale) => duration.div_f64(scale.factor),
        }
    }

    /// Waits by the time since the start. A long wait is made of pieces, because timers stand still while the machine
    /// sleeps. Cancellation safe.
    pub async fn sleep(&self, duration: Duration) {
        let mut left = self.real(duration);
        while !left.is_zero() {
            let piece = left.min(PIECE);
            let before_ms = watch::since_start_ms();
            tokio::time::sleep(piece).await;
            let passed_ms = watch::since_start_ms().saturating_sub(before_ms).max(0) as u64;
            left = left.saturating_sub(piece.max(Duration::from_millis(passed_ms)));
        }
    }

    /// Returns once `monotonic_ms` is at `at_ms` or later. Cancellation safe.
    pub async fn sleep_until_monotonic_ms(&self, at_ms: i64) {
        loop {
            let left_ms = at_ms.saturating_sub(self.monotonic_ms());
            if left_ms <= 0 {
                return;
            }
            self.sleep(Duration::from_millis(left_ms as u64)).await;
        }
    }
}

const FACTOR_MAX: f64 = 1000.0;
/// By so much a wait may be late after the machine slept.
const PIECE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_scaled_clocks_of_one_origin_agree_and_run_faster() {
        let real_now_ms = || Clock::system().now_ms();
        let scale = Scale { factor: 100.0, origin_ms: real_now_ms() - 1000 };
        let (a, b) = (Clock::scaled(scale).unwrap(), Clock::scaled(scale).unwrap());

        let ahead_ms = a.now_ms() - real_now_ms();

        assert!(ahead_ms >= 99_000, "{ahead_ms}");
        assert!((a.now_ms() - b.now_ms()).abs() < 60_000);
        assert_eq!(a.real(Duration::from_secs(100)), Duration::from_secs(1));
    }

    #[test]
    fn a_clock_that_stands_or_runs_wild_is_refused() {
        for factor in [0.0, -1.0, 0.5, f64::NAN, f64::INFINITY, 1001.0] {
            assert!(Clock::scaled(Scale { factor, origin_ms: 0 }).is_err(), "{factor}");
        }
    }

    #[test]
    fn a_scaled_clock_that_was_not_set_looks_so() {
        let scale = Scale { factor: 60.0, origin_ms: Clock::system().now_ms() - 3_600_000 };
        for clock in [Clock::system(), Clock::scaled(scale).unwrap()] {
            let mut seen = StepSeen::since(clock.reading());

            let reading = clock.reading();

            assert_eq!(seen.look(reading), None);
            let ahead = Reading { now_ms: reading.now_ms + 2_000, ..reading };
            let by_ms = seen.look(ahead).expect("it was set");
            assert!((1_990..=2_010).contains(&by_ms), "{by_ms}");
        }
    }

    #[test]
    fn what_is_shown_is_what_the_system_shows() {
        let wall = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;

        let (before, shown, after) = (wall(), Clock::system().now_ms(), wall());

        assert!(before - 1_000 <= shown && shown <= after + 1_000, "{before} {shown} {after}");
        assert!(Clock::system().kept_ms() <= Clock::system().now_ms());
    }
}
