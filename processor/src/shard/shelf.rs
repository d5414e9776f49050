//! Bodies by their hash, for all partitions of this process: fetched from the blob store once, kept in a local folder,
//! checked, opened once, and made ready for use away from the threads that fold. They are dropped when nobody uses them;
//! of the local files those stay that a state or a kept snapshot names, and the last few.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use backends::blob_store::{BlobStore, BlobStoreError, hash_of};
use bytes::Bytes;
use daemon::{Backoff, retry};
use maps::eta::EtaTable;
use maps::file::Sections;
use maps::speeds::{LiveFactors, SpeedTable, TableError};
use maps::{MapError, Profile};
use protocol::PartitionId;
use protocol::record::{BlobHash, BodyKind, Vehicle};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::cache::Cache;
use crate::track::{NamedRegion, RoadMap, Tables, Traffic};

pub struct MapShelf {
    blobs: Arc<dyn BlobStore>,
    folder: PathBuf,
    maps: Cache<BlobHash, RoadMap>,
    /// By map and table.
    speeds: Cache<(BlobHash, BlobHash), SpeedTable>,
    live: Cache<(BlobHash, BlobHash), LiveFactors>,
    etas: Cache<BlobHash, EtaTable>,
    traffic: Cache<(BlobHash, Tables), Traffic>,
    /// One at a time fetches a map; tables are small.
    fetching: tokio::sync::Mutex<()>,
    /// What drivers here travel by: routers are made for these before anybody needs them.
    profiles: Mutex<BTreeSet<Profile>>,
    files: Mutex<Files>,
    /// The map that this process offers, and what a fold here was last told is in use.
    published: Mutex<Option<BlobHash>>,
    in_use: watch::Sender<Option<BlobHash>>,
    runtime: Handle,
    stop: CancellationToken,
}

/// Which local files are still needed.
#[derive(Default)]
struct Files {
    /// What the newest states of each partition name, the newest last.
    named: BTreeMap<PartitionId, VecDeque<Vec<BlobHash>>>,
    /// Used last, the newest last.
    recent: VecDeque<BlobHash>,
}

