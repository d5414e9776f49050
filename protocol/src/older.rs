//! What older builds wrote to the log, as they wrote it, and what it is today. Nothing here is written any more.

use wincode::{SchemaRead, SchemaWrite};

use crate::fix::PhoneState;
use crate::id::{DeliveryId, DeviceKey, DriverKey, Offset, PartitionId};
use crate::record::Vehicle;
use crate::time::Time;
use crate::update::{
    Changed, DeliveryUpdate, DriverBody, DriverUpdate, DriverView, Event, Generation, ShownPosition, SilentCause,
    Source, Update, UpdateBatch,
};

/// Updates in their version 1: a driver's view did not say what he travels by.
#[derive(Clone, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
pub struct UpdateBatch1 {
    pub updates: Vec<Update1>,
}

#[derive(Clone, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
#[wincode(tag_encoding = "u8")]
pub enum Update1 {
    Delivery(DeliveryUpdate),
    Driver(DriverUpdate1),
    Heartbeat { source: PartitionId, offset: Offset, at: Time },
}

#[derive(Clone, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
pub struct DriverUpdate1 {
    pub key: DriverKey,
    pub generation: Generation,
    pub fold_version: u32,
    pub source: Source,
    pub at: Time,
    pub events: Vec<Event>,
    pub body: DriverBody1,
}

#[derive(Clone, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
#[wincode(tag_encoding = "u8")]
pub enum DriverBody1 {
    Keyframe { view: Box<DriverView1> },
    Changed { changed: Changed },
}

#[derive(Clone, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
pub struct DriverView1 {
    pub key: DriverKey,
    pub lead: Option<DeviceKey>,
    pub position: Option<ShownPosition>,
    pub phone_state: Option<PhoneState>,
    pub battery_percent: Option<u8>,
    pub deliveries: Vec<DeliveryId>,
    pub silent: Option<SilentCause>,
}

impl From<UpdateBatch1> for UpdateBatch {
    fn from(older: UpdateBatch1) -> UpdateBatch {
        UpdateBatch { updates: older.updates.into_iter().map(Update::from).collect() }
    }
}

impl From<Update1> for Update {
    fn from(older: Update1) -> Update {
        match older {
            Update1::Delivery(update) => Update::Delivery(update),
            Update1::Driver(DriverUpdate1 { key, generation, fold_version, source, at, events, body }) => {
                let body = match body {
                    DriverBody1::Keyframe { view } => DriverBody::Keyframe { view: Box::new((*view).into()) },
                    DriverBody1::Changed { changed } => DriverBody::Changed { changed },
                };
                Update::Driver(DriverUpdate { key, generation, fold_version, source, at, events, body })
            }
            Update1::Heartbeat { source, offset, at } => Update::Heartbeat { source, offset, at },
        }
    }
}

impl From<DriverView1> for DriverView {
    fn from(older: DriverView1) -> DriverView {
        let DriverView1 { key, lead, position, phone_state, battery_percent, deliveries, silent } = older;
        let vehicle = Vehicle::default();
        DriverView { key, lead, position, phone_state, battery_percent, deliveries, silent, vehicle }
    }
}
