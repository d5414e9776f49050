//! What is opened: each map, table and pair of both once for all partitions, and dropped when nobody uses it any more.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use maps::Profile;
use maps::eta::EtaTable;
use maps::speeds::{LiveFactors, SpeedTable};
use protocol::record::{BlobHash, Vehicle};

use crate::shard::cache::Cache;
use crate::track::{RoadMap, Tables, Traffic};

pub(super) struct OpenBodies {
    pub maps: Cache<BlobHash, RoadMap>,
    /// By map and table.
    pub speeds: Cache<(BlobHash, BlobHash), SpeedTable>,
    pub live: Cache<(BlobHash, BlobHash), LiveFactors>,
    pub etas: Cache<BlobHash, EtaTable>,
    pub traffic: Cache<(BlobHash, Tables), Traffic>,
    /// The profiles of drivers here: routers are made for these before anybody needs them.
    profiles: Mutex<BTreeSet<Profile>>,
}

impl OpenBodies {
    pub(super) fn new() -> OpenBodies {
        OpenBodies {
            maps: Cache::new(MAPS_KEPT),
            speeds: Cache::new(TABLES_KEPT),
            live: Cache::new(TABLES_KEPT),
            etas: Cache::new(TABLES_KEPT),
            traffic: Cache::new(TABLES_KEPT),
            profiles: Mutex::new(BTreeSet::from([Profile::Car])),
        }
    }

    pub(super) fn profiles(&self) -> BTreeSet<Profile> {
        self.profiles.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// True if one of them is new.
    pub(super) fn note_vehicles(&self, vehicles: &BTreeSet<Vehicle>) -> bool {
        let mut profiles = self.profiles.lock().unwrap_or_else(PoisonError::into_inner);
        let before = profiles.len();
        profiles.extend(vehicles.iter().map(|vehicle| Profile::from(*vehicle)));
        profiles.len() > before
    }
}

/// Opened maps and tables that stay a while without a user: about to be used, or just replaced.
const MAPS_KEPT: usize = 2;
const TABLES_KEPT: usize = 4;
