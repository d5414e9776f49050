//! Recorded trips in their order of time, and what the ETA said of each when it began, knowing only the trips that had
//! finished by then.

use std::sync::Arc;

use anyhow::Context;
use maps::eta::{self, Ahead, Eta, EtaLearner, FinishedTrip, Speeds};
use maps::matcher::trip::match_trip;
use maps::matcher::{Matched, Scratch};
use maps::router::{Endpoint, Routing, Weights};
use maps::speeds::{Learner, LiveLearner, SpeedTable, Traversals, hour_of_week};
use maps::traces::{self, Trace};
use maps::{Graph, Profile, geo};
use protocol::Time;

/// A trip whose standing tail is cut: all fixes at the end within 50 m of the last.
#[derive(Clone)]
pub struct Trip {
    pub trace: Trace,
    pub begin: Time,
    pub end: Time,
}

/// What was said of a trip when it began.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Asked {
    pub begin: Time,
    pub took_s: f64,
    pub eta: Eta,
    /// As the crow flies at 30 km/h.
    pub haversine_s: f64,
    /// The fastest route on empty roads.
    pub free_s: f64,
    pub ahead: Ahead,
    /// From one place to another: at least 1 km apart, and no hop between two fixes faster than 45 m/s.
    pub is_plain: bool,
}

/// The trips that lasted three minutes to an hour, by when they began.
pub fn read(path: &std::path::Path) -> anyhow::Result<Vec<Trip>> {
    let all = traces::read_file(path)?;
    let mut trips: Vec<Trip> = all.into_iter().filter_map(without_tail).collect();
    trips.sort_by_key(|trip| trip.begin);
    Ok(trips)
}

fn without_tail(mut trace: Trace) -> Option<Trip> {
    let last = trace.fixes.last()?.position;
    let moving = trace.fixes.iter().rposition(|fix| geo::distance_cm(fix.position, last) > TAIL_CM)?;
    trace.fixes.truncate(moving + 2);
    let (begin, end) = (trace.fixes.first()?.measured.to_time(), trace.fixes.last()?.measured.to_time());
    (180..=3_600).contains(&(end.millis_since(begin) / 1_000)).then_some(Trip { trace, begin, end })
}

/// Everything that learns, and the router that uses it.
pub struct Replay {
    graph: Arc<Graph>,
    routing: Routing,
    free: Routing,
    scratch: Scratch,
    learner: Learner,
    live: LiveLearner,
    usual: SpeedTable,
    eta: EtaLearner,
    finished_since_table: usize,
}

#[derive(Clone, Copy)]
enum Happening {
    Begun(usize),
    Finished(usize),
}

impl Replay {
    /// One answer for each trip to which there is a way.
    pub fn of(graph: &Arc<Graph>, trips: &[Trip]) -> anyhow::Result<Vec<Option<Asked>>> {
        let first = trips.first().context("no trip lasted three minutes to an hour")?;
        let mut replay = Replay {
            graph: graph.clone(),
            routing: Routing::new(graph.clone()),
            free: Routing::new(graph.clone()),
            scratch: Scratch::new(),
            learner: Learner::default(),
            live: LiveLearner::new(first.begin),
            usual: SpeedTable::free_flow(graph),
            eta: EtaLearner::default(),
            finished_since_table: 0,
        };
        let mut happenings: Vec<(Time, Happening)> = Vec::with_capacity(2 * trips.len());
        happenings.extend(trips.iter().enumerate().map(|(i, trip)| (trip.begin, Happening::Begun(i))));
        happenings.extend(trips.iter().enumerate().map(|(i, trip)| (trip.end, Happening::Finished(i))));
        // Stable: who begins at the very moment at which another finishes does not know of him.
        happenings.sort_by_key(|(time, _)| *time);
        let mut asked = vec![None; trips.len()];
        for (now, happening) in happenings {
            match happening {
                Happening::Begun(i) => asked[i] = replay.ask(&trips[i]),
                Happening::Finished(i) => replay.learn(&trips[i], asked[i].as_ref(), now),
            }
        }
        Ok(asked)
    }

    /// The route is the fastest one under the speeds learned so far, not the one that was driven.
    fn ask(&mut self, trip: &Trip) -> Option<Asked> {
        let fixes = &trip.trace.fixes;
        let (from, to) = (fixes.first()?.position, fixes.last()?.position);
        let ends = (Endpoint::Position(from), Endpoint::Position(to));
        let haversine_s = geo::distance_cm(from, to) / 100.0 / (30.0 / 3.6);
        let free = self.free.route(&ends.0, &ends.1, Profile::Car);
        let free_s = free.map_or(haversine_s, |route| f64::from(route.duration_ms) / 1_000.0);
        let route = self.routing.route(&ends.0, &ends.1, Profile::Car)?;
        let factors = self.live.factors(&self.graph, trip.begin);
        let speeds = Speeds { usual: &self.usual, live: Some(&factors) };
        let ahead =
            eta::ahead(&self.graph, speeds, &route.edges, route.start_along_cm, route.end_along_cm, trip.begin)?;
        let hops = fixes.windows(2).map(|pair| geo::distance_cm(pair[0].position, pair[1].position));
        Some(Asked {
            begin: trip.begin,
            took_s: trip.end.millis_since(trip.begin) as f64 / 1_000.0,
            eta: self.eta.predict(&ahead, trip.begin),
            haversine_s,
            free_s,
            ahead,
            is_plain: ahead.straight_m >= 1_000.0 && hops.fold(0.0, f64::max) <= HOP_CM_MAX,
        })
    }

