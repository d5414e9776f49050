//! When a connection has had its time: the rules, without a socket or a clock. The connection's `GuardedIo` tells it what
//! happens and what time it is.
//!
//! A connection may be quiet between two requests for `idle_max`; a request's head must come within `head_max` of its
//! first byte, and the first one within `head_max` of the connection; and when the peer takes nothing of what we have to
//! say for `stalled_max`, it is over, upgraded or not.

use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub head_max: Duration,
    pub idle_max: Duration,
    pub stalled_max: Duration,
}

/// Why a connection is ended by us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Expiry {
    /// No request came at all.
    NoRequest,
    /// A request's head began and did not end.
    SlowHead,
    /// Nothing was asked for long.
    Idle,
    /// The peer took nothing of what was sent.
    Stalled,
}

#[derive(Clone, Debug)]
pub(super) struct Deadlines {
    times: Times,
    /// Requests that have begun and whose answers have not ended.
    under_way: u32,
    has_begun: bool,
    /// Several requests at once: between two of them come pings and windows, so bytes are no beginning of a head.
    is_http2: bool,
    /// Carries something else than HTTP from here on: only what is sent is watched.
    is_upgraded: bool,
    quiet_since: Instant,
    head_since: Option<Instant>,
    blocked_since: Option<Instant>,
}

impl Deadlines {
    pub fn new(times: Times, now: Instant) -> Self {
        Deadlines {
            times,
            under_way: 0,
            has_begun: false,
            is_http2: false,
            is_upgraded: false,
            quiet_since: now,
            head_since: None,
            blocked_since: None,
        }
    }

    pub fn handle_read(&mut self, now: Instant) {
        if self.under_way == 0 && !self.is_upgraded && !self.is_http2 {
            self.head_since.get_or_insert(now);
        }
    }

    /// The kernel took some of what was to be sent, or there is nothing to send.
    pub fn handle_written(&mut self) {
        self.blocked_since = None;
    }

    /// The kernel takes no more: the peer must take something first.
    pub fn handle_blocked(&mut self, now: Instant) {
        self.blocked_since.get_or_insert(now);
    }

    pub fn handle_request(&mut self, is_http2: bool) {
        self.under_way += 1;
        self.has_begun = true;
        self.is_http2 = is_http2;
        self.head_since = None;
    }

    pub fn handle_answered(&mut self, now: Instant) {
        self.under_way = self.under_way.saturating_sub(1);
        if self.under_way == 0 {
            self.quiet_since = now;
        }
    }

    pub fn handle_upgrade(&mut self) {
        self.is_upgraded = true;
    }

    /// When to look again, at the latest. While a request is under way its end may start the rule of idleness without
    /// anybody polling the connection, so it is looked at now and then.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let blocked = self.blocked_since.map(|since| since + self.times.stalled_max);
        if self.is_upgraded {
            return blocked;
        }
        let quiet = match (self.under_way, self.is_http2) {
            (0, _) => Some(self.quiet_until().0),
            (_, true) => Some(now + self.times.idle_max),
            (_, false) => None,
        };
        [blocked, quiet].into_iter().flatten().min()
    }

    pub fn expired(&self, now: Instant) -> Option<Expiry> {
        if self.blocked_since.is_some_and(|since| now >= since + self.times.stalled_max) {
            return Some(Expiry::Stalled);
        }
        if self.under_way > 0 || self.is_upgraded {
            return None;
        }
        let (until, expiry) = self.quiet_until();
        (now >= until).then_some(expiry)
    }

    fn quiet_until(&self) -> (Instant, Expiry) {
        match (self.head_since, self.has_begun) {
            (Some(since), true) => (since + self.times.head_max, Expiry::SlowHead),
            // From the connection on: bytes that are no request do not give more time.
            (Some(_), false) => (self.quiet_since + self.times.head_max, Expiry::SlowHead),
            (None, true) => (self.quiet_since + self.times.idle_max, Expiry::Idle),
            (None, false) => (self.quiet_since + self.times.head_max, Expiry::NoRequest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: Times = Times {
        head_max: Duration::from_secs(10),
        idle_max: Duration::from_secs(60),
        stalled_max: Duration::from_secs(11),
    };

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn who_asks_nothing_and_who_never_ends_his_head_are_given_up_after_ten_seconds() {
        let start = Instant::now();
        let silent = Deadlines::new(TIMES, start);
        let mut slow = Deadlines::new(TIMES, start);
        (0..10).for_each(|second| slow.handle_read(after(start, second)));

        assert_eq!((silent.expired(after(start, 9)), slow.expired(after(start, 9))), (None, None));
        assert_eq!(silent.expired(after(start, 10)), Some(Expiry::NoRequest));
        assert_eq!(slow.expired(after(start, 10)), Some(Expiry::SlowHead));
    }

    #[test]
    fn between_two_requests_there_is_a_minute_and_for_the_second_head_ten_seconds() {
        let start = Instant::now();
        let mut connection = Deadlines::new(TIMES, start);
        connection.handle_request(false);
        assert_eq!(connection.expired(after(start, 1000)), None, "a stream may last");
        connection.handle_answered(after(start, 1000));

        assert_eq!(connection.expired(after(start, 1059)), None);
        assert_eq!(connection.poll_timeout(after(start, 1000)), Some(after(start, 1060)));
        assert_eq!(connection.expired(after(start, 1060)), Some(Expiry::Idle));

        connection.handle_read(after(start, 1030));
        assert_eq!(connection.expired(after(start, 1039)), None);
        assert_eq!(connection.expired(after(start, 1040)), Some(Expiry::SlowHead));
    }

    #[test]
    fn pings_on_http2_neither_keep_an_idle_connection_nor_end_one() {
        let start = Instant::now();
        let mut connection = Deadlines::new(TIMES, start);
        connection.handle_request(true);
        connection.handle_answered(after(start, 1));

        (2..60).for_each(|second| connection.handle_read(after(start, second)));

        assert_eq!(connection.expired(after(start, 60)), None);
        assert_eq!(connection.expired(after(start, 61)), Some(Expiry::Idle));
    }

    #[test]
    fn who_takes_nothing_is_given_up_on_every_protocol_and_who_takes_something_is_not() {
        let start = Instant::now();
        for is_upgraded in [false, true] {
            let mut connection = Deadlines::new(TIMES, start);
            connection.handle_request(false);
            if is_upgraded {
                connection.handle_upgrade();
            }
            connection.handle_blocked(start);
            connection.handle_blocked(after(start, 5));
            assert_eq!(connection.expired(after(start, 11)), Some(Expiry::Stalled));

            connection.handle_written();

            assert_eq!(connection.expired(after(start, 1000)), None);
        }
    }
}
