//! What the snapshots topic says: where a partition's state at an offset lies. The topic is newest per key, so it says so
//! however long nobody ran. A partition has a key for its newest snapshot, one for the snapshot before, and one for each
//! of the last `HOURS` hours; the learner's note has a key of its own (`learner::state`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use backends::log::{Append, Log, LogError, Topic};
use bytes::Bytes;
use protocol::envelope::{self, Decoded, EnvelopeError, Enveloped};
use protocol::record::BlobHash;
use protocol::update::Generation;
use protocol::{Offset, PartitionId, Time};
use wincode::{SchemaRead, SchemaWrite};

/// Announced only once all that the records below `next` brought forth is durable, and the body too.
#[derive(Clone, Copy, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
pub(crate) struct SnapshotNotice {
    pub partition: PartitionId,
    /// The records entry to fold next.
    pub next: Offset,
    /// Of the owner that took it.
    pub generation: Generation,
    pub fold_version: u32,
    pub format: u16,
    pub hash: BlobHash,
    pub size: u64,
    pub at: Time,
    /// What lies under `hash` is what has changed since this one. None: it is the whole state.
    pub base: Option<BlobHash>,
}

impl Enveloped for SnapshotNotice {
    const KIND: u8 = b'S';
    const VERSION: u8 = 2;

    fn read_version(version: u8, body: &[u8]) -> Option<Result<Decoded<Self>, EnvelopeError>> {
        // Version 1 is the same without a base.
        let with_no_base = || wincode::deserialize_exact(&[body, &[0]].concat()).map_err(|_| EnvelopeError::Decode);
        (version == 1).then(|| with_no_base().map(|value| Decoded { value, skipped: 0 }))
    }
}

impl SnapshotNotice {
    /// The bodies that it takes to restore the state.
    fn bodies(&self) -> impl Iterator<Item = BlobHash> + use<> {
        self.base.into_iter().chain([self.hash])
    }
}

/// The snapshots of one partition that the topic names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct KeptSnapshots {
    by_key: BTreeMap<Bytes, SnapshotNotice>,
}

impl KeptSnapshots {
    pub async fn read(log: &dyn Log, partition: PartitionId) -> Result<KeptSnapshots, LogError> {
        let mut by_key = BTreeMap::new();
        for entry in log.newest(Topic::Snapshots).await? {
            match envelope::decode::<SnapshotNotice>(&entry.value) {
                Ok(notice) if notice.partition == partition => by_key.insert(entry.key, notice),
                Ok(_) | Err(_) => None, // another partition's, or the learner's
            };
        }
        Ok(KeptSnapshots { by_key })
    }

    /// From the oldest to the newest, each once.
    pub fn notices(&self) -> Vec<SnapshotNotice> {
        let mut notices: Vec<SnapshotNotice> = self.by_key.values().copied().collect();
        notices.sort_by_key(|notice| (notice.generation.incarnation, notice.next, notice.at, notice.hash));
        notices.dedup();
        notices
    }

    /// Takes a new one: what is to be appended, and which bodies nothing names any more once that is done. How long they are
    /// kept is compared with `kept_now` (`Clock::kept_ms`): a clock that was set forward ends nothing at once.
    pub fn announce(
        &mut self,
        notice: SnapshotNotice,
        (retention, kept_now): (Duration, Time),
    ) -> (Vec<Append>, BTreeSet<BlobHash>) {
        let named = self.named();
        let partition = notice.partition;
        let mut changes: Vec<(Bytes, Option<SnapshotNotice>)> = Vec::new();
        if let Some(before) = self.by_key.get(&newest_key(partition)) {
            changes.push((previous_key(partition), Some(*before)));
        }
        changes.push((newest_key(partition), Some(notice)));
        let hour_key = hour_key(partition, notice.at);
        if self.by_key.get(&hour_key).is_none_or(|kept| hour_of(kept.at) != hour_of(notice.at)) {
            changes.push((hour_key.clone(), Some(notice)));
        }
        for (key, kept) in &self.by_key {
            let is_last = *key == newest_key(partition) || *key == previous_key(partition);
            if !is_last && *key != hour_key && kept_now.since(kept.at) >= retention {
                changes.push((key.clone(), None));
            }
        }
        for (key, kept) in &changes {
            match kept {
                Some(kept) => self.by_key.insert(key.clone(), *kept),
                None => self.by_key.remove(key),
            };
        }
        let appends = changes.into_iter().map(|(key, kept)| entry(key, kept.as_ref()));
        let unnamed = named.difference(&self.named()).copied().collect();
        (appends.collect(), unnamed)
    }

    fn named(&self) -> BTreeSet<BlobHash> {
        self.by_key.values().flat_map(SnapshotNotice::bodies).collect()
    }
}

/// All bodies that the snapshots topic names, the learner's state left out: a sweep of the blob store spares them.
pub async fn named_snapshots(log: &dyn Log) -> Result<BTreeSet<BlobHash>, LogError> {
    let entries = log.newest(Topic::Snapshots).await?;
    let notices = entries.iter().filter_map(|entry| envelope::decode::<SnapshotNotice>(&entry.value).ok());
    Ok(notices.flat_map(|notice| notice.bodies()).collect())
}

