//! One drive along a route: where the car truly is at every moment. Worked out whole before it begins, so that when it
//! will arrive is known too: the truth that an ETA is measured by.
//!
//! The car keeps below the road's free speed as traffic has it there, slows for bends and turns, stops at some lights
//! and junctions, and speeds up and brakes as cars do.

use maps::router::Route;
use maps::{EdgeId, Graph, NodeId, Profile, RoadClass, geo};
use protocol::Position;
use rand::Rng;
use rand::rngs::SmallRng;

/// How the roads of one simulated day are: the same edge is as slow for everybody.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Traffic {
    pub seed: u64,
    /// The middle of all edges' speed, as a share of the empty road's.
    pub pace_median: f64,
    /// How far edges differ: standard deviation of the share's logarithm.
    pub pace_spread: f64,
    /// How often a light at a larger junction is red, and how long it holds a car at most.
    pub red_share: f64,
    pub red_s_max: f64,
}

impl Default for Traffic {
    fn default() -> Self {
        Traffic { seed: 1, pace_median: 0.88, pace_spread: 0.2, red_share: 0.25, red_s_max: 35.0 }
    }
}

impl Traffic {
    /// The share of the empty road's speed that is driven on this edge.
    fn pace(&self, edge: EdgeId) -> f64 {
        let (a, b) = (unit(mix(self.seed ^ u64::from(edge.0))), unit(mix(self.seed.wrapping_add(u64::from(edge.0)))));
        (self.pace_median * (self.pace_spread * normal(a, b)).exp()).clamp(0.3, 1.15)
    }
}

/// Where a car is.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Place {
    pub position: Position,
    pub heading_degrees: f64,
    pub speed_m_s: f64,
}

/// A drive from standing to standing.
#[derive(Clone, PartialEq, Debug)]
pub struct Drive {
    line: Vec<Point>,
    /// In order of time; where the car waits, two in one place.
    marks: Vec<Mark>,
}

#[derive(Clone, Copy, PartialEq, Debug)]
struct Point {
    position: Position,
    along_cm: f64,
}

#[derive(Clone, Copy, PartialEq, Debug)]
struct Mark {
    at_ms: f64,
    along_cm: f64,
    speed_cm_s: f64,
}

/// What holds a car back at a place.
#[derive(Clone, Copy)]
struct Limit {
    along_cm: f64,
    speed_cm_s: f64,
    wait_ms: f64,
}

impl Drive {
    pub fn plan(graph: &Graph, route: &Route, profile: Profile, traffic: &Traffic, rng: &mut SmallRng) -> Drive {
        let mut line: Vec<Point> = Vec::new();
        let mut limits: Vec<Limit> = Vec::new();
        let last = route.edges.len().saturating_sub(1);
        for (i, edge) in route.edges.iter().enumerate() {
            let from_cm = if i == 0 { route.start_along_cm } else { 0 };
            let to_cm = if i == last { route.end_along_cm } else { graph.length_cm(*edge) };
            let pace = f64::from(graph.speed_cm_s(*edge, profile)) * traffic.pace(*edge);
            let begins_cm = line.last().map_or(0.0, |point| point.along_cm);
            append_line(&mut line, &graph.stretch(*edge, from_cm, to_cm));
            let ends_cm = line.last().map_or(0.0, |point| point.along_cm);
            limit_along(&mut limits, begins_cm, ends_cm, pace);
            if let Some(next) = route.edges.get(i + 1) {
                let wait_ms = wait_at_junction(graph, *edge, *next, traffic, rng);
                let speed_cm_s = if wait_ms > 0.0 { 0.0 } else { f64::INFINITY };
                limits.push(Limit { along_cm: ends_cm, speed_cm_s, wait_ms });
            }
        }
        limits.extend(bends(&line));
        let length_cm = line.last().map_or(0.0, |point| point.along_cm);
        limits.push(Limit { along_cm: 0.0, speed_cm_s: 0.0, wait_ms: 0.0 });
        limits.push(Limit { along_cm: length_cm, speed_cm_s: 0.0, wait_ms: 0.0 });
        Drive { line, marks: timetable(limits) }
    }

