//! The pure heart of the edge: judges fixes, turns them into records, gathers the records by partition and remembers
//! whom to answer once they are durable. One per UDP thread, which owns it alone.
//!
//! Sketch: 500,000 fixes/s are 36 MB/s of records and 2 µs of one core each. So a record is written once, as the bytes
//! it will have in the log, and nothing on a datagram's way allocates, locks or reads a clock.
//!
//! **Invariant:** a number is handed out as durable only after the log has said so of the parcel that carries it.
//! **Invariant:** at most `parcels_max` parcels are under way; beyond that the open one fills up and then new
//! datagrams are shed, said aloud. Nothing grows.

pub mod judge;
pub mod linger;
pub mod marks;
pub mod parcel;

use std::collections::VecDeque;
use std::time::Duration;

use protocol::datagram::ranges::NumberRanges;
use protocol::envelope::EncodedRecords;
use protocol::record::Door;
use protocol::session::{Opened, OpenedDatagram};
use protocol::{
    DeviceKey, EdgeId, Fix, FixNumber, FixRecord, HeardRecord, Record, RejectReason, Time, TrackerKey, Verdict,
    partition_of,
};

use judge::{JudgeLimits, judge};
use linger::{Linger, LingerRule};
pub use parcel::{Parcel, ParcelOutcome, Receipts, Waiting};

/// What one thread's intake is made with.
#[derive(Clone, Copy, Debug)]
pub struct IntakeConfig {
    pub edge: EdgeId,
    pub thread: usize,
    pub partition_count: u32,
    pub judge: JudgeLimits,
    pub linger: LingerRule,
    /// A parcel this large goes out at once, or, while none is free to take its place, takes no more.
    pub parcel_bytes_max: usize,
    /// How many may be under way to the shipper.
    pub parcels_max: usize,
    /// How many runs of numbers to remember until they are durable; beyond that the oldest are forgotten, which costs
    /// a repetition by the phone and no fix.
    pub runs_max: usize,
}

/// What became of a datagram that was opened.
#[derive(Debug, PartialEq, Eq)]
pub enum DatagramTaken<A> {
    /// An answer goes out once its records are durable, or after a second.
    AnswerFollows,
    /// It wants no answer.
    NoAnswer(A),
    /// There is no room: nothing of it was taken.
    Full(A),
}

/// There is no room for a submission: nothing of it was taken.
#[derive(Debug, PartialEq, Eq)]
pub struct IntakeFull;

/// One fix of a submission that was judged bad. It is recorded all the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RejectedFix {
    pub index: usize,
    pub reason: RejectReason,
}

/// What was taken since it was last asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct IntakeCounts {
    pub fixes_accepted: u64,
    /// In the order of `RejectReason::ALL`.
    pub fixes_rejected: [u64; RejectReason::ALL.len()],
    pub pings: u64,
    pub runs_forgotten: u64,
}

/// One thread's intake.
#[derive(Debug)]
pub struct Intake<A> {
    config: IntakeConfig,
    linger: Linger,
    now: Time,
    /// Of `config`, wider while a step of the clock is not a day ago.
    judge: JudgeLimits,
    /// Being filled, with when its first record came.
    open: Parcel,
    open_receipts: Receipts<A>,
    open_bytes: usize,
    open_since: Option<Time>,
    sealed_at: Time,
    /// How often the clock was set.
    steps: u32,
    next_sequence: u64,
    free: Vec<Parcel>,
    ready: VecDeque<Parcel>,
    unsettled: VecDeque<Receipts<A>>,
    unsettled_runs: usize,
    settled: VecDeque<(Receipts<A>, ParcelOutcome)>,
    spare_receipts: Vec<Receipts<A>>,
    holds: VecDeque<Waiting<A>>,
    counts: IntakeCounts,
}

impl<A> Intake<A> {
    pub fn new(config: IntakeConfig, now: Time) -> Self {
        let parcel = || Parcel::new(config.thread, config.partition_count);
        Intake {
            linger: Linger::new(config.linger, config.partition_count, now),
            now,
            judge: config.judge,
            open: parcel(),
            open_receipts: Receipts::default(),
            open_bytes: 0,
            open_since: None,
            sealed_at: now,
            steps: 0,
            next_sequence: 1,
            free: (0..config.parcels_max).map(|_| parcel()).collect(),
            ready: VecDeque::with_capacity(config.parcels_max),
            unsettled: VecDeque::with_capacity(UNSETTLED_MAX + 1),
            unsettled_runs: 0,
            settled: VecDeque::with_capacity(config.parcels_max * 4),
            spare_receipts: Vec::with_capacity(config.parcels_max * 4),
            holds: VecDeque::new(),
            counts: IntakeCounts::default(),
            config,
        }
    }

