//! The plan of one delivery: the way to the stop ahead, where its driver is on it, and whether he has left it.

use maps::eta::Ahead;
use maps::{Profile, geo};
use protocol::update::ShownPosition;
use protocol::{Position, Time};
use wincode::{SchemaRead, SchemaWrite};

use super::roads::{Region, Roads};
use super::way::{OnWay, Way};

#[derive(Clone, PartialEq, Debug, SchemaWrite, SchemaRead)]
pub struct Plan {
    pub way: Way,
    pub stop: u8,
    /// When, as `RouteWanted` says it.
    pub made: Time,
    along_cm: u32,
    off_fixes: u8,
    /// Of the fix that was counted last: a look without a new fix counts none.
    off_at: Time,
    /// It begins where he was when it was made, or near enough: who is in a field has only ways that begin far from him.
    is_from_him: bool,
    /// It was told that he is off the route.
    pub is_off: bool,
    /// None: it came from outside, and its times stand.
    timed: Option<Timed>,
}

/// What a way lies on, and what its times rest on.
#[derive(Clone, Copy, PartialEq, Debug, SchemaWrite, SchemaRead)]
struct Timed {
    map: u32,
    tables: u32,
    at: Time,
}

/// How a driver stands to his plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stand {
    On,
    /// Beside it for the first fix, or only a little.
    Beside,
    /// Beside it for two fixes and more: he goes another way.
    Away,
    /// The same, and further off than a detour explains.
    Far,
}

impl Plan {
    /// On a map, timed at `made`, for who was there then.
    pub fn on(region: &Region, way: Way, stop: u8, made: Time, from: Position) -> Plan {
        let timed = Timed { map: region.number, tables: region.tables, at: made };
        Plan { timed: Some(timed), ..Plan::outside(way, stop, made, from) }
    }

    /// From an outside router.
    pub fn outside(way: Way, stop: u8, made: Time, from: Position) -> Plan {
        let is_from_him = geo::distance_cm(from, way.begin()) <= f64::from(OFF_ROUTE_CM);
        let off_at = Time::default();
        Plan { way, stop, made, along_cm: 0, off_fixes: 0, off_at, is_from_him, is_off: false, timed: None }
    }

    /// In the place of another: who is off his route still is.
    pub fn after(self, before: Option<&Plan>) -> Plan {
        Plan { is_off: before.is_some_and(|before| before.is_off), ..self }
    }

    /// Whether another way should be looked for. Where ways begin far from him anyway, a new one would be left with the
    /// second fix again: then, as for a small detour, not more often than is due.
    pub fn is_to_be_made_anew(&self, stand: Stand, is_due: bool) -> bool {
        match stand {
            Stand::On | Stand::Beside => false,
            Stand::Away => is_due,
            Stand::Far => is_due || self.is_from_him,
        }
    }

    pub fn is_outside(&self) -> bool {
        self.timed.is_none()
    }

    /// Its map is not in use any more.
    pub fn is_stranded(&self, roads: &Roads) -> bool {
        self.timed.is_some_and(|timed| roads.region(timed.map).is_none())
    }

    /// Where he sets off.
    pub fn begin(&mut self, shown: &ShownPosition) -> OnWay {
        let on_way = self.way.locate(shown.position, 0);
        self.along_cm = on_way.along_cm;
        on_way
    }

    pub fn locate(&mut self, shown: &ShownPosition) -> (OnWay, Stand) {
        let on_way = self.way.locate(shown.position, self.along_cm);
        if on_way.off_cm <= ON_ROUTE_CM {
            self.along_cm = on_way.along_cm;
            self.off_fixes = 0;
            return (on_way, Stand::On);
        }
        if shown.event_time != self.off_at {
            self.off_fixes = self.off_fixes.saturating_add(1);
            self.off_at = shown.event_time;
        }
        let stand = match (self.off_fixes >= OFF_FIXES, on_way.off_cm > OFF_ROUTE_CM) {
            (false, _) => Stand::Beside,
            (true, false) => Stand::Away,
            (true, true) => Stand::Far,
        };
        (on_way, stand)
    }

    /// Times the way ahead by what is in use now, where that is not what it was timed by; and every few minutes, as the
    /// hour changes and drivers are not where they were expected to be.
    pub fn keep_timed(&mut self, on_way: &OnWay, profile: Profile, roads: &Roads, now: Time) {
        let Some(timed) = &mut self.timed else { return };
        let Some(region) = roads.region(timed.map) else { return };
        let is_old = now.millis_since(timed.at).abs() >= TIMED_AGAIN_MS;
        if timed.tables == region.tables && !is_old {
            return;
        }
        (timed.tables, timed.at) = (region.tables, now);
        self.way.retime(region.traffic.graph(), region.traffic.speeds(), profile, on_way.along_cm, now);
    }

    pub fn along_m(&self) -> u32 {
        self.along_cm / 100
    }

    /// From a place on it to its end, and the way back to it first; with how far he has come already.
    pub fn ahead(&self, on_way: &OnWay, straight_m: f64, driven_m: u32) -> Ahead {
        let off_cm = if on_way.off_cm > ON_ROUTE_CM { on_way.off_cm } else { 0 };
        let left_cm = (self.way.length_cm() - on_way.along_cm).saturating_add(off_cm);
        let left_ms = self.way.left_ms(on_way.along_cm).saturating_add(off_cm / OFF_CM_PER_MS);
        Ahead {
            seconds: f64::from(left_ms) / 1000.0,
            length_m: f64::from(left_cm / 100),
            straight_m,
            turns: u32::from(self.way.turns_after(on_way)),
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
