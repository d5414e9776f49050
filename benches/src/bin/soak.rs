//! A soak: phones, watchers that come and go, and deliveries begun and finished against the release binary, for as long as
//! is asked for; what the server holds and writes meanwhile, minute by minute, and whether it grows by what is over.
//!
//! Phones post by the JSON door, because that costs this side least; the server does all it does for sealed ones behind it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use benches::http::Http;
use benches::server::{Server, ServerOptions, enrol, field, made, number_of};
use benches::{Goal, Report};
use clap::Parser;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    #[arg(long, default_value_t = 220)]
    phones: u32,
    /// Between two fixes of a phone.
    #[arg(long, default_value_t = 2.0)]
    every_s: f64,
    /// Deliveries under way at a time, each with a phone of its own.
    #[arg(long, default_value_t = 60)]
    deliveries: u32,
    /// How long a delivery takes.
    #[arg(long, default_value_t = 80)]
    delivery_s: u64,
    #[arg(long, default_value_t = 100)]
    watchers: u32,
    /// What counts as warm-up: memory is judged from here on.
    #[arg(long, default_value_t = 10)]
    warm_minutes: u64,
    /// A city; without one ways are straight lines.
    #[arg(long)]
    map: Option<PathBuf>,
    /// The build to be judged.
    #[arg(long)]
    binary: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    anyhow::ensure!(arguments.minutes > arguments.warm_minutes, "the soak must go on after its warm-up");
    anyhow::ensure!(arguments.phones >= arguments.deliveries, "each delivery has a phone of its own");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(soak(arguments))
}

async fn soak(arguments: Arguments) -> Result<()> {
    let mut report = Report::new("soak");
    let folder = tempfile::tempdir().context("make a folder")?;
    let center = match &arguments.map {
        Some(map) => center_of(map)?,
        None => CENTER,
    };
    let options = ServerOptions { binary: arguments.binary.clone(), map: arguments.map.clone() };
    let server = Server::start(&options, folder.path()).await?;
    let world = Arc::new(World::new(&server, center, &arguments));
    let key = server.key()?;
    let phones = enrol(&server, arguments.phones).await?;
    let mut tasks = JoinSet::new();
    for (number, phone) in phones.iter().enumerate() {
        tasks.spawn(post(world.clone(), phone.credential.clone(), number));
    }
    for (number, phone) in phones.iter().take(arguments.deliveries as usize).enumerate() {
        tasks.spawn(deliver(world.clone(), key.clone(), phone.driver, number));
    }
    for number in 0..arguments.watchers {
        tasks.spawn(watch(world.clone(), u64::from(number)));
    }
    let samples = sample(&server, &world, &arguments, &mut tasks).await?;
    tasks.abort_all();
    judge(&mut report, &samples, &arguments);
    let failures = world.failures.load(Ordering::Relaxed) as f64;
    report.row("requests that failed", failures, "", "of all, the warm-up's too", Goal::AtMost(10.0));
    let holds = report.rows.iter().all(|row| row.holds != Some(false));
    println!("{}", if holds { "the soak is passed" } else { "the soak is NOT passed: see the rows that do not hold" });
    report.finish()?;
    anyhow::ensure!(holds, "the soak is not passed");
    Ok(())
}

/// What phones, deliveries and watchers share.
struct World {
    http: SocketAddr,
    /// Of the city.
    center: (f64, f64),
    every: Duration,
    delivery: Duration,
    /// Where each phone drives to.
    targets: Mutex<Vec<(f64, f64)>>,
    places: Mutex<Vec<(f64, f64)>>,
    /// Deliveries under way and their tokens, by slot.
    open: Mutex<Vec<Option<(u64, String)>>>,
    fixes: AtomicU64,
    finished: AtomicU64,
    watched: AtomicU64,
    failures: AtomicU64,
}

impl World {
    fn new(server: &Server, center: (f64, f64), arguments: &Arguments) -> World {
        let mut rng = StdRng::seed_from_u64(11);
        let places: Vec<(f64, f64)> = (0..arguments.phones).map(|_| near(center, 0.008, &mut rng)).collect();
        World {
            http: server.http,
            center,
            every: Duration::from_secs_f64(arguments.every_s),
            delivery: Duration::from_secs(arguments.delivery_s),
            targets: Mutex::new(places.clone()),
            places: Mutex::new(places),
            open: Mutex::new(vec![None; arguments.deliveries as usize]),
            fixes: AtomicU64::new(0),
            finished: AtomicU64::new(0),
            watched: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }

    fn place(&self, phone: usize) -> (f64, f64) {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)[phone]
    }

    fn send_to(&self, phone: usize, target: (f64, f64)) {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)[phone] = target;
    }

    /// Moves the phone on, and says where it is.
    fn drive(&self, phone: usize, metres: f64, rng: &mut StdRng) -> (f64, f64) {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let (target, place) = (targets[phone], places[phone]);
        let (north, east) =
            ((target.0 - place.0) * 111_195.0, (target.1 - place.1) * 111_195.0 * place.0.to_radians().cos());
        let left = north.hypot(east);
        if left <= metres {
            places[phone] = target;
            targets[phone] = near(self.center, 0.008, rng);
        } else {
            let part = metres / left;
            places[phone] = (place.0 + (target.0 - place.0) * part, place.1 + (target.1 - place.1) * part);
        }
        places[phone]
    }
}

