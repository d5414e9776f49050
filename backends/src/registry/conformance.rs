//! What every registry must keep, whatever it stands on. Each promise takes a function that opens the registry with
//! these token keys: called again after the last one was dropped, it must open the same one.

use std::collections::BTreeSet;
use std::sync::Arc;

use protocol::record::Vehicle;
use protocol::{
    DeliveryId, DeliveryKey, DeliveryPolicy, DeviceKey, DeviceNumber, DriverId, DriverKey, FixNumber, PartitionId,
    Record, TenantId, Time, TrackerKey, partition_of,
};

use super::{
    Asker, DriverChange, DriverFact, Made, NUMBERS_STEP, New, Once, Registry, RegistryError, Scope, SessionStart,
};
use crate::control::Secret;
use crate::control::credential::{self, TokenKeyId, TokenKeys};
use crate::crash::acknowledge;
use crate::ledger::{BirthMark, IDEMPOTENCY_KEPT, Idempotency, TEXT_BYTES_MAX};

pub(crate) type Opened = Arc<dyn Registry>;

/// Makes a test of every promise. `$fixture` gives a fresh fixture, which opens its registry.
macro_rules! registry_conformance {
    ($fixture:expr) => {
        $crate::registry::conformance::registry_conformance!(@ $fixture;
            a_tenants_key_opens_that_tenant_and_nothing_else,
            what_was_registered_is_found_by_its_tenant_alone,
            an_external_id_names_one_driver_of_a_tenant,
            drivers_are_listed_in_order_from_any_place,
            a_device_number_is_given_once_even_after_it_was_revoked,
            a_revoked_device_opens_nothing_and_starts_no_session,
            a_delivery_token_opens_one_delivery,
            what_is_no_token_of_ours_opens_nothing,
            session_starts_rise_even_when_the_clock_goes_back,
            after_a_session_in_the_future_a_device_goes_on_under_another_number,
            sessions_at_once_share_neither_start_nor_numbers,
            a_change_of_the_leading_device_is_told_once,
            a_revoked_device_leads_no_more,
            a_change_of_vehicle_is_told_once,
            the_facts_of_a_partition_are_what_its_drivers_trackers_are_to_know,
            the_outbox_wakes_its_reader,
            what_is_asked_for_twice_under_one_key_is_made_once,
            a_repeat_never_answers_a_token_that_opens_nothing,
            two_requests_of_one_client_in_one_millisecond_get_tokens_of_their_own,
            names_are_bounded,
            all_is_there_after_opening_again,
        );
    };
    (@ $fixture:expr; $($promise:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                let fixture = $fixture;
                $crate::registry::conformance::$promise(async || fixture.open().await).await;
            }
        )*
    };
}
pub(crate) use registry_conformance;

pub(crate) async fn a_tenants_key_opens_that_tenant_and_nothing_else(open: impl AsyncFn() -> Opened) {
    let registry = open().await;
    let policy = DeliveryPolicy { stale_after_s: 45, ..DeliveryPolicy::default() };

    let (first, first_key) = registry.create_tenant("Pão & Companhia", policy, NOW).await.unwrap();
    let (second, second_key) = registry.create_tenant("", DeliveryPolicy::default(), NOW).await.unwrap();

    assert_ne!(first.id, second.id);
    assert!(first.id.0 >= 1 && first_key.starts_with("wft_") && first_key.len() >= 4 + 22);
    assert_eq!(registry.scope_of(&first_key).await.unwrap(), Some(Scope::Tenant(first.id)));
    assert_eq!(registry.scope_of(&second_key).await.unwrap(), Some(Scope::Tenant(second.id)));
    assert_eq!(registry.tenant(first.id).await.unwrap(), first);
    assert_eq!((first.name.as_str(), first.policy), ("Pão & Companhia", policy));
    assert_eq!(registry.tenants().await.unwrap(), [first, second]);
}

