//! Trips whose route is known: how much of it a matched route missed or added, and where the driver was at each fix.

use maps::geo;
use maps::traces::Trace;
use protocol::{Fix, Position};

/// In samples of 5 m.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Compared {
    pub total: usize,
    pub missed: usize,
    pub added: usize,
}

/// Compares a route with the true one as the scorer does: samples every 5 m, the longest common subsequence of those
/// within 8 m and 57 degrees of heading.
pub fn compare(truth: &[Vec<Position>], route: &[Vec<Position>]) -> Compared {
    let Some(origin) = truth.first().and_then(|part| part.first()).copied() else {
        return Compared { total: 0, missed: 0, added: 0 };
    };
    let (truth, route) = (samples(truth, origin), samples(route, origin));
    let common = common(&truth, &route);
    Compared { total: truth.len(), missed: truth.len() - common, added: route.len() - common }
}

#[derive(Clone, Copy)]
struct Sample {
    east_m: f64,
    north_m: f64,
    heading_rad: f64,
}

fn samples(parts: &[Vec<Position>], origin: Position) -> Vec<Sample> {
    let plane = geo::Plane::at(origin);
    let mut out = Vec::new();
    for part in parts {
        let mut at_m = STEP_M / 2.0;
        for pair in part.windows(2) {
            let (a, b) = (plane.to_cm(pair[0]), plane.to_cm(pair[1]));
            let (east_m, north_m) = ((b.0 - a.0) / 100.0, (b.1 - a.1) / 100.0);
            let length_m = east_m.hypot(north_m);
            while length_m > 0.0 && at_m < length_m {
                let share = at_m / length_m;
                out.push(Sample {
                    east_m: a.0 / 100.0 + share * east_m,
                    north_m: a.1 / 100.0 + share * north_m,
                    heading_rad: north_m.atan2(east_m),
                });
                at_m += STEP_M;
            }
            at_m -= length_m;
        }
    }
    out
}

fn common(a: &[Sample], b: &[Sample]) -> usize {
    let mut best = vec![0_usize; b.len() + 1];
    for one in a {
        let mut diagonal = 0;
        for (j, other) in b.iter().enumerate() {
            let above = best[j + 1];
            let here = if is_same(one, other) { diagonal + 1 } else { 0 };
            best[j + 1] = above.max(best[j]).max(here);
            diagonal = above;
        }
    }
    best[b.len()]
}

fn is_same(a: &Sample, b: &Sample) -> bool {
    let turn_rad = (a.heading_rad - b.heading_rad).abs();
    let apart_m2 = (a.east_m - b.east_m).powi(2) + (a.north_m - b.north_m).powi(2);
    apart_m2 <= NEAR_M * NEAR_M && turn_rad.min(std::f64::consts::TAU - turn_rad) <= HEADING_RAD
}

/// Where the driver truly was at each fix of 1 Hz: the data has the route but not the places. At 5 m of noise the nearest
/// places of the route, smoothed over some seconds, are true to a few metres along and exact across. Empty where the
/// fixes are further apart: nobody can tell then.
pub fn places(trace: &Trace) -> Vec<Position> {
    let dense = every_metre(trace);
    let is_apart = |pair: &[Fix]| pair[1].measured.seconds_since(pair[0].measured) > APART_S_MAX;
    let gaps = trace.fixes.windows(2).filter(|pair| is_apart(pair)).count();
    if dense.is_empty() || gaps > trace.fixes.len() / 10 {
        return Vec::new();
    }
    let mut at = 0_usize;
    let nearest: Vec<usize> = trace
        .fixes
        .iter()
        .map(|fix| {
            let window = at.saturating_sub(BEHIND_M)..(at + AHEAD_M).min(dense.len());
            let off = |i: &usize| geo::distance_cm(dense[*i], fix.position) + 5.0 * i.abs_diff(at) as f64;
            at = window.min_by(|a, b| off(a).total_cmp(&off(b))).unwrap_or(at);
            at
        })
        .collect();
    (0..nearest.len())
        .map(|i| {
            let reach = SMOOTH_FIXES.min(i).min(nearest.len() - 1 - i);
            let around = &nearest[i - reach..=i + reach];
            dense[around.iter().sum::<usize>() / around.len()]
        })
        .collect()
}

fn every_metre(trace: &Trace) -> Vec<Position> {
    let line: Vec<Position> = trace.truth.iter().flatten().copied().collect();
    let mut dense = Vec::new();
    for pair in line.windows(2) {
        let steps = (geo::distance_cm(pair[0], pair[1]) / 100.0).ceil().max(1.0) as usize;
        for step in 0..steps {
            let share = step as f64 / steps as f64;
            let mix = |a: i32, b: i32| (f64::from(a) + (f64::from(b) - f64::from(a)) * share).round() as i32;
            dense.push(Position {
                lat_e7: mix(pair[0].lat_e7, pair[1].lat_e7),
                lon_e7: mix(pair[0].lon_e7, pair[1].lon_e7),
            });
        }
    }
    dense.extend(line.last());
    dense
}

// The scorer's.
const STEP_M: f64 = 5.0;
const NEAR_M: f64 = 8.0;
const HEADING_RAD: f64 = 1.0;

const AHEAD_M: usize = 200; // 40 m/s for 5 s
const APART_S_MAX: f64 = 5.0;
const BEHIND_M: usize = 30;
const SMOOTH_FIXES: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    fn street(from_m: i32, to_m: i32, north_m: i32) -> Vec<Position> {
        // On the equator a metre is 90 e7 either way.
        [from_m, to_m].map(|east_m| Position { lat_e7: north_m * 90, lon_e7: east_m * 90 }).to_vec()
    }

    #[test]
    fn a_detour_counts_as_missed_and_as_added() {
        let truth = [street(0, 1_000, 0)];
        let detour = [street(0, 500, 0), street(500, 1_000, 100)];

        let same = compare(&truth, &truth);
        let other = compare(&truth, &detour);

        assert!(same.total.abs_diff(200) <= 1, "{same:?}");
        assert_eq!((same.missed, same.added), (0, 0));
        assert!(other.missed.abs_diff(100) <= 2 && other.added.abs_diff(100) <= 2, "{other:?}");
    }

    #[test]
    fn driving_a_street_the_wrong_way_counts() {
        let truth = [street(0, 1_000, 0)];
        let backward = [street(1_000, 0, 0)];

        let compared = compare(&truth, &backward);

        assert_eq!(compared.missed, compared.total);
    }
}
