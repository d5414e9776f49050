//! One search up the hierarchy from both ends. Every node that matters lies on the way from an end to the root of the
//! elimination tree, so there is no queue: the two ways are walked, lower ranks first, and where they have become one
//! the search ends as soon as nothing can be cheaper than what was found.

use std::cell::RefCell;

use cch::bundle::INVALID_ID;
use cch::{Cch, Metric};

use super::hierarchy::Topology;
use super::{NO_WAY, Weights};
use crate::graph::EdgeId;

/// A node where the search may begin or end, and what it costs to get there.
#[derive(Clone, Copy, Debug)]
pub struct Seed {
    pub rank: u32,
    pub cost: u32,
    /// Which of the places it stands for.
    pub origin: usize,
}

pub struct Path {
    pub source: usize,
    pub target: usize,
    /// Between source and target, without the edges that these lie on.
    pub edges: Vec<EdgeId>,
}

/// One direction of the search. Between searches every cost is NO_WAY.
#[derive(Default)]
struct Side {
    cost: Vec<u32>,
    /// The arc by which a node was reached; a number of a seed for where the search began.
    by: Vec<u32>,
}

#[derive(Default)]
struct Scratch {
    forward: Side,
    backward: Side,
    /// Arcs still to be unpacked: number, and whether it is travelled upwards.
    stack: Vec<(u32, bool)>,
    climb: Vec<u32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The cheapest path below a limit.
pub fn path(
    topology: &Topology,
    metric: &Metric,
    weights: &Weights,
    sources: &[Seed],
    targets: &[Seed],
    limit: u32,
) -> Option<Path> {
    if sources.is_empty() || targets.is_empty() {
        return None;
    }
    SCRATCH.with_borrow_mut(|scratch| {
        let nodes = topology.cch.node_count();
        scratch.forward.begin(nodes, sources);
        scratch.backward.begin(nodes, targets);
        let meeting = search(&topology.cch, metric, scratch, sources, targets, limit);
        let path = meeting.map(|meeting| unpack(topology, metric, weights, scratch, sources, targets, meeting));
        scratch.forward.end(&topology.cch, sources);
        scratch.backward.end(&topology.cch, targets);
        path
    })
}

impl Side {
    fn begin(&mut self, nodes: usize, seeds: &[Seed]) {
        if self.cost.len() < nodes {
            self.cost.resize(nodes, NO_WAY);
            self.by.resize(nodes, 0);
        }
        for (number, seed) in seeds.iter().enumerate() {
            if seed.cost < self.cost[seed.rank as usize] {
                self.cost[seed.rank as usize] = seed.cost;
                self.by[seed.rank as usize] = SEED | number as u32;
            }
        }
    }

    fn end(&mut self, cch: &Cch, seeds: &[Seed]) {
        for seed in seeds {
            let mut x = seed.rank;
            while x != INVALID_ID {
                self.cost[x as usize] = NO_WAY;
                x = cch.elimination_tree_parent[x as usize];
            }
        }
    }

    #[inline]
    fn relax(&mut self, cch: &Cch, weights: &[u32], x: usize, limit: u32) {
        let cost = self.cost[x];
        if cost >= limit {
            return;
        }
        let (first, end) = (cch.up_first_out[x] as usize, cch.up_first_out[x + 1] as usize);
        for ((head, weight), arc) in cch.up_head[first..end].iter().zip(&weights[first..end]).zip(first as u32..) {
            let offered = cost + *weight; // both below 2³¹
            let slot = &mut self.cost[*head as usize];
            if offered < *slot {
                *slot = offered;
                self.by[*head as usize] = arc;
            }
        }
    }
}

/// The places of a few climbers towards the root; the lowest climbs first.
struct Climb {
    at: [u32; CLIMBERS_MAX],
    count: usize,
}

impl Climb {
    fn of(seeds: &[Seed]) -> Climb {
        let mut climb = Climb { at: [INVALID_ID; CLIMBERS_MAX], count: 0 };
        for seed in seeds.iter().take(CLIMBERS_MAX) {
            if !climb.at[..climb.count].contains(&seed.rank) {
                climb.at[climb.count] = seed.rank;
                climb.count += 1;
            }
        }
        climb
    }

    fn lowest(&self) -> u32 {
        self.at[..self.count].iter().copied().min().unwrap_or(INVALID_ID)
    }

