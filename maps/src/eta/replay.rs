//! Recorded trips in their order of time, and what would have been said of each when it began and on its way, knowing
//! only the trips that had finished by then: how good arrivals are on somebody's own history.
//!
//! **Invariant:** nothing of a trip is used before it finished, except its fixes up to the one that is asked at.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use protocol::{MeasuredTime, Time};

use super::{Ahead, Eta, EtaLearner, FinishedTrip, Speeds, ahead};
use crate::class::Profile;
use crate::geo;
use crate::graph::Graph;
use crate::matcher::{Matched, Matcher, Observation, Scratch, Snapped};
use crate::router::{Endpoint, Route, Routing, Weights};
use crate::speeds::{Learner, LiveLearner, SpeedTable, Traversals, hour_of_week};
use crate::traces::Trace;

/// What is taken off a trip because nobody travels there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stands {
    /// All fixes at the end within 50 m of the last: he has arrived and not said so.
    Tail,
    /// All fixes within 100 m of the first at the beginning, and of the last at the end.
    BothEnds,
}

/// Whether finished trips teach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Teaching {
    AsTheyFinish,
    /// What is said to the first drivers in a city that nobody has driven in.
    Never,
}

/// A recorded trip of three minutes to an hour, without its stands.
#[derive(Clone, PartialEq, Debug)]
pub struct Trip {
    trace: Trace,
    begin: Time,
    end: Time,
}

impl Trip {
    /// None if what is left is no trip, or too short or too long.
    pub fn new(mut trace: Trace, stands: Stands) -> Option<Trip> {
        let last = trace.fixes.last()?.position;
        let tail_cm = match stands {
            Stands::Tail => TAIL_CM,
            Stands::BothEnds => STAND_CM,
        };
        let moving = trace.fixes.iter().rposition(|fix| geo::distance_cm(fix.position, last) > tail_cm)?;
        trace.fixes.truncate(moving + 2);
        if stands == Stands::BothEnds {
            let first = trace.fixes.first()?.position;
            let moving = trace.fixes.iter().position(|fix| geo::distance_cm(fix.position, first) > STAND_CM)?;
            trace.fixes.drain(..moving.saturating_sub(1));
        }
        let (begin, end) = (trace.fixes.first()?.measured.to_time(), trace.fixes.last()?.measured.to_time());
        let is_trip = (TOOK_S_MIN..=TOOK_S_MAX).contains(&(end.millis_since(begin) / 1_000));
        is_trip.then_some(Trip { trace, begin, end })
    }

    /// All that are trips, by when they began.
    pub fn all(traces: impl IntoIterator<Item = Trace>, stands: Stands) -> Vec<Trip> {
        let mut trips: Vec<Trip> = traces.into_iter().filter_map(|trace| Trip::new(trace, stands)).collect();
        trips.sort_by_key(|trip| trip.begin);
        trips
    }
}

/// What was said of a trip, when it began or on its way.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Asked {
    /// Which trip, in the order in which they began.
    pub trip: usize,
    /// At which of the shares of the trip's time: 0 at its beginning.
    pub share_percent: u8,
    pub at: Time,
    /// How long it truly took from then.
    pub took_s: f64,
    pub eta: Eta,
    pub ahead: Ahead,
    /// As the crow flies at 30 km/h.
    pub haversine_s: f64,
    /// The fastest route on empty roads.
    pub free_s: f64,
    /// The median of true ÷ empty road over the last hundred trips that had finished; 1 before any had.
    pub free_factor: f64,
    /// The whole trip goes from one place to another at least 1 km away, with no hop between fixes that no car makes.
    pub is_plain: bool,
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
    /// True ÷ empty road.
    ratios: VecDeque<f64>,
    under_way: BTreeMap<usize, UnderWay>,
}

/// What is known of a trip that goes on.
struct UnderWay {
    /// Where and how far each question is asked.
    places: Vec<Place>,
    matched: Vec<Matched>,
    asked: Vec<Asked>,
    is_plain: bool,
}

#[derive(Clone, Copy)]
struct Place {
    fix: usize,
    snapped: Option<Snapped>,
    driven_m: f64,
}

#[derive(Clone, Copy)]
enum Happening {
    Asked(usize, usize),
    Finished(usize),
}

