//! The hub's promises, with time moved by hand.

use protocol::update::{
    Changed, DeliveryBody, DeliveryView, DriverBody, DriverView, Epoch, Eta, EtaBasis, Event, Generation, Plan,
    ShownPosition, Source,
};
use protocol::{
    AssignmentNumber, Delivery, DeliveryId, DeliveryPolicy, DeliveryState, DriverId, JournalEntry, JournalKind,
    MeasuredTime, Offset, Position, Stop, StopKind,
};
use serde_json::Value;

use super::*;

#[test]
fn a_new_watcher_gets_the_whole_view_and_then_what_changes() {
    let mut hub = whole_hub();
    hub.handle_update(&keyframe(1, 1, 3, Some(at(0))), T0);
    let watcher = begun(&mut hub, &Resume::default());

    let first = poll(&mut hub, watcher, T0);
    hub.handle_update(&moved(1, 2, at(30)), T0 + S);
    let second = poll(&mut hub, watcher, T0 + S);

    assert_eq!(kinds(&first), ["snapshot"]);
    assert_eq!(first[0]["last_number"], 3);
    assert_eq!(first[0]["freshness"], "live");
    assert_eq!(kinds(&second), ["position"]);
    assert_eq!(second[0]["lat"], at(30).position.lat());
}

#[test]
fn a_returning_customer_gets_exactly_the_entries_missed_and_the_newest_position() {
    for last in 0..=7 {
        let mut hub = whole_hub();
        hub.handle_update(&keyframe(1, 1, 7, Some(at(0))), T0);
        let view = view_of(&mut hub);

        let resume = Resume { last: Some(JournalNumber(last)), view: Some(view) };
        let watcher = begun(&mut hub, &resume);

        let frames = poll(&mut hub, watcher, T0);
        assert_eq!(numbers(&frames), (last + 1..=7).collect::<Vec<_>>());
        assert_eq!(kinds(&frames).last(), Some(&"position"));
        assert!(!kinds(&frames).contains(&"snapshot"), "{frames:?}");
    }
}

#[test]
fn a_customer_who_returns_from_another_epoch_gets_the_whole_view_too() {
    let mut hub = whole_hub();
    hub.handle_update(&keyframe(1, 1, 3, Some(at(0))), T0);
    let view = view_of(&mut hub);
    hub.handle_update(&keyframe(2, 1, 5, Some(at(500))), T0);

    let watcher = begun(&mut hub, &Resume { last: Some(JournalNumber(3)), view: Some(view) });

    let frames = poll(&mut hub, watcher, T0);
    assert_eq!(kinds(&frames), ["status", "status", "snapshot"]);
    assert_eq!(numbers(&frames), [4, 5]);
}

#[test]
fn entries_older_than_the_view_holds_are_asked_of_the_ledger_and_none_is_skipped() {
    let mut hub = whole_hub();
    let mut update = keyframe_body(1, 1, 100, None);
    delivery_of(&mut update).journal.drain(..36);
    hub.handle_update(&Update::Delivery(update), T0);
    let watcher = hub.handle_watch(KEY);

    let behind = hub.handle_begin(watcher, &Resume { last: Some(JournalNumber(5)), view: None });

    assert_eq!(behind, Begin::Behind { last: JournalNumber(5), through: JournalNumber(36) });
    let filled = Resume { last: Some(JournalNumber(36)), view: None };
    assert_eq!(hub.handle_begin(watcher, &filled), Begin::Begun);
    assert_eq!(numbers(&poll(&mut hub, watcher, T0)), (37..=100).collect::<Vec<_>>());
}

#[test]
fn a_customer_who_claims_entries_that_are_not_known_here_is_looked_up() {
    let mut hub = whole_hub();
    hub.handle_update(&keyframe(1, 1, 3, None), T0);
    let watcher = hub.handle_watch(KEY);

    let begin = hub.handle_begin(watcher, &Resume { last: Some(JournalNumber(u64::MAX)), view: None });

    assert_eq!(begin, Begin::Ahead { known: JournalNumber(3) });
}

