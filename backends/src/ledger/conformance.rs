//! What every delivery ledger must keep, whatever it stands on. Each promise takes a function that opens the ledger:
//! called again after the last one was dropped, it must open the same one.

use std::collections::BTreeMap;
use std::sync::Arc;

use protocol::delivery::{JOURNAL_MAX, OPEN_PER_DRIVER_MAX, STOPS_MAX};
use protocol::update::Proposal;
use protocol::{
    AssignmentNumber, Delivery, DeliveryId, DeliveryKey, DeliveryPolicy, DeliveryState, DriverId, DriverKey,
    JournalKind, JournalNumber, Milestone, PartitionId, Position, Record, Stop, StopKind, TenantId, Time, TrackerKey,
    partition_of,
};

use super::{
    DELIVERY_ID_MAX, DeliveryFilter, DeliveryLedger, IDEMPOTENCY_KEPT, Idempotency, LedgerError, NewDelivery,
    OutboxRow, ProposalOutcome, TEXT_BYTES_MAX,
};
use crate::crash::acknowledge;

pub(crate) type Opened = Arc<dyn DeliveryLedger>;

/// Makes a test of every promise. `$open` gives a fresh fixture and what opens its ledger.
macro_rules! ledger_conformance {
    ($fixture:expr) => {
        $crate::ledger::conformance::ledger_conformance!(@ $fixture;
            a_delivery_is_received_first_and_assigned_second,
            only_the_promised_transitions_are_taken,
            a_ready_delivery_fails_only_with_a_reason,
            a_finished_delivery_is_opened_again_as_a_new_assignment,
            an_abandoned_delivery_fails_by_itself_and_no_other_does,
            a_clock_that_was_years_behind_has_abandoned_nothing,
            a_driver_has_no_more_open_deliveries_than_his_tracker_holds,
            a_change_of_driver_goes_to_both_keys_whole,
            a_finished_delivery_stays_with_its_holder_and_changes_no_more,
            the_same_request_twice_is_done_once,
            an_idempotency_key_is_its_tenants_own,
            an_idempotency_key_is_forgotten_after_its_time,
            a_refused_request_may_be_made_again_under_its_key,
            numbers_follow_each_other_around_those_that_tenants_give,
            what_no_record_may_carry_is_refused,
            tenants_see_only_their_own,
            a_list_has_what_was_asked_for_in_order,
            the_facts_of_a_partition_are_the_live_deliveries_that_it_holds,
            a_journal_is_gapless_and_read_from_any_place,
            a_tracker_may_say_picked_up_only_from_ready_and_once,
            a_tracker_may_say_what_the_policy_allows_until_the_end,
            a_tracker_of_an_older_assignment_is_not_heard,
            the_outbox_keeps_what_is_not_settled,
            the_outbox_wakes_its_reader,
            changes_of_one_delivery_at_once_leave_no_hole,
            all_is_there_after_opening_again,
        );
    };
    (@ $fixture:expr; $($promise:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                let fixture = $fixture;
                $crate::ledger::conformance::$promise(async || fixture.open().await).await;
            }
        )*
    };
}
pub(crate) use ledger_conformance;

pub(crate) async fn a_delivery_is_received_first_and_assigned_second(open: impl AsyncFn() -> Opened) {
    let ledger = open().await;

    let waiting = ledger.create(order(None), None, NOW).await.unwrap();
    let taken = ledger.create(order(Some(8)), None, NOW).await.unwrap();

    assert_eq!(kinds(&waiting), [received()]);
    assert_eq!(kinds(&taken), [received(), assigned(Some(8), 1)]);
    assert_eq!((waiting.state, waiting.driver, waiting.assignment), (DeliveryState::Received, None, FIRST));
    assert_eq!((taken.state, taken.driver, taken.assignment), (DeliveryState::Received, Some(DriverId(8)), FIRST));
    assert_eq!((waiting.created, waiting.journal[0].at), (NOW, NOW));
    assert_eq!(
        records(&ledger).await,
        [
            Record::Assign { to: waiting.key.into(), delivery: Box::new(waiting.clone()) },
            Record::Assign { to: of_driver(8), delivery: Box::new(taken.clone()) },
        ]
    );
    assert_eq!(ledger.delivery(waiting.key).await.unwrap(), Some(waiting));
    assert_eq!(ledger.delivery(taken.key).await.unwrap(), Some(taken));
}

pub(crate) async fn only_the_promised_transitions_are_taken(open: impl AsyncFn() -> Opened) {
    let ledger = open().await;

    for from in DeliveryState::ALL {
        for to in DeliveryState::ALL {
            let delivery = delivery_in(&ledger, from).await;
            settle_all(&ledger).await;
            let before = ledger.delivery(delivery.key).await.unwrap().unwrap();

            let outcome = ledger.transition(delivery.key, to, Some("so it is".into()), None, LATER).await;

            let after = ledger.delivery(delivery.key).await.unwrap().unwrap();
            if from.allowed_next().contains(&to) {
                let entry = after.journal.last().unwrap().clone();
                assert_eq!(outcome.unwrap(), after);
                assert_eq!((after.state, entry.at), (to, LATER));
                assert_eq!(entry.kind, JournalKind::Status { status: to, reason: Some("so it is".into()) });
                let told = Record::Ledger { to: of_driver(8), delivery: after.key, entry };
                assert_eq!(records(&ledger).await, [told]);
            } else {
                let Err(LedgerError::Transition { from: was, to: wanted, allowed }) = outcome else {
                    panic!("{from:?} to {to:?} was {outcome:?}");
                };
                assert_eq!((was, wanted, allowed), (from, to, from.allowed_next()));
                assert_eq!(after, before);
                assert_eq!(records(&ledger).await, []);
            }
        }
    }
}

