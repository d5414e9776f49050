//! How well arrivals are predicted on recorded trips, in their order of time: at each trip's start, toward the place
//! where it ended, knowing only the trips that had finished by then. The first 60 % only teach; the rest also judge.
//!
//! `eta_taxi MAP.wfm TRIPS.csv [EACH.csv]`, the last to see each trip.
//!
//! A trip counts if it lasted three minutes to an hour after its standing tail (all fixes at the end within 50 m of the
//! last) was cut. The route is the fastest one under the speeds learned so far, not the one that was driven.

use std::sync::Arc;

use maps::eta::{self, Ahead, EtaLearner, FinishedTrip, Speeds};
use maps::matcher::trip::match_trip;
use maps::matcher::{Matched, Scratch};
use maps::router::{Endpoint, Routing, Weights};
use maps::speeds::{Learner, LiveLearner, SpeedTable, Traversals, hour_of_week};
use maps::traces::{self, Trace};
use maps::{Graph, Profile, geo};
use protocol::Time;

struct Trip {
    trace: Trace,
    begin: Time,
    end: Time,
}

#[derive(Clone, Copy)]
enum Happening {
    Finished(usize),
    Begun(usize),
}

#[derive(Clone, Copy)]
struct Judged {
    took_s: f64,
    eta: eta::Eta,
    haversine_s: f64,
    free_s: f64,
    is_judge: bool,
    is_plain: bool,
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, map, trips, each @ ..] = args.as_slice() else { panic!("usage: eta_taxi MAP.wfm TRIPS.csv [EACH.csv]") };
    let graph = Arc::new(Graph::open(map).expect("the map opens"));
    let trips = read_trips(trips);
    let routing = Routing::new(graph.clone());
    let free = Routing::new(graph.clone());
    println!("{} trips of 3 to 60 min", trips.len());

    let mut happenings: Vec<(Time, u8, Happening)> = Vec::new();
    for (i, trip) in trips.iter().enumerate() {
        happenings.push((trip.begin, 0, Happening::Begun(i)));
        happenings.push((trip.end, 1, Happening::Finished(i)));
    }
    happenings.sort_by_key(|(time, order, _)| (*time, *order));

    let judge_from = trips.len() * 6 / 10;
    let mut scratch = Scratch::new();
    let mut learner = Learner::default();
    let mut live = LiveLearner::new(trips[0].begin);
    let mut usual = SpeedTable::free_flow(&graph);
    let mut eta_learner = EtaLearner::default();
    let mut asked: Vec<Option<(Ahead, Judged)>> = vec![None; trips.len()];
    let mut judged = Vec::new();
    let mut since_table = 0;
    for (now, _, happening) in happenings {
        match happening {
            Happening::Begun(i) => {
                let factors = live.factors(&graph, now);
                let speeds = Speeds { usual: &usual, live: Some(&factors) };
                asked[i] = ask(&graph, &routing, &free, speeds, &mut eta_learner, &trips[i], i >= judge_from);
            }
            Happening::Finished(i) => {
                let trip = &trips[i];
                let matched = match_trip(&graph, &mut scratch, Profile::Car, &trip.trace.fixes);
                learn(&graph, &usual, &mut learner, &mut live, &matched);
                if let Some((ahead, one)) = asked[i] {
                    judged.push(one);
                    eta_learner.handle_finished(FinishedTrip {
                        ahead,
                        asked: trip.begin,
                        finished: trip.end,
                        predicted_ms: one.eta.p50_ms,
                    });
                }
                since_table += 1;
                if since_table >= TABLE_EVERY {
                    since_table = 0;
                    usual = learner.table(&graph);
                    reweight(&graph, &routing, &usual, now);
                }
            }
        }
    }
    println!("all trips");
    report(&judged);
    println!("trips from one place to another: at least 1 km apart, no hop faster than 45 m/s");
    judged.retain(|j| j.is_plain);
    report(&judged);
    if let Some(path) = each.first() {
        write_each(path, &trips, &asked);
    }
}

/// Routes by the usual speeds of the hour.
fn reweight(graph: &Graph, routing: &Routing, usual: &SpeedTable, now: Time) {
    let hour = hour_of_week(now);
    routing.reweight(Weights::of(graph, Profile::Car, |edge| {
        (usual.seconds(graph, edge, graph.length_cm(edge), hour) * 1000.0) as u32
    }));
}

/// Writes down each trip.
fn write_each(path: &str, trips: &[Trip], asked: &[Option<(Ahead, Judged)>]) {
    let mut lines =
        String::from("begin,end,seconds,length_m,straight_m,turns,free_s,p10_ms,p50_ms,p90_ms,judge,plain\n");
    for (trip, (a, j)) in trips.iter().zip(asked).filter_map(|(t, a)| a.map(|a| (t, a))) {
        let (begin, end) = (trip.begin.as_secs(), trip.end.as_secs());
        let eta = j.eta;
        lines += &format!(
            "{begin},{end},{},{},{},{},{},{},{},{},{},{}\n",
            a.seconds,
            a.length_m,
            a.straight_m,
            a.turns,
            j.free_s,
            eta.p10_ms,
            eta.p50_ms,
            eta.p90_ms,
            j.is_judge,
            j.is_plain
        );
    }
    std::fs::write(path, lines).expect("the output can be written");
}

