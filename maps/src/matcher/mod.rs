//! Places fixes on roads while they arrive. A hidden Markov model: each used fix has a few places it may belong to,
//! each place a cost from how far the fix lies beside the road, each pair of places a cost from how much the way
//! between them differs from the straight line between the fixes. The cheapest chain is what was driven. At once we say
//! where the chain of the moment ends (provisional); 30 to 40 s of measured time later we say what the chain turned out
//! to be, and that stands (final).
//!
//! **Invariant:** the state is bounded (≤ 4 KB), and a function of the observations alone: the same on every machine.
//! Every observation that is not refused comes out of `poll_matched` exactly once, in order.
//!
//! Sketch: 150,000 fixes/s on a core are 6.7 µs for a fix: 0.8 µs for the candidates, 1 to 3 µs for one search over
//! some tens of edges, the rest for two dozen costs and the way between final places.

mod project;
mod search;
mod step;
mod trellis;
pub mod trip;
mod weights;

#[cfg(test)]
mod tests;

use protocol::{Fix, MeasuredTime, Position};
use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

use crate::class::Profile;
use crate::geo;
use crate::graph::{EdgeId, Graph};
use project::{project, project_on_way};
use search::Place;
pub use step::Scratch;
use trellis::{State, Trellis};
pub use weights::Weights;
use weights::{COLUMNS_MAX, HELD_FULL, HELD_MAX, LOOK_AHEAD_MAX_DS, LOOK_AHEAD_MIN_DS, USED_APART_DS};

/// What the matcher is told of a fix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Observation {
    /// Whatever the caller knows it by.
    pub tag: u64,
    pub measured: MeasuredTime,
    pub position: Position,
    pub accuracy_m: Option<u8>,
    pub heading_255: Option<u8>,
    pub speed_dm_s: Option<u16>,
}

impl Observation {
    pub fn of(tag: u64, fix: &Fix) -> Observation {
        Observation {
            tag,
            measured: fix.measured,
            position: fix.position,
            accuracy_m: fix.accuracy_m,
            heading_255: fix.heading_255,
            speed_dm_s: fix.speed_dm_s,
        }
    }
}

/// A fix placed on the road graph.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
pub struct Snapped {
    pub edge: EdgeId,
    /// From the edge's start.
    pub along_cm: u32,
    /// From the fix.
    pub off_cm: u32,
    pub position: Position,
    /// Of the road there, in the direction of travel.
    pub heading_255: u8,
    /// Provisional: how likely the driver is here or within 20 m. Final: how likely it was this very edge.
    pub confidence_percent: u8,
}

/// The final word on a fix.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Matched {
    pub tag: u64,
    pub measured: MeasuredTime,
    /// None for what belongs to no road: a car park, a private drive, a wild jump.
    pub snapped: Option<Snapped>,
    /// The edges entered since the previous placed fix, in order, the last being this one's; empty while it is still on
    /// the same edge, and at a break.
    pub route: Vec<EdgeId>,
    /// Nothing connects this place to the previous one: the first, or after a silence, a jump, a stretch off the roads.
    pub is_break: bool,
}

/// One driver's matcher.
#[derive(Clone, PartialEq, Debug, SchemaWrite, SchemaRead)]
pub struct Matcher {
    profile: u8,
    /// The newest measured time that was handed in, by a fix or a time-out.
    clock: Option<MeasuredTime>,
    measured_last: Option<MeasuredTime>,
    /// Between the last two fixes: when to expect another.
    interval_ds: u32,
    trellis: Trellis,
    /// Number of the trellis's first column.
    column_first: u32,
    held: Vec<Held>,
    /// The final place given out last.
    place_last: Option<Place>,
    /// The newest fix could not be reached from the ones before. One such is dropped, two are a break.
    is_suspect: bool,
    is_flushing: bool,
}

