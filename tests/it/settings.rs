//! Settings that cannot be used: what `wayfix config check` refuses and what `wayfix up` refuses is the same, in the
//! same words, and before anything is made.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::harness::{Server, ServerOptions, WAYFIX};

/// Lines of a configuration, and what the refusal must say.
const REFUSED: &[(&str, &str)] = &[
    ("nonsense = 1", "nonsense"),
    ("[http]\nlissten = \"127.0.0.1:1\"", "lissten"),
    ("[http]\nlisten = \"nonsense\"", "http.listen"),
    ("[http]\nlisten = \"127.0.0.1:65536\"", "http.listen"),
    ("[http]\nlisten = \"127.0.0.1:7001\"\n[admin]\nlisten = \"127.0.0.1:7001\"", "admin cannot listen"),
    ("[http]\nlisten = \"127.0.0.1:7001\"\n[https]\nlisten = \"0.0.0.0:7001\"", "https cannot listen"),
    ("[http]\nlisten = \"192.0.2.1:7001\"", "192.0.2.1:7001"),
    ("[https]\nlisten = \"192.0.2.1:7001\"", "192.0.2.1:7001"),
    ("[admin]\nlisten = \"192.0.2.1:7001\"", "192.0.2.1:7001"),
    ("[edge]\nudp_listen = \"192.0.2.1:7001\"", "edge.udp_listen"),
    ("map = \"/nowhere/city.wfm\"", "/nowhere/city.wfm"),
    ("map = \"/proc\"", "/proc is no file"),
    ("map = \"FOLDER/text\"", "text cannot be used"),
    ("data = \"FOLDER/text\"", "is no folder"),
    ("data = \"FOLDER/text/data\"", "FOLDER/text"),
    ("data = \"\"", "names no folder"),
    ("[logging]\nformat = \"xml\"", "xml"),
    ("[clock]\nfactor = 0.5", "clock.factor"),
    ("[http]\nlisten = \"0.0.0.0:7001\"\n[clock]\nfactor = 10.0", "loopback"),
    ("[edge]\nudp_listen = \"0.0.0.0:7001\"\n[clock]\nfactor = 10.0", "edge.udp_listen"),
    ("[connections]\ntotal_max = 0", "connections.total_max"),
    ("[connections]\ntrusted_proxies = [\"10.0.0.0/40\"]", "connections.trusted_proxies"),
    ("[connections]\nproxy_protocol = true", "connections.proxy_protocol"),
    ("[record_log]\ntype = \"papyrus\"", "papyrus"),
    ("[record_log.embedded]\npartitions = 0", "record_log.embedded.partitions"),
    ("[history]\nkeep_days = 3", "history.keep_days"),
    ("[cache]\nbytes_max = 1", "cache.bytes_max"),
    ("[maps]\nmirror = \"ftp://mirror.example\"", "maps.mirror"),
    ("[edge]\nudp_threads = 257", "edge.udp_threads"),
    ("[edge]\nfix_age_h_max = 73", "edge.fix_age_h_max"),
    ("[edge]\nspool_bytes = 1", "edge.spool_bytes"),
    ("[edge.tls]\ncertificate_file = \"FOLDER/text\"", "belong together"),
    ("[edge.tls]\ncertificate_file = \"/nowhere/a.pem\"\nkey_file = \"/nowhere/b.pem\"", "/nowhere/a.pem"),
    ("[edge.tls]\ncertificate_file = \"FOLDER/text\"\nkey_file = \"FOLDER/text\"", "edge.tls"),
    ("[edge.tls]\nnames = [\"café.example\"]", "edge.tls"),
    ("[processor]\nsnapshot_every_s = 0", "processor.snapshot_every_s"),
    ("[processor.learner]\nlive_every_s = 1", "processor.learner.live_every_s"),
    ("[processor.router]\ntype = \"compass\"", "compass"),
    ("[processor.router]\ntype = \"osrm\"\n[processor.router.osrm]\ncar = \"ftp://x\"", "processor.router.osrm.car"),
    ("[processor.router]\ntype = \"osrm\"\n[processor.router.osrm]\ncar = \"\"", "no vehicle is served"),
    (
        "[processor.router]\ntype = \"valhalla\"\n[processor.router.valhalla]\nurl = \"x\"",
        "processor.router.valhalla.url",
    ),
    ("[processor.router]\ntimeout_ms = 0", "processor.router.timeout_ms"),
    ("[gateway]\nadmin_key = \"short\"", "gateway.admin_key"),
    ("[gateway]\npublic_url = \"https://x/path\"", "gateway.public_url"),
    ("[gateway]\nallowed_origins = [\"shop\"]", "gateway.allowed origin"),
    ("[gateway]\nsession_lifetime_minutes = 20", "gateway.session_lifetime_minutes"),
    ("[gateway]\ngroup = \"\"", "gateway.group"),
    ("[[gateway.edges]]\nudp = \"nowhere\"\nhttps = \"https://edge.example\"", "nowhere"),
    ("[[gateway.edges]]\nudp = \"edge.example:443\"\nhttps = \"edge.example\"", "edge.example"),
    ("[gateway]\nread_back_s = 1", "gateway.read_back_s"),
];

