//! How fast each profile travels an edge when nobody is in its way. Cars and bicycles have a speed of their own in the
//! file; the others follow from it.

use crate::class::{EdgeFlags, Profile, RoadClass};
use crate::record::EdgeRecord;

/// A profile's speed on an empty road, never zero.
#[inline]
pub fn speed_cm_s(edge: &EdgeRecord, profile: Profile) -> u32 {
    if EdgeFlags(edge.flags).is_ferry() {
        return (ferry_speed(edge) / FERRY_UNITS).max(1);
    }
    let cm_s = match profile {
        Profile::Car => u32::from(edge.car_cm_s),
        Profile::Moped => u32::from(edge.car_cm_s).min(MOPED_CM_S_MAX),
        Profile::Bicycle => u32::from(edge.bicycle_dm_s) * 10,
        Profile::Foot if edge.class() == RoadClass::Steps.number() => STEPS_CM_S,
        Profile::Foot => FOOT_CM_S,
    };
    cm_s.max(1)
}

/// Time to travel the whole edge on the empty road.
#[inline]
pub fn edge_duration_ms(edge: &EdgeRecord, profile: Profile) -> u32 {
    if EdgeFlags(edge.flags).is_ferry() {
        let ms = (u64::from(edge.length_cm) * 1000 * u64::from(FERRY_UNITS)).div_ceil(u64::from(ferry_speed(edge)));
        return ms.clamp(1, u64::from(DURATION_MS_MAX)) as u32;
    }
    duration_ms(edge.length_cm, speed_cm_s(edge, profile))
}

/// A ferry's, which is the same for all on board, in 256ths of a centimetre per second: a cable ferry takes its time.
#[inline]
fn ferry_speed(edge: &EdgeRecord) -> u32 {
    (u32::from(edge.car_cm_s) * FERRY_UNITS + u32::from(edge.bicycle_dm_s)).max(1)
}

/// Time for a distance at a speed, rounded up, so that no edge is free.
#[inline]
pub fn duration_ms(length_cm: u32, cm_s: u32) -> u32 {
    let ms = (u64::from(length_cm) * 1000).div_ceil(u64::from(cm_s.max(1)));
    ms.clamp(1, u64::from(DURATION_MS_MAX)) as u32
}

const MOPED_CM_S_MAX: u32 = 1_250; // 45 km/h: EU class L1e
const FOOT_CM_S: u32 = 139; // 5 km/h
const STEPS_CM_S: u32 = 56; // 2 km/h
/// What a ferry's speed is counted in, per centimetre per second.
pub const FERRY_UNITS: u32 = 256;
/// Two weeks, on the longest ferry: below the router's infinity.
pub const DURATION_MS_MAX: u32 = 14 * 24 * 3_600_000;
