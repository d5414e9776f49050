//! What the learner knows, as bytes, and the note that says where they lie. Who learns on from them has what the one
//! before had, and reads on from exactly there.
//!
//! The note stands in the snapshots topic under a key of its own, in an envelope of its own kind: it is there however long
//! nobody ran.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use maps::eta::EtaLearner;
use maps::speeds::{Learner as SpeedLearner, LiveLearner};
use protocol::envelope::Enveloped;
use protocol::record::BlobHash;
use protocol::update::{DeliveryBody, DeliveryUpdate};
use protocol::{DriverKey, Offset, PartitionId, Time};
use wincode::config::Configuration;
use wincode::{SchemaRead, SchemaWrite};

use super::bodies::OfferedBodies;
use super::trips::Trips;

#[derive(Clone, PartialEq, Debug, SchemaWrite, SchemaRead)]
pub struct State {
    /// Whose edges the speeds are of.
    pub map: Option<BlobHash>,
    pub speeds: SpeedLearner,
    pub live: LiveLearner,
    pub eta: EtaLearner,
    pub trips: Trips,
    /// Drivers who travel by something else than a car: what they need says nothing of cars.
    pub not_by_car: BTreeSet<DriverKey>,
    pub bodies: OfferedBodies,
    /// The table of the usual week that was offered last.
    pub usual: Vec<u8>,
    pub eta_told: Option<BlobHash>,
    /// What was learned counts for less every day, last then.
    pub faded: Time,
    /// The entries to read next.
    pub trail: BTreeMap<PartitionId, Offset>,
    pub updates: BTreeMap<PartitionId, Offset>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the bytes are not what a learner of this build knows")]
pub struct StateError;

impl State {
    pub fn new(now: Time) -> State {
        State {
            map: None,
            speeds: SpeedLearner::default(),
            live: LiveLearner::new(now),
            eta: EtaLearner::default(),
            trips: Trips::default(),
            not_by_car: BTreeSet::new(),
            bodies: OfferedBodies::default(),
            usual: Vec::new(),
            eta_told: None,
            faded: now,
            trail: BTreeMap::new(),
            updates: BTreeMap::new(),
        }
    }

    /// Whether it is of a delivery that comes by something else than a car.
    pub fn is_by_other(&self, update: &DeliveryUpdate) -> bool {
        let DeliveryBody::Keyframe { view } = &update.body else { return false };
        let driver = |driver| DriverKey { tenant: update.key.tenant, driver };
        view.delivery.driver.is_some_and(|id| self.not_by_car.contains(&driver(id)))
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        // Memory is all that it writes to.
        wincode::config::serialize(self, config()).unwrap_or_default()
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<State, StateError> {
        wincode::config::deserialize_exact(bytes, config()).map_err(|_| StateError)
    }
}

/// A city's edges by hour are more than the usual bound on what a decoder asks for at once.
fn config() -> Configuration<true, ALLOCATED_MAX> {
    Configuration::default().with_preallocation_size_limit::<ALLOCATED_MAX>()
}

const ALLOCATED_MAX: usize = 1 << 30;

/// Where a state lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
pub struct StateNote {
    pub format: u16,
    pub hash: BlobHash,
    pub size: u64,
    pub at: Time,
}

impl Enveloped for StateNote {
    const KIND: u8 = b'L';
    const VERSION: u8 = 1;
}

/// Where the note stands in the snapshots topic.
pub const NOTE_KEY: Bytes = Bytes::from_static(b"learner");
/// Changed whenever a type that is part of the state changes.
pub const STATE_FORMAT: u16 = 3;
