//! A stream over a WebSocket. One task per socket waits in one place; a socket that takes nothing for the stall time
//! is closed, and meanwhile only its own task waits.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use tokio::time::Instant;

use super::{BadMessage, FrameStream, Place, Step, farewell};
use crate::hub::{CloseReason, SharedFrame};
use crate::metrics::StreamEnd;

/// Tells the client what to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CloseCode {
    /// The delivery is finished: there is nothing to come back for.
    Finished = 1000,
    /// We failed: come back with your last number.
    Failed = 1011,
    /// Come back after the time in the redirect frame, with your last number.
    ComeBack = 1012,
    /// There is no room, or a part we need is away: try again later.
    TryLater = 1013,
    /// What was said is not understood.
    BadMessage = 4400,
    /// The token opens nothing.
    BadToken = 4401,
    /// Not known under this token.
    NotFound = 4404,
    /// No token came in time.
    NoToken = 4408,
    /// Too slow: come back with your last number.
    Slow = 4429,
}

impl From<CloseReason> for CloseCode {
    fn from(reason: CloseReason) -> Self {
        match reason {
            CloseReason::Finished => CloseCode::Finished,
            CloseReason::Slow => CloseCode::Slow,
            CloseReason::Moved | CloseReason::Stopping => CloseCode::ComeBack,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct SocketTimes {
    pub ping_every: Duration,
    pub stall: Duration,
}

/// Buffers as small as what goes through them: 5.7 KiB for an idle connection instead of 135.
pub(crate) fn tuned(upgrade: WebSocketUpgrade) -> WebSocketUpgrade {
    upgrade
        .read_buffer_size(4096)
        .write_buffer_size(0)
        .max_message_size(MESSAGE_BYTES_MAX)
        .max_frame_size(MESSAGE_BYTES_MAX)
}

/// Everything that can wake a socket's task.
enum Input {
    Step(Step),
    Message(Message),
    Gone,
    Ping,
}

/// Carries the stream until one side ends it.
pub(crate) async fn run(mut socket: WebSocket, mut stream: impl FrameStream, mut place: Place, times: SocketTimes) {
    let mut heard = Instant::now();
    let mut ping_at = heard + times.ping_every;
    place.end = loop {
        let input = tokio::select! {
            step = stream.next_step() => Input::Step(step),
            message = socket.recv() => match message {
                Some(Ok(message)) => Input::Message(message),
                Some(Err(_)) | None => Input::Gone,
            },
            () = tokio::time::sleep_until(ping_at) => Input::Ping,
        };
        match input {
            Input::Gone => break StreamEnd::Left,
            Input::Step(Step::Frame(frame)) => {
                if !send_frame(&mut socket, &frame, times.stall).await {
                    break StreamEnd::Stalled;
                }
                place.count_frame(&frame);
            }
            Input::Step(Step::Close(reason)) => {
                if let Some(frame) = farewell(reason) {
                    send_frame(&mut socket, &frame, times.stall).await;
                }
                close(socket, reason.into(), "").await;
                break reason.into();
            }
            Input::Message(message) => {
                heard = Instant::now();
                match handle_message(&mut stream, &message) {
                    Ok(true) => {}
                    Ok(false) => break StreamEnd::Left,
                    Err(BadMessage(reason)) => {
                        close(socket, CloseCode::BadMessage, reason).await;
                        break StreamEnd::Refused;
                    }
                }
            }
            Input::Ping => {
                if heard.elapsed() > times.ping_every * PINGS_UNANSWERED_MAX {
                    break StreamEnd::Silent;
                }
                if !send(&mut socket, Message::Ping(axum::body::Bytes::new()), times.stall).await {
                    break StreamEnd::Stalled;
                }
                ping_at = Instant::now() + times.ping_every;
            }
        }
    };
}

/// Whether the stream goes on.
fn handle_message(stream: &mut impl FrameStream, message: &Message) -> Result<bool, BadMessage> {
    match message {
        Message::Text(text) => stream.handle_message(text).map(|()| true),
        Message::Binary(_) => Err(BadMessage("only text is understood")),
        Message::Ping(_) | Message::Pong(_) => Ok(true),
        Message::Close(_) => Ok(false),
    }
}

async fn send_frame(socket: &mut WebSocket, frame: &SharedFrame, stall: Duration) -> bool {
    // Frames are made by serde_json, so this cannot fail; a frame that is not text is not worth a panic though.
    let Ok(text) = Utf8Bytes::try_from(frame.json.clone()) else { return false };
    send(socket, Message::Text(text), stall).await
}

async fn send(socket: &mut WebSocket, message: Message, stall: Duration) -> bool {
    matches!(tokio::time::timeout(stall, socket.send(message)).await, Ok(Ok(())))
}

/// Says why, and waits a moment for the other side to hear it.
pub(crate) async fn close(mut socket: WebSocket, code: CloseCode, reason: &'static str) {
    let frame = CloseFrame { code: code as u16, reason: Utf8Bytes::from_static(reason) };
    let closing = async {
        if socket.send(Message::Close(Some(frame))).await.is_ok() {
            while let Some(Ok(_)) = socket.recv().await {}
        }
    };
    let _given_up_after = tokio::time::timeout(CLOSE_WAIT, closing).await;
}

/// The first text that comes, for a client that shows its token there. None: nothing came in time, or it left.
pub(crate) async fn first_text(socket: &mut WebSocket, wait: Duration) -> Option<Utf8Bytes> {
    let first = async {
        loop {
            match socket.recv().await {
                Some(Ok(Message::Text(text))) => return Some(text),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Binary(_) | Message::Close(_)) | Err(_)) | None => return None,
            }
        }
    };
    tokio::time::timeout(wait, first).await.ok().flatten()
}

const MESSAGE_BYTES_MAX: usize = 4096;
const PINGS_UNANSWERED_MAX: u32 = 3;
const CLOSE_WAIT: Duration = Duration::from_secs(2);
