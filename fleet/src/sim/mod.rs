//! Simulated drivers on an imported map: each gets deliveries through the REST API, drives them along real streets, and
//! has a phone that sends what its receiver measures.

pub mod shift;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use maps::Graph;
use maps::router::Routing;
use protocol::record::Vehicle;
use protocol::{DeliveryState, MeasuredTime, Time};
use tracing::{info, warn};

use self::shift::{Custom, Done, Errand, Shift, Truth};
use crate::api::{ApiError, StopAt};
use crate::noise::{Quality, Receiver};
use crate::record::TruthLine;
use crate::rig::{Ended, FleetError, FleetOptions, Hired, Report, Rig, Stop, count, sleep_until};

#[derive(Clone)]
pub struct SimOptions {
    pub fleet: FleetOptions,
    /// A map file, as `wayfix maps import` writes it.
    pub map: PathBuf,
    pub drivers: u32,
    /// What the drivers travel by, one after the other and then from the first again.
    pub vehicles: Vec<Vehicle>,
    /// How far apart fixes are.
    pub interval: Duration,
    /// By the fleet's clock; None goes on until it is told to stop.
    pub duration: Option<Duration>,
    pub receiver: Quality,
    pub custom: Custom,
}

impl SimOptions {
    pub fn new(fleet: FleetOptions, map: impl Into<PathBuf>) -> Self {
        SimOptions {
            fleet,
            map: map.into(),
            drivers: 10,
            vehicles: vec![Vehicle::Car],
            interval: Duration::from_secs(4),
            duration: None,
            receiver: Quality::default(),
            custom: Custom::default(),
        }
    }
}

/// Drives until `stop` resolves or the time is over, brings home what the phones hold, and says what came of it.
pub async fn run(options: SimOptions, stop: impl Future<Output = ()>) -> Result<Report, FleetError> {
    let map = options.map.clone();
    let graph = tokio::task::spawn_blocking(move || Graph::open(map)).await.map_err(|_| FleetError::Broken)??;
    let routing = Arc::new(Routing::new(Arc::new(graph)));
    let (warmed, vehicles) = (routing.clone(), options.vehicles.clone());
    // The first call for a profile takes its time.
    let warm = move || {
        for vehicle in vehicles {
            let _made = warmed.router(vehicle.into());
        }
    };
    tokio::task::spawn_blocking(warm).await.map_err(|_| FleetError::Broken)?;
    let rig = Arc::new(Rig::new(options.fleet.clone())?);
    let (tell, told) = Stop::new();
    let mut drivers = FuturesUnordered::new();
    for number in 0..u64::from(options.drivers) {
        let driver = driver(rig.clone(), routing.clone(), options.clone(), number, told.clone());
        drivers.push(tokio::spawn(driver));
    }
    let ends = options.duration.map(|duration| rig.clock.now() + duration);
    let until_over = async {
        match ends {
            Some(ends) => sleep_until(&*rig.clock, ends).await,
            None => std::future::pending().await,
        }
    };
    let mut ended = Vec::new();
    let (mut stop, mut until_over) = (std::pin::pin!(stop), std::pin::pin!(until_over));
    let mut files = std::pin::pin!(rig.keep_files(told.clone()));
    let mut has_files = true;
    let mut failure = None;
    loop {
        tokio::select! {
            () = &mut stop, if !told.is_told() => { tell.send_replace(true); }
            () = &mut until_over, if !told.is_told() => { tell.send_replace(true); }
            outcome = &mut files, if has_files => {
                has_files = false;
                failure = failure.or(outcome.err());
                tell.send_replace(true);
            }
            Some(outcome) = drivers.next() => match outcome.unwrap_or(Err(FleetError::Broken)) {
                Ok(phone) => ended.extend(phone),
                Err(error) => {
                    failure = failure.or(Some(error));
                    tell.send_replace(true);
                }
            },
            else => break,
        }
        if drivers.is_empty() {
            break;
        }
    }
    rig.flush()?;
    failure.map_or(Ok(rig.report(&ended)), Err)
}

/// One driver from hiring to going home. None if the fleet ended before he was hired.
async fn driver(
    rig: Arc<Rig>,
    routing: Arc<Routing>,
    options: SimOptions,
    number: u64,
    mut stop: Stop,
) -> Result<Option<Ended>, FleetError> {
    let name = format!("Driver {}", number + 1);
    let vehicles = options.vehicles.len().max(1);
    let vehicle = options.vehicles.get(number as usize % vehicles).copied().unwrap_or_default();
    let hired = tokio::select! {
        hired = rig.hire(&name, vehicle, number) => hired?,
        () = stop.told() => return Ok(None),
    };
    let seed = options.fleet.seed.wrapping_mul(1_000_003).wrapping_add(number);
    let shift = Shift::begin(routing, Custom { vehicle, ..options.custom.clone() }, seed, rig.clock.now())
        .ok_or(FleetError::NoStreets)?;
    let receiver = Receiver::new(options.receiver, seed);
    let mut on_duty = OnDuty { rig: &rig, hired, shift, receiver, told_until: rig.clock.now(), last: None };
    on_duty.work(&options, number, &mut stop).await;
    count(&rig.counters.distance_m, on_duty.shift.driven_m() as u64);
    Ok(Some(on_duty.hired.go_home().await))
}

