//! What a datagram says once opened: fixes, each after the first as its difference from the one before, or a ping.
//!
//! A moving phone's fix costs 5 to 8 bytes that way, so a full datagram holds about 150. The reader trusts nothing: a
//! payload that says less or more than it announces, or a value that no `Fix` can hold, is refused whole.

use super::PAYLOAD_LEN_MAX;
use super::varint::{self, Reader};
use crate::fix::{Fix, PhoneState};
use crate::id::FixNumber;
use crate::position::Position;
use crate::time::MeasuredTime;

/// What `encode_fixes` did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EncodedFixes {
    /// How many of the fixes offered went in, from the front.
    pub count: usize,
}

/// Why a payload was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PayloadFault {
    #[error("payload is cut short or has a number that is not a minimal varint")]
    Number,
    #[error("payload names fields that are not known here, or changes fields it did not name")]
    Fields,
    #[error("payload has a value that no fix can hold")]
    Value,
    #[error("payload has bytes left over")]
    LeftOver,
}

/// Appends a payload with as many of `fixes` as fit in `len_max` bytes.
///
/// Numbers must rise. A fix that cannot share the datagram (its number does not rise, or it differs from the first in
/// whether altitude, accuracy or phone state are known, for which the wire has no word) ends it. `lowest_held` is for
/// the types that want an answer: `Some(None)` says that nothing is held any more.
pub fn encode_fixes(
    out: &mut Vec<u8>,
    session_start_s: u32,
    lowest_held: Option<Option<FixNumber>>,
    fixes: &[(FixNumber, Fix)],
    len_max: usize,
) -> EncodedFixes {
    let begin = out.len();
    let Some((first_number, first)) = fixes.first() else { return EncodedFixes { count: 0 } };
    let alike = fixes.iter().take_while(|(_, fix)| Alike::of(fix) == Alike::of(first));
    let fields = alike.fold(0, |fields, (_, fix)| fields | fields_of(fix));

    out.push(fields);
    if let Some(lowest) = lowest_held {
        varint::put(out, lowest.map_or(0, |number| number.0));
    }
    varint::put(out, first_number.0);
    let mut before = Coded::of(first, session_start_s);
    before.put_first(out, fields);
    if out.len() - begin > len_max {
        out.truncate(begin);
        return EncodedFixes { count: 0 };
    }

    let mut count = 1;
    let mut number_before = first_number.0;
    for (number, fix) in &fixes[1..] {
        if Alike::of(fix) != Alike::of(first) || number.0 <= number_before {
            break;
        }
        let end = out.len();
        let coded = Coded::of(fix, session_start_s);
        coded.put_change(out, &before, fields, number.0 - number_before - 1);
        if out.len() - begin > len_max {
            out.truncate(end);
            break;
        }
        before = coded;
        number_before = number.0;
        count += 1;
    }
    EncodedFixes { count }
}

/// Reads a payload of fixes into `fixes`, which is cleared first. Gives the lowest number still held, where the type
/// says it. **Invariant:** on a fault `fixes` is empty.
pub fn decode_fixes(
    payload: &[u8],
    session_start_s: u32,
    ack_wanted: bool,
    fixes: &mut Vec<(FixNumber, Fix)>,
) -> Result<Option<FixNumber>, PayloadFault> {
    fixes.clear();
    let result = decode_into(payload, session_start_s, ack_wanted, fixes);
    if result.is_err() {
        fixes.clear();
    }
    result
}

