//! What every live store must do. The suite panics, naming the promise, where one is broken.

use std::time::Duration;

use protocol::update::{DeliveryView, DriverView, Epoch, Generation, Source};
use protocol::{
    AssignmentNumber, Delivery, DeliveryId, DeliveryKey, DeliveryPolicy, DeliveryState, DriverId, DriverKey, LiveView,
    Offset, PartitionId, TenantId, Time,
};

use super::{CellSpeeds, KindSpeed, LIVE_TTL, LiveDriver, LiveEntry, LiveStore, RoadKind, SpeedCell};

/// Runs all checks; `make` gives an empty store.
pub async fn suite<F>(make: impl Fn() -> F)
where
    F: Future<Output = Box<dyn LiveStore>>,
{
    what_was_put_is_found_by_its_tenant_only(&*make().await).await;
    an_older_delivery_never_replaces_a_newer(&*make().await).await;
    an_older_driver_never_replaces_a_newer(&*make().await).await;
    entries_expire_after_they_were_last_put(&*make().await).await;
    a_tenants_drivers_are_listed_by_number(&*make().await).await;
    speeds_are_found_by_their_cell_and_an_older_never_replaces_a_newer(&*make().await).await;
    speeds_expire_after_they_were_last_put(&*make().await).await;
}

async fn what_was_put_is_found_by_its_tenant_only(store: &dyn LiveStore) {
    store.put(vec![delivery(1, 5, (1, 1, 1), 1), driver(1, 5, 1)], NOW).await.expect("put");

    let view = store.delivery(delivery_key(1, 5), NOW).await.expect("asked").expect("the view");
    assert_eq!(LiveEntry::Delivery(Box::new(view)), delivery(1, 5, (1, 1, 1), 1), "whole, as it was put");
    let live = store.driver(driver_key(1, 5), NOW).await.expect("asked").expect("the driver");
    assert_eq!(LiveEntry::Driver(Box::new(live)), driver(1, 5, 1), "whole, as it was put");
    assert_eq!(store.delivery(delivery_key(2, 5), NOW).await.expect("asked"), None, "not by another tenant");
    assert_eq!(store.driver(driver_key(2, 5), NOW).await.expect("asked"), None, "not by another tenant");
    assert_eq!(store.drivers(TenantId(2), NOW).await.expect("asked"), []);
    assert_eq!(store.delivery(delivery_key(1, 6), NOW).await.expect("asked"), None);
    store.put(Vec::new(), NOW).await.expect("nothing is put");
}

async fn an_older_delivery_never_replaces_a_newer(store: &dyn LiveStore) {
    // (assignment, incarnation, claim), then number, from the oldest to the newest.
    let rising = [((1, 1, 1), 1), ((1, 1, 1), 2), ((1, 1, 9), 1), ((1, 2, 0), 1), ((2, 1, 0), 1), ((2, 1, 0), 7)];
    for newer in 0..rising.len() {
        for older in 0..newer {
            let (new, old) = (rising[newer], rising[older]);
            let id = (newer * 10 + older) as u64;
            // One after the other, and both at once in either order.
            store.put(vec![delivery(1, id, new.0, new.1)], NOW).await.expect("put");
            store.put(vec![delivery(1, id, old.0, old.1)], NOW).await.expect("put");
            let other = id + 1000;
            let both = vec![delivery(1, other, new.0, new.1), delivery(1, other, old.0, old.1)];
            store.put(both, NOW).await.expect("put");
            let risen = id + 2000;
            store.put(vec![delivery(1, risen, old.0, old.1)], NOW).await.expect("put");
            store.put(vec![delivery(1, risen, new.0, new.1)], NOW).await.expect("put");

            for id in [id, other, risen] {
                let view = store.delivery(delivery_key(1, id), NOW).await.expect("asked").expect("the view");
                assert_eq!((view.epoch, view.number), (epoch(new.0), new.1), "{new:?} over {old:?}");
            }
        }
    }
}

