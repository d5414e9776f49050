//! Trails out of segments and of what waits for one: only the blocks that a page needs are opened.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::path::Path;

use protocol::{Breadcrumb, DeliveryId, DeliveryKey, DriverKey, MeasuredTime, Time};
use rusqlite::Connection;

use super::home::day_of_measured;
use super::index::{self, BlockRow};
use super::pending::{Pending, identity};
use super::segment::{self, DriverSecret};
use super::{TRAIL_MAX, TrailQuery, TrailStoreError};

/// What is asked for: measured from `from_ds` to before `until_ds`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub from_ds: i64,
    pub until_ds: i64,
    pub limit: usize,
}

impl Range {
    /// From inclusive, until exclusive, in tenths of a second: a tenth is in the range if its first millisecond is.
    pub fn of(query: TrailQuery) -> Range {
        let tenth = |time: Time| MeasuredTime::from_time(Time(time.0.saturating_add(99))).0;
        let is_empty = query.from >= query.until;
        let limit = if is_empty { 0 } else { query.limit.min(TRAIL_MAX) as usize };
        Range { from_ds: tenth(query.from), until_ds: tenth(query.until), limit }
    }

    fn narrowed(self, first_ds: i64, last_ds: i64) -> Range {
        let until_ds = self.until_ds.min(last_ds.saturating_add(1));
        Range { from_ds: self.from_ds.max(first_ds), until_ds, ..self }
    }
}

/// One driver's breadcrumbs of the range that still wait.
pub(super) fn waiting_of_driver(pending: &Pending, driver: DriverKey, range: Range) -> Vec<Breadcrumb> {
    let mut found = Vec::new();
    pending.days(driver).iter().for_each(|day| day.within(range.from_ds, range.until_ds, &mut found));
    found
}

pub(super) fn waiting_of_delivery(pending: &Pending, key: DeliveryKey, range: Range) -> Vec<Breadcrumb> {
    let drivers = pending.drivers_of(key).into_iter();
    let of_driver = |driver| waiting_of_driver(pending, DriverKey { tenant: key.tenant, driver }, range);
    let mut found: Vec<Breadcrumb> = drivers.flat_map(of_driver).collect();
    found.retain(|breadcrumb| breadcrumb.delivery == Some(key.delivery));
    found
}

/// The trail of a driver, together with what was waiting when this was asked.
pub(super) fn driver_trail(
    connection: &Connection,
    folder: &Path,
    driver: DriverKey,
    range: Range,
    waiting: Vec<Breadcrumb>,
) -> Result<Vec<Breadcrumb>, TrailStoreError> {
    let mut found = Found { all: waiting, range, delivery: None };
    sealed_of(connection, folder, driver, range, &mut found)?;
    Ok(found.page())
}

pub(super) fn delivery_trail(
    connection: &Connection,
    folder: &Path,
    key: DeliveryKey,
    range: Range,
    waiting: Vec<Breadcrumb>,
) -> Result<Vec<Breadcrumb>, TrailStoreError> {
    let mut all = waiting;
    for (driver, first_ds, last_ds) in index::spans(connection, key)? {
        let driver = DriverKey { tenant: key.tenant, driver };
        let range = range.narrowed(first_ds, last_ds);
        let mut found = Found { all: Vec::new(), range, delivery: Some(key.delivery) };
        sealed_of(connection, folder, driver, range, &mut found)?;
        all.extend(found.page());
    }
    Ok(Found { all, range, delivery: None }.page())
}

