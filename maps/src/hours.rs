//! When a sign holds that holds at some hours only, as OpenStreetMap writes it (`Mo-Fr 07:00-09:00,16:00-18:00`,
//! `Nov-Mar`, `Jun 1-Aug 31 Sa,Su`). Not all that the opening-hours syntax can say: what hangs on holidays, on the sun or
//! on the weather is no answer that a clock can give, and is refused with the reason.

use time::{Date, Month, Time, Weekday};

/// A moment by the clocks of the place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LocalTime {
    month: u8,
    day: u8,
    /// Monday is 0.
    weekday: u8,
    minute: u16,
}

/// The hours of a sign: it holds where any of the rules does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hours(Vec<Rule>);

/// All of a rule's parts must hold; an empty list always does.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Rule {
    /// From one month and day to another, both included.
    dates: Vec<((u8, u8), (u8, u8))>,
    /// A bit for each weekday; none means all.
    weekdays: u8,
    /// Minutes of the day, the second not included; the first is the larger where they reach over midnight.
    times: Vec<(u16, u16)>,
}

impl LocalTime {
    /// `2026-11-30T08:00`, seconds or not: the time that a clock shows there, without a zone.
    pub fn parse(text: &str) -> Option<LocalTime> {
        let (date, clock) = text.trim().split_once(['T', 't', ' '])?;
        let number = |part: Option<&str>| part?.parse::<u16>().ok();
        let mut parts = date.split('-');
        let (year, month, day) = (number(parts.next())?, number(parts.next())?, number(parts.next())?);
        let mut clock = clock.split(':');
        let (hour, minute) = (number(clock.next())?, number(clock.next())?);
        if parts.next().is_some() || clock.next().is_some_and(|s| s.parse::<f64>().is_err()) || clock.next().is_some() {
            return None;
        }
        let month = Month::try_from(u8::try_from(month).ok()?).ok()?;
        let date = Date::from_calendar_date(i32::from(year), month, u8::try_from(day).ok()?).ok()?;
        Time::from_hms(u8::try_from(hour).ok()?, u8::try_from(minute).ok()?, 0).ok()?;
        Some(LocalTime {
            month: date.month().into(),
            day: date.day(),
            weekday: date.weekday().number_days_from_monday(),
            minute: hour * 60 + minute,
        })
    }
}

impl Hours {
    /// Why it cannot be read, else.
    pub fn parse(text: &str) -> Result<Hours, &'static str> {
        if text.len() > TEXT_MAX {
            return Err("longer than hours are");
        }
        let rules = text.split(';').filter(|rule| !rule.trim().is_empty());
        let mut hours = Hours(Vec::new());
        for rule in rules {
            Scanner { rest: rule.trim() }.rules(&mut hours.0)?;
        }
        if hours.0.is_empty() { Err("empty") } else { Ok(hours) }
    }

    pub fn hold_at(&self, at: LocalTime) -> bool {
        self.0.iter().any(|rule| rule.holds_at(at))
    }
}

impl Rule {
    fn holds_at(&self, at: LocalTime) -> bool {
        let is_date = self.dates.is_empty() || self.dates.iter().any(|range| is_within(*range, (at.month, at.day)));
        let is_weekday = |weekday: u8| self.weekdays == 0 || self.weekdays & 1 << (weekday % 7) != 0;
        let is_time = |(from, to): &(u16, u16)| match from < to {
            true => (*from..*to).contains(&at.minute) && is_weekday(at.weekday),
            // The night belongs to the day on which it began.
            false => at.minute >= *from && is_weekday(at.weekday) || at.minute < *to && is_weekday(at.weekday + 6),
        };
        is_date && if self.times.is_empty() { is_weekday(at.weekday) } else { self.times.iter().any(is_time) }
    }
}

fn is_within((from, to): ((u8, u8), (u8, u8)), day: (u8, u8)) -> bool {
    if from <= to { from <= day && day <= to } else { day >= from || day <= to }
}

struct Scanner<'a> {
    rest: &'a str,
}

