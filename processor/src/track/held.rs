//! A delivery as the tracker holds it: what the ledger said of it, where its driver is on the plan, when he arrives,
//! and what is still to be told. Its updates are numbered without gaps within an epoch, the first is a keyframe.
//!
//! The status is the ledger's alone. What the tracker sees of it (left the pickup while ready, at the drop-off) it only
//! proposes; the ledger's word comes back as a record.

use protocol::record::{PlannedPoint, Vehicle};
use protocol::update::{
    Changed, DeliveryBody, DeliveryUpdate, DeliveryView, Epoch, Eta, EtaBasis, Event, Leg, Progress, Proposal,
    ShownPosition, SilentCause, Source,
};
use protocol::{Delivery, DeliveryState, JournalEntry, JournalKind, Milestone, Position, Stop, StopKind, Time, Update};
use wincode::{SchemaRead, SchemaWrite};

use maps::Profile;
use maps::eta::{Basis, Eta as Prediction, ShownEta};
use maps::geo;

use super::effects::{RouteWanted, Step};
use super::eta;
use super::fence::{Passage, Presence, side_of_disc};
use super::plan::{Plan, Stand};
use super::planning::Start;
use super::roads::Roads;
use super::snapping::Placed;
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
    plan: Option<Plan>,
    /// Along the plans before this one, and to which stop.
    driven_m: u32,
    driven_to: u8,
    /// When a way was planned or looked for last, and on how new a map. Names what an outsider was asked, so no two are
    /// the same: of two at the same time the second is a millisecond later.
    made: Time,
    made_on: u32,
    made_from: Position,
    /// How far he had come then.
    made_driven_m: u32,
    /// Not to be looked for again before.
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
    pub placed: Option<Placed>,
    pub vehicle: Vehicle,
}

impl Here<'_> {
    fn profile(&self) -> Profile {
        self.vehicle.into()
    }
}