#[test]
fn a_slow_consumer_keeps_its_newest_position_and_nothing_older() {
    let mut hub = whole_hub();
    hub.handle_update(&keyframe(1, 1, 3, Some(at(0))), T0);
    let (slow, quick) = (begun(&mut hub, &Resume::default()), begun(&mut hub, &Resume::default()));
    poll(&mut hub, slow, T0);
    poll(&mut hub, quick, T0);

    let mut seen = 0;
    for n in 2..1000 {
        let now = T0 + S * n;
        hub.handle_update(&moved(1, u64::from(n), later(at(f64::from(n) * 25.0), now)), now);
        seen += poll(&mut hub, quick, now).len();
    }

    let frames = poll(&mut hub, slow, T0 + S * 999);
    assert_eq!(seen, 998);
    assert_eq!(kinds(&frames), ["position"]);
    assert_eq!(frames[0]["lat"], at(999.0 * 25.0).position.lat());
}

#[test]
fn a_watcher_further_behind_in_the_journal_than_is_kept_is_sent_away_and_not_given_a_hole() {
    let mut hub = whole_hub();
    hub.handle_update(&keyframe(1, 1, 1, None), T0);
    let watcher = begun(&mut hub, &Resume::default());
    poll(&mut hub, watcher, T0);

    for number in 2..=70 {
        hub.handle_update(&journal(1, number, number), T0);
    }

    let mut frames = Vec::new();
    assert_eq!(hub.poll_frames(watcher, T0, &mut frames), Flow::Close(CloseReason::Slow));
    assert!(frames.is_empty());
}

#[test]
fn numbers_left_out_after_a_loss_are_no_missing_entries() {
    let mut hub = whole_hub();
    hub.handle_update(&keyframe(1, 1, 3, None), T0);
    let watching = begun(&mut hub, &Resume { last: Some(JournalNumber(3)), view: None });
    poll(&mut hub, watching, T0);

    hub.handle_update(&journal(1, 2, 1_000_001), T0);
    let returning = begun(&mut hub, &Resume { last: Some(JournalNumber(3)), view: None });
    // It saw two entries that the ledger has lost since: it has to be shown what holds instead.
    let view = view_of(&mut hub);
    let from_before = begun(&mut hub, &Resume { last: Some(JournalNumber(5)), view: Some(view) });

    for (watcher, is_whole) in [(watching, false), (returning, true), (from_before, true)] {
        let mut frames = Vec::new();
        assert_eq!(hub.poll_frames(watcher, T0, &mut frames), Flow::Quiet);
        let frames = values(&frames);
        assert_eq!(numbers(&frames), [1_000_001]);
        assert_eq!(kinds(&frames).contains(&"snapshot"), is_whole, "{frames:?}");
    }
}

#[test]
fn a_customer_who_knows_more_than_the_log_has_brought_is_not_taken_back() {
    for is_whole_at_first in [true, false] {
        let mut hub = Hub::new(HubConfig::default(), T0);
        if is_whole_at_first {
            hub.handle_whole();
        }
        hub.handle_update(&keyframe(1, 1, 8, Some(at(0))), T0);
        let watcher = hub.handle_watch(KEY);
        hub.handle_follow(watcher, JournalNumber(9));
        hub.handle_whole();

        let mut before = poll(&mut hub, watcher, T0);
        hub.handle_update(&moved(1, 2, at(500)), T0);
        before.extend(poll(&mut hub, watcher, T0));
        hub.handle_update(&status(1, 3, 9, DeliveryState::Failed), T0);
        let after = poll(&mut hub, watcher, T0);

        assert!(before.is_empty(), "{before:?}");
        assert_eq!(kinds(&after), ["snapshot"]);
        assert_eq!((&after[0]["last_number"], &after[0]["status"]), (&9.into(), &"failed".into()));
    }
}

#[test]
fn every_entry_is_given_once_whatever_the_keyframes_repeats_and_gaps() {
    let mut hub = whole_hub();
    hub.handle_update(&keyframe(1, 1, 1, None), T0);
    let watcher = begun(&mut hub, &Resume::default());
    poll(&mut hub, watcher, T0);

    let updates = [
        journal(1, 2, 2),
        journal(1, 2, 2),        // twice
        journal(1, 4, 4),        // after a gap: dropped
        keyframe(1, 5, 4, None), // closes it
        keyframe(1, 3, 3, None), // from the past
        keyframe(2, 1, 6, None), // another reign
        journal(1, 6, 5),        // of the old one
        journal(2, 2, 7),
    ];
    let mut given = Vec::new();
    for update in &updates {
        hub.handle_update(update, T0);
        given.extend(numbers(&poll(&mut hub, watcher, T0)));
    }

    assert_eq!(given, [2, 3, 4, 5, 6, 7]);
}

