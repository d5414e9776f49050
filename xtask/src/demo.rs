//! `./x demo`: builds, finds a city, and hands over to `wayfix demo`, which runs the server and a fleet of its own.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::shell::{cargo, step, target_dir};
use crate::{city, web};

#[derive(clap::Args)]
pub struct Options {
    /// An OpenStreetMap extract (.osm.pbf) to show instead of the demo's city.
    #[arg(long, value_name = "FILE")]
    map: Option<PathBuf>,
    /// What to drive instead of simulated drivers: GPX, the taxi CSV or truth trips.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Goes to `wayfix demo` as it is.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

pub fn run(options: &Options) -> Result<()> {
    if let Err(error) = web::fetch() {
        eprintln!("x: the pages will show no map: {error:#}");
    }
    step("build", &mut cargo(&["build", "--package", "wayfix"]))?;
    let map = match &options.map {
        Some(map) => map.clone(),
        None => city::find()?,
    };
    let mut demo = Command::new(target_dir().join("debug/wayfix"));
    demo.arg("demo").arg("--map").arg(map).arg("--data").arg(crate::root().join("demo/data"));
    if let Some(trace) = &options.trace {
        demo.arg("--trace").arg(trace);
    }
    demo.args(&options.rest);
    let error = demo.exec();
    Err(error).context("run wayfix demo")
}
