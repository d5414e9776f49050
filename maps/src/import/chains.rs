//! Turn restrictions that reach over ways: who comes by one edge and then by others may not go on to a further one. A
//! pair of edges cannot say that, so the edges between get copies: one for each beginning of a restriction, entered
//! only by those who come that way, with the turns at its end that they may take. Matcher and routers then need to know
//! pairs only.
//!
//! Which copy follows is decided as in the search for many words at once (Aho and Corasick): by the longest beginning
//! of a restriction that what was driven ends with. Restrictions that share edges are so all kept.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::build::Tables;
use super::harvest::{DraftTurn, Harvest};
use super::turns::{in_edges, osm_way, out_edges, turn};
use crate::class::{EdgeFlags, Profile};
use crate::record::{BACKWARD, COPIED, TurnRecord};

/// A restriction over ways, as edges.
pub struct Chain {
    /// From, the edges between, to.
    edges: Vec<u32>,
    is_only: bool,
    profiles: u8,
}

/// The edges of the ways that restrictions over ways speak of.
pub struct Members {
    edges_of_way: HashMap<i64, Vec<u32>>, // only looked up, never walked
}

impl Members {
    pub fn of(tables: &Tables, harvest: &Harvest) -> Members {
        let mut edges_of_way: HashMap<i64, Vec<u32>> = HashMap::new();
        for draft in harvest.turns.iter().filter(|draft| !draft.via_ways.is_empty()) {
            for way in draft.from.iter().chain(&draft.via_ways).chain(&draft.to) {
                edges_of_way.entry(*way).or_default();
            }
        }
        if !edges_of_way.is_empty() {
            for edge in 0..tables.edges.len() as u32 {
                if let Some(edges) = edges_of_way.get_mut(&osm_way(tables, harvest, edge)) {
                    edges.push(edge);
                }
            }
        }
        Members { edges_of_way }
    }

    fn edges(&self, ways: &[i64]) -> Vec<u32> {
        ways.iter().filter_map(|way| self.edges_of_way.get(way)).flatten().copied().collect()
    }

    /// None where the members do not join, or in more than one way: which edges are meant cannot be known then. Nor
    /// can it be where they are so many, or so entangled, that not all ways over them can be looked at.
    pub fn chain(&self, tables: &Tables, harvest: &Harvest, draft: &DraftTurn) -> Option<Chain> {
        let ways = draft.via_ways.iter().collect::<BTreeSet<_>>().len();
        if ways > CHAIN_EDGES_MAX {
            return None;
        }
        let mut search = Search {
            tables,
            harvest,
            via: self.edges(&draft.via_ways),
            to: self.edges(&draft.to),
            ways,
            steps_left: STEPS_MAX,
            path: Vec::new(),
            found: Vec::new(),
        };
        for from in self.edges(&draft.from) {
            search.path.push(from);
            search.go_on(tables.edges[from as usize].to);
            search.path.pop();
        }
        if search.steps_left == 0 {
            return None;
        }
        let bound = |edges: &[u32]| {
            let shared = edges.iter().fold(0x0f, |shared, edge| shared & tables.edges[*edge as usize].access);
            shared & draft.profiles
        };
        search.found.retain(|edges| bound(edges) != 0);
        let [edges] = &search.found[..] else {
            return None;
        };
        Some(Chain { edges: edges.clone(), is_only: draft.is_only, profiles: bound(edges) })
    }
}

/// All the ways from an edge over all via ways to another.
struct Search<'a> {
    tables: &'a Tables,
    harvest: &'a Harvest,
    via: Vec<u32>,
    to: Vec<u32>,
    /// How many via ways there are.
    ways: usize,
    steps_left: u32,
    path: Vec<u32>,
    found: Vec<Vec<u32>>,
}

