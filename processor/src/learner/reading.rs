//! What reaches the learner: entries of all partitions of two topics, maps, and the time. And its thread, which waits for
//! them in one place.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use backends::log::{DecodedUpdates, LogError, ReadLimit, StoredEntry, Topic, read_again};
use daemon::{Clock, StepSeen};
use maps::Graph;
use protocol::envelope;
use protocol::record::BlobHash;
use protocol::update::BreadcrumbBatch;
use protocol::{Offset, PartitionId, Time};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::core::{Learner, Output};
use super::{LearnerMetrics, Role};

/// All that can wake the learner.
pub enum Input {
    Trail { partition: PartitionId, entries: Vec<StoredEntry> },
    Updates { partition: PartitionId, entries: Vec<StoredEntry> },
    Map { hash: BlobHash, graph: Arc<Graph> },
    Time,
}

/// The learner's thread, until nobody sends any more; then it keeps what it knows.
pub fn run(
    mut learner: Learner,
    mut inputs: mpsc::Receiver<Input>,
    outputs: &mpsc::Sender<Output>,
    decoded: &DecodedUpdates,
    metrics: &LearnerMetrics,
    clock: Clock,
) {
    let mut step_seen = StepSeen::since(clock.reading());
    while let Some(input) = inputs.blocking_recv() {
        let reading = clock.reading();
        if let Some(by_ms) = step_seen.look(reading) {
            learner.handle_clock_set(by_ms);
        }
        let now = Time(reading.now_ms);
        match input {
            Input::Trail { partition, entries } => handle_trail(&mut learner, partition, &entries, now, metrics),
            Input::Updates { partition, entries } => {
                handle_updates(&mut learner, partition, &entries, decoded, metrics)
            }
            Input::Map { hash, graph } => learner.handle_map(hash, &graph, now),
            Input::Time => {}
        }
        if learner.poll_timeout() <= now {
            learner.handle_timeout(now);
            learner.handle_kept(Time(clock.kept_ms()));
        }
        metrics.count(&mut learner);
        // What does not fit waits in the learner, where newer tables take the place of older ones.
        while let Ok(place) = outputs.try_reserve() {
            let Some(output) = learner.poll_output() else { break };
            place.send(output);
        }
        if outputs.is_closed() {
            return;
        }
    }
    learner.keep_state(Time(clock.now_ms()));
    while let Some(output) = learner.poll_output() {
        if outputs.blocking_send(output).is_err() {
            return;
        }
    }
}

fn handle_trail(
    learner: &mut Learner,
    partition: PartitionId,
    entries: &[StoredEntry],
    now: Time,
    metrics: &LearnerMetrics,
) {
    for entry in entries {
        match envelope::decode::<BreadcrumbBatch>(&entry.value) {
            Ok(batch) => learner.handle_trail(partition, entry.offset, &batch, now),
            Err(error) => {
                error!(%error, topic = Topic::Trail.name(), offset = entry.offset.0, "an entry cannot be read");
                metrics.entries_damaged.increment(1);
                learner.skip_trail(partition, entry.offset);
            }
        }
    }
    if let Some(last) = entries.last() {
        learner.handle_lag(now.millis_since(last.appended), now);
    }
}

fn handle_updates(
    learner: &mut Learner,
    partition: PartitionId,
    entries: &[StoredEntry],
    decoded: &DecodedUpdates,
    metrics: &LearnerMetrics,
) {
    for entry in entries {
        match decoded.updates(partition, entry) {
            Ok(batch) => learner.handle_updates(partition, entry.offset, &batch),
            Err(error) => {
                error!(%error, topic = Topic::Updates.name(), offset = entry.offset.0, "an entry cannot be read");
                metrics.entries_damaged.increment(1);
                learner.skip_updates(partition, entry.offset);
            }
        }
    }
}

