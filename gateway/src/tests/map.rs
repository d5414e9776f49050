//! The dispatcher's map.

use super::*;

#[tokio::test]
async fn a_map_shows_all_drivers_and_live_deliveries_and_what_becomes_of_them() {
    let server = server().await;
    let tenant = server.tenant("ours").await;
    let world = &server.world;
    let driver = DriverKey { tenant: tenant.id, driver: tenant.driver };
    let keyframe = world.keyframe(tenant.delivery, 1, None).await;
    world
        .publish(vec![keyframe, driver_update(driver, world.next_offset(), Some(at(0.0, world.now())), world.now())])
        .await;
    until_shown(&server, &tenant).await;

    let mut socket = server.socket("/api/v1/map/connect", &tenant.key).await;
    let first = socket.frame().await;
    world.publish(vec![driver_update(driver, world.next_offset(), Some(at(100.0, world.now())), world.now())]).await;
    let moved = socket.frame_of("driver").await;
    socket.say(&json!({"viewport": [0.0, 0.0, 1.0, 1.0]}).to_string()).await;
    let left = socket.frame_of("left").await;
    socket.say(&json!({"viewport": null}).to_string()).await;
    let back = socket.frame_of("driver").await;
    socket.say("{\"viewport\":[9,9,9]}").await;

    assert_eq!(first["type"], "snapshot");
    assert_eq!((first["drivers"].as_array().unwrap().len(), first["deliveries"].as_array().unwrap().len()), (1, 1));
    assert_eq!((&first["deliveries"][0]["reference"], &first["degraded"]), (&json!("A-1"), &json!(false)));
    assert_eq!(moved["position"]["lat"], at(100.0, world.now()).position.lat());
    assert_eq!(left["driver"], json!(tenant.driver));
    assert_eq!(back["driver"], json!(tenant.driver));
    assert_eq!(socket.closed().await, 4400);
}

#[tokio::test]
async fn a_map_by_events_and_once_shows_the_same_and_within_the_viewport_only() {
    let server = server().await;
    let tenant = server.tenant("ours").await;
    let world = &server.world;
    let driver = |n| DriverKey { tenant: tenant.id, driver: DriverId(n) };
    let updates = [1, 2].map(|n| {
        driver_update(driver(n), world.next_offset(), Some(at(f64::from(n - 1) * 50_000.0, world.now())), world.now())
    });
    world.publish(updates.to_vec()).await;
    eventually_drivers(&server, &tenant, "", 2).await;
    let near = "?viewport=24,59.9,25,60.1";

    let bearer = format!("Bearer {}", tenant.key);
    let stream = server.send("GET", &format!("/api/v1/map/events{near}"), &[("authorization", &bearer)], b"").await;
    let (_, by_events) = EventLines { stream, bytes: Vec::new() }.event().await;
    let once = eventually_drivers(&server, &tenant, near, 1).await;

    assert_eq!(by_events["drivers"].as_array().unwrap().len(), 1);
    assert_eq!(by_events["drivers"][0]["driver"], once["drivers"][0]["driver"]);
    for bad in ["1,2,3", "1,2,3,x", "0,10,0,5", "0,0,999,1", ""] {
        let (status, _) = server.get(&format!("/api/v1/map/status?viewport={bad}"), &tenant.key).await;
        assert_eq!(status, 400, "{bad}");
    }
}

#[tokio::test]
async fn a_map_is_told_no_more_often_than_set_and_then_the_newest() {
    let server = World::new(Clock::system()).await.serve(GatewaySettings { map_every_ms: 300, ..settings() }).await;
    let tenant = server.tenant("ours").await;
    let world = &server.world;
    let driver = DriverKey { tenant: tenant.id, driver: tenant.driver };
    world.publish(vec![driver_update(driver, world.next_offset(), Some(at(0.0, world.now())), world.now())]).await;
    eventually_drivers(&server, &tenant, "", 1).await;
    let mut socket = server.socket("/api/v1/map/connect", &tenant.key).await;
    socket.frame().await;

    let begun = std::time::Instant::now();
    let count = 200;
    for n in 1..=count {
        let position = Some(at(f64::from(n) * 100.0, world.now()));
        world.publish(vec![driver_update(driver, world.next_offset(), position, world.now())]).await;
    }
    let mut frames = 1;
    while socket.frame_of("driver").await["position"]["lat"] != at(f64::from(count) * 100.0, world.now()).position.lat()
    {
        frames += 1;
    }

    let allowed = begun.elapsed().as_millis() / 300 + 2;
    assert!(frames <= allowed, "{frames} frames where {allowed} are allowed");
}

#[tokio::test]
async fn tiles_come_without_a_token_with_their_attribution_and_are_not_sent_twice() {
    let server = server().await;

    let tilejson = server.ask("GET", "/api/v1/map/tiles.json", &[], b"").await;
    let tile = server.ask("GET", "/api/v1/map/tiles/1/0/0.mvt?v=v1", &[], b"").await;
    let known = server.ask("GET", "/api/v1/map/tiles/1/0/0.mvt", &[("if-none-match", "\"v1-1.0.0\"")], b"").await;
    let empty = server.ask("GET", "/api/v1/map/tiles/2/0/0.mvt", &[], b"").await;

    assert_eq!(tilejson.json()["attribution"], "© OpenStreetMap contributors");
    assert!(tilejson.json()["tiles"][0].as_str().unwrap().contains("/{z}/{x}/{y}.mvt"));
    assert_eq!((tile.status, tile.body.as_slice()), (200, &b"tile"[..]));
    assert!(tile.head.contains("etag: \"v1-1.0.0\"") && tile.head.contains("mapbox-vector-tile"), "{}", tile.head);
    assert_eq!((known.status, empty.status), (304, 204));
    for bad in ["1/2/0.mvt", "1/0/0.png", "99/0/0.mvt", "x/y/z.mvt", "1/-1/0.mvt"] {
        let answer = server.ask("GET", &format!("/api/v1/map/tiles/{bad}"), &[], b"").await;
        assert!(answer.status == 404 && answer.is_problem(), "{bad}: {}", answer.status);
    }
}

async fn until_shown(server: &Server, tenant: &Tenant) {
    let begun = std::time::Instant::now();
    while server.get("/api/v1/map/status", &tenant.key).await.1["deliveries"] == json!([])
        || server.get("/api/v1/map/status", &tenant.key).await.1["drivers"] == json!([])
    {
        assert!(begun.elapsed() < PATIENCE);
    }
}

async fn eventually_drivers(server: &Server, tenant: &Tenant, query: &str, count: usize) -> Value {
    let begun = std::time::Instant::now();
    loop {
        let (status, map) = server.get(&format!("/api/v1/map/status{query}"), &tenant.key).await;
        assert_eq!(status, 200, "{map}");
        if map["drivers"].as_array().unwrap().len() == count {
            return map;
        }
        assert!(begun.elapsed() < PATIENCE, "{map}");
    }
}
