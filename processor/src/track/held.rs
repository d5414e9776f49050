//! A delivery as the tracker holds it: what the ledger said of it, where its driver is on the plan, when he arrives,
//! and what is still to be told. Its updates are numbered without gaps within an epoch, the first is a keyframe.
//!
//! The status is the ledger's alone. What the tracker sees of it (left the pickup while ready, at the drop-off) it only
//! proposes; the ledger's word comes back as a record.

use protocol::update::{
    Changed, DeliveryBody, DeliveryUpdate, DeliveryView, Epoch, Eta, EtaBasis, Event, Leg, Progress, Proposal,
    ShownPosition, SilentCause, Source,
};
use protocol::{Delivery, DeliveryState, JournalEntry, JournalKind, Milestone, Position, Stop, StopKind, Time, Update};
use wincode::{SchemaRead, SchemaWrite};

use maps::eta::{Ahead, Basis, Eta as Prediction, EtaTable, ShownEta};
use maps::geo;
use maps::matcher::Snapped;

use super::effects::Step;
use super::eta;
use super::fence::{Passage, Presence, side_of_disc};
use super::roads::{RoadMap, Start};
use super::way::{OnWay, Way};

#[derive(Clone, PartialEq, Debug, SchemaWrite, SchemaRead)]
pub struct Held {
    pub delivery: Delivery,
    epoch: Epoch,
    /// Of the update told last.
    number: u64,
    /// One per stop.
    presences: Vec<Presence>,
    /// Stops where nothing is left to do, as bits.
    done: u32,
    planned: Option<Planned>,
    /// No way was found: not to be asked for again before.
    plan_after: Time,
    progress: Option<Progress>,
    shown: ShownEta,
    /// What follows smoothly; `eta` is what was told of it.
    smooth: Option<Eta>,
    eta: Option<Eta>,
    estimated: Time,
    silent: Option<SilentCause>,
    /// The least way that was left to this stop, and whether it was told that he moves away from it.
    nearest: Option<Nearest>,
    proposed: Vec<Proposal>,
    tells: Tells,
}

#[derive(Clone, PartialEq, Debug, SchemaWrite, SchemaRead)]
struct Planned {
    way: Way,
    stop: u8,
    along_cm: u32,
    off_fixes: u8,
    /// Of the fix that was counted last: a look without a new fix counts none.
    off_at: Time,
    made: Time,
    /// It was told that he is off the route.
    is_off: bool,
}

#[derive(Clone, Copy, PartialEq, Debug, SchemaWrite, SchemaRead)]
struct Nearest {
    stop: u8,
    remaining_m: u32,
    is_told: bool,
}

/// What the next update says. Empty between entries of the log.
#[derive(Clone, PartialEq, Debug, Default, SchemaWrite, SchemaRead)]
struct Tells {
    events: Vec<Event>,
    position: bool,
    progress: bool,
    eta: bool,
    silent: bool,
    keyframe: bool,
}

/// Where the driver is, as far as his deliveries care.
#[derive(Clone, Copy, Debug)]
pub struct Here<'a> {
    pub shown: &'a ShownPosition,
    /// As measured: a courtyard is not on a road.
    pub measured: Position,
    pub snapped: Option<&'a Snapped>,
}

impl Held {
    /// Takes a delivery over, under a new epoch. What its journal says of this assignment is told with the first update.
    pub fn begin(delivery: Delivery, epoch: Epoch) -> Held {
        let mut held = Held {
            presences: vec![Presence::default(); delivery.stops.len()],
            epoch,
            number: 0,
            done: 0,
            planned: None,
            plan_after: Time::default(),
            progress: None,
            shown: ShownEta::default(),
            smooth: None,
            eta: None,
            estimated: Time::default(),
            silent: None,
            nearest: None,
            proposed: Vec::new(),
            tells: Tells { keyframe: true, ..Tells::default() },
            delivery,
        };
        for entry in news_of(&held.delivery) {
            held.tells.events.push(Event::Journal { entry: entry.clone() });
        }
        held
    }

