//! The sections of a map file as slices of records, checked once: every number in them that is used as an index lies
//! within what it points into. A search can then follow them without doubt.

use zerocopy::{FromBytes, Immutable, KnownLayout};

use crate::class::{RoadClass, Surface};
use crate::file::{MapError, Section, Sections};
use crate::record::{
    BACKWARD, BlockRecord, COPIED, ConditionRecord, EdgeRecord, FeatureRecord, NONE, PartRecord, PointRecord,
    RoadRecord, RunRecord, TurnRecord, WayRecord,
};
use crate::summary::Summary;

/// A checked map file.
pub struct View<'a> {
    pub summary: Summary,
    pub edges: &'a [EdgeRecord],
    pub out_first: &'a [u32],
    pub in_first: &'a [u32],
    pub in_edges: &'a [u32],
    /// The last one only closes the one before.
    pub roads: &'a [RoadRecord],
    pub ways: &'a [WayRecord],
    pub points: &'a [PointRecord],
    pub turns: &'a [TurnRecord],
    pub text: &'a str,
    /// The number of the first row of blocks, then each row's first block, then the number of blocks.
    pub index_rows: &'a [u32],
    /// Of each block; within a row they rise.
    pub index_columns: &'a [u32],
    pub index_blocks: &'a [BlockRecord],
    pub index_runs: &'a [RunRecord],
    /// The junctions in the order in which the router contracts them; empty where none was computed.
    pub order: &'a [u32],
    /// What tiles show beside roads.
    pub features: &'a [FeatureRecord],
    /// Latitude and longitude of the features' points.
    pub feature_points: &'a [[i32; 2]],
    /// When turns are forbidden that are so at some hours only.
    pub conditions: &'a [ConditionRecord],
    /// Which part of the map edges lie in; empty in a map of the format before.
    pub parts: &'a [PartRecord],
}

impl<'a> View<'a> {
    pub fn read(bytes: &'a [u8], sections: &Sections) -> Result<View<'a>, MapError> {
        let of = |section| sections.bytes_of(bytes, section);
        let text = std::str::from_utf8(of(Section::Text)).map_err(|_| malformed(Section::Text, "is not UTF-8"))?;
        let view = View {
            summary: Summary::read(of(Section::Summary))?,
            edges: slice(of(Section::Edges), Section::Edges)?,
            out_first: slice(of(Section::OutFirst), Section::OutFirst)?,
            in_first: slice(of(Section::InFirst), Section::InFirst)?,
            in_edges: slice(of(Section::InEdges), Section::InEdges)?,
            roads: slice(of(Section::Roads), Section::Roads)?,
            ways: slice(of(Section::Ways), Section::Ways)?,
            points: slice(of(Section::Points), Section::Points)?,
            turns: slice(of(Section::Turns), Section::Turns)?,
            text,
            index_rows: slice(of(Section::IndexRows), Section::IndexRows)?,
            index_columns: slice(of(Section::IndexColumns), Section::IndexColumns)?,
            index_blocks: slice(of(Section::IndexBlocks), Section::IndexBlocks)?,
            index_runs: slice(of(Section::IndexRuns), Section::IndexRuns)?,
            order: slice(of(Section::Order), Section::Order)?,
            features: slice(of(Section::Features), Section::Features)?,
            feature_points: slice(of(Section::FeaturePoints), Section::FeaturePoints)?,
            conditions: slice(of(Section::Conditions), Section::Conditions)?,
            parts: slice(of(Section::Parts), Section::Parts)?,
        };
        view.check_nodes()?;
        view.check_edges()?;
        view.check_roads()?;
        view.check_index()?;
        view.check_rest()?;
        Ok(view)
    }

    #[inline]
    pub fn road_points(&self, road: u32) -> &'a [PointRecord] {
        let road = road as usize;
        &self.points[self.roads[road].first_point as usize..self.roads[road + 1].first_point as usize]
    }

