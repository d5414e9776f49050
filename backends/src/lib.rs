//! The seams: what Wayfix asks of a log, a store, a ledger and a registry, and the parts that stand behind them. Each
//! seam is a folder with its contract in words, its embedded part and one conformance suite that every part must pass.

pub mod blob_store;
pub mod control;
#[cfg(test)]
mod crash;
pub mod file_identity;
pub mod installation;
pub mod ledger;
pub mod live_store;
pub mod log;
mod outbox;
pub mod registry;
pub mod relay;
pub mod route_service;
pub mod sqlite;
pub mod trail_store;
pub mod upkeep;