pub(crate) async fn what_is_asked_for_twice_under_one_key_is_made_once(open: impl AsyncFn() -> Opened) {
    let registry = open().await;
    let tenant = tenant(&registry).await;
    let driver = registry.create_driver(tenant, "Ana", "", Vehicle::Car, NOW).await.unwrap().id;
    let delivery = DeliveryKey { tenant, delivery: DeliveryId(7) };
    let birth = Some(BirthMark([3; 16]));
    let asks = |asker, key: &str, request: u8| Once {
        asker,
        idempotency: Idempotency { key: key.to_string(), request: [request; 32], kept: Time(i64::MAX) },
        secret: [9; 32],
    };
    let (name, external_id) = (String::from("Rui"), String::new());
    let (policy, vehicle) = (DeliveryPolicy::default(), Vehicle::Bicycle);
    let all = [
        (Asker::Operator, New::Tenant { name: name.clone(), policy }),
        (Asker::Tenant(tenant), New::Driver { tenant, name, external_id, vehicle }),
        (Asker::Tenant(tenant), New::Device { tenant, driver }),
        (Asker::Tenant(tenant), New::DeliveryToken { key: delivery, birth }),
    ];

    for (n, (asker, new)) in all.into_iter().enumerate() {
        let key = format!("key-{n}");
        let first = registry.once(asks(asker, &key, 1), new.clone(), NOW).await.unwrap();
        let again = registry.once(asks(asker, &key, 1), new.clone(), LATER).await.unwrap();
        let other = registry.once(asks(asker, &key, 2), new.clone(), LATER).await;
        let after = NOW + IDEMPOTENCY_KEPT;
        let much_later = registry.once(asks(asker, &key, 2), new.clone(), after).await.unwrap();

        assert_eq!(first, again);
        assert!(matches!(other, Err(RegistryError::IdempotencyMismatch)), "{other:?}");
        assert_ne!(first, much_later, "a key is forgotten after its time, and its secrets are others then");
        let (secret, scope) = match first {
            Made::Tenant(tenant, secret) => (secret, Scope::Tenant(tenant.id)),
            Made::Device(device, secret) => (secret, Scope::Device(device)),
            Made::DeliveryToken(secret) => (secret, Scope::Delivery { key: delivery, birth }),
            Made::Driver(_) => continue,
        };
        assert_eq!(registry.scope_of(&secret).await.unwrap(), Some(scope));
    }
    let drivers = registry.drivers(tenant, DriverId(0), 10).await.unwrap();
    assert_eq!(drivers.len(), 3, "Ana, and Rui once a day");
}

pub(crate) async fn a_repeat_never_answers_a_token_that_opens_nothing(open: impl AsyncFn() -> Opened) {
    let registry = open().await;
    let tenant = tenant(&registry).await;
    let driver = registry.create_driver(tenant, "Ana", "", Vehicle::Car, NOW).await.unwrap().id;
    let key = DeliveryKey { tenant, delivery: DeliveryId(7) };
    let once = |name: &str, secret: u8| Once {
        asker: Asker::Tenant(tenant),
        idempotency: Idempotency { key: name.to_string(), request: [1; 32], kept: LATER },
        secret: [secret; 32],
    };
    let policy = DeliveryPolicy::default();
    let of_birth = |mark: u8| New::DeliveryToken { key, birth: Some(BirthMark([mark; 16])) };
    let all = [
        ("tenant", New::Tenant { name: String::new(), policy }),
        ("device", New::Device { tenant, driver }),
        ("token", of_birth(3)),
    ];

    for (name, new) in all {
        registry.once(once(name, 9), new.clone(), NOW).await.unwrap();
        let other = registry.once(once(name, 8), new, LATER).await;
        assert!(matches!(other, Err(RegistryError::OtherSecret)), "{name} shown with another secret: {other:?}");
    }
    // The delivery was lost, and another one has its number.
    let first = registry.once(once("token", 9), of_birth(3), NOW).await.unwrap();
    let second = registry.once(once("token", 9), of_birth(4), LATER).await.unwrap();
    let again = registry.once(once("token", 9), of_birth(4), LATER).await.unwrap();

    assert_ne!(first, second);
    assert_eq!(second, again);
    let Made::DeliveryToken(token) = second else { panic!("{second:?}") };
    let scope = Scope::Delivery { key, birth: Some(BirthMark([4; 16])) };
    assert_eq!(registry.scope_of(&token).await.unwrap(), Some(scope));
}

