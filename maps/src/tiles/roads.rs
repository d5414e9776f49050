//! The roads of a tile. Those of one name and kind become one feature of many lines.

use std::collections::BTreeMap;

use mvt::GeomType;

use super::project::Frame;
use super::{Drawing, Shown, clip};
use crate::class::{EdgeFlags, Profile, RoadClass};
use crate::graph::Graph;
use crate::record::{COPIED, EdgeRecord, NONE};

/// What lines of one feature have in common.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Look<'a> {
    /// The least important first, so that the others are drawn over it.
    rank: std::cmp::Reverse<u8>,
    name: &'a str,
    oneway: i8,
    is_bridge: bool,
    is_tunnel: bool,
}

pub fn add(graph: &Graph, frame: &Frame, drawing: &mut Drawing) {
    let view = graph.view();
    let mut looks: BTreeMap<Look<'_>, Vec<Vec<super::Point>>> = BTreeMap::new();
    let rank_max = rank_max(frame.zoom);
    graph.tile_index().for_each_road(frame.bbox_e7(), rank_max, |number| {
        let road = view.roads[number as usize];
        let edge = if road.forward != NONE { road.forward } else { road.backward };
        if edge == NONE || view.edges[edge as usize].class() > rank_max {
            return;
        }
        let record = &view.edges[edge as usize];
        let line: Vec<_> = view.road_points(number).iter().map(|p| frame.project(p.lat_e7, p.lon_e7)).collect();
        let pieces = clip::lines(&line, frame.zoom);
        if pieces.is_empty() {
            return;
        }
        let look = Look {
            rank: std::cmp::Reverse(record.class()),
            name: if frame.zoom >= NAMES_ZOOM_MIN { view.name(road.way & !COPIED) } else { "" },
            oneway: if frame.zoom >= ARROWS_ZOOM_MIN { oneway(view.edges, road.forward, road.backward) } else { 0 },
            is_bridge: frame.zoom >= NAMES_ZOOM_MIN && EdgeFlags(record.flags).is_bridge(),
            is_tunnel: frame.zoom >= NAMES_ZOOM_MIN && EdgeFlags(record.flags).is_tunnel(),
        };
        looks.entry(look).or_default().extend(pieces);
    });
    for (look, parts) in looks {
        drawing.push("roads", Shown { kind: GeomType::Linestring, parts, tags: tags(&look) });
    }
}

fn tags(look: &Look<'_>) -> Vec<(&'static str, String)> {
    let class = RoadClass::from_number(look.rank.0).unwrap_or(RoadClass::Path).as_str();
    let (class, is_link) = match class.strip_suffix("_link") {
        Some(class) => (class, true),
        None => (class, false),
    };
    let mut tags = vec![("class", class.to_owned())];
    let mut add = |key, value: &str, holds: bool| {
        if holds {
            tags.push((key, value.to_owned()));
        }
    };
    add("name", look.name, !look.name.is_empty());
    add("link", "yes", is_link);
    add("oneway", if look.oneway > 0 { "1" } else { "-1" }, look.oneway != 0);
    add("bridge", "yes", look.is_bridge);
    add("tunnel", "yes", look.is_tunnel);
    tags
}

/// 1 for roads that cars use only along their points, -1 only against them, else 0.
fn oneway(edges: &[EdgeRecord], forward: u32, backward: u32) -> i8 {
    let is_open = |edge: u32| edge != NONE && edges[edge as usize].access & Profile::Car.bit() != 0;
    match (is_open(forward), is_open(backward)) {
        (true, false) => 1,
        (false, true) => -1,
        (true, true) | (false, false) => 0,
    }
}

/// The least important class that a zoom shows.
fn rank_max(zoom: u8) -> u8 {
    let class = match zoom {
        0..=6 => RoadClass::Motorway,
        7 => RoadClass::TrunkLink,
        8 | 9 => RoadClass::Primary,
        10 => RoadClass::Secondary,
        11 => RoadClass::Tertiary,
        12 => RoadClass::LivingStreet,
        13 => RoadClass::Pedestrian,
        _ => RoadClass::Ferry,
    };
    class.number()
}

const NAMES_ZOOM_MIN: u8 = 13;
const ARROWS_ZOOM_MIN: u8 = 15;
