//! Ten days of a partition's life, with upgrades between: what is shown never goes back, no event is sent twice, and
//! nothing that registry and ledger know is lost. The log, the stores, taking over and the sink of events are the real
//! ones; time is an argument, and what another build would have written is made of what this one writes, byte by byte.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use backends::blob_store::BlobStore;
use backends::blob_store::embedded::FolderBlobStore;
use backends::control::{Secret, TokenKeyId, TokenKeys};
use backends::ledger::embedded::EmbeddedLedger;
use backends::ledger::{DeliveryLedger, NewDelivery};
use backends::log::embedded::{EmbeddedLog, EmbeddedLogConfig};
use backends::log::{Append, DecodedUpdates, Log, ReadLimit, StoredEntry, Topic};
use backends::registry::Registry;
use backends::registry::embedded::EmbeddedRegistry;
use bytes::Bytes;
use daemon::admin::Readiness;
use daemon::{Clock, Drain, Meter};
use protocol::envelope::Frames;
use protocol::record::{Door, OwnerId, Vehicle};
use protocol::update::{BreadcrumbBatch, DriverBody, DriverView, Generation};
use protocol::{
    DeliveryKey, DeliveryPolicy, DeliveryState, DeviceKey, DriverKey, EdgeId, Fix, FixNumber, FixRecord, LiveView,
    MeasuredTime, Offset, PartitionId, Position, Record, RecordBatch, Stop, StopKind, Time, TrackerKey, Update,
    UpdateBatch, Verdict, envelope, partition_of,
};
use tokio_util::sync::CancellationToken;

use super::shard::facts::{FactSources, Held, append_facts};
use super::shard::restore::{Restored, restore};
use super::shard::tell::{SnapshotPlace, keep};
use super::shard::updates_partition;
use super::shard::{KeptSnapshots, LocalBodies, OutsidePlanner, Shards};
use super::sinks::{Events, Reader, Sink, Work};
use super::track::{Effects, NoBodies, Partition};
use super::{ProcessorMetrics, ProcessorSettings};

const HOUR: i64 = 3_600_000;
const PARTITIONS: u32 = 2;
const DRIVERS: usize = 6;

#[tokio::test(flavor = "multi_thread")]
async fn ten_days_with_three_upgrades_and_one_release_back_lose_nothing_and_say_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let mut life = Life::begin(folder.path()).await;
    // An older fold version.
    life.build = Build { fold_version_step: 1, ..Build::default() };
    life.take_over().await;
    life.live(48).await;

    // Another fold version, in the middle of an hour: half of it was told by the build before, none is in its snapshot.
    life.stop_in_the_middle_of_an_hour().await;
    life.build = Build { format: Some(9), ..Build::default() };
    life.take_over().await;
    life.live(84).await;

    // Another format, which this build cannot read; no snapshot of before is left, nor are the records of the first days.
    life.stop_in_the_middle_of_an_hour().await;
    life.until_expired().await;
    life.build = Build { fold_version_step: 7, is_next_release: true, ..Build::default() };
    life.take_over().await;
    life.live(36).await;

    // Records of another version come, and snapshots with more in them; then back one release.
    life.stop_in_the_middle_of_an_hour().await;
    life.build = Build { is_next_release: true, ..Build::default() };
    life.take_over().await;
    life.live(72).await;

    life.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn away_for_longer_than_the_log_is_kept_what_ended_meanwhile_does_not_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut life = Life::begin(folder.path()).await;
    life.take_over().await;
    life.live(6).await;
    let ended = life.of_today.unwrap();
    let moved = life.moving;

    // Nobody folds; edges and ledger go on, and what they said in the first hours is gone from the log.
    life.owners.clear();
    life.ledger.transition(ended, DeliveryState::Failed, None, None, life.time()).await.unwrap();
    life.of_today = None;
    let driver = life.drivers[5].driver;
    life.ledger.assign(moved, Some(driver), None, life.time()).await.unwrap();
    life.relay().await;
    for _ in 0..100 {
        life.records_of_an_hour().await;
    }
    life.until_expired().await;
    life.take_over().await;
    life.live(3).await;

    life.has_gap = true;
    life.check().await;
}

