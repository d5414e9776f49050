//! The daemon near the phones: listens, opens, judges, batches and ships fixes into the log.
//!
//! ```text
//! UDP thread (one per core)            shipper (one per edge)
//! socket ─ open ─ judge ─ parcel ────► merge ─ append ─► log
//!    ▲                ▲      ▲              │     └ away: spool
//!    └── answers ─────┼──────┴─── settled ──┘
//! HTTP doors ─────────┘
//! ```
//!
//! A UDP thread owns its socket, its sessions and the records it has not shipped: nothing is shared on the way of a
//! datagram, so nothing is locked. What a single fix shows is judged here, and a rejected fix is recorded too. An
//! answer names only what this edge has itself seen durable in the log.

pub mod config;
pub mod control;
pub mod http;
pub mod identity;
pub mod intake;
pub mod metrics;
pub mod ship;
pub mod start;
pub mod submit;
pub mod tls;
pub mod udp;

pub use config::{EdgeConfig, EdgeSettings};
pub use start::{EdgeHandle, EdgeParts, start};
pub use submit::NotTaken;
