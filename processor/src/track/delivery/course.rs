//! The way to the stop ahead: which plan the driver follows, how far he has come, and when to plan anew.

use maps::eta::Eta as Prediction;
use maps::geo;
use protocol::record::PlannedPoint;
use protocol::update::{Epoch, Event, Leg, Plan as PublishedPlan, Progress};
use protocol::{DeliveryKey, Position, Time};

use super::plan::{Deviation, Plan};
use super::{DriverPosition, Pending};
use crate::track::clock_set::ClockSet;
use crate::track::effects::{RouteWanted, Step};
use crate::track::fields::{Maybe, Plain, fields};
use crate::track::planned_route::{PlannedRoute, RoutePosition};
use crate::track::planning::Start;
use crate::track::roads::Roads;
use crate::track::snapping::OnMap;

#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Course {
    plan: Option<Plan>,
    /// How far he came along the plans before this one, and to which stop they led.
    driven_m: u32,
    driven_to: u8,
    /// When a route was planned or looked for last. It names the request to an outside router, so it is unique within a
    /// delivery: of two at the same time the second is a millisecond later.
    made: Time,
    /// The newest map at that time.
    made_on: u32,
    made_from: Position,
    /// How far he had come at that time.
    made_driven_m: u32,
    /// No route is looked for before this time.
    plan_after: Time,
    progress: Option<Progress>,
}

fields! {
    Course {
        1 plan: Maybe = None,
        2 driven_m: Plain = 0,
        3 driven_to: Plain = 0,
        4 made: Plain = Time::default(),
        5 made_on: Plain = 0,
        6 made_from: Plain = Position::default(),
        7 made_driven_m: Plain = 0,
        8 plan_after: Plain = Time::default(),
        9 progress: Plain = None,
    }
}

/// The stop ahead of one delivery.
#[derive(Clone, Copy, Debug)]
pub(super) struct Destination {
    pub delivery: DeliveryKey,
    pub epoch: Epoch,
    pub stop: u8,
    pub position: Position,
}

/// Where the driver is on his plan.
#[derive(Clone, Copy, Debug)]
pub(super) struct Followed {
    /// None without a plan.
    pub at: Option<RoutePosition>,
    /// The plan was made just now, because he was far off the one before.
    pub is_fresh: bool,
}

impl Course {
    pub(super) fn progress(&self) -> Option<Progress> {
        self.progress
    }

    /// The clock was set. `made` stays: it names a request that may be under way.
    pub(super) fn handle_clock_set(&mut self, set: ClockSet) {
        set.due(&mut self.plan_after);
        self.plan.iter_mut().for_each(|plan| plan.handle_clock_set(set));
    }

    /// True if it changed.
    pub(super) fn set_progress(&mut self, progress: Option<Progress>) -> bool {
        std::mem::replace(&mut self.progress, progress) != progress
    }

    pub(super) fn plan(&self) -> Option<PublishedPlan> {
        self.plan.as_ref().map(|plan| plan.route.to_plan())
    }

    /// There is no stop ahead any more.
    pub(super) fn end(&mut self) {
        self.plan = None;
    }

    /// True if there was a plan.
    pub(super) fn forget_plan(&mut self) -> bool {
        self.driven_m = self.covered_m();
        self.plan_after = Time::default();
        self.plan.take().is_some()
    }

    /// How far he has come on his way to this stop, as of the last time he was on a plan.
    fn covered_m(&self) -> u32 {
        self.driven_m.saturating_add(self.plan.as_ref().map_or(0, Plan::along_m))
    }

    /// Takes the route of an outside router for the request made then; false if another was made since, or if it is no
    /// route.
    pub(super) fn handle_planned(&mut self, stop: u8, made: Time, points: &[PlannedPoint]) -> bool {
        let has_it = self.plan.as_ref().is_some_and(|plan| plan.is_outside() && plan.made == made);
        if made != self.made || has_it {
            return false;
        }
        let Some(route) = PlannedRoute::from_outside(points) else { return false };
        self.driven_m = self.made_driven_m; // it begins where he was when it was asked for
        self.plan = Some(Plan::outside(route, stop, made, self.made_from).after(self.plan.as_ref()));
        true
    }

