//! What goes out and when: live fixes first, then backlog and what has to be sealed again, then pings. Each has a
//! `…_due`, which says when its turn is and `None` while it cannot be, so that waking the phone always changes something.

use std::time::Duration;

use protocol::datagram::payload::{self, Ping};
use protocol::datagram::{DatagramKind, PAYLOAD_LEN_MAX};
use protocol::session::SealFault;
use protocol::{Fix, FixNumber, PhoneState, Time};

use super::flight::{Asked, Way};
use super::queue::SentAs;
use super::ways::Destination;
use super::{Client, Transmit};

impl Client {
    /// When the fresh fixes should go, if they can.
    pub(super) fn live_due(&self) -> Option<Time> {
        let active = self.sessions.current()?;
        if !self.queue.has_fresh() || self.sessions.numbers_left() == 0 || self.is_full() {
            return None;
        }
        if self.must_ask() && !self.flight.has_room() && self.ways.in_fallback() {
            return None;
        }
        // A receiver that is a little early is not made to wait for the next fix.
        let spacing_ms = i64::from(active.interval_ms) * 3 / 4;
        let spacing_ms = if self.flushing { 0 } else { spacing_ms.max(i64::from(self.send_every_ms)) };
        let due = after(self.sent_live, spacing_ms);
        Some(due.max(self.sealable_from()))
    }

    /// When the next of the backlog, or of what has to be sealed again, should go, if it can.
    pub(super) fn backlog_due(&self) -> Option<Time> {
        if !self.flight.has_room() || self.is_full() {
            return None;
        }
        let new = (self.queue.has_backlog() && self.sessions.numbers_left() > 0).then_some(Time(i64::MIN));
        let ready = [new, self.queue.again_due()].into_iter().flatten().min()?;
        let spaced = after(self.sent_backlog, i64::from(self.send_every_ms));
        let held = self.hold_until.unwrap_or(Time(i64::MIN));
        Some(ready.max(spaced).max(held).max(self.sealable_from()))
    }

    /// When the phone has been silent for too long: on delivery, or while something waits to be settled.
    pub(super) fn ping_due(&self) -> Option<Time> {
        let waits = self.on_delivery || !self.queue.is_empty();
        if !waits || !self.flight.has_room() || self.is_full() {
            return None;
        }
        let silence_max = if self.flushing { FLUSH_ASKS_EVERY } else { self.config.silence_max };
        let due = after(self.sent_any, silence_max.as_millis() as i64);
        Some(due.max(self.sealable_from()))
    }

    fn sealable_from(&self) -> Time {
        let least = Time(i64::MIN);
        self.sealed_from.unwrap_or(least).max(self.ways.open_from().unwrap_or(least))
    }

    fn is_full(&self) -> bool {
        self.out.len() >= OUT_MAX
    }

    fn must_ask(&self) -> bool {
        let every = self.sessions.current().map_or(1, |active| active.ack_every);
        self.ask_next || self.since_asked + 1 >= every || self.flight.unanswered() > 0 || self.ways.in_fallback()
    }

    /// False if nothing could be sent.
    pub(super) fn send_live(&mut self, now: Time) -> bool {
        let Some(destination) = self.ways.destination() else { return false };
        let next = self.sessions.number_next();
        let fixes = self.queue.fresh_numbered(next, self.numbers_left());
        // With no room for another question a live fix goes without one: later acks will name it.
        let ask = self.must_ask() && self.flight.has_room();
        let kind = if ask { DatagramKind::FixesAckWanted } else { DatagramKind::Fixes };
        let lowest = self.queue.lowest_held().or(Some(next));
        let Some((count, sent)) = self.send_fixes(kind, lowest, &fixes, &destination, now) else { return false };
        self.queue.hold_fresh(next, count, sent);
        self.sessions.use_numbers(count);
        if count == fixes.len() {
            self.sent_live = Some(now);
        }
        true
    }

    /// False if nothing could be sent.
    pub(super) fn send_backlog(&mut self, now: Time) -> bool {
        let Some(destination) = self.ways.destination() else { return false };
        let next = self.sessions.number_next();
        let mut fixes = self.queue.again_ready(now, FIXES_TRIED);
        let again = fixes.len();
        if again < FIXES_TRIED {
            fixes.extend(self.queue.backlog_numbered(next, self.numbers_left().min(FIXES_TRIED - again)));
        }
        let lowest = self.queue.lowest_held().or(Some(next));
        let kind = DatagramKind::FixesAckWanted;
        let Some((count, sent)) = self.send_fixes(kind, lowest, &fixes, &destination, now) else { return false };
        let numbers: Vec<FixNumber> = fixes[..count.min(again)].iter().map(|(number, _)| *number).collect();
        self.queue.sealed_again(&numbers, sent);
        self.stats.fixes_sealed_again += numbers.len() as u64;
        let new = count.saturating_sub(again);
        self.queue.hold_backlog(next, new, sent);
        self.sessions.use_numbers(new);
        self.sent_backlog = Some(now);
        true
    }

