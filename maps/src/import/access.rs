//! Who may use a road or pass a barrier, from the access tags: for each profile the most special key that says something
//! counts, a direction's own key most of all. A value may be a list: one open word opens, else one limited word limits,
//! else it is closed. A word that nobody here knows closes where the key is a vehicle's (`motor_vehicle=tractors` is a
//! sign, whatever it means), says nothing elsewhere, and is counted.

use super::tags::Tags;
use crate::class::{Profile, RoadClass};

/// Two masks of profiles.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Access {
    /// Who may go there at all.
    pub open: u8,
    /// Those of them who may only with business there: to get to a place behind, never to drive through.
    pub limited: u8,
}

/// What a barrier does to those who come to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Barrier {
    pub stopped: u8,
    /// Opens only for those who have business behind it.
    pub limited: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Permission {
    Open,
    Limited,
    Closed,
}

/// What one value says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Said {
    Known(Permission),
    Unknown,
    Nothing,
}

/// What the most special key says, and whether it is a key of its own rather than plain `access`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct MostSpecial {
    permission: Permission,
    is_own_key: bool,
}

fn word(value: &str) -> Said {
    match value {
        "yes" | "designated" | "permissive" | "official" | "public" | "dismount" | "allowed" | "permitted"
        | "discouraged" | "optional_sidepath" | "true" | "1" => Said::Known(Permission::Open),
        "private" | "customers" | "customer" | "delivery" | "deliveries" | "destination" | "permit"
        | "permit_holders" | "residents" | "resident" | "employees" | "staff" | "members" | "guests" | "visitors"
        | "loading" | "tenants" => Said::Known(Permission::Limited),
        "no" | "none" | "agricultural" | "forestry" | "emergency" | "military" | "psv" | "bus" | "taxi"
        | "use_sidepath" | "hgv" | "goods" | "coach" | "tourist_bus" | "hov" | "restricted" | "closed"
        | "impassable" | "service" | "maintenance" | "police" | "tram" | "construction" | "false" | "0" => {
            Said::Known(Permission::Closed)
        }
        "" | "unknown" | "unspecified" | "variable" | "fixme" => Said::Nothing,
        _ => Said::Unknown,
    }
}

/// A value or a list of values, in any letter case.
fn said(value: &str) -> Said {
    let mut whole = Said::Nothing;
    for part in value.split([';', ',']) {
        let part = part.trim();
        let one =
            if part.bytes().any(|b| b.is_ascii_uppercase()) { word(&part.to_ascii_lowercase()) } else { word(part) };
        if rank(one) > rank(whole) {
            whole = one;
        }
    }
    whole
}

/// Which of a list's words counts.
fn rank(said: Said) -> u8 {
    match said {
        Said::Nothing => 0,
        Said::Unknown => 1,
        Said::Known(Permission::Closed) => 2,
        Said::Known(Permission::Limited) => 3,
        Said::Known(Permission::Open) => 4,
    }
}

/// The keys that speak of a profile, the most special last.
fn keys(profile: Profile) -> &'static [&'static str] {
    match profile {
        Profile::Car => &["access", "vehicle", "motor_vehicle", "motorcar"],
        Profile::Moped => &["access", "vehicle", "motor_vehicle", "moped"],
        Profile::Bicycle => &["access", "vehicle", "bicycle"],
        Profile::Foot => &["access", "foot"],
    }
}

fn is_vehicles(key: &str) -> bool {
    !matches!(key, "access" | "foot")
}

fn most_special(tags: Tags<'_>, profile: Profile, suffix: &str) -> Option<MostSpecial> {
    let mut found = None;
    for key in keys(profile) {
        let permission = match tags.suffixed(key, suffix).map_or(Said::Nothing, said) {
            Said::Known(permission) => permission,
            Said::Unknown if is_vehicles(key) => Permission::Closed,
            Said::Unknown | Said::Nothing => continue,
        };
        let is_own_key = *key != "access";
        // `access=yes` says less than the kind of road does: it opens no motorway to those on foot.
        if is_own_key || permission != Permission::Open {
            found = Some(MostSpecial { permission, is_own_key });
        }
    }
    found
}

/// Who may use the way, whichever direction. `usual` may where no tag says more.
pub fn of_road(tags: Tags<'_>, usual: u8) -> Access {
    let mut access = Access { open: usual, limited: 0 };
    for profile in Profile::ALL {
        access.note(*profile, most_special(tags, *profile, ""));
    }
    access
}

/// The same for one direction (`:forward`, `:backward`), where its own keys say more.
pub fn of_direction(tags: Tags<'_>, suffix: &str, of_road: Access) -> Access {
    let mut access = of_road;
    for profile in Profile::ALL {
        access.note(*profile, most_special(tags, *profile, suffix));
    }
    access
}

