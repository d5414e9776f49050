//! A planned route: a line with the distance along it, the edges it follows with the time along them, and where a driver
//! is on it. Because it knows its edges, its times can be computed anew when the traffic changes. A route from an outside
//! router knows no edges, so its times stay as they were given.
//!
//! Sketch: 14 B per point and 12 B per edge; six kilometres through a city have some 250 points and 80 edges: 4.5 KB.
//! Timing again takes half a microsecond per edge ahead.

use maps::eta::{Speeds, walk};
use maps::{EdgeId, Graph, Profile, geo};
use protocol::record::PlannedPoint;
use protocol::update::Plan;
use protocol::{Position, Time};
use wincode::{SchemaRead, SchemaWrite};

#[derive(Clone, PartialEq, Debug, SchemaWrite, SchemaRead)]
pub(crate) struct PlannedRoute {
    /// At least two, distance rising from zero.
    points: Vec<RoutePoint>,
    /// The ends of the stretches along which time runs evenly; at least one, the last at the end of the route.
    marks: Vec<TimeMark>,
    /// The edge of each stretch; empty for a route from an outside router.
    edges: Vec<EdgeId>,
    /// Where on the first edge the route begins.
    from_cm: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
pub(crate) struct RoutePoint {
    pub position: Position,
    pub along_cm: u32,
    /// How many corners are turned before this point.
    pub turns: u16,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
struct TimeMark {
    along_cm: u32,
    along_ms: u32,
}

/// A place on a route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RoutePosition {
    pub along_cm: u32,
    pub off_cm: u32,
    pub turns: u16,
}

impl PlannedRoute {
    /// Follows edges, each given with where it ends on the route. Its times are still to be computed. None if that is no
    /// line.
    pub(crate) fn along(points: Vec<RoutePoint>, edges: Vec<(EdgeId, u32)>, from_cm: u32) -> Option<PlannedRoute> {
        let marks: Vec<TimeMark> =
            edges.iter().map(|(_, along_cm)| TimeMark { along_cm: *along_cm, along_ms: 0 }).collect();
        let edges = edges.into_iter().map(|(edge, _)| edge).collect();
        let route = PlannedRoute { points, marks, edges, from_cm };
        route.is_sound().then_some(route)
    }

    /// From an outside router, with its times. None for fewer than two points, and where distance or time goes back.
    pub(crate) fn from_outside(planned: &[PlannedPoint]) -> Option<PlannedRoute> {
        let corners = std::iter::once(false)
            .chain(planned.windows(3).map(|three| {
                let before = geo::heading_cdeg(three[0].position, three[1].position);
                geo::turn_cdeg(before, geo::heading_cdeg(three[1].position, three[2].position)) > TURN_CDEG
            }))
            .chain(std::iter::repeat(false));
        let mut turns = 0_u16;
        let points = planned.iter().zip(corners).map(|(point, is_corner)| {
            turns = turns.saturating_add(u16::from(is_corner));
            RoutePoint { position: point.position, along_cm: point.along_cm, turns }
        });
        let points = points.collect();
        let marks = planned.iter().map(|p| TimeMark { along_cm: p.along_cm, along_ms: p.along_ms }).collect();
        let route = PlannedRoute { points, marks, edges: Vec::new(), from_cm: 0 };
        route.is_sound().then_some(route)
    }

    fn is_sound(&self) -> bool {
        let rises = |pair: &[RoutePoint]| pair[0].along_cm <= pair[1].along_cm && pair[0].turns <= pair[1].turns;
        let passes = |pair: &[TimeMark]| pair[0].along_cm <= pair[1].along_cm && pair[0].along_ms <= pair[1].along_ms;
        let is_timed = self.edges.is_empty() || self.edges.len() == self.marks.len();
        let ends = (self.points.last().map(|p| p.along_cm), self.marks.last().map(|m| m.along_cm));
        (2..=POINTS_MAX).contains(&self.points.len())
            && self.points.iter().all(|point| point.position.is_on_earth())
            && self.points.windows(2).all(rises)
            && self.marks.windows(2).all(passes)
            && is_timed
            && ends.0 == ends.1
    }

