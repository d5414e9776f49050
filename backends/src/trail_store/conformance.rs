//! What every history must keep, whatever it stands on. Each promise takes a function that opens the store: called
//! again after the last one was dropped, it must open the same one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use protocol::record::Door;
use protocol::update::{SnappedPosition, Source};
use protocol::{
    Breadcrumb, DeliveryId, DeliveryKey, DriverId, DriverKey, Fix, FixNumber, FixRecord, MeasuredTime, Offset,
    PartitionId, PhoneState, Position, RejectReason, TenantId, Time, Verdict,
};

use super::samples::{DAY_0_S, DAY_S, DRIVER, TENANT, crumb, drive};
use super::{TRAIL_MAX, TrailPlace, TrailQuery, TrailStore, TrailStoreError};
use crate::crash::acknowledge;

pub(crate) type Opened = Arc<dyn TrailStore>;

/// Makes a test of every promise. `$fixture` gives a fresh fixture, which opens its store.
macro_rules! trail_store_conformance {
    ($fixture:expr) => {
        $crate::trail_store::conformance::trail_store_conformance!(@ $fixture;
            a_breadcrumb_comes_back_as_it_was,
            the_first_of_an_identity_stays,
            whatever_differs_in_its_identity_is_kept,
            an_identity_is_one_whenever_it_is_received,
            a_trail_is_in_order_of_measured_time_and_of_its_range,
            a_long_trail_is_read_piece_by_piece,
            a_deliverys_trail_has_its_breadcrumbs_from_all_drivers,
            tenants_see_only_their_own,
            offsets_are_kept_for_each_partition,
            an_offset_never_goes_back_and_is_its_incarnations_own,
            late_fixes_of_old_days_lie_with_their_day_and_are_taken_once,
            a_replay_of_days_changes_nothing,
            a_driver_who_is_forgotten_is_gone_and_does_not_come_back,
            days_that_have_ended_are_dropped_and_no_other,
            wrong_clocks_are_kept_and_expire_by_their_receipt,
            partitions_written_at_once_are_all_there,
            all_is_there_after_opening_again,
        );
    };
    (@ $fixture:expr; $($promise:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                let fixture = $fixture;
                $crate::trail_store::conformance::$promise(async || fixture.open().await).await;
            }
        )*
    };
}
pub(crate) use trail_store_conformance;

pub(crate) async fn a_breadcrumb_comes_back_as_it_was(open: impl AsyncFn() -> Opened) {
    let store = open().await;
    let full = Breadcrumb {
        record: FixRecord {
            session_start: 1_700_000_000,
            number: Some(FixNumber(u64::MAX)),
            lowest_held: FixNumber(17),
            door: Door::Https,
            fix: Fix {
                speed_dm_s: Some(139),
                heading_255: Some(254),
                accuracy_m: Some(255),
                altitude_m: Some(-12),
                battery_percent: Some(0),
                phone_state: Some(PhoneState(PhoneState::SAVER)),
                ..crumb(1).record.fix
            },
            ..crumb(1).record
        },
        snapped: Some(SnappedPosition {
            position: Position { lat_e7: 411_500_001, lon_e7: -86_100_001 },
            edge: u32::MAX,
            along_cm: 1,
            off_cm: 2,
            confidence_percent: 99,
        }),
        delivery: Some(DeliveryId(u64::MAX)),
        source: Source { partition: PartitionId(3), offset: Offset(4), index: 5, ordinal: 6 },
        ..crumb(1)
    };
    let bare = crumb(2);
    let rejected = Breadcrumb { verdict: Verdict::Rejected(RejectReason::Jump), ..crumb(3) };

    store.append(P0, vec![full, bare, rejected], at(1)).await.unwrap();

    assert_eq!(trail(&store).await, [full, bare, rejected]);
    let key = DeliveryKey { tenant: TENANT, delivery: DeliveryId(u64::MAX) };
    assert_eq!(store.delivery_trail(key, ALL).await.unwrap(), [full]);
}

