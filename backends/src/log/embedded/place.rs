//! Whether the log's files are still where they were opened. What is written to a journal that was removed or replaced
//! goes on well, and nobody finds it at the next start.

use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;

use super::journal;
use crate::file_identity::FileIdentity;

pub struct Place {
    entries: PathBuf,
    folders: Vec<FileIdentity>,
    /// The newest journal as it was last seen: the one that is written to.
    newest: Mutex<Option<(u64, FileIdentity)>>,
}

impl Place {
    pub fn of(log: &Path, entries: &Path) -> std::io::Result<Self> {
        let folders = [log, entries].into_iter().filter_map(FileIdentity::of).collect();
        let newest = Mutex::new(newest_of(entries)?);
        Ok(Place { entries: entries.to_path_buf(), folders, newest })
    }

    /// What is gone of what is written to. Some microseconds, for every write.
    pub fn gone(&self) -> Option<PathBuf> {
        if let Some(folder) = self.folders.iter().find(|folder| !folder.is_in_place()) {
            return Some(folder.path().to_path_buf());
        }
        let mut newest = self.newest.lock();
        let (number, journal) = newest.as_ref()?;
        if journal.is_in_place() {
            return None;
        }
        // A busy log begins another journal, and lets the one before go once tables hold all of it.
        match newest_of(&self.entries) {
            Ok(Some(found)) if found.0 > *number => {
                *newest = Some(found);
                None
            }
            Ok(_) => Some(journal.path().to_path_buf()),
            // Nothing says that it is gone.
            Err(_) => None,
        }
    }

    /// The same, and whether there are as many journals as the database says that it has: for every few seconds. Journals
    /// come and go meanwhile, so a difference counts once it stays.
    pub fn gone_of(&self, journals: impl Fn() -> usize) -> Option<PathBuf> {
        self.gone().or_else(|| {
            for _ in 0..COUNTS {
                let expected = journals();
                match journal::journals(&self.entries) {
                    Ok(found) if found.len() < expected => std::thread::sleep(COUNT_EVERY),
                    Ok(found) => {
                        self.follow(found.into_iter().last());
                        return None;
                    }
                    Err(_) => return None,
                }
            }
            Some(self.entries.clone())
        })
    }

    /// The newest one may have been sealed, and must be there no longer than tables need it.
    fn follow(&self, found: Option<(u64, PathBuf)>) {
        let mut newest = self.newest.lock();
        if let (Some((number, path)), Some((before, _))) = (found, newest.as_ref())
            && number > *before
            && let Some(identity) = FileIdentity::of(&path)
        {
            *newest = Some((number, identity));
        }
    }
}

fn newest_of(entries: &Path) -> std::io::Result<Option<(u64, FileIdentity)>> {
    let newest = journal::journals(entries)?.pop();
    Ok(newest.and_then(|(number, path)| Some((number, FileIdentity::of(&path)?))))
}

const COUNTS: usize = 5;
const COUNT_EVERY: Duration = Duration::from_millis(20);
