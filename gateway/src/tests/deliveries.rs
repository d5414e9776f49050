//! Deliveries, drivers, devices, sessions and history over REST.

use backends::registry::Registry;
use backends::trail_store::{TrailPlace, TrailStore};
use protocol::record::Door;
use protocol::session::{FleetKey, SessionGrant, SessionRecord};
use protocol::{Breadcrumb, DeviceKey, DeviceNumber, EdgeId, Fix, FixNumber, FixRecord, RejectReason, Verdict};

use super::*;

#[tokio::test]
async fn a_delivery_goes_through_its_states_and_no_other_way() {
    let server = server().await;
    let tenant = server.tenant("ours").await;
    let path = format!("/api/v1/deliveries/{}/status", tenant.delivery.delivery);
    let to = |status: &str| json!({"status": status});

    let skipped = server.post(&path, &tenant.key, to("ready")).await;
    let accepted = server.post(&path, &tenant.key, json!({"status": "accepted", "reason": "by hand"})).await;
    let back = server.post(&path, &tenant.key, to("received")).await;
    for status in ["preparing", "ready", "picked_up", "delivered"] {
        assert_eq!(server.post(&path, &tenant.key, to(status)).await.0, 200, "{status}");
    }
    let cancelled =
        server.post(&format!("/api/v1/deliveries/{}/cancel", tenant.delivery.delivery), &tenant.key, json!({})).await;

    assert_eq!((skipped.0, &skipped.1["allowed"]), (409, &json!(["accepted", "failed"])));
    assert_eq!((&skipped.1["type"], &skipped.1["from"]), (&json!("urn:wayfix:problem:transition"), &json!("received")));
    assert_eq!((accepted.0, &accepted.1["status"]), (200, &json!("accepted")));
    assert_eq!(accepted.1["journal"][1]["reason"], "by hand");
    assert_eq!((back.0, &back.1["allowed"]), (409, &json!(["preparing", "failed"])));
    assert_eq!((cancelled.0, &cancelled.1["allowed"]), (409, &json!([])));
}

#[tokio::test]
async fn a_delivery_that_ended_by_mistake_is_opened_again_with_a_reason() {
    let server = server().await;
    let tenant = server.tenant("ours").await;
    let path = |door: &str| format!("/api/v1/deliveries/{}/{door}", tenant.delivery.delivery);
    let post = async |door: &str, body: Value| server.post(&path(door), &tenant.key, body).await;
    for status in ["accepted", "preparing", "ready"] {
        assert_eq!(post("status", json!({"status": status})).await.0, 200, "{status}");
    }

    let still_open = post("reopen", json!({"reason": "why"})).await;
    let silently = post("cancel", json!({})).await;
    let cancelled = post("cancel", json!({"reason": "nobody came"})).await;
    let without_reason = post("reopen", json!({"reason": " "})).await;
    let reopened = post("reopen", json!({"reason": "he did come"})).await;

    assert_eq!((still_open.0, &still_open.1["from"]), (409, &json!("ready")));
    assert_eq!(silently.0, 422, "a ready delivery fails only with a reason");
    assert_eq!((cancelled.0, &cancelled.1["status"]), (200, &json!("failed")));
    assert_eq!(without_reason.0, 422);
    assert_eq!((reopened.0, &reopened.1["status"]), (200, &json!("ready")));
    let journal = reopened.1["journal"].as_array().unwrap();
    assert_eq!(journal.last().unwrap()["reason"], "he did come");
    assert_eq!(post("status", json!({"status": "picked_up"})).await.0, 200);
    let unknown = server.post("/api/v1/deliveries/999/reopen", &tenant.key, json!({"reason": "why"})).await;
    assert_eq!(unknown.0, 404);
}

