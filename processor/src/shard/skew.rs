//! How wrong our own clock is, as far as a partition's records show it.

use std::collections::BTreeMap;

use protocol::record::OwnerId;
use protocol::{EdgeId, Record, RecordBatch, Time};

/// How far our clock is from the edges', both compared with when the log took what they wrote: so a fold that lags does
/// not look like a clock that is wrong.
#[derive(Default)]
pub(crate) struct Skew {
    /// Of each edge's newest mark, with when the log took it.
    edges: BTreeMap<EdgeId, (i64, Time)>,
    own_ms: Option<(i64, Time)>,
}

impl Skew {
    pub(crate) fn handle_entry(&mut self, batch: &RecordBatch, appended: Time, own: OwnerId) {
        for record in &batch.records {
            if let Record::Mark { edge, received_before } = record {
                self.edges.insert(*edge, (received_before.millis_since(appended), appended));
            }
            if let Record::Tick { owner, at } = record
                && *owner == own
            {
                self.own_ms = Some((at.millis_since(appended), appended));
            }
        }
        self.edges.retain(|_, (_, seen)| appended.millis_since(*seen) < EDGE_SEEN_MS);
    }

    /// While we append no ticks, reading says at least by how much our clock is not behind.
    pub(crate) fn handle_read(&mut self, read: Time, appended: Time) {
        let is_old = self.own_ms.is_none_or(|(_, seen)| appended.millis_since(seen) > TICKS_OLD_MS);
        if is_old {
            self.own_ms = Some((read.millis_since(appended), appended));
        }
    }

    pub(crate) fn ahead_ms(&self) -> Option<i64> {
        let mut edges: Vec<i64> = self.edges.values().map(|(ms, _)| *ms).collect();
        edges.sort_unstable();
        let median = edges.get(edges.len() / 2)?;
        self.own_ms.map(|(own, _)| own - median)
    }
}

const EDGE_SEEN_MS: i64 = 60_000;
const TICKS_OLD_MS: i64 = 5_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_compared_with_the_median_of_the_edges_and_lag_is_not_skew() {
        let mut skew = Skew::default();
        let mark = |edge, at| Record::Mark { edge: EdgeId(edge), received_before: Time(at) };
        let records = vec![
            mark(1, 1_000_000),
            mark(2, 1_000_010),
            mark(3, 900_000),
            Record::Tick { owner: OwnerId(1), at: Time(1_007_000) },
        ];

        skew.handle_entry(&RecordBatch { records }, Time(1_000_020), OwnerId(1));
        skew.handle_read(Time(5_000_000), Time(1_000_020));

        assert_eq!(skew.ahead_ms(), Some(7_000));
    }
}
