//! The gateway whole, over real sockets, on the embedded backends. What the processor would say is said by the tests.

mod contract;
mod deliveries;
mod doors;
mod isolation;
mod map;
mod reading;
mod sockets;
mod streams;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::routing::get;
use backends::control::{Control, ControlReader, ControlWriter, Moment, secret::Secret};
use backends::ledger::embedded::EmbeddedLedger;
use backends::live_store::embedded::MemoryLiveStore;
use backends::log::embedded::{EmbeddedLog, EmbeddedLogConfig};
use backends::log::{Append, DecodedUpdates, Log, Topic};
use backends::registry::embedded::EmbeddedRegistry;
use backends::trail_store::embedded::EmbeddedTrailStore;
use daemon::admin::Readiness;
use daemon::serve::{Listener, ServeLimits, serve};
use daemon::{Clock, Drain, Meter, ProcessContext};
use futures_util::StreamExt;
use protocol::update::{
    Changed, DeliveryBody, DeliveryView, DriverBody, DriverView, Epoch, Event, Generation, ShownPosition, Source,
};
use protocol::{
    AssignmentNumber, Delivery, DeliveryId, DeliveryKey, DeliveryUpdate, DriverId, DriverKey, DriverUpdate,
    MeasuredTime, Offset, PartitionId, Position, TenantId, Time, TrackerKey, Update, UpdateBatch, envelope,
    partition_of,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::tiles::{TileSet, TileSource};
use crate::{AdminKey, GatewayConfig, GatewayParts, GatewaySettings};

/// The backends of one test. They outlive a gateway that is stopped and started on them.
#[derive(Clone)]
struct World {
    _files: Arc<tempfile::TempDir>,
    clock: Clock,
    log: Arc<EmbeddedLog>,
    ledger: Arc<EmbeddedLedger>,
    registry: Arc<EmbeddedRegistry>,
    live_store: Arc<MemoryLiveStore>,
    trail_store: Arc<EmbeddedTrailStore>,
    control: ControlReader,
    control_writer: ControlWriter,
    /// Numbers of updates: they rise over all deliveries, each of which only needs them to rise by one.
    offsets: Arc<AtomicU64>,
    _drain: Drain,
}

struct Server {
    world: World,
    address: SocketAddr,
    router: Router,
    drain: Drain,
}

/// A tenant with one driver and one delivery, and all that opens them.
struct Tenant {
    id: TenantId,
    key: String,
    driver: DriverId,
    device: u16,
    credential: String,
    delivery: DeliveryKey,
    token: String,
}

impl World {
    async fn new(clock: Clock) -> World {
        let files = tempfile::tempdir().unwrap();
        let path = files.path();
        let log_config = EmbeddedLogConfig { partitions: 4, ..EmbeddedLogConfig::default() }.with_clock(clock);
        let log = Arc::new(EmbeddedLog::open(path.join("log"), log_config).unwrap());
        let region_key = backends::control::RegionKey::new(Secret::random());
        let control_writer = ControlWriter::new(log.clone(), region_key.clone());
        control_writer.rotate(Moment::by(clock)).await.unwrap();
        let control = Control::load(&*log, &region_key).await.unwrap();
        let drain = Drain::default();
        let reader = ControlReader::start(log.clone(), region_key, &drain, clock);
        reader.until_current().await;
        World {
            clock,
            log,
            ledger: Arc::new(EmbeddedLedger::open(&path.join("ledger")).unwrap()),
            registry: Arc::new(EmbeddedRegistry::open(&path.join("registry"), control.token_keys).unwrap()),
            live_store: Arc::new(MemoryLiveStore::default()),
            trail_store: Arc::new(EmbeddedTrailStore::open(&path.join("trail")).unwrap()),
            control: reader,
            control_writer,
            offsets: Arc::default(),
            _files: Arc::new(files),
            _drain: drain,
        }
    }

    fn now(&self) -> Time {
        Time(self.clock.now_ms())
    }

    /// Starts a gateway and waits until it is whole.
    async fn serve(&self, settings: GatewaySettings) -> Server {
        let readiness = Readiness::default();
        let server = self.begin(settings.check().unwrap(), &readiness).await;
        eventually(|| readiness.is_ready()).await;
        server
    }

    async fn begin(&self, config: GatewayConfig, readiness: &Readiness) -> Server {
        let drain = Drain::default();
        let parts = GatewayParts {
            log: self.log.clone(),
            decoded: DecodedUpdates::of(&*self.log),
            live_store: self.live_store.clone(),
            trail_store: self.trail_store.clone(),
            ledger: self.ledger.clone(),
            registry: self.registry.clone(),
            control: self.control.clone(),
            control_writer: self.control_writer.clone(),
            edges: vec![protocol::session::EdgeAddress {
                udp: "0.0.0.0:7000".into(),
                https: "http://0.0.0.0:7080".into(),
                pin: None,
            }],
            tiles: Some(Arc::new(OneTile)),
            pages: Router::new().fallback(get(|| async { "a page" })),
        };
        let context = ProcessContext {
            clock: self.clock,
            meter: Meter::discard(),
            readiness: readiness.clone(),
            drain: drain.clone(),
        };
        let handle = crate::start(config, parts, &context);
        let address = open_door(&handle.router, &drain).await;
        Server { world: self.clone(), address, router: handle.router, drain }
    }

    async fn publish(&self, updates: Vec<Update>) {
        let count = self.log.partition_count(Topic::Updates);
        let entries = updates.into_iter().map(|update| {
            let partition = match &update {
                Update::Delivery(update) => partition_of(&TrackerKey::from(update.key).key_bytes(), count),
                Update::Driver(update) => partition_of(&TrackerKey::from(update.key).key_bytes(), count),
                Update::Heartbeat { .. } => PartitionId(0),
            };
            let value = envelope::encode(&UpdateBatch { updates: vec![update] });
            Append { topic: Topic::Updates, partition, key: Bytes::new(), value: value.into() }
        });
        self.log.append(&entries.collect::<Vec<_>>()).await.into_offsets().unwrap();
    }

    /// What the tracker of a delivery says when it takes it: all that the ledger knows, and a position.
    async fn keyframe(&self, key: DeliveryKey, number: u64, position: Option<ShownPosition>) -> Update {
        use backends::ledger::DeliveryLedger;
        let delivery = self.ledger.delivery(key).await.unwrap().unwrap();
        keyframe_of(delivery, number, position, self.now())
    }
}

async fn open_door(router: &Router, drain: &Drain) -> SocketAddr {
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), None).await.unwrap();
    let address = listener.local_addr().unwrap();
    // A stalled peer of these tests is to meet the gateway's patience, not the kernel's.
    let stalled_max = Duration::from_secs(600);
    let limits = ServeLimits { drain_grace: DOOR_GRACE, stalled_max, ..ServeLimits::default() };
    serve("serve test", listener, router.clone(), limits, &Meter::discard(), drain);
    address
}

