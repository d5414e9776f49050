//! Which roads are near? A grid of cells about 45 m high and 45–90 m wide, of which only those that hold something
//! are in the file: rows by number, cells of a row sorted, so that a city and a file of many cities cost the same.
//! Each cell lists runs of neighbouring segments of one road; the points themselves lie next to each other.
//!
//! Sketch: 50 m around a position touch 3 × 3 cells, about 15 runs of 3 points, so some 50 distances of 3 ns.

use std::cell::RefCell;

use protocol::Position;

use crate::class::Profile;
use crate::geo::{self, Plane};
use crate::graph::{Candidate, EdgeId, Graph, between};
use crate::record::{CellRecord, NONE, PointRecord, RunRecord};
use crate::view::View;

/// Row and column of a position. Adding the half of the world makes both positive.
pub fn cell_of(position: Position) -> (u32, u32) {
    let row = (i64::from(position.lat_e7) + 900_000_000).clamp(0, 1_800_000_000) as u32 >> ROW_SHIFT;
    let column = (i64::from(position.lon_e7) + 1_800_000_000).clamp(0, 3_600_000_000) as u32 >> COLUMN_SHIFT;
    (row, column)
}

/// The latitudes between which a row lies.
pub fn row_edges_e7(row: u32) -> (f64, f64) {
    let bottom = f64::from(row) * f64::from(1 << ROW_SHIFT) - 900_000_000.0;
    (bottom, bottom + f64::from(1 << ROW_SHIFT))
}

/// The nearest place on one road.
#[derive(Clone, Copy)]
struct Hit {
    road: u32,
    /// Of the segment's first point within all points.
    point: u32,
    off_cm_squared: f64,
    /// How far along the segment, 0 to 1.
    share: f64,
}

thread_local! {
    static HITS: RefCell<Vec<Hit>> = const { RefCell::new(Vec::new()) };
}

pub fn candidates(graph: &Graph, position: Position, radius_m: f64, profile: Profile, out: &mut Vec<Candidate>) {
    out.clear();
    let radius_cm = (radius_m * 100.0).clamp(0.0, RADIUS_CM_MAX);
    if !position.is_on_earth() || radius_cm.is_nan() {
        return;
    }
    let plane = Plane::at(position);
    let cos_lat = plane.east_cm_per_e7() / geo::CM_PER_E7;
    HITS.with_borrow_mut(|hits| {
        hits.clear();
        collect_hits(graph.view(), position, plane, radius_cm, profile, hits);
        for hit in hits.iter() {
            push_candidates(graph, profile, cos_lat, hit, out);
        }
    });
    out.sort_unstable_by_key(|c| (u64::from(c.off_cm) << 32) | u64::from(c.edge.0));
}

fn collect_hits(
    view: &View<'_>,
    position: Position,
    plane: Plane,
    radius_cm: f64,
    profile: Profile,
    hits: &mut Vec<Hit>,
) {
    let up = (radius_cm / geo::CM_PER_E7).ceil() as i32;
    let right = (radius_cm / plane.east_cm_per_e7()).ceil().min(1.8e9) as i32;
    let corner = |sign: i32| Position {
        lat_e7: position.lat_e7.saturating_add(sign * up),
        lon_e7: position.lon_e7.saturating_add(sign * right),
    };
    let ((row_first, column_first), (row_last, column_last)) = (cell_of(corner(-1)), cell_of(corner(1)));
    let mut search = Search {
        view,
        plane,
        south_west: corner(-1),
        north_east: corner(1),
        radius_squared: radius_cm * radius_cm,
        hits,
    };
    for row in row_first..=row_last {
        let cells = row_cells(view, row);
        let mut at = cells.start + lower_bound(&view.index_cells[cells.clone()], column_first);
        while at < cells.end && view.index_cells[at].column <= column_last {
            let runs = view.index_cells[at].first_run as usize..view.index_cells[at + 1].first_run as usize;
            for run in view.index_runs[runs].iter().filter(|run| run.access & profile.bit() != 0) {
                search.visit(run);
            }
            at += 1;
        }
    }
}

fn row_cells(view: &View<'_>, row: u32) -> std::ops::Range<usize> {
    let rows = &view.index_rows[1..];
    match row.checked_sub(view.index_rows[0]).map(|row| row as usize) {
        Some(row) if row + 1 < rows.len() => rows[row] as usize..rows[row + 1] as usize,
        _ => 0..0,
    }
}

