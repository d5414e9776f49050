//! From a router's edges to a planned route that a driver can be followed along.

use maps::router::{Endpoint, Route};
use maps::{EdgeId, Graph, Profile, geo};
use protocol::{Position, Time};

use super::planned_route::{PlannedRoute, RoutePoint, TURN_CDEG};
use super::roads::Traffic;

/// Where a route begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    pub position: Position,
    /// The edge that the driver is on and how far along it he is, where that is known.
    pub on: Option<(EdgeId, u32)>,
    /// His heading, in hundredths of a degree.
    pub heading_cdeg: Option<u16>,
}

impl Traffic {
    /// The fastest route for a driver who sets off now; None if there is none on this map.
    pub(crate) fn plan_route(&self, from: Start, to: Position, profile: Profile, now: Time) -> Option<PlannedRoute> {
        let router = self.router(profile);
        let to = Endpoint::Position(to);
        let begin = match (from.on, from.heading_cdeg) {
            (Some((edge, along_cm)), _) => Endpoint::Edge { edge, along_cm },
            (None, Some(heading_cdeg)) => Endpoint::Heading(from.position, heading_cdeg),
            (None, None) => Endpoint::Position(from.position),
        };
        let route = router.route(&begin, &to);
        // There may be no route from the edge he was placed on though there is one from beside it: that edge may be wrong.
        let route = route.or_else(|| router.route(&Endpoint::Position(from.position), &to))?;
        let mut planned = draw(self.graph(), &route)?;
        planned.retime(self.graph(), self.speeds(), profile, 0, now);
        Some(planned)
    }
}

/// The line of a route, with the distance along it at each point and at the end of each edge.
fn draw(graph: &Graph, route: &Route) -> Option<PlannedRoute> {
    let mut points: Vec<RoutePoint> = Vec::new();
    let mut edges = Vec::with_capacity(route.edges.len());
    let (mut begin_cm, mut turns) = (0_u32, 0_u16);
    let last = route.edges.len().saturating_sub(1);
    for (i, edge) in route.edges.iter().enumerate() {
        let from_cm = if i == 0 { route.start_along_cm } else { 0 };
        let to_cm = if i == last { route.end_along_cm } else { graph.length_cm(*edge) };
        let length_cm = to_cm.saturating_sub(from_cm);
        let line = graph.stretch(*edge, from_cm, to_cm);
        let drawn_cm: f64 = line.windows(2).map(|pair| geo::distance_cm(pair[0], pair[1])).sum();
        let mut drawn_so_far_cm = 0.0;
        for (k, position) in line.iter().enumerate() {
            if k > 0 {
                drawn_so_far_cm += geo::distance_cm(line[k - 1], *position);
            }
            let share = if drawn_cm > 0.0 { (drawn_so_far_cm / drawn_cm).min(1.0) } else { 0.0 };
            let along_cm = begin_cm.saturating_add((f64::from(length_cm) * share).round() as u32);
            if points.last().is_none_or(|before| before.position != *position) {
                points.push(RoutePoint { position: *position, along_cm, turns });
            }
        }
        begin_cm = begin_cm.saturating_add(length_cm);
        edges.push((*edge, begin_cm));
        if let Some(next) = route.edges.get(i + 1) {
            let (_, before) = graph.place_at(*edge, u32::MAX);
            let (_, after) = graph.place_at(*next, 0);
            turns = turns.saturating_add(u16::from(geo::turn_cdeg(before, after) > TURN_CDEG));
        }
    }
    if let [only] = points[..] {
        points.push(only); // there already: a line has two ends, though they lie in one place
    }
    if let Some(end) = points.last_mut() {
        end.along_cm = begin_cm;
    }
    PlannedRoute::along(points, edges, route.start_along_cm)
}
