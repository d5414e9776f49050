//! A log that takes everything at once and keeps nothing of records: for measuring what stands before it. Control is
//! kept, because an edge without keys opens nothing.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backends::log::embedded::{EmbeddedLog, EmbeddedLogConfig};
use backends::log::{Append, Log, LogError, Membership, OffsetRange, ReadLimit, StoredEntry, Topic};
use protocol::{Offset, PartitionId, Time};

pub struct NullLog {
    control: Arc<EmbeddedLog>,
}

impl NullLog {
    pub fn open(folder: &std::path::Path, partitions: u32) -> Result<Self, LogError> {
        let config = EmbeddedLogConfig { partitions, ..EmbeddedLogConfig::default() };
        Ok(NullLog { control: Arc::new(EmbeddedLog::open(folder, config)?) })
    }
}

#[async_trait]
impl Log for NullLog {
    fn partition_count(&self, topic: Topic) -> u32 {
        self.control.partition_count(topic)
    }

    fn incarnation(&self) -> u32 {
        self.control.incarnation()
    }

    async fn append(&self, entries: Vec<Append>) -> Result<Vec<Offset>, LogError> {
        if entries.iter().all(|entry| entry.topic == Topic::Records) {
            return Ok(entries.iter().map(|_| Offset(0)).collect());
        }
        self.control.append(entries).await
    }

    async fn read(
        &self,
        topic: Topic,
        partition: PartitionId,
        from: Offset,
        limit: ReadLimit,
        wait: Duration,
    ) -> Result<Vec<StoredEntry>, LogError> {
        self.control.read(topic, partition, from, limit, wait).await
    }

    async fn range(&self, topic: Topic, partition: PartitionId) -> Result<OffsetRange, LogError> {
        self.control.range(topic, partition).await
    }

    async fn offset_at(&self, topic: Topic, partition: PartitionId, at: Time) -> Result<Offset, LogError> {
        self.control.offset_at(topic, partition, at).await
    }

    async fn newest(&self, topic: Topic) -> Result<Vec<StoredEntry>, LogError> {
        self.control.newest(topic).await
    }

    async fn join(&self, group: &str, topic: Topic) -> Result<Box<dyn Membership>, LogError> {
        self.control.join(group, topic).await
    }

    async fn commit(&self, group: &str, topic: Topic, partition: PartitionId, next: Offset) -> Result<(), LogError> {
        self.control.commit(group, topic, partition, next).await
    }

    async fn committed(&self, group: &str, topic: Topic, partition: PartitionId) -> Result<Option<Offset>, LogError> {
        self.control.committed(group, topic, partition).await
    }
}
