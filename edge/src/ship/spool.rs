//! The spool: a ring in one preallocated file that keeps live fixes while the log is away. Preallocated, because the log
//! is often away for want of disk. When it is full the oldest shipment makes way: the newest positions are worth most,
//! and whoever sent the old ones holds them still, because nothing in here was acknowledged. A mark speaks of what was
//! kept, not of what made way.
//!
//! It survives the death of the process (the bytes are the kernel's then), and is not promised to survive a power cut,
//! so nothing waits for the disk. Layout: one page of header (where the oldest frame lies), then frames: `WFSP`, body
//! length, CRC-32 of all that follows, frame number, body. A frame never wraps; a zero length sends the reader to the
//! begin. After a crash the frames are walked from the header's place for as long as their numbers go on.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::posix_fallocate;

#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error("spool {path} cannot be made or opened")]
    Open { path: PathBuf, source: io::Error },
    #[error("the spool cannot be read or written")]
    File(#[from] io::Error),
    #[error("a frame of the spool is damaged")]
    Damaged,
}

/// Names a frame for as long as it is in the spool.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct FrameNumber(u64);

/// The ring. All calls may touch the disk.
#[derive(Debug)]
pub struct Spool {
    file: File,
    /// Bytes for frames, after the header.
    capacity: u64,
    frames: VecDeque<Frame>,
    next_number: u64,
    /// Where the next frame goes, from the end of the header.
    head: u64,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    number: u64,
    at: u64,
    body_len: u32,
}

impl Frame {
    fn end(&self) -> u64 {
        self.at + FRAME_HEADER_BYTES as u64 + u64::from(self.body_len)
    }
}

