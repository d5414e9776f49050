//! Two versions of a map beside each other: which roads came, went or changed, and what becomes of the same trips on
//! both. For whoever wants to know what a new extract will do before drivers are placed on it.
//!
//! Roads are compared by their segments (from one point of OpenStreetMap to the next, each direction for itself), not
//! by edges: a new side street cuts an edge in two and changes nothing else.

use std::collections::BTreeMap;

use protocol::Position;
use rayon::prelude::*;
use serde::Serialize;

use crate::class::{Profile, RoadClass};
use crate::geo::{Plane, distance_cm};
use crate::graph::{EdgeId, Graph};
use crate::matcher::Scratch;
use crate::matcher::trip::{match_trip, route_parts};
use crate::traces::Trace;

/// What became of the roads, each direction counted.
#[derive(Clone, Default, PartialEq, Debug, Serialize)]
pub struct RoadsDiff {
    pub total: RoadsChange,
    pub by_class: BTreeMap<&'static str, RoadsChange>,
    /// Turns that a sign or a barrier closes, or opens for some only.
    pub turns: TurnsChange,
}

/// An edge has come or gone when nothing of it is in the other map; it has changed when a part of it is not, or when
/// its class, access, limit, speeds, surface or kind (bridge, tunnel, roundabout) is another.
#[derive(Clone, Copy, Default, PartialEq, Debug, Serialize)]
pub struct RoadsChange {
    pub edges_old: u64,
    pub edges_new: u64,
    pub edges_added: u64,
    pub edges_removed: u64,
    pub edges_changed: u64,
    pub km_old: f64,
    pub km_new: f64,
    pub km_added: f64,
    pub km_removed: f64,
    /// In both, but of another kind.
    pub km_changed: f64,
}

impl RoadsDiff {
    pub fn of(old: &Graph, new: &Graph) -> RoadsDiff {
        let (old_segments, new_segments) = (Segments::of(old), Segments::of(new));
        let mut diff = RoadsDiff::default();
        for edge in drawn_edges(old) {
            let (shares, length_cm) = (new_segments.shares(old, edge), f64::from(old.length_cm(edge)));
            diff.note(old.class(edge), |change| {
                change.edges_old += 1;
                change.km_old += length_cm / 1e5;
                change.km_removed += shares.missing_cm / 1e5;
                change.edges_removed += u64::from(shares.is_all_missing());
            });
        }
        for edge in drawn_edges(new) {
            let (shares, length_cm) = (old_segments.shares(new, edge), f64::from(new.length_cm(edge)));
            let is_changed = !shares.is_all_missing() && shares.missing_cm + shares.other_cm > 0.0;
            diff.note(new.class(edge), |change| {
                change.edges_new += 1;
                change.km_new += length_cm / 1e5;
                change.km_added += shares.missing_cm / 1e5;
                change.km_changed += shares.other_cm / 1e5;
                change.edges_added += u64::from(shares.is_all_missing());
                change.edges_changed += u64::from(is_changed);
            });
        }
        diff.turns = TurnsChange::of(old, new);
        diff
    }

    fn note(&mut self, class: RoadClass, add: impl Fn(&mut RoadsChange)) {
        add(&mut self.total);
        add(self.by_class.entry(class.as_str()).or_default());
    }
}

/// What became of the turns that not everybody may take at all times, at junctions that both maps have.
#[derive(Clone, Default, PartialEq, Debug, Serialize)]
pub struct TurnsChange {
    pub old: u64,
    pub new: u64,
    pub added: u64,
    pub removed: u64,
    /// Closed in both, but to others, or at other hours.
    pub changed: u64,
    /// Where the first of those that differ are, as latitude and longitude.
    pub places: Vec<(f64, f64)>,
}

/// A turn by where it leads: the last segment before it and the first one after.
type TurnKey = (Segment, Segment);

impl TurnsChange {
    fn of(old: &Graph, new: &Graph) -> TurnsChange {
        let (before, after) = (closed_turns(old), closed_turns(new));
        let mut change = TurnsChange { old: before.len() as u64, new: after.len() as u64, ..TurnsChange::default() };
        for (turn, who) in &before {
            match after.get(turn) {
                Some(same) if same == who => continue,
                Some(_) => change.changed += 1,
                None => change.removed += 1,
            }
            change.note_place(turn);
        }
        for turn in after.keys().filter(|turn| !before.contains_key(*turn)) {
            change.added += 1;
            change.note_place(turn);
        }
        change
    }

