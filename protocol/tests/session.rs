//! Both ends together: what one seals the other opens, and nothing else gets in.

mod common;

use std::time::Duration;

use common::{END_TO_END_SUITES, Pair, fix_at, now};
use protocol::datagram::answer::{AnswerSays, Control};
use protocol::datagram::ranges::{NumberRanges, NumberRun};
use protocol::datagram::{ANSWER_LEN_MAX, DATAGRAM_LEN_MAX, DatagramKind};
use protocol::session::{AnswerFault, RefuseReason, SealFault};
use protocol::{FixNumber, Time};

#[test]
fn every_bit_flip_and_every_cut_is_refused() {
    for suite in END_TO_END_SUITES {
        let mut pair = Pair::new(suite);
        let datagram = pair.seal(DatagramKind::FixesAckWanted, 1, now());
        for bit in 0..datagram.len() * 8 {
            let mut bytes = datagram.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(pair.open(&bytes, now()).is_err(), "{suite:?}: bit {bit}");
            assert!(pair.out.answer_to.is_none() && pair.out.fixes.is_empty());
        }
        for len in 0..datagram.len() {
            assert!(pair.open(&datagram[..len], now()).is_err(), "{suite:?}: cut to {len}");
        }
        let mut longer = datagram.clone();
        longer.push(0);
        assert_eq!(pair.open(&longer, now()), Err(RefuseReason::Forged));

        assert!(pair.open(&datagram, now()).is_ok(), "the forgeries ended nothing");
    }
}

#[test]
fn every_alias_opens_to_the_same_session() {
    let mut pair = Pair::new(END_TO_END_SUITES[0]);
    let mut sids = std::collections::BTreeSet::new();
    for _ in 0..64 {
        let datagram = pair.seal(DatagramKind::Fixes, 1, now());
        sids.insert(datagram[1..17].to_vec());
        let opened = pair.open(&datagram, now()).expect("accepted");
        assert_eq!(opened.device, common::device());
        pair.phone.change_alias(now());
    }

    assert_eq!(sids.len(), 64);
    assert_eq!(pair.edge.warm().len(), 1);
    assert!(!pair.phone.change_alias(now()));
}

#[test]
fn a_datagram_is_taken_once() {
    let mut pair = Pair::new(END_TO_END_SUITES[1]);
    let datagram = pair.seal(DatagramKind::FixesAckWanted, 1, now());

    assert!(pair.open(&datagram, now()).is_ok());

    assert_eq!(pair.open(&datagram, now()), Err(RefuseReason::Replayed));
    assert!(pair.out.answer_to.is_none(), "a replay gets no answer");
}

#[test]
fn a_datagram_is_refused_when_it_is_too_old_or_too_new() {
    let mut pair = Pair::new(END_TO_END_SUITES[1]);
    let datagram = pair.seal(DatagramKind::Fixes, 1, now());

    assert_eq!(pair.open(&datagram, now() + Duration::from_secs(129)), Err(RefuseReason::Stale));
    assert_eq!(pair.open(&datagram, now() - Duration::from_secs(129)), Err(RefuseReason::Stale));
    assert_eq!(pair.open(&datagram, now() + Duration::from_secs(86_400)), Err(RefuseReason::Expired));
    assert!(pair.open(&datagram, now() + Duration::from_secs(127)).is_ok());
}

#[test]
fn a_session_goes_on_by_the_time_in_which_it_began_when_the_clock_is_set() {
    for step_s in [2, 7_200, 172_800, 630_720_000, -2, -7_200, -172_800, -630_720_000] {
        let by_ms = step_s * 1_000;
        let mut pair = Pair::new(END_TO_END_SUITES[1]);
        let before = pair.seal(DatagramKind::Fixes, 1, now());
        assert!(pair.open(&before, now()).is_ok());
        let (real, set) = (now() + Duration::from_secs(10), Time(now().0 + 10_000 + by_ms));

        pair.edge.handle_step(by_ms);
        pair.edge.set_unset([real], set);

        let datagram = pair.seal(DatagramKind::Fixes, 2, real);
        assert!(pair.open(&datagram, set).is_ok(), "{step_s} s");
        assert_eq!(pair.open(&before, set), Err(RefuseReason::Replayed), "{step_s} s");
        pair.edge.handle_timeout(set);
        assert_eq!(pair.edge.warm().len(), 1, "{step_s} s: it is not swept away");
        let last = pair.seal(DatagramKind::Fixes, 3, real);
        let over = Duration::from_secs(86_400);
        pair.edge.set_unset([real + over], set + over);
        assert!(pair.open(&last, set + over).is_err(), "{step_s} s: it ends all the same");
    }
}

