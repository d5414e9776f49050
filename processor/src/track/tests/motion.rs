//! Fixes, clocks, silence, stops.

use super::*;

#[test]
fn a_fix_is_shown_at_once_and_recorded_once() {
    let mut world = World::new();

    let fix = world.fix(0.0);
    world.push(Record::Fix(fix));

    assert_eq!(world.shown(), [(world.now(), east(0.0))]);
    assert_eq!(world.breadcrumbs.len(), 1);
    assert_eq!(world.breadcrumbs[0].record, fix);
}

#[test]
fn a_fix_that_comes_again_by_any_door_counts_once() {
    let mut world = World::new();
    let fix = world.fix(0.0);

    world.push_all(vec![Record::Fix(fix); 3]);
    world.push(Record::Fix(FixRecord { number: None, door: Door::Json, ..fix }));

    assert_eq!(world.breadcrumbs.len(), 1);
    assert_eq!(world.drivers().count(), 1);
    assert_eq!(world.counts.fixes_repeated, 1);
}

#[test]
fn late_fixes_are_recorded_and_never_move_the_dot_back() {
    let mut world = World::new();
    let late = world.fix(0.0);
    for i in 1..10 {
        world.pass(4);
        world.drive(40.0 * f64::from(i));
    }
    let shown = world.shown().last().copied();

    world.push(Record::Fix(FixRecord { received: world.now(), ..late }));

    assert_eq!(world.shown().last().copied(), shown);
    assert_eq!(world.breadcrumbs.len(), 10);
    assert!(world.breadcrumbs.iter().all(|crumb| crumb.verdict.is_accepted()));
}

#[test]
fn a_wild_fix_is_recorded_as_such_and_not_shown() {
    let mut world = World::new();
    world.drive(0.0);
    world.pass(4);

    world.drive(20_000.0);

    assert_eq!(world.shown().last().unwrap().1, east(0.0));
    assert_eq!(world.breadcrumbs[1].verdict, Verdict::Rejected(RejectReason::Jump));
}

#[test]
fn what_the_edge_rejected_is_recorded_with_its_reason_and_has_no_effect() {
    let mut world = World::new();
    let mut fix = world.fix(0.0);
    fix.verdict = Verdict::Rejected(RejectReason::Inaccurate);

    world.push(Record::Fix(fix));

    assert!(world.shown().is_empty());
    assert_eq!(world.breadcrumbs[0].verdict, fix.verdict);
}

#[test]
fn a_phone_clock_that_jumps_an_hour_ahead_and_back_neither_freezes_the_dot_nor_moves_it_back() {
    let mut world = World::new();
    for i in 0..60 {
        world.pass(4);
        let mut fix = world.fix(30.0 * f64::from(i));
        if (20..40).contains(&i) {
            fix.fix.measured = MeasuredTime(fix.fix.measured.0 + 36_000);
            fix.verdict = Verdict::Rejected(RejectReason::FromFuture);
        }
        world.push(Record::Fix(fix));
    }

    let shown = world.shown();
    assert!(shown.windows(2).all(|pair| pair[0].0 <= pair[1].0), "{shown:?}");
    assert!(shown.windows(2).all(|pair| pair[1].0.millis_since(pair[0].0) <= 12_000), "{shown:?}");
    assert_eq!(shown.last().unwrap().1, east(30.0 * 59.0));
}

#[test]
fn a_phone_whose_clock_is_an_hour_behind_is_shown_live_after_a_few_fixes() {
    let mut world = World::new();
    for i in 0..10 {
        world.pass(4);
        let mut fix = world.fix(30.0 * f64::from(i));
        fix.fix.measured = MeasuredTime(fix.fix.measured.0 - 36_000);
        world.push(Record::Fix(fix));
    }

    let (event_time, position) = *world.shown().last().unwrap();
    assert!(world.now().millis_since(event_time) < 1_000);
    assert_eq!(position, east(270.0));
}

#[test]
fn only_the_device_that_leads_is_shown() {
    let mut world = World::new();
    world.drive(0.0);
    world.pass(4);
    let mut other = world.fix(50.0);
    other.device.device = DeviceNumber(2);
    world.push(Record::Fix(other));
    assert_eq!(world.shown().last().unwrap().1, east(0.0));

    world.push(Record::Lead { device: device(DRIVER, 2), at: world.now() });
    world.pass(4);
    let mut other = world.fix(60.0);
    other.device.device = DeviceNumber(2);
    world.push(Record::Fix(other));
    world.drive(10.0);

    assert_eq!(world.shown().last().unwrap().1, east(60.0));
    assert_eq!(world.breadcrumbs.len(), 4);
}

#[test]
fn a_lead_that_comes_again_does_not_undo_a_later_one() {
    let mut world = World::new();
    let (first, second) = (device(DRIVER, 1), device(DRIVER, 2));
    let (early, late) = (world.now(), Time(world.now_ms + 1));
    let leads = [(first, early), (second, late), (first, early), (second, late)];

    for (device, at) in leads {
        world.push(Record::Lead { device, at });
        let DriverBody::Keyframe { view } = &world.drivers().last().unwrap().body else { panic!() };
        assert_eq!(view.lead, Some(if world.drivers().count() == 1 { first } else { second }));
    }
}

