//! The fast router: a customizable contraction hierarchy (crate `cch`) over junctions. A junction where some turn is
//! forbidden is split into one node for each edge that arrives, so that which turns are open is part of the graph; all
//! others stay one node, which keeps the hierarchy small.
//!
//! Turning round has a price, and at a junction that is not split the hierarchy does not know of it. There it matters
//! seldom, because who turns round comes back to where he was; where a route does it all the same, the plain search finds
//! the cheapest one, led by the hierarchy's distances. The same search heeds turns that are closed for a time.
//!
//! New weights make a new metric beside the old one; the two are exchanged in one step.

use std::sync::Arc;

use arc_swap::ArcSwap;
use cch::{Cch, Metric};

use super::dijkstra::{self, Task};
use super::endpoint::{self, Endpoint, Ends, Start};
use super::query::{self, Seed};
use super::{NO_WAY, Part, Reach, Route, Router, Weights, assemble, potentials, turn_ms};
use crate::class::Profile;
use crate::graph::{ClosedTurns, EdgeId, Graph, NodeId};
use crate::record::NONE;

pub struct Hierarchy {
    pub(super) topology: Arc<Topology>,
    state: ArcSwap<State>,
}

/// What the weights do not change: shared by all hierarchies of one profile over one map.
pub(super) struct Topology {
    graph: Arc<Graph>,
    profile: Profile,
    pub(super) cch: Cch,
    /// The edge that each input arc stands for.
    pub(super) arc_edge: Vec<u32>,
    /// What the turn into each input arc costs, in tenths of a second.
    pub(super) arc_price_ds: Vec<u16>,
    /// The node that one is at after an edge; NONE for edges that the profile may not use.
    head_node: Vec<u32>,
    /// The node of a junction that is not split; NONE for the others.
    plain_node: Vec<u32>,
}

/// What changes with the weights.
pub struct State {
    pub weights: Weights,
    pub metric: Metric,
}

impl Hierarchy {
    /// None if the map has no order. Takes a moment: some hundred milliseconds for a city.
    pub fn new(graph: Arc<Graph>, weights: Weights) -> Option<Hierarchy> {
        assert_eq!(weights.edge_count(), graph.edge_count(), "weights are of another graph");
        if graph.view().order.is_empty() {
            return None;
        }
        let profile = weights.profile();
        let nodes = SplitNodes::of(&graph, profile);
        let (cch, arc_edge, arc_price_ds) = build(&graph, profile, &nodes);
        let SplitNodes { head_node, plain_node, .. } = nodes;
        let topology = Topology { graph, profile, cch, arc_edge, arc_price_ds, head_node, plain_node };
        Some(Hierarchy::under(Arc::new(topology), weights))
    }

    fn under(topology: Arc<Topology>, weights: Weights) -> Hierarchy {
        let state = ArcSwap::from_pointee(State::of(&topology, weights));
        Hierarchy { topology, state }
    }

    /// Nodes and arcs of the hierarchy.
    pub fn size(&self) -> (usize, usize) {
        (self.topology.cch.node_count(), self.topology.cch.cch_arc_count())
    }

    /// Memory of structure and metric.
    pub fn bytes(&self) -> usize {
        let cch = &self.topology.cch;
        let structure = [
            &cch.rank,
            &cch.order,
            &cch.elimination_tree_parent,
            &cch.up_first_out,
            &cch.up_head,
            &cch.up_tail,
            &cch.down_first_out,
            &cch.down_head,
            &cch.down_to_up,
            &cch.input_arc_to_cch_arc,
            &cch.forward_input_arc_of_cch,
            &cch.backward_input_arc_of_cch,
            &cch.first_extra_forward_input_arc_of_cch,
            &cch.extra_forward_input_arc_of_cch,
            &cch.first_extra_backward_input_arc_of_cch,
            &cch.extra_backward_input_arc_of_cch,
            &self.topology.arc_edge,
            &self.topology.head_node,
            &self.topology.plain_node,
        ];
        structure.iter().map(|v| v.len() * 4).sum::<usize>()
            + self.topology.arc_price_ds.len() * 2
            + cch.cch_arc_count() * 8
    }

