//! The state of one driver, or of one delivery that has no driver: folded from records, published in updates.
//!
//! A fix has its effects once, and only when it is the newest of the device that leads; every other is recorded and
//! does nothing else. So the dot never goes back. What a batch changes is published once, at its end.

use protocol::record::{Fence, Vehicle};
use protocol::update::{Changed, DriverBody, DriverUpdate, DriverView, Event, ShownPosition, SilentCause, Source};
use protocol::{
    AssignmentNumber, DeliveryId, DeliveryKey, DeliveryPolicy, DeviceKey, DeviceNumber, DriverKey, EdgeId, FixRecord,
    HeardRecord, PhoneState, Position, RejectReason, Time, TrackerKey, Update, Verdict,
};
use wincode::{SchemaRead, SchemaWrite};

use super::clock::FoldClock;
use super::clock_set::ClockSet;
use super::delivery::{DriverPosition, Numbering, TrackedDelivery};
use super::device::{Device, Novelty};
use super::dormant::{Reader, Writer};
use super::effects::Step;
use super::fence::{Passage, Presence, side_of_fence};
use super::fields::{Each, One, Plain, Required, fields};
use super::judge::Neighbour;
use super::listening::Listening;
use super::motion::Motion;
use super::phone_clock::Mapped;
use super::roads::Roads;
use super::snapping::{OnMap, Snapping};

#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Tracker {
    key: TrackerKey,
    devices: Vec<Device>,
    lead: Option<Lead>,
    shown: Option<ShownPosition>,
    /// The position as the phone measured it.
    measured: Option<Position>,
    snapped: Option<OnMap>,
    vehicle: Vehicle,
    heard: Option<Heard>,
    phone_state: Option<PhoneState>,
    battery_percent: Option<u8>,
    snapping: Snapping,
    motion: Motion,
    fences: Vec<Watched>,
    /// By key.
    deliveries: Vec<TrackedDelivery>,
    silent: Option<SilentCause>,
    keyframe_due: Time,
    pending: Pending,
}

fields! {
    Tracker {
        1 key: Required<Plain>,
        2 devices: Each,
        3 lead: Plain,
        4 shown: Plain,
        5 measured: Plain,
        6 snapped: Plain = None,
        7 vehicle: Plain,
        8 heard: Plain = None,
        9 phone_state: Plain = None,
        10 battery_percent: Plain = None,
        11 snapping: One = Snapping::new(),
        12 motion: Plain = Motion::default(),
        13 fences: Each,
        14 deliveries: Each,
        15 silent: Plain = None,
        16 keyframe_due: Plain = Time::default(),
        17 pending: Plain = Pending { keyframe: true, ..Pending::default() },
    }
}

#[derive(Clone, Copy, PartialEq, Debug, SchemaWrite, SchemaRead)]
struct Lead {
    device: DeviceNumber,
    /// When the registry said so. None: no lead record came, so the first device that was heard leads.
    said: Option<Time>,
}

/// What the registry said of a driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SaidOfDriver {
    pub driver: DriverKey,
    pub lead: Option<DeviceKey>,
    pub vehicle: Vehicle,
}

#[derive(Clone, Copy, PartialEq, Debug, SchemaWrite, SchemaRead)]
struct Heard {
    at: Time,
    edge: EdgeId,
}

#[derive(Clone, PartialEq, Debug)]
struct Watched {
    fence: Fence,
    presence: Presence,
}

fields! {
    Watched {
        1 fence: Plain,
        2 presence: Plain = Presence::default(),
    }
}

/// What the driver's next update says. Empty between entries of the log.
#[derive(Clone, PartialEq, Debug, Default, SchemaWrite, SchemaRead)]
struct Pending {
    events: Vec<Event>,
    position: bool,
    phone: bool,
    silent: bool,
    keyframe: bool,
}

impl Tracker {
    pub(crate) fn new(key: TrackerKey, now: Time) -> Tracker {
        Tracker {
            key,
            devices: Vec::new(),
            lead: None,
            shown: None,
            measured: None,
            snapped: None,
            vehicle: Vehicle::default(),
            heard: None,
            phone_state: None,
            battery_percent: None,
            snapping: Snapping::new(),
            motion: Motion::default(),
            fences: Vec::new(),
            deliveries: Vec::new(),
            silent: None,
            keyframe_due: keyframe_after(key, now),
            pending: Pending { keyframe: true, ..Pending::default() },
        }
    }

    pub(crate) fn key(&self) -> TrackerKey {
        self.key
    }

