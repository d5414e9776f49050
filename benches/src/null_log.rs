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
    keeps_control: bool,
}

impl NullLog {
    pub fn open(folder: &std::path::Path, partitions: u32) -> Result<Self, LogError> {
        let config = EmbeddedLogConfig { partitions, ..EmbeddedLogConfig::default() };
        Ok(NullLog { control: Arc::new(EmbeddedLog::open(folder, config)?), keeps_control: true })
    }

    /// Keeps nothing of control either.
    pub fn of_nothing(self) -> NullLog {
        NullLog { keeps_control: false, ..self }
    }
}

impl Front for NullLog {
    fn behind(&self) -> &dyn Log {
        &*self.control
    }

    fn gate(&self) -> Arc<dyn Gate> {
        Arc::new(Nothing { but_control: self.keeps_control })
    }
}

/// Lets nothing through, or control alone.
struct Nothing {
    but_control: bool,
}

#[async_trait]
impl Gate for Nothing {
    async fn pass(&self, entries: &[Append]) -> Option<Appended> {
        let is_taken = !self.but_control || entries.iter().all(|entry| entry.topic == Topic::Records);
        is_taken.then(|| Appended::durable(vec![Offset(0); entries.len()]))
    }
}
