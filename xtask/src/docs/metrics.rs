//! Every metric that a server exposes: its name, its kind, its labels and its help.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::cell;

pub fn page(wayfix: &Path) -> Result<String> {
    let server = Server::start(wayfix)?;
    let found = parse(&server.whole_exposition()?);
    let mut page = String::from(HEAD);
    for (name, metric) in &found {
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let _ = writeln!(page, "| `{name}` | {} | {} | {} |", metric.kind, labels.join(", "), cell(&metric.help));
    }
    Ok(page)
}

#[derive(Default)]
struct Metric {
    kind: String,
    help: String,
    labels: BTreeSet<String>,
}

/// Reads Prometheus' text format, as far as names go.
fn parse(text: &str) -> BTreeMap<String, Metric> {
    let mut found: BTreeMap<String, Metric> = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            found.entry(name.to_string()).or_default().help = help.to_string();
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            found.entry(name.to_string()).or_default().kind = kind.to_string();
        } else if let Some((name, labels)) = line.split_once('{')
            && let Some(metric) = found.get_mut(name.trim_end_matches("_bucket"))
        {
            let labels = labels.split('}').next().unwrap_or_default();
            let names = labels.split(',').filter_map(|pair| pair.split_once('=')).map(|(name, _)| name.to_string());
            metric.labels.extend(names.filter(|name| name != "le"));
        }
    }
    found
}

/// A server of its own in a folder of its own, ended with this value.
struct Server {
    process: Child,
    folder: PathBuf,
    admin: String,
}

impl Server {
    fn start(wayfix: &Path) -> Result<Server> {
        let folder = std::env::temp_dir().join(format!("wayfix-docs-{}", std::process::id()));
        let mut command = Command::new(wayfix);
        command.args(["up", "--http", "127.0.0.1:0", "--data"]).arg(&folder);
        command.env("WAYFIX__EDGE__UDP_LISTEN", "127.0.0.1:0").env("WAYFIX__ADMIN__LISTEN", "127.0.0.1:0");
        let process = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().context("start wayfix up")?;
        let mut server = Server { process, folder, admin: String::new() };
        let errors = server.process.stderr.take().context("its standard error")?;
        let mut lines = BufReader::new(errors).lines();
        let said = lines.find_map(|line| {
            let line = line.ok()?;
            let (_, rest) = line.split_once("http://").filter(|_| line.contains("/readyz"))?;
            Some(rest.split('/').next().unwrap_or_default().to_string())
        });
        server.admin = said.context("wayfix up did not say where its metrics are")?;
        // What it logs from now on is read, or it would wait.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(server)
    }

    /// Once two looks, some seconds after the start, show the same names.
    fn whole_exposition(&self) -> Result<String> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut before = BTreeSet::new();
        while Instant::now() < deadline {
            std::thread::sleep(Duration::from_secs(5));
            let text = self.read("/metrics").unwrap_or_default();
            let names: BTreeSet<String> = parse(&text).into_keys().collect();
            if !names.is_empty() && names == before {
                return Ok(text);
            }
            before = names;
        }
        bail!("the metrics of a server that does nothing did not come to rest")
    }

    fn read(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(&self.admin).context("reach the admin door")?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET {path} HTTP/1.0\r\nhost: {}\r\n\r\n", self.admin)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (_, body) = text.split_once("\r\n\r\n").context("an answer")?;
        Ok(body.to_string())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill(); // it may have ended by itself
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

const HEAD: &str = "# Metrics

Made by `./x docs` from what a server of one process exposes at `/metrics` on its admin door; don't edit it here. Ids are never labels.
Histograms are in seconds; those that nothing was measured for yet are not exposed.

| name | kind | labels | what it counts |
|---|---|---|---|
";
