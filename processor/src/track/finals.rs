//! The final places that a run of late fixes may go on from. Late fixes lie where live ones are missing: after the last
//! final place, or after one that nothing followed for a while. Those few are kept.

use maps::matcher::Snapped;
use protocol::MeasuredTime;
use wincode::{SchemaRead, SchemaWrite};

/// At most `GAPS_MAX` and one more, oldest first.
#[derive(Clone, PartialEq, Debug, Default, SchemaWrite, SchemaRead)]
pub(crate) struct Finals {
    before_gaps: Vec<(Snapped, MeasuredTime)>,
    last: Option<(Snapped, MeasuredTime)>,
}

impl Finals {
    pub(crate) fn handle_final(&mut self, snapped: Snapped, measured: MeasuredTime) {
        let before = self.last.replace((snapped, measured));
        let Some(before) = before.filter(|(_, at)| measured.0.saturating_sub(at.0) >= GAP_DS) else { return };
        if self.before_gaps.len() >= GAPS_MAX {
            self.before_gaps.remove(0);
        }
        self.before_gaps.push(before);
    }

    pub(crate) fn is_trimmed(&self) -> bool {
        self.before_gaps.is_empty() && self.last.is_none()
    }

    /// Forgets them: the driver has not been heard of for long, and late fixes begin anew.
    pub(crate) fn trim(&mut self) {
        *self = Finals::default();
    }

    /// The last one before a time, unless that is so long ago that it says nothing.
    pub(crate) fn before(&self, measured: MeasuredTime) -> Option<(Snapped, MeasuredTime)> {
        let mut newest_first = self.last.iter().chain(self.before_gaps.iter().rev());
        let before = newest_first.find(|(_, at)| *at < measured)?;
        (measured.0.saturating_sub(before.1.0) <= OLD_DS).then_some(*before)
    }
}

/// Longer than phones leave between fixes under way.
const GAP_DS: i64 = 100;
const GAPS_MAX: usize = 4;
/// Where he was ten minutes before, he may be anywhere.
const OLD_DS: i64 = 6_000;

#[cfg(test)]
mod tests {
    use maps::EdgeId;
    use protocol::Position;

    use super::*;

    fn place(edge: u32) -> Snapped {
        let position = Position::default();
        Snapped { edge: EdgeId(edge), along_cm: 0, off_cm: 0, position, heading_255: 0, confidence_percent: 100 }
    }

    #[test]
    fn a_late_run_goes_on_from_where_its_gap_began() {
        let mut finals = Finals::default();
        for (edge, second) in [(1, 0), (2, 4), (3, 8), (4, 70), (5, 74), (6, 78)] {
            finals.handle_final(place(edge), MeasuredTime(second * 10));
        }

        let seed = |second: i64| finals.before(MeasuredTime(second * 10)).map(|(snapped, _)| snapped.edge.0);

        assert_eq!(seed(20), Some(3));
        assert_eq!(seed(80), Some(6));
        assert_eq!(seed(7), None); // no gap there: nothing late can belong there
        assert_eq!(seed(10_000), None);
    }

    #[test]
    fn however_many_gaps_there_are_few_are_kept() {
        let mut finals = Finals::default();
        for i in 0..1_000 {
            finals.handle_final(place(i), MeasuredTime(i64::from(i) * 200));
        }

        assert_eq!(finals.before_gaps.len(), GAPS_MAX);
    }
}
