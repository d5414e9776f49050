//! The journals, looked at before fjall opens them. fjall takes the first frame that does not decode for the torn end of
//! an unfinished batch and cuts there, whatever follows; the log knows more. Every batch carries a number, one batch
//! begins when the one before is on disk, and which number was acknowledged is noted. So what lies before a whole frame,
//! or was acknowledged, and does not decode is damage: the start is refused, and nothing is touched.
//!
//! What nobody was told of is cut off: the end of the newest journal after a power cut, which may also lose a page in the
//! middle of the last batch and keep its end; and the end of an older one where the disk was full as it was sealed.
//!
//! What stands is written anew and synced before anybody is shown it: after a failed sync the kernel holds pages that are
//! not on disk for written, and a later sync would say that all is well.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tracing::warn;

use super::frames::{frame_after, frame_at};

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("journal {journal} is damaged after commit {after}, and commit {acknowledged} was acknowledged")]
    Acknowledged { journal: u64, after: u64, acknowledged: u64 },
    #[error("its journal ends at commit {after}, but commit {acknowledged} was acknowledged")]
    Short { after: u64, acknowledged: u64 },
    #[error("journal {journal} is damaged, and goes on after it")]
    Within { journal: u64 },
    #[error("journal {journal} is damaged, and a later one goes on")]
    Sealed { journal: u64 },
    #[error("commits between {from} and {to} are missing in journal {journal}")]
    Missing { journal: u64, from: u64, to: u64 },
    #[error("a journal cannot be read: {0}")]
    File(#[from] std::io::Error),
}

/// What is to be done before the journals are opened; nothing of it is done yet.
#[derive(Default)]
pub struct Inspected {
    /// Where each of these ends from now on.
    cuts: Vec<(PathBuf, usize)>,
    /// Frames of which nobody will know, accepted as lost.
    lost: Vec<PathBuf>,
    /// What stands of the newest one that stays.
    newest: Option<(PathBuf, Vec<u8>)>,
    /// Something is cut of which only the tables can say whether it was acknowledged.
    is_doubtful: bool,
}

/// A place where a journal can be cut.
#[derive(Clone, Copy)]
struct Place {
    /// Among the journals.
    at: usize,
    journal: u64,
    end: usize,
}

struct Damage {
    error: JournalError,
    place: Place,
}

/// What has been seen of the journals so far.
struct Walk {
    acknowledged: u64,
    last: Option<u64>,
    /// Ends that do not decode, since the last number.
    ends: Vec<Place>,
    cuts: Vec<Place>,
    is_doubtful: bool,
}

/// Walks all journals. Refuses what was acknowledged and is not there.
pub fn inspect(folder: &Path, acknowledged: u64) -> Result<Inspected, JournalError> {
    let journals = journals(folder)?;
    walk(&journals, acknowledged)?.map_err(|damage| damage.error)
}

/// The same where the loss is accepted: all up to the first damage stands, and what comes after is set aside.
pub fn inspect_for_loss(folder: &Path) -> Result<Inspected, JournalError> {
    let journals = journals(folder)?;
    let Damage { error, place } = match walk(&journals, 0)? {
        Ok(inspected) => return Ok(inspected),
        Err(damage) => damage,
    };
    warn!(%error, "all after it is set aside");
    let path = journals[place.at].1.clone();
    let mut bytes = written_part(&path)?;
    std::fs::write(unused(&path), &bytes)?;
    bytes.truncate(place.end);
    let lost = journals[place.at + 1..].iter().map(|(_, path)| path.clone()).collect();
    let cuts = vec![(path.clone(), place.end)];
    Ok(Inspected { cuts, lost, newest: Some((path, bytes)), is_doubtful: false })
}

