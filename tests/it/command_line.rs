//! The binary as someone meets it on a command line: what it makes, and what it says when it can't.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::harness::WAYFIX;

fn wayfix(arguments: &[&str]) -> Output {
    Command::new(WAYFIX).args(arguments).env_remove("WAYFIX__DATA").output().expect("the binary runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A town drawn and imported, for tests that need a map.
fn town(folder: &Path) -> (PathBuf, PathBuf) {
    let (extract, map) = (folder.join("town.osm.pbf"), folder.join("town.wfm"));
    let (from, to) = (extract.to_str().expect("a path in UTF-8"), map.to_str().expect("a path in UTF-8"));
    let drawn = wayfix(&["maps", "town", "-o", from]);
    assert!(drawn.status.success(), "{}", said(&drawn));
    let imported = wayfix(&["maps", "import", from, "-o", to]);
    assert!(imported.status.success(), "{}", said(&imported));
    (extract, map)
}

#[test]
fn a_town_is_drawn_imported_described_and_routed_on() {
    let folder = tempfile::tempdir().unwrap();
    let (_, map) = town(folder.path());

    let info = wayfix(&["maps", "info", "--json", map.to_str().unwrap()]);
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();

    assert!(info["edges"].as_u64().unwrap() > 1000, "{info}");
}

#[test]
fn the_same_extract_makes_the_same_map_to_the_byte() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());

    let ((_, a), (_, b)) = (town(one.path()), town(other.path()));

    assert_eq!(std::fs::read(a).unwrap(), std::fs::read(b).unwrap());
}

#[test]
fn an_extract_cut_short_is_refused_with_its_place_and_leaves_no_map() {
    let folder = tempfile::tempdir().unwrap();
    let (extract, _) = town(folder.path());
    let bytes = std::fs::read(&extract).unwrap();
    let (cut, map) = (folder.path().join("cut.osm.pbf"), folder.path().join("cut.wfm"));
    std::fs::write(&cut, &bytes[..bytes.len() - 100]).unwrap();

    let imported = wayfix(&["maps", "import", cut.to_str().unwrap(), "-o", map.to_str().unwrap()]);

    assert_eq!(imported.status.code(), Some(1));
    assert!(said(&imported).contains("cut short") && said(&imported).contains("byte"), "{}", said(&imported));
    assert!(!map.exists());
}

#[test]
fn a_map_file_cut_short_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (_, map) = town(folder.path());
    let bytes = std::fs::read(&map).unwrap();
    std::fs::write(&map, &bytes[..bytes.len() / 2]).unwrap();

    let info = wayfix(&["maps", "info", map.to_str().unwrap()]);

    assert_eq!(info.status.code(), Some(1));
    assert!(said(&info).starts_with("wayfix: open the map"), "{}", said(&info));
}

#[test]
fn a_configuration_with_an_unknown_key_is_refused_as_bad_usage() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wayfix.toml");
    std::fs::write(&file, "[http]\nlissten = \"127.0.0.1:1\"\n").unwrap();

    let checked = wayfix(&["config", "check", "--config", file.to_str().unwrap()]);

    assert_eq!(checked.status.code(), Some(64));
    assert!(said(&checked).contains("lissten"), "{}", said(&checked));
}

#[test]
fn what_is_shown_as_configuration_can_be_used_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wayfix.toml");
    let shown = wayfix(&["config", "show"]);
    assert!(shown.status.success(), "{}", said(&shown));
    std::fs::write(&file, &shown.stdout).unwrap();

    let again = wayfix(&["config", "show", "--config", file.to_str().unwrap()]);

    assert_eq!(shown.stdout, again.stdout, "{}", said(&again));
}

#[test]
fn a_clock_that_runs_faster_than_life_is_refused_on_a_public_door() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wayfix.toml");
    std::fs::write(&file, "[http]\nlisten = \"0.0.0.0:8080\"\n[clock]\nfactor = 10.0\norigin_ms = 0\n").unwrap();

    let checked = wayfix(&["config", "check", "--config", file.to_str().unwrap()]);

    assert_eq!(checked.status.code(), Some(64));
    assert!(said(&checked).contains("loopback"), "{}", said(&checked));
}
