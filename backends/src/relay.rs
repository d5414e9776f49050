//! The relay: carries the records of the ledger's and the registry's outbox to the `records` topic, in the order in
//! which they were committed, at least once. A row is settled only when the log has it for good; what a stop leaves
//! behind is carried at the next start.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use async_trait::async_trait;
use bytes::Bytes;
use daemon::{Backoff, Drain, retry};
use protocol::{PartitionId, RecordBatch, envelope, partition_of};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::ledger::{DeliveryLedger, LedgerError, OutboxRow};
use crate::log::{Append, Log, LogError, Topic};
use crate::registry::{Registry, RegistryError};

/// Carries both outboxes until the drain stops.
pub fn start(log: Arc<dyn Log>, ledger: Arc<dyn DeliveryLedger>, registry: Arc<dyn Registry>, drain: &Drain) {
    let stop = drain.token();
    drain.spawn("relay of the ledger", carry(log.clone(), Deliveries(ledger), stop.clone()));
    drain.spawn("relay of the registry", carry(log, Leads(registry), stop.clone()));
}

/// What the relay asks of whoever keeps an outbox.
#[async_trait]
trait Outbox: Send + Sync + 'static {
    async fn oldest(&self) -> Result<Vec<OutboxRow>, RelayError>;
    async fn settle(&self, through: u64) -> Result<(), RelayError>;
    async fn changed(&self);
}

struct Deliveries(Arc<dyn DeliveryLedger>);
struct Leads(Arc<dyn Registry>);

#[async_trait]
impl Outbox for Deliveries {
    async fn oldest(&self) -> Result<Vec<OutboxRow>, RelayError> {
        Ok(self.0.outbox(ROWS_MAX).await?)
    }
    async fn settle(&self, through: u64) -> Result<(), RelayError> {
        Ok(self.0.outbox_settled(through).await?)
    }
    async fn changed(&self) {
        self.0.outbox_changed().await;
    }
}

#[async_trait]
impl Outbox for Leads {
    async fn oldest(&self) -> Result<Vec<OutboxRow>, RelayError> {
        Ok(self.0.outbox(ROWS_MAX).await?)
    }
    async fn settle(&self, through: u64) -> Result<(), RelayError> {
        Ok(self.0.outbox_settled(through).await?)
    }
    async fn changed(&self) {
        self.0.outbox_changed().await;
    }
}

#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Log(#[from] LogError),
}

impl RelayError {
    fn is_transient(&self) -> bool {
        match self {
            RelayError::Ledger(error) => error.is_transient(),
            RelayError::Registry(error) => error.is_transient(),
            RelayError::Log(error) => error.is_transient(),
        }
    }
}

async fn carry(log: Arc<dyn Log>, outbox: impl Outbox, stop: CancellationToken) -> anyhow::Result<()> {
    while !stop.is_cancelled() {
        let round = || carry_oldest(&*log, &outbox);
        let carried = match retry("relay", Backoff::default(), &stop, RelayError::is_transient, round).await {
            Ok(carried) => carried,
            Err(error) if error.is_transient() => break, // told to stop while it was away
            Err(error) => return Err(error).context("carry the outbox to the log"),
        };
        if carried > 0 {
            debug!(rows = carried, "carried to the log");
            continue;
        }
        tokio::select! {
            () = outbox.changed() => {}
            () = stop.cancelled() => {}
        }
    }
    Ok(())
}

/// One round: what is oldest, to the log, settled. Interrupted or failed at any place it is done again whole.
async fn carry_oldest(log: &dyn Log, outbox: &impl Outbox) -> Result<usize, RelayError> {
    let rows = outbox.oldest().await?;
    let Some(last) = rows.last() else { return Ok(0) };
    let (through, count) = (last.sequence, rows.len());
    log.append(entries_of(rows, log.partition_count(Topic::Records))).await?;
    outbox.settle(through).await?;
    Ok(count)
}

/// One entry per partition, its records in the order of their rows.
fn entries_of(rows: Vec<OutboxRow>, partition_count: u32) -> Vec<Append> {
    let mut batches: BTreeMap<PartitionId, RecordBatch> = BTreeMap::new();
    for row in rows {
        let key = row.record.key().expect("an outbox holds only records of a tracker");
        let partition = partition_of(&key.key_bytes(), partition_count);
        batches.entry(partition).or_default().records.push(row.record);
    }
    let entry = |(partition, batch)| {
        let value = Bytes::from(envelope::encode(&batch));
        Append { topic: Topic::Records, partition, key: Bytes::new(), value }
    };
    batches.into_iter().map(entry).collect()
}

/// How many rows one round carries. A delivery is at most some 100 KiB (16 stops, 64 journal entries, texts of 1 KiB),
/// so that even these together stay below what one entry may hold.
const ROWS_MAX: u32 = 32;
