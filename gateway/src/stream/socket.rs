//! A stream over a WebSocket. One task per socket waits in one place; a socket that takes nothing for the stall time
//! is closed, and meanwhile only its own task waits.
//!
//! **Nothing is read before what was read is answered.** A pong waits in memory until its peer takes it, so the next
//! ping is read only then: whoever sends pings and reads no pong holds one of them.
//!
//! Every end says why (RFC 6455 §7.4): a close is echoed, what the protocol forbids is 1002, text that is not UTF-8
//! 1007, what is too large 1009.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use futures_util::SinkExt;
use tokio::time::Instant;
use tungstenite::Error as SocketError;
use tungstenite::error::ProtocolError;

use super::{BadMessage, FrameStream, Place, Step, farewell};
use crate::hub::{CloseReason, SharedFrame};
use crate::metrics::StreamEnd;

/// Tells the client what to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CloseCode {
    /// The delivery is finished: there is nothing to come back for.
    Finished = 1000,
    /// What came is forbidden by the protocol.
    Protocol = 1002,
    /// A text was not UTF-8.
    NotText = 1007,
    /// A message was larger than anything that is understood here.
    TooLarge = 1009,
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

/// What came from the peer.
enum Heard {
    Message(Message),
    /// It asked for the end, which was answered as it asked.
    Closed,
    /// It broke a rule, and is told which.
    Fault(CloseCode),
    /// Its connection is gone, or takes nothing.
    Gone,
}

/// Everything that can wake a socket's task.
enum Input {
    Step(Step),
    Heard(Heard),
    Ping,
}

/// Carries the stream until one side ends it.
pub(crate) async fn run(mut socket: WebSocket, mut stream: impl FrameStream, mut place: Place, times: SocketTimes) {
    let mut heard_at = Instant::now();
    let mut ping_at = heard_at + times.ping_every;
    place.end = loop {
        let input = tokio::select! {
            step = stream.next_step() => Input::Step(step),
            heard = hear(&mut socket) => Input::Heard(heard),
            () = tokio::time::sleep_until(ping_at) => Input::Ping,
        };
        match input {
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
            Input::Heard(Heard::Message(message)) => {
                heard_at = Instant::now();
                if let Err(BadMessage(reason)) = handle_message(&mut stream, &message) {
                    close(socket, CloseCode::BadMessage, reason).await;
                    break StreamEnd::Refused;
                }
                if !settle(&mut socket, times.stall).await {
                    break StreamEnd::Stalled;
                }
            }
            Input::Heard(Heard::Closed) => {
                finish(socket).await;
                break StreamEnd::Left;
            }
            Input::Heard(Heard::Fault(code)) => {
                close(socket, code, "").await;
                break StreamEnd::Refused;
            }
            Input::Heard(Heard::Gone) => break StreamEnd::Left,
            Input::Ping => {
                if heard_at.elapsed() > times.ping_every * PINGS_UNANSWERED_MAX {
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

fn handle_message(stream: &mut impl FrameStream, message: &Message) -> Result<(), BadMessage> {
    match message {
        Message::Text(text) => stream.handle_message(text),
        Message::Binary(_) => Err(BadMessage("only text is understood")),
        Message::Ping(_) | Message::Pong(_) | Message::Close(_) => Ok(()),
    }
}

/// The next thing the peer says. Cancellation safe.
async fn hear(socket: &mut WebSocket) -> Heard {
    match socket.recv().await {
        Some(Ok(Message::Close(_))) => Heard::Closed,
        Some(Ok(message)) => Heard::Message(message),
        Some(Err(error)) => fault_of(error).map_or(Heard::Gone, Heard::Fault),
        None => Heard::Gone,
    }
}

/// Which rule was broken. None: the connection failed.
#[expect(clippy::wildcard_enum_match_arm, reason = "not our enum")]
fn fault_of(error: axum::Error) -> Option<CloseCode> {
    match *error.into_inner().downcast::<SocketError>().ok()? {
        // It left without a word.
        SocketError::Protocol(ProtocolError::ResetWithoutClosingHandshake) => None,
        SocketError::Protocol(_) => Some(CloseCode::Protocol),
        SocketError::Utf8(_) => Some(CloseCode::NotText),
        SocketError::Capacity(_) => Some(CloseCode::TooLarge),
        _ => None,
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

/// Lets go out what answers the last message (a pong), before another is read.
async fn settle(socket: &mut WebSocket, stall: Duration) -> bool {
    matches!(tokio::time::timeout(stall, socket.flush()).await, Ok(Ok(())))
}

/// Lets the answer to the peer's close go out.
async fn finish(mut socket: WebSocket) {
    let _given_up_after = tokio::time::timeout(CLOSE_WAIT, socket.flush()).await;
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

/// The first text that comes, for a client that shows its token there; or with which code to close, none where the peer
/// has closed or left.
pub(crate) async fn first_text(socket: &mut WebSocket, wait: Duration) -> Result<Utf8Bytes, Option<CloseCode>> {
    let first = async {
        loop {
            match hear(socket).await {
                Heard::Message(Message::Text(text)) => return Ok(text),
                Heard::Message(Message::Binary(_)) => return Err(Some(CloseCode::BadMessage)),
                Heard::Message(Message::Ping(_) | Message::Pong(_) | Message::Close(_)) => {
                    socket.flush().await.map_err(|_| None)?;
                }
                Heard::Closed => {
                    let _gone_already = socket.flush().await;
                    return Err(None);
                }
                Heard::Fault(code) => return Err(Some(code)),
                Heard::Gone => return Err(None),
            }
        }
    };
    tokio::time::timeout(wait, first).await.unwrap_or(Err(Some(CloseCode::NoToken)))
}

const MESSAGE_BYTES_MAX: usize = 4096;
const PINGS_UNANSWERED_MAX: u32 = 3;
const CLOSE_WAIT: Duration = Duration::from_secs(2);