pub(crate) async fn two_requests_of_one_client_in_one_millisecond_get_tokens_of_their_own(
    open: impl AsyncFn() -> Opened,
) {
    let registry = open().await;
    let tenant = tenant(&registry).await;
    let once = |name: &str| Once {
        asker: Asker::Tenant(tenant),
        idempotency: Idempotency { key: name.to_string(), request: [1; 32], kept: LATER },
        secret: [9; 32],
    };
    let of =
        |delivery: u64| New::DeliveryToken { key: DeliveryKey { tenant, delivery: DeliveryId(delivery) }, birth: None };

    let first = registry.once(once("key (token)"), of(7), NOW).await.unwrap();
    let second = registry.once(once("key"), of(5), NOW).await.unwrap();

    assert_ne!(first, second);
    assert_eq!(registry.once(once("key"), of(5), LATER).await.unwrap(), second);
    assert_eq!(registry.once(once("key (token)"), of(7), LATER).await.unwrap(), first);
}

pub(crate) async fn what_was_registered_is_found_by_its_tenant_alone(open: impl AsyncFn() -> Opened) {
    let registry = open().await;
    let (ours, theirs) = (tenant(&registry).await, tenant(&registry).await);
    let driver = registry.create_driver(ours, "Ana", "van-3", Vehicle::Car, NOW).await.unwrap();
    let (device, _) = registry.enrol(ours, driver.id, NOW).await.unwrap();
    let others = DeviceKey { tenant: theirs, ..device };

    assert_eq!(registry.driver(ours, driver.id).await.unwrap(), driver);
    assert!(matches!(registry.driver(theirs, driver.id).await, Err(RegistryError::NoDriver { .. })));
    assert_eq!(registry.drivers(theirs, DriverId(0), 10).await.unwrap(), []);
    assert!(matches!(registry.enrol(theirs, driver.id, NOW).await, Err(RegistryError::NoDriver { .. })));
    assert!(matches!(registry.start_session(others, NOW).await, Err(RegistryError::NoDevice)));
    assert!(matches!(registry.lead(others, NOW).await, Err(RegistryError::NoDevice)));
    assert!(matches!(registry.revoke(others, NOW).await, Err(RegistryError::NoDevice)));
    assert!(matches!(registry.tenant(NOBODY).await, Err(RegistryError::NoTenant { .. })));
    assert!(matches!(
        registry.create_driver(NOBODY, "Ana", "", Vehicle::Car, NOW).await,
        Err(RegistryError::NoTenant { .. })
    ));
    assert!(matches!(registry.enrol(NOBODY, driver.id, NOW).await, Err(RegistryError::NoTenant { .. })));
    let delivery = DeliveryKey { tenant: NOBODY, delivery: DeliveryId(1) };
    assert!(matches!(registry.create_delivery_token(delivery, None, NOW).await, Err(RegistryError::NoTenant { .. })));
}

pub(crate) async fn an_external_id_names_one_driver_of_a_tenant(open: impl AsyncFn() -> Opened) {
    let registry = open().await;
    let (ours, theirs) = (tenant(&registry).await, tenant(&registry).await);

    let first = registry.create_driver(ours, "Ana", "van-3", Vehicle::Car, NOW).await.unwrap();
    let taken = registry.create_driver(ours, "Rui", "van-3", Vehicle::Car, NOW).await;
    let elsewhere = registry.create_driver(theirs, "Rui", "van-3", Vehicle::Car, NOW).await;
    let nameless = [
        registry.create_driver(ours, "Rui", "", Vehicle::Car, NOW).await.unwrap(),
        registry.create_driver(ours, "Rui", "", Vehicle::Car, NOW).await.unwrap(),
    ];

    assert!(
        matches!(&taken, Err(RegistryError::ExternalIdTaken { external_id }) if external_id == "van-3"),
        "{taken:?}"
    );
    assert!(elsewhere.is_ok());
    assert_ne!(nameless[0].id, nameless[1].id);
    assert_eq!(registry.driver(ours, first.id).await.unwrap().external_id, "van-3");
}

