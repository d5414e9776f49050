//! The promises of the fold, each as a test: never backwards, once and only once, the same bytes after any restart.

use std::collections::BTreeMap;
use std::sync::Arc;

use maps::eta::EtaTable;
use maps::geo;
use maps::speeds::{LiveFactors, SpeedTable};
use proptest::prelude::*;
use protocol::record::{BlobHash, BodyKind, Door, OwnerId};
use protocol::update::{
    DeliveryBody, DeliveryUpdate, DriverBody, DriverUpdate, DriverView, Epoch, EtaBasis, Event, Generation, Leg,
    Proposal, ShownPosition, SilentCause, Taken,
};
use protocol::{
    AssignmentNumber, Breadcrumb, Delivery, DeliveryId, DeliveryKey, DeliveryPolicy, DeliveryState, DeviceKey,
    DeviceNumber, DriverId, DriverKey, EdgeId, Fix, FixNumber, FixRecord, HeardRecord, JournalEntry, JournalKind,
    JournalNumber, LiveView, MeasuredTime, Milestone, Offset, PartitionId, PhoneState, Position, Record, RecordBatch,
    RejectReason, Stop, StopKind, TenantId, Time, TrackerKey, Update, UpdateBatch, Verdict, envelope,
};

use super::*;

mod arrival;
mod clock_set;
mod gathering;
mod idle;
mod journal;
mod lead;
mod motion;
mod restart;
mod roads;
mod swap;
mod tables;
mod upgrade;

const TENANT: TenantId = TenantId(7);
const DRIVER: DriverKey = DriverKey { tenant: TENANT, driver: DriverId(1) };
const OTHER: DriverKey = DriverKey { tenant: TENANT, driver: DriverId(2) };
const DELIVERY: DeliveryKey = DeliveryKey { tenant: TENANT, delivery: DeliveryId(100) };
const EDGE: EdgeId = EdgeId(1);
/// Unix seconds of the beginning of all tests.
const BEGIN_S: i64 = 1_700_000_000;

/// One partition, fed entry by entry, with all that it said.
struct World {
    partition: Partition,
    log: Vec<RecordBatch>,
    updates: Vec<Update>,
    breadcrumbs: Vec<Breadcrumb>,
    counts: Counts,
    now_ms: i64,
    number: u64,
    bodies: TestBodies,
    wanted: Vec<RouteWanted>,
}

/// Bodies in memory.
#[derive(Clone, Default)]
struct TestBodies {
    maps: Vec<Arc<RoadMap>>,
    tables: BTreeMap<BlobHash, Vec<u8>>,
}

impl Bodies for TestBodies {
    fn map(&self, hash: BlobHash) -> Option<Arc<RoadMap>> {
        self.maps.iter().find(|map| map.hash == hash).cloned()
    }

    fn traffic(&self, map: &Arc<RoadMap>, tables: Tables) -> Arc<Traffic> {
        let body = |hash: Option<BlobHash>| hash.and_then(|hash| self.tables.get(&hash));
        let speeds = body(tables.speeds).and_then(|bytes| SpeedTable::from_bytes(bytes, &map.graph).ok());
        let live = body(tables.live).and_then(|bytes| LiveFactors::from_bytes(bytes, &map.graph).ok());
        Arc::new(Traffic::of(map.clone(), speeds.map(Arc::new), live.map(Arc::new)))
    }

    fn eta(&self, hash: BlobHash) -> Option<Arc<EtaTable>> {
        self.tables.get(&hash).and_then(|bytes| EtaTable::from_bytes(bytes)).map(Arc::new)
    }
}

impl World {
    fn new() -> World {
        World::of_partition(0)
    }

    /// With a map in use from the beginning.
    fn on(map: Arc<RoadMap>) -> World {
        let mut world = World::new();
        let hash = map.hash;
        world.bodies.maps.push(map);
        world.push(Record::InUse { kind: BodyKind::Map, hash });
        world
    }

    /// Takes a table into use.
    fn take(&mut self, kind: BodyKind, body: Vec<u8>) {
        let hash = BlobHash(SpeedTable::hash(&body));
        self.bodies.tables.insert(hash, body);
        self.push(Record::InUse { kind, hash });
    }

    fn of_partition(partition: u32) -> World {
        let partition = Partition::new(PartitionId(partition), Offset(0), Generation::default());
        let mut world = World {
            partition,
            log: Vec::new(),
            updates: Vec::new(),
            breadcrumbs: Vec::new(),
            counts: Counts::default(),
            now_ms: BEGIN_S * 1000,
            number: 0,
            bodies: TestBodies::default(),
            wanted: Vec::new(),
        };
        world.push(Record::Claim { owner: OwnerId(1), at: Time(world.now_ms), incarnation: 1 });
        world
    }

    fn push(&mut self, record: Record) {
        self.push_all(vec![record]);
    }

    fn push_all(&mut self, records: Vec<Record>) {
        let batch = RecordBatch { records };
        let mut effects = Effects::default();
        self.partition.handle_entry(Offset(self.log.len() as u64), &batch, &self.bodies, &mut effects);
        self.log.push(batch);
        self.updates.extend(effects.updates);
        self.breadcrumbs.extend(effects.breadcrumbs);
        self.wanted.extend(effects.routes_wanted);
        self.counts = effects.counts;
    }

    fn now(&self) -> Time {
        Time(self.now_ms)
    }

    /// Lets so much time pass, with a mark and a tick every second.
    fn pass(&mut self, seconds: i64) {
        for _ in 0..seconds {
            self.now_ms += 1000;
            self.push_all(vec![
                Record::Mark { edge: EDGE, received_before: self.now() },
                Record::Tick { owner: OwnerId(1), at: self.now() },
            ]);
        }
    }

