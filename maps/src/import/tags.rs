//! From a way's tags to what a road is for each profile and in each direction: who may go (`super::access`,
//! `super::direction`), how fast, and under which signs.

use super::access::{self, Access};
use super::direction::directions;
use super::ferry;
use super::limits::{CountryLimits, Limit, parse_limit};
use crate::class::{EdgeFlags, Profile, RoadClass, Surface};

/// The tags of one object, in the order of the file.
#[derive(Clone, Copy)]
pub struct Tags<'a>(pub &'a [(&'a str, &'a str)]);

impl<'a> Tags<'a> {
    pub fn value(self, key: &str) -> Option<&'a str> {
        self.0.iter().find(|(k, _)| *k == key).map(|(_, v)| *v)
    }

    pub fn is(self, key: &str, value: &str) -> bool {
        self.value(key) == Some(value)
    }

    /// The value of a key with something behind it, as in `maxspeed:forward`.
    pub fn suffixed(self, key: &str, suffix: &str) -> Option<&'a str> {
        if suffix.is_empty() {
            return self.value(key);
        }
        self.0.iter().find(|(k, _)| k.strip_suffix(suffix) == Some(key)).map(|(_, v)| *v)
    }

    fn is_yes(self, key: &str) -> bool {
        matches!(self.value(key), Some("yes" | "true" | "1"))
    }
}

/// What the tags say of a road.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RoadTags {
    pub class: RoadClass,
    pub surface: Surface,
    pub flags: EdgeFlags,
    pub forward: DirectionTags,
    pub backward: DirectionTags,
    /// How long a ferry takes for the whole way, 0 where it is not said.
    pub ferry_s: u32,
}

/// What they say of one direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DirectionTags {
    /// A bit for each profile.
    pub access: u8,
    /// Those of them who may go there only with business there.
    pub limited: u8,
    pub car_cm_s: u16,
    pub bicycle_cm_s: u16,
    /// 0 where none is signed.
    pub limit_km_h: u8,
}

/// None for a way that nobody travels.
pub fn road(tags: Tags<'_>, limits: &CountryLimits) -> Option<RoadTags> {
    let class = class(tags)?;
    let surface = surface(tags, class);
    let mut flags = flags(tags, class);
    let [along, against] = directions(tags, class, of_road(tags, class));
    let forward = direction(tags, class, surface, limits, along, ":forward");
    let backward = direction(tags, class, surface, limits, against, ":backward");
    if forward.limit_km_h | backward.limit_km_h != 0 {
        flags.0 |= EdgeFlags::SIGNED_SPEED;
    }
    let ferry_s = tags.value("duration").filter(|_| class == RoadClass::Ferry).map_or(0, ferry::duration_s);
    let road = RoadTags { class, surface, flags, forward, backward, ferry_s };
    (forward.access | backward.access != 0).then_some(road)
}

fn class(tags: Tags<'_>) -> Option<RoadClass> {
    let Some(highway) = tags.value("highway") else {
        let mut kinds = tags.value("route")?.split(';').map(str::trim);
        return kinds.any(|kind| matches!(kind, "ferry" | "shuttle_train")).then_some(RoadClass::Ferry);
    };
    match highway {
        "bridleway" => Some(RoadClass::Path),
        "road" => Some(RoadClass::Unclassified),
        "ferry" => None, // not a value of this key
        known => known.parse().ok(),
    }
}

/// Who may use the way, whichever direction.
fn of_road(tags: Tags<'_>, class: RoadClass) -> Access {
    let mut usual = access::usual(class);
    if tags.is_yes("motorroad") {
        usual &= Profile::Car.bit();
    }
    let mut access = access::of_road(tags, usual);
    let has_pavement = tags.value("sidewalk").is_some_and(|v| matches!(v, "both" | "left" | "right" | "yes"));
    if has_pavement && !tags.is("foot", "no") {
        access.open |= Profile::Foot.bit();
    }
    if tags.is("service", "emergency_access") {
        access.open &= Profile::Foot.bit() | Profile::Bicycle.bit();
        access.limited &= access.open;
    }
    access
}

