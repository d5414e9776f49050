//! The driver with real sockets: a small API, an edge on UDP, and an edge behind TLS with a certificate of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure here fails the test")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use phone::driver::{Credential, HttpClients};
use phone::{Clock, Phone, PhoneConfig, StartError};
use protocol::datagram::{Kid, Suite};
use protocol::session::{
    EdgeAddress, EdgeConfig, EdgeSessions, FleetKey, FleetKeys, Lifetime, OpenedDatagram, SessionTerms, issue,
};
use protocol::{DeviceKey, DeviceNumber, DriverId, Fix, FixNumber, MeasuredTime, Position, TenantId, Time};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

#[tokio::test]
async fn fixes_sent_over_udp_are_acknowledged_and_the_phone_stops_settled() {
    let server = Server::start(true).await;
    let acked = Arc::new(AtomicU64::new(0));
    let mut config = server.phone_config("driver-1");
    let counter = acked.clone();
    config.on_acked = Some(Arc::new(move |_, _| {
        counter.fetch_add(1, Ordering::Relaxed);
    }));
    let phone = Phone::start(config).await.unwrap();

    for n in 0..40 {
        phone.send_fix(fix(n)).unwrap();
    }
    let left = phone.shutdown().await;

    assert_eq!(left, []);
    assert_eq!(acked.load(Ordering::Relaxed), 40);
    assert_eq!(server.edge.lock().unwrap().measured.len(), 40);
    assert_eq!(server.by_https.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn an_edge_with_an_ipv6_address_is_reached() {
    if UdpSocket::bind("[::1]:0").await.is_err() {
        eprintln!("skipped: this machine has no IPv6");
        return;
    }
    let server = Server::start_at("[::1]:0", true).await;
    let phone = Phone::start(server.phone_config("driver-1")).await.unwrap();

    phone.send_fix(fix(1)).unwrap();

    assert_eq!(phone.shutdown().await, []);
    assert_eq!(server.by_https.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn with_udp_dead_they_go_by_https_to_the_pinned_certificate() {
    let server = Server::start(false).await;
    // 20 times as fast as life, so that silence shows soon.
    let mut config = server.phone_config("driver-1");
    config.clock = Arc::new(FastClock { origin: now(), factor: 20 });
    config.drain_max = Duration::from_secs(120);
    let phone = Phone::start(config).await.unwrap();

    for n in 0..10 {
        phone.send_fix(fix(n)).unwrap();
    }
    let left = phone.shutdown().await;

    assert_eq!(left, []);
    assert!(server.by_https.load(Ordering::Relaxed) > 0);
    assert_eq!(server.edge.lock().unwrap().measured.len(), 10);
}

#[tokio::test]
async fn another_certificate_than_the_pinned_one_is_not_spoken_to() {
    let server = Server::start(false).await;
    let http = HttpClients::default();
    let wait = Duration::from_secs(5);

    let right = http.post_datagram(&server.tls_url, Some(server.pin), vec![1; 40], wait).await;
    let wrong = http.post_datagram(&server.tls_url, Some([9; 32]), vec![1; 40], wait).await;
    let none = http.post_datagram(&server.tls_url, None, vec![1; 40], wait).await;

    assert_eq!(right.unwrap(), Vec::<u8>::new());
    assert!(wrong.is_err() && none.is_err());
}

#[tokio::test]
async fn a_refused_credential_sends_nothing_and_keeps_the_fixes() {
    let server = Server::start(true).await;
    let mut config = server.phone_config("somebody else");
    config.drain_max = Duration::from_millis(300);
    let phone = Phone::start(config).await.unwrap();

    phone.send_fix(fix(1)).unwrap();
    let left = phone.shutdown().await;

    assert_eq!(left.len(), 1);
    assert_eq!(left[0].fix, fix(1));
}

#[tokio::test]
async fn a_phone_may_not_speak_plain_http_over_a_network() {
    let config = PhoneConfig::new("http://192.0.2.1:8080", Credential::new("x"));

    assert!(matches!(Phone::start(config).await, Err(StartError::Api(_))));
}

#[tokio::test]
async fn hundreds_of_phones_share_a_process() {
    let server = Server::start(true).await;
    let http = HttpClients::default();
    let mut phones = Vec::new();
    for n in 0..300 {
        let mut config = server.phone_config(&format!("driver-{n}"));
        config.http = http.clone();
        phones.push(Phone::start(config).await.unwrap());
    }

    for (n, phone) in phones.iter().enumerate() {
        phone.send_fix(fix(n as i64)).unwrap();
    }
    for phone in phones {
        assert_eq!(phone.shutdown().await, []);
    }

    assert_eq!(server.edge.lock().unwrap().measured.len(), 300);
}

fn now() -> Time {
    Time(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64)
}

/// Measured n seconds before the test began.
fn fix(n: i64) -> Fix {
    static BEGIN: OnceLock<Time> = OnceLock::new();
    let begin = MeasuredTime::from_time(*BEGIN.get_or_init(now));
    Fix::at(MeasuredTime(begin.0 - n * 10), Position { lat_e7: 411_000_000 + n as i32 * 100, lon_e7: 0 })
}

struct FastClock {
    origin: Time,
    factor: u32,
}

impl Clock for FastClock {
    fn now(&self) -> Time {
        Time(self.origin.0 + now().millis_since(self.origin) * i64::from(self.factor))
    }

    fn real(&self, duration: Duration) -> Duration {
        duration / self.factor
    }
}

/// API and edge.
struct Server {
    api_url: String,
    tls_url: String,
    pin: [u8; 32],
    edge: Arc<Mutex<Edge>>,
    by_https: Arc<AtomicU64>,
}

struct Edge {
    sessions: EdgeSessions,
    out: OpenedDatagram,
    measured: std::collections::BTreeSet<(DriverId, MeasuredTime)>,
    /// Follows the phones' clocks, which may be fast.
    clock: Time,
}

impl Edge {
    /// Opens, takes for durable at once, and answers.
    fn handle(&mut self, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
        let opened = self.sessions.handle_datagram(self.clock, &mut bytes, &mut self.out).ok()?;
        let driver = opened.device.driver;
        self.measured.extend(self.out.fixes.iter().map(|(_, fix)| (driver, fix.measured)));
        let ranges = self.out.ranges();
        let Some(to) = self.out.answer_to else {
            self.sessions.handle_durable(&opened.session, &ranges);
            return None;
        };
        self.sessions.seal_ack(&to, &ranges).map(|sealed| sealed.to_vec())
    }
}

#[derive(Clone)]
struct Api {
    fleet_key: Arc<FleetKey>,
    edges: Vec<EdgeAddress>,
    drivers: Arc<AtomicU64>,
}

async fn sessions(State(api): State<Api>, headers: HeaderMap, asked: axum::Json<serde_json::Value>) -> Response {
    assert!(asked["logged_in"].is_boolean());
    let bearer = headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !bearer.starts_with("Bearer driver-") {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let driver = DriverId(api.drivers.fetch_add(1, Ordering::Relaxed) as u32);
    let terms = SessionTerms {
        suite: Suite::Aes128Gcm,
        device: DeviceKey { tenant: TenantId(1), driver, device: DeviceNumber(1) },
        start_s: now().as_secs() as u32,
        lifetime: Lifetime::MAX,
        numbers_from: FixNumber(1),
        edges: api.edges.clone(),
        ack_every: 8,
        interval_ms: 100,
    };
    let grant = issue(&api.fleet_key, &terms, now()).unwrap();
    (StatusCode::CREATED, serde_json::to_vec(&grant).unwrap()).into_response()
}

impl Server {
    async fn start(udp_alive: bool) -> Self {
        Self::start_at("127.0.0.1:0", udp_alive).await
    }

    async fn start_at(udp: &str, udp_alive: bool) -> Self {
        let fleet_key = Arc::new(FleetKey::new(Kid::new(0).unwrap(), &[3; 32]));
        let mut keys = FleetKeys::default();
        keys.set(fleet_key.clone());
        let edge_config = EdgeConfig { sessions_max: 1000, ..EdgeConfig::default() };
        let edge = Arc::new(Mutex::new(Edge {
            sessions: EdgeSessions::new(edge_config, keys),
            out: OpenedDatagram::default(),
            measured: Default::default(),
            clock: now(),
        }));
        let udp = serve_udp(udp, edge.clone(), udp_alive).await;
        let by_https = Arc::new(AtomicU64::new(0));
        let (tls, pin) = serve_tls(edge.clone(), by_https.clone()).await;
        let tls_url = format!("https://{tls}");
        let address = EdgeAddress { udp: udp.to_string(), https: tls_url.clone(), pin: Some(pin) };
        let api = Api { fleet_key, edges: vec![address], drivers: Arc::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api_url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().route("/api/v1/sessions", post(sessions)).with_state(api);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Server { api_url, tls_url, pin, edge, by_https }
    }

    fn phone_config(&self, credential: &str) -> PhoneConfig {
        PhoneConfig::new(self.api_url.clone(), Credential::new(credential))
    }
}

async fn serve_udp(at: &str, edge: Arc<Mutex<Edge>>, alive: bool) -> SocketAddr {
    let socket = UdpSocket::bind(at).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
            if alive {
                let answer = edge.lock().unwrap().handle(buffer[..len].to_vec());
                if let Some(answer) = answer {
                    socket.send_to(&answer, from).await.unwrap();
                }
            }
        }
    });
    address
}

/// One request per connection, which is all that is needed here.
async fn serve_tls(edge: Arc<Mutex<Edge>>, by_https: Arc<AtomicU64>) -> (SocketAddr, [u8; 32]) {
    let certified = rcgen::generate_simple_self_signed(["edge.example".to_string()]).unwrap();
    let mut pin = [0; 32];
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certified.cert.der());
    pin.copy_from_slice(hash.as_ref());
    let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, edge, by_https) = (acceptor.clone(), edge.clone(), by_https.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                serve_one(stream, &edge, &by_https).await;
            });
        }
    });
    (address, pin)
}

async fn serve_one(
    mut stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>,
    edge: &Mutex<Edge>,
    by_https: &AtomicU64,
) {
    let mut request = Vec::new();
    let body_at = loop {
        let mut chunk = [0; 2048];
        let Ok(len @ 1..) = stream.read(&mut chunk).await else { return };
        request.extend_from_slice(&chunk[..len]);
        let Some(end) = request.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&request[..end]).to_lowercase();
        let body_len: usize =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
        assert!(head.starts_with("post /v1/datagrams http/1.1"), "{head}");
        assert!(head.contains("content-type: application/vnd.wayfix.datagram"), "{head}");
        if request.len() == end + 4 + body_len {
            break end + 4;
        }
    };
    by_https.fetch_add(1, Ordering::Relaxed);
    let answer = edge.lock().unwrap().handle(request[body_at..].to_vec());
    let response = match answer {
        None => b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n".to_vec(),
        Some(answer) => {
            let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", answer.len());
            [head.as_bytes(), &answer].concat()
        }
    };
    let _ = stream.write_all(&response).await;
    let _ = stream.shutdown().await;
}
