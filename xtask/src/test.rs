//! `./x test`: every check there is, in the order in which they are likely to fail early.

use std::process::Command;

use anyhow::Result;

use crate::shell::{apt_install, cargo, is_there, step};
use crate::{city, docs, web};

#[derive(clap::Args)]
pub struct Options {
    /// Goes to `cargo test`: a package or a test's name.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

pub fn run(options: &Options) -> Result<()> {
    web::fetch()?;
    prepare_browser()?;
    prepare_faketime()?;
    step("format", &mut cargo(&["fmt", "--all", "--check"]))?;
    let lints = ["clippy", "--quiet", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    step("lints", &mut cargo(&lints))?;
    step("build", &mut cargo(&["build", "--quiet", "--workspace", "--all-targets", "--locked"]))?;
    docs::run(&docs::Options { check: true })?;
    let city = city::find()?;
    // All targets, but not the examples in comments: there are none that run, and looking for them takes a minute.
    let mut tests = cargo(&["test", "--workspace", "--all-targets", "--locked", "--no-fail-fast"]);
    tests.env("WAYFIX_DEMO_CITY", city).env("WAYFIX_TESTS_NEED_ALL", "1").args(&options.rest);
    step("tests", &mut tests)?;
    let mut documents = cargo(&["doc", "--quiet", "--workspace", "--no-deps", "--locked"]);
    step("documents", documents.env("RUSTDOCFLAGS", "-D warnings"))
}

/// A server is given clocks that are set while it runs.
fn prepare_faketime() -> Result<()> {
    if is_there("faketime") { Ok(()) } else { apt_install("a library to set clocks with", &["faketime"]) }
}

/// The pages are opened in a real browser.
fn prepare_browser() -> Result<()> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    if names.iter().any(|name| is_there(name)) {
        return Ok(());
    }
    apt_install("a browser, to open the pages in", &["chromium", "fonts-dejavu-core"])?;
    step("the browser", Command::new("chromium").arg("--version"))
}