fn surface(tags: Tags<'_>, class: RoadClass) -> Surface {
    match tags.value("surface") {
        Some("sett" | "cobblestone" | "cobblestone:flattened" | "unhewn_cobblestone") => return Surface::Cobbled,
        Some("compacted" | "gravel" | "fine_gravel" | "pebblestone" | "grass_paver") => return Surface::Gravel,
        Some("unpaved" | "ground" | "dirt" | "earth" | "sand" | "grass" | "mud" | "rock" | "snow" | "woodchips") => {
            return Surface::Dirt;
        }
        Some(_) => return Surface::Paved,
        None => {}
    }
    match tags.value("tracktype") {
        Some("grade1") => Surface::Paved,
        Some("grade2" | "grade3") => Surface::Gravel,
        Some(_) => Surface::Dirt,
        None if class == RoadClass::Track => Surface::Dirt,
        None if class == RoadClass::Path => Surface::Gravel,
        None => Surface::Paved,
    }
}

fn flags(tags: Tags<'_>, class: RoadClass) -> EdgeFlags {
    let mut flags = EdgeFlags::default();
    let mut set = |flag: u16, holds: bool| flags.0 |= if holds { flag } else { 0 };
    set(EdgeFlags::TUNNEL, tags.value("tunnel").is_some_and(|v| v != "no") || tags.is("covered", "yes"));
    set(EdgeFlags::BRIDGE, tags.value("bridge").is_some_and(|v| v != "no"));
    set(EdgeFlags::FERRY, class == RoadClass::Ferry);
    set(EdgeFlags::ROUNDABOUT, is_roundabout(tags));
    set(EdgeFlags::SERVICE, class == RoadClass::Service);
    set(EdgeFlags::TOLL, tags.is_yes("toll"));
    flags
}

pub fn is_roundabout(tags: Tags<'_>) -> bool {
    matches!(tags.value("junction"), Some("roundabout" | "circular"))
}

fn direction(
    tags: Tags<'_>,
    class: RoadClass,
    surface: Surface,
    limits: &CountryLimits,
    access: Access,
    suffix: &str,
) -> DirectionTags {
    let signed = signed_km_h(tags, suffix, limits);
    DirectionTags {
        access: access.open,
        limited: access.limited,
        car_cm_s: cm_s(car_km_h(class, surface, signed, limits, tags)),
        bicycle_cm_s: cm_s(bicycle_km_h(class, surface, tags)),
        limit_km_h: signed.unwrap_or(0),
    }
}

/// The limit of one direction: a number, a country's rule by name, or what the kind of street stands for.
fn signed_km_h(tags: Tags<'_>, suffix: &str, limits: &CountryLimits) -> Option<u8> {
    let known = |text: &str| match parse_limit(text) {
        Limit::KmH(km_h) => Some(km_h),
        Limit::Nothing | Limit::UnknownRule => None,
    };
    let number =
        || tags.suffixed("maxspeed", suffix).and_then(known).or_else(|| tags.value("maxspeed").and_then(known));
    // These keys also say things like `sign` or a bare number of unknown meaning; only a country's rule counts.
    let rule = |key: &str, suffix: &str| tags.suffixed(key, suffix).filter(|v| v.contains(':')).and_then(known);
    let by_rule = || RULE_KEYS.iter().find_map(|key| rule(key, suffix).or_else(|| rule(key, "")));
    let is_bicycles = || tags.is_yes("bicycle_road") || tags.is_yes("cyclestreet");
    number().or_else(by_rule).or_else(|| is_bicycles().then(|| limits.bicycle_road_km_h()))
}

