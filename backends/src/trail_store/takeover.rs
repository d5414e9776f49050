//! Takes over history as it was kept before there were segments: one SQLite file with a table per day. Its offsets at
//! once, so that nothing is read from the log again; its breadcrumbs behind the running store, day by day, each table
//! dropped when its breadcrumbs are durable here. So it may be interrupted at any place, and is done once.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use protocol::update::BreadcrumbBatch;
use protocol::{Breadcrumb, Offset, PartitionId, envelope};
use rusqlite::{Connection, OpenFlags};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

use super::writer::{Command, unavailable};
use super::{Shared, TrailPlace, TrailStoreError, index};

/// Under way, until it is done or dropped.
pub(super) struct Takeover {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Takeover {
    /// None: there is nothing to take over.
    pub fn begin(
        path: &Path,
        incarnation: u32,
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
            let place = |offset: Offset| TrailPlace { incarnation, offset };
            fresh.into_iter().try_for_each(|(partition, next)| index::set_offset(connection, *partition, place(*next)))
        })?;
        *shared.offsets.lock() = shared.db.read_blocking(index::offsets)?;
        info!(path = %path.display(), "history of an earlier version is taken over; it is whole when this is done");
        let stop = Arc::new(AtomicBool::new(false));
        let (path, stopped) = (path.to_path_buf(), stop.clone());
        let run = move || match take_over(connection, &path, &commands, &stopped) {
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
) -> Result<Option<u64>, TrailStoreError> {
    let mut count = 0;
    for table in tables(&connection)? {
        let mut after: Option<Key> = None;
        loop {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let Some((breadcrumbs, last)) = piece(&connection, &table, after)? else { break };
            count += breadcrumbs.len() as u64;
            append(commands, PartitionId(0), breadcrumbs, TrailPlace::default())?;
            after = Some(last);
        }
        if table == STRAYS {
            connection.execute(&format!("DELETE FROM {STRAYS}"), [])?;
        } else {
            connection.execute(&format!("DROP TABLE {table}"), [])?;
        }
    }
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
