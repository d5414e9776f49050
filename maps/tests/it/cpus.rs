//! The same bytes on every CPU. The C library picks its sin and exp by what the CPU has, and they differ in the last
//! bit; so whatever of this crate decides what a tracker says must not ask it. Held by running the same work twice, the
//! second time with fused multiply-add hidden from the C library, and comparing the bytes.

use std::process::Command;
use std::sync::Arc;

use maps::eta::{self, EtaTable, Speeds};
use maps::matcher::{Matcher, Observation, Scratch};
use maps::router::{Endpoint, Hierarchy, Route, Router, Weights};
use maps::speeds::{LiveLearner, SpeedTable, Traversals};
use maps::{EdgeId, Graph, Profile};
use protocol::{MeasuredTime, Position, Time};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

use crate::cities;

#[test]
fn the_same_bytes_with_and_without_fused_multiply_add() {
    if std::env::var_os(CHILD).is_some() {
        println!("{SAID} {} {}", hex(&digest()), hex(&digest_of_the_c_library()));
        return;
    }

    let (with, with_c) = said_by_child(None);
    let (without, without_c) = said_by_child(Some("glibc.cpu.hwcaps=-FMA,-FMA4,-AVX2,-AVX2_Usable,-FMA_Usable"));

    if with_c == without_c {
        eprintln!("SKIPPED in part: this CPU or C library has no other sin and exp to offer");
    }
    assert_eq!(with, without);
}

/// This very test in a process of its own.
fn said_by_child(tunables: Option<&str>) -> (String, String) {
    let name = "cpus::the_same_bytes_with_and_without_fused_multiply_add";
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args([name, "--exact", "--nocapture"]).env(CHILD, "1");
    match tunables {
        Some(tunables) => child.env("GLIBC_TUNABLES", tunables),
        None => child.env_remove("GLIBC_TUNABLES"),
    };
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let words = text.lines().find_map(|line| line.split_once(SAID)).map(|(_, words)| words.to_string());
    let words = words.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
    let (ours, theirs) = words.trim().split_once(' ').unwrap();
    (ours.to_string(), theirs.to_string())
}

/// A map of a town, drives through it matched with noise, what they teach, and what is predicted by that.
fn digest() -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(cities::town_map());
    let graph = Arc::new(Graph::from_bytes(cities::town_map()).unwrap());
    let router = Hierarchy::new(graph.clone(), Weights::free_flow(&graph, Profile::Car)).unwrap();
    let usual = SpeedTable::free_flow(&graph);
    let mut live = LiveLearner::new(Time(0));
    let mut random = SmallRng::seed_from_u64(31);
    let routes: Vec<Route> = std::iter::from_fn(|| Some(random_route(&graph, &router, &mut random))).take(12).collect();
    for (number, route) in routes.iter().enumerate() {
        let traversals = drive(&graph, route, number as i64, &mut random, &mut hash);
        traversals.iter().for_each(|traversal| live.handle_traversal(&graph, &usual, traversal));
    }
    let now = Time(routes.len() as i64 * 3_600_000);
    let live = live.factors(&graph, now);
    hash.update(live.to_bytes());
    let speeds = Speeds { usual: &usual, live: Some(&live) };
    for route in &routes {
        let (from_cm, to_cm) = (route.start_along_cm, route.end_along_cm);
        let ahead = eta::ahead(&graph, speeds, &route.edges, from_cm, to_cm, now).unwrap();
        hash.update(wincode::serialize(&ahead).unwrap());
        hash.update(wincode::serialize(&EtaTable::default().predict(&ahead)).unwrap());
    }
    hash.finalize().into()
}

fn random_route(graph: &Graph, router: &Hierarchy, random: &mut SmallRng) -> Route {
    loop {
        let mut edge = || EdgeId(random.random_range(0..graph.edge_count() as u32));
        let end = |edge| Endpoint::Edge { edge, along_cm: 0 };
        let found = router.route(&end(edge()), &end(edge()));
        if let Some(route) = found.filter(|route| route.length_cm > 100_000) {
            return route;
        }
    }
}

/// A fix every 4 s at 10 m/s, up to some 12 m off in both ways.
fn drive(
    graph: &Graph,
    route: &Route,
    number: i64,
    random: &mut SmallRng,
    hash: &mut Sha256,
) -> Vec<maps::speeds::Traversal> {
    let (mut matcher, mut scratch) = (Matcher::new(Profile::Car), Scratch::new());
    let (mut traversals, mut driven) = (Traversals::default(), Vec::new());
    let line = route.geometry(graph);
    let places: Vec<Position> =
        (0..route.length_cm.div_ceil(4_000)).map(|i| along(&line, f64::from(i) * 40.0)).collect();
    for (i, place) in places.iter().enumerate() {
        let mut noise = || random.random_range(-1_100..=1_100);
        let fix = Observation {
            tag: i as u64,
            measured: MeasuredTime(number * 36_000 + i as i64 * 40),
            position: Position { lat_e7: place.lat_e7 + noise(), lon_e7: place.lon_e7 + noise() },
            accuracy_m: Some(10),
            heading_255: None,
            speed_dm_s: Some(100),
        };
        let provisional = matcher.handle_fix(graph, &mut scratch, &fix);
        hash.update(wincode::serialize(&provisional).unwrap());
        if i + 1 == places.len() {
            matcher.flush();
        }
        while let Some(matched) = matcher.poll_matched(graph, &mut scratch) {
            hash.update(format!("{matched:?}"));
            traversals.handle_matched(graph, &matched, &mut driven);
        }
        hash.update(wincode::serialize(&matcher).unwrap());
    }
    driven
}

fn along(line: &[Position], mut metres: f64) -> Position {
    for pair in line.windows(2) {
        let length = maps::geo::distance_cm(pair[0], pair[1]) / 100.0;
        if metres <= length && length > 0.0 {
            let share = metres / length;
            let between = |a: i32, b: i32| a + (f64::from(b - a) * share).round() as i32;
            return Position {
                lat_e7: between(pair[0].lat_e7, pair[1].lat_e7),
                lon_e7: between(pair[0].lon_e7, pair[1].lon_e7),
            };
        }
        metres -= length;
    }
    *line.last().unwrap()
}

/// What must not be asked: it tells whether hiding had an effect.
fn digest_of_the_c_library() -> [u8; 32] {
    let mut hash = Sha256::new();
    for i in 0..200_000 {
        let x = std::hint::black_box(f64::from(i) * 0.000_37 + 0.1);
        for value in [x.sin(), x.exp(), x.ln(), x.powf(0.7), x.atan2(0.3)] {
            hash.update(value.to_bits().to_le_bytes());
        }
    }
    hash.finalize().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const CHILD: &str = "WAYFIX_TEST_CPU_CHILD";
const SAID: &str = "digests:";
