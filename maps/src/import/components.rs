//! Which edges lie in a part of the map from which one reaches the rest of that part and comes back, forbidden turns
//! and barriers heeded? Where a route may begin and end is decided by that: a drawing error or a walled yard is no
//! place to send a driver.

use rayon::prelude::*;

use crate::class::{EdgeFlags, Profile};
use crate::record::{EdgeRecord, NONE, PartRecord, TurnRecord};

use super::build::Tables;

/// Sets, for each profile, the high bits of `access` on edges inside a large strongly connected part: the largest, and
/// any other of at least 300 junctions, so that an island or a second city in the extract counts too. Answers which part
/// each edge lies in, the small ones included: two places on a small island are joined by its own roads.
pub fn mark(tables: &mut Tables, turns: &[TurnRecord]) -> Vec<PartRecord> {
    let parts: Vec<Vec<Part>> =
        Profile::ALL.par_iter().map(|profile| States::of(tables, turns, *profile).parts()).collect();
    let mut records = Vec::new();
    for (profile, parts) in Profile::ALL.iter().zip(parts) {
        let mut before = None;
        for (number, (edge, part)) in (0..).zip(tables.edges.iter_mut().zip(parts)) {
            let Part::Open { part, is_large } = part else { continue };
            if is_large {
                edge.access |= profile.bit() << 4;
            }
            if before.replace(part) != Some(part) {
                records.push(PartRecord { profile: u32::from(profile.number()), first_edge: number, part });
            }
        }
    }
    records
}

/// Where an edge lies, for a profile.
#[derive(Clone, Copy)]
enum Part {
    /// The profile may not use it.
    Closed,
    /// 0 where one cannot come back.
    Open { part: u32, is_large: bool },
}

/// Where a traveller can be: at a junction, or, where some turn is forbidden, at a junction having come by an edge.
struct States<'a> {
    tables: &'a Tables,
    turns: &'a [TurnRecord],
    profile: Profile,
    /// The state at the end of every edge; NONE for edges that the profile may not use.
    of_edge: Vec<u32>,
    /// For the states after those of the junctions, the edge.
    edge_of: Vec<u32>,
}

