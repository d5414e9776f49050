//! Puts the whole together: the one place that picks what stands behind each seam, and the order in which all starts
//! and stops.
//!
//! Stopping goes with the way of the data: doors close, edges ship what they have, trackers and sinks finish it,
//! gateways let their streams go, and the log is closed last.

mod space;
pub mod stores;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::{Extension, Router};
use backends::relay::{self, RelayParts};
use backends::upkeep::{self, UpkeepParts};
use daemon::admin::{self, Readiness};
use daemon::meter::Exposition;
use daemon::serve::{Listener, serve};
use daemon::{Clock, ClockWatch, Drain, Meter, ProcessContext, Signals, write_private};
use edge::EdgeParts;
use edge::tls::{ServerTls, server_tls};
use gateway::{GatewayParts, SecureDoor, TileSource};
use processor::sweep::{self, SweepParts};
use processor::{Processor, ProcessorParts};
use protocol::session::EdgeAddress;
use protocol::{DeliveryPolicy, Time};
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::config::{Config, DoorsConfig};
use crate::map_watch::{MapWatch, Print};
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

/// What only the composition hands around.
struct Composition<'a> {
    config: &'a Config,
    stores: &'a Stores,
    context: &'a ProcessContext,
    stages: &'a Stages,
    exposition: &'a Exposition,
    /// Notified when the map's file is to be looked at now.
    look_at_map: &'a Arc<Notify>,
}

