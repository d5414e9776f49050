//! Another version of the map under load: drivers with deliveries under way, a fix each every 4 s, through the embedded
//! log and the processor with all its sinks. In the middle another import of the same city is offered; what counts is
//! how long a fix waits for its update, before and while the fleet moves over, and that no update is missing.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use backends::blob_store::embedded::FolderBlobStore;
use backends::control::TokenKeys;
use backends::ledger::embedded::EmbeddedLedger;
use backends::live_store::embedded::MemoryLiveStore;
use backends::log::embedded::{EmbeddedLog, EmbeddedLogConfig};
use backends::log::{Append, DecodedUpdates, Log, ReadLimit, Topic};
use backends::registry::embedded::EmbeddedRegistry;
use backends::trail_store::embedded::EmbeddedTrailStore;
use benches::fleet::every_36_m;
use benches::{Goal, Report};
use bytes::Bytes;
use clap::Parser;
use daemon::admin::Readiness;
use daemon::{Clock, Drain, Meter, ProcessContext};
use maps::import::{ImportOptions, import_bytes};
use maps::router::{Endpoint, Routing};
use maps::{EdgeId, Graph, Profile};
use processor::{Processor, ProcessorParts, ProcessorSettings};
use protocol::record::Door;
use protocol::update::{Epoch, EtaBasis, Taken};
use protocol::{
    AssignmentNumber, Delivery, DeliveryId, DeliveryKey, DeliveryPolicy, DeliveryState, DeviceKey, DeviceNumber,
    DriverId, DriverKey, EdgeId as ServerId, Fix, FixNumber, FixRecord, JournalEntry, JournalKind, JournalNumber,
    LiveView, MeasuredTime, Offset, PartitionId, Position, Record, RecordBatch, Stop, StopKind, TenantId, Time,
    TrackerKey, Update, UpdateBatch, Verdict, envelope, partition_of,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

#[derive(Parser)]
struct Arguments {
    /// The extract that both versions of the map are imported from.
    #[arg(long, default_value = "../shared/data/maps/porto.osm.pbf")]
    extract: PathBuf,
    #[arg(long, default_value_t = 2_000)]
    drivers: u32,
    #[arg(long, default_value_t = 8)]
    partitions: u32,
    /// How long before, and how long after.
    #[arg(long, default_value_t = 20)]
    seconds: u32,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut report = Report::new("swap");
    runtime.block_on(run(&arguments, &mut report))?;
    report.finish()
}

async fn run(arguments: &Arguments, report: &mut Report) -> anyhow::Result<()> {
    let folder = tempfile::tempdir().context("make a folder")?;
    let extract = std::fs::read(&arguments.extract).context("read the extract")?;
    let (old, new) = tokio::task::spawn_blocking(move || versions(&extract)).await??;
    let (old_file, new_file) = (folder.path().join("old.wfm"), folder.path().join("new.wfm"));
    std::fs::write(&old_file, &old)?;
    std::fs::write(&new_file, &new)?;
    let (old, new) = (Graph::from_bytes(&old)?, Graph::from_bytes(&new)?);
    let yardstick = format!("of {}, the new version has {}", old.edge_count(), new.edge_count());
    report.row(
        "edges that differ",
        old.edge_count().abs_diff(new.edge_count()) as f64,
        "edges",
        &yardstick,
        Goal::None,
    );

    let config = EmbeddedLogConfig { partitions: arguments.partitions, ..EmbeddedLogConfig::default() };
    let log = Arc::new(EmbeddedLog::open(folder.path().join("log"), config).context("open the log")?);
    let (meter, drain, readiness) = (Meter::discard(), Drain::default(), Readiness::default());
    let processor = start(log.clone(), folder.path(), old_file, &meter, &readiness, &drain).await?;
    while !readiness.is_ready() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let fleet = Arc::new(Fleet::on(Arc::new(old), arguments.drivers)?);
    let watch = Arc::new(Watch::default());
    fleet.assign(&*log).await?;
    let readers: Vec<_> = (0..arguments.partitions)
        .map(|partition| tokio::spawn(watch.clone().read(log.clone(), PartitionId(partition))))
        .collect();

    let seconds = Duration::from_secs(u64::from(arguments.seconds));
    let driving = tokio::spawn(fleet.clone().drive(log.clone(), watch.clone(), WARM_UP + seconds * 2));
    tokio::time::sleep(WARM_UP).await;
    watch.begin();
    tokio::time::sleep(seconds).await;
    let before = watch.begin();
    processor.offer_map(&new_file).await.context("offer the new version")?;
    driving.await.context("drive")??;
    tokio::time::sleep(SETTLED).await;
    let after = watch.begin();
    readers.iter().for_each(tokio::task::JoinHandle::abort);
    drain.stop(Duration::from_secs(20)).await;
    tell(report, before, after, &watch, &new)
}

fn tell(
    report: &mut Report,
    mut before: Vec<f64>,
    mut after: Vec<f64>,
    watch: &Watch,
    new: &Graph,
) -> anyhow::Result<()> {
    ensure!(!before.is_empty() && !after.is_empty(), "no update came");
    let (mut ms, mut longest) = (Vec::new(), Vec::new());
    for latencies in [&mut before, &mut after] {
        latencies.sort_by(f64::total_cmp);
        ms.push((latencies[latencies.len() / 2], latencies[latencies.len() * 99 / 100]));
        longest.push(latencies[latencies.len() - 1]);
    }
    let beside = format!("before: {:.1}", ms[0].0);
    report.row("fix appended to update read, swapping, p50", ms[1].0, "ms", &beside, Goal::None);
    let beside = format!("before: {:.1}", ms[0].1);
    report.row("the same, p99", ms[1].1, "ms", &beside, Goal::None);
    let beside = format!("before: {:.1}; the pause is what the swap adds", longest[0]);
    report.row("the same, the longest", longest[1], "ms", &beside, Goal::None);
    report.row("pause", (longest[1] - longest[0]).max(0.0), "ms", "longest less longest before", Goal::AtMost(100.0));
    let seen = watch.seen.lock().unwrap_or_else(PoisonError::into_inner);
    report.row("updates missing", seen.missing as f64, "updates", "of each delivery's numbers", Goal::AtMost(0.0));
    report.row("trackers begun anew", seen.begun_anew as f64, "trackers", "their epochs", Goal::AtMost(0.0));
    let views = seen.views.values();
    let on_road = |view: &&LiveView| view.view.eta.is_some_and(|eta| eta.basis == EtaBasis::Road);
    let planned = views.clone().filter(on_road).count() as f64 / views.len() as f64 * 100.0;
    report.row("deliveries with a way at the end", planned, "%", "ETA by the road", Goal::AtLeast(99.0));
    let mut found = Vec::new();
    let mut is_on_road = |view: &&LiveView| {
        let Some(shown) = view.view.position.filter(|shown| shown.snapped) else { return true };
        new.candidates(shown.position, 2.0, Profile::Car, &mut found);
        !found.is_empty()
    };
    let beside_roads = views.filter(|view| !is_on_road(view)).count() as f64;
    report.row("dots beside the new version's roads", beside_roads, "drivers", "", Goal::AtMost(0.0));
    Ok(())
}

async fn start(
    log: Arc<EmbeddedLog>,
    folder: &Path,
    map: PathBuf,
    meter: &Meter,
    readiness: &Readiness,
    drain: &Drain,
) -> anyhow::Result<Processor> {
    let parts = ProcessorParts {
        decoded: DecodedUpdates::of(&*log),
        log,
        blobs: Arc::new(FolderBlobStore::open(folder.join("blobs")).context("open the blob store")?),
        live_store: Arc::new(MemoryLiveStore::new(1 << 20, meter)),
        trail_store: Arc::new(EmbeddedTrailStore::open(&folder.join("trail.db")).context("open history")?),
        ledger: Arc::new(EmbeddedLedger::open(&folder.join("ledger.db")).context("open the ledger")?),
        registry: Arc::new(
            EmbeddedRegistry::open(&folder.join("registry.db"), TokenKeys::new([])).context("open the registry")?,
        ),
        route_service: None,
        map: Some(map),
    };
    let config = ProcessorSettings::default().check(&folder.join("processor"))?;
    let context = ProcessContext {
        clock: Clock::system(),
        meter: meter.clone(),
        readiness: readiness.clone(),
        drain: drain.clone(),
    };
    processor::start(config, parts, &context).await
}

/// Two versions of a city: as the extract has it, and without one block of its ways, as it was before they were mapped.
fn versions(extract: &[u8]) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
    let options = ImportOptions::default();
    let new = import_bytes(extract, &options).context("import the extract")?;
    let edges = Graph::from_bytes(&new)?.edge_count();
    let blobs = blobs(extract)?;
    for leave_out in blobs.iter().skip(1).rev() {
        let mut older = extract[..leave_out.start].to_vec();
        older.extend_from_slice(&extract[leave_out.end..]);
        let Ok(older) = import_bytes(&older, &options) else { continue };
        let fewer = edges.saturating_sub(Graph::from_bytes(&older)?.edge_count());
        if fewer * 50 > edges && fewer * 3 < edges {
            return Ok((older, new));
        }
    }
    anyhow::bail!("no block of the extract can be left out")
}

