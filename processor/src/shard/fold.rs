//! The thread that folds one partition: entries in, encoded updates and breadcrumbs out, in order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use backends::log::{Append, StoredEntry, Topic};
use bytes::Bytes;
use protocol::envelope::{self, Decoded, ENTRY_BYTES_MAX, Enveloped};
use protocol::record::{BlobHash, BodyKind, OwnerId};
use protocol::update::{BreadcrumbBatch, Generation};
use protocol::{
    Breadcrumb, EdgeId, Offset, PartitionId, Record, RecordBatch, Time, TrackerKey, Update, UpdateBatch, partition_of,
};
use tokio::sync::mpsc;
use tracing::{error, info};

use super::facts::HeldDelivery;
use super::fold_bodies::FoldBodies;
use super::local_bodies::LocalBodies;
use crate::metrics::ProcessorMetrics;
use crate::track::{Effects, Partition, RegionInUse, RouteWanted};

pub(crate) enum Input {
    /// What one read brought, and when.
    Entries { entries: Vec<StoredEntry>, read: Time },
    /// Take a snapshot here.
    Snapshot,
    /// What registry and ledger know is in the records.
    FactsIn,
}

pub(crate) enum Output {
    Folded(Folded),
    Snapshot {
        next: Offset,
        body: Vec<u8>,
        /// The bodies that it names.
        bodies: Vec<BlobHash>,
    },
    /// All records up to our own claim are folded: from here on we lead the partition.
    Live {
        /// Offered or in use.
        maps: Vec<BlobHash>,
        /// Registry and ledger are to be asked what is true, beside what trackers have.
        facts_wanted: Option<Vec<HeldDelivery>>,
    },
    /// A body that is offered and not in use, for these maps.
    Offered {
        kind: BodyKind,
        hash: BlobHash,
        regions: Vec<RegionInUse>,
    },
    /// Routes that an outside router may plan better.
    RoutesWanted(Vec<RouteWanted>),
    /// A later owner has claimed the partition.
    Superseded,
}

/// What the entries below `next` produced since the last of these.
pub(crate) struct Folded {
    pub next: Offset,
    pub appends: Vec<Append>,
    /// The fold's time.
    pub at: Time,
    /// How far the owner's clock is ahead of the edges', as far as it can be seen.
    pub ahead_ms: Option<i64>,
}

pub(crate) struct Folder {
    pub id: PartitionId,
    pub partition: Partition,
    pub own: Generation,
    pub owner: OwnerId,
    pub local_bodies: Arc<LocalBodies>,
    pub bodies: FoldBodies,
    pub metrics: ProcessorMetrics,
    pub updates_partitions: u32,
    /// Of each kind, what was reported as offered last, and on which maps it would be used.
    pub reported: [Option<(BlobHash, Vec<BlobHash>)>; KINDS.len()],
    /// An outside router is configured.
    pub wants_routes: bool,
    pub is_live: bool,
    pub skew: Skew,
    /// The trackers of this partition that are in the metrics: at work, asleep.
    pub counted: (usize, usize),
}

impl Folder {
    /// Runs until no input comes or no output is taken any more.
    pub(crate) fn run(mut self, mut inputs: mpsc::Receiver<Input>, outputs: &mpsc::Sender<Output>) {
        while let Some(input) = inputs.blocking_recv() {
            let is_on = match input {
                Input::Entries { entries, read } => self.handle_entries(&entries, read, outputs),
                Input::Snapshot => self.take_snapshot(outputs),
                Input::FactsIn => {
                    self.partition.set_facts_due(false);
                    true
                }
            };
            if !is_on {
                return;
            }
        }
        self.take_snapshot(outputs);
    }

