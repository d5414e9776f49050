//! Stopping in order. Every task and thread is spawned here with a name, is told to stop through one token, and is
//! waited for. A part that ends before it is told to, by an error, a panic, or for no reason at all, ends the process in
//! the same ordered stop, with the reason, instead of leaving it half alive.
//!
//! A drain has parts (`part`), which stop one after another. A failure in any of them is the whole's: whoever runs the
//! process waits for `failed`.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, warn};

/// Cheap to clone; all clones are one drain.
#[derive(Clone, Debug)]
pub struct Drain {
    token: CancellationToken,
    tracker: TaskTracker,
    names: Names,
    whole: Arc<Whole>,
}

/// What a drain and all its parts share.
#[derive(Debug, Default)]
struct Whole {
    failed: CancellationToken,
    failure: Mutex<Option<String>>,
}

/// Who has not ended, to say who holds a stop.
type Names = Arc<Mutex<Vec<String>>>;

/// How long something that was spawned is meant to last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lasts {
    /// Until it is told to stop.
    UntilStopped,
    /// Until its work is done.
    UntilDone,
}

impl Default for Drain {
    fn default() -> Self {
        Drain {
            token: CancellationToken::new(),
            tracker: TaskTracker::new(),
            names: Names::default(),
            whole: Arc::default(),
        }
    }
}

impl Drain {
    /// Cancelled when it is time to stop.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Cancelled when anything that was spawned here, or in any part, has failed.
    pub fn failed(&self) -> &CancellationToken {
        &self.whole.failed
    }

    /// A part with a token of its own, that stops before the whole does and is waited for with it. Its failure is the
    /// whole's.
    pub fn part(&self) -> Drain {
        Drain {
            token: self.token.child_token(),
            tracker: TaskTracker::new(),
            names: Names::default(),
            whole: self.whole.clone(),
        }
    }

    /// Runs a part of the process, which lasts until it is told to stop. An error, a panic or an earlier end is a
    /// failure.
    pub fn spawn<F>(&self, name: impl Into<String>, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.spawn_task(name.into(), Lasts::UntilStopped, task);
    }

    /// Runs a piece of work to its end. An error or a panic is a failure.
    pub fn spawn_job<F>(&self, name: impl Into<String>, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.spawn_task(name.into(), Lasts::UntilDone, task);
    }

    fn spawn_task<F>(&self, name: String, lasts: Lasts, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let drain = self.clone();
        let under_way = self.enter(&name);
        self.tracker.spawn(async move {
            let outcome = match tokio::spawn(task).await {
                Ok(outcome) => outcome.map_err(|error| format!("{error:#}")),
                Err(error) if error.is_panic() => Err(said_by(error.into_panic().as_ref())),
                Err(error) => Err(error.to_string()),
            };
            drain.handle_end(&name, lasts, outcome);
            drop(under_way);
        });
    }

    /// Runs a thread of the system, which lasts until it is told to stop. Its end is watched like a task's.
    pub fn spawn_thread<F>(&self, name: impl Into<String>, body: F) -> std::io::Result<()>
    where
        F: FnOnce() -> anyhow::Result<()> + Send + 'static,
    {
        let name = name.into();
        let (ends, ended) = oneshot::channel();
        let body = move || {
            // What the thread worked on is given up with it, so nobody sees it half done.
            let outcome = match catch_unwind(AssertUnwindSafe(body)) {
                Ok(outcome) => outcome.map_err(|error| format!("{error:#}")),
                Err(panic) => Err(said_by(panic.as_ref())),
            };
            let _nobody_waits = ends.send(outcome);
        };
        std::thread::Builder::new().name(name.clone()).spawn(body)?;
        let drain = self.clone();
        let under_way = self.enter(&name);
        self.tracker.spawn(async move {
            let outcome = ended.await.unwrap_or_else(|_| Err("the thread died".to_string()));
            drain.handle_end(&name, Lasts::UntilStopped, outcome);
            drop(under_way);
        });
        Ok(())
    }

    fn handle_end(&self, name: &str, lasts: Lasts, outcome: Result<(), String>) {
        match outcome {
            Err(reason) => self.fail(name, reason),
            Ok(()) if lasts == Lasts::UntilStopped && !self.token.is_cancelled() => {
                self.fail(name, "ended before it was told to".to_string());
            }
            Ok(()) => debug!(task = name, "ended"),
        }
    }

