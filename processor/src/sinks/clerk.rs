//! The clerk: carries what trackers propose to the ledger, which writes each once, if its assignment is the current one
//! and the tenant's policy allows. The ledger's word comes back to the tracker through the log.

use std::sync::Arc;

use anyhow::Context;
use async_trait::async_trait;
use backends::ledger::{DeliveryLedger, LedgerError, ProposalOutcome};
use backends::log::{StoredEntry, Topic};
use daemon::{Backoff, retry};
use protocol::update::{Event, Proposal};
use protocol::{DeliveryUpdate, Offset, PartitionId, Update};
use tracing::debug;

use super::{Reader, Sink, Work};

pub struct Clerk {
    pub ledger: Arc<dyn DeliveryLedger>,
}

#[async_trait]
impl Sink for Clerk {
    const GROUP: &'static str = "clerk";
    const TOPIC: Topic = Topic::Updates;
    type Work = ClerkWork;

    fn begin(&self, _: PartitionId) -> ClerkWork {
        ClerkWork { ledger: self.ledger.clone() }
    }
}

pub struct ClerkWork {
    ledger: Arc<dyn DeliveryLedger>,
}

#[async_trait]
impl Work for ClerkWork {
    async fn first(&mut self, reader: &Reader, taken: Option<Offset>) -> anyhow::Result<Offset> {
        let range = reader.log.range(Topic::Updates, reader.partition).await.context("look at the updates topic")?;
        Ok(taken.unwrap_or_default().max(range.first))
    }

    async fn handle(&mut self, reader: &Reader, entries: Vec<StoredEntry>) -> anyhow::Result<()> {
        for (_, batch) in reader.updates(&entries) {
            for update in &batch.updates {
                let Update::Delivery(update) = update else { continue };
                for event in &update.events {
                    if let Event::Proposed { proposal } = event {
                        self.propose(reader, update, *proposal).await?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl ClerkWork {
    async fn propose(&self, reader: &Reader, update: &DeliveryUpdate, proposal: Proposal) -> anyhow::Result<()> {
        let propose = || self.ledger.propose(update.key, update.epoch.assignment, proposal, reader.now());
        let is_transient = LedgerError::is_transient;
        match retry("propose to the ledger", Backoff::default(), &reader.stop, is_transient, propose).await {
            Ok(ProposalOutcome::Written(number)) => {
                debug!(delivery = update.key.delivery.0, number = number.0, "proposal written");
                reader.metrics.proposals_written.increment(1);
            }
            Ok(ProposalOutcome::Repeated | ProposalOutcome::Outdated | ProposalOutcome::NotAllowed) => {
                reader.metrics.proposals_refused.increment(1);
            }
            Err(error @ (LedgerError::Unavailable { .. } | LedgerError::Damaged { .. })) => {
                return Err(error).context("propose to the ledger");
            }
            Err(
                error @ (LedgerError::NotFound { .. }
                | LedgerError::Exists { .. }
                | LedgerError::Transition { .. }
                | LedgerError::Finished { .. }
                | LedgerError::Open { .. }
                | LedgerError::DriverFull { .. }
                | LedgerError::Invalid { .. }
                | LedgerError::Refused { .. }
                | LedgerError::IdempotencyMismatch),
            ) => {
                debug!(%error, delivery = update.key.delivery.0, "proposal refused");
                reader.metrics.proposals_refused.increment(1);
            }
        }
        Ok(())
    }
}
