//! How the HTTP doors are set: as written, then checked. One table for all doors of a process.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ServeLimits;
use super::peers::Places;
use super::proxy::{AddressRange, AddressRangeError};

/// As written: `[connections]`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConnectionSettings {
    /// Connections of all HTTP doors together. What the limit on open files leaves room for bounds it too.
    pub total_max: u32,
    /// Connections of one address (IPv6: one /64 network). A carrier may have thousands of phones behind one; never
    /// more than half of all.
    pub per_address_max: u32,
    /// How long a connection may be quiet between two requests before it is closed.
    pub idle_s_max: u32,
    /// Proxies in front of the doors, as addresses or ranges: `10.0.0.0/8`. What they say of who asks counts: in
    /// `x-forwarded-for`, or by the PROXY protocol. Their own connections are bounded by `total_max` only.
    pub trusted_proxies: Vec<String>,
    /// Connections of trusted proxies begin with a header of the PROXY protocol, version 1 or 2, and are refused
    /// without one.
    pub proxy_protocol: bool,
}

impl Default for ConnectionSettings {
    fn default() -> Self {
        ConnectionSettings {
            total_max: 100_000,
            per_address_max: 10_000,
            idle_s_max: 60,
            trusted_proxies: Vec::new(),
            proxy_protocol: false,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConnectionSettingsError {
    #[error("connections.{key}: {least} to {most}, not {value}")]
    Range { key: &'static str, least: u32, most: u32, value: u32 },
    #[error("connections.trusted_proxies: {0}")]
    Proxy(#[from] AddressRangeError),
    #[error("connections.proxy_protocol needs connections.trusted_proxies: from anybody else it would prove nothing")]
    NobodyTrusted,
}

impl ConnectionSettings {
    /// `descriptors` is how many files this process may have open.
    pub fn check(&self, descriptors: u64) -> Result<ServeLimits, ConnectionSettingsError> {
        let within = |key, value: u32, least, most| {
            let is_within = (least..=most).contains(&value);
            is_within.then_some(value).ok_or(ConnectionSettingsError::Range { key, least, most, value })
        };
        let total_max = within("total_max", self.total_max, 1, 10_000_000)? as usize;
        let per_address_max = within("per_address_max", self.per_address_max, 1, 10_000_000)? as usize;
        let idle_s_max = within("idle_s_max", self.idle_s_max, 1, 3600)?;
        if self.proxy_protocol && self.trusted_proxies.is_empty() {
            return Err(ConnectionSettingsError::NobodyTrusted);
        }
        let trusted: Vec<AddressRange> =
            self.trusted_proxies.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        let total_max = total_max.min(connections_within(descriptors));
        Ok(ServeLimits {
            places: Places::new(total_max, per_address_max),
            idle_max: Duration::from_secs(u64::from(idle_s_max)),
            trusted_proxies: Arc::from(trusted),
            proxy_protocol: self.proxy_protocol,
            ..ServeLimits::default()
        })
    }
}

/// How many connections leave room for logs, databases, maps and the admin door.
fn connections_within(descriptors: u64) -> usize {
    let left = descriptors.saturating_sub(DESCRIPTORS_KEPT).max(descriptors / 2);
    usize::try_from(left).unwrap_or(usize::MAX)
}

/// An idle process has 53 open; logs and databases open more as they grow.
const DESCRIPTORS_KEPT: u64 = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_room_for_files_whatever_is_asked_for() {
        assert_eq!(connections_within(1024), 512);
        assert_eq!(connections_within(600), 300);
        assert_eq!(connections_within(1 << 20), (1 << 20) - 512);
    }

    #[test]
    fn the_defaults_are_in_range_and_what_is_not_is_refused_by_name() {
        assert!(ConnectionSettings::default().check(1024).is_ok());
        for (settings, name) in [
            (ConnectionSettings { total_max: 0, ..ConnectionSettings::default() }, "total_max"),
            (ConnectionSettings { per_address_max: 0, ..ConnectionSettings::default() }, "per_address_max"),
            (ConnectionSettings { idle_s_max: 0, ..ConnectionSettings::default() }, "idle_s_max"),
            (ConnectionSettings { trusted_proxies: vec!["x".into()], ..Default::default() }, "trusted_proxies"),
            (ConnectionSettings { proxy_protocol: true, ..ConnectionSettings::default() }, "proxy_protocol"),
        ] {
            let error = settings.check(1024).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
