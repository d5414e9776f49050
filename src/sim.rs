//! `wayfix sim` and `wayfix replay`: drivers against a running server, over real sockets.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use daemon::{Clock, Scale, Signals};
use fleet::replay::{self, ReplayOptions};
use fleet::sim::{self, SimOptions};
use fleet::{Conditions, FleetOptions, Report, TenantKey};
use protocol::Time;
use protocol::record::Vehicle;

use crate::output::Standard;
use crate::up;

/// What both kinds of fleet are told.
#[derive(clap::Args)]
struct FleetArguments {
    /// The server: https://…, or http://… on this machine.
    #[arg(long, default_value = "http://127.0.0.1:8080", value_name = "URL")]
    api: String,
    /// The file that holds the tenant's API key.
    #[arg(long, default_value = "wayfix-data/tenant.key", value_name = "FILE")]
    key_file: PathBuf,
    /// The same seed drives the same ways with the same errors.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The share of datagrams that the network loses, each way.
    #[arg(long, default_value_t = 0.0)]
    loss: f64,
    /// The share of datagrams that come twice.
    #[arg(long, default_value_t = 0.0)]
    duplicate: f64,
    /// How long the network takes at most; datagrams overtake each other.
    #[arg(long, default_value_t = 0)]
    delay_ms_max: u32,
    /// Ends after so many seconds.
    #[arg(long, value_name = "SECONDS")]
    duration: Option<u64>,
    /// Writes every fix that was acknowledged, as JSON lines.
    #[arg(long, value_name = "FILE")]
    acked: Option<PathBuf>,
    /// Writes where every driver truly was at every second, as JSON lines.
    #[arg(long, value_name = "FILE")]
    truth: Option<PathBuf>,
    /// A clock that runs so much faster than life, as the server's does.
    #[arg(long, default_value_t = 1.0, requires = "clock_origin_ms")]
    clock_factor: f64,
    #[arg(long, value_name = "UNIX_MS")]
    clock_origin_ms: Option<i64>,
}

#[derive(clap::Args)]
pub struct SimArguments {
    #[command(flatten)]
    fleet: FleetArguments,
    #[arg(long, value_name = "CITY.wfm")]
    map: PathBuf,
    #[arg(long, default_value_t = 10)]
    drivers: u32,
    /// What they travel by, one after the other: car, moped, bicycle, foot.
    #[arg(long, value_delimiter = ',', default_value = "car", value_parser = vehicle, value_name = "VEHICLE,…")]
    vehicles: Vec<Vehicle>,
    /// How far apart fixes are.
    #[arg(long, default_value_t = 4, value_name = "SECONDS")]
    every: u64,
}

#[derive(clap::Args)]
pub struct ReplayArguments {
    #[command(flatten)]
    fleet: FleetArguments,
    /// GPX, the taxi CSV, or JSON lines of trips with truth.
    traces: PathBuf,
    /// At most so many trips are under way at a time.
    #[arg(long, default_value_t = 50, value_name = "N")]
    trips: usize,
    /// Only the first so many trips of the file.
    #[arg(long, value_name = "N")]
    trips_max: Option<usize>,
    /// Sends a fix only every so many seconds of the trace.
    #[arg(long, value_name = "SECONDS")]
    every: Option<u64>,
    /// Drives each trip again when it has ended.
    #[arg(long)]
    again: bool,
}

pub fn simulate(arguments: &SimArguments) -> Result<()> {
    daemon::logging::start(daemon::logging::LogFormat::Text, "warn");
    let mut options = SimOptions::new(arguments.fleet.options()?, &arguments.map);
    options.drivers = arguments.drivers;
    options.vehicles.clone_from(&arguments.vehicles);
    options.interval = Duration::from_secs(arguments.every.max(1));
    options.duration = arguments.fleet.duration.map(Duration::from_secs);
    let signals = Signals::listen()?;
    let report = up::runtime()?.block_on(sim::run(options, told_to_stop(signals))).context("drive")?;
    print(&report)
}

pub fn replay(arguments: &ReplayArguments) -> Result<()> {
    daemon::logging::start(daemon::logging::LogFormat::Text, "warn");
    let mut options = ReplayOptions::new(arguments.fleet.options()?, &arguments.traces);
    options.trips_max = arguments.trips_max;
    options.at_once = arguments.trips;
    options.every = arguments.every.map(Duration::from_secs);
    options.again = arguments.again;
    options.duration = arguments.fleet.duration.map(Duration::from_secs);
    let signals = Signals::listen()?;
    let report = up::runtime()?.block_on(replay::run(options, told_to_stop(signals))).context("drive")?;
    print(&report)
}

fn vehicle(name: &str) -> Result<Vehicle, String> {
    serde_json::from_value(name.into()).map_err(|_| "expected car, moped, bicycle or foot".to_string())
}

async fn told_to_stop(signals: Signals) {
    signals.stop.cancelled().await;
}

fn print(report: &Report) -> Result<()> {
    Ok(writeln!(Standard, "{}", serde_json::to_string_pretty(report)?)?)
}

impl FleetArguments {
    fn options(&self) -> Result<FleetOptions> {
        let key = std::fs::read_to_string(&self.key_file)
            .with_context(|| format!("read the tenant's key from {}", self.key_file.display()))?;
        let mut options = FleetOptions::new(&self.api, TenantKey::new(key.trim()));
        options.seed = self.seed;
        options.network =
            Conditions { loss: self.loss, duplicate: self.duplicate, delay_ms_min: 0, delay_ms_max: self.delay_ms_max };
        options.acked.clone_from(&self.acked);
        options.truth.clone_from(&self.truth);
        if let Some(origin_ms) = self.clock_origin_ms {
            let clock = Clock::scaled(Scale { factor: self.clock_factor, origin_ms })?;
            options.clock = Arc::new(FleetClock(clock));
        }
        Ok(options)
    }
}

/// The same clock as a scaled server's.
struct FleetClock(Clock);

impl phone::Clock for FleetClock {
    fn now(&self) -> Time {
        Time(self.0.now_ms())
    }

    fn real(&self, duration: Duration) -> Duration {
        self.0.real(duration)
    }
}
