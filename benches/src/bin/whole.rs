//! From authenticated UDP to durable in the embedded log, all threads of a machine, one fix per datagram, at a given
//! rate for a while; the sender runs on the same machine. Beside it the bare receive loop, in the same run. With
//! `--processor` every fix is folded too, and goes through the sinks: ask for a rate that two cores can fold.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use backends::log::embedded::{EmbeddedLog, EmbeddedLogConfig};
use benches::bench_edge::{BenchEdge, quantile};
use benches::load::{Load, LoadPlan, Sender, now};
use benches::{Goal, Report, bare, cpu};
use clap::Parser;
use edge::EdgeSettings;
use protocol::TenantId;

#[derive(Parser)]
struct Arguments {
    /// How long.
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// Fixes per second that are sent.
    #[arg(long, default_value_t = 500_000)]
    rate: u32,
    #[arg(long, default_value_t = 100_000)]
    sessions: u32,
    #[arg(long, default_value_t = 8)]
    partitions: u32,
    /// UDP threads; 0 is one per core.
    #[arg(long, default_value_t = 0)]
    threads: u32,
    /// Folds every fix too, in the same process.
    #[arg(long)]
    processor: bool,
    /// Where the log lies while it is measured; removed at the end.
    #[arg(long)]
    folder: Option<std::path::PathBuf>,
}

