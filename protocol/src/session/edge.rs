//! The edge's end: opens what phones send and seals what edges answer. One per UDP thread, which owns it alone.
//!
//! The checks go from cheap to dear, so that garbage is dropped for the price of one AES block. A forged datagram
//! changes nothing and is never answered. An accepted one costs no allocation of ours: it is opened in place and
//! decoded into a buffer that is used again; a session that is warm costs one look at two cache lines.

use std::collections::HashMap;

use super::fleet_key::{FleetKey, FleetKeys, SessionKeys};
use super::record::{RECORD_LEN, SessionRecord};
use super::sealer::AnswerSealer;
use super::warm::{FRESH_S, SessionIdentity, SlotNumber, WarmSession, WarmSessions};
use crate::datagram::answer::{Answer, AnswerSays, Control};
use crate::datagram::payload::{self, FIXES_PER_DATAGRAM_MAX, Ping};
use crate::datagram::ranges::NumberRanges;
use crate::datagram::{
    DATAGRAM_LEN_MAX, DATAGRAM_LEN_MIN, DatagramKind, FirstByte, HEADER_LEN, Kid, SID_LEN, TICKS_PER_S,
};
use crate::fix::Fix;
use crate::id::{DeviceKey, FixNumber};
use crate::time::Time;

pub use super::sealer::SealedAnswer;

/// Bounds of one thread's sessions.
#[derive(Clone, Copy, Debug)]
pub struct EdgeConfig {
    /// How many sessions are kept warm.
    pub sessions_max: usize,
    /// What a device may send at once, in fixes: a full queue after a day in a tunnel.
    pub bucket_fixes: u16,
    /// What it may send for good, in fixes per second.
    pub refill_fixes_per_s: u16,
}

impl Default for EdgeConfig {
    fn default() -> Self {
        EdgeConfig { sessions_max: 1 << 20, bucket_fixes: 20_000, refill_fixes_per_s: 20 }
    }
}

/// Why a datagram was refused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum RefuseReason {
    TooShort,
    TooLong,
    /// Not the first byte of anything a phone sends.
    FirstByte,
    /// Sealed under a fleet key that is not held here.
    UnknownKid,
    /// The session id opens to no record.
    NoSession,
    Expired,
    Revoked,
    /// The counter is more than 128 s away from now.
    Stale,
    Forged,
    /// The counter was used before, or is too old to tell.
    Replayed,
    /// The device has sent more than its share.
    RateLimited,
    /// Authentic, but not a payload.
    Malformed,
}

impl RefuseReason {
    pub const ALL: [RefuseReason; 12] = [
        RefuseReason::TooShort,
        RefuseReason::TooLong,
        RefuseReason::FirstByte,
        RefuseReason::UnknownKid,
        RefuseReason::NoSession,
        RefuseReason::Expired,
        RefuseReason::Revoked,
        RefuseReason::Stale,
        RefuseReason::Forged,
        RefuseReason::Replayed,
        RefuseReason::RateLimited,
        RefuseReason::Malformed,
    ];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            RefuseReason::TooShort => "too_short",
            RefuseReason::TooLong => "too_long",
            RefuseReason::FirstByte => "first_byte",
            RefuseReason::UnknownKid => "unknown_kid",
            RefuseReason::NoSession => "no_session",
            RefuseReason::Expired => "expired",
            RefuseReason::Revoked => "revoked",
            RefuseReason::Stale => "stale",
            RefuseReason::Forged => "forged",
            RefuseReason::Replayed => "replayed",
            RefuseReason::RateLimited => "rate_limited",
            RefuseReason::Malformed => "malformed",
        }
    }
}

/// Who sent an accepted datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opened {
    pub device: DeviceKey,
    pub session_start_s: u32,
    pub kind: DatagramKind,
    pub session: SessionRef,
}

/// What a datagram said. Made once per thread and used for every datagram.
#[derive(Debug)]
pub struct OpenedDatagram {
    pub fixes: Vec<(FixNumber, Fix)>,
    pub ping: Option<Ping>,
    /// In the types that want an answer: everything below this is settled.
    pub lowest_held: Option<FixNumber>,
    /// Whom to answer, if an answer is wanted. Set for a rate-limited datagram too, whose answer is control.
    pub answer_to: Option<AnswerTo>,
}

