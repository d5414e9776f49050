//! Who writes `control`: the API for revocations and policies, and one process of a region for the keys.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use daemon::{Backoff, Clock, Drain, retry};
use protocol::{DeliveryPolicy, DeviceKey, PartitionId, TenantId, Time, envelope};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::credential::TokenKeyId;
use super::entry::{ControlEntry, ControlKey, Kid};
use super::reader::Control;
use super::region_key::{Purpose, RegionKey};
use super::rotation::{FleetKeySpan, Moment, Rotation, next_step};
use super::secret::Secret;
use crate::log::{Append, Holding, Log, LogError, Topic, share};

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

    /// What a start needs: returns once there are keys. Whoever's turn it is makes them, so that of two first starts only
    /// one does; the other finds them.
    pub async fn until_keys(&self, clock: Clock, stop: &CancellationToken) -> anyhow::Result<()> {
        let made = CancellationToken::new();
        let work = |holding: Holding| {
            let (writer, made) = (self.clone(), made.clone());
            async move {
                let rotate = || writer.rotate(Moment::by(clock));
                retry("make keys", Backoff::default(), &holding.stop, LogError::is_transient, rotate).await?;
                made.cancel();
                holding.stop.cancelled().await;
                Ok(())
            }
        };
        let ends = CancellationToken::new();
        let mut sharing = std::pin::pin!(share(&*self.log, ROTATION_GROUP, Topic::Control, &ends, work));
        loop {
            let control = Control::load(&*self.log, &self.region_key).await;
            match control {
                Ok(control) if made.is_cancelled() || control.has_keys(Time(clock.now_ms())) => break,
                Err(error) if !error.is_transient() => return Err(error).context("look for keys"),
                Ok(_) | Err(_) => {}
            }
            tokio::select! {
                shared = &mut sharing => return shared,
                () = made.cancelled() => {}
                () = stop.cancelled() => return Err(LogError::Closed).context("wait for keys"),
                () = tokio::time::sleep(LOOK_FOR_KEYS_EVERY) => {}
            }
        }
        ends.cancel();
        sharing.await
    }

    /// Brings keys into being and moves them on. For one process at a time.
    pub async fn rotate(&self, moment: Moment) -> Result<(), LogError> {
        let mut control = Control::load(&*self.log, &self.region_key).await?;
        if control.token_keys.is_empty() {
            self.put_token_key(TokenKeyId(0), &Secret::random()).await?;
            info!("a token key was made");
        }
        let spans = |control: &Control| -> Vec<FleetKeySpan> {
            control.fleet_keys.values().map(|fleet_key| fleet_key.span).collect()
        };
        while let Some(step) = next_step(&spans(&control), &moment) {
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
            let work = |holding: Holding| self.clone().rotate_while_held(holding, clock);
            share(&*self.log, ROTATION_GROUP, Topic::Control, &token, work).await
        });
    }

    async fn rotate_while_held(self, holding: Holding, clock: Clock) -> anyhow::Result<()> {
        let mut stepped = clock.stepped();
        loop {
            let rotate = || self.rotate(Moment::by(clock));
            match retry("rotate keys", Backoff::default(), &holding.stop, LogError::is_transient, rotate).await {
                Ok(()) => {}
                Err(error) if holding.stop.is_cancelled() => {
                    warn!(%error, "keys were not rotated before the stop");
                    return Ok(());
                }
                Err(error) => return Err(error).context("rotate keys"),
            }
            tokio::select! {
                () = holding.stop.cancelled() => return Ok(()),
                () = clock.sleep(ROTATE_EVERY) => {}
                // What was published by another time may be of no use by this one.
                Ok(()) = stepped.changed() => {}
            }
        }
    }

    async fn put(&self, entry: &ControlEntry) -> Result<(), LogError> {
        self.append(entry.key(), Bytes::from(envelope::encode(entry))).await
    }

    async fn append(&self, key: ControlKey, value: Bytes) -> Result<(), LogError> {
        let append = Append { topic: Topic::Control, partition: PartitionId(0), key: key.encode(), value };
        self.log.append(&[append]).await.into_offsets()?;
        Ok(())
    }
}

const ROTATION_GROUP: &str = "control-rotation";
const ROTATE_EVERY: Duration = Duration::from_secs(60);
const LOOK_FOR_KEYS_EVERY: Duration = Duration::from_millis(200);