/// A fix that waits for its final place.
#[derive(Clone, Copy, PartialEq, Debug, SchemaWrite, SchemaRead)]
struct Held {
    tag: u64,
    measured: MeasuredTime,
    position: Position,
    /// Number of its column, or of the last one before it.
    column: u32,
    role: Role,
}

/// How a fix takes part.
#[derive(Clone, Copy, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
#[wincode(tag_encoding = "u8")]
enum Role {
    /// It has a column of its own.
    Used,
    /// Too close to its neighbours to tell anything new: it is placed between them.
    Between,
    /// It belongs nowhere.
    Lost,
}

impl Matcher {
    pub fn new(profile: Profile) -> Matcher {
        Matcher {
            profile: profile.number(),
            clock: None,
            measured_last: None,
            interval_ds: 0,
            trellis: Trellis::default(),
            column_first: 0,
            held: Vec::new(),
            place_last: None,
            is_suspect: false,
            is_flushing: false,
        }
    }

    /// One that goes on from a place that is already final.
    pub fn seeded(profile: Profile, graph: &Graph, snapped: &Snapped, measured: MeasuredTime) -> Matcher {
        let mut matcher = Matcher::new(profile);
        if snapped.edge.index() >= graph.edge_count() {
            return matcher;
        }
        let along_cm = snapped.along_cm.min(graph.length_cm(snapped.edge));
        let state = State { edge: snapped.edge.0, along_cm, off_cm: 0, parent: trellis::NO_PARENT, cost: 0.0 };
        matcher.trellis.push(measured, snapped.position, true, 100, &[state]);
        matcher.trellis.decide(0);
        matcher.place_last = Some(Place { edge: snapped.edge, along_cm });
        matcher.measured_last = Some(measured);
        matcher
    }

    pub fn profile(&self) -> Profile {
        Profile::from_number(self.profile).unwrap_or(Profile::Car) // written by us
    }

    /// The newest measured time of a fix that was taken.
    pub fn measured_last(&self) -> Option<MeasuredTime> {
        self.measured_last
    }

    /// Fixes that were taken and have not come out yet.
    pub fn held_len(&self) -> usize {
        self.held.len()
    }

    /// Takes a fix and says where it is as far as one can know by now. None if it belongs to no road, or is refused:
    /// older than one before it, or one of more than 48 that nobody polled.
    ///
    /// **Contract:** `poll_matched` is called until it is empty after every fix and time-out, always with the same graph
    /// until `carry_over` says otherwise; `handle_timeout` is called when `poll_timeout` has passed.
    pub fn handle_fix(&mut self, graph: &Graph, scratch: &mut Scratch, fix: &Observation) -> Option<Snapped> {
        if self.measured_last.is_some_and(|last| fix.measured < last) || self.held.len() >= HELD_MAX {
            return None;
        }
        if let Some(last) = self.measured_last {
            self.interval_ds = fix.measured.0.saturating_sub(last.0).clamp(0, 600) as u32;
        }
        self.measured_last = Some(fix.measured);
        self.clock = self.clock.max(self.measured_last);
        self.is_flushing = false;
        let (role, snapped) = self.place(graph, scratch, fix);
        let column = self.column_first.wrapping_add(self.trellis.len().saturating_sub(1) as u32);
        if self.held.len() == self.held.capacity() {
            self.held.reserve_exact(HELD_MAX / 4);
        }
        self.held.push(Held { tag: fix.tag, measured: fix.measured, position: fix.position, column, role });
        snapped
    }

    /// The next fix whose place is final.
    pub fn poll_matched(&mut self, graph: &Graph, scratch: &mut Scratch) -> Option<Matched> {
        let held = *self.held.first()?;
        if !self.is_due(&held) {
            return None;
        }
        self.held.remove(0);
        if self.held.is_empty() {
            self.is_flushing = false;
        }
        let matched = match held.role {
            Role::Used => self.finish_used(graph, scratch, &held),
            Role::Between => self.finish_between(graph, scratch, &held),
            Role::Lost => None,
        };
        let (snapped, route, is_break) = matched.map_or((None, Vec::new(), false), |(s, r, b)| (Some(s), r, b));
        Some(Matched { tag: held.tag, measured: held.measured, snapped, route, is_break })
    }

