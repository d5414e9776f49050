//! The one thread that writes history. It takes what several partitions bring, drops what is there already, makes the rest
//! durable in the journal with one sync, and answers; when enough waits, it seals it into segments, by day and driver.
//!
//! Most fixes are newer than all that is known of their driver, so that one look at a map says they are new; of the
//! others those blocks are opened that reach over their time, and remembered, because a replay comes in runs.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::{Breadcrumb, DeliveryKey, DriverKey, PartitionId, Time};
use tokio::sync::{mpsc, oneshot};
use tracing::error;

use super::embedded::EmbeddedTrailConfig;
use super::home::{Home, day_of};
use super::index::{self, BlockRow, Span};
use super::journal::{self, Journal};
use super::merging::Merging;
use super::pending::{Identity, Sealed, identity};
use super::reading::read_block;
use super::segment::{self, DriverSecret, Head};
use super::{Shared, TrailPlace, TrailStoreError};

pub(super) type Answer<T> = oneshot::Sender<Result<T, TrailStoreError>>;

pub(super) enum Command {
    Append { partition: PartitionId, breadcrumbs: Vec<Breadcrumb>, next: TrailPlace, answer: Answer<()> },
    Expire { first_kept: i64, answer: Answer<u64> },
    Forget { driver: DriverKey, before: Time, answer: Answer<u64> },
}

pub(super) struct Writer {
    pub shared: Arc<Shared>,
    pub journal: Journal,
    pub linger: Duration,
    pub pending_bytes_max: usize,
    pub seal_after: Duration,
    /// Since when something waits.
    waiting_since: Option<Instant>,
    /// What was received before then of these is not taken any more.
    pub forgotten: BTreeMap<DriverKey, Time>,
    /// The journal could not be written, or what waits not sealed: nothing is taken before it is.
    is_stuck: bool,
    pub is_merging: bool,
    pub merging: Option<Merging>,
    pub newest_received_day: Option<i64>,
    pub opened: Opened,
}

/// Blocks that were opened to look for repetitions.
pub(super) type Opened = HashMap<(i64, u64), Arc<HashSet<Identity>>>;

/// Blocks of one home, to be appended to its file.
#[derive(Default)]
pub(super) struct Batch {
    pub bytes: Vec<u8>,
    blocks: Vec<(Head, usize, usize)>,
}

impl Writer {
    pub fn new(shared: Arc<Shared>, journal: Journal, config: &EmbeddedTrailConfig) -> Writer {
        Writer {
            shared,
            journal,
            linger: config.linger,
            pending_bytes_max: config.pending_bytes_max,
            seal_after: config.seal_after,
            waiting_since: None,
            forgotten: BTreeMap::new(),
            is_stuck: false,
            newest_received_day: None,
            is_merging: false,
            merging: None,
            opened: HashMap::new(),
        }
    }