#[test]
fn small_moves_wait_for_a_heartbeat_and_great_ones_do_not() {
    let mut hub = whole_hub();
    hub.handle_update(&keyframe(1, 1, 1, Some(at(0))), T0);
    let watcher = begun(&mut hub, &Resume::default());
    poll(&mut hub, watcher, T0);

    hub.handle_update(&moved(1, 2, later(at(5), T0 + S * 2)), T0 + S * 2);
    let small = poll(&mut hub, watcher, T0 + S * 2);
    let wake = hub.poll_timeout().unwrap();
    hub.handle_timeout(wake);
    let heartbeat = poll(&mut hub, watcher, wake);

    assert!(small.is_empty());
    assert_eq!(wake, T0 + S * 10);
    assert_eq!(kinds(&heartbeat), ["position"]);
    assert_eq!(heartbeat[0]["lat"], at(5).position.lat());
}

#[test]
fn a_position_that_nothing_follows_goes_stale_and_then_away_by_the_clock_alone() {
    let mut hub = whole_hub();
    hub.handle_update(&keyframe(1, 1, 1, Some(at(0))), T0);
    let watcher = begun(&mut hub, &Resume::default());
    poll(&mut hub, watcher, T0);

    let mut told = Vec::new();
    while let Some(wake) = hub.poll_timeout().filter(|wake| *wake <= T0 + S * 200) {
        hub.handle_timeout(wake);
        for frame in poll(&mut hub, watcher, wake) {
            told.push((wake.since(T0).as_secs(), frame["type"].clone(), frame["freshness"].clone()));
        }
    }
    hub.handle_update(&moved(1, 2, later(at(1), T0 + S * 201)), T0 + S * 201);
    let back = poll(&mut hub, watcher, T0 + S * 201);

    let stale = |secs, freshness: &str| (secs, Value::from("stale"), Value::from(freshness));
    assert_eq!(told, [stale(30, "last_seen"), stale(120, "unavailable")]);
    assert_eq!(kinds(&back), ["position"]);
    assert_eq!(back[0]["freshness"], "live");
}

#[test]
fn a_place_that_must_not_be_shown_any_more_is_in_no_frame() {
    let mut hub = whole_hub();
    hub.handle_update(&keyframe(1, 1, 1, Some(at(0))), T0);
    let view = view_of(&mut hub);
    let late = T0 + S * 500;

    let fresh = begun(&mut hub, &Resume::default());
    let returning = begun(&mut hub, &Resume { last: Some(JournalNumber(1)), view: Some(view) });

    let (fresh, returning) = (poll(&mut hub, fresh, late), poll(&mut hub, returning, late));
    assert!(fresh[0]["position"].is_null(), "{fresh:?}");
    assert_eq!(kinds(&returning), ["stale"]);
}

#[test]
fn an_arrival_time_is_in_no_frame_once_the_place_it_was_made_from_is_not_shown() {
    let mut hub = whole_hub();
    let mut update = keyframe_body(1, 1, 1, Some(at(0)));
    let DeliveryBody::Keyframe { view } = &mut update.body else { unreachable!() };
    view.eta = Some(eta(T0 + S * 600));
    hub.handle_update(&Update::Delivery(update), T0);
    let view = view_of(&mut hub);

    for (now, is_shown) in [(T0 + S * 119, true), (T0 + S * 120, false)] {
        let fresh = begun(&mut hub, &Resume::default());
        let returning = begun(&mut hub, &Resume { last: Some(JournalNumber(1)), view: Some(view.clone()) });
        let (_, map) = hub.handle_map_watch(TenantId(7), DeliveryPolicy::default(), None, now);

        assert_eq!(poll(&mut hub, fresh, now)[0]["eta"].is_object(), is_shown);
        assert_eq!(kinds(&poll(&mut hub, returning, now)).contains(&"eta"), is_shown);
        assert_eq!(map.deliveries[0].eta.is_some(), is_shown);
    }
}

