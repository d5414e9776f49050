//! The JSON array of the fallback door: read with a bound, and judged fix by fix. What is odd about one fix costs that
//! fix or that field and nothing of its neighbours, and the answer says which: a phone that sends again whatever was not
//! taken must not be stuck for ever on one bad fix. Only what is no JSON, or no array, is refused whole.

use ::time::OffsetDateTime;
use ::time::format_description::well_known::Rfc3339;
use protocol::fix::heading_255;
use protocol::{DeviceKey, Fix, MeasuredTime, Position, Time};
use serde::Serialize;
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// What a body said.
#[derive(Debug, Default)]
pub struct JsonFixes {
    pub fixes: Vec<Fix>,
    /// Where each of `fixes` stands in the array.
    pub places: Vec<usize>,
    /// Those that cannot be recorded: nobody knows where or when.
    pub unreadable: Vec<Unreadable>,
    /// Fields that mean nothing and were left out of a fix that was taken.
    pub ignored: Vec<Ignored>,
    /// The first fix that names another driver or tenant than the device's.
    pub contradiction: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Unreadable {
    pub index: usize,
    pub reason: Missing,
}

/// What a fix must have and this one has not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum Missing {
    #[serde(rename = "no_object")]
    Object,
    #[serde(rename = "no_position")]
    Position,
    #[serde(rename = "no_time")]
    Time,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Ignored {
    pub index: usize,
    pub field: &'static str,
    pub reason: IgnoredReason,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum IgnoredReason {
    NoNumber,
    OutOfRange,
}

/// Why a body was not taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum JsonFault {
    /// With the place.
    Malformed(String),
    TooMany,
}

/// Reads at most `fixes_max` fixes of `device`.
pub fn parse(body: &[u8], device: DeviceKey, fixes_max: usize) -> Result<JsonFixes, JsonFault> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let reader = FixesReader { device, fixes_max };
    let result = deserializer.deserialize_seq(reader).and_then(|fixes| deserializer.end().map(|()| fixes));
    result.map_err(|error| {
        let text = error.to_string();
        if text.starts_with(TOO_MANY) { JsonFault::TooMany } else { JsonFault::Malformed(text) }
    })
}

struct FixesReader {
    device: DeviceKey,
    fixes_max: usize,
}

impl<'de> Visitor<'de> for FixesReader {
    type Value = JsonFixes;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array of fixes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<JsonFixes, A::Error> {
        let mut read = JsonFixes::default();
        let mut index = 0;
        loop {
            let next = array.next_element::<JsonFix>();
            let Some(fix) = next.map_err(|error| A::Error::custom(format!("fix {index}: {error}")))? else {
                return Ok(read);
            };
            if index >= self.fixes_max {
                return Err(A::Error::custom(TOO_MANY));
            }
            read.take(index, &fix, self.device);
            index += 1;
        }
    }
}

impl JsonFixes {
    fn take(&mut self, index: usize, fix: &JsonFix, device: DeviceKey) {
        if fix.contradicts(device) {
            self.contradiction.get_or_insert(index);
        }
        match fix.to_fix(|field, reason| self.ignored.push(Ignored { index, field, reason })) {
            Ok(fix) => {
                self.fixes.push(fix);
                self.places.push(index);
            }
            Err(reason) => self.unreadable.push(Unreadable { index, reason }),
        }
    }
}

/// One element of the array, as written. Of a field that comes twice the last counts, as everywhere in JSON.
#[derive(Default)]
struct JsonFix {
    is_object: bool,
    lat: Said,
    lng: Said,
    timestamp: Said,
    heading: Said,
    /// Metres per second.
    speed: Said,
    accuracy: Said,
    altitude: Said,
    /// Percent.
    battery: Said,
    driver: Said,
    tenant: Said,
}

impl JsonFix {
    fn contradicts(&self, device: DeviceKey) -> bool {
        let differs = |said: &Said, id: u32| !matches!(said, Said::Nothing) && !said.is_id(id);
        differs(&self.driver, device.driver.0) || differs(&self.tenant, device.tenant.0)
    }

