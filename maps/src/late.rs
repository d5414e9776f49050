//! A second, short-lived matcher for a run of late fixes: those a phone kept while it had no network and sends when the
//! live ones have long gone on. It begins at the last final place before the run, ends where the live matcher began,
//! and never disturbs the live one. Whoever keeps the pool bounds it; one of these is as small as a matcher.

use protocol::MeasuredTime;
use wincode::{SchemaRead, SchemaWrite};

use crate::class::Profile;
use crate::graph::Graph;
use crate::matcher::{Matched, Matcher, Observation, Scratch, Snapped};

/// A matcher for one run of late fixes.
#[derive(Clone, PartialEq, Debug, SchemaWrite, SchemaRead)]
pub struct LateMatcher {
    matcher: Matcher,
    until: MeasuredTime,
}

impl LateMatcher {
    /// For fixes measured before `until`, after the last final place before them if there is one.
    pub fn new(
        profile: Profile,
        graph: &Graph,
        before: Option<(&Snapped, MeasuredTime)>,
        until: MeasuredTime,
    ) -> LateMatcher {
        let matcher = match before {
            Some((snapped, measured)) => Matcher::seeded(profile, graph, snapped, measured),
            None => Matcher::new(profile),
        };
        LateMatcher { matcher, until }
    }

    /// Whether a fix belongs to this run: not after where the live matcher began, not before what came already.
    pub fn takes(&self, measured: MeasuredTime) -> bool {
        measured < self.until && self.matcher.measured_last().is_none_or(|last| measured >= last)
    }

    /// Takes a fix of the run, in measured order. False if it does not belong to it.
    pub fn handle_fix(&mut self, graph: &Graph, scratch: &mut Scratch, fix: &Observation) -> bool {
        if !self.takes(fix.measured) {
            return false;
        }
        self.matcher.handle_fix(graph, scratch, fix);
        true
    }

    /// No more of this run will come. Then poll.
    pub fn finish(&mut self) {
        self.matcher.flush();
    }

    /// The next fix whose place is final.
    pub fn poll_matched(&mut self, graph: &Graph, scratch: &mut Scratch) -> Option<Matched> {
        self.matcher.poll_matched(graph, scratch)
    }

    /// Whether all that came has come out.
    pub fn is_empty(&self) -> bool {
        self.matcher.held_len() == 0
    }

    /// See `Matcher::carry_over`.
    pub fn carry_over(&mut self, old: &Graph, new: &Graph, scratch: &mut Scratch) {
        self.matcher.carry_over(old, new, scratch);
    }
}
