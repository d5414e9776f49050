//! The road graph, read in place from a mapped file: directed edges between junctions, with geometry, access, speeds
//! and turns. Opening checks every number that is used as an index, so that nothing here can be led astray later.
//!
//! Edges are numbered by the junction they leave, junctions along a Hilbert curve: what lies close together on the
//! map lies close together in memory, and the edges out of a junction are one range.

use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use protocol::Position;
use self_cell::self_cell;

use crate::class::{EdgeFlags, Profile, RoadClass, Surface};
use crate::file::{self, MapError, MapVersion, Sections};
use crate::geo::{self, Bbox};
use crate::hours::{Hours, LocalTime};
use crate::mapping::Mapping;
use crate::record::{BACKWARD, COPIED, ConditionRecord, EdgeRecord, NONE, PointRecord, RoadRecord, TurnRecord};
use crate::speeds::SpeedCells;
use crate::summary::Summary;
use crate::tiles::TileIndex;
use crate::view::View;

/// A directed edge.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    serde::Serialize,
    serde::Deserialize,
    wincode::SchemaWrite,
    wincode::SchemaRead,
)]
#[serde(transparent)]
pub struct EdgeId(pub u32);

/// A junction, or the end of a road.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    serde::Serialize,
    serde::Deserialize,
    wincode::SchemaWrite,
    wincode::SchemaRead,
)]
#[serde(transparent)]
pub struct NodeId(pub u32);

impl EdgeId {
    #[inline]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl NodeId {
    #[inline]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

self_cell!(
    struct MappedView {
        owner: Mapping,
        #[covariant]
        dependent: View,
    }
);

/// A road graph. Share it in an `Arc`; it is never changed.
pub struct Graph {
    mapped: MappedView,
    version: MapVersion,
    file_len: u64,
    tile_index: OnceLock<TileIndex>,
    speed_cells: OnceLock<SpeedCells>,
}

/// A place on an edge, seen from a position beside it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    pub edge: EdgeId,
    /// From the edge's start.
    pub along_cm: u32,
    /// From the position asked about.
    pub off_cm: u32,
    pub position: Position,
    /// Direction of travel there, in hundredths of a degree clockwise from north.
    pub heading_cdeg: u16,
}

/// Turns that are closed at some moment, sorted.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct ClosedTurns(Vec<(EdgeId, EdgeId)>);

impl ClosedTurns {
    pub const fn none() -> ClosedTurns {
        ClosedTurns(Vec::new())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[inline]
    pub fn holds(&self, from: EdgeId, to: EdgeId) -> bool {
        !self.0.is_empty() && self.0.binary_search(&(from, to)).is_ok()
    }
}

impl Graph {
    /// Maps a file written by `import` and checks it.
    pub fn open(path: impl AsRef<Path>) -> Result<Graph, MapError> {
        let (mapping, sections) = file::open(path.as_ref())?;
        Graph::from_mapping(mapping, &sections)
    }

    /// The same for a map file that lies in memory.
    pub fn from_bytes(bytes: &[u8]) -> Result<Graph, MapError> {
        let sections = Sections::check(bytes)?;
        Graph::from_mapping(Mapping::of_bytes(bytes), &sections)
    }

    fn from_mapping(mapping: Mapping, sections: &Sections) -> Result<Graph, MapError> {
        let file_len = mapping.bytes().len() as u64;
        let mapped = MappedView::try_new(mapping, |mapping| View::read(mapping.bytes(), sections))?;
        Ok(Graph {
            mapped,
            version: sections.version,
            file_len,
            tile_index: OnceLock::new(),
            speed_cells: OnceLock::new(),
        })
    }

    /// The digest of the map's content: the same extract imported in the same way has the same version everywhere.
    pub fn version(&self) -> MapVersion {
        self.version
    }

    pub fn file_len(&self) -> u64 {
        self.file_len
    }

    pub(crate) fn tile_index(&self) -> &TileIndex {
        self.tile_index.get_or_init(|| TileIndex::of(self.view()))
    }

    /// Which roads are slow together, found out at the first look-up.
    pub(crate) fn speed_cells(&self) -> &SpeedCells {
        self.speed_cells.get_or_init(|| SpeedCells::of(self))
    }

    #[inline]
    pub(crate) fn view(&self) -> &View<'_> {
        self.mapped.borrow_dependent()
    }

    /// What the import noted.
    pub fn summary(&self) -> &Summary {
        &self.view().summary
    }