    /// The ledger's part and the numbering alone, as after a failed fold.
    pub fn emptied(self, source: Source) -> Held {
        let mut held = Held::begin(self.delivery, self.epoch);
        held.number = self.number;
        held.tells.events = vec![Event::FoldFailed { source }];
        held
    }

    pub fn begin_epoch(&mut self, epoch: Epoch) {
        self.epoch = epoch;
        self.number = 0;
        self.tells.keyframe = true;
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub fn is_finished(&self) -> bool {
        self.delivery.state.is_finished()
    }

    pub fn is_under_way(&self) -> bool {
        self.delivery.state == DeliveryState::PickedUp
    }

    /// Takes a ledger event once; false if it was taken before.
    pub fn handle_entry(&mut self, entry: JournalEntry) -> bool {
        let is_status = matches!(entry.kind, JournalKind::Status { .. });
        if !self.delivery.handle_entry(entry.clone()) {
            return false;
        }
        self.tells.events.push(Event::Journal { entry });
        self.tells.keyframe = true;
        if is_status {
            self.propose_arriving();
        }
        true
    }

    /// The same delivery again, perhaps with entries that were not heard of yet.
    pub fn handle_again(&mut self, delivery: Delivery) -> bool {
        let taken = delivery.journal.into_iter().filter(|entry| self.handle_entry(entry.clone()));
        taken.count() > 0
    }

    pub fn tell(&mut self, event: Event) {
        self.tells.events.push(event);
    }

    pub fn tell_position(&mut self) {
        self.tells.position = true;
    }

    pub fn want_keyframe(&mut self) {
        self.tells.keyframe = true;
    }

    /// Another map: the way on it is another.
    pub fn forget_plan(&mut self) {
        self.planned = None;
        self.plan_after = Time::default();
    }

    /// The driver is somewhere new.
    pub fn handle_position(&mut self, here: &Here<'_>, roads: Option<&RoadMap>) {
        self.tells.position = true;
        self.pass_stops(here);
        self.steer(here, here.shown.event_time, roads);
    }

    /// Progress and ETA from where the driver is.
    pub fn steer(&mut self, here: &Here<'_>, now: Time, roads: Option<&RoadMap>) {
        let Some((stop, target)) = self.target().map(|(i, stop)| (i, stop.position)) else {
            self.planned = None;
            self.set_progress(None);
            self.smooth = None;
            return self.set_eta(None);
        };
        if self.planned.as_ref().is_some_and(|planned| planned.stop != stop) {
            self.planned = None;
        }
        if self.planned.is_none() {
            self.plan(stop, target, here, now, roads);
        }
        let on_way = self.follow(stop, target, here, now, roads);
        let (prediction, along_m, remaining_m, off_m) = self.predict(on_way, target, here);
        let leg = self.leg(stop, remaining_m);
        self.set_progress(Some(Progress { leg, along_m, remaining_m, off_route_m: off_m }));
        self.watch_distance(stop, remaining_m);
        if let Some(entered) = self.presences[usize::from(stop)].entered() {
            let basis = match prediction.basis {
                Basis::Road => EtaBasis::Road,
                Basis::StraightLine => EtaBasis::StraightLine,
            };
            let there = Eta { arrival: entered, p10: entered, p90: entered, basis, stop };
            self.smooth = Some(there);
            return self.set_eta(Some(there));
        }
        self.estimated = now;
        let eta = eta::follow(&mut self.shown, self.smooth.as_ref(), &prediction, stop, now);
        self.smooth = Some(eta);
        if eta::is_news(self.eta.as_ref(), &eta) {
            self.set_eta(Some(eta));
        }
        self.propose_minutes(stop, &prediction);
    }

    /// Time has passed without a fix: he stands, so he arrives later.
    pub fn handle_time(&mut self, here: Option<&Here<'_>>, now: Time, roads: Option<&RoadMap>) {
        let is_on_his_way = self.smooth.is_some_and(|eta| eta.p10 < eta.p90);
        let is_due = is_on_his_way && now.millis_since(self.estimated) >= ESTIMATE_MS;
        if let (Some(here), true, None) = (here, is_due, self.silent) {
            self.steer(here, now, roads);
        }
    }

    pub fn handle_silence(&mut self, silent: Option<SilentCause>) {
        if silent == self.silent {
            return;
        }
        self.silent = silent;
        self.tells.silent = true;
        self.tells.events.push(match silent {
            Some(cause) => Event::Silent { cause },
            None => Event::HeardAgain,
        });
    }

    /// Says what there is to say. `is_released`: the tracker lets it go.
    pub fn flush(&mut self, step: &mut Step<'_>, position: Option<ShownPosition>, is_released: bool) {
        let tells = std::mem::take(&mut self.tells);
        let is_last = is_released || self.is_finished();
        let is_first = self.number == 0;
        if !(is_last || is_first || tells.says_anything()) {
            return;
        }
        self.number += 1;
        let body = if tells.keyframe || is_first {
            DeliveryBody::Keyframe { view: Box::new(self.view(position)) }
        } else {
            DeliveryBody::Changed { changed: self.changed(&tells, position) }
        };
        let source = step.next_source();
        step.emit(Update::Delivery(DeliveryUpdate {
            key: self.delivery.key,
            epoch: self.epoch,
            number: self.number,
            source,
            at: step.clock.now(),
            events: tells.events,
            body,
            is_last,
        }));
    }

    fn view(&self, position: Option<ShownPosition>) -> DeliveryView {
        DeliveryView {
            delivery: self.delivery.clone(),
            position,
            progress: self.progress,
            eta: self.eta,
            plan: self.planned.as_ref().map(|planned| planned.way.to_plan()),
            silent: self.silent,
        }
    }

    fn changed(&self, tells: &Tells, position: Option<ShownPosition>) -> Changed {
        Changed {
            position: position.filter(|_| tells.position),
            progress: tells.progress.then_some(self.progress),
            eta: tells.eta.then_some(self.eta),
            silent: tells.silent.then_some(self.silent),
            phone_state: None,
            battery_percent: None,
        }
    }

    /// The stop ahead: the first pickup not done, and once picked up the first drop-off not done.
    fn target(&self) -> Option<(u8, &Stop)> {
        let kind = match self.delivery.state {
            DeliveryState::Received | DeliveryState::Accepted | DeliveryState::Preparing | DeliveryState::Ready => {
                StopKind::Pickup
            }
            DeliveryState::PickedUp => StopKind::DropOff,
            DeliveryState::Delivered | DeliveryState::Failed => return None,
        };
        let of_kind = || self.delivery.stops.iter().enumerate().filter(|(_, stop)| stop.kind == kind);
        let open = of_kind().find(|(i, _)| !self.is_done(*i));
        let (i, stop) = open.or(of_kind().next_back()).or(self.delivery.stops.iter().enumerate().next())?;
        Some((i as u8, stop))
    }

    fn is_done(&self, stop: usize) -> bool {
        self.done >> stop.min(31) & 1 == 1
    }

    fn pass_stops(&mut self, here: &Here<'_>) {
        for i in 0..self.delivery.stops.len() {
            let stop = &self.delivery.stops[i];
            let side = side_of_disc(here.measured, stop.position, u32::from(stop.radius_m));
            let Some(passage) = self.presences[i].handle_fix(side, here.shown.event_time) else { continue };
            match passage {
                Passage::Entered => {
                    self.tells.events.push(Event::StopEntered { stop: i as u8 });
                    self.propose_arriving();
                }
                Passage::Left => {
                    self.tells.events.push(Event::StopLeft { stop: i as u8 });
                    self.leave(i);
                }
                Passage::Brushed => self.tells.events.push(Event::StopLeft { stop: i as u8 }),
            }
        }
    }

    /// Left a stop after a stay: with the last pickup behind him, the goods are with him.
    fn leave(&mut self, stop: usize) {
        let kind = self.delivery.stops[stop].kind;
        let is_in_turn = match kind {
            StopKind::Pickup => self.delivery.state == DeliveryState::Ready,
            StopKind::DropOff => self.delivery.state == DeliveryState::PickedUp,
        };
        if !is_in_turn {
            return;
        }
        self.done |= 1 << stop.min(31);
        let mut of_kind = self.delivery.stops.iter().enumerate().filter(|(_, s)| s.kind == kind);
        let is_all = of_kind.all(|(i, _)| self.is_done(i));
        if kind == StopKind::Pickup && is_all && self.delivery.policy.auto_picked_up {
            self.propose(Proposal::PickedUp { stop: stop as u8 });
        }
    }

    fn propose_arriving(&mut self) {
        if self.delivery.state != DeliveryState::PickedUp || !self.delivery.policy.auto_arriving {
            return;
        }
        for i in 0..self.delivery.stops.len() {
            let is_drop_off = self.delivery.stops[i].kind == StopKind::DropOff;
            if is_drop_off && self.presences[i].is_inside() && !self.is_done(i) {
                self.propose(Proposal::Milestone { milestone: Milestone::Arriving, stop: i as u8 });
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
            self.tells.events.push(Event::Proposed { proposal });
        }
    }

    fn plan(&mut self, stop: u8, target: Position, here: &Here<'_>, now: Time, roads: Option<&RoadMap>) {
        if now < self.plan_after && self.plan_after.millis_since(now) <= PLAN_AGAIN_MS {
            return;
        }
        let start = Start { position: here.shown.position, snapped: here.snapped };
        let roads = roads.filter(|roads| roads.covers(start.position) && roads.covers(target));
        let is_off = self.planned.as_ref().is_some_and(|planned| planned.is_off);
        let way = roads.and_then(|roads| roads.way(start, target));
        self.plan_after = Time(now.0.saturating_add(PLAN_AGAIN_MS));
        self.tells.keyframe |= way.is_some() || self.planned.is_some(); // a plan travels in keyframes only
        self.planned =
            way.map(|way| Planned { way, stop, along_cm: 0, off_fixes: 0, off_at: Time::default(), made: now, is_off });
    }

    /// Where he is on the plan; a fresh one if he has left it.
    fn follow(
        &mut self,
        stop: u8,
        target: Position,
        here: &Here<'_>,
        now: Time,
        roads: Option<&RoadMap>,
    ) -> Option<OnWay> {
        let planned = self.planned.as_mut()?;
        let on_way = planned.way.locate(here.shown.position, planned.along_cm);
        if on_way.off_cm <= ON_ROUTE_CM {
            planned.along_cm = on_way.along_cm;
            planned.off_fixes = 0;
            if std::mem::take(&mut planned.is_off) {
                self.tells.events.push(Event::BackOnRoute);
            }
            return Some(on_way);
        }
        if here.shown.event_time != planned.off_at {
            planned.off_fixes = planned.off_fixes.saturating_add(1);
            planned.off_at = here.shown.event_time;
        }
        if planned.off_fixes < OFF_FIXES {
            return Some(on_way);
        }
        let is_far = on_way.off_cm > OFF_ROUTE_CM;
        if is_far && !planned.is_off {
            planned.is_off = true;
            self.tells.events.push(Event::OffRoute { off_m: on_way.off_cm / 100 });
        }
        if !is_far && now.millis_since(planned.made).abs() < PLAN_AGAIN_MS {
            return Some(on_way);
        }
        self.plan_after = Time::default();
        self.plan(stop, target, here, now, roads);
        let planned = self.planned.as_mut()?;
        let on_way = planned.way.locate(here.shown.position, 0);
        planned.along_cm = on_way.along_cm;
        Some(on_way)
    }

    /// How long it takes, and in metres: along the plan, left to go, off the plan.
    fn predict(&self, on_way: Option<OnWay>, target: Position, here: &Here<'_>) -> (Prediction, u32, u32, u32) {
        let straight_m = geo::distance_cm(here.measured, target) / 100.0;
        if let (Some(on_way), Some(planned)) = (on_way, &self.planned) {
            let off_cm = if on_way.off_cm > ON_ROUTE_CM { on_way.off_cm } else { 0 };
            let end = planned.way.end();
            let left_cm = (end.along_cm - on_way.along_cm).saturating_add(off_cm);
            let left_ms = (end.along_ms - on_way.along_ms).saturating_add(off_cm / OFF_CM_PER_MS);
            let ahead = Ahead {
                seconds: f64::from(left_ms) / 1000.0,
                length_m: f64::from(left_cm) / 100.0,
                straight_m,
                turns: u32::from(end.turns - on_way.turns),
                driven_m: f64::from(on_way.along_cm / 100),
            };
            return (EtaTable::default().predict(&ahead), on_way.along_cm / 100, left_cm / 100, on_way.off_cm / 100);
        }
        (maps::eta::straight_line(here.measured, target), 0, straight_m as u32, 0)
    }

    fn leg(&self, stop: u8, remaining_m: u32) -> Leg {
        let is_there = self.presences[usize::from(stop)].is_inside();
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
            self.nearest = Some(Nearest { stop, remaining_m, is_told: false });
            return;
        };
        if remaining_m > nearest.remaining_m.saturating_add(AWAY_M) {
            if !nearest.is_told {
                nearest.is_told = true;
                self.tells.events.push(Event::MovingAway);
            }
        } else if remaining_m < nearest.remaining_m {
            *nearest = Nearest { stop, remaining_m, is_told: false };
        }
    }

    fn set_progress(&mut self, progress: Option<Progress>) {
        self.tells.progress |= self.progress != progress;
        self.progress = progress;
    }

    fn set_eta(&mut self, eta: Option<Eta>) {
        if self.eta != eta {
            self.eta = eta;
            self.tells.eta = true;
            self.tells.events.push(Event::EtaChanged);
        }
    }
}

impl Tells {
    fn says_anything(&self) -> bool {
        self.keyframe || self.position || self.progress || self.eta || self.silent || !self.events.is_empty()
    }
}

/// The entries that belong to this assignment: nobody else tells them.
fn news_of(delivery: &Delivery) -> &[JournalEntry] {
    let begins = |entry: &JournalEntry| match entry.kind {
        JournalKind::Assigned { assignment, .. } => assignment == delivery.assignment,
        JournalKind::Status { .. } | JournalKind::Milestone { .. } => false,
    };
    let is_first = delivery.assignment.0 <= 1;
    let from = if is_first { 0 } else { delivery.journal.iter().rposition(begins).unwrap_or(delivery.journal.len()) };
    &delivery.journal[from..]
}

/// Within this much of the plan he is on it.
const ON_ROUTE_CM: u32 = 6_000;
/// Further off than this at two fixes running is off the route.
const OFF_ROUTE_CM: u32 = 50_000;
const OFF_FIXES: u8 = 2;
/// Back to the plan at 10 m/s.
const OFF_CM_PER_MS: u32 = 1;
/// No more often than this is a way looked for again where there was none, or made anew for a small detour.
const PLAN_AGAIN_MS: i64 = 30_000;
/// How old an estimate grows while nothing new is heard.
const ESTIMATE_MS: i64 = 15_000;
const ARRIVING_M: u32 = 300;
const AWAY_M: u32 = 300;
const FIVE_MINUTES_MS: u32 = 300_000;
