//! What simulated and replayed drivers have in common: an API, a clock, a network, files, and a phone each.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use maps::MapError;
use maps::traces::TraceError;
use phone::driver::{HttpClients, NotTaken, StartError};
use phone::{ClientStats, Clock, Phone, PhoneConfig, PhoneHandle};
use protocol::record::Vehicle;
use protocol::{Fix, Time};
use serde::Serialize;
use tokio::sync::watch;

use crate::api::{Api, ApiError, TenantKey};
use crate::network::{Conditions, Network, NetworkReport};
use crate::record::{AckedLine, Lines};

/// Where a fleet drives and what it leaves behind.
#[derive(Clone)]
pub struct FleetOptions {
    /// Base of the API: `https://…`, or `http://…` on loopback.
    pub api_url: String,
    /// SHA-256 of the API's certificate, where it is a self-signed one.
    pub api_pin: Option<[u8; 32]>,
    pub tenant_key: TenantKey,
    /// The server's clock and the fleet's must agree: both real, or both scaled alike.
    pub clock: Arc<dyn Clock>,
    pub network: Conditions,
    /// The same seed drives the same ways with the same errors.
    pub seed: u64,
    /// Every fix that was acknowledged, as JSON lines (`AckedLine`).
    pub acked: Option<PathBuf>,
    /// Where every driver truly was at every second, as JSON lines (`TruthLine`).
    pub truth: Option<PathBuf>,
    /// How long phones may take at the end to bring home what they hold.
    pub drain_max: Duration,
}

