//! From an engine's line to a way that keeps the contract: whatever it sent, what comes out rises.

use protocol::Position;
use protocol::record::PlannedPoint;

use super::{END_OFF_M_MAX, RouteServiceError, WAY_POINTS_MAX};

/// A line with how far and how long it is from each point to the next, and in all.
pub(super) struct Line {
    pub points: Vec<Position>,
    pub hops_m: Vec<f64>,
    pub hops_s: Vec<f64>,
    pub length_m: f64,
    pub seconds: f64,
}

impl Line {
    /// Hops are scaled to the totals: engines add to them what turns cost, and round.
    pub fn to_way(&self, from: Position, to: Position) -> Result<Vec<PlannedPoint>, RouteServiceError> {
        let hops = self.points.len().saturating_sub(1);
        let ends = self.points.first().zip(self.points.last());
        let Some((first, last)) = ends.filter(|_| hops >= 1) else {
            return Err(malformed("a line of fewer than two points"));
        };
        if self.points.len() > WAY_POINTS_MAX {
            return Err(malformed(&format!("{} points", self.points.len())));
        }
        if self.hops_m.len() != hops || self.hops_s.len() != hops {
            return Err(malformed("the line and what is said along it differ in length"));
        }
        let off_m = metres(*first, from).max(metres(*last, to));
        if off_m > END_OFF_M_MAX {
            return Err(RouteServiceError::NoWay { reason: format!("the nearest road is {off_m:.0} m away") });
        }
        let is_sound = |value: &f64| value.is_finite() && *value >= 0.0;
        let all = self.hops_m.iter().chain(&self.hops_s).chain([&self.length_m, &self.seconds]);
        if !all.into_iter().all(is_sound) || self.length_m > LENGTH_M_MAX || self.seconds > SECONDS_MAX {
            return Err(malformed("a length or a time that cannot be"));
        }
        if self.length_m > STANDING_M && self.length_m > self.seconds * SPEED_M_S_MAX {
            return Err(malformed(&format!("{:.0} m in {:.1} s", self.length_m, self.seconds)));
        }
        let along_cm = along(&self.hops_m, self.length_m * 100.0);
        let along_ms = along(&self.hops_s, self.seconds * 1_000.0);
        let points = self.points.iter().zip(along_cm.into_iter().zip(along_ms));
        Ok(points
            .map(|(position, (cm, ms))| PlannedPoint { position: *position, along_cm: cm, along_ms: ms })
            .collect())
    }
}

/// Sums from 0 to the total, never falling; evenly where the parts say nothing.
fn along(parts: &[f64], total: f64) -> Vec<u32> {
    let sum: f64 = parts.iter().sum();
    let mut before = 0.0;
    let mut sums = vec![0];
    for (i, part) in parts.iter().enumerate() {
        before += part;
        let share = if sum > 0.0 { before / sum } else { (i + 1) as f64 / parts.len() as f64 };
        sums.push((total * share.min(1.0)).round() as u32);
    }
    sums
}

/// Points of a polyline of six digits.
pub(super) fn decode(text: &str) -> Result<Vec<Position>, RouteServiceError> {
    // The decoder adds what numbers say before it looks whether that is on Earth, and six digits of that need six
    // characters each: longer ones would overflow it.
    let mut run = 0;
    for byte in text.bytes() {
        run = if byte >= 63 + 32 { run + 1 } else { 0 };
        if run > NUMBER_CHARS_MAX {
            return Err(malformed("a number in the line that is none"));
        }
    }
    if text.len() > WAY_POINTS_MAX * 2 * NUMBER_CHARS_MAX {
        return Err(malformed("a line that is too long"));
    }
    let line = polyline::decode_polyline(text, 6).map_err(|error| malformed(&error.to_string()))?;
    let points = line.into_iter().map(|at| Position::from_degrees(at.y, at.x).ok_or_else(|| malformed("off Earth")));
    points.collect()
}

/// As the crow flies; near enough for what a region holds.
pub(super) fn metres(a: Position, b: Position) -> f64 {
    let (north, mut east) = (b.lat() - a.lat(), b.lon() - a.lon());
    if east.abs() > 180.0 {
        east = 360.0 - east.abs();
    }
    let narrow = ((a.lat() + b.lat()) / 2.0).to_radians().cos();
    DEGREE_M * north.hypot(east * narrow)
}

pub(super) fn malformed(reason: &str) -> RouteServiceError {
    RouteServiceError::Malformed { reason: super::http::said(reason) }
}

const DEGREE_M: f64 = 111_195.0;
/// Half round the Earth, and a week.
const LENGTH_M_MAX: f64 = 20_000_000.0;
const SECONDS_MAX: f64 = 604_800.0;
/// Nothing on a road is faster.
const SPEED_M_S_MAX: f64 = 100.0;
const STANDING_M: f64 = 100.0;
const NUMBER_CHARS_MAX: usize = 7;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_of_bytes_is_more_than_an_error() {
        let mut state = 9u64;
        for _ in 0..20_000 {
            let mut text = String::new();
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            for shift in 0..(state >> 58) {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(shift);
                text.push(char::from((state >> 57) as u8));
            }
            let _ = decode(&text);
        }
        for text in ["~~~~~~~~~~~~~~~~~~~~~~~~", "_", "????????~~~~~~~~~~~~~?", "é€", "\u{0}"] {
            let _ = decode(text);
        }
        assert_eq!(decode("").ok(), Some(Vec::new()));
        assert!(decode("_p~iF~ps|U_ulLnnqC_mqNvxq`@").is_ok());
    }

    #[test]
    fn what_comes_out_rises_from_zero_to_the_totals() {
        let at = |metres: f64| Position::from_degrees(metres / DEGREE_M, 7.0).unwrap();
        let points: Vec<Position> = [0.0, 10.0, 10.0, 500.0].map(at).to_vec();
        let line = Line {
            points,
            hops_m: vec![10.0, 0.0, 480.0],
            hops_s: vec![0.0, 0.0, 0.0],
            length_m: 490.4,
            seconds: 60.0,
        };

        let way = line.to_way(at(0.0), at(510.0)).unwrap();

        let along: Vec<(u32, u32)> = way.iter().map(|point| (point.along_cm, point.along_ms)).collect();
        assert_eq!(along, [(0, 0), (1_001, 20_000), (1_001, 40_000), (49_040, 60_000)]);
        assert!(matches!(line.to_way(at(0.0), at(1_600.0)), Err(RouteServiceError::NoWay { .. })));
        for broken in [
            Line { hops_m: vec![1.0], points: line.points.clone(), hops_s: line.hops_s.clone(), ..line },
            Line { hops_m: vec![f64::NAN, 0.0, 0.0], points: line.points.clone(), hops_s: line.hops_s.clone(), ..line },
            Line {
                seconds: -1.0,
                points: line.points.clone(),
                hops_m: line.hops_m.clone(),
                hops_s: vec![0.0; 3],
                ..line
            },
            Line {
                seconds: 1.0,
                points: line.points.clone(),
                hops_m: line.hops_m.clone(),
                hops_s: vec![0.0; 3],
                ..line
            },
            Line { points: vec![at(0.0)], hops_m: Vec::new(), hops_s: Vec::new(), ..line },
        ] {
            let answer = broken.to_way(at(0.0), at(510.0));
            assert!(matches!(answer, Err(RouteServiceError::Malformed { .. })), "{answer:?}");
        }
    }
}
