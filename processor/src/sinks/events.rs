//! Events for other systems: CloudEvents on the events topic, keyed by delivery. Journal entries are told once each and
//! in order, taken from the view's journal by number: an entry that only an older epoch would have told is not missed.
//!
//! **Invariant:** no event is appended twice. What was appended after the last committed offset is read back at the
//! beginning, so that a crash between the two repeats nothing. And what a new owner of the records says again, from a
//! snapshot however old, is known by its source: those of one partition of the records come in order, so one that is not
//! above all before it came before.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use backends::log::{Append, OffsetRange, ReadLimit, StoredEntry, Topic, append_durably, read_range};
use bytes::Bytes;
use protocol::update::{DeliveryBody, DeliveryView, Epoch, Event, Source, Taken};
use protocol::{
    DeliveryKey, DeliveryUpdate, JournalEntry, JournalKind, JournalNumber, Offset, PartitionId, TrackerKey, Update,
    partition_of,
};
use tracing::error;

use super::ages::{Ages, Heard};
use super::cloud_event::{CloudEvent, Subject, id_of, of_event, of_journal};
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
            deliveries_max: self.views_max,
            of_movement: self.of_movement,
            known: HashMap::new(),
            ages: Ages::new(),
            come: Come::default(),
            tell_from: Offset(0),
            sent: BTreeSet::new(),
            sent_until: Offset(0),
        }
    }
}

pub struct EventsWork {
    deliveries_max: usize,
    of_movement: bool,
    known: HashMap<DeliveryKey, Known>,
    ages: Ages<DeliveryKey>,
    come: Come,
    /// What stands before was told in an earlier life: it is read for what is known by it.
    tell_from: Offset,
    /// Events that an earlier life appended and did not commit.
    sent: BTreeSet<String>,
    /// From here on there are none.
    sent_until: Offset,
}

/// How far each partition of the records has come in the updates.
#[derive(Default)]
struct Come {
    newest: BTreeMap<PartitionId, Place>,
    /// Of the newest update. None: there was none yet.
    incarnation: Option<u32>,
}

/// In the records of one partition: the topic set's incarnation, the offset, and the ordinal within the entry.
type Place = (u32, Offset, u32);

/// What is remembered of a delivery so that none of its events goes out twice and none is missed: not its view, which
/// is ten times as large.
struct Known {
    epoch: Epoch,
    number: u64,
    heard: Heard,
    /// The journal entry that went out last.
    journal: JournalNumber,
    subject: Subject,
}

#[async_trait]
impl Work for EventsWork {
    async fn first(&mut self, reader: &Reader, taken: Option<Offset>) -> anyhow::Result<Offset> {
        self.tell_from = taken.unwrap_or_default();
        (self.sent, self.sent_until) = sent_since(reader, self.tell_from).await?;
        reader.whole_before(self.tell_from).await
    }

    async fn handle(&mut self, reader: &Reader, entries: Vec<StoredEntry>) -> anyhow::Result<()> {
        let mut appends = Vec::new();
        for (offset, batch) in reader.updates(&entries) {
            for update in &batch.updates {
                let update = match update {
                    Update::Delivery(update) => update,
                    Update::Driver(update) => {
                        self.come.handle_update(update.source, update.generation.incarnation);
                        self.ages.handle_time(update.source.partition, update.at);
                        continue;
                    }
                    Update::Heartbeat { source, offset, at } => {
                        self.come.handle_heartbeat(*source, *offset, reader.log.incarnation());
                        self.ages.handle_time(*source, *at);
                        continue;
                    }
                };
                let is_news = self.come.handle_update(update.source, update.epoch.generation.incarnation);
                let events = self.handle_update(update);
                if is_news && offset >= self.tell_from {
                    let news = events.iter().filter(|event| !self.sent.contains(event.id()));
                    appends.extend(news.filter_map(|event| entry(reader, update.key, event)));
                }
            }
            if offset >= self.sent_until {
                self.sent.clear();
            }
        }
        reader.metrics.events_deliveries_shed.increment(self.forget());
        if appends.is_empty() {
            return Ok(());
        }
        append_durably(&*reader.log, "tell events", &reader.stop, &appends).await.context("append events")?;
        Ok(())
    }
}

