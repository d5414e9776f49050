//! Gathering the trackers of a snapshot a few at a time, between batches, so that the fold never stands still for it.
//!
//! A snapshot is the state at one offset. While its trackers are gathered the fold goes on, so a tracker that is about
//! to change and was not gathered yet is copied first. Every tracker bears the number of the interval in which it last
//! changed; an interval begins with each snapshot. That number says three things: whether the tracker changed since the
//! snapshot under way began, and so was copied; whether it is younger than that snapshot; and whether it changed since
//! the newest base, and so belongs into a snapshot of what changed.

use protocol::TrackerKey;

use super::dormant::Dormant;
use super::tracker::Tracker;

/// A tracker as it was at the offset of a snapshot.
pub struct TrackerCopy(pub(super) Copied);

pub(super) enum Copied {
    Live(Box<Tracker>),
    Dormant(TrackerKey, Dormant),
}

/// Which interval a tracker last changed in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct Interval(u32);

#[derive(Default)]
pub(super) struct Gathering {
    now: Interval,
    /// The one that began with the newest base.
    base: Interval,
    /// How many trackers have changed or come since the newest base began.
    changed: usize,
    /// Those removed since then. Some of them may have been made again.
    removed: Vec<TrackerKey>,
    run: Option<Run>,
}

/// A snapshot that is being gathered.
struct Run {
    /// Trackers that changed in this interval or later belong into it.
    since: Interval,
    /// Trackers up to this one were gathered.
    passed: Option<TrackerKey>,
    /// Trackers that were copied before they changed.
    copies: Vec<TrackerCopy>,
}

impl Gathering {
    /// Begins a snapshot of all trackers, or of those that have changed since the newest base.
    pub(super) fn begin(&mut self, is_base: bool) {
        self.now.0 += 1;
        if is_base {
            self.base = self.now;
            self.changed = 0;
            self.removed.clear();
        }
        let since = if is_base { Interval::default() } else { self.base };
        self.run = Some(Run { since, passed: None, copies: Vec::new() });
    }

    /// Gives the snapshot under way up.
    pub(super) fn abandon(&mut self) {
        self.run = None;
    }

    /// A tracker is made.
    pub(super) fn handle_made(&mut self) -> Interval {
        self.changed += 1;
        self.now
    }

    /// Which base is the newest: its number.
    pub(super) fn base(&self) -> u32 {
        self.base.0
    }

    pub(super) fn changed(&self) -> usize {
        self.changed
    }

    pub(super) fn removed(&self) -> &[TrackerKey] {
        &self.removed
    }

    /// A tracker may change: its copy is taken if the snapshot under way lacks it.
    pub(super) fn before_change(&mut self, key: TrackerKey, changed_in: &mut Interval, copy: impl FnOnce() -> Copied) {
        let (base, last) = (self.base, std::mem::replace(changed_in, self.now));
        if last == self.now {
            return;
        }
        self.changed += usize::from(last < base);
        if let Some(run) = &mut self.run
            && last >= run.since
            && run.passed.is_none_or(|passed| passed < key)
        {
            run.copies.push(TrackerCopy(copy()));
        }
    }

    pub(super) fn handle_removed(&mut self, key: TrackerKey) {
        self.removed.push(key);
    }

    /// Where to go on, and what was copied meanwhile; None if no snapshot is under way.
    pub(super) fn resume(&mut self) -> Option<(Option<TrackerKey>, Vec<TrackerCopy>)> {
        let run = self.run.as_mut()?;
        Some((run.passed, std::mem::take(&mut run.copies)))
    }

    /// Passes a tracker by. Whether it is to be copied.
    pub(super) fn pass(&mut self, key: TrackerKey, changed_in: Interval) -> bool {
        let now = self.now;
        self.run.as_mut().is_some_and(|run| {
            run.passed = Some(key);
            (run.since..now).contains(&changed_in)
        })
    }
}

/// Of one step. Some 2 ms: about 16 for the copy of a tracker at work, 1 for passing one by.
pub const WORK_PER_STEP: usize = 8_192;
