//! Doors under peers that are slow, silent, greedy or hostile, over real sockets.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::{Body, Bytes};
use axum::extract::ConnectInfo;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use super::*;

#[tokio::test]
async fn a_stop_lets_the_request_under_way_end_and_takes_no_more() {
    let (began, may_end) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let router = {
        let (began, may_end) = (began.clone(), may_end.clone());
        Router::new().route(
            "/slow",
            get(|| async move {
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
    let stopped = drain.stop(PATIENCE).await;

    assert!(stopped);
    assert!(rest(&mut stream).await.ends_with("done"));
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_peer_that_says_nothing_or_half_a_head_is_given_up_and_told_so_where_it_can_be() {
    let (address, drain) = start(Router::new(), quick()).await;
    for (said, is_told) in
        [(&b""[..], false), (b"P", true), (b"PRI ", false), (b"GET / HTTP/1.1\r\nhost: x\r\nx-", true)]
    {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(said).await.unwrap();

        let answer = rest(&mut stream).await;

        assert_eq!(answer.starts_with("HTTP/1.1 408"), is_told, "after {said:?}: {answer}");
    }
    assert!(drain.stop(PATIENCE).await);
}

#[tokio::test]
async fn a_connection_too_many_is_closed_and_the_first_goes_on() {
    let limits = ServeLimits { places: Places::new(1, 1), ..ServeLimits::default() };
    let (address, drain) = start(Router::new().route("/", get(|| async { "here" })), limits).await;
    let mut first = TcpStream::connect(address).await.unwrap();
    first.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut head = [0; 12];
    first.read_exact(&mut head).await.unwrap();

    let mut second = TcpStream::connect(address).await.unwrap();
    let _reset_or_ended = tokio::time::timeout(PATIENCE, second.read_to_end(&mut Vec::new())).await.unwrap();

    assert_eq!(&head, b"HTTP/1.1 200");
    first.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    assert!(rest(&mut first).await.contains("HTTP/1.1 200"));
    assert!(drain.stop(PATIENCE).await);
}

#[tokio::test]
async fn doors_that_share_places_share_them_and_the_reserve_is_apart() {
    let limits = ServeLimits { places: Places::new(1, 1), ..ServeLimits::default() };
    let reserve = limits.reserved();
    let router = || Router::new().route("/", get(|| async { "here" }));
    let (first, first_drain) = start(router(), limits.clone()).await;
    let (second, second_drain) = start(router(), limits).await;
    let (admin, admin_drain) = start(router(), reserve).await;
    let mut held = TcpStream::connect(first).await.unwrap();
    held.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    held.read_exact(&mut [0; 12]).await.unwrap();

    assert!(!ask(second, CLOSING).await.contains("200"));
    assert!(ask(admin, CLOSING).await.contains("200"));

    for drain in [first_drain, second_drain, admin_drain] {
        assert!(drain.stop(PATIENCE).await);
    }
}

#[tokio::test]
async fn handlers_know_who_asks_and_answers_name_their_request() {
    let (address, drain) = start(who_asks(), ServeLimits::default()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();

    stream.write_all(CLOSING).await.unwrap();

    let text = rest(&mut stream).await;
    assert!(text.ends_with(&stream.local_addr().unwrap().to_string()), "{text}");
    assert!(text.contains("x-request-id: "), "{text}");
    assert!(drain.stop(PATIENCE).await);
}

#[tokio::test]
async fn a_trusted_proxy_says_who_asks_and_nobody_else_can() {
    let trusted: Arc<[AddressRange]> = Arc::from(["127.0.0.1".parse().unwrap()]);
    let forwarded = b"GET / HTTP/1.1\r\nhost: x\r\nx-forwarded-for: 1.1.1.1, 192.0.2.7\r\nconnection: close\r\n\r\n";
    let behind = ServeLimits { trusted_proxies: trusted.clone(), ..ServeLimits::default() };
    let by_header = ServeLimits { trusted_proxies: trusted, proxy_protocol: true, ..quick() };
    let (open, open_drain) = start(who_asks(), ServeLimits::default()).await;
    let (behind, behind_drain) = start(who_asks(), behind).await;
    let (by_header, header_drain) = start(who_asks(), by_header).await;

    assert!(ask(open, forwarded).await.contains("127.0.0.1:"));
    assert!(ask(behind, forwarded).await.ends_with("192.0.2.7:0"));
    let proxied = [b"PROXY TCP4 192.0.2.9 192.0.2.1 5000 443\r\n", CLOSING].concat();
    assert!(ask(by_header, &proxied).await.ends_with("192.0.2.9:5000"));
    assert!(!ask(by_header, CLOSING).await.contains("200"), "without its header it is refused");

    for drain in [open_drain, behind_drain, header_drain] {
        assert!(drain.stop(PATIENCE).await);
    }
}

#[tokio::test]
async fn a_request_names_one_host() {
    let (address, drain) = start(who_asks(), ServeLimits::default()).await;
    for (said, wanted) in [
        (&b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n"[..], "HTTP/1.1 400"),
        (b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\nconnection: close\r\n\r\n", "HTTP/1.1 400"),
        (b"GET / HTTP/1.0\r\n\r\n", "HTTP/1.0 200"),
        (CLOSING, "HTTP/1.1 200"),
    ] {
        let answer = ask(address, said).await;
        assert!(answer.starts_with(wanted), "{answer}");
    }
    assert!(drain.stop(PATIENCE).await);
}

#[tokio::test]
async fn what_is_wrong_with_a_body_is_answered_as_it_is() {
    let (address, drain) = start(takes_bodies(), quick()).await;
    let head = "POST /body HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
    for (rest_of_it, wanted) in [
        ("transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "200"),
        ("transfer-encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n", "400"),
        ("content-length: 11\r\n\r\n12345678901", "413"),
        ("content-length: 9\r\n\r\n1", "408"),
    ] {
        let answer = ask(address, format!("{head}{rest_of_it}").as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {wanted}")), "{rest_of_it}: {answer}");
    }
    assert!(drain.stop(PATIENCE).await);
}

#[tokio::test]
async fn an_answer_that_comes_before_the_body_reaches_who_still_sends_it() {
    let refuse = || async { StatusCode::UNAUTHORIZED };
    let (address, drain) = start(Router::new().route("/", post(refuse)), ServeLimits::default()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3000000\r\n\r\n").await.unwrap();

    // What has been sent meets a peer that reads on, and no reset.
    stream.write_all(&vec![b' '; 3_000_000]).await.unwrap();

    assert!(rest(&mut stream).await.starts_with("HTTP/1.1 401"));
    assert!(drain.stop(PATIENCE).await);
}

#[tokio::test]
async fn who_reads_no_answer_loses_its_place() {
    let limits = ServeLimits { places: Places::new(1, 1), ..quick() };
    let big = || async { vec![b'x'; 8 << 20] };
    let (address, drain) = start(Router::new().route("/", get(big)), limits).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".repeat(50).as_slice()).await.unwrap();

    let begun = std::time::Instant::now();
    while !ask(address, CLOSING).await.contains("200") {
        assert!(begun.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(drain.stop(PATIENCE).await);
}

#[tokio::test]
async fn a_closed_window_of_http2_holds_little_and_its_streams_are_reset() {
    let made = Arc::new(AtomicUsize::new(0));
    let count = made.clone();
    let big = move || {
        count.fetch_add(1, Ordering::SeqCst);
        async { vec![b'x'; 4 << 20] }
    };
    let router = Router::new().route("/", get(big)).route_layer(from_fn_with_state(1 << 20, room_for));
    let (address, drain) = start(router, quick()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&frame(4, 0, 0, &[0, 4, 0, 0, 0, 0])).await.unwrap();
    for id in (1..128).step_by(2) {
        stream.write_all(&frame(1, 5, id, &[0x82, 0x86, 0x84, 0x41, 1, b'x'])).await.unwrap();
    }

    let mut resets = 0;
    let mut made_at_first_reset = 0;
    while resets < 3 {
        let mut head = [0; 9];
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut head)).await.unwrap().unwrap();
        let length = usize::from(head[1]) << 8 | usize::from(head[2]);
        stream.read_exact(&mut vec![0; length]).await.unwrap();
        if head[3] == 3 {
            resets += 1;
            made_at_first_reset = made_at_first_reset.max(if resets == 1 { made.load(Ordering::SeqCst) } else { 0 });
        }
    }

    // Four at once while none is known to be large, then no more until one is gone.
    assert!((1..=8).contains(&made_at_first_reset), "{made_at_first_reset} answers of 4 MiB stood in memory");
    drop(stream);
    assert!(drain.stop(PATIENCE).await);
}

#[tokio::test]
async fn neighbours_behind_one_address_get_small_and_shared_answers_while_one_of_them_is_slow() {
    let large = get(|| async { vec![b'x'; 8 << 20] });
    let router = Router::new()
        .route("/large", large.layer(from_fn_with_state(1 << 20, room_for)))
        .route("/shared", get(|| async { (axum::Extension(SharedBody), Bytes::from_static(&[b'y'; 8 << 20])) }))
        .route("/small", get(|| async { "small" }));
    let (address, drain) = start(router, ServeLimits::default()).await;
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    // With a window that stays closed.
    slow.write_all(&frame(4, 0, 0, &[0, 4, 0, 0, 0, 0])).await.unwrap();
    for (id, path) in [(1, "/shared"), (3, "/large")] {
        let head = [&[0x82, 0x86, 4, path.len() as u8], path.as_bytes(), &[0x41, 1, b'x']].concat();
        slow.write_all(&frame(1, 5, id, &head)).await.unwrap();
    }
    let mut heads = 0;
    while heads < 2 {
        let mut head = [0; 9];
        slow.read_exact(&mut head).await.unwrap();
        slow.read_exact(&mut vec![0; usize::from(head[1]) << 8 | usize::from(head[2])]).await.unwrap();
        heads += u32::from(head[3] == 1);
    }

    let at_once = Duration::from_secs(3);
    for (path, end) in [("/small", "small"), ("/shared", "yyyy")] {
        let answer = tokio::time::timeout(at_once, ask(address, request(path).as_bytes())).await;
        assert!(answer.is_ok_and(|answer| answer.ends_with(end)), "{path} waited for a neighbour");
    }
    let waits = tokio::time::timeout(at_once / 10, ask(address, request("/large").as_bytes())).await;
    assert!(waits.is_err(), "another large answer was made");

    drop(slow);
    assert!(drain.stop(PATIENCE).await);
}

fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
}

#[tokio::test]
async fn a_stream_that_only_waits_for_news_is_not_taken_for_a_stalled_one() {
    let router = Router::new().route("/", get(|| async { slow_stream() }));
    let (address, drain) = start(router, quick()).await;

    let answer = ask(address, CLOSING).await;

    assert!(answer.contains("first") && answer.contains("second"), "{answer}");
    assert!(drain.stop(PATIENCE).await);
}

#[tokio::test]
async fn streams_that_are_begun_and_reset_without_end_end_their_connection() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let slow = move || {
        count.fetch_add(1, Ordering::SeqCst);
        std::future::pending::<&'static str>()
    };
    let (address, drain) = start(Router::new().route("/", get(slow)), ServeLimits::default()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&frame(4, 0, 0, &[])).await.unwrap();

    let flood: Vec<u8> = (0..20_000_u32)
        .flat_map(|n| {
            let id = 2 * n + 1;
            [frame(1, 5, id, &[0x82, 0x86, 0x84, 0x41, 1, b'x']), frame(3, 0, id, &[0, 0, 0, 8])].concat()
        })
        .collect();
    let _cut_off = tokio::time::timeout(PATIENCE, stream.write_all(&flood)).await.unwrap();
    let _reset_or_ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.unwrap();

    assert!(asked.load(Ordering::SeqCst) < 1000, "the flood was taken for requests");
    assert!(drain.stop(PATIENCE).await);
}

#[tokio::test]
async fn a_head_beyond_its_bounds_is_431() {
    let (address, drain) = start(who_asks(), ServeLimits::default()).await;
    for head in [format!("x-long: {}\r\n", "a".repeat(20_000)), "x-many: 1\r\n".repeat(150)] {
        let answer = ask(address, format!("GET / HTTP/1.1\r\nhost: x\r\n{head}\r\n").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
    assert!(drain.stop(PATIENCE).await);
}

/// Two chunks, with longer between them than any patience of `quick`.
fn slow_stream() -> Response {
    let (mut ours, theirs) = tokio::io::duplex(64);
    tokio::spawn(async move {
        ours.write_all(b"first").await.unwrap();
        tokio::time::sleep(Duration::from_millis(900)).await;
        ours.write_all(b"second").await.unwrap();
    });
    Body::new(Chunks(theirs)).into_response()
}

struct Chunks(tokio::io::DuplexStream);

impl hyper::body::Body for Chunks {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, std::io::Error>>> {
        let mut bytes = [0; 64];
        let mut buffer = tokio::io::ReadBuf::new(&mut bytes);
        let read = tokio::io::AsyncRead::poll_read(std::pin::Pin::new(&mut self.0), cx, &mut buffer);
        read.map(|outcome| match outcome {
            Ok(()) if buffer.filled().is_empty() => None,
            Ok(()) => Some(Ok(hyper::body::Frame::data(Bytes::copy_from_slice(buffer.filled())))),
            Err(error) => Some(Err(error)),
        })
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn who_asks() -> Router {
    Router::new().route("/", get(|ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.to_string() }))
}

fn takes_bodies() -> Router {
    let take = |body: Body| async move {
        match read_body(body, 10).await {
            Ok(_) => StatusCode::OK.into_response(),
            Err(problem) => problem.into_response(),
        }
    };
    Router::new().route("/body", post(take))
}

/// Patience of a fifth of a second.
fn quick() -> ServeLimits {
    let moment = Duration::from_millis(200);
    ServeLimits { head_max: moment, idle_max: moment, stalled_max: 2 * moment, ..ServeLimits::default() }
}

async fn start(router: Router, limits: ServeLimits) -> (SocketAddr, Drain) {
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), None).await.unwrap();
    let address = listener.local_addr().unwrap();
    let drain = Drain::default();
    serve("serve test", listener, router, limits, &Meter::discard(), &drain);
    (address, drain)
}

/// What is answered to these bytes, until the end of the connection.
async fn ask(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _may_be_refused = stream.write_all(bytes).await;
    rest(&mut stream).await
}

async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let _a_reset_is_an_end_too = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

const CLOSING: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
const PATIENCE: Duration = Duration::from_secs(20);
