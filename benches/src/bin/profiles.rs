//! Who may go where: routes of every profile on several cities, held against the tags of the extract by another reader
//! than the import's, and their lengths beside Valhalla's. Both engines are asked for the shortest way, because what
//! is fast is a matter of opinion, and what is open is not.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use benches::peers::Peers;
use benches::report::workspace;
use benches::tagged::Tagged;
use benches::{Goal, Report};
use clap::Parser;
use maps::import::{ImportOptions, import};
use maps::router::{Endpoint, Hierarchy, PRIVATE_FACTOR, Route, Router, Weights};
use maps::{EdgeId, Graph, Profile, RoadClass, geo};
use protocol::Position;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::Deserialize;
use serde_json::json;

#[derive(Parser)]
struct Arguments {
    /// Extracts; `../shared/data/maps` if not said.
    #[arg(long)]
    data: Option<PathBuf>,
    /// The cities to judge.
    #[arg(long, default_values_t = ["porto", "malta", "monaco", "helsinki"].map(String::from))]
    city: Vec<String>,
    /// The profiles to judge.
    #[arg(long, default_values_t = ["car", "moped", "bicycle", "foot"].map(String::from))]
    profile: Vec<String>,
    /// Pairs for each profile and city.
    #[arg(long, default_value_t = 1_000)]
    pairs: usize,
    /// Python 3.12 or newer, for Valhalla; looked for if not said.
    #[arg(long)]
    python: Option<PathBuf>,
    /// Only our own routes, against the tags.
    #[arg(long)]
    quick: bool,
}

struct Bench {
    arguments: Arguments,
    folder: PathBuf,
    peers: Option<Peers>,
    report: Report,
}

/// One city with what its extract says.
struct City {
    name: String,
    extract: PathBuf,
    graph: Arc<Graph>,
    tagged: Tagged,
}

/// Two places in the middle of roads that nothing else is near.
#[derive(Clone, Copy)]
struct Pair {
    from: Position,
    to: Position,
}

/// A route of Valhalla's.
#[derive(Deserialize)]
struct Theirs {
    id: usize,
    length_m: Option<f64>,
    #[serde(default)]
    ways: Vec<i64>,
    #[serde(default)]
    line: Vec<[f64; 2]>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let folder = workspace().join("target/bench/profiles");
    std::fs::create_dir_all(&folder).context("make a folder for maps and routes")?;
    let mut bench = Bench { peers: None, report: Report::new("profiles"), folder, arguments };
    if !bench.arguments.quick {
        match Peers::prepare(&workspace().join("target/bench/peers"), bench.arguments.python.as_deref()) {
            Ok(peers) => bench.peers = Some(peers),
            Err(error) => println!("LEFT OUT: Valhalla cannot be had here ({error:#}); its lengths are not compared"),
        }
    }
    let data = bench.arguments.data.clone().unwrap_or_else(|| workspace().join("../shared/data/maps"));
    for name in bench.arguments.city.clone() {
        let city = bench.open(name, &data)?;
        for profile in bench.arguments.profile.clone() {
            let profile = profile.parse().map_err(|_| anyhow::anyhow!("no profile is called {profile}"))?;
            bench.judge(&city, profile)?;
        }
    }
    bench.report.finish()
}

impl Bench {
    fn open(&self, name: String, data: &Path) -> anyhow::Result<City> {
        let extract = data.join(format!("{name}.osm.pbf"));
        let map = self.folder.join(format!("{name}.wfm"));
        import(&extract, &map, &ImportOptions::default(), &|_| {}).with_context(|| format!("import {name}"))?;
        let graph = Arc::new(Graph::open(&map).context("open the map")?);
        Ok(City { tagged: Tagged::read(&extract)?, name, extract, graph })
    }

