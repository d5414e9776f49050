//! A log that takes everything at once and keeps nothing of records: for measuring what stands before it. Control is
//! kept, because an edge without keys opens nothing.

use std::sync::Arc;

use async_trait::async_trait;
use backends::log::embedded::{EmbeddedLog, EmbeddedLogConfig};
use backends::log::front::{Front, Gate};
use backends::log::{Append, Appended, Log, LogError, Topic};
use protocol::Offset;

pub struct NullLog {
    control: Arc<EmbeddedLog>,
}

impl NullLog {
    pub fn open(folder: &std::path::Path, partitions: u32) -> Result<Self, LogError> {
        let config = EmbeddedLogConfig { partitions, ..EmbeddedLogConfig::default() };
        Ok(NullLog { control: Arc::new(EmbeddedLog::open(folder, config)?) })
    }
}

impl Front for NullLog {
    fn behind(&self) -> &dyn Log {
        &*self.control
    }

    fn gate(&self) -> Arc<dyn Gate> {
        Arc::new(NoRecords)
    }
}

/// Lets no record through.
struct NoRecords;

#[async_trait]
impl Gate for NoRecords {
    async fn pass(&self, entries: &[Append]) -> Option<Appended> {
        let are_records = entries.iter().all(|entry| entry.topic == Topic::Records);
        are_records.then(|| Appended::durable(vec![Offset(0); entries.len()]))
    }
}