pub(crate) async fn a_ready_delivery_fails_only_with_a_reason(open: impl AsyncFn() -> Opened) {
    let ledger = open().await;
    let delivery = delivery_in(&ledger, DeliveryState::Ready).await;
    let fail = async |reason: Option<&str>| {
        ledger.transition(delivery.key, DeliveryState::Failed, reason.map(str::to_string), None, LATER).await
    };

    for reason in [None, Some(""), Some("  ")] {
        assert!(matches!(fail(reason).await, Err(LedgerError::Invalid { .. })), "{reason:?}");
    }
    assert_eq!(fail(Some("the shop burned down")).await.unwrap().state, DeliveryState::Failed);
}

pub(crate) async fn a_finished_delivery_is_opened_again_as_a_new_assignment(open: impl AsyncFn() -> Opened) {
    let ledger = open().await;
    let reopen = async |key, reason: &str| ledger.reopen(key, reason.to_string(), None, LATER).await;

    for (ended, way) in [
        (DeliveryState::Failed, [DeliveryState::Ready, DeliveryState::Failed]),
        (DeliveryState::Delivered, [DeliveryState::PickedUp, DeliveryState::Delivered]),
    ] {
        let delivery = delivery_in(&ledger, way[0]).await;
        let key = delivery.key;
        assert!(matches!(reopen(key, "why").await, Err(LedgerError::Open { state }) if state == way[0]));
        let before = ledger.transition(key, ended, Some("by mistake".into()), None, NOW).await.unwrap();
        settle_all(&ledger).await;
        assert!(matches!(reopen(key, " ").await, Err(LedgerError::Invalid { .. })));

        let again = reopen(key, "it is on its way").await.unwrap();

        assert_eq!((again.state, again.driver), (way[0], before.driver));
        assert_eq!(again.assignment.0, before.assignment.0 + 1);
        let status = JournalKind::Status { status: way[0], reason: Some("it is on its way".into()) };
        assert_eq!(kinds(&again)[before.journal.len()..], [assigned(Some(8), again.assignment.0), status]);
        let told = Record::Assign { to: of_driver(8), delivery: Box::new(again.clone()) };
        assert_eq!(records(&ledger).await, [told]);
        assert_eq!(ledger.delivery(key).await.unwrap(), Some(again));
        assert!(ledger.transition(key, way[1], Some("after all".into()), None, LATER).await.is_ok());
    }
    let nobody = DeliveryKey { tenant: TENANT, delivery: DeliveryId(999) };
    assert!(matches!(reopen(nobody, "why").await, Err(LedgerError::NotFound { .. })));
}

pub(crate) async fn an_abandoned_delivery_fails_by_itself_and_no_other_does(open: impl AsyncFn() -> Opened) {
    let ledger = open().await;
    let hours = |n: u64| NOW + std::time::Duration::from_secs(3600 * n);
    let state = async |key| ledger.delivery(key).await.unwrap().unwrap().state;
    let mut open_ones = Vec::new();
    for from in DeliveryState::ALL.into_iter().filter(|state| !state.is_finished()) {
        open_ones.push(delivery_in(&ledger, from).await.key);
    }
    let finished = delivery_in(&ledger, DeliveryState::Delivered).await;
    let patient = DeliveryPolicy { abandoned_after_h: 100, ..DeliveryPolicy::default() };
    let patient = delivery_by(&ledger, patient, DeliveryState::Ready).await;
    let touched = delivery_in(&ledger, DeliveryState::Received).await.key;
    ledger.transition(touched, DeliveryState::Accepted, None, None, hours(1)).await.unwrap();
    settle_all(&ledger).await;

    assert_eq!(ledger.fail_abandoned(100, Time(hours(48).0 - 1)).await.unwrap(), []);
    let mut failed = ledger.fail_abandoned(2, hours(48)).await.unwrap();
    assert_eq!(failed.len(), 2);
    failed.extend(ledger.fail_abandoned(100, hours(48)).await.unwrap());
    failed.sort_unstable();

    assert_eq!(failed, open_ones);
    assert_eq!(ledger.fail_abandoned(100, hours(48)).await.unwrap(), []);
    let why = JournalKind::Status { status: DeliveryState::Failed, reason: Some("abandoned".into()) };
    assert_eq!(records(&ledger).await.len(), open_ones.len());
    for key in open_ones {
        let delivery = ledger.delivery(key).await.unwrap().unwrap();
        let entry = delivery.journal.last().unwrap();
        assert_eq!((entry.at, &entry.kind), (hours(48), &why));
        let told = Record::Ledger { to: of_driver(8), delivery: key, entry: entry.clone() };
        assert!(records(&ledger).await.contains(&told));
    }
    assert_eq!(state(touched).await, DeliveryState::Accepted);
    assert_eq!(state(finished.key).await, DeliveryState::Delivered);
    assert_eq!(ledger.fail_abandoned(100, hours(49)).await.unwrap(), [touched]);
    assert_eq!(ledger.fail_abandoned(100, hours(100)).await.unwrap(), [patient.key]);
    // Stamped by a clock that was 20 years ahead, it has its time from when that is seen.
    let stamped = ledger.create(order(Some(8)), None, hours(20 * 8_766)).await.unwrap().key;
    assert_eq!(ledger.fail_abandoned(100, hours(100)).await.unwrap(), []);
    assert_eq!(ledger.fail_abandoned(100, hours(147)).await.unwrap(), []);
    assert_eq!(ledger.fail_abandoned(100, hours(148)).await.unwrap(), [stamped]);
    // Opened again it has as long as before.
    ledger.reopen(touched, "found".into(), None, hours(100)).await.unwrap();
    assert_eq!(ledger.fail_abandoned(100, hours(147)).await.unwrap(), []);
    assert_eq!(ledger.fail_abandoned(100, hours(148)).await.unwrap(), [touched]);
}