pub(crate) async fn drivers_are_listed_in_order_from_any_place(open: impl AsyncFn() -> Opened) {
    let registry = open().await;
    let tenant = tenant(&registry).await;
    let mut made = Vec::new();
    for n in 0..5 {
        made.push(registry.create_driver(tenant, &format!("driver {n}"), "", Vehicle::Car, NOW).await.unwrap());
    }

    assert_eq!(registry.drivers(tenant, DriverId(0), 100).await.unwrap(), made);
    assert_eq!(registry.drivers(tenant, made[1].id, 2).await.unwrap(), made[2..4]);
    assert_eq!(registry.drivers(tenant, made[4].id, 2).await.unwrap(), []);
}

pub(crate) async fn a_device_number_is_given_once_even_after_it_was_revoked(open: impl AsyncFn() -> Opened) {
    let registry = open().await;
    let (tenant, driver) = driver(&registry).await;
    let mut numbers = BTreeSet::new();

    for _ in 0..5 {
        let (device, credential) = registry.enrol(tenant, driver, NOW).await.unwrap();
        assert_eq!(device.driver_key().tenant, tenant);
        assert_eq!(registry.scope_of(&credential).await.unwrap(), Some(Scope::Device(device)));
        registry.revoke(device, NOW).await.unwrap();
        numbers.insert(device.device);
    }

    assert_eq!(numbers.into_iter().collect::<Vec<_>>(), (1..=5).map(DeviceNumber).collect::<Vec<_>>());
}

pub(crate) async fn a_revoked_device_opens_nothing_and_starts_no_session(open: impl AsyncFn() -> Opened) {
    let registry = open().await;
    let (tenant, driver) = driver(&registry).await;
    let (revoked, revoked_credential) = registry.enrol(tenant, driver, NOW).await.unwrap();
    let (kept, kept_credential) = registry.enrol(tenant, driver, NOW).await.unwrap();
    registry.start_session(revoked, NOW).await.unwrap();

    registry.revoke(revoked, NOW).await.unwrap();
    registry.revoke(revoked, LATER).await.unwrap();

    assert_eq!(registry.scope_of(&revoked_credential).await.unwrap(), None);
    assert!(matches!(registry.start_session(revoked, LATER).await, Err(RegistryError::NoDevice)));
    assert!(matches!(registry.lead(revoked, LATER).await, Err(RegistryError::NoDevice)));
    assert_eq!(registry.revoked().await.unwrap(), [revoked]);
    assert_eq!(registry.scope_of(&kept_credential).await.unwrap(), Some(Scope::Device(kept)));
}

pub(crate) async fn a_delivery_token_opens_one_delivery(open: impl AsyncFn() -> Opened) {
    let registry = open().await;
    let key = DeliveryKey { tenant: tenant(&registry).await, delivery: DeliveryId(17) };

    let birth = Some(BirthMark([7; 16]));
    let token = registry.create_delivery_token(key, birth, NOW).await.unwrap();
    let another = registry.create_delivery_token(key, None, NOW).await.unwrap();

    assert!(token.starts_with("wfl_") && token.len() >= 4 + 22 && token != another);
    assert_eq!(registry.scope_of(&token).await.unwrap(), Some(Scope::Delivery { key, birth }));
    assert_eq!(registry.scope_of(&another).await.unwrap(), Some(Scope::Delivery { key, birth: None }));
}

