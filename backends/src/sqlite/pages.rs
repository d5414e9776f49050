//! A checksum for every page of a SQLite file, in a file beside it (`ledger.db.sums`). SQLite checks the frames of its
//! write-ahead log and nothing else: a flipped or an old page of the file itself is read as it is.
//!
//! Pages of the file change only when a checkpoint copies them there, and the writer's thread is the only one that runs
//! checkpoints. The sums are written and synced after a whole checkpoint and before the next write, which is the first
//! that may begin the write-ahead log anew. So at any crash a page either matches its sum or lies in that log, whose
//! frame is then what SQLite reads.
//!
//! The file: `"WFS1" ‖ page size u32`, then for each page the first 8 bytes of its SHA-256; 0 for a page never written.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use daemon::write_private;

use super::Fault;

/// Whether sums were there to check with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Checked {
    NoSums,
    Whole,
}

/// Reads the whole file; 0.25 s for 100 MB once it is in the page cache. What lies in the write-ahead log is read from
/// there and not checked here.
pub(super) fn check(path: &Path) -> Result<Checked, Fault> {
    let in_wal = wal_pages(path).map_err(|error| unavailable(path, &error))?;
    check_all_but(path, &in_wal)
}

/// The same, except for these pages.
pub(super) fn check_all_but(path: &Path, excepted: &BTreeSet<u32>) -> Result<Checked, Fault> {
    match failing(path, excepted, 1)?.as_deref() {
        None => Ok(Checked::NoSums),
        Some([]) => Ok(Checked::Whole),
        Some([number, ..]) => {
            let (file, sums) = (name(path), name(&sums_path(path)));
            Err(Fault::Damaged(format!("page {number} of {file} is not as {sums} says it was written")))
        }
    }
}

/// Every page of the file that is not as its sum says and that the write-ahead log does not have anew. None: there are no
/// sums to tell by.
pub(super) fn all_failing(path: &Path) -> Result<Option<Vec<u32>>, Fault> {
    let in_wal = wal_pages(path).map_err(|error| unavailable(path, &error))?;
    failing(path, &in_wal, usize::MAX)
}

fn failing(path: &Path, excepted: &BTreeSet<u32>, most: usize) -> Result<Option<Vec<u32>>, Fault> {
    let sums_name = sums_path(path);
    let sums = match std::fs::read(&sums_name) {
        Ok(sums) => sums,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unavailable(path, &error)),
    };
    let Some((page_bytes, sums)) = split(&sums) else {
        return Err(Fault::Damaged(format!("{} is no list of checksums", name(&sums_name))));
    };
    let mut file = File::open(path).map_err(|error| unavailable(path, &error))?;
    let (mut page, mut failing) = (vec![0; page_bytes], Vec::new());
    for number in 1.. {
        let read = read_page(&mut file, &mut page).map_err(|error| unavailable(path, &error))?;
        let sum = sums.get(number as usize - 1).copied();
        if failing.len() >= most || (read == 0 && sum.is_none()) {
            break;
        }
        if excepted.contains(&number) || number as usize == LOCK_BYTE / page_bytes + 1 {
            continue;
        }
        let is_same =
            read == page_bytes && sum.is_some_and(|sum| sum == sum_of(&page) || (sum == [0; 8] && is_zero(&page)));
        failing.extend((!is_same).then_some(number));
    }
    Ok(Some(failing))
}

/// The sums of a file that is written to only by checkpoints.
pub(super) struct PageSums {
    path: PathBuf,
    sums: File,
    page_bytes: usize,
}

impl PageSums {
    /// Takes up the sums that are there.
    pub(super) fn open(path: &Path) -> Result<Self, Fault> {
        let failed = |error: std::io::Error| unavailable(path, &error);
        let sums = OpenOptions::new().read(true).write(true).mode(0o600).open(sums_path(path)).map_err(failed)?;
        let mut head = [0; HEAD_BYTES];
        sums.read_exact_at(&mut head, 0).map_err(failed)?;
        let (page_bytes, _) =
            split(&head).ok_or_else(|| Fault::Damaged(format!("{}.sums is no list of checksums", name(path))))?;
        Ok(PageSums { path: path.to_path_buf(), sums, page_bytes })
    }

