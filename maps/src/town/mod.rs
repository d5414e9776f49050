//! A town that does not exist, for demos and tests where no extract of a real one is at hand: irregular streets of
//! several classes with names, one-ways, a river with bridges, parks with footways, roundabouts, turn restrictions,
//! barriers, drives and houses. It is written as a real `.osm.pbf` and imported like any other. The same options
//! give the same town on every machine.
//!
//! It lies in the Atlantic, so that nobody takes it for a real place, and it is irregular on purpose: the search for
//! a router's order takes very long on regular grids.

mod draft;
mod plan;
mod random;
mod write;

use std::io;
use std::path::Path;

use protocol::Position;

/// What a town is to be like.
#[derive(Clone, Debug)]
pub struct TownOptions {
    pub seed: u64,
    pub name: String,
    pub centre: Position,
    /// How many junctions to begin with, 20 to 5,000; each makes about four directed edges.
    pub junctions: usize,
    /// Of so many ways of streets, one is closed for works; 0: none is. Another version of the same town.
    pub works_every: usize,
}

impl Default for TownOptions {
    fn default() -> Self {
        TownOptions {
            seed: 1,
            name: "Fixton".to_owned(),
            centre: Position { lat_e7: 440_000_000, lon_e7: -300_000_000 },
            junctions: 1_000,
            works_every: 0,
        }
    }
}

/// The town as the bytes of an `.osm.pbf`.
pub fn extract(options: &TownOptions) -> Vec<u8> {
    let plan = plan::Plan::of(options);
    write::extract(&draft::Draft::of(&plan, options))
}

/// Writes the town's extract, all or nothing.
pub fn write(path: &Path, options: &TownOptions) -> io::Result<()> {
    crate::file::write_atomically(path, &extract(options))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::{ImportOptions, import_bytes};
    use crate::{Graph, Profile, RoadClass};

    #[test]
    fn the_same_seed_gives_the_same_town_and_another_one_another() {
        let small = |seed| extract(&TownOptions { seed, junctions: 100, ..TownOptions::default() });

        assert!(small(3) == small(3));
        assert!(small(3) != small(4));
    }

    #[test]
    fn works_close_streets_and_leave_the_others_where_they_are() {
        let small = TownOptions { junctions: 100, ..TownOptions::default() };
        let import = |options: &TownOptions| {
            let bytes = import_bytes(&extract(options), &ImportOptions::default()).unwrap();
            Graph::from_bytes(&bytes).unwrap()
        };

        let (before, after) = (import(&small), import(&TownOptions { works_every: 8, ..small.clone() }));

        let ways = |graph: &Graph| graph.edges().map(|e| graph.osm_way(e)).collect::<std::collections::BTreeSet<_>>();
        let (before, after) = (ways(&before), ways(&after));
        assert!(after.is_subset(&before), "{:?}", after.difference(&before));
        let closed = before.difference(&after).count();
        assert!(closed >= 3 && closed * 4 < before.len(), "{closed} of {}", before.len());
    }

    #[test]
    fn a_town_has_what_a_town_has() {
        for seed in 1..4 {
            let bytes =
                import_bytes(&extract(&TownOptions { seed, ..TownOptions::default() }), &ImportOptions::default());
            let graph = Graph::from_bytes(&bytes.unwrap()).unwrap();

            let car: Vec<_> = graph.edges().filter(|e| graph.allows(*e, Profile::Car)).collect();
            assert!((3_000..8_000).contains(&car.len()), "seed {seed}: {} edges", car.len());
            let connected = car.iter().filter(|e| graph.is_connected(**e, Profile::Car)).count();
            assert!(connected * 100 >= car.len() * 95, "seed {seed}: {connected} of {}", car.len());
            for class in [
                RoadClass::Primary,
                RoadClass::Secondary,
                RoadClass::Tertiary,
                RoadClass::Residential,
                RoadClass::Service,
                RoadClass::Footway,
            ] {
                assert!(graph.edges().any(|e| graph.class(e) == class), "seed {seed}: no {class}");
            }
            assert!(car.iter().any(|e| graph.flags(*e).is_bridge()), "seed {seed}");
            assert!(car.iter().any(|e| graph.flags(*e).is_roundabout()), "seed {seed}");
            assert!(
                car.iter().any(|e| graph.reverse(*e).is_none_or(|r| !graph.allows(r, Profile::Car))),
                "seed {seed}"
            );
            assert!(graph.summary().restrictions >= 10, "seed {seed}: {:?}", graph.summary());
            assert!(car.iter().filter(|e| !graph.name(**e).is_empty()).count() * 2 > car.len(), "seed {seed}");
            assert!(!graph.summary().is_order_missing);
        }
    }
}
