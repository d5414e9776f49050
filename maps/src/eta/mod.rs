//! When a driver will be there. The remaining edges are walked forward under the speeds of the hours in which they will
//! be driven, changed by what today is like; what that systematically gets wrong is corrected by a few weights, refitted
//! over the trips that have finished; and how far to trust it is read off the errors of those trips (conformal
//! prediction). No trip is corrected by its own errors: that made things worse.
//!
//! **Invariant:** a prediction at a time uses only trips that finished before it.

mod learner;
mod shown;

use protocol::{Position, Time};
use wincode::{SchemaRead, SchemaWrite};

use crate::geo;
use crate::graph::{EdgeId, Graph};
use crate::speeds::{LiveFactors, SpeedTable, hour_of_week};
pub use learner::{EtaLearner, FinishedTrip};
pub use shown::ShownEta;

/// What a prediction rests on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, SchemaWrite, SchemaRead, serde::Serialize, serde::Deserialize)]
#[wincode(tag_encoding = "u8")]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// A route over roads.
    Road,
    /// The straight distance: there is no map here.
    StraightLine,
}

/// How long it will take: in one of ten cases less than p10, in one of ten more than p90.
#[derive(Clone, Copy, PartialEq, Eq, Debug, SchemaWrite, SchemaRead, serde::Serialize, serde::Deserialize)]
pub struct Eta {
    pub p10_ms: u32,
    pub p50_ms: u32,
    pub p90_ms: u32,
    pub basis: Basis,
}

/// What is known of the way ahead.
#[derive(Clone, Copy, PartialEq, Debug, SchemaWrite, SchemaRead)]
pub struct Ahead {
    /// By the speeds of the edges.
    pub seconds: f64,
    pub length_m: f64,
    pub straight_m: f64,
    /// Turns of more than 45 degrees.
    pub turns: u32,
}

/// The speeds to walk forward under.
#[derive(Clone, Copy, Debug)]
pub struct Speeds<'a> {
    pub usual: &'a SpeedTable,
    pub live: Option<&'a LiveFactors>,
}

/// Walks from a place on the first edge to a place on the last.
pub fn ahead(
    graph: &Graph,
    speeds: Speeds<'_>,
    edges: &[EdgeId],
    from_cm: u32,
    to_cm: u32,
    now: Time,
) -> Option<Ahead> {
    let (first, last) = (*edges.first()?, *edges.last()?);
    if edges.iter().any(|e| e.index() >= graph.edge_count()) {
        return None;
    }
    let mut ahead = Ahead { seconds: 0.0, length_m: 0.0, straight_m: 0.0, turns: 0 };
    for (i, edge) in edges.iter().enumerate() {
        let begin_cm = if i == 0 { from_cm } else { 0 };
        let end_cm = if i + 1 == edges.len() { to_cm } else { u32::MAX };
        let length_cm = end_cm.min(graph.length_cm(*edge)).saturating_sub(begin_cm);
        let then = Time(now.0.saturating_add((ahead.seconds * 1000.0) as i64));
        let usual_s = speeds.usual.seconds(graph, *edge, length_cm, hour_of_week(then));
        ahead.seconds += usual_s * speeds.live.map_or(1.0, |live| live.factor(graph, *edge, then));
        ahead.length_m += f64::from(length_cm) / 100.0;
        if let Some(next) = edges.get(i + 1) {
            let (_, before) = graph.place_at(*edge, u32::MAX);
            let (_, after) = graph.place_at(*next, 0);
            ahead.turns += u32::from(geo::turn_cdeg(before, after) > TURN_CDEG);
        }
    }
    ahead.straight_m = geo::distance_cm(graph.position_at(first, from_cm), graph.position_at(last, to_cm)) / 100.0;
    Some(ahead)
}

/// What was learned of the walk's errors; a blob like the speed table.
#[derive(Clone, PartialEq, Debug, SchemaWrite, SchemaRead)]
pub struct EtaTable {
    weights: [f64; WEIGHTS],
    /// Quantiles of ln(true ÷ predicted), for short, middling and long trips.
    spreads: [Spread; SPREADS],
}

#[derive(Clone, Copy, PartialEq, Debug, SchemaWrite, SchemaRead)]
struct Spread {
    low: f64,
    high: f64,
}

