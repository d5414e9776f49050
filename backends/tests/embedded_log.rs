//! The embedded log under the suite of all logs, with real crashes of its files; and what only it promises.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use async_trait::async_trait;
use backends::log::conformance::{self, Instance};
use backends::log::embedded::{EmbeddedLog, EmbeddedLogConfig, WriteProbe};
use backends::log::{Log, Topic};
use protocol::{Offset, PartitionId};
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
        let config = EmbeddedLogConfig { partitions, probe: Some(probe.clone()), ..EmbeddedLogConfig::default() };
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
                    while log.commit(&format!("nudge {n}"), Topic::Owners, PartitionId(0), Offset(0)).await.is_ok() {}
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
}

/// Copies the files at the worst moment.
struct CrashProbe {
    log: PathBuf,
    state: Mutex<CrashState>,
    changed: Condvar,
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
        CrashProbe { log, state: Mutex::new(CrashState::Idle), changed: Condvar::new() }
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
    if turn % 3 != 0 {
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
