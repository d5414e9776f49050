//! From ways and nodes to the graph's records: ways are cut where roads meet, junctions are numbered along a Hilbert
//! curve, roads and edges after them. Nothing here depends on the order in which anything was decoded.

use std::collections::HashMap;

use protocol::Position;
use rayon::prelude::*;

use super::harvest::{DraftWay, Harvest, WayKind};
use super::nodes::Nodes;
use super::tags::DirectionTags;
use crate::class::{EdgeFlags, RoadClass};
use crate::costs::FERRY_UNITS;
use crate::geo;
use crate::record::{BACKWARD, EdgeRecord, NONE, PointRecord, RoadRecord, WayRecord};

/// The graph's tables, before they are written.
#[derive(Default)]
pub struct Tables {
    pub edges: Vec<EdgeRecord>,
    pub out_first: Vec<u32>,
    pub in_first: Vec<u32>,
    pub in_edges: Vec<u32>,
    /// One more than roads.
    pub roads: Vec<RoadRecord>,
    pub ways: Vec<WayRecord>,
    pub points: Vec<PointRecord>,
    pub text: Text,
    /// For every place within the ids, the junction there, or NONE.
    pub junction_of_place: Vec<u32>,
    /// For every road, the number of its way within the harvest.
    pub draft_way_of_road: Vec<u32>,
    /// Points of ways that the extract does not hold.
    pub nodes_missing: u64,
    /// All points of roads, those included.
    pub nodes_wanted: u64,
    pub length_cm: u64,
    /// Of ferries that say how long they take, by the number of their way, in 256ths of a centimetre per second.
    ferry_speeds: HashMap<u32, u32>, // only looked up, never walked
}

/// Names, each once.
#[derive(Default)]
pub struct Text {
    pub bytes: String,
    known: HashMap<String, u32>, // only looked up, never walked
}

impl Text {
    /// Where the text begins and how long it is.
    pub fn add(&mut self, text: &str) -> (u32, u32) {
        if text.is_empty() {
            return (0, 0);
        }
        if let Some(first) = self.known.get(text) {
            return (*first, text.len() as u32);
        }
        let first = self.bytes.len() as u32;
        self.bytes.push_str(text);
        self.known.insert(text.to_owned(), first);
        (first, text.len() as u32)
    }
}

/// A stretch between two junctions.
struct DraftRoad {
    way: u32,
    /// Its points, within `Cut::places`.
    first: usize,
    count: usize,
}

struct Cut {
    roads: Vec<DraftRoad>,
    places: Vec<u32>,
    nodes_missing: u64,
    nodes_wanted: u64,
}

/// `places` has for each of the harvest's refs its place within the ids, or NONE where the extract does not hold it.
pub fn tables(harvest: &Harvest, nodes: &Nodes, places: &[u32]) -> Tables {
    let cut = cut_ways(harvest, nodes, places);
    let ends: Vec<(u32, u32)> = cut.roads.iter().map(|road| cut.ends(road)).collect();
    let (junction_of_place, junctions) = number_junctions(&ends, nodes);
    let key = |(road, (from, to)): (usize, &(u32, u32))| {
        let (a, b) = (junction_of_place[*from as usize], junction_of_place[*to as usize]);
        (a.min(b), a.max(b), road as u32)
    };
    let mut order: Vec<(u32, u32, u32)> = ends.iter().enumerate().map(key).collect();
    order.par_sort_unstable();
    let mut tables = Tables {
        junction_of_place,
        nodes_missing: cut.nodes_missing,
        nodes_wanted: cut.nodes_wanted,
        ..Tables::default()
    };
    let mut way_numbers = vec![NONE; harvest.ways.len()];
    let mut drafts = Vec::with_capacity(cut.roads.len() * 2);
    let lines = order.par_chunks(ROADS_AT_ONCE).map(|some| lines(&cut, nodes, some)).collect::<Vec<_>>();
    let lengths = lines.iter().flat_map(|lines| &lines.lengths_cm);
    let of_ways = order.iter().zip(lengths.clone()).map(|((_, _, draft), cm)| (cut.roads[*draft as usize].way, *cm));
    tables.ferry_speeds = ferry_speeds(harvest, places, of_ways);
    let mut first_point = 0;
    for ((_, _, draft), length_cm) in order.iter().zip(lengths) {
        let road = &cut.roads[*draft as usize];
        tables.add_road(harvest, &cut, road, (first_point, *length_cm), &mut way_numbers, &mut drafts);
        first_point += road.count as u32;
    }
    tables.points = lines.iter().flat_map(|lines| &lines.points).copied().collect();
    tables.roads.push(RoadRecord { first_point: tables.points.len() as u32, way: 0, forward: NONE, backward: NONE });
    tables.number_edges(drafts, junctions);
    tables
}

