//! The hubs of the partitions that this gateway owns. A hub is worked on for microseconds under its own lock, by the
//! feed of its partition and by the sockets that watch it; nothing is awaited under a lock.
//!
//! **Invariant:** a watch belongs to one reign over its partition. When the partition is given up, or taken again,
//! the watch says "moved" and nothing else.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use daemon::{Clock, StepSeen};
use parking_lot::Mutex;
use protocol::{PartitionId, Time, TrackerKey, partition_of};
use tokio::sync::Notify;

use crate::hub::{CloseReason, Flow, Hub, HubConfig, SharedFrame, WatcherId};

#[derive(Debug)]
pub(crate) struct Shards {
    clock: Clock,
    config: HubConfig,
    shards: Vec<Mutex<Place>>,
    takes: AtomicU64,
}

/// How often a partition was taken: tells what belongs to an earlier time from what belongs to this one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Reign(u64);

/// One partition: ours or not.
#[derive(Debug, Default)]
struct Place {
    reign: Reign,
    shard: Option<Shard>,
    is_stopping: bool,
}

#[derive(Debug)]
struct Shard {
    hub: Hub,
    wakers: HashMap<WatcherId, Arc<Notify>>,
    step_seen: StepSeen,
}

impl Shards {
    pub fn new(partition_count: u32, config: HubConfig, clock: Clock) -> Self {
        Shards {
            clock,
            config,
            shards: (0..partition_count).map(|_| Mutex::default()).collect(),
            takes: AtomicU64::new(0),
        }
    }

    pub fn now(&self) -> Time {
        Time(self.clock.now_ms())
    }

    /// For what is kept for so long: time that nobody can set.
    pub fn monotonic(&self) -> Time {
        Time(self.clock.monotonic_ms())
    }

    /// The time, of which the hub hears first if the clock was set.
    fn now_for(&self, shard: &mut Shard) -> Time {
        let reading = self.clock.reading();
        if let Some(by_ms) = shard.step_seen.look(reading) {
            shard.hub.handle_clock_set(by_ms);
            // Maps begin anew, with the new time.
            self.takes.fetch_add(1, Ordering::AcqRel);
            shard.wakers.values().for_each(|waker| waker.notify_one());
        }
        Time(reading.now_ms)
    }

    pub fn partition_of(&self, key: impl Into<TrackerKey>) -> PartitionId {
        partition_of(&key.into().key_bytes(), self.shards.len() as u32)
    }

    pub fn partitions(&self) -> impl Iterator<Item = PartitionId> + use<> {
        (0..self.shards.len() as u32).map(PartitionId)
    }

    /// The partition is this gateway's from here on, with an empty hub. Answers which reign this is.
    pub fn take(&self, partition: PartitionId) -> Reign {
        let Some(place) = self.shards.get(partition.0 as usize) else { return Reign(0) };
        let mut place = place.lock();
        place.let_go();
        place.reign.0 += 1;
        let reign = place.reign;
        let reading = self.clock.reading();
        let hub = Hub::new(self.config, Time(reading.now_ms));
        place.shard = Some(Shard { hub, wakers: HashMap::new(), step_seen: StepSeen::since(reading) });
        drop(place);
        self.takes.fetch_add(1, Ordering::AcqRel);
        // Maps look into all hubs: theirs must begin anew.
        for place in &self.shards {
            if let Some(shard) = &place.lock().shard {
                shard.wakers.values().for_each(|waker| waker.notify_one());
            }
        }
        reign
    }

    /// How often a partition was taken: whoever looks into all hubs sees by it that there is another.
    pub fn takes(&self) -> u64 {
        self.takes.load(Ordering::Acquire)
    }

    /// The partition is another's; whoever watches it here is told to move. Of a reign that is over there is nothing left
    /// to give up.
    pub fn give_up(&self, partition: PartitionId, reign: Reign) {
        let Some(place) = self.shards.get(partition.0 as usize) else { return };
        let mut place = place.lock();
        if place.reign == reign {
            place.let_go();
        }
    }

    /// This gateway stops: all who watch are let go, and nobody new comes in.
    pub fn stop(&self) {
        for place in &self.shards {
            let mut place = place.lock();
            place.is_stopping = true;
            if let Some(shard) = &mut place.shard {
                shard.hub.handle_close(CloseReason::Stopping);
                shard.wake();
            }
        }
    }

    /// Works on the hub of a partition, then wakes whom it has news for. None where another owns it.
    pub fn with<R>(&self, partition: PartitionId, work: impl FnOnce(&mut Hub, Time) -> R) -> Option<R> {
        let mut place = self.shards.get(partition.0 as usize)?.lock();
        let shard = place.shard.as_mut()?;
        let now = self.now_for(shard);
        let result = work(&mut shard.hub, now);
        shard.wake();
        Some(result)
    }

