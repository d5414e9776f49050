//! Puts the whole together: the one place that picks what stands behind each seam, and the order in which all starts
//! and stops.
//!
//! Stopping goes with the way of the data: doors close, edges ship what they have, trackers and sinks finish it,
//! gateways let their streams go, and the log is closed last.

mod space;
pub mod stores;

use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::{Extension, Router};
use backends::route_service::{self, RouterConfig, RouterConfigError, RouterSettings};
use backends::upkeep::Upkeep;
use daemon::admin::{self, Readiness};
use daemon::descriptors::raise_limit;
use daemon::meter::Exposition;
use daemon::serve::{Listener, ServeLimits, serve};
use daemon::{Clock, Drain, Meter, Signals};
use gateway::{GatewayParts, SecureDoor, TileSource};
use processor::sweep::Sweeper;
use processor::{Processor, ProcessorParts, RouteServiceConfig};
use protocol::session::EdgeAddress;
use protocol::{DeliveryPolicy, Time};
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::map_watch::{MapWatch, Print};
use crate::settings::{Settings, SettingsError};
use crate::{pages, tiles};
use stores::Stores;

/// Where it is reached.
pub struct Running {
    pub http: Option<SocketAddr>,
    pub https: Option<SocketAddr>,
    pub admin: Option<SocketAddr>,
    pub udp: SocketAddr,
    /// The first tenant's API key.
    pub key_file: PathBuf,
}

/// Everything, running.
pub struct Whole {
    pub running: Running,
    stores: Stores,
    stages: Stages,
    whole: Drain,
}

/// Parts of the drain, in the order in which they stop.
struct Stages {
    doors: Drain,
    edge: Drain,
    relay: Drain,
    processor: Drain,
    gateway: Drain,
    upkeep: Drain,
}

impl Stages {
    fn of(whole: &Drain) -> Stages {
        let part = || whole.part();
        Stages { doors: part(), edge: part(), relay: part(), processor: part(), gateway: part(), upkeep: part() }
    }

    /// One after the other; false if some part had not ended in time.
    async fn stop(&self) -> bool {
        let Stages { doors, edge, relay, processor, gateway, upkeep } = self;
        let mut has_ended = true;
        for stage in [doors, edge, relay, processor, gateway, upkeep] {
            has_ended &= stage.stop(STAGE_GRACE).await;
        }
        has_ended
    }
}

/// What every part is handed.
struct Ground {
    clock: Clock,
    meter: Meter,
    readiness: Readiness,
    look_at_map: Arc<Notify>,
}

impl Whole {
    /// None: it was told to stop before it was up.
    pub async fn start(settings: Settings, signals: &Signals) -> Result<Option<Whole>> {
        let whole = Drain::default();
        let (meter, exposition) = Meter::prometheus();
        let clock = settings.clock()?;
        let ground = Ground { clock, meter, readiness: Readiness::default(), look_at_map: signals.look_again.clone() };
        let stages = Stages::of(&whole);
        exposition.start_upkeep(&stages.upkeep);
        let opening = Stores::open(&settings, &ground.clock, &ground.meter, &stages.upkeep);
        let stores = tokio::select! {
            opened = opening => opened?,
            () = signals.stop.cancelled() => return Ok(None),
        };
        let started = tokio::select! {
            started = start_roles(&settings, &stores, &ground, &stages, &exposition) => started.map(Some),
            () = signals.stop.cancelled() => Ok(None),
        };
        match started {
            Ok(Some(running)) => {
                stores.finish().context("write the installation's file")?;
                stores.watch(&stages.upkeep);
                Ok(Some(Whole { running, stores, stages, whole }))
            }
            Ok(None) => {
                info!("told to stop before all was up");
                stages.stop().await;
                stores.close().await;
                Ok(None)
            }
            Err(error) => {
                stages.stop().await;
                stores.close().await;
                Err(error)
            }
        }
    }

    /// Runs until `stop` resolves or a task fails, then stops in order.
    pub async fn until_stopped(self, stop: impl Future<Output = Result<()>>) -> Result<()> {
        tokio::select! {
            outcome = stop => outcome?,
            () = self.whole.failed().cancelled() => {}
        }
        info!("stopping");
        let has_ended = self.stages.stop().await;
        self.stores.close().await;
        if let Some(failure) = self.whole.failure() {
            bail!("{failure}");
        }
        if !has_ended {
            bail!("some parts did not stop in time");
        }
        info!("stopped");
        Ok(())
    }
}