/// The lines of some roads, one after the other.
#[derive(Default)]
struct Lines {
    points: Vec<PointRecord>,
    lengths_cm: Vec<u32>,
}

fn lines(cut: &Cut, nodes: &Nodes, roads: &[(u32, u32, u32)]) -> Lines {
    let mut lines = Lines::default();
    for (_, _, draft) in roads {
        lines.add(cut.points(&cut.roads[*draft as usize]), nodes);
    }
    lines
}

impl Lines {
    fn add(&mut self, places: &[u32], nodes: &Nodes) {
        let mut along = 0.0;
        let mut before: Option<Position> = None;
        let mut last_cm = 0;
        for (i, place) in places.iter().enumerate() {
            let position = nodes.positions[*place as usize].unwrap_or_default(); // cut_ways kept only those there
            along += before.map_or(0.0, |before| geo::distance_cm(before, position));
            before = Some(position);
            last_cm = f64::round(along) as u32;
            if i + 1 == places.len() {
                last_cm = last_cm.max(1); // no edge is without length
            }
            self.points.push(PointRecord { lat_e7: position.lat_e7, lon_e7: position.lon_e7, along_cm: last_cm });
        }
        self.lengths_cm.push(last_cm);
    }
}

impl Cut {
    fn points(&self, road: &DraftRoad) -> &[u32] {
        &self.places[road.first..road.first + road.count]
    }

    fn ends(&self, road: &DraftRoad) -> (u32, u32) {
        (self.places[road.first], self.places[road.first + road.count - 1])
    }
}

fn cut_ways(harvest: &Harvest, nodes: &Nodes, places_of_refs: &[u32]) -> Cut {
    let mut uses = vec![0_u8; nodes.positions.len()];
    let mut cut = Cut { roads: Vec::new(), places: Vec::new(), nodes_missing: 0, nodes_wanted: 0 };
    let mut pieces = Vec::new(); // (way, first place, number of places): stretches without a missing point
    let mut places = Vec::new();
    for (number, way) in harvest.ways.iter().enumerate() {
        if !matches!(way.kind, WayKind::Road(_)) {
            continue;
        }
        let mut first = places.len();
        cut.nodes_wanted += way.refs as u64;
        for place in &places_of_refs[way.first_ref..way.first_ref + way.refs] {
            if *place == NONE {
                cut.nodes_missing += 1;
                close_piece(&mut pieces, &mut places, &mut uses, number, &mut first);
            } else if places[first..].last() != Some(place) {
                places.push(*place); // the same point twice in a row is one
            }
        }
        close_piece(&mut pieces, &mut places, &mut uses, number, &mut first);
    }
    for (place, _) in &nodes.barriers {
        uses[*place as usize] = 2; // nobody can be stopped in the middle of an edge
    }
    for (way, first, count) in pieces {
        cut.cut_piece(way, &places[first..first + count], &uses);
    }
    cut
}

fn close_piece(
    pieces: &mut Vec<(u32, usize, usize)>,
    places: &mut Vec<u32>,
    uses: &mut [u8],
    way: usize,
    first: &mut usize,
) {
    let count = places.len() - *first;
    if count < 2 {
        places.truncate(*first);
        return;
    }
    for place in &places[*first..] {
        uses[*place as usize] = uses[*place as usize].saturating_add(1);
    }
    pieces.push((way as u32, *first, count));
    *first = places.len();
}

impl Cut {
    fn cut_piece(&mut self, way: u32, piece: &[u32], uses: &[u8]) {
        let mut start = 0;
        for i in 1..piece.len() {
            let is_end = i + 1 == piece.len() || uses[piece[i] as usize] > 1 || i - start >= ROAD_POINTS_MAX;
            // A loop that comes back to where it began is cut in the middle: two edges between one pair of junctions
            // can be told apart by their middle, an edge from a junction to itself is no way to anywhere.
            let is_loop = is_end && piece[i] == piece[start] && i - start >= 2;
            if is_loop {
                let middle = start + (i - start) / 2;
                self.push(way, &piece[start..=middle]);
                self.push(way, &piece[middle..=i]);
            } else if is_end {
                self.push(way, &piece[start..=i]);
            }
            if is_end {
                start = i;
            }
        }
    }

