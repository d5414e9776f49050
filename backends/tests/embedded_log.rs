//! The embedded log under the suite of all logs, with real crashes of its files; and what only it promises.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use backends::log::conformance::{self, Instance};
use backends::log::embedded::{EmbeddedLog, EmbeddedLogConfig, WriteProbe};
use backends::log::{Append, Log, LogError, ReadLimit, StoredEntry, Topic};
use bytes::Bytes;
use protocol::{Offset, PartitionId, Time};
use tempfile::TempDir;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_log_keeps_the_contract() {
    conformance::suite(|partitions| async move {
        let folder = tempfile::tempdir().unwrap();
        Box::new(OnDisk::open(folder, partitions)) as Box<dyn Instance>
    })
    .await;
}

/// A log on disk whose crash is a copy of its files, taken between a write and its sync, with what was not synced cut.
struct OnDisk {
    log: Arc<EmbeddedLog>,
    probe: Arc<CrashProbe>,
    partitions: u32,
    folder: TempDir,
}

impl OnDisk {
    fn open(folder: TempDir, partitions: u32) -> Self {
        let probe = Arc::new(CrashProbe::new(folder.path().join("log")));
        let config = EmbeddedLogConfig {
            partitions,
            release_wait_max: RELEASE_WAIT_MAX,
            probe: Some(probe.clone()),
            ..EmbeddedLogConfig::default()
        };
        let log = Arc::new(EmbeddedLog::open(folder.path().join("log"), config).unwrap());
        OnDisk { log, probe, partitions, folder }
    }
}

#[async_trait]
impl Instance for OnDisk {
    fn log(&self) -> Arc<dyn Log> {
        self.log.clone()
    }

    async fn restart(self: Box<Self>) -> Box<dyn Instance> {
        self.log.close();
        Box::new(OnDisk::open(self.folder, self.partitions))
    }

    async fn crash(self: Box<Self>) -> Box<dyn Instance> {
        let left = tempfile::tempdir().unwrap();
        self.probe.arm(left.path().join("log"));
        // Two writes at least, where nobody else writes: one to learn what is synced, one to be cut.
        let nudges: Vec<_> = (0..3)
            .map(|n| {
                let log = self.log.clone();
                tokio::spawn(async move {
                    let mut member = log.join(&format!("nudge {n}"), Topic::Owners).await.unwrap();
                    member.changed().await.unwrap();
                    while member.commits().commit(PartitionId(0), Offset(0)).await.is_ok() {}
                })
            })
            .collect();
        let probe = self.probe.clone();
        tokio::task::spawn_blocking(move || probe.wait_until_copied()).await.unwrap();
        let crashed = OnDisk::open(left, self.partitions);
        // Only now does the old one fail, so that it could tell nobody anything after the copy.
        self.probe.release();
        for nudge in nudges {
            nudge.await.unwrap();
        }
        Box::new(crashed)
    }

    fn fail_appends(&self, is_failing: bool) {
        self.probe.fail_writes.store(is_failing, Ordering::SeqCst);
    }

    fn release_wait_max(&self) -> Duration {
        RELEASE_WAIT_MAX
    }
}

/// Copies the files at the worst moment.
struct CrashProbe {
    log: PathBuf,
    state: Mutex<CrashState>,
    changed: Condvar,
    fail_writes: AtomicBool,
}

enum CrashState {
    Idle,
    /// Copy to this folder, once it is known how far the journals are synced.
    Armed {
        to: PathBuf,
        synced: Option<Vec<(PathBuf, usize)>>,
    },
    Copied,
    Released,
}

impl CrashProbe {
    fn new(log: PathBuf) -> Self {
        CrashProbe {
            log,
            state: Mutex::new(CrashState::Idle),
            changed: Condvar::new(),
            fail_writes: AtomicBool::new(false),
        }
    }

    fn arm(&self, to: PathBuf) {
        *self.state.lock().unwrap() = CrashState::Armed { to, synced: None };
    }

    fn wait_until_copied(&self) {
        let state = self.state.lock().unwrap();
        drop(self.changed.wait_while(state, |state| !matches!(state, CrashState::Copied)).unwrap());
    }

    fn release(&self) {
        *self.state.lock().unwrap() = CrashState::Released;
        self.changed.notify_all();
    }
}

impl WriteProbe for CrashProbe {
    fn before_write(&self) -> std::io::Result<()> {
        fail_if(&self.fail_writes)
    }

