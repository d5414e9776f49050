//! When a moved dot is worth telling: it moved 20 m, turned, stopped or set off, became fresh again, or has been quiet
//! for a heartbeat. Everybody who watches the same view is told the same, so one decision and one frame serve all.

use protocol::frame::Freshness;
use protocol::update::ShownPosition;
use protocol::{DeliveryPolicy, Position, Time};

/// What watchers were last told of a position.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dot {
    told: Option<ShownPosition>,
    at: Time,
    freshness: Freshness,
}

impl Dot {
    pub fn new(position: Option<&ShownPosition>, policy: &DeliveryPolicy, now: Time) -> Self {
        Dot { told: position.copied(), at: now, freshness: Freshness::of(position, policy, now) }
    }

    /// Whether this position is news. Its freshness alone is asked for by `handle_freshness`.
    pub fn is_news(&self, position: &ShownPosition, policy: &DeliveryPolicy, now: Time) -> bool {
        let Some(told) = &self.told else { return true };
        let is_fresh_again =
            self.freshness != Freshness::Live && Freshness::of(Some(position), policy, now) == Freshness::Live;
        is_fresh_again
            || told.standing != position.standing
            || turned_255(told.heading_255, position.heading_255) >= TURN_255_MIN
            || distance_m(told.position, position.position) >= MOVED_M_MIN
            || (told.seen() != position.seen() && now >= self.heartbeat_at(policy))
    }

    /// The clock was set.
    pub fn handle_clock_set(&mut self, by_ms: i64) {
        self.at = Time(self.at.0.saturating_add(by_ms));
        self.told.iter_mut().for_each(|told| told.handle_clock_set(by_ms));
    }

    pub fn has_told(&self) -> bool {
        self.told.is_some()
    }

    pub fn handle_told(&mut self, position: &ShownPosition, policy: &DeliveryPolicy, now: Time) {
        *self = Dot::new(Some(position), policy, now);
    }

    /// Whether the freshness is another than was told; from here on it is the one that was told.
    pub fn handle_freshness(&mut self, position: Option<&ShownPosition>, policy: &DeliveryPolicy, now: Time) -> bool {
        let freshness = Freshness::of(position, policy, now);
        std::mem::replace(&mut self.freshness, freshness) != freshness
    }

    /// When this position must be looked at again if nothing new comes.
    pub fn next_wake(&self, position: Option<&ShownPosition>, policy: &DeliveryPolicy, now: Time) -> Option<Time> {
        let position = position?;
        let is_pending = self.told.is_none_or(|told| told.seen() != position.seen());
        let heartbeat = is_pending.then(|| self.heartbeat_at(policy));
        let change = Freshness::next_change(position, policy, now);
        [heartbeat, change].into_iter().flatten().min()
    }

    fn heartbeat_at(&self, policy: &DeliveryPolicy) -> Time {
        Time(self.at.0.saturating_add((policy.stale_after_ms() / 3).clamp(HEARTBEAT_MS_MIN, HEARTBEAT_MS_MAX)))
    }
}

/// Metres between two near places. Far ones come out wrong by a little, which does not matter against 20 m.
pub(super) fn distance_m(a: Position, b: Position) -> f64 {
    let north = (f64::from(a.lat_e7) - f64::from(b.lat_e7)) * METRES_PER_E7;
    let mut east_e7 = (f64::from(a.lon_e7) - f64::from(b.lon_e7)).abs();
    if east_e7 > 1.8e9 {
        east_e7 = 3.6e9 - east_e7;
    }
    let east = east_e7 * METRES_PER_E7 * a.lat().to_radians().cos();
    north.hypot(east)
}

fn turned_255(a: Option<u8>, b: Option<u8>) -> u8 {
    let (Some(a), Some(b)) = (a, b) else { return 0 };
    let turned = a.abs_diff(b);
    turned.min(255 - turned)
}

const MOVED_M_MIN: f64 = 20.0;
const TURN_255_MIN: u8 = 21; // 30 degrees
/// A third of the time after which a dot counts as stale, within these: two heartbeats may be lost before it does.
const HEARTBEAT_MS_MIN: i64 = 1_000;
const HEARTBEAT_MS_MAX: i64 = 10_000;
const METRES_PER_E7: f64 = 0.011_131_95; // 6,378,137 m × π / 180 × 10⁻⁷

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_is_right_to_a_percent_also_over_the_antimeridian() {
        let at = |lat, lon| Position::from_degrees(lat, lon).unwrap();

        let east = distance_m(at(60.0, 24.0), at(60.0, 24.001));
        let over = distance_m(at(0.0, 179.9995), at(0.0, -179.9995));

        assert!((east - 55.7).abs() < 0.5, "{east}");
        assert!((over - 111.3).abs() < 1.0, "{over}");
    }

    #[test]
    fn a_turn_is_measured_the_short_way_round() {
        assert_eq!(turned_255(Some(250), Some(5)), 10);
        assert_eq!(turned_255(Some(5), Some(250)), 10);
        assert_eq!(turned_255(None, Some(250)), 0);
    }
}
