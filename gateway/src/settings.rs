//! How a gateway is set: settings as written, then a configuration in which nothing is out of range.

use std::fmt;
use std::time::Duration;

use protocol::datagram::Suite;
use protocol::session::{EdgeAddress, Lifetime};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::hub::HubConfig;

/// The gateway's part of the configuration file.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewaySettings {
    /// What the operator shows to create tenants; without it nobody can over HTTP. At least 16 characters.
    pub admin_key: Option<AdminKey>,
    /// How this gateway is reached from outside, for links: `https://track.example.com`. By default links lead to the
    /// host that the request named.
    pub public_url: Option<String>,
    /// Which origins' pages may call the API: `https://shop.example.com`, or `*` for all. By default none but our own.
    pub allowed_origins: Vec<String>,
    /// The addresses of the region's edges that sessions list, the nearest first. By default those of this process.
    /// A host of `0.0.0.0` or `[::]` is given out as the host that the request named.
    pub edges: Vec<EdgeAddress>,
    /// Which cipher sessions use.
    pub session_suite: Suite,
    /// How long a session lives, in steps of 15 minutes up to 24 hours.
    pub session_lifetime_minutes: u32,
    /// Phones want an ack for one in so many datagrams.
    pub session_ack_every: u32,
    /// How large a request's body may be.
    pub body_bytes_max: usize,
    /// How many customers and maps may be connected at once.
    pub streams_max: usize,
    /// How often a connection is asked whether it lives; after three without a word it is closed.
    pub ping_every_s: u32,
    /// How long a connection may take nothing before it is closed.
    pub stall_s: u32,
    /// How often a dispatcher's map is told news, at most.
    pub map_every_ms: u32,
    /// How many live views are held at most, deliveries and drivers each, per partition.
    pub views_max: usize,
    /// How many journal entries a connection may be behind before it is sent away to come back.
    pub journal_behind_max: u32,
    /// How long those who watch a finished delivery may stay connected.
    pub finished_linger_s: u32,
    /// How far back before the newest update a new owner of a partition reads.
    pub read_back_s: u32,
    /// Under which name gateways share the partitions of updates.
    pub group: String,
    /// How much memory drawn map tiles may take.
    pub tile_cache_bytes: usize,
}

impl Default for GatewaySettings {
    fn default() -> Self {
        GatewaySettings {
            admin_key: None,
            public_url: None,
            allowed_origins: Vec::new(),
            edges: Vec::new(),
            session_suite: Suite::Aes128Gcm,
            session_lifetime_minutes: 24 * 60,
            session_ack_every: 8,
            body_bytes_max: 64 << 10,
            streams_max: 50_000,
            ping_every_s: 20,
            stall_s: 30,
            map_every_ms: 250,
            views_max: 1 << 20,
            journal_behind_max: 64,
            finished_linger_s: 60,
            read_back_s: 75,
            group: "wayfix-gateway".to_string(),
            tile_cache_bytes: 32 << 20,
        }
    }
}

/// The operator's key. Does not print, in a shown configuration neither.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct AdminKey(String);

impl Serialize for AdminKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

impl AdminKey {
    pub fn new(key: String) -> Self {
        AdminKey(key)
    }
}

impl fmt::Debug for AdminKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    pub(crate) admin: Option<AdminHash>,
    pub(crate) public_url: Option<String>,
    pub(crate) allowed_origins: AllowedOrigins,
    pub(crate) edges: Vec<EdgeAddress>,
    pub(crate) suite: Suite,
    pub(crate) lifetime: Lifetime,
    pub(crate) ack_every: u32,
    pub(crate) body_bytes_max: usize,
    pub(crate) streams_max: usize,
    pub(crate) ping_every: Duration,
    pub(crate) stall: Duration,
    pub(crate) map_every: Duration,
    pub(crate) hub: HubConfig,
    pub(crate) read_back: Duration,
    pub(crate) group: String,
    pub(crate) tile_cache_bytes: usize,
}

