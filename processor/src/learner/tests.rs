//! The learner held to its promises: first alone, then as a role on an embedded log.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use backends::blob_store::BlobStore;
use backends::blob_store::embedded::FolderBlobStore;
use backends::live_store::embedded::MemoryLiveStore;
use backends::live_store::{LiveStore, SpeedCell};
use backends::log::embedded::{EmbeddedLog, EmbeddedLogConfig};
use backends::log::{Append, Log, Topic, read_range};
use bytes::Bytes;
use daemon::admin::Readiness;
use daemon::{Clock, Drain, Meter};
use maps::eta::EtaTable;
use maps::import::{ImportOptions, import_bytes};
use maps::speeds::{Hexagons, LiveFactors, SpeedTable};
use maps::town::{self, TownOptions};
use maps::{EdgeId, Graph, Profile, RoadClass};
use protocol::record::{BlobHash, BodyKind, Door, Vehicle};
use protocol::update::{
    BreadcrumbBatch, Changed, DeliveryBody, DeliveryUpdate, DeliveryView, DriverBody, DriverUpdate, DriverView, Epoch,
    Eta, EtaBasis, Event, Generation, Leg, Plan, Progress, ShownPosition, SnappedPosition, Source,
};
use protocol::{
    AssignmentNumber, Breadcrumb, Delivery, DeliveryId, DeliveryKey, DeliveryPolicy, DeliveryState, DeviceKey,
    DeviceNumber, DriverId, DriverKey, Fix, FixNumber, FixRecord, MeasuredTime, Offset, PartitionId, Position, Record,
    RecordBatch, Stop, StopKind, TenantId, Time, Update, UpdateBatch, Verdict, envelope,
};
use tokio::sync::watch;

use super::core::{Learner, Output};
use super::counts::LeftOut;
use super::state::State;
use super::{LearnerMetrics, Role};
use crate::config::{LearnerConfig, LearnerSettings};
use crate::shard::LocalBodies;

#[test]
fn twenty_drivers_at_8_km_h_are_told_within_a_minute_of_their_first_fix() {
    let mut world = World::new();
    let street = street();
    world.until(BEGIN + Duration::from_secs(1));

    for tick in 0..60 {
        let now = BEGIN + Duration::from_secs(tick);
        // A fix is final 40 s after it was measured.
        if tick >= 40 && tick % 4 == 0 {
            let seconds = tick - 40;
            for driver in 0..20 {
                world.learner.handle_breadcrumb(&crumb(driver, street, seconds, slow_cm(seconds)), now);
            }
        }
        world.until(now);
    }

    let table = world.tables(BodyKind::LiveSpeeds).pop().expect("live factors are told");
    let factors = LiveFactors::from_bytes(&table, graph()).expect("of this map");
    let free_cm_s = f64::from(graph().free_flow_cm_s(street));
    let factor = factors.factor(graph(), street, factors.at);
    assert!(factor > 1.5, "{factor} times as slow; 8 km/h would be {}", free_cm_s / 222.0);
}

#[test]
fn what_hardly_moves_is_told_once_a_minute_and_nothing_where_nobody_drives() {
    let mut world = World::new();
    let street = street();
    // One after the other drives through as fast as the empty road allows.
    let place = |seconds: u64| {
        let driven_cm = seconds * u64::from(graph().free_flow_cm_s(street));
        ((driven_cm / 7_500) as u32, (driven_cm % 7_500) as u32)
    };
    world.until(BEGIN + Duration::from_secs(30));
    let quiet = world.tables(BodyKind::LiveSpeeds).len();

    for seconds in 30..330 {
        let now = BEGIN + Duration::from_secs(seconds);
        if seconds % 4 == 0 {
            let (driver, along_cm) = place(seconds);
            world.learner.handle_breadcrumb(&crumb(driver, street, seconds, along_cm), now);
        }
        world.until(now);
    }
    let as_usual = world.tables(BodyKind::LiveSpeeds).len();
    world.until(BEGIN + Duration::from_secs(1_000));

    assert_eq!(quiet, 0);
    assert!((4..=6).contains(&as_usual), "{as_usual} in five minutes");
    assert!(world.tables(BodyKind::LiveSpeeds).len() <= as_usual + 1);
}

