//! The fleet that streams live views to customers and serves the API.
//!
//! `feed` brings updates from the log to the hubs (`hub`, pure) of the partitions that this gateway owns (`shards`);
//! `stream` brings frames from a hub to a socket; `api` is what HTTP asks. Serving sockets is the daemon's business:
//! what comes out of `start` is a router.

mod api;
mod feed;
pub mod hub;
mod metrics;
mod settings;
mod shards;
mod stream;
#[cfg(test)]
mod tests;
mod tiles;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use backends::control::{ControlReader, ControlWriter};
use backends::ledger::DeliveryLedger;
use backends::live_store::LiveStore;
use backends::log::{DecodedUpdates, Log, Topic};
use backends::registry::Registry;
use backends::trail_store::TrailStore;
use daemon::admin::Health;
use daemon::{Drain, ProcessContext};
use protocol::session::EdgeAddress;

pub use api::links::SecureDoor;
pub use settings::{AdminKey, GatewayConfig, GatewaySettings, GatewaySettingsError};
pub use tiles::{TileSet, TileSource};

use api::{Api, ApiParts, KnownScopes};
use feed::Feed;
use metrics::GatewayMetrics;
use shards::Shards;
use stream::Places;
use stream::customer::Views;
use tiles::Tiles;

/// What a gateway stands on.
pub struct GatewayParts {
    pub log: Arc<dyn Log>,
    /// Shared with whoever else reads updates in this process.
    pub decoded: DecodedUpdates,
    pub live_store: Arc<dyn LiveStore>,
    pub trail_store: Arc<dyn TrailStore>,
    pub ledger: Arc<dyn DeliveryLedger>,
    pub registry: Arc<dyn Registry>,
    pub control: ControlReader,
    pub control_writer: ControlWriter,
    /// The edges that sessions list where the settings name none.
    pub edges: Vec<EdgeAddress>,
    /// None: this server runs without a map.
    pub tiles: Option<Arc<dyn TileSource>>,
    /// Serves all that is not the API.
    pub pages: Router,
}

pub struct GatewayHandle {
    /// The API and the pages, to be served by `daemon::serve` on any number of doors.
    pub router: Router,
    /// None: it was started without a map.
    pub tiles: Option<TilesHandle>,
    allowed_origins: settings::AllowedOrigins,
}

impl GatewayHandle {
    /// Opens routes that are served beside the gateway's to the same origins' pages.
    pub fn open_to_origins(&self, router: Router) -> Router {
        match api::cors(&self.allowed_origins) {
            Some(cors) => router.layer(cors),
            None => router,
        }
    }
}

/// Lets another map be shown while the gateway runs.
#[derive(Clone)]
pub struct TilesHandle(Arc<Tiles>);

impl TilesHandle {
    /// From the next request on tiles are this source's; those kept of the one before are let go.
    pub fn show(&self, source: Arc<dyn TileSource>) {
        self.0.show(source);
    }

    /// Of the map that is shown, as it says of itself.
    pub fn version(&self) -> String {
        self.0.shown().version().to_string()
    }
}

/// Starts reading updates; answers the router at once. The gateway is ready when its hubs are whole.
///
/// At a stop: streams are told to come back and let go, then the feed leaves its group.
pub fn start(config: GatewayConfig, parts: GatewayParts, context: &ProcessContext) -> GatewayHandle {
    let ProcessContext { clock, meter, readiness, drain } = context;
    let clock = *clock;
    readiness.set("gateway", Health::Starting);
    let metrics = Arc::new(GatewayMetrics::new(meter));
    let shards = Arc::new(Shards::new(parts.log.partition_count(Topic::Updates), config.hub, clock));
    let places = Arc::new(Places::new(config.streams_max));
    let feed = Feed {
        log: parts.log,
        decoded: parts.decoded,
        shards: shards.clone(),
        metrics: metrics.clone(),
        readiness: readiness.clone(),
        clock,
        drain: drain.clone(),
        group: config.group.clone(),
        read_back: config.read_back,
    };
    drain.spawn("gateway feed", feed.run());
    drain.spawn("gateway streams", streams(drain.clone(), shards.clone(), places.clone(), metrics.clone()));
    let tiles = parts.tiles.map(|source| Arc::new(Tiles::new(source, config.tile_cache_bytes, metrics.clone())));
    let tiles_handle = tiles.clone().map(TilesHandle);
    let edges = if config.edges.is_empty() { parts.edges } else { config.edges.clone() };
    let views = Views { shards: shards.clone(), ledger: parts.ledger.clone(), live_store: parts.live_store.clone() };
    let allowed_origins = config.allowed_origins.clone();
    let api = Api::new(ApiParts {
        config,
        ledger: parts.ledger,
        live_store: parts.live_store,
        trail_store: parts.trail_store,
        registry: parts.registry,
        scopes: KnownScopes::new(SCOPES_MAX),
        control: parts.control,
        control_writer: parts.control_writer,
        edges,
        tiles,
        shards,
        views,
        places,
        metrics,
        clock,
        drain: drain.clone(),
        stop: drain.token().clone(),
    });
    GatewayHandle { router: api::router(api, parts.pages), tiles: tiles_handle, allowed_origins }
}

/// Counts the views while all is well; at a stop lets every stream go and waits until all have.
async fn streams(
    drain: Drain,
    shards: Arc<Shards>,
    places: Arc<Places>,
    metrics: Arc<GatewayMetrics>,
) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(GAUGE_EVERY);
    loop {
        tokio::select! {
            () = drain.token().cancelled() => break,
            _ = ticks.tick() => {
                let count = |partition| shards.with(partition, |hub, _| hub.view_count()).unwrap_or(0);
                metrics.views.set(shards.partitions().map(count).sum::<usize>() as f64);
            }
        }
    }
    shards.stop();
    let _given_up_after = tokio::time::timeout(LEAVE_WAIT, places.all_left()).await;
    Ok(())
}

/// About 100 bytes each.
const SCOPES_MAX: usize = 100_000;
const GAUGE_EVERY: Duration = Duration::from_secs(10);
/// For the farewell and the closing handshake.
const LEAVE_WAIT: Duration = Duration::from_secs(5);