    /// When `handle_timeout` should be called if no fix comes before.
    pub fn poll_timeout(&self) -> Option<MeasuredTime> {
        self.held.first().map(|held| MeasuredTime(held.measured.0.saturating_add(LOOK_AHEAD_MAX_DS)))
    }

    /// So much measured time has passed, whether fixes came or not. Then poll.
    pub fn handle_timeout(&mut self, now: MeasuredTime) {
        self.clock = self.clock.max(Some(now));
    }

    /// Makes everything final that is held: the driver stopped, fell silent, finished. Then poll.
    pub fn flush(&mut self) {
        self.is_flushing = !self.held.is_empty();
    }

    /// Moves to another version of the map: every place goes to the edge that lies there and leads the same way. What
    /// has none belongs to no road from then on.
    pub fn carry_over(&mut self, old: &Graph, new: &Graph, scratch: &mut Scratch) {
        let profile = self.profile();
        let mut moved = |edge: EdgeId, along_cm: u32| {
            let (position, heading) = (edge.index() < old.edge_count()).then(|| old.place_at(edge, along_cm))?;
            new.candidates(position, CARRY_OVER_M, profile, &mut scratch.candidates);
            let same = scratch.candidates.iter().find(|c| geo::turn_cdeg(c.heading_cdeg, heading) <= CARRY_OVER_CDEG);
            same.map(|c| (c.edge.0, c.along_cm))
        };
        self.trellis.replace_edges(|state| moved(state.edge(), state.along_cm));
        self.place_last = self.place_last.and_then(|place| {
            let (edge, along_cm) = moved(place.edge, place.along_cm)?;
            Some(Place { edge: EdgeId(edge), along_cm })
        });
    }

    fn is_due(&self, held: &Held) -> bool {
        let Some(clock) = self.clock else { return false };
        let waited_ds = clock.0.saturating_sub(held.measured.0);
        let is_too_late_then = waited_ds.saturating_add(i64::from(self.interval_ds)) > LOOK_AHEAD_MAX_DS;
        self.is_flushing
            || self.held.len() >= HELD_FULL
            || self.trellis.len() >= COLUMNS_MAX
            || waited_ds >= LOOK_AHEAD_MAX_DS
            || waited_ds >= LOOK_AHEAD_MIN_DS && is_too_late_then
    }

    fn index_of(&self, held: &Held) -> usize {
        held.column.wrapping_sub(self.column_first) as usize
    }

    /// Finds the places of a fix, adds its column if it tells anything new, and says which is the likeliest.
    fn place(&mut self, graph: &Graph, scratch: &mut Scratch, fix: &Observation) -> (Role, Option<Snapped>) {
        if !fix.position.is_on_earth() {
            return (Role::Lost, None);
        }
        let profile = self.profile();
        let Some(last) = self.trellis.last() else {
            scratch.gather(graph, profile, fix);
            scratch.begin_chain(graph, profile, fix);
            return (Role::Used, self.add_column(scratch, fix, true));
        };
        let seconds = fix.measured.seconds_since(last.measured) as f32;
        if geo::distance_cm(last.position, fix.position) < f64::from(scratch.weights.skip_cm(seconds)) {
            self.is_suspect = false;
            return (Role::Between, self.beside_last(graph, fix));
        }
        scratch.gather(graph, profile, fix);
        let is_reached = scratch.follow(graph, profile, last, self.trellis.last_states(), fix);
        let is_too_soon = fix.measured.0.saturating_sub(last.measured.0) < USED_APART_DS;
        if is_reached && (is_too_soon || self.trellis.len() >= COLUMNS_MAX) {
            return (Role::Between, best_snapped(scratch));
        }
        if is_reached {
            return (Role::Used, self.add_column(scratch, fix, false));
        }
        if !self.is_suspect || self.trellis.len() >= COLUMNS_MAX {
            self.is_suspect = true;
            return (Role::Lost, None);
        }
        self.forget_lone();
        if let Some(begun) = self.begin_at_suspect(graph, scratch, fix) {
            return begun;
        }
        scratch.gather(graph, profile, fix);
        scratch.begin_chain(graph, profile, fix);
        (Role::Used, self.add_column(scratch, fix, true))
    }

