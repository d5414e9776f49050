//! Serving a router over TCP or TLS: what every HTTP door of Wayfix does the same way. Places for connections are
//! bounded in all and for each address (`peers`); headers, bodies, idleness and unread answers have their time
//! (`deadlines`, `io`, `body`); a stop lets requests under way end.
//!
//! What one connection may hold before any token is known: 16 KiB of a head (HTTP/2: at most 64 of them), 256 KiB of
//! request bodies, one answer (HTTP/2: 16 KiB a stream, and of whole answers what its address's share allows).
//!
//! hyper's own loop and not axum's, because only there the connection's bytes can be watched.

mod body;
mod counters;
mod deadlines;
mod executor;
mod io;
mod peers;
mod proxy;
mod service;
mod settings;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, trace, warn};

use crate::drain::Drain;
use crate::meter::Meter;

pub use body::{TooSlow, read_body};
pub use peers::Places;
pub use proxy::{AddressRange, AddressRangeError};
pub use service::{SharedBody, room_for};
pub use settings::{ConnectionSettings, ConnectionSettingsError};

use counters::Counters;
use deadlines::Times;
use executor::StreamExecutor;
use io::{GuardedIo, Watch};
use peers::Place;
use service::{ConnectionParts, RequestService};

/// A bound address, plain or with TLS.
pub struct Listener {
    tcp: TcpListener,
    tls: Option<TlsAcceptor>,
}

impl Listener {
    /// With a TLS configuration, which says by ALPN which versions of HTTP it offers, or without.
    pub async fn bind(address: SocketAddr, tls: Option<Arc<rustls::ServerConfig>>) -> std::io::Result<Self> {
        Ok(Listener { tcp: TcpListener::bind(address).await?, tls: tls.map(TlsAcceptor::from) })
    }

    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }
}

/// What a listener grants its peers.
#[derive(Clone, Debug)]
pub struct ServeLimits {
    /// Of all doors that share it. Beyond it a new connection is closed at once: its peer tries elsewhere, those
    /// connected are not disturbed.
    pub places: Places,
    /// For the TLS handshake, for the first request, and for each request's headers. A body has as long, and longer
    /// only as far as its bytes earn it.
    pub head_max: Duration,
    /// How long a connection may be quiet between two requests.
    pub idle_max: Duration,
    /// A connection, or a stream of HTTP/2, whose peer takes nothing of what there is for it for so long is ended.
    pub stalled_max: Duration,
    /// How long requests under way may take once the drain has begun.
    pub drain_grace: Duration,
    /// Bytes buffered for one HTTP/1.1 connection; also the longest head of a request.
    pub buffer_bytes_max: usize,
    /// Requests under way at once on one HTTP/2 connection.
    pub streams_max: u32,
    /// Bytes that the kernel takes for one connection beyond what is under way to its peer. What waits here is old by
    /// the time a slow peer takes it; what waits in front of it can still be replaced by something newer.
    pub unsent_bytes_max: u32,
    /// Whose word on who asks is taken.
    pub trusted_proxies: Arc<[AddressRange]>,
    /// Trusted proxies begin their connections with a header of the PROXY protocol.
    pub proxy_protocol: bool,
}

impl Default for ServeLimits {
    fn default() -> Self {
        ServeLimits {
            places: Places::new(100_000, 50_000),
            head_max: Duration::from_secs(10),
            idle_max: Duration::from_secs(60),
            stalled_max: Duration::from_secs(10),
            drain_grace: Duration::from_secs(10),
            buffer_bytes_max: 16 << 10,
            streams_max: 64,
            unsent_bytes_max: 16 << 10,
            trusted_proxies: Arc::from([]),
            proxy_protocol: false,
        }
    }
}

impl ServeLimits {
    /// For the admin door: places of its own, which the others cannot take, and little patience with who idles there.
    pub fn reserved(&self) -> ServeLimits {
        ServeLimits {
            places: Places::new(ADMIN_CONNECTIONS_MAX, ADMIN_CONNECTIONS_MAX),
            idle_max: self.head_max,
            trusted_proxies: Arc::from([]),
            proxy_protocol: false,
            ..self.clone()
        }
    }
}

