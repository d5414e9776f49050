//! From one used fix to the next: which places it may be at, and what each costs at best, given where the driver may
//! have been before.

use protocol::Position;

use super::Observation;
use super::search::{Bounds, Direct, Place, Search, Source, Target, direct, is_against};
use super::trellis::{Column, NO_PARENT, OFF_ROAD, State, likelihood, percent};
use super::weights::{
    AGAINST_COST_MIN, CANDIDATE_RADIUS_FAR_M, CANDIDATE_RADIUS_M, CANDIDATES_MAX, HOP_CM_MAX, SILENCE_DS_MAX,
    SILENCE_FAR_CM, SPEED_CM_S_MAX, STATES_MAX, Weights,
};
use crate::class::Profile;
use crate::geo;
use crate::graph::{Candidate, EdgeId, Graph};

/// Buffers for matching, one per thread, reused from fix to fix and from driver to driver. What they hold between
/// calls means nothing.
#[derive(Debug)]
pub struct Scratch {
    pub(super) weights: Weights,
    pub(super) search: Search,
    pub(super) candidates: Vec<Candidate>,
    /// Beside the candidates.
    pub(super) targets: Vec<Target>,
    sources: Vec<Source>,
    /// Beside the sources: their index in their column.
    parents: Vec<u8>,
    /// The places of the fix, the likeliest first, costs above the first.
    pub(super) states: Vec<State>,
    /// Beside the states: their candidate.
    pub(super) state_candidates: Vec<u8>,
    pub(super) route: Vec<EdgeId>,
    pub(super) way: Vec<EdgeId>,
    /// What the step to the best place has cost.
    step_cost: f32,
    /// Whether places against one-way streets are among the candidates.
    goes_against: bool,
}

impl Scratch {
    pub fn new() -> Scratch {
        Scratch::with_weights(Weights::DEFAULT)
    }

    /// For finding out what other weights would do.
    pub fn with_weights(weights: Weights) -> Scratch {
        Scratch {
            weights,
            search: Search::new(&weights),
            candidates: Vec::with_capacity(64),
            targets: Vec::with_capacity(CANDIDATES_MAX),
            sources: Vec::with_capacity(STATES_MAX),
            parents: Vec::with_capacity(STATES_MAX),
            states: Vec::with_capacity(CANDIDATES_MAX + 1),
            state_candidates: Vec::with_capacity(CANDIDATES_MAX + 1),
            route: Vec::with_capacity(64),
            way: Vec::with_capacity(64),
            step_cost: 0.0,
            goes_against: false,
        }
    }

    /// The edges driven from one place to another, the first one left out, by the search that the matcher itself joins
    /// its places with. False if there is no way within bounds. The edges must be the graph's.
    pub fn find_way(
        &mut self,
        graph: &Graph,
        profile: Profile,
        (from_edge, from_cm): (EdgeId, u32),
        (to_edge, to_cm): (EdgeId, u32),
        route: &mut Vec<EdgeId>,
    ) -> bool {
        let place = |edge, along_cm: u32| Place { edge, along_cm: along_cm.min(graph.length_cm(edge)) };
        self.search.path(graph, profile, &self.weights, place(from_edge, from_cm), place(to_edge, to_cm), route)
    }

    /// Finds the candidates of a fix and what it costs to be at each.
    pub(super) fn gather(&mut self, graph: &Graph, profile: Profile, fix: &Observation) {
        let radius_m = fix
            .accuracy_m
            .map_or(CANDIDATE_RADIUS_M, |a| (f64::from(a) * 1.5).clamp(CANDIDATE_RADIUS_M, CANDIDATE_RADIUS_FAR_M));
        graph.candidates(fix.position, radius_m, profile, &mut self.candidates);
        if self.candidates.is_empty() {
            graph.candidates(fix.position, CANDIDATE_RADIUS_FAR_M, profile, &mut self.candidates);
        }
        self.candidates.truncate(CANDIDATES_MAX);
        self.targets.clear();
        self.goes_against = false;
        self.aim(graph, fix, 0);
    }

