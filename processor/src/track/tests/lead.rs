//! Which of a driver's devices says where he is.

use super::*;

#[test]
fn a_replaced_phone_leads_once_the_first_was_not_heard_for_long() {
    let mut world = World::new();
    world.drive(0.0);
    world.pass(60);
    drive_by(&mut world, 2, 100.0);
    assert_eq!(shown(&world), east(0.0), "the first is only briefly away");

    world.pass(300);
    drive_by(&mut world, 2, 200.0);
    let after = shown(&world);
    world.pass(4);
    world.drive(10.0);

    assert_eq!(after, east(200.0));
    assert_eq!(world.view_of_driver().lead, Some(device(DRIVER, 2)));
    assert_eq!(shown(&world), east(200.0), "who came back does not take it away");
}

#[test]
fn a_lead_that_the_registry_said_does_not_pass_by_silence() {
    let mut world = World::new();
    world.push(Record::Lead { device: device(DRIVER, 1), at: world.now() });
    world.drive(0.0);

    world.pass(3_600);
    drive_by(&mut world, 2, 200.0);

    assert_eq!(shown(&world), east(0.0));
}

#[test]
fn once_the_leading_device_is_revoked_the_next_that_is_heard_leads() {
    for is_said in [true, false] {
        let mut world = World::new();
        if is_said {
            world.push(Record::Lead { device: device(DRIVER, 1), at: world.now() });
        }
        world.drive(0.0);
        world.pass(4);

        world.push(Record::LeadEnded { device: device(DRIVER, 3), at: world.now() });
        assert_eq!(world.view_of_driver().lead, Some(device(DRIVER, 1)), "another was revoked");
        world.push(Record::LeadEnded { device: device(DRIVER, 1), at: world.now() });
        assert_eq!(world.view_of_driver().lead, None);
        drive_by(&mut world, 2, 50.0);

        assert_eq!((shown(&world), world.view_of_driver().lead), (east(50.0), Some(device(DRIVER, 2))));
        assert_eq!(world.breadcrumbs.len(), 2);
    }
}

#[test]
fn of_a_driver_whom_nobody_knows_a_revoked_device_says_nothing() {
    let mut world = World::new();

    world.push(Record::LeadEnded { device: device(DRIVER, 1), at: world.now() });

    assert!(world.updates.is_empty() && world.partition.trackers_len() == 0);
}

fn drive_by(world: &mut World, number: u16, east_m: f64) {
    let mut fix = world.fix(east_m);
    fix.device = device(DRIVER, number);
    world.push(Record::Fix(fix));
}

fn shown(world: &World) -> Position {
    world.view_of_driver().position.unwrap().position
}
