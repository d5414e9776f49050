//! Where time comes from. Everything else is handed the time; only shells hold a clock. A scaled clock lets a test run
//! server and phones together faster than life: both are given the same origin and factor and so agree.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

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

    pub fn now_ms(&self) -> i64 {
        let real_ms = real_now_ms();
        match self.scale {
            None => real_ms,
            Some(scale) => {
                let passed_ms = (real_ms - scale.origin_ms).max(0) as f64;
                scale.origin_ms + (passed_ms * scale.factor) as i64
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

    /// Cancellation safe.
    pub async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(self.real(duration)).await;
    }

    /// Returns when this clock shows `at_ms` or later. Cancellation safe.
    pub async fn sleep_until_ms(&self, at_ms: i64) {
        loop {
            let left_ms = at_ms - self.now_ms();
            if left_ms <= 0 {
                return;
            }
            self.sleep(Duration::from_millis(left_ms as u64)).await;
        }
    }
}

fn real_now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

const FACTOR_MAX: f64 = 1000.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_scaled_clocks_of_one_origin_agree_and_run_faster() {
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
}
