//! The keeper: a thread that lets go of what retention no longer promises, and keeps what waits in memory bounded.
//!
//! The first kept offset is made durable before any file is dropped: whoever reads below it is told that it is gone,
//! and never meets a hole.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use protocol::Offset;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, warn};

use super::layout::{self, Slot};
use super::partition::Partition;
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
        let (mut expired, mut stepped) = (Instant::now(), Instant::now());
        let mut memtables = MemtableBudget::default();
        loop {
            match self.stop.recv_timeout(self.every.min(MEMORY_EVERY)) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
            }
            if stepped.elapsed() >= MEMORY_EVERY {
                stepped = Instant::now();
                self.shared.partitions.iter().for_each(Partition::handle_step);
                memtables.handle_second(self.shared.appended_bytes.load(Ordering::Relaxed));
            }
            let bounded = self.shared.store().map_or(Ok(()), |store| store.bound_memory(memtables.bytes_max()));
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

/// How much may wait in memtables: what came within the last half minute, so that a quiet log holds little and a busy one
/// writes few and large tables.
#[derive(Default)]
struct MemtableBudget {
    appended_bytes: u64,
    /// Smoothed over the last seconds.
    bytes_per_s: u64,
}

impl MemtableBudget {
    fn handle_second(&mut self, appended_bytes: u64) {
        let bytes = appended_bytes.saturating_sub(self.appended_bytes);
        self.appended_bytes = appended_bytes;
        self.bytes_per_s = (self.bytes_per_s * 7 + bytes) / 8;
    }

    fn bytes_max(&self) -> u64 {
        (self.bytes_per_s * 30).clamp(MEMTABLES_BYTES_MIN, MEMTABLES_BYTES_MAX)
    }
}

const MEMTABLES_BYTES_MIN: u64 = 8 << 20;
/// Over all partitions; more would make the next start long, which replays it.
const MEMTABLES_BYTES_MAX: u64 = 128 << 20;
const MEMORY_EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memtables_hold_as_much_as_the_traffic_asks_for_and_give_it_back_after_it() {
        let mut budget = MemtableBudget::default();
        let mut appended_bytes = 0;
        let mut run = |budget: &mut MemtableBudget, bytes_per_s: u64| {
            for _ in 0..120 {
                appended_bytes += bytes_per_s;
                budget.handle_second(appended_bytes);
            }
            budget.bytes_max()
        };

        assert_eq!(run(&mut budget, 0), MEMTABLES_BYTES_MIN);
        assert_eq!(run(&mut budget, 50 << 20), MEMTABLES_BYTES_MAX);
        let busy = run(&mut budget, 1 << 20);
        assert!((29 << 20..=31 << 20).contains(&busy), "{busy}");
        assert_eq!(run(&mut budget, 100 << 10), MEMTABLES_BYTES_MIN);
    }
}
