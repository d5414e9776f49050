//! The maps: matcher, router, index and import, on one core, beside Valhalla and OSRM on the same files in one run.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use benches::matching::{End, Run, Sampled};
use benches::peers::{Peer, PeerRun, Peers};
use benches::report::workspace;
use benches::{Goal, Report, city, cpu};
use clap::Parser;
use maps::Graph;
use maps::import::{ImportOptions, Imported, Stage, import};
use maps::matcher::{Scratch, Weights};

#[derive(Parser)]
struct Arguments {
    /// Leave the other engines out; count mismatch here instead of by the scorer.
    #[arg(long, conflicts_with = "peers_only")]
    quick: bool,
    /// Only the other engines.
    #[arg(long)]
    peers_only: bool,
    /// Let the other engines import the extract of many cities too: minutes.
    #[arg(long)]
    many: bool,
    /// Match these traces instead (the taxi CSV, GPX, or JSON lines with true routes), in `--extract`.
    #[arg(long, requires = "extract")]
    traces: Option<PathBuf>,
    /// The extract in which `--traces` lie.
    #[arg(long, requires = "traces")]
    extract: Option<PathBuf>,
    /// Seconds between the fixes kept of `--traces`, as often as wanted; 0 keeps all.
    #[arg(long, default_values_t = [4.0, 15.0, 30.0])]
    every: Vec<f64>,
    /// Extracts and traces; `../shared/data` if not said.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Compares routes; `../shared/score/route_mismatch.py` if not said.
    #[arg(long)]
    scorer: Option<PathBuf>,
    /// Python 3.12 or newer, for the other engines; looked for if not said.
    #[arg(long)]
    python: Option<PathBuf>,
    /// How often our matcher goes over the traces; the fastest pass counts.
    #[arg(long, default_value_t = 5)]
    passes: usize,
    /// Try other weights of the matcher: name=value, as often as wanted.
    #[arg(long = "set", value_parser = weight)]
    weights: Vec<(String, f32)>,
}

/// Where things are, and who else takes part.
struct Bench {
    arguments: Arguments,
    data: PathBuf,
    scorer: PathBuf,
    /// What the traces lie in.
    extract: PathBuf,
    /// Maps and routes of this run.
    folder: PathBuf,
    peers: Option<Peers>,
    report: Report,
}

/// One file of traces at one interval.
struct Course {
    name: String,
    traces: PathBuf,
    every_s: f64,
    /// Where the true routes are known.
    mismatch_percent: Option<Goal>,
    fixes_per_s: Goal,
    provisional_p95_m: Goal,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let shared = workspace().join("../shared");
    let folder = workspace().join("target/bench/maps");
    std::fs::create_dir_all(&folder).context("make a folder for maps and routes")?;
    let data = arguments.data.clone().unwrap_or_else(|| shared.join("data"));
    let mut bench = Bench {
        scorer: arguments.scorer.clone().unwrap_or_else(|| shared.join("score/route_mismatch.py")),
        extract: arguments.extract.clone().unwrap_or_else(|| data.join("maps/porto.osm.pbf")),
        peers: None,
        report: Report::new("maps"),
        data,
        folder,
        arguments,
    };
    bench.find_peers();
    let extract = bench.extract.clone();
    let map = bench.import(&extract)?;
    bench.build_peers(&extract)?;
    let many = bench.data.join("maps/many-cities.osm.pbf");
    if bench.arguments.traces.is_none() {
        bench.import(&many)?;
    }
    if bench.arguments.many {
        bench.build_peers(&many)?;
    }
    if !bench.arguments.peers_only {
        let graph = Arc::new(Graph::open(&map).context("open the map")?);
        city::candidates(&graph, &mut bench.report)?;
        city::routes(&graph, &mut bench.report)?;
        city::tiles(&graph, &mut bench.report)?;
    }
    for course in bench.courses()? {
        bench.match_course(&map, &course)?;
    }
    bench.report.finish()
}

/// `porto` of `…/porto.osm.pbf`.
fn name_of(extract: &Path) -> String {
    let name = extract.file_name().unwrap_or_default().to_string_lossy();
    name.split('.').next().unwrap_or_default().to_string()
}

impl Bench {
    /// The traces asked for, or ours with their goals.
    fn courses(&self) -> anyhow::Result<Vec<Course>> {
        let plain = |name: String, traces: &Path, every_s| Course {
            name,
            traces: traces.to_path_buf(),
            every_s,
            mismatch_percent: None,
            fixes_per_s: Goal::None,
            provisional_p95_m: Goal::None,
        };
        if let Some(traces) = &self.arguments.traces {
            let has_truth = maps::traces::read_file(traces)?.iter().any(|trace| !trace.truth.is_empty());
            let mismatch_percent = has_truth.then_some(Goal::None);
            let at = |every_s: &f64| plain(format!("{} at {every_s} s", name_of(traces)), traces, *every_s);
            return Ok(self.arguments.every.iter().map(|s| Course { mismatch_percent, ..at(s) }).collect());
        }
        let (truth, taxi) = (self.data.join("traces/porto_truth.jsonl"), self.data.join("traces/porto_taxi.csv"));
        let with_truth = |every_s: f64, percent_max| Course {
            mismatch_percent: Some(Goal::AtMost(percent_max)),
            ..plain(format!("truth trips at {every_s} s"), &truth, every_s)
        };
        Ok(vec![
            Course {
                fixes_per_s: Goal::AtLeast(150_000.0),
                provisional_p95_m: Goal::AtMost(15.0),
                ..with_truth(4.0, 0.8)
            },
            with_truth(10.0, 0.6),
            with_truth(15.0, 1.1),
            with_truth(30.0, 2.1),
            plain("taxi trips at 15 s".to_string(), &taxi, 0.0),
        ])
    }

