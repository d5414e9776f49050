//! How fast one gets along each edge, by hour of the week. A table says it for the usual week; live factors say how
//! today differs; the learner makes both from final matches.
//!
//! A table is two bytes per edge: which of a few weekly shapes the edge follows, and how its speed relates to the empty
//! road's. It is a blob named by its content, so that whoever reads the log again computes with the same numbers. What
//! nobody has driven yet has its class's speed, and before anything is learned the import's.

mod carry;
mod cells;
mod factors;
mod hexagons;
mod hops;
mod learner;
mod live;

#[cfg(test)]
mod tests;

use protocol::Time;
use sha2::{Digest, Sha256};
use wincode::{SchemaRead, SchemaWrite};

use crate::class::RoadClass;
use crate::file::MapVersion;
use crate::graph::{EdgeId, Graph};
pub use carry::Predecessors;
pub(crate) use cells::SpeedCells;
pub use factors::LiveFactors;
pub use hexagons::{Hexagons, RoadSpeed};
pub use hops::{Hop, Traversal, Traversals};
pub use learner::Learner;
pub use live::LiveLearner;

/// Hours of a week; 0 is Monday, midnight to one, UTC.
pub const HOURS: usize = 168;

/// Which hour of the week it is.
pub fn hour_of_week(time: Time) -> usize {
    let hours = time.0.div_euclid(3_600_000);
    (hours + 72).rem_euclid(HOURS as i64) as usize // the epoch was a Thursday
}

/// Speeds of the usual week, for one version of one map.
#[derive(Clone, PartialEq, Debug, SchemaWrite, SchemaRead)]
pub struct SpeedTable {
    map: [u8; 32],
    shapes: Vec<Shape>,
    edges: Vec<EdgeSpeed>,
}

/// How the speed of some roads goes over the week, in 128ths of their usual speed.
#[derive(Clone, PartialEq, Debug, SchemaWrite, SchemaRead)]
struct Shape {
    by_hour: [u8; HOURS],
}

/// An edge's speed: a shape, and the usual speed in 64ths of the empty road's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
struct EdgeSpeed {
    shape: u8,
    ratio: u8,
}

/// Why a table cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TableError {
    #[error("not a table of speeds, or damaged")]
    Malformed,
    #[error("the table of speeds belongs to another version of the map")]
    OtherMap,
}

impl SpeedTable {
    /// The import's speeds, at all hours the same.
    pub fn free_flow(graph: &Graph) -> SpeedTable {
        let flat = Shape { by_hour: [SHAPE_ONE; HOURS] };
        let edge = EdgeSpeed { shape: 0, ratio: RATIO_ONE };
        SpeedTable { map: digest_of(graph.version()), shapes: vec![flat], edges: vec![edge; graph.edge_count()] }
    }

    /// The bytes to store.
    pub fn to_bytes(&self) -> Vec<u8> {
        wincode::serialize(self).unwrap_or_default() // memory is all that it writes to
    }

    /// Reads and checks stored bytes: whatever they are, look-ups on what comes back cannot fail.
    pub fn from_bytes(bytes: &[u8], graph: &Graph) -> Result<SpeedTable, TableError> {
        let table: SpeedTable = wincode::deserialize_exact(bytes).map_err(|_| TableError::Malformed)?;
        if table.map != digest_of(graph.version()) || table.edges.len() != graph.edge_count() {
            return Err(TableError::OtherMap);
        }
        let is_sound = table.edges.iter().all(|e| usize::from(e.shape) < table.shapes.len() && e.ratio > 0)
            && table.shapes.iter().all(|s| s.by_hour.iter().all(|h| *h > 0));
        is_sound.then_some(table).ok_or(TableError::Malformed)
    }

    /// Whether bytes are a table, of whatever map.
    pub fn is_one(bytes: &[u8]) -> bool {
        wincode::deserialize_exact::<SpeedTable>(bytes).is_ok()
    }

    /// The name that a record calls stored bytes by.
    pub fn hash(bytes: &[u8]) -> [u8; 32] {
        Sha256::digest(bytes).into()
    }

