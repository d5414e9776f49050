//! One driver's fixes on the road: the provisional position of each at once, and its breadcrumb when its position is
//! final. Live fixes have one matcher. A run of late fixes gets a second, short-lived one, so that a backlog is snapped
//! too and does not disturb the live one.
//!
//! A matcher's positions lie on the edges of one map. When another map comes into use, each tracker moves over by itself:
//! at its next fix, when a position is about to become final, or in its turn among the trackers that are silent. Until
//! then it stays on the old map, so that no record has to move all of them.
//!
//! **Invariant:** every fix handed in gives one breadcrumb, whatever the matchers make of it. No final position lies on a
//! map that is not in use.

use std::collections::VecDeque;

use maps::late::LateMatcher;
use maps::matcher::{Matched, Matcher, Observation, Snapped};
use maps::{Graph, Profile};
use protocol::update::{SnappedPosition, Source};
use protocol::{Breadcrumb, DeliveryId, FixRecord, MeasuredTime, Position, Time, Verdict};
use wincode::{SchemaRead, SchemaWrite};

use super::clock_set::ClockSet;
use super::dormant::{Reader, Writer};
use super::effects::Step;
use super::fields::{Plain, fields};
use super::finals::Finals;
use super::roads::{Region, Roads};

#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Snapping {
    matcher: Option<Matcher>,
    /// The map it is on, by its number in `Roads`.
    on: u32,
    /// The newest time the matcher was given.
    until: MeasuredTime,
    tag_next: u64,
    waiting: WaitingFixes,
    finals: Finals,
    late: Option<LateRun>,
}

fields! {
    Snapping {
        1 matcher: Plain = None,
        2 on: Plain,
        3 until: Plain,
        4 tag_next: Plain,
        5 waiting: Plain,
        6 finals: Plain = Finals::default(),
        7 late: Plain = None,
    }
}

/// A snapped position and the number of the map that its edge belongs to.
#[derive(Clone, Copy, PartialEq, Debug, SchemaWrite, SchemaRead)]
pub(crate) struct OnMap {
    pub map: u32,
    pub snapped: Snapped,
}

/// A backlog that goes through a matcher of its own.
#[derive(Clone, PartialEq, Debug, SchemaWrite, SchemaRead)]
struct LateRun {
    matcher: LateMatcher,
    on: u32,
    waiting: WaitingFixes,
    /// When the last of it came, in the fold's time.
    at: Time,
}

/// Fixes whose final position is still to come, in the order of their tags.
#[derive(Clone, PartialEq, Debug, Default, SchemaWrite, SchemaRead)]
struct WaitingFixes {
    fixes: VecDeque<WaitingFix>,
}

#[derive(Clone, PartialEq, Debug, SchemaWrite, SchemaRead)]
struct WaitingFix {
    tag: u64,
    record: FixRecord,
    delivery: Option<DeliveryId>,
    source: Source,
}

impl Snapping {
    pub(crate) fn new() -> Snapping {
        Snapping {
            matcher: None,
            on: 0,
            until: MeasuredTime(i64::MIN),
            tag_next: 0,
            waiting: WaitingFixes::default(),
            finals: Finals::default(),
            late: None,
        }
    }

