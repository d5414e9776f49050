//! Taking a partition up where the owner before left it: the newest snapshot that this build can read, and the records
//! from exactly there on. Never a committed offset: that would say nothing of what the state was.

use std::sync::Arc;

use anyhow::Context;
use backends::blob_store::BlobStoreError;
use backends::log::{Log, LogError, Topic};
use daemon::{Backoff, retry};
use protocol::PartitionId;
use protocol::update::Generation;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Shards;
use super::fold_bodies::FoldBodies;
use super::notice::{SnapshotNotice, newest};
use crate::track::{Partition, SNAPSHOT_FORMAT};

/// The partition as it was, and whether its state was found (else it begins anew).
pub async fn restore(
    shards: &Arc<Shards>,
    partition: PartitionId,
    own: Generation,
    stop: &CancellationToken,
) -> anyhow::Result<(Partition, bool)> {
    let first = shards.log.range(Topic::Records, partition).await.context("look at the records")?.first;
    let notices = notices(&*shards.log, partition).await.context("read the snapshots topic")?;
    for notice in
        notices.into_iter().rev().filter(|notice| notice.format == SNAPSHOT_FORMAT && notice.next <= own.claim)
    {
        let Some(mut restored) = open(shards, notice, own, stop).await? else { continue };
        if restored.next() < first {
            warn!(partition = partition.0, "records after the newest snapshot are gone: epochs begin anew");
            restored.skip_to(first);
            restored.begin_epochs(own);
        }
        info!(partition = partition.0, next = restored.next().0, trackers = restored.trackers_len(), "state restored");
        shards.metrics.restores.increment(1);
        return Ok((restored, true));
    }
    Ok((Partition::new(partition, first, own), false))
}

/// None if the body is gone or cannot be read.
async fn open(
    shards: &Arc<Shards>,
    notice: SnapshotNotice,
    own: Generation,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Partition>> {
    let fetch = || shards.blobs.get(notice.hash);
    let fetched = retry("fetch a snapshot", Backoff::default(), stop, BlobStoreError::is_transient, fetch).await;
    let body = match fetched {
        Ok(body) => body,
        Err(BlobStoreError::NotFound { .. }) => return Ok(None),
        Err(error @ BlobStoreError::Damaged { .. }) => {
            warn!(%error, partition = notice.partition.0, "snapshot passed by");
            return Ok(None);
        }
        Err(error) => return Err(error).context("fetch a snapshot"),
    };
    let local_bodies = shards.bodies.clone();
    let bodies = FoldBodies::new(local_bodies.clone(), stop.clone());
    let opening = tokio::task::spawn_blocking(move || {
        let restored = Partition::restore(&body, own, &bodies);
        let is_whole = !bodies.has_given_up();
        if let (Ok(restored), true) = (&restored, is_whole) {
            local_bodies.prepare_now(&restored.vehicles(), &restored.traffic());
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

/// The newest notices of a partition, the oldest first.
pub async fn notices(log: &dyn Log, partition: PartitionId) -> Result<Vec<SnapshotNotice>, LogError> {
    let mut notices = newest::<SnapshotNotice>(log, partition, NOTICES_MAX).await?;
    notices.retain(|notice| notice.partition == partition);
    Ok(notices)
}

/// Three hours of them, and what was read with the oldest.
const NOTICES_MAX: usize = 180;

#[cfg(test)]
mod tests {
    use backends::log::Append;
    use backends::log::embedded::{EmbeddedLog, EmbeddedLogConfig};
    use protocol::record::BlobHash;
    use protocol::{Offset, Time, envelope};

    use super::*;
    use crate::learner::StateNote;

    #[tokio::test(flavor = "multi_thread")]
    async fn snapshots_are_found_however_many_notes_of_the_learner_lie_among_them() {
        let folder = tempfile::tempdir().unwrap();
        let log = EmbeddedLog::open(folder.path().join("log"), EmbeddedLogConfig::default()).unwrap();
        let partition = PartitionId(0);
        let entry = |value: Vec<u8>| Append {
            topic: Topic::Snapshots,
            partition,
            key: bytes::Bytes::new(),
            value: value.into(),
        };
        let note = StateNote { format: 1, hash: BlobHash([9; 32]), size: 1, at: Time(0) };
        let notice = |n: u64| SnapshotNotice {
            partition,
            next: Offset(n),
            generation: Generation::default(),
            fold_version: 1,
            format: SNAPSHOT_FORMAT,
            hash: BlobHash([n as u8; 32]),
            size: 1,
            at: Time(0),
        };
        for n in 0..5 {
            let notes = (0..300).map(|_| entry(envelope::encode(&note)));
            log.append([entry(envelope::encode(&notice(n)))].into_iter().chain(notes).collect()).await.unwrap();
        }

        let found = notices(&log, partition).await.unwrap();

        assert_eq!(found, (0..5).map(notice).collect::<Vec<_>>());
    }
}
