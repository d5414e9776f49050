//! What the matcher weighs, in one place. `docs/maps.md` tells how each figure was chosen. The defaults are what
//! runs: a fold that is to give the same bytes everywhere must use them everywhere.

use crate::class::{Profile, RoadClass};

/// The matcher's weights. Costs are negative logarithms of likelihoods.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Weights {
    /// Spread of a fix around the road where the phone does not say its accuracy.
    pub sigma_unknown_m: f32,
    pub sigma_min_m: f32,
    pub sigma_max_m: f32,
    /// What a phone calls its accuracy, as a spread across the road.
    pub sigma_per_accuracy: f32,
    /// From so many spreads on the cost of distance grows linearly: city receivers have heavy tails.
    pub tail_sigmas: f32,
    /// How far a route may differ from the straight line, at no time between two fixes …
    pub beta_m: f32,
    /// … and more for every second between them.
    pub beta_m_per_s: f32,
    pub beta_max_m: f32,
    /// A fix closer than this to the last used one is not used …
    pub skip_m: f32,
    /// … nor one so much less close for every second since: who is that slow stands, and the noise wanders.
    pub skip_m_per_s: f32,
    pub skip_max_m: f32,
    /// A place so far behind on the same edge is taken for jitter, not for a drive around the block.
    pub backward_max_m: f32,
    /// What a metre of it costs, in metres, beside what a metre forward would.
    pub backward_price: f32,
    /// What turning round costs, as metres.
    pub u_turn_m: f32,
    pub u_turn_dead_end_m: f32,
    /// What a turn costs that a sign forbids, as metres: signs change, and are broken.
    pub forbidden_turn_m: f32,
    /// What going against a one-way street costs from where one enters it, as metres, in a car, on a moped, on a bicycle:
    /// riders do, and their dot must follow.
    pub against_m: f32,
    pub against_moped_m: f32,
    pub against_bicycle_m: f32,
    /// What a metre on a minor road costs more than one on a main road, in metres, scaled by `minor_share`: who drives
    /// through takes the main road.
    pub minor_price: f32,
    /// Cost of a used fix being on a service road: there are many, and few drive them.
    pub service: f32,
    /// Cost of a heading that is straight against the road's.
    pub heading: f32,
    /// Cost of being off all roads, per used fix; and of leaving or entering them.
    pub off_road: f32,
    pub off_road_change: f32,
    /// Other places that cost less than this more keep a place from being sure …
    pub sure: f32,
    /// … and then the driver is placed where their ways part, if that is no further away than this.
    pub wait_m: f32,
    /// A place that costs so much more than the best is forgotten.
    pub beam: f32,
}

impl Weights {
    pub const DEFAULT: Weights = Weights {
        sigma_unknown_m: 5.0,
        sigma_min_m: 4.0,
        sigma_max_m: 15.0,
        sigma_per_accuracy: 1.0,
        tail_sigmas: 3.0,
        beta_m: 3.0,
        beta_m_per_s: 0.45,
        beta_max_m: 15.0,
        skip_m: 12.0,
        skip_m_per_s: 0.4,
        skip_max_m: 20.0,
        backward_max_m: 80.0,
        backward_price: 0.4,
        u_turn_m: 60.0,
        u_turn_dead_end_m: 40.0,
        forbidden_turn_m: 60.0,
        against_m: 40.0,
        against_moped_m: 30.0,
        against_bicycle_m: 15.0,
        minor_price: 0.05,
        service: 0.5,
        heading: 4.0,
        off_road: 15.0,
        off_road_change: 15.0,
        sure: 10.0,
        wait_m: 60.0,
        beam: 20.0,
    };

    /// A weight by its name, for tools that try others.
    pub fn by_name(&mut self, name: &str) -> Option<&mut f32> {
        Some(match name {
            "sigma_unknown_m" => &mut self.sigma_unknown_m,
            "sigma_min_m" => &mut self.sigma_min_m,
            "sigma_max_m" => &mut self.sigma_max_m,
            "sigma_per_accuracy" => &mut self.sigma_per_accuracy,
            "tail_sigmas" => &mut self.tail_sigmas,
            "beta_m" => &mut self.beta_m,
            "beta_m_per_s" => &mut self.beta_m_per_s,
            "beta_max_m" => &mut self.beta_max_m,
            "skip_m" => &mut self.skip_m,
            "skip_m_per_s" => &mut self.skip_m_per_s,
            "skip_max_m" => &mut self.skip_max_m,
            "forbidden_turn_m" => &mut self.forbidden_turn_m,
            "against_m" => &mut self.against_m,
            "against_moped_m" => &mut self.against_moped_m,
            "against_bicycle_m" => &mut self.against_bicycle_m,
            "minor_price" => &mut self.minor_price,
            "service" => &mut self.service,
            "backward_max_m" => &mut self.backward_max_m,
            "backward_price" => &mut self.backward_price,
            "u_turn_m" => &mut self.u_turn_m,
            "u_turn_dead_end_m" => &mut self.u_turn_dead_end_m,
            "heading" => &mut self.heading,
            "off_road" => &mut self.off_road,
            "off_road_change" => &mut self.off_road_change,
            "sure" => &mut self.sure,
            "wait_m" => &mut self.wait_m,
            "beam" => &mut self.beam,
            _ => return None,
        })
    }

