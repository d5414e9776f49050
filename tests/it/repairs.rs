//! `wayfix repair` and `wayfix restore` over the built binary: whatever is damaged, and wherever they are killed, what was
//! whole before is whole after, and the same command run again comes to its end.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use reqwest::{Method, StatusCode};
use serde_json::json;
use sha2::Digest;

use crate::stores::{
    Run, begin, check, copy_folder, go_on, number, order, post_fix, said, unpack_release_before, wayfix,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_that_was_killed_half_way_has_cost_nothing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let mut known = begin(&data).await?;
    let mut run = Run::start(&data).await?;
    let api = run.ready(&known.key).await?;
    go_on(&api, &mut known, 3).await?;
    run.kill().await?;
    // As a repair of the release before leaves it: it set the log aside, looked, and was killed.
    let (wal, aside) = (data.join("ledger.db-wal"), data.join("ledger.db-wal.aside"));
    std::fs::rename(&wal, &aside)?;
    std::fs::write(&wal, b"")?;

    ensure!(Run::start(&data).await?.refusal().await?.contains("ledger: it holds"));
    for _ in 0..2 {
        let repaired = wayfix(&["repair"], &data)?;
        ensure!(repaired.status.success(), "{}", said(&repaired));
    }

    let mut run = Run::start(&data).await?;
    run.until_ready().await?;
    check(&run, &known).await?;
    run.kill().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_write_ahead_log_is_set_aside_under_a_name_of_its_own_and_a_strangers_is_left() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let [data, others] = ["data", "others"].map(|name| folder.path().join(name));
    let mut known = begin(&data).await?;
    let mut run = Run::start(&data).await?;
    let api = run.ready(&known.key).await?;
    go_on(&api, &mut known, 3).await?;
    let (wal, older) = (data.join("ledger.db-wal"), std::fs::read(data.join("ledger.db-wal"))?);
    go_on(&api, &mut known, 4).await?;
    run.stop().await?;
    // Older than the file, which has it all.
    std::fs::write(&wal, &older)?;
    let names = [".aside", ".damaged"].map(|end| data.join(format!("ledger.db-wal{end}")));
    names.iter().try_for_each(|name| std::fs::write(name, b"another's"))?;

    let repaired = wayfix(&["repair"], &data)?;

    ensure!(repaired.status.success(), "{}", said(&repaired));
    for name in names {
        ensure!(std::fs::read(&name)? == b"another's", "{} was moved over", name.display());
    }
    ensure!(std::fs::read(data.join("ledger.db-wal.damaged-2"))? == older);
    let mut run = Run::start(&data).await?;
    run.until_ready().await?;
    check(&run, &known).await?;
    run.kill().await?;

    begin(&others).await?;
    for file in ["ledger.db", "ledger.db.sums"] {
        std::fs::copy(data.join(file), others.join(file))?;
    }
    let strange = std::fs::read(&wal)?;
    std::fs::write(others.join("ledger.db-wal"), &strange)?;
    let refused = wayfix(&["repair"], &others)?;
    ensure!(!refused.status.success() && said(&refused).contains("it belongs to installation"), "{}", said(&refused));
    ensure!(std::fs::read(others.join("ledger.db-wal"))? == strange);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_restore_or_an_acceptance_that_ended_after_any_store_goes_on_with_all_of_them() -> Result<()> {
    let mut cases = Vec::new();
    for command in [&["restore"][..], &["repair", "--accept-loss", "trail"]] {
        for stopped_at in ["registry.db", "ledger.db", "blobs"] {
            cases.push(interrupted(command, stopped_at));
        }
    }
    for outcome in futures_util::future::join_all(cases).await {
        outcome?;
    }
    Ok(())
}

/// The command fails when it comes to this store, once the stores before it were opened, and is run again.
async fn interrupted(command: &[&str], stopped_at: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let (facts, key) = unpack_release_before(&data)?;
    let stopper = data.join(stopped_at);
    let what = || format!("{command:?}, stopped at {stopped_at}");
    if command[0] == "repair" {
        std::fs::remove_file(data.join("trail.db"))?;
    }
    let with = |command: &[&str]| wayfix_of_before(command, &data);
    match stopped_at {
        // Nothing is a folder where a file lies.
        "blobs" => {
            std::fs::rename(&stopper, data.join("bodies"))?;
            std::fs::write(&stopper, b"")?;
        }
        // Where a database's checksums are first written.
        _ => std::fs::create_dir(stopper.with_extension("db.sums.unfinished"))?,
    }
    let stopped = with(command)?;
    ensure!(!stopped.status.success(), "{}: {}", what(), said(&stopped));
    let refusal = Run::start(&data).await?.refusal().await?;
    ensure!(refusal.contains("did not come to its end"), "{}: {refusal}", what());
    let other = with(&[if command[0] == "restore" { "repair" } else { "restore" }])?;
    ensure!(!other.status.success(), "{}: {}", what(), said(&other));
    match stopped_at {
        "blobs" => {
            std::fs::remove_file(&stopper)?;
            std::fs::rename(data.join("bodies"), &stopper)?;
        }
        _ => std::fs::remove_dir(stopper.with_extension("db.sums.unfinished"))?,
    }

    let again = with(command)?;

    ensure!(again.status.success(), "{}: {}", what(), said(&again));
    let moved = std::fs::read_dir(&data)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let lost: Vec<String> = moved.filter(|name| name.contains(".lost-") && !name.starts_with("trail")).collect();
    ensure!(lost.is_empty(), "{}: {lost:?} were set aside\n{}", what(), said(&again));
    let mut run = Run::start(&data).await?;
    let api = run.ready(key.trim()).await?;
    let delivery = api.read("/deliveries/1").await?;
    ensure!(delivery["reference"] == "A-17", "{}: {delivery}", what());
    let credential = facts["credential"].as_str().context("one")?;
    let (status, answer) = post_fix(&api.with_token(credential), 1).await?;
    ensure!(status == StatusCode::ACCEPTED, "{}: the token key is in the log: {status} {answer}", what());
    let next = api.post("/deliveries", order(json!({}))).await?;
    ensure!(number(&next["delivery"]) > Some(1_000), "{}: {next}", what());
    run.kill().await
}

/// The release before wrote eight partitions.
fn wayfix_of_before(command: &[&str], data: &Path) -> Result<std::process::Output> {
    let mut with = std::process::Command::new(crate::harness::WAYFIX);
    Ok(with.args(command).arg("--data").arg(data).output()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_folder_is_restored_whole_before_it_starts_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let [data, copy] = ["data", "copy"].map(|name| folder.path().join(name));
    let known = begin(&data).await?;
    copy_folder(&data, &copy)?;
    let begun = std::fs::read_to_string(copy.join("witness/installation"))?;
    ensure!(begun.contains("incarnation 1"), "{begun}");

    for incarnation in [2, 3] {
        let restored = wayfix(&["restore"], &copy)?;
        ensure!(restored.status.success(), "{}", said(&restored));
        let file = std::fs::read_to_string(copy.join("witness/installation"))?;
        ensure!(file.contains(&format!("incarnation {incarnation}\nstate whole")), "{file}");
    }
    let mut run = Run::start(&copy).await?;
    run.until_ready().await?;
    check(&run, &known).await?;
    run.kill().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_lost_a_part_is_refused_with_advice_and_goes_on_without_it_where_that_is_accepted() -> Result<()>
{
    for lost in ["segment", "index"] {
        let folder = tempfile::tempdir()?;
        let data = folder.path().join("data");
        let known = begin(&data).await?;
        let segment = std::fs::read_dir(data.join("trail"))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|end| end == "wfs"))
            .context("a segment")?;
        let gone = if lost == "segment" { segment } else { data.join("trail/index.db") };
        std::fs::remove_file(gone)?;

        let refusal = Run::start(&data).await?.refusal().await?;
        let unaccepted = wayfix(&["repair"], &data)?;
        let accepted = wayfix(&["repair", "--accept-loss", "trail"], &data)?;

        ensure!(
            refusal.contains("trail: it is damaged") && refusal.contains("--accept-loss trail"),
            "{lost}: {refusal}"
        );
        ensure!(!unaccepted.status.success() && said(&unaccepted).contains("trail: it is damaged"), "{lost}");
        ensure!(accepted.status.success(), "{lost}: {}", said(&accepted));
        let mut run = Run::start(&data).await?;
        run.until_ready().await?;
        // The log of the last days is read into it again.
        check(&run, &known).await?;
        run.kill().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_on_a_page_that_was_changed_opens_nothing_once_that_is_accepted() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let known = begin(&data).await?;
    let path = data.join("registry.db");
    let mut bytes = std::fs::read(&path)?;
    let hash = sha2::Sha256::digest(known.link.as_bytes());
    let at = bytes.windows(hash.len()).position(|window| window == hash.as_slice()).context("the token's row")?;
    // When it was made: SQLite reads the row as well as before.
    bytes[at + hash.len() + 2] ^= 1;
    std::fs::write(&path, bytes)?;

    ensure!(Run::start(&data).await?.refusal().await?.contains("registry: it is damaged"));
    let repaired = wayfix(&["repair", "--accept-loss", "registry", "--new-tenant-key", "1"], &data)?;
    ensure!(repaired.status.success() && said(&repaired).contains("open nothing any more"), "{}", said(&repaired));

    let mut run = Run::start(&data).await?;
    run.until_ready().await?;
    let key = std::fs::read_to_string(data.join("tenant.key"))?;
    let api = run.api(key.trim());
    let (status, shown) = api.with_token(&known.link).call(Method::GET, "/tracking/1/status", None).await?;
    ensure!(status == StatusCode::UNAUTHORIZED, "{status} {shown}");
    let shown = api.read("/deliveries/1").await?;
    ensure!(shown["reference"] == "A-1", "{shown}");
    run.kill().await
}
