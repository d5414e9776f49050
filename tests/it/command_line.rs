//! The binary as someone meets it on a command line: what it makes, and what it says when it can't.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

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

#[test]
fn what_is_no_extract_is_told_for_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (extract, map) = town(folder.path());
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("city.osm"), "<?xml version='1.0'?><osm version='0.6'></osm>").unwrap();
    std::fs::write(path("city.osm.bz2"), "BZh91AY&SY").unwrap();
    std::fs::write(path("city.osm.gz"), [0x1f, 0x8b, 8, 0]).unwrap();
    std::fs::write(path("notes.osm.pbf"), "to do: buy milk").unwrap();
    std::fs::write(path("empty.osm.pbf"), "").unwrap();
    std::fs::create_dir(path("folder.osm.pbf")).unwrap();
    let cases = [
        (path("city.osm"), "it is XML"),
        (path("city.osm.bz2"), "bzip2"),
        (path("city.osm.gz"), "gzip"),
        (path("notes.osm.pbf"), "not an OpenStreetMap extract"),
        (path("empty.osm.pbf"), "empty"),
        (path("folder.osm.pbf"), "is a folder"),
        (path("nowhere.osm.pbf"), "No such file"),
        (map.clone(), "a map file already"),
    ];
    for (file, expected) in cases {
        let out = path("out.wfm");

        let imported = wayfix(&["maps", "import", file.to_str().unwrap(), "-o", out.to_str().unwrap()]);

        assert_eq!(imported.status.code(), Some(1));
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(said(&imported).contains(name) && said(&imported).contains(expected), "{name}: {}", said(&imported));
        assert!(!out.exists());
    }
    let info = wayfix(&["maps", "info", extract.to_str().unwrap()]);
    assert!(said(&info).contains("wayfix maps import"), "{}", said(&info));
}

#[test]
fn a_map_beside_another_town_is_worse_and_a_pipeline_hears_it() {
    let folder = tempfile::tempdir().unwrap();
    let (_, old) = town(folder.path());
    let (extract, new) = (folder.path().join("other.osm.pbf"), folder.path().join("other.wfm"));
    let [old, new, extract] = [&old, &new, &extract].map(|path| path.to_str().unwrap());
    assert!(wayfix(&["maps", "town", "-o", extract, "--seed", "2"]).status.success());
    assert!(wayfix(&["maps", "import", extract, "-o", new]).status.success());
    let trips = folder.path().join("trips.jsonl");
    std::fs::write(&trips, drive(Path::new(old))).unwrap();
    let trips = trips.to_str().unwrap();

    let itself = wayfix(&["maps", "diff", old, old, "--trace", trips, "--fail-if-worse", "0"]);
    let other = wayfix(&["maps", "diff", old, new, "--trace", trips, "--json"]);
    let refused = wayfix(&["maps", "diff", old, new, "--trace", trips, "--fail-if-worse", "0.5"]);
    let streets_only = wayfix(&["maps", "diff", old, new]);
    let without_trips = wayfix(&["maps", "diff", old, new, "--fail-if-worse", "1"]);

    assert!(itself.status.success(), "{}", said(&itself));
    let report: serde_json::Value = serde_json::from_slice(&other.stdout).unwrap();
    assert_eq!(other.status.code(), Some(0), "without a limit it only reports");
    assert!(report["trips"]["new"]["placed"].as_u64() < report["trips"]["old"]["placed"].as_u64(), "{report}");
    assert!(report["roads"]["total"]["km_removed"].as_f64().unwrap() > 10.0, "{report}");
    assert_eq!(report["trips"]["by_trip"][0]["id"], "drive", "{report}");
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("fewer fixes are placed"), "{}", said(&refused));
    let table = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert!(table.contains("worse by the new map") && table.contains("fixes on roads"), "{table}");
    assert!(streets_only.status.success() && !String::from_utf8_lossy(&streets_only.stdout).contains("trips"));
    assert_eq!(without_trips.status.code(), Some(2), "a limit needs trips: {}", said(&without_trips));
}

