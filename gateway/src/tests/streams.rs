//! What a customer sees over WebSocket, server-sent events and REST.

use backends::installation::Numbers;
use backends::ledger::DeliveryLedger;
use backends::registry::Registry;
use protocol::DeliveryState;
use protocol::record::Vehicle;

use super::*;

#[tokio::test]
async fn the_three_doors_show_the_same_view() {
    let server = server().await;
    let tenant = server.tenant("ours").await;
    let now = server.world.now();
    let keyframe = server.world.keyframe(tenant.delivery, 1, Some(at(10.0, now))).await;
    server.world.publish(vec![keyframe]).await;

    let by_socket = held_snapshot(&server, &tenant).await;
    let (id, by_events) = server.events(&tenant, "", &[]).await.event().await;
    let (_, by_rest) =
        server.get(&format!("/api/v1/tracking/{}/status", tenant.delivery.delivery), &tenant.token).await;

    assert_eq!(id.as_deref(), Some("1"));
    for field in ["delivery", "status", "stops", "journal", "last_number", "freshness", "view", "degraded", "plan"] {
        assert_eq!(by_socket[field], by_events[field], "{field}");
        assert_eq!(by_socket[field], by_rest[field], "{field}");
    }
    for field in ["lat", "lng", "event_time"] {
        assert_eq!(by_socket["position"][field], by_rest["position"][field], "{field}");
    }
}

#[tokio::test]
async fn a_returning_customer_gets_exactly_what_it_missed_over_sockets_and_events() {
    let server = server().await;
    let tenant = server.tenant("ours").await;
    let world = &server.world;
    let keyframe = world.keyframe(tenant.delivery, 1, Some(at(0.0, world.now()))).await;
    world.publish(vec![keyframe]).await;
    let first = held_snapshot(&server, &tenant).await;
    let view = first["view"].as_str().unwrap();

    for (number, status) in [(2, DeliveryState::Accepted), (3, DeliveryState::Preparing), (4, DeliveryState::Ready)] {
        world.ledger.transition(tenant.delivery, status, None, None, world.now()).await.unwrap();
        let keyframe = world.keyframe(tenant.delivery, number, Some(at(500.0, world.now()))).await;
        world.publish(vec![keyframe]).await;
    }
    until_held(&server, &tenant, 4).await;

    for last in 1..=4u64 {
        let missed: Vec<u64> = (last + 1..=4).collect();
        let mut socket = server.watch(&tenant, &format!("?last={last}&view={view}")).await;
        let frames = socket.frames(missed.len() + 1).await;
        assert_eq!(numbers(&frames), missed);
        assert_eq!(frames.last().unwrap()["type"], "position", "{frames:?}");
        assert_eq!(frames.last().unwrap()["lat"], at(500.0, world.now()).position.lat());

        let last_id = last.to_string();
        let headers = [("last-event-id", last_id.as_str())];
        let mut events = server.events(&tenant, "?last=1", &headers).await;
        let mut ids = Vec::new();
        for _ in &missed {
            let (id, frame) = events.event().await;
            assert_eq!(id, Some(frame["number"].to_string()));
            ids.push(frame["number"].as_u64().unwrap());
        }
        assert_eq!(ids, missed);
        // Without the view's token it may have missed a new plan: the whole view comes too.
        assert_eq!(events.event().await.1["type"], "snapshot");
    }
}

#[tokio::test]
async fn a_customer_who_was_away_for_more_than_the_view_keeps_gets_it_all_from_the_ledger() {
    let server = server().await;
    let tenant = server.tenant("ours").await;
    let world = &server.world;
    reassign(world, &tenant, 100).await;
    let keyframe = world.keyframe(tenant.delivery, 1, None).await;
    world.publish(vec![keyframe]).await;
    until_held(&server, &tenant, 101).await;

    for last in [1, 20, 37, 38, 60, 101] {
        let mut socket = server.watch(&tenant, &format!("?last={last}")).await;
        let frames = socket.frames(101 - last + 1).await;
        assert_eq!(numbers(&frames), (last as u64 + 1..=101).collect::<Vec<_>>(), "after {last}");
        assert_eq!(frames.last().unwrap()["type"], "snapshot");
    }
    // A number that nobody gave out: the whole view, and no entry is skipped after it.
    let mut socket = server.watch(&tenant, "?last=99999").await;
    assert_eq!(socket.frame().await["last_number"], 101);
    reassign(world, &tenant, 1).await;
    let keyframe = world.keyframe(tenant.delivery, 2, None).await;
    world.publish(vec![keyframe]).await;
    assert_eq!(socket.frame_of("status").await["number"], 102);
}

