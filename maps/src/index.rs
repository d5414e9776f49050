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
    let view = graph.view();
    HITS.with_borrow_mut(|hits| {
        hits.clear();
        collect_hits(view, position, radius_cm, profile, hits);
        for hit in hits.iter() {
            push_candidates(graph, profile, hit, out);
        }
    });
    out.sort_unstable_by_key(|c| (u64::from(c.off_cm) << 32) | u64::from(c.edge.0));
}

fn collect_hits(view: &View<'_>, position: Position, radius_cm: f64, profile: Profile, hits: &mut Vec<Hit>) {
    let plane = Plane::at(position);
    let up = (radius_cm / geo::CM_PER_E7).ceil() as i32;
    let right = (radius_cm / plane.east_cm_per_e7()).ceil().min(1.8e9) as i32;
    let corner = |sign: i32| Position {
        lat_e7: position.lat_e7.saturating_add(sign * up),
        lon_e7: position.lon_e7.saturating_add(sign * right),
    };
    let ((row_first, column_first), (row_last, column_last)) = (cell_of(corner(-1)), cell_of(corner(1)));
    let mut search = Search { view, plane, radius_cm, radius_squared: radius_cm * radius_cm, profile, hits };
    for row in row_first..=row_last {
        let cells = row_cells(view, row);
        let mut at = cells.start + lower_bound(&view.index_cells[cells.clone()], column_first);
        while at < cells.end && view.index_cells[at].column <= column_last {
            let runs = view.index_cells[at].first_run as usize..view.index_cells[at + 1].first_run as usize;
            for run in &view.index_runs[runs] {
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
    radius_cm: f64,
    radius_squared: f64,
    profile: Profile,
    hits: &'h mut Vec<Hit>,
}

impl Search<'_, '_> {
    #[inline]
    fn visit(&mut self, run: &RunRecord) {
        let first = self.view.roads[run.road as usize].first_point + u32::from(run.first);
        let points = &self.view.points[first as usize..=first as usize + usize::from(run.count)];
        let mut best = Hit { road: run.road, point: 0, off_cm_squared: f64::INFINITY, share: 0.0 };
        let mut a = self.plane.to_cm(points[0].position());
        for (i, point) in points[1..].iter().enumerate() {
            let b = self.plane.to_cm(point.position());
            if self.may_be_near(a, b) {
                let (off_cm_squared, share) = nearest_on_segment(a, b);
                if off_cm_squared < best.off_cm_squared {
                    best = Hit { point: first + i as u32, off_cm_squared, share, ..best };
                }
            }
            a = b;
        }
        if best.off_cm_squared <= self.radius_squared && self.is_open(run.road) {
            self.keep(best);
        }
    }

    #[inline]
    fn may_be_near(&self, a: (f64, f64), b: (f64, f64)) -> bool {
        let r = self.radius_cm;
        a.0.min(b.0) <= r && a.0.max(b.0) >= -r && a.1.min(b.1) <= r && a.1.max(b.1) >= -r
    }

    fn is_open(&self, road: u32) -> bool {
        let road = self.view.roads[road as usize];
        let is_open = |e: u32| e != NONE && self.view.edges[e as usize].access & self.profile.bit() != 0;
        is_open(road.forward) || is_open(road.backward)
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

fn push_candidates(graph: &Graph, profile: Profile, hit: &Hit, out: &mut Vec<Candidate>) {
    let view = graph.view();
    let road = view.roads[hit.road as usize];
    let (a, b) = (view.points[hit.point as usize], view.points[hit.point as usize + 1]);
    let (forward, backward) = candidate_pair(hit, &a, &b);
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
fn candidate_pair(hit: &Hit, a: &PointRecord, b: &PointRecord) -> (Candidate, Candidate) {
    let span = f64::from(b.along_cm.saturating_sub(a.along_cm));
    let forward = Candidate {
        edge: EdgeId(0),
        along_cm: a.along_cm + (span * hit.share).round() as u32,
        off_cm: hit.off_cm_squared.sqrt().round() as u32,
        position: between(a.position(), b.position(), hit.share),
        heading_cdeg: geo::heading_cdeg(a.position(), b.position()),
    };
    let backward = Candidate { heading_cdeg: (forward.heading_cdeg + 18_000) % 36_000, ..forward };
    (forward, backward)
}

const ROW_SHIFT: u32 = 12; // 4,096 × 1.11 cm = 45.5 m
const COLUMN_SHIFT: u32 = 13; // 91 m at the equator, 69 m in Porto, 46 m in Helsinki
/// Beyond 5 km an answer would be most of the map.
const RADIUS_CM_MAX: f64 = 500_000.0;
