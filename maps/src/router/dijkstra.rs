//! The plain search, edge by edge, with every turn looked at: what the hierarchy is tested against, what answers on a
//! map without an order, and what finds a way round closed edges. Milliseconds for a city instead of microseconds; with
//! the hierarchy's distances as a guide (`super::potentials`) it looks at little more than the way itself.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::endpoint::{self, Endpoint, Ends, Start};
use super::{NO_WAY, Part, Reach, Route, Router, Weights, assemble, turn_ms};
use crate::class::Profile;
use crate::graph::{ClosedTurns, EdgeId, Graph};

pub struct Dijkstra {
    graph: Arc<Graph>,
    weights: ArcSwap<Weights>,
}

impl Dijkstra {
    pub fn new(graph: Arc<Graph>, weights: Weights) -> Dijkstra {
        assert_eq!(weights.edge_count(), graph.edge_count(), "weights are of another graph");
        Dijkstra { graph, weights: ArcSwap::from_pointee(weights) }
    }
}

impl Dijkstra {
    fn find(&self, from: &Endpoint, to: &Endpoint, closed: &ClosedTurns) -> Option<Route> {
        let weights = self.weights.load();
        let task = Task { closed, ..Task::new(endpoint::ends(&self.graph, weights.profile(), from, to)) };
        route(&self.graph, &weights, &task, &mut |_| 0)
    }
}

impl Router for Dijkstra {
    fn route_at(&self, from: &Endpoint, to: &Endpoint, closed: &ClosedTurns) -> Option<Route> {
        let plain = || self.find(&from.without_copy(&self.graph)?, to, closed);
        self.find(from, to, closed).or_else(plain)
    }

    fn one_to_many(&self, from: &Endpoint, to: &[Endpoint]) -> Vec<Option<Reach>> {
        to.iter().map(|to| self.route(from, to).map(|route| route.reach())).collect()
    }

    fn route_avoiding(&self, from: &Endpoint, to: &Endpoint, avoid: &[EdgeId], cost_factor_max: f64) -> Option<Route> {
        let weights = self.weights.load();
        let task = Task::new(endpoint::ends(&self.graph, weights.profile(), from, to));
        let best = route(&self.graph, &weights, &task, &mut |_| 0)?;
        let task = Task { avoid, cost_max: cost_limit(best.cost_ms, cost_factor_max), ..task };
        route(&self.graph, &weights, &task, &mut |_| 0)
    }

    fn reweight(&self, weights: Weights) {
        assert_eq!(weights.edge_count(), self.graph.edge_count(), "weights are of another graph");
        self.weights.store(Arc::new(weights));
    }

    fn beside(&self, weights: Weights) -> Arc<dyn Router> {
        Arc::new(Dijkstra::new(self.graph.clone(), weights))
    }
}

/// A cost so many times another.
pub fn cost_limit(cost_ms: u32, factor: f64) -> u32 {
    (f64::from(cost_ms) * factor.max(1.0)).min(f64::from(NO_WAY - 1)) as u32
}

#[derive(Default)]
struct Scratch {
    /// Cost at the end of each edge; NO_WAY between searches.
    cost: Vec<u32>,
    before: Vec<u32>,
    touched: Vec<u32>,
    /// What a way costs at least, what it cost up to the edge's end, the edge.
    queue: BinaryHeap<Reverse<(u32, u32, u32)>>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// What is asked of a search.
#[derive(Clone)]
pub struct Task<'a> {
    pub ends: Ends,
    /// Edges that are not used but where the route begins and ends.
    pub avoid: &'a [EdgeId],
    /// Turns that are closed besides those that always are.
    pub closed: &'a ClosedTurns,
    pub cost_max: u32,
}

impl Task<'_> {
    pub fn new(ends: Ends) -> Task<'static> {
        static NONE_CLOSED: ClosedTurns = ClosedTurns::none();
        Task { ends, avoid: &[], closed: &NONE_CLOSED, cost_max: NO_WAY }
    }
}

/// What a way surely costs from the end of an edge on.
pub type Guide<'a> = &'a mut dyn FnMut(EdgeId) -> u32;

/// The cheapest route that does what is asked.
pub fn route(graph: &Graph, weights: &Weights, task: &Task<'_>, guide: Guide<'_>) -> Option<Route> {
    let mut avoid = task.avoid.to_vec();
    avoid.sort_unstable();
    let ends: Vec<Start> = task.ends.to.iter().flatten().copied().collect();
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.clear(graph.edge_count());
        let mut search = Search { graph, weights, task, avoid: &avoid, scratch, best: None, guide };
        search.run(task.ends.from.iter().flatten().copied(), &ends)
    })
}

