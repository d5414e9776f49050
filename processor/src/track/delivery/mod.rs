//! A delivery as its tracker follows it: what the ledger said of it, where its driver is on the plan, when he arrives,
//! and what the next update has to say.
//!
//! The status is the ledger's alone. What the tracker sees of it (left the pickup while ready, at the drop-off) it only
//! proposes; the ledger's answer comes back as a record. Each part has a file of its own: `numbering` for the numbers of
//! updates, `stops` for where the driver has been, `course` for the plan and the progress along it, `arrival` for the
//! ETA.

mod arrival;
mod course;
mod numbering;
mod plan;
mod stops;

use maps::Profile;
use maps::eta::{Basis, Eta as Prediction};
use protocol::frame::Freshness;
use protocol::record::{PlannedPoint, Vehicle};
use protocol::update::{
    Changed, DeliveryBody, DeliveryView, Epoch, EtaBasis, Event, Leg, Progress, Proposal, ShownPosition, SilentCause,
    Source,
};
use protocol::{Delivery, DeliveryState, JournalEntry, JournalKind, Milestone, Position, StopKind, Time};
use wincode::{SchemaRead, SchemaWrite};

use super::clock_set::ClockSet;
use super::effects::Step;
use super::fields::{One, Plain, Required, fields};
use super::snapping::OnMap;
use arrival::Arrival;
use course::{Course, Destination};
pub(crate) use numbering::Numbering;
use stops::Stops;

#[derive(Clone, PartialEq, Debug)]
pub(crate) struct TrackedDelivery {
    pub(super) delivery: Delivery,
    numbering: Numbering,
    stops: Stops,
    course: Course,
    arrival: Arrival,
    silent: Option<SilentCause>,
    nearest: Option<Nearest>,
    /// Each is proposed once.
    proposed: Vec<Proposal>,
    pending: Pending,
}

fields! {
    TrackedDelivery {
        1 delivery: Required<Plain>,
        2 numbering: Required<One>,
        3 stops: One,
        4 course: One = Course::default(),
        5 arrival: One = Arrival::default(),
        6 silent: Plain = None,
        7 nearest: Plain = None,
        8 proposed: Plain,
        9 pending: Plain = Pending { keyframe: true, ..Pending::default() },
    }
}

/// The shortest distance that was left to a stop, and whether `MovingAway` was published since.
#[derive(Clone, Copy, PartialEq, Debug, SchemaWrite, SchemaRead)]
struct Nearest {
    stop: u8,
    remaining_m: u32,
    is_published: bool,
}

/// What the next update of this delivery says. Empty between entries of the log.
#[derive(Clone, PartialEq, Debug, Default, SchemaWrite, SchemaRead)]
struct Pending {
    events: Vec<Event>,
    position: bool,
    progress: bool,
    eta: bool,
    silent: bool,
    keyframe: bool,
}

/// Where the driver is, as far as his deliveries need to know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DriverPosition<'a> {
    pub shown: &'a ShownPosition,
    /// As the phone measured it: a courtyard is not on a road.
    pub measured: Position,
    pub snapped: Option<OnMap>,
    pub vehicle: Vehicle,
}

impl DriverPosition<'_> {
    fn profile(&self) -> Profile {
        self.vehicle.into()
    }
}

impl TrackedDelivery {
    /// Takes a delivery over, under a new epoch. What its journal says of this assignment goes out with the first update,
    /// unless it was committed well before `told_at`, when another owner emitted it.
    pub(crate) fn begin(delivery: Delivery, epoch: Epoch, told_at: Time) -> TrackedDelivery {
        let was_told = |entry: &JournalEntry| told_at.millis_since(entry.at) > TOLD_WITHIN_MS;
        let news = entries_of_assignment(&delivery).iter().filter(|entry| !was_told(entry));
        let events = news.map(|entry| Event::Journal { entry: entry.clone() }).collect();
        TrackedDelivery {
            numbering: Numbering::begin(epoch),
            stops: Stops::unvisited(delivery.stops.len()),
            course: Course::default(),
            arrival: Arrival::default(),
            silent: None,
            nearest: None,
            proposed: Vec::new(),
            pending: Pending { events, keyframe: true, ..Pending::default() },
            delivery,
        }
    }

    pub(crate) fn begin_epoch(&mut self, epoch: Epoch) {
        self.numbering = Numbering::begin(epoch);
        self.pending.keyframe = true;
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.numbering.epoch()
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.delivery.state.is_finished()
    }

