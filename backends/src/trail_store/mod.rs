//! The trail store: history. Every acknowledged fix exactly once, with its verdict and final snapped position; and the
//! archive of what the records said, by driver and day.
//!
//! **Contract:**
//! - Unique on a fix's identity (tenant, driver, device, measured time, position): the first writer wins, a second is
//!   passed by, whenever it comes.
//! - The place up to which the trail topic was taken is committed in the same durable act as the breadcrumbs, so that a
//!   restart takes none twice and misses none. It carries the log's incarnation and never goes back.
//! - Days are dropped as a whole, cheaply.
//! - After `forget` nothing of a driver can be read, from the files either.

mod bits;
mod codec;
#[cfg(test)]
mod conformance;
pub mod embedded;
mod home;
mod index;
mod journal;
mod merging;
mod pending;
mod reading;
#[cfg(test)]
mod samples;
mod segment;
mod survey;
mod takeover;
mod writer;

use async_trait::async_trait;
use protocol::{Breadcrumb, DeliveryKey, DriverKey, Offset, PartitionId, Time};

use embedded::Shared;

#[derive(Clone, Debug, thiserror::Error)]
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

/// A place in a partition of the trail topic. Offsets of one incarnation of the log say nothing of another's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct TrailPlace {
    pub incarnation: u32,
    pub offset: Offset,
}

impl TrailPlace {
    /// Where to go on in this incarnation of the log: at its beginning if this place is in an earlier one.
    fn within(self, incarnation: u32) -> Result<Offset, TrailStoreError> {
        match self.incarnation.cmp(&incarnation) {
            std::cmp::Ordering::Less => Ok(Offset(0)),
            std::cmp::Ordering::Equal => Ok(self.offset),
            std::cmp::Ordering::Greater => {
                let written = self.incarnation;
                let reason = format!("it was written from incarnation {written} of the log, and this is {incarnation}");
                Err(TrailStoreError::Damaged { reason })
            }
        }
    }
}

#[async_trait]
pub trait TrailStore: Send + Sync + 'static {
    /// Breadcrumbs read from a partition of the trail topic, and the place to go on from.
    async fn append(
        &self,
        partition: PartitionId,
        breadcrumbs: Vec<Breadcrumb>,
        next: TrailPlace,
    ) -> Result<(), TrailStoreError>;

    /// Where to go on reading the trail topic of this incarnation of the log; 0 at first.
    async fn next_offset(&self, partition: PartitionId, incarnation: u32) -> Result<Offset, TrailStoreError>;

    async fn driver_trail(&self, key: DriverKey, query: TrailQuery) -> Result<Vec<Breadcrumb>, TrailStoreError>;

    async fn delivery_trail(&self, key: DeliveryKey, query: TrailQuery) -> Result<Vec<Breadcrumb>, TrailStoreError>;

    /// Drops the days, by UTC, that had ended at `before`; answers how many breadcrumbs. A fix counts to the day it was
    /// measured on, or received on where a phone's clock is out of all reason.
    async fn expire(&self, before: Time) -> Result<u64, TrailStoreError>;

    /// Drops all of a driver's breadcrumbs, for good, and answers how many. What the log brings again, received before
    /// `before`, is not taken.
    async fn forget(&self, driver: DriverKey, before: Time) -> Result<u64, TrailStoreError>;
}

/// A day of one driver at one fix a second.
pub const TRAIL_MAX: u32 = 86_400;
