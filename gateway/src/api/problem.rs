//! Errors as RFC 9457 problems: a type that programs go by, a title, and a detail that a person can act on. What does
//! not exist and what is another tenant's are the same problem.

use axum::Json;
use axum::response::{IntoResponse, Response};
use backends::ledger::LedgerError;
use backends::live_store::LiveStoreError;
use backends::log::LogError;
use backends::registry::RegistryError;
use backends::trail_store::TrailStoreError;
use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use serde_json::{Map, Value, json};
use tracing::error;

use crate::stream::customer::ViewError;

/// Every kind of problem this API answers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum ProblemKind {
    BadRequest,
    NoToken,
    WrongScope,
    NotFound,
    MethodNotAllowed,
    TooSlow,
    Conflict,
    Transition,
    TooLarge,
    MediaType,
    Unprocessable,
    UpgradeRequired,
    Internal,
    Unavailable,
}

impl ProblemKind {
    #[cfg(test)]
    pub const ALL: [ProblemKind; 14] = [
        ProblemKind::BadRequest,
        ProblemKind::NoToken,
        ProblemKind::WrongScope,
        ProblemKind::NotFound,
        ProblemKind::MethodNotAllowed,
        ProblemKind::TooSlow,
        ProblemKind::Conflict,
        ProblemKind::Transition,
        ProblemKind::TooLarge,
        ProblemKind::MediaType,
        ProblemKind::Unprocessable,
        ProblemKind::UpgradeRequired,
        ProblemKind::Internal,
        ProblemKind::Unavailable,
    ];

    /// Status, name in the type, title.
    pub fn words(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            ProblemKind::BadRequest => (StatusCode::BAD_REQUEST, "bad_request", "the request is not understood"),
            ProblemKind::NoToken => (StatusCode::UNAUTHORIZED, "no_token", "a valid token is needed"),
            ProblemKind::WrongScope => (StatusCode::FORBIDDEN, "wrong_scope", "this token does not open this door"),
            ProblemKind::NotFound => (StatusCode::NOT_FOUND, "not_found", "there is nothing here"),
            ProblemKind::MethodNotAllowed => {
                (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this is done by another method")
            }
            ProblemKind::TooSlow => (StatusCode::REQUEST_TIMEOUT, "too_slow", "the body did not come in time"),
            ProblemKind::Conflict => (StatusCode::CONFLICT, "conflict", "this contradicts what is there"),
            ProblemKind::Transition => (StatusCode::CONFLICT, "transition", "the delivery cannot become this"),
            ProblemKind::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too_large", "the body is too large"),
            ProblemKind::MediaType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "media_type", "the body is not JSON"),
            ProblemKind::Unprocessable => {
                (StatusCode::UNPROCESSABLE_ENTITY, "unprocessable", "a value is not possible")
            }
            ProblemKind::UpgradeRequired => {
                (StatusCode::UPGRADE_REQUIRED, "upgrade_required", "this door takes WebSockets only")
            }
            ProblemKind::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "something failed on our side"),
            ProblemKind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "come back in a moment"),
        }
    }
}

#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Problem {
    pub kind: ProblemKind,
    detail: String,
    more: Map<String, Value>,
}

impl Problem {
    pub fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
        Problem { kind, detail: detail.into(), more: Map::new() }
    }

    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.more.insert(name.to_string(), value);
        self
    }

    pub fn no_delivery() -> Self {
        Problem::new(ProblemKind::NotFound, "no such delivery is known under this token")
    }

    pub fn no_driver() -> Self {
        Problem::new(ProblemKind::NotFound, "no such driver is known under this token")
    }

    pub fn unavailable(what: &str) -> Self {
        Problem::new(ProblemKind::Unavailable, format!("{what} cannot be reached"))
    }

    pub fn no_room() -> Self {
        Problem::new(ProblemKind::Unavailable, "no more streams can be opened here")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, name, title) = self.kind.words();
        let mut body = json!({
            "type": format!("urn:wayfix:problem:{name}"),
            "title": title,
            "status": status.as_u16(),
            "detail": self.detail,
        });
        if let Some(body) = body.as_object_mut() {
            body.extend(self.more);
        }
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.kind == ProblemKind::NoToken {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.kind == ProblemKind::Unavailable {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("2"));
        }
        response
    }
}

impl From<LedgerError> for Problem {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::NotFound { .. } => Problem::no_delivery(),
            LedgerError::Exists { .. } => Problem::new(ProblemKind::Conflict, error.to_string()),
            LedgerError::Transition { from, allowed, .. } => {
                let allowed: Vec<&str> = allowed.iter().map(|state| state.name()).collect();
                Problem::new(ProblemKind::Transition, error.to_string())
                    .with("from", json!(from.name()))
                    .with("allowed", json!(allowed))
            }
            LedgerError::Finished { state } => Problem::new(ProblemKind::Transition, error.to_string())
                .with("from", json!(state.name()))
                .with("allowed", json!([])),
            LedgerError::Invalid { .. } | LedgerError::IdempotencyMismatch => {
                Problem::new(ProblemKind::Unprocessable, error.to_string())
            }
            LedgerError::Unavailable { .. } => away("the ledger", &error),
            LedgerError::Damaged { .. } => failed(&error),
        }
    }
}

impl From<RegistryError> for Problem {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::NoTenant { .. } => Problem::new(ProblemKind::NotFound, "no such tenant is known"),
            RegistryError::NoDriver { .. } => Problem::no_driver(),
            RegistryError::NoDevice => Problem::new(ProblemKind::NotFound, "no such device is known under this token"),
            RegistryError::ExternalIdTaken { .. } | RegistryError::Exhausted { .. } => {
                Problem::new(ProblemKind::Conflict, error.to_string())
            }
            RegistryError::Invalid { .. } => Problem::new(ProblemKind::Unprocessable, error.to_string()),
            RegistryError::Unavailable { .. } => away("the registry", &error),
            RegistryError::Damaged { .. } => failed(&error),
        }
    }
}

impl From<TrailStoreError> for Problem {
    fn from(error: TrailStoreError) -> Self {
        match error {
            TrailStoreError::Unavailable { .. } => away("history", &error),
            TrailStoreError::Damaged { .. } => failed(&error),
        }
    }
}

impl From<LiveStoreError> for Problem {
    fn from(error: LiveStoreError) -> Self {
        match error {
            LiveStoreError::Unavailable { .. } => away("the live store", &error),
        }
    }
}

impl From<LogError> for Problem {
    fn from(error: LogError) -> Self {
        if error.is_transient() { away("the log", &error) } else { failed(&error) }
    }
}

impl From<ViewError> for Problem {
    fn from(error: ViewError) -> Self {
        match error {
            ViewError::NotFound => Problem::no_delivery(),
            ViewError::NotHere => Problem::new(ProblemKind::Unavailable, error.to_string()),
            ViewError::Ledger(error) => error.into(),
        }
    }
}

/// What went wrong is for the log; the peer is told only whose fault it is.
fn failed(error: &dyn std::error::Error) -> Problem {
    error!(error = %error, "a request failed");
    Problem::new(ProblemKind::Internal, "the failure was logged")
}

fn away(what: &str, error: &dyn std::error::Error) -> Problem {
    tracing::debug!(error = %error, "a request was turned away");
    Problem::unavailable(what)
}