    /// A fix from which nothing goes on and to which nothing led, the first of a trip or one after a break, was astray.
    fn forget_lone(&mut self) {
        let is_lone = self.trellis.len() == 1 && self.trellis.column(0).is_break && self.trellis.chosen(0).is_none();
        let is_of_it = |held: &&mut Held| held.column == self.column_first && held.role != Role::Lost;
        let mut of_it = self.held.iter_mut().filter(is_of_it);
        if let (true, Some(lone), None) = (is_lone, of_it.next(), of_it.next()) {
            lone.role = Role::Lost;
        }
    }

    /// Two fixes in a row that cannot be reached from what came before: if the second can be from the first, that one
    /// was right, and the new chain begins with it. None if it cannot, or is no longer held.
    fn begin_at_suspect(
        &mut self,
        graph: &Graph,
        scratch: &mut Scratch,
        fix: &Observation,
    ) -> Option<(Role, Option<Snapped>)> {
        let profile = self.profile();
        let suspect = *self.held.last().filter(|held| held.role == Role::Lost && held.position.is_on_earth())?;
        if self.trellis.len() + 2 > COLUMNS_MAX {
            return None;
        }
        let Held { tag, measured, position, .. } = suspect;
        let first = Observation { tag, measured, position, accuracy_m: None, heading_255: None, speed_dm_s: None };
        scratch.gather(graph, profile, &first);
        scratch.begin_chain(graph, profile, &first);
        let (states, confidence_percent) = (scratch.states.clone(), scratch.confidence_percent());
        let mut begun = Trellis::default();
        begun.push(measured, position, true, confidence_percent, &states);
        scratch.gather(graph, profile, fix);
        let is_reached = begun.last().is_some_and(|column| scratch.follow(graph, profile, column, &states, fix));
        if !is_reached {
            return None;
        }
        self.trellis.push(measured, position, true, confidence_percent, &states);
        let column = self.column_first.wrapping_add(self.trellis.len().saturating_sub(1) as u32);
        self.held.last_mut().into_iter().for_each(|held| (held.role, held.column) = (Role::Used, column));
        self.is_suspect = false;
        if fix.measured.0.saturating_sub(measured.0) < USED_APART_DS {
            return Some((Role::Between, best_snapped(scratch)));
        }
        Some((Role::Used, self.add_column(scratch, fix, false)))
    }

    fn add_column(&mut self, scratch: &mut Scratch, fix: &Observation, is_break: bool) -> Option<Snapped> {
        self.is_suspect = false;
        let confidence_percent = scratch.confidence_percent();
        self.trellis.push(fix.measured, fix.position, is_break, confidence_percent, &scratch.states);
        best_snapped(scratch)
    }

    /// Where a fix that was not used is: on the edge of the likeliest place, or on one that follows.
    fn beside_last(&self, graph: &Graph, fix: &Observation) -> Option<Snapped> {
        let states = self.trellis.last_states();
        let state = states[trellis::best_of(states)?];
        if state.is_off_road() {
            return None;
        }
        let mut best = project(graph, state.edge(), fix.position, (0, u32::MAX));
        if best.place.along_cm >= graph.length_cm(state.edge()) {
            let profile = self.profile();
            for next in graph.out_edges(graph.to(state.edge())) {
                let is_way = graph.allows(next, profile)
                    && !graph.is_u_turn(state.edge(), next)
                    && graph.is_turn_allowed(state.edge(), next, profile);
                let projection = project(graph, next, fix.position, (0, u32::MAX));
                if is_way && projection.off_cm < best.off_cm {
                    best = projection;
                }
            }
        }
        let confidence_percent = self.trellis.last().map_or(0, |c| c.confidence_percent);
        Some(snapped_at(graph, best.place, best.off_cm, confidence_percent))
    }

