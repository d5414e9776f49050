//! The times of a recorded trip, as recorders really write them: a clock that stood in 1970 until the first fix, a point
//! in the year 0 or in the future, a zone by name, 24:00, milliseconds where seconds are meant. What is odd is one point's
//! fault, not the file's, nor that of what follows.

use protocol::Fix;
use time::format_description::well_known::Iso8601;
use time::{Date, Month, OffsetDateTime, PrimitiveDateTime};

use crate::geo;

/// What was odd about a trip's times, and what was made of it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct TimeNotes {
    /// Points whose time cannot be read: as if none had been said.
    pub unreadable: usize,
    /// Points left out because their time does not fit those around it.
    pub odd: usize,
    /// The times were milliseconds and are taken as such.
    pub are_milliseconds: bool,
}

impl TimeNotes {
    pub fn add(&mut self, other: TimeNotes) {
        self.unreadable += other.unreadable;
        self.odd += other.odd;
        self.are_milliseconds |= other.are_milliseconds;
    }

    /// In words, a sentence each.
    pub fn sentences(&self) -> Vec<String> {
        let mut all = Vec::new();
        if self.unreadable > 0 {
            all.push(format!(
                "{} points have a time that cannot be read: it is taken from those around them",
                self.unreadable
            ));
        }
        if self.odd > 0 {
            all.push(format!("{} points are left out: their time does not fit those around them", self.odd));
        }
        if self.are_milliseconds {
            all.push("the times are milliseconds, not seconds, and are read as such".to_owned());
        }
        all
    }
}

/// Tenths of a second since 1970: with the zone that the text names by its offset, else UTC, as GPX asks for.
pub fn parse_ds(text: &str) -> Option<i64> {
    let text = text.trim().trim_start_matches('\u{feff}');
    if let Ok(number) = text.parse::<f64>() {
        return number_ds(number);
    }
    // As Java writes it: `2023-07-01T10:00:00+02:00[Europe/Brussels]`.
    let (text, zone) = match text.split_once('[') {
        Some((text, zone)) => (text.trim_end(), Some(zone.trim_end_matches(']'))),
        None => (text, None),
    };
    plain_ds(text, zone).or_else(|| iso_ds(text).filter(|_| zone.is_none()))
}

/// Seconds since 1970, or milliseconds where seconds would be thousands of years off.
fn number_ds(number: f64) -> Option<i64> {
    let seconds = if number.abs() >= MILLISECONDS_FROM { number / 1000.0 } else { number };
    (seconds.abs() < MILLISECONDS_FROM).then(|| (seconds * 10.0).round() as i64)
}

