//! Traces through the online matcher fix by fix, as live: how fast, how near the truth at once, how far ahead it
//! looked, and the routes as the scorer reads them.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use maps::matcher::trip::route_parts;
use maps::matcher::{Matched, Matcher, Observation, Scratch, Snapped};
use maps::traces::{self, RouteLine, Trace};
use maps::{Graph, Profile, geo};
use protocol::{Fix, MeasuredTime, Position};

use crate::{cpu, truth};

/// Traces at a sampling interval, with where the driver truly was at each fix where that is known.
pub struct Sampled {
    pub traces: Vec<Trace>,
    places: Vec<Vec<Position>>,
}

/// Whether a trip's last fix is kept though the interval would leave it out: what is driven after the last kept fix
/// cannot be known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    ByInterval,
    Kept,
}

/// What came of one file of traces.
pub struct Run {
    pub fixes: usize,
    /// CPU time of the fastest pass.
    pub cpu: Duration,
    /// For each fix, by the wall clock, sorted, of the fastest pass.
    durations_ns: Vec<u64>,
    trips: Vec<Trip>,
}

struct Trip {
    provisional: Vec<Option<Snapped>>,
    matched: Vec<Matched>,
    look_ahead_max_s: f64,
}

impl Sampled {
    /// One fix every so many seconds; all of them at 0.
    pub fn read(path: &Path, every_s: f64, end: End) -> anyhow::Result<Self> {
        let mut traces = traces::read_file(path)?;
        let mut places = Vec::with_capacity(traces.len());
        for trace in &mut traces {
            let true_places = truth::places(trace);
            let all: Vec<MeasuredTime> = trace.fixes.iter().map(|fix| fix.measured).collect();
            let last = trace.fixes.last().copied();
            trace.keep_every(every_s);
            let is_left_out = |last: &Fix| trace.fixes.last().is_none_or(|kept| kept.measured < last.measured);
            if end == End::Kept {
                trace.fixes.extend(last.filter(is_left_out));
            }
            let mut kept = trace.fixes.iter().map(|fix| fix.measured).peekable();
            let of_kept = all.iter().zip(true_places).filter(|(at, _)| kept.next_if_eq(at).is_some());
            places.push(of_kept.map(|(_, place)| place).collect());
        }
        Ok(Sampled { traces, places })
    }
}

impl Run {
    /// Matches all traces `passes` times; the fastest pass counts, as the machine is shared.
    pub fn of(graph: &Graph, sampled: &Sampled, scratch: &mut Scratch, passes: usize) -> anyhow::Result<Self> {
        let fixes = sampled.traces.iter().map(|trace| trace.fixes.len()).sum();
        let mut run = Run { fixes, cpu: Duration::MAX, durations_ns: Vec::new(), trips: Vec::new() };
        for _ in 0..passes.max(1) {
            let mut durations_ns = Vec::with_capacity(fixes);
            let began = cpu::of_this_thread();
            let of_trace = |trace| match_trace(graph, scratch, trace, &mut durations_ns);
            let trips: Vec<Trip> = sampled.traces.iter().map(of_trace).collect();
            let took = cpu::of_this_thread() - began;
            if took < run.cpu {
                (run.cpu, run.durations_ns) = (took, durations_ns);
            }
            run.trips = trips;
        }
        let is_complete = |(trip, trace): (&Trip, &Trace)| trip.matched.len() == trace.fixes.len();
        anyhow::ensure!(run.trips.iter().zip(&sampled.traces).all(is_complete), "not every fix came out once");
        run.durations_ns.sort_unstable();
        Ok(run)
    }

    pub fn fixes_per_s(&self) -> f64 {
        self.fixes as f64 / self.cpu.as_secs_f64()
    }

    pub fn us_at(&self, share: f64) -> f64 {
        let last = self.durations_ns.len().saturating_sub(1);
        self.durations_ns.get((last as f64 * share) as usize).map_or(0.0, |ns| *ns as f64 / 1_000.0)
    }

    pub fn look_ahead_max_s(&self) -> f64 {
        self.trips.iter().map(|trip| trip.look_ahead_max_s).fold(0.0, f64::max)
    }

    pub fn breaks(&self) -> usize {
        self.matched().filter(|matched| matched.is_break).count()
    }

    pub fn unplaced(&self) -> usize {
        self.matched().filter(|matched| matched.snapped.is_none()).count()
    }

    fn matched(&self) -> impl Iterator<Item = &Matched> {
        self.trips.iter().flat_map(|trip| &trip.matched)
    }

    /// How far what was shown at once lay from where the driver was, in metres, sorted. A fix that was placed on no road
    /// is shown as it came.
    pub fn provisional_m(&self, sampled: &Sampled) -> Vec<f64> {
        let mut metres = Vec::with_capacity(self.fixes);
        for ((trip, trace), places) in self.trips.iter().zip(&sampled.traces).zip(&sampled.places) {
            for ((place, shown), fix) in places.iter().zip(&trip.provisional).zip(&trace.fixes) {
                let shown = shown.map_or(fix.position, |snapped| snapped.position);
                metres.push(geo::distance_cm(shown, *place) / 100.0);
            }
        }
        metres.sort_by(f64::total_cmp);
        metres
    }

    /// Percent of the true routes missed or added, counted as the scorer does.
    pub fn mismatch_percent(&self, graph: &Graph, sampled: &Sampled) -> f64 {
        let (mut total, mut wrong) = (0, 0);
        for (trip, trace) in self.trips.iter().zip(&sampled.traces) {
            let counted = truth::compare(&trace.truth, &route_parts(graph, &trip.matched));
            total += counted.total;
            wrong += counted.missed + counted.added;
        }
        100.0 * wrong as f64 / total.max(1) as f64
    }

    pub fn write_routes(&self, graph: &Graph, sampled: &Sampled, path: &Path) -> anyhow::Result<()> {
        let mut out = BufWriter::new(File::create(path).context("make the file of routes")?);
        for (trip, trace) in self.trips.iter().zip(&sampled.traces) {
            serde_json::to_writer(&mut out, &RouteLine::new(&trace.id, &route_parts(graph, &trip.matched)))?;
            writeln!(out)?;
        }
        out.flush().context("write the routes")
    }
}

fn match_trace(graph: &Graph, scratch: &mut Scratch, trace: &Trace, durations_ns: &mut Vec<u64>) -> Trip {
    let count = trace.fixes.len();
    let mut matcher = Matcher::new(Profile::Car);
    let mut trip =
        Trip { provisional: Vec::with_capacity(count), matched: Vec::with_capacity(count), look_ahead_max_s: 0.0 };
    for (tag, fix) in (0..).zip(&trace.fixes) {
        let began = Instant::now();
        if let Some(due) = matcher.poll_timeout().filter(|due| *due < fix.measured) {
            matcher.handle_timeout(due.max(MeasuredTime(fix.measured.0 - 1)));
            while let Some(matched) = matcher.poll_matched(graph, scratch) {
                trip.matched.push(matched);
            }
        }
        trip.provisional.push(matcher.handle_fix(graph, scratch, &Observation::of(tag, fix)));
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
