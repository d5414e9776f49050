//! The session in use, the one before it, and when to ask for the next.

use std::time::Duration;

use protocol::datagram::Answer;
use protocol::session::grant::NUMBERS_PER_SESSION;
use protocol::session::{AnswerFault, GrantFault, PhoneSession, SessionGrant};
use protocol::{FixNumber, Time};

/// One session and what came with it.
#[derive(Debug)]
pub struct Active {
    pub session: PhoneSession,
    pub generation: u32,
    pub ack_every: u32,
    pub interval_ms: u32,
}

#[derive(Debug, Default)]
pub struct Sessions {
    current: Option<Active>,
    /// Answers to its datagrams are still believed, until then.
    previous: Option<(Active, Time)>,
    generation: u32,
    number_next: u64,
    numbers_end: u64,
    renew_now: bool,
    /// A new session has been asked for and neither come nor failed.
    asked: bool,
    retry_at: Option<Time>,
    failures: u32,
    /// No edge answers, perhaps because none knows the session: another is asked for then.
    silence_renew_at: Option<Time>,
    /// Sessions asked for because of silence since anything was last answered.
    silence_renewals: u32,
}

impl Sessions {
    pub fn current(&self) -> Option<&Active> {
        self.current.as_ref()
    }

    pub fn current_mut(&mut self) -> Option<&mut Active> {
        self.current.as_mut()
    }

    /// The number that the next fix never sealed before gets.
    pub fn number_next(&self) -> FixNumber {
        FixNumber(self.number_next)
    }

    pub fn numbers_left(&self) -> u64 {
        self.numbers_end.saturating_sub(self.number_next)
    }

    pub fn use_numbers(&mut self, count: usize) {
        self.number_next += count as u64;
    }

    pub fn handle_grant(&mut self, grant: &SessionGrant, now: Time) -> Result<(), GrantFault> {
        let session = PhoneSession::new(grant, now)?;
        self.close(now);
        self.generation += 1;
        self.current = Some(Active {
            session,
            generation: self.generation,
            ack_every: grant.ack_every.clamp(1, ACK_EVERY_MAX),
            interval_ms: grant.interval_ms.min(INTERVAL_MS_MAX),
        });
        // Never below what was given out before: a registry that forgot must not make us use a number twice.
        self.number_next = grant.numbers_from.max(self.number_next);
        self.numbers_end = grant.numbers_from.saturating_add(NUMBERS_PER_SESSION);
        (self.renew_now, self.asked, self.failures) = (false, false, 0);
        self.retry_at = Some(now + RENEWALS_APART);
        if self.silence_renew_at.take().is_some() {
            self.silence_renewals = self.silence_renewals.saturating_add(1);
        }
        Ok(())
    }

    /// Nothing answers, whichever way is taken. The edges may have lost the key of this session, or the clock may have
    /// stood still while the phone slept; only a new session helps then. It may also be the network or every edge, and
    /// a session is work for the API, so each next one waits twice as long.
    pub fn handle_silence(&mut self, jitter: f64, now: Time) {
        if self.silence_renew_at.is_none() {
            let wait = (SILENCE_RENEW_MIN * (1 << self.silence_renewals.min(7))).min(SILENCE_RENEW_MAX);
            self.silence_renew_at = Some(now + wait.mul_f64(0.5 + jitter / 2.0));
        }
    }

    /// An edge knows the session, so nothing is wrong with it.
    pub fn handle_answered(&mut self) {
        (self.silence_renew_at, self.silence_renewals) = (None, 0);
    }

    /// `refused` if it is no use to ask again soon.
    pub fn handle_renewal_failed(&mut self, refused: bool, jitter: f64, now: Time) {
        self.asked = false;
        self.failures = self.failures.saturating_add(1);
        let wait = match refused {
            true => RETRY_MAX * 5,
            false => (RETRY_MIN * (1 << self.failures.min(7) >> 1)).min(RETRY_MAX),
        };
        self.retry_at = Some(now + wait.mul_f64(0.5 + jitter / 2.0));
    }

    pub fn renew_now(&mut self) {
        self.renew_now = true;
    }

    /// The session in use is over; answers to what it sealed are believed for a while.
    pub fn close(&mut self, now: Time) {
        if let Some(active) = self.current.take() {
            self.previous = Some((active, now + PREVIOUS_KEPT));
        }
    }

    /// When to ask for a session; none while one is being asked for.
    pub fn renew_due(&self) -> Option<Time> {
        if self.asked {
            return None;
        }
        let wanted = match &self.current {
            None => Time(i64::MIN),
            Some(_) if self.renew_now || self.numbers_left() < NUMBERS_LEFT_MIN => Time(i64::MIN),
            Some(active) => {
                let due = active.session.renew_due();
                self.silence_renew_at.map_or(due, |silence| silence.min(due))
            }
        };
        Some(self.retry_at.map_or(wanted, |retry_at| wanted.max(retry_at)))
    }

    pub fn asked(&mut self) {
        self.asked = true;
    }

    pub fn handle_timeout(&mut self, now: Time) {
        if self.current.as_ref().is_some_and(|active| active.session.end() <= now) {
            self.close(now);
        }
        if self.previous.as_ref().is_some_and(|(_, until)| *until <= now) {
            self.previous = None;
        }
    }

    pub fn poll_timeout(&self) -> Option<Time> {
        let end = self.current.as_ref().map(|active| active.session.end());
        let forget = self.previous.as_ref().map(|(_, until)| *until);
        [end, forget, self.renew_due()].into_iter().flatten().min()
    }

    /// Which session's datagram an answer answers: generation, counter, and what it says.
    pub fn open_answer(&mut self, bytes: &[u8]) -> Result<(u32, u32, Answer), AnswerFault> {
        let current = self.current.as_mut();
        let previous = self.previous.as_mut().map(|(active, _)| active);
        let mut fault = AnswerFault::NotOurs;
        for active in current.into_iter().chain(previous) {
            match active.session.open_answer(bytes) {
                Ok((counter, answer)) => return Ok((active.generation, counter, answer)),
                Err(AnswerFault::NotAsked) => fault = AnswerFault::NotAsked,
                Err(AnswerFault::NotOurs) => {}
            }
        }
        Err(fault)
    }
}

const PREVIOUS_KEPT: Duration = Duration::from_secs(120);
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// Even one that closes every session is asked no more often.
const RENEWALS_APART: Duration = Duration::from_secs(10);
/// 30 s, 1 min, 2 min, … 1 h; each is cut by up to half, so that a whole fleet does not ask at one moment.
const SILENCE_RENEW_MIN: Duration = Duration::from_secs(30);
const SILENCE_RENEW_MAX: Duration = Duration::from_secs(3600);
const NUMBERS_LEFT_MIN: u64 = 2048;
const ACK_EVERY_MAX: u32 = 64;
const INTERVAL_MS_MAX: u32 = 600_000;
