//! `wayfix maps speeds`: how fast one gets along the roads of a map, as a stored table says it or as recorded trips
//! teach it.

mod page;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use maps::matcher::Scratch;
use maps::matcher::trip::match_trip;
use maps::speeds::{CLASS_GROUPS, GROUP_NAMES, HOURS, Learner, SpeedTable, Traversals, class_group};
use maps::{EdgeId, Graph, Profile};

use super::bar;
use crate::output::{self, Kind, Standard};

#[derive(clap::Args)]
pub struct Options {
    #[arg(value_name = "CITY.wfm")]
    map: PathBuf,
    /// A stored table of this map: a body that the learner offered, or what --output wrote.
    #[arg(long, value_name = "FILE", conflicts_with = "traces")]
    table: Option<PathBuf>,
    /// Recorded trips to learn from: GPX, the taxi CSV, or JSON lines of trips with truth.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    traces: Vec<PathBuf>,
    /// Hour of the week, UTC; 0 is Monday, midnight to one.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(0..HOURS as i64))]
    hour: u16,
    /// How many of the slowest and fastest roads to name.
    #[arg(long, default_value_t = 10)]
    roads: usize,
    /// Writes the table.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Draws the roads by their speed as a page that needs nothing else.
    #[arg(long, value_name = "PAGE.html")]
    html: Option<PathBuf>,
}

pub fn run(options: &Options) -> Result<()> {
    let inputs = options.table.iter().chain(&options.traces).chain([&options.map]);
    let inputs: Vec<&Path> = inputs.map(PathBuf::as_path).collect();
    for (file, kind) in [(&options.output, Kind::Table), (&options.html, Kind::Page)] {
        file.iter().try_for_each(|file| output::check(file, kind, &inputs))?;
    }
    let graph = super::open(&options.map)?;
    let (table, learned) = match &options.table {
        Some(file) => {
            let bytes = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
            let table = SpeedTable::from_bytes(&bytes, &graph).with_context(|| format!("read {}", file.display()))?;
            (table, None)
        }
        None if options.traces.is_empty() => (SpeedTable::free_flow(&graph), None),
        None => {
            let learner = learn(&graph, &options.traces)?;
            (learner.table(&graph), Some(learner))
        }
    };
    let hour = usize::from(options.hour);
    writeln!(Standard, "{}, hour {hour} of the week\n", hour_name(hour))?;
    print_classes(&mut Standard, &graph, &table, hour)?;
    print_roads(&mut Standard, (&graph, &table), learned.as_ref(), hour, options.roads)?;
    if let Some(file) = &options.output {
        std::fs::write(file, table.to_bytes()).with_context(|| format!("write {}", file.display()))?;
    }
    if let Some(page) = &options.html {
        page::write(page, &graph, &table, learned.as_ref(), hour)?;
    }
    Ok(())
}

/// Through the matcher, fix by fix as live.
fn learn(graph: &Graph, files: &[PathBuf]) -> Result<Learner> {
    let (mut learner, mut scratch) = (Learner::default(), Scratch::new());
    let (mut taught, mut traversals) = (0, Vec::new());
    let all = super::read_traces(files, 0.0)?;
    let bar = bar("{msg:24} {wide_bar} {pos}/{len}")?.with_message("learning");
    bar.set_length(all.len() as u64);
    for trace in &all {
        let mut of_trip = Traversals::default();
        for matched in match_trip(graph, &mut scratch, Profile::Car, &trace.fixes) {
            of_trip.handle_matched(graph, &matched, &mut traversals);
        }
        traversals.iter().for_each(|traversal| learner.handle_traversal(graph, traversal));
        taught += traversals.len();
        traversals.clear();
        bar.inc(1);
    }
    bar.finish_and_clear();
    let trips = all.len();
    if taught == 0 {
        bail!("none of {trips} trips can be placed on this map");
    }
    writeln!(Standard, "learned from {trips} trips: {} edges driven, {taught} times in all", learner.edges_len())?;
    Ok(learner)
}

