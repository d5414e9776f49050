//! What the build before snapshots had fields (ddcf6dd) wrote, taken up by this one. The files hold the first three
//! minutes of five drivers on the generated town: a state in the middle of it, the records, and what was told of them. A
//! test that fails here says that a type of the state or of the log changed without a reader for what lies on disks
//! (`snapshot/mod.rs` says how to write one).

use super::roads::town;
use super::*;
use crate::track::refold::Told;

const STATE: &[u8] = include_bytes!("fixtures/ddcf6dd/partition.snapshot");
const RECORDS: &[u8] = include_bytes!("fixtures/ddcf6dd/records.log");
const UPDATES: &[u8] = include_bytes!("fixtures/ddcf6dd/updates.log");
const TRAIL: &[u8] = include_bytes!("fixtures/ddcf6dd/trail.log");

#[test]
fn the_state_of_the_build_before_is_taken_up_and_written_anew_without_loss() {
    let (cut, log) = records();

    let taken = Partition::restore(STATE, later(), &bodies()).unwrap();

    assert_eq!(taken.next(), Offset(cut as u64));
    assert_eq!(taken.trackers_len(), 6);
    let rewritten = taken.snapshot().unwrap();
    let again = Partition::restore(&rewritten, later(), &bodies()).unwrap();
    assert!(again.snapshot().unwrap() == rewritten);
    assert!(!again.is_anew());

    // The same comes of it as of the records alone, folded by this build from the first on.
    let mut alone = Partition::new(PartitionId(0), Offset(0), Generation::default());
    feed(&mut alone, &log, 0..log.len());
    let mut taken = taken;
    feed(&mut taken, &log, cut..log.len());
    assert_eq!(what_is_true(&taken), what_is_true(&alone));
}

#[test]
fn going_on_from_the_build_before_nothing_is_told_twice_and_no_dot_goes_back() {
    let (cut, log) = records();
    let before = told_before();
    let claim = log.len() as u64;
    let until = |update: &Update| source_of(update).is_some_and(|offset| offset.0 < cut as u64 + 20);
    let told: Vec<&Update> = before.iter().filter(|update| until(update)).collect();

    // It had told what came of twenty records after its snapshot when this build took over.
    let own = Generation { incarnation: 1, claim: Offset(claim) };
    let mut taken = Partition::restore(STATE, own, &bodies()).unwrap();
    let next = Offset(cut as u64 + 20);
    taken.begin_silently(own, &Told { updates: vec![next], trail: Offset(0), at: taken.clock().now() });
    let (mut updates, _) = feed(&mut taken, &log, cut..log.len());
    let at = taken.clock().now();
    let claimed = RecordBatch { records: vec![Record::Claim { owner: OwnerId(2), at, incarnation: 1 }] };
    let mut effects = Effects::default();
    taken.handle_entry(Offset(claim), &claimed, &bodies(), &mut effects);
    assert!(updates.iter().all(|update| source_of(update).is_some_and(|offset| offset >= next)));
    updates.extend(effects.updates);

    let mut views: BTreeMap<DeliveryKey, LiveView> = BTreeMap::new();
    let mut journal = std::collections::BTreeSet::new();
    for update in told.into_iter().chain(&updates) {
        let Update::Delivery(update) = update else { continue };
        for event in &update.events {
            if let Event::Journal { entry } = event {
                assert!(journal.insert((update.key, entry.number)), "{:?} of {:?} twice", entry.number, update.key);
            }
        }
        match views.get_mut(&update.key) {
            None => drop(views.insert(update.key, LiveView::begin(update).unwrap())),
            Some(view) => {
                let shown = |view: &LiveView| view.view.position.map(|position| position.event_time);
                let before = shown(view);
                assert_ne!(view.handle_update(update), Taken::Dropped, "{update:?}");
                assert!(shown(view) >= before, "the dot of {:?} went back", update.key);
            }
        }
    }
    // Every delivery that is live was told of under our own epoch, and is what the fold says.
    for (_, key, _) in taken.assignments() {
        assert_eq!(views[&key].epoch.generation, own, "{key:?}");
    }
    for (key, whole) in whole_views(&before) {
        assert_eq!(views[&key].view.delivery, whole.view.delivery, "{key:?}");
        assert_eq!(views[&key].is_last, whole.is_last, "{key:?}");
    }
}

