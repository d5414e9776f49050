//! A phone's clock, which may be wrong. Every fix says when it was measured by the phone and when it was received by us;
//! from the two we keep how far the phone's clock is off, and so map its time to ours.
//!
//! A phone is trusted until it is seen to be wrong. A fix from the future shows at once that the clock is ahead. A clock
//! that is behind looks like a backlog at first; what tells them apart is the pace: a backlog comes as fast as the
//! network lets it, live fixes come at the pace at which they are measured. A phone sends one fix at a time or several at
//! once, so the pace is that of the newest fix of each batch. Three batches in a row that lag and yet keep pace begin a
//! new *era* of that clock, however long lies between them. Where the clock is where it was in the era before, two are
//! enough; one is not, because a backlog may be just so old.
//!
//! **Invariant:** mapped time is never later than received, and the first fix of an era is mapped to when it was
//! received: whatever a phone's clock does, the dot can neither go back nor stand still for more than a few fixes.

use protocol::{MeasuredTime, Time};
use wincode::{SchemaRead, SchemaWrite};

use super::clock_set::ClockSet;
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
        4 [gone Option<LaggingFixes>],
    } since {
        5 lagging: Plain = None,
    }
}

/// What older snapshots hold in the place of `Lagging`.
#[derive(SchemaWrite, SchemaRead)]
struct LaggingFixes {
    since: Time,
    received: Time,
    measured: MeasuredTime,
    fixes: u8,
}

/// Batches of fixes that lag, and keep pace.
#[derive(Clone, Copy, PartialEq, Debug, SchemaWrite, SchemaRead)]
struct Lagging {
    since: Time,
    newest: Batch,
    before: Option<Batch>,
    /// Those that kept pace with the one before, the first included.
    batches: u8,
    /// The newest is among them already.
    is_counted: bool,
}

/// Fixes that were received at once, by the one measured last.
#[derive(Clone, Copy, PartialEq, Debug, SchemaWrite, SchemaRead)]
struct Batch {
    received: Time,
    measured: MeasuredTime,
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

    /// Our clock was set: the phone's is off by so much more or less.
    pub(super) fn handle_clock_set(&mut self, set: ClockSet) {
        self.offset_ms = self.offset_ms.saturating_add(set.by_ms);
        self.offset_before_ms = self.offset_before_ms.map(|before_ms| before_ms.saturating_add(set.by_ms));
        if let Some(lagging) = &mut self.lagging {
            set.stamp(&mut lagging.since);
            set.stamp(&mut lagging.newest.received);
            lagging.before.iter_mut().for_each(|batch| set.stamp(&mut batch.received));
        }
    }

    fn lag_ms(&self, measured: MeasuredTime, received: Time, offset_ms: i64) -> i64 {
        received.millis_since(measured.to_time()).saturating_sub(offset_ms)
    }

    fn is_behind(&self, measured: MeasuredTime, lag_ms: i64) -> bool {
        let is_late = self.newest.is_some_and(|newest| measured <= newest);
        lag_ms > BEHIND_MS_MAX || (is_late && lag_ms > AHEAD_MS_MAX)
    }

