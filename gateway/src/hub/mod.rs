//! The hub: the live views of one partition of updates, and everybody who watches them. Pure: updates and time go in,
//! frames come out, and the same inputs give the same frames.
//!
//! **Invariant:** a watcher of a delivery is given each journal entry above its cursor exactly once, in order, or is
//! told that entries are missing here; of positions, ETAs and freshness it is given the newest only.
//!
//! Sketch: an update is one look-up and one byte set per watcher; a frame is serialized once, when the first watcher
//! asks for it. A watcher costs about 100 bytes here, whether it reads or stalls.

mod delivery;
mod dot;
mod driver;
pub mod frames;
mod map;
mod news;
#[cfg(test)]
mod tests;
mod timers;
mod watcher;

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use protocol::delivery::JOURNAL_MAX;
use protocol::update::Taken;
use protocol::{DeliveryKey, DeliveryUpdate, DriverKey, DriverUpdate, JournalNumber, LiveView, TenantId, Time, Update};

pub use delivery::{encoded_plan, map_delivery};
pub use frames::{FrameKind, LeftFrame, MapDelivery, MapFrame, MapSnapshot, SharedFrame};
pub use watcher::{CloseReason, Viewport, ViewportError, WatcherId};

use delivery::DeliveryEntry;
use driver::DriverEntry;
use news::News;
use timers::{SWEEP_EVERY, TimerKey};
use watcher::{DeliveryWatch, Interest, TenantEntry, Watcher};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HubConfig {
    /// How many views are held at most, deliveries and drivers each; of others the ledger answers.
    pub views_max: usize,
    /// How many journal entries a watcher may be behind before it is sent away to come back.
    pub journal_behind_max: usize,
    /// How long watchers of a finished delivery may stay.
    pub finished_linger: Duration,
    /// How long a finished delivery's view is held.
    pub finished_forget: Duration,
    /// How long a view is held whose tracker has let the delivery go, if no other takes it.
    pub released_forget: Duration,
    /// After so long without an update a view is not held any more.
    pub silent_forget: Duration,
}

impl Default for HubConfig {
    fn default() -> Self {
        HubConfig {
            views_max: 1 << 20,
            journal_behind_max: JOURNAL_MAX,
            finished_linger: Duration::from_secs(60),
            finished_forget: Duration::from_secs(600),
            released_forget: Duration::from_secs(60),
            silent_forget: Duration::from_secs(2 * 3600),
        }
    }
}

/// Where a returning customer was.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Resume {
    /// The last journal entry it has.
    pub last: Option<JournalNumber>,
    /// The token of the last whole view it got.
    pub view: Option<String>,
}

/// What came of beginning a watch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Begin {
    /// Frames come from here on.
    Begun,
    /// The entries above `last` up to and including `through` must come from the ledger first; then begin again.
    Behind { last: JournalNumber, through: JournalNumber },
    /// It claims to have entries that are not known here: the ledger knows whether they exist.
    Ahead { known: JournalNumber },
    /// No view is held: the ledger and the live store answer; then `handle_follow`.
    NotHeld,
}

/// What is left to do for a watcher after a poll.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flow {
    /// Nothing until it is woken.
    Quiet,
    /// Poll again.
    More,
    /// Let it go; it is given nothing more.
    Close(CloseReason),
}

/// What became of an update.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Handled {
    Taken,
    /// Seen before, or after a gap that the next keyframe closes.
    Dropped,
    /// No room for another view.
    Shed,
}

#[derive(Debug)]
pub struct Hub {
    config: HubConfig,
    deliveries: HashMap<DeliveryKey, DeliveryEntry>,
    drivers: HashMap<DriverKey, DriverEntry>,
    tenants: HashMap<TenantId, TenantEntry>,
    watchers: HashMap<WatcherId, Watcher>,
    /// Who watches a delivery, whether its view is held or not.
    watching: HashMap<DeliveryKey, Vec<WatcherId>>,
    woken: Vec<WatcherId>,
    timers: BTreeSet<(Time, TimerKey)>,
    is_whole: bool,
    watcher_next: u64,
}

