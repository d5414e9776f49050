//! One delivery's live view in the hub, and what of it is news to its watchers.

use std::collections::VecDeque;
use std::hash::Hasher;

use protocol::delivery::JOURNAL_MAX;
use protocol::frame::{EtaFrame, Frame, Freshness, SnapshotFrame, StaleFrame, StatusFrame, StopFrame};
use protocol::update::{DeliveryBody, DeliveryView, Eta, Leg, Plan, SilentCause, Taken};
use protocol::{Delivery, DeliveryUpdate, JournalNumber, LiveView, Time};

use super::dot::Dot;
use super::frames::{self, Kept, MapDelivery, MapFrame, SharedFrame};
use super::news::News;

#[derive(Debug)]
pub(super) struct DeliveryEntry {
    pub live: LiveView,
    /// When an update last came.
    pub touched: Time,
    /// Since when it is known to be finished.
    pub ended: Option<Time>,
    /// For when its timer is set.
    pub armed: Option<Time>,
    view_token: String,
    plan: Option<String>,
    dot: Dot,
    eta_told: Option<Eta>,
    eta_mapped: Option<Eta>,
    silent_told: Option<SilentCause>,
    leg_told: Option<Leg>,
    kept: KeptFrames,
}

#[derive(Debug, Default)]
struct KeptFrames {
    snapshot: Kept,
    position: Kept,
    eta: Kept,
    stale: Kept,
    map: Kept,
    journal: VecDeque<(JournalNumber, SharedFrame)>,
}

impl DeliveryEntry {
    /// None: only a keyframe can begin a view.
    pub fn begin(update: &DeliveryUpdate, now: Time) -> Option<Self> {
        let live = LiveView::begin(update)?;
        let view = &live.view;
        let mut entry = DeliveryEntry {
            touched: now,
            ended: None,
            armed: None,
            view_token: view_token(&live),
            plan: view.plan.as_ref().and_then(encoded_plan),
            dot: Dot::new(view.position.as_ref(), &view.delivery.policy, now),
            eta_told: view.eta,
            eta_mapped: view.eta,
            silent_told: view.silent,
            leg_told: view.progress.map(|progress| progress.leg),
            kept: KeptFrames::default(),
            live,
        };
        entry.ended = entry.delivery().state.is_finished().then_some(now);
        Some(entry)
    }

    pub fn delivery(&self) -> &Delivery {
        &self.live.view.delivery
    }

    /// Its tracker has let it go, and it is not finished: another takes it at once, if there is to be one.
    pub fn is_released(&self) -> bool {
        self.live.is_last && self.ended.is_none()
    }

    pub fn view_token(&self) -> &str {
        &self.view_token
    }

    pub fn handle_update(&mut self, update: &DeliveryUpdate, now: Time) -> (Taken, News) {
        let before = (self.delivery().last_number(), self.delivery().state, self.delivery().driver);
        let taken = self.live.handle_update(update);
        if taken == Taken::Dropped {
            return (taken, News::NONE);
        }
        self.touched = now;
        self.kept.clear_states();
        let mut news = News::NONE;
        if matches!(update.body, DeliveryBody::Keyframe { .. }) {
            let token = view_token(&self.live);
            if token != self.view_token {
                self.view_token = token;
                self.plan = self.live.view.plan.as_ref().and_then(encoded_plan);
                news |= News::WHOLE | News::MAP;
            }
        }
        let after = (self.delivery().last_number(), self.delivery().state, self.delivery().driver);
        if after.0 > before.0 {
            news |= News::JOURNAL;
        }
        if (after.1, after.2) != (before.1, before.2) {
            news |= News::MAP;
        }
        // A correction opens it again.
        self.ended = after.1.is_finished().then(|| self.ended.unwrap_or(now));
        (taken, news | self.state_news(now))
    }

    /// The clock was set: the position is as old as it was, and he arrives in as many minutes. The journal's times stay.
    pub fn handle_clock_set(&mut self, by_ms: i64) {
        let moved = |time: &mut Time| time.0 = time.0.saturating_add(by_ms);
        self.armed.iter_mut().chain(&mut self.ended).chain([&mut self.touched]).for_each(moved);
        let view = &mut self.live.view;
        view.position.iter_mut().for_each(|position| position.handle_clock_set(by_ms));
        for eta in view.eta.iter_mut().chain(&mut self.eta_told).chain(&mut self.eta_mapped) {
            [&mut eta.arrival, &mut eta.p10, &mut eta.p90].into_iter().for_each(moved);
        }
        self.dot.handle_clock_set(by_ms);
        self.kept.clear_states();
    }

