//! A new version of the map, put where the old one lies, goes into use while all runs: the file is looked at every ten
//! seconds, and at once when somebody says so (SIGHUP).
//!
//! A file that changed is taken only when it has stood still for a moment and all its checksums fit; one that is broken
//! is refused aloud, once, and the map in use stays; where the file is not to blame it is tried again. What is in use is
//! a copy of its own, so that whoever writes over the file instead of renaming another into its place harms nobody.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use daemon::Drain;
use gateway::{TileSource, TilesHandle};
use processor::{OfferError, OfferedMap, Processor};
use tokio::sync::Notify;
use tracing::{error, info, warn};

use crate::tiles;

pub struct MapWatch {
    /// The file that the settings name.
    pub file: PathBuf,
    /// How it looked before the processor read it: what changed since is not missed.
    pub seen: Option<Print>,
    pub processor: Processor,
    pub tiles: Option<TilesHandle>,
    /// Told when the file is to be looked at now.
    pub now: Arc<Notify>,
}

/// By what a file is known to be another one, without reading it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Print {
    device: u64,
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

impl MapWatch {
    /// Until told to stop.
    pub async fn run(self, drain: Drain) -> Result<()> {
        let stop = drain.token();
        let mut taken = self.seen;
        loop {
            let is_told = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = self.now.notified() => true,
                () = tokio::time::sleep(LOOK_EVERY) => false,
            };
            let found = self.print().await;
            if found == taken && !is_told {
                continue;
            }
            let found = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                found = self.print_when_still(found) => found,
            };
            let is_taken = match found {
                Some(_) => self.take().await,
                None => {
                    warn!(file = %self.file.display(), "the map's file is gone: the map in use stays");
                    true
                }
            };
            if is_taken {
                taken = found;
            }
        }
    }

    /// Nothing is half of a map because somebody is still writing it.
    async fn print_when_still(&self, mut found: Option<Print>) -> Option<Print> {
        loop {
            tokio::time::sleep(STILL).await;
            let again = self.print().await;
            if again == found {
                return found;
            }
            found = again;
        }
    }

    /// False: it is to be tried again, because what failed is not the file's fault.
    async fn take(&self) -> bool {
        let offered = match self.processor.offer_map(&self.file).await {
            Ok(offered) => offered,
            Err(error) => {
                let is_refused = matches!(error, OfferError::File(_));
                let error = format!("{:#}", anyhow::Error::from(error));
                let file = self.file.display();
                if is_refused {
                    error!(error, %file, "the map's file cannot be used: the map in use stays");
                } else {
                    warn!(error, %file, "the map could not be offered, trying again");
                }
                return is_refused;
            }
        };
        if offered.is_new {
            info!(map = %offered.version, "a new map goes into use");
        } else {
            info!(map = %offered.version, "the map's file holds the map that is in use");
        }
        if let Err(error) = self.show(&offered).await {
            warn!(error = format!("{error:#}"), map = %offered.version, "the map's tiles cannot be shown, trying again");
            return false;
        }
        true
    }

    /// Tiles of this map, unless they are shown already.
    async fn show(&self, offered: &OfferedMap) -> Result<()> {
        let version = offered.version.to_string();
        let Some(handle) = self.tiles.as_ref().filter(|handle| handle.version() != version) else { return Ok(()) };
        let file = offered.file.clone();
        let opened = tokio::task::spawn_blocking(move || tiles::open(&file)).await.context("open the map's tiles")?;
        handle.show(Arc::new(opened?) as Arc<dyn TileSource>);
        Ok(())
    }

    async fn print(&self) -> Option<Print> {
        let file = self.file.clone();
        tokio::task::spawn_blocking(move || Print::of(&file)).await.ok().flatten()
    }
}

impl Print {
    /// None: it is not there.
    pub fn of(file: &Path) -> Option<Print> {
        let meta = fs::metadata(file).ok()?;
        let changed = (meta.mtime(), meta.mtime_nsec());
        Some(Print { device: meta.dev(), inode: meta.ino(), bytes: meta.len(), changed })
    }
}

const LOOK_EVERY: Duration = Duration::from_secs(10);
/// A copy that is under way grows in less.
const STILL: Duration = Duration::from_secs(1);
