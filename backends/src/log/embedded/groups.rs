//! Groups within one process: members of a group share a topic's partitions evenly and keep what they have as far as
//! that goes. `sharing` is the rule; here is what waits and commits.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use protocol::{Offset, PartitionId};
use tokio::sync::{oneshot, watch};

use super::layout::{KEY_BYTES_MAX, commit_key};
use super::queue::Queue;
use super::sharing::{MemberId, Sharing};
use super::writer::Request;
use crate::log::{Commits, LogError, Membership, ShareChange, Topic};

/// All groups of one log.
#[derive(Clone)]
pub struct Groups {
    groups: Arc<Mutex<HashMap<GroupKey, Group>>>,
    queue: Arc<Queue>,
    /// A member that has not said within this time that its work on a revoked partition has stopped loses it.
    release_wait_max: Duration,
    closing: Arc<watch::Sender<bool>>,
}

type GroupKey = (String, Topic);

struct Group {
    sharing: Sharing,
    /// Wakes the members.
    changed: watch::Sender<()>,
}

impl Groups {
    pub fn new(queue: Arc<Queue>, release_wait_max: Duration) -> Self {
        Groups { groups: Arc::default(), queue, release_wait_max, closing: Arc::default() }
    }

    pub fn join(&self, group: &str, topic: Topic, partition_count: u32) -> Box<dyn Membership> {
        let key = (group.to_string(), topic);
        let mut groups = self.groups.lock();
        let group = groups.entry(key.clone()).or_insert_with(|| Group {
            sharing: Sharing::new(partition_count, self.release_wait_max),
            changed: watch::Sender::new(()),
        });
        let id = group.sharing.join();
        group.changed.send_replace(());
        let seen = group.changed.subscribe();
        let commits = Arc::new(MemberCommits { groups: self.clone(), key, id });
        Box::new(Member { commits, seen, closing: self.closing.subscribe() })
    }

    /// Members learn that the log is closed.
    pub fn close(&self) {
        self.closing.send_replace(true);
    }

    fn leave(&self, key: &GroupKey, id: MemberId) {
        let mut groups = self.groups.lock();
        let Some(group) = groups.get_mut(key) else { return };
        group.sharing.leave(id);
        group.changed.send_replace(());
        if group.sharing.is_empty() {
            groups.remove(key);
        }
    }

    /// What the member has not heard of yet; else when to ask again, if nothing else happens before.
    fn ask(&self, key: &GroupKey, id: MemberId) -> Result<ShareChange, Option<Instant>> {
        let mut groups = self.groups.lock();
        let Some(group) = groups.get_mut(key) else { return Err(None) };
        if group.sharing.take_overdue(Instant::now()) {
            group.changed.send_replace(());
        }
        group.sharing.poll_change(id, Instant::now()).ok_or_else(|| group.sharing.poll_timeout())
    }

    fn release(&self, key: &GroupKey, id: MemberId, partitions: &BTreeSet<PartitionId>) {
        let mut groups = self.groups.lock();
        let Some(group) = groups.get_mut(key) else { return };
        group.sharing.release(id, partitions);
        group.changed.send_replace(());
    }
}

struct Member {
    commits: Arc<MemberCommits>,
    seen: watch::Receiver<()>,
    closing: watch::Receiver<bool>,
}

#[async_trait]
impl Membership for Member {
    async fn changed(&mut self) -> Result<ShareChange, LogError> {
        loop {
            if *self.closing.borrow_and_update() {
                return Err(LogError::Closed);
            }
            self.seen.mark_unchanged();
            let again_at = match self.commits.groups.ask(&self.commits.key, self.commits.id) {
                Ok(change) => return Ok(change),
                Err(again_at) => again_at,
            };
            let overdue = async {
                match again_at {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = self.seen.changed() => {}
                _ = self.closing.changed() => {}
                () = overdue => {}
            }
        }
    }

    async fn released(&mut self, partitions: &BTreeSet<PartitionId>) -> Result<(), LogError> {
        self.commits.groups.release(&self.commits.key, self.commits.id, partitions);
        Ok(())
    }

    fn commits(&self) -> Arc<dyn Commits> {
        self.commits.clone()
    }

    async fn leave(self: Box<Self>) -> Result<(), LogError> {
        Ok(())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.commits.groups.leave(&self.commits.key, self.commits.id);
    }
}

struct MemberCommits {
    groups: Groups,
    key: GroupKey,
    id: MemberId,
}

#[async_trait]
impl Commits for MemberCommits {
    async fn commit(&self, partition: PartitionId, next: Offset) -> Result<(), LogError> {
        let (group, topic) = &self.key;
        let key = commit_key(group, *topic, partition);
        if key.len() > KEY_BYTES_MAX {
            return Err(LogError::TooLarge { bytes: key.len(), bytes_max: KEY_BYTES_MAX });
        }
        let place = self.groups.queue.place(key.len()).await?;
        let (reply, answer) = oneshot::channel();
        {
            // Asked and queued under one lock: what the next holder commits comes behind it.
            let groups = self.groups.groups.lock();
            let holds = groups.get(&self.key).is_some_and(|group| group.sharing.holds(self.id, partition));
            if !holds {
                return Err(LogError::NotHeld { topic: topic.name(), partition: partition.0 });
            }
            place.fill(Request::Commit { key, next, reply });
        }
        answer.await.unwrap_or(Err(LogError::Closed))
    }
}
