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
use wincode::{SchemaRead, SchemaWrite};

use super::weights::{Weights, minor_share};
use crate::class::{EdgeFlags, Profile, RoadClass};
use crate::geo::{self, Plane};
use crate::graph::{EdgeId, Graph};
use crate::record::NONE;

/// A place on an edge.
#[derive(Clone, Copy, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
pub(super) struct Place {
    pub edge: EdgeId,
    pub along_cm: u32,
}

/// A place from which a search begins, and what it has cost so far, as a distance.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    pub place: Place,
    pub base_cm: u32,
}

/// A place that a search looks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub place: Place,
    /// Cost of the fix being there.
    pub emission: f32,
    /// Base, route and prices of the best way found; `UNREACHED` where there is none.
    pub key_cm: u32,
    pub price_cm: u32,
    pub source: u8,
}

/// How far a search goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// All targets lie within the radius of this.
    pub around: Position,
    pub radius_cm: f64,
    /// The straight distance between the fixes.
    pub straight_cm: f32,
    /// Ways longer than this, with what was paid before, are not looked at.
    pub limit_cm: f32,
    pub beta_cm: f32,
    pub labels_max: usize,
    /// Whether ways against one-way streets are looked at.
    pub goes_against: bool,
}

/// A way from place to place that needs no search.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Direct {
    pub route_cm: u32,
    pub price_cm: u32,
    pub is_turned: bool,
}

/// The way along one edge: forward, jittering backward, or turning round on it.
#[inline]
pub(super) fn direct(graph: &Graph, weights: &Weights, from: Place, to: Place) -> Option<Direct> {
    if from.edge == to.edge {
        if to.along_cm >= from.along_cm {
            return Some(Direct { route_cm: to.along_cm - from.along_cm, price_cm: 0, is_turned: false });
        }
        let back_cm = from.along_cm - to.along_cm;
        let price_cm = (back_cm as f32 * weights.backward_price) as u32;
        return (back_cm as f32 <= weights.backward_max_m * 100.0).then_some(Direct {
            route_cm: back_cm,
            price_cm,
            is_turned: false,
        });
    }
    if !graph.is_u_turn(from.edge, to.edge) {
        return None;
    }
    let route_cm = graph.length_cm(from.edge).saturating_sub(to.along_cm).abs_diff(from.along_cm);
    Some(Direct { route_cm, price_cm: (weights.u_turn_m * 100.0) as u32, is_turned: true })
}

/// The buffers of a search, reused from one to the next.
#[derive(Debug)]
pub(super) struct Search {
    slots: Vec<Slot>,
    stamp: u32,
    used: usize,
    heap: BinaryHeap<Reverse<u64>>,
    /// What a centimetre on a road of each class costs more than its length, in 1,024ths.
    class_prices: [u32; RoadClass::ALL.len()],
}

/// The end of an edge, as far as the search knows it.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    stamp: u32,
    edge: u32,
    /// Base, route and prices together.
    key_cm: u32,
    /// The same with what surely remains.
    order_cm: u32,
    price_cm: u32,
    /// The edge before, or NONE at a source.
    parent: u32,
    source: u8,
}

/// One way to reach the end of an edge.
#[derive(Clone, Copy, Debug)]
struct Step {
    edge: EdgeId,
    key_cm: u32,
    price_cm: u32,
    parent: u32,
    source: u8,
}

/// Where a search is headed, and when it ends.
#[derive(Clone, Copy, Debug)]
struct Goal {
    plane: Plane,
    radius_cm: f64,
    limit_cm: f32,
}

impl Search {
    pub fn new(weights: &Weights) -> Search {
        let mut class_prices = [0; RoadClass::ALL.len()];
        for class in RoadClass::ALL {
            let price = weights.minor_price * minor_share(*class);
            class_prices[usize::from(class.number())] = (price * 1024.0).round() as u32;
        }
        Search {
            slots: vec![Slot::default(); SLOTS_MIN],
            stamp: 0,
            used: 0,
            heap: BinaryHeap::with_capacity(256),
            class_prices,
        }
    }

    /// What so much of an edge costs more than its length, for somebody who chooses among main and minor roads.
    #[inline]
    fn minor_cm(&self, graph: &Graph, profile: Profile, edge: EdgeId, length_cm: u32) -> u32 {
        match profile {
            Profile::Car | Profile::Moped => {
                let price = self.class_prices[usize::from(graph.record(edge).class())]; // checked when the map was opened
                ((u64::from(length_cm) * u64::from(price)) >> 10) as u32
            }
            Profile::Bicycle | Profile::Foot => 0,
        }
    }