impl Default for OpenedDatagram {
    fn default() -> Self {
        OpenedDatagram {
            fixes: Vec::with_capacity(FIXES_PER_DATAGRAM_MAX),
            ping: None,
            lowest_held: None,
            answer_to: None,
        }
    }
}

impl OpenedDatagram {
    fn clear(&mut self) {
        self.fixes.clear();
        self.ping = None;
        self.lowest_held = None;
        self.answer_to = None;
    }

    /// The numbers of its fixes, as far as four runs can name them.
    pub fn ranges(&self) -> NumberRanges {
        let mut ranges = NumberRanges::default();
        for (number, _) in &self.fixes {
            ranges.insert_number(*number);
        }
        ranges
    }
}

/// A session at this thread, to come back to once its fixes are durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionRef {
    kid: Kid,
    slot: SlotNumber,
    record: [u8; RECORD_LEN],
}

/// A datagram that wants an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AnswerTo {
    session: SessionRef,
    counter_low: u16,
}

impl AnswerTo {
    pub fn session(&self) -> &SessionRef {
        &self.session
    }
}

/// All sessions of one edge thread.
#[derive(Debug)]
pub struct EdgeSessions {
    config: EdgeConfig,
    keys: FleetKeys,
    warm: WarmSessions,
    /// With the time of the revocation: after the longest lifetime no session of theirs can be left.
    revoked: HashMap<DeviceKey, Time>,
    /// How far the clock would be from now if it had not been set. Sessions that began before it was go by that.
    unset_ms: Vec<i64>,
    sealer: AnswerSealer,
}

impl EdgeSessions {
    pub fn new(config: EdgeConfig, keys: FleetKeys) -> Self {
        Self::with_sealer(config, keys, AnswerSealer::from_system())
    }

    pub fn with_sealer(config: EdgeConfig, keys: FleetKeys, sealer: AnswerSealer) -> Self {
        let warm = WarmSessions::new(config.sessions_max);
        EdgeSessions { config, keys, warm, revoked: HashMap::new(), unset_ms: Vec::new(), sealer }
    }

    pub fn set_keys(&mut self, keys: FleetKeys) {
        self.keys = keys;
    }

    /// From here on nothing of this device is accepted.
    pub fn revoke(&mut self, device: DeviceKey, at: Time) {
        self.revoked.insert(device, at);
    }

    pub fn warm(&self) -> &WarmSessions {
        &self.warm
    }

    /// The clock was set, so that `now` is another from here on. Buckets and revocations go on as before.
    pub fn handle_step(&mut self, by_ms: i64) {
        self.warm.handle_step(by_ms / 1000);
        self.revoked.values_mut().for_each(|at| at.0 = at.0.saturating_add(by_ms));
    }

    /// What the clock would show, beside `now`, if it had not been set within the last day. A phone's counter goes by
    /// the clock as it was when its session began, so a datagram is fresh if it is so by one of these.
    pub fn set_unset(&mut self, unset: impl IntoIterator<Item = Time>, now: Time) {
        self.unset_ms.clear();
        self.unset_ms.extend(unset.into_iter().map(|time| time.millis_since(now)));
    }

    /// Whether it holds now, or would if the clock had not been set.
    fn at_some_time(&self, now: Time, what: impl Fn(Time) -> bool) -> bool {
        what(now) || self.unset_ms.iter().any(|ms| what(Time(now.0.saturating_add(*ms))))
    }