impl Search<'_> {
    fn go_on(&mut self, junction: u32) {
        if self.path.len() > CHAIN_EDGES_MAX || self.found.len() > 1 || self.steps_left == 0 {
            return;
        }
        self.steps_left -= 1;
        let tables = self.tables;
        let passed: BTreeSet<i64> = self.path[1..].iter().map(|e| osm_way(tables, self.harvest, *e)).collect();
        if passed.len() == self.ways {
            let ends =
                self.to.iter().filter(|to| tables.edges[**to as usize].from == junction && !self.is_passed(**to));
            let ends: Vec<u32> = ends.copied().collect();
            self.found.extend(ends.iter().map(|to| [&self.path[..], &[*to]].concat()));
        }
        for next in out_edges(tables, junction) {
            if self.via.contains(&next) && !self.is_passed(next) {
                self.path.push(next);
                self.go_on(tables.edges[next as usize].to);
                self.path.pop();
            }
        }
    }

    /// Whether a road is part of the path, in either direction.
    fn is_passed(&self, edge: u32) -> bool {
        let road = |edge: u32| self.tables.edges[edge as usize].road & !BACKWARD;
        self.path.iter().any(|passed| road(*passed) == road(edge))
    }
}

/// Which numbers edges have once copies are among them: more than one where an edge has copies.
#[derive(Default)]
pub struct Renumbered {
    new_of_old: Vec<u32>,
    copies: HashMap<u32, Vec<u32>>, // only looked up, never walked
}

impl Renumbered {
    /// A turn between edges is one between each of their copies, too.
    pub fn each(&self, record: TurnRecord, mut found: impl FnMut(TurnRecord)) {
        let plain = |old: u32| self.new_of_old.get(old as usize).copied().unwrap_or(old);
        let copies = |old: u32| self.copies.get(&old).map_or(&[][..], Vec::as_slice).iter().copied();
        for from in std::iter::once(plain(record.from)).chain(copies(record.from)) {
            for to in std::iter::once(plain(record.to)).chain(copies(record.to)) {
                found(TurnRecord { from, to, ..record });
            }
        }
    }
}

/// Gives the tables their copies, and all forbidden turns, those between plain edges included, in the new numbers.
pub fn spell_out(tables: &mut Tables, chains: &[Chain], plain: Vec<TurnRecord>) -> (Vec<TurnRecord>, Renumbered) {
    let mut rules = Rules::default();
    for chain in chains {
        rules.add(tables, chain);
    }
    rules.plain = plain.iter().map(|turn| ((turn.from, turn.to), turn.profiles as u8)).collect();
    let copies: Vec<(u32, u8)> =
        rules.begun.iter().map(|(driven, profiles)| (driven[driven.len() - 1], *profiles)).collect();
    let (new_of_old, new_of_copy) = tables.add_copies(&copies);
    // What one has driven when on an edge, in the old numbers: for plain edges, nothing that matters but the edge.
    let mut driven = vec![Vec::new(); tables.edges.len()];
    for (old, new) in new_of_old.iter().enumerate() {
        driven[*new as usize] = vec![old as u32];
    }
    for (begun, new) in rules.begun.keys().zip(&new_of_copy) {
        driven[*new as usize] = begun.clone();
    }
    let mut turns: Vec<TurnRecord> = plain
        .into_iter()
        .map(|turn| TurnRecord { from: new_of_old[turn.from as usize], to: new_of_old[turn.to as usize], ..turn })
        .collect();
    let bounds =
        rules.bounds.keys().map(|(begun, _)| tables.edges[new_of_old[begun[begun.len() - 1] as usize] as usize].to);
    let ends = new_of_copy.iter().flat_map(|copy| [tables.edges[*copy as usize].from, tables.edges[*copy as usize].to]);
    for junction in bounds.chain(ends).collect::<BTreeSet<u32>>() {
        for from in in_edges(tables, junction) {
            let mut ahead = 0;
            let mut back = None;
            for to in out_edges(tables, junction) {
                let both = tables.edges[from as usize].access & tables.edges[to as usize].access & 0x0f;
                let forbidden = both & rules.forbidden(&driven[from as usize], &driven[to as usize]);
                if tables.is_u_turn(from, to) {
                    back = Some((to, both & !forbidden));
                } else {
                    ahead |= both;
                }
                if forbidden != 0 {
                    turns.push(turn(from, to, forbidden));
                }
            }
            // Turning round in the middle, twice, would get out of the rule: only who stands at a dead end may.
            let is_between = driven[from as usize].len() > 1;
            if let Some((to, may)) = back.filter(|(_, may)| is_between && may & ahead != 0) {
                turns.push(turn(from, to, may & ahead));
            }
        }
    }
    let mut of_edge: HashMap<u32, Vec<u32>> = HashMap::new();
    for ((old, _), new) in copies.iter().zip(&new_of_copy) {
        of_edge.entry(*old).or_default().push(*new);
    }
    (turns, Renumbered { new_of_old, copies: of_edge })
}

