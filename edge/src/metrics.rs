//! What the edge counts. received = accepted + refused for datagrams, accepted + rejected for fixes.

use daemon::Meter;
use metrics::{Counter, Gauge, Histogram};
use protocol::RejectReason;
use protocol::session::RefuseReason;

use crate::intake::IntakeCounts;

/// What a UDP thread counts. Counted in plain integers per datagram and added here per batch.
#[derive(Clone)]
pub struct ThreadMetrics {
    received: Counter,
    accepted: Counter,
    refused: [Counter; RefuseReason::ALL.len()],
    shed: Counter,
    handed_over: Counter,
    handed_over_lost: Counter,
    fixes_accepted: Counter,
    fixes_rejected: [Counter; RejectReason::ALL.len()],
    pings: Counter,
    acks: Counter,
    controls: Counter,
    answers_unsent: Counter,
    runs_forgotten: Counter,
    /// From a parcel's first record to its durability.
    pub durable_after: Histogram,
    /// Of one thread.
    pub linger: Gauge,
    pub sessions_warm: Gauge,
}

/// A thread's plain integers.
#[derive(Clone, Copy, Debug, Default)]
pub struct ThreadCounts {
    pub received: u64,
    pub accepted: u64,
    /// In the order of `RefuseReason::ALL`.
    pub refused: [u64; RefuseReason::ALL.len()],
    pub shed: u64,
    pub handed_over: u64,
    pub handed_over_lost: u64,
    pub acks: u64,
    pub controls: u64,
    pub answers_unsent: u64,
}

impl ThreadMetrics {
    pub fn new(meter: &Meter) -> Self {
        let refused = |reason| {
            let help = "Datagrams that were refused, by reason.";
            meter.counter("wayfix_edge_datagrams_refused_total", help, &[("reason", reason)])
        };
        let rejected = |reason: RejectReason| {
            let help = "Fixes that were recorded as rejected, by reason.";
            meter.counter("wayfix_edge_fixes_rejected_total", help, &[("reason", reason.name())])
        };
        let answers = |kind| {
            let help = "Answers sealed, by kind.";
            meter.counter("wayfix_edge_answers_total", help, &[("kind", kind)])
        };
        let counter = |name, help| meter.counter(name, help, &[]);
        ThreadMetrics {
            received: counter("wayfix_edge_datagrams_received_total", "Datagrams that came to this edge."),
            accepted: counter("wayfix_edge_datagrams_accepted_total", "Datagrams whose content was taken."),
            refused: RefuseReason::ALL.map(|reason| refused(reason.name())),
            shed: refused("overloaded"),
            handed_over: counter(
                "wayfix_edge_datagrams_handed_over_total",
                "Datagrams that another thread's socket received and this one's sessions opened.",
            ),
            handed_over_lost: refused("handed_over_lost"),
            fixes_accepted: counter("wayfix_edge_fixes_accepted_total", "Fixes that were recorded as accepted."),
            fixes_rejected: RejectReason::ALL.map(rejected),
            pings: counter("wayfix_edge_pings_total", "Pings that were recorded."),
            acks: answers("ack"),
            controls: answers("control"),
            answers_unsent: counter("wayfix_edge_answers_unsent_total", "Answers that the socket did not take."),
            runs_forgotten: counter(
                "wayfix_edge_runs_forgotten_total",
                "Runs of fix numbers that no ack will name, because the log was away too long.",
            ),
            durable_after: meter.histogram(
                "wayfix_edge_durable_after_seconds",
                "From receiving the first record of a parcel to its durability in the log.",
                &[],
            ),
            linger: meter.gauge("wayfix_edge_linger_seconds", "How long records wait for company.", &[]),
            sessions_warm: meter.gauge(
                "wayfix_edge_sessions_warm",
                "Sessions kept warm by the last thread asked.",
                &[],
            ),
        }
    }

