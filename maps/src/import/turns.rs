//! Turns that a sign or a barrier forbids, as pairs of edges. "Only straight on" becomes all the other turns. What
//! reaches over ways is for `super::chains`.

use std::collections::HashMap;

use super::access::Barrier;
use super::build::Tables;
use super::chains::{self, Members, Renumbered};
use super::harvest::{DraftTurn, Harvest};
use super::ids::Ids;
use super::left_out::{LeftOutKind, LeftOuts};
use super::nodes::Nodes;
use crate::class::{EdgeFlags, Profile};
use crate::record::{ConditionRecord, NONE, TurnRecord};

#[derive(Default)]
pub struct Turns {
    /// Sorted, each pair once.
    pub records: Vec<TurnRecord>,
    /// Sorted.
    pub conditions: Vec<ConditionRecord>,
    pub kept: u32,
}

pub fn turns(tables: &mut Tables, harvest: &Harvest, nodes: &Nodes, ids: &Ids, left_out: &mut LeftOuts) -> Turns {
    let mut drawn = Drawn::default();
    let members = Members::of(tables, harvest);
    for draft in &harvest.turns {
        let kept = match draft.via_ways.is_empty() {
            true => drawn.add_at_node(tables, harvest, ids, draft),
            false => drawn.add_over_ways(tables, harvest, &members, draft),
        };
        if let Err(why) = kept {
            left_out.add(LeftOutKind::Restriction, "relation", draft.id, why);
        }
    }
    for (place, barrier) in &nodes.barriers {
        drawn.add_barrier(tables, *place, *barrier);
    }
    let turns = drawn.spelled_out(tables);
    for turn in &turns.records {
        tables.edges[turn.from as usize].flags |= EdgeFlags::TURN_FROM;
        tables.edges[turn.to as usize].flags |= EdgeFlags::TURN_INTO;
    }
    turns
}

/// What signs and barriers say, by the numbers that edges have before restrictions over ways add copies.
#[derive(Default)]
struct Drawn {
    kept: u32,
    forbidden: Vec<TurnRecord>,
    /// Open only for those with business behind.
    limited: Vec<TurnRecord>,
    /// Forbidden at some hours.
    conditional: Vec<(TurnRecord, String)>,
    chains: Vec<chains::Chain>,
}

impl Drawn {
    fn add_at_node(
        &mut self,
        tables: &Tables,
        harvest: &Harvest,
        ids: &Ids,
        draft: &DraftTurn,
    ) -> Result<(), &'static str> {
        let mut records = Vec::new();
        add_restriction(tables, harvest, ids, draft, &mut records)?;
        if records.is_empty() {
            return Err("nobody can make that turn");
        }
        self.kept += 1;
        match &draft.hours {
            None => self.forbidden.extend(records),
            Some(hours) => self.conditional.extend(records.into_iter().map(|record| (record, hours.clone()))),
        }
        Ok(())
    }

    fn add_over_ways(
        &mut self,
        tables: &Tables,
        harvest: &Harvest,
        members: &Members,
        draft: &DraftTurn,
    ) -> Result<(), &'static str> {
        if draft.hours.is_some() {
            return Err("it reaches over ways and holds at some hours only");
        }
        let chain = members.chain(tables, harvest, draft);
        self.chains.push(chain.ok_or("its members do not join, or join in more than one way")?);
        self.kept += 1;
        Ok(())
    }

    /// Nobody who is stopped gets across; turning round before the barrier stays possible. Between roads that are
    /// limited themselves, a barrier that opens for some limits nothing more.
    fn add_barrier(&mut self, tables: &Tables, place: u32, barrier: Barrier) {
        let Some(junction) = junction(tables, place) else {
            return;
        };
        for from in in_edges(tables, junction) {
            for to in out_edges(tables, junction).filter(|to| !tables.is_u_turn(from, *to)) {
                let (a, b) = (&tables.edges[from as usize], &tables.edges[to as usize]);
                let both = a.access & b.access & 0x0f;
                let is_limited = |profile: &&Profile| {
                    EdgeFlags(a.flags).is_private(**profile) || EdgeFlags(b.flags).is_private(**profile)
                };
                let within: u8 = Profile::ALL.iter().filter(is_limited).map(|profile| profile.bit()).sum();
                if barrier.stopped & both != 0 {
                    self.forbidden.push(turn(from, to, barrier.stopped & both));
                }
                if barrier.limited & both & !within != 0 {
                    self.limited.push(turn(from, to, barrier.limited & both & !within));
                }
            }
        }
    }

    fn spelled_out(self, tables: &mut Tables) -> Turns {
        let plain = merged(self.forbidden);
        let (mut records, renumbered) = match self.chains.is_empty() {
            true => (plain, Renumbered::default()),
            false => chains::spell_out(tables, &self.chains, plain),
        };
        let mut conditions = Vec::new();
        let shifted = |record: TurnRecord, shift: u32| TurnRecord { profiles: record.profiles << shift, ..record };
        for record in self.limited {
            renumbered.each(record, |record| records.push(shifted(record, TurnRecord::LIMITED_SHIFT)));
        }
        for (record, hours) in self.conditional {
            let (text, text_len) = tables.text.add(&hours);
            renumbered.each(record, |record| {
                let TurnRecord { from, to, profiles } = record;
                conditions.push(ConditionRecord { from, to, profiles, text, text_len });
                records.push(shifted(record, TurnRecord::CONDITIONAL_SHIFT));
            });
        }
        conditions.sort_unstable();
        Turns { records: merged(records), conditions, kept: self.kept }
    }
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

/// Why not, where the restriction's members do not meet.
fn add_restriction(
    tables: &Tables,
    harvest: &Harvest,
    ids: &Ids,
    draft: &DraftTurn,
    records: &mut Vec<TurnRecord>,
) -> Result<(), &'static str> {
    let [via] = draft.via_nodes[..] else {
        return Err("it does not name one junction");
    };
    let junction = ids.place(via).and_then(|place| junction(tables, place)).ok_or("its junction is not on the map")?;
    let into: Vec<u32> =
        in_edges(tables, junction).filter(|e| draft.from.contains(&osm_way(tables, harvest, *e))).collect();
    let out: Vec<u32> =
        out_edges(tables, junction).filter(|e| draft.to.contains(&osm_way(tables, harvest, *e))).collect();
    if draft.from == draft.to && draft.from.len() == 1 && into.len() == 2 && out.len() == 2 {
        add_on_one_way(tables, draft, &into, &out, junction, records);
        return Ok(());
    }
    if into.len() > draft.from.len() || out.len() > draft.to.len() {
        return Err("one of its ways goes on beyond the junction");
    }
    for from in &into {
        if draft.is_only {
            let others = out_edges(tables, junction).filter(|e| !out.is_empty() && !out.contains(e));
            records.extend(others.map(|other| turn(*from, other, draft.profiles)));
        } else {
            records.extend(out.iter().map(|to| turn(*from, *to, draft.profiles)));
        }
    }
    Ok(())
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