    /// The final place of a fix that has a column, and the way there.
    fn finish_used(&mut self, graph: &Graph, scratch: &mut Scratch, held: &Held) -> Option<Finished> {
        let k = self.index_of(held);
        if let Some(finished) = self.wait_at_fork(graph, scratch, k) {
            self.drop_columns(k);
            return Some(finished);
        }
        self.trellis.decide(k);
        self.drop_columns(k);
        let column = *self.trellis.column(0);
        let state = self.trellis.chosen(0).filter(|s| !s.is_off_road()).copied();
        let Some(state) = state else {
            self.place_last = None;
            return None;
        };
        let place = place_of(&state);
        let before = self.place_last.replace(place).filter(|_| !column.is_break);
        let is_connected = before.is_some_and(|before| {
            let Scratch { search, route, weights, .. } = scratch;
            search.path(graph, self.profile(), weights, before, place, route)
                && is_plausible_way(graph, before, place, route)
        });
        let route = if is_connected { scratch.route.clone() } else { Vec::new() };
        let off_cm = u32::from(state.off_cm);
        Some((snapped_at(graph, place, off_cm, column.confidence_percent), route, !is_connected))
    }

    fn drop_columns(&mut self, count: usize) {
        self.trellis.drop_front(count);
        self.column_first = self.column_first.wrapping_add(count as u32);
    }

    /// Where a column cannot be decided yet because its likely places lie just behind a fork, on different branches:
    /// the driver stands there, and is placed where the branches part. None if it must be decided, or can be.
    fn wait_at_fork(&mut self, graph: &Graph, scratch: &mut Scratch, k: usize) -> Option<Finished> {
        let before = self.place_last.filter(|_| !self.is_flushing)?;
        if self.trellis.column(k).is_break || self.trellis.chosen(k).is_some() {
            return None;
        }
        let Scratch { search, route, way, weights, .. } = scratch;
        let margins = self.trellis.margins(k)?;
        let states = self.trellis.states(k);
        let likely = (0..states.len()).filter(|i| margins[*i] < weights.sure);
        if likely.clone().count() < 2 || likely.clone().any(|i| states[i].is_off_road()) {
            return None;
        }
        let mut meeting: Option<Place> = None;
        let mut kept = 0u32;
        for i in likely {
            kept |= 1 << i;
            let place = place_of(&states[i]);
            if !search.path(graph, self.profile(), weights, before, place, route) {
                return None;
            }
            match meeting {
                None => {
                    way.clear();
                    way.push(before.edge);
                    way.extend_from_slice(route);
                    meeting = Some(place);
                }
                Some(met) => {
                    let common = way[1..].iter().zip(route.iter()).take_while(|(a, b)| a == b).count();
                    let is_parting = common + 1 < way.len();
                    way.truncate(common + 1);
                    let last = way[common];
                    let mut along_cm = if is_parting { graph.length_cm(last) } else { met.along_cm };
                    if common == route.len() {
                        along_cm = along_cm.min(place.along_cm);
                    }
                    meeting = Some(Place { edge: last, along_cm });
                }
            }
        }
        let mut meeting = meeting?;
        if meeting.edge == before.edge {
            meeting.along_cm = meeting.along_cm.max(before.along_cm);
        }
        let position = self.trellis.column(k).position;
        let projection = project(graph, meeting.edge, position, (meeting.along_cm, meeting.along_cm));
        if projection.off_cm as f32 > weights.wait_m * 100.0 {
            return None;
        }
        // What is no longer likely may not lie behind the place we give out.
        self.trellis.keep_only(k, kept);
        self.place_last = Some(meeting);
        Some((snapped_at(graph, meeting, projection.off_cm, FORK_PERCENT), way[1..].to_vec(), false))
    }

