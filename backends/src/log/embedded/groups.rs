//! Groups within one process: members of a group share a topic's partitions evenly and keep what they have as far as
//! that goes.
//!
//! **Invariant:** a partition is never two members' at once. One that is to move is first taken from its holder, and
//! given on when the holder, having been told, asks again (or leaves): until then it may still be working on it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use protocol::PartitionId;
use tokio::sync::watch;

use crate::log::{LogError, Membership, Topic};

/// All groups of one log.
#[derive(Clone, Default)]
pub struct Groups {
    groups: Arc<Mutex<HashMap<(String, Topic), Sharing>>>,
    closing: Arc<watch::Sender<bool>>,
}

impl Groups {
    pub fn join(&self, group: &str, topic: Topic, partition_count: u32) -> Box<dyn Membership> {
        let (changed, seen) = watch::channel(());
        let key = (group.to_string(), topic);
        let mut groups = self.groups.lock();
        let sharing = groups.entry(key.clone()).or_insert_with(|| Sharing::new(partition_count));
        let member = sharing.join(changed);
        Box::new(Member { groups: self.clone(), key, member, seen, closing: self.closing.subscribe(), told: None })
    }

    /// Members learn that the log is closed.
    pub fn close(&self) {
        self.closing.send_replace(true);
    }

    fn leave(&self, key: &(String, Topic), member: MemberId) {
        let mut groups = self.groups.lock();
        if let Some(sharing) = groups.get_mut(key) {
            sharing.leave(member);
            if sharing.members.is_empty() {
                groups.remove(key);
            }
        }
    }

    /// What is the member's now, which settles what it was told before.
    fn ask(&self, key: &(String, Topic), member: MemberId) -> BTreeSet<PartitionId> {
        self.groups.lock().get_mut(key).map(|sharing| sharing.ask(member)).unwrap_or_default()
    }
}

struct Member {
    groups: Groups,
    key: (String, Topic),
    member: MemberId,
    seen: watch::Receiver<()>,
    closing: watch::Receiver<bool>,
    told: Option<BTreeSet<PartitionId>>,
}

#[async_trait]
impl Membership for Member {
    async fn changed(&mut self) -> Result<BTreeSet<PartitionId>, LogError> {
        loop {
            if *self.closing.borrow_and_update() {
                return Err(LogError::Closed);
            }
            self.seen.mark_unchanged();
            let held = self.groups.ask(&self.key, self.member);
            let is_news = match &self.told {
                None => !held.is_empty(),
                Some(told) => *told != held,
            };
            if is_news {
                self.told = Some(held.clone());
                return Ok(held);
            }
            tokio::select! {
                _ = self.seen.changed() => {}
                _ = self.closing.changed() => {}
            }
        }
    }

    async fn leave(self: Box<Self>) -> Result<(), LogError> {
        Ok(())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.groups.leave(&self.key, self.member);
    }
}

/// In the order of joining.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct MemberId(u64);

/// How one group shares one topic.
struct Sharing {
    partition_count: u32,
    members: BTreeMap<MemberId, MemberState>,
    next_member: u64,
}

struct MemberState {
    changed: watch::Sender<()>,
    /// What it is to have.
    target: BTreeSet<PartitionId>,
    /// What it may be working on: part of no other's.
    held: BTreeSet<PartitionId>,
    /// What it was told last.
    told: BTreeSet<PartitionId>,
}

impl Sharing {
    fn new(partition_count: u32) -> Self {
        Sharing { partition_count, members: BTreeMap::new(), next_member: 0 }
    }

    fn join(&mut self, changed: watch::Sender<()>) -> MemberId {
        let id = MemberId(self.next_member);
        self.next_member += 1;
        let empty = BTreeSet::new();
        self.members.insert(id, MemberState { changed, target: empty.clone(), held: empty.clone(), told: empty });
        self.rebalance();
        id
    }

    fn leave(&mut self, member: MemberId) {
        self.members.remove(&member);
        self.rebalance();
    }

    fn ask(&mut self, member: MemberId) -> BTreeSet<PartitionId> {
        let Some(state) = self.members.get_mut(&member) else {
            return BTreeSet::new();
        };
        // It works on what it was told last, and no more on what it held before that.
        let has_given = state.held != state.told;
        state.held = state.told.clone();
        let free = self.free_of_others(member);
        if let Some(state) = self.members.get_mut(&member) {
            state.told = state.target.intersection(&free).copied().collect();
            state.held = state.held.union(&state.told).copied().collect();
        }
        if has_given {
            self.wake();
        }
        self.members.get(&member).map(|state| state.told.clone()).unwrap_or_default()
    }

    /// The partitions that no other member may be working on.
    fn free_of_others(&self, member: MemberId) -> BTreeSet<PartitionId> {
        let mut free: BTreeSet<_> = (0..self.partition_count).map(PartitionId).collect();
        for (_, state) in self.members.iter().filter(|(id, _)| **id != member) {
            free.retain(|partition| !state.held.contains(partition));
        }
        free
    }