    /// Whether nothing is left that anybody could ask for.
    pub(crate) fn is_over(&self, now: Time) -> bool {
        let is_empty = matches!(self.key, TrackerKey::Delivery(_)) && self.deliveries.is_empty();
        is_empty || (self.may_be_over() && now.millis_since(self.last_seen()) >= self.forget_ms())
    }

    /// When there was the last sign of life. Edges may have clocks that are behind, so their word is not enough:
    /// `keyframe_due` is within a minute of it by the fold's own time, or later.
    fn last_seen(&self) -> Time {
        self.heard.map_or(self.keyframe_due, |heard| heard.at.max(self.keyframe_due))
    }

    /// How long nobody needs to have heard of it until it is over.
    fn forget_ms(&self) -> i64 {
        if self.heard.is_some() { FORGET_MS } else { 0 }
    }

    /// Since when he may be falling asleep. Who is silent by himself has an edge whose marks say that they went on.
    fn tired_since(&self) -> Option<Time> {
        let heard = self.heard?.at;
        Some(if self.silent == Some(SilentCause::Driver) { heard } else { self.last_seen() })
    }

    /// Whether nothing is left once nobody has heard of it for as long as the records are kept.
    fn may_be_over(&self) -> bool {
        let is_led = self.lead.is_some_and(|lead| lead.said.is_some()); // the registry does not say it again
        let is_plain = self.fences.is_empty() && self.vehicle == Vehicle::default() && !is_led;
        self.deliveries.is_empty() && is_plain && self.snapping.is_idle()
    }

    pub(crate) fn handle_fix(&mut self, record: &FixRecord, step: &mut Step<'_>) {
        let device = self.device(record.device.device);
        device.heard = device.heard.max(record.received);
        let novelty = device.handle_fix(record);
        let is_lead = self.is_lead(record.device.device, record.received.min(step.clock.latest()));
        if is_lead {
            self.handle_sign_of_life(record.received, record.edge, step);
        }
        match novelty {
            Novelty::Seen => step.effects.counts.fixes_repeated += 1,
            Novelty::Settled => {
                step.effects.counts.fixes_late += 1;
                step.record(*record, record.verdict, self.delivery_under_way());
            }
            Novelty::New => self.handle_new_fix(record, is_lead, step),
        }
    }

    fn handle_new_fix(&mut self, record: &FixRecord, is_lead: bool, step: &mut Step<'_>) {
        let device = self.device(record.device.device);
        let mapped = device.clock.handle_fix(record.fix.measured, record.received);
        let mut verdict = verdict_of(record, mapped);
        if verdict.is_accepted() {
            let fix = &record.fix;
            verdict = device.neighbours.judge(Neighbour {
                at: mapped.at,
                position: fix.position,
                accuracy_m: fix.accuracy_m,
            });
        }
        let is_late = !mapped.is_newest || self.shown.is_some_and(|shown| mapped.at < shown.event_time);
        let counts = &mut step.effects.counts;
        match (verdict.is_accepted(), is_lead, is_late) {
            (true, true, false) => return self.handle_newest(record, mapped, step),
            (true, true, true) => {
                counts.fixes_late += 1;
                let delivery = self.delivery_under_way();
                return self.snapping.handle_late(record, mapped.at, delivery, self.vehicle.into(), step);
            }
            (true, false, _) => counts.fixes_aside += 1,
            (false, _, _) => {}
        }
        step.record(*record, verdict, self.delivery_under_way());
    }

    /// The fix that says where the driver is.
    fn handle_newest(&mut self, record: &FixRecord, mapped: Mapped, step: &mut Step<'_>) {
        let delivery = self.delivery_under_way();
        self.snapped = self.snapping.handle_newest(record, mapped.at, delivery, self.vehicle.into(), step);
        let fix = &record.fix;
        let snapped = self.snapped.map(|on_map| on_map.snapped);
        self.measured = Some(fix.position);
        self.shown = Some(ShownPosition {
            position: snapped.map_or(fix.position, |s| s.position),
            snapped: snapped.is_some(),
            confidence_percent: snapped.map_or(0, |s| s.confidence_percent),
            heading_255: snapped.map(|s| s.heading_255).or(fix.heading_255),
            speed_dm_s: fix.speed_dm_s,
            accuracy_m: fix.accuracy_m,
            measured: fix.measured,
            event_time: mapped.at,
            received: record.received,
            standing: fix.phone_state.is_some_and(|state| state.has(PhoneState::STANDING)),
        });
        self.pending.position = true;
        if fix.battery_percent.is_some() && fix.battery_percent != self.battery_percent {
            self.battery_percent = fix.battery_percent;
            self.pending.phone = true;
        }
        self.handle_phone_state(fix.phone_state);
        let mut events = Vec::new();
        self.motion.handle_position(fix.position, mapped.at, &mut events);
        self.add_events(events);
        self.pass_fences(fix.position, mapped.at);
        self.each_delivery(|delivery, driver| delivery.handle_position(driver, step));
    }

