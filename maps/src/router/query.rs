//! One search up the hierarchy from both ends. Every node that matters lies on the way from an end to the root of the
//! elimination tree, so there is no queue: the two ways are walked, lower ranks first, and where they have become one
//! the search ends as soon as nothing can be cheaper than what was found.

use std::cell::RefCell;

use cch::bundle::INVALID_ID;
use cch::{Cch, Metric};

use super::hierarchy::{Topology, arc_ms};
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
    /// The node from which a node was reached; the number of a seed for where the search began.
    by: Vec<u32>,
}

#[derive(Default)]
struct Scratch {
    forward: Side,
    backward: Side,
    /// Arcs still to be unpacked.
    stack: Vec<Arc>,
    climb: Vec<Arc>,
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
        for (head, weight) in cch.up_head[first..end].iter().zip(&weights[first..end]) {
            let offered = cost + *weight; // both below 2³¹
            let slot = &mut self.cost[*head as usize];
            if offered < *slot {
                *slot = offered;
                self.by[*head as usize] = x as u32;
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
        scratch.climb.push(Arc::between(cch, by, x, true));
        x = by;
    };
    for arc in scratch.climb.iter().rev() {
        scratch.stack.push(*arc);
        unpack_stack(topology, metric, weights, &mut scratch.stack, &mut edges);
    }
    let mut x = meeting;
    let target = loop {
        let by = scratch.backward.by[x as usize];
        if by & SEED != 0 {
            break targets[(by & !SEED) as usize].origin;
        }
        scratch.stack.push(Arc::between(cch, by, x, false));
        unpack_stack(topology, metric, weights, &mut scratch.stack, &mut edges);
        x = by;
    };
    Path { source, target, edges }
}

/// Replaces shortcuts by the two arcs below them until only edges are left, in the direction of travel.
fn unpack_stack(
    topology: &Topology,
    metric: &Metric,
    weights: &Weights,
    stack: &mut Vec<Arc>,
    edges: &mut Vec<EdgeId>,
) {
    while let Some(arc) = stack.pop() {
        if let Some(edge) = edge_of(topology, metric, weights, arc) {
            edges.push(edge);
            continue;
        }
        if let Some((first, second)) = halves(&topology.cch, metric, arc) {
            stack.push(second);
            stack.push(first);
        }
    }
}

/// An arc of the hierarchy on the way.
#[derive(Clone, Copy)]
struct Arc {
    number: u32,
    /// Its lower end: searched for where it is asked, which is seldom, rather than kept for every arc.
    tail: u32,
    is_upwards: bool,
}

impl Arc {
    /// The arc between a node and a higher one.
    #[inline]
    fn between(cch: &Cch, tail: u32, head: u32, is_upwards: bool) -> Arc {
        let (first, end) = (cch.up_first_out[tail as usize] as usize, cch.up_first_out[tail as usize + 1] as usize);
        let place = cch.up_head[first..end].partition_point(|other| *other < head);
        Arc { number: (first + place) as u32, tail, is_upwards }
    }
}

/// The edge that an arc is, if it is no shortcut.
#[inline]
fn edge_of(topology: &Topology, metric: &Metric, weights: &Weights, arc: Arc) -> Option<EdgeId> {
    let (cch, number) = (&topology.cch, arc.number as usize);
    let (whole, first, extra_first, extra) = if arc.is_upwards {
        let first_extra = &cch.first_extra_forward_input_arc_of_cch;
        (metric.forward[number], cch.forward_input_arc_of_cch[number], first_extra, &cch.extra_forward_input_arc_of_cch)
    } else {
        let first_extra = &cch.first_extra_backward_input_arc_of_cch;
        (
            metric.backward[number],
            cch.backward_input_arc_of_cch[number],
            first_extra,
            &cch.extra_backward_input_arc_of_cch,
        )
    };
    if first == INVALID_ID {
        return None;
    }
    let others = &extra[extra_first[number] as usize..extra_first[number + 1] as usize];
    let inputs = std::iter::once(first).chain(others.iter().copied());
    let arc = |input: u32| (topology.arc_edge[input as usize], topology.arc_price_ds[input as usize]);
    let is_it = |(edge, price_ds): &(u32, u16)| arc_ms(weights, *edge, *price_ds) == whole;
    inputs.map(arc).find(is_it).map(|(edge, _)| EdgeId(edge))
}

/// The two arcs that a shortcut stands for, in the direction of travel.
#[inline]
fn halves(cch: &Cch, metric: &Metric, arc: Arc) -> Option<(Arc, Arc)> {
    let (number, x, is_upwards) = (arc.number as usize, arc.tail as usize, arc.is_upwards);
    let y = cch.up_head[number];
    let whole = if is_upwards { metric.forward[number] } else { metric.backward[number] };
    for down in (cch.down_first_out[x] as usize..cch.down_first_out[x + 1] as usize).rev() {
        let to_x = cch.down_to_up[down];
        let first = if is_upwards { metric.backward[to_x as usize] } else { metric.forward[to_x as usize] };
        if first >= whole {
            continue;
        }
        let tail = cch.down_head[down];
        let z = tail as usize;
        let heads = &cch.up_head[cch.up_first_out[z] as usize..cch.up_first_out[z + 1] as usize];
        let Some(place) = heads.iter().position(|head| *head == y) else {
            continue;
        };
        let to_y = cch.up_first_out[z] + place as u32;
        let second = if is_upwards { metric.forward[to_y as usize] } else { metric.backward[to_y as usize] };
        if first + second == whole {
            let half = |number, is_upwards| Arc { number, tail, is_upwards };
            return Some(match is_upwards {
                true => (half(to_x, false), half(to_y, true)),
                false => (half(to_y, false), half(to_x, true)),
            });
        }
    }
    None
}

/// Marks the number of a seed among numbers of arcs.
const SEED: u32 = 1 << 31;
/// Two places, each entered from the few edges of a split junction.
const CLIMBERS_MAX: usize = 32;
