//! The matcher held to its promises: on drawn streets, against garbage, and on trips whose truth is known.

use std::sync::OnceLock;

use proptest::prelude::*;

use super::*;
use crate::import::{ImportOptions, import_bytes};
use crate::town::{self, TownOptions};

#[test]
fn a_drive_comes_out_as_the_route_that_was_driven() {
    let graph = town_graph();
    let route = drive(graph, 11, 40);
    let fixes = fixes_along(graph, &route, 40);

    let matched = match_all(graph, &fixes);

    assert_eq!(matched.iter().filter(|m| m.is_break).count(), 1, "only the beginning is a break");
    let driven = edges_of(&matched);
    let inner = &route[1..route.len() - 1];
    let found = driven.windows(inner.len()).any(|w| w == inner);
    assert!(found, "driven {route:?}, matched {driven:?}");
}

#[test]
fn routes_are_connected_and_end_where_the_fix_is() {
    let graph = town_graph();
    for seed in 0..10 {
        let fixes = fixes_along(graph, &drive(graph, seed, 60), 40);

        let mut at: Option<EdgeId> = None;
        for matched in match_all(graph, &fixes) {
            let Some(snapped) = matched.snapped else { continue };
            for edge in &matched.route {
                let from = at.expect("a route begins somewhere");
                assert!(graph.to(from) == graph.from(*edge) || graph.reverse(from) == Some(*edge), "seed {seed}");
                at = Some(*edge);
            }
            assert!(matched.is_break || at == Some(snapped.edge), "seed {seed}");
            at = Some(snapped.edge);
        }
    }
}

#[test]
fn every_fix_comes_out_once_in_order_within_forty_seconds() {
    let graph = town_graph();
    let fixes = fixes_along(graph, &drive(graph, 3, 60), 10);
    let mut scratch = Scratch::new();
    let mut matcher = Matcher::new(Profile::Car);

    let mut tags = Vec::new();
    for fix in &fixes {
        matcher.handle_fix(graph, &mut scratch, fix);
        while let Some(matched) = matcher.poll_matched(graph, &mut scratch) {
            tags.push(matched.tag);
        }
        let due = matcher.poll_timeout().expect("the newest fix is always held");
        assert!(due > fix.measured, "nothing waits for longer than the look-ahead");
    }
    matcher.flush();
    while let Some(matched) = matcher.poll_matched(graph, &mut scratch) {
        tags.push(matched.tag);
    }

    assert_eq!(tags, (0..fixes.len() as u64).collect::<Vec<_>>());
    assert_eq!(matcher.poll_timeout(), None);
}

#[test]
fn a_silent_driver_becomes_final_by_a_timeout() {
    let graph = town_graph();
    let fixes = fixes_along(graph, &drive(graph, 5, 10), 40);
    let (mut scratch, mut matcher) = (Scratch::new(), Matcher::new(Profile::Car));
    matcher.handle_fix(graph, &mut scratch, &fixes[0]);
    assert_eq!(matcher.poll_matched(graph, &mut scratch), None);

    let due = matcher.poll_timeout().unwrap();
    matcher.handle_timeout(due);

    assert_eq!(due.0 - fixes[0].measured.0, 400);
    assert_eq!(matcher.poll_matched(graph, &mut scratch).map(|m| m.tag), Some(0));
}

#[test]
fn an_older_fix_is_refused_and_changes_nothing() {
    let graph = town_graph();
    let fixes = fixes_along(graph, &drive(graph, 7, 10), 40);
    let (mut scratch, mut matcher) = (Scratch::new(), Matcher::new(Profile::Car));
    matcher.handle_fix(graph, &mut scratch, &fixes[3]);
    let before = matcher.clone();

    let answer = matcher.handle_fix(graph, &mut scratch, &fixes[2]);

    assert_eq!(answer, None);
    assert_eq!(matcher, before);
}

