//! Records: all that can change a tracker's mind. They travel in batches, one batch is one entry of the log, and a
//! tracker folded from the same records is the same tracker.

use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

use crate::delivery::{Delivery, JournalEntry};
use crate::fix::{Fix, PhoneState, Verdict};
use crate::id::{AssignmentNumber, DeliveryKey, DeviceKey, DriverId, DriverKey, EdgeId, FixNumber, TrackerKey};
use crate::position::Position;
use crate::time::Time;
use crate::update::Epoch;

/// Which way a fix came in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
#[wincode(tag_encoding = "u8")]
#[serde(rename_all = "snake_case")]
pub enum Door {
    Udp,
    Quic,
    /// Sealed datagrams in an HTTPS body.
    Https,
    /// The JSON array of `POST /api/v1/tracking/locations`.
    Json,
    Mqtt,
    WebSocket,
    Grpc,
    OsmAnd,
    OwnTracks,
}

/// One measurement as an edge received and judged it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
pub struct FixRecord {
    pub device: DeviceKey,
    /// Unix seconds; 0 at doors without sessions.
    pub session_start: u32,
    /// None at doors without numbers.
    pub number: Option<FixNumber>,
    /// Everything below this number counts as settled; 0 says nothing.
    pub lowest_held: FixNumber,
    pub edge: EdgeId,
    pub door: Door,
    pub received: Time,
    pub fix: Fix,
    pub verdict: Verdict,
}

/// A sign of life without a position: a ping.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
pub struct HeardRecord {
    pub device: DeviceKey,
    pub session_start: u32,
    pub lowest_held: FixNumber,
    pub edge: EdgeId,
    pub door: Door,
    pub received: Time,
    pub phone_state: Option<PhoneState>,
}

/// Who reigns over a partition: drawn at random by a process each time it takes one.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize, SchemaWrite, SchemaRead,
)]
#[serde(transparent)]
pub struct OwnerId(pub u64);

/// SHA-256 of a body that lies in the blob store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
pub struct BlobHash(pub [u8; 32]);

impl std::fmt::Display for BlobHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A large body that trackers work with.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
#[wincode(tag_encoding = "u8")]
#[serde(rename_all = "snake_case")]
pub enum BodyKind {
    Map,
    /// Speeds by hour of the week.
    Speeds,
    /// Live factors on top of the speeds.
    LiveSpeeds,
    /// Bias and quantiles of the ETA.
    EtaModel,
}

