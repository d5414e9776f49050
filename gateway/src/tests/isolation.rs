//! No byte of one tenant reaches another by any door, and a token opens only what it says.

use super::*;
use crate::api::routes;

/// How a route is to answer whoever must not have what it names.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Guard {
    /// Names a thing of a tenant: another tenant gets 404, whatever the thing's state.
    Thing,
    /// Names nothing: another tenant gets its own, which must not show anything of the first.
    Own,
    /// Not for tenants.
    Device,
    Operator,
    Customer,
    /// The same for everybody, without a token.
    Public,
}

fn guard_of(method: &str, path: &str) -> Guard {
    match (method, path) {
        ("post", "/api/v1/tenants") => Guard::Operator,
        ("post", "/api/v1/sessions") => Guard::Device,
        ("get", "/api/v1/tracking/link") => Guard::Customer,
        (_, "/openapi.json" | "/asyncapi.json" | "/api/v1/map/tiles.json" | "/api/v1/map/tiles/{z}/{x}/{y}.mvt") => {
            Guard::Public
        }
        ("get", "/api/v1/drivers" | "/api/v1/deliveries") => Guard::Own,
        ("get", "/api/v1/map/connect" | "/api/v1/map/events" | "/api/v1/map/status") => Guard::Own,
        ("post", "/api/v1/drivers" | "/api/v1/deliveries" | "/api/v1/devices") => Guard::Own,
        (_, path) if path.contains("{delivery}") || path.contains("{driver}") => Guard::Thing,
        (method, path) => panic!("say here how {method} {path} is guarded"),
    }
}

fn body_for(path: &str, of: &Tenant) -> Value {
    match path.rsplit('/').next().unwrap() {
        "assign" => json!({"driver": null}),
        "reopen" => json!({"reason": "closed by mistake"}),
        "status" => json!({"status": "accepted"}),
        "devices" => json!({"driver": of.driver}),
        "drivers" => json!({"name": "Eve"}),
        "deliveries" => two_stops(),
        _ => json!({}),
    }
}

fn path_for(path: &str, of: &Tenant) -> String {
    path.replace("{delivery}", &of.delivery.delivery.to_string())
        .replace("{driver}", &of.driver.to_string())
        .replace("{device}", &of.device.to_string())
        .replace("{z}/{x}/{y}", "1/0/0")
}