    /// The final place of a fix between two columns: the nearest on the way between them. Where that way is not decided
    /// yet, no further than the edge that is: a fix that tells nothing must not force a decision.
    fn finish_between(&mut self, graph: &Graph, scratch: &mut Scratch, held: &Held) -> Option<Finished> {
        let before = self.place_last?;
        let k = self.index_of(held);
        let after = (k + 1 < self.trellis.len() && !self.trellis.column(k + 1).is_break)
            .then(|| self.trellis.chosen(k + 1).filter(|s| !s.is_off_road()).copied());
        let Scratch { search, route, way, weights, .. } = scratch;
        way.clear();
        way.push(before.edge);
        let mut to_cm = u32::MAX;
        if let Some(Some(after)) = after
            && search.path(graph, self.profile(), weights, before, place_of(&after), route)
        {
            way.extend_from_slice(route);
            to_cm = after.along_cm;
        }
        let (at, projection) = project_on_way(graph, way, (before.along_cm, to_cm), held.position)?;
        let place = projection.place;
        self.place_last = Some(place);
        let confidence_percent = self.trellis.column(k).confidence_percent;
        Some((snapped_at(graph, place, projection.off_cm, confidence_percent), way[1..=at].to_vec(), false))
    }

    #[cfg(test)]
    fn heap_bytes(&self) -> usize {
        self.trellis.heap_bytes() + self.held.capacity() * size_of::<Held>()
    }
}

/// A final place, the way there, and whether there is none.
type Finished = (Snapped, Vec<EdgeId>, bool);

fn place_of(state: &State) -> Place {
    Place { edge: state.edge(), along_cm: state.along_cm }
}

/// Whether a way is one that a step would have looked at; a longer one only seems to connect its ends.
fn is_plausible_way(graph: &Graph, from: Place, to: Place, route: &[EdgeId]) -> bool {
    let straight_cm =
        geo::distance_cm(graph.position_at(from.edge, from.along_cm), graph.position_at(to.edge, to.along_cm));
    let whole_cm: f64 = route.iter().rev().skip(1).map(|e| f64::from(graph.length_cm(*e))).sum();
    whole_cm <= straight_cm * 3.0 + WAY_SLACK_CM
}

/// The likeliest place that a step found.
fn best_snapped(scratch: &Scratch) -> Option<Snapped> {
    let candidate = scratch.candidates.get(usize::from(*scratch.state_candidates.first()?))?;
    Some(Snapped {
        edge: candidate.edge,
        along_cm: candidate.along_cm,
        off_cm: candidate.off_cm,
        position: candidate.position,
        heading_255: heading_255(candidate.heading_cdeg),
        confidence_percent: scratch.confidence_percent(),
    })
}

fn snapped_at(graph: &Graph, place: Place, off_cm: u32, confidence_percent: u8) -> Snapped {
    let (position, heading_cdeg) = graph.place_at(place.edge, place.along_cm);
    Snapped {
        edge: place.edge,
        along_cm: place.along_cm,
        off_cm,
        position,
        heading_255: heading_255(heading_cdeg),
        confidence_percent,
    }
}

/// Hundredths of a degree as 255ths of a turn, nearest.
fn heading_255(cdeg: u16) -> u8 {
    ((u32::from(cdeg) * 255 + 18_000) / 36_000 % 255) as u8
}

/// The confidence of a place at which branches part: it is right, but may lag.
const FORK_PERCENT: u8 = 50;
/// Detours beyond three times the straight distance that a step may look at, and some.
const WAY_SLACK_CM: f64 = 200_000.0;
/// Two maps' edges that lie so close and lead within 45 degrees are the same road.
const CARRY_OVER_M: f64 = 20.0;
const CARRY_OVER_CDEG: u16 = 4_500;
