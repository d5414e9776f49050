//! Who reads `control`: every edge and API. A reader follows the topic and offers what holds as one immutable value,
//! with its age. It goes on with what it knows while the log is away, and says that it is degraded.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use anyhow::Context;
use daemon::{Backoff, Clock, Drain};
use protocol::{DeliveryPolicy, DeviceKey, Offset, PartitionId, TenantId, Time, envelope};
use tokio::sync::watch;
use tracing::{error, warn};

use super::credential::{self, CredentialError, TokenKeys};
use super::entry::{ControlEntry, ControlKey, Kid};
use super::region_key::{Purpose, RegionKey};
use super::rotation::{FleetKeySpan, sealing_key};
use super::secret::Secret;
use crate::log::{Log, LogError, LogReader, ReadLimit, StoredEntry, Topic};

/// A fleet key, opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FleetKey {
    pub span: FleetKeySpan,
    pub secret: Secret,
}

/// All that holds, as of some moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Control {
    /// Those to come and those that open old sessions too.
    pub fleet_keys: BTreeMap<Kid, FleetKey>,
    pub token_keys: TokenKeys,
    pub revoked: BTreeSet<DeviceKey>,
    pub policies: BTreeMap<TenantId, DeliveryPolicy>,
}

impl Control {
    /// Reads the topic whole.
    pub async fn load(log: &dyn Log, region_key: &RegionKey) -> Result<Self, LogError> {
        let mut control = Control::default();
        log.newest(Topic::Control).await?.iter().for_each(|entry| control.handle_entry(entry, region_key));
        Ok(control)
    }

    /// Whether credentials and sessions can be issued.
    pub fn has_keys(&self, now: Time) -> bool {
        !self.token_keys.is_empty() && self.sealing_key(now).is_some()
    }

    /// What new sessions are sealed under.
    pub fn sealing_key(&self, now: Time) -> Option<&FleetKey> {
        let span = sealing_key(self.fleet_keys.values().map(|key| key.span), now)?;
        self.fleet_keys.get(&span.kid)
    }

    /// What sessions of this kid are opened with: nothing once the key should be wiped, even if nobody wiped it.
    pub fn opening_key(&self, kid: Kid, now: Time) -> Option<&FleetKey> {
        self.fleet_keys.get(&kid).filter(|key| now < key.span.wiped_after)
    }

    /// Whose credential this is.
    pub fn check_credential(&self, text: &str) -> Result<DeviceKey, CredentialError> {
        credential::check(text, &self.token_keys, &self.revoked)
    }

    /// A tenant without a policy of its own has the default one.
    pub fn policy(&self, tenant: TenantId) -> DeliveryPolicy {
        self.policies.get(&tenant).copied().unwrap_or_default()
    }

    /// An entry that this build cannot read is passed by, aloud: the rest still holds.
    fn handle_entry(&mut self, stored: &StoredEntry, region_key: &RegionKey) {
        let offset = stored.offset.0;
        let Some(key) = ControlKey::decode(&stored.key) else {
            error!(offset, "a control entry of an unknown kind was passed by");
            return;
        };
        if stored.value.is_empty() {
            self.remove(key);
            return;
        }
        match envelope::decode::<ControlEntry>(&stored.value) {
            Ok(entry) if entry.key() == key => self.put(entry, offset, region_key),
            Ok(_) => error!(offset, "a control entry under another's key was passed by"),
            Err(error) => error!(%error, offset, "a control entry was passed by"),
        }
    }

    fn put(&mut self, entry: ControlEntry, offset: u64, region_key: &RegionKey) {
        match entry {
            ControlEntry::FleetKey { kid, not_before, wiped_after, wrapped } => {
                let span = FleetKeySpan { kid, not_before, wiped_after };
                match region_key.unwrap(&wrapped, Purpose::Fleet { kid, not_before, wiped_after }) {
                    Ok(secret) => drop(self.fleet_keys.insert(kid, FleetKey { span, secret })),
                    Err(error) => error!(%error, offset, kid = kid.0, "a fleet key was passed by"),
                }
            }
            ControlEntry::TokenKey { id, wrapped } => match region_key.unwrap(&wrapped, Purpose::Token { id }) {
                Ok(secret) => self.token_keys.insert(id, secret),
                Err(error) => error!(%error, offset, id = id.0, "a token key was passed by"),
            },
            ControlEntry::Revoked { device } => drop(self.revoked.insert(device)),
            ControlEntry::TenantPolicy { tenant, policy } => drop(self.policies.insert(tenant, policy)),
        }
    }

