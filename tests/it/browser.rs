//! A real browser, driven over its DevTools protocol: opens a page, keeps what it complained of and what it asked for,
//! evaluates expressions, takes pictures.

use std::collections::VecDeque;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

pub struct Browser {
    child: Child,
    _profile: tempfile::TempDir,
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    next_id: u64,
    session: String,
    events: VecDeque<Value>,
    /// Addresses asked for, in order.
    pub requests: Vec<String>,
    /// How many WebSockets have ended.
    pub sockets_closed: usize,
    /// Console errors, uncaught exceptions, failed loads.
    pub complaints: Vec<String>,
}

impl Browser {
    /// None where there is no browser and none is required.
    pub fn program() -> Option<&'static str> {
        ["chromium", "chromium-browser", "google-chrome"].into_iter().find(|name| {
            let probe =
                std::process::Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
            probe.is_ok_and(|status| status.success())
        })
    }

    pub async fn start(program: &str, width: u32, height: u32) -> Result<Browser> {
        let profile = tempfile::tempdir()?;
        let mut child = Command::new(program)
            .args(["--headless=new", "--no-sandbox", "--disable-quic", "--no-first-run", "--mute-audio"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args(["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-certificate-errors"])
            .args(["--disable-dev-shm-usage", "--remote-debugging-port=0", "--hide-scrollbars"])
            .arg(format!("--window-size={width},{height}"))
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("start the browser")?;
        let stderr = child.stderr.take().context("the browser has a standard error")?;
        let url = tokio::time::timeout(Duration::from_secs(60), devtools_url(stderr)).await??;
        let (socket, _) = tokio_tungstenite::connect_async(&url).await.context("connect to the browser")?;
        let mut browser = Browser {
            child,
            _profile: profile,
            socket,
            next_id: 0,
            session: String::new(),
            events: VecDeque::new(),
            requests: Vec::new(),
            sockets_closed: 0,
            complaints: Vec::new(),
        };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"})).await?;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = browser.call("Target.attachToTarget", attach).await?;
        browser.session = session["sessionId"].as_str().context("a session id")?.to_string();
        for domain in ["Page", "Runtime", "Network", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({})).await?;
        }
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        browser.call("Emulation.setDeviceMetricsOverride", size).await?;
        Ok(browser)
    }

    pub async fn open(&mut self, url: &str) -> Result<()> {
        let answer = self.call("Page.navigate", json!({"url": url})).await?;
        if let Some(error) = answer.get("errorText").and_then(Value::as_str) {
            bail!("the browser cannot open {url}: {error}");
        }
        Ok(())
    }

    /// The value of an expression in the page; a promise is waited for.
    pub async fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let parameters = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let answer = self.call("Runtime.evaluate", parameters).await?;
        if let Some(details) = answer.get("exceptionDetails") {
            bail!("{expression}: {details}");
        }
        Ok(answer["result"]["value"].clone())
    }

    /// Waits until an expression is true in the page.
    pub async fn until(&mut self, expression: &str, within: Duration) -> Result<()> {
        let deadline = tokio::time::Instant::now() + within;
        loop {
            if self.evaluate(&format!("!!({expression})")).await.is_ok_and(|value| value == json!(true)) {
                return Ok(());
            }
            if tokio::time::Instant::now() >= deadline {
                let text = self.evaluate("document.body.innerText").await.unwrap_or_default();
                bail!(
                    "in the page it never became true that {expression}; complaints: {:?}; text: {text}",
                    self.complaints
                );
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    pub async fn picture(&mut self, to: &Path) -> Result<()> {
        let answer = self.call("Page.captureScreenshot", json!({"format": "png"})).await?;
        let data = answer["data"].as_str().context("a picture")?;
        let bytes = base64::engine::general_purpose::STANDARD.decode(data)?;
        std::fs::write(to, bytes).with_context(|| format!("write {}", to.display()))
    }

    /// Pretends to be somewhere, for pages that ask.
    pub async fn place(&mut self, origin: &str, lat: f64, lng: f64) -> Result<()> {
        let grant = json!({"origin": origin, "permissions": ["geolocation"]});
        self.call("Browser.grantPermissions", grant).await?;
        let position = json!({"latitude": lat, "longitude": lng, "accuracy": 8});
        self.call("Emulation.setGeolocationOverride", position).await.map(drop)
    }

    pub async fn call(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.next_id += 1;
        let id = self.next_id;
        let mut message = json!({"id": id, "method": method, "params": parameters});
        if !self.session.is_empty() && !method.starts_with("Target.") && !method.starts_with("Browser.") {
            message["sessionId"] = json!(self.session);
        }
        self.socket.send(Message::text(message.to_string())).await?;
        let answer = tokio::time::timeout(Duration::from_secs(60), self.answer(id)).await;
        let answer = answer.with_context(|| format!("the browser does not answer {method}"))??;
        if let Some(error) = answer.get("error") {
            bail!("{method}: {error}");
        }
        Ok(answer["result"].clone())
    }

    async fn answer(&mut self, id: u64) -> Result<Value> {
        loop {
            let message = self.socket.next().await.context("the browser is gone")??;
            let Message::Text(text) = message else { continue };
            let value: Value = serde_json::from_str(&text)?;
            if value["id"] == json!(id) {
                return Ok(value);
            }
            self.handle_event(value);
        }
    }

    fn handle_event(&mut self, event: Value) {
        let parameters = &event["params"];
        match event["method"].as_str() {
            Some("Network.requestWillBeSent") => {
                self.requests.extend(parameters["request"]["url"].as_str().map(String::from));
            }
            Some("Network.webSocketCreated") => self.requests.extend(parameters["url"].as_str().map(String::from)),
            Some("Network.webSocketClosed") => self.sockets_closed += 1,
            Some("Runtime.exceptionThrown") => self.complaints.push(parameters["exceptionDetails"].to_string()),
            Some("Runtime.consoleAPICalled") if parameters["type"] == "error" => {
                self.complaints.push(parameters["args"].to_string());
            }
            Some("Log.entryAdded") if parameters["entry"]["level"] == "error" => {
                self.complaints.push(parameters["entry"].to_string());
            }
            _ => {}
        }
        self.events.push_back(event);
        if self.events.len() > 100 {
            self.events.pop_front();
        }
    }

    pub async fn close(mut self) -> Result<()> {
        let _it_may_be_gone_first = self.call("Browser.close", json!({})).await;
        let _ = tokio::time::timeout(Duration::from_secs(5), self.child.wait()).await;
        self.child.kill().await.ok();
        Ok(())
    }
}

async fn devtools_url(stderr: tokio::process::ChildStderr) -> Result<String> {
    let mut lines = BufReader::new(stderr).lines();
    while let Some(line) = lines.next_line().await? {
        if let Some(url) = line.strip_prefix("DevTools listening on ") {
            let url = url.to_string();
            // The pipe is read on, or the browser would one day block on it.
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return Ok(url);
        }
    }
    bail!("the browser ended before it listened")
}
