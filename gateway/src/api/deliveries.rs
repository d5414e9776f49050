//! Deliveries: created, assigned, moved through their states, cancelled. The ledger decides; a transition that it does
//! not allow is answered with those it does.

use axum::extract::State;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use backends::ledger::{DeliveryFilter, NewDelivery};
use backends::registry::{Asker, Made, New, Once};
use http::{HeaderMap, StatusCode, Uri};
use protocol::delivery::STOPS_MAX;
use protocol::{
    AssignmentNumber, Delivery, DeliveryId, DeliveryKey, DeliveryPolicy, DeliveryState, DriverId, JournalEntry,
    JournalNumber, Position, Stop, StopKind, TenantId, Time,
};
use serde::{Deserialize, Serialize};

use super::Api;
use super::auth::OfTenant;
use super::cursor::{self, Cursor, List};
use super::input::{DeliveryPath, Input, Params, checked_text, impossible};
use super::links::{Base, Links, SecureDoor};
use super::problem::Problem;
use super::tenants::{NO_STORE, PolicyPatch, checked_limit, made_another, named_driver};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewDeliveryBody {
    stops: Vec<NewStop>,
    #[serde(default)]
    reference: String,
    driver: Option<DriverId>,
    id: Option<DeliveryId>,
    #[serde(default)]
    policy: PolicyPatch,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewStop {
    kind: StopKind,
    lat: f64,
    lng: f64,
    #[serde(default)]
    label: String,
    radius_m: Option<u16>,
}

impl NewStop {
    fn checked(self) -> Result<Stop, Problem> {
        let position = Position::from_degrees(self.lat, self.lng).ok_or_else(|| impossible("a stop is on Earth"))?;
        let radius_m = self.radius_m.unwrap_or(RADIUS_M_DEFAULT);
        if !(RADIUS_M_MIN..=RADIUS_M_MAX).contains(&radius_m) {
            return Err(impossible(format!("radius_m is between {RADIUS_M_MIN} and {RADIUS_M_MAX}")));
        }
        Ok(Stop { kind: self.kind, position, radius_m, label: checked_text("label", self.label, TEXT_CHARS_MAX)? })
    }
}

fn checked_stops(stops: Vec<NewStop>) -> Result<Vec<Stop>, Problem> {
    if stops.len() > STOPS_MAX {
        return Err(impossible(format!("a delivery has at most {STOPS_MAX} stops")));
    }
    let stops = stops.into_iter().map(NewStop::checked).collect::<Result<Vec<_>, _>>()?;
    let first_drop_off = stops.iter().position(|stop| stop.kind == StopKind::DropOff);
    let Some(first_drop_off) = first_drop_off else { return Err(impossible("a delivery has a drop_off")) };
    if stops[first_drop_off..].iter().any(|stop| stop.kind == StopKind::Pickup) {
        return Err(impossible("pickups come before drop_offs"));
    }
    Ok(stops)
}

/// A delivery as the API shows it to its tenant.
#[derive(Debug, Serialize)]
struct DeliveryOut {
    delivery: DeliveryId,
    status: DeliveryState,
    /// The states that may follow.
    allowed: &'static [DeliveryState],
    driver: Option<DriverId>,
    assignment: AssignmentNumber,
    reference: String,
    created: Time,
    stops: Vec<StopOut>,
    policy: DeliveryPolicy,
    /// The newest entries.
    journal: Vec<JournalEntry>,
    last_number: JournalNumber,
}

#[derive(Debug, Serialize)]
struct StopOut {
    kind: StopKind,
    lat: f64,
    lng: f64,
    label: String,
    radius_m: u16,
}

impl From<Delivery> for DeliveryOut {
    fn from(delivery: Delivery) -> Self {
        let stop = |stop: Stop| StopOut {
            kind: stop.kind,
            lat: stop.position.lat(),
            lng: stop.position.lon(),
            label: stop.label,
            radius_m: stop.radius_m,
        };
        DeliveryOut {
            delivery: delivery.key.delivery,
            status: delivery.state,
            allowed: delivery.state.allowed_next(),
            driver: delivery.driver,
            assignment: delivery.assignment,
            created: delivery.created,
            last_number: delivery.last_number(),
            stops: delivery.stops.into_iter().map(stop).collect(),
            policy: delivery.policy,
            journal: delivery.journal,
            reference: delivery.reference,
        }
    }
}

#[derive(Debug, Serialize)]
struct DeliveryMade {
    #[serde(flatten)]
    delivery: DeliveryOut,
    /// For the customer: opens this delivery and nothing else. Told this once; another can be made at any time.
    token: String,
    links: Links,
}

pub(crate) async fn create(
    State(api): State<Api>,
    OfTenant(tenant): OfTenant,
    secure: Option<Extension<SecureDoor>>,
    uri: Uri,
    headers: HeaderMap,
    input: Input<NewDeliveryBody>,
) -> Result<impl IntoResponse, Problem> {
    // The ledger remembers the delivery, the registry its token: under a name of its own among the registry's keys.
    let once = input.once(Asker::Tenant(tenant)).map(|mut once| {
        once.idempotency.key.push_str(" (token)");
        once
    });
    let body = input.value;
    if body.id.is_some_and(|id| id.0 == 0 || i64::try_from(id.0).is_err()) {
        return Err(impossible("id is between 1 and 9223372036854775807"));
    }
    let new = NewDelivery {
        tenant,
        id: body.id,
        stops: checked_stops(body.stops)?,
        policy: body.policy.applied_to(api.registry.tenant(tenant).await?.policy)?,
        reference: checked_text("reference", body.reference, TEXT_CHARS_MAX)?,
        driver: body.driver,
    };
    check_driver(&api, tenant, new.driver).await?;
    let delivery = api.ledger.create(new, input.idempotency, api.now()).await?;
    let token = new_token(&api, delivery.key, once).await?;
    let links = Base::of(&api, &uri, &headers, secure.is_some()).links(delivery.key.delivery, &token);
    Ok((StatusCode::CREATED, NO_STORE, Json(DeliveryMade { delivery: delivery.into(), token, links })))
}

/// Bound to what the ledger knows the delivery by, not to its number alone.
async fn new_token(api: &Api, key: DeliveryKey, once: Option<Once>) -> Result<String, Problem> {
    let birth = api.ledger.birth_mark(key).await?;
    let Some(once) = once else { return Ok(api.registry.create_delivery_token(key, birth, api.now()).await?) };
    match api.registry.once(once, New::DeliveryToken { key, birth }, api.now()).await? {
        Made::DeliveryToken(token) => Ok(token),
        Made::Tenant(..) | Made::Driver(_) | Made::Device(..) => Err(made_another()),
    }
}

/// Nothing can be said of a token yet.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewToken {}

#[derive(Debug, Serialize)]
struct TokenMade {
    delivery: DeliveryId,
    token: String,
    links: Links,
}

/// Another token for a delivery that is there: the one made with it is told only once.
pub(crate) async fn create_token(
    State(api): State<Api>,
    OfTenant(tenant): OfTenant,
    DeliveryPath(delivery): DeliveryPath,
    secure: Option<Extension<SecureDoor>>,
    uri: Uri,
    headers: HeaderMap,
    input: Input<NewToken>,
) -> Result<impl IntoResponse, Problem> {
    let key = DeliveryKey { tenant, delivery };
    api.ledger.delivery(key).await?.ok_or_else(Problem::no_delivery)?;
    let token = new_token(&api, key, input.once(Asker::Tenant(tenant))).await?;
    let links = Base::of(&api, &uri, &headers, secure.is_some()).links(delivery, &token);
    Ok((StatusCode::CREATED, NO_STORE, Json(TokenMade { delivery, token, links })))
}

#[derive(Debug, Deserialize)]
pub(crate) struct ListQuery {
    #[serde(default)]
    live: bool,
    #[serde(default)]
    cursor: Cursor,
    driver: Option<u32>,
    limit: Option<u32>,
}

#[derive(Debug, Serialize)]
struct DeliveriesOut {
    deliveries: Vec<DeliveryOut>,
    /// What to ask for next as `cursor`; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

pub(crate) async fn list(
    State(api): State<Api>,
    OfTenant(tenant): OfTenant,
    Params(query): Params<ListQuery>,
) -> Result<impl IntoResponse, Problem> {
    let limit = checked_limit(query.limit)?;
    let [after] = query.cursor.read(List::Deliveries)?.unwrap_or_default();
    let filter = DeliveryFilter {
        after: DeliveryId(after.min(i64::MAX as u64)),
        is_live: query.live,
        driver: query.driver.map(DriverId),
        limit,
    };
    let deliveries = api.ledger.deliveries(tenant, filter).await?;
    let last = deliveries.last().filter(|_| deliveries.len() >= limit as usize);
    let next = last.map(|last| cursor::write(List::Deliveries, [last.key.delivery.0]));
    Ok(Json(DeliveriesOut { deliveries: deliveries.into_iter().map(DeliveryOut::from).collect(), next }))
}

pub(crate) async fn show(
    State(api): State<Api>,
    OfTenant(tenant): OfTenant,
    DeliveryPath(delivery): DeliveryPath,
) -> Result<impl IntoResponse, Problem> {
    let delivery = api.ledger.delivery(DeliveryKey { tenant, delivery }).await?.ok_or_else(Problem::no_delivery)?;
    Ok(Json(DeliveryOut::from(delivery)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Assign {
    /// Null takes the delivery from its driver. It must be said: an empty body changes nothing by mistake.
    #[serde(deserialize_with = "said")]
    driver: Option<DriverId>,
}

/// With `deserialize_with` a missing field is an error, also where it may be null.
fn said<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<DriverId>, D::Error> {
    Option::deserialize(deserializer)
}

pub(crate) async fn assign(
    State(api): State<Api>,
    OfTenant(tenant): OfTenant,
    DeliveryPath(delivery): DeliveryPath,
    input: Input<Assign>,
) -> Result<impl IntoResponse, Problem> {
    let driver = input.value.driver;
    check_driver(&api, tenant, driver).await?;
    let key = DeliveryKey { tenant, delivery };
    let delivery = api.ledger.assign(key, driver, input.idempotency, api.now()).await?;
    Ok(Json(DeliveryOut::from(delivery)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewStatus {
    status: DeliveryState,
    reason: Option<String>,
}

pub(crate) async fn change_status(
    State(api): State<Api>,
    OfTenant(tenant): OfTenant,
    DeliveryPath(delivery): DeliveryPath,
    input: Input<NewStatus>,
) -> Result<impl IntoResponse, Problem> {
    let reason = input.value.reason.map(|text| checked_text("reason", text, TEXT_CHARS_MAX)).transpose()?;
    let key = DeliveryKey { tenant, delivery };
    let delivery = api.ledger.transition(key, input.value.status, reason, input.idempotency, api.now()).await?;
    Ok(Json(DeliveryOut::from(delivery)))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Cancel {
    reason: Option<String>,
}

/// A delivery that is cancelled has failed.
pub(crate) async fn cancel(
    State(api): State<Api>,
    OfTenant(tenant): OfTenant,
    DeliveryPath(delivery): DeliveryPath,
    input: Input<Cancel>,
) -> Result<impl IntoResponse, Problem> {
    let reason = input.value.reason.map(|text| checked_text("reason", text, TEXT_CHARS_MAX)).transpose()?;
    let key = DeliveryKey { tenant, delivery };
    let delivery = api.ledger.transition(key, DeliveryState::Failed, reason, input.idempotency, api.now()).await?;
    Ok(Json(DeliveryOut::from(delivery)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reopen {
    reason: String,
}

/// A correction of a delivery that ended by mistake.
pub(crate) async fn reopen(
    State(api): State<Api>,
    OfTenant(tenant): OfTenant,
    DeliveryPath(delivery): DeliveryPath,
    input: Input<Reopen>,
) -> Result<impl IntoResponse, Problem> {
    let reason = checked_text("reason", input.value.reason, TEXT_CHARS_MAX)?;
    let key = DeliveryKey { tenant, delivery };
    let delivery = api.ledger.reopen(key, reason, input.idempotency, api.now()).await?;
    Ok(Json(DeliveryOut::from(delivery)))
}

async fn check_driver(api: &Api, tenant: TenantId, driver: Option<DriverId>) -> Result<(), Problem> {
    if let Some(driver) = driver {
        api.registry.driver(tenant, driver).await.map_err(named_driver)?;
    }
    Ok(())
}

const TEXT_CHARS_MAX: usize = 200;
const RADIUS_M_DEFAULT: u16 = 60;
const RADIUS_M_MIN: u16 = 10;
const RADIUS_M_MAX: u16 = 2000;