    /// Takes what an authentic datagram said.
    pub fn handle_datagram(
        &mut self,
        now: Time,
        opened: &Opened,
        said: &OpenedDatagram,
        door: Door,
        reply: A,
    ) -> DatagramTaken<A> {
        if self.is_full() {
            return DatagramTaken::Full(reply);
        }
        self.note_time(now);
        let source = RecordSource {
            device: opened.device,
            session_start: opened.session_start_s,
            lowest_held: said.lowest_held.unwrap_or(FixNumber(0)),
            edge: self.config.edge,
            door,
            received: self.now,
        };
        if let Some(ping) = said.ping {
            self.push_heard(&source, ping.state);
        }
        let numbered = said.fixes.iter().map(|(number, fix)| (Some(*number), fix));
        self.push_fixes(&source, numbered, |_, _| {});
        match said.answer_to {
            Some(to) => {
                let waiting = Waiting { to, ranges: said.ranges(), received: self.now, reply };
                self.open_receipts.answers.push(waiting);
                DatagramTaken::AnswerFollows
            }
            None => {
                let ranges = said.ranges();
                self.open_receipts.runs.extend(ranges.runs().iter().map(|run| (opened.session, *run)));
                DatagramTaken::NoAnswer(reply)
            }
        }
    }

    /// Takes the fixes of a door without sessions and numbers. `reply` is handed out again once all are durable.
    pub fn handle_submission(
        &mut self,
        now: Time,
        device: DeviceKey,
        door: Door,
        fixes: &[Fix],
        reply: impl FnOnce(Vec<RejectedFix>) -> A,
    ) -> Result<(), IntakeFull> {
        if self.is_full() {
            return Err(IntakeFull);
        }
        self.note_time(now);
        let source = RecordSource {
            device,
            session_start: 0,
            lowest_held: FixNumber(0),
            edge: self.config.edge,
            door,
            received: self.now,
        };
        let mut rejected = Vec::new();
        self.push_fixes(&source, fixes.iter().map(|fix| (None, fix)), |index, reason| {
            rejected.push(RejectedFix { index, reason });
        });
        self.open_since.get_or_insert(self.now);
        self.open_receipts.submissions.push(reply(rejected));
        Ok(())
    }

    /// The shipper has taken the records out of a parcel; its memory is used again.
    pub fn handle_returned(&mut self, mut parcel: Parcel) {
        parcel.clear();
        if self.free.len() < self.config.parcels_max {
            self.free.push(parcel);
        }
    }

    /// The fate of all parcels up to `through` is known. Parcels are settled in order.
    pub fn handle_settled(&mut self, through: u64, outcome: ParcelOutcome) {
        while self.unsettled.front().is_some_and(|receipts| receipts.sequence <= through) {
            let Some(receipts) = self.unsettled.pop_front() else { return };
            self.unsettled_runs -= receipts.runs.len();
            self.settled.push_back((receipts, outcome));
        }
    }

    /// A parcel to ship.
    pub fn poll_parcel(&mut self) -> Option<Parcel> {
        self.ready.pop_front()
    }

    /// Whom to tell what became of a parcel. Give the receipts back with `handle_told`.
    pub fn poll_settled(&mut self) -> Option<(Receipts<A>, ParcelOutcome)> {
        self.settled.pop_front()
    }

    pub fn handle_told(&mut self, mut receipts: Receipts<A>) {
        receipts.clear();
        if self.spare_receipts.len() < self.config.parcels_max {
            self.spare_receipts.push(receipts);
        }
    }

    /// A datagram that has waited for a second: its phone must hold what it has. Its numbers stay in the receipts, so
    /// that a later ack names them if they become durable after all.
    pub fn poll_hold(&mut self) -> Option<Waiting<A>> {
        self.holds.pop_front()
    }

