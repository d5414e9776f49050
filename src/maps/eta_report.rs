//! `wayfix maps eta-report`: how good arrivals would have been on somebody's own recorded trips, as a page.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use maps::eta::replay::{Asked, Replay, SHARES_PERCENT, Stands, Teaching, Trip};
use maps::eta::report::{Scores, mape_percent, page};

use crate::output::{self, Kind, Standard};

#[derive(clap::Args)]
pub struct Options {
    /// GPX, the taxi CSV, or JSON lines of trips with truth.
    #[arg(required = true)]
    traces: Vec<PathBuf>,
    #[arg(long, value_name = "CITY.wfm")]
    map: PathBuf,
    /// Where to write the page.
    #[arg(long, value_name = "PAGE.html")]
    html: PathBuf,
    /// How many of the trips, the first by time, only teach.
    #[arg(long, default_value_t = 60, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=99))]
    teach: u8,
    /// Cuts stands of up to 100 m at the beginning, too, not only at the end.
    #[arg(long)]
    moving: bool,
    /// As if nobody had driven here before: nothing is learned, all trips are judged.
    #[arg(long)]
    untaught: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let inputs: Vec<&Path> = options.traces.iter().chain([&options.map]).map(PathBuf::as_path).collect();
    output::check(&options.html, Kind::Page, &inputs)?;
    let graph = Arc::new(super::open(&options.map)?);
    let stands = if options.moving { Stands::BothEnds } else { Stands::Tail };
    let trips = Trip::all(super::read_traces(&options.traces, 0.0)?, stands);
    ensure!(!trips.is_empty(), "none of the traces is a trip of three minutes to an hour");
    let (teaching, judge_from) = match options.untaught {
        true => (Teaching::Never, 0),
        false => (Teaching::AsTheyFinish, trips.len() * usize::from(options.teach) / 100),
    };
    let bar = super::bar("{msg:24} {wide_bar} {pos}/{len}")?.with_message("trips");
    bar.set_length(trips.len() as u64);
    let said = Replay::of(&graph, &trips, teaching, |finished| bar.set_position(finished as u64));
    bar.finish_and_clear();
    let judged: Vec<Asked> = said.into_iter().filter(|one| one.trip >= judge_from).collect();
    ensure!(!judged.is_empty(), "to none of the trips there was a way on this map");
    let name_of = |file: &PathBuf| file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let of = options.traces.iter().map(name_of).collect::<Vec<_>>().join(", ");
    let name = format!("{of}, {} of {} trips", trips.len() - judge_from, trips.len());
    std::fs::write(&options.html, page(&name, &judged)).with_context(|| format!("write {}", options.html.display()))?;
    tell(&mut Standard, &judged)?;
    eprintln!("page: {}", options.html.display());
    Ok(())
}

fn tell(output: &mut dyn Write, judged: &[Asked]) -> std::io::Result<()> {
    for share in SHARES_PERCENT {
        let asked = || judged.iter().filter(|one| one.share_percent == share);
        let scores = Scores::of(asked());
        writeln!(
            output,
            "asked at {share:>2} % of {} trips: mean error {:.1} % (straight line at 30 km/h {:.1} %), bias {:+.1} %, 80 % interval covers {:.1} %, half its width {:.1} %",
            scores.count,
            scores.mape_percent,
            mape_percent(asked(), |one| one.haversine_s),
            scores.bias_percent,
            scores.covered_percent,
            scores.half_width_median_percent
        )?;
    }
    Ok(())
}