    fn find(&self, state: &State, from: &Endpoint, to: &Endpoint, closed: &ClosedTurns) -> Option<Route> {
        let ends = endpoint::ends(&self.topology.graph, self.topology.profile, from, to);
        let route = self.fastest(state, &ends)?;
        let is_closed = !closed.is_empty() && route.edges.windows(2).any(|pair| closed.holds(pair[0], pair[1]));
        if !is_closed && !self.turns_round_unpriced(&route) {
            return Some(route);
        }
        let cost_max = if is_closed { NO_WAY } else { route.cost_ms };
        let task = Task { closed, cost_max, ..Task::new(ends) };
        self.exact(state, &task).or(Some(route).filter(|_| !is_closed))
    }

    /// The cheapest route but for what turning round costs at junctions that are not split.
    fn fastest(&self, state: &State, ends: &Ends) -> Option<Route> {
        let graph = &self.topology.graph;
        let mut best: Option<(u32, Start, Start)> = None; // a route along one edge
        for start in ends.from.iter().flatten() {
            for end in ends.to.iter().flatten().filter(|end| end.edge == start.edge && end.along_cm >= start.along_cm) {
                let length_cm = graph.length_cm(start.edge);
                let part = Part { length_cm, from_cm: start.along_cm, to_cm: end.along_cm };
                let cost = state.weights.within_ms(start.edge, part);
                if cost < NO_WAY && best.is_none_or(|best| cost < best.0) {
                    best = Some((cost, *start, *end));
                }
            }
        }
        let sources = self.sources(state, ends.from.iter().flatten());
        let targets = self.targets(state, ends.to.iter().flatten());
        let limit = best.map_or(NO_WAY, |best| best.0);
        match query::path(&self.topology, &state.metric, &state.weights, &sources, &targets, limit) {
            Some(path) => {
                let (start, end) = (ends.from[path.source]?, ends.to[path.target]?);
                let mut edges = Vec::with_capacity(path.edges.len() + 2);
                edges.push(start.edge);
                edges.extend(path.edges);
                edges.push(end.edge);
                Some(assemble(graph, &state.weights, edges, start.along_cm, end.along_cm))
            }
            None => {
                let (_, start, end) = best?;
                Some(assemble(graph, &state.weights, vec![start.edge], start.along_cm, end.along_cm))
            }
        }
    }

    /// Whether a route turns round at a price that the hierarchy does not know of.
    fn turns_round_unpriced(&self, route: &Route) -> bool {
        let (graph, profile) = (&self.topology.graph, self.topology.profile);
        profile != Profile::Foot
            && route.edges.windows(2).any(|pair| {
                graph.is_u_turn(pair[0], pair[1]) && self.topology.plain_node[graph.from(pair[1]).index()] != NONE
            })
    }

    /// The plain search with the hierarchy's distances to lead it.
    fn exact(&self, state: &State, task: &Task<'_>) -> Option<Route> {
        let Topology { graph, cch, head_node, .. } = &*self.topology;
        let targets = self.targets(state, task.ends.to.iter().flatten());
        potentials::to(cch, &state.metric, &targets, |remaining| {
            dijkstra::route(graph, &state.weights, task, &mut |edge| match head_node[edge.index()] {
                NONE => NO_WAY,
                node => remaining(cch.rank[node as usize]),
            })
        })
    }

