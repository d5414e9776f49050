//! Bounded searches over the road graph for the matcher. One search serves all places of the fix before at once: it
//! begins at every one of them with what that place has cost so far, so that each edge is reached first by the way
//! that is best in total. That is exact as long as a longer route costs more, and a single search where there would be
//! eight. It is directed by the straight distance that remains, and ends when nothing better can come.
//!
//! Labels live in a small hash table of their own: a search touches some tens of edges, which then stay in the
//! nearest cache, where a table as long as the graph would miss it each time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use protocol::Position;

use super::weights::Weights;
use crate::class::Profile;
use crate::geo::Plane;
use crate::graph::{EdgeId, Graph};
use crate::record::NONE;

/// A place on the graph from which a search begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    pub edge: EdgeId,
    pub along_cm: u32,
    /// What it has cost so far, as a distance.
    pub base_cm: u32,
}

/// A place on the graph that a search looks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub edge: EdgeId,
    pub along_cm: u32,
    /// Cost of the fix being there.
    pub emission: f32,
    /// What the search found.
    pub reached: Option<Reached>,
}

/// How a target was reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Reached {
    pub source: u8,
    pub route_cm: u32,
    /// What turning round cost on the way, as a distance.
    pub price_cm: u32,
}

/// How far a search goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// The straight distance between the fixes.
    pub straight_cm: f32,
    /// Longer ways, what was paid before included, are not looked at.
    pub limit_cm: f32,
    pub beta_cm: f32,
    pub labels_max: usize,
}

/// The buffers of a search, reused from one to the next.
#[derive(Debug)]
pub(super) struct Search {
    slots: Vec<Slot>,
    stamp: u32,
    used: usize,
    heap: BinaryHeap<Reverse<u64>>,
}

/// The end of an edge, as far as the search knows it.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    stamp: u32,
    edge: u32,
    /// Base, route and prices together.
    key_cm: u32,
    price_cm: u32,
    /// The edge before, or NONE at a source.
    parent: u32,
    source: u8,
}

/// Where a search is headed.
#[derive(Clone, Copy, Debug)]
struct Goal {
    plane: Plane,
    /// Targets lie within this of the plane's origin.
    radius_cm: f64,
}

impl Goal {
    /// A distance that surely remains from a position.
    #[inline]
    fn remaining_cm(&self, position: Position) -> f32 {
        let (east, north) = self.plane.to_cm(position);
        // A thousandth less, because edges are measured on planes of their own.
        (((east * east + north * north).sqrt() * 0.999) - self.radius_cm).max(0.0) as f32
    }
}

impl Search {
    pub fn new() -> Search {
        Search { slots: vec![Slot::default(); SLOTS_MIN], stamp: 0, used: 0, heap: BinaryHeap::with_capacity(256) }
    }

    /// Finds for every target the source it is reached from at the least total.
    pub fn reach(
        &mut self,
        graph: &Graph,
        profile: Profile,
        weights: &Weights,
        sources: &[Source],
        targets: &mut [Target],
        (around, radius_cm): (Position, f64),
        bounds: Bounds,
    ) {
        let goal = Goal { plane: Plane::at(around), radius_cm };
        let best_emission = targets.iter().fold(f32::INFINITY, |best, t| best.min(t.emission));
        let mask = targets.iter().fold(0u64, |mask, t| mask | 1 << (t.edge.0 & 63));
        let mut limit_cm = bounds.limit_cm;
        self.begin();
        for (i, source) in sources.iter().enumerate() {
            let key_cm = source.base_cm + graph.length_cm(source.edge).saturating_sub(source.along_cm);
            let step = Step { key_cm, price_cm: 0, parent: NONE, source: i as u8 };
            self.relax(graph, &goal, source.edge, step, limit_cm);
        }
        while let Some((end, slot)) = self.next(limit_cm) {
            if self.used > bounds.labels_max {
                break;
            }
            for next in Turns::of(graph, profile, weights, end) {
                let (key_cm, price_cm) = (slot.key_cm + next.price_cm, slot.price_cm + next.price_cm);
                if mask & (1 << (next.edge.0 & 63)) != 0 {
                    for target in targets.iter_mut().filter(|t| t.edge == next.edge) {
                        let base_cm = sources[usize::from(slot.source)].base_cm;
                        if target.offer(slot.source, base_cm, key_cm + target.along_cm, price_cm) {
                            let over = (key_cm + target.along_cm) as f32 - bounds.straight_cm;
                            let total = over.max(0.0) / bounds.beta_cm + target.emission - best_emission;
                            limit_cm = limit_cm.min(bounds.straight_cm + (total + weights.beam) * bounds.beta_cm);
                        }
                    }
                }
                let key_cm = key_cm.saturating_add(graph.length_cm(next.edge));
                let step = Step { key_cm, price_cm, parent: end.0, source: slot.source };
                self.relax(graph, &goal, next.edge, step, limit_cm);
            }
        }
    }

