//! Distances on a plane laid against the Earth where we are: within a city that is exact to centimetres. Only `libm` and
//! the operations that IEEE 754 fixes, so that every CPU gets the same bits.

use protocol::Position;

/// Centimetres per 10⁻⁷ degree of latitude: 6,371,008.8 m × π ÷ 180 × 100 ÷ 10⁷.
pub const CM_PER_E7: f64 = 1.111_950_802_335_329_2;

/// A plane that touches the Earth at one latitude, in centimetres east and north.
#[derive(Clone, Copy, Debug)]
pub struct Plane {
    origin: Position,
    east_cm_per_e7: f64,
}

impl Plane {
    pub fn at(origin: Position) -> Plane {
        Plane { origin, east_cm_per_e7: CM_PER_E7 * cos_lat(origin.lat_e7) }
    }

    /// Centimetres east and north of the origin.
    #[inline]
    pub fn to_cm(self, position: Position) -> (f64, f64) {
        let east = f64::from(position.lon_e7) - f64::from(self.origin.lon_e7);
        let north = f64::from(position.lat_e7) - f64::from(self.origin.lat_e7);
        (east * self.east_cm_per_e7, north * CM_PER_E7)
    }

    /// The position that lies so many centimetres east and north.
    pub fn to_position(self, (east_cm, north_cm): (f64, f64)) -> Position {
        let lat = f64::from(self.origin.lat_e7) + north_cm / CM_PER_E7;
        let lon = f64::from(self.origin.lon_e7) + east_cm / self.east_cm_per_e7;
        Position {
            lat_e7: lat.round().clamp(-900_000_000.0, 900_000_000.0) as i32,
            lon_e7: lon.round().clamp(-1_800_000_000.0, 1_800_000_000.0) as i32,
        }
    }

    pub fn east_cm_per_e7(self) -> f64 {
        self.east_cm_per_e7
    }
}

/// Cosine of a latitude, never so small that dividing by it leaves the world of numbers.
pub fn cos_lat(lat_e7: i32) -> f64 {
    libm::cos(f64::from(lat_e7) * 1e-7 * (std::f64::consts::PI / 180.0)).max(1e-6)
}

/// Straight distance in centimetres; meant for distances within a region.
pub fn distance_cm(a: Position, b: Position) -> f64 {
    let middle = ((i64::from(a.lat_e7) + i64::from(b.lat_e7)) / 2) as i32;
    let east = (f64::from(b.lon_e7) - f64::from(a.lon_e7)) * CM_PER_E7 * cos_lat(middle);
    let north = (f64::from(b.lat_e7) - f64::from(a.lat_e7)) * CM_PER_E7;
    (east * east + north * north).sqrt()
}

/// Compass direction from `a` to `b`, in hundredths of a degree, 0 to 35,999.
pub fn heading_cdeg(a: Position, b: Position) -> u16 {
    let middle = ((i64::from(a.lat_e7) + i64::from(b.lat_e7)) / 2) as i32;
    heading_scaled_cdeg(a, b, cos_lat(middle))
}

/// The same where the cosine of the latitude is at hand.
#[inline]
pub(crate) fn heading_scaled_cdeg(a: Position, b: Position, cos_lat: f64) -> u16 {
    let east = (f64::from(b.lon_e7) - f64::from(a.lon_e7)) * cos_lat;
    let north = f64::from(b.lat_e7) - f64::from(a.lat_e7);
    let (long, short) = (east.abs().max(north.abs()), east.abs().min(north.abs()));
    let corner = if long > 0.0 { arc_tangent(short / long) } else { 0.0 };
    let from_north = if east.abs() > north.abs() { 9_000.0 - corner } else { corner };
    let cdeg = match (east >= 0.0, north >= 0.0) {
        (true, true) => from_north,
        (true, false) => 18_000.0 - from_north,
        (false, false) => 18_000.0 + from_north,
        (false, true) => 36_000.0 - from_north,
    };
    (cdeg + 0.5) as u16 % 36_000
}

