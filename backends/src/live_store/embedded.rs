//! The live store in memory: sharded maps, bounded, gone with the process and whole again within 60 s, because every
//! live view gets a keyframe that often.
//!
//! At its bound a shard lets go of what would expire first: a view that nobody renews is the one that nobody misses. What is
//! over is asked of the ledger, so its view stays only for as long as somebody may still look at it.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, Hash, RandomState};
use std::time::Duration;

use async_trait::async_trait;
use daemon::Meter;
use metrics::Counter;
use parking_lot::Mutex;
use protocol::{DeliveryKey, DriverId, DriverKey, LiveView, TenantId, Time};

use super::{CellSpeeds, LIVE_TTL, LiveDriver, LiveEntry, LiveStore, LiveStoreError, SpeedCell};

pub struct MemoryLiveStore {
    deliveries: Shelf<DeliveryKey, LiveView>,
    drivers: Shelf<DriverKey, LiveDriver>,
    speeds: Shelf<SpeedCell, CellSpeeds>,
}

impl MemoryLiveStore {
    /// Holds so many deliveries, so many drivers and so many cells at most.
    pub fn new(entries_max: usize, meter: &Meter) -> Self {
        let evicted = |kind| {
            let help = "Live views let go because the store was full.";
            meter.counter("wayfix_live_store_views_evicted_total", help, &[("kind", kind)])
        };
        MemoryLiveStore {
            deliveries: Shelf::new(entries_max, evicted("delivery")),
            drivers: Shelf::new(entries_max, evicted("driver")),
            speeds: Shelf::new(entries_max, evicted("speeds")),
        }
    }
}

impl Default for MemoryLiveStore {
    fn default() -> Self {
        MemoryLiveStore::new(ENTRIES_MAX, &Meter::discard())
    }
}

#[async_trait]
impl LiveStore for MemoryLiveStore {
    async fn put(&self, entries: Vec<LiveEntry>, now: Time) -> Result<(), LiveStoreError> {
        for entry in entries {
            match entry {
                LiveEntry::Delivery(view) => {
                    let is_over = view.view.delivery.state.is_finished();
                    let until = now + if is_over { FINISHED_TTL } else { LIVE_TTL };
                    self.deliveries.put(view.view.delivery.key, *view, now, until, is_newer_view);
                }
                LiveEntry::Driver(driver) => {
                    self.drivers.put(driver.view.key, *driver, now, now + LIVE_TTL, is_newer_driver);
                }
            }
        }
        Ok(())
    }

    async fn delivery(&self, key: DeliveryKey, now: Time) -> Result<Option<LiveView>, LiveStoreError> {
        Ok(self.deliveries.find(&key, now))
    }

    async fn driver(&self, key: DriverKey, now: Time) -> Result<Option<LiveDriver>, LiveStoreError> {
        Ok(self.drivers.find(&key, now))
    }

    async fn drivers(&self, tenant: TenantId, now: Time) -> Result<Vec<LiveDriver>, LiveStoreError> {
        Ok(self.drivers.tenants_drivers(tenant, now))
    }

    async fn put_speeds(&self, cells: Vec<CellSpeeds>, now: Time) -> Result<(), LiveStoreError> {
        for speeds in cells {
            self.speeds.put(speeds.cell, speeds, now, now + LIVE_TTL, |old, new| new.at >= old.at);
        }
        Ok(())
    }

    async fn speeds(&self, cell: SpeedCell, now: Time) -> Result<Option<CellSpeeds>, LiveStoreError> {
        Ok(self.speeds.find(&cell, now))
    }
}

/// Whether the second is not older than the first. The same again renews it.
fn is_newer_view(old: &LiveView, new: &LiveView) -> bool {
    new.place() >= old.place()
}

fn is_newer_driver(old: &LiveDriver, new: &LiveDriver) -> bool {
    new.place() >= old.place()
}

struct Shelf<K, V> {
    shards: Vec<Mutex<Shard<K, V>>>,
    hasher: RandomState,
    shard_entries_max: usize,
    evicted: Counter,
}

struct Shard<K, V> {
    entries: HashMap<K, Held<V>>,
    by_end: BTreeSet<(Time, K)>,
}

struct Held<V> {
    value: V,
    /// From then on it is not there.
    until: Time,
}

impl<K: Copy + Ord + Hash, V: Clone> Shelf<K, V> {
    fn new(entries_max: usize, evicted: Counter) -> Self {
        let shard = || Mutex::new(Shard { entries: HashMap::new(), by_end: BTreeSet::new() });
        Shelf {
            shards: (0..SHARDS).map(|_| shard()).collect(),
            hasher: RandomState::new(),
            shard_entries_max: entries_max.div_ceil(SHARDS).max(1),
            evicted,
        }
    }

    fn shard(&self, key: &K) -> &Mutex<Shard<K, V>> {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }

