//! The draft as an `.osm.pbf`: sorted, dense nodes, zlib blobs, by the same protobuf types that the import reads with.

use std::collections::HashMap;
use std::io::Write;

use osmpbfreader::fileformat::{Blob, BlobHeader};
use osmpbfreader::osmformat::relation::MemberType;
use osmpbfreader::osmformat::{DenseNodes, HeaderBlock, PrimitiveBlock, PrimitiveGroup, Relation, StringTable, Way};
use protobuf::Message;

use super::draft::{Draft, DraftNode, DraftRestriction, DraftWay};

pub fn extract(draft: &Draft) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut header = HeaderBlock::new();
    header.required_features = vec!["OsmSchema-V0.6".to_owned(), "DenseNodes".to_owned()];
    header.optional_features = vec!["Sort.Type_then_ID".to_owned()];
    header.set_writingprogram("wayfix town".to_owned());
    push_blob(&mut bytes, "OSMHeader", &header);
    for (number, nodes) in draft.nodes.chunks(OBJECTS_PER_BLOCK).enumerate() {
        push_blob(&mut bytes, "OSMData", &node_block(nodes, number * OBJECTS_PER_BLOCK));
    }
    for (number, ways) in draft.ways.chunks(OBJECTS_PER_BLOCK).enumerate() {
        push_blob(&mut bytes, "OSMData", &way_block(ways, number * OBJECTS_PER_BLOCK));
    }
    for (number, turns) in draft.restrictions.chunks(OBJECTS_PER_BLOCK).enumerate() {
        push_blob(&mut bytes, "OSMData", &relation_block(turns, number * OBJECTS_PER_BLOCK));
    }
    bytes
}

fn push_blob(bytes: &mut Vec<u8>, kind: &str, content: &impl Message) {
    let raw = content.write_to_bytes().expect("every required field is set above");
    let mut packer = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::new(6));
    packer.write_all(&raw).expect("memory takes every byte");
    let mut blob = Blob::new();
    blob.set_raw_size(raw.len() as i32);
    blob.set_zlib_data(packer.finish().expect("memory takes every byte"));
    let blob = blob.write_to_bytes().expect("every required field is set above");
    let mut header = BlobHeader::new();
    header.set_type(kind.to_owned());
    header.set_datasize(blob.len() as i32);
    let header = header.write_to_bytes().expect("every required field is set above");
    bytes.extend_from_slice(&(header.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&header);
    bytes.extend_from_slice(&blob);
}

/// A block's texts, each once; the empty one is number 0 by the format's rule.
struct Texts {
    table: Vec<Vec<u8>>,
    known: HashMap<String, u32>, // only looked up, never walked
}

impl Texts {
    fn new() -> Texts {
        Texts { table: vec![Vec::new()], known: HashMap::new() }
    }

    fn number(&mut self, text: &str) -> u32 {
        if let Some(number) = self.known.get(text) {
            return *number;
        }
        let number = self.table.len() as u32;
        self.table.push(text.as_bytes().to_vec());
        self.known.insert(text.to_owned(), number);
        number
    }
}

fn block(group: PrimitiveGroup, texts: Texts) -> PrimitiveBlock {
    let mut table = StringTable::new();
    table.s = texts.table;
    let mut block = PrimitiveBlock::new();
    block.stringtable = Some(table).into();
    block.primitivegroup = vec![group];
    block
}

/// Ids begin at 1, as all ids of OpenStreetMap.
fn id_of(number: usize) -> i64 {
    number as i64 + 1
}

fn node_block(nodes: &[DraftNode], first: usize) -> PrimitiveBlock {
    let mut texts = Texts::new();
    let mut dense = DenseNodes::new();
    let (mut id, mut lat, mut lon) = (0, 0, 0);
    for (number, node) in nodes.iter().enumerate() {
        let position = node.position;
        dense.id.push(id_of(first + number) - id);
        dense.lat.push(i64::from(position.lat_e7) - lat);
        dense.lon.push(i64::from(position.lon_e7) - lon);
        (id, lat, lon) = (id_of(first + number), i64::from(position.lat_e7), i64::from(position.lon_e7));
        for (key, value) in &node.tags {
            dense.keys_vals.push(texts.number(key) as i32);
            dense.keys_vals.push(texts.number(value) as i32);
        }
        dense.keys_vals.push(0);
    }
    let mut group = PrimitiveGroup::new();
    group.dense = Some(dense).into();
    block(group, texts)
}

fn way_block(ways: &[DraftWay], first: usize) -> PrimitiveBlock {
    let mut texts = Texts::new();
    let mut group = PrimitiveGroup::new();
    for (number, draft) in ways.iter().enumerate() {
        let mut way = Way::new();
        way.set_id(id_of(first + number));
        let mut before = 0;
        for node in &draft.nodes {
            way.refs.push(id_of(*node) - before);
            before = id_of(*node);
        }
        for (key, value) in &draft.tags {
            way.keys.push(texts.number(key));
            way.vals.push(texts.number(value));
        }
        group.ways.push(way);
    }
    block(group, texts)
}

fn relation_block(turns: &[DraftRestriction], first: usize) -> PrimitiveBlock {
    let mut texts = Texts::new();
    let mut group = PrimitiveGroup::new();
    for (number, turn) in turns.iter().enumerate() {
        let mut relation = Relation::new();
        relation.set_id(id_of(first + number));
        for (key, value) in [("type", "restriction"), ("restriction", turn.kind)] {
            relation.keys.push(texts.number(key));
            relation.vals.push(texts.number(value));
        }
        let mut before = 0;
        let members = [
            ("from", turn.from, MemberType::WAY),
            ("via", turn.via, MemberType::NODE),
            ("to", turn.to, MemberType::WAY),
        ];
        for (role, member, kind) in members {
            relation.roles_sid.push(texts.number(role) as i32);
            relation.memids.push(id_of(member) - before);
            relation.types.push(kind.into());
            before = id_of(member);
        }
        group.relations.push(relation);
    }
    block(group, texts)
}

const OBJECTS_PER_BLOCK: usize = 8_000;
