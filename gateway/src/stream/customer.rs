//! The stream of one delivery. The hub gives what it holds; what it does not hold (a view not read yet, finished, a
//! second old, or journal entries older than the view keeps) the ledger and the live store give first.

use std::collections::VecDeque;
use std::sync::Arc;

use backends::ledger::{DeliveryLedger, LedgerError};
use backends::live_store::LiveStore;
use protocol::frame::{Frame, SnapshotFrame, StatusFrame};
use protocol::update::DeliveryView;
use protocol::{Delivery, DeliveryKey, JournalEntry, JournalNumber};
use tokio::sync::Notify;

use super::{BadMessage, FrameStream, Step};
use crate::hub::{Begin, CloseReason, Flow, Resume, SharedFrame, encoded_plan, frames};
use crate::shards::{Shards, Watch};

/// Where deliveries are known.
#[derive(Clone)]
pub(crate) struct Views {
    pub shards: Arc<Shards>,
    pub ledger: Arc<dyn DeliveryLedger>,
    pub live_store: Arc<dyn LiveStore>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ViewError {
    #[error("the delivery is not known")]
    NotFound,
    #[error("another gateway owns this delivery, or this one stops")]
    NotHere,
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// What is known of a delivery without its hub.
struct Known {
    view: DeliveryView,
    is_degraded: bool,
}

impl Views {
    /// The newest whole view, from wherever it is known.
    pub async fn snapshot(&self, key: DeliveryKey) -> Result<SharedFrame, ViewError> {
        let partition = self.shards.partition_of(key);
        if let Some(frame) = self.shards.with(partition, |hub, now| hub.snapshot(key, now)).flatten() {
            return Ok(frame);
        }
        Ok(self.frame_of(&self.known(key).await?))
    }

    pub async fn stream(&self, key: DeliveryKey, resume: Resume) -> Result<CustomerStream, ViewError> {
        let waker = Arc::new(Notify::new());
        let begin = |hub: &mut crate::hub::Hub, _| (hub.handle_watch(key), ());
        let watch = self.shards.watch(self.shards.partition_of(key), waker.clone(), begin);
        let Some((watch, ())) = watch else { return Err(ViewError::NotHere) };
        let mut stream = CustomerStream { watch, waker, queue: VecDeque::new(), closing: None };
        self.begin(key, &mut stream, resume).await?;
        Ok(stream)
    }

    /// Settles where the stream begins. Each turn brings it further: entries from the ledger only ever rise.
    async fn begin(&self, key: DeliveryKey, stream: &mut CustomerStream, resume: Resume) -> Result<(), ViewError> {
        let mut resume = resume;
        loop {
            let begin = stream.watch.with(|hub, id, _| hub.handle_begin(id, &resume));
            match begin.ok_or(ViewError::NotHere)? {
                Begin::Begun => return Ok(()),
                Begin::Behind { last, through } => {
                    let entries = self.ledger.journal(key, last, JOURNAL_PAGE).await?;
                    let mut reached = last;
                    for entry in entries.into_iter().filter(|entry| entry.number <= through) {
                        reached = entry.number;
                        stream.queue.push_back(status(entry));
                    }
                    if reached == last {
                        // There is nothing between: the numbers leap there. The whole view goes with what follows.
                        resume = Resume { last: Some(through), view: None };
                    } else {
                        resume.last = Some(reached);
                    }
                }
                Begin::Ahead { known } => {
                    let delivery = self.ledger.delivery(key).await?.ok_or(ViewError::NotFound)?;
                    if resume.last.is_some_and(|last| last <= delivery.last_number()) {
                        // It has seen entries that the log has yet to bring here.
                        let last = resume.last.unwrap_or(known);
                        stream.watch.with(|hub, id, _| hub.handle_follow(id, last)).ok_or(ViewError::NotHere)?;
                        return Ok(());
                    }
                    resume = Resume::default();
                }
                Begin::NotHeld => return self.begin_unheld(key, stream, &resume).await,
            }
        }
    }

    /// The entries missed and the whole view come from the ledger and the live store; the hub goes on from there.
    async fn begin_unheld(
        &self,
        key: DeliveryKey,
        stream: &mut CustomerStream,
        resume: &Resume,
    ) -> Result<(), ViewError> {
        let known = self.known(key).await?;
        let through = known.view.delivery.last_number();
        if known.view.delivery.state.is_finished() && resume.last == Some(through) {
            // It has all there will be.
            stream.closing = Some(CloseReason::Finished);
            return Ok(());
        }
        if let Some(last) = resume.last.filter(|last| *last <= through) {
            self.queue_journal(key, stream, last, through).await?;
        }
        stream.queue.push_back(self.frame_of(&known));
        let is_forgotten = stream.watch.with(|hub, id, _| {
            hub.handle_follow(id, through);
            hub.is_whole() && hub.live_view(key).is_none()
        });
        if is_forgotten.ok_or(ViewError::NotHere)? && known.view.delivery.state.is_finished() {
            stream.closing = Some(CloseReason::Finished);
        }
        Ok(())
    }

    async fn queue_journal(
        &self,
        key: DeliveryKey,
        stream: &mut CustomerStream,
        last: JournalNumber,
        through: JournalNumber,
    ) -> Result<(), ViewError> {
        let mut last = last;
        while last < through {
            let entries = self.ledger.journal(key, last, JOURNAL_PAGE).await?;
            let Some(newest) = entries.last().map(|entry| entry.number) else { return Ok(()) };
            stream.queue.extend(entries.into_iter().filter(|entry| entry.number <= through).map(status));
            last = newest;
        }
        Ok(())
    }

    async fn known(&self, key: DeliveryKey) -> Result<Known, ViewError> {
        let partition = self.shards.partition_of(key);
        let is_whole = self.shards.with(partition, |hub, _| hub.is_whole()).unwrap_or(false);
        let stored = self.live_store.delivery(key, self.shards.monotonic()).await;
        if let Err(error) = &stored {
            tracing::debug!(%error, "the live store was asked in vain");
        }
        let stored = stored.ok().flatten().map(|live| live.view);
        match self.ledger.delivery(key).await {
            Ok(None) => Err(ViewError::NotFound),
            Ok(Some(delivery)) => {
                let is_degraded = !is_whole && !delivery.state.is_finished();
                Ok(Known { view: joined(delivery, stored), is_degraded })
            }
            // Without the ledger the last view known still answers: it was this tenant's when it was written.
            Err(error) if error.is_transient() => match stored {
                Some(view) => Ok(Known { view, is_degraded: true }),
                None => Err(error.into()),
            },
            Err(error) => Err(error.into()),
        }
    }

    fn frame_of(&self, known: &Known) -> SharedFrame {
        let plan = known.view.plan.as_ref().and_then(encoded_plan);
        let snapshot = SnapshotFrame::of(&known.view, plan, known.is_degraded, self.shards.now());
        frames::shared(&Frame::Snapshot(Box::new(snapshot)))
    }
}

/// The ledger's word on the delivery, with the place, way and ETA of the last view known while its driver is the same.
fn joined(delivery: Delivery, stored: Option<DeliveryView>) -> DeliveryView {
    let stored =
        stored.filter(|view| view.delivery.assignment == delivery.assignment).filter(|_| !delivery.state.is_finished());
    match stored {
        Some(view) => DeliveryView { delivery, ..view },
        None => DeliveryView { delivery, position: None, progress: None, eta: None, plan: None, silent: None },
    }
}

fn status(entry: JournalEntry) -> SharedFrame {
    frames::shared(&Frame::Status(StatusFrame { entry }))
}

#[derive(Debug)]
pub(crate) struct CustomerStream {
    watch: Watch,
    waker: Arc<Notify>,
    queue: VecDeque<SharedFrame>,
    /// Set once nothing more can come.
    closing: Option<CloseReason>,
}

impl FrameStream for CustomerStream {
    async fn next_step(&mut self) -> Step {
        let mut polled = Vec::new();
        loop {
            if let Some(frame) = self.queue.pop_front() {
                return Step::Frame(frame);
            }
            if let Some(reason) = self.closing {
                return Step::Close(reason);
            }
            let flow = self.watch.poll_frames(&mut polled);
            self.queue.extend(polled.drain(..));
            match flow {
                Flow::Close(reason) => self.closing = Some(reason),
                Flow::More => {}
                Flow::Quiet if self.queue.is_empty() => self.waker.notified().await,
                Flow::Quiet => {}
            }
        }
    }

    fn handle_message(&mut self, _text: &str) -> Result<(), BadMessage> {
        Err(BadMessage("a customer has nothing to say here"))
    }
}

const JOURNAL_PAGE: u32 = 256;