    /// The spread to expect of a fix, in metres.
    pub(super) fn sigma_m(&self, accuracy_m: Option<u8>) -> f32 {
        match accuracy_m {
            Some(accuracy) => (f32::from(accuracy) * self.sigma_per_accuracy).clamp(self.sigma_min_m, self.sigma_max_m),
            None => self.sigma_unknown_m,
        }
    }

    /// A fix closer than this to one used so many seconds before tells nothing new, in centimetres.
    pub(super) fn skip_cm(&self, seconds: f32) -> f32 {
        100.0 * (self.skip_m + self.skip_m_per_s * seconds).min(self.skip_max_m.max(self.skip_m))
    }

    /// Cost of a fix so far beside a road.
    #[inline]
    pub(super) fn emission(&self, off_m: f32, sigma_m: f32) -> f32 {
        let sigmas = off_m / sigma_m;
        if sigmas <= self.tail_sigmas {
            0.5 * sigmas * sigmas
        } else {
            self.tail_sigmas * (sigmas - 0.5 * self.tail_sigmas)
        }
    }

    /// What going against a one-way street costs a profile, in centimetres.
    pub(super) fn against_cm(&self, profile: Profile) -> f32 {
        100.0
            * match profile {
                Profile::Car => self.against_m,
                Profile::Moped => self.against_moped_m,
                Profile::Bicycle => self.against_bicycle_m,
                Profile::Foot => 0.0,
            }
    }

    /// How far a route may differ from the straight line for one unit of cost, in centimetres.
    pub(super) fn beta_cm(&self, seconds: f32) -> f32 {
        100.0 * (self.beta_m + self.beta_m_per_s * seconds).min(self.beta_max_m)
    }
}

/// How minor a road is for somebody who drives through, of `Weights::minor_price`.
pub(super) const fn minor_share(class: RoadClass) -> f32 {
    match class {
        RoadClass::Motorway | RoadClass::Trunk | RoadClass::Primary | RoadClass::Secondary | RoadClass::Tertiary => 0.0,
        RoadClass::MotorwayLink
        | RoadClass::TrunkLink
        | RoadClass::PrimaryLink
        | RoadClass::SecondaryLink
        | RoadClass::TertiaryLink
        | RoadClass::Unclassified
        | RoadClass::Residential => 1.0,
        RoadClass::LivingStreet | RoadClass::Pedestrian | RoadClass::Ferry => 2.0,
        RoadClass::Service
        | RoadClass::Track
        | RoadClass::Cycleway
        | RoadClass::Footway
        | RoadClass::Path
        | RoadClass::Steps => 3.0,
    }
}

impl Default for Weights {
    fn default() -> Self {
        Weights::DEFAULT
    }
}

/// One-way streets are looked at against their direction only where a step costs more than this by any other way.
pub(super) const AGAINST_COST_MIN: f32 = 4.0;
/// Used fixes that may be undecided at a time.
pub(super) const COLUMNS_MAX: usize = 14;
/// Places kept of each used fix.
pub(super) const STATES_MAX: usize = 8;
/// Places tried for each used fix.
pub(super) const CANDIDATES_MAX: usize = 16;
/// Fixes that may wait for their final place: one a second for the whole look-ahead, and some.
pub(super) const HELD_MAX: usize = 48;
/// From so many on the oldest is decided early.
pub(super) const HELD_FULL: usize = 44;
/// In tenths of a second: a place becomes final at the latest when so much of measured time has passed …
pub(super) const LOOK_AHEAD_MAX_DS: i64 = 400;
/// … and from here on if no further fix is to be expected by then.
pub(super) const LOOK_AHEAD_MIN_DS: i64 = 300;
/// Used fixes lie so far apart in time, so that `COLUMNS_MAX` of them span the look-ahead.
pub(super) const USED_APART_DS: i64 = 29;
/// Roads are looked for within this, and within three times as much where there are none.
pub(super) const CANDIDATE_RADIUS_M: f64 = 50.0;
pub(super) const CANDIDATE_RADIUS_FAR_M: f64 = 150.0;
/// Faster than anything on roads: 250 km/h.
pub(super) const SPEED_CM_S_MAX: f32 = 7_000.0;
/// After so long without a fix, and so far, nobody can say what was driven in between.
pub(super) const SILENCE_DS_MAX: i64 = 6_000;
pub(super) const SILENCE_FAR_CM: f32 = 100_000.0;
/// The longest hop that a route is looked for.
pub(super) const HOP_CM_MAX: f32 = 2_000_000.0;