    /// Finds for every target the source it is reached from at the least total.
    pub fn reach(
        &mut self,
        graph: &Graph,
        profile: Profile,
        weights: &Weights,
        sources: &[Source],
        targets: &mut [Target],
        bounds: Bounds,
    ) {
        let mut goal = Goal { plane: Plane::at(bounds.around), radius_cm: bounds.radius_cm, limit_cm: bounds.limit_cm };
        let best_emission = targets.iter().fold(f32::INFINITY, |best, t| best.min(t.emission));
        let mask = targets.iter().fold(0u64, |mask, t| mask | 1 << (t.place.edge.0 & 63));
        self.begin();
        for (i, source) in sources.iter().enumerate() {
            let Place { edge, along_cm } = source.place;
            let length_cm = graph.length_cm(edge).saturating_sub(along_cm);
            let price_cm = self.minor_cm(graph, profile, edge, length_cm);
            let key_cm = source.base_cm + length_cm + price_cm;
            self.relax(graph, &goal, Step { edge, key_cm, price_cm, parent: NONE, source: i as u8 });
        }
        let who = Who { profile, goes_against: bounds.goes_against };
        while let Some((end, slot)) = self.next(&goal) {
            if self.used > bounds.labels_max {
                break;
            }
            for_each_turn(graph, who, weights, end, |edge, turn_cm| {
                let (key_cm, price_cm) = (slot.key_cm.saturating_add(turn_cm), slot.price_cm.saturating_add(turn_cm));
                if mask & (1 << (edge.0 & 63)) != 0 {
                    for target in targets.iter_mut().filter(|t| t.place.edge == edge) {
                        let along_cm = target.place.along_cm;
                        let minor_cm = self.minor_cm(graph, profile, edge, along_cm);
                        let key_cm = key_cm.saturating_add(along_cm + minor_cm);
                        if target.offer(slot.source, key_cm, price_cm.saturating_add(minor_cm)) {
                            let over_cm = (target.key_cm as f32 - bounds.straight_cm).max(0.0);
                            let slack = target.emission - best_emission + weights.beam;
                            goal.limit_cm = goal.limit_cm.min(bounds.straight_cm + over_cm + slack * bounds.beta_cm);
                        }
                    }
                }
                let length_cm = graph.length_cm(edge);
                let minor_cm = self.minor_cm(graph, profile, edge, length_cm);
                let key_cm = key_cm.saturating_add(length_cm + minor_cm);
                let price_cm = price_cm.saturating_add(minor_cm);
                self.relax(graph, &goal, Step { edge, key_cm, price_cm, parent: end.0, source: slot.source });
            });
        }
    }

    /// The edges driven from one place to another, the first one left out. False if there is no way within bounds.
    pub fn path(
        &mut self,
        graph: &Graph,
        profile: Profile,
        weights: &Weights,
        from: Place,
        to: Place,
        route: &mut Vec<EdgeId>,
    ) -> bool {
        route.clear();
        if let Some(direct) = direct(graph, weights, from, to) {
            route.extend(direct.is_turned.then_some(to.edge));
            return true;
        }
        let is_against = is_against(graph, profile, from.edge) || is_against(graph, profile, to.edge);
        let straight_cm =
            geo::distance_cm(graph.position_at(from.edge, from.along_cm), graph.position_at(to.edge, to.along_cm))
                as f32;
        let against_cm = weights.against_cm(profile);
        let who = Who { profile, goes_against: is_against };
        let found = self.cheapest(graph, who, weights, (from, to), PATH_CM_MAX);
        // Where there is no way, or a long one only, somebody may have gone against a one-way street between the two.
        let is_long = |(key_cm, _): (u32, EdgeId)| key_cm as f32 > straight_cm * 1.5 + DETOUR_CM + against_cm;
        let mut best = found;
        if !is_against && against_cm > 0.0 && found.is_none_or(is_long) && straight_cm < AGAINST_CM_MAX {
            let most_cm = found.map_or(straight_cm * 3.0 + DETOUR_CM + against_cm, |(key_cm, _)| key_cm as f32);
            let other = self.cheapest(graph, Who { profile, goes_against: true }, weights, (from, to), most_cm);
            best = match (found, other) {
                (Some(_), None) => self.cheapest(graph, who, weights, (from, to), PATH_CM_MAX),
                (_, other) => other,
            };
        }
        let Some((_, before)) = best else { return false };
        self.walk_back(before, to.edge, route);
        true
    }

