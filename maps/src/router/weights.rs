//! What each edge costs one profile.

use crate::class::{EdgeFlags, Profile};
use crate::graph::{EdgeId, Graph};

/// Beyond every cost: the edge is closed.
pub const NO_WAY: u32 = cch::INF_WEIGHT;

/// Milliseconds for every edge of one graph, for one profile.
#[derive(Clone, Debug)]
pub struct Weights {
    profile: Profile,
    durations_ms: Vec<u32>,
    costs_ms: Vec<u32>,
}

impl Weights {
    /// The times of the empty road.
    pub fn free_flow(graph: &Graph, profile: Profile) -> Weights {
        Weights::of(graph, profile, |edge| graph.duration_ms(edge, profile))
    }

    /// Times from elsewhere: traffic, or what was learned. What the profile may not use stays closed, whatever the
    /// times say.
    pub fn of(graph: &Graph, profile: Profile, duration_ms: impl Fn(EdgeId) -> u32) -> Weights {
        let mut durations_ms = Vec::with_capacity(graph.edge_count());
        let mut costs_ms = Vec::with_capacity(graph.edge_count());
        for (number, record) in graph.records().iter().enumerate() {
            if record.access & profile.bit() == 0 {
                durations_ms.push(NO_WAY);
                costs_ms.push(NO_WAY);
                continue;
            }
            let duration = duration_ms(EdgeId(number as u32)).clamp(1, DURATION_MS_MAX);
            let factor = if EdgeFlags(record.flags).is_private() { PRIVATE_FACTOR } else { 1 };
            durations_ms.push(duration);
            costs_ms.push(duration * factor);
        }
        Weights { profile, durations_ms, costs_ms }
    }

    pub fn profile(&self) -> Profile {
        self.profile
    }

    pub fn edge_count(&self) -> usize {
        self.costs_ms.len()
    }

    #[inline]
    pub fn duration_ms(&self, edge: EdgeId) -> u32 {
        self.durations_ms[edge.index()]
    }

    #[inline]
    pub fn cost_ms(&self, edge: EdgeId) -> u32 {
        self.costs_ms[edge.index()]
    }
}

/// A day, 20,000 times below the router's infinity with the factor below.
const DURATION_MS_MAX: u32 = 24 * 3_600_000;
/// A private road is taken to get to its houses, not to save a minute.
const PRIVATE_FACTOR: u32 = 5;
