//! History in segment files of a day, sealed block by block under a key per driver and indexed in SQLite. Forgetting a
//! driver is forgetting his key; dropping a day is removing its file.
//!
//! What comes in is journalled with one sync for all partitions that bring something (`journal`), waits packed in memory
//! (`pending`), and is sealed into long blocks when some 32 MB of it wait, or after ten minutes (`writer`). So each fix is written about twice,
//! 25 bytes each, and a page of a trail opens one block for each thousand of its fixes.
//!
//! The folder: `index.db`, `journal-N.wfj`, `segment-N.wfs`. A start seals what a crash left in the journal. Where the
//! index lost its newest commits, whatever they named is read again from the log, because the offsets went back with them.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use async_trait::async_trait;
use daemon::Meter;
use metrics::{Counter, Gauge};
use parking_lot::Mutex;
use protocol::{Breadcrumb, DeliveryKey, DriverKey, Offset, PartitionId, Time};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

use super::home::day_of;
use super::journal::Journal;
use super::pending::Pending;
use super::reading::{self, Range};
pub use super::survey::{find_damage, leave_out_lost};
use super::takeover::Takeover;
use super::writer::{Command, Writer, unavailable};
use super::{TrailPlace, TrailQuery, TrailStore, TrailStoreError, index, journal, segment};
use crate::sqlite::{CACHE_BYTES, Guard, Sqlite, from_sqlite};

/// How history is kept.
#[derive(Clone, Debug)]
pub struct EmbeddedTrailConfig {
    pub meter: Meter,
    /// How long an append waits for others to share its sync. Nobody waits for history, and a disk is spared.
    pub linger: Duration,
    /// How many bytes of memory may wait to be sealed.
    pub pending_bytes_max: usize,
    /// How long it may wait there: memory follows the traffic, and blocks are long all the same.
    pub seal_after: Duration,
    /// For the index's pages.
    pub cache_bytes: u64,
    /// History as Wayfix kept it before it had segments: one SQLite file, which is taken over and removed.
    pub before: Option<PathBuf>,
    /// The installation that the index belongs to, and by which a start sees that it is damaged. None: it stands alone.
    pub guard: Option<Guard>,
}

impl Default for EmbeddedTrailConfig {
    fn default() -> Self {
        EmbeddedTrailConfig {
            meter: Meter::discard(),
            linger: Duration::ZERO,
            pending_bytes_max: 32 << 20,
            seal_after: Duration::from_secs(600),
            cache_bytes: CACHE_BYTES,
            before: None,
            guard: None,
        }
    }
}

pub struct EmbeddedTrailStore {
    shared: Arc<Shared>,
    commands: Option<mpsc::Sender<Command>>,
    writer: Option<JoinHandle<()>>,
    takeover: Option<Takeover>,
}

/// What the writer and the readers work on.
pub(super) struct Shared {
    pub folder: PathBuf,
    pub db: Sqlite,
    pub pending: Mutex<Pending>,
    /// Durable, in the journal or the index.
    pub offsets: Mutex<BTreeMap<PartitionId, TrailPlace>>,
    pub metrics: TrailMetrics,
}

/// What history counts.
pub(super) struct TrailMetrics {
    taken: Counter,
    repeated: Counter,
    forgotten: Counter,
    pub blocks_unreadable: Counter,
    pub blocks_unmerged: Counter,
    pub takeover_left: Gauge,
}

impl EmbeddedTrailStore {
    /// Opens or makes the folder, with nothing out of the ordinary. Blocks.
    pub fn open(folder: &Path) -> Result<Self, TrailStoreError> {
        EmbeddedTrailStore::open_with(folder, EmbeddedTrailConfig::default())
    }

