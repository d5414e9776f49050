//! Speeds by H3 cell, for whoever is not on our map's edges: dashboards, other systems. Resolution 8, some 0.7 km².
//!
//! H3's cells are found by the platform's sines, which may differ between processors in the last bit: they name what is
//! told to others, and nothing in the fold asks for them (`cells` has the fold's own grid).

use h3o::{CellIndex, LatLng, Resolution};
use protocol::Time;

use super::{CLASS_GROUPS, LiveFactors, SpeedTable, class_group, hour_of_week};
use crate::class::Profile;
use crate::graph::{EdgeId, Graph};

/// Which cell each edge's middle lies in.
pub struct Hexagons {
    /// Rising.
    cells: Vec<u64>,
    /// Beside the edges: where in the cells.
    of_edge: Vec<u32>,
}

/// How fast one gets along the roads of a kind within a cell: their length over the time it takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RoadSpeed {
    pub cell: u64,
    /// As `class_group` numbers them.
    pub group: usize,
    pub empty_cm_s: u32,
    /// At this hour of the usual week.
    pub usual_cm_s: u32,
    pub live_cm_s: u32,
}

impl Hexagons {
    pub fn of(graph: &Graph) -> Hexagons {
        let cell = |edge: EdgeId| {
            let middle = graph.position_at(edge, graph.length_cm(edge) / 2);
            // The map holds places on Earth only.
            LatLng::new(middle.lat(), middle.lon()).map_or(0, |place| u64::from(place.to_cell(RESOLUTION)))
        };
        let all: Vec<u64> = graph.edges().map(cell).collect();
        let mut cells = all.clone();
        cells.sort_unstable();
        cells.dedup();
        let of_edge = all.iter().map(|cell| cells.partition_point(|c| c < cell) as u32).collect();
        Hexagons { cells, of_edge }
    }

    pub fn len(&self) -> usize {
        self.cells.len()
    }

    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// The speeds of every cell that cars may drive in, by rising cell and kind.
    pub fn speeds(&self, graph: &Graph, usual: &SpeedTable, live: Option<&LiveFactors>, now: Time) -> Vec<RoadSpeed> {
        let hour = hour_of_week(now);
        let mut sums = vec![[Sum::default(); CLASS_GROUPS]; self.cells.len()];
        for (edge, cell) in graph.edges().zip(&self.of_edge).filter(|(edge, _)| graph.allows(*edge, Profile::Car)) {
            let length_cm = graph.length_cm(edge);
            let usual_s = usual.seconds(graph, edge, length_cm, hour);
            let sum = &mut sums[*cell as usize][class_group(graph.class(edge))];
            sum.length_cm += f64::from(length_cm);
            sum.empty_s += super::free_seconds(graph, edge, length_cm);
            sum.usual_s += usual_s;
            sum.live_s += usual_s * live.map_or(1.0, |live| live.factor(graph, edge, now));
        }
        let by_cell = self.cells.iter().zip(&sums).filter(|(cell, _)| **cell != 0);
        let speeds = by_cell.flat_map(|(cell, groups)| {
            groups.iter().enumerate().filter(|(_, sum)| sum.length_cm > 0.0).map(|(group, sum)| RoadSpeed {
                cell: *cell,
                group,
                empty_cm_s: sum.cm_s(sum.empty_s),
                usual_cm_s: sum.cm_s(sum.usual_s),
                live_cm_s: sum.cm_s(sum.live_s),
            })
        });
        speeds.collect()
    }

    /// The cell around a place, written as H3 writes it; None off the Earth.
    pub fn name_at(lat: f64, lon: f64) -> Option<String> {
        LatLng::new(lat, lon).ok().map(|place| place.to_cell(RESOLUTION).to_string())
    }

    /// A cell's number from what H3 writes.
    pub fn parse(name: &str) -> Option<u64> {
        name.parse::<CellIndex>().ok().map(u64::from)
    }
}

#[derive(Clone, Copy, Default)]
struct Sum {
    length_cm: f64,
    empty_s: f64,
    usual_s: f64,
    live_s: f64,
}

impl Sum {
    fn cm_s(&self, seconds: f64) -> u32 {
        (self.length_cm / seconds.max(0.001)).round() as u32
    }
}

const RESOLUTION: Resolution = Resolution::Eight;
