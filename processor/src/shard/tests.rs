//! An owner whose stores refuse for a while, over the real log and stores.

use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use backends::blob_store::embedded::FolderBlobStore;
use backends::control::TokenKeys;
use backends::ledger::embedded::EmbeddedLedger;
use backends::ledger::{BirthMark, OutboxRow};
use backends::log::embedded::{EmbeddedLog, EmbeddedLogConfig};
use backends::log::read_range;
use backends::registry::embedded::EmbeddedRegistry;
use backends::registry::{
    Driver, DriverChange, DriverFact, Made, New, Once, Registry, RegistryError, Scope, SessionStart, Tenant,
};
use daemon::Meter;
use protocol::record::Vehicle;
use protocol::{DeliveryKey, DeliveryPolicy, DeviceKey, DriverId, RecordBatch, TenantId, envelope};

use super::*;
use crate::ProcessorSettings;

#[tokio::test(flavor = "multi_thread")]
async fn facts_that_are_refused_are_asked_for_again_by_the_same_owner_and_said_to_be_missing_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let config = EmbeddedLogConfig { partitions: 1, ..EmbeddedLogConfig::default() };
    let log = Arc::new(EmbeddedLog::open(folder.path().join("log"), config).unwrap());
    let behind = EmbeddedRegistry::open(&folder.path().join("registry.db"), TokenKeys::new([])).unwrap();
    let now = Time(Clock::system().now_ms());
    let (tenant, _) = behind.create_tenant("a", DeliveryPolicy::default(), now).await.unwrap();
    behind.create_driver(tenant.id, "Ana", "", Vehicle::Bicycle, now).await.unwrap();
    let registry = Arc::new(RefusingFirst { behind, refusals: AtomicU32::new(2) });
    let ledger = Arc::new(EmbeddedLedger::open(&folder.path().join("ledger.db")).unwrap());
    let blobs: Arc<dyn BlobStore> = Arc::new(FolderBlobStore::open(folder.path().join("blobs")).unwrap());
    let (drain, readiness) = (Drain::default(), Readiness::default());
    let metrics = ProcessorMetrics::new(&Meter::discard());
    let bodies = LocalBodies::new(blobs.clone(), folder.path().join("maps"), drain.token().clone());
    let planner = OutsidePlanner::start(None, log.clone(), Clock::system(), metrics.clone(), &drain);
    let config = ProcessorSettings::default().check(folder.path()).unwrap();
    let facts = FactSources { ledger, registry: registry.clone() };
    let seams = (log.clone() as Arc<dyn Log>, blobs, facts);
    let shards =
        Shards::new(config, seams, (Arc::new(bodies), planner), None, Clock::system(), metrics, readiness.clone());

    shards.start(&drain);

    let (mut was_degraded, mut tries) = (false, 0);
    while registry.refusals.load(Ordering::SeqCst) > 0 || !readiness.describe().contains("processor: ready") {
        was_degraded |= readiness.describe().contains("may be missing until registry and ledger answer");
        assert!(was_degraded || !readiness.describe().contains("processor: ready"), "ready while facts are missing");
        tries += 1;
        assert!(tries < 4_000, "{}", readiness.describe());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(was_degraded);
    let range = log.range(Topic::Records, PartitionId(0)).await.unwrap();
    let entries = read_range(&*log, Topic::Records, PartitionId(0), range).await.unwrap();
    let batches = entries.iter().map(|entry| envelope::decode::<RecordBatch>(&entry.value).unwrap());
    let records: Vec<Record> = batches.flat_map(|batch| batch.records).collect();
    let claims = records.iter().filter(|record| matches!(record, Record::Claim { .. })).count();
    let vehicles = records.iter().filter(|record| matches!(record, Record::Vehicle { .. })).count();
    assert_eq!((claims, vehicles), (1, 1));
    drain.stop(Duration::from_secs(5)).await;
}

/// The registry, whose facts cannot be read a few times, for a reason that does not look as if it would pass.
struct RefusingFirst {
    behind: EmbeddedRegistry,
    refusals: AtomicU32,
}

#[async_trait]
impl Registry for RefusingFirst {
    async fn facts(&self, partition: PartitionId, count: u32) -> Result<Vec<DriverFact>, RegistryError> {
        let refused = self.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        match refused {
            Ok(_) => Err(RegistryError::Damaged { reason: "as it seems".to_string() }),
            Err(_) => self.behind.facts(partition, count).await,
        }
    }

    async fn create_tenant(
        &self,
        name: &str,
        policy: DeliveryPolicy,
        now: Time,
    ) -> Result<(Tenant, String), RegistryError> {
        self.behind.create_tenant(name, policy, now).await
    }

    async fn tenant(&self, id: TenantId) -> Result<Tenant, RegistryError> {
        self.behind.tenant(id).await
    }

    async fn tenants(&self) -> Result<Vec<Tenant>, RegistryError> {
        self.behind.tenants().await
    }

    async fn create_driver(
        &self,
        tenant: TenantId,
        name: &str,
        external_id: &str,
        vehicle: Vehicle,
        now: Time,
    ) -> Result<Driver, RegistryError> {
        self.behind.create_driver(tenant, name, external_id, vehicle, now).await
    }

    async fn change_driver(
        &self,
        tenant: TenantId,
        driver: DriverId,
        change: DriverChange,
    ) -> Result<Driver, RegistryError> {
        self.behind.change_driver(tenant, driver, change).await
    }

    async fn driver(&self, tenant: TenantId, driver: DriverId) -> Result<Driver, RegistryError> {
        self.behind.driver(tenant, driver).await
    }

    async fn drivers(&self, tenant: TenantId, after: DriverId, limit: u32) -> Result<Vec<Driver>, RegistryError> {
        self.behind.drivers(tenant, after, limit).await
    }

    async fn enrol(&self, tenant: TenantId, driver: DriverId, now: Time) -> Result<(DeviceKey, String), RegistryError> {
        self.behind.enrol(tenant, driver, now).await
    }

    async fn revoke(&self, device: DeviceKey, now: Time) -> Result<Vec<DeviceKey>, RegistryError> {
        self.behind.revoke(device, now).await
    }

    async fn revoked(&self) -> Result<Vec<DeviceKey>, RegistryError> {
        self.behind.revoked().await
    }

    async fn create_delivery_token(
        &self,
        key: DeliveryKey,
        birth: Option<BirthMark>,
        now: Time,
    ) -> Result<String, RegistryError> {
        self.behind.create_delivery_token(key, birth, now).await
    }

    async fn once(&self, once: Once, new: New, now: Time) -> Result<Made, RegistryError> {
        self.behind.once(once, new, now).await
    }

    async fn scope_of(&self, token: &str) -> Result<Option<Scope>, RegistryError> {
        self.behind.scope_of(token).await
    }

    async fn start_session(&self, device: DeviceKey, now: Time) -> Result<SessionStart, RegistryError> {
        self.behind.start_session(device, now).await
    }

    async fn lead(&self, device: DeviceKey, now: Time) -> Result<(), RegistryError> {
        self.behind.lead(device, now).await
    }

    async fn outbox(&self, limit: u32) -> Result<Vec<OutboxRow>, RegistryError> {
        self.behind.outbox(limit).await
    }

    async fn outbox_settled(&self, sequences: &[u64]) -> Result<(), RegistryError> {
        self.behind.outbox_settled(sequences).await
    }

    async fn outbox_changed(&self) {
        self.behind.outbox_changed().await;
    }
}
