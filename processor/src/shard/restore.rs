//! Taking a partition up where the owner before left it: the newest snapshot that this build can read, and the records
//! from exactly there on. Never a committed offset: that would say nothing of what the state was.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use backends::blob_store::BlobStoreError;
use backends::log::{Log, ReadLimit, Topic};
use daemon::{Backoff, retry};
use protocol::update::Generation;
use protocol::{Offset, PartitionId, envelope};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Shards;
use super::bodies::ReignBodies;
use super::notice::SnapshotNotice;
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
    let shelf = shards.shelf.clone();
    let bodies = ReignBodies::new(shelf.clone(), stop.clone());
    let opening = tokio::task::spawn_blocking(move || {
        let restored = Partition::restore(&body, own, &bodies);
        let is_whole = !bodies.has_given_up();
        if let (Ok(restored), true) = (&restored, is_whole) {
            shelf.want_now(&restored.vehicles(), &restored.traffic());
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
pub async fn notices(log: &dyn Log, partition: PartitionId) -> anyhow::Result<Vec<SnapshotNotice>> {
    let range = log.range(Topic::Snapshots, partition).await?;
    let mut from = Offset(range.first.0.max(range.next.0.saturating_sub(NOTICES_MAX)));
    let mut notices = Vec::new();
    while from < range.next {
        let entries = log.read(Topic::Snapshots, partition, from, ReadLimit::default(), Duration::ZERO).await?;
        let Some(last) = entries.last() else { break };
        from = Offset(last.offset.0 + 1);
        let known = entries.iter().filter_map(|entry| envelope::decode::<SnapshotNotice>(&entry.value).ok());
        notices.extend(known.filter(|notice| notice.partition == partition));
    }
    Ok(notices)
}

/// Three hours of them.
const NOTICES_MAX: u64 = 180;
