//! An edge in this process, with the log that a bench wants behind it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use backends::blob_store::embedded::FolderBlobStore;
use backends::control::TokenKeys;
use backends::control::{Control, ControlReader, ControlWriter, Moment, RegionKey, Secret};
use backends::ledger::embedded::EmbeddedLedger;
use backends::live_store::embedded::MemoryLiveStore;
use backends::log::{DecodedUpdates, Log};
use backends::registry::embedded::EmbeddedRegistry;
use backends::trail_store::embedded::EmbeddedTrailStore;
use daemon::admin::Readiness;
use daemon::meter::Exposition;
use daemon::{Clock, Drain, Meter, ProcessContext};
use edge::{EdgeHandle, EdgeParts, EdgeSettings};
use processor::{ProcessorParts, ProcessorSettings};
use protocol::datagram::Kid;

use crate::load::now;

pub struct BenchEdge {
    pub handle: EdgeHandle,
    pub kid: Kid,
    pub secret: [u8; 32],
    pub readiness: Readiness,
    log: Arc<dyn Log>,
    meter: Meter,
    exposition: Exposition,
    drain: Drain,
}

impl BenchEdge {
    /// The processor on the same log, with all its sinks and everything embedded, so that a whole process is measured.
    pub async fn start_processor(&self, folder: &Path) -> anyhow::Result<()> {
        let parts = ProcessorParts {
            log: self.log.clone(),
            decoded: DecodedUpdates::of(&*self.log),
            blobs: Arc::new(FolderBlobStore::open(folder.join("blobs")).context("open the blob store")?),
            live_store: Arc::new(MemoryLiveStore::new(1 << 20, &self.meter)),
            trail_store: Arc::new(EmbeddedTrailStore::open(&folder.join("trail.db")).context("open history")?),
            ledger: Arc::new(EmbeddedLedger::open(&folder.join("ledger.db")).context("open the ledger")?),
            registry: Arc::new(
                EmbeddedRegistry::open(&folder.join("registry.db"), TokenKeys::new([])).context("open the registry")?,
            ),
            route_service: None,
            map: None,
        };
        let config = ProcessorSettings::default().check(&folder.join("processor"))?;
        let context = ProcessContext {
            clock: Clock::system(),
            meter: self.meter.clone(),
            readiness: self.readiness.clone(),
            drain: self.drain.clone(),
        };
        processor::start(config, parts, &context).await.map(drop)
    }

    pub async fn start(log: Arc<dyn Log>, settings: &EdgeSettings, folder: &Path) -> anyhow::Result<Self> {
        let drain = Drain::default();
        let region_key = RegionKey::new(Secret::random());
        ControlWriter::new(log.clone(), region_key.clone()).rotate(Moment::of(now())).await.context("make keys")?;
        let control = Control::load(&*log, &region_key).await.context("read keys")?;
        let key = control.sealing_key(now()).context("there is a key")?;
        let kid = Kid::new(key.span.kid.0).context("a kid is one of four")?;
        let secret = *key.secret.bytes();
        let reader = ControlReader::start(log.clone(), region_key, &drain, Clock::system());
        reader.until_current().await;
        let (meter, exposition) = Meter::prometheus();
        let config = settings.check(folder)?;
        let readiness = Readiness::default();
        let context = ProcessContext {
            clock: Clock::system(),
            meter: meter.clone(),
            readiness: readiness.clone(),
            drain: drain.clone(),
        };
        let handle = edge::start(config, EdgeParts { log: log.clone(), control: reader }, &context).await?;
        while !readiness.is_ready() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(BenchEdge { handle, kid, secret, readiness, log, meter, exposition, drain })
    }

    /// The sum over all labels of a counter.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.exposition.render();
        let lines = text.lines().filter(|line| line.starts_with(name) && !line.starts_with('#'));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// The counts of a histogram by upper bound in seconds.
    pub fn buckets(&self, name: &str) -> Vec<(f64, f64)> {
        let text = self.exposition.render();
        let prefix = format!("{name}_bucket{{le=\"");
        let bucket = |line: &str| {
            let (bound, count) = line.strip_prefix(&prefix)?.split_once("\"} ")?;
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
            Some((bound, count.parse().ok()?))
        };
        text.lines().filter_map(bucket).collect()
    }

    /// Waits until a counter has not risen for a while.
    pub async fn settled(&self, name: &str) {
        let (mut last, mut since) = (-1.0, Instant::now());
        while since.elapsed() < Duration::from_millis(1200) {
            let value = self.metric(name);
            if value != last {
                (last, since) = (value, Instant::now());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn stop(self) -> anyhow::Result<()> {
        anyhow::ensure!(self.drain.stop(Duration::from_secs(30)).await, "the edge did not stop in time");
        anyhow::ensure!(self.drain.failure().is_none(), "{:?}", self.drain.failure());
        Ok(())
    }
}

/// The quantile of what two looks at a histogram have between them, straight within a bucket.
pub fn quantile(before: &[(f64, f64)], after: &[(f64, f64)], wanted: f64) -> f64 {
    let counts: Vec<(f64, f64)> = after
        .iter()
        .map(|(bound, count)| {
            let earlier = before.iter().find(|(other, _)| other == bound).map_or(0.0, |(_, count)| *count);
            (*bound, count - earlier)
        })
        .collect();
    let target = counts.last().map_or(0.0, |(_, total)| total * wanted);
    let (mut lower_bound, mut lower_count) = (0.0, 0.0);
    for (bound, count) in counts {
        if count >= target && count > lower_count {
            if bound.is_infinite() {
                return lower_bound;
            }
            return lower_bound + (bound - lower_bound) * (target - lower_count) / (count - lower_count);
        }
        (lower_bound, lower_count) = (bound, count);
    }
    lower_bound
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_lies_within_its_bucket() {
        let before = [(0.01, 5.0), (0.1, 5.0), (f64::INFINITY, 5.0)];
        let after = [(0.01, 55.0), (0.1, 105.0), (f64::INFINITY, 105.0)];

        assert!((quantile(&before, &after, 0.5) - 0.01).abs() < 1e-9);
        assert!((quantile(&before, &after, 0.75) - 0.055).abs() < 1e-9);
    }
}
