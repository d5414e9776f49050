//! Other good ways: the cheapest that leave out a part of those found before. Not every way that differs somewhere is
//! another way; one counts that costs little more and shares not too much with any better one.

use super::{Endpoint, Route, Router};
use crate::graph::{EdgeId, Graph};

/// The best way first, then up to `others_max` others, the cheapest first; empty if there is none at all.
pub fn alternatives(
    graph: &Graph,
    router: &dyn Router,
    (from, to): (&Endpoint, &Endpoint),
    others_max: usize,
) -> Vec<Route> {
    let Some(best) = router.route(from, to) else { return Vec::new() };
    let mut found = vec![best];
    let mut rounds = 0;
    while found.len() <= others_max && rounds < found.len() {
        // Around each part of a way found, the best one first.
        let way = found[rounds].clone();
        rounds += 1;
        let parts = SECTIONS.iter().map(|section| part(graph, &way, *section)).filter(|part| !part.is_empty());
        let around = parts.filter_map(|avoid| router.route_avoiding(from, to, &avoid, COST_FACTOR_MAX));
        let mut around: Vec<Route> = around.filter(|route| route.cost_ms <= limit(&found[0])).collect();
        around.sort_by_key(|route| (route.cost_ms, route.length_cm));
        for route in around {
            let is_other = found.iter().all(|known| shared(graph, &route, known) <= SHARED_MAX);
            if is_other && found.len() <= others_max {
                found.push(route);
            }
        }
    }
    found[1..].sort_by_key(|route| (route.cost_ms, route.length_cm));
    found
}

fn limit(best: &Route) -> u32 {
    (f64::from(best.cost_ms) * COST_FACTOR_MAX) as u32
}

/// The edges of a stretch of the way, by its share of the length; never the first or the last, which one cannot avoid.
fn part(graph: &Graph, route: &Route, (begin, end): (f64, f64)) -> Vec<EdgeId> {
    let inner = route.edges.get(1..route.edges.len().saturating_sub(1)).unwrap_or_default();
    let whole: f64 = inner.iter().map(|edge| f64::from(graph.length_cm(*edge))).sum();
    let mut along = 0.0;
    let mut edges = Vec::new();
    for edge in inner {
        let middle = along + f64::from(graph.length_cm(*edge)) / 2.0;
        along += f64::from(graph.length_cm(*edge));
        if (begin * whole..end * whole).contains(&middle) {
            edges.push(*edge);
        }
    }
    edges
}

/// How much of a way lies on another, by length.
fn shared(graph: &Graph, route: &Route, other: &Route) -> f64 {
    let mut edges = other.edges.clone();
    edges.sort_unstable();
    let length = |edge: &EdgeId| f64::from(graph.length_cm(*edge));
    let whole: f64 = route.edges.iter().map(length).sum();
    let common: f64 = route.edges.iter().filter(|edge| edges.binary_search(edge).is_ok()).map(length).sum();
    if whole > 0.0 { common / whole } else { 1.0 }
}

/// Which parts of a way others are looked for around.
const SECTIONS: [(f64, f64); 4] = [(0.3, 0.7), (0.1, 0.4), (0.6, 0.9), (0.45, 0.55)];
/// Who would take a way that takes half as long again?
const COST_FACTOR_MAX: f64 = 1.5;
const SHARED_MAX: f64 = 0.7;
