//! The JSON array of the fallback door: read with a bound, and every fault said with the place where it is.

use ::time::OffsetDateTime;
use ::time::format_description::well_known::Rfc3339;
use protocol::fix::heading_255;
use protocol::{DeviceKey, Fix, MeasuredTime, Position, Time};
use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};

/// What a body said.
#[derive(Debug, Default)]
pub struct JsonFixes {
    pub fixes: Vec<Fix>,
    /// The first fix that names another driver or tenant than the device's.
    pub contradiction: Option<usize>,
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
        loop {
            let index = read.fixes.len();
            let next = array.next_element::<JsonFix>();
            let Some(fix) = next.map_err(|error| A::Error::custom(format!("fix {index}: {error}")))? else {
                return Ok(read);
            };
            if index >= self.fixes_max {
                return Err(A::Error::custom(TOO_MANY));
            }
            if fix.contradicts(self.device) {
                read.contradiction.get_or_insert(index);
            }
            read.fixes.push(fix.to_fix());
        }
    }
}

/// As written. What is not known may be left out or null.
#[derive(Deserialize)]
struct JsonFix {
    lat: f64,
    lng: f64,
    timestamp: JsonTime,
    heading: Option<f64>,
    /// Metres per second.
    speed: Option<f64>,
    accuracy: Option<f64>,
    altitude: Option<f64>,
    /// Percent.
    battery: Option<f64>,
    driver: Option<IdClaim>,
    tenant: Option<IdClaim>,
}

impl JsonFix {
    fn contradicts(&self, device: DeviceKey) -> bool {
        let differs = |claim: &Option<IdClaim>, id: u32| claim.as_ref().is_some_and(|claim| !claim.is(id));
        differs(&self.driver, device.driver.0) || differs(&self.tenant, device.tenant.0)
    }

    /// A value that means nothing becomes one that the judge rejects; receivers say -1 for what they do not know.
    fn to_fix(&self) -> Fix {
        let known = |value: Option<f64>| value.filter(|value| *value >= 0.0);
        let position = Position { lat_e7: (self.lat * 1e7).round() as i32, lon_e7: (self.lng * 1e7).round() as i32 };
        Fix {
            // 200 km/h are 55.56 m/s: rounding up would make it too fast.
            speed_dm_s: known(self.speed).map(|speed| (speed * 10.0).floor() as u16),
            heading_255: known(self.heading).map(|degrees| if degrees > 360.0 { 255 } else { heading_255(degrees) }),
            accuracy_m: self.accuracy.map(|metres| if metres < 0.0 { 255 } else { metres.ceil() as u8 }),
            altitude_m: self.altitude.map(|metres| metres.round() as i16),
            battery_percent: known(self.battery).map(|percent| percent.round() as u8),
            ..Fix::at(self.timestamp.0, position)
        }
    }
}

/// Seconds or milliseconds since the Unix epoch, or RFC 3339.
struct JsonTime(MeasuredTime);

impl<'de> Deserialize<'de> for JsonTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TimeReader).map(JsonTime)
    }
}

struct TimeReader;

