//! The numbers of a delivery's updates: without gaps within an epoch, the first of which is a keyframe. Readers go by
//! them alone, so a takeover that emits the same numbers again disturbs nobody.

use protocol::update::{DeliveryBody, DeliveryUpdate, Epoch, Event};
use protocol::{DeliveryKey, Update};
use wincode::{SchemaRead, SchemaWrite};

use crate::track::effects::Step;

#[derive(Clone, Copy, PartialEq, Debug, SchemaWrite, SchemaRead)]
pub(super) struct Numbering {
    epoch: Epoch,
    /// Of the update emitted last; zero before the first.
    number: u64,
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
