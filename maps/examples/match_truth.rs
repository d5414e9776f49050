//! Matches traces fix by fix, as live, and says how fast, how far the provisional positions were from the truth, and
//! how far ahead the matcher looked. Writes the routes as the scorer reads them.
//!
//! `match_truth MAP.wfm TRACES [--every SECONDS] [--routes OUT.jsonl] [--repeat N] [--set weight=value,…]`

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::time::Instant;

use maps::matcher::trip::route_parts;
use maps::matcher::{Matched, Matcher, Observation, Scratch, Snapped, Weights};
use maps::traces::{self, RouteLine, Trace};
use maps::{Graph, Profile, geo};
use protocol::{MeasuredTime, Position};

struct Options {
    map: PathBuf,
    traces: PathBuf,
    every_s: f64,
    routes: Option<PathBuf>,
    repeat: usize,
    weights: Weights,
}

fn main() {
    let options = options();
    let graph = Graph::open(&options.map).expect("the map opens");
    let mut all = traces::read_file(&options.traces).expect("the traces are readable");
    let truth_at: Vec<Vec<Position>> = all.iter().map(true_places).collect();
    let mut times = Vec::new();
    for (trace, places) in all.iter_mut().zip(&truth_at) {
        let before = trace.fixes.clone();
        trace.keep_every(options.every_s);
        let places: Vec<Position> = match places.is_empty() {
            true => Vec::new(),
            false => trace
                .fixes
                .iter()
                .map(|f| places[before.iter().position(|b| b.measured == f.measured).expect("kept from there")])
                .collect(),
        };
        times.push(places);
    }
    let mut scratch = Scratch::with_weights(options.weights);
    let fixes: usize = all.iter().map(|t| t.fixes.len()).sum();
    let (mut best_s, mut durations_ns) = (f64::INFINITY, Vec::with_capacity(fixes));
    let mut outcome = Outcome::default();
    for _ in 0..options.repeat.max(1) {
        outcome = Outcome::default();
        let mut run_durations = Vec::with_capacity(fixes);
        let began = Instant::now();
        for trace in &all {
            outcome.trips.push(match_trace(&graph, &mut scratch, trace, &mut run_durations));
        }
        let took = began.elapsed().as_secs_f64();
        if took < best_s {
            (best_s, durations_ns) = (took, run_durations);
        }
    }
    durations_ns.sort_unstable();
    let at = |p: f64| durations_ns[((durations_ns.len() - 1) as f64 * p) as usize] as f64 / 1000.0;
    println!(
        "{fixes} fixes, {:.0} fixes/s, p50 {:.1} us, p99 {:.1} us, max {:.0} us",
        fixes as f64 / best_s,
        at(0.5),
        at(0.99),
        at(1.0)
    );
    report_quality(&outcome, &all, &times);
    report_mismatch(&graph, &outcome, &all);
    if let Some(path) = options.routes {
        let mut out = BufWriter::new(File::create(path).expect("the output can be made"));
        for (trace, trip) in all.iter().zip(&outcome.trips) {
            let line = RouteLine::new(&trace.id, &route_parts(&graph, &trip.matched));
            serde_json::to_writer(&mut out, &line).expect("the output can be written");
            writeln!(out).expect("the output can be written");
        }
    }
}

#[derive(Default)]
struct Outcome {
    trips: Vec<Trip>,
}

#[derive(Default)]
struct Trip {
    provisional: Vec<Option<Snapped>>,
    matched: Vec<Matched>,
    look_ahead_max_s: f64,
}