    pub(crate) fn is_under_way(&self) -> bool {
        self.delivery.state == DeliveryState::PickedUp
    }

    /// Takes a ledger event once; false if it was taken before.
    pub(crate) fn handle_entry(&mut self, entry: JournalEntry) -> bool {
        let is_status = matches!(entry.kind, JournalKind::Status { .. });
        if !self.delivery.handle_entry(entry.clone()) {
            return false;
        }
        self.pending.events.push(Event::Journal { entry });
        self.pending.keyframe = true;
        if is_status {
            self.propose_arriving();
        }
        true
    }

    /// The same delivery again; true if its journal holds entries that are new here.
    pub(crate) fn handle_again(&mut self, delivery: Delivery) -> bool {
        let taken = delivery.journal.into_iter().filter(|entry| self.handle_entry(entry.clone()));
        taken.count() > 0
    }

    pub(crate) fn add_event(&mut self, event: Event) {
        self.pending.events.push(event);
    }

    pub(crate) fn want_keyframe(&mut self) {
        self.pending.keyframe = true;
    }

    /// The planned route is not one for the driver any more.
    pub(crate) fn forget_plan(&mut self) {
        self.pending.keyframe |= self.course.forget_plan(); // a plan travels in keyframes only
    }

    /// An outside router's answer to the request that was made for this stop at this time. False if that plan has been
    /// replaced since, or if the answer is no route.
    pub(crate) fn handle_planned(&mut self, epoch: Epoch, stop: u8, made: Time, points: &[PlannedPoint]) -> bool {
        let is_ahead = self.stops.target(&self.delivery).is_some_and(|(target, _)| target == stop);
        let is_taken = is_ahead && epoch == self.epoch() && self.course.handle_planned(stop, made, points);
        self.pending.keyframe |= is_taken; // a plan travels in keyframes only
        is_taken
    }

    /// The driver is somewhere new.
    pub(crate) fn handle_position(&mut self, driver: &DriverPosition<'_>, step: &mut Step<'_>) {
        self.pending.position = true;
        self.pass_stops(driver);
        self.recompute(driver, driver.shown.event_time, step);
    }

    /// The driver's tracker has just taken it: he may be at a stop already.
    pub(crate) fn handle_taken(&mut self, driver: &DriverPosition<'_>, now: Time) {
        if self.is_lost(driver.shown, now) {
            return;
        }
        self.pass_stops(driver);
        if driver.shown.standing {
            self.stops.handle_stay(&self.delivery, driver.measured, driver.shown.event_time);
        }
    }

    /// The phone says that the driver is where he was.
    pub(crate) fn handle_stay(&mut self, driver: &DriverPosition<'_>, step: &mut Step<'_>) {
        self.pending.position = true;
        self.stops.handle_stay(&self.delivery, driver.measured, driver.shown.event_time);
        if self.arrival.published().is_none() {
            self.recompute(driver, step.clock.now().max(driver.shown.event_time), step);
        }
    }

    /// Computes progress and ETA anew from where the driver is. There are none from a position too old to be shown.
    pub(crate) fn recompute(&mut self, driver: &DriverPosition<'_>, now: Time, step: &mut Step<'_>) {
        let Some((stop, position)) = self.stops.target(&self.delivery).map(|(i, stop)| (i, stop.position)) else {
            self.course.end();
            self.set_progress(None);
            return self.arrival.end(&mut self.pending);
        };
        if self.is_lost(driver.shown, step.clock.now()) {
            return self.handle_lost();
        }
        let destination = Destination { delivery: self.delivery.key, epoch: self.epoch(), stop, position };
        let followed = self.course.follow(destination, driver, now, &mut self.pending, step);
        let (prediction, progress) = self.course.predict(followed.at, position, driver, step.roads);
        let leg = self.leg(stop, progress.remaining_m);
        self.set_progress(Some(Progress { leg, ..progress }));
        self.watch_distance(stop, progress.remaining_m);
        if let Some(entered) = self.stops.entered(stop) {
            return self.arrival.handle_arrived(entered, basis_of(&prediction), stop, &mut self.pending);
        }
        self.arrival.handle_prediction(&prediction, stop, followed.is_fresh, now, &mut self.pending);
        self.propose_minutes(stop, &prediction);
    }