#[test]
fn a_revoked_device_is_refused_and_stays_so() {
    let mut pair = Pair::new(END_TO_END_SUITES[1]);
    pair.edge.revoke(common::device(), now());
    let datagram = pair.seal(DatagramKind::Fixes, 1, now());

    assert_eq!(pair.open(&datagram, now()), Err(RefuseReason::Revoked));
    pair.edge.handle_timeout(now() + Duration::from_secs(24 * 3600));
    assert_eq!(pair.open(&datagram, now()), Err(RefuseReason::Revoked));
}

#[test]
fn first_bytes_lengths_and_keys_that_are_not_ours_are_told_apart() {
    let mut pair = Pair::new(END_TO_END_SUITES[0]);
    let datagram = pair.seal(DatagramKind::Fixes, 1, now());
    let with_first = |byte: u8| [&[byte], &datagram[1..]].concat();

    assert_eq!(pair.open(&datagram[..39], now()), Err(RefuseReason::TooShort));
    assert_eq!(pair.open(&[0x20; DATAGRAM_LEN_MAX + 1], now()), Err(RefuseReason::TooLong));
    assert_eq!(pair.open(&with_first(0x40), now()), Err(RefuseReason::FirstByte));
    assert_eq!(pair.open(&with_first(datagram[0] | 2), now()), Err(RefuseReason::FirstByte));
    assert_eq!(pair.open(&with_first(datagram[0] ^ 0x08), now()), Err(RefuseReason::UnknownKid));
    let mut other_sid = datagram.clone();
    other_sid[5] ^= 1;
    assert_eq!(pair.open(&other_sid, now()), Err(RefuseReason::NoSession));
}

#[test]
fn a_bucket_holds_twenty_thousand_fixes_and_then_the_answer_is_control() {
    let mut pair = Pair::new(END_TO_END_SUITES[1]);
    let mut number = 1;
    let mut accepted = 0;
    let refused = loop {
        let datagram = pair.seal_many(DatagramKind::FixesAckWanted, number, 500, now());
        match pair.open(&datagram, now()) {
            Ok(_) => accepted += pair.out.fixes.len(),
            Err(reason) => break reason,
        }
        number += 500;
    };

    assert_eq!(refused, RefuseReason::RateLimited);
    assert!((19_000..=20_000).contains(&accepted), "{accepted}");
    let to = pair.out.answer_to.expect("asked for an answer");
    let sealed = pair.edge.seal_control(&to, Control { send_every_ms: 5000, ..Control::default() }).unwrap();
    let (_, answer) = pair.phone.open_answer(&sealed).expect("ours");
    assert!(matches!(answer.says, AnswerSays::Control(control) if control.send_every_ms == 5000));
}

#[test]
fn a_new_session_does_not_fill_the_devices_bucket() {
    let mut pair = Pair::new(END_TO_END_SUITES[1]);
    let mut number = 1;
    loop {
        let datagram = pair.seal_many(DatagramKind::Fixes, number, 500, now());
        if pair.open(&datagram, now()).is_err() {
            break;
        }
        number += 500;
    }

    pair.renew(common::START_S + 1, now());
    let datagram = pair.seal_many(DatagramKind::Fixes, number, 1100, now());

    assert_eq!(pair.open(&datagram, now()), Err(RefuseReason::RateLimited));
}

#[test]
fn an_ack_names_what_became_durable_since_the_last_one() {
    let mut pair = Pair::new(END_TO_END_SUITES[0]);
    for number in [10, 11, 13] {
        let datagram = pair.seal(DatagramKind::Fixes, number, now());
        let opened = pair.open(&datagram, now()).unwrap();
        let ranges = pair.out.ranges();
        if number != 11 {
            pair.edge.handle_durable(&opened.session, &ranges);
        }
    }
    let datagram = pair.seal(DatagramKind::FixesAckWanted, 14, now());
    pair.open(&datagram, now()).unwrap();
    let (to, ranges) = (pair.out.answer_to.unwrap(), pair.out.ranges());

    let sealed = pair.edge.seal_ack(&to, &ranges).unwrap();

    assert!(sealed.len() <= ANSWER_LEN_MAX && sealed.len() < datagram.len());
    let (_, answer) = pair.phone.open_answer(&sealed).expect("ours");
    let mut named = NumberRanges::default();
    named.insert(NumberRun { first: 10, len: 1 });
    named.insert(NumberRun { first: 13, len: 2 });
    assert_eq!(answer.says, AnswerSays::Ack(named));
    assert!(!named.contains(FixNumber(11)), "what is not durable is never named");
}