/// Where the blocks of an `.osm.pbf` lie: a length, a header that says another, and so much content.
fn blobs(extract: &[u8]) -> anyhow::Result<Vec<std::ops::Range<usize>>> {
    let (mut blobs, mut at) = (Vec::new(), 0);
    while let Some(length) = extract.get(at..at + 4) {
        let header_at = at + 4;
        let header_len = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
        let header = extract.get(header_at..header_at + header_len).context("a block's header is cut short")?;
        // Its last field is the length of what follows: number 3, a varint.
        let size_at = header.iter().rposition(|byte| *byte == 0x18).context("a block's header says no length")?;
        let size = header[size_at + 1..].iter().rev().fold(0, |size, byte| size << 7 | usize::from(byte & 0x7f));
        let end = header_at + header_len + size;
        blobs.push(at..end);
        at = end;
    }
    ensure!(at == extract.len(), "the extract's blocks do not add up");
    Ok(blobs)
}

/// Drivers on their ways.
struct Fleet {
    trips: Vec<Vec<Position>>,
    drivers: u32,
}

impl Fleet {
    /// Each on the fastest way between two places, 9 m/s.
    fn on(graph: Arc<Graph>, drivers: u32) -> anyhow::Result<Fleet> {
        let open: Vec<EdgeId> = graph.edges().filter(|edge| graph.is_connected(*edge, Profile::Car)).collect();
        ensure!(!open.is_empty(), "the map has no roads for cars");
        let routing = Routing::new(graph.clone());
        let mut random = SmallRng::seed_from_u64(7);
        let mut trips = Vec::new();
        while trips.len() < drivers as usize {
            let mut place = || Endpoint::Edge { edge: open[random.random_range(0..open.len())], along_cm: 0 };
            let Some(route) = routing.route(&place(), &place(), Profile::Car) else { continue };
            if (200_000..1_500_000).contains(&route.length_cm) {
                trips.push(every_36_m_and_the_end(&route.geometry(&graph)));
            }
        }
        Ok(Fleet { trips, drivers })
    }

