//! Whether a driver moves: he has moved far enough to be worth an event, stands for a while, moves again.

use maps::geo;
use protocol::update::Event;
use protocol::{Position, Time};
use wincode::{SchemaRead, SchemaWrite};

use super::clock_set::ClockSet;

#[derive(Clone, Copy, PartialEq, Debug, Default, SchemaWrite, SchemaRead)]
pub(crate) struct Motion {
    /// The position at the last `Moved`.
    published: Option<Position>,
    /// The place that he has not left by more than `STAY_M`.
    stay: Option<Stay>,
}

#[derive(Clone, Copy, PartialEq, Debug, SchemaWrite, SchemaRead)]
struct Stay {
    position: Position,
    since: Time,
    is_published: bool,
}

impl Motion {
    pub(crate) fn handle_position(&mut self, position: Position, at: Time, events: &mut Vec<Event>) {
        if self.published.is_none_or(|published| distance_m(published, position) >= MOVED_M) {
            self.published = Some(position);
            events.push(Event::Moved);
        }
        let Some(stay) = self.stay.filter(|stay| distance_m(stay.position, position) <= STAY_M) else {
            if self.stay.is_some_and(|stay| stay.is_published) {
                events.push(Event::MovingAgain);
            }
            self.stay = Some(Stay { position, since: at, is_published: false });
            return;
        };
        self.stay = Some(stay);
        self.handle_stay(at, events);
    }

    /// The clock was set.
    pub(crate) fn handle_clock_set(&mut self, set: ClockSet) {
        self.stay.iter_mut().for_each(|stay| set.stamp(&mut stay.since));
    }

    /// The phone says that it is where it was.
    pub(crate) fn handle_stay(&mut self, at: Time, events: &mut Vec<Event>) {
        if let Some(stay) = &mut self.stay
            && !stay.is_published
            && at.millis_since(stay.since) >= STATIONARY_MS
        {
            stay.is_published = true;
            events.push(Event::Stationary { since: stay.since });
        }
    }
}

fn distance_m(a: Position, b: Position) -> f64 {
    geo::distance_cm(a, b) / 100.0
}

/// What makes a dot visibly move on a street map.
const MOVED_M: f64 = 20.0;
/// A receiver at rest wanders by so much.
const STAY_M: f64 = 40.0;
/// Longer than a red light.
const STATIONARY_MS: i64 = 120_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standing_is_published_once_and_so_is_moving_again() {
        let plane = geo::Plane::at(Position { lat_e7: 411_500_000, lon_e7: -86_100_000 });
        let mut motion = Motion::default();
        let mut events = Vec::new();

        for i in 0..60 {
            let east_m = if i < 50 { f64::from(i % 3) * 5.0 } else { 100.0 };
            motion.handle_position(
                plane.to_position((east_m * 100.0, 0.0)),
                Time::from_secs(i64::from(i) * 4),
                &mut events,
            );
        }

        let count_of = |event: &Event| events.iter().filter(|e| *e == event).count();
        assert_eq!(events.iter().filter(|e| matches!(e, Event::Stationary { .. })).count(), 1);
        assert_eq!(count_of(&Event::MovingAgain), 1);
        assert_eq!(count_of(&Event::Moved), 2);
    }
}