    /// Until the last sender is gone. What waits then is sealed, so that the next start has nothing to replay.
    pub fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut left: Option<Command> = None;
        loop {
            let next = match left.take() {
                Some(command) => Some(command),
                None if self.is_merging => match commands.try_recv() {
                    Ok(command) => Some(command),
                    Err(mpsc::error::TryRecvError::Empty) => {
                        self.merge();
                        continue;
                    }
                    Err(mpsc::error::TryRecvError::Disconnected) => None,
                },
                None => commands.blocking_recv(),
            };
            match next {
                Some(append @ Command::Append { .. }) => left = self.handle_appends(append, &mut commands),
                Some(Command::Expire { first_kept, answer }) => {
                    let outcome = self.expire(first_kept);
                    self.is_merging = outcome.is_ok();
                    let _caller_may_be_gone = answer.send(outcome);
                }
                Some(Command::Forget { driver, before, answer }) => {
                    let _caller_may_be_gone = answer.send(self.forget(driver, before));
                }
                None => break,
            }
        }
        if let Err(error) = self.seal() {
            error!(%error, "what waits in the journal of history is sealed at the next start");
        }
    }

    /// Takes all appends that come within the linger as one durable act each, with one sync; answers a command that is
    /// none.
    fn handle_appends(&mut self, first: Command, commands: &mut mpsc::Receiver<Command>) -> Option<Command> {
        std::thread::sleep(self.linger);
        let (mut frames, mut answers) = (Vec::new(), Vec::new());
        let mut next = Some(first);
        let mut left = None;
        while let Some(command) = next {
            let Command::Append { partition, breadcrumbs, next: place, answer } = command else {
                left = Some(command);
                break;
            };
            match self.take(breadcrumbs) {
                Ok(taken) => {
                    journal::put_frame(partition, place, &taken, &mut frames);
                    answers.push((partition, place, answer));
                }
                Err(error) => {
                    let _caller_may_be_gone = answer.send(Err(error));
                }
            }
            next = if frames.len() < FRAMES_BYTES_MAX { commands.try_recv().ok() } else { None };
        }
        let written = if answers.is_empty() { Ok(()) } else { self.write(&frames) };
        for (partition, place, answer) in answers {
            if written.is_ok() {
                self.shared.advance(partition, place);
            }
            let _caller_may_be_gone = answer.send(written.clone());
        }
        let waiting_since = *self.waiting_since.get_or_insert_with(Instant::now);
        let is_full = self.shared.pending.lock().bytes() > self.pending_bytes_max;
        if is_full || waiting_since.elapsed() >= self.seal_after {
            self.seal_aloud();
        }
        left
    }

    fn write(&mut self, frames: &[u8]) -> Result<(), TrailStoreError> {
        self.journal.append(frames).map_err(|error| {
            self.is_stuck = true;
            unavailable(error)
        })
    }

    /// What of these is new: from here on it waits to be sealed.
    pub fn take(&mut self, breadcrumbs: Vec<Breadcrumb>) -> Result<Vec<Breadcrumb>, TrailStoreError> {
        if self.is_stuck {
            self.seal()?;
        }
        let count = breadcrumbs.len();
        let is_forgotten = |breadcrumb: &Breadcrumb| {
            let before = self.forgotten.get(&breadcrumb.record.device.driver_key());
            before.is_some_and(|before| breadcrumb.record.received < *before)
        };
        let mut taken: Vec<Breadcrumb> = breadcrumbs.into_iter().filter(|b| !is_forgotten(b)).collect();
        let forgotten = count - taken.len();
        let sealed = self.look_up(&taken)?;
        let known = self.find_sealed(&taken, &sealed)?;
        let mut pending = self.shared.pending.lock();
        taken.retain(|breadcrumb| {
            let is_known = known.contains(&(breadcrumb.record.device.driver_key(), identity(breadcrumb)));
            if is_known || pending.contains(breadcrumb) {
                return false;
            }
            pending.push(*breadcrumb);
            true
        });
        drop(pending);
        let newest = taken.iter().map(|breadcrumb| day_of(breadcrumb.record.received)).max();
        self.newest_received_day = self.newest_received_day.max(newest);
        taken.sort_unstable_by_key(|breadcrumb| (breadcrumb.record.device.driver_key(), identity(breadcrumb)));
        self.shared.metrics.count(taken.len(), count - forgotten - taken.len(), forgotten);
        Ok(taken)
    }

    /// What the segments have of these drivers.
    fn look_up(&self, breadcrumbs: &[Breadcrumb]) -> Result<HashMap<DriverKey, Sealed>, TrailStoreError> {
        let drivers: HashSet<DriverKey> = breadcrumbs.iter().map(|b| b.record.device.driver_key()).collect();
        let mut sealed = HashMap::with_capacity(drivers.len());
        let mut unknown = Vec::new();
        let pending = self.shared.pending.lock();
        for driver in drivers {
            match pending.sealed(driver) {
                Some(known) => drop(sealed.insert(driver, known)),
                None => unknown.push(driver),
            }
        }
        drop(pending);
        if unknown.is_empty() {
            return Ok(sealed);
        }
        let found = self.shared.db.read_blocking(move |connection| {
            let look_up = |driver| Ok::<_, TrailStoreError>((driver, index::sealed(connection, driver)?));
            unknown.into_iter().map(look_up).collect::<Result<Vec<_>, _>>()
        })?;
        let mut pending = self.shared.pending.lock();
        for (driver, found) in found {
            pending.set_sealed(driver, found);
            sealed.insert(driver, found);
        }
        Ok(sealed)
    }

    /// Those of the breadcrumbs that stand in a segment.
    fn find_sealed(
        &mut self,
        breadcrumbs: &[Breadcrumb],
        sealed: &HashMap<DriverKey, Sealed>,
    ) -> Result<HashSet<(DriverKey, Identity)>, TrailStoreError> {
        let mut sought: BTreeMap<DriverKey, Vec<Identity>> = BTreeMap::new();
        for breadcrumb in breadcrumbs {
            let driver = breadcrumb.record.device.driver_key();
            let of_driver = sealed.get(&driver).copied().unwrap_or_default();
            let is_old = of_driver.newest_ds.is_some_and(|newest| breadcrumb.record.fix.measured.0 <= newest);
            if is_old || of_driver.has_strays {
                sought.entry(driver).or_default().push(identity(breadcrumb));
            }
        }
        let mut known = HashSet::new();
        if sought.is_empty() {
            return Ok(known);
        }
        let ranges: Vec<(DriverKey, i64, i64)> = sought
            .iter()
            .filter_map(|(driver, of)| Some((*driver, of.iter().map(|i| i.0).min()?, of.iter().map(|i| i.0).max()?)))
            .collect();
        let found = self.shared.db.read_blocking(move |connection| {
            let look_up = |(driver, first_ds, last_ds)| {
                let rows = index::blocks_around(connection, driver, first_ds, last_ds)?;
                Ok::<_, TrailStoreError>((driver, index::secret(connection, driver)?, rows))
            };
            ranges.into_iter().map(look_up).collect::<Result<Vec<_>, _>>()
        })?;
        for (driver, secret, rows) in found {
            let (Some(secret), Some(of_driver)) = (secret, sought.get(&driver)) else { continue };
            for row in rows {
                let reaches = |sought: &&Identity| (row.first_ds..=row.last_ds).contains(&sought.0);
                let of_block: Vec<Identity> = of_driver.iter().filter(reaches).copied().collect();
                if of_block.is_empty() {
                    continue;
                }
                let block = self.open_block(&secret, &row)?;
                known.extend(of_block.into_iter().filter(|i| block.contains(i)).map(|identity| (driver, identity)));
            }
        }
        Ok(known)
    }

    /// The identities in a block. One that cannot be read cannot say what it holds: said, counted, and what comes again
    /// is taken again.
    fn open_block(&mut self, secret: &DriverSecret, row: &BlockRow) -> Result<Arc<HashSet<Identity>>, TrailStoreError> {
        let place = (row.file, row.place);
        if let Some(known) = self.opened.get(&place) {
            return Ok(known.clone());
        }
        let breadcrumbs = match read_block(&self.shared.folder, secret, row, &mut None) {
            Ok(breadcrumbs) => breadcrumbs,
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => {
                error!(%error, file = row.file, place = row.place, "a block of history cannot be read");
                self.shared.metrics.blocks_unreadable.increment(1);
                Vec::new()
            }
        };
        let identities: Arc<HashSet<Identity>> = Arc::new(breadcrumbs.iter().map(identity).collect());
        if self.opened.len() >= OPENED_MAX {
            self.opened.clear();
        }
        self.opened.insert(place, identities.clone());
        Ok(identities)
    }

    fn seal_aloud(&mut self) {
        if let Err(error) = self.seal() {
            self.is_stuck = true;
            error!(%error, "history cannot be sealed into segments: it takes nothing more until it can");
        }
    }

    /// Everything that waits into segments; the journal begins anew.
    pub fn seal(&mut self) -> Result<(), TrailStoreError> {
        if self.shared.pending.lock().is_empty() && !self.is_stuck {
            self.waiting_since = None;
            return Ok(());
        }
        let drivers = self.shared.pending.lock().drivers();
        let (secrets, fresh) = self.secrets(drivers)?;
        let mut batches: BTreeMap<Home, Batch> = BTreeMap::new();
        let mut spans: BTreeMap<(DriverKey, DeliveryKey), Span> = BTreeMap::new();
        for (driver, secret) in &secrets {
            let days = self.shared.pending.lock().days(*driver);
            for day in days {
                let breadcrumbs = day.in_order();
                widen_spans(&mut spans, *driver, &breadcrumbs);
                batches.entry(day.home).or_default().seal(secret, day.home, &breadcrumbs)?;
            }
        }
        let homes: Vec<Home> = batches.keys().copied().collect();
        let files = self.shared.db.write_blocking(move |connection| {
            homes.into_iter().map(|home| index::open_file(connection, home)).collect::<Result<Vec<_>, _>>()
        })?;
        let placed: Vec<(i64, u64, Batch)> =
            files.into_iter().zip(batches.into_values()).map(|((file, at), batch)| (file, at, batch)).collect();
        for (file, at, batch) in &placed {
            segment::append(&segment::path(&self.shared.folder, *file), *at, &batch.bytes).map_err(unavailable)?;
        }
        let next = Journal::create(&self.shared.folder, self.journal.number + 1).map_err(unavailable)?;
        let (number, offsets) = (next.number, self.shared.offsets.lock().clone());
        self.shared.db.write_blocking(move |connection| {
            fresh.iter().try_for_each(|(driver, secret)| index::insert_secret(connection, *driver, secret))?;
            for (file, at, batch) in &placed {
                insert_blocks(connection, *file, *at, batch)?;
            }
            for ((driver, delivery), span) in spans {
                index::widen_span(connection, driver, delivery, span)?;
            }
            offsets.iter().try_for_each(|(partition, place)| index::set_offset(connection, *partition, *place))?;
            index::set_journal(connection, number)
        })?;
        self.journal = next;
        self.is_stuck = false;
        self.shared.pending.lock().clear();
        self.waiting_since = None;
        self.shared.remove_journals_below(number);
        self.is_merging = true;
        Ok(())
    }

    /// The drivers' keys, and those of them that were made just now.
    #[expect(clippy::type_complexity, reason = "two lists of the same, taken apart at once")]
    fn secrets(
        &self,
        mut drivers: Vec<DriverKey>,
    ) -> Result<(Vec<(DriverKey, DriverSecret)>, Vec<(DriverKey, DriverSecret)>), TrailStoreError> {
        drivers.sort_unstable();
        let found = self.shared.db.read_blocking(move |connection| {
            let look_up = |driver| Ok::<_, TrailStoreError>((driver, index::secret(connection, driver)?));
            drivers.into_iter().map(look_up).collect::<Result<Vec<_>, _>>()
        })?;
        let (mut secrets, mut fresh) = (Vec::with_capacity(found.len()), Vec::new());
        for (driver, secret) in found {
            let secret = match secret {
                Some(secret) => secret,
                None => {
                    let secret = DriverSecret::random()?;
                    fresh.push((driver, secret.clone()));
                    secret
                }
            };
            secrets.push((driver, secret));
        }
        Ok((secrets, fresh))
    }

    fn expire(&mut self, first_kept: i64) -> Result<u64, TrailStoreError> {
        self.seal()?;
        let mut dropped = 0;
        let mut has_dropped = false;
        // A transaction per file: readers get their turn in between.
        while let Some((file, count)) =
            self.shared.db.write_blocking(move |connection| index::take_expired(connection, first_kept))?
        {
            self.shared.remove_segment(file);
            (dropped, has_dropped) = (dropped + count, true);
        }
        if has_dropped {
            self.merging = None;
            self.opened.clear();
            self.shared.db.write_blocking(move |connection| index::tidy(connection, first_kept))?;
            self.forgotten = self.shared.db.read_blocking(index::forgotten)?;
        }
        Ok(dropped)
    }

    fn forget(&mut self, driver: DriverKey, before: Time) -> Result<u64, TrailStoreError> {
        // What waits stands readable in the journal: sealing it ends that.
        self.seal()?;
        let count = self.shared.db.write_blocking(move |connection| index::forget(connection, driver, before))?;
        self.forgotten = self.shared.db.read_blocking(index::forgotten)?;
        self.opened.clear();
        self.shared.db.empty_wal_blocking()?;
        Ok(count)
    }
}

