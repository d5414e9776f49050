//! One UDP thread: receives in batches, opens in place, hands to its intake, ships parcels, seals answers. The shell
//! around `EdgeSessions` and `Intake`, which decide everything.
//!
//! It waits in one place (`wait`), for its socket, its waker or the time. When datagrams come, but not enough for full
//! batches, it lets them gather for a moment, which halves what each costs; under load it never waits at all. The
//! clock is read once per batch.
//!
//! Stopping: takes what its socket holds, ships it, waits for the log's word, answers, leaves.

use std::io::{self, IoSliceMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use daemon::{Clock, StepSeen};
use mio::{Events, Interest, Poll, Token};
use protocol::Time;
use protocol::datagram::{Control, thread_of};
use protocol::record::Door;
use protocol::session::SealedAnswer;
use protocol::session::{AnswerTo, EdgeSessions, OpenedDatagram};
use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSockRef};
use tokio::sync::mpsc;
use tracing::{trace, warn};

use super::inbox::{Inbox, Notice, Reply, Submission, SubmissionOutcome, ThreadPort, Visitor};
use super::socket::ThreadSocket;
use crate::control::ControlChange;
use crate::intake::{DatagramTaken, Intake, Parcel, ParcelOutcome, Receipts, ranges_of};
use crate::metrics::{ThreadCounts, ThreadMetrics};

/// What a thread is made of.
pub struct ThreadParts {
    pub index: usize,
    pub socket: ThreadSocket,
    pub poll: Poll,
    pub inbox: Inbox,
    /// All threads of the edge, this one too, by index.
    pub threads: Vec<ThreadPort>,
    pub sessions: EdgeSessions,
    pub intake: Intake<Reply>,
    /// **Contract:** has room for all parcels of all threads.
    pub parcels: mpsc::Sender<Parcel>,
    pub slow_send_every_ms: u32,
    pub clock: Clock,
    pub metrics: ThreadMetrics,
}

pub struct UdpThread {
    parts: ThreadParts,
    said: OpenedDatagram,
    counts: ThreadCounts,
    sessions_due: Time,
    step_seen: StepSeen,
    /// Failures of the socket in a row.
    receive_failures: u32,
    stop: Option<Stop>,
}

/// How far a stop has come.
struct Stop {
    /// Who goes on sending must not hold the stop.
    drained_at: Instant,
    leave_at: Instant,
    has_shipped: bool,
}

/// Room for one batch of datagrams.
struct ReceiveBuffers {
    bytes: Vec<u8>,
    each: usize,
    metas: [RecvMeta; BATCH_SIZE],
}

impl UdpThread {
    pub fn new(parts: ThreadParts) -> Self {
        UdpThread {
            step_seen: StepSeen::since(parts.clock.reading()),
            parts,
            said: OpenedDatagram::default(),
            counts: ThreadCounts::default(),
            sessions_due: Time(i64::MIN),
            receive_failures: 0,
            stop: None,
        }
    }

    /// The name under which the poll knows this thread's waker.
    pub const WAKER: Token = Token(1);
    const SOCKET: Token = Token(0);

    /// Runs until told to stop.
    pub fn run(mut self) -> anyhow::Result<()> {
        let registry = self.parts.poll.registry();
        registry
            .register(&mut self.parts.socket.socket, Self::SOCKET, Interest::READABLE)
            .context("wait for the UDP socket")?;
        let each = self.parts.socket.receive_bytes;
        let mut buffers =
            ReceiveBuffers { bytes: vec![0; each * BATCH_SIZE], each, metas: [RecvMeta::default(); BATCH_SIZE] };
        let mut events = Events::with_capacity(16);
        loop {
            let reading = self.parts.clock.reading();
            if let Some(by_ms) = self.step_seen.look(reading) {
                self.handle_step(by_ms, Time(reading.now_ms));
            }
            let now = Time(reading.now_ms);
            let received = self.receive(now, &mut buffers);
            self.handle_notices(now);
            let visited = self.handle_visitors(now);
            self.handle_time(now);
            self.tell(now);
            self.ship();
            let is_idle = received == 0 && !visited;
            if self.has_stopped(now, is_idle) {
                self.flush_counts();
                return Ok(());
            }
            if is_idle {
                self.wait(now, &mut events)?;
            } else if received < BATCH_SIZE && !visited && self.stop.is_none() {
                std::thread::sleep(GATHER);
            }
        }
    }

