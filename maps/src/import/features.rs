//! What tiles show beside roads, as rings and lines. Areas that a relation describes are joined from their members;
//! one whose ring does not close within the extract is left out rather than closed wrongly.

use std::collections::HashMap;

use protocol::Position;

use super::build::{Text, hilbert};
use super::harvest::{DraftArea, DraftWay, Harvest, WayKind};
use super::nodes::Nodes;
use crate::geo::{self, Bbox};
use crate::record::FeatureRecord;
use crate::tiles::feature::{FeatureKind, Shape};

#[derive(Default)]
pub struct Features {
    pub records: Vec<FeatureRecord>,
    pub points: Vec<[i32; 2]>,
}

/// `places` has for each of the harvest's refs its place within the ids, or NONE where the extract does not hold it.
pub fn features(harvest: &Harvest, nodes: &Nodes, places: &[u32], text: &mut Text) -> Features {
    let mut features = Features::default();
    for way in &harvest.ways {
        if let WayKind::Feature(kind) = way.kind {
            features.add_way(way, kind, &line(way, nodes, places), text);
        }
    }
    let mut way_of_id: HashMap<i64, usize> = HashMap::new(); // only looked up, never walked
    if !harvest.areas.is_empty() {
        way_of_id = harvest.ways.iter().enumerate().map(|(number, way)| (way.id, number)).collect();
    }
    for area in &harvest.areas {
        let rings = |members: &[i64]| {
            let lines =
                members.iter().filter_map(|id| way_of_id.get(id)).map(|n| line(&harvest.ways[*n], nodes, places));
            joined(lines.collect())
        };
        features.add_area(area, rings(&area.outer), rings(&area.inner), text);
    }
    for place in &nodes.places {
        features.add(place.kind, &[place.position], false, place.population, text.add(&place.name));
    }
    features.sorted()
}

/// The way's points that the extract holds.
fn line(way: &DraftWay, nodes: &Nodes, places: &[u32]) -> Vec<Position> {
    let places = &places[way.first_ref..way.first_ref + way.refs];
    let mut points: Vec<Position> = places.iter().filter_map(|place| *nodes.positions.get(*place as usize)?).collect();
    points.dedup();
    points
}

/// Joins lines into closed rings, end to end in the order of the members.
fn joined(mut lines: Vec<Vec<Position>>) -> Vec<Vec<Position>> {
    lines.retain(|line| line.len() >= 2);
    let mut rings = Vec::new();
    while !lines.is_empty() {
        let mut ring = lines.remove(0);
        while ring.first() != ring.last() {
            let end = ring.last().copied();
            let next = lines.iter().position(|line| line.first().copied() == end || line.last().copied() == end);
            let Some(next) = next else {
                break;
            };
            let mut line = lines.remove(next);
            if line.first().copied() != end {
                line.reverse();
            }
            ring.extend_from_slice(&line[1..]);
        }
        if ring.len() >= 4 && ring.first() == ring.last() {
            rings.push(ring);
        }
    }
    rings
}

impl Features {
    /// In the order of a Hilbert curve, holes after what they are holes in.
    fn sorted(self) -> Features {
        let mut wholes: Vec<(u64, usize)> = Vec::new();
        for (number, record) in self.records.iter().enumerate().filter(|(_, record)| record.hole == 0) {
            let [south, west, north, east] = record.bbox_e7.map(i64::from);
            let middle = Position { lat_e7: ((south + north) / 2) as i32, lon_e7: ((west + east) / 2) as i32 };
            wholes.push((hilbert(middle), number));
        }
        wholes.sort_unstable();
        let mut sorted = Features::default();
        for (_, number) in wholes {
            let holes = self.records[number + 1..].iter().take_while(|record| record.hole != 0).count();
            for record in &self.records[number..=number + holes] {
                let first = record.first_point as usize;
                sorted.records.push(FeatureRecord { first_point: sorted.points.len() as u32, ..*record });
                sorted.points.extend_from_slice(&self.points[first..first + record.points as usize]);
            }
        }
        sorted
    }

    fn add_way(&mut self, way: &DraftWay, kind: FeatureKind, points: &[Position], text: &mut Text) {
        let name = text.add(&way.name);
        match kind.shape() {
            Shape::Area if points.len() >= 4 && points.first() == points.last() => {
                self.add(kind, points, false, area_m2(points), name);
            }
            Shape::Line if points.len() >= 2 => self.add(kind, points, false, 0, name),
            Shape::Area | Shape::Line | Shape::Point => {} // cut by the extract's border
        }
    }

    fn add_area(&mut self, area: &DraftArea, outer: Vec<Vec<Position>>, inner: Vec<Vec<Position>>, text: &mut Text) {
        let name = text.add(&area.name);
        let boxes: Vec<Option<Bbox>> = outer.iter().map(|ring| Bbox::around(ring.iter().copied())).collect();
        for (ring, bbox) in outer.iter().zip(&boxes) {
            self.add(area.kind, ring, false, area_m2(ring), name);
            for hole in &inner {
                // Rings of one area do not cross, so the first outer one whose box holds a hole's points has the hole.
                let owner = boxes.iter().position(|b| b.is_some_and(|b| hole.iter().all(|p| b.contains(*p))));
                if owner.is_some_and(|owner| boxes[owner] == *bbox) {
                    self.add(area.kind, hole, true, 0, (0, 0));
                }
            }
        }
    }

    fn add(&mut self, kind: FeatureKind, points: &[Position], is_hole: bool, size: u32, (name, name_len): (u32, u32)) {
        let Some(bbox) = Bbox::around(points.iter().copied()) else {
            return;
        };
        self.records.push(FeatureRecord {
            first_point: self.points.len() as u32,
            points: points.len() as u32,
            name,
            name_len,
            bbox_e7: [bbox.south_west.lat_e7, bbox.south_west.lon_e7, bbox.north_east.lat_e7, bbox.north_east.lon_e7],
            kind: kind as u16,
            hole: u16::from(is_hole),
            size,
        });
        self.points.extend(points.iter().map(|p| [p.lat_e7, p.lon_e7]));
    }
}

fn area_m2(ring: &[Position]) -> u32 {
    let Some(first) = ring.first() else {
        return 0;
    };
    let plane = geo::Plane::at(*first);
    let doubled: f64 = ring
        .windows(2)
        .map(|pair| {
            let (a, b) = (plane.to_cm(pair[0]), plane.to_cm(pair[1]));
            a.0 * b.1 - b.0 * a.1
        })
        .sum();
    (doubled.abs() / 2.0 / 10_000.0).min(f64::from(u32::MAX)) as u32
}