fn match_trace(graph: &Graph, scratch: &mut Scratch, trace: &Trace, durations_ns: &mut Vec<u64>) -> Trip {
    let mut matcher = Matcher::new(Profile::Car);
    let mut trip = Trip {
        provisional: Vec::with_capacity(trace.fixes.len()),
        matched: Vec::with_capacity(trace.fixes.len()),
        look_ahead_max_s: 0.0,
    };
    for (i, fix) in trace.fixes.iter().enumerate() {
        let began = Instant::now();
        if let Some(due) = matcher.poll_timeout().filter(|due| *due < fix.measured) {
            matcher.handle_timeout(due.max(MeasuredTime(fix.measured.0 - 1)));
            while let Some(matched) = matcher.poll_matched(graph, scratch) {
                trip.matched.push(matched);
            }
        }
        trip.provisional.push(matcher.handle_fix(graph, scratch, &Observation::of(i as u64, fix)));
        while let Some(matched) = matcher.poll_matched(graph, scratch) {
            trip.look_ahead_max_s = trip.look_ahead_max_s.max(fix.measured.seconds_since(matched.measured));
            trip.matched.push(matched);
        }
        durations_ns.push(began.elapsed().as_nanos() as u64);
    }
    matcher.flush();
    while let Some(matched) = matcher.poll_matched(graph, scratch) {
        trip.matched.push(matched);
    }
    trip
}

fn report_quality(outcome: &Outcome, all: &[Trace], truth: &[Vec<Position>]) {
    let mut provisional_m = Vec::new();
    let mut final_m = Vec::new();
    let (mut breaks, mut unplaced, mut finals) = (0, 0, 0);
    for ((trip, trace), places) in outcome.trips.iter().zip(all).zip(truth) {
        assert_eq!(trip.matched.len(), trace.fixes.len(), "every fix comes out once");
        breaks += trip.matched.iter().filter(|m| m.is_break).count();
        unplaced += trip.matched.iter().filter(|m| m.snapped.is_none()).count();
        finals += trip.matched.len();
        for (i, place) in places.iter().enumerate() {
            let shown = trip.provisional[i].map_or(trace.fixes[i].position, |s| s.position);
            provisional_m.push(geo::distance_cm(shown, *place) / 100.0);
            if let Some(snapped) = trip.matched[i].snapped {
                final_m.push(geo::distance_cm(snapped.position, *place) / 100.0);
            }
        }
    }
    let look_ahead = outcome.trips.iter().map(|t| t.look_ahead_max_s).fold(0.0, f64::max);
    println!(
        "{} trips, {breaks} breaks, {unplaced} of {finals} unplaced, given out within {look_ahead:.1} s",
        all.len()
    );
    for (what, mut metres) in [("provisional", provisional_m), ("final", final_m)] {
        if metres.is_empty() {
            continue;
        }
        metres.sort_by(f64::total_cmp);
        let at = |p: f64| metres[((metres.len() - 1) as f64 * p) as usize];
        println!("{what}: p50 {:.1} m, p95 {:.1} m, p99 {:.1} m from the truth", at(0.5), at(0.95), at(0.99));
    }
}

/// The share of the true routes that was missed or added, counted as the scorer does.
fn report_mismatch(graph: &Graph, outcome: &Outcome, all: &[Trace]) {
    let (mut total, mut missed, mut added) = (0, 0, 0);
    for (trip, trace) in outcome.trips.iter().zip(all).filter(|(_, trace)| !trace.truth.is_empty()) {
        let origin = trace.truth[0][0];
        let truth = samples(&trace.truth, origin);
        let route = samples(&route_parts(graph, &trip.matched), origin);
        let common = common(&truth, &route);
        total += truth.len();
        missed += truth.len() - common;
        added += route.len() - common;
    }
    if total > 0 {
        let share = |n: usize| 100.0 * n as f64 / total as f64;
        println!("mismatch {:.2} % (missed {:.2}, added {:.2})", share(missed + added), share(missed), share(added));
    }
}

/// Points every 5 m with their headings: east and north in metres, radians.
fn samples(parts: &[Vec<Position>], origin: Position) -> Vec<(f64, f64, f64)> {
    let plane = geo::Plane::at(origin);
    let mut out = Vec::new();
    for part in parts {
        let mut at = STEP_M / 2.0;
        for pair in part.windows(2) {
            let (a, b) = (plane.to_cm(pair[0]), plane.to_cm(pair[1]));
            let (east, north) = ((b.0 - a.0) / 100.0, (b.1 - a.1) / 100.0);
            let length = east.hypot(north);
            while length > 0.0 && at < length {
                let share = at / length;
                out.push((a.0 / 100.0 + share * east, a.1 / 100.0 + share * north, north.atan2(east)));
                at += STEP_M;
            }
            at -= length;
        }
    }
    out
}