    /// What has become news by time alone.
    pub fn handle_timeout(&mut self, now: Time) -> News {
        self.state_news(now)
    }

    pub fn next_wake(&self, now: Time, linger_ms: i64) -> Option<Time> {
        let view = &self.live.view;
        let dot = self.dot.next_wake(view.position.as_ref(), &view.delivery.policy, now);
        let closing = self.ended.map(|ended| Time(ended.0.saturating_add(linger_ms))).filter(|at| *at > now);
        [dot, closing].into_iter().flatten().min()
    }

    fn state_news(&mut self, now: Time) -> News {
        let view = &self.live.view;
        let policy = &view.delivery.policy;
        let mut news = News::NONE;
        match &view.position {
            Some(position) if self.dot.is_news(position, policy, now) => {
                self.dot.handle_told(position, policy, now);
                news |= News::POSITION;
            }
            None if self.dot.has_told() => {
                self.dot = Dot::new(None, policy, now);
                news |= News::WHOLE;
            }
            Some(_) | None => {}
        }
        let leg = view.progress.map(|progress| progress.leg);
        if self.leg_told != leg {
            self.leg_told = leg;
            news |= News::POSITION;
        }
        if self.dot.handle_freshness(view.position.as_ref(), policy, now) || self.silent_told != view.silent {
            self.silent_told = view.silent;
            news |= News::STALE | News::MAP;
        }
        if is_eta_news(self.eta_told.as_ref(), view.eta.as_ref(), ETA_STEP_MS) {
            self.eta_told = view.eta;
            // No frame says "there is no ETA any more" but a whole one.
            news |= if view.eta.is_some() { News::ETA } else { News::WHOLE };
        }
        if is_eta_news(self.eta_mapped.as_ref(), view.eta.as_ref(), ETA_MAP_STEP_MS) {
            self.eta_mapped = view.eta;
            news |= News::MAP;
        }
        if news.has(News::STALE) {
            self.kept.clear_states();
        }
        news
    }

    pub fn snapshot(&mut self, now: Time) -> SharedFrame {
        let DeliveryEntry { live, kept, plan, view_token, .. } = self;
        kept.snapshot.frame(now, || {
            let snapshot = SnapshotFrame::of(&live.view, plan.clone(), false, now);
            let last = snapshot.last_number;
            frames::snapshot(&Frame::Snapshot(Box::new(snapshot)), view_token, last)
        })
    }

    /// None while there is no place to show.
    pub fn position(&mut self, now: Time) -> Option<SharedFrame> {
        let view = &self.live.view;
        let policy = &view.delivery.policy;
        let position = view.position.as_ref()?;
        if Freshness::of(Some(position), policy, now) == Freshness::Unavailable {
            return None;
        }
        let make = || frames::shared(&Frame::Position(position.to_frame(view.progress.as_ref(), policy, now)));
        Some(self.kept.position.frame(now, make))
    }

    pub fn eta(&mut self, now: Time) -> Option<SharedFrame> {
        let eta = self.live.view.shown_eta(now)?;
        Some(self.kept.eta.frame(now, || frames::shared(&Frame::Eta(EtaFrame::from(eta)))))
    }

    pub fn stale(&mut self, now: Time) -> SharedFrame {
        let view = &self.live.view;
        self.kept.stale.frame(now, || {
            let position = view.position.as_ref();
            frames::shared(&Frame::Stale(StaleFrame {
                freshness: Freshness::of(position, &view.delivery.policy, now),
                age_ms: position.map_or(0, |p| now.millis_since(p.event_time).max(0) as u64),
                cause: view.silent,
            }))
        })
    }

    /// Where there is no position at all, there is none whose freshness could change.
    pub fn is_live(&self, now: Time) -> bool {
        let view = &self.live.view;
        view.position.is_none() || Freshness::of(view.position.as_ref(), &view.delivery.policy, now) == Freshness::Live
    }

    /// Appends the journal's entries above `cursor` and answers the number of the last.
    ///
    /// None: entries between are missing here, only the ledger has them.
    pub fn journal_after(&mut self, cursor: JournalNumber, into: &mut Vec<SharedFrame>) -> Option<JournalNumber> {
        if self.missing_after(cursor).is_some() {
            return None;
        }
        let journal = &self.live.view.delivery.journal;
        let new = &journal[journal.len() - self.count_after(cursor)..];
        for entry in new {
            let kept = self.kept.journal.iter().rev().find(|(number, _)| *number == entry.number);
            if let Some((_, frame)) = kept {
                into.push(frame.clone());
                continue;
            }
            let frame = frames::shared(&Frame::Status(StatusFrame { entry: entry.clone() }));
            self.kept.journal.push_back((entry.number, frame.clone()));
            if self.kept.journal.len() > JOURNAL_MAX {
                self.kept.journal.pop_front();
            }
            into.push(frame);
        }
        Some(new.last().map_or(cursor, |entry| entry.number))
    }

