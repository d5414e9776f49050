//! Days that are over: a city's evening leaves many short blocks of each driver, sealed whenever memory was full. When a
//! day is over its blocks are written anew as few long ones, some drivers at a time, while the writer has nothing else to
//! do. A crash in the middle leaves each block in one of two files, both of which the index names.

use std::fs;

use protocol::DriverKey;
use tracing::error;

use super::home::Home;
use super::index::{self, BlockRow};
use super::pending::identity;
use super::reading::read_block;
use super::segment::{self, DriverSecret};
use super::writer::{Batch, Writer, insert_blocks, unavailable};
use super::{Shared, TrailStoreError};

/// A file whose blocks are being written anew.
#[derive(Clone, Copy)]
pub(super) struct Merging {
    source: i64,
    target: i64,
    bytes: u64,
    /// The last driver whose blocks were.
    after: Option<DriverKey>,
}

impl Writer {
    /// A step of writing short blocks of days that are over anew as long ones.
    pub fn merge(&mut self) {
        match self.merge_step() {
            Ok(has_more) => self.is_merging = has_more,
            Err(error) => {
                error!(%error, "blocks of history could not be made longer");
                self.is_merging = false;
            }
        }
    }

    fn merge_step(&mut self) -> Result<bool, TrailStoreError> {
        let Some(merging) = self.next_merge()? else { return Ok(false) };
        let Merging { source, target, bytes, after } = merging;
        let drivers = self
            .shared
            .db
            .read_blocking(move |connection| index::drivers_in(connection, source, after, MERGED_AT_ONCE))?;
        let Some(last_driver) = drivers.last().copied() else {
            self.end_merge(source)?;
            return Ok(true);
        };
        let found = self.shared.db.read_blocking(move |connection| {
            let look_up = |driver| {
                let rows = index::blocks_in(connection, source, driver)?;
                Ok::<_, TrailStoreError>((driver, index::secret(connection, driver)?, rows))
            };
            drivers.into_iter().map(look_up).collect::<Result<Vec<_>, _>>()
        })?;
        let (mut batch, mut last, mut done) = (Batch::default(), None, Vec::new());
        for (driver, secret, rows) in found {
            let Some(secret) = secret else {
                done.extend(rows.into_iter().map(|row| (driver, row)));
                continue;
            };
            let merged = batch.merge(&self.shared, &secret, rows, &mut last)?;
            done.extend(merged.into_iter().map(|row| (driver, row)));
        }
        segment::append(&segment::path(&self.shared.folder, target), bytes, &batch.bytes).map_err(unavailable)?;
        let written = batch.bytes.len() as u64;
        self.shared.db.write_blocking(move |connection| {
            done.iter().try_for_each(|(driver, row)| index::delete_block(connection, *driver, row))?;
            insert_blocks(connection, target, bytes, &batch)
        })?;
        self.merging = Some(Merging { bytes: bytes + written, after: Some(last_driver), ..merging });
        Ok(true)
    }

    /// What could not be read stays where it is, in a file that is not looked at again.
    fn end_merge(&mut self, source: i64) -> Result<(), TrailStoreError> {
        let is_empty = self.shared.db.write_blocking(move |connection| {
            let is_empty = index::drivers_in(connection, source, None, 1)?.is_empty();
            let end = if is_empty { index::delete_file } else { index::set_merged };
            end(connection, source)?;
            Ok::<_, TrailStoreError>(is_empty)
        })?;
        self.merging = None;
        if is_empty {
            self.shared.remove_segment(source);
            self.opened.clear();
        }
        Ok(())
    }

    /// The file at work, or the next one that is worth it. A day is over when a later one than the next has begun. The
    /// file at work is kept over a step that fails.
    fn next_merge(&mut self) -> Result<Option<Merging>, TrailStoreError> {
        if let Some(merging) = self.merging {
            return Ok(Some(merging));
        }
        let Some(newest) = self.newest_received_day else { return Ok(None) };
        self.merging = self.shared.db.write_blocking(move |connection| {
            while let Some((source, home)) = index::unmerged(connection, newest - 1)? {
                if index::is_worth_merging(connection, source, MERGED_BELOW)? {
                    let target = index::merge_target(connection, home)?;
                    return Ok::<_, TrailStoreError>(Some(Merging { source, target, bytes: 0, after: None }));
                }
                index::set_merged(connection, source)?;
            }
            Ok(None)
        })?;
        Ok(self.merging)
    }
}

impl Batch {
    /// One driver's blocks of a file as few long ones. Answers those that are in them: one that cannot be read, for
    /// whatever reason, is said and counted, and keeps no other from being taken.
    fn merge(
        &mut self,
        shared: &Shared,
        secret: &DriverSecret,
        rows: Vec<BlockRow>,
        last: &mut Option<(i64, fs::File)>,
    ) -> Result<Vec<BlockRow>, TrailStoreError> {
        let (mut all, mut merged) = (Vec::new(), Vec::with_capacity(rows.len()));
        for row in rows {
            match read_block(&shared.folder, secret, &row, last) {
                Ok(breadcrumbs) => {
                    all.extend(breadcrumbs);
                    merged.push(row);
                }
                Err(error) => {
                    error!(%error, file = row.file, place = row.place, "a block of history cannot be made longer");
                    shared.metrics.blocks_unmerged.increment(1);
                }
            }
        }
        all.sort_by_key(identity);
        if let Some(first) = all.first() {
            self.seal(secret, Home::of(first), &all)?;
        }
        Ok(merged)
    }
}

/// A file whose blocks are shorter on average, in breadcrumbs, is written anew when its day is over.
const MERGED_BELOW: u32 = 256;
/// Drivers per step: appends get their turn in between.
const MERGED_AT_ONCE: u32 = 64;
