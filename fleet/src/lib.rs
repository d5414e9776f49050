//! A fleet that is not there, for demos, tests and measuring: drivers simulated on a real map, or trips recorded once,
//! each with a phone of its own that speaks to edges over real sockets. Nothing is injected behind the edge, and what
//! truly happened is kept beside what the phones measured.
//!
//! `drive`, `noise`, `places` and `sim::shift` decide and never wait; the rest is a shell around them.

pub mod api;
pub mod drive;
pub mod network;
pub mod noise;
pub mod places;
mod record;
pub mod replay;
mod rig;
pub mod sim;

pub use api::{ApiError, TenantKey};
pub use network::Conditions;
pub use record::{AckedLine, TruthLine};
pub use rig::{FleetError, FleetOptions, Report};