    /// Gives every member its even share: what it has first, then what is over, lowest number first.
    fn rebalance(&mut self) {
        let count = self.members.len();
        if count == 0 {
            return;
        }
        let (share, extra) = (self.partition_count as usize / count, self.partition_count as usize % count);
        let mut unassigned: BTreeSet<_> = (0..self.partition_count).map(PartitionId).collect();
        // Whoever has more keeps the larger share, so that fewer move.
        let mut order: Vec<MemberId> = self.members.keys().copied().collect();
        order.sort_by_key(|id| (std::cmp::Reverse(self.members[id].target.len()), *id));
        let shares: BTreeMap<MemberId, usize> =
            order.iter().enumerate().map(|(at, id)| (*id, share + usize::from(at < extra))).collect();
        for (id, state) in &mut self.members {
            state.target = state.target.iter().copied().take(shares[id]).collect();
            unassigned.retain(|partition| !state.target.contains(partition));
        }
        for (id, state) in &mut self.members {
            while state.target.len() < shares[id] {
                let Some(partition) = unassigned.pop_first() else {
                    break;
                };
                state.target.insert(partition);
            }
        }
        self.wake();
    }

    fn wake(&self) {
        for state in self.members.values() {
            state.changed.send_replace(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_given_on_only_when_its_holder_has_asked_again() {
        let mut sharing = Sharing::new(4);
        let first = sharing.join(watch::channel(()).0);
        assert_eq!(sharing.ask(first), set(&[0, 1, 2, 3]));

        let second = sharing.join(watch::channel(()).0);

        assert_eq!(sharing.ask(second), set(&[]));
        assert_eq!(sharing.ask(first), set(&[0, 1]), "told, and perhaps still working");
        assert_eq!(sharing.ask(second), set(&[]));
        assert_eq!(sharing.ask(first), set(&[0, 1]), "asked again: it has let go");
        assert_eq!(sharing.ask(second), set(&[2, 3]));
    }

    #[test]
    fn who_leaves_lets_go_at_once_and_the_others_keep_what_they_have() {
        let mut sharing = Sharing::new(5);
        let members: Vec<_> = (0..3).map(|_| sharing.join(watch::channel(()).0)).collect();
        settle(&mut sharing);
        let before: Vec<_> = members.iter().map(|id| sharing.members[id].held.clone()).collect();

        sharing.leave(members[1]);
        settle(&mut sharing);

        let after: Vec<_> = [0, 2].map(|at| sharing.members[&members[at]].held.clone()).into();
        assert!(after[0].is_superset(&before[0]) && after[1].is_superset(&before[2]), "{before:?} {after:?}");
        assert_eq!(after[0].len() + after[1].len(), 5);
    }

    #[test]
    fn however_members_come_and_go_shares_are_even_and_disjoint() {
        use rand::{Rng, SeedableRng};
        for seed in 0..50 {
            let mut random = rand::rngs::SmallRng::seed_from_u64(seed);
            let mut sharing = Sharing::new(random.random_range(1..20));
            for _ in 0..60 {
                match random.random_range(0..4) {
                    0 => drop(sharing.join(watch::channel(()).0)),
                    1 => {
                        let ids: Vec<_> = sharing.members.keys().copied().collect();
                        if !ids.is_empty() {
                            sharing.leave(ids[random.random_range(0..ids.len())]);
                        }
                    }
                    _ => {
                        let ids: Vec<_> = sharing.members.keys().copied().collect();
                        if !ids.is_empty() {
                            sharing.ask(ids[random.random_range(0..ids.len())]);
                        }
                    }
                }
                let held: usize = sharing.members.values().map(|state| state.held.len()).sum();
                let all: BTreeSet<_> = sharing.members.values().flat_map(|state| state.held.clone()).collect();
                assert_eq!(held, all.len(), "seed {seed}: a partition is two members'");
            }
            settle(&mut sharing);
            let sizes: Vec<_> = sharing.members.values().map(|state| state.held.len()).collect();
            if let (Some(least), Some(most)) = (sizes.iter().min(), sizes.iter().max()) {
                assert!(most - least <= 1, "seed {seed}: {sizes:?}");
                assert_eq!(sizes.iter().sum::<usize>(), sharing.partition_count as usize, "seed {seed}");
            }
        }
    }

    fn settle(sharing: &mut Sharing) {
        let ids: Vec<_> = sharing.members.keys().copied().collect();
        for _ in 0..3 {
            for id in &ids {
                sharing.ask(*id);
            }
        }
    }

    fn set(partitions: &[u32]) -> BTreeSet<PartitionId> {
        partitions.iter().copied().map(PartitionId).collect()
    }
}