    /// A car's usual speed on an edge at an hour of the week, never zero. Edges of another map have 30 km/h.
    pub fn speed_cm_s(&self, graph: &Graph, edge: EdgeId, hour: usize) -> u32 {
        match self.edges.get(edge.index()) {
            Some(_) => (f64::from(graph.free_flow_cm_s(edge)) * self.ratio(edge, hour)).max(SPEED_MIN_CM_S) as u32,
            None => 833,
        }
    }

    /// The usual speed beside that on the empty road.
    pub fn ratio(&self, edge: EdgeId, hour: usize) -> f64 {
        let Some(speed) = self.edges.get(edge.index()) else { return 1.0 };
        let shape = self.shapes[usize::from(speed.shape)].by_hour[hour % HOURS];
        f64::from(speed.ratio) / f64::from(RATIO_ONE) * (f64::from(shape) / f64::from(SHAPE_ONE))
    }

    /// How the week's shapes go: by hour, beside each road's own usual speed. For drawing.
    pub fn shapes(&self) -> impl ExactSizeIterator<Item = [f64; HOURS]> {
        self.shapes.iter().map(|shape| shape.by_hour.map(|hour| f64::from(hour) / f64::from(SHAPE_ONE)))
    }

    /// Which shape an edge follows, and its usual speed beside that on the empty road.
    pub fn shape_and_ratio(&self, edge: EdgeId) -> Option<(usize, f64)> {
        let speed = self.edges.get(edge.index())?;
        Some((usize::from(speed.shape), f64::from(speed.ratio) / f64::from(RATIO_ONE)))
    }

    /// Seconds to travel so much of an edge at whatever hour: by its usual speed without the week's shape.
    pub fn seconds_at_any_hour(&self, graph: &Graph, edge: EdgeId, length_cm: u32) -> f64 {
        let ratio = self.edges.get(edge.index()).map_or(1.0, |speed| f64::from(speed.ratio) / f64::from(RATIO_ONE));
        f64::from(length_cm) / (f64::from(graph.free_flow_cm_s(edge)) * ratio).max(SPEED_MIN_CM_S)
    }

    /// Seconds to travel so much of an edge at an hour of the week.
    pub fn seconds(&self, graph: &Graph, edge: EdgeId, length_cm: u32, hour: usize) -> f64 {
        let speed = (f64::from(graph.free_flow_cm_s(edge)) * self.ratio(edge, hour)).max(SPEED_MIN_CM_S);
        f64::from(length_cm) / speed
    }
}

/// What each group of classes is called.
pub const GROUP_NAMES: [&str; CLASS_GROUPS] =
    ["motorway", "motorway link", "primary", "secondary", "tertiary", "residential", "service", "path"];

/// Roads that are used alike: what is learned of one serves for the others.
pub fn class_group(class: RoadClass) -> usize {
    match class {
        RoadClass::Motorway | RoadClass::Trunk => 0,
        RoadClass::MotorwayLink | RoadClass::TrunkLink => 1,
        RoadClass::Primary | RoadClass::PrimaryLink => 2,
        RoadClass::Secondary | RoadClass::SecondaryLink => 3,
        RoadClass::Tertiary | RoadClass::TertiaryLink => 4,
        RoadClass::Unclassified | RoadClass::Residential => 5,
        RoadClass::LivingStreet | RoadClass::Service | RoadClass::Pedestrian => 6,
        RoadClass::Track
        | RoadClass::Cycleway
        | RoadClass::Footway
        | RoadClass::Path
        | RoadClass::Steps
        | RoadClass::Ferry => 7,
    }
}

/// A car's on the empty road.
fn free_seconds(graph: &Graph, edge: EdgeId, length_cm: u32) -> f64 {
    f64::from(length_cm) / f64::from(graph.free_flow_cm_s(edge).max(1))
}

fn digest_of(version: MapVersion) -> [u8; 32] {
    version.0
}

/// How many kinds of road are told apart.
pub const CLASS_GROUPS: usize = 8;
const RATIO_ONE: u8 = 64;
const SHAPE_ONE: u8 = 128;
/// Slower than a slow walk no road is.
const SPEED_MIN_CM_S: f64 = 50.0;
