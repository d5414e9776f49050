//! Restrictions that reach over ways: two carriageways joined by a short link, and what signs before it forbid.
//!
//! ```text
//!   3 ──10── 7          north
//!   2        3
//!   2 ─5─6── 6 ──9── 9
//!   1   11   4
//!   1   11   8
//! ```
//! Way 1 and 2 lead north, 3 and 4 south, 5 then 6 are the link; 11 is a side street of the link, 12 joins 8 and 1.

use std::sync::Arc;

use maps::diff::RoadsDiff;
use maps::router::{Dijkstra, Endpoint, Hierarchy, Route, Router, Weights};
use maps::{EdgeId, Graph, Profile};
use protocol::Position;

use crate::tagged::{Sketch, Tags};

type Place = (i64, i64);

fn carriageways() -> Sketch {
    let mut sketch = Sketch::default();
    let (street, oneway): (Tags, Tags) =
        (&[("highway", "residential")], &[("highway", "residential"), ("oneway", "yes")]);
    for (id, (north, east)) in [
        (1, (-2, 0)),
        (2, (0, 0)),
        (3, (1, 0)),
        (5, (0, 1)),
        (6, (0, 2)),
        (7, (1, 2)),
        (8, (-2, 2)),
        (9, (0, 6)),
        (11, (-3, 1)),
    ] {
        sketch.node(id, north, east, &[]);
    }
    sketch.way(1, &[1, 2], oneway).way(2, &[2, 3], oneway).way(3, &[7, 6], oneway).way(4, &[6, 8], oneway);
    sketch.way(5, &[2, 5], street).way(6, &[5, 6], street).way(9, &[6, 9], street).way(10, &[3, 7], street);
    sketch.way(11, &[5, 11], street).way(12, &[8, 1], street);
    sketch
}

const SOUTH: Place = (-2, 0);
const FORK: Place = (0, 0);
const FAR_FORK: Place = (0, 2);
const SOUTH_EAST: Place = (-2, 2);
const EAST: Place = (0, 6);
const NORTH: Place = (1, 0);

/// The ways of the best route from the middle of one road to the middle of another, by both routers.
fn ways(graph: &Arc<Graph>, profile: Profile, from: [Place; 2], to: [Place; 2]) -> Vec<i64> {
    let end = |[a, b]: [Place; 2]| Endpoint::Edge { edge: edge(graph, a, b), along_cm: 3_000 };
    let weights = Weights::free_flow(graph, profile);
    let fast = Hierarchy::new(graph.clone(), weights.clone()).unwrap().route(&end(from), &end(to));
    let plain = Dijkstra::new(graph.clone(), weights).route(&end(from), &end(to));
    assert_eq!(fast.as_ref().map(|r| r.cost_ms), plain.as_ref().map(|r| r.cost_ms));
    let of = |route: &Route| route.edges.iter().map(|edge| graph.osm_way(*edge)).collect::<Vec<_>>();
    assert_eq!(fast.as_ref().map(of), plain.as_ref().map(of));
    plain.map(|route| of(&route)).unwrap_or_default()
}

/// The edge between two places, no copy.
fn edge(graph: &Graph, from: Place, to: Place) -> EdgeId {
    let at = |(north, east): Place| Position {
        lat_e7: (440_000_000 + north * 9_000) as i32,
        lon_e7: (-300_000_000 + east * 12_500) as i32,
    };
    let is_it = |e: &EdgeId| {
        let ends = (graph.node_position(graph.from(*e)), graph.node_position(graph.to(*e)));
        ends == (Some(at(from)), Some(at(to))) && !graph.is_copy(*e)
    };
    graph.edges().find(is_it).unwrap()
}

#[test]
fn without_a_sign_the_link_is_the_way_round() {
    let graph = Arc::new(carriageways().graph());

    assert_eq!(ways(&graph, Profile::Car, [SOUTH, FORK], [FAR_FORK, SOUTH_EAST]), [1, 5, 6, 4]);
    assert!(graph.edges().all(|e| !graph.is_copy(e)));
}

#[test]
fn who_may_not_turn_round_over_a_link_may_cross_it() {
    let graph = Arc::new(carriageways().restriction_over("no_u_turn", 1, &[5, 6], 4, &[]).graph());

    assert_eq!(ways(&graph, Profile::Car, [SOUTH, FORK], [FAR_FORK, SOUTH_EAST]), [1, 2, 10, 3, 4]);
    assert_eq!(ways(&graph, Profile::Car, [SOUTH, FORK], [FAR_FORK, EAST]), [1, 5, 6, 9]);
    // Who comes out of the side street onto the link is not meant.
    assert_eq!(ways(&graph, Profile::Car, [(-3, 1), (0, 1)], [FAR_FORK, SOUTH_EAST]), [11, 6, 4]);
    assert_eq!(ways(&graph, Profile::Foot, [SOUTH, FORK], [FAR_FORK, SOUTH_EAST]), [1, 5, 6, 4]);
    assert_eq!((graph.summary().restrictions, graph.summary().restrictions_left_out), (1, 0));
}

