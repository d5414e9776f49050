//! The API: everything under `/api/v1`, and the contracts that describe it. Handlers say who may ask by the extractor
//! they take (`auth`), and what may come in by another (`input`); the rest is the business of the parts behind.

mod auth;
pub(crate) mod contract;
mod cursor;
mod deliveries;
mod input;
pub mod links;
mod map;
pub(crate) mod problem;
mod scopes;
mod sessions;
mod tenants;
mod tracking;
mod trail;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{MethodRouter, delete, get, patch, post};
use backends::control::{ControlReader, ControlWriter};
use backends::ledger::DeliveryLedger;
use backends::live_store::LiveStore;
use backends::registry::Registry;
use backends::trail_store::TrailStore;
use daemon::serve::room_for;
use daemon::{Backoff, Clock, Drain, retry};
use http::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, ETAG, IF_NONE_MATCH, LOCATION, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderName, HeaderValue, Method};
use protocol::session::EdgeAddress;
use protocol::{DeliveryPolicy, TenantId, Time};
use tokio_util::sync::CancellationToken;
use tower_http::cors::{Any, CorsLayer};

use crate::metrics::{GatewayMetrics, StreamKind};
use crate::settings::{AllowedOrigins, GatewayConfig};
use crate::shards::Shards;
use crate::stream::customer::Views;
use crate::stream::socket::SocketTimes;
use crate::stream::{Place, Places};
use crate::tiles::Tiles;

use problem::{Problem, ProblemKind};
use scopes::TokenHash;
pub(crate) use scopes::{HeldScope, KnownScopes};

/// What handlers work with. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Api(Arc<ApiParts>);

pub(crate) struct ApiParts {
    pub config: GatewayConfig,
    pub ledger: Arc<dyn DeliveryLedger>,
    pub live_store: Arc<dyn LiveStore>,
    pub trail_store: Arc<dyn TrailStore>,
    pub registry: Arc<dyn Registry>,
    pub scopes: KnownScopes,
    pub control: ControlReader,
    pub control_writer: ControlWriter,
    pub edges: Vec<EdgeAddress>,
    pub tiles: Option<Arc<Tiles>>,
    pub shards: Arc<Shards>,
    pub views: Views,
    pub places: Arc<Places>,
    pub metrics: Arc<GatewayMetrics>,
    pub clock: Clock,
    pub drain: Drain,
    pub stop: CancellationToken,
}

impl std::ops::Deref for Api {
    type Target = ApiParts;
    fn deref(&self) -> &ApiParts {
        &self.0
    }
}

impl Api {
    pub fn new(parts: ApiParts) -> Self {
        Api(Arc::new(parts))
    }

    pub fn now(&self) -> Time {
        Time(self.clock.now_ms())
    }

    /// What is kept for so long is compared with this: a clock that was set forward ends nothing early.
    fn kept(&self) -> Time {
        Time(self.clock.kept_ms())
    }

    /// For what is kept for so long within this process: time that nobody can set.
    pub fn monotonic(&self) -> Time {
        Time(self.clock.monotonic_ms())
    }

    /// A stream's place. The token it was opened with, if it is known yet, stays known until its end.
    fn place(&self, kind: StreamKind, token: Option<TokenHash>) -> Result<Place, Problem> {
        let mut place = Place::take(&self.places, &self.metrics, kind).ok_or_else(Problem::no_room)?;
        place.held = token.map(|token| HeldScope::new(self, token));
        Ok(place)
    }

    fn socket_times(&self) -> SocketTimes {
        SocketTimes { ping_every: self.config.ping_every, stall: self.config.stall }
    }

    /// Tells the edges of a tenant's policy. The registry has it already, so this may take its time.
    fn publish_policy(&self, tenant: TenantId, policy: DeliveryPolicy) {
        let api = self.clone();
        self.drain.spawn_job("gateway publish policy", async move {
            let put = || api.control_writer.put_policy(tenant, policy);
            let is_transient = backends::log::LogError::is_transient;
            if let Err(error) = retry("publish a policy", Backoff::default(), &api.stop, is_transient, put).await {
                tracing::warn!(%error, tenant = tenant.0, "a tenant's policy could not be published");
            }
            Ok(())
        });
    }
}

/// One route, as the contract writes its path.
pub(crate) struct Route {
    #[cfg_attr(not(test), expect(dead_code, reason = "the handler knows its method; tests hold the contract to it"))]
    pub method: &'static str,
    pub path: &'static str,
    handler: MethodRouter<Api>,
}