    /// Opens a datagram in place. What it said is in `out`, which is cleared first.
    pub fn handle_datagram(
        &mut self,
        now: Time,
        bytes: &mut [u8],
        out: &mut OpenedDatagram,
    ) -> Result<Opened, RefuseReason> {
        out.clear();
        let header = self.check_header(now, bytes)?;
        let fleet_key = self.keys.of(header.kid).ok_or(RefuseReason::UnknownKid)?;
        let found = self.warm.find(&header.identity);
        let cold_keys = match found {
            Some(_) => None,
            None => Some(fleet_key.session_keys(&header.record_bytes)),
        };
        let key = match (found, &cold_keys) {
            (Some(slot), _) => self.warm.session(slot).phone_to_edge(),
            (None, Some(keys)) => keys.phone_to_edge,
            (None, None) => return Err(RefuseReason::NoSession),
        };
        let (associated, sealed) = bytes.split_at_mut(HEADER_LEN);
        let nonce = key.datagram_nonce(header.counter);
        let payload = key.open(header.record.suite, nonce, associated, sealed).ok_or(RefuseReason::Forged)?;

        let slot = self.note_counter(now, &header, found, cold_keys)?;
        let session = SessionRef { kid: header.kid, slot, record: header.record_bytes };
        if header.kind.wants_answer() {
            out.answer_to = Some(AnswerTo { session, counter_low: header.counter as u16 });
        }
        let warm = self.warm.session_mut(slot);
        warm.refill(now, self.config.refill_fixes_per_s, self.config.bucket_fixes);
        if warm.tokens() == 0 {
            return Err(RefuseReason::RateLimited);
        }
        read_payload(&header, payload, out)?;
        if !warm.take_tokens(out.fixes.len().max(1) as u16) {
            out.fixes.clear();
            return Err(RefuseReason::RateLimited);
        }
        Ok(Opened { device: header.record.device, session_start_s: header.record.start_s, kind: header.kind, session })
    }

    /// Says that these numbers of this session are durable in the log. The next ack will name them.
    pub fn handle_durable(&mut self, session: &SessionRef, ranges: &NumberRanges) {
        let identity = SessionIdentity::of(&session.record);
        if let Some(warm) = self.warm.session_if(session.slot, &identity) {
            warm.note_durable(ranges);
        }
    }

    /// An ack: `ranges`, durable in the log, and what became durable since the last ack.
    pub fn seal_ack(&mut self, to: &AnswerTo, ranges: &NumberRanges) -> Option<SealedAnswer> {
        let identity = SessionIdentity::of(&to.session.record);
        let named = match self.warm.session_if(to.session.slot, &identity) {
            Some(warm) => warm.take_unreported(ranges),
            None => *ranges,
        };
        self.seal(to, AnswerSays::Ack(named))
    }

    pub fn seal_control(&mut self, to: &AnswerTo, control: Control) -> Option<SealedAnswer> {
        self.seal(to, AnswerSays::Control(control))
    }

    /// When to call `handle_timeout` again.
    pub fn poll_timeout(&self, now: Time) -> Time {
        now + SWEEP_EVERY
    }

    /// Forgets some of the sessions that have been silent for long, and revocations that no session can outlive.
    pub fn handle_timeout(&mut self, now: Time) {
        let earliest_ms = self.unset_ms.iter().copied().min().unwrap_or(0).min(0);
        self.warm.sweep((now.0.saturating_add(earliest_ms)).div_euclid(1000) - SILENT_FOR_S, SWEEP_SLOTS);
        self.revoked.retain(|_, at| now.millis_since(*at) < REVOCATION_KEPT_MS);
    }

    fn seal(&mut self, to: &AnswerTo, says: AnswerSays) -> Option<SealedAnswer> {
        let record = SessionRecord::from_bytes(&to.session.record)?;
        let keys = self.keys.of(to.session.kid)?.session_keys(&to.session.record);
        let answer = Answer { counter_low: to.counter_low, says };
        Some(self.sealer.seal(to.session.kid, record.suite, &keys.edge_to_phone, &answer))
    }

