//! Which maps and tables are in use: by hash, as part of a partition's state, and opened. A record changes both in one
//! step, and a fold that restores the hashes opens the same bodies.
//!
//! A map replaces those that have more than half of the smaller one's roads too; maps of other regions stay, also where
//! boxes lie over each other, as a country's does over its neighbours' cities. Tables go
//! with their map: those made for the old version mean nothing on the new one, and until there are new ones the
//! import's speeds hold. The map that was replaced stays open until no tracker stands on it any more.

use std::sync::Arc;

use maps::shared::is_same_region;
use protocol::Time;
use protocol::record::{BlobHash, BodyKind};
use wincode::{SchemaRead, SchemaWrite};

use super::roads::{Bodies, Region, Roads, Tables, Traffic};

/// What is in use, by hash.
#[derive(Clone, PartialEq, Debug, Default, SchemaWrite, SchemaRead)]
pub(crate) struct BodiesInUse {
    /// The one offered last, of each kind.
    offered: Vec<(BodyKind, BlobHash)>,
    /// The newest last.
    regions: Vec<RegionInUse>,
    retired: Vec<(u32, BlobHash)>,
    eta: Option<BlobHash>,
    /// How many bodies were taken into use so far: the next one's number.
    count: u32,
}

/// A map in use and its tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
pub(crate) struct RegionInUse {
    number: u32,
    pub map: BlobHash,
    pub tables: Tables,
    tables_number: u32,
}

impl BodiesInUse {
    pub(crate) fn offer(&mut self, kind: BodyKind, hash: BlobHash) {
        self.offered.retain(|(other, _)| *other != kind);
        self.offered.push((kind, hash));
    }

    /// The body of this kind that was offered last and is not in use yet.
    pub(crate) fn offered(&self, kind: BodyKind) -> Option<BlobHash> {
        let offered = self.offered.iter().find(|(other, _)| *other == kind).map(|(_, hash)| *hash)?;
        (!self.is_in_use(kind, offered)).then_some(offered)
    }

    pub(crate) fn is_in_use(&self, kind: BodyKind, hash: BlobHash) -> bool {
        let mut regions = self.regions.iter();
        match kind {
            BodyKind::Map => regions.any(|region| region.map == hash),
            BodyKind::Speeds => regions.any(|region| region.tables.speeds == Some(hash)),
            BodyKind::LiveSpeeds => regions.any(|region| region.tables.live == Some(hash)),
            BodyKind::EtaModel => self.eta == Some(hash),
        }
    }

    pub(crate) fn regions(&self) -> &[RegionInUse] {
        &self.regions
    }

    /// All bodies that have to be there to fold on.
    pub(crate) fn bodies(&self) -> Vec<BlobHash> {
        let of_region = |region: &RegionInUse| [Some(region.map), region.tables.speeds, region.tables.live];
        let in_use = self.regions.iter().flat_map(of_region).flatten();
        in_use.chain(self.retired.iter().map(|(_, hash)| *hash)).chain(self.eta).collect()
    }

    /// Opens what is in use, after a restore.
    pub(crate) fn open(&self, bodies: &dyn Bodies) -> Roads {
        let mut roads = Roads::default();
        for region in &self.regions {
            if let Some(map) = bodies.map(region.map) {
                roads.regions.push(region.opened(bodies.traffic(&map, region.tables)));
            }
        }
        roads.retired = self.retired.iter().filter_map(|(number, hash)| Some((*number, bodies.map(*hash)?))).collect();
        if let Some(table) = self.eta.and_then(|hash| bodies.eta(hash)) {
            roads.eta = table;
        }
        roads
    }

    /// A record says that a body is in use from here on.
    pub(crate) fn take(&mut self, roads: &mut Roads, kind: BodyKind, hash: BlobHash, bodies: &dyn Bodies) {
        if self.is_in_use(kind, hash) {
            return;
        }
        match kind {
            BodyKind::Map => self.take_map(roads, hash, bodies),
            BodyKind::Speeds | BodyKind::LiveSpeeds => self.take_table(roads, kind, hash, bodies),
            BodyKind::EtaModel => {
                self.eta = Some(hash);
                roads.eta = bodies.eta(hash).unwrap_or_default();
            }
        }
    }