/// What a build writes differently from this one.
#[derive(Clone, Copy, Default)]
struct Build {
    /// Added to the fold version in its snapshots.
    fold_version_step: u32,
    /// Its snapshots say this format.
    format: Option<u16>,
    /// Its records are framed, with kinds that this build does not know; its snapshots have fields and parts more.
    is_next_release: bool,
}

impl Build {
    fn snapshot(&self, partition: &Partition) -> Vec<u8> {
        let mut body = match self.is_next_release {
            true => partition.snapshot_of_next_release().unwrap(),
            false => partition.snapshot().unwrap(),
        };
        let fold_version = super::track::FOLD_VERSION + self.fold_version_step;
        body[4..8].copy_from_slice(&fold_version.to_le_bytes());
        if let Some(format) = self.format {
            body[2..4].copy_from_slice(&format.to_le_bytes());
        }
        body
    }

    fn records(&self, records: Vec<Record>) -> Bytes {
        if !self.is_next_release {
            return envelope::encode(&RecordBatch { records }).into();
        }
        let mut frames = Frames::default();
        frames.push_bytes(1, &[200, 7, 7]);
        records.iter().for_each(|record| frames.push(record));
        frames.push_bytes(2, b"a known kind in a later version");
        frames.seal_records().into()
    }
}

/// One owner of one partition.
struct Owner {
    id: OwnerId,
    own: Generation,
    partition: Partition,
    kept: KeptSnapshots,
}

struct Life {
    log: Arc<EmbeddedLog>,
    ledger: Arc<EmbeddedLedger>,
    registry: Arc<EmbeddedRegistry>,
    shards: Arc<Shards>,
    now: Arc<AtomicI64>,
    build: Build,
    owners: BTreeMap<PartitionId, Owner>,
    owners_ever: u64,
    drivers: Vec<DeviceKey>,
    /// Under way from the first hour to the last.
    long: DeliveryKey,
    /// Given from driver to driver.
    moving: DeliveryKey,
    of_today: Option<DeliveryKey>,
    finished: BTreeSet<DeliveryKey>,
    minutes: u64,
    number: u64,
    fixes: u64,
    /// Records were lost before anybody folded them.
    has_gap: bool,
    /// Where the sink of events has come to.
    committed: BTreeMap<PartitionId, Offset>,
    readers: Readers,
    stop: CancellationToken,
}