    /// What the cheapest way costs up to the last edge, and the edge before that. The labels of the search stay.
    fn cheapest(
        &mut self,
        graph: &Graph,
        who: Who,
        weights: &Weights,
        (from, to): (Place, Place),
        most_cm: f32,
    ) -> Option<(u32, EdgeId)> {
        let target = graph.position_at(to.edge, to.along_cm);
        let mut goal = Goal { plane: Plane::at(target), radius_cm: 100.0, limit_cm: most_cm };
        self.begin();
        let key_cm = graph.length_cm(from.edge).saturating_sub(from.along_cm);
        self.relax(graph, &goal, Step { edge: from.edge, key_cm, price_cm: 0, parent: NONE, source: 0 });
        let mut best: Option<(u32, EdgeId)> = None;
        while let Some((end, slot)) = self.next(&goal) {
            if self.used > PATH_LABELS_MAX {
                break;
            }
            for_each_turn(graph, who, weights, end, |edge, turn_cm| {
                let key_cm = slot.key_cm.saturating_add(turn_cm);
                if edge == to.edge && best.is_none_or(|(b, _)| key_cm < b) {
                    best = Some((key_cm, end));
                    goal.limit_cm = key_cm.saturating_add(to.along_cm) as f32;
                }
                let length_cm = graph.length_cm(edge);
                let minor_cm = self.minor_cm(graph, who.profile, edge, length_cm);
                let key_cm = key_cm.saturating_add(length_cm + minor_cm);
                self.relax(graph, &goal, Step { edge, key_cm, price_cm: 0, parent: end.0, source: 0 });
            });
        }
        best
    }

    /// Writes down the way to the end of `before` and on to `last`, the source's own edge left out.
    fn walk_back(&self, before: EdgeId, last: EdgeId, route: &mut Vec<EdgeId>) {
        route.push(last);
        let mut at = before;
        // A chain of parents is as long as there are labels at most.
        for _ in 0..self.used {
            match self.find(at) {
                Some(slot) if slot.parent != NONE => {
                    route.push(at);
                    at = EdgeId(slot.parent);
                }
                _ => break,
            }
        }
        route.reverse();
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

    /// The end of an edge that is next in order.
    #[inline]
    fn next(&mut self, goal: &Goal) -> Option<(EdgeId, Slot)> {
        loop {
            let Reverse(entry) = self.heap.pop()?;
            let (order_cm, edge) = ((entry >> 32) as u32, EdgeId(entry as u32));
            if order_cm as f32 > goal.limit_cm {
                return None;
            }
            let slot = *self.find(edge)?;
            if slot.order_cm == order_cm {
                return Some((edge, slot)); // another order: it was bettered since
            }
        }
    }

    #[inline]
    fn relax(&mut self, graph: &Graph, goal: &Goal, step: Step) {
        if step.key_cm as f32 > goal.limit_cm {
            return;
        }
        let at = self.place_of(step.edge);
        let is_new = self.slots[at].stamp != self.stamp;
        if !is_new && self.slots[at].key_cm <= step.key_cm {
            return;
        }
        let order_cm = step.key_cm.saturating_add(goal.remaining_cm(end_position(graph, step.edge)));
        self.slots[at] = Slot {
            stamp: self.stamp,
            edge: step.edge.0,
            key_cm: step.key_cm,
            order_cm,
            price_cm: step.price_cm,
            parent: step.parent,
            source: step.source,
        };
        if order_cm as f32 <= goal.limit_cm {
            self.heap.push(Reverse(u64::from(order_cm) << 32 | u64::from(step.edge.0)));
        }
        if is_new {
            self.used += 1;
            if self.used * 2 > self.slots.len() {
                self.grow();
            }
        }
    }

    /// Where an edge's label is, or would be.
    #[inline]
    fn place_of(&self, edge: EdgeId) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = (edge.0.wrapping_mul(0x9E37_79B1) >> 7) as usize & mask;
        while self.slots[at].stamp == self.stamp && self.slots[at].edge != edge.0 {
            at = (at + 1) & mask;
        }
        at
    }