impl Replay {
    /// The answers in the order of time; none where there is no way.
    pub fn of(graph: &Arc<Graph>, trips: &[Trip], teaching: Teaching, mut progress: impl FnMut(usize)) -> Vec<Asked> {
        let mut replay = Replay::new(graph, trips.first().map_or(Time(0), |trip| trip.begin));
        let mut happenings: Vec<(Time, Happening)> = Vec::with_capacity((SHARES_PERCENT.len() + 1) * trips.len());
        for (i, trip) in trips.iter().enumerate() {
            let at = |share: usize| trip.trace.fixes[fix_at(trip, share)].measured.to_time();
            happenings.extend((0..SHARES_PERCENT.len()).map(|share| (at(share), Happening::Asked(i, share))));
        }
        happenings.extend(trips.iter().enumerate().map(|(i, trip)| (trip.end, Happening::Finished(i))));
        // Stable: who asks at the very moment at which another finishes does not know of him.
        happenings.sort_by_key(|(time, _)| *time);
        let (mut answers, mut finished) = (Vec::new(), 0);
        for (now, happening) in happenings {
            match happening {
                Happening::Asked(i, share) => answers.extend(replay.ask(i, &trips[i], share, now)),
                Happening::Finished(i) => {
                    if let (Some(under_way), Teaching::AsTheyFinish) = (replay.under_way.remove(&i), teaching) {
                        replay.learn(&under_way, &trips[i], now);
                    }
                    finished += 1;
                    progress(finished);
                }
            }
        }
        answers
    }

    fn new(graph: &Arc<Graph>, begin: Time) -> Replay {
        Replay {
            graph: graph.clone(),
            routing: Routing::new(graph.clone()),
            free: Routing::new(graph.clone()),
            scratch: Scratch::new(),
            learner: Learner::default(),
            live: LiveLearner::new(begin),
            usual: SpeedTable::free_flow(graph),
            eta: EtaLearner::default(),
            finished_since_table: 0,
            ratios: VecDeque::new(),
            under_way: BTreeMap::new(),
        }
    }

    /// The route is the fastest one under the speeds learned so far, not the one that was driven.
    fn ask(&mut self, i: usize, trip: &Trip, share: usize, now: Time) -> Option<Asked> {
        let took_ms = trip.end.millis_since(now);
        if took_ms <= 0 {
            return None;
        }
        if share == 0 {
            let drive = self.drive(trip);
            self.under_way.insert(i, drive);
        }
        let place = *self.under_way.get(&i)?.places.get(share)?;
        let is_plain = self.under_way.get(&i)?.is_plain;
        let fixes = &trip.trace.fixes;
        let (from, to) = (fixes[place.fix].position, fixes.last()?.position);
        let haversine_s = geo::distance_cm(from, to) / 100.0 / YARDSTICK_M_S;
        let free = route(&self.free, from, place.snapped, to)?;
        let route = route(&self.routing, from, place.snapped, to)?;
        let factors = self.live.factors(&self.graph, now);
        let speeds = Speeds { usual: &self.usual, live: Some(&factors) };
        let found = ahead(&self.graph, speeds, &route.edges, route.start_along_cm, route.end_along_cm, now)?;
        let ahead = Ahead { driven_m: place.driven_m, ..found };
        let asked = Asked {
            trip: i,
            share_percent: SHARES_PERCENT[share],
            at: now,
            took_s: took_ms as f64 / 1_000.0,
            eta: self.eta.predict(&ahead, now),
            ahead,
            haversine_s,
            free_s: f64::from(free.duration_ms) / 1_000.0,
            free_factor: self.free_factor(),
            is_plain,
        };
        self.under_way.get_mut(&i)?.asked.push(asked);
        Some(asked)
    }

