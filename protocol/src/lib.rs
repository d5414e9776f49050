//! The words of Wayfix and their bytes: ids, fixes, records, updates, frames, and the sealed datagram.
//!
//! **Invariant:** nothing here waits, reads a clock, opens a file or a socket. Integers on the wire and in keys.

pub mod datagram;
pub mod delivery;
pub mod envelope;
pub mod fix;
pub mod frame;
pub mod id;
mod older;
pub mod partition;
pub mod position;
pub mod record;
pub mod session;
pub mod time;
pub mod update;

pub use delivery::{Delivery, DeliveryPolicy, DeliveryState, JournalEntry, JournalKind, Milestone, Stop, StopKind};
pub use fix::{Fix, PhoneState, RejectReason, Verdict};
pub use id::*;
pub use partition::partition_of;
pub use position::Position;
pub use record::{FixRecord, HeardRecord, Record, RecordBatch};
pub use time::{MeasuredTime, Time};
pub use update::{Breadcrumb, DeliveryUpdate, DriverUpdate, LiveView, Update, UpdateBatch};
