//! The way to the writer: a queue bounded by requests and by bytes. A place in it is taken first, which may wait, and
//! filled at once, so that whoever fills it settles the order.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::writer::{Queued, Request};
use crate::log::LogError;

pub struct Queue {
    /// None once the log is closed.
    requests: Mutex<Option<mpsc::Sender<Queued>>>,
    bytes: Arc<Semaphore>,
    bytes_max: usize,
}

/// Room for one request.
pub struct Place {
    permit: mpsc::OwnedPermit<Queued>,
    room: OwnedSemaphorePermit,
    bytes: usize,
}

impl Queue {
    pub fn new(bytes_max: usize) -> (Queue, mpsc::Receiver<Queued>) {
        let (requests, queue) = mpsc::channel(REQUESTS_MAX);
        let requests = Mutex::new(Some(requests));
        (Queue { requests, bytes: Arc::new(Semaphore::new(bytes_max)), bytes_max }, queue)
    }

    /// What comes later is answered `Closed`.
    pub fn close(&self) {
        self.requests.lock().take();
    }

    pub fn is_closed(&self) -> bool {
        self.requests.lock().is_none()
    }

    pub fn downgrade(&self) -> Option<mpsc::WeakSender<Queued>> {
        self.requests.lock().as_ref().map(mpsc::Sender::downgrade)
    }

    /// Cancellation safe.
    pub async fn place(&self, bytes: usize) -> Result<Place, LogError> {
        let weight = bytes.min(self.bytes_max) as u32;
        let room = self.bytes.clone().acquire_many_owned(weight).await.map_err(|_| LogError::Closed)?;
        let requests = self.requests.lock().clone().ok_or(LogError::Closed)?;
        let permit = requests.reserve_owned().await.map_err(|_| LogError::Closed)?;
        Ok(Place { permit, room, bytes })
    }
}

impl Place {
    pub fn fill(self, request: Request) {
        self.permit.send(Queued { request, bytes: self.bytes, permit: Some(self.room) });
    }
}

const REQUESTS_MAX: usize = 4096;
