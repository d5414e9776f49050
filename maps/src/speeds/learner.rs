//! From final matches to speeds. What drivers needed for a stretch is shared among its edges in proportion to the empty
//! road; an edge's slowness is what it was seen to need, shrunk towards its neighbourhood's, which is shrunk towards its
//! class's, which is shrunk towards the fleet's: few samples say little. The week's shape is learned per class, and
//! each edge follows it flatter or steeper, as its own hours say.

use std::collections::BTreeMap;

use protocol::{MeasuredTime, Time};
use wincode::{SchemaRead, SchemaWrite};

use super::{
    CLASS_GROUPS, EdgeSpeed, HOURS, RATIO_ONE, SHAPE_ONE, Shape, SpeedTable, cell_of, class_group, digest_of,
    hour_of_week,
};
use crate::graph::{EdgeId, Graph};
use crate::matcher::{Matched, Snapped};

/// A part of an edge that somebody drove, and how long it took.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Traversal {
    pub edge: EdgeId,
    pub length_cm: u32,
    pub seconds: f32,
    pub at: Time,
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
        let before = self.last.replace((snapped.edge.0, snapped.along_cm, matched.measured));
        let Some((edge, along_cm, measured)) = before.filter(|_| !matched.is_break) else {
            self.stood_ds = 0;
            return;
        };
        let took_ds = matched.measured.0.saturating_sub(measured.0).max(0);
        let parts = parts(graph, (EdgeId(edge), along_cm), &snapped, &matched.route);
        let length_cm: u64 = parts.clone().map(|(_, cm)| u64::from(cm)).sum();
        if length_cm < STANDING_CM {
            // Not far enough to say how fast: counts with what follows, from where it began.
            self.stood_ds = self.stood_ds.saturating_add(took_ds);
            if matched.route.is_empty() {
                self.last = Some((edge, along_cm.min(snapped.along_cm), matched.measured));
            }
            return;
        }
        let stood_ds = std::mem::take(&mut self.stood_ds);
        let counted_ds = if stood_ds > STOOD_DS_MAX { took_ds } else { took_ds + stood_ds };
        let seconds = counted_ds as f64 / 10.0;
        let speed_m_s = length_cm as f64 / 100.0 / seconds.max(0.1);
        if counted_ds <= 0 || speed_m_s > SPEED_M_S_MAX || took_ds > HOP_DS_MAX {
            return;
        }
        let free_s: f64 = parts.clone().map(|(e, cm)| free_seconds(graph, e, cm)).sum();
        for (edge, length_cm) in parts.filter(|(_, cm)| *cm > 0) {
            let share = free_seconds(graph, edge, length_cm) / free_s;
            out.push(Traversal { edge, length_cm, seconds: (seconds * share) as f32, at: matched.measured.to_time() });
        }
    }
}

/// The stretches of each edge from a place to a match.
fn parts<'a>(
    graph: &'a Graph,
    (edge, along_cm): (EdgeId, u32),
    to: &Snapped,
    route: &'a [EdgeId],
) -> impl Iterator<Item = (EdgeId, u32)> + Clone + use<'a> {
    let to_cm = to.along_cm;
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

fn free_seconds(graph: &Graph, edge: EdgeId, length_cm: u32) -> f64 {
    f64::from(length_cm) / f64::from(graph.free_flow_cm_s(edge).max(1))
}

/// Time seen, and time that the empty road would have taken.
#[derive(Clone, Copy, PartialEq, Debug, Default, SchemaWrite, SchemaRead)]
struct Sum {
    seen_s: f32,
    free_s: f32,
}

impl Sum {
    fn add(&mut self, seen_s: f32, free_s: f32) {
        self.seen_s += seen_s;
        self.free_s += free_s;
    }

    /// How many times slower than the empty road, believed as far as there are samples.
    fn slowness(self, prior: f32, prior_s: f32) -> f32 {
        (self.seen_s + prior_s * prior) / (self.free_s + prior_s)
    }
}

/// What the fleet's drivers taught so far.
#[derive(Clone, PartialEq, Debug, SchemaWrite, SchemaRead)]
pub struct Learner {
    fleet: Sum,
    groups: Vec<Sum>,
    group_hours: Vec<Sum>,
    cells: BTreeMap<(u32, u8), Sum>,
    edges: BTreeMap<u32, Sum>,
    edge_hours: BTreeMap<(u32, u8), Sum>,
}

impl Default for Learner {
    fn default() -> Self {
        Learner {
            fleet: Sum::default(),
            groups: vec![Sum::default(); CLASS_GROUPS],
            group_hours: vec![Sum::default(); CLASS_GROUPS * HOURS],
            cells: BTreeMap::new(),
            edges: BTreeMap::new(),
            edge_hours: BTreeMap::new(),
        }
    }
}

impl Learner {
    pub fn handle_traversal(&mut self, graph: &Graph, traversal: &Traversal) {
        if traversal.edge.index() >= graph.edge_count() {
            return;
        }
        let free_s = free_seconds(graph, traversal.edge, traversal.length_cm) as f32;
        let seen_s = traversal.seconds.clamp(free_s * FASTEST, free_s * SLOWEST);
        let (group, hour) = (class_group(graph.class(traversal.edge)), hour_of_week(traversal.at));
        self.fleet.add(seen_s, free_s);
        self.groups[group].add(seen_s, free_s);
        self.group_hours[group * HOURS + hour].add(seen_s, free_s);
        self.cells.entry((cell_of(graph, traversal.edge), group as u8)).or_default().add(seen_s, free_s);
        self.edges.entry(traversal.edge.0).or_default().add(seen_s, free_s);
        self.edge_hours.entry((traversal.edge.0, hour as u8)).or_default().add(seen_s, free_s);
    }

