//! How much of one map another has too: what says whether a new map is another version of one in use. Boxes do not say
//! it: a country's lies over its neighbours' cities. Roads do: the same way of OpenStreetMap, in the same place.
//!
//! Sketch: some thousand ways of the smaller map are looked for in the larger by one pass over its roads, with a filter
//! of bits before the search: some 30 ms for a country of ten million roads.

use std::collections::BTreeMap;

use protocol::Position;

use crate::geo;
use crate::graph::Graph;
use crate::record::COPIED;

/// The share, 0 to 1, of the smaller map's ways that the other has in the same place. The same for both orders.
pub fn share(a: &Graph, b: &Graph) -> f64 {
    if a.version() == b.version() {
        return 1.0;
    }
    let ways = |graph: &Graph| graph.view().ways.len();
    let (small, large) = if ways(a) <= ways(b) { (a, b) } else { (b, a) };
    let sample = sample(small);
    if sample.is_empty() {
        return 0.0;
    }
    let mut filter = vec![0_u64; FILTER_BITS / 64];
    let bit = |id: i64| (id as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) as usize % FILTER_BITS;
    for id in sample.keys() {
        filter[bit(*id) / 64] |= 1 << (bit(*id) % 64);
    }
    let mut found: BTreeMap<i64, bool> = BTreeMap::new();
    for (id, position) in roads(large) {
        if filter[bit(id) / 64] & 1 << (bit(id) % 64) == 0 {
            continue;
        }
        if let Some(there) = sample.get(&id)
            && geo::distance_cm(*there, position) <= APART_CM_MAX
        {
            found.insert(id, true);
        }
    }
    found.len() as f64 / sample.len() as f64
}

/// Whether one is another version of the other: most of the smaller map's roads are in both.
pub fn is_same_region(a: &Graph, b: &Graph) -> bool {
    share(a, b) > 0.5
}

/// Ways spread evenly over a map, each with a place on it.
fn sample(graph: &Graph) -> BTreeMap<i64, Position> {
    let step = graph.view().ways.len().div_ceil(SAMPLE_MAX).max(1);
    let mut sample = BTreeMap::new();
    for (number, (id, position)) in roads_by_way(graph) {
        if number % step == 0 {
            sample.entry(id).or_insert(position);
        }
    }
    sample
}

/// Each road's way and first point.
fn roads(graph: &Graph) -> impl Iterator<Item = (i64, Position)> + '_ {
    roads_by_way(graph).map(|(_, road)| road)
}

fn roads_by_way(graph: &Graph) -> impl Iterator<Item = (usize, (i64, Position))> + '_ {
    let view = graph.view();
    view.roads[..view.road_count()].iter().map(|road| {
        let way = (road.way & !COPIED) as usize;
        (way, (view.ways[way].osm_id, view.points[road.first_point as usize].position()))
    })
}

const SAMPLE_MAX: usize = 4_096;
const FILTER_BITS: usize = 1 << 18;
/// A way that was drawn anew, or of which another part is in the map, begins elsewhere; a way of another town that has
/// the same number by chance, farther away.
const APART_CM_MAX: f64 = 300_000.0;