fn walk(journals: &[(u64, PathBuf)], acknowledged: u64) -> std::io::Result<Result<Inspected, Damage>> {
    let mut walk = Walk { acknowledged, last: None, ends: Vec::new(), cuts: Vec::new(), is_doubtful: false };
    let mut newest = None;
    for (at, (journal, path)) in journals.iter().enumerate() {
        let mut bytes = written_part(path)?;
        let place = Place { at, journal: *journal, end: 0 };
        match walk.handle_journal(place, &bytes) {
            Ok(end) => bytes.truncate(end),
            Err(damage) => return Ok(Err(damage)),
        }
        newest = Some((path.clone(), bytes));
    }
    if let Err(damage) = walk.finish() {
        return Ok(Err(damage));
    }
    let cuts = walk.cuts.iter().map(|place| (journals[place.at].1.clone(), place.end)).collect();
    Ok(Ok(Inspected { cuts, lost: Vec::new(), newest, is_doubtful: walk.is_doubtful }))
}

impl Walk {
    /// Answers where the journal's last whole frame ends.
    fn handle_journal(&mut self, mut place: Place, bytes: &[u8]) -> Result<usize, Damage> {
        while let Some(frame) = frame_at(bytes, place.end) {
            if let Some(number) = frame.number {
                self.handle_number(number, place)?;
            }
            place.end = frame.end;
        }
        // Journals are preallocated: nothing but zeros follows the last frame.
        if bytes[place.end..].iter().all(|byte| *byte == 0) {
            return Ok(place.end);
        }
        if frame_after(bytes, place.end).is_some() {
            return Err(Damage { error: JournalError::Within { journal: place.journal }, place });
        }
        self.ends.push(place);
        Ok(place.end)
    }

    /// Where the next number follows the last one, nothing that was acknowledged stood at the end between them.
    fn handle_number(&mut self, number: u64, place: Place) -> Result<(), Damage> {
        let follows = self.last.is_some_and(|last| last + 1 == number);
        match (self.ends.first(), self.last) {
            (Some(end), _) if !follows => {
                return Err(Damage { error: JournalError::Sealed { journal: end.journal }, place: *end });
            }
            (None, Some(from)) if !follows => {
                return Err(Damage {
                    error: JournalError::Missing { journal: place.journal, from, to: number },
                    place,
                });
            }
            (_, _) => self.cuts.append(&mut self.ends),
        }
        self.last = Some(number);
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Damage> {
        let acknowledged = self.acknowledged;
        match (self.last, self.ends.first()) {
            (Some(after), Some(end)) if after < acknowledged => {
                let error = JournalError::Acknowledged { journal: end.journal, after, acknowledged };
                return Err(Damage { error, place: *end });
            }
            (Some(after), None) if after < acknowledged => {
                let place = Place { at: 0, journal: 0, end: 0 };
                return Err(Damage { error: JournalError::Short { after, acknowledged }, place });
            }
            // What came before is in the tables alone, and they say their number when they are open.
            (None, Some(_)) => self.is_doubtful = acknowledged > 0,
            (_, _) => {}
        }
        self.cuts.append(&mut self.ends);
        Ok(())
    }
}

impl Inspected {
    /// Does what is to be done. Killed anywhere, the next start finds the same and comes to the same end.
    pub fn settle(self) -> std::io::Result<Settled> {
        for path in self.lost.iter().rev() {
            std::fs::rename(path, unused(path))?;
        }
        let mut kept = Vec::new();
        for (path, end) in &self.cuts {
            warn!(journal = %path.display(), "its last batch was not finished and was acknowledged to nobody, it is cut off");
            if self.is_doubtful {
                keep(path)?;
                kept.push(path.clone());
            }
            let file = File::options().write(true).open(path)?;
            file.set_len(*end as u64)?;
            file.sync_all()?;
        }
        if let Some((path, bytes)) = &self.newest {
            let file = File::options().write(true).open(path)?;
            file.write_all_at(bytes, 0)?;
            file.sync_all()?;
        }
        Ok(Settled { kept })
    }
}

/// What was cut in doubt, until it is known whether that was right.
#[must_use]
pub struct Settled {
    kept: Vec<PathBuf>,
}

impl Settled {
    /// Nobody was told of it.
    pub fn accept(self) -> std::io::Result<()> {
        self.kept.iter().try_for_each(|path| std::fs::remove_file(beside(path, TORN)))
    }

