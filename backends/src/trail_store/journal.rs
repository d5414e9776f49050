//! The journal of history: what was taken and is not in a segment yet, with the offsets it brings. One frame is one
//! durable act: the breadcrumbs and where to go on reading stand or fall together.
//!
//! A frame, integers little-endian: length of what follows the sum u32, CRC-32 of it u32, partition u32, incarnation u32,
//! next offset u64, breadcrumbs as `codec` writes them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use protocol::{Breadcrumb, Offset, PartitionId};

use super::{TrailPlace, codec};

/// The journal that is written to.
pub(super) struct Journal {
    pub number: i64,
    file: File,
    pub bytes: u64,
}

impl Journal {
    /// Makes an empty one, durable under its name.
    pub fn create(folder: &Path, number: i64) -> io::Result<Journal> {
        let path = path(folder, number);
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
        file.write_all(&MAGIC)?;
        file.sync_all()?;
        File::open(folder)?.sync_all()?;
        Ok(Journal { number, file, bytes: MAGIC.len() as u64 })
    }

    /// Appends frames and syncs. After an error the journal may end in half a frame: nothing more is written to it.
    pub fn append(&mut self, frames: &[u8]) -> io::Result<()> {
        self.file.write_all(frames)?;
        self.file.sync_data()?;
        self.bytes += frames.len() as u64;
        Ok(())
    }
}

/// One act.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Frame {
    pub partition: PartitionId,
    pub next: TrailPlace,
    pub breadcrumbs: Vec<Breadcrumb>,
}

/// Appends a frame.
pub(super) fn put_frame(partition: PartitionId, next: TrailPlace, breadcrumbs: &[Breadcrumb], out: &mut Vec<u8>) {
    let begin = out.len();
    out.extend_from_slice(&[0; FRAME_HEAD_BYTES]);
    out.extend_from_slice(&partition.0.to_le_bytes());
    out.extend_from_slice(&next.incarnation.to_le_bytes());
    out.extend_from_slice(&next.offset.0.to_le_bytes());
    codec::encode(breadcrumbs, out);
    let len = (out.len() - begin - FRAME_HEAD_BYTES) as u32;
    let sum = crc32fast::hash(&out[begin + FRAME_HEAD_BYTES..]);
    out[begin..begin + 4].copy_from_slice(&len.to_le_bytes());
    out[begin + 4..begin + FRAME_HEAD_BYTES].copy_from_slice(&sum.to_le_bytes());
}

/// What a journal holds.
pub(super) struct Replay {
    pub frames: Vec<Frame>,
    /// How many bytes at its end are no frames: of one that a crash cut, or of damage.
    pub bytes_left: usize,
    /// Whether a whole frame stands behind what is none: then it was no crash that cut it.
    pub is_damaged: bool,
}

pub(super) fn replay(path: &Path) -> io::Result<Replay> {
    let bytes = fs::read(path)?;
    let Some(mut rest) = bytes.strip_prefix(&MAGIC[..]) else {
        return Ok(Replay { frames: Vec::new(), bytes_left: bytes.len(), is_damaged: bytes.len() > MAGIC.len() });
    };
    let mut frames = Vec::new();
    while let Some((frame, behind)) = take_frame(rest) {
        frames.push(frame);
        rest = behind;
    }
    let is_damaged = (1..rest.len().min(SEARCHED_BYTES)).any(|at| take_frame(&rest[at..]).is_some());
    Ok(Replay { frames, bytes_left: rest.len(), is_damaged })
}

fn take_frame(bytes: &[u8]) -> Option<(Frame, &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let (payload, behind) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    if crc32fast::hash(payload) != u32::from_le_bytes(*sum) {
        return None;
    }
    let (partition, payload) = payload.split_first_chunk::<4>()?;
    let (incarnation, payload) = payload.split_first_chunk::<4>()?;
    let (next, payload) = payload.split_first_chunk::<8>()?;
    let frame = Frame {
        partition: PartitionId(u32::from_le_bytes(*partition)),
        next: TrailPlace { incarnation: u32::from_le_bytes(*incarnation), offset: Offset(u64::from_le_bytes(*next)) },
        breadcrumbs: codec::decode(payload).ok()?,
    };
    Some((frame, behind))
}

pub(super) fn path(folder: &Path, number: i64) -> PathBuf {
    folder.join(format!("journal-{number:08}.wfj"))
}

/// The numbers of the journals that lie in the folder, rising.
pub(super) fn numbers(folder: &Path) -> io::Result<Vec<i64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("journal-")?.strip_suffix(".wfj"));
        numbers.extend(number.and_then(|number| number.parse::<i64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

const MAGIC: [u8; 8] = *b"WFTJ\x01\0\0\0";
const FRAME_HEAD_BYTES: usize = 8;
/// How far behind a broken frame another is looked for: a byte flipped in a length hides no more.
const SEARCHED_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trail_store::samples::drive;

    fn written(folder: &Path, frames: u64) -> (PathBuf, Vec<Frame>) {
        let mut journal = Journal::create(folder, 5).unwrap();
        let frames: Vec<Frame> = (0..frames)
            .map(|n| Frame {
                partition: PartitionId(n as u32 % 3),
                next: TrailPlace { incarnation: 2, offset: Offset(n * 10) },
                breadcrumbs: drive(n as u32, n),
            })
            .collect();
        for frame in &frames {
            let mut bytes = Vec::new();
            put_frame(frame.partition, frame.next, &frame.breadcrumbs, &mut bytes);
            journal.append(&bytes).unwrap();
        }
        (path(folder, 5), frames)
    }

    #[test]
    fn a_journal_cut_anywhere_gives_the_whole_frames_before() {
        let folder = tempfile::tempdir().unwrap();
        let (path, frames) = written(folder.path(), 6);
        let bytes = fs::read(&path).unwrap();
        assert_eq!(replay(&path).unwrap().frames, frames);
        assert_eq!(numbers(folder.path()).unwrap(), [5]);

        for len in 0..bytes.len() {
            fs::write(&path, &bytes[..len]).unwrap();
            let replayed = replay(&path).unwrap();
            assert!(replayed.frames.len() < frames.len() && frames.starts_with(&replayed.frames), "{len}");
            assert!(!replayed.is_damaged, "{len}");
        }
    }

    #[test]
    fn damage_in_the_middle_is_told_from_a_cut_and_nothing_behind_it_counts() {
        let folder = tempfile::tempdir().unwrap();
        let (path, frames) = written(folder.path(), 6);
        let bytes = fs::read(&path).unwrap();

        for place in (8..bytes.len() / 2).step_by(7) {
            let mut spoiled = bytes.clone();
            spoiled[place] ^= 1;
            fs::write(&path, &spoiled).unwrap();
            let replayed = replay(&path).unwrap();
            assert!(replayed.frames.len() < frames.len() && frames.starts_with(&replayed.frames), "{place}");
            assert!(replayed.is_damaged && replayed.bytes_left > 0, "{place}");
        }
    }
}