    pub fn duration_ms(&self) -> i64 {
        self.marks.last().map_or(0, |mark| mark.at_ms.ceil() as i64)
    }

    pub fn length_m(&self) -> f64 {
        self.line.last().map_or(0.0, |point| point.along_cm / 100.0)
    }

    /// Where the car is so long after it set off; at its end from then on.
    pub fn at(&self, after_ms: i64) -> Place {
        let (along_cm, speed_cm_s) = self.along_at(after_ms as f64);
        let after = self.line.partition_point(|point| point.along_cm <= along_cm).clamp(1, self.line.len() - 1);
        let (a, b) = (self.line[after - 1], self.line[after]);
        let share = ((along_cm - a.along_cm) / (b.along_cm - a.along_cm).max(1.0)).clamp(0.0, 1.0);
        let plane = geo::Plane::at(a.position);
        let (east_cm, north_cm) = plane.to_cm(b.position);
        Place {
            position: plane.to_position((east_cm * share, north_cm * share)),
            heading_degrees: f64::from(geo::heading_cdeg(a.position, b.position)) / 100.0,
            speed_m_s: speed_cm_s / 100.0,
        }
    }

    fn along_at(&self, after_ms: f64) -> (f64, f64) {
        let after = self.marks.partition_point(|mark| mark.at_ms <= after_ms);
        let (Some(a), Some(b)) = (after.checked_sub(1).and_then(|i| self.marks.get(i)), self.marks.get(after)) else {
            let end = if after == 0 { self.marks.first() } else { self.marks.last() };
            return (end.map_or(0.0, |mark| mark.along_cm), 0.0);
        };
        let share = (after_ms - a.at_ms) / (b.at_ms - a.at_ms).max(1e-9);
        (a.along_cm + (b.along_cm - a.along_cm) * share, a.speed_cm_s + (b.speed_cm_s - a.speed_cm_s) * share)
    }
}

fn append_line(line: &mut Vec<Point>, stretch: &[Position]) {
    for position in stretch {
        let along_cm = match line.last() {
            None => 0.0,
            Some(last) if last.position == *position => continue,
            Some(last) => last.along_cm + geo::distance_cm(last.position, *position),
        };
        line.push(Point { position: *position, along_cm });
    }
    if let [only] = line[..] {
        line.push(only); // a line has two ends, though they lie in one place
    }
}

fn limit_along(limits: &mut Vec<Limit>, from_cm: f64, to_cm: f64, speed_cm_s: f64) {
    let steps = ((to_cm - from_cm) / STEP_CM).ceil().max(1.0);
    for step in 0..=steps as u32 {
        let along_cm = from_cm + (to_cm - from_cm) * f64::from(step) / steps;
        limits.push(Limit { along_cm, speed_cm_s: speed_cm_s.max(SPEED_CM_S_MIN), wait_ms: 0.0 });
    }
}

/// Lights where larger roads meet; giving way where a smaller one comes into a larger.
fn wait_at_junction(graph: &Graph, from: EdgeId, to: EdgeId, traffic: &Traffic, rng: &mut SmallRng) -> f64 {
    let junction: NodeId = graph.to(from);
    if graph.out_edges(junction).len() < 3 {
        return 0.0;
    }
    let classes = || graph.out_edges(junction).chain(graph.in_edges(junction)).map(|edge| graph.class(edge));
    let is_larger = |class: RoadClass| (RoadClass::Primary..=RoadClass::TertiaryLink).contains(&class);
    let largest = classes().min().unwrap_or(RoadClass::Path);
    if is_larger(graph.class(from)) && classes().filter(|class| is_larger(*class)).count() >= 5 {
        let is_red = rng.random_bool(traffic.red_share.clamp(0.0, 1.0));
        return if is_red { rng.random_range(3.0..=traffic.red_s_max.max(3.0)) * 1000.0 } else { 0.0 };
    }
    let gives_way = graph.class(from) > largest && is_larger(largest) && graph.class(to) <= graph.class(from);
    if gives_way && rng.random_bool(0.4) { rng.random_range(1.0..5.0) * 1000.0 } else { 0.0 }
}