    /// No fix waits for its final position.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.fixes.is_empty() && self.late.is_none()
    }

    /// When the next position becomes final or a late run ends, if nothing comes before.
    pub(crate) fn poll_timeout(&self) -> Option<Time> {
        let of_matcher = self.matcher.as_ref().and_then(Matcher::poll_timeout).map(MeasuredTime::to_time);
        let of_late_run = self.late.as_ref().map(|run| Time(run.at.0.saturating_add(LATE_RUN_MS)));
        of_matcher.into_iter().chain(of_late_run).min()
    }

    /// Whether the live matcher is on a map that is not in use any more.
    pub(crate) fn is_stranded(&self, roads: &Roads) -> bool {
        self.matcher.is_some() && roads.region(self.on).is_none()
    }

    /// Whether a late run is on a map that is not in use any more: it ends with the next tick.
    pub(crate) fn is_late_run_stranded(&self, roads: &Roads) -> bool {
        self.late.as_ref().is_some_and(|run| roads.region(run.on).is_none())
    }

    pub(super) fn write_dormant(&self, to: &mut Writer) -> Option<()> {
        let Snapping { matcher: None, on, until, tag_next, waiting: _, finals, late: None } = self else { return None };
        to.write(on)?;
        to.write(until)?;
        to.write(tag_next)?;
        to.write(finals)
    }

    pub(super) fn read_dormant(from: &mut Reader<'_>) -> Option<Snapping> {
        let (on, until, tag_next, finals) = (from.read()?, from.read()?, from.read()?, from.read()?);
        Some(Snapping { on, until, tag_next, finals, ..Snapping::new() })
    }

    pub(crate) fn is_trimmed(&self) -> bool {
        self.matcher.is_none() && self.finals.is_trimmed()
    }

    /// Forgets where the driver was on the road: he has not been heard of for long, and may be anywhere.
    pub(crate) fn trim(&mut self) {
        self.matcher = None;
        self.waiting = WaitingFixes::default();
        self.finals.trim();
    }

    /// Whether some of it lies on the edges of this map.
    pub(crate) fn is_on(&self, number: u32) -> bool {
        (self.matcher.is_some() && self.on == number) || self.late.as_ref().is_some_and(|run| run.on == number)
    }

    /// Where on the road the newest fix is, as far as can be known by now.
    pub(crate) fn handle_newest(
        &mut self,
        record: &FixRecord,
        at: Time,
        delivery: Option<DeliveryId>,
        profile: Profile,
        step: &mut Step<'_>,
    ) -> Option<OnMap> {
        let Some(region) = step.roads.at(record.fix.position) else {
            step.record(*record, Verdict::Accepted, delivery);
            return None;
        };
        self.move_to(Some(region), step);
        step.effects.counts.judged(Verdict::Accepted);
        self.until = MeasuredTime::from_time(at).max(self.until);
        let observation = self.observe(record, self.until);
        self.waiting.push(observation.tag, record, delivery, step);
        let graph = region.traffic.graph();
        let matcher = self.matcher.get_or_insert_with(|| Matcher::new(profile));
        let snapped = matcher.handle_fix(graph, step.scratch, &observation);
        self.take_matched(graph, step);
        snapped.map(|snapped| OnMap { map: region.number, snapped })
    }

    /// A fix that comes after newer ones.
    pub(crate) fn handle_late(
        &mut self,
        record: &FixRecord,
        at: Time,
        delivery: Option<DeliveryId>,
        profile: Profile,
        step: &mut Step<'_>,
    ) {
        let measured = MeasuredTime::from_time(at);
        let region = step.roads.at(record.fix.position);
        let goes_on = |run: &LateRun| run.matcher.takes(measured) && region.is_some_and(|r| r.number == run.on);
        if self.late.as_ref().is_some_and(|run| !goes_on(run)) {
            self.finish_late(step);
        }
        let has_room = self.late.is_some() || *step.late_runs < LATE_RUNS_MAX;
        let (Some(region), true) = (region, has_room) else {
            return step.record(*record, Verdict::Accepted, delivery);
        };
        step.effects.counts.judged(Verdict::Accepted);
        let observation = self.observe(record, measured);
        let until = MeasuredTime(self.until.0.max(measured.0).saturating_add(1));
        let graph = region.traffic.graph();
        let before = self.finals.before(measured).filter(|_| self.on == region.number);
        let run = self.late.get_or_insert_with(|| {
            *step.late_runs += 1;
            let matcher = LateMatcher::new(profile, graph, before.as_ref().map(|(snapped, at)| (snapped, *at)), until);
            LateRun { matcher, on: region.number, waiting: WaitingFixes::default(), at: step.clock.now() }
        });
        run.at = step.clock.now();
        run.waiting.push(observation.tag, record, delivery, step);
        run.matcher.handle_fix(graph, step.scratch, &observation);
        run.take_matched(graph, step);
    }

    /// Time has passed: positions become final without another fix, a late run that has stopped ends, and a tracker on a
    /// map that was replaced moves over when it is its turn.
    pub(crate) fn handle_tick(&mut self, position: Option<Position>, step: &mut Step<'_>) {
        let now = step.clock.now();
        let measured = MeasuredTime::from_time(now);
        let is_due = self.matcher.as_ref().and_then(Matcher::poll_timeout).is_some_and(|due| due <= measured);
        let is_stranded = self.is_stranded(step.roads);
        if is_stranded && (is_due || *step.moves_left > 0) {
            *step.moves_left = step.moves_left.saturating_sub(1);
            let roads: &Roads = step.roads;
            self.move_to(position.and_then(|position| roads.at(position)), step);
        }
        if let (Some(matcher), Some(map), true) = (&mut self.matcher, step.roads.map(self.on), is_due) {
            matcher.handle_timeout(measured);
            self.take_matched(&map.graph, step);
        }
        let late_on = self.late.as_ref().map(|run| (run.on, run.at));
        if late_on.is_some_and(|(on, at)| now.millis_since(at) >= LATE_RUN_MS || step.roads.region(on).is_none()) {
            self.finish_late(step);
        }
    }

    /// The clock was set, after `begin_again`: no matcher is left.
    pub(super) fn handle_clock_set(&mut self, set: ClockSet) {
        set.stamp_measured(&mut self.until);
    }

    /// Moves to another map: all that lies on edges is found again there by its position.
    fn move_to(&mut self, region: Option<&Region>, step: &mut Step<'_>) {
        let number = region.map_or(0, |region| region.number);
        if number == self.on {
            return;
        }
        match (step.roads.map(self.on), region, &mut self.matcher) {
            (Some(old), Some(new), Some(matcher)) => matcher.carry_over(&old.graph, new.traffic.graph(), step.scratch),
            (_, _, matcher) => {
                *matcher = None;
                self.waiting.settle_all(step);
            }
        }
        self.on = number;
        self.finals = Finals::default();
    }

    /// The driver travels by another vehicle, so other roads are open to him.
    pub(crate) fn begin_again(&mut self, step: &mut Step<'_>) {
        self.finish_late(step);
        if let (Some(matcher), Some(region)) = (&mut self.matcher, step.roads.region(self.on)) {
            matcher.flush();
            self.take_matched(region.traffic.graph(), step);
        }
        self.waiting.settle_all(step);
        self.matcher = None;
        self.finals = Finals::default();
    }

    /// What the matchers make of the fixes that wait will not be known: those are recorded without a position.
    pub(crate) fn abandon(&mut self, step: &mut Step<'_>) {
        if let Some(mut run) = self.late.take() {
            *step.late_runs = step.late_runs.saturating_sub(1);
            run.waiting.settle_all(step);
        }
        self.waiting.settle_all(step);
        self.matcher = None;
        self.finals = Finals::default();
    }

    #[cfg(test)]
    pub(crate) fn has_matcher(&self) -> bool {
        self.matcher.is_some()
    }

    fn observe(&mut self, record: &FixRecord, measured: MeasuredTime) -> Observation {
        let (tag, fix) = (self.tag_next, &record.fix);
        self.tag_next += 1;
        Observation {
            tag,
            measured,
            position: fix.position,
            accuracy_m: fix.accuracy_m,
            heading_255: fix.heading_255,
            speed_dm_s: fix.speed_dm_s,
        }
    }

    fn take_matched(&mut self, graph: &Graph, step: &mut Step<'_>) {
        while let Some(matched) = self.matcher.as_mut().and_then(|m| m.poll_matched(graph, step.scratch)) {
            if let Some(snapped) = matched.snapped {
                self.finals.handle_final(snapped, matched.measured);
            }
            self.waiting.settle(&matched, step);
        }
        self.waiting.settle_too_many(step);
    }

    fn finish_late(&mut self, step: &mut Step<'_>) {
        let Some(mut run) = self.late.take() else { return };
        *step.late_runs = step.late_runs.saturating_sub(1);
        let roads: &Roads = step.roads;
        let position = run.waiting.fixes.front().map(|fix| fix.record.fix.position);
        let region = roads.region(run.on).or_else(|| roads.at(position?));
        if let (Some(old), Some(new)) = (roads.map(run.on), region) {
            if run.on != new.number {
                run.matcher.carry_over(&old.graph, new.traffic.graph(), step.scratch);
            }
            run.matcher.finish();
            run.take_matched(new.traffic.graph(), step);
        }
        run.waiting.settle_all(step);
    }
}

