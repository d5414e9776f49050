//! The first of two passes over an extract: it takes ways and relations and passes over blocks of nodes; the second
//! (`super::nodes`) takes the nodes that were asked for and passes over the rest. So any order of objects is fine: an
//! extract whose ways come before its nodes reads like a sorted one. Blocks are worked on in parallel and put together
//! in the order of the file, so that the outcome does not depend on who was faster.

use std::sync::atomic::{AtomicU64, Ordering};

use osmpbfreader::osmformat::relation::MemberType;
use osmpbfreader::osmformat::{PrimitiveBlock, Relation, Way};
use rayon::prelude::*;

use super::extract::{BlobPlace, Extract, content, decode};
use super::ids::Ids;
use super::limits::CountryLimits;
use super::nodes::Nodes;
use super::tags::{self, RoadTags, Tags};
use super::{ImportError, ImportOptions, Progress, Stage};
use crate::record::NONE;
use crate::tiles::feature::{self, FeatureKind};

/// What a way is to us.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum WayKind {
    Road(RoadTags),
    Feature(FeatureKind),
    /// Says nothing itself, but may be the edge of an area that a relation describes.
    Outline,
}

#[derive(Clone, Debug)]
pub struct DraftWay {
    pub id: i64,
    pub kind: WayKind,
    pub name: String,
    /// Its nodes, within `Harvest::refs`.
    pub first_ref: usize,
    pub refs: usize,
}

/// A turn restriction as its relation says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DraftTurn {
    pub is_only: bool,
    pub is_u_turn: bool,
    pub profiles: u8,
    pub from: Vec<i64>,
    pub via_nodes: Vec<i64>,
    pub via_ways: Vec<i64>,
    pub to: Vec<i64>,
}

/// An area with holes.
#[derive(Clone, Debug)]
pub struct DraftArea {
    pub kind: FeatureKind,
    pub name: String,
    pub outer: Vec<i64>,
    pub inner: Vec<i64>,
}

#[derive(Default)]
pub struct Harvest {
    pub ways: Vec<DraftWay>,
    pub refs: Vec<i64>,
    pub turns: Vec<DraftTurn>,
    /// Relations that were meant as restrictions, but in a way that is not known here.
    pub turns_left_out: u32,
    pub areas: Vec<DraftArea>,
    /// The blobs that hold nodes.
    pub node_blobs: Vec<BlobPlace>,
    pub ways_read: u64,
}

