//! Frames as they leave: serialized once, shared by every socket that gets them. A position carries its age, so a frame
//! is made anew when it has lain for longer than `REMAKE_AFTER_MS`.

use bytes::Bytes;
use protocol::frame::{DriverFrame, EtaFrame, Frame, Freshness, PositionFrame, RedirectFrame, StopFrame};
use protocol::update::SilentCause;
use protocol::{DeliveryId, DeliveryState, DriverId, JournalNumber, Time};
use serde::{Deserialize, Serialize};

/// One serialized frame. Cloning shares the bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SharedFrame {
    pub kind: FrameKind,
    /// What a customer who got this frame says on return; only frames that bring journal entries carry it.
    pub number: Option<JournalNumber>,
    pub json: Bytes,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FrameKind {
    Snapshot,
    Position,
    Eta,
    Status,
    Stale,
    Redirect,
    Driver,
    Delivery,
    Left,
}

impl FrameKind {
    pub const ALL: [FrameKind; 9] = [
        FrameKind::Snapshot,
        FrameKind::Position,
        FrameKind::Eta,
        FrameKind::Status,
        FrameKind::Stale,
        FrameKind::Redirect,
        FrameKind::Driver,
        FrameKind::Delivery,
        FrameKind::Left,
    ];

    /// As in the frame's `type`; the name of the SSE event and the label of the metric too.
    pub fn name(self) -> &'static str {
        match self {
            FrameKind::Snapshot => "snapshot",
            FrameKind::Position => "position",
            FrameKind::Eta => "eta",
            FrameKind::Status => "status",
            FrameKind::Stale => "stale",
            FrameKind::Redirect => "redirect",
            FrameKind::Driver => "driver",
            FrameKind::Delivery => "delivery",
            FrameKind::Left => "left",
        }
    }
}

/// What a dispatcher's map receives.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum MapFrame {
    Snapshot(MapSnapshot),
    Driver(DriverFrame),
    Delivery(MapDelivery),
    /// Outside the viewport, or not live any more.
    Left(LeftFrame),
    Redirect(RedirectFrame),
}

/// All that the map shows at once.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct MapSnapshot {
    pub drivers: Vec<DriverFrame>,
    pub deliveries: Vec<MapDelivery>,
    /// Answered without the owner of the live views: what is known may be older than it could be.
    pub degraded: bool,
    pub server_time: Time,
}

impl MapSnapshot {
    /// Takes what another hub shows.
    pub fn extend(&mut self, part: MapSnapshot) {
        self.degraded |= part.degraded;
        self.drivers.extend(part.drivers);
        self.deliveries.extend(part.deliveries);
    }

    pub fn sort(&mut self) {
        self.drivers.sort_by_key(|frame| frame.driver);
        self.deliveries.sort_by_key(|frame| frame.delivery);
    }
}

/// One live delivery as a dispatcher sees it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct MapDelivery {
    pub delivery: DeliveryId,
    pub reference: String,
    pub status: DeliveryState,
    pub driver: Option<DriverId>,
    pub stops: Vec<StopFrame>,
    pub position: Option<PositionFrame>,
    pub eta: Option<EtaFrame>,
    pub freshness: Freshness,
    pub silent: Option<SilentCause>,
    pub last_number: JournalNumber,
}

#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeftFrame {
    Driver(DriverId),
    Delivery(DeliveryId),
}

/// A snapshot with the token that says which whole view it shows. A customer who returns with this token needs no
/// whole view again.
#[derive(Serialize)]
struct SnapshotWithView<'a> {
    #[serde(flatten)]
    frame: &'a Frame,
    view: &'a str,
}

pub fn snapshot(frame: &Frame, view: &str, last: JournalNumber) -> SharedFrame {
    let json = serialize(&SnapshotWithView { frame, view });
    SharedFrame { kind: FrameKind::Snapshot, number: Some(last), json }
}

pub fn shared(frame: &Frame) -> SharedFrame {
    let (kind, number) = match frame {
        Frame::Snapshot(snapshot) => (FrameKind::Snapshot, Some(snapshot.last_number)),
        Frame::Position(_) => (FrameKind::Position, None),
        Frame::Eta(_) => (FrameKind::Eta, None),
        Frame::Status(status) => (FrameKind::Status, Some(status.entry.number)),
        Frame::Stale(_) => (FrameKind::Stale, None),
        Frame::Redirect(_) => (FrameKind::Redirect, None),
    };
    SharedFrame { kind, number, json: serialize(frame) }
}

pub fn shared_map(frame: &MapFrame) -> SharedFrame {
    let kind = match frame {
        MapFrame::Snapshot(_) => FrameKind::Snapshot,
        MapFrame::Driver(_) => FrameKind::Driver,
        MapFrame::Delivery(_) => FrameKind::Delivery,
        MapFrame::Left(_) => FrameKind::Left,
        MapFrame::Redirect(_) => FrameKind::Redirect,
    };
    SharedFrame { kind, number: None, json: serialize(frame) }
}

fn serialize<T: Serialize>(value: &T) -> Bytes {
    Bytes::from(serde_json::to_vec(value).expect("a frame has only string keys and finite numbers"))
}

/// One frame kept for whoever asks next.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept {
    made: Option<(Time, SharedFrame)>,
}

impl Kept {
    pub fn clear(&mut self) {
        self.made = None;
    }

    /// The frame kept, or a new one where there is none or its age has become wrong.
    pub fn frame(&mut self, now: Time, make: impl FnOnce() -> SharedFrame) -> SharedFrame {
        if let Some((made, frame)) = &self.made
            && now.millis_since(*made).saturating_abs() < REMAKE_AFTER_MS
        {
            return frame.clone();
        }
        let frame = make();
        self.made = Some((now, frame.clone()));
        frame
    }
}

/// How wrong an age in a shared frame may be.
const REMAKE_AFTER_MS: i64 = 500;