#[test]
fn one_frame_is_made_for_all_who_get_it() {
    let mut hub = whole_hub();
    hub.handle_update(&keyframe(1, 1, 1, Some(at(0))), T0);
    let (a, b) = (begun(&mut hub, &Resume::default()), begun(&mut hub, &Resume::default()));
    hub.handle_update(&moved(1, 2, at(100)), T0);
    let (mut of_a, mut of_b) = (Vec::new(), Vec::new());

    hub.poll_frames(a, T0, &mut of_a);
    hub.poll_frames(b, T0, &mut of_b);

    assert_eq!(of_a.len(), of_b.len());
    for (a, b) in of_a.iter().zip(&of_b) {
        assert_eq!(a.json.as_ptr(), b.json.as_ptr());
    }
}

#[test]
fn a_new_plan_is_told_as_a_whole_view_and_an_unchanged_one_is_not() {
    let mut hub = whole_hub();
    hub.handle_update(&keyframe(1, 1, 1, Some(at(0))), T0);
    let watcher = begun(&mut hub, &Resume::default());
    poll(&mut hub, watcher, T0);

    let mut planned = keyframe_body(1, 2, 1, Some(at(0)));
    let DeliveryBody::Keyframe { view } = &mut planned.body else { unreachable!() };
    view.plan = Some(Plan { points: vec![at(0).position, at(900).position], length_m: 900, duration_s: 90 });
    hub.handle_update(&Update::Delivery(planned.clone()), T0);
    let told = poll(&mut hub, watcher, T0);
    planned.number = 3;
    hub.handle_update(&Update::Delivery(planned), T0);
    let again = poll(&mut hub, watcher, T0);

    assert_eq!(kinds(&told), ["snapshot"]);
    assert_eq!(polyline::decode_polyline(told[0]["plan"].as_str().unwrap(), 5).unwrap().0.len(), 2);
    assert!(again.is_empty(), "{again:?}");
}

#[test]
fn an_eta_is_told_when_it_changes_by_what_people_read() {
    let mut hub = whole_hub();
    hub.handle_update(&keyframe(1, 1, 1, None), T0);
    let watcher = begun(&mut hub, &Resume::default());
    poll(&mut hub, watcher, T0);

    let mut told = Vec::new();
    for (number, arrival_s) in [(2, Some(600)), (3, Some(605)), (4, Some(620)), (5, None)] {
        let eta = arrival_s.map(|s| eta(T0 + S * s));
        let changed = Changed { eta: Some(eta), ..Changed::default() };
        hub.handle_update(&delivery_update(1, number, DeliveryBody::Changed { changed }, vec![]), T0);
        told.push(kinds(&poll(&mut hub, watcher, T0)).concat());
    }

    assert_eq!(told, ["eta", "", "eta", "snapshot"]);
}

#[test]
fn nothing_is_told_before_the_hub_is_whole_and_then_the_newest() {
    let mut hub = Hub::new(HubConfig::default(), T0);
    let watcher = hub.handle_watch(KEY);
    hub.handle_update(&keyframe(1, 1, 1, Some(at(0))), T0);
    assert_eq!(hub.handle_begin(watcher, &Resume::default()), Begin::NotHeld);
    hub.handle_follow(watcher, JournalNumber(1));
    hub.handle_update(&journal(1, 2, 2), T0);
    assert!(poll(&mut hub, watcher, T0).is_empty());

    hub.handle_whole();

    let frames = poll(&mut hub, watcher, T0);
    assert_eq!(kinds(&frames), ["status", "snapshot"]);
    assert_eq!(numbers(&frames), [2]);
}

#[test]
fn who_watched_before_the_view_was_there_gets_it_when_it_comes() {
    let mut hub = whole_hub();
    let watcher = hub.handle_watch(KEY);
    assert_eq!(hub.handle_begin(watcher, &Resume::default()), Begin::NotHeld);
    hub.handle_follow(watcher, JournalNumber(1));

    hub.handle_update(&keyframe(1, 1, 2, None), T0);

    assert_eq!(hub.poll_wake(), Some(watcher));
    let frames = poll(&mut hub, watcher, T0);
    assert_eq!(numbers(&frames), [2]);
    assert_eq!(kinds(&frames), ["status", "snapshot"]);
}