    fn note_place(&mut self, (_, [lat_e7, lon_e7, ..]): &TurnKey) {
        let place = Position { lat_e7: *lat_e7, lon_e7: *lon_e7 };
        let place = (place.lat(), place.lon());
        if self.places.len() < TURN_PLACES_MAX && !self.places.contains(&place) {
            self.places.push(place);
        }
    }
}

/// The turns that are closed to somebody, each with to whom and how. What restrictions over ways close is told by the
/// copies of edges that they need, which lie where the edges do.
fn closed_turns(graph: &Graph) -> BTreeMap<TurnKey, (u32, Vec<(u8, String)>)> {
    let key = |from: EdgeId, to: EdgeId| {
        let from = segments(graph.geometry(from)).last()?;
        Some((from, segments(graph.geometry(to)).next()?))
    };
    let mut turns: BTreeMap<TurnKey, (u32, Vec<(u8, String)>)> = BTreeMap::new();
    for turn in graph.view().turns {
        let (from, to) = (EdgeId(turn.from), EdgeId(turn.to));
        // That nobody comes onto a copy but by the beginning of its restriction is no sign.
        if let Some(key) = key(from, to).filter(|_| !graph.is_copy(to)) {
            turns.entry(key).or_default().0 |= turn.profiles;
        }
    }
    for (from, to, who, hours) in graph.conditions() {
        if let Some(turn) = key(from, to).and_then(|key| turns.get_mut(&key)) {
            turn.1.push((who, hours.to_owned()));
        }
    }
    turns
}

/// Those that are somewhere, without the copies that restrictions over ways need.
fn drawn_edges(graph: &Graph) -> impl Iterator<Item = EdgeId> + '_ {
    graph.edges().filter(|edge| !graph.is_copy(*edge))
}

/// From where to where, in 10⁻⁷ degree.
type Segment = [i32; 4];

/// All segments of a map that some profile may use, sorted, each with what it is like.
struct Segments(Vec<(Segment, u64)>);

/// How much of an edge is not in the other map, is there but different, and is there just the same.
#[derive(Default)]
struct Shares {
    missing_cm: f64,
    other_cm: f64,
    same_cm: f64,
}

impl Shares {
    fn is_all_missing(&self) -> bool {
        self.missing_cm > 0.0 && self.other_cm == 0.0 && self.same_cm == 0.0
    }
}

impl Segments {
    fn of(graph: &Graph) -> Segments {
        let with_look = |edge: EdgeId| segments(graph.geometry(edge)).map(move |one| (one, look(graph, edge)));
        let mut all: Vec<_> = drawn_edges(graph).filter(|edge| access(graph, *edge) != 0).flat_map(with_look).collect();
        all.par_sort_unstable();
        Segments(all)
    }

    fn shares(&self, graph: &Graph, edge: EdgeId) -> Shares {
        let (look, mut shares) = (look(graph, edge), Shares::default());
        if access(graph, edge) == 0 {
            return shares;
        }
        for segment in segments(graph.geometry(edge)) {
            let (segments, length_cm) = (&self.0, length_cm(segment));
            let first = segments.partition_point(|(one, _)| *one < segment);
            let mut there = segments[first..].iter().take_while(|(one, _)| *one == segment).map(|(_, look)| *look);
            match there.next() {
                None => shares.missing_cm += length_cm,
                Some(other) if other == look || there.any(|other| other == look) => shares.same_cm += length_cm,
                Some(_) => shares.other_cm += length_cm,
            }
        }
        shares
    }
}

fn segments(points: impl Iterator<Item = Position>) -> impl Iterator<Item = Segment> {
    let mut before: Option<Position> = None;
    points.filter_map(move |p| {
        let from = before.replace(p)?;
        Some([from.lat_e7, from.lon_e7, p.lat_e7, p.lon_e7])
    })
}

fn length_cm([from_lat, from_lon, to_lat, to_lon]: Segment) -> f64 {
    let place = |lat_e7, lon_e7| Position { lat_e7, lon_e7 };
    distance_cm(place(from_lat, from_lon), place(to_lat, to_lon))
}

/// Who may use an edge, without what depends on the rest of the map.
fn access(graph: &Graph, edge: EdgeId) -> u8 {
    Profile::ALL.iter().filter(|profile| graph.allows(edge, **profile)).map(|profile| profile.bit()).sum()
}