    /// Time has passed without a fix: the driver stands, so he arrives later; or nobody knows any more where he is.
    pub(crate) fn handle_time(&mut self, driver: &DriverPosition<'_>, now: Time, step: &mut Step<'_>) {
        if self.is_lost(driver.shown, now) {
            return self.handle_lost();
        }
        if let (true, None) = (self.arrival.is_due(now), self.silent) {
            self.recompute(driver, now, step);
        }
    }

    /// The clock was set.
    pub(crate) fn handle_clock_set(&mut self, set: ClockSet) {
        self.stops.handle_clock_set(set);
        self.course.handle_clock_set(set);
        self.arrival.handle_clock_set(set);
    }

    /// When time alone changes something, by the position that is shown.
    pub(crate) fn poll_timeout(&self, shown: &ShownPosition) -> Option<Time> {
        let is_expected = self.arrival.published().is_some() || self.course.progress().is_some();
        let lost_ms = self.delivery.policy.unavailable_after_ms();
        let lost_at = is_expected.then(|| Time(shown.seen().0.saturating_add(lost_ms)));
        let due = self.arrival.due().filter(|_| self.silent.is_none());
        lost_at.into_iter().chain(due).min()
    }

    /// Whether the position is too old to be shown.
    fn is_lost(&self, shown: &ShownPosition, now: Time) -> bool {
        Freshness::of(Some(shown), &self.delivery.policy, now) == Freshness::Unavailable
    }

    /// Nobody knows where the driver is: neither how far he has come nor when he arrives.
    fn handle_lost(&mut self) {
        self.set_progress(None);
        self.arrival.end(&mut self.pending);
    }

    pub(crate) fn silent(&self) -> Option<SilentCause> {
        self.silent
    }

    /// Whether there is an update to emit.
    pub(crate) fn has_update(&self) -> bool {
        self.numbering.is_first() || self.pending.says_anything()
    }

    /// A record of its tracker could not be folded.
    pub(crate) fn handle_fold_failed(&mut self, source: Source) {
        self.pending.events.push(Event::FoldFailed { source });
        self.pending.keyframe = true;
    }

    pub(crate) fn numbering(&self) -> Numbering {
        self.numbering
    }

    pub(crate) fn restore_numbering(&mut self, numbering: Numbering) {
        self.numbering = numbering;
    }

    /// Drops what the next update would say: it cannot be said.
    pub(crate) fn drop_pending(&mut self) {
        self.pending = Pending::default();
    }

    pub(crate) fn handle_silence(&mut self, silent: Option<SilentCause>) {
        if silent == self.silent {
            return;
        }
        self.silent = silent;
        self.pending.silent = true;
        self.pending.events.push(match silent {
            Some(cause) => Event::Silent { cause },
            None => Event::HeardAgain,
        });
    }

    /// Emits an update if there is anything to say. The last one is emitted in any case: `is_released` means that the
    /// tracker lets the delivery go.
    pub(crate) fn flush(&mut self, step: &mut Step<'_>, position: Option<ShownPosition>, is_released: bool) {
        let pending = std::mem::take(&mut self.pending);
        if step.is_told(self.delivery.key) {
            self.pending.keyframe = true;
            return;
        }
        let is_last = is_released || self.is_finished();
        if !(is_last || self.numbering.is_first() || pending.says_anything()) {
            return;
        }
        let body = if pending.keyframe || self.numbering.is_first() {
            DeliveryBody::Keyframe { view: Box::new(self.view(position)) }
        } else {
            DeliveryBody::Changed { changed: self.changed(&pending, position) }
        };
        self.numbering.emit(self.delivery.key, pending.events, body, is_last, step);
    }

    fn view(&self, position: Option<ShownPosition>) -> DeliveryView {
        DeliveryView {
            delivery: self.delivery.clone(),
            position,
            progress: self.course.progress(),
            eta: self.arrival.published(),
            plan: self.course.plan(),
            silent: self.silent,
        }
    }

    fn changed(&self, pending: &Pending, position: Option<ShownPosition>) -> Changed {
        Changed {
            position: position.filter(|_| pending.position),
            progress: pending.progress.then_some(self.course.progress()),
            eta: pending.eta.then_some(self.arrival.published()),
            silent: pending.silent.then_some(self.silent),
            phone_state: None,
            battery_percent: None,
        }
    }