    pub(crate) fn handle_heard(&mut self, record: &HeardRecord, step: &mut Step<'_>) {
        let device = self.device(record.device.device);
        let is_newest = record.received >= device.heard;
        device.heard = device.heard.max(record.received);
        device.settle_below(record.lowest_held);
        if !self.is_lead(record.device.device, record.received.min(step.clock.latest())) {
            return;
        }
        self.handle_sign_of_life(record.received, record.edge, step);
        if !is_newest {
            return;
        }
        self.handle_phone_state(record.phone_state);
        let is_standing = record.phone_state.is_some_and(|state| state.has(PhoneState::STANDING));
        if let (true, Some(shown)) = (is_standing, &mut self.shown) {
            shown.standing = true;
            shown.received = shown.received.max(record.received);
            self.pending.position = true;
            let mut events = Vec::new();
            self.motion.handle_stay(record.received.min(step.clock.latest()), &mut events);
            self.add_events(events);
            self.each_delivery(|delivery, driver| delivery.handle_stay(driver, step));
        }
    }

    /// The device that leads was heard.
    fn handle_sign_of_life(&mut self, received: Time, edge: EdgeId, step: &Step<'_>) {
        self.resume_keyframes(step.clock.now());
        if self.heard.is_none_or(|heard| received >= heard.at) {
            // Whoever had a view of him has let it go.
            self.pending.keyframe |= !self.is_live(received);
            self.heard = Some(Heard { at: received, edge });
            self.judge_silence(step);
        }
    }

    pub(crate) fn handle_lead(&mut self, device: DeviceKey, at: Time) {
        if self.lead.is_some_and(|lead| lead.said.is_some_and(|said| at < said)) {
            return;
        }
        let is_news = self.lead.is_none_or(|lead| lead.device != device.device);
        self.lead = Some(Lead { device: device.device, said: Some(at) });
        self.pending.keyframe |= is_news;
    }

    /// The device was revoked. The next that is heard leads.
    pub(crate) fn handle_lead_ended(&mut self, device: DeviceKey, at: Time) {
        let is_it = |lead: Lead| lead.device == device.device && lead.said.is_none_or(|said| said <= at);
        if self.lead.is_some_and(is_it) {
            self.lead = None;
            self.pending.keyframe = true;
        }
    }

    /// The clock was set: he goes on by the new time, and whoever looks at him is given it.
    pub(crate) fn handle_clock_set(&mut self, set: ClockSet, step: &mut Step<'_>) {
        self.snapping.begin_again(step); // a matcher goes by time
        self.move_times(set);
        if self.is_live(set.now) {
            self.pending.keyframe = true;
            self.deliveries.iter_mut().for_each(TrackedDelivery::want_keyframe);
        }
    }

    pub(super) fn move_times(&mut self, set: ClockSet) {
        self.devices.iter_mut().for_each(|device| device.handle_clock_set(set));
        self.lead.iter_mut().filter_map(|lead| lead.said.as_mut()).for_each(|said| set.stamp(said));
        if let Some(shown) = &mut self.shown {
            set.stamp(&mut shown.event_time);
            set.stamp(&mut shown.received);
        }
        self.heard.iter_mut().for_each(|heard| set.stamp(&mut heard.at));
        self.snapping.handle_clock_set(set);
        self.motion.handle_clock_set(set);
        self.fences.iter_mut().for_each(|watched| watched.presence.handle_clock_set(set));
        self.deliveries.iter_mut().for_each(|delivery| delivery.handle_clock_set(set));
        set.due(&mut self.keyframe_due);
    }

    pub(super) fn set_heard(&mut self, at: Time) {
        self.heard.iter_mut().for_each(|heard| heard.at = at);
    }

    /// Replaces all fences. A driver who is inside one that stays is still inside it.
    pub(crate) fn handle_fences(&mut self, fences: &[Fence]) {
        let before = std::mem::take(&mut self.fences);
        let watched = |fence: &Fence| {
            let presence = before.iter().find(|w| w.fence == *fence).map_or_else(Presence::default, |w| w.presence);
            Watched { fence: fence.clone(), presence }
        };
        self.fences = fences.iter().filter(|f| f.ring.len() <= RING_MAX).take(FENCES_MAX).map(watched).collect();
    }

