//! The second pass over an extract: the positions of the nodes that ways asked for, the barriers among them, and the
//! places with names.

use std::sync::atomic::{AtomicU64, Ordering};

use osmpbfreader::osmformat::{DenseNodes, Node, PrimitiveBlock};
use protocol::Position;
use rayon::prelude::*;

use super::access::{self, Barrier};
use super::extract::{BlobPlace, Extract, decode};
use super::harvest::{Strings, shortened};
use super::ids::Ids;
use super::left_out::{LeftOutKind, LeftOuts};
use super::newest::Ascent;
use super::tags::Tags;
use super::{ImportError, Progress, Stage};
use crate::tiles::feature::{self, FeatureKind};

/// The nodes that were asked for.
#[derive(Default)]
pub struct Nodes {
    /// By place within the ids; None where the extract does not hold the node.
    pub positions: Vec<Option<Position>>,
    /// Places of nodes that stop somebody or open only for some, and whom.
    pub barriers: Vec<(u32, Barrier)>,
    pub places: Vec<DraftPlace>,
    pub nodes_read: u64,
    pub left_out: LeftOuts,
}

/// A town or another place with a name.
#[derive(Clone, Debug)]
pub struct DraftPlace {
    pub id: i64,
    pub version: i32,
    pub kind: FeatureKind,
    pub name: String,
    pub position: Position,
    pub population: u32,
}

/// Reads the nodes that are in `wanted`, and the places with names.
pub fn read(
    extract: &Extract,
    blobs: &[BlobPlace],
    wanted: &Ids,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Nodes, ImportError> {
    let total: u64 = blobs.iter().map(|place| place.len()).sum();
    let done = AtomicU64::new(0);
    let parts: Vec<NodesOfBlob> = blobs
        .par_iter()
        .map(|place| {
            let part = nodes_of_blob(extract, *place, wanted)?;
            let done = done.fetch_add(place.len(), Ordering::Relaxed) + place.len();
            progress(Progress { stage: Stage::Nodes, done, total });
            Ok(part)
        })
        .collect::<Result<_, ImportError>>()?;
    let mut whole = Nodes { positions: vec![None; wanted.len()], ..Nodes::default() };
    let mut ascent = Ascent::default();
    parts.iter().for_each(|part| ascent.append(part.ascent));
    if ascent.is_strict() {
        whole.take_all(parts);
    } else {
        whole.take_newest(parts, wanted);
    }
    Ok(whole)
}

impl Nodes {
    /// Fills in where nodes lie that the extract holds within its ways only.
    pub fn locate(&mut self, wanted: &Ids, located: &[(i64, Position)]) {
        for (id, position) in located {
            if let Some(place) = wanted.place(*id) {
                self.positions[place as usize].get_or_insert(*position);
            }
        }
    }

    fn take_all(&mut self, parts: Vec<NodesOfBlob>) {
        for part in parts {
            for node in part.found {
                self.positions[node.place as usize] = node.position;
            }
            self.barriers.extend(part.barriers.into_iter().map(|(place, _, barrier)| (place, barrier)));
            self.places.extend(part.places);
            self.nodes_read += part.nodes_read;
            self.left_out.append(part.left_out);
        }
    }

    /// Some nodes may be there more than once: the highest version counts, of two as new the later one.
    fn take_newest(&mut self, parts: Vec<NodesOfBlob>, wanted: &Ids) {
        let mut versions = vec![NO_VERSION; wanted.len()];
        let mut barriers: Vec<(u32, i32, Barrier)> = Vec::new();
        for part in parts {
            for node in &part.found {
                let version = &mut versions[node.place as usize];
                if *version != NO_VERSION {
                    let why = "it is there more than once, the newest counts";
                    self.left_out.add(LeftOutKind::Repeated, "node", wanted.id(node.place), why);
                }
                if node.version >= *version {
                    *version = node.version;
                    self.positions[node.place as usize] = node.position;
                }
            }
            barriers.extend(part.barriers);
            self.places.extend(part.places);
            self.nodes_read += part.nodes_read;
            self.left_out.append(part.left_out);
        }
        barriers.retain(|(place, version, _)| versions[*place as usize] == *version);
        barriers.reverse(); // of two as new the later one
        barriers.sort_by_key(|(place, ..)| *place);
        barriers.dedup_by_key(|(place, ..)| *place);
        self.barriers = barriers.into_iter().map(|(place, _, barrier)| (place, barrier)).collect();
        self.places.reverse();
        self.places.sort_by_key(|place| (place.id, std::cmp::Reverse(place.version)));
        self.places.dedup_by_key(|place| place.id);
    }
}

#[derive(Default)]
struct NodesOfBlob {
    found: Vec<FoundNode>,
    /// Place, version, what it does.
    barriers: Vec<(u32, i32, Barrier)>,
    places: Vec<DraftPlace>,
    nodes_read: u64,
    ascent: Ascent,
    left_out: LeftOuts,
}

/// A node that was asked for.
struct FoundNode {
    place: u32,
    version: i32,
    /// None for one that was deleted.
    position: Option<Position>,
}

/// A node as it is read.
struct Read<'a> {
    id: i64,
    version: i32,
    is_deleted: bool,
    position: Option<Position>,
    tags: Tags<'a>,
}

