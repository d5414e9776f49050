//! The driver's side without a socket, a clock or a file: takes fixes, gives datagrams, and keeps every fix until an
//! edge has said that it is safe.
//!
//! ```text
//! fix → queue (fresh → backlog) → number, seal → held ─ack─▸ forgotten
//!                                                  └─ not named, lost, another way ─▸ sealed again, same number
//! ```
//!
//! Live fixes go before backlog, one datagram in eight asks for an ack, and they leave as far apart as the session says. All
//! times are by one clock that runs evenly through sleep; it need not be right.

mod flight;
mod queue;
mod sending;
mod sessions;
mod ways;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use protocol::datagram::answer::{AnswerSays, Control};
use protocol::session::{GrantFault, SessionGrant};
use protocol::{Fix, FixNumber, PhoneState, Time};

use flight::{Flight, Way};
use queue::{Queue, SentAs};
use sessions::Sessions;
use ways::Ways;

pub use queue::QueuedFix;

/// What a client is told at its beginning.
#[derive(Clone, Copy, Debug)]
pub struct ClientConfig {
    /// Beyond this the queue is thinned.
    pub queue_fixes_max: usize,
    /// While on delivery, the longest silence: then a ping.
    pub silence_max: Duration,
    /// Spreads retries of many phones.
    pub seed: u64,
    /// Whether `poll_acked` tells what has become safe. Whoever says so must poll.
    pub report_acked: bool,
}

impl Default for ClientConfig {
    fn default() -> Self {
        ClientConfig { queue_fixes_max: 20_000, silence_max: Duration::from_secs(10), seed: 1, report_acked: false }
    }
}

/// What the shell is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Transmit {
    Udp {
        to: SocketAddr,
        bytes: Vec<u8>,
    },
    /// `POST {url}/v1/datagrams`; what comes back goes to `handle_http_response` with the same number.
    Https {
        request: u64,
        url: String,
        pin: Option<[u8; 32]>,
        bytes: Vec<u8>,
    },
    /// `POST /api/v1/sessions`; what comes back goes to `handle_grant` or `handle_renewal_failed`.
    RenewSession,
}

/// Why a request brought no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HttpFault {
    /// No connection, no certificate of ours, or a status that is none of success.
    Failed,
}

/// What has happened so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct ClientStats {
    pub fixes_taken: u64,
    pub fixes_acked: u64,
    pub fixes_sealed: u64,
    /// Of those sealed, how many were sealed before.
    pub fixes_sealed_again: u64,
    pub fixes_thinned: u64,
    pub fixes_waiting: u64,
    pub datagrams_udp: u64,
    pub datagrams_https: u64,
    pub pings: u64,
    pub acks: u64,
    pub controls: u64,
    pub answers_ignored: u64,
    pub datagrams_unanswered: u64,
    pub sessions: u64,
}

/// One driver's phone.
#[derive(Debug)]
pub struct Client {
    config: ClientConfig,
    sessions: Sessions,
    queue: Queue,
    flight: Flight,
    ways: Ways,
    out: VecDeque<Transmit>,
    acked: VecDeque<(FixNumber, Fix)>,
    flushing: bool,
    on_delivery: bool,
    state: PhoneState,
    slow: bool,
    /// The next datagram asks for an ack, whatever its turn.
    ask_next: bool,
    since_asked: u32,
    /// By control: how far apart datagrams should be.
    send_every_ms: u32,
    sent_live: Option<Time>,
    sent_backlog: Option<Time>,
    sent_any: Option<Time>,
    /// The log is away: backlog waits until then.
    hold_until: Option<Time>,
    /// The counter is too far ahead of the clock until then.
    sealed_from: Option<Time>,
    request_next: u64,
    random: u64,
    stats: ClientStats,
}

impl Client {
    pub fn new(config: ClientConfig) -> Self {
        Client {
            config,
            sessions: Sessions::default(),
            queue: Queue::new(config.queue_fixes_max),
            flight: Flight::default(),
            ways: Ways::default(),
            out: VecDeque::new(),
            acked: VecDeque::new(),
            flushing: false,
            on_delivery: true,
            state: PhoneState::default(),
            slow: false,
            ask_next: true,
            since_asked: 0,
            send_every_ms: 0,
            sent_live: None,
            sent_backlog: None,
            sent_any: None,
            hold_until: None,
            sealed_from: None,
            request_next: 0,
            random: config.seed | 1,
            stats: ClientStats::default(),
        }
    }