    pub fn name(&self, way: u32) -> &'a str {
        let way = self.ways[way as usize];
        self.text(way.name, way.name_len)
    }

    pub fn text(&self, first: u32, len: u32) -> &'a str {
        self.text.get(first as usize..first as usize + len as usize).unwrap_or("")
    }

    pub fn road_count(&self) -> usize {
        self.roads.len() - 1
    }

    fn check_nodes(&self) -> Result<(), MapError> {
        let edges = self.edges.len();
        check(self.edges.len() < BACKWARD as usize, Section::Edges, "are too many")?;
        check(is_list(self.out_first, edges), Section::OutFirst, "are no list of the edges")?;
        check(is_list(self.in_first, edges), Section::InFirst, "are no list of the edges")?;
        check(self.in_first.len() == self.out_first.len(), Section::InFirst, "do not fit the outgoing ones")?;
        check(self.in_edges.len() == edges, Section::InEdges, "do not fit the edges")?;
        let leaves = |node: usize| self.edges[self.out_first[node] as usize..self.out_first[node + 1] as usize].iter();
        let arrives =
            |node: usize| self.in_edges[self.in_first[node] as usize..self.in_first[node + 1] as usize].iter();
        for node in 0..self.out_first.len() - 1 {
            check(leaves(node).all(|e| e.from as usize == node), Section::OutFirst, "do not fit the edges")?;
            let is_here = |e: &u32| self.edges.get(*e as usize).is_some_and(|e| e.to as usize == node);
            check(arrives(node).all(is_here), Section::InEdges, "do not fit the edges")?;
        }
        self.check_order()
    }

    /// Each junction once, or none at all.
    fn check_order(&self) -> Result<(), MapError> {
        let nodes = self.out_first.len() - 1;
        check(self.order.is_empty() || self.order.len() == nodes, Section::Order, "does not fit the junctions")?;
        let mut is_seen = vec![false; nodes];
        let is_order = self
            .order
            .iter()
            .all(|node| is_seen.get_mut(*node as usize).is_some_and(|is_seen| !std::mem::replace(is_seen, true)));
        check(is_order, Section::Order, "does not name each junction once")
    }

    fn check_edges(&self) -> Result<(), MapError> {
        let (nodes, roads) = (self.out_first.len() as u32 - 1, self.roads.len().saturating_sub(1) as u32);
        let is_fine = self.edges.iter().all(|e| {
            e.from < nodes
                && e.to < nodes
                && e.road & !BACKWARD < roads
                && usize::from(e.class()) < RoadClass::ALL.len()
                && usize::from(e.surface()) < Surface::ALL.len()
        });
        check(is_fine, Section::Edges, "point outside")
    }

    fn check_roads(&self) -> Result<(), MapError> {
        check(!self.roads.is_empty(), Section::Roads, "are not closed")?;
        let edges = self.edges.len() as u32;
        let is_closed = self.roads[0].first_point == 0
            && self.roads[self.roads.len() - 1].first_point as usize == self.points.len();
        check(is_closed, Section::Roads, "do not fit the points")?;
        let has_line = |pair: &[RoadRecord]| {
            let points = pair[1].first_point.checked_sub(pair[0].first_point);
            points.is_some_and(|count| (2..=1 << 16).contains(&count))
                && ((pair[0].way & !COPIED) as usize) < self.ways.len()
                && [pair[0].forward, pair[0].backward].iter().all(|e| *e == NONE || *e < edges)
        };
        check(self.roads.windows(2).all(has_line), Section::Roads, "point outside")
    }

    fn check_index(&self) -> Result<(), MapError> {
        let rows = self.index_rows.get(1..).unwrap_or(&[]);
        check(is_list(rows, self.index_blocks.len()), Section::IndexRows, "are no list of the blocks")?;
        let is_same = self.index_columns.len() == self.index_blocks.len();
        check(is_same, Section::IndexColumns, "do not fit the blocks")?;
        let mut first_run = 0;
        for block in self.index_blocks {
            let is_listed = block.first_run == first_run && block.ends.is_sorted();
            check(is_listed, Section::IndexBlocks, "are no list of the runs")?;
            first_run += u32::from(block.ends[63]);
        }
        check(first_run as usize == self.index_runs.len(), Section::IndexBlocks, "do not fit the runs")?;
        let is_within = |run: &RunRecord| {
            let (road, first) = (run.road as usize, run.first_point());
            road < self.road_count()
                && self.roads[road].first_point <= first
                && first + run.count() < self.roads[road + 1].first_point
        };
        check(self.index_runs.iter().all(is_within), Section::IndexRuns, "point outside")
    }

    fn check_rest(&self) -> Result<(), MapError> {
        let edges = self.edges.len() as u32;
        let are_turns = self.turns.iter().all(|turn| turn.from < edges && turn.to < edges);
        check(are_turns, Section::Turns, "point outside")?;
        let are_conditions =
            self.conditions.is_sorted() && self.conditions.iter().all(|c| c.from < edges && c.to < edges);
        check(are_conditions, Section::Conditions, "point outside")?;
        check(self.parts.is_sorted(), Section::Parts, "are not sorted")?;
        let are_features = self.features.iter().all(|f| {
            let end = (f.first_point as usize).checked_add(f.points as usize);
            end.is_some_and(|end| end <= self.feature_points.len())
        });
        check(are_features, Section::Features, "point outside")
    }
}

/// Whether numbers rise from 0 to `len`: then each stretch between two of them is a range of a list of that length.
fn is_list(first: &[u32], len: usize) -> bool {
    first.first() == Some(&0)
        && first.last().is_some_and(|last| *last as usize == len)
        && first.windows(2).all(|pair| pair[0] <= pair[1])
}

fn slice<T: FromBytes + Immutable + KnownLayout>(bytes: &[u8], section: Section) -> Result<&[T], MapError> {
    <[T]>::ref_from_bytes(bytes).map_err(|_| malformed(section, "has an odd length"))
}

fn check(is_fine: bool, section: Section, what: &'static str) -> Result<(), MapError> {
    if is_fine { Ok(()) } else { Err(malformed(section, what)) }
}

fn malformed(section: Section, what: &'static str) -> MapError {
    MapError::Malformed { part: section.name(), what }
}

#[cfg(target_endian = "big")]
compile_error!("map files are read in place and little-endian");