impl Life {
    async fn begin(folder: &Path) -> Life {
        let now = Arc::new(AtomicI64::new(1_800_000_000_000));
        let clock = now.clone();
        let month = Duration::from_secs(30 * 86_400);
        let config = EmbeddedLogConfig {
            partitions: PARTITIONS,
            retention: [(Topic::Events, month), (Topic::Trail, month)].into(),
            expire_every: Duration::from_millis(20),
            now: Arc::new(move || Time(clock.load(Ordering::SeqCst))),
            ..EmbeddedLogConfig::default()
        };
        let log = Arc::new(EmbeddedLog::open(folder.join("log"), config).unwrap());
        let ledger = Arc::new(EmbeddedLedger::open(&folder.join("ledger.db")).unwrap());
        let registry = Arc::new(
            EmbeddedRegistry::open(&folder.join("registry.db"), TokenKeys::new([(TokenKeyId(0), Secret::random())]))
                .unwrap(),
        );
        let blobs: Arc<dyn BlobStore> = Arc::new(FolderBlobStore::open(folder.join("blobs")).unwrap());
        let stop = CancellationToken::new();
        let metrics = ProcessorMetrics::new(&Meter::discard());
        let facts = FactSources { ledger: ledger.clone(), registry: registry.clone() };
        let shelf = Arc::new(LocalBodies::new(blobs.clone(), folder.join("maps"), stop.clone()));
        let system = Clock::system();
        let planner = OutsidePlanner::start(None, log.clone(), system, metrics.clone(), &Drain::default());
        let config = ProcessorSettings::default().check(folder).unwrap();
        let seams = (log.clone() as Arc<dyn Log>, blobs, facts);
        let shards = Shards::new(config, seams, (shelf, planner), None, system, metrics, Readiness::default());
        let at = Time(now.load(Ordering::SeqCst));
        let policy = DeliveryPolicy::default();
        let (tenant, _) = registry.create_tenant("a", policy, at).await.unwrap();
        let mut drivers = Vec::new();
        for i in 0..DRIVERS {
            let vehicle = if i % 2 == 0 { Vehicle::Car } else { Vehicle::Bicycle };
            let driver = registry.create_driver(tenant.id, "", "", vehicle, at).await.unwrap();
            registry.enrol(tenant.id, driver.id, at).await.unwrap();
            let (device, _) = registry.enrol(tenant.id, driver.id, at).await.unwrap();
            registry.lead(device, at).await.unwrap();
            drivers.push(device);
        }
        let mut life = Life {
            long: DeliveryKey { tenant: tenant.id, delivery: Default::default() },
            moving: DeliveryKey { tenant: tenant.id, delivery: Default::default() },
            log,
            ledger,
            registry,
            shards,
            now,
            build: Build::default(),
            owners: BTreeMap::new(),
            owners_ever: 0,
            drivers,
            of_today: None,
            finished: BTreeSet::new(),
            minutes: 0,
            number: 0,
            fixes: 0,
            has_gap: false,
            committed: BTreeMap::new(),
            readers: Readers::default(),
            stop,
        };
        life.long = life.create(0).await;
        life.moving = life.create(1).await;
        life.relay().await;
        life
    }

    fn time(&self) -> Time {
        Time(self.now.load(Ordering::SeqCst))
    }

    async fn create(&self, driver: usize) -> DeliveryKey {
        let stop = |kind, km| Stop { kind, position: place(km), radius_m: 100, label: String::new() };
        let new = NewDelivery {
            tenant: self.drivers[driver].tenant,
            id: None,
            stops: vec![stop(StopKind::Pickup, 1.0), stop(StopKind::DropOff, 4.0)],
            policy: DeliveryPolicy { expected_interval_s: 120, ..DeliveryPolicy::default() },
            reference: String::new(),
            driver: Some(self.drivers[driver].driver),
        };
        let delivery = self.ledger.create(new, None, self.time()).await.unwrap();
        delivery.key
    }

    /// What the relay does.
    async fn relay(&self) {
        let mut rows = Vec::new();
        for row in self.registry.outbox(1_000).await.unwrap() {
            self.registry.outbox_settled(&[row.sequence]).await.unwrap();
            rows.push(row.record);
        }
        for row in self.ledger.outbox(1_000).await.unwrap() {
            self.ledger.outbox_settled(&[row.sequence]).await.unwrap();
            rows.push(row.record);
        }
        let entries: Vec<Append> = rows
            .into_iter()
            .map(|record| {
                let partition = partition_of(&record.key().unwrap().key_bytes(), PARTITIONS);
                self.records(partition, vec![record])
            })
            .collect();
        self.log.append(&entries).await.into_offsets().unwrap();
    }

    fn records(&self, partition: PartitionId, records: Vec<Record>) -> Append {
        Append { topic: Topic::Records, partition, key: Bytes::new(), value: self.build.records(records) }
    }

