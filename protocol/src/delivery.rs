//! A delivery as the ledger knows it: seven states with closed transitions, its stops, its journal, and the whole of it
//! as it travels to a tracker when a driver takes it.

use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

use crate::id::{AssignmentNumber, DeliveryKey, DriverId, JournalNumber};
use crate::position::Position;
use crate::time::Time;

/// Where an order stands. Committed in the ledger before anybody is told.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
#[wincode(tag_encoding = "u8")]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    Received,
    Accepted,
    Preparing,
    Ready,
    PickedUp,
    Delivered,
    Failed,
}

impl DeliveryState {
    pub const ALL: [DeliveryState; 7] = [
        DeliveryState::Received,
        DeliveryState::Accepted,
        DeliveryState::Preparing,
        DeliveryState::Ready,
        DeliveryState::PickedUp,
        DeliveryState::Delivered,
        DeliveryState::Failed,
    ];

    /// The states that may follow; every other transition is a conflict.
    pub fn allowed_next(self) -> &'static [DeliveryState] {
        use DeliveryState::*;
        match self {
            Received => &[Accepted, Failed],
            Accepted => &[Preparing, Failed],
            Preparing => &[Ready, Failed],
            Ready => &[PickedUp, Failed],
            PickedUp => &[Delivered, Failed],
            Delivered | Failed => &[],
        }
    }

    pub fn is_finished(self) -> bool {
        self.allowed_next().is_empty()
    }

    /// Whether a person who calls for this change must say why: goods that lie ready and never leave the shop are
    /// somebody's loss.
    pub fn needs_reason(self, to: DeliveryState) -> bool {
        self == DeliveryState::Ready && to == DeliveryState::Failed
    }

    pub fn name(self) -> &'static str {
        match self {
            DeliveryState::Received => "received",
            DeliveryState::Accepted => "accepted",
            DeliveryState::Preparing => "preparing",
            DeliveryState::Ready => "ready",
            DeliveryState::PickedUp => "picked_up",
            DeliveryState::Delivered => "delivered",
            DeliveryState::Failed => "failed",
        }
    }
}

/// Something worth telling that is not a status.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
#[wincode(tag_encoding = "u8")]
#[serde(rename_all = "snake_case")]
pub enum Milestone {
    /// At the stop's door, by the fence.
    Arriving,
    /// The stop is expected to be reached within five minutes.
    FiveMinutesAway,
}

impl Milestone {
    pub fn name(self) -> &'static str {
        match self {
            Milestone::Arriving => "arriving",
            Milestone::FiveMinutesAway => "five_minutes_away",
        }
    }
}

