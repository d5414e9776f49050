//! The stream of a dispatcher's map: one watch in every hub of this gateway, joined to one stream that tells news at
//! most every so often. What changes in between is told once, with its newest state.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use protocol::{DeliveryKey, DeliveryPolicy, DriverKey, TenantId, TrackerKey};
use serde::Deserialize;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{BadMessage, FrameStream, Step};
use crate::hub::{CloseReason, Flow, MapFrame, MapSnapshot, SharedFrame, Viewport, frames};
use crate::shards::{Shards, Watch};

pub(crate) struct MapStream {
    shards: Arc<Shards>,
    tenant: TenantId,
    takes: u64,
    watches: Vec<Watch>,
    waker: Arc<Notify>,
    queue: VecDeque<SharedFrame>,
    closing: Option<CloseReason>,
    /// What was shown first came from the stores, because a hub was not whole: once all are, everything is shown anew.
    awaits_whole: bool,
    /// Of that, what no hub of this gateway knows.
    elsewhere: MapSnapshot,
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
        let mut awaits_whole = false;
        for partition in shards.partitions() {
            let watch =
                shards.watch(partition, waker.clone(), |hub, now| hub.handle_map_watch(tenant, policy, viewport, now));
            let Some((watch, part)) = watch else {
                snapshot.degraded = true;
                continue;
            };
            watches.push(watch);
            awaits_whole |= part.degraded;
            snapshot.extend(part);
        }
        if watches.is_empty() {
            return None;
        }
        snapshot.sort();
        let stream = MapStream {
            shards: shards.clone(),
            tenant,
            takes,
            watches,
            waker,
            queue: VecDeque::new(),
            closing: None,
            awaits_whole,
            elsewhere: MapSnapshot::default(),
            every,
            not_before: Instant::now(),
        };
        Some((stream, snapshot))
    }

    /// The first frame.
    pub fn begin(&mut self, snapshot: MapSnapshot) {
        if self.awaits_whole {
            self.elsewhere = self.part_of_others(&snapshot);
        }
        self.queue.push_front(frames::shared_map(&MapFrame::Snapshot(snapshot)));
    }

    fn part_of_others(&self, snapshot: &MapSnapshot) -> MapSnapshot {
        let watched: Vec<_> = self.watches.iter().map(Watch::partition).collect();
        let is_other = |key: TrackerKey| !watched.contains(&self.shards.partition_of(key));
        let mut part = snapshot.clone();
        part.drivers.retain(|frame| is_other(DriverKey { tenant: self.tenant, driver: frame.driver }.into()));
        part.deliveries.retain(|frame| is_other(DeliveryKey { tenant: self.tenant, delivery: frame.delivery }.into()));
        part.degraded = watched.len() < self.shards.partitions().count();
        part
    }

    /// Shows everything anew once all hubs are whole: who is not among it was shown from the stores and is gone.
    fn renew_when_whole(&mut self) {
        let is_whole = |watch: &Watch| watch.with(|hub, _, _| hub.is_whole()) == Some(true);
        if !self.awaits_whole || !self.watches.iter().all(is_whole) {
            return;
        }
        self.awaits_whole = false;
        let mut snapshot = std::mem::take(&mut self.elsewhere);
        for watch in &self.watches {
            if let Some(part) = watch.with(|hub, id, now| hub.handle_map_renew(id, now)) {
                snapshot.extend(part);
            }
        }
        snapshot.sort();
        snapshot.server_time = self.shards.now();
        self.queue.push_back(frames::shared_map(&MapFrame::Snapshot(snapshot)));
    }

    /// Fills the queue from all hubs, once. Answers whether there may be more.
    fn poll(&mut self) -> bool {
        let mut polled = Vec::new();
        let mut is_more = false;
        if self.shards.takes() != self.takes {
            self.closing = Some(CloseReason::Moved);
        }
        self.renew_when_whole();
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

#[cfg(test)]
mod tests {
    use daemon::Clock;
    use protocol::frame::DriverFrame;
    use protocol::record::Vehicle;
    use protocol::update::DriverView;
    use protocol::{DriverId, PartitionId};

    use super::*;
    use crate::hub::HubConfig;

    #[tokio::test]
    async fn a_map_opened_before_the_hubs_were_whole_is_shown_all_anew_and_keeps_no_ghost() {
        let shards = Arc::new(Shards::new(2, HubConfig::default(), Clock::system()));
        shards.take(PartitionId(0));
        shards.take(PartitionId(1));
        let (mut stream, snapshot) = open(&shards);
        assert!(snapshot.degraded);
        stream.begin(MapSnapshot { drivers: vec![ghost(9)], ..snapshot });
        assert_eq!(drivers_of(stream.next_step().await), (vec!["9".to_string()], true));

        shards.with(PartitionId(0), |hub, _| hub.handle_whole());
        assert!(!stream.poll() && stream.queue.is_empty(), "the other is not whole yet");
        shards.with(PartitionId(1), |hub, _| hub.handle_whole());

        assert_eq!(drivers_of(stream.next_step().await), (Vec::new(), false));
        assert!(!stream.poll() && stream.queue.is_empty(), "once is enough");
    }

    #[tokio::test]
    async fn who_belongs_to_another_gateway_stays_as_the_stores_knew_him() {
        let shards = Arc::new(Shards::new(2, HubConfig::default(), Clock::system()));
        let drivers: Vec<u32> = (1..=8).collect();
        let is_ours = |driver: &u32| partition_of_driver(&shards, *driver) == PartitionId(0);
        let others: Vec<String> = drivers.iter().filter(|driver| !is_ours(driver)).map(u32::to_string).collect();
        shards.take(PartitionId(0));
        let (mut stream, snapshot) = open(&shards);
        stream.begin(MapSnapshot { drivers: drivers.iter().map(|driver| ghost(*driver)).collect(), ..snapshot });
        assert_eq!(drivers_of(stream.next_step().await).0.len(), 8);

        shards.with(PartitionId(0), |hub, _| hub.handle_whole());

        assert!(!others.is_empty() && others.len() < 8);
        assert_eq!(drivers_of(stream.next_step().await), (others, true));
    }

    fn open(shards: &Arc<Shards>) -> (MapStream, MapSnapshot) {
        MapStream::open(shards, TenantId(7), DeliveryPolicy::default(), None, Duration::ZERO).unwrap()
    }

    fn partition_of_driver(shards: &Shards, driver: u32) -> PartitionId {
        shards.partition_of(DriverKey { tenant: TenantId(7), driver: DriverId(driver) })
    }

    fn ghost(driver: u32) -> DriverFrame {
        let view = DriverView {
            key: DriverKey { tenant: TenantId(7), driver: DriverId(driver) },
            lead: None,
            position: None,
            phone_state: None,
            battery_percent: None,
            deliveries: Vec::new(),
            silent: None,
            vehicle: Vehicle::Car,
        };
        DriverFrame::of(&view, &DeliveryPolicy::default(), protocol::Time(0))
    }

    fn drivers_of(step: Step) -> (Vec<String>, bool) {
        let Step::Frame(frame) = step else { panic!("{step:?}") };
        let json: serde_json::Value = serde_json::from_slice(&frame.json).unwrap();
        assert_eq!(json["type"], "snapshot");
        let ids = json["drivers"].as_array().unwrap().iter();
        (ids.map(|driver| driver["driver"].as_str().unwrap().to_string()).collect(), json["degraded"] == true)
    }
}
