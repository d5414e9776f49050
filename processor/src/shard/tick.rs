//! Appends the ticks of all partitions that are ours, every second, in one append: time goes on in every fold by them.
//! Where our clock differs from the edges' by more than 5 s, time stands still instead of running wrong, and we say so.
//! Where our clock was set, each partition is told so at once, so that all its times move with it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use backends::log::{Log, LogError};
use daemon::Clock;
use protocol::record::OwnerId;
use protocol::{PartitionId, Record, Time};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::tell::record_entry;
use crate::track::WRONG_MS;

#[derive(Default)]
pub struct Ticker {
    partitions: Mutex<BTreeMap<PartitionId, Ticking>>,
    /// Appends of ticks that failed since one succeeded.
    failed: AtomicU32,
}

#[derive(Clone, Copy)]
struct Ticking {
    owner: OwnerId,
    is_live: bool,
    ahead_ms: Option<i64>,
    /// What the partition was told that our wall clock shows beyond the time since the start.
    offset_ms: i64,
}

impl Ticker {
    pub fn begin(&self, partition: PartitionId, owner: OwnerId, offset_ms: i64) {
        self.lock().insert(partition, Ticking { owner, is_live: false, ahead_ms: None, offset_ms });
    }

    pub fn end(&self, partition: PartitionId, owner: OwnerId) {
        let mut partitions = self.lock();
        if partitions.get(&partition).is_some_and(|ticking| ticking.owner == owner) {
            partitions.remove(&partition);
        }
    }

    /// From here on time goes on: what lies behind is folded.
    pub fn set_live(&self, partition: PartitionId) {
        if let Some(ticking) = self.lock().get_mut(&partition) {
            ticking.is_live = true;
        }
    }

    pub fn set_ahead(&self, partition: PartitionId, ahead_ms: Option<i64>) {
        if let Some(ticking) = self.lock().get_mut(&partition) {
            ticking.ahead_ms = ahead_ms;
        }
    }

    /// By how much our clock is wrong, if it is.
    pub fn wrong_by_ms(&self) -> Option<i64> {
        self.lock().values().filter_map(Ticking::wrong_by_ms).max_by_key(|ms| ms.abs())
    }

    /// Whether time stands because ticks cannot be appended.
    pub fn cannot_append(&self) -> bool {
        self.failed.load(Ordering::Relaxed) > 0
    }

    fn handle_appended(&self, outcome: Result<(), LogError>) {
        let Err(error) = outcome else {
            self.failed.store(0, Ordering::Relaxed);
            return;
        };
        let failed = self.failed.fetch_add(1, Ordering::Relaxed);
        if failed.is_multiple_of(SAID_EVERY) {
            warn!(%error, "time stands still: ticks cannot be appended");
        }
    }

    /// Those that were not told yet that the clock was set wait for it: they would take the new time, and then the step
    /// once more.
    fn due(&self, offset_ms: i64) -> Vec<(PartitionId, OwnerId)> {
        let is_due =
            |ticking: &Ticking| ticking.is_live && ticking.wrong_by_ms().is_none() && !ticking.is_to_be_told(offset_ms);
        let partitions = self.lock();
        let due = partitions.iter().filter(|(_, ticking)| is_due(ticking));
        due.map(|(partition, ticking)| (*partition, ticking.owner)).collect()
    }

    /// Those that were told another offset than this: the clock was set.
    fn set_for(&self, offset_ms: i64) -> Vec<(PartitionId, OwnerId)> {
        let partitions = self.lock();
        let others = partitions.iter().filter(|(_, ticking)| ticking.is_to_be_told(offset_ms));
        others.map(|(partition, ticking)| (*partition, ticking.owner)).collect()
    }