/// A phone: a fix every so often, a few metres on.
async fn post(world: Arc<World>, credential: String, number: usize) {
    let mut rng = StdRng::seed_from_u64(number as u64);
    let mut http = Http::new(world.http);
    sleep(world.every.mul_f64(rng.random_range(0.0..1.0))).await;
    let mut beat = interval(world.every);
    beat.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        beat.tick().await;
        let (lat, lng) = world.drive(number, 10.0 * world.every.as_secs_f64(), &mut rng);
        let (lat, lng) = near((lat, lng), 0.000_03, &mut rng);
        let fix = json!([{ "lat": lat, "lng": lng, "timestamp": unix_s(), "speed": 10.0, "accuracy": 5 }]);
        match http.call("POST", "/api/v1/tracking/locations", Some(&credential), Some(&fix)).await {
            Ok((202, _)) => world.fixes.fetch_add(1, Ordering::Relaxed),
            Ok(_) | Err(_) => world.failures.fetch_add(1, Ordering::Relaxed),
        };
    }
}

/// One delivery after the other for one driver.
async fn deliver(world: Arc<World>, key: String, driver: u64, slot: usize) {
    let mut rng = StdRng::seed_from_u64(1_000 + slot as u64);
    let mut http = Http::new(world.http);
    sleep(world.delivery.mul_f64(rng.random_range(0.0..1.0))).await;
    loop {
        if deliver_one(&world, &mut http, &key, driver, slot, &mut rng).await.is_err() {
            world.failures.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_secs(1)).await;
        }
    }
}

