//! History: every fix with its verdict, as JSON or GeoJSON.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use backends::trail_store::TrailQuery;
use geojson::{Feature, FeatureCollection, Geometry};
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};
use protocol::record::Door;
use protocol::update::SnappedPosition;
use protocol::{Breadcrumb, DeliveryId, DeliveryKey, DeviceNumber, DriverId, DriverKey, RejectReason, Time};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Api;
use super::auth::OfTenant;
use super::input::{DeliveryPath, DriverPath, Params};
use super::problem::{Problem, ProblemKind};

#[derive(Debug, Deserialize)]
pub(crate) struct TrailParams {
    /// Milliseconds since the Unix epoch, or RFC 3339.
    #[serde(default, deserialize_with = "moment")]
    from: Option<Time>,
    #[serde(default, deserialize_with = "moment")]
    until: Option<Time>,
    limit: Option<u32>,
    format: Option<Format>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    Json,
    GeoJson,
}

/// One fix of the history.
#[derive(Debug, Serialize)]
struct TrailPoint {
    driver: DriverId,
    device: DeviceNumber,
    delivery: Option<DeliveryId>,
    /// As the phone said it.
    measured: Time,
    received: Time,
    lat: f64,
    lng: f64,
    speed: Option<f64>,
    heading: Option<f64>,
    accuracy: Option<u8>,
    door: Door,
    accepted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<RejectReason>,
    snapped: Option<SnappedOut>,
}

#[derive(Debug, Serialize)]
struct SnappedOut {
    lat: f64,
    lng: f64,
    off_m: f64,
    confidence_percent: u8,
}

impl From<SnappedPosition> for SnappedOut {
    fn from(snapped: SnappedPosition) -> Self {
        SnappedOut {
            lat: snapped.position.lat(),
            lng: snapped.position.lon(),
            off_m: f64::from(snapped.off_cm) / 100.0,
            confidence_percent: snapped.confidence_percent,
        }
    }
}

impl From<&Breadcrumb> for TrailPoint {
    fn from(breadcrumb: &Breadcrumb) -> Self {
        let record = &breadcrumb.record;
        let fix = &record.fix;
        TrailPoint {
            driver: record.device.driver,
            device: record.device.device,
            delivery: breadcrumb.delivery,
            measured: fix.measured.to_time(),
            received: record.received,
            lat: fix.position.lat(),
            lng: fix.position.lon(),
            speed: fix.speed_m_s(),
            heading: fix.heading_degrees().map(|degrees| (degrees * 10.0).round() / 10.0),
            accuracy: fix.accuracy_m,
            door: record.door,
            accepted: breadcrumb.verdict.is_accepted(),
            reason: breadcrumb.reject_reason(),
            snapped: breadcrumb.snapped.map(SnappedOut::from),
        }
    }
}

#[derive(Debug, Serialize)]
struct TrailOut {
    points: Vec<TrailPoint>,
    /// What to ask for next as `from`; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<Time>,
}

pub(crate) async fn of_delivery(
    State(api): State<Api>,
    OfTenant(tenant): OfTenant,
    DeliveryPath(delivery): DeliveryPath,
    headers: HeaderMap,
    Params(params): Params<TrailParams>,
) -> Result<Response, Problem> {
    let key = DeliveryKey { tenant, delivery };
    let query = checked_query(&params, Time(0))?;
    api.ledger.delivery(key).await?.ok_or_else(Problem::no_delivery)?;
    let breadcrumbs = api.trail_store.delivery_trail(key, query).await?;
    respond(breadcrumbs, query, &params, &headers)
}

pub(crate) async fn of_driver(
    State(api): State<Api>,
    OfTenant(tenant): OfTenant,
    DriverPath(driver): DriverPath,
    headers: HeaderMap,
    Params(params): Params<TrailParams>,
) -> Result<Response, Problem> {
    let query = checked_query(&params, api.now() - DAY)?;
    api.registry.driver(tenant, driver).await?;
    let breadcrumbs = api.trail_store.driver_trail(DriverKey { tenant, driver }, query).await?;
    respond(breadcrumbs, query, &params, &headers)
}

fn checked_query(params: &TrailParams, from: Time) -> Result<TrailQuery, Problem> {
    let limit = params.limit.unwrap_or(POINTS_DEFAULT);
    if !(1..=POINTS_MAX).contains(&limit) {
        return Err(Problem::new(ProblemKind::BadRequest, format!("limit is between 1 and {POINTS_MAX}")));
    }
    let until = params.until.unwrap_or(Time(i64::MAX / 2));
    Ok(TrailQuery { from: params.from.unwrap_or(from), until, limit })
}

fn respond(
    mut breadcrumbs: Vec<Breadcrumb>,
    query: TrailQuery,
    params: &TrailParams,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let next = cut_page(&mut breadcrumbs, query.limit as usize);
    let accepts_geojson =
        headers.get(ACCEPT).and_then(|value| value.to_str().ok()).is_some_and(|accept| accept.contains(GEOJSON));
    let format = params.format.unwrap_or(if accepts_geojson { Format::GeoJson } else { Format::Json });
    match format {
        Format::Json => {
            Ok(Json(TrailOut { points: breadcrumbs.iter().map(TrailPoint::from).collect(), next }).into_response())
        }
        Format::GeoJson => {
            let features = breadcrumbs.iter().map(feature).collect();
            let mut collection = FeatureCollection { bbox: None, features, foreign_members: None };
            if let Some(next) = next {
                collection.foreign_members = Some([("next".to_string(), Value::from(next.0))].into_iter().collect());
            }
            Ok(([(CONTENT_TYPE, GEOJSON)], collection.to_string()).into_response())
        }
    }
}

/// A full page ends before the last moment on it, so that the next page can begin there and repeats nothing. Where one
/// moment fills the page it is given whole as far as it goes, and the next begins after it.
fn cut_page(breadcrumbs: &mut Vec<Breadcrumb>, limit: usize) -> Option<Time> {
    if breadcrumbs.len() < limit {
        return None;
    }
    let last = breadcrumbs.last()?.record.fix.measured;
    let keep = breadcrumbs.partition_point(|breadcrumb| breadcrumb.record.fix.measured < last);
    if keep == 0 {
        return Some(Time(last.to_time().0.saturating_add(100)));
    }
    breadcrumbs.truncate(keep);
    Some(last.to_time())
}

fn feature(breadcrumb: &Breadcrumb) -> Feature {
    let position = breadcrumb.record.fix.position;
    let properties = serde_json::to_value(TrailPoint::from(breadcrumb)).ok();
    Feature {
        geometry: Some(Geometry::new_point([position.lon(), position.lat()])),
        properties: properties.and_then(|value| value.as_object().cloned()),
        ..Feature::default()
    }
}

fn moment<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Time>, D::Error> {
    // A plus sign of an offset that was not escaped arrives as a space.
    let text = String::deserialize(deserializer)?.replace(' ', "+");
    if let Ok(ms) = text.parse::<i64>() {
        return Ok(Some(Time(ms.clamp(i64::MIN / 2, i64::MAX / 2))));
    }
    let moment = OffsetDateTime::parse(&text, &Rfc3339)
        .map_err(|_| serde::de::Error::custom("a moment is milliseconds since 1970 or RFC 3339"))?;
    Ok(Some(Time((moment.unix_timestamp_nanos() / 1_000_000) as i64)))
}

const GEOJSON: &str = "application/geo+json";
const POINTS_DEFAULT: u32 = 1000;
const POINTS_MAX: u32 = 10_000;
const DAY: std::time::Duration = std::time::Duration::from_secs(24 * 3600);
