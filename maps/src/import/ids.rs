//! A sorted set of node ids that answers "which one is this?" with about two reads: ids are spread evenly enough that
//! their leading bits point close to the place.

use rayon::prelude::*;

pub struct Ids {
    sorted: Vec<i64>,
    shift: u32,
    /// The first place of each bucket; one more closes the last.
    first: Vec<u32>,
}

impl Ids {
    /// The set of the ids in any order, with repetitions.
    pub fn of(mut ids: Vec<i64>) -> Ids {
        ids.par_sort_unstable();
        ids.dedup();
        let (low, high) = match (ids.first(), ids.last()) {
            (Some(low), Some(high)) => (*low, *high),
            _ => (0, 0),
        };
        let span = high.wrapping_sub(low) as u64;
        let buckets_wanted = (ids.len() as u64).next_power_of_two();
        let shift = (64 - span.leading_zeros()).saturating_sub(buckets_wanted.trailing_zeros());
        let buckets = (span >> shift) as usize + 1;
        let mut first = vec![0; buckets + 1];
        for id in &ids {
            first[(id.wrapping_sub(low) as u64 >> shift) as usize + 1] += 1;
        }
        for i in 0..buckets {
            first[i + 1] += first[i];
        }
        Ids { sorted: ids, shift, first }
    }

    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    /// The id at a place.
    pub fn id(&self, place: u32) -> i64 {
        self.sorted[place as usize]
    }

    pub fn place(&self, id: i64) -> Option<u32> {
        let low = *self.sorted.first()?;
        if id < low {
            return None;
        }
        let bucket = (id.wrapping_sub(low) as u64 >> self.shift) as usize;
        let (start, end) = (*self.first.get(bucket)? as usize, *self.first.get(bucket + 1)? as usize);
        let at = self.sorted[start..end].binary_search(&id).ok()?;
        Some((start + at) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_of_the_set_is_found_and_no_other() {
        let sets: &[&[i64]] = &[
            &[],
            &[7],
            &[i64::MIN, -1, 0, 1, i64::MAX],
            &[5, 3, 5, 1, 1 << 40, (1 << 40) + 1],
            &(0..1000).map(|i| i * i * 7919 % 100_003 - 50_000).collect::<Vec<_>>(),
        ];

        for set in sets {
            let ids = Ids::of(set.to_vec());
            let mut sorted = set.to_vec();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(ids.len(), sorted.len());
            for (place, id) in sorted.iter().enumerate() {
                assert_eq!(ids.place(*id), Some(place as u32), "{id} in {set:?}");
            }
            for id in [-3, 2, 4, 8, 1 << 20, i64::MIN + 1, i64::MAX - 1] {
                assert_eq!(ids.place(id).is_some(), sorted.contains(&id), "{id} in {set:?}");
            }
        }
    }
}
