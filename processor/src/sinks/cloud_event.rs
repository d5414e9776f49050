//! Events as CloudEvents 1.0 in JSON, for others to read. The id of an event is made of what it says and of the record
//! that brought it forth, never of who said it: whoever folds that record again, under whatever claim, gives the same
//! event the same id.

use protocol::update::{Eta, Event, Proposal, ShownPosition};
use protocol::{DeliveryKey, DeliveryState, DeliveryUpdate, JournalEntry, JournalKind, Time};
use serde::Serialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

#[derive(Serialize)]
pub struct CloudEvent {
    specversion: &'static str,
    id: String,
    source: String,
    #[serde(rename = "type")]
    kind: String,
    subject: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    datacontenttype: &'static str,
    data: Value,
}

/// What an event says of its delivery: all that is remembered of a delivery between two of its events.
#[derive(Clone, PartialEq, Debug)]
pub struct Subject {
    pub key: DeliveryKey,
    pub state: DeliveryState,
    pub reference: Box<str>,
    pub position: Option<ShownPosition>,
    pub eta: Option<Eta>,
}

impl CloudEvent {
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// The id of an event that was written before.
pub fn id_of(json: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Id {
        id: String,
    }
    serde_json::from_slice::<Id>(json).ok().map(|event| event.id)
}

/// A journal entry: its number within the delivery makes it one and the same, whoever tells it.
pub fn of_journal(subject: &Subject, entry: &JournalEntry) -> CloudEvent {
    let kind = match &entry.kind {
        JournalKind::Status { .. } => "status_changed",
        JournalKind::Assigned { .. } => "assigned",
        JournalKind::Milestone { .. } => "milestone",
    };
    let data = json!({ "entry": entry, "status": subject.state, "reference": subject.reference });
    event(subject.key, format!("journal-{}", entry.number), kind, entry.at, data)
}

/// Any other event of an update; None for what is told elsewhere.
pub fn of_event(subject: &Subject, update: &DeliveryUpdate, at: usize, event_told: &Event) -> Option<CloudEvent> {
    let (kind, data) = match event_told {
        Event::Journal { .. } => return None,
        Event::Moved => ("moved", json!({ "position": subject.position.as_ref().map(position) })),
        Event::EtaChanged => ("eta_changed", json!({ "eta": subject.eta.as_ref().map(eta) })),
        Event::FenceEntered { fence } => ("fence_entered", json!({ "fence": fence })),
        Event::FenceLeft { fence } => ("fence_left", json!({ "fence": fence })),
        Event::FenceDwelt { fence } => ("fence_dwelt", json!({ "fence": fence })),
        Event::StopEntered { stop } => ("stop_entered", json!({ "stop": stop })),
        Event::StopLeft { stop } => ("stop_left", json!({ "stop": stop })),
        Event::Stationary { since } => ("stationary", json!({ "since": since })),
        Event::MovingAgain => ("moving_again", json!({})),
        Event::MovingAway => ("moving_away", json!({})),
        Event::OffRoute { off_m } => ("off_route", json!({ "off_m": off_m })),
        Event::BackOnRoute => ("back_on_route", json!({})),
        Event::Silent { cause } => ("silent", json!({ "cause": cause })),
        Event::HeardAgain => ("heard_again", json!({})),
        Event::Proposed { proposal } => ("proposed", proposed(proposal)),
        Event::PhoneStateChanged { state } => ("phone_state_changed", json!({ "state": state })),
        Event::FoldFailed { .. } => ("fold_failed", json!({})),
    };
    let (epoch, source) = (update.epoch, update.source);
    let is_alike = |other: &&Event| std::mem::discriminant(*other) == std::mem::discriminant(event_told);
    let before = update.events[..at].iter().filter(is_alike).count();
    let record = format!("{}.{}.{}", epoch.generation.incarnation, source.partition, source.offset);
    let id = format!("{}-{record}-{kind}-{}", epoch.assignment, before + 1);
    Some(event(subject.key, id, kind, update.at, data))
}

fn event(key: DeliveryKey, id: String, kind: &str, at: Time, data: Value) -> CloudEvent {
    CloudEvent {
        specversion: "1.0",
        id: format!("{}-{}-{id}", key.tenant, key.delivery),
        source: format!("/tenants/{}/deliveries", key.tenant),
        kind: format!("wayfix.delivery.{kind}"),
        subject: key.delivery.to_string(),
        time: rfc3339(at),
        datacontenttype: "application/json",
        data,
    }
}

fn position(shown: &ShownPosition) -> Value {
    json!({
        "lat": shown.position.lat(),
        "lng": shown.position.lon(),
        "snapped": shown.snapped,
        "event_time": shown.event_time,
    })
}

fn eta(eta: &Eta) -> Value {
    json!({ "arrival": eta.arrival, "p10": eta.p10, "p90": eta.p90, "basis": eta.basis, "stop": eta.stop })
}

fn proposed(proposal: &Proposal) -> Value {
    json!({ "proposal": proposal })
}

fn rfc3339(at: Time) -> Option<String> {
    let nanos = i128::from(at.0) * 1_000_000;
    OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()?.format(&Rfc3339).ok()
}
