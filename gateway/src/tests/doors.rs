//! Bad input at every door: a clear problem, never a panic, nothing changed.

use super::*;
use crate::api::routes;

#[tokio::test]
async fn a_body_that_is_not_understood_is_a_problem_at_every_door() {
    let server = server().await;
    let tenant = server.tenant("ours").await;
    let deep = format!("{}1{}", "[".repeat(5000), "]".repeat(5000));
    let bad: [&[u8]; 9] =
        [b"{", b"[]", b"5", b"null", b"\"x\"", b"{\"no_such_field\":1}", &[0xff, 0xfe], deep.as_bytes(), b"{}{}"];
    let before = server.get("/api/v1/deliveries", &tenant.key).await;

    for route in routes().into_iter().filter(|route| route.method == "post") {
        if route.path.ends_with("/token") {
            continue; // takes no body
        }
        let token = match route.path {
            "/api/v1/tenants" => ADMIN_KEY,
            "/api/v1/sessions" => &tenant.credential,
            _ => &tenant.key,
        };
        let path = route.path.replace("{delivery}", &tenant.delivery.delivery.to_string());
        let bearer = format!("Bearer {token}");
        for body in bad {
            let answer = server.ask("POST", &path, &[("authorization", &bearer)], body).await;
            assert!(
                (400..500).contains(&answer.status),
                "{path} {:?}: {}",
                String::from_utf8_lossy(body),
                answer.status
            );
            assert!(answer.is_problem(), "{path}: {}", answer.head);
        }
        let headers = [("authorization", bearer.as_str()), ("content-type", "text/plain")];
        assert_eq!(server.ask("POST", &path, &headers, b"{}").await.status, 415, "{path}");
        let large = server.ask("POST", &path, &[("authorization", &bearer)], &vec![b' '; 70_000]).await;
        assert!(large.status == 413 && large.is_problem(), "{path}: {}", large.status);
    }

    assert_eq!(server.get("/api/v1/deliveries", &tenant.key).await, before);
}

#[tokio::test]
async fn values_that_are_not_possible_are_named() {
    let server = server().await;
    let tenant = server.tenant("ours").await;
    let with = |change: &dyn Fn(&mut Value)| {
        let mut body = two_stops();
        change(&mut body);
        body
    };
    let bad = [
        with(&|body| body["stops"] = json!([])),
        with(&|body| body["stops"] = json!(vec![body["stops"][1].clone(); 17])),
        with(&|body| body["stops"] = json!([body["stops"][0]])),
        with(&|body| body["stops"] = json!([body["stops"][1], body["stops"][0]])),
        with(&|body| body["stops"][0]["lat"] = json!(90.1)),
        with(&|body| body["stops"][0]["lng"] = json!(1e300)),
        with(&|body| body["stops"][0]["radius_m"] = json!(9)),
        with(&|body| body["stops"][0]["label"] = json!("a\u{0}b")),
        with(&|body| body["reference"] = json!("x".repeat(201))),
        with(&|body| body["driver"] = json!(4_000_000_000u32)),
        with(&|body| body["id"] = json!(0)),
        with(&|body| body["id"] = json!(u64::MAX)),
        with(&|body| body["policy"] = json!({"stale_after_s": 0})),
        with(&|body| body["policy"] = json!({"stale_after_s": 500, "unavailable_after_s": 100})),
    ];
    for body in bad {
        let (status, problem) = server.post("/api/v1/deliveries", &tenant.key, body.clone()).await;
        assert_eq!(status, 422, "{body}: {problem}");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.len() > 10), "{problem}");
    }
    for (path, body) in [("/api/v1/drivers", json!({"name": "  "})), ("/api/v1/devices", json!({"driver": 77}))] {
        assert_eq!(server.post(path, &tenant.key, body).await.0, 422, "{path}");
    }
    let missing =
        server.post(&format!("/api/v1/deliveries/{}/assign", tenant.delivery.delivery), &tenant.key, json!({})).await;
    assert_eq!(missing.0, 400, "taking a driver away must be said: {}", missing.1);
}

