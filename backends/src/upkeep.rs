//! Upkeep of the stores: what is begun and ended by nobody is ended here. Open deliveries that nobody closes fail as
//! abandoned, by their tenant's policy; days of history that are older than they are to be kept are dropped.
//!
//! One process of the fleet does it, the one that has the group's partition; two at once would do no harm. Both jobs
//! believe the clock only after it has run evenly for a while, so that a wall clock that jumps ends nothing early.

use std::sync::Arc;
use std::time::Duration;

use daemon::admin::{Health, Readiness};
use daemon::{Clock, Meter, ProcessContext};
use metrics::Counter;
use protocol::{PartitionId, Time};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::ledger::{DeliveryLedger, LedgerError};
use crate::log::{Holding, Log, LogError, Topic, share};
use crate::trail_store::{TrailStore, TrailStoreError};

/// How upkeep is set; checked.
#[derive(Clone, Debug)]
pub struct UpkeepConfig {
    /// How long history is kept.
    pub history_kept: Duration,
}

/// What upkeep works on.
pub struct UpkeepParts {
    pub log: Arc<dyn Log>,
    pub ledger: Arc<dyn DeliveryLedger>,
    pub trail_store: Arc<dyn TrailStore>,
}

struct Upkeep {
    log: Arc<dyn Log>,
    readiness: Readiness,
    ledger: Arc<dyn DeliveryLedger>,
    trail_store: Arc<dyn TrailStore>,
    clock: Clock,
    history_kept: Duration,
}

struct Metrics {
    deliveries_abandoned: Counter,
    fixes_expired: Counter,
    abandoned_failed: Counter,
    expiry_failed: Counter,
}

/// Runs until the drain stops.
pub fn start(config: UpkeepConfig, parts: UpkeepParts, context: &ProcessContext) {
    let UpkeepParts { log, ledger, trail_store } = parts;
    let upkeep = Upkeep {
        log: log.clone(),
        readiness: context.readiness.clone(),
        ledger,
        trail_store,
        clock: context.clock,
        history_kept: config.history_kept,
    };
    let (upkeep, metrics) = (Arc::new(upkeep), Arc::new(Metrics::new(&context.meter)));
    let stop = context.drain.token().clone();
    context.drain.spawn("upkeep", async move {
        let work = |holding: Holding| upkeep.clone().run(metrics.clone(), holding.stop);
        share(&*log, GROUP, Topic::Control, &stop, work).await
    });
}

impl Upkeep {
    /// While it is this process's turn.
    async fn run(self: Arc<Self>, metrics: Arc<Metrics>, stop: CancellationToken) -> anyhow::Result<()> {
        let mut evenness = Evenness::new(self.now());
        let mut expired_at: Option<Duration> = None;
        let mut begun_ms = self.clock.monotonic_ms();
        loop {
            tokio::select! {
                () = stop.cancelled() => {
                    // Whoever has the turn next says how it is.
                    self.readiness.set(HISTORY_PART, Health::Ready);
                    return Ok(());
                }
                () = self.clock.sleep(PASS_EVERY) => {
                    let now = self.now();
                    let monotonic_ms = self.clock.monotonic_ms();
                    let passed = Duration::from_millis((monotonic_ms - begun_ms).max(0) as u64);
                    begun_ms = monotonic_ms;
                    let even = evenness.look(passed, now);
                    self.look_at_history().await;
                    // A clock that was set forward is not believed for a day: nobody's delivery is older because of it.
                    let is_believed = now.millis_since(Time(self.clock.kept_ms())) <= UNEVEN_MS;
                    if even >= ABANDON_AFTER_EVEN && is_believed {
                        self.fail_abandoned(&metrics).await;
                    }
                    let is_due = expired_at.is_none_or(|at| even < at || even - at >= EXPIRE_EVERY);
                    if is_due && even >= EXPIRE_AFTER_EVEN {
                        self.expire(&metrics).await;
                        expired_at = Some(even);
                    }
                }
            }
        }
    }

