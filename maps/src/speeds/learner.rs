//! From final matches to speeds. What drivers needed for a stretch is shared among its edges in proportion to the empty
//! road; an edge's slowness is what it was seen to need, shrunk towards its neighbourhood's, which is shrunk towards its
//! class's, which is shrunk towards the fleet's: few samples say little. The week's shape is learned per class, and
//! each edge follows it flatter or steeper, as its own hours say.

use std::collections::BTreeMap;

use wincode::{SchemaRead, SchemaWrite};

use super::hops::Traversal;
use super::{
    CLASS_GROUPS, EdgeSpeed, HOURS, Predecessors, RATIO_ONE, SHAPE_ONE, Shape, SpeedTable, class_group, digest_of,
    free_seconds, hour_of_week,
};
use crate::graph::{EdgeId, Graph};

/// Time seen, and time that the empty road would have taken.
#[derive(Clone, Copy, PartialEq, Debug, Default, SchemaWrite, SchemaRead)]
struct Sum {
    seen_s: f64,
    free_s: f64,
}

impl Sum {
    fn add(&mut self, seen_s: f64, free_s: f64) {
        self.seen_s += seen_s;
        self.free_s += free_s;
    }

    /// How many times slower than the empty road, believed as far as there are samples.
    fn slowness(self, prior: f32, prior_s: f64) -> f32 {
        ((self.seen_s + prior_s * f64::from(prior)) / (self.free_s + prior_s)) as f32
    }

    fn part(self, share: f64) -> Sum {
        Sum { seen_s: self.seen_s * share, free_s: self.free_s * share }
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
        let free_s = free_seconds(graph, traversal.edge, traversal.length_cm);
        let seen_s = f64::from(traversal.seconds).clamp(free_s * FASTEST, free_s * SLOWEST);
        let (group, hour) = (class_group(graph.class(traversal.edge)), hour_of_week(traversal.at));
        self.fleet.add(seen_s, free_s);
        self.groups[group].add(seen_s, free_s);
        self.group_hours[group * HOURS + hour].add(seen_s, free_s);
        self.cells.entry(graph.speed_cells().key(traversal.edge)).or_default().add(seen_s, free_s);
        self.edges.entry(traversal.edge.0).or_default().add(seen_s, free_s);
        let key = (traversal.edge.0, hour as u8);
        // Beyond the bound an edge follows its class's week as steeply as is usual.
        if self.edge_hours.len() < EDGE_HOURS_MAX || self.edge_hours.contains_key(&key) {
            self.edge_hours.entry(key).or_default().add(seen_s, free_s);
        }
    }

    /// Makes all that was learned count for less, as a share of what it did; what has faded away is forgotten. Once a
    /// day with 0.98, the last seven weeks matter.
    pub fn fade(&mut self, share: f64) {
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

    /// Whether somebody drove on this edge.
    pub fn is_driven(&self, edge: EdgeId) -> bool {
        self.edges.contains_key(&edge.0)
    }

    /// How many edges somebody drove on.
    pub fn edges_len(&self) -> usize {
        self.edges.len()
    }

    /// Another version of the map: what was learned of each edge goes to those that lie there now.
    pub fn carry_over(&mut self, before: &Predecessors, old: &Graph, new: &Graph) {
        let (edges, edge_hours) = (std::mem::take(&mut self.edges), std::mem::take(&mut self.edge_hours));
        for (edge, was, share) in before.shares(old, new) {
            let Some(sum) = edges.get(&was.0) else { continue };
            self.edges.insert(edge.0, sum.part(share));
            let hours = edge_hours.range((was.0, 0)..=(was.0, u8::MAX));
            self.edge_hours.extend(hours.map(|((_, hour), sum)| ((edge.0, *hour), sum.part(share))));
        }
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
                let cell = self.cells.get(&graph.speed_cells().key(edge)).copied().unwrap_or_default();
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
                *misfit += sum.free_s as f32 * apart * apart;
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

/// A stretch cannot count as faster or slower than so many times the empty road.
const FASTEST: f64 = 0.4;
const SLOWEST: f64 = 12.0;
/// How many seconds of empty-road driving weigh as much as what is believed without them.
const FLEET_PRIOR_S: f64 = 600.0;
const GROUP_PRIOR_S: f64 = 600.0;
const CELL_PRIOR_S: f64 = 120.0;
const EDGE_PRIOR_S: f64 = 60.0;
const HOUR_PRIOR_S: f64 = 1_800.0;
/// From so much driving on, an edge's own hours are believed.
const STEEPNESS_S_MIN: f64 = 600.0;
const STEEPNESSES: [f32; 4] = [0.0, 0.5, 1.0, 1.5];
const STEEPNESS_USUAL: usize = 2;
const FORGOTTEN_S: f64 = 0.01;
/// At most so many hours of edges are kept apart: some 60 MB.
const EDGE_HOURS_MAX: usize = 1 << 21;