/// The first tag of a limit that names a rule which is not known here, as `key=value`.
pub fn unknown_limit(tags: Tags<'_>) -> Option<String> {
    let is_ours = |key: &str| {
        let base = key.strip_suffix(":forward").or_else(|| key.strip_suffix(":backward")).unwrap_or(key);
        base == "maxspeed" || RULE_KEYS.contains(&base)
    };
    let is_unknown = |(key, value): &&(&str, &str)| is_ours(key) && parse_limit(value) == Limit::UnknownRule;
    tags.0.iter().find(is_unknown).map(|(key, value)| format!("{key}={value}"))
}

/// The first tag that holds under a condition only, as `key=value`: those of access, direction and speed.
pub fn conditional(tags: Tags<'_>) -> Option<String> {
    let is_ours = |key: &str| {
        let Some(base) = key.strip_suffix(":conditional") else { return false };
        let base = base.strip_suffix(":forward").or_else(|| base.strip_suffix(":backward")).unwrap_or(base);
        matches!(base, "access" | "vehicle" | "motor_vehicle" | "motorcar" | "moped" | "bicycle" | "foot" | "maxspeed")
            || base.starts_with("oneway")
    };
    tags.0.iter().find(|(key, _)| is_ours(key)).map(|(key, value)| format!("{key}={value}"))
}

/// What a car reaches on the empty road, turns and lights apart.
fn car_km_h(class: RoadClass, surface: Surface, signed: Option<u8>, limits: &CountryLimits, tags: Tags<'_>) -> f64 {
    let usual = usual_car_km_h(class);
    let by_class = match (signed, limits.default_km_h(class)) {
        // A sign is a ceiling; on small streets the street itself is a lower one.
        (Some(limit), _) => (f64::from(limit) * SIGNED_SHARE).min(usual * CLASS_HEADROOM),
        (None, Some(limit)) => usual.min(f64::from(limit) * SIGNED_SHARE),
        (None, None) => usual,
    };
    let by_service = match tags.value("service") {
        Some("parking_aisle" | "drive-through") => 10.0,
        Some("driveway" | "alley") => 12.0,
        _ => f64::INFINITY,
    };
    let by_surface = match surface {
        Surface::Paved => f64::INFINITY,
        Surface::Cobbled => 40.0,
        Surface::Gravel => 35.0,
        Surface::Dirt => 25.0,
    };
    by_class.min(by_surface).min(by_service).max(3.0)
}

/// From the OSRM project's car profile, which a decade of comparisons has settled.
fn usual_car_km_h(class: RoadClass) -> f64 {
    match class {
        RoadClass::Motorway => 90.0,
        RoadClass::MotorwayLink => 45.0,
        RoadClass::Trunk => 85.0,
        RoadClass::TrunkLink => 40.0,
        RoadClass::Primary => 65.0,
        RoadClass::PrimaryLink => 30.0,
        RoadClass::Secondary => 55.0,
        RoadClass::SecondaryLink => 25.0,
        RoadClass::Tertiary => 40.0,
        RoadClass::TertiaryLink => 20.0,
        RoadClass::Unclassified | RoadClass::Residential => 25.0,
        RoadClass::LivingStreet => 10.0,
        RoadClass::Service => 15.0,
        RoadClass::Track => 15.0,
        RoadClass::Pedestrian | RoadClass::Cycleway | RoadClass::Footway | RoadClass::Path | RoadClass::Steps => 5.0,
        RoadClass::Ferry => FERRY_KM_H,
    }
}

