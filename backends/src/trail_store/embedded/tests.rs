//! What is of this store alone: what crashes, damage and an earlier version leave.

use std::time::Instant;

use protocol::update::Source;
use protocol::{DriverId, TenantId};

use super::*;
use crate::crash;
use crate::installation::compare::Found;
use crate::installation::{Installation, Numbers, Store, Witnesses};
use crate::sqlite;
use crate::trail_store::conformance::{self, Opened, trail_store_conformance};
use crate::trail_store::samples::{DAY_0_S, DAY_S, DRIVER, TENANT, crumb, drive};

struct Fixture(tempfile::TempDir);

impl Fixture {
    fn new() -> Self {
        Fixture(tempfile::tempdir().unwrap())
    }

    async fn open(&self) -> Opened {
        open(self.0.path())
    }
}

/// Little may wait, so that most promises meet segments too.
fn open(folder: &Path) -> Opened {
    let config = EmbeddedTrailConfig { pending_bytes_max: 20_000, ..EmbeddedTrailConfig::default() };
    Arc::new(EmbeddedTrailStore::open_with(folder, config).unwrap())
}

trail_store_conformance!(Fixture::new());

/// The same promises where everything waits in memory and the journal.
mod waiting {
    use super::*;

    struct Roomy(tempfile::TempDir);

    impl Roomy {
        async fn open(&self) -> Opened {
            Arc::new(EmbeddedTrailStore::open(self.0.path()).unwrap())
        }
    }

