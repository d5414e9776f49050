//! The fixes a phone has taken and no edge has yet acknowledged. In memory and bounded: beyond the bound it is
//! thinned, which costs detail of the past and never a change of the phone's state.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use protocol::datagram::NumberRanges;
use protocol::{Fix, FixNumber, Time};

/// A fix in the queue, with its number if it has been sealed before. What an app would keep on disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueuedFix {
    pub number: Option<FixNumber>,
    pub fix: Fix,
    /// It says something of the phone that the fix before it did not: never thinned.
    pub keeps: bool,
}

/// The datagram that carried a fix last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SentAs {
    pub at: Time,
    pub edge: usize,
    /// Which session sealed it.
    pub generation: u32,
    pub counter: u32,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    fix: Fix,
    keeps: bool,
    sent: SentAs,
}

/// All fixes between the receiver and an ack.
#[derive(Debug)]
pub struct Queue {
    fixes_max: usize,
    /// Taken since the last live datagram.
    fresh: VecDeque<QueuedFix>,
    /// Older, never sealed.
    backlog: VecDeque<QueuedFix>,
    /// Sealed under their numbers, waiting for an ack to name them.
    held: BTreeMap<FixNumber, Held>,
    /// Of those held, the ones to be sealed again, by when they were sealed last.
    again: BTreeSet<(Time, FixNumber)>,
    state_before: Option<u8>,
    thinned: u64,
}

impl Queue {
    pub fn new(fixes_max: usize) -> Self {
        Queue {
            fixes_max: fixes_max.max(FRESH_MAX),
            fresh: VecDeque::new(),
            backlog: VecDeque::new(),
            held: BTreeMap::new(),
            again: BTreeSet::new(),
            state_before: None,
            thinned: 0,
        }
    }

    pub fn push(&mut self, fix: Fix) {
        let state = fix.phone_state.map(|state| state.0);
        let keeps = state.is_some() && state != self.state_before;
        self.state_before = state.or(self.state_before);
        self.fresh.push_back(QueuedFix { number: None, fix, keeps });
        while self.fresh.len() > FRESH_MAX {
            self.backlog.extend(self.fresh.pop_front());
        }
        self.bound();
    }

    /// Takes in what an earlier run of the app had left. Numbered ones are sealed again under their numbers.
    pub fn restore(&mut self, fixes: impl IntoIterator<Item = QueuedFix>) {
        for queued in fixes {
            match queued.number {
                Some(number) => {
                    let sent = SentAs { at: Time(i64::MIN), edge: usize::MAX, generation: 0, counter: 0 };
                    self.held.insert(number, Held { fix: queued.fix, keeps: queued.keeps, sent });
                    self.again.insert((sent.at, number));
                }
                None => self.backlog.push_back(queued),
            }
            self.bound();
        }
    }

    /// Everything not yet acknowledged.
    pub fn fixes(&self) -> Vec<QueuedFix> {
        let held = self.held.iter().map(|(number, held)| QueuedFix {
            number: Some(*number),
            fix: held.fix,
            keeps: held.keeps,
        });
        held.chain(self.backlog.iter().copied()).chain(self.fresh.iter().copied()).collect()
    }

