//! Maps by their hash: fetched from the blob store once, kept in a local folder, opened once for all partitions.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use backends::blob_store::{BlobStore, BlobStoreError, hash_of};
use bytes::Bytes;
use daemon::{Backoff, retry};
use maps::MapError;
use maps::file::Sections;
use protocol::record::BlobHash;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::track::{Maps, RoadMap};

pub struct MapShelf {
    blobs: Arc<dyn BlobStore>,
    folder: PathBuf,
    opened: Mutex<BTreeMap<BlobHash, Arc<RoadMap>>>,
    /// One at a time fetches.
    fetching: tokio::sync::Mutex<()>,
    runtime: Handle,
    stop: CancellationToken,
}

#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    #[error("fetch a map from the blob store")]
    Blob(#[from] BlobStoreError),
    #[error("keep a map on disk")]
    Disk(#[from] std::io::Error),
    #[error("open a map")]
    Map(#[from] MapError),
}

impl MapShelf {
    /// Within a runtime.
    pub fn new(blobs: Arc<dyn BlobStore>, folder: PathBuf, stop: CancellationToken) -> Self {
        let opened = Mutex::new(BTreeMap::new());
        MapShelf { blobs, folder, opened, fetching: tokio::sync::Mutex::new(()), runtime: Handle::current(), stop }
    }

    /// Puts a map file where every owner of a partition can fetch it, if it is whole: its name and size.
    pub async fn publish(&self, file: &Path) -> anyhow::Result<(BlobHash, u64)> {
        let path = file.to_path_buf();
        let read = tokio::task::spawn_blocking(move || {
            let body = std::fs::read(&path)?;
            Sections::check(&body)?;
            Ok::<_, ShelfError>((hash_of(&body), Bytes::from(body)))
        });
        let (hash, body) = read.await.context("read the map")?.with_context(|| format!("read {}", file.display()))?;
        let size = body.len() as u64;
        let is_there = self.blobs.contains(hash).await.context("look for the map in the blob store")?;
        if !is_there {
            self.blobs.put(body).await.context("put the map into the blob store")?;
        }
        Ok((hash, size))
    }

    /// The map, opened; fetched first if need be.
    pub async fn load(&self, hash: BlobHash) -> Result<Arc<RoadMap>, ShelfError> {
        let _one_at_a_time = self.fetching.lock().await;
        if let Some(map) = self.find(hash) {
            return Ok(map);
        }
        let path = self.path_of(hash);
        let map = match self.open(path.clone(), hash).await {
            Ok(map) => map,
            Err(_) => {
                let is_transient = BlobStoreError::is_transient;
                let fetch = || self.blobs.get(hash);
                let body = retry("fetch a map", Backoff::default(), &self.stop, is_transient, fetch).await?;
                self.keep(path.clone(), body).await?;
                self.open(path, hash).await?
            }
        };
        info!(map = %hash, edges = map.graph.edge_count(), "map opened");
        let map = Arc::new(map);
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).insert(hash, map.clone());
        Ok(map)
    }

    /// Where a map that was loaded lies on this machine: a file that never changes.
    pub fn path_of(&self, hash: BlobHash) -> PathBuf {
        self.folder.join(format!("{hash}.wfm"))
    }

    /// Cancelled when nothing is to be waited for any more.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    fn find(&self, hash: BlobHash) -> Option<Arc<RoadMap>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).get(&hash).cloned()
    }

    async fn open(&self, path: PathBuf, hash: BlobHash) -> Result<RoadMap, ShelfError> {
        let opening = tokio::task::spawn_blocking(move || RoadMap::open(&path, hash));
        Ok(opening.await.map_err(std::io::Error::other)??)
    }

    async fn keep(&self, path: PathBuf, body: Bytes) -> Result<(), ShelfError> {
        let folder = self.folder.clone();
        let keeping = tokio::task::spawn_blocking(move || {
            std::fs::create_dir_all(&folder)?;
            let unfinished = path.with_extension("unfinished");
            std::fs::write(&unfinished, &body)?;
            std::fs::rename(&unfinished, &path)
        });
        Ok(keeping.await.map_err(std::io::Error::other)??)
    }
}

/// For the threads that fold: they wait.
impl Maps for MapShelf {
    fn map(&self, hash: BlobHash) -> Option<Arc<RoadMap>> {
        if let Some(map) = self.find(hash) {
            return Some(map);
        }
        let loaded = self.runtime.block_on(self.load(hash));
        loaded.map_err(|error| error!(error = format!("{:#}", anyhow::Error::from(error)), map = %hash, "no map: straight lines")).ok()
    }
}
