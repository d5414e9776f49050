//! GPX as recorders write it, driven again: by `wayfix replay` against a running server, and refused where it cannot be.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::fleet::Sim;
use crate::harness::{Server, ServerOptions, WAYFIX};
use crate::maps::town;

/// A way through the town, as lon and lat.
fn way() -> Result<Vec<[f64; 2]>> {
    let map = town()?;
    let info = Command::new(WAYFIX).args(["maps", "info", "--json"]).arg(&map).output()?;
    let info: Value = serde_json::from_slice(&info.stdout)?;
    let at = |corner: &str, axis: &str| info["bbox"][corner][axis].as_f64().map(|e7| e7 / 1e7).context("a corner");
    let [south, west] = [at("south_west", "lat_e7")?, at("south_west", "lon_e7")?];
    let [north, east] = [at("north_east", "lat_e7")?, at("north_east", "lon_e7")?];
    let place = |share: f64| format!("{},{}", south + (north - south) * share, west + (east - west) * share);
    let mut route = Command::new(WAYFIX);
    route.args(["maps", "route", &place(0.4), &place(0.7), "--geojson", "--map"]).arg(&map);
    let feature: Value = serde_json::from_slice(&route.output()?.stdout).context("a route")?;
    Ok(serde_json::from_value(feature["geometry"]["coordinates"].clone())?)
}

/// As a Garmin device writes it: namespaces, extensions, waypoints, and a new segment after a stop.
fn garmin(line: &[[f64; 2]], has_times: bool) -> String {
    let mut text = String::from(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<gpx creator="Garmin Connect" version="1.1" xmlns="http://www.topografix.com/GPX/1/1"
  xmlns:ns3="http://www.garmin.com/xmlschemas/TrackPointExtension/v1" xmlns:ns2="http://www.garmin.com/xmlschemas/GpxExtensions/v3">
  <metadata><link href="connect.garmin.com"><text>Garmin Connect</text></link><time>2024-05-01T07:59:58.000Z</time></metadata>
  <wpt lat="0" lon="0"><name>Café &lt;script&gt;</name></wpt>
  <trk><name>Morning &amp; evening</name><type>cycling</type>"#,
    );
    for (half, points) in line.chunks(line.len().div_ceil(2)).enumerate() {
        text += "<trkseg>";
        for (i, [lon, lat]) in points.iter().enumerate() {
            let seconds = half * 1800 + i * 5;
            let time = format!("<time>2024-05-01T08:{:02}:{:02}.000Z</time>", seconds / 60, seconds % 60);
            let time = if has_times { time.as_str() } else { "" };
            text += &format!(
                r#"<trkpt lat="{lat}" lon="{lon}"><ele>23.6</ele>{time}<extensions><ns3:TrackPointExtension>
                <ns3:atemp>18.0</ns3:atemp><ns3:hr>90</ns3:hr></ns3:TrackPointExtension></extensions></trkpt>"#
            );
        }
        text += "</trkseg>";
    }
    text + "</trk></gpx>"
}

