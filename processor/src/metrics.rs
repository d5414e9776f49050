//! What the processor counts.

use daemon::Meter;
use daemon::admin::Readiness;
use metrics::{Counter, Gauge, Histogram};
use protocol::RejectReason;

use crate::track::Counts;

#[derive(Clone)]
pub struct ProcessorMetrics {
    records: Counter,
    fixes_accepted: Counter,
    /// In the order of `RejectReason::ALL`.
    fixes_rejected: Vec<Counter>,
    fixes_repeated: Counter,
    fixes_aside: Counter,
    fixes_late: Counter,
    ticks_ignored: Counter,
    ledger_repeated: Counter,
    assignments_refused: Counter,
    folds_failed: Counter,
    /// Entries of the records topic that do not decode.
    pub entries_damaged: Counter,
    /// Records that only a newer build knows.
    pub records_unknown: Counter,
    /// Partitions whose facts were asked of registry and ledger, and appended.
    pub facts_appended: Counter,
    /// Trackers that emitted keyframes once what was emitted before was folded again.
    keyframes_after_refold: Counter,
    clock_steps: Counter,
    pub updates: Counter,
    pub breadcrumbs: Counter,
    pub updates_too_large: Counter,
    /// Time to fold what one read brought.
    pub fold_seconds: Histogram,
    /// How long a fold stood still for a snapshot at a time.
    pub snapshot_pause_seconds: Histogram,
    pub snapshots: Counter,
    pub snapshots_failed: Counter,
    pub restores: Counter,
    pub partitions: Gauge,
    trackers_live: Gauge,
    trackers_dormant: Gauge,
    pub bodies_used: Counter,
    pub bodies_refused: Counter,
    /// Tries to keep an offered body that the local disk refused.
    pub bodies_waiting: Counter,
    planned_late: Counter,
    /// Ways asked of an outside router.
    pub routes_asked: Counter,
    pub routes_answered: Counter,
    pub routes_failed: Counter,
    /// Not asked for: the router is slow, or the wish is too old.
    pub routes_dropped: Counter,
    pub proposals_written: Counter,
    pub proposals_refused: Counter,
    pub sink_entries_damaged: Counter,
    pub sink_entries_lost: SinkCounters,
    /// Tries to write to a history that is damaged.
    pub history_damaged: Counter,
    /// What the parts of this process say of themselves.
    pub readiness: Readiness,
    pub events_deliveries_shed: Counter,
    pub live_views_shed: Counter,
}