pub(crate) async fn a_clock_that_was_years_behind_has_abandoned_nothing(open: impl AsyncFn() -> Opened) {
    let ledger = open().await;
    let made = delivery_in(&ledger, DeliveryState::Ready).await.key;
    let minutes = |n: u64| NOW + std::time::Duration::from_secs(60 * n);
    let long_ago = NOW - std::time::Duration::from_secs(20 * 8_766 * 3_600);

    assert_eq!(ledger.fail_abandoned(100, long_ago).await.unwrap(), []);
    assert_eq!(ledger.fail_abandoned(100, minutes(10)).await.unwrap(), []);
    assert_eq!(ledger.fail_abandoned(100, minutes(48 * 60 - 1)).await.unwrap(), []);
    assert_eq!(ledger.fail_abandoned(100, minutes(48 * 60)).await.unwrap(), [made]);
}

pub(crate) async fn a_driver_has_no_more_open_deliveries_than_his_tracker_holds(open: impl AsyncFn() -> Opened) {
    let ledger = open().await;
    let mut keys = Vec::new();
    for _ in 0..OPEN_PER_DRIVER_MAX {
        keys.push(ledger.create(order(Some(8)), None, NOW).await.unwrap().key);
    }
    let waiting = ledger.create(order(None), None, NOW).await.unwrap().key;
    let is_full = |outcome: Result<Delivery, LedgerError>| {
        matches!(outcome, Err(LedgerError::DriverFull { driver: DriverId(8) }))
    };

    assert!(is_full(ledger.create(order(Some(8)), None, NOW).await));
    assert!(is_full(ledger.assign(waiting, Some(DriverId(8)), None, NOW).await));
    assert!(ledger.create(order(Some(9)), None, NOW).await.is_ok());
    assert_eq!(ledger.delivery(waiting).await.unwrap().unwrap().driver, None);

    ledger.transition(keys[0], DeliveryState::Failed, None, None, NOW).await.unwrap();
    assert!(ledger.assign(waiting, Some(DriverId(8)), None, NOW).await.is_ok());
    assert!(is_full(ledger.reopen(keys[0], "after all".into(), None, NOW).await));
}

pub(crate) async fn a_change_of_driver_goes_to_both_keys_whole(open: impl AsyncFn() -> Opened) {
    let ledger = open().await;
    let key = ledger.create(order(None), None, NOW).await.unwrap().key;
    let holders: [Option<u32>; 4] = [Some(8), Some(9), None, Some(8)];
    let mut before: TrackerKey = key.into();

    for (n, driver) in holders.into_iter().enumerate() {
        settle_all(&ledger).await;
        let assignment = n as u32 + 2;

        let delivery = ledger.assign(key, driver.map(DriverId), None, LATER).await.unwrap();

        let after = driver.map_or(key.into(), of_driver);
        assert_eq!(kinds(&delivery).last(), Some(&assigned(driver, assignment)));
        assert_eq!((delivery.driver, delivery.assignment), (driver.map(DriverId), AssignmentNumber(assignment)));
        assert_eq!(
            records(&ledger).await,
            [
                Record::Release { from: before, delivery: key, assignment: AssignmentNumber(assignment - 1) },
                Record::Assign { to: after, delivery: Box::new(delivery.clone()) },
            ]
        );
        assert_eq!(ledger.delivery(key).await.unwrap(), Some(delivery.clone()));

        settle_all(&ledger).await;
        assert_eq!(ledger.assign(key, driver.map(DriverId), None, LATER).await.unwrap(), delivery);
        assert_eq!(records(&ledger).await, []);
        before = after;
    }
}

pub(crate) async fn a_finished_delivery_stays_with_its_holder_and_changes_no_more(open: impl AsyncFn() -> Opened) {
    let ledger = open().await;

    for state in [DeliveryState::Delivered, DeliveryState::Failed] {
        let delivery = delivery_in(&ledger, state).await;

        let last = records(&ledger).await.pop();
        let other = ledger.assign(delivery.key, Some(DriverId(9)), None, LATER).await;
        let same = ledger.assign(delivery.key, Some(DriverId(8)), None, LATER).await;

        assert!(matches!(last, Some(Record::Ledger { to, .. }) if to == of_driver(8)), "{last:?}");
        assert!(matches!(other, Err(LedgerError::Finished { state: was }) if was == state), "{other:?}");
        assert_eq!(same.unwrap(), delivery);
    }
}

