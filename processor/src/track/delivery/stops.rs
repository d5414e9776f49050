//! Which stops of a delivery the driver is at, which he has done, and which one is ahead.

use protocol::{Delivery, DeliveryState, Position, Stop, StopKind, Time};

use crate::track::clock_set::ClockSet;
use crate::track::fence::{Passage, Presence, Side, side_of_disc};
use crate::track::fields::{Plain, fields};

#[derive(Clone, PartialEq, Debug)]
pub(super) struct Stops {
    /// One per stop.
    presences: Vec<Presence>,
    /// The stops where nothing is left to do, as bits.
    done: u32,
}

fields! {
    Stops {
        1 presences: Plain,
        2 done: Plain,
    }
}

/// What a fix changed at a stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum StopPassage {
    Entered,
    /// `completes_pickups`: the goods of the last pickup are with the driver.
    Left {
        completes_pickups: bool,
    },
}

impl Stops {
    pub(super) fn unvisited(count: usize) -> Stops {
        Stops { presences: vec![Presence::default(); count], done: 0 }
    }

    /// The clock was set.
    pub(super) fn handle_clock_set(&mut self, set: ClockSet) {
        self.presences.iter_mut().for_each(|presence| presence.handle_clock_set(set));
    }

    /// The stop ahead: the first pickup that is not done, and once picked up the first drop-off that is not done.
    pub(super) fn target<'a>(&self, delivery: &'a Delivery) -> Option<(u8, &'a Stop)> {
        let kind = match delivery.state {
            DeliveryState::Received | DeliveryState::Accepted | DeliveryState::Preparing | DeliveryState::Ready => {
                StopKind::Pickup
            }
            DeliveryState::PickedUp => StopKind::DropOff,
            DeliveryState::Delivered | DeliveryState::Failed => return None,
        };
        let of_kind = || delivery.stops.iter().enumerate().filter(|(_, stop)| stop.kind == kind);
        let open = of_kind().find(|(i, _)| !self.is_done(*i));
        let (i, stop) = open.or(of_kind().next_back()).or(delivery.stops.iter().enumerate().next())?;
        Some((i as u8, stop))
    }

    pub(super) fn is_done(&self, stop: usize) -> bool {
        self.done >> stop.min(31) & 1 == 1
    }

    pub(super) fn is_inside(&self, stop: usize) -> bool {
        self.presences[stop].is_inside()
    }

    /// Since when the driver is at this stop.
    pub(super) fn entered(&self, stop: u8) -> Option<Time> {
        self.presences[usize::from(stop)].entered()
    }

    /// Judges one stop by a new position of the driver.
    pub(super) fn handle_position(
        &mut self,
        stop: usize,
        delivery: &Delivery,
        position: Position,
        at: Time,
    ) -> Option<StopPassage> {
        let Stop { position: center, radius_m, .. } = &delivery.stops[stop];
        let side = side_of_disc(position, *center, u32::from(*radius_m));
        Some(match self.presences[stop].handle_fix(side, at)? {
            Passage::Entered => StopPassage::Entered,
            Passage::Left => StopPassage::Left { completes_pickups: self.leave(stop, delivery) },
            Passage::Brushed => StopPassage::Left { completes_pickups: false },
        })
    }

    /// The driver is where he was: one more look at him inside the stops that he is at.
    pub(super) fn handle_stay(&mut self, delivery: &Delivery, position: Position, at: Time) {
        for (presence, stop) in self.presences.iter_mut().zip(&delivery.stops) {
            let side = side_of_disc(position, stop.position, u32::from(stop.radius_m));
            if presence.is_inside() && side == Side::Inside {
                presence.handle_fix(side, at);
            }
        }
    }

    /// Left a stop after a stay. True if it was the last of the pickups.
    fn leave(&mut self, stop: usize, delivery: &Delivery) -> bool {
        let kind = delivery.stops[stop].kind;
        let is_in_turn = match kind {
            StopKind::Pickup => delivery.state == DeliveryState::Ready,
            StopKind::DropOff => delivery.state == DeliveryState::PickedUp,
        };
        if !is_in_turn {
            return false;
        }
        self.done |= 1 << stop.min(31);
        let mut of_kind = delivery.stops.iter().enumerate().filter(|(_, s)| s.kind == kind);
        kind == StopKind::Pickup && of_kind.all(|(i, _)| self.is_done(i))
    }
}
