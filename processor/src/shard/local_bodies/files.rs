//! The local files of maps and tables: written whole or not at all, and removed when no state or kept snapshot names
//! them, except for the last few that were used.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use protocol::PartitionId;
use protocol::record::BlobHash;
use tracing::warn;

pub(super) struct BodyFiles {
    folder: PathBuf,
    needed: Mutex<Needed>,
}

/// Which files are still needed.
#[derive(Default)]
struct Needed {
    /// What the newest states of each partition name, the newest last.
    named: BTreeMap<PartitionId, VecDeque<Vec<BlobHash>>>,
    /// The ones used last, the newest last.
    recent: VecDeque<BlobHash>,
}

impl BodyFiles {
    pub(super) fn new(folder: PathBuf) -> BodyFiles {
        BodyFiles { folder, needed: Mutex::default() }
    }

    pub(super) fn map(&self, hash: BlobHash) -> PathBuf {
        self.folder.join(format!("{hash}.{MAP}"))
    }

    pub(super) fn table(&self, hash: BlobHash) -> PathBuf {
        self.folder.join(format!("{hash}.{TABLE}"))
    }

    /// Writes a file. What a failed write leaves behind is removed at once: a full disk must not fill up with it.
    pub(super) async fn keep(&self, path: PathBuf, body: Bytes) -> std::io::Result<()> {
        let folder = self.folder.clone();
        let keeping = tokio::task::spawn_blocking(move || {
            std::fs::create_dir_all(&folder)?;
            let unfinished = path.with_extension(format!("{:016x}.{UNFINISHED}", rand::random::<u64>()));
            let written = std::fs::write(&unfinished, &body).and_then(|()| std::fs::rename(&unfinished, &path));
            if written.is_err() {
                let _ = std::fs::remove_file(&unfinished); // the error that matters is the first
            }
            written
        });
        keeping.await.map_err(std::io::Error::other)?
    }

    pub(super) fn handle_used(&self, hash: BlobHash) {
        let mut needed = self.lock();
        needed.recent.retain(|other| *other != hash);
        needed.recent.push_back(hash);
        if needed.recent.len() > FILES_RECENT {
            needed.recent.pop_front();
        }
    }

    /// A state of the partition that names these bodies was kept.
    pub(super) async fn handle_named(&self, partition: PartitionId, bodies: Vec<BlobHash>) {
        let needed: BTreeSet<BlobHash> = {
            let mut needed = self.lock();
            let named = needed.named.entry(partition).or_default();
            named.push_back(bodies);
            if named.len() > STATES_NAMED {
                named.pop_front();
            }
            let of_states = needed.named.values().flatten().flatten();
            of_states.chain(&needed.recent).copied().collect()
        };
        let folder = self.folder.clone();
        let swept = tokio::task::spawn_blocking(move || sweep(&folder, &needed)).await;
        if let Ok(Err(error)) = swept {
            warn!(%error, "old bodies could not be removed from disk");
        }
    }

    pub(super) fn handle_partition_lost(&self, partition: PartitionId) {
        self.lock().named.remove(&partition);
    }

    fn lock(&self) -> MutexGuard<'_, Needed> {
        self.needed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes our files that are not needed, and what a crash left unfinished an hour ago. A file that is gone already was
/// removed by another partition's sweep.
fn sweep(folder: &Path, needed: &BTreeSet<BlobHash>) -> std::io::Result<()> {
    let needed: BTreeSet<String> = needed.iter().map(BlobHash::to_string).collect();
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let is_over = match path.extension().and_then(|extension| extension.to_str()) {
            Some(MAP | TABLE) => !needed.contains(stem),
            Some(UNFINISHED) => path.metadata().and_then(|file| file.modified()).is_ok_and(|modified| {
                let age = modified.elapsed().unwrap_or_default();
                age > UNFINISHED_AGE
            }),
            Some(_) | None => false,
        };
        let removed = if is_over { std::fs::remove_file(&path) } else { Ok(()) };
        match removed {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            removed => removed?,
        }
    }
    Ok(())
}

const MAP: &str = "wfm";
pub(super) const TABLE: &str = "table";
const UNFINISHED: &str = "unfinished";
const UNFINISHED_AGE: Duration = Duration::from_secs(3_600);
/// The present state, and the newest two snapshots.
pub(super) const STATES_NAMED: usize = 3;
pub(super) const FILES_RECENT: usize = 16;