    fn handle_lag(&mut self, measured: MeasuredTime, received: Time) {
        let fix = Batch { received, measured };
        let Some(lagging) = self.lagging.and_then(|lagging| lagging.followed_by(fix)) else {
            self.lagging = Some(Lagging::begin(fix));
            return;
        };
        self.lagging = Some(lagging);
        let (lasted_ms, batches) = (received.millis_since(lagging.since), lagging.batches);
        let is_as_before = |before_ms: &i64| self.lag_ms(measured, received, *before_ms).abs() <= AHEAD_MS_MAX;
        if let Some(before_ms) = self.offset_before_ms.filter(is_as_before)
            && batches >= RETURN_BATCHES
            && lasted_ms >= RETURN_MS
        {
            self.begin_era(before_ms);
        } else if batches >= PACE_BATCHES && lasted_ms >= PACE_MS {
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
    fn begin(first: Batch) -> Lagging {
        Lagging { since: first.received, newest: first, before: None, batches: 1, is_counted: true }
    }

    /// None if the fix does not keep pace, so that counting begins anew.
    fn followed_by(self, fix: Batch) -> Option<Lagging> {
        let (received_ms, measured_ms) = self.newest.until(fix);
        if received_ms < 0 || measured_ms <= 0 || received_ms.max(measured_ms) > PACE_GAP_MS {
            return None;
        }
        if received_ms == 0 {
            return Lagging { newest: fix, ..self }.judged();
        }
        // The batch before is complete: it kept pace, or it came too late.
        self.is_counted.then_some(())?;
        Lagging { newest: fix, before: Some(self.newest), is_counted: false, ..self }.judged()
    }

    /// As much time passed between the newest fixes of two batches as between receiving them. A fix that is older than
    /// that says nothing, the newest may follow; one that is newer comes faster than it was measured.
    fn judged(self) -> Option<Lagging> {
        let Some(before) = self.before else { return Some(self) };
        let (received_ms, measured_ms) = before.until(self.newest);
        let slack_ms = (received_ms / 4).clamp(PACE_SLACK_MS, PACE_SLACK_MS_MAX);
        if measured_ms - received_ms > slack_ms {
            return None;
        }
        if self.is_counted || received_ms - measured_ms > slack_ms {
            return Some(self);
        }
        Some(Lagging { batches: self.batches.saturating_add(1), is_counted: true, ..self })
    }
}

impl Batch {
    /// How much later another was received and measured.
    fn until(self, other: Batch) -> (i64, i64) {
        let measured_ms = other.measured.0.saturating_sub(self.measured.0).saturating_mul(100);
        (other.received.millis_since(self.received), measured_ms)
    }
}

/// What clocks and networks may differ without anybody being wrong.
const AHEAD_MS_MAX: i64 = 2_000;
/// A lag up to here is a slow network; half the time after which a position is stale by default.
const BEHIND_MS_MAX: i64 = 15_000;
/// So many batches over so long make an era.
const PACE_BATCHES: u8 = 3;
const PACE_MS: i64 = 8_000;
/// So many over so long make a return to the era before: a backlog comes at least twice as fast as it was measured, so
/// within this time it is more than `AHEAD_MS_MAX` off.
const RETURN_BATCHES: u8 = 2;
const RETURN_MS: i64 = 3_000;
const PACE_SLACK_MS: i64 = 1_000;
/// A quarter of a minute: over hours, backlogs of phones that are rarely heard would keep a looser pace.
const PACE_SLACK_MS_MAX: i64 = 15_000;
/// Between two fixes of which the second says anything about the pace: any interval that can be expected of a phone.
const PACE_GAP_MS: i64 = 24 * 3_600_000;

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

        let moves =
            |(received, mapped): &&(Time, Mapped)| mapped.is_newest && received.millis_since(mapped.at) <= 2_000;
        let shown: Vec<_> = all.iter().filter(moves).collect();
        assert!(all.len() - shown.len() <= 1, "{all:?}");
        assert!(shown.windows(2).all(|pair| pair[0].1.at <= pair[1].1.at));
    }

    #[test]
    fn a_backlog_that_is_as_old_as_the_clock_was_wrong_before_keeps_its_times() {
        for (batch_size, batch_ms) in [(1, 30), (1, 200), (1, 1_000), (10, 30), (10, 1_000), (50, 5_000)] {
            let mut clock = PhoneClock::default();
            feed(&mut clock, 1_000_000, 10, -3_600);
            feed(&mut clock, 1_000_040, 10, 0);

            // Away for an hour, then all of it at once.
            for i in 0..900 {
                let measured = Time::from_secs(1_000_080 + 4 * i);
                let received = Time(1_003_680_000 + batch_ms * (i / batch_size));
                let mapped = clock.handle_fix(MeasuredTime::from_time(measured), received);
                let off_ms = mapped.at.millis_since(measured);
                assert!(off_ms.abs() <= 200 && mapped.is_newest, "{i} of {batch_size} in {batch_ms} ms: {off_ms}");
            }
        }
    }

