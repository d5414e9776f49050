//! Time in the fold. It comes in records alone: the ticks of the latest claim's owner, and the marks of edges that say
//! how far their word is complete. So a tracker folded again, on any machine at any time, sees the same time pass.
//!
//! **Invariant:** the fold's time goes back only with a claim, or with the first tick after one that was doubted, or by as
//! much as a clock was set.
//! **Invariant:** after a tick nothing that is kept of what happened lies further ahead than clocks may differ. Before it
//! something may: while no ticks come, edges go on. What still lies ahead then was stamped by a clock that was wrong.

use std::collections::BTreeMap;

use protocol::record::OwnerId;
use protocol::update::{Generation, SilentCause};
use protocol::{EdgeId, Time};
use wincode::{SchemaRead, SchemaWrite};

use super::clock_set::ClockSet;
use super::fields::{Plain, fields};

/// What one partition knows of time and of who reigns over it.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct FoldClock {
    owner: Option<OwnerId>,
    claimed: Generation,
    /// Epochs begin under this generation at least: set when another fold's work is taken up.
    floor: Generation,
    now: Time,
    marks: BTreeMap<EdgeId, Mark>,
    /// The owner's.
    wall: Option<WallOffset>,
    /// Of whoever is about to claim the partition.
    announced: Option<(OwnerId, WallOffset)>,
    /// The edges contradict the clock of whoever claimed last: time goes by it from his first tick on, if one comes.
    is_claim_doubted: bool,
}

fields! {
    FoldClock {
        1 owner: Plain,
        2 claimed: Plain,
        3 floor: Plain,
        4 now: Plain,
        5 marks: Plain = BTreeMap::new(),
    } since {
        6 wall: Plain = None,
        7 announced: Plain = None,
        8 is_claim_doubted: Plain = false,
    }
}

/// What an owner's wall clock shows beyond the time since its machine started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
struct WallOffset {
    boot: u64,
    offset_ms: i64,
}

/// What one edge's marks say, as far as it is believed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Listener {
    pub edge: EdgeId,
    pub received_before: Time,
    pub steady_since: Time,
    pub is_fresh: bool,
}

#[derive(Clone, Copy, PartialEq, Debug, SchemaWrite, SchemaRead)]
struct Mark {
    received_before: Time,
    /// From here on the edge has marked without a gap. What it did not hear before, it may just not have been there.
    steady_since: Time,
    /// The fold's time at which it stood in the records.
    at: Time,
}

impl FoldClock {
    pub fn now(&self) -> Time {
        self.now
    }

    /// What happened cannot have happened later, as far as clocks are right and ticks come.
    pub(super) fn latest(&self) -> Time {
        Time(self.now.0.saturating_add(AHEAD_MS))
    }

    /// Under which new epochs begin.
    pub fn generation(&self) -> Generation {
        self.claimed.max(self.floor)
    }

    pub fn raise_floor(&mut self, floor: Generation) {
        self.floor = self.floor.max(floor);
    }

    /// By how much the owner's clock was set since he last said what it shows. Who is not the owner yet is heard when he
    /// claims the partition.
    pub fn handle_wall_offset(&mut self, owner: OwnerId, boot: u64, offset_ms: i64) -> Option<i64> {
        let said = WallOffset { boot, offset_ms };
        if self.owner == Some(owner) {
            return self.step_to(said);
        }
        self.announced = Some((owner, said));
        None
    }

    /// By how much the clock of whoever claims the partition differs from the owner's before, if both are of one machine
    /// that went on all the while.
    pub fn handle_new_owner(&mut self, owner: OwnerId) -> Option<i64> {
        let announced = self.announced.take().filter(|(other, _)| *other == owner);
        let Some((_, said)) = announced else {
            self.wall = None;
            return None;
        };
        self.step_to(said)
    }

    fn step_to(&mut self, said: WallOffset) -> Option<i64> {
        let before = self.wall.replace(said).filter(|before| before.boot == said.boot)?;
        if self.is_claim_doubted {
            return None; // time does not go by that clock
        }
        let by_ms = said.offset_ms.saturating_sub(before.offset_ms);
        (by_ms.saturating_abs() > STEP_MS).then_some(by_ms)
    }

    /// All goes on by the new time.
    pub(super) fn handle_clock_set(&mut self, by_ms: i64) -> ClockSet {
        self.now = Time(self.now.0.saturating_add(by_ms));
        let set = ClockSet { by_ms, now: self.now };
        for mark in self.marks.values_mut() {
            set.stamp(&mut mark.received_before);
            set.stamp(&mut mark.steady_since);
            set.stamp(&mut mark.at);
        }
        set
    }

    /// A new reign begins; it may set the time back. Where the edges contradict its clock, time stands until the owner
    /// ticks: he does not by a clock that he finds to be wrong.
    pub fn handle_claim(&mut self, owner: OwnerId, at: Time, generation: Generation) {
        self.owner = Some(owner);
        self.claimed = generation;
        self.is_claim_doubted = self.is_contradicted(at);
        if !self.is_claim_doubted {
            self.now = at;
        }
    }

