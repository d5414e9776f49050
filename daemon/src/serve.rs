//! Serving a router over TCP or TLS: what every HTTP door of Wayfix does the same way. Slow peers are given up in
//! bounded time (handshake, first request, headers), connections are bounded in number, and a stop lets requests under
//! way end.
//!
//! hyper's own loop and not axum's, because only there header time-outs can be set; without them a few hundred peers
//! that never finish their headers hold all connections.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use metrics::Counter;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, trace, warn};

use crate::drain::Drain;
use crate::meter::Meter;
use crate::request_id::{self, RequestId};

/// A bound address, plain or with TLS.
pub struct Listener {
    tcp: TcpListener,
    tls: Option<TlsAcceptor>,
}

impl Listener {
    /// With a TLS configuration, which says by ALPN which versions of HTTP it offers, or without.
    pub async fn bind(address: SocketAddr, tls: Option<Arc<rustls::ServerConfig>>) -> io::Result<Self> {
        Ok(Listener { tcp: TcpListener::bind(address).await?, tls: tls.map(TlsAcceptor::from) })
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }
}

/// What one listener grants its peers.
#[derive(Clone, Copy, Debug)]
pub struct ServeLimits {
    /// Beyond this a new connection is closed at once: its peer tries elsewhere, those connected are not disturbed.
    pub connections_max: usize,
    /// For the TLS handshake, for the first request to begin, and for each request's headers. A connection that is
    /// idle for as long between two HTTP/1.1 requests is closed too.
    pub header_read_timeout: Duration,
    /// How long requests under way may take once the drain has begun.
    pub drain_grace: Duration,
    /// Bytes buffered for one HTTP/1.1 connection; also the longest head of a request.
    pub buffer_bytes_max: usize,
    /// Requests under way at once on one HTTP/2 connection.
    pub streams_max: u32,
    /// Bytes that the kernel takes for one connection beyond what is under way to its peer. What waits here is old by
    /// the time a slow peer takes it; what waits in front of it can still be replaced by something newer.
    pub unsent_bytes_max: u32,
    /// A connection whose peer takes nothing of what was sent for so long is closed by the kernel.
    pub stalled_max: Duration,
}

impl Default for ServeLimits {
    fn default() -> Self {
        ServeLimits {
            connections_max: 100_000,
            header_read_timeout: Duration::from_secs(30),
            drain_grace: Duration::from_secs(10),
            buffer_bytes_max: 16 << 10,
            streams_max: 64,
            unsent_bytes_max: 16 << 10,
            stalled_max: Duration::from_secs(60),
        }
    }
}

/// Put on every request: the door it came in by stops when this is cancelled. An answer without an end must end then,
/// or it holds the stop for the whole grace.
#[derive(Clone, Debug)]
pub struct Stopping(pub CancellationToken);

/// Serves until the drain stops, then lets requests under way end. Handlers find the peer's address as
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
        http: Arc::new(http_builder(&limits)),
        counters: Counters::new(meter),
        places: Arc::new(Semaphore::new(limits.connections_max)),
        connections: TaskTracker::new(),
        stop: drain.token().clone(),
    };
    drain.spawn(name, server.run(listener.tcp));
}

struct Server {
    tls: Option<TlsAcceptor>,
    router: Router,
    limits: ServeLimits,
    http: Arc<Builder<TokioExecutor>>,
    counters: Counters,
    places: Arc<Semaphore>,
    connections: TaskTracker,
    stop: CancellationToken,
}

