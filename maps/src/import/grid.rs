//! Builds the segment index that `crate::index` searches.

use protocol::Position;
use rayon::prelude::*;

use crate::index::cell_of;
use crate::record::{CellRecord, EdgeRecord, NONE, PointRecord, RoadRecord, RunRecord};

#[derive(Default)]
pub struct Grid {
    pub rows: Vec<u32>,
    pub cells: Vec<CellRecord>,
    pub runs: Vec<RunRecord>,
}

/// A run before it is sorted: row and column, road, first segment and count.
type DraftRun = ((u32, u32), u32, u16, u8);

/// `roads` has one more than roads.
pub fn grid(edges: &[EdgeRecord], roads: &[RoadRecord], points: &[PointRecord]) -> Grid {
    let access_of = |edge: u32| if edge == NONE { 0 } else { edges[edge as usize].access & 0x0f };
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
    let row_first = drafts.first().map_or(0, |draft| draft.0.0);
    grid.rows.push(row_first);
    let mut cell_before = None;
    for (cell, road, first, count) in drafts {
        if cell_before != Some(cell) {
            while grid.rows.len() < (cell.0 - row_first) as usize + 2 {
                grid.rows.push(grid.cells.len() as u32);
            }
            grid.cells.push(CellRecord { column: cell.1, first_run: grid.runs.len() as u32 });
            cell_before = Some(cell);
        }
        let record = roads[road as usize];
        let access = access_of(record.forward) | access_of(record.backward);
        grid.runs.push(RunRecord { road, first, count, access });
    }
    grid.rows.push(grid.cells.len() as u32);
    grid.cells.push(CellRecord { column: u32::MAX, first_run: grid.runs.len() as u32 });
    grid
}

fn add_road(road: u32, points: &[PointRecord], drafts: &mut Vec<DraftRun>) {
    let before = drafts.len();
    for (segment, pair) in points.windows(2).enumerate() {
        for_each_cell(pair[0].position(), pair[1].position(), |cell| {
            let own = &mut drafts[before..];
            let open = own.iter_mut().rev().take(OPEN_RUNS).find(|run| run.0 == cell);
            match open {
                Some(run) if usize::from(run.2) + usize::from(run.3) == segment && run.3 < u8::MAX => run.3 += 1,
                Some(run) if usize::from(run.2) + usize::from(run.3) > segment => {}
                _ => drafts.push((cell, road, segment as u16, 1)),
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
