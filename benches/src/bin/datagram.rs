//! The edge's receive path beside a loop that only receives, in one run: CPU per accepted fix, allocations, memory per
//! session, and what garbage does. One UDP thread, a log that takes all at once.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use benches::bare;
use benches::bench_edge::BenchEdge;
use benches::load::{Load, LoadPlan, Sender, now};
use benches::null_log::NullLog;
use benches::{Goal, Report, cpu};
use clap::Parser;
use edge::EdgeSettings;
use edge::intake::judge::JudgeLimits;
use edge::intake::{Intake, IntakeConfig, ParcelOutcome};
use protocol::datagram::Kid;
use protocol::record::Door;
use protocol::session::{EdgeConfig, EdgeSessions, FleetKey, FleetKeys, OpenedDatagram};
use protocol::{EdgeId, TenantId};
use rand::{Rng, SeedableRng};

#[derive(Parser)]
struct Arguments {
    /// Phones with a warm session.
    #[arg(long, default_value_t = 1_000_000)]
    sessions: u32,
    /// Datagrams of each phone that are measured.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    #[arg(long, default_value_t = 8)]
    partitions: u32,
    /// Every so many datagrams of a phone want an ack, as phones do it.
    #[arg(long, default_value_t = 8)]
    ack_every: u32,
    /// Ten of these for each real one.
    #[arg(long, default_value_t = 250_000)]
    garbage_per_s: u32,
    /// Leave the garbage out.
    #[arg(long)]
    without_garbage: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("bench runtime")
        .enable_all()
        .build()
        .context("start a runtime")?;
    let mut report = Report::new("datagram");
    pure(&arguments, &mut report)?;
    runtime.block_on(whole_thread(&arguments, &mut report))?;
    if !arguments.without_garbage {
        runtime.block_on(under_garbage(&arguments, &mut report))?;
    }
    report.finish()
}

fn plan(arguments: &Arguments, tenant: u32) -> LoadPlan {
    LoadPlan {
        phones: arguments.sessions,
        rounds: arguments.rounds + 1,
        ack_every: arguments.ack_every.max(1),
        tenant: TenantId(tenant),
        now: now(),
    }
}

/// From opened bytes to the record and back through its receipt, without a socket.
fn pure(arguments: &Arguments, report: &mut Report) -> anyhow::Result<()> {
    let kid = Kid::new(0).context("0 is a kid")?;
    let secret = [9; 32];
    let plan = plan(arguments, 1);
    let mut load = Load::seal(kid, &secret, plan);
    let mut keys = FleetKeys::default();
    keys.set(Arc::new(FleetKey::new(kid, &secret)));
    let sessions_max = arguments.sessions as usize;
    let mut sessions = EdgeSessions::new(EdgeConfig { sessions_max, ..EdgeConfig::default() }, keys);
    let mut intake: Intake<()> = Intake::new(intake_config(arguments.partitions), now());
    let mut said = OpenedDatagram::default();
    let each = load.each;
    let (warm_up, measured) = load.bytes.split_at_mut(arguments.sessions as usize * each);
    take(&mut sessions, &mut intake, &mut said, warm_up, each);

    let count = (measured.len() / each) as f64;
    let began = (Instant::now(), cpu::of_this_thread());
    let counted = allocation_counter::measure(|| take(&mut sessions, &mut intake, &mut said, measured, each));
    let ns_each = (cpu::of_this_thread() - began.1).as_nanos() as f64 / count;

    let accepted = intake.take_counts().fixes_accepted;
    anyhow::ensure!(accepted == load.len() as u64, "{accepted} of {} were accepted", load.len());
    report.row("open, judge, record, settle: CPU per datagram, no socket", ns_each, "ns", "", Goal::None);
    let allocations = counted.count_total as f64 / count;
    let in_all = format!("{} in all, while buffers find their size", counted.count_total);
    report.row("heap allocations per accepted datagram", allocations, "", &in_all, Goal::AtMost(0.001));
    let bytes = sessions.warm().memory_bytes() as f64 / sessions.warm().len() as f64;
    report.row("memory per warm session", bytes, "B", "", Goal::AtMost(128.0));
    Ok(())
}