    async fn assign(&self, log: &dyn Log) -> anyhow::Result<()> {
        let at = now();
        for (number, trip) in self.trips.iter().enumerate() {
            let driver = driver(number as u32);
            let stop = |kind, position| Stop { kind, position, radius_m: 50, label: String::new() };
            let entry = |number, kind| JournalEntry { number: JournalNumber(number), at, kind };
            let delivery = Delivery {
                key: DeliveryKey { tenant: driver.tenant, delivery: DeliveryId(number as u64 + 1) },
                state: DeliveryState::PickedUp,
                assignment: AssignmentNumber(1),
                driver: Some(driver.driver),
                stops: vec![stop(StopKind::Pickup, trip[0]), stop(StopKind::DropOff, trip[trip.len() - 1])],
                policy: DeliveryPolicy::default(),
                journal: vec![
                    entry(1, JournalKind::Status { status: DeliveryState::PickedUp, reason: None }),
                    entry(2, JournalKind::Assigned { driver: Some(driver.driver), assignment: AssignmentNumber(1) }),
                ],
                reference: String::new(),
                created: at,
            };
            let record = Record::Assign { to: driver.into(), delivery: Box::new(delivery) };
            let entry = entry_of(log, driver, vec![record]);
            log.append(&[entry]).await.into_offsets().context("assign a delivery")?;
        }
        Ok(())
    }

    /// A fortieth of the drivers every tenth of a second, those of a partition in one entry.
    async fn drive(self: Arc<Self>, log: Arc<EmbeddedLog>, watch: Arc<Watch>, time: Duration) -> anyhow::Result<()> {
        let began = Instant::now();
        for step in 0.. {
            let due = Duration::from_millis(100 * step);
            if due >= time {
                return Ok(());
            }
            tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
            let mut by_partition: BTreeMap<PartitionId, Vec<Record>> = BTreeMap::new();
            for number in (0..self.drivers).filter(|number| u64::from(number % 40) == step % 40) {
                let partition =
                    partition_of(&TrackerKey::Driver(driver(number)).key_bytes(), log.partition_count(Topic::Records));
                by_partition.entry(partition).or_default().push(self.fix(number, step / 40));
            }
            let partitions: Vec<PartitionId> = by_partition.keys().copied().collect();
            let entry = |(partition, records)| Append {
                topic: Topic::Records,
                partition,
                key: Bytes::new(),
                value: envelope::encode(&RecordBatch { records }).into(),
            };
            let appended_at = Instant::now();
            let entries: Vec<Append> = by_partition.into_iter().map(entry).collect();
            let offsets = log.append(&entries).await.into_offsets().context("append fixes")?;
            watch.appended(partitions.into_iter().zip(offsets), appended_at);
        }
        Ok(())
    }