pub(crate) async fn what_is_no_token_of_ours_opens_nothing(open: impl AsyncFn() -> Opened) {
    let registry = open().await;
    let (tenant, api_key) = registry.create_tenant("a", DeliveryPolicy::default(), NOW).await.unwrap();
    let driver = registry.create_driver(tenant.id, "Ana", "", Vehicle::Car, NOW).await.unwrap();
    let (device, credential) = registry.enrol(tenant.id, driver.id, NOW).await.unwrap();
    let never_enrolled = DeviceKey { device: DeviceNumber(device.device.0 + 1), ..device };
    let forged = TokenKeys::new([(TokenKeyId(1), Secret::random())]);

    let mut bad = vec![
        String::new(),
        "wft_".to_string(),
        "wfl_".to_string() + &api_key[4..],
        "wfd_".to_string() + &api_key[4..],
        api_key[4..].to_string(),
        api_key.to_uppercase(),
        format!("{api_key} "),
        "x".repeat(100_000),
        format!("wft_{}", "x".repeat(100_000)),
        credential::issue(device, &forged).unwrap(),
        credential::issue(never_enrolled, &token_keys()).unwrap(),
    ];
    bad.extend((0..api_key.len()).map(|at| api_key[..at].to_string()));
    bad.extend((0..credential.len()).map(|at| credential[..at].to_string()));
    for token in bad {
        assert_eq!(registry.scope_of(&token).await.unwrap(), None, "{token}");
    }
}

pub(crate) async fn session_starts_rise_even_when_the_clock_goes_back(open: impl AsyncFn() -> Opened) {
    let registry = open().await;
    let (tenant, driver) = driver(&registry).await;
    let (device, _) = registry.enrol(tenant, driver, NOW).await.unwrap();
    let now_s = NOW.as_secs() as u32;

    let mut sessions = Vec::new();
    for now in [NOW, NOW, Time(NOW.0 - 60_000), Time(NOW.0 + 3_000), LATER] {
        sessions.push(registry.start_session(device, now).await.unwrap());
    }
    let too_late = registry.start_session(device, Time::from_secs(1 << 32)).await;

    let starts: Vec<u32> = sessions.iter().map(|session| session.start_s).collect();
    assert_eq!(starts, [now_s, now_s + 1, now_s + 2, now_s + 3, LATER.as_secs() as u32]);
    assert!(sessions.iter().all(|session| session.device == device));
    let numbers: Vec<u64> = sessions.iter().map(|session| session.numbers_from.0).collect();
    assert_eq!(numbers, (0..5).map(|n| 1 + n * NUMBERS_STEP).collect::<Vec<_>>());
    assert!(matches!(too_late, Err(RegistryError::Exhausted { .. })), "{too_late:?}");
}

pub(crate) async fn after_a_session_in_the_future_a_device_goes_on_under_another_number(
    open: impl AsyncFn() -> Opened,
) {
    let registry = open().await;
    let (tenant, driver) = driver(&registry).await;
    let (device, credential) = registry.enrol(tenant, driver, NOW).await.unwrap();
    registry.lead(device, NOW).await.unwrap();
    let steps_s = [0, 2, 7_200, 172_800, 630_720_000, -2, -7_200, -172_800, -630_720_000];

    let mut seen = BTreeSet::new();
    let mut numbers = 0;
    for now_s in steps_s.iter().flat_map(|step_s| [NOW.as_secs() + step_s, NOW.as_secs(), NOW.as_secs() + step_s]) {
        let session = registry.start_session(device, Time::from_secs(now_s)).await.unwrap();
        let ahead_s = i64::from(session.start_s) - now_s;
        assert!((0..=64).contains(&ahead_s), "{ahead_s} s ahead of {now_s}");
        assert!(seen.insert((session.device, session.start_s)), "the keys of {session:?} were derived before");
        assert!(session.numbers_from.0 > numbers, "{session:?}");
        numbers = session.numbers_from.0;
    }

    assert_eq!(registry.scope_of(&credential).await.unwrap(), Some(Scope::Device(device)));
    let newest = registry.start_session(device, NOW).await.unwrap().device;
    assert_ne!(newest, device);
    let leads = records(&registry).await;
    assert!(matches!(leads.last(), Some(Record::Lead { device, .. }) if *device == newest), "it leads as before");
    // Whoever revokes it names the number that he sees it go by.
    let revoked = registry.revoke(newest, NOW).await.unwrap();
    assert!(revoked.contains(&device) && revoked.contains(&newest));
    assert_eq!(registry.revoked().await.unwrap(), revoked);
    assert_eq!(registry.scope_of(&credential).await.unwrap(), None);
    assert!(matches!(registry.start_session(device, NOW).await, Err(RegistryError::NoDevice)));
}