    /// The clock was set: all that is waited for goes on as before.
    fn handle_step(&mut self, by_ms: i64, now: Time) {
        self.parts.intake.handle_step(by_ms);
        self.parts.sessions.handle_step(by_ms);
        self.set_unset(now);
        self.sessions_due.0 = self.sessions_due.0.saturating_add(by_ms);
    }

    fn set_unset(&mut self, now: Time) {
        let unset: Vec<Time> = self.parts.clock.unset_ms().into_iter().map(Time).collect();
        self.parts.intake.set_unset(&unset, now);
        self.parts.sessions.set_unset(unset, now);
    }

    /// One batch from the socket; 0 when it is empty.
    fn receive(&mut self, now: Time, buffers: &mut ReceiveBuffers) -> usize {
        if self.stop.as_ref().is_some_and(|stop| stop.has_shipped) {
            return 0;
        }
        let mut room = buffers.bytes.chunks_exact_mut(buffers.each);
        let mut slices: [IoSliceMut<'_>; BATCH_SIZE] =
            std::array::from_fn(|_| IoSliceMut::new(room.next().unwrap_or_default()));
        let socket = UdpSockRef::from(&self.parts.socket.socket);
        let count = match self.parts.socket.state.recv(socket, &mut slices, &mut buffers.metas) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return 0,
            // Most likely an ICMP error that some answer of ours brought back. It has taken no datagram with it.
            Err(error) => return self.receive_failed(&error),
        };
        self.receive_failures = 0;
        for (bytes, meta) in buffers.bytes.chunks_exact_mut(buffers.each).zip(&buffers.metas[..count]) {
            for datagram in bytes[..meta.len].chunks_mut(meta.stride.max(1)) {
                let reply = Reply::Udp { peer: meta.addr, local: meta.dst_ip };
                let thread = thread_of(datagram, self.parts.threads.len());
                if thread == self.parts.index {
                    self.handle_datagram(now, datagram, Door::Udp, reply);
                } else {
                    self.hand_over(thread, datagram, reply);
                }
            }
        }
        count
    }

    /// Asks again at once, a few times; a socket that goes on failing is left until the next wake, so that its thread
    /// does not spin.
    fn receive_failed(&mut self, error: &io::Error) -> usize {
        trace!(%error, "receive failed");
        self.receive_failures += 1;
        if self.receive_failures < RECEIVE_FAILURES_MAX {
            return 1;
        }
        if self.receive_failures == RECEIVE_FAILURES_MAX {
            warn!(%error, "the socket for datagrams fails");
        }
        0
    }

    fn hand_over(&mut self, thread: usize, datagram: &[u8], reply: Reply) {
        let visitor = Visitor::Datagram { bytes: datagram.into(), door: Door::Udp, reply };
        match self.parts.threads[thread].visit(visitor) {
            Ok(()) => self.counts.handed_over += 1,
            Err(_) => {
                self.counts.received += 1;
                self.counts.handed_over_lost += 1;
            }
        }
    }

    fn handle_datagram(&mut self, now: Time, bytes: &mut [u8], door: Door, reply: Reply) {
        self.counts.received += 1;
        let opened = match self.parts.sessions.handle_datagram(now, bytes, &mut self.said) {
            Ok(opened) => opened,
            Err(reason) => {
                self.counts.refused[reason as usize] += 1;
                trace!(?reason, "datagram refused");
                match self.said.answer_to.take() {
                    Some(to) => self.answer_control(&to, false, reply),
                    None => self.answer_nothing(reply),
                }
                return;
            }
        };
        match self.parts.intake.handle_datagram(now, &opened, &self.said, door, reply) {
            DatagramTaken::AnswerFollows => self.counts.accepted += 1,
            DatagramTaken::NoAnswer(reply) => {
                self.counts.accepted += 1;
                self.answer_nothing(reply);
            }
            DatagramTaken::Full(reply) => {
                self.counts.shed += 1;
                match self.said.answer_to.take() {
                    Some(to) => self.answer_control(&to, true, reply),
                    None => self.answer_nothing(reply),
                }
            }
        }
    }

