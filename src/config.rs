//! What a process runs with: the settings, checked whole. `wayfix up` starts from a `Config` and `wayfix config check`
//! makes one, by the same function, so that one refuses what the other refuses.
//!
//! Checked is all that can be said of the settings themselves, of the files and folders that they name and of the
//! addresses that this machine has. What only the start can say is no fault of the settings and has exit code 1: a port
//! that another process holds, a full disk, stores that do not belong together.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use backends::route_service;
use backends::upkeep::UpkeepConfig;
use daemon::Clock;
use daemon::descriptors::raise_limit;
use daemon::logging::LogFormat;
use daemon::serve::ServeLimits;
use edge::EdgeConfig;
use gateway::GatewayConfig;
use nix::unistd::{AccessFlags, access};
use processor::{ProcessorConfig, RouteServiceConfig};

use crate::maps::fetch::Mirror;
use crate::settings::{DoorSettings, RecordLogKind, Settings, SettingsError};

/// Checked: nothing in it is out of range, and no part contradicts another.
pub struct Config {
    pub logging: LogFormat,
    pub clock: Clock,
    /// A map file that this build reads.
    pub map: Option<PathBuf>,
    pub doors: DoorsConfig,
    pub stores: StoresConfig,
    pub upkeep: UpkeepConfig,
    pub edge: EdgeConfig,
    pub processor: ProcessorConfig,
    /// Who plans ways beside our own map.
    pub route_service: Option<RouteServiceConfig>,
    pub gateway: GatewayConfig,
}

/// The TCP doors; None is closed.
#[derive(Clone)]
pub struct DoorsConfig {
    pub http: Option<SocketAddr>,
    pub https: Option<SocketAddr>,
    pub admin: Option<SocketAddr>,
    pub limits: ServeLimits,
}

/// What stands behind the seams, and where.
#[derive(Clone)]
pub struct StoresConfig {
    pub data: PathBuf,
    pub record_log: RecordLogConfig,
    /// What the log may keep in memory.
    pub log_cache_bytes: u64,
    /// What each database may keep in memory.
    pub database_cache_bytes: u64,
}

#[derive(Clone, Copy)]
pub enum RecordLogConfig {
    Embedded { partitions: u32 },
}

impl Settings {
    /// Everything that can be said without starting.
    pub fn check(&self) -> Result<Config, SettingsError> {
        let role = |error: &dyn std::fmt::Display| SettingsError::Role(error.to_string());
        let stores = self.stores()?;
        check_data_folder(&stores.data)?;
        let clock = self.clock()?;
        let edge = self.edge.check(&stores.data.join("edge")).map_err(|error| role(&error))?;
        let doors = self.doors(edge.udp_listen, clock)?;
        // Phones bring fixes of the last three days.
        if !(4..=36_500).contains(&self.history.keep_days) {
            return Err(SettingsError::HistoryDays(self.history.keep_days));
        }
        let history_kept = Duration::from_secs(86_400 * u64::from(self.history.keep_days));
        if Mirror::at(&self.maps.mirror).is_none() {
            return Err(SettingsError::Mirror(self.maps.mirror.clone()));
        }
        let processor = self.processor.check(&stores.data.join("processor")).map_err(|error| role(&error))?;
        let gateway = self.gateway.clone().check().map_err(|error| role(&format_args!("gateway.{error}")))?;
        Ok(Config {
            logging: self.logging.format,
            clock,
            map: self.map.as_deref().map(checked_map).transpose()?,
            doors,
            stores,
            upkeep: UpkeepConfig { history_kept },
            edge,
            route_service: open_router(&processor)?,
            processor,
            gateway,
        })
    }

    /// The part that `wayfix repair` and `wayfix restore` need: they work beside a configuration that `up` refuses.
    pub fn stores(&self) -> Result<StoresConfig, SettingsError> {
        let partitions = self.record_log.embedded.partitions;
        if !(1..=1024).contains(&partitions) {
            return Err(SettingsError::Partitions(partitions));
        }
        if self.cache.bytes_max < CACHE_BYTES_MIN {
            return Err(SettingsError::Cache(self.cache.bytes_max));
        }
        let record_log = match self.record_log.kind {
            RecordLogKind::Embedded => RecordLogConfig::Embedded { partitions },
        };
        Ok(StoresConfig {
            data: self.data.clone(),
            record_log,
            log_cache_bytes: self.cache.log_bytes(),
            database_cache_bytes: self.cache.database_bytes(),
        })
    }

