//! The learner: one per fleet. It reads where drivers truly were (the trail) and when they arrived (the updates), and
//! makes of it the speeds of the usual week, how today differs, and what the arrival times get wrong. What it makes is
//! put into the blob store and offered to every partition of the records; there the partition's owner takes it into use.
//!
//! ```text
//! trail, updates ── readers ──▶ [Input; bounded] ──▶ learner's thread ──▶ [Output; bounded] ──▶ teller ──▶ blob store,
//!                                                                                     records, live store, snapshots
//! ```
//!
//! **Who learns.** The member of the group `learner` that holds partition 0 of the trail; the others wait. It reads all
//! partitions of both topics without a group, from where its state says. A second one that has not heard yet that it is
//! not the one any more does no harm: two tables are offered, each good, and the newest is taken.
//!
//! **No peeking.** A table is made of what was read before it is offered, and counts from its record on: an arrival time
//! told at a moment rests on trips that had finished before, whoever folds the log again.
//!
//! **Trouble here delays nobody.** What stands behind may be away: then the newest tables wait, the old ones stay in use,
//! the dot goes on. A learner that fails says so, and begins again from its state.
//!
//! How soon: a fix is final after 30 to 40 s, read within a second; live factors are looked at every second and told when
//! 10 s have passed since the last and one has moved by more than 5 %. So a street that becomes slow is slow for all
//! within a minute of the first slow fixes.

mod bodies;
mod core;
mod counts;
mod drivers;
mod metrics;
mod reading;
mod state;
mod telling;
#[cfg(test)]
mod tests;
mod trips;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use backends::blob_store::BlobStore;
use backends::live_store::LiveStore;
use backends::log::{DecodedUpdates, Holding, Log, Topic, share};
use daemon::admin::{Health, Readiness};
use daemon::{Clock, Drain};
use protocol::record::BlobHash;
use protocol::{PartitionId, Time};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

pub use self::core::{Learner, Output};
pub use counts::{Counts, LeftOut};
pub use metrics::LearnerMetrics;
pub use state::{State, StateNote};

use crate::config::LearnerConfig;
use crate::shard::LocalBodies;
use reading::Readers;
use telling::{Teller, restore};

/// What the role works with.
#[derive(Clone)]
pub struct Role {
    pub config: LearnerConfig,
    pub log: Arc<dyn Log>,
    pub blobs: Arc<dyn BlobStore>,
    pub live_store: Arc<dyn LiveStore>,
    pub(crate) bodies: Arc<LocalBodies>,
    /// The map that this process's folds have in use.
    pub map_in_use: watch::Receiver<Option<BlobHash>>,
    /// The sinks read the same updates.
    pub decoded: DecodedUpdates,
    pub clock: Clock,
    pub readiness: Readiness,
    pub metrics: LearnerMetrics,
}

impl Role {
    /// Learns whenever it is this process's turn, until the drain stops.
    pub fn start(self, drain: &Drain) {
        let stop = drain.token().clone();
        drain.spawn("learner", async move {
            let work = |holding: Holding| {
                let role = self.clone();
                async move {
                    match holding.partition {
                        TURN => role.lead(holding.stop).await,
                        _ => holding.stop.cancelled().await,
                    }
                    Ok(())
                }
            };
            share(&*self.log, GROUP, Topic::Trail, &stop, work).await
        });
    }

    /// It is our turn, until told to stop.
    async fn lead(self, stop: CancellationToken) {
        info!("this process learns");
        self.metrics.is_learning.set(1.0);
        while !stop.is_cancelled() {
            let Err(error) = self.learn_while_well(&stop).await else { break };
            let error = format!("{error:#}");
            error!(error, "the learner begins again from what it kept");
            self.readiness.set(PART, Health::Degraded(format!("the learner failed and begins again: {error}")));
            tokio::select! {
                () = self.clock.sleep(AGAIN) => {}
                () = stop.cancelled() => {}
            }
        }
        self.metrics.is_learning.set(0.0);
        self.readiness.set(PART, Health::Ready);
    }

    /// It is called well again only once it has lasted for a while.
    async fn learn_while_well(&self, stop: &CancellationToken) -> anyhow::Result<()> {
        let mut learning = Box::pin(self.learn(stop));
        tokio::select! {
            outcome = &mut learning => outcome,
            () = self.clock.sleep(WELL_AFTER) => {
                self.readiness.set(PART, Health::Ready);
                learning.await
            }
        }
    }

    async fn learn(&self, stop: &CancellationToken) -> anyhow::Result<()> {
        let (state, kept) = restore(&*self.log, &*self.blobs, stop).await.context("find what was learned")?;
        let state = state.unwrap_or_else(|| State::new(Time(self.clock.now_ms())));
        let (inputs, inputs_rx) = mpsc::channel(INPUTS_MAX);
        let (outputs_tx, outputs) = mpsc::channel(OUTPUTS_MAX);
        let known = (state.map, state.trail.clone(), state.updates.clone());
        let (config, metrics, clock) = (self.config.clone(), self.metrics.clone(), self.clock);
        let decoded = self.decoded.clone();
        let thread = std::thread::Builder::new().name("learner".to_string()).spawn(move || {
            let learner = Learner::new(config, state, Time(clock.now_ms()));
            reading::run(learner, inputs_rx, &outputs_tx, &decoded, &metrics, clock);
        });
        let thread = thread.context("begin to learn")?;
        let ends = CancellationToken::new();
        let teller = Teller { role: self.clone(), kept, give_up: ends.clone() };
        let mut telling = tokio::spawn(teller.run(outputs));
        let mut readers = Readers { role: self.clone(), known, inputs, stop: stop.clone() };
        let outcome = tokio::select! {
            outcome = readers.run() => outcome,
            told = &mut telling => return told.context("tell what was learned")?.and(Err(LearnerDied.into())),
        };
        drop(readers); // so the thread ends, with a last state, and the teller after it
        let grace = tokio::time::timeout(STOP_GRACE, &mut telling).await;
        ends.cancel();
        match grace {
            Ok(told) => told.context("tell what was learned")??,
            Err(_) => warn!("what was learned last could not be kept in time"),
        }
        tokio::task::spawn_blocking(move || thread.join())
            .await
            .context("end the learner")?
            .map_err(|_| LearnerDied)?;
        outcome
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the learner died")]
struct LearnerDied;

const GROUP: &str = "learner";
/// Who holds this partition of the trail is the one.
const TURN: PartitionId = PartitionId(0);
const INPUTS_MAX: usize = 16;
const OUTPUTS_MAX: usize = 2;
const AGAIN: Duration = Duration::from_secs(10);
const WELL_AFTER: Duration = Duration::from_secs(60);
/// The name in `/readyz`, once it has failed.
const PART: &str = "learner";
const STOP_GRACE: Duration = Duration::from_secs(5);