    /// Opens or makes the folder, and seals what a crash has left. Blocks.
    pub fn open_with(folder: &Path, config: EmbeddedTrailConfig) -> Result<Self, TrailStoreError> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(folder).map_err(unavailable)?;
        let index = folder.join(INDEX);
        let db = match &config.guard {
            Some(guard) => Sqlite::open_guarded(&index, index::SCHEMA, Some(guard.clone()), || ())?,
            None => Sqlite::open(&index, index::SCHEMA, config.cache_bytes, || ())?,
        };
        // What is deleted is overwritten: a forgotten key must not be found in the file.
        db.write_blocking(|connection| {
            Ok::<_, TrailStoreError>(connection.pragma_update(None, "secure_delete", true)?)
        })?;
        let offsets = db.read_blocking(index::offsets)?;
        let shared = Arc::new(Shared {
            folder: folder.to_path_buf(),
            db,
            pending: Mutex::default(),
            offsets: Mutex::new(offsets),
            metrics: TrailMetrics::new(&config.meter),
        });
        let writer = recover(&shared, &config)?;
        let (commands, taken) = mpsc::channel(COMMANDS_MAX);
        let run = move || writer.run(taken);
        let thread = thread::Builder::new().name("history".to_string()).spawn(run).map_err(unavailable)?;
        let mut store = EmbeddedTrailStore { shared, commands: None, writer: Some(thread), takeover: None };
        if let Some(before) = &config.before {
            store.takeover = Takeover::begin(before, &store.shared, commands.clone())?;
        }
        store.commands = Some(commands);
        Ok(store)
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, TrailStoreError>>) -> Command,
    ) -> Result<T, TrailStoreError> {
        let (answer, answered) = oneshot::channel();
        let commands = self.commands.as_ref().expect("only dropping takes the sender away");
        commands.send(command(answer)).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }

    /// Reads once more where a segment was written anew or expired between looking it up and opening it.
    async fn read(
        &self,
        range: Range,
        waiting: impl Fn(&Pending) -> Vec<Breadcrumb>,
        sealed: impl Fn(&rusqlite::Connection, &Path, Vec<Breadcrumb>) -> Result<Vec<Breadcrumb>, TrailStoreError>
        + Clone
        + Send
        + 'static,
    ) -> Result<Vec<Breadcrumb>, TrailStoreError> {
        if range.limit == 0 {
            return Ok(Vec::new());
        }
        let mut tries = 0;
        loop {
            // First what waits: what is sealed meanwhile is then found twice, and told once.
            let waiting = waiting(&self.shared.pending.lock());
            let (sealed, folder) = (sealed.clone(), self.shared.folder.clone());
            let read = self.shared.db.read(move |connection| sealed(connection, &folder, waiting)).await;
            tries += 1;
            match read {
                Err(error) if error.is_transient() && tries < READ_TRIES => {}
                read => return read,
            }
        }
    }
}

#[async_trait]
impl TrailStore for EmbeddedTrailStore {
    async fn append(
        &self,
        partition: PartitionId,
        breadcrumbs: Vec<Breadcrumb>,
        next: TrailPlace,
    ) -> Result<(), TrailStoreError> {
        self.ask(|answer| Command::Append { partition, breadcrumbs, next, answer }).await
    }

    async fn next_offset(&self, partition: PartitionId, incarnation: u32) -> Result<Offset, TrailStoreError> {
        let place = self.shared.offsets.lock().get(&partition).copied().unwrap_or_default();
        place.within(incarnation)
    }

    async fn driver_trail(&self, key: DriverKey, query: TrailQuery) -> Result<Vec<Breadcrumb>, TrailStoreError> {
        let range = Range::of(query);
        let waiting = |pending: &Pending| reading::waiting_of_driver(pending, key, range);
        self.read(range, waiting, move |connection, folder, waiting| {
            reading::driver_trail(connection, folder, key, range, waiting)
        })
        .await
    }

    async fn delivery_trail(&self, key: DeliveryKey, query: TrailQuery) -> Result<Vec<Breadcrumb>, TrailStoreError> {
        let range = Range::of(query);
        let waiting = |pending: &Pending| reading::waiting_of_delivery(pending, key, range);
        self.read(range, waiting, move |connection, folder, waiting| {
            reading::delivery_trail(connection, folder, key, range, waiting)
        })
        .await
    }

    async fn expire(&self, before: Time) -> Result<u64, TrailStoreError> {
        self.ask(|answer| Command::Expire { first_kept: day_of(before), answer }).await
    }

    async fn forget(&self, driver: DriverKey, before: Time) -> Result<u64, TrailStoreError> {
        self.ask(|answer| Command::Forget { driver, before, answer }).await
    }
}

impl Drop for EmbeddedTrailStore {
    fn drop(&mut self) {
        drop(self.takeover.take());
        self.commands = None;
        if self.writer.take().is_some_and(|writer| writer.join().is_err()) {
            error!("the thread of history had panicked");
        }
    }
}

impl Shared {
    /// The place never goes back, whoever is late.
    pub fn advance(&self, partition: PartitionId, place: TrailPlace) {
        let mut offsets = self.offsets.lock();
        let known = offsets.entry(partition).or_default();
        *known = (*known).max(place);
    }

    pub fn remove_journals_below(&self, number: i64) {
        let old = journal::numbers(&self.folder).unwrap_or_default().into_iter().filter(|other| *other < number);
        old.for_each(|old| remove(&journal::path(&self.folder, old)));
    }

    pub fn remove_segment(&self, file: i64) {
        remove(&segment::path(&self.folder, file));
    }
}

