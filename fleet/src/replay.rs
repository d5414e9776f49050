//! Recorded trips driven again now: each trip a driver on a delivery from its first point to its last, its fixes sent
//! as far apart as they were measured.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use maps::geo;
use maps::traces::{self, TimeNotes, Trace};
use protocol::record::Vehicle;
use protocol::{DeliveryState, Fix, MeasuredTime, Position};
use tracing::{info, warn};

use crate::api::{ApiError, StopAt};
use crate::record::TruthLine;
use crate::rig::{Ended, FleetError, FleetOptions, Hired, Report, Rig, Stop, count, sleep_until};

#[derive(Clone)]
pub struct ReplayOptions {
    pub fleet: FleetOptions,
    /// The taxi CSV, the truth trips' JSON lines, or GPX, by the ending of its name.
    pub traces: PathBuf,
    /// At most so many trips, the first of the file.
    pub trips_max: Option<usize>,
    /// So many are under way at a time; the others follow as these end.
    pub at_once: usize,
    /// Sends a fix only every so many seconds of the trace.
    pub every: Option<Duration>,
    /// Drives each trip again when it has ended, until told to stop.
    pub again: bool,
    /// By the fleet's clock; None goes on until all trips have ended.
    pub duration: Option<Duration>,
}

impl ReplayOptions {
    pub fn new(fleet: FleetOptions, traces: impl Into<PathBuf>) -> Self {
        ReplayOptions {
            fleet,
            traces: traces.into(),
            trips_max: None,
            at_once: 50,
            every: None,
            again: false,
            duration: None,
        }
    }
}

/// Drives the trips until all have ended or `stop` resolves, brings home what the phones hold, and says what came of it.
pub async fn run(options: ReplayOptions, stop: impl Future<Output = ()>) -> Result<Report, FleetError> {
    let path = options.traces.clone();
    let read = tokio::task::spawn_blocking(move || traces::read_file(&path)).await;
    let traces = read.map_err(|_| FleetError::Broken)??;
    let mut notes = TimeNotes::default();
    traces.iter().for_each(|trace| notes.add(trace.notes));
    notes.sentences().iter().for_each(|sentence| warn!("{sentence}"));
    let mut trips: Vec<Trip> = traces.into_iter().filter_map(Trip::of).collect();
    trips.truncate(options.trips_max.unwrap_or(usize::MAX));
    if trips.is_empty() {
        return Err(FleetError::NoTrips);
    }
    let rig = Arc::new(Rig::new(options.fleet.clone())?);
    let (tell, told) = Stop::new();
    let ends = options.duration.map(|duration| rig.clock.now() + duration);
    let until_over = async {
        match ends {
            Some(ends) => sleep_until(&*rig.clock, ends).await,
            None => std::future::pending().await,
        }
    };
    let (mut stop, mut until_over) = (std::pin::pin!(stop), std::pin::pin!(until_over));
    let mut files = std::pin::pin!(rig.keep_files(told.clone()));
    let mut has_files = true;
    let mut waiting = trips.into_iter().enumerate();
    let mut under_way = FuturesUnordered::new();
    let mut ended = Vec::new();
    let mut failure = None;
    loop {
        while under_way.len() < options.at_once.max(1) && !told.is_told() {
            let Some((number, trip)) = waiting.next() else { break };
            under_way.push(tokio::spawn(drive(rig.clone(), trip, options.clone(), number as u64, told.clone())));
        }
        if under_way.is_empty() {
            break;
        }
        tokio::select! {
            () = &mut stop, if !told.is_told() => { tell.send_replace(true); }
            () = &mut until_over, if !told.is_told() => { tell.send_replace(true); }
            outcome = &mut files, if has_files => {
                has_files = false;
                failure = failure.or(outcome.err());
                tell.send_replace(true);
            }
            Some(outcome) = under_way.next() => match outcome.unwrap_or(Err(FleetError::Broken)) {
                Ok(phone) => ended.extend(phone),
                Err(error) => {
                    failure = failure.or(Some(error));
                    tell.send_replace(true);
                }
            },
        }
    }
    rig.flush()?;
    failure.map_or(Ok(rig.report(&ended)), Err)
}

/// A recorded trip: times from its start.
#[derive(Clone, PartialEq, Debug)]
struct Trip {
    id: String,
    /// In order of time, no two at one.
    fixes: Vec<(i64, Fix)>,
    /// The route truly driven, where it is known.
    truth: Vec<Position>,
}

