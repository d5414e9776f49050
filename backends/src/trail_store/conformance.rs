//! What every history must keep, whatever it stands on. Each promise takes a function that opens the store: called
//! again after the last one was dropped, it must open the same one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use protocol::record::Door;
use protocol::update::{SnappedPosition, Source};
use protocol::{
    Breadcrumb, DeliveryId, DeliveryKey, DeviceKey, DeviceNumber, DriverId, DriverKey, EdgeId, Fix, FixNumber,
    FixRecord, MeasuredTime, Offset, PartitionId, PhoneState, Position, RejectReason, TenantId, Time, Verdict,
};

use super::{TRAIL_MAX, TrailQuery, TrailStore};
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

    store.append(P0, vec![full, bare, rejected], Offset(1)).await.unwrap();

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

    store.append(P0, vec![first, again], Offset(1)).await.unwrap();
    store.append(P0, vec![again], Offset(2)).await.unwrap();
    store.append(PartitionId(1), vec![again], Offset(1)).await.unwrap();

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

    store.append(P0, [base].into_iter().chain(others).chain([other_driver]).collect(), Offset(1)).await.unwrap();

    assert_eq!(trail(&store).await.len(), 5);
    let other = DriverKey { tenant: TENANT, driver: DriverId(DRIVER.driver.0 + 1) };
    assert_eq!(store.driver_trail(other, ALL).await.unwrap(), [other_driver]);
}

pub(crate) async fn an_identity_is_one_whenever_it_is_received(open: impl AsyncFn() -> Opened) {
    let (early, late) = (Duration::from_secs(20 * 86_400), Duration::from_secs(40 * 86_400));
    for received in [[Duration::ZERO, late], [late, Duration::ZERO], [early, late]] {
        let store = open().await;
        let measured = crumb(received[0].as_secs() as i64 + received[1].as_secs() as i64 * 2);
        let at = |after: Duration| {
            let mut breadcrumb = measured;
            breadcrumb.record.received = measured.record.received + after;
            breadcrumb
        };
        let before = trail(&store).await.len();

        store.append(P0, vec![at(received[0])], Offset(1)).await.unwrap();
        store.append(P0, vec![at(received[1])], Offset(2)).await.unwrap();

        let after = trail(&store).await;
        assert_eq!(after.len(), before + 1);
        assert!(after.contains(&at(received[0])), "{received:?}");
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
        store.append(P0, chunk.to_vec(), Offset(n as u64)).await.unwrap();
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
    store.append(P0, all.clone(), Offset(1)).await.unwrap();
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

    store.append(P0, all.clone(), Offset(1)).await.unwrap();

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

    store.append(P0, vec![ours, theirs], Offset(1)).await.unwrap();

    for (tenant, breadcrumb) in [(TENANT, ours), (theirs.record.device.tenant, theirs)] {
        let driver = DriverKey { tenant, driver: DRIVER.driver };
        let delivery = DeliveryKey { tenant, delivery: DeliveryId(5) };
        assert_eq!(store.driver_trail(driver, ALL).await.unwrap(), [breadcrumb]);
        assert_eq!(store.delivery_trail(delivery, ALL).await.unwrap(), [breadcrumb]);
    }
}

pub(crate) async fn offsets_are_kept_for_each_partition(open: impl AsyncFn() -> Opened) {
    let store = open().await;

    store.append(PartitionId(1), vec![crumb(1)], Offset(10)).await.unwrap();
    store.append(PartitionId(2), vec![], Offset(1 << 40)).await.unwrap();
    store.append(PartitionId(1), vec![], Offset(11)).await.unwrap();

    assert_eq!(store.next_offset(PartitionId(0)).await.unwrap(), Offset(0));
    assert_eq!(store.next_offset(PartitionId(1)).await.unwrap(), Offset(11));
    assert_eq!(store.next_offset(PartitionId(2)).await.unwrap(), Offset(1 << 40));
}

pub(crate) async fn days_that_have_ended_are_dropped_and_no_other(open: impl AsyncFn() -> Opened) {
    let store = open().await;
    let all: Vec<Breadcrumb> = (0..10).flat_map(|day| [crumb(day * DAY_S), crumb(day * DAY_S + DAY_S - 1)]).collect();
    store.append(P0, all.clone(), Offset(1)).await.unwrap();
    let day = |n: i64| Time::from_secs(DAY_0_S + n * DAY_S);

    let none = store.expire(day(0)).await.unwrap();
    let some = store.expire(Time(day(4).0 - 1)).await.unwrap();
    let one_more = store.expire(day(4)).await.unwrap();
    let again = store.expire(day(4)).await.unwrap();

    assert_eq!((none, some, one_more, again), (0, 6, 2, 0));
    assert_eq!(trail(&store).await, all[8..]);
    assert_eq!(store.next_offset(P0).await.unwrap(), Offset(1));
    store.append(P0, vec![all[0]], Offset(2)).await.unwrap();
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
        store.append(P0, chunk.to_vec(), Offset(1)).await.unwrap();
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
                    store.append(PartitionId(partition), breadcrumbs, Offset(n + 1)).await.unwrap();
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
        assert_eq!(store.next_offset(PartitionId(partition)).await.unwrap(), Offset(20));
    }
}