    fn sources<'a>(&self, state: &State, starts: impl Iterator<Item = &'a Start>) -> Vec<Seed> {
        let seed = |(origin, start): (usize, &Start)| {
            let length_cm = self.topology.graph.length_cm(start.edge);
            let part = Part { length_cm, from_cm: start.along_cm, to_cm: length_cm };
            let cost = state.weights.within_ms(start.edge, part);
            let node = self.topology.head_node[start.edge.index()];
            (node != NONE && cost < NO_WAY).then(|| Seed { rank: self.topology.cch.rank[node as usize], cost, origin })
        };
        starts.enumerate().filter_map(seed).collect()
    }

    /// An edge that leaves a split junction is reached from those nodes from which the turn into it is open.
    fn targets<'a>(&self, state: &State, ends: impl Iterator<Item = &'a Start>) -> Vec<Seed> {
        let mut seeds = Vec::new();
        for (origin, end) in ends.enumerate() {
            let part = Part { length_cm: self.topology.graph.length_cm(end.edge), from_cm: 0, to_cm: end.along_cm };
            let cost = state.weights.onto_ms(end.edge, part);
            if cost >= NO_WAY {
                continue;
            }
            for_each_tail(
                &self.topology.graph,
                self.topology.profile,
                &self.topology.plain_node,
                &self.topology.head_node,
                end.edge,
                |node, price_ms| {
                    let cost = cost.saturating_add(price_ms);
                    seeds.push(Seed { rank: self.topology.cch.rank[node as usize], cost, origin });
                },
            );
        }
        seeds
    }
}

impl Router for Hierarchy {
    fn route_at(&self, from: &Endpoint, to: &Endpoint, closed: &ClosedTurns) -> Option<Route> {
        let state = self.state.load();
        let plain = || self.find(&state, &from.without_copy(&self.topology.graph)?, to, closed);
        self.find(&state, from, to, closed).or_else(plain)
    }

    fn one_to_many(&self, from: &Endpoint, to: &[Endpoint]) -> Vec<Option<Reach>> {
        to.iter().map(|to| self.route(from, to).map(|route| route.reach())).collect()
    }

    fn route_avoiding(&self, from: &Endpoint, to: &Endpoint, avoid: &[EdgeId], cost_factor_max: f64) -> Option<Route> {
        let state = self.state.load();
        let best = self.find(&state, from, to, &ClosedTurns::none())?;
        let inner = best.edges.get(1..best.edges.len().saturating_sub(1)).unwrap_or(&[]);
        if !inner.iter().any(|edge| avoid.contains(edge)) {
            return Some(best);
        }
        let ends = endpoint::ends(&self.topology.graph, self.topology.profile, from, to);
        let cost_max = dijkstra::cost_limit(best.cost_ms, cost_factor_max);
        self.exact(&state, &Task { avoid, cost_max, ..Task::new(ends) })
    }

    fn reweight(&self, weights: Weights) {
        assert_eq!(weights.edge_count(), self.topology.graph.edge_count(), "weights are of another graph");
        assert_eq!(weights.profile(), self.topology.profile, "weights are of another profile");
        self.state.store(Arc::new(State::of(&self.topology, weights)));
    }

    fn beside(&self, weights: Weights) -> Arc<dyn Router> {
        assert_eq!(weights.edge_count(), self.topology.graph.edge_count(), "weights are of another graph");
        assert_eq!(weights.profile(), self.topology.profile, "weights are of another profile");
        Arc::new(Hierarchy::under(self.topology.clone(), weights))
    }
}

impl State {
    fn of(topology: &Topology, weights: Weights) -> State {
        let arcs = topology.arc_edge.iter().zip(&topology.arc_price_ds);
        let arc_weights: Vec<u32> = arcs.map(|(edge, price_ds)| arc_ms(&weights, *edge, *price_ds)).collect();
        State { metric: topology.cch.customize(&arc_weights), weights }
    }
}

/// What an input arc costs: the turn into its edge, and the edge.
#[inline]
pub(super) fn arc_ms(weights: &Weights, edge: u32, price_ds: u16) -> u32 {
    weights.cost_ms(EdgeId(edge)).saturating_add(u32::from(price_ds) * 100).min(NO_WAY)
}

