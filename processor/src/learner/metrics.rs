//! What the learner counts.

use daemon::Meter;
use metrics::{Counter, Gauge};
use protocol::record::BodyKind;

use super::core::Learner;
use super::counts::LeftOut;

#[derive(Clone)]
pub struct LearnerMetrics {
    /// 1 where it is this process's turn.
    pub is_learning: Gauge,
    breadcrumbs: Counter,
    /// In the order of `LeftOut::ALL`.
    left_out: Vec<Counter>,
    traversals: Counter,
    trips_begun: Counter,
    trips_finished: Counter,
    deliveries_refused: Counter,
    drivers: Gauge,
    halvings: Gauge,
    /// Tables and their bytes: speeds, live speeds, ETA models.
    tables: [(Counter, Counter); 3],
    pub cells: Counter,
    pub states: Counter,
    pub entries_damaged: Counter,
}

impl LearnerMetrics {
    pub fn new(meter: &Meter) -> Self {
        let counter = |name, help| meter.counter(name, help, &[]);
        let left_out = |reason: &LeftOut| {
            let help = "Breadcrumbs that taught nothing, by reason.";
            meter.counter("wayfix_learner_breadcrumbs_left_out_total", help, &[("reason", reason.name())])
        };
        let table = |kind| {
            let labels = &[("kind", kind)];
            let tables = meter.counter("wayfix_learner_tables_total", "Tables offered to all partitions.", labels);
            (tables, meter.counter("wayfix_learner_table_bytes_total", "Size of the tables offered.", labels))
        };
        LearnerMetrics {
            is_learning: meter.gauge("wayfix_learner_is_learning", "1 where it is this process's turn to learn.", &[]),
            breadcrumbs: counter("wayfix_learner_breadcrumbs_total", "Breadcrumbs read to learn from."),
            left_out: LeftOut::ALL.iter().map(left_out).collect(),
            traversals: counter(
                "wayfix_learner_traversals_total",
                "Parts of edges that somebody drove in a known time.",
            ),
            trips_begun: counter(
                "wayfix_learner_trips_begun_total",
                "Arrivals foretold, of legs that began or were half done.",
            ),
            trips_finished: counter("wayfix_learner_trips_finished_total", "Legs that ended at their stop."),
            deliveries_refused: counter(
                "wayfix_learner_deliveries_refused_total",
                "Updates of deliveries beyond those that are followed.",
            ),
            drivers: meter.gauge("wayfix_learner_drivers", "Drivers under way.", &[]),
            halvings: meter.gauge(
                "wayfix_learner_halvings",
                "How often the drivers listened to were halved, to keep up.",
                &[],
            ),
            tables: ["speeds", "live_speeds", "eta_model"].map(table),
            cells: counter("wayfix_learner_cells_total", "Cells put into the live store."),
            states: counter("wayfix_learner_states_total", "States kept for whoever learns on."),
            entries_damaged: counter("wayfix_learner_entries_damaged_total", "Entries the learner cannot read."),
        }
    }

    /// What happened since this was last called.
    pub fn count(&self, learner: &mut Learner) {
        let counts = learner.take_counts();
        self.breadcrumbs.increment(counts.breadcrumbs);
        for (counter, count) in self.left_out.iter().zip(counts.left_out) {
            counter.increment(count);
        }
        self.traversals.increment(counts.traversals);
        self.trips_begun.increment(counts.trips_begun);
        self.trips_finished.increment(counts.trips_finished);
        self.deliveries_refused.increment(counts.deliveries_refused);
        self.drivers.set(learner.drivers().len() as f64);
        self.halvings.set(f64::from(learner.drivers().halvings()));
    }

    pub fn offered(&self, kind: BodyKind, bytes: u64) {
        let at = match kind {
            BodyKind::Speeds => 0,
            BodyKind::LiveSpeeds => 1,
            BodyKind::EtaModel => 2,
            BodyKind::Map => return,
        };
        self.tables[at].0.increment(1);
        self.tables[at].1.increment(bytes);
    }
}
