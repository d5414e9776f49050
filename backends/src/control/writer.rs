//! Who writes `control`: the API for revocations and policies, and one process of a region for the keys.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use daemon::{Backoff, Clock, Drain, retry};
use protocol::{DeliveryPolicy, DeviceKey, PartitionId, TenantId, Time, envelope};
use tracing::{info, warn};

use super::credential::TokenKeyId;
use super::entry::{ControlEntry, ControlKey, Kid};
use super::reader::Control;
use super::region_key::{Purpose, RegionKey};
use super::rotation::{FleetKeySpan, Rotation, next_step};
use super::secret::Secret;
use crate::log::{Append, Log, LogError, Topic};

/// Cheap to clone.
#[derive(Clone)]
pub struct ControlWriter {
    log: Arc<dyn Log>,
    region_key: RegionKey,
}

impl ControlWriter {
    pub fn new(log: Arc<dyn Log>, region_key: RegionKey) -> Self {
        ControlWriter { log, region_key }
    }

    pub async fn revoke(&self, device: DeviceKey) -> Result<(), LogError> {
        self.put(&ControlEntry::Revoked { device }).await
    }

    pub async fn put_policy(&self, tenant: TenantId, policy: DeliveryPolicy) -> Result<(), LogError> {
        self.put(&ControlEntry::TenantPolicy { tenant, policy }).await
    }

    pub async fn put_token_key(&self, id: TokenKeyId, key: &Secret) -> Result<(), LogError> {
        let wrapped = self.region_key.wrap(key, Purpose::Token { id });
        self.put(&ControlEntry::TokenKey { id, wrapped }).await
    }

    pub async fn put_fleet_key(&self, span: FleetKeySpan, key: &Secret) -> Result<(), LogError> {
        let FleetKeySpan { kid, not_before, wiped_after } = span;
        let wrapped = self.region_key.wrap(key, Purpose::Fleet { kid, not_before, wiped_after });
        self.put(&ControlEntry::FleetKey { kid, not_before, wiped_after, wrapped }).await
    }

    pub async fn wipe_fleet_key(&self, kid: Kid) -> Result<(), LogError> {
        self.append(ControlKey::FleetKey(kid), Bytes::new()).await
    }

    /// Brings keys into being and moves them on: what a region's first start needs, and every minute after.
    pub async fn rotate(&self, now: Time) -> Result<(), LogError> {
        let mut control = Control::load(&*self.log, &self.region_key).await?;
        if control.token_keys.is_empty() {
            self.put_token_key(TokenKeyId(0), &Secret::random()).await?;
            info!("a token key was made");
        }
        let spans = |control: &Control| -> Vec<FleetKeySpan> {
            control.fleet_keys.values().map(|fleet_key| fleet_key.span).collect()
        };
        while let Some(step) = next_step(&spans(&control), now) {
            match step {
                Rotation::Publish(span) => {
                    self.put_fleet_key(span, &Secret::random()).await?;
                    info!(kid = span.kid.0, not_before = %span.not_before, "a fleet key was published");
                }
                Rotation::Wipe(kid) => {
                    self.wipe_fleet_key(kid).await?;
                    info!(kid = kid.0, "a fleet key was wiped");
                }
            }
            control = Control::load(&*self.log, &self.region_key).await?;
        }
        Ok(())
    }

    /// Keeps keys rotated, in one process of the region at a time: the one that holds the topic's partition.
    pub fn start_rotation(self, drain: &Drain, clock: Clock) {
        let token = drain.token().clone();
        drain.spawn("control rotation", async move {
            let mut membership = self.log.join(ROTATION_GROUP, Topic::Control).await.context("share the rotation")?;
            let mut is_mine = false;
            loop {
                tokio::select! {
                    () = token.cancelled() => return Ok(()),
                    changed = membership.changed() => match changed {
                        Ok(partitions) => is_mine = !partitions.is_empty(),
                        Err(LogError::Closed) => return Ok(()),
                        Err(error) => return Err(error).context("share the rotation"),
                    },
                    () = clock.sleep(ROTATE_EVERY) => {}
                }
                if !is_mine {
                    continue;
                }
                let rotated = retry("rotating keys", Backoff::default(), &token, LogError::is_transient, || {
                    self.rotate(Time(clock.now_ms()))
                });
                match rotated.await {
                    Ok(()) => {}
                    Err(LogError::Closed) => return Ok(()),
                    Err(error) if error.is_transient() => warn!(%error, "keys were not rotated"),
                    Err(error) => return Err(error).context("rotate keys"),
                }
            }
        });
    }

    async fn put(&self, entry: &ControlEntry) -> Result<(), LogError> {
        self.append(entry.key(), Bytes::from(envelope::encode(entry))).await
    }

    async fn append(&self, key: ControlKey, value: Bytes) -> Result<(), LogError> {
        let append = Append { topic: Topic::Control, partition: PartitionId(0), key: key.encode(), value };
        self.log.append(vec![append]).await?;
        Ok(())
    }
}

const ROTATION_GROUP: &str = "control-rotation";
const ROTATE_EVERY: Duration = Duration::from_secs(60);
