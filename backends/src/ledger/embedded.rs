//! The delivery ledger in one SQLite file. A single writer makes every rule plain: what a write reads, nobody changes
//! before it commits. A few thousand deliveries a second, which one city does not have.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use protocol::delivery::{ABANDONED, OPEN_PER_DRIVER_MAX, STOPS_MAX};
use protocol::update::Proposal;
use protocol::{
    AssignmentNumber, Delivery, DeliveryId, DeliveryKey, DeliveryState, DriverId, DriverKey, JournalEntry, JournalKind,
    JournalNumber, Milestone, PartitionId, Record, StopKind, TenantId, Time,
};
use rusqlite::Connection;
use tokio::sync::Notify;

use super::{
    BirthMark, DELIVERY_ID_MAX, DeliveryFilter, DeliveryLedger, Idempotency, LedgerError, NewDelivery, OutboxRow,
    ProposalOutcome, TEXT_BYTES_MAX, rows,
};
use crate::installation::{Given, Numbers};
use crate::outbox;
use crate::sqlite::{Guard, Sqlite, from_sqlite};

pub struct EmbeddedLedger {
    db: Sqlite,
    committed: Arc<Notify>,
    given: Given,
}

impl EmbeddedLedger {
    /// Opens or makes the file, outside any installation. Blocks.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        Self::open_guarded(path, None)
    }

    /// Opens or makes the file as part of an installation. Blocks.
    pub fn open_guarded(path: &Path, guard: Option<Guard>) -> Result<Self, LedgerError> {
        let committed = Arc::new(Notify::new());
        committed.notify_one();
        let notify = committed.clone();
        let given = Given::to(guard.as_ref());
        let db = Sqlite::open_guarded(path, rows::SCHEMA, guard, move || notify.notify_one())?;
        Ok(EmbeddedLedger { db, committed, given })
    }

    /// Why it must not be relied on any more, once anything has shown it.
    pub fn damage(&self) -> Option<String> {
        self.db.damage()
    }

    /// The highest numbers given in what the file holds. Reads it whole.
    pub async fn numbers(&self) -> Result<Numbers, LedgerError> {
        self.db.read(rows::numbers).await
    }

    /// From now on numbers lie above these: what was given and lost is not given again.
    pub async fn go_on_above(&self, numbers: Numbers) -> Result<(), LedgerError> {
        self.db.write(move |connection| rows::go_on_above(connection, numbers)).await
    }
}

from_sqlite!(LedgerError, Refused);

#[async_trait]
impl DeliveryLedger for EmbeddedLedger {
    async fn create(
        &self,
        new: NewDelivery,
        idempotency: Option<Idempotency>,
        now: Time,
    ) -> Result<Delivery, LedgerError> {
        check_new(&new)?;
        let (tenant, given, is_numbered) = (new.tenant, self.given.clone(), new.id.is_none());
        self.write_once(tenant, idempotency, now, move |connection| {
            let delivery = create(connection, new, now)?;
            let number = if is_numbered { delivery.key.delivery.0 } else { 0 };
            given.give(Numbers { delivery: number, ..Numbers::default() });
            Ok(delivery)
        })
        .await
    }

    async fn transition(
        &self,
        key: DeliveryKey,
        to: DeliveryState,
        reason: Option<String>,
        idempotency: Option<Idempotency>,
        now: Time,
    ) -> Result<Delivery, LedgerError> {
        check_text(reason.as_deref().unwrap_or_default())?;
        self.write_once(key.tenant, idempotency, now, move |connection| {
            let mut delivery = known(connection, key)?;
            let (from, allowed) = (delivery.state, delivery.state.allowed_next());
            if !allowed.contains(&to) {
                return Err(LedgerError::Transition { from, to, allowed });
            }
            if from.needs_reason(to) && reason.as_deref().unwrap_or_default().trim().is_empty() {
                return Err(LedgerError::Invalid { reason: "a delivery that is ready fails only with a reason" });
            }
            append(connection, &mut delivery, JournalKind::Status { status: to, reason }, now)?;
            Ok(delivery)
        })
        .await
    }

