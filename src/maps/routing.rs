//! `wayfix maps route`: the way from one place to another.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};
use maps::Profile;
use maps::router::{Endpoint, Routing};
use protocol::Position;
use serde_json::json;

use super::matching::parse_profile;

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
    #[arg(long, default_value = "car", value_parser = parse_profile)]
    profile: Profile,
    /// As GeoJSON.
    #[arg(long)]
    geojson: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let graph = Arc::new(super::open(&options.map)?);
    let routing = Routing::new(graph.clone());
    let _ready = routing.router(options.profile);
    let begin = Instant::now();
    let (from, to) = (Endpoint::Position(options.from), Endpoint::Position(options.to));
    let Some(route) = routing.route(&from, &to, options.profile) else {
        bail!("no way leads from {} to {}", place(options.from), place(options.to));
    };
    let took_us = begin.elapsed().as_secs_f64() * 1e6;
    if options.geojson {
        let line: Vec<_> = route.geometry(&graph).iter().map(|p| [p.lon(), p.lat()]).collect();
        let feature = json!({
            "type": "Feature",
            "geometry": {"type": "LineString", "coordinates": line},
            "properties": {"length_m": route.length_cm / 100, "duration_s": route.duration_ms / 1000},
        });
        println!("{feature}");
        return Ok(());
    }
    let mut name = None;
    for edge in &route.edges {
        let here = graph.name(*edge);
        if name != Some(here) {
            println!("{}", if here.is_empty() { "(no name)" } else { here });
            name = Some(here);
        }
    }
    let (km, minutes) = (f64::from(route.length_cm) / 1e5, f64::from(route.duration_ms) / 6e4);
    println!("{km:.2} km, {minutes:.1} min, {} edges, found in {took_us:.0} µs", route.edges.len());
    Ok(())
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
