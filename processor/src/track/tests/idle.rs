//! What time alone changes: the wheel visits who is due, and nobody can tell it from visiting everybody; who sleeps is
//! packed, and nobody can tell that either.

use protocol::record::Fence;

use super::*;

#[test]
fn visiting_who_is_due_says_the_very_bytes_that_visiting_everybody_says() {
    for seed in 0..60 {
        let log = life(seed, 160);

        let (due, all) = (fold(&log, false, None), fold(&log, true, None));

        let first = due.0.iter().zip(&all.0).position(|(due, all)| due != all);
        assert!(due.0.len() == all.0.len() && first.is_none(), "seed {seed}: {first:?}");
        assert!(due == all, "seed {seed}");
    }
}

#[test]
fn a_restart_among_sleepers_changes_nothing() {
    for seed in 100..120 {
        let log = life(seed, 120);
        let whole = fold(&log, false, None);
        for cut in [5, 30, 60, 90] {
            assert!(fold(&log, false, Some(cut)) == whole, "seed {seed}, cut at {cut}");
        }
    }
}

#[test]
fn a_driver_who_was_not_heard_of_for_ten_minutes_sleeps_in_300_bytes_and_wakes_as_he_was() {
    let mut world = World::new();
    for i in 0..400 {
        world.drive(f64::from(i) * 40.0);
        world.pass(4);
    }
    assert_eq!(world.partition.dormant_len(), 0);

    world.pass(700);

    assert_eq!((world.partition.trackers_len(), world.partition.dormant_len()), (1, 1));
    let bytes = world.partition.trackers.dormant_bytes();
    assert!(bytes <= 300, "{bytes} B");
    let before = world.view_of_driver();
    world.push(Record::Heard(HeardRecord {
        device: device(DRIVER, 1),
        session_start: 1,
        lowest_held: FixNumber(0),
        edge: EDGE,
        door: Door::Udp,
        received: world.now(),
        phone_state: None,
    }));
    assert_eq!(world.partition.dormant_len(), 0);
    assert!(world.view_of_driver().silent.is_none() && before.silent.is_some());
    assert_eq!(world.view_of_driver().position, before.position);
}

#[test]
fn after_an_outage_who_is_shown_no_more_is_not_visited_at_every_tick() {
    let mut world = World::new();
    world.drive(0.0);
    world.pass(4);

    world.now_ms += 3 * 3_600_000; // no tick came, as when nobody folds
    world.pass(700);

    let Partition { trackers, state, .. } = &mut world.partition;
    assert_eq!(trackers.take_due(&state.clock, 0), []);
}

#[test]
fn an_old_fix_that_comes_again_after_a_sleep_moves_nothing() {
    let mut world = World::new();
    let fixes: Vec<FixRecord> = (0..20)
        .map(|i| {
            world.pass(4);
            let mut fix = world.fix(f64::from(i) * 40.0);
            fix.number = None; // an unnumbered door
            world.push(Record::Fix(fix));
            fix
        })
        .collect();
    world.pass(700);
    let before = world.view_of_driver().position;

    for mut again in fixes {
        again.received = world.now();
        world.push(Record::Fix(again));
    }
    world.pass(60);

    assert_eq!(
        world.view_of_driver().position,
        before.map(|shown| ShownPosition { received: shown.received, ..shown })
    );
    let identities: std::collections::BTreeSet<_> =
        world.breadcrumbs.iter().map(|crumb| (crumb.record.fix.measured, crumb.record.fix.position)).collect();
    assert_eq!(identities.len(), 20);
}

#[test]
fn who_was_not_heard_of_for_as_long_as_the_records_are_kept_is_forgotten_unless_the_registry_spoke_of_him() {
    let mut world = World::new();
    world.drive(0.0);
    let mut others = world.fix(0.0);
    others.device = device(OTHER, 1);
    world.push_all(vec![Record::Lead { device: device(OTHER, 1), at: world.now() }, Record::Fix(others)]);
    world.pass(1);
    assert_eq!(world.partition.trackers_len(), 2);

    world.now_ms += 73 * 3_600_000;
    world.pass(1);
    let updates = world.updates.len();
    world.pass(1_300);

    assert_eq!(world.partition.trackers_len(), 1);
    for update in &world.updates[updates..] {
        let Update::Driver(update) = update else { continue };
        let is_keyframe = matches!(update.body, DriverBody::Keyframe { .. });
        assert!(update.key == OTHER && !is_keyframe, "nobody looks at them: {update:?}");
    }
}

#[test]
fn a_driver_whose_edge_has_a_clock_far_behind_is_neither_forgotten_nor_put_to_sleep_between_his_fixes() {
    for behind_ms in [1_200_000, 96 * 3_600_000] {
        let mut world = World::new();
        let mut again = None;
        for i in 0..30 {
            world.now_ms += 4_000;
            let mut fix = world.fix(f64::from(i) * 40.0);
            fix.number = None;
            fix.received = Time(world.now_ms - behind_ms);
            fix.fix.measured = MeasuredTime::from_time(fix.received);
            world.push(Record::Fix(fix));
            world.push(Record::Tick { owner: OwnerId(1), at: world.now() });
            again = again.or(Some(fix));
        }

        let recorded = world.breadcrumbs.len();
        world.push(Record::Fix(again.unwrap()));

        assert_eq!(world.partition.trackers_len(), 1);
        assert_eq!(world.breadcrumbs.len(), recorded, "behind {behind_ms} ms: it was seen before");
        let shown = world.shown();
        assert!(shown.windows(2).all(|pair| pair[0].0 <= pair[1].0));
    }
}