/// Adds what the segments have, day by day, until there is enough, and the strays.
fn sealed_of(
    connection: &Connection,
    folder: &Path,
    driver: DriverKey,
    range: Range,
    found: &mut Found,
) -> Result<(), TrailStoreError> {
    if range.limit == 0 || range.from_ds >= range.until_ds {
        return Ok(());
    }
    let Some(secret) = index::secret(connection, driver)? else { return Ok(()) };
    let strays = index::strays_of(connection, driver, range.from_ds, range.until_ds)?;
    let reader = BlockReader { folder, secret, last: RefCell::default() };
    let mut of_strays = Found { all: Vec::new(), ..*found };
    of_strays.read(&reader, &strays)?;
    let mut of_days = Found { all: Vec::new(), ..*found };
    let mut from_ds = range.from_ds;
    while let Some(end_ds) = index::next_end(connection, driver, from_ds)? {
        // No block reaches over the end of its day, so what begins a later day is later.
        let day = day_of_measured(end_ds);
        let (begin_ds, next_ds) = (day.saturating_mul(DAY_DS), day.saturating_add(1).saturating_mul(DAY_DS));
        if begin_ds >= range.until_ds {
            break;
        }
        let mut rows = index::blocks_of_days(connection, driver, begin_ds.max(from_ds), next_ds - 1)?;
        rows.retain(|row| row.first_ds < range.until_ds);
        of_days.read(&reader, &rows)?;
        if of_days.all.len() >= range.limit || next_ds <= from_ds {
            break;
        }
        from_ds = next_ds;
    }
    found.all.extend(of_strays.all);
    found.all.extend(of_days.all);
    Ok(())
}

/// Breadcrumbs of a range, being gathered.
struct Found {
    all: Vec<Breadcrumb>,
    range: Range,
    delivery: Option<DeliveryId>,
}

impl Found {
    /// Takes blocks in the order in which they begin, until no later one can hold anything of the page.
    fn read(&mut self, reader: &BlockReader<'_>, rows: &[BlockRow]) -> Result<(), TrailStoreError> {
        for row in rows {
            if self.all.len() >= self.range.limit {
                self.all.sort_by_key(order);
                let before = self.all.partition_point(|breadcrumb| breadcrumb.record.fix.measured.0 < row.first_ds);
                if before >= self.range.limit {
                    return Ok(());
                }
            }
            let Range { from_ds, until_ds, .. } = self.range;
            let is_wanted = |breadcrumb: &Breadcrumb| {
                (from_ds..until_ds).contains(&breadcrumb.record.fix.measured.0)
                    && (self.delivery.is_none() || breadcrumb.delivery == self.delivery)
            };
            let block = reader.read(row)?;
            self.all.extend(block.into_iter().filter(is_wanted));
        }
        Ok(())
    }

    /// In order, each once: what was sealed meanwhile is there twice.
    fn page(mut self) -> Vec<Breadcrumb> {
        self.all.sort_by_key(order);
        self.all.dedup_by_key(|breadcrumb| order(breadcrumb));
        self.all.truncate(self.range.limit);
        self.all
    }
}

fn order(breadcrumb: &Breadcrumb) -> impl Ord + use<> {
    let (measured_ds, _, position) = identity(breadcrumb);
    (measured_ds, breadcrumb.record.device, position)
}

struct BlockReader<'a> {
    folder: &'a Path,
    secret: DriverSecret,
    last: RefCell<Option<(i64, std::fs::File)>>,
}

impl BlockReader<'_> {
    fn read(&self, row: &BlockRow) -> Result<Vec<Breadcrumb>, TrailStoreError> {
        read_block(self.folder, &self.secret, row, &mut self.last.borrow_mut())
    }
}

/// A block's breadcrumbs. A file that is not there any more was written anew or has expired since it was looked up:
/// asking again helps.
pub(super) fn read_block(
    folder: &Path,
    secret: &DriverSecret,
    row: &BlockRow,
    last: &mut Option<(i64, std::fs::File)>,
) -> Result<Vec<Breadcrumb>, TrailStoreError> {
    let unavailable = |error: std::io::Error| {
        if error.kind() == ErrorKind::UnexpectedEof {
            return TrailStoreError::Damaged { reason: "a segment of history is cut".to_string() };
        }
        TrailStoreError::Unavailable { reason: error.to_string() }
    };
    if last.as_ref().is_none_or(|(file, _)| *file != row.file) {
        *last = Some((row.file, std::fs::File::open(segment::path(folder, row.file)).map_err(unavailable)?));
    }
    let Some((_, file)) = last else { return Ok(Vec::new()) };
    let bytes = segment::read(file, row.place, row.bytes).map_err(unavailable)?;
    Ok(segment::open(secret, &bytes)?.1)
}

const DAY_DS: i64 = 864_000;
