//! The fold: records of one partition in, updates and breadcrumbs out. No clock, no network, no file, no randomness: all
//! that can change a tracker's mind is a record, so that the same records make the same updates anywhere, to the byte.
//!
//! ```text
//! Partition::handle_entry ── record ──▶ Tracker ──▶ Device (seen before? whose clock?) ──▶ Neighbours (can it be?)
//!        │                                 │ newest, accepted, of the device that leads
//!        │                                 ├──▶ matcher: the place on the road ──▶ breadcrumb once it is final
//!        │                                 ├──▶ motion, fences
//!        └── flush at the entry's end ◀────┴──▶ Held: plan, progress, ETA, stops, journal, proposals
//! ```
//!
//! Sketch: per fix one matcher step (about 7 µs), one look along each plan (1 µs per 300 points), and per batch one
//! encoded update per driver and delivery. A table that comes into use costs its record nothing: each plan is timed
//! again (40 µs) at its driver's next fix or estimate. Nor does another map: each tracker moves over at its next fix
//! (100 µs, and a route).

mod clock;
mod device;
mod effects;
mod eta;
mod fence;
mod finals;
mod held;
mod in_use;
mod judge;
mod motion;
mod partition;
mod phone_clock;
mod plan;
mod planning;
mod roads;
mod snapping;
mod snapshot;
#[cfg(test)]
mod tests;
mod tracker;
mod way;

pub use clock::FoldClock;
pub use effects::{Counts, Effects, RouteWanted};
pub use in_use::NamedRegion;
pub use partition::Partition;
pub use roads::{Bodies, NoBodies, RoadMap, Tables, Traffic};
pub use snapshot::{SNAPSHOT_FORMAT, SnapshotError};

/// Of all that decides what an update says: code, rules, formats, those of the matcher and the router included. A
/// takeover by the same version goes on with the same numbers; raise it with every change that tells another story.
pub const FOLD_VERSION: u32 = 3;
