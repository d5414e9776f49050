//! What each edge costs one profile.

use super::Part;
use crate::class::{EdgeFlags, Profile};
use crate::costs::DURATION_MS_MAX;
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
    /// With what it costs to come onto the edge.
    costs_ms: Vec<u32>,
    /// A bit for each edge by which one comes into roads that are open only to those with business there.
    entries: Vec<u64>,
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
        let mut entries = vec![0; graph.edge_count().div_ceil(64)];
        for (number, record) in graph.records().iter().enumerate() {
            if record.access & profile.bit() == 0 {
                durations_ms.push(NO_WAY);
                costs_ms.push(NO_WAY);
                continue;
            }
            let duration = duration_ms(EdgeId(number as u32)).clamp(1, DURATION_MS_MAX);
            durations_ms.push(duration);
            if !EdgeFlags(record.flags).is_private(profile) {
                costs_ms.push(duration);
                continue;
            }
            let is_entry = is_entry(graph, profile, EdgeId(number as u32));
            entries[number / 64] |= u64::from(is_entry) << (number % 64);
            let entry_ms = if is_entry { ENTRY_MS } else { 0 };
            costs_ms.push(duration.saturating_mul(PRIVATE_FACTOR).min(COST_MS_MAX) + entry_ms);
        }
        Weights { profile, durations_ms, costs_ms, entries }
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

    /// Of the whole edge, for one who comes from elsewhere.
    #[inline]
    pub fn cost_ms(&self, edge: EdgeId) -> u32 {
        self.costs_ms[edge.index()]
    }

    /// Of a stretch of an edge, for one who is there already.
    pub(super) fn within_ms(&self, edge: EdgeId, part: Part) -> u32 {
        part.of(self.cost_ms(edge).wrapping_sub(self.entry_ms(edge)))
    }

    /// Of a stretch from an edge's beginning, for one who comes from elsewhere.
    pub(super) fn onto_ms(&self, edge: EdgeId, part: Part) -> u32 {
        self.within_ms(edge, part).saturating_add(self.entry_ms(edge)).min(NO_WAY)
    }

    fn entry_ms(&self, edge: EdgeId) -> u32 {
        let is_entry = self.entries[edge.index() / 64] >> (edge.index() % 64) & 1 != 0;
        if is_entry { ENTRY_MS } else { 0 }
    }
}

/// Whether one may come onto a limited road from one that is open to all.
fn is_entry(graph: &Graph, profile: Profile, edge: EdgeId) -> bool {
    let mut before = graph.in_edges(graph.from(edge));
    before.any(|before| graph.allows(before, profile) && !graph.flags(before).is_private(profile))
}

/// So that two of the longest ferries stay below the router's infinity, whatever they are multiplied by.
const COST_MS_MAX: u32 = DURATION_MS_MAX;
/// A private road is taken to get to its houses, not to save a minute.
pub const PRIVATE_FACTOR: u32 = 5;
/// What it costs to come onto limited roads, or through a gate that opens only for some: an hour round is better than
/// where one may not go. Who has his end there pays it on every way, so it turns him nowhere else.
pub const ENTRY_MS: u32 = 3_600_000;