#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    #[error("fetch a body from the blob store")]
    Blob(#[from] BlobStoreError),
    #[error("keep a body on disk")]
    Disk(#[from] std::io::Error),
    #[error("open a map")]
    Map(#[from] MapError),
    #[error("read a table")]
    Table(#[from] TableError),
    #[error("read an ETA model")]
    EtaModel,
    #[error("a body was not waited for")]
    GivenUp,
}

impl ShelfError {
    /// We were told to stop before it was known whether the body can be had.
    pub fn is_given_up(&self) -> bool {
        match self {
            ShelfError::GivenUp => true,
            ShelfError::Blob(error) => error.is_transient(), // these are tried again until the stop
            ShelfError::Disk(_) | ShelfError::Map(_) | ShelfError::Table(_) | ShelfError::EtaModel => false,
        }
    }
}

impl ShelfError {
    /// Whether the body itself cannot be used: another try says the same.
    pub fn is_of_body(&self) -> bool {
        match self {
            ShelfError::Map(_) | ShelfError::Table(_) | ShelfError::EtaModel => true,
            ShelfError::Blob(BlobStoreError::TooLarge { .. }) => true,
            ShelfError::Blob(_) | ShelfError::Disk(_) | ShelfError::GivenUp => false,
        }
    }
}

impl MapShelf {
    /// Within a runtime.
    pub fn new(blobs: Arc<dyn BlobStore>, folder: PathBuf, stop: CancellationToken) -> Self {
        MapShelf {
            blobs,
            folder,
            maps: Cache::new(MAPS_KEPT),
            speeds: Cache::new(TABLES_KEPT),
            live: Cache::new(TABLES_KEPT),
            etas: Cache::new(TABLES_KEPT),
            traffic: Cache::new(TABLES_KEPT),
            fetching: tokio::sync::Mutex::new(()),
            profiles: Mutex::new(BTreeSet::from([Profile::Car])),
            files: Mutex::default(),
            published: Mutex::default(),
            in_use: watch::Sender::default(),
            runtime: Handle::current(),
            stop,
        }
    }

    /// The map that is in use here: the one that this process offers, once it is; where it offers none, the last that a
    /// record has put in use. Others in use lie elsewhere.
    pub fn map_in_use(&self) -> watch::Receiver<Option<BlobHash>> {
        self.in_use.subscribe()
    }

    pub fn note_in_use(&self, map: BlobHash) {
        let published = *self.published.lock().unwrap_or_else(PoisonError::into_inner);
        if published.is_none_or(|ours| ours == map) {
            self.in_use.send_if_modified(|in_use| in_use.replace(map) != Some(map));
        }
    }

    /// Puts a map file where every owner of a partition can fetch it, if it is whole: its name and size. While the blob
    /// store is away it waits.
    pub async fn publish(&self, file: &Path) -> Result<(BlobHash, u64), ShelfError> {
        let path = file.to_path_buf();
        let read = tokio::task::spawn_blocking(move || {
            let body = std::fs::read(&path)?;
            Sections::check(&body)?;
            Ok::<_, ShelfError>((hash_of(&body), Bytes::from(body)))
        });
        let (hash, body) = read.await.map_err(std::io::Error::other)??;
        let size = body.len() as u64;
        let put = || {
            let body = body.clone();
            async move {
                let is_there = self.blobs.contains(hash).await?;
                if is_there { Ok(hash) } else { self.blobs.put(body).await }
            }
        };
        retry("publish a map", Backoff::default(), &self.stop, BlobStoreError::is_transient, put).await?;
        *self.published.lock().unwrap_or_else(PoisonError::into_inner) = Some(hash);
        Ok((hash, size))
    }

    /// Fetches and checks an offered body, and makes ready what is dear about it, for these regions. An error says why
    /// it is not to be taken into use. Waits for it until the stop.
    pub async fn check(
        &self,
        (kind, hash): (BodyKind, BlobHash),
        regions: &[NamedRegion],
        stop: &CancellationToken,
    ) -> Result<(), ShelfError> {
        match kind {
            BodyKind::Map => {
                let map = self.load_until(hash, stop).await?;
                self.prepare(vec![Arc::new(Traffic::usual(map))]).await
            }
            BodyKind::EtaModel => self.load_eta(hash, stop).await.map(drop),
            BodyKind::Speeds | BodyKind::LiveSpeeds => self.check_table((kind, hash), regions, stop).await,
        }
    }

    async fn check_table(
        &self,
        (kind, hash): (BodyKind, BlobHash),
        regions: &[NamedRegion],
        stop: &CancellationToken,
    ) -> Result<(), ShelfError> {
        let mut outcome = Err(TableError::OtherMap.into());
        for region in regions.iter().rev() {
            let map = self.load_until(region.map, stop).await?;
            let (loaded, tables) = match kind {
                BodyKind::LiveSpeeds => {
                    let loaded = self.load_live(&map, hash, stop).await.map(drop);
                    (loaded, Tables { live: Some(hash), ..region.tables })
                }
                BodyKind::Speeds | BodyKind::Map | BodyKind::EtaModel => {
                    let loaded = self.load_speeds(&map, hash, stop).await.map(drop);
                    (loaded, Tables { speeds: Some(hash), ..region.tables })
                }
            };
            match loaded {
                Ok(()) => return self.prepare(vec![self.load_traffic(&map, tables, stop).await?]).await,
                Err(error) => outcome = Err(error),
            }
        }
        outcome
    }

    /// Drivers travel by these: their routers are made now, in the background.
    pub fn want(self: &Arc<Self>, vehicles: &BTreeSet<Vehicle>, traffic: Vec<Arc<Traffic>>) {
        let is_news = self.note(vehicles);
        if is_news {
            let shelf = self.clone();
            self.runtime.spawn(async move {
                if let Err(error) = shelf.prepare(traffic).await {
                    warn!(%error, "routers could not be made ahead");
                }
            });
        }
    }

    /// The same at once, for a partition that is not folded yet.
    pub fn want_now(&self, vehicles: &BTreeSet<Vehicle>, traffic: &[Arc<Traffic>]) {
        self.note(vehicles);
        let profiles = self.profiles.lock().unwrap_or_else(PoisonError::into_inner).clone();
        traffic.iter().for_each(|traffic| profiles.iter().for_each(|profile| traffic.prepare(*profile)));
    }

    fn note(&self, vehicles: &BTreeSet<Vehicle>) -> bool {
        let mut profiles = self.profiles.lock().unwrap_or_else(PoisonError::into_inner);
        let before = profiles.len();
        profiles.extend(vehicles.iter().map(|vehicle| Profile::from(*vehicle)));
        profiles.len() > before
    }

    async fn prepare(&self, traffic: Vec<Arc<Traffic>>) -> Result<(), ShelfError> {
        let profiles = self.profiles.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let preparing = tokio::task::spawn_blocking(move || {
            traffic.iter().for_each(|traffic| profiles.iter().for_each(|profile| traffic.prepare(*profile)));
        });
        Ok(preparing.await.map_err(std::io::Error::other)?)
    }

    /// The map, opened; fetched first if need be.
    pub async fn load(&self, hash: BlobHash) -> Result<Arc<RoadMap>, ShelfError> {
        self.load_until(hash, &self.stop).await
    }

    /// The same; whoever waits for it gives up at this stop.
    pub async fn load_until(&self, hash: BlobHash, stop: &CancellationToken) -> Result<Arc<RoadMap>, ShelfError> {
        if let Some(map) = self.maps.find(&hash) {
            return Ok(map);
        }
        let _one_at_a_time = tokio::select! {
            biased;
            turn = self.fetching.lock() => turn,
            () = stop.cancelled() => return Err(ShelfError::GivenUp),
        };
        if let Some(map) = self.maps.find(&hash) {
            return Ok(map);
        }
        self.used(hash);
        let path = self.path_of(hash);
        let map = match open(path.clone(), hash).await {
            Ok(map) => map,
            Err(_) => {
                let body = self.fetch(hash, stop).await?;
                self.keep(path.clone(), body).await?;
                open(path, hash).await?
            }
        };
        info!(map = %hash, edges = map.graph.edge_count(), "map opened");
        Ok(self.maps.put(hash, map))
    }

    async fn load_speeds(
        &self,
        map: &RoadMap,
        hash: BlobHash,
        stop: &CancellationToken,
    ) -> Result<Arc<SpeedTable>, ShelfError> {
        let key = (map.hash, hash);
        if let Some(table) = self.speeds.find(&key) {
            return Ok(table);
        }
        let table = SpeedTable::from_bytes(&self.table(hash, stop).await?, &map.graph)?;
        Ok(self.speeds.put(key, table))
    }

    async fn load_live(
        &self,
        map: &RoadMap,
        hash: BlobHash,
        stop: &CancellationToken,
    ) -> Result<Arc<LiveFactors>, ShelfError> {
        let key = (map.hash, hash);
        if let Some(factors) = self.live.find(&key) {
            return Ok(factors);
        }
        let factors = LiveFactors::from_bytes(&self.table(hash, stop).await?, &map.graph)?;
        Ok(self.live.put(key, factors))
    }

    pub async fn load_eta(&self, hash: BlobHash, stop: &CancellationToken) -> Result<Arc<EtaTable>, ShelfError> {
        if let Some(table) = self.etas.find(&hash) {
            return Ok(table);
        }
        let table = EtaTable::from_bytes(&self.table(hash, stop).await?).ok_or(ShelfError::EtaModel)?;
        Ok(self.etas.put(hash, table))
    }

    /// A table that cannot be used is left out.
    pub async fn load_traffic(
        &self,
        map: &Arc<RoadMap>,
        tables: Tables,
        stop: &CancellationToken,
    ) -> Result<Arc<Traffic>, ShelfError> {
        let key = (map.hash, tables);
        if let Some(traffic) = self.traffic.find(&key) {
            return Ok(traffic);
        }
        let mut speeds = None;
        if let Some(hash) = tables.speeds {
            speeds = unless_unusable(hash, self.load_speeds(map, hash, stop).await)?;
        }
        let mut live = None;
        if let Some(hash) = tables.live {
            live = unless_unusable(hash, self.load_live(map, hash, stop).await)?;
        }
        Ok(self.traffic.put(key, Traffic::of(map.clone(), speeds, live)))
    }

    /// The bytes of a table, from the local folder if they are there and whole.
    async fn table(&self, hash: BlobHash, stop: &CancellationToken) -> Result<Bytes, ShelfError> {
        let path = self.folder.join(format!("{hash}.{TABLE}"));
        self.used(hash);
        let reading = {
            let path = path.clone();
            tokio::task::spawn_blocking(move || std::fs::read(path))
        };
        if let Ok(body) = reading.await.map_err(std::io::Error::other)?
            && hash_of(&body) == hash
        {
            return Ok(body.into());
        }
        let body = self.fetch(hash, stop).await?;
        if let Err(error) = self.keep(path, body.clone()).await {
            warn!(error = format!("{:#}", anyhow::Error::from(error)), body = %hash, "a table is not kept on disk");
        }
        Ok(body)
    }

    async fn fetch(&self, hash: BlobHash, stop: &CancellationToken) -> Result<Bytes, BlobStoreError> {
        let fetch = || self.blobs.get(hash);
        retry("fetch a body", Backoff::default(), stop, BlobStoreError::is_transient, fetch).await
    }

    /// Where a map that was loaded lies on this machine: a file that never changes.
    pub fn path_of(&self, hash: BlobHash) -> PathBuf {
        self.folder.join(format!("{hash}.{MAP}"))
    }

    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Cancelled when nothing is to be waited for any more.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    async fn keep(&self, path: PathBuf, body: Bytes) -> Result<(), ShelfError> {
        let folder = self.folder.clone();
        let keeping = tokio::task::spawn_blocking(move || {
            std::fs::create_dir_all(&folder)?;
            let unfinished = path.with_extension(format!("{:016x}.{UNFINISHED}", rand::random::<u64>()));
            std::fs::write(&unfinished, &body)?;
            std::fs::rename(&unfinished, &path)
        });
        Ok(keeping.await.map_err(std::io::Error::other)??)
    }

    fn used(&self, hash: BlobHash) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.recent.retain(|other| *other != hash);
        files.recent.push_back(hash);
        if files.recent.len() > FILES_RECENT {
            files.recent.pop_front();
        }
    }

    /// A snapshot that names these bodies is kept: of the files those go that nothing names any more.
    pub async fn named(&self, partition: PartitionId, bodies: Vec<BlobHash>) {
        let needed: BTreeSet<BlobHash> = {
            let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
            let named = files.named.entry(partition).or_default();
            named.push_back(bodies);
            if named.len() > STATES_NAMED {
                named.pop_front();
            }
            let of_states = files.named.values().flatten().flatten();
            of_states.chain(&files.recent).copied().collect()
        };
        let folder = self.folder.clone();
        let swept = tokio::task::spawn_blocking(move || sweep(&folder, &needed)).await;
        if let Ok(Err(error)) = swept {
            warn!(%error, "old bodies could not be removed from disk");
        }
    }

    /// The partition is another's.
    pub fn unnamed(&self, partition: PartitionId) {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).named.remove(&partition);
    }
}

async fn open(path: PathBuf, hash: BlobHash) -> Result<RoadMap, ShelfError> {
    let opening = tokio::task::spawn_blocking(move || RoadMap::open(&path, hash));
    Ok(opening.await.map_err(std::io::Error::other)??)
}

/// Removes our files that are not needed, and what a crash left unfinished an hour ago.
fn sweep(folder: &Path, needed: &BTreeSet<BlobHash>) -> std::io::Result<()> {
    let needed: BTreeSet<String> = needed.iter().map(BlobHash::to_string).collect();
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let is_over = match path.extension().and_then(|extension| extension.to_str()) {
            Some(MAP | TABLE) => !needed.contains(stem),
            Some(UNFINISHED) => {
                let age = path.metadata()?.modified()?.elapsed().unwrap_or_default();
                age > std::time::Duration::from_secs(3_600)
            }
            Some(_) | None => false,
        };
        if is_over {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// None for what no waiting would have helped.
fn unless_unusable<T>(body: BlobHash, loaded: Result<T, ShelfError>) -> Result<Option<T>, ShelfError> {
    match loaded {
        Ok(loaded) => Ok(Some(loaded)),
        Err(error) if error.is_given_up() => Err(error),
        Err(error) => {
            not_used(body, error);
            Ok(None)
        }
    }
}

/// Records say it is in use, and it is not: what is folded here may differ from what others fold.
pub fn not_used(body: BlobHash, error: ShelfError) {
    if matches!(error, ShelfError::Table(TableError::OtherMap)) {
        return; // it was made for a map that is gone or in another region: no effect, everywhere alike
    }
    error!(error = format!("{:#}", anyhow::Error::from(error)), %body, "a body in use cannot be had");
}

const MAP: &str = "wfm";
const TABLE: &str = "table";
const UNFINISHED: &str = "unfinished";
/// Opened maps and tables that stay a while without a user: about to be used, or just replaced.
const MAPS_KEPT: usize = 2;
const TABLES_KEPT: usize = 4;
/// The present state, and the newest two snapshots.
const STATES_NAMED: usize = 3;
const FILES_RECENT: usize = 16;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use async_trait::async_trait;
    use backends::blob_store::embedded::FolderBlobStore;
    use maps::Graph;
    use maps::import::{ImportOptions, import_bytes};
    use maps::town::{self, TownOptions};
    use protocol::Time;

    use super::*;
    use crate::shard::bodies::ReignBodies;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_table_that_cannot_be_kept_on_disk_is_used_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (shelf, blobs) = shelf(folder.path());
        std::fs::write(folder.path().join("bodies"), b"no folder can be made here").unwrap();
        let hash = blobs.put(Bytes::from_static(b"a table")).await.unwrap();

        assert_eq!(shelf.table(hash, shelf.stop()).await.unwrap(), b"a table".as_slice());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn files_that_no_kept_state_names_go_but_for_the_last_few() {
        let folder = tempfile::tempdir().unwrap();
        let (shelf, blobs) = shelf(folder.path());
        let mut hashes = Vec::new();
        for i in 0..60_u32 {
            let hash = blobs.put(Bytes::from(i.to_le_bytes().to_vec())).await.unwrap();
            shelf.table(hash, shelf.stop()).await.unwrap();
            hashes.push(hash);
        }
        let there = |hash: &BlobHash| folder.path().join("bodies").join(format!("{hash}.{TABLE}")).exists();
        assert!(hashes.iter().all(there));

        shelf.named(PartitionId(0), vec![hashes[3]]).await;

        assert!(there(&hashes[3]) && hashes[60 - FILES_RECENT..].iter().all(there));
        assert_eq!(hashes.iter().filter(|hash| there(hash)).count(), FILES_RECENT + 1);
        for _ in 0..STATES_NAMED {
            shelf.named(PartitionId(0), vec![hashes[59]]).await;
        }
        assert!(!there(&hashes[3]), "the states that named it are not kept any more");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_damaged_on_disk_is_fetched_again() {
        let folder = tempfile::tempdir().unwrap();
        let (shelf, blobs) = shelf(folder.path());
        let hash = blobs.put(Bytes::from_static(b"a table")).await.unwrap();
        shelf.table(hash, shelf.stop()).await.unwrap();
        std::fs::write(folder.path().join("bodies").join(format!("{hash}.{TABLE}")), b"a tab").unwrap();

        assert_eq!(shelf.table(hash, shelf.stop()).await.unwrap(), b"a table".as_slice());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn offered_tables_are_refused_where_they_are_broken_or_of_another_map() {
        let folder = tempfile::tempdir().unwrap();
        let (shelf, blobs) = shelf(folder.path());
        let bytes = |seed| {
            let options = TownOptions { seed, junctions: 60, ..TownOptions::default() };
            import_bytes(&town::extract(&options), &ImportOptions::default()).unwrap()
        };
        let (here, other) = (bytes(1), Graph::from_bytes(&bytes(2)).unwrap());
        let map = blobs.put(here.clone().into()).await.unwrap();
        let here = Graph::from_bytes(&here).unwrap();
        let mut partition = crate::track::Partition::new(PartitionId(0), protocol::Offset(0), Default::default());
        let in_use = protocol::Record::InUse { kind: BodyKind::Map, hash: map };
        let batch = protocol::RecordBatch { records: vec![in_use] };
        let bodies = ReignBodies::new(shelf.clone(), CancellationToken::new());
        let fold = move || {
            partition.handle_entry(protocol::Offset(0), &batch, &bodies, &mut crate::track::Effects::default());
            partition
        };
        let partition = tokio::task::spawn_blocking(fold).await.unwrap();
        let factors = |graph: &Graph| Bytes::from(LiveFactors::usual(graph, Time(0)).to_bytes());
        let check = async |body: Bytes| {
            let hash = blobs.put(body).await.unwrap();
            shelf.check((BodyKind::LiveSpeeds, hash), partition.regions(), shelf.stop()).await
        };

        assert!(check(factors(&here)).await.is_ok());
        assert!(matches!(check(factors(&other)).await, Err(ShelfError::Table(TableError::OtherMap))));
        assert!(matches!(check(Bytes::from_static(b"?")).await, Err(ShelfError::Table(TableError::Malformed))));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_map_is_published_though_the_blob_store_is_away_for_a_moment_and_refused_if_it_is_broken() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = FolderBlobStore::open(folder.path().join("blobs")).unwrap();
        let away = Arc::new(Away { blobs, calls: AtomicU32::new(0) });
        let shelf = MapShelf::new(away.clone(), folder.path().join("bodies"), CancellationToken::new());
        let bytes = import_bytes(&town::extract(&TownOptions::default()), &ImportOptions::default()).unwrap();
        let (whole, cut) = (folder.path().join("whole.wfm"), folder.path().join("cut.wfm"));
        std::fs::write(&whole, &bytes).unwrap();
        std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();

        let (hash, size) = shelf.publish(&whole).await.expect("it waits for the store");
        let refused = shelf.publish(&cut).await.unwrap_err();
        let missing = shelf.publish(&folder.path().join("none.wfm")).await.unwrap_err();

        assert_eq!((hash, size), (hash_of(&bytes), bytes.len() as u64));
        assert!(away.blobs.contains(hash).await.unwrap());
        assert!(refused.is_of_body() && !missing.is_of_body(), "{refused} and {missing}");
    }

    /// There for one call, away for the next, for a while.
    struct Away {
        blobs: FolderBlobStore,
        calls: AtomicU32,
    }

    impl Away {
        fn reach(&self) -> Result<(), BlobStoreError> {
            let call = self.calls.fetch_add(1, Ordering::SeqCst);
            if call < 6 && call.is_multiple_of(2) {
                return Err(BlobStoreError::Unavailable { reason: "a moment".to_string() });
            }
            Ok(())
        }
    }

    #[async_trait]
    impl BlobStore for Away {
        async fn put(&self, body: Bytes) -> Result<BlobHash, BlobStoreError> {
            self.reach()?;
            self.blobs.put(body).await
        }

        async fn get(&self, hash: BlobHash) -> Result<Bytes, BlobStoreError> {
            self.reach()?;
            self.blobs.get(hash).await
        }

        async fn contains(&self, hash: BlobHash) -> Result<bool, BlobStoreError> {
            self.reach()?;
            self.blobs.contains(hash).await
        }

        async fn remove(&self, hash: BlobHash) -> Result<(), BlobStoreError> {
            self.reach()?;
            self.blobs.remove(hash).await
        }
    }

    fn shelf(folder: &Path) -> (Arc<MapShelf>, Arc<FolderBlobStore>) {
        let blobs = Arc::new(FolderBlobStore::open(folder.join("blobs")).unwrap());
        let shelf = MapShelf::new(blobs.clone(), folder.join("bodies"), CancellationToken::new());
        (Arc::new(shelf), blobs)
    }
}
