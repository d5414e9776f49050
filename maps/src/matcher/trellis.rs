//! The places that a driver may have been at: a column per used fix, in each the likeliest few, each with the place it
//! was best reached from. Deciding a column picks the place that the best end descends from and forgets all that does
//! not descend from it, so that what is decided later always connects to what was decided before.

use protocol::{MeasuredTime, Position};
use wincode::{SchemaRead, SchemaWrite};

use crate::graph::EdgeId;

/// One place a driver may have been at.
#[derive(Clone, Copy, PartialEq, Debug, SchemaWrite, SchemaRead)]
pub(super) struct State {
    /// `OFF_ROAD` where the fix belongs to no road.
    pub edge: u32,
    pub along_cm: u32,
    pub off_cm: u16,
    /// Its index in the column before; `NO_PARENT` at the beginning of a chain.
    pub parent: u8,
    /// Cost of the best way here, less than that of the column's best. Infinite: forgotten.
    pub cost: f32,
}

impl State {
    pub fn is_off_road(&self) -> bool {
        self.edge == OFF_ROAD
    }

    pub fn is_alive(&self) -> bool {
        self.cost < f32::INFINITY
    }

    pub fn edge(&self) -> EdgeId {
        EdgeId(self.edge)
    }
}

/// A used fix.
#[derive(Clone, Copy, PartialEq, Debug, SchemaWrite, SchemaRead)]
pub(super) struct Column {
    pub measured: MeasuredTime,
    pub position: Position,
    /// Where its states begin.
    pub first: u16,
    pub len: u8,
    /// The state that was decided on, or `NOT_CHOSEN`.
    pub chosen: u8,
    /// Nothing connects it to the column before.
    pub is_break: bool,
    pub confidence_percent: u8,
}

/// The columns that are not yet given out, oldest first.
#[derive(Clone, PartialEq, Debug, Default, SchemaWrite, SchemaRead)]
pub(super) struct Trellis {
    columns: Vec<Column>,
    states: Vec<State>,
}

impl Trellis {
    pub fn len(&self) -> usize {
        self.columns.len()
    }

    pub fn last(&self) -> Option<&Column> {
        self.columns.last()
    }

    pub fn column(&self, k: usize) -> &Column {
        &self.columns[k]
    }

    pub fn states(&self, k: usize) -> &[State] {
        let column = &self.columns[k];
        &self.states[usize::from(column.first)..usize::from(column.first) + usize::from(column.len)]
    }

    fn states_mut(&mut self, k: usize) -> &mut [State] {
        let column = &self.columns[k];
        &mut self.states[usize::from(column.first)..usize::from(column.first) + usize::from(column.len)]
    }

    pub fn last_states(&self) -> &[State] {
        if self.columns.is_empty() { &[] } else { self.states(self.columns.len() - 1) }
    }

    /// The decided place of a column.
    pub fn chosen(&self, k: usize) -> Option<&State> {
        let chosen = self.columns[k].chosen;
        (chosen != NOT_CHOSEN).then(|| &self.states(k)[usize::from(chosen)])
    }

    pub fn push(
        &mut self,
        measured: MeasuredTime,
        position: Position,
        is_break: bool,
        confidence: u8,
        states: &[State],
    ) {
        let first = self.states.len() as u16; // at most COLUMNS_MAX × STATES_MAX
        self.states.extend_from_slice(states);
        self.columns.push(Column {
            measured,
            position,
            first,
            len: states.len() as u8,
            chosen: NOT_CHOSEN,
            is_break,
            confidence_percent: confidence,
        });
    }

    /// Forgets the oldest columns.
    pub fn drop_front(&mut self, count: usize) {
        let states: usize = self.columns[..count].iter().map(|c| usize::from(c.len)).sum();
        self.columns.drain(..count);
        self.states.drain(..states);
        for column in &mut self.columns {
            column.first -= states as u16;
        }
    }

    /// Decides all columns up to the k-th, by all that is known so far.
    pub fn decide(&mut self, k: usize) {
        let mut from = 0;
        while from <= k {
            let end = self.chain_end(from);
            if let Some(undecided) = (from..=k.min(end)).find(|c| self.columns[*c].chosen == NOT_CHOSEN) {
                self.decide_chain(undecided, k.min(end), end);
            }
            from = end + 1;
        }
    }

    /// The last column that is connected to the k-th.
    fn chain_end(&self, k: usize) -> usize {
        (k + 1..self.columns.len()).find(|c| self.columns[*c].is_break).map_or(self.columns.len() - 1, |next| next - 1)
    }

