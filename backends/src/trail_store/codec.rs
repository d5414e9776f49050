//! Breadcrumbs as bytes, column by column, each told by how it differs from what the breadcrumb before lets expect. Of a
//! driver's day in order of time most columns hardly change, and what is left takes about 20 bytes a fix.
//!
//! A slice is a version byte, its count (u32, little-endian), one byte of choices and the columns in the order of
//! `COLUMNS`, packed by `bits`. A later version of Wayfix reads every version that was ever written.

use protocol::record::Door;
use protocol::update::{SnappedPosition, Source};
use protocol::{
    Breadcrumb, DeliveryId, DeviceKey, DeviceNumber, DriverId, EdgeId, Fix, FixNumber, FixRecord, MeasuredTime, Offset,
    PartitionId, PhoneState, Position, RejectReason, TenantId, Time, Verdict,
};

use super::bits;

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum CodecError {
    #[error("breadcrumbs of version {0} are not known here")]
    Version(u8),
    #[error("the bytes are no breadcrumbs")]
    Malformed,
}

/// Appends the slice, in its order. Ordered by driver and time it is smallest.
pub(super) fn encode(breadcrumbs: &[Breadcrumb], out: &mut Vec<u8>) {
    let choices = Choices::of(breadcrumbs);
    out.push(VERSION);
    out.extend_from_slice(&(breadcrumbs.len() as u32).to_le_bytes());
    out.push(choices.to_byte());
    let mut columns: Vec<Vec<u64>> = (0..COLUMNS).map(|_| Vec::with_capacity(breadcrumbs.len())).collect();
    let mut before = Before::default();
    for breadcrumb in breadcrumbs {
        let columns = &mut columns.iter_mut();
        let mut put = |value: u64| {
            if let Some(column) = columns.next() {
                column.push(value);
            }
        };
        put_record(&breadcrumb.record, breadcrumb.verdict, choices, &before, &mut put);
        put_place(breadcrumb, &before, &mut put);
        before.handle(breadcrumb);
    }
    columns.iter().for_each(|column| bits::pack(column, out));
}

/// Takes a slice that fills the bytes.
pub(super) fn decode(bytes: &[u8]) -> Result<Vec<Breadcrumb>, CodecError> {
    let (version, rest) = bytes.split_first().ok_or(CodecError::Malformed)?;
    if *version != VERSION {
        return Err(CodecError::Version(*version));
    }
    decode_columns(rest).ok_or(CodecError::Malformed)
}

fn decode_columns(bytes: &[u8]) -> Option<Vec<Breadcrumb>> {
    let (count, rest) = bytes.split_first_chunk::<4>()?;
    let (choices, mut rest) = rest.split_first()?;
    let count = u32::from_le_bytes(*count) as usize;
    // A group of 32 takes a byte at least: what claims more than that is no slice.
    if count.div_ceil(32) > rest.len() {
        return None;
    }
    let choices = Choices::from_byte(*choices)?;
    let columns = (0..COLUMNS).map(|_| bits::unpack(&mut rest, count)).collect::<Option<Vec<_>>>()?;
    if !rest.is_empty() {
        return None;
    }
    let mut breadcrumbs = Vec::with_capacity(count);
    let mut before = Before::default();
    for row in 0..count {
        let mut columns = columns.iter();
        let mut take = || columns.next().map_or(0, |column| column[row]);
        let (record, verdict) = take_record(choices, &before, &mut take)?;
        let breadcrumb = take_place(record, verdict, &before, &mut take)?;
        before.handle(&breadcrumb);
        breadcrumbs.push(breadcrumb);
    }
    Some(breadcrumbs)
}

/// What is the same for a whole slice.
#[derive(Clone, Copy)]
struct Choices {
    /// Positions on the wire have 10⁻⁶ °: then a tenth of the number says as much.
    is_coarse: bool,
}

