//! What commands write: words to standard output, and files, which must not cost anybody another file.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use maps::speeds::SpeedTable;

/// Standard output. Whoever reads it may stop, as `head` does: what is written then goes nowhere, and all else that
/// the command does is done. Whatever else keeps it from being written, as a full disk, is an error.
pub struct Standard;

impl Write for Standard {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        settled(io::stdout().write(bytes), bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        settled(io::stdout().flush(), ())
    }
}

fn settled<T>(written: io::Result<T>, if_nobody_reads: T) -> io::Result<T> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(if_nobody_reads),
        Err(error) => Err(io::Error::new(error.kind(), format!("standard output cannot be written: {error}"))),
        Ok(written) => Ok(written),
    }
}

/// What a file is going to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Map,
    Archive,
    Extract,
    Table,
    Page,
    Routes,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Kind::Map => "a map",
            Kind::Archive => "a PMTiles archive",
            Kind::Extract => "an extract",
            Kind::Table => "a table of speeds",
            Kind::Page => "a page",
            Kind::Routes => "JSON",
        }
    }

    /// Whether another file takes the place of what is there, whatever that is: a device, too.
    const fn replaces(self) -> bool {
        match self {
            Kind::Map | Kind::Archive | Kind::Extract => true,
            Kind::Table | Kind::Page | Kind::Routes => false,
        }
    }

    /// Whether a file that is there is of this kind.
    fn is(self, file: &mut File) -> io::Result<bool> {
        if self == Kind::Table {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            return Ok(SpeedTable::is_one(&bytes));
        }
        let mut start = Vec::new();
        file.take(START_BYTES).read_to_end(&mut start)?;
        Ok(match self {
            Kind::Map => start.starts_with(b"wayfix m"),
            Kind::Archive => start.starts_with(b"PMTiles"),
            Kind::Extract => start.get(4..).is_some_and(|rest| rest.starts_with(b"\x0a\x09OSMHeader")),
            Kind::Table => false,
            Kind::Page => start.to_ascii_lowercase().starts_with(b"<!doctype html"),
            Kind::Routes => start.starts_with(b"{"),
        })
    }
}

/// Refuses to write over what a command reads, and over what is something else than it is going to write. Files that
/// are empty may be anything.
pub fn check(output: &Path, kind: Kind, inputs: &[&Path]) -> Result<()> {
    let there = match fs::metadata(output) {
        Ok(there) => there,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("look at {}", output.display())),
    };
    for input in inputs {
        let is_same = |input: fs::Metadata| (input.dev(), input.ino()) == (there.dev(), there.ino());
        if there.is_file() && fs::metadata(input).is_ok_and(is_same) {
            bail!("{} is what is read, too: it would be lost; write to another file", output.display());
        }
    }
    if there.is_dir() {
        bail!("{} is a folder", output.display());
    }
    if !there.is_file() {
        if kind.replaces() {
            bail!("{} is no file that {} could take the place of", output.display(), kind.as_str());
        }
        return Ok(());
    }
    let mut file = File::open(output).with_context(|| format!("look at {}", output.display()))?;
    if there.len() > 0 && !kind.is(&mut file).with_context(|| format!("look at {}", output.display()))? {
        bail!("{} is there and is not {}: remove it, or write to another file", output.display(), kind.as_str());
    }
    Ok(())
}

const START_BYTES: u64 = 64;
