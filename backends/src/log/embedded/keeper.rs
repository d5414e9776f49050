//! The keeper: a thread that lets go of what retention no longer promises, and keeps what waits in memory bounded.
//!
//! The first kept offset is made durable before any file is dropped: whoever reads below it is told that it is gone,
//! and never meets a hole.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use protocol::Offset;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, warn};

use super::layout::{self, Slot};
use super::shared::Shared;
use super::writer::{Queued, Request};
use crate::log::{LogError, Topic};

pub struct Keeper {
    pub shared: Arc<Shared>,
    pub requests: mpsc::WeakSender<Queued>,
    pub retention: BTreeMap<Topic, Duration>,
    pub every: Duration,
    /// Ends when its other end is dropped.
    pub stop: Receiver<()>,
}

impl Keeper {
    pub fn run(self) {
        let mut expired = Instant::now();
        loop {
            match self.stop.recv_timeout(self.every.min(MEMORY_EVERY)) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
            }
            let bounded = self.shared.store().map_or(Ok(()), |store| store.bound_memory());
            if let Err(error) = bounded {
                warn!(%error, "memory of the log could not be flushed");
            }
            if expired.elapsed() >= self.every {
                expired = Instant::now();
                self.expire();
            }
        }
    }

    fn expire(&self) {
        for (slot, topic, _) in self.shared.layout.slots() {
            let Some(retention) = self.retention.get(&topic) else {
                continue;
            };
            if let Err(error) = self.expire_partition(slot, *retention) {
                warn!(%error, topic = topic.name(), "retention could not be kept");
            }
        }
    }

    fn expire_partition(&self, slot: Slot, retention: Duration) -> Result<(), LogError> {
        let Some(store) = self.shared.store() else {
            return Ok(());
        };
        let span = self.shared.partitions[slot.0].span();
        let first = store.offset_at(slot, span.first, span.next, (self.shared.now)() - retention)?;
        if first <= span.first {
            return Ok(());
        }
        let (topic, partition) = self.shared.layout.at(slot);
        let (reply, answer) = oneshot::channel();
        let key = layout::first_key(topic, partition);
        let request = Request::SetFirst { slot, key, first, reply };
        let Some(requests) = self.requests.upgrade() else {
            return Ok(());
        };
        if requests.blocking_send(Queued { request, bytes: 0, permit: None }).is_err() {
            return Ok(());
        }
        drop(requests);
        answer.blocking_recv().unwrap_or(Err(LogError::Closed))?;
        debug!(topic = topic.name(), partition = partition.0, first = first.0, "older entries expired");
        // The newest entry's table stays: it tells where the partition goes on.
        store.drop_before(slot, first.min(Offset(span.next.0.saturating_sub(1))))
    }
}

const MEMORY_EVERY: Duration = Duration::from_secs(1);
