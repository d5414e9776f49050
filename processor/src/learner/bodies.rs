//! The bodies that were offered, and when nothing names them any more. Records are kept for 72 h, so a table must be
//! there for as long: whoever folds them again needs it. The newest of each kind stay for good, they may be in use.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use backends::log::Topic;
use protocol::Time;
use protocol::record::{BlobHash, BodyKind};
use wincode::{SchemaRead, SchemaWrite};

#[derive(Clone, PartialEq, Debug, Default, SchemaWrite, SchemaRead)]
pub struct OfferedBodies {
    /// The oldest first.
    offered: VecDeque<Offered>,
    cleared: Time,
}

#[derive(Clone, Copy, PartialEq, Debug, SchemaWrite, SchemaRead)]
struct Offered {
    kind: BodyKind,
    hash: BlobHash,
    at: Time,
}

impl OfferedBodies {
    pub fn push(&mut self, kind: BodyKind, hash: BlobHash, at: Time) {
        self.offered.push_back(Offered { kind, hash, at });
    }

    /// Whether one of this kind was ever offered: the newest stay.
    pub fn has(&self, kind: BodyKind) -> bool {
        self.offered.iter().any(|offered| offered.kind == kind)
    }

    pub fn len(&self) -> usize {
        self.offered.len()
    }

    /// Those that may go now, asked for a few times an hour.
    pub fn take_expired(&mut self, now: Time) -> Vec<BlobHash> {
        if now.millis_since(self.cleared).abs() < CLEAR_EVERY_MS {
            return Vec::new();
        }
        self.cleared = now;
        let kept = Topic::Records.retention().unwrap_or_default() + MARGIN;
        let mut newest: BTreeMap<u8, usize> = BTreeMap::new();
        let mut stays = BTreeSet::new();
        let mut expired = Vec::new();
        let mut left = VecDeque::new();
        for offered in std::mem::take(&mut self.offered).into_iter().rev() {
            let of_kind = newest.entry(offered.kind as u8).or_default();
            *of_kind += 1;
            let is_named = now.since(offered.at) < kept && left.len() < OFFERED_MAX;
            if is_named || *of_kind <= NEWEST_KEPT {
                stays.insert(offered.hash);
                left.push_front(offered);
            } else {
                expired.push(offered.hash);
            }
        }
        self.offered = left;
        expired.retain(|hash| !stays.contains(hash));
        expired.sort_unstable();
        expired.dedup();
        expired
    }
}

const CLEAR_EVERY_MS: i64 = 600_000;
/// The log lets go of entries a while after their time is over.
const MARGIN: Duration = Duration::from_secs(2 * 3600);
const NEWEST_KEPT: usize = 8;
/// As many as the settings allow in the time that records are kept: two kinds every ten seconds, one every minute.
const OFFERED_MAX: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_stays_as_long_as_records_name_it_and_the_newest_for_good() {
        let mut bodies = OfferedBodies::default();
        let hash = |n: u8| BlobHash([n; 32]);
        let hours = |n: i64| Time(1_000_000_000 + n * 3_600_000);
        bodies.push(BodyKind::Speeds, hash(99), hours(0));
        for n in 0..100 {
            bodies.push(BodyKind::LiveSpeeds, hash(n % 50), hours(i64::from(n)));
        }

        let expired = bodies.take_expired(hours(100));

        // Hours 0 to 26 are past; but what was offered again since is still named.
        assert_eq!(expired, []);
        let expired = bodies.take_expired(hours(130));
        assert_eq!(expired, (0..=6).map(hash).collect::<Vec<_>>());
        let expired = bodies.take_expired(hours(1_000));
        assert_eq!(expired.len(), 43 - NEWEST_KEPT, "{expired:?}");
        assert!(!expired.contains(&hash(99)), "the only speeds may be in use");
    }
}
