//! Which map this process should show: the one that it offers, once a fold here has taken it into use.

use std::sync::{Mutex, PoisonError};

use protocol::record::BlobHash;
use tokio::sync::watch;

#[derive(Default)]
pub(super) struct MapInUse {
    /// The map that this process offers.
    published: Mutex<Option<BlobHash>>,
    in_use: watch::Sender<Option<BlobHash>>,
}

impl MapInUse {
    pub(super) fn subscribe(&self) -> watch::Receiver<Option<BlobHash>> {
        self.in_use.subscribe()
    }

    pub(super) fn handle_published(&self, map: BlobHash) {
        *self.published.lock().unwrap_or_else(PoisonError::into_inner) = Some(map);
    }

    /// A fold here has a map in use.
    pub(super) fn handle_in_use(&self, map: BlobHash) {
        let published = *self.published.lock().unwrap_or_else(PoisonError::into_inner);
        if published.is_none_or(|ours| ours == map) {
            self.in_use.send_if_modified(|in_use| in_use.replace(map) != Some(map));
        }
    }
}
