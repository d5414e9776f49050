//! The shipper: one per edge. Merges what the threads gathered, appends it to the log, two appends at a time, and says
//! what is durable. While two are under way the next shipment gathers, so a slower log gets larger entries.
//!
//! When the log is away the shipper goes on taking parcels and keeps them in the spool, oldest first in, first out; no
//! parcel is settled by that. When the log is back, the spool is emptied into it before anything newer.
//!
//! **Invariant:** parcels of one thread reach the log in order and are settled in order.
//! Stopping: it ends when the threads have, after what is left is in the log or, if that is away, in the spool.

pub mod shipment;
pub mod spool;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use backends::log::{Driven, Log, LogError, Pipeline, PipelineConfig};
use daemon::admin::{Health, Readiness};
use daemon::{Backoff, Clock};
use protocol::{EdgeId, Time};
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use crate::intake::marks::Marks;
use crate::intake::{Parcel, ParcelOutcome};
use crate::metrics::ShipMetrics;
use crate::udp::inbox::{Notice, ThreadPort};
use shipment::{Origin, Shipment};
use spool::{FrameNumber, Spool, SpoolError};

/// Whether the log can be reached, for the doors that answer at once. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct LogState(Arc<AtomicBool>);

impl LogState {
    pub fn is_away(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the shipper is made of.
pub struct ShipperParts {
    pub edge: EdgeId,
    /// Of this run of the process.
    pub run: u64,
    pub log: Arc<dyn Log>,
    pub spool: Spool,
    pub threads: Vec<ThreadPort>,
    pub clock: Clock,
    pub metrics: ShipMetrics,
    pub readiness: Readiness,
    pub state: LogState,
}

pub struct Shipper {
    parts: ShipperParts,
    marks: Marks,
    waiting: VecDeque<Parcel>,
    under_way: Pipeline<UnderWay>,
    /// Origins of what lies in the spool from this run, to be told should it make way.
    spooled: VecDeque<(FrameNumber, Vec<Origin>)>,
    failures: u32,
}

/// A shipment under way to the log.
struct UnderWay {
    shipment: Shipment,
    /// In the spool too.
    frame: Option<FrameNumber>,
    began: Instant,
}

/// All that can wake the shipper.
enum Wake {
    Parcel(Parcel),
    ThreadsEnded,
    Driven(Result<Driven<UnderWay>, LogError>),
    /// While stopping: whether the log has been waited for long enough.
    Look,
    /// The append has been under way for so long that the log counts as away.
    Slow,
}

impl Shipper {
    pub fn new(parts: ShipperParts) -> Self {
        let now = Time(parts.clock.now_ms());
        Shipper {
            marks: Marks::new(parts.threads.len(), now),
            // Who stops does not wait for what is under way: it is in the spool.
            under_way: Pipeline::new(&*parts.log, PIPELINE, Default::default()),
            parts,
            waiting: VecDeque::new(),
            spooled: VecDeque::new(),
            failures: 0,
        }
    }

    pub async fn run(mut self, mut parcels: mpsc::Receiver<Parcel>) -> anyhow::Result<()> {
        self.parts.readiness.set(PART, Health::Ready);
        let mut has_ended = false;
        let mut leave_at = None;
        loop {
            self.begin_next().await;
            if has_ended {
                if self.under_way.is_empty() && self.waiting.is_empty() {
                    break;
                }
                let at = *leave_at.get_or_insert_with(|| Instant::now() + STOP_GRACE);
                if self.is_away() && Instant::now() >= at {
                    break;
                }
            }
            match self.wake(&mut parcels, has_ended).await {
                Wake::Parcel(parcel) => {
                    self.waiting.push_back(parcel);
                    while let Ok(parcel) = parcels.try_recv() {
                        self.waiting.push_back(parcel);
                    }
                    if self.is_away() {
                        self.spool_waiting().await;
                    }
                }
                Wake::ThreadsEnded => has_ended = true,
                Wake::Driven(Ok(Driven::Durable(shipped))) => self.handle_durable(shipped).await,
                Wake::Driven(Ok(Driven::Failed(error))) => self.handle_failure(&error).await,
                Wake::Driven(Err(error)) => return Err(error).context("append records"),
                Wake::Look => {}
                Wake::Slow => self.go_away("an append takes too long").await,
            }
        }
        if let Err(error) = self.parts.spool.sync() {
            warn!(%error, "the spool was not written through");
        }
        Ok(())
    }

    fn is_away(&self) -> bool {
        self.parts.state.is_away()
    }

    /// Cancellation safe: what is under way stays so.
    async fn wake(&mut self, parcels: &mut mpsc::Receiver<Parcel>, has_ended: bool) -> Wake {
        let is_away = self.is_away();
        let oldest = self.under_way.tags().next().map(|under_way| under_way.began);
        let slow_at = oldest.unwrap_or_else(Instant::now) + AWAY_AFTER;
        tokio::select! {
            driven = self.under_way.drive() => Wake::Driven(driven),
            parcel = parcels.recv(), if !has_ended => parcel.map_or(Wake::ThreadsEnded, Wake::Parcel),
            () = tokio::time::sleep_until(slow_at.into()), if oldest.is_some() && !is_away => Wake::Slow,
            // Only so that a stop does not wait for a log that is away.
            () = tokio::time::sleep(STOP_LOOK), if has_ended => Wake::Look,
        }
    }

    /// Begins as many appends as may be under way: what is in the spool first.
    async fn begin_next(&mut self) {
        while self.under_way.has_room() {
            if !self.parts.spool.is_empty() {
                // What is under way is its oldest, or older: the next follows when that is durable.
                if !self.under_way.is_empty() {
                    return;
                }
                let Some((frame, body)) = self.spool_front().await else { continue };
                match Shipment::from_bytes(&body) {
                    Some(shipment) => self.begin(shipment, Some(frame)).await,
                    None => self.drop_frame(frame).await,
                }
                continue;
            }
            if self.waiting.is_empty() {
                return;
            }
            let shipment = self.pack_waiting();
            if shipment.entries.is_empty() {
                self.settle_in_turn(shipment.origins);
            } else {
                self.begin(shipment, None).await;
            }
        }
    }

    /// Parcels without records need no log, but settling them settles all before them: they go with what is under way.
    fn settle_in_turn(&mut self, origins: Vec<Origin>) {
        match self.under_way.tags_mut().last() {
            Some(newest) => newest.shipment.origins.extend(origins),
            None => self.settle(&origins, ParcelOutcome::Durable),
        }
    }

    async fn begin(&mut self, shipment: Shipment, frame: Option<FrameNumber>) {
        let appends = shipment.to_appends();
        self.under_way.push(appends, UnderWay { shipment, frame, began: Instant::now() }).await;
    }

    /// As many parcels as one shipment takes, at least one; their memory goes back to their threads.
    fn pack_waiting(&mut self) -> Shipment {
        let mut bytes = 0;
        let count = self.waiting.iter().take_while(|parcel| {
            let before = bytes;
            bytes += parcel.len_bytes();
            before == 0 || bytes <= SHIPMENT_BYTES_MAX
        });
        let count = count.count();
        let parcels: Vec<Parcel> = self.waiting.drain(..count).collect();
        let now = Time(self.parts.clock.now_ms());
        let shipment = Shipment::pack(self.parts.run, self.parts.edge, &parcels, &mut self.marks, now);
        for parcel in parcels {
            if let Some(thread) = self.parts.threads.get(parcel.thread) {
                thread.notify_quietly(Notice::Returned(parcel));
            }
        }
        shipment
    }

    async fn handle_durable(&mut self, shipped: UnderWay) {
        let UnderWay { shipment, frame, began } = shipped;
        let metrics = &self.parts.metrics;
        metrics.appends.increment(1);
        metrics.append_time.record(began.elapsed().as_secs_f64());
        metrics.entries.increment(shipment.entries.len() as u64);
        metrics.entry_bytes.increment(shipment.len_bytes() as u64);
        metrics.records.increment(shipment.record_count);
        self.failures = 0;
        if shipment.run == self.parts.run {
            self.settle(&shipment.origins, ParcelOutcome::Durable);
        }
        if let Some(frame) = frame {
            self.drop_frame(frame).await;
        }
        if self.is_away() && self.parts.spool.is_empty() {
            self.parts.state.0.store(false, Ordering::Relaxed);
            self.parts.metrics.log_away.set(0.0);
            self.parts.readiness.set(PART, Health::Ready);
            info!("the log is back, all that was kept is in it");
        }
    }

    async fn handle_failure(&mut self, error: &LogError) {
        self.parts.metrics.appends_failed.increment(1);
        self.failures = self.failures.saturating_add(1);
        if !self.is_away() && self.failures >= FAILURES_TOLERATED {
            self.go_away(&format!("appends fail: {error}")).await;
        }
    }

    /// From here on what comes is kept in the spool, beginning with what is under way.
    async fn go_away(&mut self, reason: &str) {
        if self.is_away() {
            return;
        }
        self.parts.state.0.store(true, Ordering::Relaxed);
        self.parts.metrics.log_away.set(1.0);
        self.parts.readiness.set(PART, Health::Degraded(format!("the log is away: {reason}")));
        warn!(reason, "the log is away, fixes are kept in the spool and not acknowledged");
        for at in 0..self.under_way.tags().count() {
            let unkept = self.under_way.tags().nth(at).filter(|under_way| under_way.frame.is_none());
            let Some(shipment) = unkept.map(|under_way| under_way.shipment.clone()) else { continue };
            let frame = self.spool(shipment).await;
            if let Some(under_way) = self.under_way.tags_mut().nth(at) {
                under_way.frame = frame;
            }
        }
        self.spool_waiting().await;
    }

    async fn spool_waiting(&mut self) {
        while !self.waiting.is_empty() {
            let shipment = self.pack_waiting();
            // Parcels without a record have nobody to tell, so nothing is lost by not keeping them.
            if !shipment.entries.is_empty() {
                self.spool(shipment).await;
            }
        }
    }

    async fn spool(&mut self, shipment: Shipment) -> Option<FrameNumber> {
        let origins = shipment.origins.clone();
        let pushed = touch_disk(|| self.parts.spool.push(&shipment.to_bytes()));
        let (frame, evicted) = match pushed {
            Ok(pushed) => pushed,
            Err(error) => {
                error!(%error, "the spool does not take fixes; their phones hold them still");
                (None, Vec::new())
            }
        };
        match frame {
            Some(frame) => {
                self.parts.metrics.spooled.increment(1);
                self.spooled.push_back((frame, origins));
            }
            None => {
                self.parts.metrics.spooled_lost.increment(1);
                self.settle(&origins, ParcelOutcome::Lost);
            }
        }
        for frame in evicted {
            self.handle_evicted(frame);
        }
        self.parts.metrics.spool_bytes.set(self.parts.spool.len_bytes() as f64);
        frame
    }

    fn handle_evicted(&mut self, frame: FrameNumber) {
        let is_under_way = self.under_way.tags().any(|under_way| under_way.frame == Some(frame));
        if is_under_way {
            return;
        }
        self.parts.metrics.spooled_lost.increment(1);
        if let Some(origins) = self.take_spooled(frame) {
            self.settle(&origins, ParcelOutcome::Lost);
        }
    }

    async fn spool_front(&mut self) -> Option<(FrameNumber, Vec<u8>)> {
        while !self.parts.spool.is_empty() {
            let front = touch_disk(|| self.parts.spool.front());
            match front {
                Ok(front) => return front,
                Err(error) => {
                    error!(%error, "a shipment in the spool cannot be read and is given up");
                    let frame = self.parts.spool.front_number()?;
                    self.parts.metrics.spooled_lost.increment(1);
                    if let Some(origins) = self.take_spooled(frame) {
                        self.settle(&origins, ParcelOutcome::Lost);
                    }
                    self.drop_frame(frame).await;
                }
            }
        }
        None
    }

    async fn drop_frame(&mut self, frame: FrameNumber) {
        self.take_spooled(frame);
        let removed: Result<(), SpoolError> = touch_disk(|| self.parts.spool.remove(frame));
        if let Err(error) = removed {
            error!(%error, "the spool cannot be written; after a restart a shipment may be sent twice");
        }
        self.parts.metrics.spool_bytes.set(self.parts.spool.len_bytes() as f64);
    }

    fn take_spooled(&mut self, frame: FrameNumber) -> Option<Vec<Origin>> {
        while self.spooled.front().is_some_and(|(number, _)| *number <= frame) {
            let (number, origins) = self.spooled.pop_front()?;
            if number == frame {
                return Some(origins);
            }
        }
        None
    }

    /// Only the last of each thread needs to be said: they are settled in order.
    fn settle(&self, origins: &[Origin], outcome: ParcelOutcome) {
        for (index, thread) in self.parts.threads.iter().enumerate() {
            let of_thread = origins.iter().filter(|origin| origin.thread as usize == index);
            if let Some(through) = of_thread.map(|origin| origin.sequence).max() {
                thread.notify(Notice::Settled { through, outcome });
            }
        }
    }
}

/// The spool's bytes go to the kernel's memory at once as a rule; where the disk makes us wait, other tasks go on.
fn touch_disk<T>(work: impl FnOnce() -> T) -> T {
    if tokio::runtime::Handle::current().runtime_flavor() == tokio::runtime::RuntimeFlavor::CurrentThread {
        return work();
    }
    tokio::task::block_in_place(work)
}

/// The name in `/readyz`.
const PART: &str = "edge log";
/// A shipment's entries stay below what an entry of the log may be, even if all go to one partition.
const SHIPMENT_BYTES_MAX: usize = 2 << 20;
/// As the longest linger: what is in memory only is little older than that.
const AWAY_AFTER: Duration = Duration::from_millis(500);
/// One failure may be a hiccup.
const FAILURES_TOLERATED: u32 = 2;
/// One that is being written, and one behind it, so that the log is never waited for between two.
const PIPELINE: PipelineConfig = PipelineConfig {
    what: "append records",
    under_way_max: 2,
    backoff: Backoff { first: Duration::from_millis(20), max: Duration::from_millis(1000) },
};
/// How long a stop waits for a log that is away.
const STOP_GRACE: Duration = Duration::from_secs(3);
const STOP_LOOK: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests;