impl Hub {
    /// A hub that has read nothing yet: until `handle_whole` it holds its views back.
    pub fn new(config: HubConfig, now: Time) -> Self {
        Hub {
            config,
            deliveries: HashMap::new(),
            drivers: HashMap::new(),
            tenants: HashMap::new(),
            watchers: HashMap::new(),
            watching: HashMap::new(),
            woken: Vec::new(),
            timers: BTreeSet::from([(now + SWEEP_EVERY, TimerKey::Sweep)]),
            is_whole: false,
            watcher_next: 0,
        }
    }

    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    pub fn view_count(&self) -> usize {
        self.deliveries.len() + self.drivers.len()
    }

    pub fn watcher_count(&self) -> usize {
        self.watchers.len()
    }

    pub fn handle_update(&mut self, update: &Update, now: Time) -> Handled {
        match update {
            Update::Delivery(update) => self.handle_delivery_update(update, now),
            Update::Driver(update) => self.handle_driver_update(update, now),
            Update::Heartbeat { .. } => Handled::Taken,
        }
    }

    /// All that was written before this hub began to read is read: its views are what there is.
    pub fn handle_whole(&mut self) {
        if self.is_whole {
            return;
        }
        self.is_whole = true;
        let held: Vec<DeliveryKey> =
            self.watching.keys().filter(|key| self.deliveries.contains_key(key)).copied().collect();
        for key in held {
            self.tell_customers(key, News::WHOLE | News::JOURNAL);
        }
        self.tell_all_maps();
    }

    /// Watches a delivery. Nothing is given before `handle_begin` or `handle_follow`.
    pub fn handle_watch(&mut self, key: DeliveryKey) -> WatcherId {
        let interest =
            Interest::Delivery(DeliveryWatch { key, cursor: JournalNumber(0), news: News::NONE, is_begun: false });
        let id = self.admit(interest);
        self.watching.entry(key).or_default().push(id);
        id
    }

    /// Settles where a watcher begins: at the newest view, or after the last entry it has.
    pub fn handle_begin(&mut self, id: WatcherId, resume: &Resume) -> Begin {
        let Some(Watcher { interest: Interest::Delivery(watch), .. }) = self.watchers.get_mut(&id) else {
            return Begin::NotHeld;
        };
        let Some(entry) = self.deliveries.get(&watch.key).filter(|_| self.is_whole) else { return Begin::NotHeld };
        let known = entry.delivery().last_number();
        let is_same_view = resume.view.as_deref() == Some(entry.view_token());
        let mut news = News::JOURNAL | News::STALE;
        match resume.last {
            None => {
                watch.cursor = known;
                news |= News::WHOLE;
            }
            Some(last) if last > known => return Begin::Ahead { known },
            Some(last) => {
                if let Some(through) = entry.missing_after(last) {
                    return Begin::Behind { last, through };
                }
                watch.cursor = last;
                // Whoever has an entry that there is not any more is shown what holds instead.
                let is_up_to_date = is_same_view && entry.may_have(last);
                news |= if is_up_to_date { News::POSITION | News::ETA } else { News::WHOLE };
            }
        }
        watch.is_begun = true;
        watch.news |= news;
        self.wake(id);
        Begin::Begun
    }

    /// The watcher was given all up to `cursor` from elsewhere; it gets what comes after, as soon as a view is held.
    pub fn handle_follow(&mut self, id: WatcherId, cursor: JournalNumber) {
        let Some(Watcher { interest: Interest::Delivery(watch), .. }) = self.watchers.get_mut(&id) else { return };
        watch.cursor = cursor;
        watch.is_begun = true;
        if self.is_whole && self.deliveries.contains_key(&watch.key) {
            watch.news |= News::WHOLE | News::JOURNAL;
            self.wake(id);
        }
    }