impl Choices {
    fn of(breadcrumbs: &[Breadcrumb]) -> Choices {
        let is_coarse = |position: Position| position.lat_e7 % 10 == 0 && position.lon_e7 % 10 == 0;
        Choices { is_coarse: breadcrumbs.iter().all(|breadcrumb| is_coarse(breadcrumb.record.fix.position)) }
    }

    fn to_byte(self) -> u8 {
        u8::from(self.is_coarse)
    }

    fn from_byte(byte: u8) -> Option<Choices> {
        (byte <= 1).then_some(Choices { is_coarse: byte == 1 })
    }

    fn scale(self) -> i64 {
        if self.is_coarse { 10 } else { 1 }
    }
}

/// What the next breadcrumb is told by.
#[derive(Clone, Copy)]
struct Before {
    record: FixRecord,
    /// Of the fix before, of the same driver.
    interval_ds: i64,
    step: (i64, i64),
    snapped: SnappedPosition,
    delivery: u64,
    source: Source,
}

impl Default for Before {
    fn default() -> Self {
        let zero = Position { lat_e7: 0, lon_e7: 0 };
        Before {
            record: FixRecord {
                device: DeviceKey { tenant: TenantId(0), driver: DriverId(0), device: DeviceNumber(0) },
                session_start: 0,
                number: None,
                lowest_held: FixNumber(0),
                edge: EdgeId(0),
                door: Door::Udp,
                received: Time(0),
                fix: Fix::at(MeasuredTime(0), zero),
                verdict: Verdict::Accepted,
            },
            interval_ds: 0,
            step: (0, 0),
            snapped: SnappedPosition { position: zero, edge: 0, along_cm: 0, off_cm: 0, confidence_percent: 0 },
            delivery: 0,
            source: Source::default(),
        }
    }
}

impl Before {
    fn handle(&mut self, breadcrumb: &Breadcrumb) {
        let (old, new) = (&self.record, &breadcrumb.record);
        let is_same_driver = old.device.driver_key() == new.device.driver_key();
        let step = |before: i32, now: i32| if is_same_driver { i64::from(now) - i64::from(before) } else { 0 };
        self.step = (
            step(old.fix.position.lat_e7, new.fix.position.lat_e7),
            step(old.fix.position.lon_e7, new.fix.position.lon_e7),
        );
        let interval_ds = new.fix.measured.0.wrapping_sub(old.fix.measured.0);
        self.interval_ds = if is_same_driver { interval_ds } else { 0 };
        self.record = breadcrumb.record;
        self.snapped = breadcrumb.snapped.unwrap_or(self.snapped);
        self.delivery = breadcrumb.delivery.map_or(self.delivery, |delivery| delivery.0);
        self.source = breadcrumb.source;
    }

    /// Half as far on as the step before: the best guess between one who drives straight on and one who stands.
    fn expected(&self, scale: i64) -> (i64, i64) {
        let position = self.record.fix.position;
        let ahead = |at: i32, step: i64| (i64::from(at) + step / 2).div_euclid(scale);
        (ahead(position.lat_e7, self.step.0), ahead(position.lon_e7, self.step.1))
    }

    fn number(&self) -> u64 {
        self.record.number.map_or(0, |number| number.0)
    }

    /// How long after it was measured the fix came, by the two clocks.
    fn lag_ms(&self) -> i64 {
        lag_ms(self.record.received, self.record.fix.measured)
    }
}

fn lag_ms(received: Time, measured: MeasuredTime) -> i64 {
    received.0.wrapping_sub(measured.0.wrapping_mul(100))
}

