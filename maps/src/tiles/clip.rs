//! Cuts lines and rings to a tile and its margin, and leaves out points that nobody would see.

use super::project::{MARGIN, Point};

/// The pieces of a line that lie in the tile.
pub fn lines(line: &[Point], zoom: u8) -> Vec<Vec<Point>> {
    let mut pieces: Vec<Vec<Point>> = Vec::new();
    for pair in simplified(line, zoom).windows(2) {
        let Some((a, b)) = cut(pair[0], pair[1]) else {
            continue;
        };
        match pieces.last_mut() {
            Some(piece) if piece.last() == Some(&a) && a == pair[0] => piece.push(b),
            _ => pieces.push(vec![a, b]),
        }
    }
    pieces.retain_mut(|piece| {
        piece.dedup();
        piece.len() >= 2
    });
    pieces
}

/// A point, if the tile itself holds it: with a margin it would be drawn twice.
pub fn point(line: &[Point]) -> Vec<Vec<Point>> {
    let inside = line.first().filter(|p| (0..4096).contains(&p.0) && (0..4096).contains(&p.1));
    inside.map(|p| vec![*p]).into_iter().collect()
}

/// A closed ring cut to the tile, without its last point, which is its first.
pub fn ring(ring: &[Point], zoom: u8) -> Vec<Point> {
    let mut points = simplified(ring, zoom);
    for side in [Side::West, Side::East, Side::North, Side::South] {
        if !points.iter().all(|p| side.holds(*p)) {
            points = cut_ring(&points, side);
        }
    }
    points.dedup();
    while points.len() > 1 && points.first() == points.last() {
        points.pop();
    }
    points
}

/// Twice the area that a ring encloses, positive if it runs clockwise on the screen.
pub fn doubled_area(ring: &[Point]) -> i64 {
    let next = ring.iter().cycle().skip(1);
    ring.iter().zip(next).map(|(a, b)| i64::from(a.0) * i64::from(b.1) - i64::from(b.0) * i64::from(a.1)).sum()
}

#[derive(Clone, Copy)]
enum Side {
    West,
    East,
    North,
    South,
}

impl Side {
    fn holds(self, p: Point) -> bool {
        match self {
            Side::West => p.0 >= LOW,
            Side::East => p.0 <= HIGH,
            Side::North => p.1 >= LOW,
            Side::South => p.1 <= HIGH,
        }
    }

    /// Where a segment that crosses the side does so.
    fn crossing(self, a: Point, b: Point) -> Point {
        match self {
            Side::West => (LOW, across(a.1, b.1, a.0, b.0, LOW)),
            Side::East => (HIGH, across(a.1, b.1, a.0, b.0, HIGH)),
            Side::North => (across(a.0, b.0, a.1, b.1, LOW), LOW),
            Side::South => (across(a.0, b.0, a.1, b.1, HIGH), HIGH),
        }
    }
}

/// The value between `a` and `b` where the other coordinate, from `c` to `d`, is `at`.
fn across(a: i32, b: i32, c: i32, d: i32, at: i32) -> i32 {
    let (a, b, c, d, at) = (i64::from(a), i64::from(b), i64::from(c), i64::from(d), i64::from(at));
    if c == d { a as i32 } else { (a + (b - a) * (at - c) / (d - c)) as i32 }
}

/// Sutherland and Hodgman's algorithm for one side.
fn cut_ring(ring: &[Point], side: Side) -> Vec<Point> {
    let mut kept = Vec::with_capacity(ring.len() + 4);
    let Some(mut before) = ring.last().copied() else {
        return kept;
    };
    for p in ring.iter().copied() {
        match (side.holds(before), side.holds(p)) {
            (true, true) => kept.push(p),
            (true, false) => kept.push(side.crossing(before, p)),
            (false, true) => kept.extend([side.crossing(before, p), p]),
            (false, false) => {}
        }
        before = p;
    }
    kept
}

/// The part of a segment that lies in the tile and its margin.
fn cut(mut a: Point, mut b: Point) -> Option<(Point, Point)> {
    for side in [Side::West, Side::East, Side::North, Side::South] {
        match (side.holds(a), side.holds(b)) {
            (true, true) => {}
            (false, false) => return None,
            (true, false) => b = side.crossing(a, b),
            (false, true) => a = side.crossing(a, b),
        }
    }
    Some((a, b))
}

