//! Problems: the one form in which every HTTP door says what was wrong (RFC 9457). A `type` that programs go by, a
//! title, a detail that a person can act on, the id under which the request stands in our log, and, where several parts
//! of a body are wrong, one entry in `errors` for each.

use std::time::Duration;

use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::request_id::RequestId;

/// Every kind of problem that a door answers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ProblemKind {
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
    RateLimited,
    HeadersTooLarge,
    Internal,
    Unavailable,
}

impl ProblemKind {
    pub const ALL: [ProblemKind; 16] = [
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
        ProblemKind::RateLimited,
        ProblemKind::HeadersTooLarge,
        ProblemKind::Internal,
        ProblemKind::Unavailable,
    ];

    pub fn status(self) -> StatusCode {
        self.words().0
    }

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
            ProblemKind::TooSlow => (StatusCode::REQUEST_TIMEOUT, "too_slow", "the request did not come in time"),
            ProblemKind::Conflict => (StatusCode::CONFLICT, "conflict", "this contradicts what is there"),
            ProblemKind::Transition => (StatusCode::CONFLICT, "transition", "the delivery cannot become this"),
            ProblemKind::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too_large", "the body is too large"),
            ProblemKind::MediaType => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "media_type", "a body of this kind is not read here")
            }
            ProblemKind::Unprocessable => {
                (StatusCode::UNPROCESSABLE_ENTITY, "unprocessable", "a value is not possible")
            }
            ProblemKind::UpgradeRequired => {
                (StatusCode::UPGRADE_REQUIRED, "upgrade_required", "this door takes WebSockets only")
            }
            ProblemKind::RateLimited => (StatusCode::TOO_MANY_REQUESTS, "rate_limited", "this is more than the share"),
            ProblemKind::HeadersTooLarge => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "headers_too_large",
                "the request's headers are too large",
            ),
            ProblemKind::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "something failed on our side"),
            ProblemKind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "come back in a moment"),
        }
    }
}

/// One part of a request that is wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ProblemError {
    /// Where it stands in the body, as a JSON pointer: `/stops/1/lat`. The name of a query parameter or header otherwise.
    pub pointer: String,
    pub detail: String,
}

/// One problem, answered as `application/problem+json`.
#[derive(Clone, PartialEq, Debug)]
pub struct Problem {
    pub kind: ProblemKind,
    detail: String,
    errors: Vec<ProblemError>,
    retry_after: Option<Duration>,
    more: Map<String, Value>,
}

impl Problem {
    pub fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
        Problem { kind, detail: detail.into(), errors: Vec::new(), retry_after: None, more: Map::new() }
    }

    /// With a member of its own.
    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.more.insert(name.to_string(), value);
        self
    }

    /// With one part that is wrong. What is beyond `ERRORS_MAX` is left out: a body of a megabyte must not be answered
    /// by one of ten.
    pub fn with_error(mut self, pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        if self.errors.len() < ERRORS_MAX {
            self.errors.push(ProblemError { pointer: pointer.into(), detail: detail.into() });
        }
        self
    }

    /// How long to wait before trying again. Whole seconds are said, never zero.
    pub fn retry_after(self, wait: Duration) -> Self {
        Problem { retry_after: Some(wait), ..self }
    }

    pub fn detail(&self) -> &str {
        &self.detail
    }

    fn body(&self) -> Value {
        let (status, name, title) = self.kind.words();
        let mut body = Map::new();
        body.insert("type".to_string(), json!(format!("urn:wayfix:problem:{name}")));
        body.insert("title".to_string(), json!(title));
        body.insert("status".to_string(), json!(status.as_u16()));
        body.insert("detail".to_string(), json!(self.detail));
        if let Some(id) = RequestId::current() {
            body.insert("request_id".to_string(), json!(id.as_str()));
        }
        if !self.errors.is_empty() {
            body.insert("errors".to_string(), json!(self.errors));
        }
        body.extend(self.more.clone());
        Value::Object(body)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.kind.status(), self.body().to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.kind == ProblemKind::NoToken {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        let wait = self.retry_after.or((self.kind == ProblemKind::Unavailable).then_some(UNAVAILABLE_WAIT));
        if let Some(wait) = wait {
            headers.insert(RETRY_AFTER, HeaderValue::from(wait.as_millis().div_ceil(1000).max(1) as u64));
        }
        response
    }
}

const ERRORS_MAX: usize = 100;
const UNAVAILABLE_WAIT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    async fn answered(problem: Problem) -> (Response, Value) {
        let (parts, body) = problem.into_response().into_parts();
        let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        (Response::from_parts(parts, axum::body::Body::empty()), serde_json::from_slice(&bytes).unwrap())
    }

    #[tokio::test]
    async fn a_problem_says_its_kind_its_request_and_each_part_that_is_wrong() {
        let problem = Problem::new(ProblemKind::Unprocessable, "two stops are wrong")
            .with_error("/stops/0/lat", "91 is no latitude")
            .with_error("/stops/1/lng", "181 is no longitude")
            .with("stops", json!(2));
        let id = RequestId::said("order-17").unwrap();

        let (response, body) = id.scope(answered(problem)).await;

        assert_eq!(response.status(), 422);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        assert_eq!(body["type"], "urn:wayfix:problem:unprocessable");
        assert_eq!(body["request_id"], "order-17");
        assert_eq!(body["errors"][1], json!({"pointer": "/stops/1/lng", "detail": "181 is no longitude"}));
        assert_eq!(body["stops"], 2);
    }

    #[tokio::test]
    async fn who_may_come_back_is_told_when_and_never_at_once() {
        for (problem, wanted) in [
            (Problem::new(ProblemKind::Unavailable, "away"), Some("2")),
            (Problem::new(ProblemKind::RateLimited, "more").retry_after(Duration::from_millis(4100)), Some("5")),
            (Problem::new(ProblemKind::RateLimited, "more").retry_after(Duration::ZERO), Some("1")),
            (Problem::new(ProblemKind::Conflict, "there"), None),
        ] {
            let (response, _) = answered(problem).await;
            let said = response.headers().get("retry-after").map(|value| value.to_str().unwrap());
            assert_eq!(said, wanted);
        }
    }

    #[tokio::test]
    async fn a_body_with_a_thousand_faults_has_a_bounded_answer() {
        let problem = (0..1000).fold(Problem::new(ProblemKind::BadRequest, "many"), |problem, index| {
            problem.with_error(format!("/{index}"), "wrong")
        });

        let (_, body) = answered(problem).await;

        assert_eq!(body["errors"].as_array().unwrap().len(), ERRORS_MAX);
    }
}
