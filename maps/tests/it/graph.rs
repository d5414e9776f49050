//! The graph's own promises, on every city.

use maps::{EdgeId, Profile, geo};

use crate::cities;

#[test]
fn edges_leave_and_arrive_where_they_say() {
    for city in cities::all() {
        let graph = &city.graph;
        for edge in graph.edges() {
            assert!(graph.out_edges(graph.from(edge)).any(|e| e == edge));
            assert!(graph.in_edges(graph.to(edge)).any(|e| e == edge));
            let line: Vec<_> = graph.geometry(edge).collect();
            assert!(line.len() >= 2);
            assert_eq!(graph.node_position(graph.from(edge)), Some(line[0]), "{} {edge:?}", city.name);
            assert_eq!(graph.node_position(graph.to(edge)), Some(line[line.len() - 1]));
            if let Some(reverse) = graph.reverse(edge) {
                assert!(graph.reverse(reverse) == Some(edge) || graph.is_copy(edge));
                assert_eq!((graph.from(reverse), graph.to(reverse)), (graph.to(edge), graph.from(edge)));
                assert_eq!(graph.length_cm(reverse), graph.length_cm(edge));
                assert!(graph.geometry(reverse).eq(graph.geometry(edge).rev()));
                assert!(graph.is_u_turn(edge, reverse));
            }
        }
    }
}

#[test]
fn lengths_and_places_follow_the_line() {
    for city in cities::all() {
        let graph = &city.graph;
        for edge in graph.edges().step_by(17) {
            let line: Vec<_> = graph.geometry(edge).collect();
            let drawn: f64 = line.windows(2).map(|pair| geo::distance_cm(pair[0], pair[1])).sum();
            assert!((drawn - f64::from(graph.length_cm(edge))).abs() <= 1.0, "{} {edge:?}", city.name);
            assert_eq!(graph.position_at(edge, 0), line[0]);
            assert_eq!(graph.position_at(edge, u32::MAX), line[line.len() - 1]);
            assert_eq!(graph.stretch(edge, 0, u32::MAX).first(), line.first());
        }
    }
}

#[test]
fn a_connected_edge_leads_to_connected_edges() {
    for city in cities::all() {
        let graph = &city.graph;
        for profile in Profile::ALL.iter().copied() {
            let connected = |e: &EdgeId| graph.is_connected(*e, profile);
            let (mut inside, mut open) = (0, 0);
            for edge in graph.edges().filter(|e| graph.allows(*e, profile)) {
                open += 1;
                if connected(&edge) {
                    inside += 1;
                    assert!(graph.out_edges(graph.to(edge)).any(|e| connected(&e)), "{} {profile} {edge:?}", city.name);
                    assert!(
                        graph.in_edges(graph.from(edge)).any(|e| connected(&e)),
                        "{} {profile} {edge:?}",
                        city.name
                    );
                }
            }
            assert!(inside * 100 >= open * 60, "{} {profile}: {inside} of {open}", city.name);
        }
    }
}

#[test]
fn every_edge_has_a_time_for_whoever_may_use_it() {
    for city in cities::all() {
        let graph = &city.graph;
        for edge in graph.edges() {
            for profile in Profile::ALL.iter().copied() {
                let km_h = f64::from(graph.speed_cm_s(edge, profile)) * 0.036;
                assert!(graph.duration_ms(edge, profile) >= 1);
                let max = match profile {
                    Profile::Car => 150.0,
                    Profile::Moped | Profile::Bicycle | Profile::Foot if graph.flags(edge).is_ferry() => 150.0,
                    Profile::Moped => 45.1,
                    Profile::Bicycle => 18.0,
                    Profile::Foot => 5.1,
                };
                assert!((0.0..=max).contains(&km_h), "{} {edge:?} {profile}: {km_h}", city.name);
            }
        }
    }
}
