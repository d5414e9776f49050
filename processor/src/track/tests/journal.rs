//! Ledger and log: the journal stays gapless over drivers, partitions and repetitions.

use super::*;

#[test]
fn a_delivery_without_a_driver_is_live_too() {
    let mut world = World::new();
    let received = delivery(None, 1, vec![status(1, DeliveryState::Received)]);
    world.push(Record::Assign { to: DELIVERY.into(), delivery: Box::new(received) });

    world.push(ledger(DELIVERY, status(2, DeliveryState::Accepted)));
    world.push(ledger(DELIVERY, status(3, DeliveryState::Preparing)));
    world.pass(120);

    let view = world.view();
    assert_eq!(view.view.delivery.state, DeliveryState::Preparing);
    let keyframes = world.deliveries().filter(|u| matches!(u.body, DeliveryBody::Keyframe { .. })).count();
    assert!((3 + 2..=3 + 3).contains(&keyframes), "three entries and two minutes: {keyframes}");
    assert_eq!(journal_told(&world), [1, 2, 3]);
}

#[test]
fn a_ledger_event_is_taken_once_however_often_it_comes() {
    let mut world = World::new();
    world.push(assign(DRIVER, TO_READY));
    let picked_up = ledger(DRIVER, status(6, DeliveryState::PickedUp));

    world.push_all(vec![picked_up.clone(), picked_up.clone()]);
    world.push(picked_up);
    world.push(assign(DRIVER, TO_READY));

    assert_eq!(journal_told(&world), [1, 2, 3, 4, 5, 6]);
    assert_eq!(world.view().view.delivery.state, DeliveryState::PickedUp);
}

#[test]
fn every_journal_entry_comes_with_a_keyframe() {
    let mut world = World::new();
    world.push(assign(DRIVER, TO_READY));
    world.push(ledger(DRIVER, status(6, DeliveryState::PickedUp)));

    for update in world.deliveries() {
        let has_journal = update.events.iter().any(|event| matches!(event, Event::Journal { .. }));
        assert!(!has_journal || matches!(update.body, DeliveryBody::Keyframe { .. }));
    }
}

#[test]
fn a_finished_delivery_is_let_go_and_does_not_come_back() {
    let mut world = World::new();
    world.push(assign(DRIVER, TO_READY));
    world.push(ledger(DRIVER, status(6, DeliveryState::PickedUp)));
    world.push(ledger(DRIVER, status(7, DeliveryState::Delivered)));
    let told = world.deliveries().count();
    assert!(world.view().is_last);

    world.push(assign(DRIVER, TO_READY));
    world.push(ledger(DRIVER, status(7, DeliveryState::Delivered)));
    world.pass(120);

    assert_eq!(world.deliveries().count(), told);
    let DriverBody::Keyframe { view } = &world.drivers().last().unwrap().body else { panic!() };
    assert!(view.deliveries.is_empty());
}

#[test]
fn a_delivery_that_is_opened_again_is_live_again_for_every_reader() {
    let mut world = World::new();
    world.push(assign(DRIVER, TO_READY));
    world.push(ledger(DRIVER, status(6, DeliveryState::PickedUp)));
    world.push(ledger(DRIVER, status(7, DeliveryState::Failed)));
    assert!(world.view().is_last);
    let mut journal = world.view().view.delivery.journal;
    journal.extend([assigned(8, Some(DRIVER), 2), status(9, DeliveryState::PickedUp)]);
    let again = Record::Assign { to: DRIVER.into(), delivery: Box::new(delivery(Some(DRIVER), 2, journal)) };

    world.push(again.clone());
    world.push(again);
    world.push(ledger(DRIVER, status(7, DeliveryState::Failed)));
    world.drive(30.0);

    let view = world.view();
    assert_eq!((view.view.delivery.state, view.is_last), (DeliveryState::PickedUp, false));
    assert_eq!(journal_told(&world), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    world.push(ledger(DRIVER, status(10, DeliveryState::Delivered)));
    assert_eq!((world.view().view.delivery.state, world.view().is_last), (DeliveryState::Delivered, true));
}

#[test]
fn reassigned_between_partitions_the_journal_stays_gapless_and_the_old_driver_is_not_heard_any_more() {
    let (mut first, mut second) = (World::of_partition(0), World::of_partition(1));
    first.push(assign(DRIVER, TO_READY));
    first.drive(0.0);
    // The ledger's records come in order per delivery; each partition may lag behind the other.
    let mut journal = first.view().view.delivery.journal;
    journal.push(assigned(6, Some(OTHER), 2));
    let handed_over = delivery(Some(OTHER), 2, journal);
    second.push(Record::Assign { to: OTHER.into(), delivery: Box::new(handed_over) });
    second.push(Record::Ledger { to: OTHER.into(), delivery: DELIVERY, entry: status(7, DeliveryState::PickedUp) });
    let release = Record::Release { from: DRIVER.into(), delivery: DELIVERY, assignment: AssignmentNumber(1) };
    first.push(release.clone());
    first.drive(30.0);

    for orders in [[&first, &second], [&second, &first]] {
        let mut view: Option<LiveView> = None;
        for update in orders.into_iter().flat_map(World::deliveries) {
            match &mut view {
                None => view = LiveView::begin(update),
                Some(view) => {
                    view.handle_update(update);
                }
            }
        }
        let view = view.unwrap();
        let numbers: Vec<u64> = view.view.delivery.journal.iter().map(|entry| entry.number.0).collect();
        assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(view.view.delivery.driver, Some(OTHER.driver));
        assert!(!view.is_last);
    }
    let told: Vec<u64> = [journal_told(&first), journal_told(&second)].concat();
    assert_eq!(told, [1, 2, 3, 4, 5, 6, 7]);
    assert!(first.deliveries().last().unwrap().is_last);

    // The relay may say all of it again.
    let before = first.deliveries().count();
    first.push(assign(DRIVER, TO_READY));
    first.push(release);
    assert_eq!(first.deliveries().count(), before);
}

#[test]
fn numbers_are_gapless_within_an_epoch_and_the_first_is_a_keyframe() {
    let mut world = World::new();
    world.push(assign(DRIVER, TO_READY));
    for i in 0..40 {
        world.pass(3);
        world.drive(25.0 * f64::from(i));
    }

    let updates: Vec<&DeliveryUpdate> = world.deliveries().collect();

    assert!(matches!(updates[0].body, DeliveryBody::Keyframe { .. }));
    for (i, update) in updates.iter().enumerate() {
        assert_eq!(update.number, i as u64 + 1);
        assert_eq!(update.epoch, updates[0].epoch);
    }
}

#[test]
fn a_delivery_too_large_to_hold_is_refused_and_counted() {
    let mut world = World::new();
    let mut large = delivery(Some(DRIVER), 1, vec![status(1, DeliveryState::Received)]);
    large.stops = vec![stop(StopKind::DropOff, 0.0); 17];

    world.push(Record::Assign { to: DRIVER.into(), delivery: Box::new(large) });

    assert_eq!(world.counts.assignments_refused, 1);
    assert_eq!(world.deliveries().count(), 0);
}

fn journal_told(world: &World) -> Vec<u64> {
    let events = world.events().into_iter();
    let numbers = events.filter_map(|event| {
        let Event::Journal { entry } = event else { return None };
        Some(entry.number.0)
    });
    numbers.collect()
}