    fn pass_stops(&mut self, driver: &DriverPosition<'_>) {
        for stop in 0..self.delivery.stops.len() {
            let passage = self.stops.handle_position(stop, &self.delivery, driver.measured, driver.shown.event_time);
            match passage {
                Some(stops::StopPassage::Entered) => {
                    self.pending.events.push(Event::StopEntered { stop: stop as u8 });
                    self.propose_arriving();
                }
                Some(stops::StopPassage::Left { completes_pickups }) => {
                    self.pending.events.push(Event::StopLeft { stop: stop as u8 });
                    if completes_pickups && self.delivery.policy.auto_picked_up {
                        self.propose(Proposal::PickedUp { stop: stop as u8 });
                    }
                }
                None => {}
            }
        }
    }

    fn propose_arriving(&mut self) {
        if self.delivery.state != DeliveryState::PickedUp || !self.delivery.policy.auto_arriving {
            return;
        }
        for stop in 0..self.delivery.stops.len() {
            let is_drop_off = self.delivery.stops[stop].kind == StopKind::DropOff;
            if is_drop_off && self.stops.is_inside(stop) && !self.stops.is_done(stop) {
                self.propose(Proposal::Milestone { milestone: Milestone::Arriving, stop: stop as u8 });
            }
        }
    }

    fn propose_minutes(&mut self, stop: u8, prediction: &Prediction) {
        let is_drop_off = self.delivery.stops[usize::from(stop)].kind == StopKind::DropOff;
        if is_drop_off && self.is_under_way() && prediction.p50_ms <= FIVE_MINUTES_MS {
            self.propose(Proposal::Milestone { milestone: Milestone::FiveMinutesAway, stop });
        }
    }

    fn propose(&mut self, proposal: Proposal) {
        if !self.proposed.contains(&proposal) {
            self.proposed.push(proposal);
            self.pending.events.push(Event::Proposed { proposal });
        }
    }

    fn leg(&self, stop: u8, remaining_m: u32) -> Leg {
        let is_there = self.stops.is_inside(usize::from(stop));
        match (self.delivery.stops[usize::from(stop)].kind, is_there) {
            (StopKind::Pickup, true) => Leg::AtPickup,
            (StopKind::Pickup, false) => Leg::ToPickup,
            (StopKind::DropOff, true) => Leg::AtDropOff,
            (StopKind::DropOff, false) if remaining_m <= ARRIVING_M => Leg::Arriving,
            (StopKind::DropOff, false) => Leg::ToDropOff,
        }
    }

    fn watch_distance(&mut self, stop: u8, remaining_m: u32) {
        let Some(nearest) = self.nearest.as_mut().filter(|nearest| nearest.stop == stop) else {
            self.nearest = Some(Nearest { stop, remaining_m, is_published: false });
            return;
        };
        if remaining_m > nearest.remaining_m.saturating_add(AWAY_M) {
            if !nearest.is_published {
                nearest.is_published = true;
                self.pending.events.push(Event::MovingAway);
            }
        } else if remaining_m < nearest.remaining_m {
            *nearest = Nearest { stop, remaining_m, is_published: false };
        }
    }

    fn set_progress(&mut self, progress: Option<Progress>) {
        self.pending.progress |= self.course.set_progress(progress);
    }
}

impl Pending {
    fn says_anything(&self) -> bool {
        self.keyframe || self.position || self.progress || self.eta || self.silent || !self.events.is_empty()
    }
}

/// The journal entries that belong to this assignment: no other tracker publishes them.
fn entries_of_assignment(delivery: &Delivery) -> &[JournalEntry] {
    let begins = |entry: &JournalEntry| match entry.kind {
        JournalKind::Assigned { assignment, .. } => assignment == delivery.assignment,
        JournalKind::Status { .. } | JournalKind::Milestone { .. } => false,
    };
    let is_first = delivery.assignment.0 <= 1;
    let from = if is_first { 0 } else { delivery.journal.iter().rposition(begins).unwrap_or(delivery.journal.len()) };
    &delivery.journal[from..]
}

fn basis_of(prediction: &Prediction) -> EtaBasis {
    match prediction.basis {
        Basis::Road => EtaBasis::Road,
        Basis::StraightLine => EtaBasis::StraightLine,
    }
}

const ARRIVING_M: u32 = 300;
const AWAY_M: u32 = 300;
const FIVE_MINUTES_MS: u32 = 300_000;
/// Within this time the ledger's relay and the fold have emitted what was committed.
const TOLD_WITHIN_MS: i64 = 60_000;