    fn handle_told(&self, told: &[(PartitionId, OwnerId)], offset_ms: i64) {
        let mut partitions = self.lock();
        for (partition, owner) in told {
            if let Some(ticking) = partitions.get_mut(partition).filter(|ticking| ticking.owner == *owner) {
                ticking.offset_ms = offset_ms;
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<PartitionId, Ticking>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until told to stop.
    pub async fn run(self: Arc<Self>, log: Arc<dyn Log>, clock: Clock, after_each: impl Fn(), stop: CancellationToken) {
        let mut next_ms = clock.monotonic_ms();
        let mut stepped = clock.stepped();
        loop {
            tokio::select! {
                () = clock.sleep_until_monotonic_ms(next_ms) => {}
                Ok(()) = stepped.changed() => {}
                () = stop.cancelled() => return,
            }
            let reading = clock.reading();
            self.tell_steps(&*log, clock, reading.offset_ms()).await;
            let at = reading.now_ms;
            next_ms = reading.monotonic_ms + TICK_MS;
            let tick = |(partition, owner)| record_entry(partition, Record::Tick { owner, at: Time(at) });
            let ticks: Vec<_> = self.due(reading.offset_ms()).into_iter().map(tick).collect();
            if !ticks.is_empty() {
                self.handle_appended(log.append(&ticks).await.into_offsets().map(drop));
            }
            after_each();
        }
    }

    /// Until all partitions know it, each turn tries again.
    async fn tell_steps(&self, log: &dyn Log, clock: Clock, offset_ms: i64) {
        let told = self.set_for(offset_ms);
        if told.is_empty() {
            return;
        }
        let wall = |(partition, owner): &(PartitionId, OwnerId)| {
            record_entry(*partition, Record::WallOffset { owner: *owner, boot: clock.boot(), offset_ms })
        };
        match log.append(&told.iter().map(wall).collect::<Vec<_>>()).await.into_offsets() {
            Ok(_) => self.handle_told(&told, offset_ms),
            Err(error) => self.handle_appended(Err(error)), // and no tick goes out before it is told
        }
    }
}

impl Ticking {
    fn is_to_be_told(&self, offset_ms: i64) -> bool {
        self.offset_ms.abs_diff(offset_ms) > STEP_MS
    }

    fn wrong_by_ms(&self) -> Option<i64> {
        self.ahead_ms.filter(|ms| self.is_live && ms.abs() > WRONG_MS)
    }
}

const TICK_MS: i64 = 1_000;
/// Of the ticks that fail one after the other, a second apart.
const SAID_EVERY: u32 = 30;
/// As for the clock's own watcher.
const STEP_MS: u64 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_whose_clock_is_wrong_appends_no_ticks() {
        let ticker = Ticker::default();
        let (a, b) = (PartitionId(0), PartitionId(1));
        for partition in [a, b] {
            ticker.begin(partition, OwnerId(7), 0);
            ticker.set_live(partition);
        }

        ticker.set_ahead(a, Some(5_001));
        ticker.set_ahead(b, Some(-4_000));

        assert_eq!(ticker.due(0), [(b, OwnerId(7))]);
        assert_eq!(ticker.wrong_by_ms(), Some(5_001));
    }

    #[test]
    fn no_ticks_go_out_before_what_lies_behind_is_folded() {
        let ticker = Ticker::default();
        ticker.begin(PartitionId(0), OwnerId(7), 0);

        assert!(ticker.due(0).is_empty());
    }

    #[test]
    fn ticks_that_cannot_be_appended_are_known_until_one_can() {
        let ticker = Ticker::default();
        assert!(!ticker.cannot_append());
        ticker.handle_appended(Err(LogError::Closed));
        ticker.handle_appended(Err(LogError::Closed));
        assert!(ticker.cannot_append());

        ticker.handle_appended(Ok(()));

        assert!(!ticker.cannot_append());
    }

    #[test]
    fn a_partition_is_told_once_that_the_clock_was_set_live_or_not() {
        let ticker = Ticker::default();
        let partition = PartitionId(0);
        ticker.begin(partition, OwnerId(7), 10_000);
        assert!(ticker.set_for(10_900).is_empty(), "a correction");

        ticker.set_live(partition);
        assert_eq!(ticker.due(10_900).len(), 1);

        let told = ticker.set_for(-7_190_000);

        assert_eq!(told, [(partition, OwnerId(7))]);
        assert!(ticker.due(-7_190_000).is_empty(), "no tick by a time that it was not told of");
        ticker.handle_told(&told, -7_190_000);
        assert!(ticker.set_for(-7_190_000).is_empty());
        assert_eq!(ticker.due(-7_190_000), told);
    }
}