    pub fn bbox(&self) -> Bbox {
        self.view().summary.bbox
    }

    /// Whether a place lies on the map: within its box, with roads within some kilometres. A country's box lies over
    /// cities of its neighbours.
    pub fn covers(&self, position: Position) -> bool {
        self.bbox().contains(position) && crate::index::has_roads_around(self.view(), position)
    }

    pub fn edge_count(&self) -> usize {
        self.view().edges.len()
    }

    pub fn node_count(&self) -> usize {
        self.view().out_first.len() - 1
    }

    pub fn edges(&self) -> impl ExactSizeIterator<Item = EdgeId> + use<> {
        (0..self.edge_count() as u32).map(EdgeId)
    }

    /// All that the file says of an edge. Panics, like every function here that takes an edge, for one that is not
    /// this graph's.
    #[inline]
    pub fn record(&self, e: EdgeId) -> &EdgeRecord {
        &self.view().edges[e.index()]
    }

    /// The records of all edges, by number: what a search holds on to.
    #[inline]
    pub fn records(&self) -> &[EdgeRecord] {
        self.view().edges
    }

    #[inline]
    pub fn from(&self, e: EdgeId) -> NodeId {
        NodeId(self.record(e).from)
    }

    #[inline]
    pub fn to(&self, e: EdgeId) -> NodeId {
        NodeId(self.record(e).to)
    }

    #[inline]
    pub fn length_cm(&self, e: EdgeId) -> u32 {
        self.record(e).length_cm
    }

    #[inline]
    pub fn class(&self, e: EdgeId) -> RoadClass {
        RoadClass::from_number(self.record(e).class()).unwrap_or(RoadClass::Path) // checked when the map was opened
    }

    #[inline]
    pub fn surface(&self, e: EdgeId) -> Surface {
        Surface::from_number(self.record(e).surface()).unwrap_or(Surface::Paved) // checked when the map was opened
    }

    #[inline]
    pub fn flags(&self, e: EdgeId) -> EdgeFlags {
        EdgeFlags(self.record(e).flags)
    }

    /// The signed speed limit.
    pub fn limit_km_h(&self, e: EdgeId) -> Option<u8> {
        Some(self.record(e).limit_km_h).filter(|limit| *limit != 0)
    }

    /// The edge the other way along the same road.
    #[inline]
    pub fn reverse(&self, e: EdgeId) -> Option<EdgeId> {
        let road = self.road(e);
        let reverse = if self.is_backward(e) { road.forward } else { road.backward };
        (reverse != NONE).then_some(EdgeId(reverse))
    }

    /// Whether this edge is one more of the same stretch and direction: the one for those who come by the beginning of
    /// a restriction that reaches over several edges, and who may not do at its end what others may.
    #[inline]
    pub fn is_copy(&self, e: EdgeId) -> bool {
        self.flags(e).has(EdgeFlags::COPY)
    }

