//! The phone's end of a session: the counter, the ids it goes by, sealing, and the answers it will listen to.
//!
//! What to send and when to send it again is the client's business (crate `phone`); here is only what keeps a nonce
//! from being used twice and an answer from being believed twice.

use std::collections::VecDeque;
use std::time::Duration;

use super::grant::{AliasGrant, GrantFault, SessionGrant};
use super::record::{ALIAS_COUNT, Lifetime};
use super::window::COUNTER_MAX;
use crate::datagram::answer::Answer;
use crate::datagram::{
    ANSWER_HEADER_LEN, ANSWER_LEN_MAX, AeadKey, DatagramKind, FirstByte, HEADER_LEN, Kid, PAYLOAD_LEN_MAX, Suite,
    TAG_LEN, TICKS_PER_S,
};
use crate::time::Time;

/// A session in use by a phone. Lives in memory only: a starting app takes a new one.
#[derive(Debug)]
pub struct PhoneSession {
    suite: Suite,
    kid: Kid,
    aliases: Vec<AliasGrant>,
    alias: usize,
    alias_since: Time,
    phone_to_edge: AeadKey,
    edge_to_phone: AeadKey,
    start_s: u32,
    /// What the server's clock said, and what ours did then.
    anchor: (Time, Time),
    lifetime_ms: i64,
    renew_after_ms: i64,
    counter_next: u32,
    /// Counters of the newest datagrams that want an answer and have none.
    waiting: VecDeque<u32>,
}

/// One sealed datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sealed {
    pub counter: u32,
}

/// Why nothing can be sealed at this moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SealFault {
    #[error("counter is 64 s ahead of the clock until {0}")]
    TooSoon(Time),
    #[error("session is over")]
    Over,
    #[error("payload is larger than a datagram holds")]
    TooLarge,
}

/// Why an answer is not believed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AnswerFault {
    /// Not sealed by an edge for this session.
    NotOurs,
    /// It answers none of the newest 64 datagrams that want an answer, or one that has been answered.
    NotAsked,
}

impl PhoneSession {
    /// `now` is by the phone's clock, which must run evenly, through sleep too; it need not be right.
    pub fn new(grant: &SessionGrant, now: Time) -> Result<Self, GrantFault> {
        let quarters = u8::try_from(grant.lifetime_s / 900).map_err(|_| GrantFault::Lifetime)?;
        let lifetime = Lifetime::new(quarters).ok_or(GrantFault::Lifetime)?;
        if grant.aliases.is_empty() || grant.aliases.len() > usize::from(ALIAS_COUNT) {
            return Err(GrantFault::NoAliases);
        }
        if grant.numbers_from == 0 {
            return Err(GrantFault::Numbers);
        }
        Ok(PhoneSession {
            suite: grant.suite,
            kid: grant.checked_kid()?,
            aliases: grant.aliases.clone(),
            alias: 0,
            alias_since: now,
            phone_to_edge: grant.phone_to_edge.aead_key(grant.suite)?,
            edge_to_phone: grant.edge_to_phone.aead_key(grant.suite)?,
            start_s: grant.start,
            anchor: (Time(grant.server_time_ms), now),
            lifetime_ms: lifetime.as_secs() * 1000,
            renew_after_ms: i64::from(grant.renew_after_s) * 1000,
            counter_next: 0,
            waiting: VecDeque::with_capacity(WAITING_MAX),
        })
    }

    pub fn start_s(&self) -> u32 {
        self.start_s
    }

    /// What the server's clock should say.
    pub fn server_time(&self, now: Time) -> Time {
        Time(self.anchor.0.0.saturating_add(now.millis_since(self.anchor.1).max(0)))
    }

    /// Goes by the next id: on every network change, and every 15 minutes. False if there is none left.
    pub fn change_alias(&mut self, now: Time) -> bool {
        self.alias_since = now;
        if self.alias + 1 >= self.aliases.len() {
            return false;
        }
        self.alias += 1;
        true
    }

    pub fn alias_due(&self) -> Time {
        self.alias_since + ALIAS_EVERY
    }

    /// When a new session should be taken, by the phone's clock: at half-life, or at once if few ids are left.
    pub fn renew_due(&self) -> Time {
        if self.aliases.len() - self.alias - 1 < ALIASES_LEFT_MIN {
            return Time(i64::MIN);
        }
        self.local(self.renew_after_ms)
    }

    /// When the session ends, by the phone's clock.
    pub fn end(&self) -> Time {
        self.local(self.lifetime_ms)
    }

