//! Trips: what was told of a leg when it began, beside how long it took. A leg is a driver's way to one stop of one
//! delivery; it begins with the first keyframe that has a plan and an arrival for that stop, and ends when he is there.
//! What was told halfway is kept too: who is under way asks another question than who sets off.
//!
//! **Invariant:** a trip is taken once, and by the reader's rule of (epoch, number): updates told again change nothing.

use std::collections::BTreeMap;

use maps::eta::{Ahead, FinishedTrip};
use maps::{Graph, geo};
use protocol::update::{DeliveryBody, DeliveryUpdate, DeliveryView, Epoch, Eta, EtaBasis, Event, Leg};
use protocol::{DeliveryKey, Position, Time};
use wincode::{SchemaRead, SchemaWrite};

/// Deliveries under way.
#[derive(Clone, PartialEq, Debug, Default, SchemaWrite, SchemaRead)]
pub struct Trips {
    deliveries: BTreeMap<DeliveryKey, Followed>,
    swept: Time,
}

#[derive(Clone, PartialEq, Debug, SchemaWrite, SchemaRead)]
struct Followed {
    epoch: Epoch,
    number: u64,
    heard: Time,
    asked: Vec<Asked>,
    /// Stops that were reached, as bits.
    done: u32,
}

/// A leg that has begun.
#[derive(Clone, Copy, PartialEq, Debug, SchemaWrite, SchemaRead)]
struct Asked {
    stop: u8,
    ahead: Ahead,
    at: Time,
    predicted_ms: u32,
}

/// What an update meant.
#[derive(Clone, PartialEq, Debug)]
pub enum Heard {
    Nothing,
    Begun,
    /// A leg has ended: what was told when it began, and halfway if it was told then.
    Finished(Vec<FinishedTrip>),
    /// More deliveries than are followed.
    NoRoom,
}

impl Trips {
    pub fn len(&self) -> usize {
        self.deliveries.len()
    }

    pub fn handle_update(&mut self, junctions: &Junctions, update: &DeliveryUpdate) -> Heard {
        self.sweep(update.at);
        let has_room = self.deliveries.len() < DELIVERIES_MAX;
        let known = self.deliveries.get_mut(&update.key);
        let followed = match (known, &update.body) {
            (Some(followed), _) => {
                if (update.epoch, update.number) <= (followed.epoch, followed.number) {
                    return Heard::Nothing;
                }
                followed
            }
            (None, DeliveryBody::Changed { .. }) => return Heard::Nothing,
            (None, DeliveryBody::Keyframe { .. }) if update.is_last => return Heard::Nothing,
            (None, DeliveryBody::Keyframe { .. }) if !has_room => return Heard::NoRoom,
            (None, DeliveryBody::Keyframe { .. }) => {
                self.deliveries.entry(update.key).or_insert_with(|| Followed::new(update))
            }
        };
        let heard = followed.handle_update(junctions, update);
        if update.is_last {
            self.deliveries.remove(&update.key);
        }
        heard
    }

    /// What was told of it says nothing of cars.
    pub fn forget(&mut self, key: DeliveryKey) {
        self.deliveries.remove(&key);
    }

    /// A live delivery has a keyframe a minute: one not heard of for long is over.
    fn sweep(&mut self, now: Time) {
        if now.millis_since(self.swept).abs() >= SWEEP_MS {
            self.swept = now;
            self.deliveries.retain(|_, followed| now.millis_since(followed.heard) < FRESH_MS);
        }
    }
}

impl Followed {
    fn new(update: &DeliveryUpdate) -> Followed {
        Followed { epoch: update.epoch, number: update.number, heard: update.at, asked: Vec::new(), done: 0 }
    }

    fn handle_update(&mut self, junctions: &Junctions, update: &DeliveryUpdate) -> Heard {
        if update.epoch.assignment != self.epoch.assignment {
            // Another driver: what was told of the one before is nobody's error.
            (self.asked, self.done) = (Vec::new(), 0);
        }
        (self.epoch, self.number, self.heard) = (update.epoch, update.number, update.at);
        for event in &update.events {
            let Event::StopEntered { stop } = event else { continue };
            let trips = self.finish(*stop, update);
            if !trips.is_empty() {
                return Heard::Finished(trips);
            }
        }
        match &update.body {
            DeliveryBody::Keyframe { view } if self.begin(junctions, view, update.at) => Heard::Begun,
            DeliveryBody::Keyframe { .. } | DeliveryBody::Changed { .. } => Heard::Nothing,
        }
    }