/// The newest entry of one kind, whatever its key.
pub(crate) async fn newest<T: Enveloped>(log: &dyn Log) -> Result<Option<T>, LogError> {
    let entries = log.newest(Topic::Snapshots).await?;
    Ok(entries.iter().rev().find_map(|entry| envelope::decode::<T>(&entry.value).ok()))
}

/// An entry of the topic; without a value it says that the key is gone.
pub(crate) fn entry<T: Enveloped>(key: Bytes, value: Option<&T>) -> Append {
    let value = value.map(envelope::encode).unwrap_or_default().into();
    Append { topic: Topic::Snapshots, partition: PartitionId(0), key, value }
}

fn newest_key(partition: PartitionId) -> Bytes {
    key(b"newest/", partition, &[])
}

fn previous_key(partition: PartitionId) -> Bytes {
    key(b"previous/", partition, &[])
}

fn hour_key(partition: PartitionId, at: Time) -> Bytes {
    key(b"hour/", partition, &[hour_of(at).rem_euclid(HOURS) as u8])
}

fn key(prefix: &[u8], partition: PartitionId, rest: &[u8]) -> Bytes {
    [prefix, &partition.0.to_be_bytes(), rest].concat().into()
}

fn hour_of(at: Time) -> i64 {
    at.as_secs().div_euclid(3600)
}

/// More than the records are kept.
const HOURS: i64 = 80;

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_S: i64 = 86_400;

    #[test]
    fn the_newest_the_one_before_and_the_first_of_each_hour_are_named_and_nothing_else() {
        let mut kept = KeptSnapshots::default();
        let mut bodies = BTreeSet::new();

        for minute in 0..10 * 24 * 60 {
            let notice = notice(minute);
            bodies.insert(notice.hash);
            let (appends, unnamed) = kept.announce(notice, (Duration::from_secs(72 * 3600), notice.at));
            assert!(appends.len() <= 5, "{}", appends.len());
            bodies.retain(|hash| !unnamed.contains(hash));
        }

        assert_eq!(bodies, kept.named());
        let last = 10 * 24 * 60 - 1;
        let at: Vec<i64> = kept.notices().iter().map(|notice| notice.at.as_secs() / 60).collect();
        assert_eq!(at[at.len() - 2..], [last - 1, last]);
        let hours = &at[..at.len() - 2];
        assert!(hours.iter().all(|minute| minute % 60 == 0));
        assert_eq!((hours[0], hours.len()), (7 * DAY_S / 60, 72));
    }

    #[test]
    fn a_base_is_named_as_long_as_something_that_changed_since_is() {
        let mut kept = KeptSnapshots::default();
        let base = notice(0);
        kept.announce(base, (Duration::from_secs(3_600), base.at));
        let mut removed = BTreeSet::new();

        for minute in 1..300 {
            let changes = SnapshotNotice { base: Some(base.hash), ..notice(minute) };
            removed.extend(kept.announce(changes, (Duration::from_secs(3_600), changes.at)).1);
        }

        assert!(!removed.contains(&base.hash) && removed.len() > 250);
        for minute in 300..500 {
            removed.extend(kept.announce(notice(minute), (Duration::from_secs(3_600), notice(minute).at)).1);
        }
        assert!(removed.contains(&base.hash), "nothing names it any more");
    }

    #[test]
    fn a_clock_that_is_set_forward_lets_no_snapshot_go_before_its_time_is_believed_for_what_is_kept() {
        let mut kept = KeptSnapshots::default();
        let retention = Duration::from_secs(72 * 3_600);
        for hour in 0..48 {
            let notice = notice(60 * hour);
            kept.announce(notice, (retention, notice.at));
        }
        let hours_before = kept.notices().len();

        let ahead = notice(60 * (48 + 10 * 24));
        let believed = notice(60 * 48).at;
        let (_, unnamed) = kept.announce(ahead, (retention, believed));

        assert!(unnamed.is_empty(), "{} bodies are removed", unnamed.len());
        assert!(kept.notices().len() > hours_before);
    }

    #[test]
    fn a_notice_of_the_release_before_has_no_base() {
        let whole = notice(7);
        let mut body = wincode::serialize(&whole).unwrap();
        assert_eq!(body.pop(), Some(0), "the place of the base");

        let read = SnapshotNotice::read_version(1, &body).unwrap().unwrap();

        assert_eq!(read.value, whole);
    }

    fn notice(minute: i64) -> SnapshotNotice {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&minute.to_le_bytes());
        SnapshotNotice {
            partition: PartitionId(3),
            next: Offset(minute as u64),
            generation: Generation::default(),
            fold_version: 1,
            format: 4,
            hash: BlobHash(hash),
            size: 1,
            at: Time::from_secs(60 * minute),
            base: None,
        }
    }
}
