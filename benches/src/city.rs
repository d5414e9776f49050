//! What a map costs: to import, to keep, to search and to route on.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use maps::index::{self, Rtree};
use maps::router::{Endpoint, Hierarchy, Router, Weights};
use maps::{Candidate, EdgeId, Graph, Profile};
use protocol::Position;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::{Goal, Report, cpu};

/// Places on roads that cars use, as drivers would be.
fn places(graph: &Graph, count: usize) -> anyhow::Result<Vec<(EdgeId, u32)>> {
    let open: Vec<EdgeId> = graph.edges().filter(|edge| graph.is_connected(*edge, Profile::Car)).collect();
    anyhow::ensure!(!open.is_empty(), "the map has no roads for cars");
    let mut random = SmallRng::seed_from_u64(SEED);
    let mut place = |_| {
        let edge = open[random.random_range(0..open.len())];
        (edge, random.random_range(0..=graph.length_cm(edge)))
    };
    Ok((0..count).map(&mut place).collect())
}

/// Finding the roads near a place, by our index and by an R-tree of the same roads.
pub fn candidates(graph: &Graph, report: &mut Report) -> anyhow::Result<()> {
    let places = places(graph, 20_000)?;
    let positions: Vec<Position> = places.iter().map(|(edge, along)| graph.position_at(*edge, *along)).collect();
    let tree = Rtree::of(graph);
    let by_tree = |p, found: &mut Vec<_>| index::candidates(graph, &tree, p, NEAR_M, Profile::Car, found);
    let (tree_us, _) = measure_candidates(&positions, by_tree);
    let (us, found) = measure_candidates(&positions, |p, found| graph.candidates(p, NEAR_M, Profile::Car, found));
    let yardstick = format!("CPU; an R-tree: {tree_us:.2}; {found:.1} found");
    report.row("candidates within 50 m", us, "us", &yardstick, Goal::AtMost(0.8));
    Ok(())
}

/// Microseconds of CPU and candidates found for each query.
fn measure_candidates(positions: &[Position], find: impl Fn(Position, &mut Vec<Candidate>)) -> (f64, f64) {
    let mut found = Vec::new();
    let mut fewest = (f64::INFINITY, 0.0);
    for _ in 0..10 {
        let (mut total, began) = (0, cpu::of_this_thread());
        for position in positions {
            find(*position, &mut found);
            total += black_box(&found).len();
        }
        let us = (cpu::of_this_thread() - began).as_secs_f64() * 1e6 / positions.len() as f64;
        if us < fewest.0 {
            fewest = (us, total as f64 / positions.len() as f64);
        }
    }
    fewest
}

/// The router: memory, routes, and new weights while others ask.
pub fn routes(graph: &Arc<Graph>, report: &mut Report) -> anyhow::Result<()> {
    let weights = Weights::free_flow(graph, Profile::Car);
    let began = Instant::now();
    let router = Hierarchy::new(graph.clone(), weights.clone()).context("the map has no order for the router")?;
    report.row("make the hierarchy", began.elapsed().as_secs_f64() * 1e3, "ms", "once, at start", Goal::None);
    let bytes = router.bytes() as f64 / graph.edge_count() as f64;
    report.row("memory of the hierarchy per directed edge", bytes, "B", "", Goal::AtMost(70.0));

    let places = places(graph, 4_000)?;
    let at = |place: (EdgeId, u32)| Endpoint::Edge { edge: place.0, along_cm: place.1 };
    let pairs: Vec<[Endpoint; 2]> = places.chunks_exact(2).map(|pair| [at(pair[0]), at(pair[1])]).collect();
    let (mut times, mut edges) = (Vec::new(), 0);
    for pair in &pairs {
        // The best of three: what else runs on this machine is not the router's.
        let mut best = Duration::MAX;
        for _ in 0..3 {
            let began = Instant::now();
            let route = black_box(router.route(&pair[0], &pair[1]));
            best = best.min(began.elapsed());
            edges += route.map_or(0, |route| route.edges.len());
        }
        times.push(best);
    }
    let of_edges = format!("{} pairs, {:.0} edges each", pairs.len(), edges as f64 / (3 * pairs.len()) as f64);
    times.sort_unstable();
    report.row("route with path p50", us_at(&times, 0.5), "us", &of_edges, Goal::AtMost(25.0));
    report.row("route with path p99", us_at(&times, 0.99), "us", "", Goal::None);
    reweight(&router, &weights, graph, &pairs, report)
}

