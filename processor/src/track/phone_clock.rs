//! A phone's clock, which may be wrong. Every fix says when it was measured by the phone and when it was received by us;
//! from the two we keep how far the phone's clock is off, and so map its time to ours.
//!
//! A phone is trusted until it is seen to be wrong. A fix from the future shows at once that the clock is ahead. A clock
//! that is behind looks like a backlog at first; what tells them apart is the pace: a backlog comes as fast as the
//! network lets it, live fixes come at the pace at which they are measured. So three fixes in a row that lag and yet
//! keep pace begin a new *era* of that clock. A clock that returns to where it was before is believed at once.
//!
//! **Invariant:** mapped time is never later than received, and the first fix of an era is mapped to when it was
//! received: whatever a phone's clock does, the dot can neither go back nor stand still for more than a few fixes.

use protocol::{MeasuredTime, Time};
use wincode::{SchemaRead, SchemaWrite};

use super::dormant::{Reader, Writer};
use super::fields::{Plain, fields};

#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct PhoneClock {
    /// What to add to the phone's time to get ours.
    offset_ms: i64,
    /// The offset of the era before.
    offset_before_ms: Option<i64>,
    /// Measured last in this era.
    newest: Option<MeasuredTime>,
    lagging: Option<Lagging>,
}

fields! {
    PhoneClock {
        1 offset_ms: Plain,
        2 offset_before_ms: Plain = None,
        3 newest: Plain = None,
        4 lagging: Plain = None,
    }
}

/// Fixes that lag, and keep pace.
#[derive(Clone, Copy, PartialEq, Debug, SchemaWrite, SchemaRead)]
struct Lagging {
    since: Time,
    received: Time,
    measured: MeasuredTime,
    fixes: u8,
}

/// Where a fix stands in our time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapped {
    /// When it was true, never later than received.
    pub at: Time,
    /// None of this device was measured later.
    pub is_newest: bool,
    /// The clock was seen to be wrong, and this is what we make of it.
    pub is_corrected: bool,
}

impl PhoneClock {
    pub(super) fn write_dormant(&self, to: &mut Writer) -> Option<()> {
        let PhoneClock { offset_ms, offset_before_ms, newest, lagging } = self;
        to.write(offset_ms)?;
        to.write(offset_before_ms)?;
        to.write(newest)?;
        to.write(lagging)
    }

    pub(super) fn read_dormant(from: &mut Reader<'_>) -> Option<PhoneClock> {
        let (offset_ms, offset_before_ms) = (from.read()?, from.read()?);
        Some(PhoneClock { offset_ms, offset_before_ms, newest: from.read()?, lagging: from.read()? })
    }

    pub fn handle_fix(&mut self, measured: MeasuredTime, received: Time) -> Mapped {
        let lag_ms = self.lag_ms(measured, received, self.offset_ms);
        if lag_ms < -AHEAD_MS_MAX {
            self.begin_era(received.millis_since(measured.to_time()));
        } else if self.is_behind(measured, lag_ms) {
            self.handle_lag(measured, received);
        } else {
            self.lagging = None;
        }
        let is_newest = self.newest.is_none_or(|newest| measured > newest);
        if is_newest {
            self.newest = Some(measured);
        }
        let at = Time(measured.to_time().0.saturating_add(self.offset_ms)).min(received);
        let lag_ms = self.lag_ms(measured, received, self.offset_ms);
        Mapped { at, is_newest, is_corrected: self.offset_ms != 0 && lag_ms <= BEHIND_MS_MAX }
    }

    fn lag_ms(&self, measured: MeasuredTime, received: Time, offset_ms: i64) -> i64 {
        received.millis_since(measured.to_time()).saturating_sub(offset_ms)
    }

    fn is_behind(&self, measured: MeasuredTime, lag_ms: i64) -> bool {
        let is_late = self.newest.is_some_and(|newest| measured <= newest);
        lag_ms > BEHIND_MS_MAX || (is_late && lag_ms > AHEAD_MS_MAX)
    }

    fn handle_lag(&mut self, measured: MeasuredTime, received: Time) {
        if let Some(before_ms) = self.offset_before_ms
            && self.lag_ms(measured, received, before_ms).abs() <= AHEAD_MS_MAX
        {
            return self.begin_era(before_ms);
        }
        let Some(lagging) = self.lagging.as_mut().filter(|lagging| lagging.keeps_pace(measured, received)) else {
            self.lagging = Some(Lagging { since: received, received, measured, fixes: 1 });
            return;
        };
        if received > lagging.received {
            lagging.fixes = lagging.fixes.saturating_add(1);
        }
        (lagging.received, lagging.measured) = (received, measured);
        if lagging.fixes >= PACE_FIXES && received.millis_since(lagging.since) >= PACE_MS {
            self.begin_era(received.millis_since(measured.to_time()));
        }
    }

