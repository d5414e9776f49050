//! Where everything lies, in metres east and north of the town's centre: junctions scattered but not too close, joined
//! where no third one lies between them (a Gabriel graph, which looks much like streets do), streets as the
//! straightest ways through.

use super::TownOptions;
use super::random::Random;

pub type Point = (f64, f64);

/// A stretch between two junctions.
#[derive(Clone, Debug)]
pub struct Link {
    pub a: usize,
    pub b: usize,
    /// From a to b, both included.
    pub line: Vec<Point>,
    pub is_bridge: bool,
}

/// Links that continue one another.
#[derive(Clone, Debug)]
pub struct Street {
    /// Links and whether they are walked from b to a.
    pub links: Vec<(usize, bool)>,
    pub length_m: f64,
}

pub struct Plan {
    pub junctions: Vec<Point>,
    pub links: Vec<Link>,
    /// The longest first.
    pub streets: Vec<Street>,
    pub parks: Vec<Park>,
    pub river: Vec<Point>,
}

pub struct Park {
    pub centre: Point,
    pub radius_m: f64,
}

impl Plan {
    pub fn of(options: &TownOptions) -> Plan {
        let mut random = Random::of_seed(options.seed);
        let count = options.junctions.clamp(20, 5_000);
        let radius_m = SPACING_M * (count as f64).sqrt() * 0.62;
        let bend =
            (random.between(0.15, 0.3) * radius_m, random.between(0.0, 6.0), random.between(-0.2, 0.2) * radius_m);
        let river = |x: f64| bend.2 + bend.0 * libm::sin(bend.1 + x / radius_m * 2.6);
        let parks = parks(&mut random, radius_m, count);
        let junctions = scatter(&mut random, count, radius_m, &parks, river);
        let mut links = join(&junctions);
        thin_out(&mut random, &mut links, junctions.len());
        bridge(&mut links, &junctions, river);
        for link in &mut links {
            curve(&mut random, link, &junctions);
        }
        let streets = streets(&links, junctions.len());
        let steps = 48;
        let bank = (0..=steps).map(|i| radius_m * 1.3 * (f64::from(i) / f64::from(steps) * 2.0 - 1.0));
        let river = bank.map(|x| (x, river(x))).collect();
        Plan { junctions, links, streets, parks, river }
    }
}

fn parks(random: &mut Random, radius_m: f64, junctions: usize) -> Vec<Park> {
    let count = (junctions / 180).clamp(1, 12);
    let mut park = || {
        let (angle, far) = (random.between(0.0, std::f64::consts::TAU), random.between(0.1, 0.8) * radius_m);
        let centre = (far * libm::cos(angle), far * libm::sin(angle));
        Park { centre, radius_m: random.between(90.0, 190.0) }
    };
    (0..count).map(|_| park()).collect()
}

/// Points in a disc, no two too close, none in a park or in the river.
fn scatter(random: &mut Random, count: usize, radius_m: f64, parks: &[Park], river: impl Fn(f64) -> f64) -> Vec<Point> {
    let mut points: Vec<Point> = Vec::with_capacity(count);
    let mut tries = 0;
    while points.len() < count && tries < count * 60 {
        tries += 1;
        let p = (random.between(-radius_m, radius_m), random.between(-radius_m, radius_m));
        let from_centre = distance(p, (0.0, 0.0));
        let spacing = SPACING_M * (0.55 + 0.35 * from_centre / radius_m); // the centre is denser
        let is_free = from_centre <= radius_m
            && (p.1 - river(p.0)).abs() > RIVER_HALF_M + 25.0
            && parks.iter().all(|park| distance(p, park.centre) > park.radius_m + 15.0)
            && points.iter().all(|other| distance(p, *other) > spacing);
        if is_free {
            points.push(p);
        }
    }
    points
}

/// Joins two points where no third lies within the circle between them.
fn join(points: &[Point]) -> Vec<Link> {
    let near: Vec<Vec<usize>> = (0..points.len())
        .map(|a| (0..points.len()).filter(|b| *b != a && distance(points[a], points[*b]) < LINK_M_MAX).collect())
        .collect();
    let mut links = Vec::new();
    for a in 0..points.len() {
        for b in near[a].iter().copied().filter(|b| *b > a) {
            let middle = ((points[a].0 + points[b].0) / 2.0, (points[a].1 + points[b].1) / 2.0);
            let half = distance(points[a], points[b]) / 2.0;
            if near[a].iter().all(|c| *c == b || distance(points[*c], middle) > half) {
                links.push(Link { a, b, line: vec![points[a], points[b]], is_bridge: false });
            }
        }
    }
    links
}

/// Takes some links away where their ends have others left: towns have blocks of many sizes.
fn thin_out(random: &mut Random, links: &mut Vec<Link>, junctions: usize) {
    let mut degree = degrees(links, junctions);
    links.retain(|link| {
        let is_dropped = random.one_in(6) && degree[link.a] > 2 && degree[link.b] > 2;
        if is_dropped {
            degree[link.a] -= 1;
            degree[link.b] -= 1;
        }
        !is_dropped
    });
}