#[tokio::test]
async fn a_repeated_request_is_done_once_and_another_under_its_key_is_refused() {
    let server = server().await;
    let tenant = server.tenant("ours").await;
    let ask = async |path: &str, key: &str, body: Value| {
        let bearer = format!("Bearer {}", tenant.key);
        let headers = [("authorization", bearer.as_str()), ("idempotency-key", key)];
        let answer = server.ask("POST", path, &headers, body.to_string().as_bytes()).await;
        (answer.status, answer.json())
    };

    let first = ask("/api/v1/deliveries", "a", two_stops()).await;
    let again = ask("/api/v1/deliveries", "a", two_stops()).await;
    let mut other = two_stops();
    other["reference"] = json!("B-2");
    let mismatch = ask("/api/v1/deliveries", "a", other).await;
    let status = format!("/api/v1/deliveries/{}/status", tenant.delivery.delivery);
    let moved = ask(&status, "b", json!({"status": "accepted"})).await;
    let moved_again = ask(&status, "b", json!({"status": "accepted"})).await;

    assert_eq!((first.0, again.0, mismatch.0), (201, 201, 422));
    assert_eq!(first.1["delivery"], again.1["delivery"]);
    let token = again.1["token"].as_str().unwrap();
    assert_eq!(server.get(&format!("/api/v1/tracking/{}/status", text(&again.1["delivery"])), token).await.0, 200);
    assert_eq!((moved.0, moved_again.0), (200, 200));
    assert_eq!(moved.1["last_number"], moved_again.1["last_number"]);
    for bad in ["", &"k".repeat(256)] {
        assert_eq!(ask("/api/v1/deliveries", bad, two_stops()).await.0, 400);
    }
    let bearer = format!("Bearer {}", tenant.key);
    let twice = [("authorization", bearer.as_str()), ("idempotency-key", "c"), ("idempotency-key", "d")];
    let body = two_stops().to_string();
    let answer = server.ask("POST", "/api/v1/deliveries", &twice, body.as_bytes()).await;
    assert_eq!(answer.status, 400, "nobody can tell which of two keys counts");
}

#[tokio::test]
async fn a_repeat_has_the_same_token_however_its_header_is_written_and_none_under_another_key() {
    let server = server().await;
    let tenant = server.tenant("ours").await;
    let other = server.tenant("another").await;
    let ask = async |scheme: &str, key: &str| {
        let shown = format!("{scheme} {key}");
        let headers = [("authorization", shown.as_str()), ("idempotency-key", "a")];
        let answer = server.ask("POST", "/api/v1/deliveries", &headers, two_stops().to_string().as_bytes()).await;
        (answer.status, answer.json())
    };

    let first = ask("Bearer", &tenant.key).await;
    let again = ask("bearer", &tenant.key).await;
    let others = ask("Bearer", &other.key).await;

    assert_eq!((first.0, again.0, others.0), (201, 201, 201));
    assert_eq!(first.1, again.1);
    assert_ne!(first.1["token"], others.1["token"]);
    let status = format!("/api/v1/tracking/{}/status", text(&first.1["delivery"]));
    assert_eq!(server.get(&status, again.1["token"].as_str().unwrap()).await.0, 200);
}

#[tokio::test]
async fn lists_come_in_pages_that_miss_and_repeat_nothing() {
    let server = server().await;
    let tenant = server.tenant("ours").await;
    for n in 0..6 {
        server.post("/api/v1/deliveries", &tenant.key, two_stops()).await;
        server
            .post("/api/v1/drivers", &tenant.key, json!({"name": format!("n{n}"), "external_id": format!("x{n}")}))
            .await;
    }
    server.post("/api/v1/deliveries/2/cancel", &tenant.key, json!({})).await;

    for (path, list, id, count) in [
        ("/api/v1/deliveries?limit=3", "deliveries", "delivery", 7),
        ("/api/v1/deliveries?live=true&limit=3", "deliveries", "delivery", 6),
        ("/api/v1/drivers?limit=3", "drivers", "driver", 7),
    ] {
        let (mut seen, mut cursor) = (Vec::new(), Some(String::new()));
        while let Some(place) = cursor {
            let (status, page) = server.get(&format!("{path}&cursor={place}"), &tenant.key).await;
            assert_eq!(status, 200);
            seen.extend(page[list].as_array().unwrap().iter().map(|item| number(&item[id])));
            cursor = page["next"].as_str().map(str::to_string);
        }
        assert_eq!(seen.len(), count, "{path}: {seen:?}");
        assert!(seen.is_sorted_by(|a, b| a < b), "{path}: {seen:?}");
    }
    let taken = server.post("/api/v1/drivers", &tenant.key, json!({"name": "n", "external_id": "x0"})).await;
    assert_eq!(taken.0, 409);
}

