//! The plan of one delivery: the route to the stop ahead, where its driver is on it, and whether he has left it.

use maps::eta::Ahead;
use maps::{Profile, geo};
use protocol::update::ShownPosition;
use protocol::{Position, Time};
use wincode::{SchemaRead, SchemaWrite};

use crate::track::clock_set::ClockSet;
use crate::track::fields::{Plain, fields};
use crate::track::planned_route::{PlannedRoute, RoutePosition};
use crate::track::roads::{Region, Roads};

#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Plan {
    pub(super) route: PlannedRoute,
    pub stop: u8,
    /// The time that names its `RouteWanted`.
    pub made: Time,
    along_cm: u32,
    off_fixes: u8,
    /// The time of the fix that was counted last: a look without a new fix counts none.
    off_at: Time,
    /// The route begins near where the driver was when it was made. To a driver in a field every route begins far away.
    is_from_him: bool,
    /// `OffRoute` was published, and `BackOnRoute` was not yet.
    pub is_off: bool,
    /// None for a route from an outside router: its times stay as they were given.
    timed: Option<Timed>,
}

fields! {
    Plan {
        1 route: Plain,
        2 stop: Plain,
        3 made: Plain,
        4 along_cm: Plain,
        5 off_fixes: Plain = 0,
        6 off_at: Plain = Time::default(),
        7 is_from_him: Plain,
        8 is_off: Plain,
        9 timed: Plain = None,
    }
}

/// The map that a route lies on, and the tables that its times rest on.
#[derive(Clone, Copy, PartialEq, Debug, SchemaWrite, SchemaRead)]
struct Timed {
    map: u32,
    tables: u32,
    at: Time,
}

/// How far the driver has left his plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Deviation {
    None,
    /// Beside it at the first fix, or only a little.
    Slight,
    /// Beside it at two fixes or more: he goes another way.
    Away,
    /// The same, and further off than a detour explains.
    Far,
}

impl Plan {
    /// On a map, timed at `made`, for who was there then.
    pub(crate) fn on(region: &Region, route: PlannedRoute, stop: u8, made: Time, from: Position) -> Plan {
        let timed = Timed { map: region.number, tables: region.tables, at: made };
        Plan { timed: Some(timed), ..Plan::outside(route, stop, made, from) }
    }

    /// From an outside router.
    pub(crate) fn outside(route: PlannedRoute, stop: u8, made: Time, from: Position) -> Plan {
        let is_from_him = geo::distance_cm(from, route.begin()) <= f64::from(OFF_ROUTE_CM);
        let off_at = Time::default();
        Plan { route, stop, made, along_cm: 0, off_fixes: 0, off_at, is_from_him, is_off: false, timed: None }
    }

    /// Takes the place of another plan: a driver who is off his route still is.
    pub(crate) fn after(self, before: Option<&Plan>) -> Plan {
        Plan { is_off: before.is_some_and(|before| before.is_off), ..self }
    }

    /// Whether another route should be looked for. Where every route begins far from the driver, he would leave a new one
    /// with the second fix again; then, as for a small detour, a new one has to wait until it is due.
    pub(crate) fn is_to_be_made_anew(&self, deviation: Deviation, is_due: bool) -> bool {
        match deviation {
            Deviation::None | Deviation::Slight => false,
            Deviation::Away => is_due,
            Deviation::Far => is_due || self.is_from_him,
        }
    }

    pub(crate) fn is_outside(&self) -> bool {
        self.timed.is_none()
    }

    /// Whether its map is not in use any more.
    pub(crate) fn is_stranded(&self, roads: &Roads) -> bool {
        self.timed.is_some_and(|timed| roads.region(timed.map).is_none())
    }

    /// Where he sets off.
    pub(crate) fn begin(&mut self, shown: &ShownPosition) -> RoutePosition {
        let at = self.route.locate(shown.position, 0);
        self.along_cm = at.along_cm;
        at
    }

    pub(crate) fn locate(&mut self, shown: &ShownPosition) -> (RoutePosition, Deviation) {
        let at = self.route.locate(shown.position, self.along_cm);
        if at.off_cm <= ON_ROUTE_CM {
            self.along_cm = at.along_cm;
            self.off_fixes = 0;
            return (at, Deviation::None);
        }
        if shown.event_time != self.off_at {
            self.off_fixes = self.off_fixes.saturating_add(1);
            self.off_at = shown.event_time;
        }
        let deviation = match (self.off_fixes >= OFF_FIXES, at.off_cm > OFF_ROUTE_CM) {
            (false, _) => Deviation::Slight,
            (true, false) => Deviation::Away,
            (true, true) => Deviation::Far,
        };
        (at, deviation)
    }

    /// Computes the times of the route ahead anew where other tables are in use by now, and every few minutes, because
    /// the hour changes and the driver is not where he was expected to be.
    pub(crate) fn keep_timed(&mut self, at: &RoutePosition, profile: Profile, roads: &Roads, now: Time) {
        let Some(timed) = &mut self.timed else { return };
        let Some(region) = roads.region(timed.map) else { return };
        let is_old = now.millis_since(timed.at).abs() >= TIMED_AGAIN_MS;
        if timed.tables == region.tables && !is_old {
            return;
        }
        (timed.tables, timed.at) = (region.tables, now);
        self.route.retime(region.traffic.graph(), region.traffic.speeds(), profile, at.along_cm, now);
    }

    /// The clock was set. `made` stays: it is a name.
    pub(crate) fn handle_clock_set(&mut self, set: ClockSet) {
        set.stamp(&mut self.off_at);
        self.timed.iter_mut().for_each(|timed| set.stamp(&mut timed.at));
    }

    pub(crate) fn along_m(&self) -> u32 {
        self.along_cm / 100
    }

    /// What lies ahead of a place on the route, the way back to the route included, with how far he has come already.
    pub(crate) fn ahead(&self, at: &RoutePosition, straight_m: f64, driven_m: u32) -> Ahead {
        let off_cm = if at.off_cm > ON_ROUTE_CM { at.off_cm } else { 0 };
        let left_cm = (self.route.length_cm() - at.along_cm).saturating_add(off_cm);
        let left_ms = self.route.left_ms(at.along_cm).saturating_add(off_cm / OFF_CM_PER_MS);
        Ahead {
            seconds: f64::from(left_ms) / 1000.0,
            length_m: f64::from(left_cm / 100),
            straight_m,
            turns: u32::from(self.route.turns_after(at)),
            driven_m: f64::from(driven_m),
        }
    }
}

/// Within this much of the plan he is on it.
const ON_ROUTE_CM: u32 = 6_000;
/// Further off than this at two fixes running is off the route.
const OFF_ROUTE_CM: u32 = 50_000;
const OFF_FIXES: u8 = 2;
/// Back to the plan at 10 m/s.
const OFF_CM_PER_MS: u32 = 1;
const TIMED_AGAIN_MS: i64 = 300_000;