    fn take_map(&mut self, roads: &mut Roads, hash: BlobHash, bodies: &dyn Bodies) {
        let new = bodies.map(hash);
        let mut replaced = Vec::new();
        self.regions.retain(|region| {
            let old = roads.region(region.number).map(|region| &region.traffic.map);
            // Where a map that could not be opened lies is not known. Almost everywhere there is only one.
            let stays = match (&new, old) {
                (Some(new), Some(old)) => !is_same_region(&new.graph, &old.graph),
                (None, _) | (_, None) => false,
            };
            if !stays {
                replaced.push((region.number, region.map));
            }
            stays
        });
        while self.regions.len() >= REGIONS_MAX {
            let oldest = self.regions.remove(0);
            replaced.push((oldest.number, oldest.map));
        }
        for (number, map) in replaced {
            let Some(at) = roads.regions.iter().position(|region| region.number == number) else { continue };
            roads.retired.push((number, roads.regions.remove(at).traffic.map.clone()));
            self.retired.push((number, map));
        }
        while self.retired.len() > RETIRED_MAX {
            let (number, _) = self.retired.remove(0);
            roads.retired.retain(|(other, _)| *other != number);
        }
        self.count += 1;
        let region =
            RegionInUse { number: self.count, map: hash, tables: Tables::default(), tables_number: self.count };
        self.regions.push(region);
        if let Some(map) = new {
            roads.regions.push(region.opened(bodies.traffic(&map, region.tables)));
        }
    }

    /// A table comes into use on the map that it was made for. One that fits no map changes nothing.
    fn take_table(&mut self, roads: &mut Roads, kind: BodyKind, hash: BlobHash, bodies: &dyn Bodies) {
        for region in self.regions.iter_mut().rev() {
            let Some(opened) = roads.regions.iter_mut().find(|opened| opened.number == region.number) else { continue };
            let (tables, fits): (Tables, fn(&Traffic) -> bool) = match kind {
                BodyKind::LiveSpeeds => (Tables { live: Some(hash), ..region.tables }, Traffic::has_live),
                BodyKind::Speeds | BodyKind::Map | BodyKind::EtaModel => {
                    (Tables { speeds: Some(hash), ..region.tables }, Traffic::has_speeds)
                }
            };
            let traffic = bodies.traffic(&opened.traffic.map, tables);
            if fits(&traffic) {
                self.count += 1;
                (region.tables, region.tables_number) = (tables, self.count);
                *opened = region.opened(traffic);
                return;
            }
        }
    }

    /// Ends live tables that have not been replaced for an hour: a jam of last night must not turn drivers away this
    /// morning.
    pub(crate) fn end_live(&mut self, roads: &mut Roads, now: Time, bodies: &dyn Bodies) {
        for region in &mut self.regions {
            let Some(opened) = roads.regions.iter_mut().find(|opened| opened.number == region.number) else { continue };
            let is_over = |at: Time| now.millis_since(at).abs() > LIVE_MS_MAX;
            let (Some(hash), true) = (region.tables.live, opened.traffic.live_at().is_some_and(is_over)) else {
                continue;
            };
            // Otherwise it would count as offered and not in use yet.
            self.offered.retain(|offered| *offered != (BodyKind::LiveSpeeds, hash));
            self.count += 1;
            (region.tables.live, region.tables_number) = (None, self.count);
            *opened = region.opened(bodies.traffic(&opened.traffic.map, region.tables));
        }
    }

    /// Closes the maps that were replaced and that no tracker stands on.
    pub(crate) fn close_retired(&mut self, roads: &mut Roads, is_needed: impl Fn(u32) -> bool) {
        self.retired.retain(|(number, _)| is_needed(*number));
        let retired = &self.retired;
        roads.retired.retain(|(number, _)| retired.iter().any(|(other, _)| other == number));
    }

    pub(crate) fn has_retired(&self) -> bool {
        !self.retired.is_empty()
    }
}

impl RegionInUse {
    fn opened(&self, traffic: Arc<Traffic>) -> Region {
        Region { number: self.number, tables: self.tables_number, traffic }
    }
}

/// More regions than one process should fold.
const REGIONS_MAX: usize = 16;
/// Three half-lives of the factors. The learner publishes newer ones with every minute of traffic, so it is away or
/// nobody drives.
const LIVE_MS_MAX: i64 = 3_600_000;
/// Trackers move off a replaced map within minutes; maps do not come so often.
const RETIRED_MAX: usize = 4;
