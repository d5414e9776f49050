//! Taking a partition up where the owner before left it: the newest snapshot that this build can read, and the records
//! from exactly there on. Never a committed offset: that would say nothing of what the state was.
//!
//! A state of another fold version, or one that lacks records, is taken up too, but under new epochs: what the log shows
//! was told already is folded silently. Where records or the whole state are missing, registry and ledger are asked for
//! the facts (`facts.rs`).

use std::sync::Arc;

use anyhow::Context;
use backends::blob_store::BlobStoreError;
use backends::log::Topic;
use bytes::Bytes;
use daemon::{Backoff, retry};
use protocol::PartitionId;
use protocol::record::BlobHash;
use protocol::update::Generation;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Shards;
use super::fold_bodies::FoldBodies;
use super::notice::{KeptSnapshots, SnapshotNotice};
use super::told::told;
use crate::track::{Partition, is_readable_format};

pub(crate) struct Restored {
    pub partition: Partition,
    pub kept: KeptSnapshots,
    /// No owner before has told anything: whoever takes over before the first snapshot must begin where we did.
    pub is_beginning: bool,
}

pub(crate) async fn restore(
    shards: &Arc<Shards>,
    partition: PartitionId,
    own: Generation,
    stop: &CancellationToken,
) -> anyhow::Result<Restored> {
    let first = shards.log.range(Topic::Records, partition).await.context("look at the records")?.first;
    let kept = KeptSnapshots::read(&*shards.log, partition).await.context("read the snapshots topic")?;
    let notices = kept.notices();
    let is_of_this_log =
        |notice: &&SnapshotNotice| notice.generation.incarnation == own.incarnation && notice.next <= own.claim;
    for notice in notices.iter().rev().filter(is_of_this_log) {
        if !is_readable_format(notice.format) {
            warn!(partition = partition.0, format = notice.format, "a newer build's snapshot is passed by");
            continue;
        }
        let Some(mut restored) = open(shards, *notice, own, stop).await? else { continue };
        let has_gap = restored.next() < first;
        if has_gap || restored.is_anew() {
            let told = told(&*shards.log, partition, &notices).await.context("read what was told")?;
            restored.begin_silently(own, &told);
        }
        if has_gap {
            warn!(partition = partition.0, "records after the newest snapshot are gone: registry and ledger are asked");
            restored.skip_to(first);
            restored.set_facts_due(true);
        }
        let (next, trackers) = (restored.next().0, restored.trackers_len());
        info!(partition = partition.0, next, trackers, is_anew = restored.is_anew(), "state restored");
        shards.metrics.restores.increment(1);
        return Ok(Restored { partition: restored, kept, is_beginning: false });
    }
    let told = told(&*shards.log, partition, &notices).await.context("read what was told")?;
    let mut anew = Partition::new(partition, first, own);
    anew.begin_silently(own, &told);
    anew.set_facts_due(true);
    if !told.is_nothing() {
        warn!(partition = partition.0, from = first.0, "no state can be read: all is folded again, silently");
    }
    Ok(Restored { partition: anew, kept, is_beginning: told.is_nothing() })
}

/// None if a body is gone or cannot be read.
async fn open(
    shards: &Arc<Shards>,
    notice: SnapshotNotice,
    own: Generation,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Partition>> {
    let Some(body) = fetch(shards, notice.partition, notice.hash, stop).await? else { return Ok(None) };
    let base = match notice.base {
        None => None,
        Some(hash) => match fetch(shards, notice.partition, hash, stop).await? {
            Some(base) => Some((hash, base)),
            None => return Ok(None),
        },
    };
    let local = shards.bodies.clone();
    let bodies = FoldBodies::new(local.clone(), stop.clone());
    let opening = tokio::task::spawn_blocking(move || {
        let restored = match base {
            None => Partition::restore(&body, own, &bodies),
            Some((hash, base)) => Partition::restore_changed((hash, &base), &body, own, &bodies),
        };
        let is_whole = !bodies.has_given_up();
        if let (Ok(restored), true) = (&restored, is_whole) {
            local.prepare_now(&restored.vehicles(), &restored.traffic());
        }
        (restored, is_whole)
    });
    let (restored, is_whole) = opening.await.context("restore a snapshot")?;
    anyhow::ensure!(is_whole, "the bodies that a snapshot names were not waited for");
    match restored {
        Ok(partition) => Ok(Some(partition)),
        Err(error) => {
            warn!(%error, partition = notice.partition.0, "snapshot passed by");
            Ok(None)
        }
    }
}

/// None if the body is gone or damaged.
async fn fetch(
    shards: &Arc<Shards>,
    partition: PartitionId,
    hash: BlobHash,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Bytes>> {
    let get = || shards.blobs.get(hash);
    match retry("fetch a snapshot", Backoff::default(), stop, BlobStoreError::is_transient, get).await {
        Ok(body) => Ok(Some(body)),
        Err(BlobStoreError::NotFound { .. }) => Ok(None),
        Err(error @ BlobStoreError::Damaged { .. }) => {
            warn!(%error, partition = partition.0, "snapshot passed by");
            Ok(None)
        }
        Err(error) => Err(error).context("fetch a snapshot"),
    }
}

#[cfg(test)]
mod tests {
    use backends::log::Log;
    use backends::log::embedded::{EmbeddedLog, EmbeddedLogConfig};
    use protocol::{Offset, Time};

    use super::super::notice::{entry, newest};
    use super::*;
    use crate::learner::StateNote;
    use crate::track::SNAPSHOT_FORMAT;

    #[tokio::test(flavor = "multi_thread")]
    async fn snapshots_and_the_learners_note_stand_side_by_side_and_each_finds_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let log = EmbeddedLog::open(folder.path().join("log"), EmbeddedLogConfig::default()).unwrap();
        let note = |n: u8| StateNote { format: 1, hash: BlobHash([n; 32]), size: 1, at: Time(i64::from(n)) };
        let notice = |partition: u32, n: u64| SnapshotNotice {
            partition: PartitionId(partition),
            next: Offset(n),
            generation: Generation::default(),
            fold_version: 1,
            format: SNAPSHOT_FORMAT,
            hash: BlobHash([n as u8; 32]),
            size: 1,
            at: Time::from_secs(60 * n as i64),
            base: None,
        };
        let mut kept = [KeptSnapshots::default(), KeptSnapshots::default()];
        for n in 0..5 {
            for (partition, kept) in (0..).zip(&mut kept) {
                let (appends, _) = {
                    let notice = notice(partition, n);
                    kept.announce(notice, (std::time::Duration::from_secs(72 * 3600), notice.at))
                };
                log.append(&appends).await.into_offsets().unwrap();
            }
            let note = entry("learner".into(), Some(&note(n as u8)));
            log.append(&[note]).await.into_offsets().unwrap();
        }

        for (partition, kept) in (0..).zip(&kept) {
            let found = KeptSnapshots::read(&log, PartitionId(partition)).await.unwrap();
            assert_eq!(found, *kept);
            assert_eq!(found.notices().last(), Some(&notice(partition, 4)));
        }
        assert_eq!(newest::<StateNote>(&log).await.unwrap(), Some(note(4)));
    }
}
