//! A broken extract gives an error that says where, never a panic and never half a map.

use maps::import::{ImportError, ImportOptions, import_bytes};

use crate::cities;

fn error_of(extract: &[u8]) -> ImportError {
    import_bytes(extract, &ImportOptions::default()).expect_err("an error")
}

/// Where each frame begins: the length of its header, the header, the blob.
fn frames(extract: &[u8]) -> Vec<(usize, usize)> {
    use osmpbfreader::fileformat::BlobHeader;
    use protobuf::Message;
    let mut frames = Vec::new();
    let mut at = 0;
    while at < extract.len() {
        let len = u32::from_be_bytes(extract[at..at + 4].try_into().unwrap()) as usize;
        let header = BlobHeader::parse_from_bytes(&extract[at + 4..at + 4 + len]).unwrap();
        let end = at + 4 + len + header.datasize() as usize;
        frames.push((at, end));
        at = end;
    }
    frames
}

#[test]
fn an_extract_cut_short_says_where() {
    let extract = cities::hamlet_extract();
    let frames = frames(&extract);
    assert!(frames.len() >= 4);

    for (number, (start, end)) in frames.iter().enumerate() {
        for cut in [start + 1, start + 3, start + 4, start + 10, (start + end) / 2, end - 1] {
            let error = error_of(&extract[..cut]);
            if let ImportError::NotAnExtract = error {
                assert_eq!(number, 0);
                continue;
            }
            let ImportError::CutShort { at, found, needed } = error else { panic!("cut at {cut}: {error}") };
            assert_eq!((at, found), (*start as u64, cut as u64));
            assert!(needed > found);
        }
    }
}

#[test]
fn an_extract_without_its_last_blocks_is_no_town() {
    let extract = cities::hamlet_extract();
    let frames = frames(&extract);

    // Only the header; header and nodes.
    assert!(matches!(error_of(&extract[..frames[0].1]), ImportError::NoRoads { ways: 0 }));
    assert!(matches!(error_of(&extract[..frames[1].1]), ImportError::NoRoads { ways: 0 }));
}

#[test]
fn nothing_and_something_else_are_told_apart() {
    assert!(matches!(error_of(&[]), ImportError::Empty));
    for other in [&b"x"[..], b"<?xml version='1.0'?><osm></osm>", &[0; 100], &[255; 100], b"PK\x03\x04 a zip archive"] {
        assert!(matches!(error_of(other), ImportError::NotAnExtract), "{other:?}");
    }
    let extract = cities::hamlet_extract();
    let frames = frames(&extract);
    assert!(matches!(error_of(&extract[frames[0].1..]), ImportError::NotAnExtract), "no header");
}

#[test]
fn any_changed_byte_is_an_error_or_another_map() {
    let extract = cities::hamlet_extract();
    let mut changed = extract.clone();
    let mut errors = 0;
    for at in (0..extract.len()).filter(|at| *at < 400 || at % 23 == 0) {
        changed[at] ^= 0x55;
        match import_bytes(&changed, &ImportOptions::default()) {
            Err(error) => {
                assert!(!error.to_string().is_empty());
                errors += 1;
            }
            Ok(map) => assert!(maps::Graph::from_bytes(&map).is_ok()),
        }
        changed[at] = extract[at];
    }
    assert!(errors > 100, "{errors}");
}

#[test]
fn objects_may_come_in_any_order() {
    let extract = cities::hamlet_extract();
    let frames = frames(&extract);
    let mut turned = extract[..frames[0].1].to_vec();
    for (start, end) in frames[1..].iter().rev() {
        turned.extend_from_slice(&extract[*start..*end]);
    }

    let (sorted, turned) = (
        import_bytes(&extract, &ImportOptions::default()).unwrap(),
        import_bytes(&turned, &ImportOptions::default()).unwrap(),
    );

    assert!(sorted == turned, "relations before ways before nodes");
}

#[test]
fn numbers_that_point_outside_their_block_are_an_error() {
    use osmpbfreader::fileformat::{Blob, BlobHeader};
    use osmpbfreader::osmformat::{PrimitiveBlock, PrimitiveGroup, StringTable, Way};
    use protobuf::Message;
    let extract = cities::hamlet_extract();
    let mut way = Way::new();
    way.set_id(1);
    way.keys = vec![7_000_000];
    way.vals = vec![1];
    let mut group = PrimitiveGroup::new();
    group.ways = vec![way];
    let mut block = PrimitiveBlock::new();
    block.stringtable = Some(StringTable::new()).into();
    block.primitivegroup = vec![group];
    let mut blob = Blob::new();
    blob.set_raw(block.write_to_bytes().unwrap());
    let blob = blob.write_to_bytes().unwrap();
    let mut header = BlobHeader::new();
    header.set_type("OSMData".to_owned());
    header.set_datasize(blob.len() as i32);
    let header = header.write_to_bytes().unwrap();
    let at = (extract.len() + 4 + header.len()) as u64;
    let bad = [&extract[..], &(header.len() as u32).to_be_bytes(), &header, &blob].concat();

    let error = error_of(&bad);
    let ImportError::Damaged { at: said, .. } = error else { panic!("{error}") };
    assert_eq!(said, at);
}

#[test]
fn real_extracts_cut_anywhere_are_refused() {
    for name in ["helsinki", "monaco"] {
        let Some(extract) = cities::extract(name) else {
            eprintln!("SKIPPED: {name}.osm.pbf is not there");
            continue;
        };
        let frames = frames(&extract);
        for (_, end) in &frames[..frames.len() - 1] {
            for cut in [end - 1, end + 1] {
                assert!(matches!(error_of(&extract[..cut]), ImportError::CutShort { .. }), "{name} at {cut}");
            }
        }
    }
}
