//! The release build as operators run it: `wayfix up` in a folder of its own, and as much of its API as benches need to
//! make drivers, devices and deliveries.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::http::Http;
use crate::report::workspace;

/// A server process, ended when it is dropped.
pub struct Server {
    child: Child,
    pub http: SocketAddr,
    pub admin: SocketAddr,
    data: PathBuf,
    /// From starting the process to the first `/readyz` that was answered 200.
    pub ready_after: Duration,
}

#[derive(Clone, Default)]
pub struct ServerOptions {
    /// The build to be measured; the workspace's release build if none is named.
    pub binary: Option<PathBuf>,
    pub map: Option<PathBuf>,
}

impl Server {
    /// Starts the server on the state in `folder`, which may be empty, and waits until it is ready.
    pub async fn start(options: &ServerOptions, folder: &Path) -> Result<Server> {
        let binary = options.binary.clone().unwrap_or_else(|| workspace().join("target/release/wayfix"));
        let (http, admin) = (free_port()?, free_port()?);
        let data = folder.join("data");
        let mut command = Command::new(&binary);
        command.args(["up", "--data"]).arg(&data).args(["--http", &http.to_string()]);
        if let Some(map) = &options.map {
            command.arg("--map").arg(map);
        }
        let begun = Instant::now();
        let child = command
            .env("WAYFIX__ADMIN__LISTEN", admin.to_string())
            .env("WAYFIX__EDGE__UDP_LISTEN", "127.0.0.1:0")
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.join("output.log")).context("make a file for the server's output")?)
            .spawn()
            .with_context(|| format!("start {}", binary.display()))?;
        let mut server = Server { child, http, admin, data, ready_after: Duration::ZERO };
        loop {
            if let Some(status) = server.child.try_wait()? {
                bail!("the server ended by itself: {status}");
            }
            if let Ok((200, _)) = Http::new(admin).call("GET", "/readyz", None, None).await {
                server.ready_after = begun.elapsed();
                return Ok(server);
            }
            anyhow::ensure!(begun.elapsed() < Duration::from_secs(60), "the server is not ready after a minute");
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Ends the server as an operator would, and waits for it.
    pub async fn stop(mut self) -> Result<()> {
        Command::new("kill").args(["-TERM", &self.id().to_string()]).status().context("ask the server to stop")?;
        let begun = Instant::now();
        while self.child.try_wait()?.is_none() {
            anyhow::ensure!(begun.elapsed() < Duration::from_secs(30), "the server does not stop");
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The first tenant's API key.
    pub fn key(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.data.join("tenant.key")).context("read the tenant's key")?.trim().to_string())
    }

    /// A file of the kernel about this process.
    pub fn proc(&self, name: &str) -> Result<String> {
        let path = format!("/proc/{}/{name}", self.child.id());
        std::fs::read_to_string(&path).with_context(|| format!("read {path}"))
    }

    pub fn anonymous_kib(&self) -> Result<f64> {
        field(&self.proc("smaps_rollup")?, "Anonymous:")
    }

    /// CPU time of all its threads that have not ended.
    pub fn cpu(&self) -> Result<Duration> {
        let mut sum = Duration::ZERO;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let stat = std::fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            let ns = stat.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0);
            sum += Duration::from_nanos(ns);
        }
        Ok(sum)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _it_may_have_ended = self.child.kill();
        let _no_zombie = self.child.wait();
    }
}

/// A figure of a file of the kernel, by the name before it.
pub fn field(text: &str, name: &str) -> Result<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name} there"))?;
    Ok(line.split_whitespace().next().context("a figure")?.parse()?)
}

fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// A driver with one device.
#[derive(Clone, Debug)]
pub struct Enrolled {
    pub driver: u64,
    /// The device's.
    pub credential: String,
}

/// Makes so many drivers, each with a device, over several connections: the registry commits them together.
pub async fn enrol(server: &Server, count: u32) -> Result<Vec<Enrolled>> {
    let (key, http) = (server.key()?, server.http);
    let mut tasks = JoinSet::new();
    for first in 0..CONNECTIONS.min(count) {
        let key = key.clone();
        tasks.spawn(async move {
            let mut http = Http::new(http);
            let mut enrolled = Vec::new();
            for number in (first..count).step_by(CONNECTIONS as usize) {
                enrolled.push(enrol_one(&mut http, &key, number).await?);
            }
            Ok::<_, anyhow::Error>(enrolled)
        });
    }
    let mut all = Vec::new();
    while let Some(enrolled) = tasks.join_next().await {
        all.extend(enrolled??);
    }
    all.sort_by_key(|enrolled| enrolled.driver);
    Ok(all)
}

async fn enrol_one(http: &mut Http, key: &str, number: u32) -> Result<Enrolled> {
    let name = json!({ "name": format!("Driver {number}") });
    let driver = made(http.call("POST", "/api/v1/drivers", Some(key), Some(&name)).await?)?;
    let driver = number_of(&driver["driver"])?;
    let device = made(http.call("POST", "/api/v1/devices", Some(key), Some(&json!({ "driver": driver }))).await?)?;
    let credential = device["credential"].as_str().context("a device has a credential")?.to_string();
    Ok(Enrolled { driver, credential })
}

/// The body of an answer that says it was done.
pub fn made((status, body): (u16, Value)) -> Result<Value> {
    anyhow::ensure!((200..300).contains(&status), "{status}: {body}");
    Ok(body)
}

/// An id, as a number or a string.
pub fn number_of(value: &Value) -> Result<u64> {
    let number = value.as_u64().or_else(|| value.as_str()?.parse().ok());
    number.with_context(|| format!("{value} is no number"))
}

const CONNECTIONS: u32 = 32;
