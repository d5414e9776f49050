//! What each edge costs one profile.

use crate::class::{EdgeFlags, Profile};
use crate::eta::{Speeds, of_profile};
use crate::graph::{EdgeId, Graph};
use crate::speeds::{LiveFactors, SpeedTable};

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
            let factor = if EdgeFlags(record.flags).is_private(profile) { PRIVATE_FACTOR } else { 1 };
            durations_ms.push(duration);
            costs_ms.push(duration * factor);
        }
        Weights { profile, durations_ms, costs_ms }
    }

    /// The times of the moment for which live factors stand; without them those of the usual week, whatever the hour.
    /// Where the same tables are in use, the same weights come out.
    pub fn under(graph: &Graph, profile: Profile, usual: &SpeedTable, live: Option<&LiveFactors>) -> Weights {
        Weights::of(graph, profile, |edge| {
            let length_cm = graph.length_cm(edge);
            let seconds = match live {
                Some(factors) => Speeds { usual, live }.seconds(graph, profile, edge, length_cm, factors.at),
                None => {
                    of_profile(graph, profile, edge, length_cm, || usual.seconds_at_any_hour(graph, edge, length_cm))
                }
            };
            (seconds * 1000.0).min(f64::from(DURATION_MS_MAX)) as u32
        })
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
pub const PRIVATE_FACTOR: u32 = 5;