pub(crate) async fn the_same_request_twice_is_done_once(open: impl AsyncFn() -> Opened) {
    let ledger = open().await;
    let accept = |key, idempotency| ledger.transition(key, DeliveryState::Accepted, None, Some(idempotency), LATER);

    let first = ledger.create(order(Some(8)), Some(request("a", 1)), NOW).await.unwrap();
    let accepted = accept(first.key, request("b", 2)).await.unwrap();
    let again = ledger.create(order(Some(8)), Some(request("a", 1)), LATER).await.unwrap();
    let accepted_again = accept(first.key, request("b", 2)).await.unwrap();
    let other = ledger.create(order(Some(9)), Some(request("a", 9)), LATER).await;

    assert_eq!(again, first);
    assert_eq!(accepted_again, accepted);
    assert!(matches!(other, Err(LedgerError::IdempotencyMismatch)), "{other:?}");
    assert_eq!(list(&ledger, TENANT).await, [accepted]);
    assert_eq!(records(&ledger).await.len(), 2);
}

pub(crate) async fn an_idempotency_key_is_its_tenants_own(open: impl AsyncFn() -> Opened) {
    let ledger = open().await;
    let others = NewDelivery { tenant: OTHER_TENANT, ..order(None) };

    let ours = ledger.create(order(None), Some(request("a", 1)), NOW).await.unwrap();
    let theirs = ledger.create(others, Some(request("a", 2)), NOW).await.unwrap();

    assert_eq!((ours.key.tenant, theirs.key.tenant), (TENANT, OTHER_TENANT));
}

pub(crate) async fn an_idempotency_key_is_forgotten_after_its_time(open: impl AsyncFn() -> Opened) {
    let ledger = open().await;
    let first = ledger.create(order(None), Some(request("a", 1)), NOW).await.unwrap();
    let just_before = Time((NOW + IDEMPOTENCY_KEPT).0 - 1);

    let kept = ledger.create(order(None), Some(request("a", 1)), just_before).await.unwrap();
    let fresh = ledger.create(order(None), Some(request("a", 2)), NOW + IDEMPOTENCY_KEPT).await.unwrap();
    let fresh_again = ledger.create(order(None), Some(request("a", 2)), NOW + IDEMPOTENCY_KEPT).await.unwrap();

    assert_eq!(kept, first);
    assert_ne!(fresh.key, first.key);
    assert_eq!(fresh_again, fresh);
}

pub(crate) async fn a_refused_request_may_be_made_again_under_its_key(open: impl AsyncFn() -> Opened) {
    let ledger = open().await;
    let key = ledger.create(order(None), None, NOW).await.unwrap().key;
    let prepare = || ledger.transition(key, DeliveryState::Preparing, None, Some(request("a", 1)), LATER);

    let early = prepare().await;
    ledger.transition(key, DeliveryState::Accepted, None, None, LATER).await.unwrap();
    let late = prepare().await;

    assert!(matches!(early, Err(LedgerError::Transition { .. })), "{early:?}");
    assert_eq!(late.unwrap().state, DeliveryState::Preparing);
}

pub(crate) async fn numbers_follow_each_other_around_those_that_tenants_give(open: impl AsyncFn() -> Opened) {
    let ledger = open().await;
    let with_id = |id| NewDelivery { id: Some(DeliveryId(id)), ..order(None) };
    for id in [2, 3, 5, DELIVERY_ID_MAX] {
        ledger.create(with_id(id), None, NOW).await.unwrap();
    }

    let mut given = Vec::new();
    for _ in 0..4 {
        given.push(ledger.create(order(None), None, NOW).await.unwrap().key.delivery.0);
    }
    let twice = ledger.create(with_id(5), None, NOW).await;

    assert_eq!(given, [1, 4, 6, 7]);
    assert!(matches!(twice, Err(LedgerError::Exists { delivery: DeliveryId(5) })), "{twice:?}");
}

pub(crate) async fn what_no_record_may_carry_is_refused(open: impl AsyncFn() -> Opened) {
    let ledger = open().await;
    let long = "x".repeat(TEXT_BYTES_MAX + 1);
    let stop = order(None).stops[0].clone();
    let nowhere = Stop { position: Position { lat_e7: 900_000_001, lon_e7: 0 }, ..stop.clone() };
    let bad = [
        NewDelivery { id: Some(DeliveryId(0)), ..order(None) },
        NewDelivery { id: Some(DeliveryId(DELIVERY_ID_MAX + 1)), ..order(None) },
        NewDelivery { stops: vec![], ..order(None) },
        NewDelivery { stops: vec![stop.clone(); STOPS_MAX + 1], ..order(None) },
        NewDelivery { stops: vec![nowhere], ..order(None) },
        NewDelivery { stops: vec![Stop { label: long.clone(), ..stop }], ..order(None) },
        NewDelivery { reference: long.clone(), ..order(None) },
    ];

    for new in bad {
        let outcome = ledger.create(new, None, NOW).await;
        assert!(matches!(outcome, Err(LedgerError::Invalid { .. })), "{outcome:?}");
    }
    let key = ledger.create(order(None), None, NOW).await.unwrap().key;
    let reason = ledger.transition(key, DeliveryState::Failed, Some(long.clone()), None, NOW).await;
    let idempotency = ledger.assign(key, Some(DriverId(8)), Some(request(&long, 1)), NOW).await;

    assert!(matches!(reason, Err(LedgerError::Invalid { .. })), "{reason:?}");
    assert!(matches!(idempotency, Err(LedgerError::Invalid { .. })), "{idempotency:?}");
    assert_eq!(records(&ledger).await.len(), 1);
}