pub(crate) async fn sessions_at_once_share_neither_start_nor_numbers(open: impl AsyncFn() -> Opened) {
    let registry = open().await;
    let (tenant, driver) = driver(&registry).await;
    let (device, _) = registry.enrol(tenant, driver, NOW).await.unwrap();

    let sessions: Vec<_> = (0..50)
        .map(|_| {
            let registry = registry.clone();
            tokio::spawn(async move { registry.start_session(device, NOW).await.unwrap() })
        })
        .collect();
    let mut seen = BTreeSet::new();
    for session in sessions {
        let SessionStart { start_s, numbers_from, .. } = session.await.unwrap();
        seen.insert((start_s, numbers_from));
    }

    let now_s = NOW.as_secs() as u32;
    let all = (0..50).map(|n| (now_s + n, FixNumber(1 + u64::from(n) * NUMBERS_STEP)));
    assert_eq!(seen, all.collect());
}

pub(crate) async fn a_change_of_the_leading_device_is_told_once(open: impl AsyncFn() -> Opened) {
    let registry = open().await;
    let (tenant, driver) = driver(&registry).await;
    let (first, _) = registry.enrol(tenant, driver, NOW).await.unwrap();
    let (second, _) = registry.enrol(tenant, driver, NOW).await.unwrap();

    for device in [first, first, second, second, first] {
        registry.lead(device, LATER).await.unwrap();
    }

    let lead = |device| Record::Lead { device, at: LATER };
    assert_eq!(records(&registry).await, [lead(first), lead(second), lead(first)]);
    let rows = registry.outbox(3).await.unwrap();
    registry.outbox_settled(&[rows[0].sequence, rows[2].sequence]).await.unwrap();
    assert_eq!(records(&registry).await, [lead(second)], "what is not named stays");
}

pub(crate) async fn a_revoked_device_leads_no_more(open: impl AsyncFn() -> Opened) {
    let registry = open().await;
    let (tenant, driver) = driver(&registry).await;
    let (leading, _) = registry.enrol(tenant, driver, NOW).await.unwrap();
    let (other, _) = registry.enrol(tenant, driver, NOW).await.unwrap();
    registry.lead(leading, NOW).await.unwrap();
    let lead = async || registry.facts(PartitionId(0), 1).await.unwrap().first().and_then(|fact| fact.lead);

    registry.revoke(other, LATER).await.unwrap();
    assert_eq!(lead().await, Some(leading));
    registry.revoke(leading, LATER).await.unwrap();
    registry.revoke(leading, LATER).await.unwrap();

    assert_eq!(lead().await, None);
    assert!(matches!(registry.lead(leading, LATER).await, Err(RegistryError::NoDevice)));
    let ended = |device| Record::LeadEnded { device, at: LATER };
    let all = [Record::Lead { device: leading, at: NOW }, ended(other), ended(leading)];
    assert_eq!(records(&registry).await, all);
}

pub(crate) async fn a_change_of_vehicle_is_told_once(open: impl AsyncFn() -> Opened) {
    let registry = open().await;
    let tenant = tenant(&registry).await;
    let car = registry.create_driver(tenant, "Ana", "", Vehicle::Car, NOW).await.unwrap();
    let rider = registry.create_driver(tenant, "Rui", "", Vehicle::Bicycle, NOW).await.unwrap();
    let by = |vehicle| DriverChange { vehicle: Some(vehicle), name: None };

    for vehicle in [Vehicle::Foot, Vehicle::Foot, Vehicle::Moped] {
        registry.change_driver(tenant, car.id, by(vehicle)).await.unwrap();
    }
    let named = DriverChange { name: Some("Ana Sousa".to_string()), vehicle: None };
    let changed = registry.change_driver(tenant, car.id, named).await.unwrap();
    let elsewhere = registry.change_driver(TenantId(tenant.0 + 1), car.id, by(Vehicle::Foot)).await;

    assert_eq!((changed.name.as_str(), changed.vehicle), ("Ana Sousa", Vehicle::Moped));
    assert_eq!(registry.driver(tenant, car.id).await.unwrap(), changed);
    assert_eq!(registry.driver(tenant, rider.id).await.unwrap(), rider);
    assert!(matches!(elsewhere, Err(RegistryError::NoDriver { .. })), "{elsewhere:?}");
    let told = |driver, vehicle| Record::Vehicle { driver: DriverKey { tenant, driver }, vehicle };
    let all = [(rider.id, Vehicle::Bicycle), (car.id, Vehicle::Foot), (car.id, Vehicle::Moped)];
    assert_eq!(records(&registry).await, all.map(|(driver, vehicle)| told(driver, vehicle)));
}

