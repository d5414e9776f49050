//! `wayfix maps import`: with a progress bar and a summary.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use maps::import::{CountryLimits, ImportOptions, Imported, Progress, Stage};

use crate::output::{self, Kind, Standard};

#[derive(clap::Args)]
pub struct Options {
    /// The extract, .osm.pbf.
    extract: PathBuf,
    /// The map file to make.
    #[arg(short, long, value_name = "CITY.wfm")]
    output: PathBuf,
    /// Whose speed limits hold where none is signed: ISO 3166-1, as in PT.
    #[arg(long, default_value = "", value_parser = parse_country)]
    country: String,
    /// Leaves buildings out of the tiles.
    #[arg(long)]
    no_buildings: bool,
    /// How long the router's order may take; beyond it the map works, but routes take longer.
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    order_time_max: u64,
}

pub fn run(options: &Options) -> Result<()> {
    let import_options = ImportOptions {
        country: options.country.clone(),
        buildings: !options.no_buildings,
        order_time_max: Duration::from_secs(options.order_time_max),
    };
    let begin = Instant::now();
    if options.extract.is_dir() {
        bail!("{} is a folder, not an extract", options.extract.display());
    }
    output::check(&options.output, Kind::Map, &[&options.extract])?;
    let imported = import(&options.extract, &options.output, &import_options)
        .with_context(|| format!("import {}{}", options.extract.display(), hint(&options.extract)))?;
    writeln!(Standard, "{imported}\ntook       {:.2} s", begin.elapsed().as_secs_f64())?;
    Ok(())
}

fn parse_country(text: &str) -> Result<String, String> {
    let code = text.to_uppercase();
    if code.is_empty() || knows_country(&code) {
        return Ok(code);
    }
    let known: Vec<_> = CountryLimits::codes().collect();
    let known = known.join(", ");
    Err(format!("its limits are not known, only those of {known}; left out, the world's usual ones hold"))
}

/// Whether a country's own limits are known, by its code in capitals.
pub fn knows_country(code: &str) -> bool {
    CountryLimits::codes().any(|known| known == code)
}

/// What a file is that is no extract, by how it begins: those that people mix up.
fn hint(path: &Path) -> &'static str {
    let mut start = [0; 8];
    let read = File::open(path).and_then(|mut file| file.read(&mut start)).unwrap_or(0);
    match &start[..read] {
        [b'<', ..] | [0xef, 0xbb, 0xbf, b'<', ..] => " (it is XML; .osm.pbf is needed, `osmium cat` makes it)",
        [0x1f, 0x8b, ..] => " (it is packed by gzip; unpack it first)",
        [b'B', b'Z', b'h', ..] => " (it is packed by bzip2, as .osm.bz2 is; .osm.pbf is needed)",
        b"wayfix m" => " (it is a map file already)",
        _ => "",
    }
}

/// Imports with a bar on standard error; nothing is drawn where that is no terminal.
pub fn import(extract: &Path, map: &Path, options: &ImportOptions) -> Result<Imported> {
    let bar = super::bar("{msg:24} {wide_bar} {pos}/{len}")?;
    let stage = Mutex::new(None);
    let show = |progress: Progress| draw(&bar, &stage, progress);
    let outcome = maps::import::import(extract, map, options, &show);
    bar.finish_and_clear();
    Ok(outcome?)
}

fn draw(bar: &ProgressBar, stage: &Mutex<Option<Stage>>, progress: Progress) {
    let mut shown = stage.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if *shown != Some(progress.stage) {
        *shown = Some(progress.stage);
        bar.set_message(progress.stage.as_str());
    }
    bar.set_length(progress.total);
    bar.set_position(progress.done);
}
