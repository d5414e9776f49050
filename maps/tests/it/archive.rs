//! A PMTiles archive as its readers see it: the header and the directories by the format's own rules, and in it the very
//! tiles that a server would serve.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use bytes::Bytes;
use maps::Graph;
use maps::tiles::archive::{ArchiveError, ArchiveOptions, write};
use maps::tiles::{LAYERS, tile};
use pmtiles::{Compression, Directory, Header, TileCoord, TileId, TileType};
use serde_json::Value;

use crate::cities;

/// What lies where, from the 127 bytes at the start: offset and length of root, metadata, leaves and tiles.
struct Archive {
    bytes: Bytes,
    header: Header,
    ranges: [(usize, usize); 4],
}

impl Archive {
    fn open(path: &Path) -> Archive {
        let bytes = Bytes::from(std::fs::read(path).unwrap());
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        let ranges = [8, 24, 40, 56].map(|at| (number(at), number(at + 8)));
        Archive { header: Header::try_from_bytes(bytes.slice(..127)).unwrap(), ranges, bytes }
    }

    fn slice(&self, (offset, length): (usize, usize)) -> Bytes {
        self.bytes.slice(offset..offset + length)
    }

    fn metadata(&self) -> Value {
        serde_json::from_slice(&unpack(&self.slice(self.ranges[1]))).unwrap()
    }

    /// As a reader does it: the root, a leaf if the root says so, then the tile.
    fn tile(&self, zoom: u8, x: u32, y: u32) -> Option<Vec<u8>> {
        let id = TileId::from(TileCoord::new(zoom, x, y).unwrap());
        let root = Directory::try_from(Bytes::from(unpack(&self.slice(self.ranges[0])))).unwrap();
        let mut entry = entry_of(&root, id)?;
        if entry.2 == 0 {
            let leaf = self.slice((self.ranges[2].0 + entry.0, entry.1));
            entry = entry_of(&Directory::try_from(Bytes::from(unpack(&leaf))).unwrap(), id)?;
        }
        Some(unpack(&self.slice((self.ranges[3].0 + entry.0, entry.1))))
    }
}

/// Offset, length and run of the entry that holds a tile. The crate shows an entry only as text.
fn entry_of(directory: &Directory, id: TileId) -> Option<(usize, usize, usize)> {
    let text = format!("{:?}", directory.find_tile_id(id)?);
    let number = |field: &str| {
        let rest = text.split_once(field).unwrap_or_else(|| panic!("{field} in {text}")).1;
        rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
    };
    Some((number("offset: "), number("length: "), number("run_length: ")))
}

fn unpack(packed: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
    bytes
}

fn archive_of(graph: &Graph, options: &ArchiveOptions) -> (Archive, u64, u64) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("city.pmtiles");
    let archived = write(graph, &path, options, &|_, _| {}).unwrap();
    let archive = Archive::open(&path);
    assert_eq!(archived.file_bytes, archive.bytes.len() as u64);
    (archive, archived.tiles, archived.contents)
}

#[test]
fn every_tile_of_the_archive_is_the_one_that_is_served_and_none_is_missing() {
    let graph = &cities::all()[0].graph;
    let (archive, tiles, contents) = archive_of(graph, &ArchiveOptions::default());

    // Every tile within the bounds, by the usual formula, one more on each side.
    let (low, high) = (graph.bbox().south_west, graph.bbox().north_east);
    let mut drawn = BTreeMap::new();
    for zoom in 5..=16_u8 {
        let scale = f64::from(1_u32 << zoom);
        let x = |lon: f64| (lon + 180.0) / 360.0 * scale;
        let y = |lat: f64| (1.0 - lat.to_radians().tan().asinh() / std::f64::consts::PI) / 2.0 * scale;
        for column in x(low.lon()) as u32 - 1..=x(high.lon()) as u32 + 1 {
            for row in y(high.lat()) as u32 - 1..=y(low.lat()) as u32 + 1 {
                let served = tile(graph, zoom, column, row);
                let archived = archive.tile(zoom, column, row);
                let is_inside = column >= x(low.lon()) as u32
                    && column <= x(high.lon()) as u32
                    && row >= y(high.lat()) as u32
                    && row <= y(low.lat()) as u32;
                match archived {
                    Some(archived) => assert!(archived == served, "{zoom}/{column}/{row}"),
                    None => assert!(served.is_empty() || !is_inside, "{zoom}/{column}/{row} is missing"),
                }
                if let Some(bytes) = archive.tile(zoom, column, row) {
                    drawn.insert((zoom, column, row), bytes);
                }
            }
        }
    }
    assert!(drawn.len() > 100, "{}", drawn.len());
    assert_eq!(drawn.len() as u64, tiles);
    let mut different: Vec<_> = drawn.into_values().collect();
    different.sort();
    different.dedup();
    assert_eq!(different.len() as u64, contents);
}

