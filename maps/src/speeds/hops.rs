//! From one driver's final places to traversals: what a hop from one place to the next took is shared among the edges of
//! the way between, in proportion to the empty road. Places come with their way from a matcher, or without it from
//! history; then the matcher's own search finds it again, a few microseconds for two places a few edges apart.

use protocol::{MeasuredTime, Time};
use wincode::{SchemaRead, SchemaWrite};

use super::free_seconds;
use crate::class::Profile;
use crate::geo;
use crate::graph::{EdgeId, Graph};
use crate::matcher::{Matched, Scratch};

/// A part of an edge that somebody drove, and how long it took.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Traversal {
    pub edge: EdgeId,
    pub length_cm: u32,
    pub seconds: f32,
    pub at: Time,
}

/// What became of a place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Hop {
    /// The first, or the first after a break.
    Begun,
    /// Driven on from the place before.
    Driven,
    /// Not far enough yet to say how fast.
    Stood,
    /// Measured before the place before, or with it.
    Late,
    /// Too long after the place before.
    Gap,
    /// Faster than anything on roads.
    TooFast,
    /// No way leads here from the place before, or one much longer than the straight line.
    NoWay,
}

/// Turns one driver's final matches into traversals.
#[derive(Clone, PartialEq, Debug, Default, SchemaWrite, SchemaRead)]
pub struct Traversals {
    last: Option<(u32, u32, MeasuredTime)>,
    /// Stood since the last traversal, in tenths of a second.
    stood_ds: i64,
}

impl Traversals {
    /// Adds what was driven since the last match. Long stands are left out: somebody delivered or waited.
    pub fn handle_matched(&mut self, graph: &Graph, matched: &Matched, out: &mut Vec<Traversal>) {
        let Some(snapped) = matched.snapped else { return };
        if matched.is_break {
            self.begin((snapped.edge, snapped.along_cm), matched.measured);
            return;
        }
        self.drive(graph, (snapped.edge, snapped.along_cm), matched.measured, &matched.route, out);
    }

    /// The same for a place that came without its way. The edge must be the graph's.
    pub fn handle_place(
        &mut self,
        graph: &Graph,
        scratch: &mut Scratch,
        to: (EdgeId, u32),
        measured: MeasuredTime,
        out: &mut Vec<Traversal>,
    ) -> Hop {
        let Some((edge, along_cm, before)) = self.last.filter(|(edge, ..)| (*edge as usize) < graph.edge_count())
        else {
            self.begin(to, measured);
            return Hop::Begun;
        };
        let (from, took_ds) = ((EdgeId(edge), along_cm), measured.0.saturating_sub(before.0));
        if took_ds <= 0 {
            return Hop::Late;
        }
        if took_ds > HOP_DS_MAX {
            self.begin(to, measured);
            return Hop::Gap;
        }
        let mut route = Vec::new();
        let hop = hop(graph, scratch, from, to, took_ds, &mut route);
        match hop {
            Hop::Driven if self.drive(graph, to, measured, &route, out) => Hop::Driven,
            Hop::Driven => Hop::Stood,
            Hop::Begun | Hop::Stood | Hop::Late | Hop::Gap | Hop::TooFast | Hop::NoWay => {
                self.begin(to, measured);
                hop
            }
        }
    }

    /// When the newest place was measured.
    pub fn measured_last(&self) -> Option<MeasuredTime> {
        self.last.map(|(_, _, measured)| measured)
    }

    fn begin(&mut self, (edge, along_cm): (EdgeId, u32), measured: MeasuredTime) {
        *self = Traversals { last: Some((edge.0, along_cm, measured)), stood_ds: 0 };
    }

