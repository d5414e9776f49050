//! What came of an import, for people and for scripts.

use serde::Serialize;

use super::left_out::{LeftOutKind, LeftOuts};

/// What came of an import.
#[derive(Clone, Debug, Serialize)]
pub struct Imported {
    pub version: String,
    pub nodes_read: u64,
    pub ways_read: u64,
    /// Points of roads that lie outside the extract.
    pub nodes_missing: u64,
    /// All points of roads, those included.
    pub nodes_wanted: u64,
    pub junctions: usize,
    pub roads: usize,
    pub edges: usize,
    pub length_km: f64,
    pub restrictions: u32,
    pub restrictions_left_out: u32,
    /// Forbidden turns that are so at some hours only.
    pub conditions: usize,
    /// All that could not be taken over.
    pub left_out: LeftOuts,
    pub barriers: usize,
    pub features: usize,
    pub file_bytes: u64,
    /// Of graph and index.
    pub bytes_per_edge: f64,
    /// The router's order was not found in time.
    pub is_order_missing: bool,
}

impl std::fmt::Display for Imported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "roads      {} of {:.0} km, {} edges, {} junctions",
            self.roads, self.length_km, self.edges, self.junctions
        )?;
        writeln!(
            f,
            "turns      {} restrictions kept, {} left out, {} barriers",
            self.restrictions, self.restrictions_left_out, self.barriers
        )?;
        if self.conditions > 0 {
            writeln!(f, "           {} turns are forbidden at some hours only", self.conditions)?;
        }
        for (kind, count) in self.left_out.counts.iter().filter(|(kind, _)| **kind != LeftOutKind::Restriction) {
            writeln!(f, "left out   {count} {}", kind.as_str())?;
        }
        writeln!(
            f,
            "read       {} nodes, {} ways; {} points of roads lie outside",
            self.nodes_read, self.ways_read, self.nodes_missing
        )?;
        writeln!(f, "to draw    {} areas, lines and places", self.features)?;
        if self.is_order_missing {
            writeln!(f, "routing    the order ran out of time: routes take longer on this map")?;
        }
        writeln!(
            f,
            "file       {:.1} MB, {:.0} B per edge for graph and index",
            self.file_bytes as f64 / 1e6,
            self.bytes_per_edge
        )?;
        write!(f, "version    {}", self.version)
    }
}