pub(crate) async fn the_first_of_an_identity_stays(open: impl AsyncFn() -> Opened) {
    let store = open().await;
    let first = crumb(1);
    let mut again = first;
    again.record.received = first.record.received + Duration::from_secs(5);
    again.record.number = None;
    again.verdict = Verdict::Rejected(RejectReason::Duplicate);

    store.append(P0, vec![first, again], at(1)).await.unwrap();
    store.append(P0, vec![again], at(2)).await.unwrap();
    store.append(PartitionId(1), vec![again], at(1)).await.unwrap();

    assert_eq!(trail(&store).await, [first]);
}

pub(crate) async fn whatever_differs_in_its_identity_is_kept(open: impl AsyncFn() -> Opened) {
    let store = open().await;
    let base = crumb(1);
    let mut others = [base; 4];
    others[0].record.fix.measured.0 += 1;
    others[1].record.fix.position.lat_e7 += 1;
    others[2].record.fix.position.lon_e7 += 1;
    others[3].record.device.device.0 += 1;
    let mut other_driver = base;
    other_driver.record.device.driver.0 += 1;

    store.append(P0, [base].into_iter().chain(others).chain([other_driver]).collect(), at(1)).await.unwrap();

    assert_eq!(trail(&store).await.len(), 5);
    let other = DriverKey { tenant: TENANT, driver: DriverId(DRIVER.driver.0 + 1) };
    assert_eq!(store.driver_trail(other, ALL).await.unwrap(), [other_driver]);
}

pub(crate) async fn an_identity_is_one_whenever_it_is_received(open: impl AsyncFn() -> Opened) {
    let (early, later) = (Duration::from_secs(20 * 86_400), Duration::from_secs(40 * 86_400));
    for received in [[Duration::ZERO, later], [later, Duration::ZERO], [early, later]] {
        let store = open().await;
        let measured = crumb(received[0].as_secs() as i64 + received[1].as_secs() as i64 * 2);
        let late = |after: Duration| {
            let mut breadcrumb = measured;
            breadcrumb.record.received = measured.record.received + after;
            breadcrumb
        };
        let before = trail(&store).await.len();

        store.append(P0, vec![late(received[0])], at(1)).await.unwrap();
        store.append(P0, vec![late(received[1])], at(2)).await.unwrap();

        let after = trail(&store).await;
        assert_eq!(after.len(), before + 1);
        assert!(after.contains(&late(received[0])), "{received:?}");
    }
}

pub(crate) async fn a_trail_is_in_order_of_measured_time_and_of_its_range(open: impl AsyncFn() -> Opened) {
    let store = open().await;
    let hour = 3600;
    let mut all: Vec<Breadcrumb> = (0..100).map(|n| crumb(n * hour)).collect();
    let mut mixed = all.clone();
    mixed.reverse();
    mixed.swap(3, 77);
    for (n, chunk) in mixed.chunks(7).enumerate() {
        store.append(P0, chunk.to_vec(), at(n as u64)).await.unwrap();
    }
    let time = |n: usize| all[n].record.fix.measured.to_time();
    let part = async |from, until| store.driver_trail(DRIVER, TrailQuery { from, until, limit: 1000 }).await.unwrap();

    assert_eq!(trail(&store).await, all);
    assert_eq!(part(time(10), time(60)).await, all[10..60]);
    assert_eq!(part(Time(time(10).0 + 1), Time(time(60).0 + 1)).await, all[11..61]);
    assert_eq!(part(time(50), time(50)).await, []);
    assert_eq!(part(time(60), time(10)).await, []);
    all.truncate(30);
    assert_eq!(store.driver_trail(DRIVER, TrailQuery { limit: 30, ..ALL }).await.unwrap(), all);
}

