//! What the hub does by time alone: dots that go stale, heartbeats that are due, views that nobody needs any more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use protocol::{DeliveryKey, DriverKey, Time};

use super::Hub;
use super::delivery::DeliveryEntry;
use super::news::News;
use super::watcher::CloseReason;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum TimerKey {
    Delivery(DeliveryKey),
    Driver(DriverKey),
    Sweep,
}

impl Hub {
    pub(super) fn handle_delivery_timeout(&mut self, key: DeliveryKey, now: Time) {
        let linger = self.config.finished_linger;
        let Some(entry) = self.deliveries.get_mut(&key) else { return };
        entry.armed = None;
        let news = entry.handle_timeout(now);
        let is_over = entry.ended.is_some_and(|ended| ended + linger <= now);
        self.arm_delivery(key, now);
        self.tell_customers(key, news.of_customers());
        if news.has(News::MAP) {
            self.tell_maps_of_delivery(key);
        }
        if is_over {
            for id in self.watching.get(&key).cloned().unwrap_or_default() {
                self.wake(id);
            }
        }
    }

    pub(super) fn handle_driver_timeout(&mut self, key: DriverKey, now: Time) {
        let policy = self.tenants.get(&key.tenant).map(|tenant| tenant.policy).unwrap_or_default();
        let Some(entry) = self.drivers.get_mut(&key) else { return };
        entry.armed = None;
        let news = entry.handle_timeout(&policy, now);
        self.arm_driver(key, now);
        if news.has(News::MAP) {
            self.tell_maps_of_driver(key);
        }
    }

    /// Sets the entry's timer, unless one is set for earlier: that one looks again.
    pub(super) fn arm_delivery(&mut self, key: DeliveryKey, now: Time) {
        let linger_ms = self.config.finished_linger.as_millis() as i64;
        let Some(entry) = self.deliveries.get_mut(&key) else { return };
        let Some(at) = entry.next_wake(now, linger_ms) else { return };
        arm(&mut self.timers, &mut entry.armed, at, TimerKey::Delivery(key));
    }

    pub(super) fn arm_driver(&mut self, key: DriverKey, now: Time) {
        let policy = self.tenants.get(&key.tenant).map(|tenant| tenant.policy).unwrap_or_default();
        let Some(entry) = self.drivers.get_mut(&key) else { return };
        let Some(at) = entry.next_wake(&policy, now) else { return };
        arm(&mut self.timers, &mut entry.armed, at, TimerKey::Driver(key));
    }

    /// Lets go of what is finished, released or silent for long. Watchers stay: the ledger has answered them all there is.
    /// Those of a delivery that was released and that nobody took have to ask the ledger what became of it.
    pub(super) fn sweep(&mut self, now: Time) {
        self.timers.insert((now + SWEEP_EVERY, TimerKey::Sweep));
        let config = self.config;
        let is_over = |touched: Time, ended: Option<Time>| {
            touched + config.silent_forget <= now || ended.is_some_and(|ended| ended + config.finished_forget <= now)
        };
        let is_abandoned = |entry: &DeliveryEntry| entry.is_released() && entry.touched + config.released_forget <= now;
        let deliveries: BTreeMap<DeliveryKey, (Option<Time>, bool)> = self
            .deliveries
            .iter()
            .filter(|(_, entry)| is_over(entry.touched, entry.ended) || is_abandoned(entry))
            .map(|(key, entry)| (*key, (entry.armed, is_abandoned(entry))))
            .collect();
        for (key, (armed, is_abandoned)) in deliveries {
            self.deliveries.remove(&key);
            if is_abandoned {
                for id in self.watching.get(&key).cloned().unwrap_or_default() {
                    self.close(id, CloseReason::Moved);
                }
            }
            armed.map(|at| self.timers.remove(&(at, TimerKey::Delivery(key))));
            self.forget_delivery(key);
        }
        let drivers: BTreeMap<DriverKey, Option<Time>> = self
            .drivers
            .iter()
            .filter(|(_, entry)| is_over(entry.touched, None))
            .map(|(key, entry)| (*key, entry.armed))
            .collect();
        for (key, armed) in drivers {
            self.drivers.remove(&key);
            armed.map(|at| self.timers.remove(&(at, TimerKey::Driver(key))));
            self.forget_driver(key);
        }
    }
}

fn arm(timers: &mut BTreeSet<(Time, TimerKey)>, armed: &mut Option<Time>, at: Time, key: TimerKey) {
    match *armed {
        Some(before) if before <= at => return,
        Some(before) => {
            timers.remove(&(before, key));
        }
        None => {}
    }
    timers.insert((at, key));
    *armed = Some(at);
}

pub(super) const SWEEP_EVERY: Duration = Duration::from_secs(60);