#[test]
fn the_watchers_of_a_finished_delivery_are_told_so_and_let_go_later() {
    let mut hub = whole_hub();
    hub.handle_update(&keyframe(1, 1, 1, None), T0);
    let watcher = begun(&mut hub, &Resume::default());
    poll(&mut hub, watcher, T0);

    hub.handle_update(&status(1, 2, 2, DeliveryState::Failed), T0);
    let told = poll(&mut hub, watcher, T0);
    hub.handle_timeout(T0 + S * 60);
    let mut frames = Vec::new();
    let flow = hub.poll_frames(watcher, T0 + S * 60, &mut frames);
    hub.handle_unwatch(watcher);
    hub.handle_timeout(T0 + S * 3600);

    assert_eq!(told[0]["status"], "failed");
    assert_eq!(flow, Flow::Close(CloseReason::Finished));
    assert_eq!(hub.view_count(), 0);
    assert_eq!(hub.watcher_count(), 0);
    assert!(hub.tenants.is_empty() && hub.watching.is_empty());
}

#[test]
fn a_delivery_that_was_let_go_and_that_nobody_takes_leaves_the_map_and_its_watchers_ask_again() {
    for is_taken in [true, false] {
        let mut hub = whole_hub();
        hub.handle_update(&keyframe(1, 1, 1, None), T0);
        let customer = begun(&mut hub, &Resume::default());
        let (map, _) = hub.handle_map_watch(TenantId(7), DeliveryPolicy::default(), None, T0);
        let mut last = keyframe_body(1, 2, 1, None);
        last.is_last = true;

        hub.handle_update(&Update::Delivery(last), T0);
        hub.handle_timeout(T0 + S * 30);
        if is_taken {
            hub.handle_update(&keyframe(2, 1, 2, None), T0 + S * 30);
        }
        let at_once = (hub.view_count(), kinds(&poll(&mut hub, map, T0)).contains(&"left"));
        hub.handle_timeout(T0 + S * 120);

        assert_eq!(at_once, (1, false));
        let flow = hub.poll_frames(customer, T0 + S * 120, &mut Vec::new());
        let left = kinds(&poll(&mut hub, map, T0 + S * 120)).contains(&"left");
        let end = if is_taken { Flow::Quiet } else { Flow::Close(CloseReason::Moved) };
        assert_eq!((flow, left, hub.view_count()), (end, !is_taken, usize::from(is_taken)));
    }
}

#[test]
fn a_map_shows_its_own_tenant_only() {
    let mut hub = whole_hub();
    hub.handle_update(&driver(7, 1, 1, Some(at(0))), T0);
    hub.handle_update(&driver(8, 1, 1, Some(at(0))), T0);
    hub.handle_update(&keyframe(1, 1, 1, None), T0);

    let (ours, of_ours) = hub.handle_map_watch(TenantId(7), DeliveryPolicy::default(), None, T0);
    let (theirs, of_theirs) = hub.handle_map_watch(TenantId(8), DeliveryPolicy::default(), None, T0);
    hub.handle_update(&driver(7, 1, 2, Some(at(100))), T0);
    hub.handle_update(&journal(1, 2, 2), T0);

    assert_eq!((of_ours.drivers.len(), of_ours.deliveries.len()), (1, 1));
    assert_eq!((of_theirs.drivers.len(), of_theirs.deliveries.len()), (1, 0));
    assert_eq!(kinds(&poll(&mut hub, ours, T0)), ["driver", "delivery"]);
    assert!(poll(&mut hub, theirs, T0).is_empty());
}

