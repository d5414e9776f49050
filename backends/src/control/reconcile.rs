//! Control says all that the registry says. A revocation and a tenant's policy are written to the registry first and to
//! control second; a stop between the two, or a log that was lost, leaves control behind. So the two are compared at
//! every start and every minute.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use daemon::{Clock, Drain};
use tracing::{info, warn};

use super::reader::{Control, ControlReader};
use super::writer::ControlWriter;
use crate::log::LogError;
use crate::registry::{Registry, RegistryError};

#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Writes to control what it lacks; answers how much that was.
pub async fn reconcile(
    registry: &dyn Registry,
    control: &Control,
    writer: &ControlWriter,
) -> Result<usize, ReconcileError> {
    let mut written = 0;
    for device in registry.revoked().await?.into_iter().filter(|device| !control.revoked.contains(device)) {
        writer.revoke(device).await?;
        written += 1;
    }
    for tenant in registry.tenants().await? {
        // Who reads control holds a tenant without a policy to the default one.
        if control.policy(tenant.id) != tenant.policy {
            writer.put_policy(tenant.id, tenant.policy).await?;
            written += 1;
        }
    }
    Ok(written)
}

/// Keeps the two together until the drain stops. What cannot be read or written now is looked at again next time.
pub fn start(registry: Arc<dyn Registry>, control: ControlReader, writer: ControlWriter, drain: &Drain, clock: Clock) {
    let stop = drain.token().clone();
    drain.spawn("control reconciliation", async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = clock.sleep(RECONCILE_EVERY) => {}
            }
            match reconcile(&*registry, &control.snapshot(), &writer).await {
                Ok(0) => {}
                Ok(written) => info!(written, "control was brought up to what the registry says"),
                Err(ReconcileError::Log(LogError::Closed)) => return Ok(()),
                Err(ReconcileError::Log(error)) if !error.is_transient() => {
                    return Err(error).context("bring control up to the registry");
                }
                Err(error) => warn!(%error, "control could not be compared with the registry"),
            }
        }
    });
}

const RECONCILE_EVERY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use protocol::record::Vehicle;
    use protocol::{DeliveryPolicy, Time};

    use super::*;
    use crate::control::{RegionKey, Secret, TokenKeyId, TokenKeys};
    use crate::log::embedded::{EmbeddedLog, EmbeddedLogConfig};
    use crate::registry::embedded::EmbeddedRegistry;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_only_the_registry_knows_comes_to_control_once() {
        let folder = tempfile::tempdir().unwrap();
        let log = Arc::new(EmbeddedLog::open(folder.path().join("log"), EmbeddedLogConfig::default()).unwrap());
        let (key, writer) = region(&log);
        let token_keys = TokenKeys::new([(TokenKeyId(0), Secret::random())]);
        let registry = EmbeddedRegistry::open(&folder.path().join("registry.db"), token_keys).unwrap();
        let policy = DeliveryPolicy { stale_after_s: 17, ..DeliveryPolicy::default() };
        let tenant = registry.create_tenant("a", policy, Time(0)).await.unwrap().0.id;
        registry.create_tenant("b", DeliveryPolicy::default(), Time(0)).await.unwrap();
        let driver = registry.create_driver(tenant, "Ana", "", Vehicle::Car, Time(0)).await.unwrap().id;
        let (device, _) = registry.enrol(tenant, driver, Time(0)).await.unwrap();
        registry.revoke(device, Time(0)).await.unwrap();
        let load = async || Control::load(&*log, &key).await.unwrap();

        let written = reconcile(&registry, &load().await, &writer).await.unwrap();

        assert_eq!(written, 2);
        assert!(load().await.revoked.contains(&device));
        assert_eq!(load().await.policy(tenant), policy);
        assert_eq!(reconcile(&registry, &load().await, &writer).await.unwrap(), 0);
    }

    fn region(log: &Arc<EmbeddedLog>) -> (RegionKey, ControlWriter) {
        let key = RegionKey::new(Secret::random());
        (key.clone(), ControlWriter::new(log.clone(), key))
    }
}