    /// False when it is over.
    fn handle_entries(&mut self, entries: &[StoredEntry], read: Time, outputs: &mpsc::Sender<Output>) -> bool {
        let began = Instant::now();
        let mut effects = Effects::default();
        let mut is_superseded = false;
        for entry in entries {
            if entry.offset < self.partition.next() {
                continue;
            }
            match envelope::decode_counted::<RecordBatch>(&entry.value) {
                Ok(Decoded { value: batch, skipped }) => {
                    self.metrics.records_unknown.increment(u64::from(skipped));
                    is_superseded = self.is_superseded(entry.offset, &batch);
                    if is_superseded {
                        break;
                    }
                    self.skew.handle_entry(&batch, entry.appended, self.owner);
                    self.partition.handle_entry(entry.offset, &batch, &self.bodies, &mut effects);
                    if self.bodies.has_given_up() {
                        info!(partition = self.id.0, offset = entry.offset.0, "a fold ends: a body is away");
                        return false;
                    }
                }
                Err(error) => {
                    error!(%error, partition = self.id.0, offset = entry.offset.0, "an entry cannot be read");
                    self.metrics.entries_damaged.increment(1);
                    self.partition.skip_entry(entry.offset);
                }
            }
        }
        if let Some(last) = entries.last() {
            self.skew.handle_read(read, last.appended);
        }
        self.metrics.fold_seconds.record(began.elapsed().as_secs_f64());
        if !effects.vehicles.is_empty() {
            self.local_bodies.prepare_for(&effects.vehicles, self.partition.traffic());
        }
        self.count_trackers();
        let wanted = std::mem::take(&mut effects.routes_wanted);
        let folded = self.encode_effects(effects);
        let is_on = outputs.blocking_send(Output::Folded(folded)).is_ok() && self.report(wanted, outputs);
        if is_superseded {
            let _ = outputs.blocking_send(Output::Superseded); // nobody listens: it is over anyway
        }
        is_on && !is_superseded
    }

    fn is_superseded(&self, offset: Offset, batch: &RecordBatch) -> bool {
        batch.records.iter().any(|record| match record {
            Record::Claim { incarnation, .. } => Generation { incarnation: *incarnation, claim: offset } > self.own,
            _ => false,
        })
    }

    /// Reports what the shard has to act on. False when it is over.
    fn report(&mut self, wanted: Vec<RouteWanted>, outputs: &mpsc::Sender<Output>) -> bool {
        let mut reports = Vec::new();
        let maps: Vec<BlobHash> = self.partition.regions().iter().map(|region| region.map).collect();
        if !self.is_live && self.partition.next() > self.own.claim {
            self.is_live = true;
            let offered = self.partition.offered(BodyKind::Map);
            let facts_wanted = self.partition.needs_facts().then(|| self.partition.assignments());
            reports.push(Output::Live { maps: maps.iter().copied().chain(offered).collect(), facts_wanted });
        }
        if self.is_live && self.wants_routes && !wanted.is_empty() {
            reports.push(Output::RoutesWanted(wanted));
        }
        if self.is_live {
            for (kind, reported) in KINDS.into_iter().zip(&mut self.reported) {
                let offered = self.partition.offered(kind).map(|hash| (hash, maps.clone()));
                if let (Some((hash, _)), true) = (&offered, offered != *reported) {
                    let regions = self.partition.regions().to_vec();
                    reports.push(Output::Offered { kind, hash: *hash, regions });
                }
                *reported = offered;
            }
        }
        reports.into_iter().all(|report| outputs.blocking_send(report).is_ok())
    }

    fn take_snapshot(&mut self, outputs: &mpsc::Sender<Output>) -> bool {
        match self.partition.snapshot() {
            Ok(body) => {
                let (next, bodies) = (self.partition.next(), self.partition.bodies());
                outputs.blocking_send(Output::Snapshot { next, body, bodies }).is_ok()
            }
            Err(error) => {
                error!(%error, partition = self.id.0, "no snapshot can be taken");
                self.metrics.snapshots_failed.increment(1);
                true
            }
        }
    }

