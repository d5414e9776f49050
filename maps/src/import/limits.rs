//! Speed limits as they are written in the tags of a way: numbers with or without a unit, a country's rule by name
//! (`DE:urban`), or nothing, and then the country's default for that kind of road.

use crate::class::RoadClass;

/// A country's limits in km/h: in town, outside, on motorways, in living streets.
#[derive(Clone, Copy, Debug)]
pub struct CountryLimits {
    code: &'static str,
    urban: u8,
    rural: u8,
    motorway: u8,
    living: u8,
}

/// What a value says of a limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    KmH(u8),
    /// Nothing that could be read, or that there is a sign which changes.
    Nothing,
    /// A rule of a country by name, of which one or the other is not known here.
    UnknownRule,
}

impl CountryLimits {
    /// The limits of a country by its ISO 3166-1 code; the world's usual ones for a country that is not listed.
    pub fn of(code: &str) -> &'static CountryLimits {
        CountryLimits::listed(code).unwrap_or(&WORLD)
    }

    /// Of a country or a region of one (`BE-VLG`), in any letter case; a region that is not listed has its country's.
    fn listed(code: &str) -> Option<&'static CountryLimits> {
        let find = |code: &str| COUNTRIES.iter().find(|c| c.code.eq_ignore_ascii_case(code));
        let code = if code.eq_ignore_ascii_case("UK") { "GB" } else { code };
        find(code).or_else(|| find(code.split_once('-')?.0))
    }

    pub fn bicycle_road_km_h(&self) -> u8 {
        30 // in every country that has them
    }

    /// The codes of all countries that are listed.
    pub fn codes() -> impl Iterator<Item = &'static str> {
        COUNTRIES.iter().map(|country| country.code).filter(|code| code.len() == 2)
    }

    /// What a way without a sign allows; None where the kind of road decides alone.
    pub fn default_km_h(&self, class: RoadClass) -> Option<u8> {
        match class {
            RoadClass::Motorway | RoadClass::MotorwayLink => Some(self.motorway),
            RoadClass::LivingStreet => Some(self.living),
            RoadClass::Trunk | RoadClass::TrunkLink => Some(self.rural),
            RoadClass::Primary
            | RoadClass::PrimaryLink
            | RoadClass::Secondary
            | RoadClass::SecondaryLink
            | RoadClass::Tertiary
            | RoadClass::TertiaryLink
            | RoadClass::Unclassified
            | RoadClass::Residential => Some(self.urban),
            RoadClass::Service
            | RoadClass::Pedestrian
            | RoadClass::Track
            | RoadClass::Cycleway
            | RoadClass::Footway
            | RoadClass::Path
            | RoadClass::Steps
            | RoadClass::Ferry => None,
        }
    }

    fn by_rule(&self, rule: &str) -> Option<u8> {
        match rule {
            "urban" | "nsl_restricted" | "urban_primary" | "urban_secondary" | "urban_trunk" | "city" => {
                Some(self.urban)
            }
            "rural" | "nsl_single" | "rural_primary" | "rural_secondary" => Some(self.rural),
            "nsl_dual" => Some(self.motorway), // Britain's dual carriageways
            "trunk" => Some(self.rural),
            "motorway" | "urban_motorway" | "expressway" => Some(self.motorway),
            "living_street" | "pedestrian_zone" | "shared_zone" => Some(self.living),
            "bicycle_road" | "cyclestreet" | "cycle_street" | "bicycle_street" => Some(self.bicycle_road_km_h()),
            "school" => Some(30),
            "walk" => Some(WALK_KM_H),
            "none" => Some(NO_LIMIT_KM_H),
            zone => {
                let number = zone.strip_prefix("zone").unwrap_or(zone).trim_start_matches([':', '_', ' ']);
                number_km_h(number)
            }
        }
    }
}

/// A limit as it is written: a number, a rule by name, or neither. Of a list the first counts that says something.
pub fn parse_limit(text: &str) -> Limit {
    let all = text.split(';').map(|part| parse_one(part.trim()));
    all.reduce(|first, next| if first == Limit::Nothing { next } else { first }).unwrap_or(Limit::Nothing)
}

fn parse_one(text: &str) -> Limit {
    let text = text.to_ascii_lowercase();
    if let Some((country, rule)) = text.split_once(':') {
        let km_h = CountryLimits::listed(country.trim()).and_then(|limits| limits.by_rule(rule.trim()));
        return km_h.filter(|km_h| *km_h > 0).map_or(Limit::UnknownRule, Limit::KmH);
    }
    let km_h = match text.as_str() {
        "walk" | "walking_pace" => Some(WALK_KM_H),
        "none" | "unlimited" => Some(NO_LIMIT_KM_H),
        number => number_km_h(number),
    };
    km_h.map_or(Limit::Nothing, Limit::KmH)
}

fn number_km_h(text: &str) -> Option<u8> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | ',')).unwrap_or(text.len());
    let number: f64 = text[..digits].replace(',', ".").parse().ok()?;
    let km_h = match text[digits..].trim() {
        "" | "km/h" | "kmh" | "kph" | "kmph" => number,
        "mph" | "mi/h" => number * 1.609_344,
        "knots" | "knot" | "kn" => number * 1.852,
        _ => return None,
    };
    (1.0..=f64::from(NO_LIMIT_KM_H)).contains(&km_h.round()).then(|| km_h.round() as u8)
}