    /// Receivers say -1 for what they do not know. A position or speed that cannot be becomes one that the judge rejects,
    /// so that it is recorded.
    fn to_fix(&self, mut ignore: impl FnMut(&'static str, IgnoredReason)) -> Result<Fix, Missing> {
        if !self.is_object {
            return Err(Missing::Object);
        }
        let (Some(lat), Some(lng)) = (self.lat.number(), self.lng.number()) else {
            return Err(Missing::Position);
        };
        let measured = self.timestamp.time().ok_or(Missing::Time)?;
        let position = Position { lat_e7: (lat * 1e7).round() as i32, lon_e7: (lng * 1e7).round() as i32 };
        let mut known = |field: &'static str, said: &Said, max: f64| {
            let Some(value) = said.number() else {
                if !matches!(said, Said::Nothing) {
                    ignore(field, IgnoredReason::NoNumber);
                }
                return None;
            };
            if value > max {
                ignore(field, IgnoredReason::OutOfRange);
            }
            (value <= max).then_some(value)
        };
        let speed = known("speed", &self.speed, f64::INFINITY);
        let heading = known("heading", &self.heading, 360.0);
        let accuracy = known("accuracy", &self.accuracy, f64::INFINITY);
        let altitude = known("altitude", &self.altitude, f64::INFINITY);
        let battery = known("battery", &self.battery, 100.0);
        Ok(Fix {
            // 200 km/h are 55.56 m/s: rounding up would make it too fast.
            speed_dm_s: speed.filter(|speed| *speed >= 0.0).map(|speed| (speed * 10.0).floor() as u16),
            heading_255: heading.filter(|degrees| *degrees >= 0.0).map(heading_255),
            // A negative accuracy says that the position is none (iOS); nothing is accurate to 0 m.
            accuracy_m: accuracy
                .filter(|metres| *metres != 0.0)
                .map(|metres| if metres < 0.0 { 255 } else { metres.ceil() as u8 }),
            altitude_m: altitude.map(|metres| metres.round() as i16),
            battery_percent: battery.filter(|percent| *percent >= 0.0).map(|percent| percent.round() as u8),
            ..Fix::at(measured, position)
        })
    }
}

impl<'de> Deserialize<'de> for JsonFix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FixReader)
    }
}

struct FixReader;

