//! What comes in: bodies, queries, ids in paths. Bodies are JSON, bounded in size and time; a field that is not known
//! is refused by name, because it is most likely one that was misspelled. Unknown query parameters are passed by:
//! proxies and browsers add them.

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Query};
use backends::ledger::Idempotency;
use backends::registry::{Asker, Once};
use daemon::serve::read_body;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, Request};
use protocol::id::parse_id;
use protocol::{DeliveryId, DeviceNumber, DriverId};
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::Api;
use super::auth::bearer;
use super::problem::{Problem, ProblemKind};

/// A JSON body and, if the client gave one, the key under which it may be repeated.
#[derive(Debug)]
pub(crate) struct Input<T> {
    pub value: T,
    pub idempotency: Option<Idempotency>,
    /// What only this client can show again under its idempotency key.
    secret: [u8; 32],
}

impl<T> Input<T> {
    /// What the registry goes by where this request may be repeated.
    pub fn once(&self, asker: Asker) -> Option<Once> {
        let once = |idempotency| Once { asker, idempotency, secret: self.secret };
        self.idempotency.clone().map(once)
    }

    /// For what is another thing each time that it is asked for.
    pub fn refuse_repeats(&self) -> Result<(), Problem> {
        let detail = "idempotency-key is not taken here: each answer is another one, and asking again harms nothing";
        self.idempotency.as_ref().map_or(Ok(()), |_| Err(Problem::new(ProblemKind::BadRequest, detail)))
    }
}

impl<T: DeserializeOwned> FromRequest<Api> for Input<T> {
    type Rejection = Problem;

    async fn from_request(request: Request<Body>, api: &Api) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        if parts.headers.get(CONTENT_TYPE).is_some_and(|value| !is_json(value)) {
            return Err(Problem::new(ProblemKind::MediaType, "content-type must be application/json"));
        }
        let key = idempotency_key(&parts.headers)?;
        let too_large = || {
            let bytes_max = api.config.body_bytes_max;
            Problem::new(ProblemKind::TooLarge, format!("a body may have {bytes_max} bytes"))
        };
        let announced = parts.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|bytes| bytes > api.config.body_bytes_max as u64) {
            return Err(too_large());
        }
        let bytes = read_body(body, api.config.body_bytes_max).await?;
        let json: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        // A list would pass for the fields of an object in their order.
        if json.trim_ascii_start().first() != Some(&b'{') {
            return Err(Problem::new(ProblemKind::BadRequest, "the body must be a JSON object"));
        }
        let value = serde_json::from_slice(json)
            .map_err(|error| Problem::new(ProblemKind::BadRequest, format!("the body: {error}")))?;
        let secret = repeat_secret(&parts.headers, key.as_deref().unwrap_or_default());
        let idempotency = key.map(|key| Idempotency { key, request: digest(&parts, &bytes), kept: api.kept() });
        Ok(Input { value, idempotency, secret })
    }
}

fn is_json(value: &http::HeaderValue) -> bool {
    let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json") || essence.to_ascii_lowercase().ends_with("+json")
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Problem::new(ProblemKind::BadRequest, "idempotency-key must be there once"));
    }
    let key = value.to_str().ok().filter(|key| (1..=IDEMPOTENCY_CHARS_MAX).contains(&key.len()));
    let problem = || Problem::new(ProblemKind::BadRequest, "idempotency-key must be 1 to 255 printable characters");
    key.map(|key| Some(key.to_string())).ok_or_else(problem)
}

/// From the client's own token and key: as hard to guess as the token, and kept nowhere. However the header is written,
/// it is the same.
fn repeat_secret(headers: &HeaderMap, key: &str) -> [u8; 32] {
    let token = bearer(headers).unwrap_or_default();
    let mut sha = Sha256::new();
    for part in [b"wayfix repeat\n", token.as_bytes(), b"\n", key.as_bytes()] {
        sha.update(part);
    }
    sha.finalize().into()
}

fn digest(parts: &Parts, body: &[u8]) -> [u8; 32] {
    let mut sha = Sha256::new();
    for part in [parts.method.as_str().as_bytes(), b" ", parts.uri.path().as_bytes(), b"\n", body] {
        sha.update(part);
    }
    sha.finalize().into()
}

/// A query string.
#[derive(Debug)]
pub(crate) struct Params<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Api> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _api: &Api) -> Result<Self, Problem> {
        match Query::<T>::try_from_uri(&parts.uri) {
            Ok(Query(value)) => Ok(Params(value)),
            Err(error) => Err(Problem::new(ProblemKind::BadRequest, format!("the query: {}", error.body_text()))),
        }
    }
}

/// `{id}` in the path of a delivery. What is no number is no delivery.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeliveryPath(pub DeliveryId);

impl FromRequestParts<Api> for DeliveryPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        let Path(text) = Path::<String>::from_request_parts(parts, api).await.map_err(|_| Problem::no_delivery())?;
        let id = parse_id(&text).filter(|id| i64::try_from(*id).is_ok()).ok_or_else(Problem::no_delivery)?;
        Ok(DeliveryPath(DeliveryId(id)))
    }
}

/// `{id}` in the path of a driver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DriverPath(pub DriverId);

impl FromRequestParts<Api> for DriverPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        let Path(text) = Path::<String>::from_request_parts(parts, api).await.map_err(|_| Problem::no_driver())?;
        let id = parse_id(&text).and_then(|id| u32::try_from(id).ok()).ok_or_else(Problem::no_driver)?;
        Ok(DriverPath(DriverId(id)))
    }
}

/// `{driver}/{device}` in the path of a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DevicePath(pub DriverId, pub DeviceNumber);

impl FromRequestParts<Api> for DevicePath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        let none = || Problem::new(ProblemKind::NotFound, "no such device is known under this token");
        let path = Path::<(String, String)>::from_request_parts(parts, api).await;
        let Path((driver, device)) = path.map_err(|_| none())?;
        let driver = parse_id(&driver).and_then(|id| u32::try_from(id).ok()).ok_or_else(none)?;
        let device = parse_id(&device).and_then(|id| u16::try_from(id).ok()).ok_or_else(none)?;
        Ok(DevicePath(DriverId(driver), DeviceNumber(device)))
    }
}

/// Text that people wrote: bounded, without control characters.
pub(crate) fn checked_text(name: &str, text: String, chars_max: usize) -> Result<String, Problem> {
    let is_fine = text.chars().count() <= chars_max && !text.chars().any(char::is_control);
    if is_fine {
        return Ok(text);
    }
    let detail = format!("{name} may have {chars_max} characters and no control characters");
    Err(Problem::new(ProblemKind::Unprocessable, detail))
}

pub(crate) fn impossible(detail: impl Into<String>) -> Problem {
    Problem::new(ProblemKind::Unprocessable, detail)
}

const IDEMPOTENCY_CHARS_MAX: usize = 255;
