//! Whole fleets against a small API and an edge on real sockets, twenty times as fast as life: what a fleet says was
//! acknowledged is what the edge has, and what it says of deliveries is what the API has.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure here fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use fleet::replay::{self, ReplayOptions};
use fleet::sim::{self, SimOptions};
use fleet::{Conditions, FleetError, FleetOptions, TenantKey};
use maps::geo;
use maps::import::{ImportOptions, import_bytes};
use maps::town::{TownOptions, extract};
use protocol::datagram::{Kid, Suite};
use protocol::session::{
    EdgeAddress, EdgeConfig, EdgeSessions, FleetKey, FleetKeys, Lifetime, OpenedDatagram, SessionTerms, issue,
};
use protocol::{DeliveryState, DeviceKey, DeviceNumber, DriverId, FixNumber, Position, TenantId, Time};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::{TcpListener, UdpSocket};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_a_bad_network_every_fix_comes_home_and_is_told_once() {
    let server = Server::start().await;
    let folder = tempfile::tempdir().unwrap();
    let mut options = SimOptions::new(server.options(&folder), town(&folder));
    options.fleet.network = Conditions { loss: 0.15, duplicate: 0.1, delay_ms_min: 5, delay_ms_max: 200 };
    options.drivers = 4;
    options.interval = Duration::from_secs(2);
    options.duration = Some(Duration::from_secs(360));
    options.custom.cooking_s = 5.0..=20.0;
    options.custom.handing_over_s = 5.0..=10.0;
    options.custom.to_pickup_m = 200.0..=600.0;
    options.custom.to_drop_off_m = 300.0..=900.0;

    let report = sim::run(options, std::future::pending()).await.unwrap();

    let acked = acked(&folder);
    let taken = server.shared.lock().unwrap();
    assert!(report.fixes_made > 500 && report.deliveries_delivered >= 2, "{report:?}");
    assert_eq!((report.fixes_left, report.fixes_refused, report.deliveries_failed), (0, 0, 0), "{report:?}");
    assert_eq!((report.fixes_acked, report.fixes_sent), (report.fixes_made, report.fixes_made), "{report:?}");
    assert_eq!(acked.len() as u64, report.fixes_acked);
    assert_eq!(acked.iter().copied().collect::<BTreeSet<_>>(), taken.edge.taken);
    assert!(report.network.datagrams_lost > 20 && report.fixes_sent_again > 0, "{report:?}");
    let delivered = taken.deliveries.values().filter(|state| **state == DeliveryState::Delivered).count() as u64;
    assert_eq!((report.deliveries_delivered, report.deliveries_created), (delivered, taken.deliveries.len() as u64));
    assert!(report.api_requests_repeated > 0 && taken.repeated > 0, "{report:?}");
    drop(taken);
    the_truth_is_where_the_fixes_are(&folder, &acked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recorded_trip_is_driven_again_from_its_first_point_to_its_last() {
    let server = Server::start().await;
    let folder = tempfile::tempdir().unwrap();
    let traces = folder.path().join("trips.jsonl");
    let trip = |id: u32, n: i32| {
        let fixes: Vec<[f64; 3]> =
            (0..60).map(|s| [f64::from(s), -8.61 + f64::from(s) * 1e-4, 41.15 + f64::from(n) * 1e-3]).collect();
        json!({ "id": id, "truth": [], "fixes": fixes }).to_string()
    };
    std::fs::write(&traces, [trip(1, 0), trip(2, 1), trip(3, 2), trip(4, 3)].join("\n")).unwrap();
    let mut options = ReplayOptions::new(server.options(&folder), &traces);
    options.trips_max = Some(3);
    options.at_once = 2;
    options.every = Some(Duration::from_secs(4));

    let report = replay::run(options, std::future::pending()).await.unwrap();

    let acked = acked(&folder);
    assert_eq!((report.drivers, report.deliveries_delivered, report.deliveries_failed), (3, 3, 0), "{report:?}");
    assert_eq!((report.fixes_made, report.fixes_acked, report.fixes_left), (45, 45, 0), "{report:?}");
    assert_eq!(acked.iter().copied().collect::<BTreeSet<_>>(), server.shared.lock().unwrap().edge.taken);
    let drivers: BTreeSet<u32> = acked.iter().map(|identity| identity.0).collect();
    for driver in drivers {
        let of_driver: Vec<_> = acked.iter().filter(|identity| identity.0 == driver).collect();
        let first = of_driver.iter().map(|identity| identity.1).min().unwrap();
        for (_, measured_ds, _, lon_e6) in of_driver {
            assert_eq!(*lon_e6, -8_610_000 + (measured_ds - first) as i32 * 10);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_that_is_told_to_stop_goes_home_with_all_it_measured() {
    let server = Server::start().await;
    let folder = tempfile::tempdir().unwrap();
    let mut options = SimOptions::new(server.options(&folder), town(&folder));
    options.interval = Duration::from_secs(1);

    let report = sim::run(options, tokio::time::sleep(Duration::from_secs(3))).await.unwrap();

    assert!(report.fixes_made > 100, "{report:?}");
    assert_eq!((report.fixes_acked, report.fixes_left), (report.fixes_made, 0), "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_key_a_wrong_map_and_a_wrong_file_are_said_at_once() {
    let server = Server::start().await;
    let folder = tempfile::tempdir().unwrap();
    let good = server.options(&folder);
    let wrong_key = FleetOptions { tenant_key: TenantKey::new("wft_other"), ..good.clone() };
    std::fs::write(folder.path().join("text.jsonl"), "no trips").unwrap();
    std::fs::write(folder.path().join("empty.jsonl"), "").unwrap();
    let replay =
        |name: &str| replay::run(ReplayOptions::new(good.clone(), folder.path().join(name)), std::future::pending());
    let map = town(&folder);

    let key = sim::run(SimOptions::new(wrong_key, map), std::future::pending()).await;
    let no_map =
        sim::run(SimOptions::new(good.clone(), folder.path().join("text.jsonl")), std::future::pending()).await;

    assert!(matches!(key, Err(FleetError::Api(_))), "{key:?}");
    assert!(matches!(no_map, Err(FleetError::Map(_))), "{no_map:?}");
    assert!(matches!(replay("text.jsonl").await, Err(FleetError::Traces(_))));
    assert!(matches!(replay("empty.jsonl").await, Err(FleetError::NoTrips)));
    assert!(matches!(replay("nowhere.jsonl").await, Err(FleetError::Traces(_))));
}

/// The median fix is off by the receiver's error and what is driven in half a second.
fn the_truth_is_where_the_fixes_are(folder: &TempDir, acked: &[Identity]) {
    let mut truth: BTreeMap<(u64, i64), Position> = BTreeMap::new();
    for line in lines(&folder.path().join("truth.jsonl")) {
        let position = Position::from_degrees(line["lat"].as_f64().unwrap(), line["lng"].as_f64().unwrap()).unwrap();
        truth.insert((line["driver"].as_u64().unwrap(), line["at_ms"].as_i64().unwrap() / 1000), position);
    }
    let mut offs_m: Vec<f64> = Vec::new();
    for (driver, measured_ds, lat_e6, lon_e6) in acked {
        let Some(position) = truth.get(&(u64::from(*driver), (measured_ds + 5) / 10)) else { continue };
        let fix = Position { lat_e7: lat_e6 * 10, lon_e7: lon_e6 * 10 };
        offs_m.push(geo::distance_cm(*position, fix) / 100.0);
    }
    offs_m.sort_by(f64::total_cmp);
    assert!(offs_m.len() * 2 > acked.len(), "{} of {} have a truth", offs_m.len(), acked.len());
    assert!(offs_m[offs_m.len() / 2] < 12.0, "{} m", offs_m[offs_m.len() / 2]);
    assert!(offs_m[offs_m.len() * 9 / 10] < 25.0, "{} m", offs_m[offs_m.len() * 9 / 10]);
}

/// Driver, measured time, latitude and longitude: one identity of a fix.
type Identity = (u32, i64, i32, i32);

fn acked(folder: &TempDir) -> Vec<Identity> {
    let identity = |line: Value| {
        let whole = |name: &str| line[name].as_i64().unwrap();
        (whole("driver") as u32, whole("measured_ds"), whole("lat_e6") as i32, whole("lon_e6") as i32)
    };
    lines(&folder.path().join("acked.jsonl")).map(identity).collect()
}

fn lines(path: &Path) -> impl Iterator<Item = Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<_>>().into_iter()
}

fn town(folder: &TempDir) -> PathBuf {
    let bytes = extract(&TownOptions { junctions: 150, ..TownOptions::default() });
    let path = folder.path().join("town.wfm");
    std::fs::write(&path, import_bytes(&bytes, &ImportOptions::default()).unwrap()).unwrap();
    path
}

/// Twenty times as fast as life, for server and phones alike.
#[derive(Clone, Copy)]
struct FastClock {
    origin: Time,
}

const FACTOR: u32 = 20;

impl phone::Clock for FastClock {
    fn now(&self) -> Time {
        Time(self.origin.0 + real_now().millis_since(self.origin) * i64::from(FACTOR))
    }

    fn real(&self, duration: Duration) -> Duration {
        duration / FACTOR
    }
}

fn real_now() -> Time {
    Time(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64)
}

struct Server {
    url: String,
    clock: FastClock,
    shared: Arc<Mutex<Shared>>,
}

/// What API and edge know.
struct Shared {
    clock: FastClock,
    fleet_key: FleetKey,
    edges: Vec<EdgeAddress>,
    edge: Edge,
    drivers: u32,
    sessions: u32,
    deliveries: BTreeMap<u64, DeliveryState>,
    /// Answers under their idempotency keys.
    answered: BTreeMap<String, Value>,
    posts: u32,
    repeated: u32,
}

struct Edge {
    sessions: EdgeSessions,
    out: OpenedDatagram,
    taken: BTreeSet<Identity>,
}

impl Edge {
    /// Opens, takes for durable at once, and answers.
    fn handle(&mut self, now: Time, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
        let opened = self.sessions.handle_datagram(now, &mut bytes, &mut self.out).ok()?;
        let driver = opened.device.driver.0;
        let identity = |position: Position| (position.lat_e7 / 10, position.lon_e7 / 10);
        self.taken.extend(self.out.fixes.iter().map(|(_, fix)| {
            let (lat_e6, lon_e6) = identity(fix.position);
            (driver, fix.measured.0, lat_e6, lon_e6)
        }));
        let ranges = self.out.ranges();
        let Some(to) = self.out.answer_to else {
            self.sessions.handle_durable(&opened.session, &ranges);
            return None;
        };
        self.sessions.seal_ack(&to, &ranges).map(|sealed| sealed.to_vec())
    }
}

type World = State<Arc<Mutex<Shared>>>;
type Answer = Result<Json<Value>, (StatusCode, Json<Value>)>;

impl Server {
    async fn start() -> Self {
        let clock = FastClock { origin: real_now() };
        let key = || FleetKey::new(Kid::new(0).unwrap(), &[3; 32]);
        let mut keys = FleetKeys::default();
        keys.set(Arc::new(key()));
        let config = EdgeConfig { sessions_max: 1000, ..EdgeConfig::default() };
        let edge =
            Edge { sessions: EdgeSessions::new(config, keys), out: OpenedDatagram::default(), taken: BTreeSet::new() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let udp: SocketAddr = socket.local_addr().unwrap();
        let shared = Arc::new(Mutex::new(Shared {
            clock,
            fleet_key: key(),
            edges: vec![EdgeAddress { udp: udp.to_string(), https: url.clone(), pin: None }],
            edge,
            drivers: 0,
            sessions: 0,
            deliveries: BTreeMap::new(),
            answered: BTreeMap::new(),
            posts: 0,
            repeated: 0,
        }));
        tokio::spawn(serve_udp(socket, shared.clone()));
        let router = Router::new()
            .route("/api/v1/sessions", post(sessions))
            .route("/api/v1/deliveries/{delivery}", get(show))
            .route("/api/v1/{*path}", post(change))
            .route("/v1/datagrams", post(datagram))
            .with_state(shared.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Server { url, clock, shared }
    }

    fn options(&self, folder: &TempDir) -> FleetOptions {
        let mut options = FleetOptions::new(&self.url, TenantKey::new("wft_key"));
        options.clock = Arc::new(self.clock);
        options.acked = Some(folder.path().join("acked.jsonl"));
        options.truth = Some(folder.path().join("truth.jsonl"));
        options.drain_max = Duration::from_secs(300);
        options
    }
}

async fn serve_udp(socket: UdpSocket, shared: Arc<Mutex<Shared>>) {
    let mut buffer = [0; 2048];
    while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
        let answer = handle(&shared, &buffer[..len]);
        if let Some(answer) = answer {
            let _may_be_gone = socket.send_to(&answer, from).await;
        }
    }
}

fn handle(shared: &Mutex<Shared>, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut shared = shared.lock().unwrap();
    let now = phone::Clock::now(&shared.clock);
    shared.edge.handle(now, bytes.to_vec())
}

async fn datagram(State(shared): World, bytes: Bytes) -> Vec<u8> {
    handle(&shared, &bytes).unwrap_or_default()
}

async fn sessions(State(shared): World, headers: HeaderMap) -> Answer {
    let mut shared = shared.lock().unwrap();
    let driver: u32 = bearer(&headers).strip_prefix("wfd_").and_then(|n| n.parse().ok()).ok_or_else(refused)?;
    shared.sessions += 1;
    let now = phone::Clock::now(&shared.clock);
    let terms = SessionTerms {
        suite: Suite::Aes128Gcm,
        device: DeviceKey { tenant: TenantId(1), driver: DriverId(driver), device: DeviceNumber(1) },
        start_s: now.as_secs() as u32,
        lifetime: Lifetime::MAX,
        numbers_from: FixNumber(1 + u64::from(shared.sessions) * 32_768),
        edges: shared.edges.clone(),
        ack_every: 8,
        interval_ms: 1000,
    };
    let grant = issue(&shared.fleet_key, &terms, now).unwrap();
    Ok(Json(serde_json::to_value(&grant).unwrap()))
}

async fn show(State(shared): World, UrlPath(delivery): UrlPath<u64>) -> Answer {
    let mut shared = shared.lock().unwrap();
    let state = shared.deliveries.get_mut(&delivery).ok_or_else(refused)?;
    // The tracker has seen him leave by the time he asks.
    if *state == DeliveryState::Ready {
        *state = DeliveryState::PickedUp;
    }
    Ok(Json(json!({ "delivery": delivery, "status": state.name() })))
}

/// Every fifth answer is lost after the work was done: the key must find it again.
async fn change(State(shared): World, UrlPath(path): UrlPath<String>, headers: HeaderMap, body: Json<Value>) -> Answer {
    let mut shared = shared.lock().unwrap();
    if bearer(&headers) != "wft_key" {
        return Err(refused());
    }
    let key = headers["idempotency-key"].to_str().unwrap().to_string();
    if let Some(answer) = shared.answered.get(&key).cloned() {
        shared.repeated += 1;
        return Ok(Json(answer));
    }
    let answer = shared.change(&path, &body)?;
    shared.answered.insert(key, answer.clone());
    shared.posts += 1;
    if shared.posts.is_multiple_of(5) {
        return Err((StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "detail": "come back" }))));
    }
    Ok(Json(answer))
}

impl Shared {
    fn change(&mut self, path: &str, body: &Value) -> Result<Value, (StatusCode, Json<Value>)> {
        let parts: Vec<&str> = path.split('/').collect();
        match parts[..] {
            ["drivers"] => {
                self.drivers += 1;
                Ok(json!({ "driver": self.drivers, "name": body["name"] }))
            }
            ["devices"] => Ok(json!({ "device": 1, "credential": format!("wfd_{}", body["driver"]) })),
            ["deliveries"] => {
                assert_eq!(body["stops"].as_array().unwrap().len(), 2);
                let delivery = self.deliveries.len() as u64 + 1;
                self.deliveries.insert(delivery, DeliveryState::Received);
                Ok(json!({ "delivery": delivery }))
            }
            ["deliveries", delivery, "assign"] => {
                assert!(body["driver"].is_u64() && self.deliveries.contains_key(&delivery.parse().unwrap()));
                Ok(json!({}))
            }
            ["deliveries", delivery, "status"] => {
                let to: DeliveryState = serde_json::from_value(body["status"].clone()).unwrap();
                let state = self.deliveries.get_mut(&delivery.parse().unwrap()).unwrap();
                if !state.allowed_next().contains(&to) {
                    return Err((StatusCode::CONFLICT, Json(json!({ "detail": "not from there" }))));
                }
                *state = to;
                Ok(json!({}))
            }
            _ => Err(refused()),
        }
    }
}

fn bearer(headers: &HeaderMap) -> &str {
    headers.get("authorization").and_then(|value| value.to_str().ok()?.strip_prefix("Bearer ")).unwrap_or_default()
}

fn refused() -> (StatusCode, Json<Value>) {
    (StatusCode::UNAUTHORIZED, Json(json!({ "detail": "no" })))
}
