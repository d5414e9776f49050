//! The kinds of fault that users of other systems reported, each on a small extract drawn for it. Routes are asked of both
//! routers, whose costs must agree.

use std::sync::Arc;

use maps::class::RoadClass;
use maps::import::{ImportError, ImportOptions, import_bytes};
use maps::matcher::Scratch;
use maps::matcher::trip::match_trip;
use maps::router::{Dijkstra, Endpoint, Hierarchy, Route, Router, Weights, turn_ms};
use maps::{ClosedTurns, EdgeId, Graph, LocalTime, Profile, shared};
use osmpbfreader::fileformat::Blob;
use protocol::{Fix, MeasuredTime, Position};

use crate::tagged::{Sketch, Tags};

const STREET: Tags = &[("highway", "residential")];

/// So many hundred metres north and east of nowhere, as `Sketch::node` has it.
fn at(north: f64, east: f64) -> Position {
    Position { lat_e7: 440_000_000 + (north * 9_000.0) as i32, lon_e7: -300_000_000 + (east * 12_500.0) as i32 }
}

fn route_at(graph: &Arc<Graph>, profile: Profile, ends: (Endpoint, Endpoint), closed: &ClosedTurns) -> Option<Route> {
    let weights = Weights::free_flow(graph, profile);
    let fast = Hierarchy::new(graph.clone(), weights.clone()).unwrap().route_at(&ends.0, &ends.1, closed);
    let plain = Dijkstra::new(graph.clone(), weights).route_at(&ends.0, &ends.1, closed);
    assert_eq!(fast.as_ref().map(|r| r.cost_ms), plain.as_ref().map(|r| r.cost_ms));
    fast
}

fn route(graph: &Arc<Graph>, profile: Profile, from: Position, to: Position) -> Option<Route> {
    let ends = (Endpoint::Position(from), Endpoint::Position(to));
    route_at(graph, profile, ends, &ClosedTurns::none())
}

fn km(graph: &Arc<Graph>, profile: Profile, from: Position, to: Position) -> f64 {
    route(graph, profile, from, to).map_or(f64::NAN, |route| f64::from(route.length_cm) / 1e5)
}

/// A street of 900 m, in its middle 100 m of another kind, or a barrier; round it 1.9 km.
///
/// ```text
///   5 ─────────────── 6      500 m north
///   1 ──── 2 ─ 3 ──── 4
/// ```
fn short_cut(middle: Tags, barrier: Tags) -> Arc<Graph> {
    let mut sketch = Sketch::default();
    sketch.node(1, 0, 0, &[]).node(2, 0, 4, barrier).node(3, 0, 5, &[]).node(4, 0, 9, &[]);
    sketch.node(5, 5, 0, &[]).node(6, 5, 9, &[]);
    sketch.way(1, &[1, 2], STREET).way(2, &[2, 3], middle).way(3, &[3, 4], STREET);
    sketch.way(4, &[1, 5], STREET).way(5, &[5, 6], STREET).way(6, &[6, 4], STREET);
    Arc::new(sketch.graph())
}

#[test]
fn limited_roads_and_gates_are_no_short_cut_but_open_for_who_ends_there() {
    let ways: &[(Tags, Tags)] = &[
        (&[("highway", "residential"), ("access", "private")], &[]),
        (&[("highway", "service"), ("motor_vehicle", "destination")], &[]),
        (&[("highway", "pedestrian"), ("motor_vehicle", "delivery")], &[]),
        (&[("highway", "path"), ("vehicle", "permit")], &[]),
        (&[("highway", "secondary"), ("oneway", "reversible")], &[]),
        (&[("highway", "residential"), ("motor_vehicle", "Agricultural; Private")], &[]),
        (STREET, &[("barrier", "gate"), ("access", "private")]),
        (STREET, &[("barrier", "lift_gate"), ("motor_vehicle", "permit;delivery")]),
        (STREET, &[("barrier", "gate"), ("locked", "yes")]),
    ];
    for (middle, barrier) in ways {
        let graph = short_cut(middle, barrier);
        for profile in [Profile::Car, Profile::Moped] {
            let through = km(&graph, profile, at(0.0, 0.1), at(0.0, 8.9));
            assert!((1.8..2.0).contains(&through), "{middle:?} {barrier:?}: {through}");
            // Behind a gate on an open street one gets by the other side, too.
            if barrier.is_empty() {
                let into = km(&graph, profile, at(0.0, 0.1), at(0.0, 4.5));
                assert!(into < 0.5, "{middle:?}: {into}");
            }
            let out = km(&graph, profile, at(0.0, 4.5), at(0.0, 8.9));
            assert!(out < 0.5, "{middle:?} {barrier:?}: {out}");
        }
    }
    let closed = short_cut(&[("highway", "residential"), ("motor_vehicle", "agricultural;forestry")], &[]);
    assert!(km(&closed, Profile::Car, at(0.0, 0.1), at(0.0, 8.9)) > 1.8);
    assert!(km(&closed, Profile::Bicycle, at(0.0, 0.1), at(0.0, 8.9)) < 0.9);
}

