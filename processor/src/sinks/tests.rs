//! What sinks say of a log and of stores that are not as they left them, over the real ones.

use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};

use backends::ledger::embedded::EmbeddedLedger;
use backends::live_store::embedded::MemoryLiveStore;
use backends::log::Append;
use backends::log::embedded::{EmbeddedLog, EmbeddedLogConfig};
use backends::trail_store::embedded::{EmbeddedTrailConfig, EmbeddedTrailStore};
use backends::trail_store::{TrailPlace, TrailQuery, TrailStore};
use bytes::Bytes;
use daemon::Meter;
use daemon::meter::Exposition;
use protocol::record::Door;
use protocol::update::{BreadcrumbBatch, DeliveryBody, DeliveryView, Epoch, Event, Generation, Source};
use protocol::{
    AssignmentNumber, Breadcrumb, Delivery, DeliveryId, DeliveryKey, DeliveryPolicy, DeliveryState, DeliveryUpdate,
    DeviceKey, DeviceNumber, DriverId, EdgeId, Fix, FixNumber, FixRecord, JournalEntry, JournalKind, JournalNumber,
    MeasuredTime, Position, TenantId, Update, Verdict,
};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn every_sink_counts_and_says_what_was_gone_before_it_took_it() {
    let folder = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicI64::new(1_800_000_000_000));
    let log = open_log(folder.path(), now.clone());
    let trail_store = Arc::new(EmbeddedTrailStore::open(&folder.path().join("trail")).unwrap());
    for group in [Live::GROUP, Events::GROUP, Clerk::GROUP] {
        commit_at(&log, group, Offset(10)).await;
    }
    let place = TrailPlace { incarnation: log.incarnation(), offset: Offset(10) };
    trail_store.append(PartitionId(0), Vec::new(), place).await.unwrap();
    append(&log, 50, |_| Vec::new()).await;
    now.fetch_add(100 * 3_600_000, Ordering::SeqCst);
    append(&log, 1, |_| Vec::new()).await;
    for topic in [Topic::Updates, Topic::Trail] {
        until(async || log.range(topic, PartitionId(0)).await.unwrap().first == Offset(50)).await;
    }

    let world = World::new(&log);
    world.start(Live { store: Arc::new(MemoryLiveStore::new(10, &Meter::discard())), views_max: 10 });
    world.start(Events { views_max: 10, of_movement: true });
    world.start(Clerk { ledger: Arc::new(EmbeddedLedger::open(&folder.path().join("ledger.db")).unwrap()) });
    world.start(Trail { store: trail_store });

    for sink in [Live::GROUP, Events::GROUP, Clerk::GROUP, Trail::GROUP] {
        let lost = format!("wayfix_processor_sink_entries_lost_total{{sink=\"{sink}\"}} 40");
        until(async || world.exposition.render().contains(&lost)).await;
        assert!(world.says(&format!("{sink}: degraded")), "{}", world.parts.metrics.readiness.describe());
    }
    world.drain.stop(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_beyond_the_logs_end_is_said_and_all_that_the_log_holds_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let log = open_log(folder.path(), Arc::new(AtomicI64::new(1_800_000_000_000)));
    let trail_store = Arc::new(EmbeddedTrailStore::open(&folder.path().join("trail")).unwrap());
    let place = TrailPlace { incarnation: log.incarnation(), offset: Offset(5_000) };
    trail_store.append(PartitionId(0), Vec::new(), place).await.unwrap();
    commit_at(&log, Clerk::GROUP, Offset(5_000)).await;
    append(&log, 3, |n| vec![crumb(n)]).await;

    let world = World::new(&log);
    world.start(Trail { store: trail_store.clone() });
    world.start(Clerk { ledger: Arc::new(EmbeddedLedger::open(&folder.path().join("ledger.db")).unwrap()) });

    until(async || trail_of(&trail_store).await == 3).await;
    until(async || world.says("trail: degraded") && world.says("clerk: degraded")).await;
    until(async || log.committed(Clerk::GROUP, Topic::Updates, PartitionId(0)).await.unwrap() == Some(Offset(3))).await;
    world.drain.stop(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_history_is_said_and_ends_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let log = open_log(folder.path(), Arc::new(AtomicI64::new(1_800_000_000_000)));
    let trail = folder.path().join("trail");
    let config = EmbeddedTrailConfig { pending_bytes_max: 1, ..EmbeddedTrailConfig::default() };
    let store = Arc::new(EmbeddedTrailStore::open_with(&trail, config).unwrap());
    std::fs::rename(trail.join("index.db"), trail.join("elsewhere")).unwrap();
    let world = World::new(&log);

    world.start(Trail { store: store.clone() });
    append(&log, 1, |_| vec![crumb(0)]).await;
    until(async || trail_of(&store).await == 1).await;
    append(&log, 1, |_| vec![crumb(1)]).await;

    until(async || world.exposition.render().contains("wayfix_processor_history_damaged_total 1")).await;
    assert!(world.says("trail: degraded, history is damaged"), "{}", world.parts.metrics.readiness.describe());
    assert!(!world.drain.token().is_cancelled(), "the process goes on");
    world.drain.stop(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_processor_says_again_from_an_old_snapshot_is_not_told_again_though_the_sink_begins_anew_too() {
    let folder = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicI64::new(1_800_000_000_000));
    let log = open_log(folder.path(), now.clone());
    let said: Vec<Update> = (0..4).map(|n| ended(Source { offset: Offset(10 + n), ..source() })).collect();
    let world = World::new(&log);
    world.start(Events { views_max: 10, of_movement: true });
    for update in &said {
        say(&log, update.clone()).await;
    }
    for second in 0..60 {
        now.fetch_add(20_000, Ordering::SeqCst);
        let at = Time(now.load(Ordering::SeqCst));
        say(&log, Update::Heartbeat { source: PartitionId(3), offset: Offset(20 + second), at }).await;
    }
    until(async || event_ids(&log).await.len() == 4).await;
    until(async || log.committed(Events::GROUP, Topic::Updates, PartitionId(0)).await.unwrap() == Some(Offset(64)))
        .await;
    world.drain.stop(Duration::from_secs(5)).await;

    // Both died. The newest snapshot that can be used is 20 minutes old.
    let world = World::new(&log);
    world.start(Events { views_max: 10, of_movement: true });
    for update in &said {
        say(&log, update.clone()).await;
    }
    say(&log, ended(Source { offset: Offset(90), ..source() })).await;

    until(async || event_ids(&log).await.contains(&"7-90-journal-1".to_string())).await;
    let ids = event_ids(&log).await;
    assert_eq!(ids.len(), 5, "{ids:?}");
    world.drain.stop(Duration::from_secs(5)).await;
}

fn source() -> Source {
    Source { partition: PartitionId(3), ..Source::default() }
}

/// The first and last update of a delivery that is numbered as its record.
fn ended(source: Source) -> Update {
    let key = DeliveryKey { tenant: TenantId(7), delivery: DeliveryId(source.offset.0) };
    let kind = JournalKind::Status { status: DeliveryState::Failed, reason: None };
    let entry = JournalEntry { number: JournalNumber(1), at: Time(0), kind };
    let delivery = Delivery {
        key,
        state: DeliveryState::Failed,
        assignment: AssignmentNumber(1),
        driver: None,
        stops: Vec::new(),
        policy: DeliveryPolicy::default(),
        journal: vec![entry.clone()],
        reference: String::new(),
        created: Time(0),
    };
    let view = DeliveryView { delivery, position: None, progress: None, eta: None, plan: None, silent: None };
    Update::Delivery(DeliveryUpdate {
        key,
        epoch: Epoch { generation: Generation { incarnation: 1, claim: Offset(1) }, ..Epoch::default() },
        number: 1,
        source,
        at: Time(1_800_000_000_000),
        events: vec![Event::Journal { entry }],
        body: DeliveryBody::Keyframe { view: Box::new(view) },
        is_last: true,
    })
}

async fn say(log: &EmbeddedLog, update: Update) {
    let value = envelope::encode(&UpdateBatch { updates: vec![update] }).into();
    let entry = Append { topic: Topic::Updates, partition: PartitionId(0), key: Bytes::new(), value };
    log.append(&[entry]).await.into_offsets().unwrap();
}

async fn event_ids(log: &EmbeddedLog) -> Vec<String> {
    let range = log.range(Topic::Events, PartitionId(0)).await.unwrap();
    let entries = read_range(log, Topic::Events, PartitionId(0), range).await.unwrap();
    entries.iter().filter_map(|entry| cloud_event::id_of(&entry.value)).collect()
}

struct World {
    parts: SinkParts,
    exposition: Exposition,
    drain: Drain,
}

impl World {
    fn new(log: &Arc<EmbeddedLog>) -> World {
        let (meter, exposition) = Meter::prometheus();
        let parts = SinkParts {
            log: log.clone(),
            clock: Clock::system(),
            metrics: ProcessorMetrics::new(&meter),
            decoded: DecodedUpdates::new(1),
        };
        World { parts, exposition, drain: Drain::default() }
    }

    fn start<S: Sink>(&self, sink: S) {
        start(sink, self.parts.clone(), &self.drain, S::GROUP);
    }

    fn says(&self, what: &str) -> bool {
        self.parts.metrics.readiness.describe().contains(what)
    }
}

fn open_log(folder: &Path, now: Arc<AtomicI64>) -> Arc<EmbeddedLog> {
    let config = EmbeddedLogConfig {
        partitions: 1,
        expire_every: Duration::from_millis(20),
        now: Arc::new(move || Time(now.load(Ordering::SeqCst))),
        ..EmbeddedLogConfig::default()
    };
    Arc::new(EmbeddedLog::open(folder.join("log"), config).unwrap())
}

/// So many entries of both topics that sinks read.
async fn append(log: &EmbeddedLog, count: i64, crumbs: impl Fn(i64) -> Vec<Breadcrumb>) {
    for n in 0..count {
        let entry =
            |topic, value: Vec<u8>| Append { topic, partition: PartitionId(0), key: Bytes::new(), value: value.into() };
        let updates = entry(Topic::Updates, envelope::encode(&UpdateBatch { updates: Vec::new() }));
        let trail = entry(Topic::Trail, envelope::encode(&BreadcrumbBatch { breadcrumbs: crumbs(n) }));
        log.append(&[updates, trail]).await.into_offsets().unwrap();
    }
}

async fn commit_at(log: &EmbeddedLog, group: &str, next: Offset) {
    let stop = CancellationToken::new();
    let work = |holding: Holding| {
        let stop = stop.clone();
        async move {
            holding.commit(next).await.unwrap();
            stop.cancel();
            Ok(())
        }
    };
    share(log, group, Topic::Updates, &stop, work).await.unwrap();
}

fn crumb(n: i64) -> Breadcrumb {
    let measured = Time(1_800_000_000_000 + 4_000 * n);
    let position = Position { lat_e7: 411_500_000, lon_e7: -86_100_000 };
    let record = FixRecord {
        device: DeviceKey { tenant: DRIVER.tenant, driver: DRIVER.driver, device: DeviceNumber(1) },
        session_start: 1,
        number: Some(FixNumber(n as u64 + 1)),
        lowest_held: FixNumber(0),
        edge: EdgeId(1),
        door: Door::Udp,
        received: measured,
        fix: Fix::at(MeasuredTime::from_time(measured), position),
        verdict: Verdict::Accepted,
    };
    Breadcrumb { record, verdict: Verdict::Accepted, snapped: None, delivery: None, source: Source::default() }
}

async fn trail_of(store: &EmbeddedTrailStore) -> usize {
    let query = TrailQuery { from: Time(0), until: Time(i64::MAX / 1_000), limit: 100 };
    store.driver_trail(DRIVER, query).await.unwrap().len()
}

async fn until(is_so: impl AsyncFn() -> bool) {
    for _ in 0..1_000 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it does not come about");
}

const DRIVER: protocol::DriverKey = protocol::DriverKey { tenant: TenantId(7), driver: DriverId(1) };