impl Drop for Server {
    fn drop(&mut self) {
        self.drain.token().cancel();
    }
}

fn settings() -> GatewaySettings {
    GatewaySettings { admin_key: Some(AdminKey::new(ADMIN_KEY.to_string())), ..GatewaySettings::default() }
}

async fn server() -> Server {
    World::new(Clock::system()).await.serve(settings()).await
}

impl Server {
    /// Another door to the same gateway.
    async fn door(&self, drain: &Drain) -> Server {
        let address = open_door(&self.router, drain).await;
        Server { world: self.world.clone(), address, router: self.router.clone(), drain: drain.clone() }
    }

    /// Made by the API's own doors, all of them.
    async fn tenant(&self, name: &str) -> Tenant {
        let (status, tenant) = self.post("/api/v1/tenants", ADMIN_KEY, json!({"name": name})).await;
        assert_eq!(status, 201, "{tenant}");
        let key = tenant["key"].as_str().unwrap().to_string();
        let (status, driver) = self.post("/api/v1/drivers", &key, json!({"name": "Ada"})).await;
        assert_eq!(status, 201, "{driver}");
        let (status, device) = self.post("/api/v1/devices", &key, json!({"driver": driver["driver"]})).await;
        assert_eq!(status, 201, "{device}");
        let (status, made) = self.post("/api/v1/deliveries", &key, two_stops()).await;
        assert_eq!(status, 201, "{made}");
        let id = TenantId(number(&tenant["tenant"]) as u32);
        Tenant {
            id,
            key,
            driver: DriverId(number(&driver["driver"]) as u32),
            device: number(&device["device"]) as u16,
            credential: device["credential"].as_str().unwrap().to_string(),
            delivery: DeliveryKey { tenant: id, delivery: DeliveryId(number(&made["delivery"])) },
            token: made["token"].as_str().unwrap().to_string(),
        }
    }