#[test]
fn a_private_drive_behind_its_gate_is_entered_once() {
    // A yard with a gated way in and a long one without: whoever goes there takes the gate.
    let mut sketch = Sketch::default();
    let private: Tags = &[("highway", "service"), ("access", "private")];
    sketch.node(1, 0, 0, &[]).node(2, 0, 5, &[]).node(3, 1, 0, &[("barrier", "gate"), ("access", "private")]);
    sketch.node(4, 2, 0, &[]).node(5, 9, 5, &[]).node(6, 9, 0, &[]);
    sketch.way(1, &[1, 2], STREET).way(2, &[1, 3, 4], private);
    sketch.way(3, &[2, 5], STREET).way(4, &[5, 6], STREET).way(5, &[6, 4], private);
    let graph = Arc::new(sketch.graph());

    assert!(km(&graph, Profile::Car, at(0.0, 2.0), at(1.9, 0.0)) < 0.5);
}

#[test]
fn turning_round_has_a_price_that_depends_on_where() {
    let mut sketch = Sketch::default();
    sketch.node(1, 0, 0, &[]).node(2, 0, 3, &[]).node(3, 0, 6, &[]).node(4, 3, 3, &[]).node(5, 0, 1, &[]);
    sketch.way(1, &[1, 5], STREET).way(4, &[5, 2], STREET).way(2, &[2, 3], STREET).way(3, &[2, 4], STREET);
    let graph = Arc::new(sketch.graph());
    let edge = |from: Position, to: Position| {
        let ends = |e: &EdgeId| (graph.node_position(graph.from(*e)), graph.node_position(graph.to(*e)));
        graph.edges().find(|e| ends(e) == (Some(from), Some(to))).unwrap()
    };
    let back = |edge: EdgeId, profile| turn_ms(&graph, profile, edge, graph.reverse(edge).unwrap()).unwrap();

    let (middle, junction, dead_end) =
        (edge(at(0.0, 0.0), at(0.0, 1.0)), edge(at(0.0, 1.0), at(0.0, 3.0)), edge(at(0.0, 3.0), at(0.0, 6.0)));
    assert!(back(middle, Profile::Car) > back(junction, Profile::Car));
    assert!(back(junction, Profile::Car) > back(dead_end, Profile::Car));
    assert!(back(dead_end, Profile::Car) > 0);
    // Who must go back from before the middle goes on to the junction to turn round, and pays for that.
    let along = |edge, along_cm| Endpoint::Edge { edge, along_cm };
    let ends = (along(middle, 9_000), along(graph.reverse(middle).unwrap(), 1_000));
    let route = route_at(&graph, Profile::Car, ends, &ClosedTurns::none()).unwrap();
    assert!((40_000..45_000).contains(&route.length_cm), "{route:?}");
    assert_eq!(route.cost_ms - route.duration_ms, back(junction, Profile::Car));
    assert_eq!(back(middle, Profile::Foot), 0);
}

#[test]
fn a_sign_for_some_hours_holds_at_those() {
    let mut sketch = Sketch::default();
    sketch.node(1, -2, 0, &[]).node(2, 0, 0, &[]).node(3, 0, -4, &[]).node(4, 4, 0, &[]).node(5, 4, -4, &[]);
    sketch.way(1, &[1, 2], STREET).way(2, &[2, 3], STREET).way(3, &[2, 4], STREET);
    sketch.way(4, &[4, 5], STREET).way(5, &[5, 3], STREET);
    let graph = Arc::new(
        sketch
            .restriction(
                "",
                1,
                2,
                2,
                &[("restriction:motor_vehicle:conditional", "no_left_turn @ (Mo-Fr 07:00-09:00)")],
            )
            .graph(),
    );
    let ends = (Endpoint::Position(at(-1.9, 0.0)), Endpoint::Position(at(0.0, -3.0)));
    let km = |profile, time: Option<&str>| {
        let closed = time.map_or(ClosedTurns::none(), |time| graph.closed_at(profile, LocalTime::parse(time).unwrap()));
        f64::from(route_at(&graph, profile, ends, &closed).unwrap().length_cm) / 1e5
    };

    assert!(km(Profile::Car, None) < 0.6 && km(Profile::Car, Some("2026-11-29T08:00")) < 0.6);
    assert!(km(Profile::Car, Some("2026-11-30T08:00")) > 0.8, "a Monday morning");
    assert!(km(Profile::Bicycle, Some("2026-11-30T08:00")) < 0.6);
    assert_eq!(graph.summary().restrictions, 1);
}