impl LateRun {
    fn take_matched(&mut self, graph: &Graph, step: &mut Step<'_>) {
        while let Some(matched) = self.matcher.poll_matched(graph, step.scratch) {
            self.waiting.settle(&matched, step);
        }
        self.waiting.settle_too_many(step);
    }
}

impl WaitingFixes {
    fn push(&mut self, tag: u64, record: &FixRecord, delivery: Option<DeliveryId>, step: &Step<'_>) {
        self.fixes.push_back(WaitingFix { tag, record: *record, delivery, source: step.record_source() });
    }

    /// The matcher's final answer for one fix. The fixes before it that the matcher refused get no position.
    fn settle(&mut self, matched: &Matched, step: &mut Step<'_>) {
        while let Some(tag) = self.fixes.front().map(|fix| fix.tag).filter(|tag| *tag <= matched.tag) {
            self.settle_oldest(matched.snapped.filter(|_| tag == matched.tag), step);
        }
    }

    fn settle_too_many(&mut self, step: &mut Step<'_>) {
        while self.fixes.len() > WAITING_MAX {
            self.settle_oldest(None, step);
        }
    }

    fn settle_all(&mut self, step: &mut Step<'_>) {
        while !self.fixes.is_empty() {
            self.settle_oldest(None, step);
        }
    }

    fn settle_oldest(&mut self, snapped: Option<Snapped>, step: &mut Step<'_>) {
        let Some(WaitingFix { record, delivery, source, .. }) = self.fixes.pop_front() else { return };
        let snapped = snapped.map(|s| SnappedPosition {
            position: s.position,
            edge: s.edge.0,
            along_cm: s.along_cm,
            off_cm: s.off_cm,
            confidence_percent: s.confidence_percent,
        });
        step.effects.breadcrumbs.push(Breadcrumb { record, verdict: Verdict::Accepted, snapped, delivery, source });
    }
}

/// More fixes than a matcher holds.
const WAITING_MAX: usize = 64;
/// The late runs under way in one partition at a time; beyond them late fixes are recorded without a position.
const LATE_RUNS_MAX: u32 = 256;
/// A late run ends when no more of it has come for so long.
const LATE_RUN_MS: i64 = 10_000;