/// A drive across the town, as a line of JSON.
fn drive(map: &Path) -> String {
    let info = wayfix(&["maps", "info", "--json", map.to_str().unwrap()]);
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
    let middle = |axis: &str| {
        let at = |corner: &str| info["bbox"][corner][axis].as_f64().unwrap() / 1e7;
        (at("south_west") + at("north_east")) / 2.0
    };
    let (lat, lon) = (middle("lat_e7"), middle("lon_e7"));
    let [from, to] = [format!("{},{}", lat - 0.006, lon - 0.006), format!("{},{}", lat + 0.006, lon + 0.006)];
    let route = wayfix(&["maps", "route", &from, &to, "--geojson", "--map", map.to_str().unwrap()]);
    let route: serde_json::Value = serde_json::from_slice(&route.stdout).unwrap();
    let points: Vec<[f64; 2]> = serde_json::from_value(route["geometry"]["coordinates"].clone()).unwrap();
    let fixes: Vec<_> = points.iter().enumerate().map(|(i, [lon, lat])| (i as f64 * 6.0, lon, lat)).collect();
    serde_json::json!({"id": "drive", "fixes": fixes}).to_string()
}

#[test]
fn other_ways_are_listed_and_a_road_to_avoid_is_avoided() {
    let folder = tempfile::tempdir().unwrap();
    let (_, map) = town(folder.path());
    let map = map.to_str().unwrap();
    let trip: serde_json::Value = serde_json::from_str(&drive(Path::new(map))).unwrap();
    let fixes = trip["fixes"].as_array().unwrap();
    let place = |fix: &serde_json::Value| format!("{},{}", fix[2], fix[1]);
    let [from, to, middle] = [&fixes[0], &fixes[fixes.len() - 1], &fixes[fixes.len() / 2]].map(place);
    let line = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();

    let usual = wayfix(&["maps", "route", &from, &to, "--map", map, "--geojson"]);
    let around = wayfix(&["maps", "route", &from, &to, "--map", map, "--geojson", "--avoid", &middle]);
    let others = wayfix(&["maps", "route", &from, &to, "--map", map, "--geojson", "--alternatives", "2"]);
    let on_foot = wayfix(&["maps", "route", &from, &to, "--map", map, "--profile", "foot"]);
    let nowhere = wayfix(&["maps", "route", &from, "0,0", "--map", map]);

    assert!(usual.status.success() && around.status.success() && on_foot.status.success());
    assert_ne!(line(&usual), line(&around));
    let others: serde_json::Value = serde_json::from_slice(&others.stdout).unwrap();
    assert_eq!(others["type"], "FeatureCollection");
    assert!(others["features"].as_array().unwrap().len() >= 2, "{others}");
    assert!(said(&nowhere).contains("is not on the map"), "{}", said(&nowhere));
}

#[test]
fn all_tiles_of_a_map_go_into_one_archive() {
    let folder = tempfile::tempdir().unwrap();
    let (_, map) = town(folder.path());
    let archive = folder.path().join("town.pmtiles");

    let written = wayfix(&["maps", "tiles", map.to_str().unwrap(), "--zoom-max", "14"]);
    let too_close = wayfix(&["maps", "tiles", map.to_str().unwrap(), "--zoom-max", "30"]);
    let upside_down = wayfix(&["maps", "tiles", map.to_str().unwrap(), "--zoom-min", "12", "--zoom-max", "10"]);

    assert!(written.status.success(), "{}", said(&written));
    assert!(std::fs::read(archive).unwrap().starts_with(b"PMTiles\x03"));
    assert_eq!(too_close.status.code(), Some(2));
    assert_eq!(upside_down.status.code(), Some(1), "{}", said(&upside_down));
    assert!(said(&upside_down).contains("must not be above the last"), "{}", said(&upside_down));
}