    /// False if it has too many deliveries already.
    pub(crate) fn take(&mut self, delivery: TrackedDelivery, step: &mut Step<'_>) -> bool {
        if self.deliveries.len() >= DELIVERIES_MAX {
            return false;
        }
        let (key, now) = (delivery.delivery.key, step.clock.now());
        let at = self.deliveries.partition_point(|other| other.delivery.key < key);
        self.deliveries.insert(at, delivery);
        self.resume_keyframes(now);
        self.pending.keyframe = true;
        self.each_delivery(|delivery, driver| {
            if delivery.delivery.key == key {
                delivery.handle_taken(driver, now);
            }
        });
        self.recompute(step);
        true
    }

    pub(crate) fn delivery_mut(&mut self, key: DeliveryKey) -> Option<&mut TrackedDelivery> {
        self.deliveries.iter_mut().find(|tracked| tracked.delivery.key == key)
    }

    /// Lets a delivery go, with a last update.
    pub(crate) fn release(&mut self, key: DeliveryKey, step: &mut Step<'_>) -> Option<TrackedDelivery> {
        let at = self.deliveries.iter().position(|tracked| tracked.delivery.key == key)?;
        let mut released = self.deliveries.remove(at);
        released.flush(step, self.shown, true);
        self.pending.keyframe = true;
        Some(released)
    }

    /// Computes progress and ETA anew: what the ledger said may have changed where the driver is to go.
    pub(crate) fn recompute(&mut self, step: &mut Step<'_>) {
        let now = step.clock.now();
        self.each_delivery(|delivery, driver| {
            delivery.recompute(driver, now.max(driver.shown.event_time), step);
        });
    }

    /// Time has passed. Nothing happens where nothing is due by `poll_timeout`.
    pub(crate) fn handle_tick(&mut self, step: &mut Step<'_>) {
        let now = step.clock.now();
        if self.is_ahead(step.clock) {
            self.bring_back(step.clock.latest());
        }
        self.judge_silence(step);
        self.snapping.handle_tick(self.measured, step);
        self.each_delivery(|delivery, driver| delivery.handle_time(driver, now, step));
        for watched in &mut self.fences {
            if watched.presence.handle_time(i64::from(watched.fence.dwell_s) * 1000, now) {
                self.pending.events.push(Event::FenceDwelt { fence: watched.fence.name.clone() });
            }
        }
        self.handle_keyframe_time(now);
        if self.is_asleep(now) {
            self.devices.iter_mut().for_each(Device::trim);
            self.snapping.trim();
            self.snapped = None;
        }
    }

    /// Whether something of it was heard by a clock that was wrong, as before it was set back.
    fn is_ahead(&self, clock: &FoldClock) -> bool {
        let heard = self.heard.map(|heard| heard.at).into_iter().chain(self.shown.map(|shown| shown.received));
        let said = self.lead.and_then(|lead| lead.said);
        let of_devices = self.devices.iter().map(|device| device.heard);
        heard.chain(said).chain(of_devices).any(|at| at > clock.latest())
    }

    fn bring_back(&mut self, latest: Time) {
        let heard = self.heard.iter_mut().map(|heard| &mut heard.at);
        let shown = self.shown.iter_mut().map(|shown| &mut shown.received);
        let said = self.lead.iter_mut().filter_map(|lead| lead.said.as_mut());
        let of_devices = self.devices.iter_mut().map(|device| &mut device.heard);
        heard.chain(shown).chain(said).chain(of_devices).for_each(|at| *at = (*at).min(latest));
    }

    /// When a tick is to visit it at the latest, if no record comes before; early visits change nothing.
    pub(crate) fn poll_timeout(&self, clock: &FoldClock, listening: &Listening) -> Option<Time> {
        let now = clock.now();
        let shown = self.shown.as_ref().filter(|_| self.measured.is_some());
        let of_deliveries = self.deliveries.iter().filter_map(|delivery| delivery.poll_timeout(shown?));
        let dwell = |watched: &Watched| watched.presence.due(i64::from(watched.fence.dwell_s) * 1000);
        let after = |since: Time, ms: i64| Time(since.0.saturating_add(ms));
        let tired_since = self.tired_since().filter(|_| !self.is_trimmed() && self.may_sleep());
        let sleeps_at = tired_since.map(|since| after(since, ASLEEP_MS));
        let over_at = self.may_be_over().then(|| after(self.last_seen(), self.forget_ms()));
        let is_ahead = self.is_ahead(clock).then_some(now);
        let others = [is_ahead, self.keyframe_timeout(now), self.snapping.poll_timeout(), sleeps_at, over_at];
        let others = others.into_iter().flatten().chain(self.silence_due(clock, listening)).chain(of_deliveries);
        others.chain(self.fences.iter().filter_map(dwell)).min()
    }