async fn asked(server: &Server, method: &str, path: &str, of: &Tenant, token: Option<&str>) -> Answer {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let mut headers: Vec<(&str, &str)> = vec![("content-type", "application/json")];
    headers.extend(bearer.as_deref().map(|bearer| ("authorization", bearer)));
    if path.ends_with("/connect") {
        headers.extend([
            ("upgrade", "websocket"),
            ("connection", "upgrade"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ]);
    }
    let body = if method == "post" { body_for(path, of).to_string() } else { String::new() };
    let mut stream = server.send(&method.to_uppercase(), &path_for(path, of), &headers, body.as_bytes()).await;
    let mut bytes = vec![0; 16 << 10];
    // The head is all that counts here, and streams do not end.
    let mut read = 0;
    while !bytes[..read].windows(4).any(|four| four == b"\r\n\r\n") {
        match stream.read(&mut bytes[read..]).await.unwrap() {
            0 => break,
            count => read += count,
        }
    }
    Answer::parse(&bytes[..read])
}

#[tokio::test]
async fn tenants_are_isolated_at_every_route() {
    let server = server().await;
    let ours = server.tenant("ours").await;
    // The other tenant has nothing, so all that it finds by a name must be ours. What it makes itself comes last.
    let (_, theirs) = server.post("/api/v1/tenants", ADMIN_KEY, json!({"name": "theirs"})).await;
    let theirs = theirs["key"].as_str().unwrap();
    let before = server.get(&format!("/api/v1/deliveries/{}", ours.delivery.delivery), &ours.key).await;

    let mut all = routes();
    all.sort_by_key(|route| guard_of(route.method, route.path) != Guard::Thing);
    for route in all {
        let (method, path) = (route.method, route.path);
        let answer = asked(&server, method, path, &ours, Some(theirs)).await;
        let wanted: &[u16] = match guard_of(method, path) {
            Guard::Thing => &[404],
            Guard::Own => &[101, 200, 201, 422],
            Guard::Device | Guard::Customer => &[403],
            Guard::Operator => &[401],
            Guard::Public => &[200],
        };
        assert!(wanted.contains(&answer.status), "{method} {path} answers another tenant {}", answer.status);
    }

    let after = server.get(&format!("/api/v1/deliveries/{}", ours.delivery.delivery), &ours.key).await;
    assert_eq!(before, after);
    let (_, listed) = server.get("/api/v1/deliveries", theirs).await;
    assert!(!listed.to_string().contains(&ours.token));
    assert_eq!(listed["deliveries"].as_array().unwrap().len(), 1, "the one it made itself: {listed}");
}

#[tokio::test]
async fn an_enrolment_for_another_tenants_driver_is_refused() {
    let server = server().await;
    let ours = server.tenant("ours").await;
    let (_, theirs) = server.post("/api/v1/tenants", ADMIN_KEY, json!({"name": "theirs"})).await;
    let theirs = theirs["key"].as_str().unwrap();

    let enrolled = server.post("/api/v1/devices", theirs, json!({"driver": ours.driver})).await;
    let (_, made) = server.post("/api/v1/deliveries", theirs, two_stops()).await;
    let path = format!("/api/v1/deliveries/{}/assign", text(&made["delivery"]));
    let assigned = server.post(&path, theirs, json!({"driver": ours.driver})).await;

    assert_eq!((enrolled.0, assigned.0), (422, 422), "{enrolled:?} {assigned:?}");
}

#[tokio::test]
async fn no_token_a_bad_one_and_one_of_another_kind_open_nothing() {
    let server = server().await;
    let ours = server.tenant("ours").await;
    let bad = [
        "",
        "x",
        "wft_",
        "wft_AAAAAAAAAAAAAAAAAAAAAA",
        "wfl_\u{fffd}",
        &"a".repeat(5000),
        &ours.key[..ours.key.len() - 1],
    ];

    for route in routes() {
        let (method, path) = (route.method, route.path);
        let guard = guard_of(method, path);
        if guard == Guard::Public {
            continue;
        }
        // A WebSocket without a token may show it in its first message.
        let bare = asked(&server, method, path, &ours, None).await.status;
        assert_eq!(bare, if path.ends_with("/connect") { 101 } else { 401 }, "{method} {path}");
        for token in bad {
            let answer = asked(&server, method, path, &ours, Some(token)).await;
            assert_eq!(answer.status, 401, "{method} {path} with {token:?}");
            assert!(answer.head.contains("www-authenticate: bearer"), "{}", answer.head);
        }
        if guard != Guard::Device && guard != Guard::Operator {
            let by_device = asked(&server, method, path, &ours, Some(&ours.credential)).await;
            assert_eq!(by_device.status, 403, "{method} {path} by a device");
        }
        if !path.starts_with("/api/v1/tracking/") && guard != Guard::Operator {
            let by_customer = asked(&server, method, path, &ours, Some(&ours.token)).await;
            assert_eq!(by_customer.status, 403, "{method} {path} by a customer");
        }
    }
}

#[tokio::test]
async fn a_customers_token_opens_its_own_delivery_and_no_other_of_the_same_tenant() {
    let server = server().await;
    let ours = server.tenant("ours").await;
    let (_, other) = server.post("/api/v1/deliveries", &ours.key, two_stops()).await;

    let own = server.get(&format!("/api/v1/tracking/{}/status", ours.delivery.delivery), &ours.token).await;
    let others = server.get(&format!("/api/v1/tracking/{}/status", text(&other["delivery"])), &ours.token).await;
    let none = server.get("/api/v1/tracking/999999/status", &ours.token).await;

    assert_eq!((own.0, others.0, none.0), (200, 404, 404));
    assert_eq!(others.1["detail"], none.1["detail"]);
}

#[tokio::test]
async fn what_another_tenant_has_and_what_nobody_has_are_the_same_answer() {
    let server = server().await;
    let ours = server.tenant("ours").await;
    let theirs = server.tenant("theirs").await;
    // Numbers begin anew in every tenant, so one is made here that the other does not have.
    let mut body = two_stops();
    body["id"] = json!(4711);
    assert_eq!(server.post("/api/v1/deliveries", &ours.key, body).await.0, 201);

    for path in ["", "/trail"] {
        let mut others = server.get(&format!("/api/v1/deliveries/4711{path}"), &theirs.key).await;
        let mut nobodys = server.get(&format!("/api/v1/deliveries/4712{path}"), &theirs.key).await;
        // Every answer has an id of its own.
        for answer in [&mut others.1, &mut nobodys.1] {
            assert!(answer.as_object_mut().unwrap().remove("request_id").is_some());
        }
        assert_eq!(others, nobodys);
    }
}

#[tokio::test]
async fn two_tenants_deliveries_of_one_number_are_two_deliveries() {
    let server = server().await;
    let (ours, theirs) = (server.tenant("ours").await, server.tenant("theirs").await);
    assert_eq!(ours.delivery.delivery, theirs.delivery.delivery, "numbers begin anew in every tenant");
    let now = server.world.now();
    let keyframe = server.world.keyframe(ours.delivery, 1, Some(at(10.0, now))).await;

    let mut watching = server.watch(&theirs, "").await;
    let first = watching.frame().await;
    server.world.publish(vec![keyframe]).await;
    let mut of_ours = server.watch(&ours, "").await;
    while of_ours.frame().await["position"].is_null() {}
    let theirs_now = server.get(&format!("/api/v1/tracking/{}/status", theirs.delivery.delivery), &theirs.token).await;

    assert!(first["position"].is_null());
    assert!(theirs_now.1["position"].is_null());
}