/// Reads for the learner until told to stop.
pub struct Readers {
    pub role: Role,
    /// The map of what is known, and where to read on.
    pub known: (Option<BlobHash>, BTreeMap<PartitionId, Offset>, BTreeMap<PartitionId, Offset>),
    pub inputs: mpsc::Sender<Input>,
    pub stop: CancellationToken,
}

impl Readers {
    pub async fn run(&mut self) -> anyhow::Result<()> {
        let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
        let mut in_use = self.role.map_in_use.clone();
        if let Some(known) = self.known.0
            && let Err(error) = self.open(known).await
        {
            // What is known is of this map: without it nothing can go over to another.
            warn!(error = format!("{error:#}"), map = %known, "what was learned of this map is lost with it");
        }
        let mut opened = None;
        let mut next_ms = self.role.clock.monotonic_ms();
        loop {
            let newest = *in_use.borrow_and_update();
            if let Some(hash) = newest.filter(|_| newest != opened) {
                self.open(hash).await.context("open the map in use")?;
                opened = newest;
                if tasks.is_empty() {
                    // Before there is a map there is nothing to learn from.
                    self.read_all(&mut tasks).await?;
                }
            }
            tokio::select! {
                () = self.stop.cancelled() => return Ok(()),
                changed = in_use.changed() => if changed.is_err() { self.stop.cancelled().await },
                Some(ended) = tasks.join_next() => ended.context("read for the learner")??,
                () = self.role.clock.sleep_until_monotonic_ms(next_ms) => {
                    next_ms = self.role.clock.monotonic_ms() + TIME_MS;
                    if self.inputs.send(Input::Time).await.is_err() {
                        return std::future::pending().await; // the teller says why
                    }
                }
            }
        }
    }

    async fn open(&self, hash: BlobHash) -> anyhow::Result<()> {
        let map = self.role.bodies.load(hash).await?;
        let input = Input::Map { hash, graph: map.graph.clone() };
        if self.inputs.send(input).await.is_err() {
            return std::future::pending().await; // the teller says why
        }
        Ok(())
    }

    async fn read_all(&self, tasks: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
        let (_, trail, updates) = &self.known;
        for (topic, known) in [(Topic::Trail, trail), (Topic::Updates, updates)] {
            for partition in (0..self.role.log.partition_count(topic)).map(PartitionId) {
                let from = match known.get(&partition) {
                    Some(next) => *next,
                    None => self.beginning(topic, partition).await?,
                };
                tasks.spawn(read(self.role.clone(), topic, partition, from, self.inputs.clone(), self.stop.clone()));
            }
        }
        Ok(())
    }

    /// Who knows nothing yet begins a little before now.
    async fn beginning(&self, topic: Topic, partition: PartitionId) -> anyhow::Result<Offset> {
        let at = Time(self.role.clock.now_ms()) - BEGIN_BEFORE;
        self.role.log.offset_at(topic, partition, at).await.context("look for where to begin")
    }
}

async fn read(
    role: Role,
    topic: Topic,
    partition: PartitionId,
    from: Offset,
    inputs: mpsc::Sender<Input>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut reader = role.log.reader(topic, partition, from).await.context("read")?;
    loop {
        let reading = read_again(&mut *reader, "read for the learner", ReadLimit::default(), READ_WAIT, &stop);
        let entries = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            entries = reading => entries,
        };
        let entries = match entries {
            Err(LogError::Gone { first, .. }) => {
                reader.seek(Offset(first));
                continue;
            }
            Err(_) if stop.is_cancelled() => return Ok(()),
            entries => entries.context("read")?,
        };
        if entries.is_empty() {
            continue;
        }
        let input = if topic == Topic::Trail {
            Input::Trail { partition, entries }
        } else {
            Input::Updates { partition, entries }
        };
        if inputs.send(input).await.is_err() {
            return std::future::pending().await; // the teller says why
        }
    }
}

const TIME_MS: i64 = 1_000;
const READ_WAIT: Duration = Duration::from_millis(500);
const BEGIN_BEFORE: Duration = Duration::from_secs(3_600);