    async fn get(&self, path: &str, token: &str) -> (u16, Value) {
        let answer = self.ask("GET", path, &[("authorization", &format!("Bearer {token}"))], b"").await;
        (answer.status, answer.json())
    }

    async fn post(&self, path: &str, token: &str, body: Value) -> (u16, Value) {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        let answer = self.ask("POST", path, &headers, body.to_string().as_bytes()).await;
        (answer.status, answer.json())
    }

    /// One request on a connection of its own, read to the connection's end.
    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut stream = self.send(method, path, headers, body).await;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.unwrap();
        Answer::parse(&bytes)
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> TcpStream {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n", self.address);
        if !headers.iter().any(|(name, _)| *name == "connection") {
            head.push_str("connection: close\r\n");
        }
        headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body).await.unwrap();
        stream
    }

    async fn socket(&self, path: &str, token: &str) -> Socket {
        let mut request = format!("ws://{}{path}", self.address).into_client_request().unwrap();
        request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        Socket(tokio_tungstenite::connect_async(request).await.unwrap().0)
    }

    async fn watch(&self, tenant: &Tenant, query: &str) -> Socket {
        let path = format!("/api/v1/tracking/{}/connect{query}", tenant.delivery.delivery);
        self.socket(&path, &tenant.token).await
    }

    async fn events(&self, tenant: &Tenant, query: &str, headers: &[(&str, &str)]) -> EventLines {
        let path = format!("/api/v1/tracking/{}/events{query}", tenant.delivery.delivery);
        let bearer = format!("Bearer {}", tenant.token);
        let mut all = vec![("authorization", bearer.as_str())];
        all.extend(headers);
        EventLines { stream: self.send("GET", &path, &all, b"").await, bytes: Vec::new() }
    }
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Answer {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head, body: bytes[end + 4..].to_vec() }
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    fn is_problem(&self) -> bool {
        self.head.contains("application/problem+json") && self.json()["status"] == self.status
    }
}

struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

/// What comes out of a socket.
#[derive(Debug, PartialEq)]
enum Heard {
    Frame(Value),
    Closed(u16),
}

impl Socket {
    async fn hear(&mut self) -> Heard {
        loop {
            let heard = tokio::time::timeout(PATIENCE, self.0.next()).await.expect("nothing was heard");
            let heard = heard.unwrap().unwrap();
            if let Message::Text(text) = &heard {
                return Heard::Frame(serde_json::from_str(text).unwrap());
            }
            if let Message::Close(frame) = heard {
                return Heard::Closed(frame.map_or(0, |frame| frame.code.into()));
            }
        }
    }

    async fn frame(&mut self) -> Value {
        match self.hear().await {
            Heard::Frame(frame) => frame,
            Heard::Closed(code) => panic!("closed with {code}"),
        }
    }

    async fn frames(&mut self, count: usize) -> Vec<Value> {
        let mut frames = Vec::new();
        for _ in 0..count {
            frames.push(self.frame().await);
        }
        frames
    }

    /// Passes frames by until one of this type comes.
    async fn frame_of(&mut self, kind: &str) -> Value {
        loop {
            let frame = self.frame().await;
            if frame["type"] == kind {
                return frame;
            }
        }
    }

    async fn closed(&mut self) -> u16 {
        loop {
            if let Heard::Closed(code) = self.hear().await {
                return code;
            }
        }
    }

    async fn say(&mut self, text: &str) {
        use futures_util::SinkExt;
        self.0.send(Message::text(text)).await.unwrap();
    }
}

/// An SSE stream, line by line.
struct EventLines {
    stream: TcpStream,
    bytes: Vec<u8>,
}

impl EventLines {
    /// The fields of the next event: (id, data).
    async fn event(&mut self) -> (Option<String>, Value) {
        let (mut id, mut data) = (None, None);
        loop {
            let line = self.line().await.expect("the stream ended");
            if let Some(text) = line.strip_prefix("id: ") {
                id = Some(text.to_string());
            } else if let Some(text) = line.strip_prefix("data: ") {
                data = Some(serde_json::from_str(text).unwrap());
            } else if line.is_empty()
                && let Some(data) = data.take()
            {
                return (id, data);
            }
        }
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.bytes.drain(..=end).collect();
                return Some(String::from_utf8(line).unwrap().trim_end().to_string());
            }
            let mut part = [0; 4096];
            let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut part)).await.expect("nothing came");
            match read.unwrap() {
                0 => return None,
                count => self.bytes.extend_from_slice(&part[..count]),
            }
        }
    }
}

