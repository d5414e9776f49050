//! The processor whole, on the embedded log and stores: what is told, kept and proposed, through stops and crashes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use backends::blob_store::embedded::FolderBlobStore;
use backends::blob_store::{BlobStore, SweptBlobStore, hash_of};
use backends::control::TokenKeys;
use backends::ledger::NewDelivery;
use backends::ledger::embedded::EmbeddedLedger;
use backends::live_store::embedded::MemoryLiveStore;
use backends::log::embedded::{EmbeddedLog, EmbeddedLogConfig};
use backends::log::{Append, DecodedUpdates, Log, Topic, read_range};
use backends::registry::embedded::EmbeddedRegistry;
use backends::route_service::{RouteService, RouteServiceError};
use backends::trail_store::TrailQuery;
use backends::trail_store::embedded::EmbeddedTrailStore;
use bytes::Bytes;
use daemon::admin::Readiness;
use daemon::{Clock, Drain, Meter};
use maps::geo;
use maps::import::{ImportOptions, import_bytes};
use maps::town::{self, TownOptions};
use protocol::record::{Door, PlannedPoint, Vehicle};
use protocol::update::{Epoch, EtaBasis};
use protocol::{
    Delivery, DeliveryKey, DeliveryPolicy, DeliveryState, DeviceKey, DeviceNumber, DriverId, DriverKey, EdgeId, Fix,
    FixNumber, FixRecord, LiveView, MeasuredTime, PartitionId, Position, Record, RecordBatch, Stop, StopKind, TenantId,
    Time, TrackerKey, Update, UpdateBatch, Verdict, envelope, partition_of,
};

use super::*;
use crate::shard::KeptSnapshots;
use crate::sweep::{Ages, sweep};

const DRIVER: DriverKey = DriverKey { tenant: TenantId(7), driver: DriverId(1) };

#[tokio::test(flavor = "multi_thread")]
async fn a_fix_becomes_a_live_view_a_breadcrumb_and_an_event_and_leaving_the_pickup_is_written_by_the_ledger() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::open(folder.path()).await;
    let drain = world.start().await;
    let delivery = world.ready_delivery().await;

    for i in 0..12 {
        world.fix(i, 60.0 * i as f64).await;
    }

    let key = delivery.key;
    eventually("the dot is shown", async || {
        let view = world.live(key).await;
        view.is_some_and(|view| view.view.position.is_some_and(|p| p.position == east(660.0)))
    })
    .await;
    eventually("the ledger has written picked up", async || {
        world.relay().await;
        world.live(key).await.is_some_and(|view| view.view.delivery.state == DeliveryState::PickedUp)
    })
    .await;
    eventually("all fixes are in history", async || world.trail().await.len() == 12).await;
    eventually("events are told", async || {
        let events = world.read_all(Topic::Events).await;
        let kinds: Vec<String> = events
            .iter()
            .map(|event| serde_json::from_slice::<serde_json::Value>(event).unwrap()["type"].to_string())
            .collect();
        ["status_changed", "assigned", "moved", "stop_left"].iter().all(|k| kinds.iter().any(|kind| kind.contains(k)))
    })
    .await;
    assert!(drain.stop(Duration::from_secs(20)).await);
    assert_eq!(drain.failure(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_and_started_again_it_goes_on_with_the_next_number() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::open(folder.path()).await;
    let drain = world.start().await;
    let delivery = world.ready_delivery().await;
    world.fix(0, 0.0).await;
    eventually("the dot is shown", async || {
        world.live(delivery.key).await.is_some_and(|view| view.view.position.is_some())
    })
    .await;
    assert!(drain.stop(Duration::from_secs(20)).await);

    let drain = world.start().await;
    world.fix(1, 30.0).await;

    eventually("the dot moved", async || {
        let view = world.live(delivery.key).await;
        view.is_some_and(|view| view.view.position.is_some_and(|p| p.position == east(30.0)))
    })
    .await;
    world.assert_gapless(1).await;
    assert!(drain.stop(Duration::from_secs(20)).await);
}

/// A restart may find that what changed since a base is lost, or all that lies in the blob store is. What lies before it
/// is taken up, or the log is folded again, silently: the same numbers go on, or another epoch, and no fix is lost.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_lost_of_a_snapshot_the_next_owner_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::open(folder.path()).await;
    let drain = world.start().await;
    let delivery = world.ready_delivery().await;
    let of_driver = partition_of(&TrackerKey::from(DRIVER).key_bytes(), world.log.partition_count(Topic::Records));
    let newest = async || KeptSnapshots::read(&*world.log, of_driver).await.unwrap().notices();
    for i in 0..4_u64 {
        let (last, end) = (newest().await.last().copied(), world.records_end(of_driver).await);
        world.fix(i, 60.0 * i as f64).await;
        eventually("a snapshot holds the fix", async || {
            newest().await.last().is_some_and(|notice| notice.next > end && Some(*notice) != last)
        })
        .await;
    }
    assert!(drain.stop(Duration::from_secs(20)).await);
    let notices = newest().await;
    let last = notices.last().unwrap();
    let base = last.base.expect("the last snapshot says what has changed");
    assert!(world.blobs.contains(base).await.unwrap());

    world.blobs.remove(last.hash).await.unwrap();
    let drain = world.start().await;
    world.fix(4, 240.0).await;
    world.shows(delivery.key, 240.0).await;
    assert!(drain.stop(Duration::from_secs(20)).await);
    world.assert_gapless(1).await;

    for notice in newest().await {
        for body in notice.base.into_iter().chain([notice.hash]) {
            world.blobs.remove(body).await.unwrap();
        }
    }
    let drain = world.start().await;
    world.fix(5, 300.0).await;
    world.shows(delivery.key, 300.0).await;
    eventually("all fixes are in history", async || world.trail().await.len() == 6).await;
    world.assert_gapless(2).await;
    assert!(drain.stop(Duration::from_secs(20)).await);
    assert_eq!(drain.failure(), None);
}