    async fn assign(
        &self,
        key: DeliveryKey,
        driver: Option<DriverId>,
        idempotency: Option<Idempotency>,
        now: Time,
    ) -> Result<Delivery, LedgerError> {
        self.write_once(key.tenant, idempotency, now, move |connection| assign(connection, key, driver, now)).await
    }

    async fn reopen(
        &self,
        key: DeliveryKey,
        reason: String,
        idempotency: Option<Idempotency>,
        now: Time,
    ) -> Result<Delivery, LedgerError> {
        check_text(&reason)?;
        self.write_once(key.tenant, idempotency, now, move |connection| reopen(connection, key, reason, now)).await
    }

    async fn fail_abandoned(&self, limit: u32, now: Time) -> Result<Vec<DeliveryKey>, LedgerError> {
        let given = self.given.clone();
        self.db
            .write(move |connection| {
                rows::mend_abandoned(connection, now)?;
                let abandoned = rows::abandoned(connection, limit, now)?;
                for key in &abandoned {
                    let mut delivery = known(connection, *key)?;
                    let reason = Some(ABANDONED.to_string());
                    let kind = JournalKind::Status { status: DeliveryState::Failed, reason };
                    let entry = append(connection, &mut delivery, kind, now)?;
                    given.give(Numbers { journal: entry.number.0, ..Numbers::default() });
                }
                Ok(abandoned)
            })
            .await
    }

    async fn propose(
        &self,
        key: DeliveryKey,
        assignment: AssignmentNumber,
        proposal: Proposal,
        now: Time,
    ) -> Result<ProposalOutcome, LedgerError> {
        let given = self.given.clone();
        self.db
            .write(move |connection| {
                let outcome = propose(connection, key, assignment, proposal, now)?;
                if let ProposalOutcome::Written(number) = outcome {
                    given.give(Numbers { journal: number.0, ..Numbers::default() });
                }
                Ok(outcome)
            })
            .await
    }

    async fn birth_mark(&self, key: DeliveryKey) -> Result<Option<BirthMark>, LedgerError> {
        self.db.read(move |connection| rows::birth_mark(connection, key)).await
    }

    async fn delivery(&self, key: DeliveryKey) -> Result<Option<Delivery>, LedgerError> {
        self.db.read(move |connection| rows::delivery(connection, key)).await
    }

    async fn deliveries(&self, tenant: TenantId, filter: DeliveryFilter) -> Result<Vec<Delivery>, LedgerError> {
        self.db.read(move |connection| rows::deliveries(connection, tenant, &filter)).await
    }

    async fn facts(&self, partition: PartitionId, count: u32) -> Result<Vec<Delivery>, LedgerError> {
        self.db.read(move |connection| rows::facts(connection, partition, count)).await
    }

    async fn journal(
        &self,
        key: DeliveryKey,
        after: JournalNumber,
        limit: u32,
    ) -> Result<Vec<JournalEntry>, LedgerError> {
        self.db.read(move |connection| rows::journal(connection, key, after, limit)).await
    }

    async fn outbox(&self, limit: u32) -> Result<Vec<OutboxRow>, LedgerError> {
        self.db.read(move |connection| Ok(outbox::oldest(connection, limit)?)).await
    }

    async fn outbox_settled(&self, sequences: &[u64]) -> Result<(), LedgerError> {
        let sequences = sequences.to_vec();
        self.db.write(move |connection| Ok(outbox::settle(connection, &sequences)?)).await
    }

    async fn outbox_changed(&self) {
        self.committed.notified().await;
    }
}