/// Put on every request: the door it came in by stops when this is cancelled. An answer without an end must end then,
/// or it holds the stop for the whole grace.
#[derive(Clone, Debug)]
pub struct Stopping(pub CancellationToken);

/// Serves until the drain stops, then lets requests under way end. Handlers find the address of who asks as
/// `ConnectInfo<SocketAddr>`, and `Stopping`. Connections that were upgraded (WebSocket) are their handler's to end.
pub fn serve(
    name: &'static str,
    listener: Listener,
    router: Router,
    limits: ServeLimits,
    meter: &Meter,
    drain: &Drain,
) {
    let server = Server {
        tls: listener.tls,
        router,
        limits,
        counters: Counters::new(meter),
        connections: TaskTracker::new(),
        stop: drain.token().clone(),
    };
    drain.spawn(name, server.run(listener.tcp));
}

#[derive(Clone)]
struct Server {
    tls: Option<TlsAcceptor>,
    router: Router,
    limits: ServeLimits,
    counters: Counters,
    connections: TaskTracker,
    stop: CancellationToken,
}

impl Server {
    async fn run(self, tcp: TcpListener) -> anyhow::Result<()> {
        let server = Arc::new(self);
        loop {
            let accepted = tokio::select! {
                () = server.stop.cancelled() => break,
                accepted = tcp.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => server.handle_stream(stream, peer),
                Err(error) if is_of_one_connection(&error) => debug!(%error, "a connection ended before it began"),
                Err(error) => {
                    // Most likely no file descriptor is left: those who are connected go on meanwhile.
                    warn!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(tcp);
        server.connections.close();
        if tokio::time::timeout(server.limits.drain_grace, server.connections.wait()).await.is_err() {
            warn!(connections = server.connections.len(), "some connections did not end in time");
        }
        Ok(())
    }

    fn handle_stream(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        let is_proxy = self.limits.trusted_proxies.iter().any(|range| range.contains(peer.ip()));
        let place = match self.limits.places.take(peer.ip(), is_proxy) {
            Ok(place) => place,
            Err(reason) => return self.counters.refused(reason),
        };
        self.counters.accepted.increment(1);
        tune(&stream, &self.limits);
        let server = self.clone();
        self.connections.spawn(Box::pin(async move { server.connect(stream, peer, is_proxy, place).await }));
    }

    /// From the first byte to the last of one connection.
    async fn connect(self: Arc<Self>, mut stream: TcpStream, peer: SocketAddr, is_proxy: bool, place: Place) {
        let limits = &self.limits;
        let mut who = Who { address: peer, is_proxy, place, of_source: None };
        if is_proxy && limits.proxy_protocol {
            match tokio::time::timeout(limits.head_max, proxy::accept(&mut stream)).await {
                Ok(Ok(None)) => {}
                Ok(Ok(Some(source))) => match limits.places.take_within(source.ip()) {
                    Ok(of_source) => {
                        who = Who { address: source, is_proxy: false, of_source: Some(of_source), ..who };
                    }
                    Err(reason) => return self.counters.refused(reason),
                },
                Ok(Err(_)) | Err(_) => return self.counters.no_proxy_header.increment(1),
            }
        }
        match &self.tls {
            None => self.serve_bytes(stream, who).await,
            Some(tls) => match tokio::time::timeout(limits.head_max, tls.accept(stream)).await {
                Ok(Ok(stream)) => self.serve_bytes(stream, who).await,
                Ok(Err(_)) | Err(_) => self.counters.no_handshake.increment(1),
            },
        }
    }

    async fn serve_bytes<S: io::Bytes>(&self, stream: S, who: Who) {
        let limits = &self.limits;
        let times = Times { head_max: limits.head_max, idle_max: limits.idle_max, stalled_max: limits.stalled_max };
        let watch = Watch::new(times);
        let parts = self.parts(&who, &watch);
        let Who { place, of_source, .. } = who;
        if let Some(of_source) = of_source {
            watch.keep(of_source);
        }
        let router = TowerToHyperService::new(self.router.clone());
        let service = RequestService { router, parts: Arc::new(parts) };
        let stream = GuardedIo::new(stream, watch, place, self.counters.clone(), self.connections.clone());
        let executor = StreamExecutor::new(limits.stalled_max, self.counters.clone(), self.connections.clone());
        let http = http_builder(limits, executor);
        let serving = http.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut serving = std::pin::pin!(serving);
        let outcome = tokio::select! {
            outcome = serving.as_mut() => Some(outcome),
            () = self.stop.cancelled() => None,
        };
        if let Some(outcome) = outcome {
            return trace_outcome(outcome);
        }
        serving.as_mut().graceful_shutdown();
        // A peer that never sends what it began must not hold the stop.
        if let Ok(outcome) = tokio::time::timeout(limits.drain_grace, serving).await {
            trace_outcome(outcome);
        }
    }

    fn parts(&self, who: &Who, watch: &Watch) -> ConnectionParts {
        ConnectionParts {
            peer: who.address,
            is_proxy: who.is_proxy,
            trusted_proxies: self.limits.trusted_proxies.clone(),
            places: self.limits.places.clone(),
            unread: who.of_source.as_ref().unwrap_or(&who.place).unread().clone(),
            watch: watch.clone(),
            body_first: self.limits.head_max,
            counters: self.counters.clone(),
            stop: self.stop.clone(),
        }
    }
}

/// Whose connection it is.
struct Who {
    address: SocketAddr,
    /// Its requests name who asks.
    is_proxy: bool,
    place: Place,
    /// The place of who is behind a proxy, beside that of the connection.
    of_source: Option<Place>,
}

/// What a kernel cannot do it leaves out: the connection works all the same.
fn tune(stream: &TcpStream, limits: &ServeLimits) {
    let _kept_as_it_is = stream.set_nodelay(true);
    #[cfg(target_os = "linux")]
    {
        let socket = socket2::SockRef::from(stream);
        let _kept_as_it_is = socket.set_tcp_notsent_lowat(limits.unsent_bytes_max);
        let _kept_as_it_is = socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX.max(limits.stalled_max)));
    }
    #[cfg(not(target_os = "linux"))]
    let _not_to_be_had_here = limits.unsent_bytes_max;
}

fn trace_outcome(outcome: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    if let Err(error) = outcome {
        trace!(error = %error, "connection ended");
    }
}

fn http_builder(limits: &ServeLimits, executor: StreamExecutor) -> Builder<StreamExecutor> {
    let mut builder = Builder::new(executor);
    builder
        .http1()
        .timer(TokioTimer::new())
        // The connection's own deadlines hold, which answer 408 too.
        .header_read_timeout(None)
        .max_headers(HEADERS_MAX)
        .max_buf_size(limits.buffer_bytes_max.max(BUFFER_BYTES_MIN));
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(limits.head_max)
        .max_concurrent_streams(limits.streams_max)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_pending_accept_reset_streams(RESETS_PENDING_MAX)
        .max_local_error_reset_streams(RESETS_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX);
    builder
}

/// Errors that concern the one connection that was being accepted.
fn is_of_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionRefused | ConnectionAborted | ConnectionReset)
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// A phone in a tunnel keeps its stream for as long.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(60);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// hyper refuses less.
const BUFFER_BYTES_MIN: usize = 8192;
const HEADERS_MAX: usize = 100;
const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;
/// Of a request's body, before a handler takes it.
const STREAM_WINDOW_BYTES: u32 = 64 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 256 << 10;
const SEND_BUFFER_BYTES: usize = 64 << 10;
/// A peer that resets more streams than that before we came to them floods (CVE-2023-44487).
const RESETS_PENDING_MAX: usize = 20;
const RESETS_MAX: usize = 256;
const ADMIN_CONNECTIONS_MAX: usize = 32;