impl Spool {
    /// Opens the ring at `path`, making one of `bytes` if there is none, or if the one there is empty and of another
    /// size.
    pub fn open(path: &Path, bytes: u64) -> Result<Self, SpoolError> {
        let failed = |source| SpoolError::Open { path: path.to_path_buf(), source };
        let mut options = OpenOptions::new();
        let file =
            options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path).map_err(failed)?;
        let found = file.metadata().map_err(failed)?.len();
        let is_ours = found > HEADER_BYTES && has_magic(&file).map_err(failed)?;
        if !is_ours {
            return Self::make(file, bytes).map_err(failed);
        }
        let spool = Self::recover(file, found - HEADER_BYTES)?;
        if spool.frames.is_empty() && found != bytes {
            return Self::make(spool.file, bytes).map_err(failed);
        }
        Ok(spool)
    }

    fn make(file: File, bytes: u64) -> io::Result<Self> {
        file.set_len(0)?;
        posix_fallocate(&file, 0, i64::try_from(bytes).map_err(io::Error::other)?)?;
        let spool = Spool { file, capacity: bytes - HEADER_BYTES, frames: VecDeque::new(), next_number: 1, head: 0 };
        spool.write_header()?;
        spool.file.sync_all()?;
        Ok(spool)
    }

    fn recover(file: File, capacity: u64) -> Result<Self, SpoolError> {
        let mut header = [0; 24];
        file.read_exact_at(&mut header, 0)?;
        let word = |at: usize| u64::from_be_bytes(std::array::from_fn(|i| header[at + i]));
        let mut spool = Spool { file, capacity, frames: VecDeque::new(), next_number: word(16), head: word(8) };
        let mut has_wrapped = false;
        while let Some(found) = spool.probe(spool.head, spool.next_number)? {
            match found {
                Probe::Frame(frame) => {
                    spool.head = frame.end();
                    spool.next_number += 1;
                    spool.frames.push_back(frame);
                }
                Probe::Wrap if has_wrapped => break,
                Probe::Wrap => {
                    has_wrapped = true;
                    spool.head = 0;
                }
            }
        }
        Ok(spool)
    }

    /// What stands at `at`, if it is the frame with this number or the sign to go on at the begin.
    fn probe(&self, at: u64, number: u64) -> Result<Option<Probe>, SpoolError> {
        if at + FRAME_HEADER_BYTES as u64 > self.capacity {
            return Ok((at <= self.capacity).then_some(Probe::Wrap));
        }
        let mut header = [0; FRAME_HEADER_BYTES];
        self.file.read_exact_at(&mut header, HEADER_BYTES + at)?;
        let body_len = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        if header[..4] != *FRAME_MAGIC {
            return Ok(None);
        }
        if body_len == 0 {
            let is_ours = header[12..20] == number.to_be_bytes();
            return Ok(is_ours.then_some(Probe::Wrap));
        }
        let frame = Frame { number, at, body_len };
        if frame.end() > self.capacity || header[12..20] != number.to_be_bytes() {
            return Ok(None);
        }
        match self.read_frame(&frame) {
            Ok(_) => Ok(Some(Probe::Frame(frame))),
            Err(SpoolError::Damaged) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub fn len_bytes(&self) -> u64 {
        self.frames.iter().map(|frame| u64::from(frame.body_len) + FRAME_HEADER_BYTES as u64).sum()
    }

    /// Puts a shipment behind all others, and names those that made way for it. A shipment larger than the ring makes
    /// way itself.
    pub fn push(&mut self, body: &[u8]) -> Result<(Option<FrameNumber>, Vec<FrameNumber>), SpoolError> {
        let wanted = FRAME_HEADER_BYTES as u64 + body.len() as u64;
        let Ok(body_len) = u32::try_from(body.len()) else { return Ok((None, Vec::new())) };
        if wanted > self.capacity || body.is_empty() {
            return Ok((None, Vec::new()));
        }
        let mut evicted = Vec::new();
        if self.head + wanted > self.capacity {
            // Those between here and the end are the oldest; they go first, so that order is kept.
            while self.frames.front().is_some_and(|oldest| oldest.at >= self.head) {
                self.evict(&mut evicted)?;
            }
            if self.head + FRAME_HEADER_BYTES as u64 <= self.capacity {
                self.write_frame_header(self.head, 0, 0, self.next_number)?;
            }
            self.head = 0;
            if self.frames.is_empty() {
                // The walk after a crash would begin at the sign, which later frames write over.
                self.write_header()?;
            }
        }
        let end = self.head + wanted;
        while self.frames.front().is_some_and(|oldest| oldest.at >= self.head && oldest.at < end) {
            self.evict(&mut evicted)?;
        }
        let number = self.next_number;
        self.file.write_all_at(body, HEADER_BYTES + self.head + FRAME_HEADER_BYTES as u64)?;
        self.write_frame_header(self.head, body_len, checksum(number, body), number)?;
        self.frames.push_back(Frame { number, at: self.head, body_len });
        self.head = end;
        self.next_number += 1;
        Ok((Some(FrameNumber(number)), evicted))
    }

    /// The oldest shipment.
    pub fn front(&self) -> Result<Option<(FrameNumber, Vec<u8>)>, SpoolError> {
        let Some(frame) = self.frames.front() else { return Ok(None) };
        Ok(Some((FrameNumber(frame.number), self.read_frame(frame)?)))
    }

    pub fn front_number(&self) -> Option<FrameNumber> {
        self.frames.front().map(|frame| FrameNumber(frame.number))
    }

    /// A shipment is in the log, or cannot be read. If it has made way in between, nothing is to be done.
    pub fn remove(&mut self, number: FrameNumber) -> Result<(), SpoolError> {
        if self.frames.front().is_some_and(|frame| frame.number == number.0) {
            self.frames.pop_front();
            self.write_header()?;
        }
        Ok(())
    }

    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn evict(&mut self, evicted: &mut Vec<FrameNumber>) -> io::Result<()> {
        if let Some(frame) = self.frames.pop_front() {
            evicted.push(FrameNumber(frame.number));
        }
        // Before its bytes are written over, so that a crash finds the walk's begin whole.
        self.write_header()
    }

    fn read_frame(&self, frame: &Frame) -> Result<Vec<u8>, SpoolError> {
        let mut header = [0; FRAME_HEADER_BYTES];
        self.file.read_exact_at(&mut header, HEADER_BYTES + frame.at)?;
        let mut body = vec![0; frame.body_len as usize];
        self.file.read_exact_at(&mut body, HEADER_BYTES + frame.at + FRAME_HEADER_BYTES as u64)?;
        let sum = u32::from_be_bytes([header[8], header[9], header[10], header[11]]);
        if header[12..20] != frame.number.to_be_bytes() || sum != checksum(frame.number, &body) {
            return Err(SpoolError::Damaged);
        }
        Ok(body)
    }

    fn write_frame_header(&self, at: u64, body_len: u32, sum: u32, number: u64) -> io::Result<()> {
        let mut header = [0; FRAME_HEADER_BYTES];
        header[..4].copy_from_slice(FRAME_MAGIC);
        header[4..8].copy_from_slice(&body_len.to_be_bytes());
        header[8..12].copy_from_slice(&sum.to_be_bytes());
        header[12..20].copy_from_slice(&number.to_be_bytes());
        self.file.write_all_at(&header, HEADER_BYTES + at)
    }

    /// Where the oldest frame is, or where the next one will be.
    fn write_header(&self) -> io::Result<()> {
        let (at, number) = match self.frames.front() {
            Some(frame) => (frame.at, frame.number),
            None => (self.head, self.next_number),
        };
        let mut header = [0; 24];
        header[..8].copy_from_slice(FILE_MAGIC);
        header[8..16].copy_from_slice(&at.to_be_bytes());
        header[16..24].copy_from_slice(&number.to_be_bytes());
        self.file.write_all_at(&header, 0)
    }
}

enum Probe {
    Frame(Frame),
    Wrap,
}

fn has_magic(file: &File) -> io::Result<bool> {
    let mut magic = [0; FILE_MAGIC.len()];
    file.read_exact_at(&mut magic, 0)?;
    Ok(magic == *FILE_MAGIC)
}

fn checksum(number: u64, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&number.to_be_bytes());
    hasher.update(body);
    hasher.finalize()
}

