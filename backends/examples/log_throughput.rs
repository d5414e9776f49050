//! How fast the embedded log takes records: appenders hand in entries of so many fixes, as an edge does, readers follow
//! every partition, and what is counted is durable and has been read.
//!
//! `cargo run --release -p wayfix-backends --example log_throughput -- [seconds] [fixes per entry] [appenders] [folder]`

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use backends::log::embedded::{EmbeddedLog, EmbeddedLogConfig};
use backends::log::{Append, Log, ReadLimit, Topic};
use bytes::Bytes;
use daemon::Meter;
use protocol::{Offset, PartitionId};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: u64| arguments.next().map_or(Ok(default), |text| text.parse());
    let (seconds, fixes, appenders) = (number(10)?, number(100)?, number(16)?);
    let folder = arguments.next().map_or_else(|| PathBuf::from("target/log-throughput"), PathBuf::from);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(run(&folder, Duration::from_secs(seconds), fixes, appenders));
    std::fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    outcome
}

async fn run(folder: &std::path::Path, duration: Duration, fixes: u64, appenders: u64) -> anyhow::Result<()> {
    let (meter, exposition) = Meter::prometheus();
    let config = EmbeddedLogConfig { meter, ..EmbeddedLogConfig::default() };
    let began = Instant::now();
    let log: Arc<dyn Log> = Arc::new(EmbeddedLog::open(folder, config).context("open the log")?);
    println!("open ms         {:>12.0}", began.elapsed().as_secs_f64() * 1000.0);
    let read = Arc::new(AtomicU64::new(0));
    let partitions = log.partition_count(Topic::Records);
    let readers: Vec<_> = (0..partitions).map(|n| tokio::spawn(follow(log.clone(), n, read.clone()))).collect();

    let began = Instant::now();
    let appending: Vec<_> = (0..appenders)
        .map(|n| tokio::spawn(append(log.clone(), n as u32 % partitions, fixes, began + duration)))
        .collect();
    let mut latencies = Vec::new();
    for task in appending {
        latencies.extend(task.await?.context("append")?);
    }
    let elapsed_s = began.elapsed().as_secs_f64();

    readers.iter().for_each(tokio::task::JoinHandle::abort);
    latencies.sort_unstable();
    let entries = latencies.len() as f64;
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0;
    println!("entries/s       {:>12.0}", entries / elapsed_s);
    println!("fixes/s         {:>12.0}   ({fixes} of {FIX_BYTES} bytes per entry)", entries * fixes as f64 / elapsed_s);
    println!("MB/s            {:>12.1}", entries * (fixes * FIX_BYTES) as f64 / elapsed_s / 1e6);
    println!("syncs/s         {:>12.0}", syncs(&exposition.render()) / elapsed_s);
    println!("append p50 ms   {:>12.2}", at(0.5));
    println!("append p99 ms   {:>12.2}", at(0.99));
    println!("append max ms   {:>12.2}", at(1.0));
    println!("read/appended   {:>12.4}", read.load(Ordering::Relaxed) as f64 / entries);
    Ok(())
}

async fn append(log: Arc<dyn Log>, partition: u32, fixes: u64, until: Instant) -> anyhow::Result<Vec<Duration>> {
    let mut latencies = Vec::new();
    let mut state = u64::from(partition) + 1;
    while Instant::now() < until {
        let value: Vec<u8> = (0..fixes * FIX_BYTES).map(|_| noise(&mut state)).collect();
        let value = Bytes::from(value);
        let append = Append { topic: Topic::Records, partition: PartitionId(partition), key: Bytes::new(), value };
        let began = Instant::now();
        log.append(&[append]).await.into_offsets()?;
        latencies.push(began.elapsed());
    }
    Ok(latencies)
}

async fn follow(log: Arc<dyn Log>, partition: u32, read: Arc<AtomicU64>) -> anyhow::Result<()> {
    let mut reader = log.reader(Topic::Records, PartitionId(partition), Offset(0)).await?;
    loop {
        let entries = reader.read(ReadLimit::default(), Duration::from_secs(1)).await?;
        read.fetch_add(entries.len() as u64, Ordering::Relaxed);
    }
}

/// Not to be compressed away.
fn noise(state: &mut u64) -> u8 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state as u8
}

fn syncs(exposition: &str) -> f64 {
    let line = exposition.lines().find(|line| line.starts_with("wayfix_log_syncs_total"));
    line.and_then(|line| line.split(' ').nth(1)).and_then(|count| count.parse().ok()).unwrap_or(0.0)
}

/// A fix record as bincode's fixed-int form writes it.
const FIX_BYTES: u64 = 90;