    /// Whether there is an update to emit, as after a restore under new epochs.
    pub(crate) fn has_update(&self) -> bool {
        self.pending.says_anything() || self.deliveries.iter().any(TrackedDelivery::has_update)
    }

    /// When the silence of the driver, or of one of his deliveries, may change by time alone.
    pub(crate) fn silence_due(&self, clock: &FoldClock, listening: &Listening) -> Option<Time> {
        let heard = self.heard?;
        let due = |policy: &DeliveryPolicy, silent| {
            let timeout_ms = policy.stale_after_ms();
            if clock.silence(heard.edge, heard.at, timeout_ms) != silent {
                return Some(clock.now());
            }
            listening.due(clock, heard.edge, heard.at, timeout_ms, silent)
        };
        let of_deliveries = self.deliveries.iter().filter_map(|t| due(&t.delivery.policy, t.silent()));
        of_deliveries.chain(due(&self.strictest_policy(), self.silent)).min()
    }

    fn keyframe_timeout(&self, now: Time) -> Option<Time> {
        if self.keyframe_due.millis_since(now) > KEYFRAME_MS {
            return Some(now); // the clock was set back
        }
        // A keyframe that was due while no ticks came is told with the next one, if anybody still looks then.
        let told = self.keyframe_due.max(now);
        self.is_live(told).then_some(self.keyframe_due)
    }

    fn handle_keyframe_time(&mut self, now: Time) {
        let is_set_back = self.keyframe_due.millis_since(now) > KEYFRAME_MS;
        if now < self.keyframe_due && !is_set_back {
            return;
        }
        if !self.is_live(now) && !is_set_back {
            return; // it begins again with the first sign of life
        }
        self.keyframe_due = keyframe_after(self.key, now);
        if is_set_back {
            return; // the clock was set back; nothing fires twice
        }
        self.deliveries.iter_mut().for_each(TrackedDelivery::want_keyframe);
        self.pending.keyframe = true;
    }

    /// Somebody may be looking at the driver or at one of his deliveries.
    pub(crate) fn is_live(&self, now: Time) -> bool {
        let is_heard = self.heard.is_some_and(|heard| now.millis_since(heard.at) < LIVE_MS);
        is_heard || !self.deliveries.is_empty()
    }

    /// Nobody waits for what would be emitted next.
    pub(crate) fn forget_news(&mut self) {
        self.pending = Pending::default();
    }

    /// Its deliveries, with the assignment under which it has them.
    pub(crate) fn assignments(&self) -> impl Iterator<Item = (DeliveryKey, AssignmentNumber)> {
        self.deliveries.iter().map(|tracked| (tracked.delivery.key, tracked.epoch().assignment))
    }

    /// After a while without keyframes they begin again at their usual place in the interval.
    fn resume_keyframes(&mut self, now: Time) {
        if self.keyframe_due <= now {
            self.keyframe_due = keyframe_after(self.key, now);
        }
    }

    /// Nothing was heard of the driver for long, and nobody waits for him.
    fn is_asleep(&self, now: Time) -> bool {
        self.may_sleep() && self.tired_since().is_some_and(|since| now.millis_since(since) >= ASLEEP_MS)
    }

    fn may_sleep(&self) -> bool {
        self.deliveries.is_empty() && self.snapping.is_idle() && matches!(self.key, TrackerKey::Driver(_))
    }

    fn is_trimmed(&self) -> bool {
        self.snapping.is_trimmed() && self.snapped.is_none() && self.devices.iter().all(Device::is_trimmed)
    }

    /// When and by which edge he was heard last, if he sleeps and has nothing left to say.
    pub(crate) fn heard_before_sleep(&self, now: Time) -> Option<(Time, EdgeId)> {
        let has_slept = self.is_asleep(now) && self.is_trimmed() && !self.pending.says_anything();
        self.heard.filter(|_| has_slept).map(|heard| (heard.at, heard.edge))
    }

    pub(crate) fn silent(&self) -> Option<SilentCause> {
        self.silent
    }

    /// All that a tracker has while it sleeps, but what `Dormant` shows.
    pub(super) fn write_dormant(&self, to: &mut Writer) -> Option<()> {
        let Tracker {
            key: _,
            devices,
            lead,
            shown,
            measured,
            snapped: _, // trimmed
            vehicle: _,
            heard: _,
            phone_state,
            battery_percent,
            snapping,
            motion,
            fences,
            deliveries: _, // it has none
            silent: _,
            keyframe_due,
            pending: _, // empty
        } = self;
        to.write(&(devices.len() as u8))?;
        devices.iter().try_for_each(|device| device.write_dormant(to))?;
        to.write(&(fences.len() as u8))?;
        for Watched { fence, presence } in fences {
            to.write(fence)?;
            to.write(presence)?;
        }
        snapping.write_dormant(to)?;
        to.write(lead)?;
        to.write(shown)?;
        to.write(measured)?;
        to.write(phone_state)?;
        to.write(battery_percent)?;
        to.write(motion)?;
        to.write(keyframe_due)
    }

