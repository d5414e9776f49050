//! History: how many fixes one core puts into the embedded trail store, what a fix takes on disk, and how long a page of
//! a trail takes; beside SQLite, one row in a transaction and a batch in a transaction, with the same breadcrumbs.
//!
//! The breadcrumbs are those of drivers on the streets with a fix every 4 s, each placed on a road, all drivers in turn:
//! every batch has one fix of each of many drivers, which is the worst a store by driver can meet.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use backends::trail_store::embedded::{EmbeddedTrailConfig, EmbeddedTrailStore};
use backends::trail_store::{TrailPlace, TrailQuery, TrailStore};
use benches::cpu;
use benches::report::{Goal, Report};
use clap::Parser;
use hdrhistogram::Histogram;
use protocol::record::Door;
use protocol::update::{BreadcrumbBatch, SnappedPosition, Source};
use protocol::{
    Breadcrumb, DeliveryId, DeliveryKey, DeviceKey, DeviceNumber, DriverId, DriverKey, EdgeId, Fix, FixNumber,
    FixRecord, MeasuredTime, Offset, PartitionId, Position, TenantId, Time, Verdict, envelope,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rusqlite::{Connection, params};

#[derive(Parser)]
struct Arguments {
    /// Drivers who send in turn.
    #[arg(long, default_value_t = 2_000)]
    drivers: u32,
    /// Fixes of each.
    #[arg(long, default_value_t = 1_000)]
    fixes: u32,
    /// Fixes in an append.
    #[arg(long, default_value_t = 1_000)]
    batch: usize,
    /// Where history lies: the disk counts.
    #[arg(long)]
    folder: Option<std::path::PathBuf>,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut report = Report::new("trail");
    let parent = arguments.folder.clone().unwrap_or_else(std::env::temp_dir);
    let folder = tempfile::tempdir_in(parent).context("make a folder")?;
    let mut drivers: Vec<Driver> = (1..=arguments.drivers).map(Driver::new).collect();
    let all = u64::from(arguments.drivers) * u64::from(arguments.fixes);

    let store = Store::open(folder.path())?;
    let (mut working, mut on_core, mut next) = (Duration::ZERO, Duration::ZERO, 0);
    let mut slowest = Duration::ZERO;
    let mut made = Vec::new();
    for n in 0..arguments.fixes {
        made.extend(drivers.iter_mut().map(|driver| driver.drive(n)));
        if made.len() < MADE_AT_ONCE && n + 1 < arguments.fixes {
            continue;
        }
        let batches: Vec<Vec<Breadcrumb>> = made.chunks(arguments.batch).map(<[Breadcrumb]>::to_vec).collect();
        made.clear();
        let (begun, core) = (Instant::now(), cpu::of_process());
        for batch in batches {
            next += 1;
            let (append, partition) = (Instant::now(), PartitionId((next % 8) as u32));
            store.0.append(partition, batch, TrailPlace { incarnation: 1, offset: Offset(next) }).await?;
            slowest = slowest.max(append.elapsed());
        }
        working += begun.elapsed();
        on_core += cpu::of_process().saturating_sub(core);
    }
    let (begun, core) = (Instant::now(), cpu::of_process_ever());
    drop(store);
    working += begun.elapsed();
    on_core += cpu::of_process_ever().saturating_sub(core);
    let per_core = all as f64 / on_core.as_secs_f64();
    let rows = sqlite(folder.path(), &arguments)?;
    report.row("fixes/s of one core", per_core, "fixes/s", "CPU of the whole process", Goal::AtLeast(200_000.0));
    report.row("fixes/s by the clock", all as f64 / working.as_secs_f64(), "fixes/s", "with every sync", Goal::None);
    report.row("slowest append", slowest.as_secs_f64() * 1000.0, "ms", "with sealing", Goal::None);
    let bytes = bytes_of(&folder.path().join("trail"))? as f64 / all as f64;
    report.row("on disk", bytes, "B/fix", "keys and index with it", Goal::AtMost(25.0));
    for (what, row) in ["SQLite, a row a transaction", "SQLite, a batch a transaction"].into_iter().zip(rows) {
        report.row(what, row.per_core, "fixes/s", "of one core", Goal::None);
        report.row(&format!("{what}, by the clock"), row.by_clock, "fixes/s", "with every sync", Goal::None);
        report.row(&format!("{what}, on disk"), row.bytes, "B/fix", "without an index by delivery", Goal::None);
        report.row(&format!("ours beside {what}"), per_core / row.per_core, "", "of one core", Goal::None);
    }
    read(&mut report, folder.path(), &arguments).await?;
    report.finish()
}

struct Store(Arc<EmbeddedTrailStore>);

impl Store {
    fn open(folder: &Path) -> Result<Store> {
        let store = EmbeddedTrailStore::open_with(&folder.join("trail"), EmbeddedTrailConfig::default());
        Ok(Store(Arc::new(store.context("open history")?)))
    }
}

/// Pages as the API reads them.
async fn read(report: &mut Report, folder: &Path, arguments: &Arguments) -> Result<()> {
    let begun = Instant::now();
    let Store(store) = Store::open(folder)?;
    report.row("opening it again", begun.elapsed().as_secs_f64() * 1000.0, "ms", "after a clean stop", Goal::None);
    let mut rng = StdRng::seed_from_u64(5);
    let (mut of_driver, mut of_delivery) = (Histogram::<u64>::new(3)?, Histogram::<u64>::new(3)?);
    for _ in 0..PAGES {
        let driver = DriverId(rng.random_range(1..=arguments.drivers));
        let from = Time::from_secs(DAY_0_S + 4 * i64::from(rng.random_range(0..arguments.fixes)));
        let query = TrailQuery { from, until: Time(i64::MAX / 2), limit: 1_000 };
        let begun = Instant::now();
        store.driver_trail(DriverKey { tenant: TENANT, driver }, query).await?;
        of_driver.record(begun.elapsed().as_micros() as u64)?;
        let delivery = delivery_of(driver.0, rng.random_range(0..arguments.fixes));
        let begun = Instant::now();
        let key = DeliveryKey { tenant: TENANT, delivery };
        let found = store.delivery_trail(key, TrailQuery { from: Time(0), ..query }).await?;
        of_delivery.record(begun.elapsed().as_micros() as u64)?;
        anyhow::ensure!(!found.is_empty(), "a delivery has a trail");
    }
    let ms = |micros: u64| micros as f64 / 1000.0;
    report.row("a driver's page of 1,000, p50", ms(of_driver.value_at_quantile(0.5)), "ms", "", Goal::None);
    report.row("a driver's page of 1,000, p99", ms(of_driver.value_at_quantile(0.99)), "ms", "", Goal::AtMost(10.0));
    report.row("a delivery's trail, p50", ms(of_delivery.value_at_quantile(0.5)), "ms", "", Goal::None);
    report.row("a delivery's trail, p99", ms(of_delivery.value_at_quantile(0.99)), "ms", "", Goal::AtMost(10.0));
    Ok(())
}

struct Row {
    per_core: f64,
    by_clock: f64,
    bytes: f64,
}

/// One row a transaction for a while, then batches.
fn sqlite(folder: &Path, arguments: &Arguments) -> Result<[Row; 2]> {
    let single = sqlite_run(&folder.join("single.db"), arguments, 1, 2_000)?;
    let batched = sqlite_run(&folder.join("batched.db"), arguments, arguments.batch, 500_000)?;
    Ok([single, batched])
}

fn sqlite_run(path: &Path, arguments: &Arguments, batch: usize, count: u64) -> Result<Row> {
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "cache_size", -32_768)?;
    connection.execute_batch(
        "CREATE TABLE breadcrumbs (tenant INTEGER NOT NULL, driver INTEGER NOT NULL, measured_ds INTEGER NOT NULL,
         device INTEGER NOT NULL, lat_e7 INTEGER NOT NULL, lon_e7 INTEGER NOT NULL, breadcrumb BLOB NOT NULL,
         PRIMARY KEY (tenant, driver, measured_ds, device, lat_e7, lon_e7)) STRICT, WITHOUT ROWID;",
    )?;
    let mut drivers: Vec<Driver> = (1..=arguments.drivers).map(Driver::new).collect();
    let made: Vec<Breadcrumb> = (0..)
        .flat_map(|n| drivers.iter_mut().map(move |d| d.drive(n)).collect::<Vec<_>>())
        .take(count as usize)
        .collect();
    let (begun, core) = (Instant::now(), cpu::of_this_thread());
    for batch in made.chunks(batch) {
        connection.execute_batch("BEGIN IMMEDIATE")?;
        let mut insert = connection
            .prepare_cached("INSERT INTO breadcrumbs VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING")?;
        for breadcrumb in batch {
            let (device, fix) = (breadcrumb.record.device, &breadcrumb.record.fix);
            let bytes = envelope::encode(&BreadcrumbBatch { breadcrumbs: vec![*breadcrumb] });
            insert.execute(params![
                device.tenant.0,
                device.driver.0,
                fix.measured.0,
                device.device.0,
                fix.position.lat_e7,
                fix.position.lon_e7,
                bytes
            ])?;
        }
        connection.execute_batch("COMMIT")?;
    }
    let (by_clock, on_core) = (begun.elapsed(), cpu::of_this_thread().saturating_sub(core));
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    Ok(Row {
        per_core: count as f64 / on_core.as_secs_f64(),
        by_clock: count as f64 / by_clock.as_secs_f64(),
        bytes: std::fs::metadata(path)?.len() as f64 / count as f64,
    })
}

