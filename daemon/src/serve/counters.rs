//! What the doors count of their connections.

use metrics::Counter;

use super::deadlines::Expiry;
use super::peers::NoPlace;
use crate::meter::Meter;

#[derive(Clone)]
pub(super) struct Counters {
    pub accepted: Counter,
    pub no_handshake: Counter,
    pub no_proxy_header: Counter,
    /// Streams of HTTP/2 that took nothing for too long.
    pub streams_stalled: Counter,
    /// Requests that waited in vain for their address to take what it asked for before.
    pub unread: Counter,
    refused: [Counter; 2],
    ended: [Counter; 4],
}

impl Counters {
    pub fn new(meter: &Meter) -> Self {
        let refused = |reason| {
            let help = "Connections closed by us before a request, by reason.";
            meter.counter("wayfix_http_connections_refused_total", help, &[("reason", reason)])
        };
        let ended = |reason| {
            let help = "Connections ended by us because their time was over, by reason.";
            meter.counter("wayfix_http_connections_ended_total", help, &[("reason", reason)])
        };
        let counter = |name, help| meter.counter(name, help, &[]);
        Counters {
            accepted: counter("wayfix_http_connections_total", "Connections accepted by the HTTP doors."),
            no_handshake: refused("no_handshake"),
            no_proxy_header: refused("no_proxy_header"),
            streams_stalled: counter(
                "wayfix_http_streams_stalled_total",
                "Streams of HTTP/2 that were reset because their peer took nothing of them.",
            ),
            unread: counter(
                "wayfix_http_requests_unread_total",
                "Requests refused because their address had not taken what it asked for before.",
            ),
            refused: ["too_many", "too_many_of_address"].map(refused),
            ended: ["no_request", "slow_head", "idle", "stalled"].map(ended),
        }
    }

    pub fn refused(&self, reason: NoPlace) {
        let at = match reason {
            NoPlace::InAll => 0,
            NoPlace::ForThisAddress => 1,
        };
        self.refused[at].increment(1);
    }

    pub fn ended(&self, expiry: Expiry) {
        let at = match expiry {
            Expiry::NoRequest => 0,
            Expiry::SlowHead => 1,
            Expiry::Idle => 2,
            Expiry::Stalled => 3,
        };
        self.ended[at].increment(1);
    }
}