    pub(super) fn read_dormant(
        key: TrackerKey,
        (at, edge): (Time, EdgeId),
        silent: Option<SilentCause>,
        vehicle: Vehicle,
        from: &mut Reader<'_>,
    ) -> Option<Tracker> {
        let devices = (0..from.read::<u8>()?).map(|_| Device::read_dormant(from)).collect::<Option<_>>()?;
        let watched = |from: &mut Reader<'_>| Some(Watched { fence: from.read()?, presence: from.read()? });
        let fences = (0..from.read::<u8>()?).map(|_| watched(from)).collect::<Option<_>>()?;
        Some(Tracker {
            key,
            devices,
            fences,
            snapping: Snapping::read_dormant(from)?,
            lead: from.read()?,
            shown: from.read()?,
            measured: from.read()?,
            phone_state: from.read()?,
            battery_percent: from.read()?,
            motion: from.read()?,
            keyframe_due: from.read()?,
            snapped: None,
            vehicle,
            heard: Some(Heard { at, edge }),
            deliveries: Vec::new(),
            silent,
            pending: Pending::default(),
        })
    }

    /// A record, or a tick, could not be folded; the tracker is as it was before.
    pub(crate) fn handle_fold_failed(&mut self, source: Source) {
        self.pending.events.push(Event::FoldFailed { source });
        self.pending.keyframe = true;
        self.deliveries.iter_mut().for_each(|delivery| delivery.handle_fold_failed(source));
    }

    /// Forgets all that lies on edges or came of it: matchers, and the planned routes.
    pub(crate) fn begin_on_roads_again(&mut self, step: &mut Step<'_>) {
        self.snapped = None;
        self.snapping.abandon(step);
        self.deliveries.iter_mut().for_each(TrackedDelivery::forget_plan);
    }

    #[cfg(test)]
    pub(crate) fn has_matcher(&self) -> bool {
        self.snapping.has_matcher()
    }

    /// The numbers of its deliveries' updates: what a flush changes beside what is pending.
    pub(super) fn devices_mut(&mut self) -> &mut [Device] {
        &mut self.devices
    }

    pub(crate) fn numberings(&self) -> Vec<Numbering> {
        self.deliveries.iter().map(TrackedDelivery::numbering).collect()
    }

    pub(crate) fn restore_numberings(&mut self, numberings: Vec<Numbering>) {
        self.deliveries
            .iter_mut()
            .zip(numberings)
            .for_each(|(delivery, numbering)| delivery.restore_numbering(numbering));
    }

    /// Drops what the next update would say: it cannot be said.
    pub(crate) fn drop_pending(&mut self) {
        self.pending = Pending::default();
        self.deliveries.iter_mut().for_each(TrackedDelivery::drop_pending);
    }

    /// What the driver travels by decides which roads are open to him and how fast he is on them.
    pub(crate) fn handle_vehicle(&mut self, vehicle: Vehicle, step: &mut Step<'_>) {
        step.effects.vehicles.insert(vehicle);
        if vehicle == self.vehicle {
            return;
        }
        self.vehicle = vehicle;
        self.pending.keyframe = true;
        self.snapped = None;
        self.snapping.begin_again(step);
        self.deliveries.iter_mut().for_each(TrackedDelivery::forget_plan);
        self.recompute(step);
    }

    pub(crate) fn vehicle(&self) -> Vehicle {
        self.vehicle
    }

    /// What it knows by the registry's word, if that is anything.
    pub(super) fn said_of_driver(&self) -> Option<SaidOfDriver> {
        let TrackerKey::Driver(driver) = self.key else { return None };
        let said = self.lead.filter(|lead| lead.said.is_some());
        let device = |lead: Lead| DeviceKey { tenant: driver.tenant, driver: driver.driver, device: lead.device };
        let (lead, vehicle) = (said.map(device), self.vehicle);
        (lead.is_some() || vehicle != Vehicle::default()).then_some(SaidOfDriver { driver, lead, vehicle })
    }

    /// Whether some of its state lies on the edges of this map.
    pub(crate) fn stands_on(&self, map: u32) -> bool {
        self.snapping.is_on(map)
    }

