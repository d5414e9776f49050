//! The task of one phone: waits in one place for whatever can wake it, tells the client, and does what it says.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use protocol::Time;
use protocol::datagram::ANSWER_LEN_MAX;
use protocol::session::SessionGrant;
use reqwest::Url;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};
use tracing::{debug, trace, warn};

use super::http::{HttpError, SessionAsked, checked_url};
use super::{Command, PhoneConfig, StartError};
use crate::client::{Client, ClientStats, HttpFault, QueuedFix, Transmit};

pub(super) struct PhoneTask {
    config: PhoneConfig,
    api: Url,
    client: Client,
    socket: UdpSocket,
    inbox: mpsc::Receiver<Command>,
    requests: JoinSet<Finished>,
    stats: Arc<Mutex<ClientStats>>,
    stopping: Option<Stopping>,
}

/// Somebody waits for the phone to settle.
struct Stopping {
    done: oneshot::Sender<Vec<QueuedFix>>,
    until: Time,
}

/// A request that is over.
enum Finished {
    Grant(Result<Box<SessionGrant>, HttpError>),
    Datagram { request: u64, response: Result<Vec<u8>, HttpError> },
}

/// Everything that can wake a phone.
enum Wake {
    Command(Option<Command>),
    Datagram(std::io::Result<(usize, [u8; RECEIVE_LEN])>),
    Finished(Finished),
    /// A request ended without a result: ours to have prevented.
    BrokeOff(JoinError),
    Timeout,
}

impl PhoneTask {
    pub(super) async fn new(
        mut config: PhoneConfig,
        inbox: mpsc::Receiver<Command>,
        stats: Arc<Mutex<ClientStats>>,
    ) -> Result<Self, StartError> {
        let api = checked_url(&config.api_url).map_err(StartError::Api)?;
        let socket = bind(config.bind).await.map_err(StartError::Socket)?;
        let mut client = Client::new(config.client);
        client.restore(std::mem::take(&mut config.restore));
        client.handle_timeout(config.clock.now());
        Ok(PhoneTask { config, api, client, socket, inbox, requests: JoinSet::new(), stats, stopping: None })
    }

    pub(super) async fn run(mut self) {
        loop {
            self.transmit().await;
            self.tell();
            let now = self.config.clock.now();
            if self.stopping.as_ref().is_some_and(|stopping| self.client.is_settled() || stopping.until <= now) {
                break;
            }
            let wake = self.wait(now).await;
            if !self.apply(wake).await {
                break;
            }
        }
        if let Some(stopping) = self.stopping.take() {
            // Whoever asked may have gone away; then nobody wants to know.
            let _ = stopping.done.send(self.client.queued_fixes());
        }
    }

    /// Cancellation safe: every branch is.
    async fn wait(&mut self, now: Time) -> Wake {
        let mut until = self.client.poll_timeout();
        if let Some(stopping) = &self.stopping {
            until = Some(until.map_or(stopping.until, |until| until.min(stopping.until)));
        }
        let wait_ms = until.map_or(IDLE_MS_MAX, |until| until.millis_since(now).clamp(0, IDLE_MS_MAX));
        let wait = self.config.clock.real(Duration::from_millis(wait_ms as u64)).max(WAIT_MIN);
        let mut buffer = [0; RECEIVE_LEN];
        tokio::select! {
            command = self.inbox.recv(), if self.stopping.is_none() => Wake::Command(command),
            received = self.socket.recv_from(&mut buffer) => Wake::Datagram(received.map(|(len, _)| (len, buffer))),
            Some(finished) = self.requests.join_next() => match finished {
                Ok(finished) => Wake::Finished(finished),
                Err(error) => Wake::BrokeOff(error),
            },
            () = tokio::time::sleep(wait) => Wake::Timeout,
        }
    }

    /// False if the phone is to stop at once.
    async fn apply(&mut self, wake: Wake) -> bool {
        let now = self.config.clock.now();
        match wake {
            Wake::Command(None) => return false,
            Wake::Command(Some(command)) => self.apply_command(command, now).await,
            Wake::Datagram(Ok((len, bytes))) => self.client.handle_datagram(&bytes[..len], now),
            Wake::Datagram(Err(error)) => {
                // An unreachable port shows here on some systems; the client finds out by silence.
                trace!(%error, "receive failed");
                tokio::time::sleep(WAIT_MIN).await;
            }
            Wake::Finished(Finished::Grant(Ok(grant))) => {
                // Said once: a renewal is no log-in.
                self.config.logged_in = false;
                if let Err(error) = self.client.handle_grant(&grant, now) {
                    warn!(%error, "session cannot be used");
                }
            }
            Wake::Finished(Finished::Grant(Err(error))) => {
                debug!(error = &error as &dyn std::error::Error, "no session");
                self.client.handle_renewal_failed(error.is_refusal(), now);
            }
            Wake::Finished(Finished::Datagram { request, response }) => {
                let response = response.inspect_err(|error| trace!(%error, request, "datagram by HTTPS failed"));
                let response = response.as_deref().map_err(|_| HttpFault::Failed);
                self.client.handle_http_response(request, response, now);
            }
            Wake::BrokeOff(error) => {
                warn!(%error, "request broke off");
                // If it was a datagram the client finds out by silence; a session it must be told.
                self.client.handle_renewal_failed(false, now);
            }
            Wake::Timeout => self.client.handle_timeout(now),
        }
        true
    }