    pub fn len(&self) -> usize {
        self.fresh.len() + self.backlog.len() + self.held.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn thinned(&self) -> u64 {
        self.thinned
    }

    pub fn has_fresh(&self) -> bool {
        !self.fresh.is_empty()
    }

    pub fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    pub fn backlog_len(&self) -> usize {
        self.backlog.len() + self.again.len()
    }

    pub fn lowest_held(&self) -> Option<FixNumber> {
        self.held.first_key_value().map(|(number, _)| *number)
    }

    /// The fresh ones under the numbers they would get.
    pub fn fresh_numbered(&self, next: FixNumber, count_max: usize) -> Vec<(FixNumber, Fix)> {
        numbered(&self.fresh, next, count_max)
    }

    pub fn backlog_numbered(&self, next: FixNumber, count_max: usize) -> Vec<(FixNumber, Fix)> {
        numbered(&self.backlog, next, count_max)
    }

    /// The first `count` fresh ones have been sealed.
    pub fn hold_fresh(&mut self, next: FixNumber, count: usize, sent: SentAs) {
        let sealed = self.fresh.drain(..count.min(self.fresh.len())).collect::<Vec<_>>();
        self.hold(sealed, next, sent);
    }

    pub fn hold_backlog(&mut self, next: FixNumber, count: usize, sent: SentAs) {
        let sealed = self.backlog.drain(..count.min(self.backlog.len())).collect::<Vec<_>>();
        self.hold(sealed, next, sent);
    }

    fn hold(&mut self, sealed: Vec<QueuedFix>, next: FixNumber, sent: SentAs) {
        for (at, queued) in sealed.into_iter().enumerate() {
            self.held.insert(FixNumber(next.0 + at as u64), Held { fix: queued.fix, keeps: queued.keeps, sent });
        }
    }

    /// Fixes to be sealed again that were not sealed within the last 3 s, by number.
    pub fn again_ready(&self, now: Time, count_max: usize) -> Vec<(FixNumber, Fix)> {
        let ready = self.again.iter().take_while(|(at, _)| at.0.saturating_add(AGAIN_AFTER_MS) <= now.0);
        let with_fix = ready.filter_map(|(_, number)| Some((*number, self.held.get(number)?.fix)));
        let mut fixes: Vec<_> = with_fix.take(count_max).collect();
        fixes.sort_unstable_by_key(|(number, _)| *number);
        fixes
    }

    /// When the first of them may be sealed again.
    pub fn again_due(&self) -> Option<Time> {
        self.again.first().map(|(at, _)| Time(at.0.saturating_add(AGAIN_AFTER_MS)))
    }

    pub fn sealed_again(&mut self, numbers: &[FixNumber], sent: SentAs) {
        for number in numbers {
            if let Some(held) = self.held.get_mut(number) {
                self.again.remove(&(held.sent.at, *number));
                held.sent = sent;
            }
        }
    }

    /// Forgets exactly the numbers that an ack names, and gives what it has forgotten.
    pub fn ack(&mut self, ranges: &NumberRanges) -> Vec<(FixNumber, Fix)> {
        let mut acked = Vec::new();
        for run in ranges.runs() {
            let named = self.held.range(FixNumber(run.first)..=FixNumber(run.last()));
            acked.extend(named.map(|(number, held)| (*number, held.fix)));
        }
        acked.iter().for_each(|(number, _)| self.forget(*number));
        acked
    }

    /// An ack has answered `answered`, so what went to the same edge before it and is still held did not arrive.
    pub fn missed_before(&mut self, answered: SentAs) {
        for (number, held) in &self.held {
            let sent = held.sent;
            let same = sent.edge == answered.edge && sent.generation == answered.generation;
            if same && sent.counter <= answered.counter {
                self.again.insert((sent.at, *number));
            }
        }
    }

    pub fn mark_again(&mut self, numbers: &[FixNumber]) {
        for number in numbers {
            if let Some(held) = self.held.get(number) {
                self.again.insert((held.sent.at, *number));
            }
        }
    }

    pub fn mark_all_again(&mut self) {
        self.again.extend(self.held.iter().map(|(number, held)| (held.sent.at, *number)));
    }

    /// All that is held goes out anew at once, under the same numbers.
    pub fn send_all_anew(&mut self) {
        self.again.clear();
        self.held.values_mut().for_each(|held| held.sent.at = Time(i64::MIN));
        self.mark_all_again();
    }

    fn forget(&mut self, number: FixNumber) {
        if let Some(held) = self.held.remove(&number) {
            self.again.remove(&(held.sent.at, number));
        }
    }

    fn bound(&mut self) {
        if self.len() <= self.fixes_max {
            return;
        }
        let before = self.len();
        if self.backlog.len() >= self.fixes_max / 4 {
            thin_oldest_half(&mut self.backlog);
        }
        if self.len() == before {
            self.thin_held();
        }
        if self.len() > 2 * self.fixes_max {
            // Nothing but changes of state: only a broken phone gets here, and even it may not eat all memory.
            let oldest = self.lowest_held();
            match oldest {
                Some(number) => self.forget(number),
                None => drop(self.backlog.pop_front()),
            }
        }
        self.thinned += (before - self.len()) as u64;
    }

    fn thin_held(&mut self) {
        let older_half = self.held.len() / 2;
        let thinnable = self.held.iter().take(older_half).filter(|(_, held)| !held.keeps);
        let dropped: Vec<FixNumber> = thinnable.step_by(2).map(|(number, _)| *number).collect();
        dropped.into_iter().for_each(|number| self.forget(number));
    }
}

fn numbered(fixes: &VecDeque<QueuedFix>, next: FixNumber, count_max: usize) -> Vec<(FixNumber, Fix)> {
    let with_number = |(at, queued): (usize, &QueuedFix)| (FixNumber(next.0 + at as u64), queued.fix);
    fixes.iter().take(count_max).enumerate().map(with_number).collect()
}

fn thin_oldest_half(fixes: &mut VecDeque<QueuedFix>) {
    let older_half = fixes.len() / 2;
    let mut at = 0;
    let mut drop_next = false;
    fixes.retain(|queued| {
        at += 1;
        if at > older_half || queued.keeps {
            return true;
        }
        drop_next = !drop_next;
        !drop_next
    });
}

/// More than these are not live any more but backlog.
const FRESH_MAX: usize = 32;
pub const AGAIN_AFTER: Duration = Duration::from_secs(3);
const AGAIN_AFTER_MS: i64 = AGAIN_AFTER.as_millis() as i64;

#[cfg(test)]
mod tests {
    use protocol::datagram::ranges::NumberRun;
    use protocol::{MeasuredTime, PhoneState, Position};

