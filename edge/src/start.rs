//! Puts an edge together and sets it going. The one place that knows all its parts.
//!
//! Stopping, told by the drain: the doors take no more, the threads take what their sockets hold and ship it, the
//! shipper makes it durable (or, with the log away, leaves it in the spool), the threads answer and leave, the shipper
//! leaves last.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use backends::control::{Control, ControlReader};
use backends::log::{Log, Pace, Topic};
use daemon::admin::{Health, Readiness};
use daemon::{Clock, Drain, ProcessContext};
use mio::{Poll, Waker};
use protocol::session::{EdgeConfig as SessionsConfig, EdgeSessions, FleetKeys};
use protocol::{EdgeId, Time};
use rand::Rng;
use tokio::sync::{mpsc, watch};
use tracing::info;

use crate::config::EdgeConfig;
use crate::control::ControlDiff;
use crate::http::{DeviceLimit, DoorParts, DoorState, router};
use crate::identity::edge_id;
use crate::intake::linger::LingerRule;
use crate::intake::{Intake, IntakeConfig};
use crate::metrics::{DoorMetrics, ShipMetrics, ThreadMetrics};
use crate::ship::spool::Spool;
use crate::ship::{LogState, Shipper, ShipperParts};
use crate::udp::inbox::{Inbox, Notice, ThreadPort, port};
use crate::udp::socket::{self, ThreadSocket};
use crate::udp::thread::{ThreadParts, UdpThread};

/// What an edge works with.
pub struct EdgeParts {
    pub log: Arc<dyn Log>,
    /// What of control it follows: keys, revoked devices, policies.
    pub control: ControlReader,
}

/// A running edge.
pub struct EdgeHandle {
    pub edge_id: EdgeId,
    /// Where phones send datagrams.
    pub udp_addr: SocketAddr,
    /// The HTTP doors, to be served alone or beside others.
    pub http_router: Router,
    /// For a door of one's own.
    pub door: DoorState,
    /// Whether the log can be reached at this moment.
    pub log_state: LogState,
}

/// Reads or makes what an edge keeps on disk. Blocking: the first start takes the spool's room from the disk.
fn open_files(config: &EdgeConfig) -> anyhow::Result<(EdgeId, Spool)> {
    std::fs::create_dir_all(&config.state_folder).context("make the edge's folder")?;
    let id = edge_id(&config.state_folder, config.edge_id).context("find this edge's number")?;
    let spool = Spool::open(&config.state_folder.join("spool"), config.spool_bytes).context("open the spool")?;
    if !spool.is_empty() {
        info!(bytes = spool.len_bytes(), "fixes from before are in the spool and go to the log first");
    }
    Ok((id, spool))
}

async fn files(config: &EdgeConfig) -> anyhow::Result<(EdgeId, Spool)> {
    let config = config.clone();
    tokio::task::spawn_blocking(move || open_files(&config)).await?
}

fn bind(config: &EdgeConfig) -> anyhow::Result<(Vec<ThreadSocket>, SocketAddr)> {
    let sockets = socket::bind(config.udp_listen, config.udp_thread_count, config.udp_receive_buffer_bytes)
        .with_context(|| format!("bind UDP {}", config.udp_listen))?;
    let address = sockets[0].socket.local_addr().context("find the UDP address")?;
    Ok((sockets, address))
}

/// Sets an edge going. It stops when the drain does.
pub async fn start(config: EdgeConfig, parts: EdgeParts, context: &ProcessContext) -> anyhow::Result<EdgeHandle> {
    let EdgeParts { log, control } = parts;
    let ProcessContext { clock, meter, readiness, drain } = context.clone();
    readiness.set(PART, Health::Starting);
    let (config, meter) = (&config, &meter);
    let (id, spool) = files(config).await?;
    let (sockets, udp_addr) = bind(config)?;
    let (threads, ends) = make_ports(config.udp_thread_count)?;
    let (parcels, parcels_in) = mpsc::channel(threads.len() * (PARCELS_MAX + 1));

    let now = Time(clock.now_ms());
    let metrics = ThreadMetrics::new(meter);
    for (index, (socket, (poll, inbox))) in sockets.into_iter().zip(ends).enumerate() {
        let linger = linger_rule(config, log.pace());
        let partition_count = log.partition_count(Topic::Records);
        let intake = Intake::new(intake_config(config, (id, index), partition_count, linger), now);
        let parts = ThreadParts {
            index,
            socket,
            poll,
            inbox,
            threads: threads.clone(),
            sessions: EdgeSessions::new(sessions_config(config), FleetKeys::default()),
            intake,
            parcels: parcels.clone(),
            slow_send_every_ms: config.slow_send_every_ms,
            clock,
            metrics: metrics.clone(),
        };
        let body = move || UdpThread::new(parts).run();
        drain.spawn_thread(format!("edge udp {index}"), body).context("start a UDP thread")?;
    }
    drop(parcels);

    let log_state = LogState::default();
    let shipper = Shipper::new(ShipperParts {
        edge: id,
        run: rand::rng().random(),
        log,
        spool,
        threads: threads.clone(),
        clock,
        metrics: ShipMetrics::new(meter),
        readiness: readiness.clone(),
        state: log_state.clone(),
    });
    drain.spawn("edge ship", shipper.run(parcels_in));

    let limit = Arc::new(DeviceLimit::new(config.device_fixes_burst, config.device_fixes_per_s, clock));
    let follower = ControlFollower {
        control: control.subscribe(),
        reader: control.clone(),
        threads: threads.clone(),
        limit: limit.clone(),
        readiness,
        clock,
        drain: drain.clone(),
    };
    drain.spawn("edge control", follower.run());

    let door = DoorState::new(DoorParts {
        threads,
        control: control.subscribe(),
        log_state: log_state.clone(),
        limit,
        metrics: DoorMetrics::new(meter),
        clock,
        fixes_max: config.request_fixes_max,
        bytes_max: config.request_bytes_max,
        wait_max: config.request_wait_max,
    });
    info!(edge = id.0, %udp_addr, threads = config.udp_thread_count, "edge listens");
    Ok(EdgeHandle { edge_id: id, udp_addr, http_router: router(door.clone()), door, log_state })
}

