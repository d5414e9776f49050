//! Fleets as processes of their own, and what they leave behind.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::harness::{Server, WAYFIX};

/// A running `wayfix sim` or `wayfix replay`.
pub struct Sim {
    child: Child,
    folder: PathBuf,
}

/// Where a driver truly was.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Truth {
    pub at_ms: i64,
    pub delivery: Option<u64>,
    pub lat: f64,
    pub lng: f64,
    pub leg: Option<Leg>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Leg {
    ToPickup,
    AtPickup,
    ToDropOff,
    Arriving,
    AtDropOff,
}

/// A fix that an edge has said to be safe.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Deserialize)]
pub struct Acked {
    pub driver: u64,
    pub measured_ds: i64,
    pub lat_e6: i64,
    pub lon_e6: i64,
}

impl Sim {
    pub fn start(server: &Server, map: &Path, more: &[&str]) -> Result<Sim> {
        let map = map.to_str().context("a path in UTF-8")?;
        Sim::launch(server, &[&["sim", "--map", map], more].concat())
    }

    pub fn replay(server: &Server, traces: &Path, more: &[&str]) -> Result<Sim> {
        let traces = traces.to_str().context("a path in UTF-8")?;
        Sim::launch(server, &[&["replay", traces], more].concat())
    }

    fn launch(server: &Server, arguments: &[&str]) -> Result<Sim> {
        let folder = server.folder().to_path_buf();
        let mut command = Command::new(WAYFIX);
        command.args(arguments).args(["--api", &server.url()]);
        command.arg("--key-file").arg(server.data().join("tenant.key"));
        command.arg("--acked").arg(folder.join("acked.jsonl")).arg("--truth").arg(folder.join("truth.jsonl"));
        if let Some((factor, origin_ms)) = server.scale {
            command.args(["--clock-factor", &factor.to_string(), "--clock-origin-ms", &origin_ms.to_string()]);
        }
        let output = std::fs::File::create(folder.join("fleet.json"))?;
        let errors = std::fs::File::create(folder.join("fleet.log"))?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors).kill_on_drop(true);
        Ok(Sim { child: command.spawn()?, folder })
    }

    /// Tells it to stop, as an operator would, and waits until its phones have brought home what they hold.
    pub async fn end(mut self) -> Result<()> {
        let id = self.child.id().context("the fleet runs")?;
        Command::new("kill").args(["-TERM", &id.to_string()]).status().await?;
        self.wait(Duration::from_secs(90)).await.map(drop)
    }

    /// Waits until it has driven all it was told to; answers its report.
    pub async fn wait(&mut self, within: Duration) -> Result<Value> {
        let status = tokio::time::timeout(within, self.child.wait()).await.context("the fleet does not end")??;
        if !status.success() {
            bail!("the fleet failed ({status}): {}", std::fs::read_to_string(self.folder.join("fleet.log"))?);
        }
        Ok(serde_json::from_str(&std::fs::read_to_string(self.folder.join("fleet.json"))?)?)
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_none())
    }
}

/// Lines of JSON; the last may be cut short while the fleet still writes.
pub fn lines<T: DeserializeOwned>(file: &Path) -> Result<Vec<T>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// Where each delivery's driver truly was, in order of time.
pub fn truth_by_delivery(server: &Server) -> Result<BTreeMap<u64, Vec<Truth>>> {
    let mut by_delivery: BTreeMap<u64, Vec<Truth>> = BTreeMap::new();
    for truth in lines::<Truth>(&server.folder().join("truth.jsonl"))? {
        if let Some(delivery) = truth.delivery {
            by_delivery.entry(delivery).or_default().push(truth);
        }
    }
    by_delivery.values_mut().for_each(|truths| truths.sort_by_key(|truth| truth.at_ms));
    Ok(by_delivery)
}

/// The true place at a moment, between the two known around it.
pub fn place_at(truths: &[Truth], at_ms: i64) -> Option<(f64, f64)> {
    let after = truths.partition_point(|truth| truth.at_ms < at_ms);
    let b = truths.get(after)?;
    if b.at_ms == at_ms {
        return Some((b.lat, b.lng));
    }
    let a = truths.get(after.checked_sub(1)?)?;
    let share = (at_ms - a.at_ms) as f64 / (b.at_ms - a.at_ms) as f64;
    Some((a.lat + (b.lat - a.lat) * share, a.lng + (b.lng - a.lng) * share))
}

pub fn distance_m((lat_a, lng_a): (f64, f64), (lat_b, lng_b): (f64, f64)) -> f64 {
    let (north, east) = ((lat_b - lat_a) * 111_195.0, (lng_b - lng_a) * 111_195.0 * lat_a.to_radians().cos());
    north.hypot(east)
}
