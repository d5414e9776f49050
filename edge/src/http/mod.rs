//! The HTTP doors: sealed datagrams in a body where a network lets nothing else through, and plain JSON where a device
//! cannot seal. Both go the way of every datagram: to a UDP thread, which judges, ships and answers.

mod datagrams;
mod fixes;
mod limit;
mod locations;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::post;
use backends::control::Control;
use daemon::{Clock, Problem, ProblemKind};
use tokio::sync::watch;

use crate::metrics::DoorMetrics;
use crate::ship::LogState;
use crate::udp::inbox::ThreadPort;
pub use limit::DeviceLimit;

/// What the doors need. Cheap to clone.
#[derive(Clone)]
pub struct DoorState(pub(crate) Arc<DoorParts>);

pub struct DoorParts {
    pub threads: Vec<ThreadPort>,
    pub control: watch::Receiver<Arc<Control>>,
    pub log_state: LogState,
    pub limit: Arc<DeviceLimit>,
    pub metrics: DoorMetrics,
    pub clock: Clock,
    pub fixes_max: usize,
    pub bytes_max: usize,
    pub wait_max: Duration,
}

impl DoorState {
    pub fn new(parts: DoorParts) -> Self {
        DoorState(Arc::new(parts))
    }

    pub(crate) fn control(&self) -> Arc<Control> {
        self.0.control.borrow().clone()
    }
}

/// To be served alone, or beside the gateway's.
pub fn router(state: DoorState) -> Router {
    Router::new()
        .route("/api/v1/tracking/locations", post(locations::post))
        .route("/v1/datagrams", post(datagrams::post))
        .method_not_allowed_fallback(no_method)
        .with_state(state)
}

async fn no_method() -> Problem {
    Problem::new(ProblemKind::MethodNotAllowed, "this door takes POST")
}

/// What a client is told to wait when we cannot take its fixes.
const RETRY_AFTER: Duration = Duration::from_secs(5);