impl Whole {
    /// None: it was told to stop before it was up.
    pub async fn start(config: Config, signals: &Signals) -> Result<Option<Whole>> {
        let whole = Drain::default();
        let clock_watch = ClockWatch::begin(config.stores.data.join(CLOCK_FILE));
        let (meter, exposition) = Meter::prometheus();
        let readiness = Readiness::default();
        let context = ProcessContext { clock: config.clock, meter, readiness, drain: whole.clone() };
        let stages = Stages::of(&whole);
        exposition.start_upkeep(&stages.upkeep);
        let (of_stores, of_context, upkeep) = (config.stores.clone(), context.clone(), stages.upkeep.clone());
        // On a task of its own: files that do not answer must not keep a signal from being heard.
        let opening =
            tokio::spawn(async move { Stores::open(&of_stores, &of_context.clock, &of_context.meter, &upkeep).await });
        let stores = tokio::select! {
            opened = opening => opened.context("open the stores")??,
            () = signals.stop.cancelled() => return Ok(None),
        };
        clock_watch.start(&context.meter, context.readiness.clone(), &stages.upkeep);
        let look_at_map = &signals.look_again;
        let composition = Composition {
            config: &config,
            stores: &stores,
            context: &context,
            stages: &stages,
            exposition: &exposition,
            look_at_map,
        };
        let started = tokio::select! {
            started = composition.start_roles() => started.map(Some),
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

impl Composition<'_> {
    async fn start_roles(&self) -> Result<Running> {
        let Composition { config, stores, context, stages, .. } = self;
        let key_file = first_tenant(&config.stores.data, stores, &context.clock).await?;
        self.start_stores_roles();
        let tls = self.open_tls().await?;
        let parts = EdgeParts { log: stores.log.clone(), control: stores.control.clone() };
        let edge = edge::start(config.edge.clone(), parts, &context.within(&stages.edge)).await;
        let edge = edge.context("start the edge")?;

        let seen = config.map.as_deref().and_then(Print::of);
        let processor = self.start_processor().await?;

        let doors = Doors::bind(&config.doors, &tls).await?;
        let parts = self.gateway_parts(&doors, edge.udp_addr, tls.pin, &processor)?;
        let gateway = gateway::start(config.gateway.clone(), parts, &context.within(&stages.gateway));
        let beside = gateway.open_to_origins(edge.http_router);
        if let Some(file) = config.map.clone() {
            let watch = MapWatch { file, seen, processor, tiles: gateway.tiles, now: self.look_at_map.clone() };
            stages.processor.spawn("map watch", watch.run(stages.processor.clone()));
        }
        let router = gateway.router.merge(beside);
        if doors.https.is_some() {
            let (readiness, stop) = (context.readiness.clone(), stages.doors.token().clone());
            stages.doors.spawn("certificate watch", tls.watch.run(readiness, stop));
        }
        let (http, https, admin) = self.open_doors(doors, router)?;
        Ok(Running { http, https, admin, udp: edge.udp_addr, key_file })
    }

    /// Those that carry from store to store and end what nobody else does.
    fn start_stores_roles(&self) {
        let Composition { config, stores, context, stages, .. } = self;
        let Stores { log, ledger, registry, .. } = stores;
        let parts = UpkeepParts { log: log.clone(), ledger: ledger.clone(), trail_store: stores.trail_store.clone() };
        upkeep::start(config.upkeep.clone(), parts, &context.within(&stages.upkeep));
        let parts = SweepParts { log: log.clone(), blobs: stores.swept_blobs.clone() };
        sweep::start(parts, &context.within(&stages.upkeep));
        let parts = RelayParts { log: log.clone(), ledger: ledger.clone(), registry: registry.clone() };
        relay::start(parts, &context.within(&stages.relay));
    }

    async fn open_tls(&self) -> Result<ServerTls> {
        let (edge, clock) = (self.config.edge.clone(), self.context.clock);
        let opening = tokio::task::spawn_blocking(move || server_tls(&edge.tls, &edge.state_folder, clock));
        opening.await?.context("prepare the certificate")
    }

    async fn start_processor(&self) -> Result<Processor> {
        let Composition { config, stores, context, stages, .. } = self;
        let parts = ProcessorParts {
            log: stores.log.clone(),
            decoded: stores.decoded.clone(),
            blobs: stores.blobs.clone(),
            live_store: stores.live_store.clone(),
            trail_store: stores.trail_store.clone(),
            ledger: stores.ledger.clone(),
            registry: stores.registry.clone(),
            route_service: config.route_service.clone(),
            map: config.map.clone(),
        };
        let started = processor::start(config.processor.clone(), parts, &context.within(&stages.processor)).await;
        started.context("start the processor")
    }

    fn gateway_parts(
        &self,
        doors: &Doors,
        udp: SocketAddr,
        pin: Option<[u8; 32]>,
        processor: &Processor,
    ) -> Result<GatewayParts> {
        let stores = self.stores;
        let tiles = processor.map_file().as_deref().map(tiles::open).transpose()?;
        Ok(GatewayParts {
            log: stores.log.clone(),
            decoded: stores.decoded.clone(),
            live_store: stores.live_store.clone(),
            trail_store: stores.trail_store.clone(),
            ledger: stores.ledger.clone(),
            registry: stores.registry.clone(),
            control: stores.control.clone(),
            control_writer: stores.control_writer.clone(),
            edges: vec![doors.edge_address(udp, pin)?],
            tiles: tiles.map(|tiles| Arc::new(tiles) as Arc<dyn TileSource>),
            pages: pages::router(doors.https_addr()?),
        })
    }

    fn open_doors(&self, doors: Doors, router: Router) -> Result<Addresses> {
        let Composition { config, context, stages, .. } = self;
        let admin = admin::router(context.readiness.clone(), self.exposition.clone(), stages.doors.token().clone());
        let secure = router.clone().layer(Extension(SecureDoor));
        let limits = &config.doors.limits;
        let doors = [
            ("http door", doors.http, router, limits.clone(), &stages.doors),
            ("https door", doors.https, secure, limits.clone(), &stages.doors),
            // Health can be asked for until the last, whoever holds all other connections.
            ("admin door", doors.admin, admin, limits.reserved(), &stages.upkeep),
        ];
        let mut addresses = [None, None, None];
        for (place, (name, listener, router, limits, drain)) in addresses.iter_mut().zip(doors) {
            let Some(listener) = listener else { continue };
            *place = Some(listener.local_addr()?);
            serve(name, listener, router, limits, &context.meter, drain);
        }
        let [http, https, admin] = addresses;
        Ok((http, https, admin))
    }
}

/// Where http, https and admin are reached.
type Addresses = (Option<SocketAddr>, Option<SocketAddr>, Option<SocketAddr>);

/// The first start makes a tenant and leaves its key where only the operator can read it. A key that is not there later
/// was taken away: the registry keeps only its hash, so it is said and nobody gets a second tenant for it.
async fn first_tenant(data: &Path, stores: &Stores, clock: &Clock) -> Result<PathBuf> {
    let file = data.join("tenant.key");
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
        write_private(&file, key.as_bytes()).with_context(|| format!("write {}", file.display()))?;
        return Ok(file);
    };
    if stores.is_first_start {
        // The first start was stopped between the tenant and its key, which was never told.
        let key = stores.new_tenant_key(tenant.id, now).await?;
        write_private(&file, key.as_bytes()).with_context(|| format!("write {}", file.display()))?;
    } else {
        warn!(file = %file.display(), "the key's file is gone: `wayfix repair --new-tenant-key 1` makes another");
    }
    Ok(file)
}

/// The TCP doors, bound before anything is told of them.
struct Doors {
    http: Option<Listener>,
    https: Option<Listener>,
    admin: Option<Listener>,
}

impl Doors {
    async fn bind(config: &DoorsConfig, tls: &ServerTls) -> Result<Doors> {
        let bind = async |door: &'static str, address: Option<SocketAddr>, tls| -> Result<Option<Listener>> {
            let Some(address) = address else { return Ok(None) };
            let bound = Listener::bind(address, tls).await;
            bound.map(Some).with_context(|| format!("listen on {address} for {door}"))
        };
        Ok(Doors {
            http: bind("http", config.http, None).await?,
            https: bind("https", config.https, Some(tls.config.clone())).await?,
            admin: bind("admin", config.admin, None).await?,
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
}

/// What the wall clock was believed to show, in the data folder.
pub const CLOCK_FILE: &str = "clock.json";
/// For each stage of stopping.
const STAGE_GRACE: Duration = Duration::from_secs(10);
