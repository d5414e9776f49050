//! The one loop by which a process works on its share of a topic's partitions.
//!
//! A partition that is revoked is released once the work on it has ended; the work on one that is lost is told to end
//! and nobody waits for it, unless the partition comes back: then the new work begins after the old has ended. Where the
//! group itself is out of reach everything counts as lost, and it is joined again.
//!
//! Stopping: all work is told to end and waited for, then the group is left.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::Context;
use daemon::Backoff;
use protocol::{Offset, PartitionId};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Commits, Log, LogError, Membership, ShareChange, Topic};

/// A partition, as whoever works on it is handed it.
pub struct Holding {
    pub partition: PartitionId,
    /// Cancelled when the work is to end.
    pub stop: CancellationToken,
    commits: Arc<dyn Commits>,
}

impl Holding {
    /// Remembers the next offset that the group wants. `NotHeld` once the partition is another's.
    pub async fn commit(&self, next: Offset) -> Result<(), LogError> {
        self.commits.commit(self.partition, next).await
    }
}

/// Works on this process's share of a topic's partitions until `stop`: `work` is called for each and ends when its
/// holding is stopped. Work that fails ends it all.
pub async fn share<F>(
    log: &dyn Log,
    group: &str,
    topic: Topic,
    stop: &CancellationToken,
    work: impl FnMut(Holding) -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    share_noting(log, group, topic, stop, |_| (), work).await
}

/// As `share`; `note` is told of every change: what is this process's now, or why nobody can say.
pub async fn share_noting<F>(
    log: &dyn Log,
    group: &str,
    topic: Topic,
    stop: &CancellationToken,
    mut note: impl FnMut(Result<&BTreeSet<PartitionId>, &LogError>),
    work: impl FnMut(Holding) -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let mut workers = Workers::new(work);
    let mut failures = 0;
    let outcome = loop {
        let lost = match log.join(group, topic).await {
            Err(error) => error,
            Ok(membership) => match workers.follow(membership, stop, &mut note).await {
                Ok(()) => break Ok(()),
                Err(Ended::ByWork(error)) => break Err(error),
                Err(Ended::ByGroup { error, had_shared }) => {
                    failures = if had_shared { 0 } else { failures };
                    error
                }
            },
        };
        if matches!(lost, LogError::Closed) && stop.is_cancelled() {
            break Ok(());
        }
        if !lost.is_transient() {
            break Err(lost.into());
        }
        warn!(error = %lost, group, topic = topic.name(), "the group cannot be reached, joining again");
        note(Err(&lost));
        workers.lose_all().await;
        tokio::select! {
            () = stop.cancelled() => break Ok(()),
            () = tokio::time::sleep(Backoff::default().delay(failures)) => failures = failures.saturating_add(1),
        }
    };
    workers.lose_all().await;
    outcome.with_context(|| format!("share {} as {group}", topic.name()))
}

/// Why a membership ended before it was to.
enum Ended {
    /// `had_shared`: whether the group had given anything before.
    ByGroup {
        error: LogError,
        had_shared: bool,
    },
    ByWork(anyhow::Error),
}

struct Workers<W> {
    work: W,
    tasks: JoinSet<(PartitionId, anyhow::Result<()>)>,
    running: BTreeMap<PartitionId, CancellationToken>,
    owned: BTreeSet<PartitionId>,
    /// To be released once the work on them has ended.
    revoked: BTreeSet<PartitionId>,
    /// Ours again, while earlier work on them has not ended.
    waiting: BTreeSet<PartitionId>,
}

/// All that can happen.
enum Wake {
    Stop,
    Changed(Result<ShareChange, LogError>),
    Ended(Result<(PartitionId, anyhow::Result<()>), JoinError>),
}

