//! Arrival times and stops where no fix comes: a driver who is off, a phone that dies, a driver who only stands.

use protocol::update::Eta;

use super::*;

#[test]
fn no_arrival_time_is_made_from_where_a_driver_was_nine_hours_ago() {
    let mut world = World::new();
    world.drive(0.0);
    world.pass(9 * 3_600);

    world.push(assign(DRIVER, TO_READY));
    world.pass(60);
    let before = (world.view().view.eta, world.view().view.progress);
    world.drive(10.0);

    assert_eq!(before, (None, None));
    assert!(world.view().view.eta.is_some(), "it begins with the next fix");
}

#[test]
fn an_arrival_time_is_taken_back_when_the_position_it_was_made_from_is_too_old_to_be_shown() {
    let mut world = World::new();
    world.push(assign(DRIVER, TO_READY));
    for step in 0..5 {
        world.pass(4);
        world.drive(40.0 * f64::from(step));
    }

    world.pass(118);
    assert!(world.view().view.eta.is_some());
    world.pass(3);
    let (taken_back, updates) = (world.view().view.eta, world.updates.len());
    world.pass(10);

    assert_eq!(taken_back, None);
    assert!(world.events().contains(&Event::EtaChanged));
    assert_eq!(world.updates.len(), updates, "it is said once");
    world.drive(200.0);
    assert!(world.view().view.eta.is_some_and(|eta| eta.arrival > world.now()));
}

#[test]
fn a_driver_who_stands_and_says_so_keeps_his_arrival_time() {
    let mut world = World::new();
    world.push(assign(DRIVER, TO_READY));
    world.drive(0.0);
    let mut seen: Vec<Option<Eta>> = Vec::new();

    for _ in 0..40 {
        world.pass(10);
        stand(&mut world);
        seen.push(world.view().view.eta);
    }

    assert!(seen.iter().all(|eta| eta.is_some()), "{seen:?}");
}

#[test]
fn an_arrival_time_that_was_taken_back_comes_again_when_the_phone_says_that_it_stands() {
    let mut world = World::new();
    world.push(assign(DRIVER, TO_READY));
    world.drive(0.0);
    world.pass(300);
    assert_eq!(world.view().view.eta, None);

    stand(&mut world);

    assert!(world.view().view.eta.is_some());
}

#[test]
fn who_stands_at_the_pickup_when_he_is_assigned_and_then_leaves_has_picked_up() {
    let mut world = World::new();
    world.drive(490.0);
    for _ in 0..18 {
        world.pass(10);
        stand(&mut world);
    }

    world.push(assign(DRIVER, TO_READY));
    assert_eq!(world.view().view.progress.map(|progress| progress.leg), Some(Leg::AtPickup));
    for east_m in [495.0, 620.0, 700.0, 780.0] {
        world.pass(4);
        world.drive(east_m);
    }

    let events = world.events();
    assert!(events.contains(&Event::Proposed { proposal: Proposal::PickedUp { stop: 0 } }), "{events:?}");
    assert_eq!(events.iter().filter(|event| **event == Event::StopEntered { stop: 0 }).count(), 1);
}

#[test]
fn a_stay_that_only_pings_tell_of_is_a_stay() {
    let mut world = World::new();
    world.push(assign(DRIVER, TO_READY));
    for east_m in [400.0, 490.0] {
        world.pass(4);
        world.drive(east_m);
    }
    for _ in 0..18 {
        world.pass(10);
        stand(&mut world);
    }

    for east_m in [620.0, 700.0] {
        world.pass(4);
        world.drive(east_m);
    }

    assert!(world.events().contains(&Event::Proposed { proposal: Proposal::PickedUp { stop: 0 } }));
}

#[test]
fn whoever_was_at_the_pickup_hours_before_it_was_assigned_has_not_picked_it_up() {
    let mut world = World::new();
    world.drive(490.0);
    world.pass(3_600);

    world.push(assign(DRIVER, TO_READY));
    for east_m in [620.0, 700.0, 780.0] {
        world.pass(4);
        world.drive(east_m);
    }

    let events = world.events();
    assert!(
        !events.iter().any(|event| matches!(event, Event::StopEntered { .. } | Event::Proposed { .. })),
        "{events:?}"
    );
}

/// The phone says that it is where it was.
fn stand(world: &mut World) {
    let heard = HeardRecord {
        device: device(DRIVER, 1),
        session_start: 1,
        lowest_held: FixNumber(0),
        edge: EDGE,
        door: Door::Udp,
        received: world.now(),
        phone_state: Some(PhoneState(PhoneState::STANDING)),
    };
    world.push(Record::Heard(heard));
}
