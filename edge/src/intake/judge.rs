//! What a single fix shows about itself. What needs its neighbours (jumps, derived speed, duplicates) is the tracker's
//! to judge, in order of measured time.

use std::time::Duration;

use protocol::{Fix, RejectReason, Time, Verdict};

/// How far a phone's word for when it measured may lie from when it was received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JudgeLimits {
    /// What clocks may differ.
    pub future_max: Duration,
    /// What the log keeps: an older fix could not be told from a repetition.
    pub age_max: Duration,
}

impl Default for JudgeLimits {
    fn default() -> Self {
        JudgeLimits { future_max: Duration::from_secs(30), age_max: Duration::from_secs(72 * 3600) }
    }
}

impl JudgeLimits {
    /// Where the clock was set lately, a phone may be right by what it showed before: neither is called wrong.
    pub fn across(self, unset: &[Time], now: Time) -> JudgeLimits {
        let (earliest, latest) = unset.iter().fold((now, now), |(a, b), time| (a.min(*time), b.max(*time)));
        JudgeLimits { future_max: self.future_max + latest.since(now), age_max: self.age_max + now.since(earliest) }
    }
}

/// The first reason in the order of the list, so that one fix counts once.
pub fn judge(fix: &Fix, received: Time, limits: &JudgeLimits) -> Verdict {
    match reason_against(fix, received, limits) {
        None => Verdict::Accepted,
        Some(reason) => Verdict::Rejected(reason),
    }
}

fn reason_against(fix: &Fix, received: Time, limits: &JudgeLimits) -> Option<RejectReason> {
    let measured = fix.measured.to_time();
    if !fix.position.is_on_earth() || has_impossible_field(fix) {
        Some(RejectReason::OutOfRange)
    } else if fix.position.lat_e7 == 0 && fix.position.lon_e7 == 0 {
        Some(RejectReason::NullIsland)
    } else if fix.accuracy_m.is_some_and(|accuracy| accuracy > ACCURACY_M_MAX) {
        Some(RejectReason::Inaccurate)
    } else if fix.speed_dm_s.is_some_and(|speed| speed > SPEED_DM_S_MAX) {
        Some(RejectReason::TooFast)
    } else if measured.since(received) > limits.future_max {
        Some(RejectReason::FromFuture)
    } else if received.since(measured) > limits.age_max {
        Some(RejectReason::TooOld)
    } else {
        None
    }
}

fn has_impossible_field(fix: &Fix) -> bool {
    fix.heading_255.is_some_and(|heading| heading > HEADING_255_MAX)
        || fix.battery_percent.is_some_and(|battery| battery > BATTERY_PERCENT_MAX)
}

const ACCURACY_M_MAX: u8 = 100;
const SPEED_DM_S_MAX: u16 = 555; // 200 km/h is 555.6
const HEADING_255_MAX: u8 = 254;
const BATTERY_PERCENT_MAX: u8 = 100;

#[cfg(test)]
mod tests {
    use protocol::{MeasuredTime, Position};

    use super::*;

    const RECEIVED: Time = Time(1_700_000_000_000);

    fn good() -> Fix {
        let measured = MeasuredTime::from_time(RECEIVED);
        Fix::at(measured, Position { lat_e7: 411_500_000, lon_e7: -86_100_000 })
    }

    fn verdict(fix: Fix) -> Verdict {
        judge(&fix, RECEIVED, &JudgeLimits::default())
    }

    #[test]
    fn every_limit_accepts_its_last_value_and_rejects_the_next() {
        let at = |lat_e7, lon_e7| Fix { position: Position { lat_e7, lon_e7 }, ..good() };
        let measured_s = |offset_s: i64| Fix { measured: MeasuredTime(good().measured.0 + offset_s * 10), ..good() };
        let cases = [
            (at(900_000_000, 1_800_000_000), at(900_000_001, 0), RejectReason::OutOfRange),
            (at(-900_000_000, -1_800_000_000), at(0, -1_800_000_001), RejectReason::OutOfRange),
            (at(1, 0), at(0, 0), RejectReason::NullIsland),
            (at(0, -1), at(0, 0), RejectReason::NullIsland),
            (
                Fix { heading_255: Some(254), ..good() },
                Fix { heading_255: Some(255), ..good() },
                RejectReason::OutOfRange,
            ),
            (
                Fix { battery_percent: Some(100), ..good() },
                Fix { battery_percent: Some(101), ..good() },
                RejectReason::OutOfRange,
            ),
            (
                Fix { accuracy_m: Some(100), ..good() },
                Fix { accuracy_m: Some(101), ..good() },
                RejectReason::Inaccurate,
            ),
            (Fix { speed_dm_s: Some(555), ..good() }, Fix { speed_dm_s: Some(556), ..good() }, RejectReason::TooFast),
            (measured_s(30), measured_s(31), RejectReason::FromFuture),
            (measured_s(-72 * 3600), measured_s(-72 * 3600 - 1), RejectReason::TooOld),
        ];

        for (last, next, reason) in cases {
            assert_eq!(verdict(last), Verdict::Accepted, "{last:?}");
            assert_eq!(verdict(next), Verdict::Rejected(reason), "{next:?}");
        }
    }

    #[test]
    fn a_phone_that_is_right_by_the_time_before_a_step_is_not_called_wrong() {
        const DAY_S: i64 = 86_400;
        let judged = |measured: Time, unset: &[Time]| {
            let limits = JudgeLimits::default().across(unset, RECEIVED);
            judge(&Fix { measured: MeasuredTime::from_time(measured), ..good() }, RECEIVED, &limits)
        };
        for step_s in [2, 7_200, 2 * DAY_S, 7_300 * DAY_S] {
            for step_s in [step_s, -step_s] {
                let before = Time(RECEIVED.0 - step_s * 1_000);

                assert!(judged(before, &[before]).is_accepted() && judged(RECEIVED, &[before]).is_accepted());
                let ahead = before.max(RECEIVED) + std::time::Duration::from_secs(31);
                assert_eq!(judged(ahead, &[before]), Verdict::Rejected(RejectReason::FromFuture), "{step_s}");
                let old = before.min(RECEIVED) - std::time::Duration::from_secs(72 * 3_600 + 1);
                assert_eq!(judged(old, &[before]), Verdict::Rejected(RejectReason::TooOld), "{step_s}");
            }
        }
    }

    #[test]
    fn the_wildest_values_are_judged_and_nothing_overflows() {
        for measured in [i64::MIN, i64::MAX] {
            for e7 in [i32::MIN, i32::MAX] {
                let fix = Fix {
                    measured: MeasuredTime(measured),
                    position: Position { lat_e7: e7, lon_e7: e7 },
                    speed_dm_s: Some(u16::MAX),
                    heading_255: Some(u8::MAX),
                    accuracy_m: Some(u8::MAX),
                    altitude_m: Some(i16::MIN),
                    battery_percent: Some(u8::MAX),
                    phone_state: None,
                };
                assert!(!verdict(fix).is_accepted());
            }
            assert!(!verdict(Fix { measured: MeasuredTime(measured), ..good() }).is_accepted());
        }
    }
}