    /// Whether this is the first tick after a claim that was doubted: it may set the time back, as the claim would have.
    pub(super) fn handle_first_tick(&mut self, owner: OwnerId, at: Time) -> bool {
        let is_first = self.is_claim_doubted && self.owner == Some(owner);
        if is_first {
            self.is_claim_doubted = false;
            self.now = at;
        }
        is_first
    }

    /// Whether time moved: not by another owner's tick, nor by one that lags.
    pub fn handle_tick(&mut self, owner: OwnerId, at: Time) -> bool {
        if self.owner != Some(owner) || at <= self.now {
            return false;
        }
        self.now = at;
        let latest = self.latest();
        self.marks.values_mut().for_each(|mark| mark.steady_since = mark.steady_since.min(latest));
        true
    }

    pub fn handle_mark(&mut self, edge: EdgeId, received_before: Time) {
        let latest = self.latest();
        let mark = Mark { received_before, steady_since: received_before, at: self.now };
        let kept = self.marks.entry(edge).or_insert(mark);
        if kept.received_before > latest && received_before < kept.received_before {
            // What it said before, it said by a clock that was wrong.
            kept.received_before = received_before;
            kept.steady_since = kept.steady_since.min(received_before);
        } else if received_before.millis_since(kept.received_before) > MARK_GRACE_MS {
            kept.steady_since = received_before;
        }
        kept.received_before = kept.received_before.max(received_before);
        kept.at = self.now;
        if self.marks.len() > EDGES_MAX {
            let oldest = self.marks.iter().min_by_key(|(edge, mark)| (mark.at, **edge)).map(|(edge, _)| *edge);
            oldest.map(|edge| self.marks.remove(&edge));
        }
    }

    /// Whether a time is not that of the edges that still send marks, by the median of these. After a while in which
    /// nothing was recorded at all it is not either, though it may be right.
    fn is_contradicted(&self, at: Time) -> bool {
        let fresh = self.marks.values().filter(|mark| self.is_fresh(mark));
        let mut marks: Vec<Time> = fresh.map(|mark| mark.received_before).collect();
        marks.sort_unstable();
        marks.get(marks.len() / 2).is_some_and(|median| at.millis_since(*median).saturating_abs() > WRONG_MS)
    }

    /// How far the edge's word is believed.
    fn believed(&self, mark: &Mark) -> Time {
        mark.received_before.min(self.latest())
    }

    /// Why nothing was heard since `heard` through this edge; None while he still has time.
    pub fn silence(&self, edge: EdgeId, heard: Time, timeout_ms: i64) -> Option<SilentCause> {
        let due = Time(heard.0.saturating_add(timeout_ms));
        let has_listened = |mark: &Mark| {
            let listening_due = Time(mark.steady_since.0.saturating_add(timeout_ms));
            self.believed(mark) >= due.max(listening_due)
        };
        if self.mark_of(edge).is_some_and(|(_, mark)| has_listened(mark)) {
            return Some(SilentCause::Driver);
        }
        (self.now.millis_since(due) >= MARK_GRACE_MS).then_some(SilentCause::BackEnd)
    }

    /// The edge whose word decides whether a driver of this edge is silent.
    pub(super) fn listener(&self, edge: EdgeId) -> Option<Listener> {
        self.mark_of(edge).map(|(edge, mark)| self.listener_of(edge, mark))
    }

    /// All edges whose marks are kept.
    pub(super) fn listeners(&self) -> impl Iterator<Item = Listener> + '_ {
        self.marks.iter().map(|(edge, mark)| self.listener_of(*edge, mark))
    }

    fn listener_of(&self, edge: EdgeId, mark: &Mark) -> Listener {
        let (received_before, is_fresh) = (self.believed(mark), self.is_fresh(mark));
        Listener { edge, received_before, steady_since: mark.steady_since, is_fresh }
    }

    /// The mark that says how far we know what a driver of this edge sent: his edge's, or once that is gone that of the
    /// edge among the others that has marked longest without a gap.
    fn mark_of(&self, edge: EdgeId) -> Option<(EdgeId, &Mark)> {
        let own = self.marks.get(&edge).map(|mark| (edge, mark));
        if own.is_some_and(|(_, mark)| self.is_fresh(mark)) {
            return own;
        }
        let others = self.marks.iter().filter(|(_, mark)| self.is_fresh(mark));
        others.min_by_key(|(edge, mark)| (mark.steady_since, **edge)).map(|(edge, mark)| (*edge, mark)).or(own)
    }

    fn is_fresh(&self, mark: &Mark) -> bool {
        self.now.millis_since(mark.at) < EDGE_GONE_MS
    }
}

