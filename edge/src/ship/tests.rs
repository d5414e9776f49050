//! The shipper before a log that answers when it is told to.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backends::log::embedded::{EmbeddedLog, EmbeddedLogConfig};
use backends::log::front::{Front, Gate};
use backends::log::{Append, Appended};
use daemon::Meter;
use mio::{Poll, Token, Waker};
use protocol::Record;
use protocol::envelope::EncodedRecords;
use tokio::sync::Semaphore;

use super::*;
use crate::udp::inbox::{Inbox, port};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parcel_without_records_is_settled_only_after_those_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let held = Arc::new(Semaphore::new(0));
    let (inbox, parcels, shipping) = start(folder.path(), held.clone());

    parcels.send(parcel(1, 1)).await.unwrap();
    let mut notices = until_returned(&inbox, 1);
    // While the first is under way: one that says only up to when all was heard, and one more with a record.
    parcels.send(parcel(2, 0)).await.unwrap();
    notices.extend(until_returned(&inbox, 2));
    parcels.send(parcel(3, 1)).await.unwrap();
    notices.extend(until_returned(&inbox, 3));

    assert_eq!(settled(&notices), [], "nothing is durable yet");
    held.add_permits(1);
    let first = until(&inbox, |notice| matches!(notice, Notice::Settled { .. }));
    assert_eq!(settled(&first), [(2, ParcelOutcome::Durable)], "the second with the first, and the third not yet");
    held.add_permits(100);
    let rest = until(&inbox, |notice| matches!(notice, Notice::Settled { .. }));
    assert_eq!(settled(&rest), [(3, ParcelOutcome::Durable)]);
    drop(parcels);
    shipping.await.unwrap().unwrap();
}

type Shipping = tokio::task::JoinHandle<anyhow::Result<()>>;

fn start(folder: &std::path::Path, held: Arc<Semaphore>) -> (Inbox, mpsc::Sender<Parcel>, Shipping) {
    let config = EmbeddedLogConfig { partitions: 1, ..EmbeddedLogConfig::default() };
    let log = Arc::new(EmbeddedLog::open(folder.join("log"), config).unwrap());
    let poll = Poll::new().unwrap();
    let waker = Waker::new(poll.registry(), Token(0)).unwrap();
    let (thread, inbox) = port(Arc::new(waker));
    let shipper = Shipper::new(ShipperParts {
        edge: EdgeId(1),
        run: 1,
        log: Arc::new(Held { log, held }),
        spool: Spool::open(&folder.join("spool"), 8 << 20).unwrap(),
        threads: vec![thread],
        clock: Clock::system(),
        metrics: ShipMetrics::new(&Meter::discard()),
        readiness: Readiness::default(),
        state: LogState::default(),
    });
    let (parcels, waiting) = mpsc::channel(8);
    (inbox, parcels, tokio::spawn(shipper.run(waiting)))
}

fn parcel(sequence: u64, records: usize) -> Parcel {
    let mut encoded = EncodedRecords::default();
    for _ in 0..records {
        encoded.push(&Record::Mark { edge: EdgeId(9), received_before: Time(0) });
    }
    // Long ago, so that no mark of our own is due.
    Parcel { thread: 0, sequence, received_before: Time(i64::MIN), steps: 0, partitions: vec![encoded] }
}

fn until_returned(inbox: &Inbox, sequence: u64) -> Vec<Notice> {
    until(inbox, |notice| matches!(notice, Notice::Returned(parcel) if parcel.sequence == sequence))
}

fn until(inbox: &Inbox, is_last: impl Fn(&Notice) -> bool) -> Vec<Notice> {
    let mut notices = Vec::new();
    while !notices.last().is_some_and(&is_last) {
        notices.push(inbox.notices.recv_timeout(PATIENCE).expect("the shipper says something"));
    }
    notices
}

fn settled(notices: &[Notice]) -> Vec<(u64, ParcelOutcome)> {
    let settled = |notice: &Notice| match notice {
        Notice::Settled { through, outcome } => Some((*through, *outcome)),
        Notice::Returned(_) | Notice::Control(_) | Notice::Stop => None,
    };
    notices.iter().filter_map(settled).collect()
}

/// A log that takes as many appends as it is given leave to.
struct Held {
    log: Arc<EmbeddedLog>,
    held: Arc<Semaphore>,
}

impl Front for Held {
    fn behind(&self) -> &dyn Log {
        &*self.log
    }

    fn gate(&self) -> Arc<dyn Gate> {
        Arc::new(Leave(self.held.clone()))
    }
}

struct Leave(Arc<Semaphore>);

#[async_trait]
impl Gate for Leave {
    async fn pass(&self, _: &[Append]) -> Option<Appended> {
        self.0.acquire().await.expect("it is never closed").forget();
        None
    }
}

const PATIENCE: Duration = Duration::from_secs(20);
