//! The fold: CPU per fix with map, matcher, plans and all sinks, at few and at many drivers; what a tick costs when
//! nobody drives; what a tracker takes of memory; how long a snapshot lets the fold stand still, and how long a restart
//! takes. Beside it, in the same run and on the same fixes: the matcher alone, and decoding alone.
//!
//! One partition on one thread, with the product's allocator. CPU is the thread's own, and where sinks take part that of
//! the process, so other work on the machine disturbs it little.

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use benches::allocated::{self, Counted};
use benches::fleet::{ROUND_MS, fleet_entries, trips};
use benches::fold_world::{OneMap, World};
use benches::{Goal, Report, cpu};
use clap::Parser;
use maps::import::{ImportOptions, import_bytes};
use maps::matcher::{Matcher, Observation, Scratch};
use maps::{Graph, Profile};
use processor::track::{Bodies, NoBodies, Partition, SnapshotEncoder, TrackerCopy, WORK_PER_STEP};
use protocol::envelope;
use protocol::update::Generation;
use protocol::{Fix, MeasuredTime, Position, RecordBatch};

#[global_allocator]
static ALLOCATOR: Counted = Counted;

#[derive(Parser)]
struct Arguments {
    /// The extract of the map.
    #[arg(long, default_value = "../shared/data/maps/porto.osm.pbf")]
    extract: PathBuf,
    /// How many drivers move; one run each, none with 0.
    #[arg(long, default_values_t = [1_000, 20_000, 200_000])]
    drivers: Vec<u32>,
    /// How many drivers are idle.
    #[arg(long, default_value_t = 1_000_000)]
    idle: u32,
    /// How many live drivers a snapshot is taken of.
    #[arg(long, default_value_t = 100_000)]
    snapshot: u32,
    /// How many drivers, live or asleep, are measured for the memory that each takes.
    #[arg(long, default_value_t = 5_000)]
    weighed: u32,
    /// Without the sinks.
    #[arg(long)]
    no_sinks: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    daemon::huge_pages::do_without();
    let mut report = Report::new("fold");
    let extract = std::fs::read(&arguments.extract).context("read the extract")?;
    let graph = Graph::from_bytes(&import_bytes(&extract, &ImportOptions::default()).context("import the extract")?)?;
    let bodies = OneMap::of(graph);
    let trips = trips(&bodies.0.graph)?;

