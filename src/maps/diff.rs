//! `wayfix maps diff`: what a new version of a map would do to the trips that are driven on it.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Result, bail};
use maps::diff::{Outcome, RoadsChange, RoadsDiff, TripsDiff, TurnsChange};
use maps::{Profile, RoadClass};
use serde::Serialize;

use super::matching::parse_profile;
use crate::output::Standard;

#[derive(clap::Args)]
pub struct Options {
    /// The map in use.
    #[arg(value_name = "OLD.wfm")]
    old: PathBuf,
    /// The map that would take its place.
    #[arg(value_name = "NEW.wfm")]
    new: PathBuf,
    /// Trips to match on both: GPX, the taxi CSV, or JSON lines of trips with truth.
    #[arg(long, num_args = 1.., value_name = "TRACES")]
    trace: Vec<PathBuf>,
    /// Keeps a fix every so many seconds, and the trip's last.
    #[arg(long, default_value_t = 0.0, value_name = "SECONDS", value_parser = super::parse_amount)]
    every: f64,
    /// Whose ways count.
    #[arg(long, default_value = "car", value_parser = parse_profile)]
    profile: Profile,
    /// How many trips to name, those that the new map does worst by.
    #[arg(long, default_value_t = 10, value_name = "N")]
    worst: usize,
    /// As JSON.
    #[arg(long)]
    json: bool,
    /// Ends with exit code 1 if the share of fixes placed on roads falls by more percentage points than this, or if no
    /// fix is on a road of the old map.
    #[arg(long, value_name = "PERCENT", requires = "trace", value_parser = super::parse_amount)]
    fail_if_worse: Option<f64>,
}

#[derive(Serialize)]
struct Report {
    old: String,
    new: String,
    roads: RoadsDiff,
    trips: Option<TripsDiff>,
}

pub fn run(options: &Options) -> Result<()> {
    let (old, new) = (super::open(&options.old)?, super::open(&options.new)?);
    let all = super::read_traces(&options.trace, options.every)?;
    let bar = super::bar("{msg:24} {wide_bar} {pos}/{len}")?.with_message("trips on both maps");
    bar.set_length(all.len() as u64);
    let matched = || {
        let mut diff = TripsDiff::of(&old, &new, options.profile, &all, &|| bar.inc(1));
        let worst = diff.by_trip.iter().filter(|trip| trip.is_worse()).take(options.worst).cloned().collect();
        diff.by_trip = worst;
        diff
    };
    let trips = (!all.is_empty()).then(matched);
    bar.finish_and_clear();
    let (old, new) = ((old.version().to_string(), RoadsDiff::of(&old, &new)), new.version().to_string());
    let report = Report { old: old.0, new, roads: old.1, trips };
    if options.json {
        writeln!(Standard, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        write!(Standard, "{}", table(&report)?)?;
    }
    options.fail_if_worse.map_or(Ok(()), |most| judge(report.trips.as_ref(), most))
}

/// Without a fix that the old map places, nothing shows that the new one is as good.
fn judge(trips: Option<&TripsDiff>, most: f64) -> Result<()> {
    let Some(trips) = trips.filter(|trips| trips.old.placed > 0) else {
        bail!("none of the traces has a fix on a road of the old map: nothing was compared");
    };
    let worse = trips.worse_by_percent();
    if worse > most {
        bail!("{worse:.2} points fewer fixes are placed on roads: more than the {most} allowed");
    }
    Ok(())
}

fn table(report: &Report) -> Result<String> {
    let mut text = String::new();
    writeln!(text, "old {}\nnew {}\n", short(&report.old), short(&report.new))?;
    let [a, b, c, d, e] = ["old", "new", "added", "removed", "changed"];
    writeln!(text, "{:<16} {a:>10} {b:>10} {c:>10} {d:>10} {e:>10}", "km by direction")?;
    for class in RoadClass::ALL {
        if let Some(change) = report.roads.by_class.get(class.as_str()) {
            text += &kilometres(class.as_str(), change);
        }
    }
    let total = &report.roads.total;
    text += &kilometres("all", total);
    let (added, removed, changed) = (total.edges_added, total.edges_removed, total.edges_changed);
    writeln!(
        text,
        "{:<16} {:>10} {:>10} {added:>10} {removed:>10} {changed:>10}",
        "edges", total.edges_old, total.edges_new
    )?;
    text += &turns(&report.roads.turns);
    let Some(trips) = &report.trips else { return Ok(text) };
    writeln!(text, "\n{:<16} {a:>10} {b:>10} {:>10}", format!("{} trips", trips.trips), "change")?;
    let (old, new) = (&trips.old, &trips.new);
    let mut row = |name: &str, unit: &str, of: fn(&Outcome) -> f64, digits: usize| {
        let (old, new) = (of(old), of(new));
        writeln!(text, "{name:<16} {old:>10.digits$} {new:>10.digits$} {:>+10.digits$} {unit}", new - old)
    };
    row("fixes on roads", "%", Outcome::placed_percent, 2)?;
    row("off the road", "m", |outcome| outcome.off_m, 2)?;
    row("breaks", "", |outcome| outcome.breaks as f64, 0)?;
    row("routes", "km", |outcome| outcome.route_km, 1)?;
    writeln!(text, "{:<16} {:>32.2} %", "routes differ by", trips.differing_percent)?;
    for (number, trip) in trips.by_trip.iter().enumerate() {
        if number == 0 {
            writeln!(text, "\nworse by the new map:")?;
        }
        let (old, new) = (&trip.old, &trip.new);
        writeln!(
            text,
            "  trip {}: {:.1} → {:.1} % on roads, {:.1} → {:.1} m off, {} → {} breaks, {:.1} % of the route differs",
            trip.id,
            old.placed_percent(),
            new.placed_percent(),
            old.off_m,
            new.off_m,
            old.breaks,
            new.breaks,
            trip.differing_percent
        )?;
    }
    Ok(text)
}

/// Turns that signs and barriers close, with where the first ones differ.
fn turns(change: &TurnsChange) -> String {
    let TurnsChange { old, new, added, removed, changed, places } = change;
    let mut text = format!("{:<16} {old:>10} {new:>10} {added:>10} {removed:>10} {changed:>10}\n", "signs, barriers");
    if !places.is_empty() {
        let places: Vec<String> = places.iter().map(|(lat, lon)| format!("{lat:.5},{lon:.5}")).collect();
        text += &format!("  at {}\n", places.join("  "));
    }
    text
}

fn kilometres(name: &str, change: &RoadsChange) -> String {
    let RoadsChange { km_old, km_new, km_added, km_removed, km_changed, .. } = change;
    format!("{name:<16} {km_old:>10.1} {km_new:>10.1} {km_added:>10.1} {km_removed:>10.1} {km_changed:>10.1}\n")
}

/// As much of a version as tells it from others.
fn short(version: &str) -> &str {
    version.get(..16).unwrap_or(version)
}