    /// A few at each pass: should the clock have been wrong all along, somebody can notice before all have failed.
    async fn fail_abandoned(&self, metrics: &Metrics) {
        let failed: Result<_, LedgerError> = self.ledger.fail_abandoned(ABANDONED_AT_ONCE, self.now()).await;
        match failed {
            Ok(failed) => {
                metrics.deliveries_abandoned.increment(failed.len() as u64);
                if !failed.is_empty() {
                    info!(deliveries = failed.len(), "deliveries that nobody closed have failed as abandoned");
                }
            }
            Err(error) => {
                warn!(%error, "abandoned deliveries could not be closed");
                metrics.abandoned_failed.increment(1);
            }
        }
    }

    /// Says that history lags while there is still as much time again to mend it: the log keeps what history has not
    /// taken no longer than everything else.
    async fn look_at_history(&self) {
        let health = match lagging_partitions(&*self.log, &*self.trail_store, Time(self.clock.kept_ms())).await {
            Ok(lagging) if lagging.is_empty() => Health::Ready,
            Ok(lagging) => {
                let (hours, kept) = (HISTORY_LAG_MAX.as_secs() / 3600, HISTORY_LAG_MAX.as_secs() / 1800);
                warn!(hours, partitions = ?lagging, "history has not taken what came so long ago, the log keeps it {kept} h");
                Health::Degraded(format!(
                    "history lags more than {hours} h behind in {} partitions: what it has not taken after {kept} h is lost",
                    lagging.len()
                ))
            }
            Err(reason) => Health::Degraded(format!("how far history has come cannot be said: {reason}")),
        };
        self.readiness.set(HISTORY_PART, health);
    }

    async fn expire(&self, metrics: &Metrics) {
        let expired: Result<u64, TrailStoreError> =
            self.trail_store.expire(Time(self.clock.kept_ms()) - self.history_kept).await;
        match expired {
            Ok(fixes) => {
                metrics.fixes_expired.increment(fixes);
                if fixes > 0 {
                    info!(fixes, "days of history have expired");
                }
            }
            Err(error) => {
                warn!(%error, "history could not be expired");
                metrics.expiry_failed.increment(1);
            }
        }
    }

    fn now(&self) -> Time {
        Time(self.clock.now_ms())
    }
}

/// Where entries of the trail have waited too long for history to take them.
async fn lagging_partitions(log: &dyn Log, trail_store: &dyn TrailStore, now: Time) -> Result<Vec<u32>, String> {
    let mut lagging = Vec::new();
    for partition in (0..log.partition_count(Topic::Trail)).map(PartitionId) {
        let of_log = |error: LogError| error.to_string();
        let young = log.offset_at(Topic::Trail, partition, now - HISTORY_LAG_MAX).await.map_err(of_log)?;
        let range = log.range(Topic::Trail, partition).await.map_err(of_log)?;
        let next = trail_store.next_offset(partition, log.incarnation()).await.map_err(|error| error.to_string())?;
        if next.max(range.first) < young {
            lagging.push(partition.0);
        }
    }
    Ok(lagging)
}

/// For how long the wall clock has gone as fast as time does.
struct Evenness {
    wall: Time,
    even: Duration,
}

impl Evenness {
    fn new(wall: Time) -> Self {
        Evenness { wall, even: Duration::ZERO }
    }

    /// `passed` since the last look, by a clock that cannot be set.
    fn look(&mut self, passed: Duration, wall: Time) -> Duration {
        let off_ms = wall.millis_since(self.wall).saturating_sub(passed.as_millis() as i64).saturating_abs();
        self.wall = wall;
        self.even = if off_ms > UNEVEN_MS { Duration::ZERO } else { self.even + passed };
        self.even
    }
}

