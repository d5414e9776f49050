//! When the silence of a driver may be judged otherwise than before, so that nobody has to be judged every second.
//!
//! Silence is judged by the marks of edges (`FoldClock::silence`). A mark moves on with time, at most a little faster
//! than the fold's own time: as long as that holds it can be said when a mark passes a driver's time-out at the earliest.
//! Anything else (an edge comes, goes, has a gap, jumps) is a change after which everybody is judged anew.

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
}

impl Listening {
    /// Called at each tick, before anybody is judged. True if everybody has to be judged anew.
    pub(super) fn refresh(&mut self, clock: &FoldClock) -> bool {
        let now = clock.now();
        let is_as_it_was = |edge: &Edge, listener: &Listener| {
            edge.edge == listener.edge
                && edge.steady_since == listener.steady_since
                && edge.is_fresh == listener.is_fresh
                && listener.received_before.millis_since(now) <= edge.ahead_ms.saturating_add(MARK_GRACE_MS)
        };
        let mut known = self.edges.iter();
        let mut listeners = clock.listeners();
        let is_same = listeners.by_ref().all(|listener| known.next().is_some_and(|edge| is_as_it_was(edge, &listener)));
        if is_same && known.next().is_none() {
            return false;
        }
        let edge = |listener: Listener| Edge {
            edge: listener.edge,
            steady_since: listener.steady_since,
            is_fresh: listener.is_fresh,
            ahead_ms: listener.received_before.millis_since(now),
        };
        self.edges = clock.listeners().map(edge).collect();
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
            Time(needed.0.saturating_sub(ahead_ms).saturating_sub(MARK_GRACE_MS))
        };
        match silent {
            None => {
                let by_back_end = Time(timeout.0.saturating_add(MARK_GRACE_MS));
                Some(listener.map_or(by_back_end, |listener| by_mark(listener).min(by_back_end)))
            }
            Some(SilentCause::BackEnd) => listener.filter(|listener| listener.is_fresh).map(by_mark),
            Some(SilentCause::Driver) => None,
        }
    }
}