async fn start_roles(
    settings: &Settings,
    stores: &Stores,
    ground: &Ground,
    stages: &Stages,
    exposition: &Exposition,
) -> Result<Running> {
    let Ground { clock, meter, readiness, look_at_map } = ground;
    let key_file = first_tenant(settings, stores, clock).await?;
    start_upkeep(settings, stores, ground, &stages.upkeep);
    backends::relay::start(stores.log.clone(), stores.ledger.clone(), stores.registry.clone(), &stages.relay);

    let edge_folder = settings.data.join("edge");
    let edge_config = settings.edge.check(&edge_folder).map_err(|error| SettingsError::Role(error.to_string()))?;
    let tls = edge::tls::server_tls(&edge_config.tls, &edge_folder, *clock).context("prepare the certificate")?;
    let log = stores.log.clone();
    let edge = edge::start(&edge_config, log, &stores.control, *clock, meter, readiness.clone(), &stages.edge)
        .context("start the edge")?;

    let seen = settings.map.as_deref().and_then(Print::of);
    let processor = start_processor(settings, stores, ground, stages).await?;

    let doors = Doors::bind(settings, &tls).await?;
    let tiles = processor.map_file().as_deref().map(tiles::open).transpose()?;
    let parts = GatewayParts {
        log: stores.log.clone(),
        decoded: stores.decoded.clone(),
        live_store: stores.live_store.clone(),
        trail_store: stores.trail_store.clone(),
        ledger: stores.ledger.clone(),
        registry: stores.registry.clone(),
        control: stores.control.clone(),
        control_writer: stores.control_writer.clone(),
        edges: vec![doors.edge_address(edge.udp_addr, tls.pin)?],
        tiles: tiles.map(|tiles| Arc::new(tiles) as Arc<dyn TileSource>),
        pages: pages::router(doors.https_addr()?),
    };
    let gateway_config =
        settings.gateway.clone().check().map_err(|error| SettingsError::Role(format!("gateway.{error}")))?;
    let gateway = gateway::start(gateway_config, parts, *clock, meter, readiness, &stages.gateway);
    let beside = gateway.open_to_origins(edge.http_router);
    if let Some(file) = settings.map.clone() {
        let watch = MapWatch { file, seen, processor, tiles: gateway.tiles, now: look_at_map.clone() };
        stages.processor.spawn("map watch", watch.run(stages.processor.clone()));
    }
    let router = gateway.router.merge(beside);
    let admin = admin::router(readiness.clone(), exposition.clone(), stages.doors.token().clone());
    let limits = settings.connections.check(raise_limit()).map_err(|error| SettingsError::Role(error.to_string()))?;
    if doors.https.is_some() {
        let (readiness, stop) = (readiness.clone(), stages.doors.token().clone());
        stages.doors.spawn("certificate watch", tls.watch.run(readiness, stop));
    }
    let (http, https, admin) = doors.open(router, admin, &limits, meter, stages)?;
    Ok(Running { http, https, admin, udp: edge.udp_addr, key_file })
}

/// Ends what nobody else does.
fn start_upkeep(settings: &Settings, stores: &Stores, ground: &Ground, drain: &Drain) {
    let upkeep = Upkeep {
        log: stores.log.clone(),
        ledger: stores.ledger.clone(),
        trail_store: stores.trail_store.clone(),
        clock: ground.clock,
        meter: ground.meter.clone(),
        history_kept: Duration::from_secs(86_400 * u64::from(settings.history.keep_days)),
    };
    upkeep.start(drain);
    let (log, blobs) = (stores.log.clone(), stores.swept_blobs.clone());
    Sweeper { log, blobs, clock: ground.clock, meter: ground.meter.clone() }.start(drain);
}

async fn start_processor(settings: &Settings, stores: &Stores, ground: &Ground, stages: &Stages) -> Result<Processor> {
    let folder = settings.data.join("processor");
    let config = settings.processor.check(&folder).map_err(|error| SettingsError::Role(error.to_string()))?;
    let parts = ProcessorParts {
        log: stores.log.clone(),
        decoded: stores.decoded.clone(),
        blobs: stores.blobs.clone(),
        live_store: stores.live_store.clone(),
        trail_store: stores.trail_store.clone(),
        ledger: stores.ledger.clone(),
        registry: stores.registry.clone(),
        route_service: open_router(&settings.processor.router)?,
        map: settings.map.clone(),
    };
    processor::start(config, parts, ground.clock, &ground.meter, &ground.readiness, &stages.processor)
        .await
        .context("start the processor")
}

