//! Appends the ticks of all partitions that are ours, every second, in one append: time goes on in every fold by them.
//! Where our clock differs from the edges' by more than 5 s, time stands still instead of running wrong, and we say so.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use backends::log::Log;
use daemon::Clock;
use protocol::record::OwnerId;
use protocol::{PartitionId, Record, Time};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::tell::record_entry;

#[derive(Default)]
pub struct Ticker {
    partitions: Mutex<BTreeMap<PartitionId, Ticking>>,
}

#[derive(Clone, Copy)]
struct Ticking {
    owner: OwnerId,
    is_live: bool,
    ahead_ms: Option<i64>,
}

impl Ticker {
    pub fn begin(&self, partition: PartitionId, owner: OwnerId) {
        self.lock().insert(partition, Ticking { owner, is_live: false, ahead_ms: None });
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

    fn due(&self) -> Vec<(PartitionId, OwnerId)> {
        let partitions = self.lock();
        let due = partitions.iter().filter(|(_, ticking)| ticking.is_live && ticking.wrong_by_ms().is_none());
        due.map(|(partition, ticking)| (*partition, ticking.owner)).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<PartitionId, Ticking>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until told to stop.
    pub async fn run(self: Arc<Self>, log: Arc<dyn Log>, clock: Clock, after_each: impl Fn(), stop: CancellationToken) {
        let mut next_ms = clock.now_ms();
        loop {
            tokio::select! {
                () = clock.sleep_until_ms(next_ms) => {}
                () = stop.cancelled() => return,
            }
            let at = clock.now_ms();
            next_ms = at + TICK_MS;
            let tick = |(partition, owner)| record_entry(partition, Record::Tick { owner, at: Time(at) });
            let ticks: Vec<_> = self.due().into_iter().map(tick).collect();
            if !ticks.is_empty()
                && let Err(error) = log.append(&ticks).await.into_offsets()
            {
                warn!(%error, "time stands still: ticks cannot be appended");
            }
            after_each();
        }
    }
}

impl Ticking {
    fn wrong_by_ms(&self) -> Option<i64> {
        self.ahead_ms.filter(|ms| self.is_live && ms.abs() > WRONG_MS)
    }
}

const TICK_MS: i64 = 1_000;
const WRONG_MS: i64 = 5_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_whose_clock_is_wrong_appends_no_ticks() {
        let ticker = Ticker::default();
        let (a, b) = (PartitionId(0), PartitionId(1));
        for partition in [a, b] {
            ticker.begin(partition, OwnerId(7));
            ticker.set_live(partition);
        }

        ticker.set_ahead(a, Some(5_001));
        ticker.set_ahead(b, Some(-4_000));

        assert_eq!(ticker.due(), [(b, OwnerId(7))]);
        assert_eq!(ticker.wrong_by_ms(), Some(5_001));
    }

    #[test]
    fn no_ticks_go_out_before_what_lies_behind_is_folded() {
        let ticker = Ticker::default();
        ticker.begin(PartitionId(0), OwnerId(7));

        assert!(ticker.due().is_empty());
    }
}