impl Default for EtaTable {
    /// Before anything is learned: city traffic takes half as long again as the empty road, more or less.
    fn default() -> Self {
        let spread = Spread { low: -0.45, high: 0.45 };
        EtaTable { weights: PRIOR, spreads: [spread; SPREADS] }
    }
}

impl EtaTable {
    /// The prediction for a way ahead.
    pub fn predict(&self, ahead: &Ahead) -> Eta {
        let middle_s = self.seconds(ahead);
        let spread = self.spreads[spread_of(middle_s)];
        let ms = |factor: f64| (middle_s * factor * 1000.0).clamp(0.0, f64::from(u32::MAX)) as u32;
        Eta {
            p10_ms: ms(libm::exp(spread.low)),
            p50_ms: ms(1.0),
            p90_ms: ms(libm::exp(spread.high)),
            basis: Basis::Road,
        }
    }

    fn seconds(&self, ahead: &Ahead) -> f64 {
        let log: f64 = self.weights.iter().zip(features(ahead)).map(|(w, x)| w * x).sum();
        // Very close there is nothing to correct: nearer than a minute the walk itself takes over.
        let near = (ahead.seconds / 60.0).clamp(0.0, 1.0);
        libm::exp(log.clamp(-3.0, 12.0)) * near + ahead.seconds * PRIOR_FACTOR * (1.0 - near)
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        wincode::serialize(self).unwrap_or_default() // memory is all that it writes to
    }

    /// Reads stored bytes; None if they are not such a table.
    pub fn from_bytes(bytes: &[u8]) -> Option<EtaTable> {
        let table: EtaTable = wincode::deserialize_exact(bytes).ok()?;
        let is_sound = table.weights.iter().all(|w| w.is_finite())
            && table.spreads.iter().all(|s| s.low.is_finite() && s.high.is_finite() && s.low <= 0.0 && s.high >= 0.0);
        is_sound.then_some(table)
    }
}

/// Where there is no map: the straight distance, and little trust.
pub fn straight_line(from: Position, to: Position) -> Eta {
    let metres = geo::distance_cm(from, to) / 100.0;
    let ms = |m_s: f64| (metres / m_s * 1000.0).clamp(0.0, f64::from(u32::MAX)) as u32;
    Eta {
        p10_ms: ms(2.0 * STRAIGHT_M_S),
        p50_ms: ms(STRAIGHT_M_S),
        p90_ms: ms(STRAIGHT_M_S / 2.0),
        basis: Basis::StraightLine,
    }
}

/// What the correction looks at.
fn features(ahead: &Ahead) -> [f64; WEIGHTS] {
    let seconds = ahead.seconds.max(1.0);
    let detour = ahead.length_m.max(1.0) / ahead.straight_m.max(1.0).max(ahead.length_m / 10.0);
    let km = (ahead.length_m / 1000.0).max(0.1);
    let speed = ahead.length_m.max(1.0) / seconds;
    [
        1.0,
        libm::log(seconds) - LOG_USUAL_S,
        libm::log(detour.max(1.0)),
        libm::log(1.0 + f64::from(ahead.turns) / km),
        libm::log(speed.clamp(0.5, 50.0)) - LOG_USUAL_M_S,
    ]
}

fn spread_of(seconds: f64) -> usize {
    match seconds {
        s if s < 420.0 => 0,
        s if s < 780.0 => 1,
        _ => 2,
    }
}

const WEIGHTS: usize = 5;
const SPREADS: usize = 3;
/// Logarithms of ten minutes and of 8 m/s: features are measured from a usual trip, so that weights shrink to something
/// sensible.
const LOG_USUAL_S: f64 = 6.396_929_655_216_146;
const LOG_USUAL_M_S: f64 = 2.079_441_541_679_835_8;
/// Half as long again as by the table: what waiting and manoeuvring adds before anything was learned.
const PRIOR_FACTOR: f64 = 1.2;
const PRIOR: [f64; WEIGHTS] = [LOG_USUAL_S + 0.182_321_556_793_954_6, 1.0, 0.0, 0.0, 0.0];
/// 20 km/h as the crow flies.
const STRAIGHT_M_S: f64 = 5.56;
const TURN_CDEG: u16 = 4_500;
