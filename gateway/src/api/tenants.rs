//! Tenants, drivers and devices.

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use backends::registry::{Asker, Driver, DriverChange, Made, New};
use http::{HeaderValue, StatusCode, header::CACHE_CONTROL};
use protocol::delivery::ABANDONED_AFTER_H_MAX;
use protocol::record::Vehicle;
use protocol::{DeliveryPolicy, DeviceKey, DeviceNumber, DriverId, TenantId};
use serde::{Deserialize, Serialize};

use super::Api;
use super::auth::{OfOperator, OfTenant};
use super::cursor::{self, Cursor, List};
use super::input::{DevicePath, DriverPath, Input, Params, checked_text, impossible};
use super::problem::{Problem, ProblemKind};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewTenant {
    name: String,
    #[serde(default)]
    policy: PolicyPatch,
}

/// The parts of a policy that differ from what stands behind it.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PolicyPatch {
    auto_picked_up: Option<bool>,
    auto_arriving: Option<bool>,
    stale_after_s: Option<u16>,
    unavailable_after_s: Option<u16>,
    expected_interval_s: Option<u16>,
    abandoned_after_h: Option<u16>,
}

impl PolicyPatch {
    pub fn applied_to(self, base: DeliveryPolicy) -> Result<DeliveryPolicy, Problem> {
        let policy = DeliveryPolicy {
            auto_picked_up: self.auto_picked_up.unwrap_or(base.auto_picked_up),
            auto_arriving: self.auto_arriving.unwrap_or(base.auto_arriving),
            stale_after_s: self.stale_after_s.unwrap_or(base.stale_after_s),
            unavailable_after_s: self.unavailable_after_s.unwrap_or(base.unavailable_after_s),
            expected_interval_s: self.expected_interval_s.unwrap_or(base.expected_interval_s),
            abandoned_after_h: self.abandoned_after_h.unwrap_or(base.abandoned_after_h),
        };
        let seconds = [policy.stale_after_s, policy.unavailable_after_s, policy.expected_interval_s];
        if seconds.into_iter().any(|value| value == 0) {
            return Err(impossible("the seconds of a policy are at least 1"));
        }
        if !(1..=ABANDONED_AFTER_H_MAX).contains(&policy.abandoned_after_h) {
            return Err(impossible(format!("abandoned_after_h is between 1 and {ABANDONED_AFTER_H_MAX}")));
        }
        if policy.stale_after_s > policy.unavailable_after_s {
            return Err(impossible("a position is stale before it is unavailable"));
        }
        Ok(policy)
    }
}

#[derive(Debug, Serialize)]
struct TenantMade {
    tenant: TenantId,
    name: String,
    policy: DeliveryPolicy,
    /// Told this once.
    key: String,
}

