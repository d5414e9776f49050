//! Where this gateway is reached from outside, for links in answers: the public address of the settings, or the host
//! that the request named.

use http::header::HOST;
use http::{HeaderMap, Uri};
use protocol::DeliveryId;
use serde::Serialize;

use super::Api;

/// Put on the requests of a door that speaks TLS, so that links say `https`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SecureDoor;

/// Where a delivery is watched.
#[derive(Debug, Serialize)]
pub(crate) struct Links {
    /// The customer's page.
    page: String,
    connect: String,
    events: String,
    status: String,
}

/// What the request says of how it came here.
pub(crate) struct Base(String);

impl Base {
    pub fn of(api: &Api, uri: &Uri, headers: &HeaderMap, is_secure: bool) -> Self {
        if let Some(url) = &api.config.public_url {
            return Base(url.clone());
        }
        let forwarded = headers.get("x-forwarded-proto").and_then(|value| value.to_str().ok());
        let scheme = if is_secure || forwarded == Some("https") { "https" } else { "http" };
        Base(authority_of(uri, headers).map(|authority| format!("{scheme}://{authority}")).unwrap_or_default())
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.0)
    }

    pub fn links(&self, delivery: DeliveryId, token: &str) -> Links {
        let tracking = |what| self.url(&format!("/api/v1/tracking/{delivery}/{what}"));
        let connect = tracking("connect");
        Links {
            page: self.url(&format!("/t/{token}")),
            connect: connect.strip_prefix("http").map(|rest| format!("ws{rest}")).unwrap_or(connect),
            events: tracking("events"),
            status: tracking("status"),
        }
    }
}

/// Host and port as the client wrote them.
fn authority_of(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    let named = uri.authority().map(|authority| authority.as_str().to_string());
    let named = named.or_else(|| headers.get(HOST)?.to_str().ok().map(str::to_string));
    named.filter(|name| name.parse::<http::uri::Authority>().is_ok_and(|parsed| !parsed.as_str().contains('@')))
}

/// The host alone, an IPv6 address without brackets.
pub(crate) fn host_of(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    let authority: http::uri::Authority = authority_of(uri, headers)?.parse().ok()?;
    Some(authority.host().trim_start_matches('[').trim_end_matches(']').to_string())
}
