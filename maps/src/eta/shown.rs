//! The number people see. Predictions jitter from fix to fix; what is shown moves three tenths of the way each time, in
//! terms of the moment of arrival, so that mere passing of time changes nothing. A jump that the interval does not cover
//! is real: then the number follows at once.

use protocol::Time;
use wincode::{SchemaRead, SchemaWrite};

use super::Eta;

/// The arrival that is shown for one stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, SchemaWrite, SchemaRead)]
pub struct ShownEta {
    arrival: Option<Time>,
}

impl ShownEta {
    /// The clock was set: he arrives in as many minutes as before.
    pub fn handle_clock_set(&mut self, by_ms: i64) {
        self.arrival.iter_mut().for_each(|arrival| arrival.0 = arrival.0.saturating_add(by_ms));
    }

    /// Takes a new prediction and answers when arrival is shown to be.
    pub fn handle_eta(&mut self, eta: &Eta, now: Time) -> Time {
        let at = |ms: u32| Time(now.0.saturating_add(i64::from(ms)));
        let predicted = at(eta.p50_ms);
        let shown = match self.arrival {
            Some(shown) if shown >= at(eta.p10_ms) && shown <= at(eta.p90_ms) => {
                let apart_ms = predicted.millis_since(shown);
                Time(shown.0.saturating_add(apart_ms * SMOOTHING_TENTHS / 10))
            }
            Some(_) | None => predicted,
        };
        self.arrival = Some(shown);
        shown
    }

    /// What is shown, if anything was predicted yet.
    pub fn arrival(&self) -> Option<Time> {
        self.arrival
    }

    /// Another stop, another route: what was shown means nothing any more.
    pub fn reset(&mut self) {
        self.arrival = None;
    }
}

const SMOOTHING_TENTHS: i64 = 3;