    fn before_sync(&self) -> std::io::Result<()> {
        let mut state = self.state.lock().unwrap();
        if let CrashState::Armed { to, synced: Some(synced) } = &*state {
            copy_folder(&self.log, to);
            let mut was_cut = false;
            for (journal, synced) in synced {
                let written = extent(&self.log.join(journal));
                assert!(written >= *synced, "a journal only grows");
                was_cut |= written > *synced;
                cut(&to.join(journal), *synced, written);
            }
            assert!(was_cut, "there was something that a crash could take");
            *state = CrashState::Copied;
            self.changed.notify_all();
        }
        let state = self.changed.wait_while(state, |state| matches!(state, CrashState::Copied)).unwrap();
        match *state {
            CrashState::Released => Err(std::io::Error::other("the machine has crashed")),
            CrashState::Idle | CrashState::Armed { .. } | CrashState::Copied => Ok(()),
        }
    }

    fn after_sync(&self) {
        if let CrashState::Armed { synced, .. } = &mut *self.state.lock().unwrap() {
            *synced = Some(journals(&self.log).into_iter().map(|(name, path)| (name, extent(&path))).collect());
        }
    }
}

/// Cuts what was written after the last sync: all of it, or some, as a disk may have written some pages and others not;
/// the rest reads as zeros or is not there.
fn cut(journal: &Path, synced: usize, written: usize) {
    static TURN: AtomicUsize = AtomicUsize::new(0);
    let turn = TURN.fetch_add(1, Ordering::Relaxed);
    let kept = synced + (written - synced) * [0, 1, 5, 9][turn % 4] / 10;
    let mut bytes = std::fs::read(journal).unwrap();
    let length = bytes.len();
    bytes.truncate(kept);
    if !turn.is_multiple_of(3) {
        bytes.resize(length, 0);
    }
    std::fs::write(journal, bytes).unwrap();
}

/// Journals are preallocated: what is written ends with the last byte that is not zero.
fn extent(journal: &Path) -> usize {
    let bytes = std::fs::read(journal).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

/// By their name within the log's folder.
fn journals(log: &Path) -> Vec<(PathBuf, PathBuf)> {
    let folder = std::fs::read_dir(log.join("entries")).unwrap();
    let paths = folder.map(|file| file.unwrap().path());
    let journals = paths.filter(|path| path.extension().is_some_and(|extension| extension == "jnl"));
    journals.map(|path| (path.strip_prefix(log).unwrap().to_path_buf(), path)).collect()
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let target = to.join(file.file_name());
        if file.file_type().unwrap().is_dir() {
            copy_folder(&file.path(), &target);
        } else {
            std::fs::copy(file.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn the_same_folder_opens_once_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let first = EmbeddedLog::open(folder.path(), small()).unwrap();

    let second = EmbeddedLog::open(folder.path(), small()).map(|_| ());

    let reason = second.unwrap_err().to_string();
    assert!(reason.contains("open already"), "{reason}");
    first.close();
    EmbeddedLog::open(folder.path(), small()).unwrap();
}

#[tokio::test]
async fn another_partition_count_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    drop(EmbeddedLog::open(folder.path(), small()).unwrap());

    let other = EmbeddedLog::open(folder.path(), EmbeddedLogConfig { partitions: 3, ..small() }).map(|_| ());

    assert!(matches!(other, Err(LogError::PartitionCount { expected: 2, found: 3, .. })), "{other:?}");
    EmbeddedLog::open(folder.path(), small()).unwrap();
}

#[tokio::test]
async fn times_do_not_go_back_with_the_clock_nor_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (clock, now) = movable_clock(1_000);
    let log = EmbeddedLog::open(folder.path(), EmbeddedLogConfig { now: now.clone(), ..small() }).unwrap();
    append(&log, 1).await.unwrap();
    clock.store(400, Ordering::Relaxed);
    append(&log, 1).await.unwrap();
    log.close();

    let log = EmbeddedLog::open(folder.path(), EmbeddedLogConfig { now, ..small() }).unwrap();
    append(&log, 1).await.unwrap();
    clock.store(2_000, Ordering::Relaxed);
    append(&log, 1).await.unwrap();

    let times: Vec<i64> = read(&log, 0).await.unwrap().iter().map(|entry| entry.appended.0).collect();
    assert_eq!(times, [1_000, 1_000, 1_000, 2_000]);
}

#[tokio::test]
async fn retention_lets_go_of_what_is_older_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (clock, now) = movable_clock(0);
    let config = || EmbeddedLogConfig {
        now: now.clone(),
        retention: [(Topic::Records, Duration::from_secs(60))].into(),
        expire_every: Duration::from_millis(5),
        ..small()
    };
    let log = EmbeddedLog::open(folder.path(), config()).unwrap();
    append(&log, 10).await.unwrap();
    clock.store(59_000, Ordering::Relaxed);
    append(&log, 5).await.unwrap();
    log.append(&[control("kept")]).await.into_offsets().unwrap();

    clock.store(61_000, Ordering::Relaxed);
    eventually("the first ten are let go", async || first(&log).await == 10).await;

    let gone = read(&log, 9).await;
    assert!(matches!(gone, Err(LogError::Gone { offset: 9, first: 10 })), "{gone:?}");
    assert_eq!(read(&log, 10).await.unwrap().len(), 5);
    assert_eq!(log.offset_at(Topic::Records, PartitionId(0), Time(0)).await.unwrap(), Offset(10));
    clock.store(1_000_000_000, Ordering::Relaxed);
    eventually("all are let go", async || first(&log).await == 15).await;
    assert_eq!(log.newest(Topic::Control).await.unwrap().len(), 1, "the newest of a key has no age");
    log.close();

    let log = EmbeddedLog::open(folder.path(), config()).unwrap();
    assert_eq!(first(&log).await, 15, "what was let go does not come back");
    assert_eq!(append(&log, 1).await.unwrap(), [Offset(15)], "offsets go on");
}