impl ProcessorMetrics {
    #[expect(clippy::too_many_lines, reason = "a list of metrics")]
    pub fn new(meter: &Meter) -> Self {
        let counter = |name, help| meter.counter(name, help, &[]);
        let rejected = |reason: &RejectReason| {
            let help = "Fixes recorded as rejected, by reason, the edge's verdicts included.";
            meter.counter("wayfix_processor_fixes_rejected_total", help, &[("reason", reason.name())])
        };
        ProcessorMetrics {
            records: counter("wayfix_processor_records_total", "Records folded."),
            fixes_accepted: counter("wayfix_processor_fixes_accepted_total", "Fixes recorded as accepted."),
            fixes_rejected: RejectReason::ALL.iter().map(rejected).collect(),
            fixes_repeated: counter("wayfix_processor_fixes_repeated_total", "Fixes seen before, counted once."),
            fixes_aside: counter("wayfix_processor_fixes_aside_total", "Fixes of devices that do not lead."),
            fixes_late: counter("wayfix_processor_fixes_late_total", "Fixes older than what is shown."),
            ticks_ignored: counter(
                "wayfix_processor_ticks_ignored_total",
                "Ticks of owners other than the latest claim's.",
            ),
            ledger_repeated: counter("wayfix_processor_ledger_repeated_total", "Ledger records taken before."),
            assignments_refused: counter("wayfix_processor_assignments_refused_total", "Deliveries too large to hold."),
            folds_failed: counter(
                "wayfix_processor_folds_failed_total",
                "Records that could not be folded and were set aside.",
            ),
            entries_damaged: counter(
                "wayfix_processor_entries_damaged_total",
                "Entries of records that do not decode.",
            ),
            records_unknown: counter("wayfix_processor_records_unknown_total", "Records of a newer build, left out."),
            facts_appended: counter(
                "wayfix_processor_facts_appended_total",
                "Partitions whose facts registry and ledger were asked for.",
            ),
            clock_steps: counter(
                "wayfix_processor_clock_steps_total",
                "Times that a partition's times were moved because its owner's clock was set.",
            ),
            keyframes_after_refold: counter(
                "wayfix_processor_keyframes_after_refold_total",
                "Trackers that emitted keyframes under new epochs.",
            ),
            updates: counter("wayfix_processor_updates_total", "Updates emitted."),
            breadcrumbs: counter("wayfix_processor_breadcrumbs_total", "Breadcrumbs emitted."),
            updates_too_large: counter("wayfix_processor_updates_too_large_total", "Updates that fit no log entry."),
            fold_seconds: meter.histogram("wayfix_processor_fold_seconds", "Time to fold what one read brought.", &[]),
            snapshot_pause_seconds: meter.histogram(
                "wayfix_processor_snapshot_pause_seconds",
                "How long a fold stood still for a snapshot at a time.",
                &[],
            ),
            snapshots: counter("wayfix_processor_snapshots_total", "Snapshots announced."),
            snapshots_failed: counter("wayfix_processor_snapshots_failed_total", "Snapshots that could not be kept."),
            restores: counter("wayfix_processor_restores_total", "Partitions taken up from a snapshot."),
            bodies_used: counter("wayfix_processor_bodies_used_total", "Maps and tables taken into use."),
            bodies_waiting: counter(
                "wayfix_processor_bodies_waiting_total",
                "Tries to keep an offered map or table that the local disk refused.",
            ),
            bodies_refused: counter("wayfix_processor_bodies_refused_total", "Maps and tables that cannot be used."),
            planned_late: counter("wayfix_processor_planned_late_total", "Outside ways for plans that are no more."),
            routes_asked: counter("wayfix_processor_routes_asked_total", "Ways asked of the outside router."),
            routes_answered: counter("wayfix_processor_routes_answered_total", "Ways that it answered."),
            routes_failed: counter("wayfix_processor_routes_failed_total", "Ways that it had not, or not in time."),
            routes_dropped: counter("wayfix_processor_routes_dropped_total", "Ways not asked for: it is too slow."),
            partitions: meter.gauge("wayfix_processor_partitions", "Partitions owned.", &[]),
            trackers_live: meter.gauge(TRACKERS, TRACKERS_HELP, &[("state", "live")]),
            trackers_dormant: meter.gauge(TRACKERS, TRACKERS_HELP, &[("state", "dormant")]),
            proposals_written: counter("wayfix_processor_proposals_written_total", "Proposals the ledger wrote."),
            proposals_refused: counter(
                "wayfix_processor_proposals_refused_total",
                "Proposals the ledger did not want.",
            ),
            sink_entries_lost: SinkCounters::new(meter),
            history_damaged: counter(
                "wayfix_processor_history_damaged_total",
                "Tries to write to a history that is damaged: nothing more is written to it.",
            ),
            readiness: Readiness::default(),
            sink_entries_damaged: counter("wayfix_processor_sink_entries_damaged_total", "Entries no sink can read."),
            events_deliveries_shed: counter(
                "wayfix_processor_events_deliveries_shed_total",
                "Deliveries that the events sink let go because it remembered too many.",
            ),
            live_views_shed: counter(
                "wayfix_processor_live_views_shed_total",
                "Views that the live sink let go because it held too many.",
            ),
        }
    }

    /// A partition's trackers, at work and asleep, in place of those that it had before.
    pub fn count_trackers(&self, before: (usize, usize), now: (usize, usize)) {
        self.trackers_live.increment(now.0 as f64 - before.0 as f64);
        self.trackers_dormant.increment(now.1 as f64 - before.1 as f64);
    }

    pub fn count(&self, counts: &Counts) {
        self.records.increment(counts.records);
        self.fixes_accepted.increment(counts.fixes_accepted);
        for (counter, count) in self.fixes_rejected.iter().zip(counts.fixes_rejected) {
            counter.increment(count);
        }
        self.fixes_repeated.increment(counts.fixes_repeated);
        self.fixes_aside.increment(counts.fixes_aside);
        self.fixes_late.increment(counts.fixes_late);
        self.ticks_ignored.increment(counts.ticks_ignored);
        self.ledger_repeated.increment(counts.ledger_repeated);
        self.assignments_refused.increment(counts.assignments_refused);
        self.planned_late.increment(counts.planned_late);
        self.folds_failed.increment(counts.folds_failed);
        self.keyframes_after_refold.increment(counts.keyframes_after_refold);
        self.clock_steps.increment(counts.clock_steps);
    }
}

/// A counter for each sink.
#[derive(Clone)]
pub struct SinkCounters(Vec<(&'static str, Counter)>);

impl SinkCounters {
    fn new(meter: &Meter) -> SinkCounters {
        let counter = |sink| {
            let help = "Entries that the log had let go before a sink took them: lost to it.";
            (sink, meter.counter("wayfix_processor_sink_entries_lost_total", help, &[("sink", sink)]))
        };
        SinkCounters(["live", "events", "trail", "clerk"].into_iter().map(counter).collect())
    }

    pub fn increment(&self, sink: &'static str, count: u64) {
        if let Some((_, counter)) = self.0.iter().find(|(name, _)| *name == sink) {
            counter.increment(count);
        }
    }
}

const TRACKERS: &str = "wayfix_processor_trackers";
const TRACKERS_HELP: &str = "Drivers and deliveries that are tracked: at work, or asleep in a few bytes.";