/// A place to watch: a disc, by tenant and name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
pub struct Fence {
    pub name: String,
    /// Outer ring in order, closed by its first point; empty when it is a disc.
    pub ring: Vec<Position>,
    pub center: Position,
    pub radius_m: u32,
    /// Inside this long means dwelt; 0 never.
    pub dwell_s: u32,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
#[wincode(tag_encoding = "u8")]
#[serde(tag = "record", rename_all = "snake_case")]
pub enum Record {
    Fix(FixRecord),
    Heard(HeardRecord),
    /// This device leads for its driver: the others' fixes are recorded, not shown.
    Lead {
        device: DeviceKey,
        at: Time,
    },
    /// The tracker of this key takes the delivery, whole.
    Assign {
        to: TrackerKey,
        delivery: Box<Delivery>,
    },
    /// The tracker of this key lets the delivery go; `assignment` is the one that ends.
    Release {
        from: TrackerKey,
        delivery: DeliveryKey,
        assignment: AssignmentNumber,
    },
    /// A ledger event of a delivery that the tracker of this key holds.
    Ledger {
        to: TrackerKey,
        delivery: DeliveryKey,
        entry: JournalEntry,
    },
    /// A driver's fences: all of them, in place of those before.
    Fences {
        driver: DriverKey,
        fences: Vec<Fence>,
    },
    /// A body lies in the blob store; nothing changes yet.
    Offered {
        kind: BodyKind,
        hash: BlobHash,
        size: u64,
    },
    /// The partition's owner has the body: from this record on it is the one.
    InUse {
        kind: BodyKind,
        hash: BlobHash,
    },
    /// How an estimate compared with what came to pass.
    Score {
        delivery: DeliveryKey,
        driver: DriverId,
        predicted_ms: u32,
        actual_ms: u32,
    },
    /// All that this edge received before `received_before` stands above this line.
    Mark {
        edge: EdgeId,
        received_before: Time,
    },
    /// The owner's clock; ignored unless it is the latest claim's owner.
    Tick {
        owner: OwnerId,
        at: Time,
    },
    /// A new owner begins its reign over the partition here.
    Claim {
        owner: OwnerId,
        at: Time,
        incarnation: u32,
    },
    /// A way from an outside router, in place of the one that the tracker planned at `made` for the same stop.
    Planned {
        to: TrackerKey,
        delivery: DeliveryKey,
        epoch: Epoch,
        stop: u8,
        made: Time,
        way: Vec<PlannedPoint>,
    },
    /// What the driver travels by.
    Vehicle {
        driver: DriverKey,
        vehicle: Vehicle,
    },
    /// This device leads for its driver no more, because it was revoked: of the others the next that is heard does.
    LeadEnded {
        device: DeviceKey,
        at: Time,
    },
    /// What the owner's wall clock shows beyond the time since its machine started, as `boot` names that start. With
    /// another offset of the same boot the clock was set meanwhile, and all times of the partition are moved by the
    /// difference. It holds from here on, or, if its owner is not the partition's yet, from his claim on.
    WallOffset {
        owner: OwnerId,
        boot: u64,
        offset_ms: i64,
    },
}

/// A point of a way, with the distance and the time from its beginning.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
pub struct PlannedPoint {
    pub position: Position,
    pub along_cm: u32,
    pub along_ms: u32,
}

/// What a driver travels by: which roads he may use, and how fast he is on them.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize, SchemaWrite, SchemaRead,
)]
#[wincode(tag_encoding = "u8")]
#[serde(rename_all = "snake_case")]
pub enum Vehicle {
    #[default]
    Car,
    Moped,
    Bicycle,
    Foot,
}

impl Record {
    /// Whether every build that reads plain batches knows this kind. A new kind is not: its batches are framed, so that
    /// the release before loses nothing else with it.
    pub fn is_plain(&self) -> bool {
        match self {
            Record::Fix(_)
            | Record::Heard(_)
            | Record::Lead { .. }
            | Record::Assign { .. }
            | Record::Release { .. }
            | Record::Ledger { .. }
            | Record::Fences { .. }
            | Record::Offered { .. }
            | Record::InUse { .. }
            | Record::Score { .. }
            | Record::Mark { .. }
            | Record::Tick { .. }
            | Record::Claim { .. }
            | Record::Planned { .. }
            | Record::Vehicle { .. } => true,
            Record::LeadEnded { .. } | Record::WallOffset { .. } => false,
        }
    }

    /// Whose tracker it is for; None when it is for the partition.
    pub fn key(&self) -> Option<TrackerKey> {
        match self {
            Record::Fix(fix) => Some(TrackerKey::Driver(fix.device.driver_key())),
            Record::Heard(heard) => Some(TrackerKey::Driver(heard.device.driver_key())),
            Record::Lead { device, .. } | Record::LeadEnded { device, .. } => {
                Some(TrackerKey::Driver(device.driver_key()))
            }
            Record::Assign { to, .. } | Record::Ledger { to, .. } => Some(*to),
            Record::Release { from, .. } => Some(*from),
            Record::Planned { to, .. } => Some(*to),
            Record::Fences { driver, .. } | Record::Vehicle { driver, .. } => Some(TrackerKey::Driver(*driver)),
            Record::Score { delivery, driver, .. } => {
                Some(TrackerKey::Driver(DriverKey { tenant: delivery.tenant, driver: *driver }))
            }
            Record::Offered { .. }
            | Record::InUse { .. }
            | Record::Mark { .. }
            | Record::Tick { .. }
            | Record::Claim { .. }
            | Record::WallOffset { .. } => None,
        }
    }
}

/// Records of one partition that travel together: one entry of the log.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, SchemaWrite, SchemaRead)]
pub struct RecordBatch {
    pub records: Vec<Record>,
}
