//! What others bring to a UDP thread: the shipper's word on its parcels, keys, datagrams that came by another way, and
//! the fixes of doors without datagrams. A waker ends the thread's wait.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};

use mio::Waker;
use protocol::record::Door;
use protocol::session::SealedAnswer;
use protocol::{DeviceKey, Fix};
use tokio::sync::oneshot;

use crate::control::ControlChange;
use crate::intake::{Parcel, ParcelOutcome, RejectedFix};

/// From the shipper and the control task. As many are under way as there are parcels, and a few.
#[derive(Debug)]
pub enum Notice {
    Returned(Parcel),
    Settled {
        through: u64,
        outcome: ParcelOutcome,
    },
    Control(Arc<ControlChange>),
    /// Take no more, ship, answer, leave.
    Stop,
}

/// What came by another way than the thread's own socket.
#[derive(Debug)]
pub enum Visitor {
    Datagram { bytes: Box<[u8]>, door: Door, reply: Reply },
    Submission(Submission),
}

/// Fixes of a door without sessions.
#[derive(Debug)]
pub struct Submission {
    pub device: DeviceKey,
    pub door: Door,
    pub fixes: Vec<Fix>,
    pub reply: oneshot::Sender<SubmissionOutcome>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SubmissionOutcome {
    /// All are in the log, those rejected too.
    Durable { rejected: Vec<RejectedFix> },
    /// They were taken and then given up.
    Lost,
    /// They were not taken.
    Overloaded,
}

/// Where an answer goes.
#[derive(Debug)]
pub enum Reply {
    Udp {
        peer: SocketAddr,
        local: Option<IpAddr>,
    },
    /// None when there is nothing to answer.
    Http(oneshot::Sender<Option<SealedAnswer>>),
    Submission {
        reply: oneshot::Sender<SubmissionOutcome>,
        rejected: Vec<RejectedFix>,
    },
}

/// How to reach a thread. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ThreadPort {
    notices: Sender<Notice>,
    visitors: SyncSender<Visitor>,
    waker: Arc<Waker>,
}

/// The thread's end.
#[derive(Debug)]
pub struct Inbox {
    pub notices: Receiver<Notice>,
    pub visitors: Receiver<Visitor>,
}

pub fn port(waker: Arc<Waker>) -> (ThreadPort, Inbox) {
    let (notices, notices_in) = channel();
    let (visitors, visitors_in) = sync_channel(VISITORS_MAX);
    (ThreadPort { notices, visitors, waker }, Inbox { notices: notices_in, visitors: visitors_in })
}

impl ThreadPort {
    /// To a thread that has ended nothing needs to be said.
    pub fn notify(&self, notice: Notice) {
        if self.notices.send(notice).is_ok() {
            self.wake();
        }
    }

    /// For what can wait until the thread wakes for another reason.
    pub fn notify_quietly(&self, notice: Notice) {
        let _has_ended = self.notices.send(notice);
    }

    /// Gives the visitor back if the thread has too many, or has ended.
    pub fn visit(&self, visitor: Visitor) -> Result<(), Visitor> {
        match self.visitors.try_send(visitor) {
            Ok(()) => {
                self.wake();
                Ok(())
            }
            Err(TrySendError::Full(visitor) | TrySendError::Disconnected(visitor)) => Err(visitor),
        }
    }

    /// A waker fails only when the thread's poll is gone, and with it whoever could be woken.
    fn wake(&self) {
        let _is_gone = self.waker.wake();
    }
}

/// At 2 µs each these are two milliseconds of the thread.
const VISITORS_MAX: usize = 1024;