fn lower_bound(cells: &[CellRecord], column: u32) -> usize {
    cells.partition_point(|cell| cell.column < column)
}

struct Search<'a, 'h> {
    view: &'a View<'a>,
    plane: Plane,
    south_west: Position,
    north_east: Position,
    radius_squared: f64,
    hits: &'h mut Vec<Hit>,
}

impl Search<'_, '_> {
    #[inline]
    fn visit(&mut self, run: &RunRecord) {
        let first = self.view.roads[run.road as usize].first_point + u32::from(run.first);
        let points = &self.view.points[first as usize..=first as usize + usize::from(run.count)];
        let mut best = Hit { road: run.road, point: 0, off_cm_squared: self.radius_squared, share: 0.0 };
        let mut is_near = false;
        let mut sides = self.sides(&points[0]);
        for (i, pair) in points.windows(2).enumerate() {
            let sides_before = std::mem::replace(&mut sides, self.sides(&pair[1]));
            if sides_before & sides != 0 {
                continue; // both ends lie beyond one side of the box
            }
            let (a, b) = (self.plane.to_cm(pair[0].position()), self.plane.to_cm(pair[1].position()));
            let (off_cm_squared, share) = nearest_on_segment(a, b);
            if off_cm_squared < best.off_cm_squared || (off_cm_squared == best.off_cm_squared && !is_near) {
                best = Hit { point: first + i as u32, off_cm_squared, share, ..best };
                is_near = true;
            }
        }
        if is_near {
            self.keep(best);
        }
    }

    /// Beyond which sides of the box a point lies, as bits.
    #[inline]
    fn sides(&self, point: &PointRecord) -> u8 {
        u8::from(point.lat_e7 < self.south_west.lat_e7)
            | u8::from(point.lat_e7 > self.north_east.lat_e7) << 1
            | u8::from(point.lon_e7 < self.south_west.lon_e7) << 2
            | u8::from(point.lon_e7 > self.north_east.lon_e7) << 3
    }

    /// A road may come from several cells; the nearest place counts, the earlier one of two that are as near.
    fn keep(&mut self, hit: Hit) {
        match self.hits.iter_mut().find(|kept| kept.road == hit.road) {
            None => self.hits.push(hit),
            Some(kept) => {
                let is_nearer = hit.off_cm_squared < kept.off_cm_squared;
                if is_nearer || (hit.off_cm_squared == kept.off_cm_squared && hit.point < kept.point) {
                    *kept = hit;
                }
            }
        }
    }
}

/// Squared distance from the origin to a segment, and where along it, 0 to 1.
#[inline]
pub fn nearest_on_segment(a: (f64, f64), b: (f64, f64)) -> (f64, f64) {
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
    let (forward, backward) = candidate_pair(hit, &a, &b, cos_lat);
    let mut push = |edge: u32, mut candidate: Candidate, is_backward: bool| {
        if edge == NONE || view.edges[edge as usize].access & profile.bit() == 0 {
            return;
        }
        candidate.edge = EdgeId(edge);
        let length_cm = view.edges[edge as usize].length_cm;
        candidate.along_cm = candidate.along_cm.min(length_cm);
        if is_backward {
            candidate.along_cm = length_cm - candidate.along_cm;
        }
        out.push(candidate);
    };
    push(road.forward, forward, false);
    push(road.backward, backward, true);
}

/// The place seen in both directions, both with the distance along the road's points.
fn candidate_pair(hit: &Hit, a: &PointRecord, b: &PointRecord, cos_lat: f64) -> (Candidate, Candidate) {
    let span = f64::from(b.along_cm.saturating_sub(a.along_cm));
    let forward = Candidate {
        edge: EdgeId(0),
        along_cm: a.along_cm + geo::whole(span * hit.share) as u32,
        off_cm: geo::whole(hit.off_cm_squared.sqrt()) as u32,
        position: between(a.position(), b.position(), hit.share),
        heading_cdeg: geo::heading_scaled_cdeg(a.position(), b.position(), cos_lat),
    };
    let backward = Candidate { heading_cdeg: (forward.heading_cdeg + 18_000) % 36_000, ..forward };
    (forward, backward)
}

const ROW_SHIFT: u32 = 12; // 4,096 × 1.11 cm = 45.5 m
const COLUMN_SHIFT: u32 = 13; // 91 m at the equator, 69 m in Porto, 46 m in Helsinki
/// Beyond 5 km an answer would be most of the map.
const RADIUS_CM_MAX: f64 = 500_000.0;
