//! `./x bench NAME`: benchmarks are programs of their own, built for speed.

use anyhow::{Result, bail};

use crate::shell::{cargo, step};

pub fn run(name: &str, arguments: &[String]) -> Result<()> {
    let source = crate::root().join(format!("benches/src/bin/{name}.rs"));
    if !source.exists() {
        bail!("no benchmark is called {name}; see benches/README.md");
    }
    let build = ["build", "--release", "--package", "wayfix", "--package", "wayfix-benches"];
    step("build for speed", &mut cargo(&build))?;
    let mut bench = cargo(&["run", "--quiet", "--release", "--package", "wayfix-benches", "--bin", name, "--"]);
    step(name, bench.args(arguments))
}
