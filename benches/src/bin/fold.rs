//! The fold: CPU per fix with map, matcher and plans, from the bytes of a records entry to the bytes of updates and
//! breadcrumbs, at few and at many drivers; what a tick costs when nobody drives; what a tracker takes of memory; and how
//! long a snapshot and a restart take. Beside it, in the same run and on the same fixes: the matcher alone, and decoding
//! alone.
//!
//! One partition on one thread: CPU is the thread's own, so other work on the machine disturbs it little.

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use benches::{Goal, Report, cpu};
use clap::Parser;
use maps::eta::EtaTable;
use maps::import::{ImportOptions, import_bytes};
use maps::matcher::{Matcher, Observation, Scratch};
use maps::router::{Endpoint, Routing};
use maps::{EdgeId, Graph, Profile, geo};
use processor::track::{Bodies, Effects, NoBodies, Partition, RoadMap, Tables, Traffic};
use protocol::envelope;
use protocol::record::{BlobHash, BodyKind, Door, OwnerId};
use protocol::update::{BreadcrumbBatch, Generation};
use protocol::{
    AssignmentNumber, Delivery, DeliveryId, DeliveryKey, DeliveryPolicy, DeliveryState, DeviceKey, DeviceNumber,
    DriverId, DriverKey, EdgeId as ServerId, Fix, FixNumber, FixRecord, JournalEntry, JournalKind, JournalNumber,
    MeasuredTime, Offset, PartitionId, Position, Record, RecordBatch, Stop, StopKind, TenantId, Time, UpdateBatch,
    Verdict,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

#[derive(Parser)]
struct Arguments {
    /// The extract of the map.
    #[arg(long, default_value = "../shared/data/maps/porto.osm.pbf")]
    extract: PathBuf,
    /// How many drivers move; one run each.
    #[arg(long, default_values_t = [1_000, 20_000, 200_000])]
    drivers: Vec<u32>,
    /// How many drivers are idle.
    #[arg(long, default_value_t = 1_000_000)]
    idle: u32,
    /// How many live drivers a snapshot is taken of.
    #[arg(long, default_value_t = 100_000)]
    snapshot: u32,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut report = Report::new("fold");
    let extract = std::fs::read(&arguments.extract).context("read the extract")?;
    let graph = Graph::from_bytes(&import_bytes(&extract, &ImportOptions::default()).context("import the extract")?)?;
    let bodies = OneMap(Arc::new(RoadMap::of(graph, BlobHash([7; 32]))));
    let trips = trips(&bodies.0.graph)?;

    matcher_alone(&bodies, &trips, &mut report);
    let mut costs = Vec::new();
    for drivers in &arguments.drivers {
        costs.push(moving(*drivers, &bodies, &trips, &mut report)?);
    }
    if let (Some(first), Some(last)) = (costs.first(), costs.last()) {
        let grown = (last / first - 1.0) * 100.0;
        report.row("dearer at the most drivers than at the fewest", grown, "%", "", Goal::AtMost(15.0));
    }
    snapshot_pause(arguments.snapshot, &bodies, &trips, &mut report)?;
    dormant_memory(20_000, &bodies, &trips, &mut report)?;
    idle(arguments.idle, &trips, &mut report)?;
    report.finish()
}

/// Fixes 4 s apart at 9 m/s through matchers, a trip each.
fn matcher_alone(bodies: &OneMap, trips: &[Vec<Position>], report: &mut Report) {
    let (graph, mut scratch) = (&bodies.0.graph, Scratch::new());
    let mut fixes = 0;
    let began = cpu::of_this_thread();
    for trip in trips.iter().take(1_000) {
        let mut matcher = Matcher::new(Profile::Car);
        for (i, position) in trip.iter().enumerate() {
            let fix = Fix { accuracy_m: Some(5), ..Fix::at(MeasuredTime(40 * i as i64), *position) };
            black_box(matcher.handle_fix(graph, &mut scratch, &Observation::of(i as u64, &fix)));
            while black_box(matcher.poll_matched(graph, &mut scratch)).is_some() {}
            fixes += 1;
        }
    }
    let us = micros(cpu::of_this_thread() - began, fixes);
    report.row("yardstick: the matcher alone, per fix", us, "us CPU", "the same trips", Goal::None);
}

/// CPU per fix while so many drivers move, a tenth of them with a delivery.
fn moving(drivers: u32, bodies: &OneMap, trips: &[Vec<Position>], report: &mut Report) -> anyhow::Result<f64> {
    let memory_before = resident_bytes();
    let mut world = World::new(bodies);
    world.assign(drivers, trips)?;
    let warm_up = (WARM_UP_FIXES / drivers).clamp(8, 40);
    for round in 0..warm_up {
        world.fold_all(&fleet_entries(drivers, round, trips, world.now))?;
        world.now += ROUND_MS;
    }
    let rounds = (MEASURED_FIXES / drivers).max(3);
    let (mut folding, mut decoding, mut slowest) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    for round in warm_up..warm_up + rounds {
        let entries = fleet_entries(drivers, round, trips, world.now);
        let began = cpu::of_this_thread();
        for entry in &entries {
            black_box(envelope::decode::<RecordBatch>(entry)?);
        }
        decoding += cpu::of_this_thread() - began;
        let began = cpu::of_this_thread();
        let of_entry = world.fold_all(&entries)?;
        folding += cpu::of_this_thread() - began;
        slowest = slowest.max(of_entry);
        world.now += ROUND_MS;
    }
    let fixes = u64::from(drivers) * u64::from(rounds);
    let us = micros(folding, fixes);
    let beside = format!(
        "decoding alone {:.2}; {:.1} updates in 10 fixes",
        micros(decoding, fixes),
        world.updates_per_fix() * 10.0
    );
    report.row(&format!("CPU per fix, {drivers} drivers"), us, "us CPU", &beside, Goal::AtMost(8.0));
    let bytes = resident_bytes().saturating_sub(memory_before) as f64 / f64::from(drivers);
    report.row(&format!("memory per live tracker, {drivers} drivers"), bytes, "B", "resident", Goal::None);
    ensure!(world.partition.trackers_len() == drivers as usize, "every driver has a tracker");
    ensure!(world.failed == 0, "{} folds failed", world.failed);
    Ok(us)
}

/// How long the fold stands still for a snapshot of live drivers.
fn snapshot_pause(drivers: u32, bodies: &OneMap, trips: &[Vec<Position>], report: &mut Report) -> anyhow::Result<()> {
    let mut world = World::new(bodies);
    world.assign(drivers, trips)?;
    for round in 0..8 {
        world.fold_all(&fleet_entries(drivers, round, trips, world.now))?;
        world.now += ROUND_MS;
    }
    let mut shortest = Duration::MAX;
    let mut bytes = 0;
    for _ in 0..3 {
        let began = Instant::now();
        bytes = black_box(world.partition.snapshot()?).len();
        shortest = shortest.min(began.elapsed());
    }
    let beside = format!("{drivers} live drivers, {:.1} MB", bytes as f64 / 1e6);
    report.row("pause of the fold for a snapshot", shortest.as_secs_f64() * 1e3, "ms", &beside, Goal::AtMost(10.0));
    Ok(())
}

/// Drivers who went home long ago: what a tick costs, and how long a restart with them takes.
fn idle(drivers: u32, trips: &[Vec<Position>], report: &mut Report) -> anyhow::Result<()> {
    let mut world = asleep(drivers, &NoBodies, trips)?;
    let (mut longest, mut all) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..TICKS {
        let began = Instant::now();
        world.tick()?;
        longest = longest.max(began.elapsed());
        all += began.elapsed();
    }
    let beside = format!("{drivers} idle drivers, {TICKS} ticks; the longest {:.3} ms", longest.as_secs_f64() * 1e3);
    report.row("a tick", all.as_secs_f64() * 1e3 / f64::from(TICKS), "ms", &beside, Goal::AtMost(1.0));
    let snapshot = world.partition.snapshot()?;
    drop(world);
    let began = Instant::now();
    let restored = Partition::restore(&snapshot, Generation::default(), &NoBodies)?;
    let beside = format!("{drivers} drivers, {:.0} MB", snapshot.len() as f64 / 1e6);
    report.row("a restart from a snapshot", began.elapsed().as_secs_f64(), "s", &beside, Goal::AtMost(10.0));
    ensure!(restored.dormant_len() == drivers as usize, "they still sleep");
    Ok(())
}

/// What drivers take who drove on a map and sleep.
fn dormant_memory(drivers: u32, bodies: &OneMap, trips: &[Vec<Position>], report: &mut Report) -> anyhow::Result<()> {
    let snapshot = asleep(drivers, bodies, trips)?.partition.snapshot()?;
    let allocated = allocation_counter::measure(|| {
        let restored = Partition::restore(&snapshot, Generation::default(), bodies);
        std::mem::forget(black_box(restored)); // what it takes is what is measured
    });
    let bytes = allocated.bytes_current as f64 / f64::from(drivers);
    let beside = format!("{drivers} drivers who drove, as allocated");
    report.row("memory per dormant tracker", bytes, "B", &beside, Goal::AtMost(300.0));
    Ok(())
}

/// Drivers who drove for a while, more than two hours ago: nobody looks at them any more.
fn asleep<'a>(drivers: u32, bodies: &'a dyn Bodies, trips: &[Vec<Position>]) -> anyhow::Result<World<'a>> {
    let mut world = World::new(bodies);
    for round in 0..ROUNDS_BEFORE_SLEEP {
        world.fold_all(&fleet_entries(drivers, round, trips, world.now))?;
        world.now += ROUND_MS;
    }
    world.now += 2 * 3_600_000 + 700_000;
    for _ in 0..90 {
        world.tick()?;
    }
    ensure!(world.partition.dormant_len() == drivers as usize, "they all sleep");
    Ok(world)
}

