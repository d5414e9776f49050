//! The journal, looked at before fjall opens it. fjall takes the first frame that does not decode for the torn end of an
//! unfinished batch and cuts there, whatever follows; the log knows more: every batch carries a number, and which number
//! was acknowledged is noted. What was acknowledged and does not decode is damage, and nothing is touched.
//!
//! A power cut may also lose a page in the middle of the last batch and keep its end: the frame is whole and its
//! checksum is wrong. fjall refuses to open then; where nobody was told of that batch it is cut off.
//!
//! Frames as fjall 3.1 writes them (`journal/entry.rs`), little-endian: start `1 ‖ items u32 ‖ sequence u64`, item
//! `2 ‖ type ‖ compression ‖ keyspace u64 ‖ key length u16 ‖ length u32 ‖ stored length u32 ‖ key ‖ value`, clear
//! `4 ‖ keyspace u64`, end `3 ‖ checksum u64 ‖ "FJL" ‖ 3`.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use tracing::warn;

use super::layout::COMMIT_NUMBER_KEY;

/// A whole frame of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct BatchFrame {
    begin: usize,
    end: usize,
    number: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("journal {journal} is damaged after commit {after}, and commit {acknowledged} was acknowledged")]
    Acknowledged { journal: u64, after: u64, acknowledged: u64 },
    #[error("journal {journal} is damaged, and a later one goes on")]
    Sealed { journal: u64 },
    #[error("commits between {from} and {to} are missing in journal {journal}")]
    Missing { journal: u64, from: u64, to: u64 },
    #[error("a journal cannot be read: {0}")]
    File(#[from] std::io::Error),
}

/// Walks all journals; cuts a torn end of the newest off, if nobody was told of it.
pub fn inspect(folder: &Path, acknowledged: u64) -> Result<(), JournalError> {
    let journals = journals(folder)?;
    let newest = journals.last().map(|(id, _)| *id);
    let mut last_number = None;
    for (journal, path) in journals {
        let bytes = written_part(&path)?;
        let mut end = 0;
        while let Some(frame) = frame_at(&bytes, end) {
            end = frame.end;
            let Some(number) = frame.number else {
                continue;
            };
            if let Some(from) = last_number.filter(|last| last + 1 != number) {
                return Err(JournalError::Missing { journal, from, to: number });
            }
            last_number = Some(number);
        }
        // Journals are preallocated: nothing but zeros follows the last frame.
        if bytes[end..].chunks(ZEROS.len()).all(|chunk| *chunk == ZEROS[..chunk.len()]) {
            continue;
        }
        if Some(journal) != newest {
            return Err(JournalError::Sealed { journal });
        }
        if let Some(after) = last_number.filter(|last| *last < acknowledged) {
            return Err(JournalError::Acknowledged { journal, after, acknowledged });
        }
        warn!(journal, "the last batch was not finished and was acknowledged to nobody, it is cut off");
        cut(&path, end)?;
    }
    Ok(())
}

/// Cuts the newest journal's last whole batch off, if nobody was told of it. False: there is nothing that may be cut.
pub fn cut_unacknowledged_end(folder: &Path, acknowledged: u64) -> std::io::Result<bool> {
    let Some((_, journal)) = journals(folder)?.pop() else {
        return Ok(false);
    };
    let bytes = written_part(&journal)?;
    let Some(BatchFrame { begin, number: Some(number), .. }) = last_frame(&bytes) else {
        return Ok(false);
    };
    if number <= acknowledged {
        return Ok(false);
    }
    warn!(number, acknowledged, "the last batch is torn and was acknowledged to nobody, it is cut off");
    cut(&journal, begin)?;
    Ok(true)
}

