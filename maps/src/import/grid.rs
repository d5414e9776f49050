//! Builds the segment index that `crate::index` searches.

use protocol::Position;
use rayon::prelude::*;

use super::ImportError;
use crate::index::{BLOCK_SHIFT, BLOCK_SIDE, cell_of};
use crate::record::{BlockRecord, EdgeRecord, NONE, POINTS_PER_ROAD_MARK, PointRecord, RoadRecord, RunRecord};

#[derive(Default)]
pub struct Grid {
    pub rows: Vec<u32>,
    pub columns: Vec<u32>,
    pub blocks: Vec<BlockRecord>,
    pub runs: Vec<RunRecord>,
    pub point_roads: Vec<u32>,
}

/// A run before it is sorted: row and column of its block, cell within it, road, first segment and count.
type DraftRun = ((u32, u32), u8, u32, u16, u8);

/// `roads` has one more than roads.
pub fn grid(edges: &[EdgeRecord], roads: &[RoadRecord], points: &[PointRecord]) -> Result<Grid, ImportError> {
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
    let mut grid = Grid { point_roads: point_roads(roads, points.len()), ..Grid::default() };
    let row_first = drafts.first().map_or(0, |draft| draft.0.0);
    grid.rows.push(row_first);
    for runs in drafts.chunk_by(|a, b| a.0 == b.0) {
        let (row, column) = runs[0].0;
        while grid.rows.len() < (row - row_first) as usize + 2 {
            grid.rows.push(grid.blocks.len() as u32);
        }
        grid.add_block(column, runs, edges, roads)?;
    }
    grid.rows.push(grid.blocks.len() as u32);
    Ok(grid)
}

/// The road of every so many points.
fn point_roads(roads: &[RoadRecord], points: usize) -> Vec<u32> {
    let mut road = 0;
    let road_of = |point: usize| {
        while roads[road + 1].first_point as usize <= point {
            road += 1;
        }
        road as u32
    };
    (0..points).step_by(POINTS_PER_ROAD_MARK).map(road_of).collect()
}

impl Grid {
    fn add_block(
        &mut self,
        column: u32,
        runs: &[DraftRun],
        edges: &[EdgeRecord],
        roads: &[RoadRecord],
    ) -> Result<(), ImportError> {
        if runs.len() > usize::from(u16::MAX) {
            return Err(ImportError::TooLarge { what: "roads in one place", max: u64::from(u16::MAX) });
        }
        let access_of = |edge: u32| if edge == NONE { 0 } else { edges[edge as usize].access & 0x0f };
        let mut block = BlockRecord { first_run: self.runs.len() as u32, ends: [0; 64] };
        for (end, (_, cell, road, first, count)) in (1..).zip(runs) {
            let road = roads[*road as usize];
            block.ends[usize::from(*cell)] = end;
            self.runs.push(RunRecord {
                first_point: road.first_point + u32::from(*first),
                count: *count,
                access: access_of(road.forward) | access_of(road.backward),
                reserved: 0,
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
    for (segment, pair) in points.windows(2).enumerate() {
        for_each_cell(pair[0].position(), pair[1].position(), |(row, column)| {
            let block = (row >> BLOCK_SHIFT, column >> BLOCK_SHIFT);
            let cell = (row % BLOCK_SIDE * BLOCK_SIDE + column % BLOCK_SIDE) as u8;
            let own = &mut drafts[before..];
            let open = own.iter_mut().rev().take(OPEN_RUNS).find(|run| (run.0, run.1) == (block, cell));
            match open {
                Some(run) if usize::from(run.3) + usize::from(run.4) == segment && run.4 < u8::MAX => run.4 += 1,
                Some(run) if usize::from(run.3) + usize::from(run.4) > segment => {}
                _ => drafts.push((block, cell, road, segment as u16, 1)),
            }
        });
    }
}

/// Calls for every cell that a segment touches, and now and then for one that it only comes close to.
fn for_each_cell(a: Position, b: Position, mut touch: impl FnMut((u32, u32))) {
    let ((row_a, column_a), (row_b, column_b)) = (cell_of(a), cell_of(b));
    if row_a == row_b {
        (column_a.min(column_b)..=column_a.max(column_b)).for_each(|column| touch((row_a, column)));
        return;
    }
    let (south, north) = if row_a < row_b { (a, b) } else { (b, a) };
    let height = f64::from(north.lat_e7) - f64::from(south.lat_e7);
    let width = f64::from(north.lon_e7) - f64::from(south.lon_e7);
    let lon_at = |lat_e7: f64| {
        let share = ((lat_e7 - f64::from(south.lat_e7)) / height).clamp(0.0, 1.0);
        f64::from(south.lon_e7) + width * share
    };
    let column = |lon_e7: f64| cell_of(Position { lat_e7: 0, lon_e7: lon_e7 as i32 }).1;
    for row in row_a.min(row_b)..=row_a.max(row_b) {
        let (bottom, top) = crate::index::row_edges_e7(row);
        let (left, right) = (lon_at(bottom), lon_at(top));
        // One unit more to either side: rounding must not lose a cell.
        (column(left.min(right) - 1.0)..=column(left.max(right) + 1.0)).for_each(|column| touch((row, column)));
    }
}

/// How many of a road's last runs are looked through for one to lengthen.
const OPEN_RUNS: usize = 8;
