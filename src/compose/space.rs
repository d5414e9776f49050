//! Whether the disk has room enough to begin: an installation that runs out of it while its stores are being made would
//! leave a half-made folder and a process without a port.

use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::sys::statvfs::statvfs;
use tracing::warn;

/// Refuses to make an installation on a disk without room for it. One that exists starts with whatever is left: it
/// answers with 503 what it cannot write, and goes on by itself when there is room again.
pub fn check(data: &Path, is_new: bool) -> Result<()> {
    let disk = statvfs(data).with_context(|| format!("ask how much room {} has", data.display()))?;
    let free_bytes = disk.blocks_available() as u64 * disk.fragment_size() as u64;
    if free_bytes >= FREE_BYTES_MIN {
        return Ok(());
    }
    let (free_mb, needed_mb) = (free_bytes >> 20, FREE_BYTES_MIN >> 20);
    if is_new {
        bail!("{} has {free_mb} MiB of free room, a new installation needs {needed_mb} MiB", data.display());
    }
    warn!(free_mb, needed_mb, "the disk is nearly full, what cannot be written is not acknowledged");
    Ok(())
}

/// The log's first journal (64 MiB), the next one while the first is copied to tables, and as much again for tables,
/// databases with their write-ahead logs, and the first snapshots.
const FREE_BYTES_MIN: u64 = 256 << 20;
