//! One driver's fixes on the road: where each is at once, and its breadcrumb when its place is final. Live fixes have one
//! matcher; a run of late ones gets a second, short-lived one, so that a backlog is placed too and disturbs nothing.
//!
//! **Invariant:** every fix handed in gives one breadcrumb, whatever the matchers make of it.

use std::collections::VecDeque;

use maps::late::LateMatcher;
use maps::matcher::{Matched, Matcher, Observation, Snapped};
use protocol::update::{SnappedPosition, Source};
use protocol::{Breadcrumb, DeliveryId, FixRecord, MeasuredTime, Time, Verdict};
use wincode::{SchemaRead, SchemaWrite};

use super::effects::Step;
use super::roads::{PROFILE, RoadMap};

#[derive(Clone, PartialEq, Debug, SchemaWrite, SchemaRead)]
pub struct Snapping {
    matcher: Option<Matcher>,
    /// The newest time the matcher was given.
    until: MeasuredTime,
    tag_next: u64,
    waiting: Waiting,
    late: Option<LateRun>,
}

/// A backlog on its way through a matcher of its own.
#[derive(Clone, PartialEq, Debug, SchemaWrite, SchemaRead)]
struct LateRun {
    matcher: LateMatcher,
    waiting: Waiting,
    /// When the last of it came, in the fold's time.
    at: Time,
}

/// Fixes whose final place is still to come, in the order of their tags.
#[derive(Clone, PartialEq, Debug, Default, SchemaWrite, SchemaRead)]
struct Waiting {
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
    pub fn new() -> Snapping {
        Snapping { matcher: None, until: MeasuredTime(i64::MIN), tag_next: 0, waiting: Waiting::default(), late: None }
    }

    /// Nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.waiting.fixes.is_empty() && self.late.is_none()
    }

    pub fn has_late_run(&self) -> bool {
        self.late.is_some()
    }

    /// Where on the road the newest fix is, as far as one can know by now.
    pub fn handle_newest(
        &mut self,
        record: &FixRecord,
        at: Time,
        delivery: Option<DeliveryId>,
        step: &mut Step<'_>,
    ) -> Option<Snapped> {
        let Some(roads) = step.roads.filter(|roads| roads.covers(record.fix.position)) else {
            step.record(*record, Verdict::Accepted, delivery);
            return None;
        };
        step.effects.counts.judged(Verdict::Accepted);
        self.until = MeasuredTime::from_time(at).max(self.until);
        let observation = self.observe(record, self.until);
        self.waiting.push(observation.tag, record, delivery, step);
        let matcher = self.matcher.get_or_insert_with(|| Matcher::new(PROFILE));
        let snapped = matcher.handle_fix(&roads.graph, step.scratch, &observation);
        self.take_matched(roads, step);
        snapped
    }

    /// A fix that comes after newer ones.
    pub fn handle_late(&mut self, record: &FixRecord, at: Time, delivery: Option<DeliveryId>, step: &mut Step<'_>) {
        let measured = MeasuredTime::from_time(at);
        let roads = step.roads.filter(|roads| roads.covers(record.fix.position));
        if self.late.as_ref().is_some_and(|run| !run.matcher.takes(measured)) {
            self.finish_late(step);
        }
        let has_room = self.late.is_some() || *step.late_runs < LATE_RUNS_MAX;
        let (Some(roads), true) = (roads, has_room) else { return step.record(*record, Verdict::Accepted, delivery) };
        step.effects.counts.judged(Verdict::Accepted);
        let observation = self.observe(record, measured);
        let until = MeasuredTime(self.until.0.max(measured.0).saturating_add(1));
        let run = self.late.get_or_insert_with(|| {
            *step.late_runs += 1;
            let matcher = LateMatcher::new(PROFILE, &roads.graph, None, until);
            LateRun { matcher, waiting: Waiting::default(), at: step.clock.now() }
        });
        run.at = step.clock.now();
        run.waiting.push(observation.tag, record, delivery, step);
        run.matcher.handle_fix(&roads.graph, step.scratch, &observation);
        run.take_matched(roads, step);
    }

    /// Time has passed: places become final without another fix, and a late run that goes on no more ends.
    pub fn handle_tick(&mut self, step: &mut Step<'_>) {
        let now = step.clock.now();
        if let (Some(matcher), Some(roads)) = (&mut self.matcher, step.roads) {
            let measured = MeasuredTime::from_time(now);
            if matcher.poll_timeout().is_some_and(|due| due <= measured) {
                matcher.handle_timeout(measured);
                self.take_matched(roads, step);
            }
        }
        if self.late.as_ref().is_some_and(|run| now.millis_since(run.at) >= LATE_RUN_MS) {
            self.finish_late(step);
        }
    }

    /// Another map is in use: all that lies on edges moves over by position.
    pub fn carry_over(&mut self, old: Option<&RoadMap>, step: &mut Step<'_>) {
        match (old, step.roads) {
            (Some(old), Some(new)) => {
                if let Some(matcher) = &mut self.matcher {
                    matcher.carry_over(&old.graph, &new.graph, step.scratch);
                }
                if let Some(run) = &mut self.late {
                    run.matcher.carry_over(&old.graph, &new.graph, step.scratch);
                }
            }
            (Some(_), None) | (None, _) => {
                self.matcher = None;
                self.waiting.settle_all(step);
                self.finish_late(step);
            }
        }
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

    fn take_matched(&mut self, roads: &RoadMap, step: &mut Step<'_>) {
        while let Some(matched) = self.matcher.as_mut().and_then(|m| m.poll_matched(&roads.graph, step.scratch)) {
            self.waiting.settle(&matched, step);
        }
        self.waiting.settle_too_many(step);
    }

    fn finish_late(&mut self, step: &mut Step<'_>) {
        let Some(mut run) = self.late.take() else { return };
        *step.late_runs = step.late_runs.saturating_sub(1);
        run.matcher.finish();
        if let Some(roads) = step.roads {
            run.take_matched(roads, step);
        }
        run.waiting.settle_all(step);
    }
}

impl LateRun {
    fn take_matched(&mut self, roads: &RoadMap, step: &mut Step<'_>) {
        while let Some(matched) = self.matcher.poll_matched(&roads.graph, step.scratch) {
            self.waiting.settle(&matched, step);
        }
        self.waiting.settle_too_many(step);
    }
}

impl Waiting {
    fn push(&mut self, tag: u64, record: &FixRecord, delivery: Option<DeliveryId>, step: &Step<'_>) {
        self.fixes.push_back(WaitingFix { tag, record: *record, delivery, source: step.place() });
    }

    /// The matcher's last word on one; those before it that it refused get theirs without a place.
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
/// Late runs that one partition places at a time; beyond them late fixes are recorded without a place.
const LATE_RUNS_MAX: u32 = 256;
/// A late run ends when no more of it has come for so long.
const LATE_RUN_MS: i64 = 10_000;
