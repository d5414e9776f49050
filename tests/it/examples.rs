//! The examples do what their first lines say, against a server as an integrator would start it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

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
