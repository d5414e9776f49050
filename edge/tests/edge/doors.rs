//! The HTTP doors, with good and bad requests.

use axum::body::Body;
use axum::http::Request;
use protocol::datagram::DatagramKind;
use protocol::datagram::answer::AnswerSays;
use protocol::record::Door;
use protocol::{FixNumber, RejectReason, Verdict};

use crate::support::{TestEdge, device, good_fix, now, read, settings};

#[tokio::test(flavor = "multi_thread")]
async fn json_fixes_are_in_the_log_when_they_are_answered() {
    let edge = TestEdge::start().await;
    let at = now().as_secs();
    let body = format!(
        r#"[{{"lat": 41.15, "lng": -8.61, "heading": 90, "speed": 10, "timestamp": {at}, "accuracy": 5}},
            {{"lat": 0, "lng": 0, "heading": 0, "speed": 0, "timestamp": {at}000}},
            {{"lat": 41.15, "lng": -8.61, "heading": 90, "speed": 99, "timestamp": {at}}},
            {{"lat": 99, "lng": -8.61, "timestamp": {at}, "driver": 7, "tenant": "3"}}]"#
    );

    let (status, answer) = edge.post_fixes(7, body).await;

    assert_eq!(status, 202, "{answer}");
    assert_eq!(
        answer,
        r#"{"accepted":1,"rejected":[{"index":1,"reason":"null_island"},{"index":2,"reason":"too_fast"},{"index":3,"reason":"out_of_range"}]}"#
    );
    let recorded = edge.fixes_of(7).await;
    assert_eq!(recorded.len(), 4, "the rejected ones too");
    assert!(recorded.iter().all(|fix| fix.door == Door::Json && fix.number.is_none() && fix.device == device(7)));
    assert_eq!(recorded[1].verdict, Verdict::Rejected(RejectReason::NullIsland));
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_told_what_is_wrong_and_record_nothing() {
    let edge = TestEdge::start().await;
    let good = format!(r#"{{"lat": 41.15, "lng": -8.61, "timestamp": {}}}"#, now().as_secs());
    let credential = edge.credential(7);
    let request = |uri: &str, authorization: &str, body: String| {
        let builder = Request::post(format!("/api/v1/tracking/locations{uri}"));
        let builder = builder.header("content-type", "application/json").header("authorization", authorization);
        builder.body(Body::from(body)).unwrap()
    };
    let bearer = format!("Bearer {credential}");
    let many = format!("[{}]", vec![good.as_str(); 1001].join(","));
    let cases = [
        (request("", "", format!("[{good}]")), 401, "credential"),
        (request("", "Basic abc", format!("[{good}]")), 401, "credential"),
        (request("", "Bearer wfd_nonsense", format!("[{good}]")), 401, "credential"),
        (request("", &format!("{bearer}x"), format!("[{good}]")), 401, "credential"),
        (request("?driver=8", &bearer, format!("[{good}]")), 403, "query"),
        (request("?tenant=4", &bearer, format!("[{good}]")), 403, "query"),
        (request("?driver=seven", &bearer, format!("[{good}]")), 403, "query"),
        (request("", &bearer, format!("[{good}, {}]", good.replace('{', r#"{"driver": 8, "#))), 403, "fix 1"),
        (request("", &bearer, format!("[{good}, {}]", good.replace('{', r#"{"tenant": 4, "#))), 403, "fix 1"),
        (request("", &bearer, String::new()), 400, "EOF"),
        (request("", &bearer, format!("[{good}")), 400, "line 1 column"),
        (request("", &bearer, "{}".to_string()), 400, "array"),
        (request("?driver=7&driver=7", &bearer, format!("[{good}]")), 400, "query"),
        (request("", &bearer, "\u{0}\u{1}".repeat(100)), 400, "line 1"),
        (request("", &bearer, many), 413, "1000"),
        (request("", &bearer, " ".repeat(300 << 10)), 413, "bytes"),
        (
            Request::post("/api/v1/tracking/locations")
                .header("authorization", &bearer)
                .header("content-type", "text/plain")
                .body(Body::from(format!("[{good}]")))
                .unwrap(),
            415,
            "application/json",
        ),
        (Request::get("/api/v1/tracking/locations").body(Body::empty()).unwrap(), 405, "POST"),
    ];

    for (request, wanted, detail) in cases {
        let shown = format!("{request:?}");
        let response = edge.request(request).await;
        let is_problem = response.headers().get("content-type").is_some_and(|v| v == "application/problem+json");
        let (status, body) = read(response).await;
        assert_eq!(status, wanted, "{shown}: {body}");
        assert!(body.contains(detail), "{shown}: {body}");
        assert!(is_problem, "{shown}");
        assert!(!body.contains(&credential));
    }

    assert_eq!(edge.fixes_of(7).await, []);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_odd_fix_costs_itself_and_the_answer_says_which() {
    let edge = TestEdge::start().await;
    let at = now().as_secs();
    let good = format!(r#"{{"lat": 41.15, "lng": -8.61, "timestamp": {at}}}"#);
    let odd_field = good.replace('}', r#", "battery": 101}"#);
    let body = format!(
        r#"[{good}, {{"lat": null, "lng": 1, "timestamp": {at}}}, {odd_field},
            {{"lat": 91, "lng": 1, "timestamp": {at}}}, {{"lat": 1, "lng": 1, "timestamp": "yesterday"}}]"#
    );

    let (status, answer) = edge.post_fixes(7, body).await;

    assert_eq!(status, 202, "{answer}");
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    let wanted = serde_json::json!({
        "accepted": 2,
        "rejected": [
            {"index": 1, "reason": "no_position"},
            {"index": 3, "reason": "out_of_range"},
            {"index": 4, "reason": "no_time"},
        ],
        "ignored": [{"index": 2, "field": "battery", "reason": "out_of_range"}],
    });
    assert_eq!(answer, wanted);
    assert_eq!(edge.fixes_of(7).await.len(), 3, "what cannot be read cannot be recorded");
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compressed_body_is_read_within_the_same_bound() {
    use std::io::Write;
    let edge = TestEdge::start().await;
    let packed = |text: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let good = format!(r#"[{{"lat": 41.15, "lng": -8.61, "timestamp": {}}}]"#, now().as_secs());
    for (encoding, body, wanted) in [
        ("gzip", packed(&good), 202),
        ("identity", good.clone().into_bytes(), 202),
        ("gzip", packed(&" ".repeat(100 << 20)), 413),
        ("gzip", good.clone().into_bytes(), 400),
        ("gzip", packed(&good)[..20].to_vec(), 400),
        ("br", packed(&good), 415),
    ] {
        let request = Request::post("/api/v1/tracking/locations")
            .header("authorization", format!("Bearer {}", edge.credential(7)))
            .header("content-encoding", encoding)
            .body(Body::from(body))
            .unwrap();
        let (status, text) = read(edge.request(request).await).await;
        assert_eq!(status, wanted, "{encoding}: {text}");
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_log_json_fixes_are_not_taken_and_the_client_is_told_when_to_come_back() {
    let edge = TestEdge::start_with(edge::EdgeSettings { request_wait_ms_max: 2000, ..settings() }).await;
    let body = format!(r#"[{{"lat": 41.15, "lng": -8.61, "timestamp": {}}}]"#, now().as_secs());
    edge.log.set_away(true);

    for _ in 0..2 {
        let request = Request::post("/api/v1/tracking/locations")
            .header("authorization", format!("Bearer {}", edge.credential(7)))
            .body(Body::from(body.clone()))
            .unwrap();
        let response = edge.request(request).await;
        assert_eq!(response.status(), 503);
        assert!(response.headers().contains_key("retry-after"));
    }

    assert!(edge.handle.log_state.is_away());
    edge.log.set_away(false);
    crate::support::eventually("the log is back", || !edge.handle.log_state.is_away());
    let (status, _) = edge.post_fixes(7, body).await;
    assert_eq!(status, 202);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_with_an_empty_bucket_gets_429_and_others_do_not() {
    let edge =
        TestEdge::start_with(edge::EdgeSettings { device_fixes_burst: 2, device_fixes_per_s: 1, ..settings() }).await;
    let body =
        format!(r#"[{0}, {0}]"#, format_args!(r#"{{"lat": 41.15, "lng": -8.61, "timestamp": {}}}"#, now().as_secs()));

    assert_eq!(edge.post_fixes(7, body.clone()).await.0, 202);
    assert_eq!(edge.post_fixes(7, body.clone()).await.0, 429);
    assert_eq!(edge.post_fixes(8, body).await.0, 202);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_datagram_in_a_body_is_acknowledged_and_its_replay_by_udp_is_not() {
    let edge = TestEdge::start().await;
    let mut phone = edge.phone(7);
    let datagram = phone.seal(DatagramKind::FixesAckWanted, &[good_fix()]);

    let response = edge.request(post_datagram(&datagram)).await;

    assert_eq!(response.status(), 200);
    let answer = axum::body::to_bytes(response.into_body(), 100).await.unwrap();
    let AnswerSays::Ack(acked) = phone.open(&answer).says else { panic!("no ack") };
    assert!(acked.contains(FixNumber(1)));
    phone.send_bytes(&datagram);
    crate::support::eventually("the replay is refused", || edge.refused("replayed") == 1);
    assert_eq!(edge.request(post_datagram(&datagram)).await.status(), 204, "and so it is here");
    let recorded = edge.fixes_of(7).await;
    assert_eq!(recorded.iter().map(|fix| fix.door).collect::<Vec<_>>(), [Door::Https]);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_that_want_no_answer_get_none_and_bad_bodies_a_clear_one() {
    let edge = TestEdge::start().await;
    let mut phone = edge.phone(7);

    let quiet = phone.seal(DatagramKind::Fixes, &[good_fix()]);
    assert_eq!(edge.request(post_datagram(&quiet)).await.status(), 204);
    assert_eq!(edge.request(post_datagram(b"")).await.status(), 204);
    assert_eq!(edge.request(post_datagram(&[0x20; 1200])).await.status(), 204);
    assert_eq!(edge.request(post_datagram(&[0x20; 1201])).await.status(), 413);
    let untyped = Request::post("/v1/datagrams").body(Body::from(quiet)).unwrap();
    assert_eq!(edge.request(untyped).await.status(), 415);
    edge.stop().await;
}

fn post_datagram(bytes: &[u8]) -> Request<Body> {
    Request::post("/v1/datagrams")
        .header("content-type", "application/vnd.wayfix.datagram")
        .body(Body::from(bytes.to_vec()))
        .unwrap()
}