impl EmbeddedLedger {
    /// Does `work` unless this request was done before; then answers what it was answered.
    async fn write_once<F>(
        &self,
        tenant: TenantId,
        idempotency: Option<Idempotency>,
        now: Time,
        work: F,
    ) -> Result<Delivery, LedgerError>
    where
        F: FnOnce(&Connection) -> Result<Delivery, LedgerError> + Send + 'static,
    {
        let given = self.given.clone();
        let work = move |connection: &Connection| {
            let delivery = work(connection)?;
            let (assignment, journal) = (u64::from(delivery.assignment.0), delivery.last_number().0);
            given.give(Numbers { assignment, journal, ..Numbers::default() });
            Ok(delivery)
        };
        let Some(idempotency) = idempotency else { return self.db.write(work).await };
        check_text(&idempotency.key)?;
        self.db
            .write(move |connection| {
                if let Some(answer) = rows::remembered(connection, tenant, &idempotency, now)? {
                    return Ok(answer);
                }
                let answer = work(connection)?;
                rows::remember(connection, tenant, &idempotency, &answer, now)?;
                Ok(answer)
            })
            .await
    }
}

fn create(connection: &Connection, new: NewDelivery, now: Time) -> Result<Delivery, LedgerError> {
    let id = match new.id {
        Some(id) => id,
        None => rows::take_delivery_id(connection, new.tenant)?,
    };
    check_id(id)?;
    let key = DeliveryKey { tenant: new.tenant, delivery: id };
    if rows::exists(connection, key)? {
        return Err(LedgerError::Exists { delivery: id });
    }
    check_room(connection, new.tenant, new.driver)?;
    let assignment = rows::first_assignment(connection, new.id)?;
    let mut delivery = Delivery {
        key,
        state: DeliveryState::Received,
        assignment,
        driver: None,
        stops: new.stops,
        policy: new.policy,
        journal: Vec::new(),
        reference: new.reference,
        created: now,
    };
    rows::insert_delivery(connection, &delivery, new.id.is_some())?;
    let received = JournalKind::Status { status: DeliveryState::Received, reason: None };
    rows::append_event(connection, &mut delivery, received, now)?;
    if new.driver.is_some() {
        rows::append_event(connection, &mut delivery, JournalKind::Assigned { driver: new.driver, assignment }, now)?;
    }
    hand_over(connection, &delivery)?;
    Ok(delivery)
}

fn assign(
    connection: &Connection,
    key: DeliveryKey,
    driver: Option<DriverId>,
    now: Time,
) -> Result<Delivery, LedgerError> {
    let mut delivery = known(connection, key)?;
    if delivery.driver == driver {
        return Ok(delivery);
    }
    if delivery.state.is_finished() {
        return Err(LedgerError::Finished { state: delivery.state });
    }
    let next = next_assignment(connection, &delivery)?;
    check_room(connection, key.tenant, driver)?;
    let release = Record::Release { from: rows::holder(&delivery), delivery: key, assignment: delivery.assignment };
    outbox::insert(connection, release)?;
    let assigned = JournalKind::Assigned { driver, assignment: next };
    rows::append_event(connection, &mut delivery, assigned, now)?;
    hand_over(connection, &delivery)?;
    Ok(delivery)
}

fn reopen(connection: &Connection, key: DeliveryKey, reason: String, now: Time) -> Result<Delivery, LedgerError> {
    let mut delivery = known(connection, key)?;
    let Some(status) = delivery.state_before_end() else {
        return Err(LedgerError::Open { state: delivery.state });
    };
    if reason.trim().is_empty() {
        return Err(LedgerError::Invalid { reason: "a delivery is opened again only with a reason" });
    }
    let assignment = next_assignment(connection, &delivery)?;
    check_room(connection, key.tenant, delivery.driver)?;
    let driver = delivery.driver;
    rows::append_event(connection, &mut delivery, JournalKind::Assigned { driver, assignment }, now)?;
    let again = JournalKind::Status { status, reason: Some(reason) };
    rows::append_event(connection, &mut delivery, again, now)?;
    hand_over(connection, &delivery)?;
    Ok(delivery)
}

fn next_assignment(connection: &Connection, delivery: &Delivery) -> Result<AssignmentNumber, LedgerError> {
    let next = rows::next_assignment(connection, delivery.assignment)?;
    next.ok_or(LedgerError::Invalid { reason: "this delivery was assigned as often as can be counted" })
}