/// Length and the time it takes, empty and as usual.
#[derive(Clone, Copy, Default)]
struct Sum {
    length_cm: f64,
    empty_s: f64,
    usual_s: f64,
}

impl Sum {
    fn add(&mut self, graph: &Graph, table: &SpeedTable, edge: EdgeId, hour: usize) {
        let length_cm = graph.length_cm(edge);
        self.length_cm += f64::from(length_cm);
        self.empty_s += f64::from(length_cm) / f64::from(graph.free_flow_cm_s(edge).max(1));
        self.usual_s += table.seconds(graph, edge, length_cm, hour);
    }

    fn ratio(&self) -> f64 {
        self.empty_s / self.usual_s.max(1e-9)
    }

    fn empty_km_h(&self) -> f64 {
        self.length_cm / self.empty_s.max(1e-9) * KM_H_PER_CM_S
    }

    fn usual_km_h(&self) -> f64 {
        self.length_cm / self.usual_s.max(1e-9) * KM_H_PER_CM_S
    }
}

fn roads_for_cars(graph: &Graph) -> impl Iterator<Item = EdgeId> + '_ {
    graph.edges().filter(|edge| graph.allows(*edge, Profile::Car))
}

fn print_classes(out: &mut dyn Write, graph: &Graph, table: &SpeedTable, hour: usize) -> io::Result<()> {
    let mut groups = [Sum::default(); CLASS_GROUPS];
    for edge in roads_for_cars(graph) {
        groups[class_group(graph.class(edge))].add(graph, table, edge, hour);
    }
    writeln!(out, "{:14} {:>8} {:>12} {:>12} {:>8}", "roads", "km", "empty km/h", "usual km/h", "of empty")?;
    for (name, sum) in GROUP_NAMES.iter().zip(&groups).filter(|(_, sum)| sum.length_cm > 0.0) {
        let km = sum.length_cm / 1e5;
        let share = sum.ratio() * 100.0;
        writeln!(out, "{name:14} {km:8.1} {:12.1} {:12.1} {share:7.0} %", sum.empty_km_h(), sum.usual_km_h())?;
    }
    Ok(())
}

/// By name, where enough of a road is known to say something of it: driven, if it was learned here.
fn print_roads(
    out: &mut dyn Write,
    (graph, table): (&Graph, &SpeedTable),
    learned: Option<&Learner>,
    hour: usize,
    count: usize,
) -> io::Result<()> {
    let mut by_name: BTreeMap<&str, Sum> = BTreeMap::new();
    let is_known = |edge: &EdgeId| learned.is_none_or(|learner| learner.is_driven(*edge));
    for edge in roads_for_cars(graph).filter(is_known).filter(|edge| !graph.name(*edge).is_empty()) {
        by_name.entry(graph.name(edge)).or_default().add(graph, table, edge, hour);
    }
    let mut roads: Vec<(&str, Sum)> = by_name.into_iter().filter(|(_, sum)| sum.length_cm >= ROAD_CM_MIN).collect();
    roads.sort_by(|(a, x), (b, y)| x.ratio().total_cmp(&y.ratio()).then(a.cmp(b)));
    let mut print = |title: &str, roads: &mut dyn Iterator<Item = &(&str, Sum)>| -> io::Result<()> {
        writeln!(out, "\n{title}")?;
        for (name, sum) in roads.take(count) {
            let share = sum.ratio() * 100.0;
            writeln!(out, "{share:5.0} % {:6.1} of {:5.1} km/h  {name}", sum.usual_km_h(), sum.empty_km_h())?;
        }
        Ok(())
    };
    if roads.is_empty() || count == 0 {
        return Ok(());
    }
    print("slowest beside the empty road", &mut roads.iter())?;
    print("fastest beside the empty road", &mut roads.iter().rev())
}

fn hour_name(hour: usize) -> String {
    let day = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"][hour / 24 % 7];
    format!("{day} {:02}:00 to {:02}:00 UTC", hour % 24, hour % 24 + 1)
}

const KM_H_PER_CM_S: f64 = 0.036;
/// Shorter stretches say more of their traffic lights than of the road.
const ROAD_CM_MIN: f64 = 30_000.0;
