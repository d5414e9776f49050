//! The second pass over an extract: the positions of the nodes that ways asked for, the barriers among them, and the
//! places with names.

use std::sync::atomic::{AtomicU64, Ordering};

use osmpbfreader::osmformat::{DenseNodes, Node, PrimitiveBlock};
use protocol::Position;
use rayon::prelude::*;

use super::extract::{BlobPlace, Extract, decode};
use super::harvest::{Strings, shortened};
use super::ids::Ids;
use super::tags::{self, Tags};
use super::{ImportError, Progress, Stage};
use crate::tiles::feature::{self, FeatureKind};

/// The nodes that were asked for.
#[derive(Default)]
pub struct Nodes {
    /// By place within the ids; None where the extract does not hold the node.
    pub positions: Vec<Option<Position>>,
    /// Places of nodes that stop somebody, and whom.
    pub barriers: Vec<(u32, u8)>,
    pub places: Vec<DraftPlace>,
    pub nodes_read: u64,
}

/// A town or another place with a name.
#[derive(Clone, Debug)]
pub struct DraftPlace {
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
    for part in parts {
        for (place, position) in part.positions {
            whole.positions[place as usize] = Some(position);
        }
        whole.barriers.extend(part.barriers);
        whole.places.extend(part.places);
        whole.nodes_read += part.nodes_read;
    }
    Ok(whole)
}

#[derive(Default)]
struct NodesOfBlob {
    positions: Vec<(u32, Position)>,
    barriers: Vec<(u32, u8)>,
    places: Vec<DraftPlace>,
    nodes_read: u64,
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
    for ((id_delta, lat_delta), lon_delta) in dense.id.iter().zip(&dense.lat).zip(&dense.lon) {
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
        take_node(id, position(block, lat, lon), Tags(&tags), wanted, found);
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
    take_node(node.id(), position(block, node.lat(), node.lon()), Tags(&tags), wanted, found);
    Ok(())
}

fn take_node(id: i64, position: Option<Position>, tags: Tags<'_>, wanted: &Ids, found: &mut NodesOfBlob) {
    found.nodes_read += 1;
    let Some(position) = position else {
        return; // not on Earth: as if it were not in the extract
    };
    if let Some(place) = wanted.place(id) {
        found.positions.push((place, position));
        let stopped = if tags.0.is_empty() { 0 } else { tags::barrier(tags) };
        if stopped != 0 {
            found.barriers.push((place, stopped));
        }
    }
    if let (Some(kind), Some(name)) = (feature::of_node(tags), tags.value("name")) {
        let population = tags.value("population").and_then(|text| text.parse().ok()).unwrap_or(0);
        found.places.push(DraftPlace { kind, name: shortened(Some(name)), position, population });
    }
}

fn position(block: &PrimitiveBlock, lat: i64, lon: i64) -> Option<Position> {
    let e7 = |offset: i64, value: i64| {
        let nano = value.checked_mul(i64::from(block.granularity()))?.checked_add(offset)?;
        i32::try_from(nano / 100).ok()
    };
    let position = Position { lat_e7: e7(block.lat_offset(), lat)?, lon_e7: e7(block.lon_offset(), lon)? };
    position.is_on_earth().then_some(position)
}
