//! A reader of one partition: from memory while it keeps up, else from the files, off the runtime's threads.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use protocol::Offset;

use super::layout::Slot;
use super::partition::Standing;
use super::shared::Shared;
use super::store::{self, Store};
use crate::log::{LogError, LogReader, ReadLimit, StoredEntry};

pub struct EmbeddedReader {
    pub shared: Arc<Shared>,
    pub slot: Slot,
    pub next: Offset,
}

#[async_trait]
impl LogReader for EmbeddedReader {
    fn next(&self) -> Offset {
        self.next
    }

    fn seek(&mut self, to: Offset) {
        self.next = to;
    }

    async fn read(&mut self, limit: ReadLimit, wait: Duration) -> Result<Vec<StoredEntry>, LogError> {
        let entries = self.read_from(self.next, limit, wait).await?;
        if let Some(last) = entries.last() {
            self.next = Offset(last.offset.0 + 1);
        }
        Ok(entries)
    }
}

impl EmbeddedReader {
    async fn read_from(&self, from: Offset, limit: ReadLimit, wait: Duration) -> Result<Vec<StoredEntry>, LogError> {
        let partition = &self.shared.partitions[self.slot.0];
        let mut span = partition.span();
        if span.next <= from && span.standing == Standing::Open && !wait.is_zero() {
            let mut spans = partition.subscribe();
            let more = spans.wait_for(|span| span.next > from || span.standing != Standing::Open);
            // Whether it came or not is seen below.
            let _came = tokio::time::timeout(wait, more).await.is_ok();
            span = partition.span();
        }
        if from < span.first {
            return Err(LogError::Gone { offset: from.0, first: span.first.0 });
        }
        if span.next <= from {
            return match span.standing {
                Standing::Open => Ok(Vec::new()),
                Standing::Closed => Err(LogError::Closed),
                Standing::Failed => Err(store::damaged("a sync failed")),
            };
        }
        if let Some(entries) = partition.read_tail(from, limit) {
            return Ok(entries);
        }
        if span.standing == Standing::Closed {
            return Err(LogError::Closed);
        }
        self.read_files(from, span.next, limit).await
    }

    async fn read_files(&self, from: Offset, until: Offset, limit: ReadLimit) -> Result<Vec<StoredEntry>, LogError> {
        let slot = self.slot;
        let entries = blocking(&self.shared, move |store| store.read(slot, from, until, limit)).await?;
        if self.shared.layout.at(slot).0.is_newest_per_key() {
            return Ok(entries);
        }
        let is_whole = entries.iter().zip(from.0..).all(|(entry, offset)| entry.offset.0 == offset);
        if is_whole && !entries.is_empty() {
            return Ok(entries);
        }
        // Retention may have cut it while it was read; a hole for any other reason is damage.
        let first = self.shared.partitions[slot.0].span().first;
        if from < first {
            return Err(LogError::Gone { offset: from.0, first: first.0 });
        }
        Err(store::damaged(&format!("entries from offset {from} on are missing")))
    }
}

/// Reads files, off the runtime's threads.
pub async fn blocking<T: Send + 'static>(
    shared: &Arc<Shared>,
    read: impl FnOnce(&Store) -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    let shared = shared.clone();
    let reading = tokio::task::spawn_blocking(move || match shared.store() {
        Some(store) => read(&store),
        None => Err(LogError::Unavailable { reason: "the store is not open".to_string() }),
    });
    reading.await.unwrap_or_else(|error| Err(LogError::Unavailable { reason: error.to_string() }))
}
