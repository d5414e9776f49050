//! The thread that folds one partition: entries in, encoded updates and breadcrumbs out, in order.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backends::log::{Append, StoredEntry};
use protocol::envelope::{self, Decoded};
use protocol::record::{BlobHash, BodyKind, OwnerId};
use protocol::update::Generation;
use protocol::{Offset, PartitionId, Record, RecordBatch, Time};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;
use tracing::{error, info};

use super::facts::Held;
use super::fold_bodies::FoldBodies;
use super::local_bodies::LocalBodies;
use super::skew::Skew;
use super::snapshotting::{Snapshotter, Stepped, TakenSnapshot};
use crate::metrics::ProcessorMetrics;
use crate::track::{Effects, Partition, RegionInUse, RouteWanted};

pub(crate) enum Input {
    /// What one read brought, and when.
    Entries { entries: Vec<StoredEntry>, read: Time },
    /// Take a snapshot of the state as it is here.
    Snapshot,
    /// What registry and ledger know is in the records.
    FactsIn,
}

pub(crate) enum Output {
    Folded(Folded),
    Snapshot(TakenSnapshot),
    /// All records up to our own claim are folded: from here on we lead the partition.
    Live {
        /// Offered or in use.
        maps: Vec<BlobHash>,
        /// Registry and ledger are to be asked what is true, beside what trackers have.
        facts_wanted: Option<Held>,
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

/// What the fold is to do next.
enum Next {
    Input(Input),
    /// No input comes any more.
    Ended,
    /// No output is taken any more.
    Over,
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
    pub snapshots: Snapshotter,
}

impl Folder {
    /// Runs until no input comes or no output is taken any more.
    pub(crate) fn run(mut self, mut inputs: mpsc::Receiver<Input>, outputs: &mpsc::Sender<Output>) {
        loop {
            let is_on = match self.next_input(&mut inputs, outputs) {
                Next::Input(Input::Entries { entries, read }) => self.handle_entries(&entries, read, outputs),
                Next::Input(Input::Snapshot) => {
                    if !self.snapshots.is_under_way() {
                        self.begin_snapshot();
                    }
                    true
                }
                Next::Input(Input::FactsIn) => {
                    self.partition.set_facts_due(false);
                    true
                }
                Next::Ended => break,
                Next::Over => return,
            };
            if !is_on || self.step_snapshot(outputs).is_break() {
                return;
            }
        }
        self.begin_snapshot();
        while self.snapshots.is_under_way() {
            if self.step_snapshot(outputs).is_break() {
                return;
            }
        }
    }

    /// While a snapshot is gathered, the time until the next input is used for it.
    fn next_input(&mut self, inputs: &mut mpsc::Receiver<Input>, outputs: &mpsc::Sender<Output>) -> Next {
        while self.snapshots.is_under_way() {
            match inputs.try_recv() {
                Ok(input) => return Next::Input(input),
                Err(TryRecvError::Disconnected) => return Next::Ended,
                Err(TryRecvError::Empty) => {}
            }
            if self.step_snapshot(outputs).is_break() {
                return Next::Over;
            }
        }
        inputs.blocking_recv().map_or(Next::Ended, Next::Input)
    }

    fn begin_snapshot(&mut self) {
        if let Err(error) = self.snapshots.begin(&mut self.partition) {
            error!(%error, partition = self.id.0, "no snapshot can be taken");
            self.metrics.snapshots_failed.increment(1);
        }
    }

    /// Break when nobody takes an output any more.
    fn step_snapshot(&mut self, outputs: &mpsc::Sender<Output>) -> ControlFlow<()> {
        match self.snapshots.step(&mut self.partition) {
            Stepped::Nothing | Stepped::Gathered => {}
            Stepped::EncoderBusy => std::thread::sleep(ENCODER_WAIT),
            Stepped::Taken(taken) => {
                if outputs.blocking_send(Output::Snapshot(taken)).is_err() {
                    return ControlFlow::Break(());
                }
            }
            Stepped::Failed(error) => {
                error!(error = format!("{error:#}"), partition = self.id.0, "no snapshot can be taken");
                self.metrics.snapshots_failed.increment(1);
            }
        }
        ControlFlow::Continue(())
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
        batch.records.iter().any(|record| {
            let Record::Claim { incarnation, .. } = record else { return false };
            Generation { incarnation: *incarnation, claim: offset } > self.own
        })
    }

    /// Reports what the shard has to act on. False when it is over.
    fn report(&mut self, wanted: Vec<RouteWanted>, outputs: &mpsc::Sender<Output>) -> bool {
        let mut reports = Vec::new();
        let maps: Vec<BlobHash> = self.partition.regions().iter().map(|region| region.map).collect();
        if !self.is_live && self.partition.next() > self.own.claim {
            self.is_live = true;
            let offered = self.partition.offered(BodyKind::Map);
            let facts_wanted = self.partition.needs_facts().then(|| Held::of(&self.partition));
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

pub(crate) const KINDS: [BodyKind; 4] = [BodyKind::Map, BodyKind::Speeds, BodyKind::LiveSpeeds, BodyKind::EtaModel];
/// For an encoder that is busy: an input that comes meanwhile waits so long at most.
const ENCODER_WAIT: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use backends::blob_store::{BlobStore, BlobStoreError};
    use bytes::Bytes;
    use daemon::Meter;
    use metrics::Histogram;
    use protocol::record::Door;
    use protocol::{
        AssignmentNumber, Delivery, DeliveryId, DeliveryKey, DeliveryPolicy, DeliveryState, DeviceKey, DeviceNumber,
        DriverId, DriverKey, EdgeId, Fix, FixNumber, FixRecord, MeasuredTime, Position, Stop, StopKind, TenantId,
        Verdict,
    };
    use tokio_util::sync::CancellationToken;

    use super::super::snapshotting::DurableBase;
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
                Output::Folded(_) | Output::Snapshot(_) | Output::Offered { .. } | Output::Superseded => {}
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
            snapshots: Snapshotter::new(PartitionId(0), DurableBase::default(), Histogram::noop()),
        }
    }
}
