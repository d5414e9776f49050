//! An appender of the embedded log. The one writer keeps the order of the queue; the line keeps it over failures.

use std::sync::Arc;

use async_trait::async_trait;
use protocol::envelope::ENTRY_BYTES_MAX;
use tokio::sync::oneshot;

use super::layout::{KEY_BYTES_MAX, Layout, Slot};
use super::queue::{Place, Queue};
use super::shared::Shared;
use super::writer::Request;
use crate::log::append::Line;
use crate::log::{Append, Appended, Appender, Appending, LogError};

pub struct EmbeddedAppender {
    pub shared: Arc<Shared>,
    pub queue: Arc<Queue>,
    pub line: Line,
}

#[async_trait]
impl Appender for EmbeddedAppender {
    async fn begin(&mut self, entries: &[Append]) -> Appending {
        if entries.is_empty() {
            return Appending::ready(Appended::durable(Vec::new()));
        }
        let count = entries.len();
        let (place, slotted) = match self.place(entries).await {
            Ok(placed) => placed,
            Err(error) => return self.refused(count, error),
        };
        let turn = Arc::new(self.line.enter());
        let (reply, answer) = oneshot::channel();
        place.fill(Request::Append { entries: slotted, turn: turn.clone(), reply });
        Appending::new(async move {
            let outcome = answer.await.unwrap_or(Err(LogError::Closed));
            drop(turn);
            match outcome {
                Ok(offsets) => Appended::durable(offsets),
                Err(error) => Appended::failed(count, &error),
            }
        })
    }
}

impl EmbeddedAppender {
    async fn place(&self, entries: &[Append]) -> Result<(Place, Vec<(Slot, Append)>), LogError> {
        let (slotted, bytes) = slotted(&self.shared.layout, entries)?;
        Ok((self.queue.place(bytes).await?, slotted))
    }

    /// It never came into the queue, and those behind it must not either.
    fn refused(&self, count: usize, error: LogError) -> Appending {
        let turn = self.line.enter();
        turn.fail();
        Appending::new(async move {
            drop(turn);
            Appended::failed(count, &error)
        })
    }
}

/// The entries with where they go, and their bytes; an error if one of them cannot be appended.
fn slotted(layout: &Layout, entries: &[Append]) -> Result<(Vec<(Slot, Append)>, usize), LogError> {
    let mut bytes = 0;
    let mut slotted = Vec::with_capacity(entries.len());
    for append in entries {
        let no_partition = LogError::NoPartition { topic: append.topic.name(), partition: append.partition.0 };
        let slot = layout.slot(append.topic, append.partition).ok_or(no_partition)?;
        for (bytes, bytes_max) in [(append.value.len(), ENTRY_BYTES_MAX), (append.key.len(), KEY_BYTES_MAX)] {
            if bytes > bytes_max {
                return Err(LogError::TooLarge { bytes, bytes_max });
            }
        }
        bytes += append.key.len() + append.value.len();
        slotted.push((slot, append.clone()));
    }
    Ok((slotted, bytes))
}