    /// Up to which entry those after `cursor` may be missing here.
    ///
    /// A journal holds the newest entries, each of them with its predecessor: only those before its first can be missing.
    /// Its numbers may leap all the same, because a ledger that was restored goes on above all that it may have given.
    pub fn missing_after(&self, cursor: JournalNumber) -> Option<JournalNumber> {
        let first = self.delivery().journal.first()?.number;
        (cursor.0.saturating_add(1) < first.0).then(|| JournalNumber(first.0 - 1))
    }

    /// How many entries are held above `cursor`.
    pub fn count_after(&self, cursor: JournalNumber) -> usize {
        let journal = &self.delivery().journal;
        journal.len() - journal.partition_point(|entry| entry.number <= cursor)
    }

    /// Whether there may be an entry of this number: not where the journal held here leaves it out.
    pub fn may_have(&self, number: JournalNumber) -> bool {
        let journal = &self.delivery().journal;
        journal.first().is_none_or(|first| number < first.number)
            || journal.binary_search_by_key(&number, |entry| entry.number).is_ok()
    }

    pub fn map_delivery(&self, now: Time) -> MapDelivery {
        map_delivery(&self.live.view, now)
    }

    pub fn map_frame(&mut self, now: Time) -> SharedFrame {
        let view = &self.live.view;
        self.kept.map.frame(now, || frames::shared_map(&MapFrame::Delivery(map_delivery(view, now))))
    }
}

impl KeptFrames {
    fn clear_states(&mut self) {
        self.snapshot.clear();
        self.position.clear();
        self.eta.clear();
        self.stale.clear();
        self.map.clear();
    }
}

/// One delivery as a dispatcher sees it.
pub fn map_delivery(view: &DeliveryView, now: Time) -> MapDelivery {
    let delivery = &view.delivery;
    MapDelivery {
        delivery: delivery.key.delivery,
        reference: delivery.reference.clone(),
        status: delivery.state,
        driver: delivery.driver,
        stops: delivery.stops.iter().map(StopFrame::from).collect(),
        position: view.position.map(|p| p.to_frame(view.progress.as_ref(), &delivery.policy, now)),
        eta: view.shown_eta(now).map(EtaFrame::from),
        freshness: Freshness::of(view.position.as_ref(), &delivery.policy, now),
        silent: view.silent,
        last_number: delivery.last_number(),
    }
}

/// Encoded polyline, precision 5. None where a point is not on Earth.
pub fn encoded_plan(plan: &Plan) -> Option<String> {
    let coordinates = plan.points.iter().map(|point| geo_types::Coord { x: point.lon(), y: point.lat() });
    polyline::encode_coordinates(coordinates, 5).ok()
}

/// Which whole view this is: another one after a new epoch or a new plan, the same on every gateway.
fn view_token(live: &LiveView) -> String {
    let mut print = Fnv(0xcbf2_9ce4_8422_2325);
    for point in live.view.plan.iter().flat_map(|plan| &plan.points) {
        print.write(&point.lat_e7.to_le_bytes());
        print.write(&point.lon_e7.to_le_bytes());
    }
    let epoch = &live.epoch;
    let generation = &epoch.generation;
    format!("{}.{}.{}.{:x}", epoch.assignment, generation.incarnation, generation.claim, print.finish())
}

/// FNV-1a, 64 bit: the same on every build and machine, which the standard library's hasher does not promise.
struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

fn is_eta_news(told: Option<&Eta>, eta: Option<&Eta>, step_ms: i64) -> bool {
    match (told, eta) {
        (None, None) => false,
        (Some(told), Some(eta)) => {
            told.stop != eta.stop
                || told.basis != eta.basis
                || told.arrival.millis_since(eta.arrival).saturating_abs() >= step_ms
        }
        (None, Some(_)) | (Some(_), None) => true,
    }
}

/// A minute is what people read; a quarter of it keeps the minute right.
const ETA_STEP_MS: i64 = 15_000;
const ETA_MAP_STEP_MS: i64 = 30_000;