impl Scanner<'_> {
    fn rules(&mut self, rules: &mut Vec<Rule>) -> Result<(), &'static str> {
        loop {
            let rule = self.rule()?;
            rules.push(rule);
            // `Mo-Fr 07:00-09:00, Sa 10:00-12:00`: another rule behind a comma.
            if self.rest.is_empty() {
                return Ok(());
            }
            if !self.take(",") || rules.len() >= RULES_MAX {
                return Err("no hours that are known here");
            }
        }
    }

    fn rule(&mut self) -> Result<Rule, &'static str> {
        let mut rule = Rule::default();
        if self.take("24/7") {
            return Ok(rule);
        }
        while self.month().is_some() {
            rule.dates.push(self.dates()?);
            self.take_between(Scanner::month);
        }
        self.take(":");
        while let Some(first) = self.weekday() {
            self.skip(2);
            let mut last = first;
            if self.take("-") {
                last = self.weekday().ok_or("no weekday")?;
                self.skip(2);
            }
            let mut day = first;
            rule.weekdays |= 1 << day;
            while day != last {
                day = (day + 1) % 7;
                rule.weekdays |= 1 << day;
            }
            self.take_between(Scanner::weekday);
        }
        while let Some(from) = self.clock() {
            if !self.take("-") {
                return Err("a time that does not say until when");
            }
            let to = self.clock().ok_or("a time that does not say until when")?;
            if from != to {
                rule.times.push((from % DAY, if to > DAY { to - DAY } else { to }));
            }
            let before = self.rest;
            if self.take(",") && !self.rest.starts_with(|c: char| c.is_ascii_digit()) {
                self.rest = before;
            }
        }
        let is_nothing = rule == Rule::default();
        if is_nothing { Err("no hours that are known here") } else { Ok(rule) }
    }

    /// A comma, if another one of the kind follows it.
    fn take_between<T>(&mut self, next: impl Fn(&Self) -> Option<T>) {
        let before = self.rest;
        if self.take(",") && next(self).is_none() {
            self.rest = before;
        }
    }

    fn dates(&mut self) -> Result<(MonthDay, MonthDay), &'static str> {
        let month = self.month().ok_or("no month")?;
        self.skip(3);
        let day = self.number();
        let from = (month, day.unwrap_or(1));
        if !self.take("-") {
            return Ok((from, (month, day.unwrap_or(31))));
        }
        if let Some(month) = self.month() {
            self.skip(3);
            return Ok((from, (month, self.number().unwrap_or(31))));
        }
        let last = self.number().ok_or("no date")?;
        Ok((from, (month, last)))
    }

    fn month(&self) -> Option<u8> {
        let months = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
        let name = self.rest.get(..3)?.to_ascii_lowercase();
        months.iter().position(|month| **month == name).map(|at| at as u8 + 1)
    }

    fn weekday(&self) -> Option<u8> {
        let days = [
            Weekday::Monday,
            Weekday::Tuesday,
            Weekday::Wednesday,
            Weekday::Thursday,
            Weekday::Friday,
            Weekday::Saturday,
            Weekday::Sunday,
        ];
        let name = self.rest.get(..2)?;
        let is_word = self.rest[2..].starts_with(|c: char| c.is_ascii_alphabetic());
        days.iter()
            .filter(|_| !is_word)
            .find(|day| day.to_string()[..2].eq_ignore_ascii_case(name))
            .map(|day| day.number_days_from_monday())
    }

    /// A day of a month: a number that no time begins with.
    fn number(&mut self) -> Option<u8> {
        let digits = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
        if self.rest[digits..].starts_with(':') {
            return None;
        }
        let number = self.rest[..digits].parse().ok().filter(|day| (1..=31).contains(day))?;
        self.skip(digits);
        Some(number)
    }

    /// Minutes of the day, up to 48:00.
    fn clock(&mut self) -> Option<u16> {
        let (hours, rest) = self.rest.split_once(':')?;
        let minutes = rest.get(..2)?;
        let is_number = |text: &str| !text.is_empty() && text.len() <= 2 && text.bytes().all(|b| b.is_ascii_digit());
        if !is_number(hours) || !is_number(minutes) {
            return None;
        }
        let (hour, minute) = (hours.parse::<u16>().ok()?, minutes.parse::<u16>().ok()?);
        let minutes = Some(hour * 60 + minute).filter(|_| minute < 60 && hour <= 48);
        self.rest = rest[2..].trim_start();
        minutes
    }

    fn take(&mut self, text: &str) -> bool {
        let Some(rest) = self.rest.strip_prefix(text) else { return false };
        self.rest = rest.trim_start();
        true
    }

    fn skip(&mut self, bytes: usize) {
        self.rest = self.rest[bytes..].trim_start();
    }
}

