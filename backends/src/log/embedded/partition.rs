//! What readers see of one partition: which offsets there are, as far as they are durable, and the newest entries in
//! memory, so that those who keep up never touch the files.
//!
//! **Invariant:** an entry is in the tail before the span that contains it is published, and on disk before both.

use std::collections::VecDeque;

use parking_lot::Mutex;
use protocol::{Offset, Time};
use tokio::sync::watch;

use crate::log::{ReadLimit, StoredEntry};

/// How the log stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    Open,
    Closed,
    /// A sync failed: what is on disk is not known any more.
    Failed,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    pub first: Offset,
    pub next: Offset,
    pub standing: Standing,
}

pub struct Partition {
    span: watch::Sender<Span>,
    tail: Mutex<Tail>,
}

impl Partition {
    pub fn new(first: Offset, next: Offset, tail_bytes_max: usize) -> Self {
        let span = Span { first, next, standing: Standing::Open };
        Partition { span: watch::Sender::new(span), tail: Mutex::new(Tail::new(next, tail_bytes_max)) }
    }

    pub fn span(&self) -> Span {
        *self.span.borrow()
    }

    pub fn subscribe(&self) -> watch::Receiver<Span> {
        self.span.subscribe()
    }

    /// These entries follow what there is, and are durable.
    pub fn publish(&self, entries: Vec<StoredEntry>) {
        let Some(last) = entries.last() else {
            return;
        };
        let next = Offset(last.offset.0 + 1);
        self.tail.lock().extend(entries);
        self.span.send_modify(|span| span.next = next);
    }

    /// Called in even steps: lets go of what memory has held for so many of them. Readers that keep up have long had it.
    pub fn handle_step(&self) {
        self.tail.lock().handle_step();
    }

    /// The store was opened again and holds this much.
    pub fn reset(&self, first: Offset, next: Offset) {
        self.tail.lock().restart(next);
        self.span.send_modify(|span| (span.first, span.next) = (first, next));
    }

    pub fn set_first(&self, first: Offset) {
        self.span.send_modify(|span| span.first = first.max(span.first));
    }

    pub fn set_standing(&self, standing: Standing) {
        self.span.send_modify(|span| {
            if span.standing == Standing::Open {
                span.standing = standing;
            }
        });
    }

    /// From memory; None if `from` is older than what memory holds.
    pub fn read_tail(&self, from: Offset, limit: ReadLimit) -> Option<Vec<StoredEntry>> {
        self.tail.lock().read(from, limit)
    }

    /// The first entry appended at or after `at`, if memory can tell.
    pub fn offset_at(&self, at: Time) -> Option<Offset> {
        self.tail.lock().offset_at(at)
    }
}

/// The newest entries, oldest first, up to so many bytes and steps old: partitions that are quiet take next to no memory.
struct Tail {
    entries: VecDeque<StoredEntry>,
    /// From here on nothing is missing.
    whole_from: Offset,
    bytes: usize,
    bytes_max: usize,
    /// Where the partition ended at the newest steps, the oldest first.
    steps: VecDeque<Offset>,
}

impl Tail {
    fn new(next: Offset, bytes_max: usize) -> Self {
        Tail { entries: VecDeque::new(), whole_from: next, bytes: 0, bytes_max, steps: VecDeque::new() }
    }

    fn handle_step(&mut self) {
        let next = self.entries.back().map_or(self.whole_from, |entry| Offset(entry.offset.0 + 1));
        self.steps.push_back(next);
        if self.steps.len() <= STEPS_MAX {
            return;
        }
        let Some(before) = self.steps.pop_front() else { return };
        while self.entries.front().is_some_and(|entry| entry.offset < before) {
            self.let_go();
        }
        if self.entries.capacity() > ENTRIES_SPARE_MAX && self.entries.len() < self.entries.capacity() / 4 {
            self.entries.shrink_to(self.entries.len() * 2);
        }
    }

    fn let_go(&mut self) {
        let Some(oldest) = self.entries.pop_front() else { return };
        self.bytes -= weight(&oldest);
        self.whole_from = Offset(oldest.offset.0 + 1);
    }

    fn restart(&mut self, next: Offset) {
        *self = Tail::new(next, self.bytes_max);
    }

    fn extend(&mut self, entries: Vec<StoredEntry>) {
        for entry in entries {
            self.bytes += weight(&entry);
            self.entries.push_back(entry);
        }
        while self.bytes > self.bytes_max && !self.entries.is_empty() {
            self.let_go();
        }
    }

