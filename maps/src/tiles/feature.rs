//! What a map shows beside its roads, and which tags make it so. The numbers are written into map files.

use crate::import::tags::Tags;

macro_rules! kinds {
    ($($variant:ident = $number:literal, $layer:literal, $name:literal;)*) => {
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u16)]
        pub enum FeatureKind {
            $($variant = $number,)*
        }

        impl FeatureKind {
            pub const ALL: &'static [FeatureKind] = &[$(FeatureKind::$variant,)*];

            pub fn from_number(number: u16) -> Option<FeatureKind> {
                Self::ALL.iter().copied().find(|kind| *kind as u16 == number)
            }

            /// The tile layer it is drawn in.
            pub const fn layer(self) -> &'static str {
                match self {
                    $(FeatureKind::$variant => $layer,)*
                }
            }

            /// Its `kind` within the layer.
            pub const fn name(self) -> &'static str {
                match self {
                    $(FeatureKind::$variant => $name,)*
                }
            }
        }
    };
}

kinds!(
    Water = 1, "water", "water";
    Sea = 2, "water", "sea";
    River = 10, "water", "river";
    Canal = 11, "water", "canal";
    Stream = 12, "water", "stream";
    Coastline = 13, "water", "coastline";
    Park = 20, "green", "park";
    Wood = 21, "green", "wood";
    Grass = 22, "green", "grass";
    Farmland = 23, "green", "farmland";
    Sand = 24, "green", "sand";
    Cemetery = 25, "green", "cemetery";
    Building = 30, "buildings", "building";
    Rail = 40, "rails", "rail";
    Tram = 41, "rails", "tram";
    City = 50, "places", "city";
    Town = 51, "places", "town";
    Village = 52, "places", "village";
    Suburb = 53, "places", "suburb";
    Neighbourhood = 54, "places", "neighbourhood";
    Island = 55, "places", "island";
);

/// How a feature is drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    Area,
    Line,
    Point,
}

impl FeatureKind {
    pub const fn shape(self) -> Shape {
        match self {
            FeatureKind::Water
            | FeatureKind::Sea
            | FeatureKind::Park
            | FeatureKind::Wood
            | FeatureKind::Grass
            | FeatureKind::Farmland
            | FeatureKind::Sand
            | FeatureKind::Cemetery
            | FeatureKind::Building => Shape::Area,
            FeatureKind::River
            | FeatureKind::Canal
            | FeatureKind::Stream
            | FeatureKind::Coastline
            | FeatureKind::Rail
            | FeatureKind::Tram => Shape::Line,
            FeatureKind::City
            | FeatureKind::Town
            | FeatureKind::Village
            | FeatureKind::Suburb
            | FeatureKind::Neighbourhood
            | FeatureKind::Island => Shape::Point,
        }
    }
}

pub fn of_way(tags: Tags<'_>) -> Option<FeatureKind> {
    of_area(tags).or_else(|| match tags.value("waterway") {
        Some("river") => Some(FeatureKind::River),
        Some("canal") => Some(FeatureKind::Canal),
        Some("stream" | "ditch" | "drain") => Some(FeatureKind::Stream),
        _ => of_line(tags),
    })
}

fn of_line(tags: Tags<'_>) -> Option<FeatureKind> {
    if tags.is("natural", "coastline") {
        return Some(FeatureKind::Coastline);
    }
    let is_hidden = tags.value("tunnel").is_some_and(|v| v != "no") || tags.value("service").is_some();
    match tags.value("railway") {
        Some("rail" | "light_rail" | "narrow_gauge" | "monorail") if !is_hidden => Some(FeatureKind::Rail),
        Some("tram") if !is_hidden => Some(FeatureKind::Tram),
        _ => None,
    }
}

pub fn of_area(tags: Tags<'_>) -> Option<FeatureKind> {
    match tags.value("natural") {
        Some("water" | "bay") => return Some(FeatureKind::Water),
        Some("wood" | "scrub" | "heath") => return Some(FeatureKind::Wood),
        Some("grassland") => return Some(FeatureKind::Grass),
        Some("beach" | "sand") => return Some(FeatureKind::Sand),
        _ => {}
    }
    match tags.value("landuse") {
        Some("reservoir" | "basin") => return Some(FeatureKind::Water),
        Some("forest") => return Some(FeatureKind::Wood),
        Some("grass" | "meadow" | "village_green" | "recreation_ground") => return Some(FeatureKind::Grass),
        Some("farmland" | "orchard" | "vineyard" | "allotments") => return Some(FeatureKind::Farmland),
        Some("cemetery") => return Some(FeatureKind::Cemetery),
        _ => {}
    }
    match tags.value("leisure") {
        Some("park" | "garden" | "nature_reserve" | "golf_course" | "playground") => return Some(FeatureKind::Park),
        Some("pitch") => return Some(FeatureKind::Grass),
        Some("swimming_pool") => return Some(FeatureKind::Water),
        _ => {}
    }
    if matches!(tags.value("waterway"), Some("riverbank" | "dock")) {
        return Some(FeatureKind::Water);
    }
    tags.value("building").filter(|v| *v != "no").map(|_| FeatureKind::Building)
}

/// A way that carries nothing but its course may be part of an area's edge.
pub fn may_be_outline(tags: Tags<'_>) -> bool {
    tags.0
        .iter()
        .all(|(key, _)| matches!(*key, "source" | "note" | "created_by" | "name" | "boundary" | "admin_level" | "type"))
}

pub fn of_node(tags: Tags<'_>) -> Option<FeatureKind> {
    match tags.value("place")? {
        "city" => Some(FeatureKind::City),
        "town" => Some(FeatureKind::Town),
        "village" => Some(FeatureKind::Village),
        "suburb" | "quarter" | "borough" => Some(FeatureKind::Suburb),
        "neighbourhood" | "hamlet" | "locality" => Some(FeatureKind::Neighbourhood),
        "island" | "islet" => Some(FeatureKind::Island),
        _ => None,
    }
}
