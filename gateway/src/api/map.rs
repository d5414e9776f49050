//! The dispatcher's map: all drivers and live deliveries of a tenant, and the tiles beneath them.

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use backends::ledger::DeliveryFilter;
use daemon::serve::Stopping;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, StatusCode};
use protocol::frame::DriverFrame;
use protocol::update::DeliveryView;
use protocol::{DeliveryId, DeliveryPolicy, TenantId};
use serde::{Deserialize, Deserializer};
use serde_json::json;

use super::Api;
use super::auth::{MaybeWatcher, ShownToken, Watcher};
use super::input::Params;
use super::problem::{Problem, ProblemKind};
use super::tenants::NO_STORE;
use super::tracking::{close_code_of, door_of, first_watcher, upgraded};
use crate::hub::{MapSnapshot, Viewport, map_delivery};
use crate::metrics::{StreamEnd, StreamKind};
use crate::stream::map::MapStream;
use crate::stream::{Place, events, socket};
use crate::tiles::{TileAddress, TileError};

#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct MapParams {
    /// `west,south,east,north`
    #[serde(default, deserialize_with = "viewport")]
    viewport: Option<Viewport>,
}

pub(crate) async fn connect(
    State(api): State<Api>,
    MaybeWatcher(watcher): MaybeWatcher,
    ShownToken(token): ShownToken,
    Params(params): Params<MapParams>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let upgrade = upgraded(upgrade, &headers)?;
    let place = api.place(StreamKind::MapSocket, token)?;
    let times = api.socket_times();
    let Some(watcher) = watcher else {
        return Ok(upgrade.on_upgrade(move |socket| connect_by_first_message(api, socket, params, place)));
    };
    let stream = open(&api, watcher.tenant()?, params.viewport).await?;
    Ok(upgrade.on_upgrade(move |socket| socket::run(socket, stream, place, times)))
}

async fn connect_by_first_message(api: Api, mut socket: WebSocket, params: MapParams, mut place: Place) {
    let opened = match first_watcher(&api, &mut socket, &mut place).await {
        Ok(watcher) => match watcher.tenant() {
            Ok(tenant) => {
                open(&api, tenant, params.viewport).await.map_err(|problem| Some(close_code_of(problem.kind())))
            }
            Err(problem) => Err(Some(close_code_of(problem.kind()))),
        },
        Err(code) => Err(code),
    };
    match opened {
        Ok(stream) => socket::run(socket, stream, place, api.socket_times()).await,
        Err(code) => {
            place.end = code.map_or(StreamEnd::Left, |_| StreamEnd::Refused);
            if let Some(code) = code {
                socket::close(socket, code, "").await;
            }
        }
    }
}

pub(crate) async fn by_events(
    State(api): State<Api>,
    watcher: Watcher,
    ShownToken(token): ShownToken,
    Params(params): Params<MapParams>,
    stopping: Option<Extension<Stopping>>,
) -> Result<Response, Problem> {
    let place = api.place(StreamKind::MapEvents, token)?;
    let stream = open(&api, watcher.tenant()?, params.viewport).await?;
    Ok(events::respond(stream, place, api.config.ping_every, door_of(&api, stopping)))
}

pub(crate) async fn status(
    State(api): State<Api>,
    watcher: Watcher,
    Params(params): Params<MapParams>,
) -> Result<impl IntoResponse, Problem> {
    let tenant = watcher.tenant()?;
    let policy = api.registry.tenant(tenant).await?.policy;
    let mut snapshot = MapSnapshot { server_time: api.now(), ..MapSnapshot::default() };
    for partition in api.shards.partitions() {
        let part = api.shards.with(partition, |hub, now| hub.map_snapshot(tenant, policy, params.viewport, now));
        match part {
            Some(part) => snapshot.extend(part),
            None => snapshot.degraded = true,
        }
    }
    if snapshot.degraded {
        snapshot = known_map(&api, tenant, policy, params.viewport).await?;
    }
    snapshot.sort();
    Ok((NO_STORE, Json(snapshot)))
}

async fn open(api: &Api, tenant: TenantId, viewport: Option<Viewport>) -> Result<MapStream, Problem> {
    let policy = api.registry.tenant(tenant).await?.policy;
    let opened = MapStream::open(&api.shards, tenant, policy, viewport, api.config.map_every);
    let Some((mut stream, mut snapshot)) = opened else {
        return Err(Problem::unavailable("the live views"));
    };
    if snapshot.degraded {
        snapshot = known_map(api, tenant, policy, viewport).await?;
    }
    stream.begin(snapshot);
    Ok(stream)
}

