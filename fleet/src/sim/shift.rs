//! One simulated driver's working day: order after order. He drives to the shop, waits until the order is ready, drives
//! to the door, hands over, rests. Decides and never waits; what is to be asked of the API comes out as errands.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use maps::router::{Endpoint, Routing};
use maps::{Graph, Profile};
use protocol::Time;
use protocol::record::Vehicle;
use protocol::update::Leg;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::drive::{Drive, Place, Traffic};
use crate::places::{self, RoadPlace};

/// How a simulated city works.
#[derive(Clone, Debug)]
pub struct Custom {
    pub vehicle: Vehicle,
    pub traffic: Traffic,
    /// From where the driver is to the shop, in a straight line.
    pub to_pickup_m: RangeInclusive<f64>,
    pub to_drop_off_m: RangeInclusive<f64>,
    /// From the order's acceptance until it is ready.
    pub cooking_s: RangeInclusive<f64>,
    /// At the shop once it is ready, and at the door.
    pub handing_over_s: RangeInclusive<f64>,
    pub resting_s: RangeInclusive<f64>,
}

impl Default for Custom {
    fn default() -> Self {
        Custom {
            vehicle: Vehicle::Car,
            traffic: Traffic::default(),
            to_pickup_m: 300.0..=2500.0,
            to_drop_off_m: 800.0..=5000.0,
            cooking_s: 60.0..=240.0,
            handing_over_s: 15.0..=60.0,
            resting_s: 5.0..=30.0,
        }
    }
}

/// What the API is to be asked. One at a time for each kind; its outcome is brought back.
#[derive(Clone, PartialEq, Debug)]
pub enum Errand {
    /// A delivery made, accepted, given to this driver, and in preparation.
    Order {
        pickup: RoadPlace,
        drop_off: RoadPlace,
    },
    /// Ready once it is cooked.
    Cook {
        delivery: u64,
        takes: Duration,
    },
    Deliver {
        delivery: u64,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Done {
    Ordered {
        delivery: u64,
    },
    Cooked,
    Delivered,
    /// The API refused.
    GivenUp,
}

/// What is true of the driver at a time.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Truth {
    pub place: Place,
    pub delivery: Option<u64>,
    pub leg: Option<Leg>,
    pub arrives: Option<Time>,
}

pub struct Shift {
    routing: Arc<Routing>,
    custom: Custom,
    rng: SmallRng,
    at: RoadPlace,
    heading_degrees: f64,
    stage: Stage,
    errands: VecDeque<Errand>,
    driven_m: f64,
}

/// An order in hand.
#[derive(Clone, Copy)]
struct Order {
    delivery: u64,
    drop_off: RoadPlace,
    is_ready: bool,
}

enum Stage {
    Resting {
        until: Time,
    },
    Ordering {
        pickup: RoadPlace,
        drop_off: RoadPlace,
    },
    ToPickup {
        order: Order,
        pickup: RoadPlace,
        drive: Drive,
        began: Time,
    },
    AtPickup {
        order: Order,
        leave: Option<Time>,
    },
    ToDropOff {
        order: Order,
        drive: Drive,
        began: Time,
    },
    AtDropOff {
        order: Order,
        hand_over: Time,
    },
    /// Handed over; the API is being told.
    Settling {
        order: Order,
    },
}

impl Shift {
    /// None if the map has no streets.
    pub fn begin(routing: Arc<Routing>, custom: Custom, seed: u64, now: Time) -> Option<Self> {
        let mut rng = SmallRng::seed_from_u64(seed);
        let at = places::anywhere(routing.graph(), custom.vehicle.into(), &mut rng)?;
        let heading_degrees = f64::from(routing.graph().place_at(at.edge, at.along_cm).1) / 100.0;
        let until = now + seconds(&(0.0..=5.0), &mut rng);
        let stage = Stage::Resting { until };
        Some(Shift { routing, custom, rng, at, heading_degrees, stage, errands: VecDeque::new(), driven_m: 0.0 })
    }

    pub fn poll_errand(&mut self) -> Option<Errand> {
        self.errands.pop_front()
    }

    pub fn driven_m(&self) -> f64 {
        self.driven_m
    }

