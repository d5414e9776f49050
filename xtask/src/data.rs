//! The data of the truth tests: real cities' extracts and real traces, too large for this repository. It lies in the folder
//! that `WAYFIX_DATA` names, or beside the checkout in `../shared/data`. Tests that need it skip, aloud, where neither is
//! there; where `WAYFIX_DATA` is set they fail instead.

use std::path::PathBuf;

use anyhow::{Result, bail};

/// `./x data`: says where it lies, and fails where something of it is missing.
pub fn check() -> Result<()> {
    let folder = folder();
    let missing: Vec<&str> = FILES.iter().copied().filter(|file| !folder.join(file).is_file()).collect();
    if !missing.is_empty() {
        bail!("{} lacks {}: name another folder with WAYFIX_DATA", folder.display(), missing.join(", "));
    }
    println!("{}", folder.display());
    Ok(())
}

/// Where it lies, or would.
pub fn folder() -> PathBuf {
    std::env::var_os("WAYFIX_DATA").map_or_else(|| crate::root().join("../shared/data"), PathBuf::from)
}

/// What tests and benchmarks read of it.
const FILES: [&str; 6] = [
    "maps/helsinki.osm.pbf",
    "maps/malta.osm.pbf",
    "maps/monaco.osm.pbf",
    "maps/porto.osm.pbf",
    "traces/porto_taxi.csv",
    "traces/porto_truth.jsonl",
];