/// Swept as if everything were old, while nobody runs: what the next owner needs is still there, and all else is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_leaves_what_the_next_owner_needs_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::open(folder.path()).await;
    let city = import_bytes(&town::extract(&TownOptions::default()), &ImportOptions::default()).unwrap();
    let map = folder.path().join("town.wfm");
    std::fs::write(&map, &city).unwrap();
    let drain = world.start_on(Some(map.clone()), None).await;
    let delivery = world.ready_delivery().await;
    world.fix(0, 0.0).await;
    eventually("the dot is shown", async || {
        world.live(delivery.key).await.is_some_and(|view| view.view.position.is_some())
    })
    .await;
    let stop = tokio_util::sync::CancellationToken::new();
    let names_the_map = async || {
        let mut is_named = false;
        for hash in named_snapshots(&*world.log).await.unwrap() {
            let body = world.blobs.get(hash).await.unwrap_or_default();
            is_named |= body.windows(32).any(|window| window == hash_of(&city).0);
        }
        is_named
    };
    eventually("a snapshot names the map", names_the_map).await;
    assert!(drain.stop(Duration::from_secs(20)).await);
    let garbage = world.blobs.put(Bytes::from_static(b"a table that nobody offers any more")).await.unwrap();
    let before = world.blobs.list(None, 1_000).await.unwrap();
    let nothing_is_young = Ages { safe: Duration::ZERO, young: Duration::ZERO };

    let swept = sweep(&*world.log, &*world.blobs, nothing_is_young, &stop).await.unwrap();

    let after = world.blobs.list(None, 1_000).await.unwrap();
    assert_eq!(before.len() - after.len(), swept.removed as usize);
    assert!(swept.removed >= 1 && !world.blobs.contains(garbage).await.unwrap());
    assert!(world.blobs.contains(hash_of(&city)).await.unwrap());
    for hash in named_snapshots(&*world.log).await.unwrap() {
        assert!(world.blobs.contains(hash).await.unwrap());
    }
    let drain = world.start_on(None, None).await;
    world.fix(1, 30.0).await;
    eventually("the dot moved", async || {
        let view = world.live(delivery.key).await;
        view.is_some_and(|view| view.view.position.is_some_and(|p| p.event_time > world.began))
    })
    .await;
    world.assert_gapless(1).await;
    assert!(drain.stop(Duration::from_secs(20)).await);
    assert_eq!(drain.failure(), None);
}

