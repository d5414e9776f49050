//! From degrees to the units of one tile (Web Mercator).

use protocol::Position;

/// Units of a tile, x to the east and y to the south; they may lie outside it.
pub type Point = (i32, i32);

/// Where one tile lies.
pub struct Frame {
    pub zoom: u8,
    x: u32,
    y: u32,
    /// The middle's latitude in degrees, its y, and how y changes there: first, second and third derivative's share.
    middle: [f64; 5],
}

impl Frame {
    pub fn of(zoom: u8, x: u32, y: u32) -> Frame {
        let scale = units(zoom);
        let y_middle = (f64::from(y) + 0.5) * EXTENT;
        let lat = latitude(y_middle / scale);
        let radian = lat.to_radians();
        let (secant, tangent) = (1.0 / libm::cos(radian), libm::tan(radian));
        // y = -scale/2π · ln(tan φ + sec φ), whose derivatives are sec, sec·tan, sec·(tan² + sec²).
        let degree = std::f64::consts::PI / 180.0;
        let factor = -scale / std::f64::consts::TAU;
        let first = factor * secant * degree;
        let second = factor * secant * tangent * degree * degree / 2.0;
        let third = factor * secant * (tangent * tangent + secant * secant) * degree * degree * degree / 6.0;
        Frame { zoom, x, y, middle: [lat, y_middle, first, second, third] }
    }

    pub fn project(&self, lat_e7: i32, lon_e7: i32) -> Point {
        let scale = units(self.zoom);
        let mut east = (f64::from(lon_e7) / 1e7 + 180.0) / 360.0 * scale - f64::from(self.x) * EXTENT;
        // The short way round the world: what lies beyond the 180th meridian is near, too.
        if east > scale / 2.0 + EXTENT {
            east -= scale;
        } else if east < -scale / 2.0 {
            east += scale;
        }
        let south = self.y_of(f64::from(lat_e7) / 1e7) - f64::from(self.y) * EXTENT;
        (whole(east), whole(south))
    }

    /// Exact far out; within some 20 km a cubic is exact to a hundredth of a unit, and ten times as fast.
    fn y_of(&self, lat: f64) -> f64 {
        let [lat_middle, y_middle, first, second, third] = self.middle;
        if self.zoom >= SERIES_ZOOM_MIN && (lat - lat_middle).abs() < SERIES_DEGREES_MAX {
            let d = lat - lat_middle;
            return y_middle + d * (first + d * (second + d * third));
        }
        mercator(lat) * units(self.zoom)
    }

    /// South, west, north and east of the tile with its margin.
    pub fn bbox_e7(&self) -> [i32; 4] {
        let scale = units(self.zoom);
        let margin = f64::from(MARGIN) + 1.0;
        let (left, top) = (f64::from(self.x) * EXTENT - margin, f64::from(self.y) * EXTENT - margin);
        let (right, bottom) = (left + EXTENT + 2.0 * margin, top + EXTENT + 2.0 * margin);
        let lon = |x: f64| ((x / scale * 360.0 - 180.0) * 1e7).clamp(-1.8e9, 1.8e9) as i32;
        let lat = |y: f64| (latitude(y / scale) * 1e7).clamp(-9e8, 9e8) as i32;
        [lat(bottom), lon(left), lat(top), lon(right)]
    }

    /// How many metres a pixel of a 512-pixel tile is.
    pub fn pixel_m(&self) -> f64 {
        40_075_016.7 * libm::cos(self.middle[0].to_radians()) / (512.0 * f64::from(1_u32 << self.zoom))
    }
}

/// The tile that a place lies in, by column and row.
pub fn tile_at(position: Position, zoom: u8) -> (u32, u32) {
    let last = f64::from((1_u64 << zoom) as u32 - 1);
    let scale = last + 1.0;
    let x = (position.lon() + 180.0) / 360.0 * scale;
    let y = mercator(position.lat()) * scale;
    (x.clamp(0.0, last) as u32, y.clamp(0.0, last) as u32)
}

/// Units around the world.
fn units(zoom: u8) -> f64 {
    f64::from(1_u32 << zoom) * EXTENT
}

/// From the north edge of the world, 0, to the south edge, 1.
fn mercator(lat: f64) -> f64 {
    let radian = lat.clamp(-LAT_MAX, LAT_MAX).to_radians();
    (1.0 - libm::log(libm::tan(radian) + 1.0 / libm::cos(radian)) / std::f64::consts::PI) / 2.0
}

fn latitude(y: f64) -> f64 {
    libm::atan(libm::sinh(std::f64::consts::PI * (1.0 - 2.0 * y))).to_degrees()
}

/// Far points are brought near: they are cut off anyway, and products of two must fit.
fn whole(x: f64) -> i32 {
    crate::geo::whole(x.clamp(-FAR, FAR))
}

const EXTENT: f64 = 4096.0;
/// Lines go on so far beyond a tile's edge, so that their caps are not seen.
pub const MARGIN: i32 = 128;
const SERIES_ZOOM_MIN: u8 = 11;
const SERIES_DEGREES_MAX: f64 = 0.2;
const LAT_MAX: f64 = 85.051_128_779_806_6;
const FAR: f64 = 536_870_912.0; // 2²⁹

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_lie_where_every_map_has_them() {
        // 41.15° N, 8.61° W, the middle of Porto, lies in tile 14/7800/6133 by the usual formula,
        // (1 − asinh(tan φ) ÷ π) ÷ 2 of the world from the north.
        let scale = f64::from(1 << 14);
        let x = (-8.61 + 180.0) / 360.0 * scale;
        let y = mercator(41.15) * scale;
        let frame = Frame::of(14, x as u32, y as u32);

        let point = frame.project(411_500_000, -86_100_000);

        assert_eq!((x as u32, y as u32), (7_800, 6_133));
        assert_eq!(tile_at(Position { lat_e7: 411_500_000, lon_e7: -86_100_000 }, 14), (7_800, 6_133));
        assert!((f64::from(point.0) - x.fract() * 4096.0).abs() <= 1.0, "{point:?}");
        assert!((f64::from(point.1) - y.fract() * 4096.0).abs() <= 1.0, "{point:?}");
    }

    #[test]
    fn the_series_is_the_function() {
        for zoom in [11, 13, 16, 22] {
            for lat in [-60.0, 0.0, 14.4, 41.15, 60.2, 70.0] {
                let y = (mercator(lat) * f64::from(1_u32 << zoom)) as u32;
                let frame = Frame::of(zoom, 0, y);
                for step in -10..=10 {
                    let near = lat + f64::from(step) * 0.01;
                    let exact = mercator(near) * units(zoom);
                    let off = (frame.y_of(near) - exact).abs();
                    // Within two tiles of the middle it must be right to a unit.
                    if (exact - frame.middle[1]).abs() < 2.0 * EXTENT {
                        assert!(off < 0.6, "{zoom} {lat} {near}: {off}");
                    }
                }
            }
        }
    }
}
