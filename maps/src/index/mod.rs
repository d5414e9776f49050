//! Which roads are near? Two answers stand behind one trait: the grid that lies in the map file, and an R-tree in memory
//! (crate `rstar`), which the grid is tested against and which serves sets that change.

mod grid;
mod rtree;

use std::cell::RefCell;

use protocol::Position;

use crate::class::Profile;
use crate::geo::{self, Plane};
use crate::graph::{Candidate, EdgeId, Graph};
use crate::record::{COPIED, NONE, PointRecord};

pub use grid::Grid;
pub(crate) use grid::{BLOCK_SHIFT, BLOCK_SIDE, box_sides, cell_of, has_roads_around, joined_sides, row_edges_e7};
pub use rtree::Rtree;

/// Finds the roads near a position.
pub trait NearRoads {
    /// Adds the nearest place on each road within the radius that the profile may use in some direction.
    fn collect(&self, graph: &Graph, query: &Query, hits: &mut Vec<Hit>);
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    plane: Plane,
    radius_squared: f64,
    profile: Profile,
    /// The corners of the box around the circle.
    south_west: Position,
    north_east: Position,
}

impl Query {
    fn of(position: Position, radius_cm: f64, profile: Profile) -> Query {
        let plane = Plane::at(position);
        let up = (radius_cm / geo::CM_PER_E7) as i32 + 1;
        let right = (radius_cm / plane.east_cm_per_e7()).min(1.8e9) as i32 + 1;
        let corner = |sign: i32| Position {
            lat_e7: position.lat_e7.saturating_add(sign * up),
            lon_e7: position.lon_e7.saturating_add(sign * right),
        };
        let radius_squared = radius_cm * radius_cm;
        Query { plane, radius_squared, profile, south_west: corner(-1), north_east: corner(1) }
    }
}

/// The nearest place on one road.
#[derive(Clone, Copy, Debug)]
pub struct Hit {
    road: u32,
    /// Of the segment's first point within all points.
    point: u32,
    off_cm_squared: f64,
    /// How far along the segment, 0 to 1.
    share: f64,
    /// Who may use the road along its points, and against them.
    access: (u8, u8),
}

impl Query {
    /// The part of the box that lies beyond the 180th meridian, asked for apart.
    fn beyond_180(&self) -> Option<Query> {
        let shifted = |by: i64| {
            let lon = |p: Position| (i64::from(p.lon_e7) + by).clamp(-LON_E7_MAX, LON_E7_MAX) as i32;
            let moved = |p: Position| Position { lon_e7: lon(p), ..p };
            Query { south_west: moved(self.south_west), north_east: moved(self.north_east), ..*self }
        };
        let (west, east) = (i64::from(self.south_west.lon_e7), i64::from(self.north_east.lon_e7));
        if east >= LON_E7_MAX {
            return Some(shifted(-geo::TURN_E7));
        }
        (west <= -LON_E7_MAX).then(|| shifted(geo::TURN_E7))
    }
}

impl Hit {
    /// A road may be found several times; the nearest place counts, the earlier one of two that are as near.
    #[inline]
    fn keep(self, hits: &mut Vec<Hit>) {
        match hits.iter_mut().find(|kept| kept.road == self.road) {
            None => hits.push(self),
            Some(kept) => {
                let is_nearer = self.off_cm_squared < kept.off_cm_squared;
                if is_nearer || (self.off_cm_squared == kept.off_cm_squared && self.point < kept.point) {
                    *kept = self;
                }
            }
        }
    }
}

thread_local! {
    static HITS: RefCell<Vec<Hit>> = const { RefCell::new(Vec::new()) };
}

/// The best place on each directed edge near a position, by any index; see `Graph::candidates`.
pub fn candidates(
    graph: &Graph,
    index: &impl NearRoads,
    position: Position,
    radius_m: f64,
    profile: Profile,
    out: &mut Vec<Candidate>,
) {
    out.clear();
    if !position.is_on_earth() || radius_m.is_nan() {
        return;
    }
    let query = Query::of(position, (radius_m * 100.0).clamp(0.0, RADIUS_CM_MAX), profile);
    let cos_lat = query.plane.east_cm_per_e7() / geo::CM_PER_E7;
    HITS.with_borrow_mut(|hits| {
        hits.clear();
        index.collect(graph, &query, hits);
        if let Some(beyond) = query.beyond_180() {
            index.collect(graph, &beyond, hits);
        }
        for hit in hits.iter() {
            push_candidates(graph, profile, cos_lat, hit, out);
        }
    });
    out.sort_unstable_by_key(|c| (u64::from(c.off_cm) << 32) | u64::from(c.edge.0));
}

/// Squared distance from the origin to a segment, and where along it, 0 to 1.
#[inline]
fn nearest_on_segment(a: (f64, f64), b: (f64, f64)) -> (f64, f64) {
    let (dx, dy) = (b.0 - a.0, b.1 - a.1);
    let length_squared = dx * dx + dy * dy;
    let share = if length_squared > 0.0 { (-(a.0 * dx + a.1 * dy) / length_squared).clamp(0.0, 1.0) } else { 0.0 };
    let (x, y) = (a.0 + share * dx, a.1 + share * dy);
    (x * x + y * y, share)
}

fn push_candidates(graph: &Graph, profile: Profile, cos_lat: f64, hit: &Hit, out: &mut Vec<Candidate>) {
    let view = graph.view();
    let road = view.roads[hit.road as usize];
    let (a, b) = (view.points[hit.point as usize], view.points[hit.point as usize + 1]);
    let last = view.roads[hit.road as usize + 1].first_point - 1;
    let length_cm = view.points[last as usize].along_cm;
    let (forward, backward) = candidate_pair(hit, &a, &b, cos_lat, length_cm);
    for (edge, access, place) in [(road.forward, hit.access.0, forward), (road.backward, hit.access.1, backward)] {
        if access & profile.bit() == 0 || edge == NONE {
            continue;
        }
        out.push(Candidate { edge: EdgeId(edge), ..place });
        if road.way & COPIED != 0 {
            let copies = graph.copies(EdgeId(edge)).filter(|copy| graph.allows(*copy, profile));
            out.extend(copies.map(|copy| Candidate { edge: copy, ..place }));
        }
    }
}

/// The place seen in both directions.
#[inline]
fn candidate_pair(hit: &Hit, a: &PointRecord, b: &PointRecord, cos_lat: f64, length_cm: u32) -> (Candidate, Candidate) {
    let span = f64::from(b.along_cm.saturating_sub(a.along_cm));
    let forward = Candidate {
        edge: EdgeId(0),
        along_cm: (a.along_cm + geo::whole(span * hit.share) as u32).min(length_cm),
        off_cm: geo::whole(hit.off_cm_squared.sqrt()) as u32,
        position: geo::between(a.position(), b.position(), hit.share),
        heading_cdeg: geo::heading_scaled_cdeg(a.position(), b.position(), cos_lat),
    };
    let backward = Candidate {
        along_cm: length_cm - forward.along_cm,
        heading_cdeg: (forward.heading_cdeg + 18_000) % 36_000,
        ..forward
    };
    (forward, backward)
}

const LON_E7_MAX: i64 = 1_800_000_000;
/// Beyond 5 km an answer would be most of the map.
const RADIUS_CM_MAX: f64 = 500_000.0;
