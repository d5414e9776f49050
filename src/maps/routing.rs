//! `wayfix maps route`: the way from one place to another, and others that are nearly as good.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use maps::router::{Endpoint, Route, Routing, alternatives};
use maps::{ClosedTurns, EdgeId, Graph, LocalTime, Profile, geo};
use protocol::Position;
use serde_json::{Value, json};

use super::matching::parse_profile;
use crate::output::Standard;

#[derive(clap::Args)]
pub struct Options {
    /// LAT,LNG.
    #[arg(value_parser = parse_place, allow_hyphen_values = true)]
    from: Position,
    /// LAT,LNG.
    #[arg(value_parser = parse_place, allow_hyphen_values = true)]
    to: Position,
    #[arg(long, value_name = "CITY.wfm")]
    map: PathBuf,
    /// Whose ways count: car, moped, bicycle or foot.
    #[arg(long, default_value = "car", value_parser = parse_profile)]
    profile: Profile,
    /// Leaves out the road nearest to a place, both directions; may be said more than once.
    #[arg(long, value_name = "LAT,LNG", value_parser = parse_place, allow_hyphen_values = true)]
    avoid: Vec<Position>,
    /// So many other ways too, where there are any that take at most half as long again.
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=10), conflicts_with = "avoid")]
    alternatives: u8,
    /// When the way is driven, as 2026-11-30T08:00 by the clocks of the place: signs that hold at some hours count too.
    #[arg(long, value_name = "TIME", value_parser = parse_time, conflicts_with_all = ["avoid", "alternatives"])]
    at: Option<LocalTime>,
    /// As GeoJSON: a feature, or a collection of them with --alternatives.
    #[arg(long)]
    geojson: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let graph = Arc::new(super::open(&options.map)?);
    let routing = Routing::new(graph.clone());
    let router = routing.router(options.profile);
    let (from, to) = (Endpoint::Position(options.from), Endpoint::Position(options.to));
    let avoid = avoided(&graph, options)?;
    let closed = options.at.map_or(ClosedTurns::none(), |at| graph.closed_at(options.profile, at));
    let begin = Instant::now();
    let routes = match options.alternatives {
        0 if avoid.is_empty() => router.route_at(&from, &to, &closed).into_iter().collect(),
        0 => router.route_avoiding(&from, &to, &avoid, DETOUR_MAX).into_iter().collect(),
        others => alternatives(&graph, router, (&from, &to), usize::from(others)),
    };
    let took = begin.elapsed();
    let Some(best) = routes.first() else { return Err(no_way(&graph, options)) };
    warn_of_far_ends(&graph, options, best);
    if options.geojson {
        let features: Vec<Value> = routes.iter().map(|route| feature(&graph, options, route)).collect();
        match (options.alternatives, &features[..]) {
            (0, [only]) => writeln!(Standard, "{only}")?,
            _ => writeln!(Standard, "{}", json!({"type": "FeatureCollection", "features": features}))?,
        }
        return Ok(());
    }
    tell(&graph, options, best, Some(took))?;
    for (number, route) in routes.iter().enumerate().skip(1) {
        writeln!(Standard, "\nother way {number}:")?;
        tell(&graph, options, route, None)?;
    }
    if options.alternatives > 0 && routes.len() == 1 {
        writeln!(Standard, "there is no other way that takes at most half as long again")?;
    }
    Ok(())
}

/// The edges of the roads nearest to the places to avoid.
fn avoided(graph: &Graph, options: &Options) -> Result<Vec<EdgeId>> {
    let mut edges = Vec::new();
    for at in &options.avoid {
        let mut found = Vec::new();
        graph.candidates(*at, AVOID_WITHIN_M, options.profile, &mut found);
        let Some(nearest) = found.iter().min_by_key(|candidate| (candidate.off_cm, candidate.edge)) else {
            bail!("there is no road to avoid within {AVOID_WITHIN_M} m of {}", place(*at));
        };
        edges.push(nearest.edge);
        edges.extend(graph.reverse(nearest.edge));
    }
    Ok(edges)
}

fn tell(graph: &Graph, options: &Options, route: &Route, took: Option<Duration>) -> Result<()> {
    for (name, from_cm) in stretches(graph, route) {
        writeln!(Standard, "{:>8.2} km  {name}", f64::from(from_cm) / 1e5)?;
    }
    let [from_m, to_m] = ends_off_m(graph, options, route);
    if from_m.max(to_m) >= 1.0 {
        writeln!(Standard, "begins {from_m:.0} m and ends {to_m:.0} m from the places that were asked for")?;
    }
    let (km, minutes) = (f64::from(route.length_cm) / 1e5, f64::from(route.duration_ms) / 6e4);
    let took = took.map(|took| format!(", found in {:.0} µs", took.as_secs_f64() * 1e6)).unwrap_or_default();
    writeln!(Standard, "{km:.2} km, {minutes:.1} min, {} edges{took}", route.edges.len())?;
    Ok(())
}

