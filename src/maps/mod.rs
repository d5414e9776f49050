//! `wayfix maps …`: what whoever loads OpenStreetMap extracts does on the command line.

mod diff;
mod draw;
mod eta_report;
pub mod fetch;
pub mod import;
mod matching;
mod routing;
mod speeds;
mod tiles;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use maps::Graph;
use maps::town::TownOptions;
use maps::traces::{self, TimeNotes, Trace};

use crate::output::{self, Kind, Standard};

#[derive(Subcommand)]
pub enum Command {
    /// Downloads an extract of a region from a public mirror, and checks it.
    Fetch(fetch::Options),
    /// Makes a map file of an extract (.osm.pbf).
    Import(import::Options),
    /// Says what a map file holds.
    Info {
        map: PathBuf,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Draws a town and writes it as an extract, the same for the same seed.
    Town {
        #[arg(short, long)]
        output: PathBuf,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Matches recorded traces to the roads, fed fix by fix, as live.
    Match(matching::Options),
    /// Prints and draws how fast one gets along the roads, as a table says or recorded trips teach.
    Speeds(speeds::Options),
    /// How good arrival times would have been on recorded trips, as a page.
    EtaReport(eta_report::Options),
    /// The way from one place to another, each LAT,LNG.
    Route(routing::Options),
    /// Says what a new version of a map would change: its roads, and how recorded trips match.
    Diff(diff::Options),
    /// Writes all tiles of a map into one file, a PMTiles archive.
    Tiles(tiles::Options),
}

pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Fetch(options) => fetch::run(&options),
        Command::Import(options) => import::run(&options),
        Command::Info { map, json } => info(&map, json),
        Command::Town { output, seed } => town(&output, seed),
        Command::Match(options) => matching::run(&options),
        Command::EtaReport(options) => eta_report::run(&options),
        Command::Speeds(options) => speeds::run(&options),
        Command::Route(options) => routing::run(&options),
        Command::Diff(options) => diff::run(&options),
        Command::Tiles(options) => tiles::run(&options),
    }
}

/// `--strict` was said, and what came is not good enough.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotStrict(String);

/// A line on standard error that nobody should miss: red where that is a terminal.
fn warn_loudly(line: &str) {
    use std::io::IsTerminal;
    if std::io::stderr().is_terminal() { eprintln!("\x1b[31m{line}\x1b[0m") } else { eprintln!("{line}") }
}

/// A bar on standard error, drawn only where that is a terminal.
fn bar(template: &str) -> Result<ProgressBar> {
    Ok(ProgressBar::new(0).with_style(ProgressStyle::with_template(template)?))
}

fn open(map: &Path) -> Result<Graph> {
    let opened = Graph::open(map);
    let hint = match &opened {
        Err(maps::MapError::NotAMap) => " (`wayfix maps import` makes one of an extract)",
        Err(_) | Ok(_) => "",
    };
    opened.with_context(|| format!("open the map {}{hint}", map.display()))
}

/// The trips of some files, with a fix every so many seconds, or all at 0. Says on standard error which are left out.
fn read_traces(files: &[PathBuf], every_s: f64) -> Result<Vec<Trace>> {
    let mut all = Vec::new();
    for file in files {
        all.extend(traces::read_file(file)?);
    }
    let mut notes = TimeNotes::default();
    all.iter().for_each(|trace| notes.add(trace.notes));
    notes.sentences().iter().for_each(|sentence| eprintln!("{sentence}"));
    let count = |all: &[Trace]| all.iter().map(|trace| trace.fixes.len()).sum::<usize>();
    let (there, back) = (count(&all), all.iter().map(Trace::fixes_back_in_time).sum::<usize>());
    if back > 0 {
        eprintln!("{back} of {there} fixes are left out: their time is before that of one earlier in their trip");
    }
    all.iter_mut().for_each(|trace| trace.thin(every_s));
    let kept = count(&all);
    if kept < there {
        eprintln!("{kept} of {there} fixes are kept, one every {every_s} s and each trip's last");
    }
    Ok(all)
}

/// A number from 0 on, of seconds or percent.
fn parse_amount(text: &str) -> Result<f64, String> {
    let amount = text.parse().ok().filter(|amount: &f64| amount.is_finite() && *amount >= 0.0);
    amount.ok_or_else(|| String::from("a number from 0 on is needed"))
}

fn info(map: &Path, json: bool) -> Result<()> {
    let graph = open(map)?;
    let info = maps::info::Info::of(&graph);
    if json {
        writeln!(Standard, "{}", serde_json::to_string_pretty(&info)?)?;
    } else {
        writeln!(Standard, "{info}")?;
    }
    Ok(())
}

fn town(output: &Path, seed: u64) -> Result<()> {
    let options = TownOptions { seed, ..TownOptions::default() };
    output::check(output, Kind::Extract, &[])?;
    maps::town::write(output, &options).with_context(|| format!("write {}", output.display()))?;
    Ok(writeln!(Standard, "a town is drawn in {}", output.display())?)
}