#[test]
fn nothing_is_written_over_what_is_read_or_is_something_else() {
    let folder = tempfile::tempdir().unwrap();
    let (extract, map) = town(folder.path());
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("trips.jsonl"), drive(&map)).unwrap();
    std::fs::write(path("notes.txt"), "to do: buy milk").unwrap();
    std::os::unix::fs::symlink(&extract, path("link.osm.pbf")).unwrap();
    std::fs::hard_link(&map, path("other.wfm")).unwrap();
    let [extract, map] = [&extract, &map].map(|file| file.to_str().unwrap().to_owned());
    let [trips, notes, link, other] =
        ["trips.jsonl", "notes.txt", "link.osm.pbf", "other.wfm"].map(|name| path(name).to_str().unwrap().to_owned());
    let cases: [(&[&str], &str); 13] = [
        (&["import", &extract, "-o", &extract], "is what is read, too"),
        (&["import", &extract, "-o", &link], "is what is read, too"),
        (&["import", &extract, "-o", &notes], "is not a map"),
        (&["import", &extract, "-o", "/dev/null"], "is no file"),
        (&["tiles", &map, "-o", &map], "is what is read, too"),
        (&["tiles", &map, "-o", &other], "is what is read, too"),
        (&["tiles", &map, "-o", &extract], "is not a PMTiles archive"),
        (&["town", "-o", &map], "is not an extract"),
        (&["match", &trips, "--map", &map, "-o", &trips], "is what is read, too"),
        (&["match", &trips, "--map", &map, "-o", &notes], "is not JSON"),
        (&["match", &trips, "--map", &map, "--html", &trips], "is what is read, too"),
        (&["speeds", &map, "-o", &map], "is what is read, too"),
        (&["speeds", &map, "--html", &notes], "is not a page"),
    ];
    let contents = || [&extract, &map, &trips, &notes].map(|file| std::fs::read(file).unwrap());
    let before = contents();

    for (arguments, expected) in cases {
        let output = wayfix(&[&["maps"], arguments].concat());

        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(said(&output).contains(expected), "{arguments:?}: {}", said(&output));
        assert!(contents() == before, "{arguments:?}");
    }
}

#[test]
fn what_a_command_has_written_it_may_write_again() {
    let folder = tempfile::tempdir().unwrap();
    let (extract, map) = town(folder.path());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("trips.jsonl"), drive(&map)).unwrap();
    std::fs::write(path("empty.pmtiles"), "").unwrap();
    let [extract, map] = [extract, map].map(|file| file.to_str().unwrap().to_owned());
    let [trips, routes, page, table, speeds] =
        ["trips.jsonl", "routes.jsonl", "page.html", "table", "speeds.html"].map(path);
    let cases: [&[&str]; 5] = [
        &["town", "-o", &extract],
        &["import", &extract, "-o", &map],
        &["tiles", &map, "--zoom-max", "8", "-o", &path("empty.pmtiles")],
        &["match", &trips, "--map", &map, "-o", &routes, "--html", &page],
        &["speeds", &map, "-o", &table, "--html", &speeds],
    ];

    for arguments in cases.into_iter().flat_map(|arguments| [arguments; 2]) {
        let output = wayfix(&[&["maps"], arguments].concat());

        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
    }
}

#[test]
fn a_reader_that_stops_ends_nothing_and_a_full_disk_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let (_, map) = town(folder.path());
    let trips = folder.path().join("trips.jsonl");
    std::fs::write(&trips, drive(&map)).unwrap();
    let trip: serde_json::Value = serde_json::from_str(&drive(&map)).unwrap();
    let fixes = trip["fixes"].as_array().unwrap();
    let [from, to] = [&fixes[0], &fixes[fixes.len() - 1]].map(|fix| format!("{},{}", fix[2], fix[1]));
    let page = folder.path().join("page.html");
    let [map, trips, page] = [&map, &trips, &page].map(|file| file.to_str().unwrap());
    let cases: [&[&str]; 8] = [
        &["maps", "match", trips, "--map", map, "--html", page],
        &["maps", "info", map],
        &["maps", "info", map, "--json"],
        &["maps", "route", &from, &to, "--map", map],
        &["maps", "route", &from, &to, "--map", map, "--geojson"],
        &["maps", "speeds", map],
        &["maps", "diff", map, map, "--trace", trips],
        &["config", "show"],
    ];

    for arguments in cases {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let unread = Command::new(WAYFIX).args(arguments).stdout(writer).output().unwrap();
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let full = Command::new(WAYFIX).args(arguments).stdout(full).output().unwrap();

        assert!(unread.status.success() && !said(&unread).contains("panicked"), "{arguments:?}: {}", said(&unread));
        assert_eq!(full.status.code(), Some(1), "{arguments:?}: {}", said(&full));
        assert!(said(&full).contains("No space left") && !said(&full).contains("panicked"), "{}", said(&full));
        if arguments.contains(&"--html") {
            assert!(
                std::fs::read_to_string(page).unwrap().trim_end().ends_with("</html>"),
                "the page is written all the same"
            );
        }
    }
}