fn write(folder: &Path, name: &str, text: &str) -> Result<std::path::PathBuf> {
    let file = folder.join(name);
    std::fs::write(&file, text)?;
    Ok(file)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_track_is_driven_again_with_its_times_or_without() -> Result<()> {
    let line = way()?;
    ensure!(line.len() > 20, "the way is too short to show anything: {} points", line.len());
    let server =
        Server::start(ServerOptions { map: Some(town()?), clock_factor: Some(20.0), ..Default::default() }).await?;
    for (name, has_times) in [("timed.gpx", true), ("untimed.gpx", false)] {
        let file = write(server.folder(), name, &garmin(&line, has_times))?;

        let report = Sim::replay(&server, &file, &[])?.wait(Duration::from_secs(120)).await?;

        // Each segment is a trip of its own.
        ensure!(report["deliveries_delivered"] == 2 && report["deliveries_failed"] == 0, "{name}: {report}");
        ensure!(report["fixes_made"] == line.len(), "{name}: {report} for {} points", line.len());
        ensure!(report["fixes_acked"] == report["fixes_made"] && report["fixes_left"] == 0, "{name}: {report}");
    }
    let matched = Command::new(WAYFIX)
        .args(["maps", "match", "--map"])
        .args([&town()?, &server.folder().join("timed.gpx"), &server.folder().join("untimed.gpx")])
        .output()?;
    let routes = String::from_utf8(matched.stdout)?;
    let ids: Vec<Value> =
        routes.lines().map(|line| Ok(serde_json::from_str::<Value>(line)?["id"].clone())).collect::<Result<_>>()?;
    ensure!(ids == ["Morning & evening 1", "Morning & evening 2"].repeat(2), "{ids:?}");
    Ok(())
}

#[test]
fn a_page_of_matched_trips_holds_tiles_and_no_trips_name_breaks_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let evil = garmin(&way()?, true).replace("Morning &amp; evening", "&lt;/script&gt;&lt;script&gt;alert(1)");
    let file = write(folder.path(), "evil.gpx", &evil)?;
    let page = folder.path().join("page.html");

    let matched = Command::new(WAYFIX)
        .args(["maps", "match", "--map"])
        .args([&town()?, &file])
        .arg("--html")
        .arg(&page)
        .output()?;

    ensure!(matched.status.success(), "{}", String::from_utf8_lossy(&matched.stderr));
    let page = std::fs::read_to_string(page)?;
    ensure!(page.matches("</script>").count() == 1, "a trip's name ends the script");
    let facts = page.split_once("const facts = ").context("the facts")?.1;
    let facts: Value = serde_json::Deserializer::from_str(facts).into_iter().next().context("the facts")??;
    ensure!(facts["tiles"].as_array().is_some_and(|tiles| tiles.len() > 3), "no tiles");
    let fix = &facts["trips"][0]["fixes"][1];
    ensure!(fix[3].as_array().is_some_and(|candidates| !candidates.is_empty()), "no candidates: {fix}");
    ensure!(facts["trips"][0]["id"] == "</script><script>alert(1) 1", "{}", facts["trips"][0]["id"]);
    Ok(())
}

#[test]
fn a_file_that_cannot_be_driven_says_which_and_why() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let map = town()?;
    let cases = [
        ("way.gpx", "<gpx><wpt lat='1' lon='2'/></gpx>", "only 1 way points"),
        ("other.gpx", "<osm/>", "not GPX: it begins with <osm>"),
        ("cut.gpx", "<gpx><trk><trkseg><trkpt lat='1' lon='2'>", "not GPX"),
        ("far.gpx", "<gpx><trk>\n<trkseg>\n<trkpt lat='91' lon='2'/>", "line 3: 91,2 is not on Earth"),
        ("trips.txt", "hello", "neither .gpx, .csv nor .jsonl"),
    ];
    for (name, text, expected) in cases {
        let file = write(folder.path(), name, text)?;

        let matched = Command::new(WAYFIX).args(["maps", "match", "--map"]).args([&map, &file]).output()?;

        let said = String::from_utf8_lossy(&matched.stderr).into_owned();
        ensure!(matched.status.code() == Some(1) && said.contains(name) && said.contains(expected), "{name}: {said}");
    }
    let elsewhere =
        write(folder.path(), "elsewhere.gpx", "<gpx><trk><trkseg><trkpt lat='1' lon='2'/></trkseg></trk></gpx>")?;
    let demo = Command::new(WAYFIX).args(["demo", "--map"]).arg(&map).arg("--trace").arg(&elsewhere).output()?;
    let said = String::from_utf8_lossy(&demo.stderr).into_owned();
    ensure!(!demo.status.success() && said.contains("lies nowhere on the map"), "{said}");
    Ok(())
}
