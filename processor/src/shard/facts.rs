//! What registry and ledger know to be true of one partition, appended as ordinary records where the log does not hold it
//! any more: leads and vehicles, live deliveries with assignment and journal. Trackers take each once, so what they know
//! already changes nothing. What they hold and the stores do not know any more is taken back.
//!
//! Both stores go on changing meanwhile, and their relay appends what changed in an order of its own. So they are read
//! again after each append, until nothing has changed since what was appended: whatever changes later is appended later.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use backends::ledger::{DeliveryLedger, LedgerError};
use backends::log::{Append, Log, Topic, append_durably};
use backends::registry::{DriverFact, Registry, RegistryError};
use bytes::Bytes;
use daemon::{Backoff, retry};
use protocol::record::Vehicle;
use protocol::{
    AssignmentNumber, Delivery, DeliveryKey, DriverKey, PartitionId, Record, RecordBatch, Time, TrackerKey, envelope,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::track::{Partition, SaidOfDriver};

/// Who knows the facts.
#[derive(Clone)]
pub(crate) struct FactSources {
    pub ledger: Arc<dyn DeliveryLedger>,
    pub registry: Arc<dyn Registry>,
}

/// A delivery that a tracker holds, and under which assignment.
pub(crate) type HeldDelivery = (TrackerKey, DeliveryKey, AssignmentNumber);

/// What trackers hold after all that the log has.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held {
    pub deliveries: Vec<HeldDelivery>,
    pub drivers: Vec<SaidOfDriver>,
}

impl Held {
    pub fn of(partition: &Partition) -> Held {
        Held { deliveries: partition.assignments(), drivers: partition.said_of_drivers() }
    }
}

/// Appends the facts of a partition, and takes back what its trackers hold and the stores do not know any more.
pub(crate) async fn append_facts(
    (log, sources): (&dyn Log, &FactSources),
    partition: PartitionId,
    held: Held,
    now: &(dyn Fn() -> Time + Sync),
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let (said, said_of_drivers, held_of_drivers) = (BTreeMap::new(), BTreeMap::new(), held.drivers);
    let mut facts = Facts { log, sources, now, partition, stop, said, said_of_drivers, held_of_drivers, count: 0 };
    facts.end_lost(held.deliveries).await?;
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
    /// What trackers know of drivers, until that is compared.
    held_of_drivers: Vec<SaidOfDriver>,
    count: usize,
}

