//! The stream of a dispatcher's map: one watch in every hub of this gateway, joined to one stream that tells news at
//! most every so often. What changes in between is told once, with its newest state.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use protocol::{DeliveryPolicy, TenantId};
use serde::Deserialize;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{BadMessage, FrameStream, Step};
use crate::hub::{CloseReason, Flow, MapFrame, MapSnapshot, SharedFrame, Viewport, frames};
use crate::shards::{Shards, Watch};

pub(crate) struct MapStream {
    shards: Arc<Shards>,
    takes: u64,
    watches: Vec<Watch>,
    waker: Arc<Notify>,
    queue: VecDeque<SharedFrame>,
    closing: Option<CloseReason>,
    every: Duration,
    not_before: Instant,
}

/// What a dispatcher may say.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MapMessage {
    /// `[west, south, east, north]`, or null for everything.
    viewport: Option<Viewport>,
}

impl MapStream {
    /// With what the hubs show of the tenant; degraded where one of them is not whole, or not here. None while the
    /// gateway stops, or before it owns anything.
    pub fn open(
        shards: &Arc<Shards>,
        tenant: TenantId,
        policy: DeliveryPolicy,
        viewport: Option<Viewport>,
        every: Duration,
    ) -> Option<(Self, MapSnapshot)> {
        let takes = shards.takes();
        let waker = Arc::new(Notify::new());
        let mut snapshot = MapSnapshot { server_time: shards.now(), ..MapSnapshot::default() };
        let mut watches = Vec::new();
        for partition in shards.partitions() {
            let watch =
                shards.watch(partition, waker.clone(), |hub, now| hub.handle_map_watch(tenant, policy, viewport, now));
            let Some((watch, part)) = watch else {
                snapshot.degraded = true;
                continue;
            };
            watches.push(watch);
            snapshot.degraded |= part.degraded;
            snapshot.drivers.extend(part.drivers);
            snapshot.deliveries.extend(part.deliveries);
        }
        if watches.is_empty() {
            return None;
        }
        snapshot.drivers.sort_by_key(|frame| frame.driver);
        snapshot.deliveries.sort_by_key(|frame| frame.delivery);
        let stream = MapStream {
            shards: shards.clone(),
            takes,
            watches,
            waker,
            queue: VecDeque::new(),
            closing: None,
            every,
            not_before: Instant::now(),
        };
        Some((stream, snapshot))
    }

    /// The first frame.
    pub fn begin(&mut self, snapshot: MapSnapshot) {
        self.queue.push_front(frames::shared_map(&MapFrame::Snapshot(snapshot)));
    }

    /// Fills the queue from all hubs, once. Answers whether there may be more.
    fn poll(&mut self) -> bool {
        let mut polled = Vec::new();
        let mut is_more = false;
        if self.shards.takes() != self.takes {
            self.closing = Some(CloseReason::Moved);
        }
        for watch in &self.watches {
            polled.clear();
            match watch.poll_frames(&mut polled) {
                Flow::Quiet => {}
                Flow::More => is_more = true,
                Flow::Close(reason) => self.closing = Some(reason),
            }
            self.queue.extend(polled.drain(..));
        }
        is_more
    }
}

impl FrameStream for MapStream {
    async fn next_step(&mut self) -> Step {
        loop {
            if let Some(frame) = self.queue.pop_front() {
                return Step::Frame(frame);
            }
            if let Some(reason) = self.closing {
                return Step::Close(reason);
            }
            tokio::time::sleep_until(self.not_before).await;
            if !self.poll() && self.queue.is_empty() && self.closing.is_none() {
                self.waker.notified().await;
                continue;
            }
            self.not_before = Instant::now() + self.every;
        }
    }

    fn handle_message(&mut self, text: &str) -> Result<(), BadMessage> {
        let message: MapMessage = serde_json::from_str(text)
            .map_err(|_| BadMessage("only {\"viewport\":[west,south,east,north]} is known"))?;
        for watch in &self.watches {
            watch.with(|hub, id, _| hub.handle_viewport(id, message.viewport));
        }
        Ok(())
    }
}
