//! Maps and tables as one fold sees them: it waits for them as long as the partition is ours. A fold that gave up waiting
//! has not folded the records as they are: its state must neither be published nor kept in a snapshot.

use std::cell::Cell;
use std::sync::Arc;

use maps::eta::EtaTable;
use protocol::record::BlobHash;
use tokio_util::sync::CancellationToken;

use super::local_bodies::{BodyError, LocalBodies, log_unusable};
use crate::track::{Bodies, RoadMap, Tables, Traffic};

pub(crate) struct FoldBodies {
    local: Arc<LocalBodies>,
    /// Cancelled when the partition is not ours any more, or when all stops.
    stop: CancellationToken,
    has_given_up: Cell<bool>,
}

impl FoldBodies {
    pub(crate) fn new(local: Arc<LocalBodies>, stop: CancellationToken) -> FoldBodies {
        FoldBodies { local, stop, has_given_up: Cell::new(false) }
    }

    /// A body that may well exist was not waited for.
    pub(crate) fn has_given_up(&self) -> bool {
        self.has_given_up.get()
    }

    fn wait<T>(&self, body: BlobHash, loading: impl Future<Output = Result<T, BodyError>>) -> Option<T> {
        match self.local.runtime().block_on(loading) {
            Ok(loaded) => Some(loaded),
            Err(error) => {
                if error.is_given_up() {
                    self.has_given_up.set(true);
                } else {
                    log_unusable(body, error);
                }
                None
            }
        }
    }
}

/// For the threads that fold.
impl Bodies for FoldBodies {
    fn map(&self, hash: BlobHash) -> Option<Arc<RoadMap>> {
        self.wait(hash, self.local.load_until(hash, &self.stop))
    }

    fn traffic(&self, map: &Arc<RoadMap>, tables: Tables) -> Arc<Traffic> {
        self.local.note_in_use(map.hash);
        let traffic = self.wait(map.hash, self.local.load_traffic(map, tables, &self.stop));
        traffic.unwrap_or_else(|| Arc::new(Traffic::usual(map.clone())))
    }

    fn eta(&self, hash: BlobHash) -> Option<Arc<EtaTable>> {
        self.wait(hash, self.local.load_eta(hash, &self.stop))
    }
}