/// Length of the longest common subsequence of two sampled routes.
fn common(a: &[(f64, f64, f64)], b: &[(f64, f64, f64)]) -> usize {
    let mut best = vec![0usize; b.len() + 1];
    for point in a {
        let mut diagonal = 0;
        for (j, other) in b.iter().enumerate() {
            let above = best[j + 1];
            let turn = (point.2 - other.2).abs();
            let is_same = (point.0 - other.0).powi(2) + (point.1 - other.1).powi(2) <= 64.0
                && turn.min(std::f64::consts::TAU - turn) <= 1.0;
            let here = if is_same { diagonal + 1 } else { 0 };
            best[j + 1] = above.max(best[j]).max(here);
            diagonal = above;
        }
    }
    best[b.len()]
}

/// Where the driver truly was at each fix: the data has the route but not the places. At 1 Hz and 5 m of noise the
/// nearest places of the route, smoothed over some seconds, are true to a few metres along and exact across.
fn true_places(trace: &Trace) -> Vec<Position> {
    let line: Vec<Position> = trace.truth.iter().flatten().copied().collect();
    if line.len() < 2 {
        return Vec::new();
    }
    // A point every metre.
    let mut dense = Vec::new();
    for pair in line.windows(2) {
        let length_m = geo::distance_cm(pair[0], pair[1]) / 100.0;
        let steps = length_m.ceil().max(1.0) as usize;
        for s in 0..steps {
            let share = s as f64 / steps as f64;
            let mix = |a: i32, b: i32| (f64::from(a) + (f64::from(b) - f64::from(a)) * share).round() as i32;
            dense.push(Position {
                lat_e7: mix(pair[0].lat_e7, pair[1].lat_e7),
                lon_e7: mix(pair[0].lon_e7, pair[1].lon_e7),
            });
        }
    }
    dense.extend(line.last());
    let mut at = 0usize;
    let nearest: Vec<usize> = trace
        .fixes
        .iter()
        .map(|fix| {
            let window = at.saturating_sub(BEHIND_M)..(at + AHEAD_M).min(dense.len());
            let off = |i: &usize| geo::distance_cm(dense[*i], fix.position) + 5.0 * i.abs_diff(at) as f64;
            at = window.min_by(|a, b| off(a).total_cmp(&off(b))).unwrap_or(at);
            at
        })
        .collect();
    // The noise along the road, averaged over some seconds.
    (0..nearest.len())
        .map(|i| {
            let reach = SMOOTH_FIXES.min(i).min(nearest.len() - 1 - i);
            let around = &nearest[i - reach..=i + reach];
            dense[around.iter().sum::<usize>() / around.len()]
        })
        .collect()
}

fn options() -> Options {
    let mut args = std::env::args().skip(1);
    let mut free = Vec::new();
    let mut options = Options {
        map: PathBuf::new(),
        traces: PathBuf::new(),
        every_s: 0.0,
        routes: None,
        repeat: 1,
        weights: Weights::DEFAULT,
    };
    while let Some(arg) = args.next() {
        let mut value = || args.next().expect("the option has a value");
        match arg.as_str() {
            "--every" => options.every_s = value().parse().expect("seconds"),
            "--routes" => options.routes = Some(value().into()),
            "--repeat" => options.repeat = value().parse().expect("a number"),
            "--set" => set_weights(&mut options.weights, &value()),
            _ => free.push(arg),
        }
    }
    let [map, traces] = free.as_slice() else { panic!("usage: match_truth MAP.wfm TRACES [options]") };
    (options.map, options.traces) = (map.into(), traces.into());
    options
}

fn set_weights(weights: &mut Weights, text: &str) {
    for pair in text.split(',') {
        let (name, value) = pair.split_once('=').expect("weight=value");
        let value: f32 = value.parse().expect("a number");
        *weights.by_name(name).expect("a known weight") = value;
    }
}

/// The scorer's step between samples.
const STEP_M: f64 = 5.0;
/// 40 m/s for 5 s.
const AHEAD_M: usize = 200;
const BEHIND_M: usize = 30;
const SMOOTH_FIXES: usize = 5;
