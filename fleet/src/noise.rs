//! A phone's receiver: what it measures of where it truly is. Its error wanders slowly, as real ones do, so that fixes
//! close in time are wrong together; now and then a fix lies far off, and now and then there is none.

use protocol::fix::heading_255;
use protocol::{Fix, MeasuredTime, Time};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::drive::{Place, normal};

/// How good a receiver is.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Quality {
    /// Root mean square distance from the truth.
    pub error_m: f64,
    /// After this long the error has mostly forgotten what it was.
    pub wander_s: f64,
    /// The share of fixes that lie far off.
    pub outlier_share: f64,
    pub gaps_per_hour: f64,
    pub gap_s_max: f64,
}

impl Default for Quality {
    fn default() -> Self {
        Quality { error_m: 5.0, wander_s: 20.0, outlier_share: 0.002, gaps_per_hour: 3.0, gap_s_max: 40.0 }
    }
}

impl Quality {
    pub const PERFECT: Quality =
        Quality { error_m: 0.0, wander_s: 1.0, outlier_share: 0.0, gaps_per_hour: 0.0, gap_s_max: 0.0 };
}

/// One phone's receiver.
#[derive(Debug)]
pub struct Receiver {
    quality: Quality,
    rng: SmallRng,
    east_m: f64,
    north_m: f64,
    last: Option<Time>,
    silent_until: Time,
}

impl Receiver {
    pub fn new(quality: Quality, seed: u64) -> Self {
        Receiver {
            quality,
            rng: SmallRng::seed_from_u64(seed),
            east_m: 0.0,
            north_m: 0.0,
            last: None,
            silent_until: Time(i64::MIN),
        }
    }

    /// None in a gap.
    pub fn measure(&mut self, truth: &Place, at: MeasuredTime) -> Option<Fix> {
        let now = at.to_time();
        let passed_s = self.last.map_or(f64::INFINITY, |last| now.since(last).as_secs_f64());
        self.wander(passed_s);
        self.last = Some(now);
        if now < self.silent_until {
            return None;
        }
        let gaps = (self.quality.gaps_per_hour / 3600.0 * passed_s.min(60.0)).clamp(0.0, 1.0);
        if self.rng.random_bool(gaps) {
            let gap_ms = self.rng.random_range(0.0..=self.quality.gap_s_max) * 1000.0;
            self.silent_until = Time(now.0 + gap_ms as i64);
            return None;
        }
        Some(self.fix(truth, at))
    }

    fn fix(&mut self, truth: &Place, at: MeasuredTime) -> Fix {
        let (mut east_m, mut north_m) = (self.east_m, self.north_m);
        let mut accuracy_m = (self.quality.error_m * self.rng.random_range(0.9..1.5)).max(1.0);
        if self.rng.random_bool(self.quality.outlier_share.clamp(0.0, 1.0)) {
            let (far_m, way) = (self.rng.random_range(50.0..250.0), self.rng.random_range(0.0..std::f64::consts::TAU));
            (east_m, north_m) = (east_m + far_m * way.cos(), north_m + far_m * way.sin());
            // Every second one does not know that it is wrong.
            if self.rng.random_bool(0.5) {
                accuracy_m = far_m;
            }
        }
        let plane = maps::geo::Plane::at(truth.position);
        let is_moving = truth.speed_m_s > 1.0;
        let heading = truth.heading_degrees + 5.0 * self.normal();
        let speed_m_s = (truth.speed_m_s + 0.3 * self.normal()).max(0.0);
        Fix {
            speed_dm_s: Some(if is_moving { (speed_m_s * 10.0).round() as u16 } else { 0 }),
            heading_255: is_moving.then(|| heading_255(heading)),
            accuracy_m: Some(accuracy_m.round().clamp(1.0, 255.0) as u8),
            ..Fix::at(at, plane.to_position((east_m * 100.0, north_m * 100.0)))
        }
    }

    fn wander(&mut self, passed_s: f64) {
        let kept = (-passed_s / self.quality.wander_s.max(0.001)).exp();
        let fresh = self.quality.error_m / std::f64::consts::SQRT_2 * (1.0 - kept * kept).sqrt();
        self.east_m = self.east_m * kept + fresh * self.normal();
        self.north_m = self.north_m * kept + fresh * self.normal();
    }

    fn normal(&mut self) -> f64 {
        normal(self.rng.random(), self.rng.random())
    }
}

#[cfg(test)]
mod tests {
    use maps::geo;
    use protocol::Position;

    use super::*;

    #[test]
    fn errors_are_as_large_as_asked_for_and_wander_slowly() {
        let steady = Quality { outlier_share: 0.0, gaps_per_hour: 0.0, ..Quality::default() };
        let mut receiver = Receiver::new(steady, 3);

        let fixes: Vec<Fix> = (0..40_000).map(|s| receiver.measure(&place(), second(s)).unwrap()).collect();

        let offs: Vec<f64> = fixes.iter().map(off_m).collect();
        let rms = |values: &[f64]| (values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64).sqrt();
        let steps: Vec<f64> =
            fixes.windows(2).map(|two| geo::distance_cm(two[0].position, two[1].position) / 100.0).collect();
        assert!((rms(&offs) - 5.0).abs() < 0.5, "{}", rms(&offs));
        // With an error that forgets itself over 20 s a step of one second is √(2(1 − e^(−1/20))) of it.
        assert!((rms(&steps) - 1.56).abs() < 0.2, "{}", rms(&steps));
    }

    #[test]
    fn some_fixes_lie_far_off_and_some_are_missing() {
        let quality = Quality { outlier_share: 0.01, gaps_per_hour: 10.0, gap_s_max: 30.0, ..Quality::default() };
        let mut receiver = Receiver::new(quality, 3);

        let fixes: Vec<Option<Fix>> = (0..36_000).map(|s| receiver.measure(&place(), second(s))).collect();

        let far = fixes.iter().flatten().filter(|fix| off_m(fix) > 40.0).count();
        let missing = fixes.iter().filter(|fix| fix.is_none()).count();
        assert!((250..450).contains(&far), "{far}");
        // Ten hours with ten gaps each, of 15 s on average.
        assert!((900..2200).contains(&missing), "{missing}");
    }

    #[test]
    fn a_perfect_receiver_says_what_is() {
        let fix = Receiver::new(Quality::PERFECT, 3).measure(&place(), second(7)).unwrap();

        assert_eq!((fix.position, fix.measured), (place().position, second(7)));
    }

    #[test]
    fn the_same_seed_measures_the_same() {
        let all = |seed| {
            let mut receiver = Receiver::new(Quality::default(), seed);
            (0..500).map(|s| receiver.measure(&place(), second(s))).collect::<Vec<_>>()
        };

        assert_eq!(all(4), all(4));
        assert_ne!(all(4), all(5));
    }

    fn place() -> Place {
        let position = Position { lat_e7: 411_500_000, lon_e7: -86_100_000 };
        Place { position, heading_degrees: 90.0, speed_m_s: 8.0 }
    }

    fn second(s: i64) -> MeasuredTime {
        MeasuredTime(17_000_000_000 + s * 10)
    }

    fn off_m(fix: &Fix) -> f64 {
        geo::distance_cm(fix.position, place().position) / 100.0
    }
}
