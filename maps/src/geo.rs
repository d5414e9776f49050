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
        let east = east_e7(self.origin, position);
        let north = f64::from(position.lat_e7) - f64::from(self.origin.lat_e7);
        (east * self.east_cm_per_e7, north * CM_PER_E7)
    }

    /// The position that lies so many centimetres east and north.
    pub fn to_position(self, (east_cm, north_cm): (f64, f64)) -> Position {
        let lat = f64::from(self.origin.lat_e7) + north_cm / CM_PER_E7;
        let lon = f64::from(self.origin.lon_e7) + east_cm / self.east_cm_per_e7;
        let lon = wrapped_e7(lon.round().clamp(-2.0 * HALF_E7, 2.0 * HALF_E7));
        Position { lat_e7: lat.round().clamp(-900_000_000.0, 900_000_000.0) as i32, lon_e7: lon as i32 }
    }

    pub fn east_cm_per_e7(self) -> f64 {
        self.east_cm_per_e7
    }
}

/// How far east of `a` the longitude of `b` is, the short way round the world.
#[inline]
pub fn east_e7(a: Position, b: Position) -> f64 {
    wrapped_e7(f64::from(b.lon_e7) - f64::from(a.lon_e7))
}

/// The same longitude, or difference of two, between -180 and 180 degrees.
#[inline]
fn wrapped_e7(lon: f64) -> f64 {
    if lon.abs() <= HALF_E7 { lon } else { lon - (2.0 * HALF_E7).copysign(lon) }
}

/// The position a share of the way from `a` to `b`.
#[inline]
pub(crate) fn between(a: Position, b: Position, share: f64) -> Position {
    let lat_e7 = whole(f64::from(a.lat_e7) + (f64::from(b.lat_e7) - f64::from(a.lat_e7)) * share);
    let lon = f64::from(a.lon_e7) + east_e7(a, b) * share;
    Position { lat_e7, lon_e7: whole(wrapped_e7(lon)) }
}

/// Half a turn round the world, in 10⁻⁷ degree.
pub(crate) const HALF_E7: f64 = 1.8e9;

/// Cosine of a latitude, never so small that dividing by it leaves the world of numbers.
pub fn cos_lat(lat_e7: i32) -> f64 {
    libm::cos(f64::from(lat_e7) * 1e-7 * (std::f64::consts::PI / 180.0)).max(1e-6)
}

/// Straight distance in centimetres; meant for distances within a region.
pub fn distance_cm(a: Position, b: Position) -> f64 {
    let middle = ((i64::from(a.lat_e7) + i64::from(b.lat_e7)) / 2) as i32;
    let east = east_e7(a, b) * CM_PER_E7 * cos_lat(middle);
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
    let east = east_e7(a, b) * cos_lat;
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

/// A box on the map; both corners belong to it. One that lies on both sides of the 180th meridian has its western side
/// east of its eastern one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Bbox {
    pub south_west: Position,
    pub north_east: Position,
}

impl Bbox {
    /// The smallest box around some positions; None if there are none.
    pub fn around(positions: impl IntoIterator<Item = Position>) -> Option<Bbox> {
        let mut lat: Option<(i32, i32)> = None;
        // Of all, of those in the east of the world, and of those in its west.
        let mut lon = [(i32::MAX, i32::MIN); 3];
        for p in positions {
            let (low, high) = lat.unwrap_or((p.lat_e7, p.lat_e7));
            lat = Some((low.min(p.lat_e7), high.max(p.lat_e7)));
            for at in [0, if p.lon_e7 >= 0 { 1 } else { 2 }] {
                lon[at] = (lon[at].0.min(p.lon_e7), lon[at].1.max(p.lon_e7));
            }
        }
        let ((south, north), [all, east, west]) = (lat?, lon);
        let wide = |(low, high): (i32, i32)| i64::from(high) - i64::from(low);
        let over_180 = (east.0, west.1);
        let is_over_180 = east.0 <= east.1 && west.0 <= west.1 && wide(over_180) + TURN_E7 < wide(all);
        let (low, high) = if is_over_180 { over_180 } else { all };
        Some(Bbox {
            south_west: Position { lat_e7: south, lon_e7: low },
            north_east: Position { lat_e7: north, lon_e7: high },
        })
    }