pub(crate) async fn a_long_trail_is_read_piece_by_piece(open: impl AsyncFn() -> Opened) {
    let store = open().await;
    let all: Vec<Breadcrumb> = (0..400).map(|n| crumb(n * 900)).collect();
    store.append(P0, all.clone(), at(1)).await.unwrap();
    let mut read: Vec<Breadcrumb> = Vec::new();

    loop {
        let from = read.last().map_or(ALL.from, |last| Time(last.record.fix.measured.to_time().0 + 1));
        let piece = store.driver_trail(DRIVER, TrailQuery { from, limit: 33, ..ALL }).await.unwrap();
        assert!(piece.len() <= 33);
        if piece.is_empty() {
            break;
        }
        read.extend(piece);
    }

    assert_eq!(read, all);
    assert_eq!(store.driver_trail(DRIVER, TrailQuery { limit: 0, ..ALL }).await.unwrap(), []);
}

pub(crate) async fn a_deliverys_trail_has_its_breadcrumbs_from_all_drivers(open: impl AsyncFn() -> Opened) {
    let store = open().await;
    let key = DeliveryKey { tenant: TENANT, delivery: DeliveryId(5) };
    let mut all = Vec::new();
    for n in 0..20 {
        let mut breadcrumb = crumb(n * 40_000);
        breadcrumb.delivery = [Some(DeliveryId(5)), Some(DeliveryId(6)), None][n as usize % 3];
        breadcrumb.record.device.driver.0 += u32::from(n >= 10);
        all.push(breadcrumb);
    }

    store.append(P0, all.clone(), at(1)).await.unwrap();

    let of_five: Vec<_> = all.into_iter().filter(|breadcrumb| breadcrumb.delivery == Some(DeliveryId(5))).collect();
    assert_eq!(store.delivery_trail(key, ALL).await.unwrap(), of_five);
    let some = TrailQuery { limit: 2, ..ALL };
    assert_eq!(store.delivery_trail(key, some).await.unwrap(), of_five[..2]);
}

pub(crate) async fn tenants_see_only_their_own(open: impl AsyncFn() -> Opened) {
    let store = open().await;
    let mut ours = crumb(1);
    ours.delivery = Some(DeliveryId(5));
    let mut theirs = ours;
    theirs.record.device.tenant = TenantId(TENANT.0 + 1);

    store.append(P0, vec![ours, theirs], at(1)).await.unwrap();

    for (tenant, breadcrumb) in [(TENANT, ours), (theirs.record.device.tenant, theirs)] {
        let driver = DriverKey { tenant, driver: DRIVER.driver };
        let delivery = DeliveryKey { tenant, delivery: DeliveryId(5) };
        assert_eq!(store.driver_trail(driver, ALL).await.unwrap(), [breadcrumb]);
        assert_eq!(store.delivery_trail(delivery, ALL).await.unwrap(), [breadcrumb]);
    }
}

pub(crate) async fn offsets_are_kept_for_each_partition(open: impl AsyncFn() -> Opened) {
    let store = open().await;

    store.append(PartitionId(1), vec![crumb(1)], at(10)).await.unwrap();
    store.append(PartitionId(2), vec![], at(1 << 40)).await.unwrap();
    store.append(PartitionId(1), vec![], at(11)).await.unwrap();

    assert_eq!(store.next_offset(PartitionId(0), INCARNATION).await.unwrap(), Offset(0));
    assert_eq!(store.next_offset(PartitionId(1), INCARNATION).await.unwrap(), Offset(11));
    assert_eq!(store.next_offset(PartitionId(2), INCARNATION).await.unwrap(), Offset(1 << 40));
}

pub(crate) async fn an_offset_never_goes_back_and_is_its_incarnations_own(open: impl AsyncFn() -> Opened) {
    let store = open().await;
    let place = |incarnation, offset| TrailPlace { incarnation, offset: Offset(offset) };
    let late = crumb(5);
    store.append(P0, vec![crumb(1)], place(2, 100)).await.unwrap();

    store.append(P0, vec![late], place(2, 40)).await.unwrap();
    store.append(P0, vec![], place(1, 500)).await.unwrap();

    assert_eq!(store.next_offset(P0, 2).await.unwrap(), Offset(100));
    assert_eq!(trail(&store).await, [crumb(1), late], "what a latecomer brings is taken all the same");
    assert_eq!(store.next_offset(P0, 3).await.unwrap(), Offset(0), "other offsets, from the beginning");
    let older = store.next_offset(P0, 1).await;
    assert!(matches!(older, Err(TrailStoreError::Damaged { .. })), "{older:?}");
    store.append(P0, vec![crumb(1)], place(3, 7)).await.unwrap();
    drop(store);

    let store = open().await;
    assert_eq!(store.next_offset(P0, 3).await.unwrap(), Offset(7));
    assert_eq!(trail(&store).await, [crumb(1), late]);
}

