//! A log in front of another: whatever it does not change goes through. Tests and benches stand one in front of a real
//! log to take it away, slow it down or keep nothing.

use std::sync::Arc;

use async_trait::async_trait;
use protocol::{Offset, PartitionId, Time};
use tokio::sync::{mpsc, oneshot};

use super::append::{Line, Turn};
use super::{
    Append, Appended, Appender, Appending, Log, LogError, LogReader, Membership, OffsetRange, Pace, StoredEntry, Topic,
};

pub trait Front: Send + Sync + 'static {
    fn behind(&self) -> &dyn Log;

    /// What stands in the way of appends.
    fn gate(&self) -> Arc<dyn Gate>;
}

#[async_trait]
pub trait Gate: Send + Sync + 'static {
    /// None: they go through, when this answers. Else what is answered in the log's place.
    async fn pass(&self, entries: &[Append]) -> Option<Appended>;
}

#[async_trait]
impl<F: Front> Log for F {
    fn partition_count(&self, topic: Topic) -> u32 {
        self.behind().partition_count(topic)
    }

    fn incarnation(&self) -> u32 {
        self.behind().incarnation()
    }

    fn pace(&self) -> Pace {
        self.behind().pace()
    }

    fn appender(&self) -> Box<dyn Appender> {
        let (begun, waiting) = mpsc::channel(BEGUN_MAX);
        let passing = Passing { gate: self.gate(), behind: self.behind().appender(), waiting };
        // It ends when the appender is dropped and what it began is answered.
        tokio::spawn(passing.run());
        Box::new(FrontAppender { begun, line: Line::default() })
    }

    async fn reader(&self, topic: Topic, partition: PartitionId, from: Offset) -> Result<Box<dyn LogReader>, LogError> {
        self.behind().reader(topic, partition, from).await
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

    async fn committed(&self, group: &str, topic: Topic, partition: PartitionId) -> Result<Option<Offset>, LogError> {
        self.behind().committed(group, topic, partition).await
    }
}

/// One append on its way through the gate.
struct Begun {
    entries: Vec<Append>,
    turn: Arc<Turn>,
    answer: oneshot::Sender<Appended>,
}

struct FrontAppender {
    begun: mpsc::Sender<Begun>,
    line: Line,
}

#[async_trait]
impl Appender for FrontAppender {
    async fn begin(&mut self, entries: &[Append]) -> Appending {
        let (answer, answered) = oneshot::channel();
        let turn = Arc::new(self.line.enter());
        let begun = Begun { entries: entries.to_vec(), turn: turn.clone(), answer };
        let _ended = self.begun.send(begun).await;
        let count = entries.len();
        Appending::new(async move {
            let appended = answered.await.unwrap_or_else(|_| Appended::failed(count, &LogError::Closed));
            drop(turn);
            appended
        })
    }
}

/// What passes the gate, one after the other.
struct Passing {
    gate: Arc<dyn Gate>,
    behind: Box<dyn Appender>,
    waiting: mpsc::Receiver<Begun>,
}

impl Passing {
    async fn run(mut self) {
        while let Some(Begun { entries, turn, answer }) = self.waiting.recv().await {
            let instead = if turn.is_behind_failure() {
                Some(Appended::failed(entries.len(), &LogError::Behind))
            } else {
                self.gate.pass(&entries).await
            };
            if let Some(instead) = instead {
                if instead.failure().is_some() {
                    turn.fail();
                }
                drop(turn);
                let _gone = answer.send(instead);
                continue;
            }
            let appending = self.behind.begin(&entries).await;
            tokio::spawn(async move {
                let appended = appending.await;
                if appended.failure().is_some() {
                    turn.fail();
                }
                drop(turn);
                let _gone = answer.send(appended);
            });
        }
    }
}

const BEGUN_MAX: usize = 64;
