//! Who asks. Every handler takes one of these, and builds its keys from the tenant in it: there is no other way to a
//! tenant's id, so no handler can reach another's.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use backends::registry::Scope;
use http::HeaderMap;
use http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use http::request::Parts;
use protocol::{DeliveryId, DeliveryKey, DeviceKey, TenantId};

use super::Api;
use super::problem::{Problem, ProblemKind};
use super::scopes::TokenHash;
use crate::settings::AdminHash;

/// A tenant, by its API key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OfTenant(pub TenantId);

/// A device, by its credential.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OfDevice(pub DeviceKey);

/// The operator, by the admin key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OfOperator;

/// Whoever may watch a delivery: its tenant, or who has its own token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Watcher {
    Tenant(TenantId),
    Delivery(DeliveryKey),
}

impl Watcher {
    /// The key under which this watcher may see the delivery of that number.
    pub fn key(self, delivery: DeliveryId) -> Result<DeliveryKey, Problem> {
        match self {
            Watcher::Tenant(tenant) => Ok(DeliveryKey { tenant, delivery }),
            Watcher::Delivery(key) if key.delivery == delivery => Ok(key),
            Watcher::Delivery(_) => Err(Problem::no_delivery()),
        }
    }

    pub fn tenant(self) -> Result<TenantId, Problem> {
        match self {
            Watcher::Tenant(tenant) => Ok(tenant),
            Watcher::Delivery(_) => Err(wrong_scope("a tenant's key")),
        }
    }
}

impl FromRequestParts<Api> for OfTenant {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        match scope_of(api, &bearer(&parts.headers)?).await? {
            Scope::Tenant(tenant) => Ok(OfTenant(tenant)),
            Scope::Delivery { .. } | Scope::Device(_) => Err(wrong_scope("a tenant's key")),
        }
    }
}

impl FromRequestParts<Api> for OfDevice {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        match scope_of(api, &bearer(&parts.headers)?).await? {
            Scope::Device(device) => Ok(OfDevice(device)),
            Scope::Tenant(_) | Scope::Delivery { .. } => Err(wrong_scope("a device's credential")),
        }
    }
}

impl FromRequestParts<Api> for OfOperator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        let Some(admin) = api.config.admin else {
            return Err(Problem::new(ProblemKind::WrongScope, "no admin key is set here"));
        };
        let token = bearer(&parts.headers)?;
        if AdminHash::of(&token) == admin { Ok(OfOperator) } else { Err(bad_token()) }
    }
}

impl FromRequestParts<Api> for Watcher {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        let token = shown_token(parts).ok_or_else(no_token)?;
        watcher_of(api, &token).await
    }
}

/// Who watches, if a token was shown with the request; a WebSocket may show it in its first message.
pub(crate) struct MaybeWatcher(pub Option<Watcher>);

impl FromRequestParts<Api> for MaybeWatcher {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        match shown_token(parts) {
            Some(token) => watcher_of(api, &token).await.map(|watcher| MaybeWatcher(Some(watcher))),
            None => Ok(MaybeWatcher(None)),
        }
    }
}

/// The token shown with a request, if there was one: it is judged by the other extractors.
pub(crate) struct ShownToken(pub Option<TokenHash>);

impl<S: Sync> FromRequestParts<S> for ShownToken {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(ShownToken(shown_token(parts).as_deref().map(TokenHash::of)))
    }
}

pub(crate) async fn watcher_of(api: &Api, token: &str) -> Result<Watcher, Problem> {
    match scope_of(api, token).await? {
        Scope::Tenant(tenant) => Ok(Watcher::Tenant(tenant)),
        Scope::Delivery { key, .. } => Ok(Watcher::Delivery(key)),
        Scope::Device(_) => Err(wrong_scope("a delivery's token or a tenant's key")),
    }
}