    /// Adds what it costs to be at each candidate from a number on.
    fn aim(&mut self, graph: &Graph, fix: &Observation, first: usize) {
        let sigma_m = self.weights.sigma_m(fix.accuracy_m);
        let heading_cdeg = heading_cdeg(fix);
        for candidate in &self.candidates[first..] {
            let mut emission = self.weights.emission(candidate.off_cm as f32 * 0.01, sigma_m);
            if let Some(heading_cdeg) = heading_cdeg {
                let turn = f32::from(geo::turn_cdeg(heading_cdeg, candidate.heading_cdeg)) / 18_000.0;
                emission += self.weights.heading * turn * turn;
            }
            if graph.flags(candidate.edge).is_service() {
                emission += self.weights.service;
            }
            let place = Place { edge: candidate.edge, along_cm: candidate.along_cm };
            self.targets.push(Target::new(place, emission));
        }
    }

    /// Adds the candidates against one-way streets: who goes there is seldom, so they are looked at where nothing else
    /// is likely, and as long as somebody may be on such a way.
    fn gather_against(&mut self, graph: &Graph, profile: Profile, fix: &Observation) {
        self.goes_against = true;
        let first = self.candidates.len();
        for at in 0..first {
            let along = self.candidates[at];
            let Some(edge) = graph.reverse(along.edge).filter(|edge| is_against(graph, profile, *edge)) else {
                continue;
            };
            let along_cm = graph.length_cm(edge).saturating_sub(along.along_cm);
            let heading_cdeg = (along.heading_cdeg + 18_000) % 36_000;
            self.candidates.push(Candidate { edge, along_cm, heading_cdeg, ..along });
        }
        self.aim(graph, fix, first);
    }

    /// The places of a fix that nothing comes before.
    pub(super) fn begin_chain(&mut self, graph: &Graph, profile: Profile, fix: &Observation) {
        if !self.goes_against {
            self.gather_against(graph, profile, fix);
        }
        self.states.clear();
        self.state_candidates.clear();
        let against = self.weights.against_cm(profile) / self.weights.beta_cm(BEGIN_S);
        for (i, target) in self.targets.iter().enumerate() {
            let price = if graph.allows(target.place.edge, profile) { 0.0 } else { against };
            self.states.push(state_at(&self.candidates[i], NO_PARENT, target.emission + price));
            self.state_candidates.push(i as u8);
        }
        self.states.push(off_road(NO_PARENT, self.weights.off_road));
        self.state_candidates.push(NO_CANDIDATE);
        self.keep_best();
    }

    /// The places of a fix after a column. False if none of them can be reached from there.
    pub(super) fn follow(
        &mut self,
        graph: &Graph,
        profile: Profile,
        column: &Column,
        before: &[State],
        fix: &Observation,
    ) -> bool {
        let seconds = fix.measured.seconds_since(column.measured).max(0.0) as f32;
        let straight_cm = geo::distance_cm(column.position, fix.position) as f32;
        if !is_plausible(straight_cm, seconds) {
            return false;
        }
        let is_on = |state: &&State| state.is_alive() && !state.is_off_road();
        let mut places = before.iter().filter(is_on);
        let against_cost = self.weights.against_cm(profile) / self.weights.beta_cm(seconds);
        if places.any(|state| !graph.allows(state.edge(), profile)) {
            self.gather_against(graph, profile, fix);
        }
        let mut is_reached = self.step(graph, profile, column, before, fix);
        let is_dear = self.step_cost > against_cost.max(AGAINST_COST_MIN);
        if !self.goes_against && against_cost > 0.0 && (!is_reached || is_dear) {
            self.gather_against(graph, profile, fix);
            is_reached = self.step(graph, profile, column, before, fix);
        }
        is_reached
    }

