//! `wayfix maps match`: recorded traces through the online matcher, as live.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use maps::matcher::trip::{match_trip, route_parts};
use maps::matcher::{Matched, Scratch};
use maps::traces::{RouteLine, Trace};
use maps::{Graph, Profile};
use protocol::{Fix, Position};
use serde_json::json;

use super::draw;
use crate::output::{self, Kind, Standard};

#[derive(clap::Args)]
pub struct Options {
    /// GPX, the taxi CSV, or JSON lines of trips with truth.
    #[arg(required = true)]
    traces: Vec<PathBuf>,
    #[arg(long, value_name = "CITY.wfm")]
    map: PathBuf,
    /// Keeps a fix every so many seconds, and the trip's last.
    #[arg(long, default_value_t = 0.0, value_name = "SECONDS", value_parser = super::parse_amount)]
    every: f64,
    /// Whose ways count.
    #[arg(long, default_value = "car", value_parser = parse_profile)]
    profile: Profile,
    #[arg(long, value_enum, default_value_t = Form::Routes)]
    to: Form,
    /// Where to write; standard output if left out.
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// Draws traces, candidates, routes and where each fix was placed on the tiles, as a page that needs nothing else.
    #[arg(long, value_name = "PAGE.html")]
    html: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// A JSON line a trip: {"id", "route": [[[lon, lat], …], …]}.
    Routes,
    /// A feature collection: routes as lines, fixes as points with their places.
    Geojson,
}

/// A trip and what became of it.
pub struct MatchedTrip {
    pub trace: Trace,
    pub matched: Vec<Matched>,
    pub parts: Vec<Vec<Position>>,
}

impl MatchedTrip {
    /// The fixes that the matcher took, with what became of each.
    pub fn fixes(&self) -> impl Iterator<Item = (&Fix, &Matched)> {
        self.matched.iter().filter_map(|one| Some((self.trace.fixes.get(one.tag as usize)?, one)))
    }
}

pub fn run(options: &Options) -> Result<()> {
    let inputs: Vec<&Path> = options.traces.iter().chain([&options.map]).map(PathBuf::as_path).collect();
    for (file, kind) in [(&options.output, Kind::Routes), (&options.html, Kind::Page)] {
        file.iter().try_for_each(|file| output::check(file, kind, &inputs))?;
    }
    let graph = super::open(&options.map)?;
    let trips = match_all(&graph, super::read_traces(&options.traces, options.every)?, options.profile);
    let mut output: Box<dyn Write> = match &options.output {
        Some(path) => Box::new(BufWriter::new(File::create(path).with_context(|| format!("make {}", path.display()))?)),
        None => Box::new(BufWriter::new(Standard)),
    };
    let written = match options.to {
        Form::Routes => write_routes(&mut output, &trips),
        Form::Geojson => write_geojson(&mut output, &trips),
    };
    written.and_then(|()| output.flush()).context("write the matched trips")?;
    if let Some(page) = &options.html {
        draw::write_page(page, &graph, options.profile, &trips)?;
    }
    let placed = trips.iter().flat_map(|trip| &trip.matched).filter(|one| one.snapped.is_some()).count();
    let fixes: usize = trips.iter().map(|trip| trip.trace.fixes.len()).sum();
    eprintln!("{} trips, {fixes} fixes, {placed} placed on roads", trips.len());
    tell_off_map(&graph, &trips);
    Ok(())
}

/// Trips that lie elsewhere than the map are seldom meant: another city's file, or latitude and longitude exchanged.
fn tell_off_map(graph: &Graph, trips: &[MatchedTrip]) {
    let is_there = |trip: &&MatchedTrip| trip.trace.fixes.iter().any(|fix| graph.covers(fix.position));
    let with_fixes = || trips.iter().filter(|trip| !trip.trace.fixes.is_empty());
    let (all, there) = (with_fixes().count(), with_fixes().filter(is_there).count());
    if there == all {
        return;
    }
    let (low, high) = (graph.bbox().south_west, graph.bbox().north_east);
    let from_to = format!("{:.5},{:.5} to {:.5},{:.5}", low.lat(), low.lon(), high.lat(), high.lon());
    let off = all - there;
    super::warn_loudly(&format!("{off} of {all} trips lie off the map, which goes from {from_to}"));
    let swapped = |p: Position| Position::from_degrees(p.lon(), p.lat()).is_some_and(|p| graph.covers(p));
    if with_fixes().all(|trip| trip.trace.fixes.iter().all(|fix| swapped(fix.position))) {
        eprintln!("with latitude and longitude exchanged they lie on it");
    }
}

fn match_all(graph: &Graph, all: Vec<Trace>, profile: Profile) -> Vec<MatchedTrip> {
    let mut scratch = Scratch::new();
    all.into_iter()
        .map(|trace| {
            let matched = match_trip(graph, &mut scratch, profile, &trace.fixes);
            let parts = route_parts(graph, &matched);
            MatchedTrip { trace, matched, parts }
        })
        .collect()
}

fn write_routes(output: &mut dyn Write, trips: &[MatchedTrip]) -> std::io::Result<()> {
    for trip in trips {
        serde_json::to_writer(&mut *output, &RouteLine::new(&trip.trace.id, &trip.parts))?;
        writeln!(output)?;
    }
    Ok(())
}

fn write_geojson(output: &mut dyn Write, trips: &[MatchedTrip]) -> std::io::Result<()> {
    let point = |p: &Position| json!([p.lon(), p.lat()]);
    let mut features = Vec::new();
    for trip in trips {
        let lines: Vec<Vec<_>> = trip.parts.iter().map(|part| part.iter().map(point).collect()).collect();
        features.push(json!({
            "type": "Feature",
            "geometry": {"type": "MultiLineString", "coordinates": lines},
            "properties": {"trip": trip.trace.id},
        }));
        for (fix, one) in trip.fixes() {
            features.push(json!({
                "type": "Feature",
                "geometry": {"type": "Point", "coordinates": point(&fix.position)},
                "properties": {
                    "trip": trip.trace.id,
                    "measured_ms": fix.measured.to_time().0,
                    "snapped": one.snapped.map(|s| point(&s.position)),
                    "off_cm": one.snapped.map(|s| s.off_cm),
                    "confidence_percent": one.snapped.map(|s| s.confidence_percent),
                    "is_break": one.is_break,
                },
            }));
        }
    }
    serde_json::to_writer(&mut *output, &json!({"type": "FeatureCollection", "features": features}))?;
    writeln!(output)
}

pub fn parse_profile(text: &str) -> Result<Profile, String> {
    let all = [Profile::Car, Profile::Moped, Profile::Bicycle, Profile::Foot];
    all.into_iter()
        .find(|profile| profile.as_str() == text)
        .ok_or_else(|| "one of car, moped, bicycle, foot".to_string())
}