    /// The trip through the online matcher: where he was thought to be at once, and the final word, which is not looked
    /// at before the trip finished.
    fn drive(&mut self, trip: &Trip) -> UnderWay {
        let graph = &*self.graph;
        let mut matcher = Matcher::new(Profile::Car);
        let (mut places, mut matched, mut driven_cm) = (Vec::new(), Vec::new(), 0.0);
        let fixes = &trip.trace.fixes;
        for (i, fix) in fixes.iter().enumerate() {
            if matcher.poll_timeout().is_some_and(|due| due < fix.measured) {
                matcher.handle_timeout(MeasuredTime(fix.measured.0.saturating_sub(1)));
                matched.extend(std::iter::from_fn(|| matcher.poll_matched(graph, &mut self.scratch)));
            }
            let snapped = matcher.handle_fix(graph, &mut self.scratch, &Observation::of(i as u64, fix));
            matched.extend(std::iter::from_fn(|| matcher.poll_matched(graph, &mut self.scratch)));
            driven_cm += i.checked_sub(1).map_or(0.0, |before| geo::distance_cm(fixes[before].position, fix.position));
            // Who sets off is somewhere near a road, facing anywhere.
            let snapped = if i == 0 { None } else { snapped };
            while places.len() < SHARES_PERCENT.len() && fix_at(trip, places.len()) == i {
                places.push(Place { fix: i, snapped, driven_m: driven_cm / 100.0 });
            }
        }
        matcher.flush();
        matched.extend(std::iter::from_fn(|| matcher.poll_matched(graph, &mut self.scratch)));
        UnderWay { places, matched, asked: Vec::new(), is_plain: is_plain(trip) }
    }