    /// As a shard does it: claim, restore, fold up to the claim, facts.
    async fn take_over(&mut self) {
        for partition in (0..PARTITIONS).map(PartitionId) {
            self.owners_ever += 1;
            let id = OwnerId(self.owners_ever);
            let incarnation = self.log.incarnation();
            let claim = vec![Record::Claim { owner: id, at: self.time(), incarnation }];
            let claim = self.log.append(&[self.records(partition, claim)]).await;
            let offsets = claim.into_offsets().unwrap();
            let own = Generation { incarnation, claim: offsets[0] };
            let restored = restore(&self.shards, partition, own, &self.stop).await.unwrap();
            let Restored { partition: restored, kept, .. } = restored;
            self.owners.insert(partition, Owner { id, own, partition: restored, kept });
            self.fold(partition, u64::MAX).await;
            let now = self.time();
            let owner = self.owners.get_mut(&partition).unwrap();
            if owner.partition.needs_facts() {
                let held = Held::of(&owner.partition);
                let seams = (&*self.log as &dyn Log, &self.shards.facts);
                append_facts(seams, partition, held, &|| now, &self.stop).await.unwrap();
                owner.partition.set_facts_due(false);
                self.fold(partition, u64::MAX).await;
            }
        }
        self.readers.read(&self.log).await;
        // The sink begins anew with the process.
        self.send_events().await;
    }

    async fn live(&mut self, hours: u64) {
        for _ in 0..hours {
            self.begin_and_end_deliveries().await;
            self.records_of_an_hour().await;
            for partition in (0..PARTITIONS).map(PartitionId) {
                self.fold(partition, u64::MAX).await;
                self.keep_snapshot(partition).await;
            }
            self.readers.read(&self.log).await;
            self.send_events().await;
        }
    }

    /// Half of what came in was folded and told when the process died.
    async fn stop_in_the_middle_of_an_hour(&mut self) {
        self.records_of_an_hour().await;
        for partition in (0..PARTITIONS).map(PartitionId) {
            self.fold(partition, 30).await;
        }
        self.readers.read(&self.log).await;
        self.owners.clear();
    }

    async fn begin_and_end_deliveries(&mut self) {
        let hour = self.minutes / 60;
        match (hour % 12, self.of_today) {
            (0, None) => self.of_today = Some(self.create((hour / 12 % 4) as usize).await),
            (3, Some(key)) => drop(self.ledger.transition(key, DeliveryState::Accepted, None, None, self.time()).await),
            (9, Some(key)) => {
                self.ledger.transition(key, DeliveryState::Failed, None, None, self.time()).await.unwrap();
                self.finished.insert(key);
                self.of_today = None;
            }
            (6, _) => {
                let driver = self.drivers[(hour / 12 % 3) as usize + 1].driver;
                self.ledger.assign(self.moving, Some(driver), None, self.time()).await.unwrap();
            }
            _ => {}
        }
        self.relay().await;
    }

    /// A fix of each driver every minute; the last is heard in the first hours alone.
    async fn records_of_an_hour(&mut self) {
        let mut entries = Vec::new();
        for _ in 0..60 {
            self.minutes += 1;
            let at = Time(self.now.fetch_add(HOUR / 60, Ordering::SeqCst) + HOUR / 60);
            let mut by_partition: BTreeMap<PartitionId, Vec<Record>> = BTreeMap::new();
            for i in 0..DRIVERS {
                if i + 1 == DRIVERS && self.minutes > 120 {
                    continue;
                }
                self.number += 1;
                self.fixes += 1;
                let key = DriverKey { tenant: self.drivers[i].tenant, driver: self.drivers[i].driver };
                let partition = partition_of(&TrackerKey::Driver(key).key_bytes(), PARTITIONS);
                by_partition.entry(partition).or_default().push(self.fix(i, at));
            }
            for partition in (0..PARTITIONS).map(PartitionId) {
                let mut records = by_partition.remove(&partition).unwrap_or_default();
                records.push(Record::Mark { edge: EdgeId(1), received_before: at });
                let owner = self.owners.get(&partition);
                records.extend(owner.map(|owner| Record::Tick { owner: owner.id, at }));
                entries.push(self.records(partition, records));
            }
        }
        self.log.append(&entries).await.into_offsets().unwrap();
    }

