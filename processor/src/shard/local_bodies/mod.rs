//! Maps and tables by their hash, for all partitions of this process: fetched from the blob store once, kept in a local
//! folder, checked, opened once, and made ready for use away from the threads that fold.
//!
//! `files` decides which local files stay, `open` holds what is opened, `in_use` says which map others should show.
//! A local disk that is full never takes a map out of use: one that is offered waits until it can be kept, and one that
//! the records say is in use is opened from memory.

mod files;
mod in_use;
mod open;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backends::blob_store::{BlobStore, BlobStoreError, hash_of};
use bytes::Bytes;
use daemon::{Backoff, retry};
use maps::eta::EtaTable;
use maps::file::Sections;
use maps::speeds::{LiveFactors, SpeedTable, TableError};
use maps::{Graph, MapError};
use protocol::PartitionId;
use protocol::record::{BlobHash, BodyKind, Vehicle};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::track::{RegionInUse, RoadMap, Tables, Traffic};
use files::BodyFiles;
use in_use::MapInUse;
use open::OpenBodies;

pub(crate) struct LocalBodies {
    blobs: Arc<dyn BlobStore>,
    files: BodyFiles,
    open: OpenBodies,
    in_use: MapInUse,
    /// One map is fetched at a time; tables are small.
    fetching: tokio::sync::Mutex<()>,
    runtime: Handle,
    stop: CancellationToken,
}

#[derive(Debug, thiserror::Error)]
pub enum BodyError {
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

impl BodyError {
    /// We were stopped before it was known whether the body can be had.
    pub(crate) fn is_given_up(&self) -> bool {
        match self {
            BodyError::GivenUp => true,
            BodyError::Blob(error) => error.is_transient(), // these are tried again until the stop
            BodyError::Disk(_) | BodyError::Map(_) | BodyError::Table(_) | BodyError::EtaModel => false,
        }
    }

    /// The local disk refused it; another try may succeed.
    pub(crate) fn is_of_disk(&self) -> bool {
        match self {
            BodyError::Disk(_) => true,
            BodyError::Blob(_) | BodyError::Map(_) | BodyError::Table(_) | BodyError::EtaModel | BodyError::GivenUp => {
                false
            }
        }
    }

    /// The body itself cannot be used: another try says the same.
    pub(crate) fn is_of_body(&self) -> bool {
        match self {
            BodyError::Map(_) | BodyError::Table(_) | BodyError::EtaModel => true,
            BodyError::Blob(BlobStoreError::TooLarge { .. }) => true,
            BodyError::Blob(_) | BodyError::Disk(_) | BodyError::GivenUp => false,
        }
    }
}

/// Whether a map must lie on the local disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Keeping {
    Required,
    /// The records say that it is in use: if the disk is full it is opened from memory.
    IfPossible,
}

impl LocalBodies {
    /// Within a runtime.
    pub(crate) fn new(blobs: Arc<dyn BlobStore>, folder: PathBuf, stop: CancellationToken) -> Self {
        LocalBodies {
            blobs,
            files: BodyFiles::new(folder),
            open: OpenBodies::new(),
            in_use: MapInUse::default(),
            fetching: tokio::sync::Mutex::new(()),
            runtime: Handle::current(),
            stop,
        }
    }

    /// The map that is in use here: the one that this process offers, once it is in use; where it offers none, the last
    /// one that a record has put in use. Others in use lie elsewhere.
    pub(crate) fn map_in_use(&self) -> watch::Receiver<Option<BlobHash>> {
        self.in_use.subscribe()
    }

    pub(crate) fn note_in_use(&self, map: BlobHash) {
        self.in_use.handle_in_use(map);
    }