#[tokio::test]
async fn a_write_that_fails_acknowledges_nothing_and_later_writes_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let fault = Arc::new(Fault::default());
    let config = EmbeddedLogConfig { probe: Some(fault.clone()), ..small() };
    let log = EmbeddedLog::open(folder.path(), config).unwrap();
    append(&log, 3).await.unwrap();

    fault.fail_writes.store(true, Ordering::Relaxed);
    for _ in 0..3 {
        let failed = append(&log, 2).await;
        assert!(failed.as_ref().is_err_and(LogError::is_transient), "{failed:?}");
    }
    assert_eq!(read(&log, 0).await.unwrap().len(), 3, "what was acknowledged can be read meanwhile");

    fault.fail_writes.store(false, Ordering::Relaxed);
    let offsets = until_appended(&log, 2).await;
    let entries = read(&log, 0).await.unwrap();
    assert_eq!(entries.last().unwrap().offset, *offsets.last().unwrap());
    assert!(entries.iter().zip(0..).all(|(entry, offset)| entry.offset.0 == offset), "no hole");
}

#[tokio::test]
async fn an_outage_of_the_disk_is_no_busy_loop() {
    let folder = tempfile::tempdir().unwrap();
    let fault = Arc::new(Fault::default());
    let log = EmbeddedLog::open(folder.path(), EmbeddedLogConfig { probe: Some(fault.clone()), ..small() }).unwrap();
    append(&log, 3).await.unwrap();

    fault.fail_writes.store(true, Ordering::Relaxed);
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(1_600) {
        append(&log, 1).await.unwrap_err();
    }
    fault.fail_writes.store(false, Ordering::Relaxed);

    let failed = fault.failed.load(Ordering::Relaxed);
    assert!((3..=6).contains(&failed), "{failed} writes were tried");
    until_appended(&log, 1).await;
}

#[tokio::test]
async fn a_journal_removed_or_replaced_under_the_log_takes_no_more_writes() {
    for is_replaced in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let log = EmbeddedLog::open(folder.path(), small()).unwrap();
        append(&log, 3).await.unwrap();
        assert_eq!(log.gone(), None);

        let (_, journal) = journals(folder.path()).pop().unwrap();
        let bytes = std::fs::read(&journal).unwrap();
        std::fs::remove_file(&journal).unwrap();
        if is_replaced {
            std::fs::write(&journal, bytes).unwrap();
        }

        assert!(log.gone().is_some(), "also where nobody writes");
        let refused = append(&log, 1).await;
        assert!(matches!(refused, Err(LogError::Damaged { .. })), "{refused:?}");
    }
}

#[tokio::test]
async fn journals_that_come_and_go_with_the_traffic_are_not_missed() {
    let folder = tempfile::tempdir().unwrap();
    let log = EmbeddedLog::open(folder.path(), small()).unwrap();
    let begun = journals(folder.path());

    for _ in 0..40 {
        append_of(&log, 4, 1 << 20).await.unwrap();
        assert_eq!(log.gone(), None);
    }

    assert_ne!(journals(folder.path()), begun, "others have begun");
}