fn put_record(record: &FixRecord, verdict: Verdict, choices: Choices, before: &Before, put: &mut impl FnMut(u64)) {
    let (old, fix, old_fix) = (&before.record, &record.fix, &before.record.fix);
    put(delta(record.device.tenant.0.into(), old.device.tenant.0.into()));
    put(delta(record.device.driver.0.into(), old.device.driver.0.into()));
    put(delta(record.device.device.0.into(), old.device.device.0.into()));
    let interval_ds = fix.measured.0.wrapping_sub(old_fix.measured.0);
    put(zigzag(interval_ds.wrapping_sub(before.interval_ds)));
    let (scale, expected) = (choices.scale(), before.expected(choices.scale()));
    put(zigzag(i64::from(fix.position.lat_e7) / scale - expected.0));
    put(zigzag(i64::from(fix.position.lon_e7) / scale - expected.1));
    put(delta(optional(fix.speed_dm_s.map(i64::from)), optional(old_fix.speed_dm_s.map(i64::from))));
    put(delta(optional(fix.heading_255.map(i64::from)), optional(old_fix.heading_255.map(i64::from))));
    put(delta(optional(fix.accuracy_m.map(i64::from)), optional(old_fix.accuracy_m.map(i64::from))));
    put(delta(optional(fix.altitude_m.map(altitude)), optional(old_fix.altitude_m.map(altitude))));
    put(delta(optional(fix.battery_percent.map(i64::from)), optional(old_fix.battery_percent.map(i64::from))));
    put(delta(optional(fix.phone_state.map(|s| s.0.into())), optional(old_fix.phone_state.map(|s| s.0.into()))));
    put(delta(record.session_start.into(), old.session_start.into()));
    put(u64::from(record.number.is_some()));
    let number = record.number.map_or(0, |number| number.0);
    put(zigzag(number.wrapping_sub(before.number()) as i64));
    put(zigzag(record.lowest_held.0.wrapping_sub(old.lowest_held.0) as i64));
    put(delta(record.edge.0.into(), old.edge.0.into()));
    put(door_code(record.door));
    put(zigzag(lag_ms(record.received, fix.measured).wrapping_sub(before.lag_ms())));
    put(verdict_code(record.verdict));
    put(zigzag(verdict_code(verdict) as i64 - verdict_code(record.verdict) as i64));
}

fn take_record(choices: Choices, before: &Before, take: &mut impl FnMut() -> u64) -> Option<(FixRecord, Verdict)> {
    let (old, old_fix) = (&before.record, &before.record.fix);
    let tenant = TenantId(apply(take(), old.device.tenant.0.into())?);
    let driver = DriverId(apply(take(), old.device.driver.0.into())?);
    let device = DeviceNumber(apply(take(), old.device.device.0.into())?);
    let interval_ds = unzigzag(take()).wrapping_add(before.interval_ds);
    let measured = MeasuredTime(old_fix.measured.0.wrapping_add(interval_ds));
    let (scale, expected) = (choices.scale(), before.expected(choices.scale()));
    let mut coordinate = |expected: i64| {
        let scaled = expected.checked_add(unzigzag(take()))?;
        i32::try_from(scaled.checked_mul(scale)?).ok()
    };
    let position = Position { lat_e7: coordinate(expected.0)?, lon_e7: coordinate(expected.1)? };
    let mut field = |old: Option<i64>| apply::<i64>(take(), optional(old));
    let speed_dm_s = given(field(old_fix.speed_dm_s.map(i64::from))?)?;
    let heading_255 = given(field(old_fix.heading_255.map(i64::from))?)?;
    let accuracy_m = given(field(old_fix.accuracy_m.map(i64::from))?)?;
    let altitude_m = given::<u16>(field(old_fix.altitude_m.map(altitude))?)?.map(|code| (code ^ 0x8000) as i16);
    let battery_percent = given(field(old_fix.battery_percent.map(i64::from))?)?;
    let phone_state = given(field(old_fix.phone_state.map(|s| s.0.into()))?)?.map(PhoneState);
    let session_start = apply(take(), old.session_start.into())?;
    let has_number = take() == 1;
    let number = before.number().wrapping_add(unzigzag(take()) as u64);
    let lowest_held = FixNumber(old.lowest_held.0.wrapping_add(unzigzag(take()) as u64));
    let edge = EdgeId(apply(take(), old.edge.0.into())?);
    let door = *DOORS.get(usize::try_from(take()).ok()?)?;
    let lag_ms = before.lag_ms().wrapping_add(unzigzag(take()));
    let received = Time(lag_ms.wrapping_add(measured.0.wrapping_mul(100)));
    let code = i64::try_from(take()).ok()?;
    let (edges, trackers) = (verdict_of(code)?, verdict_of(code.checked_add(unzigzag(take()))?)?);
    let record = FixRecord {
        device: DeviceKey { tenant, driver, device },
        session_start,
        number: has_number.then_some(FixNumber(number)),
        lowest_held,
        edge,
        door,
        received,
        fix: Fix { measured, position, speed_dm_s, heading_255, accuracy_m, altitude_m, battery_percent, phone_state },
        verdict: edges,
    };
    Some((record, trackers))
}