impl EventsWork {
    /// What an update says to the outside; nothing if it was said before.
    pub(super) fn handle_update(&mut self, update: &DeliveryUpdate) -> Vec<CloudEvent> {
        let (source, at) = (update.source.partition, update.at);
        let known = match self.known.entry(update.key) {
            Entry::Occupied(known) => {
                let known = known.into_mut();
                if update.taken_after(known.epoch, known.number) == Taken::Dropped {
                    return Vec::new();
                }
                known.heard = self.ages.handle_heard(update.key, Some(known.heard), source, at);
                known
            }
            Entry::Vacant(place) => {
                let DeliveryBody::Keyframe { view } = &update.body else { return Vec::new() };
                let heard = self.ages.handle_heard(update.key, None, source, at);
                place.insert(Known::begin(update, view, heard))
            }
        };
        let entries = known.handle_update(update);
        let mut events: Vec<CloudEvent> = entries.iter().map(|entry| of_journal(&known.subject, entry)).collect();
        let others = update.events.iter().enumerate();
        let others = others.filter(|(_, event)| self.of_movement || **event != Event::Moved);
        events.extend(others.filter_map(|(i, event)| of_event(&known.subject, update, i, event)));
        events
    }

    /// Deliveries that are over or were not heard of for long; answers how many of others were too many.
    fn forget(&mut self) -> u64 {
        while let Some(key) = self.ages.pop_old(REMEMBERED_MS) {
            self.known.remove(&key);
        }
        let mut shed = 0;
        while self.known.len() > self.deliveries_max
            && let Some(key) = self.ages.pop_oldest()
        {
            self.known.remove(&key);
            shed += 1;
        }
        shed
    }
}

impl Come {
    /// False if it has come before.
    fn handle_update(&mut self, source: Source, incarnation: u32) -> bool {
        self.incarnation = self.incarnation.max(Some(incarnation));
        self.handle_place(source.partition, (incarnation, source.offset, source.ordinal))
    }

    /// It says that all below `next` has come. Whose incarnation that is, only updates say.
    fn handle_heartbeat(&mut self, source: PartitionId, next: Offset, of_log: u32) {
        if let Some(last) = next.0.checked_sub(1) {
            self.handle_place(source, (self.incarnation.unwrap_or(of_log), Offset(last), u32::MAX));
        }
    }

    fn handle_place(&mut self, source: PartitionId, place: Place) -> bool {
        let newest = self.newest.entry(source).or_default();
        let is_news = place > *newest;
        *newest = place.max(*newest);
        is_news
    }
}

impl Known {
    /// What is first heard of a delivery may be the middle of its life: only what this update tells is news.
    fn begin(update: &DeliveryUpdate, view: &DeliveryView, heard: Heard) -> Known {
        let number = |event: &Event| journal_entry(event).map(|entry| entry.number);
        let first = update.events.iter().filter_map(number).min();
        let journal = first.map_or(view.delivery.last_number(), |first| JournalNumber(first.0.saturating_sub(1)));
        let subject = Subject {
            key: update.key,
            state: view.delivery.state,
            reference: view.delivery.reference.as_str().into(),
            position: None,
            eta: None,
        };
        Known { epoch: update.epoch, number: 0, heard, journal, subject }
    }

