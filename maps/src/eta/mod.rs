//! When a driver will be there. The remaining edges are walked forward under the speeds of the hours in which they will
//! be driven, changed by what today is like; what that systematically gets wrong is corrected by a few weights, refitted
//! over the trips that have finished; and how far to trust it is read off the errors of those trips (conformal
//! prediction). No trip is corrected by its own errors: that made things worse.
//!
//! **Invariant:** a prediction at a time uses only trips that finished before it.

mod learner;
mod shown;

use std::ops::Range;

use protocol::{Position, Time};
use wincode::{SchemaRead, SchemaWrite};

use crate::class::Profile;
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

impl Speeds<'_> {
    /// Seconds that a profile needs for so much of an edge at a time. Who drives in the traffic is no faster than it;
    /// who goes beside it does not care.
    pub fn seconds(&self, graph: &Graph, profile: Profile, edge: EdgeId, length_cm: u32, then: Time) -> f64 {
        of_profile(graph, profile, edge, length_cm, || {
            let usual_s = self.usual.seconds(graph, edge, length_cm, hour_of_week(then));
            usual_s * self.live.map_or(1.0, |live| live.factor(graph, edge, then))
        })
    }
}

/// What a profile needs where a car needs so long.
pub(crate) fn of_profile(
    graph: &Graph,
    profile: Profile,
    edge: EdgeId,
    length_cm: u32,
    car_s: impl FnOnce() -> f64,
) -> f64 {
    let own_s = || f64::from(length_cm) / f64::from(graph.speed_cm_s(edge, profile));
    match profile {
        Profile::Car => car_s(),
        Profile::Moped if graph.allows(edge, Profile::Car) => car_s().max(own_s()),
        Profile::Moped | Profile::Bicycle | Profile::Foot => own_s(),
    }
}

/// Goes forward from a place on the first edge to a place on the last, along each at the speed of the moment when it is
/// reached. Hands out how much of every edge that is, and its seconds. None if an edge is not this graph's.
pub fn walk(
    graph: &Graph,
    speeds: Speeds<'_>,
    profile: Profile,
    edges: &[EdgeId],
    part_cm: Range<u32>,
    now: Time,
    mut each: impl FnMut(u32, f64),
) -> Option<()> {
    if edges.iter().any(|e| e.index() >= graph.edge_count()) {
        return None;
    }
    let mut walked_s = 0.0;
    for (i, edge) in edges.iter().enumerate() {
        let begin_cm = if i == 0 { part_cm.start } else { 0 };
        let end_cm = if i + 1 == edges.len() { part_cm.end } else { u32::MAX };
        let length_cm = end_cm.min(graph.length_cm(*edge)).saturating_sub(begin_cm);
        let then = Time(now.0.saturating_add((walked_s * 1000.0) as i64));
        let seconds = speeds.seconds(graph, profile, *edge, length_cm, then);
        walked_s += seconds;
        each(length_cm, seconds);
    }
    Some(())
}

