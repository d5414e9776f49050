//! When the stop ahead is reached: an estimate with its interval, and the number shown, which follows smoothly while
//! the interval covers the news and jumps when it does not.

use protocol::Time;
use protocol::update::{Eta, EtaBasis};

/// How long it still takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Estimate {
    pub p10_ms: i64,
    pub p50_ms: i64,
    pub p90_ms: i64,
    pub basis: EtaBasis,
}

impl Estimate {
    /// From the planned way's own remaining time.
    pub fn on_road(remaining_ms: u32) -> Estimate {
        Estimate::spread(i64::from(remaining_ms), ROAD_SPREAD, EtaBasis::Road)
    }

    /// From the straight distance alone, where there is no map.
    pub fn straight(distance_m: u32) -> Estimate {
        let remaining_ms = i64::from(distance_m) * 1000 * 36 / (STRAIGHT_KM_H * 10);
        Estimate::spread(remaining_ms, STRAIGHT_SPREAD, EtaBasis::StraightLine)
    }

    fn spread(p50_ms: i64, (below_percent, above_percent): (i64, i64), basis: EtaBasis) -> Estimate {
        Estimate {
            p10_ms: (p50_ms * below_percent / 100).min(p50_ms - SPREAD_MS_MIN).max(0),
            p50_ms,
            p90_ms: (p50_ms * above_percent / 100).max(p50_ms + SPREAD_MS_MIN),
            basis,
        }
    }

    /// The number to show after `shown`, counted from `now`.
    pub fn follow(&self, shown: Option<&Eta>, stop: u8, now: Time) -> Eta {
        let at = |ms: i64| Time(now.0.saturating_add(ms));
        let fresh = at(self.p50_ms);
        let is_covered =
            |shown: &&Eta| shown.stop == stop && shown.basis == self.basis && (shown.p10..=shown.p90).contains(&fresh);
        let arrival = match shown.filter(is_covered) {
            Some(shown) => Time(shown.arrival.0 + fresh.millis_since(shown.arrival) * SMOOTHING_PERCENT / 100),
            None => fresh,
        };
        let shift_ms = arrival.millis_since(fresh);
        Eta {
            arrival,
            p10: at(self.p10_ms + shift_ms).max(now.min(arrival)),
            p90: at(self.p90_ms + shift_ms),
            basis: self.basis,
            stop,
        }
    }
}

/// Whether a reader would notice the difference.
pub fn is_news(told: Option<&Eta>, eta: &Eta) -> bool {
    told.is_none_or(|told| {
        told.stop != eta.stop
            || told.basis != eta.basis
            || told.arrival.millis_since(eta.arrival).abs() >= NEWS_MS
            || told.p90.millis_since(eta.p90).abs() >= 3 * NEWS_MS
    })
}

/// The share of news that the shown number takes at once.
const SMOOTHING_PERCENT: i64 = 30;
const NEWS_MS: i64 = 10_000;
/// A straight line at this speed was off by 45.6 % on real taxi trips in Porto.
const STRAIGHT_KM_H: i64 = 30;
/// Shares of p50 at p10 and p90, before anything is learned.
const ROAD_SPREAD: (i64, i64) = (75, 145);
const STRAIGHT_SPREAD: (i64, i64) = (55, 180);
/// No arrival is known better than this.
const SPREAD_MS_MIN: i64 = 20_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shown_number_follows_smoothly_and_jumps_when_the_interval_does_not_cover_the_news() {
        let now = Time(1_000_000);
        let shown = Estimate::on_road(600_000).follow(None, 1, now);
        assert_eq!(shown.arrival, Time(1_600_000));

        let smooth = Estimate::on_road(700_000).follow(Some(&shown), 1, now);
        let jump = Estimate::on_road(1_500_000).follow(Some(&shown), 1, now);
        let other_stop = Estimate::on_road(700_000).follow(Some(&shown), 2, now);

        assert_eq!(smooth.arrival, Time(1_630_000));
        assert_eq!(jump.arrival, Time(2_500_000));
        assert_eq!(other_stop.arrival, Time(1_700_000));
    }

    #[test]
    fn the_interval_holds_the_number_and_a_straight_line_is_said_as_such() {
        for distance_m in [0, 10, 1_000, 100_000, u32::MAX] {
            let eta = Estimate::straight(distance_m).follow(None, 0, Time(5));
            assert!(eta.p10 <= eta.arrival && eta.arrival < eta.p90);
            assert_eq!(eta.basis, EtaBasis::StraightLine);
        }
        assert_eq!(Estimate::straight(3_000).p50_ms, 360_000);
    }
}