async fn an_older_driver_never_replaces_a_newer(store: &dyn LiveStore) {
    let rising = |n: usize| {
        let LiveEntry::Driver(mut live) = driver(1, 1, 0) else { unreachable!("a driver is a driver") };
        let (claim, fold_version, offset, index) =
            [(1, 1, 1, 0), (1, 1, 1, 1), (1, 1, 2, 0), (1, 2, 0, 0), (2, 1, 0, 0)][n];
        live.generation.claim = Offset(claim);
        live.fold_version = fold_version;
        live.source.offset = Offset(offset);
        live.source.index = index;
        live
    };
    for newer in 1..5 {
        store.put(vec![LiveEntry::Driver(rising(newer))], NOW).await.expect("put");
        for older in 0..newer {
            store.put(vec![LiveEntry::Driver(rising(older))], NOW).await.expect("put");
            let live = store.driver(driver_key(1, 1), NOW).await.expect("asked").expect("the driver");
            assert_eq!(live, *rising(newer), "{older} over {newer}");
        }
    }
}

async fn entries_expire_after_they_were_last_put(store: &dyn LiveStore) {
    store.put(vec![delivery(1, 1, (1, 1, 1), 1), driver(1, 1, 1)], NOW).await.expect("put");
    let later = NOW + LIVE_TTL / 2;
    store.put(vec![delivery(1, 2, (1, 1, 1), 1), driver(1, 2, 1)], later).await.expect("put");
    store.put(vec![driver(1, 3, 2)], NOW).await.expect("put");
    // The same again, and only an older one again: the first is renewed, the second is not.
    store.put(vec![driver(1, 1, 1), driver(1, 3, 1)], later).await.expect("put");

    let end = NOW + LIVE_TTL;
    let just_before = end - Duration::from_millis(1);
    assert!(store.delivery(delivery_key(1, 1), just_before).await.expect("asked").is_some());
    assert_eq!(store.delivery(delivery_key(1, 1), end).await.expect("asked"), None);
    assert!(store.delivery(delivery_key(1, 2), end).await.expect("asked").is_some());
    let live = store.drivers(TenantId(1), end).await.expect("asked");
    let numbers: Vec<u32> = live.iter().map(|live| live.view.key.driver.0).collect();
    assert_eq!(numbers, [1, 2]);
    // What has expired is as if it had never been: an older one may begin again.
    store.put(vec![delivery(1, 1, (0, 0, 0), 1)], end).await.expect("put");
    assert!(store.delivery(delivery_key(1, 1), end).await.expect("asked").is_some());
}

async fn a_tenants_drivers_are_listed_by_number(store: &dyn LiveStore) {
    let mixed = (0..300).map(|n| driver(n % 2, (n * 7919) % 1009, 1)).collect();
    store.put(mixed, NOW).await.expect("put");

    let listed = store.drivers(TenantId(1), NOW).await.expect("asked");

    assert_eq!(listed.len(), 150);
    assert!(listed.is_sorted_by_key(|live| live.view.key.driver));
    assert!(listed.iter().all(|live| live.view.key.tenant == TenantId(1)));
}

async fn speeds_are_found_by_their_cell_and_an_older_never_replaces_a_newer(store: &dyn LiveStore) {
    let (early, late) = (Time(NOW.0 + 1), Time(NOW.0 + 2));
    store.put_speeds(vec![speeds(1, late, 500), speeds(2, early, 600)], late).await.expect("put");
    store.put_speeds(vec![speeds(1, early, 100), speeds(2, late, 700)], late).await.expect("put");
    store.put_speeds(vec![speeds(2, late, 800)], late).await.expect("put");

    let found = store.speeds(CELL_1, late).await.expect("asked");
    assert_eq!(found, Some(speeds(1, late, 500)), "whole, and an older one is not taken");
    let found = store.speeds(SpeedCell(CELL_1.0 + 1), late).await.expect("asked");
    assert_eq!(found, Some(speeds(2, late, 800)), "a newer one is, and one of the same time");
    assert_eq!(store.speeds(SpeedCell(CELL_1.0 + 2), late).await.expect("asked"), None);
    // A kind of road that is there no more is gone.
    let none = CellSpeeds { roads: Vec::new(), ..speeds(1, Time(NOW.0 + 3), 0) };
    store.put_speeds(vec![none.clone()], late).await.expect("put");
    assert_eq!(store.speeds(CELL_1, late).await.expect("asked"), Some(none));
}

