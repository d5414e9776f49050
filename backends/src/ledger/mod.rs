//! The delivery ledger: the source of truth about deliveries. Append-only events, each committed with the outbox rows
//! that carry it to the log, before anybody is told.
//!
//! **Contract:** only allowed transitions, atomically; events of a delivery are numbered from 1 without gaps, except where
//! a loss was accepted: then they go on above every number that can have been given; the same
//! idempotency key with the same request answers the first answer again for `IDEMPOTENCY_KEPT`, with another request
//! it is refused (a request that was refused itself did nothing and is not remembered); outbox rows come in commit
//! order, per delivery in event order, and stay until they are settled. A driver has at most `OPEN_PER_DRIVER_MAX` open
//! deliveries: as many as his tracker can hold. Every record of a delivery goes to the key
//! that holds it: its driver's, or its own while it has none, finished or not.

#[cfg(test)]
mod conformance;
pub mod embedded;
mod rows;

use std::time::Duration;

use async_trait::async_trait;
use protocol::delivery::OPEN_PER_DRIVER_MAX;
use protocol::update::Proposal;
use protocol::{
    AssignmentNumber, Delivery, DeliveryId, DeliveryKey, DeliveryPolicy, DeliveryState, DriverId, JournalEntry,
    JournalNumber, PartitionId, Record, Stop, TenantId, Time,
};

/// What a tenant says to create a delivery.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct NewDelivery {
    pub tenant: TenantId,
    /// None: the ledger numbers it. A tenant's own number is 1 to `DELIVERY_ID_MAX`.
    pub id: Option<DeliveryId>,
    pub stops: Vec<Stop>,
    pub policy: DeliveryPolicy,
    pub reference: String,
    pub driver: Option<DriverId>,
}

/// A tenant's `Idempotency-Key`, scoped to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Idempotency {
    /// At most `TEXT_BYTES_MAX` bytes.
    pub key: String,
    /// SHA-256 of the request, so that the same key with another request is refused.
    pub request: [u8; 32],
    /// The clock's time for what is kept (`Clock::kept_ms`): a clock that was set forward forgets no request.
    pub kept: Time,
}

impl Idempotency {
    /// Requests made before then are forgotten.
    pub(crate) fn forgotten_before(&self, now: Time) -> Time {
        self.kept.min(now) - IDEMPOTENCY_KEPT
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("delivery {delivery} is not known to this tenant")]
    NotFound { delivery: DeliveryId },
    #[error("delivery {delivery} exists already")]
    Exists { delivery: DeliveryId },
    #[error("a delivery that is {} cannot become {}", from.name(), to.name())]
    Transition { from: DeliveryState, to: DeliveryState, allowed: &'static [DeliveryState] },
    #[error("a delivery that is {} cannot be assigned", state.name())]
    Finished { state: DeliveryState },
    #[error("a delivery that is {} is open", state.name())]
    Open { state: DeliveryState },
    #[error("driver {driver} has {OPEN_PER_DRIVER_MAX} open deliveries, and no driver has more")]
    DriverFull { driver: DriverId },
    #[error("{reason}")]
    Invalid { reason: &'static str },
    #[error("this idempotency key was used for another request")]
    IdempotencyMismatch,
    /// A fault of ours that costs this request alone.
    #[error("the ledger does not take it: {reason}")]
    Refused { reason: String },
    #[error("the ledger cannot be reached: {reason}")]
    Unavailable { reason: String },
    #[error("the ledger is damaged: {reason}")]
    Damaged { reason: String },
}

impl LedgerError {
    pub fn is_transient(&self) -> bool {
        matches!(self, LedgerError::Unavailable { .. })
    }
}

/// What became of a tracker's proposal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProposalOutcome {
    Written(JournalNumber),
    /// Said before for this assignment and stop.
    Repeated,
    /// Another assignment is the current one.
    Outdated,
    /// The delivery's policy or state does not allow it.
    NotAllowed,
}

/// Drawn when a delivery is made, and never told: what a token is bound to besides the delivery's number. A delivery that
/// got the number of one that was lost has another.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BirthMark(pub [u8; 16]);

/// A row of the outbox: a record on its way to the log.
#[derive(Clone, PartialEq, Debug)]
pub struct OutboxRow {
    /// Rises in commit order.
    pub sequence: u64,
    pub record: Record,
}

/// Which deliveries of a tenant to list, by number.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DeliveryFilter {
    pub after: DeliveryId,
    /// Only those that are not finished.
    pub is_live: bool,
    pub driver: Option<DriverId>,
    pub limit: u32,
}

