//! The same records make the same bytes: after a restore, after a crash at any place, on any input.

use protocol::update::LiveDriver;

use super::*;
use crate::track::undo::Changes;

#[test]
fn what_a_new_owner_says_of_a_driver_first_is_his_whole_view_so_no_reader_drops_it() {
    let mut world = World::of_partition(0);
    for step in 0..3 {
        world.drive(30.0 * f64::from(step));
        world.pass(4);
    }
    world.push(Record::Claim { owner: OwnerId(2), at: world.now(), incarnation: 1 });
    world.now_ms += 4_000;

    world.drive(120.0);

    let mut live: Option<LiveDriver> = None;
    for update in world.drivers() {
        match &mut live {
            None => live = LiveDriver::begin(update),
            Some(live) => assert_ne!(live.handle_update(update), Taken::Dropped, "{update:?}"),
        }
    }
    let shown = live.expect("the driver was told of").view.position.expect("he was seen");
    assert_eq!(shown.event_time, world.now());
}

#[test]
fn a_restored_fold_goes_on_to_the_very_bytes_of_one_that_never_stopped() {
    let log = day(11, 400);
    let whole = fold(&log, &[]);

    for cut in [1, 7, 100, 250, 399] {
        assert!(fold(&log, &[cut]) == whole, "cut at {cut}");
    }
    assert!(fold(&log, &[3, 50, 51, 52, 300]) == whole);
}

#[test]
fn a_takeover_by_the_same_version_repeats_the_same_numbers() {
    let log = day(12, 200);
    let mut first = Partition::new(PartitionId(0), Offset(0), Generation::default());
    feed(&mut first, &log, 0..100);
    let snapshot = first.snapshot().unwrap();
    let told = feed(&mut first, &log, 100..200);

    let mut second = Partition::restore(&snapshot, later(), &TestBodies::default()).unwrap();

    assert_eq!(second.next(), Offset(100));
    assert!(feed(&mut second, &log, 100..200) == told);
}

#[test]
fn a_takeover_by_another_version_begins_new_epochs_with_keyframes() {
    let log = day(13, 200);
    let mut first = Partition::new(PartitionId(0), Offset(0), Generation::default());
    feed(&mut first, &log, 0..150);
    let mut snapshot = first.snapshot().unwrap();
    snapshot[4..8].copy_from_slice(&(FOLD_VERSION + 1).to_le_bytes());

    let mut second = Partition::restore(&snapshot, later(), &TestBodies::default()).unwrap();
    let (updates, _) = feed(&mut second, &log, 150..200);

    let mut begun: BTreeMap<(DeliveryKey, Epoch), u64> = BTreeMap::new();
    for update in updates {
        let Update::Delivery(update) = update else { continue };
        assert_eq!(update.epoch.generation, later());
        let number = begun.entry((update.key, update.epoch)).or_default();
        *number += 1;
        assert_eq!(update.number, *number);
        assert!(matches!(update.body, DeliveryBody::Keyframe { .. }) || *number > 1);
    }
    assert!(!begun.is_empty());
}

#[test]
fn entries_below_the_next_are_passed_by() {
    let log = day(14, 50);
    let mut partition = Partition::new(PartitionId(0), Offset(0), Generation::default());
    feed(&mut partition, &log, 0..50);
    let before = partition.snapshot().unwrap();

    let (updates, breadcrumbs) = feed(&mut partition, &log, 0..50);

    assert!(updates.is_empty() && breadcrumbs.is_empty());
    assert!(partition.snapshot().unwrap() == before);
}

const BY_FIX: Changes = Changes::ByFix(DeviceNumber(1));

#[test]
fn a_fix_that_breaks_the_fold_is_forgotten_whole() {
    for fixes in [1, 2, 255, 256, 300] {
        let mut world = World::new();
        for i in 0..fixes {
            world.drive(f64::from(i) * 10.0);
            world.pass(4);
        }
        let mut again = world.log.iter().rev().flat_map(|batch| &batch.records);
        let again = again.find(|record| matches!(record, Record::Fix(_))).unwrap().clone();
        let breaking = Record::Fix(world.fix(1e5));
        for record in [again, breaking] {
            let before = world.devices_of_driver();
            let offset = Offset(world.log.len() as u64);
            world.partition.breaks_at = Some(vec![(offset, 0, DRIVER.into(), BY_FIX)]);

            world.push(record);

            assert_eq!(world.counts.folds_failed, 1);
            assert!(world.devices_of_driver() == before, "{fixes} fixes");
        }
    }
}