    /// The whole is to stop because of this. What is told to stop at once is this part only; the others follow in
    /// their order.
    pub fn fail(&self, name: &str, reason: String) {
        error!(task = name, error = reason, "task failed");
        let mut failure = self.whole.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert_with(|| format!("{name}: {reason}"));
        drop(failure);
        self.token.cancel();
        self.whole.failed.cancel();
    }

    /// Why it stopped by itself, if it did.
    pub fn failure(&self) -> Option<String> {
        self.whole.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells all to stop and waits for them; false if some had not ended after `grace`.
    pub async fn stop(&self, grace: Duration) -> bool {
        self.token.cancel();
        self.tracker.close();
        let ended = tokio::time::timeout(grace, self.tracker.wait()).await.is_ok();
        if !ended {
            let names = self.names.lock().unwrap_or_else(PoisonError::into_inner).join(", ");
            warn!(tasks = names, "some tasks did not end in time");
        }
        ended
    }

    fn enter(&self, name: &str) -> UnderWay {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).push(name.to_string());
        UnderWay { names: self.names.clone(), name: name.to_string() }
    }
}

/// One that has not ended.
struct UnderWay {
    names: Names,
    name: String,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = names.iter().position(|name| *name == self.name) {
            names.swap_remove(at);
        }
    }
}

fn said_by(panic: &(dyn Any + Send)) -> String {
    let said = panic.downcast_ref::<&str>().map(|text| (*text).to_string());
    let said = said.or_else(|| panic.downcast_ref::<String>().cloned());
    said.map_or_else(|| "panicked".to_string(), |said| format!("panicked: {said}"))
}

impl fmt::Debug for UnderWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
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

        drain.failed().cancelled().await;
        assert!(drain.stop(Duration::from_secs(5)).await);
        assert_eq!(drain.failure().as_deref(), Some("fails: no more disk"));
    }

    #[tokio::test]
    async fn a_panic_and_an_end_too_early_are_failures_and_no_silence() {
        let breaks = Drain::default();
        breaks.spawn("breaks", async { panic!("broken") });
        breaks.token().cancelled().await;
        let leaves = Drain::default();
        leaves.spawn("leaves", async { Ok(()) });
        leaves.token().cancelled().await;

        assert_eq!(breaks.failure().as_deref(), Some("breaks: panicked: broken"));
        assert_eq!(leaves.failure().as_deref(), Some("leaves: ended before it was told to"));
    }

    #[tokio::test]
    async fn a_thread_is_watched_like_a_task() {
        type Body = fn() -> anyhow::Result<()>;
        let cases: [(Body, &str); 3] = [
            (|| Err(anyhow::anyhow!("no socket")), "no socket"),
            (|| panic!("broken"), "broken"),
            (|| Ok(()), "before it was told to"),
        ];
        for (body, wanted) in cases {
            let drain = Drain::default();

            drain.spawn_thread("udp 0", body).unwrap();
            drain.failed().cancelled().await;

            let failure = drain.failure().unwrap();
            assert!(failure.starts_with("udp 0: ") && failure.contains(wanted), "{failure}");
        }
    }

    #[tokio::test]
    async fn a_failure_in_a_part_is_the_whole_s_and_the_other_parts_stop_in_their_order() {
        let whole = Drain::default();
        let (first, second) = (whole.part(), whole.part());

        second.spawn("fsync", async { Err(anyhow::anyhow!("no more disk")) });
        whole.failed().cancelled().await;

        assert_eq!(whole.failure().as_deref(), Some("fsync: no more disk"));
        assert!(second.token().is_cancelled());
        assert!(!first.token().is_cancelled() && !whole.token().is_cancelled());
    }

    #[tokio::test]
    async fn a_job_may_end_and_a_part_that_was_told_to_stop_too() {
        let drain = Drain::default();
        let token = drain.token().clone();
        drain.spawn_job("keeps a snapshot", async { Ok(()) });
        drain.spawn("waits", async move {
            token.cancelled().await;
            Ok(())
        });

        assert!(drain.stop(Duration::from_secs(5)).await);

        assert_eq!(drain.failure(), None);
        assert!(drain.names.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_part_can_stop_before_the_whole() {
        let drain = Drain::default();
        let part = drain.part();

        part.stop(Duration::from_secs(1)).await;

        assert!(!drain.token().is_cancelled());
    }
}
