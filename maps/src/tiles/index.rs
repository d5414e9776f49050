//! Which roads and features lie in a tile? Both are sorted along a Hilbert curve, so neighbours in number are neighbours
//! on the map: a box for every few of them is index enough, made in memory when the first tile is asked for.

use crate::geo::Bbox;
use crate::record::NONE;
use crate::view::View;

/// South, west, north, east.
pub type Box7 = [i32; 4];

pub struct TileIndex {
    roads: Vec<Chunk>,
    features: Vec<Chunk>,
    feature_boxes: Vec<Box7>,
    road_boxes: Vec<Box7>,
}

struct Chunk {
    bbox: Box7,
    /// The most important class among them.
    rank_min: u8,
}

impl TileIndex {
    pub(crate) fn of(view: &View<'_>) -> TileIndex {
        let road_boxes: Vec<Box7> = (0..view.road_count() as u32).map(|road| road_box(view, road)).collect();
        let feature_boxes: Vec<Box7> = view.features.iter().map(|feature| feature.bbox_e7).collect();
        let rank = |road: usize| {
            let road = view.roads[road];
            let edge = if road.forward != NONE { road.forward } else { road.backward };
            if edge == NONE { u8::MAX } else { view.edges[edge as usize].class }
        };
        let roads = chunks(&road_boxes, rank);
        let features = chunks(&feature_boxes, |_| 0);
        TileIndex { roads, features, feature_boxes, road_boxes }
    }

    pub(crate) fn for_each_road(&self, bbox: Box7, rank_max: u8, mut visit: impl FnMut(u32)) {
        for (number, _) in self.roads.iter().enumerate().filter(|(_, c)| c.rank_min <= rank_max && meet(c.bbox, bbox)) {
            let range = number * CHUNK..((number + 1) * CHUNK).min(self.road_boxes.len());
            range.filter(|road| meet(self.road_boxes[*road], bbox)).for_each(|road| visit(road as u32));
        }
    }

    pub(crate) fn for_each_feature(&self, bbox: Box7, mut visit: impl FnMut(usize)) {
        for (number, _) in self.features.iter().enumerate().filter(|(_, chunk)| meet(chunk.bbox, bbox)) {
            let range = number * CHUNK..((number + 1) * CHUNK).min(self.feature_boxes.len());
            range.filter(|feature| meet(self.feature_boxes[*feature], bbox)).for_each(&mut visit);
        }
    }

    /// Whether any road or feature reaches into the box, shown there or not.
    pub(crate) fn holds_any(&self, bbox: Box7) -> bool {
        let any = |chunks: &[Chunk], boxes: &[Box7]| {
            let near = chunks.iter().zip(boxes.chunks(CHUNK)).filter(|(chunk, _)| meet(chunk.bbox, bbox));
            near.flat_map(|(_, boxes)| boxes).any(|one| meet(*one, bbox))
        };
        any(&self.roads, &self.road_boxes) || any(&self.features, &self.feature_boxes)
    }
}

pub fn box_of(bbox: &Bbox) -> Box7 {
    [bbox.south_west.lat_e7, bbox.south_west.lon_e7, bbox.north_east.lat_e7, bbox.north_east.lon_e7]
}

fn chunks(boxes: &[Box7], rank: impl Fn(usize) -> u8) -> Vec<Chunk> {
    let chunk = |(number, boxes): (usize, &[Box7])| Chunk {
        bbox: boxes.iter().copied().reduce(join).unwrap_or_default(),
        rank_min: (number * CHUNK..number * CHUNK + boxes.len()).map(&rank).min().unwrap_or(u8::MAX),
    };
    boxes.chunks(CHUNK).enumerate().map(chunk).collect()
}

fn road_box(view: &View<'_>, road: u32) -> Box7 {
    let points = view.road_points(road).iter();
    points.map(|p| [p.lat_e7, p.lon_e7, p.lat_e7, p.lon_e7]).reduce(join).unwrap_or_default()
}

fn join(a: Box7, b: Box7) -> Box7 {
    [a[0].min(b[0]), a[1].min(b[1]), a[2].max(b[2]), a[3].max(b[3])]
}

pub fn meet(a: Box7, b: Box7) -> bool {
    a[0] <= b[2] && b[0] <= a[2] && a[1] <= b[3] && b[1] <= a[3]
}

const CHUNK: usize = 64;