    use super::*;

    fn fix(at: i64, state: u8) -> Fix {
        let place = Position { lat_e7: 1, lon_e7: 2 };
        Fix { phone_state: Some(PhoneState(state)), ..Fix::at(MeasuredTime(at), place) }
    }

    fn sent(counter: u32, at: i64) -> SentAs {
        SentAs { at: Time(at), edge: 0, generation: 1, counter }
    }

    #[test]
    fn a_full_queue_is_thinned_and_keeps_every_change_of_state() {
        let mut queue = Queue::new(1000);
        let state = |at: i64| u8::from(at % 500 == 0);

        for at in 0..20_000 {
            queue.push(fix(at, state(at)));
        }

        assert!(queue.len() <= 1000);
        assert!(queue.thinned() >= 19_000);
        let times: BTreeSet<i64> = queue.fixes().iter().map(|queued| queued.fix.measured.0).collect();
        for at in 0..20_000 {
            if at == 0 || state(at) != state(at - 1) {
                assert!(times.contains(&at), "the change at {at} is gone");
            }
        }
        assert!((19_980..20_000).all(|at| times.contains(&at)), "the newest are whole");
    }

    #[test]
    fn a_queue_of_nothing_but_changes_is_bounded_too() {
        let mut queue = Queue::new(100);
        for at in 0..10_000 {
            queue.push(fix(at, (at % 2) as u8));
        }
        assert!(queue.len() <= 200);
    }

    #[test]
    fn only_what_an_ack_names_is_forgotten() {
        let mut queue = Queue::new(1000);
        (0..10).for_each(|at| queue.push(fix(at, 0)));
        queue.hold_fresh(FixNumber(50), 10, sent(1, 0));
        let mut ranges = NumberRanges::default();
        ranges.insert(NumberRun { first: 40, len: 15 });

        assert_eq!(queue.ack(&ranges).len(), 5);

        assert_eq!(queue.lowest_held(), Some(FixNumber(55)));
        assert_eq!(queue.len(), 5);
    }

    #[test]
    fn what_an_ack_passes_over_is_sealed_again_after_3_s() {
        let mut queue = Queue::new(1000);
        (0..2).for_each(|at| queue.push(fix(at, 0)));
        queue.hold_fresh(FixNumber(1), 1, sent(5, 1000));
        queue.hold_fresh(FixNumber(2), 1, sent(9, 1000));

        queue.missed_before(sent(7, 0));

        assert_eq!(queue.again_due(), Some(Time(4000)));
        assert!(queue.again_ready(Time(3999), 9).is_empty());
        assert_eq!(queue.again_ready(Time(4000), 9).len(), 1);
        queue.sealed_again(&[FixNumber(1)], sent(11, 4000));
        assert_eq!(queue.again_due(), None);
    }
}
