//! Drivers on the streets of a map, made up and always the same: their trips, their fixes as entries of records, and the
//! deliveries of some.

use std::ops::Range;
use std::sync::Arc;

use anyhow::ensure;
use maps::router::{Endpoint, Routing};
use maps::{EdgeId, Graph, Profile, geo};
use protocol::envelope;
use protocol::record::Door;
use protocol::{
    AssignmentNumber, Delivery, DeliveryId, DeliveryKey, DeliveryPolicy, DeliveryState, DeviceKey, DeviceNumber,
    DriverId, DriverKey, EdgeId as ServerId, Fix, FixNumber, FixRecord, JournalEntry, JournalKind, JournalNumber,
    MeasuredTime, Position, Record, RecordBatch, Stop, StopKind, TenantId, Time, Verdict,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// The fastest routes between random places, as positions 36 m apart.
pub fn trips(graph: &Arc<Graph>) -> anyhow::Result<Vec<Vec<Position>>> {
    let open: Vec<EdgeId> = graph.edges().filter(|edge| graph.is_connected(*edge, Profile::Car)).collect();
    ensure!(!open.is_empty(), "the map has no roads for cars");
    let routing = Routing::new(graph.clone());
    let mut random = SmallRng::seed_from_u64(7);
    let mut trips = Vec::new();
    while trips.len() < TRIPS {
        let mut place = || Endpoint::Edge { edge: open[random.random_range(0..open.len())], along_cm: 0 };
        let Some(route) = routing.route(&place(), &place(), Profile::Car) else { continue };
        if (300_000..1_500_000).contains(&route.length_cm) {
            trips.push(every_36_m(&route.geometry(graph)));
        }
    }
    Ok(trips)
}

/// Places so far apart along a line, from its beginning.
pub fn every_36_m(line: &[Position]) -> Vec<Position> {
    let (mut places, mut left_m) = (vec![line[0]], 36.0);
    for pair in line.windows(2) {
        let plane = geo::Plane::at(pair[0]);
        let (east, north) = plane.to_cm(pair[1]);
        let length_m = geo::distance_cm(pair[0], pair[1]) / 100.0;
        while left_m < length_m {
            let share = left_m / length_m;
            places.push(plane.to_position((east * share, north * share)));
            left_m += 36.0;
        }
        left_m -= length_m;
    }
    places
}

/// A fix of each of these drivers, in entries of `ENTRY_FIXES`. Who comes to the end of his trip turns back along it.
pub fn fleet_entries(drivers: Range<u32>, round: u32, trips: &[Vec<Position>], now: i64) -> Vec<Vec<u8>> {
    let (first, count) = (drivers.start, i64::from(drivers.end - drivers.start));
    let position = |number: u32| {
        let trip = &trips[number as usize % trips.len()];
        let at = round as usize % (2 * trip.len());
        trip[if at < trip.len() { at } else { 2 * trip.len() - 1 - at }]
    };
    let fix = |number: u32| {
        let received = Time(now + i64::from(number - first) * ROUND_MS / count);
        Record::Fix(FixRecord {
            device: device(number),
            session_start: 1,
            number: Some(FixNumber(u64::from(round) + 1)),
            lowest_held: FixNumber(u64::from(round) + 1),
            edge: ServerId(1),
            door: Door::Udp,
            received,
            fix: Fix { accuracy_m: Some(5), ..Fix::at(MeasuredTime::from_time(received), position(number)) },
            verdict: Verdict::Accepted,
        })
    };
    let numbers: Vec<u32> = drivers.collect();
    let entry =
        |numbers: &[u32]| envelope::encode(&RecordBatch { records: numbers.iter().copied().map(fix).collect() });
    numbers.chunks(ENTRY_FIXES).map(entry).collect()
}

pub fn assignment(number: u32, trip: &[Position], at: Time) -> Record {
    let stop = |kind, position| Stop { kind, position, radius_m: 50, label: String::new() };
    let entry = |number, kind| JournalEntry { number: JournalNumber(number), at, kind };
    let DriverKey { tenant, driver } = driver(number);
    let delivery = Delivery {
        key: DeliveryKey { tenant, delivery: DeliveryId(u64::from(number) + 1) },
        state: DeliveryState::PickedUp,
        assignment: AssignmentNumber(1),
        driver: Some(driver),
        stops: vec![stop(StopKind::Pickup, trip[0]), stop(StopKind::DropOff, trip[trip.len() - 1])],
        policy: DeliveryPolicy::default(),
        journal: vec![
            entry(1, JournalKind::Status { status: DeliveryState::PickedUp, reason: None }),
            entry(2, JournalKind::Assigned { driver: Some(driver), assignment: AssignmentNumber(1) }),
        ],
        reference: String::new(),
        created: at,
    };
    Record::Assign { to: DriverKey { tenant, driver }.into(), delivery: Box::new(delivery) }
}

fn driver(number: u32) -> DriverKey {
    DriverKey { tenant: TenantId(1), driver: DriverId(number + 1) }
}

fn device(number: u32) -> DeviceKey {
    let DriverKey { tenant, driver } = driver(number);
    DeviceKey { tenant, driver, device: DeviceNumber(1) }
}

/// A fix each every 4 s.
pub const ROUND_MS: i64 = 4_000;
const ENTRY_FIXES: usize = 500;
const TRIPS: usize = 2_000;
