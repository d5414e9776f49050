//! Frames: what a consumer receives over WebSocket, SSE and REST, as JSON. Units people expect at this border: degrees,
//! metres, m/s, milliseconds since the Unix epoch. Every shown position carries its age.

use serde::{Deserialize, Serialize};

use crate::delivery::{DeliveryPolicy, DeliveryState, JournalEntry, Stop, StopKind};
use crate::id::{DeliveryId, DriverId, JournalNumber};
use crate::record::Vehicle;
use crate::time::Time;
use crate::update::{DeliveryView, DriverView, Eta, EtaBasis, Leg, Progress, ShownPosition, SilentCause};

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Frame {
    Snapshot(Box<SnapshotFrame>),
    Position(PositionFrame),
    Eta(EtaFrame),
    /// A journal entry: never missed, never twice.
    Status(StatusFrame),
    Stale(StaleFrame),
    /// Go elsewhere, or come back later.
    Redirect(RedirectFrame),
}

/// The whole of what a watcher of one delivery sees.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SnapshotFrame {
    pub delivery: DeliveryId,
    pub reference: String,
    pub status: DeliveryState,
    pub driver: Option<DriverId>,
    pub stops: Vec<StopFrame>,
    pub journal: Vec<StatusFrame>,
    pub position: Option<PositionFrame>,
    pub eta: Option<EtaFrame>,
    /// Encoded polyline, precision 5.
    pub plan: Option<String>,
    pub freshness: Freshness,
    /// From which age on a position is "last seen", and from which it is no place any more: a page that loses its
    /// connection judges by these itself.
    pub stale_after_ms: i64,
    pub unavailable_after_ms: i64,
    pub silent: Option<SilentCause>,
    /// Answered without the owner of the live view: what is known may be older than it could be.
    pub degraded: bool,
    pub server_time: Time,
    /// What to say on return to get exactly what was missed.
    pub last_number: JournalNumber,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StopFrame {
    pub kind: StopKind,
    pub lat: f64,
    pub lng: f64,
    pub label: String,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PositionFrame {
    pub lat: f64,
    pub lng: f64,
    /// Degrees clockwise from north.
    pub heading: Option<f64>,
    /// m/s.
    pub speed: Option<f64>,
    /// Metres.
    pub accuracy: Option<u8>,
    pub snapped: bool,
    /// Server time at which it was true.
    pub event_time: Time,
    pub age_ms: u64,
    pub freshness: Freshness,
    pub progress: Option<ProgressFrame>,
}

#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct ProgressFrame {
    pub leg: Leg,
    pub along_m: u32,
    pub remaining_m: u32,
    pub off_route_m: u32,
}

#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct EtaFrame {
    pub arrival: Time,
    pub p10: Time,
    pub p90: Time,
    pub basis: EtaBasis,
    pub stop: u8,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StatusFrame {
    #[serde(flatten)]
    pub entry: JournalEntry,
}

#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct StaleFrame {
    pub freshness: Freshness,
    pub age_ms: u64,
    pub cause: Option<SilentCause>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RedirectFrame {
    /// Where to; None means the same address.
    pub url: Option<String>,
    pub retry_after_ms: u32,
    pub reason: String,
}

/// How far a position can be believed to be where the driver is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Freshness {
    Live,
    /// Show "last seen x s ago".
    LastSeen,
    /// Don't show a place.
    Unavailable,
}

impl Freshness {
    /// Judged by a position's age; a phone that stands and says so stays live while it is heard.
    pub fn of(position: Option<&ShownPosition>, policy: &DeliveryPolicy, now: Time) -> Freshness {
        let Some(position) = position else { return Freshness::Unavailable };
        let age_ms = now.millis_since(position.seen());
        if age_ms >= policy.unavailable_after_ms() {
            Freshness::Unavailable
        } else if age_ms >= policy.stale_after_ms() {
            Freshness::LastSeen
        } else {
            Freshness::Live
        }
    }

    /// When the judgement of this position changes next, if nothing new comes.
    pub fn next_change(position: &ShownPosition, policy: &DeliveryPolicy, now: Time) -> Option<Time> {
        let seen = position.seen();
        [policy.stale_after_ms(), policy.unavailable_after_ms()]
            .into_iter()
            .map(|after_ms| Time(seen.0.saturating_add(after_ms)))
            .find(|at| *at > now)
    }
}

