//! Time as Wayfix speaks of it: milliseconds since the Unix epoch, handed in from a clock, never read here. A phone's
//! own word for when it measured has a type of its own, because it may be wrong.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

/// A server's time, in milliseconds since the Unix epoch.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize, SchemaWrite, SchemaRead,
)]
#[serde(transparent)]
pub struct Time(pub i64);

impl Time {
    pub fn from_secs(secs: i64) -> Self {
        Time(secs.saturating_mul(1000))
    }

    pub fn as_secs(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// How long after `earlier` this is; zero if it is before.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0).max(0) as u64)
    }

    /// Milliseconds from `earlier` to this, negative if it is before.
    pub fn millis_since(self, earlier: Time) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Time {
    type Output = Time;
    fn add(self, duration: Duration) -> Time {
        Time(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }
}

impl Sub<Duration> for Time {
    type Output = Time;
    fn sub(self, duration: Duration) -> Time {
        Time(self.0.saturating_sub(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0.div_euclid(1000), self.0.rem_euclid(1000))
    }
}

/// When a phone says it measured a fix, in tenths of a second since the Unix epoch. Part of a fix's identity, exactly
/// as the phone said it; the only order among a device's fixes.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize, SchemaWrite, SchemaRead,
)]
#[serde(transparent)]
pub struct MeasuredTime(pub i64);

impl MeasuredTime {
    pub fn from_time(time: Time) -> Self {
        MeasuredTime(time.0.div_euclid(100))
    }

    pub fn to_time(self) -> Time {
        Time(self.0.saturating_mul(100))
    }

    /// Seconds from `earlier` to this, negative if it is before.
    pub fn seconds_since(self, earlier: MeasuredTime) -> f64 {
        self.0.saturating_sub(earlier.0) as f64 / 10.0
    }
}