/// All that can happen in a partition, drawn from a seed, with time that stands, goes, jumps and is set back.
#[expect(clippy::too_many_lines, reason = "a list of what can happen, one arm each")]
pub(super) fn life(seed: u64, entries: usize) -> Vec<RecordBatch> {
    let mut world = World::new();
    let mut state = seed;
    let mut draw = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut journal = 1;
    let mut offset_ms = 0;
    while world.log.len() < entries {
        let driver = DriverKey { tenant: TENANT, driver: DriverId(draw(5) as u32) };
        let edge = EdgeId(1 + draw(2) as u32);
        let tick = |world: &World| Record::Tick { owner: OwnerId(1), at: world.now() };
        match draw(25) {
            24 => {
                let step_ms = [2_000, 7_200_000, 345_600_000][draw(3) as usize] * if draw(2) == 0 { 1 } else { -1 };
                let mut in_flight = world.fix(500.0);
                (in_flight.device, in_flight.edge) = (device(driver, 1), edge);
                offset_ms += step_ms;
                world.now_ms += step_ms;
                world.push(Record::WallOffset { owner: OwnerId(1), boot: 1, offset_ms });
                if draw(2) == 0 {
                    world.push_all(vec![
                        Record::Fix(in_flight),
                        Record::Mark { edge, received_before: in_flight.received },
                    ]);
                }
            }
            0 => {
                let mut to = delivery(Some(driver), 1 + draw(3) as u32, vec![status(1, DeliveryState::Ready)]);
                to.key.delivery = DeliveryId(u64::from(driver.driver.0));
                to.policy.stale_after_s = 10 + draw(60) as u16;
                world.push(Record::Assign { to: driver.into(), delivery: Box::new(to) });
            }
            1 => {
                let key = DeliveryKey { tenant: TENANT, delivery: DeliveryId(u64::from(driver.driver.0)) };
                let to = if draw(2) == 0 { DeliveryState::PickedUp } else { DeliveryState::Delivered };
                journal += 1;
                world.push(Record::Ledger { to: driver.into(), delivery: key, entry: status(journal, to) });
            }
            2 => {
                let fence = Fence {
                    name: "yard".to_string(),
                    center: east(500.0),
                    radius_m: 900,
                    ring: Vec::new(),
                    dwell_s: 60,
                };
                world.push(Record::Fences { driver, fences: vec![fence] });
            }
            3 => {
                world.now_ms -= draw(2) as i64 * 100_000;
                world.push(Record::Claim { owner: OwnerId(1), at: world.now(), incarnation: 1 });
            }
            4 => {
                world.now_ms += [70_000, 700_000, 7_300_000, 73 * 3_600_000][draw(4) as usize];
                world.push(tick(&world));
            }
            5..=8 => {
                for _ in 0..draw(40) {
                    world.now_ms += 1_000;
                    world.push(tick(&world));
                }
            }
            9..=13 => {
                let ahead_ms = draw(3) as i64 * 4_000 - 4_000;
                for _ in 0..draw(60) {
                    world.now_ms += 1_000;
                    let mark = |edge| Record::Mark { edge, received_before: Time(world.now_ms + ahead_ms) };
                    let mut records = vec![mark(edge)];
                    if draw(3) > 0 {
                        records.push(mark(EdgeId(3 - edge.0)));
                    }
                    records.push(tick(&world));
                    world.push_all(records);
                }
            }
            14 => world.push(Record::Heard(HeardRecord {
                device: device(driver, 1),
                session_start: 1,
                lowest_held: FixNumber(0),
                edge,
                door: Door::Udp,
                received: world.now(),
                phone_state: (draw(2) == 0).then_some(PhoneState(PhoneState::STANDING)),
            })),
            _ => {
                let fixes = (0..=draw(3)).map(|_| {
                    world.now_ms += draw(3_000) as i64;
                    let mut fix = world.fix(draw(1_500) as f64);
                    (fix.device, fix.edge) = (device(driver, 1 + draw(2) as u16), edge);
                    fix.number = fix.number.filter(|_| draw(4) > 0);
                    fix.fix.measured = MeasuredTime(fix.fix.measured.0 - draw(30) as i64);
                    Record::Fix(fix)
                });
                let fixes = fixes.collect();
                world.push_all(fixes);
            }
        }
    }
    world.log
}

/// What a log says: updates by entry, breadcrumbs, and the bytes of the state at the end.
fn fold(log: &[RecordBatch], visits_all: bool, cut: Option<usize>) -> (Vec<Vec<Update>>, Vec<Breadcrumb>, Vec<u8>) {
    let mut partition = Partition::new(PartitionId(0), Offset(0), Generation::default());
    partition.visits_all = visits_all;
    let (mut updates, mut crumbs) = (Vec::new(), Vec::new());
    for (i, batch) in log.iter().enumerate() {
        if cut == Some(i) {
            let snapshot = partition.snapshot().unwrap();
            partition = Partition::restore(&snapshot, Generation::default(), &TestBodies::default()).unwrap();
        }
        let mut effects = Effects::default();
        partition.handle_entry(Offset(i as u64), batch, &TestBodies::default(), &mut effects);
        updates.push(effects.updates);
        crumbs.extend(effects.breadcrumbs);
    }
    (updates, crumbs, partition.snapshot().unwrap())
}
