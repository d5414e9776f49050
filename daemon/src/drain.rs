//! Stopping in order. Every task is spawned here with a name, is told to stop through one token, and is waited for;
//! a task that fails or dies takes the process into the same ordered stop instead of leaving it half alive.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, warn};

/// Cheap to clone; all clones are one drain.
#[derive(Clone, Debug)]
pub struct Drain {
    token: CancellationToken,
    tracker: TaskTracker,
    failure: Arc<Mutex<Option<String>>>,
}

impl Default for Drain {
    fn default() -> Self {
        Drain { token: CancellationToken::new(), tracker: TaskTracker::new(), failure: Arc::default() }
    }
}

impl Drain {
    /// Cancelled when it is time to stop.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// A part with a token of its own, that stops before the whole does and is waited for with it.
    pub fn part(&self) -> Drain {
        Drain { token: self.token.child_token(), tracker: TaskTracker::new(), failure: self.failure.clone() }
    }

    /// Runs a task to its end. An error or a panic is logged once and stops the whole drain.
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let drain = self.clone();
        self.tracker.spawn(async move {
            let outcome = tokio::spawn(task).await;
            match outcome {
                Ok(Ok(())) => debug!(task = name, "ended"),
                Ok(Err(error)) => drain.fail(name, format!("{error:#}")),
                Err(error) => drain.fail(name, error.to_string()),
            }
        });
    }

    /// The whole is to stop because of this.
    pub fn fail(&self, name: &str, reason: String) {
        error!(task = name, error = reason, "task failed");
        let mut failure = self.failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        failure.get_or_insert_with(|| format!("{name}: {reason}"));
        self.token.cancel();
    }

    /// Why it stopped by itself, if it did.
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Tells all to stop and waits for them; false if some had not ended after `grace`.
    pub async fn stop(&self, grace: Duration) -> bool {
        self.token.cancel();
        self.tracker.close();
        let ended = tokio::time::timeout(grace, self.tracker.wait()).await.is_ok();
        if !ended {
            warn!(tasks = self.tracker.len(), "some tasks did not end in time");
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failing_task_stops_all_others_and_says_why() {
        let drain = Drain::default();
        let token = drain.token().clone();
        drain.spawn("waits", async move {
            token.cancelled().await;
            Ok(())
        });

        drain.spawn("fails", async { Err(anyhow::anyhow!("no more disk")) });

        assert!(drain.stop(Duration::from_secs(5)).await);
        assert_eq!(drain.failure().as_deref(), Some("fails: no more disk"));
    }

    #[tokio::test]
    async fn a_panic_in_a_task_is_a_failure_and_not_a_silence() {
        let drain = Drain::default();

        drain.spawn("breaks", async { panic!("broken") });
        drain.token().cancelled().await;

        assert!(drain.failure().is_some_and(|reason| reason.contains("breaks")));
    }

    #[tokio::test]
    async fn a_part_can_stop_before_the_whole() {
        let drain = Drain::default();
        let part = drain.part();

        part.stop(Duration::from_secs(1)).await;

        assert!(!drain.token().is_cancelled());
    }
}