    #[inline]
    fn find(&self, edge: EdgeId) -> Option<&Slot> {
        let slot = &self.slots[self.place_of(edge)];
        (slot.stamp == self.stamp).then_some(slot)
    }

    fn grow(&mut self) {
        let longer = self.slots.len() * 2;
        let old = std::mem::replace(&mut self.slots, vec![Slot::default(); longer]);
        for slot in old.into_iter().filter(|s| s.stamp == self.stamp) {
            let at = self.place_of(EdgeId(slot.edge));
            self.slots[at] = slot;
        }
    }
}

impl Goal {
    /// A distance that surely remains from a position.
    #[inline]
    fn remaining_cm(&self, position: Position) -> u32 {
        let (east, north) = self.plane.to_cm(position);
        // A thousandth less, because edges were measured on planes of their own.
        ((east * east + north * north).sqrt() * 0.999 - self.radius_cm).max(0.0) as u32
    }
}

impl Target {
    pub fn new(place: Place, emission: f32) -> Target {
        Target { place, emission, key_cm: UNREACHED, price_cm: 0, source: 0 }
    }

    pub fn is_reached(&self) -> bool {
        self.key_cm != UNREACHED
    }

    /// Takes a way if it is better in total than what was found before.
    #[inline]
    fn offer(&mut self, source: u8, key_cm: u32, price_cm: u32) -> bool {
        let is_better = key_cm < self.key_cm;
        if is_better {
            (self.key_cm, self.price_cm, self.source) = (key_cm, price_cm, source);
        }
        is_better
    }
}

/// Where an edge ends.
#[inline]
fn end_position(graph: &Graph, edge: EdgeId) -> Position {
    let points = graph.points(edge);
    let point = if graph.is_backward(edge) { points.first() } else { points.last() };
    point.map(|p| p.position()).unwrap_or_default() // every road has two points: checked when the map was opened
}

/// Who is looked for, and whether also where he may not go.
#[derive(Clone, Copy)]
struct Who {
    profile: Profile,
    goes_against: bool,
}

/// Whether an edge leads against a street that is one-way for a profile.
#[inline]
pub(super) fn is_against(graph: &Graph, profile: Profile, edge: EdgeId) -> bool {
    !graph.allows(edge, profile) && graph.reverse(edge).is_some_and(|reverse| graph.allows(reverse, profile))
}

/// Calls `f` with every edge that may follow an edge, and the price of turning into it.
#[inline]
fn for_each_turn(graph: &Graph, who: Who, weights: &Weights, edge: EdgeId, mut f: impl FnMut(EdgeId, u32)) {
    let profile = who.profile;
    let record = graph.record(edge);
    let is_restricted = EdgeFlags(record.flags).has(EdgeFlags::TURN_FROM);
    let to = graph.to(edge);
    for next in graph.out_edges(to) {
        let mut price_m = 0.0;
        if !graph.allows(next, profile) {
            if !who.goes_against || !is_against(graph, profile, next) {
                continue;
            }
            if graph.allows(edge, profile) {
                price_m += weights.against_cm(profile) / 100.0;
            }
        }
        price_m += match graph.is_u_turn(edge, next) {
            false => 0.0,
            true if graph.is_dead_end(to, profile) => weights.u_turn_dead_end_m,
            true => weights.u_turn_m,
        };
        if is_restricted && let Some(turn) = graph.turn(edge, next) {
            price_m += if turn.is_forbidden(profile) {
                weights.forbidden_turn_m
            } else if turn.is_conditional(profile) {
                // Nobody here knows the clocks of the place: half of the hours, half of the price.
                weights.forbidden_turn_m / 2.0
            } else {
                0.0
            };
        }
        f(next, (price_m * 100.0) as u32);
    }
}

pub(super) const UNREACHED: u32 = u32::MAX;
const SLOTS_MIN: usize = 1024;
const PATH_LABELS_MAX: usize = 20_000;
/// A way that is so much longer than half as long again as the straight line is a long one.
const DETOUR_CM: f32 = 20_000.0;
/// Farther than this nobody goes against one-way streets between two fixes.
const AGAINST_CM_MAX: f32 = 150_000.0;
/// The longest way that is written down between two fixes: 100 km.
const PATH_CM_MAX: f32 = 1e7;