    fn fix(&self, number: u32, round: u64) -> Record {
        let trip = &self.trips[number as usize];
        let (at, driver) = (now(), driver(number));
        Record::Fix(FixRecord {
            device: DeviceKey { tenant: driver.tenant, driver: driver.driver, device: DeviceNumber(1) },
            session_start: 1,
            number: Some(FixNumber(round + 1)),
            lowest_held: FixNumber(0),
            edge: ServerId(1),
            door: Door::Udp,
            received: at,
            fix: Fix {
                accuracy_m: Some(5),
                ..Fix::at(MeasuredTime::from_time(at), trip[(round as usize).min(trip.len() - 1)])
            },
            verdict: Verdict::Accepted,
        })
    }
}

/// What readers of the updates see.
#[derive(Default)]
struct Watch {
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    appended: HashMap<(PartitionId, Offset), Instant>,
    /// Updates that were read before their entry's append had answered.
    early: HashMap<(PartitionId, Offset), Instant>,
    latencies_ms: Vec<f64>,
    views: BTreeMap<DeliveryKey, LiveView>,
    epochs: BTreeMap<DeliveryKey, Epoch>,
    missing: u64,
    begun_anew: u64,
}

impl Watch {
    /// What was measured since the last time.
    fn begin(&self) -> Vec<f64> {
        std::mem::take(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner).latencies_ms)
    }

    fn appended(&self, places: impl Iterator<Item = (PartitionId, Offset)>, at: Instant) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for place in places {
            match seen.early.remove(&place) {
                Some(read) => seen.latencies_ms.push(read.saturating_duration_since(at).as_secs_f64() * 1e3),
                None => {
                    seen.appended.insert(place, at);
                }
            }
        }
    }

    async fn read(self: Arc<Self>, log: Arc<EmbeddedLog>, partition: PartitionId) -> anyhow::Result<()> {
        let mut reader = log.reader(Topic::Updates, partition, Offset(0)).await?;
        loop {
            let entries = reader.read(ReadLimit::default(), Duration::from_millis(500)).await?;
            let read = Instant::now();
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            for entry in entries {
                let batch: UpdateBatch = envelope::decode(&entry.value)?;
                batch.updates.iter().for_each(|update| seen.handle_update(update, read));
            }
        }
    }
}

impl Seen {
    fn handle_update(&mut self, update: &Update, read: Instant) {
        let Update::Delivery(update) = update else { return };
        let place = (update.source.partition, update.source.offset);
        match self.appended.remove(&place) {
            Some(at) => self.latencies_ms.push(read.saturating_duration_since(at).as_secs_f64() * 1e3),
            None => {
                self.early.insert(place, read);
            }
        }
        self.begun_anew += u64::from(*self.epochs.entry(update.key).or_insert(update.epoch) != update.epoch);
        match self.views.get_mut(&update.key) {
            Some(view) => self.missing += u64::from(view.handle_update(update) != Taken::Next),
            None => match LiveView::begin(update) {
                Some(view) => {
                    self.views.insert(update.key, view);
                }
                None => self.missing += 1,
            },
        }
    }
}

fn driver(number: u32) -> DriverKey {
    DriverKey { tenant: TenantId(1), driver: DriverId(number + 1) }
}

fn entry_of(log: &dyn Log, driver: DriverKey, records: Vec<Record>) -> Append {
    let partition = partition_of(&TrackerKey::Driver(driver).key_bytes(), log.partition_count(Topic::Records));
    let value = envelope::encode(&RecordBatch { records }).into();
    Append { topic: Topic::Records, partition, key: Bytes::new(), value }
}

fn now() -> Time {
    Time(Clock::system().now_ms())
}

/// Places so far apart along a line, its end too.
fn every_36_m_and_the_end(line: &[Position]) -> Vec<Position> {
    let mut places = every_36_m(line);
    places.extend(line.last());
    places
}

const WARM_UP: Duration = Duration::from_secs(10);
/// What is under way is read by then.
const SETTLED: Duration = Duration::from_secs(2);
