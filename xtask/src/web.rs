//! The pages' packages: fetched by the ordinary npm client, by lock file, and the few files of them that a browser
//! loads laid where the binary embeds them from.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell::{apt_install, is_fresh, is_there, step};

/// Fetches what is missing; does nothing when all is there.
pub fn fetch() -> Result<()> {
    let web = crate::root().join("web");
    let vendor = web.join("vendor");
    let lock = web.join("package-lock.json");
    let stamp = vendor.join(".fetched");
    if is_fresh(&stamp, &lock) {
        return Ok(());
    }
    if !is_there("npm") {
        apt_install("npm, to fetch the map renderer of the pages", &["nodejs", "npm"])?;
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel", "error"]).current_dir(&web);
    step("the pages' packages", &mut npm)?;

    let packages = web.join("node_modules");
    fs::create_dir_all(&vendor).context("make web/vendor")?;
    for (from, name) in FILES {
        let from = packages.join(from);
        if !from.exists() {
            bail!("the pages' packages have no {}", from.display());
        }
        fs::copy(&from, vendor.join(name)).with_context(|| format!("copy {name}"))?;
    }
    fs::write(&stamp, "").context("mark the pages' packages as fetched")
}

/// What a browser loads, and the licence that must go with it.
const FILES: &[(&str, &str)] = &[
    ("maplibre-gl/dist/maplibre-gl.mjs", "maplibre-gl.mjs"),
    ("maplibre-gl/dist/maplibre-gl-shared.mjs", "maplibre-gl-shared.mjs"),
    ("maplibre-gl/dist/maplibre-gl-worker.mjs", "maplibre-gl-worker.mjs"),
    ("maplibre-gl/dist/maplibre-gl.css", "maplibre-gl.css"),
    ("maplibre-gl/LICENSE.txt", "maplibre-gl.LICENSE.txt"),
    ("qrcode-generator/dist/qrcode.mjs", "qrcode.mjs"),
];
