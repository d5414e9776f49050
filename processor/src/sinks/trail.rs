//! Breadcrumbs to history. The store itself keeps the place to go on from, in the same durable act: none is taken twice,
//! none is missed. Where the log has let entries go before they were taken, that is said and counted, never passed over.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use backends::log::{StoredEntry, Topic};
use backends::trail_store::{TrailPlace, TrailStore, TrailStoreError};
use daemon::admin::Health;
use daemon::{Backoff, retry};
use protocol::update::BreadcrumbBatch;
use protocol::{Breadcrumb, Offset, PartitionId};
use tracing::error;

use super::{Reader, Sink, Work};

pub struct Trail {
    pub store: Arc<dyn TrailStore>,
}

#[async_trait]
impl Sink for Trail {
    const GROUP: &'static str = "trail";
    const TOPIC: Topic = Topic::Trail;
    type Work = TrailWork;

    fn begin(&self, _: PartitionId) -> TrailWork {
        TrailWork { store: self.store.clone() }
    }
}

pub struct TrailWork {
    store: Arc<dyn TrailStore>,
}

#[async_trait]
impl Work for TrailWork {
    /// A history that is only beginning has taken nothing.
    async fn taken(&mut self, reader: &Reader, _: Option<Offset>) -> anyhow::Result<Option<Offset>> {
        let next = || self.store.next_offset(reader.partition, reader.log.incarnation());
        let is_transient = TrailStoreError::is_transient;
        let next = retry("look up history", Backoff::default(), &reader.stop, is_transient, next).await;
        let next = next.context("look up where history ends")?;
        Ok(Some(next).filter(|next| *next > Offset(0)))
    }

    async fn first(&mut self, reader: &Reader, taken: Option<Offset>) -> anyhow::Result<Offset> {
        let range = reader.log.range(Topic::Trail, reader.partition).await.context("look at the trail topic")?;
        Ok(taken.unwrap_or_default().max(range.first))
    }

    async fn handle(&mut self, reader: &Reader, entries: Vec<StoredEntry>) -> anyhow::Result<()> {
        let Some(last) = entries.last() else { return Ok(()) };
        let next = TrailPlace { incarnation: reader.log.incarnation(), offset: Offset(last.offset.0 + 1) };
        let batches = reader.decode::<BreadcrumbBatch>(&entries).into_iter();
        let crumbs: Vec<Breadcrumb> = batches.flat_map(|(_, batch)| batch.breadcrumbs).collect();
        let append = || self.store.append(reader.partition, crumbs.clone(), next);
        let is_transient = TrailStoreError::is_transient;
        loop {
            match retry("write history", Backoff::default(), &reader.stop, is_transient, append).await {
                Ok(()) => return Ok(()),
                Err(error @ TrailStoreError::Unavailable { .. }) => return Err(error).context("write history"),
                Err(error @ TrailStoreError::Damaged { .. }) => self.wait_damaged(reader, &error).await?,
            }
        }
    }
}

impl TrailWork {
    /// A history that is damaged keeps nothing else from its work: what is to be written waits in the log, as long as
    /// that keeps it, for somebody who repairs it.
    async fn wait_damaged(&self, reader: &Reader, error: &TrailStoreError) -> anyhow::Result<()> {
        error!(%error, partition = reader.partition.0, "nothing more is written to history: stop, and run `wayfix repair`");
        reader.metrics.history_damaged.increment(1);
        let reason = format!("{error}: nothing more is written to it; `wayfix repair` says what there is to do");
        reader.metrics.readiness.set(Trail::GROUP, Health::Degraded(reason));
        tokio::select! {
            () = reader.stop.cancelled() => Err(error.clone()).context("write history"),
            () = tokio::time::sleep(DAMAGED_WAIT) => Ok(()),
        }
    }
}

/// It does not pass by itself; somebody who looks at the log should see it again.
const DAMAGED_WAIT: Duration = Duration::from_secs(60);