/// Where it was placed, for which delivery, and where it stood in the records.
fn put_place(breadcrumb: &Breadcrumb, before: &Before, put: &mut impl FnMut(u64)) {
    let (old, fix) = (&before.snapped, breadcrumb.record.fix.position);
    put(u64::from(breadcrumb.snapped.is_some()));
    let snapped = breadcrumb.snapped.unwrap_or(*old);
    match breadcrumb.snapped {
        Some(snapped) => {
            put(delta(snapped.position.lat_e7.into(), fix.lat_e7.into()));
            put(delta(snapped.position.lon_e7.into(), fix.lon_e7.into()));
        }
        None => [0, 0].into_iter().for_each(&mut *put),
    }
    put(delta(snapped.edge.into(), old.edge.into()));
    put(delta(snapped.along_cm.into(), old.along_cm.into()));
    let off_cm = if breadcrumb.snapped.is_some() { distance_cm(fix, snapped.position) } else { old.off_cm.into() };
    put(delta(snapped.off_cm.into(), off_cm));
    put(delta(snapped.confidence_percent.into(), old.confidence_percent.into()));
    put(u64::from(breadcrumb.delivery.is_some()));
    let delivery = breadcrumb.delivery.map_or(before.delivery, |delivery| delivery.0);
    put(zigzag(delivery.wrapping_sub(before.delivery) as i64));
    let (source, old) = (breadcrumb.source, before.source);
    put(delta(source.partition.0.into(), old.partition.0.into()));
    put(zigzag(source.offset.0.wrapping_sub(old.offset.0) as i64));
    put(delta(source.index.into(), old.index.into()));
    put(delta(source.ordinal.into(), old.ordinal.into()));
}

fn take_place(
    record: FixRecord,
    verdict: Verdict,
    before: &Before,
    take: &mut impl FnMut() -> u64,
) -> Option<Breadcrumb> {
    let (old, fix) = (&before.snapped, record.fix.position);
    let is_snapped = take() == 1;
    let (lat, lon) = (take(), take());
    let edge = apply(take(), old.edge.into())?;
    let along_cm = apply(take(), old.along_cm.into())?;
    let off = take();
    let confidence_percent = apply(take(), old.confidence_percent.into())?;
    let snapped = if is_snapped {
        let position = Position { lat_e7: apply(lat, fix.lat_e7.into())?, lon_e7: apply(lon, fix.lon_e7.into())? };
        let off_cm = apply(off, distance_cm(fix, position))?;
        Some(SnappedPosition { position, edge, along_cm, off_cm, confidence_percent })
    } else {
        None
    };
    let has_delivery = take() == 1;
    let delivery = before.delivery.wrapping_add(unzigzag(take()) as u64);
    let old = before.source;
    let source = Source {
        partition: PartitionId(apply(take(), old.partition.0.into())?),
        offset: Offset(old.offset.0.wrapping_add(unzigzag(take()) as u64)),
        index: apply(take(), old.index.into())?,
        ordinal: apply(take(), old.ordinal.into())?,
    };
    Some(Breadcrumb { record, verdict, snapped, delivery: has_delivery.then_some(DeliveryId(delivery)), source })
}