    fn remove(&mut self, key: ControlKey) {
        match key {
            ControlKey::FleetKey(kid) => drop(self.fleet_keys.remove(&kid)),
            ControlKey::TokenKey(id) => self.token_keys.remove(id),
            ControlKey::Revoked(device) => drop(self.revoked.remove(&device)),
            ControlKey::TenantPolicy(tenant) => drop(self.policies.remove(&tenant)),
        }
    }
}

/// Follows the topic. Cheap to clone.
#[derive(Clone)]
pub struct ControlReader {
    control: watch::Receiver<Arc<Control>>,
    current_at: Arc<AtomicI64>,
}

impl ControlReader {
    /// Begins to follow; what holds is known a moment later (`until_current`).
    pub fn start(log: Arc<dyn Log>, region_key: RegionKey, drain: &Drain, clock: Clock) -> Self {
        let (sender, control) = watch::channel(Arc::default());
        let current_at = Arc::new(AtomicI64::new(NEVER));
        let follower = Follower { log, region_key, clock, sender, current_at: current_at.clone() };
        let token = drain.token().clone();
        drain.spawn("control reader", async move {
            tokio::select! {
                () = token.cancelled() => Ok(()),
                outcome = follower.run() => outcome,
            }
        });
        ControlReader { control, current_at }
    }

    /// What holds, as far as it is known. Cheap, and the same `Arc` until something changes.
    pub fn snapshot(&self) -> Arc<Control> {
        self.control.borrow().clone()
    }

    /// Sees every change, or the newest of several.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Control>> {
        self.control.clone()
    }

    /// How long ago this was all there was, by the clock's monotonic time; None if it never was.
    pub fn age(&self, monotonic: Time) -> Option<Duration> {
        let at = self.current_at.load(Ordering::Acquire);
        (at != NEVER).then(|| monotonic.since(Time(at)))
    }

    pub fn is_degraded(&self, monotonic: Time) -> bool {
        self.age(monotonic).is_none_or(|age| age > DEGRADED_AFTER)
    }

    /// Returns when the topic has been read to its end once. Cancellation safe.
    pub async fn until_current(&self) {
        let mut control = self.control.clone();
        while self.current_at.load(Ordering::Acquire) == NEVER {
            if control.changed().await.is_err() {
                // The follower has ended: it will never be.
                std::future::pending::<()>().await;
            }
        }
    }
}

struct Follower {
    log: Arc<dyn Log>,
    region_key: RegionKey,
    clock: Clock,
    sender: watch::Sender<Arc<Control>>,
    current_at: Arc<AtomicI64>,
}

impl Follower {
    async fn run(self) -> anyhow::Result<()> {
        let backoff = Backoff::default();
        let mut failures = 0;
        let opened = self.log.reader(Topic::Control, PARTITION, Offset(0)).await;
        let mut reader = opened.context("read control")?;
        loop {
            match self.step(&mut *reader).await {
                Ok(()) => failures = 0,
                Err(LogError::Closed) => return Ok(()),
                Err(error) if error.is_transient() => {
                    if failures % 16 == 0 {
                        warn!(%error, "control cannot be read, what is known goes on to hold");
                    }
                    tokio::time::sleep(backoff.delay(failures)).await;
                    failures = failures.saturating_add(1);
                }
                Err(error) => return Err(error).context("read control"),
            }
        }
    }

    async fn step(&self, reader: &mut dyn LogReader) -> Result<(), LogError> {
        let wait = self.clock.real(READ_WAIT);
        // Taken before reading: an entry appended meanwhile is not known to be known.
        let before = Time(self.clock.monotonic_ms());
        let read = reader.read(ReadLimit::default(), wait).await?;
        if !read.is_empty() {
            let mut control = Control::clone(&self.sender.borrow());
            read.iter().for_each(|entry| control.handle_entry(entry, &self.region_key));
            self.sender.send_replace(Arc::new(control));
        }
        // A log that is away may answer nothing, as one does where nothing is new; it cannot answer its range.
        if reader.next() >= self.log.range(Topic::Control, PARTITION).await?.next {
            let was = self.current_at.swap(before.0, Ordering::AcqRel);
            if was == NEVER {
                self.sender.send_modify(|_| ());
            }
        }
        Ok(())
    }
}

const PARTITION: PartitionId = PartitionId(0);
const NEVER: i64 = i64::MIN;
/// From then on an edge says that it is degraded, and goes on.
pub const DEGRADED_AFTER: Duration = Duration::from_secs(60);
const READ_WAIT: Duration = Duration::from_secs(5);