    /// Puts a map file where every owner of a partition can fetch it, if it is whole: its hash and size. While the blob
    /// store is away it waits.
    pub(crate) async fn publish(&self, file: &Path) -> Result<(BlobHash, u64), BodyError> {
        let path = file.to_path_buf();
        let read = tokio::task::spawn_blocking(move || {
            let body = std::fs::read(&path)?;
            Sections::check(&body)?;
            Ok::<_, BodyError>((hash_of(&body), Bytes::from(body)))
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
        self.in_use.handle_published(hash);
        Ok((hash, size))
    }

    /// Fetches and checks an offered body, and prepares for these regions what takes long to make. An error says why it
    /// is not to be taken into use. While the blob store is away it waits, until the stop.
    pub(crate) async fn check(
        &self,
        (kind, hash): (BodyKind, BlobHash),
        regions: &[RegionInUse],
        stop: &CancellationToken,
    ) -> Result<(), BodyError> {
        match kind {
            BodyKind::Map => {
                let map = self.load_map(hash, Keeping::Required, stop).await?;
                self.prepare(vec![Arc::new(Traffic::usual(map))]).await
            }
            BodyKind::EtaModel => self.load_eta(hash, stop).await.map(drop),
            BodyKind::Speeds | BodyKind::LiveSpeeds => self.check_table((kind, hash), regions, stop).await,
        }
    }

    async fn check_table(
        &self,
        (kind, hash): (BodyKind, BlobHash),
        regions: &[RegionInUse],
        stop: &CancellationToken,
    ) -> Result<(), BodyError> {
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

    /// Makes the routers for vehicles that drivers were given, in the background.
    pub(crate) fn prepare_for(self: &Arc<Self>, vehicles: &BTreeSet<Vehicle>, traffic: Vec<Arc<Traffic>>) {
        let is_news = self.open.note_vehicles(vehicles);
        if is_news {
            let bodies = self.clone();
            self.runtime.spawn(async move {
                if let Err(error) = bodies.prepare(traffic).await {
                    warn!(%error, "routers could not be made ahead");
                }
            });
        }
    }

    /// The same at once, for a partition that is not folded yet.
    pub(crate) fn prepare_now(&self, vehicles: &BTreeSet<Vehicle>, traffic: &[Arc<Traffic>]) {
        self.open.note_vehicles(vehicles);
        let profiles = self.open.profiles();
        traffic.iter().for_each(|traffic| profiles.iter().for_each(|profile| traffic.prepare(*profile)));
    }

    async fn prepare(&self, traffic: Vec<Arc<Traffic>>) -> Result<(), BodyError> {
        let profiles = self.open.profiles();
        let preparing = tokio::task::spawn_blocking(move || {
            traffic.iter().for_each(|traffic| profiles.iter().for_each(|profile| traffic.prepare(*profile)));
        });
        Ok(preparing.await.map_err(std::io::Error::other)?)
    }

    /// A map that lies on the local disk, opened; fetched first if need be.
    pub(crate) async fn load(&self, hash: BlobHash) -> Result<Arc<RoadMap>, BodyError> {
        self.load_map(hash, Keeping::Required, &self.stop).await
    }

    /// A map that records say is in use, opened. It gives up waiting at this stop.
    pub(crate) async fn load_until(&self, hash: BlobHash, stop: &CancellationToken) -> Result<Arc<RoadMap>, BodyError> {
        self.load_map(hash, Keeping::IfPossible, stop).await
    }

    async fn load_map(
        &self,
        hash: BlobHash,
        keeping: Keeping,
        stop: &CancellationToken,
    ) -> Result<Arc<RoadMap>, BodyError> {
        if let Some(map) = self.open.maps.find(&hash) {
            return Ok(map);
        }
        let _one_at_a_time = tokio::select! {
            biased;
            turn = self.fetching.lock() => turn,
            () = stop.cancelled() => return Err(BodyError::GivenUp),
        };
        if let Some(map) = self.open.maps.find(&hash) {
            return Ok(map);
        }
        self.files.handle_used(hash);
        let path = self.path_of(hash);
        let map = match open_file(path.clone(), hash).await {
            Ok(map) => map,
            Err(_) => self.fetch_map(path, hash, keeping, stop).await?,
        };
        info!(map = %hash, edges = map.graph.edge_count(), "map opened");
        Ok(self.open.maps.put(hash, map))
    }

    async fn fetch_map(
        &self,
        path: PathBuf,
        hash: BlobHash,
        keeping: Keeping,
        stop: &CancellationToken,
    ) -> Result<RoadMap, BodyError> {
        let body = self.fetch(hash, stop).await?;
        match (self.files.keep(path.clone(), body.clone()).await, keeping) {
            (Ok(()), _) => Ok(open_file(path, hash).await?),
            (Err(error), Keeping::Required) => Err(error.into()),
            (Err(error), Keeping::IfPossible) => {
                warn!(%error, map = %hash, "a map in use cannot be kept on disk: it is opened from memory");
                let opening = tokio::task::spawn_blocking(move || Graph::from_bytes(&body));
                Ok(RoadMap::of(opening.await.map_err(std::io::Error::other)??, hash))
            }
        }
    }

    async fn load_speeds(
        &self,
        map: &RoadMap,
        hash: BlobHash,
        stop: &CancellationToken,
    ) -> Result<Arc<SpeedTable>, BodyError> {
        let key = (map.hash, hash);
        if let Some(table) = self.open.speeds.find(&key) {
            return Ok(table);
        }
        let table = SpeedTable::from_bytes(&self.table(hash, stop).await?, &map.graph)?;
        Ok(self.open.speeds.put(key, table))
    }

    async fn load_live(
        &self,
        map: &RoadMap,
        hash: BlobHash,
        stop: &CancellationToken,
    ) -> Result<Arc<LiveFactors>, BodyError> {
        let key = (map.hash, hash);
        if let Some(factors) = self.open.live.find(&key) {
            return Ok(factors);
        }
        let factors = LiveFactors::from_bytes(&self.table(hash, stop).await?, &map.graph)?;
        Ok(self.open.live.put(key, factors))
    }

    pub(crate) async fn load_eta(&self, hash: BlobHash, stop: &CancellationToken) -> Result<Arc<EtaTable>, BodyError> {
        if let Some(table) = self.open.etas.find(&hash) {
            return Ok(table);
        }
        let table = EtaTable::from_bytes(&self.table(hash, stop).await?).ok_or(BodyError::EtaModel)?;
        Ok(self.open.etas.put(hash, table))
    }

    /// A table that cannot be used is left out.
    pub(crate) async fn load_traffic(
        &self,
        map: &Arc<RoadMap>,
        tables: Tables,
        stop: &CancellationToken,
    ) -> Result<Arc<Traffic>, BodyError> {
        let key = (map.hash, tables);
        if let Some(traffic) = self.open.traffic.find(&key) {
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
        Ok(self.open.traffic.put(key, Traffic::of(map.clone(), speeds, live)))
    }

    /// The bytes of a table, from the local folder if they are there and whole.
    async fn table(&self, hash: BlobHash, stop: &CancellationToken) -> Result<Bytes, BodyError> {
        let path = self.files.table(hash);
        self.files.handle_used(hash);
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
        if let Err(error) = self.files.keep(path, body.clone()).await {
            warn!(%error, body = %hash, "a table cannot be kept on disk");
        }
        Ok(body)
    }

    async fn fetch(&self, hash: BlobHash, stop: &CancellationToken) -> Result<Bytes, BlobStoreError> {
        let fetch = || self.blobs.get(hash);
        retry("fetch a body", Backoff::default(), stop, BlobStoreError::is_transient, fetch).await
    }

    /// Where a map that was loaded lies on this machine: a file that never changes.
    pub(crate) fn path_of(&self, hash: BlobHash) -> PathBuf {
        self.files.map(hash)
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Cancelled when nothing is to be waited for any more.
    pub(crate) fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// A snapshot that names these bodies was kept: local files that nothing names any more are removed.
    pub(crate) async fn handle_snapshot_kept(&self, partition: PartitionId, bodies: Vec<BlobHash>) {
        self.files.handle_named(partition, bodies).await;
    }

    /// The partition is another's.
    pub(crate) fn handle_partition_lost(&self, partition: PartitionId) {
        self.files.handle_partition_lost(partition);
    }
}

async fn open_file(path: PathBuf, hash: BlobHash) -> Result<RoadMap, BodyError> {
    let opening = tokio::task::spawn_blocking(move || Graph::open(&path));
    Ok(RoadMap::of(opening.await.map_err(std::io::Error::other)??, hash))
}

/// None for an error that waiting would not have changed.
fn unless_unusable<T>(body: BlobHash, loaded: Result<T, BodyError>) -> Result<Option<T>, BodyError> {
    match loaded {
        Ok(loaded) => Ok(Some(loaded)),
        Err(error) if error.is_given_up() => Err(error),
        Err(error) => {
            log_unusable(body, error);
            Ok(None)
        }
    }
}

/// Records say that a body is in use, and it cannot be used here: what is folded may differ from other machines.
pub(super) fn log_unusable(body: BlobHash, error: BodyError) {
    if matches!(error, BodyError::Table(TableError::OtherMap)) {
        return; // it was made for a map that is gone or in another region: it has no effect on any machine
    }
    error!(error = format!("{:#}", anyhow::Error::from(error)), %body, "a body in use cannot be had");
}
