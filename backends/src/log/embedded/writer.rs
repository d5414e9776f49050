//! The one writer: a thread that takes whatever appenders have queued meanwhile, writes it as one batch, syncs once, and
//! only then shows it to readers and answers the appenders. While one sync runs the next batch gathers, so that the
//! slower the disk, the larger the batches.
//!
//! Sketch: 0.8 M fixes/s in entries of about 100 are 8,000 entries and 80 MB a second; at 1–2 ms a sync that is 10–20
//! entries and 100–200 KB a batch.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use metrics::{Counter, Histogram};
use protocol::{Offset, Time};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tracing::{debug, error, info, warn};

use super::layout::{self, Slot};
use super::partition::Standing;
use super::shared::Shared;
use super::store::{Change, WriteError};
use crate::log::append::Turn;
use crate::log::{Append, LogError, StoredEntry};

/// What the writer is asked to make durable.
pub enum Request {
    Append {
        entries: Vec<(Slot, Append)>,
        /// Its appender's place in line: behind a failure it fails too.
        turn: Arc<Turn>,
        reply: oneshot::Sender<Result<Vec<Offset>, LogError>>,
    },
    /// A group's committed offset.
    Commit { key: Vec<u8>, next: Offset, reply: oneshot::Sender<Result<(), LogError>> },
    /// Retention has cut a partition.
    SetFirst { slot: Slot, key: Vec<u8>, first: Offset, reply: oneshot::Sender<Result<(), LogError>> },
}

/// A request with what it holds of the bytes that may be queued.
pub struct Queued {
    pub request: Request,
    pub bytes: usize,
    pub permit: Option<OwnedSemaphorePermit>,
}

pub struct Writer {
    shared: Arc<Shared>,
    requests: mpsc::Receiver<Queued>,
    cursors: Vec<Cursor>,
    /// Entries whose key has a newer one: removed with the next batch.
    superseded: Vec<(Slot, Offset)>,
    trouble: Trouble,
    failures: FailuresInARow,
    meters: WriterMeters,
}

/// Writes that failed since one succeeded.
#[derive(Default)]
struct FailuresInARow {
    count: u64,
    said: Option<Instant>,
}

impl FailuresInARow {
    /// Whether to say this one: an outage fills no other disk with words.
    fn is_to_be_said(&mut self) -> bool {
        self.count += 1;
        let is_due = self.said.is_none_or(|said| said.elapsed() >= SAID_EVERY);
        if is_due {
            self.said = Some(Instant::now());
        }
        is_due
    }
}

/// Where a partition goes on.
#[derive(Clone, Copy, Debug)]
pub struct Cursor {
    pub next: Offset,
    pub last: Time,
}

enum Trouble {
    None,
    /// A write failed: the store must be opened again before the next.
    Reopen {
        tried: Option<Instant>,
    },
    /// A sync failed: only a new process may go on.
    Fatal(String),
}

pub struct WriterMeters {
    pub entries: Counter,
    pub bytes: Counter,
    pub syncs: Counter,
    pub failures: Counter,
    pub write_seconds: Histogram,
}

/// A batch on its way: what to write, and what comes true when it is on disk.
#[derive(Default)]
struct Staged {
    changes: Vec<Change>,
    entries: HashMap<Slot, Vec<StoredEntry>>,
    answers: Vec<Answer>,
    commits: Vec<(Vec<u8>, Offset)>,
    firsts: Vec<(Slot, Offset)>,
    bytes: usize,
}

enum Answer {
    Offsets(Vec<Offset>, Arc<Turn>, oneshot::Sender<Result<Vec<Offset>, LogError>>),
    Done(oneshot::Sender<Result<(), LogError>>),
}

impl Writer {
    pub fn new(
        shared: Arc<Shared>,
        requests: mpsc::Receiver<Queued>,
        cursors: Vec<Cursor>,
        superseded: Vec<(Slot, Offset)>,
        meters: WriterMeters,
    ) -> Self {
        Writer {
            shared,
            requests,
            cursors,
            superseded,
            trouble: Trouble::None,
            failures: FailuresInARow::default(),
            meters,
        }
    }

