//! Tiles that a viewer can read: the format's commands, known layers, nothing far outside, and the same bytes every time.

use std::collections::{BTreeMap, BTreeSet};

use maps::Graph;
use maps::tiles::{LAYERS, ZOOM_MIN, tile, tilejson};
use protobuf::CodedInputStream;

use crate::cities;

/// A decoded feature: kind, tags, and its points by part.
#[derive(Default, Debug)]
struct Feature {
    kind: u32,
    tags: BTreeMap<String, String>,
    parts: Vec<Vec<(i32, i32)>>,
}

fn fields(bytes: &[u8], mut visit: impl FnMut(u32, &[u8], u64)) {
    let mut input = CodedInputStream::from_bytes(bytes);
    while let Some(tag) = input.read_raw_tag_or_eof().unwrap() {
        match tag & 7 {
            0 => visit(tag >> 3, &[], input.read_raw_varint64().unwrap()),
            2 => visit(tag >> 3, &input.read_bytes().unwrap(), 0),
            other => panic!("wire type {other}"),
        }
    }
}

fn varints(bytes: &[u8]) -> Vec<u32> {
    let mut input = CodedInputStream::from_bytes(bytes);
    let mut numbers = Vec::new();
    while !input.eof().unwrap() {
        numbers.push(input.read_raw_varint32().unwrap());
    }
    numbers
}

fn decode(tile: &[u8]) -> BTreeMap<String, Vec<Feature>> {
    let mut layers = BTreeMap::new();
    fields(tile, |number, layer, _| {
        assert_eq!(number, 3);
        let (mut name, mut keys, mut values, mut raw) = (String::new(), Vec::new(), Vec::new(), Vec::new());
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        fields(layer, |number, bytes, value| match number {
            1 => name = text(bytes),
            2 => raw.push(bytes.to_vec()),
            3 => keys.push(text(bytes)),
            4 => fields(bytes, |_, bytes, _| values.push(text(bytes))),
            5 => assert_eq!(value, 4096),
            15 => assert_eq!(value, 2),
            other => panic!("field {other}"),
        });
        let features = raw.iter().map(|raw| feature(raw, &keys, &values)).collect();
        assert!(layers.insert(name, features).is_none());
    });
    layers
}

fn feature(raw: &[u8], keys: &[String], values: &[String]) -> Feature {
    let mut decoded = Feature::default();
    fields(raw, |number, bytes, value| match number {
        2 => {
            for pair in varints(bytes).chunks(2) {
                decoded.tags.insert(keys[pair[0] as usize].clone(), values[pair[1] as usize].clone());
            }
        }
        3 => decoded.kind = value as u32,
        4 => decoded.parts = geometry(&varints(bytes)),
        _ => {}
    });
    decoded
}

fn geometry(numbers: &[u32]) -> Vec<Vec<(i32, i32)>> {
    let mut parts: Vec<Vec<(i32, i32)>> = Vec::new();
    let (mut at, mut x, mut y) = (0, 0, 0);
    let step = |n: u32| (n >> 1) as i32 ^ -((n & 1) as i32);
    while at < numbers.len() {
        let (command, count) = (numbers[at] & 7, numbers[at] >> 3);
        at += 1;
        assert!(matches!(command, 1 | 2 | 7) && count > 0);
        for _ in 0..count {
            if command == 7 {
                assert!(parts.last().unwrap().len() >= 3, "a ring of {:?}", parts.last());
                continue;
            }
            x += step(numbers[at]);
            y += step(numbers[at + 1]);
            at += 2;
            if command == 1 {
                parts.push(Vec::new());
            }
            parts.last_mut().unwrap().push((x, y));
        }
    }
    parts
}

/// The tile of a zoom that holds the map's middle.
fn middle(graph: &Graph, zoom: u8) -> (u32, u32) {
    let centre = graph.bbox().centre();
    let side = f64::from(1_u32 << zoom);
    let radian = centre.lat().to_radians();
    let y = (1.0 - (radian.tan() + 1.0 / radian.cos()).ln() / std::f64::consts::PI) / 2.0;
    (((centre.lon() + 180.0) / 360.0 * side) as u32, (y * side) as u32)
}

#[test]
fn every_tile_is_well_formed() {
    for city in cities::all() {
        let mut seen = BTreeSet::new();
        for zoom in ZOOM_MIN..=18 {
            let (x, y) = middle(&city.graph, zoom);
            for (dx, dy) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
                let bytes = tile(&city.graph, zoom, x + dx, y + dy);
                assert!(bytes == tile(&city.graph, zoom, x + dx, y + dy));
                for (layer, features) in decode(&bytes) {
                    assert!(LAYERS.contains(&layer.as_str()), "{layer}");
                    for feature in features {
                        check(&feature, &format!("{} {zoom}/{}/{} {layer} {feature:?}", city.name, x + dx, y + dy));
                    }
                    seen.insert(layer);
                }
            }
        }
        assert!(seen.contains("roads"), "{}: {seen:?}", city.name);
    }
}

