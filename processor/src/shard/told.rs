//! How far what one partition of the records brought forth stands in the updates already: read from their ends, because
//! the state that knew it cannot be used.
//!
//! Every owner writes a heartbeat to each partition of the updates every 5 s, once all that lies below it is durable; what
//! it told since stands behind the last one, with its source. So little is read, unless nobody owned the partition for
//! long while others went on.

use std::time::Duration;

use backends::log::{Log, LogError, OffsetRange, ReadLimit, Topic, read_range};
use protocol::{Offset, PartitionId, Time, Update, UpdateBatch, envelope};

use super::notice::SnapshotNotice;
use crate::track::Told;

/// Reads how far a partition was told. What a notice of a snapshot, readable or not, says is told too.
pub(crate) async fn told(log: &dyn Log, source: PartitionId, notices: &[SnapshotNotice]) -> Result<Told, LogError> {
    let snapped = notices.iter().map(|notice| notice.next).max().unwrap_or_default();
    let mut told = Told { updates: Vec::new(), trail: Offset(0), at: Time(0) };
    let mut whole = snapped;
    for partition in (0..log.partition_count(Topic::Updates)).map(PartitionId) {
        let mark = newest_of(log, partition, source).await?;
        told.updates.push(mark.next.max(snapped));
        told.at = told.at.max(mark.at);
        whole = whole.max(mark.whole);
    }
    // A heartbeat says that everything below it is durable, wherever it was written.
    told.updates.iter_mut().for_each(|next| *next = (*next).max(whole));
    if whole.0 > 0 {
        told.trail = trail_of(log, source, whole).await?;
    }
    Ok(told)
}

/// What the end of one partition of the updates says of a source.
#[derive(Clone, Copy, Default)]
struct Mark {
    /// The first record that was not told here, as far as updates show.
    next: Offset,
    /// The newest heartbeat.
    whole: Offset,
    at: Time,
}

async fn newest_of(log: &dyn Log, partition: PartitionId, source: PartitionId) -> Result<Mark, LogError> {
    let OffsetRange { first, next } = log.range(Topic::Updates, partition).await?;
    let (mut mark, mut end) = (Mark::default(), next);
    while end > first && mark.whole.0 == 0 {
        let begin = Offset(end.0.saturating_sub(ENTRIES_PER_READ).max(first.0));
        let mut reader = log.reader(Topic::Updates, partition, begin).await?;
        while reader.next() < end {
            let entries = match reader.read(ReadLimit::default(), Duration::ZERO).await {
                Err(LogError::Gone { first, .. }) => {
                    reader.seek(Offset(first));
                    continue;
                }
                read => read?,
            };
            if entries.is_empty() {
                break;
            }
            for entry in entries.iter().filter(|entry| entry.offset < end) {
                mark.handle_entry(&entry.value, source);
            }
        }
        end = begin;
    }
    Ok(mark)
}

impl Mark {
    fn handle_entry(&mut self, value: &[u8], source: PartitionId) {
        let Ok(UpdateBatch { updates }) = envelope::decode(value) else { return };
        for update in &updates {
            let (of, at) = match update {
                Update::Delivery(update) => (update.source, update.at),
                Update::Driver(update) => (update.source, update.at),
                Update::Heartbeat { source: of, offset, at } => {
                    if *of == source {
                        self.whole = self.whole.max(*offset);
                        self.at = self.at.max(*at);
                    }
                    continue;
                }
            };
            if of.partition == source {
                self.next = self.next.max(Offset(of.offset.0 + 1));
                self.at = self.at.max(at);
            }
        }
    }
}

/// The first record whose breadcrumb may not be in the trail: places become final within a minute.
async fn trail_of(log: &dyn Log, source: PartitionId, whole: Offset) -> Result<Offset, LogError> {
    let range = log.range(Topic::Records, source).await?;
    let Some(last) = whole.0.min(range.next.0).checked_sub(1).map(Offset).filter(|last| *last >= range.first) else {
        return Ok(Offset(0));
    };
    let one = OffsetRange { first: last, next: Offset(last.0 + 1) };
    let read = read_range(log, Topic::Records, source, one).await?;
    let Some(entry) = read.first() else { return Ok(Offset(0)) };
    log.offset_at(Topic::Records, source, entry.appended - FINAL_WITHIN).await
}

const ENTRIES_PER_READ: u64 = 256;
const FINAL_WITHIN: Duration = Duration::from_secs(600);