    fn finish(&mut self, stop: u8, update: &DeliveryUpdate) -> Vec<FinishedTrip> {
        let (of_stop, others) = std::mem::take(&mut self.asked).into_iter().partition::<Vec<_>, _>(|a| a.stop == stop);
        self.asked = others;
        if !of_stop.is_empty() {
            self.done |= 1 << stop.min(31);
        }
        let told = match &update.body {
            DeliveryBody::Keyframe { view } => view.eta,
            DeliveryBody::Changed { changed } => changed.eta.flatten(),
        };
        // Who is there has the moment of it for an arrival: it may lie before the fold's time by what the phone kept.
        let is_there = |eta: &Eta| eta.stop == stop && eta.p10 == eta.p90;
        let finished = told.filter(is_there).map_or(update.at, |eta| eta.arrival.min(update.at));
        let trip = |Asked { ahead, at, predicted_ms, .. }| FinishedTrip { ahead, asked: at, finished, predicted_ms };
        of_stop.into_iter().map(trip).collect()
    }

    fn begin(&mut self, junctions: &Junctions, view: &DeliveryView, at: Time) -> bool {
        let Some(asked) = asked(junctions, view, at) else { return false };
        let mut of_stop = self.asked.iter().filter(|a| a.stop == asked.stop);
        let is_wanted = match (of_stop.next(), of_stop.next()) {
            (None, _) => self.done >> asked.stop.min(31) & 1 == 0 && self.asked.len() < ASKED_MAX,
            (Some(first), None) => asked.ahead.length_m <= first.ahead.length_m / 2.0,
            (Some(_), Some(_)) => false,
        };
        if is_wanted {
            self.asked.push(asked);
        }
        is_wanted
    }
}

/// What a keyframe foretells: None where it does not, or not by the road, or where the driver is there already.
fn asked(junctions: &Junctions, view: &DeliveryView, at: Time) -> Option<Asked> {
    let (plan, progress, eta, shown) = (view.plan.as_ref()?, view.progress?, view.eta?, view.position?);
    let is_on_his_way = matches!(progress.leg, Leg::ToPickup | Leg::ToDropOff | Leg::Arriving);
    let stop = view.delivery.stops.get(usize::from(eta.stop))?;
    if !is_on_his_way || eta.basis != EtaBasis::Road || eta.p10 >= eta.p90 || plan.length_m == 0 {
        return None;
    }
    let left = (f64::from(progress.remaining_m) / f64::from(plan.length_m)).min(1.0);
    let ahead = Ahead {
        seconds: f64::from(plan.duration_s) * left,
        length_m: f64::from(progress.remaining_m),
        straight_m: geo::distance_cm(shown.position, stop.position) / 100.0,
        turns: (f64::from(junctions.turns(&plan.points)) * left).round() as u32,
        driven_m: f64::from(progress.along_m),
    };
    let predicted_ms = u32::try_from(eta.arrival.millis_since(at)).ok().filter(|ms| *ms > 0)?;
    (ahead.length_m >= LENGTH_M_MIN).then_some(Asked { stop: eta.stop, ahead, at, predicted_ms })
}

/// Where a map's roads meet: there, and only there, a bend of a plan is a turn, as the walk over its edges counts them.
#[derive(Default)]
pub struct Junctions {
    /// Rising.
    positions: Vec<(i32, i32)>,
}

impl Junctions {
    pub fn of(graph: &Graph) -> Junctions {
        let mut positions: Vec<(i32, i32)> = graph
            .edges()
            .filter_map(|edge| graph.geometry(edge).next())
            .map(|position| (position.lat_e7, position.lon_e7))
            .collect();
        positions.sort_unstable();
        positions.dedup();
        Junctions { positions }
    }

    fn turns(&self, line: &[Position]) -> u32 {
        let is_turn = |three: &&[Position]| {
            let key = (three[1].lat_e7, three[1].lon_e7);
            let (before, after) = (geo::heading_cdeg(three[0], three[1]), geo::heading_cdeg(three[1], three[2]));
            geo::turn_cdeg(before, after) > TURN_CDEG && self.positions.binary_search(&key).is_ok()
        };
        line.windows(3).filter(is_turn).count() as u32
    }
}

const DELIVERIES_MAX: usize = 1 << 16;
/// A delivery has a few stops.
const ASKED_MAX: usize = 8;
const SWEEP_MS: i64 = 60_000;
const FRESH_MS: i64 = 3_600_000;
/// Nearer than this a leg has hardly begun.
const LENGTH_M_MIN: f64 = 200.0;
/// What counts as a turn, as in `maps::eta`.
const TURN_CDEG: u16 = 4_500;