    /// Decides columns `from..=to` of the chain that ends with column `end`.
    fn decide_chain(&mut self, from: usize, to: usize, end: usize) {
        let ends = self.states(end);
        let mut ancestors = [0u8; STATES_LEN];
        let mut weights = [0f32; STATES_LEN];
        let Some(best) = best_of(ends) else { return };
        let best_cost = ends[best].cost;
        let len = ends.len();
        let mut total = 0.0;
        for (i, state) in ends.iter().enumerate() {
            ancestors[i] = i as u8;
            weights[i] = if state.is_alive() { likelihood(state.cost - best_cost) } else { 0.0 };
            total += weights[i];
        }
        for k in (from..=end).rev() {
            if k <= to {
                let chosen = ancestors[best];
                let agree: f32 = (0..len).filter(|i| ancestors[*i] == chosen).map(|i| weights[i]).sum();
                self.columns[k].chosen = chosen;
                self.columns[k].confidence_percent = percent(agree / total);
            }
            if k > from {
                let states = self.states(k);
                for (i, ancestor) in ancestors[..len].iter_mut().enumerate() {
                    if weights[i] > 0.0 {
                        *ancestor = states[usize::from(*ancestor)].parent;
                    }
                }
            }
        }
        self.keep_only(to, 1 << self.columns[to].chosen);
    }

    /// What the best way through each place of a column costs more than the best of all, by what is known so far.
    pub fn margins(&self, k: usize) -> Option<[f32; STATES_LEN]> {
        let end = self.chain_end(k);
        let ends = self.states(end);
        let best_cost = ends[best_of(ends)?].cost;
        let mut margins = [f32::INFINITY; STATES_LEN];
        for (i, state) in ends.iter().enumerate().filter(|(_, s)| s.is_alive()) {
            let mut at = i;
            for column in (k + 1..=end).rev() {
                at = usize::from(self.states(column)[at].parent);
            }
            margins[at] = margins[at].min(state.cost - best_cost);
        }
        Some(margins)
    }

    /// Forgets the places of a column that are not kept, one bit each, and all that descends from them.
    pub fn keep_only(&mut self, k: usize, kept: u32) {
        let end = self.chain_end(k);
        let mut alive = 0u32;
        for (i, state) in self.states_mut(k).iter_mut().enumerate() {
            if kept & (1 << i) == 0 {
                state.cost = f32::INFINITY;
            } else if state.is_alive() {
                alive |= 1 << i;
            }
        }
        for k in k + 1..=end {
            let before = alive;
            alive = 0;
            for (i, state) in self.states_mut(k).iter_mut().enumerate() {
                if before & (1 << state.parent) == 0 {
                    state.cost = f32::INFINITY;
                } else if state.is_alive() {
                    alive |= 1 << i;
                }
            }
        }
    }

    /// Lets `change` replace every state by its place on another map, or forget it.
    pub fn replace_edges(&mut self, mut change: impl FnMut(&State) -> Option<(u32, u32)>) {
        for state in self.states.iter_mut().filter(|s| !s.is_off_road()) {
            match change(state) {
                Some((edge, along_cm)) => {
                    state.edge = edge;
                    state.along_cm = along_cm;
                }
                None => {
                    state.edge = OFF_ROAD;
                    state.along_cm = 0;
                }
            }
        }
    }

    #[cfg(test)]
    pub fn heap_bytes(&self) -> usize {
        self.columns.capacity() * size_of::<Column>() + self.states.capacity() * size_of::<State>()
    }
}

/// The cheapest place that is not forgotten; the first of equals.
pub(super) fn best_of(states: &[State]) -> Option<usize> {
    let mut best: Option<usize> = None;
    for (i, state) in states.iter().enumerate() {
        if state.is_alive() && best.is_none_or(|b| state.cost < states[b].cost) {
            best = Some(i);
        }
    }
    best
}

/// Likelihood beside the best of something that costs so much more.
pub(super) fn likelihood(cost: f32) -> f32 {
    if cost > 12.0 { 6e-6 } else { libm::expf(-cost) }
}

pub(super) fn percent(share: f32) -> u8 {
    (share * 100.0).round().clamp(0.0, 100.0) as u8
}

pub(super) const OFF_ROAD: u32 = u32::MAX;
pub(super) const NO_PARENT: u8 = 31;
pub(super) const NOT_CHOSEN: u8 = u8::MAX;
/// At least `STATES_MAX`.
const STATES_LEN: usize = super::weights::STATES_MAX;