impl Batch {
    pub fn seal(
        &mut self,
        secret: &DriverSecret,
        home: Home,
        breadcrumbs: &[Breadcrumb],
    ) -> Result<(), TrailStoreError> {
        for block in breadcrumbs.chunks(BLOCK_COUNT_MAX) {
            let begin = self.bytes.len();
            let head = segment::seal(secret, home, block, &mut self.bytes)?;
            self.blocks.push((head, begin, self.bytes.len() - begin));
        }
        Ok(())
    }
}

pub(super) fn insert_blocks(
    connection: &rusqlite::Connection,
    file: i64,
    at: u64,
    batch: &Batch,
) -> Result<(), TrailStoreError> {
    for (head, begin, bytes) in &batch.blocks {
        index::insert_block(connection, head, file, at + *begin as u64, *bytes)?;
    }
    index::set_file_bytes(connection, file, at + batch.bytes.len() as u64)
}

fn widen_spans(spans: &mut BTreeMap<(DriverKey, DeliveryKey), Span>, driver: DriverKey, breadcrumbs: &[Breadcrumb]) {
    for breadcrumb in breadcrumbs {
        let Some(delivery) = breadcrumb.delivery else { continue };
        let (measured_ds, day) = (breadcrumb.record.fix.measured.0, day_of(breadcrumb.record.received));
        let delivery = DeliveryKey { tenant: driver.tenant, delivery };
        let span = spans.entry((driver, delivery)).or_insert(Span {
            first_ds: measured_ds,
            last_ds: measured_ds,
            last_received_day: day,
        });
        span.first_ds = span.first_ds.min(measured_ds);
        span.last_ds = span.last_ds.max(measured_ds);
        span.last_received_day = span.last_received_day.max(day);
    }
}

pub(super) fn unavailable(error: std::io::Error) -> TrailStoreError {
    TrailStoreError::Unavailable { reason: error.to_string() }
}

/// What is synced together at most, but for the last append.
const FRAMES_BYTES_MAX: usize = 16 << 20;
/// A page of the API needs one or two blocks, and what a block costs beside its fixes is nothing.
const BLOCK_COUNT_MAX: usize = 1_024;
/// Blocks of 1,024 identities of 24 bytes at most: some 20 MB when a replay needs them all.
const OPENED_MAX: usize = 512;
