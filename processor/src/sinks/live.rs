//! Updates to the live store. A sink that begins reads back as far as keyframes reach, so that the store is whole at
//! once even if it was empty.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::Context;
use async_trait::async_trait;
use backends::live_store::{LiveEntry, LiveStore, LiveStoreError};
use backends::log::{StoredEntry, Topic};
use daemon::{Backoff, retry};
use protocol::update::{DeliveryView, DriverUpdate, LiveDriver, Taken};
use protocol::{DeliveryKey, DeliveryUpdate, DriverKey, LiveView, Offset, PartitionId, TrackerKey, Update};

use super::ages::{Ages, Heard};
use super::{Reader, Sink, Work};

pub struct Live {
    pub store: Arc<dyn LiveStore>,
    pub views_max: usize,
}

#[async_trait]
impl Sink for Live {
    const GROUP: &'static str = "live";
    const TOPIC: Topic = Topic::Updates;
    type Work = LiveWork;

    fn begin(&self, _: PartitionId) -> LiveWork {
        LiveWork {
            store: self.store.clone(),
            views_max: self.views_max,
            deliveries: BTreeMap::new(),
            drivers: BTreeMap::new(),
            ages: Ages::new(),
        }
    }
}

/// The views of one partition of updates.
pub struct LiveWork {
    store: Arc<dyn LiveStore>,
    views_max: usize,
    deliveries: BTreeMap<DeliveryKey, (LiveView, Heard)>,
    drivers: BTreeMap<DriverKey, (LiveDriver, Heard)>,
    ages: Ages<TrackerKey>,
}

#[async_trait]
impl Work for LiveWork {
    async fn first(&mut self, reader: &Reader, taken: Option<Offset>) -> anyhow::Result<Offset> {
        let whole = reader.whole_before(Offset(u64::MAX)).await?;
        Ok(taken.map_or(whole, |taken| taken.min(whole)))
    }

    async fn handle(&mut self, reader: &Reader, entries: Vec<StoredEntry>) -> anyhow::Result<()> {
        let mut changed = Touched::default();
        for (_, batch) in reader.updates(&entries) {
            for update in &batch.updates {
                self.handle_update(update, &mut changed);
            }
        }
        let entries = self.entries(&changed);
        reader.metrics.live_views_shed.increment(self.forget(&changed));
        if entries.is_empty() {
            return Ok(());
        }
        let put = || self.store.put(entries.clone(), reader.monotonic());
        let is_transient = LiveStoreError::is_transient;
        retry("keep live views", Backoff::default(), &reader.stop, is_transient, put).await.context("keep live views")
    }
}

/// What one read changed, each once.
#[derive(Default)]
struct Touched {
    deliveries: BTreeSet<DeliveryKey>,
    drivers: BTreeSet<DriverKey>,
}

impl LiveWork {
    fn handle_update(&mut self, update: &Update, touched: &mut Touched) {
        match update {
            Update::Delivery(update) => {
                if self.handle_delivery(update) {
                    touched.deliveries.insert(update.key);
                }
            }
            Update::Driver(update) => {
                if self.handle_driver(update) {
                    touched.drivers.insert(update.key);
                }
            }
            Update::Heartbeat { source, at, .. } => self.ages.handle_time(*source, *at),
        }
    }

    fn handle_delivery(&mut self, update: &DeliveryUpdate) -> bool {
        let (key, source, at) = (TrackerKey::Delivery(update.key), update.source.partition, update.at);
        match self.deliveries.get_mut(&update.key) {
            Some((view, heard)) => {
                if view.handle_update(update) == Taken::Dropped {
                    return false;
                }
                *heard = self.ages.handle_heard(key, Some(*heard), source, at);
            }
            None => {
                let Some(view) = LiveView::begin(update) else { return false };
                let heard = self.ages.handle_heard(key, None, source, at);
                self.deliveries.insert(update.key, (view, heard));
            }
        }
        true
    }

    fn handle_driver(&mut self, update: &DriverUpdate) -> bool {
        let (key, source, at) = (TrackerKey::Driver(update.key), update.source.partition, update.at);
        match self.drivers.get_mut(&update.key) {
            Some((driver, heard)) => {
                if driver.handle_update(update) == Taken::Dropped {
                    return false;
                }
                *heard = self.ages.handle_heard(key, Some(*heard), source, at);
            }
            None => {
                let Some(driver) = LiveDriver::begin(update) else { return false };
                let heard = self.ages.handle_heard(key, None, source, at);
                self.drivers.insert(update.key, (driver, heard));
            }
        }
        true
    }

