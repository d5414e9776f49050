//! Bodies as one fold sees them: it waits for them as long as the partition is ours. Who gives up waiting has not folded
//! the records as they are: of such a state nobody may be told, and no snapshot be kept.

use std::cell::Cell;
use std::sync::Arc;

use maps::eta::EtaTable;
use protocol::record::BlobHash;
use tokio_util::sync::CancellationToken;

use super::shelf::{MapShelf, ShelfError, not_used};
use crate::track::{Bodies, RoadMap, Tables, Traffic};

pub struct ReignBodies {
    shelf: Arc<MapShelf>,
    /// The partition is not ours any more, or all stops.
    stop: CancellationToken,
    has_given_up: Cell<bool>,
}

impl ReignBodies {
    pub fn new(shelf: Arc<MapShelf>, stop: CancellationToken) -> ReignBodies {
        ReignBodies { shelf, stop, has_given_up: Cell::new(false) }
    }

    /// A body that may well exist was not waited for.
    pub fn has_given_up(&self) -> bool {
        self.has_given_up.get()
    }

    fn wait<T>(&self, body: BlobHash, loading: impl Future<Output = Result<T, ShelfError>>) -> Option<T> {
        match self.shelf.runtime().block_on(loading) {
            Ok(loaded) => Some(loaded),
            Err(error) => {
                if error.is_given_up() {
                    self.has_given_up.set(true);
                } else {
                    not_used(body, error);
                }
                None
            }
        }
    }
}

/// For the threads that fold.
impl Bodies for ReignBodies {
    fn map(&self, hash: BlobHash) -> Option<Arc<RoadMap>> {
        self.wait(hash, self.shelf.load_until(hash, &self.stop))
    }

    fn traffic(&self, map: &Arc<RoadMap>, tables: Tables) -> Arc<Traffic> {
        self.shelf.note_in_use(map.hash);
        let traffic = self.wait(map.hash, self.shelf.load_traffic(map, tables, &self.stop));
        traffic.unwrap_or_else(|| Arc::new(Traffic::usual(map.clone())))
    }

    fn eta(&self, hash: BlobHash) -> Option<Arc<EtaTable>> {
        self.wait(hash, self.shelf.load_eta(hash, &self.stop))
    }
}
