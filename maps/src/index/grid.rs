//! The index in the map file: a grid of cells about 45 m high and 45–90 m wide, in blocks of eight by eight, of which only
//! those that hold something are there, sorted by row and column: so a city and a file of many cities cost the same.
//! Each cell lists runs of neighbouring segments of one road; the points themselves lie next to each other.
//!
//! Sketch: 50 m around a position touch 3 × 3 cells with some 25 runs of 3 points, most of which the box rules out by
//! four comparisons. What takes the time is memory: a line for the block, one per row of cells, one or two per run.

use protocol::Position;

use super::{Hit, NearRoads, Query, nearest_on_segment};
use crate::graph::Graph;
use crate::record::{BlockRecord, PointRecord, RunRecord};
use crate::view::View;

/// The grid of the graph's own file.
#[derive(Clone, Copy, Debug)]
pub struct Grid;

impl NearRoads for Grid {
    fn collect(&self, graph: &Graph, query: &Query, hits: &mut Vec<Hit>) {
        let view = graph.view();
        let (low, high) = (cell_of(query.south_west), cell_of(query.north_east));
        let mut search = Search { view, query, hits };
        for row in low.0 >> BLOCK_SHIFT..=high.0 >> BLOCK_SHIFT {
            let blocks = row_blocks(view, row);
            let columns = &view.index_columns[blocks.clone()];
            let first = columns.partition_point(|column| *column < low.1 >> BLOCK_SHIFT);
            let columns = columns[first..].iter().take_while(|column| **column <= high.1 >> BLOCK_SHIFT);
            for (column, block) in columns.zip(&view.index_blocks[blocks.start + first..]) {
                search.visit_block(row, *column, block, low, high);
            }
        }
    }
}

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

fn row_blocks(view: &View<'_>, row: u32) -> std::ops::Range<usize> {
    let rows = &view.index_rows[1..];
    match row.checked_sub(view.index_rows[0]).map(|row| row as usize) {
        Some(row) if row + 1 < rows.len() => rows[row] as usize..rows[row + 1] as usize,
        _ => 0..0,
    }
}

struct Search<'a, 'q> {
    view: &'a View<'a>,
    query: &'q Query,
    hits: &'q mut Vec<Hit>,
}

impl Search<'_, '_> {
    /// The cells of a block from `low` to `high`: those of one row lie together, and so do their runs.
    fn visit_block(&mut self, row: u32, column: u32, block: &BlockRecord, low: (u32, u32), high: (u32, u32)) {
        let within = |cell: u32, block: u32| cell.saturating_sub(block << BLOCK_SHIFT).min(BLOCK_SIDE - 1) as usize;
        let (left, right) = (within(low.1, column), within(high.1, column));
        for row in within(low.0, row)..=within(high.0, row) {
            let (first, last) = (row * BLOCK_SIDE as usize + left, row * BLOCK_SIDE as usize + right);
            let start = if first == 0 { 0 } else { block.ends[first - 1] };
            let run = |offset: u16| block.first_run as usize + usize::from(offset);
            for run in &self.view.index_runs[run(start)..run(block.ends[last])] {
                if run.access & self.query.profile.bit() != 0 {
                    self.visit(run);
                }
            }
        }
    }

    #[inline]
    fn visit(&mut self, run: &RunRecord) {
        let first = run.first_point;
        let points = &self.view.points[first as usize..=first as usize + usize::from(run.count)];
        let mut best = Hit { road: NOWHERE, point: NOWHERE, off_cm_squared: self.query.radius_squared, share: 0.0 };
        let mut sides = self.sides(&points[0]);
        for (i, pair) in points.windows(2).enumerate() {
            let sides_before = std::mem::replace(&mut sides, self.sides(&pair[1]));
            if sides_before & sides != 0 {
                continue; // both ends lie beyond one side of the box
            }
            let (a, b) = (self.query.plane.to_cm(pair[0].position()), self.query.plane.to_cm(pair[1].position()));
            let (off_cm_squared, share) = nearest_on_segment(a, b);
            let is_first = best.point == NOWHERE && off_cm_squared == best.off_cm_squared;
            if off_cm_squared < best.off_cm_squared || is_first {
                best = Hit { road: NOWHERE, point: first + i as u32, off_cm_squared, share };
            }
        }
        if best.point != NOWHERE {
            best.road = self.view.road_of_point(first);
            best.keep(self.hits);
        }
    }

    /// Beyond which sides of the box a point lies, as bits.
    #[inline]
    fn sides(&self, point: &PointRecord) -> u8 {
        u8::from(point.lat_e7 < self.query.south_west.lat_e7)
            | u8::from(point.lat_e7 > self.query.north_east.lat_e7) << 1
            | u8::from(point.lon_e7 < self.query.south_west.lon_e7) << 2
            | u8::from(point.lon_e7 > self.query.north_east.lon_e7) << 3
    }
}

const ROW_SHIFT: u32 = 12; // 4,096 × 1.11 cm = 45.5 m
const COLUMN_SHIFT: u32 = 13; // 91 m at the equator, 69 m in Porto, 46 m in Helsinki
/// Cells along a block's side.
pub const BLOCK_SIDE: u32 = 1 << BLOCK_SHIFT;
pub const BLOCK_SHIFT: u32 = 3;
const NOWHERE: u32 = u32::MAX;
