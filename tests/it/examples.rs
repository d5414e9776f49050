//! The examples do what their first lines say, against a server as an integrator would start it.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use backends::log::embedded::{EmbeddedLog, EmbeddedLogConfig};
use backends::log::{Append, Log, Topic, read_range};
use bytes::Bytes;
use protocol::record::Door;
use protocol::update::{DeliveryBody, DeliveryView, Epoch, Event, Source};
use protocol::{
    AssignmentNumber, Delivery, DeliveryId, DeliveryKey, DeliveryPolicy, DeliveryState, DeliveryUpdate, JournalEntry,
    JournalKind, JournalNumber, PartitionId, Record, RecordBatch, RejectReason, TenantId, Time, TrackerKey, Update,
    UpdateBatch, Verdict, envelope, partition_of,
};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::harness::{Server, ServerOptions, WAYFIX};

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_send_a_fix_and_watch_its_delivery() -> Result<()> {
    let (Some(send_fix), Some(watch_delivery)) = (example("send_fix"), example("watch_delivery")) else {
        return Ok(());
    };
    let server = Server::start(ServerOptions::default()).await?;
    let api = server.api()?;
    let (driver, credential) = api.new_driver("Ana").await?;
    let stops =
        json!([{"kind": "pickup", "lat": 43.7318, "lng": 7.4174}, {"kind": "drop_off", "lat": 43.7406, "lng": 7.4299}]);
    let made = api.post("/deliveries", json!({"driver": driver.to_string(), "stops": stops})).await?;
    let (url, token) = (&made["links"]["connect"], &made["token"]);
    let (url, token) = (url.as_str().context("an address")?, token.as_str().context("a token")?);

    let mut watching = Command::new(watch_delivery);
    let mut watching = watching.args([url, token]).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let mut lines = BufReader::new(watching.stdout.take().context("its output")?).lines();
    let first = tokio::time::timeout(WAIT, lines.next_line()).await.context("a snapshot")??;
    let sent = Command::new(send_fix).args([&server.url(), &credential, "43.7325", "7.4190"]).output();
    let sent = tokio::time::timeout(WAIT, sent).await.context("an acknowledgement")??;

    ensure!(first.is_some_and(|line| line.contains("\"received\"")), "the snapshot comes first");
    ensure!(sent.status.success(), "send_fix: {}", String::from_utf8_lossy(&sent.stderr));
    let shown = async {
        while let Some(line) = lines.next_line().await? {
            if line.starts_with("at 43.73") {
                return Ok(());
            }
        }
        anyhow::bail!("watch_delivery ended: {}", server.output())
    };
    tokio::time::timeout(WAIT, shown).await.context("the dot of the fix that was sent")?
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_added_door_has_answered_outlives_a_kill() -> Result<()> {
    let Some(add_a_door) = example("add_a_door") else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let mut door = Command::new(add_a_door);
    let mut door = door.arg(folder.path()).arg("127.0.0.1:0").stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let mut lines = BufReader::new(door.stdout.take().context("its output")?).lines();
    let mut line = async || tokio::time::timeout(WAIT, lines.next_line()).await??.context("a line");
    let (url, credential) = (line().await?, line().await?);
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let post = async |password: &str, body: serde_json::Value| -> Result<(u16, String)> {
        let request = reqwest::Client::new().post(&url).basic_auth("ana", Some(password)).json(&body);
        let response = request.timeout(WAIT).send().await?;
        Ok((response.status().as_u16(), response.text().await?))
    };
    let at = |seconds: u64| json!({"_type": "location", "lat": 43.7325, "lon": 7.419, "acc": 8, "tst": seconds});

    let stranger = post("wfd_of_nobody", at(now_s)).await?;
    let nowhere = post(&credential, json!({"_type": "location", "lat": 95, "lon": 7, "tst": now_s})).await?;
    let old = post(&credential, at(now_s - 100 * 3600)).await?;
    let good = post(&credential, at(now_s)).await?;
    door.kill().await?;

    ensure!((stranger.0, nowhere.0) == (401, 400), "{stranger:?} {nowhere:?}");
    ensure!(old.0 == 200 && old.1.contains("too_old"), "{old:?}");
    ensure!(good == (200, "[]".to_string()), "{good:?}");
    let log = EmbeddedLog::open(folder.path().join("log"), EmbeddedLogConfig::default())?;
    let mut verdicts = Vec::new();
    for partition in (0..log.partition_count(Topic::Records)).map(PartitionId) {
        let range = log.range(Topic::Records, partition).await?;
        for entry in read_range(&log, Topic::Records, partition, range).await? {
            verdicts.extend(envelope::decode::<RecordBatch>(&entry.value)?.records.iter().filter_map(|record| {
                let Record::Fix(fix) = record else { return None };
                (fix.door == Door::OwnTracks).then_some(fix.verdict)
            }));
        }
    }
    ensure!(verdicts == [Verdict::Rejected(RejectReason::TooOld), Verdict::Accepted], "{verdicts:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_added_sink_writes_every_finished_delivery_once_however_often_it_is_killed() -> Result<()> {
    let Some(add_a_sink) = example("add_a_sink") else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let (log, csv) = (folder.path().join("log"), folder.path().join("finished"));
    let begin = || Command::new(&add_a_sink).args([&log, &csv]).kill_on_drop(true).spawn();
    finish_deliveries(&log, 1..=12_000).await?;
    // As a kill leaves it: a line that is written and not committed, and one cut short.
    std::fs::create_dir(&csv)?;
    let (partition, _) = finished(1, 1);
    std::fs::write(csv.join(format!("finished-{partition}.csv")), "1,1,2,delivered,1\n1,9")?;

    for least in [2, 4_000, 8_000] {
        let mut sink = begin()?;
        until_written(&csv, least, &mut sink).await?;
        sink.kill().await?;
    }
    finish_deliveries(&log, 12_001..=12_100).await?;
    let mut sink = begin()?;
    until_written(&csv, 12_100, &mut sink).await?;
    sink.kill().await?;

    let mut numbers: Vec<u64> = Vec::new();
    for line in written(&csv)?.lines() {
        let number = line.strip_prefix("1,").and_then(|line| line.strip_suffix(",2,delivered,1"));
        numbers.push(number.with_context(|| format!("a whole line: {line}"))?.parse()?);
    }
    numbers.sort_unstable();
    ensure!(numbers == Vec::from_iter(1..=12_100), "{} lines: some are missing or there twice", numbers.len());
    Ok(())
}

/// As processors would write it: each delivery is said to be finished, and said again by its next owner.
async fn finish_deliveries(folder: &Path, numbers: RangeInclusive<u64>) -> Result<()> {
    let log = EmbeddedLog::open(folder, EmbeddedLogConfig::default())?;
    let append = |(number, assignment)| {
        let (partition, update) = finished(number, assignment);
        let value = envelope::encode(&UpdateBatch { updates: vec![Update::Delivery(update)] }).into();
        Append { topic: Topic::Updates, partition, key: Bytes::new(), value }
    };
    let appends: Vec<Append> = numbers.flat_map(|number| [(number, 1), (number, 2)]).map(append).collect();
    log.append(&appends).await.into_offsets()?;
    tokio::task::spawn_blocking(move || log.close()).await?;
    Ok(())
}

fn finished(number: u64, assignment: u32) -> (PartitionId, DeliveryUpdate) {
    let key = DeliveryKey { tenant: TenantId(1), delivery: DeliveryId(number) };
    let status = |number, status| JournalEntry {
        number: JournalNumber(number),
        at: Time(1),
        kind: JournalKind::Status { status, reason: None },
    };
    let delivery = Delivery {
        key,
        state: DeliveryState::Delivered,
        assignment: AssignmentNumber(assignment),
        driver: None,
        stops: Vec::new(),
        policy: DeliveryPolicy::default(),
        journal: vec![status(1, DeliveryState::Received), status(2, DeliveryState::Delivered)],
        reference: String::new(),
        created: Time(1),
    };
    let entry = delivery.journal[1].clone();
    let view = DeliveryView { delivery, position: None, progress: None, eta: None, plan: None, silent: None };
    let update = DeliveryUpdate {
        key,
        epoch: Epoch { assignment: AssignmentNumber(assignment), ..Epoch::default() },
        number: 1,
        source: Source::default(),
        at: Time(1),
        events: vec![Event::Journal { entry }],
        body: DeliveryBody::Keyframe { view: Box::new(view) },
        is_last: true,
    };
    (partition_of(&TrackerKey::Delivery(key).key_bytes(), EmbeddedLogConfig::default().partitions), update)
}

async fn until_written(csv: &Path, lines: usize, sink: &mut Child) -> Result<()> {
    let writing = async {
        while written(csv)?.lines().count() < lines {
            ensure!(sink.try_wait()?.is_none(), "add_a_sink ended");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    };
    tokio::time::timeout(WAIT, writing).await.with_context(|| format!("{lines} lines"))?
}

/// All lines of all partitions.
fn written(csv: &Path) -> Result<String> {
    let mut all = String::new();
    for file in std::fs::read_dir(csv)? {
        all += &std::fs::read_to_string(file?.path())?;
    }
    Ok(all)
}

/// The example beside the binary under test; None, said aloud, where only the tests were built.
fn example(name: &str) -> Option<PathBuf> {
    let path = Path::new(WAYFIX).with_file_name("examples").join(name);
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var_os("WAYFIX_TESTS_NEED_ALL").is_none(), "the examples are built before the tests");
    eprintln!("skipped: {} is not built", path.display());
    None
}

const WAIT: Duration = Duration::from_secs(30);