/// One ledger event of a delivery: what its watcher must never miss.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
pub struct JournalEntry {
    pub number: JournalNumber,
    /// When the ledger committed it.
    pub at: Time,
    #[serde(flatten)]
    pub kind: JournalKind,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
#[wincode(tag_encoding = "u8")]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum JournalKind {
    /// The state changed; the first entry of every journal is `received`.
    Status {
        status: DeliveryState,
        reason: Option<String>,
    },
    /// Another driver, or nobody.
    Assigned {
        driver: Option<DriverId>,
        assignment: AssignmentNumber,
    },
    Milestone {
        milestone: Milestone,
        stop: u8,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
#[wincode(tag_encoding = "u8")]
#[serde(rename_all = "snake_case")]
pub enum StopKind {
    Pickup,
    DropOff,
}

/// A place the driver goes to for this delivery.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
pub struct Stop {
    pub kind: StopKind,
    pub position: Position,
    /// Within this many metres the driver is at the stop.
    pub radius_m: u16,
    /// What people call it; shown, never interpreted.
    pub label: String,
}

/// What a tenant wants for a delivery, settled when it was created.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
pub struct DeliveryPolicy {
    /// Leaving the pickup zone while ready means picked up.
    pub auto_picked_up: bool,
    /// Being at the drop-off is told as a milestone.
    pub auto_arriving: bool,
    /// A position this old is "last seen".
    pub stale_after_s: u16,
    /// A position this old is not shown as a place any more.
    pub unavailable_after_s: u16,
    /// How often the device is expected to send.
    pub expected_interval_s: u16,
    /// So long after its last event an open delivery has failed, as abandoned. The ledger alone goes by it: records and
    /// updates do not carry it.
    #[serde(default = "abandoned_after_h")]
    #[wincode(skip(default_val = ABANDONED_AFTER_H))]
    pub abandoned_after_h: u16,
}

fn abandoned_after_h() -> u16 {
    ABANDONED_AFTER_H
}

impl DeliveryPolicy {
    /// The age at which a position stops being live, in milliseconds: never below 2.5 × the expected interval.
    pub fn stale_after_ms(&self) -> i64 {
        (i64::from(self.stale_after_s) * 1000).max(i64::from(self.expected_interval_s) * 2500)
    }

    /// The age at which a position is not shown as a place any more, in milliseconds.
    pub fn unavailable_after_ms(&self) -> i64 {
        (i64::from(self.unavailable_after_s) * 1000).max(self.stale_after_ms())
    }
}

impl Default for DeliveryPolicy {
    fn default() -> Self {
        DeliveryPolicy {
            auto_picked_up: true,
            auto_arriving: true,
            stale_after_s: 30,
            unavailable_after_s: 120,
            expected_interval_s: 5,
            abandoned_after_h: ABANDONED_AFTER_H,
        }
    }
}

/// A delivery whole: what an `assign` record carries to the tracker that takes it over, and what the ledger answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
pub struct Delivery {
    pub key: DeliveryKey,
    pub state: DeliveryState,
    pub assignment: AssignmentNumber,
    pub driver: Option<DriverId>,
    /// Pickup before drop-off.
    pub stops: Vec<Stop>,
    pub policy: DeliveryPolicy,
    /// The newest entries, at most `JOURNAL_MAX`, oldest first.
    pub journal: Vec<JournalEntry>,
    /// The tenant's own words for the order; shown, never interpreted.
    pub reference: String,
    pub created: Time,
}

impl Delivery {
    pub fn last_number(&self) -> JournalNumber {
        self.journal.last().map_or(JournalNumber(0), |entry| entry.number)
    }

    /// The state it was in when it ended, as far back as its journal goes; None if it is open.
    pub fn state_before_end(&self) -> Option<DeliveryState> {
        if !self.state.is_finished() {
            return None;
        }
        let open = self.journal.iter().rev().find_map(|entry| match entry.kind {
            JournalKind::Status { status, .. } if !status.is_finished() => Some(status),
            JournalKind::Status { .. } | JournalKind::Assigned { .. } | JournalKind::Milestone { .. } => None,
        });
        Some(open.unwrap_or(DeliveryState::Received))
    }
}

/// How many journal entries travel with a delivery.
pub const JOURNAL_MAX: usize = 64;
/// How many open deliveries one driver has at most.
pub const OPEN_PER_DRIVER_MAX: usize = 256;
/// Why a delivery that nobody closed has failed.
pub const ABANDONED: &str = "abandoned";
/// A leap year: no policy waits longer.
pub const ABANDONED_AFTER_H_MAX: u16 = 24 * 366;
/// Two days: a night and the day after it.
const ABANDONED_AFTER_H: u16 = 48;
/// How many stops a delivery has at most.
pub const STOPS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transitions_are_exactly_those_promised() {
        let allowed: Vec<(DeliveryState, DeliveryState)> =
            DeliveryState::ALL.into_iter().flat_map(|a| a.allowed_next().iter().map(move |b| (a, *b))).collect();

        use DeliveryState::*;
        assert_eq!(
            allowed,
            [
                (Received, Accepted),
                (Received, Failed),
                (Accepted, Preparing),
                (Accepted, Failed),
                (Preparing, Ready),
                (Preparing, Failed),
                (Ready, PickedUp),
                (Ready, Failed),
                (PickedUp, Delivered),
                (PickedUp, Failed),
            ]
        );
    }

    #[test]
    fn a_slow_device_is_not_called_stale_between_two_of_its_fixes() {
        let policy = DeliveryPolicy { expected_interval_s: 60, ..DeliveryPolicy::default() };

        assert_eq!(policy.stale_after_ms(), 150_000);
        assert_eq!(policy.unavailable_after_ms(), 150_000);
        assert_eq!(DeliveryPolicy::default().stale_after_ms(), 30_000);
    }
}