    fn put(&self, key: K, value: V, now: Time, until: Time, is_newer: impl Fn(&V, &V) -> bool) {
        let mut shard = self.shard(&key).lock();
        shard.expire(now);
        if let Some(held) = shard.entries.get(&key) {
            if !is_newer(&held.value, &value) {
                return;
            }
            let before = held.until;
            shard.by_end.remove(&(before, key));
        } else if shard.entries.len() >= self.shard_entries_max
            && let Some((_, oldest)) = shard.by_end.pop_first()
        {
            shard.entries.remove(&oldest);
            self.evicted.increment(1);
        }
        shard.by_end.insert((until, key));
        shard.entries.insert(key, Held { value, until });
    }

    fn find(&self, key: &K, now: Time) -> Option<V> {
        let shard = self.shard(key).lock();
        shard.entries.get(key).filter(|held| held.is_live(now)).map(|held| held.value.clone())
    }
}

impl Shelf<DriverKey, LiveDriver> {
    /// Walks all drivers of all tenants: for a dispatcher's first view, not for every frame.
    fn tenants_drivers(&self, tenant: TenantId, now: Time) -> Vec<LiveDriver> {
        let mut found: Vec<(DriverId, LiveDriver)> = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            let of_tenant = shard.entries.iter().filter(|(key, held)| key.tenant == tenant && held.is_live(now));
            found.extend(of_tenant.map(|(key, held)| (key.driver, held.value.clone())));
        }
        found.sort_by_key(|(driver, _)| *driver);
        found.into_iter().map(|(_, driver)| driver).collect()
    }
}

impl<K: Copy + Ord + Hash, V> Shard<K, V> {
    fn expire(&mut self, now: Time) {
        while let Some((until, key)) = self.by_end.first().copied() {
            if until > now {
                return;
            }
            self.by_end.pop_first();
            self.entries.remove(&key);
        }
    }
}

impl<V> Held<V> {
    fn is_live(&self, now: Time) -> bool {
        now < self.until
    }
}

const SHARDS: usize = 64;
/// As long as a gateway holds the view of a delivery that is over.
const FINISHED_TTL: Duration = Duration::from_secs(600);
/// A view is a few KB.
const ENTRIES_MAX: usize = 500_000;

#[cfg(test)]
mod tests {
    use protocol::DeliveryState;

    use super::*;
    use crate::live_store::conformance::{self, delivery, driver};

    #[tokio::test]
    async fn memory_keeps_the_contract() {
        conformance::suite(|| async { Box::new(MemoryLiveStore::default()) as Box<dyn LiveStore> }).await;
    }

    #[tokio::test]
    async fn a_full_store_stays_at_its_bound_and_keeps_the_newest() {
        let store = MemoryLiveStore::new(64 * 4, &Meter::discard());

        for n in 0..10_000 {
            store.put(vec![driver(1, n, 1)], Time(i64::from(n))).await.unwrap();
        }

        let now = Time(10_000);
        let drivers = store.drivers(TenantId(1), now).await.unwrap();
        assert!(drivers.len() <= 64 * 4 && drivers.len() >= 64, "{}", drivers.len());
        let newest = DriverKey { tenant: TenantId(1), driver: DriverId(9_999) };
        assert!(store.driver(newest, now).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_view_that_is_over_goes_after_ten_minutes_and_an_open_one_stays() {
        let store = MemoryLiveStore::default();
        let (open, mut over) = (delivery(1, 1, (1, 1, 0), 1), delivery(1, 2, (1, 1, 0), 1));
        let key = |entry: &LiveEntry| match entry {
            LiveEntry::Delivery(view) => view.view.delivery.key,
            LiveEntry::Driver(driver) => panic!("a driver: {:?}", driver.view.key),
        };
        if let LiveEntry::Delivery(view) = &mut over {
            view.view.delivery.state = DeliveryState::Delivered;
        }
        let (open_key, over_key) = (key(&open), key(&over));

        store.put(vec![open, over], Time(0)).await.unwrap();

        let just_before = Time(0) + FINISHED_TTL - Duration::from_millis(1);
        assert!(store.delivery(over_key, just_before).await.unwrap().is_some());
        let after = Time(0) + FINISHED_TTL;
        assert!(store.delivery(over_key, after).await.unwrap().is_none());
        assert!(store.delivery(open_key, after).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn what_expired_gives_its_memory_back() {
        let store = MemoryLiveStore::default();
        for n in 0..5_000 {
            store.put(vec![driver(1, n, 1)], Time(0)).await.unwrap();
        }

        for n in 5_000..6_000 {
            store.put(vec![driver(1, n, 1)], Time(0) + LIVE_TTL).await.unwrap();
        }

        let held: usize = store.drivers.shards.iter().map(|shard| shard.lock().entries.len()).sum();
        let ages: usize = store.drivers.shards.iter().map(|shard| shard.lock().by_end.len()).sum();
        assert_eq!((held, ages), (1_000, 1_000));
    }
}
