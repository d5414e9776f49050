//! Appends in order with several under way, and tries again what failed, in order, until all is durable: so whoever
//! has much to say is not one round trip at a time.
//!
//! **Invariant:** entries of one partition reach the log in the order in which they were pushed, and are answered in that
//! order; after a failure some may be there twice.

use std::collections::VecDeque;

use daemon::Backoff;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Append, Appender, Appending, Log, LogError};

/// `T` is what the caller knows an append by.
pub struct Pipeline<T> {
    config: PipelineConfig,
    appender: Box<dyn Appender>,
    under_way: VecDeque<UnderWay<T>>,
    /// Something failed: nothing new is begun before it is. When that is.
    again_at: Option<Instant>,
    failures: u32,
    /// Cancelled when the log is not to be waited for any more.
    give_up: CancellationToken,
}

#[derive(Clone, Copy, Debug)]
pub struct PipelineConfig {
    /// Names the work in warnings.
    pub what: &'static str,
    pub under_way_max: usize,
    pub backoff: Backoff,
}

/// What a pipeline has come to.
#[derive(Debug)]
pub enum Driven<T> {
    /// All entries of its oldest append are durable.
    Durable(T),
    /// Some have failed, and are appended again in a while.
    Failed(LogError),
}

struct UnderWay<T> {
    tag: T,
    /// Those that are not known to be durable.
    entries: Vec<Append>,
    /// None: its outcome has been heard.
    appending: Option<Appending>,
}

impl<T> Pipeline<T> {
    pub fn new(log: &dyn Log, config: PipelineConfig, give_up: CancellationToken) -> Self {
        let appender = log.appender();
        Pipeline { config, appender, under_way: VecDeque::new(), again_at: None, failures: 0, give_up }
    }

    pub fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    pub fn has_room(&self) -> bool {
        self.under_way.len() < self.config.under_way_max.max(1) && self.again_at.is_none()
    }

    /// What is under way, the oldest first.
    pub fn tags(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.under_way.iter().map(|under_way| &under_way.tag)
    }

    pub fn tags_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.under_way.iter_mut().map(|under_way| &mut under_way.tag)
    }

    /// Begins to append; waits while the log holds as much as it may. Only where there is room.
    ///
    /// Not cancellation safe.
    pub async fn push(&mut self, entries: Vec<Append>, tag: T) {
        debug_assert!(self.has_room(), "the caller looks whether there is room");
        let appending = self.appender.begin(&entries).await;
        self.under_way.push_back(UnderWay { tag, entries, appending: Some(appending) });
    }

    /// The next that is durable, or has failed. An error is final. Waits for ever where nothing is under way.
    ///
    /// Cancellation safe.
    pub async fn drive(&mut self) -> Result<Driven<T>, LogError> {
        loop {
            if let Some(at) = self.again_at {
                self.begin_again(at).await?;
            }
            let Some(front) = self.under_way.front_mut() else { return std::future::pending().await };
            if let Some(error) = hear(front).await {
                return self.handle_failure(error).map(Driven::Failed);
            }
            if let Some(durable) = self.under_way.pop_front() {
                self.failures = 0;
                return Ok(Driven::Durable(durable.tag));
            }
        }
    }

    /// Until all that was pushed is durable.
    ///
    /// Cancellation safe.
    pub async fn flush(&mut self) -> Result<(), LogError> {
        while !self.is_empty() {
            self.drive().await?;
        }
        Ok(())
    }

    fn handle_failure(&mut self, error: LogError) -> Result<LogError, LogError> {
        if !error.is_transient() {
            return Err(error);
        }
        if self.failures.is_multiple_of(16) {
            warn!(%error, failures = self.failures, "{} failed, trying again", self.config.what);
        }
        self.again_at = Some(Instant::now() + self.config.backoff.delay(self.failures));
        self.failures = self.failures.saturating_add(1);
        Ok(error)
    }

    /// Hears all outcomes first: those behind a failure have failed too, or stand in other partitions.
    async fn begin_again(&mut self, at: Instant) -> Result<(), LogError> {
        for waiting in &mut self.under_way {
            if let Some(error) = hear(waiting).await
                && !error.is_transient()
            {
                return Err(error);
            }
        }
        tokio::select! {
            () = tokio::time::sleep_until(at) => {}
            () = self.give_up.cancelled() => return Err(LogError::Unavailable { reason: "it was given up".to_string() }),
        }
        for waiting in self.under_way.iter_mut().filter(|waiting| !waiting.entries.is_empty()) {
            waiting.appending = Some(self.appender.begin(&waiting.entries).await);
        }
        self.again_at = None;
        Ok(())
    }
}

impl Pipeline<()> {
    /// As `push`, and waits until there is room.
    ///
    /// Not cancellation safe.
    pub async fn push_in_turn(&mut self, entries: Vec<Append>) -> Result<(), LogError> {
        if entries.is_empty() {
            return Ok(());
        }
        while !self.has_room() {
            self.drive().await?;
        }
        self.push(entries, ()).await;
        Ok(())
    }
}

/// Takes notice of what became of an append, and keeps what failed. None: all of it is durable.
///
/// Cancellation safe.
async fn hear<T>(waiting: &mut UnderWay<T>) -> Option<LogError> {
    let Some(appending) = &mut waiting.appending else { return None };
    let appended = appending.await;
    waiting.appending = None;
    let mut outcomes = appended.outcomes().iter();
    waiting.entries.retain(|_| outcomes.next().is_some_and(Result::is_err));
    appended.failure().cloned()
}