impl Held {
    /// Takes a delivery over, under a new epoch. What its journal says of this assignment is told with the first update.
    pub fn begin(delivery: Delivery, epoch: Epoch) -> Held {
        let mut held = Held {
            presences: vec![Presence::default(); delivery.stops.len()],
            epoch,
            number: 0,
            done: 0,
            plan: None,
            driven_m: 0,
            driven_to: 0,
            made: Time::default(),
            made_on: 0,
            made_from: Position::default(),
            made_driven_m: 0,
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

    /// The way is not for him any more.
    pub fn forget_plan(&mut self) {
        self.driven_m = self.come_m();
        self.tells.keyframe |= self.plan.is_some(); // a plan travels in keyframes only
        self.plan = None;
        self.plan_after = Time::default();
    }

    /// How far he has come on his way to this stop, as of when he was on a plan last.
    fn come_m(&self) -> u32 {
        self.driven_m.saturating_add(self.plan.as_ref().map_or(0, Plan::along_m))
    }

    /// A way from outside, for the plan made then; false if that is no more, or if it is no way.
    pub fn handle_planned(&mut self, epoch: Epoch, stop: u8, made: Time, way: &[PlannedPoint]) -> bool {
        let is_ahead = self.target().is_some_and(|(target, _)| target == stop);
        let has_it = self.plan.as_ref().is_some_and(|plan| plan.is_outside() && plan.made == made);
        if epoch != self.epoch || made != self.made || !is_ahead || has_it {
            return false;
        }
        let Some(way) = Way::from_outside(way) else { return false };
        self.driven_m = self.made_driven_m; // it begins where he was when it was asked for
        self.plan = Some(Plan::outside(way, stop, made, self.made_from).after(self.plan.as_ref()));
        self.tells.keyframe = true; // a plan travels in keyframes only
        true
    }

    /// The driver is somewhere new.
    pub fn handle_position(&mut self, here: &Here<'_>, step: &mut Step<'_>) {
        self.tells.position = true;
        self.pass_stops(here);
        self.steer(here, here.shown.event_time, step);
    }

    /// Progress and ETA from where the driver is.
    pub fn steer(&mut self, here: &Here<'_>, now: Time, step: &mut Step<'_>) {
        let Some((stop, target)) = self.target().map(|(i, stop)| (i, stop.position)) else {
            self.plan = None;
            self.set_progress(None);
            self.smooth = None;
            return self.set_eta(None);
        };
        if self.driven_to != stop {
            self.plan = None;
            (self.driven_to, self.driven_m, self.made_driven_m) = (stop, 0, 0);
        }
        let is_stranded = self.plan.as_ref().is_some_and(|plan| plan.is_stranded(step.roads));
        if is_stranded || (self.plan.is_none() && self.made_on != step.roads.newest()) {
            self.plan_after = Time::default();
        }
        if is_stranded || self.plan.is_none() {
            self.make_plan(stop, target, here, now, step);
        }
        let (on_way, is_fresh) = self.follow(stop, target, here, now, step);
        let (prediction, along_m, remaining_m, off_m) = self.predict(on_way, target, here, step.roads);
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
        let before = self.smooth.as_ref().filter(|_| !is_fresh);
        let eta = eta::follow(&mut self.shown, before, &prediction, stop, now);
        self.smooth = Some(eta);
        if is_fresh || eta::is_news(self.eta.as_ref(), &eta) {
            self.set_eta(Some(eta));
        }
        self.propose_minutes(stop, &prediction);
    }

    /// Time has passed without a fix: he stands, so he arrives later.
    pub fn handle_time(&mut self, here: Option<&Here<'_>>, now: Time, step: &mut Step<'_>) {
        let is_on_his_way = self.smooth.is_some_and(|eta| eta.p10 < eta.p90);
        let is_due = is_on_his_way && now.millis_since(self.estimated) >= ESTIMATE_MS;
        if let (Some(here), true, None) = (here, is_due, self.silent) {
            self.steer(here, now, step);
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
            plan: self.plan.as_ref().map(|plan| plan.way.to_plan()),
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

    /// Never long in coming, also where the clock was set back.
    fn is_plan_due(&self, now: Time) -> bool {
        now >= self.plan_after || self.plan_after.millis_since(now) > PLAN_AGAIN_MS
    }

    /// A way from here; none where no map has one. Somebody else may know a better one.
    fn make_plan(&mut self, stop: u8, target: Position, here: &Here<'_>, now: Time, step: &mut Step<'_>) {
        if !self.is_plan_due(now) {
            return;
        }
        let from = here.shown.position;
        let made_at = now.max(Time(self.made.0.saturating_add(1)));
        let region = step.roads.between(from, target);
        let made = region.and_then(|region| {
            let placed = here.placed.filter(|placed| placed.on == region.number);
            let start = Start {
                position: from,
                on: placed.map(|placed| (placed.snapped.edge, placed.snapped.along_cm)),
                heading_cdeg: here.shown.heading_255.filter(|_| here.shown.snapped).map(cdeg_of),
            };
            let way = region.traffic.way(start, target, here.profile(), now)?;
            Some(Plan::on(region, way, stop, made_at, from))
        });
        // Where only outsiders have maps, their way serves until they answer again, unless he is far from it.
        let is_kept = region.is_none() && self.plan.as_ref().is_some_and(|plan| plan.is_outside() && !plan.is_off);
        self.made_driven_m = self.come_m();
        if !is_kept {
            self.driven_m = self.made_driven_m;
            self.tells.keyframe |= made.is_some() || self.plan.is_some(); // a plan travels in keyframes only
            self.plan = made.map(|plan| plan.after(self.plan.as_ref()));
        }
        (self.made, self.made_on, self.made_from) = (made_at, step.roads.newest(), from);
        self.plan_after = Time(now.0.saturating_add(PLAN_AGAIN_MS));
        step.effects.routes_wanted.push(RouteWanted {
            to: step.key,
            delivery: self.delivery.key,
            epoch: self.epoch,
            stop,
            made: made_at,
            from,
            destination: target,
            vehicle: here.vehicle,
        });
    }

    /// Where he is on the plan, and whether that is a fresh one because he was far off the old.
    fn follow(
        &mut self,
        stop: u8,
        target: Position,
        here: &Here<'_>,
        now: Time,
        step: &mut Step<'_>,
    ) -> (Option<OnWay>, bool) {
        let is_due = self.is_plan_due(now);
        let Some(plan) = &mut self.plan else { return (None, false) };
        let (on_way, stand) = plan.locate(here.shown);
        match stand {
            Stand::On if std::mem::take(&mut plan.is_off) => self.tells.events.push(Event::BackOnRoute),
            Stand::Far if !plan.is_off => {
                plan.is_off = true;
                self.tells.events.push(Event::OffRoute { off_m: on_way.off_cm / 100 });
            }
            Stand::On | Stand::Beside | Stand::Away | Stand::Far => {}
        }
        if plan.is_to_be_made_anew(stand, is_due) {
            self.plan_after = Time::default();
            self.make_plan(stop, target, here, now, step);
            let on_way = self.plan.as_mut().map(|plan| plan.begin(here.shown));
            return (on_way, stand == Stand::Far);
        }
        plan.keep_timed(&on_way, here.profile(), step.roads, now);
        (Some(on_way), false)
    }

    /// How long it takes, and in metres: along the plan, left to go, off the plan.
    fn predict(
        &self,
        on_way: Option<OnWay>,
        target: Position,
        here: &Here<'_>,
        roads: &Roads,
    ) -> (Prediction, u32, u32, u32) {
        let straight_m = geo::distance_cm(here.measured, target) / 100.0;
        if let (Some(on_way), Some(plan)) = (on_way, &self.plan) {
            let along_m = self.come_m();
            let ahead = plan.ahead(&on_way, straight_m, along_m);
            let prediction = roads.eta(here.profile()).predict(&ahead);
            return (prediction, along_m, ahead.length_m as u32, on_way.off_cm / 100);
        }
        (maps::eta::straight_line(here.measured, target), self.come_m(), straight_m as u32, 0)
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

/// From 255ths of a turn to hundredths of a degree.
fn cdeg_of(heading_255: u8) -> u16 {
    (u32::from(heading_255) * 36_000 / 255) as u16
}

/// No more often than this is a way looked for again where there was none, or made anew for a small detour or for who
/// is far from every road.
const PLAN_AGAIN_MS: i64 = 30_000;
/// How old an estimate grows while nothing new is heard.
const ESTIMATE_MS: i64 = 15_000;
const ARRIVING_M: u32 = 300;
const AWAY_M: u32 = 300;
const FIVE_MINUTES_MS: u32 = 300_000;