/// A line's corners, and how fast one gets round them.
fn bends(line: &[Point]) -> impl Iterator<Item = Limit> {
    line.windows(3).filter_map(|three| {
        let into = geo::heading_cdeg(three[0].position, three[1].position);
        let out = geo::heading_cdeg(three[1].position, three[2].position);
        let speed_cm_s = match geo::turn_cdeg(into, out) {
            0..3_000 => return None,
            3_000..6_000 => 850.0,
            6_000..12_000 => 500.0,
            _ => 250.0,
        };
        Some(Limit { along_cm: three[1].along_cm, speed_cm_s, wait_ms: 0.0 })
    })
}

/// When the car is where: as fast as the limits let it, and no faster than it can speed up and brake.
fn timetable(mut limits: Vec<Limit>) -> Vec<Mark> {
    limits.sort_by(|a, b| a.along_cm.total_cmp(&b.along_cm));
    let mut nodes: Vec<Limit> = Vec::with_capacity(limits.len());
    for limit in limits {
        match nodes.last_mut() {
            Some(node) if limit.along_cm - node.along_cm < 1.0 => {
                node.speed_cm_s = node.speed_cm_s.min(limit.speed_cm_s);
                node.wait_ms = node.wait_ms.max(limit.wait_ms);
            }
            _ => nodes.push(limit),
        }
    }
    for i in 1..nodes.len() {
        let apart_cm = nodes[i].along_cm - nodes[i - 1].along_cm;
        let reached = (nodes[i - 1].speed_cm_s.powi(2) + 2.0 * SPEED_UP_CM_S2 * apart_cm).sqrt();
        nodes[i].speed_cm_s = nodes[i].speed_cm_s.min(reached);
    }
    for i in (1..nodes.len()).rev() {
        let apart_cm = nodes[i].along_cm - nodes[i - 1].along_cm;
        let braked = (nodes[i].speed_cm_s.powi(2) + 2.0 * BRAKE_CM_S2 * apart_cm).sqrt();
        nodes[i - 1].speed_cm_s = nodes[i - 1].speed_cm_s.min(braked);
    }
    let mut marks: Vec<Mark> = Vec::with_capacity(nodes.len());
    let mut at_ms = 0.0;
    for node in nodes {
        if let Some(before) = marks.last() {
            let middle = ((before.speed_cm_s + node.speed_cm_s) / 2.0).max(SPEED_CM_S_MIN / 2.0);
            at_ms += (node.along_cm - before.along_cm) / middle * 1000.0;
        }
        marks.push(Mark { at_ms, along_cm: node.along_cm, speed_cm_s: node.speed_cm_s });
        if node.wait_ms > 0.0 {
            at_ms += node.wait_ms;
            marks.push(Mark { at_ms, along_cm: node.along_cm, speed_cm_s: 0.0 });
        }
    }
    marks
}

/// One number of a long sequence from its place in it (SplitMix64).
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn unit(x: u64) -> f64 {
    (x >> 11) as f64 / (1u64 << 53) as f64
}

/// A number of the normal distribution from two even ones (Box and Muller).
pub(crate) fn normal(a: f64, b: f64) -> f64 {
    (-2.0 * (1.0 - a).ln()).sqrt() * (std::f64::consts::TAU * b).cos()
}