    /// Whether it lies on both sides of the 180th meridian.
    pub fn is_over_180(&self) -> bool {
        self.south_west.lon_e7 > self.north_east.lon_e7
    }

    pub fn contains(&self, p: Position) -> bool {
        let (west, east) = (self.south_west.lon_e7, self.north_east.lon_e7);
        let is_between = match self.is_over_180() {
            false => (west..=east).contains(&p.lon_e7),
            true => p.lon_e7 >= west || p.lon_e7 <= east,
        };
        is_between && (self.south_west.lat_e7..=self.north_east.lat_e7).contains(&p.lat_e7)
    }

    pub fn centre(&self) -> Position {
        let lat = (i64::from(self.south_west.lat_e7) + i64::from(self.north_east.lat_e7)) / 2;
        let lon = i64::from(self.south_west.lon_e7) + self.width_e7() / 2;
        let lon = if lon > TURN_E7 / 2 { lon - TURN_E7 } else { lon };
        Position { lat_e7: lat as i32, lon_e7: lon as i32 }
    }

    /// From its western to its eastern side.
    pub fn width_e7(&self) -> i64 {
        let wide = i64::from(self.north_east.lon_e7) - i64::from(self.south_west.lon_e7);
        if wide < 0 { wide + TURN_E7 } else { wide }
    }

    /// West and east in degrees, for who knows no box over the 180th meridian: all longitudes then.
    pub fn plain_lon(&self) -> (f64, f64) {
        if self.is_over_180() { (-180.0, 180.0) } else { (self.south_west.lon(), self.north_east.lon()) }
    }
}

/// Once round the world, in 10⁻⁷ degree.
pub(crate) const TURN_E7: i64 = 3_600_000_000;

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

    #[test]
    fn longitudes_go_on_beyond_180() {
        let at = |lon| Position::from_degrees(-16.79, lon).unwrap();
        let (a, b) = (at(179.99), at(-179.99));

        assert!((distance_cm(a, b) / 100.0 - 2_129.0).abs() < 2.0);
        assert_eq!((heading_cdeg(a, b), heading_cdeg(b, a)), (9_000, 27_000));
        let plane = Plane::at(a);
        assert_eq!(plane.to_position(plane.to_cm(b)), b);
        assert_eq!(between(a, b, 0.25), at(179.995));
        assert_eq!(between(a, b, 0.75), at(-179.995));
    }

    #[test]
    fn a_box_goes_round_the_short_way() {
        let at = |lat, lon| Position::from_degrees(lat, lon).unwrap();
        let fiji = Bbox::around([at(-17.0, 179.0), at(-16.0, -179.5), at(-18.0, 178.0)]).unwrap();

        assert!(fiji.is_over_180());
        assert_eq!((fiji.south_west, fiji.north_east), (at(-18.0, 178.0), at(-16.0, -179.5)));
        assert!(fiji.contains(at(-17.0, 180.0)) && fiji.contains(at(-17.0, -180.0)) && !fiji.contains(at(-17.0, 0.0)));
        assert_eq!(fiji.centre(), at(-17.0, 179.25));
        assert_eq!(fiji.width_e7(), 25_000_000);
        let world = Bbox::around([at(51.0, -0.1), at(-33.0, 151.0), at(37.0, -122.0), at(59.0, 18.0)]).unwrap();
        assert_eq!((world.south_west, world.north_east), (at(-33.0, -122.0), at(59.0, 151.0)));
        let one = Bbox::around([at(1.0, 2.0)]).unwrap();
        assert_eq!((one.south_west, one.centre()), (at(1.0, 2.0), at(1.0, 2.0)));
    }
}
