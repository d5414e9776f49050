//! Where a route begins or ends: a place on an edge, or a position that has to be brought to the road first. Both ends are
//! brought to roads of one part of the map, if there is one near both: from a house on an island to another there, its
//! own roads lead, however small it is. Nobody gets on or off a ferry under way.

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

/// The places where a route may begin and end.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    pub from: [Option<Start>; STARTS_MAX],
    /// Each with the same place on the copies of its edge, because one gets there from different sides.
    pub to: [Option<Start>; ENDS_MAX],
}

/// Both directions of one road near an end, or the one that fits.
#[derive(Clone, Copy)]
struct Choice {
    starts: [Option<Start>; STARTS_MAX],
    /// None where one cannot come back.
    part: Option<u32>,
    off_cm: u32,
}

/// Where a route may begin and end; nothing on a side where no road is near that leads anywhere.
pub fn ends(graph: &Graph, profile: Profile, from: &Endpoint, to: &Endpoint) -> Ends {
    let mut found = Vec::new();
    let (a, b) = (from.nearest(graph, profile, &mut found), to.nearest(graph, profile, &mut found));
    let is_joined = matches!((a, b), (Some(a), Some(b)) if a.part.is_some() && a.part == b.part);
    if is_joined {
        return Ends::of(graph, profile, a, b);
    }
    let mut all = (Vec::new(), Vec::new());
    for radius_m in RADII_M {
        all = (from.choices(graph, profile, radius_m, &mut found), to.choices(graph, profile, radius_m, &mut found));
        let pairs = all.0.iter().flat_map(|a| all.1.iter().map(move |b| (a, b)));
        let joined = pairs.filter(|(a, b)| a.part.is_some() && a.part == b.part);
        if let Some((a, b)) = joined.min_by_key(|(a, b)| a.off_cm.saturating_add(b.off_cm)) {
            return Ends::of(graph, profile, Some(*a), Some(*b));
        }
    }
    // Perhaps one leads to the other: from the part of the map where most is.
    let large = |endpoint: &Endpoint, all: &[Choice], first: Option<Choice>| match endpoint {
        Endpoint::Edge { .. } => first,
        Endpoint::Position(_) | Endpoint::Heading(..) => {
            let is_large =
                |choice: &&Choice| choice.starts[0].is_some_and(|start| graph.is_connected(start.edge, profile));
            all.iter().find(is_large).copied().or(first)
        }
    };
    Ends::of(graph, profile, large(from, &all.0, a), large(to, &all.1, b))
}

impl Ends {
    fn of(graph: &Graph, profile: Profile, from: Option<Choice>, to: Option<Choice>) -> Ends {
        let mut ends = Ends { from: [None; STARTS_MAX], to: [None; ENDS_MAX] };
        ends.from = from.map_or(ends.from, |choice| choice.starts);
        let places = to.map_or([None; STARTS_MAX], |choice| choice.starts);
        let copies = places.iter().flatten().flat_map(|place| {
            let copies = graph.copies(place.edge).filter(|copy| graph.allows(*copy, profile));
            copies.map(|edge| Start { edge, along_cm: place.along_cm })
        });
        for (slot, place) in ends.to.iter_mut().zip(places.iter().flatten().copied().chain(copies)) {
            *slot = Some(place);
        }
        ends
    }
}

impl Endpoint {
    /// The same place on the edge that this one's is a copy of; None if it is none.
    pub fn without_copy(&self, graph: &Graph) -> Option<Endpoint> {
        let Endpoint::Edge { edge, along_cm } = *self else { return None };
        if edge.index() >= graph.edge_count() || !graph.is_copy(edge) {
            return None;
        }
        let edge = graph.copies(edge).find(|other| !graph.is_copy(*other))?;
        Some(Endpoint::Edge { edge, along_cm })
    }

