//! `wayfix maps tiles`: all tiles of a map in one file, for static servers and other programs.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use maps::tiles::archive::{self, ARCHIVE_ZOOMS, ArchiveOptions};
use maps::tiles::{ZOOM_MAX, ZOOM_MIN};

use crate::output::{self, Kind, Standard};

#[derive(clap::Args)]
pub struct Options {
    /// A map file of `wayfix maps import`.
    #[arg(value_name = "CITY.wfm")]
    map: PathBuf,
    /// The archive to write; the map's name with .pmtiles if left out.
    #[arg(short, long, value_name = "CITY.pmtiles")]
    output: Option<PathBuf>,
    /// What viewers call it; the map's name if left out.
    #[arg(long)]
    name: Option<String>,
    #[arg(long, default_value_t = ZOOM_MIN, value_parser = zoom())]
    zoom_min: u8,
    /// Beyond it viewers enlarge; each zoom more has up to four times as many tiles.
    #[arg(long, default_value_t = ZOOM_MAX, value_parser = zoom())]
    zoom_max: u8,
}

pub fn run(options: &Options) -> Result<()> {
    let graph = super::open(&options.map)?;
    let output = options.output.clone().unwrap_or_else(|| options.map.with_extension("pmtiles"));
    output::check(&output, Kind::Archive, &[&options.map])?;
    let map_name = || options.map.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let archive_options = ArchiveOptions {
        name: options.name.clone().unwrap_or_else(map_name),
        zooms: options.zoom_min..=options.zoom_max,
    };
    let bar = super::bar("{msg:24} {wide_bar} {pos}/{len}")?.with_message("tiles");
    let show = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let begin = Instant::now();
    let archived = archive::write(&graph, &output, &archive_options, &show);
    bar.finish_and_clear();
    let archived = archived?;
    let (tiles, contents) = (archived.tiles, archived.contents);
    writeln!(Standard, "wrote      {}", output.display())?;
    writeln!(
        Standard,
        "tiles      {tiles} of zoom {} to {}, {contents} different",
        options.zoom_min, options.zoom_max
    )?;
    writeln!(Standard, "file       {:.1} MB", archived.file_bytes as f64 / 1e6)?;
    writeln!(Standard, "took       {:.2} s", begin.elapsed().as_secs_f64())?;
    Ok(())
}

fn zoom() -> clap::builder::RangedI64ValueParser<u8> {
    clap::value_parser!(u8).range(i64::from(*ARCHIVE_ZOOMS.start())..=i64::from(*ARCHIVE_ZOOMS.end()))
}
