//! What a road is and who may use it, as closed lists. Their numbers are written into map files: new ones go at the
//! end, and none is ever used again for something else.

use protocol::record::Vehicle;
use serde::{Deserialize, Serialize};

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[repr(u8)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $name {
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];

            pub const fn number(self) -> u8 {
                self as u8
            }

            pub fn from_number(number: u8) -> Option<Self> {
                Self::ALL.get(usize::from(number)).copied()
            }

            pub const fn as_str(self) -> &'static str {
                match self {
                    $($name::$variant => $text,)*
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|x| x.as_str() == text).ok_or_else(|| format!("{text} is not known here"))
            }
        }
    };
}

numbered!(
    /// The kind of a road, after OpenStreetMap's `highway`, the most important first.
    RoadClass {
        Motorway = "motorway",
        MotorwayLink = "motorway_link",
        Trunk = "trunk",
        TrunkLink = "trunk_link",
        Primary = "primary",
        PrimaryLink = "primary_link",
        Secondary = "secondary",
        SecondaryLink = "secondary_link",
        Tertiary = "tertiary",
        TertiaryLink = "tertiary_link",
        Unclassified = "unclassified",
        Residential = "residential",
        LivingStreet = "living_street",
        Service = "service",
        Pedestrian = "pedestrian",
        Track = "track",
        Cycleway = "cycleway",
        Footway = "footway",
        Path = "path",
        Steps = "steps",
        Ferry = "ferry",
    }
);

numbered!(
    /// Who travels. One map file serves all of them.
    Profile {
        Car = "car",
        Moped = "moped",
        Bicycle = "bicycle",
        Foot = "foot",
    }
);

numbered!(
    /// What a road is made of, as far as it slows down.
    Surface {
        Paved = "paved",
        Cobbled = "cobbled",
        Gravel = "gravel",
        Dirt = "dirt",
    }
);

impl Profile {
    /// The profile's bit in a mask of profiles.
    pub const fn bit(self) -> u8 {
        1 << self.number()
    }
}

impl From<Vehicle> for Profile {
    fn from(vehicle: Vehicle) -> Profile {
        match vehicle {
            Vehicle::Car => Profile::Car,
            Vehicle::Moped => Profile::Moped,
            Vehicle::Bicycle => Profile::Bicycle,
            Vehicle::Foot => Profile::Foot,
        }
    }
}

/// What else is to be known of an edge.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EdgeFlags(pub u16);

impl EdgeFlags {
    pub const TUNNEL: u16 = 1;
    pub const BRIDGE: u16 = 2;
    pub const FERRY: u16 = 4;
    pub const ROUNDABOUT: u16 = 8;
    /// A service road: car park, drive, alley.
    pub const SERVICE: u16 = 16;
    /// Only for motor vehicles with business there: private, customers, delivery, destination.
    pub const PRIVATE: u16 = 32;
    /// Not for cars, though `PRIVATE` for mopeds; and the other way round.
    pub const CAR_FREE: u16 = 8192;
    pub const MOPED_FREE: u16 = 16384;
    /// The same for bicycles, and for those on foot.
    pub const PRIVATE_BICYCLE: u16 = 2048;
    pub const PRIVATE_FOOT: u16 = 4096;
    pub const TOLL: u16 = 64;
    /// Some turn from this edge is forbidden to somebody.
    pub const TURN_FROM: u16 = 128;
    /// Some turn into this edge is forbidden to somebody.
    pub const TURN_INTO: u16 = 256;
    /// One more of the same stretch and direction; see `Graph::is_copy`.
    pub const COPY: u16 = 1024;
    /// The speed comes from a sign rather than from the road's kind.
    pub const SIGNED_SPEED: u16 = 512;

    /// What says that a mask of profiles may go there only with business there.
    pub fn private_to(profiles: u8) -> EdgeFlags {
        let without = |profile: Profile, flag: u16| if profiles & profile.bit() == 0 { flag } else { 0 };
        let with = |profile: Profile, flag: u16| flag & !without(profile, flag);
        let motor = match profiles & (Profile::Car.bit() | Profile::Moped.bit()) {
            0 => 0,
            _ => Self::PRIVATE | without(Profile::Car, Self::CAR_FREE) | without(Profile::Moped, Self::MOPED_FREE),
        };
        EdgeFlags(motor | with(Profile::Bicycle, Self::PRIVATE_BICYCLE) | with(Profile::Foot, Self::PRIVATE_FOOT))
    }

    pub const fn has(self, flag: u16) -> bool {
        self.0 & flag != 0
    }

    pub const fn is_tunnel(self) -> bool {
        self.has(Self::TUNNEL)
    }

    pub const fn is_bridge(self) -> bool {
        self.has(Self::BRIDGE)
    }

    pub const fn is_ferry(self) -> bool {
        self.has(Self::FERRY)
    }

    pub const fn is_roundabout(self) -> bool {
        self.has(Self::ROUNDABOUT)
    }

    pub const fn is_service(self) -> bool {
        self.has(Self::SERVICE)
    }

    /// Whether a profile may go there only if it has business there.
    pub const fn is_private(self, profile: Profile) -> bool {
        match profile {
            Profile::Car => self.0 & (Self::PRIVATE | Self::CAR_FREE) == Self::PRIVATE,
            Profile::Moped => self.0 & (Self::PRIVATE | Self::MOPED_FREE) == Self::PRIVATE,
            Profile::Bicycle => self.has(Self::PRIVATE_BICYCLE),
            Profile::Foot => self.has(Self::PRIVATE_FOOT),
        }
    }
}
