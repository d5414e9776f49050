//! From a way's tags to what a road is for each profile and in each direction: who may go, how fast, and under which
//! signs. Follows the OpenStreetMap wiki's access rules: the more special key wins, a direction's own key most of all.

use super::limits::{CountryLimits, parse_km_h};
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
    /// How long a ferry takes, 0 where it is not said.
    pub ferry_s: u32,
}

/// What they say of one direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DirectionTags {
    /// A bit for each profile.
    pub access: u8,
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
    let (mut access, private) = access(tags, class);
    flags.0 |= private_flags(private);
    if tags.is("service", "emergency_access") {
        access &= Profile::Foot.bit() | Profile::Bicycle.bit();
    }
    let (open_forward, open_backward) = directions(tags, class, access);
    let forward = direction(tags, class, surface, limits, open_forward, ":forward");
    let backward = direction(tags, class, surface, limits, open_backward, ":backward");
    if forward.limit_km_h | backward.limit_km_h != 0 {
        flags.0 |= EdgeFlags::SIGNED_SPEED;
    }
    let road = RoadTags { class, surface, flags, forward, backward, ferry_s: ferry_s(tags, class) };
    (forward.access | backward.access != 0).then_some(road)
}

fn class(tags: Tags<'_>) -> Option<RoadClass> {
    let Some(highway) = tags.value("highway") else {
        return tags.is("route", "ferry").then_some(RoadClass::Ferry);
    };
    match highway {
        "bridleway" => Some(RoadClass::Path),
        "road" => Some(RoadClass::Unclassified),
        "ferry" => None, // not a value of this key
        known => known.parse().ok(),
    }
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

fn is_roundabout(tags: Tags<'_>) -> bool {
    matches!(tags.value("junction"), Some("roundabout" | "circular"))
}

/// Which profiles may use a kind of road where no tag says more.
fn usual_access(class: RoadClass) -> u8 {
    let (car, moped, bicycle, foot) =
        (Profile::Car.bit(), Profile::Moped.bit(), Profile::Bicycle.bit(), Profile::Foot.bit());
    match class {
        RoadClass::Motorway | RoadClass::MotorwayLink => car,
        RoadClass::Trunk
        | RoadClass::TrunkLink
        | RoadClass::Primary
        | RoadClass::PrimaryLink
        | RoadClass::Secondary
        | RoadClass::SecondaryLink
        | RoadClass::Tertiary
        | RoadClass::TertiaryLink
        | RoadClass::Unclassified
        | RoadClass::Residential
        | RoadClass::LivingStreet
        | RoadClass::Service
        | RoadClass::Track
        | RoadClass::Ferry => car | moped | bicycle | foot,
        RoadClass::Cycleway | RoadClass::Path => bicycle | foot,
        RoadClass::Pedestrian | RoadClass::Footway | RoadClass::Steps => foot,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Permission {
    Open,
    Private,
    Closed,
}

fn permission(value: &str) -> Option<Permission> {
    match value {
        "yes" | "designated" | "permissive" | "official" | "public" | "dismount" => Some(Permission::Open),
        "private" | "customers" | "delivery" | "destination" | "permit" | "residents" => Some(Permission::Private),
        "no" | "agricultural" | "forestry" | "emergency" | "military" | "psv" | "bus" | "use_sidepath" | "hgv" => {
            Some(Permission::Closed)
        }
        _ => None,
    }
}

/// The keys that speak of a profile, the most special last.
fn access_keys(profile: Profile) -> &'static [&'static str] {
    match profile {
        Profile::Car => &["access", "vehicle", "motor_vehicle", "motorcar"],
        Profile::Moped => &["access", "vehicle", "motor_vehicle", "moped"],
        Profile::Bicycle => &["access", "vehicle", "bicycle"],
        Profile::Foot => &["access", "foot"],
    }
}

/// A way is private to motor vehicles where neither cars nor mopeds may pass freely.
fn private_flags(private: u8) -> u16 {
    let has = |profile: Profile, flag| if private & profile.bit() != 0 { flag } else { 0 };
    has(Profile::Car, EdgeFlags::PRIVATE)
        | has(Profile::Bicycle, EdgeFlags::PRIVATE_BICYCLE)
        | has(Profile::Foot, EdgeFlags::PRIVATE_FOOT)
}

/// The profiles that may use the way, and those of them that may do so only with business there.
fn access(tags: Tags<'_>, class: RoadClass) -> (u8, u8) {
    let mut open = usual_access(class);
    if tags.is_yes("motorroad") {
        open &= Profile::Car.bit();
    }
    let mut private = 0;
    for profile in Profile::ALL {
        match most_special(tags, *profile, "") {
            Some(Permission::Open) => open |= profile.bit(),
            Some(Permission::Private) => {
                // A private way stays of its kind: `access=private` opens no footway to cars.
                private |= open & profile.bit();
            }
            Some(Permission::Closed) => open &= !profile.bit(),
            None => {}
        }
    }
    if tags.value("sidewalk").is_some_and(|v| matches!(v, "both" | "left" | "right" | "yes")) && !tags.is("foot", "no")
    {
        open |= Profile::Foot.bit();
    }
    let motor = Profile::Car.bit() | Profile::Moped.bit();
    if private & motor != open & motor {
        private &= !motor;
    }
    (open, private)
}

fn most_special(tags: Tags<'_>, profile: Profile, suffix: &str) -> Option<Permission> {
    let mut found = None;
    for key in access_keys(profile) {
        let value = match suffix {
            "" => tags.value(key),
            _ => tags.0.iter().find(|(k, _)| k.strip_suffix(suffix) == Some(key)).map(|(_, v)| *v),
        };
        let permission = value.and_then(permission);
        // `access=yes` says less than the kind of road does: it opens no motorway to those on foot.
        let says_nothing = *key == "access" && permission == Some(Permission::Open);
        found = permission.filter(|_| !says_nothing).or(found);
    }
    found
}

/// The profiles that may go along and against the way's points.
fn directions(tags: Tags<'_>, class: RoadClass, access: u8) -> (u8, u8) {
    let implied = is_roundabout(tags) || class == RoadClass::Motorway;
    let way = oneway(tags.value("oneway")).unwrap_or(if implied { Oneway::Forward } else { Oneway::No });
    let mut open = [access, access];
    for profile in Profile::ALL {
        let own = match profile {
            Profile::Car => None,
            Profile::Moped => oneway(tags.value("oneway:moped").or(tags.value("oneway:mofa"))),
            Profile::Bicycle => bicycle_oneway(tags, way),
            Profile::Foot => Some(oneway(tags.value("oneway:foot").or(conveying(tags))).unwrap_or(Oneway::No)),
        };
        match own.unwrap_or(way) {
            Oneway::No => {}
            Oneway::Forward => open[1] &= !profile.bit(),
            Oneway::Backward => open[0] &= !profile.bit(),
        }
    }
    for (at, suffix) in [":forward", ":backward"].into_iter().enumerate() {
        for profile in Profile::ALL {
            match most_special(tags, *profile, suffix) {
                Some(Permission::Closed) => open[at] &= !profile.bit(),
                Some(Permission::Open) if access & profile.bit() != 0 => open[at] |= profile.bit(),
                Some(Permission::Open | Permission::Private) | None => {}
            }
        }
    }
    (open[0], open[1])
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Oneway {
    No,
    Forward,
    Backward,
}

fn oneway(value: Option<&str>) -> Option<Oneway> {
    match value? {
        "yes" | "true" | "1" => Some(Oneway::Forward),
        "-1" | "reverse" => Some(Oneway::Backward),
        "no" | "false" | "0" => Some(Oneway::No),
        _ => None, // reversible and alternating ones are open one way or the other: we cannot know
    }
}

/// Escalators go one way for those on foot.
fn conveying(tags: Tags<'_>) -> Option<&str> {
    match tags.value("conveying")? {
        "forward" => Some("yes"),
        "backward" => Some("-1"),
        _ => None,
    }
}

fn bicycle_oneway(tags: Tags<'_>, way: Oneway) -> Option<Oneway> {
    if let Some(own) = oneway(tags.value("oneway:bicycle")) {
        return Some(own);
    }
    let goes_against = |value: &str| value.starts_with("opposite");
    let lanes = ["cycleway", "cycleway:left", "cycleway:right", "cycleway:both"];
    if lanes.iter().any(|key| tags.value(key).is_some_and(goes_against)) {
        return Some(Oneway::No);
    }
    let sides = ["cycleway:left", "cycleway:right", "cycleway:both"];
    let against = if way == Oneway::Backward { "yes" } else { "-1" };
    let has_lane_against = sides.iter().any(|side| {
        let direction = tags.0.iter().find(|(k, _)| k.strip_suffix(":oneway") == Some(side)).map(|(_, v)| *v);
        direction.is_some_and(|v| v == against || v == "no")
    });
    has_lane_against.then_some(Oneway::No)
}

fn direction(
    tags: Tags<'_>,
    class: RoadClass,
    surface: Surface,
    limits: &CountryLimits,
    access: u8,
    suffix: &str,
) -> DirectionTags {
    let own = tags.0.iter().find(|(k, _)| k.strip_suffix(suffix) == Some("maxspeed")).map(|(_, v)| *v);
    let rule =
        || ["maxspeed:type", "source:maxspeed", "zone:maxspeed"].iter().find_map(|key| parse_rule(tags.value(key)?));
    let signed = own.and_then(parse_km_h).or_else(|| tags.value("maxspeed").and_then(parse_km_h)).or_else(rule);
    DirectionTags {
        access,
        car_cm_s: cm_s(car_km_h(class, surface, signed, limits, tags)),
        bicycle_cm_s: cm_s(bicycle_km_h(class, surface, tags)),
        limit_km_h: signed.unwrap_or(0),
    }
}

/// These keys also say things like `sign` or a bare number of unknown meaning; only a country's rule counts.
fn parse_rule(value: &str) -> Option<u8> {
    value.contains(':').then(|| parse_km_h(value)).flatten()
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

/// A ferry's `duration`, as `hh:mm`, `hh:mm:ss` or minutes.
fn ferry_s(tags: Tags<'_>, class: RoadClass) -> u32 {
    let Some(text) = tags.value("duration").filter(|_| class == RoadClass::Ferry) else {
        return 0;
    };
    let mut parts = [0_u32; 3];
    let mut count = 0;
    for part in text.split(':') {
        match (part.trim().parse::<u32>().ok().filter(|n| *n < 10_000), parts.get_mut(count)) {
            (Some(number), Some(slot)) => *slot = number,
            (None, _) | (_, None) => return 0,
        }
        count += 1;
    }
    match count {
        1 => parts[0] * 60,
        _ => parts[0] * 3600 + parts[1] * 60 + parts[2],
    }
}

fn cm_s(km_h: f64) -> u16 {
    (km_h / 0.036).round() as u16 // at most 150 km/h
}

/// Which profiles a barrier on a road's point stops.
pub fn barrier(tags: Tags<'_>) -> u8 {
    let (car, moped, bicycle, foot) =
        (Profile::Car.bit(), Profile::Moped.bit(), Profile::Bicycle.bit(), Profile::Foot.bit());
    let mut stopped = match tags.value("barrier") {
        Some("bollard") if matches!(tags.value("bollard"), Some("rising" | "removable")) => 0,
        Some("bollard" | "block" | "chain" | "jersey_barrier" | "debris" | "planter" | "log" | "rope") => car | moped,
        Some("cycle_barrier" | "motorcycle_barrier" | "bus_trap") => car | moped,
        Some("kissing_gate" | "stile" | "turnstile" | "full-height_turnstile" | "hampshire_gate") => {
            car | moped | bicycle
        }
        Some(_) => 0, // gates, toll booths, kerbs, what a mapper put on the wrong point: one passes, or the tags below say not
        None => return 0,
    };
    for profile in Profile::ALL {
        match most_special(tags, *profile, "") {
            Some(Permission::Closed) => stopped |= profile.bit(),
            Some(Permission::Open | Permission::Private) => stopped &= !profile.bit(),
            None => {}
        }
    }
    debug_assert!(stopped <= car | moped | bicycle | foot);
    stopped
}

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
            (&[("highway", "pedestrian"), ("motor_vehicle", "delivery")], "f", "f"),
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
        let road = of(&[("highway", "service"), ("access", "private")]);

        assert!(Profile::ALL.iter().all(|profile| road.flags.is_private(*profile)));
        assert_eq!(profiles(road.forward.access), "cmbf");
        let tagged = of(&[("highway", "service"), ("access", "private"), ("motor_vehicle", "yes")]);
        assert!(!tagged.flags.is_private(Profile::Car) && tagged.flags.is_private(Profile::Foot));
        let street = of(&[("highway", "residential"), ("motor_vehicle", "destination")]);
        assert!(street.flags.is_private(Profile::Moped) && !street.flags.is_private(Profile::Bicycle));
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
    fn a_barrier_stops_those_it_is_meant_for() {
        let stopped = |tags: &[(&str, &str)]| profiles(barrier(Tags(tags)));

        assert_eq!(stopped(&[("barrier", "bollard")]), "cm");
        assert_eq!(stopped(&[("barrier", "bollard"), ("motor_vehicle", "yes")]), "");
        assert_eq!(stopped(&[("barrier", "gate")]), "");
        assert_eq!(stopped(&[("barrier", "gate"), ("access", "no"), ("foot", "yes")]), "cmb");
        assert_eq!(stopped(&[("barrier", "stile")]), "cmb");
        assert_eq!(stopped(&[("highway", "crossing")]), "");
    }

    #[test]
    fn a_ferry_takes_as_long_as_it_says() {
        let ferry = |duration| of(&[("route", "ferry"), ("duration", duration)]).ferry_s;

        assert_eq!(
            [ferry("00:20"), ferry("25"), ferry("1:30:10"), ferry("PT20M"), ferry("1:2:3:4")],
            [1200, 1500, 5410, 0, 0]
        );
    }
}