#[test]
fn factors_are_told_as_they_fade_until_all_is_as_usual_and_then_nothing() {
    let mut world = World::new();
    let street = street();
    for seconds in 0..120 {
        let now = BEGIN + Duration::from_secs(seconds);
        if seconds % 4 == 0 {
            world.drive(street, seconds, 222);
        }
        world.until(now);
    }
    let factors = |world: &World| {
        let table = world.tables(BodyKind::LiveSpeeds).pop().expect("live factors are told");
        LiveFactors::from_bytes(&table, graph()).expect("of this map")
    };
    let slow = factors(&world).factor(graph(), street, factors(&world).at);

    // Whoever learns on has to tell of it no less.
    let state = State::from_bytes(&world.learner.state().to_bytes()).unwrap();
    world.learner = Learner::new(config(), state, world.now);
    world.learner.handle_map(MAP, graph(), world.now);
    world.until(BEGIN + Duration::from_secs(3_600));
    let (faded, in_an_hour) = (factors(&world), world.tables(BodyKind::LiveSpeeds).len());
    world.until(BEGIN + Duration::from_secs(8 * 3_600));
    let (over, in_all) = (factors(&world), world.tables(BodyKind::LiveSpeeds).len());
    world.until(BEGIN + Duration::from_secs(24 * 3_600));

    let after_an_hour = faded.factor(graph(), street, faded.at);
    assert!(slow > 1.5 && after_an_hour < 1.0 + (slow - 1.0) / 2.0, "{slow}, then {after_an_hour}");
    assert!(in_an_hour > 20, "{in_an_hour} tables in an hour");
    assert!(over.is_usual());
    assert_eq!(world.tables(BodyKind::LiveSpeeds).len(), in_all, "there is nothing left to say");
}

#[test]
fn another_map_or_a_restart_before_the_first_week_is_told_makes_nobody_slow_twice() {
    type Then = fn(Learner, Time) -> Learner;
    let swap: Then = |mut learner, now| {
        learner.handle_map(BlobHash([2; 32]), graph(), now);
        learner
    };
    let restart: Then = |learner, now| {
        let state = State::from_bytes(&learner.state().to_bytes()).unwrap();
        let mut learner = Learner::new(config(), state, now);
        learner.handle_map(MAP, graph(), now);
        learner
    };
    let street = street();
    // At six tenths of what the empty road allows.
    let cm_s = graph().free_flow_cm_s(street) * 6 / 10;
    for then in [swap, restart] {
        let mut world = World::new();
        for seconds in 0..600 {
            if seconds % 4 == 0 {
                world.drive(street, seconds, cm_s);
            }
            world.until(BEGIN + Duration::from_secs(seconds));
        }
        assert_eq!(world.tables(BodyKind::Speeds).len(), 0, "the usual week is not told yet");

        let learner = std::mem::replace(&mut world.learner, World::new().learner);
        world.learner = then(learner, world.now);
        world.until(BEGIN + Duration::from_secs(615));

        let speeds = SpeedTable::from_bytes(&world.tables(BodyKind::Speeds)[0], graph()).unwrap();
        let live = LiveFactors::from_bytes(&world.tables(BodyKind::LiveSpeeds).pop().unwrap(), graph()).unwrap();
        let share = speeds.ratio(street, 12) / live.factor(graph(), street, live.at);
        assert!((0.5..0.7).contains(&share), "{share} of free flow");
    }
}