fn reweight(
    router: &Hierarchy,
    free: &Weights,
    graph: &Graph,
    pairs: &[[Endpoint; 2]],
    report: &mut Report,
) -> anyhow::Result<()> {
    let slow = Weights::of(graph, Profile::Car, |edge| free.duration_ms(edge) + free.duration_ms(edge) / 4);
    let is_over = AtomicBool::new(false);
    let ask = || {
        let mut times = Vec::new();
        for pair in pairs.iter().cycle().take_while(|_| !is_over.load(Ordering::Relaxed)) {
            let began = Instant::now();
            black_box(router.route(&pair[0], &pair[1]));
            times.push(began.elapsed());
        }
        times
    };
    let change = || {
        let mut times = Vec::new();
        for round in 0..REWEIGHTS {
            let weights = if round % 2 == 0 { slow.clone() } else { free.clone() };
            let began = Instant::now();
            router.reweight(weights);
            times.push(began.elapsed());
        }
        is_over.store(true, Ordering::Relaxed);
        times
    };
    let (mut asked, mut changed) = std::thread::scope(|scope| {
        let asking = scope.spawn(ask);
        let changed = change();
        asking.join().map(|asked| (asked, changed)).map_err(|_| anyhow::anyhow!("a query panicked"))
    })?;
    changed.sort_unstable();
    asked.sort_unstable();
    let cores = "wall clock, on all cores but the one that asks";
    report.row("re-weight p50, queries running", us_at(&changed, 0.5) / 1e3, "ms", cores, Goal::AtMost(50.0));
    report.row("re-weight p99, queries running", us_at(&changed, 0.99) / 1e3, "ms", "", Goal::None);
    let count = format!("{} queries, one thread", asked.len());
    report.row("route p50 meanwhile", us_at(&asked, 0.5), "us", &count, Goal::None);
    report.row("route p99 meanwhile", us_at(&asked, 0.99), "us", "", Goal::None);
    Ok(())
}

/// The slowest tile above one place, zoom by zoom.
pub fn tiles(graph: &Graph, report: &mut Report) -> anyhow::Result<()> {
    maps::tiles::tile(graph, 5, 0, 0);
    maps::tiles::tile(graph, 16, 1, 1);
    let (edge, along_cm) = places(graph, 1)?[0];
    let centre = graph.position_at(edge, along_cm);
    let mut slowest = (0.0, 0, 0);
    for zoom in 5..=16_u8 {
        let side = f64::from(1_u32 << zoom);
        let lat_rad = centre.lat().to_radians();
        let x = (centre.lon() + 180.0) / 360.0 * side;
        let y = (1.0 - (lat_rad.tan() + 1.0 / lat_rad.cos()).ln() / std::f64::consts::PI) / 2.0 * side;
        let began = Instant::now();
        let bytes = maps::tiles::tile(graph, zoom, x as u32, y as u32).len();
        let ms = began.elapsed().as_secs_f64() * 1e3;
        if ms > slowest.0 {
            slowest = (ms, zoom, bytes);
        }
    }
    let yardstick = format!("zoom {}, {:.0} kB", slowest.1, slowest.2 as f64 / 1e3);
    report.row("slowest tile, zoom 5 to 16", slowest.0, "ms", &yardstick, Goal::None);
    Ok(())
}

fn us_at(sorted: &[Duration], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share) as usize).map_or(0.0, |time| time.as_secs_f64() * 1e6)
}

const NEAR_M: f64 = 50.0;
const REWEIGHTS: usize = 50;
const SEED: u64 = 7;
