//! When an edge may say "all that I received before t is above this line". Each thread says with every parcel up to
//! when it has handed over all it received; the line may only say the least of them, and only below what it speaks of.
//!
//! **Invariant:** a mark is drawn from parcels that stand before it in the log, never from one still on its way.
//! **Invariant:** once a thread has spoken after its clock was set, what others said before that draws no mark.

use std::time::Duration;

use protocol::Time;

/// What the shipper knows about its threads.
#[derive(Debug)]
pub struct Marks {
    /// Per thread: all it received before is in the log. None until its first parcel, and until its first after the
    /// clock was set.
    received_before: Vec<Option<Time>>,
    /// How often the clock was set before the newest parcel.
    steps: u32,
    due: Time,
}

impl Marks {
    pub fn new(thread_count: usize, now: Time) -> Self {
        Marks { received_before: vec![None; thread_count], steps: 0, due: now + MARK_EVERY }
    }

    /// A thread's parcel stands in the log, or right above where the mark would stand.
    pub fn handle_parcel(&mut self, thread: usize, steps: u32, received_before: Time) {
        if steps > self.steps {
            self.steps = steps;
            self.received_before.fill(None);
        } else if steps < self.steps {
            return;
        }
        if let Some(last) = self.received_before.get_mut(thread) {
            *last = Some(received_before);
        }
    }

    /// What the next mark says, if one is due and every thread has spoken.
    pub fn poll_mark(&mut self, now: Time) -> Option<Time> {
        // A clock that was set back must not silence us until it has caught up.
        let is_due = now >= self.due || self.due.since(now) > MARK_EVERY;
        if !is_due {
            return None;
        }
        let mut least = None;
        for thread in &self.received_before {
            let before = (*thread)?;
            least = Some(least.map_or(before, |least: Time| least.min(before)));
        }
        self.due = now + MARK_EVERY;
        least
    }

    pub fn poll_timeout(&self) -> Time {
        self.due
    }
}

pub const MARK_EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_says_no_more_than_the_slowest_thread() {
        let mut marks = Marks::new(2, Time(0));
        marks.handle_parcel(0, 0, Time(5000));
        assert_eq!(marks.poll_mark(Time(5000)), None, "thread 1 has not spoken");

        marks.handle_parcel(1, 0, Time(4200));

        assert_eq!(marks.poll_mark(Time(5000)), Some(Time(4200)));
        assert_eq!(marks.poll_mark(Time(5999)), None);
        assert_eq!(marks.poll_mark(Time(6000)), Some(Time(4200)), "still true, if old");
    }

    #[test]
    fn a_clock_set_back_does_not_silence_the_marks() {
        let mut marks = Marks::new(1, Time(100_000));
        marks.handle_parcel(0, 0, Time(3000));

        assert_eq!(marks.poll_mark(Time(3000)), Some(Time(3000)));
        assert_eq!(marks.poll_mark(Time(3500)), None);
    }
    #[test]
    fn after_a_step_a_mark_waits_until_every_thread_has_spoken_by_the_new_time() {
        let mut marks = Marks::new(2, Time(0));
        marks.handle_parcel(0, 0, Time(7_200_900));
        marks.handle_parcel(1, 0, Time(7_200_800));
        marks.handle_parcel(0, 1, Time(1_000));
        marks.handle_parcel(1, 0, Time(7_200_990));

        assert_eq!(marks.poll_mark(Time(1_000)), None, "thread 1 has not spoken since");
        marks.handle_parcel(1, 1, Time(900));

        assert_eq!(marks.poll_mark(Time(1_010)), Some(Time(900)));
    }
}
