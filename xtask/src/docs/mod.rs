//! `./x docs`: the pages that are made from the product itself, so that they say what is: `docs/settings.md` from the
//! doc comments of the settings and the defaults that the binary prints, `docs/metrics.md` from what a server exposes.

mod metrics;
mod settings;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::shell::{cargo, step, target_dir};

#[derive(clap::Args)]
pub struct Options {
    /// Writes nothing and fails where a page is not as it would be written.
    #[arg(long)]
    check: bool,
}

pub fn run(options: &Options) -> Result<()> {
    step("the binary", &mut cargo(&["build", "--quiet", "--package", "wayfix", "--locked"]))?;
    let wayfix = target_dir().join("debug/wayfix");
    let pages = [("settings.md", settings::page(&wayfix)?), ("metrics.md", metrics::page(&wayfix)?)];
    for (name, text) in pages {
        let path = crate::root().join("docs").join(name);
        if !options.check {
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            continue;
        }
        if fs::read_to_string(&path).unwrap_or_default() != text {
            bail!("docs/{name} is not fresh: run ./x docs");
        }
    }
    Ok(())
}

/// A line of a table: bars would end the cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Where the sources lie.
fn sources() -> Vec<PathBuf> {
    let folders = ["src", "daemon", "backends", "edge", "processor", "gateway", "maps", "protocol"];
    let mut found: Vec<PathBuf> = Vec::new();
    let mut waiting: Vec<PathBuf> = folders.iter().map(|name| crate::root().join(name)).collect();
    while let Some(path) = waiting.pop() {
        if let Ok(entries) = fs::read_dir(&path) {
            waiting.extend(entries.filter_map(|entry| entry.ok().map(|entry| entry.path())));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}
