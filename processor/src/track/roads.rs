//! The maps a fold works with. Which one is in use is said by a record, never by a setting; here are only the bodies,
//! by their hash.

use std::path::Path;
use std::sync::Arc;

use maps::matcher::Snapped;
use maps::router::{Endpoint, Route, Routing};
use maps::{Graph, MapError, Profile, geo};
use protocol::Position;
use protocol::record::BlobHash;

use super::way::{Way, WayPoint};

/// Where the fold finds the body that a record names.
pub trait Maps {
    /// None if it cannot be had: the fold then answers with straight lines.
    fn map(&self, hash: BlobHash) -> Option<Arc<RoadMap>>;
}

/// No maps at all.
pub struct NoMaps;

impl Maps for NoMaps {
    fn map(&self, _: BlobHash) -> Option<Arc<RoadMap>> {
        None
    }
}

/// One map, opened.
pub struct RoadMap {
    pub hash: BlobHash,
    pub graph: Arc<Graph>,
    routing: Routing,
}

impl RoadMap {
    /// Opens a map file, and makes its router: that takes some hundred milliseconds on a city.
    pub fn open(path: &Path, hash: BlobHash) -> Result<RoadMap, MapError> {
        Ok(RoadMap::of(Graph::open(path)?, hash))
    }

    pub fn of(graph: Graph, hash: BlobHash) -> RoadMap {
        let graph = Arc::new(graph);
        let routing = Routing::new(graph.clone());
        routing.router(PROFILE);
        RoadMap { hash, graph, routing }
    }

    pub fn covers(&self, position: Position) -> bool {
        self.graph.bbox().contains(position)
    }

    /// The fastest way; None if there is none on this map.
    pub fn way(&self, from: Start<'_>, to: Position) -> Option<Way> {
        let to = Endpoint::Position(to);
        let begin = match from.snapped {
            Some(snapped) => Endpoint::Edge { edge: snapped.edge, along_cm: snapped.along_cm },
            None => Endpoint::Position(from.position),
        };
        let route = self.routing.route(&begin, &to, PROFILE);
        // From the edge he is on there may be no way though there is one from beside it: he may be on the wrong edge.
        let route = route.or_else(|| self.routing.route(&Endpoint::Position(from.position), &to, PROFILE))?;
        Way::new(self.points(&route))
    }

    /// The route's line, with distance and time at each point: time runs evenly along an edge.
    fn points(&self, route: &Route) -> Vec<WayPoint> {
        let graph = &self.graph;
        let mut points: Vec<WayPoint> = Vec::new();
        let (mut begin_cm, mut begin_ms, mut turns) = (0_u32, 0_u32, 0_u16);
        let last = route.edges.len().saturating_sub(1);
        for (i, edge) in route.edges.iter().enumerate() {
            let edge_cm = graph.length_cm(*edge);
            let from_cm = if i == 0 { route.start_along_cm } else { 0 };
            let to_cm = if i == last { route.end_along_cm } else { edge_cm };
            let length_cm = to_cm.saturating_sub(from_cm);
            let share_ms = u64::from(graph.duration_ms(*edge, PROFILE)) * u64::from(length_cm);
            let duration_ms = (share_ms / u64::from(edge_cm.max(1))) as u32;
            let line = graph.stretch(*edge, from_cm, to_cm);
            let drawn_cm: f64 = line.windows(2).map(|pair| geo::distance_cm(pair[0], pair[1])).sum();
            let mut along_cm = 0.0;
            for (k, position) in line.iter().enumerate() {
                if k > 0 {
                    along_cm += geo::distance_cm(line[k - 1], *position);
                }
                let share = if drawn_cm > 0.0 { (along_cm / drawn_cm).min(1.0) } else { 0.0 };
                let part = |whole: u32| (f64::from(whole) * share).round() as u32;
                let point = WayPoint {
                    position: *position,
                    along_cm: begin_cm.saturating_add(part(length_cm)),
                    along_ms: begin_ms.saturating_add(part(duration_ms)),
                    turns,
                };
                if points.last().is_none_or(|before| before.position != point.position) {
                    points.push(point);
                }
            }
            begin_cm = begin_cm.saturating_add(length_cm);
            begin_ms = begin_ms.saturating_add(duration_ms);
            if let Some(next) = route.edges.get(i + 1) {
                let (_, before) = graph.place_at(*edge, u32::MAX);
                let (_, after) = graph.place_at(*next, 0);
                turns = turns.saturating_add(u16::from(geo::turn_cdeg(before, after) > TURN_CDEG));
            }
        }
        if let [only] = points[..] {
            points.push(only); // there already: a line has two ends, though they lie in one place
        }
        points
    }
}

/// Where a way begins.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    pub position: Position,
    /// On the road and in the direction of travel, where it is known.
    pub snapped: Option<&'a Snapped>,
}

/// What counts as a corner, as in `maps::eta`.
const TURN_CDEG: u16 = 4_500;
/// Everybody drives, until a record says otherwise.
pub const PROFILE: Profile = Profile::Car;
