//! From an OpenStreetMap extract (`.osm.pbf`) to a map file (`.wfm`): one file with the graph for every profile, the
//! segment index, the router's order and what tiles show. The same extract and options give the same bytes.

mod access;
mod blob;
mod build;
mod chains;
mod components;
mod direction;
mod extract;
mod features;
mod ferry;
mod grid;
mod harvest;
mod ids;
mod left_out;
mod limits;
mod newest;
mod nodes;
mod outcome;
mod restrictions;
pub(crate) mod tags;
mod turns;
mod ways;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zerocopy::IntoBytes;

use crate::file::{self, MapError, Section};
use crate::geo::Bbox;
use crate::graph::Graph;
use crate::mapping::Mapping;
use crate::record::PartRecord;
use crate::router::order::{self, Order};
use crate::summary::Summary;
use crate::tiles::feature::FeatureKind;
use build::Tables;
use extract::Extract;
use harvest::{Harvest, WayKind};
use ids::Ids;

pub use build::hilbert;
pub use left_out::{LeftOut, LeftOutKind, LeftOuts};
pub use limits::CountryLimits;
pub use outcome::Imported;

/// What the import may be told.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// Whose speed limits hold where none is signed: ISO 3166-1 alpha-2; empty for the world's usual ones.
    pub country: String,
    /// Whether tiles show buildings: they are the larger part of many extracts.
    pub buildings: bool,
    /// How long the router's order may take. Beyond it the map gets none, and routes take longer.
    pub order_time_max: Duration,
}

impl Default for ImportOptions {
    fn default() -> Self {
        ImportOptions { country: String::new(), buildings: true, order_time_max: Duration::from_secs(600) }
    }
}

impl ImportOptions {
    fn wants(&self, kind: FeatureKind) -> bool {
        self.buildings || kind != FeatureKind::Building
    }
}

/// Where an import stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    pub stage: Stage,
    pub done: u64,
    pub total: u64,
}

/// The parts of an import, in their order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stage {
    Ways,
    Nodes,
    Graph,
    Index,
    Order,
    Writing,
}

impl Stage {
    pub const fn as_str(self) -> &'static str {
        match self {
            Stage::Ways => "reading ways",
            Stage::Nodes => "reading nodes",
            Stage::Graph => "building the graph",
            Stage::Index => "building the index",
            Stage::Order => "ordering for the router",
            Stage::Writing => "writing",
        }
    }
}