/// All routes. The contract is held to this list by a test.
pub(crate) fn routes() -> Vec<Route> {
    let get = |path, handler| Route { method: "get", path, handler };
    let large = |path, bytes: usize, handler: MethodRouter<Api>| {
        get(path, handler.route_layer(middleware::from_fn_with_state(bytes, room_for)))
    };
    let post = |path, handler| Route { method: "post", path, handler };
    let patch_ = |path, handler| Route { method: "patch", path, handler };
    let delete_ = |path, handler| Route { method: "delete", path, handler };
    vec![
        post("/api/v1/tenants", self::post(tenants::create_tenant)),
        large("/api/v1/drivers", PAGE_BYTES, self::get(tenants::list_drivers)),
        post("/api/v1/drivers", self::post(tenants::create_driver)),
        get("/api/v1/drivers/{driver}", self::get(tenants::driver)),
        patch_("/api/v1/drivers/{driver}", patch(tenants::change_driver)),
        large("/api/v1/drivers/{driver}/trail", PAGE_BYTES, self::get(trail::of_driver)),
        post("/api/v1/devices", self::post(tenants::enrol)),
        delete_("/api/v1/devices/{driver}/{device}", delete(tenants::revoke)),
        post("/api/v1/sessions", self::post(sessions::start)),
        large("/api/v1/deliveries", PAGE_BYTES, self::get(deliveries::list)),
        post("/api/v1/deliveries", self::post(deliveries::create)),
        get("/api/v1/deliveries/{delivery}", self::get(deliveries::show)),
        post("/api/v1/deliveries/{delivery}/assign", self::post(deliveries::assign)),
        post("/api/v1/deliveries/{delivery}/status", self::post(deliveries::change_status)),
        post("/api/v1/deliveries/{delivery}/cancel", self::post(deliveries::cancel)),
        post("/api/v1/deliveries/{delivery}/reopen", self::post(deliveries::reopen)),
        post("/api/v1/deliveries/{delivery}/token", self::post(deliveries::create_token)),
        large("/api/v1/deliveries/{delivery}/trail", PAGE_BYTES, self::get(trail::of_delivery)),
        get("/api/v1/tracking/link", self::get(tracking::link)),
        get("/api/v1/tracking/{delivery}/connect", self::get(tracking::connect)),
        get("/api/v1/tracking/{delivery}/events", self::get(tracking::by_events)),
        get("/api/v1/tracking/{delivery}/status", self::get(tracking::status)),
        get("/api/v1/map/connect", self::get(map::connect)),
        get("/api/v1/map/events", self::get(map::by_events)),
        large("/api/v1/map/status", PAGE_BYTES, self::get(map::status)),
        get("/api/v1/map/tiles.json", self::get(map::tilejson)),
        large("/api/v1/map/tiles/{z}/{x}/{y}.mvt", TILE_BYTES, self::get(map::tile)),
        get("/openapi.json", self::get(contract::openapi)),
        get("/asyncapi.json", self::get(contract::asyncapi)),
    ]
}

/// The routes, and the pages for all that is none of them.
pub(crate) fn router(api: Api, pages: Router) -> Router {
    let cors = cors(&api.config.allowed_origins);
    // The pattern of a path segment cannot end in text: the tile's handler takes the suffix off.
    let served = |route: &Route| route.path.replace("{y}.mvt", "{y}");
    let router = routes().into_iter().fold(Router::new(), |router, route| {
        let path = served(&route);
        router.route(&path, route.handler)
    });
    let router = router
        .route("/api/{*rest}", axum::routing::any(no_route))
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn_with_state(api.clone(), measured));
    let router = match cors {
        Some(cors) => router.layer(cors),
        None => router,
    };
    router.with_state(api).merge(pages)
}

async fn no_route() -> Problem {
    Problem::new(ProblemKind::NotFound, "this API has no such path; /openapi.json lists what it has")
}

async fn no_method() -> Problem {
    Problem::new(ProblemKind::MethodNotAllowed, "/openapi.json lists the methods of each path")
}

async fn measured(State(api): State<Api>, request: Request, next: Next) -> Response {
    let begun = std::time::Instant::now();
    let mut response = next.run(request).await;
    api.metrics.count_request(response.status(), begun.elapsed().as_secs_f64());
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// No cookies are used anywhere, so no origin can borrow a visitor's rights: these only open the API to others' pages.
/// Headers are named, because `*` does not stand for `authorization` (Fetch §3.2.3).
pub(crate) fn cors(origins: &AllowedOrigins) -> Option<CorsLayer> {
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers([
            AUTHORIZATION,
            CONTENT_TYPE,
            CONTENT_ENCODING,
            IF_NONE_MATCH,
            HeaderName::from_static("idempotency-key"),
            HeaderName::from_static("last-event-id"),
            HeaderName::from_static(daemon::request_id::HEADER),
        ])
        .expose_headers([RETRY_AFTER, ETAG, LOCATION, HeaderName::from_static(daemon::request_id::HEADER)])
        .max_age(PREFLIGHT_KEPT);
    match origins {
        AllowedOrigins::None => None,
        AllowedOrigins::All => Some(layer.allow_origin(Any)),
        AllowedOrigins::These(origins) => Some(layer.allow_origin(origins.clone())),
    }
}

/// As long as the most patient of browsers keeps an answer to its question.
const PREFLIGHT_KEPT: std::time::Duration = std::time::Duration::from_secs(7200);
/// What is held of an address's share while a page of a list, a trail or a map is made, and while a tile is drawn.
const PAGE_BYTES: usize = 1 << 20;
const TILE_BYTES: usize = 64 << 10;
