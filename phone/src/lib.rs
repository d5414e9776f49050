//! The driver's side: queue, seal, send, retry; what an app binds to.
//!
//! `client` decides and never waits; `driver` is a small shell of tokio, UDP and HTTPS around it.

pub mod client;
pub mod driver;

pub use client::{Client, ClientConfig, ClientStats, HttpFault, QueuedFix, Transmit};
pub use driver::{Clock, Phone, PhoneConfig, PhoneHandle, StartError, SystemClock};