#[test]
fn whoever_takes_over_while_it_folds_again_tells_the_same_numbers() {
    let (cut, log) = records();
    let own = Generation { incarnation: 1, claim: Offset(log.len() as u64) };
    let told = Told { updates: vec![Offset(cut as u64 + 20)], trail: Offset(0), at: Time(0) };
    let mut first = Partition::restore(STATE, own, &bodies()).unwrap();
    first.begin_silently(own, &told);
    feed(&mut first, &log, cut..cut + 10);
    let snapshot = first.snapshot().unwrap();

    let mut second = Partition::restore(&snapshot, later(), &bodies()).unwrap();

    assert!(!second.is_anew());
    assert!(feed(&mut second, &log, cut + 10..log.len()) == feed(&mut first, &log, cut + 10..log.len()));
}

#[test]
fn the_log_of_the_build_before_is_read_whole() {
    assert_eq!(records().1.iter().map(|batch| batch.records.len()).sum::<usize>(), 543);
    assert_eq!(told_before().len(), 352);
    let crumbs: Vec<protocol::update::BreadcrumbBatch> = entries(TRAIL).iter().map(|e| decoded(e)).collect();
    assert_eq!(crumbs.iter().map(|batch| batch.breadcrumbs.len()).sum::<usize>(), 160);
}

#[test]
fn the_next_releases_snapshot_is_read_but_for_what_is_not_known_here() {
    let taken = Partition::restore(STATE, later(), &bodies()).unwrap();
    let next = taken.snapshot_of_next_release().unwrap();

    let back = Partition::restore(&next, later(), &bodies()).unwrap();

    assert!(back.is_anew(), "its numbers may rest on what is not known here");
    assert_eq!(what_is_true(&back), what_is_true(&taken));
}

fn bodies() -> TestBodies {
    TestBodies { maps: vec![town()], ..TestBodies::default() }
}

fn later() -> Generation {
    Generation { incarnation: 1, claim: Offset(1_000_000) }
}

fn entries(mut file: &[u8]) -> Vec<Vec<u8>> {
    let mut entries = Vec::new();
    while let Some((length, rest)) = file.split_first_chunk::<4>() {
        let (entry, rest) = rest.split_at(u32::from_le_bytes(*length) as usize);
        entries.push(entry.to_vec());
        file = rest;
    }
    entries
}

fn decoded<T: envelope::Enveloped>(entry: &[u8]) -> T {
    envelope::decode(entry).unwrap()
}

/// Where the snapshot was taken, and all entries.
fn records() -> (usize, Vec<RecordBatch>) {
    let (cut, rest) = RECORDS.split_first_chunk::<4>().unwrap();
    (u32::from_le_bytes(*cut) as usize, entries(rest).iter().map(|entry| decoded(entry)).collect())
}

fn told_before() -> Vec<Update> {
    entries(UPDATES).iter().flat_map(|entry| decoded::<UpdateBatch>(entry).updates).collect()
}

fn source_of(update: &Update) -> Option<Offset> {
    match update {
        Update::Delivery(update) => Some(update.source.offset),
        Update::Driver(update) => Some(update.source.offset),
        Update::Heartbeat { .. } => None,
    }
}

fn whole_views(updates: &[Update]) -> BTreeMap<DeliveryKey, LiveView> {
    let mut views: BTreeMap<DeliveryKey, LiveView> = BTreeMap::new();
    for update in updates {
        let Update::Delivery(update) = update else { continue };
        match views.get_mut(&update.key) {
            None => drop(views.insert(update.key, LiveView::begin(update).unwrap())),
            Some(view) => drop(view.handle_update(update)),
        }
    }
    views
}

/// What trackers know, without the numbers under which they say it.
fn what_is_true(partition: &Partition) -> Vec<String> {
    let drivers = (1..=5).map(|n| DriverKey { tenant: TENANT, driver: DriverId(n) });
    let mut all: Vec<String> = drivers.map(|key| format!("{:?}", partition.driver_view(key))).collect();
    all.push(format!("{:?}", partition.assignments()));
    all.push(format!("{:?}", partition.released.iter().collect::<Vec<_>>()));
    all.push(format!("{:?}", partition.regions()));
    all
}

fn feed(
    partition: &mut Partition,
    log: &[RecordBatch],
    entries: std::ops::Range<usize>,
) -> (Vec<Update>, Vec<Breadcrumb>) {
    let mut effects = Effects::default();
    for i in entries {
        partition.handle_entry(Offset(i as u64), &log[i], &bodies(), &mut effects);
    }
    (effects.updates, effects.breadcrumbs)
}