impl ShownPosition {
    /// Since when nothing is known: the event itself, or for a phone that says it stands, when it last said so.
    pub fn seen(&self) -> Time {
        if self.standing { self.received } else { self.event_time }
    }

    pub fn to_frame(&self, progress: Option<&Progress>, policy: &DeliveryPolicy, now: Time) -> PositionFrame {
        PositionFrame {
            lat: self.position.lat(),
            lng: self.position.lon(),
            heading: self.heading_255.map(|h| (f64::from(h) * 3600.0 / 255.0).round() / 10.0),
            speed: self.speed_dm_s.map(|s| f64::from(s) / 10.0),
            accuracy: self.accuracy_m,
            snapped: self.snapped,
            event_time: self.event_time,
            age_ms: now.millis_since(self.event_time).max(0) as u64,
            freshness: Freshness::of(Some(self), policy, now),
            progress: progress.map(|p| ProgressFrame {
                leg: p.leg,
                along_m: p.along_m,
                remaining_m: p.remaining_m,
                off_route_m: p.off_route_m,
            }),
        }
    }
}

impl DeliveryView {
    /// The ETA, unless the position that it was made from is too old to be shown.
    pub fn shown_eta(&self, now: Time) -> Option<&Eta> {
        let is_lost = |position: &ShownPosition| {
            Freshness::of(Some(position), &self.delivery.policy, now) == Freshness::Unavailable
        };
        self.eta.as_ref().filter(|_| !self.position.as_ref().is_some_and(is_lost))
    }
}

impl From<&Stop> for StopFrame {
    fn from(stop: &Stop) -> Self {
        let label = stop.label.clone();
        StopFrame { kind: stop.kind, lat: stop.position.lat(), lng: stop.position.lon(), label }
    }
}

impl From<&Eta> for EtaFrame {
    fn from(eta: &Eta) -> Self {
        EtaFrame { arrival: eta.arrival, p10: eta.p10, p90: eta.p90, basis: eta.basis, stop: eta.stop }
    }
}

impl SnapshotFrame {
    /// `plan` is the encoded polyline of the view's plan, encoded by the caller so that it can be kept.
    pub fn of(view: &DeliveryView, plan: Option<String>, degraded: bool, now: Time) -> Self {
        let delivery = &view.delivery;
        let freshness = Freshness::of(view.position.as_ref(), &delivery.policy, now);
        let shown = view.position.filter(|_| freshness != Freshness::Unavailable);
        SnapshotFrame {
            delivery: delivery.key.delivery,
            reference: delivery.reference.clone(),
            status: delivery.state,
            driver: delivery.driver,
            stops: delivery.stops.iter().map(StopFrame::from).collect(),
            journal: delivery.journal.iter().map(|entry| StatusFrame { entry: entry.clone() }).collect(),
            position: shown.map(|p| p.to_frame(view.progress.as_ref(), &delivery.policy, now)),
            eta: view.shown_eta(now).map(EtaFrame::from),
            plan,
            freshness,
            stale_after_ms: delivery.policy.stale_after_ms(),
            unavailable_after_ms: delivery.policy.unavailable_after_ms(),
            silent: view.silent,
            degraded,
            server_time: now,
            last_number: delivery.last_number(),
        }
    }
}

/// One driver as a dispatcher sees him.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DriverFrame {
    pub driver: DriverId,
    pub position: Option<PositionFrame>,
    pub battery: Option<u8>,
    pub deliveries: Vec<DeliveryId>,
    pub freshness: Freshness,
    pub silent: Option<SilentCause>,
    pub vehicle: Vehicle,
}

impl DriverFrame {
    /// A dispatcher sees an old position too, with its age.
    pub fn of(view: &DriverView, policy: &DeliveryPolicy, now: Time) -> Self {
        DriverFrame {
            driver: view.key.driver,
            position: view.position.map(|p| p.to_frame(None, policy, now)),
            battery: view.battery_percent,
            deliveries: view.deliveries.clone(),
            freshness: Freshness::of(view.position.as_ref(), policy, now),
            silent: view.silent,
            vehicle: view.vehicle,
        }
    }
}