impl Metrics {
    fn new(meter: &Meter) -> Metrics {
        let failed = |job| {
            let help = "Rounds of upkeep that a store refused; the next round tries again.";
            meter.counter("wayfix_upkeep_failures_total", help, &[("job", job)])
        };
        let counter = |name, help| meter.counter(name, help, &[]);
        Metrics {
            deliveries_abandoned: counter(
                "wayfix_upkeep_deliveries_abandoned_total",
                "Open deliveries that nobody closed: failed as abandoned.",
            ),
            fixes_expired: counter(
                "wayfix_upkeep_history_fixes_expired_total",
                "Fixes of history dropped because their day is too long ago.",
            ),
            abandoned_failed: failed("abandoned deliveries"),
            expiry_failed: failed("history"),
        }
    }
}

const GROUP: &str = "upkeep";
const PASS_EVERY: Duration = Duration::from_secs(60);
/// Half of what the log keeps: as long again is left to mend what holds history up.
const HISTORY_LAG_MAX: Duration = Duration::from_secs(36 * 3_600);
/// The name in `/readyz`.
const HISTORY_PART: &str = "history";
const EXPIRE_EVERY: Duration = Duration::from_secs(3_600);
/// In one pass and transaction: others that write get their turn, and 3,840 an hour are more than a city leaves open.
const ABANDONED_AT_ONCE: u32 = 64;
/// Between two looks a minute apart, this much is a step and no drift.
const UNEVEN_MS: i64 = 5_000;
const ABANDON_AFTER_EVEN: Duration = Duration::from_secs(300);
/// What is dropped does not come back: no hurry.
const EXPIRE_AFTER_EVEN: Duration = Duration::from_secs(3_600);

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use bytes::Bytes;
    use protocol::Offset;

    use super::*;
    use crate::log::Append;
    use crate::log::embedded::{EmbeddedLog, EmbeddedLogConfig};
    use crate::trail_store::TrailPlace;
    use crate::trail_store::embedded::EmbeddedTrailStore;

    #[tokio::test(flavor = "multi_thread")]
    async fn history_that_lags_is_said_at_half_of_what_the_log_keeps_and_not_before() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(AtomicI64::new(1_700_000_000_000));
        let shown = clock.clone();
        let now = move || Time(shown.load(Ordering::SeqCst));
        let config = EmbeddedLogConfig { partitions: 2, now: Arc::new(now.clone()), ..EmbeddedLogConfig::default() };
        let log = EmbeddedLog::open(folder.path().join("log"), config).unwrap();
        let trail_store = EmbeddedTrailStore::open(&folder.path().join("trail")).unwrap();
        let (topic, partition) = (Topic::Trail, PartitionId(1));
        let entry = Append { topic, partition, key: Bytes::new(), value: Bytes::from_static(b"a") };
        log.append(&[entry]).await.into_offsets().unwrap();
        let pass = |hours: i64| clock.fetch_add(hours * 3_600_000, Ordering::SeqCst);
        let lagging = || lagging_partitions(&log, &trail_store, now());

        pass(35);
        assert_eq!(lagging().await, Ok(vec![]), "as much as an outage of a day and a half");
        pass(2);
        assert_eq!(lagging().await, Ok(vec![1]));

        let next = TrailPlace { incarnation: log.incarnation(), offset: Offset(1) };
        trail_store.append(partition, Vec::new(), next).await.unwrap();
        assert_eq!(lagging().await, Ok(vec![]), "all was taken");
    }

    #[test]
    fn a_clock_that_was_set_is_not_believed_for_a_while() {
        let minute = Duration::from_secs(60);
        let mut wall = Time::from_secs(1_700_000_000);
        let mut evenness = Evenness::new(wall);
        let mut pass = |step: Duration| {
            wall = wall + minute + step;
            evenness.look(minute, wall)
        };

        assert_eq!(pass(Duration::ZERO), minute);
        assert_eq!(pass(Duration::from_millis(4_000)), 2 * minute, "drift");
        assert_eq!(pass(Duration::from_secs(2 * 86_400)), Duration::ZERO, "a step of two days");
        assert_eq!(pass(Duration::ZERO), minute);
        let mut back = Evenness::new(Time::from_secs(1_000));
        assert_eq!(back.look(minute, Time::from_secs(1_060)), minute);
        assert_eq!(back.look(minute, Time::from_secs(900)), Duration::ZERO, "set back");
    }
}
