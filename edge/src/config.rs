//! The edge's settings: as written, then checked. Past `EdgeConfig` nothing is out of range.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::intake::judge::JudgeLimits;
use crate::tls;

/// As written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EdgeSettings {
    /// Where phones send their datagrams.
    pub udp_listen: SocketAddr,
    /// Threads that receive them; 0 is one for each core.
    pub udp_threads: u32,
    /// Asked of the kernel for each thread's socket; it may grant less (`net.core.rmem_max`).
    pub udp_receive_buffer_bytes: u32,
    /// Sessions kept warm, over all threads: 128 bytes each.
    pub sessions_max: u32,
    /// This edge's number in records. Empty: drawn at the first start and kept.
    pub edge_id: Option<u32>,
    /// The file that keeps live fixes while the log is away, taken from the disk at the first start.
    pub spool_bytes: u64,
    /// Entries that this edge writes a second, where each costs the log something of its own (Kafka). While its fixes are
    /// fewer they wait for no company; above that each partition waits for its share. The embedded log needs none.
    pub log_entries_per_s: u32,
    /// How far ahead of our clock a fix may have been measured.
    pub fix_future_s_max: u32,
    /// How old a fix may be. The log keeps 72 h.
    pub fix_age_h_max: u32,
    /// What a device may send at once, in fixes: a full queue after a day in a tunnel.
    pub device_fixes_burst: u16,
    /// What a device may send for good.
    pub device_fixes_per_s: u16,
    /// What a phone is told to keep between two datagrams while the log is away or its share is used up.
    pub slow_send_every_ms: u32,
    /// Fixes in one request of the JSON door.
    pub request_fixes_max: u32,
    /// Bytes of one request of the JSON door.
    pub request_bytes_max: u32,
    /// How long a request of the JSON door waits for the log before it is answered 503.
    pub request_wait_ms_max: u32,
    pub tls: TlsSettings,
}

/// The certificate of the TLS doors.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSettings {
    /// A PEM file with the chain. Empty: a self-signed certificate is made at the first start and kept.
    pub certificate_file: Option<PathBuf>,
    /// The PEM file with its key.
    pub key_file: Option<PathBuf>,
    /// Names and addresses that a self-signed certificate is good for, beside localhost.
    pub names: Vec<String>,
}

impl Default for EdgeSettings {
    fn default() -> Self {
        EdgeSettings {
            udp_listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            udp_threads: 0,
            udp_receive_buffer_bytes: 8 << 20,
            sessions_max: 1 << 20,
            edge_id: None,
            spool_bytes: 64 << 20,
            log_entries_per_s: 1_000,
            fix_future_s_max: 30,
            fix_age_h_max: 72,
            device_fixes_burst: 20_000,
            device_fixes_per_s: 20,
            slow_send_every_ms: 10_000,
            request_fixes_max: 1000,
            request_bytes_max: 256 << 10,
            request_wait_ms_max: 5_000,
            tls: TlsSettings::default(),
        }
    }
}

/// Checked.
#[derive(Clone, Debug)]
pub struct EdgeConfig {
    pub udp_listen: SocketAddr,
    pub udp_thread_count: usize,
    pub udp_receive_buffer_bytes: usize,
    pub sessions_per_thread_max: usize,
    pub edge_id: Option<u32>,
    /// Where the edge keeps its number, its certificate and its spool.
    pub state_folder: PathBuf,
    pub spool_bytes: u64,
    pub log_entries_per_s: u32,
    pub judge: JudgeLimits,
    pub device_fixes_burst: u16,
    pub device_fixes_per_s: u16,
    pub slow_send_every_ms: u32,
    pub request_fixes_max: usize,
    pub request_bytes_max: usize,
    pub request_wait_max: Duration,
    pub tls: TlsConfig,
}

/// Where the certificate comes from.
#[derive(Clone, Debug)]
pub enum TlsConfig {
    SelfSigned { names: Vec<String> },
    Files { certificate: PathBuf, key: PathBuf },
}

