//! The first of two passes over an extract: it takes ways and relations and passes over blocks of nodes; the second
//! (`super::nodes`) takes the nodes that were asked for and passes over the rest. So any order of objects is fine: an
//! extract whose ways come before its nodes reads like a sorted one. Blocks are worked on in parallel and put together
//! in the order of the file, so that the outcome does not depend on who was faster.

use std::sync::atomic::{AtomicU64, Ordering};

use osmpbfreader::osmformat::relation::MemberType;
use osmpbfreader::osmformat::{Info, PrimitiveBlock, Relation, Way};
use protocol::Position;
use rayon::prelude::*;

use super::extract::{BlobPlace, Extract, content, decode};
use super::ferry;
use super::ids::Ids;
use super::left_out::{LeftOutKind, LeftOuts};
use super::limits::CountryLimits;
use super::newest::{Ascent, Edition, Editions};
use super::nodes::{Nodes, position};
use super::restrictions;
use super::tags::{self, RoadTags, Tags};
use super::{ImportError, ImportOptions, Progress, Stage, ways};
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
    pub edition: Edition,
    pub kind: WayKind,
    pub name: String,
    /// Its nodes, within `Harvest::refs`.
    pub first_ref: usize,
    pub refs: usize,
}

/// A turn restriction as its relation says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DraftTurn {
    pub id: i64,
    pub edition: Edition,
    /// When it holds; always, if not said.
    pub hours: Option<String>,
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
    pub id: i64,
    pub edition: Edition,
    pub kind: FeatureKind,
    pub name: String,
    pub outer: Vec<i64>,
    pub inner: Vec<i64>,
}

/// How long a ferry's whole line takes, which is made of several ways.
#[derive(Clone, Debug)]
pub struct DraftFerry {
    pub id: i64,
    pub edition: Edition,
    pub duration_s: u32,
    pub ways: Vec<i64>,
}

#[derive(Default)]
pub struct Harvest {
    pub ways: Vec<DraftWay>,
    pub refs: Vec<i64>,
    pub turns: Vec<DraftTurn>,
    pub areas: Vec<DraftArea>,
    pub ferries: Vec<DraftFerry>,
    /// The blobs that hold nodes.
    pub node_blobs: Vec<BlobPlace>,
    pub ways_read: u64,
    pub relations_read: u64,
    pub left_out: LeftOuts,
    /// Where nodes lie, as ways say it that hold the places of their nodes.
    pub located: Vec<(i64, Position)>,
    /// Objects that are nothing to us, but may be newer than a copy of theirs that is.
    pub ways_passed: Vec<(i64, Edition)>,
    pub relations_passed: Vec<(i64, Edition)>,
    pub way_ascent: Ascent,
    pub relation_ascent: Ascent,
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
    parts.into_iter().for_each(|part| whole.append(part));
    whole.keep_newest();
    Ok(whole)
}

impl Harvest {
    fn append(&mut self, part: Harvest) {
        let refs_before = self.refs.len();
        let (ways_before, relations_before) = (self.ways_read, self.relations_read);
        let later = |edition: Edition, before: u64| Edition { order: edition.order + before, ..edition };
        self.refs.extend_from_slice(&part.refs);
        self.ways.extend(part.ways.into_iter().map(|way| DraftWay {
            first_ref: way.first_ref + refs_before,
            edition: later(way.edition, ways_before),
            ..way
        }));
        let of_relation = |edition| later(edition, relations_before);
        self.turns.extend(part.turns.into_iter().map(|one| DraftTurn { edition: of_relation(one.edition), ..one }));
        self.areas.extend(part.areas.into_iter().map(|one| DraftArea { edition: of_relation(one.edition), ..one }));
        self.ferries
            .extend(part.ferries.into_iter().map(|one| DraftFerry { edition: of_relation(one.edition), ..one }));
        self.ways_passed.extend(part.ways_passed.into_iter().map(|(id, e)| (id, later(e, ways_before))));
        self.relations_passed.extend(part.relations_passed.into_iter().map(|(id, e)| (id, of_relation(e))));
        self.node_blobs.extend(part.node_blobs);
        self.located.extend(part.located);
        self.left_out.append(part.left_out);
        self.ways_read += part.ways_read;
        self.relations_read += part.relations_read;
        self.way_ascent.append(part.way_ascent);
        self.relation_ascent.append(part.relation_ascent);
    }

    /// Of objects that are there more than once the newest counts. Where ids only rise, as nearly everywhere, none are.
    fn keep_newest(&mut self) {
        if !self.way_ascent.is_strict() {
            let kept = self.ways.iter().map(|way| (way.id, way.edition));
            let newest = Editions::of(kept.chain(self.ways_passed.iter().copied()));
            self.ways.retain(|way| newest.is_newest(way.id, way.edition));
            newest.tell("way", &mut self.left_out);
        }
        if !self.relation_ascent.is_strict() {
            let turns = self.turns.iter().map(|one| (one.id, one.edition));
            let areas = self.areas.iter().map(|one| (one.id, one.edition));
            let ferries = self.ferries.iter().map(|one| (one.id, one.edition));
            let newest = Editions::of(turns.chain(areas).chain(ferries).chain(self.relations_passed.iter().copied()));
            self.turns.retain(|one| newest.is_newest(one.id, one.edition));
            self.areas.retain(|one| newest.is_newest(one.id, one.edition));
            self.ferries.retain(|one| newest.is_newest(one.id, one.edition));
            newest.tell("relation", &mut self.left_out);
        }
        (self.ways_passed, self.relations_passed) = (Vec::new(), Vec::new());
    }
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
            strings.tags(place.at, &way.keys, &way.vals, &mut tags)?;
            take_way(&block, way, Tags(&tags), limits, options, &mut harvest);
            harvest.ways_read += 1;
        }
        for relation in &group.relations {
            strings.tags(place.at, &relation.keys, &relation.vals, &mut tags)?;
            take_relation(place.at, relation, Tags(&tags), &strings, options, &mut harvest)?;
            harvest.relations_read += 1;
        }
    }
    Ok(harvest)
}