    /// The other edges of the same stretch and direction: an edge's copies, or a copy's edge and its other copies.
    pub fn copies(&self, e: EdgeId) -> impl Iterator<Item = EdgeId> + '_ {
        let road = self.record(e).road;
        let is_copied = self.road(e).way & COPIED != 0;
        let leaving = if is_copied { self.out_range(self.from(e)) } else { 0..0 };
        leaving.map(EdgeId).filter(move |other| *other != e && self.record(*other).road == road)
    }

    #[inline]
    pub fn allows(&self, e: EdgeId, profile: Profile) -> bool {
        self.record(e).access & profile.bit() != 0
    }

    /// Whether from here the profile reaches most of the map and can come back.
    #[inline]
    pub fn is_connected(&self, e: EdgeId, profile: Profile) -> bool {
        (self.record(e).access >> 4) & profile.bit() != 0
    }

    /// A car's speed on the empty road.
    #[inline]
    pub fn free_flow_cm_s(&self, e: EdgeId) -> u32 {
        self.speed_cm_s(e, Profile::Car)
    }

    /// A profile's speed on the empty road, never zero.
    #[inline]
    pub fn speed_cm_s(&self, e: EdgeId, profile: Profile) -> u32 {
        crate::costs::speed_cm_s(self.record(e), profile)
    }

    /// Time to travel the whole edge on the empty road.
    #[inline]
    pub fn duration_ms(&self, e: EdgeId, profile: Profile) -> u32 {
        crate::costs::edge_duration_ms(self.record(e), profile)
    }

    /// The road's name, empty where it has none.
    pub fn name(&self, e: EdgeId) -> &str {
        self.view().name(self.road(e).way & !COPIED)
    }

    /// The number of the OpenStreetMap way that the edge is part of.
    pub fn osm_way(&self, e: EdgeId) -> i64 {
        self.view().ways[(self.road(e).way & !COPIED) as usize].osm_id
    }

    /// The edges that leave a junction, whoever may use them.
    #[inline]
    pub fn out_edges(&self, n: NodeId) -> impl ExactSizeIterator<Item = EdgeId> + use<> {
        self.out_range(n).map(EdgeId)
    }

    /// The same as a range of edge numbers.
    #[inline]
    pub fn out_range(&self, n: NodeId) -> Range<u32> {
        let first = self.view().out_first;
        first[n.index()]..first[n.index() + 1]
    }

    /// The edges that arrive at a junction, whoever may use them.
    #[inline]
    pub fn in_edges(&self, n: NodeId) -> impl ExactSizeIterator<Item = EdgeId> + '_ {
        let view = self.view();
        let range = view.in_first[n.index()] as usize..view.in_first[n.index() + 1] as usize;
        view.in_edges[range].iter().copied().map(EdgeId)
    }

    /// Whether the second edge leads back along the first.
    #[inline]
    pub fn is_u_turn(&self, from_edge: EdgeId, to_edge: EdgeId) -> bool {
        self.record(from_edge).road ^ BACKWARD == self.record(to_edge).road
    }

    /// Whether no sign forbids the turn. Says nothing of U-turns (`is_u_turn`), nor of whether the edges meet.
    #[inline]
    pub fn is_turn_allowed(&self, from_edge: EdgeId, to_edge: EdgeId, profile: Profile) -> bool {
        self.turn(from_edge, to_edge).is_none_or(|turn| !turn.is_forbidden(profile))
    }

    /// What is to be known of a turn that is not open to everybody at all times.
    #[inline]
    pub fn turn(&self, from_edge: EdgeId, to_edge: EdgeId) -> Option<&TurnRecord> {
        if !self.flags(from_edge).has(EdgeFlags::TURN_FROM) {
            return None;
        }
        let turns = self.view().turns;
        let at = turns.binary_search_by_key(&(from_edge.0, to_edge.0), |turn| (turn.from, turn.to)).ok()?;
        Some(&turns[at])
    }

    /// The turns that are forbidden to a profile at a time by signs that hold at some hours only.
    pub fn closed_at(&self, profile: Profile, at: LocalTime) -> ClosedTurns {
        let holds = |one: &&ConditionRecord| {
            let is_bound = one.profiles & u32::from(profile.bit()) != 0;
            is_bound && Hours::parse(self.condition_text(one)).is_ok_and(|hours| hours.hold_at(at))
        };
        let mut turns: Vec<_> =
            self.view().conditions.iter().filter(holds).map(|one| (EdgeId(one.from), EdgeId(one.to))).collect();
        turns.dedup();
        ClosedTurns(turns)
    }

    /// All turns that are forbidden at some hours: from which edge to which, to whom (a bit for each profile), when.
    pub fn conditions(&self) -> impl Iterator<Item = (EdgeId, EdgeId, u8, &str)> {
        let said = |one: &ConditionRecord| (one.text, one.text_len);
        self.view().conditions.iter().map(move |one| {
            let (text, len) = said(one);
            (EdgeId(one.from), EdgeId(one.to), one.profiles as u8, self.view().text(text, len))
        })
    }

    fn condition_text(&self, one: &ConditionRecord) -> &str {
        self.view().text(one.text, one.text_len)
    }

    /// The part of the map that an edge lies in for a profile: one within which one gets everywhere and back. None
    /// where one cannot come back. Says nothing of edges that the profile may not use.
    pub fn part(&self, e: EdgeId, profile: Profile) -> Option<u32> {
        let parts = self.view().parts;
        if parts.is_empty() {
            return self.is_connected(e, profile).then_some(0); // a map of the format before
        }
        let key = (u32::from(profile.number()), e.0);
        let after = parts.partition_point(|one| (one.profile, one.first_edge) <= key);
        let found = parts[..after].last().filter(|one| one.profile == key.0)?;
        (found.part != 0).then_some(found.part)
    }

    /// Whether the only way on for a profile is back.
    pub fn is_dead_end(&self, n: NodeId, profile: Profile) -> bool {
        self.out_edges(n).filter(|e| self.allows(*e, profile)).count() <= 1
    }

    /// Where a junction lies.
    pub fn node_position(&self, n: NodeId) -> Option<Position> {
        match self.out_edges(n).next() {
            Some(e) => self.geometry(e).next(),
            None => self.in_edges(n).next().and_then(|e| self.geometry(e).next_back()),
        }
    }

    /// The edge's line, in the direction of travel.
    pub fn geometry(&self, e: EdgeId) -> Geometry<'_> {
        Geometry { points: self.points(e).iter(), is_backward: self.is_backward(e) }
    }

    /// The place so far along an edge; its end for more than its length.
    pub fn position_at(&self, e: EdgeId, along_cm: u32) -> Position {
        self.place_at(e, along_cm).0
    }

    /// The same with the direction of travel there, in hundredths of a degree.
    pub fn place_at(&self, e: EdgeId, along_cm: u32) -> (Position, u16) {
        let points = self.points(e);
        let is_backward = self.is_backward(e);
        let length_cm = self.length_cm(e);
        let along_cm = along_cm.min(length_cm);
        let along_points_cm = if is_backward { length_cm - along_cm } else { along_cm };
        let after = points.partition_point(|p| p.along_cm <= along_points_cm).clamp(1, points.len() - 1);
        let (a, b) = (points[after - 1], points[after]);
        let span = b.along_cm.saturating_sub(a.along_cm);
        let share =
            if span == 0 { 0.0 } else { f64::from(along_points_cm.saturating_sub(a.along_cm)) / f64::from(span) };
        let position = geo::between(a.position(), b.position(), share);
        let heading = geo::heading_cdeg(a.position(), b.position());
        (position, if is_backward { (heading + 18_000) % 36_000 } else { heading })
    }

    /// The line of a stretch of an edge: its ends, and the points between them.
    pub fn stretch(&self, e: EdgeId, from_cm: u32, to_cm: u32) -> Vec<Position> {
        let length_cm = self.length_cm(e);
        let (from_cm, to_cm) = (from_cm.min(length_cm), to_cm.min(length_cm));
        let is_backward = self.is_backward(e);
        let along = |p: &PointRecord| if is_backward { length_cm.saturating_sub(p.along_cm) } else { p.along_cm };
        let inner = |p: &&PointRecord| (from_cm + 1..to_cm).contains(&along(p));
        let mut line = vec![self.position_at(e, from_cm)];
        let points = self.points(e).iter();
        if is_backward {
            line.extend(points.rev().filter(inner).map(PointRecord::position));
        } else {
            line.extend(points.filter(inner).map(PointRecord::position));
        }
        line.push(self.position_at(e, to_cm));
        line
    }

    /// The best place on each directed edge that a profile may use, within a radius; nearest first, ties by edge.
    /// `out` is emptied first.
    pub fn candidates(&self, position: Position, radius_m: f64, profile: Profile, out: &mut Vec<Candidate>) {
        crate::index::candidates(self, &crate::index::Grid, position, radius_m, profile, out);
    }

    pub(crate) fn road(&self, e: EdgeId) -> &RoadRecord {
        &self.view().roads[(self.record(e).road & !BACKWARD) as usize]
    }

    pub(crate) fn is_backward(&self, e: EdgeId) -> bool {
        self.record(e).road & BACKWARD != 0
    }

    /// The road's points, in the road's own direction.
    pub(crate) fn points(&self, e: EdgeId) -> &[PointRecord] {
        self.view().road_points(self.record(e).road & !BACKWARD)
    }
}

/// The line of an edge, point by point.
#[derive(Clone, Debug)]
pub struct Geometry<'a> {
    points: std::slice::Iter<'a, PointRecord>,
    is_backward: bool,
}

impl Iterator for Geometry<'_> {
    type Item = Position;

    fn next(&mut self) -> Option<Position> {
        let point = if self.is_backward { self.points.next_back() } else { self.points.next() };
        point.map(PointRecord::position)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.points.size_hint()
    }
}

impl ExactSizeIterator for Geometry<'_> {}

impl DoubleEndedIterator for Geometry<'_> {
    fn next_back(&mut self) -> Option<Position> {
        let point = if self.is_backward { self.points.next() } else { self.points.next_back() };
        point.map(PointRecord::position)
    }
}

impl PointRecord {
    #[inline]
    pub fn position(&self) -> Position {
        Position { lat_e7: self.lat_e7, lon_e7: self.lon_e7 }
    }
}
