//! `wayfix demo`: a city, a server, and a fleet of its own that drives against it as phones would, over real sockets.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use daemon::Signals;
use maps::import::ImportOptions;
use tokio::process::{Child, Command};

use crate::compose::{Running, Whole};
use crate::config::Config;
use crate::maps::import::import;
use crate::settings::Settings;
use crate::{pages, up};

#[derive(clap::Args)]
pub struct Options {
    /// An OpenStreetMap extract (.osm.pbf) or a map file (.wfm).
    #[arg(long, value_name = "FILE")]
    map: PathBuf,
    /// Where the demo's state lies.
    #[arg(long, default_value = "wayfix-demo", value_name = "FOLDER")]
    data: PathBuf,
    /// Recorded trips to drive instead of simulated ones: GPX, the taxi CSV, or JSON lines.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    #[arg(long, default_value_t = 25)]
    drivers: u32,
    #[arg(long, default_value = "0.0.0.0:8080", value_name = "ADDRESS")]
    http: SocketAddr,
    /// Phones tell a page their position only over TLS.
    #[arg(long, default_value = "0.0.0.0:8443", value_name = "ADDRESS")]
    https: SocketAddr,
}

pub fn run(options: &Options) -> Result<()> {
    let map = map_file(options)?;
    if let Some(trace) = &options.trace {
        is_on_map(trace, &map)?;
    }
    daemon::huge_pages::do_without();
    let config = config(options, &map)?;
    daemon::logging::start(config.logging, "warn");
    let signals = Signals::listen()?;
    up::run_to_end(async {
        let Some(whole) = Whole::start(config, &signals).await? else { return Ok(()) };
        let key = std::fs::read_to_string(&whole.running.key_file).context("read the tenant's key")?;
        let mut fleet = fleet(options, &map, &whole.running)?;
        eprintln!("{}", invitation(options, &whole.running, key.trim()));
        let outcome = whole.until_stopped(told_to_stop_or_fleet_over(&signals, &mut fleet)).await;
        fleet.kill().await.ok();
        outcome
    })
}

/// Recorded trips come to an end; the server stays for those who look at it.
async fn told_to_stop_or_fleet_over(signals: &Signals, fleet: &mut Child) -> Result<()> {
    tokio::select! {
        () = signals.stop.cancelled() => return Ok(()),
        ended = fleet.wait() => eprintln!("the fleet ended ({}); Ctrl-C stops the server", ended.context("wait for the fleet")?),
    }
    signals.stop.cancelled().await;
    Ok(())
}

fn config(options: &Options, map: &Path) -> Result<Config> {
    let mut settings = Settings::load(None)?;
    settings.data.clone_from(&options.data);
    settings.map = Some(map.to_path_buf());
    settings.http.listen = Some(options.http);
    settings.https.listen = Some(options.https);
    settings.edge.udp_listen = SocketAddr::new(options.http.ip(), settings.edge.udp_listen.port());
    Ok(settings.check()?)
}

/// Imports an extract unless that was done before; a map file is taken as it is.
fn map_file(options: &Options) -> Result<PathBuf> {
    if options.map.extension().is_some_and(|extension| extension == "wfm") {
        return Ok(options.map.clone());
    }
    std::fs::create_dir_all(&options.data).with_context(|| format!("make {}", options.data.display()))?;
    let name = options.map.file_name().context("the map is a file")?.to_string_lossy();
    let map = options.data.join(format!("{}.wfm", name.trim_end_matches(".osm.pbf")));
    if changed(&map) >= changed(&options.map) && maps::Graph::open(&map).is_ok() {
        return Ok(map);
    }
    let imported = import(&options.map, &map, &ImportOptions::default())?;
    eprintln!("{imported}");
    Ok(map)
}

/// Trips elsewhere would be dots on nothing.
fn is_on_map(trace: &Path, map: &Path) -> Result<()> {
    let trips = maps::traces::read_file(trace)?;
    let bbox = maps::Graph::open(map).with_context(|| format!("open the map {}", map.display()))?.bbox();
    let mut fixes = trips.iter().flat_map(|trip| &trip.fixes);
    if fixes.any(|fix| bbox.contains(fix.position)) {
        return Ok(());
    }
    let place = |p: protocol::Position| format!("{:.3},{:.3}", p.lat(), p.lon());
    let (low, high) = (place(bbox.south_west), place(bbox.north_east));
    bail!("{} lies nowhere on the map, which goes from {low} to {high}: name another with --map", trace.display())
}

fn changed(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|meta| meta.modified()).ok()
}

/// A process of its own: nothing is injected behind the edge.
fn fleet(options: &Options, map: &Path, running: &Running) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe().context("find this binary")?);
    match &options.trace {
        Some(trace) => command.arg("replay").arg(trace).args(["--trips", &options.drivers.to_string(), "--again"]),
        None => {
            command.arg("sim").arg("--map").arg(map).args(["--drivers", &options.drivers.to_string()]).args(VEHICLES)
        }
    };
    let http = running.http.context("the demo serves plain HTTP too")?;
    let api = format!("http://127.0.0.1:{}", http.port());
    command.args(["--api", &api]).arg("--key-file").arg(&running.key_file);
    command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).spawn().context("start the fleet")
}

fn invitation(options: &Options, running: &Running, key: &str) -> String {
    let mut lines =
        vec![String::new(), String::from("  Drivers are on their way. Open the dispatcher's map:"), String::new()];
    for url in running.http.map(|http| up::addresses("http", http)).unwrap_or_default() {
        lines.push(format!("    {url}/#key={key}"));
    }
    lines.push(String::new());
    for url in up::addresses("https", options.https) {
        lines.push(format!(
            "  With TLS, for phones that drive: {url}/ (its certificate is its own; browsers warn once)"
        ));
    }
    if !pages::has_packages() {
        lines.push(String::from(
            "  The pages' packages were not there when this was built: run ./x web and build again.",
        ));
    }
    lines.push(String::from("  Ctrl-C stops it all; the next start goes on where it was."));
    lines.join("\n")
}

/// As in a town: most by car, some not.
const VEHICLES: [&str; 2] = ["--vehicles", "car,bicycle,car,moped"];