impl Server {
    async fn run(self, tcp: TcpListener) -> anyhow::Result<()> {
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => break,
                accepted = tcp.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.handle_stream(stream, peer),
                Err(error) if is_of_one_connection(&error) => debug!(%error, "a connection ended before it began"),
                Err(error) => {
                    // Most likely no file descriptor is left: those who are connected go on meanwhile.
                    warn!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(tcp);
        self.connections.close();
        if tokio::time::timeout(self.limits.drain_grace, self.connections.wait()).await.is_err() {
            warn!(connections = self.connections.len(), "some connections did not end in time");
        }
        Ok(())
    }

    fn handle_stream(&self, stream: TcpStream, peer: SocketAddr) {
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            self.counters.shed.increment(1);
            return;
        };
        self.counters.accepted.increment(1);
        tune(&stream, &self.limits);
        let connection = Connection {
            service: RequestService {
                inner: TowerToHyperService::new(self.router.clone()),
                peer,
                has_begun: Arc::default(),
                stop: self.stop.clone(),
            },
            http: self.http.clone(),
            limits: self.limits,
            counters: self.counters.clone(),
            stop: self.stop.clone(),
        };
        let tls = self.tls.clone();
        let limits = self.limits;
        let task = async move {
            match tls {
                None => connection.run(stream).await,
                Some(tls) => match tokio::time::timeout(limits.header_read_timeout, tls.accept(stream)).await {
                    Ok(Ok(stream)) => connection.run(stream).await,
                    Ok(Err(_)) | Err(_) => connection.counters.no_handshake.increment(1),
                },
            }
            drop(place);
        };
        self.connections.spawn(Box::pin(task));
    }
}

/// What a kernel cannot do it leaves out: the connection works all the same.
fn tune(stream: &TcpStream, limits: &ServeLimits) {
    let _kept_as_it_is = stream.set_nodelay(true);
    #[cfg(target_os = "linux")]
    {
        let socket = socket2::SockRef::from(stream);
        let _kept_as_it_is = socket.set_tcp_notsent_lowat(limits.unsent_bytes_max);
        let _kept_as_it_is = socket.set_tcp_user_timeout(Some(limits.stalled_max));
    }
    #[cfg(not(target_os = "linux"))]
    let _not_to_be_had_here = (limits.unsent_bytes_max, limits.stalled_max);
}

struct Connection {
    service: RequestService,
    http: Arc<Builder<TokioExecutor>>,
    limits: ServeLimits,
    counters: Counters,
    stop: CancellationToken,
}

impl Connection {
    async fn run<S>(self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let has_begun = self.service.has_begun.clone();
        let serving = self.http.serve_connection_with_upgrades(TokioIo::new(stream), self.service);
        let mut serving = std::pin::pin!(serving);
        // hyper's own time-out begins only once it knows which version of HTTP it hears.
        let first_request = tokio::time::sleep(self.limits.header_read_timeout);
        let outcome = tokio::select! {
            outcome = serving.as_mut() => Some(outcome),
            () = first_request => None,
            () = self.stop.cancelled() => None,
        };
        if let Some(outcome) = outcome {
            return trace_outcome(outcome);
        }
        if !self.stop.is_cancelled() {
            if !has_begun.load(Ordering::Relaxed) {
                self.counters.no_request.increment(1);
                return;
            }
            let outcome = tokio::select! {
                outcome = serving.as_mut() => Some(outcome),
                () = self.stop.cancelled() => None,
            };
            if let Some(outcome) = outcome {
                return trace_outcome(outcome);
            }
        }
        serving.as_mut().graceful_shutdown();
        // A peer that never sends what it began must not hold the stop.
        if let Ok(outcome) = tokio::time::timeout(self.limits.drain_grace, serving).await {
            trace_outcome(outcome);
        }
    }
}

fn trace_outcome(outcome: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    if let Err(error) = outcome {
        trace!(error = %error, "connection ended");
    }
}

/// The router, with the peer's address, noting that a request has come.
#[derive(Clone)]
struct RequestService {
    inner: TowerToHyperService<Router>,
    peer: SocketAddr,
    has_begun: Arc<AtomicBool>,
    stop: CancellationToken,
}

impl Service<hyper::Request<Incoming>> for RequestService {
    type Response = axum::response::Response;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn call(&self, mut request: hyper::Request<Incoming>) -> Self::Future {
        self.has_begun.store(true, Ordering::Relaxed);
        let id = RequestId::of(request.headers());
        request.extensions_mut().insert(ConnectInfo(self.peer));
        request.extensions_mut().insert(Stopping(self.stop.clone()));
        let answering = id.clone().scope(self.inner.call(request));
        Box::pin(async move {
            let mut response = answering.await?;
            response.headers_mut().insert(request_id::HEADER, id.to_header());
            Ok(response)
        })
    }
}

