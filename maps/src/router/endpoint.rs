//! Where a route begins or ends: a place on an edge, or a position that has to be brought to the road first.

use protocol::Position;

use crate::class::Profile;
use crate::geo;
use crate::graph::{Candidate, EdgeId, Graph};

/// One end of a route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Endpoint {
    /// On the nearest road, in whichever direction is better.
    Position(Position),
    /// On the nearest road that leads this way, in hundredths of a degree.
    Heading(Position, u16),
    /// Exactly here, in the edge's direction.
    Edge { edge: EdgeId, along_cm: u32 },
}

/// A place on an edge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Start {
    pub edge: EdgeId,
    pub along_cm: u32,
}

impl Endpoint {
    /// The places where a route may end: where it may begin, and the same on the copies of those edges, because one
    /// gets there from different sides.
    pub fn ends(&self, graph: &Graph, profile: Profile, found: &mut Vec<Candidate>) -> [Option<Start>; ENDS_MAX] {
        let mut ends = [None; ENDS_MAX];
        let starts = self.starts(graph, profile, found);
        let mut count = 0;
        let mut add = |start: Start| {
            if let Some(slot) = ends.get_mut(count) {
                *slot = Some(start);
                count += 1;
            }
        };
        starts.iter().flatten().for_each(|start| add(*start));
        for start in starts.iter().flatten() {
            for copy in graph.copies(start.edge).filter(|copy| graph.allows(*copy, profile)) {
                add(Start { edge: copy, along_cm: start.along_cm });
            }
        }
        ends
    }

    /// The places on edges where a route may begin; none if no road is near that leads anywhere.
    pub fn starts(&self, graph: &Graph, profile: Profile, found: &mut Vec<Candidate>) -> [Option<Start>; STARTS_MAX] {
        match *self {
            Endpoint::Edge { edge, along_cm } => {
                let is_there = edge.index() < graph.edge_count() && graph.allows(edge, profile);
                let start = is_there.then(|| Start { edge, along_cm: along_cm.min(graph.length_cm(edge)) });
                [start, None]
            }
            Endpoint::Position(position) => nearest(graph, position, profile, None, found),
            Endpoint::Heading(position, heading) => nearest(graph, position, profile, Some(heading), found),
        }
    }
}

/// Both directions of the nearest road, or the one that fits the heading.
fn nearest(
    graph: &Graph,
    position: Position,
    profile: Profile,
    heading_cdeg: Option<u16>,
    found: &mut Vec<Candidate>,
) -> [Option<Start>; STARTS_MAX] {
    for radius_m in RADII_M {
        graph.candidates(position, radius_m, profile, found);
        let fits =
            |c: &&Candidate| heading_cdeg.is_none_or(|h| geo::turn_cdeg(h, c.heading_cdeg) <= HEADING_OFF_CDEG_MAX);
        let mut connected = found.iter().filter(|c| graph.is_connected(c.edge, profile)).filter(fits);
        if let Some(first) = connected.next() {
            let other = connected.find(|c| graph.reverse(first.edge) == Some(c.edge));
            let start = |c: &Candidate| Start { edge: c.edge, along_cm: c.along_cm };
            return [Some(start(first)), other.map(start)];
        }
    }
    match heading_cdeg {
        // Nothing near leads this way: the phone may lie about its heading, or the driver stands across the road.
        Some(_) => nearest(graph, position, profile, None, found),
        None => [None, None],
    }
}

pub const STARTS_MAX: usize = 2;
/// Both directions, each with the copies that restrictions over it ask for.
pub const ENDS_MAX: usize = 16;
const RADII_M: [f64; 4] = [50.0, 150.0, 500.0, 2000.0];
const HEADING_OFF_CDEG_MAX: u16 = 7_500; // a driver who turns off still looks mostly along the road
