//! How well arrivals are predicted on recorded trips, beside what anybody could say: asked when each trip began, toward
//! the place where it ended. The first 60 % only teach; the rest are judged.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use benches::report::workspace;
use benches::trips::{self, Asked, Replay};
use benches::{Goal, Report};
use clap::Parser;
use maps::Graph;
use maps::import::{ImportOptions, import};

#[derive(Parser)]
struct Arguments {
    /// Extracts and traces; `../shared/data` if not said.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Write down what was said of each trip, as CSV.
    #[arg(long)]
    each: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let data = arguments.data.unwrap_or_else(|| workspace().join("../shared/data"));
    let mut report = Report::new("eta");
    let folder = workspace().join("target/bench/eta");
    std::fs::create_dir_all(&folder).context("make a folder for the map")?;
    let map = folder.join("porto.wfm");
    import(&data.join("maps/porto.osm.pbf"), &map, &ImportOptions::default(), &|_| {}).context("import the map")?;
    let graph = Arc::new(Graph::open(&map).context("open the map")?);
    let trips = trips::read(&data.join("traces/porto_taxi.csv"))?;

    let asked = Replay::of(&graph, &trips)?;
    let judge_from = trips.len() * 6 / 10;
    let (teaching, judged) = asked.split_at(judge_from);
    let all: Vec<Asked> = judged.iter().flatten().copied().collect();
    let plain: Vec<Asked> = all.iter().filter(|asked| asked.is_plain).copied().collect();
    anyhow::ensure!(!plain.is_empty(), "no trip is left to judge by");
    let factor = factor(teaching.iter().flatten());
    let without_way = judged.len() - all.len();
    let of_all = format!("{} of {}; to {without_way} others there was no way", all.len(), trips.len());
    report.row("trips judged", all.len() as f64, "", &of_all, Goal::None);
    rows(&mut report, "all", &all, factor);
    let what = "plain: a kilometre apart or more, no hop faster than 45 m/s";
    report.row("plain trips judged", plain.len() as f64, "", what, Goal::None);
    rows(&mut report, "plain", &plain, factor);
    if let Some(path) = arguments.each {
        write_each(&path, judge_from, &asked)?;
    }
    report.finish()
}

/// What suits empty roads best on the trips that teach: the median of what they took over it.
fn factor<'a>(teaching: impl Iterator<Item = &'a Asked>) -> f64 {
    let mut ratios: Vec<f64> = teaching.map(|asked| asked.took_s / asked.free_s.max(1.0)).collect();
    ratios.sort_by(f64::total_cmp);
    ratios.get(ratios.len() / 2).copied().unwrap_or(1.0)
}

/// The goals are for all trips, as the yardsticks' figures are.
fn rows(report: &mut Report, which: &str, asked: &[Asked], factor: f64) {
    let goal = |goal| if which == "all" { goal } else { Goal::None };
    let count = asked.len() as f64;
    let mape = |seconds: &dyn Fn(&Asked) -> f64| {
        100.0 * asked.iter().map(|one| (seconds(one) - one.took_s).abs() / one.took_s).sum::<f64>() / count
    };
    let seconds = |one: &Asked| f64::from(one.eta.p50_ms) / 1_000.0;
    let total_s: f64 = asked.iter().map(|one| one.took_s).sum();
    let off_s: f64 = asked.iter().map(|one| (seconds(one) - one.took_s).abs()).sum();
    let bias_s: f64 = asked.iter().map(|one| seconds(one) - one.took_s).sum();
    let is_covered =
        |one: &&Asked| (f64::from(one.eta.p10_ms)..=f64::from(one.eta.p90_ms)).contains(&(one.took_s * 1_000.0));
    let covered = asked.iter().filter(is_covered).count() as f64;
    let mut halves: Vec<f64> = asked.iter().map(half_width_percent).collect();
    halves.sort_by(f64::total_cmp);

    let free = format!("  free flow x {factor:.2}, {which}: MAPE");
    report.row(&format!("  haversine at 30 km/h, {which}: MAPE"), mape(&|one| one.haversine_s), "%", "", Goal::None);
    report.row(&free, mape(&|one| one.free_s * factor), "%", "the factor is of the first 60 %", Goal::None);
    report.row(&format!("ETA, {which}: MAPE"), mape(&seconds), "%", "best trial 23.7", goal(Goal::AtMost(23.7)));
    report.row(&format!("ETA, {which}: WAPE"), 100.0 * off_s / total_s, "%", "", Goal::None);
    report.row(&format!("ETA, {which}: bias"), 100.0 * bias_s / total_s, "%", "of the time driven", Goal::None);
    let (what, percent) = (format!("80 % interval, {which}: covers"), 100.0 * covered / count);
    report.row(&what, percent, "%", "best trial 77.8", goal(Goal::Between(78.0, 82.0)));
    let mean = format!("mean {:.1}", halves.iter().sum::<f64>() / count);
    let median = halves[halves.len() / 2];
    report.row(&format!("80 % interval, {which}: half width, median"), median, "%", &mean, goal(Goal::AtMost(35.0)));
}

fn half_width_percent(one: &Asked) -> f64 {
    50.0 * (f64::from(one.eta.p90_ms) - f64::from(one.eta.p10_ms)) / f64::from(one.eta.p50_ms.max(1))
}

fn write_each(path: &Path, judge_from: usize, asked: &[Option<Asked>]) -> anyhow::Result<()> {
    let mut lines =
        String::from("begin,took_s,seconds,length_m,straight_m,turns,free_s,p10_ms,p50_ms,p90_ms,judged,plain\n");
    for (i, one) in asked.iter().enumerate() {
        let Some(Asked { begin, took_s, eta, free_s, ahead, is_plain, .. }) = one else { continue };
        writeln!(
            lines,
            "{},{took_s},{},{},{},{},{free_s},{},{},{},{},{is_plain}",
            begin.as_secs(),
            ahead.seconds,
            ahead.length_m,
            ahead.straight_m,
            ahead.turns,
            eta.p10_ms,
            eta.p50_ms,
            eta.p90_ms,
            i >= judge_from
        )?;
    }
    std::fs::write(path, lines).context("write the trips down")
}
