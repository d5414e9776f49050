//! What each driver drove, from his final places.
//!
//! Sketch: a place costs one look-up among the drivers (0.3 µs), one check that it is of this map (0.1 µs) and one search
//! between two places that are mostly on the same or the next edge (1 to 3 µs). A core takes some 300,000 places a
//! second; where more come, whole drivers are left out, because half of every driver's places teach less than all of
//! half the drivers'.

use std::collections::BTreeMap;

use maps::matcher::Scratch;
use maps::speeds::{Hop, Traversal, Traversals};
use maps::{EdgeId, Graph, Profile};
use protocol::{DriverKey, MeasuredTime, Time};

/// Drivers under way, at most so many.
pub struct Drivers {
    drivers: BTreeMap<DriverKey, Driver>,
    drivers_max: usize,
    swept: Time,
    /// One in so many doublings of drivers is listened to.
    halvings: u32,
    lag: Lag,
}

struct Driver {
    way: Traversals,
    seen: Time,
    /// When he was last where cars may not go.
    off_cars: Option<Time>,
}

/// How far behind the log we were at worst, since when.
#[derive(Clone, Copy, Default)]
struct Lag {
    since: Time,
    worst_ms: i64,
    before_ms: i64,
    quiet: u32,
}

/// What became of a driver's place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    Hop(Hop),
    /// He goes where cars may not: what he needs says nothing of cars.
    NotByCar,
    /// There are more drivers than are held.
    NoRoom,
}

impl Drivers {
    pub fn new(drivers_max: usize) -> Drivers {
        Drivers { drivers: BTreeMap::new(), drivers_max, swept: Time(0), halvings: 0, lag: Lag::default() }
    }

    pub fn len(&self) -> usize {
        self.drivers.len()
    }

    pub fn halvings(&self) -> u32 {
        self.halvings
    }

    /// Whether this driver is among those listened to; the same ones each time.
    pub fn is_heard(&self, key: DriverKey) -> bool {
        let mixed = (u64::from(key.tenant.0) << 32 | u64::from(key.driver.0)).wrapping_mul(MIX);
        (mixed >> 32) & ((1 << self.halvings) - 1) == 0
    }

    /// Another map: places on the one before mean nothing.
    pub fn forget(&mut self) {
        self.drivers.clear();
    }

    pub fn handle_place(
        &mut self,
        graph: &Graph,
        scratch: &mut Scratch,
        key: DriverKey,
        (to, measured): ((EdgeId, u32), MeasuredTime),
        now: Time,
        out: &mut Vec<Traversal>,
    ) -> Place {
        if !self.drivers.contains_key(&key) && !self.make_room(now) {
            return Place::NoRoom;
        }
        let fresh = || Driver { way: Traversals::default(), seen: now, off_cars: None };
        let driver = self.drivers.entry(key).or_insert_with(fresh);
        driver.seen = now;
        if !graph.allows(to.0, Profile::Car) {
            driver.off_cars = Some(now);
        }
        if driver.off_cars.is_some_and(|at| now.millis_since(at) < OFF_CARS_MS) {
            driver.way = Traversals::default();
            return Place::NotByCar;
        }
        Place::Hop(driver.way.handle_place(graph, scratch, to, measured, out))
    }

    /// Those not heard of for long go; false if there is no room even then.
    fn make_room(&mut self, now: Time) -> bool {
        if self.drivers.len() < self.drivers_max {
            return true;
        }
        if now.millis_since(self.swept).abs() >= SWEEP_MS {
            self.swept = now;
            self.drivers.retain(|_, driver| now.millis_since(driver.seen) < FRESH_MS);
        }
        self.drivers.len() < self.drivers_max
    }

    /// How old what we read is. While we fall behind ever more, half the drivers are left out, and half of those; when
    /// we have kept up for long, as many are listened to again.
    pub fn handle_lag(&mut self, lag_ms: i64, now: Time) {
        self.lag.worst_ms = self.lag.worst_ms.max(lag_ms);
        if now.millis_since(self.lag.since).abs() < LAG_EVERY_MS {
            return;
        }
        let Lag { worst_ms, before_ms, quiet, .. } = self.lag;
        let mut quiet = if worst_ms < LAG_QUIET_MS { quiet + 1 } else { 0 };
        if worst_ms > LAG_MS_MAX && worst_ms >= before_ms && self.lag.since != Time(0) {
            self.halvings = (self.halvings + 1).min(HALVINGS_MAX);
        } else if quiet >= QUIET_TIMES {
            (self.halvings, quiet) = (self.halvings.saturating_sub(1), 0);
        }
        self.lag = Lag { since: now, worst_ms: 0, before_ms: worst_ms, quiet };
    }
}

/// Fibonacci hashing: spreads numbers given out one after the other.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
/// Who was where cars may not go does not drive one for so long.
const OFF_CARS_MS: i64 = 3_600_000;
const SWEEP_MS: i64 = 60_000;
const FRESH_MS: i64 = 600_000;
const LAG_EVERY_MS: i64 = 10_000;
const LAG_MS_MAX: i64 = 30_000;
const LAG_QUIET_MS: i64 = 5_000;
const QUIET_TIMES: u32 = 30;
const HALVINGS_MAX: u32 = 10;

#[cfg(test)]
mod tests {
    use protocol::{DriverId, TenantId};

    use super::*;

    #[test]
    fn falling_behind_halves_the_drivers_and_keeping_up_brings_them_back() {
        let mut drivers = Drivers::new(10);
        let heard = |drivers: &Drivers| {
            let key = |n| DriverKey { tenant: TenantId(1), driver: DriverId(n) };
            (0..10_000).filter(|n| drivers.is_heard(key(*n))).count()
        };
        let mut now = Time(1_000_000);
        let mut wait = |drivers: &mut Drivers, lag_ms| {
            now = Time(now.0 + LAG_EVERY_MS);
            drivers.handle_lag(lag_ms, now);
        };

        wait(&mut drivers, 0);
        wait(&mut drivers, 40_000);
        wait(&mut drivers, 50_000);
        let halved = heard(&drivers);
        wait(&mut drivers, 45_000);
        let catching_up = heard(&drivers);
        (0..100).for_each(|_| wait(&mut drivers, 100));

        assert!((2_300..2_700).contains(&halved), "{halved}");
        assert_eq!(catching_up, halved, "who catches up leaves out no more");
        assert_eq!(heard(&drivers), 10_000);
    }
}
