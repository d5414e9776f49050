//! From a prediction to the ETA that is told: the number shown follows smoothly while the interval covers the news and
//! jumps when it does not (`maps::eta`), and the interval moves with it.

use maps::eta::{Basis, Eta as Prediction, ShownEta};
use protocol::Time;
use protocol::update::{Eta, EtaBasis};

/// The ETA to show after `before`, for a prediction made now.
pub fn follow(shown: &mut ShownEta, before: Option<&Eta>, prediction: &Prediction, stop: u8, now: Time) -> Eta {
    let basis = match prediction.basis {
        Basis::Road => EtaBasis::Road,
        Basis::StraightLine => EtaBasis::StraightLine,
    };
    if before.is_none_or(|before| before.stop != stop || before.basis != basis) {
        shown.reset();
    }
    let arrival = shown.handle_eta(prediction, now);
    // The interval is the prediction's, around the number shown.
    let at = |ms: u32| {
        let from_middle_ms = i64::from(ms) - i64::from(prediction.p50_ms);
        Time(arrival.0.saturating_add(from_middle_ms))
    };
    let p10 = at(prediction.p10_ms).max(now).min(arrival);
    Eta { arrival, p10, p90: at(prediction.p90_ms), basis, stop }
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

const NEWS_MS: i64 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn prediction(p50_ms: u32, basis: Basis) -> Prediction {
        Prediction { p10_ms: p50_ms / 3 * 2, p50_ms, p90_ms: p50_ms / 2 * 3, basis }
    }

    #[test]
    fn the_shown_number_follows_smoothly_and_jumps_for_another_stop_or_basis() {
        let now = Time(1_000_000);
        let mut shown = ShownEta::default();
        let first = follow(&mut shown, None, &prediction(600_000, Basis::Road), 1, now);
        assert_eq!(first.arrival, Time(1_600_000));

        let smooth = follow(&mut shown.clone(), Some(&first), &prediction(700_000, Basis::Road), 1, now);
        let other_stop = follow(&mut shown.clone(), Some(&first), &prediction(700_000, Basis::Road), 2, now);
        let other_basis = follow(&mut shown, Some(&first), &prediction(700_000, Basis::StraightLine), 1, now);

        assert_eq!(smooth.arrival, Time(1_630_000));
        assert_eq!(other_stop.arrival, Time(1_700_000));
        assert_eq!((other_basis.arrival, other_basis.basis), (Time(1_700_000), EtaBasis::StraightLine));
    }

    #[test]
    fn the_interval_holds_the_number_shown_and_nothing_before_now() {
        for p50_ms in [0, 10, 60_000, 3_600_000, u32::MAX / 2] {
            let eta = follow(&mut ShownEta::default(), None, &prediction(p50_ms, Basis::Road), 0, Time(5));
            assert!(Time(5) <= eta.p10 && eta.p10 <= eta.arrival && eta.arrival <= eta.p90, "{p50_ms}");
        }
    }
}