    fn find_peers(&mut self) {
        if self.arguments.quick {
            return;
        }
        let folder = workspace().join("target/bench/peers");
        match Peers::prepare(&folder, self.arguments.python.as_deref()) {
            Ok(peers) => self.peers = Some(peers),
            Err(error) => {
                println!("LEFT OUT: Valhalla and OSRM cannot be had here ({error:#}); mismatch is counted here too");
            }
        }
    }

    /// Makes our map of an extract. Answers where it is.
    fn import(&mut self, extract: &Path) -> anyhow::Result<PathBuf> {
        let name = name_of(extract);
        let map = self.folder.join(format!("{name}.wfm"));
        if !self.arguments.peers_only {
            let (apart_goal, order_goal) = match name.as_str() {
                "porto" => (Goal::AtMost(1.0), Goal::AtMost(2.5)),
                "many-cities" => (Goal::AtMost(3.0), Goal::AtMost(10.0)),
                _ => (Goal::None, Goal::None),
            };
            let timed = timed_import(extract, &map)?;
            let (all, order, report) = (timed.all, timed.order, &mut self.report);
            let of_cpu = |cpu_s: f64| format!("{cpu_s:.2} s of CPU; {} edges", timed.imported.edges);
            let (apart_s, apart_cpu) = (all.wall_s - order.wall_s, of_cpu(all.cpu_s - order.cpu_s));
            report.row(&format!("import {name}, order apart"), apart_s, "s", &apart_cpu, apart_goal);
            let (what, order_cpu) = (format!("  the router's order of {name}"), of_cpu(order.cpu_s));
            report.row(&what, order.wall_s, "s", &order_cpu, order_goal);
            let bytes = timed.imported.bytes_per_edge;
            let what = format!("graph and index of {name} per directed edge");
            report.row(&what, bytes, "B", "of the mapped file", Goal::AtMost(100.0));
        }
        Ok(map)
    }

    /// Makes the peers' maps of an extract, from nothing.
    fn build_peers(&mut self, extract: &Path) -> anyhow::Result<()> {
        let name = name_of(extract);
        for peer in Peer::ALL {
            let work = self.work(peer, &name);
            let Some(peers) = &self.peers else { continue };
            if work.exists() {
                std::fs::remove_dir_all(&work).context("clear what a peer had built")?;
            }
            match peers.build(peer, extract, &work) {
                Ok(built) => {
                    let what = format!("  {} of {name}, one thread", peer.as_str());
                    let yardstick = format!("{:.1} s of CPU, version {}", built.build_cpu_s, built.version);
                    self.report.row(&what, built.build_s, "s", &yardstick, Goal::None);
                }
                Err(error) => println!("LEFT OUT: {error:#}"),
            }
        }
        Ok(())
    }

    fn work(&self, peer: Peer, extract: &str) -> PathBuf {
        self.folder.join(format!("{extract}-{}", peer.as_str().to_lowercase()))
    }

    /// Ours over one file of traces, then the peers.
    fn match_course(&mut self, map: &Path, course: &Course) -> anyhow::Result<()> {
        let mut fixes_per_s = None;
        if !self.arguments.peers_only {
            fixes_per_s = Some(self.match_ours(map, course)?);
        }
        for peer in Peer::ALL {
            let Some(peers) = &self.peers else { continue };
            let routes = self.routes(peer.as_str(), course);
            let work = self.work(peer, &name_of(&self.extract));
            match peers.match_traces(peer, &self.extract, &work, &course.traces, course.every_s, &routes) {
                Ok(run) => self.peer_rows(peer, course, &run, fixes_per_s, &routes)?,
                Err(error) => println!("LEFT OUT: {error:#}"),
            }
        }
        Ok(())
    }

    fn routes(&self, engine: &str, course: &Course) -> PathBuf {
        self.folder.join(format!("{} by {engine}.jsonl", course.name))
    }