fn decode_into(
    payload: &[u8],
    session_start_s: u32,
    ack_wanted: bool,
    fixes: &mut Vec<(FixNumber, Fix)>,
) -> Result<Option<FixNumber>, PayloadFault> {
    let mut reader = Reader::new(payload);
    let fields = reader.byte().ok_or(PayloadFault::Number)?;
    if fields & !FIELDS_KNOWN != 0 {
        return Err(PayloadFault::Fields);
    }
    let lowest = if ack_wanted { reader.varint().ok_or(PayloadFault::Number)? } else { 0 };
    let mut number = reader.varint().ok_or(PayloadFault::Number)?;
    let mut coded = Coded::read_first(&mut reader, fields)?;
    if number == 0 {
        return Err(PayloadFault::Value);
    }
    fixes.push((FixNumber(number), coded.fix(fields, session_start_s)?));
    while !reader.is_empty() {
        let skipped = coded.read_change(&mut reader, fields)?;
        number = skipped.checked_add(1).and_then(|step| number.checked_add(step)).ok_or(PayloadFault::Value)?;
        fixes.push((FixNumber(number), coded.fix(fields, session_start_s)?));
    }
    Ok((lowest != 0).then_some(FixNumber(lowest)))
}

/// A ping: the phone is there, has nothing to say but its state, and wants an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ping {
    pub lowest_held: Option<FixNumber>,
    pub state: PhoneState,
}

impl Ping {
    pub fn encode(self, out: &mut Vec<u8>) {
        out.push(FIELD_STATE);
        varint::put(out, self.lowest_held.map_or(0, |number| number.0));
        out.push(self.state.0);
    }

    pub fn decode(payload: &[u8]) -> Result<Self, PayloadFault> {
        let mut reader = Reader::new(payload);
        if reader.byte().ok_or(PayloadFault::Number)? != FIELD_STATE {
            return Err(PayloadFault::Fields);
        }
        let lowest = reader.varint().ok_or(PayloadFault::Number)?;
        let state = PhoneState(reader.byte().ok_or(PayloadFault::Number)?);
        if !reader.is_empty() {
            return Err(PayloadFault::LeftOver);
        }
        Ok(Ping { lowest_held: (lowest != 0).then_some(FixNumber(lowest)), state })
    }
}

/// A fix as it will come out at the other end: position rounded to 10⁻⁶ °, impossible headings and battery levels
/// unknown.
pub fn as_sent(fix: &Fix) -> Fix {
    let round = |e7: i32| (e6(e7) * 10) as i32;
    let position = Position { lat_e7: round(fix.position.lat_e7), lon_e7: round(fix.position.lon_e7) };
    Fix {
        position,
        heading_255: fix.heading_255.filter(|heading| *heading != BYTE_UNKNOWN),
        battery_percent: fix.battery_percent.filter(|percent| *percent != BYTE_UNKNOWN),
        ..*fix
    }
}

/// Nearest 10⁻⁶ °, half away from zero, inside what 10⁻⁷ ° in 32 bits can hold.
fn e6(e7: i32) -> i64 {
    let away = (i64::from(e7).abs() + 5) / 10;
    (away * i64::from(e7.signum())).clamp(-E6_MAX, E6_MAX)
}

/// The fields for which the wire has no "unknown": known in all fixes of a datagram or in none.
#[derive(PartialEq, Eq)]
struct Alike {
    accuracy: bool,
    altitude: bool,
    state: bool,
}

impl Alike {
    fn of(fix: &Fix) -> Self {
        Alike {
            accuracy: fix.accuracy_m.is_some(),
            altitude: fix.altitude_m.is_some(),
            state: fix.phone_state.is_some(),
        }
    }
}

fn fields_of(fix: &Fix) -> u8 {
    let bit = |known: bool, field: u8| if known { field } else { 0 };
    bit(fix.speed_dm_s.is_some(), FIELD_SPEED)
        | bit(fix.heading_255.is_some(), FIELD_HEADING)
        | bit(fix.accuracy_m.is_some(), FIELD_ACCURACY)
        | bit(fix.altitude_m.is_some(), FIELD_ALTITUDE)
        | bit(fix.battery_percent.is_some(), FIELD_BATTERY)
        | bit(fix.phone_state.is_some(), FIELD_STATE)
}

