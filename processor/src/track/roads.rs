//! The roads a fold works with: maps, and the traffic on them. Records say which are in use, never a setting; here are
//! only the opened bodies, by their hash.
//!
//! **Invariant:** where the same bodies are in use, the same routes and times come out. So a map under tables (`Traffic`)
//! is made of their bytes alone, is never changed, and partitions that are at different records each have their own.
//!
//! Sketch, for the 146,000 edges of Porto: a map opened is mapped memory and 10 MB of router for each way of travel that
//! somebody uses; a pair of tables costs their own 0.3 to 1 MB and, for each way of travel in the traffic, one metric:
//! 8 B per arc of the hierarchy and 8 B per edge, 5 MB, made in 20 to 60 ms.

use std::sync::{Arc, OnceLock};

use maps::eta::{EtaTable, Speeds};
use maps::router::{Router, Routing, Weights};
use maps::speeds::{LiveFactors, SpeedTable};
use maps::{Graph, Profile};
use protocol::record::BlobHash;
use protocol::{Position, Time};
use wincode::{SchemaRead, SchemaWrite};

/// Where the fold finds the bodies that records name.
pub trait Bodies {
    /// None if it cannot be had: the fold then answers with straight lines.
    fn map(&self, hash: BlobHash) -> Option<Arc<RoadMap>>;

    /// A map under tables. One that cannot be had, or belongs to another map, is left out.
    fn traffic(&self, map: &Arc<RoadMap>, tables: Tables) -> Arc<Traffic>;

    /// None if it cannot be had: the fold then predicts as before anything was learned.
    fn eta(&self, hash: BlobHash) -> Option<Arc<EtaTable>>;
}

/// No bodies at all.
pub struct NoBodies;

impl Bodies for NoBodies {
    fn map(&self, _: BlobHash) -> Option<Arc<RoadMap>> {
        None
    }

    fn traffic(&self, map: &Arc<RoadMap>, _: Tables) -> Arc<Traffic> {
        Arc::new(Traffic::usual(map.clone()))
    }

    fn eta(&self, _: BlobHash) -> Option<Arc<EtaTable>> {
        None
    }
}

/// Which tables are in use on a map.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, SchemaWrite, SchemaRead)]
pub struct Tables {
    pub speeds: Option<BlobHash>,
    pub live: Option<BlobHash>,
}

/// One map, opened.
pub struct RoadMap {
    pub hash: BlobHash,
    pub graph: Arc<Graph>,
    routing: Routing,
    empty_road: SpeedTable,
}

impl RoadMap {
    pub fn of(graph: Graph, hash: BlobHash) -> RoadMap {
        let graph = Arc::new(graph);
        RoadMap { hash, routing: Routing::new(graph.clone()), empty_road: SpeedTable::free_flow(&graph), graph }
    }

    pub(crate) fn covers(&self, position: Position) -> bool {
        self.graph.covers(position)
    }
}

/// A map under the tables in use.
pub struct Traffic {
    pub map: Arc<RoadMap>,
    usual: Option<Arc<SpeedTable>>,
    live: Option<Arc<LiveFactors>>,
    routers: [OnceLock<Arc<dyn Router>>; Profile::ALL.len()],
}

impl Traffic {
    /// As the import says.
    pub fn usual(map: Arc<RoadMap>) -> Traffic {
        Traffic::of(map, None, None)
    }

    /// Tables of this very map.
    pub fn of(map: Arc<RoadMap>, usual: Option<Arc<SpeedTable>>, live: Option<Arc<LiveFactors>>) -> Traffic {
        Traffic { map, usual, live, routers: Default::default() }
    }

    pub(crate) fn has_speeds(&self) -> bool {
        self.usual.is_some()
    }

    pub(crate) fn has_live(&self) -> bool {
        self.live.is_some()
    }

    /// When the traffic was as the live table says.
    pub(crate) fn live_at(&self) -> Option<Time> {
        self.live.as_ref().map(|factors| factors.at)
    }

    pub(crate) fn graph(&self) -> &Graph {
        &self.map.graph
    }

    pub(crate) fn speeds(&self) -> Speeds<'_> {
        Speeds { usual: self.usual.as_deref().unwrap_or(&self.map.empty_road), live: self.live.as_deref() }
    }

    /// Makes the router of a profile before the first request: that takes some hundred milliseconds for a city.
    pub(crate) fn prepare(&self, profile: Profile) {
        self.router(profile);
    }

    pub(crate) fn router(&self, profile: Profile) -> &dyn Router {
        let plain = self.map.routing.router(profile);
        let is_in_traffic = matches!(profile, Profile::Car | Profile::Moped);
        if !is_in_traffic || (self.usual.is_none() && self.live.is_none()) {
            return plain;
        }
        let router = self.routers[usize::from(profile.number())].get_or_init(|| {
            let Speeds { usual, live } = self.speeds();
            plain.beside(Weights::under(self.graph(), profile, usual, live))
        });
        &**router
    }
}

/// A map in use, with its traffic.
pub(crate) struct Region {
    /// Unique: a map that comes into use a second time gets another number.
    pub number: u32,
    /// The number of its tables, unique among the tables of one map.
    pub tables: u32,
    pub traffic: Arc<Traffic>,
}

/// All that routes and times rest on.
#[derive(Default)]
pub(crate) struct Roads {
    /// The newest last.
    pub(super) regions: Vec<Region>,
    /// Replaced, but some tracker still stands on it.
    pub(super) retired: Vec<(u32, Arc<RoadMap>)>,
    pub(super) eta: Arc<EtaTable>,
    /// For bicycles and walkers; the learned table describes cars.
    untrained_eta: EtaTable,
}

impl Roads {
    /// The newest map that a place lies on.
    pub(crate) fn at(&self, position: Position) -> Option<&Region> {
        self.regions.iter().rev().find(|region| region.traffic.map.covers(position))
    }

    /// The newest map that both places lie on.
    pub(crate) fn between(&self, from: Position, to: Position) -> Option<&Region> {
        let covers = |region: &&Region| region.traffic.map.covers(from) && region.traffic.map.covers(to);
        self.regions.iter().rev().find(covers)
    }

    /// None if it is not in use any more.
    pub(crate) fn region(&self, number: u32) -> Option<&Region> {
        self.regions.iter().find(|region| region.number == number)
    }

    /// Also a map that was replaced, as long as it is kept open.
    pub(crate) fn map(&self, number: u32) -> Option<&RoadMap> {
        let retired = || self.retired.iter().find(|(other, _)| *other == number).map(|(_, map)| &**map);
        self.region(number).map(|region| &*region.traffic.map).or_else(retired)
    }

    /// Changes with every map that is taken into use.
    pub(crate) fn newest(&self) -> u32 {
        self.regions.last().map_or(0, |region| region.number)
    }

    pub(crate) fn eta(&self, profile: Profile) -> &EtaTable {
        match profile {
            Profile::Car | Profile::Moped => &self.eta,
            Profile::Bicycle | Profile::Foot => &self.untrained_eta,
        }
    }
}