#[test]
fn breadcrumbs_that_say_nothing_of_how_fast_one_gets_along_are_left_out_and_counted() {
    let mut world = World::new();
    let street = street();
    let now = BEGIN + Duration::from_secs(100);
    let good = |seconds, along_cm| crumb(1, street, seconds, along_cm);
    let rejected = Breadcrumb { verdict: Verdict::Rejected(protocol::RejectReason::TooFast), ..crumb(1, street, 1, 0) };
    let moved = {
        let mut moved = crumb(1, street, 1, 0);
        let snapped = moved.snapped.as_mut().unwrap();
        snapped.position.lat_e7 += 1_000;
        moved
    };
    let no_such_edge = Breadcrumb {
        snapped: good(1, 0).snapped.map(|s| SnappedPosition { edge: graph().edge_count() as u32, ..s }),
        ..good(1, 0)
    };
    let backlog = {
        let mut backlog = good(1, 0);
        backlog.record.received = BEGIN + Duration::from_secs(3_600);
        backlog
    };
    let off_road = Breadcrumb { snapped: None, ..good(1, 0) };

    for breadcrumb in
        [rejected, off_road, moved, no_such_edge, backlog, good(2, 0), good(2, 0), good(6, 3_000), good(10, 3_100)]
    {
        world.learner.handle_breadcrumb(&breadcrumb, now);
    }

    let counts = world.learner.take_counts();
    let left_out = |reason: LeftOut| counts.left_out[reason as usize];
    assert_eq!((left_out(LeftOut::Unplaced), left_out(LeftOut::OtherMap)), (2, 2));
    assert_eq!((left_out(LeftOut::Late), left_out(LeftOut::Begun), left_out(LeftOut::Stood)), (2, 1, 1));
    assert_eq!((counts.breadcrumbs, counts.traversals), (9, 1));
}

#[test]
fn who_goes_where_cars_may_not_teaches_nothing_of_cars() {
    let mut world = World::new();
    let path = graph().edges().find(|e| !graph().allows(*e, Profile::Car)).expect("the town has footways");

    world.learner.handle_breadcrumb(&crumb(1, path, 0, 0), BEGIN);
    world.learner.handle_breadcrumb(&crumb(1, street(), 4, 0), BEGIN);
    world.learner.handle_breadcrumb(&crumb(1, street(), 8, 3_000), BEGIN);

    let counts = world.learner.take_counts();
    assert_eq!((counts.traversals, counts.left_out[LeftOut::NotByCar as usize]), (0, 3));
}

#[test]
fn who_does_not_drive_a_car_teaches_nothing_of_cars_until_he_does() {
    let taught = |vehicles: &[Vehicle]| {
        let mut world = World::new();
        vehicles.iter().for_each(|vehicle| world.learner.handle_update(&travels_by(*vehicle)));
        for seconds in [0, 4, 8] {
            world.learner.handle_breadcrumb(&crumb(1, street(), seconds, 750 * seconds as u32), BEGIN);
        }
        let end = BEGIN + Duration::from_secs(700);
        [begun(7, 1, BEGIN), arrived(7, 2, end)].iter().for_each(|update| world.learner.handle_update(update));
        let counts = world.learner.take_counts();
        (counts.traversals > 0, counts.trips_finished)
    };

    assert_eq!(taught(&[]), (true, 1));
    assert_eq!(taught(&[Vehicle::Bicycle]), (false, 0));
    assert_eq!(taught(&[Vehicle::Moped]), (false, 0));
    assert_eq!(taught(&[Vehicle::Foot, Vehicle::Car]), (true, 1));
}

#[test]
fn who_learns_on_from_a_state_comes_to_the_same_as_who_never_stopped() {
    let street = street();
    let feed = |learner: &mut Learner, range: std::ops::Range<u64>| {
        for i in range {
            let now = BEGIN + Duration::from_secs(i * 4);
            let breadcrumbs = (0..5).map(|driver| crumb(driver, street, i * 4, slow_cm(i * 4))).collect();
            learner.handle_trail(PartitionId(0), Offset(i), &BreadcrumbBatch { breadcrumbs }, now);
            let updates = vec![begun(i, 1, now), arrived(i, 2, now + Duration::from_secs(700))];
            learner.handle_updates(PartitionId(1), Offset(i), &UpdateBatch { updates });
            learner.handle_timeout(now);
        }
    };
    let mut whole = World::new().learner;
    feed(&mut whole, 0..100);

    let mut first = World::new().learner;
    feed(&mut first, 0..50);
    let kept = first.state().to_bytes();
    let state = State::from_bytes(&kept).expect("it reads what it wrote");
    let mut second = Learner::new(config(), state, BEGIN + Duration::from_secs(200));
    second.handle_map(MAP, graph(), BEGIN + Duration::from_secs(200));
    feed(&mut second, 0..100); // what was read before is passed by

    let ratio = |learner: &Learner| learner.state().speeds.table(graph()).ratio(street, 3);
    assert_eq!(second.state().trail, whole.state().trail);
    // The first hop of every driver after a restart is not known.
    assert!((ratio(&second) - ratio(&whole)).abs() < 0.03, "{} and {}", ratio(&second), ratio(&whole));
    assert_eq!(second.state().eta, whole.state().eta);
    assert!(State::from_bytes(&kept[..kept.len() - 1]).is_err());
}