#[tokio::test]
async fn what_a_start_found_is_synced_before_anybody_sees_it() {
    let folder = tempfile::tempdir().unwrap();
    let fault = Arc::new(Fault::default());
    let config = || EmbeddedLogConfig { probe: Some(fault.clone()), ..small() };
    let log = EmbeddedLog::open(folder.path(), config()).unwrap();
    append(&log, 3).await.unwrap();
    fault.fail_syncs.store(true, Ordering::Relaxed);
    append(&log, 2).await.unwrap_err();
    log.close();

    let refused = EmbeddedLog::open(folder.path(), config()).map(|_| ());

    assert!(matches!(refused, Err(LogError::Unavailable { .. })), "{refused:?}");
    fault.fail_syncs.store(false, Ordering::Relaxed);
    let log = EmbeddedLog::open(folder.path(), config()).unwrap();
    assert_eq!(read(&log, 0).await.unwrap().len(), 5);
}

#[tokio::test]
async fn a_start_refused_for_its_only_batch_leaves_the_journal_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let log = EmbeddedLog::open(folder.path(), small()).unwrap();
    append(&log, 1).await.unwrap();
    log.close();
    let (_, journal) = journals(folder.path()).pop().unwrap();
    let mut bytes = std::fs::read(&journal).unwrap();
    bytes.truncate(9);
    std::fs::write(&journal, &bytes).unwrap();

    for _ in 0..2 {
        let refused = EmbeddedLog::open(folder.path(), small()).map(|_| ());
        assert!(matches!(refused, Err(LogError::Damaged { .. })), "{refused:?}");
        assert_eq!(std::fs::read(&journal).unwrap(), bytes);
    }
    assert_eq!(journals(folder.path()).len(), 1);
}

#[tokio::test]
async fn after_a_failed_sync_nothing_more_is_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let fault = Arc::new(Fault::default());
    let log = EmbeddedLog::open(folder.path(), EmbeddedLogConfig { probe: Some(fault.clone()), ..small() }).unwrap();
    append(&log, 3).await.unwrap();

    fault.fail_syncs.store(true, Ordering::Relaxed);
    let failed = append(&log, 2).await;
    fault.fail_syncs.store(false, Ordering::Relaxed);

    assert!(matches!(failed, Err(LogError::Damaged { .. })), "{failed:?}");
    assert!(matches!(append(&log, 2).await, Err(LogError::Damaged { .. })), "not even when the disk is well again");
    assert_eq!(read(&log, 0).await.unwrap().len(), 3);
    let mut reader = log.reader(Topic::Records, PartitionId(0), Offset(3)).await.unwrap();
    let waiting = reader.read(ReadLimit::default(), PATIENCE).await;
    assert!(matches!(waiting, Err(LogError::Damaged { .. })), "readers learn that nothing will come: {waiting:?}");
    log.close();
    let log = EmbeddedLog::open(folder.path(), small()).unwrap();
    assert!(read(&log, 0).await.unwrap().len() >= 3, "a new process goes on");
}

#[tokio::test]
async fn a_closed_log_wakes_who_waits_and_answers_closed() {
    let folder = tempfile::tempdir().unwrap();
    let log = Arc::new(EmbeddedLog::open(folder.path(), small()).unwrap());
    let mut member = log.join("group", Topic::Records).await.unwrap();
    member.changed().await.unwrap();
    let mut reader = log.reader(Topic::Records, PartitionId(0), Offset(0)).await.unwrap();
    let reading = tokio::spawn(async move { reader.read(ReadLimit::default(), PATIENCE).await });
    let waiting = tokio::spawn(async move { member.changed().await });
    tokio::task::yield_now().await;

    let closing = log.clone();
    tokio::task::spawn_blocking(move || closing.close()).await.unwrap();

    assert!(matches!(reading.await.unwrap(), Err(LogError::Closed)));
    assert!(matches!(waiting.await.unwrap(), Err(LogError::Closed)));
    assert!(matches!(append(&log, 1).await, Err(LogError::Closed)));
    assert!(matches!(log.join("group", Topic::Records).await.map(|_| ()), Err(LogError::Closed)));
}