    /// Says where the driver is on the plan, and makes a plan where there is none, or none that still serves.
    pub(super) fn follow(
        &mut self,
        to: Destination,
        driver: &DriverPosition<'_>,
        now: Time,
        pending: &mut Pending,
        step: &mut Step<'_>,
    ) -> Followed {
        if self.driven_to != to.stop {
            self.plan = None;
            (self.driven_to, self.driven_m, self.made_driven_m) = (to.stop, 0, 0);
        }
        let is_stranded = self.plan.as_ref().is_some_and(|plan| plan.is_stranded(step.roads));
        if is_stranded || (self.plan.is_none() && self.made_on != step.roads.newest()) {
            self.plan_after = Time::default();
        }
        if is_stranded || self.plan.is_none() {
            self.make_plan(to, driver, now, pending, step);
        }
        let is_due = self.is_plan_due(now);
        let Some(plan) = &mut self.plan else { return Followed { at: None, is_fresh: false } };
        let (at, deviation) = plan.locate(driver.shown);
        match deviation {
            Deviation::None if std::mem::take(&mut plan.is_off) => pending.events.push(Event::BackOnRoute),
            Deviation::Far if !plan.is_off => {
                plan.is_off = true;
                pending.events.push(Event::OffRoute { off_m: at.off_cm / 100 });
            }
            Deviation::None | Deviation::Slight | Deviation::Away | Deviation::Far => {}
        }
        if plan.is_to_be_made_anew(deviation, is_due) {
            self.plan_after = Time::default();
            self.make_plan(to, driver, now, pending, step);
            let at = self.plan.as_mut().map(|plan| plan.begin(driver.shown));
            return Followed { at, is_fresh: deviation == Deviation::Far };
        }
        plan.keep_timed(&at, driver.profile(), step.roads, now);
        Followed { at: Some(at), is_fresh: false }
    }

    /// A route is never long in coming, also where the clock was set back.
    fn is_plan_due(&self, now: Time) -> bool {
        now >= self.plan_after || self.plan_after.millis_since(now) > PLAN_AGAIN_MS
    }

    /// Plans a route from where the driver is; there is none where no map has one. An outside router may know a better
    /// one.
    fn make_plan(
        &mut self,
        to: Destination,
        driver: &DriverPosition<'_>,
        now: Time,
        pending: &mut Pending,
        step: &mut Step<'_>,
    ) {
        if !self.is_plan_due(now) {
            return;
        }
        let from = driver.shown.position;
        let made_at = now.max(Time(self.made.0.saturating_add(1)));
        let region = step.roads.between(from, to.position);
        let made = region.and_then(|region| {
            let on_map = driver.snapped.filter(|snapped| snapped.map == region.number);
            let start = Start {
                position: from,
                on: on_map.map(|OnMap { snapped, .. }| (snapped.edge, snapped.along_cm)),
                heading_cdeg: driver.shown.heading_255.filter(|_| driver.shown.snapped).map(cdeg_of),
            };
            let route = region.traffic.plan_route(start, to.position, driver.profile(), now)?;
            Some(Plan::on(region, route, to.stop, made_at, from))
        });
        // Where only outsiders have maps, their route serves until they answer again, unless he is far from it.
        let is_kept = region.is_none() && self.plan.as_ref().is_some_and(|plan| plan.is_outside() && !plan.is_off);
        self.made_driven_m = self.covered_m();
        if !is_kept {
            self.driven_m = self.made_driven_m;
            pending.keyframe |= made.is_some() || self.plan.is_some(); // a plan travels in keyframes only
            self.plan = made.map(|plan| plan.after(self.plan.as_ref()));
        }
        (self.made, self.made_on, self.made_from) = (made_at, step.roads.newest(), from);
        self.plan_after = Time(now.0.saturating_add(PLAN_AGAIN_MS));
        step.effects.routes_wanted.push(RouteWanted {
            to: step.key,
            delivery: to.delivery,
            epoch: to.epoch,
            stop: to.stop,
            made: made_at,
            from,
            destination: to.position,
            vehicle: driver.vehicle,
        });
    }

    /// How long it takes from here, and how far the driver has come. The leg is the caller's to say.
    pub(super) fn predict(
        &self,
        at: Option<RoutePosition>,
        target: Position,
        driver: &DriverPosition<'_>,
        roads: &Roads,
    ) -> (Prediction, Progress) {
        let straight_m = geo::distance_cm(driver.measured, target) / 100.0;
        let along_m = self.covered_m();
        let progress = |remaining_m, off_route_m| Progress { leg: Leg::ToPickup, along_m, remaining_m, off_route_m };
        if let (Some(at), Some(plan)) = (at, &self.plan) {
            let ahead = plan.ahead(&at, straight_m, along_m);
            let prediction = roads.eta(driver.profile()).predict(&ahead);
            return (prediction, progress(ahead.length_m as u32, at.off_cm / 100));
        }
        (maps::eta::straight_line(driver.measured, target), progress(straight_m as u32, 0))
    }
}

/// From 255ths of a turn to hundredths of a degree.
fn cdeg_of(heading_255: u8) -> u16 {
    (u32::from(heading_255) * 36_000 / 255) as u16
}

/// A route is looked for again no more often than this where there was none, or for a small detour, or for a driver who
/// is far from every road.
const PLAN_AGAIN_MS: i64 = 30_000;
