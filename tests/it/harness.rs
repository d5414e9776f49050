//! A server of its own for a test: the built binary in a temporary folder, on free ports, with a clock of its own pace.
//! It can be killed without warning and started again where it was.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

/// The binary under test, built with these tests.
pub const WAYFIX: &str = env!("CARGO_BIN_EXE_wayfix");

pub struct Server {
    folder: tempfile::TempDir,
    child: Option<Child>,
    pub http: SocketAddr,
    pub udp: SocketAddr,
    pub admin: SocketAddr,
    pub scale: Option<(f64, i64)>,
    descriptors: Option<u32>,
    environment: Vec<(String, String)>,
}

#[derive(Default)]
pub struct ServerOptions {
    pub map: Option<PathBuf>,
    /// How much faster than life.
    pub clock_factor: Option<f64>,
    /// Lines of TOML to add to the configuration.
    pub more: String,
    /// How many files it may have open.
    pub descriptors: Option<u32>,
    /// What it finds in its environment, beside all that we have.
    pub environment: Vec<(String, String)>,
}

impl Server {
    pub async fn start(options: ServerOptions) -> Result<Server> {
        let folder = tempfile::tempdir()?;
        let scale = options.clock_factor.map(|factor| (factor, now_ms()));
        let (http, admin) = (free_tcp()?, free_tcp()?);
        let udp = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
        let mut text = format!("data = {:?}\n", folder.path().join("data"));
        if let Some(map) = &options.map {
            text += &format!("map = {map:?}\n");
        }
        text += &format!("[http]\nlisten = \"{http}\"\n[admin]\nlisten = \"{admin}\"\n");
        if let Some((factor, origin_ms)) = scale {
            text += &format!("[clock]\nfactor = {factor:?}\norigin_ms = {origin_ms}\n");
        }
        text += &format!("[edge]\nudp_listen = \"{udp}\"\n");
        text += &options.more;
        std::fs::write(folder.path().join("wayfix.toml"), text)?;
        let ServerOptions { descriptors, environment, .. } = options;
        let mut server = Server { folder, child: None, http, udp, admin, scale, descriptors, environment };
        server.launch().await?;
        Ok(server)
    }

    /// Starts the binary, or starts it again, and waits until it is ready.
    pub async fn launch(&mut self) -> Result<()> {
        self.begin()?;
        self.until_ready().await
    }

    /// Starts the binary and waits for nothing.
    pub fn begin(&mut self) -> Result<()> {
        let output = std::fs::File::options().create(true).append(true).open(self.folder.path().join("output.log"))?;
        let mut command = match self.descriptors {
            None => Command::new(WAYFIX),
            Some(count) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("ulimit -n {count}; exec \"$0\" \"$@\""), WAYFIX]);
                shell
            }
        };
        let child = command
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .args(["up", "--config"])
            .arg(self.folder.path().join("wayfix.toml"))
            .stdout(Stdio::null())
            .stderr(output)
            .kill_on_drop(true)
            .spawn()?;
        self.child = Some(child);
        Ok(())
    }

    async fn until_ready(&mut self) -> Result<()> {
        let url = format!("http://{}/readyz", self.admin);
        for _ in 0..600 {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                bail!("the server ended ({status}):\n{}", self.output());
            }
            if reqwest::get(&url).await.is_ok_and(|answer| answer.status() == StatusCode::OK) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("the server did not become ready:\n{}", self.output())
    }

    /// As a power cut would: no warning, no farewell.
    pub async fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the server runs")?;
        child.kill().await.context("kill the server")
    }

    /// As an operator would, by SIGTERM.
    pub async fn stop(&mut self) -> Result<std::process::ExitStatus> {
        let mut child = self.child.take().context("the server runs")?;
        let id = child.id().context("the server has a process id")?;
        Command::new("kill").args(["-TERM", &id.to_string()]).status().await?;
        let ended = tokio::time::timeout(Duration::from_secs(30), child.wait()).await;
        ended.with_context(|| format!("the server does not stop:\n{}", self.output()))?.context("wait for the server")
    }

    /// As an operator does who put a new map in place, by SIGHUP.
    pub async fn hang_up(&self) -> Result<()> {
        self.tell("-HUP").await
    }

    /// A signal.
    pub async fn tell(&self, signal: &str) -> Result<()> {
        let id = self.child.as_ref().and_then(Child::id).context("the server runs")?;
        Command::new("kill").args([signal, &id.to_string()]).status().await.context("send a signal")?;
        Ok(())
    }

    pub fn output(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("output.log")).unwrap_or_default()
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// The first tenant's key, as the server left it for its operator.
    pub fn key(&self) -> Result<String> {
        let path = self.data().join("tenant.key");
        Ok(std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?.trim().to_string())
    }

    pub fn api(&self) -> Result<Api> {
        Ok(Api { client: Client::new(), base: format!("{}/api/v1", self.url()), token: self.key()? })
    }

    /// What the server's clock showed when the machine's showed this.
    pub fn clock_at(&self, real_ms: i64) -> i64 {
        match self.scale {
            None => real_ms,
            Some((factor, origin_ms)) => origin_ms + ((real_ms - origin_ms) as f64 * factor) as i64,
        }
    }

    pub async fn metrics(&self) -> Result<String> {
        Ok(reqwest::get(format!("http://{}/metrics", self.admin)).await?.text().await?)
    }

    /// The sum of a counter over all its labels.
    pub async fn counted(&self, name: &str) -> Result<f64> {
        let text = self.metrics().await?;
        let of_name = |line: &&str| line.starts_with(name) && line[name.len()..].starts_with([' ', '{']);
        Ok(text.lines().filter(of_name).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }
}

/// A tenant's side of the API.
#[derive(Clone)]
pub struct Api {
    pub client: Client,
    pub base: String,
    pub token: String,
}

impl Api {
    pub fn with_token(&self, token: &str) -> Api {
        Api { token: token.to_string(), ..self.clone() }
    }

    pub async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<(StatusCode, Value)> {
        let mut request = self.client.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }

    /// Fails on anything but success.
    pub async fn post(&self, path: &str, body: Value) -> Result<Value> {
        let (status, value) = self.call(Method::POST, path, Some(body)).await?;
        if !status.is_success() {
            bail!("POST {path}: {status} {value}");
        }
        Ok(value)
    }

    pub async fn read(&self, path: &str) -> Result<Value> {
        let (status, value) = self.call(Method::GET, path, None).await?;
        if !status.is_success() {
            bail!("GET {path}: {status} {value}");
        }
        Ok(value)
    }

    pub async fn new_driver(&self, name: &str) -> Result<(u64, String)> {
        let driver = id_of(&self.post("/drivers", json!({"name": name})).await?, "driver")?.parse()?;
        let device = self.post("/devices", json!({"driver": driver})).await?;
        Ok((driver, device["credential"].as_str().context("a credential")?.to_string()))
    }
}

/// The id that an answer gives under this name, as text.
pub fn id_of(answer: &Value, name: &str) -> Result<String> {
    Ok(answer[name].as_str().with_context(|| format!("the {name} of {answer}"))?.to_string())
}

/// Waits until `check` answers something; tells what it last saw when it never does.
pub async fn eventually<T, F>(what: &str, within: Duration, mut check: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<Option<T>>>,
{
    let deadline = tokio::time::Instant::now() + within;
    let mut last = String::from("nothing yet");
    loop {
        match check().await {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => {}
            Err(error) => last = format!("{error:#}"),
        }
        if tokio::time::Instant::now() >= deadline {
            bail!("it never came: {what} (last: {last})");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

fn free_tcp() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