    pub fn poll_timeout(&self) -> Time {
        let pulse = self.sealed_at + PULSE_EVERY;
        let parcel = match self.open_since {
            Some(since) if !self.free.is_empty() => pulse.min(self.linger.due(since, self.unsettled.len())),
            Some(_) | None => pulse,
        };
        // Later answers of later parcels came later.
        let first_answer = self.unsettled.iter().chain([&self.open_receipts]).find_map(|r| r.answers.first());
        first_answer.map_or(parcel, |waiting| parcel.min(waiting.received + ANSWER_AFTER))
    }

    pub fn handle_timeout(&mut self, now: Time) {
        self.note_time(now);
        self.linger.handle_timeout(now);
        self.hold_overdue_answers();
        let due = |since| self.linger.due(since, self.unsettled.len());
        let is_due = self.open_since.is_some_and(|since| self.now >= due(since));
        let is_pulse_due = self.now >= self.sealed_at + PULSE_EVERY || self.now < self.sealed_at;
        if is_due || is_pulse_due {
            self.seal();
        }
    }

    /// The clock was set: what was received before is shipped with its times, all that is waited for goes on as before,
    /// and what comes next bears the new time.
    pub fn handle_step(&mut self, by_ms: i64) {
        self.seal();
        self.steps = self.steps.wrapping_add(1);
        let shift = |time: &mut Time| time.0 = time.0.saturating_add(by_ms);
        shift(&mut self.now);
        shift(&mut self.sealed_at);
        self.open_since.iter_mut().for_each(shift);
        self.linger.handle_step(by_ms);
        self.unsettled.iter_mut().chain([&mut self.open_receipts]).for_each(|receipts| receipts.handle_step(by_ms));
        self.settled.iter_mut().for_each(|(receipts, _)| receipts.handle_step(by_ms));
    }

    /// What the clock would show, beside `now`, if it had not been set within the last day.
    pub fn set_unset(&mut self, unset: &[Time], now: Time) {
        self.judge = self.config.judge.across(unset, now);
    }

    /// Ships what there is, without waiting: the thread is about to stop.
    pub fn handle_stop(&mut self, now: Time) {
        self.note_time(now);
        self.seal();
    }

    /// Whether all that was taken has been settled and told.
    pub fn is_settled(&self) -> bool {
        self.open_since.is_none() && self.ready.is_empty() && self.unsettled.is_empty() && self.settled.is_empty()
    }

    pub fn take_counts(&mut self) -> IntakeCounts {
        std::mem::take(&mut self.counts)
    }

    pub fn linger(&self) -> Duration {
        self.linger.duration()
    }

    fn is_full(&mut self) -> bool {
        if self.open_bytes < self.config.parcel_bytes_max {
            return false;
        }
        self.seal();
        self.open_bytes >= self.config.parcel_bytes_max
    }

    /// Records bear a time that never runs back by less than a step of the clock, so that a mark stays true.
    fn note_time(&mut self, now: Time) {
        let is_jitter = now < self.now && self.now.since(now) < CLOCK_STEP_MIN;
        if !is_jitter {
            self.now = now;
        }
    }

    fn push_fixes<'f>(
        &mut self,
        source: &RecordSource,
        fixes: impl ExactSizeIterator<Item = (Option<FixNumber>, &'f Fix)>,
        mut rejected: impl FnMut(usize, RejectReason),
    ) {
        let count = fixes.len() as u64;
        if count == 0 {
            return;
        }
        let records = open_partition(&mut self.open, source, self.config.partition_count);
        let before_bytes = records.len_bytes();
        for (index, (number, fix)) in fixes.enumerate() {
            let verdict = judge(fix, source.received, &self.judge);
            match verdict {
                Verdict::Accepted => self.counts.fixes_accepted += 1,
                Verdict::Rejected(reason) => {
                    self.counts.fixes_rejected[reason as usize] += 1;
                    rejected(index, reason);
                }
            }
            records.push(&Record::Fix(source.fix_record(number, *fix, verdict)));
        }
        self.open_bytes += records.len_bytes() - before_bytes;
        self.open_since.get_or_insert(source.received);
        self.linger.handle_fixes(count);
    }

    fn push_heard(&mut self, source: &RecordSource, state: protocol::PhoneState) {
        let records = open_partition(&mut self.open, source, self.config.partition_count);
        let before_bytes = records.len_bytes();
        records.push(&Record::Heard(HeardRecord {
            device: source.device,
            session_start: source.session_start,
            lowest_held: source.lowest_held,
            edge: source.edge,
            door: source.door,
            received: source.received,
            phone_state: Some(state),
        }));
        self.open_bytes += records.len_bytes() - before_bytes;
        self.open_since.get_or_insert(source.received);
        self.counts.pings += 1;
    }

