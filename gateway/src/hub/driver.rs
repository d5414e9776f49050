//! One driver's live view in the hub, for dispatchers' maps.

use protocol::frame::DriverFrame;
use protocol::update::{DriverBody, DriverUpdate, LiveDriver, Taken};
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
        let live = LiveDriver::begin(update)?;
        let dot = Dot::new(live.view.position.as_ref(), policy, now);
        Some(DriverEntry { live, touched: now, armed: None, dot, kept: Kept::default() })
    }

    /// The clock was set.
    pub fn handle_clock_set(&mut self, by_ms: i64) {
        let armed = self.armed.iter_mut();
        armed.chain([&mut self.touched]).for_each(|time| time.0 = time.0.saturating_add(by_ms));
        self.live.view.position.iter_mut().for_each(|position| position.handle_clock_set(by_ms));
        self.dot.handle_clock_set(by_ms);
        self.kept.clear();
    }

    /// None: dropped by the rule of readers.
    pub fn handle_update(&mut self, update: &DriverUpdate, policy: &DeliveryPolicy, now: Time) -> Option<News> {
        let view = &self.live.view;
        let before = (view.silent, view.battery_percent, view.phone_state);
        let has_others =
            matches!(&update.body, DriverBody::Keyframe { view: new } if new.deliveries != view.deliveries);
        if self.live.handle_update(update) == Taken::Dropped {
            return None;
        }
        let view = &self.live.view;
        let is_news = has_others || before != (view.silent, view.battery_percent, view.phone_state);
        let news = if is_news { News::MAP } else { News::NONE };
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