#[tokio::test]
async fn reconnecting_over_changes_of_driver_misses_and_repeats_no_entry() {
    let server = server().await;
    let tenant = server.tenant("ours").await;
    let world = &server.world;
    let keyframe = world.keyframe(tenant.delivery, 1, None).await;
    world.publish(vec![keyframe]).await;
    let (mut last, mut seen, mut views) = (0, Vec::new(), std::collections::BTreeSet::new());

    for _turn in 0..6 {
        let mut socket = server.watch(&tenant, &format!("?last={last}")).await;
        reassign(world, &tenant, 1).await;
        let keyframe = world.keyframe(tenant.delivery, 1, Some(at(0.0, world.now()))).await;
        world.publish(vec![keyframe]).await;
        let newest = world.ledger.delivery(tenant.delivery).await.unwrap().unwrap().last_number().0;
        while last < newest {
            let frame = socket.frame().await;
            if frame["type"] == "status" {
                last = frame["number"].as_u64().unwrap();
                seen.push(last);
            } else if let Some(view) = frame["view"].as_str() {
                views.insert(view.to_string());
            }
        }
        // The whole view of the new reign comes with it.
        let snapshot = socket.frame_of("snapshot").await;
        views.insert(snapshot["view"].as_str().unwrap_or_default().to_string());
    }

    assert_eq!(seen, (1..=7).collect::<Vec<_>>());
    assert!(views.len() >= 6, "{views:?}");
}

#[tokio::test]
async fn a_slow_consumer_keeps_its_newest_position_and_delays_nobody() {
    // So long that a quick one who waited for a slow one would wait beyond all patience.
    let server = World::new(Clock::system()).await.serve(GatewaySettings { stall_s: 600, ..settings() }).await;
    let tenant = server.tenant("ours").await;
    let world = &server.world;
    let keyframe = world.keyframe(tenant.delivery, 1, Some(at(0.0, world.now()))).await;
    world.publish(vec![keyframe]).await;
    held_snapshot(&server, &tenant).await;
    // Takes nothing at all: its kernel buffers fill, then the gateway's task for it waits.
    let mut stalled = Vec::new();
    for _ in 0..5 {
        stalled.push(narrow_socket(&server, &tenant).await);
    }
    let mut quick = server.watch(&tenant, "").await;
    quick.frame().await;

    let count = 1_000u64;
    for number in 2..=count {
        world.publish(vec![moved(tenant.delivery, number, at(number as f64 * 25.0, world.now()), world.now())]).await;
        while quick.frame_of("position").await["lat"] != at(number as f64 * 25.0, world.now()).position.lat() {}
    }

    let newest = at(count as f64 * 25.0, world.now()).position.lat();
    for mut socket in stalled {
        let mut frames = 0;
        loop {
            frames += 1;
            if socket.frame_of("position").await["lat"] == newest {
                break;
            }
        }
        assert!(frames < count / 2, "{frames} old positions were kept for it");
    }
}

#[tokio::test]
async fn a_position_goes_stale_by_the_clock_and_says_so() {
    let scale = daemon::Scale { factor: 100.0, origin_ms: Clock::system().now_ms() };
    let server = World::new(Clock::scaled(scale).unwrap()).await.serve(settings()).await;
    let tenant = server.tenant("ours").await;
    let seen = server.world.now();
    let keyframe = server.world.keyframe(tenant.delivery, 1, Some(at(0.0, seen))).await;
    server.world.publish(vec![keyframe]).await;

    let mut socket = server.watch(&tenant, "").await;
    let last_seen = socket.frame_of("stale").await;
    let after = server.world.now().since(seen);
    let unavailable = socket.frame_of("stale").await;
    let (_, once) = server.get(&format!("/api/v1/tracking/{}/status", tenant.delivery.delivery), &tenant.token).await;

    assert_eq!(last_seen["freshness"], "last_seen");
    assert!(last_seen["age_ms"].as_u64().unwrap() >= 30_000, "{last_seen}");
    assert!(after >= Duration::from_secs(30), "{after:?}");
    assert_eq!(unavailable["freshness"], "unavailable");
    assert!(unavailable["age_ms"].as_u64().unwrap() >= 120_000, "{unavailable}");
    assert_eq!((&once["freshness"], &once["position"]), (&json!("unavailable"), &Value::Null));
}

