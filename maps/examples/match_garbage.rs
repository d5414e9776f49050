//! Ten million fixes of garbage through the matcher: jumps, zeros, extremes, times that run back, and sensible ones in
//! between. Ends with the largest state that was seen; a panic is the failure.
//!
//! `match_garbage MAP.wfm [FIXES]`

use maps::matcher::{Matcher, Observation, Scratch};
use maps::{Graph, Profile};
use protocol::{MeasuredTime, Position};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

fn main() {
    let mut args = std::env::args().skip(1);
    let graph = Graph::open(args.next().expect("usage: match_garbage MAP.wfm [FIXES]")).expect("the map opens");
    let fixes: u64 = args.next().map_or(10_000_000, |n| n.parse().expect("a number of fixes"));
    let centre = graph.bbox().centre();
    let mut rng = SmallRng::seed_from_u64(1);
    let mut scratch = Scratch::new();
    let mut matcher = Matcher::new(Profile::Car);
    let (mut largest, mut taken, mut out) = (0, 0u64, 0u64);
    let mut place = centre;
    for tag in 0..fixes {
        let mut near = |from: Position, span: i32| Position {
            lat_e7: from.lat_e7.saturating_add(rng.random_range(-span..=span)),
            lon_e7: from.lon_e7.saturating_add(rng.random_range(-span..=span)),
        };
        let drifted = near(place, 4_000);
        let jumped = near(centre, 300_000);
        place = if tag % 50 == 0 { jumped } else { drifted };
        let position = match rng.random_range(0..40) {
            0 => Position { lat_e7: rng.random(), lon_e7: rng.random() },
            1 => Position::default(),
            2 => Position { lat_e7: i32::MIN, lon_e7: i32::MAX },
            3 => Position { lat_e7: 900_000_000, lon_e7: -1_800_000_000 },
            4 => jumped,
            _ => place,
        };
        let measured = match rng.random_range(0..2_000) {
            0 => MeasuredTime(i64::MIN),
            1 => MeasuredTime(rng.random_range(0..i64::from(u32::MAX))),
            _ => MeasuredTime((tag % 1_000) as i64 * 40 + rng.random_range(-60..60)),
        };
        let fix = Observation {
            tag,
            measured,
            position,
            accuracy_m: rng.random_bool(0.5).then(|| rng.random()),
            heading_255: rng.random_bool(0.5).then(|| rng.random()),
            speed_dm_s: rng.random_bool(0.5).then(|| rng.random()),
        };
        let held = matcher.held_len();
        matcher.handle_fix(&graph, &mut scratch, &fix);
        taken += (matcher.held_len() - held) as u64;
        while matcher.poll_matched(&graph, &mut scratch).is_some() {
            out += 1;
        }
        if tag % 1_000 == 999 {
            // Time begins anew, as with another driver.
            matcher.flush();
            while matcher.poll_matched(&graph, &mut scratch).is_some() {
                out += 1;
            }
            matcher = Matcher::new(Profile::ALL[(tag / 1_000 % 4) as usize]);
        }
        if tag % 63 == 0 {
            largest = largest.max(wincode::serialized_size(&matcher).expect("the state has a size"));
        }
    }
    println!("{fixes} fixes, {taken} taken, {out} given out, state at most {largest} B");
}