/// Who plans ways beside our own map.
fn open_router(settings: &RouterSettings) -> Result<Option<RouteServiceConfig>> {
    let wrong = |error: RouterConfigError| SettingsError::Role(format!("processor.router.{error}"));
    let config = RouterConfig::try_from(settings.clone()).map_err(wrong)?;
    let service = route_service::open(&config).context("make a client of the outside router")?;
    Ok(service.map(|service| RouteServiceConfig { service, asked_max: settings.asked_max as usize }))
}

/// The first start makes a tenant and leaves its key where only the operator can read it. A key that is not there later
/// was taken away: the registry keeps only its hash, so it is said and nobody gets a second tenant for it.
async fn first_tenant(settings: &Settings, stores: &Stores, clock: &Clock) -> Result<PathBuf> {
    let file = settings.data.join("tenant.key");
    let now = Time(clock.now_ms());
    if file.exists() {
        let key = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        if stores.registry.scope_of(key.trim()).await.context("look the first tenant's key up")?.is_none() {
            warn!(file = %file.display(), "this key opens nothing here: `wayfix repair --new-tenant-key 1` makes another");
        }
        return Ok(file);
    }
    let tenants = stores.registry.tenants().await.context("list the tenants")?;
    let Some(tenant) = tenants.first() else {
        let made = stores.registry.create_tenant("first", DeliveryPolicy::default(), now).await;
        let (tenant, key) = made.context("make the first tenant")?;
        stores
            .control_writer
            .put_policy(tenant.id, tenant.policy)
            .await
            .context("publish the first tenant's policy")?;
        write_private(&file, &key).with_context(|| format!("write {}", file.display()))?;
        return Ok(file);
    };
    if stores.is_first_start {
        // The first start was stopped between the tenant and its key, which was never told.
        let key = stores.new_tenant_key(tenant.id, now).await?;
        write_private(&file, &key).with_context(|| format!("write {}", file.display()))?;
    } else {
        warn!(file = %file.display(), "the key's file is gone: `wayfix repair --new-tenant-key 1` makes another");
    }
    Ok(file)
}

fn write_private(file: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    let mut out = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    out.write_all(text.as_bytes())?;
    out.sync_all()
}

/// The TCP doors, bound before anything is told of them.
struct Doors {
    http: Option<Listener>,
    https: Option<Listener>,
    admin: Option<Listener>,
}

impl Doors {
    async fn bind(settings: &Settings, tls: &edge::tls::ServerTls) -> Result<Doors> {
        let bind = async |door: &'static str, address: Option<SocketAddr>, tls| -> Result<Option<Listener>> {
            let Some(address) = address else { return Ok(None) };
            let bound = Listener::bind(address, tls).await;
            bound.map(Some).with_context(|| format!("listen on {address} for {door}"))
        };
        Ok(Doors {
            http: bind("http", settings.http.listen, None).await?,
            https: bind("https", settings.https.listen, Some(tls.config.clone())).await?,
            admin: bind("admin", settings.admin.listen, None).await?,
        })
    }

    fn https_addr(&self) -> Result<Option<SocketAddr>> {
        Ok(self.https.as_ref().map(Listener::local_addr).transpose()?)
    }

    /// What sessions say of this process's edge: the fall-back with TLS where there is that door.
    fn edge_address(&self, udp: SocketAddr, pin: Option<[u8; 32]>) -> Result<EdgeAddress> {
        if let Some(https) = self.https_addr()? {
            return Ok(EdgeAddress { udp: udp.to_string(), https: format!("https://{https}"), pin });
        }
        let http = self.http.as_ref().context("there is a door")?.local_addr()?;
        Ok(EdgeAddress { udp: udp.to_string(), https: format!("http://{http}"), pin: None })
    }

    fn open(
        self,
        router: Router,
        admin: Router,
        limits: &ServeLimits,
        meter: &Meter,
        stages: &Stages,
    ) -> Result<(Option<SocketAddr>, Option<SocketAddr>, Option<SocketAddr>)> {
        let mut addresses = [None, None, None];
        let secure = router.clone().layer(Extension(SecureDoor));
        let doors = [
            ("http door", self.http, router, limits.clone(), &stages.doors),
            ("https door", self.https, secure, limits.clone(), &stages.doors),
            // Health can be asked for until the last, whoever holds all other connections.
            ("admin door", self.admin, admin, limits.reserved(), &stages.upkeep),
        ];
        for (place, (name, listener, router, limits, drain)) in addresses.iter_mut().zip(doors) {
            let Some(listener) = listener else { continue };
            *place = Some(listener.local_addr()?);
            serve(name, listener, router, limits, meter, drain);
        }
        let [http, https, admin] = addresses;
        Ok((http, https, admin))
    }
}

/// For each stage of stopping.
const STAGE_GRACE: Duration = Duration::from_secs(10);