    /// The same with the candidates that are there.
    fn step(&mut self, graph: &Graph, profile: Profile, column: &Column, before: &[State], fix: &Observation) -> bool {
        let seconds = fix.measured.seconds_since(column.measured).max(0.0) as f32;
        let straight_cm = geo::distance_cm(column.position, fix.position) as f32;
        let beta_cm = self.weights.beta_cm(seconds);
        self.set_sources(before, beta_cm);
        self.targets.iter_mut().for_each(|target| *target = Target::new(target.place, target.emission));
        // Prices are in the limit too, up to what is forgotten anyway.
        let driven_cm_max = SPEED_CM_S_MAX * seconds + JITTER_CM + self.weights.beam * beta_cm;
        let mut bounds = Bounds {
            around: fix.position,
            radius_cm: self.candidates.iter().map(|c| f64::from(c.off_cm)).fold(0.0, f64::max),
            straight_cm,
            limit_cm: (straight_cm * 1.5 + SLACK_CM).min(driven_cm_max),
            beta_cm,
            labels_max: LABELS_MAX,
            goes_against: self.goes_against,
        };
        if self.sources.is_empty() || self.targets.is_empty() {
            return self.combine(graph, profile, before, straight_cm, beta_cm);
        }
        self.search.reach(graph, profile, &self.weights, &self.sources, &mut self.targets, bounds);
        if self.combine(graph, profile, before, straight_cm, beta_cm) {
            return true;
        }
        bounds.limit_cm = (straight_cm * 3.0 + SLACK_FAR_CM).min(driven_cm_max);
        bounds.labels_max = LABELS_FAR_MAX;
        self.search.reach(graph, profile, &self.weights, &self.sources, &mut self.targets, bounds);
        self.combine(graph, profile, before, straight_cm, beta_cm)
    }

    fn set_sources(&mut self, before: &[State], beta_cm: f32) {
        self.sources.clear();
        self.parents.clear();
        for (i, state) in before.iter().enumerate() {
            if state.is_alive() && !state.is_off_road() {
                let place = Place { edge: state.edge(), along_cm: state.along_cm };
                self.sources.push(Source { place, base_cm: (state.cost * beta_cm) as u32 });
                self.parents.push(i as u8);
            }
        }
    }

    /// The cheapest way into each target, and off the road. False if no road can be reached.
    fn combine(&mut self, graph: &Graph, profile: Profile, before: &[State], straight_cm: f32, beta_cm: f32) -> bool {
        let change = self.weights.off_road_change;
        let off = before.iter().enumerate().find(|(_, s)| s.is_alive() && s.is_off_road());
        self.states.clear();
        self.state_candidates.clear();
        for (i, target) in self.targets.iter().enumerate() {
            let mut best = (f32::INFINITY, NO_PARENT);
            if target.is_reached() {
                let source = usize::from(target.source);
                let route_cm = target.key_cm - target.price_cm - self.sources[source].base_cm;
                let parent = self.parents[source];
                let cost = way_cost(route_cm, target.price_cm, straight_cm, beta_cm);
                best = (before[usize::from(parent)].cost + cost, parent);
            }
            for (source, parent) in self.sources.iter().zip(&self.parents) {
                if let Some(Direct { route_cm, mut price_cm, is_turned }) =
                    direct(graph, &self.weights, source.place, target.place)
                {
                    if is_turned && self.goes_against && !graph.allows(target.place.edge, profile) {
                        price_cm += self.weights.against_cm(profile) as u32;
                    }
                    let cost = before[usize::from(*parent)].cost + way_cost(route_cm, price_cm, straight_cm, beta_cm);
                    best = if cost < best.0 { (cost, *parent) } else { best };
                }
            }
            if let Some((parent, off)) = off
                && off.cost + change < best.0
            {
                best = (off.cost + change, parent as u8);
            }
            if best.0 < f32::INFINITY {
                self.states.push(state_at(&self.candidates[i], best.1, best.0 + target.emission));
                self.state_candidates.push(i as u8);
            }
        }
        let is_reached = !self.states.is_empty();
        self.step_off_road(before);
        self.keep_best();
        is_reached || off.is_some()
    }

    fn step_off_road(&mut self, before: &[State]) {
        let mut best = (f32::INFINITY, NO_PARENT);
        for (i, state) in before.iter().enumerate().filter(|(_, s)| s.is_alive()) {
            let change = if state.is_off_road() { 0.0 } else { self.weights.off_road_change };
            if state.cost + change < best.0 {
                best = (state.cost + change, i as u8);
            }
        }
        if best.0 < f32::INFINITY {
            self.states.push(off_road(best.1, best.0 + self.weights.off_road));
            self.state_candidates.push(NO_CANDIDATE);
        }
    }