    /// Moves whoever stands at `x` on to its parent.
    fn pass(&mut self, x: u32, parent: u32) {
        let mut kept = 0;
        let mut has_parent = parent == INVALID_ID;
        for i in 0..self.count {
            let at = if self.at[i] == x { parent } else { self.at[i] };
            if at != parent || !has_parent {
                has_parent |= at == parent;
                self.at[kept] = at;
                kept += 1;
            }
        }
        self.count = kept;
    }
}

/// The node where the cheapest path turns from going up to coming down.
fn search(
    cch: &Cch,
    metric: &Metric,
    scratch: &mut Scratch,
    sources: &[Seed],
    targets: &[Seed],
    limit: u32,
) -> Option<u32> {
    let (mut up, mut down) = (Climb::of(sources), Climb::of(targets));
    let (mut best, mut meeting) = (limit, None);
    loop {
        let (a, b) = (up.lowest(), down.lowest());
        let x = a.min(b);
        if x == INVALID_ID {
            return meeting;
        }
        let parent = cch.elimination_tree_parent[x as usize];
        if a == x {
            scratch.forward.relax(cch, &metric.forward, x as usize, best);
            up.pass(x, parent);
        }
        if b == x {
            scratch.backward.relax(cch, &metric.backward, x as usize, best);
            down.pass(x, parent);
        }
        if a == b {
            let whole = scratch.forward.cost[x as usize].saturating_add(scratch.backward.cost[x as usize]);
            if whole < best {
                (best, meeting) = (whole, Some(x));
            }
        }
    }
}

fn unpack(
    topology: &Topology,
    metric: &Metric,
    weights: &Weights,
    scratch: &mut Scratch,
    sources: &[Seed],
    targets: &[Seed],
    meeting: u32,
) -> Path {
    let cch = &topology.cch;
    let mut edges = Vec::with_capacity(128);
    scratch.climb.clear();
    let mut x = meeting;
    let source = loop {
        let by = scratch.forward.by[x as usize];
        if by & SEED != 0 {
            break sources[(by & !SEED) as usize].origin;
        }
        scratch.climb.push(by);
        x = cch.up_tail[by as usize];
    };
    for arc in scratch.climb.iter().rev() {
        scratch.stack.push((*arc, true));
        unpack_stack(topology, metric, weights, &mut scratch.stack, &mut edges);
    }
    let mut x = meeting;
    let target = loop {
        let by = scratch.backward.by[x as usize];
        if by & SEED != 0 {
            break targets[(by & !SEED) as usize].origin;
        }
        scratch.stack.push((by, false));
        unpack_stack(topology, metric, weights, &mut scratch.stack, &mut edges);
        x = cch.up_tail[by as usize];
    };
    Path { source, target, edges }
}

/// Replaces shortcuts by the two arcs below them until only edges are left, in the direction of travel.
fn unpack_stack(
    topology: &Topology,
    metric: &Metric,
    weights: &Weights,
    stack: &mut Vec<(u32, bool)>,
    edges: &mut Vec<EdgeId>,
) {
    while let Some((arc, is_upwards)) = stack.pop() {
        if let Some(edge) = edge_of(topology, metric, weights, arc, is_upwards) {
            edges.push(edge);
            continue;
        }
        if let Some((first, second)) = halves(&topology.cch, metric, arc, is_upwards) {
            stack.push(second);
            stack.push(first);
        }
    }
}

/// The edge that an arc is, if it is no shortcut.
#[inline]
fn edge_of(topology: &Topology, metric: &Metric, weights: &Weights, arc: u32, is_upwards: bool) -> Option<EdgeId> {
    let (cch, arc) = (&topology.cch, arc as usize);
    let (whole, first, extra_first, extra) = if is_upwards {
        let first_extra = &cch.first_extra_forward_input_arc_of_cch;
        (metric.forward[arc], cch.forward_input_arc_of_cch[arc], first_extra, &cch.extra_forward_input_arc_of_cch)
    } else {
        let first_extra = &cch.first_extra_backward_input_arc_of_cch;
        (metric.backward[arc], cch.backward_input_arc_of_cch[arc], first_extra, &cch.extra_backward_input_arc_of_cch)
    };
    if first == INVALID_ID {
        return None;
    }
    let others = &extra[extra_first[arc] as usize..extra_first[arc + 1] as usize];
    let inputs = std::iter::once(first).chain(others.iter().copied());
    inputs.map(|input| EdgeId(topology.arc_edge[input as usize])).find(|edge| weights.cost_ms(*edge) == whole)
}

/// The two arcs that a shortcut stands for, in the direction of travel, each with whether it is travelled upwards.
#[inline]
fn halves(cch: &Cch, metric: &Metric, arc: u32, is_upwards: bool) -> Option<((u32, bool), (u32, bool))> {
    let (x, y) = (cch.up_tail[arc as usize] as usize, cch.up_head[arc as usize]);
    let whole = if is_upwards { metric.forward[arc as usize] } else { metric.backward[arc as usize] };
    for down in (cch.down_first_out[x] as usize..cch.down_first_out[x + 1] as usize).rev() {
        let to_x = cch.down_to_up[down];
        let first = if is_upwards { metric.backward[to_x as usize] } else { metric.forward[to_x as usize] };
        if first >= whole {
            continue;
        }
        let z = cch.down_head[down] as usize;
        let heads = &cch.up_head[cch.up_first_out[z] as usize..cch.up_first_out[z + 1] as usize];
        let Some(place) = heads.iter().position(|head| *head == y) else {
            continue;
        };
        let to_y = cch.up_first_out[z] + place as u32;
        let second = if is_upwards { metric.forward[to_y as usize] } else { metric.backward[to_y as usize] };
        if first + second == whole {
            return Some(if is_upwards { ((to_x, false), (to_y, true)) } else { ((to_y, false), (to_x, true)) });
        }
    }
    None
}

/// Marks the number of a seed among numbers of arcs.
const SEED: u32 = 1 << 31;
/// Two places, each entered from the few edges of a split junction.
const CLIMBERS_MAX: usize = 32;
