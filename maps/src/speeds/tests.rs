//! Speeds held to their promises: learned from few and many, live ones that fade, tables that are the same bytes.

use std::sync::{Arc, OnceLock};

use protocol::{Fix, MeasuredTime, Time};

use super::*;
use crate::class::Profile;
use crate::eta::{self, Speeds};
use crate::geo;
use crate::import::{ImportOptions, import_bytes};
use crate::matcher::Scratch;
use crate::matcher::trip::match_trip;
use crate::router::{Endpoint, Routing};
use crate::town::{self, TownOptions};

#[test]
fn twenty_slow_drivers_raise_the_eta_through_their_street_and_it_fades() {
    let graph = town_graph();
    let edge = street(graph);
    let usual = SpeedTable::free_flow(graph);
    let noon = Time::from_secs(1_372_680_000);
    let mut live = LiveLearner::new(noon);
    let eta_s = |factors: &LiveFactors, now: Time| {
        let speeds = Speeds { usual: &usual, live: Some(factors) };
        eta::ahead(graph, speeds, &[edge], 0, u32::MAX, now).unwrap().seconds
    };
    let before_s = eta_s(&live.factors(graph, noon), noon);

    for i in 0..20 {
        let length_cm = graph.length_cm(edge).min(5_000);
        let seconds = length_cm as f32 / 222.0; // 8 km/h
        live.handle_traversal(graph, &usual, &Traversal { edge, length_cm, seconds, at: Time(noon.0 + i * 1_000) });
    }
    let soon = Time(noon.0 + 30_000);
    let during_s = eta_s(&live.factors(graph, soon), soon);
    let later = Time(noon.0 + 4 * 3_600_000);
    let after_s = eta_s(&live.factors(graph, later), later);

    assert!(during_s > before_s * 2.0, "{before_s} s became {during_s} s");
    assert!((after_s - before_s).abs() < before_s * 0.05, "{before_s} s, after hours {after_s} s");
}

#[test]
fn an_hour_that_is_slow_every_day_becomes_slow_in_the_table() {
    let graph = town_graph();
    let edge = street(graph);
    let monday = Time::from_secs(1_372_636_800);
    let mut learner = Learner::default();
    let length_cm = graph.length_cm(edge);
    let free_s = length_cm as f32 / graph.free_flow_cm_s(edge) as f32;
    for week in 0..8i64 {
        for hour in 0..168i64 {
            let slow = if hour % 24 == 8 { 3.0 } else { 1.0 };
            for i in 0..40 {
                let at = Time(monday.0 + ((week * 168 + hour) * 3_600 + i * 60) * 1_000);
                learner.handle_traversal(graph, &Traversal { edge, length_cm, seconds: free_s * slow, at });
            }
        }
    }

    let table = learner.table(graph);

    let (rush, night) = (table.ratio(edge, 8), table.ratio(edge, 3));
    assert!(rush < night * 0.6, "rush {rush}, night {night}");
    assert!((0.7..1.4).contains(&night), "{night}");
}

#[test]
fn one_slow_drive_says_little_and_many_say_all() {
    let graph = town_graph();
    let edge = street(graph);
    let length_cm = graph.length_cm(edge);
    let seconds = 4.0 * length_cm as f32 / graph.free_flow_cm_s(edge) as f32;
    let one = Traversal { edge, length_cm, seconds, at: Time::from_secs(1_372_680_000) };
    let ratio_after = |drives: usize| {
        let mut learner = Learner::default();
        (0..drives).for_each(|_| learner.handle_traversal(graph, &one));
        learner.table(graph).ratio(edge, 60)
    };

    assert!(ratio_after(1) > 0.45, "{}", ratio_after(1));
    assert!(ratio_after(500) < 0.35, "{}", ratio_after(500));
}

#[test]
fn tables_come_back_from_their_bytes_and_fit_only_their_map() {
    let graph = town_graph();
    let mut learner = Learner::default();
    learner.handle_traversal(
        graph,
        &Traversal { edge: street(graph), length_cm: 5_000, seconds: 20.0, at: Time::from_secs(1_372_680_000) },
    );
    let bytes = learner.table(graph).to_bytes();
    let other = other_town();

    assert_eq!(SpeedTable::from_bytes(&bytes, graph).unwrap().to_bytes(), bytes);
    assert_eq!(SpeedTable::from_bytes(&bytes, &other), Err(TableError::OtherMap));
    assert_eq!(SpeedTable::from_bytes(&bytes[..bytes.len() / 2], graph), Err(TableError::Malformed));
    assert!(bytes.len() < graph.edge_count() * 3 + 10_000, "{} bytes", bytes.len());
}