    /// Makes all that was learned count for less, as a share of what it did; what has faded away is forgotten. Once a
    /// day with 0.98, the last seven weeks matter.
    pub fn fade(&mut self, share: f32) {
        let share = share.clamp(0.0, 1.0);
        let fade = |sum: &mut Sum| {
            sum.seen_s *= share;
            sum.free_s *= share;
            sum.free_s > FORGOTTEN_S
        };
        fade(&mut self.fleet);
        for sum in self.groups.iter_mut().chain(&mut self.group_hours) {
            fade(sum);
        }
        self.cells.retain(|_, sum| fade(sum));
        self.edges.retain(|_, sum| fade(sum));
        self.edge_hours.retain(|_, sum| fade(sum));
    }

    /// The table that what was learned so far comes to.
    pub fn table(&self, graph: &Graph) -> SpeedTable {
        let fleet = self.fleet.slowness(1.0, FLEET_PRIOR_S);
        let groups: Vec<f32> = self.groups.iter().map(|g| g.slowness(fleet, GROUP_PRIOR_S)).collect();
        let steeps: Vec<[f32; HOURS]> = (0..CLASS_GROUPS).map(|g| self.group_shape(g, groups[g])).collect();
        let mut shapes = Vec::with_capacity(CLASS_GROUPS * STEEPNESSES.len());
        for shape in &steeps {
            shapes.extend(STEEPNESSES.iter().map(|steepness| shape_of(shape, *steepness)));
        }
        let edges = graph
            .edges()
            .map(|edge| {
                let group = class_group(graph.class(edge));
                let cell = self.cells.get(&(cell_of(graph, edge), group as u8)).copied().unwrap_or_default();
                let cell = cell.slowness(groups[group], CELL_PRIOR_S);
                let seen = self.edges.get(&edge.0).copied().unwrap_or_default();
                let slowness = seen.slowness(cell, EDGE_PRIOR_S);
                let steepness = self.steepness(edge, slowness, &steeps[group]);
                EdgeSpeed {
                    shape: (group * STEEPNESSES.len() + steepness) as u8,
                    ratio: quantum(1.0 / slowness, RATIO_ONE),
                }
            })
            .collect();
        SpeedTable { map: digest_of(graph.version()), shapes, edges }
    }

    /// Slowness of a class by hour, beside its own mean.
    fn group_shape(&self, group: usize, mean: f32) -> [f32; HOURS] {
        let hours = &self.group_hours[group * HOURS..(group + 1) * HOURS];
        std::array::from_fn(|hour| {
            // An hour nobody drove in looks like the same hour of the other days.
            let mut day = Sum::default();
            for other in (hour % 24..HOURS).step_by(24) {
                day.add(hours[other].seen_s, hours[other].free_s);
            }
            let day = day.slowness(mean, HOUR_PRIOR_S);
            hours[hour].slowness(day, HOUR_PRIOR_S) / mean
        })
    }

    /// Which steepness of its class's shape an edge's own hours fit best.
    fn steepness(&self, edge: EdgeId, slowness: f32, shape: &[f32; HOURS]) -> usize {
        let hours = self.edge_hours.range((edge.0, 0)..=(edge.0, u8::MAX));
        let mut misfits = [0f32; STEEPNESSES.len()];
        let mut free_s = 0.0;
        for ((_, hour), sum) in hours {
            free_s += sum.free_s;
            let seen = libm::logf(sum.slowness(slowness, EDGE_PRIOR_S) / slowness);
            for (misfit, steepness) in misfits.iter_mut().zip(STEEPNESSES) {
                let apart = seen - steepness * libm::logf(shape[usize::from(*hour) % HOURS]);
                *misfit += sum.free_s * apart * apart;
            }
        }
        if free_s < STEEPNESS_S_MIN {
            return STEEPNESS_USUAL;
        }
        (0..misfits.len()).fold(STEEPNESS_USUAL, |best, i| if misfits[i] < misfits[best] { i } else { best })
    }
}

/// A slowness by hour as speeds, flatter or steeper.
fn shape_of(slowness: &[f32; HOURS], steepness: f32) -> Shape {
    Shape { by_hour: slowness.map(|s| quantum(libm::powf(s, -steepness), SHAPE_ONE)) }
}

fn quantum(share: f32, one: u8) -> u8 {
    (share * f32::from(one)).round().clamp(1.0, 255.0) as u8
}

/// Less than this is standing, in centimetres.
const STANDING_CM: u64 = 2_000;
/// Who stands for longer does not wait for a light: two minutes.
const STOOD_DS_MAX: i64 = 1_200;
/// Hops over longer gaps say too little of where the time went: three minutes.
const HOP_DS_MAX: i64 = 1_800;
const SPEED_M_S_MAX: f64 = 60.0;
/// A stretch cannot count as faster or slower than so many times the empty road.
const FASTEST: f32 = 0.4;
const SLOWEST: f32 = 12.0;
/// How many seconds of empty-road driving weigh as much as what is believed without them.
const FLEET_PRIOR_S: f32 = 600.0;
const GROUP_PRIOR_S: f32 = 600.0;
const CELL_PRIOR_S: f32 = 120.0;
const EDGE_PRIOR_S: f32 = 60.0;
const HOUR_PRIOR_S: f32 = 1_800.0;
/// From so much driving on, an edge's own hours are believed.
const STEEPNESS_S_MIN: f32 = 600.0;
const STEEPNESSES: [f32; 4] = [0.0, 0.5, 1.0, 1.5];
const STEEPNESS_USUAL: usize = 2;
const FORGOTTEN_S: f32 = 0.01;
