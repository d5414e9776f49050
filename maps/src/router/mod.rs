//! Routes over the graph: where to begin and end, what a route is, and the trait behind which the hierarchy and the
//! plain search stand. Costs are whole milliseconds, so that two routers agree to the last one.

mod alternatives;
mod dijkstra;
mod endpoint;
mod hierarchy;
pub mod order;
mod potentials;
mod query;
mod routing;
mod turns;
mod weights;

use std::sync::Arc;

use protocol::Position;
use serde::{Deserialize, Serialize};

use crate::graph::{ClosedTurns, EdgeId, Graph};

pub use alternatives::alternatives;
pub use dijkstra::Dijkstra;
pub use endpoint::{Endpoint, Start};
pub use hierarchy::Hierarchy;
pub use routing::Routing;
pub use turns::turn_ms;
pub use weights::{ENTRY_MS, NO_WAY, PRIVATE_FACTOR, Weights};

/// Finds routes for one profile. Weights may change while others ask: a query sees the old ones or the new ones.
///
/// **Contract:** a route uses only edges that the profile may use, joined by turns that it may take, and no other such
/// route costs less, turns round and gates with their prices. Both implementations pass the same tests, which compare
/// their costs.
pub trait Router: Send + Sync {
    /// The cheapest way from one place to another.
    fn route(&self, from: &Endpoint, to: &Endpoint) -> Option<Route> {
        self.route_at(from, to, &ClosedTurns::default())
    }

    /// The same where some turns more are closed at the moment (`Graph::closed_at`).
    fn route_at(&self, from: &Endpoint, to: &Endpoint, closed: &ClosedTurns) -> Option<Route>;

    /// The cheapest ways from one place to many, without their edges.
    fn one_to_many(&self, from: &Endpoint, to: &[Endpoint]) -> Vec<Option<Reach>>;

    /// The cheapest way that uses none of some edges, if it costs at most `cost_factor_max` times the cheapest of all.
    fn route_avoiding(&self, from: &Endpoint, to: &Endpoint, avoid: &[EdgeId], cost_factor_max: f64) -> Option<Route>;

    /// New times for the whole map. Queries under way finish with the old ones.
    fn reweight(&self, weights: Weights);

    /// A router over the same map under other times, beside this one: each answers by its own. What does not depend on
    /// the times is shared, so that one more costs its metric alone.
    fn beside(&self, weights: Weights) -> Arc<dyn Router>;
}

/// A way along edges, from a place on the first to a place on the last.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Route {
    /// At least one. One edge alone is travelled from `start_along_cm` to `end_along_cm`.
    pub edges: Vec<EdgeId>,
    pub start_along_cm: u32,
    pub end_along_cm: u32,
    pub length_cm: u32,
    pub duration_ms: u32,
    /// What the router compared: the duration, with roads only for those with business there made dearer, and the prices
    /// of turns.
    pub cost_ms: u32,
}

/// How far a place is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Reach {
    pub length_cm: u32,
    pub duration_ms: u32,
    pub cost_ms: u32,
}

impl Route {
    /// The line from start to end.
    pub fn geometry(&self, graph: &Graph) -> Vec<Position> {
        let last = self.edges.len().saturating_sub(1);
        let mut line: Vec<Position> = Vec::new();
        for (i, edge) in self.edges.iter().enumerate() {
            let from_cm = if i == 0 { self.start_along_cm } else { 0 };
            let to_cm = if i == last { self.end_along_cm } else { graph.length_cm(*edge) };
            for position in graph.stretch(*edge, from_cm, to_cm) {
                if line.last() != Some(&position) {
                    line.push(position);
                }
            }
        }
        if let [only] = line[..] {
            line.push(only); // a line has two ends, though they lie in one place
        }
        line
    }

    pub fn reach(&self) -> Reach {
        Reach { length_cm: self.length_cm, duration_ms: self.duration_ms, cost_ms: self.cost_ms }
    }
}

/// The route along some edges, its length, times and prices added up.
fn assemble(graph: &Graph, weights: &Weights, edges: Vec<EdgeId>, start_along_cm: u32, end_along_cm: u32) -> Route {
    let mut route = Route { edges, start_along_cm, end_along_cm, length_cm: 0, duration_ms: 0, cost_ms: 0 };
    let last = route.edges.len() - 1;
    let mut before = None;
    for (i, edge) in route.edges.iter().enumerate() {
        let from_cm = if i == 0 { start_along_cm } else { 0 };
        let to_cm = if i == last { end_along_cm } else { graph.length_cm(*edge) };
        let part = Part { length_cm: graph.length_cm(*edge), from_cm, to_cm };
        let cost_ms = match before.replace(*edge) {
            None => weights.within_ms(*edge, part),
            Some(before) => {
                let turn_ms = turn_ms(graph, weights.profile(), before, *edge).unwrap_or(0);
                weights.onto_ms(*edge, part).saturating_add(turn_ms)
            }
        };
        route.length_cm = route.length_cm.saturating_add(to_cm.saturating_sub(from_cm));
        route.duration_ms = route.duration_ms.saturating_add(part.of(weights.duration_ms(*edge)));
        route.cost_ms = route.cost_ms.saturating_add(cost_ms);
    }
    route
}

/// A stretch of an edge.
#[derive(Clone, Copy)]
struct Part {
    length_cm: u32,
    from_cm: u32,
    to_cm: u32,
}

impl Part {
    /// The stretch's share of what the whole edge costs; whole edges cost the whole.
    fn of(self, whole_ms: u32) -> u32 {
        if whole_ms >= NO_WAY {
            return NO_WAY;
        }
        let share_cm = u64::from(self.to_cm.saturating_sub(self.from_cm));
        (u64::from(whole_ms) * share_cm / u64::from(self.length_cm.max(1))) as u32
    }
}
