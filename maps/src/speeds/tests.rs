//! Speeds held to their promises: learned from few and many, live ones that fade, tables that are the same bytes.

use std::sync::OnceLock;

use protocol::Time;

use super::*;
use crate::class::Profile;
use crate::eta::{self, Speeds};
use crate::import::{ImportOptions, import_bytes};
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

fn other_town() -> Graph {
    let extract = town::extract(&TownOptions { seed: 2, junctions: 100, ..TownOptions::default() });
    Graph::from_bytes(&import_bytes(&extract, &ImportOptions::default()).unwrap()).unwrap()
}

fn town_graph() -> &'static Graph {
    static GRAPH: OnceLock<Graph> = OnceLock::new();
    GRAPH.get_or_init(|| {
        let map = import_bytes(&town::extract(&TownOptions::default()), &ImportOptions::default());
        Graph::from_bytes(&map.expect("the town imports")).expect("the map opens")
    })
}
