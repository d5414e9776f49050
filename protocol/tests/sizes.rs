//! The sizes the design promises, measured on real roads: 150 simulated drives with known truth, at a fix every 4 s.
//! They lie beside the repository; without them this is skipped, aloud.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure here fails the test")]

#[path = "../../tests/shared_data.rs"]
mod shared_data;

use protocol::datagram::payload::encode_fixes;
use protocol::datagram::{HEADER_LEN, PAYLOAD_LEN_MAX, TAG_LEN};
use protocol::fix::heading_255;
use protocol::{Fix, FixNumber, MeasuredTime, Position};
use serde_json::Value;

use shared_data::shared;

const START_S: u32 = 1_790_000_000;

#[test]
fn datagrams_are_as_small_as_promised() {
    let Some(path) = shared("traces/porto_truth.jsonl") else { return };
    let text = std::fs::read_to_string(path).unwrap();
    let trips: Vec<Vec<(FixNumber, Fix)>> = text.lines().map(trip).collect();
    assert_eq!(trips.len(), 150);

    let mut single = Vec::new();
    let mut fifteen = Vec::new();
    let mut full = Vec::new();
    for trip in &trips {
        single.extend(trip.iter().map(|fix| payload_len(std::slice::from_ref(fix))));
        fifteen.extend(trip.chunks_exact(15).map(payload_len));
    }
    // No trip fills a datagram, so they are driven one after another.
    let mut clock = 0;
    let mut rest: Vec<(FixNumber, Fix)> = Vec::new();
    for (_, fix) in trips.iter().flatten() {
        clock += 40;
        let measured = MeasuredTime(i64::from(START_S) * 10 + clock);
        rest.push((FixNumber(32_769 + clock as u64 / 40), Fix { measured, ..*fix }));
    }
    while rest.len() > 400 {
        let mut payload = Vec::new();
        let count = encode_fixes(&mut payload, START_S, None, &rest, PAYLOAD_LEN_MAX).count;
        full.push(count);
        rest.drain(..count);
    }

    let sealed = |len: f64| len + (HEADER_LEN + TAG_LEN) as f64;
    println!("one fix: {:?}, sealed {:?}", span(&single), span(&single).map(sealed));
    println!("fifteen: {:?}", span(&fifteen));
    println!("fixes in a full datagram: {:?}", span(&full));
    let [low, _, high] = span(&single).map(sealed);
    assert!(low >= 54.0 && high <= 56.0, "one fix sealed: {low} to {high}");
    assert!(span(&fifteen)[0] >= 95.0 && span(&fifteen)[2] <= 140.0);
    assert!(span(&full)[0] >= 140.0);
}

/// 5th percentile, median, 95th percentile.
fn span(values: &[usize]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    [5, 50, 95].map(|percent| sorted[(sorted.len() - 1) * percent / 100] as f64)
}

fn payload_len(fixes: &[(FixNumber, Fix)]) -> usize {
    let mut payload = Vec::new();
    let encoded = encode_fixes(&mut payload, START_S, None, fixes, PAYLOAD_LEN_MAX);
    assert_eq!(encoded.count, fixes.len());
    payload.len()
}

/// Every 4th fix, with the speed and heading that a receiver would say.
fn trip(line: &str) -> Vec<(FixNumber, Fix)> {
    let trip: Value = serde_json::from_str(line).unwrap();
    let fixes: Vec<[f64; 3]> = serde_json::from_value(trip["fixes"].clone()).unwrap();
    let sampled: Vec<[f64; 3]> = fixes.into_iter().step_by(4).collect();
    let mut out = Vec::new();
    for (i, at) in sampled.iter().enumerate() {
        let before = sampled[i.saturating_sub(1)];
        let (north_m, east_m) = ((at[2] - before[2]) * 111_195.0, (at[1] - before[1]) * 83_700.0);
        let elapsed_s = (at[0] - before[0]).max(1.0);
        let measured = MeasuredTime(i64::from(START_S) * 10 + ((at[0] - sampled[0][0]) * 10.0) as i64 + 6_000);
        out.push((
            FixNumber(32_769 + i as u64),
            Fix {
                speed_dm_s: Some((north_m.hypot(east_m) / elapsed_s * 10.0) as u16),
                heading_255: Some(heading_255(east_m.atan2(north_m).to_degrees())),
                accuracy_m: Some(5),
                ..Fix::at(measured, Position::from_degrees(at[2], at[1]).unwrap())
            },
        ));
    }
    out
}
