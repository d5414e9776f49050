//! When the silence of a driver may be judged otherwise than before, so that nobody has to be judged every second.
//!
//! Silence is judged by the marks of edges (`FoldClock::silence`). A mark moves on with time, a little faster or slower
//! than the fold's own time: as long as that holds it can be said when a mark passes a driver's time-out at the earliest.
//! A mark that stands passes nothing. Anything else (an edge comes, goes, has a gap, jumps, falls behind, moves again) is
//! a change after which everybody is judged anew.

use protocol::update::SilentCause;
use protocol::{EdgeId, Time};

use super::clock::{FoldClock, Listener, MARK_GRACE_MS};

/// How the edges' marks stood when they changed last. Derived: a restored fold begins with another look at the marks.
#[derive(Default)]
pub(super) struct Listening {
    edges: Vec<Edge>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Edge {
    edge: EdgeId,
    steady_since: Time,
    is_fresh: bool,
    /// How far its mark was ahead of the fold's time.
    ahead_ms: i64,
    received_before: Time,
    /// The fold's time when its mark was seen to have moved.
    moved: Time,
    /// It is repeated without moving on.
    stands: bool,
}

impl Listening {
    /// Called at each tick, before anybody is judged. True if everybody has to be judged anew.
    pub(super) fn refresh(&mut self, clock: &FoldClock) -> bool {
        let now = clock.now();
        let mut known = self.edges.iter_mut();
        let mut listeners = clock.listeners();
        let is_same = listeners.by_ref().all(|listener| known.next().is_some_and(|edge| edge.goes_on(&listener, now)));
        if is_same && known.next().is_none() {
            return false;
        }
        let before = std::mem::take(&mut self.edges);
        self.edges = clock.listeners().map(|listener| Edge::of(&listener, &before, now)).collect();
        true
    }

    /// The clock was set: all are judged anew.
    pub(super) fn handle_clock_set(&mut self) {
        self.edges.clear();
    }

    /// The earliest time at which a driver who was judged `silent` may be judged otherwise, if the edges go on as they
    /// are. None: not at all.
    pub(super) fn due(
        &self,
        clock: &FoldClock,
        edge: EdgeId,
        heard: Time,
        timeout_ms: i64,
        silent: Option<SilentCause>,
    ) -> Option<Time> {
        let timeout = Time(heard.0.saturating_add(timeout_ms));
        let listener = clock.listener(edge);
        let by_mark = |listener: Listener| {
            let needed = timeout.max(Time(listener.steady_since.0.saturating_add(timeout_ms)));
            let known = self.edges.iter().find(|known| known.edge == listener.edge);
            let ahead_ms = known.map_or(i64::MAX / 4, |known| known.ahead_ms);
            let passes = Time(needed.0.saturating_sub(ahead_ms).saturating_sub(MARK_GRACE_MS));
            known.is_none_or(|known| !known.stands).then_some(passes)
        };
        match silent {
            None => {
                let by_back_end = Time(timeout.0.saturating_add(MARK_GRACE_MS));
                Some(listener.and_then(by_mark).map_or(by_back_end, |passes| passes.min(by_back_end)))
            }
            Some(SilentCause::BackEnd) => listener.filter(|listener| listener.is_fresh).and_then(by_mark),
            Some(SilentCause::Driver) => None,
        }
    }
}

impl Edge {
    fn of(listener: &Listener, before: &[Edge], now: Time) -> Edge {
        let Listener { edge, received_before, steady_since, is_fresh } = *listener;
        let unmoved = before.iter().find(|known| known.edge == edge && known.received_before == received_before);
        let moved = unmoved.map_or(now, |known| known.moved);
        let stands = now.millis_since(moved) >= MARK_GRACE_MS;
        let ahead_ms = received_before.millis_since(now);
        Edge { edge, steady_since, is_fresh, ahead_ms, received_before, moved, stands }
    }

    /// False if it is not as was expected.
    fn goes_on(&mut self, listener: &Listener, now: Time) -> bool {
        let Listener { edge, received_before, steady_since, is_fresh } = *listener;
        if (edge, steady_since, is_fresh) != (self.edge, self.steady_since, self.is_fresh) {
            return false;
        }
        let has_moved = received_before != self.received_before;
        if self.stands {
            return !has_moved;
        }
        if has_moved {
            (self.received_before, self.moved) = (received_before, now);
        }
        self.stands = now.millis_since(self.moved) >= MARK_GRACE_MS;
        let drift_ms = received_before.millis_since(now).saturating_sub(self.ahead_ms);
        drift_ms.saturating_abs() <= MARK_GRACE_MS
    }
}