    async fn apply_command(&mut self, command: Command, now: Time) {
        match command {
            Command::Fix(fix) => self.client.handle_fix(fix, now),
            Command::State(state) => self.client.handle_state(state, now),
            Command::Duty(on_delivery) => self.client.handle_duty(on_delivery, now),
            Command::NetworkChanged => {
                match bind(self.config.bind).await {
                    Ok(socket) => self.socket = socket,
                    Err(error) => warn!(%error, "no new UDP socket, the old one stays"),
                }
                self.client.handle_network_change(now);
            }
            Command::Stop(done) => {
                self.stopping = Some(Stopping { done, until: now + self.config.drain_max });
                self.client.handle_flush(now);
            }
        }
    }

    /// Does what the client says.
    async fn transmit(&mut self) {
        while let Some(transmit) = self.next_transmit() {
            match transmit {
                Transmit::Udp { to, bytes } => {
                    let to = self.config.through.as_ref().map_or(to, |through| through(to));
                    if let Err(error) = self.send_udp(&bytes, to).await {
                        trace!(%error, "send failed");
                    }
                }
                Transmit::Https { request, url, pin, bytes } => {
                    let http = self.config.http.clone();
                    let timeout = self.config.clock.real(REQUEST_TIMEOUT).max(REQUEST_TIMEOUT_MIN);
                    self.request(async move {
                        let response = http.post_datagram(&url, pin, bytes, timeout).await;
                        Finished::Datagram { request, response }
                    });
                }
                Transmit::RenewSession => {
                    let (http, api, pin) = (self.config.http.clone(), self.api.clone(), self.config.api_pin);
                    let credential = self.config.credential.clone();
                    let asked = SessionAsked { logged_in: self.config.logged_in };
                    self.request(async move {
                        let grant = http.fetch_grant(&api, pin, &credential.0, &asked, REQUEST_TIMEOUT).await;
                        Finished::Grant(grant.map(Box::new))
                    });
                }
            }
        }
    }

    /// An edge may have an address of the other family than the one before.
    async fn send_udp(&mut self, bytes: &[u8], to: SocketAddr) -> std::io::Result<()> {
        if self.config.bind.is_none() && self.socket.local_addr()?.is_ipv6() != to.is_ipv6() {
            let any = if to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
            self.socket = bind(Some(any)).await?;
        }
        self.socket.send_to(bytes, to).await.map(|_| ())
    }

    /// A full output kept the client from saying all it had to, so it is asked again once that is empty.
    fn next_transmit(&mut self) -> Option<Transmit> {
        if let Some(transmit) = self.client.poll_transmit() {
            return Some(transmit);
        }
        self.client.handle_timeout(self.config.clock.now());
        self.client.poll_transmit()
    }

    /// The client bounds how many there are: one for sessions, sixteen for datagrams.
    fn request(&mut self, request: impl Future<Output = Finished> + Send + 'static) {
        // Boxed, because requests are rare and their futures large.
        let request: Pin<Box<dyn Future<Output = Finished> + Send>> = Box::pin(request);
        self.requests.spawn(request);
    }

    fn tell(&mut self) {
        if let Some(on_acked) = &self.config.on_acked {
            while let Some((number, fix)) = self.client.poll_acked() {
                on_acked(number, &fix);
            }
        }
        *self.stats.lock().expect("nothing panics while it holds the figures") = self.client.stats();
    }
}

async fn bind(address: Option<IpAddr>) -> std::io::Result<UdpSocket> {
    let address = address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    UdpSocket::bind(SocketAddr::new(address, 0)).await
}

/// One more than an answer may have, so that a longer one shows.
const RECEIVE_LEN: usize = ANSWER_LEN_MAX + 1;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A fast clock does not make servers faster.
const REQUEST_TIMEOUT_MIN: Duration = Duration::from_secs(1);
const IDLE_MS_MAX: i64 = 60_000;
/// A timeout that does not move may cost a little, never a core.
const WAIT_MIN: Duration = Duration::from_millis(1);
