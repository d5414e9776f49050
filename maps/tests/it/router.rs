//! The hierarchy against the plain search: equal costs on thousands of random pairs, and every route one that may be
//! travelled.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use maps::router::{Dijkstra, Endpoint, Hierarchy, Route, Router, Weights};
use maps::{EdgeId, Graph, Profile, geo};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::cities;

#[test]
fn the_hierarchy_finds_what_dijkstra_finds() {
    for city in cities::all() {
        for profile in Profile::ALL.iter().copied() {
            let pairs = if profile == Profile::Car { 1_000 } else { 60 };
            let weights = Weights::free_flow(&city.graph, profile);
            let hierarchy = Hierarchy::new(city.graph.clone(), weights.clone()).unwrap();
            compare(city, profile, &hierarchy, &Dijkstra::new(city.graph.clone(), weights), pairs);
        }
    }
}

#[test]
fn the_hierarchy_finds_what_dijkstra_finds_under_new_weights() {
    for city in cities::all() {
        let mut random = SmallRng::seed_from_u64(21);
        let graph = &city.graph;
        let hierarchy = Hierarchy::new(graph.clone(), Weights::free_flow(graph, Profile::Car)).unwrap();
        for _ in 0..2 {
            let factor: Vec<f64> = (0..graph.edge_count()).map(|_| random.random_range(0.3..8.0)).collect();
            let slower = |e: EdgeId| (f64::from(graph.duration_ms(e, Profile::Car)) * factor[e.index()]) as u32;
            let weights = Weights::of(graph, Profile::Car, slower);
            hierarchy.reweight(weights.clone());
            compare(city, Profile::Car, &hierarchy, &Dijkstra::new(graph.clone(), weights), 80);
        }
    }
}

#[test]
fn routers_beside_each_other_answer_each_by_its_own_times() {
    let city = &cities::all()[0];
    let graph = &city.graph;
    let usual = Weights::free_flow(graph, Profile::Car);
    let slower = |e: EdgeId| graph.duration_ms(e, Profile::Car) * (1 + e.0 % 5);
    let changed = Weights::of(graph, Profile::Car, slower);
    let hierarchy = Hierarchy::new(graph.clone(), usual.clone()).unwrap();

    let beside = hierarchy.beside(changed.clone());

    let plain = Dijkstra::new(graph.clone(), usual);
    compare(city, Profile::Car, &*beside, &*plain.beside(changed), 80);
    compare(city, Profile::Car, &hierarchy, &plain, 80);
}

fn compare(city: &cities::City, profile: Profile, hierarchy: &dyn Router, plain: &dyn Router, pairs: usize) {
    let graph = &city.graph;
    let mut random = SmallRng::seed_from_u64(22 + u64::from(profile.number()));
    let mut found = 0;
    for number in 0..pairs {
        let (from, to) = (endpoint(graph, profile, &mut random), endpoint(graph, profile, &mut random));

        let (fast, slow) = (hierarchy.route(&from, &to), plain.route(&from, &to));

        let context = format!("{} {profile} pair {number}: {from:?} to {to:?}", city.name);
        assert_eq!(fast.as_ref().map(|r| r.cost_ms), slow.as_ref().map(|r| r.cost_ms), "{context}");
        if let Some(route) = fast {
            check(graph, profile, &route, &context);
            found += 1;
        }
    }
    assert!(found * 10 >= pairs * 8, "{} {profile}: {found} of {pairs}", city.name);
}

/// Every edge open, every turn allowed, everything joined, lengths added up.
fn check(graph: &Graph, profile: Profile, route: &Route, context: &str) {
    assert!(route.edges.iter().all(|e| graph.allows(*e, profile)), "{context}: a closed road");
    for pair in route.edges.windows(2) {
        assert_eq!(graph.to(pair[0]), graph.from(pair[1]), "{context}: a gap");
        assert!(graph.is_turn_allowed(pair[0], pair[1], profile), "{context}: a forbidden turn");
    }
    let line = route.geometry(graph);
    let drawn: f64 = line.windows(2).map(|pair| geo::distance_cm(pair[0], pair[1])).sum();
    let off = (drawn - f64::from(route.length_cm)).abs();
    assert!(off < 50.0 + drawn * 0.001, "{context}: {} cm long, drawn {drawn}", route.length_cm);
    assert!(route.duration_ms <= route.cost_ms);
}

/// A position or a place on an edge.
fn endpoint(graph: &Graph, profile: Profile, random: &mut SmallRng) -> Endpoint {
    loop {
        let edge = EdgeId(random.random_range(0..graph.edge_count() as u32));
        if graph.is_connected(edge, profile) {
            let along_cm = random.random_range(0..=graph.length_cm(edge));
            let (position, heading) = graph.place_at(edge, along_cm);
            return match random.random_range(0..3) {
                0 => Endpoint::Position(position),
                1 => Endpoint::Heading(position, heading),
                _ => Endpoint::Edge { edge, along_cm },
            };
        }
    }
}

#[test]
fn a_start_with_a_heading_goes_on_that_way() {
    let graph = &cities::all()[0].graph;
    let router = Hierarchy::new(graph.clone(), Weights::free_flow(graph, Profile::Car)).unwrap();
    let mut random = SmallRng::seed_from_u64(23);
    let mut seen = 0;
    while seen < 100 {
        let edge = EdgeId(random.random_range(0..graph.edge_count() as u32));
        let Some(reverse) = graph.reverse(edge).filter(|r| graph.is_connected(*r, Profile::Car)) else {
            continue;
        };
        if !graph.is_connected(edge, Profile::Car) || graph.length_cm(edge) < 4_000 {
            continue;
        }
        let (position, heading) = graph.place_at(edge, graph.length_cm(edge) / 2);
        let to = endpoint(graph, Profile::Car, &mut random);

        let route = router.route(&Endpoint::Heading(position, heading), &to).unwrap();

        assert_ne!(route.edges[0], reverse);
        seen += 1;
    }
}

