//! How far it surely is to a route's end, from any edge: exact distances of the hierarchy, which knows of no turns that
//! are closed for a time and of no prices for turning round where it has not split a junction. So they are never too
//! large, and a search that is led by them looks at little more than the way that it finds (Strasser and Zeitz, "A fast
//! and tight heuristic for A* in road networks").
//!
//! Each node's distance is worked out when it is first asked for, from its neighbours higher up, all of which lie on its
//! way to the root of the elimination tree.

use std::cell::RefCell;

use cch::bundle::INVALID_ID;
use cch::{Cch, Metric};

use super::NO_WAY;
use super::query::Seed;

#[derive(Default)]
pub struct Potentials {
    /// Of ways that only come down to an end; NO_WAY between searches.
    down: Vec<u32>,
    /// Of all ways; UNKNOWN until asked for.
    whole: Vec<u32>,
    touched: Vec<u32>,
    climb: Vec<u32>,
}

thread_local! {
    static POTENTIALS: RefCell<Potentials> = RefCell::default();
}

/// Hands `with` the distances to the nearest of some ends.
pub fn to<T>(cch: &Cch, metric: &Metric, ends: &[Seed], with: impl FnOnce(&mut dyn FnMut(u32) -> u32) -> T) -> T {
    POTENTIALS.with_borrow_mut(|potentials| {
        potentials.begin(cch, metric, ends);
        let answer = with(&mut |rank| potentials.of(cch, metric, rank));
        potentials.end();
        answer
    })
}

impl Potentials {
    fn begin(&mut self, cch: &Cch, metric: &Metric, ends: &[Seed]) {
        if self.down.len() < cch.node_count() {
            self.down.resize(cch.node_count(), NO_WAY);
            self.whole.resize(cch.node_count(), UNKNOWN);
        }
        let mut ranks = Vec::new();
        for end in ends {
            let slot = &mut self.down[end.rank as usize];
            *slot = end.cost.min(*slot);
            let mut x = end.rank;
            while x != INVALID_ID {
                ranks.push(x);
                x = cch.elimination_tree_parent[x as usize];
            }
        }
        ranks.sort_unstable();
        ranks.dedup();
        for x in &ranks {
            let cost = self.down[*x as usize];
            let (first, end) = (cch.up_first_out[*x as usize] as usize, cch.up_first_out[*x as usize + 1] as usize);
            for (head, weight) in cch.up_head[first..end].iter().zip(&metric.backward[first..end]) {
                let slot = &mut self.down[*head as usize];
                *slot = cost.saturating_add(*weight).min(*slot);
            }
        }
        self.touched.extend_from_slice(&ranks);
    }

    fn of(&mut self, cch: &Cch, metric: &Metric, rank: u32) -> u32 {
        let mut x = rank;
        while x != INVALID_ID && self.whole[x as usize] == UNKNOWN {
            self.climb.push(x);
            x = cch.elimination_tree_parent[x as usize];
        }
        while let Some(x) = self.climb.pop() {
            let (first, end) = (cch.up_first_out[x as usize] as usize, cch.up_first_out[x as usize + 1] as usize);
            let over = cch.up_head[first..end].iter().zip(&metric.forward[first..end]);
            let over = over.map(|(head, weight)| weight.saturating_add(self.whole[*head as usize]));
            self.whole[x as usize] = over.fold(self.down[x as usize], u32::min).min(NO_WAY);
            self.touched.push(x);
        }
        self.whole[rank as usize]
    }

    fn end(&mut self) {
        for x in self.touched.drain(..) {
            self.down[x as usize] = NO_WAY;
            self.whole[x as usize] = UNKNOWN;
        }
    }
}

const UNKNOWN: u32 = u32::MAX;
