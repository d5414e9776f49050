//! History: every fix with its verdict, as JSON or GeoJSON.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use backends::trail_store::{TRAIL_MAX, TrailQuery};
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
use super::cursor::{self, Cursor, List};
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
    #[serde(default)]
    cursor: Cursor,
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
    /// What to ask for next as `cursor`; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

pub(crate) async fn of_delivery(
    State(api): State<Api>,
    OfTenant(tenant): OfTenant,
    DeliveryPath(delivery): DeliveryPath,
    headers: HeaderMap,
    Params(params): Params<TrailParams>,
) -> Result<Response, Problem> {
    let key = DeliveryKey { tenant, delivery };
    let page = Page::of(&params, Time(0))?;
    api.ledger.delivery(key).await?.ok_or_else(Problem::no_delivery)?;
    let breadcrumbs = api.trail_store.delivery_trail(key, page.query()).await?;
    respond(page.cut(breadcrumbs), &params, &headers)
}

pub(crate) async fn of_driver(
    State(api): State<Api>,
    OfTenant(tenant): OfTenant,
    DriverPath(driver): DriverPath,
    headers: HeaderMap,
    Params(params): Params<TrailParams>,
) -> Result<Response, Problem> {
    let page = Page::of(&params, api.now() - DAY)?;
    api.registry.driver(tenant, driver).await?;
    let breadcrumbs = api.trail_store.driver_trail(DriverKey { tenant, driver }, page.query()).await?;
    respond(page.cut(breadcrumbs), &params, &headers)
}

/// A page of a trail. Several fixes may have been measured at one moment, so a page goes on from a moment and the number
/// of its fixes that earlier pages gave: the store gives those of one moment always in one order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Page {
    from: Time,
    /// How many fixes of the moment `from` came on earlier pages.
    given: u32,
    until: Time,
    limit: u32,
}

impl Page {
    fn of(params: &TrailParams, from: Time) -> Result<Page, Problem> {
        let limit = params.limit.unwrap_or(POINTS_DEFAULT);
        if !(1..=POINTS_MAX).contains(&limit) {
            return Err(Problem::new(ProblemKind::BadRequest, format!("limit is between 1 and {POINTS_MAX}")));
        }
        let until = params.until.unwrap_or(TIME_MAX);
        let Some([moment, given]) = params.cursor.read(List::Trail)? else {
            return Ok(Page { from: params.from.unwrap_or(from), given: 0, until, limit });
        };
        let moment = Time(moment.cast_signed().clamp(-TIME_MAX.0, TIME_MAX.0));
        Ok(Page { from: moment, given: u32::try_from(given).unwrap_or(TRAIL_MAX).min(TRAIL_MAX), until, limit })
    }

    /// One more than the page holds says whether there is another.
    fn query(self) -> TrailQuery {
        TrailQuery { from: self.from, until: self.until, limit: self.given + self.limit + 1 }
    }

    /// What belongs on the page, and the cursor of the next.
    fn cut(self, mut breadcrumbs: Vec<Breadcrumb>) -> (Vec<Breadcrumb>, Option<String>) {
        let measured = |breadcrumb: &Breadcrumb| breadcrumb.record.fix.measured.to_time();
        let before = breadcrumbs.iter().take(self.given as usize).take_while(|one| measured(one) <= self.from).count();
        let mut page = breadcrumbs.split_off(before);
        if page.len() <= self.limit as usize {
            return (page, None);
        }
        page.truncate(self.limit as usize);
        let next = page.last().map(|last| {
            let moment = measured(last);
            let on_page = page.iter().rev().take_while(|one| measured(one) == moment).count();
            let earlier = if moment <= self.from { before } else { 0 };
            cursor::write(List::Trail, [moment.0.cast_unsigned(), (on_page + earlier) as u64])
        });
        (page, next)
    }
}

fn respond(
    (breadcrumbs, next): (Vec<Breadcrumb>, Option<String>),
    params: &TrailParams,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
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
                collection.foreign_members = Some([("next".to_string(), Value::from(next))].into_iter().collect());
            }
            Ok(([(CONTENT_TYPE, GEOJSON)], collection.to_string()).into_response())
        }
    }
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
/// Far beyond every time that a phone can say, and far from an overflow.
const TIME_MAX: Time = Time(i64::MAX / 2);
const DAY: std::time::Duration = std::time::Duration::from_secs(24 * 3600);