    pub fn handle_done(&mut self, done: Done, now: Time) {
        let stage = std::mem::replace(&mut self.stage, Stage::Resting { until: now });
        self.stage = match (done, stage) {
            (Done::Ordered { delivery }, Stage::Ordering { pickup, drop_off }) => {
                let takes = seconds(&self.custom.cooking_s.clone(), &mut self.rng);
                self.errands.push_back(Errand::Cook { delivery, takes });
                let order = Order { delivery, drop_off, is_ready: false };
                match self.drive_to(pickup) {
                    Some(drive) => Stage::ToPickup { order, pickup, drive, began: now },
                    None => self.rest(now),
                }
            }
            (Done::Cooked, Stage::ToPickup { mut order, pickup, drive, began }) => {
                order.is_ready = true;
                Stage::ToPickup { order, pickup, drive, began }
            }
            (Done::Cooked, Stage::AtPickup { mut order, leave }) => {
                order.is_ready = true;
                Stage::AtPickup { order, leave }
            }
            (Done::Delivered, Stage::Settling { .. }) | (Done::GivenUp, _) => self.rest(now),
            // An errand of an order that was given up.
            (_, stage) => stage,
        };
    }

    /// Moves the day on to a time, which never goes back.
    pub fn handle_time(&mut self, now: Time) -> Truth {
        // Each turn begins what follows at the moment the one before it ended: at most one of every stage.
        for _ in 0..STAGES {
            let stage = std::mem::replace(&mut self.stage, Stage::Resting { until: now });
            let (stage, has_changed) = self.advance(stage, now);
            self.stage = stage;
            if !has_changed {
                break;
            }
        }
        self.truth(now)
    }

    fn advance(&mut self, stage: Stage, now: Time) -> (Stage, bool) {
        let handing_over = self.custom.handing_over_s.clone();
        match stage {
            Stage::Resting { until } if until <= now => match self.next_order() {
                Some((pickup, drop_off)) => {
                    self.errands.push_back(Errand::Order { pickup, drop_off });
                    (Stage::Ordering { pickup, drop_off }, true)
                }
                None => (self.rest(now), false),
            },
            Stage::ToPickup { order, pickup, drive, began } if ended(&drive, began) <= now => {
                self.arrive(&drive, pickup);
                (Stage::AtPickup { order, leave: None }, true)
            }
            Stage::AtPickup { order, leave: None } if order.is_ready => {
                let leave = Some(now + seconds(&handing_over, &mut self.rng));
                (Stage::AtPickup { order, leave }, true)
            }
            Stage::AtPickup { order, leave: Some(leave) } if leave <= now => match self.drive_to(order.drop_off) {
                Some(drive) => (Stage::ToDropOff { order, drive, began: now }, true),
                None => (self.rest(now), false),
            },
            Stage::ToDropOff { order, drive, began } if ended(&drive, began) <= now => {
                self.arrive(&drive, order.drop_off);
                let hand_over = now + seconds(&handing_over, &mut self.rng);
                (Stage::AtDropOff { order, hand_over }, true)
            }
            Stage::AtDropOff { order, hand_over } if hand_over <= now => {
                self.errands.push_back(Errand::Deliver { delivery: order.delivery });
                (Stage::Settling { order }, true)
            }
            stage @ (Stage::Resting { .. }
            | Stage::Ordering { .. }
            | Stage::ToPickup { .. }
            | Stage::AtPickup { .. }
            | Stage::ToDropOff { .. }
            | Stage::AtDropOff { .. }
            | Stage::Settling { .. }) => (stage, false),
        }
    }