impl Arguments {
    fn log_folder(&self) -> anyhow::Result<tempfile::TempDir> {
        let made = self.folder.as_ref().map_or_else(tempfile::tempdir, tempfile::tempdir_in);
        made.context("make a folder for the log")
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("bench runtime")
        .enable_all()
        .build()
        .context("start a runtime")?;
    let mut report = Report::new("whole");
    runtime.block_on(run(&arguments, &mut report))?;
    report.finish()
}

async fn run(arguments: &Arguments, report: &mut Report) -> anyhow::Result<()> {
    let folder = arguments.log_folder()?;
    let config = EmbeddedLogConfig { partitions: arguments.partitions, ..EmbeddedLogConfig::default() };
    let log = Arc::new(EmbeddedLog::open(folder.path().join("log"), config).context("open the log")?);
    let settings = EdgeSettings {
        udp_listen: "127.0.0.1:0".parse()?,
        udp_threads: arguments.threads,
        sessions_max: arguments.sessions * 2,
        ..EdgeSettings::default()
    };
    let edge_folder = folder.path().join("edge");
    let threads = settings.check(&edge_folder)?.udp_thread_count;
    let edge = BenchEdge::start(log, &settings, &edge_folder).await?;
    if arguments.processor {
        edge.start_processor(folder.path()).await.context("start the processor")?;
    }
    let rounds = (arguments.rate * arguments.seconds).div_ceil(arguments.sessions);
    let plan =
        LoadPlan { phones: arguments.sessions, rounds: rounds + 1, ack_every: 8, tenant: TenantId(1), now: now() };
    let load = Arc::new(Load::seal(edge.kid, &edge.secret, plan));
    let sender = Sender::new(edge.handle.udp_addr, threads)?;
    sender.send(load.rounds(&plan, 0..1), load.each, Some(WARM_UP_PER_S));
    edge.settled(DURABLE).await;

    let before = Look::now(&edge);
    let began = Instant::now();
    let (sent_load, rate) = (load.clone(), f64::from(arguments.rate));
    let sending = std::thread::Builder::new().name("sender".to_string()).spawn(move || {
        let before = cpu::of_this_thread();
        let wall = sender.send(sent_load.rounds(&plan, 1..plan.rounds), sent_load.each, Some(rate));
        (wall, cpu::of_this_thread() - before)
    });
    let sending = sending.context("start the sender")?;
    while !sending.is_finished() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let Ok((wall, sender_cpu)) = sending.join() else { anyhow::bail!("the sender died") };
    edge.settled(DURABLE).await;
    let sent_within = began.elapsed();
    if arguments.processor {
        let sent = (load.len() - arguments.sessions as usize) as f64;
        until_folded(&edge, before.folded + sent).await;
    }
    let folded_after = began.elapsed().saturating_sub(sent_within);
    let after = Look::now(&edge);
    let has_been_away = edge.metric("wayfix_edge_shipments_spooled_total") > 0.0;
    edge.stop().await?;

    let bare_bytes = load.rounds(&plan, 1..plan.rounds.min(11));
    let bare = bare::receive(bare_bytes, load.each)?;
    let sent = (load.len() - arguments.sessions as usize) as f64;
    if arguments.processor {
        let folded = after.folded - before.folded;
        report.row(
            "records folded by the processor",
            folded,
            "records",
            "fixes, and a mark and a tick a second",
            Goal::None,
        );
        report.row(
            "folded after the last was durable",
            folded_after.as_secs_f64(),
            "s",
            "1.2 s of it waiting",
            Goal::None,
        );
    }
    tell(report, &Told { sent, wall, sender_cpu, before, after, bare, has_been_away, elapsed: began.elapsed() });
    Ok(())
}

/// Waits until so many records were folded: all that was sent, unless some was dropped before us.
async fn until_folded(edge: &BenchEdge, records: f64) {
    let began = Instant::now();
    while edge.metric(FOLDED) < records && began.elapsed() < Duration::from_secs(60) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What is counted at one moment.
struct Look {
    accepted: f64,
    durable: f64,
    folded: f64,
    appends: f64,
    cpu: Duration,
    udp_cpu: Duration,
    buckets: Vec<(f64, f64)>,
}

impl Look {
    fn now(edge: &BenchEdge) -> Self {
        Look {
            accepted: edge.metric("wayfix_edge_fixes_accepted_total"),
            durable: edge.metric(DURABLE),
            folded: edge.metric(FOLDED),
            appends: edge.metric("wayfix_edge_appends_total"),
            cpu: cpu::of_process(),
            udp_cpu: cpu::of_threads("edge udp"),
            buckets: edge.buckets("wayfix_edge_durable_after_seconds"),
        }
    }
}

struct Told {
    sent: f64,
    wall: Duration,
    sender_cpu: Duration,
    before: Look,
    after: Look,
    bare: bare::Bare,
    has_been_away: bool,
    elapsed: Duration,
}

fn tell(report: &mut Report, told: &Told) {
    let durable = told.after.durable - told.before.durable;
    let accepted = told.after.accepted - told.before.accepted;
    // The sender's thread has ended, so the process no longer counts its time.
    let all_cpu = told.after.cpu.saturating_sub(told.before.cpu);
    let udp_cpu = told.after.udp_cpu.saturating_sub(told.before.udp_cpu);
    let cores = report.machine.cores as f64;
    let seconds = told.wall.as_secs_f64();
    let sent_beside = format!("{:.0}/s sent for {seconds:.1} s from the same machine", told.sent / seconds);
    report.row("durable fixes/s", durable / seconds, "/s", &sent_beside, Goal::AtLeast(500_000.0));
    report.row("bare receive loop: datagrams/s", told.bare.per_s(), "/s", "one thread, same run", Goal::None);
    report.row("durable fixes/s / bare datagrams/s", durable / seconds / told.bare.per_s(), "", "", Goal::None);
    report.row(
        "sent and not durable",
        (told.sent - durable) / told.sent * 100.0,
        "%",
        "dropped by the kernel before us",
        Goal::None,
    );
    report.row("accepted and not durable", accepted - durable, "fixes", "", Goal::AtMost(0.0));
    for (name, wanted, goal) in [("p50", 0.5, Goal::None), ("p99", 0.99, Goal::AtMost(0.05))] {
        let value = quantile(&told.before.buckets, &told.after.buckets, wanted);
        report.row(&format!("receive to durable, {name}"), value, "s", "first record of each parcel", goal);
    }
    let appends = (told.after.appends - told.before.appends).max(1.0);
    report.row("fixes per append", durable / appends, "", "", Goal::None);
    let cpu_ns = all_cpu.as_nanos() as f64 / durable;
    report.row(
        "CPU per durable fix, all threads but the sender",
        cpu_ns,
        "ns",
        "bare loop's CPU per datagram",
        Goal::None,
    );
    report.row("of which UDP threads", udp_cpu.as_nanos() as f64 / durable, "ns", "", Goal::None);
    report.row("bare receive loop: CPU per datagram", told.bare.cpu_ns_each(), "ns", "", Goal::None);
    let sender_ns = told.sender_cpu.as_nanos() as f64 / told.sent;
    report.row("sender: CPU per datagram, kernel's delivery included", sender_ns, "ns", "", Goal::None);
    let could = cores * 1e9 / (cpu_ns + sender_ns);
    report.row("fixes/s these cores could take, sender included", could, "/s", "from CPU time", Goal::None);
    report.row("log counted as away in between", f64::from(u8::from(told.has_been_away)), "", "", Goal::AtMost(0.0));
    report.row("whole run", told.elapsed.as_secs_f64(), "s", "", Goal::None);
}

const FOLDED: &str = "wayfix_processor_records_total";
const DURABLE: &str = "wayfix_edge_records_total";
const WARM_UP_PER_S: f64 = 100_000.0;