#[derive(Clone)]
struct Counters {
    accepted: Counter,
    shed: Counter,
    no_handshake: Counter,
    no_request: Counter,
}

impl Counters {
    fn new(meter: &Meter) -> Self {
        let ended = |reason| {
            let help = "Connections closed by us before a request, by reason.";
            meter.counter("wayfix_http_connections_refused_total", help, &[("reason", reason)])
        };
        Counters {
            accepted: meter.counter("wayfix_http_connections_total", "Connections accepted by the HTTP doors.", &[]),
            shed: ended("too_many"),
            no_handshake: ended("no_handshake"),
            no_request: ended("no_request"),
        }
    }
}

fn http_builder(limits: &ServeLimits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_read_timeout)
        .max_buf_size(limits.buffer_bytes_max.max(BUFFER_BYTES_MIN));
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(limits.header_read_timeout)
        .keep_alive_timeout(limits.header_read_timeout)
        .max_concurrent_streams(limits.streams_max)
        .max_header_list_size(HEADER_LIST_BYTES_MAX);
    builder
}

/// Errors that concern the one connection that was being accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// hyper refuses less.
const BUFFER_BYTES_MIN: usize = 8192;
const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_request_under_way_is_answered_after_the_stop_and_no_new_one_is_taken() {
        let began = Arc::new(tokio::sync::Notify::new());
        let may_end = Arc::new(tokio::sync::Notify::new());
        let router = {
            let (began, may_end) = (began.clone(), may_end.clone());
            Router::new().route(
                "/slow",
                get(move || async move {
                    began.notify_one();
                    may_end.notified().await;
                    "done"
                }),
            )
        };
        let (address, drain) = start(router, ServeLimits::default()).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        began.notified().await;

        drain.token().cancel();
        may_end.notify_one();
        let stopped = drain.stop(Duration::from_secs(5)).await;

        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(stopped);
        assert!(text.ends_with("done"), "{text}");
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn a_peer_that_says_nothing_or_half_a_head_is_given_up() {
        let limits = ServeLimits { header_read_timeout: Duration::from_millis(200), ..ServeLimits::default() };
        let (address, drain) = start(Router::new(), limits).await;
        for said in [&b""[..], b"P", b"PRI", b"GET / HTTP/1.1\r\nhost: x\r\nx-"] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(said).await.unwrap();

            let mut rest = Vec::new();
            let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;

            assert!(ended.is_ok(), "after {said:?}");
        }
        assert!(drain.stop(Duration::from_secs(5)).await);
    }

    #[tokio::test]
    async fn a_connection_too_many_is_closed_and_the_first_goes_on() {
        let limits = ServeLimits { connections_max: 1, ..ServeLimits::default() };
        let (address, drain) = start(Router::new().route("/", get(|| async { "here" })), limits).await;
        let mut first = TcpStream::connect(address).await.unwrap();
        first.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut head = [0; 12];
        first.read_exact(&mut head).await.unwrap();

        let mut second = TcpStream::connect(address).await.unwrap();
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(5), second.read_to_end(&mut rest)).await;

        assert!(ended.is_ok());
        assert_eq!(&head, b"HTTP/1.1 200");
        first.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        first.read_to_string(&mut text).await.unwrap();
        assert!(text.contains("HTTP/1.1 200"), "{text}");
        assert!(drain.stop(Duration::from_secs(5)).await);
    }

    #[tokio::test]
    async fn handlers_know_who_asks() {
        let router =
            Router::new().route("/", get(|ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.to_string() }));
        let (address, drain) = start(router, ServeLimits::default()).await;
        let mut stream = TcpStream::connect(address).await.unwrap();

        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();

        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(text.ends_with(&stream.local_addr().unwrap().to_string()), "{text}");
        assert!(text.contains("x-request-id: "), "{text}");
        assert!(drain.stop(Duration::from_secs(5)).await);
    }

    async fn start(router: Router, limits: ServeLimits) -> (SocketAddr, Drain) {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), None).await.unwrap();
        let address = listener.local_addr().unwrap();
        let drain = Drain::default();
        serve("serve test", listener, router, limits, &Meter::discard(), &drain);
        (address, drain)
    }
}
