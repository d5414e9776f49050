//! For tests: breadcrumbs as a day brings them.

use std::f64::consts::TAU;
use std::time::Duration;

use protocol::record::Door;
use protocol::update::{SnappedPosition, Source};
use protocol::{
    Breadcrumb, DeliveryId, DeviceKey, DeviceNumber, DriverId, DriverKey, EdgeId, Fix, FixNumber, FixRecord,
    MeasuredTime, Offset, PartitionId, Position, TenantId, Time, Verdict,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Measured this long after day 0 began, and received a second later.
pub(crate) fn crumb(after_s: i64) -> Breadcrumb {
    let measured = Time::from_secs(DAY_0_S + after_s);
    Breadcrumb {
        record: FixRecord {
            device: DeviceKey { tenant: TENANT, driver: DRIVER.driver, device: DeviceNumber(1) },
            session_start: 0,
            number: None,
            lowest_held: FixNumber(0),
            edge: EdgeId(1),
            door: Door::Udp,
            received: measured + Duration::from_secs(1),
            fix: Fix::at(MeasuredTime::from_time(measured), Position { lat_e7: 411_500_000, lon_e7: -86_100_000 }),
            verdict: Verdict::Accepted,
        },
        verdict: Verdict::Accepted,
        snapped: None,
        delivery: None,
        source: Source::default(),
    }
}

/// A driver on the streets, a fix every 4 s with 4 m of noise, each placed on a road.
pub(crate) fn drive(driver: u32, count: u64) -> Vec<Breadcrumb> {
    let mut rng = StdRng::seed_from_u64(u64::from(driver));
    let noise = |rng: &mut StdRng| ((0..6).map(|_| rng.random_range(-1.0..1.0)).sum::<f64>() * 2.8 * 90.0) as i32;
    let (mut lat, mut lon, mut heading, mut edge, mut along_cm) = (411_500_000, -86_100_000, 0.7f64, 10_000u32, 0u32);
    let (mut offset, mut index) = (1_000, 0);
    (0..count)
        .map(|n| {
            let speed_m_s = if n % 60 < 45 { 10.0 + f64::from(rng.random_range(-20..20)) / 10.0 } else { 0.0 };
            if rng.random_bool(0.08) {
                heading += [-1.57, 1.57][rng.random_range(0..2)];
            }
            lat += (heading.cos() * speed_m_s * 4.0 * 90.0) as i32;
            lon += (heading.sin() * speed_m_s * 4.0 * 119.0) as i32;
            along_cm += (speed_m_s * 400.0) as u32;
            if along_cm > 9_000 {
                (edge, along_cm) = (rng.random_range(10_000..60_000), along_cm % 9_000);
            }
            let mut breadcrumb = crumb(n as i64 * 4);
            let record = &mut breadcrumb.record;
            record.device.driver = DriverId(driver);
            record.number = Some(FixNumber(70_000 + n));
            record.lowest_held = FixNumber(69_998 + n);
            record.session_start = (DAY_0_S - 600) as u32;
            record.received = record.fix.measured.to_time() + Duration::from_millis(rng.random_range(60..400));
            let at = Position { lat_e7: lat, lon_e7: lon };
            let coarse = |e7: i32| e7 / 10 * 10;
            let measured = Position { lat_e7: coarse(lat + noise(&mut rng)), lon_e7: coarse(lon + noise(&mut rng)) };
            record.fix.position = measured;
            record.fix.speed_dm_s = Some((speed_m_s * 10.0) as u16);
            record.fix.heading_255 = Some((heading.rem_euclid(TAU) / TAU * 254.0) as u8);
            record.fix.accuracy_m = Some(rng.random_range(4..9));
            let (north, east) = (f64::from(measured.lat_e7 - at.lat_e7), f64::from(measured.lon_e7 - at.lon_e7));
            breadcrumb.snapped = Some(SnappedPosition {
                position: at,
                edge,
                along_cm,
                off_cm: (north.hypot(east * 0.753) * 1.112) as u32,
                confidence_percent: rng.random_range(90..100),
            });
            breadcrumb.delivery = Some(DeliveryId(500 + n / 400));
            (offset, index) = (offset + rng.random_range(3..6), rng.random_range(0..40));
            breadcrumb.source = Source { partition: PartitionId(3), offset: Offset(offset), index, ordinal: 0 };
            breadcrumb
        })
        .collect()
}

pub(crate) const TENANT: TenantId = TenantId(7);
pub(crate) const DRIVER: DriverKey = DriverKey { tenant: TENANT, driver: DriverId(8) };
pub(crate) const DAY_S: i64 = 86_400;
pub(crate) const DAY_0_S: i64 = 19_000 * DAY_S;