    /// Keeps the likeliest states, the best first and at no cost.
    fn keep_best(&mut self) {
        let (states, candidates) = (&mut self.states, &mut self.state_candidates);
        // Few enough for the plainest sort, which is stable.
        for i in 1..states.len() {
            let mut k = i;
            while k > 0 && states[k].cost < states[k - 1].cost {
                states.swap(k, k - 1);
                candidates.swap(k, k - 1);
                k -= 1;
            }
        }
        let Some(best_cost) = states.first().map(|s| s.cost) else { return };
        self.step_cost = best_cost;
        let worst = best_cost + self.weights.beam;
        let kept = states.iter().take(STATES_MAX).take_while(|s| s.cost <= worst).count();
        states.truncate(kept);
        candidates.truncate(kept);
        for state in states {
            state.cost -= best_cost;
        }
    }

    /// How likely it is that the driver is where the best state says, or close by.
    pub(super) fn confidence_percent(&self) -> u8 {
        let place = |i: usize| self.candidates.get(usize::from(self.state_candidates[i])).map(|c| c.position);
        let Some(best) = (!self.states.is_empty()).then(|| place(0)) else { return 0 };
        let (mut agree, mut total) = (0.0, 0.0);
        for (i, state) in self.states.iter().enumerate() {
            let weight = likelihood(state.cost);
            total += weight;
            let is_close = match (best, place(i)) {
                (Some(a), Some(b)) => is_close(a, b),
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            };
            if is_close {
                agree += weight;
            }
        }
        percent(agree / total)
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Scratch::new()
    }
}

/// Whether a driver can have gone so far in so long, and we can hope to say how.
fn is_plausible(straight_cm: f32, seconds: f32) -> bool {
    let is_in_sight = seconds * 10.0 <= SILENCE_DS_MAX as f32 || straight_cm <= SILENCE_FAR_CM;
    straight_cm <= HOP_CM_MAX && straight_cm <= SPEED_CM_S_MAX * seconds + JITTER_CM && is_in_sight
}

/// Cost of a route between two fixes.
#[inline]
fn way_cost(route_cm: u32, price_cm: u32, straight_cm: f32, beta_cm: f32) -> f32 {
    ((route_cm as f32 - straight_cm).abs() + price_cm as f32) / beta_cm
}

fn state_at(candidate: &Candidate, parent: u8, cost: f32) -> State {
    State {
        edge: candidate.edge.0,
        along_cm: candidate.along_cm,
        off_cm: candidate.off_cm.min(u32::from(u16::MAX)) as u16,
        parent,
        cost,
    }
}

fn off_road(parent: u8, cost: f32) -> State {
    State { edge: OFF_ROAD, along_cm: 0, off_cm: 0, parent, cost }
}

/// The heading, where it means something: a phone that stands points anywhere.
fn heading_cdeg(fix: &Observation) -> Option<u16> {
    let is_moving = fix.speed_dm_s.is_none_or(|s| s >= 20); // 2 m/s
    let heading = fix.heading_255.filter(|h| *h < 255 && is_moving)?;
    Some((u32::from(heading) * 36_000 / 255) as u16)
}

/// Within 20 m, in whole numbers: 20 m are 1,799 × 10⁻⁷ degree of latitude.
fn is_close(a: Position, b: Position) -> bool {
    (i64::from(a.lat_e7) - i64::from(b.lat_e7)).abs() < 1_799 && geo::distance_cm(a, b) < 2_000.0
}

pub(super) const NO_CANDIDATE: u8 = u8::MAX;
/// Detours beyond half the straight distance that are looked at first …
const SLACK_CM: f32 = 30_000.0;
const LABELS_MAX: usize = 1_500;
/// … and where nothing is found among them.
const SLACK_FAR_CM: f32 = 150_000.0;
const LABELS_FAR_MAX: usize = 6_000;
/// What two fixes may differ by without any movement.
const JITTER_CM: f32 = 10_000.0;
/// As if so much time had passed before a first fix, for what prices weigh then.
const BEGIN_S: f32 = 4.0;
