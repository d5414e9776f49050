//! Which edges lie in a part of the map from which one reaches the rest of that part and comes back? Where a route may
//! begin and end is decided by that: a drawing error or a walled yard is no place to send a driver.

use crate::class::Profile;
use crate::record::EdgeRecord;

/// Sets, for each profile, the high bits of `access` on edges inside a large strongly connected part: the largest, and
/// any other of at least 300 junctions, so that an island or a second city in the extract counts too.
pub fn mark(edges: &mut [EdgeRecord], out_first: &[u32]) {
    for profile in Profile::ALL {
        let component = components(edges, out_first, *profile);
        let mut sizes = vec![0_u32; out_first.len()];
        for number in &component {
            sizes[*number as usize] += 1;
        }
        let largest = sizes.iter().copied().max().unwrap_or(0);
        let large = largest.min(LARGE_JUNCTIONS).max(2);
        for edge in edges.iter_mut() {
            let (from, to) = (component[edge.from as usize], component[edge.to as usize]);
            if edge.access & profile.bit() != 0 && from == to && sizes[from as usize] >= large {
                edge.access |= profile.bit() << 4;
            }
        }
    }
}

/// Tarjan's algorithm with a stack of its own: the number of each junction's part.
fn components(edges: &[EdgeRecord], out_first: &[u32], profile: Profile) -> Vec<u32> {
    let nodes = out_first.len() - 1;
    let mut search = Search {
        index: vec![UNSEEN; nodes],
        low: vec![0; nodes],
        component: vec![UNSEEN; nodes],
        open: Vec::new(),
        next_index: 0,
        next_component: 0,
    };
    let mut path: Vec<(u32, u32)> = Vec::new(); // junction and its next edge
    for root in 0..nodes as u32 {
        if search.index[root as usize] != UNSEEN {
            continue;
        }
        search.enter(root);
        path.push((root, out_first[root as usize]));
        while let Some((node, edge)) = path.last_mut() {
            if *edge == out_first[*node as usize + 1] {
                let node = *node;
                path.pop();
                search.leave(node, path.last().map(|(parent, _)| *parent));
                continue;
            }
            let record = edges[*edge as usize];
            *edge += 1;
            if record.access & profile.bit() == 0 {
                continue;
            }
            let node = *node;
            if search.index[record.to as usize] == UNSEEN {
                search.enter(record.to);
                path.push((record.to, out_first[record.to as usize]));
            } else if search.component[record.to as usize] == UNSEEN {
                search.low[node as usize] = search.low[node as usize].min(search.index[record.to as usize]);
            }
        }
    }
    search.component
}

struct Search {
    index: Vec<u32>,
    low: Vec<u32>,
    component: Vec<u32>,
    open: Vec<u32>,
    next_index: u32,
    next_component: u32,
}

impl Search {
    fn enter(&mut self, node: u32) {
        self.index[node as usize] = self.next_index;
        self.low[node as usize] = self.next_index;
        self.next_index += 1;
        self.open.push(node);
    }

    fn leave(&mut self, node: u32, parent: Option<u32>) {
        if self.low[node as usize] == self.index[node as usize] {
            while let Some(member) = self.open.pop() {
                self.component[member as usize] = self.next_component;
                if member == node {
                    break;
                }
            }
            self.next_component += 1;
        }
        if let Some(parent) = parent {
            self.low[parent as usize] = self.low[parent as usize].min(self.low[node as usize]);
        }
    }
}

const UNSEEN: u32 = u32::MAX;
const LARGE_JUNCTIONS: u32 = 300;
