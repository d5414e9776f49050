//! What was learned on one version of a map goes on on the next: edges have other numbers there, and may be cut
//! elsewhere, but lie in the same places.

use crate::class::Profile;
use crate::geo;
use crate::graph::{EdgeId, Graph};

/// For each edge of a map, which edge of the map before lies where it does and leads the same way.
pub struct Predecessors {
    before: Vec<Option<EdgeId>>,
}

impl Predecessors {
    pub fn of(old: &Graph, new: &Graph) -> Predecessors {
        let mut found = Vec::new();
        let mut before = |edge: EdgeId| {
            let (middle, heading_cdeg) = new.place_at(edge, new.length_cm(edge) / 2);
            old.candidates(middle, NEAR_M, Profile::Car, &mut found);
            let mut leads_there =
                found.iter().filter(|c| geo::turn_cdeg(c.heading_cdeg, heading_cdeg) <= HEADING_OFF_CDEG_MAX);
            let first = leads_there.next()?;
            let is_same_way = |edge: EdgeId| old.osm_way(edge) == new.osm_way(edge);
            let same = std::iter::once(first).chain(leads_there).find(|c| is_same_way(c.edge));
            Some(same.unwrap_or(first).edge)
        };
        Predecessors { before: new.edges().map(&mut before).collect() }
    }

    /// What was known of each edge's predecessor, with the edge's share of its length.
    pub(super) fn shares<'a>(
        &'a self,
        old: &'a Graph,
        new: &'a Graph,
    ) -> impl Iterator<Item = (EdgeId, EdgeId, f64)> + 'a {
        new.edges().zip(&self.before).filter_map(|(edge, before)| {
            let before = (*before)?;
            let share = f64::from(new.length_cm(edge)) / f64::from(old.length_cm(before).max(1));
            Some((edge, before, share.min(1.0)))
        })
    }
}

const NEAR_M: f64 = 15.0;
const HEADING_OFF_CDEG_MAX: u16 = 3_000;
