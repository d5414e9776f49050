//! What a turn restriction's tags say: which rule binds whom, always or at some hours. For each profile its own key counts
//! before that of its group and before the plain one; a condition for some takes nothing from the rest.

use std::collections::BTreeMap;

use super::tags::Tags;
use crate::class::Profile;
use crate::hours::Hours;

/// A rule and whom it binds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    pub is_only: bool,
    pub is_u_turn: bool,
    pub profiles: u8,
    /// When it holds, as it was written; always, if not said.
    pub hours: Option<String>,
}

/// The rules of a relation, and what of it cannot be kept, with the reason.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Rules {
    pub rules: Vec<Rule>,
    pub left_out: Vec<String>,
}

/// What the tags of a `type=restriction` say.
pub fn rules(tags: Tags<'_>) -> Rules {
    let mut whole = Rules::default();
    let mut plain: BTreeMap<&str, u8> = BTreeMap::new();
    let mut conditional: BTreeMap<&str, u8> = BTreeMap::new();
    for profile in BOUND {
        if is_excepted(tags, profile) {
            continue;
        }
        if let Some(value) = keys(profile).iter().find_map(|key| tags.value(key)) {
            *plain.entry(value).or_default() |= profile.bit();
        }
        if let Some(value) = keys(profile).iter().find_map(|key| tags.suffixed(key, ":conditional")) {
            *conditional.entry(value).or_default() |= profile.bit();
        }
    }
    let by_old_keys = old_hours(tags);
    for (value, profiles) in plain {
        match &by_old_keys {
            _ if value.contains('@') => whole.add_conditional(value, profiles),
            None => whole.add(value, profiles, None),
            Some(Ok(hours)) => whole.add(value, profiles, Some(hours)),
            Some(Err(why)) => whole.left_out.push((*why).to_owned()),
        }
    }
    for (value, profiles) in conditional {
        whole.add_conditional(value, profiles);
    }
    if whole == Rules::default() && !tags.0.iter().any(|(key, _)| key.starts_with("restriction")) {
        whole.left_out.push("it does not say what it restricts".to_owned());
    }
    whole
}

impl Rules {
    fn add(&mut self, value: &str, profiles: u8, hours: Option<&str>) {
        for value in value.split(';').map(str::trim) {
            let is_only = value.starts_with("only_");
            match value {
                "none" | "no" | "" => {}
                _ if is_only || value.starts_with("no_") => self.rules.push(Rule {
                    is_only,
                    is_u_turn: value.ends_with("_u_turn"),
                    profiles,
                    hours: hours.map(str::to_owned),
                }),
                unknown => self.left_out.push(format!("{unknown} is not known here")),
            }
        }
    }

    /// `no_left_turn @ (Mo-Fr 07:00-09:00); only_right_turn @ (Sa)`.
    fn add_conditional(&mut self, value: &str, profiles: u8) {
        for clause in clauses(value) {
            let Some((rule, condition)) = clause.split_once('@') else {
                self.left_out.push(format!("{clause} does not say under which condition"));
                continue;
            };
            let condition = condition.trim().trim_start_matches('(').trim_end_matches(')').trim();
            match Hours::parse(condition) {
                _ if matches!(rule.trim(), "none" | "no" | "") => {
                    self.left_out.push(format!("{clause} lifts a sign: it is kept as holding always"));
                }
                Ok(_) => self.add(rule, profiles, Some(condition)),
                Err(why) => self.left_out.push(format!("{clause}: {why}")),
            }
        }
    }
}

/// The keys that speak of a profile, the most special first.
fn keys(profile: Profile) -> &'static [&'static str] {
    match profile {
        Profile::Car => &["restriction:motorcar", "restriction:motor_vehicle", "restriction:vehicle", "restriction"],
        Profile::Moped => &[
            "restriction:moped",
            "restriction:mofa",
            "restriction:motor_vehicle",
            "restriction:vehicle",
            "restriction",
        ],
        Profile::Bicycle => &["restriction:bicycle", "restriction:vehicle", "restriction"],
        Profile::Foot => &[],
    }
}

fn is_excepted(tags: Tags<'_>, profile: Profile) -> bool {
    let names: &[&str] = match profile {
        Profile::Car => &["motorcar", "motor_vehicle", "vehicle"],
        Profile::Moped => &["moped", "mofa", "motor_vehicle", "vehicle"],
        Profile::Bicycle => &["bicycle", "vehicle"],
        Profile::Foot => &[],
    };
    let mut excepted = tags.value("except").unwrap_or("").split([';', ',']).map(|one| one.trim().to_ascii_lowercase());
    excepted.any(|one| names.contains(&one.as_str()))
}

/// Split at semicolons outside of brackets.
fn clauses(value: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_usize;
    let parts = value.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ';' && depth == 0
    });
    parts.map(str::trim).filter(|clause| !clause.is_empty())
}