impl FleetOptions {
    pub fn new(api_url: impl Into<String>, tenant_key: TenantKey) -> Self {
        FleetOptions {
            api_url: api_url.into(),
            api_pin: None,
            tenant_key,
            clock: Arc::new(phone::SystemClock::default()),
            network: Conditions::PERFECT,
            seed: 1,
            acked: None,
            truth: None,
            drain_max: Duration::from_secs(20),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Map(#[from] MapError),
    #[error(transparent)]
    Traces(#[from] TraceError),
    #[error("a phone cannot be started")]
    Phone(#[from] StartError),
    #[error("{path} cannot be written")]
    File { path: PathBuf, source: io::Error },
    #[error("the map has no street that one can drive on")]
    NoStreets,
    #[error("the traces hold no trip of two fixes")]
    NoTrips,
    #[error("a driver's task broke off")]
    Broken,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub drivers: u64,
    pub deliveries_created: u64,
    pub deliveries_delivered: u64,
    /// Given up because the API refused.
    pub deliveries_failed: u64,
    /// Picked up by the driver's own word, because the tracker had not seen it.
    pub picked_up_by_hand: u64,
    /// Of the drives that came to their end.
    pub distance_km: f64,
    pub fixes_made: u64,
    /// Not taken by a phone that was busy or had stopped.
    pub fixes_refused: u64,
    /// Sealed and sent at least once.
    pub fixes_sent: u64,
    pub fixes_sent_again: u64,
    pub fixes_acked: u64,
    /// Thinned from a full queue.
    pub fixes_thinned: u64,
    /// Still held when the fleet ended.
    pub fixes_left: u64,
    pub datagrams_udp: u64,
    pub datagrams_https: u64,
    pub api_requests_repeated: u64,
    pub network: NetworkReport,
}

/// Counted while drivers are on the road.
#[derive(Default)]
pub(crate) struct Counters {
    pub deliveries_created: AtomicU64,
    pub deliveries_delivered: AtomicU64,
    pub deliveries_failed: AtomicU64,
    pub picked_up_by_hand: AtomicU64,
    pub distance_m: AtomicU64,
    pub fixes_made: AtomicU64,
    pub fixes_refused: AtomicU64,
}

pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// Shared by all drivers of a fleet.
pub(crate) struct Rig {
    pub api: Api,
    pub clock: Arc<dyn Clock>,
    pub truth: Option<Lines>,
    pub counters: Counters,
    acked: Option<Arc<Lines>>,
    network: Network,
    http: HttpClients,
    options: FleetOptions,
}

impl Rig {
    pub fn new(options: FleetOptions) -> Result<Self, FleetError> {
        let http = HttpClients::default();
        let clock = options.clock.clone();
        let api = Api::new(&options.api_url, options.api_pin, options.tenant_key.clone(), &http, clock.clone())?;
        let file = |path: &Option<PathBuf>| {
            let create =
                |path: &PathBuf| Lines::create(path).map_err(|source| FleetError::File { path: path.clone(), source });
            path.as_ref().map(create).transpose()
        };
        Ok(Rig {
            api,
            truth: file(&options.truth)?,
            acked: file(&options.acked)?.map(Arc::new),
            network: Network::new(options.network, clock.clone()),
            counters: Counters::default(),
            clock,
            http,
            options,
        })
    }

    /// A new driver with a phone of his own, logged in on it.
    pub async fn hire(&self, name: &str, vehicle: Vehicle, number: u64) -> Result<Hired, FleetError> {
        let driver = self.api.create_driver(name, vehicle).await?;
        let mut config = PhoneConfig::new(&self.options.api_url, self.api.enrol(driver).await?);
        config.api_pin = self.options.api_pin;
        config.logged_in = true;
        config.clock = self.clock.clone();
        config.http = self.http.clone();
        config.client.seed = self.options.seed.wrapping_add(number);
        config.drain_max = self.options.drain_max;
        config.through = self.network.for_phone(self.options.seed.wrapping_add(number));
        if let Some(lines) = self.acked.clone() {
            config.on_acked = Some(Arc::new(move |number, fix| lines.write(&AckedLine::of(driver, number, fix))));
        }
        Ok(Hired { driver, phone: Phone::start(config).await? })
    }

    pub fn send(&self, phone: &PhoneHandle, fix: Fix) {
        count(&self.counters.fixes_made, 1);
        if let Err(NotTaken::Busy | NotTaken::Stopped) = phone.send_fix(fix) {
            count(&self.counters.fixes_refused, 1);
        }
    }

    /// Writes the files out every second, until told to stop.
    pub async fn keep_files(&self, mut stop: Stop) -> Result<(), FleetError> {
        while !stop.is_told() {
            tokio::select! {
                () = tokio::time::sleep(FLUSH_EVERY) => self.flush()?,
                () = stop.told() => {}
            }
        }
        Ok(())
    }

    pub fn flush(&self) -> Result<(), FleetError> {
        let files = [(self.truth.as_ref(), &self.options.truth), (self.acked.as_deref(), &self.options.acked)];
        for (lines, path) in files {
            if let (Some(lines), Some(path)) = (lines, path) {
                lines.flush().map_err(|source| FleetError::File { path: path.clone(), source })?;
            }
        }
        Ok(())
    }

    pub fn report(&self, phones: &[Ended]) -> Report {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let sum = |part: fn(&ClientStats) -> u64| phones.iter().map(|ended| part(&ended.stats)).sum();
        Report {
            drivers: phones.len() as u64,
            deliveries_created: read(&self.counters.deliveries_created),
            deliveries_delivered: read(&self.counters.deliveries_delivered),
            deliveries_failed: read(&self.counters.deliveries_failed),
            picked_up_by_hand: read(&self.counters.picked_up_by_hand),
            distance_km: read(&self.counters.distance_m) as f64 / 1000.0,
            fixes_made: read(&self.counters.fixes_made),
            fixes_refused: read(&self.counters.fixes_refused),
            fixes_sent: sum(|stats| stats.fixes_sealed - stats.fixes_sealed_again),
            fixes_sent_again: sum(|stats| stats.fixes_sealed_again),
            fixes_acked: sum(|stats| stats.fixes_acked),
            fixes_thinned: sum(|stats| stats.fixes_thinned),
            fixes_left: phones.iter().map(|ended| ended.left).sum(),
            datagrams_udp: sum(|stats| stats.datagrams_udp),
            datagrams_https: sum(|stats| stats.datagrams_https),
            api_requests_repeated: self.api.failures(),
            network: self.network.report(),
        }
    }
}

/// A driver and his phone.
pub(crate) struct Hired {
    pub driver: u32,
    pub phone: PhoneHandle,
}

/// What a phone had done when it was put away.
pub(crate) struct Ended {
    stats: ClientStats,
    left: u64,
}

impl Hired {
    /// Brings home what the phone holds, as far as that goes in time.
    pub async fn go_home(self) -> Ended {
        let figures = self.phone.watch_stats();
        let left = self.phone.shutdown().await.len() as u64;
        Ended { stats: figures(), left }
    }
}

/// Told once that the fleet is to end. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Stop(watch::Receiver<bool>);

impl Stop {
    pub fn new() -> (watch::Sender<bool>, Stop) {
        let (tell, told) = watch::channel(false);
        (tell, Stop(told))
    }

    pub fn is_told(&self) -> bool {
        *self.0.borrow()
    }

    /// Cancellation safe. Nobody left to tell is told too.
    pub async fn told(&mut self) {
        let _nobody_left = self.0.wait_for(|told| *told).await;
    }
}

/// Waits until the clock shows a time. Cancellation safe.
pub(crate) async fn sleep_until(clock: &dyn Clock, at: Time) {
    loop {
        let left_ms = at.millis_since(clock.now());
        if left_ms <= 0 {
            return;
        }
        tokio::time::sleep(clock.real(Duration::from_millis(left_ms as u64)).max(SLEEP_MIN)).await;
    }
}

const FLUSH_EVERY: Duration = Duration::from_secs(1);
const SLEEP_MIN: Duration = Duration::from_micros(500);
