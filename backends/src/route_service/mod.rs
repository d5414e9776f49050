//! Another engine that plans the ways: OSRM or Valhalla, over HTTP. Without one the processor plans on its own map.
//!
//! **Contract:** a way that is answered begins at 0 cm and 0 ms, has at least two and at most `WAY_POINTS_MAX` points,
//! and neither distance nor time falls along it; both ends lie within `END_OFF_M_MAX` of what was asked for. Whatever
//! the engine sends, and however slowly, an answer or an error comes within the settings' time-out; it never panics
//! and never holds more than the settings' bytes. Only what may pass by itself is tried again.

#[cfg(test)]
mod conformance;
mod http;
mod osrm;
#[cfg(test)]
mod real;
mod settings;
mod valhalla;
mod way;

use std::sync::Arc;

use async_trait::async_trait;
use protocol::Position;
use protocol::record::{PlannedPoint, Vehicle};

pub use osrm::Osrm;
pub use settings::{
    OsrmConfig, OsrmSettings, RouterConfig, RouterConfigError, RouterKind, RouterSettings, ValhallaConfig,
    ValhallaSettings,
};
pub use valhalla::Valhalla;

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RouteServiceError {
    /// The engine is well and says that there is no way, or no road near one of the ends.
    #[error("there is no way: {reason}")]
    NoWay { reason: String },
    /// The engine does not serve this vehicle.
    #[error("the route service has no profile for {vehicle:?}")]
    NoProfile { vehicle: Vehicle },
    /// The engine refuses what we ask: a wrong address, profile or limit.
    #[error("the route service refuses: {reason}")]
    Refused { reason: String },
    /// What came back is no route.
    #[error("the route service's answer makes no sense: {reason}")]
    Malformed { reason: String },
    #[error("the route service's answer is larger than {bytes_max} bytes")]
    TooLarge { bytes_max: usize },
    #[error("the route service cannot be reached: {reason}")]
    Unavailable { reason: String },
}

impl RouteServiceError {
    /// May pass by itself.
    pub fn is_transient(&self) -> bool {
        matches!(self, RouteServiceError::Unavailable { .. })
    }
}

#[async_trait]
pub trait RouteService: Send + Sync + 'static {
    /// The fastest way from a place to another.
    async fn route(
        &self,
        from: Position,
        to: Position,
        vehicle: Vehicle,
    ) -> Result<Vec<PlannedPoint>, RouteServiceError>;
}

/// The engine that the settings name; None where ways are planned on our own map alone.
pub fn open(config: &RouterConfig) -> Result<Option<Arc<dyn RouteService>>, RouteServiceError> {
    Ok(match config {
        RouterConfig::Embedded => None,
        RouterConfig::Osrm(config) => Some(Arc::new(Osrm::open(config.clone())?)),
        RouterConfig::Valhalla(config) => Some(Arc::new(Valhalla::open(config.clone())?)),
    })
}

/// More than any way within a region has, and at 16 bytes each well within an entry of the log.
pub const WAY_POINTS_MAX: usize = 30_000;
/// An engine that begins or ends further off plans another trip than the one asked for.
pub const END_OFF_M_MAX: f64 = 1_000.0;
