//! A place on Earth as two integers: 10⁻⁷ degree is about a centimetre, and integers are the same on every CPU.

use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

/// WGS 84, in units of 10⁻⁷ degree.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize, SchemaWrite, SchemaRead,
)]
pub struct Position {
    pub lat_e7: i32,
    pub lon_e7: i32,
}

impl Position {
    /// None if it is not a place on Earth.
    pub fn from_degrees(lat: f64, lon: f64) -> Option<Self> {
        let inside = (-90.0..=90.0).contains(&lat) && (-180.0..=180.0).contains(&lon);
        inside.then(|| Position { lat_e7: (lat * 1e7).round() as i32, lon_e7: (lon * 1e7).round() as i32 })
    }

    pub fn lat(self) -> f64 {
        f64::from(self.lat_e7) / 1e7
    }

    pub fn lon(self) -> f64 {
        f64::from(self.lon_e7) / 1e7
    }

    pub fn is_on_earth(self) -> bool {
        self.lat_e7.unsigned_abs() <= 900_000_000 && self.lon_e7.unsigned_abs() <= 1_800_000_000
    }
}
