//! The index in the map file: a grid of cells some 91 m high and 91 to 180 m wide, in blocks of eight by eight, of which
//! only those that hold something are there, sorted by row and column: so a city and a file of many cities cost the
//! same. Each cell lists runs of up to four neighbouring segments of one road, in twelve bytes: where their points are,
//! who may use them, and the box of their part within the cell, in steps of a 32nd of it.
//!
//! Sketch: 50 m around a position touch four cells with some 45 runs. Four of a box's sides lie in one word, five bits
//! each with a free one above, so that one subtraction compares all four; a pass without a branch marks the runs whose
//! box meets the square asked about, some eight. Only those are looked at point by point. What takes the time is
//! memory, one line after the other: row, block, runs, points, road. So the first points of all those runs are fetched,
//! side by side, before the first run is looked at.

use std::cell::RefCell;

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
        let access = (u32::from(query.profile.bit()) * 0x11) << 24;
        MET.with_borrow_mut(|met| {
            met.clear();
            let mut search = Search { view, query, access, met };
            for row in low.0 >> BLOCK_SHIFT..=high.0 >> BLOCK_SHIFT {
                let blocks = row_blocks(view, row);
                let columns = &view.index_columns[blocks.clone()];
                let first = columns.partition_point(|column| *column < low.1 >> BLOCK_SHIFT);
                let columns = columns[first..].iter().take_while(|column| **column <= high.1 >> BLOCK_SHIFT);
                for (column, block) in columns.zip(&view.index_blocks[blocks.start + first..]) {
                    search.visit_block(row, *column, block, low, high);
                }
            }
            for run in met.iter() {
                look_at(view, query, run, hits);
            }
        });
    }
}

/// A run whose box meets the square, with what looking at it begins with.
#[derive(Clone, Copy)]
struct Met {
    run: RunRecord,
    first: PointRecord,
}

thread_local! {
    static MET: RefCell<Vec<Met>> = const { RefCell::new(Vec::new()) };
}

/// Row and column of a position. Adding the half of the world makes both positive.
pub fn cell_of(position: Position) -> (u32, u32) {
    let row = (i64::from(position.lat_e7) + HALF_LAT).clamp(0, 2 * HALF_LAT) as u32 >> ROW_SHIFT;
    let column = (i64::from(position.lon_e7) + HALF_LON).clamp(0, 2 * HALF_LON) as u32 >> COLUMN_SHIFT;
    (row, column)
}

/// The latitudes between which a row lies.
pub fn row_edges_e7(row: u32) -> (f64, f64) {
    let bottom = f64::from(row) * f64::from(1 << ROW_SHIFT) - HALF_LAT as f64;
    (bottom, bottom + f64::from(1 << ROW_SHIFT))
}

/// The step within a row, or within a column, in which a coordinate lies: 0 to 31 inside, the nearest of them outside.
#[inline]
fn steps(e7: i64, half: i64, cell: u32, shift: u32) -> u32 {
    let within = e7 + half - (i64::from(cell) << shift);
    (within >> (shift - STEP_BITS)).clamp(0, STEP_MAX as i64) as u32
}

/// Four sides in one word. Those to the north and east count from the far end: a box meets a square where each of its
/// sides is at most the opposite one of the square.
#[inline]
const fn sides(south: u32, west: u32, north: u32, east: u32) -> u32 {
    south | west << 6 | (STEP_MAX - north) << 12 | (STEP_MAX - east) << 18
}

/// What a run's record says of the box around its part within a cell.
pub fn box_sides(cell: (u32, u32), low: (i64, i64), high: (i64, i64)) -> u32 {
    let (row, column) = cell;
    let lat = |e7| steps(e7, HALF_LAT, row, ROW_SHIFT);
    let lon = |e7| steps(e7, HALF_LON, column, COLUMN_SHIFT);
    sides(lat(low.0), lon(low.1), lat(high.0), lon(high.1))
}

/// The box around two boxes in one cell: of each side the outer one.
pub fn joined_sides(a: u32, b: u32) -> u32 {
    let lane = |sides: u32, i: u32| sides >> (6 * i) & STEP_MAX;
    (0..4).fold(0, |whole, i| whole | lane(a, i).min(lane(b, i)) << (6 * i))
}

fn row_blocks(view: &View<'_>, row: u32) -> std::ops::Range<usize> {
    let rows = &view.index_rows[1..];
    match row.checked_sub(view.index_rows[0]).map(|row| row as usize) {
        Some(row) if row + 1 < rows.len() => rows[row] as usize..rows[row + 1] as usize,
        _ => 0..0,
    }
}

/// Whether any road lies in the blocks around a position, some four kilometres to each side.
pub fn has_roads_around(view: &View<'_>, position: Position) -> bool {
    let (row, column) = cell_of(position);
    let (row, column) = (row >> BLOCK_SHIFT, column >> BLOCK_SHIFT);
    let columns_around = ((2 * HALF_LON as u32) >> COLUMN_SHIFT) >> BLOCK_SHIFT;
    (row.saturating_sub(AROUND_ROWS)..=row + AROUND_ROWS).any(|row| {
        let columns = &view.index_columns[row_blocks(view, row)];
        let holds = |west: u32, east: u32| {
            let first = columns.partition_point(|column| *column < west);
            columns.get(first).is_some_and(|column| *column <= east)
        };
        let (west, east) = (column.saturating_sub(AROUND_COLUMNS), column + AROUND_COLUMNS);
        // The columns on both sides of the 180th meridian are the first and the last.
        holds(west, east)
            || column < AROUND_COLUMNS && holds(columns_around - (AROUND_COLUMNS - column), columns_around)
            || east > columns_around && holds(0, east - columns_around)
    })
}

