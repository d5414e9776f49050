//! When the driver arrives at the stop ahead: from a prediction to the ETA that is published. The number shown follows
//! smoothly while the interval covers a new prediction and jumps when it does not (`maps::eta`), and the interval moves
//! with it.

use maps::eta::{Eta as Prediction, ShownEta};
use protocol::Time;
use protocol::update::{Eta, EtaBasis, Event};

use super::{Pending, basis_of};
use crate::track::clock_set::ClockSet;
use crate::track::fields::{Plain, fields};

#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Arrival {
    shown: ShownEta,
    /// The smoothed ETA; `published` is the last one sent.
    smoothed: Option<Eta>,
    published: Option<Eta>,
    estimated: Time,
}

fields! {
    Arrival {
        1 shown: Plain = ShownEta::default(),
        2 smoothed: Plain = None,
        3 published: Plain = None,
        4 estimated: Plain = Time::default(),
    }
}

impl Arrival {
    pub(super) fn published(&self) -> Option<Eta> {
        self.published
    }

    /// The clock was set: he arrives in as many minutes as before.
    pub(super) fn handle_clock_set(&mut self, set: ClockSet) {
        for eta in self.smoothed.iter_mut().chain(&mut self.published) {
            [&mut eta.arrival, &mut eta.p10, &mut eta.p90].into_iter().for_each(|time| set.due(time));
        }
        self.shown.handle_clock_set(set.by_ms);
        set.stamp(&mut self.estimated);
    }

    /// There is no stop ahead any more.
    pub(super) fn end(&mut self, pending: &mut Pending) {
        self.smoothed = None;
        self.publish(None, pending);
    }

    pub(super) fn handle_arrived(&mut self, entered: Time, basis: EtaBasis, stop: u8, pending: &mut Pending) {
        let there = Eta { arrival: entered, p10: entered, p90: entered, basis, stop };
        self.smoothed = Some(there);
        self.publish(Some(there), pending);
    }

    /// `is_fresh`: the route is another than before, so nothing of the ETA before holds.
    pub(super) fn handle_prediction(
        &mut self,
        prediction: &Prediction,
        stop: u8,
        is_fresh: bool,
        now: Time,
        pending: &mut Pending,
    ) {
        self.estimated = now;
        let before = self.smoothed.as_ref().filter(|_| !is_fresh);
        let eta = follow(&mut self.shown, before, prediction, stop, now);
        self.smoothed = Some(eta);
        if is_fresh || is_news(self.published.as_ref(), &eta) {
            self.publish(Some(eta), pending);
        }
    }

    /// When the estimate has grown old; None while there is none that could.
    pub(super) fn due(&self) -> Option<Time> {
        let is_on_his_way = self.smoothed.is_some_and(|eta| eta.p10 < eta.p90);
        is_on_his_way.then(|| Time(self.estimated.0.saturating_add(ESTIMATE_MS)))
    }

    pub(super) fn is_due(&self, now: Time) -> bool {
        self.due().is_some_and(|due| now >= due)
    }

    fn publish(&mut self, eta: Option<Eta>, pending: &mut Pending) {
        if self.published != eta {
            self.published = eta;
            pending.eta = true;
            pending.events.push(Event::EtaChanged);
        }
    }
}

/// The ETA to show after `before`, for a prediction made now.
fn follow(shown: &mut ShownEta, before: Option<&Eta>, prediction: &Prediction, stop: u8, now: Time) -> Eta {
    let basis = basis_of(prediction);
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
fn is_news(published: Option<&Eta>, eta: &Eta) -> bool {
    published.is_none_or(|published| {
        published.stop != eta.stop
            || published.basis != eta.basis
            || published.arrival.millis_since(eta.arrival).abs() >= NEWS_MS
            || published.p90.millis_since(eta.p90).abs() >= 3 * NEWS_MS
    })
}

const NEWS_MS: i64 = 10_000;
/// An estimate is made anew when nothing was heard for so long.
const ESTIMATE_MS: i64 = 15_000;

#[cfg(test)]
mod tests {
    use maps::eta::Basis;

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