#[test]
fn killed_at_any_time_no_fix_is_lost_and_none_is_counted_twice() {
    let folder = tempfile::tempdir().unwrap();
    let outer = tokio::runtime::Runtime::new().unwrap();
    let world = Arc::new(outer.block_on(World::open(folder.path())));
    let delivery = outer.block_on(world.ready_delivery());
    for round in 0..4_u64 {
        let inner = tokio::runtime::Runtime::new().unwrap();
        let starting = world.clone();
        let _drain = inner.block_on(async move { starting.start().await });
        outer.block_on(async {
            for i in 0..5 {
                let number = round * 5 + i;
                world.fix(number, 15.0 * number as f64).await;
                tokio::time::sleep(Duration::from_millis(60 * round)).await;
            }
        });
        inner.shutdown_background(); // no stop, no last snapshot: as a kill
    }

    outer.block_on(async {
        let drain = world.start().await;
        eventually("all fixes are in history", async || world.trail().await.len() == 20).await;
        eventually("the dot is at the last", async || {
            let view = world.live(delivery.key).await;
            view.is_some_and(|view| view.view.position.is_some_and(|p| p.position == east(15.0 * 19.0)))
        })
        .await;
        world.assert_gapless(1).await;
        assert!(drain.stop(Duration::from_secs(20)).await);
        assert_eq!(drain.failure(), None);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_move_to_a_processor_that_joins_and_back_and_nothing_is_told_twice_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::open(folder.path()).await;
    let first = world.start().await;
    let delivery = world.ready_delivery().await;
    for i in 0..5 {
        world.fix(i, 15.0 * i as f64).await;
    }

    let second = world.start().await;
    for i in 5..10 {
        world.fix(i, 15.0 * i as f64).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(first.stop(Duration::from_secs(20)).await);
    for i in 10..15 {
        world.fix(i, 15.0 * i as f64).await;
    }

    eventually("the dot is at the last", async || {
        let view = world.live(delivery.key).await;
        view.is_some_and(|view| view.view.position.is_some_and(|p| p.position == east(15.0 * 14.0)))
    })
    .await;
    eventually("all fixes are in history", async || world.trail().await.len() == 15).await;
    world.assert_gapless(1).await;
    assert!(second.stop(Duration::from_secs(20)).await);
    assert_eq!((first.failure(), second.failure()), (None, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_cannot_be_read_is_passed_by() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::open(folder.path()).await;
    let drain = world.start().await;
    world.append(DRIVER.into(), Bytes::from_static(b"W no envelope")).await;

    world.fix(0, 0.0).await;

    eventually("the fix is in history", async || world.trail().await.len() == 1).await;
    assert_eq!(drain.failure(), None);
    assert!(drain.stop(Duration::from_secs(20)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_map_an_outside_router_says_the_way_and_whatever_it_does_nobody_waits_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::open(folder.path()).await;
    let service = Arc::new(FirstNever::default());
    let drain = world.start_with(Some(RouteServiceConfig { service: service.clone(), asked_max: 2 })).await;
    let delivery = world.ready_delivery().await;
    let basis = async || world.live(delivery.key).await.and_then(|view| view.view.eta).map(|eta| eta.basis);

    world.fix(0, -3_000.0).await;
    eventually("there is an arrival time without the router", async || basis().await == Some(EtaBasis::StraightLine))
        .await;
    eventually("the router was asked", async || service.asked.load(Ordering::SeqCst) == 1).await;
    // Half a minute later the way is wished for again, though the first question is still open.
    world.fix(8, -2_900.0).await;

    eventually("the router's way is the plan", async || basis().await == Some(EtaBasis::Road)).await;
    let view = world.live(delivery.key).await.unwrap().view;
    let plan = view.plan.expect("a plan");
    assert_eq!((plan.points.len(), plan.length_m, plan.duration_s), (3, 3_000, 600));
    assert!(drain.stop(Duration::from_secs(20)).await);
    assert_eq!(drain.failure(), None);
}

/// Never answers the first question; to others the way there in three points, 5 m/s.
#[derive(Default)]
struct FirstNever {
    asked: AtomicU32,
}

#[async_trait]
impl RouteService for FirstNever {
    async fn route(&self, from: Position, to: Position, _: Vehicle) -> Result<Vec<PlannedPoint>, RouteServiceError> {
        if self.asked.fetch_add(1, Ordering::SeqCst) == 0 {
            return std::future::pending().await;
        }
        let middle = Position { lat_e7: from.lat_e7, lon_e7: from.lon_e7.midpoint(to.lon_e7) };
        let point =
            |position, share: u32| PlannedPoint { position, along_cm: 150_000 * share, along_ms: 300_000 * share };
        Ok(vec![point(from, 0), point(middle, 1), point(to, 2)])
    }
}

/// A log, its stores, and processors that come and go.
struct World {
    log: Arc<EmbeddedLog>,
    blobs: Arc<FolderBlobStore>,
    live_store: Arc<MemoryLiveStore>,
    trail_store: Arc<EmbeddedTrailStore>,
    ledger: Arc<EmbeddedLedger>,
    registry: Arc<EmbeddedRegistry>,
    folder: PathBuf,
    began: Time,
}

impl World {
    async fn open(folder: &Path) -> World {
        let config = EmbeddedLogConfig { partitions: 3, ..EmbeddedLogConfig::default() };
        World {
            log: Arc::new(EmbeddedLog::open(folder.join("log"), config).unwrap()),
            blobs: Arc::new(FolderBlobStore::open(folder.join("blobs")).unwrap()),
            live_store: Arc::new(MemoryLiveStore::new(1_000, &Meter::discard())),
            trail_store: Arc::new(EmbeddedTrailStore::open(&folder.join("trail.db")).unwrap()),
            ledger: Arc::new(EmbeddedLedger::open(&folder.join("ledger.db")).unwrap()),
            registry: Arc::new(EmbeddedRegistry::open(&folder.join("registry.db"), TokenKeys::new([])).unwrap()),
            folder: folder.to_path_buf(),
            began: Time(Clock::system().now_ms() - 100_000),
        }
    }

    async fn start(&self) -> Drain {
        self.start_with(None).await
    }

    async fn start_with(&self, route_service: Option<RouteServiceConfig>) -> Drain {
        self.start_on(None, route_service).await
    }

    async fn start_on(&self, map: Option<PathBuf>, route_service: Option<RouteServiceConfig>) -> Drain {
        let settings = ProcessorSettings { snapshot_every_s: 1, ..ProcessorSettings::default() };
        let config = settings.check(&self.folder).unwrap();
        let parts = ProcessorParts {
            log: self.log.clone(),
            decoded: DecodedUpdates::of(&*self.log),
            blobs: self.blobs.clone(),
            live_store: self.live_store.clone(),
            trail_store: self.trail_store.clone(),
            ledger: self.ledger.clone(),
            registry: self.registry.clone(),
            route_service,
            map,
        };
        let drain = Drain::default();
        let context = ProcessContext {
            clock: Clock::system(),
            meter: Meter::discard(),
            readiness: Readiness::default(),
            drain: drain.clone(),
        };
        start(config, parts, &context).await.unwrap();
        drain
    }

    /// Ready, pickup where the driver begins, drop-off 5 km east.
    async fn ready_delivery(&self) -> Delivery {
        let stop = |kind, east_m| Stop { kind, position: east(east_m), radius_m: 130, label: String::new() };
        let new = NewDelivery {
            tenant: DRIVER.tenant,
            id: None,
            stops: vec![stop(StopKind::Pickup, 0.0), stop(StopKind::DropOff, 5_000.0)],
            policy: DeliveryPolicy::default(),
            reference: String::new(),
            driver: Some(DRIVER.driver),
        };
        let delivery = self.ledger.create(new, None, self.began).await.unwrap();
        for state in [DeliveryState::Accepted, DeliveryState::Preparing, DeliveryState::Ready] {
            self.ledger.transition(delivery.key, state, None, None, self.began).await.unwrap();
        }
        self.relay().await;
        delivery
    }

    async fn relay(&self) {
        for row in self.ledger.outbox(100).await.unwrap() {
            let key = row.record.key().unwrap();
            self.append(key, envelope::encode(&RecordBatch { records: vec![row.record] }).into()).await;
            self.ledger.outbox_settled(&[row.sequence]).await.unwrap();
        }
    }

    /// Measured and received 4 s after the one before.
    async fn fix(&self, number: u64, east_m: f64) {
        let at = Time(self.began.0 + 4_000 * number as i64);
        let record = Record::Fix(FixRecord {
            device: DeviceKey { tenant: DRIVER.tenant, driver: DRIVER.driver, device: DeviceNumber(1) },
            session_start: 1,
            number: Some(FixNumber(number + 1)),
            lowest_held: FixNumber(0),
            edge: EdgeId(1),
            door: Door::Udp,
            received: at,
            fix: Fix { accuracy_m: Some(5), ..Fix::at(MeasuredTime::from_time(at), east(east_m)) },
            verdict: Verdict::Accepted,
        });
        self.append(DRIVER.into(), envelope::encode(&RecordBatch { records: vec![record] }).into()).await;
    }

    async fn append(&self, key: TrackerKey, value: Bytes) {
        let partition = partition_of(&key.key_bytes(), self.log.partition_count(Topic::Records));
        let entry = Append { topic: Topic::Records, partition, key: Bytes::new(), value };
        self.log.append(&[entry]).await.into_offsets().unwrap();
    }

    async fn live(&self, key: DeliveryKey) -> Option<LiveView> {
        self.live_store.delivery(key, Time(Clock::system().monotonic_ms())).await.unwrap()
    }

    async fn shows(&self, key: DeliveryKey, east_m: f64) {
        eventually("the dot moved", async || {
            let view = self.live(key).await;
            view.is_some_and(|view| view.view.position.is_some_and(|p| p.position == east(east_m)))
        })
        .await;
    }

    async fn records_end(&self, partition: PartitionId) -> protocol::Offset {
        self.log.range(Topic::Records, partition).await.unwrap().next
    }

    async fn trail(&self) -> Vec<protocol::Breadcrumb> {
        let query = TrailQuery { from: Time(0), until: Time(i64::MAX / 1_000), limit: 1_000 };
        self.trail_store.driver_trail(DRIVER, query).await.unwrap()
    }

    async fn read_all(&self, topic: Topic) -> Vec<Bytes> {
        let mut values = Vec::new();
        for partition in (0..self.log.partition_count(topic)).map(PartitionId) {
            let range = self.log.range(topic, partition).await.unwrap();
            let entries = read_range(&*self.log, topic, partition, range).await.unwrap();
            values.extend(entries.into_iter().map(|entry| entry.value));
        }
        values
    }

    /// Of each delivery the updates of each epoch are numbered without gaps, a repeated number says the same, and there
    /// are so many epochs at most.
    async fn assert_gapless(&self, epochs_max: usize) {
        let mut told: BTreeMap<(DeliveryKey, Epoch), BTreeMap<u64, protocol::DeliveryUpdate>> = BTreeMap::new();
        for value in self.read_all(Topic::Updates).await {
            let batch: UpdateBatch = envelope::decode(&value).unwrap();
            for update in batch.updates {
                let Update::Delivery(update) = update else { continue };
                let numbers = told.entry((update.key, update.epoch)).or_default();
                let before = numbers.insert(update.number, update.clone());
                assert!(before.is_none_or(|before| before == update), "another update of the same number");
            }
        }
        assert!(!told.is_empty() && told.len() <= epochs_max, "{} epochs", told.len());
        for numbers in told.values() {
            assert_eq!(numbers.keys().copied().collect::<Vec<_>>(), (1..=numbers.len() as u64).collect::<Vec<_>>());
        }
    }
}

fn east(metres: f64) -> Position {
    let plane = geo::Plane::at(Position { lat_e7: 411_500_000, lon_e7: -86_100_000 });
    plane.to_position((metres * 100.0, 0.0))
}

async fn eventually(what: &str, is_so: impl AsyncFn() -> bool) {
    for _ in 0..600 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not within 30 s: {what}");
}