/// About how far apart: a guess at what the tracker wrote. By plain arithmetic only, which is the same on every CPU.
fn distance_cm(a: Position, b: Position) -> i64 {
    let turn = f64::from(a.lat_e7) * 1e-7 * (std::f64::consts::PI / 180.0);
    let square = turn * turn;
    // The cosine's series: good to 10⁻³ at 70°.
    let cosine = 1.0 - square / 2.0 + square * square / 24.0 - square * square * square / 720.0;
    let north = f64::from(b.lat_e7) - f64::from(a.lat_e7);
    let east = (f64::from(b.lon_e7) - f64::from(a.lon_e7)) * cosine;
    ((north * north + east * east).sqrt() * CM_PER_E7) as i64
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn unzigzag(code: u64) -> i64 {
    (code >> 1) as i64 ^ -((code & 1) as i64)
}

/// Of two numbers that are no wider than 33 bits.
fn delta(now: i64, before: i64) -> u64 {
    zigzag(now - before)
}

fn apply<T: TryFrom<i64>>(code: u64, before: i64) -> Option<T> {
    T::try_from(before.checked_add(unzigzag(code))?).ok()
}

/// 0 is none.
fn optional(value: Option<i64>) -> i64 {
    value.map_or(0, |value| value + 1)
}

/// None: no such value can be.
fn given<T: TryFrom<i64>>(code: i64) -> Option<Option<T>> {
    match code {
        0 => Some(None),
        code => T::try_from(code - 1).ok().map(Some),
    }
}

/// Moved so that it is never negative.
fn altitude(altitude_m: i16) -> i64 {
    i64::from(altitude_m as u16 ^ 0x8000)
}

fn verdict_code(verdict: Verdict) -> u64 {
    let place = |reason| RejectReason::ALL.iter().position(|other| *other == reason);
    match verdict {
        Verdict::Accepted => 0,
        Verdict::Rejected(reason) => place(reason).map_or(0, |place| place as u64 + 1),
    }
}

fn verdict_of(code: i64) -> Option<Verdict> {
    match code {
        0 => Some(Verdict::Accepted),
        code => RejectReason::ALL.get(usize::try_from(code - 1).ok()?).copied().map(Verdict::Rejected),
    }
}

fn door_code(door: Door) -> u64 {
    match door {
        Door::Udp => 0,
        Door::Quic => 1,
        Door::Https => 2,
        Door::Json => 3,
        Door::Mqtt => 4,
        Door::WebSocket => 5,
        Door::Grpc => 6,
        Door::OsmAnd => 7,
        Door::OwnTracks => 8,
    }
}

/// By their codes. New doors are added at the end.
const DOORS: [Door; 9] = [
    Door::Udp,
    Door::Quic,
    Door::Https,
    Door::Json,
    Door::Mqtt,
    Door::WebSocket,
    Door::Grpc,
    Door::OsmAnd,
    Door::OwnTracks,
];

const VERSION: u8 = 1;
const COLUMNS: usize = 34;
/// 10⁻⁷ ° of a meridian.
const CM_PER_E7: f64 = 1.111_949;

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::trail_store::samples::{crumb, drive};

    #[test]
    fn whatever_a_breadcrumb_holds_comes_back() {
        let mut rng = StdRng::seed_from_u64(3);
        for round in 0..200 {
            let breadcrumbs: Vec<Breadcrumb> = (0..rng.random_range(0..80)).map(|_| any(&mut rng)).collect();

            assert_eq!(decode(&encoded(&breadcrumbs)), Ok(breadcrumbs), "round {round}");
        }
    }

    #[test]
    fn every_door_and_verdict_keeps_its_code() {
        let codes: Vec<u64> = DOORS.into_iter().map(door_code).collect();

        assert_eq!(codes, (0..DOORS.len() as u64).collect::<Vec<_>>());
        for code in 0..=RejectReason::ALL.len() {
            assert_eq!(verdict_of(code as i64).map(verdict_code), Some(code as u64));
        }
    }

    #[test]
    fn a_days_drive_takes_few_bytes() {
        let breadcrumbs = drive(7, 1_024);

        let bytes = encoded(&breadcrumbs).len() as f64 / breadcrumbs.len() as f64;

        assert!(bytes < 22.0, "{bytes} bytes a fix");
    }

    #[test]
    fn bytes_that_are_no_breadcrumbs_are_refused_and_break_nothing() {
        let bytes = encoded(&drive(7, 100));
        assert_eq!(decode(&[]), Err(CodecError::Malformed));
        let mut later = bytes.clone();
        later[0] = VERSION + 1;
        assert_eq!(decode(&later), Err(CodecError::Version(VERSION + 1)));
        for len in 1..bytes.len() {
            assert_eq!(decode(&bytes[..len]), Err(CodecError::Malformed), "{len}");
        }
        let mut rng = StdRng::seed_from_u64(4);
        for _ in 0..2_000 {
            let mut spoiled = bytes.clone();
            let place = rng.random_range(1..spoiled.len());
            spoiled[place] ^= 1 << rng.random_range(0..8);
            let _any_answer_is_fine = decode(&spoiled);
        }
    }

    /// The bytes of version 1, as they lie on disks.
    #[test]
    fn version_1_is_written_as_it_ever_was() {
        let bytes = encoded(&[crumb(0), crumb(4)]);

        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();

        assert_eq!(text, VERSION_1);
    }

    fn encoded(breadcrumbs: &[Breadcrumb]) -> Vec<u8> {
        let mut out = Vec::new();
        encode(breadcrumbs, &mut out);
        out
    }

    fn any(rng: &mut StdRng) -> Breadcrumb {
        let verdict = |rng: &mut StdRng| verdict_of(rng.random_range(0..=9)).unwrap();
        let position = |rng: &mut StdRng| Position { lat_e7: rng.random(), lon_e7: rng.random() };
        Breadcrumb {
            record: FixRecord {
                device: DeviceKey {
                    tenant: TenantId(rng.random()),
                    driver: DriverId(rng.random()),
                    device: DeviceNumber(rng.random()),
                },
                session_start: rng.random(),
                number: rng.random_bool(0.5).then(|| FixNumber(rng.random())),
                lowest_held: FixNumber(rng.random()),
                edge: EdgeId(rng.random()),
                door: DOORS[rng.random_range(0..9)],
                received: Time(rng.random()),
                fix: Fix {
                    measured: MeasuredTime(rng.random()),
                    position: position(rng),
                    speed_dm_s: rng.random_bool(0.5).then(|| rng.random()),
                    heading_255: rng.random_bool(0.5).then(|| rng.random()),
                    accuracy_m: rng.random_bool(0.5).then(|| rng.random()),
                    altitude_m: rng.random_bool(0.5).then(|| rng.random()),
                    battery_percent: rng.random_bool(0.5).then(|| rng.random()),
                    phone_state: rng.random_bool(0.5).then(|| PhoneState(rng.random())),
                },
                verdict: verdict(rng),
            },
            verdict: verdict(rng),
            snapped: rng.random_bool(0.5).then(|| SnappedPosition {
                position: position(rng),
                edge: rng.random(),
                along_cm: rng.random(),
                off_cm: rng.random(),
                confidence_percent: rng.random(),
            }),
            delivery: rng.random_bool(0.5).then(|| DeliveryId(rng.random())),
            source: Source {
                partition: PartitionId(rng.random()),
                offset: Offset(rng.random()),
                index: rng.random(),
                ordinal: rng.random(),
            },
        }
    }

    const VERSION_1: &str = "010200000001040e05100002028700280100a0c2a77a800100e0989f278001009f839b08000000000000000000\
                             000202000bd00700000000000000000000000000000000";
}