    /// Takes an update that is to be taken, and answers the journal entries that it brings.
    fn handle_update(&mut self, update: &DeliveryUpdate) -> Vec<JournalEntry> {
        (self.epoch, self.number) = (update.epoch, update.number);
        let after = self.journal;
        let is_news = |entry: &&JournalEntry| entry.number > after;
        let entries: Vec<JournalEntry> = match &update.body {
            DeliveryBody::Keyframe { view } => {
                self.subject.state = view.delivery.state;
                (self.subject.position, self.subject.eta) = (view.position, view.eta);
                view.delivery.journal.iter().filter(is_news).cloned().collect()
            }
            DeliveryBody::Changed { changed } => {
                self.subject.position = changed.position.or(self.subject.position);
                self.subject.eta = changed.eta.unwrap_or(self.subject.eta);
                update.events.iter().filter_map(journal_entry).filter(is_news).cloned().collect()
            }
        };
        for entry in &entries {
            self.journal = self.journal.max(entry.number);
            if let (JournalKind::Status { status, .. }, DeliveryBody::Changed { .. }) = (&entry.kind, &update.body) {
                self.subject.state = *status;
            }
        }
        entries
    }
}

fn journal_entry(event: &Event) -> Option<&JournalEntry> {
    let Event::Journal { entry } = event else { return None };
    Some(entry)
}