pub(crate) async fn tenants_see_only_their_own(open: impl AsyncFn() -> Opened) {
    let ledger = open().await;
    let ours = ledger.create(order(Some(8)), None, NOW).await.unwrap();
    let theirs = DeliveryKey { tenant: OTHER_TENANT, ..ours.key };

    let moved = ledger.transition(theirs, DeliveryState::Accepted, None, None, NOW).await;
    let taken = ledger.assign(theirs, Some(DriverId(1)), None, NOW).await;
    let said = ledger.propose(theirs, FIRST, arriving(1), NOW).await;

    assert!(matches!(moved, Err(LedgerError::NotFound { .. })), "{moved:?}");
    assert!(matches!(taken, Err(LedgerError::NotFound { .. })), "{taken:?}");
    assert!(matches!(said, Err(LedgerError::NotFound { .. })), "{said:?}");
    assert_eq!(ledger.delivery(theirs).await.unwrap(), None);
    assert_eq!(ledger.journal(theirs, JournalNumber(0), 10).await.unwrap(), []);
    assert_eq!(list(&ledger, OTHER_TENANT).await, []);
    assert_eq!(ledger.delivery(ours.key).await.unwrap(), Some(ours));
}

pub(crate) async fn a_list_has_what_was_asked_for_in_order(open: impl AsyncFn() -> Opened) {
    let ledger = open().await;
    for n in 1..=10u32 {
        let key = ledger.create(order(Some(n % 2)), None, NOW).await.unwrap().key;
        if n > 6 {
            ledger.transition(key, DeliveryState::Failed, None, None, NOW).await.unwrap();
        }
    }
    let ids = async |filter| {
        let found = ledger.deliveries(TENANT, filter).await.unwrap();
        found.into_iter().map(|delivery| delivery.key.delivery.0).collect::<Vec<_>>()
    };
    let all = DeliveryFilter { limit: 100, ..DeliveryFilter::default() };

    assert_eq!(ids(all.clone()).await, (1..=10).collect::<Vec<_>>());
    assert_eq!(ids(DeliveryFilter { is_live: true, ..all.clone() }).await, [1, 2, 3, 4, 5, 6]);
    assert_eq!(ids(DeliveryFilter { driver: Some(DriverId(1)), ..all.clone() }).await, [1, 3, 5, 7, 9]);
    assert_eq!(ids(DeliveryFilter { driver: Some(DriverId(0)), is_live: true, ..all.clone() }).await, [2, 4, 6]);
    assert_eq!(ids(DeliveryFilter { after: DeliveryId(4), limit: 3, ..all.clone() }).await, [5, 6, 7]);
    assert_eq!(ids(DeliveryFilter { after: DeliveryId(u64::MAX), ..all.clone() }).await, NOBODY);
    assert_eq!(ids(DeliveryFilter { limit: 0, ..all }).await, NOBODY);
}

pub(crate) async fn the_facts_of_a_partition_are_the_live_deliveries_that_it_holds(open: impl AsyncFn() -> Opened) {
    const COUNT: u32 = 3;
    let ledger = open().await;
    let mut live = Vec::new();
    for driver in [None, Some(1), Some(2), Some(3), Some(4), None] {
        live.push(ledger.create(order(driver), None, NOW).await.unwrap());
    }
    let other = NewDelivery { tenant: TenantId(TENANT.0 + 1), ..order(Some(1)) };
    live.push(ledger.create(other, None, NOW).await.unwrap());
    let ended = ledger.create(order(Some(2)), None, NOW).await.unwrap();
    ledger.transition(ended.key, DeliveryState::Failed, None, None, NOW).await.unwrap();
    live[1] = ledger.assign(live[1].key, Some(DriverId(9)), None, NOW).await.unwrap();
    live[2] = ledger.transition(live[2].key, DeliveryState::Accepted, None, None, NOW).await.unwrap();

    let mut found = Vec::new();
    for partition in (0..COUNT).map(PartitionId) {
        for delivery in ledger.facts(partition, COUNT).await.unwrap() {
            let holder = match delivery.driver {
                Some(driver) => TrackerKey::Driver(DriverKey { tenant: delivery.key.tenant, driver }),
                None => TrackerKey::Delivery(delivery.key),
            };
            assert_eq!(partition_of(&holder.key_bytes(), COUNT), partition, "{holder:?}");
            found.push(delivery);
        }
    }

    found.sort_by_key(|delivery| delivery.key);
    live.sort_by_key(|delivery| delivery.key);
    assert_eq!(found, live);
}