impl Trip {
    /// None if there is no way from one place to another in it.
    fn of(trace: Trace) -> Option<Trip> {
        let first = trace.fixes.iter().map(|fix| fix.measured).min()?;
        let mut fixes: Vec<(i64, Fix)> =
            trace.fixes.iter().map(|fix| (fix.measured.0.saturating_sub(first.0), *fix)).collect();
        fixes.sort_by_key(|(after_ds, _)| *after_ds);
        fixes.dedup_by_key(|(after_ds, _)| *after_ds);
        (fixes.len() >= 2).then(|| Trip { id: trace.id, fixes, truth: trace.truth.concat() })
    }

    fn end(&self, fix: impl Fn(&[(i64, Fix)]) -> Option<&(i64, Fix)>) -> Position {
        fix(&self.fixes).map_or(Position::default(), |(_, fix)| fix.position)
    }
}

/// One trip with a driver of its own. None if the fleet ended before he was hired.
async fn drive(
    rig: Arc<Rig>,
    trip: Trip,
    options: ReplayOptions,
    number: u64,
    mut stop: Stop,
) -> Result<Option<Ended>, FleetError> {
    let name = format!("Trip {}", trip.id);
    let hired = tokio::select! {
        hired = rig.hire(&name, Vehicle::Car, number) => hired?,
        () = stop.told() => return Ok(None),
    };
    loop {
        let driven = async {
            match drive_once(&rig, &hired, &trip, &options).await {
                Ok(()) => count(&rig.counters.deliveries_delivered, 1),
                Err(error) => {
                    warn!(error = &error as &dyn std::error::Error, trip = trip.id, "the trip is given up");
                    count(&rig.counters.deliveries_failed, 1);
                    tokio::time::sleep(GIVEN_UP_WAIT).await;
                }
            }
        };
        tokio::select! {
            () = driven => {}
            () = stop.told() => break,
        }
        if !options.again {
            break;
        }
    }
    Ok(Some(hired.go_home().await))
}

async fn drive_once(rig: &Rig, hired: &Hired, trip: &Trip, options: &ReplayOptions) -> Result<(), ApiError> {
    let stop = |position, label: &str| StopAt { position, label: label.to_string() };
    let (from, to) = (trip.end(|fixes| fixes.first()), trip.end(|fixes| fixes.last()));
    let reference = format!("trip {}", trip.id);
    let delivery =
        rig.api.create_delivery(&stop(from, "Start"), &stop(to, "End"), &reference, Some(hired.driver)).await?;
    count(&rig.counters.deliveries_created, 1);
    for status in [DeliveryState::Accepted, DeliveryState::Preparing, DeliveryState::Ready] {
        rig.api.change_status(delivery, status).await?;
    }
    send_fixes(rig, hired, trip, options.every, delivery).await;
    let is_by_hand = rig.api.deliver(delivery).await?;
    count(&rig.counters.picked_up_by_hand, u64::from(is_by_hand));
    Ok(())
}

async fn send_fixes(rig: &Rig, hired: &Hired, trip: &Trip, every: Option<Duration>, delivery: u64) {
    let starts = MeasuredTime::from_time(rig.clock.now());
    let arrives = trip.fixes.last().map(|(after_ds, _)| MeasuredTime(starts.0 + after_ds).to_time());
    let every_ds = every.map_or(0, |every| i64::try_from(every.as_millis() / 100).unwrap_or(i64::MAX));
    let mut follower = Follower { route: &trip.truth, at: 0, place: None };
    let mut next_ds = 0;
    let mut before: Option<Position> = None;
    let mut before_ds = 0;
    for (after_ds, fix) in &trip.fixes {
        let measured = MeasuredTime(starts.0 + after_ds);
        let gap_s = after_ds.saturating_sub(before_ds) / 10;
        if gap_s >= GAP_TOLD_S {
            info!(trip = trip.id, gap_s, "nothing was measured for a while: waiting for the next fix");
        }
        before_ds = *after_ds;
        sleep_until(&*rig.clock, measured.to_time()).await;
        if let Some(lines) = &rig.truth {
            let position = follower.nearest(fix.position);
            lines.write(&TruthLine {
                at_ms: measured.to_time(),
                driver: hired.driver,
                delivery: Some(delivery),
                lat: position.lat(),
                lng: position.lon(),
                speed_m_s: None,
                leg: None,
                arrives_ms: arrives,
            });
        }
        let apart_m = before.map_or(0.0, |before| geo::distance_cm(before, fix.position) / 100.0);
        count(&rig.counters.distance_m, apart_m as u64);
        before = Some(fix.position);
        if *after_ds >= next_ds {
            next_ds = after_ds.saturating_add(every_ds);
            rig.send(&hired.phone, Fix { measured, ..*fix });
        }
    }
}

/// Finds where on the true route a fix was measured, going along it: a route may cross itself. Where no route is
/// known, the fix is the best that is.
struct Follower<'a> {
    route: &'a [Position],
    at: usize,
    /// The place found last: how far ahead one looks counts from there, however long the stretch it lies on.
    place: Option<Position>,
}