impl Scratch {
    fn clear(&mut self, edges: usize) {
        for edge in self.touched.drain(..) {
            self.cost[edge as usize] = NO_WAY;
        }
        if self.cost.len() < edges {
            self.cost.resize(edges, NO_WAY);
            self.before.resize(edges, NO_EDGE);
        }
        self.queue.clear();
    }
}

/// The best end found: its cost, its place, and the edge before it; none for a route along one edge.
type Best = (u32, Start, Start, Option<u32>);

struct Search<'a> {
    graph: &'a Graph,
    weights: &'a Weights,
    task: &'a Task<'a>,
    avoid: &'a [EdgeId],
    scratch: &'a mut Scratch,
    best: Option<Best>,
    guide: Guide<'a>,
}

impl Search<'_> {
    fn run(&mut self, starts: impl Iterator<Item = Start>, ends: &[Start]) -> Option<Route> {
        let profile = self.weights.profile();
        let starts: Vec<Start> = starts.collect();
        for start in &starts {
            self.begin(*start, ends);
        }
        while let Some(Reverse((least, cost, edge))) = self.scratch.queue.pop() {
            if least > self.task.cost_max || self.best.is_some_and(|best| least >= best.0) {
                break;
            }
            if cost > self.scratch.cost[edge as usize] {
                continue;
            }
            self.settle(edge, cost, profile, ends);
        }
        let (_, _, end, before) = self.best.filter(|best| best.0 <= self.task.cost_max)?;
        let (start, edges) = match before {
            None => (self.best?.1, vec![end.edge]),
            Some(before) => self.trace(&starts, before, end),
        };
        Some(assemble(self.graph, self.weights, edges, start.along_cm, end.along_cm))
    }

    fn begin(&mut self, start: Start, ends: &[Start]) {
        let length_cm = self.graph.length_cm(start.edge);
        for end in ends.iter().filter(|end| end.edge == start.edge && end.along_cm >= start.along_cm) {
            let part = Part { length_cm, from_cm: start.along_cm, to_cm: end.along_cm };
            let cost = self.weights.within_ms(start.edge, part);
            self.offer((cost, start, *end, None));
        }
        let part = Part { length_cm, from_cm: start.along_cm, to_cm: length_cm };
        let cost = self.weights.within_ms(start.edge, part);
        self.reach(start.edge.0, cost, NO_EDGE);
    }

    fn offer(&mut self, offered: Best) {
        if offered.0 < NO_WAY && self.best.is_none_or(|best| offered.0 < best.0) {
            self.best = Some(offered);
        }
    }

    fn reach(&mut self, edge: u32, cost: u32, before: u32) {
        let slot = &mut self.scratch.cost[edge as usize];
        if cost < *slot {
            if *slot == NO_WAY {
                self.scratch.touched.push(edge);
            }
            *slot = cost;
            self.scratch.before[edge as usize] = before;
            let least = cost.saturating_add((self.guide)(EdgeId(edge)));
            if least < NO_WAY {
                self.scratch.queue.push(Reverse((least, cost, edge)));
            }
        }
    }

    fn settle(&mut self, edge: u32, cost: u32, profile: Profile, ends: &[Start]) {
        let graph = self.graph;
        for next in graph.out_edges(graph.to(EdgeId(edge))) {
            let whole_ms = self.weights.cost_ms(next);
            if whole_ms >= NO_WAY || self.task.closed.holds(EdgeId(edge), next) {
                continue;
            }
            let Some(turn_ms) = turn_ms(graph, profile, EdgeId(edge), next) else { continue };
            let cost = cost.saturating_add(turn_ms);
            for end in ends.iter().filter(|end| end.edge == next) {
                let part = Part { length_cm: graph.length_cm(next), from_cm: 0, to_cm: end.along_cm };
                let offered = (cost.saturating_add(self.weights.onto_ms(next, part)), *end, *end, Some(edge));
                self.offer(offered);
            }
            if self.avoid.binary_search(&next).is_err() {
                self.reach(next.0, cost.saturating_add(whole_ms), edge);
            }
        }
    }

    fn trace(&self, starts: &[Start], before: u32, end: Start) -> (Start, Vec<EdgeId>) {
        let mut edges = vec![end.edge];
        let mut edge = before;
        loop {
            edges.push(EdgeId(edge));
            let next = self.scratch.before[edge as usize];
            if next == NO_EDGE {
                break;
            }
            edge = next;
        }
        edges.reverse();
        let start = starts.iter().copied().find(|start| start.edge.0 == edge);
        (start.unwrap_or(Start { edge: EdgeId(edge), along_cm: 0 }), edges)
    }
}

const NO_EDGE: u32 = u32::MAX;