    trail_store_conformance!(Roomy(tempfile::tempdir().unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_and_breadcrumbs_agree_after_kill_9() {
    if let Some(folder) = crash::folder_of_child() {
        return conformance::write_until_killed(open(&folder)).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let test = "trail_store::embedded::tests::offsets_and_breadcrumbs_agree_after_kill_9";

    for count in [20, 100, 200, 1_000, 3_000] {
        let said = crash::kill_in_the_middle(test, folder.path(), count);
        conformance::offsets_and_breadcrumbs_agree(open(folder.path()), &said).await;
    }
}

#[tokio::test]
async fn what_has_waited_for_long_enough_is_sealed_however_little_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let config = EmbeddedTrailConfig { seal_after: Duration::ZERO, ..EmbeddedTrailConfig::default() };
    let store = EmbeddedTrailStore::open_with(folder.path(), config).unwrap();
    let place = |offset| TrailPlace { incarnation: 1, offset: Offset(offset) };

    store.append(PartitionId(0), vec![crumb(0), crumb(4)], place(1)).await.unwrap();
    // Its turn comes after the sealing.
    store.append(PartitionId(0), Vec::new(), place(2)).await.unwrap();

    assert_eq!(store.shared.pending.lock().count(), 0);
    let query = TrailQuery { from: Time(0), until: Time(i64::MAX), limit: 10 };
    assert_eq!(store.driver_trail(DRIVER, query).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_wrong_clock_makes_no_file_of_its_own() {
    let fixture = Fixture::new();
    conformance::wrong_clocks_are_kept_and_expire_by_their_receipt(async || fixture.open().await).await;
    let store = fixture.open().await;
    let strays: Vec<Breadcrumb> = (0..500)
        .map(|n| {
            let mut breadcrumb = crumb(10 * DAY_S);
            breadcrumb.record.fix.measured.0 = n * 864_000 * 30;
            breadcrumb
        })
        .collect();

    store.append(PartitionId(0), strays, TrailPlace::default()).await.unwrap();
    drop(store);

    let segments = names(fixture.0.path(), "segment-").len();
    assert!(segments <= 3, "{segments}");
}

/// At each place between writing a segment and forgetting the journal a crash leaves both, or half of one.
#[tokio::test]
async fn a_journal_that_is_in_segments_already_brings_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let trip = drive(8, 1_000);
    let roomy = EmbeddedTrailStore::open(folder.path()).unwrap();
    roomy.append(PartitionId(0), trip.clone(), place(9)).await.unwrap();
    let journal = names(folder.path(), "journal-").pop().unwrap();
    let kept = fs::read(&journal).unwrap();
    drop(roomy);
    // Sealed and named, and the journal of before stands again under the number that the index names now.
    let named = names(folder.path(), "journal-").pop().unwrap();
    fs::write(&named, &kept).unwrap();
    let mut spare = names(folder.path(), "segment-").pop().unwrap();
    let mut file = fs::OpenOptions::new().append(true).open(&spare).unwrap();
    std::io::Write::write_all(&mut file, b"half a block").unwrap();
    spare.set_file_name("segment-00000099.wfs");
    fs::write(&spare, b"never named").unwrap();

    let store = open(folder.path());

    assert_eq!(store.driver_trail(DRIVER, ALL).await.unwrap(), trip);
    assert_eq!(store.next_offset(PartitionId(0), 1).await.unwrap(), Offset(9));
    assert!(!spare.exists());
    store.append(PartitionId(0), trip.clone(), place(10)).await.unwrap();
    assert_eq!(store.driver_trail(DRIVER, ALL).await.unwrap(), trip);
}

#[tokio::test]
async fn an_index_that_lost_its_newest_entries_goes_back_with_its_offsets() {
    let folder = tempfile::tempdir().unwrap();
    let trip = drive(8, 3_000);
    let store = EmbeddedTrailStore::open(folder.path()).unwrap();
    store.append(PartitionId(0), trip[..1_000].to_vec(), place(10)).await.unwrap();
    drop(store);
    let older = fs::read(folder.path().join(INDEX)).unwrap();
    let store = EmbeddedTrailStore::open(folder.path()).unwrap();
    store.append(PartitionId(0), trip[1_000..2_000].to_vec(), place(20)).await.unwrap();
    drop(store);
    let store = EmbeddedTrailStore::open(folder.path()).unwrap();
    store.append(PartitionId(0), trip[2_000..].to_vec(), place(30)).await.unwrap();
    // The folder as kill -9 would leave it now, but for the index, which is that of an hour ago.
    let crashed = tempfile::tempdir().unwrap();
    for path in names(folder.path(), "journal-").into_iter().chain(names(folder.path(), "segment-")) {
        fs::copy(&path, crashed.path().join(path.file_name().unwrap())).unwrap();
    }
    fs::write(crashed.path().join(INDEX), older).unwrap();
    drop(store);

    let store = open(crashed.path());

    assert_eq!(store.next_offset(PartitionId(0), 1).await.unwrap(), Offset(10), "there is a hole behind it");
    store.append(PartitionId(0), trip[1_000..].to_vec(), place(30)).await.unwrap();
    assert_eq!(store.driver_trail(DRIVER, ALL).await.unwrap(), trip);
}

#[tokio::test]
async fn a_store_that_lost_its_index_or_a_segment_is_not_opened() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.append(PartitionId(0), drive(8, 1_000), place(10)).await.unwrap();
    drop(store);
    let segment = names(folder.path(), "segment-").pop().unwrap();
    let bytes = fs::read(&segment).unwrap();

    fs::write(&segment, &bytes[..bytes.len() - 1]).unwrap();
    let cut = EmbeddedTrailStore::open(folder.path()).err();
    fs::remove_file(&segment).unwrap();
    let gone = EmbeddedTrailStore::open(folder.path()).err();
    fs::write(&segment, &bytes).unwrap();
    for path in names(folder.path(), "index.db").into_iter().chain(names(folder.path(), "journal-")) {
        fs::remove_file(path).unwrap();
    }
    let without_index = EmbeddedTrailStore::open(folder.path()).err();

    for error in [cut, gone, without_index] {
        assert!(matches!(error, Some(TrailStoreError::Damaged { .. })), "{error:?}");
    }
    assert!(segment.exists());
}

#[tokio::test]
async fn a_lost_segment_is_found_and_left_out_and_the_rest_of_history_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.append(PartitionId(0), drive(8, 1_000), place(10)).await.unwrap();
    let later: Vec<Breadcrumb> = (0..50).map(|n| crumb(2 * DAY_S + n)).collect();
    store.append(PartitionId(0), later.clone(), place(20)).await.unwrap();
    drop(store);
    assert_eq!(find_damage(folder.path()).unwrap(), None);
    let segment = names(folder.path(), "segment-").remove(0);
    let whole = fs::read(&segment).unwrap();

    fs::write(&segment, &whole[..whole.len() - 1]).unwrap();
    let cut = find_damage(folder.path()).unwrap();
    fs::remove_file(&segment).unwrap();
    let gone = find_damage(folder.path()).unwrap();
    let fixes = leave_out_lost(folder.path()).unwrap();

    let name = segment.file_name().unwrap().to_str().unwrap();
    assert!(cut.is_some_and(|reason| reason.contains(name)) && gone.is_some_and(|reason| reason.contains(name)));
    assert_eq!(fixes, Some(1_000));
    assert_eq!(find_damage(folder.path()).unwrap(), None);
    let store = open(folder.path());
    assert_eq!(store.driver_trail(DRIVER, ALL).await.unwrap(), later);
    store.append(PartitionId(0), drive(8, 1_000), place(30)).await.unwrap();
    assert_eq!(store.driver_trail(DRIVER, ALL).await.unwrap().len(), 1_050, "the log brings it again");
    drop(store);

    fs::write(folder.path().join(INDEX), b"this was an index").unwrap();
    assert!(find_damage(folder.path()).unwrap().is_some());
    assert_eq!(leave_out_lost(folder.path()).unwrap(), None);
    fs::remove_file(folder.path().join(INDEX)).unwrap();
    assert!(find_damage(folder.path()).unwrap().is_some_and(|reason| reason.contains("no index")));
    let nothing = tempfile::tempdir().unwrap();
    assert_eq!(find_damage(&nothing.path().join("trail")).unwrap(), None);
}

#[tokio::test]
async fn a_broken_block_is_said_and_keeps_nothing_else_from_being_read_or_taken() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, others) = (drive(8, 500), drive(9, 500));
    let store = open(folder.path());
    store.append(PartitionId(0), [ours.clone(), others.clone()].concat(), place(1)).await.unwrap();
    drop(store);
    let segment = names(folder.path(), "segment-").pop().unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    bytes[200] ^= 1;
    fs::write(&segment, &bytes).unwrap();
    let store = open(folder.path());
    let other = DriverKey { driver: DriverId(9), ..DRIVER };