    /// The nearest road from which one gets somewhere and back.
    fn nearest(&self, graph: &Graph, profile: Profile, found: &mut Vec<Candidate>) -> Option<Choice> {
        let (position, heading) = match *self {
            Endpoint::Edge { edge, along_cm } => return on_edge(graph, profile, edge, along_cm),
            Endpoint::Position(position) => (position, None),
            Endpoint::Heading(position, heading) => (position, Some(heading)),
        };
        let near = |found: &mut Vec<Candidate>, heading: Option<u16>| {
            RADII_M.iter().find_map(|radius_m| {
                graph.candidates(position, *radius_m, profile, found);
                let first = found.iter().position(|c| is_end(graph, profile, heading, c))?;
                Some(choice(graph, profile, heading, &found[first..]))
            })
        };
        // Nothing near leads this way: the phone may lie about its heading, or the driver stands across the road.
        near(found, heading).or_else(|| heading.and_then(|_| near(found, None)))
    }

    /// The nearest road of each part of the map that is within a radius, the nearest first.
    fn choices(&self, graph: &Graph, profile: Profile, radius_m: f64, found: &mut Vec<Candidate>) -> Vec<Choice> {
        let (position, heading) = match *self {
            Endpoint::Edge { .. } => return self.nearest(graph, profile, found).into_iter().collect(),
            Endpoint::Position(position) => (position, None),
            Endpoint::Heading(position, heading) => (position, Some(heading)),
        };
        let mut all: Vec<Choice> = Vec::new();
        for heading in [heading, None] {
            graph.candidates(position, radius_m, profile, found);
            for at in 0..found.len() {
                let part = graph.part(found[at].edge, profile);
                let is_new = all.len() < CHOICES_MAX && all.iter().all(|choice| choice.part != part);
                if is_new && is_end(graph, profile, heading, &found[at]) {
                    all.push(choice(graph, profile, heading, &found[at..]));
                }
            }
            if heading.is_none() {
                break;
            }
        }
        all.sort_by_key(|choice| choice.off_cm);
        all
    }
}

/// A place on an edge as it is given; against a one-way street, where a driver may be all the same, it is the street's
/// own direction that he has to go on in.
fn on_edge(graph: &Graph, profile: Profile, edge: EdgeId, along_cm: u32) -> Option<Choice> {
    if edge.index() >= graph.edge_count() {
        return None;
    }
    let along_cm = along_cm.min(graph.length_cm(edge));
    let start = match graph.allows(edge, profile) {
        true => Start { edge, along_cm },
        false => {
            let edge = graph.reverse(edge).filter(|reverse| graph.allows(*reverse, profile))?;
            Start { edge, along_cm: graph.length_cm(edge).saturating_sub(along_cm) }
        }
    };
    Some(Choice { starts: [Some(start), None], part: graph.part(start.edge, profile), off_cm: 0 })
}

/// Whether a route may begin and end there.
fn is_end(graph: &Graph, profile: Profile, heading: Option<u16>, candidate: &Candidate) -> bool {
    !graph.flags(candidate.edge).is_ferry()
        && heading.is_none_or(|h| geo::turn_cdeg(h, candidate.heading_cdeg) <= HEADING_OFF_CDEG_MAX)
        && graph.part(candidate.edge, profile).is_some()
}

/// The first of some candidates, with the other direction of its road if that is among them.
fn choice(graph: &Graph, profile: Profile, heading: Option<u16>, found: &[Candidate]) -> Choice {
    let start = |c: &Candidate| Start { edge: c.edge, along_cm: c.along_cm };
    let reverse = graph.reverse(found[0].edge);
    let mut rest = found[1..].iter().filter(|c| Some(c.edge) == reverse);
    let other = rest.find(|c| is_end(graph, profile, heading, c));
    let part = graph.part(found[0].edge, profile);
    Choice { starts: [Some(start(&found[0])), other.map(start)], part, off_cm: found[0].off_cm }
}

pub const STARTS_MAX: usize = 2;
/// Both directions, each with the copies that restrictions over it ask for.
pub const ENDS_MAX: usize = 16;
const RADII_M: [f64; 4] = [50.0, 150.0, 500.0, 2000.0];
/// Parts of the map that are looked at near an end: a harbour has some islands, not dozens.
const CHOICES_MAX: usize = 16;
const HEADING_OFF_CDEG_MAX: u16 = 7_500; // a driver who turns off still looks mostly along the road