impl<'a> States<'a> {
    fn of(tables: &'a Tables, turns: &'a [TurnRecord], profile: Profile) -> States<'a> {
        let junctions = tables.out_first.len() - 1;
        let mut is_split = vec![false; junctions];
        for turn in turns.iter().filter(|turn| turn.profiles & u32::from(profile.bit()) != 0) {
            is_split[tables.edges[turn.from as usize].to as usize] = true;
        }
        let mut states = States { tables, turns, profile, of_edge: Vec::new(), edge_of: Vec::new() };
        states.of_edge.reserve(tables.edges.len());
        for (number, edge) in tables.edges.iter().enumerate() {
            states.of_edge.push(if edge.access & profile.bit() == 0 {
                NONE
            } else if is_split[edge.to as usize] {
                states.edge_of.push(number as u32);
                (junctions + states.edge_of.len() - 1) as u32
            } else {
                edge.to
            });
        }
        states
    }

    fn junctions(&self) -> usize {
        self.tables.out_first.len() - 1
    }

    /// The junction of a state, and the edge by which one came if that matters.
    fn place(&self, state: u32) -> (u32, Option<u32>) {
        match (state as usize).checked_sub(self.junctions()) {
            None => (state, None),
            Some(split) => (self.tables.edges[self.edge_of[split] as usize].to, Some(self.edge_of[split])),
        }
    }

    fn is_open(&self, before: Option<u32>, edge: u32) -> bool {
        let record: &EdgeRecord = &self.tables.edges[edge as usize];
        if record.access & self.profile.bit() == 0 {
            return false;
        }
        let Some(before) = before.filter(|_| EdgeFlags(record.flags).has(EdgeFlags::TURN_INTO)) else {
            return true;
        };
        match self.turns.binary_search_by_key(&(before, edge), |turn| (turn.from, turn.to)) {
            Ok(at) => self.turns[at].profiles & u32::from(self.profile.bit()) == 0,
            Err(_) => true,
        }
    }

    /// For every edge, in which part it lies.
    fn parts(&self) -> Vec<Part> {
        let component = self.components();
        let mut sizes = vec![0_u32; component.len()];
        for number in &component {
            sizes[*number as usize] += 1;
        }
        let largest = sizes.iter().copied().max().unwrap_or(0);
        let large = largest.clamp(2, LARGE_STATES);
        let part_of = |(number, edge): (usize, &EdgeRecord)| {
            let state = self.of_edge[number];
            if state == NONE {
                return Part::Closed;
            }
            let part = component[state as usize];
            let size = sizes[part as usize];
            let is_within = size >= 2 && self.begins_in(number as u32, edge.from, part, &component);
            Part::Open { part: if is_within { part + 1 } else { 0 }, is_large: is_within && size >= large }
        };
        self.tables.edges.iter().enumerate().map(part_of).collect()
    }

    /// Whether an edge can be entered from a part of the map.
    fn begins_in(&self, edge: u32, junction: u32, part: u32, component: &[u32]) -> bool {
        let first = &self.tables.in_first;
        let arriving = &self.tables.in_edges[first[junction as usize] as usize..first[junction as usize + 1] as usize];
        arriving.iter().any(|before| {
            let state = self.of_edge[*before as usize];
            state != NONE && component[state as usize] == part && self.is_open(self.place(state).1, edge)
        })
    }

    /// Tarjan's algorithm with a stack of its own: the number of each state's part.
    fn components(&self) -> Vec<u32> {
        let states = self.junctions() + self.edge_of.len();
        let out_first = &self.tables.out_first;
        let mut search = Search::over(states);
        let mut path: Vec<(u32, u32)> = Vec::new(); // state and its next edge
        for root in 0..states as u32 {
            if search.index[root as usize] != NONE {
                continue;
            }
            search.enter(root);
            path.push((root, out_first[self.place(root).0 as usize]));
            while let Some((state, edge)) = path.last_mut() {
                let (state, (junction, before)) = (*state, self.place(*state));
                if *edge == out_first[junction as usize + 1] {
                    path.pop();
                    search.leave(state, path.last().map(|(parent, _)| *parent));
                    continue;
                }
                let taken = *edge;
                *edge += 1;
                if !self.is_open(before, taken) {
                    continue;
                }
                let next = self.of_edge[taken as usize];
                if search.index[next as usize] == NONE {
                    search.enter(next);
                    path.push((next, out_first[self.place(next).0 as usize]));
                } else if search.component[next as usize] == NONE {
                    search.low[state as usize] = search.low[state as usize].min(search.index[next as usize]);
                }
            }
        }
        search.component
    }
}

struct Search {
    index: Vec<u32>,
    low: Vec<u32>,
    component: Vec<u32>,
    open: Vec<u32>,
    next_index: u32,
    next_component: u32,
}

impl Search {
    fn over(states: usize) -> Search {
        Search {
            index: vec![NONE; states],
            low: vec![0; states],
            component: vec![NONE; states],
            open: Vec::new(),
            next_index: 0,
            next_component: 0,
        }
    }

    fn enter(&mut self, state: u32) {
        self.index[state as usize] = self.next_index;
        self.low[state as usize] = self.next_index;
        self.next_index += 1;
        self.open.push(state);
    }

    fn leave(&mut self, state: u32, parent: Option<u32>) {
        if self.low[state as usize] == self.index[state as usize] {
            while let Some(member) = self.open.pop() {
                self.component[member as usize] = self.next_component;
                if member == state {
                    break;
                }
            }
            self.next_component += 1;
        }
        if let Some(parent) = parent {
            self.low[parent as usize] = self.low[parent as usize].min(self.low[state as usize]);
        }
    }
}

const LARGE_STATES: u32 = 300;
