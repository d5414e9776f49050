//! Appending: what is handed in, what is answered, and how several appends under way keep their order.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::Bytes;
use daemon::Backoff;
use parking_lot::Mutex;
use protocol::{Offset, PartitionId};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Log, LogError, Topic};

/// One entry to append, to a partition that the caller chose. Its bytes are shared, not copied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Append {
    pub topic: Topic,
    pub partition: PartitionId,
    /// What newest-per-key topics go by; empty elsewhere.
    pub key: Bytes,
    /// An envelope (`protocol::envelope`). Empty in a newest-per-key topic means: the key is gone.
    pub value: Bytes,
}

/// Appends in order, several at a time.
#[async_trait]
pub trait Appender: Send {
    /// Begins to append. When it returns, the place of these entries after all that this appender began before is
    /// settled; what it returns says, once awaited, what became of them. Waits while the log holds as much as it may.
    ///
    /// Cancellation safe: nothing is appended unless it has returned.
    async fn begin(&mut self, entries: &[Append]) -> Appending;
}

/// An append under way. Dropping it forgets the answer, and the entries go their way all the same.
pub struct Appending(Pin<Box<dyn Future<Output = Appended> + Send>>);

impl Appending {
    pub fn new(outcome: impl Future<Output = Appended> + Send + 'static) -> Self {
        Appending(Box::pin(outcome))
    }

    /// What needs no waiting.
    pub fn ready(outcome: Appended) -> Self {
        Appending::new(std::future::ready(outcome))
    }
}

impl Future for Appending {
    type Output = Appended;

    fn poll(mut self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<Appended> {
        self.0.as_mut().poll(ctx)
    }
}

/// What became of the entries of one append, in their order.
#[derive(Clone, Debug)]
#[must_use = "entries may have failed"]
pub struct Appended(Vec<Result<Offset, LogError>>);

impl Appended {
    pub fn new(outcomes: Vec<Result<Offset, LogError>>) -> Self {
        Appended(outcomes)
    }

    pub fn durable(offsets: Vec<Offset>) -> Self {
        Appended(offsets.into_iter().map(Ok).collect())
    }

    /// All of them failed for one reason.
    pub fn failed(count: usize, error: &LogError) -> Self {
        Appended(vec![Err(error.clone()); count])
    }

    pub fn outcomes(&self) -> &[Result<Offset, LogError>] {
        &self.0
    }

    /// The first failure, a final one before one that may pass.
    pub fn failure(&self) -> Option<&LogError> {
        let errors = || self.0.iter().filter_map(|outcome| outcome.as_ref().err());
        errors().find(|error| !error.is_transient()).or_else(|| errors().next())
    }

    /// All offsets, if all are durable.
    pub fn into_offsets(self) -> Result<Vec<Offset>, LogError> {
        match self.failure() {
            Some(error) => Err(error.clone()),
            None => Ok(self.0.into_iter().flatten().collect()),
        }
    }
}

/// Appends until all is durable, and appends again only what failed. Answers an error that will not pass, or the last
/// one once `stop` is cancelled.
pub async fn append_durably(
    log: &dyn Log,
    what: &'static str,
    stop: &CancellationToken,
    entries: &[Append],
) -> Result<Vec<Offset>, LogError> {
    let backoff = Backoff::default();
    let mut failures = 0;
    let mut offsets = vec![Offset(0); entries.len()];
    let mut left: Vec<usize> = (0..entries.len()).collect();
    while !left.is_empty() {
        let again: Vec<Append> = left.iter().map(|at| entries[*at].clone()).collect();
        let appended = log.append(&again).await;
        let failure = appended.failure().cloned();
        left = left
            .into_iter()
            .zip(appended.outcomes())
            .filter_map(|(at, outcome)| match outcome {
                Ok(offset) => {
                    offsets[at] = *offset;
                    None
                }
                Err(_) => Some(at),
            })
            .collect();
        let Some(error) = failure else { continue };
        if !error.is_transient() {
            return Err(error);
        }
        if failures % 16 == 0 {
            warn!(%error, failures, "{what} failed, trying again");
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.delay(failures)) => failures = failures.saturating_add(1),
            () = stop.cancelled() => return Err(error),
        }
    }
    Ok(offsets)
}

/// The order of one appender's appends, for implementations: whether one has failed that somebody behind it has not
/// heard of.
#[derive(Clone, Default)]
pub struct Line(Arc<Mutex<LineState>>);

#[derive(Default)]
struct LineState {
    under_way: usize,
    has_failed: bool,
}

/// One append's place in the line; it leaves by being dropped, which is when its outcome has been taken notice of.
pub struct Turn(Line);

impl Line {
    pub fn enter(&self) -> Turn {
        self.0.lock().under_way += 1;
        Turn(self.clone())
    }
}

impl Turn {
    /// Those behind must fail too, until all who are in line have left.
    pub fn fail(&self) {
        self.0.0.lock().has_failed = true;
    }

    /// Whether one before it has failed.
    pub fn is_behind_failure(&self) -> bool {
        self.0.0.lock().has_failed
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        state.under_way -= 1;
        if state.under_way == 0 {
            state.has_failed = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_behind_a_failure_fail_until_all_who_were_in_line_have_heard() {
        let line = Line::default();
        let (first, second) = (line.enter(), line.enter());

        first.fail();
        drop(first);
        let third = line.enter();
        assert!(third.is_behind_failure(), "the second has not heard, and the third must not overtake it");
        drop(second);
        assert!(third.is_behind_failure(), "it was begun before all had heard");
        drop(third);

        assert!(!line.enter().is_behind_failure(), "the next begins a new line");
    }

    #[test]
    fn a_final_failure_is_answered_before_one_that_may_pass() {
        let appended = Appended::new(vec![Ok(Offset(1)), Err(LogError::Behind), Err(LogError::Closed)]);

        assert!(matches!(appended.failure(), Some(LogError::Closed)));
        assert!(matches!(appended.into_offsets(), Err(LogError::Closed)));
    }
}