    /// As `with`, on behalf of a reign. None: it is over, and the hub is another's, or nobody's.
    pub fn with_reign<R>(
        &self,
        partition: PartitionId,
        reign: Reign,
        work: impl FnOnce(&mut Hub, Time) -> R,
    ) -> Option<R> {
        let mut place = self.shards.get(partition.0 as usize)?.lock();
        if place.reign != reign {
            return None;
        }
        let shard = place.shard.as_mut()?;
        let now = self.now_for(shard);
        let result = work(&mut shard.hub, now);
        shard.wake();
        Some(result)
    }

    /// Begins a watch in the hub of a partition; `begin` says of what. None where another owns it, or while stopping.
    pub fn watch<R>(
        self: &Arc<Self>,
        partition: PartitionId,
        waker: Arc<Notify>,
        begin: impl FnOnce(&mut Hub, Time) -> (WatcherId, R),
    ) -> Option<(Watch, R)> {
        let mut place = self.shards.get(partition.0 as usize)?.lock();
        if place.is_stopping {
            return None;
        }
        let reign = place.reign;
        let shard = place.shard.as_mut()?;
        let now = self.now_for(shard);
        let (id, result) = begin(&mut shard.hub, now);
        shard.wakers.insert(id, waker);
        shard.wake();
        Some((Watch { shards: self.clone(), partition, reign, id }, result))
    }
}

impl Place {
    fn let_go(&mut self) {
        if let Some(shard) = self.shard.take() {
            shard.wakers.values().for_each(|waker| waker.notify_one());
        }
    }
}

impl Shard {
    fn wake(&mut self) {
        while let Some(id) = self.hub.poll_wake() {
            if let Some(waker) = self.wakers.get(&id) {
                waker.notify_one();
            }
        }
    }
}

/// One watcher's place in a hub. Dropping it ends the watch.
#[derive(Debug)]
pub(crate) struct Watch {
    shards: Arc<Shards>,
    partition: PartitionId,
    reign: Reign,
    id: WatcherId,
}

impl Watch {
    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// Works on the hub on behalf of this watch. None: its reign is over.
    pub fn with<R>(&self, work: impl FnOnce(&mut Hub, WatcherId, Time) -> R) -> Option<R> {
        self.shards.with_reign(self.partition, self.reign, |hub, now| work(hub, self.id, now))
    }

    pub fn poll_frames(&self, into: &mut Vec<SharedFrame>) -> Flow {
        self.with(|hub, id, now| hub.poll_frames(id, now, into)).unwrap_or(Flow::Close(CloseReason::Moved))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut place = self.shards.shards[self.partition.0 as usize].lock();
        if place.reign != self.reign {
            return;
        }
        if let Some(shard) = &mut place.shard {
            shard.wakers.remove(&self.id);
            shard.hub.handle_unwatch(self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use protocol::{DeliveryId, DeliveryKey, TenantId};

    use super::*;

    #[tokio::test]
    async fn who_watches_a_partition_that_is_given_up_is_woken_and_told_to_move() {
        let shards = Arc::new(Shards::new(1, HubConfig::default(), Clock::system()));
        let key = DeliveryKey { tenant: TenantId(1), delivery: DeliveryId(1) };
        let waker = Arc::new(Notify::new());
        let first = shards.take(PartitionId(0));
        let (watch, ()) = shards.watch(PartitionId(0), waker.clone(), |hub, _| (hub.handle_watch(key), ())).unwrap();

        shards.give_up(PartitionId(0), first);
        let reign = shards.take(PartitionId(0));
        let (other, ()) = shards.watch(PartitionId(0), waker.clone(), |hub, _| (hub.handle_watch(key), ())).unwrap();

        waker.notified().await;
        assert_eq!(watch.poll_frames(&mut Vec::new()), Flow::Close(CloseReason::Moved));
        drop(watch);
        assert_eq!(shards.with(PartitionId(0), |hub, _| hub.watcher_count()), Some(1));
        assert_eq!(other.poll_frames(&mut Vec::new()), Flow::Quiet);
        assert!(shards.with_reign(PartitionId(0), reign, |hub, _| hub.is_whole()).is_some());
        assert!(shards.with_reign(PartitionId(0), Reign(reign.0 - 1), |hub, _| hub.is_whole()).is_none());
    }

    #[tokio::test]
    async fn nobody_comes_in_once_the_gateway_stops() {
        let shards = Arc::new(Shards::new(1, HubConfig::default(), Clock::system()));
        let key = DeliveryKey { tenant: TenantId(1), delivery: DeliveryId(1) };
        shards.take(PartitionId(0));

        shards.stop();

        let watch = shards.watch(PartitionId(0), Arc::new(Notify::new()), |hub, _| (hub.handle_watch(key), ()));
        assert!(watch.is_none());
    }
}