#[test]
fn the_check_refuses_what_the_server_refuses_in_the_same_words_and_nothing_is_made() -> Result<()> {
    let wrong: Vec<String> = REFUSED
        .iter()
        .filter_map(|(lines, expected)| refuse(lines, expected).err().map(|error| format!("{lines}\n  {error:#}")))
        .collect();

    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn refuse(lines: &str, expected: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("text"), "to do: buy milk")?;
    let place = folder.path().to_str().context("a path in UTF-8")?;
    let data = format!("data = {:?}\n", folder.path().join("data"));
    let data = if lines.starts_with("data") { "" } else { &data };
    let file = folder.path().join("wayfix.toml");
    std::fs::write(&file, format!("{data}{}", lines.replace("FOLDER", place)))?;

    let checked = run(&mut wayfix(&["config", "check"], &file))?;
    let started = run(&mut wayfix(&["up"], &file))?;

    let (checked_said, started_said) = (said(&checked), said(&started));
    ensure!(checked.status.code() == Some(64), "the check ended with {}: {checked_said}", checked.status);
    ensure!(started.status.code() == Some(64), "the start ended with {}: {started_said}", started.status);
    ensure!(checked_said == started_said, "the check said {checked_said}, the start {started_said}");
    ensure!(checked_said.contains(&expected.replace("FOLDER", place)), "it said {checked_said}");
    let mut left: Vec<_> = std::fs::read_dir(&folder)?.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
    left.sort();
    ensure!(left == ["text", "wayfix.toml"], "it made {left:?}");
    Ok(())
}

#[test]
fn a_folder_in_which_nobody_may_write_and_a_key_that_nobody_may_read_are_refused_by_both() -> Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let folder = tempfile::tempdir()?;
    let (locked, key) = (folder.path().join("locked"), folder.path().join("key.pem"));
    let is_root = std::fs::metadata(folder.path())?.uid() == 0;
    std::fs::create_dir(&locked)?;
    std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o500))?;
    std::fs::write(&key, "")?;
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o000))?;
    let cases = [
        (format!("data = {:?}\n", locked.join("data")), "cannot write"),
        (format!("data = {locked:?}\n"), "cannot write"),
        (
            format!(
                "data = {:?}\n[edge.tls]\ncertificate_file = {key:?}\nkey_file = {key:?}\n",
                folder.path().join("data")
            ),
            "Permission denied",
        ),
    ];
    for (text, expected) in cases {
        let file = folder.path().join("wayfix.toml");
        std::fs::write(&file, &text)?;
        for arguments in [&["config", "check"][..], &["up"]] {
            // The superuser may do everything: rights are tried without that privilege.
            let mut command = Command::new("setpriv");
            command.args(["--bounding-set", "-dac_override,-dac_read_search", WAYFIX]);
            let mut command = if is_root { command } else { Command::new(WAYFIX) };
            command.args(arguments).arg("--config").arg(&file);

            let refused = run(&mut command)?;

            ensure!(refused.status.code() == Some(64), "{text}: {arguments:?}: {}: {}", refused.status, said(&refused));
            ensure!(said(&refused).contains(expected), "{text}: {arguments:?}: {}", said(&refused));
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_running_server_runs_with_is_fit_to_be_used_again() -> Result<()> {
    let mut server = Server::start(ServerOptions::default()).await?;

    let checked = run(&mut wayfix(&["config", "check"], &server.folder().join("wayfix.toml")))?;

    ensure!(checked.status.success(), "its own doors are no fault: {}", said(&checked));
    server.stop().await?;
    Ok(())
}

fn wayfix(arguments: &[&str], config: &Path) -> Command {
    let mut command = Command::new(WAYFIX);
    command.args(arguments).arg("--config").arg(config);
    command
}

/// Runs it to its end, which must come soon.
fn run(command: &mut Command) -> Result<Output> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let until = Instant::now() + Duration::from_secs(60);
    while child.try_wait()?.is_none() {
        if Instant::now() >= until {
            child.kill()?;
            let output = child.wait_with_output()?;
            bail!("it went on: {}", said(&output));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(child.wait_with_output()?)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
