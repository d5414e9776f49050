//! All tiles of a map in one file, a PMTiles archive (version 3), as static file servers and other programs' maps take
//! it. The tiles are the ones that `tile` draws, each compressed, each content once, sorted along the Hilbert curve.
//!
//! Which tiles there are is asked of the tree of tiles from its root: where a tile holds nothing, neither do the four
//! in it, so a map of 26 cities around the world costs no more than its cities. Drawing is shared by all cores; the
//! writer gets the tiles in order, so the same map gives the same bytes.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use flate2::write::GzEncoder;
use pmtiles::{Compression, Header, PYRAMID_SIZE_BY_ZOOM, PmTilesWriter, PmtError, TileCoord, TileId, TileType};
use rayon::prelude::*;
use serde_json::{Value, json};

use super::project::Frame;
use super::{ATTRIBUTION, LAYERS, ZOOM_MAX, ZOOM_MIN, index, tile};
use crate::geo::Bbox;
use crate::graph::Graph;

/// What goes in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ArchiveOptions {
    /// What a viewer calls the map.
    pub name: String,
    /// Within `ARCHIVE_ZOOMS`.
    pub zooms: RangeInclusive<u8>,
}

impl Default for ArchiveOptions {
    fn default() -> Self {
        ArchiveOptions { name: String::from("Wayfix"), zooms: ZOOM_MIN..=ZOOM_MAX }
    }
}

/// What came out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Archived {
    pub tiles: u64,
    /// Different ones among them.
    pub contents: u64,
    pub file_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("zoom {} to {}: an archive has zooms {} to {}", .0.start(), .0.end(), ARCHIVE_ZOOMS.start(), ARCHIVE_ZOOMS.end())]
    Zooms(RangeInclusive<u8>),
    #[error("zoom {} to {}: the first must not be above the last", .0.start(), .0.end())]
    ZoomsReversed(RangeInclusive<u8>),
    #[error("the map holds nothing to draw")]
    Empty,
    #[error("{path}: cannot be written")]
    Write { path: PathBuf, source: io::Error },
    #[error("{path}: {source}")]
    Archive { path: PathBuf, source: PmtError },
}

/// Writes the archive, all or nothing. `progress` is told of tiles done, and of how many there are.
pub fn write(
    graph: &Graph,
    path: &Path,
    options: &ArchiveOptions,
    progress: &dyn Fn(u64, u64),
) -> Result<Archived, ArchiveError> {
    let zooms = &options.zooms;
    if zooms.is_empty() {
        return Err(ArchiveError::ZoomsReversed(zooms.clone()));
    }
    if !ARCHIVE_ZOOMS.contains(zooms.start()) || !ARCHIVE_ZOOMS.contains(zooms.end()) {
        return Err(ArchiveError::Zooms(zooms.clone()));
    }
    let tiles = tiles_of(graph, zooms);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let part = path.with_file_name(format!("{name}.part-{}", std::process::id()));
    let written = write_tiles(graph, (path, &part), options, &tiles, progress).and_then(|archived| {
        fs::rename(&part, path).map_err(|source| ArchiveError::Write { path: path.to_owned(), source })?;
        Ok(archived)
    });
    if written.is_err() {
        let _ = fs::remove_file(&part); // it may not be there; the error that matters is the one returned
    }
    written
}