#[test]
fn a_map_is_told_who_comes_into_its_viewport_and_who_leaves_it() {
    let mut hub = whole_hub();
    hub.handle_update(&driver(7, 1, 1, Some(at(0))), T0);
    hub.handle_update(&driver(7, 2, 1, Some(at(50_000))), T0);
    let here = Viewport::try_from([24.0, 59.9, 25.0, 60.1]).unwrap();

    let (map, first) = hub.handle_map_watch(TenantId(7), DeliveryPolicy::default(), Some(here), T0);
    hub.handle_update(&driver(7, 1, 2, Some(at(50_000))), T0);
    hub.handle_update(&driver(7, 2, 2, Some(at(0))), T0);
    let crossed = poll(&mut hub, map, T0);
    hub.handle_viewport(map, None);
    let widened = poll(&mut hub, map, T0);

    assert_eq!(first.drivers.iter().map(|frame| frame.driver.0).collect::<Vec<_>>(), [1]);
    assert_eq!(kinds(&crossed), ["left", "driver"]);
    assert_eq!((&crossed[0]["driver"], &crossed[1]["driver"]), (&"1".into(), &"2".into()));
    assert_eq!(kinds(&widened), ["driver", "driver"]);
}

#[test]
fn a_map_opened_before_the_hub_was_whole_is_shown_all_anew_once_it_is() {
    let mut hub = Hub::new(HubConfig::default(), T0);
    let (map, first) = hub.handle_map_watch(TenantId(7), DeliveryPolicy::default(), None, T0);

    hub.handle_update(&driver(7, 2, 1, Some(at(0))), T0);
    hub.handle_whole();

    assert_eq!(hub.poll_wake(), Some(map));
    let shown = hub.handle_map_renew(map, T0);
    assert!(first.degraded && !shown.degraded);
    assert_eq!(shown.drivers.iter().map(|frame| frame.driver.0).collect::<Vec<_>>(), [2]);
    assert!(poll(&mut hub, map, T0).is_empty(), "the snapshot has said it all");
}

#[test]
fn a_slow_map_gets_one_frame_per_driver_and_the_newest() {
    let mut hub = whole_hub();
    hub.handle_update(&driver(7, 1, 1, Some(at(0))), T0);
    let (map, _) = hub.handle_map_watch(TenantId(7), DeliveryPolicy::default(), None, T0);

    for n in 2..100 {
        hub.handle_update(&driver(7, 1, n, Some(at(n as f64 * 100.0))), T0);
    }

    let frames = poll(&mut hub, map, T0);
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0]["position"]["lat"], at(9900).position.lat());
}

#[test]
fn updates_of_a_driver_out_of_order_or_of_an_older_reign_are_passed_by() {
    let mut hub = whole_hub();
    assert_eq!(hub.handle_update(&driver(7, 1, 5, Some(at(500))), T0), Handled::Taken);

    assert_eq!(hub.handle_update(&driver(7, 1, 5, Some(at(0))), T0), Handled::Dropped);
    assert_eq!(hub.handle_update(&driver(7, 1, 4, Some(at(0))), T0), Handled::Dropped);
    let Update::Driver(mut changed) = driver(7, 1, 9, None) else { unreachable!() };
    changed.generation.claim = Offset(99);
    changed.body = DriverBody::Changed { changed: Changed::default() };
    assert_eq!(hub.handle_update(&Update::Driver(changed), T0), Handled::Dropped);
}

#[test]
fn no_more_views_are_held_than_there_is_room_for() {
    let mut hub = Hub::new(HubConfig { views_max: 2, ..HubConfig::default() }, T0);

    let handled: Vec<Handled> =
        (1..=3).map(|driver_id| hub.handle_update(&driver(7, driver_id, 1, None), T0)).collect();

    assert_eq!(handled, [Handled::Taken, Handled::Taken, Handled::Shed]);
}

#[test]
fn closing_reaches_everybody_once() {
    let mut hub = whole_hub();
    let customer = hub.handle_watch(KEY);
    let (map, _) = hub.handle_map_watch(TenantId(7), DeliveryPolicy::default(), None, T0);

    hub.handle_close(CloseReason::Stopping);

    for id in [customer, map] {
        assert_eq!(hub.poll_frames(id, T0, &mut Vec::new()), Flow::Close(CloseReason::Stopping));
    }
}