/// Of a number from 0 to 1, in hundredths of a degree; wrong by less than 0.02 of one. The polynomial is Abramowitz
/// and Stegun's 4.4.49: the exact function would take half of a search's time.
#[inline]
fn arc_tangent(x: f64) -> f64 {
    const CDEG: f64 = 18_000.0 / std::f64::consts::PI;
    let s = x * x;
    let tail = 0.075_289_640_0 + s * (-0.042_909_613_8 + s * (0.016_165_736_7 - s * 0.002_866_225_7));
    let sum = 1.0
        + s * (-0.333_331_452_8 + s * (0.199_935_508_5 + s * (-0.142_088_994_4 + s * (0.106_562_639_3 - s * tail))));
    x * sum * CDEG
}

/// To the nearest whole number, halves away from zero: what `f64::round` does, without the call that it is on
/// processors of the oldest kind.
#[inline]
pub(crate) fn whole(x: f64) -> i32 {
    (x + if x < 0.0 { -0.5 } else { 0.5 }) as i32
}

/// The smaller angle between two compass directions, in hundredths of a degree, 0 to 18,000.
pub fn turn_cdeg(a_cdeg: u16, b_cdeg: u16) -> u16 {
    let apart = (i32::from(a_cdeg) - i32::from(b_cdeg)).rem_euclid(36_000);
    apart.min(36_000 - apart) as u16
}

/// A box on the map; both corners belong to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Bbox {
    pub south_west: Position,
    pub north_east: Position,
}

impl Bbox {
    /// The smallest box around some positions; None if there are none.
    pub fn around(positions: impl IntoIterator<Item = Position>) -> Option<Bbox> {
        positions.into_iter().fold(None, |bbox, p| match bbox {
            None => Some(Bbox { south_west: p, north_east: p }),
            Some(b) => Some(Bbox {
                south_west: Position {
                    lat_e7: b.south_west.lat_e7.min(p.lat_e7),
                    lon_e7: b.south_west.lon_e7.min(p.lon_e7),
                },
                north_east: Position {
                    lat_e7: b.north_east.lat_e7.max(p.lat_e7),
                    lon_e7: b.north_east.lon_e7.max(p.lon_e7),
                },
            }),
        })
    }

    pub fn contains(&self, p: Position) -> bool {
        (self.south_west.lat_e7..=self.north_east.lat_e7).contains(&p.lat_e7)
            && (self.south_west.lon_e7..=self.north_east.lon_e7).contains(&p.lon_e7)
    }

    pub fn centre(&self) -> Position {
        Position {
            lat_e7: ((i64::from(self.south_west.lat_e7) + i64::from(self.north_east.lat_e7)) / 2) as i32,
            lon_e7: ((i64::from(self.south_west.lon_e7) + i64::from(self.north_east.lon_e7)) / 2) as i32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heading_is_exact_to_a_hundredth_of_a_degree() {
        let at = |lat_e7, lon_e7| Position { lat_e7, lon_e7 };
        for step in 0..3_600 {
            let angle = f64::from(step) * std::f64::consts::PI / 1_800.0;
            let (north, east) = ((angle.cos() * 1e6) as i32, (angle.sin() * 1e6) as i32);
            let exact = f64::from(east).atan2(f64::from(north)).to_degrees().rem_euclid(360.0) * 100.0;

            let heading = heading_scaled_cdeg(at(0, 0), at(north, east), 1.0);

            assert!(turn_cdeg(heading, exact.round() as u16 % 36_000) <= 1, "{step}: {heading} {exact}");
        }
        assert_eq!(heading_cdeg(at(5, 5), at(5, 5)), 0);
    }

    #[test]
    fn a_degree_is_as_long_as_the_earth_says() {
        let porto = Position::from_degrees(41.15, -8.61).unwrap();
        let north = Position::from_degrees(42.15, -8.61).unwrap();
        let east = Position::from_degrees(41.15, -7.61).unwrap();

        assert!((distance_cm(porto, north) / 100.0 - 111_195.0).abs() < 1.0);
        assert!((distance_cm(porto, east) / 100.0 - 83_731.0).abs() < 10.0);
        let plane = Plane::at(porto);
        assert_eq!(plane.to_position(plane.to_cm(east)), east);
    }
}