pub(crate) async fn a_journal_is_gapless_and_read_from_any_place(open: impl AsyncFn() -> Opened) {
    let ledger = open().await;
    let key = ledger.create(order(None), None, NOW).await.unwrap().key;
    let count = JOURNAL_MAX as u64 + 10;
    for n in 2..=count {
        ledger.assign(key, Some(DriverId(n as u32)), None, LATER).await.unwrap();
    }

    let all = ledger.journal(key, JournalNumber(0), 1000).await.unwrap();
    let some = ledger.journal(key, JournalNumber(5), 3).await.unwrap();
    let none = ledger.journal(key, JournalNumber(count), 3).await.unwrap();
    let delivery = ledger.delivery(key).await.unwrap().unwrap();

    assert_eq!(all.iter().map(|entry| entry.number.0).collect::<Vec<_>>(), (1..=count).collect::<Vec<_>>());
    assert_eq!(some, all[5..8]);
    assert_eq!(none, []);
    assert_eq!(delivery.journal, all[all.len() - JOURNAL_MAX..]);
    assert!(records(&ledger).await.iter().all(|record| {
        let Record::Assign { delivery, .. } = record else { return true };
        delivery.journal.len() <= JOURNAL_MAX
    }));
}

pub(crate) async fn a_tracker_may_say_picked_up_only_from_ready_and_once(open: impl AsyncFn() -> Opened) {
    let ledger = open().await;
    let proposal = Proposal::PickedUp { stop: 0 };

    for state in DeliveryState::ALL {
        let delivery = delivery_in(&ledger, state).await;
        settle_all(&ledger).await;

        let at_drop_off = ledger.propose(delivery.key, FIRST, Proposal::PickedUp { stop: 1 }, LATER).await.unwrap();
        let first = ledger.propose(delivery.key, FIRST, proposal, LATER).await.unwrap();

        let after = ledger.delivery(delivery.key).await.unwrap().unwrap();
        assert_eq!(at_drop_off, ProposalOutcome::NotAllowed);
        if state == DeliveryState::Ready {
            let entry = after.journal.last().unwrap().clone();
            assert_eq!((first, after.state), (ProposalOutcome::Written(entry.number), DeliveryState::PickedUp));
            let told = Record::Ledger { to: of_driver(8), delivery: after.key, entry };
            assert_eq!(records(&ledger).await, [told]);
            let again = ledger.propose(delivery.key, FIRST, proposal, LATER).await.unwrap();
            assert_eq!(again, ProposalOutcome::Repeated);
        } else {
            assert_eq!((first, &after), (ProposalOutcome::NotAllowed, &delivery));
        }
    }
    let by_hand = DeliveryPolicy { auto_picked_up: false, ..DeliveryPolicy::default() };
    let delivery = delivery_by(&ledger, by_hand, DeliveryState::Ready).await;
    let outcome = ledger.propose(delivery.key, FIRST, proposal, LATER).await.unwrap();
    assert_eq!(outcome, ProposalOutcome::NotAllowed);
}

pub(crate) async fn a_tracker_may_say_what_the_policy_allows_until_the_end(open: impl AsyncFn() -> Opened) {
    let ledger = open().await;
    let soon = Proposal::Milestone { milestone: Milestone::FiveMinutesAway, stop: 1 };
    let delivery = delivery_in(&ledger, DeliveryState::PickedUp).await;
    let quiet = DeliveryPolicy { auto_arriving: false, ..DeliveryPolicy::default() };
    let silent = delivery_by(&ledger, quiet, DeliveryState::PickedUp).await;
    let finished = delivery_in(&ledger, DeliveryState::Delivered).await;
    let say = async |delivery: &Delivery, proposal| {
        ledger.propose(delivery.key, delivery.assignment, proposal, LATER).await.unwrap()
    };
    let next = delivery.last_number().0 + 1;

    assert_eq!(say(&delivery, soon).await, ProposalOutcome::Written(JournalNumber(next)));
    assert_eq!(say(&delivery, arriving(1)).await, ProposalOutcome::Written(JournalNumber(next + 1)));
    assert_eq!(say(&delivery, arriving(0)).await, ProposalOutcome::Written(JournalNumber(next + 2)));
    assert_eq!(say(&delivery, arriving(1)).await, ProposalOutcome::Repeated);
    assert_eq!(say(&delivery, arriving(2)).await, ProposalOutcome::NotAllowed);
    assert_eq!(say(&silent, arriving(1)).await, ProposalOutcome::NotAllowed);
    assert!(matches!(say(&silent, soon).await, ProposalOutcome::Written(_)));
    assert_eq!(say(&finished, arriving(1)).await, ProposalOutcome::NotAllowed);
    let told = ledger.delivery(delivery.key).await.unwrap().unwrap();
    assert_eq!(told.state, DeliveryState::PickedUp);
    assert_eq!(
        kinds(&told)[next as usize - 1..],
        [
            JournalKind::Milestone { milestone: Milestone::FiveMinutesAway, stop: 1 },
            JournalKind::Milestone { milestone: Milestone::Arriving, stop: 1 },
            JournalKind::Milestone { milestone: Milestone::Arriving, stop: 0 },
        ]
    );
}

pub(crate) async fn a_tracker_of_an_older_assignment_is_not_heard(open: impl AsyncFn() -> Opened) {
    let ledger = open().await;
    let delivery = delivery_in(&ledger, DeliveryState::PickedUp).await;
    let said = ledger.propose(delivery.key, FIRST, arriving(1), LATER).await.unwrap();
    ledger.assign(delivery.key, Some(DriverId(9)), None, LATER).await.unwrap();

    let old = ledger.propose(delivery.key, FIRST, arriving(0), LATER).await.unwrap();
    let repeated = ledger.propose(delivery.key, FIRST, arriving(1), LATER).await.unwrap();
    let ahead = ledger.propose(delivery.key, AssignmentNumber(3), arriving(1), LATER).await.unwrap();
    let new = ledger.propose(delivery.key, AssignmentNumber(2), arriving(1), LATER).await.unwrap();

    assert!(matches!(said, ProposalOutcome::Written(_)));
    assert_eq!([old, repeated, ahead], [ProposalOutcome::Outdated; 3]);
    assert!(matches!(new, ProposalOutcome::Written(_)), "{new:?}");
}

