//! Which counters a session has used: the last 24 of them, each as its distance behind the largest. Small enough to
//! sit in the session's slot, and enough for the disorder a mobile network makes; whatever is older is refused,
//! because nothing would show that it is new.

/// The largest counter seen and the 23 before it that were seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplayWindow {
    largest: [u8; 3],
    /// Distances behind the largest, in no order. `NEVER` marks a place that holds none, or one so far back that no
    /// fresh counter can be that old. Bytes, so that a slot needs no padding.
    behind: [[u8; 2]; BEHIND_COUNT],
}

impl ReplayWindow {
    pub fn starting_with(counter: u32) -> Self {
        ReplayWindow { largest: pack(counter), behind: [NEVER.to_ne_bytes(); BEHIND_COUNT] }
    }

    pub fn largest(&self) -> u32 {
        u32::from_be_bytes([0, self.largest[0], self.largest[1], self.largest[2]])
    }

    /// Notes a counter. False if it was seen before or is too old to tell.
    pub fn accept(&mut self, counter: u32) -> bool {
        let largest = self.largest();
        if counter > largest {
            self.move_to(counter, counter - largest);
            return true;
        }
        let Ok(distance) = u16::try_from(largest - counter) else { return false };
        if distance == 0 || distance == NEVER {
            return false;
        }
        let (mut oldest_at, mut oldest) = (0, 0);
        let mut seen = false;
        for (at, behind) in self.behind.iter().enumerate() {
            let behind = u16::from_ne_bytes(*behind);
            seen |= behind == distance;
            if behind > oldest {
                (oldest_at, oldest) = (at, behind);
            }
        }
        if seen || distance > oldest {
            return false;
        }
        self.behind[oldest_at] = distance.to_ne_bytes();
        true
    }

    /// Makes `counter` the largest, the old one the nearest behind it.
    fn move_to(&mut self, counter: u32, step: u32) {
        let step = u16::try_from(step).unwrap_or(NEVER);
        let (mut oldest_at, mut oldest) = (0, 0);
        for (at, behind) in self.behind.iter_mut().enumerate() {
            let further = u16::from_ne_bytes(*behind).saturating_add(step);
            *behind = further.to_ne_bytes();
            if further > oldest {
                (oldest_at, oldest) = (at, further);
            }
        }
        self.behind[oldest_at] = step.to_ne_bytes();
        self.largest = pack(counter);
    }
}

/// 24 bits are enough: a session of 24 h ends at tick 1,382,400.
fn pack(counter: u32) -> [u8; 3] {
    let [_, a, b, c] = counter.min(COUNTER_MAX).to_be_bytes();
    [a, b, c]
}

pub const COUNTER_MAX: u32 = (1 << 24) - 1;
const BEHIND_COUNT: usize = 23;
const NEVER: u16 = u16::MAX;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against the slow obvious one: a set of everything, and the floor below the 24 newest.
        #[test]
        fn it_accepts_exactly_what_a_set_of_the_last_24_would(
            counters in prop::collection::vec(0u32..400, 1..200), base in 0u32..1_000_000,
        ) {
            let mut window = ReplayWindow::starting_with(base + counters[0]);
            let mut newest = BTreeSet::from([base + counters[0]]);

            for counter in counters[1..].iter().map(|c| base + c) {
                let full = newest.len() == 24;
                let too_old = full && counter < *newest.first().unwrap();
                let wanted = !too_old && !newest.contains(&counter);
                if wanted {
                    newest.insert(counter);
                    if full {
                        newest.pop_first();
                    }
                }
                prop_assert_eq!(window.accept(counter), wanted, "counter {}", counter);
                prop_assert_eq!(window.largest(), *newest.last().unwrap());
            }
        }

        #[test]
        fn nothing_is_accepted_twice(counters in prop::collection::vec(0u32..=COUNTER_MAX, 1..300)) {
            let mut window = ReplayWindow::starting_with(counters[0]);
            let mut seen = BTreeSet::from([counters[0]]);

            for counter in &counters[1..] {
                if window.accept(*counter) {
                    prop_assert!(seen.insert(*counter));
                }
            }
        }
    }
}
