//! What the errors of the seams become as problems (`daemon::problem`). What does not exist and what is another
//! tenant's are the same problem.

use std::time::{Duration, Instant};

use axum::response::{IntoResponse, Response};
use backends::ledger::LedgerError;
use backends::live_store::LiveStoreError;
use backends::log::LogError;
use backends::registry::RegistryError;
use backends::trail_store::TrailStoreError;
use daemon::RequestId;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tracing::{debug, error, warn};

use crate::stream::customer::ViewError;

pub(crate) use daemon::ProblemKind;

/// A problem of this API: the daemon's, made from the errors of the seams behind it.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Problem(daemon::Problem);

impl Problem {
    pub fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
        Problem(daemon::Problem::new(kind, detail))
    }

    pub fn with(self, name: &str, value: Value) -> Self {
        Problem(self.0.with(name, value))
    }

    pub fn kind(&self) -> ProblemKind {
        self.0.kind
    }

    pub fn no_delivery() -> Self {
        Problem::new(ProblemKind::NotFound, "no such delivery is known under this token")
    }

    pub fn no_driver() -> Self {
        Problem::new(ProblemKind::NotFound, "no such driver is known under this token")
    }

    pub fn unavailable(what: &str) -> Self {
        Problem::new(ProblemKind::Unavailable, format!("{what} cannot be reached"))
    }

    pub fn no_room() -> Self {
        Problem::new(ProblemKind::Unavailable, "no more streams can be opened here")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

impl From<daemon::Problem> for Problem {
    fn from(problem: daemon::Problem) -> Self {
        Problem(problem)
    }
}

impl From<LedgerError> for Problem {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::NotFound { .. } => Problem::no_delivery(),
            LedgerError::Exists { .. } => Problem::new(ProblemKind::Conflict, error.to_string()),
            LedgerError::Transition { from, allowed, .. } => {
                let allowed: Vec<&str> = allowed.iter().map(|state| state.name()).collect();
                Problem::new(ProblemKind::Transition, error.to_string())
                    .with("from", json!(from.name()))
                    .with("allowed", json!(allowed))
            }
            LedgerError::Finished { state } => Problem::new(ProblemKind::Transition, error.to_string())
                .with("from", json!(state.name()))
                .with("allowed", json!([])),
            LedgerError::Open { state } => Problem::new(ProblemKind::Transition, error.to_string())
                .with("from", json!(state.name()))
                .with("allowed", json!(state.allowed_next().iter().map(|state| state.name()).collect::<Vec<_>>())),
            LedgerError::DriverFull { .. } => Problem::new(ProblemKind::Conflict, error.to_string()),
            LedgerError::Invalid { .. } | LedgerError::IdempotencyMismatch => {
                Problem::new(ProblemKind::Unprocessable, error.to_string())
            }
            LedgerError::Unavailable { .. } => away("the ledger", &error),
            LedgerError::Refused { .. } | LedgerError::Damaged { .. } => failed(&error),
        }
    }
}

impl From<RegistryError> for Problem {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::NoTenant { .. } => Problem::new(ProblemKind::NotFound, "no such tenant is known"),
            RegistryError::NoDriver { .. } => Problem::no_driver(),
            RegistryError::NoDevice => Problem::new(ProblemKind::NotFound, "no such device is known under this token"),
            RegistryError::ExternalIdTaken { .. } | RegistryError::Exhausted { .. } => {
                Problem::new(ProblemKind::Conflict, error.to_string())
            }
            RegistryError::Invalid { .. } | RegistryError::IdempotencyMismatch | RegistryError::OtherSecret => {
                Problem::new(ProblemKind::Unprocessable, error.to_string())
            }
            RegistryError::Unavailable { .. } => away("the registry", &error),
            RegistryError::Refused { .. } | RegistryError::Damaged { .. } => failed(&error),
        }
    }
}

impl From<TrailStoreError> for Problem {
    fn from(error: TrailStoreError) -> Self {
        match error {
            TrailStoreError::Unavailable { .. } => away("history", &error),
            TrailStoreError::Damaged { .. } => failed(&error),
        }
    }
}

impl From<LiveStoreError> for Problem {
    fn from(error: LiveStoreError) -> Self {
        match error {
            LiveStoreError::Unavailable { .. } => away("the live store", &error),
        }
    }
}

impl From<LogError> for Problem {
    fn from(error: LogError) -> Self {
        if error.is_transient() { away("the log", &error) } else { failed(&error) }
    }
}

impl From<ViewError> for Problem {
    fn from(error: ViewError) -> Self {
        match error {
            ViewError::NotFound => Problem::no_delivery(),
            ViewError::NotHere => Problem::new(ProblemKind::Unavailable, error.to_string()),
            ViewError::Ledger(error) => error.into(),
        }
    }
}

/// What went wrong is for the log; the peer is told only whose fault it is.
fn failed(error: &dyn std::error::Error) -> Problem {
    let request_id = RequestId::current();
    error!(error = %error, request_id = request_id.as_ref().map(RequestId::as_str), "a request failed");
    Problem::new(ProblemKind::Internal, "the failure was logged")
}

/// While a store is away every request fails in the same way: one of them a second is a warning, the others are for
/// those who debug.
fn away(what: &str, error: &dyn std::error::Error) -> Problem {
    let request_id = RequestId::current();
    let request_id = request_id.as_ref().map(RequestId::as_str);
    if WARNINGS.is_due(Instant::now()) {
        warn!(error = %error, request_id, "a request was turned away: {what} cannot be reached");
    } else {
        debug!(error = %error, request_id, "a request was turned away: {what} cannot be reached");
    }
    Problem::unavailable(what)
}

static WARNINGS: OncePerSecond = OncePerSecond(Mutex::new(None));

/// When something was last said.
struct OncePerSecond(Mutex<Option<Instant>>);

impl OncePerSecond {
    /// Whether a second has passed since this was last true.
    fn is_due(&self, now: Instant) -> bool {
        let mut last = self.0.lock();
        let is_due = last.is_none_or(|last| now.duration_since(last) >= Duration::from_secs(1));
        if is_due {
            *last = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_is_away_is_warned_of_once_a_second() {
        let warnings = OncePerSecond(Mutex::new(None));
        let begin = Instant::now();
        let due = |millis| warnings.is_due(begin + Duration::from_millis(millis));

        assert!(due(0), "the first is said at once");
        assert!(!due(1));
        assert!(!due(999));
        assert!(due(1000));
        assert!(!due(1999));
        assert!(due(60_000));
    }
}
