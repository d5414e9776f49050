//! Sessions: a device shows its credential and gets what it needs to seal datagrams for a day.

use std::net::IpAddr;

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use backends::registry::RegistryError;
use http::{HeaderMap, StatusCode, Uri};
use protocol::datagram::Kid;
use protocol::session::{EdgeAddress, FleetKey, SessionTerms, issue};
use serde::Deserialize;
use tracing::error;

use super::Api;
use super::auth::{OfDevice, bad_token};
use super::input::Input;
use super::links::host_of;
use super::problem::{Problem, ProblemKind};
use super::tenants::NO_STORE;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct NewSession {
    /// The driver just logged in or picked this device: it leads. Not said at a renewal or a restart.
    logged_in: bool,
}

pub(crate) async fn start(
    State(api): State<Api>,
    OfDevice(device): OfDevice,
    uri: Uri,
    headers: HeaderMap,
    input: Input<NewSession>,
) -> Result<impl IntoResponse, Problem> {
    input.refuse_repeats()?;
    let now = api.now();
    let control = api.control.snapshot();
    if control.revoked.contains(&device) {
        return Err(bad_token());
    }
    let key = control.sealing_key(now).ok_or_else(|| Problem::unavailable("the key for sessions"))?;
    let kid = Kid::new(key.span.kid.0).ok_or_else(|| failed("the fleet key's id is not one of four"))?;
    let fleet_key = FleetKey::new(kid, key.secret.bytes());
    let start = api.registry.start_session(device, now).await.map_err(gone)?;
    if input.value.logged_in {
        api.registry.lead(start.device, now).await.map_err(gone)?;
    }
    let host = host_of(&uri, &headers);
    let terms = SessionTerms {
        suite: api.config.suite,
        device: start.device,
        start_s: start.start_s,
        lifetime: api.config.lifetime,
        numbers_from: start.numbers_from,
        edges: api.edges.iter().map(|edge| reachable(edge, host.as_deref())).collect(),
        ack_every: api.config.ack_every,
        interval_ms: u32::from(control.policy(device.tenant).expected_interval_s) * 1000,
    };
    let grant = issue(&fleet_key, &terms, now).map_err(|error| failed(&error.to_string()))?;
    Ok((StatusCode::CREATED, NO_STORE, Json(grant)))
}

/// Enrolled when the token was looked up, and not any more.
fn gone(error: RegistryError) -> Problem {
    if let RegistryError::NoDevice = error { bad_token() } else { error.into() }
}

fn failed(reason: &str) -> Problem {
    error!(error = reason, "a session cannot be issued");
    Problem::new(ProblemKind::Internal, "the failure was logged")
}

/// An edge that listens on all addresses is reached at the one the phone already uses.
fn reachable(edge: &EdgeAddress, host: Option<&str>) -> EdgeAddress {
    let Some(host) = host else { return edge.clone() };
    let named = if host == "localhost" { "127.0.0.1" } else { host };
    let replaced = |address: &str| {
        ["0.0.0.0", "[::]"].iter().find_map(|any| {
            let at = address.find(any)?;
            let rest = &address[at + any.len()..];
            let host = match named.parse::<IpAddr>() {
                Ok(IpAddr::V6(_)) => format!("[{named}]"),
                Ok(IpAddr::V4(_)) | Err(_) => named.to_string(),
            };
            Some(format!("{}{host}{rest}", &address[..at]))
        })
    };
    EdgeAddress {
        udp: replaced(&edge.udp).unwrap_or_else(|| edge.udp.clone()),
        https: replaced(&edge.https).unwrap_or_else(|| edge.https.clone()),
        pin: edge.pin,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_on_all_addresses_is_given_out_as_the_host_that_was_asked() {
        let edge = EdgeAddress { udp: "0.0.0.0:7000".into(), https: "http://0.0.0.0:8080".into(), pin: None };

        let by_name = reachable(&edge, Some("localhost"));
        let by_address = reachable(&edge, Some("192.168.1.5"));
        let by_six = reachable(&edge, Some("fd00::1"));

        assert_eq!((by_name.udp.as_str(), by_name.https.as_str()), ("127.0.0.1:7000", "http://127.0.0.1:8080"));
        assert_eq!(
            (by_address.udp.as_str(), by_address.https.as_str()),
            ("192.168.1.5:7000", "http://192.168.1.5:8080")
        );
        assert_eq!(by_six.udp, "[fd00::1]:7000");
        let fixed = EdgeAddress { udp: "10.0.0.1:1".into(), https: "https://edge.example:2".into(), pin: None };
        assert_eq!(reachable(&fixed, Some("localhost")), fixed);
    }
}