impl TrailMetrics {
    fn new(meter: &Meter) -> TrailMetrics {
        let fixes = |outcome| {
            let help = "Fixes brought to history: taken, there already, or of a forgotten driver.";
            meter.counter("wayfix_history_fixes_total", help, &[("outcome", outcome)])
        };
        let help = "Blocks of history that could not be read when it was looked whether a fix is there already.";
        TrailMetrics {
            taken: fixes("taken"),
            repeated: fixes("repeated"),
            forgotten: fixes("forgotten"),
            blocks_unreadable: meter.counter("wayfix_history_blocks_unreadable_total", help, &[]),
            blocks_unmerged: meter.counter(
                "wayfix_history_blocks_unmerged_total",
                "Blocks of days that are over which could not be read, and stay where they are.",
                &[],
            ),
            takeover_left: meter.gauge(
                "wayfix_history_takeover_days_left",
                "Days of an earlier version's history that are still to be taken over.",
                &[],
            ),
        }
    }

    pub fn count(&self, taken: usize, repeated: usize, forgotten: usize) {
        self.taken.increment(taken as u64);
        self.repeated.increment(repeated as u64);
        self.forgotten.increment(forgotten as u64);
    }
}

/// Brings files and index together, as a crash left them, and what the journal holds into segments.
fn recover(shared: &Arc<Shared>, config: &EmbeddedTrailConfig) -> Result<Writer, TrailStoreError> {
    let number = shared.db.read_blocking(index::journal)?;
    let journals = journal::numbers(&shared.folder).map_err(unavailable)?;
    let newer: Vec<i64> = journals.iter().copied().filter(|other| *other >= number).collect();
    // The journal that the index names is made before it is named.
    let has_lost_commits = newer.first().is_some_and(|first| *first > number);
    check_segments(shared, number == 1 && newer.is_empty(), has_lost_commits)?;
    shared.remove_journals_below(number);
    if has_lost_commits {
        warn!("the index of history lost its newest entries: what they named is read again from the log");
    } else if newer.is_empty() && number > 1 {
        warn!("the journal of history is gone: what it held is read again from the log");
    }
    let next = newer.last().map_or(number, |last| last + 1);
    let journal = Journal::create(&shared.folder, next).map_err(unavailable)?;
    let mut writer = Writer::new(shared.clone(), journal, config);
    writer.forgotten = shared.db.read_blocking(index::forgotten)?;
    let mut frames = 0;
    for number in &newer {
        let replay = journal::replay(&journal::path(&shared.folder, *number)).map_err(unavailable)?;
        if replay.is_damaged {
            let bytes = replay.bytes_left;
            error!(bytes, "the journal of history is damaged: what stood there is read again from the log");
        }
        for frame in replay.frames {
            writer.take(frame.breadcrumbs)?;
            if !has_lost_commits {
                shared.advance(frame.partition, frame.next);
            }
            frames += 1;
        }
    }
    if frames > 0 {
        info!(frames, fixes = shared.pending.lock().count(), "history goes on from its journal");
    }
    writer.seal()?;
    Ok(writer)
}

/// Every segment is there, as long as the index says. What stands behind, or is not named, a crash left before it was: it
/// is in the journal or the log. After a loss of the index nothing is thrown away.
fn check_segments(shared: &Shared, is_new: bool, has_lost_commits: bool) -> Result<(), TrailStoreError> {
    let files = shared.db.read_blocking(index::files)?;
    for (file, bytes) in &files {
        let path = segment::path(&shared.folder, *file);
        let length = match fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(unavailable(error)),
        };
        if length < *bytes {
            let reason = format!("{} has {length} bytes, the index says {bytes}", path.display());
            return Err(TrailStoreError::Damaged { reason });
        }
    }
    let mut unnamed = Vec::new();
    for entry in fs::read_dir(&shared.folder).map_err(unavailable)? {
        let path = entry.map_err(unavailable)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let number = name.strip_prefix("segment-").and_then(|name| name.strip_suffix(".wfs")?.parse::<i64>().ok());
        if number.is_some_and(|number| !files.contains_key(&number)) {
            unnamed.push(path);
        }
    }
    if is_new && !unnamed.is_empty() {
        let reason = format!("{} has segments and no index: {INDEX} is gone", shared.folder.display());
        return Err(TrailStoreError::Damaged { reason });
    }
    for path in unnamed {
        if !has_lost_commits {
            remove(&path);
            continue;
        }
        warn!(path = %path.display(), "a segment that the index does not name is set aside");
        fs::rename(&path, path.with_extension("aside")).map_err(unavailable)?;
    }
    File::open(&shared.folder).and_then(|folder| folder.sync_all()).map_err(unavailable)
}

/// What is left behind is removed at the next start.
fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        warn!(%error, path = %path.display(), "a file of history could not be removed");
    }
}

fn ended() -> TrailStoreError {
    TrailStoreError::Damaged { reason: "the thread of history has ended".to_string() }
}

// Nobody but the store itself says what its rows hold.
from_sqlite!(TrailStoreError, Damaged);

pub(super) const INDEX: &str = "index.db";
/// Appends that may wait before the next caller has to wait outside.
const COMMANDS_MAX: usize = 256;
const READ_TRIES: u32 = 3;

#[cfg(test)]
mod tests;
