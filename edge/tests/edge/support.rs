//! An edge with the embedded log behind it, phones before it, and a switch that takes the log away.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use backends::control::{Control, ControlReader, ControlWriter, Moment, RegionKey, Secret, credential};
use backends::log::embedded::{EmbeddedLog, EmbeddedLogConfig};
use backends::log::front::{Front, Gate};
use backends::log::{Append, Appended, Log, LogError, Topic, read_range};
use daemon::admin::Readiness;
use daemon::meter::Exposition;
use daemon::{Clock, Drain, Meter, ProcessContext};
use edge::{EdgeHandle, EdgeParts, EdgeSettings};
use protocol::datagram::answer::{Answer, AnswerSays};
use protocol::datagram::{Control as ControlAnswer, DatagramKind, Kid, NumberRanges, Suite, payload};
use protocol::session::{FleetKey, Lifetime, PhoneSession, SessionTerms, issue};
use protocol::{
    DeviceKey, DeviceNumber, DriverId, Fix, FixNumber, FixRecord, MeasuredTime, PartitionId, Position, Record,
    RecordBatch, TenantId, Time, envelope,
};
use tower::ServiceExt;

pub struct TestEdge {
    pub handle: EdgeHandle,
    pub log: Arc<SwitchedLog>,
    pub writer: ControlWriter,
    pub state_folder: PathBuf,
    control: Arc<Control>,
    drain: Drain,
    exposition: Exposition,
    _folder: Option<tempfile::TempDir>,
}

impl TestEdge {
    pub async fn start() -> Self {
        Self::start_with(EdgeSettings { udp_threads: 2, ..settings() }).await
    }

    pub async fn start_with(settings: EdgeSettings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = EmbeddedLogConfig { partitions: 4, ..EmbeddedLogConfig::default() };
        let log = EmbeddedLog::open(folder.path().join("log"), config).unwrap();
        let log = Arc::new(SwitchedLog::new(Arc::new(log)));
        let state_folder = folder.path().join("edge");
        let mut edge = Self::start_on(log, settings, &state_folder).await;
        edge._folder = Some(folder);
        edge
    }

    /// On a log that outlives the edge.
    pub async fn start_on(log: Arc<SwitchedLog>, settings: EdgeSettings, state_folder: &Path) -> Self {
        let drain = Drain::default();
        let region_key = RegionKey::new(Secret::new([5; 32]));
        let writer = ControlWriter::new(log.clone(), region_key.clone());
        let was_away = log.is_away.swap(false, Ordering::SeqCst);
        writer.rotate(Moment::of(now())).await.unwrap();
        let reader = ControlReader::start(log.clone(), region_key, &drain, Clock::system());
        reader.until_current().await;
        log.is_away.store(was_away, Ordering::SeqCst);
        let (meter, exposition) = Meter::prometheus();
        let config = settings.check(state_folder).unwrap();
        let context =
            ProcessContext { clock: Clock::system(), meter, readiness: Readiness::default(), drain: drain.clone() };
        let parts = EdgeParts { log: log.clone(), control: reader.clone() };
        let handle = edge::start(config, parts, &context).await.unwrap();
        let state_folder = state_folder.to_path_buf();
        let control = reader.snapshot();
        let edge = TestEdge { handle, log, writer, state_folder, control, drain, exposition, _folder: None };
        // Each thread has its keys once it accepts good datagrams: so many phones reach every thread.
        let mut phones: Vec<Phone> = (0..PHONES_FIRST).map(|n| edge.phone(1_000_000 + n)).collect();
        let accepted = || edge.metric("wayfix_edge_datagrams_accepted_total");
        eventually("the edge has its keys", || {
            let before = accepted();
            phones.iter_mut().for_each(|phone| phone.send(DatagramKind::Ping, &[]));
            let until = Instant::now() + Duration::from_secs(1);
            while accepted() < before + u64::from(PHONES_FIRST) && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
            accepted() >= before + u64::from(PHONES_FIRST)
        });
        edge
    }