/// How junctions become nodes of the hierarchy.
struct SplitNodes {
    head_node: Vec<u32>,
    plain_node: Vec<u32>,
    /// All nodes in the order of contraction.
    order: Vec<u32>,
}

impl SplitNodes {
    fn of(graph: &Graph, profile: Profile) -> SplitNodes {
        let view = graph.view();
        let mut is_split = vec![false; graph.node_count()];
        for turn in view.turns.iter().filter(|turn| turn.is_forbidden(profile) || turn.is_limited(profile)) {
            is_split[graph.to(EdgeId(turn.from)).index()] = true;
        }
        let mut nodes = SplitNodes {
            head_node: vec![NONE; graph.edge_count()],
            plain_node: vec![NONE; graph.node_count()],
            order: Vec::with_capacity(graph.node_count()),
        };
        // Nodes are numbered in the order in which they are contracted, so that rank and number are the same.
        let mut next = 0;
        for junction in view.order.iter().map(|junction| NodeId(*junction)) {
            let arriving = graph.in_edges(junction).filter(|edge| graph.allows(*edge, profile));
            if is_split[junction.index()] {
                for edge in arriving {
                    nodes.head_node[edge.index()] = next;
                    next += 1;
                }
                continue;
            }
            let leaves = graph.out_edges(junction).any(|edge| graph.allows(edge, profile));
            let mut arrives = false;
            for edge in arriving {
                nodes.head_node[edge.index()] = next;
                arrives = true;
            }
            if leaves || arrives {
                nodes.plain_node[junction.index()] = next;
                next += 1;
            }
        }
        nodes.order.extend(0..next);
        nodes
    }
}

/// Calls for every node from which an edge can be entered, with what the turn costs there.
fn for_each_tail(
    graph: &Graph,
    profile: Profile,
    plain_node: &[u32],
    head_node: &[u32],
    edge: EdgeId,
    mut visit: impl FnMut(u32, u32),
) {
    let junction = graph.from(edge);
    let plain = plain_node[junction.index()];
    if plain != NONE {
        visit(plain, 0);
        return;
    }
    for before in graph.in_edges(junction) {
        let node = head_node[before.index()];
        if node == NONE {
            continue;
        }
        if let Some(price_ms) = turn_ms(graph, profile, before, edge) {
            visit(node, price_ms);
        }
    }
}

fn build(graph: &Graph, profile: Profile, nodes: &SplitNodes) -> (Cch, Vec<u32>, Vec<u16>) {
    // Tail, head, edge, price of the turn into it.
    let mut arcs: Vec<(u32, u32, u32, u16)> = Vec::with_capacity(graph.edge_count());
    for edge in graph.edges().filter(|edge| graph.allows(*edge, profile)) {
        let head = nodes.head_node[edge.index()];
        for_each_tail(graph, profile, &nodes.plain_node, &nodes.head_node, edge, |tail, price_ms| {
            let price_ds = (price_ms / 100).min(u32::from(u16::MAX)) as u16;
            arcs.push((tail, head, edge.0, price_ds));
        });
    }
    arcs.sort_unstable();
    let mut first_out = vec![0; nodes.order.len() + 1];
    for (tail, ..) in &arcs {
        first_out[*tail as usize + 1] += 1;
    }
    for i in 0..nodes.order.len() {
        first_out[i + 1] += first_out[i];
    }
    let head = arcs.iter().map(|arc| arc.1).collect();
    let arc_edge = arcs.iter().map(|arc| arc.2).collect();
    let arc_price_ds = arcs.iter().map(|arc| arc.3).collect();
    let graph = cch::graph::Graph { first_out, head, weight: vec![1; arcs.len()] };
    let mut cch = Cch::build(&graph, &nodes.order);
    cch.order = Vec::new(); // the same as the numbers themselves, and nothing here asks for it
    cch.up_tail = Vec::new(); // `query` finds an arc by its ends
    (cch, arc_edge, arc_price_ds)
}