fn bicycle_km_h(class: RoadClass, surface: Surface, tags: Tags<'_>) -> f64 {
    if tags.is("bicycle", "dismount") {
        return 4.0;
    }
    let by_class: f64 = match class {
        RoadClass::Ferry => return FERRY_KM_H,
        RoadClass::Steps => return 2.0,
        RoadClass::Pedestrian | RoadClass::Footway => 8.0,
        RoadClass::Path | RoadClass::Track | RoadClass::LivingStreet => 13.0,
        RoadClass::Service => 14.0,
        RoadClass::Motorway
        | RoadClass::MotorwayLink
        | RoadClass::Trunk
        | RoadClass::TrunkLink
        | RoadClass::Primary
        | RoadClass::PrimaryLink
        | RoadClass::Secondary
        | RoadClass::SecondaryLink
        | RoadClass::Tertiary
        | RoadClass::TertiaryLink
        | RoadClass::Unclassified
        | RoadClass::Residential
        | RoadClass::Cycleway => 17.0,
    };
    let by_surface = match surface {
        Surface::Paved => f64::INFINITY,
        Surface::Cobbled => 12.0,
        Surface::Gravel => 13.0,
        Surface::Dirt => 10.0,
    };
    by_class.min(by_surface)
}

fn cm_s(km_h: f64) -> u16 {
    (km_h / 0.036).round() as u16 // at most 150 km/h
}

/// Where a country's rule may be named instead of a number.
const RULE_KEYS: &[&str] = &["maxspeed:type", "source:maxspeed", "zone:maxspeed", "zone:traffic"];
const FERRY_KM_H: f64 = 12.0;
const SIGNED_SHARE: f64 = 0.8; // of the limit is what traffic reaches on average, as in OSRM
const CLASS_HEADROOM: f64 = 1.6;

#[cfg(test)]
mod tests {
    use super::*;

    fn of(tags: &[(&str, &str)]) -> RoadTags {
        road(Tags(tags), CountryLimits::of("")).expect("a road")
    }

    fn profiles(access: u8) -> String {
        Profile::ALL.iter().filter(|p| access & p.bit() != 0).map(|p| &p.as_str()[..1]).collect()
    }

    #[test]
    fn access_and_direction_follow_the_tags() {
        type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a str);
        let cases: &[Case] = &[
            (&[("highway", "residential")], "cmbf", "cmbf"),
            (&[("highway", "residential"), ("oneway", "yes")], "cmbf", "f"),
            (&[("highway", "residential"), ("oneway", "-1")], "f", "cmbf"),
            (&[("highway", "residential"), ("oneway", "yes"), ("oneway:bicycle", "no")], "cmbf", "bf"),
            (&[("highway", "residential"), ("oneway", "yes"), ("cycleway", "opposite_lane")], "cmbf", "bf"),
            (&[("highway", "residential"), ("oneway", "yes"), ("cycleway:left:oneway", "-1")], "cmbf", "bf"),
            (&[("highway", "tertiary"), ("junction", "roundabout")], "cmbf", "f"),
            (&[("highway", "motorway")], "c", ""),
            (&[("highway", "motorway"), ("access", "yes")], "c", ""),
            (&[("highway", "trunk"), ("motorroad", "yes")], "c", "c"),
            (&[("highway", "footway")], "f", "f"),
            (&[("highway", "footway"), ("bicycle", "yes")], "bf", "bf"),
            (&[("highway", "footway"), ("access", "private")], "f", "f"),
            (&[("highway", "service"), ("access", "no"), ("foot", "yes")], "f", "f"),
            (&[("highway", "residential"), ("vehicle", "no")], "f", "f"),
            (&[("highway", "residential"), ("motor_vehicle", "no"), ("moped", "yes")], "mbf", "mbf"),
            (&[("highway", "residential"), ("motor_vehicle:backward", "no")], "cmbf", "bf"),
            (&[("highway", "pedestrian"), ("motor_vehicle", "delivery")], "cmf", "cmf"),
            (&[("highway", "pedestrian"), ("access", "delivery")], "f", "f"),
            (&[("route", "shuttle_train"), ("foot", "no")], "cmb", "cmb"),
            (&[("route", "ferry")], "cmbf", "cmbf"),
            (&[("route", "ferry"), ("motor_vehicle", "no")], "bf", "bf"),
            (&[("highway", "steps"), ("conveying", "forward")], "f", ""),
        ];