fn write_tiles(
    graph: &Graph,
    (path, part): (&Path, &Path),
    options: &ArchiveOptions,
    tiles: &[u64],
    progress: &dyn Fn(u64, u64),
) -> Result<Archived, ArchiveError> {
    let cannot = |error| {
        let path = path.to_owned();
        if let PmtError::Reading(source) = error {
            return ArchiveError::Write { path, source };
        }
        ArchiveError::Archive { path, source: error }
    };
    let begin = || {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(part)?;
        Ok((file.try_clone()?, configured(graph, options).create(file)?))
    };
    let (file, mut writer) = begin().map_err(cannot)?;
    let mut done = 0;
    let mut zooms: Option<(u8, u8)> = None;
    for batch in tiles.chunks(BATCH) {
        progress(done, tiles.len() as u64);
        let drawn: Vec<_> = batch.par_iter().map(|id| packed(graph, *id)).collect();
        for one in drawn {
            if let Some((coordinate, bytes)) = one.map_err(cannot)? {
                let (lowest, highest) = zooms.unwrap_or((coordinate.z(), coordinate.z()));
                zooms = Some((lowest.min(coordinate.z()), highest.max(coordinate.z())));
                writer.add_tile(coordinate, &bytes).map_err(cannot)?;
            }
        }
        done += batch.len() as u64;
    }
    progress(done, tiles.len() as u64);
    let archived = writer.finalize().and_then(|()| seal(file, zooms.unwrap_or((0, 0)))).map_err(cannot)?;
    if archived.tiles == 0 { Err(ArchiveError::Empty) } else { Ok(archived) }
}

/// Says in the header what only the tiles tell, makes the file durable, and says what the header says.
fn seal(mut file: File, zooms: (u8, u8)) -> Result<Archived, PmtError> {
    file.rewind()?;
    let mut start = vec![0; HEADER_BYTES];
    file.read_exact(&mut start)?;
    mend_header(&mut start, zooms);
    file.rewind()?;
    file.write_all(&start)?;
    file.sync_all()?;
    let header = Header::try_from_bytes(Bytes::from(start))?;
    Ok(Archived {
        tiles: header.n_addressed_tiles().map_or(0, u64::from),
        contents: header.n_tile_contents().map_or(0, u64::from),
        file_bytes: file.metadata()?.len(),
    })
}

