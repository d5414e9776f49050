//! `POST /api/v1/tracking/locations`: fixes as a JSON array, answered 202 once all of them are in the log. Who sent
//! them is what the credential says, and nothing else.

use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Query, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use daemon::{Problem, ProblemKind};
use protocol::DeviceKey;
use protocol::record::Door;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::fixes::{self, IdClaim, JsonFault};
use super::{BODY_READ_MAX, DoorState, RETRY_AFTER};
use crate::intake::RejectedFix;
use crate::metrics::DoorOutcome;
use crate::udp::inbox::{Submission, SubmissionOutcome, Visitor};

/// What a client may say of itself. The credential is what counts; who contradicts it is told so.
#[derive(Deserialize)]
pub struct Claims {
    driver: Option<String>,
    tenant: Option<String>,
}

#[derive(Serialize)]
struct Taken {
    accepted: usize,
    rejected: Vec<Rejected>,
}

#[derive(Serialize)]
struct Rejected {
    index: usize,
    reason: &'static str,
}

pub async fn post(
    State(door): State<DoorState>,
    Query(claims): Query<Claims>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let (outcome, response) = match take(&door, &claims, &headers, body).await {
        Ok(taken) => (DoorOutcome::Accepted, (StatusCode::ACCEPTED, axum::Json(taken)).into_response()),
        Err((outcome, problem)) => (outcome, problem.into_response()),
    };
    door.0.metrics.count(outcome);
    response
}

type Refused = (DoorOutcome, Problem);

async fn take(door: &DoorState, claims: &Claims, headers: &HeaderMap, body: Body) -> Result<Taken, Refused> {
    let device = identify(door, headers)?;
    if claims.contradict(device) {
        return Err(contradicting("the query names another driver or tenant than the credential"));
    }
    check_content_type(headers)?;
    if door.0.log_state.is_away() {
        return Err(unavailable("fixes cannot be stored at the moment; keep them and send them again"));
    }
    let body = read_body(body, door.0.bytes_max).await?;
    let read = fixes::parse(&body, device, door.0.fixes_max).map_err(|fault| match fault {
        JsonFault::Malformed(detail) => (DoorOutcome::BadRequest, Problem::new(ProblemKind::BadRequest, detail)),
        JsonFault::TooMany => too_large(format!("more than {} fixes in one request", door.0.fixes_max)),
    })?;
    if let Some(index) = read.contradiction {
        return Err(contradicting(&format!("fix {index} names another driver or tenant than the credential")));
    }
    let count = read.fixes.len();
    if count == 0 {
        return Ok(Taken { accepted: 0, rejected: Vec::new() });
    }
    door.0.limit.take(device, count).map_err(|wait| {
        let detail = "this device has sent more fixes than its share";
        let problem = Problem::new(ProblemKind::RateLimited, detail).retry_after(wait);
        (DoorOutcome::RateLimited, problem)
    })?;
    let rejected = submit(door, device, read.fixes).await?;
    Ok(Taken { accepted: count - rejected.len(), rejected: rejected.iter().map(Rejected::of).collect() })
}

impl Claims {
    fn contradict(&self, device: DeviceKey) -> bool {
        let differs =
            |claim: &Option<String>, id: u32| claim.as_ref().is_some_and(|claim| !IdClaim::Text(claim.clone()).is(id));
        differs(&self.driver, device.driver.0) || differs(&self.tenant, device.tenant.0)
    }
}

impl Rejected {
    fn of(fix: &RejectedFix) -> Self {
        Rejected { index: fix.index, reason: fix.reason.name() }
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
    door.control().check_credential(credential.trim()).map_err(|_| unauthorized("this credential opens nothing"))
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

async fn read_body(body: Body, bytes_max: usize) -> Result<Bytes, Refused> {
    match tokio::time::timeout(BODY_READ_MAX, to_bytes(body, bytes_max)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_length_limit(&error) => Err(too_large(format!("more than {bytes_max} bytes"))),
        Ok(Err(_)) => {
            let problem = Problem::new(ProblemKind::BadRequest, "the body ended before its end");
            Err((DoorOutcome::BadRequest, problem))
        }
        Err(_) => {
            let problem = Problem::new(ProblemKind::TooSlow, "the body did not arrive in time");
            Err((DoorOutcome::BadRequest, problem))
        }
    }
}

fn is_length_limit(error: &axum::Error) -> bool {
    use std::error::Error;
    error.source().is_some_and(|source| source.is::<http_body_util::LengthLimitError>())
}

/// All of one driver go to one thread, so that they stay in order.
async fn submit(door: &DoorState, device: DeviceKey, fixes: Vec<protocol::Fix>) -> Result<Vec<RejectedFix>, Refused> {
    let (reply, outcome) = oneshot::channel();
    let thread = &door.0.threads[device.driver.0 as usize % door.0.threads.len()];
    let submission = Submission { device, door: Door::Json, fixes, reply };
    if thread.visit(Visitor::Submission(submission)).is_err() {
        return Err(unavailable("this edge has more to do than it can; send the fixes again"));
    }
    let wait = door.0.clock.real(door.0.wait_max).max(WAIT_MIN);
    match tokio::time::timeout(wait, outcome).await {
        Ok(Ok(SubmissionOutcome::Durable { rejected })) => Ok(rejected),
        Ok(Ok(SubmissionOutcome::Overloaded)) => {
            Err(unavailable("this edge has more to do than it can; send the fixes again"))
        }
        Ok(Ok(SubmissionOutcome::Lost) | Err(_)) | Err(_) => {
            Err(unavailable("the fixes may not have been stored; keep them and send them again"))
        }
    }
}

fn contradicting(detail: &str) -> Refused {
    (DoorOutcome::Contradicting, Problem::new(ProblemKind::WrongScope, detail))
}

fn too_large(detail: String) -> Refused {
    (DoorOutcome::TooLarge, Problem::new(ProblemKind::TooLarge, detail))
}

fn unavailable(detail: &str) -> Refused {
    let problem = Problem::new(ProblemKind::Unavailable, detail).retry_after(RETRY_AFTER);
    (DoorOutcome::Unavailable, problem)
}

/// A scaled clock must not make the disk look slow.
const WAIT_MIN: Duration = Duration::from_secs(2);
