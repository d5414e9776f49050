//! The configuration of the whole: a TOML file and `WAYFIX__…` variables, every key with a default that works with no
//! file and no service. Unknown keys are errors.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Subcommand;
use daemon::Clock;
use daemon::clock::Scale;
use daemon::logging::LogFormat;
use daemon::serve::ConnectionSettings;
use serde::{Deserialize, Serialize};

use crate::config::CACHE_BYTES_MIN;
use crate::output::Standard;

/// As written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where all state lies.
    pub data: PathBuf,
    /// The city: a map file of `wayfix maps import`. Without one distances and times are straight-line, and said to be.
    /// Another one put in its place goes into use while all runs, within seconds, or at once at SIGHUP.
    pub map: Option<PathBuf>,
    pub logging: LoggingSettings,
    pub clock: ClockSettings,
    /// The API, the streams, the pages and the edge's fall-back door.
    pub http: DoorSettings,
    /// The same with TLS: browsers tell their position only to secure pages.
    pub https: DoorSettings,
    /// Health and metrics.
    pub admin: DoorSettings,
    /// What the HTTP doors grant their peers.
    pub connections: ConnectionSettings,
    pub record_log: RecordLogSettings,
    pub history: HistorySettings,
    pub cache: CacheSettings,
    pub edge: edge::EdgeSettings,
    pub processor: processor::ProcessorSettings,
    pub gateway: gateway::GatewaySettings,
    pub maps: MapsSettings,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MapsSettings {
    /// Where `wayfix maps fetch` gets extracts: a mirror laid out as Geofabrik's.
    pub mirror: String,
}

impl Default for MapsSettings {
    fn default() -> Self {
        MapsSettings { mirror: String::from("https://download.geofabrik.de") }
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoggingSettings {
    pub format: LogFormat,
}

/// A clock that runs faster than life, for tests: every door must then be on the loopback address.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClockSettings {
    pub factor: f64,
    /// When it began to, in milliseconds since the Unix epoch.
    pub origin_ms: i64,
}

impl Default for ClockSettings {
    fn default() -> Self {
        ClockSettings { factor: 1.0, origin_ms: 0 }
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DoorSettings {
    /// Empty: closed.
    pub listen: Option<SocketAddr>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RecordLogSettings {
    #[serde(rename = "type")]
    pub kind: RecordLogKind,
    pub embedded: EmbeddedLogSettings,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordLogKind {
    #[default]
    Embedded,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EmbeddedLogSettings {
    /// Of every topic; recorded when the log is made, and refused if it differs later.
    pub partitions: u32,
}

impl Default for EmbeddedLogSettings {
    fn default() -> Self {
        EmbeddedLogSettings { partitions: 8 }
    }
}

/// Every fix with its verdict, as `…/trail` answers it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HistorySettings {
    /// After so many days a day of history is dropped.
    pub keep_days: u32,
}

impl Default for HistorySettings {
    fn default() -> Self {
        HistorySettings { keep_days: 90 }
    }
}

/// What the stores may keep in memory of what lies on disk. Maps are mapped, not read: the system takes their pages back
/// by itself.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheSettings {
    /// One budget for the log's blocks and the pages of all databases together.
    pub bytes_max: u64,
}

impl Default for CacheSettings {
    fn default() -> Self {
        CacheSettings { bytes_max: 32 << 20 }
    }
}

impl CacheSettings {
    /// Readers of the log that keep up are served from memory of their own, so half is plenty.
    pub fn log_bytes(self) -> u64 {
        self.bytes_max / 2
    }

    /// Of each of the databases: registry, ledger and the index of history.
    pub fn database_bytes(self) -> u64 {
        self.bytes_max / 6
    }
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            data: PathBuf::from("wayfix-data"),
            map: None,
            logging: LoggingSettings::default(),
            clock: ClockSettings::default(),
            http: DoorSettings { listen: Some(SocketAddr::from(([127, 0, 0, 1], 8080))) },
            https: DoorSettings::default(),
            admin: DoorSettings { listen: Some(SocketAddr::from(([127, 0, 0, 1], 9464))) },
            connections: ConnectionSettings::default(),
            record_log: RecordLogSettings::default(),
            history: HistorySettings::default(),
            cache: CacheSettings::default(),
            edge: edge::EdgeSettings::default(),
            processor: processor::ProcessorSettings::default(),
            gateway: gateway::GatewaySettings::default(),
            maps: MapsSettings::default(),
        }
    }
}

/// Bad configuration: exit code 64.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("{0}")]
    Read(String),
    #[error("clock.factor: {0}")]
    Clock(#[from] daemon::clock::FactorError),
    #[error("a clock that runs faster than life is for tests: {door} must listen on a loopback address, not {address}")]
    ScaledInPublic { door: &'static str, address: SocketAddr },
    #[error("data: {path} cannot hold the state: {reason}")]
    Data { path: PathBuf, reason: String },
    #[error("map: {path} is no file")]
    NoMap { path: PathBuf },
    #[error("map: {path} cannot be used: {reason}")]
    Map { path: PathBuf, reason: String },
    #[error("{door} cannot listen on {address}: {source}")]
    Listen { door: &'static str, address: SocketAddr, source: std::io::Error },
    #[error("{door} cannot listen on {address}, where {other} listens")]
    SameAddress { door: &'static str, other: &'static str, address: SocketAddr },
    #[error("http.listen and https.listen are both empty: nobody could reach this server")]
    NoDoor,
    #[error("record_log.embedded.partitions: 1 to 1024, not {0}")]
    Partitions(u32),
    #[error("history.keep_days: 4 to 36500, not {0}")]
    HistoryDays(u32),
    #[error("cache.bytes_max: {CACHE_BYTES_MIN} or more, not {0}")]
    Cache(u64),
    #[error("maps.mirror: {0} is no http:// or https:// address")]
    Mirror(String),
    #[error("{0}")]
    Role(String),
}

impl Settings {
    /// From a file, if one is named, and the environment.
    pub fn load(file: Option<&Path>) -> Result<Settings, SettingsError> {
        let mut builder = config::Config::builder();
        if let Some(path) = file {
            builder = builder.add_source(config::File::from(path).format(config::FileFormat::Toml));
        }
        let variables = config::Environment::with_prefix("WAYFIX").prefix_separator("__").separator("__");
        let read = |error: config::ConfigError| SettingsError::Read(error.to_string());
        let settings = builder.add_source(variables.try_parsing(true)).build().map_err(read)?;
        settings.try_deserialize().map_err(read)
    }

    pub fn clock(&self) -> Result<Clock, SettingsError> {
        if self.clock.factor == 1.0 {
            return Ok(Clock::system());
        }
        Ok(Clock::scaled(Scale { factor: self.clock.factor, origin_ms: self.clock.origin_ms })?)
    }
}

#[derive(Subcommand)]
pub enum Command {
    /// Prints the configuration that would hold, with every default.
    Show {
        #[arg(short, long)]
        config: Option<PathBuf>,
    },
    /// Says whether a configuration can be used; exit code 64 if not.
    Check {
        #[arg(short, long)]
        config: Option<PathBuf>,
    },
}

pub fn run(command: &Command) -> anyhow::Result<()> {
    let (Command::Show { config } | Command::Check { config }) = command;
    let settings = Settings::load(config.as_deref())?;
    settings.check()?;
    match command {
        Command::Show { .. } => {
            write!(Standard, "{}", toml::to_string_pretty(&settings).context("write the configuration")?)?;
        }
        Command::Check { .. } => writeln!(Standard, "the configuration can be used")?,
    }
    Ok(Standard.flush()?)
}