    fn handle_notices(&mut self, now: Time) {
        while let Ok(notice) = self.parts.inbox.notices.try_recv() {
            match notice {
                Notice::Returned(parcel) => self.parts.intake.handle_returned(parcel),
                Notice::Settled { through, outcome } => self.parts.intake.handle_settled(through, outcome),
                Notice::Control(change) => self.handle_control(now, &change),
                Notice::Stop => {
                    let drained_at = Instant::now() + DRAIN_MAX;
                    let leave_at = Instant::now() + STOP_GRACE;
                    self.stop.get_or_insert(Stop { drained_at, leave_at, has_shipped: false });
                }
            }
        }
    }

    fn handle_control(&mut self, now: Time, change: &Arc<ControlChange>) {
        if let Some(keys) = &change.keys {
            self.parts.sessions.set_keys(keys.clone());
        }
        for device in &change.revoked {
            self.parts.sessions.revoke(*device, now);
        }
    }

    /// Whether there may be more.
    fn handle_visitors(&mut self, now: Time) -> bool {
        for _ in 0..VISITORS_PER_TURN {
            match self.parts.inbox.visitors.try_recv() {
                Ok(Visitor::Datagram { mut bytes, door, reply }) => self.handle_datagram(now, &mut bytes, door, reply),
                Ok(Visitor::Submission(submission)) => self.handle_submission(now, submission),
                Err(_) => return false,
            }
        }
        true
    }

    fn handle_submission(&mut self, now: Time, submission: Submission) {
        let Submission { device, door, fixes, reply } = submission;
        let mut reply = Some(reply);
        let taken = self.parts.intake.handle_submission(now, device, door, &fixes, |rejected| {
            let reply = reply.take().expect("it is asked for once");
            Reply::Submission { reply, rejected }
        });
        if let (Err(_), Some(reply)) = (taken, reply) {
            let _has_gone = reply.send(SubmissionOutcome::Overloaded);
        }
    }

    fn handle_time(&mut self, now: Time) {
        if now >= self.sessions_due {
            self.set_unset(now);
            self.parts.sessions.handle_timeout(now);
            self.sessions_due = self.parts.sessions.poll_timeout(now);
        }
        if now >= self.parts.intake.poll_timeout() {
            self.parts.intake.handle_timeout(now);
        }
    }

    /// Tells whoever waits what became of their fixes.
    fn tell(&mut self, now: Time) {
        while let Some((mut receipts, outcome)) = self.parts.intake.poll_settled() {
            match outcome {
                ParcelOutcome::Durable => self.tell_durable(now, &mut receipts),
                ParcelOutcome::Lost => self.tell_lost(&mut receipts),
            }
            self.parts.intake.handle_told(receipts);
        }
        while let Some(waiting) = self.parts.intake.poll_hold() {
            self.answer_control(&waiting.to, true, waiting.reply);
        }
    }

    fn tell_durable(&mut self, now: Time, receipts: &mut Receipts<Reply>) {
        self.parts.metrics.durable_after.record(now.since(receipts.since).as_secs_f64());
        for (session, run) in &receipts.runs {
            self.parts.sessions.handle_durable(session, &ranges_of(*run));
        }
        for waiting in receipts.answers.drain(..) {
            let Some(answer) = self.parts.sessions.seal_ack(&waiting.to, &waiting.ranges) else { continue };
            self.counts.acks += 1;
            self.send(answer, waiting.reply);
        }
        for reply in receipts.submissions.drain(..) {
            if let Reply::Submission { reply, rejected } = reply {
                let _has_gone = reply.send(SubmissionOutcome::Durable { rejected });
            }
        }
    }