    fn judge(&mut self, city: &City, profile: Profile) -> anyhow::Result<()> {
        let graph = &city.graph;
        let pairs = pairs(graph, profile, self.arguments.pairs)?;
        let fastest = Weights::free_flow(graph, profile);
        let router = Hierarchy::new(graph.clone(), fastest).context("the map has no order for the router")?;
        let ask = |pair: &Pair| router.route(&Endpoint::Position(pair.from), &Endpoint::Position(pair.to));
        let mut routes: Vec<Option<Route>> = pairs.iter().map(ask).collect();
        router.reweight(shortest(city, profile));
        let short: Vec<Option<Route>> = pairs.iter().map(ask).collect();
        routes.extend(short.iter().cloned());
        self.hold_against_tags(city, profile, &routes)?;
        if let Some(peers) = &self.peers {
            match theirs(peers, &self.folder, city, profile, &pairs) {
                Ok(theirs) => self.compare(city, profile, &pairs, &short, &theirs)?,
                Err(error) => println!("LEFT OUT: {error:#}"),
            }
        }
        Ok(())
    }

    fn hold_against_tags(&mut self, city: &City, profile: Profile, routes: &[Option<Route>]) -> anyhow::Result<()> {
        let mut said: BTreeMap<String, usize> = BTreeMap::new();
        let (mut wrong, mut edges) = (0, 0);
        for route in routes.iter().flatten() {
            let violations = city.tagged.violations(&city.graph, &route.edges, profile);
            wrong += usize::from(!violations.is_empty());
            edges += route.edges.len();
            violations.into_iter().for_each(|violation| *said.entry(violation).or_default() += 1);
        }
        let found = routes.iter().flatten().count();
        let what = format!("{} {profile}: routes with a forbidden way or turn", city.name);
        let of = format!("of {found}, fastest and shortest, {edges} edges; {} without a route", routes.len() - found);
        self.report.row(&what, wrong as f64, "", &of, Goal::AtMost(0.0));
        let mut said: Vec<_> = said.into_iter().collect();
        said.sort_by_key(|(_, times)| std::cmp::Reverse(*times));
        for (violation, times) in said.iter().take(10) {
            println!("    {times} times: {violation}");
        }
        Ok(())
    }

    fn compare(
        &mut self,
        city: &City,
        profile: Profile,
        pairs: &[Pair],
        ours: &[Option<Route>],
        theirs: &[Theirs],
    ) -> anyhow::Result<()> {
        let mut outliers = Vec::new();
        let steps = steps_closed(city, profile);
        let (mut both, mut only_ours, mut only_theirs, mut carried) = (0, 0, 0, 0);
        for their in theirs {
            // Valhalla pushes or carries bicycles over steps, and nothing tells it not to.
            if their.ways.iter().any(|way| steps.contains(way)) {
                carried += 1;
                continue;
            }
            match (&ours[their.id], their.length_m) {
                (Some(our), Some(length_m)) => {
                    both += 1;
                    let off = f64::from(our.length_cm) / 100.0 / length_m - 1.0;
                    if off.abs() > NEAR {
                        outliers.push((off, their, our));
                    }
                }
                (Some(_), None) => only_ours += 1,
                (None, Some(_)) => only_theirs += 1,
                (None, None) => {}
            }
        }
        outliers.sort_by(|a, b| b.0.abs().total_cmp(&a.0.abs()));
        let near = 100.0 * (both - outliers.len()) as f64 / f64::from(both.max(1) as u32);
        let longer = outliers.iter().filter(|(off, ..)| *off > 0.0).count();
        let of = format!(
            "of {both}; {longer} longer, {} shorter; {only_ours} only ours, {only_theirs} only theirs, {carried} over steps",
            outliers.len() - longer
        );
        self.report.row(
            &format!("{} {profile}: within 2 % of Valhalla", city.name),
            near,
            "%",
            &of,
            Goal::AtLeast(95.0),
        );
        let path = self.folder.join(format!("{}-{profile}.txt", city.name));
        let mut out = BufWriter::new(File::create(&path)?);
        let kinds = kinds(city, profile, &outliers);
        for (kind, times) in &kinds {
            writeln!(out, "{times:>4} {kind}")?;
        }
        for (number, (off, their, our)) in outliers.iter().enumerate() {
            let line = outlier(city, &pairs[their.id], *off, their, our);
            writeln!(out, "{line}")?;
            if number < SHOWN {
                println!("    {}", line.lines().next().unwrap_or_default());
            }
        }
        Ok(())
    }
}