#[test]
fn a_leg_is_one_finished_trip_however_often_it_is_told() {
    let mut world = World::new();
    let end = BEGIN + Duration::from_secs(700);

    for update in [begun(7, 1, BEGIN), begun(7, 1, BEGIN), begun(7, 2, BEGIN + Duration::from_secs(60))] {
        world.learner.handle_update(&update);
    }
    for update in [arrived(7, 3, end), arrived(7, 3, end), begun(7, 2, BEGIN), arrived(7, 4, end)] {
        world.learner.handle_update(&update);
    }

    let counts = world.learner.take_counts();
    assert_eq!((counts.trips_begun, counts.trips_finished), (1, 1));
}

#[test]
fn what_was_told_halfway_is_learned_from_too() {
    let mut world = World::new();
    let halfway = |number, seconds| {
        let mut told = begun(7, number, BEGIN + Duration::from_secs(seconds));
        let Update::Delivery(update) = &mut told else { unreachable!("it is of a delivery") };
        let DeliveryBody::Keyframe { view } = &mut update.body else { unreachable!("it is a keyframe") };
        view.progress = Some(Progress { leg: Leg::ToDropOff, along_m: 3_000, remaining_m: 2_000, off_route_m: 0 });
        told
    };

    for update in
        [begun(7, 1, BEGIN), halfway(2, 300), halfway(3, 360), arrived(7, 4, BEGIN + Duration::from_secs(700))]
    {
        world.learner.handle_update(&update);
    }

    let counts = world.learner.take_counts();
    assert_eq!((counts.trips_begun, counts.trips_finished), (2, 1));
}

#[test]
fn a_leg_that_another_driver_ends_is_nobodys_trip() {
    let mut world = World::new();
    world.learner.handle_update(&begun(7, 1, BEGIN));
    let mut taken_over = arrived(7, 1, BEGIN + Duration::from_secs(700));
    let Update::Delivery(update) = &mut taken_over else { unreachable!("it is of a delivery") };
    update.epoch.assignment = AssignmentNumber(2);

    world.learner.handle_update(&taken_over);

    assert_eq!(world.learner.take_counts().trips_finished, 0);
}

#[test]
fn arrivals_that_are_late_again_and_again_are_foretold_later_and_never_before_they_were_seen() {
    let told = |trips: u64| {
        let mut world = World::new();
        for i in 0..trips {
            let begin = BEGIN + Duration::from_secs(i * 30);
            world.until(begin);
            world.learner.handle_update(&begun(i, 1, begin));
            // Read as they happen: half as long again as was foretold.
            if let Some(before) = i.checked_sub(30) {
                world.learner.handle_update(&arrived(before, 2, begin));
            }
        }
        world.tables(BodyKind::EtaModel)
    };
    let (few, many) = (told(200), told(400));

    assert!(!few.is_empty());
    assert_eq!(many[..few.len()], few, "what comes later changes nothing of what was told");
    let table = EtaTable::from_bytes(many.last().unwrap()).unwrap();
    let ahead = maps::eta::Ahead { seconds: 600.0, length_m: 5_000.0, straight_m: 4_000.0, turns: 5, driven_m: 0.0 };
    let (before, after) = (EtaTable::default().predict(&ahead), table.predict(&ahead));
    assert!(after.p50_ms > before.p50_ms + 50_000, "{before:?} became {after:?}");
}