    fn truth(&self, now: Time) -> Truth {
        let standing = Place { position: self.at.position, heading_degrees: self.heading_degrees, speed_m_s: 0.0 };
        let on_the_way = |order: &Order, drive: &Drive, began: Time, leg| Truth {
            place: drive.at(now.millis_since(began)),
            delivery: Some(order.delivery),
            leg: Some(leg),
            arrives: Some(ended(drive, began)),
        };
        let here = |order: &Order, leg| Truth {
            place: standing,
            delivery: Some(order.delivery),
            leg: Some(leg),
            arrives: None,
        };
        match &self.stage {
            Stage::Resting { .. } | Stage::Ordering { .. } => {
                Truth { place: standing, delivery: None, leg: None, arrives: None }
            }
            Stage::ToPickup { order, drive, began, .. } => on_the_way(order, drive, *began, Leg::ToPickup),
            Stage::AtPickup { order, .. } => here(order, Leg::AtPickup),
            Stage::ToDropOff { order, drive, began } => on_the_way(order, drive, *began, Leg::ToDropOff),
            Stage::AtDropOff { order, .. } | Stage::Settling { order } => here(order, Leg::AtDropOff),
        }
    }

    fn next_order(&mut self) -> Option<(RoadPlace, RoadPlace)> {
        let (graph, profile) = (self.routing.graph().clone(), Profile::from(self.custom.vehicle));
        for _ in 0..ORDER_TRIES {
            let pickup = self.place_near(&graph, self.at, self.custom.to_pickup_m.clone())?;
            let drop_off = self.place_near(&graph, pickup, self.custom.to_drop_off_m.clone())?;
            let is_reached = |from: Endpoint, to: RoadPlace| self.routing.route(&from, &to.onward(), profile).is_some();
            if is_reached(self.at.onward(), pickup) && is_reached(pickup.onward(), drop_off) {
                return Some((pickup, drop_off));
            }
        }
        None
    }

    fn place_near(&mut self, graph: &Graph, from: RoadPlace, apart_m: RangeInclusive<f64>) -> Option<RoadPlace> {
        places::some_way_from(graph, self.custom.vehicle.into(), from.position, apart_m, &mut self.rng)
    }

    fn drive_to(&mut self, to: RoadPlace) -> Option<Drive> {
        let profile = self.custom.vehicle.into();
        let route = self.routing.route(&self.at.onward(), &to.onward(), profile)?;
        Some(Drive::plan(self.routing.graph(), &route, profile, &self.custom.traffic, &mut self.rng))
    }

    fn arrive(&mut self, drive: &Drive, at: RoadPlace) {
        self.driven_m += drive.length_m();
        self.heading_degrees = drive.at(i64::MAX).heading_degrees;
        self.at = at;
    }

    fn rest(&mut self, now: Time) -> Stage {
        Stage::Resting { until: now + seconds(&self.custom.resting_s.clone(), &mut self.rng) }
    }
}

fn ended(drive: &Drive, began: Time) -> Time {
    Time(began.0.saturating_add(drive.duration_ms()))
}

fn seconds(range: &RangeInclusive<f64>, rng: &mut SmallRng) -> Duration {
    Duration::from_secs_f64(rng.random_range(range.clone()).max(0.0))
}

const STAGES: u32 = 7;
const ORDER_TRIES: u32 = 20;

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::OnceLock;

    use maps::geo;
    use maps::import::{ImportOptions, import_bytes};
    use maps::town::{TownOptions, extract};

    use super::*;

    #[test]
    fn a_day_is_one_delivery_after_the_other_without_a_jump() {
        let mut day = Day::begin(1);

        for second in 0..6 * 3600 {
            day.second(second);
        }

        assert!(day.delivered >= 8, "{}", day.delivered);
        assert_eq!(day.given_up, 0);
        assert!(day.shift.driven_m() > 5000.0);
    }

    #[test]
    fn every_vehicle_delivers_at_its_own_pace() {
        let fastest = |vehicle| {
            let mut day = Day::by(vehicle, 4);
            let speeds: Vec<f64> = (0..4 * 3600).map(|second| day.second(second).place.speed_m_s).collect();
            assert!(day.delivered >= 1, "{vehicle:?}");
            speeds.into_iter().fold(0.0, f64::max)
        };

        assert!(fastest(Vehicle::Car) > 10.0);
        assert!((2.5..9.0).contains(&fastest(Vehicle::Bicycle)));
        assert!((0.8..2.0).contains(&fastest(Vehicle::Foot)));
    }

