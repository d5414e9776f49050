//! The relay: carries the records of the ledger's and the registry's outbox to the `records` topic, those of a delivery in
//! the order in which they were committed, at least once. A row is settled, by its number, only when the log has it for
//! good; what a stop leaves behind is carried at the next start.
//!
//! One process carries at a time: the member of a group that holds the control topic's one partition. One that has lost
//! it without having heard may carry a row once more; whoever reads takes each once.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use async_trait::async_trait;
use bytes::Bytes;
use daemon::{Backoff, ProcessContext, retry};
use protocol::{PartitionId, RecordBatch, envelope, partition_of};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::ledger::{DeliveryLedger, LedgerError, OutboxRow};
use crate::log::{Append, Holding, Log, LogError, Topic, share};
use crate::registry::{Registry, RegistryError};

/// What the relay works on.
pub struct RelayParts {
    pub log: Arc<dyn Log>,
    pub ledger: Arc<dyn DeliveryLedger>,
    pub registry: Arc<dyn Registry>,
}

/// Carries both outboxes until the drain stops.
pub fn start(parts: RelayParts, context: &ProcessContext) {
    let RelayParts { log, ledger, registry } = parts;
    let drain = &context.drain;
    let stop = drain.token();
    let (deliveries, leads) = (Arc::new(Deliveries(ledger)), Arc::new(Leads(registry)));
    drain.spawn("relay of the ledger", carry_in_turn(log.clone(), "relay-ledger", deliveries, stop.clone()));
    drain.spawn("relay of the registry", carry_in_turn(log, "relay-registry", leads, stop.clone()));
}

async fn carry_in_turn(
    log: Arc<dyn Log>,
    group: &'static str,
    outbox: Arc<impl Outbox>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let work = |holding: Holding| carry(log.clone(), outbox.clone(), holding.stop);
    share(&*log, group, Topic::Control, &stop, work).await
}

/// What the relay asks of whoever keeps an outbox.
#[async_trait]
trait Outbox: Send + Sync + 'static {
    async fn oldest(&self) -> Result<Vec<OutboxRow>, RelayError>;
    async fn settle(&self, sequences: &[u64]) -> Result<(), RelayError>;
    async fn changed(&self);
}

struct Deliveries(Arc<dyn DeliveryLedger>);
struct Leads(Arc<dyn Registry>);