    #[test]
    fn a_clock_that_is_behind_is_believed_however_rarely_it_measures() {
        for (each_s, behind_s) in [(61, 20), (300, 20), (300, 3_600), (3_600, 7_200), (65_535, 86_400)] {
            let mut clock = PhoneClock::default();
            let fix = |clock: &mut PhoneClock, i: i64| {
                let real = Time::from_secs(1_400_000_000 + each_s * i);
                let measured = MeasuredTime::from_time(Time(real.0 - behind_s * 1_000));
                real.millis_since(clock.handle_fix(measured, real).at)
            };

            let lags: Vec<i64> = (0..6).map(|i| fix(&mut clock, i)).collect();

            assert!(lags[3..].iter().all(|lag_ms| *lag_ms <= 2_000), "every {each_s} s, {behind_s} s behind: {lags:?}");
        }
    }

    #[test]
    fn a_phone_that_is_heard_rarely_and_sends_what_it_kept_is_not_taken_for_a_slow_clock() {
        let mut clock = PhoneClock::default();
        // Every five minutes it gets to send some of an hour that it kept, more or less of it.
        let mut measured = Time::from_secs(1_000_000);
        for (i, sent_s) in [(0, 280), (1, 340), (2, 260), (3, 330), (4, 270), (5, 350)] {
            measured = Time(measured.0 + sent_s * 1_000);
            let received = Time::from_secs(1_003_600 + 300 * i);
            assert_eq!(clock.handle_fix(MeasuredTime::from_time(measured), received).at, measured);
        }
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

    /// A phone that measures once a second and posts what it has every so many seconds, by a clock that shows `shown_ms`
    /// at a real time: how late the newest fix of each batch came out, and whether the dot ever went back.
    fn post(seconds: i64, each: i64, shown_ms: impl Fn(i64) -> i64) -> (Vec<(i64, i64)>, bool) {
        let (mut clock, mut lags, mut is_back) = (PhoneClock::default(), Vec::new(), false);
        let (begin_ms, mut shown_at) = (1_400_000_000_000, Time(0));
        for posted_s in (each..=seconds).step_by(each as usize) {
            let received = Time(begin_ms + posted_s * 1_000 + 120);
            for measured_s in posted_s - each + 1..=posted_s {
                let measured = Time(begin_ms + measured_s * 1_000 + shown_ms(measured_s));
                let mapped = clock.handle_fix(MeasuredTime::from_time(measured), received);
                is_back |= mapped.is_newest && mapped.at < shown_at;
                shown_at = if mapped.is_newest { shown_at.max(mapped.at) } else { shown_at };
            }
            lags.push((posted_s, received.millis_since(shown_at)));
        }
        (lags, is_back)
    }

    #[test]
    fn pace_and_offset_are_measured_from_batch_to_batch() {
        const HOUR_MS: i64 = 3_600_000;
        type Shown = fn(i64) -> i64;
        // What it shows, when it was set last, and how late a fix may come out then.
        let clocks: [(&str, Shown, i64, i64); 8] = [
            ("right", |_| 0, 0, 200),
            ("an hour slow", |_| -HOUR_MS, 0, 1_200),
            ("twenty seconds slow", |_| -20_000, 0, 1_200),
            ("an hour fast", |_| HOUR_MS, 0, 2_200),
            ("fast by a hundredth", |s| s * 10, 0, 2_200),
            // A lag that grows is let go to the limit of a slow network, and for three batches.
            ("an hour slow, and slower by a hundredth", |s| -HOUR_MS - s * 10, 0, BEHIND_MS_MAX + 500),
            ("set back by an hour", |s| if s < 120 { 0 } else { -HOUR_MS }, 120, 1_200),
            ("set forward by an hour, and back", |s| if (120..180).contains(&s) { HOUR_MS } else { 0 }, 180, 2_200),
        ];
        for each in [1, 2, 4, 10] {
            for (name, shown_ms, set_s, late_ms_max) in clocks {
                let (lags, is_back) = post(2_400, each, shown_ms);

                let settled_s = set_s + PACE_MS / 1_000 + 3 * each;
                let late = lags.iter().filter(|(at_s, _)| *at_s > settled_s).max_by_key(|(_, lag_ms)| *lag_ms);
                assert!(late.is_some_and(|(_, ms)| *ms <= late_ms_max), "{name}, {each} at once: {late:?}");
                assert!(!is_back, "{name}, {each} at once");
            }
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