    /// Sends the open parcel on its way, empty or not, if another can take its place.
    fn seal(&mut self) {
        let Some(mut parcel) = self.free.pop() else { return };
        std::mem::swap(&mut parcel, &mut self.open);
        parcel.sequence = self.next_sequence;
        (parcel.received_before, parcel.steps) = (self.now, self.steps);
        let mut receipts = self.spare_receipts.pop().unwrap_or_default();
        std::mem::swap(&mut receipts, &mut self.open_receipts);
        receipts.sequence = self.next_sequence;
        receipts.since = self.open_since.unwrap_or(self.now);
        if let Some(since) = self.open_since {
            self.linger.handle_shipped(self.now.since(since));
        }
        self.ready.push_back(parcel);
        if receipts.is_empty() {
            self.spare_receipts.push(receipts);
        } else {
            self.unsettled_runs += receipts.runs.len();
            self.unsettled.push_back(receipts);
        }
        self.next_sequence += 1;
        self.open_bytes = 0;
        self.open_since = None;
        self.sealed_at = self.now;
        self.forget_oldest();
    }

    /// While the log is away for long: what is forgotten is told as lost, and its phones send it again.
    fn forget_oldest(&mut self) {
        while self.unsettled.len() > UNSETTLED_MAX {
            let Some(receipts) = self.unsettled.pop_front() else { return };
            self.unsettled_runs -= receipts.runs.len();
            self.counts.runs_forgotten += receipts.runs.len() as u64;
            self.settled.push_back((receipts, ParcelOutcome::Lost));
        }
        for receipts in &mut self.unsettled {
            if self.unsettled_runs <= self.config.runs_max {
                return;
            }
            self.unsettled_runs -= receipts.runs.len();
            self.counts.runs_forgotten += receipts.runs.len() as u64;
            receipts.runs.clear();
        }
    }

    fn hold_overdue_answers(&mut self) {
        let overdue = self.now - ANSWER_AFTER;
        let open_at = self.unsettled.len();
        for (at, receipts) in self.unsettled.iter_mut().chain([&mut self.open_receipts]).enumerate() {
            let count = receipts.answers.partition_point(|waiting| waiting.received <= overdue);
            for waiting in receipts.answers.drain(..count) {
                let runs = waiting.ranges.runs();
                receipts.runs.extend(runs.iter().map(|run| (*waiting.to.session(), *run)));
                if at < open_at {
                    self.unsettled_runs += runs.len();
                }
                self.holds.push_back(waiting);
            }
            if !receipts.answers.is_empty() {
                return;
            }
        }
    }
}

/// What all records of one datagram have in common.
struct RecordSource {
    device: DeviceKey,
    session_start: u32,
    lowest_held: FixNumber,
    edge: EdgeId,
    door: Door,
    received: Time,
}

impl RecordSource {
    fn fix_record(&self, number: Option<FixNumber>, fix: Fix, verdict: Verdict) -> FixRecord {
        FixRecord {
            device: self.device,
            session_start: self.session_start,
            number,
            lowest_held: self.lowest_held,
            edge: self.edge,
            door: self.door,
            received: self.received,
            fix,
            verdict,
        }
    }
}

fn open_partition<'p>(open: &'p mut Parcel, source: &RecordSource, count: u32) -> &'p mut EncodedRecords {
    let key = TrackerKey::Driver(source.device.driver_key()).key_bytes();
    &mut open.partitions[partition_of(&key, count).0 as usize]
}

/// The ranges of a run that stands alone.
pub fn ranges_of(run: protocol::datagram::ranges::NumberRun) -> NumberRanges {
    let mut ranges = NumberRanges::default();
    ranges.insert(run);
    ranges
}

/// How long an answer may wait for the log.
pub const ANSWER_AFTER: Duration = Duration::from_secs(1);
/// A thread without fixes says so twice a second, so that marks are not held up by the idle.
const PULSE_EVERY: Duration = Duration::from_millis(500);
/// How many parcels' receipts are remembered: minutes of them while the log is away.
const UNSETTLED_MAX: usize = 1024;
/// Less than this is jitter of the clock, more is someone setting it.
const CLOCK_STEP_MIN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
