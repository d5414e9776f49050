//! The nearest place on one known edge, where a search among all roads would be wasted.

use protocol::Position;

use super::search::Place;
use crate::geo::Plane;
use crate::graph::{EdgeId, Graph};

/// A place on an edge, and how far it lies from the position asked about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Projection {
    pub place: Place,
    pub off_cm: u32,
}

/// The nearest place between two bounds of an edge; the first of equals.
pub(super) fn project(graph: &Graph, edge: EdgeId, position: Position, (min_cm, max_cm): (u32, u32)) -> Projection {
    let plane = Plane::at(position);
    let points = graph.points(edge);
    let mut best = (f64::INFINITY, 0.0);
    for pair in points.windows(2) {
        let (a, b) = (plane.to_cm(pair[0].position()), plane.to_cm(pair[1].position()));
        let (east, north) = (b.0 - a.0, b.1 - a.1);
        let square = east * east + north * north;
        let share = if square > 0.0 { (-(a.0 * east + a.1 * north) / square).clamp(0.0, 1.0) } else { 0.0 };
        let (x, y) = (a.0 + share * east, a.1 + share * north);
        let off = x * x + y * y;
        if off < best.0 {
            let span = f64::from(pair[1].along_cm) - f64::from(pair[0].along_cm);
            best = (off, f64::from(pair[0].along_cm) + share * span);
        }
    }
    let length_cm = graph.length_cm(edge);
    let along_points_cm = (best.1.round() as u32).min(length_cm);
    let along_cm = if graph.is_backward(edge) { length_cm - along_points_cm } else { along_points_cm };
    let kept_cm = along_cm.min(max_cm.min(length_cm)).max(min_cm.min(length_cm));
    let off_cm = if kept_cm == along_cm {
        best.0.sqrt()
    } else {
        let (east, north) = plane.to_cm(graph.position_at(edge, kept_cm));
        (east * east + north * north).sqrt()
    };
    Projection { place: Place { edge, along_cm: kept_cm }, off_cm: off_cm as u32 }
}

/// The nearest place along a connected way, not before a place of its first edge nor after one of its last.
pub(super) fn project_on_way(
    graph: &Graph,
    way: &[EdgeId],
    (from_cm, to_cm): (u32, u32),
    position: Position,
) -> Option<(usize, Projection)> {
    let mut best: Option<(usize, Projection)> = None;
    for (i, edge) in way.iter().enumerate() {
        let min_cm = if i == 0 { from_cm } else { 0 };
        let max_cm = if i + 1 == way.len() { to_cm.max(min_cm) } else { u32::MAX };
        let projection = project(graph, *edge, position, (min_cm, max_cm));
        if best.is_none_or(|(_, b)| projection.off_cm < b.off_cm) {
            best = Some((i, projection));
        }
    }
    best
}
