//! Streams: what lies between a hub and a socket. A stream is asked for its next step and answers a frame or that it
//! ends; whether a WebSocket or server-sent events carry it, it does not know.

pub(crate) mod customer;
pub(crate) mod events;
pub(crate) mod map;
pub(crate) mod socket;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use protocol::frame::{Frame, RedirectFrame};
use rand::Rng;
use tokio::sync::Notify;

use crate::api::HeldScope;
use crate::hub::frames;
use crate::hub::{CloseReason, SharedFrame};
use crate::metrics::{GatewayMetrics, StreamEnd, StreamKind};

/// What a stream does next.
#[derive(Debug)]
pub(crate) enum Step {
    Frame(SharedFrame),
    Close(CloseReason),
}

/// Why a message from the peer ends its stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadMessage(pub &'static str);

pub(crate) trait FrameStream: Send {
    /// Cancellation safe: what is not answered is not lost.
    fn next_step(&mut self) -> impl Future<Output = Step> + Send;

    /// What the peer said, as text.
    fn handle_message(&mut self, text: &str) -> Result<(), BadMessage>;
}

/// The frame that goes before the end, for all ends after which coming back makes sense.
pub(crate) fn farewell(reason: CloseReason) -> Option<SharedFrame> {
    let (retry_max_ms, text) = match reason {
        CloseReason::Finished => return None,
        CloseReason::Slow => (1_000, "too slow: come back with your last number"),
        CloseReason::Moved => (1_000, "another gateway owns this delivery: come back with your last number"),
        // Spread out, so that the next gateway is not met by all at once.
        CloseReason::Stopping => (3_000, "this gateway stops: come back with your last number"),
    };
    let retry_after_ms = rand::rng().random_range(retry_max_ms / 10..=retry_max_ms);
    Some(frames::shared(&Frame::Redirect(RedirectFrame { url: None, retry_after_ms, reason: text.to_string() })))
}

/// How many streams are open, and room for how many there is.
#[derive(Debug)]
pub(crate) struct Places {
    open: AtomicUsize,
    max: usize,
    left: Notify,
}

impl Places {
    pub fn new(max: usize) -> Self {
        Places { open: AtomicUsize::new(0), max, left: Notify::new() }
    }

    /// Resolves when no stream is open.
    pub async fn all_left(&self) {
        loop {
            let left = self.left.notified();
            if self.open.load(Ordering::Acquire) == 0 {
                return;
            }
            left.await;
        }
    }
}

/// One stream's place. Dropping it says how the stream ended.
pub(crate) struct Place {
    places: Arc<Places>,
    metrics: Arc<GatewayMetrics>,
    kind: StreamKind,
    pub end: StreamEnd,
    /// What the stream was opened with.
    pub held: Option<HeldScope>,
}

impl Place {
    /// None: there is no room.
    pub fn take(places: &Arc<Places>, metrics: &Arc<GatewayMetrics>, kind: StreamKind) -> Option<Place> {
        if places.open.fetch_add(1, Ordering::AcqRel) >= places.max {
            places.open.fetch_sub(1, Ordering::AcqRel);
            metrics.streams_shed.increment(1);
            return None;
        }
        metrics.stream_opened(kind);
        Some(Place { places: places.clone(), metrics: metrics.clone(), kind, end: StreamEnd::Left, held: None })
    }

    pub fn count_frame(&self, frame: &SharedFrame) {
        self.metrics.count_frame(frame.kind);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.metrics.stream_ended(self.kind, self.end);
        if self.places.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.places.left.notify_waiters();
        }
    }
}