#[test]
fn the_order_of_the_members_between_does_not_matter() {
    let there = carriageways().restriction_over("no_u_turn", 1, &[5, 6], 4, &[]).graph();
    let back = carriageways().restriction_over("no_u_turn", 1, &[6, 5], 4, &[]).graph();

    assert_eq!(there.version(), back.version());
}

#[test]
fn who_ends_on_the_link_gets_there_from_both_sides() {
    let graph = Arc::new(carriageways().restriction_over("no_u_turn", 1, &[5, 6], 4, &[]).graph());

    assert_eq!(ways(&graph, Profile::Car, [SOUTH, FORK], [FORK, (0, 1)]), [1, 5]);
    assert_eq!(ways(&graph, Profile::Car, [SOUTH, FORK], [(0, 1), FAR_FORK]), [1, 5, 6]);
    assert_eq!(ways(&graph, Profile::Car, [(-3, 1), (0, 1)], [(0, 1), FAR_FORK]), [11, 6]);
    let mut found = Vec::new();
    graph.candidates(graph.position_at(edge(&graph, FORK, (0, 1)), 5_000), 5.0, Profile::Car, &mut found);
    let along: Vec<_> = found.iter().filter(|c| graph.from(c.edge) == graph.from(edge(&graph, FORK, (0, 1)))).collect();
    assert_eq!(along.len(), 2, "the edge and its copy: {found:?}");
}

#[test]
fn exceptions_hold_over_links_too() {
    let graph = Arc::new(carriageways().restriction_over("no_u_turn", 1, &[5, 6], 4, &[("except", "bicycle")]).graph());

    assert_eq!(ways(&graph, Profile::Bicycle, [SOUTH, FORK], [FAR_FORK, SOUTH_EAST]), [1, 5, 6, 4]);
    assert_eq!(ways(&graph, Profile::Moped, [SOUTH, FORK], [FAR_FORK, SOUTH_EAST]), [1, 2, 10, 3, 4]);
}

#[test]
fn the_only_way_on_over_a_link_is_the_only_one() {
    let graph = Arc::new(carriageways().restriction_over("only_straight_on", 1, &[5, 6], 9, &[]).graph());

    assert_eq!(ways(&graph, Profile::Car, [SOUTH, FORK], [FAR_FORK, EAST]), [1, 5, 6, 9]);
    // Neither the carriageway on, nor the side street, nor back down: all only after going east and turning.
    assert_eq!(ways(&graph, Profile::Car, [SOUTH, FORK], [FAR_FORK, SOUTH_EAST]), [1, 5, 6, 9, 9, 4]);
    assert_eq!(ways(&graph, Profile::Car, [SOUTH, FORK], [(0, 1), (-3, 1)]), [1, 5, 6, 9, 9, 6, 11]);
    assert_eq!(ways(&graph, Profile::Car, [(-3, 1), (0, 1)], [FAR_FORK, SOUTH_EAST]), [11, 6, 4]);
}

#[test]
fn restrictions_that_share_their_edges_are_all_kept() {
    let mut sketch = carriageways();
    sketch.restriction_over("no_u_turn", 1, &[5, 6], 4, &[]).restriction_over("no_right_turn", 1, &[5], 11, &[]);
    sketch.restriction_over("no_right_turn", 11, &[6], 4, &[]);
    let graph = Arc::new(sketch.graph());

    assert_eq!(graph.summary().restrictions, 3);
    assert_eq!(ways(&graph, Profile::Car, [SOUTH, FORK], [FAR_FORK, SOUTH_EAST]), [1, 2, 10, 3, 4]);
    assert_eq!(ways(&graph, Profile::Car, [SOUTH, FORK], [FAR_FORK, EAST]), [1, 5, 6, 9]);
    assert_eq!(ways(&graph, Profile::Car, [SOUTH, FORK], [(0, 1), (-3, 1)]), [1, 2, 10, 3, 6, 11]);
    assert_eq!(ways(&graph, Profile::Car, [(-3, 1), (0, 1)], [FAR_FORK, EAST]), [11, 6, 9]);
    let around = ways(&graph, Profile::Car, [(-3, 1), (0, 1)], [FAR_FORK, SOUTH_EAST]);
    assert_ne!(around[..], [11, 6, 4]);
}

#[test]
fn members_that_do_not_join_or_join_twice_are_counted() {
    let mut sketch = carriageways();
    sketch.restriction_over("no_u_turn", 1, &[10], 4, &[]); // 10 does not touch 1
    sketch.restriction_over("no_u_turn", 1, &[5, 77], 4, &[]); // 77 is not there
    sketch.restriction_over("no_u_turn", 1, &[5, 6], 12, &[]); // 12 does not touch 6
    let graph = sketch.graph();

    assert_eq!((graph.summary().restrictions, graph.summary().restrictions_left_out), (0, 3));
    assert!(graph.edges().all(|e| !graph.is_copy(e)));
}