/// A journal without the zeros at its end: it is made 64 MB long, and a start must not take as much memory to look at it.
/// No whole frame ends in a zero.
fn written_part(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let (mut written, mut zeros) = (Vec::new(), 0);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = file.read(&mut chunk)?;
        if read == 0 {
            return Ok(written);
        }
        if chunk[..read].chunks(ZEROS.len()).all(|part| *part == ZEROS[..part.len()]) {
            zeros += read;
            continue;
        }
        written.resize(written.len() + zeros, 0);
        written.extend_from_slice(&chunk[..read]);
        zeros = 0;
    }
}

fn cut(journal: &Path, end: usize) -> std::io::Result<()> {
    let file = File::options().write(true).open(journal)?;
    file.set_len(end as u64)?;
    file.sync_all()
}

/// Oldest first; none where no database has begun.
fn journals(folder: &Path) -> std::io::Result<Vec<(u64, PathBuf)>> {
    let mut journals = Vec::new();
    let files = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(journals),
        files => files?,
    };
    for file in files {
        let path = file?.path();
        let is_journal = path.extension().is_some_and(|extension| extension == "jnl");
        let id = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
        journals.extend(id.filter(|_| is_journal).map(|id| (id, path)));
    }
    journals.sort();
    Ok(journals)
}

fn last_frame(bytes: &[u8]) -> Option<BatchFrame> {
    let mut last: Option<BatchFrame> = None;
    while let Some(frame) = frame_at(bytes, last.map_or(0, |frame| frame.end)) {
        last = Some(frame);
    }
    last
}

fn frame_at(bytes: &[u8], begin: usize) -> Option<BatchFrame> {
    let mut cursor = Cursor { rest: bytes.get(begin..)? };
    let mut number = None;
    if cursor.byte()? != START {
        return None;
    }
    cursor.skip(4 + 8)?;
    loop {
        match cursor.byte()? {
            ITEM => {
                let [value_type, compression] = cursor.array()?;
                cursor.skip(8)?;
                let key_len = u16::from_le_bytes(cursor.array()?);
                let value_len = u32::from_le_bytes(cursor.array()?);
                let stored_len = u32::from_le_bytes(cursor.array()?);
                if value_type > VALUE_TYPE_MAX || compression != UNCOMPRESSED || value_len != stored_len {
                    return None;
                }
                let key = cursor.take(usize::from(key_len))?;
                let value = cursor.take(value_len as usize)?;
                if key == COMMIT_NUMBER_KEY {
                    number = value.try_into().ok().map(u64::from_be_bytes);
                }
            }
            CLEAR => cursor.skip(8)?,
            END => {
                cursor.skip(8)?;
                if cursor.array()? != END_MAGIC {
                    return None;
                }
                return Some(BatchFrame { begin, end: bytes.len() - cursor.rest.len(), number });
            }
            _ => return None,
        }
    }
}

struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.take(count).map(|_| ())
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }
}

