//! Maps for tests: imported once by the built binary, and shared by all tests of a run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

use crate::harness::WAYFIX;
use crate::shared_data::shared;

/// The demo's city where `./x test` found one, else the generated town.
pub fn demo_city() -> Result<PathBuf> {
    static MAP: OnceLock<PathBuf> = OnceLock::new();
    once(&MAP, || {
        let folder = folder()?;
        let extract = match std::env::var_os("WAYFIX_DEMO_CITY") {
            Some(city) => PathBuf::from(city),
            None => town_extract(&folder)?,
        };
        import(&extract, &folder.join("city.wfm"))
    })
}

pub fn town() -> Result<PathBuf> {
    static MAP: OnceLock<PathBuf> = OnceLock::new();
    once(&MAP, || {
        let folder = folder()?;
        import(&town_extract(&folder)?, &folder.join("town.wfm"))
    })
}

/// The town's streets on a map that shows nothing else: another version of it.
pub fn town_without_buildings() -> Result<PathBuf> {
    static MAP: OnceLock<PathBuf> = OnceLock::new();
    once(&MAP, || {
        let folder = folder()?;
        import_with(&town_extract(&folder)?, &folder.join("town-plain.wfm"), &["--no-buildings"])
    })
}

/// None, aloud, where the shared data is not there.
pub fn porto() -> Result<Option<PathBuf>> {
    static MAP: OnceLock<PathBuf> = OnceLock::new();
    let Some(extract) = shared("maps/porto.osm.pbf") else { return Ok(None) };
    once(&MAP, || import(&extract, &folder()?.join("porto.wfm"))).map(Some)
}

fn once(cell: &OnceLock<PathBuf>, make: impl FnOnce() -> Result<PathBuf>) -> Result<PathBuf> {
    static MAKING: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one_at_a_time = MAKING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(path) = cell.get() {
        return Ok(path.clone());
    }
    let path = make()?;
    Ok(cell.get_or_init(|| path).clone())
}

fn folder() -> Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("wayfix-maps-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn town_extract(folder: &Path) -> Result<PathBuf> {
    let extract = folder.join("town.osm.pbf");
    run(&["maps", "town", "-o", extract.to_str().context("a path in UTF-8")?])?;
    Ok(extract)
}

fn import(extract: &Path, map: &Path) -> Result<PathBuf> {
    import_with(extract, map, &[])
}

fn import_with(extract: &Path, map: &Path, more: &[&str]) -> Result<PathBuf> {
    let (from, to) = (extract.to_str().context("a path in UTF-8")?, map.to_str().context("a path in UTF-8")?);
    run(&[&["maps", "import", from, "-o", to], more].concat())?;
    Ok(map.to_path_buf())
}

fn run(arguments: &[&str]) -> Result<()> {
    let output = Command::new(WAYFIX).args(arguments).output()?;
    if !output.status.success() {
        bail!("wayfix {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