#[test]
fn an_answer_is_believed_once_and_only_if_untouched() {
    for suite in END_TO_END_SUITES {
        let mut pair = Pair::new(suite);
        let datagram = pair.seal(DatagramKind::FixesAckWanted, 7, now());
        pair.open(&datagram, now()).unwrap();
        let to = pair.out.answer_to.unwrap();
        let ranges = pair.out.ranges();
        let sealed = pair.edge.seal_ack(&to, &ranges).unwrap().to_vec();

        for bit in 0..sealed.len() * 8 {
            let mut bytes = sealed.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(pair.phone.open_answer(&bytes), Err(AnswerFault::NotOurs), "{suite:?}: bit {bit}");
        }
        for len in 0..sealed.len() {
            assert_eq!(pair.phone.open_answer(&sealed[..len]), Err(AnswerFault::NotOurs));
        }
        assert!(pair.phone.open_answer(&sealed).is_ok());
        assert_eq!(pair.phone.open_answer(&sealed), Err(AnswerFault::NotAsked));
    }
}

#[test]
fn answers_to_all_but_the_newest_64_questions_are_ignored() {
    let mut pair = Pair::new(END_TO_END_SUITES[1]);
    let datagram = pair.seal(DatagramKind::FixesAckWanted, 1, now());
    pair.open(&datagram, now()).unwrap();
    let to = pair.out.answer_to.unwrap();
    for number in 2..=65 {
        pair.seal(DatagramKind::FixesAckWanted, number, now());
    }

    let sealed = pair.edge.seal_ack(&to, &NumberRanges::default()).unwrap();

    assert_eq!(pair.phone.open_answer(&sealed), Err(AnswerFault::NotAsked));
}

#[test]
fn a_counter_is_never_used_twice_and_runs_ahead_by_64_s_at_most() {
    let mut pair = Pair::new(END_TO_END_SUITES[1]);
    let mut out = Vec::new();
    let mut counters = Vec::new();
    let until = loop {
        match pair.phone.seal(DatagramKind::Fixes, &[0, 1, 0, 0, 0], now(), &mut out) {
            Ok(sealed) => counters.push(sealed.counter),
            Err(SealFault::TooSoon(until)) => break until,
            Err(fault) => panic!("{fault}"),
        }
    };

    assert!(counters.is_sorted_by(|a, b| a < b));
    assert_eq!(counters.len(), 64 * 16 + 1);
    assert!(until > now() && until <= now() + Duration::from_millis(100));
    assert!(pair.phone.seal(DatagramKind::Fixes, &[0, 1, 0, 0, 0], until, &mut out).is_ok());
}

#[test]
fn a_phone_whose_clock_is_wrong_by_years_is_understood() {
    let mut pair = Pair::new(END_TO_END_SUITES[1]);
    let phones_clock = Time(1_000);
    pair.phone = pair.session(common::START_S, phones_clock);

    let datagram = pair.seal(DatagramKind::Fixes, 1, phones_clock + Duration::from_secs(60));

    assert!(pair.open(&datagram, now() + Duration::from_secs(60)).is_ok());
    assert_eq!(pair.out.fixes[0], (FixNumber(1), fix_at(1)));
}

#[test]
fn a_session_ends_for_both_at_the_end_of_its_lifetime() {
    let mut pair = Pair::new(END_TO_END_SUITES[1]);
    let end = pair.phone.end();
    let mut out = Vec::new();

    assert_eq!(end, now() - Duration::from_secs(10) + Duration::from_secs(86_400));
    assert_eq!(pair.phone.seal(DatagramKind::Fixes, &[0], end, &mut out), Err(SealFault::Over));
    let last = end - Duration::from_millis(1);
    let datagram = pair.seal(DatagramKind::Fixes, 1, last);
    assert!(pair.open(&datagram, last).is_ok());
}