    pub fn phone(&self, driver: u32) -> Phone {
        let key = self.control.sealing_key(now()).expect("rotation made one");
        let fleet_key = FleetKey::new(Kid::new(key.span.kid.0).unwrap(), key.secret.bytes());
        Phone::new(&fleet_key, device(driver), self.handle.udp_addr)
    }

    pub fn credential(&self, driver: u32) -> String {
        credential::issue(device(driver), &self.control.token_keys).unwrap()
    }

    pub async fn request(&self, request: Request<Body>) -> Response<Body> {
        self.handle.http_router.clone().oneshot(request).await.unwrap()
    }

    /// Posts to the JSON door.
    pub async fn post_fixes(&self, driver: u32, body: impl Into<String>) -> (StatusCode, String) {
        let request = Request::post("/api/v1/tracking/locations")
            .header("authorization", format!("Bearer {}", self.credential(driver)))
            .header("content-type", "application/json")
            .body(Body::from(body.into()))
            .unwrap();
        read(self.request(request).await).await
    }

    /// All records of the log by partition, in order.
    pub async fn records(&self) -> BTreeMap<u32, Vec<Record>> {
        let log = &self.log.inner;
        let mut all = BTreeMap::new();
        for partition in 0..log.partition_count(Topic::Records) {
            let mut records = Vec::new();
            let range = log.range(Topic::Records, PartitionId(partition)).await.unwrap();
            for entry in read_range(&**log, Topic::Records, PartitionId(partition), range).await.unwrap() {
                records.extend(envelope::decode::<RecordBatch>(&entry.value).unwrap().records);
            }
            all.insert(partition, records);
        }
        all
    }

    pub async fn fixes_of(&self, driver: u32) -> Vec<FixRecord> {
        let all = self.records().await;
        let of_driver = all.into_values().flatten().filter_map(|record| {
            let Record::Fix(fix) = record else { return None };
            (fix.device == device(driver)).then_some(fix)
        });
        of_driver.collect()
    }

    /// The sum over all labels.
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.exposition.render();
        let lines = text.lines().filter(|line| line.starts_with(name) && !line.starts_with('#'));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
    }

    pub fn refused(&self, reason: &str) -> u64 {
        self.metric(&format!("wayfix_edge_datagrams_refused_total{{reason=\"{reason}\"}}"))
    }

    pub async fn stop(&self) {
        assert!(self.drain.stop(Duration::from_secs(20)).await, "it did not stop in time");
        assert_eq!(self.drain.failure(), None);
    }
}

/// A phone that does only what a test tells it.
pub struct Phone {
    pub session: PhoneSession,
    pub socket: UdpSocket,
    edge: SocketAddr,
    pub next_number: u64,
}

impl Phone {
    fn new(fleet_key: &FleetKey, device: DeviceKey, edge: SocketAddr) -> Self {
        let terms = SessionTerms {
            suite: Suite::Aes128Gcm,
            device,
            start_s: now().as_secs() as u32 - 600,
            lifetime: Lifetime::MAX,
            numbers_from: FixNumber(1),
            edges: Vec::new(),
            ack_every: 8,
            interval_ms: 4000,
        };
        let session = PhoneSession::new(&issue(fleet_key, &terms, now()).unwrap(), now()).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        Phone { session, socket, edge, next_number: 1 }
    }

    /// The bytes of a datagram with these fixes, under the next numbers.
    pub fn seal(&mut self, kind: DatagramKind, fixes: &[Fix]) -> Vec<u8> {
        let numbered: Vec<_> = (self.next_number..).map(FixNumber).zip(fixes.iter().copied()).collect();
        self.next_number += fixes.len() as u64;
        let mut text = Vec::new();
        if kind == DatagramKind::Ping {
            payload::Ping { lowest_held: None, state: protocol::PhoneState(0) }.encode(&mut text);
        } else {
            let lowest = kind.wants_answer().then_some(None);
            let encoded = payload::encode_fixes(&mut text, self.session.start_s(), lowest, &numbered, 1163);
            assert_eq!(encoded.count, fixes.len());
        }
        self.seal_payload(kind, &text)
    }