    matcher_alone(&bodies, &trips, &mut report);
    let mut costs = Vec::new();
    for drivers in arguments.drivers.iter().filter(|drivers| **drivers > 0) {
        costs.push(moving(*drivers, !arguments.no_sinks, &bodies, &trips, &mut report)?);
    }
    if let (Some(first), Some(last)) = (costs.first(), costs.last()) {
        let grown = (last / first - 1.0) * 100.0;
        report.row("dearer at the most drivers than at the fewest", grown, "%", "", Goal::AtMost(15.0));
    }
    if arguments.weighed > 0 {
        live_memory(arguments.weighed, &bodies, &trips, &mut report)?;
        dormant_memory(arguments.weighed, &bodies, &trips, &mut report)?;
    }
    if arguments.snapshot > 0 {
        snapshot_pause(arguments.snapshot, &bodies, &trips, &mut report)?;
    }
    if arguments.idle > 0 {
        idle(arguments.idle, &trips, &mut report)?;
    }
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
fn moving(
    drivers: u32,
    with_sinks: bool,
    bodies: &OneMap,
    trips: &[Vec<Position>],
    report: &mut Report,
) -> anyhow::Result<f64> {
    let mut world = World::new(bodies);
    if with_sinks {
        world = world.with_sinks()?;
    }
    world.assign(drivers, trips)?;
    let mut round = 0;
    let mut next_entries = |now| {
        round += 1;
        fleet_entries(0..drivers, round - 1, trips, now)
    };
    for _ in 0..WARM_UP_ROUNDS {
        world.fold_all(&next_entries(world.now))?;
    }
    let rounds = (MEASURED_FIXES / drivers).max(3);
    world.folding = Duration::ZERO;
    let (mut all, mut decoding) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..rounds {
        let entries = next_entries(world.now);
        let began = cpu::of_this_thread();
        for entry in &entries {
            black_box(envelope::decode::<RecordBatch>(entry)?);
        }
        decoding += cpu::of_this_thread() - began;
        let began = cpu::of_process_ever();
        world.fold_all(&entries)?;
        all += cpu::of_process_ever() - began;
    }
    let fixes = u64::from(drivers) * u64::from(rounds);
    let us = micros(all, fixes);
    let beside = format!(
        "the fold {:.2}, of it decoding {:.2}; the sinks {:.2}; {:.1} updates in 10 fixes",
        micros(world.folding, fixes),
        micros(decoding, fixes),
        micros(all.saturating_sub(world.folding), fixes),
        world.updates as f64 / world.fixes.max(1) as f64 * 10.0
    );
    report.row(&format!("CPU per fix, {drivers} drivers"), us, "us CPU", &beside, Goal::AtMost(8.0));
    ensure!(world.partition.trackers_len() == drivers as usize, "every driver has a tracker");
    ensure!(world.failed == 0, "{} folds failed", world.failed);
    Ok(us)
}

/// What drivers take who have been under way for so long that all that is kept of their fixes is full.
fn live_memory(drivers: u32, bodies: &OneMap, trips: &[Vec<Position>], report: &mut Report) -> anyhow::Result<()> {
    let (held, resident) = (allocated::by_this_thread(), resident_bytes());
    let mut world = World::new(bodies);
    world.assign(drivers, trips)?;
    for round in 0..ROUNDS_UNTIL_FULL {
        world.fold_all(&fleet_entries(0..drivers, round, trips, world.now))?;
    }
    let each = |bytes: i64| bytes as f64 / f64::from(drivers);
    let bytes = each(allocated::by_this_thread() - held);
    let beside = format!(
        "as allocated, after {ROUNDS_UNTIL_FULL} fixes each; {:.0} resident",
        each(resident_bytes() - resident)
    );
    report.row("memory per live tracker", bytes, "B", &beside, Goal::None);
    Ok(())
}

/// How long the fold stands still for a snapshot of live drivers, which is taken a step at a time while it goes on.
fn snapshot_pause(drivers: u32, bodies: &OneMap, trips: &[Vec<Position>], report: &mut Report) -> anyhow::Result<()> {
    let mut world = World::new(bodies);
    world.assign(drivers, trips)?;
    for round in 0..WARM_UP_ROUNDS {
        world.fold_all(&fleet_entries(0..drivers, round, trips, world.now))?;
    }
    let (mut longest, mut longest_by_clock, mut bytes) = (Duration::ZERO, Duration::ZERO, 0);
    for taken in 0..SNAPSHOTS {
        let entries = fleet_entries(0..drivers, WARM_UP_ROUNDS + taken, trips, world.now);
        let mut entries = entries.iter();
        let (copies, pieces) = mpsc::sync_channel::<Vec<TrackerCopy>>(4);
        let mut pauses = Pauses::default();
        let head = pauses.measure(|| world.partition.begin_snapshot(None));
        let encoder = std::thread::spawn(move || {
            let mut encoder = SnapshotEncoder::begin(head)?;
            for copy in pieces.iter().flatten() {
                encoder.add(&copy)?;
            }
            encoder.end()
        });
        loop {
            let (some, is_end) = pauses.measure(|| world.partition.gather(WORK_PER_STEP));
            copies.send(some).map_err(|_| anyhow!("the encoder ended"))?;
            if is_end {
                break;
            }
            if let Some(entry) = entries.next() {
                world.fold(entry)?;
            }
        }
        drop(copies);
        bytes = encoder.join().map_err(|_| anyhow!("the encoder panicked"))??.len();
        entries.try_for_each(|entry| world.fold(entry))?;
        world.now += ROUND_MS;
        longest = longest.max(pauses.longest);
        longest_by_clock = longest_by_clock.max(pauses.longest_by_clock);
    }
    let ms = |pause: Duration| pause.as_secs_f64() * 1e3;
    let beside = format!(
        "CPU; {:.1} ms by the clock; {drivers} live drivers, {SNAPSHOTS} snapshots of {:.1} MB",
        ms(longest_by_clock),
        bytes as f64 / 1e6
    );
    report.row("longest pause of the fold for a snapshot", ms(longest), "ms", &beside, Goal::AtMost(10.0));
    Ok(())
}

/// The longest of some steps.
#[derive(Default)]
struct Pauses {
    longest: Duration,
    longest_by_clock: Duration,
}

impl Pauses {
    fn measure<T>(&mut self, step: impl FnOnce() -> T) -> T {
        let (began, began_by_clock) = (cpu::of_this_thread(), Instant::now());
        let made = black_box(step());
        self.longest_by_clock = self.longest_by_clock.max(began_by_clock.elapsed());
        self.longest = self.longest.max(cpu::of_this_thread() - began);
        made
    }
}

/// Drivers who went home long ago: what a tick costs, and how long a restart with them takes.
fn idle(drivers: u32, trips: &[Vec<Position>], report: &mut Report) -> anyhow::Result<()> {
    let mut world = asleep(drivers, &NoBodies, trips)?;
    let (mut longest, mut all) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..TICKS {
        let began = cpu::of_this_thread();
        world.tick()?;
        let took = cpu::of_this_thread() - began;
        longest = longest.max(took);
        all += took;
    }
    let beside = format!("{drivers} idle drivers, {TICKS} ticks; the longest {:.3} ms", longest.as_secs_f64() * 1e3);
    report.row("a tick", all.as_secs_f64() * 1e3 / f64::from(TICKS), "ms CPU", &beside, Goal::AtMost(1.0));
    let snapshot = world.partition.snapshot()?;
    drop(world);
    let (began, began_by_clock) = (cpu::of_this_thread(), Instant::now());
    let restored = Partition::restore(&snapshot, Generation::default(), &NoBodies)?;
    let took = cpu::of_this_thread() - began;
    let by_clock = began_by_clock.elapsed().as_secs_f64();
    let beside = format!("{by_clock:.1} s by the clock; {drivers} drivers, {:.0} MB", snapshot.len() as f64 / 1e6);
    report.row("a restart from a snapshot", took.as_secs_f64(), "s CPU", &beside, Goal::AtMost(10.0));
    ensure!(restored.dormant_len() == drivers as usize, "they still sleep");
    Ok(())
}

/// What drivers take who drove on a map and sleep.
fn dormant_memory(drivers: u32, bodies: &OneMap, trips: &[Vec<Position>], report: &mut Report) -> anyhow::Result<()> {
    let snapshot = asleep(drivers, bodies, trips)?.partition.snapshot()?;
    let held = allocated::by_this_thread();
    let restored = black_box(Partition::restore(&snapshot, Generation::default(), bodies)?);
    let bytes = (allocated::by_this_thread() - held) as f64 / f64::from(drivers);
    ensure!(restored.dormant_len() == drivers as usize, "they still sleep");
    let beside = format!("{drivers} drivers who drove, as allocated");
    report.row("memory per dormant tracker", bytes, "B", &beside, Goal::AtMost(300.0));
    Ok(())
}

/// Drivers who drove for a while, more than two hours ago: nobody looks at them any more. They went to sleep one group
/// after the other, so that few were awake at a time.
fn asleep<'a>(drivers: u32, bodies: &'a dyn Bodies, trips: &[Vec<Position>]) -> anyhow::Result<World<'a>> {
    let mut world = World::new(bodies);
    let mut first = 0;
    while first < drivers {
        let next = drivers.min(first + GROUP);
        for round in 0..ROUNDS_BEFORE_SLEEP {
            world.fold_all(&fleet_entries(first..next, round, trips, world.now))?;
        }
        world.now += SLEEP_MS;
        for _ in 0..90 {
            world.tick()?;
        }
        ensure!(world.partition.dormant_len() == next as usize, "they all sleep");
        first = next;
    }
    Ok(world)
}

fn micros(time: Duration, count: u64) -> f64 {
    time.as_secs_f64() * 1e6 / count.max(1) as f64
}

/// Memory of this process that lies in RAM.
fn resident_bytes() -> i64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
    pages * 4_096
}

/// Longer than the matcher waits until a place is final.
const WARM_UP_ROUNDS: u32 = 14;
const MEASURED_FIXES: u32 = 600_000;
/// More than the identities of fixes that are kept of a device.
const ROUNDS_UNTIL_FULL: u32 = 270;
const SNAPSHOTS: u32 = 3;
const TICKS: u32 = 120;
const ROUNDS_BEFORE_SLEEP: u32 = 5;
/// Longer than a driver is shown after his last fix, and until he sleeps.
const SLEEP_MS: i64 = 2 * 3_600_000 + 700_000;
/// Drivers who go to sleep at a time.
const GROUP: u32 = 50_000;