#[test]
fn of_objects_that_are_there_twice_the_newest_counts() {
    let closed: Tags = &[("highway", "residential"), ("motor_vehicle", "no")];
    let of = |newer: (i32, bool), older: i32| {
        let mut sketch = Sketch::default();
        sketch.node(1, 0, 0, &[]).node(2, 0, 1, &[("barrier", "bollard")]).node_edition(1, true).node(3, 0, 2, &[]);
        sketch.node(2, 0, 1, &[]).node_edition(2, true);
        sketch
            .way(1, &[1, 2, 3], closed)
            .way_edition(newer.0, newer.1)
            .way(1, &[1, 2, 3], STREET)
            .way_edition(older, true);
        sketch.way(2, &[1, 2], &[("highway", "footway")]);
        sketch.graph()
    };
    let opens = |graph: &Graph, way| graph.edges().any(|e| graph.osm_way(e) == way && graph.allows(e, Profile::Car));

    assert!(!opens(&of((3, true), 2), 1), "the closed one is newer though it comes first");
    assert!(opens(&of((2, true), 3), 1) && opens(&of((2, true), 2), 1));
    let deleted = of((3, false), 2);
    assert!(deleted.edges().all(|e| deleted.osm_way(e) == 2), "the newest was deleted");
    let open = of((1, true), 2);
    let mut turns = open.edges().flat_map(|from| open.out_edges(open.to(from)).map(move |to| (from, to)));
    assert!(turns.all(|(from, to)| open.is_turn_allowed(from, to, Profile::Car)), "the bollard is gone");
}

#[test]
fn a_ferry_takes_its_time_for_everybody_and_none_ends_at_sea() {
    let of = |ferry: Tags, line: Tags| {
        let mut sketch = Sketch::default();
        sketch.node(1, 0, -2, &[]).node(2, 0, 0, &[]).node(3, 0, 20, &[]).node(4, 0, 50, &[]).node(5, 0, 52, &[]);
        sketch.way(1, &[1, 2], STREET).way(2, &[2, 3, 4], ferry).way(3, &[4, 5], STREET).way(4, &[3, 1000], STREET);
        Arc::new(sketch.line(line, &[2]).graph())
    };
    let cases: &[(Tags, Tags, f64)] = &[
        (&[("route", "ferry"), ("duration", "00:30")], &[("type", "site")], 30.0),
        (&[("route", "ferry"), ("duration", "PT1H")], &[("type", "site")], 60.0),
        (&[("route", "shuttle_train"), ("duration", "35")], &[("type", "site")], 35.0),
        (&[("route", "ferry")], &[("type", "route"), ("route", "ferry"), ("duration", "PT2H30M")], 150.0),
        (&[("route", "ferry"), ("duration", "P2D")], &[("type", "site")], 2880.0),
        (&[("route", "ferry"), ("duration", "P1W")], &[("type", "site")], 10_080.0),
    ];
    for (ferry, line, minutes) in cases {
        let graph = of(ferry, line);
        for profile in Profile::ALL {
            let over = route(&graph, *profile, at(0.0, -0.1), at(0.0, 50.1)).unwrap();
            let ms: u32 = over
                .edges
                .iter()
                .filter(|e| graph.class(**e) == RoadClass::Ferry)
                .map(|e| graph.duration_ms(*e, *profile))
                .sum();
            assert!((f64::from(ms) / 6e4 / minutes - 1.0).abs() < 0.01, "{ferry:?} {profile}: {ms}");
        }
        let end = route(&graph, Profile::Car, at(0.0, -1.0), at(0.0, 10.0)).unwrap();
        assert!(end.edges.iter().all(|e| graph.class(*e) != RoadClass::Ferry), "{ferry:?}");
    }
}

