//! What only a fix's neighbours can tell: whether it can have been driven from the one before it, and to the one after
//! it, in order of measured time. What stands alone is rejected; when three in a row agree with each other against what
//! was believed, it is the old belief that was wrong, and they are taken. So no single wild fix moves the dot, and no
//! single wild fix can freeze it.

use maps::geo;
use protocol::{Position, RejectReason, Time, Verdict};
use wincode::{SchemaRead, SchemaWrite};

use super::clock_set::ClockSet;
use super::dormant::{Reader, Writer};
use super::fields::{Plain, fields};

/// The accepted fixes around the newest, of one device.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Neighbours {
    /// By time, at most `NEIGHBOURS_MAX`.
    accepted: Vec<Neighbour>,
    suspect: Option<Suspect>,
}

fields! {
    Neighbours {
        1 accepted: Plain,
        2 suspect: Plain = None,
    }
}

#[derive(Clone, Copy, PartialEq, Debug, SchemaWrite, SchemaRead)]
pub struct Neighbour {
    pub at: Time,
    pub position: Position,
    pub accuracy_m: Option<u8>,
}

/// Rejected fixes that agree with each other.
#[derive(Clone, Copy, PartialEq, Debug, SchemaWrite, SchemaRead)]
struct Suspect {
    last: Neighbour,
    fixes: u8,
}

impl Neighbours {
    pub fn judge(&mut self, fix: Neighbour) -> Verdict {
        let at = self.accepted.partition_point(|other| other.at <= fix.at);
        let before = at.checked_sub(1).and_then(|i| self.accepted[i].reject(&fix));
        let after = self.accepted.get(at).and_then(|other| other.reject(&fix));
        let is_newest = at == self.accepted.len();
        match before.or(after) {
            None => self.accept(at, fix),
            Some(_) if is_newest && self.is_confirmed(fix) => {
                self.accepted.clear();
                self.accept(0, fix)
            }
            Some(reason) => Verdict::Rejected(reason),
        }
    }

    fn accept(&mut self, at: usize, fix: Neighbour) -> Verdict {
        if at == self.accepted.len() {
            self.suspect = None;
        }
        if self.accepted.len() < NEIGHBOURS_MAX {
            self.accepted.insert(at, fix);
        } else if at > 0 {
            self.accepted.remove(0);
            self.accepted.insert(at - 1, fix);
        }
        Verdict::Accepted
    }

    pub(super) fn write_dormant(&self, to: &mut Writer) -> Option<()> {
        let Neighbours { accepted, suspect } = self;
        to.write(accepted)?;
        to.write(suspect)
    }

    pub(super) fn read_dormant(from: &mut Reader<'_>) -> Option<Neighbours> {
        Some(Neighbours { accepted: from.read()?, suspect: from.read()? })
    }

    pub(super) fn is_trimmed(&self) -> bool {
        self.accepted.len() <= NEIGHBOURS_DORMANT
    }

    /// Keeps the newest alone: the driver has not been heard of for long.
    pub(super) fn trim(&mut self) {
        self.accepted.drain(..self.accepted.len().saturating_sub(NEIGHBOURS_DORMANT));
        self.accepted.shrink_to_fit();
    }

    /// The clock was set.
    pub(super) fn handle_clock_set(&mut self, set: ClockSet) {
        let suspected = self.suspect.iter_mut().map(|suspect| &mut suspect.last);
        self.accepted.iter_mut().chain(suspected).for_each(|neighbour| set.stamp(&mut neighbour.at));
    }

    fn is_confirmed(&mut self, fix: Neighbour) -> bool {
        let agreeing =
            self.suspect.filter(|s| s.last.at <= fix.at && s.last.reject(&fix).is_none()).map_or(0, |s| s.fixes);
        self.suspect = Some(Suspect { last: fix, fixes: agreeing + 1 });
        agreeing + 1 >= SUSPECTS
    }
}

impl Neighbour {
    /// Why the other cannot have been driven to from here, or the other way round.
    fn reject(&self, other: &Neighbour) -> Option<RejectReason> {
        let radius = |n: &Neighbour| f64::from(n.accuracy_m.unwrap_or(ACCURACY_UNKNOWN_M));
        let apart_m = geo::distance_cm(self.position, other.position) / 100.0 - radius(self) - radius(other) - SLACK_M;
        let seconds = (self.at.millis_since(other.at)).unsigned_abs() as f64 / 1000.0;
        if apart_m <= SPEED_M_S_MAX * seconds {
            return None;
        }
        let is_jump = apart_m > SPEED_M_S_MAX * JUMP_FACTOR * seconds.max(1.0);
        Some(if is_jump { RejectReason::Jump } else { RejectReason::DerivedTooFast })
    }
}

const NEIGHBOURS_MAX: usize = 8;
/// A driver who was away is judged by where he was last.
const NEIGHBOURS_DORMANT: usize = 1;
/// So many in a row that agree are believed.
const SUSPECTS: u8 = 3;
const SPEED_M_S_MAX: f64 = 200.0 / 3.6;
/// From so many times the highest speed on it is no question of speed any more.
const JUMP_FACTOR: f64 = 4.0;
const ACCURACY_UNKNOWN_M: u8 = 20;
/// What receivers jitter beyond what they say.
const SLACK_M: f64 = 50.0;

#[cfg(test)]
mod tests {
    use super::*;

    /// So many metres east of a place in Porto.
    fn fix(at_s: i64, east_m: f64) -> Neighbour {
        let plane = geo::Plane::at(Position { lat_e7: 411_500_000, lon_e7: -86_100_000 });
        Neighbour { at: Time::from_secs(at_s), position: plane.to_position((east_m * 100.0, 0.0)), accuracy_m: Some(5) }
    }

    #[test]
    fn a_single_wild_fix_is_rejected_and_the_next_good_one_accepted() {
        let mut neighbours = Neighbours::default();
        assert!(neighbours.judge(fix(0, 0.0)).is_accepted());

        assert_eq!(neighbours.judge(fix(4, 9_000.0)), Verdict::Rejected(RejectReason::Jump));
        assert_eq!(neighbours.judge(fix(8, 700.0)), Verdict::Rejected(RejectReason::DerivedTooFast));
        assert!(neighbours.judge(fix(12, 120.0)).is_accepted());
    }

    #[test]
    fn a_wild_first_fix_does_not_freeze_the_dot() {
        let mut neighbours = Neighbours::default();
        neighbours.judge(fix(0, 500_000.0));

        let verdicts: Vec<bool> = (1..5).map(|i| neighbours.judge(fix(4 * i, 40.0 * i as f64)).is_accepted()).collect();

        assert_eq!(verdicts, [false, false, true, true]);
    }

    #[test]
    fn a_late_fix_is_judged_between_its_neighbours() {
        let mut neighbours = Neighbours::default();
        neighbours.judge(fix(0, 0.0));
        neighbours.judge(fix(40, 400.0));

        assert!(neighbours.judge(fix(20, 210.0)).is_accepted());
        assert!(!neighbours.judge(fix(30, 5_000.0)).is_accepted());
        assert!(!neighbours.judge(fix(31, 5_000.0)).is_accepted());
        assert!(!neighbours.judge(fix(32, 5_000.0)).is_accepted());
        assert!(neighbours.judge(fix(44, 440.0)).is_accepted());
    }
}
