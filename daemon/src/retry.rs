//! Trying again: exponential back-off with jitter, for errors that say they are transient, until the drain stops.

use std::time::Duration;

use rand::Rng;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// How long to wait between tries.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    pub first: Duration,
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { first: Duration::from_millis(50), max: Duration::from_secs(5) }
    }
}

impl Backoff {
    /// The wait after the n-th failure, n from 0, with full jitter over its upper half.
    pub fn delay(&self, failures: u32) -> Duration {
        let full = self.first.saturating_mul(1 << failures.min(20)).min(self.max);
        full.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

/// Repeats `attempt` until it succeeds, fails for good, or `stop` is cancelled (then the last error is answered).
pub async fn retry<T, E, F>(
    what: &'static str,
    backoff: Backoff,
    stop: &CancellationToken,
    is_transient: impl Fn(&E) -> bool,
    mut attempt: impl FnMut() -> F,
) -> Result<T, E>
where
    E: std::fmt::Display,
    F: Future<Output = Result<T, E>>,
{
    let mut failures = 0;
    loop {
        let error = match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if !is_transient(&error) => return Err(error),
            Err(error) => error,
        };
        if failures == 0 || failures % 16 == 0 {
            warn!(%error, failures, "{what} failed, trying again");
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.delay(failures)) => failures = failures.saturating_add(1),
            () = stop.cancelled() => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_tries_until_it_succeeds_and_gives_up_on_what_is_final() {
        let stop = CancellationToken::new();
        let mut tries = 0;

        let answer = retry(
            "count",
            Backoff::default(),
            &stop,
            |e: &String| e != "final",
            || {
                tries += 1;
                let outcome = if tries < 5 { Err("later".to_string()) } else { Ok(tries) };
                async move { outcome }
            },
        );

        assert_eq!(answer.await, Ok(5));
        let failed: Result<(), String> =
            retry("fail", Backoff::default(), &stop, |e| e != "final", || async { Err("final".to_string()) }).await;
        assert_eq!(failed, Err("final".to_string()));
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_when_told_to_stop() {
        let stop = CancellationToken::new();
        stop.cancel();

        let answer: Result<(), String> =
            retry("wait", Backoff::default(), &stop, |_| true, || async { Err("away".to_string()) }).await;

        assert_eq!(answer, Err("away".to_string()));
    }
}