impl Follower<'_> {
    fn nearest(&mut self, position: Position) -> Position {
        let mut best: Option<(f64, usize, Position)> = None;
        let mut ahead_m = 0.0;
        for i in self.at..self.route.len().saturating_sub(1) {
            let (a, b) = (self.route[i], self.route[i + 1]);
            let place = on_segment(a, b, position);
            let off_cm = geo::distance_cm(place, position);
            if best.is_none_or(|(best_cm, ..)| off_cm < best_cm) {
                best = Some((off_cm, i, place));
            }
            let from = if i == self.at { self.place.unwrap_or(a) } else { a };
            ahead_m += geo::distance_cm(from, b) / 100.0;
            if ahead_m > AHEAD_M_MAX {
                break;
            }
        }
        let Some((_, at, place)) = best else { return position };
        self.at = at;
        self.place = Some(place);
        place
    }
}

fn on_segment(a: Position, b: Position, position: Position) -> Position {
    let plane = geo::Plane::at(a);
    let ((bx, by), (px, py)) = (plane.to_cm(b), plane.to_cm(position));
    let length2 = bx * bx + by * by;
    let share = if length2 > 0.0 { ((px * bx + py * by) / length2).clamp(0.0, 1.0) } else { 0.0 };
    plane.to_position((bx * share, by * share))
}

/// A second of the fastest drive is far less, fifteen of them not.
const AHEAD_M_MAX: f64 = 600.0;
/// Who waits longer wants to know what for.
const GAP_TOLD_S: i64 = 60;
const GIVEN_UP_WAIT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trip_begins_at_its_first_fix_and_has_no_two_at_one_time() {
        let fix = |ds, lat_e7| Fix::at(MeasuredTime(ds), Position { lat_e7, lon_e7: 0 });
        let trace = |fixes| Trace { id: "7".to_string(), fixes, ..Trace::default() };

        let trip = Trip::of(trace(vec![fix(1050, 3), fix(1000, 1), fix(1050, 9), fix(1020, 2)])).unwrap();

        assert_eq!(
            trip.fixes.iter().map(|(after, fix)| (*after, fix.position.lat_e7)).collect::<Vec<_>>(),
            [(0, 1), (20, 2), (50, 3)]
        );
        assert_eq!(Trip::of(trace(vec![fix(1000, 1), fix(1000, 2)])), None);
        assert_eq!(Trip::of(trace(vec![])), None);
    }

    #[test]
    fn the_truth_goes_along_a_route_that_crosses_itself() {
        // A loop: east, north, west, then south across its own beginning.
        let at = |east_m: f64, north_m: f64| {
            geo::Plane::at(Position { lat_e7: 411_500_000, lon_e7: 0 }).to_position((east_m * 100.0, north_m * 100.0))
        };
        let route = [at(0.0, 0.0), at(400.0, 0.0), at(400.0, 400.0), at(200.0, 400.0), at(200.0, -400.0)];
        let mut follower = Follower { route: &route, at: 0, place: None };

        let seen: Vec<Position> = [(190.0, 6.0), (395.0, 200.0), (300.0, 406.0), (203.0, 10.0), (196.0, -100.0)]
            .map(|(east, north)| follower.nearest(at(east, north)))
            .to_vec();

        let truth = [at(190.0, 0.0), at(400.0, 200.0), at(300.0, 400.0), at(200.0, 10.0), at(200.0, -100.0)];
        for (seen, truth) in seen.into_iter().zip(truth) {
            assert!(geo::distance_cm(seen, truth) < 100.0, "{seen:?} {truth:?}");
        }
    }

    #[test]
    fn the_truth_goes_on_after_a_stretch_longer_than_one_looks_ahead() {
        let at = |east_m: f64| {
            geo::Plane::at(Position { lat_e7: 411_500_000, lon_e7: 0 }).to_position((east_m * 100.0, 0.0))
        };
        let route = [at(0.0), at(900.0), at(1000.0), at(1100.0)];
        let mut follower = Follower { route: &route, at: 0, place: None };

        let seen: Vec<Position> = (0..=110).map(|i| follower.nearest(at(f64::from(i) * 10.0))).collect();

        let last = seen.last().expect("a place for each");
        assert!(geo::distance_cm(*last, at(1100.0)) < 100.0, "{last:?}");
    }

    #[test]
    fn without_a_known_route_the_fix_is_the_truth() {
        let position = Position { lat_e7: 411_500_000, lon_e7: 5 };

        assert_eq!(Follower { route: &[], at: 0, place: None }.nearest(position), position);
    }
}
