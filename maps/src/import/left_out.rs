//! What an import could not take over, with the ids by which it is found on the map: for the mapper who wants to mend it
//! and for whoever wonders why a sign is not heeded.

use std::collections::BTreeMap;

use serde::Serialize;

/// The kinds of what is left out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LeftOutKind {
    /// A turn restriction that cannot be kept.
    Restriction,
    /// A value of an access key that is not known here.
    AccessValue,
    /// A country's speed rule by a name that is not known here.
    LimitRule,
    /// A tag of a way that holds under a condition only.
    Condition,
    /// An older version, or another copy, of an object that is there more than once.
    Repeated,
    /// An object that was deleted and is still there.
    Deleted,
}

impl LeftOutKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            LeftOutKind::Restriction => "turn restrictions",
            LeftOutKind::AccessValue => "values of access that are not known",
            LeftOutKind::LimitRule => "named speed limits that are not known",
            LeftOutKind::Condition => "tags under a condition",
            LeftOutKind::Repeated => "objects that are there more than once",
            LeftOutKind::Deleted => "objects that were deleted",
        }
    }
}

/// One of them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct LeftOut {
    pub kind: LeftOutKind,
    /// `node`, `way` or `relation`.
    pub object: &'static str,
    pub id: i64,
    pub why: String,
}

/// All of them: every one is counted, the first of them are listed.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize)]
pub struct LeftOuts {
    pub counts: BTreeMap<LeftOutKind, u64>,
    pub list: Vec<LeftOut>,
}

impl LeftOuts {
    pub fn add(&mut self, kind: LeftOutKind, object: &'static str, id: i64, why: impl Into<String>) {
        *self.counts.entry(kind).or_default() += 1;
        if self.list.len() < LISTED_MAX {
            let mut why = why.into();
            why.truncate(why.floor_char_boundary(WHY_BYTES_MAX));
            self.list.push(LeftOut { kind, object, id, why });
        }
    }

    pub fn append(&mut self, other: LeftOuts) {
        for (kind, count) in other.counts {
            *self.counts.entry(kind).or_default() += count;
        }
        let room = LISTED_MAX.saturating_sub(self.list.len());
        self.list.extend(other.list.into_iter().take(room));
    }

    pub fn count(&self, kind: LeftOutKind) -> u64 {
        self.counts.get(&kind).copied().unwrap_or(0)
    }
}

impl std::fmt::Display for LeftOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {}", self.object, self.id, self.why)
    }
}

/// A list that a person may look through; a country has some ten thousand.
const LISTED_MAX: usize = 100_000;
const WHY_BYTES_MAX: usize = 200;
