//! Tiles of the map file, for the gateway.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use gateway::{TileSet, TileSource};
use maps::Graph;

/// Draws from the map file that the processor matches on.
pub struct MapTiles {
    graph: Arc<Graph>,
}

pub fn open(map: &Path) -> Result<MapTiles> {
    let graph = Graph::open(map).with_context(|| format!("open the map {}", map.display()))?;
    Ok(MapTiles { graph: Arc::new(graph) })
}

impl TileSource for MapTiles {
    fn tile(&self, zoom: u8, x: u32, y: u32) -> Result<Option<Bytes>, String> {
        let tile = maps::tiles::tile(&self.graph, zoom, x, y);
        Ok((!tile.is_empty()).then(|| Bytes::from(tile)))
    }

    fn describe(&self) -> TileSet {
        let bbox = self.graph.bbox();
        let (south_west, north_east) = (bbox.south_west, bbox.north_east);
        TileSet {
            name: String::from("Wayfix"),
            version: self.graph.version().to_string(),
            attribution: String::from(maps::tiles::ATTRIBUTION),
            bounds: [south_west.lon(), south_west.lat(), north_east.lon(), north_east.lat()],
            zoom_min: maps::tiles::ZOOM_MIN,
            zoom_max: maps::tiles::ZOOM_MAX,
            layers: maps::tiles::LAYERS.iter().map(|layer| (*layer).to_string()).collect(),
        }
    }
}
