//! Vector tiles (MVT) from the map file itself: roads with class and name, water, green, buildings, rails, places. Drawn
//! when asked for, some milliseconds each; whoever serves them keeps what it likes.

pub mod archive;
pub mod feature;

mod clip;
mod index;
mod project;
mod roads;

use std::collections::BTreeMap;

use mvt::{GeomEncoder, GeomType, Tile};
use serde_json::{Value, json};

use crate::graph::Graph;
use crate::record::FeatureRecord;
use crate::view::View;
use feature::{FeatureKind, Shape};
pub use index::TileIndex;
pub use project::tile_at;
use project::{Frame, Point};

/// What the licence of the data asks every page that draws them to show.
pub const ATTRIBUTION: &str = "© OpenStreetMap contributors";
pub const ZOOM_MIN: u8 = 5;
/// Beyond it a viewer enlarges; a tile is still drawn where one asks.
pub const ZOOM_MAX: u8 = 16;
pub const LAYERS: &[&str] = &["green", "water", "buildings", "rails", "roads", "places"];

/// A tile; empty where there is nothing, below `ZOOM_MIN`, and for numbers that no tile has.
pub fn tile(graph: &Graph, zoom: u8, x: u32, y: u32) -> Vec<u8> {
    if !(ZOOM_MIN..=ZOOM_DRAWN_MAX).contains(&zoom) || x >> zoom != 0 || y >> zoom != 0 {
        return Vec::new();
    }
    let frame = Frame::of(zoom, x, y);
    let mut drawing = Drawing::default();
    drawing.add_features(graph, &frame);
    roads::add(graph, &frame, &mut drawing);
    drawing.into_tile()
}

/// What a viewer has to know of the tiles, in TileJSON 3; `url` has `{z}`, `{x}` and `{y}`.
pub fn tilejson(graph: &Graph, name: &str, url: &str) -> Value {
    let bbox = graph.bbox();
    let (low, high) = (bbox.south_west, bbox.north_east);
    let (west, east) = bbox.plain_lon();
    let layers: Vec<Value> = LAYERS.iter().map(|layer| json!({"id": layer, "fields": fields(layer)})).collect();
    json!({
        "tilejson": "3.0.0",
        "name": name,
        "version": graph.version().to_string(),
        "attribution": ATTRIBUTION,
        "tiles": [url],
        "minzoom": ZOOM_MIN,
        "maxzoom": ZOOM_MAX,
        "bounds": [west, low.lat(), east, high.lat()],
        "center": [bbox.centre().lon(), bbox.centre().lat(), 13],
        "vector_layers": layers,
    })
}

fn fields(layer: &str) -> Value {
    match layer {
        "roads" => json!({
            "class": "the kind of road", "name": "its name", "link": "whether it only joins two roads",
            "oneway": "1 along the line, -1 against it", "bridge": "yes or absent", "tunnel": "yes or absent",
        }),
        _ => json!({"kind": "what it is", "name": "its name"}),
    }
}

/// What lies in a tile, by layer, sorted so that the same tile has the same bytes.
#[derive(Default)]
pub struct Drawing {
    layers: BTreeMap<usize, Vec<Shown>>,
}

/// One feature of a tile.
pub struct Shown {
    kind: GeomType,
    /// Lines, rings or one point, in units of the tile.
    parts: Vec<Vec<Point>>,
    tags: Vec<(&'static str, String)>,
}

impl Drawing {
    fn push(&mut self, layer: &str, shown: Shown) {
        let place = LAYERS.iter().position(|l| *l == layer);
        if let Some(place) = place.filter(|_| !shown.parts.is_empty()) {
            self.layers.entry(place).or_default().push(shown);
        }
    }

    fn add_features(&mut self, graph: &Graph, frame: &Frame) {
        let view = graph.view();
        graph.tile_index().for_each_feature(frame.bbox_e7(), |number| {
            let record = &view.features[number];
            let Some(kind) = FeatureKind::from_number(record.kind).filter(|_| record.hole == 0) else {
                return;
            };
            if !is_shown(kind, record, frame) {
                return;
            }
            let (kind_of_geometry, parts) = match kind.shape() {
                Shape::Area => (GeomType::Polygon, rings(view, number, frame)),
                Shape::Line => (GeomType::Linestring, clip::lines(&line(view, record, frame), frame.zoom)),
                Shape::Point => (GeomType::Point, clip::point(&line(view, record, frame))),
            };
            let mut tags = vec![("kind", kind.name().to_owned())];
            let name = view.text(record.name, record.name_len);
            if !name.is_empty() {
                tags.push(("name", name.to_owned()));
            }
            self.push(kind.layer(), Shown { kind: kind_of_geometry, parts, tags });
        });
    }