#[test]
fn both_ends_are_on_the_island_or_both_on_the_mainland() {
    let mut sketch = Sketch::default();
    for i in 0..12 {
        sketch.node(1 + i, 0, i, &[]);
    }
    sketch.way(1, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], STREET);
    for (way, node) in (20..).zip(1..12) {
        sketch.node(100 + node, 3, node - 1, &[]).way(way, &[node, 100 + node], STREET);
    }
    sketch.node(201, 6, 2, &[]).node(202, 6, 5, &[]).way(40, &[201, 202], STREET);
    let graph = Arc::new(sketch.graph());

    assert!((0.2..0.31).contains(&km(&graph, Profile::Car, at(6.2, 2.1), at(6.2, 4.9))), "along the island");
    let other = km(&graph, Profile::Car, at(6.1, 2.1), at(0.1, 9.0));
    assert!(other > 0.9, "from the coast over against the island: {other}");
}

#[test]
fn roads_go_on_beyond_the_180th_meridian() {
    let mut sketch = Sketch::default();
    sketch.node_at(1, -167_900_000, 1_799_800_000, &[]).node_at(2, -167_900_000, 1_799_950_000, &[]);
    sketch.node_at(3, -167_900_000, -1_799_950_000, &[]).node_at(4, -167_900_000, -1_799_800_000, &[]);
    let graph = Arc::new(sketch.way(1, &[1, 2, 3, 4], STREET).graph());
    let place = |lon| Position::from_degrees(-16.79, lon).unwrap();

    assert!((km(&graph, Profile::Car, place(179.99), place(-179.99)) - 2.129).abs() < 0.01);
    assert!(graph.bbox().is_over_180() && graph.covers(place(180.0)) && !graph.covers(place(0.0)));
    for lon in [179.981, 179.999, 180.0, -180.0, -179.999, -179.981] {
        let mut found = Vec::new();
        graph.candidates(Position::from_degrees(-16.7902, lon).unwrap(), 50.0, Profile::Car, &mut found);
        assert_eq!(found.len(), 2, "{lon}");
        assert!(found[0].off_cm < 2_300, "{lon}: {found:?}");
    }
    for (x, zoom) in [(0, 12), ((1 << 12) - 1, 12)] {
        let (_, y) = maps::tiles::tile_at(place(180.0), zoom);
        assert!(!maps::tiles::tile(&graph, zoom, x, y).is_empty());
        assert!(maps::tiles::tile(&graph, zoom, 1 << 11, y).is_empty());
    }
}

#[test]
fn another_version_of_a_map_is_known_by_its_roads_not_by_its_box() {
    let town = |lat: i64, lon: i64, more: bool| {
        let mut sketch = Sketch::default();
        for i in 0..6 {
            sketch.node_at(1 + i, lat + i * 9_000, lon, &[]).node_at(11 + i, lat + i * 9_000, lon + 12_500, &[]);
            sketch.way(1 + i, &[1 + i, 11 + i], STREET);
        }
        sketch.way(20, &[1, 2, 3, 4, 5, 6], STREET);
        if more {
            sketch.node_at(50, lat + 9_000_000, lon + 9_000_000, &[]).node_at(
                51,
                lat - 9_000_000,
                lon - 9_000_000,
                &[],
            );
            sketch.way(30, &[50, 51], STREET);
        }
        sketch.graph()
    };
    let (here, grown) = (town(440_000_000, 100_000_000, false), town(440_001_000, 100_000_000, true));
    let within = town(444_000_000, 104_000_000, false);

    assert!(shared::is_same_region(&here, &here) && shared::is_same_region(&here, &grown));
    assert!(shared::is_same_region(&grown, &here));
    assert!(!shared::is_same_region(&grown, &within), "it lies within the other's box");
    assert!(!shared::is_same_region(&here, &within), "its ways have the same numbers");
}

fn packed(how: &str) -> Vec<u8> {
    let mut sketch = Sketch::default();
    sketch.node(1, 0, 0, &[]).node(2, 0, 1, &[]).way(1, &[1, 2], STREET);
    sketch.bytes(&|raw| {
        let mut blob = Blob::new();
        blob.set_raw_size(raw.len() as i32);
        let (field, bytes) = match how {
            "lz4" => (6, lz4_flex::block::compress(raw)),
            "zstd" => (7, zstd::encode_all(raw, 3).unwrap()),
            "lzma" => (4, vec![1, 2, 3]),
            _ => (9, vec![1, 2, 3]),
        };
        if field == 4 {
            blob.set_lzma_data(bytes);
        } else {
            blob.special_fields.mut_unknown_fields().add_length_delimited(field, bytes);
        }
        blob
    })
}

#[test]
fn each_packing_is_read_or_named() {
    let import = |bytes: &[u8]| import_bytes(bytes, &ImportOptions::default());
    for how in ["lz4", "zstd"] {
        assert_eq!(Graph::from_bytes(&import(&packed(how)).unwrap()).unwrap().edge_count(), 2, "{how}");
        let mut broken = packed(how);
        let end = broken.len() - 3;
        broken.truncate(end);
        assert!(import(&broken).is_err());
    }
    for (how, name) in [("lzma", "lzma"), ("other", "an unknown")] {
        let error = import(&packed(how)).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("osmium cat"), "{error}");
    }
}