/// Reads ways and relations.
pub fn ways(
    extract: &Extract,
    options: &ImportOptions,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Harvest, ImportError> {
    let limits = CountryLimits::of(&options.country);
    let done = AtomicU64::new(0);
    let parts: Vec<Harvest> = extract
        .blobs()
        .par_iter()
        .map(|place| {
            let part = ways_of_blob(extract, *place, limits, options)?;
            let done = done.fetch_add(place.len(), Ordering::Relaxed) + place.len();
            progress(Progress { stage: Stage::Ways, done, total: extract.len() });
            Ok(part)
        })
        .collect::<Result<_, ImportError>>()?;
    let mut whole = Harvest::default();
    for part in parts {
        let refs_before = whole.refs.len();
        whole.refs.extend_from_slice(&part.refs);
        whole.ways.extend(part.ways.into_iter().map(|way| DraftWay { first_ref: way.first_ref + refs_before, ..way }));
        whole.turns.extend(part.turns);
        whole.turns_left_out += part.turns_left_out;
        whole.areas.extend(part.areas);
        whole.node_blobs.extend(part.node_blobs);
        whole.ways_read += part.ways_read;
    }
    Ok(whole)
}

fn ways_of_blob(
    extract: &Extract,
    place: BlobPlace,
    limits: &CountryLimits,
    options: &ImportOptions,
) -> Result<Harvest, ImportError> {
    let raw = extract.unpack(place)?;
    let kinds = content(place.at, &raw)?;
    let mut harvest = Harvest::default();
    if kinds.has_nodes {
        harvest.node_blobs.push(place);
    }
    if !kinds.has_ways_or_relations {
        return Ok(harvest);
    }
    let block = decode(place.at, &raw)?;
    let strings = Strings::of(&block);
    let mut tags = Vec::new();
    for group in &block.primitivegroup {
        for way in &group.ways {
            harvest.ways_read += 1;
            strings.tags(place.at, &way.keys, &way.vals, &mut tags)?;
            take_way(way, Tags(&tags), limits, options, &mut harvest);
        }
        for relation in &group.relations {
            strings.tags(place.at, &relation.keys, &relation.vals, &mut tags)?;
            take_relation(place.at, relation, Tags(&tags), &strings, options, &mut harvest)?;
        }
    }
    Ok(harvest)
}

fn take_way(way: &Way, tags: Tags<'_>, limits: &CountryLimits, options: &ImportOptions, harvest: &mut Harvest) {
    let kind = match tags::road(tags, limits) {
        Some(road) => WayKind::Road(road),
        None => match feature::of_way(tags).filter(|kind| options.wants(*kind)) {
            Some(kind) => WayKind::Feature(kind),
            None if feature::may_be_outline(tags) => WayKind::Outline,
            None => return,
        },
    };
    let name = match kind {
        WayKind::Road(_) => tags.value("name").or(tags.value("ref")),
        WayKind::Feature(_) => tags.value("name"),
        WayKind::Outline => None,
    };
    let first_ref = harvest.refs.len();
    let mut id = 0_i64;
    harvest.refs.extend(way.refs.iter().map(|delta| {
        id = id.wrapping_add(*delta);
        id
    }));
    let refs = harvest.refs.len() - first_ref;
    harvest.ways.push(DraftWay { id: way.id(), kind, name: shortened(name), first_ref, refs });
}

fn take_relation(
    at: u64,
    relation: &Relation,
    tags: Tags<'_>,
    strings: &Strings<'_>,
    options: &ImportOptions,
    harvest: &mut Harvest,
) -> Result<(), ImportError> {
    let members = || Members { at, relation, strings };
    match tags.value("type") {
        Some("restriction") => match restriction(tags) {
            Some((value, profiles)) if profiles != 0 => harvest.turns.push(DraftTurn {
                is_only: value.starts_with("only_"),
                is_u_turn: value.ends_with("_u_turn"),
                profiles,
                from: members().of(MemberType::WAY, &["from"])?,
                via_nodes: members().of(MemberType::NODE, &["via"])?,
                via_ways: members().of(MemberType::WAY, &["via"])?,
                to: members().of(MemberType::WAY, &["to"])?,
            }),
            Some(_) => {} // for lorries or buses only
            None => harvest.turns_left_out += 1,
        },
        Some("multipolygon") => {
            if let Some(kind) = feature::of_area(tags).filter(|kind| options.wants(*kind)) {
                harvest.areas.push(DraftArea {
                    kind,
                    name: shortened(tags.value("name")),
                    outer: members().of(MemberType::WAY, &["outer", ""])?,
                    inner: members().of(MemberType::WAY, &["inner"])?,
                });
            }
        }
        _ => {}
    }
    Ok(())
}

/// What a restriction says, and whom it binds; None for one that holds at some hours or under some condition only.
fn restriction(tags: Tags<'_>) -> Option<(&str, u8)> {
    use crate::class::Profile;
    let (car, moped, bicycle) = (Profile::Car.bit(), Profile::Moped.bit(), Profile::Bicycle.bit());
    let keys: [(&str, u8); 10] = [
        ("restriction", car | moped | bicycle),
        ("restriction:vehicle", car | moped | bicycle),
        ("restriction:motor_vehicle", car | moped),
        ("restriction:motorcar", car),
        ("restriction:moped", moped),
        ("restriction:bicycle", bicycle),
        ("restriction:hgv", 0),
        ("restriction:goods", 0),
        ("restriction:bus", 0),
        ("restriction:caravan", 0),
    ];
    let is_for_a_time =
        |(key, value): &(&str, &str)| TIME_KEYS.contains(key) || key.starts_with("restriction") && value.contains('@');
    if tags.0.iter().any(is_for_a_time) {
        return None;
    }
    let (value, mut profiles) = keys.iter().find_map(|(key, profiles)| Some((tags.value(key)?, *profiles)))?;
    for exception in tags.value("except").unwrap_or("").split(';') {
        profiles &= match exception.trim() {
            "motorcar" => !car,
            "moped" | "mofa" => !moped,
            "motor_vehicle" => !(car | moped),
            "bicycle" => !bicycle,
            "vehicle" => 0,
            _ => u8::MAX,
        };
    }
    (value.starts_with("no_") || value.starts_with("only_")).then_some((value, profiles))
}

struct Members<'a> {
    at: u64,
    relation: &'a Relation,
    strings: &'a Strings<'a>,
}

