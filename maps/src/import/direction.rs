//! Which way a street may be travelled, for each profile by the most special of its keys. A reversible street leads one
//! way or the other and nobody here knows which: whoever drives has it as limited, for ends there only. An alternating
//! one is open both ways, each in its turn.

use super::access::{self, Access};
use super::tags::Tags;
use crate::class::{Profile, RoadClass};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Oneway {
    No,
    Forward,
    Backward,
    Reversible,
}

/// Who may go along and against the way's points.
pub fn directions(tags: Tags<'_>, class: RoadClass, of_road: Access) -> [Access; 2] {
    let implied = super::tags::is_roundabout(tags) || class == RoadClass::Motorway;
    let way = oneway(tags, "oneway").unwrap_or(if implied { Oneway::Forward } else { Oneway::No });
    let mut both = [of_road, of_road];
    for profile in Profile::ALL {
        let bit = profile.bit();
        match of_profile(tags, *profile, way) {
            Oneway::No => {}
            Oneway::Forward => both[1].close(bit),
            Oneway::Backward => both[0].close(bit),
            Oneway::Reversible => both.iter_mut().for_each(|access| access.limited |= access.open & bit),
        }
    }
    [access::of_direction(tags, ":forward", both[0]), access::of_direction(tags, ":backward", both[1])]
}

impl Access {
    fn close(&mut self, bit: u8) {
        self.open &= !bit;
        self.limited &= !bit;
    }
}

fn of_profile(tags: Tags<'_>, profile: Profile, way: Oneway) -> Oneway {
    let said = |keys: &[&str]| keys.iter().find_map(|key| oneway(tags, key));
    let own = match profile {
        Profile::Car => said(&["oneway:motorcar", "oneway:motor_vehicle", "oneway:vehicle"]),
        Profile::Moped => said(&["oneway:moped", "oneway:mofa", "oneway:motor_vehicle", "oneway:vehicle"]),
        Profile::Bicycle => {
            said(&["oneway:bicycle"]).or_else(|| lane_against(tags, way)).or_else(|| said(&["oneway:vehicle"]))
        }
        Profile::Foot => return said(&["oneway:foot"]).or_else(|| conveying(tags)).unwrap_or(Oneway::No),
    };
    own.unwrap_or(way)
}

fn oneway(tags: Tags<'_>, key: &str) -> Option<Oneway> {
    let value = tags.value(key)?;
    value.split(';').find_map(|part| match part.trim().to_ascii_lowercase().as_str() {
        "yes" | "true" | "1" | "forward" => Some(Oneway::Forward),
        "-1" | "reverse" | "backward" | "opposite" => Some(Oneway::Backward),
        "no" | "false" | "0" | "alternating" => Some(Oneway::No),
        "reversible" => Some(Oneway::Reversible),
        _ => None,
    })
}

/// Escalators go one way for those on foot.
fn conveying(tags: Tags<'_>) -> Option<Oneway> {
    match tags.value("conveying")? {
        "forward" => Some(Oneway::Forward),
        "backward" => Some(Oneway::Backward),
        _ => None,
    }
}

/// A lane for bicycles that leads against the traffic.
fn lane_against(tags: Tags<'_>, way: Oneway) -> Option<Oneway> {
    let goes_against = |value: &str| value.starts_with("opposite");
    let lanes = ["cycleway", "cycleway:left", "cycleway:right", "cycleway:both"];
    if lanes.iter().any(|key| tags.value(key).is_some_and(goes_against)) {
        return Some(Oneway::No);
    }
    let sides = ["cycleway:left", "cycleway:right", "cycleway:both"];
    let against = if way == Oneway::Backward { "yes" } else { "-1" };
    let has_lane_against =
        sides.iter().any(|side| tags.suffixed(side, ":oneway").is_some_and(|v| v == against || v == "no"));
    has_lane_against.then_some(Oneway::No)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profiles(mask: u8) -> String {
        Profile::ALL.iter().filter(|p| mask & p.bit() != 0).map(|p| &p.as_str()[..1]).collect()
    }

    #[test]
    fn each_profile_goes_by_its_own_key() {
        type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a str);
        let cases: &[Case] = &[
            (&[("oneway", "yes")], "cmbf", "f"),
            (&[("oneway", "YES")], "cmbf", "f"),
            (&[("oneway", "-1")], "f", "cmbf"),
            (&[("oneway", "alternating")], "cmbf", "cmbf"),
            (&[("oneway:motor_vehicle", "yes")], "cmbf", "bf"),
            (&[("oneway:motorcar", "yes")], "cmbf", "mbf"),
            (&[("oneway:vehicle", "yes")], "cmbf", "f"),
            (&[("oneway:moped", "yes")], "cmbf", "cbf"),
            (&[("oneway:motor_vehicle", "-1")], "bf", "cmbf"),
            (&[("oneway:vehicle", "yes"), ("oneway:bicycle", "no")], "cmbf", "bf"),
            (&[("oneway:vehicle", "yes"), ("oneway:moped", "no")], "cmbf", "mf"),
            (&[("oneway", "yes"), ("oneway:motor_vehicle", "no")], "cmbf", "cmf"),
            (&[("oneway", "yes"), ("oneway:moped", "no")], "cmbf", "mf"),
            (&[("oneway", "yes"), ("bicycle:backward", "yes")], "cmbf", "bf"),
            (&[("oneway", "yes"), ("motor_vehicle:backward", "destination")], "cmbf", "cmf"),
            (&[("oneway", "yes"), ("cycleway:left:oneway", "-1")], "cmbf", "bf"),
            (&[("oneway", "yes"), ("oneway:foot", "yes")], "cmbf", ""),
        ];

        for (tags, forward, backward) in cases {
            let road = access::of_road(Tags(tags), access::usual(RoadClass::Residential));
            let [along, against] = directions(Tags(tags), RoadClass::Residential, road);
            assert_eq!(profiles(along.open), *forward, "{tags:?}");
            assert_eq!(profiles(against.open), *backward, "{tags:?}");
        }
    }

    #[test]
    fn a_reversible_street_is_for_ends_only() {
        let all = Access { open: 0x0f, limited: 0 };
        for (tags, limited) in [
            (&[("oneway", "reversible")][..], "cmb"),
            (&[("oneway", "reversible"), ("oneway:bicycle", "no")], "cm"),
            (&[("oneway:motor_vehicle", "Reversible")], "cm"),
        ] {
            for access in directions(Tags(tags), RoadClass::Secondary, all) {
                assert_eq!((access.open, profiles(access.limited)), (0x0f, limited.to_owned()), "{tags:?}");
            }
        }
    }
}
