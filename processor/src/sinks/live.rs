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
use protocol::{DeliveryKey, DeliveryUpdate, DriverKey, LiveView, Offset, PartitionId, Time, TrackerKey, Update};

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
            by_age: BTreeSet::new(),
        }
    }
}

/// The views of one partition of updates.
pub struct LiveWork {
    store: Arc<dyn LiveStore>,
    views_max: usize,
    deliveries: BTreeMap<DeliveryKey, LiveView>,
    drivers: BTreeMap<DriverKey, LiveDriver>,
    /// The same views, the one that was not heard of for longest first.
    by_age: BTreeSet<(Time, TrackerKey)>,
}

#[async_trait]
impl Work for LiveWork {
    async fn first(&mut self, reader: &Reader, committed: Option<Offset>) -> anyhow::Result<Offset> {
        let whole = reader.whole_before(Offset(u64::MAX)).await?;
        Ok(committed.map_or(whole, |committed| committed.min(whole)))
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
        let put = || self.store.put(entries.clone(), reader.now());
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
            Update::Heartbeat { .. } => {}
        }
    }

    fn handle_delivery(&mut self, update: &DeliveryUpdate) -> bool {
        let key = TrackerKey::Delivery(update.key);
        match self.deliveries.get_mut(&update.key) {
            Some(view) => {
                let before = view.at;
                if view.handle_update(update) == Taken::Dropped {
                    return false;
                }
                self.by_age.remove(&(before, key));
            }
            None => {
                let Some(view) = LiveView::begin(update) else { return false };
                self.deliveries.insert(update.key, view);
            }
        }
        self.by_age.insert((update.at, key));
        true
    }

    fn handle_driver(&mut self, update: &DriverUpdate) -> bool {
        match self.drivers.get_mut(&update.key) {
            Some(driver) => {
                let before = driver.at;
                if driver.handle_update(update) == Taken::Dropped {
                    return false;
                }
                self.by_age.remove(&(before, TrackerKey::Driver(update.key)));
            }
            None => {
                let Some(driver) = LiveDriver::begin(update) else { return false };
                self.drivers.insert(update.key, driver);
            }
        }
        self.by_age.insert((update.at, TrackerKey::Driver(update.key)));
        true
    }

    fn entries(&self, touched: &Touched) -> Vec<LiveEntry> {
        let deliveries = touched.deliveries.iter().filter_map(|key| self.deliveries.get(key));
        let drivers = touched.drivers.iter().filter_map(|key| self.drivers.get(key));
        let deliveries = deliveries.map(|view| LiveEntry::Delivery(Box::new(kept_view(view))));
        deliveries.chain(drivers.map(|driver| LiveEntry::Driver(Box::new(driver.clone())))).collect()
    }

    /// Views that are over, old or too many: the store has them, and a keyframe begins one again. Answers how many were
    /// too many.
    fn forget(&mut self, touched: &Touched) -> u64 {
        for key in &touched.deliveries {
            if let Some(view) = self.deliveries.get(key).filter(|view| view.is_last) {
                self.by_age.remove(&(view.at, TrackerKey::Delivery(*key)));
                self.deliveries.remove(key);
            }
        }
        let newest = self.by_age.last().map_or(Time::default(), |(at, _)| *at);
        let mut shed = 0;
        while let Some((at, key)) = self.by_age.first().copied() {
            let is_old = newest.millis_since(at) >= FRESH_MS;
            if !is_old && self.by_age.len() <= self.views_max {
                break;
            }
            shed += u64::from(!is_old);
            self.by_age.pop_first();
            match key {
                TrackerKey::Delivery(key) => drop(self.deliveries.remove(&key)),
                TrackerKey::Driver(key) => drop(self.drivers.remove(&key)),
            }
        }
        shed
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
