//! Ways from an outside router, beside the embedded one: the fold says for which plans somebody may know better, a few
//! questions at a time go out, and answers come back as records. Whatever the router does, nobody waits for it: a
//! wish that grows old is dropped and counted, and the plan made here stands.

use std::sync::Arc;

use backends::log::{Log, append_durably};
use backends::route_service::RouteService;
use daemon::{Clock, Drain};
use protocol::record::PlannedPoint;
use protocol::{PartitionId, Record};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::tell::record_entry;
use crate::metrics::ProcessorMetrics;
use crate::track::RouteWanted;

/// Whom to ask, and how many questions at a time.
#[derive(Clone)]
pub struct RouteServiceConfig {
    pub service: Arc<dyn RouteService>,
    pub asked_max: usize,
}

/// Takes wishes without waiting.
pub(crate) struct OutsidePlanner {
    wishes: Option<mpsc::Sender<Wish>>,
    clock: Clock,
    metrics: ProcessorMetrics,
}

struct Wish {
    partition: PartitionId,
    wanted: RouteWanted,
    since_ms: i64,
}

impl OutsidePlanner {
    /// Nobody is asked if there is no service.
    pub(crate) fn start(
        service: Option<RouteServiceConfig>,
        log: Arc<dyn Log>,
        clock: Clock,
        metrics: ProcessorMetrics,
        drain: &Drain,
    ) -> OutsidePlanner {
        let wishes = service.map(|RouteServiceConfig { service, asked_max }| {
            let (wishes, waiting) = mpsc::channel(WAITING_MAX);
            let asker = Asker { service, log, clock, metrics: metrics.clone(), stop: drain.token().clone() };
            drain.spawn("ask the outside router", asker.run(waiting, asked_max, drain.clone()));
            wishes
        });
        OutsidePlanner { wishes, clock, metrics }
    }

    pub(crate) fn is_asked(&self) -> bool {
        self.wishes.is_some()
    }

    pub(crate) fn want(&self, partition: PartitionId, wanted: Vec<RouteWanted>) {
        let Some(wishes) = &self.wishes else { return };
        let since_ms = self.clock.monotonic_ms();
        for wanted in wanted {
            if wishes.try_send(Wish { partition, wanted, since_ms }).is_err() {
                self.metrics.routes_dropped.increment(1);
            }
        }
    }
}

#[derive(Clone)]
struct Asker {
    service: Arc<dyn RouteService>,
    log: Arc<dyn Log>,
    clock: Clock,
    metrics: ProcessorMetrics,
    stop: CancellationToken,
}

impl Asker {
    async fn run(self, mut waiting: mpsc::Receiver<Wish>, asked_max: usize, drain: Drain) -> anyhow::Result<()> {
        let places = Arc::new(Semaphore::new(asked_max.max(1)));
        loop {
            let wish = tokio::select! {
                () = self.stop.cancelled() => return Ok(()),
                wish = waiting.recv() => wish,
            };
            let Some(wish) = wish else { return Ok(()) };
            let place = tokio::select! {
                () = self.stop.cancelled() => return Ok(()),
                place = places.clone().acquire_owned() => place?,
            };
            if self.clock.monotonic_ms() - wish.since_ms > OLD_MS {
                self.metrics.routes_dropped.increment(1);
                continue;
            }
            let asker = self.clone();
            drain.spawn_job("ask for a way", async move {
                let _place = place;
                asker.ask(wish).await;
                Ok(())
            });
        }
    }

    async fn ask(&self, Wish { partition, wanted, .. }: Wish) {
        self.metrics.routes_asked.increment(1);
        let RouteWanted { to, delivery, epoch, stop, made, from, destination, vehicle } = wanted;
        let asking = self.service.route(from, destination, vehicle);
        let answered = tokio::select! {
            answered = asking => answered,
            () = self.stop.cancelled() => return,
        };
        let way: Vec<PlannedPoint> = match answered {
            Ok(way) if (2..=POINTS_MAX).contains(&way.len()) => way,
            Ok(way) => {
                debug!(points = way.len(), "the outside router's way is none, or too long");
                return self.metrics.routes_failed.increment(1);
            }
            Err(error) => {
                debug!(%error, "the outside router has no way");
                return self.metrics.routes_failed.increment(1);
            }
        };
        let entry = record_entry(partition, Record::Planned { to, delivery, epoch, stop, made, way });
        match append_durably(&*self.log, "append a way", &self.stop, &[entry]).await {
            Ok(_) => self.metrics.routes_answered.increment(1),
            Err(error) => {
                debug!(%error, "a way was not appended");
                self.metrics.routes_failed.increment(1);
            }
        }
    }
}

/// Wishes that wait: more than a few seconds of them are never answered in time.
const WAITING_MAX: usize = 256;
/// Half a minute later the fold asks again anyway.
const OLD_MS: i64 = 10_000;
/// At 16 B each, well within an entry of the log.
const POINTS_MAX: usize = 30_000;
