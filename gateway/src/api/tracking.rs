//! What customers see of a delivery: a stream by WebSocket or server-sent events, or its state once.

use axum::Extension;
use axum::Json;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::response::{IntoResponse, Response};
use daemon::serve::Stopping;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode, Uri};
use protocol::{DeliveryId, DeliveryKey, JournalNumber};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::Api;
use super::auth::{MaybeWatcher, ShownToken, Watcher, selected_protocol, watcher_of};
use super::input::{DeliveryPath, Params};
use super::links::SecureDoor;
use super::problem::{Problem, ProblemKind};
use super::scopes::{HeldScope, TokenHash};
use super::tenants::NO_STORE;
use crate::hub::Resume;
use crate::metrics::{StreamEnd, StreamKind};
use crate::stream::customer::CustomerStream;
use crate::stream::socket::{self, CloseCode};
use crate::stream::{Place, events};

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct ResumeParams {
    /// The last journal number the customer has.
    last: Option<u64>,
    /// The `view` of the last snapshot it got.
    view: Option<String>,
}

impl ResumeParams {
    fn resume(self) -> Resume {
        Resume { last: self.last.map(JournalNumber), view: self.view }
    }
}

/// The first message of a client that shows its token there.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FirstMessage {
    pub token: String,
}

pub(crate) async fn connect(
    State(api): State<Api>,
    DeliveryPath(delivery): DeliveryPath,
    MaybeWatcher(watcher): MaybeWatcher,
    ShownToken(token): ShownToken,
    Params(params): Params<ResumeParams>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let upgrade = upgraded(upgrade, &headers)?;
    let place = api.place(StreamKind::CustomerSocket, token)?;
    let resume = params.resume();
    let times = api.socket_times();
    // With the token at hand, what is wrong is said in HTTP, before the connection changes.
    let Some(watcher) = watcher else {
        return Ok(upgrade.on_upgrade(move |socket| connect_by_first_message(api, socket, delivery, resume, place)));
    };
    let stream = open(&api, watcher.key(delivery)?, resume).await?;
    Ok(upgrade.on_upgrade(move |socket| socket::run(socket, stream, place, times)))
}

async fn connect_by_first_message(
    api: Api,
    mut socket: WebSocket,
    delivery: DeliveryId,
    resume: Resume,
    mut place: Place,
) {
    let opened = match first_watcher(&api, &mut socket, &mut place).await {
        Ok(watcher) => match watcher.key(delivery) {
            Ok(key) => open(&api, key, resume).await.map_err(|problem| Some(close_code_of(problem.kind()))),
            Err(problem) => Err(Some(close_code_of(problem.kind()))),
        },
        Err(code) => Err(code),
    };
    match opened {
        Ok(stream) => socket::run(socket, stream, place, api.socket_times()).await,
        Err(code) => {
            place.end = code.map_or(StreamEnd::Left, |_| StreamEnd::Refused);
            if let Some(code) = code {
                socket::close(socket, code, "").await;
            }
        }
    }
}

/// Whose token the first message shows; or with which code to close, none where the peer has closed.
pub(crate) async fn first_watcher(
    api: &Api,
    socket: &mut WebSocket,
    place: &mut Place,
) -> Result<Watcher, Option<CloseCode>> {
    let stopping = api.stop.cancelled();
    let text = tokio::select! {
        text = socket::first_text(socket, FIRST_MESSAGE_WAIT) => text?,
        () = stopping => return Err(Some(CloseCode::ComeBack)),
    };
    let first: FirstMessage = serde_json::from_str(&text).map_err(|_| Some(CloseCode::BadMessage))?;
    let watcher = watcher_of(api, &first.token).await.map_err(|problem| Some(close_code_of(problem.kind())))?;
    place.held = Some(HeldScope::new(api, TokenHash::of(&first.token)));
    Ok(watcher)
}

