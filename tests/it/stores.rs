//! Stores that belong together, over the built binary: every file of a data folder away, cut, flipped, zeroed or an hour
//! older, after a clean stop and after kill -9. A start is refused with the reason, or it serves exactly what was there;
//! never another's data, never a status back, never a number twice, never a fix less without a word.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command as Blocking, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;

use crate::harness::{Api, WAYFIX, eventually, now_ms};

/// What is done to one file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Damage {
    Away,
    Cut,
    Flipped,
    Zeroed,
    Older,
}

const DAMAGES: [Damage; 5] = [Damage::Away, Damage::Cut, Damage::Flipped, Damage::Zeroed, Damage::Older];

/// What the API showed before the server ended.
#[derive(Clone, Default)]
pub(crate) struct Known {
    pub(crate) key: String,
    /// Of the first delivery, which is delivered.
    pub(crate) link: String,
    pub(crate) credential: String,
    pub(crate) statuses: BTreeMap<u64, (String, String)>,
    pub(crate) drivers: u64,
    pub(crate) fixes: usize,
}

/// A data folder with a life, and the same an hour before, as it were.
struct Folders {
    _root: tempfile::TempDir,
    older: PathBuf,
    clean: PathBuf,
    killed: PathBuf,
    at_stop: Known,
    at_kill: Known,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_file_away_cut_flipped_zeroed_or_older_is_refused_or_harmless() -> Result<()> {
    let folders = Arc::new(live().await?);
    let mut cases = Vec::new();
    for file in files(&folders.killed)? {
        cases.extend(DAMAGES.map(|damage| (true, file.clone(), damage)));
    }
    for file in files(&folders.clean)?.into_iter().filter(|file| is_store(file)) {
        cases.extend(DAMAGES.map(|damage| (false, file.clone(), damage)));
    }
    let (permits, mut running) = (Arc::new(Semaphore::new(SIDE_BY_SIDE)), tokio::task::JoinSet::new());
    let count = cases.len();
    for (is_killed, file, damage) in cases {
        let (folders, permits) = (folders.clone(), permits.clone());
        running.spawn(async move {
            let _permit = permits.acquire_owned().await?;
            let (base, known) =
                if is_killed { (&folders.killed, &folders.at_kill) } else { (&folders.clean, &folders.at_stop) };
            let what = format!("{} {damage:?}, {}", file.display(), if is_killed { "killed" } else { "clean" });
            let outcome = case(base, &folders.older, &file, damage, known).await;
            outcome.with_context(|| what.clone()).map(|outcome| (what, outcome))
        });
    }
    let (mut refused, mut served, mut failures) = (Vec::new(), 0, Vec::new());
    while let Some(outcome) = running.join_next().await {
        match outcome? {
            Ok((what, Outcome::Refused)) => refused.push(what),
            Ok((_, Outcome::Served)) => served += 1,
            Ok((_, Outcome::Untouched)) => {}
            Err(error) => failures.push(format!("{error:#}")),
        }
    }

    println!("{count} cases: {} refused, {served} served", refused.len());
    ensure!(failures.is_empty(), "{} of {count}:\n{}", failures.len(), failures.join("\n"));
    for must in [
        "registry.db Away",
        "registry.db Flipped",
        "registry.db-wal Flipped",
        "registry.db-wal Away",
        "ledger.db Away",
        "ledger.db Zeroed",
        "ledger.db-wal Flipped",
        "ledger.db-wal Cut",
        "region.key Away",
        "region.key Flipped",
        "log/entries/0.jnl Zeroed",
        "log/entries/0.jnl Away",
        "ledger.db.sums Flipped",
        "trail/index.db Flipped",
        "trail/index.db Zeroed",
        "trail/index.db.sums Flipped",
    ] {
        ensure!(refused.iter().any(|what| what.starts_with(must)), "{must} was not refused, only {refused:?}");
    }
    ensure!(served > 0, "what nobody needs is rightly not missed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_ledger_is_gone_on_without_and_an_old_link_never_shows_a_new_delivery() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let known = begin(&data).await?;
    for file in ["ledger.db", "ledger.db-wal", "ledger.db-shm", "ledger.db.sums"] {
        let _not_all_are_there = std::fs::remove_file(data.join(file));
    }

    ensure!(Run::start(&data).await?.refusal().await?.contains("ledger: it is missing"));
    let only_named = wayfix(&["repair", "--accept-loss", "registry"], &data)?;
    ensure!(!only_named.status.success(), "a loss that was not accepted by name");
    let repaired = wayfix(&["repair", "--accept-loss", "ledger"], &data)?;
    ensure!(repaired.status.success(), "{}", said(&repaired));

    let mut run = Run::start(&data).await?;
    let api = run.ready(&known.key).await?;
    let own = api.post("/deliveries", order(json!({"id": 1, "reference": "another's"}))).await?;
    let numbered = api.post("/deliveries", order(json!({"reference": "another's too"}))).await?;
    ensure!(number(&numbered["delivery"]) > Some(1000), "{numbered}");
    ensure!(number(&own["assignment"]) > Some(1) && number(&own["last_number"]) > Some(3), "{own}");
    let (status, shown) = api.with_token(&known.link).call(Method::GET, "/tracking/1/status", None).await?;
    ensure!(status == StatusCode::UNAUTHORIZED, "an old link: {status} {shown}");
    let link = own["token"].as_str().context("a token")?;
    eventually("the new link opens the new delivery", Duration::from_secs(20), || async {
        let shown = api.with_token(link).read("/tracking/1/status").await?;
        Ok((shown["reference"] == "another's").then_some(()))
    })
    .await?;
    let (status, _) = post_fix(&api.with_token(&known.credential), 9).await?;
    ensure!(status == StatusCode::ACCEPTED, "the phone goes on: {status}");
    run.kill().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_log_keeps_every_credential_and_a_lost_registry_gives_no_number_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let known = begin(&data).await?;
    let copy = folder.path().join("copy");
    copy_folder(&data, &copy)?;

    std::fs::remove_dir_all(data.join("log"))?;
    ensure!(Run::start(&data).await?.refusal().await?.contains("log: it is missing"));
    let repaired = wayfix(&["repair", "--accept-loss", "log"], &data)?;
    ensure!(repaired.status.success(), "{}", said(&repaired));
    let mut run = Run::start(&data).await?;
    let api = run.ready(&known.key).await?;
    let (status, answer) = post_fix(&api.with_token(&known.credential), 9).await?;
    ensure!(status == StatusCode::ACCEPTED, "the token key was in the registry too: {status} {answer}");
    let (status, answer) = api.with_token(&known.credential).call(Method::POST, "/sessions", Some(json!({}))).await?;
    ensure!(status == StatusCode::CREATED, "{status} {answer}");
    run.kill().await?;

    for file in ["registry.db", "registry.db-wal", "registry.db-shm", "registry.db.sums"] {
        let _not_all_are_there = std::fs::remove_file(copy.join(file));
    }
    let repaired = wayfix(&["repair", "--accept-loss", "registry"], &copy)?;
    ensure!(repaired.status.success(), "{}", said(&repaired));
    let mut run = Run::start(&copy).await?;
    run.until_ready().await?;
    let key = std::fs::read_to_string(copy.join("tenant.key"))?;
    ensure!(key.trim() != known.key, "the old key is of a tenant that is lost");
    let api = run.api(key.trim());
    let driver = api.post("/drivers", json!({"name": "Ben"})).await?;
    let trail = api.read(&format!("/drivers/{}/trail", number(&driver["driver"]).unwrap_or(0))).await?;
    ensure!(trail.to_string().find("44.0").is_none(), "another's points: {trail}");
    let deliveries = api.read("/deliveries").await?;
    ensure!(deliveries["deliveries"] == json!([]), "another's deliveries: {deliveries}");
    let device = api.post("/devices", json!({"driver": driver["driver"]})).await?;
    ensure!(number(&device["tenant"]) > Some(16), "{device}");
    run.kill().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_copy_jumps_all_numbers_and_goes_on() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let known = begin(&data).await?;

    let restored = wayfix(&["restore"], &data)?;

    ensure!(restored.status.success(), "{}", said(&restored));
    let mut run = Run::start(&data).await?;
    let api = run.ready(&known.key).await?;
    ensure!(number(&api.post("/deliveries", order(json!({}))).await?["delivery"]) >= Some(1_000_000_000));
    ensure!(number(&api.post("/drivers", json!({"name": "Eva"})).await?["driver"]) >= Some(1_000_000));
    ensure!(number(&api.post("/devices", json!({"driver": 1})).await?["device"]) >= Some(256));
    let moved = api.post("/deliveries/2/status", json!({"status": "accepted"})).await?;
    ensure!(number(&moved["last_number"]) >= Some(10_000), "{moved}");
    let session = api.with_token(&known.credential).post("/sessions", json!({})).await?;
    ensure!(number(&session["numbers_from"]) > Some(1 << 20), "{session}");
    let shown = api.with_token(&known.link).read("/tracking/1/status").await?;
    ensure!(shown["reference"] == "A-1", "the link is for the same delivery still: {shown}");
    run.kill().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_the_release_before_is_taken_over_once_and_said() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let (facts, key) = unpack_release_before(&data)?;

    for start in 0..2 {
        let mut run = Run::start(&data).await?;
        let api = run.ready(key.trim()).await?;
        ensure!(run.output().contains("get one, once") == (start == 0), "{}", run.output());
        let delivery = api.read("/deliveries/1").await?;
        ensure!((&delivery["status"], &delivery["reference"]) == (&json!("ready"), &json!("A-17")), "{delivery}");
        let link = facts["link"].as_str().context("a link")?;
        let shown = api.with_token(link).read("/tracking/1/status").await?;
        ensure!(shown["reference"] == "A-17", "{shown}");
        let (status, _) = post_fix(&api.with_token(facts["credential"].as_str().context("one")?), start).await?;
        ensure!(status == StatusCode::ACCEPTED, "{status}");
        let next = api.post("/deliveries", order(json!({}))).await?;
        ensure!(number(&next["delivery"]) == Some(2 + start as u64), "{next}");
        run.kill().await?;
    }
    std::fs::remove_file(data.join("ledger.db"))?;
    ensure!(Run::start(&data).await?.refusal().await?.contains("ledger"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_store_removed_under_the_running_server_ends_it_and_nothing_more_is_acknowledged() -> Result<()> {
    let removals = ["log", "log/entries/0.jnl", "registry.db", "ledger.db"].map(|store| async move {
        let folder = tempfile::tempdir()?;
        let data = folder.path().join("data");
        let known = begin(&data).await?;
        let mut run = Run::start(&data).await?;
        let api = run.ready(&known.key).await?;
        std::fs::rename(data.join(store), data.join("aside"))?;

        let write = match store {
            "log" | "log/entries/0.jnl" => post_fix(&api.with_token(&known.credential), 50).await,
            "registry.db" => api.call(Method::POST, "/drivers", Some(json!({"name": "Eva"}))).await,
            _ => api.call(Method::POST, "/deliveries", Some(order(json!({})))).await,
        };
        if let Ok((status, answer)) = write {
            ensure!(!status.is_success(), "{store}: acknowledged into a file that nobody finds: {status} {answer}");
        }
        let (status, output) = run.ended(Duration::from_secs(40)).await?;

        ensure!(!status.success() && output.contains("removed or replaced"), "{store}: {status} {output}");
        Ok(())
    });
    let outcomes = futures_util::future::join_all(removals).await;
    outcomes.into_iter().collect::<Result<()>>()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_file_of_a_database_removed_without_traffic_is_noticed_in_seconds_and_put_back_costs_nothing() -> Result<()> {
    let files = ["ledger.db-wal", "registry.db-wal", "ledger.db.sums", "trail/index.db", "trail/index.db-wal", "trail"];
    let removals = files.map(|file| async move {
        let folder = tempfile::tempdir()?;
        let data = folder.path().join("data");
        let mut known = begin(&data).await?;
        let mut run = Run::start(&data).await?;
        let api = run.ready(&known.key).await?;
        go_on(&api, &mut known, 3).await?;
        let aside = folder.path().join("aside");
        std::fs::rename(data.join(file), &aside)?;

        let (status, output) = run.ended(Duration::from_secs(10)).await?;

        ensure!(!status.success() && output.contains("removed or replaced"), "{file}: {status} {output}");
        // What a write-ahead log held that nobody finds stands in its database.
        if !file.ends_with("-wal") {
            std::fs::rename(&aside, data.join(file))?;
        }
        let mut run = Run::start(&data).await?;
        run.until_ready().await.context(file)?;
        check(&run, &known).await.context(file)?;
        run.kill().await
    });
    let outcomes = futures_util::future::join_all(removals).await;
    outcomes.into_iter().collect::<Result<()>>()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_damaged_under_the_running_server_ends_it_with_the_reason() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let known = begin(&data).await?;
    let mut run = Run::start(&data).await?;
    let api = run.ready(&known.key).await?;
    let ledger = std::fs::File::options().write(true).open(data.join("ledger.db"))?;
    let garbage = vec![0xff; usize::try_from(ledger.metadata()?.len())?.saturating_sub(4096)];
    std::os::unix::fs::FileExt::write_all_at(&ledger, &garbage, 4096)?;

    let read = api.call(Method::GET, "/deliveries", None).await;
    if let Ok((status, answer)) = read {
        ensure!(!status.is_success(), "{status} {answer}");
    }
    let (status, output) = run.ended(Duration::from_secs(40)).await?;

    ensure!(!status.success() && output.contains("malformed"), "{status} {output}");
    ensure!(Run::start(&data).await?.refusal().await?.contains("ledger: it is damaged"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_cut_at_its_end_without_its_own_note_is_seen() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    begin(&data).await?;
    std::fs::remove_file(data.join("log/acknowledged"))?;
    let journals = std::fs::read_dir(data.join("log/entries"))?.filter_map(|entry| Some(entry.ok()?.path()));
    let journal =
        journals.filter(|path| path.extension().is_some_and(|end| end == "jnl")).max().context("a journal")?;
    let mut bytes = std::fs::read(&journal)?;
    let used = bytes.iter().rposition(|byte| *byte != 0).context("entries")?;
    bytes[used * 9 / 10..].fill(0);
    std::fs::write(&journal, bytes)?;

    let refusal = Run::start(&data).await?.refusal().await?;

    ensure!(refusal.contains("acknowledged") && refusal.contains("--accept-loss log"), "{refusal}");
    let repaired = wayfix(&["repair", "--accept-loss", "log"], &data)?;
    ensure!(repaired.status.success(), "{}", said(&repaired));
    let mut run = Run::start(&data).await?;
    run.until_ready().await?;
    run.kill().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_with_one_damaged_byte_keeps_all_before_it_where_the_loss_is_accepted() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let known = begin(&data).await?;
    let journal = data.join("log/entries/0.jnl");
    let mut bytes = std::fs::read(&journal)?;
    let used = bytes.iter().rposition(|byte| *byte != 0).context("entries")?;
    bytes[used * 9 / 10] ^= 1;
    std::fs::write(&journal, &bytes)?;

    let refusal = Run::start(&data).await?.refusal().await?;
    ensure!(refusal.contains("--accept-loss log"), "{refusal}");
    ensure!(std::fs::read(&journal)? == bytes, "a refused start has touched the journal");
    let repaired = wayfix(&["repair", "--accept-loss", "log"], &data)?;

    ensure!(repaired.status.success(), "{}", said(&repaired));
    ensure!(!said(&repaired).contains("nothing of the log can be read"), "{}", said(&repaired));
    let aside = std::fs::read(journal.with_extension("jnl.lost"))?;
    ensure!(aside.starts_with(&bytes[..=used]), "what is cut is set aside");
    let mut run = Run::start(&data).await?;
    let api = run.ready(&known.key).await?;
    let (status, answer) = post_fix(&api.with_token(&known.credential), 9).await?;
    ensure!(status == StatusCode::ACCEPTED, "{status} {answer}");
    run.kill().await
}

/// What became of a case.
enum Outcome {
    Refused,
    Served,
    /// The damage left the file as it was.
    Untouched,
}

async fn case(base: &Path, older: &Path, file: &Path, damage: Damage, known: &Known) -> Result<Outcome> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    copy_folder(base, &data)?;
    if !damaged(&data.join(file), &older.join(file), damage)? {
        return Ok(Outcome::Untouched);
    }
    let mut run = Run::start(&data).await?;
    if let Some(output) = run.ready_or_ended().await? {
        ensure!(output.contains("wayfix: "), "it ended without a word: {output}");
        return Ok(Outcome::Refused);
    }
    let outcome = check(&run, known).await;
    let output = run.output();
    run.kill().await?;
    outcome.with_context(|| output)?;
    Ok(Outcome::Served)
}

/// It serves: then all that was known is there, or what is missing is said, and no number is given again.
pub(crate) async fn check(run: &Run, known: &Known) -> Result<()> {
    let api = run.api(&known.key);
    let (status, driver) = api.call(Method::POST, "/drivers", Some(json!({"name": "next"}))).await?;
    ensure!(status == StatusCode::CREATED, "the tenant's key: {status} {driver}");
    ensure!(number(&driver["driver"]) > Some(known.drivers), "{driver}");
    for (delivery, (status, reference)) in &known.statuses {
        let shown = api.read(&format!("/deliveries/{delivery}")).await?;
        ensure!(shown["status"] == **status && shown["reference"] == **reference, "{delivery} was {status}: {shown}");
    }
    let next = api.post("/deliveries", order(json!({}))).await?;
    ensure!(number(&next["delivery"]) > known.statuses.keys().last().copied(), "{next}");
    let shown = api.with_token(&known.link).read("/tracking/1/status").await?;
    ensure!(shown["reference"] == "A-1" && shown["status"] == "delivered", "{shown}");
    let (status, answer) = post_fix(&api.with_token(&known.credential), 900).await?;
    ensure!(status == StatusCode::ACCEPTED, "the device's credential: {status} {answer}");
    let all = eventually("every acknowledged fix in history", Duration::from_secs(10), || async {
        let found = points(&api.read("/drivers/1/trail").await?);
        Ok((found >= known.fixes).then_some(()))
    });
    if let Err(error) = all.await {
        let is_said = run.output().lines().any(|line| line.contains("WARN") || line.contains("ERROR"));
        ensure!(is_said, "fixes are missing without a word: {error:#}");
    }
    Ok(())
}

/// Ids are texts in answers.
pub(crate) fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// How many positions an answer of `/trail` holds.
fn points(trail: &Value) -> usize {
    match trail {
        Value::Array(all) => all.iter().map(points).sum(),
        Value::Object(fields) if fields.contains_key("lat") => 1,
        Value::Object(fields) => fields.values().map(points).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

/// False: it is as it was.
fn damaged(path: &Path, older: &Path, damage: Damage) -> Result<bool> {
    let bytes = std::fs::read(path)?;
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let changed = match damage {
        Damage::Away => {
            std::fs::remove_file(path)?;
            return Ok(true);
        }
        Damage::Cut => bytes[..used / 2].to_vec(),
        Damage::Zeroed => vec![0; bytes.len()],
        Damage::Flipped => {
            let mut flipped = bytes.clone();
            // Near its end: what was acknowledged last.
            if let Some(byte) = flipped.get_mut((used * 9 / 10).saturating_sub(1)) {
                *byte ^= 1;
            }
            flipped
        }
        Damage::Older if older.exists() => std::fs::read(older)?,
        Damage::Older => return Ok(false),
    };
    if changed == bytes {
        return Ok(false);
    }
    std::fs::write(path, changed)?;
    Ok(true)
}

/// Two drivers, three deliveries, fixes; an hour later one more of each; stopped, and killed in the middle of more.
async fn live() -> Result<Folders> {
    let root = tempfile::tempdir()?;
    let [data, older, clean, killed] = ["data", "older", "clean", "killed"].map(|name| root.path().join(name));
    let mut known = begin(&data).await?;
    copy_folder(&data, &older)?;

    let mut run = Run::start(&data).await?;
    let api = run.ready(&known.key).await?;
    go_on(&api, &mut known, 3).await?;
    run.stop().await?;
    copy_folder(&data, &clean)?;
    let at_stop = known.clone();

    let mut run = Run::start(&data).await?;
    let api = run.ready(&known.key).await?;
    go_on(&api, &mut known, 4).await?;
    run.kill().await?;
    copy_folder(&data, &killed)?;
    Ok(Folders { _root: root, older, clean, killed, at_stop, at_kill: known })
}

/// A first life, stopped.
pub(crate) async fn begin(data: &Path) -> Result<Known> {
    let mut run = Run::start(data).await?;
    run.until_ready().await?;
    let mut known =
        Known { key: std::fs::read_to_string(data.join("tenant.key"))?.trim().to_string(), ..Known::default() };
    let api = run.api(&known.key);
    (known.drivers, known.credential) = api.new_driver("Ana").await?;
    let first = api.post("/deliveries", order(json!({"reference": "A-1", "driver": 1}))).await?;
    known.link = first["token"].as_str().context("a token")?.to_string();
    known.statuses.insert(1, ("received".to_string(), "A-1".to_string()));
    for status in ["accepted", "preparing", "ready", "picked_up", "delivered"] {
        move_on(&api, &mut known, 1, status).await?;
    }
    go_on(&api, &mut known, 2).await?;
    run.stop().await?;
    Ok(known)
}

pub(crate) async fn go_on(api: &Api, known: &mut Known, delivery: u64) -> Result<()> {
    for _ in 0..5 {
        let (status, answer) = post_fix(&api.with_token(&known.credential), known.fixes as i64).await?;
        ensure!(status == StatusCode::ACCEPTED, "{status} {answer}");
        known.fixes += 1;
    }
    known.drivers =
        number(&api.post("/drivers", json!({"name": format!("driver {delivery}")})).await?["driver"]).context("one")?;
    let reference = format!("A-{delivery}");
    let made = api.post("/deliveries", order(json!({"reference": reference}))).await?;
    ensure!(number(&made["delivery"]) == Some(delivery), "{made}");
    known.statuses.insert(delivery, ("received".to_string(), reference));
    if delivery > 2 {
        move_on(api, known, delivery - 1, "accepted").await?;
    }
    Ok(())
}

async fn move_on(api: &Api, known: &mut Known, delivery: u64, status: &str) -> Result<()> {
    api.post(&format!("/deliveries/{delivery}/status"), json!({"status": status})).await?;
    known.statuses.get_mut(&delivery).context("a delivery")?.0 = status.to_string();
    Ok(())
}

pub(crate) async fn post_fix(device: &Api, step: i64) -> Result<(StatusCode, Value)> {
    let fix = json!([{"lat": 44.0 + step as f64 * 1e-5, "lng": -30.0, "timestamp": now_ms(), "accuracy": 8}]);
    device.call(Method::POST, "/tracking/locations", Some(fix)).await
}

pub(crate) fn order(more: Value) -> Value {
    let mut order = json!({"stops": [
        {"kind": "pickup", "lat": 44.01, "lng": -30.0}, {"kind": "drop_off", "lat": 44.02, "lng": -30.01}
    ]});
    if let (Some(order), Some(more)) = (order.as_object_mut(), more.as_object()) {
        order.extend(more.clone());
    }
    order
}

/// Every file that holds something of its own, and of the log's many alike only the first few.
fn files(data: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![data.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() { folders.push(path) } else { files.push(path.strip_prefix(data)?.to_path_buf()) }
        }
    }
    files.sort();
    let mut of_keyspaces = 0;
    let mut of_blobs = 0;
    files.retain(|file| {
        let counter = match file.starts_with("log/entries/keyspaces") {
            true => &mut of_keyspaces,
            false if file.starts_with("blobs") => &mut of_blobs,
            false => return !["processor", "facts.json", "clock.json"].iter().any(|other| file.starts_with(other)),
        };
        *counter += 1;
        *counter <= 2
    });
    Ok(files)
}

fn is_store(file: &Path) -> bool {
    let name = file.to_string_lossy();
    name.ends_with(".db") || name.ends_with(".jnl") || name.ends_with(".sums") || name.ends_with("acknowledged")
}

/// A folder that the build ddcf6dd has left, before there were ids; what is known of it, and its tenant's key.
pub(crate) fn unpack_release_before(data: &Path) -> Result<(Value, String)> {
    std::fs::create_dir_all(data)?;
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures/data-ddcf6dd.tar.gz");
    let untarred = Blocking::new("tar").args(["-xzf"]).arg(&fixture).arg("-C").arg(data).status()?;
    ensure!(untarred.success());
    let facts: Value = serde_json::from_str(&std::fs::read_to_string(data.join("facts.json"))?)?;
    Ok((facts, std::fs::read_to_string(data.join("tenant.key"))?))
}

pub(crate) fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    let copied = Blocking::new("cp").args(["-a", "--sparse=always", "--reflink=auto"]).arg(from).arg(to).status()?;
    ensure!(copied.success(), "cp {}", from.display());
    Ok(())
}

pub(crate) fn wayfix(arguments: &[&str], data: &Path) -> Result<std::process::Output> {
    let mut command = Blocking::new(WAYFIX);
    command.args(arguments).arg("--data").arg(data).env("WAYFIX__RECORD_LOG__EMBEDDED__PARTITIONS", "2");
    Ok(command.output()?)
}

pub(crate) fn said(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

/// One run of the binary over a data folder.
pub(crate) struct Run {
    child: Child,
    http: SocketAddr,
    admin: SocketAddr,
    log: PathBuf,
}

impl Run {
    pub(crate) async fn start(data: &Path) -> Result<Run> {
        let free = || -> Result<SocketAddr> { Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?) };
        let (http, admin, udp) = (free()?, free()?, UdpSocket::bind("127.0.0.1:0")?.local_addr()?);
        let root = data.parent().context("a folder above the data")?;
        let name = format!("{}-{}", data.file_name().unwrap_or_default().to_string_lossy(), http.port());
        let (config, log) = (root.join(format!("{name}.toml")), root.join(format!("{name}.log")));
        let text = format!(
            "data = {data:?}\n[http]\nlisten = \"{http}\"\n[admin]\nlisten = \"{admin}\"\n[edge]\nudp_listen = \"{udp}\"\nspool_bytes = 8388608\n[record_log.embedded]\npartitions = 2\n",
        );
        // A folder made by the release before has its own number of partitions.
        let text =
            if root.join("data/facts.json").exists() { text.replace("partitions = 2", "partitions = 8") } else { text };
        std::fs::write(&config, text)?;
        let output = std::fs::File::create(&log)?;
        let mut command = Command::new(WAYFIX);
        command.args(["up", "--config"]).arg(&config).stdout(Stdio::null()).stderr(output).kill_on_drop(true);
        Ok(Run { child: command.spawn()?, http, admin, log })
    }

    pub(crate) fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn api(&self, key: &str) -> Api {
        Api { client: Client::new(), base: format!("http://{}/api/v1", self.http), token: key.to_string() }
    }

    /// None: it is ready; else what it said when it ended.
    async fn ready_or_ended(&mut self) -> Result<Option<String>> {
        let url = format!("http://{}/readyz", self.admin);
        for _ in 0..1200 {
            if let Some(status) = self.child.try_wait()? {
                ensure!(!status.success(), "it ended as if all were well: {}", self.output());
                return Ok(Some(self.output()));
            }
            if reqwest::get(&url).await.is_ok_and(|answer| answer.status() == StatusCode::OK) {
                return Ok(None);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("neither ready nor ended: {}", self.output())
    }

    pub(crate) async fn until_ready(&mut self) -> Result<()> {
        match self.ready_or_ended().await? {
            None => Ok(()),
            Some(output) => bail!("it ended: {output}"),
        }
    }

    pub(crate) async fn ready(&mut self, key: &str) -> Result<Api> {
        self.until_ready().await?;
        Ok(self.api(key))
    }

    pub(crate) async fn refusal(mut self) -> Result<String> {
        self.ready_or_ended().await?.context("it started")
    }

    async fn ended(&mut self, within: Duration) -> Result<(std::process::ExitStatus, String)> {
        let status = tokio::time::timeout(within, self.child.wait()).await;
        let status = status.with_context(|| format!("it goes on:\n{}", self.output()))??;
        Ok((status, self.output()))
    }

    pub(crate) async fn stop(mut self) -> Result<()> {
        let id = self.child.id().context("it runs")?;
        Command::new("kill").args(["-TERM", &id.to_string()]).status().await?;
        let (status, output) = self.ended(Duration::from_secs(60)).await?;
        ensure!(status.success(), "{status}: {output}");
        Ok(())
    }

    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.context("kill the server")
    }
}

/// Two cores are kept busy by twice as many, most of which wait for their disks.
const SIDE_BY_SIDE: usize = 4;