async fn speeds_expire_after_they_were_last_put(store: &dyn LiveStore) {
    store.put_speeds(vec![speeds(1, NOW, 500), speeds(2, NOW, 500)], NOW).await.expect("put");
    let later = NOW + LIVE_TTL / 2;
    store.put_speeds(vec![speeds(2, NOW, 500)], later).await.expect("put");

    let end = NOW + LIVE_TTL;
    assert!(store.speeds(CELL_1, end - Duration::from_millis(1)).await.expect("asked").is_some());
    assert_eq!(store.speeds(CELL_1, end).await.expect("asked"), None);
    assert!(store.speeds(SpeedCell(CELL_1.0 + 1), end).await.expect("asked").is_some());
}

fn speeds(cell: u64, at: Time, live_cm_s: u32) -> CellSpeeds {
    let road = |kind| KindSpeed { kind, empty_cm_s: 1_389, usual_cm_s: 900, live_cm_s };
    CellSpeeds { cell: SpeedCell(CELL_1.0 + cell - 1), at, roads: RoadKind::ALL.map(road).to_vec() }
}

/// A driver of this tenant, as of the n-th record.
pub fn driver(tenant: u32, id: u32, offset: u64) -> LiveEntry {
    let view = DriverView {
        key: driver_key(tenant, id),
        lead: None,
        position: None,
        phone_state: None,
        battery_percent: Some(50),
        deliveries: vec![DeliveryId(7)],
        silent: None,
        vehicle: protocol::record::Vehicle::Car,
    };
    LiveEntry::Driver(Box::new(LiveDriver {
        generation: Generation { incarnation: 1, claim: Offset(0) },
        fold_version: 1,
        source: Source { partition: PartitionId(3), offset: Offset(offset), index: 0, ordinal: 0 },
        at: NOW,
        view,
    }))
}

/// A ready delivery of this tenant.
pub fn delivery(tenant: u32, id: u64, of_epoch: (u32, u32, u64), number: u64) -> LiveEntry {
    let delivery = Delivery {
        key: delivery_key(tenant, id),
        state: DeliveryState::Ready,
        assignment: AssignmentNumber(of_epoch.0),
        driver: Some(DriverId(1)),
        stops: Vec::new(),
        policy: DeliveryPolicy::default(),
        journal: Vec::new(),
        reference: "a reference".to_string(),
        created: NOW,
    };
    let view = DeliveryView { delivery, position: None, progress: None, eta: None, plan: None, silent: None };
    LiveEntry::Delivery(Box::new(LiveView { epoch: epoch(of_epoch), number, at: NOW, view, is_last: false }))
}

fn epoch((assignment, incarnation, claim): (u32, u32, u64)) -> Epoch {
    Epoch { assignment: AssignmentNumber(assignment), generation: Generation { incarnation, claim: Offset(claim) } }
}

fn delivery_key(tenant: u32, id: u64) -> DeliveryKey {
    DeliveryKey { tenant: TenantId(tenant), delivery: DeliveryId(id) }
}

fn driver_key(tenant: u32, id: u32) -> DriverKey {
    DriverKey { tenant: TenantId(tenant), driver: DriverId(id) }
}

const NOW: Time = Time(1_700_000_000_000);
const CELL_1: SpeedCell = SpeedCell(0x0883_9220_0117_ffff);
