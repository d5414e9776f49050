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
    /// Writes nothing and fails where the page of settings is not as it would be written. The page of metrics is left
    /// out: what a server exposes depends on what it has met since it began.
    #[arg(long)]
    pub check: bool,
}

pub fn run(options: &Options) -> Result<()> {
    step("the binary", &mut cargo(&["build", "--quiet", "--workspace", "--all-targets", "--locked"]))?;
    let wayfix = target_dir().join("debug/wayfix");
    let settings = settings::page(&wayfix)?;
    let path = |name: &str| crate::root().join("docs").join(name);
    if options.check {
        return match fs::read_to_string(path("settings.md")).unwrap_or_default() == settings {
            true => Ok(()),
            false => bail!("docs/settings.md is not fresh: run ./x docs"),
        };
    }
    for (name, text) in [("settings.md", settings), ("metrics.md", metrics::page(&wayfix)?)] {
        fs::write(path(name), text).with_context(|| format!("write docs/{name}"))?;
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
