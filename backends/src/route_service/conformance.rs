//! What every engine behind the seam must do, against a server that answers whatever a check wants: recorded answers of
//! the real engine, and everything that a network or another program could send instead. The suite panics, naming the
//! promise, where one is broken.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use protocol::Position;
use protocol::record::{PlannedPoint, Vehicle};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::http::{Answer, BODY_BYTES_MAX};
use super::way::metres;
use super::{END_OFF_M_MAX, RouteService, RouteServiceError, WAY_POINTS_MAX};

/// One kind of engine.
pub struct Engine {
    /// A service that asks at `http://{address}`, serving cars and nobody else.
    pub open: fn(address: &str, timeout: Duration) -> Box<dyn RouteService>,
    pub read: fn(&Answer, Position, Position) -> Result<Vec<PlannedPoint>, RouteServiceError>,
    /// What the real engine answered for the two places.
    pub route: &'static str,
    pub length_m: f64,
    pub seconds: f64,
    pub no_way: &'static str,
    pub refused: &'static str,
    /// Where its line stands.
    pub line: &'static str,
    /// What else makes a recorded answer one that makes no sense.
    pub spoil: Vec<fn(&mut Value)>,
}

/// Runs all checks.
pub async fn suite(engine: &Engine) {
    a_recorded_answer_becomes_a_way(engine).await;
    what_the_engine_says_against_it_is_told_apart(engine).await;
    answers_that_make_no_sense_are_refused(engine).await;
    a_body_without_end_is_not_read(engine).await;
    a_slow_engine_is_not_waited_for(engine).await;
    only_what_may_pass_is_asked_again(engine).await;
    a_vehicle_that_is_not_served_is_not_asked_for(engine).await;
    no_damage_to_an_answer_breaks_the_contract(engine);
}

async fn a_recorded_answer_becomes_a_way(engine: &Engine) {
    let server = Server::start(vec![ok(engine.route)]).await;

    let way = server.ask(engine).await.expect("a way");

    is_way(&way);
    let end = way.last().expect("checked");
    assert!((f64::from(end.along_cm) / 100.0 - engine.length_m).abs() < 1.0, "the engine's length: {end:?}");
    assert!((f64::from(end.along_ms) / 1_000.0 - engine.seconds).abs() < 0.1, "the engine's time: {end:?}");
    assert_eq!(server.asked(), 1);
}

async fn what_the_engine_says_against_it_is_told_apart(engine: &Engine) {
    let server = Server::start(vec![status(400, engine.no_way), status(400, engine.refused)]).await;

    let (no_way, refused) = (server.ask(engine).await, server.ask(engine).await);

    assert!(matches!(no_way, Err(RouteServiceError::NoWay { .. })), "{no_way:?}");
    assert!(matches!(refused, Err(RouteServiceError::Refused { .. })), "{refused:?}");
    assert_eq!(server.asked(), 2, "neither is asked again");
}

async fn answers_that_make_no_sense_are_refused(engine: &Engine) {
    let mut bodies: Vec<String> =
        ["", "null", "[]", "{}", "{\"code\":\"Ok\"", "<!doctype html><h1>It works!</h1>", "\u{0}\u{7f}", "1e999"]
            .map(str::to_owned)
            .to_vec();
    let recorded: Value = serde_json::from_str(engine.route).expect("recorded");
    let mut spoilt = |spoil: &dyn Fn(&mut Value)| {
        let mut body = recorded.clone();
        spoil(&mut body);
        bodies.push(body.to_string());
    };
    engine.spoil.iter().for_each(|spoil| spoilt(spoil));
    LINES.iter().for_each(|line| spoilt(&|body| put(body, engine.line, line())));
    bodies.push(engine.route[..engine.route.len() / 2].to_owned());
    let server = Server::start(bodies.iter().map(|body| ok(body)).collect()).await;

    for body in &bodies {
        let answer = server.ask(engine).await;
        assert!(matches!(answer, Err(RouteServiceError::Malformed { .. })), "{answer:?} of {body:.200}");
    }
}

async fn a_body_without_end_is_not_read(engine: &Engine) {
    let large = " ".repeat(10 << 20);
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 16, " ".repeat(1 << 16));
    let mut chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    chunked.extend(chunk.repeat(BODY_BYTES_MAX / (1 << 16) + 2).into_bytes());
    let server = Server::start(vec![ok(&large), Reply::Bytes(chunked)]).await;

    for _ in 0..2 {
        let answer = server.ask(engine).await;
        assert!(matches!(answer, Err(RouteServiceError::TooLarge { .. })), "{answer:?}");
    }
}

async fn a_slow_engine_is_not_waited_for(engine: &Engine) {
    for reply in [Reply::Silence, Reply::Drops(ok(engine.route).into_bytes())] {
        let server = Server::start(vec![reply]).await;
        let begin = Instant::now();

        let answer = server.ask(engine).await;

        assert!(matches!(answer, Err(RouteServiceError::Unavailable { .. })), "{answer:?}");
        assert!(begin.elapsed() < TIMEOUT + Duration::from_millis(1_500), "{:?}", begin.elapsed());
    }
}