fn bytes_of(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}

/// On the streets of a city: straight on, round corners, standing at lights.
struct Driver {
    number: u32,
    rng: StdRng,
    at: (f64, f64),
    heading: f64,
    edge: u32,
    along_cm: u32,
    offset: u64,
}

impl Driver {
    fn new(number: u32) -> Driver {
        let rng = StdRng::seed_from_u64(u64::from(number));
        Driver { number, rng, at: (411_500_000.0, -86_100_000.0), heading: 0.7, edge: 1, along_cm: 0, offset: 0 }
    }

    /// His n-th fix, 4 s after the one before.
    fn drive(&mut self, n: u32) -> Breadcrumb {
        let rng = &mut self.rng;
        let speed_m_s = if n % 60 < 45 { 10.0 + rng.random_range(-2.0..2.0) } else { 0.0 };
        if rng.random_bool(0.08) {
            self.heading += [-1.57, 1.57][rng.random_range(0..2)];
        }
        self.at.0 += self.heading.cos() * speed_m_s * 4.0 * 90.0;
        self.at.1 += self.heading.sin() * speed_m_s * 4.0 * 119.0;
        self.along_cm += (speed_m_s * 400.0) as u32;
        if self.along_cm > 9_000 {
            (self.edge, self.along_cm) = (rng.random_range(1..60_000), self.along_cm % 9_000);
        }
        // Four metres of noise, on the wire's 10⁻⁶ °.
        let mut noise = || ((0..6).map(|_| rng.random_range(-1.0..1.0)).sum::<f64>() * 2.8 * 90.0) as i32 / 10 * 10;
        let at = Position { lat_e7: self.at.0 as i32, lon_e7: self.at.1 as i32 };
        let position = Position { lat_e7: at.lat_e7 / 10 * 10 + noise(), lon_e7: at.lon_e7 / 10 * 10 + noise() };
        let measured = MeasuredTime(DAY_0_S * 10 + i64::from(n) * 40 + i64::from(self.number % 40));
        let (north, east) = (f64::from(position.lat_e7 - at.lat_e7), f64::from(position.lon_e7 - at.lon_e7));
        self.offset += rng.random_range(3..6);
        Breadcrumb {
            record: FixRecord {
                device: DeviceKey { tenant: TENANT, driver: DriverId(self.number), device: DeviceNumber(1) },
                session_start: (DAY_0_S - 600) as u32,
                number: Some(FixNumber(70_000 + u64::from(n))),
                lowest_held: FixNumber(69_998 + u64::from(n)),
                edge: EdgeId(1),
                door: Door::Udp,
                received: measured.to_time() + Duration::from_millis(rng.random_range(60..400)),
                fix: Fix {
                    speed_dm_s: Some((speed_m_s * 10.0) as u16),
                    heading_255: Some(
                        (self.heading.rem_euclid(std::f64::consts::TAU) / std::f64::consts::TAU * 254.0) as u8,
                    ),
                    accuracy_m: Some(rng.random_range(4..9)),
                    ..Fix::at(measured, position)
                },
                verdict: Verdict::Accepted,
            },
            verdict: Verdict::Accepted,
            snapped: Some(SnappedPosition {
                position: at,
                edge: self.edge,
                along_cm: self.along_cm,
                off_cm: (north.hypot(east * 0.753) * 1.112) as u32,
                confidence_percent: rng.random_range(90..100),
            }),
            delivery: Some(delivery_of(self.number, n)),
            source: Source {
                partition: PartitionId(self.number % 8),
                offset: Offset(self.offset),
                index: rng.random_range(0..40),
                ordinal: 0,
            },
        }
    }
}

/// A delivery takes some 25 minutes.
fn delivery_of(driver: u32, n: u32) -> DeliveryId {
    DeliveryId(u64::from(driver) << 20 | u64::from(n / 400))
}

const TENANT: TenantId = TenantId(1);
const DAY_0_S: i64 = 19_000 * 86_400;
const PAGES: usize = 2_000;
/// Breadcrumbs that are ready before the clock runs.
const MADE_AT_ONCE: usize = 100_000;