/// A tracker can hold no more: said here, before anything is promised.
fn check_room(connection: &Connection, tenant: TenantId, driver: Option<DriverId>) -> Result<(), LedgerError> {
    let Some(driver) = driver else { return Ok(()) };
    let open = rows::open_of(connection, DriverKey { tenant, driver }, OPEN_PER_DRIVER_MAX)?;
    if open >= OPEN_PER_DRIVER_MAX {
        return Err(LedgerError::DriverFull { driver });
    }
    Ok(())
}

fn propose(
    connection: &Connection,
    key: DeliveryKey,
    assignment: AssignmentNumber,
    proposal: Proposal,
    now: Time,
) -> Result<ProposalOutcome, LedgerError> {
    let mut delivery = known(connection, key)?;
    if delivery.assignment != assignment {
        return Ok(ProposalOutcome::Outdated);
    }
    let (name, stop) = match proposal {
        Proposal::PickedUp { stop } => ("picked_up", stop),
        Proposal::Milestone { milestone, stop } => (milestone.name(), stop),
    };
    if rows::is_proposed(connection, key, assignment, name, stop)? {
        return Ok(ProposalOutcome::Repeated);
    }
    if !is_allowed(&delivery, proposal) {
        return Ok(ProposalOutcome::NotAllowed);
    }
    rows::insert_proposal(connection, key, assignment, name, stop)?;
    let kind = match proposal {
        Proposal::PickedUp { .. } => JournalKind::Status { status: DeliveryState::PickedUp, reason: None },
        Proposal::Milestone { milestone, stop } => JournalKind::Milestone { milestone, stop },
    };
    let entry = append(connection, &mut delivery, kind, now)?;
    Ok(ProposalOutcome::Written(entry.number))
}

fn is_allowed(delivery: &Delivery, proposal: Proposal) -> bool {
    let policy = delivery.policy;
    match proposal {
        Proposal::PickedUp { stop } => {
            let is_pickup = delivery.stops.get(usize::from(stop)).is_some_and(|stop| stop.kind == StopKind::Pickup);
            is_pickup && policy.auto_picked_up && delivery.state == DeliveryState::Ready
        }
        Proposal::Milestone { milestone, stop } => {
            let is_wanted = match milestone {
                Milestone::Arriving => policy.auto_arriving,
                Milestone::FiveMinutesAway => true,
            };
            is_wanted && usize::from(stop) < delivery.stops.len() && !delivery.state.is_finished()
        }
    }
}

fn known(connection: &Connection, key: DeliveryKey) -> Result<Delivery, LedgerError> {
    rows::delivery(connection, key)?.ok_or(LedgerError::NotFound { delivery: key.delivery })
}

/// An event and its record, to the tracker that has the delivery.
fn append(
    connection: &Connection,
    delivery: &mut Delivery,
    kind: JournalKind,
    now: Time,
) -> Result<JournalEntry, LedgerError> {
    let entry = rows::append_event(connection, delivery, kind, now)?;
    let to = rows::holder(delivery);
    outbox::insert(connection, Record::Ledger { to, delivery: delivery.key, entry: entry.clone() })?;
    Ok(entry)
}

/// The delivery whole, to the tracker that has it from now on.
fn hand_over(connection: &Connection, delivery: &Delivery) -> Result<(), LedgerError> {
    let to = rows::holder(delivery);
    outbox::insert(connection, Record::Assign { to, delivery: Box::new(delivery.clone()) })?;
    Ok(())
}

/// What a record of this delivery carries stays small, whatever a tenant sends.
fn check_new(new: &NewDelivery) -> Result<(), LedgerError> {
    if let Some(id) = new.id {
        check_id(id)?;
    }
    if new.stops.is_empty() || new.stops.len() > STOPS_MAX {
        return Err(LedgerError::Invalid { reason: "a delivery has 1 to 16 stops" });
    }
    if new.stops.iter().any(|stop| !stop.position.is_on_earth()) {
        return Err(LedgerError::Invalid { reason: "a stop is not a place on Earth" });
    }
    check_text(&new.reference)?;
    new.stops.iter().try_for_each(|stop| check_text(&stop.label))
}