/// A fix in the units of the wire.
#[derive(Clone, Copy)]
struct Coded {
    /// 0.1 s since session start.
    time: i64,
    lat_e6: i64,
    lon_e6: i64,
    /// 0.1 m/s, plus 1; 0 unknown.
    speed: i64,
    heading: u8,
    accuracy: u8,
    altitude: i64,
    battery: u8,
    state: u8,
}

impl Coded {
    fn of(fix: &Fix, session_start_s: u32) -> Self {
        Coded {
            time: fix.measured.0.saturating_sub(i64::from(session_start_s) * 10),
            lat_e6: e6(fix.position.lat_e7),
            lon_e6: e6(fix.position.lon_e7),
            speed: fix.speed_dm_s.map_or(0, |speed| i64::from(speed) + 1),
            heading: fix.heading_255.unwrap_or(BYTE_UNKNOWN),
            accuracy: fix.accuracy_m.unwrap_or(BYTE_UNKNOWN),
            altitude: i64::from(fix.altitude_m.unwrap_or(0)),
            battery: fix.battery_percent.unwrap_or(BYTE_UNKNOWN),
            state: fix.phone_state.unwrap_or_default().0,
        }
    }

    fn fix(&self, fields: u8, session_start_s: u32) -> Result<Fix, PayloadFault> {
        let value = PayloadFault::Value;
        let e7 = |e6: i64| if e6.abs() <= E6_MAX { Ok((e6 * 10) as i32) } else { Err(value) };
        let byte = |byte: u8, field: u8| (fields & field != 0 && byte != BYTE_UNKNOWN).then_some(byte);
        let speed = u16::try_from(self.speed - 1);
        Ok(Fix {
            measured: MeasuredTime(self.time.checked_add(i64::from(session_start_s) * 10).ok_or(value)?),
            position: Position { lat_e7: e7(self.lat_e6)?, lon_e7: e7(self.lon_e6)? },
            speed_dm_s: if self.speed == 0 { None } else { Some(speed.map_err(|_| value)?) },
            heading_255: byte(self.heading, FIELD_HEADING),
            accuracy_m: (fields & FIELD_ACCURACY != 0).then_some(self.accuracy),
            altitude_m: match fields & FIELD_ALTITUDE {
                0 => None,
                _ => Some(i16::try_from(self.altitude).map_err(|_| value)?),
            },
            battery_percent: byte(self.battery, FIELD_BATTERY),
            phone_state: (fields & FIELD_STATE != 0).then_some(PhoneState(self.state)),
        })
    }

    fn put_first(&self, out: &mut Vec<u8>, fields: u8) {
        varint::put_zigzag(out, self.time);
        varint::put_zigzag(out, self.lat_e6);
        varint::put_zigzag(out, self.lon_e6);
        if fields & FIELD_SPEED != 0 {
            varint::put(out, self.speed as u64);
        }
        if fields & FIELD_HEADING != 0 {
            out.push(self.heading);
        }
        if fields & FIELD_ACCURACY != 0 {
            out.push(self.accuracy);
        }
        self.put_rest(out, fields);
    }

    fn put_rest(&self, out: &mut Vec<u8>, fields: u8) {
        if fields & FIELD_ALTITUDE != 0 {
            varint::put_zigzag(out, self.altitude);
        }
        if fields & FIELD_BATTERY != 0 {
            out.push(self.battery);
        }
        if fields & FIELD_STATE != 0 {
            out.push(self.state);
        }
    }