pub(crate) async fn late_fixes_of_old_days_lie_with_their_day_and_are_taken_once(open: impl AsyncFn() -> Opened) {
    let all: Vec<Breadcrumb> = (0..3 * 24).map(|n| crumb(n * 3_600)).collect();
    let is_late = |n: usize| n % 5 == 2;
    let in_time: Vec<_> = (0..all.len()).filter(|n| !is_late(*n)).map(|n| all[n]).collect();
    let late: Vec<_> = (0..all.len()).filter(|n| is_late(*n)).map(|n| all[n]).collect();
    let store = open().await;
    store.append(P0, in_time.clone(), at(1)).await.unwrap();
    drop(store);

    let store = open().await;
    for (n, breadcrumb) in late.iter().enumerate() {
        store.append(P0, vec![*breadcrumb, in_time[n]], at(n as u64 + 2)).await.unwrap();
    }

    assert_eq!(trail(&store).await, all);
    drop(store);
    let store = open().await;
    assert_eq!(trail(&store).await, all);
    let dropped = store.expire(Time::from_secs(DAY_0_S + DAY_S)).await.unwrap();
    assert_eq!(dropped, 24, "with its day");
    assert_eq!(trail(&store).await, all[24..]);
}

pub(crate) async fn a_replay_of_days_changes_nothing(open: impl AsyncFn() -> Opened) {
    let store = open().await;
    let trips: Vec<Vec<Breadcrumb>> = (100..110).map(|driver| drive(driver, 2_000)).collect();
    let mixed: Vec<Breadcrumb> = (0..2_000).flat_map(|n| trips.iter().map(move |trip| trip[n])).collect();
    let everything = async |store: &Opened| {
        for (n, piece) in mixed.chunks(700).enumerate() {
            store.append(P0, piece.to_vec(), at(n as u64)).await.unwrap();
        }
    };
    let are_all_there = async |store: &Opened| {
        for trip in &trips {
            let key = trip[0].record.device.driver_key();
            assert_eq!(store.driver_trail(key, ALL).await.unwrap(), *trip);
            let delivery = DeliveryKey { tenant: TENANT, delivery: trip[500].delivery.unwrap() };
            let mut of_delivery: Vec<_> =
                trips.iter().flatten().filter(|b| b.delivery == Some(delivery.delivery)).copied().collect();
            of_delivery.sort_by_key(|b| (b.record.fix.measured, b.record.device));
            assert_eq!(store.delivery_trail(delivery, ALL).await.unwrap(), of_delivery);
        }
    };

    everything(&store).await;
    everything(&store).await;
    are_all_there(&store).await;
    drop(store);
    let store = open().await;
    everything(&store).await;
    are_all_there(&store).await;
    drop(store);
    are_all_there(&open().await).await;
}

