//! How today differs from the usual week, right now. Every traversal says how much slower or faster than the table it
//! was; that is believed for its edge, less for its neighbourhood's roads of the same class, least for the whole fleet,
//! and fades with a half-life of minutes. The learner keeps the evidence; what it hands out is a small table of factors.

use std::collections::BTreeMap;

use protocol::Time;
use wincode::{SchemaRead, SchemaWrite};

use super::cells::CellKey;
use super::factors::{FACTOR_MAX, FACTOR_MIN};
use super::hops::Traversal;
use super::{LiveFactors, Predecessors, SpeedTable, hour_of_week};
use crate::graph::{EdgeId, Graph};

/// Time needed and time expected, fading.
#[derive(Clone, Copy, PartialEq, Debug, SchemaWrite, SchemaRead)]
struct Evidence {
    seen_s: f64,
    expected_s: f64,
    at: Time,
}

impl Evidence {
    fn none(at: Time) -> Evidence {
        Evidence { seen_s: 0.0, expected_s: 0.0, at }
    }

    /// What is left of it at a later time.
    fn faded(self, now: Time) -> Evidence {
        let age_s = now.millis_since(self.at).max(0) as f64 / 1000.0;
        let left = libm::exp2(-age_s / HALF_LIFE_S);
        Evidence { seen_s: self.seen_s * left, expected_s: self.expected_s * left, at: self.at.max(now) }
    }

    fn add(&mut self, seen_s: f64, expected_s: f64, at: Time) {
        *self = self.faded(at);
        self.seen_s += seen_s;
        self.expected_s += expected_s;
    }

    fn factor(self, prior: f64, prior_s: f64) -> f64 {
        ((self.seen_s + prior * prior_s) / (self.expected_s + prior_s)).clamp(FACTOR_MIN, FACTOR_MAX)
    }
}

/// Keeps the evidence of the last minutes.
#[derive(Clone, PartialEq, Debug, SchemaWrite, SchemaRead)]
pub struct LiveLearner {
    fleet: Evidence,
    cells: BTreeMap<CellKey, Evidence>,
    edges: BTreeMap<u32, Evidence>,
}

impl LiveLearner {
    pub fn new(now: Time) -> LiveLearner {
        LiveLearner { fleet: Evidence::none(now), cells: BTreeMap::new(), edges: BTreeMap::new() }
    }

    pub fn handle_traversal(&mut self, graph: &Graph, usual: &SpeedTable, traversal: &Traversal) {
        let Traversal { edge, length_cm, seconds, at } = *traversal;
        if edge.index() >= graph.edge_count() {
            return;
        }
        let expected_s = usual.seconds(graph, edge, length_cm, hour_of_week(at));
        let seen_s = f64::from(seconds).clamp(expected_s * FACTOR_MIN, expected_s * FACTOR_MAX);
        self.fleet.add(seen_s, expected_s, at);
        let key = graph.speed_cells().key(edge);
        self.cells.entry(key).or_insert(Evidence::none(at)).add(seen_s, expected_s, at);
        self.edges.entry(edge.0).or_insert(Evidence::none(at)).add(seen_s, expected_s, at);
    }

    /// The factors of the moment; what has faded away is forgotten.
    pub fn factors(&mut self, graph: &Graph, now: Time) -> LiveFactors {
        self.cells.retain(|_, e| e.faded(now).expected_s > FORGOTTEN_S);
        self.edges.retain(|_, e| e.faded(now).expected_s > FORGOTTEN_S);
        let fleet = self.fleet.faded(now).factor(1.0, FLEET_PRIOR_S);
        let of_cell = |e: &Evidence| e.faded(now).factor(fleet, CELL_PRIOR_S);
        let cells = self.cells.iter().map(|(key, evidence)| (*key, of_cell(evidence)));
        let here = self.edges.iter().filter(|(edge, _)| (**edge as usize) < graph.edge_count());
        let edges = here.map(|(edge, evidence)| {
            let edge = EdgeId(*edge);
            let cell = self.cells.get(&graph.speed_cells().key(edge)).map_or(fleet, of_cell);
            (edge, evidence.faded(now).factor(cell, EDGE_PRIOR_S))
        });
        LiveFactors::of(graph, now, fleet, cells, edges)
    }

    /// How many edges there is evidence of.
    pub fn edges_len(&self) -> usize {
        self.edges.len()
    }

    /// Another table of the usual week: what it says already, today must not say again.
    pub fn handle_usual(&mut self, graph: &Graph, old: &SpeedTable, new: &SpeedTable, now: Time) {
        let hour = hour_of_week(now);
        let mut fleet = (0.0, 0.0);
        let mut cells: BTreeMap<CellKey, (f64, f64)> = BTreeMap::new();
        for (edge, evidence) in self.edges.iter_mut().filter(|(edge, _)| (**edge as usize) < graph.edge_count()) {
            let edge = EdgeId(*edge);
            let seconds = |table: &SpeedTable| table.seconds(graph, edge, graph.length_cm(edge).max(1), hour);
            let before_s = evidence.faded(now).expected_s;
            let times = seconds(new) / seconds(old);
            evidence.expected_s *= times;
            for sum in [&mut fleet, cells.entry(graph.speed_cells().key(edge)).or_default()] {
                *sum = (sum.0 + before_s, sum.1 + before_s * times);
            }
        }
        let times = |(before, after): (f64, f64)| if before > 0.0 { after / before } else { 1.0 };
        self.fleet.expected_s *= times(fleet);
        for (key, sum) in cells {
            if let Some(evidence) = self.cells.get_mut(&key) {
                evidence.expected_s *= times(sum);
            }
        }
    }

    /// Another version of the map: what was seen on each edge goes to those that lie there now.
    pub fn carry_over(&mut self, before: &Predecessors, old: &Graph, new: &Graph) {
        let edges = std::mem::take(&mut self.edges);
        for (edge, was, share) in before.shares(old, new) {
            if let Some(evidence) = edges.get(&was.0) {
                let Evidence { seen_s, expected_s, at } = *evidence;
                let part = Evidence { seen_s: seen_s * share, expected_s: expected_s * share, at };
                self.edges.insert(edge.0, part);
            }
        }
    }
}

/// Evidence counts half after so long.
const HALF_LIFE_S: f64 = 600.0;
/// How many seconds of driving weigh as much as what is believed without them.
const FLEET_PRIOR_S: f64 = 1_800.0;
const CELL_PRIOR_S: f64 = 300.0;
const EDGE_PRIOR_S: f64 = 30.0;
const FORGOTTEN_S: f64 = 0.1;
