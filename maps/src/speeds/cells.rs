//! Which roads are slow together: those of one kind within about a square kilometre.
//!
//! The grid is one of degrees, by whole numbers alone, because the fold looks cells up and must find the same ones on
//! every processor; H3's cells (`hexagons`) come from sines and are for keys that others read. A look-up is one read of
//! memory: an edge's cell is worked out once for an opened map.

use protocol::Position;

use super::class_group;
use crate::graph::{EdgeId, Graph};

/// The grid square, and the kind of road.
pub(crate) type CellKey = (u32, u8);

/// Every edge's cell.
pub(crate) struct SpeedCells {
    /// Rising.
    keys: Vec<CellKey>,
    /// Beside the edges: where in the keys.
    of_edge: Vec<u32>,
}

impl SpeedCells {
    pub fn of(graph: &Graph) -> SpeedCells {
        let key = |edge: EdgeId| {
            let middle = graph.position_at(edge, graph.length_cm(edge) / 2);
            (square_of(middle), class_group(graph.class(edge)) as u8)
        };
        let all: Vec<CellKey> = graph.edges().map(key).collect();
        let mut keys = all.clone();
        keys.sort_unstable();
        keys.dedup();
        // Every key is among the keys.
        let of_edge = all.iter().map(|key| keys.partition_point(|k| k < key) as u32).collect();
        SpeedCells { keys, of_edge }
    }

    /// An edge's cell. The edge must be the graph's.
    pub fn key(&self, edge: EdgeId) -> CellKey {
        self.keys[self.of_edge[edge.index()] as usize]
    }

    pub fn keys(&self) -> &[CellKey] {
        &self.keys
    }

    /// For each edge where its key is.
    pub fn of_edges(&self) -> &[u32] {
        &self.of_edge
    }
}

fn square_of(position: Position) -> u32 {
    let row = (position.lat_e7.div_euclid(SIDE_E7) + 10_000) as u32;
    // Columns narrow towards the poles; within a city they are alike.
    let column = (position.lon_e7.div_euclid(SIDE_E7 * 4 / 3) + 15_000) as u32;
    row << 16 | column
}

/// A hundredth of a degree of latitude is 1.1 km.
const SIDE_E7: i32 = 100_000;
