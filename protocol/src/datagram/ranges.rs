//! A few runs of fix numbers, on the stack: what one datagram carried, what one ack names. At most four, because an
//! answer has no room for more; what does not fit is left out, and the phone sends those fixes again.

use crate::id::FixNumber;

/// Up to four runs of consecutive numbers, ascending, apart from each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NumberRanges {
    len: u8,
    runs: [NumberRun; NumberRanges::RUNS_MAX],
}

/// The numbers `first` to `first + len - 1`; never empty inside `NumberRanges`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NumberRun {
    pub first: u64,
    pub len: u32,
}

impl NumberRun {
    pub fn last(self) -> u64 {
        self.first + u64::from(self.len) - 1
    }

    pub fn contains(self, number: FixNumber) -> bool {
        number.0 >= self.first && number.0 <= self.last()
    }
}

impl NumberRanges {
    pub const RUNS_MAX: usize = 4;

    pub fn runs(&self) -> &[NumberRun] {
        &self.runs[..usize::from(self.len)]
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn contains(&self, number: FixNumber) -> bool {
        self.runs().iter().any(|run| run.contains(number))
    }

    /// How many numbers it names.
    pub fn count(&self) -> u64 {
        self.runs().iter().map(|run| u64::from(run.len)).sum()
    }

    pub fn insert_number(&mut self, number: FixNumber) -> bool {
        self.insert(NumberRun { first: number.0, len: 1 })
    }

    /// Adds a run, joining it with those it touches. False, and nothing changed, if it would need a fifth run, is
    /// empty, or ends beyond the largest number.
    pub fn insert(&mut self, run: NumberRun) -> bool {
        if run.len == 0 || run.first.checked_add(u64::from(run.len)).is_none() {
            return false;
        }
        let (mut first, mut last) = (run.first, run.last());
        let mut joined = NumberRanges::default();
        let mut placed = false;
        for old in self.runs() {
            if old.last() + 1 < first || old.first > last + 1 {
                if old.first > last && !placed {
                    if !joined.push(first, last) {
                        return false;
                    }
                    placed = true;
                }
                if !joined.push(old.first, old.last()) {
                    return false;
                }
            } else {
                first = first.min(old.first);
                last = last.max(old.last());
            }
        }
        if !placed && !joined.push(first, last) {
            return false;
        }
        *self = joined;
        true
    }

    fn push(&mut self, first: u64, last: u64) -> bool {
        let at = usize::from(self.len);
        let Ok(len) = u32::try_from(last - first + 1) else { return false };
        let Some(slot) = self.runs.get_mut(at) else { return false };
        *slot = NumberRun { first, len };
        self.len += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_holds_what_a_set_would_or_refuses_whole(runs in prop::collection::vec((1u64..60, 1u32..8), 0..20)) {
            let mut ranges = NumberRanges::default();
            let mut set = BTreeSet::new();

            for (first, len) in runs {
                let before = ranges;
                let mut wanted = set.clone();
                wanted.extend(first..first + u64::from(len));
                if ranges.insert(NumberRun { first, len }) {
                    set = wanted;
                } else {
                    prop_assert_eq!(ranges, before);
                    let gaps = wanted.iter().zip(wanted.iter().skip(1)).filter(|(a, b)| *a + 1 < **b).count();
                    prop_assert!(gaps + 1 > NumberRanges::RUNS_MAX);
                }
                let held: BTreeSet<u64> = (0..80).filter(|n| ranges.contains(FixNumber(*n))).collect();
                prop_assert_eq!(&held, &set);
                prop_assert_eq!(ranges.count(), set.len() as u64);
            }
        }
    }

    #[test]
    fn empty_runs_and_runs_past_the_end_are_refused() {
        let mut ranges = NumberRanges::default();

        assert!(!ranges.insert(NumberRun { first: 5, len: 0 }));
        assert!(!ranges.insert(NumberRun { first: u64::MAX, len: 1 }));
        assert!(ranges.is_empty());
    }
}
