//! Turns that a sign or a barrier forbids, as pairs of edges. "Only straight on" becomes all the other turns. What
//! reaches over ways is for `super::chains`.

use std::collections::HashMap;

use super::build::Tables;
use super::chains::{self, Members};
use super::harvest::{DraftTurn, Harvest};
use super::ids::Ids;
use super::nodes::Nodes;
use crate::class::EdgeFlags;
use crate::record::{NONE, TurnRecord};

#[derive(Default)]
pub struct Turns {
    /// Sorted, each pair once.
    pub records: Vec<TurnRecord>,
    pub kept: u32,
    pub left_out: u32,
}

pub fn turns(tables: &mut Tables, harvest: &Harvest, nodes: &Nodes, ids: &Ids) -> Turns {
    let mut turns = Turns { left_out: harvest.turns_left_out, ..Turns::default() };
    let members = Members::of(tables, harvest);
    let mut chains = Vec::new();
    for draft in &harvest.turns {
        if !draft.via_ways.is_empty() {
            match members.chain(tables, harvest, draft) {
                Some(chain) => chains.push(chain),
                None => turns.left_out += 1,
            }
            continue;
        }
        let before = turns.records.len();
        let is_kept = add_restriction(tables, harvest, ids, draft, &mut turns.records);
        if is_kept.is_some() && turns.records.len() > before {
            turns.kept += 1;
        } else {
            turns.left_out += 1;
        }
    }
    for (place, stopped) in &nodes.barriers {
        add_barrier(tables, *place, *stopped, &mut turns.records);
    }
    turns.kept += chains.len() as u32;
    turns.records = merged(std::mem::take(&mut turns.records));
    if !chains.is_empty() {
        let plain = std::mem::take(&mut turns.records);
        turns.records = merged(chains::spell_out(tables, &chains, plain));
    }
    for turn in &turns.records {
        tables.edges[turn.from as usize].flags |= EdgeFlags::TURN_FROM;
        tables.edges[turn.to as usize].flags |= EdgeFlags::TURN_INTO;
    }
    turns
}

fn merged(mut records: Vec<TurnRecord>) -> Vec<TurnRecord> {
    records.sort_unstable_by_key(|turn| (turn.from, turn.to));
    let mut whole: HashMap<(u32, u32), u32> = HashMap::new(); // only looked up, never walked
    for turn in &records {
        *whole.entry((turn.from, turn.to)).or_default() |= turn.profiles;
    }
    records.dedup_by_key(|turn| (turn.from, turn.to));
    for turn in &mut records {
        turn.profiles = whole[&(turn.from, turn.to)];
    }
    records
}

/// None where the restriction's members do not meet.
fn add_restriction(
    tables: &Tables,
    harvest: &Harvest,
    ids: &Ids,
    draft: &DraftTurn,
    records: &mut Vec<TurnRecord>,
) -> Option<()> {
    let [via] = draft.via_nodes[..] else {
        return None;
    };
    let junction = junction(tables, ids.place(via)?)?;
    let into: Vec<u32> =
        in_edges(tables, junction).filter(|e| draft.from.contains(&osm_way(tables, harvest, *e))).collect();
    let out: Vec<u32> =
        out_edges(tables, junction).filter(|e| draft.to.contains(&osm_way(tables, harvest, *e))).collect();
    if draft.from == draft.to && draft.from.len() == 1 && into.len() == 2 && out.len() == 2 {
        add_on_one_way(tables, draft, &into, &out, junction, records);
        return Some(());
    }
    if into.len() > draft.from.len() || out.len() > draft.to.len() {
        return None; // a member goes on beyond the junction, so which of its edges is meant cannot be known
    }
    for from in &into {
        if draft.is_only {
            let others = out_edges(tables, junction).filter(|e| !out.is_empty() && !out.contains(e));
            records.extend(others.map(|other| turn(*from, other, draft.profiles)));
        } else {
            records.extend(out.iter().map(|to| turn(*from, *to, draft.profiles)));
        }
    }
    Some(())
}

/// A sign on a way that goes on beyond the junction, from the way to itself, holds in both directions: no turning round,
/// or straight on only.
fn add_on_one_way(
    tables: &Tables,
    draft: &DraftTurn,
    into: &[u32],
    out: &[u32],
    junction: u32,
    records: &mut Vec<TurnRecord>,
) {
    for from in into {
        let is_back = |to: u32| tables.is_u_turn(*from, to);
        let ahead = out.iter().copied().find(|to| !is_back(*to));
        for to in out_edges(tables, junction) {
            let is_forbidden = match (draft.is_only, draft.is_u_turn) {
                (true, _) => ahead.is_some_and(|ahead| ahead != to),
                (false, true) => is_back(to),
                (false, false) => ahead == Some(to),
            };
            if is_forbidden {
                records.push(turn(*from, to, draft.profiles));
            }
        }
    }
}

/// Nobody who is stopped gets across; turning round before the barrier stays possible.
fn add_barrier(tables: &Tables, place: u32, stopped: u8, records: &mut Vec<TurnRecord>) {
    let Some(junction) = junction(tables, place) else {
        return;
    };
    for from in in_edges(tables, junction) {
        for to in out_edges(tables, junction).filter(|to| !tables.is_u_turn(from, *to)) {
            let affected = stopped & tables.edges[from as usize].access & tables.edges[to as usize].access & 0x0f;
            if affected != 0 {
                records.push(turn(from, to, affected));
            }
        }
    }
}

pub fn turn(from: u32, to: u32, profiles: u8) -> TurnRecord {
    TurnRecord { from, to, profiles: u32::from(profiles) }
}

fn junction(tables: &Tables, place: u32) -> Option<u32> {
    Some(tables.junction_of_place[place as usize]).filter(|junction| *junction != NONE)
}

pub fn osm_way(tables: &Tables, harvest: &Harvest, edge: u32) -> i64 {
    let road = tables.edges[edge as usize].road & !crate::record::BACKWARD;
    harvest.ways[tables.draft_way_of_road[road as usize] as usize].id
}

pub fn in_edges(tables: &Tables, junction: u32) -> impl Iterator<Item = u32> + '_ {
    let range = tables.in_first[junction as usize] as usize..tables.in_first[junction as usize + 1] as usize;
    tables.in_edges[range].iter().copied()
}

pub fn out_edges(tables: &Tables, junction: u32) -> std::ops::Range<u32> {
    tables.out_first[junction as usize]..tables.out_first[junction as usize + 1]
}
