//! Dispatchers' maps: all drivers and live deliveries of one tenant in this hub, within an optional viewport. What a
//! map has not been told is a set of ids, never a queue of frames: a slow map catches up with one frame per driver.

use std::collections::BTreeSet;

use protocol::{DeliveryId, DeliveryKey, DeliveryPolicy, DriverId, DriverKey, TenantId, Time};

use super::frames::{self, LeftFrame, MapFrame, MapSnapshot, SharedFrame};
use super::watcher::{Interest, MapWatch, Viewport, Watcher, WatcherId};
use super::{Flow, Hub};

impl Hub {
    /// Watches a tenant. Answers what the map shows from here on.
    pub fn handle_map_watch(
        &mut self,
        tenant: TenantId,
        policy: DeliveryPolicy,
        viewport: Option<Viewport>,
        now: Time,
    ) -> (WatcherId, MapSnapshot) {
        let watch = MapWatch {
            tenant,
            viewport,
            drivers: BTreeSet::new(),
            deliveries: BTreeSet::new(),
            inside: BTreeSet::new(),
        };
        let id = self.admit(Interest::Map(Box::new(watch)));
        let entry = self.tenants.entry(tenant).or_default();
        entry.policy = policy;
        entry.watchers.push(id);
        let snapshot = self.map_snapshot(tenant, policy, viewport, now);
        if let Some(Watcher { interest: Interest::Map(watch), .. }) = self.watchers.get_mut(&id) {
            watch.inside = snapshot.drivers.iter().map(|frame| frame.driver).collect();
        }
        (id, snapshot)
    }

    /// The map shows another part: drivers who come into it are told, those who fall out of it leave.
    pub fn handle_viewport(&mut self, id: WatcherId, viewport: Option<Viewport>) {
        let Some(Watcher { interest: Interest::Map(watch), .. }) = self.watchers.get_mut(&id) else { return };
        watch.viewport = viewport;
        if let Some(tenant) = self.tenants.get(&watch.tenant) {
            watch.drivers.extend(&tenant.drivers);
        }
        self.wake(id);
    }

    /// All that a map shows of this hub.
    pub fn map_snapshot(
        &mut self,
        tenant: TenantId,
        policy: DeliveryPolicy,
        viewport: Option<Viewport>,
        now: Time,
    ) -> MapSnapshot {
        let mut snapshot = MapSnapshot { degraded: !self.is_whole, server_time: now, ..MapSnapshot::default() };
        let Some(entry) = self.tenants.get(&tenant).filter(|_| self.is_whole) else { return snapshot };
        for driver in &entry.drivers {
            let Some(held) = self.drivers.get(&DriverKey { tenant, driver: *driver }) else { continue };
            let position = held.live.view.position.map(|shown| shown.position);
            let is_shown = viewport.is_none_or(|viewport| position.is_some_and(|at| viewport.contains(at)));
            if is_shown {
                snapshot.drivers.push(held.frame(&policy, now));
            }
        }
        for delivery in &entry.deliveries {
            if let Some(held) = self.deliveries.get(&DeliveryKey { tenant, delivery: *delivery })
                && held.ended.is_none()
            {
                snapshot.deliveries.push(held.map_delivery(now));
            }
        }
        snapshot
    }

    /// The map is shown everything anew, instead of what it was shown and of what it has not been told yet.
    pub fn handle_map_renew(&mut self, id: WatcherId, now: Time) -> MapSnapshot {
        let Some(Watcher { interest: Interest::Map(watch), .. }) = self.watchers.get(&id) else {
            return MapSnapshot::default();
        };
        let (tenant, viewport) = (watch.tenant, watch.viewport);
        let policy = self.tenants.get(&tenant).map(|entry| entry.policy).unwrap_or_default();
        let snapshot = self.map_snapshot(tenant, policy, viewport, now);
        if let Some(Watcher { interest: Interest::Map(watch), .. }) = self.watchers.get_mut(&id) {
            watch.drivers.clear();
            watch.deliveries.clear();
            watch.inside = snapshot.drivers.iter().map(|frame| frame.driver).collect();
        }
        snapshot
    }