#[test]
fn one_wild_fix_is_dropped_and_two_are_a_break() {
    let graph = town_graph();
    let fixes = fixes_along(graph, &drive(graph, 9, 60), 40);
    let middle = fixes.len() / 2;
    let away = Position { lat_e7: fixes[middle].position.lat_e7 + 200_000, ..fixes[middle].position }; // 2.2 km

    let mut one = fixes.clone();
    one[middle].position = away;
    let one = match_all(graph, &one);
    let mut gone = fixes.clone();
    gone[middle..].iter_mut().for_each(|f| f.position.lat_e7 += 200_000);
    let gone = match_all(graph, &gone);

    assert_eq!(one[middle].snapped, None);
    assert_eq!(one.iter().filter(|m| m.is_break).count(), 1);
    assert!(gone[middle].snapped.is_none());
    assert!(gone[middle + 1..].iter().all(|m| m.snapped.is_none() || m.route.is_empty() || !m.is_break));
}

#[test]
fn a_fix_far_from_every_road_is_left_off_the_road() {
    let graph = town_graph();
    let corner = graph.bbox().north_east;
    let far = Position { lat_e7: corner.lat_e7 + 100_000, lon_e7: corner.lon_e7 + 100_000 };
    let fixes: Vec<Observation> = (0..20).map(|i| observation(i, i as i64 * 40, far)).collect();

    let matched = match_all(graph, &fixes);

    assert_eq!(matched.len(), 20);
    assert!(matched.iter().all(|m| m.snapped.is_none() && m.route.is_empty()));
}

#[test]
fn who_stands_still_stays_on_one_edge() {
    let graph = town_graph();
    let route = drive(graph, 13, 12);
    let mut fixes = fixes_along(graph, &route, 40);
    let last = *fixes.last().unwrap();
    for i in 0..60i64 {
        // Noise that wanders within 8 m.
        let wander = [(0, 0), (300, 200), (-200, 500), (400, -300), (-500, -100)][i as usize % 5];
        let position = Position { lat_e7: last.position.lat_e7 + wander.0, lon_e7: last.position.lon_e7 + wander.1 };
        fixes.push(observation(fixes.len() as u64, last.measured.0 + 40 * (i + 1), position));
    }

    let matched = match_all(graph, &fixes);

    let standing = &matched[matched.len() - 50..];
    assert!(standing.iter().all(|m| m.route.is_empty() && !m.is_break), "{standing:?}");
}

#[test]
fn a_heading_decides_the_direction_at_once() {
    let graph = town_graph();
    let edge = graph
        .edges()
        .find(|e| graph.length_cm(*e) > 10_000 && graph.reverse(*e).is_some() && graph.allows(*e, Profile::Car))
        .expect("the town has two-way streets");
    let (position, heading_cdeg) = graph.place_at(edge, graph.length_cm(edge) / 2);
    let back = (heading_cdeg + 18_000) % 36_000;

    for (heading_cdeg, expected) in [(heading_cdeg, Some(edge)), (back, graph.reverse(edge))] {
        let mut fix = observation(0, 0, position);
        fix.heading_255 = Some(heading_255(heading_cdeg));
        let snapped = Matcher::new(Profile::Car).handle_fix(graph, &mut Scratch::new(), &fix);
        assert_eq!(snapped.map(|s| s.edge), expected);
    }
}

#[test]
fn state_survives_its_bytes_at_every_fix() {
    let graph = town_graph();
    let fixes = fixes_along(graph, &drive(graph, 17, 40), 10);
    let (mut scratch, mut other_scratch) = (Scratch::new(), Scratch::new());
    let mut matcher = Matcher::new(Profile::Car);

    for fix in &fixes {
        let bytes = wincode::serialize(&matcher).unwrap();
        let mut restored: Matcher = wincode::deserialize_exact(&bytes).unwrap();
        assert_eq!(matcher.handle_fix(graph, &mut scratch, fix), restored.handle_fix(graph, &mut other_scratch, fix));
        assert_eq!(matcher, restored);
        while let Some(matched) = matcher.poll_matched(graph, &mut scratch) {
            assert_eq!(Some(matched), restored.poll_matched(graph, &mut other_scratch));
        }
    }
}