    fn fix(&self, driver: usize, at: Time) -> Record {
        // Up and down a road of 5 km in 40 minutes.
        let phase = (self.minutes + 7 * driver as u64) % 40;
        let km = if phase < 20 { phase } else { 40 - phase } as f64 / 4.0;
        Record::Fix(FixRecord {
            device: self.drivers[driver],
            session_start: 1,
            number: Some(FixNumber(self.number)),
            lowest_held: FixNumber(0),
            edge: EdgeId(1),
            door: Door::Udp,
            received: at,
            fix: Fix { accuracy_m: Some(5), ..Fix::at(MeasuredTime::from_time(at), place(km)) },
            verdict: Verdict::Accepted,
        })
    }

    /// As fold and teller do it, so many entries at most.
    async fn fold(&mut self, partition: PartitionId, entries_max: u64) {
        let owner = self.owners.get_mut(&partition).unwrap();
        let mut left = entries_max;
        while left > 0 {
            let limit = ReadLimit { entries_max: left.min(256) as usize, ..ReadLimit::default() };
            let reader = self.log.reader(Topic::Records, partition, owner.partition.next()).await;
            let entries = reader.unwrap().read(limit, Duration::ZERO).await.unwrap();
            if entries.is_empty() {
                break;
            }
            left -= entries.len() as u64;
            let mut effects = Effects::default();
            for entry in &entries {
                let batch: RecordBatch = envelope::decode(&entry.value).unwrap();
                owner.partition.handle_entry(entry.offset, &batch, &NoBodies, &mut effects);
            }
            assert_eq!(effects.counts.folds_failed, 0);
            let told = told(partition, owner.partition.next(), effects, owner.partition.clock().now());
            self.log.append(&told).await.into_offsets().unwrap();
        }
    }

    async fn keep_snapshot(&mut self, partition: PartitionId) {
        let at = self.time();
        let owner = self.owners.get_mut(&partition).unwrap();
        let body = self.build.snapshot(&owner.partition);
        let (generation, next) = (owner.own, owner.partition.next());
        let place = SnapshotPlace { partition, generation, next, at, kept_now: at };
        keep(&self.shards, &mut owner.kept, place, (body, None)).await.unwrap();
    }

