//! What people feed `wayfix maps` that is not as it should be: each known fault of other systems, an extract with half
//! of its points missing, and trips of another city.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::process::{Command, Output};

use crate::harness::WAYFIX;
use crate::shared_data::shared;

fn wayfix(arguments: &[&str]) -> Output {
    Command::new(WAYFIX).args(arguments).env_remove("WAYFIX__DATA").output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_input_that_went_wrong_elsewhere_comes_out_right() {
    let Some(check) = shared("bugs/maps/check.py") else { return };

    let checked = Command::new("python3").arg(&check).arg(WAYFIX).output().unwrap();

    let report = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.status.success(), "{report}{}", said(&checked));
    assert!(report.lines().count() > 30, "{report}");
    assert!(report.trim_end().ends_with("0 wrong"), "{report}");
}

/// Where each block of a PBF file begins and ends.
fn blocks(extract: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut blocks = Vec::new();
    let mut at = 0;
    while at < extract.len() {
        let header_len = u32::from_be_bytes(extract[at..at + 4].try_into().unwrap()) as usize;
        let header = &extract[at + 4..at + 4 + header_len];
        // The size of what follows is the header's last field: number 3, a varint.
        let tag = header.iter().rposition(|byte| *byte == 3 << 3).unwrap();
        let size = header[tag + 1..].iter().enumerate();
        let size = size.fold(0, |sum, (i, byte)| sum | (usize::from(byte & 0x7f) << (7 * i)));
        let end = at + 4 + header_len + size;
        blocks.push(at..end);
        at = end;
    }
    blocks
}

/// A town whose first block of points got lost.
fn incomplete_town(folder: &Path) -> String {
    let whole = folder.join("town.osm.pbf");
    let options = maps::town::TownOptions { junctions: 4_000, ..Default::default() };
    maps::town::write(&whole, &options).unwrap();
    let extract = std::fs::read(&whole).unwrap();
    let blocks = blocks(&extract);
    assert!(blocks.len() > 5, "a header, several blocks of points, ways, signs: {blocks:?}");
    let kept = [&extract[..blocks[1].start], &extract[blocks[1].end..]].concat();
    let path = folder.join("incomplete.osm.pbf");
    std::fs::write(&path, kept).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn an_extract_without_many_of_its_points_is_said_and_refused_by_who_asks_for_that() {
    let folder = tempfile::tempdir().unwrap();
    let extract = incomplete_town(folder.path());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();

    let lenient = wayfix(&["maps", "import", &extract, "-o", &path("lenient.wfm"), "--order-time-max", "0"]);
    let strict = wayfix(&["maps", "import", &extract, "-o", &path("strict.wfm"), "--order-time-max", "0", "--strict"]);

    assert_eq!(lenient.status.code(), Some(0), "{}", said(&lenient));
    assert!(said(&lenient).contains("points of roads are not in the extract"), "{}", said(&lenient));
    assert_eq!(strict.status.code(), Some(3), "{}", said(&strict));
    assert!(said(&strict).contains("--strict"), "{}", said(&strict));
    let mut left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["incomplete.osm.pbf", "lenient.wfm", "town.osm.pbf"], "a strict import leaves nothing behind");
}

#[test]
fn trips_of_another_city_are_said_to_lie_off_the_map_and_exchanged_axes_are_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (extract, map) = (path("town.osm.pbf"), path("town.wfm"));
    assert!(wayfix(&["maps", "town", "-o", &extract]).status.success());
    assert!(wayfix(&["maps", "import", &extract, "-o", &map]).status.success());
    let info = wayfix(&["maps", "info", "--json", &map]);
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
    let middle = |axis: &str| {
        let at = |corner: &str| info["bbox"][corner][axis].as_f64().unwrap() / 1e7;
        (at("south_west") + at("north_east")) / 2.0
    };
    let (lat, lon) = (middle("lat_e7"), middle("lon_e7"));
    let matched = |name: &str, lon: f64, lat: f64| {
        let fixes: Vec<_> = (0..10).map(|i| (f64::from(i) * 4.0, lon + f64::from(i) * 1e-4, lat)).collect();
        std::fs::write(path(name), serde_json::json!({"id": name, "fixes": fixes}).to_string()).unwrap();
        said(&wayfix(&["maps", "match", &path(name), "--map", &map]))
    };

    let here = matched("here.jsonl", lon, lat);
    let elsewhere = matched("elsewhere.jsonl", lon + 20.0, lat);
    let exchanged = matched("exchanged.jsonl", lat, lon);

    assert!(!here.contains("off the map"), "{here}");
    assert!(elsewhere.contains("1 of 1 trips lie off the map"), "{elsewhere}");
    assert!(!elsewhere.contains("exchanged"), "{elsewhere}");
    assert!(exchanged.contains("off the map") && exchanged.contains("exchanged"), "{exchanged}");
}