    fn read_first(reader: &mut Reader<'_>, fields: u8) -> Result<Self, PayloadFault> {
        let number = PayloadFault::Number;
        let mut coded = Coded {
            time: reader.zigzag().ok_or(number)?,
            lat_e6: reader.zigzag().ok_or(number)?,
            lon_e6: reader.zigzag().ok_or(number)?,
            speed: 0,
            heading: BYTE_UNKNOWN,
            accuracy: BYTE_UNKNOWN,
            altitude: 0,
            battery: BYTE_UNKNOWN,
            state: 0,
        };
        if fields & FIELD_SPEED != 0 {
            let speed = reader.varint().ok_or(number)?;
            coded.speed = i64::try_from(speed).map_err(|_| PayloadFault::Value)?;
        }
        if fields & FIELD_HEADING != 0 {
            coded.heading = reader.byte().ok_or(number)?;
        }
        if fields & FIELD_ACCURACY != 0 {
            coded.accuracy = reader.byte().ok_or(number)?;
        }
        coded.read_rest(reader, fields)?;
        coded.bounded()
    }

    fn read_rest(&mut self, reader: &mut Reader<'_>, fields: u8) -> Result<(), PayloadFault> {
        if fields & FIELD_ALTITUDE != 0 {
            self.altitude = reader.zigzag().ok_or(PayloadFault::Number)?;
        }
        if fields & FIELD_BATTERY != 0 {
            self.battery = reader.byte().ok_or(PayloadFault::Number)?;
        }
        if fields & FIELD_STATE != 0 {
            self.state = reader.byte().ok_or(PayloadFault::Number)?;
        }
        Ok(())
    }

    fn put_change(&self, out: &mut Vec<u8>, before: &Coded, fields: u8, skipped: u64) {
        let interval = self.time.wrapping_sub(before.time);
        let moved = self.lat_e6 != before.lat_e6 || self.lon_e6 != before.lon_e6;
        let rest = self.altitude != before.altitude || self.battery != before.battery || self.state != before.state;
        let bit = |changed: bool, bit: u8| if changed { bit } else { 0 };
        let change = bit(interval != INTERVAL_USUAL, CHANGE_TIME)
            | bit(moved, CHANGE_POSITION)
            | bit(self.speed != before.speed, CHANGE_SPEED)
            | bit(self.heading != before.heading, CHANGE_HEADING)
            | bit(self.accuracy != before.accuracy, CHANGE_ACCURACY)
            | bit(rest, CHANGE_REST)
            | bit(skipped != 0, CHANGE_NUMBER);
        out.push(change);
        if change & CHANGE_TIME != 0 {
            varint::put_zigzag(out, interval.wrapping_sub(INTERVAL_USUAL));
        }
        if change & CHANGE_POSITION != 0 {
            varint::put_zigzag(out, self.lat_e6 - before.lat_e6);
            varint::put_zigzag(out, self.lon_e6 - before.lon_e6);
        }
        if change & CHANGE_SPEED != 0 {
            varint::put_zigzag(out, self.speed - before.speed);
        }
        if change & CHANGE_HEADING != 0 {
            out.push(self.heading);
        }
        if change & CHANGE_ACCURACY != 0 {
            out.push(self.accuracy);
        }
        if change & CHANGE_REST != 0 {
            self.put_rest(out, fields);
        }
        if change & CHANGE_NUMBER != 0 {
            varint::put(out, skipped);
        }
    }

    /// Applies one change and gives the count of numbers skipped before the fix it makes.
    fn read_change(&mut self, reader: &mut Reader<'_>, fields: u8) -> Result<u64, PayloadFault> {
        let number = PayloadFault::Number;
        let value = PayloadFault::Value;
        let change = reader.byte().ok_or(number)?;
        if change & !changes_possible(fields) != 0 {
            return Err(PayloadFault::Fields);
        }
        let add = |to: i64, delta: i64| to.checked_add(delta).ok_or(value);
        let mut interval = INTERVAL_USUAL;
        if change & CHANGE_TIME != 0 {
            interval = add(interval, reader.zigzag().ok_or(number)?)?;
        }
        self.time = add(self.time, interval)?;
        if change & CHANGE_POSITION != 0 {
            self.lat_e6 = add(self.lat_e6, reader.zigzag().ok_or(number)?)?;
            self.lon_e6 = add(self.lon_e6, reader.zigzag().ok_or(number)?)?;
        }
        if change & CHANGE_SPEED != 0 {
            self.speed = add(self.speed, reader.zigzag().ok_or(number)?)?;
        }
        if change & CHANGE_HEADING != 0 {
            self.heading = reader.byte().ok_or(number)?;
        }
        if change & CHANGE_ACCURACY != 0 {
            self.accuracy = reader.byte().ok_or(number)?;
        }
        if change & CHANGE_REST != 0 {
            self.read_rest(reader, fields)?;
        }
        *self = self.bounded()?;
        if change & CHANGE_NUMBER != 0 { reader.varint().ok_or(number) } else { Ok(0) }
    }

