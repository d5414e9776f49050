//! Bad input at every door of the running server: a clear answer or a counted silence, and nothing lost by it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::net::UdpSocket;

use crate::harness::{Api, Server, ServerOptions, eventually, id_of, now_ms};
use crate::maps::town;

const ADMIN_KEY: &str = "an operator's key for tests";

async fn server() -> Result<Server> {
    let more = format!("[gateway]\nadmin_key = {ADMIN_KEY:?}\n");
    Server::start(ServerOptions { map: Some(town()?), more, ..ServerOptions::default() }).await
}

fn stops() -> Value {
    json!([{"kind": "pickup", "lat": 44.0, "lng": -30.0}, {"kind": "drop_off", "lat": 44.001, "lng": -30.001}])
}

fn fix(lat: f64, at_ms: i64) -> Value {
    json!({"lat": lat, "lng": -30.0, "timestamp": at_ms, "accuracy": 8, "heading": 90, "speed": 5})
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_over_udp_is_counted_and_answered_by_nothing() -> Result<()> {
    let server = server().await?;
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    let seed = 11;
    let mut random = SmallRng::seed_from_u64(seed);
    for i in 0..2000 {
        let mut bytes = vec![0; random.random_range(0..1400)];
        random.fill_bytes(&mut bytes);
        if let Some(first) = bytes.first_mut().filter(|_| i % 2 == 0) {
            *first = 0x20 | (*first & 0x1f);
        }
        socket.send_to(&bytes, server.udp).await?;
        if i % 50 == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    eventually("the refusals counted", Duration::from_secs(20), || async {
        let refused = server.counted("wayfix_edge_datagrams_refused_total").await?;
        Ok((refused >= 1500.0).then_some(()))
    })
    .await?;
    let mut answer = [0; 2048];
    ensure!(socket.try_recv(&mut answer).is_err(), "a forged datagram was answered, seed {seed}");
    a_good_fix_comes_through(&server.api()?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_tenant_reaches_another_by_any_door() -> Result<()> {
    let server = server().await?;
    let ours = server.api()?;
    let operator = ours.with_token(ADMIN_KEY);
    let made = operator.post("/tenants", json!({"name": "the other"})).await?;
    let theirs = ours.with_token(made["key"].as_str().context("a tenant's key")?);
    let (driver, _) = ours.new_driver("Ana").await?;
    let delivery = id_of(&ours.post("/deliveries", json!({"stops": stops(), "driver": driver})).await?, "delivery")?;

    for (method, path) in [
        (Method::GET, format!("/deliveries/{delivery}")),
        (Method::GET, format!("/tracking/{delivery}/status")),
        (Method::GET, format!("/tracking/{delivery}/events")),
        (Method::GET, format!("/deliveries/{delivery}/trail")),
        (Method::GET, format!("/drivers/{driver}/trail")),
        (Method::POST, format!("/deliveries/{delivery}/token")),
        (Method::POST, format!("/deliveries/{delivery}/cancel")),
    ] {
        let body = (method == Method::POST).then(|| json!({}));
        let (status, answer) = theirs.call(method, &path, body).await?;
        ensure!(status == StatusCode::NOT_FOUND, "{path}: {status} {answer}");
    }
    let listed = theirs.read("/deliveries").await?;
    ensure!(listed["deliveries"].as_array().is_some_and(Vec::is_empty), "{listed}");
    let map = theirs.read("/map/status").await?;
    ensure!(map["drivers"].as_array().is_some_and(Vec::is_empty), "{map}");
    let (status, _) = ours.with_token("wft_nobody").call(Method::GET, "/deliveries", None).await?;
    ensure!(status == StatusCode::UNAUTHORIZED, "{status}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_json_door_says_what_is_wrong_and_takes_what_is_right() -> Result<()> {
    let server = server().await?;
    let api = server.api()?;
    let (driver, credential) = api.new_driver("Ana").await?;
    let device = api.with_token(&credential);
    let now = now_ms();
    let hour = 3_600_000;

    let (status, answer) = device.call(Method::POST, "/tracking/locations", Some(json!({"lat": 1}))).await?;
    ensure!(status == StatusCode::BAD_REQUEST, "{status} {answer}");
    let (status, _) = api.with_token("wfd_x").call(Method::POST, "/tracking/locations", Some(json!([]))).await?;
    ensure!(status == StatusCode::UNAUTHORIZED, "{status}");
    let other = json!({"driver": driver + 1, "lat": 44.0, "lng": -30.0, "timestamp": now});
    let (status, answer) =
        device.call(Method::POST, &format!("/tracking/locations?driver={}", driver + 1), Some(json!([other]))).await?;
    ensure!(status == StatusCode::FORBIDDEN, "{status} {answer}");

    let batch = json!([fix(44.0, now), fix(0.0, now), fix(44.0, now + hour), fix(95.0, now)]);
    let (status, answer) = device.call(Method::POST, "/tracking/locations", Some(batch)).await?;

    ensure!(status == StatusCode::ACCEPTED, "{status} {answer}");
    let rejected: Vec<u64> =
        answer["rejected"].as_array().context("a list")?.iter().filter_map(|row| row["index"].as_u64()).collect();
    ensure!(rejected.contains(&2) && rejected.contains(&3) && !rejected.contains(&0), "{answer}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_moves_only_as_it_may() -> Result<()> {
    let server = server().await?;
    let api = server.api()?;
    let delivery = id_of(&api.post("/deliveries", json!({"stops": stops()})).await?, "delivery")?;
    let path = format!("/deliveries/{delivery}/status");

    let (status, answer) = api.call(Method::POST, &path, Some(json!({"status": "picked_up"}))).await?;

    ensure!(status == StatusCode::CONFLICT, "{status} {answer}");
    ensure!(answer["allowed"] == json!(["accepted", "failed"]), "{answer}");
    for status in ["accepted", "preparing", "ready", "picked_up", "delivered"] {
        api.post(&path, json!({"status": status})).await?;
    }
    let (status, _) = api.call(Method::POST, &path, Some(json!({"status": "failed"}))).await?;
    ensure!(status == StatusCode::CONFLICT, "a delivered order cannot fail");
    let view = eventually("its customer sees it delivered", Duration::from_secs(10), || async {
        let view = api.read(&format!("/tracking/{delivery}/status")).await?;
        Ok((view["status"] == "delivered").then_some(view))
    });
    ensure!(view.await?["last_number"] == 6, "received, and five changes");
    Ok(())
}

async fn a_good_fix_comes_through(api: &Api) -> Result<()> {
    let (driver, credential) = api.new_driver("Ana").await?;
    let now = now_ms();
    let answer = api.with_token(&credential).post("/tracking/locations", json!([fix(44.0, now)])).await?;
    ensure!(answer["accepted"] == 1, "{answer}");
    eventually("the fix in history", Duration::from_secs(90), || async {
        let trail = api.read(&format!("/drivers/{driver}/trail")).await?;
        Ok(trail["points"].as_array().is_some_and(|points| points.len() == 1).then_some(()))
    })
    .await
}