#[test]
fn places_on_one_edge_are_joined_along_it_or_round_the_block() {
    let graph = &cities::all()[0].graph;
    let weights = Weights::free_flow(graph, Profile::Car);
    let router = Hierarchy::new(graph.clone(), weights).unwrap();
    let edge = graph
        .edges()
        .find(|e| graph.is_connected(*e, Profile::Car) && graph.length_cm(*e) > 10_000 && graph.reverse(*e).is_some())
        .unwrap();
    let at = |along_cm| Endpoint::Edge { edge, along_cm };

    let along = router.route(&at(1_000), &at(9_000)).unwrap();
    let round = router.route(&at(9_000), &at(1_000)).unwrap();
    let stay = router.route(&at(5_000), &at(5_000)).unwrap();

    assert_eq!((along.edges.len(), along.length_cm), (1, 8_000));
    assert!(round.edges.len() >= 3 && round.edges[0] == edge && round.edges[round.edges.len() - 1] == edge);
    assert_eq!((stay.length_cm, stay.duration_ms, stay.geometry(graph).len()), (0, 0, 2));
}

#[test]
fn a_road_can_be_avoided() {
    for city in cities::all() {
        let graph = &city.graph;
        let weights = Weights::free_flow(graph, Profile::Car);
        let hierarchy = Hierarchy::new(graph.clone(), weights.clone()).unwrap();
        let plain = Dijkstra::new(graph.clone(), weights);
        let mut random = SmallRng::seed_from_u64(24);
        let mut seen = 0;
        while seen < 10 {
            let (from, to) = (endpoint(graph, Profile::Car, &mut random), endpoint(graph, Profile::Car, &mut random));
            let Some(best) = hierarchy.route(&from, &to).filter(|r| r.edges.len() > 8) else {
                continue;
            };
            let avoid = [best.edges[best.edges.len() / 2]];

            let other = hierarchy.route_avoiding(&from, &to, &avoid, 10.0);

            assert_eq!(
                other.as_ref().map(|r| r.cost_ms),
                plain.route_avoiding(&from, &to, &avoid, 10.0).map(|r| r.cost_ms)
            );
            if let Some(other) = other {
                assert!(!other.edges.contains(&avoid[0]) && other.cost_ms >= best.cost_ms);
                check(graph, Profile::Car, &other, city.name);
            }
            seen += 1;
        }
    }
}

#[test]
fn one_to_many_says_what_single_routes_say() {
    let graph = &cities::all()[0].graph;
    let router = Hierarchy::new(graph.clone(), Weights::free_flow(graph, Profile::Bicycle)).unwrap();
    let mut random = SmallRng::seed_from_u64(25);
    let from = endpoint(graph, Profile::Bicycle, &mut random);
    let to: Vec<Endpoint> = (0..50).map(|_| endpoint(graph, Profile::Bicycle, &mut random)).collect();

    let reaches = router.one_to_many(&from, &to);

    for (to, reach) in to.iter().zip(reaches) {
        assert_eq!(reach, router.route(&from, to).map(|route| route.reach()));
    }
}

#[test]
fn queries_go_on_while_weights_change() {
    let graph = &cities::all()[0].graph;
    let router = Arc::new(Hierarchy::new(graph.clone(), Weights::free_flow(graph, Profile::Car)).unwrap());
    let mut random = SmallRng::seed_from_u64(26);
    let pairs: Vec<_> = (0..20)
        .map(|_| (endpoint(graph, Profile::Car, &mut random), endpoint(graph, Profile::Car, &mut random)))
        .collect();
    let twice = Weights::of(graph, Profile::Car, |e| graph.duration_ms(e, Profile::Car) * 2);
    let times =
        |router: &Hierarchy| pairs.iter().map(|(a, b)| router.route(a, b).map(|r| r.cost_ms)).collect::<Vec<_>>();
    let before = times(&router);
    router.reweight(twice.clone());
    let after = times(&router);
    let is_over = AtomicBool::new(false);

    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..20 {
                router.reweight(Weights::free_flow(graph, Profile::Car));
                router.reweight(twice.clone());
            }
            is_over.store(true, Ordering::Release);
        });
        while !is_over.load(Ordering::Acquire) {
            for ((pair, before), after) in pairs.iter().zip(&before).zip(&after) {
                let now = router.route(&pair.0, &pair.1).map(|r| r.cost_ms);
                assert!(now == *before || now == *after, "{now:?} is neither {before:?} nor {after:?}");
            }
        }
    });

    assert_ne!(before, after);
}

#[test]
fn ends_far_from_every_road_have_no_route() {
    let graph = &cities::all()[0].graph;
    let router = Hierarchy::new(graph.clone(), Weights::free_flow(graph, Profile::Car)).unwrap();
    let at_sea = Endpoint::Position(protocol::Position { lat_e7: 450_000_000, lon_e7: -300_000_000 });
    let in_town = Endpoint::Position(graph.bbox().centre());

    assert_eq!(router.route(&at_sea, &in_town), None);
    assert_eq!(router.route(&in_town, &at_sea), None);
    assert!(router.route(&in_town, &in_town).is_some());
    let no_edge = Endpoint::Edge { edge: EdgeId(u32::MAX), along_cm: 0 };
    assert_eq!(router.route(&no_edge, &in_town), None);
}
