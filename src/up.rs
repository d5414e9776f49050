//! `wayfix up`: everything in one process, until it is told to stop.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use daemon::Signals;

use crate::compose::{Running, Whole};
use crate::config::Config;
use crate::settings::Settings;

#[derive(clap::Args)]
pub struct Options {
    /// A TOML file; every setting has a default.
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where all state lies.
    #[arg(long, value_name = "FOLDER")]
    pub data: Option<PathBuf>,
    /// The city: a map file of `wayfix maps import`. Another one put in its place goes into use while all runs, within
    /// seconds, or at once at SIGHUP.
    #[arg(long, value_name = "CITY.wfm")]
    pub map: Option<PathBuf>,
    /// Where the API and the pages are served.
    #[arg(long, value_name = "ADDRESS")]
    pub http: Option<SocketAddr>,
    /// The same with TLS, with a certificate of its own unless one is set.
    #[arg(long, value_name = "ADDRESS")]
    pub https: Option<SocketAddr>,
}

impl Options {
    pub fn config(&self) -> Result<Config> {
        let mut settings = Settings::load(self.config.as_deref())?;
        if let Some(data) = &self.data {
            settings.data.clone_from(data);
        }
        if let Some(map) = &self.map {
            settings.map = Some(map.clone());
        }
        if self.http.is_some() {
            settings.http.listen = self.http;
        }
        if self.https.is_some() {
            settings.https.listen = self.https;
        }
        Ok(settings.check()?)
    }
}

pub fn run(options: &Options) -> Result<()> {
    daemon::huge_pages::do_without();
    let config = options.config()?;
    daemon::logging::start(config.logging, "info");
    let signals = Signals::listen()?;
    run_to_end(async move {
        let Some(whole) = Whole::start(config, &signals).await? else { return Ok(()) };
        eprintln!("{}", describe(&whole.running));
        let told = async {
            signals.stop.cancelled().await;
            Ok(())
        };
        whole.until_stopped(told).await
    })
}

/// Runs this on a runtime of its own. What waits for a disk that does not answer is left behind at the end: the process
/// ends with it.
pub fn run_to_end<T>(task: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = runtime()?;
    let outcome = runtime.block_on(task);
    runtime.shutdown_timeout(LEFT_BEHIND_AFTER);
    outcome
}

pub fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")
}

fn describe(running: &Running) -> String {
    let mut lines = vec![String::from("wayfix is up")];
    if let Some(http) = running.http {
        lines.extend(addresses("http", http).iter().map(|url| format!("  pages and API   {url}/")));
    }
    if let Some(https) = running.https {
        lines.extend(addresses("https", https).iter().map(|url| format!("  the same, TLS   {url}/")));
    }
    lines.push(format!("  phones, UDP     {}", running.udp));
    if let Some(admin) = running.admin {
        lines.push(format!("  health, metrics http://{admin}/readyz, /metrics"));
    }
    lines.push(format!("  API key         {}", running.key_file.display()));
    lines.join("\n")
}

/// How a listening address is reached: on this machine, and from its network if it listens there.
pub fn addresses(scheme: &str, listen: SocketAddr) -> Vec<String> {
    if !listen.ip().is_unspecified() {
        return vec![format!("{scheme}://{listen}")];
    }
    let mut urls = vec![format!("{scheme}://localhost:{}", listen.port())];
    urls.extend(network_address().map(|ip| format!("{scheme}://{}", SocketAddr::new(ip, listen.port()))));
    urls
}

/// This machine's address in its network: the one a datagram to elsewhere would leave from. Nothing is sent.
pub fn network_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback() && !ip.is_unspecified()).then_some(ip)
}

const LEFT_BEHIND_AFTER: Duration = Duration::from_secs(1);