    /// Refuses what no fix can hold, so that every later sum stays far from overflow.
    fn bounded(self) -> Result<Self, PayloadFault> {
        // `checked_abs`, because the least of all integers has no positive twin.
        let fits = |e6: i64| e6.checked_abs().is_some_and(|e6| e6 <= E6_MAX);
        let speed = (0..=SPEED_CODED_MAX).contains(&self.speed);
        if fits(self.lat_e6) && fits(self.lon_e6) && speed { Ok(self) } else { Err(PayloadFault::Value) }
    }
}

fn changes_possible(fields: u8) -> u8 {
    let if_named = |named: u8, change: u8| if fields & named != 0 { change } else { 0 };
    CHANGE_TIME
        | CHANGE_POSITION
        | CHANGE_NUMBER
        | if_named(FIELD_SPEED, CHANGE_SPEED)
        | if_named(FIELD_HEADING, CHANGE_HEADING)
        | if_named(FIELD_ACCURACY, CHANGE_ACCURACY)
        | if_named(FIELD_ALTITUDE | FIELD_BATTERY | FIELD_STATE, CHANGE_REST)
}

/// A first fix takes at least 5 bytes, each further one at least its change byte.
pub const FIXES_PER_DATAGRAM_MAX: usize = PAYLOAD_LEN_MAX - 5 + 1;

pub const FIELD_SPEED: u8 = 1;
pub const FIELD_HEADING: u8 = 2;
pub const FIELD_ACCURACY: u8 = 4;
pub const FIELD_ALTITUDE: u8 = 8;
pub const FIELD_BATTERY: u8 = 16;
pub const FIELD_STATE: u8 = 32;
const FIELDS_KNOWN: u8 = 63;

const CHANGE_TIME: u8 = 1;
const CHANGE_POSITION: u8 = 2;
const CHANGE_SPEED: u8 = 4;
const CHANGE_HEADING: u8 = 8;
const CHANGE_ACCURACY: u8 = 16;
const CHANGE_REST: u8 = 32;
const CHANGE_NUMBER: u8 = 64;

/// 4 s: the interval that costs nothing to say.
const INTERVAL_USUAL: i64 = 40;
const BYTE_UNKNOWN: u8 = 255;
/// 10 × this is the largest multiple of ten in an `i32`.
const E6_MAX: i64 = 214_748_364;
const SPEED_CODED_MAX: i64 = u16::MAX as i64 + 1;

#[cfg(test)]
mod tests {
    use super::*;

    const START_S: u32 = 1_700_000_000;

    fn fix(tenths: i64, lat_e7: i32, lon_e7: i32) -> Fix {
        let measured = MeasuredTime(i64::from(START_S) * 10 + tenths);
        Fix {
            speed_dm_s: Some(99),
            heading_255: Some(60),
            accuracy_m: Some(6),
            ..Fix::at(measured, Position { lat_e7, lon_e7 })
        }
    }

    #[test]
    fn rounding_is_to_the_nearest_and_half_away_from_zero() {
        for (e7, wanted) in [(14, 1), (15, 2), (-14, -1), (-15, -2), (0, 0), (4, 0), (-5, -1), (i32::MAX, E6_MAX)] {
            assert_eq!(e6(e7), wanted, "{e7}");
        }
    }