/// Compared in one go each: journals are 64 MB of mostly nothing.
const CHUNK_BYTES: usize = 256 << 10;
static ZEROS: [u8; 4096] = [0; 4096];
const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
/// Value, tombstone and weak tombstone.
const VALUE_TYPE_MAX: u8 = 2;
/// This build has no compression of journals.
const UNCOMPRESSED: u8 = 0;
const END_MAGIC: [u8; 4] = [b'F', b'J', b'L', 3];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::embedded::layout::Layout;
    use crate::log::embedded::store::{Change, Store, StoreOptions};

    /// Also says aloud if another fjall writes other frames.
    #[test]
    fn the_frames_of_a_real_journal_are_walked_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), &Layout::new(1), StoreOptions::default()).unwrap();
        for n in 0..10_u8 {
            store.write(vec![Change::Meta { key: vec![n], value: vec![n; usize::from(n) * 1000] }]).unwrap();
        }
        drop(store);

        let (_, journal) = journals(&folder.path().join("entries")).unwrap().pop().unwrap();
        let bytes = std::fs::read(journal).unwrap();

        let frame = last_frame(&bytes).unwrap();
        // What is written at creation comes first.
        let number = frame.number.unwrap();
        assert!(number > 10, "{number}");
        assert!(frame.end - frame.begin > 9000);
        assert!(bytes[frame.end..].iter().all(|byte| *byte == 0), "nothing but preallocated room follows");
        for cut in 1..frame.end - frame.begin {
            let shorter = last_frame(&bytes[..frame.end - cut]).unwrap();
            assert_eq!((shorter.end, shorter.number), (frame.begin, Some(number - 1)), "cut by {cut}");
        }
    }

    #[test]
    fn only_what_was_written_of_a_journal_is_held_in_memory_and_zeros_within_it_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.jnl");
        let mut bytes = vec![0; 3 * CHUNK_BYTES];
        bytes.push(9);
        std::fs::write(&path, &bytes).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(64 << 20).unwrap();

        let written = written_part(&path).unwrap();

        assert!(written.capacity() <= 6 * CHUNK_BYTES, "{}", written.capacity());
        assert_eq!(written[..bytes.len()], bytes);
        assert!(written[bytes.len()..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn damage_is_told_from_an_unfinished_end_wherever_it_lies() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), &Layout::new(1), StoreOptions::default()).unwrap();
        for n in 0..5_u8 {
            store.write(vec![Change::Meta { key: vec![n], value: vec![n; 30] }]).unwrap();
        }
        drop(store);
        let (_, path) = journals(&folder.path().join("entries")).unwrap().pop().unwrap();
        let whole = std::fs::read(&path).unwrap();
        let last = last_frame(&whole).unwrap();
        let number = last.number.unwrap();
        let (entries, copy) = (tempfile::tempdir().unwrap(), &whole[..last.end + 10]);
        let journal = entries.path().join("3.jnl");
        let outcome_of = |bytes: &[u8], acknowledged| {
            std::fs::write(&journal, bytes).unwrap();
            let outcome = inspect(entries.path(), acknowledged);
            (outcome, std::fs::read(&journal).unwrap())
        };

        for at in 0..last.end {
            let mut changed = copy.to_vec();
            changed[at] = !changed[at];
            let (outcome, left) = outcome_of(&changed, number);
            match outcome {
                // In a value or a checksum: the frame stands, and fjall will see it. In the first frame: the number that
                // came before is known only once fjall is open, and compared then.
                Ok(()) => assert!(left.is_empty() || last_frame(&left).unwrap().end == last.end, "{at}"),
                Err(_) => assert_eq!(left, changed, "damage is left as it is: {at}"),
            }
            let (outcome, left) = outcome_of(&copy[..at], number);
            assert!(outcome.is_err() || last_number(&left).is_none_or(|left| left < number), "{at}");
            if at > last.begin {
                let (outcome, left) = outcome_of(&copy[..at], number - 1);
                assert!(outcome.is_ok() && left == whole[..last.begin], "nobody was told of the last: {at}");
            }
        }
        std::fs::write(entries.path().join("4.jnl"), b"").unwrap();
        assert!(matches!(outcome_of(&copy[..last.end - 1], 0).0, Err(JournalError::Sealed { journal: 3 })));
        let without_one = [&copy[..last.begin], &copy[last.end..]].concat();
        std::fs::write(entries.path().join("4.jnl"), &whole[last.begin..last.end]).unwrap();
        assert!(outcome_of(&without_one, number).0.is_ok());
        let frames: Vec<_> = std::iter::successors(frame_at(copy, 0), |frame| frame_at(copy, frame.end)).collect();
        let without_one = [&copy[..frames[2].begin], &copy[frames[2].end..]].concat();
        assert!(matches!(outcome_of(&without_one, number).0, Err(JournalError::Missing { journal: 3, .. })));
    }

    fn last_number(bytes: &[u8]) -> Option<u64> {
        last_frame(bytes).and_then(|frame| frame.number)
    }

    #[test]
    fn garbage_has_no_frames() {
        for bytes in [&b""[..], &[0; 100], &[1; 100], &[2; 100], &[255; 100], &[1, 0, 0, 0, 0, 0]] {
            assert_eq!(last_frame(bytes), None);
        }
    }
}
