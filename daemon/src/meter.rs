//! Metrics, registered on a meter that is handed in, so that a test or a second daemon in one process has its own.
//! Exposed as Prometheus text.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, SharedString, Unit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use crate::drain::Drain;

/// Where counters come from. Cheap to clone.
#[derive(Clone)]
pub struct Meter {
    recorder: Arc<dyn Recorder + Send + Sync>,
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Meter")
    }
}

/// Renders what a meter counted.
#[derive(Clone)]
pub struct Exposition(PrometheusHandle);

impl Exposition {
    /// Histograms keep every sample until somebody puts them into their buckets: this does, until the drain stops, so
    /// that they stay small where nobody scrapes.
    pub fn start_upkeep(&self, drain: &Drain) {
        let (handle, stop) = (self.0.clone(), drain.token().clone());
        drain.spawn("metrics upkeep", async move {
            while stop.run_until_cancelled(tokio::time::sleep(UPKEEP_EVERY)).await.is_some() {
                handle.run_upkeep();
            }
            Ok(())
        });
    }

    pub fn render(&self) -> String {
        self.0.run_upkeep();
        self.0.render()
    }
}

impl Meter {
    pub fn prometheus() -> (Meter, Exposition) {
        let builder = PrometheusBuilder::new();
        let builder = builder.set_buckets(SECONDS_BUCKETS).expect("the buckets are not empty");
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        (Meter { recorder: Arc::new(recorder) }, Exposition(handle))
    }

    /// Counts nothing: for tests that do not look.
    pub fn discard() -> Meter {
        Meter { recorder: Arc::new(metrics::NoopRecorder) }
    }

    /// `name` ends in `_total`; labels come from enums, never from ids.
    pub fn counter(&self, name: &'static str, help: &'static str, labels: &[(&'static str, &'static str)]) -> Counter {
        self.recorder.describe_counter(KeyName::from_const_str(name), None, SharedString::const_str(help));
        self.recorder.register_counter(&key(name, labels), &METADATA)
    }

    pub fn gauge(&self, name: &'static str, help: &'static str, labels: &[(&'static str, &'static str)]) -> Gauge {
        self.recorder.describe_gauge(KeyName::from_const_str(name), None, SharedString::const_str(help));
        self.recorder.register_gauge(&key(name, labels), &METADATA)
    }

    /// In seconds.
    pub fn histogram(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &'static str)],
    ) -> Histogram {
        let unit = Some(Unit::Seconds);
        self.recorder.describe_histogram(KeyName::from_const_str(name), unit, SharedString::const_str(help));
        self.recorder.register_histogram(&key(name, labels), &METADATA)
    }
}

fn key(name: &'static str, labels: &[(&'static str, &'static str)]) -> Key {
    let labels: Vec<Label> = labels.iter().map(|(k, v)| Label::from_static_parts(k, v)).collect();
    Key::from_parts(name, labels)
}

static METADATA: Metadata<'static> = Metadata::new("wayfix", Level::INFO, None);

const UPKEEP_EVERY: Duration = Duration::from_secs(5);

const SECONDS_BUCKETS: &[f64] =
    &[0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_exposed_under_its_label() {
        let (meter, exposition) = Meter::prometheus();
        let counter =
            meter.counter("wayfix_test_fixes_rejected_total", "Fixes that were rejected.", &[("reason", "too_fast")]);

        counter.increment(3);

        let text = exposition.render();
        assert!(text.contains("wayfix_test_fixes_rejected_total{reason=\"too_fast\"} 3"), "{text}");
        assert!(text.contains("# HELP wayfix_test_fixes_rejected_total Fixes that were rejected."), "{text}");
    }
}
