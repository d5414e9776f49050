//! One partition that is folded by hand, with all sinks behind it if they are wanted.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use backends::ledger::embedded::EmbeddedLedger;
use backends::live_store::embedded::MemoryLiveStore;
use backends::log::StoredEntry;
use backends::trail_store::embedded::EmbeddedTrailStore;
use bytes::Bytes;
use maps::Graph;
use maps::eta::EtaTable;
use processor::track::{Bodies, Effects, Partition, RoadMap, Tables, Traffic};
use processor::{SinkStores, SinksByHand};
use protocol::envelope;
use protocol::record::{BlobHash, BodyKind, OwnerId};
use protocol::update::{BreadcrumbBatch, Generation};
use protocol::{EdgeId as ServerId, Offset, PartitionId, Position, Record, RecordBatch, Time, UpdateBatch};
use tokio::runtime::Runtime;

use crate::cpu;
use crate::fleet::{ROUND_MS, assignment};
use crate::null_log::NullLog;

/// One map for everything.
pub struct OneMap(pub Arc<RoadMap>);

impl OneMap {
    pub fn of(graph: Graph) -> OneMap {
        OneMap(Arc::new(RoadMap::of(graph, MAP)))
    }
}

impl Bodies for OneMap {
    fn map(&self, _: BlobHash) -> Option<Arc<RoadMap>> {
        Some(self.0.clone())
    }

    fn traffic(&self, map: &Arc<RoadMap>, _: Tables) -> Arc<Traffic> {
        Arc::new(Traffic::usual(map.clone()))
    }

    fn eta(&self, _: BlobHash) -> Option<Arc<EtaTable>> {
        None
    }
}

/// One partition, what it was given, and what that cost.
pub struct World<'a> {
    pub partition: Partition,
    bodies: &'a dyn Bodies,
    sinks: Option<Sinks>,
    next: u64,
    pub now: i64,
    pub fixes: u64,
    pub updates: u64,
    pub failed: u64,
    /// CPU of the fold, and of decoding its entries and encoding what it says.
    pub folding: Duration,
}

impl World<'_> {
    pub fn new(bodies: &dyn Bodies) -> World<'_> {
        let partition = Partition::new(PartitionId(0), Offset(0), Generation::default());
        let (fixes, updates, failed) = (0, 0, 0);
        let (now, folding) = (BEGIN_MS, Duration::ZERO);
        let mut world = World { partition, bodies, sinks: None, next: 0, now, fixes, updates, failed, folding };
        let claim = Record::Claim { owner: OwnerId(1), at: Time(world.now), incarnation: 1 };
        let in_use = Record::InUse { kind: BodyKind::Map, hash: MAP };
        let entry = envelope::encode(&RecordBatch { records: vec![claim, in_use] });
        world.fold(&entry).expect("it was just encoded");
        world
    }

    /// All sinks take what the fold says from here on.
    pub fn with_sinks(self) -> anyhow::Result<Self> {
        Ok(World { sinks: Some(Sinks::new()?), ..self })
    }

    /// From an entry of the log to the bytes of what it says, and on into the sinks.
    pub fn fold(&mut self, entry: &[u8]) -> anyhow::Result<()> {
        let began = cpu::of_this_thread();
        let batch: RecordBatch = envelope::decode(entry)?;
        let mut effects = Effects::default();
        self.partition.handle_entry(Offset(self.next), &batch, self.bodies, &mut effects);
        self.next += 1;
        self.fixes += batch.records.len() as u64;
        self.updates += effects.updates.len() as u64;
        self.failed += effects.counts.folds_failed;
        let updates = |updates| black_box(envelope::encode(&UpdateBatch { updates }));
        let updates = in_entries(effects.updates).into_iter().map(updates).collect::<Vec<_>>();
        let breadcrumbs = |breadcrumbs| black_box(envelope::encode(&BreadcrumbBatch { breadcrumbs }));
        let breadcrumbs = in_entries(effects.breadcrumbs).into_iter().map(breadcrumbs).collect::<Vec<_>>();
        drop(batch);
        self.folding += cpu::of_this_thread() - began;
        let Some(sinks) = &mut self.sinks else { return Ok(()) };
        for at in 0..updates.len().max(breadcrumbs.len()) {
            let nothing = || envelope::encode(&UpdateBatch { updates: Vec::new() });
            let no_breadcrumbs = || envelope::encode(&BreadcrumbBatch { breadcrumbs: Vec::new() });
            let updates = updates.get(at).cloned().unwrap_or_else(nothing);
            let breadcrumbs = breadcrumbs.get(at).cloned().unwrap_or_else(no_breadcrumbs);
            sinks.take(updates, breadcrumbs, Time(self.now))?;
        }
        Ok(())
    }

    /// Entries of one round, with a mark and a tick for every second.
    pub fn fold_all(&mut self, entries: &[Vec<u8>]) -> anyhow::Result<()> {
        let seconds = ROUND_MS / 1_000;
        for (i, entry) in entries.iter().enumerate() {
            self.fold(entry)?;
            let (before, after) =
                (i as i64 * seconds / entries.len() as i64, (i as i64 + 1) * seconds / entries.len() as i64);
            for second in before..after {
                self.tick_at(self.now + second * 1_000)?;
            }
        }
        self.now += ROUND_MS;
        Ok(())
    }

    pub fn tick(&mut self) -> anyhow::Result<()> {
        self.now += 1_000;
        self.tick_at(self.now)
    }

    fn tick_at(&mut self, now: i64) -> anyhow::Result<()> {
        let mark = Record::Mark { edge: ServerId(1), received_before: Time(now) };
        let tick = Record::Tick { owner: OwnerId(1), at: Time(now) };
        self.fold(&envelope::encode(&RecordBatch { records: vec![mark, tick] }))
    }

    /// A delivery for every tenth driver, to the end of his trip.
    pub fn assign(&mut self, drivers: u32, trips: &[Vec<Position>]) -> anyhow::Result<()> {
        for number in (0..drivers).step_by(10) {
            let record = assignment(number, &trips[number as usize % trips.len()], Time(self.now));
            self.fold(&envelope::encode(&RecordBatch { records: vec![record] }))?;
        }
        (self.fixes, self.updates) = (0, 0);
        Ok(())
    }
}