    fn push(&mut self, way: u32, points: &[u32]) {
        self.roads.push(DraftRoad { way, first: self.places.len(), count: points.len() });
        self.places.extend_from_slice(points);
    }
}

/// Numbers the ends of roads along a Hilbert curve.
fn number_junctions(ends: &[(u32, u32)], nodes: &Nodes) -> (Vec<u32>, usize) {
    let mut junctions: Vec<(u64, u32)> = Vec::with_capacity(ends.len() * 2);
    let mut junction_of_place = vec![NONE; nodes.positions.len()];
    for place in ends.iter().flat_map(|(from, to)| [*from, *to]) {
        if junction_of_place[place as usize] == NONE {
            junction_of_place[place as usize] = 0;
            junctions.push((hilbert(nodes.positions[place as usize].unwrap_or_default()), place));
        }
    }
    junctions.par_sort_unstable();
    for (number, (_, place)) in junctions.iter().enumerate() {
        junction_of_place[*place as usize] = number as u32;
    }
    (junction_of_place, junctions.len())
}

/// Where a position lies on a Hilbert curve through the whole world.
pub fn hilbert(position: Position) -> u64 {
    let mut x = (i64::from(position.lon_e7) + 1_800_000_000) as u64;
    let mut y = (i64::from(position.lat_e7) + 900_000_000) as u64;
    let mut along = 0;
    let side = 1_u64 << 32;
    let mut s = side >> 1;
    while s > 0 {
        let (rx, ry) = (u64::from(x & s > 0), u64::from(y & s > 0));
        along += s * s * ((3 * rx) ^ ry);
        if ry == 0 {
            if rx == 1 {
                x = (side - 1) - x;
                y = (side - 1) - y;
            }
            std::mem::swap(&mut x, &mut y);
        }
        s >>= 1;
    }
    along
}

impl Tables {
    fn add_road(
        &mut self,
        harvest: &Harvest,
        cut: &Cut,
        road: &DraftRoad,
        (first_point, length_cm): (u32, u32),
        way_numbers: &mut [u32],
        drafts: &mut Vec<EdgeRecord>,
    ) {
        let draft_way = &harvest.ways[road.way as usize];
        let WayKind::Road(tags) = draft_way.kind else {
            return;
        };
        let number = self.roads.len() as u32;
        self.length_cm += u64::from(length_cm);
        let way = &mut way_numbers[road.way as usize];
        if *way == NONE {
            *way = self.ways.len() as u32;
            let (name, name_len) = self.text.add(&draft_way.name);
            self.ways.push(WayRecord { osm_id: draft_way.id, name, name_len });
        }
        self.roads.push(RoadRecord { first_point, way: *way, forward: NONE, backward: NONE });
        self.draft_way_of_road.push(road.way);
        let draft_number = road.way;
        let (from, to) = cut.ends(road);
        let (from, to) = (self.junction_of_place[from as usize], self.junction_of_place[to as usize]);
        let ferry = (tags.class == RoadClass::Ferry).then(|| self.ferry_speeds.get(&draft_number).copied());
        let speeds = |direction: &DirectionTags| match ferry {
            None => (direction.car_cm_s, (direction.bicycle_cm_s / 10).clamp(1, 255) as u8),
            Some(None) => (direction.car_cm_s, 0),
            Some(Some(speed)) => ((speed / FERRY_UNITS) as u16, (speed % FERRY_UNITS) as u8),
        };
        let edge = |from, to, direction: &DirectionTags, road| EdgeRecord {
            from,
            to,
            length_cm,
            road,
            car_cm_s: speeds(direction).0,
            flags: tags.flags.0 | EdgeFlags::private_to(direction.limited).0,
            bicycle_dm_s: speeds(direction).1,
            kind: EdgeRecord::kind_of(tags.class, tags.surface),
            access: direction.access,
            limit_km_h: direction.limit_km_h,
        };
        if tags.forward.access != 0 {
            drafts.push(edge(from, to, &tags.forward, number));
        }
        if tags.backward.access != 0 {
            drafts.push(edge(to, from, &tags.backward, number | BACKWARD));
        }
    }