pub(crate) async fn create_tenant(
    State(api): State<Api>,
    _operator: OfOperator,
    input: Input<NewTenant>,
) -> Result<impl IntoResponse, Problem> {
    let once = input.once(Asker::Operator);
    let name = required("name", input.value.name, NAME_CHARS_MAX)?;
    let policy = input.value.policy.applied_to(DeliveryPolicy::default())?;
    let (tenant, key) = match once {
        None => api.registry.create_tenant(&name, policy, api.now()).await?,
        Some(once) => match api.registry.once(once, New::Tenant { name, policy }, api.now()).await? {
            Made::Tenant(tenant, key) => (tenant, key),
            Made::Driver(_) | Made::Device(..) | Made::DeliveryToken(_) => return Err(made_another()),
        },
    };
    api.publish_policy(tenant.id, policy);
    let made = TenantMade { tenant: tenant.id, name: tenant.name, policy, key };
    Ok((StatusCode::CREATED, NO_STORE, Json(made)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewDriver {
    name: String,
    #[serde(default)]
    external_id: String,
    #[serde(default)]
    vehicle: Vehicle,
}

/// The parts of a driver that are to be different.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DriverPatch {
    name: Option<String>,
    vehicle: Option<Vehicle>,
}

#[derive(Debug, Serialize)]
struct DriverOut {
    driver: DriverId,
    name: String,
    external_id: Option<String>,
    vehicle: Vehicle,
}

impl From<Driver> for DriverOut {
    fn from(driver: Driver) -> Self {
        let external_id = Some(driver.external_id).filter(|id| !id.is_empty());
        DriverOut { driver: driver.id, name: driver.name, external_id, vehicle: driver.vehicle }
    }
}

pub(crate) async fn create_driver(
    State(api): State<Api>,
    OfTenant(tenant): OfTenant,
    input: Input<NewDriver>,
) -> Result<impl IntoResponse, Problem> {
    let once = input.once(Asker::Tenant(tenant));
    let name = required("name", input.value.name, NAME_CHARS_MAX)?;
    let external_id = checked_text("external_id", input.value.external_id, NAME_CHARS_MAX)?;
    let vehicle = input.value.vehicle;
    let driver = match once {
        None => api.registry.create_driver(tenant, &name, &external_id, vehicle, api.now()).await?,
        Some(once) => {
            let new = New::Driver { tenant, name, external_id, vehicle };
            match api.registry.once(once, new, api.now()).await? {
                Made::Driver(driver) => driver,
                Made::Tenant(..) | Made::Device(..) | Made::DeliveryToken(_) => return Err(made_another()),
            }
        }
    };
    Ok((StatusCode::CREATED, Json(DriverOut::from(driver))))
}

pub(crate) async fn change_driver(
    State(api): State<Api>,
    OfTenant(tenant): OfTenant,
    DriverPath(driver): DriverPath,
    input: Input<DriverPatch>,
) -> Result<impl IntoResponse, Problem> {
    let DriverPatch { name, vehicle } = input.value;
    let name = name.map(|name| required("name", name, NAME_CHARS_MAX)).transpose()?;
    let change = DriverChange { name, vehicle };
    Ok(Json(DriverOut::from(api.registry.change_driver(tenant, driver, change).await?)))
}

#[derive(Debug, Deserialize)]
pub(crate) struct Page {
    #[serde(default)]
    cursor: Cursor,
    limit: Option<u32>,
}

#[derive(Debug, Serialize)]
struct DriversOut {
    drivers: Vec<DriverOut>,
    /// What to ask for next as `cursor`; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

pub(crate) async fn list_drivers(
    State(api): State<Api>,
    OfTenant(tenant): OfTenant,
    Params(page): Params<Page>,
) -> Result<impl IntoResponse, Problem> {
    let limit = checked_limit(page.limit)?;
    let [after] = page.cursor.read(List::Drivers)?.unwrap_or_default();
    let after = DriverId(u32::try_from(after).unwrap_or(u32::MAX));
    let drivers = api.registry.drivers(tenant, after, limit).await?;
    let last = drivers.last().filter(|_| drivers.len() >= limit as usize);
    let next = last.map(|driver| cursor::write(List::Drivers, [u64::from(driver.id.0)]));
    Ok(Json(DriversOut { drivers: drivers.into_iter().map(DriverOut::from).collect(), next }))
}

pub(crate) async fn driver(
    State(api): State<Api>,
    OfTenant(tenant): OfTenant,
    DriverPath(driver): DriverPath,
) -> Result<impl IntoResponse, Problem> {
    Ok(Json(DriverOut::from(api.registry.driver(tenant, driver).await?)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewDevice {
    driver: DriverId,
}

#[derive(Debug, Serialize)]
struct DeviceMade {
    tenant: TenantId,
    driver: DriverId,
    device: DeviceNumber,
    /// Told this once.
    credential: String,
}

pub(crate) async fn enrol(
    State(api): State<Api>,
    OfTenant(tenant): OfTenant,
    input: Input<NewDevice>,
) -> Result<impl IntoResponse, Problem> {
    let driver = input.value.driver;
    let (device, credential) = match input.once(Asker::Tenant(tenant)) {
        None => api.registry.enrol(tenant, driver, api.now()).await.map_err(named_driver)?,
        Some(once) => {
            let made = api.registry.once(once, New::Device { tenant, driver }, api.now()).await;
            match made.map_err(named_driver)? {
                Made::Device(device, credential) => (device, credential),
                Made::Tenant(..) | Made::Driver(_) | Made::DeliveryToken(_) => return Err(made_another()),
            }
        }
    };
    let made = DeviceMade { tenant: device.tenant, driver: device.driver, device: device.device, credential };
    Ok((StatusCode::CREATED, NO_STORE, Json(made)))
}

/// Answered once the edges can know of it: a revocation that is only in the registry would let the device go on.
pub(crate) async fn revoke(
    State(api): State<Api>,
    OfTenant(tenant): OfTenant,
    DevicePath(driver, device): DevicePath,
) -> Result<impl IntoResponse, Problem> {
    let key = DeviceKey { tenant, driver, device };
    for revoked in api.registry.revoke(key, api.now()).await? {
        api.control_writer.revoke(revoked).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// One key with one request has one kind of answer: the registry keeps that.
pub(crate) fn made_another() -> Problem {
    Problem::new(ProblemKind::Internal, "another thing was made than was asked for")
}

/// A driver named in a body is a value, not a place.
pub(crate) fn named_driver(error: backends::registry::RegistryError) -> Problem {
    let problem = Problem::from(error);
    if problem.kind() == ProblemKind::NotFound {
        return impossible("no such driver is known under this token");
    }
    problem
}

pub(crate) fn checked_limit(limit: Option<u32>) -> Result<u32, Problem> {
    let limit = limit.unwrap_or(PAGE_DEFAULT);
    if (1..=PAGE_MAX).contains(&limit) {
        return Ok(limit);
    }
    Err(Problem::new(ProblemKind::BadRequest, format!("limit is between 1 and {PAGE_MAX}")))
}

fn required(name: &str, text: String, chars_max: usize) -> Result<String, Problem> {
    if text.trim().is_empty() {
        return Err(impossible(format!("{name} must not be empty")));
    }
    checked_text(name, text, chars_max)
}

pub(crate) const NO_STORE: [(http::HeaderName, HeaderValue); 1] =
    [(CACHE_CONTROL, HeaderValue::from_static("no-store"))];
const NAME_CHARS_MAX: usize = 200;

const PAGE_DEFAULT: u32 = 100;
const PAGE_MAX: u32 = 1000;