    let answers = [store.driver_trail(DRIVER, ALL).await, store.driver_trail(other, ALL).await];

    let damaged = answers.iter().filter(|answer| matches!(answer, Err(TrailStoreError::Damaged { .. }))).count();
    let whole = answers.iter().flatten().filter(|trail| **trail == ours || **trail == others).count();
    assert_eq!((damaged, whole), (1, 1));
    store.append(PartitionId(0), vec![crumb(80_000)], place(2)).await.unwrap();
}

#[tokio::test]
async fn short_blocks_of_days_that_are_over_become_long_ones() {
    let folder = tempfile::tempdir().unwrap();
    let trips: Vec<Vec<Breadcrumb>> = (1..=100).map(|driver| drive(driver, 60)).collect();
    for part in 0..12 {
        let store = EmbeddedTrailStore::open(folder.path()).unwrap();
        let part = trips.iter().flat_map(|trip| trip[part * 5..part * 5 + 5].to_vec()).collect();
        store.append(PartitionId(0), part, TrailPlace::default()).await.unwrap();
    }
    let before: u64 = sizes(folder.path());

    let store = EmbeddedTrailStore::open(folder.path()).unwrap();
    store.append(PartitionId(0), vec![crumb(3 * DAY_S)], TrailPlace::default()).await.unwrap();
    store.expire(Time::from_secs(DAY_0_S - DAY_S)).await.unwrap();
    let begun = Instant::now();
    while sizes(folder.path()) * 2 > before {
        assert!(begun.elapsed() < Duration::from_secs(20), "{before} and now {}", sizes(folder.path()));
        tokio::task::yield_now().await;
    }

    for (driver, trip) in (1..).zip(&trips) {
        let key = DriverKey { tenant: TENANT, driver: DriverId(driver) };
        let mut trail = store.driver_trail(key, ALL).await.unwrap();
        trail.retain(|breadcrumb| breadcrumb.source != Source::default());
        assert_eq!(trail, *trip);
    }
    assert_eq!(store.expire(Time::from_secs(DAY_0_S + DAY_S)).await.unwrap(), 6_000);
}