#[async_trait]
impl Outbox for Deliveries {
    async fn oldest(&self) -> Result<Vec<OutboxRow>, RelayError> {
        Ok(self.0.outbox(ROWS_MAX).await?)
    }
    async fn settle(&self, sequences: &[u64]) -> Result<(), RelayError> {
        Ok(self.0.outbox_settled(sequences).await?)
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
    async fn settle(&self, sequences: &[u64]) -> Result<(), RelayError> {
        Ok(self.0.outbox_settled(sequences).await?)
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

async fn carry(log: Arc<dyn Log>, outbox: Arc<impl Outbox>, stop: CancellationToken) -> anyhow::Result<()> {
    while !stop.is_cancelled() {
        let round = || carry_oldest(&*log, &*outbox);
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
    let sequences: Vec<u64> = rows.iter().map(|row| row.sequence).collect();
    if rows.is_empty() {
        return Ok(0);
    }
    log.append(&entries_of(rows, log.partition_count(Topic::Records))).await.into_offsets()?;
    outbox.settle(&sequences).await?;
    Ok(sequences.len())
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use daemon::admin::Readiness;
    use daemon::{Clock, Drain, Meter};
    use protocol::record::Vehicle;
    use protocol::{
        DeliveryPolicy, DeliveryState, DriverId, Position, Record, Stop, StopKind, TenantId, Time, TrackerKey,
    };

    use super::*;
    use crate::control::Secret;
    use crate::control::credential::{TokenKeyId, TokenKeys};
    use crate::ledger::NewDelivery;
    use crate::ledger::embedded::EmbeddedLedger;
    use crate::log::embedded::{EmbeddedLog, EmbeddedLogConfig};
    use crate::log::front::{Front, Gate};
    use crate::log::{Appended, read_range};
    use crate::registry::embedded::EmbeddedRegistry;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_record_comes_to_its_trackers_partition_in_order() {
        let world = World::open(tempfile::tempdir().unwrap());
        let drain = world.start(world.log.clone());
        let mut expected: BTreeMap<Vec<u8>, Vec<Record>> = BTreeMap::new();

        let key = world.ledger.create(order(), None, NOW).await.unwrap().key;
        for driver in [5, 6, 5, 7] {
            world.ledger.assign(key, Some(DriverId(driver)), None, NOW).await.unwrap();
        }
        let last = world.ledger.transition(key, DeliveryState::Failed, None, None, NOW).await.unwrap();
        world.eventually(|records| records.iter().any(|r| is_ledger_event(r, last.last_number()))).await;
        drain.stop(PATIENCE).await;

        for record in world.ledger_records() {
            expected.entry(record.key().unwrap().key_bytes().to_vec()).or_default().push(record);
        }
        for (key_bytes, of_key) in expected {
            let partition = partition_of(&key_bytes, world.log.partition_count(Topic::Records));
            let found = records_in(&*world.log, partition).await;
            let found: Vec<_> = found.into_iter().filter(|r| *r.key().unwrap().key_bytes() == key_bytes[..]).collect();
            assert_eq!(found, of_key);
        }
        assert_eq!(world.ledger.outbox(100).await.unwrap(), []);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_the_registry_says_is_carried_too() {
        let world = World::open(tempfile::tempdir().unwrap());
        let drain = world.start(world.log.clone());
        let tenant = world.registry.create_tenant("a", DeliveryPolicy::default(), NOW).await.unwrap().0.id;
        let driver = world.registry.create_driver(tenant, "Ana", "", Vehicle::Car, NOW).await.unwrap().id;
        let (device, _) = world.registry.enrol(tenant, driver, NOW).await.unwrap();

        world.registry.lead(device, NOW).await.unwrap();

        world.eventually(|records| records.contains(&Record::Lead { device, at: NOW })).await;
        drain.stop(PATIENCE).await;
        assert_eq!(drain.failure(), None);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_log_that_fails_for_a_while_delays_records_and_loses_none() {
        let world = World::open(tempfile::tempdir().unwrap());
        let flaky = Arc::new(Flaky { log: world.log.clone(), failures: Arc::new(Failures(3.into())) });
        let mut made = Vec::new();
        for _ in 0..100 {
            made.push(TrackerKey::from(world.ledger.create(order(), None, NOW).await.unwrap().key));
        }

        let drain = world.start(flaky);
        world.eventually(|records| made.iter().all(|key| records.iter().any(|r| r.key() == Some(*key)))).await;
        drain.stop(PATIENCE).await;

        assert_eq!(drain.failure(), None);
        assert_eq!(world.ledger.outbox(100).await.unwrap(), []);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_log_that_fails_for_good_stops_the_process_with_the_rows_kept() {
        let world = World::open(tempfile::tempdir().unwrap());
        world.log.close();
        world.ledger.create(order(), None, NOW).await.unwrap();

        let drain = world.start(world.log.clone());
        tokio::time::timeout(PATIENCE, drain.token().cancelled()).await.unwrap();

        // Both relays find the log closed; which of them is the first to say so is chance.
        assert!(drain.failure().is_some_and(|reason| reason.starts_with("relay of the ")), "{:?}", drain.failure());
        assert_eq!(world.ledger.outbox(100).await.unwrap().len(), 1);
    }

    struct World {
        log: Arc<EmbeddedLog>,
        ledger: Arc<EmbeddedLedger>,
        registry: Arc<EmbeddedRegistry>,
        folder: tempfile::TempDir,
    }

    impl World {
        fn open(folder: tempfile::TempDir) -> Self {
            let keys = TokenKeys::new([(TokenKeyId(1), Secret::random())]);
            let at = |name| folder.path().join(name);
            World {
                log: Arc::new(EmbeddedLog::open(at("log"), EmbeddedLogConfig::default()).unwrap()),
                ledger: Arc::new(EmbeddedLedger::open(&at("ledger.db")).unwrap()),
                registry: Arc::new(EmbeddedRegistry::open(&at("registry.db"), keys).unwrap()),
                folder,
            }
        }

        fn start(&self, log: Arc<dyn Log>) -> Drain {
            let drain = Drain::default();
            let context = ProcessContext {
                clock: Clock::system(),
                meter: Meter::discard(),
                readiness: Readiness::default(),
                drain: drain.clone(),
            };
            start(RelayParts { log, ledger: self.ledger.clone(), registry: self.registry.clone() }, &context);
            drain
        }

        async fn eventually(&self, holds: impl Fn(&[Record]) -> bool) {
            let wait = async {
                loop {
                    let mut records = Vec::new();
                    for partition in 0..self.log.partition_count(Topic::Records) {
                        records.extend(records_in(&*self.log, PartitionId(partition)).await);
                    }
                    if holds(&records) {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::time::timeout(PATIENCE, wait).await.expect("the records did not come");
        }

        /// What the outbox held: the same once more in a second ledger, whose rows nobody settles.
        fn ledger_records(&self) -> Vec<Record> {
            let path = self.folder.path().join("replayed.db");
            let replayed = EmbeddedLedger::open(&path).unwrap();
            let work = async {
                let key = replayed.create(order(), None, NOW).await.unwrap().key;
                for driver in [5, 6, 5, 7] {
                    replayed.assign(key, Some(DriverId(driver)), None, NOW).await.unwrap();
                }
                replayed.transition(key, DeliveryState::Failed, None, None, NOW).await.unwrap();
                replayed.outbox(100).await.unwrap()
            };
            let rows = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(work));
            rows.into_iter().map(|row| row.record).collect()
        }
    }

    fn is_ledger_event(record: &Record, number: protocol::JournalNumber) -> bool {
        matches!(record, Record::Ledger { entry, .. } if entry.number == number)
    }

    async fn records_in(log: &dyn Log, partition: PartitionId) -> Vec<Record> {
        let range = log.range(Topic::Records, partition).await.unwrap();
        let entries = read_range(log, Topic::Records, partition, range).await.unwrap();
        entries.iter().flat_map(|entry| envelope::decode::<RecordBatch>(&entry.value).unwrap().records).collect()
    }

    fn order() -> NewDelivery {
        let stop = |kind| Stop {
            kind,
            position: Position::from_degrees(41.15, -8.61).unwrap(),
            radius_m: 60,
            label: String::new(),
        };
        NewDelivery {
            tenant: TenantId(7),
            id: None,
            stops: vec![stop(StopKind::Pickup), stop(StopKind::DropOff)],
            policy: DeliveryPolicy::default(),
            reference: String::new(),
            driver: None,
        }
    }

    /// A log whose first appends fail.
    struct Flaky {
        log: Arc<EmbeddedLog>,
        failures: Arc<Failures>,
    }

    struct Failures(std::sync::atomic::AtomicI32);

    impl Front for Flaky {
        fn behind(&self) -> &dyn Log {
            &*self.log
        }

        fn gate(&self) -> Arc<dyn Gate> {
            self.failures.clone()
        }
    }

    #[async_trait]
    impl Gate for Failures {
        async fn pass(&self, entries: &[Append]) -> Option<Appended> {
            let is_away = self.0.fetch_sub(1, std::sync::atomic::Ordering::Relaxed) > 0;
            let away = LogError::Unavailable { reason: "away".to_string() };
            is_away.then(|| Appended::failed(entries.len(), &away))
        }
    }

    const NOW: Time = Time(1_700_000_000_000);
    const PATIENCE: Duration = Duration::from_secs(20);
}