    pub(crate) fn begin(&self) -> Position {
        self.points[0].position
    }

    fn end(&self) -> RoutePoint {
        *self.points.last().expect("a route has at least two points")
    }

    pub(crate) fn length_cm(&self) -> u32 {
        self.end().along_cm
    }

    /// How many corners are still to be turned.
    pub(crate) fn turns_after(&self, place: &RoutePosition) -> u16 {
        self.end().turns.saturating_sub(place.turns)
    }

    /// How long it takes from a place to the end.
    pub(crate) fn left_ms(&self, along_cm: u32) -> u32 {
        self.end_ms().saturating_sub(self.ms_at(along_cm))
    }

    fn end_ms(&self) -> u32 {
        self.marks.last().map_or(0, |mark| mark.along_ms)
    }

    fn ms_at(&self, along_cm: u32) -> u32 {
        let at = self.marks.partition_point(|mark| mark.along_cm <= along_cm);
        let (Some(end), begin) = (self.marks.get(at), self.mark_before(at)) else { return self.end_ms() };
        let share_cm = u64::from(along_cm - begin.along_cm) * u64::from(end.along_ms - begin.along_ms);
        begin.along_ms + (share_cm / u64::from(end.along_cm - begin.along_cm)) as u32
    }

    fn mark_before(&self, at: usize) -> TimeMark {
        at.checked_sub(1).map_or(TimeMark { along_cm: 0, along_ms: 0 }, |before| self.marks[before])
    }

    /// Computes the times ahead of a place anew, for a driver who sets off from there now.
    pub(crate) fn retime(&mut self, graph: &Graph, speeds: Speeds<'_>, profile: Profile, along_cm: u32, now: Time) {
        let at = self.marks.partition_point(|mark| mark.along_cm <= along_cm);
        if at >= self.edges.len() {
            return;
        }
        let begin = self.mark_before(at);
        let on_edge = |at: usize| if at == 0 { self.from_cm } else { 0 };
        let last = self.marks.len() - 1;
        let to_cm = on_edge(last) + (self.marks[last].along_cm - self.mark_before(last).along_cm);
        let from_cm = on_edge(at) + (along_cm - begin.along_cm);
        let mut durations_ms = Vec::with_capacity(self.edges.len() - at);
        let walked = walk(graph, speeds, profile, &self.edges[at..], from_cm..to_cm, now, |_, seconds| {
            durations_ms.push((seconds * 1000.0).min(f64::from(u32::MAX)) as u32);
        });
        if walked.is_none() {
            return; // the edges are another map's: its delivery plans anew
        }
        // The first is only driven in part: its whole stretch takes as much longer as it is longer.
        let (whole_cm, left_cm) = (self.marks[at].along_cm - begin.along_cm, self.marks[at].along_cm - along_cm);
        let whole_ms = u64::from(durations_ms[0]) * u64::from(whole_cm) / u64::from(left_cm.max(1));
        durations_ms[0] = u32::try_from(whole_ms).unwrap_or(u32::MAX);
        let mut along_ms = begin.along_ms;
        for (mark, duration_ms) in self.marks[at..].iter_mut().zip(durations_ms) {
            along_ms = along_ms.saturating_add(duration_ms);
            mark.along_ms = along_ms;
        }
    }

    /// The nearest place on the route. One around the last known place is preferred if it is near enough, so that the
    /// driver does not jump where a route crosses itself.
    pub(crate) fn locate(&self, position: Position, was_cm: u32) -> RoutePosition {
        let window = was_cm.saturating_sub(BACK_CM)..was_cm.saturating_add(AHEAD_CM);
        let near = self.nearest(position, |a, b| b.along_cm >= window.start && a.along_cm <= window.end);
        match near {
            Some(near) if near.off_cm <= NEAR_CM => near,
            Some(_) | None => self.nearest(position, |_, _| true).expect("a route has at least one stretch"),
        }
    }