pub(crate) async fn the_facts_of_a_partition_are_what_its_drivers_trackers_are_to_know(open: impl AsyncFn() -> Opened) {
    const COUNT: u32 = 3;
    let registry = open().await;
    let tenants = [tenant(&registry).await, tenant(&registry).await];
    let mut told = Vec::new();
    for tenant in tenants {
        for (i, vehicle) in (0..6).zip([Vehicle::Car, Vehicle::Bicycle].into_iter().cycle()) {
            let driver = registry.create_driver(tenant, "", "", vehicle, NOW).await.unwrap().id;
            let key = DriverKey { tenant, driver };
            let mut lead = None;
            if i % 3 == 0 {
                let first = registry.enrol(tenant, driver, NOW).await.unwrap().0;
                registry.lead(first, NOW).await.unwrap();
                let second = registry.enrol(tenant, driver, NOW).await.unwrap().0;
                registry.lead(second, NOW).await.unwrap();
                lead = Some(second);
            }
            if lead.is_some() || vehicle != Vehicle::Car {
                told.push(DriverFact { driver: key, lead, vehicle });
            }
        }
    }

    let mut found = Vec::new();
    for partition in (0..COUNT).map(PartitionId) {
        let facts = registry.facts(partition, COUNT).await.unwrap();
        let place = |fact: &DriverFact| partition_of(&TrackerKey::Driver(fact.driver).key_bytes(), COUNT);
        assert!(facts.iter().all(|fact| place(fact) == partition), "{facts:?}");
        found.extend(facts);
    }

    found.sort_by_key(|fact| fact.driver);
    told.sort_by_key(|fact| fact.driver);
    assert_eq!(found, told);
}

pub(crate) async fn the_outbox_wakes_its_reader(open: impl AsyncFn() -> Opened) {
    let registry = open().await;
    let (tenant, driver) = driver(&registry).await;
    let (device, _) = registry.enrol(tenant, driver, NOW).await.unwrap();
    let reader = {
        let registry = registry.clone();
        tokio::spawn(async move {
            while registry.outbox(1).await.unwrap().is_empty() {
                registry.outbox_changed().await;
            }
        })
    };

    registry.lead(device, NOW).await.unwrap();

    tokio::time::timeout(PATIENCE, reader).await.expect("the reader was not woken").unwrap();
}

pub(crate) async fn names_are_bounded(open: impl AsyncFn() -> Opened) {
    let registry = open().await;
    let long = "x".repeat(TEXT_BYTES_MAX + 1);
    let tenant = tenant(&registry).await;

    let outcomes = [
        registry.create_tenant(&long, DeliveryPolicy::default(), NOW).await.err(),
        registry.create_driver(tenant, &long, "", Vehicle::Car, NOW).await.err(),
        registry.create_driver(tenant, "", &long, Vehicle::Car, NOW).await.err(),
    ];

    for outcome in outcomes {
        assert!(matches!(outcome, Some(RegistryError::Invalid { .. })), "{outcome:?}");
    }
    assert_eq!(registry.tenants().await.unwrap().len(), 1);
}