    fn learn(&mut self, trip: &Trip, asked: Option<&Asked>, now: Time) {
        let matched = match_trip(&self.graph, &mut self.scratch, Profile::Car, &trip.trace.fixes);
        self.learn_speeds(&matched);
        if let Some(asked) = asked {
            self.eta.handle_finished(FinishedTrip {
                ahead: asked.ahead,
                asked: trip.begin,
                finished: trip.end,
                predicted_ms: asked.eta.p50_ms,
            });
        }
        self.finished_since_table += 1;
        if self.finished_since_table >= TABLE_EVERY {
            self.finished_since_table = 0;
            self.usual = self.learner.table(&self.graph);
            self.reweight(now);
        }
    }

    fn learn_speeds(&mut self, matched: &[Matched]) {
        let (mut traversals, mut found) = (Traversals::default(), Vec::new());
        for one in matched {
            traversals.handle_matched(&self.graph, one, &mut found);
        }
        for traversal in &found {
            self.learner.handle_traversal(&self.graph, traversal);
            self.live.handle_traversal(&self.graph, &self.usual, traversal);
        }
    }

    /// Routes by the usual speeds of the hour.
    fn reweight(&self, now: Time) {
        let (graph, hour) = (&self.graph, hour_of_week(now));
        self.routing.reweight(Weights::of(graph, Profile::Car, |edge| {
            (self.usual.seconds(graph, edge, graph.length_cm(edge), hour) * 1_000.0) as u32
        }));
    }
}

const TAIL_CM: f64 = 5_000.0;
const HOP_CM_MAX: f64 = 45.0 * 15.0 * 100.0; // 45 m/s for the 15 s between two fixes
/// New speeds after so many finished trips.
const TABLE_EVERY: usize = 25;

#[cfg(test)]
mod tests {
    use maps::import::{ImportOptions, import_bytes};
    use maps::town::{self, TownOptions};
    use protocol::{Fix, MeasuredTime};
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// A minute after another from somewhere to somewhere in the town, for five to ten minutes.
    fn trips(graph: &Arc<Graph>, count: usize, slowness: impl Fn(usize) -> f64) -> Vec<Trip> {
        let mut random = SmallRng::seed_from_u64(3);
        let routing = Routing::new(graph.clone());
        let mut trips = Vec::new();
        let edges: Vec<_> = graph.edges().filter(|edge| graph.is_connected(*edge, Profile::Car)).collect();
        while trips.len() < count {
            let mut end = || Endpoint::Edge { edge: edges[random.random_range(0..edges.len())], along_cm: 0 };
            let Some(route) = routing.route(&end(), &end(), Profile::Car) else { continue };
            let line = route.geometry(graph);
            let (i, begin_s) = (trips.len(), 1_372_636_800 + 60 * trips.len() as i64);
            let apart_s = (300.0 * slowness(i) / line.len() as f64).ceil();
            let at = |n: usize| MeasuredTime(10 * (begin_s + (n as f64 * apart_s) as i64));
            let fixes: Vec<Fix> = line.iter().enumerate().map(|(n, place)| Fix::at(at(n), *place)).collect();
            let trace = Trace { id: i.to_string(), fixes, truth: Vec::new() };
            let (Some(first), Some(last)) = (trace.fixes.first(), trace.fixes.last()) else { continue };
            let (begin, end) = (first.measured.to_time(), last.measured.to_time());
            trips.push(Trip { trace, begin, end });
        }
        trips
    }

    #[test]
    fn what_is_said_at_a_time_knows_only_trips_that_finished_before() -> anyhow::Result<()> {
        let extract = town::extract(&TownOptions { junctions: 200, ..TownOptions::default() });
        let map = import_bytes(&extract, &ImportOptions::default())?;
        let graph = Arc::new(Graph::from_bytes(&map)?);
        let usual = trips(&graph, 200, |_| 1.0);
        let jam_from = 100;
        let jammed = trips(&graph, 200, |i| if i >= jam_from { 2.0 } else { 1.0 });
        let first_jam_over = jammed[jam_from..].iter().map(|trip| trip.end).min().context("there are such trips")?;
        let first_over = usual[jam_from..].iter().map(|trip| trip.end).min().context("there are such trips")?;
        let known = first_jam_over.min(first_over);

        let said = Replay::of(&graph, &usual)?;
        let said_with_jam = Replay::of(&graph, &jammed)?;

        let etas = |said: &[Option<Asked>], is_meant: fn(Time, Time) -> bool| -> Vec<Option<Eta>> {
            let meant = usual.iter().zip(said).filter(|(trip, _)| is_meant(trip.begin, known));
            meant.map(|(_, asked)| asked.map(|asked| asked.eta)).collect()
        };
        let before = |begin, known| begin <= known;
        let after = |begin, known| begin > known;
        assert_eq!(etas(&said, before), etas(&said_with_jam, before));
        assert!(etas(&said, before).len() > jam_from);
        assert_ne!(etas(&said, after), etas(&said_with_jam, after));
        Ok(())
    }
}