#[tokio::test]
async fn a_token_may_come_as_sub_protocol_in_the_url_or_in_the_first_message() {
    let server = server().await;
    let tenant = server.tenant("ours").await;
    let path = format!("ws://{}/api/v1/tracking/{}/connect", server.address, tenant.delivery.delivery);
    let connect = async |uri: String, protocol: Option<String>| {
        let mut request = uri.into_client_request().unwrap();
        if let Some(protocol) = protocol {
            request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
        }
        tokio_tungstenite::connect_async(request)
            .await
            .map(|(socket, response)| (Socket(socket), response.headers().get("sec-websocket-protocol").cloned()))
    };

    let (mut by_protocol, chosen) =
        connect(path.clone(), Some(format!("wayfix, wayfix.token.{}", tenant.token))).await.unwrap();
    let (mut alone, echoed) = connect(path.clone(), Some(format!("wayfix.token.{}", tenant.token))).await.unwrap();
    let (mut by_url, _) = connect(format!("{path}?token={}", tenant.token), None).await.unwrap();
    let (mut by_message, _) = connect(path.clone(), None).await.unwrap();
    by_message.say(&json!({"token": tenant.token}).to_string()).await;

    assert_eq!(chosen.unwrap(), "wayfix");
    assert_eq!(echoed.unwrap(), format!("wayfix.token.{}", tenant.token).as_str());
    for socket in [&mut by_protocol, &mut alone, &mut by_url, &mut by_message] {
        assert_eq!(socket.frame().await["type"], "snapshot");
    }
    for (said, code) in [
        (json!({"token": "wfl_nothing"}).to_string(), 4401),
        ("{\"token\":5}".to_string(), 4400),
        ("hello".to_string(), 4400),
        (json!({"token": tenant.credential}).to_string(), 4401),
        (json!({"token": server.tenant("theirs").await.key}).to_string(), 0),
    ] {
        let (mut socket, _) = connect(path.replace("/1/", "/777/"), None).await.unwrap();
        socket.say(&said).await;
        assert_eq!(socket.closed().await, if code == 0 { 4404 } else { code }, "{said}");
    }
    assert!(connect(format!("{path}?token=wfl_nothing"), None).await.is_err());
}

#[tokio::test]
async fn a_customer_who_talks_is_let_go_and_one_who_pings_is_not() {
    use futures_util::SinkExt;
    let server = server().await;
    let tenant = server.tenant("ours").await;
    let mut pinging = server.watch(&tenant, "").await;
    pinging.frame().await;
    pinging.0.send(Message::Ping(Bytes::from_static(b"x"))).await.unwrap();
    let mut talking = server.watch(&tenant, "").await;
    talking.frame().await;

    talking.say("hello").await;
    let mut large = server.watch(&tenant, "").await;
    large.frame().await;
    large.say(&"x".repeat(100_000)).await;

    assert_eq!(talking.closed().await, 4400);
    let ended = loop {
        match large.0.next().await {
            Some(Ok(Message::Close(_))) | Some(Err(_)) | None => break true,
            Some(Ok(_)) => {}
        }
    };
    assert!(ended);
    let pong = pinging.0.next().await.unwrap().unwrap();
    assert_eq!(pong, Message::Pong(Bytes::from_static(b"x")));
}

#[tokio::test]
async fn who_says_nothing_for_three_pings_is_let_go_and_who_answers_is_not() {
    let server = World::new(Clock::system()).await.serve(GatewaySettings { ping_every_s: 1, ..settings() }).await;
    let tenant = server.tenant("ours").await;
    let mut mute = server.watch(&tenant, "").await;
    mute.frame().await;
    let mut lively = server.watch(&tenant, "").await;
    lively.frame().await;

    // A client answers pings while it reads, and only then.
    let reading = tokio::time::timeout(Duration::from_millis(5500), lively.0.next());
    let until = std::time::Instant::now() + Duration::from_millis(5500);
    let mut pings = usize::from(reading.await.is_ok_and(|heard| matches!(heard, Some(Ok(Message::Ping(_))))));
    while let Ok(heard) =
        tokio::time::timeout(until.saturating_duration_since(std::time::Instant::now()), lively.0.next()).await
    {
        assert!(matches!(heard, Some(Ok(Message::Ping(_)))), "{heard:?}");
        pings += 1;
    }

    assert!(pings >= 3, "{pings}");
    let mut rest = Vec::new();
    while let Some(Ok(heard)) = mute.0.next().await {
        rest.push(heard);
    }
    assert!(rest.iter().all(|heard| matches!(heard, Message::Ping(_))), "{rest:?}");
}