    /// Whether its matcher is on a map that is not in use any more.
    pub(crate) fn is_stranded(&self, roads: &Roads) -> bool {
        self.snapping.is_stranded(roads)
    }

    pub(crate) fn is_late_run_stranded(&self, roads: &Roads) -> bool {
        self.snapping.is_late_run_stranded(roads)
    }

    /// Another owner speaks from here on: what it says of a driver next is the whole view. Whether it has to.
    pub(crate) fn handle_claim(&mut self, now: Time) -> bool {
        let is_live = matches!(self.key, TrackerKey::Driver(_)) && self.is_live(now);
        self.pending.keyframe |= is_live;
        is_live
    }

    pub(crate) fn begin_epochs(&mut self, generation: protocol::update::Generation) {
        for delivery in &mut self.deliveries {
            delivery.begin_epoch(protocol::update::Epoch { generation, ..delivery.epoch() });
        }
        self.pending.keyframe = true;
    }

    /// Emits what there is to say, and lets finished deliveries go: those are returned.
    pub(crate) fn flush(&mut self, step: &mut Step<'_>) -> Vec<TrackedDelivery> {
        for delivery in &mut self.deliveries {
            delivery.flush(step, self.shown, false);
        }
        self.pending.keyframe |= self.deliveries.iter().any(TrackedDelivery::is_finished);
        let pending = std::mem::take(&mut self.pending);
        if let TrackerKey::Driver(key) = self.key
            && step.is_told(key)
        {
            self.pending.keyframe = true;
        } else if let TrackerKey::Driver(key) = self.key
            && pending.says_anything()
        {
            self.emit_driver(key, pending, step);
        }
        self.deliveries.extract_if(.., |delivery| delivery.is_finished()).collect()
    }

    fn emit_driver(&self, key: DriverKey, pending: Pending, step: &mut Step<'_>) {
        let body = if pending.keyframe {
            DriverBody::Keyframe { view: Box::new(self.view(key)) }
        } else {
            DriverBody::Changed { changed: self.changed(&pending) }
        };
        let source = step.next_source();
        step.emit(Update::Driver(DriverUpdate {
            key,
            generation: step.clock.generation(),
            fold_version: super::FOLD_VERSION,
            source,
            at: step.clock.now(),
            events: pending.events,
            body,
        }));
    }

    pub(super) fn view(&self, key: DriverKey) -> DriverView {
        let under_way = self.deliveries.iter().filter(|delivery| !delivery.is_finished());
        let device = |lead: Lead| DeviceKey { tenant: key.tenant, driver: key.driver, device: lead.device };
        DriverView {
            key,
            lead: self.lead.map(device),
            position: self.shown,
            phone_state: self.phone_state,
            battery_percent: self.battery_percent,
            deliveries: under_way.map(|tracked| tracked.delivery.key.delivery).collect(),
            silent: self.silent,
            vehicle: self.vehicle,
        }
    }

    fn changed(&self, pending: &Pending) -> Changed {
        Changed {
            position: self.shown.filter(|_| pending.position),
            progress: None,
            eta: None,
            silent: pending.silent.then_some(self.silent),
            phone_state: self.phone_state.filter(|_| pending.phone),
            battery_percent: self.battery_percent.filter(|_| pending.phone),
        }
    }

    fn handle_phone_state(&mut self, state: Option<PhoneState>) {
        let Some(state) = state.filter(|state| self.phone_state != Some(*state)) else { return };
        self.phone_state = Some(state);
        self.pending.phone = true;
        self.pending.events.push(Event::PhoneStateChanged { state });
    }

    fn judge_silence(&mut self, step: &Step<'_>) {
        let Some(heard) = self.heard else { return };
        let judge = |policy: &DeliveryPolicy| step.clock.silence(heard.edge, heard.at, policy.stale_after_ms());
        for tracked in &mut self.deliveries {
            tracked.handle_silence(judge(&tracked.delivery.policy));
        }
        let silent = judge(&self.strictest_policy());
        if silent != self.silent {
            self.silent = silent;
            self.pending.silent = true;
            self.pending.events.push(silent.map_or(Event::HeardAgain, |cause| Event::Silent { cause }));
        }
    }

    fn strictest_policy(&self) -> DeliveryPolicy {
        let policies = self.deliveries.iter().map(|tracked| tracked.delivery.policy);
        policies.min_by_key(DeliveryPolicy::stale_after_ms).unwrap_or_default()
    }