    /// Takes in what an earlier run had not been able to settle.
    pub fn restore(&mut self, fixes: impl IntoIterator<Item = QueuedFix>) {
        self.queue.restore(fixes);
    }

    /// Everything not yet acknowledged, to be kept for the next run.
    pub fn queued_fixes(&self) -> Vec<QueuedFix> {
        self.queue.fixes()
    }

    pub fn stats(&self) -> ClientStats {
        ClientStats {
            fixes_thinned: self.queue.thinned(),
            fixes_waiting: self.queue.len() as u64,
            datagrams_unanswered: self.flight.lost_total(),
            ..self.stats
        }
    }

    pub fn handle_fix(&mut self, fix: Fix, now: Time) {
        self.stats.fixes_taken += 1;
        self.slow = fix.speed_dm_s.is_some_and(|speed| speed < STANDING_BELOW_DM_S);
        if let Some(state) = fix.phone_state {
            self.state = state;
        }
        self.queue.push(fix);
        self.advance(now);
    }

    /// What the app knows of the phone, for pings.
    pub fn handle_state(&mut self, state: PhoneState, now: Time) {
        self.state = state;
        self.advance(now);
    }

    /// On delivery the phone is never silent for long.
    pub fn handle_duty(&mut self, on_delivery: bool, now: Time) {
        self.on_delivery = on_delivery;
        self.advance(now);
    }

    /// The app is about to stop: send what there is and ask for acks until all is settled.
    pub fn handle_flush(&mut self, now: Time) {
        self.flushing = true;
        self.on_delivery = false;
        self.ask_next = true;
        self.advance(now);
    }

    /// Bytes that came by UDP.
    pub fn handle_datagram(&mut self, bytes: &[u8], now: Time) {
        self.handle_answer(bytes, now);
        self.advance(now);
    }

    /// The bytes of a response, none if it had no content, or why there is no response.
    pub fn handle_http_response(&mut self, request: u64, response: Result<&[u8], HttpFault>, now: Time) {
        match response {
            Ok(bytes) => {
                if self.handle_answer(bytes, now) {
                    self.ways.handle_https_answer();
                } else {
                    // All that goes by HTTPS asks, so an edge that says nothing could not open it.
                    let unanswered = self.flight.handle_failure(Way::Https(request), now);
                    self.queue.mark_again(&unanswered);
                }
            }
            Err(HttpFault::Failed) => {
                let lost = self.flight.handle_failure(Way::Https(request), now);
                self.queue.mark_again(&lost);
                if self.ways.handle_https_failure(now) {
                    self.change_way(1);
                }
            }
        }
        self.advance(now);
    }

    /// A session has come. On a fault it is as if it had not.
    pub fn handle_grant(&mut self, grant: &SessionGrant, now: Time) -> Result<(), GrantFault> {
        if !self.ways.set_edges(&grant.edges, now) {
            self.handle_renewal_failed(false, now);
            return Err(GrantFault::NoEdges);
        }
        if let Err(fault) = self.sessions.handle_grant(grant, now) {
            self.handle_renewal_failed(false, now);
            return Err(fault);
        }
        self.stats.sessions += 1;
        self.ask_next = true;
        self.sealed_from = None;
        // An edge tells the acks of a session under that session only.
        self.queue.mark_all_again();
        self.advance(now);
        Ok(())
    }

    /// `refused` if the credential is no good, so that asking again soon is no use.
    pub fn handle_renewal_failed(&mut self, refused: bool, now: Time) {
        let jitter = self.next_random();
        self.sessions.handle_renewal_failed(refused, jitter, now);
        self.advance(now);
    }

    /// Another network: another id, so that nobody can tell it is the same phone.
    pub fn handle_network_change(&mut self, now: Time) {
        if let Some(active) = self.sessions.current_mut() {
            active.session.change_alias(now);
        }
        self.ways.handle_network_change(now);
        self.flight.start_over(0);
        self.ask_next = true;
        self.advance(now);
    }

