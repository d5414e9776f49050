//! The fold: records in, updates out; and the sinks that carry updates on.
//!
//! `track` is the fold itself, pure. `shard` owns partitions and feeds it: claims, ticks, snapshots, maps. `sinks` read
//! what it says: live views, history, the ledger's clerk, events for others.

pub mod config;
pub mod learner;
mod metrics;
mod shard;
mod sinks;
pub mod sweep;
#[cfg(test)]
mod tests;
pub mod track;
#[cfg(test)]
mod upgrades;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use backends::blob_store::BlobStore;
use backends::ledger::DeliveryLedger;
use backends::live_store::LiveStore;
use backends::log::{DecodedUpdates, Log, LogError};
use backends::registry::Registry;
use backends::trail_store::TrailStore;
use daemon::ProcessContext;
use maps::MapVersion;

pub use config::{ProcessorConfig, ProcessorConfigError, ProcessorSettings};
use metrics::ProcessorMetrics;
pub use shard::BodyError;
pub use shard::RouteServiceConfig;
pub use shard::named_snapshots;
use shard::{FactSources, LocalBodies, OutsidePlanner, Shards};
pub use sinks::{SinkStores, SinksByHand};

/// What the processor works with.
pub struct ProcessorParts {
    pub log: Arc<dyn Log>,
    /// Shared with whoever else reads updates in this process.
    pub decoded: DecodedUpdates,
    pub blobs: Arc<dyn BlobStore>,
    pub live_store: Arc<dyn LiveStore>,
    pub trail_store: Arc<dyn TrailStore>,
    pub ledger: Arc<dyn DeliveryLedger>,
    pub registry: Arc<dyn Registry>,
    /// Who plans ways beside the embedded router; None: nobody.
    pub route_service: Option<RouteServiceConfig>,
    /// A map file to offer; None leaves the map that is in use.
    pub map: Option<PathBuf>,
}

/// A running processor.
#[derive(Clone)]
pub struct Processor {
    shards: Arc<Shards>,
    bodies: Arc<LocalBodies>,
}

impl Processor {
    /// Puts a map file in the place of the one that is in use, where it differs; each partition carries its drivers
    /// over when it takes it. A file that is broken or cut short is an error, and nothing changes.
    pub async fn offer_map(&self, file: &Path) -> Result<OfferedMap, OfferError> {
        let (hash, size) = self.bodies.publish(file).await.map_err(OfferError::of)?;
        let map = self.bodies.load(hash).await.map_err(OfferError::of)?;
        let is_new = self.shards.map().is_none_or(|(before, _)| before != hash);
        if is_new {
            self.shards.offer_map(hash, size).await?;
        }
        Ok(OfferedMap { file: self.bodies.path_of(hash), version: map.graph.version(), is_new })
    }

    /// Where the map lies that this process offers; None: it was started without one.
    pub fn map_file(&self) -> Option<PathBuf> {
        self.shards.map().map(|(hash, _)| self.bodies.path_of(hash))
    }
}

/// What became of an offered map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OfferedMap {
    /// A copy that never changes, whatever happens to the file that was offered.
    pub file: PathBuf,
    pub version: MapVersion,
    /// Whether it was another than the one before.
    pub is_new: bool,
}

/// Why a map was not offered.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// Another try says the same, until the file is another.
    #[error("use the map")]
    File(#[source] BodyError),
    #[error("keep the map")]
    Keep(#[source] BodyError),
    #[error("offer the map to the partitions")]
    Log(#[from] LogError),
}

impl OfferError {
    fn of(error: BodyError) -> OfferError {
        if error.is_of_body() { OfferError::File(error) } else { OfferError::Keep(error) }
    }
}

/// Folds this process's share of the partitions, and carries on what the folds say, until the drain stops.
pub async fn start(
    config: ProcessorConfig,
    parts: ProcessorParts,
    context: &ProcessContext,
) -> anyhow::Result<Processor> {
    let ProcessContext { clock, meter, readiness, drain } = context;
    let clock = *clock;
    let mut metrics = ProcessorMetrics::new(meter);
    metrics.readiness = readiness.clone();
    let bodies = Arc::new(LocalBodies::new(parts.blobs.clone(), config.maps_folder.clone(), drain.token().clone()));
    let map = match &parts.map {
        Some(file) => {
            let published = bodies.publish(file).await.with_context(|| format!("read {}", file.display()));
            Some(published.context("offer the map")?)
        }
        None => None,
    };
    if let Some((hash, _)) = map {
        bodies.load(hash).await.context("open the map")?;
    }
    let live = sinks::Live { store: parts.live_store.clone(), views_max: config.live_views_max };
    let events = sinks::Events { views_max: config.live_views_max, of_movement: config.events_of_movement };
    let log = &parts.log;
    start_learner(&config, &parts, &bodies, context);
    let shared = sinks::SinkParts { log: log.clone(), clock, metrics: metrics.clone(), decoded: parts.decoded.clone() };
    sinks::start(live, shared.clone(), drain, "live sink");
    sinks::start(events, shared.clone(), drain, "events sink");
    let trail = sinks::Trail { store: parts.trail_store.clone() };
    sinks::start(trail, shared.clone(), drain, "trail sink");
    let clerk = sinks::Clerk { ledger: parts.ledger.clone() };
    sinks::start(clerk, shared, drain, "clerk");
    let facts = FactSources { ledger: parts.ledger.clone(), registry: parts.registry.clone() };
    let seams = (parts.log.clone(), parts.blobs.clone(), facts);
    let planner = OutsidePlanner::start(parts.route_service, log.clone(), clock, metrics.clone(), drain);
    let shards = Shards::new(config, seams, (bodies.clone(), planner), map, clock, metrics, readiness.clone());
    shards.start(drain);
    Ok(Processor { shards, bodies })
}

fn start_learner(
    config: &ProcessorConfig,
    parts: &ProcessorParts,
    bodies: &Arc<LocalBodies>,
    context: &ProcessContext,
) {
    let Some(learner) = config.learner.clone() else { return };
    let role = learner::Role {
        config: learner,
        log: parts.log.clone(),
        blobs: parts.blobs.clone(),
        live_store: parts.live_store.clone(),
        bodies: bodies.clone(),
        map_in_use: bodies.map_in_use(),
        decoded: parts.decoded.clone(),
        clock: context.clock,
        readiness: context.readiness.clone(),
        metrics: learner::LearnerMetrics::new(&context.meter),
    };
    role.start(&context.drain);
}