const STEP_CM: f64 = 500.0;
const SPEED_CM_S_MIN: f64 = 80.0;
const SPEED_UP_CM_S2: f64 = 160.0;
const BRAKE_CM_S2: f64 = 220.0;

#[cfg(test)]
mod tests {
    use maps::Candidate;
    use maps::router::Routing;
    use rand::SeedableRng;

    use super::*;
    use crate::places;
    use crate::sim::shift::tests::town;

    #[test]
    fn a_drive_keeps_to_its_roads_from_standing_to_standing() {
        let routing = town();
        let mut near: Vec<Candidate> = Vec::new();
        for seed in 0..40 {
            let (route, drive) = trip(&routing, seed);
            let line = route.geometry(routing.graph());
            let ends_ms = drive.duration_ms();

            assert!(geo::distance_cm(drive.at(0).position, line[0]) < 50.0, "seed {seed}");
            assert!(geo::distance_cm(drive.at(ends_ms).position, line[line.len() - 1]) < 50.0, "seed {seed}");
            assert_eq!((drive.at(0).speed_m_s, drive.at(ends_ms).speed_m_s), (0.0, 0.0), "seed {seed}");
            assert!((drive.length_m() - f64::from(route.length_cm) / 100.0).abs() < 1.0 + drive.length_m() * 0.01);
            for after_ms in (0..ends_ms).step_by(700) {
                let position = drive.at(after_ms).position;
                routing.graph().candidates(position, 3.0, Profile::Car, &mut near);
                assert!(
                    near.iter().any(|c| route.edges.contains(&c.edge)),
                    "seed {seed}: off its road at {after_ms} ms"
                );
            }
        }
    }

    #[test]
    fn a_car_moves_speeds_up_and_brakes_as_cars_do() {
        let routing = town();
        for seed in 0..40 {
            let (_, drive) = trip(&routing, seed);
            for at_ms in (1000..drive.duration_ms()).step_by(500) {
                let (before, after) = (drive.at(at_ms - 1000), drive.at(at_ms));
                let moved_m = geo::distance_cm(before.position, after.position) / 100.0;
                let change = after.speed_m_s - before.speed_m_s;

                assert!(
                    moved_m <= before.speed_m_s.max(after.speed_m_s) + 1.7,
                    "seed {seed}: {moved_m} m at {at_ms} ms"
                );
                assert!((-3.0..2.5).contains(&change), "seed {seed}: {change} m/s² at {at_ms} ms");
                assert!(after.speed_m_s < 45.0);
            }
        }
    }

    #[test]
    fn traffic_makes_drives_longer_than_the_empty_road_would_and_not_endless() {
        let routing = town();
        let mut ratios: Vec<f64> = (0..200)
            .map(|seed| {
                let (route, drive) = trip(&routing, seed);
                drive.duration_ms() as f64 / f64::from(route.duration_ms.max(1))
            })
            .collect();
        ratios.sort_by(f64::total_cmp);

        let (least, median, most) = (ratios[0], ratios[100], ratios[199]);
        assert!(least > 0.9 && (1.1..2.2).contains(&median) && most < 8.0, "{least} {median} {most}");
    }

    #[test]
    fn the_same_seed_drives_the_same() {
        let routing = town();

        assert_eq!(trip(&routing, 5), trip(&routing, 5));
        assert_ne!(trip(&routing, 5), trip(&routing, 6));
    }

    /// Between two places that a seed picks.
    fn trip(routing: &Routing, seed: u64) -> (Route, Drive) {
        let mut rng = SmallRng::seed_from_u64(seed);
        loop {
            let mut place = || places::anywhere(routing.graph(), Profile::Car, &mut rng).unwrap();
            let (from, to) = (place(), place());
            if let Some(route) = routing.route(&from.onward(), &to.onward(), Profile::Car) {
                let drive = Drive::plan(routing.graph(), &route, Profile::Car, &Traffic::default(), &mut rng);
                return (route, drive);
            }
        }
    }
}