/// Month and day, from 1.
type MonthDay = (u8, u8);

const DAY: u16 = 24 * 60;
const TEXT_MAX: usize = 500;
const RULES_MAX: usize = 50;

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-30 is a Monday.
    fn at(text: &str) -> LocalTime {
        LocalTime::parse(text).expect("a time")
    }

    #[test]
    fn a_sign_holds_at_its_hours_and_at_no_others() {
        let cases: &[(&str, &[&str], &[&str])] = &[
            ("Mo-Fr 07:00-09:00", &["2026-11-30T07:00", "2026-12-04T08:59"], &["2026-11-30T09:00", "2026-12-05T08:00"]),
            ("07:00-09:00,16:00-18:00", &["2026-11-29 17:30"], &["2026-11-30T12:00"]),
            ("Mo-Fr 07:00-09:00; Sa 10:00-12:00", &["2026-12-05T11:00"], &["2026-12-05T08:00"]),
            ("Mo-Fr 07:00-09:00, Sa 10:00-12:00", &["2026-12-05T11:00"], &["2026-12-05T08:00"]),
            ("Fr 22:00-06:00", &["2026-12-04T23:00", "2026-12-05T05:00"], &["2026-12-04T05:00", "2026-12-05T23:00"]),
            ("Sa,Su", &["2026-11-29T00:00", "2026-11-28T23:59"], &["2026-11-30T00:00"]),
            ("Fr-Mo", &["2026-11-29T00:00", "2026-11-30T12:00"], &["2026-12-01T00:00"]),
            ("Nov-Mar", &["2026-11-01T00:00", "2027-01-15T10:00"], &["2026-10-31T23:00", "2026-04-01T00:00"]),
            ("Jun 1-Aug 31 Sa,Su 10:00-18:00", &["2026-07-04T12:00"], &["2026-07-03T12:00", "2026-09-05T12:00"]),
            ("Dec 24-26", &["2026-12-25T12:00"], &["2026-12-27T12:00"]),
            ("00:00-24:00", &["2026-11-30T00:00", "2026-11-30T23:59"], &[]),
            ("24/7", &["2026-11-30T00:00"], &[]),
            ("mo-fr 7:00-9:00", &["2026-11-30T07:30"], &["2026-11-30T06:59"]),
        ];

        for (text, in_force, not) in cases {
            let hours = Hours::parse(text).unwrap_or_else(|why| panic!("{text}: {why}"));
            in_force.iter().for_each(|time| assert!(hours.hold_at(at(time)), "{text} at {time}"));
            not.iter().for_each(|time| assert!(!hours.hold_at(at(time)), "{text} at {time}"));
        }
    }

    #[test]
    fn what_no_clock_can_say_is_refused() {
        for text in
            ["", "PH", "sunrise-sunset", "wet", "weight>3.5", "Mo-Fr 07:00", "Mo-Fr AND wet", "25:99-3", "é", "Mo-é"]
        {
            assert!(Hours::parse(text).is_err(), "{text}");
        }
        assert!(Hours::parse(&"Mo;".repeat(500)).is_err());
        for text in
            ["", "08:00", "2026-11-30", "2026-13-01T08:00", "2026-11-30T24:00", "2026-11-30T08:00Z", "2026-11-30T8"]
        {
            assert_eq!(LocalTime::parse(text), None, "{text}");
        }
    }
}
