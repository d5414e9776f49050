//! A shell around the client: one task per phone, a UDP socket, and HTTPS for sessions and for the fallback. Small
//! enough that a thousand phones run in one process.

mod http;
mod task;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use protocol::{Fix, FixNumber, PhoneState, Time};
use tokio::sync::{mpsc, oneshot};

use crate::client::{ClientConfig, ClientStats, QueuedFix};

pub use http::{HttpClients, HttpError, checked_url};

/// Where a phone's time comes from: it must run evenly, through sleep too, and need not be right.
pub trait Clock: Send + Sync + 'static {
    fn now(&self) -> Time;

    /// How long to really wait for `duration` of this clock to pass.
    fn real(&self, duration: Duration) -> Duration {
        duration
    }
}

/// The system's time at start, and from there a clock that runs evenly through sleep.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    started: Time,
    at: Time,
}

impl Default for SystemClock {
    fn default() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at = Time(i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
        SystemClock { started: since_boot(), at }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Time {
        Time(self.at.0.saturating_add(since_boot().millis_since(self.started)))
    }
}

/// `std::time::Instant` stands still while the machine sleeps: counters of a phone that woke would be too old for every
/// edge. The clock asked here is the one that does not.
fn since_boot() -> Time {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const RUNS_THROUGH_SLEEP: ClockId = ClockId::CLOCK_BOOTTIME;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const RUNS_THROUGH_SLEEP: ClockId = ClockId::CLOCK_MONOTONIC;
    let now = clock_gettime(RUNS_THROUGH_SLEEP).expect("every system has this clock");
    Time(now.tv_sec().saturating_mul(1_000).saturating_add(now.tv_nsec() / 1_000_000))
}

/// A device's credential. Prints as stars.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential(String);

impl Credential {
    pub fn new(text: impl Into<String>) -> Self {
        Credential(text.into())
    }
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// Told of every fix that an edge has said to be safe.
pub type OnAcked = Arc<dyn Fn(FixNumber, &Fix) + Send + Sync>;

/// The address that stands before an edge's.
pub type Through = Arc<dyn Fn(SocketAddr) -> SocketAddr + Send + Sync>;

/// One phone.
#[derive(Clone)]
pub struct PhoneConfig {
    /// Base of the API: `https://…`, or `http://…` on loopback.
    pub api_url: String,
    /// SHA-256 of the API's certificate, where it is a self-signed one.
    pub api_pin: Option<[u8; 32]>,
    pub credential: Credential,
    /// The driver has just logged in or picked this device, so it leads. Not said at a restart.
    pub logged_in: bool,
    pub clock: Arc<dyn Clock>,
    pub client: ClientConfig,
    /// Share one among many phones.
    pub http: HttpClients,
    /// The local address to send from.
    pub bind: Option<IpAddr>,
    /// Where datagrams go instead of the address an edge has: for networks laid between the two to see what they do.
    pub through: Option<Through>,
    /// What an earlier run left behind.
    pub restore: Vec<QueuedFix>,
    pub on_acked: Option<OnAcked>,
    /// How long stopping may take, by the phone's clock, while fixes are not settled.
    pub drain_max: Duration,
}

impl PhoneConfig {
    pub fn new(api_url: impl Into<String>, credential: Credential) -> Self {
        PhoneConfig {
            api_url: api_url.into(),
            api_pin: None,
            credential,
            logged_in: false,
            clock: Arc::new(SystemClock::default()),
            client: ClientConfig::default(),
            http: HttpClients::default(),
            bind: None,
            through: None,
            restore: Vec::new(),
            on_acked: None,
            drain_max: Duration::from_secs(20),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("address of the API cannot be used")]
    Api(#[source] HttpError),
    #[error("no UDP socket")]
    Socket(#[source] std::io::Error),
}

/// Why a fix was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotTaken {
    #[error("phone has stopped")]
    Stopped,
    #[error("phone has 1,024 things to do before this")]
    Busy,
}

/// Starts phones.
#[derive(Debug)]
pub struct Phone;

impl Phone {
    /// Must be called inside a tokio runtime. Returns at once; the session is fetched by the phone itself.
    pub async fn start(mut config: PhoneConfig) -> Result<PhoneHandle, StartError> {
        config.client.report_acked = config.on_acked.is_some();
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let stats = Arc::new(Mutex::new(ClientStats::default()));
        let task = task::PhoneTask::new(config, inbox, stats.clone()).await?;
        tokio::spawn(task.run());
        Ok(PhoneHandle { commands, stats })
    }
}

/// A running phone. Dropping it stops the phone at once, with what it holds.
#[derive(Debug)]
pub struct PhoneHandle {
    commands: mpsc::Sender<Command>,
    stats: Arc<Mutex<ClientStats>>,
}

impl PhoneHandle {
    pub fn send_fix(&self, fix: Fix) -> Result<(), NotTaken> {
        self.command(Command::Fix(fix))
    }

    /// What the app knows of the phone, for pings.
    pub fn set_state(&self, state: PhoneState) -> Result<(), NotTaken> {
        self.command(Command::State(state))
    }

    /// On delivery the phone is never silent for long. It begins on delivery.
    pub fn set_on_delivery(&self, on_delivery: bool) -> Result<(), NotTaken> {
        self.command(Command::Duty(on_delivery))
    }

    /// The phone has another network: another socket, another session id.
    pub fn network_changed(&self) -> Result<(), NotTaken> {
        self.command(Command::NetworkChanged)
    }

    pub fn stats(&self) -> ClientStats {
        *self.stats.lock().expect("nothing panics while it holds the figures")
    }

    /// What tells the figures, also after the phone has stopped.
    pub fn watch_stats(&self) -> impl Fn() -> ClientStats + Send + use<> {
        let stats = self.stats.clone();
        move || *stats.lock().expect("nothing panics while it holds the figures")
    }

    /// Sends what there is, waits for acks as long as the configuration allows, and gives back what no edge has said
    /// to be safe.
    pub async fn shutdown(self) -> Vec<QueuedFix> {
        let (done, left) = oneshot::channel();
        if self.commands.send(Command::Stop(done)).await.is_err() {
            return Vec::new();
        }
        left.await.unwrap_or_default()
    }

    fn command(&self, command: Command) -> Result<(), NotTaken> {
        self.commands.try_send(command).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => NotTaken::Busy,
            mpsc::error::TrySendError::Closed(_) => NotTaken::Stopped,
        })
    }
}

/// What an app can ask of a phone.
enum Command {
    Fix(Fix),
    State(PhoneState),
    Duty(bool),
    NetworkChanged,
    Stop(oneshot::Sender<Vec<QueuedFix>>),
}

const COMMANDS_MAX: usize = 1024;
