//! A phone against two edges over a link that loses, doubles, delays and reorders, all from a seed: every fix ends
//! acknowledged, and is in the log once after doubles are dropped by number.

mod world;

use std::time::Duration;

use proptest::prelude::*;
use world::{LinkQuality, World};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_fix_ends_acknowledged_and_in_the_log_once(
        seed: u64, loss_percent in 0u32..60, doubled_percent in 0u32..30, delay_ms_max in 10i64..1500,
    ) {
        let quality = LinkQuality { loss_percent, doubled_percent, delay_ms_max, dead: false };
        let mut world = World::new(seed, quality);

        world.drive(150, Duration::from_secs(4));
        world.settle();

        prop_assert_eq!(world.taken, 150);
        world.check_all_delivered();
    }

    #[test]
    fn garbage_from_the_network_settles_nothing(answers in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 1..40)) {
        let mut world = World::new(1, LinkQuality::PERFECT);
        world.run_for(Duration::from_secs(1));
        world.udp.dead = true;
        world.drive(3, Duration::from_secs(1));
        let before = world.phone.stats();

        for (at, answer) in answers.iter().enumerate() {
            world.phone.handle_datagram(answer, world.now);
            world.phone.handle_http_response(at as u64, Ok(answer), world.now);
        }

        let after = world.phone.stats();
        prop_assert_eq!((after.fixes_waiting, after.fixes_acked, after.acks), (before.fixes_waiting, before.fixes_acked, before.acks));
        world.udp.dead = false;
        world.settle();
        world.check_all_delivered();
    }

    #[test]
    fn no_number_is_used_twice_over_restarts_that_lose_the_queue_or_keep_it(seed: u64, keeps in prop::collection::vec(any::<bool>(), 1..5)) {
        let mut world = World::new(seed, LinkQuality { loss_percent: 30, doubled_percent: 10, delay_ms_max: 400, dead: false });

        for keep in keeps {
            world.drive(25, Duration::from_secs(4));
            world.restart(keep);
        }
        world.drive(10, Duration::from_secs(4));
        world.settle();

        world.check_all_delivered();
    }
}

#[test]
fn with_udp_dead_everything_goes_by_https_and_comes_back_to_udp() {
    let mut world = World::new(7, LinkQuality::GOOD);
    world.drive(20, Duration::from_secs(4));
    let by_https_before = world.phone.stats().datagrams_https;

    world.udp.dead = true;
    world.drive(40, Duration::from_secs(4));
    let in_the_dark = world.phone.stats();

    assert_eq!(by_https_before, 0);
    assert!(in_the_dark.datagrams_https >= 20, "{in_the_dark:?}");
    assert!(in_the_dark.fixes_waiting <= 4, "{in_the_dark:?}");
    world.udp.dead = false;
    world.drive(120, Duration::from_secs(4));
    let udp_before = world.phone.stats().datagrams_udp;
    world.drive(20, Duration::from_secs(4));
    assert!(world.phone.stats().datagrams_udp >= udp_before + 20, "UDP was taken back");
    world.settle();
    world.check_all_delivered();
}

#[test]
fn an_edge_that_restarts_in_the_middle_loses_nothing_for_good() {
    let mut world = World::new(16, LinkQuality { loss_percent: 20, ..LinkQuality::GOOD });

    for _ in 0..30 {
        world.drive(7, Duration::from_secs(4));
        world.run_for(Duration::from_millis(60));
        world.restart_edge(0);
    }

    world.settle();
    world.check_all_delivered();
}

#[test]
fn a_session_that_is_closed_again_and_again_is_renewed_but_seldom() {
    let mut world = World::new(17, LinkQuality::GOOD);
    world.closes = true;

    world.drive(150, Duration::from_secs(4));

    assert!((10..=61).contains(&world.sessions_asked), "{}", world.sessions_asked);
    world.closes = false;
    world.settle();
    world.check_all_delivered();
}

#[test]
fn a_session_whose_numbers_run_low_is_renewed_before_they_run_out() {
    let mut world = World::new(18, LinkQuality::PERFECT);

    world.drive(33_000, Duration::from_secs(1));

    let stats = world.phone.stats();
    assert_eq!(stats.sessions, 2, "by numbers, for half-life is later: {stats:?}");
    assert!(stats.fixes_waiting < 40, "{stats:?}");
    world.settle();
    world.check_all_delivered();
}

#[test]
fn a_session_that_no_edge_knows_any_more_is_replaced_within_minutes() {
    for udp_dead in [false, true] {
        let mut world = World::new(19, LinkQuality::GOOD);
        world.udp.dead = udp_dead;
        world.drive(20, Duration::from_secs(4));
        let before = world.phone.stats();

        world.lose_fleet_key();
        world.drive(75, Duration::from_secs(4));

        let after = world.phone.stats();
        assert_eq!(after.sessions, before.sessions + 1, "{after:?}");
        assert!(after.fixes_waiting <= 8, "{after:?}");
        world.settle();
        world.check_all_delivered();
    }
}

#[test]
fn a_phone_that_asks_seldom_finds_out_too_that_its_session_is_gone() {
    let mut world = World::new(20, LinkQuality::GOOD);
    world.drive(5, Duration::from_secs(4));

    world.lose_fleet_key();
    world.run_for(Duration::from_secs(600));

    assert_eq!(world.phone.stats().sessions, 2, "{:?}", world.phone.stats());
}