impl Facts<'_> {
    /// What trackers hold and the ledger says is over or elsewhere, or does not know: its end was lost with the records.
    async fn end_lost(&mut self, held: Vec<HeldDelivery>) -> anyhow::Result<()> {
        let mut records = Vec::new();
        for (tracker, key, assignment) in held {
            let delivery = self.delivery(key).await?;
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
            let delivery = self.delivery(*key).await?;
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
        let facts: BTreeMap<DriverKey, DriverFact> = facts.into_iter().map(|fact| (fact.driver, fact)).collect();
        let before = std::mem::replace(&mut self.said_of_drivers, facts);
        let said = |fact: &DriverFact| SaidOfDriver { driver: fact.driver, lead: fact.lead, vehicle: fact.vehicle };
        let held = std::mem::take(&mut self.held_of_drivers).into_iter().chain(before.values().map(said));
        let mut records: Vec<Record> =
            held.flat_map(|held| taken_back(held, self.said_of_drivers.get(&held.driver), at)).collect();
        for fact in self.said_of_drivers.values().filter(|fact| before.get(&fact.driver) != Some(fact)) {
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
            let appended = append_durably(self.log, "append the facts", self.stop, &[entry]).await;
            appended.context("append the facts")?;
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

/// What ends a delivery that a tracker holds, by what the ledger says of it; nothing while it is rightly there. One that a
/// ledger has lost is let go: nobody could ever end it.
fn end_of(
    tracker: TrackerKey,
    key: DeliveryKey,
    assignment: AssignmentNumber,
    delivery: Option<Delivery>,
) -> Option<Record> {
    let Some(delivery) = delivery.filter(|delivery| holder(delivery) == tracker) else {
        return Some(Record::Release { from: tracker, delivery: key, assignment });
    };
    // Whole, so that those who watch get the entries that they missed with its end.
    delivery.state.is_finished().then(|| Record::Assign { to: tracker, delivery: Box::new(delivery) })
}

/// What ends a lead, or a vehicle other than the default, that a tracker knows and the registry does not. It has no fact of
/// a driver of whom it knows neither.
fn taken_back(held: SaidOfDriver, fact: Option<&DriverFact>, at: Time) -> impl Iterator<Item = Record> + use<> {
    let ended = held.lead.filter(|_| fact.is_none_or(|fact| fact.lead.is_none()));
    let is_default = fact.is_none() && held.vehicle != Vehicle::default();
    let driver = held.driver;
    let vehicle = is_default.then(|| Record::Vehicle { driver, vehicle: Vehicle::default() });
    ended.map(|device| Record::LeadEnded { device, at }).into_iter().chain(vehicle)
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use backends::control::{Secret, TokenKeyId, TokenKeys};
    use backends::ledger::NewDelivery;
    use backends::ledger::embedded::EmbeddedLedger;
    use backends::log::ReadLimit;
    use backends::log::embedded::{EmbeddedLog, EmbeddedLogConfig};
    use backends::registry::DriverChange;
    use backends::registry::embedded::EmbeddedRegistry;
    use protocol::record::OwnerId;
    use protocol::update::Generation;
    use protocol::{DeliveryPolicy, DeliveryState, DeviceKey, DriverId, Offset, Position, Stop, StopKind, TenantId};

    use super::*;
    use crate::track::{Effects, NoBodies};

    const NOW: Time = Time(1_800_000_000_000);

    #[tokio::test(flavor = "multi_thread")]
    async fn a_delivery_that_ends_or_moves_between_reading_and_appending_does_not_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let world = World::open(folder.path());
        let ending = world.create(1).await;
        let moving = world.create(1).await;
        world.settle().await;
        // The facts were read here. Before they are appended, both change, and the relay is faster.
        let read = [ending.clone(), moving.clone()];
        world.ledger.transition(ending.key, DeliveryState::Failed, None, None, NOW).await.unwrap();
        world.ledger.assign(moving.key, Some(DriverId(2)), None, NOW).await.unwrap();
        world.relay().await;
        let stop = CancellationToken::new();
        let mut facts = Facts {
            log: &*world.log,
            sources: &world.sources,
            now: &|| NOW,
            partition: PartitionId(0),
            stop: &stop,
            said: read.iter().map(|delivery| (delivery.key, delivery.clone())).collect(),
            said_of_drivers: BTreeMap::new(),
            held_of_drivers: Vec::new(),
            count: 0,
        };
        let assign =
            |delivery: &Delivery| Record::Assign { to: holder(delivery), delivery: Box::new(delivery.clone()) };
        facts.append(read.iter().map(assign).collect()).await.unwrap();
        assert_eq!(world.fold().await.assignments().len(), 2, "without another look the ended one is back");

        while facts.append_changed().await.unwrap() {}

        let to = TrackerKey::Driver(DriverKey { tenant: TenantId(7), driver: DriverId(2) });
        assert_eq!(world.fold().await.assignments(), [(to, moving.key, AssignmentNumber(2))]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_ended_while_its_records_were_lost_is_ended_and_what_goes_on_is_there_whole() {
        let folder = tempfile::tempdir().unwrap();
        let world = World::open(folder.path());
        let (ended, going_on) = (world.create(1).await, world.create(2).await);
        world.relay().await;
        let held = Held::of(&world.fold().await);
        world.ledger.transition(ended.key, DeliveryState::Failed, None, None, NOW).await.unwrap();
        world.ledger.transition(going_on.key, DeliveryState::Accepted, None, None, NOW).await.unwrap();
        world.settle().await; // the relay's records of it are gone from the log

        let stop = CancellationToken::new();
        append_facts((&*world.log, &world.sources), PartitionId(0), held, &|| NOW, &stop).await.unwrap();

        let (folded, updates) = world.fold_told().await;
        let of = |key: DeliveryKey| updates.iter().filter(move |update| update.key == key);
        assert!(of(ended.key).next_back().unwrap().is_last);
        assert_eq!(folded.assignments().len(), 1);
        let told: Vec<u64> = of(going_on.key).flat_map(journal_of).collect();
        assert_eq!(told, [1, 2, 3]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_the_ledger_has_lost_is_let_go() {
        let folder = tempfile::tempdir().unwrap();
        let mut world = World::open(folder.path());
        let (lost, kept) = (world.create(1).await, world.create(2).await);
        world.relay().await;
        let held = Held::of(&world.fold().await);
        assert_eq!(held.deliveries.len(), 2);
        let emptied = Arc::new(EmbeddedLedger::open(&folder.path().join("emptied.db")).unwrap());
        (world.ledger, world.sources.ledger) = (emptied.clone(), emptied);

        let stop = CancellationToken::new();
        append_facts((&*world.log, &world.sources), PartitionId(0), held, &|| NOW, &stop).await.unwrap();

        let (folded, updates) = world.fold_told().await;
        assert_eq!(folded.assignments(), []);
        for key in [lost.key, kept.key] {
            assert!(updates.iter().rfind(|update| update.key == key).unwrap().is_last);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_lead_and_a_vehicle_that_the_registry_does_not_know_any_more_are_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let world = World::open(folder.path());
        let registry = &world.sources.registry;
        let (tenant, _) = registry.create_tenant("a", DeliveryPolicy::default(), NOW).await.unwrap();
        let mut drivers = Vec::new();
        for vehicle in [Vehicle::Bicycle, Vehicle::Bicycle, Vehicle::default()] {
            let driver = registry.create_driver(tenant.id, "Ana", "", vehicle, NOW).await.unwrap();
            let (device, _) = registry.enrol(tenant.id, driver.id, NOW).await.unwrap();
            registry.lead(device, NOW).await.unwrap();
            drivers.push((device.driver_key(), device, vehicle));
        }
        let unknown = DriverKey { tenant: TenantId(7), driver: DriverId(99) };
        let device_of_unknown =
            DeviceKey { device: drivers[0].1.device, tenant: unknown.tenant, driver: unknown.driver };
        for (driver, device, vehicle) in drivers.iter().copied().chain([(unknown, device_of_unknown, Vehicle::Bicycle)])
        {
            world.append(Record::Lead { device, at: NOW }).await;
            world.append(Record::Vehicle { driver, vehicle }).await;
        }
        let held = Held::of(&world.fold().await);
        // What says so is gone from the log.
        let change = DriverChange { vehicle: Some(Vehicle::default()), ..DriverChange::default() };
        registry.change_driver(tenant.id, drivers[0].0.driver, change).await.unwrap();
        registry.revoke(drivers[0].1, NOW).await.unwrap();
        registry.revoke(drivers[1].1, NOW).await.unwrap();

        let stop = CancellationToken::new();
        append_facts((&*world.log, &world.sources), PartitionId(0), held, &|| NOW, &stop).await.unwrap();

        let folded = world.fold().await;
        let known = |key| folded.driver_view(key).map(|view| (view.lead, view.vehicle)).unwrap();
        assert_eq!(known(drivers[0].0), (None, Vehicle::default()));
        assert_eq!(known(drivers[1].0), (None, Vehicle::Bicycle));
        assert_eq!(known(drivers[2].0), (Some(drivers[2].1), Vehicle::default()));
        assert_eq!(known(unknown), (None, Vehicle::default()));
    }

    fn journal_of(update: &protocol::DeliveryUpdate) -> Vec<u64> {
        let number = |event: &protocol::update::Event| {
            let protocol::update::Event::Journal { entry } = event else { return None };
            Some(entry.number.0)
        };
        update.events.iter().filter_map(number).collect()
    }

    struct World {
        log: Arc<EmbeddedLog>,
        ledger: Arc<EmbeddedLedger>,
        sources: FactSources,
    }

    impl World {
        fn open(folder: &std::path::Path) -> World {
            let config = EmbeddedLogConfig { partitions: 1, ..EmbeddedLogConfig::default() };
            let log = Arc::new(EmbeddedLog::open(folder.join("log"), config).unwrap());
            let ledger = Arc::new(EmbeddedLedger::open(&folder.join("ledger.db")).unwrap());
            let registry = EmbeddedRegistry::open(
                &folder.join("registry.db"),
                TokenKeys::new([(TokenKeyId(1), Secret::new([7; 32]))]),
            )
            .unwrap();
            let sources = FactSources { ledger: ledger.clone(), registry: Arc::new(registry) };
            World { log, ledger, sources }
        }

        async fn create(&self, driver: u32) -> Delivery {
            let position = Position { lat_e7: 411_500_000, lon_e7: -86_100_000 };
            let stop = |kind| Stop { kind, position, radius_m: 60, label: String::new() };
            let new = NewDelivery {
                tenant: TenantId(7),
                id: None,
                stops: vec![stop(StopKind::Pickup), stop(StopKind::DropOff)],
                policy: DeliveryPolicy::default(),
                reference: String::new(),
                driver: Some(DriverId(driver)),
            };
            self.ledger.create(new, None, NOW).await.unwrap()
        }

        /// Takes what waits for the relay away.
        async fn settle(&self) -> Vec<Record> {
            let rows = self.ledger.outbox(100).await.unwrap();
            let sequences: Vec<u64> = rows.iter().map(|row| row.sequence).collect();
            if !sequences.is_empty() {
                self.ledger.outbox_settled(&sequences).await.unwrap();
            }
            rows.into_iter().map(|row| row.record).collect()
        }

        async fn relay(&self) {
            for record in self.settle().await {
                self.append(record).await;
            }
        }

        async fn append(&self, record: Record) {
            let value = envelope::encode(&RecordBatch { records: vec![record] }).into();
            let entry = Append { topic: Topic::Records, partition: PartitionId(0), key: Bytes::new(), value };
            self.log.append(&[entry]).await.into_offsets().unwrap();
        }

        async fn fold(&self) -> Partition {
            self.fold_told().await.0
        }

        async fn fold_told(&self) -> (Partition, Vec<protocol::DeliveryUpdate>) {
            let own = Generation { incarnation: 1, claim: Offset(0) };
            let mut partition = Partition::new(PartitionId(0), Offset(0), own);
            let (limit, mut effects) = (ReadLimit::default(), Effects::default());
            let claim = RecordBatch { records: vec![Record::Claim { owner: OwnerId(1), at: NOW, incarnation: 1 }] };
            partition.handle_entry(Offset(0), &claim, &NoBodies, &mut effects);
            let entries = self
                .log
                .reader(Topic::Records, PartitionId(0), Offset(0))
                .await
                .unwrap()
                .read(limit, Duration::ZERO)
                .await;
            let entries = entries.unwrap();
            for entry in entries {
                let batch: RecordBatch = envelope::decode(&entry.value).unwrap();
                partition.handle_entry(Offset(entry.offset.0 + 1), &batch, &NoBodies, &mut effects);
            }
            let of_delivery = |update| match update {
                protocol::Update::Delivery(update) => Some(update),
                protocol::Update::Driver(_) | protocol::Update::Heartbeat { .. } => None,
            };
            (partition, effects.updates.into_iter().filter_map(of_delivery).collect())
        }
    }
}