    pub fn handle_timeout(&mut self, now: Time) {
        self.advance(now);
    }

    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.out.pop_front()
    }

    /// A fix that an edge has said to be safe, if the configuration asks to be told.
    pub fn poll_acked(&mut self) -> Option<(FixNumber, Fix)> {
        self.acked.pop_front()
    }

    /// Nothing is left that an edge has not said to be safe.
    pub fn is_settled(&self) -> bool {
        self.queue.is_empty()
    }

    /// When to call `handle_timeout`, if nothing else happens before.
    pub fn poll_timeout(&self) -> Option<Time> {
        let always = [self.sessions.poll_timeout(), self.flight.poll_timeout()];
        let sending = match self.sessions.current() {
            None => [None; 5],
            Some(active) => [
                Some(active.session.alias_due()),
                self.live_due(),
                self.backlog_due(),
                self.ping_due(),
                self.ways.probe_due(),
            ],
        };
        always.into_iter().chain(sending).flatten().min()
    }

    /// Does everything whose time has come.
    fn advance(&mut self, now: Time) {
        let due = |at: Option<Time>| at.is_some_and(|at| at <= now);
        self.sessions.handle_timeout(now);
        self.handle_losses(now);
        if self.ways.all_silent() {
            let jitter = self.next_random();
            self.sessions.handle_silence(jitter, now);
        }
        if let Some(active) = self.sessions.current_mut()
            && active.session.alias_due() <= now
        {
            active.session.change_alias(now);
            self.ask_next = true;
        }
        while due(self.live_due()) && self.send_live(now) {}
        while due(self.backlog_due()) && self.send_backlog(now) {}
        if due(self.ways.probe_due())
            && let Some(probe) = self.ways.take_probe(now)
        {
            self.send_ping(&probe, now);
        }
        if due(self.ping_due())
            && let Some(destination) = self.ways.destination()
        {
            self.send_ping(&destination, now);
        }
        // Last, because sending uses up numbers and may find that the session is over.
        if due(self.sessions.renew_due()) {
            self.sessions.asked();
            self.out.push_back(Transmit::RenewSession);
        }
    }

    fn handle_losses(&mut self, now: Time) {
        let lost = self.flight.handle_timeout(now);
        self.queue.mark_again(&lost);
        if self.flight.unanswered() < SILENT_AFTER {
            return;
        }
        if self.ways.in_fallback() {
            if self.ways.handle_https_failure(now) {
                self.change_way(1);
            } else {
                self.flight.start_over(1);
            }
        } else {
            self.ways.handle_silence(now);
            self.change_way(1);
        }
    }

    /// What was under way goes out at once by the other way, under the same numbers.
    fn change_way(&mut self, unanswered: u32) {
        self.flight.start_over(unanswered);
        self.queue.send_all_anew();
        self.ask_next = true;
    }

    /// False if it is no answer to anything asked.
    fn handle_answer(&mut self, bytes: &[u8], now: Time) -> bool {
        let Ok((generation, counter, answer)) = self.sessions.open_answer(bytes) else {
            self.stats.answers_ignored += u64::from(!bytes.is_empty());
            return false;
        };
        self.sessions.handle_answered();
        let asked = self.flight.handle_answer(generation, counter);
        if asked.as_ref().is_some_and(|asked| asked.way == Way::Udp) {
            self.ways.handle_udp_answer();
        }
        match answer.says {
            AnswerSays::Ack(ranges) => {
                self.stats.acks += 1;
                self.hold_until = None;
                let acked = self.queue.ack(&ranges);
                self.stats.fixes_acked += acked.len() as u64;
                if self.config.report_acked {
                    self.acked.extend(acked);
                }
                if let Some(asked) = asked {
                    self.queue.missed_before(SentAs { at: now, edge: asked.edge, generation, counter });
                }
            }
            AnswerSays::Control(control) => {
                self.stats.controls += 1;
                if let Some(asked) = asked {
                    self.queue.mark_again(&asked.numbers);
                }
                self.handle_control(control, now);
            }
        }
        true
    }

    fn handle_control(&mut self, control: Control, now: Time) {
        self.send_every_ms = control.send_every_ms.min(SEND_EVERY_MS_MAX);
        if control.log_away {
            self.hold_until = Some(now + HOLD_FOR);
        }
        if control.closed {
            self.sessions.close(now);
        }
        if control.renew_now || control.closed {
            self.sessions.renew_now();
        }
    }

    /// Between 0 and 1; xorshift is enough to keep phones from knocking in step.
    fn next_random(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Unanswered datagrams after which another way is tried.
const SILENT_AFTER: u32 = 3;
const HOLD_FOR: Duration = Duration::from_secs(10);
const SEND_EVERY_MS_MAX: u32 = 60_000;
/// 0.5 m/s.
const STANDING_BELOW_DM_S: u16 = 5;