    fn nearest(
        &self,
        position: Position,
        is_wanted: impl Fn(&RoutePoint, &RoutePoint) -> bool,
    ) -> Option<RoutePosition> {
        let plane = geo::Plane::at(position);
        let mut best: Option<(f64, f64, usize)> = None;
        for (i, pair) in self.points.windows(2).enumerate().filter(|(_, pair)| is_wanted(&pair[0], &pair[1])) {
            let (off2, share) = foot(plane.to_cm(pair[0].position), plane.to_cm(pair[1].position));
            if best.is_none_or(|(best2, _, _)| off2 < best2) {
                best = Some((off2, share, i));
            }
        }
        let (off2, share, i) = best?;
        let (a, b) = (self.points[i], self.points[i + 1]);
        let ahead_cm = (f64::from(b.along_cm - a.along_cm) * share).round() as u32;
        Some(RoutePosition {
            along_cm: a.along_cm + ahead_cm,
            off_cm: off2.sqrt().min(f64::from(u32::MAX)) as u32,
            turns: a.turns,
        })
    }

    pub(crate) fn to_plan(&self) -> Plan {
        Plan {
            points: self.points.iter().map(|point| point.position).collect(),
            length_m: self.length_cm() / 100,
            duration_s: self.end_ms() / 1000,
        }
    }
}

/// Seen from the origin: the squared distance to the stretch from `a` to `b`, and the share of it at the foot.
fn foot((ax, ay): (f64, f64), (bx, by): (f64, f64)) -> (f64, f64) {
    let (dx, dy) = (bx - ax, by - ay);
    let length2 = dx * dx + dy * dy;
    let share = if length2 > 0.0 { (-(ax * dx + ay * dy) / length2).clamp(0.0, 1.0) } else { 0.0 };
    let (x, y) = (ax + dx * share, ay + dy * share);
    (x * x + y * y, share)
}

/// More than any route within a region has.
const POINTS_MAX: usize = 100_000;
const BACK_CM: u32 = 20_000;
const AHEAD_CM: u32 = 300_000;
/// A driver this close to the stretch ahead is on it.
const NEAR_CM: u32 = 6_000;
/// What counts as a corner, as in `maps::eta`.
pub(crate) const TURN_CDEG: u16 = 4_500;

#[cfg(test)]
mod tests {
    use super::*;

    fn plane() -> geo::Plane {
        geo::Plane::at(Position { lat_e7: 411_500_000, lon_e7: -86_100_000 })
    }

    fn point(east_m: u32, along_m: u32, along_s: u32) -> PlannedPoint {
        let position = plane().to_position((f64::from(east_m) * 100.0, 0.0));
        PlannedPoint { position, along_cm: along_m * 100, along_ms: along_s * 1000 }
    }

    /// Out east for 1 km and back on the same street, 10 m/s.
    fn out_and_back() -> PlannedRoute {
        PlannedRoute::from_outside(&[point(0, 0, 0), point(1_000, 1_000, 100), point(0, 2_000, 200)]).unwrap()
    }

    #[test]
    fn on_a_route_that_crosses_itself_the_driver_goes_on_from_where_he_was() {
        let route = out_and_back();
        let here = plane().to_position((30_000.0, 500.0));

        let out = route.locate(here, 0);
        let back = route.locate(here, 160_000);

        assert_eq!(out.along_cm / 100, 300);
        assert_eq!(back.along_cm / 100, 1_700);
        assert_eq!(route.left_ms(back.along_cm).div_ceil(1000), 30);
        assert!(out.off_cm.abs_diff(500) <= 2);
        assert_eq!(route.turns_after(&out), 1);
    }

    #[test]
    fn points_that_go_back_or_have_no_length_are_no_route() {
        assert!(PlannedRoute::from_outside(&[]).is_none());
        assert!(PlannedRoute::from_outside(&[point(0, 0, 0)]).is_none());
        assert!(PlannedRoute::from_outside(&[point(0, 5, 0), point(9, 4, 1)]).is_none());
        assert!(PlannedRoute::from_outside(&[point(0, 0, 5), point(9, 9, 4)]).is_none());
    }
}