/// A page in the middle of the batch that was not synced is lost, its end is not.
#[tokio::test]
async fn a_batch_torn_in_its_middle_is_cut_off_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let log = EmbeddedLog::open(folder.path(), small()).unwrap();
    append(&log, 3).await.unwrap();
    log.close();
    let noted = std::fs::read(folder.path().join("acknowledged")).unwrap();
    let log = EmbeddedLog::open(folder.path(), small()).unwrap();
    append_of(&log, 2, 20_000).await.unwrap();
    log.close();
    // As if the machine had gone down before the second append was synced, and so before it was acknowledged.
    std::fs::write(folder.path().join("acknowledged"), noted).unwrap();
    let (_, journal) = journals(folder.path()).pop().unwrap();
    let mut bytes = std::fs::read(&journal).unwrap();
    let end = extent(&journal);
    bytes[end - 12_000..end - 8_000].fill(0);
    std::fs::write(&journal, bytes).unwrap();

    let log = EmbeddedLog::open(folder.path(), small()).unwrap();

    assert_eq!(read(&log, 0).await.unwrap().len(), 3);
    assert_eq!(append(&log, 1).await.unwrap(), [Offset(3)]);
    log.close();
    let log = EmbeddedLog::open(folder.path(), small()).unwrap();
    assert_eq!(read(&log, 0).await.unwrap().len(), 4);
}

#[tokio::test]
async fn damage_to_what_was_acknowledged_is_an_error_and_never_a_silent_loss() {
    let folder = tempfile::tempdir().unwrap();
    let log = EmbeddedLog::open(folder.path().join("log"), small()).unwrap();
    for _ in 0..5 {
        append_of(&log, 2, 100).await.unwrap();
    }
    let whole = read(&log, 0).await.unwrap();
    log.close();
    let (name, journal) = journals(&folder.path().join("log")).pop().unwrap();
    let end = extent(&journal);

    let mut refused = 0;
    for at in (0..end).step_by(end / 9) {
        for damage in [Damage::Flip, Damage::Cut] {
            let copy = folder.path().join("copy");
            copy_folder(&folder.path().join("log"), &copy);
            let mut bytes = std::fs::read(&journal).unwrap();
            match damage {
                Damage::Flip => bytes[at] ^= 0x10,
                Damage::Cut => bytes.truncate(at),
            }
            std::fs::write(copy.join(&name), bytes).unwrap();

            match EmbeddedLog::open(&copy, small()) {
                Err(_) => refused += 1,
                Ok(log) => match read(&log, 0).await {
                    Ok(entries) => assert_eq!(entries, whole, "{damage:?} at {at} of {end}"),
                    Err(error) => assert!(matches!(error, LogError::Damaged { .. }), "{error}"),
                },
            }
            std::fs::remove_dir_all(&copy).unwrap();
        }
    }
    assert!(refused >= 9, "{refused}");
}

#[derive(Clone, Copy, Debug)]
enum Damage {
    Flip,
    Cut,
}

/// Needs a small disk of its own, such as `mount -t tmpfs -o size=80m`; where none is given it is left out, aloud.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_acknowledges_nothing_and_room_lets_it_go_on() {
    let Some(disk) = std::env::var_os("WAYFIX_TEST_SMALL_DISK").map(PathBuf::from) else {
        eprintln!("left out: WAYFIX_TEST_SMALL_DISK names no small disk");
        return;
    };
    let ballast = disk.join("ballast");
    std::fs::write(&ballast, vec![1; 40 << 20]).unwrap();
    let log = EmbeddedLog::open(disk.join("log"), small()).unwrap();
    let mut acknowledged: Vec<u64> = Vec::new();
    let error = loop {
        match append_of(&log, 4, 256 << 10).await {
            Ok(offsets) => acknowledged.extend(offsets.iter().map(|offset| offset.0)),
            Err(error) => break error,
        }
    };
    assert!(error.is_transient(), "{error}");
    // What was cut off left a little room: the next may fit or not.
    match append_of(&log, 4, 256 << 10).await {
        Ok(offsets) => acknowledged.extend(offsets.iter().map(|offset| offset.0)),
        Err(error) => assert!(error.is_transient(), "{error}"),
    }

    std::fs::remove_file(&ballast).unwrap();
    acknowledged.extend(until_appended(&log, 1).await.iter().map(|offset| offset.0));

    for _ in 0..2 {
        let found = offsets_in_steps(&log).await;
        assert!(found.iter().zip(0..).all(|(found, offset)| *found == offset), "no hole");
        assert!(acknowledged.iter().all(|offset| found.contains(offset)), "all that was acknowledged is there");
    }
    log.close();
    std::fs::remove_dir_all(disk.join("log")).unwrap();
}