    #[test]
    fn the_driver_is_at_the_stop_when_it_was_said_that_he_would_be() {
        let mut day = Day::begin(2);
        let mut said: Option<(Time, Leg)> = None;
        let mut checked = 0;

        for second in 0..3 * 3600 {
            let now = at(second);
            let truth = day.second(second);
            if let Some((arrives, leg)) = said
                && arrives <= now
            {
                let there = if leg == Leg::ToPickup { Leg::AtPickup } else { Leg::AtDropOff };
                assert_eq!(truth.leg, Some(there));
                assert!(now.millis_since(arrives) <= 1000);
                checked += 1;
            }
            said = truth.arrives.zip(truth.leg);
        }

        assert!(checked >= 8, "{checked}");
    }

    #[test]
    fn an_order_that_is_refused_is_followed_by_another() {
        let mut day = Day::begin(3);
        day.refuses = 5;

        for second in 0..2 * 3600 {
            day.second(second);
        }

        assert_eq!(day.given_up, 5);
        assert!(day.delivered >= 1, "{}", day.delivered);
    }

    #[test]
    fn the_same_seed_has_the_same_day() {
        let day = |seed| {
            let mut day = Day::begin(seed);
            (0..3600).map(|second| day.second(second).place.position).collect::<Vec<_>>()
        };

        assert_eq!(day(4), day(4));
        assert_ne!(day(4), day(5));
    }

    /// A driver, and an API that does what it is asked.
    struct Day {
        shift: Shift,
        under_way: Vec<(Time, Done)>,
        before: Option<Truth>,
        deliveries: u64,
        delivered: u64,
        given_up: u64,
        refuses: u64,
    }

    impl Day {
        fn begin(seed: u64) -> Self {
            Day::by(Vehicle::Car, seed)
        }

        fn by(vehicle: Vehicle, seed: u64) -> Self {
            let custom = Custom { vehicle, ..Custom::default() };
            let shift = Shift::begin(town(), custom, seed, at(0)).unwrap();
            Day { shift, under_way: Vec::new(), before: None, deliveries: 0, delivered: 0, given_up: 0, refuses: 0 }
        }

        fn second(&mut self, second: i64) -> Truth {
            let now = at(second);
            self.under_way.sort_by_key(|(due, _)| *due);
            while self.under_way.first().is_some_and(|(due, _)| *due <= now) {
                let (_, done) = self.under_way.remove(0);
                self.shift.handle_done(done, now);
            }
            let truth = self.shift.handle_time(now);
            if let Some(before) = self.before.replace(truth) {
                let moved_m = geo::distance_cm(before.place.position, truth.place.position) / 100.0;
                assert!(moved_m < 45.0, "{moved_m} m in second {second}");
            }
            while let Some(errand) = self.shift.poll_errand() {
                let answer = self.answer(errand, now);
                self.under_way.push(answer);
            }
            truth
        }

        fn answer(&mut self, errand: Errand, now: Time) -> (Time, Done) {
            match errand {
                Errand::Order { .. } if self.given_up < self.refuses => {
                    self.given_up += 1;
                    (now, Done::GivenUp)
                }
                Errand::Order { .. } => {
                    self.deliveries += 1;
                    (now + Duration::from_millis(300), Done::Ordered { delivery: self.deliveries })
                }
                Errand::Cook { delivery, takes } => {
                    assert_eq!(delivery, self.deliveries);
                    (now + takes, Done::Cooked)
                }
                Errand::Deliver { delivery } => {
                    assert_eq!(delivery, self.deliveries);
                    self.delivered += 1;
                    (now + Duration::from_secs(3), Done::Delivered)
                }
            }
        }
    }

    fn at(second: i64) -> Time {
        Time(1_700_000_000_000 + second * 1000)
    }

    pub(crate) fn town() -> Arc<Routing> {
        static TOWN: OnceLock<Arc<Routing>> = OnceLock::new();
        let make = || {
            let bytes = extract(&TownOptions { junctions: 200, ..TownOptions::default() });
            let map = import_bytes(&bytes, &ImportOptions::default()).unwrap();
            Arc::new(Routing::new(Arc::new(Graph::from_bytes(&map).unwrap())))
        };
        TOWN.get_or_init(make).clone()
    }
}
