//! Events for other systems: CloudEvents on the events topic, keyed by delivery. Journal entries are told once each and
//! in order, taken from the view's journal by number: an entry that only an older epoch would have told is not missed.

use std::collections::BTreeMap;

use anyhow::Context;
use async_trait::async_trait;
use backends::log::{Append, LogError, StoredEntry, Topic};
use bytes::Bytes;
use daemon::{Backoff, retry};
use protocol::update::{Event, Taken};
use protocol::{
    DeliveryKey, DeliveryUpdate, JournalNumber, LiveView, Offset, PartitionId, TrackerKey, Update, partition_of,
};
use tracing::error;

use super::cloud_event::{CloudEvent, of_event, of_journal};
use super::{Reader, Sink, Work};

pub struct Events {
    pub views_max: usize,
    pub of_movement: bool,
}

#[async_trait]
impl Sink for Events {
    const GROUP: &'static str = "events";
    const TOPIC: Topic = Topic::Updates;
    type Work = EventsWork;

    fn begin(&self, _: PartitionId) -> EventsWork {
        EventsWork {
            views_max: self.views_max,
            of_movement: self.of_movement,
            told: BTreeMap::new(),
            tell_from: Offset(0),
        }
    }
}

pub struct EventsWork {
    views_max: usize,
    of_movement: bool,
    told: BTreeMap<DeliveryKey, Told>,
    /// What stands before was told in an earlier life: it is read for what is known by it.
    tell_from: Offset,
}

/// A delivery, and the journal entry told last.
struct Told {
    view: LiveView,
    journal: JournalNumber,
}

#[async_trait]
impl Work for EventsWork {
    async fn first(&mut self, reader: &Reader, committed: Option<Offset>) -> anyhow::Result<Offset> {
        self.tell_from = committed.unwrap_or_default();
        reader.whole_before(self.tell_from).await
    }

    async fn handle(&mut self, reader: &Reader, entries: Vec<StoredEntry>) -> anyhow::Result<()> {
        let mut appends = Vec::new();
        for (offset, batch) in reader.updates(&entries) {
            for update in &batch.updates {
                let Update::Delivery(update) = update else { continue };
                let events = self.handle_update(update);
                if offset >= self.tell_from {
                    appends.extend(events.iter().filter_map(|event| entry(reader, update.key, event)));
                }
            }
        }
        self.forget();
        if appends.is_empty() {
            return Ok(());
        }
        let append = || reader.log.append(appends.clone());
        retry("tell events", Backoff::default(), &reader.stop, LogError::is_transient, append)
            .await
            .context("append events")?;
        Ok(())
    }
}

impl EventsWork {
    /// What an update says to the outside; nothing if it was said before.
    pub(super) fn handle_update(&mut self, update: &DeliveryUpdate) -> Vec<CloudEvent> {
        if let Some(told) = self.told.get_mut(&update.key) {
            if told.view.handle_update(update) == Taken::Dropped {
                return Vec::new();
            }
        } else {
            let Some(view) = LiveView::begin(update) else { return Vec::new() };
            let journal = told_before(&view, update);
            self.told.insert(update.key, Told { view, journal });
        }
        let Some(told) = self.told.get_mut(&update.key) else { return Vec::new() };
        let entries = told.view.view.delivery.journal.iter().filter(|entry| entry.number > told.journal);
        let mut events: Vec<CloudEvent> = entries.map(|entry| of_journal(&told.view, entry)).collect();
        told.journal = told.journal.max(told.view.view.delivery.last_number());
        let others = update.events.iter().enumerate();
        let others = others.filter(|(_, event)| self.of_movement || **event != Event::Moved);
        events.extend(others.filter_map(|(i, event)| of_event(&told.view, update, i, event)));
        events
    }

    /// Deliveries that were not told of for long, when they become too many.
    fn forget(&mut self) {
        if self.told.len() <= self.views_max {
            return;
        }
        let newest = self.told.values().map(|told| told.view.at).max();
        let is_fresh = |told: &Told| newest.is_some_and(|newest| newest.millis_since(told.view.at) < FRESH_MS);
        self.told.retain(|_, told| is_fresh(told) && !told.view.is_last);
        while self.told.len() > self.views_max {
            self.told.pop_first();
        }
    }
}

/// What is first heard of a delivery may be the middle of its life: only what this update tells is news.
fn told_before(view: &LiveView, update: &DeliveryUpdate) -> JournalNumber {
    let number = |event: &Event| match event {
        Event::Journal { entry } => Some(entry.number),
        _ => None,
    };
    let first = update.events.iter().filter_map(number).min();
    first.map_or(view.view.delivery.last_number(), |first| JournalNumber(first.0.saturating_sub(1)))
}

fn entry(reader: &Reader, key: DeliveryKey, event: &CloudEvent) -> Option<Append> {
    let key = TrackerKey::Delivery(key).key_bytes();
    let value = serde_json::to_vec(event).map_err(|error| error!(%error, "an event cannot be written as JSON")).ok()?;
    Some(Append {
        topic: Topic::Events,
        partition: partition_of(&key, reader.log.partition_count(Topic::Events)),
        key: Bytes::copy_from_slice(&key),
        value: value.into(),
    })
}

/// What has not been told of for longer is over, or gets a keyframe when it goes on.
const FRESH_MS: i64 = 120_000;