    /// Seals `payload` into `out`, which is cleared first.
    pub fn seal(
        &mut self,
        kind: DatagramKind,
        payload: &[u8],
        now: Time,
        out: &mut Vec<u8>,
    ) -> Result<Sealed, SealFault> {
        if payload.len() > PAYLOAD_LEN_MAX {
            return Err(SealFault::TooLarge);
        }
        let counter = self.take_counter(now)?;
        let alias = &self.aliases[self.alias];
        out.clear();
        out.push(FirstByte { kid: self.kid, kind }.to_byte());
        out.extend_from_slice(&alias.sid);
        out.extend(counter.to_be_bytes().iter().zip(alias.mask).map(|(c, m)| c ^ m));
        out.extend_from_slice(payload);
        let (header, text) = out.split_at_mut(HEADER_LEN);
        let tag = self.phone_to_edge.seal(self.suite, self.phone_to_edge.datagram_nonce(counter), header, text);
        out.extend_from_slice(&tag);
        if kind.wants_answer() {
            if self.waiting.len() == WAITING_MAX {
                self.waiting.pop_front();
            }
            self.waiting.push_back(counter);
        }
        Ok(Sealed { counter })
    }

    /// Opens an answer and gives the counter of the datagram it answers, which is then answered for good.
    pub fn open_answer(&mut self, bytes: &[u8]) -> Result<(u32, Answer), AnswerFault> {
        let answer = self.decrypt_answer(bytes).ok_or(AnswerFault::NotOurs)?;
        let at = self.waiting.iter().rposition(|counter| *counter as u16 == answer.counter_low);
        let counter = at.and_then(|at| self.waiting.remove(at)).ok_or(AnswerFault::NotAsked)?;
        Ok((counter, answer))
    }

    fn decrypt_answer(&self, bytes: &[u8]) -> Option<Answer> {
        if bytes.len() < ANSWER_HEADER_LEN + TAG_LEN || bytes.len() > ANSWER_LEN_MAX {
            return None;
        }
        let first = FirstByte::from_byte(bytes[0])?;
        if first.kid != self.kid {
            return None;
        }
        let (header, sealed) = bytes.split_at(ANSWER_HEADER_LEN);
        let random = [header[1], header[2], header[3], header[4]];
        let count = u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
        let mut text = [0; ANSWER_LEN_MAX];
        let text = &mut text[..sealed.len()];
        text.copy_from_slice(sealed);
        let nonce = self.edge_to_phone.answer_nonce(random, count);
        let payload = self.edge_to_phone.open(self.suite, nonce, header, text)?;
        match first.kind {
            DatagramKind::Ack => Answer::decode_ack(payload),
            DatagramKind::Control => Answer::decode_control(payload),
            DatagramKind::Fixes | DatagramKind::FixesAckWanted | DatagramKind::Ping => None,
        }
    }

    /// Strictly rising, and at most 64 s ahead of the clock.
    fn take_counter(&mut self, now: Time) -> Result<u32, SealFault> {
        let since_start_ms = self.server_time(now).millis_since(Time::from_secs(i64::from(self.start_s)));
        if since_start_ms >= self.lifetime_ms {
            return Err(SealFault::Over);
        }
        let ticks = u32::try_from(since_start_ms.max(0) * TICKS_PER_S / 1000).unwrap_or(COUNTER_MAX);
        let counter = self.counter_next.max(ticks);
        if counter - ticks > AHEAD_TICKS_MAX {
            let wait_ms = (i64::from(counter - ticks - AHEAD_TICKS_MAX) * 1000 + TICKS_PER_S - 1) / TICKS_PER_S;
            return Err(SealFault::TooSoon(now + Duration::from_millis(wait_ms as u64)));
        }
        self.counter_next = counter + 1;
        Ok(counter)
    }

    /// A moment so long after session start, by the phone's clock.
    fn local(&self, after_start_ms: i64) -> Time {
        let server = Time::from_secs(i64::from(self.start_s)).0.saturating_add(after_start_ms);
        Time(self.anchor.1.0.saturating_add(server.saturating_sub(self.anchor.0.0)))
    }
}

pub const ALIAS_EVERY: Duration = Duration::from_secs(15 * 60);
const ALIASES_LEFT_MIN: usize = 4;
const WAITING_MAX: usize = 64;
/// 64 s.
const AHEAD_TICKS_MAX: u32 = 64 * TICKS_PER_S as u32;
