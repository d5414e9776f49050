//! What registry and ledger know to be true of one partition, appended as ordinary records where the log does not hold it
//! any more: leads and vehicles, live deliveries with assignment and journal. Trackers take each once, so what they know
//! already changes nothing.
//!
//! Both stores go on changing meanwhile, and their relay appends what changed in an order of its own. So they are read
//! again after each append, until nothing has changed since what was appended: whatever changes later is appended later.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use backends::ledger::{DeliveryLedger, LedgerError};
use backends::log::{Append, Log, LogError, Topic};
use backends::registry::{DriverFact, Registry, RegistryError};
use bytes::Bytes;
use daemon::{Backoff, retry};
use protocol::{
    AssignmentNumber, Delivery, DeliveryKey, DriverKey, PartitionId, Record, RecordBatch, Time, TrackerKey, envelope,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Who knows the facts.
#[derive(Clone)]
pub(crate) struct FactSources {
    pub ledger: Arc<dyn DeliveryLedger>,
    pub registry: Arc<dyn Registry>,
}

/// A delivery that a tracker holds, and under which assignment.
pub(crate) type HeldDelivery = (TrackerKey, DeliveryKey, AssignmentNumber);

/// Appends the facts of a partition. `held` is what its trackers hold after all that the log has.
pub(crate) async fn append_facts(
    (log, sources): (&dyn Log, &FactSources),
    partition: PartitionId,
    held: Vec<HeldDelivery>,
    now: &(dyn Fn() -> Time + Sync),
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let (said, said_of_drivers) = (BTreeMap::new(), BTreeMap::new());
    let mut facts = Facts { log, sources, now, partition, stop, said, said_of_drivers, count: 0 };
    facts.end_lost(held).await?;
    for round in 0.. {
        let changed = facts.append_changed().await?;
        if !changed {
            break;
        }
        if round == ROUNDS_MAX {
            warn!(
                partition = partition.0,
                "registry and ledger change faster than they are read: the relay says the rest"
            );
            break;
        }
    }
    info!(partition = partition.0, records = facts.count, "what registry and ledger know is in the records");
    Ok(())
}

struct Facts<'a> {
    log: &'a dyn Log,
    sources: &'a FactSources,
    now: &'a (dyn Fn() -> Time + Sync),
    partition: PartitionId,
    stop: &'a CancellationToken,
    /// Deliveries as they were appended last, with the key that they were appended to.
    said: BTreeMap<DeliveryKey, Delivery>,
    said_of_drivers: BTreeMap<DriverKey, DriverFact>,
    count: usize,
}

impl Facts<'_> {
    /// What trackers hold and the ledger says is over or elsewhere: its end was lost with the records.
    async fn end_lost(&mut self, held: Vec<HeldDelivery>) -> anyhow::Result<()> {
        let mut records = Vec::new();
        for (tracker, key, assignment) in held {
            let Some(delivery) = self.delivery(key).await? else { continue };
            records.extend(end_of(tracker, key, assignment, delivery));
        }
        self.append(records).await
    }

    /// Whether anything was to be said that was not said before.
    async fn append_changed(&mut self) -> anyhow::Result<bool> {
        let mut records = self.news_of_drivers().await?;
        let live = self.read_ledger().await?;
        let before = std::mem::take(&mut self.said);
        for (key, said) in &before {
            if live.iter().any(|delivery| delivery.key == *key && holder(delivery) == holder(said)) {
                continue;
            }
            let Some(delivery) = self.delivery(*key).await? else { continue };
            records.extend(end_of(holder(said), *key, said.assignment, delivery));
        }
        for delivery in &live {
            if before.get(&delivery.key) != Some(delivery) {
                records.push(Record::Assign { to: holder(delivery), delivery: Box::new(delivery.clone()) });
            }
        }
        self.said = live.into_iter().map(|delivery| (delivery.key, delivery)).collect();
        let has_changed = !records.is_empty();
        self.append(records).await?;
        Ok(has_changed)
    }

    async fn news_of_drivers(&mut self) -> anyhow::Result<Vec<Record>> {
        // Before it is read: a change while it is read is the later word.
        let at = (self.now)();
        let facts = self.read_registry().await?;
        let mut records = Vec::new();
        for fact in facts {
            if self.said_of_drivers.insert(fact.driver, fact) == Some(fact) {
                continue;
            }
            records.extend(fact.lead.map(|device| Record::Lead { device, at }));
            records.push(Record::Vehicle { driver: fact.driver, vehicle: fact.vehicle });
        }
        Ok(records)
    }

    async fn append(&mut self, records: Vec<Record>) -> anyhow::Result<()> {
        self.count += records.len();
        for some in records.chunks(RECORDS_PER_ENTRY) {
            let value = Bytes::from(envelope::encode(&RecordBatch { records: some.to_vec() }));
            let entry = Append { topic: Topic::Records, partition: self.partition, key: Bytes::new(), value };
            let append = || self.log.append(vec![entry.clone()]);
            retry("append the facts", Backoff::default(), self.stop, LogError::is_transient, append)
                .await
                .context("append the facts")?;
        }
        Ok(())
    }

    async fn read_registry(&self) -> anyhow::Result<Vec<DriverFact>> {
        let (registry, count) = (&self.sources.registry, self.log.partition_count(Topic::Records));
        let read = || registry.facts(self.partition, count);
        let read = retry("ask the registry", Backoff::default(), self.stop, RegistryError::is_transient, read);
        read.await.context("ask the registry for its facts")
    }

    async fn read_ledger(&self) -> anyhow::Result<Vec<Delivery>> {
        let (ledger, count) = (&self.sources.ledger, self.log.partition_count(Topic::Records));
        let read = || ledger.facts(self.partition, count);
        let read = retry("ask the ledger", Backoff::default(), self.stop, LedgerError::is_transient, read);
        read.await.context("ask the ledger for its facts")
    }

    async fn delivery(&self, key: DeliveryKey) -> anyhow::Result<Option<Delivery>> {
        let read = || self.sources.ledger.delivery(key);
        let read = retry("ask the ledger", Backoff::default(), self.stop, LedgerError::is_transient, read);
        read.await.context("ask the ledger for a delivery")
    }
}

/// What ends a delivery that a tracker holds, by what the ledger says of it; nothing while it is rightly there.
fn end_of(tracker: TrackerKey, key: DeliveryKey, assignment: AssignmentNumber, delivery: Delivery) -> Option<Record> {
    if holder(&delivery) != tracker {
        return Some(Record::Release { from: tracker, delivery: key, assignment });
    }
    // Whole, so that those who watch get the entries that they missed with its end.
    delivery.state.is_finished().then(|| Record::Assign { to: tracker, delivery: Box::new(delivery) })
}

/// Whose tracker has a delivery.
fn holder(delivery: &Delivery) -> TrackerKey {
    match delivery.driver {
        Some(driver) => TrackerKey::Driver(DriverKey { tenant: delivery.key.tenant, driver }),
        None => TrackerKey::Delivery(delivery.key),
    }
}

/// A delivery has 90 KB at most: 64 entries with reasons of 1 KB and 16 labelled stops.
const RECORDS_PER_ENTRY: usize = 32;
const ROUNDS_MAX: usize = 10;