/// The roads along a route by name, each with how far from the start it begins.
fn stretches(graph: &Graph, route: &Route) -> Vec<(String, u32)> {
    let mut name = None;
    let mut along_cm = 0;
    let mut lines: Vec<(String, u32)> = Vec::new();
    for (number, edge) in route.edges.iter().enumerate() {
        let here = graph.name(*edge);
        if name != Some(here) {
            lines
                .push((if here.is_empty() { format!("({})", graph.class(*edge)) } else { here.to_string() }, along_cm));
            name = Some(here);
        }
        let from_cm = if number == 0 { route.start_along_cm } else { 0 };
        along_cm += graph.length_cm(*edge).saturating_sub(from_cm);
    }
    lines
}

/// How far from the places that were asked for the route begins and ends.
fn ends_off_m(graph: &Graph, options: &Options, route: &Route) -> [f64; 2] {
    let line = route.geometry(graph);
    let off_m = |end: Option<&Position>, at: Position| end.map_or(0.0, |end| geo::distance_cm(*end, at) / 100.0);
    [off_m(line.first(), options.from), off_m(line.last(), options.to)]
}

/// A way whose ends are as far off as a tenth of it is long answers another question than was asked.
fn warn_of_far_ends(graph: &Graph, options: &Options, route: &Route) {
    let length_m = f64::from(route.length_cm) / 100.0;
    let ends = ends_off_m(graph, options, route);
    for (off_m, (end, at)) in ends.into_iter().zip([("begins", options.from), ("ends", options.to)]) {
        if off_m >= FAR_M_MIN && off_m > length_m / 10.0 {
            eprintln!("the way {end} {off_m:.0} m from {}: no road that leads there is nearer", place(at));
        }
    }
}

fn feature(graph: &Graph, options: &Options, route: &Route) -> Value {
    let line: Vec<_> = route.geometry(graph).iter().map(|p| [p.lon(), p.lat()]).collect();
    let (length_m, duration_s) = (route.length_cm / 100, route.duration_ms / 1000);
    let [from_off_m, to_off_m] = ends_off_m(graph, options, route).map(|m| (m * 10.0).round() / 10.0);
    json!({
        "type": "Feature",
        "geometry": {"type": "LineString", "coordinates": line},
        "properties": {
            "length_m": length_m, "duration_s": duration_s, "profile": options.profile.as_str(),
            "from_off_m": from_off_m, "to_off_m": to_off_m,
        },
    })
}

/// Says what is missing: the map there, a road near, or the way between.
fn no_way(graph: &Graph, options: &Options) -> anyhow::Error {
    let (profile, bbox) = (options.profile.as_str(), graph.bbox());
    for at in [options.from, options.to] {
        if !bbox.contains(at) {
            let (low, high) = (place(bbox.south_west), place(bbox.north_east));
            return anyhow::anyhow!("{} is not on the map, which goes from {low} to {high}", place(at));
        }
    }
    let avoiding = if options.avoid.is_empty() { "" } else { " without the roads to avoid" };
    anyhow::anyhow!("no way for {profile} leads from {} to {}{avoiding}", place(options.from), place(options.to))
}

fn parse_time(text: &str) -> Result<LocalTime, String> {
    LocalTime::parse(text).ok_or_else(|| "a time is 2026-11-30T08:00, by the clocks of the place".to_string())
}

fn place(position: Position) -> String {
    format!("{:.5},{:.5}", position.lat(), position.lon())
}

fn parse_place(text: &str) -> Result<Position, String> {
    let (lat, lng) = text.split_once(',').ok_or("a place is LAT,LNG")?;
    let (lat, lng) = (lat.trim().parse(), lng.trim().parse());
    let (Ok(lat), Ok(lng)) = (lat, lng) else { return Err("a place is LAT,LNG in degrees".to_string()) };
    Position::from_degrees(lat, lng).ok_or_else(|| "not a place on Earth".to_string())
}

const AVOID_WITHIN_M: f64 = 100.0;
/// Nobody minds a few metres.
const FAR_M_MIN: f64 = 20.0;
/// Whoever names a road to avoid takes any way round.
const DETOUR_MAX: f64 = 100.0;
