//! What one device may send by the doors without sessions: a bucket of fixes, as the sealed doors have one.

use std::num::NonZeroU32;
use std::ops::Add;
use std::time::Duration;

use daemon::Clock;
use governor::clock::{Clock as GovernorClock, Reference};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};
use protocol::DeviceKey;

/// Buckets by device.
///
/// **Invariant:** only devices whose credential is good have one, and full ones are forgotten by `handle_timeout`, so
/// there are never more than devices that sent lately.
pub struct DeviceLimit {
    limiter: RateLimiter<DeviceKey, HashMapStateStore<DeviceKey>, MilliClock, NoOpMiddleware<MilliInstant>>,
    clock: MilliClock,
    burst: u32,
}

impl DeviceLimit {
    pub fn new(fixes_burst: u16, fixes_per_s: u16, clock: Clock) -> Self {
        let at_least_one = |value: u16| NonZeroU32::new(u32::from(value)).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_second(at_least_one(fixes_per_s)).allow_burst(at_least_one(fixes_burst));
        let limiter = RateLimiter::new(quota, HashMapStateStore::default(), MilliClock(clock));
        DeviceLimit { limiter, clock: MilliClock(clock), burst: u32::from(fixes_burst) }
    }

    /// Takes `count` fixes from the device's bucket, or says how long until they are there.
    pub fn take(&self, device: DeviceKey, count: usize) -> Result<(), Duration> {
        let count = u32::try_from(count).unwrap_or(u32::MAX).min(self.burst);
        let Some(count) = NonZeroU32::new(count) else { return Ok(()) };
        match self.limiter.check_key_n(&device, count) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(not_until)) => Err(not_until.wait_time_from(self.clock.now())),
            // Not reached: no more than the burst is asked for.
            Err(_) => Err(Duration::from_secs(1)),
        }
    }

    /// Once a minute or so.
    pub fn handle_timeout(&self) {
        self.limiter.retain_recent();
    }
}

/// Our clock, which may be a scaled one, as governor asks for it: by the time that nobody can set.
#[derive(Clone)]
struct MilliClock(Clock);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct MilliInstant(u64);

impl GovernorClock for MilliClock {
    type Instant = MilliInstant;

    fn now(&self) -> MilliInstant {
        MilliInstant(self.0.monotonic_ms().max(0) as u64)
    }
}

impl Add<Nanos> for MilliInstant {
    type Output = MilliInstant;

    fn add(self, nanos: Nanos) -> MilliInstant {
        MilliInstant(self.0 + nanos.as_u64() / 1_000_000)
    }
}

impl Reference for MilliInstant {
    fn duration_since(&self, earlier: Self) -> Nanos {
        Nanos::from(Duration::from_millis(self.0.saturating_sub(earlier.0)))
    }

    fn saturating_sub(&self, duration: Nanos) -> Self {
        MilliInstant(self.0.checked_sub(duration.as_u64() / 1_000_000).unwrap_or(self.0))
    }
}

#[cfg(test)]
mod tests {
    use protocol::{DeviceNumber, DriverId, TenantId};

    use super::*;

    #[test]
    fn a_device_has_a_burst_and_then_waits_while_others_do_not() {
        let limit = DeviceLimit::new(100, 10, Clock::system());
        let device = |driver| DeviceKey { tenant: TenantId(1), driver: DriverId(driver), device: DeviceNumber(1) };

        assert_eq!(limit.take(device(1), 100), Ok(()));
        let wait = limit.take(device(1), 50).expect_err("the bucket is empty");

        assert!(wait > Duration::from_secs(4) && wait <= Duration::from_secs(5), "{wait:?}");
        assert_eq!(limit.take(device(2), 100), Ok(()));
        assert_eq!(limit.take(device(1), 0), Ok(()));
    }
}