pub(crate) async fn a_driver_who_is_forgotten_is_gone_and_does_not_come_back(open: impl AsyncFn() -> Opened) {
    let store = open().await;
    let (ours, others) = (drive(8, 300), drive(9, 300));
    let delivery = DeliveryKey { tenant: TENANT, delivery: DeliveryId(500) };
    let other = DriverKey { tenant: TENANT, driver: DriverId(9) };
    store.append(P0, [ours.clone(), others.clone()].concat(), at(1)).await.unwrap();
    drop(store);
    let store = open().await;
    let waiting = Breadcrumb { delivery: Some(DeliveryId(500)), ..crumb(40_000) };
    store.append(P0, vec![waiting], at(2)).await.unwrap();
    let now = waiting.record.received + Duration::from_secs(1);

    assert_eq!(store.forget(DRIVER, now).await.unwrap(), 301);

    store.append(P0, [ours.clone(), others.clone(), vec![waiting]].concat(), at(3)).await.unwrap();
    assert_eq!(store.forget(DRIVER, now).await.unwrap(), 0);
    drop(store);
    let store = open().await;
    store.append(P0, ours, at(4)).await.unwrap();
    assert_eq!(trail(&store).await, []);
    assert_eq!(store.driver_trail(other, ALL).await.unwrap(), others);
    let of_delivery = store.delivery_trail(delivery, ALL).await.unwrap();
    assert!(!of_delivery.is_empty() && of_delivery.iter().all(|b| b.record.device.driver == other.driver));
    // Who comes again is somebody new.
    let again = Breadcrumb { record: FixRecord { received: now, ..crumb(50_000).record }, ..crumb(50_000) };
    store.append(P0, vec![again], at(5)).await.unwrap();
    assert_eq!(trail(&store).await, [again]);
}

pub(crate) async fn days_that_have_ended_are_dropped_and_no_other(open: impl AsyncFn() -> Opened) {
    let store = open().await;
    let all: Vec<Breadcrumb> = (0..10).flat_map(|day| [crumb(day * DAY_S), crumb(day * DAY_S + DAY_S - 1)]).collect();
    store.append(P0, all.clone(), at(1)).await.unwrap();
    let day = |n: i64| Time::from_secs(DAY_0_S + n * DAY_S);

    let none = store.expire(day(0)).await.unwrap();
    let some = store.expire(Time(day(4).0 - 1)).await.unwrap();
    let one_more = store.expire(day(4)).await.unwrap();
    let again = store.expire(day(4)).await.unwrap();

    assert_eq!((none, some, one_more, again), (0, 6, 2, 0));
    assert_eq!(trail(&store).await, all[8..]);
    assert_eq!(store.next_offset(P0, INCARNATION).await.unwrap(), Offset(1));
    store.append(P0, vec![all[0]], at(2)).await.unwrap();
    assert_eq!(trail(&store).await.len(), all.len() - 8 + 1);
}

pub(crate) async fn wrong_clocks_are_kept_and_expire_by_their_receipt(open: impl AsyncFn() -> Opened) {
    let store = open().await;
    let says = |measured: i64, received_day: i64| {
        let mut breadcrumb = crumb(1);
        breadcrumb.record.fix.measured = MeasuredTime(measured);
        breadcrumb.record.received = Time::from_secs(DAY_0_S + received_day * DAY_S);
        breadcrumb
    };
    let wrong =
        [says(i64::MIN / 100, 1), says(-1, 1), says(0, 1), says(10 * (DAY_0_S + 400 * DAY_S), 2), says(i64::MAX, 2)];
    let right = crumb(5 * DAY_S);
    for chunk in [wrong[0], wrong[4], right, wrong[2], wrong[3], wrong[1]].chunks(2) {
        store.append(P0, chunk.to_vec(), at(1)).await.unwrap();
    }
    let whole = TrailQuery { from: Time(i64::MIN), until: Time(i64::MAX), limit: 100 };
    let of_range = [wrong[0], wrong[1], wrong[2], right, wrong[3]];

    assert_eq!(store.driver_trail(DRIVER, whole).await.unwrap(), of_range);
    assert_eq!(store.expire(Time::from_secs(DAY_0_S + 2 * DAY_S)).await.unwrap(), 3);
    assert_eq!(store.driver_trail(DRIVER, whole).await.unwrap(), [right, wrong[3]]);
    assert_eq!(store.expire(Time::from_secs(DAY_0_S + 3 * DAY_S)).await.unwrap(), 2);
    assert_eq!(store.driver_trail(DRIVER, whole).await.unwrap(), [right]);
}