#[test]
fn a_view_at_the_ends_of_time_and_earth_breaks_nothing() {
    let mut hub = whole_hub();
    for (number, time) in [(1, i64::MIN), (2, i64::MAX)] {
        let mut position = later(at(0), Time(time));
        position.position = Position { lat_e7: i32::MIN, lon_e7: i32::MAX };
        let mut update = keyframe_body(1, number, 1, Some(position));
        let DeliveryBody::Keyframe { view } = &mut update.body else { unreachable!() };
        view.eta = Some(eta(Time(time)));
        view.plan = Some(Plan { points: vec![position.position], length_m: 0, duration_s: 0 });
        hub.handle_update(&Update::Delivery(update), T0);
        let watcher = begun(&mut hub, &Resume::default());
        assert_eq!(poll(&mut hub, watcher, Time(i64::MAX)).len(), 1);
    }
    hub.handle_timeout(T0 + S * 100_000);
}

const T0: Time = Time(1_800_000_000_000);
const S: Duration = Duration::from_secs(1);
const KEY: DeliveryKey = DeliveryKey { tenant: TenantId(7), delivery: DeliveryId(12) };

fn whole_hub() -> Hub {
    let mut hub = Hub::new(HubConfig::default(), T0);
    hub.handle_whole();
    hub
}

fn begun(hub: &mut Hub, resume: &Resume) -> WatcherId {
    let watcher = hub.handle_watch(KEY);
    assert_eq!(hub.handle_begin(watcher, resume), Begin::Begun);
    watcher
}

#[test]
fn when_the_clock_is_set_dots_stay_as_old_as_they_were_and_whoever_watches_is_given_the_whole_view() {
    const DAY_MS: i64 = 86_400_000;
    for by_ms in [2_000, 7_200_000, 2 * DAY_MS, 7_300 * DAY_MS].into_iter().flat_map(|ms| [ms, -ms]) {
        let set = |after_s: u64| Time(T0.0 + by_ms) + Duration::from_secs(after_s);
        let mut hub = Hub::new(HubConfig::default(), T0);
        hub.handle_whole();
        hub.handle_update(&keyframe(1, 1, 1, Some(at(0))), T0);
        let id = hub.handle_watch(KEY);
        assert_eq!(hub.handle_begin(id, &Resume::default()), Begin::Begun);
        poll(&mut hub, id, T0);

        hub.handle_clock_set(by_ms);

        let frames = poll(&mut hub, id, set(1));
        assert_eq!(kinds(&frames), ["snapshot"], "{by_ms} ms");
        assert_eq!(frames[0]["position"]["age_ms"], 1_000, "{by_ms} ms");
        assert_eq!(frames[0]["position"]["freshness"], "live", "{by_ms} ms");
        hub.handle_update(&moved(1, 2, later(at(100), set(4))), set(4));
        assert_eq!(kinds(&poll(&mut hub, id, set(4))), ["position"], "{by_ms} ms: the dot moves on");
        let stale_s = DeliveryPolicy::default().stale_after_ms() as u64 / 1_000;
        hub.handle_timeout(set(4 + stale_s));
        assert_eq!(kinds(&poll(&mut hub, id, set(4 + stale_s))), ["stale"], "{by_ms} ms: in its time");
    }
}

fn poll(hub: &mut Hub, id: WatcherId, now: Time) -> Vec<Value> {
    let mut frames = Vec::new();
    hub.poll_frames(id, now, &mut frames);
    values(&frames)
}

fn values(frames: &[SharedFrame]) -> Vec<Value> {
    frames.iter().map(|frame| serde_json::from_slice(&frame.json).unwrap()).collect()
}

fn kinds(frames: &[Value]) -> Vec<&str> {
    frames.iter().map(|frame| frame["type"].as_str().unwrap()).collect()
}

fn numbers(frames: &[Value]) -> Vec<u64> {
    frames.iter().filter(|frame| frame["type"] == "status").map(|frame| frame["number"].as_u64().unwrap()).collect()
}

fn view_of(hub: &mut Hub) -> String {
    let frame: Value = serde_json::from_slice(&hub.snapshot(KEY, T0).unwrap().json).unwrap();
    frame["view"].as_str().unwrap().to_string()
}