    pub fn seal_payload(&mut self, kind: DatagramKind, text: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.session.seal(kind, text, now(), &mut bytes).unwrap();
        bytes
    }

    pub fn send(&mut self, kind: DatagramKind, fixes: &[Fix]) {
        let bytes = self.seal(kind, fixes);
        self.send_bytes(&bytes);
    }

    pub fn send_bytes(&self, bytes: &[u8]) {
        self.socket.send_to(bytes, self.edge).unwrap();
    }

    /// The next answer that this session believes.
    pub fn answer(&mut self) -> AnswerSays {
        let mut bytes = [0; 2000];
        let (len, from) = self.socket.recv_from(&mut bytes).expect("an answer within five seconds");
        assert_eq!(from, self.edge);
        self.open(&bytes[..len]).says
    }

    pub fn open(&mut self, bytes: &[u8]) -> Answer {
        self.session.open_answer(bytes).expect("sealed for this session").1
    }

    pub fn ack(&mut self) -> NumberRanges {
        match self.answer() {
            AnswerSays::Ack(ranges) => ranges,
            AnswerSays::Control(control) => panic!("{control:?} where an ack was wanted"),
        }
    }

    pub fn control(&mut self) -> ControlAnswer {
        match self.answer() {
            AnswerSays::Control(control) => control,
            AnswerSays::Ack(ranges) => panic!("an ack of {ranges:?} where control was wanted"),
        }
    }

    pub fn hears_nothing(&self) -> bool {
        self.socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let heard = self.socket.recv_from(&mut [0; 2000]);
        self.socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        heard.is_err()
    }
}

/// The embedded log, that can be away or slow.
pub struct SwitchedLog {
    pub inner: Arc<EmbeddedLog>,
    pub is_away: Arc<AtomicBool>,
    pub delay_ms: Arc<AtomicU64>,
}

/// What stands before it.
struct Switch {
    is_away: Arc<AtomicBool>,
    delay_ms: Arc<AtomicU64>,
}

impl SwitchedLog {
    pub fn new(inner: Arc<EmbeddedLog>) -> Self {
        SwitchedLog { inner, is_away: Arc::default(), delay_ms: Arc::default() }
    }

    pub fn set_away(&self, is_away: bool) {
        self.is_away.store(is_away, Ordering::SeqCst);
    }
}

impl Front for SwitchedLog {
    fn behind(&self) -> &dyn Log {
        &*self.inner
    }

    fn gate(&self) -> Arc<dyn Gate> {
        Arc::new(Switch { is_away: self.is_away.clone(), delay_ms: self.delay_ms.clone() })
    }
}

#[async_trait]
impl Gate for Switch {
    async fn pass(&self, entries: &[Append]) -> Option<Appended> {
        if self.is_away.load(Ordering::SeqCst) {
            let away = LogError::Unavailable { reason: "it was taken away".to_string() };
            return Some(Appended::failed(entries.len(), &away));
        }
        tokio::time::sleep(Duration::from_millis(self.delay_ms.load(Ordering::SeqCst))).await;
        None
    }
}

pub fn settings() -> EdgeSettings {
    EdgeSettings {
        udp_listen: "127.0.0.1:0".parse().unwrap(),
        sessions_max: 1000,
        spool_bytes: 8 << 20,
        ..EdgeSettings::default()
    }
}

pub fn now() -> Time {
    Time(Clock::system().now_ms())
}

pub fn device(driver: u32) -> DeviceKey {
    DeviceKey { tenant: TenantId(3), driver: DriverId(driver), device: DeviceNumber(1) }
}

pub fn good_fix() -> Fix {
    Fix::at(MeasuredTime::from_time(now()), Position { lat_e7: 411_500_000, lon_e7: -86_100_000 })
}

pub async fn read(response: Response<Body>) -> (StatusCode, String) {
    let status = response.status();
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, String::from_utf8_lossy(&bytes).into_owned())
}

const PHONES_FIRST: u32 = 24;

/// Waits for a condition, blocking this test only.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < until, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