#[test]
fn places_in_ways_are_read() {
    let draw = || {
        let mut sketch = Sketch::default();
        sketch.node(1, 0, 0, &[]).node(2, 0, 1, &[]).node(3, -1, 2, &[]).way(1, &[1, 2, 3], STREET);
        sketch
    };

    let (plain, located) = (draw().graph(), draw().locate_in_ways().graph());

    assert_eq!(located.edge_count(), plain.edge_count());
    let line = |graph: &Graph| graph.geometry(EdgeId(0)).collect::<Vec<_>>();
    assert_eq!(line(&located), line(&plain));
}

#[test]
fn an_extract_without_most_of_its_points_is_refused() {
    let mut sketch = Sketch::default();
    sketch.node(1, 0, 0, &[]).node(2, 0, 1, &[]).way(1, &[1, 2, 3, 4, 5, 6], STREET);
    let bytes = sketch.bytes(&|raw| {
        let mut blob = Blob::new();
        blob.set_raw(raw.to_vec());
        blob
    });

    let error = import_bytes(&bytes, &ImportOptions::default()).unwrap_err();

    assert!(matches!(error, ImportError::MostPointsMissing { missing: 4, wanted: 6 }), "{error}");
}

/// A long one-way street leading east, with side streets.
fn one_way() -> Graph {
    let mut sketch = Sketch::default();
    let oneway: Tags = &[("highway", "residential"), ("oneway", "yes")];
    for i in 0..6 {
        sketch.node(1 + i, 0, i * 2, &[]).node(11 + i, 3, i * 2, &[]);
        sketch.way(1 + i, &[1 + i, 11 + i], STREET);
    }
    sketch.way(20, &[1, 2, 3, 4, 5, 6], oneway).way(21, &[11, 12, 13, 14, 15, 16], STREET);
    sketch.graph()
}

fn drive(places: impl Iterator<Item = Position>) -> Vec<Fix> {
    places.zip(0..).map(|(place, i)| Fix::at(MeasuredTime(17_000_000_000 + i * 40), place)).collect()
}

#[test]
fn the_dot_follows_against_a_one_way_street() {
    let graph = one_way();
    let fixes = drive((0..30).map(|i| at(0.02, 9.5 - f64::from(i) * 0.3)));

    for profile in [Profile::Car, Profile::Moped, Profile::Bicycle] {
        let matched = match_trip(&graph, &mut Scratch::new(), profile, &fixes);
        assert!(matched.iter().all(|one| one.snapped.is_some()), "{profile}");
        let breaks = matched.iter().filter(|one| one.is_break).count();
        assert!(breaks <= 1, "{profile}: {breaks} breaks");
        let last = matched.last().and_then(|one| one.snapped).unwrap();
        assert!(!graph.allows(last.edge, profile), "{profile}: it is on the way against");
        // From there a way leads on in the street's own direction.
        let ends = (Endpoint::Edge { edge: last.edge, along_cm: last.along_cm }, Endpoint::Position(at(3.0, 0.0)));
        assert!(route_at(&Arc::new(one_way()), profile, ends, &ClosedTurns::none()).is_some(), "{profile}");
    }
}

#[test]
fn who_goes_along_a_one_way_street_is_never_against_it() {
    let graph = one_way();
    let fixes = drive((0..30).map(|i| at(0.03 * f64::from(i % 3), 0.3 + f64::from(i) * 0.3)));

    let matched = match_trip(&graph, &mut Scratch::new(), Profile::Car, &fixes);

    assert!(matched.iter().all(|one| one.snapped.is_some_and(|s| graph.allows(s.edge, Profile::Car))));
}

#[test]
fn one_fix_astray_costs_only_itself() {
    let graph = one_way();
    let good: Vec<Position> = (0..20).map(|i| at(3.0, 0.2 + f64::from(i) * 0.3)).collect();
    for astray in [0, 1, 9, 19] {
        let mut places = good.clone();
        places[astray] = at(30.0, 5.0);
        let matched = match_trip(&graph, &mut Scratch::new(), Profile::Car, &drive(places.into_iter()));

        let placed: Vec<bool> = matched.iter().map(|one| one.snapped.is_some()).collect();
        let expected: Vec<bool> = (0..20).map(|i| i != astray).collect();
        assert_eq!(placed, expected, "{astray}");
    }
}
