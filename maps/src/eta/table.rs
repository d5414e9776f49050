//! What finished trips taught about the walk's errors: weights that correct it, and how wide its errors are. Both fade
//! over from what holds when somebody sets off to what holds when he is under way: setting off costs time that no road
//! does, and whoever has driven for a while has shown which way he takes.

use wincode::{SchemaRead, SchemaWrite};

use super::{Ahead, Basis, Eta};

/// A blob like the speed table.
#[derive(Clone, PartialEq, Debug, SchemaWrite, SchemaRead)]
pub struct EtaTable {
    pub(super) weights: [f64; WEIGHTS],
    /// Of the logarithm of how far off predictions are.
    pub(super) widths: [f64; WIDTHS],
    /// Quantiles of ln(true ÷ predicted) in such widths: setting off, and under way.
    pub(super) spreads: [Spread; STAGES],
}

#[derive(Clone, Copy, PartialEq, Debug, SchemaWrite, SchemaRead)]
pub(super) struct Spread {
    pub low: f64,
    pub high: f64,
}

impl Default for EtaTable {
    /// Before anything is learned, the speeds are the empty road's.
    fn default() -> Self {
        EtaTable { weights: UNTAUGHT, widths: WIDTHS_PRIOR, spreads: [SPREAD_PRIOR; STAGES] }
    }
}

impl EtaTable {
    /// The prediction for a way ahead.
    pub fn predict(&self, ahead: &Ahead) -> Eta {
        let middle_s = self.seconds(ahead);
        let (width, spread) = (self.width(ahead), self.spreads[stage(ahead)]);
        let ms = |log: f64| (middle_s * libm::exp(log) * 1000.0).clamp(0.0, f64::from(u32::MAX)) as u32;
        Eta {
            p10_ms: ms((spread.low * width).clamp(-LOG_OFF_MAX, 0.0)),
            p50_ms: ms(0.0),
            p90_ms: ms((spread.high * width).clamp(0.0, LOG_OFF_MAX)),
            basis: Basis::Road,
        }
    }

    fn seconds(&self, ahead: &Ahead) -> f64 {
        let corrected_s = libm::exp(dot(&self.weights, &features(ahead)).clamp(-3.0, 12.0));
        // Very close there is nothing to correct: nearer than a minute the walk itself takes over.
        let near = (ahead.seconds / NEAR_S).clamp(0.0, 1.0);
        corrected_s * near + ahead.seconds * NEAR_FACTOR * (1.0 - near)
    }

    /// How far off, as a logarithm, predictions for such ways usually are.
    pub(super) fn width(&self, ahead: &Ahead) -> f64 {
        width_of(dot(&self.widths, &width_features(ahead)))
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        wincode::serialize(self).unwrap_or_default() // memory is all that it writes to
    }

    /// Reads stored bytes; None if they are not such a table.
    pub fn from_bytes(bytes: &[u8]) -> Option<EtaTable> {
        let table: EtaTable = wincode::deserialize_exact(bytes).ok()?;
        let is_sound = table.weights.iter().chain(&table.widths).all(|w| w.is_finite())
            && table.spreads.iter().all(|s| s.low.is_finite() && s.high.is_finite() && s.low <= 0.0 && s.high >= 0.0);
        is_sound.then_some(table)
    }
}

/// What the correction looks at: the same five for who sets off and for who is under way.
pub(super) fn features(ahead: &Ahead) -> [f64; WEIGHTS] {
    let seconds = ahead.seconds.max(1.0);
    let detour = ahead.length_m.max(1.0) / ahead.straight_m.max(1.0).max(ahead.length_m / 10.0);
    let km = (ahead.length_m / 1000.0).max(0.1);
    let speed = ahead.length_m.max(1.0) / seconds;
    let way = [
        1.0,
        libm::log(seconds) - LOG_USUAL_S,
        libm::log(detour.max(1.0)),
        libm::log(1.0 + f64::from(ahead.turns) / km),
        libm::log(speed.clamp(0.5, 50.0)) - LOG_USUAL_M_S,
    ];
    let under_way = under_way(ahead);
    std::array::from_fn(|i| way[i % LOOKS] * if i < LOOKS { 1.0 - under_way } else { under_way })
}

/// What the width looks at. Short ways are predicted worse than long ones; and who is asked to go where he is may well
/// be driving round.
pub(super) fn width_features(ahead: &Ahead) -> [f64; WIDTHS] {
    let seconds = libm::log(ahead.seconds.max(1.0)) - LOG_USUAL_S;
    let under_way = under_way(ahead);
    [1.0, seconds, libm::exp(-ahead.straight_m.max(0.0) / ROUND_M), under_way, under_way * seconds]
}

/// From 0 for who sets off towards 1.
pub(super) fn under_way(ahead: &Ahead) -> f64 {
    let driven_m = ahead.driven_m.clamp(0.0, 1e7);
    driven_m / (driven_m + UNDER_WAY_M)
}

/// Which errors to go by.
pub(super) fn stage(ahead: &Ahead) -> usize {
    usize::from(under_way(ahead) > UNDER_WAY_MIN)
}

pub(super) fn width_of(log: f64) -> f64 {
    libm::exp(log.clamp(WIDTH_LOG_MIN, WIDTH_LOG_MAX))
}

pub(super) fn dot<const N: usize>(a: &[f64; N], b: &[f64; N]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

const LOOKS: usize = 5;
pub(super) const WEIGHTS: usize = 2 * LOOKS;
pub(super) const WIDTHS: usize = 5;
pub(super) const STAGES: usize = 2;
/// Logarithms of ten minutes and of 8 m/s: features are measured from a usual trip, so that weights shrink to something
/// sensible.
const LOG_USUAL_S: f64 = 6.396_929_655_216_146;
const LOG_USUAL_M_S: f64 = 2.079_441_541_679_835_8;
/// Over learned speeds: setting off costs a fifth (1.2), going on nothing.
pub(super) const PRIOR: [f64; WEIGHTS] =
    [LOG_USUAL_S + 0.182_321_556_793_954_6, 1.0, 0.0, 0.0, 0.0, LOG_USUAL_S, 1.0, 0.0, 0.0, 0.0];
/// Over the empty road: lights, corners and others cost some 40 % (1.4), all the way.
const UNTAUGHT: [f64; WEIGHTS] =
    [LOG_USUAL_S + UNTAUGHT_LOG, 1.0, 0.0, 0.0, 0.0, LOG_USUAL_S + UNTAUGHT_LOG, 1.0, 0.0, 0.0, 0.0];
const UNTAUGHT_LOG: f64 = 0.336_472_236_621_212_9;
/// Errors of a quarter (the logarithm of 0.25), wherever.
pub(super) const WIDTHS_PRIOR: [f64; WIDTHS] = [-1.386_294_361_119_890_6, 0.0, 0.0, 0.0, 0.0];
/// Where errors fall off as Laplace's, eight in ten are within 1.6 mean ones.
pub(super) const SPREAD_PRIOR: Spread = Spread { low: -1.6, high: 1.6 };
/// Half under way after so many metres.
const UNDER_WAY_M: f64 = 500.0;
const UNDER_WAY_MIN: f64 = 0.2;
/// Ends so much nearer than this belong to round trips.
const ROUND_M: f64 = 700.0;
const NEAR_S: f64 = 60.0;
const NEAR_FACTOR: f64 = 1.2;
/// Errors of 5 % and of e times are the least and the most that is believed.
const WIDTH_LOG_MIN: f64 = -3.0;
const WIDTH_LOG_MAX: f64 = 1.0;
const LOG_OFF_MAX: f64 = 2.0;