    fn encode_effects(&self, effects: Effects) -> Folded {
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

    /// How many trackers are at work here and how many sleep, among those of all partitions.
    fn count_trackers(&mut self) {
        let dormant = self.partition.dormant_len();
        let counted = (self.partition.trackers_len() - dormant, dormant);
        self.metrics.count_trackers(self.counted, counted);
        self.counted = counted;
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.metrics.count_trackers(self.counted, (0, 0));
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

/// How far our clock is from the edges', both compared with when the log took what they wrote: so a fold that lags does
/// not look like a clock that is wrong.
#[derive(Default)]
pub(crate) struct Skew {
    /// Of each edge's newest mark, with when the log took it.
    edges: BTreeMap<EdgeId, (i64, Time)>,
    own_ms: Option<(i64, Time)>,
}

impl Skew {
    fn handle_entry(&mut self, batch: &RecordBatch, appended: Time, own: OwnerId) {
        for record in &batch.records {
            match record {
                Record::Mark { edge, received_before } => {
                    self.edges.insert(*edge, (received_before.millis_since(appended), appended));
                }
                Record::Tick { owner, at } if *owner == own => {
                    self.own_ms = Some((at.millis_since(appended), appended));
                }
                _ => {}
            }
        }
        self.edges.retain(|_, (_, seen)| appended.millis_since(*seen) < EDGE_SEEN_MS);
    }

    /// While we append no ticks, reading says at least by how much our clock is not behind.
    fn handle_read(&mut self, read: Time, appended: Time) {
        let is_old = self.own_ms.is_none_or(|(_, seen)| appended.millis_since(seen) > TICKS_OLD_MS);
        if is_old {
            self.own_ms = Some((read.millis_since(appended), appended));
        }
    }

    fn ahead_ms(&self) -> Option<i64> {
        let mut edges: Vec<i64> = self.edges.values().map(|(ms, _)| *ms).collect();
        edges.sort_unstable();
        let median = edges.get(edges.len() / 2)?;
        self.own_ms.map(|(own, _)| own - median)
    }
}

pub(crate) const KINDS: [BodyKind; 4] = [BodyKind::Map, BodyKind::Speeds, BodyKind::LiveSpeeds, BodyKind::EtaModel];
/// Above this many, entries are cut anyway: readers take them one by one.
const ITEMS_MAX: usize = 4_096;
const EDGE_SEEN_MS: i64 = 60_000;
const TICKS_OLD_MS: i64 = 5_000;

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use backends::blob_store::{BlobStore, BlobStoreError};
    use daemon::Meter;
    use protocol::record::Door;
    use protocol::{
        AssignmentNumber, Delivery, DeliveryId, DeliveryKey, DeliveryPolicy, DeliveryState, DeviceKey, DeviceNumber,
        DriverId, DriverKey, Fix, FixNumber, FixRecord, MeasuredTime, Position, Stop, StopKind, TenantId, Verdict,
    };
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_fold_stopped_while_a_body_is_away_publishes_and_keeps_nothing_of_it() {
        let stop = CancellationToken::new();
        let folder = folder(stop.clone());
        let (inputs, waiting) = mpsc::channel(4);
        let (outputs, mut published) = mpsc::channel(4);
        let map = Record::InUse { kind: BodyKind::Map, hash: BlobHash([1; 32]) };
        let entries = vec![entry(0, vec![claim()]), entry(1, vec![map])];
        inputs.send(Input::Entries { entries, read: Time(0) }).await.unwrap_or_else(|_| panic!("it listens"));
        let folding = tokio::task::spawn_blocking(move || folder.run(waiting, &outputs));
        assert!(!folding.is_finished());

        stop.cancel();

        let ended = tokio::time::timeout(std::time::Duration::from_secs(20), folding).await;
        ended.expect("it does not wait for the blob store").unwrap();
        assert!(published.recv().await.is_none(), "something was published");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn routes_wanted_with_the_claim_are_asked_for_too() {
        let mut folder = folder(CancellationToken::new());
        let (outputs, mut published) = mpsc::channel(8);
        let entries = vec![entry(0, vec![claim()]), entry(1, on_the_way())];

        let folding = tokio::task::spawn_blocking(move || folder.handle_entries(&entries, Time(0), &outputs));

        assert!(folding.await.unwrap());
        let (mut is_live, mut wishes) = (false, 0);
        while let Some(output) = published.recv().await {
            match output {
                Output::Live { .. } => is_live = true,
                Output::RoutesWanted(wanted) => wishes += wanted.len(),
                Output::Folded(_) | Output::Snapshot { .. } | Output::Offered { .. } | Output::Superseded => {}
            }
        }
        assert!(is_live && wishes == 1, "{is_live} {wishes}");
    }

    /// A delivery to be fetched, and where its driver is.
    fn on_the_way() -> Vec<Record> {
        let driver = DriverKey { tenant: TenantId(1), driver: DriverId(1) };
        let at = |lat_e7| Position { lat_e7, lon_e7: 0 };
        let stop = |kind, lat_e7| Stop { kind, position: at(lat_e7), radius_m: 60, label: String::new() };
        let delivery = Delivery {
            key: DeliveryKey { tenant: TenantId(1), delivery: DeliveryId(1) },
            state: DeliveryState::Ready,
            assignment: AssignmentNumber(1),
            driver: Some(driver.driver),
            stops: vec![stop(StopKind::Pickup, 100_000), stop(StopKind::DropOff, 200_000)],
            policy: DeliveryPolicy::default(),
            journal: Vec::new(),
            reference: String::new(),
            created: Time(0),
        };
        let fix = FixRecord {
            device: DeviceKey { tenant: driver.tenant, driver: driver.driver, device: DeviceNumber(1) },
            session_start: 1,
            number: Some(FixNumber(1)),
            lowest_held: FixNumber(0),
            edge: EdgeId(1),
            door: Door::Udp,
            received: Time(1_000),
            fix: Fix { accuracy_m: Some(5), ..Fix::at(MeasuredTime::from_time(Time(1_000)), at(0)) },
            verdict: Verdict::Accepted,
        };
        vec![Record::Assign { to: driver.into(), delivery: Box::new(delivery) }, Record::Fix(fix)]
    }

    /// A blob store that cannot be reached.
    struct Away;

    #[async_trait]
    impl BlobStore for Away {
        async fn put(&self, _: Bytes) -> Result<BlobHash, BlobStoreError> {
            Err(away())
        }

        async fn get(&self, _: BlobHash) -> Result<Bytes, BlobStoreError> {
            Err(away())
        }

        async fn contains(&self, _: BlobHash) -> Result<bool, BlobStoreError> {
            Err(away())
        }

        async fn remove(&self, _: BlobHash) -> Result<(), BlobStoreError> {
            Err(away())
        }
    }

    fn away() -> BlobStoreError {
        BlobStoreError::Unavailable { reason: "it is away".to_string() }
    }

    fn claim() -> Record {
        Record::Claim { owner: OwnerId(1), at: Time(0), incarnation: 1 }
    }

    fn entry(offset: u64, records: Vec<Record>) -> StoredEntry {
        let value = envelope::encode(&RecordBatch { records }).into();
        StoredEntry { offset: Offset(offset), appended: Time(0), key: Bytes::new(), value }
    }

    /// Of an owner whose claim is the first record.
    fn folder(stop: CancellationToken) -> Folder {
        let nowhere = std::env::temp_dir().join("wayfix-no-such-folder");
        let local_bodies = Arc::new(LocalBodies::new(Arc::new(Away), nowhere, CancellationToken::new()));
        let own = Generation { incarnation: 1, claim: Offset(0) };
        Folder {
            id: PartitionId(0),
            partition: Partition::new(PartitionId(0), Offset(0), own),
            own,
            owner: OwnerId(1),
            bodies: FoldBodies::new(local_bodies.clone(), stop),
            local_bodies,
            metrics: ProcessorMetrics::new(&Meter::discard()),
            updates_partitions: 1,
            reported: [const { None }; KINDS.len()],
            wants_routes: true,
            is_live: false,
            skew: Skew::default(),
            counted: (0, 0),
        }
    }

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
