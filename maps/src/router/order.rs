//! The order in which the router contracts junctions: found once at import, by nested dissection, and stored with the
//! map. The search for it cannot be stopped from outside and does not end in useful time on some graphs (a regular
//! grid of 900 × 900), so it runs on a thread of its own with a time bound; beyond that the map gets none, and the
//! router searches without a hierarchy: slower, but it answers.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::record::{BACKWARD, EdgeRecord, PointRecord, RoadRecord};

/// What an order is made from.
pub struct Topology<'a> {
    pub edges: &'a [EdgeRecord],
    pub nodes: usize,
    pub roads: &'a [RoadRecord],
    pub points: &'a [PointRecord],
}

/// Junctions, the first to be contracted first.
#[derive(Clone, Debug, Default)]
pub struct Order {
    pub nodes: Vec<u32>,
    /// None was found in time: `nodes` is empty.
    pub is_missing: bool,
}

/// Finds an order, or gives up after a while.
pub fn compute(topology: &Topology<'_>, time_max: Duration) -> Order {
    let (tail, head) = arcs(topology.edges);
    let (latitude, longitude) = coordinates(topology);
    let nodes = topology.nodes as u32;
    let (sender, receiver) = mpsc::sync_channel(1);
    let search = move || {
        let order = cch::inertial_order(nodes, &tail, &head, &latitude, &longitude);
        let _ = sender.send(order); // nobody waits any more once the time is over
    };
    let is_running = thread::Builder::new().name("maps order".to_owned()).spawn(search).is_ok();
    match receiver.recv_timeout(time_max) {
        Ok(nodes) if is_running => Order { nodes, is_missing: false },
        Ok(_) | Err(_) => Order { nodes: Vec::new(), is_missing: true },
    }
}

/// Each pair of neighbours once: the search treats arcs as undirected.
fn arcs(edges: &[EdgeRecord]) -> (Vec<u32>, Vec<u32>) {
    let pairs = edges.iter().map(|e| (e.from.min(e.to), e.from.max(e.to))).filter(|(a, b)| a != b);
    let mut pairs: Vec<(u32, u32)> = pairs.collect();
    pairs.sort_unstable();
    pairs.dedup();
    pairs.into_iter().unzip()
}

fn coordinates(topology: &Topology<'_>) -> (Vec<f32>, Vec<f32>) {
    let mut latitude = vec![0.0; topology.nodes];
    let mut longitude = vec![0.0; topology.nodes];
    for edge in topology.edges {
        let road = (edge.road & !BACKWARD) as usize;
        let (first, end) = (topology.roads[road].first_point, topology.roads[road + 1].first_point);
        let (from, to) = if edge.road & BACKWARD == 0 { (first, end - 1) } else { (end - 1, first) };
        for (node, point) in [(edge.from, from), (edge.to, to)] {
            let point = topology.points[point as usize];
            latitude[node as usize] = (f64::from(point.lat_e7) / 1e7) as f32;
            longitude[node as usize] = (f64::from(point.lon_e7) / 1e7) as f32;
        }
    }
    (latitude, longitude)
}
