//! Properties of the payload: what goes in comes out, and garbage never does harm.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure here fails the test")]

use proptest::prelude::*;
use protocol::datagram::PAYLOAD_LEN_MAX;
use protocol::datagram::payload::{Ping, as_sent, decode_fixes, encode_fixes};
use protocol::{Fix, FixNumber, MeasuredTime, PhoneState, Position};

const START_S: u32 = 1_790_000_000;

fn any_fix() -> impl Strategy<Value = Fix> {
    let when = prop_oneof![4 => -50i64..1_000_000, 1 => -(1i64 << 50)..1 << 50];
    let place = (any::<i32>(), any::<i32>());
    let fields = (
        any::<Option<u16>>(),
        any::<Option<u8>>(),
        any::<Option<u8>>(),
        any::<Option<i16>>(),
        any::<Option<u8>>(),
        any::<Option<u8>>(),
    );
    (when, place, fields).prop_map(|(tenths, (lat_e7, lon_e7), fields)| Fix {
        measured: MeasuredTime(i64::from(START_S) * 10 + tenths),
        position: Position { lat_e7, lon_e7 },
        speed_dm_s: fields.0,
        heading_255: fields.1,
        accuracy_m: fields.2,
        altitude_m: fields.3,
        battery_percent: fields.4,
        phone_state: fields.5.map(PhoneState),
    })
}

fn numbered(fixes: Vec<(u64, Fix)>) -> Vec<(FixNumber, Fix)> {
    let mut number = 0;
    let step = |(skip, fix): (u64, Fix)| {
        number += skip;
        (FixNumber(number), fix)
    };
    fixes.into_iter().map(step).collect()
}

proptest! {
    #[test]
    fn decoding_gives_back_what_was_encoded_rounded_as_promised(
        fixes in prop::collection::vec((1u64..1 << 40, any_fix()), 1..40),
        lowest in prop::option::of(prop::option::of(1u64..u64::MAX)),
    ) {
        let mut fixes = numbered(fixes);
        // Alike in what has no word for unknown, so that all may share a datagram.
        for at in 1..fixes.len() {
            let (first, fix) = (fixes[0].1, &mut fixes[at].1);
            fix.accuracy_m = first.accuracy_m.and(fix.accuracy_m.or(Some(9)));
            fix.altitude_m = first.altitude_m.and(fix.altitude_m.or(Some(-9)));
            fix.phone_state = first.phone_state.and(fix.phone_state.or(Some(PhoneState(1))));
        }
        let lowest = lowest.map(|lowest| lowest.map(FixNumber));
        let mut payload = Vec::new();

        let encoded = encode_fixes(&mut payload, START_S, lowest, &fixes, PAYLOAD_LEN_MAX);

        prop_assert!(encoded.count >= 1 && payload.len() <= PAYLOAD_LEN_MAX);
        let mut back = Vec::new();
        prop_assert_eq!(decode_fixes(&payload, START_S, lowest.is_some(), &mut back), Ok(lowest.flatten()));
        let wanted: Vec<_> = fixes[..encoded.count].iter().map(|(n, fix)| (*n, as_sent(fix))).collect();
        prop_assert_eq!(back, wanted);
    }

    #[test]
    fn the_encoder_stops_only_where_one_more_would_not_fit(
        fixes in prop::collection::vec((1u64..3, any_fix()), 2..30), room in 60usize..300,
    ) {
        let bare: Vec<_> = numbered(fixes).into_iter().map(|(n, fix)| (n, Fix::at(fix.measured, fix.position))).collect();
        let mut payload = Vec::new();

        let encoded = encode_fixes(&mut payload, START_S, None, &bare, room);

        prop_assert!(payload.len() <= room);
        if encoded.count < bare.len() {
            let mut more = Vec::new();
            encode_fixes(&mut more, START_S, None, &bare[..encoded.count + 1], usize::MAX);
            prop_assert!(more.len() > room);
            prop_assert!(more.starts_with(&payload));
        }
    }

    #[test]
    fn every_cut_of_a_payload_is_refused_or_a_shorter_payload(
        fixes in prop::collection::vec((1u64..4, any_fix()), 1..12),
    ) {
        let fixes: Vec<_> = numbered(fixes).into_iter().map(|(n, fix)| (n, Fix::at(fix.measured, fix.position))).collect();
        let mut payload = Vec::new();
        encode_fixes(&mut payload, START_S, None, &fixes, PAYLOAD_LEN_MAX);
        let mut all = Vec::new();
        decode_fixes(&payload, START_S, false, &mut all).unwrap();

        let mut back = Vec::new();
        for len in 0..payload.len() {
            match decode_fixes(&payload[..len], START_S, false, &mut back) {
                Ok(_) => prop_assert!(back.len() < all.len() && all.starts_with(&back)),
                Err(_) => prop_assert!(back.is_empty()),
            }
        }
    }

    #[test]
    fn garbage_never_panics_and_what_it_means_would_survive_another_trip(
        bytes in prop::collection::vec(any::<u8>(), 0..200), ack_wanted: bool,
    ) {
        let mut fixes = Vec::new();
        let _ = Ping::decode(&bytes);
        if let Ok(lowest) = decode_fixes(&bytes, START_S, ack_wanted, &mut fixes) {
            let mut payload = Vec::new();
            let encoded = encode_fixes(&mut payload, START_S, ack_wanted.then_some(lowest), &fixes, usize::MAX);
            let mut again = Vec::new();
            decode_fixes(&payload, START_S, ack_wanted, &mut again).unwrap();
            prop_assert_eq!(encoded.count, fixes.len());
            prop_assert_eq!(again, fixes);
        }
    }
}