struct OnDuty<'a> {
    rig: &'a Rig,
    hired: Hired,
    shift: Shift,
    receiver: Receiver,
    /// Up to where the truth is written.
    told_until: Time,
    last: Option<MeasuredTime>,
}

/// Everything that can wake a driver.
enum Wake {
    Tick,
    Done(Done),
    Stop,
}

impl OnDuty<'_> {
    async fn work(&mut self, options: &SimOptions, number: u64, stop: &mut Stop) {
        let rig = self.rig;
        let interval_ms = i64::try_from(options.interval.as_millis()).unwrap_or(i64::MAX).max(100);
        // Drivers do not all measure in the same moment.
        let mut next_fix = Time(rig.clock.now().0 + interval_ms * (number as i64 % 16) / 16);
        let mut next_truth = Time((rig.clock.now().as_secs() + 1) * 1000);
        let mut errands = FuturesUnordered::new();
        loop {
            while let Some(errand) = self.shift.poll_errand() {
                errands.push(run_errand(rig, self.hired.driver, errand));
            }
            let next = if rig.truth.is_some() { next_fix.min(next_truth) } else { next_fix };
            let wake = tokio::select! {
                () = sleep_until(&*rig.clock, next) => Wake::Tick,
                Some(done) = errands.next() => Wake::Done(done),
                () = stop.told() => Wake::Stop,
            };
            match wake {
                Wake::Tick if next == next_fix => {
                    self.measure(next_fix);
                    next_fix = following(next_fix, interval_ms, rig.clock.now());
                }
                Wake::Tick => {
                    self.tell_truth(next_truth);
                    next_truth = following(next_truth, 1000, rig.clock.now());
                }
                Wake::Done(done) => {
                    let now = rig.clock.now().max(self.told_until);
                    self.shift.handle_done(done, now);
                }
                Wake::Stop => return,
            }
        }
    }

    fn measure(&mut self, at: Time) {
        let measured = MeasuredTime::from_time(at);
        if self.last.is_some_and(|last| measured <= last) {
            return;
        }
        self.last = Some(measured);
        let truth = self.truth_at(measured.to_time());
        if let Some(fix) = self.receiver.measure(&truth.place, measured) {
            self.rig.send(&self.hired.phone, fix);
        }
    }

    fn tell_truth(&mut self, at: Time) {
        let truth = self.truth_at(at);
        if let Some(lines) = &self.rig.truth {
            lines.write(&TruthLine {
                at_ms: at,
                driver: self.hired.driver,
                delivery: truth.delivery,
                lat: truth.place.position.lat(),
                lng: truth.place.position.lon(),
                speed_m_s: Some((truth.place.speed_m_s * 10.0).round() / 10.0),
                leg: truth.leg,
                arrives_ms: truth.arrives,
            });
        }
    }

    fn truth_at(&mut self, at: Time) -> Truth {
        self.told_until = self.told_until.max(at);
        self.shift.handle_time(self.told_until)
    }
}

/// The next beat that is not yet over: a process that was held up leaves some out.
fn following(at: Time, every_ms: i64, now: Time) -> Time {
    let late = now.millis_since(at).max(0) / every_ms;
    Time(at.0 + every_ms * (late + 1))
}

async fn run_errand(rig: &Rig, driver: u32, errand: Errand) -> Done {
    match errand_outcome(rig, driver, errand).await {
        Ok(done) => done,
        Err(error) => {
            warn!(error = &error as &dyn std::error::Error, driver, "the order is given up");
            count(&rig.counters.deliveries_failed, 1);
            Done::GivenUp
        }
    }
}

async fn errand_outcome(rig: &Rig, driver: u32, errand: Errand) -> Result<Done, ApiError> {
    match errand {
        Errand::Order { pickup, drop_off } => {
            let stop = |position, label: &str| StopAt { position, label: label.to_string() };
            let reference = format!("order of driver {driver}");
            let (pickup, drop_off) = (stop(pickup.position, "Shop"), stop(drop_off.position, "Door"));
            let delivery = rig.api.create_delivery(&pickup, &drop_off, &reference, None).await?;
            count(&rig.counters.deliveries_created, 1);
            rig.api.change_status(delivery, DeliveryState::Accepted).await?;
            rig.api.assign(delivery, Some(driver)).await?;
            rig.api.change_status(delivery, DeliveryState::Preparing).await?;
            Ok(Done::Ordered { delivery })
        }
        Errand::Cook { delivery, takes } => {
            let ready = rig.clock.now() + takes;
            sleep_until(&*rig.clock, ready).await;
            rig.api.change_status(delivery, DeliveryState::Ready).await?;
            Ok(Done::Cooked)
        }
        Errand::Deliver { delivery } => {
            let is_by_hand = rig.api.deliver(delivery).await?;
            count(&rig.counters.picked_up_by_hand, u64::from(is_by_hand));
            count(&rig.counters.deliveries_delivered, 1);
            info!(delivery, driver, "delivered");
            Ok(Done::Delivered)
        }
    }
}
