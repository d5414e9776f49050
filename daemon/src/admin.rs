//! The admin port: `/livez`, `/readyz`, `/metrics`. Ready is a latch per part: a daemon is ready when all its parts
//! have said so and it does not drain.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio_util::sync::CancellationToken;

use crate::meter::Exposition;

/// How a part stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Health {
    Starting,
    Ready,
    /// Works, but not as well as it should: still ready.
    Degraded(String),
}

/// What the parts of a daemon say of themselves. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    parts: Arc<Mutex<BTreeMap<&'static str, Health>>>,
}

impl Readiness {
    pub fn set(&self, part: &'static str, health: Health) {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).insert(part, health);
    }

    pub fn is_ready(&self) -> bool {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.values().all(|health| *health != Health::Starting)
    }

    /// A line for each part.
    pub fn describe(&self) -> String {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let line = |(part, health): (&&str, &Health)| match health {
            Health::Starting => format!("{part}: starting\n"),
            Health::Ready => format!("{part}: ready\n"),
            Health::Degraded(reason) => format!("{part}: degraded, {reason}\n"),
        };
        parts.iter().map(line).collect()
    }
}

/// The routes of the admin port.
pub fn router(readiness: Readiness, exposition: Exposition, stopping: CancellationToken) -> Router {
    let readyz = move || {
        let is_ready = readiness.is_ready() && !stopping.is_cancelled();
        let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let text = readiness.describe();
        async move { (status, text) }
    };
    let metrics = move || {
        let text = exposition.render();
        async move { ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response() }
    };
    Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_is_ready_only_when_all_its_parts_are() {
        let readiness = Readiness::default();
        readiness.set("log", Health::Ready);
        readiness.set("map", Health::Starting);
        assert!(!readiness.is_ready());

        readiness.set("map", Health::Degraded("no map here".to_string()));

        assert!(readiness.is_ready());
    }
}
