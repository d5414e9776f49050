//! The grid in the file against the R-tree and against looking at every road.

use maps::index::{self, Rtree};
use maps::{Candidate, Graph, Profile, geo};
use protocol::Position;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::cities;

#[test]
fn the_grid_finds_what_the_r_tree_finds() {
    for city in cities::all() {
        let tree = Rtree::of(&city.graph);
        let mut random = SmallRng::seed_from_u64(11);
        let (mut by_grid, mut by_tree) = (Vec::new(), Vec::new());
        let mut found = 0;
        for round in 0..3_000 {
            let position = somewhere(&city.graph, &mut random);
            let radius_m = [5.0, 50.0, 50.0, 150.0, 1_000.0][round % 5];
            let profile = Profile::ALL[random.random_range(0..4)];

            city.graph.candidates(position, radius_m, profile, &mut by_grid);
            index::candidates(&city.graph, &tree, position, radius_m, profile, &mut by_tree);

            assert_eq!(by_grid, by_tree, "{}: {position:?} {radius_m} {profile}", city.name);
            found += by_grid.len();
        }
        assert!(found > 10_000, "{}: only {found}", city.name);
    }
}

#[test]
fn the_grid_finds_what_looking_at_every_edge_finds() {
    let graph = &cities::all()[0].graph;
    let mut random = SmallRng::seed_from_u64(12);
    let mut found = Vec::new();
    for _ in 0..150 {
        let position = somewhere(graph, &mut random);

        graph.candidates(position, 80.0, Profile::Car, &mut found);

        let mut expected: Vec<(u32, u32)> = graph
            .edges()
            .filter(|e| graph.allows(*e, Profile::Car))
            .map(|e| (off_cm(graph, e, position), e.0))
            .collect();
        expected.retain(|(off, _)| *off <= 8_000);
        expected.sort_unstable();
        // Rounding may put an edge at the very rim on either side of it.
        let inner = |all: &[(u32, u32)]| all.iter().copied().filter(|(off, _)| *off < 7_998).collect::<Vec<_>>();
        let found: Vec<(u32, u32)> = found.iter().map(|c| (c.off_cm, c.edge.0)).collect();
        assert_eq!(inner(&found), inner(&expected), "{position:?}");
    }
}

#[test]
fn a_candidate_is_where_it_says() {
    for city in cities::all() {
        let graph = &city.graph;
        let mut random = SmallRng::seed_from_u64(13);
        let mut found: Vec<Candidate> = Vec::new();
        for _ in 0..500 {
            let position = somewhere(graph, &mut random);

            graph.candidates(position, 50.0, Profile::Foot, &mut found);

            assert!(found.is_sorted_by_key(|c| (c.off_cm, c.edge)));
            for c in &found {
                assert!(graph.allows(c.edge, Profile::Foot));
                assert!(c.along_cm <= graph.length_cm(c.edge));
                let there = graph.position_at(c.edge, c.along_cm);
                assert!(geo::distance_cm(there, c.position) < 25.0, "{}: {c:?} {there:?}", city.name);
                assert!(
                    (geo::distance_cm(position, c.position) - f64::from(c.off_cm)).abs() < 10.0,
                    "{}: {c:?}",
                    city.name
                );
            }
        }
    }
}

#[test]
fn no_position_is_too_strange_to_ask_about() {
    let graph = &cities::all()[0].graph;
    let mut found = Vec::new();
    let extremes = [i32::MIN, -1_800_000_000, -900_000_000, -1, 0, 1, 900_000_000, 1_800_000_000, i32::MAX];
    for lat_e7 in extremes {
        for lon_e7 in extremes {
            for radius_m in [0.0, 50.0, 1e9, f64::INFINITY, -1.0, f64::NAN] {
                graph.candidates(Position { lat_e7, lon_e7 }, radius_m, Profile::Car, &mut found);
                assert!(found.is_empty());
            }
        }
    }
}

/// On the map, or a little beside it.
fn somewhere(graph: &Graph, random: &mut SmallRng) -> Position {
    let edge = maps::EdgeId(random.random_range(0..graph.edge_count() as u32));
    let on = graph.position_at(edge, random.random_range(0..=graph.length_cm(edge)));
    Position {
        lat_e7: on.lat_e7 + random.random_range(-9_000..9_000),
        lon_e7: on.lon_e7 + random.random_range(-9_000..9_000),
    }
}

fn off_cm(graph: &Graph, edge: maps::EdgeId, position: Position) -> u32 {
    let plane = geo::Plane::at(position);
    let line: Vec<(f64, f64)> = graph.geometry(edge).map(|p| plane.to_cm(p)).collect();
    let off = line.windows(2).map(|pair| {
        let (a, b) = (pair[0], pair[1]);
        let (dx, dy) = (b.0 - a.0, b.1 - a.1);
        let whole = dx * dx + dy * dy;
        let share = if whole > 0.0 { (-(a.0 * dx + a.1 * dy) / whole).clamp(0.0, 1.0) } else { 0.0 };
        (a.0 + share * dx).hypot(a.1 + share * dy)
    });
    off.fold(f64::INFINITY, f64::min).round() as u32
}
