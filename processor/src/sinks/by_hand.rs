//! All sinks of one partition, fed by hand instead of by a log: for measuring what they cost.

use std::sync::Arc;

use backends::ledger::DeliveryLedger;
use backends::live_store::LiveStore;
use backends::log::{DecodedUpdates, Log, StoredEntry, Topic};
use backends::trail_store::TrailStore;
use daemon::{Clock, Meter};
use protocol::PartitionId;
use tokio_util::sync::CancellationToken;

use super::clerk::ClerkWork;
use super::events::EventsWork;
use super::live::LiveWork;
use super::trail::TrailWork;
use super::{Clerk, Events, Live, Reader, Sink, Trail, Work};
use crate::ProcessorSettings;
use crate::metrics::ProcessorMetrics;

/// What the sinks write to.
pub struct SinkStores {
    /// Takes the events.
    pub log: Arc<dyn Log>,
    pub live: Arc<dyn LiveStore>,
    pub trail: Arc<dyn TrailStore>,
    pub ledger: Arc<dyn DeliveryLedger>,
}

pub struct SinksByHand {
    updates: Reader,
    trail_reader: Reader,
    live: LiveWork,
    events: EventsWork,
    clerk: ClerkWork,
    trail: TrailWork,
}

impl SinksByHand {
    /// Sinks that keep so many views.
    pub fn new(stores: SinkStores, views_max: usize) -> SinksByHand {
        let SinkStores { log, live, trail, ledger } = stores;
        let partition = PartitionId(0);
        let of_movement = ProcessorSettings::default().events_of_movement;
        let reader = |topic| Reader {
            log: log.clone(),
            topic,
            partition,
            clock: Clock::system(),
            metrics: ProcessorMetrics::new(&Meter::discard()),
            decoded: DecodedUpdates::new(1),
            stop: CancellationToken::new(),
        };
        SinksByHand {
            updates: reader(Topic::Updates),
            trail_reader: reader(Topic::Trail),
            live: Live { store: live, views_max }.begin(partition),
            events: Events { views_max, of_movement }.begin(partition),
            clerk: Clerk { ledger }.begin(partition),
            trail: Trail { store: trail }.begin(partition),
        }
    }

    /// Takes what a fold said, as it lies in the log.
    pub async fn take(&mut self, updates: StoredEntry, breadcrumbs: StoredEntry) -> anyhow::Result<()> {
        self.live.handle(&self.updates, vec![updates.clone()]).await?;
        self.events.handle(&self.updates, vec![updates.clone()]).await?;
        self.clerk.handle(&self.updates, vec![updates]).await?;
        self.trail.handle(&self.trail_reader, vec![breadcrumbs]).await
    }
}