    fn pass_fences(&mut self, position: Position, at: Time) {
        for watched in &mut self.fences {
            let passage = watched.presence.handle_fix(side_of_fence(position, &watched.fence), at);
            let fence = || watched.fence.name.clone();
            match passage {
                Some(Passage::Entered) => self.pending.events.push(Event::FenceEntered { fence: fence() }),
                Some(Passage::Left | Passage::Brushed) => {
                    self.pending.events.push(Event::FenceLeft { fence: fence() });
                }
                None => {}
            }
        }
    }

    /// Events of the driver are events of all his deliveries too.
    fn add_events(&mut self, events: Vec<Event>) {
        for event in events {
            self.deliveries.iter_mut().for_each(|delivery| delivery.add_event(event.clone()));
            self.pending.events.push(event);
        }
    }

    fn each_delivery(&mut self, mut what: impl FnMut(&mut TrackedDelivery, &DriverPosition<'_>)) {
        let (Some(shown), Some(measured)) = (&self.shown, self.measured) else { return };
        let driver = DriverPosition { shown, measured, snapped: self.snapped, vehicle: self.vehicle };
        self.deliveries.iter_mut().for_each(|delivery| what(delivery, &driver));
    }

    /// The delivery that the driver drives for.
    pub(crate) fn delivery_under_way(&self) -> Option<DeliveryId> {
        let under_way = self.deliveries.iter().find(|tracked| tracked.is_under_way());
        under_way.or(self.deliveries.first()).map(|tracked| tracked.delivery.key.delivery)
    }

    /// Whether the device that was heard says where the driver is. Where none leads, it does from here on.
    fn is_lead(&mut self, device: DeviceNumber, received: Time) -> bool {
        if let Some(lead) = self.lead.filter(|lead| lead.device == device || !self.is_given_up(lead, received)) {
            return lead.device == device;
        }
        self.lead = Some(Lead { device, said: None });
        self.pending.keyframe = true;
        true
    }

    /// A lead that nobody said ends when the device was not heard for so long that its position is not shown any more.
    fn is_given_up(&self, lead: &Lead, received: Time) -> bool {
        let device = self.devices.iter().find(|device| device.number == lead.device);
        let silent_ms = device.map_or(i64::MAX, |device| received.millis_since(device.heard));
        lead.said.is_none() && silent_ms >= self.strictest_policy().unavailable_after_ms()
    }

    /// The device's state, made if there is none. Of too many devices the one heard longest ago is forgotten.
    fn device(&mut self, number: DeviceNumber) -> &mut Device {
        let at = self.devices.iter().position(|device| device.number == number);
        let at = at.unwrap_or_else(|| {
            if self.devices.len() >= DEVICES_MAX {
                let lead = self.lead.map(|lead| lead.device);
                let others = self.devices.iter().enumerate().filter(|(_, d)| Some(d.number) != lead);
                let oldest = others.min_by_key(|(_, d)| (d.heard, d.number)).map_or(0, |(i, _)| i);
                self.devices.remove(oldest);
            }
            self.devices.push(Device::new(number));
            self.devices.len() - 1
        });
        &mut self.devices[at]
    }
}

impl Pending {
    fn says_anything(&self) -> bool {
        self.keyframe || self.position || self.phone || self.silent || !self.events.is_empty()
    }
}

/// The edge's verdict, except where only a wrong clock made the fix look wrong.
fn verdict_of(record: &FixRecord, mapped: Mapped) -> Verdict {
    let by_clock = matches!(record.verdict, Verdict::Rejected(RejectReason::FromFuture | RejectReason::TooOld));
    if by_clock && mapped.is_corrected { Verdict::Accepted } else { record.verdict }
}

/// The next time this tracker emits keyframes: each tracker has its own place within the interval.
fn keyframe_after(key: TrackerKey, now: Time) -> Time {
    let hash = key
        .key_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
    let place_ms = (hash % KEYFRAME_MS as u64) as i64;
    let since_ms = now.0.saturating_sub(place_ms).rem_euclid(KEYFRAME_MS);
    Time(now.0.saturating_add(KEYFRAME_MS - since_ms))
}

/// Keyframes come at least every 60 s; ticks come every second and may be late.
const KEYFRAME_MS: i64 = 55_000;
/// As long as live views are kept.
pub(super) const LIVE_MS: i64 = 2 * 3_600_000;
/// As long as the records are kept.
const FORGET_MS: i64 = 72 * 3_600_000;
/// A driver who was not heard of for so long, and has no delivery, is asleep.
const ASLEEP_MS: i64 = 600_000;
const DEVICES_MAX: usize = 8;
const FENCES_MAX: usize = 64;
const RING_MAX: usize = 1_000;
const DELIVERIES_MAX: usize = protocol::delivery::OPEN_PER_DRIVER_MAX;