#[test]
fn a_record_that_breaks_the_fold_is_set_aside_and_its_tracker_goes_on_as_before() {
    let mut world = World::new();
    world.push(assign(DRIVER, TO_READY));
    world.drive(0.0);
    world.pass(1);
    let offset = Offset(world.log.len() as u64);
    world.partition.breaks_at = Some(vec![(offset, 1, DRIVER.into(), BY_FIX)]);
    let mut others = world.fix(0.0);
    others.device = device(OTHER, 1);

    let breaking = world.fix(10.0);
    world.push_all(vec![Record::Fix(others), Record::Fix(breaking)]);

    assert_eq!(world.counts.folds_failed, 1);
    let failed =
        |event: &&Event| matches!(event, Event::FoldFailed { source } if source.offset == offset && source.index == 1);
    assert_eq!(world.events().iter().filter(failed).count(), 1);
    let view = world.view();
    assert_eq!(view.view.position.unwrap().position, east(0.0));
    assert_eq!(view.view.delivery.journal.len(), 5);
    assert!(world.drivers().any(|update| update.key == OTHER));

    world.pass(4);
    world.drive(20.0);
    assert_eq!(world.view().view.position.unwrap().position, east(20.0));
    assert_eq!(world.events().iter().filter(failed).count(), 1);
}

#[test]
fn records_that_break_the_fold_take_nothing_with_them_and_break_it_alike_after_any_restart() {
    for seed in 20..26 {
        let log = day(seed, 150);
        let breaks: Vec<_> = fixes_of(&log).into_iter().skip(3).step_by(7).collect();
        let mut without = log.clone();
        for (offset, index, ..) in breaks.iter().rev() {
            without[offset.0 as usize].records.remove(*index as usize);
        }

        let broken = fold_broken(&log, &[], Some(&breaks));

        assert!(!breaks.is_empty());
        assert!(broken == fold_broken(&log, &[1, 40, 41, 120], Some(&breaks)), "seed {seed}");
        let is_broken = |crumb: &&Breadcrumb| {
            breaks.iter().any(|(offset, index, ..)| (crumb.source.offset, crumb.source.index) == (*offset, *index))
        };
        let recorded = |crumb: &Breadcrumb| (crumb.record, crumb.verdict);
        let others: Vec<_> = broken.1.iter().filter(|crumb| !is_broken(crumb)).map(recorded).collect();
        assert_eq!(others, fold(&without, &[]).1.iter().map(recorded).collect::<Vec<_>>(), "seed {seed}");
        assert_eq!(broken.1.iter().filter(is_broken).count(), breaks.len(), "seed {seed}: each is recorded");
    }
}

#[test]
fn an_update_that_cannot_be_said_is_left_out_and_the_failure_is_said_instead() {
    let mut world = World::new();
    world.push(assign(DRIVER, TO_READY));
    let (tick, offset) = (Record::Tick { owner: OwnerId(1), at: world.now() }, Offset(world.log.len() as u64));
    let fix = world.fix(0.0);
    world.partition.breaks_at =
        Some(vec![(offset, 0, DRIVER.into(), BY_FIX), (offset, 0, DRIVER.into(), Changes::Numbering)]);

    world.push_all(vec![Record::Fix(fix), tick]);

    assert_eq!(world.counts.folds_failed, 3, "the fix, what was new, and the failure itself");
    world.pass(1);
    world.drive(20.0);
    assert_eq!(world.view().view.position.unwrap().position, east(20.0));
}

#[test]
fn state_that_breaks_every_step_does_not_freeze_the_dot_and_loses_no_fix() {
    let trip = roads::trip(roads::town(), 3);
    let mut world = World::on(roads::town());
    world.partition.breaks_matchers = true;
    let mut shown = Vec::new();

    for position in &trip.fixes[..10] {
        world.now_ms += 4_000;
        world.drive_at(*position);
        shown.push(world.view_of_driver().position.unwrap().event_time == world.now());
    }
    world.partition.breaks_matchers = false;
    world.pass(60);

    assert_eq!(world.counts.folds_failed, 0, "in the last entry");
    assert!(shown.chunks(2).all(|pair| pair == [true, false]), "{shown:?}");
    assert_eq!(world.breadcrumbs.len(), 10);
    let numbers: std::collections::BTreeSet<_> = world.breadcrumbs.iter().map(|crumb| crumb.record.number).collect();
    assert_eq!(numbers.len(), 10, "each once");
}