    /// The edges driven from one place to another, the first one left out. False if there is no way within bounds.
    pub fn path(
        &mut self,
        graph: &Graph,
        profile: Profile,
        weights: &Weights,
        from: (EdgeId, u32),
        to: (EdgeId, u32),
        route: &mut Vec<EdgeId>,
    ) -> bool {
        route.clear();
        if let Some(direct) = direct(graph, weights, from, to) {
            if matches!(direct, Direct::Turned { .. }) {
                route.push(to.0);
            }
            return true;
        }
        let target = graph.position_at(to.0, to.1);
        let goal = Goal { plane: Plane::at(target), radius_cm: 100.0 };
        let limit_cm = PATH_CM_MAX;
        self.begin();
        let key_cm = graph.length_cm(from.0).saturating_sub(from.1);
        self.relax(graph, &goal, from.0, Step { key_cm, price_cm: 0, parent: NONE, source: 0 }, limit_cm);
        let mut best: Option<(u32, EdgeId)> = None;
        let mut limit_cm = limit_cm;
        while let Some((end, slot)) = self.next(limit_cm) {
            if self.used > PATH_LABELS_MAX {
                break;
            }
            for next in Turns::of(graph, profile, weights, end) {
                let key_cm = slot.key_cm + next.price_cm;
                if next.edge == to.0 && best.is_none_or(|(b, _)| key_cm < b) {
                    best = Some((key_cm, end));
                    limit_cm = (key_cm + to.1) as f32;
                }
                let key_cm = key_cm.saturating_add(graph.length_cm(next.edge));
                self.relax(graph, &goal, next.edge, Step { key_cm, price_cm: 0, parent: end.0, source: 0 }, limit_cm);
            }
        }
        let Some((_, mut at)) = best else { return false };
        route.push(to.0);
        // Parents only ever improve, and a chain of them is as long as there are labels at most.
        for _ in 0..self.used {
            match self.find(at.0) {
                Some(slot) if slot.parent != NONE => {
                    route.push(at);
                    at = EdgeId(slot.parent);
                }
                _ => break,
            }
        }
        route.reverse();
        true
    }

    fn begin(&mut self) {
        self.heap.clear();
        self.used = 0;
        self.stamp = self.stamp.wrapping_add(1);
        if self.stamp == 0 {
            self.slots.fill(Slot::default());
            self.stamp = 1;
        }
    }

    /// The end that is next in order.
    #[inline]
    fn next(&mut self, limit_cm: f32) -> Option<(EdgeId, Slot)> {
        loop {
            let Reverse(entry) = self.heap.pop()?;
            if (entry >> 32) as f32 > limit_cm {
                return None;
            }
            let edge = EdgeId(entry as u32);
            let slot = *self.find(edge.0)?;
            // An entry that was bettered since is passed by: its order lies above what the slot says.
            if slot.stamp == self.stamp {
                return Some((edge, slot));
            }
        }
    }

    #[inline]
    fn relax(&mut self, graph: &Graph, goal: &Goal, edge: EdgeId, step: Step, limit_cm: f32) {
        if step.key_cm as f32 > limit_cm {
            return;
        }
        let at = self.place_of(edge.0);
        let slot = &mut self.slots[at];
        if slot.stamp == self.stamp {
            if slot.key_cm <= step.key_cm {
                return;
            }
        } else {
            self.used += 1;
        }
        let order_cm = step.key_cm as f32 + goal.remaining_cm(end_position(graph, edge));
        *slot = Slot {
            stamp: self.stamp,
            edge: edge.0,
            key_cm: step.key_cm,
            price_cm: step.price_cm,
            parent: step.parent,
            source: step.source,
        };
        if order_cm <= limit_cm {
            self.heap.push(Reverse(u64::from(order_cm as u32) << 32 | u64::from(edge.0)));
        }
        if self.used * 2 > self.slots.len() {
            self.grow();
        }
    }

    /// Where an edge's label is, or would be.
    #[inline]
    fn place_of(&self, edge: u32) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = (edge.wrapping_mul(0x9E37_79B1) >> 7) as usize & mask;
        while self.slots[at].stamp == self.stamp && self.slots[at].edge != edge {
            at = (at + 1) & mask;
        }
        at
    }

    #[inline]
    fn find(&self, edge: u32) -> Option<&Slot> {
        let slot = &self.slots[self.place_of(edge)];
        (slot.stamp == self.stamp).then_some(slot)
    }

    fn grow(&mut self) {
        let old = std::mem::take(&mut self.slots);
        self.slots = vec![Slot::default(); old.len() * 2];
        for slot in old.into_iter().filter(|s| s.stamp == self.stamp) {
            let at = self.place_of(slot.edge);
            self.slots[at] = slot;
        }
    }
}

impl Target {
    /// Takes a way that is better in total. True if it was.
    pub fn offer(&mut self, source: u8, base_cm: u32, key_cm: u32, price_cm: u32) -> bool {
        let is_better = self.reached.is_none_or(|r| key_cm < self.key_cm_of(&r, base_cm));
        let _ = is_better;
        is_better
    }
}

#[derive(Clone, Copy, Debug)]
struct Step {
    key_cm: u32,
    price_cm: u32,
    parent: u32,
    source: u8,
}
