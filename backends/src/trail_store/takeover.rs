//! Takes over history as it was kept before there were segments: one SQLite file with a table per day. Its offsets at
//! once, so that nothing is read from the log again; its breadcrumbs behind the running store, day by day, each table
//! dropped when its breadcrumbs are durable here. So it may be interrupted at any place, and is done once.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use daemon::Backoff;
use metrics::Gauge;
use protocol::update::BreadcrumbBatch;
use protocol::{Breadcrumb, Offset, PartitionId, envelope};
use rusqlite::{Connection, OpenFlags};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

use super::writer::{Command, unavailable};
use super::{Shared, TrailPlace, TrailStoreError, index};
use crate::installation::FIRST_INCARNATION;

/// Under way, until it is done or dropped.
pub(super) struct Takeover {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Takeover {
    /// None: there is nothing to take over.
    pub fn begin(
        path: &Path,
        shared: &Arc<Shared>,
        commands: mpsc::Sender<Command>,
    ) -> Result<Option<Takeover>, TrailStoreError> {
        if !path.exists() {
            return Ok(None);
        }
        let connection = open(path)?;
        let offsets = offsets(&connection)?;
        let known = shared.offsets.lock().clone();
        shared.db.write_blocking(move |connection| {
            let fresh = offsets.iter().filter(|(partition, _)| !known.contains_key(partition));
            // What it noted is of the log as it was first made, whatever became of that since.
            let place = |offset: Offset| TrailPlace { incarnation: FIRST_INCARNATION, offset };
            fresh.into_iter().try_for_each(|(partition, next)| index::set_offset(connection, *partition, place(*next)))
        })?;
        *shared.offsets.lock() = shared.db.read_blocking(index::offsets)?;
        info!(path = %path.display(), "history of an earlier version is taken over; it is whole when this is done");
        let stop = Arc::new(AtomicBool::new(false));
        let (path, stopped) = (path.to_path_buf(), stop.clone());
        let takeover = shared.clone();
        let run = move || match take_over(connection, &path, &commands, &stopped, &takeover.metrics.takeover_left) {
            Ok(Some(count)) => info!(fixes = count, "history of an earlier version is taken over"),
            Ok(None) => info!("the rest of an earlier version's history is taken over after the next start"),
            Err(error) => error!(%error, path = %path.display(), "history of an earlier version is not taken over"),
        };
        let thread = thread::Builder::new().name("history takeover".to_string()).spawn(run).map_err(unavailable)?;
        Ok(Some(Takeover { stop, thread: Some(thread) }))
    }
}

impl Drop for Takeover {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            error!("the thread that took over history had panicked");
        }
    }
}

fn open(path: &Path) -> Result<Connection, TrailStoreError> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    let id: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    if id != APPLICATION_ID {
        return Err(TrailStoreError::Damaged { reason: format!("{} holds no history", path.display()) });
    }
    Ok(connection)
}

