//! `./x soak`: builds for speed, imports the demo's city, and lets the soak run against it.

use std::path::PathBuf;

use anyhow::Result;

use crate::city;
use crate::shell::{cargo, step, target_dir};

#[derive(clap::Args)]
pub struct Options {
    /// How long it runs.
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// An OpenStreetMap extract (.osm.pbf) instead of the demo's city.
    #[arg(long, value_name = "FILE")]
    map: Option<PathBuf>,
    /// Goes to the soak as it is: `--phones`, `--every-s`, `--deliveries`, `--delivery-s`, `--watchers`, `--warm-minutes`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

pub fn run(options: &Options) -> Result<()> {
    let build = ["build", "--release", "--package", "wayfix", "--package", "wayfix-benches"];
    step("build for speed", &mut cargo(&build))?;
    let extract = match &options.map {
        Some(extract) => extract.clone(),
        None => city::find()?,
    };
    let city = target_dir().join("soak.wfm");
    let mut import = cargo(&["run", "--quiet", "--release", "--package", "wayfix", "--", "maps", "import"]);
    step("import the city", import.arg(extract).arg("-o").arg(&city))?;
    let mut soak = cargo(&["run", "--quiet", "--release", "--package", "wayfix-benches", "--bin", "soak", "--"]);
    soak.args(["--minutes", &options.minutes.to_string()]).arg("--map").arg(city).args(&options.rest);
    step("soak", &mut soak)
}