        for (tags, forward, backward) in cases {
            let road = of(tags);
            assert_eq!(profiles(road.forward.access), *forward, "{tags:?}");
            assert_eq!(profiles(road.backward.access), *backward, "{tags:?}");
        }
    }

    #[test]
    fn what_nobody_travels_is_no_road() {
        let cases: &[&[(&str, &str)]] = &[
            &[("highway", "proposed")],
            &[("highway", "construction")],
            &[("highway", "ferry")],
            &[("highway", "footway"), ("access", "no")],
            &[("building", "yes")],
            &[],
        ];

        for tags in cases {
            assert_eq!(road(Tags(tags), CountryLimits::of("")), None, "{tags:?}");
        }
    }

    #[test]
    fn private_roads_stay_open_to_those_with_business_there() {
        let limited = |tags: &[(&str, &str)]| {
            let road = of(tags);
            assert_eq!(road.forward.limited & !road.forward.access, 0);
            profiles(road.forward.limited)
        };

        assert_eq!(limited(&[("highway", "service"), ("access", "private")]), "cmbf");
        assert_eq!(limited(&[("highway", "service"), ("access", "private"), ("motor_vehicle", "yes")]), "bf");
        assert_eq!(limited(&[("highway", "residential"), ("motor_vehicle", "destination")]), "cm");
        assert_eq!(limited(&[("highway", "residential"), ("motorcar", "destination")]), "c");
    }

    #[test]
    fn speed_follows_sign_class_and_surface() {
        let speed = |tags: &[(&str, &str)]| of(tags).forward.car_cm_s;

        assert_eq!(speed(&[("highway", "primary"), ("maxspeed", "50")]), cm_s(40.0));
        assert_eq!(speed(&[("highway", "primary")]), cm_s(40.0)); // the world's 50 in town
        assert_eq!(speed(&[("highway", "residential"), ("maxspeed", "90")]), cm_s(40.0)); // a street stays a street
        assert_eq!(speed(&[("highway", "residential"), ("surface", "sett"), ("maxspeed", "90")]), cm_s(40.0));
        assert_eq!(speed(&[("highway", "primary"), ("surface", "gravel"), ("maxspeed", "90")]), cm_s(35.0));
        let both = of(&[("highway", "primary"), ("maxspeed:forward", "30"), ("maxspeed:backward", "60")]);
        assert_eq!((both.forward.limit_km_h, both.backward.limit_km_h), (30, 60));
    }

    #[test]
    fn a_ferry_takes_as_long_as_it_says() {
        let ferry = |route, duration| of(&[("route", route), ("duration", duration)]).ferry_s;

        assert_eq!(
            [ferry("ferry", "00:20"), ferry("shuttle_train", "PT35M"), ferry("hiking;ferry", "1")],
            [1200, 2100, 60]
        );
    }

    #[test]
    fn a_named_limit_counts_in_every_key_that_names_one() {
        let limit = |tags: &[(&str, &str)]| {
            let road = of(&[&[("highway", "primary")], tags].concat());
            (road.forward.limit_km_h, road.backward.limit_km_h)
        };

        assert_eq!(limit(&[("zone:maxspeed", "DE:30")]), (30, 30));
        assert_eq!(limit(&[("source:maxspeed", "GB:nsl_dual")]), (113, 113));
        assert_eq!(limit(&[("maxspeed:type", "sign")]), (0, 0));
        assert_eq!(limit(&[("maxspeed", "signals"), ("maxspeed:type", "FR:zone30")]), (30, 30));
        assert_eq!(limit(&[("maxspeed:type:backward", "FR:rural"), ("maxspeed:forward", "70")]), (70, 80));
        assert_eq!(limit(&[("bicycle_road", "yes")]), (30, 30));
        assert_eq!(
            unknown_limit(Tags(&[("source:maxspeed", "XX:urban")])).as_deref(),
            Some("source:maxspeed=XX:urban")
        );
        assert_eq!(unknown_limit(Tags(&[("maxspeed", "signals"), ("source:maxspeed", "sign")])), None);
    }
}
