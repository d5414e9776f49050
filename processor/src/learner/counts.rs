//! What the learner did with what it read: received is learned from plus left out, by reason.

/// How often what happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    pub breadcrumbs: u64,
    /// Of breadcrumbs that taught nothing, why: in the order of `LeftOut::ALL`.
    pub left_out: [u64; LeftOut::ALL.len()],
    pub traversals: u64,
    /// Arrivals foretold, of legs that began or were half done.
    pub trips_begun: u64,
    /// Legs that ended.
    pub trips_finished: u64,
    /// Deliveries beyond what is followed.
    pub deliveries_refused: u64,
}

/// Why a breadcrumb teaches nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeftOut {
    /// On no road, or rejected.
    Unplaced,
    /// Of a driver who is not listened to: there are too many.
    NotHeard,
    NoMap,
    /// Placed on another version of the map.
    OtherMap,
    NotByCar,
    NoRoom,
    Begun,
    Stood,
    Late,
    Gap,
    TooFast,
    NoWay,
}

impl LeftOut {
    pub const ALL: [LeftOut; 12] = [
        LeftOut::Unplaced,
        LeftOut::NotHeard,
        LeftOut::NoMap,
        LeftOut::OtherMap,
        LeftOut::NotByCar,
        LeftOut::NoRoom,
        LeftOut::Begun,
        LeftOut::Stood,
        LeftOut::Late,
        LeftOut::Gap,
        LeftOut::TooFast,
        LeftOut::NoWay,
    ];

    pub fn name(self) -> &'static str {
        match self {
            LeftOut::Unplaced => "unplaced",
            LeftOut::NotHeard => "not_heard",
            LeftOut::NoMap => "no_map",
            LeftOut::OtherMap => "other_map",
            LeftOut::NotByCar => "not_by_car",
            LeftOut::NoRoom => "no_room",
            LeftOut::Begun => "begun",
            LeftOut::Stood => "stood",
            LeftOut::Late => "late",
            LeftOut::Gap => "gap",
            LeftOut::TooFast => "too_fast",
            LeftOut::NoWay => "no_way",
        }
    }
}