    fn doors(&self, udp: SocketAddr, clock: Clock) -> Result<DoorsConfig, SettingsError> {
        let of = |door: &'static str, settings: &DoorSettings| settings.listen.map(|address| (door, address));
        let tcp = [of("http", &self.http), of("https", &self.https), of("admin", &self.admin)];
        let tcp: Vec<(&str, SocketAddr)> = tcp.into_iter().flatten().collect();
        let all = || tcp.iter().copied().chain([("edge.udp_listen", udp)]);
        if let Some((door, address)) = all().find(|(_, address)| clock.is_scaled() && !address.ip().is_loopback()) {
            return Err(SettingsError::ScaledInPublic { door, address });
        }
        if self.http.listen.is_none() && self.https.listen.is_none() {
            return Err(SettingsError::NoDoor);
        }
        for (index, (door, address)) in tcp.iter().enumerate() {
            if let Some((other, _)) = tcp[..index].iter().find(|(_, before)| overlap(*before, *address)) {
                return Err(SettingsError::SameAddress { door, other, address: *address });
            }
        }
        for (door, address) in &tcp {
            can_be_bound(door, *address, TcpListener::bind(address).map(drop))?;
        }
        can_be_bound("edge.udp_listen", udp, UdpSocket::bind(udp).map(drop))?;
        let limits = self.connections.check(raise_limit()).map_err(|error| SettingsError::Role(error.to_string()))?;
        Ok(DoorsConfig { http: self.http.listen, https: self.https.listen, admin: self.admin.listen, limits })
    }
}

/// Whether a socket on one of these keeps another from the other.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    // A socket on [::] takes IPv4 too; port 0 is another one each time.
    let takes = |wide: IpAddr, ip: IpAddr| {
        wide == ip
            || wide == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
            || (wide.is_unspecified() && wide.is_ipv4() && ip.is_ipv4())
    };
    one.port() == other.port() && one.port() != 0 && (takes(one.ip(), other.ip()) || takes(other.ip(), one.ip()))
}

/// An address that this machine does not have, or a port that this user may not take. Another process that holds it
/// now, as the server that runs while its next configuration is checked, is no fault of the settings.
fn can_be_bound(door: &'static str, address: SocketAddr, bound: std::io::Result<()>) -> Result<(), SettingsError> {
    match bound {
        Err(source) if source.kind() != std::io::ErrorKind::AddrInUse => {
            Err(SettingsError::Listen { door, address, source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The folder, or the nearest above it that is there, must be one in which this user can make files. Nothing is made.
fn check_data_folder(data: &Path) -> Result<(), SettingsError> {
    let refused = |reason: String| SettingsError::Data { path: data.to_path_buf(), reason };
    let mut nearest = data;
    loop {
        match std::fs::metadata(nearest) {
            Ok(found) if !found.is_dir() => return Err(refused(format!("{} is no folder", nearest.display()))),
            Ok(_) => break,
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(refused(format!("{}: {error}", nearest.display())));
            }
            Err(_) => {}
        }
        nearest = match nearest.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            Some(_) => Path::new("."),
            None => return Err(refused("it names no folder".to_string())),
        };
    }
    let flags = AccessFlags::W_OK | AccessFlags::X_OK;
    access(nearest, flags).map_err(|error| refused(format!("cannot write in {}: {error}", nearest.display())))
}

fn checked_map(path: &Path) -> Result<PathBuf, SettingsError> {
    if !path.is_file() {
        return Err(SettingsError::NoMap { path: path.to_path_buf() });
    }
    match maps::Graph::open(path) {
        Ok(_) => Ok(path.to_path_buf()),
        Err(error) => {
            let reason = format!("{:#}", anyhow::Error::from(error));
            Err(SettingsError::Map { path: path.to_path_buf(), reason })
        }
    }
}

fn open_router(processor: &ProcessorConfig) -> Result<Option<RouteServiceConfig>, SettingsError> {
    let service = route_service::open(&processor.router)
        .map_err(|error| SettingsError::Role(format!("processor.router: {error}")))?;
    Ok(service.map(|service| RouteServiceConfig { service, asked_max: processor.router_asked_max }))
}

/// Below that every look-up would go to the disk.
pub const CACHE_BYTES_MIN: u64 = 6 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_doors_on_one_address_are_seen_whichever_way_it_is_written() {
        let cases = [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "0.0.0.0:80", true),
            ("[::]:80", "127.0.0.1:80", true),
            ("[::]:80", "[::1]:80", true),
            ("0.0.0.0:80", "[::1]:80", false),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
        ];
        for (one, other, expected) in cases {
            assert_eq!(overlap(one.parse().unwrap(), other.parse().unwrap()), expected, "{one} {other}");
        }
    }
}