/// All that a driver would notice of a road.
fn look(graph: &Graph, edge: EdgeId) -> u64 {
    let flags = graph.flags(edge);
    let kind = u8::from(flags.is_bridge()) | u8::from(flags.is_tunnel()) << 1 | u8::from(flags.is_roundabout()) << 2;
    let speed = |profile| graph.speed_cm_s(edge, profile).min(0xffff) as u16;
    let [car_low, car_high] = speed(Profile::Car).to_le_bytes();
    let [class, surface] = [graph.class(edge).number(), graph.surface(edge).number()];
    let limit = graph.limit_km_h(edge).unwrap_or(0);
    let limited = Profile::ALL.iter().filter(|profile| flags.is_private(**profile)).map(|profile| profile.bit()).sum();
    u64::from_le_bytes([class, surface, limit, kind, access(graph, edge), car_low, car_high, limited])
}

/// What became of trips.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct TripsDiff {
    pub trips: usize,
    pub old: Outcome,
    pub new: Outcome,
    /// Of the length of both routes, what the other has not, in percent.
    pub differing_percent: f64,
    /// What came of each trip, those that the new map does worst by first.
    pub by_trip: Vec<TripDiff>,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct TripDiff {
    pub id: String,
    pub old: Outcome,
    pub new: Outcome,
    pub differing_percent: f64,
}

/// How matching went.
#[derive(Clone, Copy, Default, PartialEq, Debug, Serialize)]
pub struct Outcome {
    pub fixes: u64,
    /// Placed on a road.
    pub placed: u64,
    /// Of those that are placed, on the average.
    pub off_m: f64,
    /// Where a route does not go on, its beginning apart.
    pub breaks: u64,
    pub route_km: f64,
}

impl Outcome {
    pub fn placed_percent(&self) -> f64 {
        percent(self.placed as f64, self.fixes as f64)
    }

    fn of(graph: &Graph, scratch: &mut Scratch, profile: Profile, trace: &Trace) -> (Outcome, Vec<Vec<Position>>) {
        let matched = match_trip(graph, scratch, profile, &trace.fixes);
        let parts = route_parts(graph, &matched);
        let placed: Vec<f64> = matched.iter().filter_map(|one| Some(f64::from(one.snapped?.off_cm) / 100.0)).collect();
        let breaks = matched.iter().filter(|one| one.is_break && one.snapped.is_some()).count() as u64;
        let route_cm: f64 = parts.iter().flat_map(|part| segments(part.iter().copied())).map(length_cm).sum();
        let outcome = Outcome {
            fixes: matched.len() as u64,
            placed: placed.len() as u64,
            off_m: if placed.is_empty() { 0.0 } else { placed.iter().sum::<f64>() / placed.len() as f64 },
            breaks: breaks.saturating_sub(1),
            route_km: route_cm / 1e5,
        };
        (outcome, parts)
    }

    fn add(&mut self, other: &Outcome) {
        let off_sum = self.off_m * self.placed as f64 + other.off_m * other.placed as f64;
        self.fixes += other.fixes;
        self.placed += other.placed;
        self.off_m = if self.placed == 0 { 0.0 } else { off_sum / self.placed as f64 };
        self.breaks += other.breaks;
        self.route_km += other.route_km;
    }
}

impl TripsDiff {
    /// Matches every trip on both maps, fix by fix, as live. `done` is told of each trip.
    pub fn of(old: &Graph, new: &Graph, profile: Profile, traces: &[Trace], done: &(dyn Fn() + Sync)) -> TripsDiff {
        let one = |scratch: &mut (Scratch, Scratch), trace: &Trace| {
            let (before, old_parts) = Outcome::of(old, &mut scratch.0, profile, trace);
            let (after, new_parts) = Outcome::of(new, &mut scratch.1, profile, trace);
            done();
            let differing = differing_cm(&old_parts, &new_parts) + differing_cm(&new_parts, &old_parts);
            let differing_percent = percent(differing / 1e5, before.route_km + after.route_km);
            TripDiff { id: trace.id.clone(), old: before, new: after, differing_percent }
        };
        let scratches = || (Scratch::new(), Scratch::new());
        let mut by_trip: Vec<TripDiff> = traces.par_iter().map_init(scratches, one).collect();
        let (mut old, mut new, mut differing) = (Outcome::default(), Outcome::default(), 0.0);
        for trip in &by_trip {
            old.add(&trip.old);
            new.add(&trip.new);
            differing += trip.differing_percent * (trip.old.route_km + trip.new.route_km);
        }
        by_trip.sort_by(|a, b| a.better_by().total_cmp(&b.better_by()));
        let differing_percent = percent(differing / 100.0, old.route_km + new.route_km);
        TripsDiff { trips: by_trip.len(), old, new, differing_percent, by_trip }
    }

    /// By how many percentage points fewer fixes are placed than before; negative if more are.
    pub fn worse_by_percent(&self) -> f64 {
        self.old.placed_percent() - self.new.placed_percent()
    }
}

