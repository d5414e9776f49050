//! `POST /v1/datagrams`: one sealed datagram as a body. It goes to the thread that its session id names, so a replay
//! by another way meets the same window.

use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use daemon::serve::read_body;
use daemon::{Problem, ProblemKind};
use protocol::datagram::{DATAGRAM_LEN_MAX, thread_of};
use protocol::record::Door;
use tokio::sync::oneshot;

use super::{DoorState, RETRY_AFTER};
use crate::intake::ANSWER_AFTER;
use crate::udp::inbox::{Reply, Visitor};

pub async fn post(State(door): State<DoorState>, headers: HeaderMap, body: Body) -> Response {
    if headers.get(CONTENT_TYPE).is_none_or(|value| value.as_bytes() != MEDIA_TYPE.as_bytes()) {
        let detail = format!("send {MEDIA_TYPE}");
        return Problem::new(ProblemKind::MediaType, detail).into_response();
    }
    let bytes = match read_body(body, DATAGRAM_LEN_MAX).await {
        Ok(bytes) => bytes,
        Err(problem) => return problem.into_response(),
    };
    let (reply, answer) = oneshot::channel();
    let thread = thread_of(&bytes, door.0.threads.len());
    let visitor = Visitor::Datagram { bytes: bytes.as_ref().into(), door: Door::Https, reply: Reply::Http(reply) };
    if door.0.threads[thread].visit(visitor).is_err() {
        return overloaded();
    }
    // The thread answers within a second, whatever the log does.
    match tokio::time::timeout(ANSWER_AFTER * 5, answer).await {
        Ok(Ok(Some(answer))) => ([(CONTENT_TYPE, MEDIA_TYPE)], answer.to_vec()).into_response(),
        Ok(Ok(None)) => StatusCode::NO_CONTENT.into_response(),
        Ok(Err(_)) | Err(_) => overloaded(),
    }
}

fn overloaded() -> Response {
    let detail = "this edge has more to do than it can";
    let problem = Problem::new(ProblemKind::Unavailable, detail);
    problem.retry_after(RETRY_AFTER).into_response()
}

pub const MEDIA_TYPE: &str = "application/vnd.wayfix.datagram";