pub(crate) async fn the_outbox_keeps_what_is_not_settled(open: impl AsyncFn() -> Opened) {
    let ledger = open().await;
    let mut made = Vec::new();
    for _ in 0..6 {
        made.push(ledger.create(order(None), None, NOW).await.unwrap().key);
    }
    let keys = async |limit| {
        let rows = ledger.outbox(limit).await.unwrap();
        rows.iter().map(|row| row.record.key().unwrap()).collect::<Vec<_>>()
    };
    let made: Vec<TrackerKey> = made.into_iter().map(TrackerKey::from).collect();

    assert_eq!(keys(4).await, made[..4]);
    assert_eq!(keys(4).await, made[..4]);
    let sequences: Vec<u64> = ledger.outbox(4).await.unwrap().iter().map(|row| row.sequence).collect();
    ledger.outbox_settled(&[sequences[1], sequences[3]]).await.unwrap();
    assert_eq!(keys(4).await, [made[0], made[2], made[4], made[5]], "what is not named stays, below and above");
    settle_all(&ledger).await;
    assert_eq!(keys(4).await, []);
    ledger.create(order(None), None, NOW).await.unwrap();
    assert!(ledger.outbox(1).await.unwrap()[0].sequence > sequences[3]);
}

pub(crate) async fn the_outbox_wakes_its_reader(open: impl AsyncFn() -> Opened) {
    let ledger = open().await;
    ledger.outbox_changed().await;
    let reader = {
        let ledger = ledger.clone();
        tokio::spawn(async move {
            while ledger.outbox(1).await.unwrap().is_empty() {
                ledger.outbox_changed().await;
            }
        })
    };

    ledger.create(order(None), None, NOW).await.unwrap();

    tokio::time::timeout(PATIENCE, reader).await.expect("the reader was not woken").unwrap();
}

pub(crate) async fn changes_of_one_delivery_at_once_leave_no_hole(open: impl AsyncFn() -> Opened) {
    let ledger = open().await;
    let key = ledger.create(order(None), None, NOW).await.unwrap().key;

    let changes: Vec<_> = (0..64u32)
        .map(|n| {
            let ledger = ledger.clone();
            tokio::spawn(async move { ledger.assign(key, Some(DriverId(n)), None, LATER).await.unwrap() })
        })
        .collect();
    for change in changes {
        change.await.unwrap();
    }

    let journal = ledger.journal(key, JournalNumber(0), 1000).await.unwrap();
    assert_eq!(journal.iter().map(|entry| entry.number.0).collect::<Vec<_>>(), (1..=65).collect::<Vec<_>>());
    // The log is to see each tracker let go before the next one takes it, in the order of the journal.
    let mut holder: TrackerKey = key.into();
    let mut numbers = BTreeMap::new();
    for record in records(&ledger).await.into_iter().skip(1) {
        if let Record::Release { from, assignment, .. } = record {
            assert_eq!((from, assignment.0 as usize), (holder, numbers.len() + 1));
            continue;
        }
        let Record::Assign { to, delivery } = record else { panic!("{record:?}") };
        holder = to;
        numbers.insert(delivery.last_number().0, delivery.assignment.0);
    }
    assert_eq!(numbers, (2..=65).map(|n| (n, n as u32)).collect());
}

pub(crate) async fn all_is_there_after_opening_again(open: impl AsyncFn() -> Opened) {
    let ledger = open().await;
    let delivery = ledger.create(order(Some(8)), Some(request("a", 1)), NOW).await.unwrap();
    let said = ledger.propose(delivery.key, FIRST, arriving(1), LATER).await.unwrap();
    let (rows, listed) = (ledger.outbox(100).await.unwrap(), list(&ledger, TENANT).await);
    drop(ledger);

    let ledger = open().await;

    assert!(matches!(said, ProposalOutcome::Written(_)));
    assert_eq!((ledger.outbox(100).await.unwrap(), list(&ledger, TENANT).await), (rows, listed));
    assert_eq!(ledger.create(order(Some(8)), Some(request("a", 1)), LATER).await.unwrap(), delivery);
    assert_eq!(ledger.propose(delivery.key, FIRST, arriving(1), LATER).await.unwrap(), ProposalOutcome::Repeated);
    assert_eq!(ledger.create(order(None), None, LATER).await.unwrap().key.delivery.0, delivery.key.delivery.0 + 1);
}