#[test]
fn a_matcher_moves_to_another_map_and_goes_on() {
    let graph = town_graph();
    let fixes = fixes_along(graph, &drive(graph, 19, 60), 40);
    let half = fixes.len() / 2;
    let (mut scratch, mut matcher) = (Scratch::new(), Matcher::new(Profile::Car));
    let mut matched = Vec::new();
    for (i, fix) in fixes.iter().enumerate() {
        if i == half {
            // The same roads: every place must find itself again.
            let before = matcher.clone();
            matcher.carry_over(graph, graph, &mut scratch);
            assert_eq!(matcher.held_len(), before.held_len());
        }
        matcher.handle_fix(graph, &mut scratch, fix);
        while let Some(one) = matcher.poll_matched(graph, &mut scratch) {
            matched.push(one);
        }
    }

    assert_eq!(matched.iter().filter(|m| m.is_break).count(), 1);
}

#[test]
fn state_stays_within_four_kilobytes() {
    let graph = town_graph();
    let mut scratch = Scratch::new();
    for every_ds in [1, 10, 40, 150] {
        let fixes = fixes_along(graph, &drive(graph, 23, 200), every_ds);
        let mut matcher = Matcher::new(Profile::Car);
        for fix in &fixes {
            matcher.handle_fix(graph, &mut scratch, fix);
            while matcher.poll_matched(graph, &mut scratch).is_some() {}
            let bytes = size_of::<Matcher>() + matcher.heap_bytes();
            assert!(bytes <= 4_096, "{bytes} bytes in memory");
            let written = wincode::serialized_size(&matcher).unwrap();
            assert!(written <= 4_096, "{written} bytes written");
        }
    }
}