/// Predicts a trip at its start.
fn ask(
    graph: &Graph,
    routing: &Routing,
    free: &Routing,
    speeds: Speeds<'_>,
    learner: &mut EtaLearner,
    trip: &Trip,
    is_judge: bool,
) -> Option<(Ahead, Judged)> {
    let (from, to) = (trip.trace.fixes.first()?.position, trip.trace.fixes.last()?.position);
    let ends = (Endpoint::Position(from), Endpoint::Position(to));
    let took_s = trip.end.millis_since(trip.begin) as f64 / 1000.0;
    let haversine_s = geo::distance_cm(from, to) / 100.0 / (30.0 / 3.6);
    let free_s =
        free.router(Profile::Car).route(&ends.0, &ends.1).map_or(haversine_s, |r| f64::from(r.duration_ms) / 1000.0);
    let route = routing.router(Profile::Car).route(&ends.0, &ends.1)?;
    let ahead = eta::ahead(graph, speeds, &route.edges, route.start_along_cm, route.end_along_cm, trip.begin)?;
    let eta = learner.predict(&ahead, trip.begin);
    let hops = trip.trace.fixes.windows(2);
    let fastest_cm = hops.map(|f| geo::distance_cm(f[0].position, f[1].position)).fold(0.0, f64::max);
    let is_plain = ahead.straight_m >= 1_000.0 && fastest_cm <= 45.0 * 15.0 * 100.0;
    Some((ahead, Judged { took_s, eta, haversine_s, free_s, is_judge, is_plain }))
}

fn learn(graph: &Graph, usual: &SpeedTable, learner: &mut Learner, live: &mut LiveLearner, matched: &[Matched]) {
    let mut traversals = Traversals::default();
    let mut out = Vec::new();
    for one in matched {
        traversals.handle_matched(graph, one, &mut out);
    }
    for traversal in &out {
        learner.handle_traversal(graph, traversal);
        live.handle_traversal(graph, usual, traversal);
    }
}

fn read_trips(path: &str) -> Vec<Trip> {
    let all = traces::read_file(path.as_ref()).expect("the trips are readable");
    let mut trips: Vec<Trip> = all
        .into_iter()
        .filter_map(|mut trace| {
            let last = trace.fixes.last()?.position;
            let moving = trace.fixes.iter().rposition(|f| geo::distance_cm(f.position, last) > 5_000.0)?;
            trace.fixes.truncate(moving + 2);
            let (begin, end) = (trace.fixes[0].measured.to_time(), trace.fixes.last()?.measured.to_time());
            let took_s = end.millis_since(begin) / 1000;
            (180..=3_600).contains(&took_s).then_some(Trip { trace, begin, end })
        })
        .collect();
    trips.sort_by_key(|t| t.begin);
    trips
}

fn report(judged: &[Judged]) {
    let judges: Vec<&Judged> = judged.iter().filter(|j| j.is_judge).collect();
    let mape = |seconds: &dyn Fn(&Judged) -> f64| {
        100.0 * judges.iter().map(|j| (seconds(j) - j.took_s).abs() / j.took_s).sum::<f64>() / judges.len() as f64
    };
    // The factor that suits the trips that teach best.
    let mut ratios: Vec<f64> = judged.iter().filter(|j| !j.is_judge).map(|j| j.took_s / j.free_s.max(1.0)).collect();
    ratios.sort_by(f64::total_cmp);
    let factor = ratios[ratios.len() / 2];
    let seconds = |j: &Judged| f64::from(j.eta.p50_ms) / 1000.0;
    let total: f64 = judges.iter().map(|j| j.took_s).sum();
    let wape = 100.0 * judges.iter().map(|j| (seconds(j) - j.took_s).abs()).sum::<f64>() / total;
    let bias = 100.0 * judges.iter().map(|j| seconds(j) - j.took_s).sum::<f64>() / total;
    let covered = judges
        .iter()
        .filter(|j| (f64::from(j.eta.p10_ms)..=f64::from(j.eta.p90_ms)).contains(&(j.took_s * 1000.0)))
        .count();
    let mut widths: Vec<f64> = judges
        .iter()
        .map(|j| 50.0 * (f64::from(j.eta.p90_ms) - f64::from(j.eta.p10_ms)) / f64::from(j.eta.p50_ms.max(1)))
        .collect();
    widths.sort_by(f64::total_cmp);
    println!("{} trips judged", judges.len());
    println!("haversine at 30 km/h: MAPE {:.1} %", mape(&|j| j.haversine_s));
    println!("free flow x {factor:.2}: MAPE {:.1} %", mape(&|j| j.free_s * factor));
    println!("ETA: MAPE {:.1} %, WAPE {wape:.1} %, bias {bias:+.1} %", mape(&seconds));
    println!(
        "80 % interval covers {:.1} %, half width median {:.1} %, mean {:.1} %",
        100.0 * covered as f64 / judges.len() as f64,
        widths[widths.len() / 2],
        widths.iter().sum::<f64>() / widths.len() as f64
    );
}

/// New speeds after so many finished trips.
const TABLE_EVERY: usize = 25;
