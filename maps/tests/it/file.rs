//! A map file that was cut short or changed is refused, whatever the place.

use maps::import::{ImportOptions, import, import_bytes};
use maps::{Graph, MapError};

use crate::cities;

#[test]
fn the_same_extract_gives_the_same_bytes() {
    let again = import_bytes(cities::town_extract(), &ImportOptions::default()).unwrap();

    assert!(again == cities::town_map());
}

#[test]
fn a_map_cut_short_anywhere_is_refused() {
    let map = import_bytes(&cities::hamlet_extract(), &ImportOptions::default()).unwrap();
    assert!(Graph::from_bytes(&map).is_ok());

    for len in (0..map.len()).filter(|len| *len < 1_000 || len % 61 == 0 || len % 64 == 0 || len + 70 > map.len()) {
        let error = Graph::from_bytes(&map[..len]).err();
        assert!(matches!(error, Some(MapError::CutShort { .. } | MapError::NotAMap)), "{len}: {error:?}");
    }
    let longer = [&map[..], &[0; 64]].concat();
    assert!(matches!(Graph::from_bytes(&longer).err(), Some(MapError::TooLong { .. })));
}

#[test]
fn a_map_with_one_changed_bit_is_refused() {
    let map = import_bytes(&cities::hamlet_extract(), &ImportOptions::default()).unwrap();
    let mut changed = map.clone();

    for at in 0..map.len() {
        let bit = 1 << (at % 8);
        changed[at] ^= bit;
        assert!(Graph::from_bytes(&changed).is_err(), "byte {at} of {}", map.len());
        changed[at] ^= bit;
    }
}

#[test]
fn a_map_whose_checksums_fit_but_whose_numbers_do_not_is_refused_or_harmless() {
    let map = import_bytes(&cities::hamlet_extract(), &ImportOptions::default()).unwrap();
    let sections = u32::from_le_bytes(map[12..16].try_into().unwrap()) as usize;
    let mut refused = 0;
    for section in 0..sections {
        let entry = 64 + section * 24;
        let start = u64::from_le_bytes(map[entry + 8..entry + 16].try_into().unwrap()) as usize;
        let len = u64::from_le_bytes(map[entry + 16..entry + 24].try_into().unwrap()) as usize;
        for at in (start..start + len).step_by(37) {
            let mut changed = map.clone();
            changed[at] = !changed[at];
            let crc = crc32fast::hash(&changed[start..start + len]);
            changed[entry + 4..entry + 8].copy_from_slice(&crc.to_le_bytes());
            let table = crc32fast::hash(&changed[64..64 + sections * 24]);
            changed[60..64].copy_from_slice(&table.to_le_bytes());
            match Graph::from_bytes(&changed) {
                Err(_) => refused += 1,
                Ok(graph) => use_all(graph),
            }
        }
    }
    assert!(refused > 100, "{refused}");
}

/// Touches everything; a panic is the failure.
fn use_all(graph: Graph) {
    use maps::Profile;
    use maps::router::{Dijkstra, Endpoint, Hierarchy, Router, Weights};
    let mut found = Vec::new();
    for edge in graph.edges() {
        let _ = (graph.name(edge), graph.class(edge), graph.geometry(edge).count(), graph.osm_way(edge));
        let middle = graph.position_at(edge, graph.length_cm(edge) / 2);
        let _ = graph.stretch(edge, 0, u32::MAX);
        if edge.0 % 16 == 0 {
            graph.candidates(middle, 50.0, Profile::Car, &mut found);
        }
    }
    let graph = std::sync::Arc::new(graph);
    let centre = Endpoint::Position(graph.bbox().centre());
    let weights = Weights::free_flow(&graph, Profile::Car);
    let _ = Dijkstra::new(graph.clone(), weights.clone()).route(&centre, &centre);
    let _ = Hierarchy::new(graph.clone(), weights).map(|router| router.route(&centre, &centre));
    let _ = maps::info::Info::of(&graph).to_string();
    for zoom in 5..17 {
        let _ = maps::tiles::tile(&graph, zoom, (150 << zoom) / 360, (1 << zoom) * 3 / 8);
    }
}

#[test]
fn a_map_is_written_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let (extract, map) = (folder.path().join("a.osm.pbf"), folder.path().join("a.wfm"));
    std::fs::write(&map, b"what was there before").unwrap();
    std::fs::write(&extract, &cities::hamlet_extract()[..2_000]).unwrap();

    assert!(import(&extract, &map, &ImportOptions::default(), &|_| {}).is_err());
    assert_eq!(std::fs::read(&map).unwrap(), b"what was there before");

    std::fs::write(&extract, cities::hamlet_extract()).unwrap();
    let imported = import(&extract, &map, &ImportOptions::default(), &|_| {}).unwrap();
    let graph = Graph::open(&map).unwrap();
    assert_eq!(imported.version, graph.version().to_string());
    assert_eq!(imported.edges, graph.edge_count());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing else is left behind");
}

#[test]
fn what_is_no_map_is_said_to_be_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.wfm");

    assert!(matches!(Graph::open(&path).err(), Some(MapError::Io { .. })));
    std::fs::write(&path, b"").unwrap();
    assert!(matches!(Graph::open(&path).err(), Some(MapError::NotAMap)));
    std::fs::write(&path, cities::town_extract()).unwrap();
    assert!(matches!(Graph::open(&path).err(), Some(MapError::NotAMap)));
    let folder = Graph::open(folder.path()).err();
    assert!(
        matches!(&folder, Some(MapError::Io { source, .. }) if source.to_string() == "is a directory"),
        "{folder:?}"
    );
    let mut other = cities::town_map().to_vec();
    other[8] = 200;
    assert!(matches!(Graph::from_bytes(&other).err(), Some(MapError::Format { found: 200 })));
}