const FILE_MAGIC: &[u8; 8] = b"WFSPOOL1";
const FRAME_MAGIC: &[u8; 4] = b"WFSP";
const HEADER_BYTES: u64 = 4096;
const FRAME_HEADER_BYTES: usize = 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BYTES: u64 = HEADER_BYTES + 1000;

    fn path(folder: &tempfile::TempDir) -> PathBuf {
        folder.path().join("spool")
    }

    fn drained(spool: &mut Spool) -> Vec<Vec<u8>> {
        let mut bodies = Vec::new();
        while let Some((number, body)) = spool.front().unwrap() {
            bodies.push(body);
            spool.remove(number).unwrap();
        }
        bodies
    }

    #[test]
    fn what_was_kept_since_the_ring_was_empty_is_there_after_a_crash() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(&path(&folder), BYTES).unwrap();
        // The place of the next frame is near the end when the ring becomes empty.
        (0..4).for_each(|_| drop(spool.push(&[1; 200]).unwrap()));
        drained(&mut spool);

        // The first begins anew at the front, the last write over where the next frame was to be.
        (2..6).for_each(|n| drop(spool.push(&[n; 210]).unwrap()));
        let mut after = Spool::open(&path(&folder), BYTES).unwrap();

        let bodies = drained(&mut after);
        assert_eq!(bodies.iter().map(|body| body[0]).collect::<Vec<_>>(), [2, 3, 4, 5]);
    }

    proptest! {
        /// Against the slow obvious one: a queue that drops its oldest. What was written last is there, in order, with
        /// no gap before it, also after the process died at any point.
        #[test]
        fn it_keeps_an_unbroken_run_of_the_newest(
            steps in prop::collection::vec((0usize..260, 0u8..5), 1..120),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let mut spool = Spool::open(&path(&folder), BYTES).unwrap();
            let mut queue: VecDeque<(FrameNumber, Vec<u8>)> = VecDeque::new();
            for (i, (len, action)) in steps.into_iter().enumerate() {
                match action {
                    0 => if let Some((number, body)) = spool.front().unwrap() {
                        prop_assert_eq!((&number, &body), queue.front().map(|(n, b)| (n, b)).unwrap());
                        spool.remove(number).unwrap();
                        queue.pop_front();
                    },
                    1 => spool = Spool::open(&path(&folder), BYTES).unwrap(),
                    _ => {
                        let body = vec![i as u8; len + 1];
                        let (number, evicted) = spool.push(&body).unwrap();
                        for number in evicted {
                            prop_assert_eq!(queue.pop_front().map(|(n, _)| n), Some(number));
                        }
                        queue.push_back((number.expect("it fits"), body));
                    }
                }
            }
            let mut spool = Spool::open(&path(&folder), BYTES).unwrap();
            let bodies: Vec<_> = queue.into_iter().map(|(_, body)| body).collect();
            prop_assert_eq!(drained(&mut spool), bodies);
        }
    }

    #[test]
    fn it_holds_most_of_its_size_before_anything_makes_way() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(&path(&folder), BYTES).unwrap();

        for _ in 0..8 {
            let (_, evicted) = spool.push(&[1; 100]).unwrap();
            assert!(evicted.is_empty());
        }

        let (_, evicted) = spool.push(&[1; 100]).unwrap();
        assert!(!evicted.is_empty());
        assert_eq!(std::fs::metadata(path(&folder)).unwrap().len(), BYTES, "the file does not grow");
    }

    #[test]
    fn a_shipment_larger_than_the_ring_is_refused_and_harms_none() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(&path(&folder), BYTES).unwrap();
        spool.push(b"first").unwrap();

        assert_eq!(spool.push(&[0; 1001]).unwrap(), (None, Vec::new()));

        assert_eq!(drained(&mut spool), [b"first".to_vec()]);
    }

    #[test]
    fn a_damaged_frame_ends_the_walk_and_nothing_is_made_up() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(&path(&folder), BYTES).unwrap();
        spool.push(b"first").unwrap();
        spool.push(b"second").unwrap();
        let at = HEADER_BYTES + FRAME_HEADER_BYTES as u64 + 5 + FRAME_HEADER_BYTES as u64 + 2;
        spool.file.write_all_at(b"X", at).unwrap();

        let mut spool = Spool::open(&path(&folder), BYTES).unwrap();

        assert_eq!(drained(&mut spool), [b"first".to_vec()]);
        spool.push(b"third").unwrap();
        assert_eq!(drained(&mut spool), [b"third".to_vec()]);
    }

    #[test]
    fn an_empty_ring_takes_a_new_size_and_a_full_one_keeps_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(&path(&folder), BYTES).unwrap();
        spool.push(b"kept").unwrap();
        let mut spool = Spool::open(&path(&folder), BYTES * 2).unwrap();
        assert_eq!(spool.capacity, BYTES - HEADER_BYTES);
        assert_eq!(drained(&mut spool), [b"kept".to_vec()]);

        let spool = Spool::open(&path(&folder), BYTES * 2).unwrap();

        assert_eq!(spool.capacity, BYTES * 2 - HEADER_BYTES);
    }
}