    /// It was acknowledged: the files are again as they were found.
    pub fn put_back(self) -> std::io::Result<()> {
        self.kept.iter().try_for_each(|path| std::fs::rename(beside(path, TORN), path))
    }
}

/// Puts back what a start that was killed had cut in doubt.
pub fn put_back(folder: &Path) -> std::io::Result<()> {
    for (_, path) in journals(folder)? {
        let torn = beside(&path, TORN);
        if torn.exists() {
            std::fs::rename(torn, path)?;
        }
    }
    Ok(())
}

/// Where a journal is set aside, over no other file.
fn unused(path: &Path) -> PathBuf {
    let names = std::iter::once(LOST.to_string()).chain((2..).map(|n: u64| format!("{LOST}-{n}")));
    let mut names = names.map(|ending| beside(path, &ending));
    names.find(|name| !name.exists()).unwrap_or_else(|| beside(path, LOST))
}

fn keep(path: &Path) -> std::io::Result<()> {
    let half = beside(path, "half");
    let file = File::create(&half)?;
    file.write_all_at(&written_part(path)?, 0)?;
    file.sync_all()?;
    std::fs::rename(&half, beside(path, TORN))?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// fjall passes by what does not end in `jnl`.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{name}.{ending}"))
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

/// Oldest first; none where no database has begun.
pub fn journals(folder: &Path) -> std::io::Result<Vec<(u64, PathBuf)>> {
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

const LOST: &str = "lost";
const TORN: &str = "torn";
/// Compared in one go each: journals are 64 MB of mostly nothing.
const CHUNK_BYTES: usize = 256 << 10;
static ZEROS: [u8; 4096] = [0; 4096];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::embedded::frames::BatchFrame;
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
        let (entries, whole, frames) = one_journal();
        let last = *frames.last().unwrap();
        let number = last.number.unwrap();
        let copy = &whole[..last.end + 10];
        let journal = entries.path().join("3.jnl");
        let outcome_of = |bytes: &[u8], acknowledged| {
            std::fs::write(&journal, bytes).unwrap();
            let outcome = inspect(entries.path(), acknowledged);
            (outcome.map(|inspected| drop(inspected.settle().unwrap())), std::fs::read(&journal).unwrap())
        };

        for at in 0..last.end {
            let frame = frames.iter().find(|frame| frame.end > at).unwrap();
            // No checksum covers the sequence.
            if (frame.begin + 5..frame.begin + 13).contains(&at) {
                continue;
            }
            let mut changed = copy.to_vec();
            changed[at] = !changed[at];
            let (outcome, left) = outcome_of(&changed, number);
            assert!(outcome.is_err(), "{at}");
            assert_eq!(left, changed, "damage is left as it is: {at}");
            let (outcome, left) = outcome_of(&changed, number - 1);
            assert_eq!(outcome.is_ok(), frame.end == last.end, "only of the last was nobody told: {at}");
            assert!(outcome.is_err() || left == whole[..last.begin]);
            if frame.begin == 0 {
                continue;
            }
            let (outcome, left) = outcome_of(&copy[..at], number);
            assert!(outcome.is_err() && left == copy[..at], "{at}");
            if at > last.begin {
                let (outcome, left) = outcome_of(&copy[..at], number - 1);
                assert!(outcome.is_ok() && left == whole[..last.begin], "nobody was told of the last: {at}");
            }
        }
        let without_one = [&copy[..frames[2].begin], &copy[frames[2].end..]].concat();
        assert!(matches!(outcome_of(&without_one, number).0, Err(JournalError::Missing { journal: 3, .. })));
    }

    #[test]
    fn an_end_that_was_sealed_unfinished_is_cut_where_the_next_journal_goes_on() {
        let (entries, whole, frames) = one_journal();
        let last = *frames.last().unwrap();
        let (sealed, newest) = (entries.path().join("3.jnl"), entries.path().join("4.jnl"));
        let write = |sealed_bytes: &[u8], newest_bytes: &[u8]| {
            std::fs::write(&sealed, sealed_bytes).unwrap();
            std::fs::write(&newest, newest_bytes).unwrap();
        };
        let (unfinished, goes_on) = (&whole[..last.end - 1], &whole[last.begin..last.end]);

        write(unfinished, goes_on);
        let _nothing_in_doubt = inspect(entries.path(), last.number.unwrap()).unwrap().settle().unwrap();
        assert_eq!(std::fs::read(&sealed).unwrap(), whole[..last.begin]);
        assert_eq!(std::fs::read(&newest).unwrap(), goes_on);
        write(unfinished, b"");
        let _nothing_in_doubt = inspect(entries.path(), last.number.unwrap() - 1).unwrap().settle().unwrap();
        assert_eq!(std::fs::read(&sealed).unwrap(), whole[..last.begin]);
        write(unfinished, b"");
        let refused = inspect(entries.path(), last.number.unwrap());
        assert!(matches!(refused, Err(JournalError::Acknowledged { journal: 3, .. })));
        write(&whole[..frames[2].end - 1], goes_on);
        assert!(matches!(inspect(entries.path(), 0), Err(JournalError::Sealed { journal: 3 })));
        assert_eq!(std::fs::read(&sealed).unwrap(), whole[..frames[2].end - 1]);
    }

    #[test]
    fn where_the_loss_is_accepted_all_before_the_damage_stands() {
        let (entries, whole, frames) = one_journal();
        let (middle, last) = (frames[frames.len() / 2], *frames.last().unwrap());
        let journals = [3, 4].map(|journal| entries.path().join(format!("{journal}.jnl")));
        let mut damaged = whole[..last.begin].to_vec();

        for at in middle.begin..middle.end {
            // No checksum covers the sequence.
            if (middle.begin + 5..middle.begin + 13).contains(&at) {
                continue;
            }
            damaged[at] = !damaged[at];
            std::fs::write(&journals[0], &damaged).unwrap();
            std::fs::write(&journals[1], &whole[last.begin..last.end]).unwrap();
            assert!(inspect(entries.path(), 0).is_err());
            let _nothing_in_doubt = inspect_for_loss(entries.path()).unwrap().settle().unwrap();

            assert_eq!(std::fs::read(&journals[0]).unwrap(), whole[..middle.begin], "{at}");
            assert!(!journals[1].exists());
            assert_eq!(std::fs::read(beside(&journals[0], LOST)).unwrap(), damaged, "nothing is deleted");
            assert_eq!(std::fs::read(beside(&journals[1], LOST)).unwrap(), whole[last.begin..last.end]);
            journals.iter().for_each(|journal| std::fs::remove_file(beside(journal, LOST)).unwrap());
            damaged[at] = !damaged[at];
        }
    }

    /// A folder for journals, and what a real one holds.
    fn one_journal() -> (tempfile::TempDir, Vec<u8>, Vec<BatchFrame>) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), &Layout::new(1), StoreOptions::default()).unwrap();
        for n in 0..5_u8 {
            store.write(vec![Change::Meta { key: vec![n], value: vec![n; 30] }]).unwrap();
        }
        drop(store);
        let (_, path) = journals(&folder.path().join("entries")).unwrap().pop().unwrap();
        let whole = std::fs::read(&path).unwrap();
        let frames = std::iter::successors(frame_at(&whole, 0), |frame| frame_at(&whole, frame.end)).collect();
        (tempfile::tempdir().unwrap(), whole, frames)
    }

    fn last_frame(bytes: &[u8]) -> Option<BatchFrame> {
        std::iter::successors(frame_at(bytes, 0), |frame| frame_at(bytes, frame.end)).last()
    }

    #[test]
    fn garbage_has_no_frames() {
        for bytes in [&b""[..], &[0; 100], &[1; 100], &[2; 100], &[255; 100], &[1, 0, 0, 0, 0, 0]] {
            assert_eq!(last_frame(bytes), None);
        }
    }
}