impl Visitor<'_> for TimeReader {
    type Value = MeasuredTime;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a time in seconds, in milliseconds or by RFC 3339")
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<MeasuredTime, E> {
        self.visit_f64(value as f64)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<MeasuredTime, E> {
        self.visit_f64(value as f64)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<MeasuredTime, E> {
        let millis = if value.abs() < MILLIS_FROM { value * 1000.0 } else { value };
        Ok(MeasuredTime::from_time(Time(millis.round() as i64)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<MeasuredTime, E> {
        let time = OffsetDateTime::parse(text, &Rfc3339)
            .map_err(|_| E::custom(format!("{:?} is no time by RFC 3339", shortened(text))))?;
        Ok(MeasuredTime::from_time(Time((time.unix_timestamp_nanos() / 1_000_000) as i64)))
    }
}

/// What a client believes its driver or tenant to be.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum IdClaim {
    Number(u64),
    Text(String),
    Other(serde::de::IgnoredAny),
}

impl IdClaim {
    pub fn is(&self, id: u32) -> bool {
        match self {
            IdClaim::Number(number) => *number == u64::from(id),
            IdClaim::Text(text) => text.parse() == Ok(id),
            IdClaim::Other(_) => false,
        }
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(TEXT_SHOWN_MAX).collect()
}

/// As seconds that would be the year 5138, as milliseconds it is 1973.
const MILLIS_FROM: f64 = 1e11;
const TEXT_SHOWN_MAX: usize = 40;
const TOO_MANY: &str = "too many fixes";

#[cfg(test)]
mod tests {
    use protocol::{DeviceNumber, DriverId, TenantId};

    use super::*;

    fn device() -> DeviceKey {
        DeviceKey { tenant: TenantId(3), driver: DriverId(7), device: DeviceNumber(1) }
    }

    fn one(json: &str) -> Fix {
        parse(format!("[{json}]").as_bytes(), device(), 10).expect("it is good").fixes[0]
    }

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
        for timestamp in
            ["1700000000.5", "1700000000500", r#""2023-11-14T22:13:20.5Z""#, r#""2023-11-14T23:13:20.5+01:00""#]
        {
            let fix = one(&format!(r#"{{"lat": 1, "lng": 2, "timestamp": {timestamp}}}"#));
            assert_eq!(fix.measured, MeasuredTime(17_000_000_005), "{timestamp}");
        }
    }

    #[test]
    fn what_a_receiver_does_not_know_stays_unknown() {
        let fix = one(r#"{"lat": 1, "lng": 2, "timestamp": 1700000000, "speed": -1, "heading": null, "battery": -1}"#);

        assert_eq!(fix, Fix::at(MeasuredTime(17_000_000_000), Position { lat_e7: 10_000_000, lon_e7: 20_000_000 }));
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
            (r#"{"lat": 1, "lng": 2, "timestamp": 1700000000, "heading": 361}"#, false),
            (r#"{"lat": 1, "lng": 2, "timestamp": 1700000000, "accuracy": 100.1}"#, false),
            (r#"{"lat": 1, "lng": 2, "timestamp": 1700000000, "accuracy": -1}"#, false),
            (r#"{"lat": 1, "lng": 2, "timestamp": 1700000000, "battery": 101}"#, false),
            (
                r#"{"lat": 1, "lng": 2, "timestamp": 1700000000, "accuracy": 100, "speed": 55.5555, "heading": 360}"#,
                true,
            ),
        ] {
            assert_eq!(judge(&one(json), received, &JudgeLimits::default()).is_accepted(), is_accepted, "{json}");
        }
    }

    #[test]
    fn a_fault_is_said_with_its_place() {
        let good = r#"{"lat": 1, "lng": 2, "timestamp": 1700000000}"#;
        for (body, wanted) in [
            (String::new(), "EOF"),
            ("{}".to_string(), "array of fixes"),
            (format!("[{good}, {{\"lat\": 1}}]"), "fix 1: missing field `lng`"),
            (format!("[{good}, {{\"lat\": \"north\"}}]"), "fix 1: "),
            (format!("[{good}"), "line 1 column"),
            (format!("[{good}] x"), "trailing characters"),
            (r#"[{"lat": 1, "lng": 2, "timestamp": "yesterday"}]"#.to_string(), "fix 0: \"yesterday\" is no time"),
            (r#"[{"lat": NaN, "lng": 2, "timestamp": 1}]"#.to_string(), "line 1 column"),
        ] {
            let fault = parse(body.as_bytes(), device(), 10).expect_err(&body);
            assert!(matches!(&fault, JsonFault::Malformed(text) if text.contains(wanted)), "{body}: {fault:?}");
        }
    }

    #[test]
    fn too_many_fixes_and_nesting_without_end_are_refused() {
        let good = r#"{"lat": 1, "lng": 2, "timestamp": 1700000000}"#;
        let eleven = format!("[{}]", [good; 11].join(","));
        let deep = "[".repeat(100_000);

        assert_eq!(parse(eleven.as_bytes(), device(), 10).unwrap_err(), JsonFault::TooMany);
        assert!(parse(deep.as_bytes(), device(), 10).is_err());
    }

    #[test]
    fn a_fix_of_another_driver_or_tenant_is_found() {
        let fix = |more: &str| format!(r#"{{"lat": 1, "lng": 2, "timestamp": 1700000000, {more}}}"#);
        for (more, contradicts) in [
            (r#""driver": 7"#, false),
            (r#""driver": "7", "tenant": 3"#, false),
            (r#""driver": 8"#, true),
            (r#""tenant": "4""#, true),
            (r#""driver": {"id": 7}"#, true),
        ] {
            let body = format!("[{}]", fix(more));
            let read = parse(body.as_bytes(), device(), 10).expect(more);
            assert_eq!(read.contradiction, contradicts.then_some(0), "{more}");
        }
    }
}