impl Access {
    fn note(&mut self, profile: Profile, said: Option<MostSpecial>) {
        let bit = profile.bit();
        match said {
            None => {}
            Some(MostSpecial { permission: Permission::Open, .. }) => {
                self.open |= bit;
                self.limited &= !bit;
            }
            // A vehicle's own key opens what its kind of road closes: that is where couriers work. A private way
            // stays of its kind: `access=private` opens no footway to cars.
            Some(MostSpecial { permission: Permission::Limited, is_own_key }) => {
                self.open |= if is_own_key { bit } else { 0 };
                self.limited |= self.open & bit;
            }
            Some(MostSpecial { permission: Permission::Closed, .. }) => {
                self.open &= !bit;
                self.limited &= !bit;
            }
        }
    }
}

/// What a barrier on a road's point does; nothing for a point that is none.
pub fn barrier(tags: Tags<'_>) -> Barrier {
    let Some(kind) = tags.value("barrier") else {
        return Barrier::default();
    };
    let mut barrier = Barrier { stopped: usually_stopped(kind, tags), limited: 0 };
    if tags.is("locked", "yes") {
        barrier.limited = !barrier.stopped & EVERYBODY & !Profile::Foot.bit();
    }
    for profile in Profile::ALL {
        let bit = profile.bit();
        match most_special(tags, *profile, "").map(|said| said.permission) {
            None => continue,
            Some(Permission::Closed) => barrier = Barrier { stopped: barrier.stopped | bit, ..barrier },
            Some(Permission::Open) => {
                barrier = Barrier { stopped: barrier.stopped & !bit, limited: barrier.limited & !bit }
            }
            Some(Permission::Limited) => {
                barrier = Barrier { stopped: barrier.stopped & !bit, limited: barrier.limited | bit }
            }
        }
    }
    barrier.limited &= !barrier.stopped;
    barrier
}

/// Whom a kind of barrier stops where no tag says more.
fn usually_stopped(kind: &str, tags: Tags<'_>) -> u8 {
    let motor = Profile::Car.bit() | Profile::Moped.bit();
    match kind {
        "bollard" if matches!(tags.value("bollard"), Some("rising" | "removable")) => 0,
        "bollard" | "block" | "chain" | "jersey_barrier" | "debris" | "planter" | "log" | "rope" => motor,
        "cycle_barrier" | "motorcycle_barrier" | "bus_trap" => motor,
        "kissing_gate" | "stile" | "turnstile" | "full-height_turnstile" | "hampshire_gate" | "wicket_gate" => {
            motor | Profile::Bicycle.bit()
        }
        _ => 0, // gates, toll booths, kerbs, what a mapper put on the wrong point: one passes, or other tags say not
    }
}

/// The first access tag whose value is not known here, as `key=value`.
pub fn unknown(tags: Tags<'_>) -> Option<String> {
    let is_ours = |key: &str| {
        let base = key.strip_suffix(":forward").or_else(|| key.strip_suffix(":backward")).unwrap_or(key);
        Profile::ALL.iter().any(|profile| keys(*profile).contains(&base))
    };
    let (key, value) = tags.0.iter().find(|(key, value)| is_ours(key) && said(value) == Said::Unknown)?;
    Some(format!("{key}={value}"))
}

/// Which profiles may use a kind of road where no tag says more.
pub fn usual(class: RoadClass) -> u8 {
    let (car, bicycle, foot) = (Profile::Car.bit(), Profile::Bicycle.bit(), Profile::Foot.bit());
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
        | RoadClass::Ferry => EVERYBODY,
        RoadClass::Cycleway | RoadClass::Path => bicycle | foot,
        RoadClass::Pedestrian | RoadClass::Footway | RoadClass::Steps => foot,
    }
}

const EVERYBODY: u8 = 0x0f;

#[cfg(test)]
mod tests {
    use super::*;

    fn profiles(mask: u8) -> String {
        Profile::ALL.iter().filter(|p| mask & p.bit() != 0).map(|p| &p.as_str()[..1]).collect()
    }

    #[test]
    fn a_list_is_as_open_as_its_most_open_word() {
        type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a str);
        let cases: &[Case] = &[
            (&[("motor_vehicle", "agricultural;forestry")], "bf", ""),
            (&[("motor_vehicle", "agricultural; destination")], "cmbf", "cm"),
            (&[("motor_vehicle", "delivery;yes")], "cmbf", ""),
            (&[("motor_vehicle", "No;Agricultural")], "bf", ""),
            (&[("access", "Private")], "cmbf", "cmbf"),
            (&[("access", "agricultural;forestry")], "", ""),
            (&[("access", "no"), ("bicycle", "YES;designated")], "b", ""),
            (&[("vehicle", "destination"), ("bicycle", "yes")], "cmbf", "cm"),
            (&[("motor_vehicle", ";")], "cmbf", ""),
            // What nobody knows closes where the key is a vehicle's.
            (&[("motor_vehicle", "tractors")], "bf", ""),
            (&[("motorcar", "tractors")], "mbf", ""),
            (&[("access", "tractors")], "cmbf", ""),
            (&[("foot", "tractors")], "cmbf", ""),
            (&[("motor_vehicle", "tractors;yes")], "cmbf", ""),
            (&[("motor_vehicle", "unknown")], "cmbf", ""),
        ];