fn take_way(
    block: &PrimitiveBlock,
    way: &Way,
    tags: Tags<'_>,
    limits: &CountryLimits,
    options: &ImportOptions,
    harvest: &mut Harvest,
) {
    let id = way.id();
    let edition = edition(way.info.as_ref(), harvest.ways_read);
    harvest.way_ascent.note(id);
    let kind = match tags::road(tags, limits) {
        _ if is_deleted(way.info.as_ref()) => {
            harvest.left_out.add(LeftOutKind::Deleted, "way", id, "it was deleted");
            harvest.ways_passed.push((id, edition));
            return;
        }
        Some(road) => WayKind::Road(road),
        None => match feature::of_way(tags).filter(|kind| options.wants(*kind)) {
            Some(kind) => WayKind::Feature(kind),
            None if feature::may_be_outline(tags) => WayKind::Outline,
            None => return harvest.ways_passed.push((id, edition)),
        },
    };
    let name = match kind {
        WayKind::Road(_) => {
            ways::note_left_out(id, tags, &mut harvest.left_out);
            tags.value("name").or(tags.value("ref"))
        }
        WayKind::Feature(_) => tags.value("name"),
        WayKind::Outline => None,
    };
    let first_ref = harvest.refs.len();
    let mut node = 0_i64;
    harvest.refs.extend(way.refs.iter().map(|delta| {
        node = node.wrapping_add(*delta);
        node
    }));
    let refs = &harvest.refs[first_ref..];
    let places = ways::places(way).into_iter().map(|(lat, lon)| position(block, lat, lon));
    harvest.located.extend(refs.iter().zip(places).filter_map(|(id, place)| Some((*id, place?))));
    let refs = refs.len();
    harvest.ways.push(DraftWay { id, edition, kind, name: shortened(name), first_ref, refs });
}

fn take_relation(
    at: u64,
    relation: &Relation,
    tags: Tags<'_>,
    strings: &Strings<'_>,
    options: &ImportOptions,
    harvest: &mut Harvest,
) -> Result<(), ImportError> {
    let id = relation.id();
    let edition = edition(relation.info.as_ref(), harvest.relations_read);
    harvest.relation_ascent.note(id);
    harvest.relations_passed.push((id, edition));
    if is_deleted(relation.info.as_ref()) {
        harvest.left_out.add(LeftOutKind::Deleted, "relation", id, "it was deleted");
        return Ok(());
    }
    let members = || Members { at, relation, strings };
    match tags.value("type") {
        Some("restriction") => {
            let rules = restrictions::rules(tags);
            for why in rules.left_out {
                harvest.left_out.add(LeftOutKind::Restriction, "relation", id, why);
            }
            for rule in rules.rules {
                harvest.turns.push(DraftTurn {
                    id,
                    edition,
                    hours: rule.hours,
                    is_only: rule.is_only,
                    is_u_turn: rule.is_u_turn,
                    profiles: rule.profiles,
                    from: members().of(MemberType::WAY, &["from"])?,
                    via_nodes: members().of(MemberType::NODE, &["via"])?,
                    via_ways: members().of(MemberType::WAY, &["via"])?,
                    to: members().of(MemberType::WAY, &["to"])?,
                });
            }
        }
        Some("multipolygon") => {
            if let Some(kind) = feature::of_area(tags).filter(|kind| options.wants(*kind)) {
                harvest.areas.push(DraftArea {
                    id,
                    edition,
                    kind,
                    name: shortened(tags.value("name")),
                    outer: members().of(MemberType::WAY, &["outer", ""])?,
                    inner: members().of(MemberType::WAY, &["inner"])?,
                });
            }
        }
        Some("route") if matches!(tags.value("route"), Some("ferry" | "shuttle_train")) => {
            let duration_s = tags.value("duration").map_or(0, ferry::duration_s);
            if duration_s > 0 {
                let ways = members().all_ways();
                harvest.ferries.push(DraftFerry { id, edition, duration_s, ways });
            }
        }
        _ => {}
    }
    Ok(())
}

fn edition(info: Option<&Info>, order: u64) -> Edition {
    Edition { version: info.map_or(-1, Info::version), order }
}

fn is_deleted(info: Option<&Info>) -> bool {
    info.is_some_and(|info| info.has_visible() && !info.visible())
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

    /// The ids of all ways, whatever their roles.
    fn all_ways(&self) -> Vec<i64> {
        let mut id = 0_i64;
        let members = self.relation.memids.iter().zip(&self.relation.types);
        let ids = members.map(|(delta, kind)| {
            id = id.wrapping_add(*delta);
            (id, kind.enum_value())
        });
        ids.filter(|(_, kind)| *kind == Ok(MemberType::WAY)).map(|(id, _)| id).collect()
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
const NODE_KEYS: &[&str] = &[
    "barrier",
    "bollard",
    "locked",
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