async fn scope_of(api: &Api, token: &str) -> Result<Scope, Problem> {
    if token.len() > TOKEN_CHARS_MAX {
        return Err(bad_token());
    }
    let recalled = |problem: Problem| api.scopes.recall(token, api.monotonic()).ok_or(problem);
    let scope = match api.registry.scope_of(token).await {
        Ok(scope) => scope,
        Err(error) if error.is_transient() => return recalled(error.into()),
        Err(error) => return Err(error.into()),
    };
    // A token is for one delivery made once: another one of the same number is not what it opens.
    let scope = match scope {
        Some(Scope::Delivery { key, birth }) => match api.ledger.birth_mark(key).await {
            Ok(found) => scope.filter(|_| found == birth),
            Err(error) if error.is_transient() => return recalled(error.into()),
            Err(error) => return Err(error.into()),
        },
        Some(Scope::Tenant(_) | Scope::Device(_)) | None => scope,
    };
    api.scopes.handle_answer(token, scope, api.monotonic());
    scope.ok_or_else(bad_token)
}

pub(crate) fn bearer(headers: &HeaderMap) -> Result<String, Problem> {
    let value = headers.get(AUTHORIZATION).ok_or_else(no_token)?;
    let text = value.to_str().map_err(|_| bad_token())?;
    let (scheme, token) = text.split_once(' ').ok_or_else(bad_token)?;
    let token = token.trim();
    if scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() { Ok(token.to_string()) } else { Err(bad_token()) }
}

/// In the header, as a sub-protocol, or in the URL, in this order.
fn shown_token(parts: &Parts) -> Option<String> {
    if parts.headers.contains_key(AUTHORIZATION) {
        return Some(bearer(&parts.headers).unwrap_or_default());
    }
    let offered = parts.headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let by_protocol = offered.flat_map(|value| value.split(',')).find_map(|name| name.trim().strip_prefix(PROTOCOL));
    if let Some(token) = by_protocol {
        return Some(token.to_string());
    }
    let query = parts.uri.query()?;
    query.split('&').find_map(|pair| pair.strip_prefix("token=")).map(str::to_string)
}

/// What is selected of the sub-protocols that were offered: browsers hang up when none is.
pub(crate) fn selected_protocol(headers: &HeaderMap) -> Option<http::HeaderValue> {
    let offered = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let names: Vec<&str> = offered.flat_map(|value| value.split(',')).map(str::trim).collect();
    let plain = names.iter().find(|name| **name == "wayfix");
    let chosen = plain.or_else(|| names.iter().find(|name| name.starts_with(PROTOCOL)))?;
    http::HeaderValue::from_str(chosen).ok()
}

pub(crate) fn no_token() -> Problem {
    Problem::new(ProblemKind::NoToken, "show a token: authorization: bearer …")
}

pub(crate) fn bad_token() -> Problem {
    Problem::new(ProblemKind::NoToken, "this token opens nothing")
}

fn wrong_scope(needed: &str) -> Problem {
    Problem::new(ProblemKind::WrongScope, format!("{needed} is needed here"))
}

const PROTOCOL: &str = "wayfix.token.";
const TOKEN_CHARS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_in_the_header_the_sub_protocol_or_the_url() {
        let parts = |name: &str, value: &str, uri: &str| {
            let request = http::Request::builder().uri(uri).header(name, value).body(()).unwrap();
            request.into_parts().0
        };

        assert_eq!(shown_token(&parts("authorization", "bearer a", "/")).as_deref(), Some("a"));
        assert_eq!(shown_token(&parts("sec-websocket-protocol", "wayfix, wayfix.token.b", "/")).as_deref(), Some("b"));
        assert_eq!(shown_token(&parts("x", "y", "/?last=3&token=c")).as_deref(), Some("c"));
        assert_eq!(shown_token(&parts("x", "y", "/?last=3")), None);
        assert_eq!(shown_token(&parts("authorization", "Basic a", "/?token=c")).as_deref(), Some(""));
    }

    #[test]
    fn a_delivery_s_token_opens_that_delivery_and_no_other() {
        let key = DeliveryKey { tenant: TenantId(7), delivery: DeliveryId(3) };

        assert_eq!(Watcher::Delivery(key).key(DeliveryId(3)), Ok(key));
        assert_eq!(Watcher::Delivery(key).key(DeliveryId(4)).unwrap_err().kind(), ProblemKind::NotFound);
        assert_eq!(Watcher::Delivery(key).tenant().unwrap_err().kind(), ProblemKind::WrongScope);
    }
}
