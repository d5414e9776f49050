//! How one group shares one topic, pure.
//!
//! **Invariant:** a partition is never two members' at once. One that is to move is first revoked from its holder, and
//! given on when the holder has released it, has left, or has kept it for longer than may be waited for: then it is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use protocol::PartitionId;

use crate::log::ShareChange;

/// In the order of joining.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MemberId(u64);

pub struct Sharing {
    partition_count: u32,
    release_wait_max: Duration,
    members: BTreeMap<MemberId, MemberState>,
    next_member: u64,
}

#[derive(Default)]
struct MemberState {
    /// What it is to have.
    target: BTreeSet<PartitionId>,
    /// What was given to it and not taken back: part of no other's.
    held: BTreeSet<PartitionId>,
    /// Of those it holds: what it was told to release, and when.
    revoked: BTreeMap<PartitionId, Instant>,
    /// What was taken from it and it has not been told of.
    lost: BTreeSet<PartitionId>,
    has_heard: bool,
}

impl Sharing {
    pub fn new(partition_count: u32, release_wait_max: Duration) -> Self {
        Sharing { partition_count, release_wait_max, members: BTreeMap::new(), next_member: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub fn join(&mut self) -> MemberId {
        let id = MemberId(self.next_member);
        self.next_member += 1;
        self.members.insert(id, MemberState::default());
        self.rebalance();
        id
    }

    pub fn leave(&mut self, member: MemberId) {
        self.members.remove(&member);
        self.rebalance();
    }

    pub fn holds(&self, member: MemberId, partition: PartitionId) -> bool {
        self.members.get(&member).is_some_and(|state| state.held.contains(&partition))
    }

    /// The next change that the member has not heard of: what it lost, what it must release, what is its own.
    pub fn poll_change(&mut self, member: MemberId, now: Instant) -> Option<ShareChange> {
        let free = self.free_of_others(member);
        let state = self.members.get_mut(&member)?;
        let is_first = !std::mem::replace(&mut state.has_heard, true);
        if !state.lost.is_empty() {
            return Some(ShareChange::Lost(std::mem::take(&mut state.lost)));
        }
        let is_to_go = |partition: &&PartitionId| !state.revoked.contains_key(partition);
        let to_go: BTreeSet<_> = state.held.difference(&state.target).filter(is_to_go).copied().collect();
        if !to_go.is_empty() {
            state.revoked.extend(to_go.iter().map(|partition| (*partition, now)));
            return Some(ShareChange::Revoked(to_go));
        }
        let given: BTreeSet<_> = state.target.difference(&state.held).filter(|p| free.contains(p)).copied().collect();
        if !given.is_empty() || (is_first && state.target.is_empty()) {
            state.held.extend(&given);
            return Some(ShareChange::Given(given));
        }
        // It hears at last that there is nothing for it, or what is given to it later.
        state.has_heard = !is_first;
        None
    }

    pub fn release(&mut self, member: MemberId, partitions: &BTreeSet<PartitionId>) {
        let Some(state) = self.members.get_mut(&member) else { return };
        for partition in partitions {
            if state.revoked.remove(partition).is_some() {
                state.held.remove(partition);
            }
        }
    }

    /// Takes from their holders what they have kept for too long; whether there was any.
    pub fn take_overdue(&mut self, now: Instant) -> bool {
        let mut has_taken = false;
        for state in self.members.values_mut() {
            let is_overdue = |since: &Instant| now.saturating_duration_since(*since) >= self.release_wait_max;
            let overdue: Vec<PartitionId> =
                state.revoked.iter().filter(|(_, since)| is_overdue(since)).map(|(p, _)| *p).collect();
            for partition in overdue {
                state.revoked.remove(&partition);
                state.held.remove(&partition);
                state.lost.insert(partition);
                has_taken = true;
            }
        }
        has_taken
    }

    /// When something will be overdue.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let since = self.members.values().flat_map(|state| state.revoked.values()).min();
        since.map(|since| *since + self.release_wait_max)
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_given_on_only_when_its_holder_has_released_it() {
        let (mut sharing, now) = (Sharing::new(4, WAIT), Instant::now());
        let first = sharing.join();
        assert_eq!(sharing.poll_change(first, now), Some(ShareChange::Given(set(&[0, 1, 2, 3]))));

        let second = sharing.join();

        assert_eq!(sharing.poll_change(second, now), None);
        assert_eq!(sharing.poll_change(first, now), Some(ShareChange::Revoked(set(&[2, 3]))));
        assert_eq!(sharing.poll_change(first, now), None, "it is told once");
        assert_eq!(sharing.poll_change(second, now), None, "told, and perhaps still at work");
        assert!(sharing.holds(first, PartitionId(2)), "so it may still commit");
        sharing.release(first, &set(&[2, 3]));
        assert_eq!(sharing.poll_change(second, now), Some(ShareChange::Given(set(&[2, 3]))));
        assert!(!sharing.holds(first, PartitionId(2)));
        sharing.release(first, &set(&[0]));
        assert!(sharing.holds(first, PartitionId(0)), "what was not revoked is not released");
    }

    #[test]
    fn what_is_not_released_in_time_is_lost_and_given_on() {
        let (mut sharing, now) = (Sharing::new(2, WAIT), Instant::now());
        let first = sharing.join();
        sharing.poll_change(first, now);
        let second = sharing.join();
        sharing.poll_change(first, now);

        assert!(!sharing.take_overdue(now + WAIT / 2));
        assert_eq!(sharing.poll_timeout(), Some(now + WAIT));
        assert!(sharing.take_overdue(now + WAIT));

        assert_eq!(sharing.poll_change(second, now + WAIT), Some(ShareChange::Given(set(&[1]))));
        assert!(!sharing.holds(first, PartitionId(1)), "it may not commit any more");
        assert_eq!(sharing.poll_change(first, now + WAIT), Some(ShareChange::Lost(set(&[1]))));
        assert_eq!(sharing.poll_timeout(), None);
    }

    #[test]
    fn a_member_too_many_is_told_so_once() {
        let (mut sharing, now) = (Sharing::new(1, WAIT), Instant::now());
        let first = sharing.join();
        sharing.poll_change(first, now);

        let second = sharing.join();

        assert_eq!(sharing.poll_change(second, now), Some(ShareChange::Given(set(&[]))));
        assert_eq!(sharing.poll_change(second, now), None);
        sharing.leave(first);
        assert_eq!(sharing.poll_change(second, now), Some(ShareChange::Given(set(&[0]))));
    }

    #[test]
    fn who_leaves_lets_go_at_once_and_the_others_keep_what_they_have() {
        let mut sharing = Sharing::new(5, WAIT);
        let members: Vec<_> = (0..3).map(|_| sharing.join()).collect();
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
        let mut now = Instant::now();
        for seed in 0..50 {
            let mut random = rand::rngs::SmallRng::seed_from_u64(seed);
            let mut sharing = Sharing::new(random.random_range(1..20), WAIT);
            for _ in 0..60 {
                let ids: Vec<_> = sharing.members.keys().copied().collect();
                let one = (!ids.is_empty()).then(|| ids[random.random_range(0..ids.len())]);
                match (random.random_range(0..6), one) {
                    (0, _) => drop(sharing.join()),
                    (1, Some(id)) => sharing.leave(id),
                    (2, Some(id)) => {
                        let revoked = sharing.members[&id].revoked.keys().copied().collect();
                        sharing.release(id, &revoked);
                    }
                    (3, _) => {
                        now += WAIT / 3;
                        sharing.take_overdue(now);
                    }
                    (_, Some(id)) => drop(sharing.poll_change(id, now)),
                    (_, None) => {}
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

    /// Every member hears all there is and releases what it must.
    fn settle(sharing: &mut Sharing) {
        let ids: Vec<_> = sharing.members.keys().copied().collect();
        for _ in 0..3 {
            for id in &ids {
                while sharing.poll_change(*id, Instant::now()).is_some() {}
                let revoked = sharing.members[id].revoked.keys().copied().collect();
                sharing.release(*id, &revoked);
            }
        }
    }

    fn set(partitions: &[u32]) -> BTreeSet<PartitionId> {
        partitions.iter().copied().map(PartitionId).collect()
    }

    const WAIT: Duration = Duration::from_secs(60);
}