/// Changes deliveries for ever, from four tasks, and says after each change what was acknowledged. To be killed.
pub(crate) async fn write_until_killed(ledger: Opened) {
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..4u32 {
        let ledger = ledger.clone();
        tasks.spawn(async move {
            loop {
                let mut delivery = ledger.create(order(Some(task)), None, NOW).await.unwrap();
                acknowledge(format_args!("{} {}", delivery.key.delivery, delivery.last_number()));
                for driver in 100..120 {
                    delivery = ledger.assign(delivery.key, Some(DriverId(driver)), None, LATER).await.unwrap();
                    acknowledge(format_args!("{} {}", delivery.key.delivery, delivery.last_number()));
                }
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

/// After the writer was killed: all it said is there, without holes, and the outbox says the same as the journal.
pub(crate) async fn nothing_acknowledged_is_lost(ledger: Opened, said: &[String]) {
    let mut acknowledged: BTreeMap<u64, u64> = BTreeMap::new();
    for line in said {
        let (delivery, number) = line.split_once(' ').unwrap();
        let last = acknowledged.entry(delivery.parse().unwrap()).or_default();
        *last = number.parse::<u64>().unwrap().max(*last);
    }
    let mut told: BTreeMap<u64, u64> = BTreeMap::new();
    loop {
        let rows = ledger.outbox(1000).await.unwrap();
        if rows.is_empty() {
            break;
        }
        for row in &rows {
            if let Record::Assign { delivery, .. } = &row.record {
                told.insert(delivery.key.delivery.0, delivery.last_number().0);
            }
        }
        ledger.outbox_settled(&sequences_of(&rows)).await.unwrap();
    }

    assert!(!acknowledged.is_empty());
    for (delivery, last) in acknowledged {
        let key = DeliveryKey { tenant: TENANT, delivery: DeliveryId(delivery) };
        let journal = ledger.journal(key, JournalNumber(0), 1000).await.unwrap();
        let numbers: Vec<u64> = journal.iter().map(|entry| entry.number.0).collect();
        assert!(numbers.len() as u64 >= last, "delivery {delivery}: {last} was acknowledged, {numbers:?} is there");
        assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
        assert_eq!(told.get(&delivery), numbers.last(), "delivery {delivery}");
    }
}

pub(super) fn order(driver: Option<u32>) -> NewDelivery {
    let stop = |kind, lat, label: &str| Stop {
        kind,
        position: Position::from_degrees(lat, -8.61).unwrap(),
        radius_m: 60,
        label: label.to_string(),
    };
    NewDelivery {
        tenant: TENANT,
        id: None,
        stops: vec![stop(StopKind::Pickup, 41.15, "Confeitaria"), stop(StopKind::DropOff, 41.16, "Rua do Almada 5")],
        policy: DeliveryPolicy::default(),
        reference: "order 17 \u{1f355}".to_string(),
        driver: driver.map(DriverId),
    }
}

async fn delivery_in(ledger: &Opened, state: DeliveryState) -> Delivery {
    delivery_by(ledger, DeliveryPolicy::default(), state).await
}

/// Of driver 8, brought to this state.
async fn delivery_by(ledger: &Opened, policy: DeliveryPolicy, state: DeliveryState) -> Delivery {
    use DeliveryState::*;
    let way: &[DeliveryState] = match state {
        Received => &[],
        Accepted => &[Accepted],
        Preparing => &[Accepted, Preparing],
        Ready => &[Accepted, Preparing, Ready],
        PickedUp => &[Accepted, Preparing, Ready, PickedUp],
        Delivered => &[Accepted, Preparing, Ready, PickedUp, Delivered],
        Failed => &[Failed],
    };
    let mut delivery = ledger.create(NewDelivery { policy, ..order(Some(8)) }, None, NOW).await.unwrap();
    for to in way {
        delivery = ledger.transition(delivery.key, *to, None, None, NOW).await.unwrap();
    }
    delivery
}

async fn records(ledger: &Opened) -> Vec<Record> {
    ledger.outbox(1000).await.unwrap().into_iter().map(|row| row.record).collect()
}

async fn settle_all(ledger: &Opened) {
    let rows = ledger.outbox(1000).await.unwrap();
    ledger.outbox_settled(&sequences_of(&rows)).await.unwrap();
}

fn sequences_of(rows: &[OutboxRow]) -> Vec<u64> {
    rows.iter().map(|row| row.sequence).collect()
}

async fn list(ledger: &Opened, tenant: TenantId) -> Vec<Delivery> {
    ledger.deliveries(tenant, DeliveryFilter { limit: 1000, ..DeliveryFilter::default() }).await.unwrap()
}

fn kinds(delivery: &Delivery) -> Vec<JournalKind> {
    delivery.journal.iter().map(|entry| entry.kind.clone()).collect()
}

fn received() -> JournalKind {
    JournalKind::Status { status: DeliveryState::Received, reason: None }
}

fn assigned(driver: Option<u32>, assignment: u32) -> JournalKind {
    JournalKind::Assigned { driver: driver.map(DriverId), assignment: AssignmentNumber(assignment) }
}

fn arriving(stop: u8) -> Proposal {
    Proposal::Milestone { milestone: Milestone::Arriving, stop }
}

fn of_driver(driver: u32) -> TrackerKey {
    TrackerKey::Driver(DriverKey { tenant: TENANT, driver: DriverId(driver) })
}

fn request(key: &str, n: u8) -> Idempotency {
    Idempotency { key: key.to_string(), request: [n; 32], kept: Time(i64::MAX) }
}

const TENANT: TenantId = TenantId(7);
const OTHER_TENANT: TenantId = TenantId(8);
const FIRST: AssignmentNumber = AssignmentNumber(1);
const NOW: Time = Time(1_700_000_000_000);
const LATER: Time = Time(1_700_000_060_500);
const NOBODY: [u64; 0] = [];
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);