fn plain_ds(text: &str, zone: Option<&str>) -> Option<i64> {
    let (date, clock) = text.split_once(['T', 't', ' '])?;
    let mut parts = date.split(['-', '/']).map(|part| part.parse::<i32>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    let month = Month::try_from(u8::try_from(month).ok()?).ok()?;
    let date = Date::from_calendar_date(year, month, u8::try_from(day).ok()?).ok()?;
    let clock = clock.trim();
    let at = clock.find(|c: char| !c.is_ascii_digit() && !matches!(c, ':' | '.' | ',')).unwrap_or(clock.len());
    let seconds = clock_s(&clock[..at])?;
    let offset_s = match clock[at..].trim() {
        "" if zone.is_none_or(is_utc) => 0.0,
        name if is_utc(name) => 0.0,
        offset => offset_s(offset)?,
    };
    let midnight = date.midnight().assume_utc().unix_timestamp();
    Some(((midnight as f64 + seconds - offset_s) * 10.0).floor() as i64)
}

/// `hh:mm`, `hh:mm:ss`, `hh:mm:ss.f`; 24:00 is the next day's 00:00, and a leap second the last of its minute.
fn clock_s(text: &str) -> Option<f64> {
    let mut parts = text.split(':');
    let (hour, minute): (u32, u32) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let second: f64 = parts.next().map_or(Some(0.0), |s| s.replace(',', ".").parse().ok())?;
    let is_clock = parts.next().is_none() && hour <= 24 && minute < 60 && (0.0..61.0).contains(&second);
    let seconds = f64::from(hour * 3600 + minute * 60) + second.min(59.999);
    (is_clock && seconds <= 86_400.0).then_some(seconds)
}

fn is_utc(name: &str) -> bool {
    ["Z", "UTC", "GMT", "Etc/UTC"].iter().any(|utc| name.eq_ignore_ascii_case(utc))
}

/// `+02:00`, `+0200`, `+02`.
fn offset_s(text: &str) -> Option<f64> {
    let sign = match text.chars().next()? {
        '+' => 1.0,
        '-' | '\u{2212}' => -1.0,
        _ => return None,
    };
    let digits: String = text.chars().skip(1).filter(|c| *c != ':').collect();
    let is_offset = matches!(digits.len(), 2 | 4) && digits.bytes().all(|b| b.is_ascii_digit());
    let number = |range: std::ops::Range<usize>| digits.get(range).map_or(0.0, |d| d.parse().unwrap_or(0.0));
    is_offset.then(|| sign * (number(0..2) * 3600.0 + number(2..4) * 60.0))
}

/// Whatever else ISO 8601 knows.
fn iso_ds(text: &str) -> Option<i64> {
    let with_zone = OffsetDateTime::parse(text, &Iso8601::DEFAULT).ok();
    let without = || PrimitiveDateTime::parse(text, &Iso8601::DEFAULT).ok().map(PrimitiveDateTime::assume_utc);
    let ns = with_zone.or_else(without)?.unix_timestamp_nanos();
    i64::try_from(ns.div_euclid(100_000_000)).ok()
}

/// Which of a trip's times, in the order of its points, do not fit the others: those before there was a GPS where others
/// are later, those that go back or forward beside all around them, and one or two at an end, days away from the rest.
/// Where times are out of order everywhere, none is odd: that is how the file is.
pub fn odd(times: &[Option<i64>]) -> Vec<bool> {
    let mut is_odd = vec![false; times.len()];
    let said: Vec<(usize, i64)> = times.iter().enumerate().filter_map(|(i, t)| Some((i, (*t)?))).collect();
    let count = said.iter().filter(|(_, t)| *t >= GPS_DS).count();
    let has_modern = count * 2 > said.len() || (count >= 2 && count * 10 > said.len());
    let (modern, old): (Vec<_>, Vec<_>) = said.into_iter().partition(|(_, t)| *t >= GPS_DS);
    let kept = if has_modern {
        old.iter().for_each(|(i, _)| is_odd[*i] = true);
        modern
    } else {
        // Times count from the beginning of the trip: one of this century among them is odd.
        modern.iter().for_each(|(i, _)| is_odd[*i] = true);
        old
    };
    let rising = longest_rising(&kept);
    let few = (kept.len() / 10).max(1);
    let mut rest = kept.clone();
    if kept.len() - rising.len() <= few && kept.len() > 2 {
        kept.iter().filter(|one| rising.binary_search(one).is_err()).for_each(|(i, _)| is_odd[*i] = true);
        rest = rising;
    }
    let is_far = |a: (usize, i64), b: (usize, i64)| b.1.saturating_sub(a.1) > DAY_DS;
    for count in [1, 2] {
        if rest.len() < 10.max(count * 10) {
            break;
        }
        if is_far(rest[count - 1], rest[count]) {
            rest[..count].iter().for_each(|(i, _)| is_odd[*i] = true);
        }
        let end = rest.len() - count;
        if is_far(rest[end - 1], rest[end]) {
            rest[end..].iter().for_each(|(i, _)| is_odd[*i] = true);
        }
    }
    is_odd
}

/// The longest list of points whose times do not fall, sorted by point.
fn longest_rising(points: &[(usize, i64)]) -> Vec<(usize, i64)> {
    let mut ends: Vec<usize> = Vec::new(); // of the best list of each length, its last point
    let mut before: Vec<Option<usize>> = Vec::with_capacity(points.len());
    for (number, (_, time)) in points.iter().enumerate() {
        let length = ends.partition_point(|end| points[*end].1 <= *time);
        before.push(length.checked_sub(1).map(|length| ends[length]));
        match ends.get_mut(length) {
            Some(end) => *end = number,
            None => ends.push(number),
        }
    }
    let mut rising = Vec::with_capacity(ends.len());
    let mut at = ends.last().copied();
    while let Some(number) = at {
        rising.push(points[number]);
        at = before[number];
    }
    rising.reverse();
    rising
}

/// Times in milliseconds that were taken for seconds, known by how slowly one would have moved: made right.
pub fn mend_milliseconds(fixes: &mut [Fix]) -> bool {
    let mut speeds: Vec<f64> = fixes
        .windows(2)
        .filter_map(|pair| {
            let seconds = pair[1].measured.seconds_since(pair[0].measured);
            let metres = geo::distance_cm(pair[0].position, pair[1].position) / 100.0;
            (seconds > 0.0 && metres > 1.0).then(|| metres / seconds)
        })
        .collect();
    speeds.sort_unstable_by(f64::total_cmp);
    let Some(median) = speeds.get(speeds.len() / 2).copied().filter(|_| speeds.len() >= 3) else { return false };
    let are_milliseconds = median < SLOW_M_S_MAX && (WALK_M_S..FAST_M_S_MAX).contains(&(median * 1000.0));
    if are_milliseconds {
        fixes.iter_mut().for_each(|fix| fix.measured.0 = (fix.measured.0 + 500).div_euclid(1000));
    }
    are_milliseconds
}

/// The year 5138 in seconds, 1973 in milliseconds.
const MILLISECONDS_FROM: f64 = 1e11;
/// 1990: there was hardly a receiver before.
const GPS_DS: i64 = 6_311_520_000;
const DAY_DS: i64 = 864_000;
/// Slower than a snail's two hours for a garden, on the median of the hops that move at all …
const SLOW_M_S_MAX: f64 = 0.06;
/// … and between a walk and an aeroplane if they are milliseconds.
const WALK_M_S: f64 = 0.5;
const FAST_M_S_MAX: f64 = 60.0;

#[cfg(test)]
mod tests {
    use protocol::{MeasuredTime, Position};

    use super::*;

    #[test]
    fn a_time_is_read_in_each_form_that_recorders_write() {
        let noon = parse_ds("2023-07-01T10:00:00Z").unwrap();
        for text in [
            "2023-07-01T12:00:00+02:00[Europe/Brussels]",
            "2023-07-01T10:00:00Z[UTC]",
            "2023-07-01 10:00:00",
            "2023-07-01T10:00",
            "2023-07-01t10:00:00z",
            "2023-07-01T10:00:00.000Z",
            "2023-07-01T10:00:00,04Z",
            "2023-07-01T12:00:00+0200",
            "2023-07-01T05:00:00-05",
            "2023-07-01 10:00:00 UTC",
            "2023/07/01 10:00:00",
            "1688205600",
            "1688205600000",
            "\u{feff}2023-07-01T10:00:00Z",
        ] {
            assert_eq!(parse_ds(text), Some(noon), "{text}");
        }
        assert_eq!(parse_ds("2023-06-30T24:00:00Z"), parse_ds("2023-07-01T00:00:00Z"));
        assert_eq!(
            parse_ds("2016-12-31T23:59:60Z").map(|ds| ds / 10),
            parse_ds("2016-12-31T23:59:59Z").map(|ds| ds / 10)
        );
        for text in [
            "",
            "yesterday",
            "2023-07-01T10:00:00[Europe/Brussels]",
            "2023-13-01T10:00:00Z",
            "2023-07-01T25:00:00Z",
            "2023-07-01T10:00:00 CEST",
            "1e300",
            "NaN",
        ] {
            assert_eq!(parse_ds(text), None, "{text}");
        }
    }

    #[test]
    fn what_does_not_fit_costs_only_itself() {
        let base = GPS_DS * 2;
        let track = |odd: &[(usize, i64)]| {
            let mut times: Vec<Option<i64>> = (0..30).map(|i| Some(base + i * 20)).collect();
            odd.iter().for_each(|(at, time)| times[*at] = Some(*time));
            times
        };
        let found = |times: &[Option<i64>]| {
            let is_odd = super::odd(times);
            is_odd.iter().enumerate().filter(|(_, is_odd)| **is_odd).map(|(i, _)| i).collect::<Vec<_>>()
        };

        assert_eq!(found(&track(&[])), Vec::<usize>::new());
        assert_eq!(found(&track(&[(10, base + 1_000_000_000)])), [10]);
        assert_eq!(found(&track(&[(10, base + 300)])), [10]);
        assert_eq!(found(&track(&[(10, -621_355_968_000)])), [10]);
        assert_eq!(found(&track(&[(0, -621_355_968_000)])), [0]);
        assert_eq!(found(&track(&[(29, base * 2)])), [29]);
        assert_eq!(found(&track(&[(0, base - 2 * DAY_DS)])), [0]);
        assert_eq!(found(&track(&[(0, 0), (1, 20), (2, 40), (3, 60)])), [0, 1, 2, 3]);
        // Out of order everywhere: so it is.
        let reversed: Vec<_> = track(&[]).into_iter().rev().collect();
        assert_eq!(found(&reversed), Vec::<usize>::new());
        // Counted from the trip's beginning, with one that a clock said.
        let relative: Vec<_> = (0..30).map(|i| Some(if i == 7 { base } else { i * 40 })).collect();
        assert_eq!(found(&relative), [7]);
        assert_eq!(found(&[None, None]), Vec::<usize>::new());
    }

    #[test]
    fn milliseconds_are_noticed_by_how_slow_everybody_would_be() {
        let drive = |apart_ds: i64| -> Vec<Fix> {
            let at = |i: i64| Position { lat_e7: 411_000_000 + i as i32 * 4_000, lon_e7: -86_000_000 };
            (0..20).map(|i| Fix::at(MeasuredTime(i * apart_ds), at(i))).collect()
        };
        let (mut seconds, mut milliseconds) = (drive(40), drive(40_000));

        assert!(!mend_milliseconds(&mut seconds) && mend_milliseconds(&mut milliseconds));
        assert_eq!(milliseconds, seconds);
    }
}