/// Douglas and Peucker's algorithm, with a stack of its own.
fn simplified(line: &[Point], zoom: u8) -> Vec<Point> {
    let tolerance = if zoom >= 14 { 3.0 } else { 6.0 };
    if line.len() <= 2 {
        return line.to_vec();
    }
    let mut is_kept = vec![false; line.len()];
    let mut stack = Vec::new();
    // A ring ends where it began: it is taken as two lines, to and from its farthest point.
    let last = line.len() - 1;
    is_kept[0] = true;
    is_kept[last] = true;
    if line[0] == line[last] {
        let far = (1..last).max_by_key(|i| (squared(line[0], line[*i]), usize::MAX - i)).unwrap_or(0);
        is_kept[far] = true;
        stack.extend([(0, far), (far, last)]);
    } else {
        stack.push((0, last));
    }
    while let Some((first, last)) = stack.pop() {
        let mut farthest = (tolerance * tolerance, first);
        for i in first + 1..last {
            let off = off_squared(line[first], line[last], line[i]);
            if off > farthest.0 {
                farthest = (off, i);
            }
        }
        if farthest.1 > first {
            is_kept[farthest.1] = true;
            stack.extend([(first, farthest.1), (farthest.1, last)]);
        }
    }
    line.iter().zip(is_kept).filter(|(_, is_kept)| *is_kept).map(|(p, _)| *p).collect()
}

fn squared(a: Point, b: Point) -> i64 {
    let (dx, dy) = (i64::from(a.0) - i64::from(b.0), i64::from(a.1) - i64::from(b.1));
    dx * dx + dy * dy
}

/// Squared distance of a point from a segment.
fn off_squared(a: Point, b: Point, p: Point) -> f64 {
    let (dx, dy) = (f64::from(b.0) - f64::from(a.0), f64::from(b.1) - f64::from(a.1));
    let (px, py) = (f64::from(p.0) - f64::from(a.0), f64::from(p.1) - f64::from(a.1));
    let whole = dx * dx + dy * dy;
    let share = if whole > 0.0 { ((px * dx + py * dy) / whole).clamp(0.0, 1.0) } else { 0.0 };
    let (ox, oy) = (px - share * dx, py - share * dy);
    ox * ox + oy * oy
}

const LOW: i32 = -MARGIN;
const HIGH: i32 = 4096 + MARGIN;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn points(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Point>> {
        prop::collection::vec((-9_000..13_000, -9_000..13_000), count)
    }

    fn is_inside(p: &Point) -> bool {
        (LOW..=HIGH).contains(&p.0) && (LOW..=HIGH).contains(&p.1)
    }

    proptest! {
        #[test]
        fn nothing_is_left_outside(line in points(0..40), zoom in 5_u8..17) {
            prop_assert!(lines(&line, zoom).iter().flatten().all(is_inside));
            prop_assert!(ring(&line, zoom).iter().all(is_inside));
        }

        #[test]
        fn what_lies_inside_stays(line in prop::collection::vec((0..4096, 0..4096), 2..40)) {
            let pieces = lines(&line, 16);

            prop_assert!(pieces.len() <= 1);
            for piece in &pieces {
                prop_assert_eq!(piece.last(), line.last());
                // Each point is within the tolerance of what is drawn.
                for p in &line {
                    let off = piece.windows(2).map(|s| off_squared(s[0], s[1], *p)).fold(f64::INFINITY, f64::min);
                    prop_assert!(off <= 9.0, "{:?} {:?}", p, off);
                }
            }
        }

        #[test]
        fn a_crossing_line_reaches_both_edges(y in 0..4096) {
            let pieces = lines(&[(-50_000, y), (50_000, y)], 16);

            prop_assert_eq!(pieces, vec![vec![(LOW, y), (HIGH, y)]]);
        }
    }

    #[test]
    fn a_ring_around_the_tile_fills_it() {
        let around = [(-9_000, -9_000), (9_000, -9_000), (9_000, 9_000), (-9_000, 9_000), (-9_000, -9_000)];

        let filled = ring(&around, 12);

        assert_eq!(doubled_area(&filled).unsigned_abs(), 2 * u64::from((HIGH - LOW).unsigned_abs()).pow(2));
        assert!(ring(&around.map(|p| (p.0 + 50_000, p.1)), 12).is_empty());
    }
}