fn intake_config(partition_count: u32) -> IntakeConfig {
    IntakeConfig {
        edge: EdgeId(1),
        thread: 0,
        partition_count,
        judge: JudgeLimits::default(),
        linger: edge::intake::linger::LingerRule::None,
        parcel_bytes_max: 512 << 10,
        parcels_max: 8,
        runs_max: 500_000,
    }
}

fn take(
    sessions: &mut EdgeSessions,
    intake: &mut Intake<()>,
    said: &mut OpenedDatagram,
    bytes: &mut [u8],
    each: usize,
) {
    for batch in bytes.chunks_mut(each * 32) {
        let at = now();
        for datagram in batch.chunks_mut(each) {
            if let Ok(opened) = sessions.handle_datagram(at, datagram, said) {
                intake.handle_datagram(at, &opened, said, Door::Udp, ());
            }
        }
        intake.handle_timeout(at);
        while let Some(parcel) = intake.poll_parcel() {
            intake.handle_settled(parcel.sequence, ParcelOutcome::Durable);
            intake.handle_returned(parcel);
        }
        while let Some((receipts, _)) = intake.poll_settled() {
            for (session, run) in &receipts.runs {
                sessions.handle_durable(session, &edge::intake::ranges_of(*run));
            }
            intake.handle_told(receipts);
        }
    }
}

async fn start_edge(arguments: &Arguments, folder: &std::path::Path) -> anyhow::Result<BenchEdge> {
    let log = NullLog::open(&folder.join("control"), arguments.partitions).context("open the log")?;
    let settings = EdgeSettings {
        udp_listen: "127.0.0.1:0".parse()?,
        udp_threads: 1,
        sessions_max: arguments.sessions,
        ..EdgeSettings::default()
    };
    BenchEdge::start(Arc::new(log), &settings, &folder.join("edge")).await
}

/// The thread as it runs, over loopback, beside the bare loop on the same bytes.
async fn whole_thread(arguments: &Arguments, report: &mut Report) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let edge = start_edge(arguments, folder.path()).await?;
    let plan = plan(arguments, 2);
    let load = Load::seal(edge.kid, &edge.secret, plan);
    let sender = Sender::new(edge.handle.udp_addr, 1)?;
    sender.send(load.rounds(&plan, 0..1), load.each, Some(WARM_UP_PER_S));
    edge.settled(ACCEPTED).await;
    let before = (edge.metric(ACCEPTED), cpu::of_threads("edge udp"), cpu::of_threads("bench runtime"));

    let measured = load.rounds(&plan, 1..plan.rounds);
    let wall = sender.send(measured, load.each, None);
    edge.settled(ACCEPTED).await;

    let accepted = edge.metric(ACCEPTED) - before.0;
    let busy = cpu::of_threads("edge udp") - before.1;
    let shipping = cpu::of_threads("bench runtime") - before.2;
    edge.stop().await?;
    let bare = bare::receive(measured, load.each)?;

    let edge_ns = busy.as_nanos() as f64 / accepted;
    let of = "same socket, same bytes, same run";
    report.row("bare receive loop: CPU per datagram", bare.cpu_ns_each(), "ns", "", Goal::None);
    report.row("bare receive loop: datagrams/s", bare.per_s(), "/s", "", Goal::None);
    report.row("edge thread: CPU per accepted fix", edge_ns, "ns", "bare loop's CPU per datagram", Goal::None);
    report.row(
        "edge thread: accepted fixes/s",
        accepted / wall.as_secs_f64(),
        "/s",
        "as sent on a shared machine",
        Goal::None,
    );
    report.row(
        "accepted fixes/s / bare datagrams/s, by CPU",
        bare.cpu_ns_each() / edge_ns,
        "",
        of,
        Goal::AtLeast(0.65),
    );
    report.row("edge thread: fixes/s a core could take", 1e9 / edge_ns, "/s", "from its CPU time", Goal::None);
    let ship_ns = shipping.as_nanos() as f64 / accepted;
    report.row("shipper: CPU per fix, log left out", ship_ns, "ns", "", Goal::None);
    Ok(())
}