    fn begin_era(&mut self, offset_ms: i64) {
        self.offset_before_ms = Some(self.offset_ms);
        self.offset_ms = offset_ms;
        self.newest = None;
        self.lagging = None;
    }
}

impl Lagging {
    /// As much time passed between two fixes as between receiving them. Those of one datagram have no pace.
    fn keeps_pace(&self, measured: MeasuredTime, received: Time) -> bool {
        let received_ms = received.millis_since(self.received);
        let measured_ms = measured.0.saturating_sub(self.measured.0).saturating_mul(100);
        if received_ms < 0 || measured_ms <= 0 {
            return false;
        }
        if received_ms == 0 {
            return measured_ms <= PACE_GAP_MS;
        }
        received_ms <= PACE_GAP_MS && (received_ms - measured_ms).abs() <= PACE_SLACK_MS.max(received_ms / 4)
    }
}

/// What clocks and networks may differ without anybody being wrong.
const AHEAD_MS_MAX: i64 = 2_000;
/// A lag up to here is a slow network; half the time after which a position is stale by default.
const BEHIND_MS_MAX: i64 = 15_000;
/// So many fixes over so long make an era.
const PACE_FIXES: u8 = 3;
const PACE_MS: i64 = 8_000;
const PACE_SLACK_MS: i64 = 1_000;
/// Between two fixes of which the second says anything about the pace.
const PACE_GAP_MS: i64 = 60_000;

#[cfg(test)]
mod tests {
    use super::*;

    /// A fix every 4 s, measured by a clock that is so far ahead, received 100 ms later.
    fn feed(clock: &mut PhoneClock, from_s: i64, fixes: i64, ahead_s: i64) -> Vec<(Time, Mapped)> {
        (0..fixes)
            .map(|i| {
                let real = Time::from_secs(from_s + 4 * i);
                let received = Time(real.0 + 100);
                (received, clock.handle_fix(MeasuredTime::from_time(Time(real.0 + ahead_s * 1000)), received))
            })
            .collect()
    }

    #[test]
    fn a_right_clock_is_believed_to_the_tenth_of_a_second() {
        let mut clock = PhoneClock::default();

        for (received, mapped) in feed(&mut clock, 1_000_000, 10, 0) {
            assert_eq!(mapped, Mapped { at: Time(received.0 - 100), is_newest: true, is_corrected: false });
        }
    }

    #[test]
    fn a_backlog_keeps_the_times_at_which_it_was_measured() {
        let mut clock = PhoneClock::default();
        feed(&mut clock, 1_000_000, 3, 0);
        let received = Time::from_secs(1_003_600);

        for i in 0..100 {
            let measured = Time::from_secs(1_000_100 + 4 * i);
            let mapped = clock.handle_fix(MeasuredTime::from_time(measured), Time(received.0 + 30 * (i / 10)));
            assert_eq!(mapped.at, measured);
        }
    }

    #[test]
    fn a_clock_that_jumps_an_hour_ahead_and_back_never_stops_the_dot_for_more_than_a_fix() {
        let mut clock = PhoneClock::default();
        let mut all = feed(&mut clock, 1_000_000, 5, 0);
        all.extend(feed(&mut clock, 1_000_020, 5, 3_600));
        all.extend(feed(&mut clock, 1_000_040, 5, 0));

        assert!(all.iter().all(|(received, mapped)| mapped.is_newest && received.millis_since(mapped.at) <= 2_000));
        assert!(all.windows(2).all(|pair| pair[0].1.at <= pair[1].1.at));
    }

    #[test]
    fn a_clock_that_is_set_back_an_hour_is_believed_after_a_few_fixes() {
        let mut clock = PhoneClock::default();
        feed(&mut clock, 1_000_000, 5, 0);

        let after = feed(&mut clock, 1_000_020, 10, -3_600);

        let frozen = after.iter().take_while(|(_, mapped)| !mapped.is_newest).count();
        assert!(frozen <= 3, "{frozen}");
        assert!(after[frozen..].iter().all(|(received, mapped)| received.millis_since(mapped.at) <= 2_000));
    }

    #[test]
    fn a_clock_that_was_always_wrong_is_mapped_to_ours() {
        for ahead_s in [-1_000_000_000, -7_200, -60, 60, 86_400] {
            let mut clock = PhoneClock::default();

            let all = feed(&mut clock, 1_400_000_000, 10, ahead_s);

            let (received, mapped) = all[9];
            assert!(mapped.is_newest && received.millis_since(mapped.at) <= 2_000, "{ahead_s}");
        }
    }

    #[test]
    fn times_at_the_ends_of_the_number_line_do_no_harm() {
        let mut clock = PhoneClock::default();

        for measured in [i64::MIN, -1, 0, i64::MAX, i64::MIN, i64::MAX / 100] {
            for received in [Time(i64::MIN), Time(0), Time(i64::MAX)] {
                let mapped = clock.handle_fix(MeasuredTime(measured), received);
                assert!(mapped.at <= received);
            }
        }
    }
}
