//! The numbers of a delivery's updates: without gaps within an epoch, the first of which is a keyframe. Readers go by
//! them alone, so a takeover that emits the same numbers again disturbs nobody.

use protocol::update::{DeliveryBody, DeliveryUpdate, Epoch, Event};
use protocol::{DeliveryKey, Update};

use crate::track::effects::Step;
use crate::track::fields::{Plain, Required, fields};

#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Numbering {
    epoch: Epoch,
    /// Of the update emitted last; zero before the first.
    number: u64,
}

fields! {
    Numbering {
        1 epoch: Required<Plain>,
        2 number: Required<Plain>,
    }
}

impl Numbering {
    pub(super) fn begin(epoch: Epoch) -> Numbering {
        Numbering { epoch, number: 0 }
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// No update was emitted in this epoch yet.
    pub(super) fn is_first(&self) -> bool {
        self.number == 0
    }

    /// Emits the next update.
    pub(super) fn emit(
        &mut self,
        key: DeliveryKey,
        events: Vec<Event>,
        body: DeliveryBody,
        is_last: bool,
        step: &mut Step<'_>,
    ) {
        self.number += 1;
        let source = step.next_source();
        step.emit(Update::Delivery(DeliveryUpdate {
            key,
            epoch: self.epoch,
            number: self.number,
            source,
            at: step.clock.now(),
            events,
            body,
            is_last,
        }));
    }
}