#[tokio::test]
async fn a_finished_delivery_is_shown_once_more_and_its_streams_end() {
    let server = World::new(Clock::system()).await.serve(GatewaySettings { finished_linger_s: 1, ..settings() }).await;
    let tenant = server.tenant("ours").await;
    let world = &server.world;
    let keyframe = world.keyframe(tenant.delivery, 1, None).await;
    world.publish(vec![keyframe]).await;
    let mut watching = server.watch(&tenant, "").await;
    watching.frame().await;

    world.ledger.transition(tenant.delivery, DeliveryState::Failed, None, None, world.now()).await.unwrap();
    let keyframe = world.keyframe(tenant.delivery, 2, None).await;
    world.publish(vec![keyframe]).await;

    assert_eq!(watching.frame_of("status").await["status"], "failed");
    assert_eq!(watching.closed().await, 1000);
    let over = server.events(&tenant, "", &[("last-event-id", "2")]).await;
    let missed = server.events(&tenant, "", &[("last-event-id", "1")]).await;
    let answer = |mut lines: EventLines| async move { lines.line().await.unwrap() };
    assert!(answer(over).await.contains("204"), "come back no more");
    assert!(answer(missed).await.contains("200"));
}

#[tokio::test]
async fn who_has_all_of_a_finished_delivery_is_told_so_at_once_on_return() {
    let server = server().await;
    let tenant = server.tenant("ours").await;
    let world = &server.world;
    world.ledger.transition(tenant.delivery, DeliveryState::Failed, None, None, world.now()).await.unwrap();

    let mut all = server.watch(&tenant, "?last=2").await;
    let mut some = server.watch(&tenant, "?last=1").await;

    assert_eq!(all.closed().await, 1000);
    assert_eq!(kinds(&some.frames(2).await), ["status", "snapshot"]);
    assert_eq!(some.closed().await, 1000);
}