    /// Makes the sums of the file as it is: every change must have been copied to it.
    pub(super) fn create(path: &Path) -> Result<Self, Fault> {
        let failed = |error: std::io::Error| unavailable(path, &error);
        let mut file = File::open(path).map_err(failed)?;
        let mut head = [0; 18];
        file.read_exact_at(&mut head, 0).map_err(failed)?;
        let page_bytes = match u16::from_be_bytes([head[16], head[17]]) {
            1 => 65_536, // as SQLite writes what 16 bits cannot hold
            bytes => usize::from(bytes),
        };
        let mut sums = MAGIC.to_vec();
        sums.extend((page_bytes as u32).to_be_bytes());
        let mut page = vec![0; page_bytes.max(512)];
        while read_page(&mut file, &mut page).map_err(failed)? > 0 {
            sums.extend(sum_of(&page));
        }
        write_private(&sums_path(path), &sums).map_err(failed)?;
        Self::open(path)
    }

    /// A checkpoint has copied all of the write-ahead log: the pages in it get their new sums. The log is the file that
    /// SQLite itself has open, whatever lies at its path by now.
    pub(super) fn update(&self, wal: &File) -> Result<(), Fault> {
        let failed = |error: std::io::Error| unavailable(&self.path, &error);
        let file = File::open(&self.path).map_err(failed)?;
        let mut page = vec![0; self.page_bytes];
        let pages_end = file.metadata().map_err(failed)?.len() / self.page_bytes as u64;
        for number in pages_in(&read_all(wal).map_err(failed)?) {
            // A page of the log that a later truncation of the file has left out.
            if u64::from(number) > pages_end {
                continue;
            }
            file.read_exact_at(&mut page, u64::from(number - 1) * self.page_bytes as u64).map_err(failed)?;
            self.sums.write_all_at(&sum_of(&page), (HEAD_BYTES + 8 * (number as usize - 1)) as u64).map_err(failed)?;
        }
        self.sums.sync_data().map_err(failed)
    }
}

pub fn sums_path(path: &Path) -> PathBuf {
    with_suffix(path, ".sums")
}

pub fn wal_path(path: &Path) -> PathBuf {
    with_suffix(path, "-wal")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(suffix);
    PathBuf::from(name)
}

fn wal_pages(path: &Path) -> std::io::Result<BTreeSet<u32>> {
    match std::fs::read(wal_path(path)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(BTreeSet::new()),
        bytes => Ok(pages_in(&bytes?)),
    }
}

fn read_all(file: &File) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// The pages that have a frame in the write-ahead log of its present beginning, torn or whole. A frame is its page
/// number u32, size u32, salt u64 and checksum u64, then the page; the log begins with magic u32, version u32, page size
/// u32, sequence u32, salt u64, checksum u64; all big-endian (<https://www.sqlite.org/fileformat2.html#walformat>).
fn pages_in(wal: &[u8]) -> BTreeSet<u32> {
    let mut pages = BTreeSet::new();
    let Some((head, frames)) = wal.split_first_chunk::<32>() else { return pages };
    let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let (page_bytes, salt) = (word(8) as usize, &head[16..24]);
    if !(512..=65_536).contains(&page_bytes) {
        return pages;
    }
    for frame in frames.chunks_exact(24 + page_bytes) {
        if frame[8..16] != *salt {
            break;
        }
        let number = u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]);
        pages.extend((number > 0).then_some(number));
    }
    pages
}

fn split(bytes: &[u8]) -> Option<(usize, &[[u8; 8]])> {
    let (magic, rest) = bytes.split_first_chunk::<4>()?;
    let (page_bytes, rest) = rest.split_first_chunk::<4>()?;
    let page_bytes = u32::from_be_bytes(*page_bytes) as usize;
    let (sums, cut) = rest.as_chunks::<8>();
    (magic == MAGIC && (512..=65_536).contains(&page_bytes) && cut.is_empty()).then_some((page_bytes, sums))
}

/// How much of a page was there.
fn read_page(file: &mut File, page: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < page.len() {
        match file.read(&mut page[filled..])? {
            0 => break,
            bytes => filled += bytes,
        }
    }
    Ok(filled)
}

fn sum_of(page: &[u8]) -> [u8; 8] {
    let mut sum = [0; 8];
    sum.copy_from_slice(&digest(&SHA256, page).as_ref()[..8]);
    sum
}

fn is_zero(page: &[u8]) -> bool {
    page.iter().all(|byte| *byte == 0)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn unavailable(path: &Path, error: &std::io::Error) -> Fault {
    Fault::Unavailable(format!("{}: {error}", path.display()))
}

const MAGIC: &[u8; 4] = b"WFS1";
const HEAD_BYTES: usize = 8;
/// SQLite locks the byte at 1 GiB and never uses its page.
const LOCK_BYTE: usize = 1 << 30;