#[tokio::test]
async fn a_session_is_one_that_the_edges_open_and_each_begins_above_the_last() {
    let server = server().await;
    let tenant = server.tenant("ours").await;

    let (status, first) = server.post("/api/v1/sessions", &tenant.credential, json!({"logged_in": true})).await;
    let second = server
        .ask("POST", "/api/v1/sessions", &[("authorization", &format!("Bearer {}", tenant.credential))], b"")
        .await;

    assert_eq!((status, second.status), (201, 201), "{first}");
    let grants: Vec<SessionGrant> =
        [first, second.json()].into_iter().map(|grant| serde_json::from_value(grant).unwrap()).collect();
    assert!(grants[1].start > grants[0].start);
    assert!(grants[1].numbers_from >= grants[0].numbers_from + 32_768);
    assert_eq!(grants[0].edges[0].udp, "127.0.0.1:7000");
    let control = server.world.control.snapshot();
    let key = control.sealing_key(server.world.now()).unwrap();
    let kid = grants[0].checked_kid().unwrap();
    let fleet_key = FleetKey::new(kid, key.secret.bytes());
    let record = SessionRecord::from_bytes(&fleet_key.open_sid(&grants[0].aliases[63].sid)).unwrap();
    let device = DeviceKey { tenant: tenant.id, driver: tenant.driver, device: DeviceNumber(tenant.device) };
    assert_eq!((record.device, record.alias, record.start_s), (device, 63, grants[0].start));
    let led = server.world.registry.outbox(10).await.unwrap();
    assert_eq!(led.iter().filter(|row| matches!(row.record, protocol::Record::Lead { .. })).count(), 1);
}

#[tokio::test]
async fn a_revoked_device_gets_no_session_and_the_edges_know_of_it() {
    let server = server().await;
    let tenant = server.tenant("ours").await;
    let path = format!("/api/v1/devices/{}/{}", tenant.driver, tenant.device);
    let bearer = format!("Bearer {}", tenant.key);

    let revoked = server.ask("DELETE", &path, &[("authorization", &bearer)], b"").await;

    let device = DeviceKey { tenant: tenant.id, driver: tenant.driver, device: DeviceNumber(tenant.device) };
    assert_eq!(revoked.status, 204);
    assert_eq!(server.post("/api/v1/sessions", &tenant.credential, json!({})).await.0, 401);
    eventually(|| server.world.control.snapshot().revoked.contains(&device)).await;
    assert_eq!(server.ask("DELETE", &path, &[("authorization", &bearer)], b"").await.status, 204, "again is the same");
    let (_, next) = server.post("/api/v1/devices", &tenant.key, json!({"driver": tenant.driver})).await;
    assert!(number(&next["device"]) > u64::from(tenant.device));
}

