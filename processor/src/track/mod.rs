//! The fold: records of one partition in, updates and breadcrumbs out. No clock, network, file or randomness: only a
//! record can change a tracker's state, so the same records make the same updates anywhere, to the byte.
//!
//! ```text
//! Partition::handle_entry ── record ──▶ Tracker ──▶ Device (seen before? whose clock?) ──▶ Neighbours (can it be?)
//!        │                                 │ newest, accepted, of the device that leads
//!        │                                 ├──▶ matcher: snapped position ──▶ breadcrumb once it is final
//!        │                                 ├──▶ motion, fences
//!        └── flush at the entry's end ◀────┴──▶ TrackedDelivery: plan, progress, ETA, stops, journal, proposals
//! ```
//!
//! Sketch: per fix one matcher step (about 7 µs), one look along each plan (1 µs per 300 points), and per batch one
//! encoded update per driver and delivery. A table or a map that comes into use costs nothing at its record: the times
//! of each plan are computed anew (40 µs) at its driver's next fix or estimate, and each tracker moves to another map at
//! its next fix (100 µs, and a route).

mod bodies_in_use;
mod clock;
mod clock_set;
mod delivery;
mod device;
mod dormant;
mod effects;
mod fence;
mod fields;
mod finals;
mod gathering;
mod judge;
mod listening;
mod motion;
mod partition;
mod phone_clock;
mod planned_route;
mod planning;
mod refold;
mod released;
mod roads;
mod snapping;
mod snapshot;
#[cfg(test)]
mod tests;
mod tracker;
mod trackers;
mod undo;
mod wheel;

pub(crate) use bodies_in_use::RegionInUse;
pub use clock::FoldClock;
pub(crate) use clock::WRONG_MS;
pub use effects::{Counts, Effects, RouteWanted};
pub use gathering::{TrackerCopy, WORK_PER_STEP};
pub use partition::Partition;
pub use refold::Told;
pub use roads::{Bodies, NoBodies, RoadMap, Tables, Traffic};
pub use snapshot::{CHANGES_FORMAT, SNAPSHOT_FORMAT, SnapshotEncoder, SnapshotError, SnapshotHead, is_readable_format};
pub(crate) use tracker::SaidOfDriver;

/// The version of everything that decides what an update says: code, rules and formats, those of the matcher and the
/// router included. A takeover by the same version goes on with the same numbers. Raise it with every change after which
/// the same records could produce other updates.
pub const FOLD_VERSION: u32 = 6;
