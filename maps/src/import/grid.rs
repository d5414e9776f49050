//! Builds the segment index that `crate::index` searches.

use protocol::Position;
use rayon::prelude::*;

use super::ImportError;
use crate::index::{BLOCK_SHIFT, BLOCK_SIDE, box_sides, cell_of, joined_sides};
use crate::record::{BlockRecord, EdgeRecord, NONE, PointRecord, RUN_SEGMENTS_MAX, RoadRecord, RunRecord};

#[derive(Default)]
pub struct Grid {
    pub rows: Vec<u32>,
    pub columns: Vec<u32>,
    pub blocks: Vec<BlockRecord>,
    pub runs: Vec<RunRecord>,
}

/// A run before it is sorted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct DraftRun {
    /// Row and column of its block.
    block: (u32, u32),
    /// Within the block.
    cell: u8,
    road: u32,
    first_segment: u16,
    count: u8,
    sides: u32,
}

/// Who may use each road along its points (low four bits) and against them (high four).
pub fn road_access(edges: &[EdgeRecord], roads: &[RoadRecord]) -> Vec<u8> {
    let access_of = |edge: u32| if edge == NONE { 0 } else { edges[edge as usize].access & 0x0f };
    roads.iter().map(|road| access_of(road.forward) | access_of(road.backward) << 4).collect()
}

/// `roads` has one more than roads.
pub fn grid(access: &[u8], roads: &[RoadRecord], points: &[PointRecord]) -> Result<Grid, ImportError> {
    let mut drafts: Vec<DraftRun> = (0..roads.len().saturating_sub(1))
        .into_par_iter()
        .fold(Vec::new, |mut drafts, road| {
            let range = roads[road].first_point as usize..roads[road + 1].first_point as usize;
            add_road(road as u32, &points[range], &mut drafts);
            drafts
        })
        .flatten_iter()
        .collect();
    drafts.par_sort_unstable();
    let mut grid = Grid::default();
    let row_first = drafts.first().map_or(0, |draft| draft.block.0);
    grid.rows.push(row_first);
    for runs in drafts.chunk_by(|a, b| a.block == b.block) {
        let (row, column) = runs[0].block;
        while grid.rows.len() < (row - row_first) as usize + 2 {
            grid.rows.push(grid.blocks.len() as u32);
        }
        grid.add_block(column, runs, access, roads)?;
    }
    grid.rows.push(grid.blocks.len() as u32);
    Ok(grid)
}

impl Grid {
    fn add_block(
        &mut self,
        column: u32,
        runs: &[DraftRun],
        access: &[u8],
        roads: &[RoadRecord],
    ) -> Result<(), ImportError> {
        if runs.len() > usize::from(u16::MAX) {
            return Err(ImportError::TooLarge { what: "roads in one place", max: u64::from(u16::MAX) });
        }
        let mut block = BlockRecord { first_run: self.runs.len() as u32, ends: [0; 64] };
        for (end, run) in (1..).zip(runs) {
            let (number, road) = (run.road, roads[run.road as usize]);
            block.ends[usize::from(run.cell)] = end;
            let first_point = road.first_point + u32::from(run.first_segment);
            self.runs.push(RunRecord {
                points: first_point | u32::from(run.count - 1) << 30,
                sides: run.sides | u32::from(access[number as usize]) << 24,
                road: number,
            });
        }
        let mut end = 0;
        for slot in &mut block.ends {
            end = end.max(*slot); // an empty cell ends where the one before does
            *slot = end;
        }
        self.columns.push(column);
        self.blocks.push(block);
        Ok(())
    }
}

fn add_road(road: u32, points: &[PointRecord], drafts: &mut Vec<DraftRun>) {
    let before = drafts.len();
    for (segment, pair) in (0_u16..).zip(points.windows(2)) {
        for_each_cell(pair[0].position(), pair[1].position(), |(row, column), sides| {
            let block = (row >> BLOCK_SHIFT, column >> BLOCK_SHIFT);
            let cell = (row % BLOCK_SIDE * BLOCK_SIDE + column % BLOCK_SIDE) as u8;
            let own = &mut drafts[before..];
            let open = own.iter_mut().rev().take(OPEN_RUNS).find(|run| (run.block, run.cell) == (block, cell));
            match open {
                Some(run)
                    if run.first_segment + u16::from(run.count) == segment
                        && usize::from(run.count) < RUN_SEGMENTS_MAX =>
                {
                    run.count += 1;
                    run.sides = joined_sides(run.sides, sides);
                }
                _ => drafts.push(DraftRun { block, cell, road, first_segment: segment, count: 1, sides }),
            }
        });
    }
}

/// Calls for every cell that a segment touches, and now and then for one that it only comes close to, with the box of
/// its part there. One over the 180th meridian is looked at from both sides.
fn for_each_cell(a: Position, b: Position, mut touch: impl FnMut((u32, u32), u32)) {
    let (south, north) = if a.lat_e7 <= b.lat_e7 { (a, b) } else { (b, a) };
    let height = f64::from(north.lat_e7) - f64::from(south.lat_e7);
    let width = crate::geo::east_e7(south, north);
    let end = f64::from(south.lon_e7) + width;
    let lon_at = |lat_e7: f64| {
        let share = if height > 0.0 { ((lat_e7 - f64::from(south.lat_e7)) / height).clamp(0.0, 1.0) } else { 0.0 };
        f64::from(south.lon_e7) + width * share
    };
    let (row_south, row_north) = (cell_of(south).0, cell_of(north).0);
    for row in row_south..=row_north {
        let (bottom, top) = crate::index::row_edges_e7(row);
        let (left, right) = match row_south == row_north {
            true => (f64::from(south.lon_e7), end),
            false => (lon_at(bottom), lon_at(top)),
        };
        // One unit more to either side: rounding must not lose a cell.
        let (west, east) = (left.min(right) as i64 - 1, left.max(right) as i64 + 1);
        let (low, high) = (i64::from(south.lat_e7).max(bottom as i64), i64::from(north.lat_e7).min(top as i64));
        let column = |lon_e7: i64| {
            let lon_e7 = lon_e7.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32;
            cell_of(Position { lat_e7: 0, lon_e7 }).1
        };
        let mut side = |west: i64, east: i64| {
            for column in column(west)..=column(east) {
                touch((row, column), box_sides((row, column), (low, west), (high, east)));
            }
        };
        side(west, east);
        if east > HALF_E7 {
            side(-HALF_E7, east - 2 * HALF_E7);
        } else if west < -HALF_E7 {
            side(west + 2 * HALF_E7, HALF_E7);
        }
    }
}

const HALF_E7: i64 = 1_800_000_000;
/// How many of a road's last runs are looked through for one to lengthen.
const OPEN_RUNS: usize = 8;
