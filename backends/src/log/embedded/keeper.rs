//! The keeper: a thread that lets go of what retention no longer promises, and keeps what waits in memory bounded.
//!
//! The first kept offset is made durable before any file is dropped: whoever reads below it is told that it is gone,
//! and never meets a hole.
//!
//! What is dropped does not come back, so the clock is not believed lightly. Age is counted by the time for what is kept,
//! which goes on as before for a day after the clock was set forward. A log whose newest entry seems older than that at
//! the start is let alone for an hour: either nothing ran for long, or the machine began with a wrong clock. And where
//! entries were stamped by a clock that was ahead, so that they look young for years, age is how long they have been seen
//! to be here.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use protocol::Offset;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, warn};

use super::layout::{self, Slot};
use super::partition::Partition;
use super::shared::{Now, Shared};
use super::writer::{Queued, Request};
use crate::log::{LogError, Topic};

pub struct Keeper {
    pub shared: Arc<Shared>,
    /// Time for what is kept.
    pub kept: Now,
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
        let begun = Instant::now();
        let is_old = self.seems_old();
        let mut seen = Seen::default();
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
                seen.look(expired, || self.shared.partitions.iter().map(|partition| partition.span().next).collect());
                if !is_old || begun.elapsed() >= OLD_WAIT {
                    self.expire(&seen);
                }
            }
        }
    }

    /// Whether the newest entry of all is so old that the clock may be wrong.
    fn seems_old(&self) -> bool {
        let Some(store) = self.shared.store() else { return false };
        let newest = self.shared.layout.slots().filter_map(|(slot, _, _)| store.last(slot).ok().flatten());
        let newest = newest.map(|(_, appended)| appended).max();
        newest.is_some_and(|newest| (self.kept)().millis_since(newest) > OLD_MS)
    }

    fn expire(&self, seen: &Seen) {
        for (slot, topic, _) in self.shared.layout.slots() {
            let Some(retention) = self.retention.get(&topic) else {
                continue;
            };
            if let Err(error) = self.expire_partition(slot, *retention, seen) {
                warn!(%error, topic = topic.name(), "retention could not be kept");
            }
        }
    }

    fn expire_partition(&self, slot: Slot, retention: Duration, seen: &Seen) -> Result<(), LogError> {
        let Some(store) = self.shared.store() else {
            return Ok(());
        };
        let span = self.shared.partitions[slot.0].span();
        let by_stamp = store.offset_at(slot, span.first, span.next, (self.kept)() - retention)?;
        let first = by_stamp.max(seen.before(slot, retention).unwrap_or_default());
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

/// What a hundred fixes a second fill within minutes, so that memory is what it will be soon after the start. Less would
/// write many more small tables, which are then merged.
const MEMTABLES_BYTES_MIN: u64 = 8 << 20;
/// Over all partitions; more would make the next start long, which replays it.
const MEMTABLES_BYTES_MAX: u64 = 128 << 20;

/// Where each partition went on at times of this process: what stood there then has been here since.
#[derive(Default)]
struct Seen {
    /// The newest last.
    looks: VecDeque<(Instant, Vec<Offset>)>,
}

impl Seen {
    /// Notes it now and then.
    fn look(&mut self, now: Instant, next: impl FnOnce() -> Vec<Offset>) {
        if self.looks.back().is_some_and(|(at, _)| now.duration_since(*at) < SEEN_EVERY) {
            return;
        }
        if self.looks.len() >= SEEN_MAX {
            self.looks.pop_front();
        }
        self.looks.push_back((now, next()));
    }

    /// All below has been here for so long at least.
    fn before(&self, slot: Slot, duration: Duration) -> Option<Offset> {
        let old = self.looks.iter().rev().find(|(at, _)| at.elapsed() >= duration)?;
        old.1.get(slot.0).copied()
    }
}

/// Longer than a clock that was set forward is doubted, so it is a stop or a wrong start.
const OLD_MS: i64 = 25 * 3_600_000;
/// By then NTP has set the clock right.
const OLD_WAIT: Duration = Duration::from_secs(3_600);
const SEEN_EVERY: Duration = Duration::from_secs(3_600);
/// A fortnight, longer than any topic is kept.
const SEEN_MAX: usize = 14 * 24;
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
        let busy = run(&mut budget, 2 << 20);
        assert!((59 << 20..=61 << 20).contains(&busy), "{busy}");
        assert_eq!(run(&mut budget, 100 << 10), MEMTABLES_BYTES_MIN);
    }

    #[test]
    fn what_has_been_here_for_long_is_old_whatever_its_stamp() {
        let mut seen = Seen::default();
        let Some(begin) = Instant::now().checked_sub(Duration::from_secs(80 * 3_600)) else { return };
        for hour in 0..80 {
            seen.look(begin + Duration::from_secs(hour * 3_600), || vec![Offset(hour), Offset(0)]);
            seen.look(begin + Duration::from_secs(hour * 3_600 + 60), || panic!("a minute later"));
        }

        assert_eq!(seen.before(Slot(0), Duration::from_secs(72 * 3_600)), Some(Offset(8)));
        assert_eq!(seen.before(Slot(0), Duration::from_secs(90 * 3_600)), None);
        assert_eq!(seen.before(Slot(1), Duration::from_secs(3_600)), Some(Offset(0)));
        assert_eq!(seen.before(Slot(2), Duration::from_secs(3_600)), None);
    }
}