/// What the live store and the ledger know, while hubs are not whole.
async fn known_map(
    api: &Api,
    tenant: TenantId,
    policy: DeliveryPolicy,
    viewport: Option<Viewport>,
) -> Result<MapSnapshot, Problem> {
    let now = api.now();
    let mut snapshot = MapSnapshot { degraded: true, server_time: now, ..MapSnapshot::default() };
    for live in api.live_store.drivers(tenant, api.monotonic()).await? {
        let position = live.view.position.map(|shown| shown.position);
        if viewport.is_none_or(|viewport| position.is_some_and(|at| viewport.contains(at))) {
            snapshot.drivers.push(DriverFrame::of(&live.view, &policy, now));
        }
    }
    let mut filter = DeliveryFilter { after: DeliveryId(0), is_live: true, driver: None, limit: DELIVERIES_PAGE };
    while snapshot.deliveries.len() < DELIVERIES_MAX {
        let page = api.ledger.deliveries(tenant, filter.clone()).await?;
        let is_last = page.len() < DELIVERIES_PAGE as usize;
        filter.after = page.last().map_or(filter.after, |delivery| delivery.key.delivery);
        for delivery in page {
            let view = DeliveryView { delivery, position: None, progress: None, eta: None, plan: None, silent: None };
            snapshot.deliveries.push(map_delivery(&view, now));
        }
        if is_last {
            break;
        }
    }
    Ok(snapshot)
}

/// Needs no token: it is the same public map for everybody.
pub(crate) async fn tile(
    State(api): State<Api>,
    Path((z, x, y)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let tiles = api.tiles.as_ref().ok_or_else(no_map)?;
    let address = TileAddress::parse(&z, &x, &y)
        .ok_or_else(|| Problem::new(ProblemKind::NotFound, "a tile is z/x/y.mvt, x and y below 2^z"))?;
    let shown = tiles.shown();
    let etag = format!("\"{}-{address}\"", shown.version());
    if headers.get(IF_NONE_MATCH).and_then(|value| value.to_str().ok()) == Some(etag.as_str()) {
        return Ok(StatusCode::NOT_MODIFIED.into_response());
    }
    let kept = [(ETAG, etag), (CACHE_CONTROL, "public, max-age=3600".to_string())];
    match tiles.tile(&shown, address).await {
        Ok(Some(bytes)) => Ok((kept, [(CONTENT_TYPE, "application/vnd.mapbox-vector-tile")], bytes).into_response()),
        Ok(None) => Ok((StatusCode::NO_CONTENT, kept).into_response()),
        Err(TileError::Busy) => Err(Problem::unavailable("the tiles")),
        Err(TileError::Failed(reason)) => {
            tracing::error!(error = reason, %address, "a tile cannot be drawn");
            Err(Problem::new(ProblemKind::Internal, "the failure was logged"))
        }
    }
}

/// TileJSON 3.0.0. The addresses are relative unless a public one is set: a page is served where the tiles are.
pub(crate) async fn tilejson(State(api): State<Api>) -> Result<impl IntoResponse, Problem> {
    let tiles = api.tiles.as_ref().ok_or_else(no_map)?;
    let shown = tiles.shown();
    let set = shown.describe();
    let base = api.config.public_url.as_deref().unwrap_or_default();
    Ok(Json(json!({
        "tilejson": "3.0.0",
        "name": set.name,
        "version": "1.0.0",
        "attribution": set.attribution,
        "bounds": set.bounds,
        "minzoom": set.zoom_min,
        "maxzoom": set.zoom_max,
        "tiles": [format!("{base}/api/v1/map/tiles/{{z}}/{{x}}/{{y}}.mvt?v={}", shown.version())],
        "vector_layers": set.layers.iter().map(|layer| json!({"id": layer, "fields": {}})).collect::<Vec<_>>(),
    })))
}

fn no_map() -> Problem {
    Problem::new(ProblemKind::NotFound, "this server runs without a map; give it one made by `wayfix maps import`")
}

fn viewport<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Viewport>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let numbers: Option<Vec<f64>> = text.split(',').map(|part| part.trim().parse().ok()).collect();
    let corners = numbers.and_then(|numbers| <[f64; 4]>::try_from(numbers).ok());
    let viewport = corners.and_then(|corners| Viewport::try_from(corners).ok());
    viewport.map(Some).ok_or_else(|| serde::de::Error::custom("viewport is west,south,east,north in degrees"))
}

const DELIVERIES_PAGE: u32 = 1000;
/// More than a map can show while it is degraded.
const DELIVERIES_MAX: usize = 10_000;
