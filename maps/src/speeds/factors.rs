//! How today differs from the usual week, as it is handed out: a factor per edge that was driven, per neighbourhood's
//! roads of a kind, and for the fleet. In memory a factor is a byte per edge, so that weighing a whole map anew is a walk
//! through memory; stored, only what differs from its neighbourhood is named, in about two bytes.

use std::sync::OnceLock;

use protocol::Time;
use wincode::{SchemaRead, SchemaWrite};

use super::cells::CellKey;
use super::{TableError, digest_of};
use crate::graph::{EdgeId, Graph};

/// How many times the usual time is needed right now, for one version of one map; a blob like the speed table.
#[derive(Clone, PartialEq, Debug)]
pub struct LiveFactors {
    /// When this was so.
    pub at: Time,
    stored: Stored,
    /// One for each edge.
    codes: Vec<u8>,
}

/// What the bytes say.
#[derive(Clone, PartialEq, Debug, SchemaWrite, SchemaRead)]
struct Stored {
    map: [u8; 32],
    at: Time,
    fleet: u8,
    /// By rising key, those that differ from the fleet's.
    cells: Vec<(u32, u8, u8)>,
    /// For each edge that differs from its cell: a varint, how far above the one before it is numbered, then its code.
    edges: Vec<u8>,
}

impl LiveFactors {
    /// Nothing is known of today.
    pub fn usual(graph: &Graph, at: Time) -> LiveFactors {
        LiveFactors::of(graph, at, 1.0, std::iter::empty(), std::iter::empty())
    }

    /// Cells and edges by rising key.
    pub(super) fn of(
        graph: &Graph,
        at: Time,
        fleet: f64,
        cells: impl Iterator<Item = (CellKey, f64)>,
        edges: impl Iterator<Item = (EdgeId, f64)>,
    ) -> LiveFactors {
        let fleet = code_of(fleet);
        let cells = cells.map(|((square, group), factor)| (square, group, code_of(factor)));
        let cells = cells.filter(|(_, _, code)| *code != fleet).collect();
        let mut stored = Stored { map: digest_of(graph.version()), at, fleet, cells, edges: Vec::new() };
        let mut codes = spread(graph, &stored);
        let mut before = 0;
        for (edge, factor) in edges {
            let code = code_of(factor);
            let Some(place) = codes.get_mut(edge.index()) else { continue };
            if *place != code {
                *place = code;
                push_varint(&mut stored.edges, edge.0 - before);
                stored.edges.push(code);
                before = edge.0;
            }
        }
        LiveFactors { at, stored, codes }
    }

    /// How many times the usual time an edge needs at a time: as it was seen, and the more as usual the longer ago that
    /// was or the further ahead we look.
    pub fn factor(&self, _: &Graph, edge: EdgeId, when: Time) -> f64 {
        let code = self.codes.get(edge.index()).copied().unwrap_or(self.stored.fleet);
        if code == CODE_ONE {
            return 1.0;
        }
        let age_s = when.millis_since(self.at).unsigned_abs() as f64 / 1000.0;
        let believed = libm::exp2(-age_s / AHEAD_HALF_LIFE_S);
        1.0 + (factor_of(code) - 1.0) * believed
    }

    /// By how much the factor that changed most did: 0.05 is five in a hundred.
    pub fn largest_change(&self, before: &LiveFactors) -> f64 {
        if self.codes.len() != before.codes.len() {
            return f64::INFINITY;
        }
        let steps = self.codes.iter().zip(&before.codes).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0);
        libm::exp2(f64::from(steps) / STEPS_PER_DOUBLING) - 1.0
    }

    /// Whether today is like every week.
    pub fn is_usual(&self) -> bool {
        self.codes.iter().all(|code| *code == CODE_ONE)
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        wincode::serialize(&self.stored).unwrap_or_default() // memory is all that it writes to
    }

    /// Reads and checks stored bytes: those of another map's edges are refused.
    pub fn from_bytes(bytes: &[u8], graph: &Graph) -> Result<LiveFactors, TableError> {
        let stored: Stored = wincode::deserialize_exact(bytes).map_err(|_| TableError::Malformed)?;
        if stored.map != digest_of(graph.version()) {
            return Err(TableError::OtherMap);
        }
        let are_sound = stored.cells.iter().map(|(_, _, code)| *code).chain([stored.fleet]).all(is_sound);
        if !are_sound {
            return Err(TableError::Malformed);
        }
        let mut codes = spread(graph, &stored);
        let (mut rest, mut edge) = (&stored.edges[..], 0u32);
        while !rest.is_empty() {
            let step = take_varint(&mut rest).ok_or(TableError::Malformed)?;
            let (code, after) = rest.split_first().ok_or(TableError::Malformed)?;
            edge = edge.checked_add(step).ok_or(TableError::Malformed)?;
            let place = codes.get_mut(edge as usize).ok_or(TableError::Malformed)?;
            if !is_sound(*code) {
                return Err(TableError::Malformed);
            }
            (*place, rest) = (*code, after);
        }
        Ok(LiveFactors { at: stored.at, stored, codes })
    }
}

/// Every edge's code as far as its neighbourhood says it.
fn spread(graph: &Graph, stored: &Stored) -> Vec<u8> {
    let cells = graph.speed_cells();
    let mut by_cell = vec![stored.fleet; cells.keys().len()];
    for (square, group, code) in &stored.cells {
        if let Ok(at) = cells.keys().binary_search(&(*square, *group)) {
            by_cell[at] = *code;
        }
    }
    cells.of_edges().iter().map(|cell| by_cell[*cell as usize]).collect()
}

fn code_of(factor: f64) -> u8 {
    let steps = libm::log2(factor.clamp(FACTOR_MIN, FACTOR_MAX)) * STEPS_PER_DOUBLING;
    (f64::from(CODE_ONE) + libm::round(steps)) as u8 // between 56 and 248
}

fn factor_of(code: u8) -> f64 {
    static FACTORS: OnceLock<[f64; 256]> = OnceLock::new();
    let factors = FACTORS.get_or_init(|| {
        let steps = |code: usize| (code as f64 - f64::from(CODE_ONE)) / STEPS_PER_DOUBLING;
        std::array::from_fn(|code| libm::exp2(steps(code)).clamp(FACTOR_MIN, FACTOR_MAX))
    });
    factors[usize::from(code)]
}

fn is_sound(code: u8) -> bool {
    (code_of(FACTOR_MIN)..=code_of(FACTOR_MAX)).contains(&code)
}

fn push_varint(bytes: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Option<u32> {
    let mut value = 0u32;
    for shift in (0..32).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u32::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// What is seen now counts half so far ahead.
const AHEAD_HALF_LIFE_S: f64 = 1_200.0;
pub(super) const FACTOR_MIN: f64 = 0.25;
pub(super) const FACTOR_MAX: f64 = 10.0;
/// The code of as usual; a step is two in a hundred.
const CODE_ONE: u8 = 128;
const STEPS_PER_DOUBLING: f64 = 36.0;
