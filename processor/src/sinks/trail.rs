//! Breadcrumbs to history. The store itself keeps the offset to go on from, in the same transaction: none is taken
//! twice, none is missed.

use std::sync::Arc;

use anyhow::Context;
use async_trait::async_trait;
use backends::log::{StoredEntry, Topic};
use backends::trail_store::{TrailStore, TrailStoreError};
use daemon::{Backoff, retry};
use protocol::update::BreadcrumbBatch;
use protocol::{Breadcrumb, Offset, PartitionId};

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
    async fn first(&mut self, reader: &Reader, _: Option<Offset>) -> anyhow::Result<Offset> {
        let next = || self.store.next_offset(reader.partition);
        let is_transient = TrailStoreError::is_transient;
        let next = retry("look up history", Backoff::default(), &reader.stop, is_transient, next).await;
        let range = reader.log.range(Topic::Trail, reader.partition).await.context("look at the trail topic")?;
        Ok(next.context("look up where history ends")?.max(range.first))
    }

    async fn handle(&mut self, reader: &Reader, entries: Vec<StoredEntry>) -> anyhow::Result<()> {
        let Some(last) = entries.last() else { return Ok(()) };
        let next = Offset(last.offset.0 + 1);
        let batches = reader.decode::<BreadcrumbBatch>(&entries).into_iter();
        let crumbs: Vec<Breadcrumb> = batches.flat_map(|(_, batch)| batch.breadcrumbs).collect();
        let append = || self.store.append(reader.partition, crumbs.clone(), next);
        let is_transient = TrailStoreError::is_transient;
        retry("write history", Backoff::default(), &reader.stop, is_transient, append).await.context("write history")
    }
}
