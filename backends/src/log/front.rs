//! A log in front of another: whatever it does not change goes through. Tests and benches stand one in front of a real
//! log to take it away, slow it down or keep nothing.

use std::time::Duration;

use async_trait::async_trait;
use protocol::{Offset, PartitionId, Time};

use super::{Append, Log, LogError, Membership, OffsetRange, ReadLimit, StoredEntry, Topic};

#[async_trait]
pub trait Front: Send + Sync + 'static {
    fn behind(&self) -> &dyn Log;

    async fn append_in_front(&self, entries: Vec<Append>) -> Result<Vec<Offset>, LogError>;
}

#[async_trait]
impl<F: Front> Log for F {
    fn partition_count(&self, topic: Topic) -> u32 {
        self.behind().partition_count(topic)
    }

    fn incarnation(&self) -> u32 {
        self.behind().incarnation()
    }

    async fn append(&self, entries: Vec<Append>) -> Result<Vec<Offset>, LogError> {
        self.append_in_front(entries).await
    }

    async fn read(
        &self,
        topic: Topic,
        partition: PartitionId,
        from: Offset,
        limit: ReadLimit,
        wait: Duration,
    ) -> Result<Vec<StoredEntry>, LogError> {
        self.behind().read(topic, partition, from, limit, wait).await
    }

    async fn range(&self, topic: Topic, partition: PartitionId) -> Result<OffsetRange, LogError> {
        self.behind().range(topic, partition).await
    }

    async fn offset_at(&self, topic: Topic, partition: PartitionId, at: Time) -> Result<Offset, LogError> {
        self.behind().offset_at(topic, partition, at).await
    }

    async fn newest(&self, topic: Topic) -> Result<Vec<StoredEntry>, LogError> {
        self.behind().newest(topic).await
    }

    async fn join(&self, group: &str, topic: Topic) -> Result<Box<dyn Membership>, LogError> {
        self.behind().join(group, topic).await
    }

    async fn commit(&self, group: &str, topic: Topic, partition: PartitionId, next: Offset) -> Result<(), LogError> {
        self.behind().commit(group, topic, partition, next).await
    }

    async fn committed(&self, group: &str, topic: Topic, partition: PartitionId) -> Result<Option<Offset>, LogError> {
        self.behind().committed(group, topic, partition).await
    }
}