/// Ten useless datagrams for each real one: random, forged under a real session id, replayed.
async fn under_garbage(arguments: &Arguments, report: &mut Report) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let edge = start_edge(arguments, folder.path()).await?;
    let phones = arguments.sessions.min(GARBAGE_PHONES);
    let plan = LoadPlan { phones, rounds: 3, ack_every: 8, tenant: TenantId(3), now: now() };
    let load = Load::seal(edge.kid, &edge.secret, plan);
    let sender = Sender::new(edge.handle.udp_addr, 1)?;
    sender.send(load.rounds(&plan, 0..1), load.each, Some(WARM_UP_PER_S));
    edge.settled(ACCEPTED).await;
    // Replays are of what has surely been accepted, so that none can stand in for a real one that was lost.
    let mixed = mix(&load, load.rounds(&plan, 1..3), load.rounds(&plan, 0..1));
    let before = (edge.metric(ACCEPTED), edge.metric(REFUSED), cpu::of_threads("edge udp"));
    let sent = (mixed.len() / load.each) as f64;

    let per_s = f64::from(arguments.garbage_per_s) * 1.1;
    let wall = sender.send(&mixed, load.each, Some(per_s));
    edge.settled(REFUSED).await;

    let real = (load.rounds(&plan, 1..3).len() / load.each) as f64;
    let accepted = edge.metric(ACCEPTED) - before.0;
    let refused = edge.metric(REFUSED) - before.1;
    let busy = cpu::of_threads("edge udp") - before.2;
    edge.stop().await?;
    let lost_percent = (real - accepted) / real * 100.0;
    let rate =
        format!("{:.0} datagrams/s, of which {:.0} real", real * 11.0 / wall.as_secs_f64(), real / wall.as_secs_f64());
    report.row("real fixes lost under garbage 10 : 1", lost_percent, "%", &rate, Goal::AtMost(0.1));
    let dropped_percent = (sent - accepted - refused) / sent * 100.0;
    report.row(
        "of all datagrams, dropped by the kernel before us",
        dropped_percent,
        "%",
        "a full socket buffer",
        Goal::None,
    );
    let ns_each = busy.as_nanos() as f64 / (accepted + refused);
    report.row("edge thread under garbage: CPU per datagram", ns_each, "ns", "", Goal::None);
    Ok(())
}

fn mix(load: &Load, real: &[u8], earlier: &[u8]) -> Vec<u8> {
    let mut random = rand::rngs::SmallRng::seed_from_u64(SEED);
    let mut mixed = Vec::with_capacity(real.len() * 11);
    for (datagram, replay) in real.chunks(load.each).zip(earlier.chunks(load.each).cycle()) {
        for kind in 0..10 {
            let at = mixed.len();
            match kind {
                0..4 => {
                    mixed.extend((0..load.each).map(|_| random.random::<u8>()));
                    mixed[at] = datagram[0];
                }
                4..7 => {
                    mixed.extend_from_slice(datagram);
                    let bit = random.random_range(21 * 8..load.each * 8);
                    mixed[at + bit / 8] ^= 1 << (bit % 8);
                }
                _ => mixed.extend_from_slice(replay),
            }
        }
        mixed.extend_from_slice(datagram);
    }
    mixed
}

const ACCEPTED: &str = "wayfix_edge_fixes_accepted_total";
const REFUSED: &str = "wayfix_edge_datagrams_refused_total";
/// Opening a new session derives its keys, which is several times as dear as a warm one.
const WARM_UP_PER_S: f64 = 100_000.0;
const GARBAGE_PHONES: u32 = 100_000;
const SEED: u64 = 7;
