//! `POST /api/v1/tracking/locations`: fixes as a JSON array, answered 202 once all of them are in the log. Who sent
//! them is what the credential says, and nothing else.

use std::io::Read;

use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use daemon::serve::read_body;
use daemon::{Problem, ProblemKind};
use flate2::read::MultiGzDecoder;
use protocol::DeviceKey;
use protocol::record::Door;
use serde::{Deserialize, Serialize};

use super::fixes::{self, Ignored, JsonFault, JsonFixes, Missing, is_id};
use super::{DoorState, RETRY_AFTER};
use crate::metrics::DoorOutcome;
use crate::submit::NotTaken;

/// What a client may say of itself. The credential is what counts; who contradicts it is told so.
#[derive(Deserialize)]
pub struct Claims {
    driver: Option<String>,
    tenant: Option<String>,
}

#[derive(Serialize)]
struct Taken {
    accepted: usize,
    /// By their place in the array: those that were recorded as rejected, and those that could not be read.
    rejected: Vec<Rejected>,
    /// Fields that were left out of fixes that were taken, the first hundred.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ignored: Vec<Ignored>,
}

#[derive(Serialize)]
struct Rejected {
    index: usize,
    reason: Reason,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Reason {
    Judged(&'static str),
    Unreadable(Missing),
}

pub async fn post(
    State(door): State<DoorState>,
    claims: Result<Query<Claims>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let (outcome, response) = match take(&door, claims, &headers, body).await {
        Ok(taken) => (DoorOutcome::Accepted, (StatusCode::ACCEPTED, axum::Json(taken)).into_response()),
        Err((outcome, problem)) => (outcome, problem.into_response()),
    };
    door.0.metrics.count(outcome);
    response
}

type Refused = (DoorOutcome, Problem);

async fn take(
    door: &DoorState,
    claims: Result<Query<Claims>, QueryRejection>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Taken, Refused> {
    let device = identify(door, headers)?;
    let Query(claims) = claims.map_err(|error| bad_request(format!("the query: {}", error.body_text())))?;
    if claims.contradict(device) {
        return Err(contradicting("the query names another driver or tenant than the credential"));
    }
    check_content_type(headers)?;
    if door.0.log_state.is_away() {
        return Err(refused(NotTaken::LogAway));
    }
    let bytes_max = door.0.bytes_max;
    let body = read_body(body, bytes_max).await.map_err(|problem| (outcome_of(problem.kind), problem))?;
    let body = decoded(headers, body, bytes_max)?;
    let read = fixes::parse(&body, device, door.0.fixes_max).map_err(|fault| match fault {
        JsonFault::Malformed(detail) => bad_request(detail),
        JsonFault::TooMany => too_large(format!("more than {} fixes in one request", door.0.fixes_max)),
    })?;
    if let Some(index) = read.contradiction {
        return Err(contradicting(&format!("fix {index} names another driver or tenant than the credential")));
    }
    let JsonFixes { fixes, places, unreadable, mut ignored, .. } = read;
    let unreadable = unreadable.iter().map(|fix| Rejected { index: fix.index, reason: Reason::Unreadable(fix.reason) });
    let mut rejected: Vec<Rejected> = unreadable.collect();
    ignored.truncate(IGNORED_SHOWN_MAX);
    let count = fixes.len();
    if count == 0 {
        return Ok(Taken { accepted: 0, rejected, ignored });
    }
    let judged = door.submit(device, Door::Json, fixes).await.map_err(refused)?;
    let accepted = count - judged.len();
    rejected.extend(
        judged.iter().map(|fix| Rejected { index: places[fix.index], reason: Reason::Judged(fix.reason.name()) }),
    );
    rejected.sort_by_key(|fix| fix.index);
    Ok(Taken { accepted, rejected, ignored })
}

impl Claims {
    fn contradict(&self, device: DeviceKey) -> bool {
        let differs = |claim: &Option<String>, id: u32| claim.as_ref().is_some_and(|claim| !is_id(claim, id));
        differs(&self.driver, device.driver.0) || differs(&self.tenant, device.tenant.0)
    }
}

fn identify(door: &DoorState, headers: &HeaderMap) -> Result<DeviceKey, Refused> {
    let unauthorized = |detail: &str| (DoorOutcome::Unauthorized, Problem::new(ProblemKind::NoToken, detail));
    let header = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some((scheme, credential)) = header.and_then(|value| value.split_once(' ')) else {
        return Err(unauthorized("send Authorization: Bearer and the device's credential"));
    };
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(unauthorized("send Authorization: Bearer and the device's credential"));
    }
    // Whoever shows a bad one is not told what is bad about it.
    door.check_credential(credential.trim()).map_err(|_| unauthorized("this credential opens nothing"))
}

fn check_content_type(headers: &HeaderMap) -> Result<(), Refused> {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    let essence = value.to_str().unwrap_or("").split(';').next().unwrap_or("").trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let problem = Problem::new(ProblemKind::MediaType, "send application/json");
    Err((DoorOutcome::BadRequest, problem))
}

/// The body as it was before it was compressed. What it would become is bounded like what comes.
fn decoded(headers: &HeaderMap, body: Bytes, bytes_max: usize) -> Result<Bytes, Refused> {
    let encoding = headers.get(CONTENT_ENCODING).map(|value| value.to_str().unwrap_or("?").trim().to_ascii_lowercase());
    match encoding.as_deref() {
        None | Some("" | "identity") => return Ok(body),
        Some("gzip" | "x-gzip") => {}
        Some(_) => {
            let problem = Problem::new(ProblemKind::MediaType, "send the body as it is, or with content-encoding gzip");
            return Err((DoorOutcome::BadRequest, problem));
        }
    }
    let mut plain = Vec::new();
    let mut decoder = MultiGzDecoder::new(&body[..]).take(bytes_max as u64 + 1);
    decoder.read_to_end(&mut plain).map_err(|_| bad_request("the body is not gzip, or is cut short".to_string()))?;
    if plain.len() > bytes_max {
        return Err(too_large(format!("more than {bytes_max} bytes once decoded")));
    }
    Ok(plain.into())
}

fn outcome_of(kind: ProblemKind) -> DoorOutcome {
    if kind == ProblemKind::TooLarge { DoorOutcome::TooLarge } else { DoorOutcome::BadRequest }
}

fn bad_request(detail: String) -> Refused {
    (DoorOutcome::BadRequest, Problem::new(ProblemKind::BadRequest, detail))
}

fn contradicting(detail: &str) -> Refused {
    (DoorOutcome::Contradicting, Problem::new(ProblemKind::WrongScope, detail))
}

fn too_large(detail: String) -> Refused {
    (DoorOutcome::TooLarge, Problem::new(ProblemKind::TooLarge, detail))
}

fn refused(reason: NotTaken) -> Refused {
    let detail = reason.to_string();
    match reason {
        NotTaken::Limited { wait } => {
            (DoorOutcome::RateLimited, Problem::new(ProblemKind::RateLimited, detail).retry_after(wait))
        }
        NotTaken::LogAway | NotTaken::Overloaded | NotTaken::Uncertain => {
            (DoorOutcome::Unavailable, Problem::new(ProblemKind::Unavailable, detail).retry_after(RETRY_AFTER))
        }
    }
}

const IGNORED_SHOWN_MAX: usize = 100;
