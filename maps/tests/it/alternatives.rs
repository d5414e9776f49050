//! Other ways are other ways, and good ones.

use maps::router::{Dijkstra, Endpoint, Route, Router, Weights, alternatives};
use maps::{EdgeId, Graph, NodeId, Profile};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::cities;

fn length_cm<'a>(graph: &Graph, edges: impl Iterator<Item = &'a EdgeId>) -> u64 {
    edges.map(|edge| u64::from(graph.length_cm(*edge))).sum()
}

fn are_nearly_one(graph: &Graph, a: &Route, b: &Route) -> bool {
    let common = length_cm(graph, a.edges.iter().filter(|edge| b.edges.contains(edge)));
    common * 10 > length_cm(graph, a.edges.iter()).max(length_cm(graph, b.edges.iter())) * 7
}

#[test]
fn other_ways_are_other_ways_and_never_much_longer() {
    for city in cities::all().iter().take(2) {
        let (graph, mut random) = (&city.graph, SmallRng::seed_from_u64(11));
        let router = Dijkstra::new(graph.clone(), Weights::free_flow(graph, Profile::Car));
        let (mut with_way, mut with_others) = (0, 0);
        for _ in 0..30 {
            let [from, to] = [0, 1].map(|_| {
                let node = NodeId(random.random_range(0..graph.node_count() as u32));
                Endpoint::Position(graph.node_position(node).unwrap_or_default())
            });
            let ways = alternatives(graph, &router, (&from, &to), 3);
            let Some(best) = router.route(&from, &to) else {
                assert!(ways.is_empty());
                continue;
            };
            assert_eq!(ways[0].cost_ms, best.cost_ms, "{}: the best is not the first", city.name);
            assert!(ways.len() <= 4 && ways.is_sorted_by_key(|way| way.cost_ms));
            for (number, way) in ways.iter().enumerate() {
                assert!(f64::from(way.cost_ms) <= f64::from(best.cost_ms) * 1.5);
                assert!(way.edges.windows(2).all(|pair| graph.to(pair[0]) == graph.from(pair[1])));
                assert!(!ways[..number].iter().any(|other| are_nearly_one(graph, way, other)), "{}", city.name);
            }
            with_way += 1;
            with_others += usize::from(ways.len() > 1);
        }
        assert!(with_others * 2 > with_way && with_way > 20, "{}: {with_others} of {with_way}", city.name);
    }
}