#[test]
fn a_late_run_goes_on_from_the_place_before_it() {
    let graph = town_graph();
    let fixes = fixes_along(graph, &drive(graph, 29, 60), 40);
    let matched = match_all(graph, &fixes);
    let (from, to) = (fixes.len() / 3, 2 * fixes.len() / 3);
    let before = &matched[from - 1];
    let mut scratch = Scratch::new();

    let seed = before.snapped.as_ref().map(|s| (s, before.measured));
    let mut late = crate::late::LateMatcher::new(Profile::Car, graph, seed, fixes[to].measured);
    let taken = fixes[from..].iter().filter(|fix| late.handle_fix(graph, &mut scratch, fix)).count();
    late.finish();
    let out: Vec<Matched> = std::iter::from_fn(|| late.poll_matched(graph, &mut scratch)).collect();

    assert!(!out.is_empty() && taken >= out.len());
    assert!(out.iter().all(|m| !m.is_break), "it is connected to what came before");
    assert!(late.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn garbage_never_panics_nor_grows(seed in any::<u64>()) {
        let graph = town_graph();
        let mut random = Random(seed | 1);
        let mut matcher = Matcher::new(Profile::ALL[(seed % 4) as usize]);
        let mut scratch = Scratch::new();
        let (mut taken, mut out) = (0usize, 0usize);
        for tag in 0..400 {
            let fix = garbage(graph, &mut random, tag);
            let held = matcher.held_len();
            matcher.handle_fix(graph, &mut scratch, &fix);
            taken += matcher.held_len() - held;
            if !random.next().is_multiple_of(8) {
                while matcher.poll_matched(graph, &mut scratch).is_some() {
                    out += 1;
                }
            }
            prop_assert!(size_of::<Matcher>() + matcher.heap_bytes() <= 4_096);
        }
        matcher.flush();
        while matcher.poll_matched(graph, &mut scratch).is_some() {
            out += 1;
        }
        prop_assert_eq!(taken, out);
    }
}

/// Jumps, zeros, extremes, times that stand or run back, and now and then something sensible.
fn garbage(graph: &Graph, random: &mut Random, tag: u64) -> Observation {
    let centre = graph.bbox().centre();
    let near = |r: u64, span: i64| (r as i64).rem_euclid(2 * span) - span;
    let position = match random.next() % 8 {
        0 => Position { lat_e7: i32::MAX, lon_e7: i32::MIN },
        1 => Position::default(),
        2 => Position { lat_e7: random.next() as i32, lon_e7: random.next() as i32 },
        3 => Position { lat_e7: 900_000_000, lon_e7: 1_800_000_000 },
        _ => Position {
            lat_e7: centre.lat_e7 + near(random.next(), 60_000) as i32,
            lon_e7: centre.lon_e7 + near(random.next(), 60_000) as i32,
        },
    };
    let measured = match random.next() % 64 {
        0 => i64::MIN,
        1 => near(random.next(), 1_000_000),
        _ => tag as i64 * 40 + near(random.next(), 30),
    };
    let any = |r: u64| r.is_multiple_of(2).then_some((r >> 8) as u8);
    Observation {
        tag,
        measured: MeasuredTime(measured),
        position,
        accuracy_m: any(random.next()),
        heading_255: any(random.next()),
        speed_dm_s: any(random.next()).map(u16::from),
    }
}

fn match_all(graph: &Graph, fixes: &[Observation]) -> Vec<Matched> {
    let (mut scratch, mut matcher) = (Scratch::new(), Matcher::new(Profile::Car));
    let mut out = Vec::new();
    for fix in fixes {
        matcher.handle_fix(graph, &mut scratch, fix);
        while let Some(matched) = matcher.poll_matched(graph, &mut scratch) {
            out.push(matched);
        }
    }
    matcher.flush();
    while let Some(matched) = matcher.poll_matched(graph, &mut scratch) {
        out.push(matched);
    }
    out
}

fn edges_of(matched: &[Matched]) -> Vec<EdgeId> {
    let mut edges = Vec::new();
    for one in matched {
        if let Some(snapped) = one.snapped.filter(|_| one.is_break) {
            edges.push(snapped.edge);
        }
        edges.extend(&one.route);
    }
    edges
}

/// Some edges in a row, without turning round.
fn drive(graph: &Graph, seed: u64, edges: usize) -> Vec<EdgeId> {
    let mut random = Random(seed * 2 + 1);
    for _ in 0..1_000 {
        let start = EdgeId((random.next() % graph.edge_count() as u64) as u32);
        if !is_street(graph, start) || !graph.is_connected(start, Profile::Car) {
            continue;
        }
        let mut route = vec![start];
        while route.len() < edges {
            let at = route[route.len() - 1];
            let next: Vec<EdgeId> = graph
                .out_edges(graph.to(at))
                .filter(|e| is_street(graph, *e) && !graph.is_u_turn(at, *e))
                .filter(|e| graph.is_turn_allowed(at, *e, Profile::Car) && !route.contains(e))
                .filter(|e| graph.reverse(*e).is_none_or(|r| !route.contains(&r)))
                .collect();
            let Some(chosen) = next.get(random.next() as usize % next.len().max(1)) else { break };
            route.push(*chosen);
        }
        if route.len() >= edges.min(10) {
            return route;
        }
    }
    panic!("seed {seed}: no drive in this town")
}

fn is_street(graph: &Graph, edge: EdgeId) -> bool {
    graph.allows(edge, Profile::Car) && !graph.flags(edge).is_service() && graph.length_cm(edge) > 1_500
}

/// Fixes at 10 m/s along the middle of a route, every so many tenths of a second.
fn fixes_along(graph: &Graph, route: &[EdgeId], every_ds: i64) -> Vec<Observation> {
    let mut fixes = Vec::new();
    let (mut left_cm, mut now_ds) = (0i64, 0i64);
    for edge in route {
        let length_cm = i64::from(graph.length_cm(*edge));
        while left_cm < length_cm {
            fixes.push(observation(fixes.len() as u64, now_ds, graph.position_at(*edge, left_cm as u32)));
            left_cm += every_ds * 100;
            now_ds += every_ds;
        }
        left_cm -= length_cm;
    }
    fixes
}

fn observation(tag: u64, measured_ds: i64, position: Position) -> Observation {
    Observation::of(tag, &Fix::at(MeasuredTime(measured_ds), position))
}

fn town_graph() -> &'static Graph {
    static GRAPH: OnceLock<Graph> = OnceLock::new();
    GRAPH.get_or_init(|| {
        let extract = town::extract(&TownOptions::default());
        let map = import_bytes(&extract, &ImportOptions::default()).expect("the town imports");
        Graph::from_bytes(&map).expect("the map opens")
    })
}

/// Marsaglia's xorshift: enough to draw drives, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}