    /// False if it was not far enough to say how fast.
    fn drive(
        &mut self,
        graph: &Graph,
        (to_edge, to_cm): (EdgeId, u32),
        now: MeasuredTime,
        route: &[EdgeId],
        out: &mut Vec<Traversal>,
    ) -> bool {
        let Some((edge, along_cm, measured)) = self.last.replace((to_edge.0, to_cm, now)) else {
            self.stood_ds = 0;
            return false;
        };
        let took_ds = now.0.saturating_sub(measured.0).max(0);
        let parts = parts(graph, (EdgeId(edge), along_cm), to_cm, route);
        let length_cm: u64 = parts.clone().map(|(_, cm)| u64::from(cm)).sum();
        if length_cm < STANDING_CM {
            // Not far enough to say how fast: counts with what follows, from where it began.
            self.stood_ds = self.stood_ds.saturating_add(took_ds);
            if route.is_empty() {
                self.last = Some((edge, along_cm.min(to_cm), now));
            }
            return false;
        }
        let stood_ds = std::mem::take(&mut self.stood_ds);
        let counted_ds = if stood_ds > STOOD_DS_MAX { took_ds } else { took_ds + stood_ds };
        let seconds = counted_ds as f64 / 10.0;
        let speed_m_s = length_cm as f64 / 100.0 / seconds.max(0.1);
        if counted_ds <= 0 || speed_m_s > SPEED_M_S_MAX || took_ds > HOP_DS_MAX {
            return false;
        }
        let free_s: f64 = parts.clone().map(|(e, cm)| free_seconds(graph, e, cm)).sum();
        for (edge, length_cm) in parts.filter(|(_, cm)| *cm > 0) {
            let share = free_seconds(graph, edge, length_cm) / free_s;
            out.push(Traversal { edge, length_cm, seconds: (seconds * share) as f32, at: now.to_time() });
        }
        true
    }
}

/// Whether somebody can have driven from one place to the other in that time, and by which way.
fn hop(
    graph: &Graph,
    scratch: &mut Scratch,
    from: (EdgeId, u32),
    to: (EdgeId, u32),
    took_ds: i64,
    route: &mut Vec<EdgeId>,
) -> Hop {
    let straight_cm = geo::distance_cm(graph.position_at(from.0, from.1), graph.position_at(to.0, to.1));
    let cm_max = SPEED_M_S_MAX * 10.0 * took_ds as f64;
    if straight_cm > cm_max {
        return Hop::TooFast;
    }
    if !scratch.find_way(graph, Profile::Car, from, to, route) {
        return Hop::NoWay;
    }
    let way_cm: u64 = parts(graph, from, to.1, route).map(|(_, cm)| u64::from(cm)).sum();
    match way_cm as f64 {
        cm if cm > straight_cm * WAY_TIMES_MAX + WAY_SLACK_CM => Hop::NoWay,
        cm if cm > cm_max => Hop::TooFast,
        _ => Hop::Driven,
    }
}

/// The stretches of each edge from a place to one on the last edge.
fn parts<'a>(
    graph: &'a Graph,
    (edge, along_cm): (EdgeId, u32),
    to_cm: u32,
    route: &'a [EdgeId],
) -> impl Iterator<Item = (EdgeId, u32)> + Clone + use<'a> {
    let first_cm = match route {
        [] => to_cm.saturating_sub(along_cm),
        // Turned round on the spot: what was driven ahead is not known.
        [first, ..] if graph.reverse(edge) == Some(*first) => 0,
        _ => graph.length_cm(edge).saturating_sub(along_cm),
    };
    let last = route.len();
    std::iter::once((edge, first_cm)).chain(
        route.iter().enumerate().map(move |(i, e)| (*e, if i + 1 == last { to_cm } else { graph.length_cm(*e) })),
    )
}

/// Less than this is standing, in centimetres: more than noise along the road, and what 8 km/h make in two fixes.
const STANDING_CM: u64 = 1_500;
/// Who stands for longer does not wait for a light: two minutes.
const STOOD_DS_MAX: i64 = 1_200;
/// Hops over longer gaps say too little of where the time went: three minutes.
const HOP_DS_MAX: i64 = 1_800;
const SPEED_M_S_MAX: f64 = 60.0;
/// A way of more than twice the straight line and 300 m was not the one that was driven.
const WAY_TIMES_MAX: f64 = 2.0;
const WAY_SLACK_CM: f64 = 30_000.0;