    #[test]
    fn a_fix_that_says_nothing_new_costs_one_byte() {
        let fixes: Vec<_> = (0..2000).map(|i| (FixNumber(1 + i), fix(40 * i as i64, 10, -10))).collect();
        let mut out = Vec::new();

        let encoded = encode_fixes(&mut out, START_S, None, &fixes, PAYLOAD_LEN_MAX);

        assert_eq!(out.len(), PAYLOAD_LEN_MAX);
        let mut back = Vec::new();
        assert_eq!(decode_fixes(&out, START_S, false, &mut back), Ok(None));
        assert_eq!(back, fixes[..encoded.count]);
    }

    #[test]
    fn fields_that_cannot_be_unknown_end_the_datagram() {
        let mut fixes: Vec<_> = (0..3).map(|i| (FixNumber(1 + i), fix(40 * i as i64, 10, -10))).collect();
        let mut out = Vec::new();
        fixes[2].1.altitude_m = Some(120);

        assert_eq!(encode_fixes(&mut out, START_S, None, &fixes, PAYLOAD_LEN_MAX).count, 2);
        fixes[2].1.altitude_m = None;
        fixes[2].0 = fixes[1].0;
        assert_eq!(encode_fixes(&mut out, START_S, None, &fixes, PAYLOAD_LEN_MAX).count, 2);
    }

    #[test]
    fn a_first_fix_that_does_not_fit_leaves_nothing_behind() {
        let mut out = vec![7];

        let encoded = encode_fixes(&mut out, START_S, Some(None), &[(FixNumber(1), fix(0, 10, 10))], 5);

        assert_eq!((encoded.count, out), (0, vec![7]));
    }

    #[test]
    fn payloads_that_are_not_ours_are_refused_for_the_right_reason() {
        let cases: [(&[u8], PayloadFault); 12] = [
            (&[], PayloadFault::Number),
            (&[64, 1, 0, 0, 0], PayloadFault::Fields),
            (&[128, 1, 0, 0, 0], PayloadFault::Fields),
            (&[0, 0, 0, 0, 0], PayloadFault::Value),
            (&[0, 1, 0, 0], PayloadFault::Number),
            (&[0, 0x81, 0, 0, 0, 0], PayloadFault::Number),
            (&[0, 1, 0, 0, 0, 128], PayloadFault::Fields),
            (&[0, 1, 0, 0, 0, 4, 2], PayloadFault::Fields),
            (&[0, 1, 0, 0, 0, 32], PayloadFault::Fields),
            (&[0, 1, 0, 0, 0, 2, 1], PayloadFault::Number),
            (&[1, 1, 0, 0, 0, 5, 4, 11], PayloadFault::Value),
            // Skips all the way past the largest number.
            (&[0, 1, 0, 0, 0, 64, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1], PayloadFault::Value),
        ];
        let mut fixes = vec![(FixNumber(9), fix(0, 0, 0))];
        for (payload, fault) in cases {
            assert_eq!(decode_fixes(payload, START_S, false, &mut fixes), Err(fault), "{payload:?}");
            assert!(fixes.is_empty());
        }
    }

    #[test]
    fn a_ping_is_three_bytes_and_nothing_else_is_a_ping() {
        let ping = Ping { lowest_held: None, state: PhoneState(PhoneState::STANDING) };
        let mut bytes = Vec::new();
        ping.encode(&mut bytes);

        assert_eq!(bytes, [32, 0, 32]);
        assert_eq!(Ping::decode(&bytes), Ok(ping));
        assert_eq!(Ping::decode(&bytes[..2]), Err(PayloadFault::Number));
        assert_eq!(Ping::decode(&[33, 0, 32]), Err(PayloadFault::Fields));
        assert_eq!(Ping::decode(&[32, 0, 32, 0]), Err(PayloadFault::LeftOver));
    }
}