    fn into_tile(self) -> Vec<u8> {
        let mut tile = Tile::new(EXTENT);
        for (place, shown) in self.layers {
            let mut layer = tile.create_layer(LAYERS[place]);
            for one in shown {
                let Some(geometry) = encode(&one) else {
                    continue;
                };
                let mut feature = layer.into_feature(geometry);
                for (key, value) in &one.tags {
                    feature.add_tag_string(key, value);
                }
                layer = feature.into_layer();
            }
            if layer.num_features() > 0 && tile.add_layer(layer).is_err() {
                debug_assert!(false, "layers have names of their own and one extent");
            }
        }
        if tile.num_layers() == 0 { Vec::new() } else { tile.to_bytes().unwrap_or_default() }
    }
}

fn encode(shown: &Shown) -> Option<mvt::GeomData> {
    let mut encoder = GeomEncoder::new(shown.kind);
    let mut last = None;
    for part in &shown.parts {
        // The encoder takes a part that begins where the one before ended for its continuation; a ring may begin anywhere.
        let turned = match (shown.kind, last == part.first()) {
            (GeomType::Polygon, true) if part.len() > 1 => 1,
            (GeomType::Point | GeomType::Linestring | GeomType::Polygon, _) => 0,
        };
        for point in part.iter().cycle().skip(turned).take(part.len()) {
            encoder.add_point(f64::from(point.0), f64::from(point.1)).ok()?;
        }
        last = part.iter().cycle().skip(turned).take(part.len()).last();
        encoder.complete_geom().ok()?;
    }
    let data = encoder.encode().ok()?;
    (!data.is_empty()).then_some(data)
}

/// Whether a feature is large or important enough for a zoom.
fn is_shown(kind: FeatureKind, record: &FeatureRecord, frame: &Frame) -> bool {
    let from = match kind {
        FeatureKind::Water | FeatureKind::Sea => 5,
        FeatureKind::Coastline => 5,
        FeatureKind::River => 9,
        FeatureKind::Canal => 11,
        FeatureKind::Stream => 13,
        FeatureKind::Wood | FeatureKind::Park => 9,
        FeatureKind::Grass | FeatureKind::Farmland | FeatureKind::Sand | FeatureKind::Cemetery => 11,
        FeatureKind::Building => 14,
        FeatureKind::Rail => 10,
        FeatureKind::Tram => 13,
        FeatureKind::City => 5,
        FeatureKind::Town | FeatureKind::Island => 9,
        FeatureKind::Village | FeatureKind::Suburb => 11,
        FeatureKind::Neighbourhood => 14,
    };
    let is_large = match kind.shape() {
        Shape::Area => {
            frame.zoom >= 15 || f64::from(record.size) >= frame.pixel_m() * frame.pixel_m() * AREA_PIXELS_MIN
        }
        Shape::Line | Shape::Point => true,
    };
    frame.zoom >= from && is_large
}

fn line(view: &View<'_>, record: &FeatureRecord, frame: &Frame) -> Vec<Point> {
    let first = record.first_point as usize;
    view.feature_points[first..first + record.points as usize].iter().map(|p| frame.project(p[0], p[1])).collect()
}

/// The outer ring and the holes that follow it, clipped; clockwise outside as the format wants it, as seen on a screen.
fn rings(view: &View<'_>, number: usize, frame: &Frame) -> Vec<Vec<Point>> {
    let holes = view.features[number + 1..].iter().take_while(|record| record.hole != 0).count();
    let mut parts: Vec<Vec<Point>> = Vec::new();
    for (i, record) in view.features[number..=number + holes].iter().enumerate() {
        let mut ring = clip::ring(&line(view, record, frame), frame.zoom);
        let doubled = clip::doubled_area(&ring);
        if ring.len() < 3 || doubled == 0 {
            if i == 0 {
                return Vec::new();
            }
            continue;
        }
        if (doubled > 0) != (i == 0) {
            ring.reverse();
        }
        parts.push(ring);
    }
    parts
}

/// Units along a tile's side.
const EXTENT: u32 = 4096;
/// The largest zoom that is drawn at all: one unit is then a millimetre.
const ZOOM_DRAWN_MAX: u8 = 22;
const AREA_PIXELS_MIN: f64 = 12.0;
