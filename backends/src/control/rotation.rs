//! When fleet keys come and go: a new one daily, published a day before its first use, so that an edge which has not
//! heard of it for hours still opens every session; wiped 64 h after its first use, when no session sealed under it can
//! be alive. Four of them cycle.

use std::time::Duration;

use protocol::Time;

use super::entry::Kid;

/// The life of one fleet key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FleetKeySpan {
    pub kid: Kid,
    pub not_before: Time,
    pub wiped_after: Time,
}

/// What is to be done now, one thing at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rotation {
    /// A fresh key with this life.
    Publish(FleetKeySpan),
    /// No session of this key is alive: it goes.
    Wipe(Kid),
}

/// None: all is as it should be.
pub fn next_step(keys: &[FleetKeySpan], now: Time) -> Option<Rotation> {
    if let Some(dead) = keys.iter().find(|key| key.wiped_after <= now) {
        return Some(Rotation::Wipe(dead.kid));
    }
    let Some(latest) = keys.iter().max_by_key(|key| key.not_before) else {
        return Some(Rotation::Publish(span(Kid(0), now)));
    };
    if latest.not_before > now {
        return None;
    }
    let kid = Kid((latest.kid.0 + 1) % KIDS);
    let due = latest.not_before + USED;
    let in_time = due.max(now + NOTICE);
    // After a long stop a whole day's notice would keep the old key in use for too long.
    let not_before = if in_time <= latest.not_before + USED_MAX { in_time } else { now + NOTICE_MIN };
    Some(Rotation::Publish(span(kid, not_before)))
}

/// Which key new sessions are sealed under.
pub fn sealing_key(keys: impl IntoIterator<Item = FleetKeySpan>, now: Time) -> Option<FleetKeySpan> {
    keys.into_iter().filter(|key| key.not_before <= now && now < key.wiped_after).max_by_key(|key| key.not_before)
}

fn span(kid: Kid, not_before: Time) -> FleetKeySpan {
    FleetKeySpan { kid, not_before, wiped_after: not_before + WIPED_AFTER }
}

pub const KIDS: u8 = 4;
const USED: Duration = Duration::from_secs(24 * 3600);
/// A session sealed at the last moment still lives 24 h before its key is wiped.
const USED_MAX: Duration = Duration::from_secs(40 * 3600);
const NOTICE: Duration = Duration::from_secs(24 * 3600);
/// Ten times the age at which an edge calls its control degraded.
const NOTICE_MIN: Duration = Duration::from_secs(600);
const WIPED_AFTER: Duration = Duration::from_secs(64 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_a_month_every_moment_has_a_key_and_every_key_its_notice() {
        let mut keys = Vec::new();
        let mut published = 0;
        for minute in 0..30 * 24 * 60 {
            let now = Time::from_secs(minute * 60);
            while let Some(step) = next_step(&keys, now) {
                published += usize::from(matches!(step, Rotation::Publish(_)));
                if let Rotation::Publish(key) = step
                    && minute > 0
                {
                    assert!(key.not_before >= now + NOTICE, "a day's notice at {minute}");
                }
                take(&mut keys, step);
            }
            let key = sealing_key(keys.iter().copied(), now).expect("a key to seal under");
            assert!(now + Duration::from_secs(24 * 3600) <= key.wiped_after, "its sessions outlive it at {minute}");
            assert!(keys.len() <= usize::from(KIDS));
        }
        assert_eq!(published, 31, "one a day, and the one to come");
    }

    #[test]
    fn however_long_it_stood_still_there_is_a_key_and_soon_the_next() {
        for hours in [1, 25, 39, 41, 48, 63, 64, 65, 96, 97, 1000] {
            let mut keys = Vec::new();
            for now in [Time(0), Time::from_secs(hours * 3600)] {
                while let Some(step) = next_step(&keys, now) {
                    take(&mut keys, step);
                }
                let key = sealing_key(keys.iter().copied(), now).expect("a key to seal under");
                let next = keys.iter().find(|other| other.not_before > now).expect("a next key");
                let last_use = next.not_before + Duration::from_secs(24 * 3600);
                let late = last_use.millis_since(key.wiped_after);
                assert!(late <= 24 * 3600 * 1000, "{hours} h: {late}");
                assert_ne!(next.kid, key.kid, "{hours} h");
            }
        }
    }

    #[test]
    fn no_two_keys_of_one_kid_live_at_once() {
        let mut keys: Vec<FleetKeySpan> = Vec::new();
        for hour in 0..24 * 60 {
            // It runs only now and then.
            if hour % 7 == 0 || hour % 100 > 60 {
                while let Some(step) = next_step(&keys, Time::from_secs(hour * 3600)) {
                    if let Rotation::Publish(key) = step {
                        assert!(keys.iter().all(|other| other.kid != key.kid), "hour {hour}");
                    }
                    take(&mut keys, step);
                }
            }
        }
    }

    fn take(keys: &mut Vec<FleetKeySpan>, step: Rotation) {
        match step {
            Rotation::Publish(key) => keys.push(key),
            Rotation::Wipe(kid) => keys.retain(|key| key.kid != kid),
        }
    }
}