/// Only the hash is kept, and hashes are compared: how long that takes tells nothing of the key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct AdminHash([u8; 32]);

impl AdminHash {
    pub fn of(key: &str) -> Self {
        AdminHash(Sha256::digest(key.as_bytes()).into())
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum AllowedOrigins {
    None,
    All,
    These(Vec<http::HeaderValue>),
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum GatewaySettingsError {
    #[error("{name} is {value}, it must be between {min} and {max}")]
    Range { name: &'static str, value: u64, min: u64, max: u64 },
    #[error("admin_key has fewer than {ADMIN_KEY_CHARS_MIN} characters")]
    AdminKey,
    #[error("public_url {0:?} is not an http:// or https:// address without a path")]
    PublicUrl(String),
    #[error("allowed origin {0:?} is not one like https://shop.example.com")]
    Origin(String),
    #[error("session_lifetime_minutes is {0}, it must be a multiple of 15 up to 1440")]
    Lifetime(u32),
    #[error("group must not be empty")]
    Group,
    #[error("edges: {0:?} is no host:port")]
    EdgeUdp(String),
    #[error("edges: {0:?} is not an http:// or https:// address without a path")]
    EdgeUrl(String),
}

impl GatewaySettings {
    pub fn check(self) -> Result<GatewayConfig, GatewaySettingsError> {
        if self.admin_key.as_ref().is_some_and(|key| key.0.chars().count() < ADMIN_KEY_CHARS_MIN) {
            return Err(GatewaySettingsError::AdminKey);
        }
        if self.group.is_empty() {
            return Err(GatewaySettingsError::Group);
        }
        let quarters = u8::try_from(self.session_lifetime_minutes / 15).ok().filter(|_| self.has_whole_quarters());
        let lifetime = quarters.and_then(Lifetime::new);
        let hub = HubConfig {
            views_max: within("views_max", self.views_max, 1, 1 << 26)?,
            journal_behind_max: within("journal_behind_max", self.journal_behind_max, 1, 64)? as usize,
            finished_linger: seconds(within("finished_linger_s", self.finished_linger_s, 1, 3600)?),
            ..HubConfig::default()
        };
        Ok(GatewayConfig {
            admin: self.admin_key.map(|key| AdminHash::of(&key.0)),
            public_url: self.public_url.map(checked_url).transpose()?,
            allowed_origins: checked_origins(self.allowed_origins)?,
            edges: checked_edges(self.edges)?,
            suite: self.session_suite,
            lifetime: lifetime.ok_or(GatewaySettingsError::Lifetime(self.session_lifetime_minutes))?,
            ack_every: within("session_ack_every", self.session_ack_every, 1, 64)?,
            body_bytes_max: within("body_bytes_max", self.body_bytes_max, 1024, 16 << 20)?,
            streams_max: within("streams_max", self.streams_max, 1, 10_000_000)?,
            ping_every: seconds(within("ping_every_s", self.ping_every_s, 1, 600)?),
            stall: seconds(within("stall_s", self.stall_s, 1, 600)?),
            map_every: Duration::from_millis(within("map_every_ms", self.map_every_ms, 10, 10_000)?.into()),
            hub,
            read_back: seconds(within("read_back_s", self.read_back_s, 60, 24 * 3600)?),
            group: self.group,
            tile_cache_bytes: within("tile_cache_bytes", self.tile_cache_bytes, 0, 1 << 40)?,
        })
    }

    fn has_whole_quarters(&self) -> bool {
        self.session_lifetime_minutes.is_multiple_of(15)
    }
}

fn within<T>(name: &'static str, value: T, min: T, max: T) -> Result<T, GatewaySettingsError>
where
    T: PartialOrd + Copy + TryInto<u64>,
{
    if value >= min && value <= max {
        return Ok(value);
    }
    let wide = |value: T| value.try_into().unwrap_or(u64::MAX);
    Err(GatewaySettingsError::Range { name, value: wide(value), min: wide(min), max: wide(max) })
}

fn seconds(value: u32) -> Duration {
    Duration::from_secs(value.into())
}

fn checked_url(url: String) -> Result<String, GatewaySettingsError> {
    if is_origin(&url) { Ok(url) } else { Err(GatewaySettingsError::PublicUrl(url)) }
}

fn checked_edges(edges: Vec<EdgeAddress>) -> Result<Vec<EdgeAddress>, GatewaySettingsError> {
    for EdgeAddress { udp, https, .. } in &edges {
        let parts = udp.rsplit_once(':').filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        parts.ok_or_else(|| GatewaySettingsError::EdgeUdp(udp.clone()))?;
        is_origin(https).then_some(()).ok_or_else(|| GatewaySettingsError::EdgeUrl(https.clone()))?;
    }
    Ok(edges)
}

fn checked_origins(origins: Vec<String>) -> Result<AllowedOrigins, GatewaySettingsError> {
    if origins.is_empty() {
        return Ok(AllowedOrigins::None);
    }
    if origins.iter().any(|origin| origin == "*") {
        return Ok(AllowedOrigins::All);
    }
    let values = origins.into_iter().map(|origin| {
        let value = http::HeaderValue::from_str(&origin).ok().filter(|_| is_origin(&origin));
        value.ok_or(GatewaySettingsError::Origin(origin))
    });
    Ok(AllowedOrigins::These(values.collect::<Result<_, _>>()?))
}

/// `scheme://host[:port]`, nothing after it.
fn is_origin(url: &str) -> bool {
    let Ok(uri) = url.parse::<http::Uri>() else { return false };
    matches!(uri.scheme_str(), Some("http" | "https"))
        && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
        && uri.path_and_query().is_none_or(|path| path.as_str() == "/")
        && !url.ends_with('/')
}

const ADMIN_KEY_CHARS_MIN: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_without_a_file_are_good() {
        assert!(GatewaySettings::default().check().is_ok());
    }

    #[test]
    fn what_is_out_of_range_is_refused_by_name() {
        let bad = [
            (GatewaySettings { streams_max: 0, ..GatewaySettings::default() }, "streams_max"),
            (GatewaySettings { journal_behind_max: 65, ..GatewaySettings::default() }, "journal_behind_max"),
            (
                GatewaySettings { session_lifetime_minutes: 20, ..GatewaySettings::default() },
                "session_lifetime_minutes",
            ),
            (GatewaySettings { session_lifetime_minutes: 1455, ..GatewaySettings::default() }, "minutes"),
            (edge_at("nowhere", "https://x"), "nowhere"),
            (edge_at(":8080", "https://x"), ":8080"),
            (edge_at("x:8080", "https://x/path"), "https://x/path"),
            (GatewaySettings { public_url: Some("ftp://x".into()), ..GatewaySettings::default() }, "public_url"),
            (GatewaySettings { public_url: Some("https://x/y".into()), ..GatewaySettings::default() }, "public_url"),
            (GatewaySettings { allowed_origins: vec!["shop".into()], ..GatewaySettings::default() }, "origin"),
            (GatewaySettings { admin_key: Some(AdminKey("short".into())), ..GatewaySettings::default() }, "admin_key"),
        ];
        for (settings, name) in bad {
            let error = settings.check().unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    fn edge_at(udp: &str, https: &str) -> GatewaySettings {
        let edge = EdgeAddress { udp: udp.into(), https: https.into(), pin: None };
        GatewaySettings { edges: vec![edge], ..GatewaySettings::default() }
    }

    #[test]
    fn the_admin_key_does_not_print() {
        let settings = GatewaySettings { admin_key: Some(AdminKey("a-very-secret-key".into())), ..Default::default() };

        assert!(!format!("{settings:?}").contains("secret"));
        assert!(!format!("{:?}", settings.check().unwrap()).contains("secret"));
    }
}
