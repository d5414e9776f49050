//! A page that draws matched trips on the map's own tiles and needs nothing else: no server, no network. The tiles
//! around the trips are written into it, packed, and all else as numbers relative to a corner.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use maps::geo::Bbox;
use maps::tiles::{archive, tile_at};
use maps::{Graph, Profile};
use protocol::Position;
use serde_json::{Value, json};

use super::matching::MatchedTrip;

pub fn write_page(page: &Path, graph: &Graph, profile: Profile, trips: &[MatchedTrip]) -> Result<()> {
    let fixes = trips.iter().flat_map(|trip| trip.trace.fixes.iter().map(|fix| fix.position));
    let bbox = Bbox::around(fixes).context("there is no fix to draw")?;
    let corner = bbox.south_west;
    let drawn: Vec<Value> = trips.iter().map(|trip| drawn_trip(graph, profile, trip, corner)).collect();
    let facts = json!({
        "cos": maps::geo::cos_lat(bbox.centre().lat_e7),
        "corner": [corner.lon(), corner.lat()],
        "tiles": drawn_tiles(graph, trips, &bbox)?,
        "trips": drawn,
    });
    // A trip may be called anything: nothing in it may end the script.
    let facts = facts.to_string().replace('<', "\\u003c");
    let text = PAGE.replacen("/*FACTS*/null", &facts, 1);
    std::fs::write(page, text).with_context(|| format!("write {}", page.display()))
}

/// All tiles around the trips at the closest zoom at which they are not too many; better only those along the trips
/// than all from farther away.
fn drawn_tiles(graph: &Graph, trips: &[MatchedTrip], bbox: &Bbox) -> Result<Vec<Value>> {
    let (last, mut chosen) = (ZOOMS[ZOOMS.len() - 1], Vec::new());
    for zoom in ZOOMS {
        let (all, along) = (Tiles::around(bbox, zoom), near_tiles(trips, zoom));
        if all.count() <= TILES_MAX {
            chosen = all.iter().map(|(x, y)| (zoom, x, y)).collect();
        } else if along.len() <= TILES_MAX || zoom == last {
            chosen = along.into_iter().take(TILES_MAX).map(|(x, y)| (zoom, x, y)).collect();
        } else {
            continue;
        }
        break;
    }
    let mut tiles = Vec::new();
    for (zoom, x, y) in chosen {
        if let Some(packed) = archive::packed_tile(graph, zoom, x, y).context("pack a tile")? {
            tiles.push(json!([zoom, x, y, STANDARD.encode(packed)]));
        }
    }
    Ok(tiles)
}

/// Columns and rows.
struct Tiles([(u32, u32); 2]);

impl Tiles {
    /// Those of a box, and one more on each side.
    fn around(bbox: &Bbox, zoom: u8) -> Tiles {
        let ((west, south), (east, north)) = (tile_at(bbox.south_west, zoom), tile_at(bbox.north_east, zoom));
        // Over the 180th meridian: all around the world, which is too many to be drawn.
        let (west, east) = if bbox.is_over_180() { (0, (1 << zoom) - 1) } else { (west, east) };
        Tiles([(west.saturating_sub(1), east + 1), (north.saturating_sub(1), south + 1)])
    }

    fn count(&self) -> usize {
        self.0.iter().map(|(first, last)| (last - first) as usize + 1).product()
    }

    fn iter(&self) -> impl Iterator<Item = (u32, u32)> {
        let [(west, east), (north, south)] = self.0;
        (west..=east).flat_map(move |x| (north..=south).map(move |y| (x, y)))
    }
}

fn near_tiles(trips: &[MatchedTrip], zoom: u8) -> BTreeSet<(u32, u32)> {
    let fixes = trips.iter().flat_map(|trip| trip.trace.fixes.iter().map(|fix| fix.position));
    let routes = trips.iter().flat_map(|trip| trip.parts.iter().flatten().copied());
    let places: BTreeSet<(u32, u32)> = fixes.chain(routes).map(|position| tile_at(position, zoom)).collect();
    let around = |(x, y): &(u32, u32)| {
        let tiles = Tiles([(x.saturating_sub(1), x + 1), (y.saturating_sub(1), y + 1)]);
        tiles.iter().collect::<Vec<_>>()
    };
    places.iter().flat_map(around).collect()
}

fn drawn_trip(graph: &Graph, profile: Profile, trip: &MatchedTrip, corner: Position) -> Value {
    let parts: Vec<Vec<i64>> = trip.parts.iter().map(|part| flat(part.iter().copied(), corner)).collect();
    let mut found = Vec::new();
    let places: Vec<Value> = trip
        .fixes()
        .map(|(fix, one)| {
            graph.candidates(fix.position, CANDIDATES_WITHIN_M, profile, &mut found);
            let candidates = flat(found.iter().take(CANDIDATES_MAX).map(|candidate| candidate.position), corner);
            let from = flat([fix.position], corner);
            let to = one.snapped.map(|s| flat([s.position], corner));
            json!([from, to, one.snapped.map(|s| s.confidence_percent), candidates])
        })
        .collect();
    let truth: Vec<Vec<i64>> = trip.trace.truth.iter().map(|part| flat(part.iter().copied(), corner)).collect();
    json!({"id": trip.trace.id, "route": parts, "fixes": places, "truth": truth})
}

/// East and north of the corner, in 10⁻⁶ degree.
fn flat(points: impl IntoIterator<Item = Position>, corner: Position) -> Vec<i64> {
    let off = |a: i32, b: i32| (i64::from(a) - i64::from(b)) / 10;
    points.into_iter().flat_map(|p| [off(p.lon_e7, corner.lon_e7), off(p.lat_e7, corner.lat_e7)]).collect()
}

const PAGE: &str = include_str!("matched.html");
/// The closest first.
const ZOOMS: [u8; 5] = [15, 14, 13, 12, 11];
/// A few megabytes.
const TILES_MAX: usize = 400;
/// As the matcher looks for them first.
const CANDIDATES_WITHIN_M: f64 = 50.0;
const CANDIDATES_MAX: usize = 8;
