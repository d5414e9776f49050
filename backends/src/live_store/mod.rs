//! The live store: the newest view of every delivery and driver, for whoever asks when the view's owner cannot answer;
//! and how fast one gets along in every H3 cell, for whoever is not on our map.
//!
//! **Contract:** an older update never replaces a newer one; entries expire `LIVE_TTL` after they were last put, those of
//! a delivery that is over sooner if the store likes, because the ledger has the last word on it; it may be empty at any
//! time and is whole again within 60 s, because every live view gets a keyframe that often, and the learner puts every
//! cell that often.
//!
//! A cell stands under `speeds:8839220117fffff`, as H3 writes it and without a tenant: speeds are the fleet's. Where the
//! store has hashes its fields are `at` (unix milliseconds) and a road's name each, as `empty usual live` in cm/s.

pub mod conformance;
pub mod embedded;

use std::time::Duration;

use async_trait::async_trait;
pub use protocol::update::LiveDriver;
use protocol::{DeliveryKey, DriverKey, LiveView, TenantId, Time};

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LiveEntry {
    Delivery(Box<LiveView>),
    Driver(Box<LiveDriver>),
}

/// An H3 cell by its number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SpeedCell(pub u64);

impl SpeedCell {
    /// What the cell is kept under.
    pub fn key(self) -> String {
        format!("speeds:{:x}", self.0)
    }
}

/// Roads that are used alike.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoadKind {
    Motorway,
    MotorwayLink,
    Primary,
    Secondary,
    Tertiary,
    Residential,
    Service,
    Path,
}

impl RoadKind {
    /// In the order in which maps number them.
    pub const ALL: [RoadKind; 8] = [
        RoadKind::Motorway,
        RoadKind::MotorwayLink,
        RoadKind::Primary,
        RoadKind::Secondary,
        RoadKind::Tertiary,
        RoadKind::Residential,
        RoadKind::Service,
        RoadKind::Path,
    ];

    pub fn name(self) -> &'static str {
        match self {
            RoadKind::Motorway => "motorway",
            RoadKind::MotorwayLink => "motorway_link",
            RoadKind::Primary => "primary",
            RoadKind::Secondary => "secondary",
            RoadKind::Tertiary => "tertiary",
            RoadKind::Residential => "residential",
            RoadKind::Service => "service",
            RoadKind::Path => "path",
        }
    }
}

/// How fast one gets along the roads of a kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct KindSpeed {
    pub kind: RoadKind,
    /// On the empty road, as the map says.
    pub empty_cm_s: u32,
    /// At this hour of the usual week.
    pub usual_cm_s: u32,
    /// Right now.
    pub live_cm_s: u32,
}

/// Speeds in one cell at a time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CellSpeeds {
    pub cell: SpeedCell,
    pub at: Time,
    /// Each kind once at most, in their order.
    pub roads: Vec<KindSpeed>,
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
    /// Takes what is not older than what it has, cell by cell.
    async fn put_speeds(&self, cells: Vec<CellSpeeds>, now: Time) -> Result<(), LiveStoreError>;
    async fn speeds(&self, cell: SpeedCell, now: Time) -> Result<Option<CellSpeeds>, LiveStoreError>;
}

pub const LIVE_TTL: Duration = Duration::from_secs(2 * 3600);