impl<W, F> Workers<W>
where
    W: FnMut(Holding) -> F,
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    fn new(work: W) -> Self {
        Workers {
            work,
            tasks: JoinSet::new(),
            running: BTreeMap::new(),
            owned: BTreeSet::new(),
            revoked: BTreeSet::new(),
            waiting: BTreeSet::new(),
        }
    }

    /// Until the stop, or until the membership or some work fails.
    async fn follow(
        &mut self,
        mut membership: Box<dyn Membership>,
        stop: &CancellationToken,
        note: &mut impl FnMut(Result<&BTreeSet<PartitionId>, &LogError>),
    ) -> Result<(), Ended> {
        let mut had_shared = false;
        let commits = membership.commits();
        let outcome = loop {
            let wake = tokio::select! {
                () = stop.cancelled() => Wake::Stop,
                changed = membership.changed() => Wake::Changed(changed),
                Some(ended) = self.tasks.join_next() => Wake::Ended(ended),
            };
            let released = match wake {
                Wake::Stop => break Ok(()),
                Wake::Changed(Ok(change)) => {
                    had_shared = true;
                    self.handle_change(change, &commits, note)
                }
                Wake::Changed(Err(error)) => return Err(Ended::ByGroup { error, had_shared }),
                Wake::Ended(ended) => match self.handle_ended(ended, &commits) {
                    Ok(released) => released,
                    Err(error) => break Err(error),
                },
            };
            if !released.is_empty()
                && let Err(error) = membership.released(&released).await
            {
                return Err(Ended::ByGroup { error, had_shared });
            }
        };
        // The first failure is the one to be told of.
        let outcome = outcome.and(self.end_all().await);
        let left = membership.leave().await;
        outcome.map_err(Ended::ByWork)?;
        left.map_err(|error| Ended::ByGroup { error, had_shared })
    }

    /// What can be released at once.
    fn handle_change(
        &mut self,
        change: ShareChange,
        commits: &Arc<dyn Commits>,
        note: &mut impl FnMut(Result<&BTreeSet<PartitionId>, &LogError>),
    ) -> BTreeSet<PartitionId> {
        debug!(?change, "the share of a group changes");
        let mut released = BTreeSet::new();
        match change {
            ShareChange::Given(given) => {
                self.owned.extend(&given);
                note(Ok(&self.owned));
                for partition in given {
                    if self.running.contains_key(&partition) {
                        self.waiting.insert(partition);
                    } else {
                        self.begin(partition, commits);
                    }
                }
            }
            ShareChange::Revoked(revoked) => {
                self.owned.retain(|partition| !revoked.contains(partition));
                note(Ok(&self.owned));
                for partition in revoked {
                    self.waiting.remove(&partition);
                    match self.running.get(&partition) {
                        Some(stop) => {
                            stop.cancel();
                            self.revoked.insert(partition);
                        }
                        None => drop(released.insert(partition)),
                    }
                }
            }
            ShareChange::Lost(lost) => {
                self.owned.retain(|partition| !lost.contains(partition));
                note(Ok(&self.owned));
                for partition in lost {
                    self.waiting.remove(&partition);
                    self.revoked.remove(&partition);
                    if let Some(stop) = self.running.get(&partition) {
                        stop.cancel();
                    }
                }
            }
        }
        released
    }

    /// What can be released now.
    fn handle_ended(
        &mut self,
        ended: Result<(PartitionId, anyhow::Result<()>), JoinError>,
        commits: &Arc<dyn Commits>,
    ) -> anyhow::Result<BTreeSet<PartitionId>> {
        let (partition, outcome) = ended.context("work on a partition died")?;
        self.running.remove(&partition);
        outcome?;
        if self.waiting.remove(&partition) {
            self.begin(partition, commits);
        }
        Ok(self.revoked.take(&partition).into_iter().collect())
    }

    fn begin(&mut self, partition: PartitionId, commits: &Arc<dyn Commits>) {
        let stop = CancellationToken::new();
        self.running.insert(partition, stop.clone());
        let work = (self.work)(Holding { partition, stop, commits: commits.clone() });
        self.tasks.spawn(async move { (partition, work.await) });
    }

    /// Tells all work to end and waits for it; the first failure.
    async fn end_all(&mut self) -> anyhow::Result<()> {
        self.running.values().for_each(CancellationToken::cancel);
        let mut outcome = Ok(());
        while let Some(ended) = self.tasks.join_next().await {
            let ended = ended.context("work on a partition died").and_then(|(_, ended)| ended);
            outcome = outcome.and(ended);
        }
        self.running.clear();
        self.owned.clear();
        self.revoked.clear();
        self.waiting.clear();
        outcome
    }

    /// As `end_all`, where what is done to the partitions counts no more.
    async fn lose_all(&mut self) {
        if let Err(error) = self.end_all().await {
            warn!(error = format!("{error:#}"), "work on a lost partition did not end well");
        }
    }
}
