//! Bytes of a file, mapped rather than read: a city's graph is then there at once and shared by every process on the
//! machine. This is the only unsafe code in the crate.

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;
use zerocopy::IntoBytes;

/// Bytes that start on an address divisible by eight, so that records can be read in place.
pub enum Mapping {
    File(Mmap),
    Owned(Vec<u64>, usize),
}

impl Mapping {
    /// Maps a whole file.
    pub fn open(path: &Path) -> io::Result<Mapping> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into()); // the kernel would say that there is no such device
        }
        if metadata.len() == 0 {
            return Ok(Mapping::of_bytes(&[])); // an empty file cannot be mapped
        }
        map(&file).map(Mapping::File)
    }

    /// A copy of bytes that lie in memory.
    pub fn of_bytes(bytes: &[u8]) -> Mapping {
        let mut words = vec![0_u64; bytes.len().div_ceil(8)];
        words.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
        Mapping::Owned(words, bytes.len())
    }

    pub fn bytes(&self) -> &[u8] {
        match self {
            Mapping::File(mapped) => mapped,
            Mapping::Owned(words, len) => &words.as_bytes()[..*len],
        }
    }
}

/// What could go wrong is that somebody changes or cuts the file while it is mapped: a changed byte could be read as a
/// wrong number (every index is checked again where it is used, so that is a wrong answer or a panic, never a wild
/// read), a cut one kills the process. We only ever write a map under another name and rename it into place, so that
/// a mapped file's bytes never change.
#[expect(unsafe_code, reason = "mapping a file is unsafe by nature; see above why it is sound enough")]
fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: map files are immutable once they bear their name.
    unsafe { Mmap::map(file) }
}
