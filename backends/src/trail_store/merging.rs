//! Days that are over: a city's evening leaves many short blocks of each driver, sealed whenever memory was full. When a
//! day is over its blocks are written anew as few long ones, some drivers at a time, while the writer has nothing else to
//! do. A crash in the middle leaves each block in one of two files, both of which the index names.

use std::fs;

use tracing::error;

use super::home::Home;
use super::index::{self, BlockRow};
use super::pending::identity;
use super::reading::read_block;
use super::segment::{self, DriverSecret};
use super::writer::{Batch, Writer, insert_blocks, unavailable};
use super::{Shared, TrailStoreError};

/// A file whose blocks are being written anew.
pub(super) struct Merging {
    source: i64,
    target: i64,
    bytes: u64,
}

impl Writer {
    /// A step of writing short blocks of days that are over anew as long ones.
    pub fn merge(&mut self) {
        match self.merge_step() {
            Ok(has_more) => self.is_merging = has_more,
            Err(error) => {
                error!(%error, "blocks of history could not be made longer");
                (self.is_merging, self.merging) = (false, None);
            }
        }
    }

    fn merge_step(&mut self) -> Result<bool, TrailStoreError> {
        let Some(merging) = self.next_merge()? else { return Ok(false) };
        let source = merging.source;
        let drivers =
            self.shared.db.read_blocking(move |connection| index::drivers_in(connection, source, MERGED_AT_ONCE))?;
        if drivers.is_empty() {
            self.shared.db.write_blocking(move |connection| index::delete_file(connection, source))?;
            self.shared.remove_segment(source);
            self.opened.clear();
            return Ok(true);
        }
        let list = drivers.clone();
        let found = self.shared.db.read_blocking(move |connection| {
            let look_up = |driver| {
                let rows = index::blocks_in(connection, source, driver)?;
                Ok::<_, TrailStoreError>((index::secret(connection, driver)?, rows))
            };
            list.into_iter().map(look_up).collect::<Result<Vec<_>, _>>()
        })?;
        let (mut batch, mut last) = (Batch::default(), None);
        for (secret, rows) in found {
            let Some(secret) = secret else { continue };
            batch.merge(&self.shared, &secret, &rows, &mut last)?;
        }
        let Merging { target, bytes, .. } = merging;
        segment::append(&segment::path(&self.shared.folder, target), bytes, &batch.bytes).map_err(unavailable)?;
        let written = batch.bytes.len() as u64;
        self.shared.db.write_blocking(move |connection| {
            drivers.iter().try_for_each(|driver| index::delete_blocks(connection, source, *driver))?;
            insert_blocks(connection, target, bytes, &batch)
        })?;
        self.merging = Some(Merging { source, target, bytes: bytes + written });
        Ok(true)
    }

    /// The file at work, or the next one that is worth it. A day is over when a later one than the next has begun.
    fn next_merge(&mut self) -> Result<Option<Merging>, TrailStoreError> {
        if let Some(merging) = self.merging.take() {
            return Ok(Some(merging));
        }
        let Some(newest) = self.newest_received_day else { return Ok(None) };
        self.shared.db.write_blocking(move |connection| {
            while let Some((source, home)) = index::unmerged(connection, newest - 1)? {
                if index::is_worth_merging(connection, source, MERGED_BELOW)? {
                    let target = index::insert_file(connection, home, true)?;
                    return Ok(Some(Merging { source, target, bytes: 0 }));
                }
                index::set_merged(connection, source)?;
            }
            Ok(None)
        })
    }
}

impl Batch {
    /// One driver's blocks of a file as few long ones.
    fn merge(
        &mut self,
        shared: &Shared,
        secret: &DriverSecret,
        rows: &[BlockRow],
        last: &mut Option<(i64, fs::File)>,
    ) -> Result<(), TrailStoreError> {
        let mut all = Vec::new();
        for row in rows {
            all.extend(read_block(&shared.folder, secret, row, last)?);
        }
        all.sort_by_key(identity);
        let Some(first) = all.first() else { return Ok(()) };
        self.seal(secret, Home::of(first), &all)
    }
}

/// A file whose blocks are shorter on average, in breadcrumbs, is written anew when its day is over.
const MERGED_BELOW: u32 = 256;
/// Drivers per step: appends get their turn in between.
const MERGED_AT_ONCE: u32 = 64;