#[tokio::test]
async fn a_block_that_cannot_be_read_keeps_no_other_day_from_being_made_longer() {
    let folder = tempfile::tempdir().unwrap();
    for part in 0..4 {
        let store = EmbeddedTrailStore::open(folder.path()).unwrap();
        let of_day = |day: i64| (0..5).map(move |n| crumb(day * DAY_S + part * 100 + n));
        store.append(PartitionId(0), (0..3).flat_map(of_day).collect(), place(1)).await.unwrap();
    }
    let first_day = names(folder.path(), "segment-").remove(0);
    let mut bytes = fs::read(&first_day).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&first_day, bytes).unwrap();

    for received_s in [8, 9] {
        let store = EmbeddedTrailStore::open(folder.path()).unwrap();
        store.append(PartitionId(0), vec![crumb(received_s * DAY_S)], place(2)).await.unwrap();
        store.expire(Time::from_secs(DAY_0_S - DAY_S)).await.unwrap();
        let begun = Instant::now();
        let is_due = |connection: &rusqlite::Connection| index::unmerged(connection, DAY_0_S / DAY_S + 3);
        while store.shared.db.read_blocking(is_due).unwrap().is_some() {
            assert!(begun.elapsed() < Duration::from_secs(20), "days wait behind the block");
            tokio::task::yield_now().await;
        }

        let later = TrailQuery { from: Time::from_secs(DAY_0_S + DAY_S), ..ALL };
        let trail = store.driver_trail(DRIVER, later).await.unwrap();
        assert_eq!(trail.iter().filter(|b| b.record.received < Time::from_secs(DAY_0_S + 4 * DAY_S)).count(), 40);
        let count = |sql: &'static str| {
            let count = move |c: &rusqlite::Connection| Ok::<i64, TrailStoreError>(c.query_row(sql, [], |r| r.get(0))?);
            store.shared.db.read_blocking(count).unwrap()
        };
        let of_three_days = count("SELECT count(*) FROM files WHERE day < 19003");
        assert_eq!(of_three_days, 4, "a long one of each day, and the first day's with what cannot be read");
        assert_eq!(count("SELECT count(*) FROM blocks WHERE last_ds < 19003 * 864000"), 4);
    }
}

#[tokio::test]
async fn a_forgotten_driver_leaves_nothing_in_the_files_that_a_key_opens() {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedTrailStore::open(folder.path()).unwrap();
    store.append(PartitionId(0), drive(8, 500), place(1)).await.unwrap();
    drop(store);
    let store = EmbeddedTrailStore::open(folder.path()).unwrap();
    let secret = store.shared.db.read_blocking(|connection| index::secret(connection, DRIVER)).unwrap().unwrap();
    let holds_key = || {
        let files = names(folder.path(), "").into_iter().map(|path| fs::read(path).unwrap());
        files.filter(|bytes| bytes.windows(32).any(|window| window == secret.0)).count()
    };
    assert!(holds_key() > 0);
    store.append(PartitionId(0), vec![crumb(50_000)], place(2)).await.unwrap();

    store.forget(DRIVER, Time(i64::MAX)).await.unwrap();

    assert_eq!(holds_key(), 0);
    let journal = names(folder.path(), "journal-").pop().unwrap();
    assert!(journal::replay(&journal).unwrap().frames.is_empty());
}