/// Roads of use to the profile from which everything can be reached, alone within 15 m: both engines then begin on the
/// same road.
fn pairs(graph: &Graph, profile: Profile, count: usize) -> anyhow::Result<Vec<Pair>> {
    let is_of_use = |e: &EdgeId| {
        graph.is_connected(*e, profile) && !graph.flags(*e).is_private(profile) && !graph.flags(*e).is_ferry()
    };
    let mut found = Vec::new();
    let mut is_alone = |edge: &EdgeId| {
        let position = graph.position_at(*edge, graph.length_cm(*edge) / 2);
        Profile::ALL.iter().all(|other| {
            graph.candidates(position, ALONE_M, *other, &mut found);
            found.iter().all(|c| c.edge == *edge || graph.reverse(*edge) == Some(c.edge))
        })
    };
    let long = graph.edges().filter(is_of_use).filter(|e| graph.length_cm(*e) >= 2_000);
    let edges: Vec<EdgeId> = long.filter(|e| is_alone(e)).collect();
    anyhow::ensure!(edges.len() > 1, "no roads for {profile} that nothing is near");
    let mut random = SmallRng::seed_from_u64(SEED);
    let mut place = || {
        let edge = edges[random.random_range(0..edges.len())];
        graph.position_at(edge, graph.length_cm(edge) / 2)
    };
    let mut pairs = Vec::new();
    for _ in 0..count * 1_000 {
        let pair = Pair { from: place(), to: place() };
        if geo::distance_cm(pair.from, pair.to) >= APART_CM {
            pairs.push(pair);
        }
        if pairs.len() == count {
            break;
        }
    }
    Ok(pairs)
}

/// A centimetre for a millisecond: the cheapest way is then the shortest. Two tastes of Valhalla's cannot be switched off
/// and are shared here: its scooters take no loose surface, and its bicycles do not mind private roads.
fn shortest(city: &City, profile: Profile) -> Weights {
    let graph = &city.graph;
    Weights::of(graph, profile, |edge| {
        let length_cm = graph.length_cm(edge);
        match profile {
            Profile::Moped if city.tagged.is_loose(graph.osm_way(edge)) => length_cm.saturating_mul(LOOSE_FACTOR),
            Profile::Bicycle if graph.flags(edge).is_private(profile) => length_cm / PRIVATE_FACTOR,
            Profile::Car | Profile::Moped | Profile::Bicycle | Profile::Foot => length_cm,
        }
    })
}

fn theirs(peers: &Peers, folder: &Path, city: &City, profile: Profile, pairs: &[Pair]) -> anyhow::Result<Vec<Theirs>> {
    let asked = folder.join(format!("{}-{profile}-pairs.jsonl", city.name));
    let answered = folder.join(format!("{}-{profile}-valhalla.jsonl", city.name));
    let mut out = BufWriter::new(File::create(&asked)?);
    for (id, pair) in pairs.iter().enumerate() {
        let at = |p: Position| [p.lat(), p.lon()];
        let (costing, options) = costing(profile);
        let line = json!({"id": id, "costing": costing, "options": options, "from": at(pair.from), "to": at(pair.to)});
        writeln!(out, "{line}")?;
    }
    out.into_inner().map_err(|error| error.into_error())?;
    let work = workspace().join(format!("target/bench/maps/{}-valhalla", city.name));
    peers.route_pairs(&city.extract, &work, &asked, &answered)?;
    let lines = BufReader::new(File::open(&answered)?).lines();
    lines.map(|line| Ok(serde_json::from_str(&line?)?)).collect()
}

/// `shortest` takes speeds and all penalties out of it. The rest opens what is open by law but not to Valhalla's taste.
fn costing(profile: Profile) -> (&'static str, serde_json::Value) {
    match profile {
        Profile::Car => ("auto", json!({"shortest": true, "disable_hierarchy_pruning": true})),
        Profile::Moped => ("motor_scooter", json!({"shortest": true, "disable_hierarchy_pruning": true})),
        Profile::Bicycle => (
            "bicycle",
            json!({"shortest": true, "bicycle_type": "Mountain", "avoid_bad_surfaces": 0.0, "use_ferry": 1.0}),
        ),
        Profile::Foot => ("pedestrian", json!({"shortest": true, "max_hiking_difficulty": 6, "use_ferry": 1.0})),
    }
}

