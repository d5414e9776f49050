//! The witnesses: what each store had reached, written down in other places than the store itself, before anybody is
//! told of the commit.
//!
//! A note is written with one `pwrite` and not synced: it survives kill −9, and after a power cut an older one notices
//! less. It is synced when a number enters another block (`Numbers`), so that no number is given twice even then.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::warn;

use super::{Commit, Installation, Note, Numbers, Store};

/// Shared by all stores of an installation.
pub struct Witnesses {
    installation: Installation,
    inner: Mutex<Inner>,
}

struct Inner {
    numbers: Numbers,
    synced: Numbers,
    stores: BTreeMap<Store, Witnessed>,
}

/// Hears which numbers a store gives, within the transaction that gives them; hears nothing outside an installation.
#[derive(Clone, Default)]
pub struct Given(Option<Arc<Witnesses>>);

impl Given {
    pub fn to(guard: Option<&crate::sqlite::Guard>) -> Self {
        Given(guard.map(|guard| guard.witnesses.clone()))
    }

    pub fn give(&self, numbers: Numbers) {
        if let Some(witnesses) = &self.0 {
            witnesses.give(numbers);
        }
    }
}

/// One store and where its notes lie.
struct Witnessed {
    commit: Commit,
    files: Vec<File>,
    is_failing: bool,
}

impl Witnesses {
    /// Opens or makes the note files of each store, and writes down what this start has found: its commit, if it was
    /// found, and the highest numbers that anybody knows.
    pub fn open(
        installation: Installation,
        numbers: Numbers,
        places: &BTreeMap<Store, (Vec<PathBuf>, Commit)>,
    ) -> std::io::Result<Arc<Self>> {
        let mut stores = BTreeMap::new();
        for (store, (paths, commit)) in places {
            let files = paths.iter().map(|path| open_note(path)).collect::<std::io::Result<_>>()?;
            let mut witnessed = Witnessed { commit: *commit, files, is_failing: false };
            if commit.sequence > 0 {
                witnessed.write(&Note { installation, store: *store, commit: *commit, numbers }, true);
            }
            stores.insert(*store, witnessed);
        }
        let inner = Inner { numbers, synced: Numbers::default(), stores };
        Ok(Arc::new(Witnesses { installation, inner: Mutex::new(inner) }))
    }

    pub fn installation(&self) -> Installation {
        self.installation
    }

    /// Numbers are about to be given: they are written down with the commit that gives them.
    pub fn give(&self, numbers: Numbers) {
        let mut inner = self.inner.lock();
        inner.numbers = inner.numbers.max(numbers);
    }

    pub fn numbers(&self) -> Numbers {
        self.inner.lock().numbers
    }

    /// The store has made this commit durable, and nobody has been told yet.
    pub fn handle_commit(&self, store: Store, commit: Commit) {
        let mut inner = self.inner.lock();
        let numbers = inner.numbers;
        let is_sync_due = numbers.is_in_later_block_than(inner.synced);
        let Some(witnessed) = inner.stores.get_mut(&store) else { return };
        witnessed.commit = commit;
        let note = Note { installation: self.installation, store, commit, numbers };
        let written = witnessed.write(&note, is_sync_due);
        if written && is_sync_due {
            inner.synced = numbers;
        }
    }

    /// What the other stores had reached, for this store to keep with its own commit.
    pub(crate) fn others(&self, store: Store) -> Vec<u8> {
        let inner = self.inner.lock();
        let others = inner.stores.iter().filter(|(other, witnessed)| **other != store && witnessed.commit.sequence > 0);
        let note = |(other, witnessed): (&Store, &Witnessed)| Note {
            installation: self.installation,
            store: *other,
            commit: witnessed.commit,
            numbers: inner.numbers,
        };
        others.map(note).flat_map(|note| note.encode()).collect()
    }
}

impl Witnessed {
    /// Whether it is written down everywhere. A place that cannot be written is said once: the store itself goes on.
    fn write(&mut self, note: &Note, is_sync_due: bool) -> bool {
        let bytes = note.encode();
        let mut failure = None;
        for file in &self.files {
            let written = file.write_all_at(&bytes, 0);
            let synced = written.and_then(|()| if is_sync_due { file.sync_data() } else { Ok(()) });
            failure = synced.err().or(failure);
        }
        if let Some(error) = &failure
            && !self.is_failing
        {
            let store = note.store.name();
            warn!(%error, store, "what the store reached cannot be written down, a loss would be noticed less surely");
        }
        self.is_failing = failure.is_some();
        failure.is_none()
    }
}

/// The note at this path: `Ok(None)` where there is none, `Err` where something lies that is no note.
pub fn read_note(path: &Path) -> Result<Option<Note>, String> {
    match std::fs::read(path) {
        // Made, and no commit since.
        Ok(bytes) if bytes.is_empty() => Ok(None),
        Ok(bytes) => Note::decode(&bytes).map(Some).ok_or_else(|| format!("{} is damaged", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

fn open_note(path: &Path) -> std::io::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_has_the_newest_commit_with_the_highest_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["a/ledger", "b/ledger"].map(|name| folder.path().join(name));
        let places = BTreeMap::from([
            (Store::Ledger, (paths.to_vec(), Commit::default())),
            (Store::Registry, (Vec::new(), Commit::default())),
        ]);
        let witnesses = Witnesses::open(Installation::new(), Numbers::default(), &places).unwrap();

        witnesses.give(Numbers { delivery: 9, ..Numbers::default() });
        witnesses.give(Numbers { delivery: 3, journal: 2, ..Numbers::default() });
        for sequence in 1..=5 {
            witnesses.handle_commit(Store::Ledger, Commit { sequence, mark: sequence * 7 });
        }

        for path in &paths {
            let note = read_note(path).unwrap().unwrap();
            assert_eq!(note.commit, Commit { sequence: 5, mark: 35 });
            assert_eq!(note.numbers, Numbers { delivery: 9, journal: 2, ..Numbers::default() });
        }
        let others = Note::decode_all(&witnesses.others(Store::Registry));
        assert_eq!(
            others.iter().map(|note| (note.store, note.commit.sequence)).collect::<Vec<_>>(),
            [(Store::Ledger, 5)]
        );
        assert!(witnesses.others(Store::Ledger).is_empty(), "the registry has committed nothing yet");
        std::fs::write(&paths[0], b"WFN1").unwrap();
        assert!(read_note(&paths[0]).is_err());
        assert_eq!(read_note(&folder.path().join("none")), Ok(None));
    }
}