/// The zooms that really have tiles, and a place for the leaf directories though there are none: `pmtiles verify`
/// compares both with what it finds.
fn mend_header(header: &mut [u8], (lowest, highest): (u8, u8)) {
    let number = |header: &[u8], at: usize| {
        header[at..at + 8].iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let (metadata, length) = (number(header, METADATA_AT), number(header, METADATA_AT + 8));
    if number(header, LEAVES_AT) == 0 {
        header[LEAVES_AT..LEAVES_AT + 8].copy_from_slice(&(metadata + length).to_le_bytes());
    }
    header[ZOOMS_AT] = lowest;
    header[ZOOMS_AT + 1] = highest;
    header[CENTRE_ZOOM_AT] = header[CENTRE_ZOOM_AT].clamp(lowest, highest);
}

/// A tile as the archive holds it, packed by gzip; None where nothing is drawn.
pub fn packed_tile(graph: &Graph, zoom: u8, x: u32, y: u32) -> io::Result<Option<Vec<u8>>> {
    let bytes = tile(graph, zoom, x, y);
    if bytes.is_empty() {
        return Ok(None);
    }
    let mut packer = GzEncoder::new(Vec::with_capacity(bytes.len() / 2), flate2::Compression::default());
    packer.write_all(&bytes)?;
    packer.finish().map(Some)
}

fn packed(graph: &Graph, id: u64) -> Result<Option<(TileCoord, Vec<u8>)>, PmtError> {
    let coordinate = TileCoord::from(TileId::new(id)?);
    let packed = packed_tile(graph, coordinate.z(), coordinate.x(), coordinate.y())?;
    Ok(packed.map(|bytes| (coordinate, bytes)))
}

fn configured(graph: &Graph, options: &ArchiveOptions) -> PmTilesWriter {
    let (bbox, zooms) = (graph.bbox(), &options.zooms);
    let centre = bbox.centre();
    let [west, south, east, north] = bounds(&bbox);
    PmTilesWriter::new(TileType::Mvt)
        .precompressed(Compression::Gzip)
        .min_zoom(*zooms.start())
        .max_zoom(*zooms.end())
        .bounds(west, south, east, north)
        .center(centre.lon(), centre.lat())
        .center_zoom(whole_zoom(&bbox).clamp(*zooms.start(), *zooms.end()))
        .metadata(metadata(graph, options).to_string())
}

/// What the archive says of itself: TileJSON's words, as the format asks for.
fn metadata(graph: &Graph, options: &ArchiveOptions) -> Value {
    let layer = |layer: &&str| {
        let fields = super::fields(layer);
        let fields = fields.as_object().into_iter().flatten().map(|(key, _)| (key.clone(), json!("String")));
        json!({
            "id": layer,
            "fields": Value::Object(fields.collect()),
            "minzoom": options.zooms.start(),
            "maxzoom": options.zooms.end(),
        })
    };
    json!({
        "name": options.name,
        "description": "Roads, water, green, buildings, rails and places, drawn by Wayfix",
        "attribution": ATTRIBUTION,
        "type": "baselayer",
        "version": graph.version().to_string(),
        "vector_layers": LAYERS.iter().map(layer).collect::<Vec<_>>(),
    })
}

/// West, south, east, north in degrees, never without an area: readers refuse the box of one straight road.
fn bounds(bbox: &Bbox) -> [f64; 4] {
    let (west, east) = bbox.plain_lon();
    let wider = |low: f64, high: f64, most: f64| match high - low < BOUNDS_DEGREES_MIN {
        true => ((low - BOUNDS_DEGREES_MIN).max(-most), (high + BOUNDS_DEGREES_MIN).min(most)),
        false => (low, high),
    };
    let (west, east) = wider(west, east, 180.0);
    let (south, north) = wider(bbox.south_west.lat(), bbox.north_east.lat(), 90.0);
    [west, south, east, north]
}

/// The zoom at which a map is seen whole on a screen of 1,024 pixels.
fn whole_zoom(bbox: &Bbox) -> u8 {
    let wide = (bbox.width_e7() as f64 / 1e7).max(1e-6);
    let zoom = libm::log2(360.0 * 2.0 / wide);
    zoom.clamp(0.0, f64::from(ZOOM_MAX)) as u8
}

/// The numbers of the tiles that may hold something, ascending.
fn tiles_of(graph: &Graph, zooms: &RangeInclusive<u8>) -> Vec<u64> {
    let bounds = index::box_of(&graph.bbox());
    let mut level = vec![0];
    let mut found = Vec::new();
    for zoom in 0..=*zooms.end() {
        if zoom > 0 {
            // Along the curve the four tiles in a tile follow on each other, and on those of the tile before.
            let first_within = |id: u64| first_of(zoom) + 4 * (id - first_of(zoom - 1));
            level = level.into_iter().flat_map(|id| first_within(id)..first_within(id) + 4).collect();
        }
        level = level.into_par_iter().filter(|id| may_hold_something(graph, bounds, *id)).collect();
        if zooms.contains(&zoom) {
            found.extend_from_slice(&level);
        }
    }
    found
}

fn may_hold_something(graph: &Graph, bounds: index::Box7, id: u64) -> bool {
    let Ok(id) = TileId::new(id) else { return false };
    let coordinate = TileCoord::from(id);
    let frame = Frame::of(coordinate.z(), coordinate.x(), coordinate.y()).bbox_e7();
    let meets = index::meet(frame, bounds) || index::beyond_180(frame).is_some_and(|frame| index::meet(frame, bounds));
    meets && graph.tile_index().holds_any(frame)
}

fn first_of(zoom: u8) -> u64 {
    PYRAMID_SIZE_BY_ZOOM[usize::from(zoom)]
}

/// Zooms that an archive may have: below, nothing is drawn; above, viewers enlarge, and there are 4 times as many.
pub const ARCHIVE_ZOOMS: RangeInclusive<u8> = ZOOM_MIN..=18;
/// Drawn at a time; some megabytes.
const BATCH: usize = 512;
const HEADER_BYTES: usize = 127;
/// Where the header says what, by PMTiles' specification.
const METADATA_AT: usize = 24;
const LEAVES_AT: usize = 40;
const ZOOMS_AT: usize = 100;
const CENTRE_ZOOM_AT: usize = 118;
const BOUNDS_DEGREES_MIN: f64 = 1e-5;
