//! What the gateway counts.

use daemon::Meter;
use metrics::{Counter, Gauge, Histogram};

use crate::hub::{CloseReason, FrameKind, Handled};

/// Which door a stream came in by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum StreamKind {
    CustomerSocket,
    CustomerEvents,
    MapSocket,
    MapEvents,
}

impl StreamKind {
    const ALL: [StreamKind; 4] =
        [StreamKind::CustomerSocket, StreamKind::CustomerEvents, StreamKind::MapSocket, StreamKind::MapEvents];

    fn name(self) -> &'static str {
        match self {
            StreamKind::CustomerSocket => "customer_socket",
            StreamKind::CustomerEvents => "customer_events",
            StreamKind::MapSocket => "map_socket",
            StreamKind::MapEvents => "map_events",
        }
    }
}

/// How a stream ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum StreamEnd {
    Left,
    Slow,
    Finished,
    Moved,
    Stopping,
    /// Took nothing for too long.
    Stalled,
    /// Said nothing, not even a pong.
    Silent,
    /// Said what is not understood, or showed no good token.
    Refused,
}

impl StreamEnd {
    const ALL: [StreamEnd; 8] = [
        StreamEnd::Left,
        StreamEnd::Slow,
        StreamEnd::Finished,
        StreamEnd::Moved,
        StreamEnd::Stopping,
        StreamEnd::Stalled,
        StreamEnd::Silent,
        StreamEnd::Refused,
    ];

    fn name(self) -> &'static str {
        match self {
            StreamEnd::Left => "left",
            StreamEnd::Slow => "slow",
            StreamEnd::Finished => "finished",
            StreamEnd::Moved => "moved",
            StreamEnd::Stopping => "stopping",
            StreamEnd::Stalled => "stalled",
            StreamEnd::Silent => "silent",
            StreamEnd::Refused => "refused",
        }
    }
}

impl From<CloseReason> for StreamEnd {
    fn from(reason: CloseReason) -> Self {
        match reason {
            CloseReason::Slow => StreamEnd::Slow,
            CloseReason::Finished => StreamEnd::Finished,
            CloseReason::Moved => StreamEnd::Moved,
            CloseReason::Stopping => StreamEnd::Stopping,
        }
    }
}

pub(crate) struct GatewayMetrics {
    updates: [Counter; 3],
    /// Entries of the updates topic that could not be opened.
    pub entries_bad: Counter,
    frames: Vec<Counter>,
    streams_open: Vec<Gauge>,
    streams_ended: Vec<Counter>,
    /// Streams refused because there is no room for another.
    pub streams_shed: Counter,
    requests: [Counter; 5],
    /// How long requests took, streams left out.
    pub request_seconds: Histogram,
    /// Live views held.
    pub views: Gauge,
    /// From the fold's time of an update to its frame being ready for sockets.
    pub update_age_seconds: Histogram,
    pub tiles_drawn: Counter,
    pub tiles_kept: Counter,
}

impl GatewayMetrics {
    pub fn new(meter: &Meter) -> Self {
        let updates = |outcome| {
            meter.counter(
                "wayfix_gateway_updates_total",
                "Updates read, by what became of them.",
                &[("outcome", outcome)],
            )
        };
        let frames = |kind: &FrameKind| {
            meter.counter("wayfix_gateway_frames_total", "Frames sent, by kind.", &[("kind", kind.name())])
        };
        let open = |kind: &StreamKind| {
            meter.gauge("wayfix_gateway_streams", "Streams open, by door.", &[("door", kind.name())])
        };
        let ended = |end: &StreamEnd| {
            meter.counter("wayfix_gateway_streams_ended_total", "Streams ended, by reason.", &[("reason", end.name())])
        };
        let requests = |class| {
            meter.counter(
                "wayfix_gateway_requests_total",
                "Requests answered, by class of status.",
                &[("status", class)],
            )
        };
        let counter = |name, help| meter.counter(name, help, &[]);
        GatewayMetrics {
            updates: ["taken", "dropped", "shed"].map(updates),
            entries_bad: counter("wayfix_gateway_entries_bad_total", "Entries of updates that could not be opened."),
            frames: FrameKind::ALL.iter().map(frames).collect(),
            streams_open: StreamKind::ALL.iter().map(open).collect(),
            streams_ended: StreamEnd::ALL.iter().map(ended).collect(),
            streams_shed: counter("wayfix_gateway_streams_shed_total", "Streams refused because there was no room."),
            requests: ["1xx", "2xx", "3xx", "4xx", "5xx"].map(requests),
            request_seconds: meter.histogram("wayfix_gateway_request_seconds", "How long requests took.", &[]),
            views: meter.gauge("wayfix_gateway_views", "Live views held.", &[]),
            update_age_seconds: meter.histogram(
                "wayfix_gateway_update_age_seconds",
                "From the fold's time of an update to the hub having it.",
                &[],
            ),
            tiles_drawn: counter("wayfix_gateway_tiles_drawn_total", "Map tiles drawn."),
            tiles_kept: counter("wayfix_gateway_tiles_kept_total", "Map tiles answered from memory."),
        }
    }

    pub fn count_updates(&self, outcome: Handled, count: u64) {
        let at = match outcome {
            Handled::Taken => 0,
            Handled::Dropped => 1,
            Handled::Shed => 2,
        };
        self.updates[at].increment(count);
    }

    pub fn count_frame(&self, kind: FrameKind) {
        if let Some(at) = FrameKind::ALL.iter().position(|other| *other == kind) {
            self.frames[at].increment(1);
        }
    }

    pub fn stream_opened(&self, kind: StreamKind) {
        self.streams_open[kind as usize].increment(1);
    }

    pub fn stream_ended(&self, kind: StreamKind, end: StreamEnd) {
        self.streams_open[kind as usize].decrement(1);
        self.streams_ended[end as usize].increment(1);
    }

    pub fn count_request(&self, status: http::StatusCode, seconds: f64) {
        let class = usize::from(status.as_u16() / 100).clamp(1, 5) - 1;
        self.requests[class].increment(1);
        self.request_seconds.record(seconds);
    }
}