/// So many metres north of a place.
fn at(metres: impl Into<f64>) -> ShownPosition {
    ShownPosition {
        position: Position::from_degrees(60.0 + metres.into() / 111_319.5, 24.5).unwrap(),
        snapped: true,
        confidence_percent: 90,
        heading_255: Some(0),
        speed_dm_s: Some(100),
        accuracy_m: Some(5),
        measured: MeasuredTime::from_time(T0),
        event_time: T0,
        received: T0,
        standing: false,
    }
}

fn later(mut position: ShownPosition, time: Time) -> ShownPosition {
    (position.event_time, position.received, position.measured) = (time, time, MeasuredTime::from_time(time));
    position
}

fn eta(arrival: Time) -> Eta {
    Eta { arrival, p10: arrival, p90: arrival, basis: EtaBasis::Road, stop: 1 }
}

fn epoch(assignment: u32) -> Epoch {
    Epoch { assignment: AssignmentNumber(assignment), generation: Generation { incarnation: 1, claim: Offset(10) } }
}

fn delivery_update(assignment: u32, number: u64, body: DeliveryBody, events: Vec<Event>) -> Update {
    let source = Source::default();
    let epoch = epoch(assignment);
    Update::Delivery(DeliveryUpdate { key: KEY, epoch, number, source, at: T0, events, body, is_last: false })
}

fn entry(number: u64, status: DeliveryState) -> JournalEntry {
    JournalEntry { number: JournalNumber(number), at: T0, kind: JournalKind::Status { status, reason: None } }
}

fn keyframe(assignment: u32, number: u64, last: u64, position: Option<ShownPosition>) -> Update {
    Update::Delivery(keyframe_body(assignment, number, last, position))
}

fn keyframe_body(assignment: u32, number: u64, last: u64, position: Option<ShownPosition>) -> DeliveryUpdate {
    let stop = |kind| Stop { kind, position: at(0).position, radius_m: 60, label: String::new() };
    let delivery = Delivery {
        key: KEY,
        state: DeliveryState::Received,
        assignment: AssignmentNumber(assignment),
        driver: Some(DriverId(1)),
        stops: vec![stop(StopKind::Pickup), stop(StopKind::DropOff)],
        policy: DeliveryPolicy::default(),
        journal: (1..=last).map(|number| entry(number, DeliveryState::Received)).collect(),
        reference: "A-1".to_string(),
        created: T0,
    };
    let view = DeliveryView { delivery, position, progress: None, eta: None, plan: None, silent: None };
    let body = DeliveryBody::Keyframe { view: Box::new(view) };
    match delivery_update(assignment, number, body, vec![]) {
        Update::Delivery(update) => update,
        Update::Driver(_) | Update::Heartbeat { .. } => unreachable!(),
    }
}

fn delivery_of(update: &mut DeliveryUpdate) -> &mut Delivery {
    let DeliveryBody::Keyframe { view } = &mut update.body else { unreachable!() };
    &mut view.delivery
}

fn moved(assignment: u32, number: u64, position: ShownPosition) -> Update {
    let changed = Changed { position: Some(position), ..Changed::default() };
    delivery_update(assignment, number, DeliveryBody::Changed { changed }, vec![Event::Moved])
}

fn journal(assignment: u32, number: u64, entry_number: u64) -> Update {
    status(assignment, number, entry_number, DeliveryState::Accepted)
}

fn status(assignment: u32, number: u64, entry_number: u64, status: DeliveryState) -> Update {
    let event = Event::Journal { entry: entry(entry_number, status) };
    delivery_update(assignment, number, DeliveryBody::Changed { changed: Changed::default() }, vec![event])
}

fn driver(tenant: u32, driver: u32, offset: u64, position: Option<ShownPosition>) -> Update {
    let key = DriverKey { tenant: TenantId(tenant), driver: DriverId(driver) };
    let view = DriverView {
        key,
        lead: None,
        position,
        phone_state: None,
        battery_percent: Some(80),
        deliveries: vec![],
        silent: None,
        vehicle: protocol::record::Vehicle::Car,
    };
    Update::Driver(DriverUpdate {
        key,
        generation: Generation { incarnation: 1, claim: Offset(10) },
        fold_version: 1,
        source: Source { offset: Offset(offset), ..Source::default() },
        at: T0,
        events: vec![],
        body: DriverBody::Keyframe { view: Box::new(view) },
    })
}