/// How hours were said before conditions had a key of their own: `day_on`, `day_off`, `hour_on`, `hour_off`.
fn old_hours(tags: Tags<'_>) -> Option<Result<String, &'static str>> {
    let value = |key: &str| tags.value(key).map(str::trim);
    let days = (value("day_on"), value("day_off"));
    let hours = (value("hour_on"), value("hour_off"));
    if (days, hours) == ((None, None), (None, None)) {
        return None;
    }
    let text = match (days, hours) {
        ((None, None), (Some(on), Some(off))) => format!("{on}-{off}"),
        ((Some(on), Some(off)), hours) => {
            let short = |day: &str| day.get(..2).unwrap_or("").to_owned();
            let hours = match hours {
                (Some(on), Some(off)) => format!(" {on}-{off}"),
                _ => String::new(),
            };
            format!("{}-{}{hours}", short(on), short(off))
        }
        _ => return Some(Err("its hours have no beginning or no end")),
    };
    Some(Hours::parse(&text).map(|_| text))
}

/// Signs do not bind those on foot.
const BOUND: [Profile; 3] = [Profile::Car, Profile::Moped, Profile::Bicycle];

#[cfg(test)]
mod tests {
    use super::*;

    fn said(tags: &[(&str, &str)]) -> (Vec<String>, usize) {
        let rules = rules(Tags(tags));
        let names =
            |mask: u8| BOUND.iter().filter(|p| mask & p.bit() != 0).map(|p| &p.as_str()[..1]).collect::<String>();
        let text = |rule: &Rule| {
            let kind = if rule.is_only { "only" } else { "no" };
            let hours = rule.hours.as_deref().map(|hours| format!(" {hours}")).unwrap_or_default();
            format!("{kind} {}{hours}", names(rule.profiles))
        };
        (rules.rules.iter().map(text).collect(), rules.left_out.len())
    }

    #[test]
    fn a_condition_for_some_takes_nothing_from_the_rest() {
        type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], usize);
        let cases: &[Case] = &[
            (&[("restriction", "no_left_turn")], &["no cmb"], 0),
            (
                &[("restriction", "no_left_turn"), ("restriction:hgv:conditional", "no_u_turn @ (weight>7.5)")],
                &["no cmb"],
                0,
            ),
            (
                &[("restriction", "no_left_turn"), ("restriction:conditional", "only_right_turn @ (Sa)")],
                &["no cmb", "only cmb Sa"],
                0,
            ),
            (&[("restriction", "no_left_turn"), ("restriction:conditional", "none @ (Sa)")], &["no cmb"], 1),
            (&[("restriction", "no_left_turn"), ("restriction:conditional", "no_u_turn @ (wet)")], &["no cmb"], 1),
            (
                &[("restriction:conditional", "no_left_turn @ (Mo-Fr 07:00-09:00; Sa 10:00-12:00)")],
                &["no cmb Mo-Fr 07:00-09:00; Sa 10:00-12:00"],
                0,
            ),
            (&[("restriction", "no_left_turn @ (Mo-Fr)")], &["no cmb Mo-Fr"], 0),
            (
                &[("restriction", "no_left_turn"), ("hour_on", "07:00"), ("hour_off", "19:00")],
                &["no cmb 07:00-19:00"],
                0,
            ),
            (
                &[
                    ("restriction", "no_left_turn"),
                    ("day_on", "Monday"),
                    ("day_off", "Friday"),
                    ("hour_on", "7:00"),
                    ("hour_off", "9:00"),
                ],
                &["no cmb Mo-Fr 7:00-9:00"],
                0,
            ),
            (&[("restriction", "no_left_turn"), ("hour_on", "07:00")], &[], 1),
            (&[("restriction", "no_left_turn"), ("restriction:bicycle", "none")], &["no cm"], 0),
            (&[("restriction:motorcar", "only_straight_on"), ("restriction", "no_u_turn")], &["no mb", "only c"], 0),
            (&[("restriction:hgv", "no_left_turn")], &[], 0),
            (&[("restriction:hgv:conditional", "no_left_turn @ (22:00-06:00)")], &[], 0),
            (&[("restriction", "no_left_turn"), ("except", "Bicycle; psv")], &["no cm"], 0),
            (&[("restriction", "no_left_turn"), ("except", "vehicle")], &[], 0),
            (&[("restriction", "no_left_turn;no_u_turn")], &["no cmb", "no cmb"], 0),
            (&[("restriction", "strange")], &[], 1),
            (&[("type", "restriction")], &[], 1),
        ];

        for (tags, rules, left_out) in cases {
            assert_eq!(said(tags), (rules.iter().map(|r| (*r).to_owned()).collect(), *left_out), "{tags:?}");
        }
    }
}