/// Keeps of the links across the river only those far enough apart, as bridges.
fn bridge(links: &mut Vec<Link>, junctions: &[Point], river: impl Fn(f64) -> f64) {
    let mut bridges: Vec<f64> = Vec::new();
    let is_north = |junction: usize| junctions[junction].1 > river(junctions[junction].0);
    links.retain_mut(|link| {
        if is_north(link.a) == is_north(link.b) {
            return true;
        }
        let x = (junctions[link.a].0 + junctions[link.b].0) / 2.0;
        link.is_bridge = bridges.iter().all(|other| (other - x).abs() > BRIDGES_APART_M);
        if link.is_bridge {
            bridges.push(x);
        }
        link.is_bridge
    });
}

/// Gives a link points between its ends, most of them bending it a little. Bridges stay straight.
fn curve(random: &mut Random, link: &mut Link, junctions: &[Point]) {
    let (a, b) = (junctions[link.a], junctions[link.b]);
    let length = distance(a, b);
    if link.is_bridge {
        return;
    }
    let inner = (length / 45.0) as usize;
    let bow = if random.one_in(3) { random.between(-0.09, 0.09) * length } else { 0.0 };
    let across = (-(b.1 - a.1) / length, (b.0 - a.0) / length);
    link.line = vec![a];
    for i in 1..=inner {
        let t = i as f64 / (inner + 1) as f64;
        let off = bow * 4.0 * t * (1.0 - t) + random.between(-1.5, 1.5);
        link.line.push((a.0 + (b.0 - a.0) * t + across.0 * off, a.1 + (b.1 - a.1) * t + across.1 * off));
    }
    link.line.push(b);
}

/// Follows links straight on from each one that belongs to no street yet.
fn streets(links: &[Link], junctions: usize) -> Vec<Street> {
    let mut at: Vec<Vec<usize>> = vec![Vec::new(); junctions];
    for (number, link) in links.iter().enumerate() {
        at[link.a].push(number);
        at[link.b].push(number);
    }
    let mut is_taken = vec![false; links.len()];
    let mut streets = Vec::new();
    for first in 0..links.len() {
        if is_taken[first] {
            continue;
        }
        is_taken[first] = true;
        let mut ahead = follow(links, &at, &mut is_taken, (first, false));
        let mut walked = follow(links, &at, &mut is_taken, (first, true));
        walked.reverse();
        let mut street: Vec<(usize, bool)> = walked.into_iter().map(|(link, is_back)| (link, !is_back)).collect();
        street.push((first, false));
        street.append(&mut ahead);
        let length_m = street.iter().map(|(link, _)| length(&links[*link].line)).sum();
        streets.push(Street { links: street, length_m });
    }
    streets.sort_by(|a, b| b.length_m.total_cmp(&a.length_m).then(a.links[0].cmp(&b.links[0])));
    streets
}

fn follow(links: &[Link], at: &[Vec<usize>], is_taken: &mut [bool], start: (usize, bool)) -> Vec<(usize, bool)> {
    let mut street = Vec::new();
    let (mut link, mut is_back) = start;
    while street.len() < STREET_LINKS_MAX {
        let end = if is_back { links[link].a } else { links[link].b };
        let straightest = at[end]
            .iter()
            .copied()
            .filter(|next| !is_taken[*next])
            .map(|next| (next, links[next].b == end))
            .map(|next| (straightness(&links[link], is_back, &links[next.0], next.1), next))
            .max_by(|x, y| x.0.total_cmp(&y.0).then(y.1.cmp(&x.1)));
        match straightest {
            Some((cosine, next)) if cosine > STRAIGHT_COSINE_MIN => {
                is_taken[next.0] = true;
                street.push(next);
                (link, is_back) = next;
            }
            _ => break,
        }
    }
    street
}

/// Cosine of the turn from the end of one link to the beginning of the next.
fn straightness(before: &Link, before_is_back: bool, next: &Link, next_is_back: bool) -> f64 {
    let (p, q) = last_step(&before.line, before_is_back);
    let (r, s) = first_step(&next.line, next_is_back);
    let (u, v) = ((q.0 - p.0, q.1 - p.1), (s.0 - r.0, s.1 - r.1));
    let norm = ((u.0 * u.0 + u.1 * u.1) * (v.0 * v.0 + v.1 * v.1)).sqrt();
    if norm > 0.0 { (u.0 * v.0 + u.1 * v.1) / norm } else { -1.0 }
}

fn last_step(line: &[Point], is_back: bool) -> (Point, Point) {
    if is_back { (line[1], line[0]) } else { (line[line.len() - 2], line[line.len() - 1]) }
}

fn first_step(line: &[Point], is_back: bool) -> (Point, Point) {
    if is_back { (line[line.len() - 1], line[line.len() - 2]) } else { (line[0], line[1]) }
}

pub fn degrees(links: &[Link], junctions: usize) -> Vec<usize> {
    let mut degree = vec![0; junctions];
    for link in links {
        degree[link.a] += 1;
        degree[link.b] += 1;
    }
    degree
}

pub fn distance(a: Point, b: Point) -> f64 {
    ((a.0 - b.0) * (a.0 - b.0) + (a.1 - b.1) * (a.1 - b.1)).sqrt()
}

pub fn length(line: &[Point]) -> f64 {
    line.windows(2).map(|pair| distance(pair[0], pair[1])).sum()
}

const SPACING_M: f64 = 118.0;
const LINK_M_MAX: f64 = 300.0;
pub const RIVER_HALF_M: f64 = 28.0;
const BRIDGES_APART_M: f64 = 330.0;
const STREET_LINKS_MAX: usize = 40;
const STRAIGHT_COSINE_MIN: f64 = 0.80; // turns of up to 37 degrees