impl TripDiff {
    pub fn is_worse(&self) -> bool {
        self.better_by() < 0.0 || self.differing_percent > 0.0
    }

    /// Share of fixes placed first; a break weighs as a fix, a metre farther off the road as a tenth of the trip's.
    fn better_by(&self) -> f64 {
        let fixes = self.old.fixes.max(1) as f64;
        let placed = self.new.placed as f64 - self.old.placed as f64;
        let breaks = self.new.breaks as f64 - self.old.breaks as f64;
        (placed - breaks) / fixes - (self.new.off_m - self.old.off_m) / 10.0
    }
}

fn percent(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole * 100.0 } else { 0.0 }
}

/// How much of a route the other does not follow, in the same direction, within 3 m.
fn differing_cm(route: &[Vec<Position>], other: &[Vec<Position>]) -> f64 {
    let mut there: Vec<Segment> = other.iter().flat_map(|part| segments(part.iter().copied())).collect();
    there.sort_unstable();
    let own = route.iter().flat_map(|part| segments(part.iter().copied()));
    let mut apart = own.filter(|segment| there.binary_search(segment).is_err()).peekable();
    if apart.peek().is_none() {
        return 0.0;
    }
    let near = Near::of(&there);
    apart.map(|segment| near.apart_cm(segment)).sum()
}

/// Segments by the cells of a grid that something within 3 m of them may lie in, sorted: a place is held only against
/// those of its own cell, however long the routes are.
struct Near(Vec<((i32, i32), Segment)>);

impl Near {
    fn of(segments: &[Segment]) -> Near {
        let mut cells = Vec::new();
        for segment in segments {
            let margin = margin_e7(*segment);
            // Piece by piece, so that a long slanting segment is not in all the cells of its box.
            let [lat, lon] = [[segment[0], segment[2]], [segment[1], segment[3]]].map(|ends| ends.map(f64::from));
            let longest = (lat[1] - lat[0]).abs().max((lon[1] - lon[0]).abs());
            let pieces = (longest / f64::from(CELL_E7)).ceil().max(1.0);
            for piece in 0..pieces as u32 {
                let shares = [f64::from(piece), f64::from(piece + 1)].map(|at| at / pieces);
                let [lats, lons] =
                    [(lat, margin[0]), (lon, margin[1])].map(|(ends, margin)| cells_of(ends, shares, margin));
                cells.extend(lats.flat_map(|row| lons.clone().map(move |column| ((row, column), *segment))));
            }
        }
        cells.sort_unstable();
        cells.dedup();
        Near(cells)
    }

    fn around(&self, position: Position) -> impl Iterator<Item = &Segment> {
        let cell = (position.lat_e7.div_euclid(CELL_E7), position.lon_e7.div_euclid(CELL_E7));
        let first = self.0.partition_point(|(one, _)| *one < cell);
        self.0[first..].iter().take_while(move |(one, _)| *one == cell).map(|(_, segment)| segment)
    }

    /// How much of a segment has none of them near. Looked at every few metres: routes begin and end between points.
    fn apart_cm(&self, segment: Segment) -> f64 {
        let plane = Plane::at(Position { lat_e7: segment[0], lon_e7: segment[1] });
        let at = |lat_e7, lon_e7| plane.to_cm(Position { lat_e7, lon_e7 });
        let (east, north) = at(segment[2], segment[3]);
        let length = length_cm(segment);
        let steps = (length / STEP_CM).ceil().max(1.0) as u32;
        let is_followed = |step: &u32| {
            let share = (f64::from(*step) + 0.5) / f64::from(steps);
            let place = (east * share, north * share);
            self.around(plane.to_position(place)).any(|other| {
                let (a, b) = (at(other[0], other[1]), at(other[2], other[3]));
                let (dx, dy) = (b.0 - a.0, b.1 - a.1);
                dx * east + dy * north > 0.0 && off_squared(place, a, (dx, dy)) < NEAR_CM * NEAR_CM
            })
        };
        let apart = (0..steps).filter(|step| !is_followed(step)).count();
        length * apart as f64 / f64::from(steps)
    }
}

/// What is near in 10⁻⁷ degree, north and east, and a little more.
fn margin_e7(segment: Segment) -> [f64; 2] {
    let plane = Plane::at(Position { lat_e7: segment[0], lon_e7: segment[1] });
    let (_, cm_per_e7) = plane.to_cm(Position { lat_e7: segment[0] + 1, lon_e7: segment[1] });
    [cm_per_e7, plane.east_cm_per_e7().max(0.01)].map(|cm_per_e7| NEAR_CM * 1.1 / cm_per_e7)
}