async fn deliver_one(
    world: &World,
    http: &mut Http,
    key: &str,
    driver: u64,
    slot: usize,
    rng: &mut StdRng,
) -> Result<()> {
    let (pickup, drop_off) = (near(world.place(slot), 0.002, rng), near(world.center, 0.008, rng));
    let stop = |kind: &str, at: (f64, f64)| json!({ "kind": kind, "lat": at.0, "lng": at.1, "label": kind });
    let order = json!({
        "driver": driver, "reference": format!("order {slot}"),
        "stops": [stop("pickup", pickup), stop("drop_off", drop_off)],
    });
    let delivery = made(http.call("POST", "/api/v1/deliveries", Some(key), Some(&order)).await?)?;
    let number = number_of(&delivery["delivery"])?;
    let token = delivery["token"].as_str().context("a delivery has a token")?.to_string();
    world.open.lock().unwrap_or_else(PoisonError::into_inner)[slot] = Some((number, token));
    world.send_to(slot, pickup);
    let path = format!("/api/v1/deliveries/{number}/status");
    for (status, wait) in
        [("accepted", 0.05), ("preparing", 0.2), ("ready", 0.15), ("picked_up", 0.5), ("delivered", 0.1)]
    {
        sleep(world.delivery.mul_f64(wait)).await;
        let change = json!({ "status": status });
        let (code, body) = http.call("POST", &path, Some(key), Some(&change)).await?;
        // The tracker may have seen him leave the shop before.
        anyhow::ensure!(code == 200 || (code == 409 && status == "picked_up"), "{code}: {body}");
        if status == "picked_up" {
            world.send_to(slot, drop_off);
        }
    }
    world.finished.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// A customer: opens a delivery's stream, reads for a while, goes away, and comes back to another.
async fn watch(world: Arc<World>, number: u64) {
    let mut rng = StdRng::seed_from_u64(2_000 + number);
    loop {
        sleep(Duration::from_millis(rng.random_range(100..2_000))).await;
        let open = {
            let open = world.open.lock().unwrap_or_else(PoisonError::into_inner);
            open[rng.random_range(0..open.len())].clone()
        };
        let Some((delivery, token)) = open else { continue };
        let path = format!("/api/v1/tracking/{delivery}/events?token={token}");
        let stays = Duration::from_secs(rng.random_range(5..60));
        let mut http = Http::new(world.http);
        match tokio::time::timeout(stays, http.stream("GET", &path)).await {
            Ok(Ok(bytes)) if bytes > 0 => {}
            Ok(_) => drop(world.failures.fetch_add(1, Ordering::Relaxed)),
            Err(_) => {}
        }
        world.watched.fetch_add(1, Ordering::Relaxed);
    }
}

/// What the server held and had done at a time.
#[derive(Clone, Copy)]
struct Sample {
    at_s: f64,
    anonymous_kib: f64,
    descriptors: f64,
    threads: f64,
    written: f64,
    fixes: f64,
    finished: f64,
}

async fn sample(server: &Server, world: &World, arguments: &Arguments, tasks: &mut JoinSet<()>) -> Result<Vec<Sample>> {
    let begun = Instant::now();
    let mut samples: Vec<Sample> = Vec::new();
    println!("  min  anonymous  descriptors  threads  B/fix written    fixes  finished  streams  failures");
    while begun.elapsed() < Duration::from_secs(60 * arguments.minutes) {
        tokio::select! {
            () = sleep(SAMPLE_EVERY) => {}
            Some(ended) = tasks.join_next() => bail!("a part of the soak ended: {ended:?}"),
        }
        let sample = Sample {
            at_s: begun.elapsed().as_secs_f64(),
            anonymous_kib: server.anonymous_kib()?,
            descriptors: std::fs::read_dir(format!("/proc/{}/fd", server.id()))?.count() as f64,
            threads: field(&server.proc("status")?, "Threads:")?,
            written: field(&server.proc("io")?, "write_bytes:")?,
            fixes: world.fixes.load(Ordering::Relaxed) as f64,
            finished: world.finished.load(Ordering::Relaxed) as f64,
        };
        samples.push(sample);
        if samples.len().is_multiple_of(SAMPLES_PER_LINE) {
            println!(
                "{:5.1} {:8.1} MB {:12} {:8} {:14.0} {:8} {:9} {:8} {:9}",
                sample.at_s / 60.0,
                sample.anonymous_kib / 1024.0,
                sample.descriptors,
                sample.threads,
                sample.written / sample.fixes.max(1.0),
                sample.fixes,
                sample.finished,
                world.watched.load(Ordering::Relaxed),
                world.failures.load(Ordering::Relaxed),
            );
        }
    }
    Ok(samples)
}

fn judge(report: &mut Report, samples: &[Sample], arguments: &Arguments) {
    let is_warm = |sample: &&Sample| sample.at_s >= 60.0 * arguments.warm_minutes as f64;
    let warm: Vec<Sample> = samples.iter().filter(is_warm).copied().collect();
    let (Some(first), Some(last)) = (warm.first(), warm.last()) else { return };
    let hours = (last.at_s - first.at_s) / 3_600.0;
    let (deliveries, fixes) = (last.finished - first.finished, last.fixes - first.fixes);
    let slope = slope(warm.iter().map(|sample| (sample.at_s / 3_600.0, sample.anonymous_kib)));
    let by_rule = deliveries / hours; // 1 KiB each
    report.row("anonymous memory at the end", last.anonymous_kib / 1024.0, "MiB", "", Goal::None);
    report.row("its growth", slope / 1024.0, "MiB/h", "a line through all samples after the warm-up", Goal::None);
    report.row(
        "its growth beyond 1 KiB a delivery",
        (slope - by_rule) / 1024.0,
        "MiB/h",
        "deliveries finished meanwhile",
        Goal::AtMost(1.0),
    );
    report.row("deliveries finished", deliveries, "", "after the warm-up", Goal::None);
    report.row("fixes", fixes / (last.at_s - first.at_s), "fixes/s", "accepted", Goal::None);
    report.row("written to disk", (last.written - first.written) / fixes.max(1.0), "B/fix", "all files", Goal::None);
    let spread = |of: fn(&Sample) -> f64| slope_of(&warm, of) * hours;
    report.row("descriptors more at the end", spread(|s| s.descriptors), "", "the line's end", Goal::AtMost(5.0));
    report.row("threads more at the end", spread(|s| s.threads), "", "the line's end", Goal::AtMost(1.0));
}

fn slope_of(samples: &[Sample], of: fn(&Sample) -> f64) -> f64 {
    slope(samples.iter().map(|sample| (sample.at_s / 3_600.0, of(sample))))
}

/// Of the line that lies nearest to all points.
fn slope(points: impl Iterator<Item = (f64, f64)> + Clone) -> f64 {
    let count = points.clone().count() as f64;
    let (x, y) = points.clone().fold((0.0, 0.0), |(x, y), point| (x + point.0 / count, y + point.1 / count));
    let (above, below) =
        points.fold((0.0, 0.0), |(a, b), point| (a + (point.0 - x) * (point.1 - y), b + (point.0 - x).powi(2)));
    if below > 0.0 { above / below } else { 0.0 }
}

fn center_of(map: &std::path::Path) -> Result<(f64, f64)> {
    let bbox = maps::Graph::open(map).with_context(|| format!("open {}", map.display()))?.bbox();
    let middle = |a: i32, b: i32| (f64::from(a) + f64::from(b)) / 2e7;
    Ok((middle(bbox.south_west.lat_e7, bbox.north_east.lat_e7), middle(bbox.south_west.lon_e7, bbox.north_east.lon_e7)))
}

fn near(at: (f64, f64), off: f64, rng: &mut StdRng) -> (f64, f64) {
    (at.0 + rng.random_range(-off..off), at.1 + rng.random_range(-off..off))
}

fn unix_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Where there is no map: anywhere.
const CENTER: (f64, f64) = (43.737, 7.421);
const SAMPLE_EVERY: Duration = Duration::from_secs(10);
const SAMPLES_PER_LINE: usize = 6;