    /// Answers fixes per second of CPU.
    fn match_ours(&mut self, map: &Path, course: &Course) -> anyhow::Result<f64> {
        let graph = Graph::open(map).context("open the map")?;
        let sampled = Sampled::read(&course.traces, course.every_s, End::Kept)?;
        let mut scratch = Scratch::with_weights(self.weights()?);
        let run = Run::of(&graph, &sampled, &mut scratch, self.arguments.passes)?;
        let name = &course.name;
        let fixes = format!("per second of CPU; {} trips, {} fixes", sampled.traces.len(), run.fixes);
        self.report.row(&format!("{name}: fixes/s"), run.fixes_per_s(), "/s", &fixes, course.fixes_per_s);
        self.report.row(&format!("{name}: p50 of a fix"), run.us_at(0.5), "us", "", Goal::None);
        self.report.row(&format!("{name}: p99 of a fix"), run.us_at(0.99), "us", "wall clock", Goal::AtMost(50.0));
        let places = format!("{} breaks, {} fixes on no road", run.breaks(), run.unplaced());
        self.report.row(
            &format!("{name}: look-ahead at most"),
            run.look_ahead_max_s(),
            "s",
            &places,
            Goal::AtMost(40.0),
        );
        let provisional_m = run.provisional_m(&sampled);
        if let Some(last) = provisional_m.len().checked_sub(1) {
            let at = |share: f64| provisional_m[(last as f64 * share) as usize];
            self.report.row(&format!("{name}: provisional from truth p50"), at(0.5), "m", "", Goal::None);
            self.report.row(
                &format!("{name}: provisional from truth p95"),
                at(0.95),
                "m",
                "",
                course.provisional_p95_m,
            );
        }
        if let Some(goal) = course.mismatch_percent {
            let routes = self.routes("Wayfix", course);
            run.write_routes(&graph, &sampled, &routes)?;
            let alone = Sampled::read(&course.traces, course.every_s, End::ByInterval)?;
            let percent_alone = Run::of(&graph, &alone, &mut scratch, 1)?.mismatch_percent(&graph, &alone);
            let (percent, by) = match self.score(course, &routes)? {
                Some(percent) => (percent, "by the scorer"),
                None => (run.mismatch_percent(&graph, &sampled), "counted here"),
            };
            let by = format!("{by}; {percent_alone:.2} without each trip's last fix");
            self.report.row(&format!("{name}: mismatch"), percent, "%", &by, goal);
        }
        Ok(run.fixes_per_s())
    }

    fn peer_rows(
        &mut self,
        peer: Peer,
        course: &Course,
        run: &PeerRun,
        ours_per_s: Option<f64>,
        routes: &Path,
    ) -> anyhow::Result<()> {
        let (name, peer_name) = (&course.name, peer.as_str());
        let per_s = run.fixes as f64 / run.seconds;
        let said = format!("whole trips; {} of {} refused", run.failed, run.trips);
        self.report.row(&format!("  {peer_name}, {name}: fixes/s"), per_s, "/s", &said, Goal::None);
        if let Some(ours_per_s) = ours_per_s {
            let goal = if peer == Peer::Valhalla { Goal::AtLeast(10.0) } else { Goal::None };
            let what = format!("  ours beside {peer_name}'s, {name}");
            self.report.row(&what, ours_per_s / per_s, "times", "CPU time, both", goal);
        }
        let scored = course.mismatch_percent.and_then(|_| self.score(course, routes).transpose()).transpose()?;
        if let Some(percent) = scored {
            let what = format!("  {peer_name}, {name}: mismatch");
            self.report.row(&what, percent, "%", "by the scorer", Goal::None);
        }
        Ok(())
    }

    /// None where there is no Python for the scorer.
    fn score(&self, course: &Course, routes: &Path) -> anyhow::Result<Option<f64>> {
        self.peers.as_ref().map(|peers| peers.score(&self.scorer, &course.traces, routes)).transpose()
    }

    fn weights(&self) -> anyhow::Result<Weights> {
        let mut weights = Weights::DEFAULT;
        for (name, value) in &self.arguments.weights {
            *weights.by_name(name).with_context(|| format!("no weight is called {name}"))? = *value;
        }
        Ok(weights)
    }
}

struct TimedImport {
    imported: Imported,
    all: Taken,
    /// Of that, the router's order.
    order: Taken,
}

/// By the wall clock and of CPU.
#[derive(Clone, Copy, Default)]
struct Taken {
    wall_s: f64,
    cpu_s: f64,
}

impl Taken {
    fn since(began: (Instant, Duration)) -> Self {
        let cpu = cpu::of_process_ever().saturating_sub(began.1);
        Taken { wall_s: began.0.elapsed().as_secs_f64(), cpu_s: cpu.as_secs_f64() }
    }
}

fn timed_import(extract: &Path, map: &Path) -> anyhow::Result<TimedImport> {
    let now = || (Instant::now(), cpu::of_process_ever());
    let began = now();
    let order = Mutex::new((None, Taken::default()));
    let imported = import(extract, map, &ImportOptions::default(), &|progress| {
        if let (Stage::Order, Ok(mut order)) = (progress.stage, order.lock()) {
            order.1 = Taken::since(*order.0.get_or_insert_with(now));
        }
    });
    let imported = imported.with_context(|| format!("import {}", extract.display()))?;
    let order = order.into_inner().map_or(Taken::default(), |(_, taken)| taken);
    Ok(TimedImport { imported, all: Taken::since(began), order })
}

fn weight(text: &str) -> Result<(String, f32), String> {
    let (name, value) = text.split_once('=').ok_or("not name=value")?;
    Ok((name.to_string(), value.parse().map_err(|_| format!("{value} is not a number"))?))
}