#[tokio::test]
async fn history_comes_whole_in_pages_with_its_verdicts_as_json_and_as_geojson() {
    let server = server().await;
    let tenant = server.tenant("ours").await;
    // Phones say tenths of a second.
    let begin = MeasuredTime::from_time(server.world.now() - Duration::from_secs(3600)).to_time();
    let breadcrumbs: Vec<Breadcrumb> =
        (0..25).map(|n| breadcrumb(&tenant, n, begin + Duration::from_secs(n / 10))).collect();
    let next = TrailPlace { incarnation: 1, offset: Offset(1) };
    server.world.trail_store.append(PartitionId(0), breadcrumbs, next).await.unwrap();

    // Pages end within a moment and at its end.
    for limit in [1, 5, 7, 24, 25] {
        let (mut seen, mut cursor) = (Vec::new(), Some(String::new()));
        while let Some(place) = cursor {
            let path = format!("/api/v1/drivers/{}/trail?limit={limit}&from={}&cursor={place}", tenant.driver, begin.0);
            let (status, page) = server.get(&path, &tenant.key).await;
            assert_eq!(status, 200, "{page}");
            let points = page["points"].as_array().unwrap();
            assert!((1..=limit).contains(&points.len()), "{page}");
            seen.extend(points.iter().map(|point| point["lat"].as_f64().unwrap()));
            cursor = page["next"].as_str().map(str::to_string);
        }
        assert_eq!(seen.len(), 25, "{limit}");
        assert!(seen.is_sorted_by(|a, b| a < b), "{limit}");
    }
    let geo =
        server.get(&format!("/api/v1/deliveries/{}/trail?format=geojson", tenant.delivery.delivery), &tenant.key).await;
    let by_date =
        format!("/api/v1/drivers/{}/trail?from=1990-01-01T00:00:00Z&until=1991-01-01T00:00:00%2B02:00", tenant.driver);

    assert_eq!(geo.1["type"], "FeatureCollection");
    assert_eq!(geo.1["features"].as_array().unwrap().len(), 25);
    let rejected = &geo.1["features"][3];
    assert_eq!(rejected["geometry"]["coordinates"][0], 24.5);
    assert_eq!(
        (&rejected["properties"]["accepted"], &rejected["properties"]["reason"]),
        (&json!(false), &json!("jump"))
    );
    assert_eq!(server.get(&by_date, &tenant.key).await.1["points"], json!([]));
    for bad in ["from=yesterday", "limit=0", "limit=10001", "format=xml", "cursor=1"] {
        assert_eq!(server.get(&format!("/api/v1/drivers/{}/trail?{bad}", tenant.driver), &tenant.key).await.0, 400);
    }
}

#[tokio::test]
async fn links_lead_to_where_the_request_came_in_or_to_the_public_address() {
    let world = World::new(Clock::system()).await;
    let plain = world.serve(settings()).await;
    let tenant = plain.tenant("ours").await;
    let token_path = format!("/api/v1/deliveries/{}/token", tenant.delivery.delivery);
    let public = world
        .serve(GatewaySettings { public_url: Some("https://track.example".into()), group: "b".into(), ..settings() })
        .await;

    let (_, here) = plain.post(&token_path, &tenant.key, json!({})).await;
    let (_, there) = public.post(&token_path, &tenant.key, json!({})).await;
    let (_, link) = plain.get("/api/v1/tracking/link", here["token"].as_str().unwrap()).await;

    let page = here["links"]["page"].as_str().unwrap();
    assert!(page.starts_with(&format!("http://{}/t/wfl_", plain.address)), "{page}");
    assert!(here["links"]["connect"].as_str().unwrap().starts_with("ws://"));
    assert!(there["links"]["connect"].as_str().unwrap().starts_with("wss://track.example/api/v1/tracking/"));
    assert_eq!(link["delivery"], tenant.delivery.delivery.to_string());
}

fn breadcrumb(tenant: &Tenant, n: u64, measured: Time) -> Breadcrumb {
    let mut fix = Fix::at(MeasuredTime::from_time(measured), at(n as f64, measured).position);
    fix.speed_dm_s = Some(55);
    let verdict = if n == 3 { Verdict::Rejected(RejectReason::Jump) } else { Verdict::Accepted };
    let record = FixRecord {
        device: DeviceKey { tenant: tenant.id, driver: tenant.driver, device: DeviceNumber(tenant.device) },
        session_start: 0,
        number: Some(FixNumber(n + 1)),
        lowest_held: FixNumber(0),
        edge: EdgeId(1),
        door: Door::Udp,
        received: measured,
        fix,
        verdict,
    };
    Breadcrumb { record, verdict, snapped: None, delivery: Some(tenant.delivery.delivery), source: Source::default() }
}