/// An edge without marks for so long no longer counts once another's has passed.
const EDGE_GONE_MS: i64 = 60_000;
/// Marks come every second; when none has passed a time-out for so long after it, it is not the driver who is silent.
pub(super) const MARK_GRACE_MS: i64 = 10_000;
/// An owner whose clock differs from the edges' by more does not tick.
pub(crate) const WRONG_MS: i64 = 5_000;
/// So much an edge's clock may be ahead of the fold's time: by as much as clocks may differ, and by ticks that are late.
const AHEAD_MS: i64 = 2 * WRONG_MS;
/// Less is what two clocks read one after the other differ.
pub(super) const STEP_MS: i64 = 1_000;
/// More edges than this do not serve one partition; the one heard longest ago is forgotten.
const EDGES_MAX: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    const EDGE: EdgeId = EdgeId(1);
    const OTHER: EdgeId = EdgeId(2);

    fn clock_at(now: i64) -> FoldClock {
        let mut clock = FoldClock::default();
        clock.handle_claim(OwnerId(1), Time(now), Generation::default());
        clock
    }

    #[test]
    fn only_the_latest_claims_owner_moves_time_and_a_claim_may_set_it_back() {
        let mut clock = clock_at(10_000);
        assert!(clock.handle_tick(OwnerId(1), Time(11_000)));
        assert!(!clock.handle_tick(OwnerId(1), Time(10_500)));

        clock.handle_claim(OwnerId(2), Time(5_000), Generation::default());

        assert!(!clock.handle_tick(OwnerId(1), Time(12_000)));
        assert_eq!(clock.now(), Time(5_000));
        assert!(clock.handle_tick(OwnerId(2), Time(6_000)));
    }

    #[test]
    fn a_driver_is_silent_only_once_his_edges_mark_has_passed_his_time_out() {
        let mut clock = clock_at(100_000);
        for at in (100_000..129_000).step_by(1_000) {
            clock.handle_mark(EDGE, Time(at));
        }
        clock.handle_tick(OwnerId(1), Time(131_000));
        assert_eq!(clock.silence(EDGE, Time(100_000), 30_000), None);

        clock.handle_mark(EDGE, Time(130_500));

        assert_eq!(clock.silence(EDGE, Time(100_000), 30_000), Some(SilentCause::Driver));
    }

    #[test]
    fn without_marks_it_is_the_back_end_that_is_silent() {
        let mut clock = clock_at(100_000);
        clock.handle_mark(EDGE, Time(100_000));

        clock.handle_tick(OwnerId(1), Time(145_000));

        assert_eq!(clock.silence(EDGE, Time(100_000), 30_000), Some(SilentCause::BackEnd));
    }

    #[test]
    fn an_edge_that_was_away_does_not_blame_the_driver_for_it() {
        let mut clock = clock_at(100_000);
        clock.handle_mark(EDGE, Time(100_000));
        clock.handle_tick(OwnerId(1), Time(700_000));

        clock.handle_mark(EDGE, Time(700_000));
        assert_eq!(clock.silence(EDGE, Time(100_000), 30_000), Some(SilentCause::BackEnd));

        for at in (701_000..=730_000).step_by(1_000) {
            clock.handle_tick(OwnerId(1), Time(at));
            clock.handle_mark(EDGE, Time(at));
        }
        assert_eq!(clock.silence(EDGE, Time(100_000), 30_000), Some(SilentCause::Driver));
    }

    #[test]
    fn an_edge_whose_clock_was_ahead_and_is_set_right_is_believed_by_its_new_time() {
        let mut clock = clock_at(100_000);
        for at in (100_000..200_000).step_by(1_000) {
            clock.handle_mark(EDGE, Time(at + 7_200_000));
            clock.handle_tick(OwnerId(1), Time(at));
        }

        for at in (200_000..=250_000).step_by(1_000) {
            clock.handle_mark(EDGE, Time(at));
            clock.handle_tick(OwnerId(1), Time(at));
        }

        assert_eq!(clock.silence(EDGE, Time(215_000), 30_000), Some(SilentCause::Driver));
        assert_eq!(clock.silence(EDGE, Time(245_000), 30_000), None);
    }

    #[test]
    fn an_edge_that_is_gone_no_longer_counts_once_anothers_mark_has_passed() {
        let mut clock = clock_at(50_000);
        for at in (50_000..=100_000).step_by(1_000) {
            clock.handle_mark(EDGE, Time(at));
            clock.handle_mark(OTHER, Time(at));
            clock.handle_tick(OwnerId(1), Time(at));
        }
        clock.handle_tick(OwnerId(1), Time(161_000));
        assert_eq!(clock.silence(EDGE, Time(100_000), 30_000), Some(SilentCause::BackEnd));

        for at in (101_000..=161_000).step_by(1_000) {
            clock.handle_mark(OTHER, Time(at));
        }

        assert_eq!(clock.silence(EDGE, Time(100_000), 30_000), Some(SilentCause::Driver));
    }
}