const WALK_KM_H: u8 = 7;
const NO_LIMIT_KM_H: u8 = 150;

const fn limits(code: &'static str, urban: u8, rural: u8, motorway: u8, living: u8) -> CountryLimits {
    CountryLimits { code, urban, rural, motorway, living }
}

const WORLD: CountryLimits = limits("", 50, 90, 120, 20);

/// From the OpenStreetMap wiki's table of default speed limits, rounded to whole km/h.
const COUNTRIES: &[CountryLimits] = &[
    limits("AR", 40, 110, 130, 20),
    limits("AT", 50, 100, 130, 20),
    limits("AU", 50, 100, 110, 10),
    limits("BE", 50, 70, 120, 20),
    limits("BE-BRU", 30, 70, 120, 20),
    limits("BE-VLG", 50, 70, 120, 20),
    limits("BE-WAL", 50, 90, 120, 20),
    limits("BG", 50, 90, 140, 20),
    limits("BR", 60, 100, 110, 20),
    limits("CA", 50, 80, 100, 20),
    limits("CH", 50, 80, 120, 20),
    limits("CN", 50, 70, 120, 20),
    limits("CZ", 50, 90, 130, 20),
    limits("DE", 50, 100, 130, 7),
    limits("DK", 50, 80, 130, 15),
    limits("EE", 50, 90, 110, 20),
    limits("ES", 50, 90, 120, 20),
    limits("FI", 50, 80, 120, 20),
    limits("FR", 50, 80, 130, 20),
    limits("GB", 48, 97, 113, 20),
    limits("GB-WLS", 32, 97, 113, 20),
    limits("GR", 50, 90, 130, 20),
    limits("HR", 50, 90, 130, 10),
    limits("HU", 50, 90, 130, 20),
    limits("IE", 50, 80, 120, 20),
    limits("IN", 50, 80, 100, 20),
    limits("IT", 50, 90, 130, 20),
    limits("JP", 40, 60, 100, 20),
    limits("LT", 50, 90, 130, 20),
    limits("LU", 50, 90, 130, 20),
    limits("LV", 50, 90, 110, 20),
    limits("MC", 50, 50, 50, 20),
    limits("MT", 50, 80, 80, 20),
    limits("MX", 40, 80, 110, 20),
    limits("NL", 50, 80, 100, 15),
    limits("NO", 50, 80, 110, 10),
    limits("NZ", 50, 100, 100, 10),
    limits("PL", 50, 90, 140, 20),
    limits("PT", 50, 90, 120, 20),
    limits("RO", 50, 90, 130, 20),
    limits("RS", 50, 80, 130, 10),
    limits("RU", 60, 90, 110, 20),
    limits("SE", 50, 70, 110, 7),
    limits("SI", 50, 90, 130, 10),
    limits("SK", 50, 90, 130, 20),
    limits("TR", 50, 90, 120, 20),
    limits("UA", 50, 90, 130, 20),
    limits("US", 40, 89, 105, 24),
    limits("ZA", 60, 100, 120, 20),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_read_in_every_unit_and_by_rule() {
        let cases: &[(&str, Option<u8>)] = &[
            ("50", Some(50)),
            ("30 mph", Some(48)),
            ("30mph", Some(48)),
            ("30 MPH", Some(48)),
            ("50 km/h", Some(50)),
            ("12,5", Some(13)),
            ("10 knots", Some(19)),
            ("80;60", Some(80)),
            ("signals;60", Some(60)),
            ("PT:urban", Some(50)),
            ("pt:Urban", Some(50)),
            ("RU:urban", Some(60)),
            ("DE:zone:30", Some(30)),
            ("DE:zone30", Some(30)),
            ("DE:30", Some(30)),
            ("GB:20 mph", Some(32)),
            ("DE:motorway", Some(130)),
            ("DE:bicycle_road", Some(30)),
            ("BE:cyclestreet", Some(30)),
            ("DE:living_street", Some(7)),
            ("GB:nsl_dual", Some(113)),
            ("UK:nsl_dual", Some(113)),
            ("GB:nsl_single", Some(97)),
            ("GB:nsl_restricted", Some(48)),
            ("GB-WLS:nsl_restricted", Some(32)),
            ("BE-VLG:rural", Some(70)),
            ("BE-WAL:rural", Some(90)),
            ("BE-BRU:urban", Some(30)),
            ("DE-BY:rural", Some(100)),
            ("none", Some(150)),
            ("walk", Some(7)),
            ("Walk", Some(7)),
            ("signals", None),
            ("variable", None),
            ("XX:urban", None),
            ("DE:strange", None),
            ("DE:0", None),
            ("", None),
            ("0", None),
            ("-5", None),
            ("9999999999999999999999", None),
            ("50 furlongs", None),
            ("é", None),
            ("é:é", None),
        ];

        for (text, km_h) in cases {
            let read = match parse_limit(text) {
                Limit::KmH(km_h) => Some(km_h),
                Limit::Nothing | Limit::UnknownRule => None,
            };
            assert_eq!(read, *km_h, "{text}");
        }
        assert_eq!(parse_limit("XX:urban"), Limit::UnknownRule);
        assert_eq!(parse_limit("signals"), Limit::Nothing);
    }
}
