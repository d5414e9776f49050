//! Updates to the live store. A sink that begins reads back as far as keyframes reach, so that the store is whole at
//! once even if it was empty.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use async_trait::async_trait;
use backends::live_store::{LiveDriver, LiveEntry, LiveStore, LiveStoreError};
use backends::log::{StoredEntry, Topic};
use daemon::{Backoff, retry};
use protocol::update::{Changed, DriverBody, DriverUpdate, Taken};
use protocol::{DeliveryKey, DeliveryUpdate, DriverKey, LiveView, Offset, PartitionId, Time, Update};

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
        }
    }
}

/// The views of one partition of updates.
pub struct LiveWork {
    store: Arc<dyn LiveStore>,
    views_max: usize,
    deliveries: BTreeMap<DeliveryKey, LiveView>,
    drivers: BTreeMap<DriverKey, LiveDriver>,
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
        self.forget();
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
    deliveries: std::collections::BTreeSet<DeliveryKey>,
    drivers: std::collections::BTreeSet<DriverKey>,
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
        match self.deliveries.get_mut(&update.key) {
            Some(view) => view.handle_update(update) != Taken::Dropped,
            None => LiveView::begin(update).map(|view| self.deliveries.insert(update.key, view)).is_some(),
        }
    }

    fn handle_driver(&mut self, update: &DriverUpdate) -> bool {
        let order = |d: &LiveDriver| (d.generation, d.fold_version, d.source);
        let is_newer = |d: &LiveDriver| order(d) < (update.generation, update.fold_version, update.source);
        let known = self.drivers.get_mut(&update.key);
        let view = match (&update.body, known) {
            (_, Some(known)) if !is_newer(known) => return false,
            (DriverBody::Keyframe { view }, _) => (**view).clone(),
            (DriverBody::Changed { changed }, Some(known)) => changed_view(known, changed),
            (DriverBody::Changed { .. }, None) => return false,
        };
        let DriverUpdate { key, generation, fold_version, source, at, .. } = *update;
        self.drivers.insert(key, LiveDriver { generation, fold_version, source, at, view });
        true
    }

    fn entries(&self, touched: &Touched) -> Vec<LiveEntry> {
        let deliveries = touched.deliveries.iter().filter_map(|key| self.deliveries.get(key));
        let drivers = touched.drivers.iter().filter_map(|key| self.drivers.get(key));
        let deliveries = deliveries.map(|view| LiveEntry::Delivery(Box::new(view.clone())));
        deliveries.chain(drivers.map(|driver| LiveEntry::Driver(Box::new(driver.clone())))).collect()
    }

    /// Views that are over or too many: the store has them, and a keyframe begins one again.
    fn forget(&mut self) {
        self.deliveries.retain(|_, view| !view.is_last);
        if self.deliveries.len() + self.drivers.len() > self.views_max {
            let newest = self.deliveries.values().map(|v| v.at).chain(self.drivers.values().map(|d| d.at)).max();
            let is_fresh = |at: Time| newest.is_some_and(|newest| newest.millis_since(at) < FRESH_MS);
            self.deliveries.retain(|_, view| is_fresh(view.at));
            self.drivers.retain(|_, driver| is_fresh(driver.at));
            while self.deliveries.len() + self.drivers.len() > self.views_max {
                let _ = self.drivers.pop_first().map(|_| ()).or_else(|| self.deliveries.pop_first().map(|_| ()));
            }
        }
    }
}

fn changed_view(known: &LiveDriver, changed: &Changed) -> protocol::update::DriverView {
    let mut view = known.view.clone();
    view.position = changed.position.or(view.position);
    view.silent = changed.silent.unwrap_or(view.silent);
    view.phone_state = changed.phone_state.or(view.phone_state);
    view.battery_percent = changed.battery_percent.or(view.battery_percent);
    view
}

/// What has not been told of for longer gets no keyframes any more.
const FRESH_MS: i64 = 120_000;
