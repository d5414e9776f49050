//! What a turn costs: closed, free, or at a price. Turning round is dear, and dearest in the middle of a way, where nobody
//! expects it; a gate that opens only for some is for those with business behind it.

use super::weights::ENTRY_MS;
use crate::class::Profile;
use crate::graph::{EdgeId, Graph, NodeId};
use crate::record::BACKWARD;

/// The price of going from one edge on to another; None for a turn that a sign or a barrier forbids.
#[inline]
pub fn turn_ms(graph: &Graph, profile: Profile, from: EdgeId, to: EdgeId) -> Option<u32> {
    let mut price_ms = 0;
    if let Some(turn) = graph.turn(from, to) {
        if turn.is_forbidden(profile) {
            return None;
        }
        if turn.is_limited(profile) {
            price_ms = ENTRY_MS;
        }
    }
    if graph.is_u_turn(from, to) {
        price_ms += u_turn_ms(graph, profile, to);
    }
    Some(price_ms)
}

/// The price of turning round where an edge begins that leads back.
pub fn u_turn_ms(graph: &Graph, profile: Profile, back: EdgeId) -> u32 {
    let [dead_end, junction, middle] = match profile {
        // Nobody drives into a cul-de-sac to get round a sign where a block more does it.
        Profile::Car => [90_000, 100_000, 200_000],
        Profile::Moped => [30_000, 40_000, 100_000],
        Profile::Bicycle => [5_000, 8_000, 15_000],
        Profile::Foot => return 0,
    };
    match other_roads(graph, profile, graph.from(back), back) {
        0 => dead_end,
        1 => middle,
        _ => junction,
    }
}

/// How many other roads, two at most, lead on from a junction.
fn other_roads(graph: &Graph, profile: Profile, junction: NodeId, back: EdgeId) -> usize {
    let road = |edge: EdgeId| graph.record(edge).road & !BACKWARD;
    let mut first = None;
    for edge in graph.out_edges(junction).filter(|e| graph.allows(*e, profile) && road(*e) != road(back)) {
        match first {
            None => first = Some(road(edge)),
            Some(first) if first != road(edge) => return 2,
            Some(_) => {}
        }
    }
    usize::from(first.is_some())
}