/// All fixes of a log, with their places and trackers.
fn fixes_of(log: &[RecordBatch]) -> Vec<(Offset, u32, TrackerKey, Changes)> {
    let mut fixes = Vec::new();
    for (offset, batch) in log.iter().enumerate() {
        for (index, record) in batch.records.iter().enumerate() {
            if let (Record::Fix(fix), Some(key)) = (record, record.key()) {
                fixes.push((Offset(offset as u64), index as u32, key, Changes::ByFix(fix.device.device)));
            }
        }
    }
    fixes
}

#[test]
fn a_snapshot_that_is_damaged_or_of_another_format_is_refused() {
    let mut world = World::new();
    world.push(assign(DRIVER, TO_READY));
    world.drive(0.0);
    let snapshot = world.partition.snapshot().unwrap();
    let restore = |bytes: &[u8]| Partition::restore(bytes, later(), &TestBodies::default()).map(|_| ());

    for length in 0..snapshot.len() {
        assert!(restore(&snapshot[..length]).is_err(), "{length}");
    }
    assert_eq!(restore(b"XX\0\0\0\0\0\0"), Err(SnapshotError::Magic));
    let mut other = snapshot.clone();
    other[2] = 0xee;
    assert!(matches!(restore(&other), Err(SnapshotError::Format { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_crashes_the_effects_are_those_of_one_run(
        seed in any::<u64>(),
        cuts in prop::collection::btree_set(0_usize..300, 0..8),
    ) {
        let log = day(seed, 300);
        let cuts: Vec<usize> = cuts.into_iter().collect();
        prop_assert!(fold(&log, &cuts) == fold(&log, &[]));
    }

    #[test]
    fn no_fix_breaks_the_fold_and_the_dot_never_goes_back(
        fixes in prop::collection::vec(any_fix(), 0..200),
    ) {
        let mut world = World::new();
        let count = fixes.len();
        let mut identities = std::collections::BTreeSet::new();
        for fix in fixes {
            identities.insert((fix.fix.measured, fix.fix.position));
            world.push(Record::Fix(fix));
            world.push(Record::Tick { owner: OwnerId(1), at: fix.received });
        }

        prop_assert_eq!(world.counts.folds_failed, 0);
        let shown = world.shown();
        prop_assert!(shown.windows(2).all(|pair| pair[0].0 <= pair[1].0));
        prop_assert!(world.breadcrumbs.len() <= count);
        let recorded: std::collections::BTreeSet<_> =
            world.breadcrumbs.iter().map(|crumb| (crumb.record.fix.measured, crumb.record.fix.position)).collect();
        prop_assert_eq!(recorded, identities);
    }
}

fn any_fix() -> impl Strategy<Value = FixRecord> {
    let wild = prop_oneof![Just(i64::MIN), Just(i64::MAX), Just(0), any::<i64>()];
    let near = -100_000_i64..100_000;
    let time = || prop_oneof![8 => near.clone().prop_map(|ms| BEGIN_S * 1000 + ms), 1 => wild.clone()];
    let position = prop_oneof![
        8 => (0_i32..2_000).prop_map(|m| east(f64::from(m))),
        1 => (any::<i32>(), any::<i32>()).prop_map(|(lat_e7, lon_e7)| Position { lat_e7, lon_e7 }),
    ];
    let numbers = (prop::option::of(any::<u64>()), any::<u64>());
    (time(), time(), position, numbers, any::<Option<u8>>(), any::<Option<u8>>()).prop_map(
        |(measured, received, position, (number, lowest), accuracy_m, state)| FixRecord {
            device: device(DRIVER, 1),
            session_start: 0,
            number: number.map(FixNumber),
            lowest_held: FixNumber(lowest),
            edge: EDGE,
            door: Door::Udp,
            received: Time(received),
            fix: Fix {
                accuracy_m,
                phone_state: state.map(PhoneState),
                ..Fix::at(MeasuredTime(measured.div_euclid(100)), position)
            },
            verdict: Verdict::Accepted,
        },
    )
}

fn later() -> Generation {
    Generation { incarnation: 1, claim: Offset(1_000_000) }
}

/// Folds a log, crashing and restoring before each of the cuts. The bytes told, and those of the state at the end.
fn fold(log: &[RecordBatch], cuts: &[usize]) -> (Vec<u8>, Vec<Breadcrumb>, Vec<u8>) {
    fold_broken(log, cuts, None)
}

/// The same, with steps that panic.
fn fold_broken(
    log: &[RecordBatch],
    cuts: &[usize],
    breaks: Option<&Vec<(Offset, u32, TrackerKey, Changes)>>,
) -> (Vec<u8>, Vec<Breadcrumb>, Vec<u8>) {
    let mut partition = Partition::new(PartitionId(0), Offset(0), Generation::default());
    partition.breaks_at = breaks.cloned();
    let mut told = Vec::new();
    let mut crumbs = Vec::new();
    for (i, _) in log.iter().enumerate() {
        if cuts.contains(&i) {
            partition = Partition::restore(&partition.snapshot().unwrap(), later(), &TestBodies::default()).unwrap();
            partition.breaks_at = breaks.cloned();
        }
        let (updates, breadcrumbs) = feed(&mut partition, log, i..i + 1);
        told.extend(envelope::encode(&UpdateBatch { updates }));
        crumbs.extend(breadcrumbs);
    }
    (told, crumbs, partition.snapshot().unwrap())
}

fn feed(
    partition: &mut Partition,
    log: &[RecordBatch],
    entries: std::ops::Range<usize>,
) -> (Vec<Update>, Vec<Breadcrumb>) {
    let mut effects = Effects::default();
    for i in entries {
        partition.handle_entry(Offset(i as u64), &log[i], &TestBodies::default(), &mut effects);
    }
    (effects.updates, effects.breadcrumbs)
}

/// A log of all kinds of records, drawn from a seed.
fn day(seed: u64, entries: usize) -> Vec<RecordBatch> {
    let mut world = World::new();
    let mut state = seed;
    let mut draw = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut journal: Vec<JournalEntry> = Vec::new();
    while world.log.len() < entries {
        let driver = DriverKey { tenant: TENANT, driver: DriverId(draw(3) as u32) };
        match draw(20) {
            0 => {
                let mut to = delivery(Some(driver), 1, vec![status(1, DeliveryState::Ready)]);
                to.key.delivery = DeliveryId(10 * u64::from(driver.driver.0) + draw(3));
                to.assignment = AssignmentNumber(1 + draw(3) as u32);
                world.push(Record::Assign { to: driver.into(), delivery: Box::new(to) });
            }
            1 => {
                let key =
                    DeliveryKey { tenant: TENANT, delivery: DeliveryId(10 * u64::from(driver.driver.0) + draw(3)) };
                journal.push(status(journal.len() as u64 + 2, DeliveryState::PickedUp));
                let entry = journal.last().unwrap().clone();
                world.push(Record::Ledger { to: driver.into(), delivery: key, entry });
            }
            2 => {
                let key =
                    DeliveryKey { tenant: TENANT, delivery: DeliveryId(10 * u64::from(driver.driver.0) + draw(3)) };
                let assignment = AssignmentNumber(draw(3) as u32);
                world.push(Record::Release { from: driver.into(), delivery: key, assignment });
            }
            3 => world.push(Record::Claim { owner: OwnerId(1), at: world.now(), incarnation: 1 }),
            4 => world.push(Record::Lead { device: device(driver, draw(2) as u16), at: world.now() }),
            5..=9 => world.pass(1 + draw(4) as i64),
            _ => {
                let fixes = (0..=draw(4)).map(|_| {
                    world.now_ms += draw(3_000) as i64;
                    let mut fix = world.fix(draw(4_000) as f64);
                    fix.device = device(driver, draw(2) as u16);
                    fix.fix.measured = MeasuredTime(fix.fix.measured.0 - draw(50) as i64);
                    Record::Fix(fix)
                });
                let fixes = fixes.collect();
                world.push_all(fixes);
            }
        }
    }
    world.log.truncate(entries);
    world.log
}