#[test]
fn live_factors_come_back_from_their_bytes_and_fit_only_their_map() {
    let graph = town_graph();
    let mut live = LiveLearner::new(Time(0));
    let slow = Traversal { edge: street(graph), length_cm: 5_000, seconds: 20.0, at: Time(1_000) };
    live.handle_traversal(graph, &SpeedTable::free_flow(graph), &slow);
    let factors = live.factors(graph, Time(1_000));
    let bytes = factors.to_bytes();

    assert_eq!(LiveFactors::from_bytes(&bytes, graph), Ok(factors));
    assert_eq!(LiveFactors::from_bytes(&bytes, &other_town()), Err(TableError::OtherMap));
    assert_eq!(LiveFactors::from_bytes(&bytes[..bytes.len() - 1], graph), Err(TableError::Malformed));
}

#[test]
fn places_without_their_ways_teach_what_matches_teach() {
    let graph = town_graph();
    let mut scratch = Scratch::new();
    let matched = match_trip(graph, &mut scratch, Profile::Car, &drive(graph, 9.0));
    let (mut with_ways, mut without) = (Vec::new(), Vec::new());
    let (mut of_matches, mut of_places) = (Traversals::default(), Traversals::default());

    for one in &matched {
        of_matches.handle_matched(graph, one, &mut with_ways);
        let Some(snapped) = one.snapped else { continue };
        let place = (snapped.edge, snapped.along_cm);
        of_places.handle_place(graph, &mut scratch, place, one.measured, &mut without);
    }

    let sum = |all: &[Traversal]| {
        all.iter().fold((0.0, 0.0), |(cm, s), t| (cm + f64::from(t.length_cm), s + f64::from(t.seconds)))
    };
    let (ways, places) = (sum(&with_ways), sum(&without));
    assert!(ways.0 > 100_000.0, "the trip is longer than a kilometre: {} cm", ways.0);
    assert!(
        (ways.0 - places.0).abs() < ways.0 * 0.02 && (ways.1 - places.1).abs() < ways.1 * 0.02,
        "{ways:?} {places:?}"
    );
    assert!((places.0 / 100.0 / places.1 - 9.0).abs() < 1.0, "driven at 9 m/s: {places:?}");
}

#[test]
fn places_that_nobody_can_have_driven_between_teach_nothing() {
    let graph = town_graph();
    let edge = street(graph);
    let far = graph.edges().find(|e| is_far(graph, edge, *e)).expect("the town is wide");
    let mut scratch = Scratch::new();
    let at = |seconds: i64| MeasuredTime(13_726_800_000 + seconds * 10);
    let mut traversals = Traversals::default();
    let mut out = Vec::new();
    let mut place =
        |edge, along_cm, seconds| traversals.handle_place(graph, &mut scratch, (edge, along_cm), at(seconds), &mut out);

    let told = [
        place(edge, 0, 0),
        place(edge, 4_000, 0),
        place(edge, 4_000, -5),
        place(far, 0, 1),
        place(edge, 0, 20),
        place(edge, 500, 24),
        place(edge, 4_000, 210),
        place(edge, 6_500, 214),
    ];

    let expected = [Hop::Begun, Hop::Late, Hop::Late, Hop::TooFast, Hop::TooFast, Hop::Stood, Hop::Gap, Hop::Driven];
    assert_eq!(told, expected);
    assert_eq!(out.len(), 1);
}

#[test]
fn what_was_learned_goes_on_where_the_roads_lie_on_the_next_map() {
    let graph = town_graph();
    let edge = street(graph);
    let slow = Traversal { edge, length_cm: 5_000, seconds: 60.0, at: Time(1_000) };
    let usual = SpeedTable::free_flow(graph);
    let (mut learner, mut live) = (Learner::default(), LiveLearner::new(Time(0)));
    for _ in 0..50 {
        learner.handle_traversal(graph, &slow);
        live.handle_traversal(graph, &usual, &slow);
    }
    let before = (learner.table(graph).ratio(edge, 5), live.factors(graph, Time(1_000)));

    let predecessors = Predecessors::of(graph, graph);
    learner.carry_over(&predecessors, graph, graph);
    live.carry_over(&predecessors, graph, graph);

    assert_eq!(learner.table(graph).ratio(edge, 5), before.0);
    assert_eq!(live.factors(graph, Time(1_000)), before.1);
    let gone = Predecessors::of(&other_town(), graph);
    learner.carry_over(&gone, &other_town(), graph);
    assert!(learner.edges_len() <= 1);
}

#[test]
fn a_new_table_of_the_usual_week_takes_over_what_today_said() {
    let graph = town_graph();
    let edge = street(graph);
    let slow = Traversal { edge, length_cm: 5_000, seconds: 60.0, at: Time(1_000) };
    let usual = SpeedTable::free_flow(graph);
    let (mut learner, mut live) = (Learner::default(), LiveLearner::new(Time(0)));
    for _ in 0..200 {
        learner.handle_traversal(graph, &slow);
        live.handle_traversal(graph, &usual, &slow);
    }
    let now = Time(1_000);
    let seconds = |usual: &SpeedTable, live: &LiveFactors| {
        usual.seconds(graph, edge, 5_000, hour_of_week(now)) * live.factor(graph, edge, now)
    };
    let before_s = seconds(&usual, &live.factors(graph, now));

    let table = learner.table(graph);
    live.handle_usual(graph, &usual, &table, now);

    let after_s = seconds(&table, &live.factors(graph, now));
    assert!((after_s / before_s - 1.0).abs() < 0.15, "{before_s} s became {after_s} s");
}

