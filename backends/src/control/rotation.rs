//! When fleet keys come and go: a new one daily, published a day before its first use, so that an edge which has not
//! heard of it for hours still opens every session; wiped 64 h after its first use, when no session sealed under it can
//! be alive. Four of them cycle.
//!
//! The clock may be set. What was published by a wrong time is not waited for: a key that can be used is published at once
//! where there is none. And what opens sessions is wiped only once no session of it can live by any time that was believed
//! within the last day.

use std::time::Duration;

use daemon::Clock;
use protocol::Time;

use super::entry::Kid;

/// The life of one fleet key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FleetKeySpan {
    pub kid: Kid,
    pub not_before: Time,
    pub wiped_after: Time,
}

/// What the clock shows, and what it would show if it had not been set, for each time within the last day.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Moment {
    pub now: Time,
    pub unset: Vec<Time>,
}

impl Moment {
    /// By a clock that nobody has set.
    pub fn of(now: Time) -> Moment {
        Moment { now, unset: Vec::new() }
    }

    pub fn by(clock: Clock) -> Moment {
        Moment { now: Time(clock.now_ms()), unset: clock.unset_ms().into_iter().map(Time).collect() }
    }

    /// Whether a session that lives may be sealed under this key.
    fn needs(&self, key: &FleetKeySpan) -> bool {
        let mut times = self.unset.iter().chain([&self.now]);
        times.any(|time| (key.not_before..key.wiped_after).contains(time))
    }
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
pub fn next_step(keys: &[FleetKeySpan], moment: &Moment) -> Option<Rotation> {
    let now = moment.now;
    if let Some(dead) = keys.iter().find(|key| key.wiped_after <= now && !moment.needs(key)) {
        return Some(Rotation::Wipe(dead.kid));
    }
    if sealing_key(keys.iter().copied(), now).is_none() {
        let oldest = || keys.iter().min_by_key(|key| key.wiped_after).map(|key| Rotation::Wipe(key.kid));
        return publish(keys, Kid(0), now, moment).or_else(oldest);
    }
    // Keys further ahead than that were published by a clock that was ahead.
    let is_in_time = |key: &&FleetKeySpan| key.not_before <= now + NOTICE;
    let latest = keys.iter().filter(is_in_time).max_by_key(|key| key.not_before)?;
    if latest.not_before > now {
        return None;
    }
    let kid = Kid((latest.kid.0 + 1) % KIDS);
    let due = latest.not_before + USED;
    let in_time = due.max(now + NOTICE);
    // After a long stop a whole day's notice would keep the old key in use for too long.
    let not_before = if in_time <= latest.not_before + USED_MAX { in_time } else { now + NOTICE_MIN };
    publish(keys, kid, not_before, moment)
}

/// Under the first kid from this one on that is free. If none is, one goes that was published for a wrong time to come
/// and has sealed nothing; if there is none of those either, whoever publishes waits until the oldest is wiped.
fn publish(keys: &[FleetKeySpan], kid: Kid, not_before: Time, moment: &Moment) -> Option<Rotation> {
    let mut from_here = (0..KIDS).map(|i| Kid((kid.0 + i) % KIDS));
    if let Some(free) = from_here.find(|kid| keys.iter().all(|key| key.kid != *kid)) {
        return Some(Rotation::Publish(span(free, not_before)));
    }
    let is_to_come = |key: &&FleetKeySpan| key.not_before > moment.now && !moment.needs(key);
    let to_come = keys.iter().filter(is_to_come).max_by_key(|key| key.not_before);
    to_come.map(|key| Rotation::Wipe(key.kid))
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
            while let Some(step) = next_step(&keys, &Moment::of(now)) {
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
                while let Some(step) = next_step(&keys, &Moment::of(now)) {
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
                while let Some(step) = next_step(&keys, &Moment::of(Time::from_secs(hour * 3600))) {
                    if let Rotation::Publish(key) = step {
                        assert!(keys.iter().all(|other| other.kid != key.kid), "hour {hour}");
                    }
                    take(&mut keys, step);
                }
            }
        }
    }

    #[test]
    fn however_the_clock_is_set_there_is_a_key_at_once_and_none_of_a_living_session_is_wiped() {
        const HOUR_S: i64 = 3600;
        let day_s = 24 * HOUR_S;
        for by_s in [2, 2 * HOUR_S, 2 * day_s, 20 * 365 * day_s] {
            for by_s in [by_s, -by_s] {
                let mut keys = Vec::new();
                let (begin_s, mut sealed) = (1_700_000_000, Vec::new());
                // A week: the clock is wrong on the third day, and right again on the fourth.
                for minute in 0..7 * 24 * 60 {
                    let real_s = begin_s + minute * 60;
                    let is_wrong = (2 * day_s..3 * day_s).contains(&(real_s - begin_s));
                    let now = Time::from_secs(real_s + if is_wrong { by_s } else { 0 });
                    let is_just_right = (3 * day_s..3 * day_s + 25 * HOUR_S).contains(&(real_s - begin_s));
                    let lately_s: &[i64] = if is_wrong || is_just_right { &[0, by_s] } else { &[] };
                    let unset = lately_s.iter().map(|off_s| Time::from_secs(real_s + off_s)).collect();
                    let moment = Moment { now, unset };
                    while let Some(step) = next_step(&keys, &moment) {
                        take(&mut keys, step);
                    }
                    let key = sealing_key(keys.iter().copied(), now);
                    let key = key.unwrap_or_else(|| panic!("a key to seal under, {by_s} s, minute {minute}"));
                    assert!(keys.len() <= usize::from(KIDS), "{by_s} s, minute {minute}");
                    // Each hour a session begins, and lives for a day.
                    if minute % 60 == 0 {
                        sealed.push((real_s, key));
                    }
                    sealed.retain(|(at_s, _)| real_s - at_s < 23 * HOUR_S);
                    for (at_s, key) in &sealed {
                        assert!(keys.contains(key), "{by_s} s, minute {minute}, sealed {}", at_s - begin_s);
                    }
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
