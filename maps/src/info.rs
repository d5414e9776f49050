//! What a map holds, for people and for scripts.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::class::{Profile, RoadClass};
use crate::geo::Bbox;
use crate::graph::Graph;

#[derive(Clone, Debug, Serialize)]
pub struct Info {
    pub version: String,
    pub file_bytes: u64,
    pub bbox: Bbox,
    /// Whose speed limits hold where none is signed; empty for the world's usual ones.
    pub country: String,
    pub junctions: usize,
    pub edges: usize,
    pub restrictions: u32,
    pub restrictions_left_out: u32,
    /// Whether the fast router can be used.
    pub has_order: bool,
    pub features: usize,
    /// Kilometres of road by class, a road of two directions counted once.
    pub km_by_class: BTreeMap<&'static str, f64>,
    /// Directed edges that a profile may use, and those of them that lead everywhere.
    pub edges_by_profile: BTreeMap<&'static str, (usize, usize)>,
}

impl Info {
    pub fn of(graph: &Graph) -> Info {
        let summary = graph.summary();
        let mut km_by_class = BTreeMap::new();
        for edge in graph.edges().filter(|e| !graph.is_copy(*e) && graph.reverse(*e).is_none_or(|reverse| *e < reverse))
        {
            *km_by_class.entry(graph.class(edge).as_str()).or_insert(0.0) += f64::from(graph.length_cm(edge)) / 1e5;
        }
        let count = |profile: Profile| {
            let open = graph.edges().filter(|e| graph.allows(*e, profile));
            open.fold((0, 0), |(open, lead), e| (open + 1, lead + usize::from(graph.is_connected(e, profile))))
        };
        Info {
            version: graph.version().to_string(),
            file_bytes: graph.file_len(),
            bbox: graph.bbox(),
            country: summary.country.clone(),
            junctions: graph.node_count(),
            edges: graph.edge_count(),
            restrictions: summary.restrictions,
            restrictions_left_out: summary.restrictions_left_out,
            has_order: !graph.view().order.is_empty(),
            features: graph.view().features.len(),
            km_by_class,
            edges_by_profile: Profile::ALL.iter().map(|profile| (profile.as_str(), count(*profile))).collect(),
        }
    }
}

impl std::fmt::Display for Info {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (low, high) = (self.bbox.south_west, self.bbox.north_east);
        writeln!(f, "version    {}", self.version)?;
        writeln!(f, "file       {:.1} MB", self.file_bytes as f64 / 1e6)?;
        writeln!(f, "from       {:.5},{:.5} to {:.5},{:.5}", low.lat(), low.lon(), high.lat(), high.lon())?;
        writeln!(f, "graph      {} edges between {} junctions", self.edges, self.junctions)?;
        let order =
            if self.has_order { "with the fast router's order" } else { "without an order: routes take longer" };
        writeln!(f, "routing    {order}")?;
        writeln!(f, "turns      {} restrictions kept, {} left out", self.restrictions, self.restrictions_left_out)?;
        let country = if self.country.is_empty() { "the world's usual" } else { &self.country };
        writeln!(f, "limits     {country}")?;
        for (profile, (open, lead)) in &self.edges_by_profile {
            writeln!(f, "{profile:<10} {open} edges, {lead} of them lead everywhere")?;
        }
        for class in RoadClass::ALL {
            if let Some(km) = self.km_by_class.get(class.as_str()) {
                writeln!(f, "{:<16} {km:>10.1} km", class.as_str())?;
            }
        }
        write!(f, "to draw    {} areas, lines and places", self.features)
    }
}