fn check(feature: &Feature, context: &str) {
    assert!(!feature.parts.is_empty(), "{context}");
    for (number, part) in feature.parts.iter().enumerate() {
        assert!(part.iter().all(|p| (-128..=4224).contains(&p.0) && (-128..=4224).contains(&p.1)), "{context}");
        match feature.kind {
            1 => assert_eq!(part.len(), 1, "{context}"),
            2 => assert!(part.len() >= 2, "{context}"),
            3 => {
                let next = part.iter().cycle().skip(1);
                let area: i64 = part
                    .iter()
                    .zip(next)
                    .map(|(a, b)| i64::from(a.0) * i64::from(b.1) - i64::from(b.0) * i64::from(a.1))
                    .sum();
                assert!(if number == 0 { area > 0 } else { area < 0 }, "{context}: ring {number} of area {area}");
            }
            other => panic!("{context}: kind {other}"),
        }
    }
}

#[test]
fn the_towns_tiles_show_what_the_town_has() {
    let graph = &cities::all()[0].graph;
    let mut kinds = BTreeSet::new();
    let mut names = BTreeSet::new();
    let (x, y) = middle(graph, 14);
    for dx in 0..5 {
        for dy in 0..5 {
            for (layer, features) in decode(&tile(graph, 14, x + dx - 2, y + dy - 2)) {
                for feature in features {
                    let kind = feature.tags.get("kind").or(feature.tags.get("class")).unwrap();
                    kinds.insert(format!("{layer} {kind}"));
                    names.extend(feature.tags.get("name").cloned());
                }
            }
        }
    }

    for kind in [
        "roads primary",
        "roads residential",
        "roads service",
        "roads footway",
        "water water",
        "water river",
        "green park",
        "buildings building",
        "places town",
    ] {
        assert!(kinds.contains(kind), "{kind} is not among {kinds:?}");
    }
    assert!(names.contains("Long River") && names.contains("Fixton"));
    assert!(names.iter().filter(|name| name.ends_with("Street")).count() > 10, "{names:?}");
}

#[test]
fn a_road_lies_in_the_tile_where_it_is() {
    let graph = &cities::all()[0].graph;
    let zoom = 16;
    let side = f64::from(1_u32 << zoom);
    let edge = graph.edges().find(|e| graph.length_cm(*e) > 5_000).unwrap();
    let place = graph.position_at(edge, graph.length_cm(edge) / 2);
    let radian = place.lat().to_radians();
    let (x, y) = (
        (place.lon() + 180.0) / 360.0 * side,
        (1.0 - (radian.tan() + 1.0 / radian.cos()).ln() / std::f64::consts::PI) / 2.0 * side,
    );
    let (px, py) = (x.fract() * 4096.0, y.fract() * 4096.0);

    let layers = decode(&tile(graph, zoom, x as u32, y as u32));

    let off = |a: (i32, i32), b: (i32, i32)| {
        let (dx, dy) = (f64::from(b.0 - a.0), f64::from(b.1 - a.1));
        let (ox, oy) = (px - f64::from(a.0), py - f64::from(a.1));
        let share = ((ox * dx + oy * dy) / (dx * dx + dy * dy).max(1.0)).clamp(0.0, 1.0);
        (ox - share * dx).hypot(oy - share * dy)
    };
    let segments = layers["roads"].iter().flat_map(|f| &f.parts).flat_map(|part| part.windows(2));
    let nearest = segments.map(|s| off(s[0], s[1])).fold(f64::INFINITY, f64::min);
    assert!(nearest < 5.0, "{nearest} units off");
}

#[test]
fn there_is_nothing_where_no_tile_is() {
    let graph = &cities::all()[0].graph;

    for (zoom, x, y) in
        [(0, 0, 0), (4, 1, 1), (5, 32, 0), (5, 0, 32), (14, u32::MAX, 3), (16, 0, 0), (23, 1, 1), (255, 1, 1)]
    {
        assert!(tile(graph, zoom, x, y).is_empty(), "{zoom}/{x}/{y}");
    }
}

#[test]
fn the_description_carries_the_licences_attribution() {
    let graph = &cities::all()[0].graph;

    let json = tilejson(graph, "Fixton", "/tiles/{z}/{x}/{y}");

    assert_eq!(json["attribution"], "© OpenStreetMap contributors");
    assert_eq!(json["version"], graph.version().to_string());
    assert_eq!(json["vector_layers"].as_array().unwrap().len(), LAYERS.len());
}
