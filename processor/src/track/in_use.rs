//! Which bodies are in use: by name, as part of a partition's state, and opened. A record changes both in one step, and
//! whoever restores the names opens the same bodies.
//!
//! A map replaces those that it shares more than half of the smaller area with; maps of other regions stay. Tables go
//! with their map: those made for the old version mean nothing on the new one, and until there are new ones the
//! import's speeds hold. The map that was replaced stays until no tracker stands on it any more.

use std::sync::Arc;

use protocol::Time;
use protocol::record::{BlobHash, BodyKind};
use wincode::{SchemaRead, SchemaWrite};

use super::roads::{Bodies, Region, Roads, Tables, Traffic, is_same_region};

/// The names.
#[derive(Clone, PartialEq, Debug, Default, SchemaWrite, SchemaRead)]
pub struct Named {
    /// The one offered last, of each kind.
    offered: Vec<(BodyKind, BlobHash)>,
    /// The newest last.
    regions: Vec<NamedRegion>,
    retired: Vec<(u32, BlobHash)>,
    eta: Option<BlobHash>,
    /// Counts what was taken into use.
    count: u32,
}

/// A map in use and its tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
pub struct NamedRegion {
    number: u32,
    pub map: BlobHash,
    pub tables: Tables,
    tables_number: u32,
}

impl Named {
    pub fn offer(&mut self, kind: BodyKind, hash: BlobHash) {
        self.offered.retain(|(other, _)| *other != kind);
        self.offered.push((kind, hash));
    }

    /// The body of this kind that was offered last and is not in use yet.
    pub fn offered(&self, kind: BodyKind) -> Option<BlobHash> {
        let offered = self.offered.iter().find(|(other, _)| *other == kind).map(|(_, hash)| *hash)?;
        (!self.is_in_use(kind, offered)).then_some(offered)
    }

    pub fn is_in_use(&self, kind: BodyKind, hash: BlobHash) -> bool {
        let mut regions = self.regions.iter();
        match kind {
            BodyKind::Map => regions.any(|region| region.map == hash),
            BodyKind::Speeds => regions.any(|region| region.tables.speeds == Some(hash)),
            BodyKind::LiveSpeeds => regions.any(|region| region.tables.live == Some(hash)),
            BodyKind::EtaModel => self.eta == Some(hash),
        }
    }

    pub fn regions(&self) -> &[NamedRegion] {
        &self.regions
    }

    /// All that has to be at hand to fold on.
    pub fn bodies(&self) -> Vec<BlobHash> {
        let of_region = |region: &NamedRegion| [Some(region.map), region.tables.speeds, region.tables.live];
        let in_use = self.regions.iter().flat_map(of_region).flatten();
        in_use.chain(self.retired.iter().map(|(_, hash)| *hash)).chain(self.eta).collect()
    }

    /// Opens what is named: after a restore.
    pub fn open(&self, bodies: &dyn Bodies) -> Roads {
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
    pub fn take(&mut self, roads: &mut Roads, kind: BodyKind, hash: BlobHash, bodies: &dyn Bodies) {
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
            let old = roads.region(region.number).map(|region| region.traffic.map.graph.bbox());
            // Of a map that could not be opened nobody knows where it lies: there is one map almost everywhere.
            let stays = match (&new, old) {
                (Some(new), Some(old)) => !is_same_region(new.graph.bbox(), old),
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
            NamedRegion { number: self.count, map: hash, tables: Tables::default(), tables_number: self.count };
        self.regions.push(region);
        if let Some(map) = new {
            roads.regions.push(region.opened(bodies.traffic(&map, region.tables)));
        }
    }

    /// For the map that it was made for; what fits none changes nothing.
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

    /// Lets go of live tables that nobody has renewed: of how the traffic was then, nothing is left, and a jam of last
    /// night must not turn drivers off their way this morning.
    pub fn end_live(&mut self, roads: &mut Roads, now: Time, bodies: &dyn Bodies) {
        for region in &mut self.regions {
            let Some(opened) = roads.regions.iter_mut().find(|opened| opened.number == region.number) else { continue };
            let is_over = |at: Time| now.millis_since(at).abs() > LIVE_MS_MAX;
            let (Some(hash), true) = (region.tables.live, opened.traffic.live_at().is_some_and(is_over)) else {
                continue;
            };
            // Else it would be taken again for one that was offered and is not in use yet.
            self.offered.retain(|offered| *offered != (BodyKind::LiveSpeeds, hash));
            self.count += 1;
            (region.tables.live, region.tables_number) = (None, self.count);
            *opened = region.opened(bodies.traffic(&opened.traffic.map, region.tables));
        }
    }

    /// Lets go the maps that were replaced and that nobody stands on.
    pub fn let_go(&mut self, roads: &mut Roads, is_needed: impl Fn(u32) -> bool) {
        self.retired.retain(|(number, _)| is_needed(*number));
        let retired = &self.retired;
        roads.retired.retain(|(number, _)| retired.iter().any(|(other, _)| other == number));
    }

    pub fn has_retired(&self) -> bool {
        !self.retired.is_empty()
    }
}

impl NamedRegion {
    fn opened(&self, traffic: Arc<Traffic>) -> Region {
        Region { number: self.number, tables: self.tables_number, traffic }
    }
}

/// More regions than one process should fold.
const REGIONS_MAX: usize = 16;
/// Three half-lives of the factors: with every minute of traffic the learner tells newer ones, so it is away or nobody
/// drives.
const LIVE_MS_MAX: i64 = 3_600_000;
/// Trackers move off a replaced map within minutes; maps do not come so often.
const RETIRED_MAX: usize = 4;