    fn entries(&self, touched: &Touched) -> Vec<LiveEntry> {
        let deliveries = touched.deliveries.iter().filter_map(|key| self.deliveries.get(key));
        let drivers = touched.drivers.iter().filter_map(|key| self.drivers.get(key));
        let deliveries = deliveries.map(|(view, _)| LiveEntry::Delivery(Box::new(kept_view(view))));
        deliveries.chain(drivers.map(|(driver, _)| LiveEntry::Driver(Box::new(driver.clone())))).collect()
    }

    /// Views that are over, old or too many: the store has them, and a keyframe begins one again. Answers how many were
    /// too many.
    fn forget(&mut self, touched: &Touched) -> u64 {
        for key in &touched.deliveries {
            if let Some((_, heard)) = self.deliveries.get(key).filter(|(view, _)| view.is_last) {
                self.ages.forget(TrackerKey::Delivery(*key), *heard);
                self.deliveries.remove(key);
            }
        }
        while let Some(key) = self.ages.pop_old(FRESH_MS) {
            self.forget_one(key);
        }
        let mut shed = 0;
        while self.ages.len() > self.views_max
            && let Some(key) = self.ages.pop_oldest()
        {
            self.forget_one(key);
            shed += 1;
        }
        shed
    }

    fn forget_one(&mut self, key: TrackerKey) {
        match key {
            TrackerKey::Delivery(key) => drop(self.deliveries.remove(&key)),
            TrackerKey::Driver(key) => drop(self.drivers.remove(&key)),
        }
    }
}

/// The view as the store keeps it. Nobody asks the store for the way of a delivery that is over, and the way is the
/// largest part of a view.
fn kept_view(view: &LiveView) -> LiveView {
    if !view.view.delivery.state.is_finished() {
        return view.clone();
    }
    let DeliveryView { delivery, position, .. } = &view.view;
    let over = DeliveryView {
        delivery: delivery.clone(),
        position: *position,
        progress: None,
        eta: None,
        plan: None,
        silent: None,
    };
    LiveView { epoch: view.epoch, number: view.number, at: view.at, view: over, is_last: view.is_last }
}

/// What was not heard of for longer gets no keyframes any more.
const FRESH_MS: i64 = 600_000;

#[cfg(test)]
mod tests {
    use backends::live_store::embedded::MemoryLiveStore;
    use protocol::update::{Changed, DriverBody, DriverView, Source};
    use protocol::{DriverId, TenantId, Time};

    use super::*;

    #[test]
    fn a_view_lasts_over_another_source_s_outage_and_over_a_clock_that_was_ahead() {
        let mut work = work();
        work.handle_driver(&keyframe(1, 1, 0));

        for (driver, source, at_s) in [(2, 2, 1_800), (2, 2, 1_810), (3, 1, 7_200), (3, 1, 3)] {
            work.handle_driver(&keyframe(driver, source, at_s));
            assert_eq!(work.forget(&Touched::default()), 0);
        }
        let mut changed = keyframe(1, 1, 4);
        changed.body = DriverBody::Changed { changed: Changed::default() };

        assert!(work.handle_driver(&changed), "its view is still known");
    }

    #[test]
    fn views_that_nothing_was_heard_of_for_long_are_let_go() {
        let mut work = work();
        work.handle_driver(&keyframe(1, 1, 0));

        for at_s in (0..=700).step_by(10) {
            work.handle_driver(&keyframe(2, 1, at_s));
            assert_eq!(work.forget(&Touched::default()), 0);
        }

        assert_eq!(work.drivers.keys().map(|key| key.driver.0).collect::<Vec<_>>(), [2]);
    }

    fn work() -> LiveWork {
        Live { store: Arc::new(MemoryLiveStore::default()), views_max: 10 }.begin(PartitionId(0))
    }

    fn keyframe(driver: u32, source: u32, at_s: i64) -> DriverUpdate {
        let key = DriverKey { tenant: TenantId(7), driver: DriverId(driver) };
        let view = DriverView {
            key,
            lead: None,
            position: None,
            phone_state: None,
            battery_percent: None,
            deliveries: Vec::new(),
            silent: None,
            vehicle: protocol::record::Vehicle::Car,
        };
        DriverUpdate {
            key,
            generation: Default::default(),
            fold_version: 1,
            source: Source { partition: PartitionId(source), ordinal: at_s as u32, ..Source::default() },
            at: Time::from_secs(at_s),
            events: Vec::new(),
            body: DriverBody::Keyframe { view: Box::new(view) },
        }
    }
}
