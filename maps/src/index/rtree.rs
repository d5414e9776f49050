//! The same search over an R-tree in memory: slower and larger than the grid, and written by others, which makes it the
//! right thing to test the grid against.

use rstar::{AABB, RTree, RTreeObject};

use super::{Hit, NearRoads, Query, nearest_on_segment};
use crate::graph::Graph;
use crate::record::NONE;

/// An R-tree over all segments of a graph.
pub struct Rtree {
    tree: RTree<Segment>,
}

#[derive(Clone, Copy)]
struct Segment {
    road: u32,
    point: u32,
    low: [i64; 2],
    high: [i64; 2],
}

impl RTreeObject for Segment {
    type Envelope = AABB<[i64; 2]>;

    fn envelope(&self) -> Self::Envelope {
        AABB::from_corners(self.low, self.high)
    }
}

impl Rtree {
    pub fn of(graph: &Graph) -> Rtree {
        let view = graph.view();
        let mut segments = Vec::with_capacity(view.points.len());
        for road in 0..view.road_count() as u32 {
            let first = view.roads[road as usize].first_point;
            for (i, pair) in view.road_points(road).windows(2).enumerate() {
                let (a, b) = (pair[0], pair[1]);
                segments.push(Segment {
                    road,
                    point: first + i as u32,
                    low: [i64::from(a.lat_e7.min(b.lat_e7)), i64::from(a.lon_e7.min(b.lon_e7))],
                    high: [i64::from(a.lat_e7.max(b.lat_e7)), i64::from(a.lon_e7.max(b.lon_e7))],
                });
            }
        }
        Rtree { tree: RTree::bulk_load(segments) }
    }
}

impl NearRoads for Rtree {
    fn collect(&self, graph: &Graph, query: &Query, hits: &mut Vec<Hit>) {
        let view = graph.view();
        let corner = |p: protocol::Position| [i64::from(p.lat_e7), i64::from(p.lon_e7)];
        let around = AABB::from_corners(corner(query.south_west), corner(query.north_east));
        for segment in self.tree.locate_in_envelope_intersecting(around) {
            let road = view.roads[segment.road as usize];
            let access_of = |e: u32| if e == NONE { 0 } else { view.edges[e as usize].access & 0x0f };
            let access = (access_of(road.forward), access_of(road.backward));
            if (access.0 | access.1) & query.profile.bit() == 0 {
                continue;
            }
            let (a, b) = (view.points[segment.point as usize], view.points[segment.point as usize + 1]);
            let (a, b) = (query.plane.to_cm(a.position()), query.plane.to_cm(b.position()));
            let (off_cm_squared, share) = nearest_on_segment(a, b);
            if off_cm_squared <= query.radius_squared {
                Hit { road: segment.road, point: segment.point, off_cm_squared, share, access }.keep(hits);
            }
        }
    }
}
