//! Where a breadcrumb lies: with the day it says it was measured on, or, where a phone's clock is out of all reason, with
//! the strays of the day it was received on, so that a wrong clock cannot make days without end.

use std::ops::RangeInclusive;

use protocol::{Breadcrumb, MeasuredTime, Time};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Home {
    pub is_stray: bool,
    /// By UTC, counted from 1970.
    pub day: i64,
}

impl Home {
    pub fn of(breadcrumb: &Breadcrumb) -> Home {
        let measured = day_of(breadcrumb.record.fix.measured.to_time());
        let received = day_of(breadcrumb.record.received);
        let is_stray = !DAYS_AROUND_RECEIPT.contains(&measured.saturating_sub(received));
        // A server's clock may be wrong too, but not without bounds: a block's day has 32 bits.
        let day = if is_stray { received } else { measured }.clamp(i64::from(i32::MIN), i64::from(i32::MAX));
        Home { is_stray, day }
    }
}

pub(super) fn day_of(time: Time) -> i64 {
    time.as_secs().div_euclid(24 * 3600)
}

pub(super) fn day_of_measured(measured_ds: i64) -> i64 {
    day_of(MeasuredTime(measured_ds).to_time())
}

/// Fixes wait at most 72 h on a phone, and no clock that is taken for right is a day ahead.
const DAYS_AROUND_RECEIPT: RangeInclusive<i64> = -4..=1;
