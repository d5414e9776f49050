//! Objects that an extract holds more than once, as joined extracts (`osmium cat a b`) and histories do: the one with the
//! highest version counts, of two that are as new the one that comes later in the file.

use std::collections::HashMap;

use super::left_out::{LeftOutKind, LeftOuts};

/// Which of several copies an object is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Edition {
    /// Below 0 where the extract does not say it.
    pub version: i32,
    /// Its place among all of its kind in the file.
    pub order: u64,
}

/// Whether the ids of a kind of object only rise: then none is there twice.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ascent {
    ends: Option<(i64, i64)>,
    is_broken: bool,
}

impl Ascent {
    pub fn note(&mut self, id: i64) {
        self.append(Ascent { ends: Some((id, id)), is_broken: false });
    }

    /// What comes later in the file.
    pub fn append(&mut self, later: Ascent) {
        self.is_broken |= later.is_broken;
        self.ends = match (self.ends, later.ends) {
            (None, ends) | (ends, None) => ends,
            (Some((first, last)), Some((next, end))) => {
                self.is_broken |= next <= last;
                Some((first, end))
            }
        };
    }

    pub fn is_strict(&self) -> bool {
        !self.is_broken
    }
}

/// The newest edition of each object.
pub struct Editions {
    newest: HashMap<i64, Edition>, // only looked up, never walked
    repeated: Vec<i64>,
}

impl Editions {
    /// An edition may be named more than once: a relation can be several things to us.
    pub fn of(all: impl Iterator<Item = (i64, Edition)>) -> Editions {
        let mut editions = Editions { newest: HashMap::new(), repeated: Vec::new() };
        for (id, edition) in all {
            let newest = editions.newest.entry(id).or_insert(edition);
            if *newest != edition {
                editions.repeated.push(id);
                *newest = edition.max(*newest);
            }
        }
        editions.repeated.sort_unstable();
        editions.repeated.dedup();
        editions
    }

    pub fn is_newest(&self, id: i64, edition: Edition) -> bool {
        self.newest.get(&id) == Some(&edition)
    }

    pub fn tell(&self, object: &'static str, left_out: &mut LeftOuts) {
        for id in &self.repeated {
            left_out.add(LeftOutKind::Repeated, object, *id, "it is there more than once, the newest counts");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_version_counts_then_the_later_place() {
        let edition = |version, order| Edition { version, order };
        let all = [
            (7, edition(2, 0)),
            (8, edition(-1, 1)),
            (7, edition(1, 2)),
            (8, edition(-1, 3)),
            (9, edition(1, 4)),
            (9, edition(1, 4)),
        ];

        let editions = Editions::of(all.into_iter());

        assert!(editions.is_newest(7, edition(2, 0)) && !editions.is_newest(7, edition(1, 2)));
        assert!(editions.is_newest(8, edition(-1, 3)) && !editions.is_newest(8, edition(-1, 1)));
        assert_eq!(editions.repeated, [7, 8]);
    }

    #[test]
    fn ids_that_only_rise_are_told_from_others() {
        let of = |parts: &[&[i64]]| {
            let mut whole = Ascent::default();
            for part in parts {
                let mut ascent = Ascent::default();
                part.iter().for_each(|id| ascent.note(*id));
                whole.append(ascent);
            }
            whole.is_strict()
        };

        assert!(of(&[]) && of(&[&[], &[1, 2], &[], &[3, 9]]));
        assert!(!of(&[&[1, 2], &[2]]) && !of(&[&[1, 1]]) && !of(&[&[5], &[3]]) && !of(&[&[3, 2, 9], &[10]]));
    }
}
