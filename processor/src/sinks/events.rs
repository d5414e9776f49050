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

#[cfg(test)]
mod tests {
    use protocol::update::{Changed, DeliveryBody, DeliveryView, Epoch, Source};
    use protocol::{
        AssignmentNumber, Delivery, DeliveryId, DeliveryPolicy, DeliveryState, JournalEntry, JournalKind, TenantId,
        Time,
    };

    use super::*;

    #[test]
    fn an_entry_that_only_an_older_epoch_would_have_told_is_not_missed_and_none_is_told_twice() {
        let mut work = Events { views_max: 10, of_movement: true }.begin(PartitionId(0));

        let first = told(&mut work, &keyframe(1, 1, 3, &[1, 2, 3]));
        let second = told(&mut work, &keyframe(2, 1, 6, &[6]));
        let late = told(&mut work, &keyframe(1, 2, 5, &[5]));
        let again = told(&mut work, &keyframe(2, 1, 6, &[6]));

        assert_eq!(first, ["7-9-journal-1", "7-9-journal-2", "7-9-journal-3"]);
        assert_eq!(second, ["7-9-journal-4", "7-9-journal-5", "7-9-journal-6"]);
        assert!(late.is_empty() && again.is_empty());
    }

    #[test]
    fn what_is_first_heard_in_the_middle_of_a_life_tells_only_its_news() {
        let mut work = Events { views_max: 10, of_movement: true }.begin(PartitionId(0));

        assert!(told(&mut work, &keyframe(1, 40, 5, &[])).is_empty());
        assert_eq!(told(&mut work, &keyframe(1, 41, 6, &[6])), ["7-9-journal-6"]);
    }

    #[test]
    fn movement_can_be_left_out_and_every_event_has_an_id_of_its_own() {
        let mut all = Events { views_max: 10, of_movement: true }.begin(PartitionId(0));
        let mut few = Events { views_max: 10, of_movement: false }.begin(PartitionId(0));
        let begin = keyframe(1, 1, 1, &[1]);
        let mut moved = keyframe(1, 2, 1, &[]);
        moved.body = DeliveryBody::Changed { changed: Changed::default() };
        moved.events = vec![Event::Moved, Event::MovingAgain, Event::MovingAgain];
        told(&mut all, &begin);
        told(&mut few, &begin);

        assert_eq!(told(&mut all, &moved), ["7-9-1-0.0-2-0", "7-9-1-0.0-2-1", "7-9-1-0.0-2-2"]);
        assert_eq!(told(&mut few, &moved), ["7-9-1-0.0-2-1", "7-9-1-0.0-2-2"]);
    }

    fn told(work: &mut EventsWork, update: &DeliveryUpdate) -> Vec<String> {
        let id = |event: &CloudEvent| serde_json::to_value(event).unwrap()["id"].as_str().unwrap().to_string();
        work.handle_update(update).iter().map(id).collect()
    }

    fn entry(number: u64) -> JournalEntry {
        let kind = JournalKind::Status { status: DeliveryState::Ready, reason: None };
        JournalEntry { number: JournalNumber(number), at: Time(0), kind }
    }

    fn keyframe(assignment: u32, number: u64, journal: u64, news: &[u64]) -> DeliveryUpdate {
        let key = DeliveryKey { tenant: TenantId(7), delivery: DeliveryId(9) };
        let delivery = Delivery {
            key,
            state: DeliveryState::Ready,
            assignment: AssignmentNumber(assignment),
            driver: None,
            stops: Vec::new(),
            policy: DeliveryPolicy::default(),
            journal: (1..=journal).map(entry).collect(),
            reference: String::new(),
            created: Time(0),
        };
        let view = DeliveryView { delivery, position: None, progress: None, eta: None, plan: None, silent: None };
        DeliveryUpdate {
            key,
            epoch: Epoch { assignment: AssignmentNumber(assignment), ..Epoch::default() },
            number,
            source: Source::default(),
            at: Time(0),
            events: news.iter().map(|n| Event::Journal { entry: entry(*n) }).collect(),
            body: DeliveryBody::Keyframe { view: Box::new(view) },
            is_last: false,
        }
    }
}
