//! Breadcrumbs to history. The store itself keeps the place to go on from, in the same durable act: none is taken twice,
//! none is missed. Where the log has let entries go before they were taken, that is said and counted, never passed over.

use std::sync::Arc;

use anyhow::Context;
use async_trait::async_trait;
use backends::log::{StoredEntry, Topic};
use backends::trail_store::{TrailPlace, TrailStore, TrailStoreError};
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
        let next = || self.store.next_offset(reader.partition, reader.log.incarnation());
        let is_transient = TrailStoreError::is_transient;
        let next = retry("look up history", Backoff::default(), &reader.stop, is_transient, next).await;
        let next = next.context("look up where history ends")?;
        let range = reader.log.range(Topic::Trail, reader.partition).await.context("look at the trail topic")?;
        // A history that is only beginning has lost nothing.
        if next > Offset(0) && next < range.first {
            reader.handle_gap(Trail::GROUP, next, range.first);
        }
        Ok(next.max(range.first))
    }

    async fn handle(&mut self, reader: &Reader, entries: Vec<StoredEntry>) -> anyhow::Result<()> {
        let Some(last) = entries.last() else { return Ok(()) };
        let next = TrailPlace { incarnation: reader.log.incarnation(), offset: Offset(last.offset.0 + 1) };
        let batches = reader.decode::<BreadcrumbBatch>(&entries).into_iter();
        let crumbs: Vec<Breadcrumb> = batches.flat_map(|(_, batch)| batch.breadcrumbs).collect();
        let append = || self.store.append(reader.partition, crumbs.clone(), next);
        let is_transient = TrailStoreError::is_transient;
        retry("write history", Backoff::default(), &reader.stop, is_transient, append).await.context("write history")
    }
}