    /// Seals as many as fit, and says how many those were and as what they went.
    fn send_fixes(
        &mut self,
        kind: DatagramKind,
        lowest: Option<FixNumber>,
        fixes: &[(FixNumber, Fix)],
        destination: &Destination,
        now: Time,
    ) -> Option<(usize, SentAs)> {
        let start_s = self.sessions.current()?.session.start_s();
        let mut text = Vec::with_capacity(PAYLOAD_LEN_MAX);
        let lowest = kind.wants_answer().then_some(lowest);
        let count = payload::encode_fixes(&mut text, start_s, lowest, fixes, PAYLOAD_LEN_MAX).count;
        if count == 0 {
            return None;
        }
        let numbers = fixes[..count].iter().map(|(number, _)| *number).collect();
        let sent = self.send(kind, &text, numbers, destination, now)?;
        self.stats.fixes_sealed += count as u64;
        Some((count, sent))
    }

    pub(super) fn send_ping(&mut self, destination: &Destination, now: Time) {
        let mut state = self.state;
        if self.slow {
            state.0 |= PhoneState::STANDING;
        }
        if self.queue.backlog_len() > QUEUE_DEEP_FROM {
            state.0 |= PhoneState::QUEUE_DEEP;
        }
        let mut text = Vec::new();
        Ping { lowest_held: self.queue.lowest_held(), state }.encode(&mut text);
        if self.send(DatagramKind::Ping, &text, Vec::new(), destination, now).is_some() {
            self.stats.pings += 1;
        }
    }

    /// Seals and queues one datagram.
    fn send(
        &mut self,
        kind: DatagramKind,
        text: &[u8],
        numbers: Vec<FixNumber>,
        destination: &Destination,
        now: Time,
    ) -> Option<SentAs> {
        let active = self.sessions.current_mut()?;
        let generation = active.generation;
        let mut bytes = Vec::new();
        let counter = match active.session.seal(kind, text, now, &mut bytes) {
            Ok(sealed) => sealed.counter,
            Err(SealFault::TooSoon(until)) => {
                self.sealed_from = Some(until);
                return None;
            }
            Err(SealFault::Over) => {
                self.sessions.close(now);
                return None;
            }
            Err(SealFault::TooLarge) => return None,
        };
        self.sealed_from = None;
        let edge = destination.edge();
        let way = self.queue_out(destination, bytes);
        if kind.wants_answer() {
            self.ask_next = false;
            self.since_asked = 0;
            self.flight.push(Asked::new(generation, counter, edge, way, now, numbers));
        } else {
            self.since_asked += 1;
        }
        self.sent_any = Some(now);
        Some(SentAs { at: now, edge, generation, counter })
    }

    fn queue_out(&mut self, destination: &Destination, bytes: Vec<u8>) -> Way {
        match destination {
            Destination::Udp { address, .. } => {
                self.stats.datagrams_udp += 1;
                self.out.push_back(Transmit::Udp { to: *address, bytes });
                Way::Udp
            }
            Destination::Https { https, .. } => {
                self.stats.datagrams_https += 1;
                let request = self.request_next;
                self.request_next += 1;
                self.out.push_back(Transmit::Https { request, url: https.url.clone(), pin: https.pin, bytes });
                Way::Https(request)
            }
        }
    }

    fn numbers_left(&self) -> usize {
        usize::try_from(self.sessions.numbers_left()).unwrap_or(usize::MAX).min(FIXES_TRIED)
    }
}

fn after(last: Option<Time>, wait_ms: i64) -> Time {
    last.map_or(Time(i64::MIN), |last| Time(last.0.saturating_add(wait_ms)))
}

/// How many fixes are offered to the encoder: more than a datagram of a moving phone ever holds.
const FIXES_TRIED: usize = 400;
const OUT_MAX: usize = 32;
const FLUSH_ASKS_EVERY: Duration = Duration::from_secs(1);
const QUEUE_DEEP_FROM: usize = 1000;
