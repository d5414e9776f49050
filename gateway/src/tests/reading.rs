//! How a gateway comes to its views: reading back at a start, sharing partitions, going on where another stopped.

use backends::live_store::{LiveEntry, LiveStore};
use protocol::LiveView;

use super::*;

#[tokio::test]
async fn a_new_gateway_is_whole_from_what_the_log_keeps() {
    let world = World::new(Clock::system()).await;
    let tenant = world.serve(settings()).await.tenant("ours").await;
    let now = world.now();
    let keyframe = world.keyframe(tenant.delivery, 1, Some(at(0.0, now))).await;
    world.publish(vec![keyframe]).await;
    for number in 2..200u64 {
        world.publish(vec![moved(tenant.delivery, number, at(number as f64 * 25.0, now), now)]).await;
    }

    let server = world.serve(GatewaySettings { group: "another".into(), ..settings() }).await;
    let (_, view) = server.get(&format!("/api/v1/tracking/{}/status", tenant.delivery.delivery), &tenant.token).await;

    assert_eq!(view["position"]["lat"], at(199.0 * 25.0, now).position.lat());
    assert_eq!(view["degraded"], false);
}

#[tokio::test]
async fn a_source_that_was_silent_for_long_is_read_back_to_its_own_last_word() {
    // In this world a second lasts ten milliseconds.
    let scale = daemon::Scale { factor: 100.0, origin_ms: Clock::system().now_ms() };
    let world = World::new(Clock::scaled(scale).unwrap()).await;
    let tenant = world.serve(settings()).await.tenant("ours").await;
    let keyframe = world.keyframe(tenant.delivery, 1, Some(at(7.0, world.now()))).await;
    world.publish(vec![from_source(keyframe, 3)]).await;
    let partition = partition_of(&TrackerKey::from(tenant.delivery).key_bytes(), 4);
    for _ in 0..30 {
        world.clock.sleep(Duration::from_secs(10)).await;
        heartbeats(&world, partition, 0..3).await;
    }

    let server = world.serve(GatewaySettings { group: "another".into(), ..settings() }).await;
    let (_, view) = server.get(&format!("/api/v1/tracking/{}/status", tenant.delivery.delivery), &tenant.token).await;

    assert!(view["view"].is_string(), "the hub holds it: {view}");
}

#[tokio::test]
async fn an_entry_that_cannot_be_opened_is_passed_by() {
    let server = server().await;
    let tenant = server.tenant("ours").await;
    let world = &server.world;
    let partition = partition_of(&TrackerKey::from(tenant.delivery).key_bytes(), 4);
    for value in [&b""[..], b"W", b"Wxyz.....", &[0xff; 300]] {
        let value = Bytes::from(value);
        let append = Append { topic: Topic::Updates, partition, key: Bytes::new(), value };
        world.log.append(&[append]).await.into_offsets().unwrap();
    }
    let keyframe = world.keyframe(tenant.delivery, 1, Some(at(0.0, world.now()))).await;
    world.publish(vec![keyframe]).await;

    let mut socket = server.watch(&tenant, "").await;

    while socket.frame_of("snapshot").await["position"].is_null() {}
}

#[tokio::test]
async fn what_another_gateway_owns_is_answered_from_the_stores_with_its_age_and_said_to_be_degraded() {
    let world = World::new(Clock::system()).await;
    let first = world.serve(settings()).await;
    let tenants = [first.tenant("ours").await];
    let tenant = &tenants[0];
    let seen = world.now() - Duration::from_secs(5);
    let Update::Delivery(update) = world.keyframe(tenant.delivery, 1, Some(at(70.0, seen))).await else {
        unreachable!()
    };
    let live = LiveView::begin(&update).unwrap();
    world.live_store.put(vec![LiveEntry::Delivery(Box::new(live))], Time(world.clock.monotonic_ms())).await.unwrap();

    // Another member of the same group takes its share; this delivery's partition goes to one of the two.
    let second = world.begin(settings().check().unwrap(), &Readiness::default()).await;
    let path = format!("/api/v1/tracking/{}/status", tenant.delivery.delivery);
    let begun = std::time::Instant::now();
    let (stranger, view) = loop {
        let answers = [first.get(&path, &tenant.token).await, second.get(&path, &tenant.token).await];
        let degraded: Vec<usize> = (0..2).filter(|n| answers[*n].1["degraded"] == true).collect();
        if let [n] = degraded[..] {
            break ([&first, &second][n], answers[n].1.clone());
        }
        assert!(begun.elapsed() < PATIENCE, "{answers:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let events = format!("/api/v1/tracking/{}/events", tenant.delivery.delivery);
    let stream = stranger.get(&events, &tenant.token).await;

    assert_eq!(view["position"]["lat"], at(70.0, seen).position.lat());
    assert!(view["position"]["age_ms"].as_u64().unwrap() >= 5_000);
    assert_eq!(stream.0, 503);
}

#[tokio::test]
async fn who_watches_a_partition_that_goes_to_another_gateway_is_told_to_come_back() {
    let world = World::new(Clock::system()).await;
    let first = world.serve(settings()).await;
    let mut sockets = Vec::new();
    let tenant = first.tenant("ours").await;
    for _ in 0..12 {
        let (_, made) = first.post("/api/v1/deliveries", &tenant.key, two_stops()).await;
        let path = format!("/api/v1/tracking/{}/connect", text(&made["delivery"]));
        let mut socket = first.socket(&path, &tenant.key).await;
        socket.frame().await;
        sockets.push(socket);
    }

    let second = world.serve(settings()).await;

    let mut told = 0;
    for mut socket in sockets {
        match tokio::time::timeout(Duration::from_millis(500), socket.hear()).await {
            Err(_) => {}
            Ok(heard) => {
                assert!(matches!(heard, Heard::Frame(frame) if frame["type"] == "redirect"));
                assert_eq!(socket.closed().await, 1012);
                told += 1;
            }
        }
    }
    assert!((1..12).contains(&told), "{told} of 12 had to move");
    drop(second);
}

fn from_source(update: Update, source: u32) -> Update {
    let Update::Delivery(mut update) = update else { unreachable!() };
    update.source.partition = PartitionId(source);
    Update::Delivery(update)
}

async fn heartbeats(world: &World, partition: PartitionId, sources: std::ops::Range<u32>) {
    let at = world.now();
    let updates = sources.map(|source| Update::Heartbeat { source: PartitionId(source), offset: Offset(0), at });
    let value = envelope::encode(&UpdateBatch { updates: updates.collect() });
    let append = Append { topic: Topic::Updates, partition, key: Bytes::new(), value: value.into() };
    world.log.append(&[append]).await.into_offsets().unwrap();
}
