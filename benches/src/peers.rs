//! Other engines beside ours, from their Python packages, in an environment that the bench makes for itself. Without
//! Python 3.12 or the packages, their rows are left out, said aloud.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

/// A Python that has the engines and what the scorer needs.
pub struct Peers {
    python: PathBuf,
    scripts: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    Valhalla,
    Osrm,
}

impl Peer {
    pub const ALL: [Peer; 2] = [Peer::Valhalla, Peer::Osrm];

    pub const fn as_str(self) -> &'static str {
        match self {
            Peer::Valhalla => "Valhalla",
            Peer::Osrm => "OSRM",
        }
    }

    const fn script(self) -> &'static str {
        match self {
            Peer::Valhalla => "valhalla_match.py",
            Peer::Osrm => "osrm_match.py",
        }
    }
}

/// What a peer says of itself.
#[derive(Clone, Debug, Deserialize)]
pub struct PeerRun {
    pub version: String,
    pub trips: u64,
    /// Trips that it refused.
    pub failed: u64,
    pub fixes: u64,
    /// CPU time of matching alone.
    pub seconds: f64,
    /// Of making its map, by the wall clock and by CPU time; 0 where it was there.
    pub build_s: f64,
    pub build_cpu_s: f64,
}

impl Peers {
    /// Makes the environment under `folder`, or finds it there.
    pub fn prepare(folder: &Path, python: Option<&Path>) -> anyhow::Result<Self> {
        let scripts = crate::report::workspace().join("benches/peers");
        let peers = Peers { python: folder.join("bin/python"), scripts };
        if peers.is_complete() {
            return Ok(peers);
        }
        let python = match python {
            Some(python) => python.to_path_buf(),
            None => pythons().into_iter().find(|python| is_new_enough(python)).context("no Python 3.12 or newer")?,
        };
        println!("getting the engines' Python packages, into {}", folder.display());
        run(Command::new(python).args(["-m", "venv", "--clear"]).arg(folder)).context("make a Python environment")?;
        let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"];
        run(Command::new(&peers.python).args(install).args(PACKAGES)).context("install the packages")?;
        ensure!(peers.is_complete(), "the packages were installed but cannot be used");
        Ok(peers)
    }

    fn is_complete(&self) -> bool {
        run(Command::new(&self.python).args(["-c", "import valhalla, osrm, numpy"])).is_ok()
    }

    /// Makes a peer's map of an extract in `work`, unless it is there.
    pub fn build(&self, peer: Peer, extract: &Path, work: &Path) -> anyhow::Result<PeerRun> {
        self.call(peer, &[extract, work])
    }

    /// Matches traces and writes the routes.
    pub fn match_traces(
        &self,
        peer: Peer,
        extract: &Path,
        work: &Path,
        traces: &Path,
        every_s: f64,
        routes: &Path,
    ) -> anyhow::Result<PeerRun> {
        self.call(peer, &[extract, work, traces, Path::new(&every_s.to_string()), routes])
    }

    /// Valhalla's routes between pairs of places.
    pub fn route_pairs(&self, extract: &Path, work: &Path, pairs: &Path, routes: &Path) -> anyhow::Result<PeerRun> {
        self.call_script(Peer::Valhalla, "valhalla_routes.py", &[extract, work, pairs, routes])
    }

    fn call(&self, peer: Peer, arguments: &[&Path]) -> anyhow::Result<PeerRun> {
        self.call_script(peer, peer.script(), arguments)
    }

    fn call_script(&self, peer: Peer, script: &str, arguments: &[&Path]) -> anyhow::Result<PeerRun> {
        let printed = run(Command::new(&self.python).arg(self.scripts.join(script)).args(arguments))
            .with_context(|| format!("run {}", peer.as_str()))?;
        let last = printed.trim_end().lines().last().unwrap_or_default();
        serde_json::from_str(last).with_context(|| format!("{} answered {last:?}", peer.as_str()))
    }

    /// Percent of the true routes missed or added, by the scorer.
    pub fn score(&self, scorer: &Path, truth: &Path, routes: &Path) -> anyhow::Result<f64> {
        let printed = run(Command::new(&self.python).arg(scorer).arg(truth).arg(routes)).context("run the scorer")?;
        let after = printed.split("mismatch ").nth(1).and_then(|text| text.split(' ').next());
        let percent = after.and_then(|text| text.parse().ok());
        percent.with_context(|| format!("the scorer answered {printed:?}"))
    }
}

/// What may be called Python here: on the path, and with pyenv, which hides all but the versions in use.
fn pythons() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = ["python3", "python3.12", "python3.13", "python3.14"].map(PathBuf::from).to_vec();
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".pyenv"));
    let root = std::env::var_os("PYENV_ROOT").map(PathBuf::from).or(home);
    let versions = root.and_then(|root| std::fs::read_dir(root.join("versions")).ok());
    let mut by_pyenv: Vec<PathBuf> =
        versions.into_iter().flatten().flatten().map(|version| version.path().join("bin/python3")).collect();
    by_pyenv.sort();
    found.extend(by_pyenv);
    found
}

fn is_new_enough(python: &Path) -> bool {
    run(Command::new(python).args(["-c", "import sys, venv; sys.exit(sys.version_info < (3, 12))"])).is_ok()
}

/// What a program printed; what it complained of, where it failed.
fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().context("start it")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}", output.status, said.trim_end().lines().last().unwrap_or("it said nothing"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

const PACKAGES: [&str; 3] = ["pyvalhalla", "osrm-bindings", "numpy"];