/// The threads share the edge's budget.
fn linger_rule(config: &EdgeConfig, pace: Pace) -> LingerRule {
    match pace {
        Pace::Gathers => LingerRule::None,
        Pace::PerEntry => {
            let entries_per_s = config.log_entries_per_s / (config.udp_thread_count as u32).max(1);
            LingerRule::Budget { entries_per_s: entries_per_s.max(1) }
        }
    }
}

fn intake_config(
    config: &EdgeConfig,
    (edge, thread): (EdgeId, usize),
    partition_count: u32,
    linger: LingerRule,
) -> IntakeConfig {
    IntakeConfig {
        edge,
        thread,
        partition_count,
        judge: config.judge,
        linger,
        parcel_bytes_max: PARCEL_BYTES_MAX,
        parcels_max: PARCELS_MAX,
        runs_max: RUNS_MAX,
    }
}

fn sessions_config(config: &EdgeConfig) -> SessionsConfig {
    SessionsConfig {
        sessions_max: config.sessions_per_thread_max,
        bucket_fixes: config.device_fixes_burst,
        refill_fixes_per_s: config.device_fixes_per_s,
    }
}

/// What a thread waits with, and what it hears.
type ThreadEnd = (Poll, Inbox);

/// A port for each thread, and the ends that go to the threads.
fn make_ports(count: usize) -> anyhow::Result<(Vec<ThreadPort>, Vec<ThreadEnd>)> {
    let mut ports = Vec::with_capacity(count);
    let mut ends = Vec::with_capacity(count);
    for _ in 0..count {
        let poll = Poll::new().context("make a poll")?;
        let waker = Waker::new(poll.registry(), UdpThread::WAKER).context("make a waker")?;
        let (port, inbox) = port(Arc::new(waker));
        ports.push(port);
        ends.push((poll, inbox));
    }
    Ok((ports, ends))
}

/// Tells the threads what changes in `control`, and that it is time to stop.
struct ControlFollower {
    control: watch::Receiver<Arc<Control>>,
    reader: ControlReader,
    threads: Vec<ThreadPort>,
    limit: Arc<DeviceLimit>,
    readiness: Readiness,
    clock: Clock,
    drain: Drain,
}

impl ControlFollower {
    async fn run(mut self) -> anyhow::Result<()> {
        let mut diff = ControlDiff::default();
        let mut is_ready = false;
        loop {
            let control = self.control.borrow_and_update().clone();
            // A clock that was set forward ends no session, and so no key, before its time.
            if let Some(change) = diff.handle_control(&control, Time(self.clock.kept_ms())) {
                let change = Arc::new(change);
                self.threads.iter().for_each(|thread| thread.notify(Notice::Control(change.clone())));
            }
            self.limit.handle_timeout();
            // Without a key no datagram can be opened yet.
            if !is_ready && !control.fleet_keys.is_empty() {
                is_ready = true;
                self.readiness.set(PART, Health::Ready);
            }
            if is_ready {
                self.readiness.set(CONTROL_PART, control_health(&self.reader, Time(self.clock.monotonic_ms())));
            }
            tokio::select! {
                () = self.drain.token().cancelled() => break,
                () = self.clock.sleep(LOOK_EVERY) => {}
                changed = self.control.changed() => if changed.is_err() {
                    // The reader has ended, as it does when all stop.
                    self.drain.token().cancelled().await;
                    break;
                }
            }
        }
        self.threads.iter().for_each(|thread| thread.notify(Notice::Stop));
        Ok(())
    }
}

fn control_health(reader: &ControlReader, monotonic: Time) -> Health {
    if reader.is_degraded(monotonic) {
        Health::Degraded("control has not been read for a minute, what is known of it goes on to hold".to_string())
    } else {
        Health::Ready
    }
}

/// The name in `/readyz`: ready once there is a key to open datagrams with.
const PART: &str = "edge";
/// The name in `/readyz` of what is known of `control`.
const CONTROL_PART: &str = "edge control";
/// Keys die by time alone, so we look even when nothing changes.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Under way from each thread; the log takes two shipments at a time, so a few are enough to never wait.
const PARCELS_MAX: usize = 8;
/// 30 ms of a thread at 250,000 fixes/s.
const PARCEL_BYTES_MAX: usize = 512 << 10;
/// 40 bytes each: 20 MB while the log is away.
const RUNS_MAX: usize = 500_000;
