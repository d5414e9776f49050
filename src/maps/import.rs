//! `wayfix maps import`: with a progress bar and a summary.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use maps::import::{CountryLimits, ImportError, ImportOptions, Imported, Progress, Stage};

use super::NotStrict;
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
    /// Ends with exit code 3, and makes no map, where more than a tenth of the points of roads are missing.
    #[arg(long)]
    strict: bool,
    /// Lists what could not be taken over, with its ids and why, in a file; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    left_out: Option<PathBuf>,
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
    if let Some(list) = options.left_out.as_deref().filter(|list| *list != Path::new("-")) {
        output::check(list, Kind::Routes, &[&options.extract, &options.output])?;
    }
    let part = options.strict.then(|| options.output.with_extension("wfm.unchecked"));
    let target = part.as_deref().unwrap_or(&options.output);
    let imported = import(&options.extract, target, &import_options);
    if let Err(error) = &imported
        && options.strict
        && matches!(error.downcast_ref(), Some(ImportError::MostPointsMissing { .. }))
    {
        return Err(NotStrict(format!("{error:#}")).into());
    }
    let imported =
        imported.with_context(|| format!("import {}{}", options.extract.display(), hint(&options.extract)))?;
    let is_incomplete = imported.nodes_missing * 10 > imported.nodes_wanted;
    if is_incomplete {
        let (missing, wanted) = (imported.nodes_missing, imported.nodes_wanted);
        super::warn_loudly(&format!(
            "{missing} of {wanted} points of roads are not in the extract: their roads are cut or gone"
        ));
    }
    if let Some(part) = &part {
        if is_incomplete {
            let _ = std::fs::remove_file(part); // it may not be there; the error that matters is the one returned
            return Err(NotStrict("the extract is incomplete, and --strict was said".to_owned()).into());
        }
        std::fs::rename(part, &options.output).with_context(|| format!("make {}", options.output.display()))?;
    }
    if let Some(list) = &options.left_out {
        write_left_out(list, &imported)?;
    }
    writeln!(Standard, "{imported}\ntook       {:.2} s", begin.elapsed().as_secs_f64())?;
    Ok(())
}

fn write_left_out(list: &Path, imported: &Imported) -> Result<()> {
    let mut output: Box<dyn Write> = match list == Path::new("-") {
        true => Box::new(Standard),
        false => Box::new(File::create(list).with_context(|| format!("make {}", list.display()))?),
    };
    let mut text = String::new();
    for (kind, count) in &imported.left_out.counts {
        text += &format!("# {count} {}\n", kind.as_str());
        for one in imported.left_out.list.iter().filter(|one| one.kind == *kind) {
            text += &format!("{one}\n");
        }
    }
    output.write_all(text.as_bytes()).and_then(|()| output.flush()).context("write what was left out")
}

fn parse_country(text: &str) -> Result<String, String> {
    let code = text.to_uppercase();
    if code.is_empty() || knows_country(&code) {
        return Ok(code);
    }
    if let Some((_, meant)) = OFTEN_MEANT.iter().find(|(said, _)| *said == code) {
        return Err(format!("{code} is {meant} in ISO 3166-1"));
    }
    let known: Vec<_> = CountryLimits::codes().collect();
    let known = known.join(", ");
    Err(format!("its limits are not known, only those of {known}; left out, the world's usual ones hold"))
}

/// What people say for a country, and its code.
const OFTEN_MEANT: &[(&str, &str)] = &[
    ("UK", "GB"),
    ("EN", "GB"),
    ("EL", "GR"),
    ("SP", "ES"),
    ("GER", "DE"),
    ("DEU", "DE"),
    ("FRA", "FR"),
    ("ITA", "IT"),
    ("ESP", "ES"),
    ("PRT", "PT"),
    ("NLD", "NL"),
    ("SW", "SE"),
    ("JA", "JP"),
    ("USA", "US"),
    ("GBR", "GB"),
];

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