    /// Everything that needs no key but the fleet's.
    fn check_header(&self, now: Time, bytes: &[u8]) -> Result<Header, RefuseReason> {
        if bytes.len() < DATAGRAM_LEN_MIN {
            return Err(RefuseReason::TooShort);
        }
        if bytes.len() > DATAGRAM_LEN_MAX {
            return Err(RefuseReason::TooLong);
        }
        let first = FirstByte::from_byte(bytes[0]).ok_or(RefuseReason::FirstByte)?;
        match first.kind {
            DatagramKind::Fixes | DatagramKind::FixesAckWanted | DatagramKind::Ping => {}
            DatagramKind::Ack | DatagramKind::Control => return Err(RefuseReason::FirstByte),
        }
        let fleet_key = self.keys.of(first.kid).ok_or(RefuseReason::UnknownKid)?;
        let mut sid = [0; SID_LEN];
        sid.copy_from_slice(&bytes[1..17]);
        let record_bytes = fleet_key.open_sid(&sid);
        let record = SessionRecord::from_bytes(&record_bytes).ok_or(RefuseReason::NoSession)?;
        if !self.at_some_time(now, |now| now < record.end()) {
            return Err(RefuseReason::Expired);
        }
        if !self.revoked.is_empty() && self.revoked.contains_key(&record.device) {
            return Err(RefuseReason::Revoked);
        }
        let counter = unmask(fleet_key, &sid, &bytes[17..21]);
        let is_fresh = |now: Time| {
            let ticks_now = now.millis_since(record.start()).saturating_mul(TICKS_PER_S) / 1000;
            now < record.end() && (i64::from(counter) - ticks_now).abs() <= FRESH_S * TICKS_PER_S
        };
        if !self.at_some_time(now, is_fresh) {
            return Err(RefuseReason::Stale);
        }
        let identity = SessionIdentity::of(&record_bytes);
        Ok(Header { kid: first.kid, kind: first.kind, record_bytes, record, identity, counter })
    }

    /// The replay check; makes the session warm if it was not.
    fn note_counter(
        &mut self,
        now: Time,
        header: &Header,
        found: Option<SlotNumber>,
        cold_keys: Option<SessionKeys>,
    ) -> Result<SlotNumber, RefuseReason> {
        if let Some(slot) = found {
            let fresh = self.warm.session_mut(slot).window.accept(header.counter);
            return if fresh { Ok(slot) } else { Err(RefuseReason::Replayed) };
        }
        let keys = cold_keys.ok_or(RefuseReason::NoSession)?;
        // The bucket belongs to the device, so a new session does not fill it.
        let tokens = match self.warm.find_device(&header.identity) {
            Some(older) => self.warm.session(older).tokens(),
            None => self.config.bucket_fixes,
        };
        let session = WarmSession::starting_with(header.identity, &keys, header.counter, tokens, now);
        Ok(self.warm.insert(session, now))
    }
}

/// What the clear part of a datagram says.
struct Header {
    kid: Kid,
    kind: DatagramKind,
    record_bytes: [u8; RECORD_LEN],
    record: SessionRecord,
    identity: SessionIdentity,
    counter: u32,
}

fn read_payload(header: &Header, payload: &[u8], out: &mut OpenedDatagram) -> Result<(), RefuseReason> {
    let malformed = |_| RefuseReason::Malformed;
    let result = match header.kind {
        DatagramKind::Fixes | DatagramKind::FixesAckWanted => {
            let ack_wanted = header.kind.wants_answer();
            payload::decode_fixes(payload, header.record.start_s, ack_wanted, &mut out.fixes)
                .map(|lowest| out.lowest_held = lowest)
        }
        DatagramKind::Ping => Ping::decode(payload).map(|ping| {
            out.lowest_held = ping.lowest_held;
            out.ping = Some(ping);
        }),
        DatagramKind::Ack | DatagramKind::Control => return Err(RefuseReason::FirstByte),
    };
    if result.is_err() {
        // Our own phones never send this, so there is nobody to help by answering.
        out.answer_to = None;
    }
    result.map_err(malformed)
}

fn unmask(fleet_key: &FleetKey, sid: &[u8; SID_LEN], masked: &[u8]) -> u32 {
    let mut counter = fleet_key.mask(sid);
    counter.iter_mut().zip(masked).for_each(|(c, m)| *c ^= m);
    u32::from_be_bytes(counter)
}

const SWEEP_EVERY: std::time::Duration = std::time::Duration::from_secs(1);
/// 4,096 a second see a million sessions in four minutes.
const SWEEP_SLOTS: usize = 4096;
/// Long past freshness, and long enough for most of a bucket to fill again.
const SILENT_FOR_S: i64 = 1800;
/// The longest lifetime, and what clocks may differ.
const REVOCATION_KEPT_MS: i64 = 25 * 3_600_000;