/// What lies ahead of a car between a place on the first edge and a place on the last.
pub fn ahead(
    graph: &Graph,
    speeds: Speeds<'_>,
    edges: &[EdgeId],
    from_cm: u32,
    to_cm: u32,
    now: Time,
) -> Option<Ahead> {
    let (first, last) = (*edges.first()?, *edges.last()?);
    let mut ahead = Ahead { seconds: 0.0, length_m: 0.0, straight_m: 0.0, turns: 0 };
    walk(graph, speeds, Profile::Car, edges, from_cm..to_cm, now, |length_cm, seconds| {
        ahead.seconds += seconds;
        ahead.length_m += f64::from(length_cm) / 100.0;
    })?;
    for pair in edges.windows(2) {
        let (_, before) = graph.place_at(pair[0], u32::MAX);
        let (_, after) = graph.place_at(pair[1], 0);
        ahead.turns += u32::from(geo::turn_cdeg(before, after) > TURN_CDEG);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prediction_knows_nothing_of_trips_that_finished_later() {
        let mut random = 7u64;
        let mut trip = |i: i64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let seconds = 200.0 + (random >> 40) as f64 / 20_000.0;
            let asked = Time::from_secs(i * 30);
            let took_s = (seconds * (1.0 + (random >> 60) as f64 / 20.0)) as i64;
            FinishedTrip {
                ahead: Ahead { seconds, length_m: seconds * 8.0, straight_m: seconds * 6.0, turns: 9 },
                asked,
                finished: Time(asked.0 + took_s * 1000),
                predicted_ms: (seconds * 1100.0) as u32,
            }
        };
        let trips: Vec<FinishedTrip> = (0..400).map(&mut trip).collect();
        let ahead = trips[0].ahead;
        let mut told_all = EtaLearner::default();
        trips.iter().for_each(|t| told_all.handle_finished(*t));

        for now in (0..200).map(|i| Time::from_secs(i * 60)) {
            let mut told_past = EtaLearner::default();
            // All tables on the way, as they were asked for.
            for then in (0..=now.as_secs() / 60).map(|i| Time::from_secs(i * 60)) {
                trips
                    .iter()
                    .filter(|t| t.finished < then && t.finished >= Time(then.0 - 60_000))
                    .for_each(|t| told_past.handle_finished(*t));
                told_past.table(then);
            }
            assert_eq!(told_all.predict(&ahead, now), told_past.predict(&ahead, now), "at {now}");
        }
        assert_ne!(told_all.predict(&ahead, Time::from_secs(20_000)), EtaLearner::default().predict(&ahead, Time(0)));
    }

    #[test]
    fn the_interval_covers_what_it_promises_once_it_has_learned() {
        let mut learner = EtaLearner::default();
        let mut state = 1u64;
        let mut share = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1u64 << 53) as f64
        };
        let (mut covered, mut asked_count) = (0, 0);
        for i in 0..2_000i64 {
            let seconds = 300.0 + 900.0 * share();
            let ahead = Ahead { seconds, length_m: seconds * 8.0, straight_m: seconds * 6.0, turns: 9 };
            let asked = Time::from_secs(i * 60);
            let eta = learner.predict(&ahead, asked);
            // Half as slow again, and a spread that nobody can foresee.
            let took_ms = seconds * 1500.0 * (0.7 + 0.6 * share());
            learner.handle_finished(FinishedTrip {
                ahead,
                asked,
                finished: Time(asked.0 + took_ms as i64),
                predicted_ms: eta.p50_ms,
            });
            if i >= 1_000 {
                asked_count += 1;
                covered += u32::from((f64::from(eta.p10_ms)..=f64::from(eta.p90_ms)).contains(&took_ms));
            }
        }

        let covered = 100.0 * f64::from(covered) / f64::from(asked_count);
        assert!((76.0..=84.0).contains(&covered), "{covered} % covered");
    }

    #[test]
    fn stored_tables_come_back_and_broken_ones_are_refused() {
        let table = EtaTable::default();
        let bytes = table.to_bytes();

        assert_eq!(EtaTable::from_bytes(&bytes), Some(table.clone()));
        assert_eq!(EtaTable::from_bytes(&bytes[..bytes.len() - 1]), None);
        let broken = EtaTable { weights: [f64::NAN; WEIGHTS], ..table };
        assert_eq!(EtaTable::from_bytes(&broken.to_bytes()), None);
    }

    #[test]
    fn a_straight_line_says_that_it_is_one() {
        let from = Position { lat_e7: 411_000_000, lon_e7: -86_000_000 };
        let eta = straight_line(from, Position { lat_e7: 412_000_000, ..from });

        assert_eq!(eta.basis, Basis::StraightLine);
        assert!(eta.p10_ms < eta.p50_ms && eta.p50_ms < eta.p90_ms);
        assert!((1_900_000..2_100_000).contains(&eta.p50_ms), "11.1 km at 20 km/h: {eta:?}");
    }

    #[test]
    fn the_shown_arrival_moves_gently_and_jumps_only_beyond_the_interval() {
        let eta = |p50_ms: u32| Eta { p10_ms: p50_ms / 10 * 8, p50_ms, p90_ms: p50_ms / 10 * 13, basis: Basis::Road };
        let mut shown = ShownEta::default();

        let first = shown.handle_eta(&eta(600_000), Time(0));
        let small = shown.handle_eta(&eta(620_000), Time(0));
        let jump = shown.handle_eta(&eta(1_800_000), Time(0));

        assert_eq!((first, small, jump), (Time(600_000), Time(606_000), Time(1_800_000)));
    }
}