    pub fn handle_unwatch(&mut self, id: WatcherId) {
        let Some(watcher) = self.watchers.remove(&id) else { return };
        match watcher.interest {
            Interest::Delivery(watch) => {
                let Some(ids) = self.watching.get_mut(&watch.key) else { return };
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    self.watching.remove(&watch.key);
                }
            }
            Interest::Map(watch) => {
                if let Some(tenant) = self.tenants.get_mut(&watch.tenant) {
                    tenant.watchers.retain(|other| *other != id);
                }
                self.drop_empty_tenant(watch.tenant);
            }
        }
    }

    /// Everybody is let go.
    pub fn handle_close(&mut self, reason: CloseReason) {
        let ids: Vec<WatcherId> = self.watchers.keys().copied().collect();
        for id in ids {
            self.close(id, reason);
        }
    }

    /// Whoever has something to be polled for, once each.
    pub fn poll_wake(&mut self) -> Option<WatcherId> {
        self.woken.pop()
    }

    /// Appends what the watcher has not been given yet: missed journal entries first, then the newest state.
    pub fn poll_frames(&mut self, id: WatcherId, now: Time, into: &mut Vec<SharedFrame>) -> Flow {
        let Some(watcher) = self.watchers.get_mut(&id) else { return Flow::Quiet };
        watcher.is_woken = false;
        if let Some(reason) = watcher.closing {
            return Flow::Close(reason);
        }
        match &mut watcher.interest {
            Interest::Map(_) => self.poll_map(id, now, into),
            Interest::Delivery(watch) => match self.deliveries.get_mut(&watch.key) {
                Some(entry) if self.is_whole && watch.is_begun => {
                    poll_delivery(watch, entry, now, self.config.finished_linger, into)
                }
                Some(_) | None => Flow::Quiet,
            },
        }
    }

    /// The clock was set: all that is waited for goes on as before, and whoever watches is given the whole view anew, by
    /// the new time.
    pub fn handle_clock_set(&mut self, by_ms: i64) {
        let timers = std::mem::take(&mut self.timers).into_iter();
        self.timers = timers.map(|(at, key)| (Time(at.0.saturating_add(by_ms)), key)).collect();
        self.deliveries.values_mut().for_each(|entry| entry.handle_clock_set(by_ms));
        self.drivers.values_mut().for_each(|entry| entry.handle_clock_set(by_ms));
        for key in self.watching.keys().copied().collect::<Vec<_>>() {
            if self.deliveries.contains_key(&key) {
                self.tell_customers(key, News::WHOLE);
            }
        }
    }

    pub fn poll_timeout(&self) -> Option<Time> {
        self.timers.first().map(|(at, _)| *at)
    }

    pub fn handle_timeout(&mut self, now: Time) {
        while let Some((at, key)) = self.timers.first().copied() {
            if at > now {
                return;
            }
            self.timers.pop_first();
            match key {
                TimerKey::Delivery(key) => self.handle_delivery_timeout(key, now),
                TimerKey::Driver(key) => self.handle_driver_timeout(key, now),
                TimerKey::Sweep => self.sweep(now),
            }
        }
    }

    /// The newest whole view, if it is held.
    pub fn snapshot(&mut self, key: DeliveryKey, now: Time) -> Option<SharedFrame> {
        if !self.is_whole {
            return None;
        }
        Some(self.deliveries.get_mut(&key)?.snapshot(now))
    }

    pub fn live_view(&self, key: DeliveryKey) -> Option<&LiveView> {
        self.deliveries.get(&key).map(|entry| &entry.live)
    }

    fn handle_delivery_update(&mut self, update: &DeliveryUpdate, now: Time) -> Handled {
        let key = update.key;
        let is_full = self.deliveries.len() >= self.config.views_max;
        let news = match self.deliveries.get_mut(&key) {
            Some(entry) => {
                let (taken, news) = entry.handle_update(update, now);
                if taken == Taken::Dropped {
                    return Handled::Dropped;
                }
                news
            }
            None if is_full => return Handled::Shed,
            None => {
                let Some(entry) = DeliveryEntry::begin(update, now) else { return Handled::Dropped };
                self.deliveries.insert(key, entry);
                self.tenants.entry(key.tenant).or_default().deliveries.insert(key.delivery);
                News::WHOLE | News::JOURNAL | News::MAP
            }
        };
        self.arm_delivery(key, now);
        self.tell_customers(key, news.of_customers());
        if news.has(News::MAP) {
            self.tell_maps_of_delivery(key);
        }
        Handled::Taken
    }

    fn handle_driver_update(&mut self, update: &DriverUpdate, now: Time) -> Handled {
        let key = update.key;
        let is_full = self.drivers.len() >= self.config.views_max;
        let tenant = self.tenants.entry(key.tenant).or_default();
        let news = match self.drivers.get_mut(&key) {
            Some(entry) => entry.handle_update(update, &tenant.policy, now),
            None if is_full => {
                self.drop_empty_tenant(key.tenant);
                return Handled::Shed;
            }
            None => DriverEntry::begin(update, &tenant.policy, now).map(|entry| {
                self.drivers.insert(key, entry);
                tenant.drivers.insert(key.driver);
                News::MAP
            }),
        };
        let Some(news) = news else {
            self.drop_empty_tenant(key.tenant);
            return Handled::Dropped;
        };
        self.arm_driver(key, now);
        if news.has(News::MAP) {
            self.tell_maps_of_driver(key);
        }
        Handled::Taken
    }

    fn tell_customers(&mut self, key: DeliveryKey, news: News) {
        if news.is_none() || !self.is_whole {
            return;
        }
        let Some(ids) = self.watching.get(&key) else { return };
        let Some(entry) = self.deliveries.get(&key) else { return };
        for id in ids {
            let Some(watcher) = self.watchers.get_mut(id) else { continue };
            let Interest::Delivery(watch) = &mut watcher.interest else { continue };
            if !watch.is_begun {
                continue;
            }
            watch.news |= news;
            if entry.missing_after(watch.cursor).is_some()
                || entry.count_after(watch.cursor) > self.config.journal_behind_max
            {
                watcher.closing.get_or_insert(CloseReason::Slow);
            }
            if !std::mem::replace(&mut watcher.is_woken, true) {
                self.woken.push(*id);
            }
        }
    }

    fn admit(&mut self, interest: Interest) -> WatcherId {
        let id = WatcherId(self.watcher_next);
        self.watcher_next += 1;
        self.watchers.insert(id, Watcher { interest, is_woken: false, closing: None });
        id
    }

    fn wake(&mut self, id: WatcherId) {
        if let Some(watcher) = self.watchers.get_mut(&id)
            && !std::mem::replace(&mut watcher.is_woken, true)
        {
            self.woken.push(id);
        }
    }

    fn close(&mut self, id: WatcherId, reason: CloseReason) {
        if let Some(watcher) = self.watchers.get_mut(&id) {
            watcher.closing.get_or_insert(reason);
            self.wake(id);
        }
    }
}

fn poll_delivery(
    watch: &mut DeliveryWatch,
    entry: &mut DeliveryEntry,
    now: Time,
    finished_linger: Duration,
    into: &mut Vec<SharedFrame>,
) -> Flow {
    if entry.delivery().last_number() < watch.cursor {
        // What is held here is older than what the watcher was shown: nothing of it may undo that.
        return Flow::Quiet;
    }
    let news = std::mem::replace(&mut watch.news, News::NONE);
    if news.has(News::JOURNAL) {
        let Some(cursor) = entry.journal_after(watch.cursor, into) else { return Flow::Close(CloseReason::Slow) };
        watch.cursor = cursor;
    }
    if news.has(News::WHOLE) {
        into.push(entry.snapshot(now));
    } else {
        if news.has(News::POSITION) {
            into.extend(entry.position(now));
        }
        if news.has(News::ETA) {
            into.extend(entry.eta(now));
        }
        if news.has(News::STALE) && (!news.has(News::POSITION) || !entry.is_live(now)) {
            into.push(entry.stale(now));
        }
    }
    match entry.ended {
        Some(ended) if ended + finished_linger <= now => Flow::Close(CloseReason::Finished),
        Some(_) | None => Flow::Quiet,
    }
}