/// Why routes differ, as far as it can be seen, and how often: what they use that is closed to ours, and what ours use.
fn kinds(city: &City, profile: Profile, outliers: &[(f64, &Theirs, &Route)]) -> Vec<(String, usize)> {
    let graph = &city.graph;
    let mut open: HashMap<i64, bool> = HashMap::new(); // whether ours may go there without business there
    for edge in graph.edges().filter(|edge| graph.allows(*edge, profile)) {
        *open.entry(graph.osm_way(edge)).or_default() |= !graph.flags(edge).is_private(profile);
    }
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for (off, their, our) in outliers {
        let mut found: Vec<String> = Vec::new();
        if *off > 0.0 {
            for way in &their.ways {
                match open.get(way) {
                    Some(true) => {}
                    Some(false) => found.push(format!("longer, private to ours: {}", city.tagged.tags_of(*way))),
                    None => found.push(format!("longer, closed to ours: {}", city.tagged.tags_of(*way))),
                }
            }
            if found.is_empty() {
                found.push("longer, all open to ours: direction, turn or barrier".to_owned());
            }
        } else {
            let only = ways(city, our).into_iter().filter(|way| !their.ways.contains(way));
            found.extend(only.map(|way| format!("shorter, only ours: {}", city.tagged.tags_of(way))));
        }
        found.sort();
        found.dedup();
        found.into_iter().for_each(|kind| *kinds.entry(kind).or_default() += 1);
    }
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by_key(|(_, times)| std::cmp::Reverse(*times));
    kinds
}

/// The steps that a profile may not use.
fn steps_closed(city: &City, profile: Profile) -> HashSet<i64> {
    let graph = &city.graph;
    let closed = graph.edges().filter(|e| graph.class(*e) == RoadClass::Steps && !graph.allows(*e, profile));
    closed.map(|edge| graph.osm_way(edge)).collect()
}

fn ways(city: &City, route: &Route) -> Vec<i64> {
    let mut ways: Vec<i64> = route.edges.iter().map(|edge| city.graph.osm_way(*edge)).collect();
    ways.dedup();
    ways
}

/// Where the engines part, and on which ways.
fn outlier(city: &City, pair: &Pair, off: f64, their: &Theirs, our: &Route) -> String {
    let (ours, length_m) = (ways(city, our), their.length_m.unwrap_or(0.0));
    let line = our.geometry(&city.graph);
    let theirs: Vec<Position> = their.line.iter().filter_map(|[lon, lat]| Position::from_degrees(*lat, *lon)).collect();
    let parted = line.iter().find(|p| theirs.iter().all(|t| geo::distance_cm(**p, *t) > 200.0));
    let parted = parted.map_or(String::new(), |p| format!(", parting at {:.5},{:.5}", p.lat(), p.lon()));
    let list = |only: Vec<i64>| {
        only.iter().map(|way| format!("\n        {way} {}", city.tagged.tags_of(*way))).take(12).collect::<String>()
    };
    format!(
        "{:+.1} %: {:.5},{:.5} to {:.5},{:.5}: {:.0} m, theirs {length_m:.0} m{parted}\n      only ours:{}\n      only theirs:{}",
        off * 100.0,
        pair.from.lat(),
        pair.from.lon(),
        pair.to.lat(),
        pair.to.lon(),
        f64::from(our.length_cm) / 100.0,
        list(ours.iter().filter(|way| !their.ways.contains(way)).copied().collect()),
        list(their.ways.iter().filter(|way| !ours.contains(way)).copied().collect()),
    )
}

const NEAR: f64 = 0.02;
const SHOWN: usize = 20;
const ALONE_M: f64 = 15.0;
const APART_CM: f64 = 50_000.0;
const SEED: u64 = 41;
const LOOSE_FACTOR: u32 = 10;