    /// Whether the second edge leads back along the first.
    pub fn is_u_turn(&self, from: u32, to: u32) -> bool {
        self.edges[from as usize].road ^ BACKWARD == self.edges[to as usize].road
    }

    /// Sorts edges by the junction that they leave, and links them with roads, junctions and each other.
    pub fn number_edges(&mut self, mut drafts: Vec<EdgeRecord>, junctions: usize) {
        drafts.par_sort_by_key(|edge| edge.from); // stable: then by road
        self.edges = drafts;
        for (number, edge) in self.edges.iter().enumerate() {
            if EdgeFlags(edge.flags).has(EdgeFlags::COPY) {
                continue; // a road names the edge itself
            }
            let road = &mut self.roads[(edge.road & !BACKWARD) as usize];
            let slot = if edge.road & BACKWARD == 0 { &mut road.forward } else { &mut road.backward };
            *slot = number as u32;
        }
        self.out_first = count_up(junctions, self.edges.iter().map(|edge| edge.from));
        self.in_first = count_up(junctions, self.edges.iter().map(|edge| edge.to));
        let mut next = self.in_first.clone();
        self.in_edges = vec![0; self.edges.len()];
        for (number, edge) in self.edges.iter().enumerate() {
            let slot = &mut next[edge.to as usize];
            self.in_edges[*slot as usize] = number as u32;
            *slot += 1;
        }
    }
}

/// Speeds of ferries from the time that they take: said of the whole way, or of a relation's ways together. Where a part
/// of either is not in the extract nobody knows how long the whole is, and the usual speed holds.
fn ferry_speeds(harvest: &Harvest, places: &[u32], lengths: impl Iterator<Item = (u32, u32)>) -> HashMap<u32, u32> {
    let is_whole = |way: &DraftWay| places[way.first_ref..way.first_ref + way.refs].iter().all(|place| *place != NONE);
    let duration_s = |way: &DraftWay| match way.kind {
        WayKind::Road(tags) if tags.class == RoadClass::Ferry && is_whole(way) => Some(tags.ferry_s),
        WayKind::Road(_) | WayKind::Feature(_) | WayKind::Outline => None,
    };
    let ferries: HashMap<u32, u32> =
        (0..).zip(&harvest.ways).filter_map(|(number, way)| Some((number, duration_s(way)?))).collect();
    if ferries.is_empty() {
        return HashMap::new();
    }
    let mut length_cm: HashMap<u32, u64> = HashMap::new();
    for (way, cm) in lengths.filter(|(way, _)| ferries.contains_key(way)) {
        *length_cm.entry(way).or_default() += u64::from(cm);
    }
    let speed = |cm: u64, seconds: u32| {
        (cm * u64::from(FERRY_UNITS) / u64::from(seconds.max(1))).clamp(1, FERRY_SPEED_MAX) as u32
    };
    let length = |number: &u32| length_cm.get(number).copied().unwrap_or(0);
    let number_of: HashMap<i64, u32> = ferries.keys().map(|n| (harvest.ways[*n as usize].id, *n)).collect();
    let mut speeds = HashMap::new();
    for line in &harvest.ferries {
        let members: Vec<Option<u32>> = line.ways.iter().map(|id| number_of.get(id).copied()).collect();
        let known: Vec<u32> = members.iter().flatten().copied().collect();
        let whole: u64 = known.iter().map(length).sum();
        if known.len() == members.len() && whole > 0 {
            speeds.extend(known.iter().map(|number| (*number, speed(whole, line.duration_s))));
        }
    }
    let own = ferries.iter().filter(|(_, seconds)| **seconds > 0);
    speeds.extend(own.map(|(number, seconds)| (*number, speed(length(number), *seconds))));
    speeds
}

/// Where the list of each of `count` owners begins, if the items' owners are these; one more closes the last.
pub fn count_up(count: usize, owners: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut first = vec![0; count + 1];
    for owner in owners {
        first[owner as usize + 1] += 1;
    }
    for i in 0..count {
        first[i + 1] += first[i];
    }
    first
}

/// The index counts a road's points in 16 bits.
const ROAD_POINTS_MAX: usize = 60_000;
const ROADS_AT_ONCE: usize = 8_192;
const FERRY_SPEED_MAX: u64 = 4_000 * FERRY_UNITS as u64; // 144 km/h, a shuttle train