    fn tell_lost(&mut self, receipts: &mut Receipts<Reply>) {
        for waiting in receipts.answers.drain(..) {
            self.answer_control(&waiting.to, true, waiting.reply);
        }
        for reply in receipts.submissions.drain(..) {
            if let Reply::Submission { reply, .. } = reply {
                let _has_gone = reply.send(SubmissionOutcome::Lost);
            }
        }
    }

    fn answer_control(&mut self, to: &AnswerTo, log_away: bool, reply: Reply) {
        let control = Control { log_away, send_every_ms: self.parts.slow_send_every_ms, ..Control::default() };
        if let Some(answer) = self.parts.sessions.seal_control(to, control) {
            self.counts.controls += 1;
            self.send(answer, reply);
        }
    }

    /// On UDP silence; a request must be answered.
    fn answer_nothing(&self, reply: Reply) {
        match reply {
            Reply::Udp { .. } | Reply::Submission { .. } => {}
            Reply::Http(reply) => drop(reply.send(None)),
        }
    }

    fn send(&mut self, answer: SealedAnswer, reply: Reply) {
        match reply {
            Reply::Udp { peer, local } => {
                let transmit =
                    Transmit { destination: peer, ecn: None, contents: &answer, segment_size: None, src_ip: local };
                let socket = UdpSockRef::from(&self.parts.socket.socket);
                if self.parts.socket.state.try_send(socket, &transmit).is_err() {
                    self.counts.answers_unsent += 1;
                }
            }
            Reply::Http(reply) => drop(reply.send(Some(answer))),
            Reply::Submission { .. } => {}
        }
    }

    fn ship(&mut self) {
        let mut has_shipped = false;
        while let Some(parcel) = self.parts.intake.poll_parcel() {
            has_shipped = true;
            if let Err(error) = self.parts.parcels.try_send(parcel) {
                // Only when the shipper has died, and then the whole process drains.
                warn!(%error, "a parcel was not taken");
            }
        }
        if has_shipped {
            self.flush_counts();
        }
    }

    fn flush_counts(&mut self) {
        let intake = self.parts.intake.take_counts();
        self.parts.metrics.add(&mut self.counts, intake);
        self.parts.metrics.linger.set(self.parts.intake.linger().as_secs_f64());
        self.parts.metrics.sessions_warm.set(self.parts.sessions.warm().len() as f64);
    }

    /// First the socket is emptied, then what was taken is shipped, then its fate is awaited.
    fn has_stopped(&mut self, now: Time, is_idle: bool) -> bool {
        let Some(stop) = &mut self.stop else { return false };
        if !stop.has_shipped {
            if is_idle || Instant::now() >= stop.drained_at {
                stop.has_shipped = true;
                self.parts.intake.handle_stop(now);
                self.ship();
            }
            return false;
        }
        self.parts.intake.is_settled() || Instant::now() >= stop.leave_at
    }

    fn wait(&mut self, now: Time, events: &mut Events) -> anyhow::Result<()> {
        let due = self.parts.intake.poll_timeout().min(self.sessions_due);
        let mut timeout = self.parts.clock.real(due.since(now));
        if self.stop.is_some() {
            timeout = timeout.min(STOP_LOOK);
        }
        match self.parts.poll.poll(events, Some(timeout)) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error).context("wait for datagrams"),
        }
    }
}

/// Far below any linger, far above what waking a thread costs.
const GATHER: Duration = Duration::from_micros(200);
const VISITORS_PER_TURN: usize = 64;
/// As many ICMP errors may wait for one batch of answers.
const RECEIVE_FAILURES_MAX: u32 = 64;
/// Longer than the shipper gives a log that is away, so that its last word is heard.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// A full receive buffer takes far less.
const DRAIN_MAX: Duration = Duration::from_millis(500);
const STOP_LOOK: Duration = Duration::from_millis(20);