#[test]
fn a_change_of_factors_is_seen_and_as_usual_is_one() {
    let graph = town_graph();
    let edge = street(graph);
    let usual = LiveFactors::usual(graph, Time(0));
    let slow = LiveFactors::of(graph, Time(0), 1.0, std::iter::empty(), [(edge, 1.5)].into_iter());

    assert_eq!(usual.factor(graph, edge, Time(0)), 1.0);
    assert!((slow.factor(graph, edge, Time(0)) - 1.5).abs() < 0.03);
    assert!((slow.largest_change(&usual) - 0.5).abs() < 0.03);
    assert_eq!(usual.largest_change(&usual), 0.0);
}

#[test]
fn cells_of_others_have_the_speeds_of_their_roads() {
    let graph = town_graph();
    let edge = street(graph);
    let usual = SpeedTable::free_flow(graph);
    let slow = LiveFactors::of(graph, Time(0), 2.0, std::iter::empty(), std::iter::empty());
    let hexagons = Hexagons::of(graph);

    let speeds = hexagons.speeds(graph, &usual, Some(&slow), Time(0));

    let middle = graph.position_at(edge, graph.length_cm(edge) / 2);
    let name = Hexagons::name_at(middle.lat(), middle.lon()).unwrap();
    let cell = Hexagons::parse(&name).unwrap();
    let here = speeds.iter().find(|s| s.cell == cell && s.group == class_group(graph.class(edge))).unwrap();
    assert!(here.empty_cm_s.abs_diff(here.usual_cm_s) <= 1);
    assert!(here.live_cm_s.abs_diff(here.usual_cm_s / 2) <= 2, "{here:?}");
    assert_eq!(Hexagons::parse("no cell"), None);
    assert!(speeds.windows(2).all(|pair| (pair[0].cell, pair[0].group) < (pair[1].cell, pair[1].group)));
}

#[test]
fn the_week_begins_on_monday() {
    assert_eq!(hour_of_week(Time::from_secs(1_372_636_800)), 0); // Monday 1 July 2013, midnight
    assert_eq!(hour_of_week(Time::from_secs(1_372_636_800 - 1)), 167);
    assert_eq!(hour_of_week(Time::from_secs(1_372_636_800 + 25 * 3_600)), 25);
}

/// A residential street of some length.
fn street(graph: &Graph) -> EdgeId {
    graph
        .edges()
        .find(|e| {
            graph.class(*e) == RoadClass::Residential && graph.allows(*e, Profile::Car) && graph.length_cm(*e) > 8_000
        })
        .expect("the town has streets")
}

fn is_far(graph: &Graph, from: EdgeId, to: EdgeId) -> bool {
    graph.allows(to, Profile::Car) && geo::distance_cm(graph.position_at(from, 0), graph.position_at(to, 0)) > 200_000.0
}

/// Fixes every four seconds along the fastest way through the town.
fn drive(graph: &Arc<Graph>, m_s: f64) -> Vec<Fix> {
    let from = street(graph);
    let to = graph.edges().find(|e| is_far(graph, from, *e)).expect("the town is wide");
    let end = |edge| Endpoint::Edge { edge, along_cm: 0 };
    let route = Routing::new(graph.clone()).route(&end(from), &end(to), Profile::Car).expect("the town is connected");
    let line = route.geometry(graph);
    let (mut fixes, mut along_cm, mut next_cm) = (Vec::new(), 0.0, 0.0);
    for pair in line.windows(2) {
        let length_cm = geo::distance_cm(pair[0], pair[1]);
        while next_cm <= along_cm + length_cm && length_cm > 0.0 {
            let position = crate::geo::between(pair[0], pair[1], (next_cm - along_cm) / length_cm);
            fixes.push(Fix::at(MeasuredTime(13_726_800_000 + fixes.len() as i64 * 40), position));
            next_cm += m_s * 400.0;
        }
        along_cm += length_cm;
    }
    fixes
}

fn other_town() -> Graph {
    let extract = town::extract(&TownOptions { seed: 2, junctions: 100, ..TownOptions::default() });
    Graph::from_bytes(&import_bytes(&extract, &ImportOptions::default()).unwrap()).unwrap()
}

fn town_graph() -> &'static Arc<Graph> {
    static GRAPH: OnceLock<Arc<Graph>> = OnceLock::new();
    GRAPH.get_or_init(|| {
        let map = import_bytes(&town::extract(&TownOptions::default()), &ImportOptions::default());
        Arc::new(Graph::from_bytes(&map.expect("the town imports")).expect("the map opens"))
    })
}
