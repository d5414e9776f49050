//! Places on a map where a shop or a door may be: on streets that lead anywhere, some way apart.

use std::ops::RangeInclusive;

use maps::router::Endpoint;
use maps::{EdgeFlags, EdgeId, Graph, Profile, RoadClass, geo};
use protocol::Position;
use rand::Rng;
use rand::rngs::SmallRng;

/// A place beside a road.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RoadPlace {
    pub edge: EdgeId,
    pub along_cm: u32,
    pub position: Position,
}

impl RoadPlace {
    /// Leaving it one goes on in the road's direction.
    pub fn onward(self) -> Endpoint {
        Endpoint::Edge { edge: self.edge, along_cm: self.along_cm }
    }
}

/// Anywhere on the map. None if the map has no street for the profile, or hardly any.
pub fn anywhere(graph: &Graph, profile: Profile, rng: &mut SmallRng) -> Option<RoadPlace> {
    let count = u32::try_from(graph.edge_count()).ok().filter(|count| *count > 0)?;
    for _ in 0..TRIES_MAX {
        let edge = EdgeId(rng.random_range(0..count));
        let is_street = (RoadClass::Primary..=RoadClass::LivingStreet).contains(&graph.class(edge));
        let is_open = !graph.flags(edge).has(EdgeFlags::TUNNEL | EdgeFlags::FERRY | EdgeFlags::PRIVATE);
        if is_street && is_open && graph.allows(edge, profile) && graph.is_connected(edge, profile) {
            let along_cm = rng.random_range(0..=graph.length_cm(edge));
            return Some(RoadPlace { edge, along_cm, position: graph.position_at(edge, along_cm) });
        }
    }
    None
}

/// Some way from another place; on a small map the best that was found.
pub fn some_way_from(
    graph: &Graph,
    profile: Profile,
    from: Position,
    distance_m: RangeInclusive<f64>,
    rng: &mut SmallRng,
) -> Option<RoadPlace> {
    let mut best: Option<(f64, RoadPlace)> = None;
    for _ in 0..CHOICES_MAX {
        let place = anywhere(graph, profile, rng)?;
        let apart_m = geo::distance_cm(from, place.position) / 100.0;
        let off_m = (distance_m.start() - apart_m).max(apart_m - distance_m.end()).max(0.0);
        if best.is_none_or(|(best_m, _)| off_m < best_m) {
            best = Some((off_m, place));
        }
        if off_m == 0.0 {
            break;
        }
    }
    best.map(|(_, place)| place)
}

const TRIES_MAX: u32 = 10_000;
const CHOICES_MAX: u32 = 200;
