//! The maps that tests run on, imported once per process.

use std::sync::{Arc, OnceLock};

use maps::Graph;
use maps::import::{ImportOptions, import_bytes};
use maps::town::{self, TownOptions};

use crate::shared_data::shared;

pub struct City {
    pub name: &'static str,
    pub graph: Arc<Graph>,
}

/// The generated town, and the real cities that are there.
pub fn all() -> &'static [City] {
    static CITIES: OnceLock<Vec<City>> = OnceLock::new();
    CITIES.get_or_init(|| {
        let mut cities = vec![City { name: "town", graph: Arc::new(Graph::from_bytes(town_map()).unwrap()) }];
        for name in ["porto", "malta", "monaco", "helsinki"] {
            let Some(bytes) = extract(name) else { continue };
            let map = import_bytes(&bytes, &ImportOptions::default()).unwrap();
            cities.push(City { name, graph: Arc::new(Graph::from_bytes(&map).unwrap()) });
        }
        cities
    })
}

/// A real city's extract, where the shared data is.
pub fn extract(name: &str) -> Option<Vec<u8>> {
    Some(std::fs::read(shared(&format!("maps/{name}.osm.pbf"))?).unwrap())
}

pub fn town_extract() -> &'static [u8] {
    static TOWN: OnceLock<Vec<u8>> = OnceLock::new();
    TOWN.get_or_init(|| town::extract(&TownOptions::default()))
}

pub fn town_map() -> &'static [u8] {
    static TOWN: OnceLock<Vec<u8>> = OnceLock::new();
    TOWN.get_or_init(|| import_bytes(town_extract(), &ImportOptions::default()).unwrap())
}

/// A town of a few streets.
pub fn hamlet_extract() -> Vec<u8> {
    town::extract(&TownOptions { junctions: 30, ..TownOptions::default() })
}
