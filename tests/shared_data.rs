//! Where the data of the truth tests lies: real cities and real traces, too large for this repository. `WAYFIX_DATA` names
//! the folder; without it `../shared/data` is tried. The tests of several crates include this file.

use std::path::{Path, PathBuf};

/// A file of the shared data. Where `WAYFIX_DATA` is set it must be there; otherwise None is said aloud.
pub fn shared(path: &str) -> Option<PathBuf> {
    let named = std::env::var_os("WAYFIX_DATA").map(PathBuf::from);
    let file = named.clone().unwrap_or_else(beside_the_checkout).join(path);
    if file.exists() {
        return Some(file);
    }
    assert!(named.is_none(), "WAYFIX_DATA is set, and there is no {}", file.display());
    eprintln!("SKIPPED: there is no {}; WAYFIX_DATA names where it lies", file.display());
    None
}

fn beside_the_checkout() -> PathBuf {
    let of_crate = Path::new(env!("CARGO_MANIFEST_DIR"));
    let top = of_crate.ancestors().find(|folder| folder.join("Cargo.lock").exists()).unwrap_or(of_crate);
    top.join("../shared/data")
}