#[tokio::test]
async fn a_driver_travels_by_what_his_tenant_says() {
    let server = server().await;
    let tenant = server.tenant("ours").await;
    let patch = async |driver: &str, body: Value| {
        let headers =
            [("authorization", format!("Bearer {}", tenant.key)), ("content-type", "application/json".into())];
        let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
        let (path, body) = (format!("/api/v1/drivers/{driver}"), body.to_string());
        server.ask("PATCH", &path, &headers, body.as_bytes()).await
    };

    let (_, made) = server.post("/api/v1/drivers", &tenant.key, json!({"name": "Ana"})).await;
    let (_, rider) = server.post("/api/v1/drivers", &tenant.key, json!({"name": "Rui", "vehicle": "bicycle"})).await;
    let changed = patch(text(&made["driver"]), json!({"vehicle": "moped"})).await;

    assert_eq!((&made["vehicle"], &rider["vehicle"]), (&json!("car"), &json!("bicycle")));
    assert_eq!((changed.status, &changed.json()["vehicle"]), (200, &json!("moped")));
    let (_, shown) = server.get(&format!("/api/v1/drivers/{}", text(&made["driver"])), &tenant.key).await;
    assert_eq!((&shown["vehicle"], &shown["name"]), (&json!("moped"), &json!("Ana")));
    assert_eq!(patch("4000000", json!({"vehicle": "foot"})).await.status, 404);
    assert_eq!(patch("1", json!({"vehicle": "rocket"})).await.status, 400);
    assert_eq!(patch("1", json!({"name": " "})).await.status, 422);
    let records = server.world.registry.outbox(10).await.unwrap();
    let vehicles = records.iter().filter(|row| matches!(row.record, protocol::Record::Vehicle { .. })).count();
    assert_eq!(vehicles, 2, "the rider's, and the change");
}

#[tokio::test]
async fn what_is_asked_for_twice_under_one_key_is_made_once() {
    let server = server().await;
    let tenant = server.tenant("ours").await;
    let token = format!("/api/v1/deliveries/{}/token", tenant.delivery.delivery);
    let ask = async |path: &str, by: &str, key: &str, body: &Value| {
        let bearer = format!("Bearer {by}");
        let headers =
            [("authorization", bearer.as_str()), ("content-type", "application/json"), ("idempotency-key", key)];
        let answer = server.ask("POST", path, &headers, body.to_string().as_bytes()).await;
        (answer.status, answer.json())
    };

    for (n, (path, by, body)) in [
        ("/api/v1/tenants", ADMIN_KEY, json!({"name": "x"})),
        ("/api/v1/drivers", tenant.key.as_str(), json!({"name": "x"})),
        ("/api/v1/devices", tenant.key.as_str(), json!({"driver": tenant.driver.to_string()})),
        ("/api/v1/deliveries", tenant.key.as_str(), two_stops()),
        (token.as_str(), tenant.key.as_str(), json!({})),
    ]
    .into_iter()
    .enumerate()
    {
        let key = format!("key {n}");
        let first = ask(path, by, &key, &body).await;
        let again = ask(path, by, &key, &body).await;
        let fresh = ask(path, by, &format!("{key} b"), &body).await;

        assert_eq!(first.0, 201, "{path}: {}", first.1);
        assert_eq!(first, again, "{path}");
        assert_ne!(first.1, fresh.1, "{path}");
    }
    let reused = ask("/api/v1/drivers", &tenant.key, "key 1", &json!({"name": "y"})).await;
    let session = ask("/api/v1/sessions", &tenant.credential, "key", &json!({})).await;
    assert_eq!((reused.0, session.0), (422, 400));
}
