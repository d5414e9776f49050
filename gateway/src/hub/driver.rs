//! One driver's live view in the hub, for dispatchers' maps.

use backends::live_store::LiveDriver;
use protocol::frame::DriverFrame;
use protocol::update::{DriverBody, DriverUpdate, Generation, Source};
use protocol::{DeliveryPolicy, Time};

use super::dot::Dot;
use super::frames::{self, Kept, MapFrame, SharedFrame};
use super::news::News;

#[derive(Debug)]
pub(super) struct DriverEntry {
    pub live: LiveDriver,
    /// When an update last came.
    pub touched: Time,
    /// For when its timer is set.
    pub armed: Option<Time>,
    dot: Dot,
    kept: Kept,
}

impl DriverEntry {
    /// None: only a keyframe can begin a view.
    pub fn begin(update: &DriverUpdate, policy: &DeliveryPolicy, now: Time) -> Option<Self> {
        let DriverBody::Keyframe { view } = &update.body else { return None };
        let live = LiveDriver {
            generation: update.generation,
            fold_version: update.fold_version,
            source: update.source,
            at: update.at,
            view: (**view).clone(),
        };
        let dot = Dot::new(live.view.position.as_ref(), policy, now);
        Some(DriverEntry { live, touched: now, armed: None, dot, kept: Kept::default() })
    }

    /// Takes what is newer by (generation, fold version, source); of another generation or fold version only from a
    /// keyframe on. None: dropped.
    pub fn handle_update(&mut self, update: &DriverUpdate, policy: &DeliveryPolicy, now: Time) -> Option<News> {
        let order = |generation: Generation, fold_version: u32, source: Source| {
            (generation, fold_version, source.offset, source.index, source.ordinal)
        };
        let held = order(self.live.generation, self.live.fold_version, self.live.source);
        let new = order(update.generation, update.fold_version, update.source);
        if new <= held {
            return None;
        }
        let view = &mut self.live.view;
        let before = (view.silent, view.battery_percent, view.phone_state, view.deliveries.len());
        let mut news = News::NONE;
        match &update.body {
            DriverBody::Keyframe { view: whole } => {
                if view.deliveries != whole.deliveries {
                    news |= News::MAP;
                }
                view.clone_from(whole);
            }
            DriverBody::Changed { changed } if (new.0, new.1) == (held.0, held.1) => view.handle_changed(changed),
            DriverBody::Changed { .. } => return None,
        }
        let after = (view.silent, view.battery_percent, view.phone_state, view.deliveries.len());
        if before != after {
            news |= News::MAP;
        }
        self.live.generation = update.generation;
        self.live.fold_version = update.fold_version;
        self.live.source = update.source;
        self.live.at = update.at;
        self.touched = now;
        self.kept.clear();
        Some(news | self.handle_timeout(policy, now))
    }

    /// What has become news by time alone.
    pub fn handle_timeout(&mut self, policy: &DeliveryPolicy, now: Time) -> News {
        let position = self.live.view.position.as_ref();
        let mut news = News::NONE;
        if let Some(position) = position
            && self.dot.is_news(position, policy, now)
        {
            self.dot.handle_told(position, policy, now);
            news |= News::MAP;
        }
        if self.dot.handle_freshness(position, policy, now) {
            self.kept.clear();
            news |= News::MAP;
        }
        news
    }

    pub fn next_wake(&self, policy: &DeliveryPolicy, now: Time) -> Option<Time> {
        self.dot.next_wake(self.live.view.position.as_ref(), policy, now)
    }

    pub fn frame(&self, policy: &DeliveryPolicy, now: Time) -> DriverFrame {
        DriverFrame::of(&self.live.view, policy, now)
    }

    pub fn map_frame(&mut self, policy: &DeliveryPolicy, now: Time) -> SharedFrame {
        let view = &self.live.view;
        self.kept.frame(now, || frames::shared_map(&MapFrame::Driver(DriverFrame::of(view, policy, now))))
    }
}