/// The rows or columns that a piece between two shares of the way from one end to the other may touch.
fn cells_of(ends: [f64; 2], shares: [f64; 2], margin: f64) -> std::ops::RangeInclusive<i32> {
    let [a, b] = shares.map(|share| ends[0] + (ends[1] - ends[0]) * share);
    let cell = |e7: f64| (e7 / f64::from(CELL_E7)).floor() as i32;
    cell(a.min(b) - margin)..=cell(a.max(b) + margin)
}

/// Squared distance of a point from the segment that begins at `a` and goes by `d`.
fn off_squared(p: (f64, f64), a: (f64, f64), d: (f64, f64)) -> f64 {
    let (px, py) = (p.0 - a.0, p.1 - a.1);
    let whole = d.0 * d.0 + d.1 * d.1;
    let share = if whole > 0.0 { ((px * d.0 + py * d.1) / whole).clamp(0.0, 1.0) } else { 0.0 };
    let (ox, oy) = (px - share * d.0, py - share * d.1);
    ox * ox + oy * oy
}

/// As many places as one looks at by hand.
const TURN_PLACES_MAX: usize = 20;
const STEP_CM: f64 = 500.0;
const NEAR_CM: f64 = 300.0;
/// Some 100 m.
const CELL_E7: i32 = 10_000;

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn what_is_near_is_found_by_its_cell_as_by_looking_at_everything() {
        let mut parts = [0, 0];
        for seed in 0..20 {
            let mut random = SmallRng::seed_from_u64(seed);
            let lat = [0, 411_500_000, -600_000_000, 780_000_000][seed as usize % 4];
            let other: Vec<Segment> = wander(&mut random, lat, 300);
            let route: Vec<Segment> =
                other.iter().map(|segment| segment.map(|e7| e7 + random.random_range(-400..=400))).collect();
            let near = Near::of(&other);

            for segment in route {
                let (fast, slow) = (near.apart_cm(segment), apart_cm_of_all(segment, &other));
                assert!((fast - slow).abs() < 1e-6, "seed {seed}: {segment:?} {fast} {slow}");
                parts[usize::from(slow > 0.0)] += 1;
            }
        }
        assert!(parts.iter().all(|count| *count > 500), "{parts:?}");
    }

    #[test]
    fn long_routes_that_differ_everywhere_are_compared_at_once() {
        let mut random = SmallRng::seed_from_u64(7);
        let line = |random: &mut SmallRng, lat: i32| -> Vec<Vec<Position>> {
            let place = |[lat_e7, lon_e7, ..]: Segment| Position { lat_e7, lon_e7 };
            vec![wander(random, lat, 40_000).into_iter().map(place).collect()]
        };
        let (one, other) = (line(&mut random, 411_500_000), line(&mut random, 411_500_000));

        let begin = std::time::Instant::now();
        let differing = differing_cm(&one, &other);

        assert!(differing > 0.0);
        assert!(begin.elapsed() < std::time::Duration::from_secs(20), "{:?}", begin.elapsed());
    }

    /// Segments that follow on each other, of up to some hundred metres.
    fn wander(random: &mut SmallRng, lat_e7: i32, count: usize) -> Vec<Segment> {
        let mut at = [lat_e7, -86_000_000];
        let mut segment = || {
            let from = at;
            at = at.map(|e7| e7 + random.random_range(-30_000..=30_000));
            [from[0], from[1], at[0], at[1]]
        };
        (0..count).map(|_| segment()).collect()
    }

    fn apart_cm_of_all(segment: Segment, others: &[Segment]) -> f64 {
        let plane = Plane::at(Position { lat_e7: segment[0], lon_e7: segment[1] });
        let at = |lat_e7, lon_e7| plane.to_cm(Position { lat_e7, lon_e7 });
        let (east, north) = at(segment[2], segment[3]);
        let length = length_cm(segment);
        let steps = (length / STEP_CM).ceil().max(1.0) as u32;
        let is_followed = |step: &u32| {
            let share = (f64::from(*step) + 0.5) / f64::from(steps);
            others.iter().any(|o| {
                let (a, b) = (at(o[0], o[1]), at(o[2], o[3]));
                let (dx, dy) = (b.0 - a.0, b.1 - a.1);
                let off = off_squared((east * share, north * share), a, (dx, dy));
                dx * east + dy * north > 0.0 && off < NEAR_CM * NEAR_CM
            })
        };
        length * (0..steps).filter(|step| !is_followed(step)).count() as f64 / f64::from(steps)
    }
}