/// As many as an entry of the log may hold, as the product divides them; nothing is one empty entry.
fn in_entries<T>(mut items: Vec<T>) -> Vec<Vec<T>> {
    let mut entries = Vec::new();
    while items.len() > ITEMS_MAX {
        let rest = items.split_off(ITEMS_MAX);
        entries.push(std::mem::replace(&mut items, rest));
    }
    entries.push(items);
    entries
}

/// All sinks, the history on a disk.
struct Sinks {
    runtime: Runtime,
    sinks: SinksByHand,
    next: u64,
    _folder: tempfile::TempDir,
}

impl Sinks {
    fn new() -> anyhow::Result<Sinks> {
        let folder = tempfile::tempdir().context("make a folder")?;
        let at = |name: &str| folder.path().join(name);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("make a runtime")?;
        let guard = runtime.enter();
        let stores = SinkStores {
            log: Arc::new(NullLog::open(&at("log"), 1).context("open the log")?.of_nothing()),
            live: Arc::new(MemoryLiveStore::default()),
            trail: Arc::new(EmbeddedTrailStore::open(&at("trail")).context("open history")?),
            ledger: Arc::new(EmbeddedLedger::open(&at("ledger.db")).context("open the ledger")?),
        };
        drop(guard);
        Ok(Sinks { runtime, sinks: SinksByHand::new(stores, VIEWS_MAX), next: 0, _folder: folder })
    }

    fn take(&mut self, updates: Vec<u8>, breadcrumbs: Vec<u8>, appended: Time) -> anyhow::Result<()> {
        let offset = Offset(self.next);
        self.next += 1;
        let entry = |value: Vec<u8>| StoredEntry { offset, appended, key: Bytes::new(), value: value.into() };
        self.runtime.block_on(self.sinks.take(entry(updates), entry(breadcrumbs)))
    }
}

const MAP: BlobHash = BlobHash([7; 32]);
const BEGIN_MS: i64 = 1_700_000_000_000;
/// Of an entry.
const ITEMS_MAX: usize = 4_096;
/// Of a sink: more than there are.
const VIEWS_MAX: usize = 1_000_000;