    pub fn add(&self, counts: &mut ThreadCounts, intake: IntakeCounts) {
        let counts = std::mem::take(counts);
        add(&self.received, counts.received);
        add(&self.accepted, counts.accepted);
        self.refused.iter().zip(counts.refused).for_each(|(counter, count)| add(counter, count));
        add(&self.shed, counts.shed);
        add(&self.handed_over, counts.handed_over);
        add(&self.handed_over_lost, counts.handed_over_lost);
        add(&self.acks, counts.acks);
        add(&self.controls, counts.controls);
        add(&self.answers_unsent, counts.answers_unsent);
        add(&self.fixes_accepted, intake.fixes_accepted);
        self.fixes_rejected.iter().zip(intake.fixes_rejected).for_each(|(counter, count)| add(counter, count));
        add(&self.pings, intake.pings);
        add(&self.runs_forgotten, intake.runs_forgotten);
    }
}

fn add(counter: &Counter, count: u64) {
    if count > 0 {
        counter.increment(count);
    }
}

/// What the shipper counts.
#[derive(Clone)]
pub struct ShipMetrics {
    pub appends: Counter,
    pub appends_failed: Counter,
    pub append_time: Histogram,
    pub entries: Counter,
    pub entry_bytes: Counter,
    pub records: Counter,
    pub spooled: Counter,
    pub spooled_lost: Counter,
    pub spool_bytes: Gauge,
    pub log_away: Gauge,
}

impl ShipMetrics {
    pub fn new(meter: &Meter) -> Self {
        let counter = |name, help| meter.counter(name, help, &[]);
        ShipMetrics {
            appends: counter("wayfix_edge_appends_total", "Appends that the log made durable."),
            appends_failed: counter("wayfix_edge_appends_failed_total", "Appends that failed and are tried again."),
            append_time: meter.histogram("wayfix_edge_append_seconds", "How long the log took for an append.", &[]),
            entries: counter("wayfix_edge_entries_total", "Entries made durable."),
            entry_bytes: counter("wayfix_edge_entry_bytes_total", "Bytes of entries made durable."),
            records: counter("wayfix_edge_records_total", "Records made durable, marks left out."),
            spooled: counter("wayfix_edge_shipments_spooled_total", "Shipments that went to the spool first."),
            spooled_lost: counter(
                "wayfix_edge_shipments_lost_total",
                "Shipments given up because the spool was full or failed. Their phones hold them still.",
            ),
            spool_bytes: meter.gauge("wayfix_edge_spool_bytes", "Bytes in the spool.", &[]),
            log_away: meter.gauge("wayfix_edge_log_away", "1 while the log cannot be reached.", &[]),
        }
    }
}

/// What the HTTP doors count.
#[derive(Clone)]
pub struct DoorMetrics {
    outcomes: [(DoorOutcome, Counter); DoorOutcome::ALL.len()],
}

/// How a request of the JSON door ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DoorOutcome {
    Accepted,
    BadRequest,
    Unauthorized,
    Contradicting,
    TooLarge,
    RateLimited,
    Unavailable,
}

impl DoorOutcome {
    pub const ALL: [DoorOutcome; 7] = [
        DoorOutcome::Accepted,
        DoorOutcome::BadRequest,
        DoorOutcome::Unauthorized,
        DoorOutcome::Contradicting,
        DoorOutcome::TooLarge,
        DoorOutcome::RateLimited,
        DoorOutcome::Unavailable,
    ];

    fn name(self) -> &'static str {
        match self {
            DoorOutcome::Accepted => "accepted",
            DoorOutcome::BadRequest => "bad_request",
            DoorOutcome::Unauthorized => "unauthorized",
            DoorOutcome::Contradicting => "contradicting",
            DoorOutcome::TooLarge => "too_large",
            DoorOutcome::RateLimited => "rate_limited",
            DoorOutcome::Unavailable => "unavailable",
        }
    }
}

impl DoorMetrics {
    pub fn new(meter: &Meter) -> Self {
        let counter = |outcome: DoorOutcome| {
            let help = "Requests of the JSON door, by how they ended.";
            (outcome, meter.counter("wayfix_edge_requests_total", help, &[("outcome", outcome.name())]))
        };
        DoorMetrics { outcomes: DoorOutcome::ALL.map(counter) }
    }

    pub fn count(&self, outcome: DoorOutcome) {
        if let Some((_, counter)) = self.outcomes.iter().find(|(of, _)| *of == outcome) {
            counter.increment(1);
        }
    }
}
