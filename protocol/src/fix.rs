//! One measurement by a phone, and what we think of it. A fix keeps the precision of the wire and no more; what the
//! phone did not say is `None`, never zero.

use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

use crate::position::Position;
use crate::time::MeasuredTime;

/// One measurement by a phone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
pub struct Fix {
    pub measured: MeasuredTime,
    pub position: Position,
    /// Speed over ground in 0.1 m/s.
    pub speed_dm_s: Option<u16>,
    /// Direction of travel in 255ths of a turn, clockwise from north, 0 to 254.
    pub heading_255: Option<u8>,
    /// Radius of the 68 % circle in metres; 255 stands for 255 or more.
    pub accuracy_m: Option<u8>,
    pub altitude_m: Option<i16>,
    pub battery_percent: Option<u8>,
    pub phone_state: Option<PhoneState>,
}

impl Fix {
    pub fn at(measured: MeasuredTime, position: Position) -> Self {
        Fix {
            measured,
            position,
            speed_dm_s: None,
            heading_255: None,
            accuracy_m: None,
            altitude_m: None,
            battery_percent: None,
            phone_state: None,
        }
    }

    pub fn heading_degrees(&self) -> Option<f64> {
        self.heading_255.map(|h| f64::from(h) * 360.0 / 255.0)
    }

    pub fn speed_m_s(&self) -> Option<f64> {
        self.speed_dm_s.map(|s| f64::from(s) / 10.0)
    }
}

/// A compass direction in degrees as 255ths of a turn, nearest.
pub fn heading_255(degrees: f64) -> u8 {
    let turn = degrees.rem_euclid(360.0) / 360.0;
    ((turn * 255.0).round() as u32 % 255) as u8
}

/// What the phone says of itself, as bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize, SchemaWrite, SchemaRead)]
#[serde(transparent)]
pub struct PhoneState(pub u8);

impl PhoneState {
    pub const GPS_OFF: u8 = 1;
    pub const PERMISSION_LOST: u8 = 2;
    pub const SAVER: u8 = 4;
    pub const MOCK_LOCATION: u8 = 8;
    pub const QUEUE_DEEP: u8 = 16;
    pub const STANDING: u8 = 32;

    pub fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }
}

/// What was decided about a fix. A rejected fix is recorded too, marked.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
#[wincode(tag_encoding = "u8")]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Accepted,
    Rejected(RejectReason),
}

impl Verdict {
    pub fn is_accepted(self) -> bool {
        matches!(self, Verdict::Accepted)
    }
}

/// The closed list of reasons. The first group is judged at the edge from the fix alone, the second by the tracker
/// from its neighbours.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
#[wincode(tag_encoding = "u8")]
#[serde(rename_all = "snake_case")]
pub enum RejectReason {
    /// Not a place on Earth, or a field outside what it can mean.
    OutOfRange,
    /// Latitude and longitude both zero: a receiver's way to say "I don't know".
    NullIsland,
    /// Accuracy worse than 100 m.
    Inaccurate,
    /// The phone says it moves faster than 200 km/h.
    TooFast,
    /// Measured later than it was received, beyond what clocks may differ.
    FromFuture,
    /// Measured longer ago than the log keeps.
    TooOld,
    /// A fix with the same identity was seen before.
    Duplicate,
    /// Too far from the fixes around it to have been driven.
    Jump,
    /// The speed needed from the fix before it is not possible.
    DerivedTooFast,
}

impl RejectReason {
    pub const ALL: [RejectReason; 9] = [
        RejectReason::OutOfRange,
        RejectReason::NullIsland,
        RejectReason::Inaccurate,
        RejectReason::TooFast,
        RejectReason::FromFuture,
        RejectReason::TooOld,
        RejectReason::Duplicate,
        RejectReason::Jump,
        RejectReason::DerivedTooFast,
    ];

    /// The name in metrics, JSON and documents.
    pub fn name(self) -> &'static str {
        match self {
            RejectReason::OutOfRange => "out_of_range",
            RejectReason::NullIsland => "null_island",
            RejectReason::Inaccurate => "inaccurate",
            RejectReason::TooFast => "too_fast",
            RejectReason::FromFuture => "from_future",
            RejectReason::TooOld => "too_old",
            RejectReason::Duplicate => "duplicate",
            RejectReason::Jump => "jump",
            RejectReason::DerivedTooFast => "derived_too_fast",
        }
    }
}
