//! The live store: the newest view of every delivery and driver, for whoever asks when the view's owner cannot answer.
//!
//! **Contract:** an older update never replaces a newer one; entries expire `LIVE_TTL` after they were last put; it may
//! be empty at any time and is whole again within 60 s, because every live view gets a keyframe that often.

pub mod conformance;
pub mod embedded;

use std::time::Duration;

use async_trait::async_trait;
use protocol::update::{DriverView, Generation, Source};
use protocol::{DeliveryKey, DriverKey, LiveView, TenantId, Time};

/// A driver's view with what orders it: (generation, fold version, id).
#[derive(
    Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize, wincode::SchemaWrite, wincode::SchemaRead,
)]
pub struct LiveDriver {
    pub generation: Generation,
    pub fold_version: u32,
    pub source: Source,
    pub at: Time,
    pub view: DriverView,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LiveEntry {
    Delivery(Box<LiveView>),
    Driver(Box<LiveDriver>),
}

#[derive(Debug, thiserror::Error)]
pub enum LiveStoreError {
    #[error("the live store cannot be reached: {reason}")]
    Unavailable { reason: String },
}

impl LiveStoreError {
    pub fn is_transient(&self) -> bool {
        match self {
            LiveStoreError::Unavailable { .. } => true,
        }
    }
}

#[async_trait]
pub trait LiveStore: Send + Sync + 'static {
    /// Takes what is newer than what it has: (epoch, number) decides for deliveries, (generation, fold version,
    /// source) for drivers.
    async fn put(&self, entries: Vec<LiveEntry>, now: Time) -> Result<(), LiveStoreError>;
    async fn delivery(&self, key: DeliveryKey, now: Time) -> Result<Option<LiveView>, LiveStoreError>;
    async fn driver(&self, key: DriverKey, now: Time) -> Result<Option<LiveDriver>, LiveStoreError>;
    /// All live drivers of a tenant, by number.
    async fn drivers(&self, tenant: TenantId, now: Time) -> Result<Vec<LiveDriver>, LiveStoreError>;
}

pub const LIVE_TTL: Duration = Duration::from_secs(2 * 3600);
