//! The plan as OpenStreetMap objects: nodes, ways and relations with tags.

use protocol::Position;

use super::TownOptions;
use super::plan::{Plan, Point, RIVER_HALF_M, distance};
use super::random::Random;
use crate::geo::Plane;

type Text = std::borrow::Cow<'static, str>;
pub type Tags = Vec<(&'static str, Text)>;

#[derive(Debug)]
pub struct DraftNode {
    pub position: Position,
    pub tags: Tags,
}

#[derive(Debug)]
pub struct DraftWay {
    /// Numbers of nodes.
    pub nodes: Vec<usize>,
    pub tags: Tags,
}

#[derive(Debug)]
pub struct DraftRestriction {
    pub from: usize,
    pub via: usize,
    pub to: usize,
    pub kind: &'static str,
}

pub struct Draft {
    plane: Plane,
    pub nodes: Vec<DraftNode>,
    pub ways: Vec<DraftWay>,
    pub restrictions: Vec<DraftRestriction>,
}

/// What a junction is on the map: one node, or the ring of a roundabout.
enum Place {
    Node(usize),
    Ring { centre: Point, nodes: Vec<usize> },
}

impl Draft {
    pub fn of(plan: &Plan, options: &TownOptions) -> Draft {
        let mut draft =
            Draft { plane: Plane::at(options.centre), nodes: Vec::new(), ways: Vec::new(), restrictions: Vec::new() };
        let mut random = Random::of_seed(options.seed ^ 0x6a09_e667_f3bc_c908);
        let rings = rings(plan);
        let places: Vec<Place> =
            (0..plan.junctions.len()).map(|j| draft.place(plan.junctions[j], rings.contains(&j))).collect();
        for place in &places {
            draft.add_ring(place);
        }
        let first_street_way = draft.ways.len();
        for (number, street) in plan.streets.iter().enumerate() {
            draft.add_street(plan, &mut random, &places, number, &street.links);
        }
        let street_ways = first_street_way..draft.ways.len();
        draft.restrict(&mut random, street_ways.clone(), plan.junctions.len() / 25);
        for way in street_ways.clone() {
            draft.add_side(&mut random, way);
        }
        draft.add_parks(plan, &places, &mut random);
        draft.add_river(plan);
        draft.add_node((0.0, 0.0), vec![("place", "town".into()), ("name", options.name.clone().into())]);
        if options.works_every > 0 {
            street_ways.step_by(options.works_every).for_each(|way| draft.close(way));
        }
        draft
    }

    /// For works: no road for anybody any more.
    fn close(&mut self, way: usize) {
        let tags = &mut self.ways[way].tags;
        tags.iter_mut().filter(|(key, _)| *key == "highway").for_each(|(_, value)| *value = "construction".into());
    }

    fn add_node(&mut self, point: Point, tags: Tags) -> usize {
        let position = self.plane.to_position((point.0 * 100.0, point.1 * 100.0));
        self.nodes.push(DraftNode { position, tags });
        self.nodes.len() - 1
    }

    fn point(&self, node: usize) -> Point {
        let (east_cm, north_cm) = self.plane.to_cm(self.nodes[node].position);
        (east_cm / 100.0, north_cm / 100.0)
    }

    fn place(&mut self, point: Point, is_ring: bool) -> Place {
        if !is_ring {
            return Place::Node(self.add_node(point, Vec::new()));
        }
        let on_ring = |i: usize| {
            let angle = i as f64 / RING_NODES as f64 * std::f64::consts::TAU; // counter-clockwise: traffic keeps right
            (point.0 + RING_M * libm::cos(angle), point.1 + RING_M * libm::sin(angle))
        };
        let nodes = (0..RING_NODES).map(|i| self.add_node(on_ring(i), Vec::new())).collect();
        Place::Ring { centre: point, nodes }
    }

    fn add_ring(&mut self, place: &Place) {
        if let Place::Ring { nodes, .. } = place {
            let mut ring = nodes.clone();
            ring.push(nodes[0]);
            let tags =
                vec![("highway", "secondary".into()), ("junction", "roundabout".into()), ("maxspeed", "30".into())];
            self.ways.push(DraftWay { nodes: ring, tags });
        }
    }

    /// The node where a line towards `next` leaves a junction.
    fn node_towards(&self, place: &Place, next: Point) -> usize {
        match place {
            Place::Node(node) => *node,
            Place::Ring { centre, nodes } => {
                let angle = libm::atan2(next.1 - centre.1, next.0 - centre.0).rem_euclid(std::f64::consts::TAU);
                nodes[(angle / std::f64::consts::TAU * RING_NODES as f64).round() as usize % RING_NODES]
            }
        }
    }

    /// A street as ways: a new one begins after a few links, and at both ends of a bridge.
    fn add_street(
        &mut self,
        plan: &Plan,
        random: &mut Random,
        places: &[Place],
        number: usize,
        links: &[(usize, bool)],
    ) {
        let tags = street_tags(random, number, plan.streets.len(), links.len());
        let mut nodes: Vec<usize> = Vec::new();
        let mut links_in_way = 0;
        for (link, is_back) in links {
            let link = &plan.links[*link];
            let mut line = link.line.clone();
            let (mut from, mut to) = (link.a, link.b);
            if *is_back {
                line.reverse();
                (from, to) = (to, from);
            }
            let first = self.node_towards(&places[from], line[1]);
            let last = self.node_towards(&places[to], line[line.len() - 2]);
            if link.is_bridge || links_in_way >= 3 || nodes.last().is_some_and(|node| *node != first) {
                self.close_way(&mut nodes, &tags, false);
                links_in_way = 0;
            }
            if nodes.is_empty() {
                nodes.push(first);
            }
            for point in &line[1..line.len() - 1] {
                nodes.push(self.add_node(*point, Vec::new()));
            }
            nodes.push(last);
            links_in_way += 1;
            if link.is_bridge {
                self.close_way(&mut nodes, &tags, true);
                links_in_way = 0;
            }
        }
        self.close_way(&mut nodes, &tags, false);
    }

    fn close_way(&mut self, nodes: &mut Vec<usize>, tags: &Tags, is_bridge: bool) {
        let nodes = std::mem::take(nodes);
        if nodes.len() < 2 {
            return;
        }
        let mut tags = tags.clone();
        if is_bridge {
            tags.retain(|(key, _)| *key != "oneway");
            tags.extend([("bridge", "yes".into()), ("layer", "1".into())]);
        }
        self.ways.push(DraftWay { nodes, tags });
    }

    /// Turn restrictions where ways of two streets meet end to end.
    fn restrict(&mut self, random: &mut Random, ways: std::ops::Range<usize>, wanted: usize) {
        let mut ends: Vec<Vec<usize>> = vec![Vec::new(); self.nodes.len()];
        for way in ways {
            let nodes = &self.ways[way].nodes;
            ends[nodes[0]].push(way);
            ends[nodes[nodes.len() - 1]].push(way);
        }
        let mut vias: Vec<usize> = (0..ends.len()).filter(|node| ends[*node].len() >= 3).collect();
        for _ in 0..wanted.min(vias.len()) {
            let via = vias.swap_remove(random.below(vias.len()));
            let from = ends[via][random.below(ends[via].len())];
            let others: Vec<usize> = ends[via].iter().copied().filter(|way| *way != from).collect();
            if others.is_empty() {
                continue;
            }
            let to = others[random.below(others.len())];
            let kind = match self.turn(from, via, to) {
                angle if angle > 0.6 => "no_left_turn",
                angle if angle < -0.6 => "no_right_turn",
                _ => "only_straight_on",
            };
            self.restrictions.push(DraftRestriction { from, via, to, kind });
        }
    }

    /// The angle of a turn, to the left positive.
    fn turn(&self, from: usize, via: usize, to: usize) -> f64 {
        let beside = |way: usize| {
            let nodes = &self.ways[way].nodes;
            self.point(if nodes[0] == via { nodes[1] } else { nodes[nodes.len() - 2] })
        };
        let (a, v, b) = (beside(from), self.point(via), beside(to));
        let (inward, outward) = ((v.0 - a.0, v.1 - a.1), (b.0 - v.0, b.1 - v.1));
        libm::atan2(inward.0 * outward.1 - inward.1 * outward.0, inward.0 * outward.0 + inward.1 * outward.1)
    }

    /// Houses along a way of a small street, drives off it, and now and then a bollard.
    fn add_side(&mut self, random: &mut Random, way: usize) {
        let class = self.ways[way].tags[0].1.clone();
        if !matches!(class.as_ref(), "residential" | "tertiary" | "unclassified" | "living_street") {
            return;
        }
        let nodes = self.ways[way].nodes.clone();
        for pair in nodes.windows(2) {
            let (a, b) = (self.point(pair[0]), self.point(pair[1]));
            let length = distance(a, b);
            if length < 25.0 {
                continue;
            }
            let along = ((b.0 - a.0) / length, (b.1 - a.1) / length);
            let side = if random.one_in(2) { 1.0 } else { -1.0 };
            let across = (-along.1 * side, along.0 * side);
            self.add_house(random, ((a.0 + b.0) / 2.0, (a.1 + b.1) / 2.0), along, across);
            if random.one_in(9) {
                self.add_drive(random, pair[0], along, (-across.0, -across.1));
            }
        }
    }

    fn add_house(&mut self, random: &mut Random, middle: Point, along: Point, across: Point) {
        let (near, deep, half) = (9.0, random.between(8.0, 13.0), random.between(5.0, 10.0));
        let corner = |u: f64, v: f64| (middle.0 + along.0 * u + across.0 * v, middle.1 + along.1 * u + across.1 * v);
        let corners = [(-half, near), (half, near), (half, near + deep), (-half, near + deep)];
        let mut nodes: Vec<usize> = corners.iter().map(|(u, v)| self.add_node(corner(*u, *v), Vec::new())).collect();
        nodes.push(nodes[0]);
        self.ways.push(DraftWay { nodes, tags: vec![("building", "yes".into())] });
    }

    fn add_drive(&mut self, random: &mut Random, from: usize, along: Point, across: Point) {
        let start = self.point(from);
        let (lean, far) = (random.between(-8.0, 8.0), random.between(25.0, 55.0));
        let step = |v: f64| {
            (start.0 + along.0 * lean * v / far + across.0 * v, start.1 + along.1 * lean * v / far + across.1 * v)
        };
        let barrier = if random.one_in(8) { vec![("barrier", "bollard".into())] } else { Vec::new() };
        let middle = self.add_node(step(far / 2.0), barrier);
        let end = self.add_node(step(far), Vec::new());
        let mut tags: Tags = vec![("highway", "service".into())];
        match random.below(3) {
            0 => tags.extend([("service", "driveway".into()), ("access", "private".into())]),
            1 => tags.push(("service", "parking_aisle".into())),
            _ => tags.push(("surface", "gravel".into())),
        }
        self.ways.push(DraftWay { nodes: vec![from, middle, end], tags });
    }

    /// Parks with footways to the junctions around them.
    fn add_parks(&mut self, plan: &Plan, places: &[Place], random: &mut Random) {
        for (number, park) in plan.parks.iter().enumerate() {
            let at =
                |angle: f64, far: f64| (park.centre.0 + far * libm::cos(angle), park.centre.1 + far * libm::sin(angle));
            let corners = 14;
            let mut edge = |i: i32| {
                at(f64::from(i) / f64::from(corners) * std::f64::consts::TAU, park.radius_m * random.between(0.82, 1.0))
            };
            let points: Vec<Point> = (0..corners).map(&mut edge).collect();
            let mut nodes: Vec<usize> = points.into_iter().map(|p| self.add_node(p, Vec::new())).collect();
            nodes.push(nodes[0]);
            let name = format!("{} Park", FIRST_NAMES[(number * 7 + 3) % FIRST_NAMES.len()]);
            self.ways.push(DraftWay { nodes, tags: vec![("leisure", "park".into()), ("name", name.into())] });
            let middle = self.add_node(park.centre, Vec::new());
            let mut around: Vec<(f64, usize)> =
                plan.junctions.iter().enumerate().map(|(j, p)| (distance(*p, park.centre), j)).collect();
            around.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            for (i, (_, junction)) in around.iter().take(5).enumerate() {
                let end = self.node_towards(&places[*junction], park.centre);
                let highway = if i == 0 { "cycleway" } else { "footway" };
                self.ways.push(DraftWay { nodes: vec![middle, end], tags: vec![("highway", highway.into())] });
            }
        }
    }

    fn add_river(&mut self, plan: &Plan) {
        let line: Vec<usize> = plan.river.iter().map(|p| self.add_node(*p, Vec::new())).collect();
        let name: Text = "Long River".into();
        self.ways.push(DraftWay { nodes: line, tags: vec![("waterway", "river".into()), ("name", name.clone())] });
        let bank = |side: f64| plan.river.iter().map(move |p| (p.0, p.1 + side * RIVER_HALF_M));
        let points: Vec<Point> = bank(1.0).chain(bank(-1.0).rev()).collect();
        let mut nodes: Vec<usize> = points.into_iter().map(|p| self.add_node(p, Vec::new())).collect();
        nodes.push(nodes[0]);
        self.ways.push(DraftWay { nodes, tags: vec![("natural", "water".into()), ("name", name)] });
    }
}

/// The junctions that become roundabouts: a few with many arms, far apart.
fn rings(plan: &Plan) -> Vec<usize> {
    let degree = super::plan::degrees(&plan.links, plan.junctions.len());
    let mut rings: Vec<usize> = Vec::new();
    let wanted = (plan.junctions.len() / 200).clamp(1, 8);
    for (junction, here) in plan.junctions.iter().copied().enumerate() {
        let is_bridgehead = plan.links.iter().any(|l| l.is_bridge && (l.a == junction || l.b == junction));
        let is_far = rings.iter().all(|ring| distance(plan.junctions[*ring], here) > 400.0);
        if degree[junction] >= 4 && !is_bridgehead && is_far && rings.len() < wanted {
            rings.push(junction);
        }
    }
    rings
}

/// The kind of the n-th longest street, its name, and what signs stand there.
fn street_tags(random: &mut Random, number: usize, streets: usize, links: usize) -> Tags {
    let share = number as f64 / streets as f64;
    let class = match share {
        s if s < 0.012 => "primary",
        s if s < 0.04 => "secondary",
        s if s < 0.12 => "tertiary",
        s if s < 0.16 => "unclassified",
        _ if random.one_in(25) => "living_street",
        _ if links == 1 && random.one_in(12) => "service",
        _ => "residential",
    };
    let mut tags: Tags = vec![("highway", class.into())];
    if class != "service" {
        tags.push(("name", street_name(number, class).into()));
    }
    match class {
        "primary" => tags.push(("maxspeed", "70".into())),
        "secondary" | "tertiary" => tags.push(("maxspeed", "50".into())),
        "residential" if random.one_in(2) => tags.push(("maxspeed", "30".into())),
        _ => {}
    }
    if class == "residential" && random.one_in(7) {
        tags.push(("oneway", "yes".into()));
        if random.one_in(3) {
            tags.push(("oneway:bicycle", "no".into()));
        }
    }
    if random.one_in(30) {
        tags.push(("surface", "cobblestone".into()));
    }
    tags
}

fn street_name(number: usize, class: &str) -> String {
    let kind = match class {
        "primary" | "secondary" => ["Avenue", "Road"][number % 2],
        "tertiary" | "unclassified" => ["Road", "Street", "Hill"][number % 3],
        _ => ["Street", "Lane", "Close", "Row", "Way"][number % 5],
    };
    let first = FIRST_NAMES[number * 13 % FIRST_NAMES.len()];
    match number / FIRST_NAMES.len() {
        0 => format!("{first} {kind}"),
        round => format!("{} {first} {kind}", SECOND_NAMES[(round - 1) % SECOND_NAMES.len()]),
    }
}

const RING_NODES: usize = 12;
const RING_M: f64 = 17.0;
const FIRST_NAMES: &[&str] = &[
    "Alder", "Anchor", "Apple", "Ash", "Baker", "Barley", "Beacon", "Bell", "Birch", "Bishop", "Bridge", "Brook",
    "Castle", "Cedar", "Chapel", "Cherry", "Church", "Clay", "Cooper", "Cross", "Dove", "Elm", "Falcon", "Fern",
    "Field", "Fisher", "Forge", "Fox", "Garden", "Glass", "Granary", "Hazel", "Heron", "Hill", "Holly", "Iron", "Ivy",
    "Juniper", "King", "Lantern", "Lark", "Laurel", "Lime", "Linden", "Maple", "Market", "Meadow", "Mill", "Moss",
    "Oak", "Orchard", "Otter", "Pear", "Pine", "Plum", "Queen", "Quarry", "Raven", "Reed", "River", "Robin", "Rowan",
    "Saddle", "School", "Silver", "Spring", "Station", "Stone", "Swan", "Thistle", "Tower", "Vine", "Walnut", "Water",
    "Weaver", "Well", "Willow", "Wood", "Yarrow",
];
const SECOND_NAMES: &[&str] = &["Old", "New", "Upper", "Lower", "Little", "Great", "North", "South", "East", "West"];