struct OneTile;

impl TileSource for OneTile {
    fn tile(&self, zoom: u8, _x: u32, _y: u32) -> Result<Option<Bytes>, String> {
        Ok((zoom == 1).then(|| Bytes::from_static(b"tile")))
    }

    fn describe(&self) -> TileSet {
        TileSet {
            name: "test".into(),
            version: "v1".into(),
            attribution: "© OpenStreetMap contributors".into(),
            bounds: [24.0, 60.0, 25.0, 61.0],
            zoom_min: 0,
            zoom_max: 14,
            layers: vec!["roads".into()],
        }
    }
}

fn keyframe_of(delivery: Delivery, number: u64, position: Option<ShownPosition>, now: Time) -> Update {
    let (key, assignment) = (delivery.key, delivery.assignment);
    let view = DeliveryView { delivery, position, progress: None, eta: None, plan: None, silent: None };
    delivery_update(key, assignment, number, DeliveryBody::Keyframe { view: Box::new(view) }, vec![], now)
}

fn moved(key: DeliveryKey, number: u64, position: ShownPosition, now: Time) -> Update {
    let changed = Changed { position: Some(position), ..Changed::default() };
    delivery_update(key, AssignmentNumber(1), number, DeliveryBody::Changed { changed }, vec![Event::Moved], now)
}

fn delivery_update(
    key: DeliveryKey,
    assignment: AssignmentNumber,
    number: u64,
    body: DeliveryBody,
    events: Vec<Event>,
    at: Time,
) -> Update {
    let epoch = Epoch { assignment, generation: Generation { incarnation: 1, claim: Offset(1) } };
    Update::Delivery(DeliveryUpdate { key, epoch, number, source: Source::default(), at, events, body, is_last: false })
}

fn driver_update(key: DriverKey, offset: u64, position: Option<ShownPosition>, at: Time) -> Update {
    let view = DriverView {
        key,
        lead: None,
        position,
        phone_state: None,
        battery_percent: None,
        deliveries: vec![],
        silent: None,
        vehicle: protocol::record::Vehicle::Car,
    };
    Update::Driver(DriverUpdate {
        key,
        generation: Generation { incarnation: 1, claim: Offset(1) },
        fold_version: 1,
        source: Source { offset: Offset(offset), ..Source::default() },
        at,
        events: vec![],
        body: DriverBody::Keyframe { view: Box::new(view) },
    })
}

/// So many metres north of a place, true at that time.
fn at(metres: f64, time: Time) -> ShownPosition {
    ShownPosition {
        position: Position::from_degrees(60.0 + metres / 111_319.5, 24.5).unwrap(),
        snapped: true,
        confidence_percent: 90,
        heading_255: Some(0),
        speed_dm_s: Some(100),
        accuracy_m: Some(5),
        measured: MeasuredTime::from_time(time),
        event_time: time,
        received: time,
        standing: false,
    }
}

fn two_stops() -> Value {
    json!({"reference": "A-1", "stops": [
        {"kind": "pickup", "lat": 60.0, "lng": 24.5, "label": "Bakery"},
        {"kind": "drop_off", "lat": 60.01, "lng": 24.5, "label": "Home"},
    ]})
}

fn kinds(frames: &[Value]) -> Vec<&str> {
    frames.iter().map(|frame| frame["type"].as_str().unwrap()).collect()
}

fn numbers(frames: &[Value]) -> Vec<u64> {
    frames.iter().filter(|frame| frame["type"] == "status").map(|frame| frame["number"].as_u64().unwrap()).collect()
}

async fn eventually(mut condition: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "it did not come about");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl World {
    fn next_offset(&self) -> u64 {
        self.offsets.fetch_add(1, Ordering::Relaxed) + 1
    }
}

const ADMIN_KEY: &str = "the-operator-s-key-of-the-tests";
const PATIENCE: Duration = Duration::from_secs(20);
const DOOR_GRACE: Duration = Duration::from_secs(15);

/// An id as answers give it.
fn text(id: &Value) -> &str {
    id.as_str().expect("ids are text")
}

fn number(id: &Value) -> u64 {
    text(id).parse().expect("ids are digits")
}