/// One partition and what it was given.
struct World<'a> {
    partition: Partition,
    bodies: &'a dyn Bodies,
    next: u64,
    now: i64,
    fixes: u64,
    updates: u64,
    failed: u64,
}

impl World<'_> {
    fn new(bodies: &dyn Bodies) -> World<'_> {
        let partition = Partition::new(PartitionId(0), Offset(0), Generation::default());
        let mut world = World { partition, bodies, next: 0, now: BEGIN_MS, fixes: 0, updates: 0, failed: 0 };
        let claim = Record::Claim { owner: OwnerId(1), at: Time(world.now), incarnation: 1 };
        let in_use = Record::InUse { kind: BodyKind::Map, hash: BlobHash([7; 32]) };
        let entry = envelope::encode(&RecordBatch { records: vec![claim, in_use] });
        world.fold(&entry).expect("it was just encoded");
        world
    }

    /// From an entry of the log to the bytes of what it says.
    fn fold(&mut self, entry: &[u8]) -> anyhow::Result<()> {
        let batch: RecordBatch = envelope::decode(entry)?;
        let mut effects = Effects::default();
        self.partition.handle_entry(Offset(self.next), &batch, self.bodies, &mut effects);
        self.next += 1;
        self.fixes += batch.records.len() as u64;
        self.updates += effects.updates.len() as u64;
        self.failed += effects.counts.folds_failed;
        black_box(envelope::encode(&UpdateBatch { updates: effects.updates }));
        black_box(envelope::encode(&BreadcrumbBatch { breadcrumbs: effects.breadcrumbs }));
        Ok(())
    }

    /// Entries of one round, with a mark and a tick for every second. The longest time an entry took.
    fn fold_all(&mut self, entries: &[Vec<u8>]) -> anyhow::Result<Duration> {
        let mut longest = Duration::ZERO;
        let seconds = ROUND_MS / 1_000;
        for (i, entry) in entries.iter().enumerate() {
            let began = Instant::now();
            self.fold(entry)?;
            longest = longest.max(began.elapsed());
            let (before, after) =
                (i as i64 * seconds / entries.len() as i64, (i as i64 + 1) * seconds / entries.len() as i64);
            for second in before..after {
                self.tick_at(self.now + second * 1_000)?;
            }
        }
        Ok(longest)
    }

    fn tick(&mut self) -> anyhow::Result<()> {
        self.now += 1_000;
        self.tick_at(self.now)
    }

    fn tick_at(&mut self, now: i64) -> anyhow::Result<()> {
        let mark = Record::Mark { edge: ServerId(1), received_before: Time(now) };
        let tick = Record::Tick { owner: OwnerId(1), at: Time(now) };
        self.fold(&envelope::encode(&RecordBatch { records: vec![mark, tick] }))
    }

    /// A delivery for every tenth driver, to the end of his trip.
    fn assign(&mut self, drivers: u32, trips: &[Vec<Position>]) -> anyhow::Result<()> {
        for number in (0..drivers).step_by(10) {
            let record = assignment(number, &trips[number as usize % trips.len()], Time(self.now));
            self.fold(&envelope::encode(&RecordBatch { records: vec![record] }))?;
        }
        (self.fixes, self.updates) = (0, 0);
        Ok(())
    }

    fn updates_per_fix(&self) -> f64 {
        self.updates as f64 / self.fixes.max(1) as f64
    }
}