#[test]
fn with_all_edges_dead_for_hours_sessions_are_started_ever_more_seldom() {
    let mut world = World::new(21, LinkQuality::GOOD);
    world.drive(20, Duration::from_secs(4));
    world.edges_down = [true; 2];

    world.drive(900, Duration::from_secs(4));
    let first_hour = world.sessions_asked;
    world.drive(5400, Duration::from_secs(4));

    assert!((4..=9).contains(&first_hour), "{first_hour}");
    let later = world.sessions_asked - first_hour;
    assert!((5..=16).contains(&later), "{later} in six hours");
    world.edges_down = [false; 2];
    world.settle();
    world.check_all_delivered();
}

#[test]
fn when_an_edge_dies_the_phone_takes_the_next_with_the_same_session() {
    let mut world = World::new(8, LinkQuality::GOOD);
    world.drive(20, Duration::from_secs(4));
    let sessions = world.phone.stats().sessions;

    world.edges_down[0] = true;
    world.drive(40, Duration::from_secs(4));

    assert_eq!(world.phone.stats().sessions, sessions);
    assert!(world.opened_by[1] >= 20, "{:?}", world.opened_by);
    world.settle();
    world.check_all_delivered();
}

#[test]
fn a_queue_of_an_hour_without_a_network_is_flushed_in_seconds_after_live_fixes() {
    let mut world = World::new(9, LinkQuality::GOOD);
    world.drive(5, Duration::from_secs(4));
    world.udp.dead = true;
    world.https_dead = true;
    world.drive(3600, Duration::from_secs(1));
    assert!(world.phone.stats().fixes_waiting >= 3500);

    world.udp.dead = false;
    world.https_dead = false;
    let back = world.now;
    world.settle();

    assert!(world.now.since(back) < Duration::from_secs(120), "took {:?}", world.now.since(back));
    world.check_all_delivered();
}

#[test]
fn with_the_log_away_nothing_is_acknowledged_and_nothing_is_lost() {
    let mut world = World::new(10, LinkQuality::GOOD);
    world.drive(5, Duration::from_secs(4));
    let acked = world.phone.stats().fixes_acked;

    world.log_away = true;
    world.drive(50, Duration::from_secs(4));

    let away = world.phone.stats();
    assert!(away.fixes_acked <= acked + 5);
    assert_eq!(away.datagrams_https, 0, "control stops the clock, so the way stays");
    assert!(away.controls >= 5);
    world.log_away = false;
    world.settle();
    world.check_all_delivered();
}

#[test]
fn one_datagram_in_eight_asks_and_a_quiet_phone_pings_every_10_s() {
    let mut world = World::new(11, LinkQuality::PERFECT);
    world.drive(160, Duration::from_secs(4));
    let driven = world.phone.stats();
    assert!((18..=26).contains(&driven.acks), "{driven:?}");
    assert_eq!(driven.fixes_sealed_again, 0, "{driven:?}");

    world.run_for(Duration::from_secs(100));

    let quiet = world.phone.stats();
    assert!((9..=11).contains(&(quiet.pings - driven.pings)), "{quiet:?}");
    assert_eq!(quiet.fixes_waiting, 0, "an answered ping settles what was sent without asking");
}

#[test]
fn what_an_unanswered_datagram_carried_goes_out_again_after_3_s() {
    let mut world = World::new(15, LinkQuality::PERFECT);
    world.run_for(Duration::from_secs(1));
    world.change_network();
    world.udp.dead = true;
    world.drive(1, Duration::from_secs(1));
    world.run_for(Duration::from_millis(100));

    world.udp.dead = false;
    world.run_for(Duration::from_millis(2800));
    assert_eq!(world.phone.stats().fixes_waiting, 1);
    world.run_for(Duration::from_millis(400));

    assert_eq!(world.phone.stats().fixes_waiting, 0, "{:?}", world.phone.stats());
    world.check_all_delivered();
}

#[test]
fn a_session_is_renewed_at_half_life_and_the_old_one_still_answers() {
    let mut world = World::new(12, LinkQuality::GOOD);

    world.drive(30, Duration::from_secs(1800));

    assert!((2..=4).contains(&world.phone.stats().sessions), "{:?}", world.phone.stats());
    world.settle();
    world.check_all_delivered();
}

#[test]
fn another_network_means_another_id_and_a_question_at_once() {
    let mut world = World::new(13, LinkQuality::PERFECT);
    world.drive(10, Duration::from_secs(4));
    let sid_before = world.last_sid.clone();
    let acks_before = world.phone.stats().acks;

    world.change_network();
    world.drive(1, Duration::from_secs(4));
    world.run_for(Duration::from_secs(1));

    assert_ne!(world.last_sid, sid_before);
    assert_eq!(world.phone.stats().acks, acks_before + 1);
}

#[test]
fn a_phone_refused_a_session_asks_again_but_seldom() {
    let mut world = World::new(14, LinkQuality::PERFECT);
    world.registry_refuses = true;

    world.drive(900, Duration::from_secs(4));

    assert!((2..=30).contains(&world.sessions_asked), "{}", world.sessions_asked);
    world.registry_refuses = false;
    world.settle();
    world.check_all_delivered();
}