fn check_id(id: DeliveryId) -> Result<(), LedgerError> {
    if (1..=DELIVERY_ID_MAX).contains(&id.0) {
        return Ok(());
    }
    Err(LedgerError::Invalid { reason: "a delivery's number lies between 1 and 9223372036854775806" })
}

fn check_text(text: &str) -> Result<(), LedgerError> {
    if text.len() <= TEXT_BYTES_MAX {
        return Ok(());
    }
    Err(LedgerError::Invalid { reason: "a text of a delivery has at most 1024 bytes" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crash;
    use crate::ledger::conformance::{self, Opened, ledger_conformance};

    struct Fixture(tempfile::TempDir);

    impl Fixture {
        fn new() -> Self {
            Fixture(tempfile::tempdir().unwrap())
        }

        async fn open(&self) -> Opened {
            open(self.0.path())
        }
    }

    fn open(folder: &Path) -> Opened {
        Arc::new(EmbeddedLedger::open(&folder.join("ledger.db")).unwrap())
    }

    ledger_conformance!(Fixture::new());

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nothing_acknowledged_is_lost_by_kill_9() {
        if let Some(folder) = crash::folder_of_child() {
            return conformance::write_until_killed(open(&folder)).await;
        }
        let folder = tempfile::tempdir().unwrap();
        let test = "ledger::embedded::tests::nothing_acknowledged_is_lost_by_kill_9";

        for count in [30, 100, 250] {
            let said = crash::kill_in_the_middle(test, folder.path(), count);
            conformance::nothing_acknowledged_is_lost(open(folder.path()), &said).await;
        }
    }

    #[tokio::test]
    async fn an_event_once_written_can_be_neither_changed_nor_deleted() {
        let fixture = Fixture::new();
        conformance::all_is_there_after_opening_again(async || fixture.open().await).await;
        let file = Connection::open(fixture.0.path().join("ledger.db")).unwrap();

        let changed = file.execute("UPDATE delivery_events SET at_ms = 0", []);
        let deleted = file.execute("DELETE FROM delivery_events", []);
        let replaced = file.execute(
            "INSERT OR REPLACE INTO delivery_events SELECT tenant, delivery, number, 0, event FROM delivery_events",
            [],
        );

        for outcome in [&changed, &deleted, &replaced] {
            assert!(outcome.is_err(), "{outcome:?}");
        }
    }

    #[tokio::test]
    async fn no_number_that_can_have_been_given_is_given_after_a_loss() {
        let fixture = Fixture::new();
        let ledger = EmbeddedLedger::open(&fixture.0.path().join("ledger.db")).unwrap();
        let order = |id| NewDelivery { id, ..conformance::order(None) };
        let known = ledger.create(order(None), None, Time(0)).await.unwrap();
        let lost = Numbers { delivery: 4000, assignment: 70, journal: 90, ..Numbers::default() };

        ledger.go_on_above(lost).await.unwrap();

        let next = ledger.create(order(None), None, Time(0)).await.unwrap();
        assert_eq!((next.key.delivery.0, next.last_number().0, next.assignment.0), (4001, 1, 1));
        let own = ledger.create(order(Some(DeliveryId(9))), None, Time(0)).await.unwrap();
        assert_eq!((own.last_number().0, own.assignment.0), (91, 71), "it may be one that was lost");
        let moved = ledger.transition(known.key, DeliveryState::Accepted, None, None, Time(0)).await.unwrap();
        let moved_on = ledger.assign(known.key, Some(DriverId(3)), None, Time(0)).await.unwrap();
        assert_eq!((moved.last_number().0, moved_on.last_number().0, moved_on.assignment.0), (91, 92, 71));
        assert_eq!(ledger.journal(known.key, JournalNumber(1), 10).await.unwrap().len(), 2);
        let given = Numbers { delivery: 4001, assignment: 71, journal: 92, ..Numbers::default() };
        assert_eq!(ledger.numbers().await.unwrap(), given);
        assert_ne!(ledger.birth_mark(own.key).await.unwrap(), ledger.birth_mark(next.key).await.unwrap());
    }
}