#[test]
fn a_driver_whose_edge_goes_on_marking_is_silent_himself_and_heard_again() {
    let mut world = World::new();
    world.push(assign(DRIVER, TO_READY));
    world.pass(5);
    world.drive(0.0);

    world.pass(29);
    assert_eq!(world.view().view.silent, None);
    world.pass(3);
    assert_eq!(world.view().view.silent, Some(SilentCause::Driver));
    world.drive(10.0);

    assert_eq!(world.view().view.silent, None);
    let events = world.events();
    assert!(events.contains(&Event::Silent { cause: SilentCause::Driver }) && events.contains(&Event::HeardAgain));
}

#[test]
fn without_marks_it_is_our_back_end_that_is_called_silent() {
    let mut world = World::new();
    world.push(assign(DRIVER, TO_READY));
    world.pass(5);
    world.drive(0.0);

    for _ in 0..45 {
        world.now_ms += 1000;
        world.push(Record::Tick { owner: OwnerId(1), at: world.now() });
    }

    assert_eq!(world.view().view.silent, Some(SilentCause::BackEnd));
}

#[test]
fn a_phone_that_says_it_stands_stays_fresh_and_keeps_its_place() {
    let mut world = World::new();
    world.push(assign(DRIVER, TO_READY));
    world.drive(0.0);
    for _ in 0..30 {
        world.pass(10);
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

    let view = world.view().view;
    let shown = view.position.unwrap();
    assert!(shown.standing && shown.seen() == world.now() && shown.position == east(0.0));
    assert_eq!(view.silent, None);
    assert!(world.events().iter().any(|event| matches!(event, Event::Stationary { .. })));
}

#[test]
fn a_whole_delivery_is_seen_from_the_road() {
    let mut world = World::new();
    world.push(assign(DRIVER, TO_READY));
    let mut legs = Vec::new();
    let mut at_m = 0.0;
    let mut is_picked_up = false;
    while at_m < 3_000.0 {
        world.pass(4);
        world.drive(at_m);
        let proposed = |p: Proposal| world.events().contains(&Event::Proposed { proposal: p });
        if proposed(Proposal::PickedUp { stop: 0 }) && !is_picked_up {
            is_picked_up = true;
            world.push(ledger(DRIVER, status(6, DeliveryState::PickedUp)));
        }
        let progress = world.view().view.progress.unwrap();
        if legs.last() != Some(&progress.leg) {
            legs.push(progress.leg);
        }
        at_m += 40.0;
    }

    assert_eq!(legs, [Leg::ToPickup, Leg::AtPickup, Leg::ToDropOff, Leg::Arriving, Leg::AtDropOff][..]);
    let events = world.events();
    let told = |event: &Event| events.iter().filter(|e| *e == event).count();
    let milestone = |milestone| Event::Proposed { proposal: Proposal::Milestone { milestone, stop: 1 } };
    assert_eq!(told(&Event::Proposed { proposal: Proposal::PickedUp { stop: 0 } }), 1);
    assert_eq!(told(&milestone(Milestone::FiveMinutesAway)), 1);
    assert_eq!(told(&milestone(Milestone::Arriving)), 1);
    assert_eq!(told(&Event::StopEntered { stop: 1 }), 1);
    assert_eq!(world.view().view.eta.unwrap().basis, EtaBasis::StraightLine);
}

#[test]
fn driving_away_from_the_stop_is_told_once() {
    let mut world = World::new();
    world.push(assign(DRIVER, TO_READY));

    for i in 0..30 {
        world.pass(4);
        world.drive(-40.0 * f64::from(i));
    }

    assert_eq!(world.events().iter().filter(|event| **event == Event::MovingAway).count(), 1);
}

#[test]
fn every_live_delivery_and_driver_gives_a_keyframe_at_least_every_minute() {
    let mut world = World::new();
    world.push(assign(DRIVER, TO_READY));
    for i in 0..90 {
        world.pass(4);
        world.drive(f64::from(i));
    }

    let deliveries: Vec<Time> = world
        .deliveries()
        .filter(|update| matches!(update.body, DeliveryBody::Keyframe { .. }))
        .map(|update| update.at)
        .collect();
    let drivers: Vec<Time> =
        world.drivers().filter(|u| matches!(u.body, DriverBody::Keyframe { .. })).map(|u| u.at).collect();

    for times in [deliveries, drivers] {
        assert!(times.len() >= 6 && times.len() <= 9, "{times:?}");
        assert!(times.windows(2).all(|pair| pair[1].millis_since(pair[0]) <= 60_000), "{times:?}");
    }
}

#[test]
fn a_batch_of_many_fixes_of_one_driver_is_told_once() {
    let mut world = World::new();
    world.push(assign(DRIVER, TO_READY));
    let told = world.updates.len();
    let mut fixes = Vec::new();
    for i in 0..50 {
        world.now_ms += 1000;
        fixes.push(Record::Fix(world.fix(10.0 * f64::from(i))));
    }

    world.push_all(fixes);

    assert_eq!(world.updates.len(), told + 2);
    assert_eq!(world.breadcrumbs.len(), 50);
}
