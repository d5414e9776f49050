//! What a start and `wayfix repair` look at before history is opened: an index that is gone or damaged, and segments that
//! are gone or cut. Looking changes nothing.

use std::fs;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::{TrailStoreError, index, segment};

/// Why history cannot be opened, if it cannot.
pub fn find_damage(folder: &Path) -> Result<Option<String>, TrailStoreError> {
    match look(folder) {
        Ok(lost) if lost.is_empty() => Ok(None),
        Ok(lost) => {
            let reasons: Vec<String> = lost.iter().map(Lost::to_string).collect();
            Ok(Some(reasons.join("; ")))
        }
        Err(TrailStoreError::Damaged { reason }) => Ok(Some(reason)),
        Err(error) => Err(error),
    }
}

/// Goes on without what stood in segments that are gone or cut, and answers how many fixes that were; None where the
/// index itself cannot be relied on, and so nothing of history.
pub fn leave_out_lost(folder: &Path) -> Result<Option<u64>, TrailStoreError> {
    let lost = match look(folder) {
        Ok(lost) => lost,
        Err(TrailStoreError::Damaged { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let connection = connect(&folder.join(super::embedded::INDEX))?;
    let transaction = connection.unchecked_transaction()?;
    let mut fixes = 0;
    for Lost { file, length, .. } in lost {
        fixes += index::cut_file(&transaction, file, length)?;
    }
    transaction.commit()?;
    Ok(Some(fixes))
}

/// A segment that is shorter than the index says.
struct Lost {
    file: i64,
    name: String,
    length: u64,
    bytes: u64,
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} has {} bytes, the index says {}", self.name, self.length, self.bytes)
    }
}

fn look(folder: &Path) -> Result<Vec<Lost>, TrailStoreError> {
    let path = folder.join(super::embedded::INDEX);
    let connection = if path.exists() { Some(connect(&path)?) } else { None };
    let is_begun = |connection: &Connection| -> Result<bool, TrailStoreError> {
        Ok(connection.query_row("SELECT count(*) > 0 FROM sqlite_schema", [], |row| row.get(0))?)
    };
    let index = match connection {
        Some(connection) if is_begun(&connection)? => Some(connection),
        Some(_) | None => None,
    };
    let Some(connection) = index else {
        if has_segments(folder)? {
            let reason = format!("{} has segments and no index: {} is gone", folder.display(), super::embedded::INDEX);
            return Err(TrailStoreError::Damaged { reason });
        }
        return Ok(Vec::new());
    };
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Err(TrailStoreError::Damaged { reason: format!("{}: {verdict}", path.display()) });
    }
    let mut lost = Vec::new();
    for (file, bytes) in index::files(&connection)? {
        let segment = segment::path(folder, file);
        let length = match fs::metadata(&segment) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(super::writer::unavailable(error)),
        };
        if length < bytes {
            let name = segment.file_name().unwrap_or_default().to_string_lossy().into_owned();
            lost.push(Lost { file, name, length, bytes });
        }
    }
    Ok(lost)
}

fn has_segments(folder: &Path) -> Result<bool, TrailStoreError> {
    match fs::read_dir(folder) {
        Ok(entries) => {
            let is_segment = |name: &str| name.starts_with("segment-") && name.ends_with(".wfs");
            Ok(entries.filter_map(Result::ok).any(|entry| entry.file_name().to_str().is_some_and(is_segment)))
        }
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            Ok(false)
        }
        Err(error) => Err(super::writer::unavailable(error)),
    }
}

fn connect(path: &Path) -> Result<Connection, TrailStoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(connection)
}