#[test]
fn the_usual_week_is_told_every_hour_and_only_if_it_changed() {
    let mut world = World::new();
    let street = street();
    for i in 0..100 {
        let now = BEGIN + Duration::from_secs(i * 4);
        world.learner.handle_breadcrumb(&crumb(1, street, i * 4, slow_cm(i * 4)), now);
    }

    world.until(BEGIN + Duration::from_secs(3_700));
    let first = world.tables(BodyKind::Speeds);
    world.until(BEGIN + Duration::from_secs(20_000));

    assert_eq!(first.len(), 1);
    let table = SpeedTable::from_bytes(&first[0], graph()).expect("of this map");
    assert!(table.ratio(street, 12) < 0.7, "{}", table.ratio(street, 12));
    assert_eq!(world.tables(BodyKind::Speeds).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_role_offers_tables_to_every_partition_and_learns_on_after_a_restart() {
    let fleet = Fleet::open().await;
    let (drain, meter) = (Drain::default(), Meter::discard());
    fleet.role(&meter).start(&drain);

    fleet.drive(0..20).await;
    let offered = fleet.offered(BodyKind::LiveSpeeds).await;
    assert!(drain.stop(Duration::from_secs(20)).await);
    assert_eq!(drain.failure(), None);

    let body = fleet.blobs.get(offered).await.expect("the body is there before the record");
    let factors = LiveFactors::from_bytes(&body, graph()).expect("of this map");
    assert!(factors.factor(graph(), street(), factors.at) > 1.5);
    let street = graph().position_at(street(), graph().length_cm(street()) / 2);
    let cell = Hexagons::name_at(street.lat(), street.lon()).and_then(|name| Hexagons::parse(&name)).unwrap();
    let speeds = fleet
        .live_store
        .speeds(SpeedCell(cell), Time(fleet.clock.monotonic_ms()))
        .await
        .unwrap()
        .expect("speeds of the cell");
    assert!(!speeds.roads.is_empty());

    let (state, _) = super::telling::restore(&*fleet.log, &*fleet.blobs, drain.token()).await.unwrap();
    let state = state.expect("it kept what it knows");
    assert_eq!((state.map, state.speeds.edges_len()), (Some(fleet.map), 1));
    assert_eq!(state.trail.values().map(|next| next.0).max(), Some(20));
}

/// A learner alone, with a map in use.
struct World {
    learner: Learner,
    told: Vec<(BodyKind, Vec<u8>)>,
    now: Time,
}

impl World {
    fn new() -> World {
        let mut learner = Learner::new(config(), State::new(BEGIN), BEGIN);
        learner.handle_map(MAP, graph(), BEGIN);
        World { learner, told: Vec::new(), now: BEGIN }
    }

    /// Twenty drivers side by side, and twenty others after them whenever they are through.
    fn drive(&mut self, street: EdgeId, seconds: u64, cm_s: u32) {
        let driven_cm = seconds as u32 * cm_s;
        for driver in 0..20 {
            let breadcrumb = crumb(driven_cm / 7_500 * 20 + driver, street, seconds, driven_cm % 7_500);
            self.learner.handle_breadcrumb(&breadcrumb, BEGIN + Duration::from_secs(seconds));
        }
    }

    /// Lets time pass, as the shell does.
    fn until(&mut self, end: Time) {
        while self.now < end {
            self.now = (self.now + Duration::from_secs(1)).min(end);
            if self.learner.poll_timeout() <= self.now {
                self.learner.handle_timeout(self.now);
            }
            while let Some(output) = self.learner.poll_output() {
                match output {
                    Output::Table { kind, body, .. } => self.told.push((kind, body)),
                    Output::Cells { .. } | Output::State { .. } | Output::Expired { .. } => {}
                }
            }
        }
    }

    fn tables(&self, kind: BodyKind) -> Vec<Vec<u8>> {
        self.told.iter().filter(|(k, _)| *k == kind).map(|(_, body)| body.clone()).collect()
    }
}

/// What the role stands on.
struct Fleet {
    log: Arc<EmbeddedLog>,
    blobs: Arc<FolderBlobStore>,
    live_store: Arc<MemoryLiveStore>,
    bodies: Arc<LocalBodies>,
    map: BlobHash,
    in_use: watch::Sender<Option<BlobHash>>,
    _folder: tempfile::TempDir,
    clock: Clock,
}

impl Fleet {
    async fn open() -> Fleet {
        let folder = tempfile::tempdir().unwrap();
        let config = EmbeddedLogConfig { partitions: 3, ..EmbeddedLogConfig::default() };
        let log = Arc::new(EmbeddedLog::open(folder.path().join("log"), config).unwrap());
        let blobs = Arc::new(FolderBlobStore::open(folder.path().join("blobs")).unwrap());
        let map = blobs.put(Bytes::from(map_bytes().to_vec())).await.unwrap();
        let stop = tokio_util::sync::CancellationToken::new();
        let bodies = Arc::new(LocalBodies::new(blobs.clone(), folder.path().join("maps"), stop));
        let live_store = Arc::new(MemoryLiveStore::default());
        let in_use = watch::Sender::new(Some(map));
        Fleet { log, blobs, live_store, bodies, map, in_use, _folder: folder, clock: Clock::system() }
    }

    fn role(&self, meter: &Meter) -> Role {
        Role {
            config: config(),
            log: self.log.clone(),
            blobs: self.blobs.clone(),
            live_store: self.live_store.clone(),
            bodies: self.bodies.clone(),
            map_in_use: self.in_use.subscribe(),
            decoded: backends::log::DecodedUpdates::new(3),
            clock: self.clock,
            readiness: Readiness::default(),
            metrics: LearnerMetrics::new(meter),
        }
    }

    fn now(&self) -> Time {
        Time(self.clock.now_ms())
    }

    /// Twenty drivers, slowly, over the last minutes; an entry for each time.
    async fn drive(&self, times: std::ops::Range<u64>) {
        let begin = self.now() - Duration::from_secs(100);
        for i in times {
            let breadcrumbs = (0..20).map(|driver| crumb_at(begin, driver, street(), i * 4, slow_cm(i * 4))).collect();
            let value = envelope::encode(&BreadcrumbBatch { breadcrumbs }).into();
            let entry = Append { topic: Topic::Trail, partition: PartitionId(1), key: Bytes::new(), value };
            self.log.append(&[entry]).await.into_offsets().unwrap();
        }
    }

    /// The body that all partitions were offered.
    async fn offered(&self, kind: BodyKind) -> BlobHash {
        for _ in 0..600 {
            let mut offered = BTreeMap::new();
            for partition in (0..3).map(PartitionId) {
                let range = self.log.range(Topic::Records, partition).await.unwrap();
                let entries = read_range(&*self.log, Topic::Records, partition, range).await.unwrap();
                let records = entries.iter().flat_map(|e| envelope::decode::<RecordBatch>(&e.value).unwrap().records);
                for record in records {
                    if let Record::Offered { kind: of, hash, .. } = record
                        && of == kind
                    {
                        offered.insert(partition, hash);
                    }
                }
            }
            if offered.len() == 3 {
                return *offered.values().next().unwrap();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("no table was offered");
    }
}

fn config() -> LearnerConfig {
    LearnerSettings::default().check().unwrap()
}

/// Where somebody is after so long at 8 km/h, up and down the street.
fn slow_cm(seconds: u64) -> u32 {
    (seconds as u32 * 222) % 7_500
}

fn crumb(driver: u32, edge: EdgeId, seconds: u64, along_cm: u32) -> Breadcrumb {
    crumb_at(BEGIN, driver, edge, seconds, along_cm)
}

fn crumb_at(begin: Time, driver: u32, edge: EdgeId, seconds: u64, along_cm: u32) -> Breadcrumb {
    let at = begin + Duration::from_secs(seconds);
    let position = graph().position_at(edge, along_cm);
    let record = FixRecord {
        device: DeviceKey { tenant: TenantId(1), driver: DriverId(driver), device: DeviceNumber(1) },
        session_start: 1,
        number: Some(FixNumber(seconds)),
        lowest_held: FixNumber(0),
        edge: protocol::EdgeId(1),
        door: Door::Udp,
        received: at,
        fix: Fix::at(MeasuredTime::from_time(at), position),
        verdict: Verdict::Accepted,
    };
    let snapped = SnappedPosition { position, edge: edge.0, along_cm, off_cm: 0, confidence_percent: 90 };
    Breadcrumb { record, verdict: Verdict::Accepted, snapped: Some(snapped), delivery: None, source: Source::default() }
}

/// A keyframe on the way to the drop-off: ten minutes by the plan.
fn begun(id: u64, number: u64, at: Time) -> Update {
    let from = Position { lat_e7: 411_500_000, lon_e7: -86_100_000 };
    let to = Position { lon_e7: -85_600_000, ..from };
    let stop = |kind, position| Stop { kind, position, radius_m: 60, label: String::new() };
    let delivery = Delivery {
        key: DeliveryKey { tenant: TenantId(1), delivery: DeliveryId(id) },
        state: DeliveryState::PickedUp,
        assignment: AssignmentNumber(1),
        driver: Some(DriverId(1)),
        stops: vec![stop(StopKind::Pickup, from), stop(StopKind::DropOff, to)],
        policy: DeliveryPolicy::default(),
        journal: Vec::new(),
        reference: String::new(),
        created: at,
    };
    let shown = ShownPosition {
        position: from,
        snapped: true,
        confidence_percent: 90,
        heading_255: None,
        speed_dm_s: None,
        accuracy_m: None,
        measured: MeasuredTime::from_time(at),
        event_time: at,
        received: at,
        standing: false,
    };
    let minutes = |n: u64| at + Duration::from_secs(n * 60);
    let eta = Eta { arrival: minutes(10), p10: minutes(8), p90: minutes(14), basis: EtaBasis::Road, stop: 1 };
    let view = DeliveryView {
        delivery,
        position: Some(shown),
        progress: Some(Progress { leg: Leg::ToDropOff, along_m: 0, remaining_m: 5_000, off_route_m: 0 }),
        eta: Some(eta),
        plan: Some(Plan { points: vec![from, to], length_m: 5_000, duration_s: 600 }),
        silent: None,
    };
    update(id, number, at, Vec::new(), DeliveryBody::Keyframe { view: Box::new(view) })
}

/// The keyframe of the driver of all these.
fn travels_by(vehicle: Vehicle) -> Update {
    let key = DriverKey { tenant: TenantId(1), driver: DriverId(1) };
    let view = DriverView {
        key,
        lead: None,
        position: None,
        phone_state: None,
        battery_percent: None,
        deliveries: Vec::new(),
        silent: None,
        vehicle,
    };
    Update::Driver(DriverUpdate {
        key,
        generation: Generation::default(),
        fold_version: 1,
        source: Source::default(),
        at: BEGIN,
        events: Vec::new(),
        body: DriverBody::Keyframe { view: Box::new(view) },
    })
}

fn arrived(id: u64, number: u64, at: Time) -> Update {
    let eta = Eta { arrival: at, p10: at, p90: at, basis: EtaBasis::Road, stop: 1 };
    let changed = Changed { eta: Some(Some(eta)), ..Changed::default() };
    update(id, number, at, vec![Event::StopEntered { stop: 1 }], DeliveryBody::Changed { changed })
}

fn update(id: u64, number: u64, at: Time, events: Vec<Event>, body: DeliveryBody) -> Update {
    Update::Delivery(DeliveryUpdate {
        key: DeliveryKey { tenant: TenantId(1), delivery: DeliveryId(id) },
        epoch: Epoch { assignment: AssignmentNumber(1), ..Epoch::default() },
        number,
        source: Source::default(),
        at,
        events,
        body,
        is_last: false,
    })
}

/// A residential street that is long enough.
fn street() -> EdgeId {
    let is_street = |e: &EdgeId| {
        graph().class(*e) == RoadClass::Residential && graph().allows(*e, Profile::Car) && graph().length_cm(*e) > 8_000
    };
    graph().edges().find(is_street).expect("the town has streets")
}

fn graph() -> &'static Arc<Graph> {
    static GRAPH: OnceLock<Arc<Graph>> = OnceLock::new();
    GRAPH.get_or_init(|| Arc::new(Graph::from_bytes(map_bytes()).expect("the map opens")))
}

fn map_bytes() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        import_bytes(&town::extract(&TownOptions::default()), &ImportOptions::default()).expect("the town imports")
    })
}

const MAP: BlobHash = BlobHash([1; 32]);
/// A Monday at noon.
const BEGIN: Time = Time(1_700_481_600_000);