    fn learn(&mut self, under_way: &UnderWay, trip: &Trip, now: Time) {
        self.learn_speeds(&under_way.matched);
        for asked in &under_way.asked {
            self.eta.handle_finished(FinishedTrip {
                ahead: asked.ahead,
                asked: asked.at,
                finished: trip.end,
                predicted_ms: asked.eta.p50_ms,
            });
        }
        if let Some(begun) = under_way.asked.first().filter(|asked| asked.share_percent == 0) {
            self.ratios.push_back(begun.took_s / begun.free_s.max(1.0));
            if self.ratios.len() > RATIOS_MAX {
                self.ratios.pop_front();
            }
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

    fn free_factor(&self) -> f64 {
        let mut ratios: Vec<f64> = self.ratios.iter().copied().collect();
        ratios.sort_by(f64::total_cmp);
        ratios.get(ratios.len() / 2).copied().unwrap_or(1.0)
    }
}

/// From the edge he is on there may be no way though there is one from beside it.
fn route(
    routing: &Routing,
    from: protocol::Position,
    snapped: Option<Snapped>,
    to: protocol::Position,
) -> Option<Route> {
    let to = Endpoint::Position(to);
    let on_edge = snapped.map(|snapped| Endpoint::Edge { edge: snapped.edge, along_cm: snapped.along_cm });
    let route = on_edge.and_then(|on_edge| routing.route(&on_edge, &to, Profile::Car));
    route.or_else(|| routing.route(&Endpoint::Position(from), &to, Profile::Car))
}

fn fix_at(trip: &Trip, share: usize) -> usize {
    (trip.trace.fixes.len() - 1) * usize::from(SHARES_PERCENT[share]) / 100
}

fn is_plain(trip: &Trip) -> bool {
    let fixes = &trip.trace.fixes;
    let (Some(first), Some(last)) = (fixes.first(), fixes.last()) else { return false };
    let is_hop_possible = |pair: &[protocol::Fix]| {
        let seconds = (pair[1].measured.0 - pair[0].measured.0).max(10) as f64 / 10.0;
        geo::distance_cm(pair[0].position, pair[1].position) / 100.0 <= HOP_M_S_MAX * seconds
    };
    geo::distance_cm(first.position, last.position) >= PLAIN_CM_MIN && fixes.windows(2).all(is_hop_possible)
}

/// When each trip is asked about, in percent of its time.
pub const SHARES_PERCENT: [u8; 4] = [0, 25, 50, 75];
const TAIL_CM: f64 = 5_000.0;
const STAND_CM: f64 = 10_000.0;
const TOOK_S_MIN: i64 = 180;
const TOOK_S_MAX: i64 = 3_600;
/// 30 km/h.
const YARDSTICK_M_S: f64 = 30.0 / 3.6;
const RATIOS_MAX: usize = 100;
const HOP_M_S_MAX: f64 = 45.0;
const PLAIN_CM_MIN: f64 = 100_000.0;
/// New speeds after so many finished trips.
const TABLE_EVERY: usize = 25;

#[cfg(test)]
mod tests {
    use protocol::Fix;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::import::{ImportOptions, import_bytes};
    use crate::town::{self, TownOptions};

    #[test]
    fn what_is_said_at_a_time_knows_only_trips_that_finished_before() {
        let graph = town();
        let usual = trips(&graph, 200, |_| 1.0);
        let jam_from = 100;
        let jammed = trips(&graph, 200, |i| if i >= jam_from { 2.0 } else { 1.0 });
        let first_over = |trips: &[Trip]| trips[jam_from..].iter().map(|trip| trip.end).min().unwrap();
        let known = first_over(&usual).min(first_over(&jammed));

        let said = Replay::of(&graph, &usual, Teaching::AsTheyFinish, |_| {});
        let said_with_jam = Replay::of(&graph, &jammed, Teaching::AsTheyFinish, |_| {});

        // Setting off, because on the way the jammed are elsewhere.
        let etas = |said: &[Asked], is_meant: &dyn Fn(Time) -> bool| -> Vec<(usize, Eta)> {
            let begun = said.iter().filter(|one| one.share_percent == 0 && is_meant(one.at));
            begun.map(|one| (one.trip, one.eta)).collect()
        };
        let (before, after) = (|at: Time| at <= known, |at: Time| at > known);
        assert_eq!(etas(&said, &before), etas(&said_with_jam, &before));
        assert!(etas(&said, &before).len() > jam_from);
        assert_ne!(etas(&said, &after), etas(&said_with_jam, &after));
    }

    #[test]
    fn on_the_way_nothing_is_known_of_the_rest_but_where_it_ends() {
        let graph = town();
        let plain = trips(&graph, 60, |_| 1.0);
        // The same trips, but from the middle on everybody takes three times as long.
        let mut late = plain.clone();
        for trip in &mut late {
            let half = trip.trace.fixes.len() / 2;
            let pivot = trip.trace.fixes[half].measured.0;
            for fix in &mut trip.trace.fixes[half..] {
                fix.measured = MeasuredTime(pivot + 3 * (fix.measured.0 - pivot));
            }
            trip.end = trip.trace.fixes.last().unwrap().measured.to_time();
        }

        let said = Replay::of(&graph, &plain, Teaching::Never, |_| {});
        let said_late = Replay::of(&graph, &late, Teaching::Never, |_| {});

        let early = |said: &[Asked]| -> BTreeMap<(usize, u8), Eta> {
            said.iter()
                .filter(|one| one.share_percent <= 25)
                .map(|one| ((one.trip, one.share_percent), one.eta))
                .collect()
        };
        assert_eq!(early(&said), early(&said_late));
        assert!(early(&said).len() > 100);
    }

    #[test]
    fn stands_are_cut_where_they_are_asked_to_be() {
        let position = |metres: f64| protocol::Position::from_degrees(41.0 + metres / 111_195.0, -8.0).unwrap();
        let metres = [0.0, 30.0, 80.0, 0.0, 300.0, 900.0, 1_500.0, 2_410.0, 2_480.0, 2_430.0, 2_450.0, 2_450.0];
        let fixes: Vec<Fix> = (0..)
            .zip(metres)
            .map(|(i, metres)| Fix::at(MeasuredTime(10 * (1_372_636_800 + 60 * i)), position(metres)))
            .collect();
        let trace = Trace { id: "1".to_owned(), fixes, ..Trace::default() };

        let tail = Trip::new(trace.clone(), Stands::Tail).unwrap();
        let both = Trip::new(trace.clone(), Stands::BothEnds).unwrap();
        let mut standing = trace;
        standing.fixes.truncate(3);

        assert_eq!(tail.end.millis_since(tail.begin), 420_000, "from the first fix to the first near the end");
        assert_eq!(both.end.millis_since(both.begin), 240_000, "from the last fix near the beginning");
        assert_eq!(Trip::new(standing, Stands::BothEnds), None);
        assert_eq!(Trip::new(Trace::default(), Stands::Tail), None);
    }

    fn town() -> Arc<Graph> {
        let extract = town::extract(&TownOptions { junctions: 200, ..TownOptions::default() });
        let map = import_bytes(&extract, &ImportOptions::default()).unwrap();
        Arc::new(Graph::from_bytes(&map).unwrap())
    }

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
            let (Some(first), Some(last)) = (fixes.first(), fixes.last()) else { continue };
            let (begin, end) = (first.measured.to_time(), last.measured.to_time());
            trips.push(Trip { trace: Trace { id: i.to_string(), fixes, ..Trace::default() }, begin, end });
        }
        trips
    }
}
