//! What a fold brought forth, as entries of the log.

use std::collections::BTreeMap;

use backends::log::{Append, Topic};
use bytes::Bytes;
use protocol::envelope::{self, ENTRY_BYTES_MAX, Enveloped};
use protocol::update::BreadcrumbBatch;
use protocol::{Breadcrumb, PartitionId, TrackerKey, Update, UpdateBatch, partition_of};
use tracing::error;

use super::fold::{Folded, Folder};
use crate::track::Effects;

impl Folder {
    pub(super) fn encode_effects(&self, effects: Effects) -> Folded {
        self.metrics.count(&effects.counts);
        if effects.counts.folds_failed > 0 {
            error!(
                partition = self.id.0,
                records = effects.counts.folds_failed,
                "a fold failed: records were set aside"
            );
        }
        self.metrics.updates.increment(effects.updates.len() as u64);
        self.metrics.breadcrumbs.increment(effects.breadcrumbs.len() as u64);
        let mut by_partition: BTreeMap<PartitionId, Vec<Update>> = BTreeMap::new();
        for update in effects.updates {
            by_partition.entry(updates_partition(&update, self.updates_partitions)).or_default().push(update);
        }
        let mut appends = Vec::new();
        for (partition, updates) in by_partition {
            self.encode::<UpdateBatch>(Topic::Updates, partition, updates, &mut appends);
        }
        self.encode::<BreadcrumbBatch>(Topic::Trail, self.id, effects.breadcrumbs, &mut appends);
        let clock = self.partition.clock();
        Folded { next: self.partition.next(), appends, at: clock.now(), ahead_ms: self.skew.ahead_ms() }
    }

    /// As few entries as hold them all.
    fn encode<B: Batch>(&self, topic: Topic, partition: PartitionId, items: Vec<B::Item>, appends: &mut Vec<Append>) {
        if items.is_empty() {
            return;
        }
        let count = items.len();
        let batch = B::of(items);
        if count <= ITEMS_MAX {
            let value = envelope::encode(&batch);
            if value.len() <= ENTRY_BYTES_MAX {
                appends.push(Append { topic, partition, key: Bytes::new(), value: value.into() });
                return;
            }
        }
        if count == 1 {
            error!(topic = topic.name(), partition = partition.0, "an update is too large for the log");
            self.metrics.updates_too_large.increment(1);
            return;
        }
        let mut first = batch.into_items();
        let second = first.split_off(count / 2);
        self.encode::<B>(topic, partition, first, appends);
        self.encode::<B>(topic, partition, second, appends);
    }
}

/// What an entry of the updates or the trail topic holds.
trait Batch: Enveloped {
    type Item;

    fn of(items: Vec<Self::Item>) -> Self;

    fn into_items(self) -> Vec<Self::Item>;
}

impl Batch for UpdateBatch {
    type Item = Update;

    fn of(updates: Vec<Update>) -> UpdateBatch {
        UpdateBatch { updates }
    }

    fn into_items(self) -> Vec<Update> {
        self.updates
    }
}

impl Batch for BreadcrumbBatch {
    type Item = Breadcrumb;

    fn of(breadcrumbs: Vec<Breadcrumb>) -> BreadcrumbBatch {
        BreadcrumbBatch { breadcrumbs }
    }

    fn into_items(self) -> Vec<Breadcrumb> {
        self.breadcrumbs
    }
}

/// Updates of a delivery go by its own key, whoever drives it.
pub(crate) fn updates_partition(update: &Update, count: u32) -> PartitionId {
    match update {
        Update::Delivery(update) => partition_of(&TrackerKey::Delivery(update.key).key_bytes(), count),
        Update::Driver(update) => partition_of(&TrackerKey::Driver(update.key).key_bytes(), count),
        Update::Heartbeat { source, .. } => PartitionId(source.0 % count),
    }
}

/// Above this many, entries are cut anyway: readers take them one by one.
const ITEMS_MAX: usize = 4_096;