    fn read(&self, from: Offset, limit: ReadLimit) -> Option<Vec<StoredEntry>> {
        if from < self.whole_from {
            return None;
        }
        let begin = self.entries.partition_point(|entry| entry.offset < from);
        let mut bytes = 0;
        let mut taken = Vec::new();
        for entry in self.entries.range(begin..).take(limit.entries_max.max(1)) {
            bytes += entry.key.len() + entry.value.len();
            if bytes > limit.bytes_max && !taken.is_empty() {
                break;
            }
            taken.push(entry.clone());
        }
        Some(taken)
    }

    fn offset_at(&self, at: Time) -> Option<Offset> {
        let begin = self.entries.partition_point(|entry| entry.appended < at);
        // The first in memory may not be the first that fits.
        if begin == 0 {
            return None;
        }
        let next = self.entries.back().map(|entry| Offset(entry.offset.0 + 1));
        self.entries.get(begin).map(|entry| entry.offset).or(next)
    }
}

fn weight(entry: &StoredEntry) -> usize {
    entry.key.len() + entry.value.len() + std::mem::size_of::<StoredEntry>()
}

/// So many steps of a second each, far more than a reader that keeps up is behind.
const STEPS_MAX: usize = 5;
const ENTRIES_SPARE_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn the_tail_keeps_the_newest_and_says_what_it_does_not_hold() {
        let partition = Partition::new(Offset(0), Offset(10), 3 * weight(&entry(0)));

        partition.publish((10..15).map(entry).collect());

        assert_eq!(partition.span().next, Offset(15));
        assert_eq!(partition.read_tail(Offset(11), ReadLimit::default()), None);
        let offsets: Vec<u64> =
            partition.read_tail(Offset(12), ReadLimit::default()).unwrap().iter().map(|entry| entry.offset.0).collect();
        assert_eq!(offsets, [12, 13, 14]);
        assert_eq!(partition.read_tail(Offset(15), ReadLimit::default()).unwrap(), []);
    }

    #[test]
    fn memory_lets_go_of_what_is_old_and_says_that_it_does_not_hold_it() {
        let partition = Partition::new(Offset(0), Offset(0), 1 << 20);
        partition.publish((0..1_000).map(entry).collect());
        partition.handle_step();
        partition.publish((1_000..1_003).map(entry).collect());

        (0..STEPS_MAX).for_each(|_| partition.handle_step());

        assert_eq!(partition.read_tail(Offset(999), ReadLimit::default()), None);
        assert_eq!(partition.read_tail(Offset(1_000), ReadLimit::default()).map(|entries| entries.len()), Some(3));
        assert!(partition.tail.lock().entries.capacity() <= ENTRIES_SPARE_MAX, "the room of a burst is given back");

        (0..STEPS_MAX).for_each(|_| partition.handle_step());

        assert_eq!(partition.tail.lock().bytes, 0);
        assert_eq!(partition.read_tail(Offset(1_003), ReadLimit::default()), Some(Vec::new()));
        assert_eq!(partition.offset_at(Time(0)), None);
    }

    #[test]
    fn a_read_answers_one_entry_at_least_and_its_limit_at_most() {
        let partition = Partition::new(Offset(0), Offset(0), 1 << 20);
        partition.publish((0..5).map(entry).collect());

        let of_bytes = |bytes_max| partition.read_tail(Offset(1), ReadLimit { entries_max: 9, bytes_max }).unwrap();
        let of_entries =
            |entries_max| partition.read_tail(Offset(1), ReadLimit { entries_max, bytes_max: 99 }).unwrap();

        assert_eq!(of_bytes(0).len(), 1);
        assert_eq!(of_bytes(2 * 4).len(), 2);
        assert_eq!(of_entries(0).len(), 1);
        assert_eq!(of_entries(3).len(), 3);
    }

    #[test]
    fn memory_answers_by_time_only_what_it_can_know() {
        let partition = Partition::new(Offset(0), Offset(10), 1 << 20);
        partition.publish((10..15).map(entry).collect());

        assert_eq!(partition.offset_at(Time(100)), None);
        assert_eq!(partition.offset_at(Time(101)), Some(Offset(11)));
        assert_eq!(partition.offset_at(Time(1000)), Some(Offset(15)));
    }

    fn entry(offset: u64) -> StoredEntry {
        let appended = Time(offset as i64 * 10);
        StoredEntry { offset: Offset(offset), appended, key: Bytes::new(), value: Bytes::from_static(b"four") }
    }
}
