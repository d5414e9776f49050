//! `wayfix maps …`: what whoever loads OpenStreetMap extracts does on the command line.

mod draw;
pub mod import;
mod matching;
mod routing;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Subcommand;
use maps::Graph;
use maps::town::TownOptions;

#[derive(Subcommand)]
pub enum Command {
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
    /// The way from one place to another, each LAT,LNG.
    Route(routing::Options),
}

pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Import(options) => import::run(&options),
        Command::Info { map, json } => info(&map, json),
        Command::Town { output, seed } => town(&output, seed),
        Command::Match(options) => matching::run(&options),
        Command::Route(options) => routing::run(&options),
    }
}

fn open(map: &std::path::Path) -> Result<Graph> {
    Graph::open(map).with_context(|| format!("open the map {}", map.display()))
}

fn info(map: &std::path::Path, json: bool) -> Result<()> {
    let graph = open(map)?;
    let info = maps::info::Info::of(&graph);
    if json {
        println!("{}", serde_json::to_string_pretty(&info)?);
    } else {
        println!("{info}");
    }
    Ok(())
}

fn town(output: &std::path::Path, seed: u64) -> Result<()> {
    let options = TownOptions { seed, ..TownOptions::default() };
    maps::town::write(output, &options).with_context(|| format!("write {}", output.display()))?;
    println!("a town is drawn in {}", output.display());
    Ok(())
}
