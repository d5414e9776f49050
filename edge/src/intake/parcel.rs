//! What a thread gathers between two shipments: the records, which go to the shipper, and the receipts, which stay and
//! say who must be told once those records are durable. Both are used again and again, so that a datagram in steady
//! state costs no allocation.

use protocol::Time;
use protocol::datagram::ranges::{NumberRanges, NumberRun};
use protocol::envelope::EncodedRecords;
use protocol::session::{AnswerTo, SessionRef};

/// Records on their way from one thread to the shipper.
#[derive(Debug)]
pub struct Parcel {
    pub thread: usize,
    /// Of this thread, rising by one.
    pub sequence: u64,
    /// All that this thread received before is in this parcel or in one before it.
    pub received_before: Time,
    /// How often the clock that said so was set before.
    pub steps: u32,
    /// By partition.
    pub partitions: Vec<EncodedRecords>,
}

impl Parcel {
    pub(super) fn new(thread: usize, partition_count: u32) -> Self {
        let partitions = vec![EncodedRecords::default(); partition_count as usize];
        Parcel { thread, sequence: 0, received_before: Time(i64::MIN), steps: 0, partitions }
    }

    pub fn is_empty(&self) -> bool {
        self.partitions.iter().all(EncodedRecords::is_empty)
    }

    pub fn len_bytes(&self) -> usize {
        self.partitions.iter().map(EncodedRecords::len_bytes).sum()
    }

    pub fn record_count(&self) -> u64 {
        self.partitions.iter().map(EncodedRecords::count).sum()
    }

    /// Forgets the records and keeps the memory.
    pub fn clear(&mut self) {
        self.partitions.iter_mut().for_each(EncodedRecords::clear);
    }
}

/// What became of a parcel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ParcelOutcome {
    /// In the log, for good.
    Durable,
    /// Given up: whoever still holds those fixes must send them again.
    Lost,
}

/// Who must be told about one parcel. `A` says where an answer goes; nothing here looks into it.
#[derive(Debug)]
pub struct Receipts<A> {
    pub(super) sequence: u64,
    /// When the first of them came.
    pub since: Time,
    /// Numbers that no answer of their own will name: the session's next ack does.
    pub runs: Vec<(SessionRef, NumberRun)>,
    /// Datagrams that want an answer, in order of arrival.
    pub answers: Vec<Waiting<A>>,
    /// Requests of doors without datagrams.
    pub submissions: Vec<A>,
}

/// A datagram whose answer waits for its records.
#[derive(Clone, Debug)]
pub struct Waiting<A> {
    pub to: AnswerTo,
    pub ranges: NumberRanges,
    pub received: Time,
    pub reply: A,
}

impl<A> Default for Receipts<A> {
    fn default() -> Self {
        Receipts { sequence: 0, since: Time(i64::MIN), runs: Vec::new(), answers: Vec::new(), submissions: Vec::new() }
    }
}

impl<A> Receipts<A> {
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.answers.is_empty() && self.submissions.is_empty()
    }

    /// The clock was set.
    pub(super) fn handle_step(&mut self, by_ms: i64) {
        self.since.0 = self.since.0.saturating_add(by_ms);
        for waiting in &mut self.answers {
            waiting.received.0 = waiting.received.0.saturating_add(by_ms);
        }
    }

    pub(super) fn clear(&mut self) {
        self.runs.clear();
        self.answers.clear();
        self.submissions.clear();
    }
}