/// Readers far behind read files, also those that were flushed from memory; the newest come from memory.
#[tokio::test]
async fn a_reader_far_behind_gets_everything_from_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let config = || EmbeddedLogConfig { tail_bytes_max: 10_000, ..small() };
    let log = EmbeddedLog::open(folder.path(), config()).unwrap();
    // More than a memtable holds.
    for _ in 0..90 {
        append_of(&log, 4, 64 << 10).await.unwrap();
    }

    assert_eq!(offsets_in_steps(&log).await, (0..360).collect::<Vec<u64>>());
    log.close();
    let log = EmbeddedLog::open(folder.path(), config()).unwrap();
    assert_eq!(offsets_in_steps(&log).await, (0..360).collect::<Vec<u64>>());
}

async fn offsets_in_steps(log: &EmbeddedLog) -> Vec<u64> {
    let mut offsets: Vec<u64> = Vec::new();
    loop {
        let from = offsets.last().map_or(0, |last| last + 1);
        let entries = read(log, from).await.unwrap();
        if entries.is_empty() {
            return offsets;
        }
        offsets.extend(entries.iter().map(|entry| entry.offset.0));
    }
}

/// Fails a step of writing while it is told to.
#[derive(Default)]
struct Fault {
    fail_writes: AtomicBool,
    /// How many writes were made to fail.
    failed: AtomicUsize,
    fail_syncs: AtomicBool,
}

impl WriteProbe for Fault {
    fn before_write(&self) -> std::io::Result<()> {
        fail_if(&self.fail_writes).inspect_err(|_| {
            self.failed.fetch_add(1, Ordering::Relaxed);
        })
    }

    fn before_sync(&self) -> std::io::Result<()> {
        fail_if(&self.fail_syncs)
    }

    fn before_sync_of_found(&self) -> std::io::Result<()> {
        fail_if(&self.fail_syncs)
    }
}

fn fail_if(flag: &AtomicBool) -> std::io::Result<()> {
    match flag.load(Ordering::Relaxed) {
        true => Err(std::io::ErrorKind::StorageFull.into()),
        false => Ok(()),
    }
}

fn small() -> EmbeddedLogConfig {
    EmbeddedLogConfig { partitions: 2, ..EmbeddedLogConfig::default() }
}

fn movable_clock(at: i64) -> (Arc<AtomicI64>, Arc<dyn Fn() -> Time + Send + Sync>) {
    let clock = Arc::new(AtomicI64::new(at));
    let shown = clock.clone();
    (clock, Arc::new(move || Time(shown.load(Ordering::Relaxed))))
}

async fn append(log: &EmbeddedLog, count: usize) -> Result<Vec<Offset>, LogError> {
    append_of(log, count, 10).await
}

async fn append_of(log: &EmbeddedLog, count: usize, bytes: usize) -> Result<Vec<Offset>, LogError> {
    let value = Bytes::from(vec![7; bytes]);
    let append = Append { topic: Topic::Records, partition: PartitionId(0), key: Bytes::new(), value };
    log.append(&vec![append; count]).await.into_offsets()
}

fn control(key: &'static str) -> Append {
    let (key, value) = (Bytes::from_static(key.as_bytes()), Bytes::from_static(b"value"));
    Append { topic: Topic::Control, partition: PartitionId(0), key, value }
}

async fn until_appended(log: &EmbeddedLog, count: usize) -> Vec<Offset> {
    let began = Instant::now();
    loop {
        match append(log, count).await {
            Ok(offsets) => return offsets,
            Err(error) => assert!(error.is_transient() && began.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn read(log: &EmbeddedLog, from: u64) -> Result<Vec<StoredEntry>, LogError> {
    let mut reader = log.reader(Topic::Records, PartitionId(0), Offset(from)).await?;
    reader.read(ReadLimit::default(), Duration::ZERO).await
}

async fn first(log: &EmbeddedLog) -> u64 {
    log.range(Topic::Records, PartitionId(0)).await.unwrap().first.0
}

async fn eventually(promise: &str, is_so: impl AsyncFn() -> bool) {
    let began = Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < PATIENCE, "{promise}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

const PATIENCE: Duration = Duration::from_secs(20);
const RELEASE_WAIT_MAX: Duration = Duration::from_secs(1);
