//! The embedded log under kill −9: this program starts itself as a child that appends and prints what was acknowledged,
//! kills it at random, and opens what it left. No test harness: the child must be nothing but the appender.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use backends::log::embedded::{EmbeddedLog, EmbeddedLogConfig};
use backends::log::{Append, Log, Topic, read_range};
use bytes::Bytes;
use protocol::PartitionId;
use rand::{Rng, SeedableRng};

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match std::env::var_os(CHILD) {
        Some(folder) => runtime.block_on(append_for_ever(Path::new(&folder))),
        None => runtime.block_on(kill_and_open()),
    }
}

async fn kill_and_open() {
    let seed = std::env::var("WAYFIX_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("seed {seed}");
    let mut random = rand::rngs::SmallRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let mut acknowledged: BTreeMap<(u32, u64), String> = BTreeMap::new();

    for round in 0..ROUNDS {
        let before = acknowledged.len();
        run_and_kill(folder.path(), Duration::from_millis(random.random_range(5..400)), &mut acknowledged);
        check(folder.path(), &acknowledged).await;
        println!("round {round}: {} more acknowledged, all there", acknowledged.len() - before);
    }
    assert!(acknowledged.len() > ROUNDS, "the child was at work");
    println!("{} acknowledged entries survived {ROUNDS} kills", acknowledged.len());
}

/// Lets the child append until it has been heard for so long, kills it and takes down what it said.
fn run_and_kill(folder: &Path, after: Duration, acknowledged: &mut BTreeMap<(u32, u64), String>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .env(CHILD, folder)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the child starts");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let opened = lines.next().unwrap().unwrap();
    assert_eq!(opened, "open");
    let killer = std::thread::spawn(move || {
        std::thread::sleep(after);
        child.kill().unwrap();
        child.wait().unwrap();
    });
    for line in lines {
        let line = line.unwrap();
        // The last line may be cut: then nobody was told.
        let Some(line) = line.strip_suffix(" .") else {
            continue;
        };
        let mut words = line.split(' ');
        let mut word = || words.next().unwrap();
        let place = (word().parse().unwrap(), word().parse().unwrap());
        let text = word().to_string();
        assert_eq!(acknowledged.insert(place, text), None, "an offset is given once: {place:?}");
    }
    killer.join().unwrap();
}

async fn check(folder: &Path, acknowledged: &BTreeMap<(u32, u64), String>) {
    let log = EmbeddedLog::open(folder, config()).unwrap();
    let mut found = BTreeMap::new();
    for partition in 0..PARTITIONS {
        let range = log.range(Topic::Records, PartitionId(partition)).await.unwrap();
        let entries = read_range(&log, Topic::Records, PartitionId(partition), range).await.unwrap();
        for (next, entry) in entries.into_iter().enumerate() {
            assert_eq!(entry.offset.0, next as u64, "no hole");
            found.insert((partition, next as u64), String::from_utf8(entry.value.to_vec()).unwrap());
        }
    }
    for (place, text) in acknowledged {
        assert_eq!(found.get(place), Some(text), "{place:?} was acknowledged");
    }
    let texts: std::collections::BTreeSet<&String> = found.values().collect();
    assert_eq!(texts.len(), found.len(), "every entry is there once");
    for partition in 0..PARTITIONS {
        for appender in 0..APPENDERS {
            let prefix = format!("{appender}-");
            let of_appender = found.iter().filter(|(place, text)| place.0 == partition && text.starts_with(&prefix));
            let numbers = of_appender.map(|(_, text)| text[prefix.len()..].parse::<u64>().unwrap());
            assert!(numbers.is_sorted(), "in the order they were appended");
        }
    }
}

/// The child: several appenders, each with rising numbers that go on over restarts.
async fn append_for_ever(folder: &Path) {
    let log = Arc::new(EmbeddedLog::open(folder, config()).unwrap());
    println!("open");
    let began = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let appending: Vec<_> = (0..APPENDERS)
        .map(|appender| {
            let log = log.clone();
            tokio::spawn(async move {
                for round in 0.. {
                    let partition = (appender + round as u32) % PARTITIONS;
                    let texts: Vec<String> = (0..3).map(|n| format!("{appender}-{}", began + round * 3 + n)).collect();
                    let appends: Vec<Append> = texts.iter().map(|text| append(partition, text)).collect();
                    let offsets = log.append(&appends).await.into_offsets().unwrap();
                    let mut out = std::io::stdout().lock();
                    for (offset, text) in offsets.iter().zip(&texts) {
                        writeln!(out, "{partition} {offset} {text} .").unwrap();
                    }
                }
            })
        })
        .collect();
    for appending in appending {
        appending.await.unwrap();
    }
}

fn append(partition: u32, text: &str) -> Append {
    let value = Bytes::copy_from_slice(text.as_bytes());
    Append { topic: Topic::Records, partition: PartitionId(partition), key: Bytes::new(), value }
}

fn config() -> EmbeddedLogConfig {
    EmbeddedLogConfig { partitions: PARTITIONS, ..EmbeddedLogConfig::default() }
}

const CHILD: &str = "WAYFIX_LOG_APPENDER";
const PARTITIONS: u32 = 2;
const APPENDERS: u32 = 4;
const ROUNDS: usize = 12;
