//! The outbox of the embedded ledger and registry: records on their way to the log, written in the transaction of what
//! they tell of. The relay takes them from here.

use protocol::{Record, RecordBatch, envelope};
use rusqlite::Connection;

use crate::ledger::{LIST_MAX, OutboxRow};
use crate::sqlite::Fault;

/// A sequence number is never given twice, even when the outbox was empty in between.
pub(crate) const TABLE: &str = "
    CREATE TABLE outbox (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        record BLOB NOT NULL
    ) STRICT;
";

pub(crate) fn insert(connection: &Connection, record: Record) -> Result<(), Fault> {
    let bytes = envelope::encode(&RecordBatch { records: vec![record] });
    connection.prepare_cached("INSERT INTO outbox (record) VALUES (?1)")?.execute([bytes])?;
    Ok(())
}

/// The oldest rows, in the order in which they were committed.
pub(crate) fn oldest(connection: &Connection, limit: u32) -> Result<Vec<OutboxRow>, Fault> {
    let mut statement = connection.prepare_cached("SELECT sequence, record FROM outbox ORDER BY sequence LIMIT ?1")?;
    let mut rows = statement.query([limit.min(LIST_MAX)])?;
    let mut oldest = Vec::new();
    while let Some(row) = rows.next()? {
        let sequence: i64 = row.get(0)?;
        let bytes: Vec<u8> = row.get(1)?;
        let batch: RecordBatch = envelope::decode(&bytes)
            .map_err(|error| Fault::Damaged(format!("row {sequence} of the outbox cannot be read: {error}")))?;
        oldest.extend(batch.records.into_iter().map(|record| OutboxRow { sequence: sequence as u64, record }));
    }
    Ok(oldest)
}

/// These rows are in the log. Others may have been committed in between, so each is named.
pub(crate) fn settle(connection: &Connection, sequences: &[u64]) -> Result<(), Fault> {
    let mut statement = connection.prepare_cached("DELETE FROM outbox WHERE sequence = ?1")?;
    for sequence in sequences {
        statement.execute([i64::try_from(*sequence).unwrap_or(i64::MAX)])?;
    }
    Ok(())
}