/// Why an extract could not be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("{path}: cannot be read")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: cannot be written")]
    Write { path: PathBuf, source: io::Error },
    #[error("the extract is empty")]
    Empty,
    #[error("not an OpenStreetMap extract in PBF: it does not begin with a header")]
    NotAnExtract,
    #[error("the extract is cut short: the part that begins at byte {at} ends at byte {needed}, the file at {found}")]
    CutShort { at: u64, found: u64, needed: u64 },
    #[error("the extract is damaged at byte {at}: {what}")]
    Damaged { at: u64, what: &'static str },
    #[error("the extract needs, at byte {at}, what is not known here: {what}")]
    Unsupported { at: u64, what: String },
    #[error("the extract holds no road that can be travelled, in {ways} ways")]
    NoRoads { ways: u64 },
    #[error(
        "{missing} of {wanted} points of roads are not in the extract: it was cut without them (osmium's strategies \
         complete_ways and smart keep them), or holds nodes and ways of different places"
    )]
    MostPointsMissing { missing: u64, wanted: u64 },
    #[error("the extract is too large: more than {max} {what}")]
    TooLarge { what: &'static str, max: u64 },
    #[error("the map that was made does not open")]
    Made(#[from] MapError),
}

/// Imports an extract and writes the map file, all or nothing.
pub fn import(
    extract: &Path,
    map: &Path,
    options: &ImportOptions,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Imported, ImportError> {
    let (bytes, mut imported) = to_map(&Extract::open(extract)?, options, progress)?;
    progress(Progress { stage: Stage::Writing, done: 0, total: 1 });
    file::write_atomically(map, &bytes).map_err(|source| ImportError::Write { path: map.to_owned(), source })?;
    let graph = Graph::open(map)?;
    imported.version = graph.version().to_string();
    progress(Progress { stage: Stage::Writing, done: 1, total: 1 });
    Ok(imported)
}

/// The same in memory.
pub fn import_bytes(extract: &[u8], options: &ImportOptions) -> Result<Vec<u8>, ImportError> {
    let extract = Extract::of(Mapping::of_bytes(extract))?;
    to_map(&extract, options, &|_| {}).map(|(bytes, _)| bytes)
}

fn to_map(
    extract: &Extract,
    options: &ImportOptions,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<(Vec<u8>, Imported), ImportError> {
    let mut harvest = harvest::ways(extract, options, progress)?;
    check_size(&harvest)?;
    let ids = wanted_nodes(&harvest);
    let mut nodes = nodes::read(extract, &harvest.node_blobs, &ids, progress)?;
    nodes.locate(&ids, &harvest.located);

    progress(Progress { stage: Stage::Graph, done: 0, total: 1 });
    let places = harvest.places(&ids, &nodes);
    let mut tables = build::tables(&harvest, &nodes, &places);
    if tables.edges.is_empty() {
        return Err(ImportError::NoRoads { ways: harvest.ways_read });
    }
    let (missing, wanted) = (tables.nodes_missing, tables.nodes_wanted);
    if missing * 2 > wanted {
        return Err(ImportError::MostPointsMissing { missing, wanted });
    }
    let mut left_out = std::mem::take(&mut nodes.left_out);
    left_out.append(std::mem::take(&mut harvest.left_out));
    progress(Progress { stage: Stage::Index, done: 0, total: 1 });
    // The index needs lines and who may go along them; what is forbidden at their ends is found meanwhile.
    let (access, roads) = (grid::road_access(&tables.edges, &tables.roads), tables.roads.clone());
    let points = std::mem::take(&mut tables.points);
    let (grid, ((turns, parts), features)) = rayon::join(
        || grid::grid(&access, &roads, &points),
        || {
            let turns = turns::turns(&mut tables, &harvest, &nodes, &ids, &mut left_out);
            let parts = components::mark(&mut tables, &turns.records);
            ((turns, parts), features::features(&harvest, &nodes, &places, &mut tables.text))
        },
    );
    let grid = grid?;
    tables.points = points;

    let mut imported = Imported {
        version: String::new(),
        nodes_read: nodes.nodes_read,
        ways_read: harvest.ways_read,
        nodes_missing: tables.nodes_missing,
        nodes_wanted: tables.nodes_wanted,
        junctions: tables.out_first.len() - 1,
        roads: tables.roads.len() - 1,
        edges: tables.edges.len(),
        length_km: tables.length_cm as f64 / 100_000.0,
        restrictions: turns.kept,
        restrictions_left_out: left_out.count(LeftOutKind::Restriction) as u32,
        conditions: turns.conditions.len(),
        left_out,
        barriers: nodes.barriers.len(),
        features: features.records.len(),
        file_bytes: 0,
        bytes_per_edge: 0.0,
        is_order_missing: false,
    };
    drop((harvest, nodes, ids, places));
    progress(Progress { stage: Stage::Order, done: 0, total: 1 });
    let order = order::compute(&topology(&tables), options.order_time_max);
    progress(Progress { stage: Stage::Order, done: 1, total: 1 });
    imported.is_order_missing = order.is_missing;
    let signs = (turns, parts, imported.restrictions_left_out);
    let sections = sections(&tables, signs, grid, features, order, options);
    let of_graph =
        sections.iter().filter(|(section, _)| is_graph(*section)).map(|(_, bytes)| bytes.len()).sum::<usize>();
    imported.bytes_per_edge = of_graph as f64 / imported.edges as f64;
    let bytes = file::to_bytes(&sections);
    imported.file_bytes = bytes.len() as u64;
    Ok((bytes, imported))
}

fn topology(tables: &Tables) -> order::Topology<'_> {
    order::Topology {
        edges: &tables.edges,
        nodes: tables.out_first.len() - 1,
        roads: &tables.roads,
        points: &tables.points,
    }
}

/// Numbers in the file have 32 bits, and one of them is a mark.
fn check_size(harvest: &Harvest) -> Result<(), ImportError> {
    let max = 1 << 30;
    if harvest.refs.len() as u64 > max {
        return Err(ImportError::TooLarge { what: "points of ways", max });
    }
    Ok(())
}

/// The nodes of all ways that are kept. Outlines count only where an area asks for them.
fn wanted_nodes(harvest: &Harvest) -> Ids {
    let mut members: Vec<i64> =
        harvest.areas.iter().flat_map(|area| area.outer.iter().chain(&area.inner)).copied().collect();
    members.sort_unstable();
    let mut wanted = Vec::with_capacity(harvest.refs.len());
    for way in &harvest.ways {
        if way.kind != WayKind::Outline || members.binary_search(&way.id).is_ok() {
            wanted.extend_from_slice(&harvest.refs[way.first_ref..way.first_ref + way.refs]);
        }
    }
    Ids::of(wanted)
}

fn is_graph(section: Section) -> bool {
    !matches!(section, Section::Order | Section::Features | Section::FeaturePoints | Section::Summary)
}

fn sections(
    tables: &Tables,
    (turns, parts, restrictions_left_out): (turns::Turns, Vec<PartRecord>, u32),
    grid: grid::Grid,
    features: features::Features,
    order: Order,
    options: &ImportOptions,
) -> Vec<(Section, Vec<u8>)> {
    let positions = tables.points.iter().map(|point| point.position());
    let nowhere = protocol::Position::default();
    let summary = Summary {
        bbox: Bbox::around(positions).unwrap_or(Bbox { south_west: nowhere, north_east: nowhere }),
        country: options.country.clone(),
        restrictions: turns.kept,
        restrictions_left_out,
        is_order_missing: order.is_missing,
    };
    vec![
        (Section::Summary, summary.to_bytes()),
        (Section::Edges, tables.edges.as_bytes().to_vec()),
        (Section::OutFirst, tables.out_first.as_bytes().to_vec()),
        (Section::InFirst, tables.in_first.as_bytes().to_vec()),
        (Section::InEdges, tables.in_edges.as_bytes().to_vec()),
        (Section::Roads, tables.roads.as_bytes().to_vec()),
        (Section::Ways, tables.ways.as_bytes().to_vec()),
        (Section::Points, tables.points.as_bytes().to_vec()),
        (Section::Turns, turns.records.as_bytes().to_vec()),
        (Section::Text, tables.text.bytes.clone().into_bytes()),
        (Section::IndexRows, grid.rows.as_bytes().to_vec()),
        (Section::IndexColumns, grid.columns.as_bytes().to_vec()),
        (Section::IndexBlocks, grid.blocks.as_bytes().to_vec()),
        (Section::IndexRuns, grid.runs.as_bytes().to_vec()),
        (Section::Order, order.nodes.as_bytes().to_vec()),
        (Section::Features, features.records.as_bytes().to_vec()),
        (Section::FeaturePoints, features.points.as_bytes().to_vec()),
        (Section::Conditions, turns.conditions.as_bytes().to_vec()),
        (Section::Parts, parts.as_bytes().to_vec()),
    ]
}