async fn only_what_may_pass_is_asked_again(engine: &Engine) {
    let passing = vec![status(503, "busy"), Reply::Bytes(Vec::new()), ok(engine.route)];
    let server = Server::start(passing).await;
    server.ask(engine).await.expect("the third try is answered");
    assert_eq!(server.asked(), 3);

    let server = Server::start((0..9).map(|_| status(503, "busy")).collect()).await;
    let answer = server.ask(engine).await;
    assert!(answer.as_ref().is_err_and(RouteServiceError::is_transient), "{answer:?}");
    assert!(server.asked() <= 3, "{} tries", server.asked());

    let elsewhere = "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n";
    let server = Server::start(vec![Reply::Bytes(elsewhere.into())]).await;
    let answer = server.ask(engine).await;
    assert!(matches!(answer, Err(RouteServiceError::Refused { .. })), "{answer:?}");

    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("its address");
    let answer = (engine.open)(&closed.to_string(), TIMEOUT).route(FROM, TO, Vehicle::Car).await;
    assert!(matches!(answer, Err(RouteServiceError::Unavailable { .. })), "{answer:?}");
}

async fn a_vehicle_that_is_not_served_is_not_asked_for(engine: &Engine) {
    let server = Server::start(Vec::new()).await;

    let answer = (engine.open)(&server.address, TIMEOUT).route(FROM, TO, Vehicle::Foot).await;

    assert_eq!(answer, Err(RouteServiceError::NoProfile { vehicle: Vehicle::Foot }));
    assert_eq!(server.asked(), 0);
}

fn no_damage_to_an_answer_breaks_the_contract(engine: &Engine) {
    let mut state = 11u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below.max(1)
    };
    let mut read = 0;
    for _ in 0..3_000 {
        let mut body = engine.route.as_bytes().to_vec();
        for _ in 0..=random(4) {
            let at = random(body.len());
            match random(3) {
                0 => body[at] = random(256) as u8,
                1 => body.truncate(at.max(1)),
                _ => body.insert(at, b"0123456789-.e,[]{}~"[random(19)]),
            }
        }
        if let Ok(way) = (engine.read)(&Answer { is_success: true, body }, FROM, TO) {
            is_way(&way);
            read += 1;
        }
    }
    assert!(read > 100, "some damage does not matter: {read}");
}

/// The contract.
pub fn is_way(way: &[PlannedPoint]) {
    assert!((2..=WAY_POINTS_MAX).contains(&way.len()));
    assert_eq!((way[0].along_cm, way[0].along_ms), (0, 0));
    assert!(way.windows(2).all(|pair| pair[0].along_cm <= pair[1].along_cm && pair[0].along_ms <= pair[1].along_ms));
    assert!(way.iter().all(|point| point.position.is_on_earth()));
    assert!(metres(way[0].position, FROM) <= END_OFF_M_MAX && metres(way[way.len() - 1].position, TO) <= END_OFF_M_MAX);
}

enum Reply {
    /// Then it hangs up.
    Bytes(Vec<u8>),
    Silence,
    /// A byte now and then.
    Drops(Vec<u8>),
}

impl Reply {
    fn into_bytes(self) -> Vec<u8> {
        match self {
            Reply::Bytes(bytes) | Reply::Drops(bytes) => bytes,
            Reply::Silence => Vec::new(),
        }
    }
}

fn ok(body: &str) -> Reply {
    status(200, body)
}

fn status(status: u16, body: &str) -> Reply {
    let head =
        format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    Reply::Bytes((head + body).into_bytes())
}

/// Gives one reply per question, in order.
struct Server {
    address: String,
    asked: Arc<Mutex<usize>>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start(replies: Vec<Reply>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address").to_string();
        let asked = Arc::new(Mutex::new(0));
        let counter = asked.clone();
        let task = tokio::spawn(async move {
            let mut replies: VecDeque<Reply> = replies.into();
            while let Ok((stream, _)) = listener.accept().await {
                *counter.lock().expect("no panic") += 1;
                tokio::spawn(answer(stream, replies.pop_front().unwrap_or(Reply::Silence)));
            }
        });
        Server { address, asked, task }
    }

    async fn ask(&self, engine: &Engine) -> Result<Vec<PlannedPoint>, RouteServiceError> {
        (engine.open)(&self.address, TIMEOUT).route(FROM, TO, Vehicle::Car).await
    }

    fn asked(&self) -> usize {
        *self.asked.lock().expect("no panic")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(mut stream: TcpStream, reply: Reply) {
    let mut question = vec![0; 64 << 10];
    let _ = stream.read(&mut question).await;
    match reply {
        Reply::Bytes(bytes) => {
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
            // What is still being sent to us must be read, or the peer sees a reset in place of the answer.
            while stream.read(&mut question).await.is_ok_and(|bytes| bytes > 0) {}
        }
        Reply::Silence => tokio::time::sleep(Duration::from_secs(60)).await,
        Reply::Drops(bytes) => {
            for byte in bytes {
                if stream.write_all(&[byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// Spoils one value of an answer.
pub fn put(body: &mut Value, pointer: &str, value: Value) {
    *body.pointer_mut(pointer).expect("it is in the recorded answer") = value;
}

/// Lines that are none.
const LINES: [fn() -> Value; 5] =
    [|| json!(""), || json!(7), || Value::Null, || json!("~~~~~~~~~~~~~~~~~~~~"), || json!([[7.4, 43.7], [7.5, 43.8]])];

/// In Monaco, as the answers were recorded.
pub const FROM: Position = Position { lat_e7: 437_318_000, lon_e7: 74_174_000 };
pub const TO: Position = Position { lat_e7: 437_406_000, lon_e7: 74_299_000 };
const TIMEOUT: Duration = Duration::from_millis(700);
