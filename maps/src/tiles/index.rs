//! Which roads and features lie in a tile? Both are sorted along a Hilbert curve, so neighbours in number are neighbours
//! on the map: a box for every few of them, and one for every few of those boxes, are index enough, made in memory when
//! the first tile is asked for.

use std::ops::Range;

use crate::geo::{Bbox, TURN_E7};
use crate::record::{NONE, PointRecord};
use crate::view::View;

/// South, west, north, east.
pub type Box7 = [i32; 4];

pub struct TileIndex {
    roads: Boxes,
    features: Boxes,
}

/// Boxes of all items, of every 64 of them, and of every 64 of those.
struct Boxes {
    items: Vec<Box7>,
    chunks: Vec<Chunk>,
    groups: Vec<Chunk>,
}

#[derive(Clone, Copy)]
struct Chunk {
    bbox: Box7,
    /// The most important class among them.
    rank_min: u8,
}

impl TileIndex {
    pub(crate) fn of(view: &View<'_>) -> TileIndex {
        let rank = |road: usize| {
            let road = view.roads[road];
            let edge = if road.forward != NONE { road.forward } else { road.backward };
            if edge == NONE { u8::MAX } else { view.edges[edge as usize].class() }
        };
        TileIndex {
            roads: Boxes::of((0..view.road_count() as u32).map(|road| road_box(view, road)).collect(), rank),
            features: Boxes::of(view.features.iter().map(|feature| plain(feature.bbox_e7)).collect(), |_| 0),
        }
    }

    pub(crate) fn for_each_road(&self, bbox: Box7, rank_max: u8, mut visit: impl FnMut(u32)) {
        self.roads.near(bbox, rank_max).for_each(|road| visit(road as u32));
        if let Some(beyond) = beyond_180(bbox) {
            self.roads.near(beyond, rank_max).for_each(|road| visit(road as u32));
        }
    }

    pub(crate) fn for_each_feature(&self, bbox: Box7, mut visit: impl FnMut(usize)) {
        self.features.near(bbox, u8::MAX).for_each(&mut visit);
        if let Some(beyond) = beyond_180(bbox) {
            self.features.near(beyond, u8::MAX).for_each(visit);
        }
    }

    /// Whether any road or feature reaches into the box, shown there or not.
    pub(crate) fn holds_any(&self, bbox: Box7) -> bool {
        let boxes = std::iter::once(bbox).chain(beyond_180(bbox));
        boxes.into_iter().any(|bbox| {
            let mut any = self.roads.near(bbox, u8::MAX).chain(self.features.near(bbox, u8::MAX));
            any.next().is_some()
        })
    }
}

impl Boxes {
    fn of(items: Vec<Box7>, rank: impl Fn(usize) -> u8) -> Boxes {
        let item = |(number, bbox): (usize, &Box7)| Chunk { bbox: *bbox, rank_min: rank(number) };
        let chunks = joined(items.iter().enumerate().map(item));
        let groups = joined(chunks.iter().copied());
        Boxes { items, chunks, groups }
    }

    /// The items that reach into the box, by number, out of chunks that hold something important enough.
    fn near(&self, bbox: Box7, rank_max: u8) -> impl Iterator<Item = usize> {
        let is_near = move |chunk: &Chunk| chunk.rank_min <= rank_max && meet(chunk.bbox, bbox);
        let groups = (0..self.groups.len()).filter(move |group| is_near(&self.groups[*group]));
        let chunks = groups.flat_map(|group| within(group, self.chunks.len()));
        let chunks = chunks.filter(move |chunk| is_near(&self.chunks[*chunk]));
        chunks.flat_map(|chunk| within(chunk, self.items.len())).filter(move |item| meet(self.items[*item], bbox))
    }
}

/// Every few of them as one.
fn joined(all: impl Iterator<Item = Chunk>) -> Vec<Chunk> {
    let mut joined: Vec<Chunk> = Vec::new();
    for (number, one) in all.enumerate() {
        match joined.last_mut() {
            Some(last) if number % FEW != 0 => {
                *last = Chunk { bbox: join(last.bbox, one.bbox), rank_min: last.rank_min.min(one.rank_min) };
            }
            _ => joined.push(one),
        }
    }
    joined
}

/// What the few of a number are numbered.
fn within(number: usize, count: usize) -> Range<usize> {
    number * FEW..((number + 1) * FEW).min(count)
}

/// The box of a map. One over the 180th meridian goes on beyond 180 degrees.
pub fn box_of(bbox: &Bbox) -> Box7 {
    plain([bbox.south_west.lat_e7, bbox.south_west.lon_e7, bbox.north_east.lat_e7, bbox.north_east.lon_e7])
}

/// A box whose west is west of its east: beyond 180 degrees longitudes go on, as far as whole numbers do, and farther
/// than that all of the world is meant.
fn plain([south, west, north, east]: Box7) -> Box7 {
    if west <= east {
        return [south, west, north, east];
    }
    match i32::try_from(i64::from(east) + TURN_E7) {
        Ok(east) => [south, west, north, east],
        Err(_) => [south, -HALF_E7, north, HALF_E7],
    }
}

/// A box seen from the other side of the 180th meridian, where something over it may begin.
pub fn beyond_180([south, west, north, east]: Box7) -> Option<Box7> {
    let moved = |lon: i32| i32::try_from(i64::from(lon) + TURN_E7).unwrap_or(i32::MAX);
    let is_near = west < -HALF_E7 + BEYOND_E7_MAX && east < HALF_E7;
    is_near.then(|| [south, moved(west), north, moved(east)])
}

fn road_box(view: &View<'_>, road: u32) -> Box7 {
    let bbox = Bbox::around(view.road_points(road).iter().map(PointRecord::position));
    bbox.map_or(Box7::default(), |bbox| box_of(&bbox))
}

const HALF_E7: i32 = 1_800_000_000;
/// How far beyond 180 degrees a box can be told: to 214.7.
const BEYOND_E7_MAX: i32 = 347_000_000;

fn join(a: Box7, b: Box7) -> Box7 {
    [a[0].min(b[0]), a[1].min(b[1]), a[2].max(b[2]), a[3].max(b[3])]
}

pub fn meet(a: Box7, b: Box7) -> bool {
    a[0] <= b[2] && b[0] <= a[2] && a[1] <= b[3] && b[1] <= a[3]
}

const FEW: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_boxes_find_what_looking_at_each_finds(
            corners in prop::collection::vec((-1000..1000, -1000..1000, 0..60, 0..60, 0_u8..20), 0..9_000),
            (south, west, high, wide) in (-1000..1000, -1000..1000, 0..300, 0..300),
        ) {
            let items: Vec<Box7> = corners.iter().map(|(s, w, h, e, _)| [*s, *w, s + h, w + e]).collect();
            let boxes = Boxes::of(items.clone(), |number| corners[number].4);
            let bbox = [south, west, south + high, west + wide];

            let found: Vec<usize> = boxes.near(bbox, u8::MAX).collect();
            let important: Vec<usize> = boxes.near(bbox, 7).filter(|number| corners[*number].4 <= 7).collect();

            let expected: Vec<usize> = (0..items.len()).filter(|number| meet(items[*number], bbox)).collect();
            prop_assert_eq!(&found, &expected);
            let expected: Vec<usize> = expected.into_iter().filter(|number| corners[*number].4 <= 7).collect();
            prop_assert_eq!(important, expected);
        }
    }
}
