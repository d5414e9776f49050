//! What the graph costs to open, to search and to route on: `measure_graph MAP`.

mod common;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use maps::index::{self, Rtree};
use maps::router::{Dijkstra, Endpoint, Hierarchy, Router, Weights};
use maps::{Candidate, EdgeId, Graph, Profile};
use protocol::Position;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

fn main() {
    let Some(path) = std::env::args_os().nth(1) else {
        eprintln!("usage: measure_graph MAP");
        std::process::exit(64);
    };
    let start = Instant::now();
    let graph = Arc::new(Graph::open(path).expect("a map"));
    println!("open                {:>9.2} ms", start.elapsed().as_secs_f64() * 1e3);
    candidates(&graph);
    tiles(&graph);
    routes(&graph);
}

/// Places on roads that cars use, as drivers would be.
fn places(graph: &Graph, count: usize) -> Vec<(EdgeId, u32)> {
    let mut random = SmallRng::seed_from_u64(7);
    let mut places = Vec::with_capacity(count);
    while places.len() < count {
        let edge = EdgeId(random.random_range(0..graph.edge_count() as u32));
        if graph.is_connected(edge, Profile::Car) {
            places.push((edge, random.random_range(0..=graph.length_cm(edge))));
        }
    }
    places
}

fn candidates(graph: &Graph) {
    let positions: Vec<_> = places(graph, 20_000).iter().map(|(e, along)| graph.position_at(*e, *along)).collect();
    let grid = |p, found: &mut Vec<_>| graph.candidates(p, 50.0, Profile::Car, found);
    measure_candidates("candidates", &positions, grid);
    let tree = Rtree::of(graph);
    let by_tree = |p, found: &mut Vec<_>| index::candidates(graph, &tree, p, 50.0, Profile::Car, found);
    measure_candidates("  by rstar", &positions, by_tree);
}

fn measure_candidates(name: &str, positions: &[Position], find: impl Fn(Position, &mut Vec<Candidate>)) {
    let mut found = Vec::new();
    let (mut total, rounds) = (0, 25);
    let start = common::cpu_s();
    for position in std::iter::repeat_n(positions, rounds).flatten() {
        find(*position, &mut found);
        total += black_box(&found).len();
    }
    let queries = (rounds * positions.len()) as f64;
    let cpu_us = (common::cpu_s() - start) / queries * 1e6;
    println!("{name}          {cpu_us:>9.3} us cpu, {:.1} found", total as f64 / queries);
}

fn tiles(graph: &Graph) {
    let start = Instant::now();
    maps::tiles::tile(graph, 5, 0, 0);
    maps::tiles::tile(graph, 16, 1, 1);
    println!("tile index          {:>9.2} ms", start.elapsed().as_secs_f64() * 1e3);
    let centre = graph.position_at(places(graph, 1)[0].0, 0);
    for zoom in [5_u8, 8, 10, 11, 12, 13, 14, 15, 16] {
        let side = f64::from(1_u32 << zoom);
        let radian = centre.lat().to_radians();
        let x = (centre.lon() + 180.0) / 360.0 * side;
        let y = (1.0 - (radian.tan() + 1.0 / radian.cos()).ln() / std::f64::consts::PI) / 2.0 * side;
        let start = Instant::now();
        let bytes = maps::tiles::tile(graph, zoom, x as u32, y as u32).len();
        println!("tile at zoom {zoom:>2}     {:>9.2} ms, {bytes} bytes", start.elapsed().as_secs_f64() * 1e3);
    }
}

fn routes(graph: &Arc<Graph>) {
    let weights = Weights::free_flow(graph, Profile::Car);
    let start = Instant::now();
    let router = Hierarchy::new(graph.clone(), weights.clone()).expect("an order");
    let (nodes, arcs) = router.size();
    let edges = graph.edges().filter(|e| graph.allows(*e, Profile::Car)).count();
    println!(
        "hierarchy           {:>9.1} ms, {nodes} nodes, {arcs} arcs, {:.0} B per car edge of {edges}, {:.0} B per edge",
        start.elapsed().as_secs_f64() * 1e3,
        router.bytes() as f64 / edges as f64,
        router.bytes() as f64 / graph.edge_count() as f64
    );
    for profile in [Profile::Bicycle, Profile::Foot] {
        let other = Hierarchy::new(graph.clone(), Weights::free_flow(graph, profile)).expect("an order");
        println!("  for {profile:<8}      {:?} nodes and arcs", other.size());
    }
    let (start, cpu) = (Instant::now(), common::cpu_s());
    for _ in 0..20 {
        router.reweight(weights.clone());
    }
    println!(
        "re-weight           {:>9.2} ms, {:.2} cpu",
        start.elapsed().as_secs_f64() * 1e3 / 20.0,
        (common::cpu_s() - cpu) * 1e3 / 20.0
    );
    let places = places(graph, 4_000);
    let mut times = Vec::new();
    let (mut edges, mut found) = (0, 0);
    for pair in places.chunks(2) {
        let ends = [0, 1].map(|i| Endpoint::Edge { edge: pair[i].0, along_cm: pair[i].1 });
        let mut best = f64::INFINITY;
        for _ in 0..3 {
            let start = Instant::now();
            let route = black_box(router.route(&ends[0], &ends[1]));
            best = best.min(start.elapsed().as_secs_f64());
            if let Some(route) = route {
                edges += route.edges.len();
                found += 1;
            }
        }
        times.push(best);
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize] * 1e6;
    println!(
        "route with path     {:>9.1} us p50, {:.1} p90, {:.1} p99, {:.0} edges on average",
        at(0.5),
        at(0.9),
        at(0.99),
        edges as f64 / f64::from(found)
    );
    let plain = Dijkstra::new(graph.clone(), weights);
    let start = Instant::now();
    let mut wrong = 0;
    for pair in places.chunks(2).take(100) {
        let ends = [0, 1].map(|i| Endpoint::Edge { edge: pair[i].0, along_cm: pair[i].1 });
        let (a, b) = (plain.route(&ends[0], &ends[1]), router.route(&ends[0], &ends[1]));
        if a.as_ref().map(|r| r.cost_ms) != b.as_ref().map(|r| r.cost_ms) {
            wrong += 1;
        }
    }
    println!("dijkstra            {:>9.0} us, {wrong} of 100 differ", start.elapsed().as_secs_f64() * 1e4);
}