        for (tags, open, limited) in cases {
            let access = of_road(Tags(tags), usual(RoadClass::Residential));
            assert_eq!(
                (profiles(access.open), profiles(access.limited)),
                (open.to_string(), limited.to_string()),
                "{tags:?}"
            );
        }
    }

    #[test]
    fn a_vehicles_own_key_opens_a_pedestrian_street_for_its_ends() {
        let of = |tags: &[(&str, &str)], class| {
            let access = of_road(Tags(tags), usual(class));
            (profiles(access.open), profiles(access.limited))
        };

        for value in ["delivery", "destination", "private", "customers", "permit", "residents", "delivery;permit"] {
            let own = of(&[("motor_vehicle", value)], RoadClass::Pedestrian);
            assert_eq!(own, ("cmf".to_owned(), "cm".to_owned()), "{value}");
            let plain = of(&[("access", value)], RoadClass::Pedestrian);
            assert_eq!(plain, ("f".to_owned(), "f".to_owned()), "{value}");
        }
        assert_eq!(of(&[("motorcar", "delivery")], RoadClass::Path), ("cbf".to_owned(), "c".to_owned()));
        assert_eq!(of(&[("vehicle", "delivery")], RoadClass::Footway), ("cmbf".to_owned(), "cmb".to_owned()));
        assert_eq!(of(&[("bicycle", "permit")], RoadClass::Footway), ("bf".to_owned(), "b".to_owned()));
    }

    #[test]
    fn a_direction_has_its_own_keys() {
        let road = of_road(Tags(&[]), usual(RoadClass::Residential));
        let tags = Tags(&[
            ("motor_vehicle:forward", "agricultural;forestry"),
            ("motor_vehicle:backward", "destination"),
            ("bicycle:backward", "no"),
        ]);

        let (forward, backward) = (of_direction(tags, ":forward", road), of_direction(tags, ":backward", road));

        assert_eq!((profiles(forward.open), profiles(forward.limited)), ("bf".to_owned(), String::new()));
        assert_eq!((profiles(backward.open), profiles(backward.limited)), ("cmf".to_owned(), "cm".to_owned()));
    }

    #[test]
    fn a_barrier_stops_those_it_is_meant_for() {
        let of = |tags: &[(&str, &str)]| {
            let barrier = barrier(Tags(tags));
            (profiles(barrier.stopped), profiles(barrier.limited))
        };
        let both = |stopped: &str, limited: &str| (stopped.to_owned(), limited.to_owned());

        assert_eq!(of(&[("barrier", "bollard")]), both("cm", ""));
        assert_eq!(of(&[("barrier", "bollard"), ("motor_vehicle", "yes")]), both("", ""));
        assert_eq!(of(&[("barrier", "bollard"), ("motor_vehicle", "permit")]), both("", "cm"));
        assert_eq!(of(&[("barrier", "gate")]), both("", ""));
        assert_eq!(of(&[("barrier", "gate"), ("access", "private")]), both("", "cmbf"));
        assert_eq!(of(&[("barrier", "gate"), ("access", "private"), ("foot", "yes")]), both("", "cmb"));
        assert_eq!(of(&[("barrier", "gate"), ("locked", "yes")]), both("", "cmb"));
        assert_eq!(of(&[("barrier", "gate"), ("motor_vehicle", "agricultural;forestry")]), both("cm", ""));
        assert_eq!(of(&[("barrier", "gate"), ("access", "no"), ("foot", "yes")]), both("cmb", ""));
        assert_eq!(of(&[("barrier", "lift_gate"), ("motor_vehicle", "tractors")]), both("cm", ""));
        assert_eq!(of(&[("barrier", "stile")]), both("cmb", ""));
        assert_eq!(of(&[("highway", "crossing"), ("bicycle", "no")]), both("", ""));
    }

    #[test]
    fn what_is_not_known_is_named() {
        assert_eq!(
            unknown(Tags(&[("motor_vehicle", "yes"), ("vehicle", "tractors")])).as_deref(),
            Some("vehicle=tractors")
        );
        assert_eq!(unknown(Tags(&[("bicycle:forward", "tandem")])).as_deref(), Some("bicycle:forward=tandem"));
        assert_eq!(unknown(Tags(&[("motor_vehicle", "no;tractors"), ("hgv", "tractors")])), None);
    }
}