/// One map for everything.
struct OneMap(Arc<RoadMap>);

impl Bodies for OneMap {
    fn map(&self, _: BlobHash) -> Option<Arc<RoadMap>> {
        Some(self.0.clone())
    }

    fn traffic(&self, map: &Arc<RoadMap>, _: Tables) -> Arc<Traffic> {
        Arc::new(Traffic::usual(map.clone()))
    }

    fn eta(&self, _: BlobHash) -> Option<Arc<EtaTable>> {
        None
    }
}

/// The fastest routes between random places, as positions 36 m apart.
fn trips(graph: &Arc<Graph>) -> anyhow::Result<Vec<Vec<Position>>> {
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

/// Places so far apart along a line.
fn every_36_m(line: &[Position]) -> Vec<Position> {
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

/// A fix of every driver, in entries of `ENTRY_FIXES`. Who comes to the end of his trip turns back along it.
fn fleet_entries(drivers: u32, round: u32, trips: &[Vec<Position>], now: i64) -> Vec<Vec<u8>> {
    let position = |number: u32| {
        let trip = &trips[number as usize % trips.len()];
        let at = round as usize % (2 * trip.len());
        trip[if at < trip.len() { at } else { 2 * trip.len() - 1 - at }]
    };
    let fix = |number: u32| {
        let received = Time(now + i64::from(number) * ROUND_MS / i64::from(drivers));
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
    let numbers: Vec<u32> = (0..drivers).collect();
    let entry =
        |numbers: &[u32]| envelope::encode(&RecordBatch { records: numbers.iter().copied().map(fix).collect() });
    numbers.chunks(ENTRY_FIXES as usize).map(entry).collect()
}

fn assignment(number: u32, trip: &[Position], at: Time) -> Record {
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

fn micros(time: Duration, count: u64) -> f64 {
    time.as_secs_f64() * 1e6 / count.max(1) as f64
}

/// Memory of this process that lies in RAM.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|text| text.parse::<usize>().ok()).unwrap_or(0);
    pages * 4_096
}

const BEGIN_MS: i64 = 1_700_000_000_000;
/// A fix each every 4 s.
const ROUND_MS: i64 = 4_000;
const ENTRY_FIXES: u32 = 500;
const WARM_UP_FIXES: u32 = 1_600_000;
const MEASURED_FIXES: u32 = 800_000;
const TRIPS: usize = 2_000;
const TICKS: u32 = 120;
const ROUNDS_BEFORE_SLEEP: u32 = 5;