fn nodes_of_blob(extract: &Extract, place: BlobPlace, wanted: &Ids) -> Result<NodesOfBlob, ImportError> {
    let raw = extract.unpack(place)?;
    let block = decode(place.at, &raw)?;
    let strings = Strings::of(&block);
    let mut found = NodesOfBlob::default();
    for group in &block.primitivegroup {
        if let Some(dense) = group.dense.as_ref() {
            dense_nodes(place.at, &block, dense, &strings, wanted, &mut found)?;
        }
        for node in &group.nodes {
            plain_node(place.at, &block, node, &strings, wanted, &mut found)?;
        }
    }
    Ok(found)
}

fn dense_nodes(
    at: u64,
    block: &PrimitiveBlock,
    dense: &DenseNodes,
    strings: &Strings<'_>,
    wanted: &Ids,
    found: &mut NodesOfBlob,
) -> Result<(), ImportError> {
    if dense.id.len() != dense.lat.len() || dense.id.len() != dense.lon.len() {
        return Err(ImportError::Damaged { at, what: "nodes without a position" });
    }
    let (mut id, mut lat, mut lon) = (0_i64, 0_i64, 0_i64);
    let mut keys_vals = dense.keys_vals.iter();
    let mut tags = Vec::new();
    let info = dense.denseinfo.as_ref();
    let versions = info.map_or(&[][..], |info| &info.version);
    let visible = info.map_or(&[][..], |info| &info.visible);
    for (i, ((id_delta, lat_delta), lon_delta)) in dense.id.iter().zip(&dense.lat).zip(&dense.lon).enumerate() {
        id = id.wrapping_add(*id_delta);
        lat = lat.wrapping_add(*lat_delta);
        lon = lon.wrapping_add(*lon_delta);
        tags.clear();
        while let Some(key) = keys_vals.next().filter(|key| **key != 0) {
            if let Some(value) = keys_vals.next()
                && strings.is_of_use(*key as usize)
            {
                tags.push((strings.text(at, *key as usize)?, strings.text(at, *value as usize)?));
            }
        }
        let (version, is_deleted) = (versions.get(i).copied().unwrap_or(-1), visible.get(i) == Some(&false));
        let node = Read { id, version, is_deleted, position: position(block, lat, lon), tags: Tags(&tags) };
        take_node(&node, wanted, found);
    }
    Ok(())
}

fn plain_node(
    at: u64,
    block: &PrimitiveBlock,
    node: &Node,
    strings: &Strings<'_>,
    wanted: &Ids,
    found: &mut NodesOfBlob,
) -> Result<(), ImportError> {
    let mut tags = Vec::new();
    strings.tags(at, &node.keys, &node.vals, &mut tags)?;
    let info = node.info.as_ref();
    let read = Read {
        id: node.id(),
        version: info.map_or(-1, |info| info.version()),
        is_deleted: info.is_some_and(|info| info.has_visible() && !info.visible()),
        position: position(block, node.lat(), node.lon()),
        tags: Tags(&tags),
    };
    take_node(&read, wanted, found);
    Ok(())
}

fn take_node(node: &Read<'_>, wanted: &Ids, found: &mut NodesOfBlob) {
    found.nodes_read += 1;
    found.ascent.note(node.id);
    // One that is not on Earth is as if it were not in the extract.
    let position = node.position.filter(|_| !node.is_deleted);
    if let Some(place) = wanted.place(node.id) {
        if node.is_deleted {
            found.left_out.add(LeftOutKind::Deleted, "node", node.id, "it was deleted");
        }
        found.found.push(FoundNode { place, version: node.version, position });
        let barrier = if node.tags.0.is_empty() { Barrier::default() } else { access::barrier(node.tags) };
        if position.is_some() && barrier != Barrier::default() {
            found.barriers.push((place, node.version, barrier));
        }
        if let Some(what) = access::unknown(node.tags).filter(|_| node.tags.value("barrier").is_some()) {
            found.left_out.add(LeftOutKind::AccessValue, "node", node.id, what);
        }
    }
    let named = feature::of_node(node.tags).zip(node.tags.value("name")).zip(position);
    if let Some(((kind, name), position)) = named {
        let population = node.tags.value("population").and_then(|text| text.parse().ok()).unwrap_or(0);
        let (id, version) = (node.id, node.version);
        found.places.push(DraftPlace { id, version, kind, name: shortened(Some(name)), position, population });
    }
}

pub fn position(block: &PrimitiveBlock, lat: i64, lon: i64) -> Option<Position> {
    let e7 = |offset: i64, value: i64| {
        let nano = value.checked_mul(i64::from(block.granularity()))?.checked_add(offset)?;
        i32::try_from(nano / 100).ok()
    };
    let position = Position { lat_e7: e7(block.lat_offset(), lat)?, lon_e7: e7(block.lon_offset(), lon)? };
    position.is_on_earth().then_some(position)
}

/// Below every version, and below that of objects that say none.
const NO_VERSION: i32 = i32::MIN;