impl<'de> Visitor<'de> for FixReader {
    type Value = JsonFix;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a fix")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<JsonFix, A::Error> {
        let mut fix = JsonFix { is_object: true, ..JsonFix::default() };
        while let Some(field) = map.next_key::<Field>()? {
            let place = match field {
                Field::Lat => &mut fix.lat,
                Field::Lng => &mut fix.lng,
                Field::Timestamp => &mut fix.timestamp,
                Field::Heading => &mut fix.heading,
                Field::Speed => &mut fix.speed,
                Field::Accuracy => &mut fix.accuracy,
                Field::Altitude => &mut fix.altitude,
                Field::Battery => &mut fix.battery,
                Field::Driver => &mut fix.driver,
                Field::Tenant => &mut fix.tenant,
                Field::Ignored => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            *place = map.next_value()?;
        }
        Ok(fix)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<JsonFix, E> {
        Ok(JsonFix::default())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<JsonFix, E> {
        Ok(JsonFix::default())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<JsonFix, E> {
        Ok(JsonFix::default())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<JsonFix, E> {
        Ok(JsonFix::default())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<JsonFix, E> {
        Ok(JsonFix::default())
    }

    fn visit_unit<E: Error>(self) -> Result<JsonFix, E> {
        Ok(JsonFix::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<JsonFix, A::Error> {
        while array.next_element::<IgnoredAny>()?.is_some() {}
        Ok(JsonFix::default())
    }
}

#[derive(serde::Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Field {
    Lat,
    Lng,
    Timestamp,
    Heading,
    Speed,
    Accuracy,
    Altitude,
    Battery,
    Driver,
    Tenant,
    #[serde(other)]
    Ignored,
}

/// What stands in a field.
#[derive(Clone, PartialEq, Debug, Default)]
enum Said {
    /// Null, or not there.
    #[default]
    Nothing,
    Number(f64),
    Text(String),
    /// Something that no field of a fix is.
    Nonsense,
}

impl Said {
    /// Some clients write numbers as text.
    fn number(&self) -> Option<f64> {
        match self {
            Said::Number(number) => Some(*number),
            Said::Text(text) => text.trim().parse().ok().filter(|number: &f64| number.is_finite()),
            Said::Nothing | Said::Nonsense => None,
        }
    }

    /// Seconds or milliseconds since the Unix epoch, or RFC 3339.
    fn time(&self) -> Option<MeasuredTime> {
        if let Some(number) = self.number() {
            let millis = if number.abs() < MILLIS_FROM { number * 1000.0 } else { number };
            return Some(MeasuredTime::from_time(Time(millis.round() as i64)));
        }
        let Said::Text(text) = self else { return None };
        let time = OffsetDateTime::parse(text.trim(), &Rfc3339).ok()?;
        Some(MeasuredTime::from_time(Time((time.unix_timestamp_nanos() / 1_000_000) as i64)))
    }

    /// Numbers of drivers and tenants are short, so they stand in a float as they are.
    fn is_id(&self, id: u32) -> bool {
        match self {
            Said::Number(number) => *number == f64::from(id),
            Said::Text(text) => is_id(text, id),
            Said::Nothing | Said::Nonsense => false,
        }
    }
}

/// Whether what a client believes its driver or tenant to be is so.
pub fn is_id(text: &str, id: u32) -> bool {
    text.parse() == Ok(id)
}

impl<'de> Deserialize<'de> for Said {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SaidReader)
    }
}

struct SaidReader;

impl<'de> Visitor<'de> for SaidReader {
    type Value = Said;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Said, E> {
        Ok(Said::Nonsense)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Said, E> {
        Ok(Said::Number(value as f64))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Said, E> {
        Ok(Said::Number(value as f64))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Said, E> {
        Ok(Said::Number(value))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Said, E> {
        Ok(Said::Text(text.chars().take(TEXT_CHARS_MAX).collect()))
    }

    fn visit_unit<E: Error>(self) -> Result<Said, E> {
        Ok(Said::Nothing)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Said, A::Error> {
        while array.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Said::Nonsense)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Said, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Said::Nonsense)
    }
}

/// As seconds that would be the year 5138, as milliseconds it is 1973.
const MILLIS_FROM: f64 = 1e11;
/// Longer than any time or number that is written.
const TEXT_CHARS_MAX: usize = 64;
const TOO_MANY: &str = "too many fixes";

#[cfg(test)]
mod tests {
    use protocol::{DeviceNumber, DriverId, TenantId};

    use super::*;

    fn device() -> DeviceKey {
        DeviceKey { tenant: TenantId(3), driver: DriverId(7), device: DeviceNumber(1) }
    }

    fn read(json: &str) -> JsonFixes {
        parse(format!("[{json}]").as_bytes(), device(), 10).expect("it is an array")
    }

    fn one(json: &str) -> Fix {
        read(json).fixes[0]
    }

    const GOOD: &str = r#"{"lat": 1, "lng": 2, "timestamp": 1700000000}"#;

    #[test]
    fn a_fix_keeps_what_was_said_of_it() {
        let fix =
            one(r#"{"lat": 41.1579438, "lng": -8.6291053, "heading": 90, "speed": 12.34, "timestamp": 1700000000,
                "accuracy": 5.2, "altitude": 83.6, "battery": 71.4, "provider": "fused"}"#);

        assert_eq!(fix.position, Position { lat_e7: 411_579_438, lon_e7: -86_291_053 });
        assert_eq!(fix.measured, MeasuredTime(17_000_000_000));
        assert_eq!((fix.speed_dm_s, fix.heading_255, fix.accuracy_m), (Some(123), Some(64), Some(6)));
        assert_eq!((fix.altitude_m, fix.battery_percent), (Some(84), Some(71)));
    }

    #[test]
    fn seconds_milliseconds_and_rfc_3339_say_the_same_time() {
        for timestamp in [
            "1700000000.5",
            "1700000000500",
            r#""1700000000.5""#,
            r#""2023-11-14T22:13:20.5Z""#,
            r#""2023-11-14T23:13:20.5+01:00""#,
        ] {
            let fix = one(&format!(r#"{{"lat": 1, "lng": 2, "timestamp": {timestamp}}}"#));
            assert_eq!(fix.measured, MeasuredTime(17_000_000_005), "{timestamp}");
        }
    }

    #[test]
    fn what_a_receiver_does_not_know_stays_unknown_and_is_no_fault() {
        let said = read(
            r#"{"lat": 1, "lng": 2, "timestamp": 1700000000, "speed": -1, "heading": null, "battery": -1,
                "accuracy": 0, "altitude": null}"#,
        );

        let bare = Fix::at(MeasuredTime(17_000_000_000), Position { lat_e7: 10_000_000, lon_e7: 20_000_000 });
        assert_eq!(said.fixes, [bare]);
        assert_eq!(said.ignored, []);
    }

    #[test]
    fn the_wildest_numbers_become_something_the_judge_rejects() {
        use crate::intake::judge::{JudgeLimits, judge};
        let received = Time(1_700_000_000_000);
        for (json, is_accepted) in [
            (r#"{"lat": 1e300, "lng": 2, "timestamp": 1700000000}"#, false),
            (r#"{"lat": 91, "lng": 2, "timestamp": 1700000000}"#, false),
            (r#"{"lat": 1, "lng": -180.1, "timestamp": 1700000000}"#, false),
            (r#"{"lat": 1, "lng": 2, "timestamp": 1e300}"#, false),
            (r#"{"lat": 1, "lng": 2, "timestamp": -1e300}"#, false),
            (r#"{"lat": 1, "lng": 2, "timestamp": 1700000000, "speed": 1e300}"#, false),
            (r#"{"lat": 1, "lng": 2, "timestamp": 1700000000, "accuracy": 100.1}"#, false),
            (r#"{"lat": 1, "lng": 2, "timestamp": 1700000000, "accuracy": -1}"#, false),
            (
                r#"{"lat": 1, "lng": 2, "timestamp": 1700000000, "accuracy": 100, "speed": 55.5555, "heading": 360}"#,
                true,
            ),
        ] {
            assert_eq!(judge(&one(json), received, &JudgeLimits::default()).is_accepted(), is_accepted, "{json}");
        }
    }

    #[test]
    fn an_odd_field_costs_that_field_and_is_named() {
        for (field, value, reason) in [
            ("battery", "101", IgnoredReason::OutOfRange),
            ("heading", "361", IgnoredReason::OutOfRange),
            ("battery", r#""80%""#, IgnoredReason::NoNumber),
            ("speed", "true", IgnoredReason::NoNumber),
            ("altitude", r#"{"metres": [3]}"#, IgnoredReason::NoNumber),
            ("accuracy", "[1, 2]", IgnoredReason::NoNumber),
        ] {
            let odd = GOOD.replace('}', &format!(r#", "{field}": {value}}}"#));

            let said = read(&format!("{GOOD}, {odd}, {GOOD}"));

            assert_eq!(said.fixes, [one(GOOD); 3], "{odd}");
            assert_eq!(said.ignored, [Ignored { index: 1, field, reason }], "{odd}");
        }
    }

    #[test]
    fn an_odd_fix_costs_that_fix_and_its_neighbours_stand() {
        for (odd, reason) in [
            (r#"{"lat": null, "lng": 2, "timestamp": 1700000000}"#, Missing::Position),
            (r#"{"lat": "north", "lng": 2, "timestamp": 1700000000}"#, Missing::Position),
            (r#"{"lng": 2, "timestamp": 1700000000}"#, Missing::Position),
            (r#"{"lat": 1, "lng": 2, "timestamp": "yesterday"}"#, Missing::Time),
            (r#"{"lat": 1, "lng": 2}"#, Missing::Time),
            ("5", Missing::Object),
            ("null", Missing::Object),
            (r#"[{"lat": 1}]"#, Missing::Object),
        ] {
            let said = read(&format!("{GOOD}, {odd}, {GOOD}"));

            assert_eq!((said.fixes.as_slice(), said.places.as_slice()), (&[one(GOOD); 2][..], &[0, 2][..]), "{odd}");
            assert_eq!(said.unreadable, [Unreadable { index: 1, reason }], "{odd}");
        }
    }

    #[test]
    fn of_a_field_that_comes_twice_the_last_counts() {
        let fix = one(r#"{"lat": 9, "lat": 1, "lng": 2, "timestamp": 1700000000}"#);

        assert_eq!(fix, one(GOOD));
    }

    #[test]
    fn what_is_no_json_or_no_array_is_refused_with_its_place() {
        for (body, wanted) in [
            (String::new(), "EOF"),
            ("{}".to_string(), "array of fixes"),
            (format!("[{GOOD}"), "line 1 column"),
            (format!("[{GOOD}] x"), "trailing characters"),
            (r#"[{"lat": NaN, "lng": 2, "timestamp": 1}]"#.to_string(), "line 1 column"),
        ] {
            let fault = parse(body.as_bytes(), device(), 10).expect_err(&body);
            assert!(matches!(&fault, JsonFault::Malformed(text) if text.contains(wanted)), "{body}: {fault:?}");
        }
    }

    #[test]
    fn too_many_fixes_and_nesting_without_end_are_refused() {
        let eleven = format!("[{}]", [GOOD; 11].join(","));
        let eleven_odd = format!("[{}]", ["5"; 11].join(","));
        let deep = "[".repeat(100_000);

        assert_eq!(parse(eleven.as_bytes(), device(), 10).unwrap_err(), JsonFault::TooMany);
        assert_eq!(parse(eleven_odd.as_bytes(), device(), 10).unwrap_err(), JsonFault::TooMany);
        assert!(parse(deep.as_bytes(), device(), 10).is_err());
    }

    #[test]
    fn a_fix_of_another_driver_or_tenant_is_found() {
        for (more, contradicts) in [
            (r#""driver": 7"#, false),
            (r#""driver": "7", "tenant": 3"#, false),
            (r#""driver": null"#, false),
            (r#""driver": 8"#, true),
            (r#""tenant": "4""#, true),
            (r#""driver": {"id": 7}"#, true),
        ] {
            let said = read(&GOOD.replace('}', &format!(", {more}}}")));
            assert_eq!(said.contradiction, contradicts.then_some(0), "{more}");
        }
    }
}