    /// A fix measured and received now, so many metres east of the place where all begins.
    fn fix(&mut self, east_m: f64) -> FixRecord {
        self.number += 1;
        FixRecord {
            device: device(DRIVER, 1),
            session_start: 1,
            number: Some(FixNumber(self.number)),
            lowest_held: FixNumber(0),
            edge: EDGE,
            door: Door::Udp,
            received: self.now(),
            fix: Fix { accuracy_m: Some(5), ..Fix::at(MeasuredTime::from_time(self.now()), east(east_m)) },
            verdict: Verdict::Accepted,
        }
    }

    fn drive(&mut self, east_m: f64) {
        let fix = self.fix(east_m);
        self.push(Record::Fix(fix));
    }

    fn deliveries(&self) -> impl Iterator<Item = &DeliveryUpdate> {
        self.updates.iter().filter_map(|update| match update {
            Update::Delivery(update) => Some(update),
            Update::Driver(_) | Update::Heartbeat { .. } => None,
        })
    }

    fn drivers(&self) -> impl Iterator<Item = &DriverUpdate> {
        self.updates.iter().filter_map(|update| match update {
            Update::Driver(update) => Some(update),
            Update::Delivery(_) | Update::Heartbeat { .. } => None,
        })
    }

    fn events(&self) -> Vec<Event> {
        self.deliveries().flat_map(|update| update.events.clone()).collect()
    }

    /// What a reader of the updates holds of the delivery.
    fn view(&self) -> LiveView {
        let mut view: Option<LiveView> = None;
        for update in self.deliveries().filter(|update| update.key == DELIVERY) {
            match &mut view {
                None => view = LiveView::begin(update),
                Some(view) => assert_ne!(view.handle_update(update), Taken::Dropped, "{update:?}"),
            }
        }
        view.expect("the delivery was told of")
    }

    /// What a reader of the updates holds of the driver.
    fn devices_of_driver(&self) -> String {
        self.partition.trackers.devices(DRIVER)
    }

    fn view_of_driver(&self) -> DriverView {
        let mut view: Option<DriverView> = None;
        for update in self.drivers().filter(|update| update.key == DRIVER) {
            match (&update.body, &mut view) {
                (DriverBody::Keyframe { view: whole }, _) => view = Some((**whole).clone()),
                (DriverBody::Changed { changed }, Some(view)) => {
                    view.position = changed.position.or(view.position);
                    view.silent = changed.silent.unwrap_or(view.silent);
                }
                (DriverBody::Changed { .. }, None) => {}
            }
        }
        view.expect("the driver was told of")
    }

    /// The event times of all positions shown of the driver.
    fn shown(&self) -> Vec<(Time, Position)> {
        let positions = self.drivers().filter_map(|update| match &update.body {
            DriverBody::Keyframe { view } => view.position,
            DriverBody::Changed { changed } => changed.position,
        });
        positions.map(|shown| (shown.event_time, shown.position)).collect()
    }
}

fn device(key: DriverKey, number: u16) -> DeviceKey {
    DeviceKey { tenant: key.tenant, driver: key.driver, device: DeviceNumber(number) }
}

fn east(metres: f64) -> Position {
    let plane = geo::Plane::at(Position { lat_e7: 411_500_000, lon_e7: -86_100_000 });
    plane.to_position((metres * 100.0, 0.0))
}

fn stop(kind: StopKind, east_m: f64) -> Stop {
    Stop { kind, position: east(east_m), radius_m: 60, label: String::new() }
}

/// Pickup 500 m east, drop-off 3 km east.
fn delivery(driver: Option<DriverKey>, assignment: u32, journal: Vec<JournalEntry>) -> Delivery {
    let status = |entry: &JournalEntry| match entry.kind {
        JournalKind::Status { status, .. } => Some(status),
        JournalKind::Assigned { .. } | JournalKind::Milestone { .. } => None,
    };
    Delivery {
        key: DELIVERY,
        state: journal.iter().filter_map(status).next_back().unwrap_or(DeliveryState::Received),
        assignment: AssignmentNumber(assignment),
        driver: driver.map(|key| key.driver),
        stops: vec![stop(StopKind::Pickup, 500.0), stop(StopKind::DropOff, 3_000.0)],
        policy: DeliveryPolicy::default(),
        journal,
        reference: "A1".to_string(),
        created: Time::from_secs(BEGIN_S),
    }
}

fn entry(number: u64, kind: JournalKind) -> JournalEntry {
    JournalEntry { number: JournalNumber(number), at: Time::from_secs(BEGIN_S), kind }
}

fn status(number: u64, status: DeliveryState) -> JournalEntry {
    entry(number, JournalKind::Status { status, reason: None })
}

fn assigned(number: u64, driver: Option<DriverKey>, assignment: u32) -> JournalEntry {
    let kind = JournalKind::Assigned { driver: driver.map(|key| key.driver), assignment: AssignmentNumber(assignment) };
    entry(number, kind)
}

fn assign(driver: DriverKey, states: &[DeliveryState]) -> Record {
    let mut journal: Vec<JournalEntry> =
        states.iter().enumerate().map(|(i, state)| status(i as u64 + 1, *state)).collect();
    journal.push(assigned(states.len() as u64 + 1, Some(driver), 1));
    Record::Assign { to: driver.into(), delivery: Box::new(delivery(Some(driver), 1, journal)) }
}

fn ledger(to: impl Into<TrackerKey>, entry: JournalEntry) -> Record {
    Record::Ledger { to: to.into(), delivery: DELIVERY, entry }
}

const TO_READY: &[DeliveryState] =
    &[DeliveryState::Received, DeliveryState::Accepted, DeliveryState::Preparing, DeliveryState::Ready];
