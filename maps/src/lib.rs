//! OpenStreetMap extracts to road graphs: import, index, snap, match, route, predict, draw.

pub mod class;
pub mod costs;
pub mod diff;
pub mod eta;
pub mod file;
pub mod geo;
pub mod graph;
pub mod hours;
pub mod import;
pub mod index;
pub mod info;
pub mod late;
mod mapping;
pub mod matcher;
pub mod record;
pub mod router;
pub mod shared;
pub mod speeds;
pub mod summary;
pub mod tiles;
pub mod town;
pub mod traces;
mod view;

pub use class::{EdgeFlags, Profile, RoadClass, Surface};
pub use file::{MapError, MapVersion};
pub use geo::Bbox;
pub use graph::{Candidate, ClosedTurns, EdgeId, Graph, NodeId};
pub use hours::LocalTime;