#[tokio::test]
async fn a_customer_goes_on_over_numbers_that_a_ledger_left_out_after_a_loss() {
    let server = server().await;
    let tenant = server.tenant("ours").await;
    let world = &server.world;
    let keyframe = world.keyframe(tenant.delivery, 1, None).await;
    world.publish(vec![keyframe]).await;
    held_snapshot(&server, &tenant).await;
    let above = Numbers { journal: 1_000_000, ..Numbers::default() };
    world.ledger.go_on_above(above).await.unwrap();
    let mut watching = server.watch(&tenant, "?last=1").await;
    assert_eq!(watching.frame().await["type"], "snapshot");

    reassign(world, &tenant, 70).await;
    let keyframe = world.keyframe(tenant.delivery, 2, None).await;
    world.publish(vec![keyframe]).await;
    until_held(&server, &tenant, 1_000_070).await;

    let mut back = server.watch(&tenant, "?last=1").await;
    let seen = numbers(&back.frames(71).await);
    assert_eq!(seen, (1_000_001..=1_000_070).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_the_hub_does_not_hold_the_ledger_answers_and_the_hub_goes_on_from_there() {
    let server = server().await;
    let tenant = server.tenant("ours").await;
    let world = &server.world;

    // A second old: the processor has said nothing of it yet.
    let mut socket = server.watch(&tenant, "").await;
    let first = socket.frame().await;
    reassign(world, &tenant, 2).await;
    let keyframe = world.keyframe(tenant.delivery, 1, Some(at(0.0, world.now()))).await;
    world.publish(vec![keyframe]).await;

    assert_eq!(
        (&first["type"], &first["degraded"], &first["last_number"]),
        (&json!("snapshot"), &json!(false), &json!(1))
    );
    let frames = socket.frames(3).await;
    assert_eq!((kinds(&frames), numbers(&frames)), (vec!["status", "status", "snapshot"], vec![2, 3]));
}

#[tokio::test]
async fn at_a_stop_everybody_is_told_to_come_back_and_does_so_without_loss() {
    let world = World::new(Clock::system()).await;
    let server = world.serve(settings()).await;
    let tenant = server.tenant("ours").await;
    let keyframe = world.keyframe(tenant.delivery, 1, None).await;
    world.publish(vec![keyframe]).await;
    let mut socket = server.watch(&tenant, "").await;
    socket.frame().await;
    let mut events = server.events(&tenant, "", &[]).await;
    events.event().await;

    let (stopped, code) = tokio::join!(server.drain.stop(Duration::from_secs(10)), async {
        let redirect = socket.frame_of("redirect").await;
        assert!(redirect["retry_after_ms"].as_u64().unwrap() <= 3000);
        socket.closed().await
    });
    let (_, farewell) = events.event().await;
    reassign(&world, &tenant, 3).await;
    let again = world.serve(settings()).await;
    let keyframe = world.keyframe(tenant.delivery, 1, None).await;
    world.publish(vec![keyframe]).await;
    let mut back = again.watch(&tenant, "?last=1").await;

    assert!(stopped, "nothing holds the stop");
    assert_eq!(code, 1012);
    assert_eq!(farewell["type"], "redirect");
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let frame = back.frame().await;
        seen.extend(numbers(&[frame]));
    }
    assert_eq!(seen, [2, 3, 4]);
}

#[tokio::test]
async fn events_do_not_hold_the_stop_of_their_door() {
    let world = World::new(Clock::system()).await;
    let server = world.serve(settings()).await;
    let tenant = server.tenant("ours").await;
    // A door of its own, that stops before the gateway does.
    let doors = Drain::default();
    let door = server.door(&doors).await;
    let mut events = door.events(&tenant, "", &[]).await;
    events.event().await;

    let begun = std::time::Instant::now();
    let stopped = doors.stop(Duration::from_secs(60)).await;

    assert!(stopped && begun.elapsed() < DOOR_GRACE, "{:?}", begun.elapsed());
    assert_eq!(events.event().await.1["type"], "redirect");
}

#[tokio::test]
async fn no_more_streams_are_taken_than_there_is_room_for_and_places_come_free() {
    let server = World::new(Clock::system()).await.serve(GatewaySettings { streams_max: 2, ..settings() }).await;
    let tenant = server.tenant("ours").await;
    let first = server.watch(&tenant, "").await;
    let _second = server.events(&tenant, "", &[]).await.event().await;
    let mut events = server.events(&tenant, "", &[]).await;

    let refused = loop {
        // The SSE stream above is gone with its connection; its place may take a moment to come free.
        let line = events.line().await.unwrap();
        if line.contains("200") || line.contains("503") {
            break line;
        }
    };
    let path = format!("/api/v1/tracking/{}/events", tenant.delivery.delivery);
    let bearer = format!("Bearer {}", tenant.token);
    let third = server.send("GET", &path, &[("authorization", &bearer)], b"").await;
    let mut third = EventLines { stream: third, bytes: Vec::new() };
    let third = if refused.contains("200") { third.line().await.unwrap() } else { refused };
    assert!(third.contains("503"), "{third}");

    drop(first);
    let begun = std::time::Instant::now();
    loop {
        let mut stream = server.events(&tenant, "", &[]).await;
        if stream.line().await.unwrap().contains("200") {
            break;
        }
        assert!(begun.elapsed() < PATIENCE);
    }
}

/// A socket with a small receive buffer that reads nothing by itself.
async fn narrow_socket(server: &Server, tenant: &Tenant) -> Socket {
    let tcp = tokio::net::TcpSocket::new_v4().unwrap();
    tcp.set_recv_buffer_size(16 << 10).unwrap();
    let stream = tcp.connect(server.address).await.unwrap();
    let path = format!("ws://{}/api/v1/tracking/{}/connect", server.address, tenant.delivery.delivery);
    let mut request = path.into_client_request().unwrap();
    request.headers_mut().insert("authorization", format!("Bearer {}", tenant.token).parse().unwrap());
    let (socket, _) = tokio_tungstenite::client_async(request, MaybeTlsStream::Plain(stream)).await.unwrap();
    Socket(socket)
}

/// The first whole view that the hub itself shows.
async fn held_snapshot(server: &Server, tenant: &Tenant) -> Value {
    let mut socket = server.watch(tenant, "").await;
    loop {
        let frame = socket.frame_of("snapshot").await;
        if frame["view"].is_string() {
            return frame;
        }
    }
}

async fn until_held(server: &Server, tenant: &Tenant, number: u64) {
    let path = format!("/api/v1/tracking/{}/status", tenant.delivery.delivery);
    let begun = std::time::Instant::now();
    loop {
        let (_, view) = server.get(&path, &tenant.token).await;
        if view["view"].is_string() && view["last_number"] == number {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{view}");
    }
}

/// So many changes between two drivers: each is an entry of the journal and an epoch of its own.
async fn reassign(world: &World, tenant: &Tenant, times: u32) {
    let drivers = world.registry.drivers(tenant.id, DriverId(0), 10).await.unwrap();
    let other = match drivers.get(1) {
        Some(driver) => driver.id,
        None => world.registry.create_driver(tenant.id, "Bo", "", Vehicle::Car, world.now()).await.unwrap().id,
    };
    for _ in 0..times {
        let now = world.ledger.delivery(tenant.delivery).await.unwrap().unwrap();
        let next = if now.driver == Some(tenant.driver) { other } else { tenant.driver };
        world.ledger.assign(tenant.delivery, Some(next), None, world.now()).await.unwrap();
    }
}
