//! Whether a driver is within a place, without flickering at its border: entered at the first fix inside, left only
//! after two fixes in a row well outside.

use maps::geo;
use protocol::record::Fence;
use protocol::{Position, Time};
use wincode::{SchemaRead, SchemaWrite};

use super::clock_set::ClockSet;

/// One driver and one place.
#[derive(Clone, Copy, PartialEq, Debug, Default, SchemaWrite, SchemaRead)]
pub(crate) struct Presence {
    entered: Option<Time>,
    inside_fixes: u32,
    outside_fixes: u8,
    has_dwelt: bool,
}

/// What a fix changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Passage {
    Entered,
    /// He was inside at more than one fix.
    Left,
    /// He only brushed it.
    Brushed,
}

/// How a fix lies to a place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    Inside,
    /// Neither inside nor well outside.
    Border,
    Outside,
}

impl Presence {
    pub(crate) fn is_inside(&self) -> bool {
        self.entered.is_some()
    }

    /// Since when he is inside.
    pub(crate) fn entered(&self) -> Option<Time> {
        self.entered
    }

    pub(crate) fn handle_fix(&mut self, side: Side, at: Time) -> Option<Passage> {
        match side {
            Side::Inside => {
                self.outside_fixes = 0;
                self.inside_fixes = self.inside_fixes.saturating_add(1);
                if self.entered.is_some() {
                    return None;
                }
                self.entered = Some(at);
                Some(Passage::Entered)
            }
            Side::Border => {
                self.outside_fixes = 0;
                None
            }
            Side::Outside if self.entered.is_none() => None,
            Side::Outside => {
                self.outside_fixes += 1;
                if self.outside_fixes < OUTSIDE_FIXES {
                    return None;
                }
                let passage = if self.inside_fixes > 1 { Passage::Left } else { Passage::Brushed };
                *self = Presence::default();
                Some(passage)
            }
        }
    }

    /// The clock was set.
    pub(crate) fn handle_clock_set(&mut self, set: ClockSet) {
        self.entered.iter_mut().for_each(|entered| set.stamp(entered));
    }

    /// When he will have been inside for so long; None if that was said, or if he is not inside.
    pub(crate) fn due(&self, dwell_ms: i64) -> Option<Time> {
        let entered = self.entered.filter(|_| dwell_ms > 0 && !self.has_dwelt)?;
        Some(Time(entered.0.saturating_add(dwell_ms)))
    }

    /// Whether he has now been inside for so long: said once per stay.
    pub(crate) fn handle_time(&mut self, dwell_ms: i64, now: Time) -> bool {
        let is_due = dwell_ms > 0 && self.entered.is_some_and(|entered| now.millis_since(entered) >= dwell_ms);
        let is_news = is_due && !self.has_dwelt;
        self.has_dwelt |= is_due;
        is_news
    }
}

/// How a position lies to a disc.
pub(crate) fn side_of_disc(position: Position, center: Position, radius_m: u32) -> Side {
    let distance_m = geo::distance_cm(position, center) / 100.0;
    let radius_m = f64::from(radius_m);
    if distance_m <= radius_m {
        Side::Inside
    } else if distance_m <= radius_m + (radius_m * 0.2).max(BORDER_M) {
        Side::Border
    } else {
        Side::Outside
    }
}

/// How a position lies to a named fence.
pub(crate) fn side_of_fence(position: Position, fence: &Fence) -> Side {
    if fence.ring.is_empty() {
        return side_of_disc(position, fence.center, fence.radius_m);
    }
    if is_in_ring(position, &fence.ring) { Side::Inside } else { Side::Outside }
}

/// By how often a ray to the east crosses the ring, in whole numbers: the same on every machine.
fn is_in_ring(position: Position, ring: &[Position]) -> bool {
    let (x, y) = (i128::from(position.lon_e7), i128::from(position.lat_e7));
    let mut is_inside = false;
    for (i, a) in ring.iter().enumerate() {
        let b = &ring[(i + 1) % ring.len()];
        let (ax, ay, bx, by) = (i128::from(a.lon_e7), i128::from(a.lat_e7), i128::from(b.lon_e7), i128::from(b.lat_e7));
        if (ay > y) == (by > y) {
            continue;
        }
        // x < ax + (y − ay) · (bx − ax) ÷ (by − ay), without the division.
        let left = (x - ax) * (by - ay);
        let right = (y - ay) * (bx - ax);
        if (by > ay && left < right) || (by < ay && left > right) {
            is_inside = !is_inside;
        }
    }
    is_inside
}

/// Receivers jitter by so much at a border.
const BORDER_M: f64 = 30.0;
const OUTSIDE_FIXES: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_at_the_border_is_neither_leaving_nor_entering_again() {
        let mut presence = Presence::default();
        let sides =
            [Side::Inside, Side::Border, Side::Outside, Side::Inside, Side::Outside, Side::Outside, Side::Outside];

        let passages: Vec<_> = sides.into_iter().map(|side| presence.handle_fix(side, Time(0))).collect();

        assert_eq!(passages, [Some(Passage::Entered), None, None, None, None, Some(Passage::Left), None]);
    }

    #[test]
    fn driving_past_is_not_a_visit() {
        let mut presence = Presence::default();
        presence.handle_fix(Side::Inside, Time(0));
        presence.handle_fix(Side::Outside, Time(0));

        assert_eq!(presence.handle_fix(Side::Outside, Time(0)), Some(Passage::Brushed));
    }

    #[test]
    fn dwelling_is_said_once_per_stay() {
        let mut presence = Presence::default();
        presence.handle_fix(Side::Inside, Time(1_000));

        let said: Vec<bool> = [30_000, 61_000, 90_000].map(|now| presence.handle_time(60_000, Time(now))).to_vec();

        assert_eq!(said, [false, true, false]);
    }

    #[test]
    fn a_ring_holds_what_lies_in_it_and_nothing_else() {
        let at = |lat_e7, lon_e7| Position { lat_e7, lon_e7 };
        // An L: the notch is outside.
        let ring = [at(0, 0), at(0, 100), at(50, 100), at(50, 50), at(100, 50), at(100, 0), at(0, 0)];

        assert!(is_in_ring(at(25, 75), &ring) && is_in_ring(at(75, 25), &ring));
        assert!(!is_in_ring(at(75, 75), &ring) && !is_in_ring(at(25, 101), &ring) && !is_in_ring(at(-1, 25), &ring));
        assert!(!is_in_ring(at(0, 0), &[]));
    }
}