struct Search<'a, 'q> {
    view: &'a View<'a>,
    query: &'q Query,
    /// The profile's bits as a run's record has them.
    access: u32,
    met: &'q mut Vec<Met>,
}

impl Search<'_, '_> {
    fn visit_block(&mut self, row: u32, column: u32, block: &BlockRecord, low: (u32, u32), high: (u32, u32)) {
        let within = |cell: u32, block: u32| cell.saturating_sub(block << BLOCK_SHIFT).min(BLOCK_SIDE - 1);
        let (south_west, north_east) = (self.query.south_west, self.query.north_east);
        for y in within(low.0, row)..=within(high.0, row) {
            let cell_row = (row << BLOCK_SHIFT) + y;
            let lat = |e7: i32| steps(i64::from(e7), HALF_LAT, cell_row, ROW_SHIFT);
            let (south, north) = (lat(south_west.lat_e7), lat(north_east.lat_e7));
            for x in within(low.1, column)..=within(high.1, column) {
                let cell_column = (column << BLOCK_SHIFT) + x;
                let lon = |e7: i32| steps(i64::from(e7), HALF_LON, cell_column, COLUMN_SHIFT);
                let (west, east) = (lon(south_west.lon_e7), lon(north_east.lon_e7));
                let cell = (y * BLOCK_SIDE + x) as usize;
                let start = if cell == 0 { 0 } else { block.ends[cell - 1] };
                let run = |offset: u16| block.first_run as usize + usize::from(offset);
                let runs = &self.view.index_runs[run(start)..run(block.ends[cell])];
                self.visit_cell(runs, sides(north, east, south, west));
            }
        }
    }

    /// `most` is the square's sides, each in the place of the box's opposite one.
    #[inline]
    fn visit_cell(&mut self, runs: &[RunRecord], most: u32) {
        for some in runs.chunks(u64::BITS as usize) {
            let mut met = 0_u64;
            for (i, run) in some.iter().enumerate() {
                let meets = ((most | FREE_BITS) - (run.sides & !(FREE_BITS | 0xff << 24))) & FREE_BITS == FREE_BITS;
                met |= u64::from(meets & (run.sides & self.access != 0)) << i;
            }
            while met != 0 {
                let run = some[met.trailing_zeros() as usize];
                self.met.push(Met { run, first: self.view.points[run.first_point() as usize] });
                met &= met - 1;
            }
        }
    }
}

#[inline]
fn look_at(view: &View<'_>, query: &Query, met: &Met, hits: &mut Vec<Hit>) {
    let first = met.run.first_point();
    let rest = &view.points[first as usize + 1..=(first + met.run.count()) as usize];
    let (mut nearest, mut at, mut at_share) = (f64::INFINITY, 0, 0.0);
    let mut a = query.plane.to_cm(met.first.position());
    for (i, point) in (first..).zip(rest) {
        let b = query.plane.to_cm(point.position());
        let (off_cm_squared, share) = nearest_on_segment(a, b);
        if off_cm_squared < nearest {
            (nearest, at, at_share) = (off_cm_squared, i, share);
        }
        a = b;
    }
    if nearest <= query.radius_squared {
        Hit { road: met.run.road, point: at, off_cm_squared: nearest, share: at_share, access: met.run.access() }
            .keep(hits);
    }
}

const HALF_LAT: i64 = 900_000_000;
const HALF_LON: i64 = 1_800_000_000;
const ROW_SHIFT: u32 = 13; // 8,192 × 1.11 cm = 91 m
const COLUMN_SHIFT: u32 = 14; // 182 m at the equator, 138 m in Porto, 92 m in Helsinki
const STEP_BITS: u32 = 5;
const STEP_MAX: u32 = (1 << STEP_BITS) - 1;
/// The free bit above each of the four sides.
const FREE_BITS: u32 = 1 << 5 | 1 << 11 | 1 << 17 | 1 << 23;
/// Blocks of 730 m.
const AROUND_ROWS: u32 = 6;
/// Blocks of 730 to 1,460 m.
const AROUND_COLUMNS: u32 = 4;
/// Cells along a block's side.
pub const BLOCK_SIDE: u32 = 1 << BLOCK_SHIFT;
pub const BLOCK_SHIFT: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_subtraction_says_whether_a_box_meets_a_square() {
        let spans: Vec<(u32, u32)> =
            (0..=STEP_MAX).step_by(5).flat_map(|a| (a..=STEP_MAX).step_by(6).map(move |b| (a, b))).collect();
        for (south, north) in &spans {
            for (west, east) in &spans {
                let bounds = sides(*south, *west, *north, *east) | 0xa5 << 24;
                for (low, high) in &spans {
                    let most = sides(*high, *high, *low, *low);
                    let meets = ((most | FREE_BITS) - (bounds & !(FREE_BITS | 0xff << 24))) & FREE_BITS == FREE_BITS;
                    assert_eq!(meets, south <= high && north >= low && west <= high && east >= low);
                }
            }
        }
    }

    #[test]
    fn a_joined_box_holds_both() {
        let cell = (100, 200);
        let at = |row: i64, column: i64| {
            ((100 << ROW_SHIFT) - HALF_LAT + row * 256, (200 << COLUMN_SHIFT) - HALF_LON + column * 512)
        };
        let (a, b) = (box_sides(cell, at(3, 9), at(7, 12)), box_sides(cell, at(5, -80), at(90, 10)));

        assert_eq!(joined_sides(a, b), box_sides(cell, at(3, 0), at(31, 12)));
    }
}