    /// Runs until the last sender is gone; everything queued before is still written.
    pub fn run(mut self) {
        let mut queued = Vec::new();
        while let Some(first) = self.requests.blocking_recv() {
            let mut bytes = first.bytes;
            queued.push(first);
            while bytes < BATCH_BYTES_MAX {
                let Ok(more) = self.requests.try_recv() else {
                    break;
                };
                bytes += more.bytes;
                queued.push(more);
            }
            self.handle_batch(&mut queued);
        }
        self.shared.set_standing(Standing::Closed);
    }

    fn handle_batch(&mut self, queued: &mut Vec<Queued>) {
        if let Err(error) = self.recover() {
            queued.drain(..).for_each(|queued| queued.request.refuse(&error));
            return;
        }
        let mut cursors = self.cursors.clone();
        let now = (self.shared.now)();
        let mut staged = Staged::default();
        for (slot, offset) in &self.superseded {
            staged.changes.push(Change::Remove { slot: *slot, offset: *offset });
        }
        // The permits live until the batch is settled: what is being written counts as queued.
        let mut permits = Vec::with_capacity(queued.len());
        for Queued { request, permit, .. } in queued.drain(..) {
            permits.push(permit);
            staged.stage(request, &mut cursors, now);
        }
        let began = Instant::now();
        match self.write(std::mem::take(&mut staged.changes)) {
            Ok(()) => {
                self.meters.write_seconds.record(began.elapsed().as_secs_f64());
                self.cursors = cursors;
                self.settle(staged);
            }
            Err(error) => staged.refuse(&error),
        }
    }

    fn write(&mut self, changes: Vec<Change>) -> Result<(), LogError> {
        let Some(store) = self.shared.store() else {
            return Err(LogError::Unavailable { reason: "the store is not open".to_string() });
        };
        let outcome = store.write(changes);
        drop(store);
        let Err(error) = outcome else {
            if self.failures.count > 0 {
                info!(failed = self.failures.count, "the log takes writes again");
                self.failures = FailuresInARow::default();
            }
            return Ok(());
        };
        self.meters.failures.increment(1);
        let reason = error.to_string();
        match error {
            WriteError::Write(_) => {
                if self.failures.is_to_be_said() {
                    let failed = self.failures.count;
                    error!(
                        error = reason,
                        failed, "writes to the log fail, it is opened again and again until they do not"
                    );
                }
                // What fails once is tried again at once; what goes on failing costs the disk little.
                let tried = (self.failures.count > 1).then(Instant::now);
                self.trouble = Trouble::Reopen { tried };
                Err(LogError::Unavailable { reason })
            }
            WriteError::Removed(_) => {
                error!(error = reason, "the log is not where it was, nothing more is acknowledged");
                self.shared.set_standing(Standing::Failed);
                self.trouble = Trouble::Fatal(reason.clone());
                Err(LogError::Damaged { reason })
            }
            WriteError::Sync(_) => {
                error!(error = reason, "a sync of the log failed, this process must restart");
                self.shared.set_standing(Standing::Failed);
                self.trouble = Trouble::Fatal(reason.clone());
                Err(LogError::Damaged { reason })
            }
        }
    }

    /// Tells everybody: readers first, then those who wait for their offsets.
    fn settle(&mut self, staged: Staged) {
        self.superseded.clear();
        let mut count = 0;
        for (slot, entries) in staged.entries {
            count += entries.len() as u64;
            if self.shared.layout.at(slot).0.is_newest_per_key() {
                self.superseded.extend(self.shared.take_newest(slot, &entries));
            }
            self.shared.partitions[slot.0].publish(entries);
        }
        for (key, next) in staged.commits {
            self.shared.commits.lock().insert(key, next);
        }
        for (slot, first) in staged.firsts {
            self.shared.partitions[slot.0].set_first(first);
        }
        self.meters.syncs.increment(1);
        self.meters.entries.increment(count);
        self.meters.bytes.increment(staged.bytes as u64);
        self.shared.appended_bytes.fetch_add(staged.bytes as u64, Ordering::Relaxed);
        // Whoever has gone meanwhile does not need the answer.
        for answer in staged.answers {
            match answer {
                Answer::Offsets(offsets, turn, reply) => {
                    drop(turn);
                    drop(reply.send(Ok(offsets)));
                }
                Answer::Done(reply) => drop(reply.send(Ok(()))),
            }
        }
    }