#[async_trait]
pub trait DeliveryLedger: Send + Sync + 'static {
    /// Event 1 is `received`; with a driver, event 2 is `assigned`. Outbox: `Assign` to the key that holds it.
    async fn create(
        &self,
        new: NewDelivery,
        idempotency: Option<Idempotency>,
        now: Time,
    ) -> Result<Delivery, LedgerError>;

    async fn transition(
        &self,
        key: DeliveryKey,
        to: DeliveryState,
        reason: Option<String>,
        idempotency: Option<Idempotency>,
        now: Time,
    ) -> Result<Delivery, LedgerError>;

    /// Another driver, or nobody: the assignment number rises; `Release` to the old key, `Assign` whole to the new.
    /// The driver it already has changes nothing. Who the driver is, the registry knows: ask it before.
    async fn assign(
        &self,
        key: DeliveryKey,
        driver: Option<DriverId>,
        idempotency: Option<Idempotency>,
        now: Time,
    ) -> Result<Delivery, LedgerError>;

    /// A correction: a finished delivery is open again, in the state in which it ended, with the same driver. It is a new
    /// assignment, because the tracker that let it go has said its last of the one before: `Assigned`, then the status
    /// with its reason, and `Assign` whole to the key that holds it.
    async fn reopen(
        &self,
        key: DeliveryKey,
        reason: String,
        idempotency: Option<Idempotency>,
        now: Time,
    ) -> Result<Delivery, LedgerError>;

    /// Fails open deliveries whose last event is older than their policy allows, as `ABANDONED`, `limit` at most; answers
    /// those it failed. Fewer than `limit`: there are no more.
    async fn fail_abandoned(&self, limit: u32, now: Time) -> Result<Vec<DeliveryKey>, LedgerError>;

    /// The clerk's door: once per (delivery, assignment, kind, stop), if the assignment is the current one. Picked up
    /// only from ready and by the policy; arriving by the policy; nothing once the delivery is finished.
    async fn propose(
        &self,
        key: DeliveryKey,
        assignment: AssignmentNumber,
        proposal: Proposal,
        now: Time,
    ) -> Result<ProposalOutcome, LedgerError>;

    /// What tokens of this delivery are bound to; None for one that is not known, or that is older than birth marks.
    async fn birth_mark(&self, key: DeliveryKey) -> Result<Option<BirthMark>, LedgerError>;

    /// With its newest `JOURNAL_MAX` entries.
    async fn delivery(&self, key: DeliveryKey) -> Result<Option<Delivery>, LedgerError>;

    async fn deliveries(&self, tenant: TenantId, filter: DeliveryFilter) -> Result<Vec<Delivery>, LedgerError>;

    /// What is true of one partition of so many: the live deliveries that its trackers hold, with assignment and journal.
    async fn facts(&self, partition: PartitionId, count: u32) -> Result<Vec<Delivery>, LedgerError>;

    /// Entries numbered above `after`, oldest first.
    async fn journal(
        &self,
        key: DeliveryKey,
        after: JournalNumber,
        limit: u32,
    ) -> Result<Vec<JournalEntry>, LedgerError>;

    /// The oldest unsettled rows.
    async fn outbox(&self, limit: u32) -> Result<Vec<OutboxRow>, LedgerError>;

    /// These rows, and no others, are durable in the log: of two rows the one with the lower number may have been committed
    /// later, and not have been seen by whoever settles.
    async fn outbox_settled(&self, sequences: &[u64]) -> Result<(), LedgerError>;

    /// Resolves when a row may have been added since it was last called; at once at the first call. For one relay at a
    /// time. Cancellation safe.
    async fn outbox_changed(&self);
}

/// How long an idempotency key is remembered.
pub const IDEMPOTENCY_KEPT: Duration = Duration::from_secs(24 * 3600);
/// SQL databases have signed integers; the largest is left for "beyond all".
pub const DELIVERY_ID_MAX: u64 = i64::MAX as u64 - 1;
/// How long a reference, a label, a reason or an idempotency key may be.
pub const TEXT_BYTES_MAX: usize = 1024;
/// How much one call lists at most, whatever limit it names.
pub const LIST_MAX: u32 = 1000;