    pub(super) fn poll_map(&mut self, id: WatcherId, now: Time, into: &mut Vec<SharedFrame>) -> Flow {
        let Some(Watcher { interest: Interest::Map(watch), .. }) = self.watchers.get_mut(&id) else {
            return Flow::Quiet;
        };
        if !self.is_whole {
            return Flow::Quiet;
        }
        let tenant = watch.tenant;
        let policy = self.tenants.get(&tenant).map(|entry| entry.policy).unwrap_or_default();
        while into.len() < FRAMES_PER_POLL {
            let Some(driver) = watch.drivers.pop_first() else { break };
            let held = self.drivers.get_mut(&DriverKey { tenant, driver });
            match held.filter(|held| watch.shows(held.live.view.position.map(|shown| shown.position))) {
                Some(held) => {
                    watch.inside.insert(driver);
                    into.push(held.map_frame(&policy, now));
                }
                None if watch.inside.remove(&driver) => into.push(left(LeftFrame::Driver(driver))),
                None => {}
            }
        }
        while into.len() < FRAMES_PER_POLL {
            let Some(delivery) = watch.deliveries.pop_first() else { break };
            match self.deliveries.get_mut(&DeliveryKey { tenant, delivery }) {
                Some(held) => into.push(held.map_frame(now)),
                None => into.push(left(LeftFrame::Delivery(delivery))),
            }
        }
        if watch.drivers.is_empty() && watch.deliveries.is_empty() { Flow::Quiet } else { Flow::More }
    }

    pub(super) fn tell_maps_of_delivery(&mut self, key: DeliveryKey) {
        self.tell_maps(key.tenant, |watch| {
            watch.deliveries.insert(key.delivery);
        });
    }

    pub(super) fn tell_maps_of_driver(&mut self, key: DriverKey) {
        self.tell_maps(key.tenant, |watch| {
            watch.drivers.insert(key.driver);
        });
    }

    /// Every map is told all there is.
    pub(super) fn tell_all_maps(&mut self) {
        let tenants: Vec<(TenantId, Vec<DriverId>, Vec<DeliveryId>)> = self
            .tenants
            .iter()
            .filter(|(_, entry)| !entry.watchers.is_empty())
            .map(|(id, entry)| {
                (*id, entry.drivers.iter().copied().collect(), entry.deliveries.iter().copied().collect())
            })
            .collect();
        for (tenant, drivers, deliveries) in tenants {
            self.tell_maps(tenant, |watch| {
                watch.drivers.extend(&drivers);
                watch.deliveries.extend(&deliveries);
            });
        }
    }

    pub(super) fn forget_delivery(&mut self, key: DeliveryKey) {
        if let Some(entry) = self.tenants.get_mut(&key.tenant) {
            entry.deliveries.remove(&key.delivery);
        }
        self.tell_maps_of_delivery(key);
        self.drop_empty_tenant(key.tenant);
    }

    pub(super) fn forget_driver(&mut self, key: DriverKey) {
        if let Some(entry) = self.tenants.get_mut(&key.tenant) {
            entry.drivers.remove(&key.driver);
        }
        self.tell_maps_of_driver(key);
        self.drop_empty_tenant(key.tenant);
    }

    pub(super) fn drop_empty_tenant(&mut self, tenant: TenantId) {
        if let Some(entry) = self.tenants.get(&tenant)
            && entry.drivers.is_empty()
            && entry.deliveries.is_empty()
            && entry.watchers.is_empty()
        {
            self.tenants.remove(&tenant);
        }
    }

    fn tell_maps(&mut self, tenant: TenantId, mark: impl Fn(&mut MapWatch)) {
        if !self.is_whole {
            return;
        }
        let Some(entry) = self.tenants.get(&tenant) else { return };
        for id in &entry.watchers {
            let Some(watcher) = self.watchers.get_mut(id) else { continue };
            let Interest::Map(watch) = &mut watcher.interest else { continue };
            mark(watch);
            if !std::mem::replace(&mut watcher.is_woken, true) {
                self.woken.push(*id);
            }
        }
    }
}

fn left(frame: LeftFrame) -> SharedFrame {
    frames::shared_map(&MapFrame::Left(frame))
}

/// So that one poll holds the hub for microseconds, not for a whole tenant.
const FRAMES_PER_POLL: usize = 256;