    /// After a failed write: opens the store again, at most once in a while.
    fn recover(&mut self) -> Result<(), LogError> {
        match &mut self.trouble {
            Trouble::None => return Ok(()),
            Trouble::Fatal(reason) => return Err(LogError::Damaged { reason: reason.clone() }),
            Trouble::Reopen { tried } => {
                if tried.is_some_and(|tried| tried.elapsed() < REOPEN_EVERY) {
                    return Err(LogError::Unavailable { reason: "the store is opened again soon".to_string() });
                }
                *tried = Some(Instant::now());
            }
        }
        let opened = match self.shared.reopen() {
            Ok(opened) => opened,
            Err(error) => {
                if self.failures.is_to_be_said() {
                    warn!(%error, "the log cannot be opened again yet");
                }
                return Err(error);
            }
        };
        self.cursors = opened.cursors;
        self.superseded = opened.superseded;
        self.trouble = Trouble::None;
        debug!("the log is open again");
        Ok(())
    }
}

impl Staged {
    fn stage(&mut self, request: Request, cursors: &mut [Cursor], now: Time) {
        match request {
            Request::Append { turn, reply, .. } if turn.is_behind_failure() => {
                drop(turn);
                drop(reply.send(Err(LogError::Behind)));
            }
            Request::Append { entries, turn, reply } => {
                let mut offsets = Vec::with_capacity(entries.len());
                for (slot, append) in entries {
                    offsets.push(self.stage_entry(slot, append.key, append.value, &mut cursors[slot.0], now));
                }
                self.answers.push(Answer::Offsets(offsets, turn, reply));
            }
            Request::Commit { key, next, reply } => {
                self.changes.push(Change::Meta { key: key.clone(), value: layout::offset_key(next).to_vec() });
                self.commits.push((key, next));
                self.answers.push(Answer::Done(reply));
            }
            Request::SetFirst { slot, key, first, reply } => {
                self.changes.push(Change::Meta { key, value: layout::offset_key(first).to_vec() });
                self.firsts.push((slot, first));
                self.answers.push(Answer::Done(reply));
            }
        }
    }

    fn stage_entry(&mut self, slot: Slot, key: Bytes, value: Bytes, cursor: &mut Cursor, now: Time) -> Offset {
        let offset = cursor.next;
        cursor.next = Offset(offset.0 + 1);
        // The clock may be set back; times within a partition never go back.
        cursor.last = cursor.last.max(now);
        self.bytes += key.len() + value.len();
        self.changes.push(Change::Entry { slot, offset, bytes: layout::encode_entry(cursor.last, &key, &value) });
        let entry = StoredEntry { offset, appended: cursor.last, key, value };
        self.entries.entry(slot).or_default().push(entry);
        offset
    }

    fn refuse(self, error: &LogError) {
        for answer in self.answers {
            match answer {
                Answer::Offsets(_, turn, reply) => refuse_append(turn, reply, error),
                Answer::Done(reply) => drop(reply.send(Err(error.clone()))),
            }
        }
    }
}

impl Request {
    fn refuse(self, error: &LogError) {
        match self {
            Request::Append { turn, reply, .. } => refuse_append(turn, reply, error),
            Request::Commit { reply, .. } | Request::SetFirst { reply, .. } => drop(reply.send(Err(error.clone()))),
        }
    }
}

/// The line is told before the appender is: nothing that it begins on hearing of it can overtake.
fn refuse_append(turn: Arc<Turn>, reply: oneshot::Sender<Result<Vec<Offset>, LogError>>, error: &LogError) {
    turn.fail();
    drop(turn);
    drop(reply.send(Err(error.clone())));
}

/// Enough to make the sync's share small, little enough that a batch's own write stays below some 10 ms.
const BATCH_BYTES_MAX: usize = 8 << 20;
const REOPEN_EVERY: Duration = Duration::from_millis(500);
const SAID_EVERY: Duration = Duration::from_secs(30);