pub(crate) async fn partitions_written_at_once_are_all_there(open: impl AsyncFn() -> Opened) {
    let store = open().await;

    let writers: Vec<_> = (0..8u32)
        .map(|partition| {
            let store = store.clone();
            tokio::spawn(async move {
                for n in 0..20u64 {
                    let breadcrumbs = (0..10).map(|i| of_partition(partition, n * 10 + i)).collect();
                    store.append(PartitionId(partition), breadcrumbs, at(n + 1)).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }

    for partition in 0..8 {
        let driver = of_partition(partition, 0).record.device.driver_key();
        let all: Vec<_> = (0..200).map(|n| of_partition(partition, n)).collect();
        assert_eq!(store.driver_trail(driver, ALL).await.unwrap(), all);
        assert_eq!(store.next_offset(PartitionId(partition), INCARNATION).await.unwrap(), Offset(20));
    }
}

pub(crate) async fn all_is_there_after_opening_again(open: impl AsyncFn() -> Opened) {
    let store = open().await;
    let all: Vec<Breadcrumb> = (0..50).map(|n| crumb(n * 10_000)).collect();
    store.append(P0, all.clone(), at(50)).await.unwrap();
    drop(store);

    let store = open().await;

    assert_eq!(trail(&store).await, all);
    assert_eq!(store.next_offset(P0, INCARNATION).await.unwrap(), Offset(50));
    store.append(P0, all.clone(), at(51)).await.unwrap();
    assert_eq!(trail(&store).await, all);
}

/// Appends to four partitions for ever, entry n being breadcrumb n, and says the offsets acknowledged. To be killed.
pub(crate) async fn write_until_killed(store: Opened) {
    let mut tasks = tokio::task::JoinSet::new();
    for partition in 0..4u32 {
        let store = store.clone();
        tasks.spawn(async move {
            let mut next = store.next_offset(PartitionId(partition), INCARNATION).await.unwrap().0;
            loop {
                let breadcrumbs = (next..next + 5).map(|n| of_partition(partition, n)).collect();
                next += 5;
                store.append(PartitionId(partition), breadcrumbs, at(next)).await.unwrap();
                acknowledge(format_args!("{partition} {next}"));
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

/// After the writer was killed: every partition is at or beyond what it said, with exactly the breadcrumbs below.
pub(crate) async fn offsets_and_breadcrumbs_agree(store: Opened, said: &[String]) {
    let mut partitions = BTreeSet::new();
    for line in said {
        let (partition, next) = line.split_once(' ').unwrap();
        let partition: u32 = partition.parse().unwrap();
        partitions.insert(partition);
        let kept = store.next_offset(PartitionId(partition), INCARNATION).await.unwrap();
        assert!(kept.0 >= next.parse().unwrap(), "{line}: {kept}");
    }
    assert!(!partitions.is_empty());
    for partition in partitions {
        let next = store.next_offset(PartitionId(partition), INCARNATION).await.unwrap();
        let driver = of_partition(partition, 0).record.device.driver_key();
        let all: Vec<_> = (0..next.0).map(|n| of_partition(partition, n)).collect();
        assert_eq!(store.driver_trail(driver, TrailQuery { limit: TRAIL_MAX, ..ALL }).await.unwrap(), all);
    }
}

/// The n-th breadcrumb of this partition's one driver.
fn of_partition(partition: u32, n: u64) -> Breadcrumb {
    let mut breadcrumb = crumb(n as i64 * 60);
    breadcrumb.record.device.driver = DriverId(1000 + partition);
    breadcrumb.source = Source { partition: PartitionId(partition), offset: Offset(n), index: 0, ordinal: 0 };
    breadcrumb
}

fn at(offset: u64) -> TrailPlace {
    TrailPlace { incarnation: INCARNATION, offset: Offset(offset) }
}

async fn trail(store: &Opened) -> Vec<Breadcrumb> {
    store.driver_trail(DRIVER, ALL).await.unwrap()
}

const P0: PartitionId = PartitionId(0);
const INCARNATION: u32 = 3;
const ALL: TrailQuery = TrailQuery { from: Time(0), until: Time(i64::MAX), limit: 10_000 };
