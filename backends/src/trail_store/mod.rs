//! The trail store: history. Every acknowledged fix exactly once, with its verdict and final snapped position.
//!
//! **Contract:** unique on a fix's identity (tenant, driver, device, measured time, position): the first writer wins,
//! a second is passed by. The offset up to which the trail topic was taken is committed in the same transaction as the
//! breadcrumbs, so that a restart takes none twice and misses none. Days are dropped as a whole, cheaply.

#[cfg(test)]
mod conformance;
pub mod embedded;

use async_trait::async_trait;
use protocol::{Breadcrumb, DeliveryKey, DriverKey, Offset, PartitionId, Time};

#[derive(Debug, thiserror::Error)]
pub enum TrailStoreError {
    #[error("history cannot be reached: {reason}")]
    Unavailable { reason: String },
    #[error("history is damaged: {reason}")]
    Damaged { reason: String },
}

impl TrailStoreError {
    pub fn is_transient(&self) -> bool {
        matches!(self, TrailStoreError::Unavailable { .. })
    }
}

/// What part of a trail is wanted: measured from `from` (inclusive) to `until` (exclusive), oldest first, at most
/// `TRAIL_MAX` whatever limit it names. Those measured at one moment come in the same order each time: lists in pages go
/// on in the middle of a moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TrailQuery {
    pub from: Time,
    pub until: Time,
    pub limit: u32,
}

#[async_trait]
pub trait TrailStore: Send + Sync + 'static {
    /// Breadcrumbs read from a partition of the trail topic, and the offset to go on from.
    async fn append(
        &self,
        partition: PartitionId,
        breadcrumbs: Vec<Breadcrumb>,
        next: Offset,
    ) -> Result<(), TrailStoreError>;

    /// Where to go on reading the trail topic; 0 at first.
    async fn next_offset(&self, partition: PartitionId) -> Result<Offset, TrailStoreError>;

    async fn driver_trail(&self, key: DriverKey, query: TrailQuery) -> Result<Vec<Breadcrumb>, TrailStoreError>;

    async fn delivery_trail(&self, key: DeliveryKey, query: TrailQuery) -> Result<Vec<Breadcrumb>, TrailStoreError>;

    /// Drops the days, by UTC, that had ended at `before`; answers how many breadcrumbs. A fix counts to the day it was
    /// measured on, or received on where a phone's clock is out of all reason.
    async fn expire(&self, before: Time) -> Result<u64, TrailStoreError>;
}

/// A day of one driver at one fix a second.
pub const TRAIL_MAX: u32 = 86_400;