fn offsets(connection: &Connection) -> Result<Vec<(PartitionId, Offset)>, TrailStoreError> {
    let mut statement = connection.prepare("SELECT partition, next FROM offsets")?;
    let rows = statement.query_map([], |row| Ok((PartitionId(row.get(0)?), Offset(row.get::<_, i64>(1)? as u64))))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Answers how many breadcrumbs it read; None if it was stopped before the end.
fn take_over(
    connection: Connection,
    path: &Path,
    commands: &mpsc::Sender<Command>,
    stop: &AtomicBool,
    left: &Gauge,
) -> Result<Option<u64>, TrailStoreError> {
    let mut count = 0;
    let tables = tables(&connection)?;
    for (done, table) in tables.iter().enumerate() {
        left.set((tables.len() - done) as f64);
        let mut after: Option<Key> = None;
        loop {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let read = || piece(&connection, table, after);
            let Some(read) = patiently(stop, tables.len() - done, read)? else { return Ok(None) };
            let Some((breadcrumbs, last)) = read else { break };
            count += breadcrumbs.len() as u64;
            let append = || append(commands, PartitionId(0), breadcrumbs.clone(), TrailPlace::default());
            if patiently(stop, tables.len() - done, append)?.is_none() {
                return Ok(None);
            }
            after = Some(last);
        }
        let sql = if table == STRAYS { format!("DELETE FROM {STRAYS}") } else { format!("DROP TABLE {table}") };
        if patiently(stop, tables.len() - done, || Ok(connection.execute(&sql, [])?))?.is_none() {
            return Ok(None);
        }
    }
    left.set(0.0);
    connection.close().map_err(|(_, error)| TrailStoreError::from(error))?;
    for suffix in ["-wal", "-shm", ""] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match fs::remove_file(PathBuf::from(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(unavailable(error)),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(Some(count))
}

/// Does it again after a while, as long as what keeps it may pass, a full disk say; None if it was stopped meanwhile.
fn patiently<T>(
    stop: &AtomicBool,
    left: usize,
    mut attempt: impl FnMut() -> Result<T, TrailStoreError>,
) -> Result<Option<T>, TrailStoreError> {
    for failures in 0.. {
        match attempt() {
            Err(error) if error.is_transient() => {
                if failures % 16 == 0 {
                    warn!(%error, failures, days_left = left, "history of an earlier version waits to be taken over");
                }
            }
            outcome => return outcome.map(Some),
        }
        let until = Instant::now() + Backoff::default().delay(failures);
        while Instant::now() < until {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            thread::sleep(LOOK_EVERY.min(until.saturating_duration_since(Instant::now())));
        }
    }
    Ok(None)
}

/// The tables of days, and the strays' last.
fn tables(connection: &Connection) -> Result<Vec<String>, TrailStoreError> {
    let mut statement = connection.prepare(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name GLOB 'breadcrumbs_*'
         ORDER BY name = 'breadcrumbs_stray', name",
    )?;
    Ok(statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
}

/// A table's primary key: where a piece ended.
type Key = (u32, u32, i64, u16, i32, i32);

fn piece(
    connection: &Connection,
    table: &str,
    after: Option<Key>,
) -> Result<Option<(Vec<Breadcrumb>, Key)>, TrailStoreError> {
    let sql = format!(
        "SELECT breadcrumb, tenant, driver, measured_ds, device, lat_e7, lon_e7 FROM {table}
         WHERE (tenant, driver, measured_ds, device, lat_e7, lon_e7) > (?1, ?2, ?3, ?4, ?5, ?6)
         ORDER BY tenant, driver, measured_ds, device, lat_e7, lon_e7 LIMIT {PIECE}"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    // No tenant is below 0.
    let (tenant, driver, measured_ds, device, lat_e7, lon_e7) = match after {
        Some((tenant, driver, measured_ds, device, lat_e7, lon_e7)) => {
            (i64::from(tenant), driver, measured_ds, device, lat_e7, lon_e7)
        }
        None => (-1, 0, 0, 0, 0, 0),
    };
    let mut rows = statement.query(rusqlite::params![tenant, driver, measured_ds, device, lat_e7, lon_e7])?;
    let (mut breadcrumbs, mut last) = (Vec::new(), None);
    while let Some(row) = rows.next()? {
        last = Some((row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?, row.get(6)?));
        let bytes: Vec<u8> = row.get(0)?;
        match envelope::decode::<BreadcrumbBatch>(&bytes) {
            Ok(batch) => breadcrumbs.extend(batch.breadcrumbs),
            Err(error) => warn!(%error, table, "a breadcrumb of an earlier version cannot be read"),
        }
    }
    Ok(last.map(|last| (breadcrumbs, last)))
}

fn append(
    commands: &mpsc::Sender<Command>,
    partition: PartitionId,
    breadcrumbs: Vec<Breadcrumb>,
    next: TrailPlace,
) -> Result<(), TrailStoreError> {
    let ended = || TrailStoreError::Damaged { reason: "the thread of history has ended".to_string() };
    let (answer, answered) = oneshot::channel();
    commands.blocking_send(Command::Append { partition, breadcrumbs, next, answer }).map_err(|_| ended())?;
    answered.blocking_recv().map_err(|_| ended())?
}

/// "WFT1"
const APPLICATION_ID: i32 = 0x5746_5431;
const STRAYS: &str = "breadcrumbs_stray";
const PIECE: u32 = 4_096;
/// Whether it is to stop.
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    /// A history that a full disk keeps from taking anything, twice.
    #[test]
    fn what_may_pass_is_waited_for_and_all_days_arrive_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trail.db");
        fs::write(&path, include_bytes!("fixtures/trail_ddcf6dd.db")).unwrap();
        let (commands, mut taken) = mpsc::channel(4);
        let history = thread::spawn(move || {
            let (mut refused, mut fixes) = (0, 0);
            while let Some(command) = taken.blocking_recv() {
                let Command::Append { breadcrumbs, answer, .. } = command else { panic!("appends only") };
                let is_full = refused < 2;
                (refused, fixes) = if is_full { (refused + 1, fixes) } else { (refused, fixes + breadcrumbs.len()) };
                let full = || TrailStoreError::Unavailable { reason: "no space left".to_string() };
                answer.send(if is_full { Err(full()) } else { Ok(()) }).unwrap();
            }
            fixes
        });

        let count = take_over(open(&path).unwrap(), &path, &commands, &AtomicBool::new(false), &Gauge::noop());

        drop(commands);
        assert_eq!(count.unwrap(), Some(220));
        assert_eq!(history.join().unwrap(), 220);
        assert!(!path.exists());
    }

    #[test]
    fn it_stops_at_once_while_it_waits() {
        let stop = AtomicBool::new(true);

        let full = || -> Result<(), TrailStoreError> { Err(TrailStoreError::Unavailable { reason: "full".into() }) };

        assert_eq!(patiently(&stop, 1, full).unwrap(), None);
        assert_eq!(patiently(&stop, 1, || Ok(7)).unwrap(), Some(7));
        let damaged = || -> Result<(), TrailStoreError> { Err(TrailStoreError::Damaged { reason: "it".into() }) };
        assert!(patiently(&stop, 1, damaged).is_err());
    }
}