#[test]
fn the_header_and_the_metadata_say_what_a_viewer_needs() {
    let graph = &cities::all()[0].graph;
    let options = ArchiveOptions { name: String::from("Fixton"), zooms: 10..=14 };
    let (archive, ..) = archive_of(graph, &options);
    let (header, metadata, bbox) = (&archive.header, archive.metadata(), graph.bbox());

    assert_eq!(header.spec_version(), 3);
    assert!(header.clustered());
    assert_eq!((header.tile_type, header.tile_compression), (TileType::Mvt, Compression::Gzip));
    assert_eq!(header.internal_compression(), Compression::Gzip);
    assert_eq!((header.min_zoom, header.max_zoom), (10, 14));
    assert!((10..=14).contains(&header.center_zoom));
    let said = [header.min_longitude, header.min_latitude, header.max_longitude, header.max_latitude];
    let truth = [bbox.south_west.lon(), bbox.south_west.lat(), bbox.north_east.lon(), bbox.north_east.lat()];
    assert!(said.iter().zip(truth).all(|(said, truth)| (said - truth).abs() < 2e-7), "{said:?} {truth:?}");
    assert!((header.min_longitude..header.max_longitude).contains(&header.center_longitude));
    assert!((header.min_latitude..header.max_latitude).contains(&header.center_latitude));

    assert_eq!(metadata["name"], "Fixton");
    assert_eq!(metadata["attribution"], "© OpenStreetMap contributors");
    assert_eq!(metadata["version"], graph.version().to_string());
    let layers = metadata["vector_layers"].as_array().unwrap();
    assert_eq!(layers.iter().map(|layer| layer["id"].as_str().unwrap()).collect::<Vec<_>>(), LAYERS);
    assert!(layers.iter().all(|layer| layer["minzoom"] == 10 && layer["maxzoom"] == 14));
    assert!(layers.iter().all(|layer| layer["fields"].as_object().unwrap().values().all(|kind| kind == "String")));
    assert!(archive.tile(9, 213, 187).is_none(), "a zoom that was not asked for");
}

#[test]
fn the_same_map_gives_the_same_archive_to_the_byte() {
    let graph = &cities::all()[0].graph;
    let options = ArchiveOptions { zooms: 5..=14, ..ArchiveOptions::default() };

    let (one, other) = (archive_of(graph, &options).0, archive_of(graph, &options).0);

    assert!(one.bytes == other.bytes);
}

#[test]
fn more_tiles_than_one_directory_holds_are_all_found() {
    let Some(city) = cities::all().iter().find(|city| city.name == "porto") else {
        return eprintln!("SKIPPED: the generated town has too few tiles");
    };
    let graph = &city.graph;
    let options = ArchiveOptions { zooms: 17..=17, ..ArchiveOptions::default() };

    let (archive, tiles, _) = archive_of(graph, &options);

    assert!(archive.ranges[2].1 > 0, "{tiles} tiles in the root alone: this shows nothing of leaves");
    let centre = graph.node_position(maps::NodeId(0)).unwrap();
    let scale = f64::from(1_u32 << 17);
    let x = ((centre.lon() + 180.0) / 360.0 * scale) as u32;
    let y = ((1.0 - centre.lat().to_radians().tan().asinh() / std::f64::consts::PI) / 2.0 * scale) as u32;
    assert_eq!(archive.tile(17, x, y), Some(tile(graph, 17, x, y)));
}

#[test]
fn what_cannot_be_written_leaves_nothing_behind() {
    let graph = &cities::all()[0].graph;
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("missing/city.pmtiles");
    let is_folder = folder.path().join("folder.pmtiles");
    std::fs::create_dir(&is_folder).unwrap();
    let few = ArchiveOptions { zooms: 10..=10, ..ArchiveOptions::default() };

    let wrong_zooms = ArchiveOptions { zooms: 3..=30, ..ArchiveOptions::default() };
    assert!(matches!(write(graph, &is_folder, &wrong_zooms, &|_, _| {}), Err(ArchiveError::Zooms(_))));
    for path in [&nowhere, &is_folder] {
        assert!(matches!(write(graph, path, &few, &|_, _| {}), Err(ArchiveError::Write { .. })), "{path:?}");
    }

    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["folder.pmtiles"]);
}