/// The file was made by the build ddcf6dd, with 220 fixes of two drivers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_of_the_release_before_is_taken_over_once_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let before = folder.path().join("trail.db");
    fs::write(&before, include_bytes!("../fixtures/trail_ddcf6dd.db")).unwrap();
    let config = EmbeddedTrailConfig { before: Some(before.clone()), ..EmbeddedTrailConfig::default() };
    let open = || EmbeddedTrailStore::open_with(&folder.path().join("trail"), config.clone()).unwrap();

    let store = open();
    let begun = Instant::now();
    while before.exists() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it is not taken over");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let tenant = TenantId(1);
    let trail = async |store: &EmbeddedTrailStore, driver| {
        let key = DriverKey { tenant, driver: DriverId(driver) };
        store.driver_trail(key, ALL).await.unwrap()
    };
    let (first, second) = (trail(&store, 1).await, trail(&store, 2).await);
    assert_eq!((first.len(), second.len()), FIXTURE_FIXES);
    assert!(first.is_sorted_by_key(|breadcrumb| breadcrumb.record.fix.measured));
    let mut offsets = 0;
    for partition in 0..8 {
        offsets += store.next_offset(PartitionId(partition), 1).await.unwrap().0;
        let of_another_log = store.next_offset(PartitionId(partition), 2).await.unwrap();
        assert_eq!(of_another_log, Offset(0), "what it noted says nothing of a log that was begun anew");
    }
    assert_eq!(offsets, FIXTURE_OFFSETS);
    drop(store);
    let store = open();
    assert_eq!((trail(&store, 1).await, trail(&store, 2).await), (first, second));
}

#[tokio::test]
async fn the_index_of_an_installation_is_checked_page_by_page_and_stays_so_after_a_driver_is_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let witnesses = Witnesses::open(Installation::new(), Numbers::default(), &BTreeMap::new()).unwrap();
    let guard = Guard { store: Store::Trail, witnesses, cache_bytes: CACHE_BYTES };
    let config = EmbeddedTrailConfig { guard: Some(guard), ..EmbeddedTrailConfig::default() };
    let index = folder.path().join(INDEX);
    let found = || sqlite::survey(&index).unwrap().0;
    let store = EmbeddedTrailStore::open_with(folder.path(), config.clone()).unwrap();
    store.append(PartitionId(0), drive(8, 500), place(1)).await.unwrap();
    store.forget(DRIVER, Time(i64::MAX)).await.unwrap();
    assert!(matches!(found(), Found::Marked(..)), "{:?}", found());
    store.append(PartitionId(0), drive(9, 50), place(2)).await.unwrap();
    drop(store);
    assert!(matches!(found(), Found::Marked(..)), "{:?}", found());

    let bytes = fs::read(&index).unwrap();
    let used: Vec<usize> = (0..bytes.len()).step_by(4096).filter(|page| bytes[page + 4095] != 0).collect();
    assert!(used.len() > 3, "{} pages end with an entry", used.len());
    for page in used {
        let mut flipped = bytes.clone();
        flipped[page + 4095] ^= 1;
        fs::write(&index, flipped).unwrap();
        assert!(matches!(found(), Found::Damaged(_)), "page at {page}: {:?}", found());
    }
    fs::write(&index, &bytes).unwrap();
    let store = EmbeddedTrailStore::open_with(folder.path(), config).unwrap();
    assert_eq!(store.next_offset(PartitionId(0), 1).await.unwrap(), Offset(2));
}

fn place(offset: u64) -> TrailPlace {
    TrailPlace { incarnation: 1, offset: Offset(offset) }
}

fn names(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with(prefix));
    paths.sort();
    paths
}

fn sizes(folder: &Path) -> u64 {
    let length = |path: PathBuf| fs::metadata(path).map_or(0, |metadata| metadata.len());
    names(folder, "segment-").into_iter().map(length).sum()
}

const ALL: TrailQuery = TrailQuery { from: Time(0), until: Time(i64::MAX), limit: 10_000 };
const FIXTURE_FIXES: (usize, usize) = (110, 110);
const FIXTURE_OFFSETS: u64 = 22;