#[test]
fn no_limit_is_kept_without_a_fix_that_was_compared() {
    let folder = tempfile::tempdir().unwrap();
    let (_, map) = town(folder.path());
    let map = map.to_str().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("header.csv"), "TRIP_ID,TIMESTAMP,POLYLINE\n").unwrap();
    std::fs::write(path("no_fix.jsonl"), r#"{"id":1,"fixes":[]}"#).unwrap();
    std::fs::write(path("elsewhere.jsonl"), r#"{"id":1,"fixes":[[0,100,10],[5,100,10.0001]]}"#).unwrap();

    for trips in ["header.csv", "no_fix.jsonl", "elsewhere.jsonl"].map(path) {
        let output = wayfix(&["maps", "diff", map, map, "--trace", &trips, "--fail-if-worse", "100"]);

        assert_eq!(output.status.code(), Some(1), "{trips}");
        assert!(said(&output).contains("nothing was compared"), "{}", said(&output));
    }
}

#[test]
fn amounts_and_countries_that_cannot_be_are_refused() {
    let cases = [
        ["diff", "a", "b", "--trace=c", "--fail-if-worse=nan"],
        ["diff", "a", "b", "--trace=c", "--fail-if-worse=-1"],
        ["diff", "a", "b", "--trace=c", "--every=inf"],
        ["match", "a", "b", "--map=c", "--every=nan"],
        ["match", "a", "b", "--map=c", "--every=-4"],
        ["import", "a", "-o", "b", "--country=PRT"],
        ["import", "a", "-o", "b", "--country=XX"],
    ];

    for arguments in cases {
        let output = wayfix(&[&["maps"], &arguments[..]].concat());

        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", said(&output));
        assert!(said(&output).contains("invalid value"), "{arguments:?}: {}", said(&output));
    }
    let lower_case = wayfix(&["maps", "import", "nowhere.osm.pbf", "-o", "nowhere.wfm", "--country", "pt"]);
    assert!(said(&lower_case).contains("No such file"), "{}", said(&lower_case));
}

#[test]
fn fixes_whose_time_goes_back_are_counted_and_the_others_keep_their_places() {
    let folder = tempfile::tempdir().unwrap();
    let (_, map) = town(folder.path());
    let mut trip: serde_json::Value = serde_json::from_str(&drive(&map)).unwrap();
    let count = trip["fixes"].as_array().unwrap().len();
    trip["fixes"][1][0] = (-5.0).into();
    let trips = folder.path().join("trips.jsonl");
    std::fs::write(&trips, trip.to_string()).unwrap();
    let [map, trips] = [&map, &trips].map(|file| file.to_str().unwrap());

    let matched = wayfix(&["maps", "match", trips, "--map", map, "--to", "geojson"]);

    let said = said(&matched);
    assert!(said.contains("1 points are left out: their time does not fit"), "{said}");
    assert!(said.contains(&format!("1 trips, {} fixes, ", count - 1)), "{said}");
    let features: serde_json::Value = serde_json::from_slice(&matched.stdout).unwrap();
    let features = features["features"].as_array().unwrap();
    let points: Vec<_> = features.iter().filter(|one| one["geometry"]["type"] == "Point").collect();
    assert_eq!(points.len(), count - 1);
    for point in points {
        for axis in [0, 1] {
            let [at, snapped] = [&point["geometry"]["coordinates"], &point["properties"]["snapped"]];
            let apart = snapped[axis].as_f64().map(|snapped| snapped - at[axis].as_f64().unwrap());
            assert!(apart.unwrap_or(0.0).abs() < 0.0003, "{point}");
        }
    }
}

#[test]
fn arrivals_are_reported_on_the_trips_of_several_files() {
    let folder = tempfile::tempdir().unwrap();
    let (_, map) = town(folder.path());
    let mut trip: serde_json::Value = serde_json::from_str(&drive(&map)).unwrap();
    let fixes = trip["fixes"].as_array_mut().unwrap();
    let apart_s = 300.0 / (fixes.len() - 1) as f64;
    fixes.iter_mut().enumerate().for_each(|(i, fix)| fix[0] = (i as f64 * apart_s).into());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let [one, other, page] = ["one.jsonl", "other.jsonl", "report.html"].map(path);
    [&one, &other].into_iter().for_each(|file| std::fs::write(file, trip.to_string()).unwrap());
    let map = map.to_str().unwrap();

    let report = wayfix(&["maps", "eta-report", &one, &other, "--map", map, "--html", &page, "--untaught"]);
    let over_input = wayfix(&["maps", "eta-report", &one, &other, "--map", map, "--html", &other]);

    assert!(report.status.success(), "{}", said(&report));
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("one.jsonl, other.jsonl, 2 of 2 trips"));
    assert_eq!(over_input.status.code(), Some(1));
    assert!(said(&over_input).contains("is what is read, too"), "{}", said(&over_input));
}