/// The events that were appended for entries from `from` on, and where those entries end.
async fn sent_since(reader: &Reader, from: Offset) -> anyhow::Result<(BTreeSet<String>, Offset)> {
    let (log, partition) = (&reader.log, reader.partition);
    let updates = log.range(Topic::Updates, partition).await.context("look at the updates topic")?;
    let from = from.max(updates.first);
    let one = OffsetRange { first: from, next: Offset(from.0 + 1).min(updates.next) };
    let read = read_range(&**log, Topic::Updates, partition, one).await.context("read the updates topic")?;
    let (Some(entry), true) = (read.first(), partition.0 < log.partition_count(Topic::Events)) else {
        return Ok((BTreeSet::new(), from));
    };
    // Deliveries have the same partition in both topics. Clocks may have stepped meanwhile.
    let since = log.offset_at(Topic::Events, partition, entry.appended - CLOCK_SLACK).await;
    let since = since.context("look at the events topic")?;
    let mut sent = BTreeSet::new();
    let mut events = log.reader(Topic::Events, partition, since).await.context("read events")?;
    loop {
        let read = events.read(ReadLimit::default(), Duration::ZERO).await.context("read events")?;
        if read.is_empty() {
            break;
        }
        sent.extend(read.iter().filter_map(|entry| id_of(&entry.value)));
    }
    Ok((sent, updates.next))
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

/// What was not heard of for longer is over, or gets a keyframe when it goes on.
const REMEMBERED_MS: i64 = 600_000;
const CLOCK_SLACK: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use protocol::update::Changed;
    use protocol::{AssignmentNumber, Delivery, DeliveryId, DeliveryPolicy, DeliveryState, TenantId, Time};

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

        let ids = ["7-9-1-0.0.0-moved-1", "7-9-1-0.0.0-moving_again-1", "7-9-1-0.0.0-moving_again-2"];
        assert_eq!(told(&mut all, &moved), ids);
        assert_eq!(told(&mut few, &moved), ids[1..]);
    }

    #[test]
    fn the_same_thing_said_again_under_another_claim_has_the_same_id() {
        let said_under = |claim| {
            let mut work = Events { views_max: 10, of_movement: true }.begin(PartitionId(0));
            let mut begin = keyframe(1, 1, 1, &[1]);
            begin.epoch.generation.claim = Offset(claim);
            let mut moved = keyframe(1, claim + 2, 1, &[]);
            moved.epoch = begin.epoch;
            moved.source = Source { partition: PartitionId(3), offset: Offset(77), ..Source::default() };
            moved.events = vec![Event::Moved, Event::StopEntered { stop: 1 }];
            [told(&mut work, &begin), told(&mut work, &moved)]
        };

        assert_eq!(said_under(5), said_under(900));
        assert_eq!(said_under(5)[1], ["7-9-1-0.3.77-moved-1", "7-9-1-0.3.77-stop_entered-1"]);
    }

    #[test]
    fn a_day_of_finished_deliveries_leaves_only_its_last_minutes() {
        let mut work = Events { views_max: 200_000, of_movement: true }.begin(PartitionId(0));
        for n in 0..10_000u64 {
            let mut last = keyframe(1, 1, 2, &[1, 2]);
            (last.key.delivery, last.at, last.is_last) = (DeliveryId(n), Time(n as i64 * 1_000), true);
            work.handle_update(&last);
            assert_eq!(work.forget(), 0);
        }

        let kept = REMEMBERED_MS as usize / 1_000;
        assert_eq!((work.known.len(), work.ages.len()), (kept, kept));
        let longest_reference = 200 * 4;
        let bytes = size_of::<(DeliveryKey, Known)>() + size_of::<(i64, DeliveryKey)>() + longest_reference;
        assert!(bytes <= 1_150, "{bytes}");
    }

    #[test]
    fn what_a_new_owner_says_again_of_a_finished_delivery_is_not_told_again() {
        let mut work = Events { views_max: 10, of_movement: true }.begin(PartitionId(0));
        let mut last = keyframe(1, 2, 2, &[2]);
        last.is_last = true;
        told(&mut work, &keyframe(1, 1, 1, &[1]));
        told(&mut work, &last);
        work.forget();

        assert!(told(&mut work, &keyframe(1, 1, 1, &[1])).is_empty());
        assert!(told(&mut work, &last).is_empty());
    }

    #[test]
    fn what_a_source_says_again_after_an_outage_is_not_told_again_though_others_have_gone_on() {
        let mut work = Events { views_max: 10, of_movement: true }.begin(PartitionId(0));
        let of = |source: u32, delivery: u64, number, at_s| {
            let mut update = keyframe(1, number, number, &[number]);
            update.key.delivery = DeliveryId(delivery);
            update.source.partition = PartitionId(source);
            update.at = Time::from_secs(at_s);
            update
        };
        let slow = of(2, 9, 1, 0);
        assert_eq!(told(&mut work, &of(1, 8, 1, 0)).len(), 1);
        assert_eq!(told(&mut work, &slow).len(), 1);

        for (number, at_s) in [(2, 1_800), (3, 1_855), (4, 1_910)] {
            told(&mut work, &of(1, 8, number, at_s));
            work.forget();
        }
        let again = told(&mut work, &slow);
        let goes_on = told(&mut work, &of(2, 9, 2, 1_900));
        work.forget();

        assert!(again.is_empty(), "{again:?}");
        assert_eq!(goes_on, ["7-9-journal-2"]);
    }

    #[test]
    fn a_clock_that_was_hours_ahead_for_one_update_silences_no_other_delivery() {
        let mut work = Events { views_max: 10, of_movement: true }.begin(PartitionId(0));
        told(&mut work, &keyframe(1, 1, 1, &[1]));
        let mut ahead = keyframe(1, 1, 2, &[1, 2]);
        (ahead.key.delivery, ahead.at, ahead.is_last) = (DeliveryId(8), Time::from_secs(7_200), true);
        told(&mut work, &ahead);
        assert_eq!(work.forget(), 0);

        let mut moved = keyframe(1, 2, 1, &[]);
        moved.at = Time::from_secs(1);
        moved.body = DeliveryBody::Changed { changed: Changed::default() };
        moved.events = vec![Event::MovingAgain];

        assert_eq!(told(&mut work, &moved), ["7-9-1-0.0.0-moving_again-1"]);
    }

    #[test]
    fn too_many_deliveries_are_shed_oldest_first_and_counted() {
        let mut work = Events { views_max: 2, of_movement: true }.begin(PartitionId(0));
        for n in 0..5u64 {
            let mut update = keyframe(1, 1, 1, &[1]);
            (update.key.delivery, update.at) = (DeliveryId(n), Time(n as i64));
            work.handle_update(&update);
        }

        assert_eq!(work.forget(), 3);
        let mut kept: Vec<u64> = work.known.keys().map(|key| key.delivery.0).collect();
        kept.sort_unstable();
        assert_eq!(kept, [3, 4]);
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