impl Members<'_> {
    /// The ids of members of one kind in one of some roles.
    fn of(&self, kind: MemberType, roles: &[&str]) -> Result<Vec<i64>, ImportError> {
        let relation = self.relation;
        let mut ids = Vec::new();
        let mut id = 0_i64;
        for ((delta, member_kind), role) in relation.memids.iter().zip(&relation.types).zip(&relation.roles_sid) {
            id = id.wrapping_add(*delta);
            if member_kind.enum_value() == Ok(kind) && roles.contains(&self.strings.text(self.at, *role as usize)?) {
                ids.push(id);
            }
        }
        Ok(ids)
    }
}

impl Harvest {
    /// For each ref the place of its node, or NONE where the extract does not hold it.
    pub fn places(&self, ids: &Ids, nodes: &Nodes) -> Vec<u32> {
        let is_held = |place: &u32| nodes.positions[*place as usize].is_some();
        self.refs.par_iter().map(|id| ids.place(*id).filter(is_held).unwrap_or(NONE)).collect()
    }
}

/// The string table of a block; what is not UTF-8 reads as empty.
pub struct Strings<'a> {
    texts: Vec<&'a str>,
    /// Which keys of nodes matter to us.
    of_use: Vec<bool>,
}

impl<'a> Strings<'a> {
    pub fn of(block: &'a PrimitiveBlock) -> Strings<'a> {
        let texts: Vec<&str> =
            block.stringtable.s.iter().map(|bytes| std::str::from_utf8(bytes).unwrap_or("")).collect();
        let of_use = texts.iter().map(|text| NODE_KEYS.contains(text)).collect();
        Strings { texts, of_use }
    }

    pub fn text(&self, at: u64, number: usize) -> Result<&'a str, ImportError> {
        let text = self.texts.get(number).copied();
        text.ok_or(ImportError::Damaged { at, what: "a text that is not in its block" })
    }

    pub fn is_of_use(&self, number: usize) -> bool {
        self.of_use.get(number).copied().unwrap_or(true) // `text` then says what is wrong
    }

    pub fn tags(
        &self,
        at: u64,
        keys: &[u32],
        values: &[u32],
        tags: &mut Vec<(&'a str, &'a str)>,
    ) -> Result<(), ImportError> {
        tags.clear();
        for (key, value) in keys.iter().zip(values) {
            tags.push((self.text(at, *key as usize)?, self.text(at, *value as usize)?));
        }
        Ok(())
    }
}

/// At most as many bytes as we keep of a name, cut between letters.
pub fn shortened(name: Option<&str>) -> String {
    let name = name.unwrap_or("");
    name[..name.floor_char_boundary(NAME_BYTES_MAX)].to_owned()
}

const NAME_BYTES_MAX: usize = 200;
/// How hours were said before conditions had a key of their own.
const TIME_KEYS: &[&str] = &["day_on", "day_off", "hour_on", "hour_off"];
const NODE_KEYS: &[&str] = &[
    "barrier",
    "bollard",
    "access",
    "vehicle",
    "motor_vehicle",
    "motorcar",
    "moped",
    "bicycle",
    "foot",
    "place",
    "name",
    "population",
];