pub(crate) async fn all_is_there_after_opening_again(open: impl AsyncFn() -> Opened) {
    let registry = open().await;
    let (tenant, api_key) = registry.create_tenant("a", DeliveryPolicy::default(), NOW).await.unwrap();
    let driver = registry.create_driver(tenant.id, "Ana", "van-3", Vehicle::Car, NOW).await.unwrap();
    let (device, credential) = registry.enrol(tenant.id, driver.id, NOW).await.unwrap();
    let first = registry.start_session(device, NOW).await.unwrap();
    registry.lead(device, NOW).await.unwrap();
    drop(registry);

    let registry = open().await;

    assert_eq!(registry.scope_of(&api_key).await.unwrap(), Some(Scope::Tenant(tenant.id)));
    assert_eq!(registry.scope_of(&credential).await.unwrap(), Some(Scope::Device(device)));
    assert_eq!(registry.driver(tenant.id, driver.id).await.unwrap(), driver);
    assert_eq!(records(&registry).await, [Record::Lead { device, at: NOW }]);
    let second = registry.start_session(device, NOW).await.unwrap();
    assert_eq!((second.start_s, second.numbers_from.0), (first.start_s + 1, first.numbers_from.0 + NUMBERS_STEP));
    registry.lead(device, LATER).await.unwrap();
    assert_eq!(records(&registry).await.len(), 1);
    assert_eq!(registry.enrol(tenant.id, driver.id, NOW).await.unwrap().0.device.0, device.device.0 + 1);
}

/// Enrols devices and starts sessions for ever, from four tasks, and says what was acknowledged. To be killed.
pub(crate) async fn write_until_killed(registry: Opened) {
    let (tenant, driver) = driver(&registry).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let registry = registry.clone();
        tasks.spawn(async move {
            loop {
                let (device, _) = registry.enrol(tenant, driver, NOW).await.unwrap();
                acknowledge(format_args!("{} {driver} {} 0 0", tenant, device.device));
                for _ in 0..10 {
                    let session = registry.start_session(device, NOW).await.unwrap();
                    let SessionStart { start_s, numbers_from, .. } = session;
                    acknowledge(format_args!("{tenant} {driver} {} {start_s} {numbers_from}", device.device));
                }
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

/// After the writer was killed: no number that it was given is given again.
pub(crate) async fn nothing_acknowledged_is_given_again(registry: Opened, said: &[String]) {
    let mut devices = BTreeSet::new();
    for line in said {
        let words: Vec<u64> = line.split(' ').map(|word| word.parse().unwrap()).collect();
        let [tenant, driver, device, start_s, numbers_from] = words[..] else { panic!("{line}") };
        let device = DeviceKey {
            tenant: TenantId(tenant as u32),
            driver: DriverId(driver as u32),
            device: DeviceNumber(device as u16),
        };
        devices.insert(device);

        let next = registry.start_session(device, NOW).await.unwrap();

        assert!(u64::from(next.start_s) > start_s && next.numbers_from.0 > numbers_from, "{line}: {next:?}");
    }
    let newest = *devices.last().expect("something was acknowledged");
    let (enrolled, _) = registry.enrol(newest.tenant, newest.driver, NOW).await.unwrap();
    assert!(enrolled > newest, "{enrolled:?} after {newest:?}");
}

pub(crate) fn token_keys() -> TokenKeys {
    TokenKeys::new([(TokenKeyId(1), Secret::new([3; 32]))])
}

async fn tenant(registry: &Opened) -> TenantId {
    registry.create_tenant("a tenant", DeliveryPolicy::default(), NOW).await.unwrap().0.id
}

async fn driver(registry: &Opened) -> (TenantId, DriverId) {
    let tenant = tenant(registry).await;
    (tenant, registry.create_driver(tenant, "Ana", "", Vehicle::Car, NOW).await.unwrap().id)
}

async fn records(registry: &Opened) -> Vec<Record> {
    registry.outbox(1000).await.unwrap().into_iter().map(|row| row.record).collect()
}

const NOBODY: TenantId = TenantId(1_000_000);
const NOW: Time = Time(1_700_000_000_000);
const LATER: Time = Time(1_700_000_060_500);
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);