/// What may not be done after what, by edges.
#[derive(Default)]
struct Rules {
    /// Who may not go on to an edge, having driven some.
    bounds: BTreeMap<(Vec<u32>, u32), u8>,
    /// The beginnings of restrictions of at least two edges, and for whom they matter: each needs a copy of its last edge.
    begun: BTreeMap<Vec<u32>, u8>,
    /// Forbidden turns between two edges.
    plain: HashMap<(u32, u32), u8>, // only looked up, never walked
}

impl Rules {
    fn add(&mut self, tables: &Tables, chain: &Chain) {
        let (edges, last) = (&chain.edges, chain.edges.len() - 1);
        // Who comes from the first edge and may go one way only may go that way only at each junction of it.
        let first = if chain.is_only { 1 } else { last };
        for i in first..=last {
            let driven = &edges[..i];
            let junction = tables.edges[edges[i - 1] as usize].to;
            let closed = match chain.is_only {
                true => out_edges(tables, junction).filter(|to| *to != edges[i]).collect(),
                false => vec![edges[i]],
            };
            for to in closed {
                *self.bounds.entry((driven.to_vec(), to)).or_default() |= chain.profiles;
            }
        }
        for i in 2..=last {
            *self.begun.entry(edges[..i].to_vec()).or_default() |= chain.profiles;
        }
    }

    /// Who may not go from one edge to another, each given as what one has driven when on it.
    fn forbidden(&self, from: &[u32], to: &[u32]) -> u8 {
        let onto = to[to.len() - 1];
        let mut forbidden = self.plain.get(&(from[from.len() - 1], onto)).copied().unwrap_or(0);
        for start in 0..from.len() {
            forbidden |= self.bounds.get(&(from[start..].to_vec(), onto)).copied().unwrap_or(0);
        }
        let whole = [from, &[onto]].concat();
        for profile in Profile::ALL.iter().map(|profile| profile.bit()) {
            let is_begun = |driven: &&[u32]| self.begun.get(*driven).is_some_and(|who| who & profile != 0);
            let longest = (0..whole.len() - 1).map(|start| &whole[start..]).find(is_begun);
            if longest.unwrap_or(&[onto]) != to {
                forbidden |= profile;
            }
        }
        forbidden
    }
}

impl Tables {
    /// Adds copies of edges for some profiles. Answers the new numbers of the edges that were there, and those of the
    /// copies.
    fn add_copies(&mut self, copies: &[(u32, u8)]) -> (Vec<u32>, Vec<u32>) {
        let before = self.edges.len();
        let mut drafts = std::mem::take(&mut self.edges);
        for (edge, profiles) in copies {
            let mut copy = drafts[*edge as usize];
            copy.access &= profiles;
            copy.flags |= EdgeFlags::COPY;
            self.roads[(copy.road & !BACKWARD) as usize].way |= COPIED;
            drafts.push(copy);
        }
        let mut order: Vec<u32> = (0..drafts.len() as u32).collect();
        order.sort_by_key(|old| drafts[*old as usize].from);
        let mut new_of_old = vec![0; drafts.len()];
        for (new, old) in (0..).zip(&order) {
            new_of_old[*old as usize] = new;
        }
        let junctions = self.out_first.len() - 1;
        self.number_edges(order.iter().map(|old| drafts[*old as usize]).collect(), junctions);
        let of_copies = new_of_old.split_off(before);
        (new_of_old, of_copies)
    }
}

/// Longer ones are a mistake in the drawing.
const CHAIN_EDGES_MAX: usize = 24;
/// Real ones need one for each edge of theirs, some dozens. Via ways that form a mesh could be passed in more orders
/// than anyone can try.
const STEPS_MAX: u32 = 5_000;
