//! A planned way as a line with distance and time along it, and where a driver is on it.

use maps::geo;
use protocol::Position;
use protocol::update::Plan;
use wincode::{SchemaRead, SchemaWrite};

/// At least two points, distance and time rising from zero.
#[derive(Clone, PartialEq, Debug, SchemaWrite, SchemaRead)]
pub struct Way {
    points: Vec<WayPoint>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
pub struct WayPoint {
    pub position: Position,
    pub along_cm: u32,
    pub along_ms: u32,
    /// Corners turned on the way here.
    pub turns: u16,
}

/// A place on a way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OnWay {
    pub along_cm: u32,
    pub along_ms: u32,
    pub off_cm: u32,
    pub turns: u16,
}

impl Way {
    /// None for fewer than two points, and where distance or time goes back.
    pub fn new(points: Vec<WayPoint>) -> Option<Way> {
        let rises = |pair: &[WayPoint]| {
            pair[0].along_cm <= pair[1].along_cm
                && pair[0].along_ms <= pair[1].along_ms
                && pair[0].turns <= pair[1].turns
        };
        let is_way = points.len() >= 2 && points.len() <= POINTS_MAX && points.windows(2).all(rises);
        is_way.then_some(Way { points })
    }

    pub fn end(&self) -> WayPoint {
        *self.points.last().expect("a way has at least two points")
    }

    /// The nearest place on the way; ahead of where he was if it is near enough, so that a way which crosses itself is
    /// not jumped along.
    pub fn locate(&self, position: Position, was_cm: u32) -> OnWay {
        let window = was_cm.saturating_sub(BACK_CM)..was_cm.saturating_add(AHEAD_CM);
        let near = self.nearest(position, |a, b| b.along_cm >= window.start && a.along_cm <= window.end);
        match near {
            Some(near) if near.off_cm <= NEAR_CM => near,
            Some(_) | None => self.nearest(position, |_, _| true).expect("a way has at least one stretch"),
        }
    }

    fn nearest(&self, position: Position, is_wanted: impl Fn(&WayPoint, &WayPoint) -> bool) -> Option<OnWay> {
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
        let between = |a: u32, b: u32| a + (f64::from(b - a) * share).round() as u32;
        Some(OnWay {
            along_cm: between(a.along_cm, b.along_cm),
            along_ms: between(a.along_ms, b.along_ms),
            off_cm: off2.sqrt().min(f64::from(u32::MAX)) as u32,
            turns: a.turns,
        })
    }

    pub fn to_plan(&self) -> Plan {
        Plan {
            points: self.points.iter().map(|point| point.position).collect(),
            length_m: self.end().along_cm / 100,
            duration_s: self.end().along_ms / 1000,
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

/// More than any way within a region has.
const POINTS_MAX: usize = 100_000;
const BACK_CM: u32 = 20_000;
const AHEAD_CM: u32 = 300_000;
/// A driver this close to the stretch ahead is on it.
const NEAR_CM: u32 = 6_000;

#[cfg(test)]
mod tests {
    use super::*;

    /// Out east for 1 km and back on the same street, 10 m/s.
    fn out_and_back() -> (geo::Plane, Way) {
        let plane = geo::Plane::at(Position { lat_e7: 411_500_000, lon_e7: -86_100_000 });
        let point = |east_m: u32, along_m: u32| WayPoint {
            position: plane.to_position((f64::from(east_m) * 100.0, 0.0)),
            along_cm: along_m * 100,
            along_ms: along_m * 100,
            turns: 0,
        };
        (plane, Way::new(vec![point(0, 0), point(1_000, 1_000), point(0, 2_000)]).unwrap())
    }

    #[test]
    fn on_a_way_that_crosses_itself_one_goes_on_from_where_one_was() {
        let (plane, way) = out_and_back();
        let here = plane.to_position((30_000.0, 500.0));

        let out = way.locate(here, 0);
        let back = way.locate(here, 160_000);

        assert_eq!(out.along_cm / 100, 300);
        assert_eq!(back.along_cm / 100, 1_700);
        assert_eq!(back.along_ms / 1000, 170);
        assert!(out.off_cm.abs_diff(500) <= 2);
    }

    #[test]
    fn what_goes_back_or_has_no_length_is_no_way() {
        let point = |along_cm| WayPoint { position: Position::default(), along_cm, along_ms: 0, turns: 0 };

        assert!(Way::new(vec![]).is_none());
        assert!(Way::new(vec![point(0)]).is_none());
        assert!(Way::new(vec![point(5), point(4)]).is_none());
    }
}
