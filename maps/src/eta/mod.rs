//! When a driver will be there. The remaining edges are walked forward under the speeds of the hours in which they will
//! be driven, changed by what today is like; what that systematically gets wrong is corrected by a few weights, refitted
//! over the trips that have finished; and how far to trust it is read off the errors of those trips (conformal
//! prediction). No trip is corrected by its own errors: that made things worse.
//!
//! **Invariant:** a prediction at a time uses only trips that finished before it.

mod learner;
pub mod replay;
pub mod report;
mod shown;
mod table;

use std::ops::Range;

use protocol::{Position, Time};
use wincode::{SchemaRead, SchemaWrite};

use crate::class::Profile;
use crate::geo;
use crate::graph::{EdgeId, Graph};
use crate::speeds::{LiveFactors, SpeedTable, hour_of_week};
pub use learner::{EtaLearner, FinishedTrip};
pub use shown::ShownEta;
pub use table::EtaTable;

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
    /// What lies behind: 0 for who sets off.
    pub driven_m: f64,
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
    let mut ahead = Ahead { seconds: 0.0, length_m: 0.0, straight_m: 0.0, turns: 0, driven_m: 0.0 };
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
                ahead: Ahead { seconds, length_m: seconds * 8.0, straight_m: seconds * 6.0, turns: 9, driven_m: 0.0 },
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
    fn a_bad_night_says_nothing_of_the_morning_after_though_nobody_finished_since() {
        let mut learner = EtaLearner::default();
        let ahead = Ahead { seconds: 600.0, length_m: 4_800.0, straight_m: 3_600.0, turns: 9, driven_m: 0.0 };
        let mut finish = |begin_s: i64, trips: i64, took_s: i64| {
            for i in 0..trips {
                let asked = Time::from_secs(begin_s + i * 60);
                let predicted_ms = learner.predict(&ahead, asked).p50_ms;
                let finished = Time(asked.0 + took_s * 1000);
                learner.handle_finished(FinishedTrip { ahead, asked, finished, predicted_ms });
            }
        };
        finish(0, 600, 720);
        // Snow falls, and for half an hour everybody takes twice as long.
        finish(36_000, 30, 1_440);
        let night = 36_000 + 29 * 60 + 1_440 + 1;

        let in_snow = learner.predict(&ahead, Time::from_secs(night)).p50_ms;
        let mut tables: Vec<EtaTable> =
            (0..24 * 12).map(|i| learner.table(Time::from_secs(night + i * 300)).clone()).collect();
        let morning = learner.predict(&ahead, Time::from_secs(night + 8 * 3_600)).p50_ms;

        assert!(in_snow > 900_000, "{in_snow}");
        assert!(morning < in_snow - 100_000, "{in_snow}, then {morning}");
        tables.dedup();
        assert!((10..200).contains(&tables.len()), "it changes for a while and comes to rest: {}", tables.len());
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
            let ahead = Ahead { seconds, length_m: seconds * 8.0, straight_m: seconds * 6.0, turns: 9, driven_m: 0.0 };
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
    fn what_setting_off_costs_is_not_asked_of_who_is_under_way() {
        let mut learner = EtaLearner::default();
        // Everybody needs two minutes to get away, and then what the roads say.
        for i in 0..400i64 {
            let seconds = 300.0 + f64::from((i % 7) as i32) * 100.0;
            let start = Ahead { seconds, length_m: seconds * 8.0, straight_m: seconds * 6.0, turns: 9, driven_m: 0.0 };
            let rest = seconds / 2.0;
            let halfway =
                Ahead { seconds: rest, length_m: rest * 8.0, straight_m: rest * 6.0, turns: 4, driven_m: rest * 8.0 };
            let (asked, took_ms) = (Time::from_secs(i * 60), (seconds as i64 + 120) * 1000);
            for (ahead, after_ms) in [(start, 0), (halfway, 120_000 + (rest * 1000.0) as i64)] {
                let asked = Time(asked.0 + after_ms);
                let predicted_ms = learner.predict(&ahead, asked).p50_ms;
                let finished = Time(asked.0 + took_ms - after_ms);
                learner.handle_finished(FinishedTrip { ahead, asked, finished, predicted_ms });
            }
        }
        let now = Time::from_secs(100_000);
        let start = Ahead { seconds: 600.0, length_m: 4_800.0, straight_m: 3_600.0, turns: 9, driven_m: 0.0 };
        let rest = Ahead { seconds: 300.0, length_m: 2_400.0, straight_m: 1_800.0, turns: 4, driven_m: 2_400.0 };

        let (first, then) = (learner.predict(&start, now), learner.predict(&rest, now));

        assert!((690_000..750_000).contains(&first.p50_ms), "ten minutes and two: {first:?}");
        assert!((280_000..330_000).contains(&then.p50_ms), "five minutes: {then:?}");
    }

    #[test]
    fn whatever_is_asked_the_interval_is_in_order() {
        let table = EtaTable::default();
        let odd = [0.0, -1.0, 1e-9, 1.0, 1e12, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
        for seconds in odd {
            for length_m in odd {
                for other in odd {
                    for turns in [0, u32::MAX] {
                        let ahead = Ahead { seconds, length_m, straight_m: other, turns, driven_m: other };
                        let eta = table.predict(&ahead);
                        assert!(eta.p10_ms <= eta.p50_ms && eta.p50_ms <= eta.p90_ms, "{ahead:?} gave {eta:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn stored_tables_come_back_and_broken_ones_are_refused() {
        let table = EtaTable::default();
        let bytes = table.to_bytes();

        assert_eq!(EtaTable::from_bytes(&bytes), Some(table.clone()));
        assert_eq!(EtaTable::from_bytes(&bytes[..bytes.len() - 1]), None);
        let mut broken = bytes;
        broken[..8].copy_from_slice(&f64::NAN.to_le_bytes());
        assert_eq!(EtaTable::from_bytes(&broken), None);
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
