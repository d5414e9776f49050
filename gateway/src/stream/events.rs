//! A stream as server-sent events. Each event's data is one frame, its id the journal number to say on return, which
//! browsers do by themselves in `Last-Event-ID`.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use http::HeaderValue;
use http::header::CACHE_CONTROL;
use tokio_util::sync::CancellationToken;

use super::{FrameStream, Place, Step, farewell};
use crate::hub::{CloseReason, SharedFrame};

/// `stopping` ends the stream with its door: a connection that goes on would hold the stop.
pub(crate) fn respond<S: FrameStream + 'static>(
    stream: S,
    place: Place,
    keep_alive: Duration,
    stopping: CancellationToken,
) -> Response {
    let state = Some((stream, place, true, stopping));
    let events = stream::unfold(state, |state| async move {
        let (mut stream, mut place, is_first, stopping) = state?;
        let step = tokio::select! {
            step = stream.next_step() => step,
            () = stopping.cancelled() => Step::Close(CloseReason::Stopping),
        };
        match step {
            Step::Frame(frame) => {
                place.count_frame(&frame);
                let mut event = event_of(&frame);
                if is_first {
                    event = event.retry(RETRY);
                }
                Some((Ok::<_, Infallible>(event), Some((stream, place, false, stopping))))
            }
            Step::Close(reason) => {
                place.end = reason.into();
                farewell(reason).map(|frame| (Ok(event_of(&frame)), None))
            }
        }
    });
    let mut response = Sse::new(events).keep_alive(KeepAlive::new().interval(keep_alive)).into_response();
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

fn event_of(frame: &SharedFrame) -> Event {
    let event = Event::default().data(String::from_utf8_lossy(&frame.json));
    match frame.number {
        Some(number) => event.id(number.to_string()),
        None => event,
    }
}

const RETRY: Duration = Duration::from_secs(2);
