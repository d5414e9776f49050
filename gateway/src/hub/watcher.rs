//! A watcher as the hub knows it: what it wants, how far it is, what it has not been told yet. There is no queue: a
//! cursor into the journal, and marks for all of which only the latest counts. A slow watcher so holds nothing.

use std::collections::BTreeSet;

use protocol::{DeliveryId, DeliveryKey, DeliveryPolicy, DriverId, JournalNumber, Position, TenantId};
use serde::{Deserialize, Serialize};

use super::news::News;

/// One watcher of one hub; never given twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WatcherId(pub(super) u64);

#[derive(Debug)]
pub(super) struct Watcher {
    pub interest: Interest,
    /// Its shell has been told to poll and has not done so yet.
    pub is_woken: bool,
    pub closing: Option<CloseReason>,
}

#[derive(Debug)]
pub(super) enum Interest {
    Delivery(DeliveryWatch),
    Map(Box<MapWatch>),
}

#[derive(Debug)]
pub(super) struct DeliveryWatch {
    pub key: DeliveryKey,
    /// The last journal entry it was given.
    pub cursor: JournalNumber,
    pub news: News,
    /// Nothing is given before it is settled where to begin.
    pub is_begun: bool,
}

#[derive(Debug)]
pub(super) struct MapWatch {
    pub tenant: TenantId,
    pub viewport: Option<Viewport>,
    pub drivers: BTreeSet<DriverId>,
    pub deliveries: BTreeSet<DeliveryId>,
    /// The drivers it was shown and that have not left since.
    pub inside: BTreeSet<DriverId>,
}

/// Why a watcher is let go. The shell says it in a redirect frame and a close code.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CloseReason {
    /// It is further behind in the journal than is kept for it.
    Slow,
    /// The delivery is finished and all is told.
    Finished,
    /// Another gateway owns this part.
    Moved,
    /// This gateway stops.
    Stopping,
}

/// What a dispatcher looks at, in degrees: west, south, east, north. West greater than east crosses the antimeridian.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(try_from = "[f64; 4]", into = "[f64; 4]")]
pub struct Viewport {
    west: f64,
    south: f64,
    east: f64,
    north: f64,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a viewport is [west, south, east, north] in degrees, south not above north")]
pub struct ViewportError;

impl TryFrom<[f64; 4]> for Viewport {
    type Error = ViewportError;

    fn try_from([west, south, east, north]: [f64; 4]) -> Result<Self, ViewportError> {
        let is_valid = [west, east].into_iter().all(|lon| (-180.0..=180.0).contains(&lon))
            && [south, north].into_iter().all(|lat| (-90.0..=90.0).contains(&lat))
            && south <= north;
        if is_valid { Ok(Viewport { west, south, east, north }) } else { Err(ViewportError) }
    }
}

impl From<Viewport> for [f64; 4] {
    fn from(viewport: Viewport) -> Self {
        [viewport.west, viewport.south, viewport.east, viewport.north]
    }
}

impl Viewport {
    pub fn contains(&self, position: Position) -> bool {
        let (lat, lon) = (position.lat(), position.lon());
        let is_between = if self.west <= self.east {
            (self.west..=self.east).contains(&lon)
        } else {
            lon >= self.west || lon <= self.east
        };
        is_between && (self.south..=self.north).contains(&lat)
    }
}

impl MapWatch {
    /// Whether the map shows a driver who is here. One without a position is listed where nothing is cut off.
    pub fn shows(&self, position: Option<Position>) -> bool {
        match (&self.viewport, position) {
            (None, _) => true,
            (Some(viewport), Some(position)) => viewport.contains(position),
            (Some(_), None) => false,
        }
    }
}

/// All of one tenant in one hub.
#[derive(Debug, Default)]
pub(super) struct TenantEntry {
    pub drivers: BTreeSet<DriverId>,
    pub deliveries: BTreeSet<DeliveryId>,
    pub watchers: Vec<WatcherId>,
    pub policy: DeliveryPolicy,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_viewport_over_the_antimeridian_shows_both_sides_and_nothing_else() {
        let viewport = Viewport::try_from([170.0, -20.0, -170.0, 20.0]).unwrap();
        let at = |lat, lon| Position::from_degrees(lat, lon).unwrap();

        assert!(viewport.contains(at(0.0, 175.0)) && viewport.contains(at(0.0, -175.0)));
        assert!(!viewport.contains(at(0.0, 0.0)) && !viewport.contains(at(30.0, 175.0)));
    }

    #[test]
    fn what_is_no_viewport_is_refused() {
        for bad in [[f64::NAN, 0.0, 1.0, 1.0], [0.0, 2.0, 1.0, 1.0], [0.0, 0.0, 181.0, 1.0], [0.0, -91.0, 1.0, 1.0]] {
            assert_eq!(Viewport::try_from(bad), Err(ViewportError), "{bad:?}");
        }
    }
}