#[tokio::test]
async fn a_path_or_a_query_that_names_nothing_is_a_problem() {
    let server = server().await;
    let tenant = server.tenant("ours").await;

    for path in ["x", "-1", "99999999999999999999", "1.5", "%00", "1%2f2"] {
        for rest in ["", "/trail"] {
            assert_eq!(server.get(&format!("/api/v1/deliveries/{path}{rest}"), &tenant.key).await.0, 404, "{path}");
            assert_eq!(server.get(&format!("/api/v1/drivers/{path}{rest}"), &tenant.key).await.0, 404, "{path}");
        }
        assert_eq!(server.get(&format!("/api/v1/tracking/{path}/status"), &tenant.key).await.0, 404, "{path}");
        assert_eq!(server.get(&format!("/api/v1/tracking/{path}/events"), &tenant.key).await.0, 404, "{path}");
    }
    let queries = ["/api/v1/deliveries?limit=0", "/api/v1/deliveries?cursor=x", "/api/v1/deliveries?live=perhaps"];
    for path in queries {
        let (status, problem) = server.get(path, &tenant.key).await;
        assert_eq!((status, problem["status"].as_u64()), (400, Some(400)), "{path}");
    }
    let events = format!("/api/v1/tracking/{}/events?last=x", tenant.delivery.delivery);
    assert_eq!(server.get(&events, &tenant.token).await.0, 400);
    assert_eq!(server.get("/api/v1/deliveries?unknown=1&_=2", &tenant.key).await.0, 200);
}

#[tokio::test]
async fn what_the_api_does_not_have_is_a_problem_and_all_else_is_the_pages() {
    let server = server().await;

    let no_path = server.ask("GET", "/api/v1/nothing", &[], b"").await;
    let no_version = server.ask("GET", "/api/v9/deliveries", &[], b"").await;
    let no_method = server.ask("PUT", "/api/v1/deliveries", &[], b"").await;
    let no_upgrade = server.ask("GET", "/api/v1/tracking/1/connect", &[], b"").await;
    let page = server.ask("GET", "/t/wfl_something", &[], b"").await;

    let statuses = [&no_path, &no_version, &no_method, &no_upgrade].map(|answer| (answer.status, answer.is_problem()));
    assert_eq!(statuses, [(404, true), (404, true), (405, true), (426, true)]);
    assert_eq!(page.body, b"a page");
}

#[tokio::test]
async fn tenants_are_made_by_the_operator_only_and_by_nobody_where_no_key_is_set() {
    let world = World::new(Clock::system()).await;
    let closed = world.serve(GatewaySettings::default()).await;

    let by_anybody = closed.post("/api/v1/tenants", ADMIN_KEY, json!({"name": "x"})).await;
    let by_nobody = closed.ask("POST", "/api/v1/tenants", &[], b"{\"name\":\"x\"}").await;

    assert_eq!((by_anybody.0, by_nobody.status), (403, 403));
    use backends::registry::Registry;
    assert_eq!(world.registry.tenants().await.unwrap().len(), 0);
}

#[tokio::test]
async fn other_origins_may_call_only_where_they_are_named() {
    let world = World::new(Clock::system()).await;
    let closed = world.serve(settings()).await;
    let origins = vec!["https://shop.example".to_string()];
    let open = world.serve(GatewaySettings { allowed_origins: origins, group: "b".into(), ..settings() }).await;
    let ask = async |server: &Server, origin: &str| {
        let headers = [("origin", origin), ("access-control-request-method", "POST")];
        server.ask("OPTIONS", "/api/v1/deliveries", &headers, b"").await.head
    };

    let (none, named, other) = (
        ask(&closed, "https://shop.example").await,
        ask(&open, "https://shop.example").await,
        ask(&open, "https://x.example").await,
    );

    assert!(!none.contains("access-control-allow-origin"), "{none}");
    assert!(named.contains("access-control-allow-origin: https://shop.example"), "{named}");
    assert!(!other.contains("access-control-allow-origin"), "{other}");
}