pub(crate) async fn all_is_there_after_opening_again(open: impl AsyncFn() -> Opened) {
    let store = open().await;
    let all: Vec<Breadcrumb> = (0..50).map(|n| crumb(n * 10_000)).collect();
    store.append(P0, all.clone(), Offset(50)).await.unwrap();
    drop(store);

    let store = open().await;

    assert_eq!(trail(&store).await, all);
    assert_eq!(store.next_offset(P0).await.unwrap(), Offset(50));
    store.append(P0, all.clone(), Offset(51)).await.unwrap();
    assert_eq!(trail(&store).await, all);
}

/// Appends to four partitions for ever, entry n being breadcrumb n, and says the offsets acknowledged. To be killed.
pub(crate) async fn write_until_killed(store: Opened) {
    let mut tasks = tokio::task::JoinSet::new();
    for partition in 0..4u32 {
        let store = store.clone();
        tasks.spawn(async move {
            let mut next = store.next_offset(PartitionId(partition)).await.unwrap().0;
            loop {
                let breadcrumbs = (next..next + 5).map(|n| of_partition(partition, n)).collect();
                next += 5;
                store.append(PartitionId(partition), breadcrumbs, Offset(next)).await.unwrap();
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
        let kept = store.next_offset(PartitionId(partition)).await.unwrap();
        assert!(kept.0 >= next.parse().unwrap(), "{line}: {kept}");
    }
    assert!(!partitions.is_empty());
    for partition in partitions {
        let next = store.next_offset(PartitionId(partition)).await.unwrap();
        let driver = of_partition(partition, 0).record.device.driver_key();
        let all: Vec<_> = (0..next.0).map(|n| of_partition(partition, n)).collect();
        assert_eq!(store.driver_trail(driver, TrailQuery { limit: TRAIL_MAX, ..ALL }).await.unwrap(), all);
    }
}

/// Measured this long after day 0 began, and received a second later.
fn crumb(after_s: i64) -> Breadcrumb {
    let measured = Time::from_secs(DAY_0_S + after_s);
    Breadcrumb {
        record: FixRecord {
            device: DeviceKey { tenant: TENANT, driver: DRIVER.driver, device: DeviceNumber(1) },
            session_start: 0,
            number: None,
            lowest_held: FixNumber(0),
            edge: EdgeId(1),
            door: Door::Udp,
            received: measured + Duration::from_secs(1),
            fix: Fix::at(MeasuredTime::from_time(measured), Position { lat_e7: 411_500_000, lon_e7: -86_100_000 }),
            verdict: Verdict::Accepted,
        },
        verdict: Verdict::Accepted,
        snapped: None,
        delivery: None,
        source: Source::default(),
    }
}

/// The n-th breadcrumb of this partition's one driver.
fn of_partition(partition: u32, n: u64) -> Breadcrumb {
    let mut breadcrumb = crumb(n as i64 * 60);
    breadcrumb.record.device.driver = DriverId(1000 + partition);
    breadcrumb.source = Source { partition: PartitionId(partition), offset: Offset(n), index: 0, ordinal: 0 };
    breadcrumb
}

async fn trail(store: &Opened) -> Vec<Breadcrumb> {
    store.driver_trail(DRIVER, ALL).await.unwrap()
}

const TENANT: TenantId = TenantId(7);
const DRIVER: DriverKey = DriverKey { tenant: TENANT, driver: DriverId(8) };
const P0: PartitionId = PartitionId(0);
const DAY_S: i64 = 86_400;
const DAY_0_S: i64 = 19_000 * DAY_S;
const ALL: TrailQuery = TrailQuery { from: Time(0), until: Time(i64::MAX), limit: 10_000 };