    /// The log lets go what is older than 72 h.
    /// Until the log's keeper has let go, in every partition, of all that retention no longer promises. Whoever reads
    /// from the log's first entry on begins after this: otherwise what it is about to read may go meanwhile.
    async fn until_expired(&self) {
        let promised_from = self.time() - Duration::from_secs(72 * 3600);
        for partition in (0..PARTITIONS).map(PartitionId) {
            let oldest = self.log.offset_at(Topic::Records, partition, promised_from).await.unwrap();
            let mut tries = 0;
            loop {
                let first = self.log.range(Topic::Records, partition).await.unwrap().first;
                if first.0 > 0 && first >= oldest {
                    break;
                }
                tries += 1;
                assert!(tries < 500, "the log lets nothing go");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// The real sink, from where it committed, to the end; half of its commits are lost.
    async fn send_events(&mut self) {
        for partition in (0..PARTITIONS).map(PartitionId) {
            let reader = Reader {
                log: self.log.clone(),
                topic: Topic::Updates,
                partition,
                clock: Clock::system(),
                metrics: ProcessorMetrics::new(&Meter::discard()),
                decoded: DecodedUpdates::new(PARTITIONS),
                stop: self.stop.clone(),
            };
            let mut work = Events { views_max: 1_000, of_movement: true }.begin(partition);
            let committed = self.committed.get(&partition).copied();
            let mut next = work.first(&reader, committed).await.unwrap();
            loop {
                let entries = read(&self.log, Topic::Updates, partition, next).await;
                let Some(last) = entries.last() else { break };
                next = Offset(last.offset.0 + 1);
                work.handle(&reader, entries).await.unwrap();
            }
            if (self.minutes / 60).is_multiple_of(2) {
                self.committed.insert(partition, next);
            }
        }
    }

    async fn check(&mut self) {
        self.readers.read(&self.log).await;
        self.check_events().await;
        let mut crumbs: BTreeSet<(u64, i64)> = BTreeSet::new();
        let mut told = 0_u64;
        for entry in read_all(&self.log, Topic::Trail).await {
            let batch: BreadcrumbBatch = envelope::decode(&entry.value).unwrap();
            told += batch.breadcrumbs.len() as u64;
            crumbs.extend(
                batch
                    .breadcrumbs
                    .iter()
                    .map(|crumb| (u64::from(crumb.record.device.driver.0), crumb.record.fix.measured.0)),
            );
        }
        assert!(crumbs.len() as u64 == self.fixes || self.has_gap, "{} of {}", crumbs.len(), self.fixes);
        assert!(told <= self.fixes + 4 * 60 * DRIVERS as u64, "{told} breadcrumbs of {}", self.fixes);
        for device in &self.drivers {
            let key = DriverKey { tenant: device.tenant, driver: device.driver };
            let view = self.readers.tracker_view(&self.owners, key);
            assert_eq!(view.lead, Some(*device));
            let known = self.registry.driver(key.tenant, key.driver).await.unwrap();
            assert_eq!(view.vehicle, known.vehicle, "{key:?}");
        }
        for key in [Some(self.long), Some(self.moving), self.of_today].into_iter().flatten() {
            let known = self.ledger.delivery(key).await.unwrap().unwrap();
            let view = &self.readers.deliveries[&key];
            assert!(!view.is_last, "{key:?}");
            assert_eq!(view.view.delivery, known);
        }
        for key in &self.finished {
            let view = &self.readers.deliveries[key];
            assert!(view.is_last && view.view.delivery.state == DeliveryState::Failed, "{view:?}");
        }
        let held: BTreeSet<DeliveryKey> =
            self.owners.values().flat_map(|owner| owner.partition.assignments()).map(|(_, key, _)| key).collect();
        let live = [Some(self.long), Some(self.moving), self.of_today].into_iter().flatten().collect();
        assert_eq!(held, live, "a tracker holds what is over");
    }

    /// Each event once, and each journal entry of each delivery.
    async fn check_events(&self) {
        let mut ids = BTreeSet::new();
        let events = read_all(&self.log, Topic::Events).await;
        for entry in &events {
            let event: serde_json::Value = serde_json::from_slice(&entry.value).unwrap();
            let id = event["id"].as_str().unwrap().to_string();
            assert!(ids.insert(id.clone()), "{id} was sent twice");
        }
        for key in [self.long, self.moving].into_iter().chain(self.finished.iter().copied()) {
            let last = self.ledger.delivery(key).await.unwrap().unwrap().last_number().0;
            for number in 1..=last {
                let id = format!("{}-{}-journal-{number}", key.tenant, key.delivery);
                assert!(ids.contains(&id) || self.has_gap, "{id} was never sent");
            }
        }
        assert!(ids.len() > 100, "{} events", ids.len());
    }
}

/// What readers of the updates hold.
#[derive(Default)]
struct Readers {
    next: BTreeMap<PartitionId, Offset>,
    deliveries: BTreeMap<DeliveryKey, LiveView>,
    drivers: BTreeMap<DriverKey, (Generation, DriverView)>,
    shown: BTreeMap<DriverKey, Time>,
}

impl Readers {
    async fn read(&mut self, log: &EmbeddedLog) {
        for partition in (0..PARTITIONS).map(PartitionId) {
            loop {
                let first = log.range(Topic::Updates, partition).await.unwrap().first;
                let next = self.next.entry(partition).or_default();
                *next = (*next).max(first);
                let entries = read(log, Topic::Updates, partition, *next).await;
                let Some(last) = entries.last() else { break };
                *next = Offset(last.offset.0 + 1);
                for entry in &entries {
                    let UpdateBatch { updates } = envelope::decode(&entry.value).unwrap();
                    updates.iter().for_each(|update| self.take(update));
                }
            }
        }
    }

    fn take(&mut self, update: &Update) {
        match update {
            Update::Delivery(update) => match self.deliveries.get_mut(&update.key) {
                None => {
                    let begun = LiveView::begin(update).expect("a keyframe comes first");
                    self.deliveries.insert(update.key, begun);
                }
                Some(view) => {
                    let before = view.view.clone();
                    view.handle_update(update);
                    let at = |view: &protocol::update::DeliveryView| view.position.map(|shown| shown.event_time);
                    assert!(
                        before.delivery.assignment != view.view.delivery.assignment || at(&view.view) >= at(&before),
                        "the dot of {:?} went back",
                        update.key
                    );
                    assert!(view.view.delivery.last_number() >= before.delivery.last_number(), "the journal went back");
                }
            },
            Update::Driver(update) => {
                let shown = match &update.body {
                    DriverBody::Keyframe { view } => {
                        self.drivers.insert(update.key, (update.generation, (**view).clone()));
                        view.position
                    }
                    DriverBody::Changed { changed } => changed.position,
                };
                if let Some(shown) = shown {
                    let before = self.shown.insert(update.key, shown.event_time);
                    assert!(before.is_none_or(|before| before <= shown.event_time), "{:?} went back", update.key);
                }
            }
            Update::Heartbeat { .. } => {}
        }
    }

    /// As his tracker would tell it: who was not heard for long is not told of.
    fn tracker_view(&self, owners: &BTreeMap<PartitionId, Owner>, key: DriverKey) -> DriverView {
        let partition = partition_of(&TrackerKey::Driver(key).key_bytes(), PARTITIONS);
        owners[&partition].partition.driver_view(key).expect("he has a tracker")
    }
}

fn told(source: PartitionId, next: Offset, effects: Effects, at: Time) -> Vec<Append> {
    let mut by_partition: BTreeMap<PartitionId, Vec<Update>> = BTreeMap::new();
    for update in effects.updates {
        by_partition.entry(updates_partition(&update, PARTITIONS)).or_default().push(update);
    }
    let entry = |topic, partition, value: Vec<u8>| Append { topic, partition, key: Bytes::new(), value: value.into() };
    let mut appends: Vec<Append> = Vec::new();
    for (partition, updates) in by_partition {
        for some in updates.chunks(500) {
            let batch = UpdateBatch { updates: some.to_vec() };
            appends.push(entry(Topic::Updates, partition, envelope::encode(&batch)));
        }
    }
    for some in effects.breadcrumbs.chunks(500) {
        let batch = BreadcrumbBatch { breadcrumbs: some.to_vec() };
        appends.push(entry(Topic::Trail, source, envelope::encode(&batch)));
    }
    for partition in (0..PARTITIONS).map(PartitionId) {
        let batch = UpdateBatch { updates: vec![Update::Heartbeat { source, offset: next, at }] };
        appends.push(entry(Topic::Updates, partition, envelope::encode(&batch)));
    }
    appends
}

async fn read(log: &EmbeddedLog, topic: Topic, partition: PartitionId, from: Offset) -> Vec<StoredEntry> {
    let reader = log.reader(topic, partition, from).await;
    reader.unwrap().read(ReadLimit::default(), Duration::ZERO).await.unwrap()
}

async fn read_all(log: &EmbeddedLog, topic: Topic) -> Vec<StoredEntry> {
    let mut all = Vec::new();
    for partition in (0..PARTITIONS).map(PartitionId) {
        let mut next = Offset(0);
        loop {
            let entries = read(log, topic, partition, next).await;
            let Some(last) = entries.last() else { break };
            next = Offset(last.offset.0 + 1);
            all.extend(entries);
        }
    }
    all
}

fn place(km: f64) -> Position {
    Position { lat_e7: 411_500_000, lon_e7: -86_100_000 + (km * 119_000.0) as i32 }
}
