//! How well arrivals are predicted on recorded trips, beside what anybody could say: asked when each trip began and on
//! its way, toward the place where it ended. The first 60 % only teach; the rest are judged. Writes a page, too.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use benches::report::workspace;
use benches::{Goal, Report};
use clap::Parser;
use maps::Graph;
use maps::eta::replay::{Asked, Replay, SHARES_PERCENT, Stands, Teaching, Trip};
use maps::eta::report::{Scores, mape_percent, page, quantile};
use maps::import::{ImportOptions, import};
use maps::traces::{self, Trace};

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
    let taxis = traces::read_file(&data.join("traces/porto_taxi.csv"))?;

    let all = History::of(&graph, taxis.clone(), Stands::Tail)?;
    all.yardsticks(&mut report, "all", |_| true);
    all.arrivals(&mut report, "all", true, |_| true);
    let moving = History::of(&graph, taxis, Stands::BothEnds)?;
    moving.yardsticks(&mut report, "moving", |_| true);
    moving.arrivals(&mut report, "moving", true, |_| true);
    all.yardsticks(&mut report, "plain", |one| one.is_plain);
    all.arrivals(&mut report, "plain", false, |one| one.is_plain);
    for share in SHARES_PERCENT.into_iter().skip(1) {
        all.on_the_way(&mut report, share);
    }
    untaught(&mut report, &graph, &data.join("traces/porto_truth.jsonl"))?;

    let file = folder.join("report.html");
    std::fs::write(&file, page("taxis in Porto, the last 40 % of a day's trips", &all.judged))
        .context("write the page")?;
    println!("  page: {}", file.display());
    if let Some(path) = arguments.each {
        write_each(&path, &all)?;
    }
    report.finish()
}

/// The taxis' day, replayed.
struct History {
    trips: usize,
    judge_from: usize,
    taught: Vec<Asked>,
    judged: Vec<Asked>,
    /// True ÷ empty road over the trips that teach.
    factor: f64,
}

impl History {
    fn of(graph: &Arc<Graph>, traces: Vec<Trace>, stands: Stands) -> anyhow::Result<History> {
        let trips = Trip::all(traces, stands);
        let judge_from = trips.len() * 6 / 10;
        let said = Replay::of(graph, &trips, Teaching::AsTheyFinish, |_| {});
        let (taught, judged): (Vec<Asked>, Vec<Asked>) = said.into_iter().partition(|one| one.trip < judge_from);
        anyhow::ensure!(judged.iter().any(|one| one.is_plain), "no trip is left to judge by");
        let begun = taught.iter().filter(|one| one.share_percent == 0);
        let mut ratios: Vec<f64> = begun.map(|one| one.took_s / one.free_s.max(1.0)).collect();
        ratios.sort_by(f64::total_cmp);
        Ok(History { trips: trips.len(), judge_from, taught, judged, factor: quantile(&ratios, 0.5) })
    }

    fn begun(&self, is_meant: impl Fn(&Asked) -> bool) -> Vec<&Asked> {
        self.judged.iter().filter(|one| one.share_percent == 0 && is_meant(one)).collect()
    }

    fn yardsticks(&self, report: &mut Report, which: &str, is_meant: impl Fn(&Asked) -> bool) {
        let judged = self.begun(is_meant);
        let mape = |seconds: &dyn Fn(&Asked) -> f64| mape_percent(judged.iter().copied(), seconds);
        let of_all = format!("of {}, of which the first {} teach", self.trips, self.judge_from);
        report.row(&format!("trips judged, {which}"), judged.len() as f64, "", &of_all, Goal::None);
        let what = format!("  haversine at 30 km/h, {which}: MAPE");
        report.row(&what, mape(&|one| one.haversine_s), "%", "the issue's 45.6", Goal::None);
        let what = format!("  free flow x {:.2}, {which}: MAPE", self.factor);
        report.row(&what, mape(&|one| one.free_s * self.factor), "%", "the factor is of the first 60 %", Goal::None);
        let what = format!("  free flow x rolling factor, {which}: MAPE");
        let rolling = mape(&|one| one.free_s * one.free_factor);
        report.row(&what, rolling, "%", "of the last 100 finished; the issue's 28.9", Goal::None);
    }

    fn arrivals(&self, report: &mut Report, which: &str, has_goals: bool, is_meant: impl Fn(&Asked) -> bool) {
        let scores = Scores::of(self.begun(is_meant));
        let goal = |goal| if has_goals { goal } else { Goal::None };
        let sided = format!("{:.0} % sooner, {:.0} % later", scores.below_percent, scores.above_percent);
        let mean = format!("mean {:.1}", scores.half_width_mean_percent);
        let best = "best trial 23.7";
        report.row(&format!("ETA, {which}: MAPE"), scores.mape_percent, "%", best, goal(Goal::AtMost(23.7)));
        report.row(&format!("ETA, {which}: WAPE"), scores.wape_percent, "%", "", Goal::None);
        report.row(&format!("ETA, {which}: bias"), scores.bias_percent, "%", "of the time driven", Goal::None);
        let covers = format!("80 % interval, {which}: covers");
        report.row(&covers, scores.covered_percent, "%", &sided, goal(Goal::Between(78.0, 82.0)));
        let half = format!("80 % interval, {which}: half width, median");
        report.row(&half, scores.half_width_median_percent, "%", &mean, goal(Goal::AtMost(35.0)));
    }

    fn on_the_way(&self, report: &mut Report, share: u8) {
        let scores = Scores::of(self.judged.iter().filter(|one| one.share_percent == share));
        let what = format!("asked at {share} % of the trip");
        report.row(&format!("{what}: MAPE"), scores.mape_percent, "%", "of what is left", Goal::None);
        report.row(&format!("{what}: bias"), scores.bias_percent, "%", "of the time left", Goal::None);
        report.row(&format!("{what}: 80 % interval covers"), scores.covered_percent, "%", "", Goal::None);
    }
}

/// What the first drivers in a city are told: trips with truth, nothing learned.
fn untaught(report: &mut Report, graph: &Arc<Graph>, path: &Path) -> anyhow::Result<()> {
    let trips = Trip::all(traces::read_file(path)?, Stands::Tail);
    let said = Replay::of(graph, &trips, Teaching::Never, |_| {});
    for share in SHARES_PERCENT {
        let scores = Scores::of(said.iter().filter(|one| one.share_percent == share));
        let bias = format!("bias {:+.1} %, covers {:.0} %", scores.bias_percent, scores.covered_percent);
        let what = format!("untaught, trips with truth, asked at {share} %: MAPE");
        report.row(&what, scores.mape_percent, "%", &bias, Goal::None);
    }
    Ok(())
}

fn write_each(path: &Path, history: &History) -> anyhow::Result<()> {
    let mut lines = String::from(
        "trip,share_percent,at,took_s,seconds,length_m,straight_m,turns,driven_m,free_s,p10_ms,p50_ms,p90_ms,judged,plain\n",
    );
    for one in history.taught.iter().chain(&history.judged) {
        let Asked { trip, share_percent, at, took_s, eta, ahead, free_s, is_plain, .. } = one;
        writeln!(
            lines,
            "{trip},{share_percent},{},{took_s},{},{},{},{},{},{free_s},{},{},{},{},{is_plain}",
            at.as_secs(),
            ahead.seconds,
            ahead.length_m,
            ahead.straight_m,
            ahead.turns,
            ahead.driven_m,
            eta.p10_ms,
            eta.p50_ms,
            eta.p90_ms,
            *trip >= history.judge_from
        )?;
    }
    std::fs::write(path, lines).context("write the trips down")
}