pub(crate) fn close_code_of(kind: ProblemKind) -> CloseCode {
    match kind {
        ProblemKind::NoToken | ProblemKind::WrongScope => CloseCode::BadToken,
        ProblemKind::NotFound => CloseCode::NotFound,
        ProblemKind::Unavailable | ProblemKind::RateLimited => CloseCode::TryLater,
        ProblemKind::Internal => CloseCode::Failed,
        ProblemKind::BadRequest
        | ProblemKind::MethodNotAllowed
        | ProblemKind::TooSlow
        | ProblemKind::Conflict
        | ProblemKind::Transition
        | ProblemKind::TooLarge
        | ProblemKind::MediaType
        | ProblemKind::Unprocessable
        | ProblemKind::HeadersTooLarge
        | ProblemKind::UpgradeRequired => CloseCode::BadMessage,
    }
}

/// The upgrade with our buffers and a sub-protocol selected.
pub(crate) fn upgraded(
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    headers: &HeaderMap,
) -> Result<WebSocketUpgrade, Problem> {
    let upgrade = upgrade.map_err(|error| Problem::new(ProblemKind::UpgradeRequired, error.body_text()))?;
    let mut upgrade = socket::tuned(upgrade);
    if let Some(protocol) = selected_protocol(headers) {
        upgrade.set_selected_protocol(protocol);
    }
    Ok(upgrade)
}

/// 204 tells a browser's EventSource to come back no more: finished, and nothing missed.
pub(crate) async fn by_events(
    State(api): State<Api>,
    DeliveryPath(delivery): DeliveryPath,
    watcher: Watcher,
    ShownToken(token): ShownToken,
    Params(params): Params<ResumeParams>,
    stopping: Option<Extension<Stopping>>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let key = watcher.key(delivery)?;
    let mut resume = params.resume();
    // The browser's own word is newer than the address it was first given.
    let said = headers.get("last-event-id").and_then(|value| value.to_str().ok()?.parse().ok());
    resume.last = said.map(JournalNumber).or(resume.last);
    if let Some(last) = resume.last
        && is_over(&api, key, last).await
    {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let place = api.place(StreamKind::CustomerEvents, token)?;
    let stream = open(&api, key, resume).await?;
    Ok(events::respond(stream, place, api.config.ping_every, door_of(&api, stopping)))
}

/// What stops the door that a request came in by.
pub(crate) fn door_of(api: &Api, stopping: Option<Extension<Stopping>>) -> CancellationToken {
    stopping.map_or_else(|| api.stop.clone(), |Extension(Stopping(token))| token)
}

async fn is_over(api: &Api, key: DeliveryKey, last: JournalNumber) -> bool {
    match api.ledger.delivery(key).await {
        Ok(Some(delivery)) => delivery.state.is_finished() && delivery.last_number() == last,
        Ok(None) | Err(_) => false,
    }
}

pub(crate) async fn status(
    State(api): State<Api>,
    DeliveryPath(delivery): DeliveryPath,
    watcher: Watcher,
) -> Result<impl IntoResponse, Problem> {
    let frame = api.views.snapshot(watcher.key(delivery)?).await?;
    Ok(([(CONTENT_TYPE, "application/json")], NO_STORE, frame.json))
}

#[derive(Debug, Serialize)]
struct LinkOut {
    delivery: DeliveryId,
    connect: String,
    events: String,
    status: String,
}

/// Which delivery a customer's token opens: all that its page knows at first is the token.
pub(crate) async fn link(
    State(api): State<Api>,
    watcher: Watcher,
    secure: Option<Extension<SecureDoor>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<impl IntoResponse, Problem> {
    let Watcher::Delivery(key) = watcher else {
        return Err(Problem::new(ProblemKind::WrongScope, "a delivery's token is needed here"));
    };
    let base = super::links::Base::of(&api, &uri, &headers, secure.is_some());
    let url = |what: &str| base.url(&format!("/api/v1/tracking/{}/{what}", key.delivery));
    let connect = url("connect");
    let connect = connect.strip_prefix("http").map(|rest| format!("ws{rest}")).unwrap_or(connect);
    Ok((NO_STORE, Json(LinkOut { delivery: key.delivery, connect, events: url("events"), status: url("status") })))
}

async fn open(api: &Api, key: DeliveryKey, resume: Resume) -> Result<CustomerStream, Problem> {
    Ok(api.views.stream(key, resume).await?)
}

pub(crate) const FIRST_MESSAGE_WAIT: std::time::Duration = std::time::Duration::from_secs(10);