#[test]
fn what_holds_at_some_hours_only_is_kept_with_its_hours_but_over_ways() {
    let mut sketch = carriageways();
    sketch.restriction_over("no_u_turn", 1, &[5, 6], 4, &[("hour_on", "07:00"), ("hour_off", "19:00")]);
    sketch.restriction("no_straight_on @ (Mo-Fr)", 1, 2, 2, &[]);
    sketch.restriction("no_straight_on @ (wet)", 1, 2, 2, &[]);
    let graph = Arc::new(sketch.graph());

    assert_eq!((graph.summary().restrictions, graph.summary().restrictions_left_out), (1, 2));
    assert_eq!(ways(&graph, Profile::Car, [SOUTH, FORK], [FORK, NORTH]), [1, 2]);
    assert_eq!(graph.conditions().map(|(.., hours)| hours).collect::<Vec<_>>(), ["Mo-Fr"]);
}

#[test]
fn nobody_gets_round_a_rule_by_going_to_and_fro_on_the_link() {
    // The link as one two-way street, without a way on in the east: round by the north only.
    let mut sketch = Sketch::default();
    let (street, oneway): (Tags, Tags) =
        (&[("highway", "residential")], &[("highway", "residential"), ("oneway", "yes")]);
    for (id, (north, east)) in [(1, (-2, 0)), (2, (0, 0)), (3, (9, 0)), (6, (0, 1)), (7, (9, 1)), (8, (-2, 1))] {
        sketch.node(id, north, east, &[]);
    }
    sketch.way(1, &[1, 2], oneway).way(2, &[2, 3], oneway).way(3, &[7, 6], oneway).way(4, &[6, 8], oneway);
    sketch.way(5, &[2, 6], street).way(10, &[3, 7], street).way(12, &[8, 1], street);
    let graph = Arc::new(sketch.restriction_over("no_u_turn", 1, &[5], 4, &[]).graph());

    let driven = ways(&graph, Profile::Car, [SOUTH, FORK], [(0, 1), (-2, 1)]);

    assert_eq!(driven, [1, 2, 10, 3, 4]);
}

#[test]
fn copies_of_edges_are_no_roads_that_came_or_changed() {
    let (plain, signed) = (
        carriageways().graph(),
        carriageways().restriction_over("no_u_turn", 1, &[5, 6], 4, &[("except", "bicycle")]).graph(),
    );
    assert!(signed.edge_count() > plain.edge_count());

    for (old, new) in [(&plain, &signed), (&signed, &plain)] {
        let total = RoadsDiff::of(old, new).total;

        assert_eq!((total.edges_added, total.edges_removed, total.edges_changed), (0, 0, 0), "{total:?}");
        assert_eq!(total.edges_old, total.edges_new);
        assert!((total.km_old - total.km_new).abs() < 1e-9, "{total:?}");
    }
}

#[test]
fn via_ways_that_form_a_mesh_are_counted_not_tried_in_all_orders() {
    // With 24 ways in it, as many as a restriction may have, and with more.
    for side in [4, 6] {
        let (mut sketch, via) = mesh(side);

        let (done, finished) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let _ = done.send(sketch.restriction_over("no_u_turn", 5001, &via, 5002, &[]).graph());
        });
        let graph = finished.recv_timeout(std::time::Duration::from_secs(60)).expect("a map within a minute");

        assert_eq!((graph.summary().restrictions, graph.summary().restrictions_left_out), (0, 1), "{side}");
    }
}

/// Streets as on squared paper, each from one crossing to the next a way, with a way in and a way out.
fn mesh(side: i64) -> (Sketch, Vec<i64>) {
    let mut sketch = Sketch::default();
    let street: Tags = &[("highway", "residential")];
    let node = |north: i64, east: i64| 1 + north * side + east;
    for north in 0..side {
        for east in 0..side {
            sketch.node(node(north, east), north, east, &[]);
        }
    }
    let mut via = Vec::new();
    for (north, east) in (0..side * side).map(|i| (i / side, i % side)) {
        for (next_north, next_east) in [(north + 1, east), (north, east + 1)] {
            if next_north < side && next_east < side {
                via.push(1 + via.len() as i64);
                sketch.way(via.len() as i64, &[node(north, east), node(next_north, next_east)], street);
            }
        }
    }
    sketch.node(9001, -1, 0, &[]).node(9002, side, side - 1, &[]);
    sketch.way(5001, &[9001, node(0, 0)], street).way(5002, &[node(side - 1, side - 1), 9002], street);
    (sketch, via)
}
