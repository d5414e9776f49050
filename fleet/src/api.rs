//! The REST API as a shop's server would use it: drivers and devices enrolled, deliveries created and moved along.
//! What cannot be reached is asked again, under the same idempotency key, until it answers.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use phone::Clock;
use phone::driver::{Credential, HttpClients, HttpError};
use protocol::record::Vehicle;
use protocol::{DeliveryId, DeliveryState, DriverId, Position};
use reqwest::{Method, RequestBuilder, StatusCode, Url};
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::debug;

/// A tenant's key, `wft_…`. Prints as stars.
#[derive(Clone, PartialEq, Eq)]
pub struct TenantKey(String);

impl TenantKey {
    pub fn new(text: impl Into<String>) -> Self {
        TenantKey(text.into())
    }
}

impl std::fmt::Debug for TenantKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("address {0} cannot be used")]
    Address(String, #[source] HttpError),
    #[error("the API cannot be reached")]
    Unreachable(#[source] reqwest::Error),
    #[error("answered {status} to {path}: {detail}")]
    Refused { status: StatusCode, path: String, detail: String },
    #[error("the answer to {path} is not what it should be")]
    Answer { path: String, source: serde_json::Error },
}

impl ApiError {
    pub fn is_transient(&self) -> bool {
        match self {
            ApiError::Unreachable(_) => true,
            ApiError::Refused { status, .. } => {
                status.is_server_error()
                    || matches!(*status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
            }
            ApiError::Address(..) | ApiError::Answer { .. } => false,
        }
    }

    pub fn is_conflict(&self) -> bool {
        matches!(self, ApiError::Refused { status: StatusCode::CONFLICT, .. })
    }
}

/// A tenant at its API. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    base: Url,
    key: TenantKey,
    http: reqwest::Client,
    clock: Arc<dyn Clock>,
    /// Distinguishes the requests of this run from those of every other.
    run: u64,
    requests: Arc<AtomicU64>,
    failures: Arc<AtomicU64>,
}

/// Where a delivery begins or ends.
#[derive(Clone, Debug)]
pub struct StopAt {
    pub position: Position,
    pub label: String,
}

#[derive(Deserialize)]
struct DriverMade {
    driver: DriverId,
}

#[derive(Deserialize)]
struct DeviceMade {
    credential: String,
}

#[derive(Deserialize)]
struct DeliveryMade {
    delivery: DeliveryId,
}

#[derive(Deserialize)]
struct DeliveryShown {
    status: DeliveryState,
}

impl Api {
    pub fn new(
        base: &str,
        pin: Option<[u8; 32]>,
        key: TenantKey,
        http: &HttpClients,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ApiError> {
        let wrong = |error| ApiError::Address(base.to_string(), error);
        let base = phone::driver::checked_url(base).map_err(wrong)?;
        let http = http.client(pin).map_err(wrong)?;
        Ok(Api { base, key, http, clock, run: rand::random(), requests: Arc::default(), failures: Arc::default() })
    }

    /// Requests that had to be made again.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    pub async fn create_driver(&self, name: &str, vehicle: Vehicle) -> Result<u32, ApiError> {
        let made: DriverMade = self.post("drivers", json!({ "name": name, "vehicle": vehicle })).await?;
        Ok(made.driver.0)
    }

    pub async fn enrol(&self, driver: u32) -> Result<Credential, ApiError> {
        let made: DeviceMade = self.post("devices", json!({ "driver": driver })).await?;
        Ok(Credential::new(made.credential))
    }

    pub async fn create_delivery(
        &self,
        pickup: &StopAt,
        drop_off: &StopAt,
        reference: &str,
        driver: Option<u32>,
    ) -> Result<u64, ApiError> {
        let stop = |kind: &str, stop: &StopAt| json!({ "kind": kind, "lat": stop.position.lat(), "lng": stop.position.lon(), "label": stop.label });
        let stops = [stop("pickup", pickup), stop("drop_off", drop_off)];
        let body = json!({ "stops": stops, "reference": reference, "driver": driver });
        let made: DeliveryMade = self.post("deliveries", body).await?;
        Ok(made.delivery.0)
    }

    pub async fn assign(&self, delivery: u64, driver: Option<u32>) -> Result<(), ApiError> {
        let _: Value = self.post(&format!("deliveries/{delivery}/assign"), json!({ "driver": driver })).await?;
        Ok(())
    }

    pub async fn change_status(&self, delivery: u64, status: DeliveryState) -> Result<(), ApiError> {
        let _: Value = self.post(&format!("deliveries/{delivery}/status"), json!({ "status": status.name() })).await?;
        Ok(())
    }

    pub async fn status(&self, delivery: u64) -> Result<DeliveryState, ApiError> {
        let path = format!("deliveries/{delivery}");
        let shown: DeliveryShown = self.repeat(&path, || self.request(Method::GET, &path)).await?;
        Ok(shown.status)
    }

    /// Delivered, once the tracker has seen the driver leave the pickup. Where it does not see that for a while the
    /// driver says himself that he has it; then the answer is true.
    pub async fn deliver(&self, delivery: u64) -> Result<bool, ApiError> {
        for _ in 0..PICKED_UP_TRIES {
            match self.status(delivery).await? {
                DeliveryState::PickedUp => {
                    self.change_status(delivery, DeliveryState::Delivered).await?;
                    return Ok(false);
                }
                DeliveryState::Delivered => return Ok(false),
                DeliveryState::Received
                | DeliveryState::Accepted
                | DeliveryState::Preparing
                | DeliveryState::Ready
                | DeliveryState::Failed => self.sleep(PICKED_UP_WAIT).await,
            }
        }
        match self.change_status(delivery, DeliveryState::PickedUp).await {
            Err(error) if !error.is_conflict() => return Err(error),
            _ => {}
        }
        self.change_status(delivery, DeliveryState::Delivered).await?;
        Ok(true)
    }

    async fn post<T: for<'de> Deserialize<'de>>(&self, path: &str, body: Value) -> Result<T, ApiError> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let idempotency = format!("fleet-{:016x}-{number}", self.run);
        let request = || self.request(Method::POST, path).header("idempotency-key", &idempotency).json(&body);
        self.repeat(path, request).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut url = self.base.clone();
        url.set_path(&format!("{}/api/v1/{path}", self.base.path().trim_end_matches('/')));
        self.http.request(method, url).bearer_auth(&self.key.0).timeout(REQUEST_TIMEOUT)
    }

    /// Until it is answered. Whoever does not want to wait for ever drops the future.
    async fn repeat<T: for<'de> Deserialize<'de>>(
        &self,
        path: &str,
        request: impl Fn() -> RequestBuilder,
    ) -> Result<T, ApiError> {
        let mut wait = RETRY_FIRST;
        loop {
            match answer(path, request()).await {
                Err(error) if error.is_transient() => {
                    debug!(error = &error as &dyn std::error::Error, "asking again");
                    self.failures.fetch_add(1, Ordering::Relaxed);
                }
                outcome => return outcome,
            }
            tokio::time::sleep(wait.mul_f64(rand::random_range(0.5..=1.0))).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + use<> {
        tokio::time::sleep(self.clock.real(duration))
    }
}

async fn answer<T: for<'de> Deserialize<'de>>(path: &str, request: RequestBuilder) -> Result<T, ApiError> {
    let response = request.send().await.map_err(ApiError::Unreachable)?;
    let status = response.status();
    let body = response.bytes().await.map_err(ApiError::Unreachable)?;
    if !status.is_success() {
        let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
        let detail = problem["detail"].as_str().unwrap_or("without saying why").to_string();
        return Err(ApiError::Refused { status, path: path.to_string(), detail });
    }
    serde_json::from_slice(&body).map_err(|source| ApiError::Answer { path: path.to_string(), source })
}

const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);
const PICKED_UP_TRIES: u32 = 10;
const PICKED_UP_WAIT: Duration = Duration::from_secs(3);
