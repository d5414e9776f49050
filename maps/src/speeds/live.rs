//! How today differs from the usual week, right now. Every traversal says how much slower or faster than the table it
//! was; that is believed for its edge, less for its neighbourhood's roads of the same class, least for the whole fleet,
//! and fades with a half-life of minutes. The learner keeps the evidence; what it hands out is a small table of factors.

use std::collections::BTreeMap;

use protocol::Time;
use wincode::{SchemaRead, SchemaWrite};

use super::learner::Traversal;
use super::{SpeedTable, TableError, cell_of, class_group, digest_of, hour_of_week};
use crate::graph::{EdgeId, Graph};

/// How many times the usual time is needed right now, for one version of one map; a blob like the speed table.
#[derive(Clone, PartialEq, Debug, SchemaWrite, SchemaRead)]
pub struct LiveFactors {
    map: [u8; 32],
    /// When this was so.
    pub at: Time,
    fleet: f32,
    cells: BTreeMap<(u32, u8), f32>,
    edges: BTreeMap<u32, f32>,
}

impl LiveFactors {
    /// Nothing is known of today.
    pub fn usual(graph: &Graph, at: Time) -> LiveFactors {
        LiveFactors { map: digest_of(graph.version()), at, fleet: 1.0, cells: BTreeMap::new(), edges: BTreeMap::new() }
    }

    /// How many times the usual time an edge needs at a time: as it was seen, and the more as usual the longer ago that
    /// was or the further ahead we look.
    pub fn factor(&self, graph: &Graph, edge: EdgeId, when: Time) -> f64 {
        let factor = self.edges.get(&edge.0).or_else(|| {
            let group = class_group(graph.class(edge)) as u8;
            if self.cells.is_empty() { None } else { self.cells.get(&(cell_of(graph, edge), group)) }
        });
        let factor = f64::from(*factor.unwrap_or(&self.fleet));
        let age_s = when.millis_since(self.at).unsigned_abs() as f64 / 1000.0;
        let believed = libm::exp2(-age_s / AHEAD_HALF_LIFE_S);
        (1.0 + (factor - 1.0) * believed).clamp(FACTOR_MIN, FACTOR_MAX)
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        wincode::serialize(self).unwrap_or_default() // memory is all that it writes to
    }

    /// Reads and checks stored bytes: those of another map's edges are refused.
    pub fn from_bytes(bytes: &[u8], graph: &Graph) -> Result<LiveFactors, TableError> {
        let factors: LiveFactors = wincode::deserialize_exact(bytes).map_err(|_| TableError::Malformed)?;
        if factors.map != digest_of(graph.version()) {
            return Err(TableError::OtherMap);
        }
        let is_sound = |f: &f32| (FACTOR_MIN as f32..=FACTOR_MAX as f32).contains(f);
        let are_sound = factors.edges.values().chain(factors.cells.values()).chain([&factors.fleet]).all(is_sound);
        are_sound.then_some(factors).ok_or(TableError::Malformed)
    }
}

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
    cells: BTreeMap<(u32, u8), Evidence>,
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
        let key = (cell_of(graph, edge), class_group(graph.class(edge)) as u8);
        self.cells.entry(key).or_insert(Evidence::none(at)).add(seen_s, expected_s, at);
        self.edges.entry(edge.0).or_insert(Evidence::none(at)).add(seen_s, expected_s, at);
    }

    /// The factors of the moment; what has faded away is forgotten.
    pub fn factors(&mut self, graph: &Graph, now: Time) -> LiveFactors {
        self.cells.retain(|_, e| e.faded(now).expected_s > FORGOTTEN_S);
        self.edges.retain(|_, e| e.faded(now).expected_s > FORGOTTEN_S);
        let fleet = self.fleet.faded(now).factor(1.0, FLEET_PRIOR_S);
        let cell_factor = |e: &Evidence| e.faded(now).factor(fleet, CELL_PRIOR_S);
        let cells: BTreeMap<(u32, u8), f32> = self.cells.iter().map(|(k, e)| (*k, cell_factor(e) as f32)).collect();
        let edges = self.edges.iter().map(|(edge, evidence)| {
            let edge_id = EdgeId(*edge);
            let is_here = edge_id.index() < graph.edge_count();
            let key = is_here.then(|| (cell_of(graph, edge_id), class_group(graph.class(edge_id)) as u8));
            let cell = key.and_then(|key| cells.get(&key)).map_or(fleet, |f| f64::from(*f));
            (*edge, evidence.faded(now).factor(cell, EDGE_PRIOR_S) as f32)
        });
        LiveFactors { map: digest_of(graph.version()), at: now, fleet: fleet as f32, edges: edges.collect(), cells }
    }
}

/// Evidence counts half after so long.
const HALF_LIFE_S: f64 = 600.0;
/// What is seen now counts half so far ahead.
const AHEAD_HALF_LIFE_S: f64 = 1_200.0;
/// How many seconds of driving weigh as much as what is believed without them.
const FLEET_PRIOR_S: f64 = 1_800.0;
const CELL_PRIOR_S: f64 = 300.0;
const EDGE_PRIOR_S: f64 = 30.0;
const FACTOR_MIN: f64 = 0.25;
const FACTOR_MAX: f64 = 10.0;
const FORGOTTEN_S: f64 = 0.1;