#[derive(Debug, thiserror::Error, PartialEq)]
pub enum EdgeConfigError {
    #[error("edge.{key}: {least} to {most}, not {value}")]
    Range { key: &'static str, least: u64, most: u64, value: u64 },
    #[error("edge.tls: certificate_file and key_file belong together")]
    HalfCertificate,
    #[error("edge.tls: {0}")]
    Certificate(String),
}

impl EdgeSettings {
    /// `state_folder` is the edge's own.
    pub fn check(&self, state_folder: &Path) -> Result<EdgeConfig, EdgeConfigError> {
        let threads = within("udp_threads", u64::from(self.udp_threads), 0, THREADS_MAX)?;
        let thread_count = match threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX as usize),
            count => count as usize,
        };
        let sessions_max = within("sessions_max", u64::from(self.sessions_max), 1, 1 << 24)?;
        let buffer_bytes = u64::from(self.udp_receive_buffer_bytes);
        let future_s = within("fix_future_s_max", u64::from(self.fix_future_s_max), 1, 3600)?;
        let age_h = within("fix_age_h_max", u64::from(self.fix_age_h_max), 1, 72)?;
        Ok(EdgeConfig {
            udp_listen: self.udp_listen,
            udp_thread_count: thread_count,
            udp_receive_buffer_bytes: within("udp_receive_buffer_bytes", buffer_bytes, 64 << 10, 1 << 30)? as usize,
            sessions_per_thread_max: (sessions_max as usize).div_ceil(thread_count),
            edge_id: self.edge_id,
            state_folder: state_folder.to_path_buf(),
            spool_bytes: within("spool_bytes", self.spool_bytes, SPOOL_BYTES_MIN, 1 << 40)?,
            log_entries_per_s: within("log_entries_per_s", u64::from(self.log_entries_per_s), 1, 1_000_000)? as u32,
            judge: JudgeLimits {
                future_max: Duration::from_secs(future_s),
                age_max: Duration::from_secs(age_h * 3600),
            },
            device_fixes_burst: within_u16("device_fixes_burst", self.device_fixes_burst)?,
            device_fixes_per_s: within_u16("device_fixes_per_s", self.device_fixes_per_s)?,
            slow_send_every_ms: within("slow_send_every_ms", u64::from(self.slow_send_every_ms), 1000, 600_000)? as u32,
            request_fixes_max: within("request_fixes_max", u64::from(self.request_fixes_max), 1, 10_000)? as usize,
            request_bytes_max: within("request_bytes_max", u64::from(self.request_bytes_max), 1024, 4 << 20)? as usize,
            request_wait_max: Duration::from_millis(within(
                "request_wait_ms_max",
                u64::from(self.request_wait_ms_max),
                100,
                60_000,
            )?),
            tls: self.tls.check()?,
        })
    }
}

impl TlsSettings {
    /// Reads the files that are named, so that a certificate that cannot be served is said here.
    fn check(&self) -> Result<TlsConfig, EdgeConfigError> {
        let config = match (&self.certificate_file, &self.key_file) {
            (None, None) => TlsConfig::SelfSigned { names: self.names.clone() },
            (Some(certificate), Some(key)) => TlsConfig::Files { certificate: certificate.clone(), key: key.clone() },
            (Some(_), None) | (None, Some(_)) => return Err(EdgeConfigError::HalfCertificate),
        };
        match tls::check(&config) {
            Ok(()) => Ok(config),
            Err(error) => Err(EdgeConfigError::Certificate(format!("{:#}", anyhow::Error::from(error)))),
        }
    }
}

fn within(key: &'static str, value: u64, least: u64, most: u64) -> Result<u64, EdgeConfigError> {
    if (least..=most).contains(&value) { Ok(value) } else { Err(EdgeConfigError::Range { key, least, most, value }) }
}

fn within_u16(key: &'static str, value: u16) -> Result<u16, EdgeConfigError> {
    within(key, u64::from(value), 1, u64::from(u16::MAX)).map(|value| value as u16)
}

/// A sid is steered by one byte.
const THREADS_MAX: u64 = 256;
/// Room for a few of the largest shipments.
const SPOOL_BYTES_MIN: u64 = 8 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_in_range() {
        let config = EdgeSettings::default().check(Path::new("state")).unwrap();

        assert!(config.udp_thread_count >= 1);
        assert!(config.sessions_per_thread_max * config.udp_thread_count >= 1 << 20);
    }

    #[test]
    fn what_is_out_of_range_is_refused_by_name() {
        let refused = |settings: EdgeSettings, key: &str| {
            let error = settings.check(Path::new("state")).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        };

        refused(EdgeSettings { udp_threads: 257, ..EdgeSettings::default() }, "edge.udp_threads");
        refused(EdgeSettings { sessions_max: 0, ..EdgeSettings::default() }, "edge.sessions_max");
        refused(EdgeSettings { fix_age_h_max: 73, ..EdgeSettings::default() }, "edge.fix_age_h_max");
        refused(EdgeSettings { log_entries_per_s: 0, ..EdgeSettings::default() }, "edge.log_entries_per_s");
        refused(EdgeSettings { spool_bytes: 1, ..EdgeSettings::default() }, "edge.spool_bytes");
        refused(EdgeSettings { device_fixes_per_s: 0, ..EdgeSettings::default() }, "edge.device_fixes_per_s");
        let tls = TlsSettings { certificate_file: Some(PathBuf::from("a.pem")), ..TlsSettings::default() };
        refused(EdgeSettings { tls, ..EdgeSettings::default() }, "edge.tls");
    }
}
